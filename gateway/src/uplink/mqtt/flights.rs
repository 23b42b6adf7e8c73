//! The parcels under way at QoS 2, and how far each is: what has to be on disk before anything is said to the broker.
//! Pure: no disk, no wire.
//!
//! A packet id follows from a parcel's lane and first `Seq`: each lane has a range of ids of its own. Places are sparse
//! (alarms and telemetry share one sequence), so two parcels of a lane may meet on one id; the later one then waits
//! until the earlier is done.
//!
//! ```text
//! plan ──► Sent ── PUBREC ──► Received ── PUBCOMP ──► Done ──► gone, when nothing before it in its lane is left
//!           ▲                     │
//!           └──── session lost ───┘
//! ```

use std::collections::VecDeque;

use mqtt::Qos;
use mqtt::client::Unfinished;

use crate::payload::parcel::ParcelKey;
use crate::spool::Seq;
use crate::uplink::forwarder::Lane;

/// All parcels under way, the broker's session they belong to, and the count of doubtful ones. A `Default` one knows of
/// no session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flights {
    /// Marks the broker's session, so that it can be told from one made later under the same client id; 0: unmarked.
    pub mark: u64,
    /// Parcels sent again although the broker may have delivered them already.
    pub doubts: u64,
    lanes: [VecDeque<Flight>; 3],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flight {
    key: ParcelKey,
    phase: Phase,
}

/// How far a parcel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// PUBLISH may have been written, PUBREL not.
    Sent,
    /// PUBREC has come, PUBREL may have been written.
    Received,
    /// PUBCOMP has come; an earlier parcel of the lane is not that far yet.
    Done,
}

impl Flights {
    /// The caller's id of a parcel: no two lanes hold the same place.
    pub fn id(key: ParcelKey) -> u64 {
        key.first.0
    }

    /// The packet id that a parcel has, whenever and by whichever process it is sent.
    pub fn packet_id(key: ParcelKey) -> u16 {
        let base = FIRST_OF_LANES + IDS_OF_A_LANE * key.lane as u16;
        base + (key.first.0 % u64::from(IDS_OF_A_LANE)) as u16
    }

    /// Whether the parcel's packet id is free.
    pub fn has_room(&self, key: ParcelKey) -> bool {
        let packet_id = Self::packet_id(key);
        self.lane(key.lane).iter().all(|flight| Self::packet_id(flight.key) != packet_id)
    }

    /// The parcel is about to be sent for the first time.
    pub fn plan(&mut self, key: ParcelKey) {
        self.lane_mut(key.lane).push_back(Flight { key, phase: Phase::Sent });
    }

    /// The parcel is not to be finished any more.
    pub fn drop(&mut self, key: ParcelKey) {
        self.lane_mut(key.lane).retain(|flight| flight.key != key);
    }

    /// PUBREC has come for the parcel with this id; whether that is news.
    pub fn received(&mut self, id: u64) -> bool {
        self.find(id).is_some_and(|flight| {
            let is_news = flight.phase == Phase::Sent;
            if is_news {
                flight.phase = Phase::Received;
            }
            is_news
        })
    }

    /// PUBCOMP has come for the parcel with this id; the parcel, if there is one.
    pub fn done(&mut self, id: u64) -> Option<ParcelKey> {
        let flight = self.find(id)?;
        flight.phase = Phase::Done;
        let key = flight.key;
        let lane = self.lane_mut(key.lane);
        while lane.front().is_some_and(|flight| flight.phase == Phase::Done) {
            lane.pop_front();
        }
        Some(key)
    }

    /// The broker's session is gone: everything is sent anew. How many parcels that are, and how many of them the broker
    /// may have delivered.
    pub fn session_lost(&mut self) -> (usize, usize) {
        let (mut again, mut doubtful) = (0, 0);
        for flight in self.lanes.iter_mut().flatten().filter(|flight| flight.phase != Phase::Done) {
            again += 1;
            doubtful += usize::from(flight.phase == Phase::Received);
            flight.phase = Phase::Sent;
        }
        self.doubts += doubtful as u64;
        self.mark = 0;
        (again, doubtful)
    }

    /// All parcels, lane by lane in order.
    pub fn all(&self) -> impl Iterator<Item = (ParcelKey, Phase)> {
        self.lanes.iter().flatten().map(|flight| (flight.key, flight.phase))
    }

    /// How many parcels the broker has not finished with.
    #[cfg(test)]
    fn unfinished(&self) -> usize {
        self.lanes.iter().flatten().filter(|flight| flight.phase != Phase::Done).count()
    }

    /// The same for the engine.
    pub fn import(&self) -> Vec<Unfinished> {
        let unfinished = self.all().filter(|(_, phase)| *phase != Phase::Done);
        unfinished
            .map(|(key, phase)| Unfinished {
                id: Self::id(key),
                packet_id: Self::packet_id(key),
                qos: Qos::ExactlyOnce,
                is_received: phase == Phase::Received,
            })
            .collect()
    }

    /// As bytes: a version, the mark, the doubts, and per lane the number of parcels and of each the distance of its
    /// first place to the one before, its length, and its phase; numbers as LEB128.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + 4 * self.lanes.iter().map(VecDeque::len).sum::<usize>());
        out.push(FORMAT);
        for number in [self.mark, self.doubts] {
            write_number(&mut out, number);
        }
        for lane in &self.lanes {
            write_number(&mut out, lane.len() as u64);
            let mut before = 0;
            for Flight { key, phase } in lane {
                // Planned in order; a wrapped distance reads back all the same.
                write_number(&mut out, key.first.0.wrapping_sub(before));
                write_number(&mut out, ((key.last.0 - key.first.0) << 2) | *phase as u64);
                before = key.first.0;
            }
        }
        out
    }

    /// Reads what [`Flights::encode`] wrote; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (format, mut rest) = bytes.split_first()?;
        let rest = &mut rest;
        if *format != FORMAT {
            return None;
        }
        let mut flights = Self { mark: read_number(rest)?, doubts: read_number(rest)?, ..Self::default() };
        for lane in Lane::ALL {
            let mut before = 0u64;
            for _ in 0..read_number(rest)? {
                let first = before.wrapping_add(read_number(rest)?);
                // No entry stands there.
                if first == 0 {
                    return None;
                }
                let packed = read_number(rest)?;
                let phase = match packed & 3 {
                    0 => Phase::Sent,
                    1 => Phase::Received,
                    2 => Phase::Done,
                    _ => return None,
                };
                let last = first.checked_add(packed >> 2)?;
                let key = ParcelKey { lane, first: Seq(first), last: Seq(last) };
                flights.lane_mut(lane).push_back(Flight { key, phase });
                before = first;
            }
        }
        rest.is_empty().then_some(flights)
    }

    fn find(&mut self, id: u64) -> Option<&mut Flight> {
        self.lanes.iter_mut().flatten().find(|flight| Self::id(flight.key) == id)
    }

    fn lane(&self, lane: Lane) -> &VecDeque<Flight> {
        &self.lanes[lane as usize]
    }

    fn lane_mut(&mut self, lane: Lane) -> &mut VecDeque<Flight> {
        &mut self.lanes[lane as usize]
    }
}

fn write_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn read_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Packet ids below are the engine's own: subscriptions, and what is no entry.
pub const FIRST_OF_LANES: u16 = 5_000;
/// Three times as many fit above [`FIRST_OF_LANES`].
const IDS_OF_A_LANE: u16 = 20_000;
const FORMAT: u8 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(lane: Lane, first: u64, last: u64) -> ParcelKey {
        ParcelKey { lane, first: Seq(first), last: Seq(last) }
    }

    #[test]
    fn a_parcel_is_gone_when_everything_before_it_in_its_lane_is() {
        let mut flights = Flights::default();
        let (one, two, alarm) = (key(Lane::Live, 1, 4), key(Lane::Live, 5, 5), key(Lane::Alarm, 6, 6));
        for key in [one, two, alarm] {
            assert!(flights.has_room(key));
            flights.plan(key);
        }
        assert!(flights.received(5) && !flights.received(5) && !flights.received(9));
        assert_eq!((flights.done(5), flights.unfinished()), (Some(two), 2));
        assert_eq!(
            flights.all().collect::<Vec<_>>(),
            [(alarm, Phase::Sent), (one, Phase::Sent), (two, Phase::Done)]
        );
        assert_eq!(flights.import().len(), 2, "what is done is nothing to the engine");
        assert_eq!(flights.done(1), Some(one));
        assert_eq!(flights.all().collect::<Vec<_>>(), [(alarm, Phase::Sent)]);
        assert_eq!(flights.done(1), None);
    }

    #[test]
    fn lanes_share_no_packet_id_and_a_parcel_waits_for_the_one_that_has_its_own() {
        let mut flights = Flights::default();
        flights.plan(key(Lane::Live, 7, 7));
        assert!(!flights.has_room(key(Lane::Live, 20_007, 20_010)));
        assert!(flights.has_room(key(Lane::Live, 20_006, 20_006)));
        assert!(flights.has_room(key(Lane::Backfill, 20_007, 20_007)));
        let ids = Lane::ALL.map(|lane| [0, 19_999].map(|first| Flights::packet_id(key(lane, first, first))));
        assert_eq!(ids, [[5_000, 24_999], [25_000, 44_999], [45_000, 64_999]]);
    }

    #[test]
    fn a_lost_session_makes_a_doubt_only_of_what_may_have_been_released() {
        let mut flights = Flights { mark: 9, ..Flights::default() };
        for first in 1..=3 {
            flights.plan(key(Lane::Live, first, first));
        }
        flights.received(1);
        flights.received(2);
        flights.done(2);
        assert_eq!(flights.session_lost(), (2, 1));
        assert_eq!((flights.mark, flights.doubts, flights.unfinished()), (0, 1, 2));
        let phases: Vec<Phase> = flights.all().map(|(_, phase)| phase).collect();
        assert_eq!(phases, [Phase::Sent, Phase::Done, Phase::Sent], "what is done is not sent again");
    }

    #[test]
    fn a_thousand_parcels_take_a_few_bytes_each() {
        let mut flights = Flights { mark: u64::MAX, ..Flights::default() };
        (0..1_000).for_each(|n| flights.plan(key(Lane::Live, (1 << 40) + n * 10, (1 << 40) + n * 10 + 9)));
        assert!(flights.encode().len() < 2_100, "{}", flights.encode().len());
    }

    fn flights() -> impl Strategy<Value = Flights> {
        let flight = (0..3usize, 1..u64::MAX / 2, 0..1_000_000u64, 0..3u8);
        (any::<u64>(), any::<u64>(), proptest::collection::vec(flight, 0..40)).prop_map(
            |(mark, doubts, list)| {
                let mut flights = Flights { mark, doubts, ..Flights::default() };
                for (lane, first, length, phase) in list {
                    let lane = Lane::ALL[lane];
                    let phase = [Phase::Sent, Phase::Received, Phase::Done][usize::from(phase)];
                    let key = key(lane, first, first + length);
                    flights.lane_mut(lane).push_back(Flight { key, phase });
                }
                flights
            },
        )
    }

    #[test]
    fn the_state_on_disk_survives_mutated_input() {
        let mut some = Flights { mark: 0x1234_5678_9ABC, doubts: 2, ..Flights::default() };
        for first in 1..=5 {
            some.plan(key(Lane::Live, first * 100, first * 100 + 99));
            some.plan(key(Lane::Alarm, first * 3, first * 3));
            some.plan(key(Lane::Backfill, first, first));
        }
        some.received(100);
        some.received(200);
        some.done(200);
        let corpus = vec![some.encode(), Flights::default().encode(), Flights { mark: 1, ..some }.encode()];
        crate::fuzz::mutated("mqtt-flights", corpus, |input| {
            let Some(mut flights) = Flights::decode(input) else { return };
            assert_eq!(Flights::decode(&flights.encode()), Some(flights.clone()));
            assert!(flights.all().count() <= input.len(), "a count alone reserves nothing");
            // Whatever stands there is lived with.
            let keys: Vec<ParcelKey> = flights.all().map(|(key, _)| key).collect();
            assert!(keys.iter().all(|key| key.first.0 > 0 && key.first <= key.last), "{keys:?}");
            let _ = flights.import();
            for key in keys.into_iter().take(20) {
                let _ = flights.has_room(key);
                flights.received(Flights::id(key));
                flights.done(Flights::id(key));
            }
            flights.session_lost();
        });
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(flights in flights()) {
            prop_assert_eq!(Flights::decode(&flights.encode()), Some(flights));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(flights) = Flights::decode(&bytes) {
                prop_assert_eq!(Flights::decode(&flights.encode()), Some(flights));
            }
        }
    }
}
