//! Packets from a client: what each of them does (MQTT 5.0 §3).

use std::sync::Arc;
use std::time::Instant;

use super::keep::keep_released;
use super::{Broker, Event, IngressOrigin, IngressToken, Origin, Timer};
use crate::arena::Key;
use crate::connection::{Owed, Phase, Stall};
use crate::session::Incoming;
use crate::wire::{Ack, Frame, PublishView, Version, kind};
use crate::{Qos, ReasonCode, Topic};

/// Whether a packet was taken, or has to be offered again later.
pub(super) enum Flow {
    Taken,
    Stalled,
}

impl Broker {
    pub(super) fn handle_packet(
        &mut self,
        now: Instant,
        key: Key,
        frame: Frame<'_>,
    ) -> Result<Flow, ReasonCode> {
        let connection = self.connections.get_mut(key).expect("the caller looked");
        let Phase::Connected { session } = connection.phase else {
            // The first packet is CONNECT, or there is nothing to talk about [MQTT-3.1.0-1].
            if frame.kind == kind::CONNECT {
                self.handle_connect(now, key, frame.body);
                return Ok(Flow::Taken);
            }
            return Err(ReasonCode::PROTOCOL_ERROR);
        };
        let version = connection.version;
        match frame.kind {
            kind::PUBLISH => return self.handle_publish(now, key, session, &frame),
            kind::PUBACK => self.handle_puback(now, session, Ack::read(version, frame.body)?),
            kind::PUBREC => self.handle_pubrec(now, key, session, Ack::read(version, frame.body)?),
            kind::PUBREL => self.handle_pubrel(key, session, Ack::read(version, frame.body)?),
            kind::PUBCOMP => self.handle_pubcomp(now, session, Ack::read(version, frame.body)?),
            kind::SUBSCRIBE => self.handle_subscribe(now, key, session, frame.body)?,
            kind::UNSUBSCRIBE => self.handle_unsubscribe(now, key, session, frame.body)?,
            kind::PINGREQ => {
                connection.output.extend_from_slice(&[kind::PINGRESP << 4, 0]);
                self.announce(key);
            }
            kind::DISCONNECT => self.handle_disconnect(now, key, frame.body)?,
            // A second CONNECT [MQTT-3.1.0-2], AUTH without a method, and what only a server sends.
            _ => return Err(ReasonCode::PROTOCOL_ERROR),
        }
        Ok(Flow::Taken)
    }

    fn handle_publish(
        &mut self,
        now: Instant,
        key: Key,
        session_key: Key,
        frame: &Frame<'_>,
    ) -> Result<Flow, ReasonCode> {
        let connection = self.connections.get_mut(key).expect("the caller looked");
        let session = self.sessions.get_mut(session_key).expect("a connection in this phase has a session");
        let version = connection.version;
        let view = PublishView::read(version, frame.flags, frame.body)?;
        if !view.subscription_ids.is_empty() {
            return Err(ReasonCode::PROTOCOL_ERROR);
        }
        let (qos, packet_id) = (view.qos, view.packet_id);

        if qos == Qos::ExactlyOnce
            && let Some(state) = session.incoming.get(&packet_id)
        {
            // Sent again: taken once already, acknowledged as far as it is known.
            let Incoming { token, after } = *state;
            let reason = (token == 0).then_some(ReasonCode::SUCCESS);
            let owed = Owed { kind: kind::PUBREC, packet_id, token, after, reason };
            connection.owe(owed, self.journal.settled());
            self.wait_for(key, after);
            self.announce(key);
            return Ok(Flow::Taken);
        }
        if qos != Qos::AtMostOnce
            && connection.owed_pubacks + session.incoming.len() >= usize::from(self.limits.receive_maximum)
        {
            if version == Version::V5 {
                return Err(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
            }
            // An older client knows no such bound: it is read again when acknowledgements have left. Only if it must
            // be read for that, because QoS 2 messages wait for their PUBREL, is it closed.
            if connection.owed.is_empty() {
                return Err(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
            }
            connection.stall = Some(Stall::Owed);
            return Ok(Flow::Stalled);
        }

        let topic = match view.topic_alias {
            None => match &connection.last_topic {
                Some(last) if last.as_str() == view.topic => last.clone(),
                _ => {
                    let topic = Topic::new(view.topic).map_err(|_| ReasonCode::TOPIC_INVALID)?;
                    connection.last_topic = Some(topic.clone());
                    topic
                }
            },
            Some(alias) if alias == 0 || alias > self.limits.topic_aliases => {
                return Err(ReasonCode::TOPIC_ALIAS_INVALID);
            }
            Some(alias) if view.topic.is_empty() => {
                connection.aliases.get(&alias).cloned().ok_or(ReasonCode::PROTOCOL_ERROR)?
            }
            Some(alias) => {
                let topic = Topic::new(view.topic).map_err(|_| ReasonCode::TOPIC_INVALID)?;
                connection.aliases.insert(alias, topic.clone());
                topic
            }
        };

        let is_forwarded = self.forwarded.has_match(&topic);
        let has_no_room = qos != Qos::AtMostOnce
            && ((is_forwarded && self.ingress.len() >= self.limits.ingress)
                || (self.waiting_for_locals >= self.limits.local && self.answering.has_match(&topic)));
        if has_no_room {
            self.counters.stalls += 1;
            self.connections.get_mut(key).expect("looked up above").stall = Some(Stall::Ingress);
            self.waiting_for_ingress.push_back(key);
            return Ok(Flow::Stalled);
        }

        let connection = self.connections.get_mut(key).expect("looked up above");
        if self.limits.publish_rate > 0
            && let Err(wait) = connection.allowance.take(now, self.limits.publish_rate)
        {
            self.counters.throttled += 1;
            connection.stall = Some(Stall::Rate);
            self.deadlines.insert((now + wait, Timer::Rate(key)));
            return Ok(Flow::Stalled);
        }

        self.counters.received += 1;
        self.journal.begin();
        let session = self.sessions.get(session_key).expect("looked up above");
        let client_id = session.principal.client_id.clone();
        let refused = if is_too_deep(topic.as_str(), self.limits.topic_levels) {
            self.counters.refused_topics += 1;
            Some(ReasonCode::TOPIC_INVALID)
        } else if !self.may_publish(&session.principal, &topic, view.retain) {
            self.counters.denied_publishes += 1;
            Some(ReasonCode::NOT_AUTHORIZED)
        } else {
            None
        };
        if let Some(reason) = refused {
            // Before 5.0 there is no way to say so but to close; the message is taken and dropped [MQTT-3.3.5-2].
            let reason = if version == Version::V5 { reason } else { ReasonCode::SUCCESS };
            self.owe(key, session_key, qos, packet_id, 0, Some(reason));
            return Ok(Flow::Taken);
        }

        let origin = Origin::Client(client_id);
        let message = Arc::new(view.into_message(topic));
        let mut token = 0;
        let given = (qos != Qos::AtMostOnce).then_some(IngressToken(self.next_token));
        if is_forwarded {
            let (message, origin) = (message.clone(), origin.clone());
            self.events.push_back(Event::Ingress { token: given, message, origin });
        }
        let locals = self.route(now, Some(session_key), &origin, &message, given);
        let holders = locals + usize::from(is_forwarded && given.is_some());
        if holders > 0 {
            token = self.next_token;
            self.next_token += 1;
            let is_local = locals > 0;
            self.waiting_for_locals += usize::from(is_local);
            let origin =
                IngressOrigin { session: session_key, packet_id, qos, holders, is_local, failed: None };
            self.ingress.insert(token, origin);
        }
        let reason = (token == 0).then_some(ReasonCode::SUCCESS);
        self.owe(key, session_key, qos, packet_id, token, reason);
        Ok(Flow::Taken)
    }

    /// Owes the client PUBACK or PUBREC.
    fn owe(
        &mut self,
        key: Key,
        session: Key,
        qos: Qos,
        packet_id: u16,
        token: u64,
        reason: Option<ReasonCode>,
    ) {
        if qos == Qos::AtMostOnce {
            return;
        }
        let kind = if qos == Qos::AtLeastOnce { kind::PUBACK } else { kind::PUBREC };
        // A refused QoS 2 message ends with its PUBREC; any other is remembered until PUBREL.
        let is_remembered = qos == Qos::ExactlyOnce && !reason.is_some_and(ReasonCode::is_error);
        if is_remembered {
            self.note_incoming(session, packet_id, Incoming { token, after: 0 });
        }
        let after = self.journal.promise();
        if is_remembered
            && let Some(incoming) =
                self.sessions.get_mut(session).and_then(|session| session.incoming.get_mut(&packet_id))
        {
            incoming.after = after;
        }
        if let Some(connection) = self.connections.get_mut(key) {
            connection.owe(Owed { kind, packet_id, token, after, reason }, self.journal.settled());
            self.wait_for(key, after);
            self.announce(key);
        }
    }

    /// An ingress message is stored, or is not.
    pub(super) fn settle_ingress(
        &mut self,
        now: Instant,
        token: u64,
        origin: &IngressOrigin,
        stored: Result<(), ReasonCode>,
    ) {
        if stored.is_err() {
            self.counters.failed_ingress += 1;
        }
        let Some(session) = self.sessions.get_mut(origin.session) else { return };
        if origin.qos == Qos::ExactlyOnce
            && let Some(incoming) = session.incoming.get_mut(&origin.packet_id)
            && incoming.token == token
        {
            if stored.is_ok() {
                incoming.token = 0;
            } else {
                // The client will send it anew, and then it is a new message.
                self.forget_incoming(origin.session, origin.packet_id);
            }
        }
        let Some(session) = self.sessions.get(origin.session) else { return };
        let Some(key) = session.connection else { return };
        let Some(connection) = self.connections.get_mut(key) else { return };
        let reason = stored.err().unwrap_or(ReasonCode::SUCCESS);
        for owed in connection.owed.iter_mut().filter(|owed| owed.token == token) {
            owed.reason = Some(reason);
        }
        if !connection.settle(self.journal.settled()) {
            // Before 5.0 "not stored" has no words: without an acknowledgement the client sends it again.
            self.close(now, key, true);
            return;
        }
        self.announce(key);
        self.resume(now, key, Stall::Owed);
    }

    fn handle_puback(&mut self, now: Instant, session: Key, ack: Ack) {
        let held = self.sessions.get_mut(session).expect("a connected client has a session");
        // An id that is not in flight is passed over: after a reconnect with a new session a client may well
        // acknowledge what the old one sent.
        if let Some(records) = held.sent.acknowledge(ack.packet_id) {
            self.journal.release(records);
            self.pump(now, session);
        }
    }

    fn handle_pubrec(&mut self, now: Instant, key: Key, session: Key, ack: Ack) {
        let held = self.sessions.get_mut(session).expect("a connected client has a session");
        if ack.reason.is_error() {
            if let Some(records) = held.sent.reject(ack.packet_id) {
                self.journal.release(records);
                self.pump(now, session);
            }
            return;
        }
        let record = held.record;
        let (after, reason) = match held.sent.receive(ack.packet_id) {
            None => (0, ReasonCode::PACKET_ID_NOT_FOUND),
            Some((entry, true)) => {
                self.journal.begin();
                keep_released(&mut self.journal, record, entry.serial, &mut entry.records);
                (self.journal.promise(), ReasonCode::SUCCESS)
            }
            Some((_, false)) => (self.journal.promise_all(), ReasonCode::SUCCESS),
        };
        self.defer_ack(key, after, kind::PUBREL, ack.packet_id, reason);
    }

    fn handle_pubrel(&mut self, key: Key, session: Key, ack: Ack) {
        self.journal.begin();
        // Answered even if the id is unknown: the client may have lost our first answer [MQTT-4.3.3-11].
        let is_known = self.forget_incoming(session, ack.packet_id);
        let reason = if is_known { ReasonCode::SUCCESS } else { ReasonCode::PACKET_ID_NOT_FOUND };
        // The client may use the id for another message as soon as it has this. One that is not known may have been
        // forgotten a moment ago.
        let after = if is_known { self.journal.promise() } else { self.journal.promise_all() };
        self.defer_ack(key, after, kind::PUBCOMP, ack.packet_id, reason);
    }

    fn handle_pubcomp(&mut self, now: Instant, session: Key, ack: Ack) {
        let held = self.sessions.get_mut(session).expect("a connected client has a session");
        if let Some(records) = held.sent.complete(ack.packet_id) {
            self.journal.release(records);
            self.pump(now, session);
        }
    }
}

/// Whether a topic or filter has more than so many levels.
pub(super) fn is_too_deep(name: &str, levels: usize) -> bool {
    // One byte a level at the least.
    name.len() > levels && name.bytes().filter(|byte| *byte == b'/').count() >= levels
}
