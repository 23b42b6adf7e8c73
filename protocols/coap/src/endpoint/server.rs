//! Requests of others (RFC 7252 §5): what is the same for every resource, and the response on its way back.

use std::time::Instant;

use super::Endpoint;
use crate::Peer;
use crate::dedup::{Earlier, MessageKey};
use crate::exchange::{Owner, head};
use crate::link::Link;
use crate::request::{Refusal, Request};
use crate::resource::{Answer, Resource, ResourceId, Resources, Response, Ticket};
use crate::transfer::{Assembled, TransferKey};
use crate::wire::{Block, Code, ETag, Format, Kind, Message, Token, Writer, number};

/// A request whose resource answers later.
#[derive(Debug)]
pub(super) struct Deferred {
    peer: Peer,
    key: MessageKey,
    /// The request up to its payload.
    head: Box<[u8]>,
    block1: Option<Block>,
    /// Whether its acknowledgement has gone out empty.
    is_acknowledged: bool,
    due: Instant,
    expiry: Instant,
}

/// What became of a request.
enum Outcome {
    Reply { response: Response, observe: Option<u32>, block1: Option<Block> },
    Later { block1: Option<Block> },
}

/// What a response needs of its request to be written.
#[derive(Clone, Copy)]
pub(super) struct Envelope {
    pub(super) kind: Kind,
    pub(super) id: u16,
    pub(super) observe: Option<u32>,
    pub(super) block1: Option<Block>,
    pub(super) exponent: u8,
}

impl Endpoint {
    /// Answers a request that its resource put off. `false` when it is no longer known: it was too late.
    pub fn respond(&mut self, now: Instant, ticket: Ticket, response: &Response) -> bool {
        let Some(deferred) = self.deferred.remove(&ticket) else {
            return false;
        };
        self.deferred_timers.remove(&(deferred.due, ticket));
        let peer = deferred.peer;
        let message = Message::parse(&deferred.head).expect("it was read before it was deferred");
        let request = Request::read(peer, ticket, message).expect("it was read before it was deferred");
        if message.kind != Kind::Confirmable || !deferred.is_acknowledged {
            self.reply(&request, response, None, deferred.block1, Some(deferred.key));
            return true;
        }
        if request.suppresses(response.code) {
            return true;
        }
        self.keep_snapshot(now, &request, response);
        let id = self.ids.next(peer);
        let envelope = self.envelope(Kind::Confirmable, id, None, deferred.block1);
        self.scratch.clear();
        write_response(&mut self.scratch, &request, response, envelope);
        if self.send_confirmable(now, peer, id, Owner::Response).is_none() {
            let envelope = self.envelope(Kind::NonConfirmable, id, None, deferred.block1);
            self.send(peer, |out| write_response(out, &request, response, envelope));
        }
        true
    }

    pub(super) fn handle_request(
        &mut self,
        now: Instant,
        peer: Peer,
        is_multicast: bool,
        message: Message<'_>,
        resources: &mut dyn Resources,
    ) {
        let mut body = Vec::new();
        let mut request = match Request::read(peer, Ticket(self.next_ticket), message) {
            Ok(request) => request,
            Err(refusal) => return self.refuse(peer, message, refusal),
        };
        request.is_multicast = is_multicast;
        let is_safe = message.code.is_safe();
        let mut key = None;
        // A safe request is carried out again rather than remembered (RFC 7252 §4.5), unless it is still under way.
        if !is_safe || now < self.safe_pending_until {
            let message_key = self.duplicates.key(peer, message.id);
            if let Some(earlier) = self.duplicates.find(now, message_key) {
                return self.repeat_reply(peer, message.kind, message_key, earlier);
            }
            if !is_safe {
                self.duplicates.begin(now, message_key, now + self.config.timing.exchange_lifetime());
                key = Some(message_key);
            }
        }
        self.counters.requests += 1;
        match self.carry_out(now, &mut request, &mut body, resources) {
            Outcome::Reply { response, observe, block1 } => {
                self.counters.refused += u64::from(response.code.class() == 4);
                self.reply(&request, &response, observe, block1, key);
            }
            Outcome::Later { block1 } => self.defer(now, &request, block1),
        }
    }

    /// A message that came before gets what was said then; a non-confirmable one gets nothing (RFC 7252 §4.5).
    fn repeat_reply(&mut self, peer: Peer, kind: Kind, key: MessageKey, earlier: Earlier) {
        self.counters.duplicates += 1;
        if kind == Kind::Confirmable && earlier == Earlier::Replied {
            let duplicates = &self.duplicates;
            let is_written = self.outbox.write(peer, |out| duplicates.write_reply(key, out));
            self.counters.outbox_full += u64::from(!is_written);
        }
    }

    /// Options that cannot be honoured: 4.02 or 4.00 when confirmable, else silence (RFC 7252 §5.4.1).
    fn refuse(&mut self, peer: Peer, message: Message<'_>, refusal: Refusal) {
        self.counters.refused += 1;
        if message.kind != Kind::Confirmable {
            return;
        }
        let (code, diagnostic) = match refusal {
            Refusal::BadOption(number) => (Code::BAD_OPTION, format!("option {number}")),
            Refusal::BadBlock => (Code::BAD_REQUEST, "block size 7 is reserved".to_owned()),
            Refusal::PathTooLong => (Code::NOT_FOUND, String::new()),
        };
        self.send(peer, |out| {
            let writer = Writer::new(out, Kind::Acknowledgement, code, message.id, message.token);
            writer.payload(diagnostic.as_bytes());
        });
    }

    fn carry_out<'a>(
        &mut self,
        now: Instant,
        request: &mut Request<'a>,
        body: &'a mut Vec<u8>,
        resources: &mut dyn Resources,
    ) -> Outcome {
        let mut block1 = None;
        let refused = |response: Response, block1| Outcome::Reply { response, observe: None, block1 };
        if request.is_for_proxy {
            return refused(Response::new(Code::PROXYING_NOT_SUPPORTED), None);
        }
        if request.observe == Some(1) && request.code() == Code::GET {
            self.deregister(request.peer, request.message.token);
        }
        let later_block = request.block2.filter(|block| block.number > 0 && request.code() == Code::GET);
        if later_block.is_some() {
            let key = TransferKey::of(request, self.seed);
            if let Some(response) = self.snapshots.find(now, key, self.config.timing.block_lifetime) {
                return refused(response.clone(), None);
            }
        }
        let response = if is_well_known_core(request) {
            if request.code() != Code::GET {
                return refused(Response::new(Code::METHOD_NOT_ALLOWED), None);
            }
            if request.accept.is_some_and(|accept| accept != Format::LINK_FORMAT) {
                return refused(Response::new(Code::NOT_ACCEPTABLE), None);
            }
            let response = well_known_core(request, resources);
            self.keep_snapshot(now, request, &response);
            response
        } else {
            let admitted = match admit(request, resources) {
                Ok(admitted) => admitted,
                Err(response) => return refused(response, request.block1),
            };
            if let Some(block) = request.block1 {
                let key = TransferKey::of(request, self.seed);
                let lifetime = self.config.timing.block_lifetime;
                match self.assemblies.add(now, key, block, request.payload, lifetime) {
                    Assembled::Continue => return refused(Response::new(Code::CONTINUE), Some(block)),
                    Assembled::Whole(whole) => {
                        *body = whole;
                        request.payload = body;
                        block1 = Some(block);
                    }
                    Assembled::Incomplete => {
                        return refused(Response::new(Code::REQUEST_ENTITY_INCOMPLETE), Some(block));
                    }
                    Assembled::TooLarge => return refused(self.too_large(), Some(block)),
                }
            } else if request.payload.len() > self.config.limits.body_bytes {
                return refused(self.too_large(), None);
            }
            if !request.code().is_safe() && self.deferred.len() >= self.config.limits.deferred {
                // Nothing may be begun whose end could not be told.
                self.counters.deferred_full += 1;
                return refused(Response::new(Code::SERVICE_UNAVAILABLE), block1);
            }
            let response = match resources.answer(admitted.id, request, admitted.format) {
                Answer::Now(response) => response,
                Answer::Nothing => Response::new(Code::SERVICE_UNAVAILABLE),
                Answer::Later => return Outcome::Later { block1 },
            };
            let is_registration =
                request.observe == Some(0) && request.code() == Code::GET && later_block.is_none();
            if is_registration && admitted.is_observable && !request.is_multicast {
                let observe = self.register(now, request, admitted.id, response.code);
                self.keep_snapshot(now, request, &response);
                return Outcome::Reply { response, observe, block1 };
            }
            self.keep_snapshot(now, request, &response);
            response
        };
        Outcome::Reply { response, observe: None, block1 }
    }

    fn too_large(&self) -> Response {
        let size1 = Some(self.config.limits.body_bytes as u32);
        Response { size1, ..Response::new(Code::REQUEST_ENTITY_TOO_LARGE) }
    }

    /// Keeps a representation of which the first of several blocks is sent now.
    pub(super) fn keep_snapshot(&mut self, now: Instant, request: &Request<'_>, response: &Response) {
        let exponent = block_exponent(request, self.config.limits.block_exponent);
        let is_first = request.block2.is_none_or(|block| block.number == 0);
        if response.code == Code::CONTENT && is_first && response.payload.len() > 16 << exponent {
            self.snapshots.keep(now, TransferKey::of(request, self.seed), response);
        }
    }

    /// Sends a response by the acknowledgement of a confirmable request or as a message of its own.
    fn reply(
        &mut self,
        request: &Request<'_>,
        response: &Response,
        observe: Option<u32>,
        block1: Option<Block>,
        key: Option<MessageKey>,
    ) {
        let (peer, message) = (request.peer, request.message);
        let is_confirmable = message.kind == Kind::Confirmable;
        // "A server MAY always ignore the request, in particular if it doesn't have anything useful to respond"
        // when it was sent to a group (RFC 7252 §8.2).
        let is_silent =
            request.suppresses(response.code) || (request.is_multicast && !response.code.is_success());
        let mut is_written = false;
        if !is_silent {
            let (kind, id) = if is_confirmable {
                (Kind::Acknowledgement, message.id)
            } else {
                (Kind::NonConfirmable, self.ids.next(peer))
            };
            let envelope = self.envelope(kind, id, observe, block1);
            is_written = self.send(peer, |out| write_response(out, request, response, envelope));
        } else if is_confirmable {
            is_written = self.send(peer, |out| Writer::empty(out, Kind::Acknowledgement, message.id));
        }
        if let Some(key) = key {
            self.duplicates.finish(key, if is_written { self.outbox.last() } else { &[] });
        }
    }

    fn envelope(&self, kind: Kind, id: u16, observe: Option<u32>, block1: Option<Block>) -> Envelope {
        Envelope { kind, id, observe, block1, exponent: self.config.limits.block_exponent }
    }

    fn defer(&mut self, now: Instant, request: &Request<'_>, block1: Option<Block>) {
        let timing = &self.config.timing;
        if self.deferred.len() >= self.config.limits.deferred {
            self.counters.deferred_full += 1;
            return self.reply(request, &Response::new(Code::SERVICE_UNAVAILABLE), None, block1, None);
        }
        let lifetime = now + timing.exchange_lifetime();
        let key = self.duplicates.key(request.peer, request.message.id);
        if request.code().is_safe() {
            self.duplicates.begin(now, key, lifetime);
            self.safe_pending_until = lifetime;
        }
        let mut bytes = Vec::new();
        head(request, &mut bytes);
        let expiry = now + timing.response_timeout;
        let due =
            if request.message.kind == Kind::Confirmable { now + timing.piggyback_window } else { expiry };
        let deferred = Deferred {
            peer: request.peer,
            key,
            head: bytes.into(),
            block1,
            is_acknowledged: false,
            due,
            expiry,
        };
        self.deferred.insert(request.ticket, deferred);
        self.deferred_timers.insert((due, request.ticket));
        self.next_ticket += 1;
    }

    /// Acknowledges requests whose resource takes its time, and ends those whose resource took too long.
    pub(super) fn expire_deferred(&mut self, now: Instant) {
        while let Some((due, ticket)) = self.deferred_timers.first().copied().filter(|(due, _)| *due <= now) {
            let Some(deferred) = self.deferred.get_mut(&ticket) else {
                self.deferred_timers.remove(&(due, ticket));
                continue;
            };
            if due >= deferred.expiry {
                self.counters.deferred_expired += 1;
                self.respond(now, ticket, &Response::new(Code::GATEWAY_TIMEOUT));
                continue;
            }
            self.deferred_timers.remove(&(due, ticket));
            deferred.is_acknowledged = true;
            deferred.due = deferred.expiry;
            self.deferred_timers.insert((deferred.expiry, ticket));
            let (peer, key) = (deferred.peer, deferred.key);
            let id = u16::from_be_bytes([deferred.head[2], deferred.head[3]]);
            let mut acknowledgement = Vec::new();
            Writer::empty(&mut acknowledgement, Kind::Acknowledgement, id);
            self.duplicates.finish(key, &acknowledgement);
            self.send(peer, |out| out.extend_from_slice(&acknowledgement));
        }
    }
}

/// A request that its resource may see.
struct Admitted {
    id: ResourceId,
    format: Option<Format>,
    is_observable: bool,
}

/// What is the same for every resource: 4.04, 4.05, 4.06, 4.12, 4.15.
fn admit(request: &Request<'_>, resources: &mut dyn Resources) -> Result<Admitted, Response> {
    let is_conditional = request.has_condition;
    let failure = |code| Err(Response::new(code));
    let Some(resource) = resources.find(request) else {
        let has_match = is_conditional && request.message.value(number::IF_MATCH).is_some();
        return failure(if has_match { Code::PRECONDITION_FAILED } else { Code::NOT_FOUND });
    };
    let Resource { id, methods, offers, takes, is_observable } = resource;
    if !methods.contains(request.code()) {
        return failure(Code::METHOD_NOT_ALLOWED);
    }
    let is_foreign = |format: Format| !takes.is_empty() && !takes.contains(&format);
    if !request.payload.is_empty() && request.format.is_some_and(is_foreign) {
        return failure(Code::UNSUPPORTED_CONTENT_FORMAT);
    }
    let format = negotiate(request, offers)?;
    if is_conditional {
        let mut tags = request.message.values(number::IF_MATCH).peekable();
        let is_mismatch =
            tags.peek().is_some() && !tags.any(|tag| tag.is_empty() || resources.has_etag(id, tag));
        if is_mismatch || request.message.value(number::IF_NONE_MATCH).is_some() {
            return failure(Code::PRECONDITION_FAILED);
        }
    }
    Ok(Admitted { id, format, is_observable })
}

/// The format to answer in; 4.06 when what is asked for is not offered.
pub(super) fn negotiate(request: &Request<'_>, offers: &[Format]) -> Result<Option<Format>, Response> {
    match request.accept {
        Some(accept) if request.code().is_safe() && !offers.is_empty() && !offers.contains(&accept) => {
            Err(Response::new(Code::NOT_ACCEPTABLE))
        }
        None => Ok(offers.first().copied()),
        accept => Ok(accept),
    }
}

fn is_well_known_core(request: &Request<'_>) -> bool {
    request.segments().eq([".well-known", "core"])
}

/// The links that pass every filter of the query.
fn well_known_core(request: &Request<'_>, resources: &dyn Resources) -> Response {
    let mut text = String::new();
    resources.links(request.peer, &mut |link: &Link<'_>| {
        if request.queries().all(|query| link.matches(query)) {
            link.write(&mut text);
        }
    });
    Response::content(Format::LINK_FORMAT, text.into_bytes())
}

/// The smaller of what the client asked for and what we send.
fn block_exponent(request: &Request<'_>, most: u8) -> u8 {
    request.block2.map_or(most, |block| block.exponent.min(most))
}

/// Writes a response: the wanted block of it, or 2.03 when the client has the representation already.
pub(super) fn write_response(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    response: &Response,
    envelope: Envelope,
) {
    let Envelope { kind, id, observe, block1, exponent } = envelope;
    let token: Token = request.message.token;
    let payload = &response.payload[..];
    let exponent = block_exponent(request, exponent);
    let size = 16usize << exponent;
    // A block that was counted in larger blocks than ours is found by its place in the body.
    let begin = request.block2.map_or(0, Block::offset);
    let is_cut = response.code.is_success() && (request.block2.is_some() || payload.len() > size);
    if is_cut && begin > 0 && begin >= payload.len() {
        return Writer::new(out, kind, Code::BAD_REQUEST, id, token).payload(b"no such block");
    }
    let etag = response.etag.or_else(|| (is_cut && payload.len() > size).then(|| ETag::of(payload)));
    let is_held = |etag: ETag| request.message.values(number::ETAG).any(|held| held == etag.as_bytes());
    let is_valid =
        response.code == Code::CONTENT && request.has_etag && begin == 0 && etag.is_some_and(is_held);
    let code = if is_valid { Code::VALID } else { response.code };
    let mut writer = Writer::new(out, kind, code, id, token);
    if let Some(etag) = etag {
        writer.option(number::ETAG, etag.as_bytes());
    }
    if let Some(observe) = observe {
        writer.uint(number::OBSERVE, observe & 0x00ff_ffff);
    }
    for segment in &response.location {
        writer.option(number::LOCATION_PATH, segment.as_bytes());
    }
    if let Some(format) = response.format.filter(|_| !is_valid) {
        writer.uint(number::CONTENT_FORMAT, format.0.into());
    }
    if let Some(max_age_s) = response.max_age_s.filter(|seconds| *seconds != DEFAULT_MAX_AGE_S) {
        writer.uint(number::MAX_AGE, max_age_s);
    }
    let end = if is_cut { (begin + size).min(payload.len()) } else { payload.len() };
    let block = (is_cut && !is_valid)
        .then(|| Block { number: (begin / size) as u32, more: end < payload.len(), exponent })
        .filter(|block| block.number <= Block::MAX_NUMBER);
    if let Some(block) = block {
        writer.uint(number::BLOCK2, block.to_bits());
    }
    if let Some(block) = block1 {
        writer.uint(number::BLOCK1, block.to_bits());
    }
    if block.is_some() && (request.wants_size || (begin == 0 && end < payload.len())) {
        writer.uint(number::SIZE2, payload.len() as u32);
    }
    if let Some(size1) = response.size1 {
        writer.uint(number::SIZE1, size1);
    }
    writer.payload(if is_valid { &[] } else { &payload[begin.min(end)..end] });
}

/// What a response is fresh for without Max-Age (RFC 7252 §5.10.5).
const DEFAULT_MAX_AGE_S: u32 = 60;
