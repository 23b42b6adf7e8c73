//! Changes on their way to whoever stores them, and which answers wait for them.
//!
//! Changes gather until they are taken, all of them together; the next ones wait until those are settled. Each answer
//! that promises something is told the [`Round`] of the changes that hold the promise, and leaves when that is settled.
//! A record that is deleted before it was ever taken is never written: a message that its subscriber acknowledges at
//! once costs no disk.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::record::{Change, Due, Shelf};
use crate::session::Records;

/// Counts the times that changes were taken. What waits for a round may go on once that one is settled.
pub(crate) type Round = u64;

/// Changes that wait to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Whether an answer waits for them.
    pub is_urgent: bool,
    /// Whether some may be over in a moment, because the client that they are about is there.
    pub may_vanish: bool,
}

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Journal {
    /// Whether anybody stores anything.
    is_on: bool,
    waiting: BTreeMap<(Shelf, u64), Pending>,
    /// Taken and not yet settled; again among those that wait if that fails.
    under_way: Option<BTreeMap<(Shelf, u64), Pending>>,
    /// How often changes were taken; those that wait now are the next.
    taken: Round,
    settled: Round,
    /// Whether an answer waits for what waits here.
    is_urgent: bool,
    /// Something was written that a connected client will probably soon be done with.
    may_vanish: bool,
    /// Something was written that an answer has to wait for, since [`Journal::promise`] was asked last.
    is_touched: bool,
    next: [u64; 3],
    /// How many deliveries hold each message of [`Shelf::Message`].
    holders: HashMap<u64, u32>,
    /// A moment, and the milliseconds since 1970 then; 0 where nobody knows.
    clock: Option<(Instant, u64)>,
}

#[derive(Debug, Clone)]
enum Pending {
    /// Written for the first time: deleting it leaves nothing to do.
    New(Bytes),
    Write(Bytes),
    Delete,
}

impl Journal {
    pub(crate) fn start(&mut self) {
        self.is_on = true;
    }

    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    /// How often changes were taken.
    pub(crate) fn taken(&self) -> Round {
        self.taken
    }

    /// Up to here all changes are safe.
    pub(crate) fn settled(&self) -> Round {
        self.settled
    }

    pub(crate) fn set_clock(&mut self, now: Instant, unix_ms: u64) {
        self.clock = Some((now, unix_ms));
    }

    /// Milliseconds since 1970; 0 where nobody knows.
    pub(crate) fn unix_ms(&self, now: Instant) -> u64 {
        let since = |(then, unix_ms): (Instant, u64)| {
            if unix_ms == 0 { 0 } else { unix_ms + now.saturating_duration_since(then).as_millis() as u64 }
        };
        self.clock.map_or(0, since)
    }

    pub(crate) fn due(&self, now: Instant, at: Instant) -> Due {
        Due { left: at.saturating_duration_since(now), written_ms: self.unix_ms(now) }
    }

    /// A number that no record on this shelf has had.
    pub(crate) fn number(&mut self, shelf: Shelf) -> u64 {
        let next = &mut self.next[shelf as usize - 1];
        *next += 1;
        *next
    }

    /// That number is taken.
    pub(crate) fn reserve(&mut self, shelf: Shelf, number: u64) {
        let next = &mut self.next[shelf as usize - 1];
        *next = number.max(*next);
    }

    /// Writes a record that was never there before.
    pub(crate) fn add(&mut self, shelf: Shelf, key: u64, body: Bytes) {
        self.is_touched = true;
        self.waiting.insert((shelf, key), Pending::New(body));
    }

    /// Writes a record anew.
    pub(crate) fn write(&mut self, shelf: Shelf, key: u64, body: Bytes) {
        self.is_touched = true;
        let is_new = matches!(self.waiting.get(&(shelf, key)), Some(Pending::New(_)));
        self.waiting.insert((shelf, key), if is_new { Pending::New(body) } else { Pending::Write(body) });
    }

    pub(crate) fn delete(&mut self, shelf: Shelf, key: u64) {
        match self.waiting.remove(&(shelf, key)) {
            Some(Pending::New(_)) => {}
            _ => drop(self.waiting.insert((shelf, key), Pending::Delete)),
        }
        self.is_touched = true;
    }

    /// One more delivery holds that message.
    pub(crate) fn hold(&mut self, message: u64) {
        *self.holders.entry(message).or_default() += 1;
    }

    pub(crate) fn is_held(&self, message: u64) -> bool {
        self.holders.contains_key(&message)
    }

    /// A delivery is over: its record goes, and with the last one the message that they shared.
    pub(crate) fn release(&mut self, records: Records) {
        let Records { delivery, message } = records;
        if delivery > 0 {
            self.delete(Shelf::Delivery, delivery);
        }
        let Some(message) = message else { return };
        let Some(holders) = self.holders.get_mut(&message) else { return };
        *holders -= 1;
        if *holders == 0 {
            self.holders.remove(&message);
            self.delete(Shelf::Message, message);
        }
    }

    /// Nothing that was written so far is waited for by the next answer.
    pub(crate) fn begin(&mut self) {
        self.is_touched = false;
    }

    /// What an answer has to wait for that promises what was written since [`Journal::begin`]; 0 where that is nothing.
    pub(crate) fn promise(&mut self) -> Round {
        if !std::mem::take(&mut self.is_touched) {
            return 0;
        }
        self.is_urgent = true;
        self.taken + 1
    }

    /// What an answer has to wait for that promises everything that was written so far.
    pub(crate) fn promise_all(&mut self) -> Round {
        if self.waiting.is_empty() && !self.is_urgent {
            return self.taken;
        }
        self.is_urgent = true;
        self.taken + 1
    }

    /// What was written last is for a client that is there to take it.
    pub(crate) fn hope(&mut self) {
        self.may_vanish = true;
    }

    /// What waits to be taken.
    pub(crate) fn waiting(&self) -> Option<Waiting> {
        let is_waiting = self.under_way.is_none() && (self.is_urgent || !self.waiting.is_empty());
        is_waiting.then_some(Waiting { is_urgent: self.is_urgent, may_vanish: self.may_vanish })
    }

    /// Takes all changes; none while others are under way.
    pub(crate) fn take(&mut self) -> Option<(Round, Vec<Change>)> {
        self.waiting()?;
        let changes = std::mem::take(&mut self.waiting);
        self.taken += 1;
        (self.is_urgent, self.may_vanish) = (false, false);
        let list = changes.iter().map(|((shelf, key), pending)| {
            let body = match pending {
                Pending::New(body) | Pending::Write(body) => Some(body.clone()),
                Pending::Delete => None,
            };
            Change { shelf: *shelf, key: *key, body }
        });
        let list = list.collect();
        self.under_way = Some(changes);
        Some((self.taken, list))
    }

    /// What was taken last is safe, or could not be stored: then it waits again, behind nothing.
    pub(crate) fn settle(&mut self, is_safe: bool) {
        let Some(changes) = self.under_way.take() else { return };
        if is_safe {
            self.settled = self.taken;
            return;
        }
        for (place, pending) in changes {
            // What happened to the record since counts. It may or may not be there.
            match self.waiting.get_mut(&place) {
                Some(newer) => {
                    if let Pending::New(body) = newer {
                        *newer = Pending::Write(body.clone());
                    }
                }
                None => {
                    let again = if let Pending::New(body) = pending { Pending::Write(body) } else { pending };
                    self.waiting.insert(place, again);
                }
            }
        }
    }
}

/// Adds to a moment without leaving what an `Instant` can hold.
pub(crate) fn later(now: Instant, by: Duration) -> Instant {
    now.checked_add(by).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(journal: &mut Journal) -> Vec<(u64, Option<&'static str>)> {
        let (_, changes) = journal.take().expect("something waits");
        changes
            .into_iter()
            .map(|change| (change.key, change.body.map(|body| if body == "a" { "a" } else { "b" })))
            .collect()
    }

    #[test]
    fn what_comes_and_goes_before_it_is_taken_is_never_written() {
        let mut journal = Journal::default();
        journal.add(Shelf::Delivery, 1, "a".into());
        journal.add(Shelf::Delivery, 2, "a".into());
        assert_eq!(journal.promise(), 1);
        journal.delete(Shelf::Delivery, 1);
        journal.write(Shelf::Delivery, 2, "b".into());
        assert_eq!(changes(&mut journal), [(2, Some("b"))]);
        journal.delete(Shelf::Delivery, 2);
        assert_eq!(journal.waiting(), None, "the first are under way");
        journal.settle(true);
        assert_eq!(changes(&mut journal), [(2, None)]);
    }

    #[test]
    fn an_answer_waits_for_its_own_changes_even_when_nothing_is_left_of_them() {
        let mut journal = Journal::default();
        assert_eq!(journal.promise(), 0);
        journal.add(Shelf::State, 1, "a".into());
        let first = journal.promise();
        journal.delete(Shelf::State, 1);
        assert_eq!(
            (journal.waiting().map(|waiting| waiting.is_urgent), changes(&mut journal)),
            (Some(true), vec![])
        );
        journal.add(Shelf::State, 2, "a".into());
        assert_eq!((first, journal.promise()), (1, 2));
        journal.settle(true);
        assert_eq!(journal.settled(), 1);
    }

    #[test]
    fn what_could_not_be_stored_waits_again_unless_it_changed_since() {
        let mut journal = Journal::default();
        for key in 1..=3 {
            journal.add(Shelf::State, key, "a".into());
        }
        journal.take();
        journal.delete(Shelf::State, 1);
        journal.write(Shelf::State, 2, "b".into());
        journal.settle(false);
        assert_eq!(changes(&mut journal), [(1, None), (2, Some("b")), (3, Some("a"))]);
    }

    #[test]
    fn a_shared_message_goes_with_the_last_that_held_it() {
        let mut journal = Journal::default();
        journal.add(Shelf::Message, 9, "a".into());
        journal.hold(9);
        journal.hold(9);
        journal.take();
        journal.settle(true);
        journal.release(Records { delivery: 1, message: Some(9) });
        assert_eq!(changes(&mut journal), [(1, None)]);
        journal.settle(true);
        journal.release(Records { delivery: 2, message: Some(9) });
        assert_eq!(changes(&mut journal), [(9, None), (2, None)]);
        assert!(journal.holders.is_empty());
    }
}
