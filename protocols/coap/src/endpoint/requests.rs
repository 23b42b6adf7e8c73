//! Requests of ours (RFC 7252 §5, RFC 7641 §3, RFC 7959): sending, matching responses, fetching blocks.

use std::collections::hash_map::Entry;
use std::time::Instant;

use super::Endpoint;
use crate::Peer;
use crate::client::{Event, Failure, Fetch, Outgoing, Part, Pending, Received, RequestId};
use crate::exchange::Owner;
use crate::observe::is_newer;
use crate::wire::{Block, Code, Kind, Message, Token, Writer, number};

impl Endpoint {
    /// Sends a request. Its outcome comes as [`Event`]s under the name that is returned; `None` when too many
    /// requests are under way.
    pub fn request(&mut self, now: Instant, peer: Peer, outgoing: Outgoing) -> Option<RequestId> {
        if self.requests.pending.len() >= self.config.limits.requests {
            return None;
        }
        let id = self.requests.next_id();
        let token = self.new_token(peer, id);
        let exponent = self.config.limits.block_exponent;
        let part =
            if outgoing.payload.len() > 16 << exponent { outgoing.upload(0, exponent) } else { Part::Whole };
        let pending = Pending {
            peer,
            outgoing,
            token,
            exchange: None,
            part,
            observed: None,
            fetch: None,
            expiry: None,
        };
        self.requests.pending.insert(id, pending);
        if self.send_part(now, id, token, part) {
            return Some(id);
        }
        self.requests.remove(id);
        None
    }

    /// Forgets a request or ends an observation. The next notification is answered with a reset, which ends it at
    /// the server (RFC 7641 §3.6).
    pub fn cancel(&mut self, now: Instant, request: RequestId) {
        if let Some(pending) = self.requests.remove(request) {
            if let Some(exchange) = pending.exchange {
                self.exchanges.cancel(exchange);
            }
            self.take_turns(now, pending.peer);
        }
    }

    pub(super) fn handle_response(&mut self, now: Instant, peer: Peer, message: Message<'_>) {
        let request = self.requests.tokens.get(&(peer, message.token)).copied();
        match message.kind {
            Kind::Acknowledgement => {
                // A response by an acknowledgement counts only for the message that it acknowledges.
                let owner = self.exchanges.finish(peer, message.id);
                if let Some(Owner::Request(id)) = owner {
                    if let Some(pending) = self.requests.pending.get_mut(&id) {
                        pending.exchange = None;
                    }
                    if request == Some(id) {
                        self.deliver(now, id, &message);
                    }
                }
                self.take_turns(now, peer);
            }
            Kind::Confirmable => {
                let key = self.duplicates.key(peer, message.id);
                if self.duplicates.find(now, key).is_some() {
                    self.counters.duplicates += 1;
                    let duplicates = &self.duplicates;
                    self.outbox.write(peer, |out| duplicates.write_reply(key, out));
                    return;
                }
                let kind = if request.is_some() { Kind::Acknowledgement } else { Kind::Reset };
                self.send_empty(peer, kind, message.id);
                if let Some(id) = request {
                    self.duplicates.begin(now, key, now + self.config.timing.exchange_lifetime());
                    let mut acknowledgement = Vec::new();
                    Writer::empty(&mut acknowledgement, kind, message.id);
                    self.duplicates.finish(key, &acknowledgement);
                    self.deliver_separate(now, id, &message);
                }
            }
            Kind::NonConfirmable => match request {
                Some(id) => self.deliver_separate(now, id, &message),
                // Somebody believes that we observe something.
                None if message.value(number::OBSERVE).is_some() => {
                    self.send_empty(peer, Kind::Reset, message.id);
                }
                None => {}
            },
            Kind::Reset => {}
        }
    }

    pub(super) fn handle_request_reset(&mut self, id: RequestId) {
        self.fail(id, Failure::Reset);
    }

    pub(super) fn handle_request_timeout(&mut self, id: RequestId) {
        self.fail(id, Failure::Timeout);
    }

    pub(super) fn expire_requests(&mut self, now: Instant) {
        while let Some(id) = self.requests.expired(now) {
            let peer = self.requests.pending.get(&id).map(|pending| pending.peer);
            self.fail(id, Failure::Timeout);
            if let Some(peer) = peer {
                self.take_turns(now, peer);
            }
        }
    }

    /// A response as a message of its own also says that the request has arrived.
    fn deliver_separate(&mut self, now: Instant, id: RequestId, message: &Message<'_>) {
        if let Some(pending) = self.requests.pending.get_mut(&id) {
            let peer = pending.peer;
            let is_of_last_sent = pending.fetch.as_ref().is_none_or(|fetch| fetch.token == message.token);
            if let Some(exchange) = pending.exchange.take_if(|_| is_of_last_sent) {
                self.exchanges.cancel(exchange);
                self.take_turns(now, peer);
            }
        }
        self.deliver(now, id, message);
    }

    fn deliver(&mut self, now: Instant, id: RequestId, message: &Message<'_>) {
        let Some(response) = Received::read(message) else {
            return self.fail(id, Failure::BadResponse);
        };
        let Some(pending) = self.requests.pending.get_mut(&id) else {
            return;
        };
        let block2 = match message.value(number::BLOCK2).map(Block::parse) {
            Some(None) => return self.fail(id, Failure::BadResponse),
            Some(block) => block,
            None => None,
        };
        if pending.fetch.as_ref().is_some_and(|fetch| fetch.token == message.token) {
            return self.deliver_block(now, id, response, block2);
        }
        if let (Code::CONTINUE, Part::Upload(sent)) = (message.code, pending.part) {
            return self.upload_next(now, id, sent, message);
        }
        if let Some(number) = response.observe.filter(|_| pending.outgoing.observe) {
            if pending.observed.is_some_and(|last| !is_newer(last, (number, now))) {
                return;
            }
            pending.observed = Some((number, now));
            // A body that is still being fetched is older than this one.
            if let Some(fetch) = pending.fetch.take() {
                self.requests.tokens.remove(&(pending.peer, fetch.token));
                if let Some(exchange) = pending.exchange.take() {
                    self.exchanges.cancel(exchange);
                }
            }
        }
        match block2 {
            Some(block) if block.more && response.code.is_success() => {
                if response.payload.len() != block.size() || block.number != 0 {
                    return self.fail(id, Failure::BadResponse);
                }
                self.fetch(now, id, response, block.exponent, 0);
            }
            _ => self.complete(now, id, response),
        }
    }

    /// Asks for the block behind what has come of a response.
    fn fetch(&mut self, now: Instant, id: RequestId, response: Received, exponent: u8, restarts: u8) {
        let Some(pending) = self.requests.pending.get_mut(&id) else {
            return;
        };
        let (peer, old) = (pending.peer, pending.fetch.take());
        let token = old.map_or_else(|| self.new_token(peer, id), |fetch| fetch.token);
        let number = (response.payload.len() >> (4 + exponent)) as u32;
        let part = Part::Fetch(Block { number, more: false, exponent });
        if let Some(pending) = self.requests.pending.get_mut(&id) {
            pending.fetch = Some(Fetch { token, response, restarts });
            pending.part = part;
        }
        if !self.send_part(now, id, token, part) {
            self.fail(id, Failure::Timeout);
        }
    }

    fn deliver_block(&mut self, now: Instant, id: RequestId, response: Received, block: Option<Block>) {
        let limit = self.config.limits.body_bytes;
        let Some(pending) = self.requests.pending.get_mut(&id) else {
            return;
        };
        let Some(fetch) = &mut pending.fetch else {
            return;
        };
        if !response.code.is_success() {
            return self.complete(now, id, response);
        }
        let Some(block) = block else {
            return self.fail(id, Failure::BadResponse);
        };
        let is_full = !block.more || response.payload.len() == block.size();
        if block.offset() != fetch.response.payload.len() || response.etag != fetch.response.etag || !is_full
        {
            // The representation has changed meanwhile: begin anew, but not for ever.
            let (restarts, exponent) = (fetch.restarts + 1, block.exponent);
            if restarts > MAX_RESTARTS {
                return self.fail(id, Failure::BadResponse);
            }
            if block.number == 0 && is_full {
                let response = Received { observe: fetch.response.observe, ..response };
                if block.more {
                    self.fetch(now, id, response, exponent, restarts);
                } else {
                    self.complete(now, id, response);
                }
                return;
            }
            let empty = Received { payload: Vec::new(), etag: None, ..fetch.response.clone() };
            return self.fetch(now, id, empty, exponent, restarts);
        }
        if fetch.response.payload.len() + response.payload.len() > limit {
            return self.fail(id, Failure::TooLarge);
        }
        fetch.response.payload.extend_from_slice(&response.payload);
        let (whole, restarts) = (fetch.response.clone(), fetch.restarts);
        if block.more {
            self.fetch(now, id, whole, block.exponent, restarts);
        } else {
            self.complete(now, id, whole);
        }
    }

    /// The server has the block and waits for the next one, perhaps a smaller one (RFC 7959 §2.5).
    fn upload_next(&mut self, now: Instant, id: RequestId, sent: Block, message: &Message<'_>) {
        let answer = message.value(number::BLOCK1).and_then(Block::parse);
        let Some(pending) = self.requests.pending.get_mut(&id) else {
            return;
        };
        let offset = sent.offset() + sent.size();
        if !sent.more || answer.is_none_or(|answer| answer.exponent > sent.exponent) {
            return self.fail(id, Failure::BadResponse);
        }
        let exponent = answer.map_or(sent.exponent, |answer| answer.exponent);
        let part = pending.outgoing.upload(offset, exponent);
        let token = pending.token;
        pending.part = part;
        if !self.send_part(now, id, token, part) {
            self.fail(id, Failure::Timeout);
        }
    }

    /// Hands a whole response over.
    fn complete(&mut self, now: Instant, id: RequestId, response: Received) {
        let Some(pending) = self.requests.pending.get_mut(&id) else {
            return;
        };
        let goes_on = pending.outgoing.observe && response.observe.is_some() && response.code.is_success();
        if goes_on {
            if let Some(fetch) = pending.fetch.take() {
                self.requests.tokens.remove(&(pending.peer, fetch.token));
            }
            self.requests.set_expiry(id, None);
            if self.events.len() >= self.config.limits.events {
                self.counters.events_full += 1;
                return;
            }
        } else {
            self.cancel(now, id);
        }
        self.events.push_back(Event::Response { request: id, response, is_last: !goes_on });
    }

    fn fail(&mut self, id: RequestId, failure: Failure) {
        let Some(pending) = self.requests.remove(id) else {
            return;
        };
        if let Some(exchange) = pending.exchange {
            self.exchanges.cancel(exchange);
        }
        self.events.push_back(Event::Failed { request: id, failure });
    }

    /// Sends a message of a request. `false` when there was no room for it.
    fn send_part(&mut self, now: Instant, id: RequestId, token: Token, part: Part) -> bool {
        let Some(peer) = self.requests.pending.get(&id).map(|pending| pending.peer) else {
            return false;
        };
        let message_id = self.ids.next(peer);
        let timing = &self.config.timing;
        let expiry = now + timing.max_transmit_wait() + timing.response_timeout;
        self.requests.set_expiry(id, Some(expiry));
        let Some(pending) = self.requests.pending.get(&id) else {
            return false;
        };
        self.scratch.clear();
        pending.outgoing.write(&mut self.scratch, message_id, token, &part);
        if !pending.outgoing.is_confirmable {
            let scratch = std::mem::take(&mut self.scratch);
            let is_written = self.send(peer, |out| out.extend_from_slice(&scratch));
            self.scratch = scratch;
            return is_written;
        }
        let exchange = self.send_confirmable(now, peer, message_id, Owner::Request(id));
        if let Some(pending) = self.requests.pending.get_mut(&id) {
            pending.exchange = exchange;
        }
        exchange.is_some()
    }

    /// A token that is not in use with this peer, and hard to guess (RFC 7252 §5.3.1).
    fn new_token(&mut self, peer: Peer, id: RequestId) -> Token {
        loop {
            let bytes = self.random.next().to_be_bytes();
            let token = Token::new(&bytes[..TOKEN_BYTES]).expect("four bytes are fewer than eight");
            if let Entry::Vacant(vacant) = self.requests.tokens.entry((peer, token)) {
                vacant.insert(id);
                return token;
            }
        }
    }
}

const TOKEN_BYTES: usize = 4;
/// How often a body is fetched anew because it changed while it was fetched.
const MAX_RESTARTS: u8 = 8;
