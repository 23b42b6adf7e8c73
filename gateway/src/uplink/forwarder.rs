//! Which entries to send next and how far the cursor may move. Pure: no clock, no disk, no wire.

use std::collections::VecDeque;

use crate::spool::Seq;

/// One uplink's progress through the log.
///
/// The cursor is the last place up to which everything is confirmed. Behind it stand the entries in flight, in order;
/// confirmations may come in any order, the cursor moves over what is confirmed without a hole. The window is counted
/// from the cursor as it stands on disk, so that a crash repeats no more than one window.
#[derive(Debug)]
pub struct Forwarder {
    stored: Seq,
    cursor: Seq,
    /// The last place looked at: in flight, or known to hold nothing to send.
    read_to: Seq,
    in_flight: VecDeque<(Seq, bool)>,
    window: usize,
}

impl Forwarder {
    /// Continues behind `cursor` with up to `window` entries in flight.
    pub fn new(cursor: Seq, window: usize) -> Self {
        Self { stored: cursor, cursor, read_to: cursor, in_flight: VecDeque::new(), window: window.max(1) }
    }

    /// The last place up to which everything is confirmed.
    pub fn cursor(&self) -> Seq {
        self.cursor
    }

    /// Entries sent and not yet passed by the cursor.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether this entry was sent and is not passed by the cursor yet.
    pub fn is_in_flight(&self, seq: Seq) -> bool {
        self.in_flight.binary_search_by_key(&seq, |(seq, _)| *seq).is_ok()
    }

    /// The cursor on disk stands here now.
    pub fn stored(&mut self, seq: Seq) {
        self.stored = self.stored.max(seq.min(self.cursor));
    }

    /// Whether so much is confirmed and not yet on disk that storing the cursor is worth a commit.
    pub fn is_cursor_late(&self) -> bool {
        self.cursor.0 - self.stored.0 >= self.window.div_ceil(2) as u64
    }

    /// Behind which place and how many entries to read next; `None` when the window is full or nothing is left.
    pub fn wants(&self, committed: Seq) -> Option<(Seq, usize)> {
        let room = (self.stored.0 + self.window as u64).saturating_sub(self.read_to.0) as usize;
        (room > 0 && committed > self.read_to).then_some((self.read_to, room))
    }

    /// These entries go out now, and up to `read_to` there is nothing else.
    pub fn sent(&mut self, entries: impl Iterator<Item = Seq>, read_to: Seq) {
        for seq in entries {
            debug_assert!(seq > self.read_to || self.in_flight.back().is_none_or(|(last, _)| seq > *last));
            self.in_flight.push_back((seq, false));
        }
        self.read_to = self.read_to.max(read_to);
        self.advance();
    }

    /// The peer has this entry; the new cursor if that moved it. What is not in flight is ignored: a late
    /// confirmation of an earlier connection.
    pub fn confirmed(&mut self, seq: Seq) -> Option<Seq> {
        let at = self.in_flight.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        self.in_flight[at].1 = true;
        self.advance()
    }

    /// The connection is gone: everything behind the cursor is read and sent again.
    pub fn disconnected(&mut self) {
        self.in_flight.clear();
        self.read_to = self.cursor;
    }

    fn advance(&mut self) -> Option<Seq> {
        let before = self.cursor;
        while let Some((seq, true)) = self.in_flight.front() {
            self.cursor = *seq;
            self.in_flight.pop_front();
        }
        if self.in_flight.is_empty() {
            self.cursor = self.cursor.max(self.read_to);
        }
        (self.cursor > before).then_some(self.cursor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_cursor_never_passes_an_unconfirmed_entry() {
        let mut forwarder = Forwarder::new(Seq(10), 3);
        assert_eq!(forwarder.wants(Seq(20)), Some((Seq(10), 3)));
        forwarder.sent([11, 12, 13].map(Seq).into_iter(), Seq(13));
        assert_eq!(forwarder.wants(Seq(20)), None);
        assert_eq!(forwarder.confirmed(Seq(12)), None);
        assert_eq!(forwarder.confirmed(Seq(11)), Some(Seq(12)));
        assert_eq!(forwarder.wants(Seq(20)), None, "a crash would repeat more than a window");
        assert!(forwarder.is_cursor_late());
        forwarder.stored(Seq(12));
        assert_eq!(forwarder.wants(Seq(20)), Some((Seq(13), 2)));
        forwarder.disconnected();
        assert_eq!(forwarder.wants(Seq(20)), Some((Seq(12), 3)));
        assert_eq!(forwarder.confirmed(Seq(13)), None, "late");
    }

    #[test]
    fn places_that_hold_nothing_are_passed_over() {
        let mut forwarder = Forwarder::new(Seq(0), 4);
        forwarder.sent([Seq(3)].into_iter(), Seq(3));
        assert_eq!(forwarder.confirmed(Seq(3)), Some(Seq(3)));
        forwarder.sent(std::iter::empty(), Seq(9));
        assert_eq!(forwarder.cursor(), Seq(9));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Commit(u8),
        Send(u8),
        Confirm(u8),
        Store,
        Cut,
        Crash,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1..5u8).prop_map(Step::Commit),
            (1..9u8).prop_map(Step::Send),
            any::<u8>().prop_map(Step::Confirm),
            Just(Step::Store),
            Just(Step::Cut),
            Just(Step::Crash),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// The far side receives every entry behind which the cursor stands, repeats only what was in flight, and
        /// gets each connection's entries in order.
        #[test]
        fn whatever_happens_nothing_is_skipped(steps in steps(), window in 1..8usize) {
            let mut forwarder = Forwarder::new(Seq(0), window);
            let (mut committed, mut stored_cursor) = (0u64, Seq(0));
            let mut received = std::collections::BTreeSet::new();
            let mut on_wire: Vec<u64> = Vec::new();
            for step in steps {
                match step {
                    Step::Commit(n) => committed += u64::from(n),
                    Step::Send(n) => {
                        if let Some((after, room)) = forwarder.wants(Seq(committed)) {
                            prop_assert!(room <= window);
                            let to = committed.min(after.0 + room.min(usize::from(n)) as u64);
                            if let Some(last) = on_wire.last() { prop_assert!(after.0 >= *last); }
                            on_wire.extend(after.0 + 1..=to);
                            received.extend(after.0 + 1..=to);
                            forwarder.sent((after.0 + 1..=to).map(Seq), Seq(to));
                        }
                    }
                    Step::Confirm(pick) => {
                        if !on_wire.is_empty() {
                            let seq = on_wire[usize::from(pick) % on_wire.len()];
                            forwarder.confirmed(Seq(seq));
                        }
                    }
                    Step::Store => {
                        stored_cursor = forwarder.cursor();
                        forwarder.stored(stored_cursor);
                    }
                    Step::Cut => { forwarder.disconnected(); on_wire.clear(); }
                    Step::Crash => { forwarder = Forwarder::new(stored_cursor, window); on_wire.clear(); }
                }
                let sent = received.last().copied().unwrap_or_default();
                prop_assert!(sent <= stored_cursor.0 + window as u64, "a crash now repeats more than a window");
                prop_assert!((1..=forwarder.cursor().0).all(|seq| received.contains(&seq)));
            }
        }
    }
}
