//! One peer of the broker: its bytes in both directions and what was agreed with it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access::Peer;
use crate::arena::Key;
use crate::journal::Round;
use crate::wire::{self, Alias, Connect, Encoded, Header, Version, kind};
use crate::{ReasonCode, Topic};

pub(crate) struct Connection {
    pub(crate) peer: Peer,
    pub(crate) phase: Phase,
    pub(crate) version: Version,
    /// Received and not yet read: the front of a packet, or everything while the connection is not read.
    pub(crate) input: Vec<u8>,
    /// Written and not yet taken by the caller.
    pub(crate) output: Vec<u8>,
    /// Whether the caller knows that there is output.
    pub(crate) is_announced: bool,
    /// Why nothing more is read from it at the moment.
    pub(crate) stall: Option<Stall>,
    /// Zero is off.
    pub(crate) keep_alive: Duration,
    /// When the last packet came.
    pub(crate) heard: Instant,
    /// The entry of this connection among the deadlines.
    pub(crate) timer: Option<Instant>,
    /// The client's receive maximum.
    pub(crate) receive_maximum: u16,
    /// The largest packet the client takes.
    pub(crate) maximum_packet: usize,
    /// What the client's aliases stand for.
    pub(crate) aliases: BTreeMap<u16, Topic>,
    /// How many aliases it takes from us.
    pub(crate) aliases_taken: u16,
    /// What those stand for that it was sent, 1 first.
    pub(crate) aliases_given: Vec<Topic>,
    /// PUBACKs and PUBRECs owed, in the order of their PUBLISH packets [MQTT-4.6.0-2, -3].
    pub(crate) owed: VecDeque<Owed>,
    /// How many of them are PUBACKs.
    pub(crate) owed_pubacks: usize,
    /// Other packets that wait for changes to be safe, in their order.
    pub(crate) deferred: VecDeque<(Round, Vec<u8>)>,
    /// The newest changes that something here waits for.
    pub(crate) waits_for: Round,
    /// What is left of its rate of messages.
    pub(crate) allowance: Allowance,
    /// The topic of the last PUBLISH: the next one often has the same.
    pub(crate) last_topic: Option<Topic>,
}

/// What a connection that is not read waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stall {
    /// The verdict on its CONNECT.
    Verdict,
    /// A place among the ingress messages.
    Ingress,
    /// Its own acknowledgements.
    Owed,
    /// The record of its session.
    Record,
    /// The time when it may publish again.
    Rate,
}

/// A token bucket: how many messages may come now, as of a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    messages: f64,
    at: Instant,
}

impl Allowance {
    /// Takes one message off; when there is none, the time until there is.
    pub(crate) fn take(&mut self, now: Instant, rate: u32) -> Result<(), Duration> {
        let rate = f64::from(rate);
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        *self = Self { messages: (self.messages + gained).min(rate), at: now };
        if self.messages < 1.0 {
            // Not a nanosecond too early.
            return Err(Duration::from_secs_f64((1.0 - self.messages) / rate) + Duration::from_micros(1));
        }
        self.messages -= 1.0;
        Ok(())
    }
}

/// How far a connection has come.
pub(crate) enum Phase {
    /// Nothing but CONNECT is taken.
    Opened,
    /// The CONNECT waits for a verdict.
    Judged(Box<Connect>),
    /// CONNACK waits for the session's record.
    Claiming(Box<Claim>),
    /// CONNACK has been sent.
    Connected { session: Key },
    /// Whatever is in `output` is still to be written; nothing is read.
    Closing,
}

/// What a connection becomes when its session's record is safe.
pub(crate) struct Claim {
    pub(crate) connect: Connect,
    pub(crate) session: Key,
    /// Whether the session was there before.
    pub(crate) is_present: bool,
    /// The client id that it was given because it had none.
    pub(crate) assigned: Option<Arc<str>>,
    pub(crate) after: Round,
}

/// An acknowledgement owed to the client.
pub(crate) struct Owed {
    pub(crate) kind: u8,
    pub(crate) packet_id: u16,
    /// The ingress token it waits for; 0 when it waits for none.
    pub(crate) token: u64,
    /// The changes it waits for.
    pub(crate) after: Round,
    /// What to say; `None` while waiting.
    pub(crate) reason: Option<ReasonCode>,
}

impl Connection {
    pub(crate) fn new(now: Instant, peer: Peer) -> Self {
        Self {
            peer,
            phase: Phase::Opened,
            version: Version::V311,
            input: Vec::new(),
            output: Vec::new(),
            is_announced: false,
            stall: None,
            keep_alive: Duration::ZERO,
            heard: now,
            timer: None,
            receive_maximum: u16::MAX,
            maximum_packet: usize::MAX,
            aliases: BTreeMap::new(),
            aliases_taken: 0,
            aliases_given: Vec::new(),
            owed: VecDeque::new(),
            owed_pubacks: 0,
            deferred: VecDeque::new(),
            waits_for: 0,
            allowance: Allowance { messages: f64::INFINITY, at: now },
            last_topic: None,
        }
    }

    pub(crate) fn session(&self) -> Option<Key> {
        match &self.phase {
            Phase::Connected { session } => Some(*session),
            _ => None,
        }
    }

    /// Writes a PUBLISH of this topic, which is no larger than the client takes; under an alias where it takes one.
    pub(crate) fn write_publish(&mut self, topic: &Topic, form: &Encoded, header: Header) {
        match self.alias(topic).map(|alias| (alias, form.under(alias))) {
            Some((alias, under)) if under.len() <= self.maximum_packet => {
                if !alias.is_known {
                    self.aliases_given.push(topic.clone());
                }
                under.write(&mut self.output, header);
            }
            _ => form.write(&mut self.output, header),
        }
    }

    /// The topic's alias, or the next one while some are left.
    fn alias(&self, topic: &Topic) -> Option<Alias> {
        if self.aliases_taken == 0 {
            return None;
        }
        let given = &self.aliases_given;
        let next = (given.len() < usize::from(self.aliases_taken)).then_some(given.len());
        let place = given.iter().position(|have| have == topic).or(next)?;
        Some(Alias { number: place as u16 + 1, is_known: place < given.len() })
    }

    /// The moment after which a silent client is given up, if it is to be given up at all.
    pub(crate) fn silent_until(&self) -> Option<Instant> {
        // One and a half times the keep-alive [MQTT-3.1.2-22].
        (!self.keep_alive.is_zero()).then(|| self.heard + self.keep_alive * 3 / 2)
    }

    /// Puts an acknowledgement behind those owed before it; one that waits for nothing and has nothing before it is
    /// written at once.
    pub(crate) fn owe(&mut self, owed: Owed, settled: Round) {
        match owed.reason {
            Some(reason) if self.owed.is_empty() && owed.after <= settled => {
                wire::write_ack(&mut self.output, self.version, owed.kind, owed.packet_id, reason);
            }
            _ => {
                self.owed_pubacks += usize::from(owed.kind == kind::PUBACK);
                self.owed.push_back(owed);
            }
        }
    }

    /// Puts a packet behind those that wait for changes; one that need not wait is written at once.
    pub(crate) fn defer(&mut self, packet: &[u8], after: Round, settled: Round) {
        if after <= settled && self.deferred.is_empty() {
            self.output.extend_from_slice(packet);
        } else {
            self.deferred.push_back((after, packet.to_vec()));
        }
    }

    /// Writes what no longer waits. Returns `false` if an acknowledgement is an error that this version cannot express:
    /// then the connection has to be closed instead.
    pub(crate) fn settle(&mut self, settled: Round) -> bool {
        while self.deferred.front().is_some_and(|(after, _)| *after <= settled) {
            if let Some((_, packet)) = self.deferred.pop_front() {
                self.output.extend_from_slice(&packet);
            }
        }
        while let Some(Owed { reason: Some(reason), after, .. }) = self.owed.front()
            && *after <= settled
        {
            if reason.is_error() && self.version != Version::V5 {
                return false;
            }
            let reason = *reason;
            let owed = self.owed.pop_front().expect("looked at");
            self.owed_pubacks -= usize::from(owed.kind == kind::PUBACK);
            wire::write_ack(&mut self.output, self.version, owed.kind, owed.packet_id, reason);
        }
        true
    }
}
