//! Confirmable messages of ours until they are acknowledged: [`Exchanges`] (RFC 7252 §4.2, §4.7, §4.8).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::Peer;
use crate::config::Timing;
use crate::random::Random;
use crate::request::Request;

/// Names a message under way. The generation tells it from an earlier one in the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ExchangeId {
    slot: u32,
    generation: u32,
}

/// Whose message it is, and so who is told how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A separate response; nobody waits for its end.
    Response,
    /// A notification to the observer in this slot.
    Notification(crate::observe::ObserverId),
    /// A request of ours.
    Request(crate::client::RequestId),
}

/// A message that is to be sent now.
#[derive(Debug)]
pub(crate) struct Due<'a> {
    pub(crate) peer: Peer,
    pub(crate) bytes: &'a [u8],
}

/// What a timer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expired {
    /// The message is to be repeated.
    Repeat(ExchangeId, Owner),
    /// It was repeated often enough; it is gone from the table.
    GaveUp(Peer, Owner),
}

/// Every confirmable message of ours that is under way or waits for its turn at its peer.
#[derive(Debug)]
pub(crate) struct Exchanges {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_message: HashMap<(Peer, u16), ExchangeId>,
    lanes: HashMap<Peer, Lane>,
    timers: BTreeSet<(Instant, ExchangeId)>,
    limit: usize,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    exchange: Option<Exchange>,
}

#[derive(Debug)]
struct Exchange {
    peer: Peer,
    id: u16,
    bytes: Box<[u8]>,
    owner: Owner,
    repeated: u8,
    wait: Duration,
    // None while it waits for its turn.
    due: Option<Instant>,
}

/// What goes on with one peer; gone when nothing does.
#[derive(Debug, Default)]
struct Lane {
    under_way: u16,
    waiting: VecDeque<ExchangeId>,
}

impl Exchanges {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_message: HashMap::new(),
            lanes: HashMap::new(),
            timers: BTreeSet::new(),
            limit,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// Whether a further confirmable message to this peer would have to wait (NSTART).
    pub(crate) fn is_busy(&self, peer: Peer, timing: &Timing) -> bool {
        self.lanes.get(&peer).is_some_and(|lane| lane.under_way >= timing.nstart)
    }

    /// When the next message is to be repeated or given up.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Takes a message in. `true` beside its name when it is to be sent now, else its turn comes. `None` when the
    /// table is full.
    pub(crate) fn start(
        &mut self,
        now: Instant,
        (peer, id): (Peer, u16),
        bytes: &[u8],
        owner: Owner,
        timing: &Timing,
        random: &mut Random,
    ) -> Option<(ExchangeId, bool)> {
        // A message id still under way to this peer must not be taken twice.
        if self.is_full() || self.by_message.contains_key(&(peer, id)) {
            return None;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, exchange: None });
            self.slots.len() as u32 - 1
        });
        let place = &mut self.slots[slot as usize];
        let name = ExchangeId { slot, generation: place.generation };
        let wait = random.stretch(timing.ack_timeout, timing.ack_random_factor);
        let exchange = Exchange { peer, id, bytes: bytes.into(), owner, repeated: 0, wait, due: None };
        let exchange = place.exchange.insert(exchange);
        self.by_message.insert((peer, id), name);
        let lane = self.lanes.entry(peer).or_default();
        if lane.under_way < timing.nstart {
            lane.under_way += 1;
            exchange.due = Some(now + wait);
            self.timers.insert((now + wait, name));
            Some((name, true))
        } else {
            lane.waiting.push_back(name);
            Some((name, false))
        }
    }

    /// The message that an acknowledgement or reset names, by whose it is; it is gone from the table.
    pub(crate) fn finish(&mut self, peer: Peer, id: u16) -> Option<Owner> {
        let name = *self.by_message.get(&(peer, id))?;
        // What was not sent yet cannot have been acknowledged.
        self.slots[name.slot as usize].exchange.as_ref()?.due?;
        self.remove(name).map(|exchange| exchange.owner)
    }

    /// Ends a message that is no longer worth sending.
    pub(crate) fn cancel(&mut self, name: ExchangeId) {
        self.remove(name);
    }

    /// The message that waited longest for its turn at this peer, if it is its turn. Call until `None` after an
    /// exchange with the peer has ended.
    pub(crate) fn next_turn(&mut self, now: Instant, peer: Peer, timing: &Timing) -> Option<Due<'_>> {
        let lane = self.lanes.get_mut(&peer)?;
        if lane.under_way >= timing.nstart {
            return None;
        }
        let Some(name) = lane.waiting.pop_front() else {
            if lane.under_way == 0 {
                self.lanes.remove(&peer);
            }
            return None;
        };
        lane.under_way += 1;
        let exchange = self.slots[name.slot as usize].exchange.as_mut()?;
        let due = now + exchange.wait;
        exchange.due = Some(due);
        self.timers.insert((due, name));
        Some(Due { peer, bytes: &exchange.bytes })
    }

    /// The next message whose timer has run out. One that is to be repeated has its next timer set, and
    /// [`Exchanges::message`] has its bytes.
    pub(crate) fn expire(&mut self, now: Instant, timing: &Timing) -> Option<Expired> {
        let (due, name) = *self.timers.first().filter(|(due, _)| *due <= now)?;
        self.timers.remove(&(due, name));
        let exchange = self.slots[name.slot as usize].exchange.as_mut()?;
        if exchange.repeated >= timing.max_retransmit {
            exchange.due = Some(due);
            return self.remove(name).map(|exchange| Expired::GaveUp(exchange.peer, exchange.owner));
        }
        exchange.repeated += 1;
        exchange.wait *= 2;
        exchange.due = Some(now + exchange.wait);
        self.timers.insert((now + exchange.wait, name));
        Some(Expired::Repeat(name, exchange.owner))
    }

    /// A message under way.
    pub(crate) fn message(&self, name: ExchangeId) -> Option<Due<'_>> {
        let exchange = self.place(name)?.exchange.as_ref()?;
        Some(Due { peer: exchange.peer, bytes: &exchange.bytes })
    }

    /// Puts a newer message in the place of one under way; timer and count go on (RFC 7641 §4.5.2).
    pub(crate) fn replace(&mut self, name: ExchangeId, id: u16, bytes: &[u8]) {
        let Some(exchange) = self.slots[name.slot as usize].exchange.as_mut() else {
            return;
        };
        if !self.by_message.contains_key(&(exchange.peer, id)) {
            self.by_message.remove(&(exchange.peer, exchange.id));
            self.by_message.insert((exchange.peer, id), name);
            exchange.id = id;
            exchange.bytes = bytes.into();
        }
    }

    fn place(&self, name: ExchangeId) -> Option<&Slot> {
        self.slots.get(name.slot as usize).filter(|slot| slot.generation == name.generation)
    }

    fn remove(&mut self, name: ExchangeId) -> Option<Exchange> {
        self.place(name)?;
        let slot = &mut self.slots[name.slot as usize];
        let exchange = slot.exchange.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(name.slot);
        self.by_message.remove(&(exchange.peer, exchange.id));
        if let Some(lane) = self.lanes.get_mut(&exchange.peer) {
            match exchange.due {
                Some(due) => {
                    self.timers.remove(&(due, name));
                    lane.under_way -= 1;
                }
                None => lane.waiting.retain(|waiting| *waiting != name),
            }
            if lane.under_way == 0 && lane.waiting.is_empty() {
                self.lanes.remove(&exchange.peer);
            }
        }
        Some(exchange)
    }
}

/// Message ids: one counter per group of peers, so that an id is not used again for a peer while it may live in the
/// network, however many messages go to others. 8 KiB, whoever comes.
#[derive(Debug)]
pub(crate) struct MessageIds {
    next: Box<[u16]>,
    seed: u64,
}

impl MessageIds {
    pub(crate) fn new(random: &mut Random) -> Self {
        Self { next: (0..4096).map(|_| random.next() as u16).collect(), seed: random.next() }
    }

    pub(crate) fn next(&mut self, peer: Peer) -> u16 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        (self.seed, peer).hash(&mut hasher);
        let next = &mut self.next[hasher.finish() as usize % 4096];
        *next = next.wrapping_add(1);
        *next
    }
}

/// Bytes of a request up to its payload: what is needed to answer it again or later.
pub(crate) fn head(request: &Request<'_>, out: &mut Vec<u8>) {
    let message = &request.message;
    crate::wire::Writer::new(out, message.kind, message.code, message.id, message.token);
    out.extend_from_slice(message.option_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> Peer {
        Peer { socket: 0, address: ([127, 0, 0, 1], port).into() }
    }

    #[test]
    fn a_message_is_repeated_four_times_with_doubling_waits_and_then_given_up() {
        let (timing, mut random) = (Timing::default(), Random::new(1));
        let mut exchanges = Exchanges::new(10);
        let start = Instant::now();
        exchanges.start(start, (peer(1), 7), b"x", Owner::Response, &timing, &mut random).unwrap();
        let first = exchanges.deadline().unwrap() - start;
        assert!((timing.ack_timeout..=timing.ack_timeout * 3 / 2).contains(&first));
        let (mut now, mut wait) = (start, first);
        for _ in 0..4 {
            assert!(exchanges.expire(now + wait / 2, &timing).is_none());
            now += wait;
            assert!(matches!(exchanges.expire(now, &timing), Some(Expired::Repeat(..))));
            wait *= 2;
        }
        now += wait;
        assert_eq!(exchanges.expire(now, &timing), Some(Expired::GaveUp(peer(1), Owner::Response)));
        assert!(now - start <= timing.max_transmit_wait());
        assert_eq!((exchanges.len(), exchanges.deadline()), (0, None));
        assert!(exchanges.lanes.is_empty() && exchanges.by_message.is_empty());
    }

    #[test]
    fn one_message_at_a_time_is_under_way_to_a_peer() {
        let (timing, mut random) = (Timing::default(), Random::new(1));
        let mut exchanges = Exchanges::new(3);
        let now = Instant::now();
        let mut start = |port, id| {
            exchanges.start(now, (peer(port), id), &[id as u8], Owner::Response, &timing, &mut random)
        };
        assert!(start(1, 1).unwrap().1);
        assert!(!start(1, 2).unwrap().1);
        assert!(start(2, 1).unwrap().1);
        assert!(start(3, 1).is_none(), "the table is full");
        assert_eq!(exchanges.finish(peer(1), 2), None, "it was not sent yet");
        assert_eq!(exchanges.finish(peer(1), 1), Some(Owner::Response));
        assert_eq!(exchanges.next_turn(now, peer(1), &timing).unwrap().bytes, [2]);
        assert!(exchanges.next_turn(now, peer(1), &timing).is_none());
        assert_eq!(exchanges.finish(peer(1), 2), Some(Owner::Response));
        assert_eq!(exchanges.finish(peer(1), 2), None);
        assert_eq!(exchanges.finish(peer(2), 1), Some(Owner::Response));
        assert!(exchanges.lanes.is_empty() && exchanges.timers.is_empty());
    }

    #[test]
    fn message_ids_of_one_peer_do_not_repeat_for_65536_messages() {
        let mut ids = MessageIds::new(&mut Random::new(3));
        let mut seen = std::collections::HashSet::new();
        for _ in 0..65_536u32 {
            assert!(seen.insert(ids.next(peer(1))));
        }
    }
}
