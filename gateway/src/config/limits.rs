//! `[mqtt.limits]`: what one client, and all of them together, may take.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use drivers::Period;
use serde::Deserialize;

use super::document::Diagnostic;
use super::quantity::Size;

/// `[mqtt.limits]`; `tidegate status --json` counts how often each was hit.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MqttLimits {
    /// Connections at a time from one address beyond loopback; further ones are closed. A whole house behind one
    /// router, or a crowd of containers, may need more.
    pub connections_per_address: usize,
    /// How long TLS, WebSocket and CONNECT may take together.
    pub connect_timeout: Period,
    /// The largest packet taken; a larger one ends its connection.
    pub packet_size: Size,
    /// Messages a second that one client may publish; one that is faster is read more slowly. 0, the default, sets no
    /// bound: connections take turns, so that a fast one does not hold up the others.
    pub publish_rate: u32,
    /// QoS 1 and 2 messages under way to one client; further ones wait in its queue.
    pub in_flight: u16,
    /// Messages that wait for one client; beyond, the newest is dropped.
    pub queue_messages: usize,
    /// Bytes that wait for one client; beyond, the newest is dropped.
    pub queue_size: Size,
    /// Subscriptions of one client; one more is refused.
    pub subscriptions: usize,
    /// Topic aliases set toward one 5.0 client that takes them; 0, the default, sets none, because many clients that
    /// say they take them hand out messages without a topic.
    pub topic_aliases_sent: u16,
    /// How long clients have to come back after a restart before their wills are published; a will's own delay counts
    /// if it is longer.
    pub will_grace: Period,
    /// Levels of a topic or filter; a deeper one is refused.
    pub topic_levels: usize,
}

impl Default for MqttLimits {
    fn default() -> Self {
        let engine = mqtt::Limits::default();
        Self {
            connections_per_address: engine.connections_per_address,
            connect_timeout: Period(engine.connect_timeout),
            packet_size: Size(engine.packet_bytes as u64),
            publish_rate: engine.publish_rate,
            in_flight: engine.window,
            queue_messages: engine.queue_messages,
            queue_size: Size(engine.queue_bytes as u64),
            subscriptions: engine.subscriptions,
            topic_aliases_sent: engine.topic_aliases_sent,
            will_grace: Period(engine.will_grace),
            topic_levels: engine.topic_levels,
        }
    }
}

impl MqttLimits {
    /// Looks at the values. `place` knows where a key of this table stands.
    pub(super) fn check(&self, place: impl Fn(&str) -> Range<usize>, diagnostics: &mut Vec<Diagnostic>) {
        let counts: [(&str, usize, RangeInclusive<usize>); 6] = [
            ("connections_per_address", self.connections_per_address, 1..=65_536),
            ("publish_rate", self.publish_rate as usize, 0..=10_000_000),
            ("in_flight", self.in_flight.into(), 1..=65_535),
            ("queue_messages", self.queue_messages, 1..=1_000_000),
            ("subscriptions", self.subscriptions, 1..=100_000),
            ("topic_levels", self.topic_levels, 4..=mqtt::MAX_LEVELS),
        ];
        for (key, value, range) in counts {
            if !range.contains(&value) {
                let message = format!("{key} out of range: {} to {}", range.start(), range.end());
                diagnostics.push(Diagnostic::at(place(key), message));
            }
        }
        let sizes = [("packet_size", self.packet_size, 16 << 20), ("queue_size", self.queue_size, 1 << 30)];
        for (key, Size(value), most) in sizes {
            if !(1024..=most).contains(&value) {
                let message = format!("{key} out of range: 1 kB to {} MB", most >> 20);
                diagnostics.push(Diagnostic::at(place(key), message));
            }
        }
        let times = [("connect_timeout", self.connect_timeout), ("will_grace", self.will_grace)];
        for (key, Period(time)) in times {
            if !(Duration::from_millis(100)..=Duration::from_secs(600)).contains(&time) {
                diagnostics.push(Diagnostic::at(place(key), format!("{key} out of range: 100 ms to 10 min")));
            }
        }
    }

    /// What the engine is to keep, where the rest stays as it is.
    pub fn apply(&self, limits: mqtt::Limits) -> mqtt::Limits {
        let bytes = |size: Size| usize::try_from(size.0).unwrap_or(usize::MAX);
        mqtt::Limits {
            connections_per_address: self.connections_per_address,
            connect_timeout: self.connect_timeout.0,
            packet_bytes: bytes(self.packet_size),
            publish_rate: self.publish_rate,
            window: self.in_flight,
            queue_messages: self.queue_messages,
            queue_bytes: bytes(self.queue_size),
            subscriptions: self.subscriptions,
            topic_aliases_sent: self.topic_aliases_sent,
            will_grace: self.will_grace.0,
            topic_levels: self.topic_levels,
            ..limits
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn a_limit_out_of_range_is_refused_and_one_within_reaches_the_engine() {
        for line in [
            "connections_per_address = 0",
            "connect_timeout = \"1h\"",
            "packet_size = \"1B\"",
            "publish_rate = 10000001",
            "in_flight = 0",
            "queue_messages = 0",
            "queue_size = \"2GB\"",
            "subscriptions = 0",
            "topic_levels = 201",
            "will_grace = \"0s\"",
        ] {
            let rejected = Config::parse(&format!("[mqtt.limits]\n{line}\n")).expect_err(line);
            let key = line.split(' ').next().unwrap();
            let said = &rejected.diagnostics[0].message;
            assert!(said.contains(key) && rejected.diagnostics.len() == 1, "{line}: {said}");
        }
        let config = Config::parse("[mqtt.limits]\npublish_rate = 5\nqueue_size = \"4kB\"\n").unwrap();
        let limits = config.mqtt.limits.apply(mqtt::Limits::default());
        assert_eq!((limits.publish_rate, limits.queue_bytes), (5, 4000));
        assert_eq!(limits.topic_levels, mqtt::Limits::default().topic_levels);
    }
}
