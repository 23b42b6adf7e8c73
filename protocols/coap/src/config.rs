//! What can be set: [`Config`], [`Timing`] (RFC 7252 §4.8), [`Limits`].

use std::time::Duration;

/// What an endpoint is set up with.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Transmission parameters.
    pub timing: Timing,
    /// Bounds of every table.
    pub limits: Limits,
}

/// The transmission parameters of RFC 7252 §4.8 and those of RFC 7641 §4.5, with the RFCs' defaults.
#[derive(Debug, Clone)]
pub struct Timing {
    /// `ACK_TIMEOUT`: the shortest first wait for an acknowledgement.
    pub ack_timeout: Duration,
    /// `ACK_RANDOM_FACTOR`, 1.0 or more: how far the first wait may be stretched by chance.
    pub ack_random_factor: f64,
    /// `MAX_RETRANSMIT`: how often a message is repeated.
    pub max_retransmit: u8,
    /// `NSTART`: how many confirmable messages may be under way to one peer.
    pub nstart: u16,
    /// `MAX_LATENCY`: how long a datagram may live in the network.
    pub max_latency: Duration,
    /// How long a response may take and still ride on the acknowledgement; after that an empty one is sent. Must stay
    /// well below `ack_timeout`, or the peer repeats its request.
    pub piggyback_window: Duration,
    /// How long a resource may take to answer; after that the peer is told 5.04.
    pub response_timeout: Duration,
    /// Every so many notifications, one is confirmable, so that a lost observer is found.
    pub confirm_every: u32,
    /// An observer is asked for a confirmation at least this often (RFC 7641 §4.5: at most 24 hours).
    pub confirm_after: Duration,
    /// How long the body of an unfinished blockwise transfer is kept since its last block; longer than
    /// [`Timing::max_transmit_wait`], or a transfer on a bad wire breaks off.
    pub block_lifetime: Duration,
}

/// Bounds. A full table never grows: beside each stands what happens instead; [`crate::Counters`] tells how often.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests remembered for [`Timing::exchange_lifetime`] so that a repetition is not carried out again, 64 bytes
    /// each; rounded up to a power of two. Full: the oldest of four candidates is forgotten.
    pub duplicates: usize,
    /// Bytes of remembered replies that exceed the 40 in the table's line. Full: only the code is kept.
    pub duplicate_bytes: usize,
    /// Requests whose resource answers later. Full: 5.03.
    pub deferred: usize,
    /// Confirmable messages of ours under way or waiting for their turn. Full: notifications go unconfirmed, separate
    /// responses are sent once, and a request of ours fails.
    pub exchanges: usize,
    /// Observers. Full: the request is answered without Observe, so that the client polls (RFC 7641 §4.1).
    pub observers: usize,
    /// Observers of one peer. Full: as above.
    pub observers_per_peer: usize,
    /// Bodies kept while their blocks are fetched. Full: the oldest is forgotten, and its later blocks are taken
    /// from the present representation, whose `ETag` tells the client when it differs.
    pub snapshots: usize,
    /// Bodies that are received block by block. Full: the oldest is forgotten, and its peer is told 4.08.
    pub assemblies: usize,
    /// The largest body received, by blocks or at once, as server or client. Larger: 4.13 or a failed request.
    pub body_bytes: usize,
    /// The size exponent of the largest block sent, 0 to 6 (16 to 1024 bytes).
    pub block_exponent: u8,
    /// Datagrams waiting for [`crate::Endpoint::poll_transmit`], in bytes. Full: notifications wait, the rest is
    /// dropped as if the network had lost it.
    pub outbox_bytes: usize,
    /// Requests of ours without an answer, observations included. Full: a further one is refused.
    pub requests: usize,
    /// Events waiting for [`crate::Endpoint::poll_event`]. Full: notifications are dropped.
    pub events: usize,
}

impl Timing {
    /// `MAX_TRANSMIT_SPAN`: from the first transmission to the last repetition.
    pub fn max_transmit_span(&self) -> Duration {
        let repetitions = 2u32.saturating_pow(self.max_retransmit.into()) - 1;
        self.ack_timeout.mul_f64(f64::from(repetitions) * self.ack_random_factor)
    }

    /// `EXCHANGE_LIFETIME`: how long a message id may not be used again; 247 s by default.
    pub fn exchange_lifetime(&self) -> Duration {
        // PROCESSING_DELAY is set to ACK_TIMEOUT (RFC 7252 §4.8.2).
        self.max_transmit_span() + self.max_latency * 2 + self.ack_timeout
    }

    /// `MAX_TRANSMIT_WAIT`: from the first transmission until the sender gives up; 93 s by default.
    pub fn max_transmit_wait(&self) -> Duration {
        let waits = 2u32.saturating_pow(u32::from(self.max_retransmit) + 1) - 1;
        self.ack_timeout.mul_f64(f64::from(waits) * self.ack_random_factor)
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ack_timeout: Duration::from_secs(2),
            ack_random_factor: 1.5,
            max_retransmit: 4,
            nstart: 1,
            max_latency: Duration::from_secs(100),
            piggyback_window: Duration::from_millis(100),
            response_timeout: Duration::from_secs(90),
            confirm_every: 16,
            confirm_after: Duration::from_secs(24 * 3600),
            block_lifetime: Duration::from_secs(120),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            duplicates: 65_536,
            duplicate_bytes: 1 << 20,
            deferred: 1024,
            exchanges: 4096,
            observers: 10_000,
            observers_per_peer: 64,
            snapshots: 64,
            assemblies: 64,
            body_bytes: 64 * 1024,
            block_exponent: 6,
            outbox_bytes: 1 << 20,
            requests: 1024,
            events: 1024,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_times_are_those_of_rfc_7252_section_4_8_2() {
        let timing = Timing::default();
        assert_eq!(timing.max_transmit_span(), Duration::from_secs(45));
        assert_eq!(timing.max_transmit_wait(), Duration::from_secs(93));
        assert_eq!(timing.exchange_lifetime(), Duration::from_secs(247));
    }
}
