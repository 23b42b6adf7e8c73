//! Every bound the broker keeps, its default, and the counter that shows it was hit.

use std::time::Duration;

use crate::MAX_LEVELS;

/// The broker's bounds. What happens at each stands beside it; [`Counters`] tells how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; one more is not accepted (`refused_connections`).
    pub connections: usize,
    /// Connections at once from one address beyond loopback, which is shared by all programs of the machine; one more
    /// is not accepted (`crowded_addresses`).
    pub connections_per_address: usize,
    /// Time from accept to a complete CONNECT; then the connection is closed (`connect_timeouts`).
    pub connect_timeout: Duration,
    /// The largest packet taken, in bytes; a larger one closes the connection (`oversized_packets`).
    pub packet_bytes: usize,
    /// Bytes waiting to be written to one connection. At the bound QoS 0 is dropped (`dropped_slow`), QoS 1 and 2
    /// wait in the session's queue.
    pub output_bytes: usize,
    /// Sessions, connected or not; one more is refused with 0x97 (`refused_connections`).
    pub sessions: usize,
    /// How long the clients whose connections a restart has cut have to come back before their wills are published; a
    /// longer delay of a will counts instead.
    pub will_grace: Duration,
    /// The longest a session outlives its connection, whatever the client asked for.
    pub session_expiry: Duration,
    /// Subscriptions of one session; one more is refused with 0x97 (`refused_subscriptions`).
    pub subscriptions: usize,
    /// Levels of a topic or filter. A deeper topic is refused with 0x90, before 5.0 taken and dropped
    /// (`refused_topics`); a deeper filter is refused with 0x8F (`refused_subscriptions`).
    pub topic_levels: usize,
    /// PUBLISH packets a second from one client, a second's worth at once; a faster one is not read for a while
    /// (`throttled`). Zero is off.
    pub publish_rate: u32,
    /// Messages waiting in one session; one more is dropped (`dropped_queue_full`).
    pub queue_messages: usize,
    /// Bytes waiting in one session; one message more is dropped (`dropped_queue_full`).
    pub queue_bytes: usize,
    /// Bytes waiting in all sessions together; one message more is dropped (`dropped_queue_full`).
    pub queue_bytes_total: usize,
    /// QoS 1 and 2 messages sent and not yet acknowledged, per client, unless its receive maximum is lower. Further
    /// ones wait in the queue.
    pub window: u16,
    /// QoS 1 and 2 messages a client may have unacknowledged with us: the receive maximum. A 5.0 client that exceeds
    /// it is disconnected with 0x93, an older one is no longer read until acknowledgements have left.
    pub receive_maximum: u16,
    /// Topic aliases a client may set; a higher one disconnects it with 0x94.
    pub topic_aliases: u16,
    /// Topic aliases set toward a client that takes them, for the first topics that it is sent. None by default: of
    /// Paho for Python, mosquitto's clients, mqtt.js and rumqttc only mqtt.js hands out the topic that an alias stands
    /// for; the others say that they take aliases when they are told to, and then hand out messages without a topic.
    pub topic_aliases_sent: u16,
    /// Retained messages; a new topic beyond it is delivered and not kept (`dropped_retained`).
    pub retained_messages: usize,
    /// Bytes of retained messages; beyond it a message is delivered and not kept (`dropped_retained`).
    pub retained_bytes: usize,
    /// Messages handed out as [`crate::Event::Ingress`] and not yet acknowledged. At the bound, clients that publish
    /// such messages are no longer read.
    pub ingress: usize,
    /// QoS 1 and 2 messages that readers in the process have and have not answered for. At the bound, clients that
    /// publish such messages are no longer read (`stalls`).
    pub local: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_address: 256,
            connect_timeout: Duration::from_secs(10),
            packet_bytes: 2 << 20,
            output_bytes: 256 << 10,
            sessions: 20_000,
            will_grace: Duration::from_secs(60),
            session_expiry: Duration::from_secs(14 * 86_400),
            subscriptions: 1_000,
            topic_levels: MAX_LEVELS,
            publish_rate: 0,
            queue_messages: 20_000,
            queue_bytes: 16 << 20,
            queue_bytes_total: 64 << 20,
            window: 256,
            receive_maximum: 1_024,
            topic_aliases: 16,
            topic_aliases_sent: 0,
            retained_messages: 20_000,
            retained_bytes: 64 << 20,
            ingress: 8_192,
            local: 1_024,
        }
    }
}

/// What the broker has seen and where its bounds were hit. All counts since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections accepted.
    pub connections: u64,
    /// Connections refused: too many, no session left, or the access rules.
    pub refused_connections: u64,
    /// Connections refused because there were too many from their address.
    pub crowded_addresses: u64,
    /// Connections closed because no CONNECT came in time.
    pub connect_timeouts: u64,
    /// Connections closed because the client fell silent.
    pub keep_alive_timeouts: u64,
    /// Sessions that changed hands while connected.
    pub takeovers: u64,
    /// Connections closed for a packet that was malformed or not allowed.
    pub protocol_errors: u64,
    /// Connections closed for a packet above the size limit.
    pub oversized_packets: u64,
    /// PUBLISH packets received.
    pub received: u64,
    /// PUBLISH packets sent, first time and again.
    pub sent: u64,
    /// PUBLISH packets sent again after a reconnect.
    pub resent: u64,
    /// QoS 0 messages dropped because the subscriber reads too slowly.
    pub dropped_slow: u64,
    /// QoS 0 messages dropped because the subscriber is away.
    pub dropped_offline: u64,
    /// QoS 1 and 2 messages dropped because the session's queue is full.
    pub dropped_queue_full: u64,
    /// Messages dropped because they expired before they could be sent.
    pub dropped_expired: u64,
    /// Messages dropped because the client does not take packets of that size.
    pub dropped_too_large: u64,
    /// Retained messages not kept because the store is full.
    pub dropped_retained: u64,
    /// PUBLISH packets the access rules (or the reserved `$SYS` tree) forbade.
    pub denied_publishes: u64,
    /// PUBLISH packets refused because their topic is too deep.
    pub refused_topics: u64,
    /// Times a client was not read for a while because it publishes too fast.
    pub throttled: u64,
    /// Subscriptions refused by access rules or limits.
    pub refused_subscriptions: u64,
    /// Wills published.
    pub wills: u64,
    /// Sessions that expired.
    pub expired_sessions: u64,
    /// Ingress messages that could not be stored.
    pub failed_ingress: u64,
    /// Times that changes could not be stored.
    pub failed_changes: u64,
    /// Times a connection was no longer read because too many ingress messages were waiting.
    pub stalls: u64,
}
