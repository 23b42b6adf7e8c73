//! CONNECT, the session behind it, and its end (MQTT 5.0 §3.1, §4.1).

use std::sync::Arc;
use std::time::{Duration, Instant};

use mqtt_protocol_core::mqtt::packet::{
    AssignedClientIdentifier, MaximumPacketSize, Properties, Property, ReceiveMaximum, SessionExpiryInterval,
    TopicAliasMaximum, v5_0,
};
use mqtt_protocol_core::mqtt::result_code::ConnectReasonCode;

use super::inbound::is_too_deep;
use super::{Broker, ConnectionId, Event, Origin, Subscriber, Timer};
use crate::access::{ConnectRequest, Principal, Verdict};
use crate::arena::Key;
use crate::connection::{Claim, Phase, Stall};
use crate::session::Session;
use crate::wire::{self, Connect, Version, Will, kind};
use crate::{ReasonCode, Topic};

impl Broker {
    pub(super) fn handle_connect(&mut self, now: Instant, key: Key, body: &[u8]) {
        let connect = match Connect::read(body) {
            Ok(connect) => connect,
            Err(error) => {
                self.counters.protocol_errors += 1;
                match error.version {
                    Some(version) => self.refuse(now, key, version, error.reason),
                    None => self.close(now, key, false),
                }
                return;
            }
        };
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.version = connect.version;
        if connect.wants_authentication {
            self.refuse(now, key, connect.version, ReasonCode::BAD_AUTHENTICATION_METHOD);
            return;
        }
        // Before 5.0 an empty client id is only for a clean session [MQTT-3.1.3-7 of 3.1.1], and before 3.1.1 for none.
        let may_be_empty = match connect.version {
            Version::V31 => false,
            Version::V311 => connect.clean_start,
            Version::V5 => true,
        };
        if connect.client_id.is_empty() && !may_be_empty {
            self.refuse(now, key, connect.version, ReasonCode::CLIENT_ID_INVALID);
            return;
        }
        let verdict = self.access.connect(&ConnectRequest {
            peer: &connection.peer,
            version: connect.version,
            client_id: &connect.client_id,
            user: connect.user.as_deref(),
            password: connect.password.as_deref(),
        });
        if verdict == Verdict::Later {
            connection.stall = Some(Stall::Verdict);
            self.events.push_back(Event::Authenticate {
                connection: ConnectionId(key),
                client_id: connect.client_id.clone(),
                user: connect.user.clone(),
                password: connect.password.clone(),
            });
        }
        connection.phase = Phase::Judged(Box::new(connect));
        self.admit_judged(now, key, verdict);
    }

    /// Acts on the verdict; [`Verdict::Later`] leaves the connection waiting.
    pub(super) fn admit_judged(&mut self, now: Instant, key: Key, verdict: Verdict) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if !matches!(connection.phase, Phase::Judged(_)) || verdict == Verdict::Later {
            return;
        }
        let Phase::Judged(connect) = std::mem::replace(&mut connection.phase, Phase::Opened) else { return };
        match verdict {
            Verdict::Refuse(reason) => self.refuse(now, key, connect.version, reason),
            Verdict::Accept(user) => self.admit(now, key, *connect, user),
            Verdict::Later => {}
        }
        self.resume(now, key, Stall::Verdict);
    }

    fn admit(&mut self, now: Instant, key: Key, connect: Connect, user: Option<Arc<str>>) {
        let assigned = connect.client_id.is_empty().then(|| self.invent_client_id());
        let client_id: Arc<str> = assigned.clone().unwrap_or_else(|| connect.client_id.as_str().into());
        let principal = Principal { user, client_id: client_id.clone() };
        let levels = self.limits.topic_levels;
        if connect.will.as_ref().is_some_and(|will| is_too_deep(will.message.topic.as_str(), levels)) {
            self.counters.refused_topics += 1;
            self.refuse(now, key, connect.version, ReasonCode::TOPIC_INVALID);
            return;
        }
        if let Some(will) = &connect.will
            && !self.may_publish(&principal, &will.message.topic, will.message.retain)
        {
            self.refuse(now, key, connect.version, ReasonCode::NOT_AUTHORIZED);
            return;
        }

        self.journal.begin();
        self.take_over(now, &client_id);
        let held = self.by_client.get(&client_id).copied();
        if connect.clean_start
            && let Some(session) = held
        {
            self.end_session(now, session);
        }
        let present = self.by_client.get(&client_id).copied();
        if present.is_none() && self.sessions.len() >= self.limits.sessions {
            self.refuse(now, key, connect.version, ReasonCode::QUOTA_EXCEEDED);
            return;
        }
        let session_key = present.unwrap_or_else(|| {
            let session = self.sessions.insert(Session::new(principal.clone()));
            self.by_client.insert(client_id, session);
            session
        });

        // The session is ours again: neither its will nor its end is due any longer.
        self.cancel_timers(session_key);
        let session = self.sessions.get_mut(session_key).expect("just found or made");
        session.principal = principal;
        session.claimed = Some(key);
        session.expiry = Some(
            connect
                .session_expiry
                .map_or(self.limits.session_expiry, |asked| asked.min(self.limits.session_expiry)),
        );
        self.keep_session(now, session_key);
        let after = self.journal.promise();
        let claim = Claim { connect, session: session_key, is_present: present.is_some(), assigned, after };
        let connection = self.connections.get_mut(key).expect("the caller looked");
        connection.phase = Phase::Claiming(Box::new(claim));
        if after <= self.journal.settled() {
            self.finish_claim(now, key);
        } else {
            connection.stall = Some(Stall::Record);
            self.wait_for(key, after);
        }
    }

    /// The session's record could not be stored.
    pub(super) fn refuse_claim(&mut self, now: Instant, key: Key) {
        let version = self.connections.get(key).map_or(Version::V311, |connection| connection.version);
        self.refuse(now, key, version, ReasonCode::SERVER_UNAVAILABLE);
    }

    /// The session's record is safe: the client is connected.
    pub(super) fn finish_claim(&mut self, now: Instant, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Phase::Claiming(claim) = std::mem::replace(&mut connection.phase, Phase::Opened) else { return };
        let Claim { connect, session: session_key, is_present, assigned, after: _ } = *claim;
        let Some(session) = self.sessions.get_mut(session_key) else { return };
        session.claimed = None;
        session.connection = Some(key);
        session.will = connect.will;
        let granted_expiry = session.expiry;
        let client_id = session.principal.client_id.clone();
        // With the same changes, so that there is one on disk at any time.
        self.forget_missed(&client_id);
        self.keep_will(session_key);
        let connection = self.connections.get_mut(key).expect("the caller looked");
        connection.phase = Phase::Connected { session: session_key };
        connection.keep_alive = Duration::from_secs(u64::from(connect.keep_alive_secs));
        connection.heard = now;
        connection.receive_maximum = connect.receive_maximum.min(self.limits.window);
        connection.maximum_packet = connect.maximum_packet as usize;
        connection.aliases_taken = connect.topic_aliases.min(self.limits.topic_aliases_sent);
        let silent_until = connection.silent_until();
        if connect.version == Version::V5 {
            let mut properties = Properties::new();
            let mut add = |property| properties.push(property);
            if let Some(id) = assigned {
                add(AssignedClientIdentifier::new(&*id).expect("short").into());
            }
            add(ReceiveMaximum::new(self.limits.receive_maximum.max(1)).expect("not zero").into());
            add(MaximumPacketSize::new(self.limits.packet_bytes.max(1) as u32).expect("not zero").into());
            add(TopicAliasMaximum::new(self.limits.topic_aliases).expect("any").into());
            // Told only where it differs from what was asked [MQTT-3.2.2.3.2].
            if granted_expiry != connect.session_expiry {
                let seconds = granted_expiry.map_or(u32::MAX, |expiry| expiry.as_secs() as u32);
                add(SessionExpiryInterval::new(seconds).expect("any").into());
            }
            let connack = v5_0::Connack::builder()
                .session_present(is_present)
                .reason_code(ConnectReasonCode::Success)
                .props(properties)
                .build()
                .expect("these properties belong into CONNACK");
            connection.output.extend_from_slice(&connack.to_continuous_buffer());
        } else {
            // 3.1 has no session-present flag.
            let present = u8::from(is_present && connect.version == Version::V311);
            connection.output.extend_from_slice(&[kind::CONNACK << 4, 2, present, 0]);
        }
        self.set_connection_timer(key, silent_until);
        self.announce(key);
        self.resend(now, session_key);
        self.resume(now, key, Stall::Record);
    }

    /// Ends the connection that holds this client id, if there is one [MQTT-3.1.4-3].
    fn take_over(&mut self, now: Instant, client_id: &str) {
        let held = self.by_client.get(client_id).and_then(|session| {
            let session = self.sessions.get(*session)?;
            session.connection.or(session.claimed)
        });
        if let Some(connection) = held {
            self.counters.takeovers += 1;
            self.say_goodbye(connection, ReasonCode::SESSION_TAKEN_OVER);
            self.close(now, connection, true);
        }
    }

    fn refuse(&mut self, now: Instant, key: Key, version: Version, reason: ReasonCode) {
        self.counters.refused_connections += 1;
        if let Some(connection) = self.connections.get_mut(key) {
            if version == Version::V5 {
                connection.output.extend_from_slice(&[kind::CONNACK << 4, 3, 0, reason.0, 0]);
            } else if let Some(code) = reason.to_v3_connack() {
                connection.output.extend_from_slice(&[kind::CONNACK << 4, 2, 0, code]);
            }
        }
        self.close(now, key, false);
    }

    /// The client said that it goes (MQTT 5.0 §3.14).
    pub(super) fn handle_disconnect(
        &mut self,
        now: Instant,
        key: Key,
        body: &[u8],
    ) -> Result<(), ReasonCode> {
        let connection = self.connections.get(key).expect("the caller looked");
        let mut reason = ReasonCode::SUCCESS;
        let mut expiry = None;
        let mut text = None;
        if connection.version == Version::V5 && !body.is_empty() {
            let mut reader = wire::Reader(body);
            reason = ReasonCode(reader.byte()?);
            if !reader.0.is_empty() {
                wire::read_properties(reader.properties()?, |property| {
                    match property {
                        Property::SessionExpiryInterval(value) if expiry.is_none() => {
                            expiry = Some(value.val());
                        }
                        Property::ReasonString(_) if text.is_none() => text = Some(()),
                        Property::UserProperty(_) => {}
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
            }
            reader.end()?;
        } else if !body.is_empty() {
            return Err(ReasonCode::MALFORMED_PACKET);
        }
        let session = connection.session().and_then(|session| self.sessions.get_mut(session));
        if let (Some(session), Some(seconds)) = (session, expiry) {
            // A session that was to end with the connection cannot be made to outlive it now [MQTT-3.14.2-2].
            if session.expiry == Some(Duration::ZERO) && seconds != 0 {
                return Err(ReasonCode::PROTOCOL_ERROR);
            }
            session.expiry = Some(Duration::from_secs(u64::from(seconds)).min(self.limits.session_expiry));
        }
        self.close(now, key, reason != ReasonCode::SUCCESS);
        Ok(())
    }

    /// The session has lost its connection.
    pub(super) fn detach(&mut self, now: Instant, key: Key, with_will: bool) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.connection = None;
        session.claimed = None;
        session.retained.clear();
        if !with_will {
            session.will = None;
            self.forget_will(key);
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        let outlives = session.expiry.unwrap_or(self.limits.session_expiry);
        if outlives.is_zero() {
            self.end_session(now, key);
            return;
        }
        let expires = now + outlives;
        session.expires = Some(expires);
        self.deadlines.insert((expires, Timer::Expiry(key)));
        self.write_session(now, key);
        let Some(session) = self.sessions.get_mut(key) else { return };
        match &session.will {
            Some(will) if will.delay.is_zero() => self.publish_will(now, key),
            Some(will) => {
                // The end of the session publishes it if that comes first [MQTT-3.1.3-9].
                let due = now + will.delay;
                session.will_due = Some(due);
                self.deadlines.insert((due, Timer::Will(key)));
            }
            None => {}
        }
    }

    /// Ends a session: its will is published now at the latest, its subscriptions go, and what other members of a
    /// shared subscription may still take is given to them.
    pub(super) fn end_session(&mut self, now: Instant, key: Key) {
        self.publish_will(now, key);
        self.cancel_timers(key);
        self.forget_records(key);
        let Some(mut session) = self.sessions.remove(key) else { return };
        self.by_client.remove(&session.principal.client_id);
        for filter in session.subscriptions.keys() {
            self.router.unsubscribe(filter, &Subscriber::Session(key));
        }
        self.queued_bytes -= session.queue.bytes();
        let mut orphans: Vec<_> = session.sent.drain_redeliverable().collect();
        while let Some(delivery) = session.queue.pop() {
            if delivery.shared.is_some() {
                orphans.push(delivery);
            }
        }
        for orphan in orphans {
            self.adopt(now, orphan);
        }
    }

    pub(super) fn publish_will(&mut self, now: Instant, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(will) = session.will.take() else { return };
        let client_id = session.principal.client_id.clone();
        self.forget_will(key);
        self.send_will(now, Some(key), &client_id, will);
    }

    pub(super) fn send_will(&mut self, now: Instant, from: Option<Key>, client_id: &Arc<str>, will: Will) {
        let origin = Origin::Client(client_id.clone());
        self.counters.wills += 1;
        let message = Arc::new(will.message);
        if self.forwarded.has_match(&message.topic) {
            // Nobody waits for an acknowledgement of a will.
            self.events.push_back(Event::Ingress {
                token: None,
                message: message.clone(),
                origin: origin.clone(),
            });
        }
        self.route(now, from, &origin, &message, None);
    }

    /// Whether the rules let `who` publish there. `$SYS` is the broker's own.
    pub(super) fn may_publish(&self, who: &Principal, topic: &Topic, retain: bool) -> bool {
        let is_reserved = topic.as_str() == "$SYS" || topic.as_str().starts_with("$SYS/");
        !is_reserved && self.access.may_publish(who, topic, retain)
    }

    fn cancel_timers(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if let Some(due) = session.will_due.take() {
            self.deadlines.remove(&(due, Timer::Will(key)));
        }
        if let Some(expires) = session.expires.take() {
            self.deadlines.remove(&(expires, Timer::Expiry(key)));
        }
    }

    fn invent_client_id(&mut self) -> Arc<str> {
        loop {
            let id: Arc<str> = format!("tidegate-{:016x}", self.next_random()).into();
            if !self.by_client.contains_key(&id) {
                return id;
            }
        }
    }
}
