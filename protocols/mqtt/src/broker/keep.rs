//! What survives a restart: written down as it changes, and put back at the start.
//!
//! A session that outlives its connection is kept with its subscriptions and the messages of QoS 1 and 2 that wait in
//! it; retained messages are kept, but for the process's own, which publishes them again. What leaves as an answer
//! waits until the changes behind it are safe. Wills are kept, too, without anybody waiting for it: whoever does not come
//! back after a restart has gone without a word [MQTT-3.1.2-8].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::{Broker, Origin, Subscriber, Timer};
use crate::arena::Key;
use crate::connection::Phase;
use crate::journal::{Journal, Round, Waiting, later};
use crate::record::{
    Change, Content, DeliveryRecord, FORMAT, INCOMING, RETAINED, Record, RetainedRecord, SessionRecord,
    Shelf, Stage, WILLS, WillRecord, read_shared, write_shared,
};
use crate::session::{Delivery, Incoming, Records, Session};
use crate::wire::{Version, Will, kind, write_ack};
use crate::{Message, Principal, ReasonCode};

/// What [`Broker::restore`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Sessions that live on.
    pub sessions: usize,
    /// Messages that wait in them.
    pub messages: usize,
    /// Retained messages.
    pub retained: usize,
    /// Wills of clients that were connected.
    pub wills: usize,
    /// Records that could not be read, or that belong to nothing; they are deleted.
    pub unreadable: usize,
}

/// A will whose client was connected when the broker went.
pub(super) struct Missed {
    principal: Principal,
    will: Will,
    due: Instant,
}

impl Broker {
    /// Puts back what was kept and keeps everything from now on. To be called once, before the first connection, with
    /// all records in the order of their keys; `unix_ms` is the time since 1970, or 0 where it is not known.
    pub fn restore(&mut self, now: Instant, unix_ms: u64, records: Vec<Record>) -> Restored {
        self.journal.start();
        self.journal.set_clock(now, unix_ms);
        let mut found = Restored::default();
        let mut sessions = HashMap::new();
        let mut messages: HashMap<u64, Arc<Message>> = HashMap::new();
        let mut waiting: HashMap<Key, Vec<(DeliveryRecord, u64)>> = HashMap::new();
        for Record { shelf, key, body } in records {
            let number = if shelf == Shelf::State && key >= RETAINED { key % RETAINED } else { key };
            if shelf != Shelf::State || !(INCOMING..WILLS).contains(&key) {
                self.journal.reserve(shelf, number);
            }
            let is_whole = match shelf {
                Shelf::State if key >= WILLS => WillRecord::read(&body).ok().and_then(|record| {
                    self.restore_will(now, number, record)?;
                    found.wills += 1;
                    Some(())
                }),
                Shelf::State if key >= INCOMING => {
                    let session = sessions.get(&((key - INCOMING) >> 16));
                    session.and_then(|session| self.sessions.get_mut(*session)).map(|session| {
                        session.incoming.insert(key as u16, Incoming { token: 0, after: 0 });
                    })
                }
                Shelf::State if key >= RETAINED => RetainedRecord::read(&body).ok().and_then(|record| {
                    let left = record.expires.map(|expires| expires.left_at(unix_ms));
                    let expires = left.map(|left| later(now, left));
                    let is_kept = left.is_none_or(|left| !left.is_zero())
                        && self.retained.store(now, &record.message, expires, key, &mut Vec::new());
                    is_kept.then(|| found.retained += 1)
                }),
                Shelf::State => SessionRecord::read(&body).ok().and_then(|record| {
                    let session = self.restore_session(now, unix_ms, key, record)?;
                    sessions.insert(key, session);
                    found.sessions += 1;
                    Some(())
                }),
                Shelf::Message => read_shared(&body).ok().map(|message| {
                    messages.insert(key, Arc::new(message));
                }),
                Shelf::Delivery => DeliveryRecord::read(&body).ok().and_then(|record| {
                    let session = sessions.get(&record.session)?;
                    waiting.entry(*session).or_default().push((record, key));
                    Some(())
                }),
            };
            if is_whole.is_none() {
                found.unreadable += 1;
                self.journal.delete(shelf, key);
            }
        }
        for (session, deliveries) in waiting {
            found.messages +=
                self.restore_deliveries(now, unix_ms, session, deliveries, &messages, &mut found);
        }
        for number in
            messages.keys().filter(|number| !self.journal.is_held(**number)).copied().collect::<Vec<_>>()
        {
            self.journal.delete(Shelf::Message, number);
        }
        found
    }

    fn restore_will(&mut self, now: Instant, number: u64, record: WillRecord) -> Option<()> {
        let WillRecord { client_id, user, will } = record;
        let principal = Principal { user: user.map(Arc::from), client_id: client_id.into() };
        if self.missed_by_client.contains_key(&principal.client_id) {
            return None;
        }
        let due = later(now, will.delay.max(self.limits.will_grace));
        self.deadlines.insert((due, Timer::Missed(number)));
        self.missed_by_client.insert(principal.client_id.clone(), number);
        self.missed.insert(number, Missed { principal, will, due });
        Some(())
    }

    /// The client is there again: what was to be said of it is not.
    pub(super) fn forget_missed(&mut self, client_id: &str) {
        if let Some(number) = self.missed_by_client.remove(client_id) {
            if let Some(missed) = self.missed.remove(&number) {
                self.deadlines.remove(&(missed.due, Timer::Missed(number)));
            }
            self.journal.delete(Shelf::State, WILLS + number);
        }
    }

    pub(super) fn publish_missed(&mut self, now: Instant, number: u64) {
        let Some(Missed { principal, will, .. }) = self.missed.remove(&number) else { return };
        self.missed_by_client.remove(&principal.client_id);
        self.journal.delete(Shelf::State, WILLS + number);
        // The rules may have changed since.
        if self.may_publish(&principal, &will.message.topic, will.message.retain) {
            self.send_will(now, None, &principal.client_id, will);
        }
    }

    /// Writes down the will of a client that is connected now, if it is no larger than [`WILL_BYTES`].
    pub(super) fn keep_will(&mut self, key: Key) {
        self.forget_will(key);
        let Some(session) = self.sessions.get_mut(key).filter(|_| self.journal.is_on()) else { return };
        let Some(mut will) = session.will.clone() else { return };
        if will.message.payload.len() > WILL_BYTES {
            return;
        }
        // The end of the session publishes it if that comes first [MQTT-3.1.3-9].
        will.delay = will.delay.min(session.expiry.unwrap_or(self.limits.session_expiry));
        session.will_record = self.journal.number(Shelf::State);
        let user = session.principal.user.as_deref().map(str::to_owned);
        let record = WillRecord { client_id: session.principal.client_id.to_string(), user, will };
        self.journal.add(Shelf::State, WILLS + session.will_record, record.write());
    }

    /// Deletes its record: the will is published, or will not be.
    pub(super) fn forget_will(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key).filter(|session| session.will_record > 0) else {
            return;
        };
        let number = std::mem::take(&mut session.will_record);
        self.journal.delete(Shelf::State, WILLS + number);
    }

    fn restore_session(
        &mut self,
        now: Instant,
        unix_ms: u64,
        number: u64,
        record: SessionRecord,
    ) -> Option<Key> {
        let client_id: Arc<str> = record.client_id.into();
        if self.by_client.contains_key(&client_id) {
            return None;
        }
        let user = record.user.map(Arc::from);
        let mut session = Session::new(Principal { user, client_id: client_id.clone() });
        session.record = number;
        session.expiry = record.expiry;
        // While its client was connected, its end had not begun to come nearer.
        let outlives = record.expiry.unwrap_or(self.limits.session_expiry);
        let left = record.ends.map_or(outlives, |ends| ends.left_at(unix_ms)).min(self.limits.session_expiry);
        let ends = later(now, left);
        session.expires = Some(ends);
        session.restored = Some((record.sent_to, record.ends.is_none()));
        let subscriptions = record.subscriptions;
        let key = self.sessions.insert(session);
        self.deadlines.insert((ends, Timer::Expiry(key)));
        self.by_client.insert(client_id, key);
        for (filter, options) in subscriptions {
            self.router.subscribe(&filter, Subscriber::Session(key), options);
            if let Some(session) = self.sessions.get_mut(key) {
                session.subscriptions.insert(filter, options);
            }
        }
        Some(key)
    }

    /// How many of them wait.
    fn restore_deliveries(
        &mut self,
        now: Instant,
        unix_ms: u64,
        key: Key,
        mut deliveries: Vec<(DeliveryRecord, u64)>,
        messages: &HashMap<u64, Arc<Message>>,
        found: &mut Restored,
    ) -> usize {
        let Some(session) = self.sessions.get_mut(key) else { return 0 };
        let (sent_to, was_connected) = session.restored.take().unwrap_or_default();
        deliveries.sort_by_key(|(record, _)| record.serial);
        let mut count = 0;
        for (record, number) in deliveries {
            session.sent.reserve(record.serial);
            let serial = record.serial;
            let Stage::Waiting { qos, retain, subscription_ids, expires, shared, content } = record.stage
            else {
                session.sent.restore_released(serial, Records { delivery: number, message: None });
                continue;
            };
            let (message, shared_number) = match content {
                Content::Here(message) => (Some(message), None),
                Content::Shared(number) => (messages.get(&number).cloned(), Some(number)),
            };
            let Some(message) = message else {
                found.unreadable += 1;
                self.journal.delete(Shelf::Delivery, number);
                continue;
            };
            if let Some(shared) = shared_number {
                self.journal.hold(shared);
            }
            // Nobody knows how far the window had got.
            let is_again = serial < sent_to || (was_connected && count < usize::from(self.limits.window));
            let delivery = Delivery {
                message,
                qos,
                retain,
                subscription_ids,
                expires: expires.map(|expires| later(now, expires.left_at(unix_ms))),
                shared,
                serial,
                records: Records { delivery: number, message: shared_number },
                is_again,
                after: 0,
            };
            self.queued_bytes += delivery.weight();
            session.queue.push(delivery);
            count += 1;
        }
        count
    }

    /// The time since 1970 in milliseconds, 0 where it is not known; to be told again when the clock was set.
    pub fn set_clock(&mut self, now: Instant, unix_ms: u64) {
        self.journal.set_clock(now, unix_ms);
    }

    /// Whether there are changes to be stored. None while others are under way.
    pub fn waiting_changes(&self) -> Option<Waiting> {
        self.journal.waiting()
    }

    /// All changes that wait, to be stored together, all or none; then [`Broker::settle_changes`]. There may be none in
    /// it: what they were about is over.
    pub fn take_changes(&mut self) -> Option<Vec<Change>> {
        self.journal.take().map(|(_, changes)| changes)
    }

    /// What was taken is safe, or could not be stored. Then whoever waits for it is told so, or sent away where the
    /// protocol has no words for it, and the changes are taken again with the next.
    pub fn settle_changes(&mut self, now: Instant, stored: Result<(), ReasonCode>) {
        self.journal.settle(stored.is_ok());
        if stored.is_err() {
            self.counters.failed_changes += 1;
        }
        let taken = self.journal.taken();
        let count = self.waiting_for_round.iter().take_while(|(after, _)| *after <= taken).count();
        let waiting: Vec<(Round, Key)> = self.waiting_for_round.drain(..count).collect();
        for (_, key) in waiting {
            match stored {
                Ok(()) => self.settle_connection(now, key),
                Err(reason) => self.refuse_waiting(now, key, reason, taken),
            }
        }
    }

    fn settle_connection(&mut self, now: Instant, key: Key) {
        let settled = self.journal.settled();
        let Some(connection) = self.connections.get_mut(key) else { return };
        if let Phase::Claiming(claim) = &connection.phase {
            if claim.after <= settled {
                self.finish_claim(now, key);
            }
            return;
        }
        if !connection.settle(settled) {
            self.close(now, key, true);
            return;
        }
        let session = connection.session();
        self.announce(key);
        if let Some(session) = session {
            self.pump(now, session);
        }
        self.resume(now, key, crate::connection::Stall::Owed);
    }

    fn refuse_waiting(&mut self, now: Instant, key: Key, reason: ReasonCode, taken: Round) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if matches!(connection.phase, Phase::Claiming(_)) {
            self.refuse_claim(now, key);
            return;
        }
        if connection.deferred.iter().any(|(after, _)| *after <= taken) {
            // A subscription, or the end of a QoS 2 message, that nobody will remember.
            self.say_goodbye(key, reason);
            self.close(now, key, true);
            return;
        }
        for owed in connection.owed.iter_mut().filter(|owed| owed.after > 0 && owed.after <= taken) {
            // A QoS 2 message is with its subscribers already: refused, it would come a second time. It waits on.
            if owed.kind == kind::PUBACK {
                owed.after = 0;
                owed.reason = owed.reason.filter(|reason| reason.is_error()).or(Some(reason));
            }
        }
        let next = self.journal.promise_all();
        self.wait_for(key, next);
        self.settle_connection(now, key);
    }

    /// `key` has something that waits for these changes.
    pub(super) fn wait_for(&mut self, key: Key, after: Round) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if after > self.journal.settled() && connection.waits_for < after {
            connection.waits_for = after;
            self.waiting_for_round.push_back((after, key));
        }
    }

    /// Sends a packet once `after` is safe.
    pub(super) fn defer(&mut self, key: Key, after: Round, packet: &[u8]) {
        let settled = self.journal.settled();
        if let Some(connection) = self.connections.get_mut(key) {
            connection.defer(packet, after, settled);
            self.wait_for(key, after);
            self.announce(key);
        }
    }

    /// Sends PUBREL or PUBCOMP once `after` is safe.
    pub(super) fn defer_ack(&mut self, key: Key, after: Round, kind: u8, packet_id: u16, reason: ReasonCode) {
        let version = self.connections.get(key).map_or(Version::V311, |connection| connection.version);
        let mut packet = Vec::with_capacity(5);
        write_ack(&mut packet, version, kind, packet_id, reason);
        self.defer(key, after, &packet);
    }

    /// Writes down how a session stands, if it is kept.
    pub(super) fn write_session(&mut self, now: Instant, key: Key) {
        let Some(session) = self.sessions.get(key).filter(|session| session.record > 0) else { return };
        let ends = session.expires.map(|ends| self.journal.due(now, ends));
        let record = SessionRecord {
            client_id: session.principal.client_id.to_string(),
            user: session.principal.user.as_deref().map(str::to_owned),
            expiry: session.expiry,
            ends,
            sent_to: session.sent.sent_to().max(session.queue.sent_to()),
            subscriptions: session
                .subscriptions
                .iter()
                .map(|(filter, options)| (filter.clone(), *options))
                .collect(),
        };
        self.journal.write(Shelf::State, session.record, record.write());
    }

    /// Begins or ends keeping a session, as its expiry asks.
    pub(super) fn keep_session(&mut self, now: Instant, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let is_kept = self.journal.is_on() && session.expiry.is_none_or(|expiry| !expiry.is_zero());
        if !is_kept {
            self.forget_records(key);
        } else if session.record == 0 {
            session.record = self.journal.number(Shelf::State);
            // Written for the first time: gone without a trace if it ends before that.
            self.journal.add(Shelf::State, session.record, Vec::new().into());
        }
        self.write_session(now, key);
    }

    /// Deletes all records of a session.
    pub(super) fn forget_records(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key).filter(|session| session.record > 0) else { return };
        let number = std::mem::take(&mut session.record);
        self.journal.delete(Shelf::State, number);
        for packet_id in session.incoming.keys() {
            self.journal.delete(Shelf::State, incoming_key(number, *packet_id));
        }
        for records in session.sent.records().chain(session.queue.records()) {
            self.journal.release(std::mem::take(records));
        }
    }

    /// Remembers a QoS 2 message until it is released.
    pub(super) fn note_incoming(&mut self, key: Key, packet_id: u16, incoming: Incoming) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.incoming.insert(packet_id, incoming);
        if session.record > 0 {
            let place = incoming_key(session.record, packet_id);
            self.journal.add(Shelf::State, place, vec![FORMAT].into());
        }
    }

    /// Whether there was something to forget.
    pub(super) fn forget_incoming(&mut self, key: Key, packet_id: u16) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return false };
        let is_known = session.incoming.remove(&packet_id).is_some();
        if is_known && session.record > 0 {
            self.journal.delete(Shelf::State, incoming_key(session.record, packet_id));
        }
        is_known
    }

    /// Keeps a retained message, or deletes the one on its topic.
    pub(super) fn retain(
        &mut self,
        now: Instant,
        origin: &Origin,
        message: &Arc<Message>,
        expires: Option<Instant>,
    ) {
        let before = self.retained.record(&message.topic);
        // Our own are published again after a restart.
        let is_kept = self.journal.is_on() && *origin != Origin::Gateway && !message.payload.is_empty();
        let record = match before {
            _ if !is_kept => 0,
            0 => RETAINED + self.journal.number(Shelf::State),
            before => before,
        };
        let mut gone = Vec::new();
        let is_stored = self.retained.store(now, message, expires, record, &mut gone);
        if !is_stored {
            self.counters.dropped_retained += 1;
        }
        if is_kept && is_stored {
            let expires = expires.map(|expires| self.journal.due(now, expires));
            let body = RetainedRecord { message: message.clone(), expires }.write();
            if before == 0 {
                self.journal.add(Shelf::State, record, body);
            } else {
                self.journal.write(Shelf::State, record, body);
            }
        } else if before > 0 {
            gone.push(before);
        }
        for record in gone {
            self.journal.delete(Shelf::State, record);
        }
    }
}

/// Writes a delivery down under a number of its own, if its session is kept. `shared` is where the number of its message
/// is, when several sessions keep that.
pub(super) fn keep(
    journal: &mut Journal,
    now: Instant,
    session: u64,
    delivery: &mut Delivery,
    shared: Option<&mut Option<u64>>,
) {
    if session == 0 {
        return;
    }
    let content = match shared {
        None => Content::Here(delivery.message.clone()),
        Some(number) => {
            let number = *number.get_or_insert_with(|| {
                let number = journal.number(Shelf::Message);
                journal.add(Shelf::Message, number, write_shared(&delivery.message));
                number
            });
            journal.hold(number);
            delivery.records.message = Some(number);
            Content::Shared(number)
        }
    };
    delivery.records.delivery = journal.number(Shelf::Delivery);
    let stage = Stage::Waiting {
        qos: delivery.qos,
        retain: delivery.retain,
        subscription_ids: delivery.subscription_ids.clone(),
        expires: delivery.expires.map(|expires| journal.due(now, expires)),
        shared: delivery.shared.clone(),
        content,
    };
    let record = DeliveryRecord { session, serial: delivery.serial, stage };
    journal.add(Shelf::Delivery, delivery.records.delivery, record.write());
}

/// Writes down that the receiver has the message.
pub(super) fn keep_released(journal: &mut Journal, session: u64, serial: u64, records: &mut Records) {
    if records.delivery == 0 {
        return;
    }
    let record = DeliveryRecord { session, serial, stage: Stage::Released };
    journal.write(Shelf::Delivery, records.delivery, record.write());
    journal.release(Records { delivery: 0, message: records.message.take() });
}

fn incoming_key(session: u64, packet_id: u16) -> u64 {
    INCOMING + (session << 16) + u64::from(packet_id)
}

/// Every client may have a will: larger ones do not survive a restart.
const WILL_BYTES: usize = 64 << 10;
