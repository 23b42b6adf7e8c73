//! From a message to the connections that get it: matching, fan-out, window and queue (MQTT 5.0 §3.3.4, §4.3 to §4.6).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use super::keep::keep;
use super::{Broker, Event, IngressToken, LocalId, Origin, Subscriber, Taking, announce};
use crate::arena::Key;
use crate::journal::{Journal, later};
use crate::router::Match;
use crate::session::{Delivery, Mark, Records, Session};
use crate::wire::{Encoded, Header, SubscribeOptions, Version, kind, write_ack};
use crate::{Filter, Message, Qos};

/// A session that gets a message, and what its subscriptions together ask for.
pub(super) struct Found {
    session: Key,
    qos: Qos,
    retain_as_published: bool,
    subscription_ids: Vec<u32>,
    shared: Option<Filter>,
}

/// A message on its way to many: each form of the packet is made when the first needs it.
struct FanOut<'a> {
    message: &'a Arc<Message>,
    expires: Option<Instant>,
    expiry_secs: Option<u32>,
    forms: [Option<Encoded>; 4],
    now: Instant,
    /// Whether more than one session keeps it, and the number under which it is kept once the first does.
    is_shared: bool,
    number: Option<u64>,
}

impl Broker {
    /// Keeps a message if it is retained and gives it to everyone who subscribed. `from` is the session it came from;
    /// readers in the process get `token`, where they answer for what they take, and are counted.
    pub(super) fn route(
        &mut self,
        now: Instant,
        from: Option<Key>,
        origin: &Origin,
        message: &Arc<Message>,
        token: Option<IngressToken>,
    ) -> usize {
        let expires = message.expiry().map(|expiry| later(now, expiry));
        if message.retain {
            self.retain(now, origin, message, expires);
        }
        let mut found = std::mem::take(&mut self.found);
        let mut locals: Vec<LocalId> = Vec::new();
        self.routing += 1;
        let (routing, sessions) = (self.routing, &mut self.sessions);
        self.router.matches(&message.topic, &mut |hit| match hit {
            Match::One(Subscriber::Local(id), _) => locals.push(*id),
            Match::One(Subscriber::Session(key), options) => {
                if options.no_local && from == Some(*key) {
                    return;
                }
                let Some(session) = sessions.get_mut(*key) else { return };
                // One copy per client, at the highest QoS its subscriptions ask for, with the ids of all of them
                // [MQTT-3.3.4-2, -3].
                if session.mark.routing == routing {
                    found[session.mark.place].merge(*options);
                } else {
                    session.mark = Mark { routing, place: found.len() };
                    found.push(Found::new(*key, *options, None));
                }
            }
            Match::Group(group) => {
                let is_ready = |member: &Subscriber| is_ready(sessions, *member);
                match group.choose(is_ready) {
                    Some((Subscriber::Session(key), options)) => {
                        found.push(Found::new(*key, *options, Some(group.filter.clone())));
                    }
                    Some((Subscriber::Local(id), _)) => locals.push(*id),
                    None => {}
                }
            }
        });
        let mut fan = FanOut::new(message, now, expires);
        if self.journal.is_on() && message.qos > Qos::AtMostOnce {
            let is_kept = |hit: &&Found| {
                hit.qos > Qos::AtMostOnce
                    && self.sessions.get(hit.session).is_some_and(|session| session.record > 0)
            };
            fan.is_shared = found.iter().filter(is_kept).take(2).count() > 1;
        }
        for hit in found.drain(..) {
            self.offer(hit, &mut fan);
        }
        self.found = found;
        let mut holders = 0;
        for id in locals {
            let is_answered = self.locals.get(&id).is_some_and(|(_, taking)| *taking == Taking::Answered);
            let token = token.filter(|_| is_answered);
            holders += usize::from(token.is_some());
            self.events.push_back(Event::Local {
                id,
                token,
                message: message.clone(),
                origin: origin.clone(),
            });
        }
        holders
    }

    /// Gives a message whose session has ended to another member of its shared subscription.
    pub(super) fn adopt(&mut self, now: Instant, orphan: Delivery) {
        let Some(filter) = &orphan.shared else { return };
        let sessions = &self.sessions;
        let Some(group) = self.router.group(filter) else { return };
        let Some((Subscriber::Session(key), options)) = group.choose(|member| is_ready(sessions, *member))
        else {
            return;
        };
        let hit = Found::new(*key, *options, Some(filter.clone()));
        let message = orphan.message;
        self.offer(hit, &mut FanOut::new(&message, now, orphan.expires));
    }

    fn offer(&mut self, hit: Found, fan: &mut FanOut<'_>) {
        let Some(session) = self.sessions.get_mut(hit.session) else { return };
        if !self.access.may_receive(&session.principal, &fan.message.topic) {
            return;
        }
        let qos = hit.qos.min(fan.message.qos);
        let retain = hit.retain_as_published && fan.message.retain;
        let connection = session.connection.and_then(|key| Some((key, self.connections.get_mut(key)?)));

        if qos == Qos::AtMostOnce {
            let Some((key, connection)) = connection else {
                self.counters.dropped_offline += 1;
                return;
            };
            if connection.output.len() >= self.limits.output_bytes {
                self.counters.dropped_slow += 1;
                return;
            }
            let message = fan.message;
            let form = fan.form(connection.version, false, &hit.subscription_ids);
            if form.len() > connection.maximum_packet {
                self.counters.dropped_too_large += 1;
                return;
            }
            self.counters.sent += 1;
            connection.write_publish(&message.topic, &form, Header { dup: false, qos, retain, packet_id: 0 });
            announce(&mut self.events, key, connection);
            return;
        }

        let mut delivery = Delivery {
            message: fan.message.clone(),
            qos,
            retain,
            subscription_ids: hit.subscription_ids,
            expires: fan.expires,
            shared: hit.shared,
            serial: 0,
            records: Records::default(),
            is_again: false,
            after: 0,
        };
        // The receiver remembers the packet id from now until PUBREL: it must not be given to another message, nor this
        // message come under another id, because the broker has forgotten both.
        let is_bound = session.record > 0 && qos == Qos::ExactlyOnce;
        if let Some((key, connection)) = connection
            && !is_bound
            && session.queue.is_empty()
            && session.retained.is_empty()
            && session.sent.len() < usize::from(connection.receive_maximum)
            && connection.output.len() < self.limits.output_bytes
        {
            let version = connection.version;
            let mut is_too_large = false;
            delivery.serial = session.sent.next_serial();
            if session.record > 0 {
                is_too_large =
                    fan.form(version, true, &delivery.subscription_ids).len() > connection.maximum_packet;
                if !is_too_large {
                    fan.keep(&mut self.journal, session, &mut delivery);
                    self.journal.hope();
                }
            }
            let message = fan.message;
            let form = fan.form(version, true, &delivery.subscription_ids);
            if is_too_large || form.len() > connection.maximum_packet {
                self.counters.dropped_too_large += 1;
                return;
            }
            self.counters.sent += 1;
            let packet_id = session.sent.begin(delivery);
            connection.write_publish(&message.topic, &form, Header { dup: false, qos, retain, packet_id });
            announce(&mut self.events, key, connection);
            return;
        }

        let weight = delivery.weight();
        if session.queue.len() >= self.limits.queue_messages
            || session.queue.bytes() + weight > self.limits.queue_bytes
            || self.queued_bytes + weight > self.limits.queue_bytes_total
        {
            self.counters.dropped_queue_full += 1;
            return;
        }
        self.queued_bytes += weight;
        delivery.serial = session.sent.next_serial();
        fan.keep(&mut self.journal, session, &mut delivery);
        if is_bound {
            delivery.after = self.journal.promise_all();
        }
        let (after, connection) = (delivery.after, session.connection);
        session.queue.push(delivery);
        if let Some(key) = connection {
            self.wait_for(key, after);
        }
    }

    /// Sends what waits, as far as the window and the output allow: retained messages first, then the queue.
    pub(super) fn pump(&mut self, now: Instant, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.retained.is_empty() && session.queue.is_empty() {
            return;
        }
        let Some(connection_key) = session.connection else { return };
        let Some(connection) = self.connections.get_mut(connection_key) else { return };
        if !session.retained.is_empty() && !connection.deferred.is_empty() {
            // Behind the SUBACK, which waits itself.
            return;
        }
        let window = usize::from(connection.receive_maximum);
        let settled = self.journal.settled();
        let mut after = 0;
        while connection.output.len() < self.limits.output_bytes {
            let is_open = session.sent.len() < window;
            let delivery = if let Some((topic, options)) = session.retained.first_key_value() {
                let kept = self.retained.get(now, topic);
                let qos = kept.map_or(Qos::AtMostOnce, |kept| kept.message.qos.min(options.qos));
                if qos != Qos::AtMostOnce && !is_open {
                    break;
                }
                let delivery = kept.map(|kept| Delivery {
                    message: kept.message.clone(),
                    qos,
                    retain: true,
                    subscription_ids: ids(*options),
                    expires: kept.expires,
                    shared: None,
                    serial: 0,
                    records: Records::default(),
                    is_again: false,
                    after: 0,
                });
                session.retained.pop_first();
                match delivery {
                    Some(mut delivery)
                        if self.access.may_receive(&session.principal, &delivery.message.topic) =>
                    {
                        if qos != Qos::AtMostOnce {
                            delivery.serial = session.sent.next_serial();
                            keep(&mut self.journal, now, session.record, &mut delivery, None);
                        }
                        if session.record > 0 && qos == Qos::ExactlyOnce {
                            // As in `offer`. What is kept now is newer than all that waits.
                            delivery.after = self.journal.promise_all();
                            self.queued_bytes += delivery.weight();
                            session.queue.push(delivery);
                            continue;
                        }
                        delivery
                    }
                    // Cleared since it was found, or not for this client.
                    _ => continue,
                }
            } else {
                if session.queue.is_empty() || !is_open {
                    break;
                }
                after = session.queue.next_after();
                if after > settled {
                    break;
                }
                let bytes = session.queue.bytes();
                let Some(delivery) = session.queue.pop() else { break };
                self.queued_bytes -= bytes - session.queue.bytes();
                delivery
            };
            let left = Left::new(now, delivery.expires);
            // One that may have been sent is sent again even if it has expired since: its id has to come free.
            if matches!(left, Left::Nothing) && !delivery.is_again {
                self.counters.dropped_expired += 1;
                self.journal.release(delivery.records);
                continue;
            }
            let expiry_secs = left.interval();
            let (qos, retain) = (delivery.qos, delivery.retain);
            let has_id = qos != Qos::AtMostOnce;
            let ids = &delivery.subscription_ids;
            let form = Encoded::new(connection.version, &delivery.message, has_id, expiry_secs, ids);
            if form.len() > connection.maximum_packet {
                self.counters.dropped_too_large += 1;
                self.journal.release(delivery.records);
                continue;
            }
            self.counters.sent += 1;
            let is_again = delivery.is_again;
            self.counters.resent += u64::from(is_again);
            let topic = delivery.message.topic.clone();
            let packet_id = if has_id { session.sent.begin(delivery) } else { 0 };
            connection.write_publish(&topic, &form, Header { dup: is_again, qos, retain, packet_id });
        }
        if !connection.output.is_empty() {
            announce(&mut self.events, connection_key, connection);
        }
        self.wait_for(connection_key, after);
    }

    /// After a reconnect: everything in flight again, in its order, then the queue [MQTT-4.4.0-1].
    pub(super) fn resend(&mut self, now: Instant, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(connection) = session.connection.and_then(|key| self.connections.get_mut(key)) else {
            return;
        };
        // The client may take fewer at once than it did: the others go again as it acknowledges [MQTT-3.3.4-7].
        for delivery in session.sent.hold_back(usize::from(connection.receive_maximum)).into_iter().rev() {
            self.queued_bytes += delivery.weight();
            session.queue.push_front(delivery);
        }
        let mut too_large = Vec::new();
        // PUBREL says that the message will not come again: only once that is safe.
        let (after, settled) = (self.journal.promise_all(), self.journal.settled());
        for entry in session.sent.iter() {
            let packet_id = entry.packet_id();
            let Some(delivery) = &entry.delivery else {
                let mut packet = Vec::new();
                let version = connection.version;
                write_ack(&mut packet, version, kind::PUBREL, packet_id, crate::ReasonCode::SUCCESS);
                connection.defer(&packet, after, settled);
                continue;
            };
            // What is in flight is sent again even if it has expired since: its id has to come free.
            let expiry_secs = Left::new(now, delivery.expires).interval();
            let ids = &delivery.subscription_ids;
            let form = Encoded::new(connection.version, &delivery.message, true, expiry_secs, ids);
            if form.len() > connection.maximum_packet {
                // The client takes less than it did: as if it had been sent and acknowledged [MQTT-3.1.2-25].
                too_large.push(packet_id);
                continue;
            }
            self.counters.sent += 1;
            self.counters.resent += 1;
            let header = Header { dup: true, qos: delivery.qos, retain: delivery.retain, packet_id };
            connection.write_publish(&delivery.message.topic, &form, header);
        }
        for packet_id in too_large {
            self.counters.dropped_too_large += 1;
            if let Some(records) = session.sent.remove(packet_id) {
                self.journal.release(records);
            }
        }
        if let Some(connection) = session.connection {
            self.wait_for(connection, after);
        }
        self.pump(now, key);
    }
}

impl Found {
    fn new(session: Key, options: SubscribeOptions, shared: Option<Filter>) -> Self {
        Self {
            session,
            qos: options.qos,
            retain_as_published: options.retain_as_published,
            subscription_ids: ids(options),
            shared,
        }
    }

    fn merge(&mut self, options: SubscribeOptions) {
        self.qos = self.qos.max(options.qos);
        self.retain_as_published |= options.retain_as_published;
        self.subscription_ids.extend(ids(options));
    }
}

impl<'a> FanOut<'a> {
    fn new(message: &'a Arc<Message>, now: Instant, expires: Option<Instant>) -> Self {
        let expiry_secs = Left::new(now, expires).interval();
        let forms = [None, None, None, None];
        Self { message, expires, expiry_secs, forms, now, is_shared: false, number: None }
    }

    /// Writes the delivery down, where its session is kept.
    fn keep(&mut self, journal: &mut Journal, session: &Session, delivery: &mut Delivery) {
        let number = self.is_shared.then_some(&mut self.number);
        keep(journal, self.now, session.record, delivery, number);
    }

    /// The packet for a subscriber of this version; subscription ids make it its own.
    fn form(&mut self, version: Version, has_id: bool, subscription_ids: &[u32]) -> Cow<'_, Encoded> {
        let (message, expiry_secs) = (self.message, self.expiry_secs);
        let is_v5 = version == Version::V5;
        if is_v5 && !subscription_ids.is_empty() {
            return Cow::Owned(Encoded::new(version, message, has_id, expiry_secs, subscription_ids));
        }
        let form = &mut self.forms[usize::from(is_v5) * 2 + usize::from(has_id)];
        Cow::Borrowed(form.get_or_insert_with(|| Encoded::new(version, message, has_id, expiry_secs, &[])))
    }
}

/// How long a message may still be delivered.
#[derive(Clone, Copy)]
enum Left {
    /// Without end.
    Unbounded,
    /// So many seconds, rounded up.
    Seconds(u32),
    /// It has expired.
    Nothing,
}

impl Left {
    fn new(now: Instant, expires: Option<Instant>) -> Self {
        let Some(expires) = expires else { return Self::Unbounded };
        let left = expires.saturating_duration_since(now);
        if left.is_zero() {
            return Self::Nothing;
        }
        let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        Self::Seconds(u32::try_from(seconds).unwrap_or(u32::MAX))
    }

    /// The message expiry interval to write.
    fn interval(self) -> Option<u32> {
        match self {
            Self::Unbounded => None,
            Self::Seconds(seconds) => Some(seconds),
            Self::Nothing => Some(0),
        }
    }
}

fn ids(options: SubscribeOptions) -> Vec<u32> {
    if options.id == 0 { Vec::new() } else { vec![options.id] }
}

/// A member of a shared subscription that can take a message now.
fn is_ready(sessions: &crate::arena::Arena<Session>, member: Subscriber) -> bool {
    match member {
        Subscriber::Local(_) => true,
        Subscriber::Session(key) => {
            sessions.get(key).is_some_and(|session| session.connection.is_some() && session.queue.is_empty())
        }
    }
}
