//! The life of a connection: read, stalled, resumed, closed.

use std::time::Instant;

use super::inbound::Flow;
use super::{Broker, ConnectionId, Event, Timer, announce};
use crate::ReasonCode;
use crate::arena::Key;
use crate::connection::{Phase, Stall};
use crate::wire::{self, Version};

impl Broker {
    /// Reads packets from the front of `bytes` and returns how many bytes they took.
    pub(super) fn read_packets(&mut self, now: Instant, key: Key, bytes: &[u8]) -> usize {
        let mut read = 0;
        while let Some(connection) = self.connections.get_mut(key)
            && connection.stall.is_none()
            && !matches!(connection.phase, Phase::Closing)
        {
            match wire::next_frame(connection.version, &bytes[read..], self.limits.packet_bytes) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    connection.heard = now;
                    match self.handle_packet(now, key, frame) {
                        Ok(Flow::Taken) => read += frame.len,
                        Ok(Flow::Stalled) => break,
                        Err(reason) => self.fail(now, key, reason),
                    }
                }
                Err(reason) => self.fail(now, key, reason),
            }
        }
        read
    }

    /// Reads what a connection has kept unread.
    pub(super) fn read_kept(&mut self, now: Instant, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let mut input = std::mem::take(&mut connection.input);
        let read = self.read_packets(now, key, &input);
        input.drain(..read);
        self.keep_unread(key, input);
    }

    pub(super) fn keep_unread(&mut self, key: Key, mut rest: Vec<u8>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if matches!(connection.phase, Phase::Closing) {
            return;
        }
        if rest.is_empty() {
            rest = Vec::new();
        }
        connection.input = rest;
    }

    /// Reads on where a connection was stalled, if this is what it was stalled for.
    pub(super) fn resume(&mut self, now: Instant, key: Key, stall: Stall) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.stall != Some(stall) {
            return;
        }
        connection.stall = None;
        connection.heard = now;
        self.read_kept(now, key);
        self.announce(key);
    }

    /// Tells the caller once that a connection has something for it.
    pub(super) fn announce(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key) {
            announce(&mut self.events, key, connection);
        }
    }

    /// Closes a connection whose peer broke the rules, telling it why if it can be told.
    pub(super) fn fail(&mut self, now: Instant, key: Key, reason: ReasonCode) {
        if reason == ReasonCode::PACKET_TOO_LARGE {
            self.counters.oversized_packets += 1;
        } else {
            self.counters.protocol_errors += 1;
        }
        self.say_goodbye(key, reason);
        self.close(now, key, true);
    }

    pub(super) fn say_goodbye(&mut self, key: Key, reason: ReasonCode) {
        if let Some(connection) = self.connections.get_mut(key)
            && connection.version == Version::V5
            && connection.session().is_some()
        {
            wire::write_disconnect(&mut connection.output, Version::V5, reason);
        }
    }

    /// Ends a connection from our side: what is in its output is still written.
    pub(super) fn close(&mut self, now: Instant, key: Key, with_will: bool) {
        let Some(connection) = self.connections.get(key) else { return };
        if matches!(connection.phase, Phase::Closing) {
            return;
        }
        self.finish(now, key, with_will);
        self.events.push_back(Event::Close(ConnectionId(key)));
    }

    /// Parts a connection from its session.
    pub(super) fn finish(&mut self, now: Instant, key: Key, with_will: bool) {
        self.set_connection_timer(key, None);
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.stall.take() == Some(Stall::Ingress) {
            self.waiting_for_ingress.retain(|waiting| *waiting != key);
        }
        connection.input = Vec::new();
        connection.owed.clear();
        connection.owed_pubacks = 0;
        connection.deferred.clear();
        let phase = std::mem::replace(&mut connection.phase, Phase::Closing);
        match phase {
            Phase::Connected { session } => self.detach(now, session, with_will),
            Phase::Claiming(claim) => self.detach(now, claim.session, false),
            _ => {}
        }
    }

    pub(super) fn handle_silence(&mut self, now: Instant, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.timer = None;
        if connection.session().is_none() {
            self.counters.connect_timeouts += 1;
            self.close(now, key, false);
            return;
        }
        match connection.silent_until() {
            // A connection we do not read cannot be blamed for its silence.
            _ if connection.stall.is_some() => {
                let at = now + connection.keep_alive;
                self.set_connection_timer(key, Some(at));
            }
            Some(until) if until > now => self.set_connection_timer(key, Some(until)),
            Some(_) => {
                self.counters.keep_alive_timeouts += 1;
                self.say_goodbye(key, ReasonCode::KEEP_ALIVE_TIMEOUT);
                self.close(now, key, true);
            }
            None => {}
        }
    }

    pub(super) fn set_connection_timer(&mut self, key: Key, at: Option<Instant>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if let Some(before) = connection.timer.take() {
            self.deadlines.remove(&(before, Timer::Connection(key)));
        }
        if let Some(at) = at {
            connection.timer = Some(at);
            self.deadlines.insert((at, Timer::Connection(key)));
        }
    }
}
