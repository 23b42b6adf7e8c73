//! SUBSCRIBE and UNSUBSCRIBE (MQTT 5.0 §3.8 to §3.11).

use std::time::Instant;

use super::inbound::is_too_deep;
use super::{Broker, Subscriber};
use crate::arena::Key;
use crate::wire::{Subscribe, SubscribeOptions, Unsubscribe, Version, kind, write_length};
use crate::{Filter, ReasonCode};

impl Broker {
    pub(super) fn handle_subscribe(
        &mut self,
        now: Instant,
        key: Key,
        session: Key,
        body: &[u8],
    ) -> Result<(), ReasonCode> {
        let version = self.connections.get(key).expect("the caller looked").version;
        let subscribe = Subscribe::read(version, body)?;
        self.journal.begin();
        let mut codes = Vec::with_capacity(subscribe.entries.len());
        for (text, options) in subscribe.entries {
            let code = self.subscribe(now, session, text, options);
            if code.is_error() {
                self.counters.refused_subscriptions += 1;
            }
            // 3.1.1 knows one failure code [MQTT-3.9.3-2 of 3.1.1].
            let is_failure = code.is_error() && version != Version::V5;
            codes.push(if is_failure { ReasonCode::UNSPECIFIED.0 } else { code.0 });
        }
        self.write_session(now, session);
        self.write_codes(key, kind::SUBACK, subscribe.packet_id, &codes);
        // Behind the SUBACK, so that a client that waits for it first is served as it expects.
        self.pump(now, session);
        Ok(())
    }

    fn subscribe(&mut self, now: Instant, key: Key, text: &str, options: SubscribeOptions) -> ReasonCode {
        let Ok(filter) = Filter::new(text) else { return ReasonCode::FILTER_INVALID };
        if is_too_deep(filter.pattern(), self.limits.topic_levels) {
            return ReasonCode::FILTER_INVALID;
        }
        let session = self.sessions.get_mut(key).expect("a connected client has a session");
        if !self.access.may_subscribe(&session.principal, &filter) {
            return ReasonCode::NOT_AUTHORIZED;
        }
        let is_new = !session.subscriptions.contains_key(&filter);
        if is_new && session.subscriptions.len() >= self.limits.subscriptions {
            return ReasonCode::QUOTA_EXCEEDED;
        }
        session.subscriptions.insert(filter.clone(), options);
        self.router.subscribe(&filter, Subscriber::Session(key), options);
        let wants_retained = match options.retain_handling {
            0 => true,
            1 => is_new,
            _ => false,
        };
        if wants_retained && filter.group().is_none() {
            for topic in self.retained.matching(now, &filter) {
                session.retained.entry(topic.clone()).or_insert(options);
            }
        }
        ReasonCode(options.qos as u8)
    }

    pub(super) fn handle_unsubscribe(
        &mut self,
        now: Instant,
        key: Key,
        session: Key,
        body: &[u8],
    ) -> Result<(), ReasonCode> {
        let version = self.connections.get(key).expect("the caller looked").version;
        let unsubscribe = Unsubscribe::read(version, body)?;
        self.journal.begin();
        let held = self.sessions.get_mut(session).expect("a connected client has a session");
        let mut codes = Vec::with_capacity(unsubscribe.filters.len());
        for text in unsubscribe.filters {
            let code = match Filter::new(text) {
                Err(_) => ReasonCode::FILTER_INVALID,
                Ok(filter) if held.subscriptions.remove(&filter).is_some() => {
                    self.router.unsubscribe(&filter, &Subscriber::Session(session));
                    ReasonCode::SUCCESS
                }
                Ok(_) => ReasonCode::NO_SUBSCRIPTION_EXISTED,
            };
            codes.push(code.0);
        }
        self.write_session(now, session);
        // Before 5.0 UNSUBACK carries no codes.
        let codes = if version == Version::V5 { &codes[..] } else { &[] };
        self.write_codes(key, kind::UNSUBACK, unsubscribe.packet_id, codes);
        Ok(())
    }

    /// Sends SUBACK or UNSUBACK once what it says is safe.
    fn write_codes(&mut self, key: Key, kind: u8, packet_id: u16, codes: &[u8]) {
        let version = self.connections.get(key).expect("the caller looked").version;
        let properties: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        let mut out = vec![kind << 4];
        write_length(&mut out, 2 + properties.len() + codes.len());
        out.extend_from_slice(&packet_id.to_be_bytes());
        out.extend_from_slice(properties);
        out.extend_from_slice(codes);
        let after = self.journal.promise();
        self.defer(key, after, &out);
    }
}
