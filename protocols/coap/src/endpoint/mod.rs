//! One CoAP endpoint, server and client: [`Endpoint`].
//!
//! This file takes datagrams and timers apart and hands them on: `server` answers requests, `notify` serves observers,
//! `requests` asks others. Message ids, acknowledgements and repetition are the same for all three and are here
//! (RFC 7252 §4).

mod notify;
mod requests;
mod server;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use crate::Peer;
use crate::client::{Event, Requests};
use crate::config::Config;
use crate::counters::Counters;
use crate::dedup::Duplicates;
use crate::exchange::{Exchanges, Expired, MessageIds, Owner};
use crate::observe::{ObserverId, Observers};
use crate::outbox::Outbox;
use crate::random::Random;
use crate::resource::{Resources, Ticket};
use crate::transfer::{Assemblies, Snapshots};
use crate::wire::{Code, Kind, Malformed, Message, Writer};

/// A CoAP endpoint without socket and clock. See the crate's page for how it is driven.
#[derive(Debug)]
pub struct Endpoint {
    config: Config,
    counters: Counters,
    random: Random,
    seed: u64,
    ids: MessageIds,
    outbox: Outbox,
    duplicates: Duplicates,
    exchanges: Exchanges,
    // The server's side.
    deferred: BTreeMap<Ticket, server::Deferred>,
    deferred_timers: BTreeSet<(Instant, Ticket)>,
    next_ticket: u64,
    /// Until then a repeated GET may be one whose first copy still waits for its resource.
    safe_pending_until: Instant,
    snapshots: Snapshots,
    assemblies: Assemblies,
    // The observers.
    observers: Observers,
    sequence: u32,
    /// Observers whose notification waits for room in the outbox, and since when.
    behind: VecDeque<ObserverId>,
    behind_since: Instant,
    next_sweep: Instant,
    // The client's side.
    requests: Requests,
    events: VecDeque<Event>,
    /// A datagram that is kept for repetition is written here first.
    scratch: Vec<u8>,
}

impl Endpoint {
    /// An endpoint whose chance comes from `seed`: equal seeds and equal input give equal output. `seed` must be hard
    /// to guess outside tests, since tokens come from it. Times before `now` count as `now`.
    pub fn new(config: Config, seed: u64, now: Instant) -> Self {
        let mut random = Random::new(seed);
        let limits = &config.limits;
        let seed = random.next();
        Self {
            counters: Counters::default(),
            ids: MessageIds::new(&mut random),
            outbox: Outbox::new(limits.outbox_bytes),
            duplicates: Duplicates::new(limits.duplicates, limits.duplicate_bytes, seed, now),
            exchanges: Exchanges::new(limits.exchanges),
            deferred: BTreeMap::new(),
            deferred_timers: BTreeSet::new(),
            next_ticket: 0,
            safe_pending_until: now,
            snapshots: Snapshots::new(limits.snapshots),
            assemblies: Assemblies::new(limits.assemblies, limits.body_bytes),
            observers: Observers::new(limits.observers, limits.observers_per_peer),
            sequence: 0,
            behind: VecDeque::new(),
            behind_since: now,
            next_sweep: now + config.timing.confirm_after / 24,
            requests: Requests::default(),
            events: VecDeque::new(),
            scratch: Vec::new(),
            random,
            seed,
            config,
        }
    }

    /// Takes one datagram of any bytes. `is_multicast` says that it was sent to a group.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        peer: Peer,
        is_multicast: bool,
        datagram: &[u8],
        resources: &mut dyn Resources,
    ) {
        self.counters.received += 1;
        if !peer.is_answerable() {
            self.counters.unanswerable += 1;
            return;
        }
        let message = match Message::parse(datagram) {
            Ok(message) => message,
            Err(Malformed::Foreign) => {
                self.counters.foreign += 1;
                return;
            }
            Err(Malformed::Format { kind, id }) => {
                self.counters.malformed += 1;
                if kind == Kind::Confirmable && !is_multicast {
                    self.send_empty(peer, Kind::Reset, id);
                }
                return;
            }
        };
        // A confirmable message must not be sent to a group, and a reset in answer to one neither (RFC 7252 §8.1).
        if is_multicast && message.kind != Kind::NonConfirmable {
            self.counters.unanswerable += 1;
            return;
        }
        match message.kind {
            Kind::Confirmable | Kind::NonConfirmable if message.code.is_request() => {
                self.handle_request(now, peer, is_multicast, message, resources);
            }
            Kind::Acknowledgement if message.code == Code::EMPTY => {
                self.finish_exchange(now, peer, message.id, resources);
            }
            Kind::Reset if message.code == Code::EMPTY => self.handle_reset(now, peer, message.id),
            Kind::Reset => self.counters.malformed += 1,
            _ if message.code.is_response() => self.handle_response(now, peer, message),
            // A ping (RFC 7252 §4.3), or a code of a reserved class.
            Kind::Confirmable => {
                self.counters.malformed += u64::from(message.code != Code::EMPTY);
                self.send_empty(peer, Kind::Reset, message.id);
            }
            Kind::NonConfirmable | Kind::Acknowledgement => self.counters.malformed += 1,
        }
    }

    /// Does what is due. Call it when [`Endpoint::deadline`] has passed; at any other time it does nothing.
    pub fn handle_timeout(&mut self, now: Instant, resources: &mut dyn Resources) {
        while let Some(expired) = self.exchanges.expire(now, &self.config.timing) {
            match expired {
                Expired::Repeat(exchange, owner) => {
                    if let Owner::Notification(observer) = owner {
                        self.renew_notification(now, observer, exchange, resources);
                    }
                    if let Some(due) = self.exchanges.message(exchange) {
                        self.counters.retransmissions += 1;
                        self.counters.outbox_full +=
                            u64::from(!self.outbox.write(due.peer, |out| out.extend_from_slice(due.bytes)));
                    }
                }
                Expired::GaveUp(peer, owner) => {
                    self.counters.timeouts += 1;
                    match owner {
                        Owner::Response => {}
                        Owner::Notification(_) => self.lose_observers(peer),
                        Owner::Request(id) => self.handle_request_timeout(id),
                    }
                    self.take_turns(now, peer);
                }
            }
        }
        self.expire_deferred(now);
        self.expire_requests(now);
        self.drain_behind(now, resources);
        self.sweep_observers(now, resources);
    }

    /// When [`Endpoint::handle_timeout`] is to be called; `None` while nothing waits. A moment that has passed already
    /// means: as soon as everything from [`Endpoint::poll_transmit`] is sent.
    pub fn deadline(&self) -> Option<Instant> {
        let deferred = self.deferred_timers.first().map(|(due, _)| *due);
        let sweep = (self.observers.len() > 0).then_some(self.next_sweep);
        let behind = (!self.behind.is_empty()).then_some(self.behind_since);
        [self.exchanges.deadline(), deferred, self.requests.deadline(), sweep, behind]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next datagram to send. Whether sending it fails is of no interest here: the network may lose it anyway.
    pub fn poll_transmit(&mut self) -> Option<(Peer, &[u8])> {
        let next = self.outbox.pop();
        self.counters.sent += u64::from(next.is_some());
        next
    }

    /// The next thing that a request of ours has led to.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What happened since the start.
    pub fn counters(&self) -> Counters {
        Counters {
            duplicates_evicted: self.duplicates.evicted(),
            bodies_evicted: self.assemblies.evicted(),
            ..self.counters
        }
    }

    /// Observers registered now.
    pub fn observers(&self) -> usize {
        self.observers.len()
    }

    /// An acknowledgement, empty or with a response. Returns whose message it was for.
    fn finish_exchange(
        &mut self,
        now: Instant,
        peer: Peer,
        id: u16,
        resources: &mut dyn Resources,
    ) -> Option<Owner> {
        let owner = self.exchanges.finish(peer, id)?;
        if let Owner::Notification(observer) = owner {
            self.confirm_observer(now, observer, resources);
        }
        self.take_turns(now, peer);
        Some(owner)
    }

    fn handle_reset(&mut self, now: Instant, peer: Peer, id: u16) {
        match self.exchanges.finish(peer, id) {
            Some(Owner::Notification(observer)) => self.lose_observer(observer),
            Some(Owner::Request(request)) => self.handle_request_reset(request),
            Some(Owner::Response) => {}
            // A reset may also name a notification that was not confirmable (RFC 7641 §3.6).
            None => {
                if let Some(observer) = self.observers.find_notified(peer, id) {
                    self.lose_observer(observer);
                }
            }
        }
        self.take_turns(now, peer);
    }

    /// Sends what waited for an exchange with this peer to end (NSTART).
    fn take_turns(&mut self, now: Instant, peer: Peer) {
        while let Some(due) = self.exchanges.next_turn(now, peer, &self.config.timing) {
            let is_written = self.outbox.write(due.peer, |out| out.extend_from_slice(due.bytes));
            self.counters.outbox_full += u64::from(!is_written);
        }
    }

    fn send_empty(&mut self, peer: Peer, kind: Kind, id: u16) {
        self.send(peer, |out| Writer::empty(out, kind, id));
    }

    /// Writes a datagram that is not repeated. `false` when there was no room.
    fn send(&mut self, peer: Peer, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let is_written = self.outbox.write(peer, write);
        self.counters.outbox_full += u64::from(!is_written);
        is_written
    }

    /// Sends what lies in `scratch` as a confirmable message, now or in its turn. `None` when the table is full.
    fn send_confirmable(
        &mut self,
        now: Instant,
        peer: Peer,
        id: u16,
        owner: Owner,
    ) -> Option<crate::exchange::ExchangeId> {
        let timing = &self.config.timing;
        let started = self.exchanges.start(now, (peer, id), &self.scratch, owner, timing, &mut self.random);
        let Some((exchange, is_due)) = started else {
            self.counters.exchanges_full += 1;
            return None;
        };
        if is_due {
            let scratch = std::mem::take(&mut self.scratch);
            self.send(peer, |out| out.extend_from_slice(&scratch));
            self.scratch = scratch;
        }
        Some(exchange)
    }
}
