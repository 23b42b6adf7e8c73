//! Which entries to send next on which lane, and how far the cursors may move. Pure: no clock, no disk, no wire.
//!
//! Alarms have a lane of their own. Telemetry is sent in order on the live lane; when that one is far behind the head,
//! it leaves a [`Hole`] to the backfill lane and jumps to the head, so that the newest values are there at once and
//! the past follows. Order holds within a lane. No entry is ever sent on two lanes, over a crash neither, because
//!
//! - a hole begins behind everything that the live lane, or one that a crash ended, can have sent;
//! - it is on disk before the live lane passes it;
//! - the backfill lane begins it when the live lane's cursor on disk is past it.

use std::collections::VecDeque;

use crate::spool::{Committed, Hole, Progress, Seq};

/// A line that entries of an uplink stand in; within one, their order is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Alarms, outcomes, gaps, clock records, manifests: before everything else.
    Alarm,
    /// The newest telemetry.
    Live,
    /// Telemetry that an outage left behind.
    Backfill,
}

impl Lane {
    /// All lanes, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Alarm, Self::Live, Self::Backfill];

    /// The word used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alarm => "alarm",
            Self::Live => "live",
            Self::Backfill => "backfill",
        }
    }
}

/// What to read next: entries of `(after, until]`, at most `room` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// On which lane they go.
    pub lane: Lane,
    /// Behind which place.
    pub after: Seq,
    /// Up to which place.
    pub until: Seq,
    /// How many at the most.
    pub room: usize,
}

/// One uplink's progress through the log.
///
/// A lane's cursor is the last place up to which everything of it is confirmed. Behind it stand the parcels in
/// flight, in order; confirmations may come in any order, the cursor moves over what is confirmed without a hole. The
/// window is counted from the cursor as it stands on disk, so that a crash repeats no more than one window a lane.
#[derive(Debug)]
pub struct Forwarder {
    alarm: Run,
    live: Run,
    /// Works on the first hole.
    backfill: Run,
    /// In the order in which they are filled; of the first one, `acked` is where its lane's cursor stands.
    holes: VecDeque<Hole>,
    /// As it is on disk.
    stored: Progress,
    window: usize,
    is_live_first: bool,
}

/// A lane's cursor, what is in flight behind it, and how far the log has been looked at.
#[derive(Debug)]
struct Run {
    cursor: Seq,
    /// The last place looked at: in flight, or known to hold nothing to send.
    read_to: Seq,
    in_flight: VecDeque<Flight>,
}

#[derive(Debug)]
struct Flight {
    first: Seq,
    last: Seq,
    entries: usize,
    is_confirmed: bool,
}

impl Forwarder {
    /// Continues where `progress`, read from disk, left off, with up to `window` entries in flight on each lane.
    pub fn new(progress: Progress, window: usize, is_live_first: bool) -> Self {
        let holes: VecDeque<Hole> = progress.holes.iter().copied().collect();
        Self {
            alarm: Run::new(progress.alarm),
            live: Run::new(progress.live),
            backfill: Run::new(holes.front().map_or(Seq(0), |hole| hole.acked)),
            holes,
            stored: progress,
            window: window.max(1),
            is_live_first,
        }
    }

    /// What is to be on disk next.
    pub fn progress(&self) -> Progress {
        let mut holes: Vec<Hole> = self.holes.iter().copied().collect();
        if let Some(first) = holes.first_mut() {
            first.acked = self.backfill.cursor;
        }
        Progress { alarm: self.alarm.cursor, live: self.live.cursor, holes }
    }

    /// The progress on disk is this one now.
    pub fn stored(&mut self, progress: &Progress) {
        if self.stored != *progress {
            self.stored.clone_from(progress);
        }
    }

    /// Whether so much is confirmed and not yet on disk, or so much depends on it, that a commit is worth it.
    pub fn is_late(&self) -> bool {
        let half = self.window.div_ceil(2) as u64;
        let is_on_disk = |hole: &Hole| self.stored.holes.iter().any(|stored| stored.until == hole.until);
        let is_hole_new = !self.holes.iter().all(is_on_disk);
        let backfill =
            self.stored_hole().map_or(0, |hole| self.backfill.cursor.0.saturating_sub(hole.acked.0));
        is_hole_new
            || self.waits_for_disk()
            || self.alarm.cursor.0 - self.stored.alarm.0.min(self.alarm.cursor.0) >= half
            || self.distance(self.stored.live, self.live.cursor) >= half
            || backfill >= half
    }

    /// Parcels' entries sent and not yet confirmed or passed by a cursor.
    pub fn in_flight(&self) -> usize {
        Lane::ALL.iter().map(|lane| self.run(*lane).entries()).sum()
    }

    /// Entries that wait on a lane or are under way, by their places: places that hold none are counted too.
    pub fn waiting(&self, lane: Lane, committed: &Committed) -> u64 {
        match lane {
            Lane::Alarm => committed.last_alarm.0.saturating_sub(self.alarm.cursor.0),
            Lane::Live => (committed.last.0.saturating_sub(self.live.cursor.0)).saturating_sub(self.ahead()),
            Lane::Backfill => {
                self.progress().holes.iter().map(|hole| hole.until.0.saturating_sub(hole.acked.0)).sum()
            }
        }
    }

    /// Places of holes that the live lane has not passed yet: they wait for the backfill lane alone.
    pub fn ahead(&self) -> u64 {
        let ahead =
            self.holes.iter().map(|hole| hole.until.0.saturating_sub(hole.acked.max(self.live.cursor).0));
        ahead.sum()
    }

    /// A lane's cursor.
    pub fn cursor(&self, lane: Lane) -> Seq {
        self.run(lane).cursor
    }

    /// The oldest place that is not confirmed yet is behind this one, on any lane of telemetry.
    pub fn oldest(&self) -> Seq {
        let progress = self.progress();
        progress.holes.iter().map(|hole| hole.acked).chain([progress.live]).min().unwrap_or(progress.live)
    }

    /// What to read next on the most urgent lane that has something and room; `None` when there is nothing to do now.
    /// May leave a hole: look at [`Forwarder::is_late`] afterwards.
    pub fn wants(&mut self, committed: &Committed) -> Option<Want> {
        self.want_alarm(committed).or_else(|| self.want_live(committed)).or_else(|| self.want_backfill())
    }

    /// These parcels go out now, given by first place, last place and number of entries, and up to `read_to` there
    /// is nothing else on that lane.
    pub fn sent(&mut self, lane: Lane, parcels: impl Iterator<Item = (Seq, Seq, usize)>, read_to: Seq) {
        let run = self.run_mut(lane);
        for (first, last, entries) in parcels {
            debug_assert!(
                first > run.read_to && last >= first,
                "{lane:?} sends {first} behind {}",
                run.read_to
            );
            run.in_flight.push_back(Flight { first, last, entries, is_confirmed: false });
            run.read_to = last;
        }
        run.read_to = run.read_to.max(read_to);
        self.run_mut(lane).advance();
    }

    /// A parcel that an earlier connection, or process, had in flight is in flight again. To be told in order, before
    /// anything else of that lane is sent; what lies between two of them was confirmed.
    pub fn resumed(&mut self, lane: Lane, first: Seq, last: Seq, entries: usize) -> bool {
        let is_open = lane != Lane::Backfill
            || self.holes.front().is_some_and(|hole| first > hole.acked && last <= hole.until);
        let run = self.run_mut(lane);
        if !is_open || first <= run.read_to {
            return false;
        }
        run.in_flight.push_back(Flight { first, last, entries, is_confirmed: false });
        run.read_to = last;
        self.run_mut(lane).advance();
        true
    }

    /// The peer has the parcel that ends at `last`; how many entries that are. What is not in flight is ignored: a
    /// late confirmation of an earlier connection.
    pub fn confirmed(&mut self, lane: Lane, last: Seq) -> Option<usize> {
        let run = self.run_mut(lane);
        let at = run.find(last)?;
        let was_confirmed = std::mem::replace(&mut run.in_flight[at].is_confirmed, true);
        let entries = if was_confirmed { 0 } else { run.in_flight[at].entries };
        run.advance();
        Some(entries)
    }

    /// The peer says that it has everything of a lane up to `seq`, from an earlier connection or process. Only
    /// before anything is in flight on that lane.
    pub fn confirmed_through(&mut self, lane: Lane, seq: Seq) {
        if lane == Lane::Backfill
            && !self.holes.front().is_some_and(|hole| seq > hole.acked && seq <= hole.until)
        {
            return;
        }
        let reach = self.reach();
        let run = self.run_mut(lane);
        // What the live lane cannot have sent is not its own.
        if run.in_flight.is_empty() && seq > run.cursor && (lane != Lane::Live || seq <= reach) {
            run.read_to = seq;
            self.run_mut(lane).advance();
        }
    }

    /// The connection is gone: everything behind the cursors is read and sent again.
    pub fn disconnected(&mut self) {
        for run in [&mut self.alarm, &mut self.live, &mut self.backfill] {
            run.in_flight.clear();
            run.read_to = run.cursor;
        }
    }

    /// Sends telemetry of `(after, until]` once more, as far as it was sent; returns how much of it.
    pub fn replay(&mut self, after: Seq, until: Seq) -> u64 {
        let until = until.min(self.live.cursor);
        if after >= until || self.holes.len() >= MAX_HOLES {
            return 0;
        }
        self.holes.push_back(Hole { acked: after, until });
        if self.holes.len() == 1 {
            self.backfill = Run::new(after);
        }
        until.0 - after.0
    }

    /// Nothing of telemetry up to `until` is wanted any more; returns the ranges `(after, until]` that were not
    /// confirmed. Only while nothing is in flight.
    pub fn give_up(&mut self, until: Seq) -> Vec<(Seq, Seq)> {
        let mut given_up = Vec::new();
        let mut kept = VecDeque::new();
        for mut hole in self.progress().holes {
            let end = hole.until.min(until);
            if end > hole.acked {
                given_up.push((hole.acked, end));
                hole.acked = end;
            }
            if hole.acked < hole.until {
                kept.push_back(hole);
            }
        }
        self.holes = kept;
        self.backfill = Run::new(self.holes.front().map_or(Seq(0), |hole| hole.acked));
        if until > self.live.cursor {
            given_up.push((self.live.cursor, until));
            self.live = Run::new(until);
        }
        given_up
    }

    fn want_alarm(&self, committed: &Committed) -> Option<Want> {
        let room = self.window as u64 - self.alarm.ahead_of(self.stored.alarm).min(self.window as u64);
        (room > 0 && committed.last_alarm > self.alarm.read_to).then_some(Want {
            lane: Lane::Alarm,
            after: self.alarm.read_to,
            until: committed.last_alarm,
            room: room as usize,
        })
    }

    fn want_live(&mut self, committed: &Committed) -> Option<Want> {
        if self.is_live_first {
            self.leave_hole(committed.last);
        }
        let mut until = committed.last;
        if let Some(hole) = self.holes.iter().find(|hole| hole.until > self.live.read_to) {
            let hole = *hole;
            if self.live.read_to >= hole.acked {
                if !self.stored.holes.contains(&hole) {
                    return None;
                }
                self.live.read_to = hole.until;
                self.live.advance();
            } else {
                until = hole.acked;
            }
        }
        let used = self.distance(self.stored.live, self.live.read_to);
        let room = (self.window as u64).saturating_sub(used);
        let after = self.live.read_to;
        (room > 0 && until > after).then_some(Want { lane: Lane::Live, after, until, room: room as usize })
    }

    fn want_backfill(&mut self) -> Option<Want> {
        if self.backfill.in_flight.is_empty()
            && self.holes.front().is_some_and(|hole| self.backfill.cursor >= hole.until)
        {
            self.holes.pop_front();
            self.backfill = Run::new(self.holes.front().map_or(Seq(0), |hole| hole.acked));
        }
        let hole = self.holes.front()?;
        let stored = self.stored_hole()?;
        if self.stored.live < hole.until {
            return None;
        }
        let room = (self.window as u64).saturating_sub(self.backfill.ahead_of(stored.acked));
        let (after, until) = (self.backfill.read_to, hole.until);
        (room > 0 && until > after).then_some(Want {
            lane: Lane::Backfill,
            after,
            until,
            room: room as usize,
        })
    }

    /// Gives what the live lane is behind to the backfill lane, if that is much.
    fn leave_hole(&mut self, head: Seq) {
        let from = self.live.read_to.max(self.reach());
        let is_open = self.holes.iter().any(|hole| hole.until > self.live.cursor);
        if !is_open && self.holes.len() < MAX_HOLES && head.0.saturating_sub(from.0) > self.far() {
            self.holes.push_back(Hole { acked: from, until: head });
            if self.holes.len() == 1 {
                self.backfill = Run::new(from);
            }
        }
    }

    /// The last place that the live lane can have sent, now or before a crash.
    fn reach(&self) -> Seq {
        let mut at = self.stored.live.0 + (self.window as u64).max(LEAST_REACH);
        let mut ahead: Vec<&Hole> = self.holes.iter().filter(|hole| hole.until > self.stored.live).collect();
        ahead.sort_by_key(|hole| hole.until);
        for hole in ahead {
            if at > hole.acked.0 {
                at += hole.until.0 - hole.acked.0;
            }
        }
        Seq(at)
    }

    /// So far behind, the live lane jumps.
    fn far(&self) -> u64 {
        4 * (self.window as u64).max(LEAST_REACH)
    }

    /// Places between two points of the live lane that are its own: without the holes between them.
    fn distance(&self, from: Seq, to: Seq) -> u64 {
        let holes: u64 = self
            .holes
            .iter()
            .filter(|hole| hole.until > self.stored.live)
            .map(|hole| {
                hole.until.min(to).0.saturating_sub(if hole.acked > from { hole.acked.0 } else { from.0 })
            })
            .sum();
        (to.0.saturating_sub(from.0)).saturating_sub(holes)
    }

    /// The first hole as it is on disk.
    fn stored_hole(&self) -> Option<&Hole> {
        let first = self.holes.front()?;
        self.stored.holes.iter().find(|hole| hole.until == first.until && hole.acked <= self.backfill.cursor)
    }

    /// Whether a lane stands still until the progress is on disk.
    fn waits_for_disk(&self) -> bool {
        let is_hole_done = self.backfill.in_flight.is_empty()
            && self.holes.front().is_some_and(|hole| self.backfill.cursor >= hole.until);
        let is_hole_passed = self
            .holes
            .front()
            .is_some_and(|hole| self.live.cursor >= hole.until && self.stored.live < hole.until);
        is_hole_done || is_hole_passed
    }

    fn run(&self, lane: Lane) -> &Run {
        match lane {
            Lane::Alarm => &self.alarm,
            Lane::Live => &self.live,
            Lane::Backfill => &self.backfill,
        }
    }

    fn run_mut(&mut self, lane: Lane) -> &mut Run {
        match lane {
            Lane::Alarm => &mut self.alarm,
            Lane::Live => &mut self.live,
            Lane::Backfill => &mut self.backfill,
        }
    }
}

impl Run {
    fn new(cursor: Seq) -> Self {
        Self { cursor, read_to: cursor, in_flight: VecDeque::new() }
    }

    fn find(&self, last: Seq) -> Option<usize> {
        self.in_flight.binary_search_by_key(&last, |flight| flight.last).ok()
    }

    fn entries(&self) -> usize {
        self.in_flight.iter().filter(|flight| !flight.is_confirmed).map(|flight| flight.entries).sum()
    }

    fn ahead_of(&self, stored: Seq) -> u64 {
        self.read_to.0.saturating_sub(stored.0)
    }

    /// Moves the cursor to just before the first parcel that is not confirmed.
    fn advance(&mut self) {
        while self.in_flight.front().is_some_and(|flight| flight.is_confirmed) {
            self.in_flight.pop_front();
        }
        let reached = self.in_flight.front().map_or(self.read_to, |flight| Seq(flight.first.0 - 1));
        self.cursor = self.cursor.max(reached);
    }
}

/// Holes at a time; with as many the live lane stays behind until one is filled.
pub const MAX_HOLES: usize = 8;
/// A window may have been larger before a restart: holes stay as far behind as the usual one reaches.
const LEAST_REACH: u64 = 1000;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn committed(last: u64, last_alarm: u64) -> Committed {
        Committed { last: Seq(last), last_alarm: Seq(last_alarm), ..Committed::default() }
    }

    /// Sends all that is wanted, every place an entry and a parcel of its own.
    fn send_all(forwarder: &mut Forwarder, committed: &Committed) -> Vec<(Lane, u64)> {
        let mut sent = Vec::new();
        while let Some(Want { lane, after, until, room }) = forwarder.wants(committed) {
            let to = until.0.min(after.0 + room as u64);
            forwarder.sent(lane, (after.0 + 1..=to).map(|seq| (Seq(seq), Seq(seq), 1)), Seq(to));
            sent.extend((after.0 + 1..=to).map(|seq| (lane, seq)));
        }
        sent
    }

    #[test]
    fn the_cursor_never_passes_an_unconfirmed_parcel() {
        let start = Progress { live: Seq(10), ..Progress::default() };
        let mut forwarder = Forwarder::new(start, 3, false);
        let head = committed(20, 0);
        assert_eq!(send_all(&mut forwarder, &head), [11, 12, 13].map(|seq| (Lane::Live, seq)));
        assert_eq!(forwarder.confirmed(Lane::Live, Seq(12)), Some(1));
        assert_eq!(forwarder.cursor(Lane::Live), Seq(10));
        assert_eq!(forwarder.confirmed(Lane::Live, Seq(11)), Some(1));
        assert_eq!(forwarder.cursor(Lane::Live), Seq(12));
        assert_eq!(forwarder.wants(&head), None, "a crash would repeat more than a window");
        assert!(forwarder.is_late());
        forwarder.stored(&forwarder.progress());
        assert_eq!(send_all(&mut forwarder, &head), [14, 15].map(|seq| (Lane::Live, seq)));
        forwarder.disconnected();
        assert_eq!(send_all(&mut forwarder, &head), [13, 14, 15].map(|seq| (Lane::Live, seq)));
        assert_eq!(forwarder.confirmed(Lane::Live, Seq(20)), None, "never sent");
    }

    #[test]
    fn far_behind_the_newest_goes_first_and_the_past_follows_once_that_is_on_disk() {
        let mut forwarder = Forwarder::new(Progress::default(), 10, true);
        let head = committed(50_000, 0);
        assert_eq!(
            send_all(&mut forwarder, &head).len(),
            10,
            "what may be under way already is finished first"
        );
        (1..=10).for_each(|seq| assert!(forwarder.confirmed(Lane::Live, Seq(seq)).is_some()));
        assert_eq!(forwarder.progress().holes, [Hole { acked: Seq(1000), until: Seq(50_000) }]);
        assert!(forwarder.is_late());
        let mut on_lane = BTreeMap::from([(Lane::Live, Vec::new()), (Lane::Backfill, Vec::new())]);
        let mut head = head;
        for _ in 0..20_000 {
            forwarder.stored(&forwarder.progress());
            head.last = head.last.next();
            for (lane, seq) in send_all(&mut forwarder, &head) {
                on_lane.get_mut(&lane).unwrap().push(seq);
                forwarder.confirmed(lane, Seq(seq));
            }
        }
        let live = &on_lane[&Lane::Live];
        assert!(live.windows(2).all(|pair| pair[0] < pair[1]) && live.contains(&70_000));
        assert_eq!(on_lane[&Lane::Backfill], (1001..=50_000).collect::<Vec<_>>());
        assert!(forwarder.progress().holes.is_empty());
    }

    #[test]
    fn parcels_of_an_earlier_process_are_taken_up_again_and_nothing_between_them_is_sent() {
        let start = Progress { live: Seq(10), ..Progress::default() };
        let mut forwarder = Forwarder::new(start, 100, true);
        assert!(forwarder.resumed(Lane::Live, Seq(21), Seq(30), 10));
        assert!(forwarder.resumed(Lane::Live, Seq(41), Seq(50), 10));
        assert!(!forwarder.resumed(Lane::Live, Seq(50), Seq(51), 2));
        assert_eq!(forwarder.cursor(Lane::Live), Seq(20));
        assert_eq!(forwarder.wants(&committed(55, 0)).map(|want| want.after), Some(Seq(50)));
        forwarder.confirmed(Lane::Live, Seq(30));
        assert_eq!(forwarder.cursor(Lane::Live), Seq(40));
    }

    #[test]
    fn what_is_given_up_is_named_and_what_is_replayed_was_sent() {
        let holes =
            vec![Hole { acked: Seq(100), until: Seq(200) }, Hole { acked: Seq(300), until: Seq(400) }];
        let start = Progress { alarm: Seq(0), live: Seq(500), holes };
        let mut forwarder = Forwarder::new(start, 100, true);
        assert_eq!(forwarder.give_up(Seq(350)), [(Seq(100), Seq(200)), (Seq(300), Seq(350))]);
        assert_eq!(forwarder.progress().holes, [Hole { acked: Seq(350), until: Seq(400) }]);
        assert_eq!(forwarder.give_up(Seq(600)), [(Seq(350), Seq(400)), (Seq(500), Seq(600))]);
        assert_eq!(forwarder.replay(Seq(550), Seq(700)), 50);
        forwarder.stored(&forwarder.progress());
        let sent = send_all(&mut forwarder, &committed(600, 0));
        assert_eq!(sent, (551..=600).map(|seq| (Lane::Backfill, seq)).collect::<Vec<_>>());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Commit { entries: u16, is_alarm: bool },
        Send,
        Confirm(u16),
        Store,
        Cut,
        Crash,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => (1u16..3000, Just(false)).prop_map(|(entries, is_alarm)| Step::Commit { entries, is_alarm }),
            1 => (1u16..4, Just(true)).prop_map(|(entries, is_alarm)| Step::Commit { entries, is_alarm }),
            6 => Just(Step::Send),
            6 => any::<u16>().prop_map(Step::Confirm),
            4 => Just(Step::Store),
            1 => Just(Step::Cut),
            1 => Just(Step::Crash),
        ]
    }

    /// The log, the wire and the far side around a forwarder.
    struct Bench {
        forwarder: Forwarder,
        window: usize,
        is_alarm: Vec<bool>,
        disk: Progress,
        on_wire: Vec<(Lane, u64)>,
        received: BTreeMap<u64, Lane>,
    }

    impl Bench {
        fn committed(&self) -> Committed {
            let last_alarm = self.is_alarm.iter().rposition(|is| *is).map_or(0, |at| at as u64 + 1);
            committed(self.is_alarm.len() as u64, last_alarm)
        }

        fn send(&mut self, most: usize) -> Result<bool, TestCaseError> {
            let committed = self.committed();
            let Some(Want { lane, after, until, room }) = self.forwarder.wants(&committed) else {
                return Ok(false);
            };
            let is_alarm = lane == Lane::Alarm;
            let of_lane = (after.0 + 1..=until.0).filter(|seq| self.is_alarm[*seq as usize - 1] == is_alarm);
            let sent: Vec<u64> = of_lane.take(room.min(most)).collect();
            let read_to = if sent.len() < room.min(most) { until.0 } else { sent[sent.len() - 1] };
            for seq in &sent {
                let on_lane = self.on_wire.iter().rev().find(|(other, _)| *other == lane);
                prop_assert!(on_lane.is_none_or(|(_, last)| last < seq), "{lane:?} sends {seq} out of order");
                let before = self.received.insert(*seq, lane);
                prop_assert!(
                    before.is_none_or(|before| before == lane),
                    "{seq} on {before:?} and on {lane:?}"
                );
                self.on_wire.push((lane, *seq));
            }
            self.forwarder.sent(lane, sent.iter().map(|seq| (Seq(*seq), Seq(*seq), 1)), Seq(read_to));
            Ok(true)
        }

        fn confirm(&mut self, pick: usize) {
            if !self.on_wire.is_empty() {
                let (lane, seq) = self.on_wire[pick % self.on_wire.len()];
                self.forwarder.confirmed(lane, Seq(seq));
            }
        }

        fn store(&mut self) {
            self.disk = self.forwarder.progress();
            self.forwarder.stored(&self.disk);
        }

        /// What the disk says is done was received.
        fn check(&self) -> Result<(), TestCaseError> {
            let mut repeats = BTreeMap::from(Lane::ALL.map(|lane| (lane, 0)));
            let progress = self.forwarder.progress();
            for (index, is_alarm) in self.is_alarm.iter().enumerate() {
                let seq = index as u64 + 1;
                let is_done = |progress: &Progress| {
                    let is_left = progress.holes.iter().any(|hole| seq > hole.acked.0 && seq <= hole.until.0);
                    if *is_alarm { seq <= progress.alarm.0 } else { seq <= progress.live.0 && !is_left }
                };
                let lane = self.received.get(&seq);
                prop_assert!(lane.is_some() || !is_done(&progress), "{seq} is skipped: {progress:?}");
                if let Some(lane) = lane.filter(|_| !is_done(&self.disk)) {
                    *repeats.get_mut(lane).unwrap() += 1;
                }
            }
            prop_assert!(repeats.values().all(|n| *n <= self.window), "a crash now repeats {repeats:?}");
            Ok(())
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]
        #[test]
        fn whatever_happens_nothing_is_skipped_reordered_or_sent_on_two_lanes(
            window in 1usize..60,
            is_live_first: bool,
            steps in proptest::collection::vec(step(), 1..150),
        ) {
            let mut bench = Bench {
                forwarder: Forwarder::new(Progress::default(), window, is_live_first),
                window,
                is_alarm: Vec::new(),
                disk: Progress::default(),
                on_wire: Vec::new(),
                received: BTreeMap::new(),
            };
            for step in steps {
                match step {
                    Step::Commit { entries, is_alarm } => {
                        bench.is_alarm.extend(std::iter::repeat_n(is_alarm, usize::from(entries)));
                    }
                    Step::Send => { bench.send(20)?; }
                    Step::Confirm(pick) => bench.confirm(usize::from(pick)),
                    Step::Store => { bench.check()?; bench.store(); }
                    Step::Cut => { bench.forwarder.disconnected(); bench.on_wire.clear(); }
                    Step::Crash => {
                        bench.check()?;
                        bench.forwarder = Forwarder::new(bench.disk.clone(), window, is_live_first);
                        bench.on_wire.clear();
                    }
                }
            }
            bench.check()?;
            // The faults stop: everything arrives.
            bench.forwarder.disconnected();
            bench.on_wire.clear();
            let mut idle = 0;
            while idle < 3 {
                idle = if bench.send(1000)? { 0 } else { idle + 1 };
                for at in 0..bench.on_wire.len() {
                    bench.confirm(at);
                }
                bench.on_wire.clear();
                bench.store();
            }
            let missing: BTreeSet<u64> =
                (1..=bench.is_alarm.len() as u64).filter(|seq| !bench.received.contains_key(seq)).collect();
            prop_assert!(missing.is_empty(), "never sent: {missing:?}");
            prop_assert!(bench.forwarder.progress().holes.is_empty());
        }
    }
}
