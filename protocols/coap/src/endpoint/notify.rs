//! Observers of our resources (RFC 7641 §4): registration, notification, loss.
//!
//! A notification is the registration carried out again. Mostly it is not confirmable; every so often one is, and
//! while that one is under way newer representations wait, and only the newest of them follows.

use std::time::Instant;

use super::Endpoint;
use super::server::{Envelope, negotiate, write_response};
use crate::exchange::{ExchangeId, Owner, head};
use crate::observe::ObserverId;
use crate::request::Request;
use crate::resource::{Answer, ResourceId, Resources, Response};
use crate::wire::{Code, Kind, Message, Token};
use crate::{Peer, Ticket};

impl Endpoint {
    /// Tells the observers of a resource that it has changed; or that it is gone, when
    /// [`Resources::find`] no longer knows it.
    pub fn notify(&mut self, now: Instant, resource: ResourceId, resources: &mut dyn Resources) {
        let observers = self.observers.of(resource).to_vec();
        if observers.is_empty() {
            return;
        }
        self.sequence = self.sequence.wrapping_add(1);
        for observer in observers {
            self.notify_observer(now, observer, resources);
        }
    }

    /// Whether anybody observes a resource.
    pub fn is_observed(&self, resource: ResourceId) -> bool {
        !self.observers.of(resource).is_empty()
    }

    /// Notes an observer after its request was answered with `code`. Returns the number for the Observe option, or
    /// `None` when the client has to poll.
    pub(super) fn register(
        &mut self,
        now: Instant,
        request: &Request<'_>,
        resource: ResourceId,
        code: Code,
    ) -> Option<u32> {
        let (peer, token) = (request.peer, request.message.token);
        if !code.is_success() {
            self.deregister(peer, token);
            return None;
        }
        let mut bytes = Vec::new();
        head(request, &mut bytes);
        let Some(_) = self.observers.register(now, (peer, token), resource, &bytes) else {
            self.counters.observers_refused += 1;
            return None;
        };
        if self.observers.len() == 1 {
            self.next_sweep = now + self.config.timing.confirm_after / 24;
        }
        // One counter for all: it only grows, also when a client comes back with its old token.
        self.sequence = self.sequence.wrapping_add(1);
        Some(self.sequence)
    }

    pub(super) fn deregister(&mut self, peer: Peer, token: Token) {
        if let Some(observer) = self.observers.find(peer, token) {
            self.remove_observer(observer);
        }
    }

    /// A confirmable notification was acknowledged: what waited behind it follows.
    pub(super) fn confirm_observer(&mut self, now: Instant, id: ObserverId, resources: &mut dyn Resources) {
        let Some(observer) = self.observers.observer(id) else {
            return;
        };
        observer.exchange = None;
        observer.confirmed_at = now;
        observer.unconfirmed = 0;
        if std::mem::take(&mut observer.is_behind) {
            self.notify_observer(now, id, resources);
        }
    }

    pub(super) fn lose_observer(&mut self, id: ObserverId) {
        if self.remove_observer(id) {
            self.counters.observers_lost += 1;
        }
    }

    /// A peer that does not acknowledge is gone, with all that it observes (RFC 7641 §4.5).
    pub(super) fn lose_observers(&mut self, peer: Peer) {
        for id in self.observers.of_peer(peer) {
            self.lose_observer(id);
        }
    }

    /// Puts the newest representation in the place of one that is about to be repeated (RFC 7641 §4.5.2).
    pub(super) fn renew_notification(
        &mut self,
        now: Instant,
        id: ObserverId,
        exchange: ExchangeId,
        resources: &mut dyn Resources,
    ) {
        let Some(observer) = self.observers.observer(id) else {
            return;
        };
        if !std::mem::take(&mut observer.is_behind) {
            return;
        }
        let peer = observer.peer;
        let message_id = self.ids.next(peer);
        if let Some(code) = self.write_notification(now, id, Kind::Confirmable, message_id, resources) {
            self.exchanges.replace(exchange, message_id, &self.scratch);
            self.counters.notifications += 1;
            if !code.is_success() {
                self.observers.remove(id);
            }
        }
    }

    /// Goes on with notifications for which there was no room.
    pub(super) fn drain_behind(&mut self, now: Instant, resources: &mut dyn Resources) {
        for id in std::mem::take(&mut self.behind) {
            let Some(observer) = self.observers.observer(id) else {
                continue;
            };
            if std::mem::take(&mut observer.is_behind) {
                self.notify_observer(now, id, resources);
            }
        }
    }

    /// Asks observers that were silent for too long for a sign of life.
    pub(super) fn sweep_observers(&mut self, now: Instant, resources: &mut dyn Resources) {
        if now < self.next_sweep {
            return;
        }
        let confirm_after = self.config.timing.confirm_after;
        self.next_sweep = now + confirm_after / 24;
        for id in self.observers.all().collect::<Vec<_>>() {
            let is_silent = self.observers.observer(id).is_some_and(|observer| {
                now.saturating_duration_since(observer.confirmed_at) >= confirm_after
            });
            if is_silent {
                self.sequence = self.sequence.wrapping_add(1);
                self.notify_observer(now, id, resources);
            }
        }
    }

    fn notify_observer(&mut self, now: Instant, id: ObserverId, resources: &mut dyn Resources) {
        let timing = &self.config.timing;
        let Some(observer) = self.observers.observer(id) else {
            return;
        };
        if observer.exchange.is_some() || self.outbox.is_crowded() {
            let is_first = !std::mem::replace(&mut observer.is_behind, true);
            self.counters.notifications_coalesced += u64::from(!is_first);
            if is_first && observer.exchange.is_none() {
                if self.behind.is_empty() {
                    self.behind_since = now;
                }
                self.behind.push_back(id);
            }
            return;
        }
        // An older notification may still stand in the queue of those that wait for room; this one replaces it.
        observer.is_behind = false;
        let peer = observer.peer;
        let is_due = observer.unconfirmed + 1 >= timing.confirm_every
            || now.saturating_duration_since(observer.confirmed_at) >= timing.confirm_after;
        // A peer that has not acknowledged the last message yet is not sent another confirmable one (NSTART).
        let is_confirmable = is_due && !self.exchanges.is_busy(peer, timing) && !self.exchanges.is_full();
        let kind = if is_confirmable { Kind::Confirmable } else { Kind::NonConfirmable };
        let message_id = self.ids.next(peer);
        let Some(code) = self.write_notification(now, id, kind, message_id, resources) else {
            return;
        };
        self.counters.notifications += 1;
        let exchange = if is_confirmable {
            self.send_confirmable(now, peer, message_id, Owner::Notification(id))
        } else {
            let scratch = std::mem::take(&mut self.scratch);
            self.send(peer, |out| out.extend_from_slice(&scratch));
            self.scratch = scratch;
            None
        };
        if let Some(observer) = self.observers.observer(id) {
            observer.exchange = exchange;
            observer.unconfirmed =
                if exchange.is_some() { 0 } else { observer.unconfirmed.saturating_add(1) };
            observer.note_sent(message_id);
        }
        if !code.is_success() {
            // The message that says so goes on.
            self.observers.remove(id);
        }
    }

    /// Writes the present representation into `scratch`; `None` when there is nothing to say. A failure is said
    /// without Observe and ends the observation (RFC 7641 §4.2).
    fn write_notification(
        &mut self,
        now: Instant,
        id: ObserverId,
        kind: Kind,
        message_id: u16,
        resources: &mut dyn Resources,
    ) -> Option<Code> {
        let observer = self.observers.observer(id)?;
        let (peer, registration) = (observer.peer, std::mem::take(&mut observer.request));
        let message = Message::parse(&registration).expect("it was read when it was registered");
        let mut request =
            Request::read(peer, Ticket(u64::MAX), message).expect("it was read when it was registered");
        request.is_notification = true;
        let response = represent(&request, resources);
        let code = response.as_ref().map(|response| response.code);
        if let Some(response) = response {
            self.keep_snapshot(now, &request, &response);
            let observe = response.code.is_success().then_some(self.sequence);
            let exponent = self.config.limits.block_exponent;
            let envelope = Envelope { kind, id: message_id, observe, block1: None, exponent };
            self.scratch.clear();
            write_response(&mut self.scratch, &request, &response, envelope);
        }
        if let Some(observer) = self.observers.observer(id) {
            observer.request = registration;
        }
        code
    }

    /// Removes an observer and the notification that is under way to it.
    fn remove_observer(&mut self, id: ObserverId) -> bool {
        let Some(observer) = self.observers.remove(id) else {
            return false;
        };
        if let Some(exchange) = observer.exchange {
            self.exchanges.cancel(exchange);
        }
        true
    }
}

/// Carries a registration out once more.
fn represent(request: &Request<'_>, resources: &mut dyn Resources) -> Option<Response> {
    let Some(resource) = resources.find(request) else {
        return Some(Response::new(Code::NOT_FOUND));
    };
    let id = resource.id;
    match negotiate(request, resource.offers) {
        Err(response) => Some(response),
        Ok(format) => match resources.answer(id, request, format) {
            Answer::Now(response) => Some(response),
            Answer::Later | Answer::Nothing => None,
        },
    }
}
