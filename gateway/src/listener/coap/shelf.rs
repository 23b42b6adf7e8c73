//! The resources: devices and their channels, as the engine asks for them: [`Shelf`].
//!
//! A representation is made when it is first asked for after a reading has come, and kept until the next one: a GET is
//! then a copy.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use coap::{
    Answer, Code, ETag, Endpoint, Link, Methods, Peer, Request, Resource, ResourceId, Resources, Response,
    Ticket,
};
use drivers::{Kind, Value};
use tokio::sync::{mpsc, oneshot};

use super::CommandRequest;
use super::mailbox::Change;
use crate::command::{Refusal, parse_expiry};
use crate::payload::{self, Format};
use crate::reading::{Channel, ChannelId, Reading};

/// Everything that is served.
pub(super) struct Shelf {
    gateway: String,
    /// Whether commands are taken on each socket.
    writable: Vec<bool>,
    entries: HashMap<ResourceId, Entry>,
    by_path: HashMap<String, ResourceId>,
    next_id: u64,
    /// Devices of which readings have come; their observers are told together, a little later.
    changed: BTreeSet<ResourceId>,
    changed_at: Option<Instant>,
    commands: mpsc::Sender<CommandRequest>,
    /// Commands whose outcome is not known yet; the engine bounds them (`Limits::deferred`).
    pending: Vec<(Ticket, oneshot::Receiver<Result<Value, Refusal>>)>,
    waker: Waker,
    commanded: u64,
}

/// One resource.
enum Entry {
    Device { name: String, channels: BTreeMap<ChannelId, ResourceId>, cache: Cache },
    Channel(Shown),
}

struct Shown {
    channel: Arc<Channel>,
    device: ResourceId,
    reading: Option<Reading>,
    received: Option<Instant>,
    max_age_s: u32,
    cache: Cache,
}

/// Representations that were made since the last reading.
#[derive(Default)]
struct Cache {
    text: Option<Response>,
    json: Option<Response>,
    cbor: Option<Response>,
}

impl Shelf {
    pub(super) fn new(
        gateway: String,
        writable: Vec<bool>,
        commands: mpsc::Sender<CommandRequest>,
        waker: Waker,
    ) -> Self {
        Self {
            gateway,
            writable,
            entries: HashMap::new(),
            by_path: HashMap::new(),
            next_id: ROOT.0 + 1,
            changed: BTreeSet::new(),
            changed_at: None,
            commands,
            pending: Vec::new(),
            waker,
            commanded: 0,
        }
    }

    /// Commands handed to the desk.
    pub(super) fn commands(&self) -> u64 {
        self.commanded
    }

    /// Adds, replaces or takes away a device's channels.
    pub(super) fn change_device(
        &mut self,
        now: Instant,
        device: &str,
        change: Change,
        endpoint: &mut Endpoint,
    ) {
        if change.is_removed {
            for id in self.remove_device(device) {
                endpoint.notify(now, id, self);
            }
        }
        if change.channels.is_empty() {
            return;
        }
        let device_id = self.id_of(device);
        for channel in change.channels {
            let id = self.id_of(channel.id.as_str());
            if let Some(Entry::Channel(shown)) = self.entries.get_mut(&id) {
                shown.channel = channel;
                shown.cache = Cache::default();
                continue;
            }
            let entry = self.entries.entry(device_id).or_insert_with(|| Entry::Device {
                name: device.to_owned(),
                channels: BTreeMap::new(),
                cache: Cache::default(),
            });
            if let Entry::Device { channels, .. } = entry {
                channels.insert(channel.id.clone(), id);
            }
            let shown = Shown {
                channel,
                device: device_id,
                reading: None,
                received: None,
                max_age_s: MAX_AGE_S,
                cache: Cache::default(),
            };
            self.entries.insert(id, Entry::Channel(shown));
        }
    }

    /// Takes a reading in. Returns the resource whose observers are to be told; `None` for a channel that is not (or
    /// no longer) announced.
    pub(super) fn put(&mut self, now: Instant, reading: Reading) -> Option<ResourceId> {
        let id = *self.by_path.get(reading.channel.id.as_str())?;
        let Some(Entry::Channel(shown)) = self.entries.get_mut(&id) else {
            return None;
        };
        // Fresh until the reading after the next is due, as far as the pace so far tells.
        if let Some(before) = shown.received.replace(now) {
            let pace = now.saturating_duration_since(before).as_secs_f64();
            shown.max_age_s = ((2.0 * pace).ceil() as u32).clamp(1, MAX_AGE_S);
        }
        shown.reading = Some(reading);
        shown.cache = Cache::default();
        let device = shown.device;
        if let Some(Entry::Device { cache, .. }) = self.entries.get_mut(&device) {
            *cache = Cache::default();
        }
        self.changed.insert(device);
        self.changed_at.get_or_insert(now);
        Some(id)
    }

    /// When [`Shelf::notify_devices`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.changed_at.map(|at| at + GATHER_FOR)
    }

    /// Tells the observers of devices, once for all readings that came together.
    pub(super) fn notify_devices(&mut self, now: Instant, endpoint: &mut Endpoint) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        self.changed_at = None;
        for id in std::mem::take(&mut self.changed) {
            endpoint.notify(now, id, self);
        }
    }

    /// The next command whose outcome is known, and how to tell its client.
    pub(super) fn next_outcome(&mut self) -> Option<(Ticket, Response)> {
        let mut context = Context::from_waker(&self.waker);
        let is_ready =
            |(index, (_, reply)): (usize, &mut (Ticket, oneshot::Receiver<_>))| match Pin::new(reply)
                .poll(&mut context)
            {
                Poll::Ready(outcome) => Some((index, outcome)),
                Poll::Pending => None,
            };
        let (index, outcome) = self.pending.iter_mut().enumerate().find_map(is_ready)?;
        let (ticket, _) = self.pending.swap_remove(index);
        let response = match outcome {
            Ok(Ok(_)) => Response::new(Code::CHANGED),
            Ok(Err(refusal)) => Response::failure(code_of(&refusal), &refusal.to_string()),
            Err(_) => Response::failure(Code::SERVICE_UNAVAILABLE, "the gateway is stopping"),
        };
        Some((ticket, response))
    }

    /// The resource of a path, named anew if need be.
    fn id_of(&mut self, path: &str) -> ResourceId {
        if let Some(id) = self.by_path.get(path) {
            return *id;
        }
        let id = ResourceId(self.next_id);
        self.next_id += 1;
        self.by_path.insert(path.to_owned(), id);
        id
    }

    /// Takes a device and its channels away; returns what they were.
    fn remove_device(&mut self, device: &str) -> Vec<ResourceId> {
        let Some(device_id) = self.by_path.remove(device) else {
            return Vec::new();
        };
        let mut gone = vec![device_id];
        if let Some(Entry::Device { channels, .. }) = self.entries.remove(&device_id) {
            for (channel, id) in channels {
                self.by_path.remove(channel.as_str());
                self.entries.remove(&id);
                gone.push(id);
            }
        }
        self.changed.remove(&device_id);
        gone
    }

    /// Hands a command to the desk.
    fn command(&mut self, id: ResourceId, request: &Request<'_>) -> Answer {
        let refuse = |code, text| Answer::Now(Response::failure(code, text));
        if !self.writable.get(usize::from(request.peer.socket)).is_some_and(|is_writable| *is_writable) {
            return refuse(Code::FORBIDDEN, "read-only at this address");
        }
        let Some(Entry::Channel(shown)) = self.entries.get(&id) else {
            return refuse(Code::NOT_FOUND, "");
        };
        let format = match request.format {
            Some(coap::Format::SENML_JSON) => Format::SenmlJson,
            Some(coap::Format::SENML_CBOR) => Format::SenmlCbor,
            _ => Format::Text,
        };
        let (mut id, mut expires_ns) = (None, None);
        for argument in request.queries() {
            match argument.split_once('=') {
                Some(("id", value)) => id = Some(value.to_owned()),
                Some(("expires", value)) => match parse_expiry(value) {
                    Ok(unix_ns) => expires_ns = Some(unix_ns),
                    Err(why) => return refuse(Code::BAD_REQUEST, &why),
                },
                _ => return refuse(Code::BAD_REQUEST, "arguments are id=… and expires=…"),
            }
        }
        let (reply, outcome) = oneshot::channel();
        let command = CommandRequest {
            channel: shown.channel.id.clone(),
            format,
            value: request.payload.to_vec(),
            source: format!("coap {}", request.peer.address),
            id,
            expires_ns,
            reply,
        };
        if self.commands.try_send(command).is_err() {
            let busy = Response::failure(Code::SERVICE_UNAVAILABLE, "too many commands at once");
            return Answer::Now(busy.fresh_for(1));
        }
        self.commanded += 1;
        self.pending.push((request.ticket, outcome));
        Answer::Later
    }

    fn read_device(&mut self, id: ResourceId, format: Option<coap::Format>) -> Answer {
        let Some(Entry::Device { channels, cache, .. }) = self.entries.get(&id) else {
            return Answer::Now(Response::new(Code::NOT_FOUND));
        };
        if let Some(response) = cache.get(format) {
            return Answer::Now(response.clone());
        }
        let shown = channels.values().filter_map(|id| match self.entries.get(id) {
            Some(Entry::Channel(shown)) => Some(shown),
            _ => None,
        });
        let with_reading: Vec<_> = shown.filter(|shown| shown.reading.is_some()).collect();
        let readings: Vec<&Reading> =
            with_reading.iter().filter_map(|shown| shown.reading.as_ref()).collect();
        if readings.is_empty() {
            return Answer::Now(nothing_yet());
        }
        let max_age_s = with_reading.iter().map(|shown| shown.max_age_s).min().unwrap_or(MAX_AGE_S);
        let response = senml(&self.gateway, &readings, format).fresh_for(max_age_s);
        if let Some(Entry::Device { cache, .. }) = self.entries.get_mut(&id) {
            cache.set(format, &response);
        }
        Answer::Now(response)
    }
}

impl Resources for Shelf {
    fn find(&self, request: &Request<'_>) -> Option<Resource<'_>> {
        let mut path = PathBuffer::new();
        for segment in request.segments() {
            path.push(segment)?;
        }
        let path = path.as_str();
        if path.is_empty() {
            let (id, methods) = (ROOT, Methods::GET);
            return Some(Resource {
                id,
                methods,
                offers: &[coap::Format::TEXT],
                takes: &[],
                is_observable: false,
            });
        }
        let id = *self.by_path.get(path)?;
        let (methods, offers): (_, &[_]) = match self.entries.get(&id)? {
            Entry::Device { .. } => (Methods::GET, &FORMATS[1..]),
            Entry::Channel(shown) if shown.channel.spec.kind == Kind::Actuator => (ACTUATOR, &FORMATS),
            Entry::Channel(_) => (Methods::GET, &FORMATS),
        };
        Some(Resource { id, methods, offers, takes: &FORMATS, is_observable: true })
    }

    fn answer(&mut self, id: ResourceId, request: &Request<'_>, format: Option<coap::Format>) -> Answer {
        if id == ROOT {
            let text = format!("Tidegate {}. Try GET /.well-known/core\n", self.gateway);
            return Answer::Now(Response::content(coap::Format::TEXT, text.into_bytes()));
        }
        if request.code() != Code::GET {
            return self.command(id, request);
        }
        match self.entries.get_mut(&id) {
            Some(Entry::Channel(shown)) => shown.read(&self.gateway, request.is_notification, format),
            Some(Entry::Device { .. }) => self.read_device(id, format),
            None => Answer::Now(Response::new(Code::NOT_FOUND)),
        }
    }

    fn has_etag(&mut self, id: ResourceId, etag: &[u8]) -> bool {
        let Some(Entry::Channel(shown)) = self.entries.get_mut(&id) else {
            return false;
        };
        FORMATS.into_iter().any(|format| match shown.read(&self.gateway, false, Some(format)) {
            Answer::Now(response) => response.etag.is_some_and(|tag| tag.as_bytes() == etag),
            _ => false,
        })
    }

    fn links(&self, _peer: Peer, each: &mut dyn FnMut(&Link<'_>)) {
        let root = Link { path: "/", resource_type: "tidegate", formats: &FORMATS[..1], ..Link::default() };
        each(&Link { title: &self.gateway, ..root });
        let devices: BTreeMap<_, _> = self
            .entries
            .values()
            .filter_map(|entry| match entry {
                Entry::Device { name, channels, .. } => Some((name, channels)),
                Entry::Channel(_) => None,
            })
            .collect();
        for (name, channels) in devices {
            let shown: Vec<_> = channels
                .values()
                .filter_map(|id| match self.entries.get(id) {
                    Some(Entry::Channel(shown)) => Some(shown),
                    _ => None,
                })
                .collect();
            let is_simulated = shown.iter().any(|shown| shown.channel.is_simulated);
            // A batch (draft-ietf-core-interfaces §3.2): one GET for all its channels.
            each(&Link {
                path: &format!("/{name}"),
                resource_type: "tidegate.device",
                interface: "core.b",
                formats: &FORMATS[1..],
                title: &title(name, is_simulated),
                size: None,
                is_observable: true,
            });
            for shown in shown {
                let channel = &shown.channel;
                let kind = match channel.spec.kind {
                    Kind::Sensor => "sensor",
                    Kind::Counter => "counter",
                    Kind::Actuator => "actuator",
                };
                each(&Link {
                    path: &format!("/{}", channel.id),
                    resource_type: &format!("tidegate.{}", channel.spec.class.unwrap_or(kind)),
                    interface: if channel.spec.kind == Kind::Actuator { "core.a" } else { "core.s" },
                    formats: &FORMATS,
                    title: &title(&channel.spec.title, channel.is_simulated),
                    size: None,
                    is_observable: true,
                });
            }
        }
    }
}

impl Shown {
    fn read(&mut self, gateway: &str, is_notification: bool, format: Option<coap::Format>) -> Answer {
        if let Some(response) = self.cache.get(format) {
            return Answer::Now(response.clone());
        }
        let Some(reading) = &self.reading else {
            return Answer::Now(nothing_yet());
        };
        let response = if format.is_none_or(|format| format == coap::Format::TEXT) {
            match payload::text(reading) {
                Some(text) => {
                    let etag = ETag::of(text.as_bytes());
                    Response::content(coap::Format::TEXT, text.into_bytes()).tagged(etag)
                }
                // A failure would end the observation; the value that the client has only grows old.
                None if is_notification => return Answer::Nothing,
                None => {
                    let words = payload::quality_text(reading.quality);
                    let failure = Response::failure(Code::SERVICE_UNAVAILABLE, &words);
                    return Answer::Now(failure.fresh_for(self.max_age_s));
                }
            }
        } else {
            senml(gateway, &[reading], format)
        };
        let response = response.fresh_for(self.max_age_s);
        self.cache.set(format, &response);
        Answer::Now(response)
    }
}

impl Cache {
    fn get(&self, format: Option<coap::Format>) -> Option<&Response> {
        match format {
            Some(coap::Format::SENML_JSON) => self.json.as_ref(),
            Some(coap::Format::SENML_CBOR) => self.cbor.as_ref(),
            _ => self.text.as_ref(),
        }
    }

    fn set(&mut self, format: Option<coap::Format>, response: &Response) {
        let place = match format {
            Some(coap::Format::SENML_JSON) => &mut self.json,
            Some(coap::Format::SENML_CBOR) => &mut self.cbor,
            _ => &mut self.text,
        };
        *place = Some(response.clone());
    }
}

/// A path without its first slash, on the stack; none of ours is longer.
struct PathBuffer {
    bytes: [u8; MAX_PATH],
    len: usize,
}

impl PathBuffer {
    fn new() -> Self {
        Self { bytes: [0; MAX_PATH], len: 0 }
    }

    /// `None` when it gets longer than any path of ours. A slash within a segment is no separator.
    fn push(&mut self, segment: &str) -> Option<()> {
        let start = self.len + usize::from(self.len > 0);
        let place = self.bytes.get_mut(start..start + segment.len())?;
        if segment.is_empty() || segment.contains('/') {
            return None;
        }
        place.copy_from_slice(segment.as_bytes());
        if start > 0 {
            self.bytes[start - 1] = b'/';
        }
        self.len = start + segment.len();
        Some(())
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

fn senml(gateway: &str, readings: &[&Reading], format: Option<coap::Format>) -> Response {
    let (format, bytes) = match format {
        Some(coap::Format::SENML_CBOR) => (coap::Format::SENML_CBOR, payload::senml_cbor(gateway, readings)),
        _ => (coap::Format::SENML_JSON, payload::senml_json(gateway, readings)),
    };
    let etag = ETag::of(&bytes);
    Response::content(format, bytes).tagged(etag)
}

fn nothing_yet() -> Response {
    Response::failure(Code::SERVICE_UNAVAILABLE, "no reading yet").fresh_for(1)
}

fn title(title: &str, is_simulated: bool) -> String {
    if is_simulated { format!("{title} (simulated)") } else { title.to_owned() }
}

fn code_of(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Unknown(_) => Code::NOT_FOUND,
        Refusal::NotAnActuator(_) => Code::METHOD_NOT_ALLOWED,
        Refusal::BadValue(_) => Code::BAD_REQUEST,
        Refusal::Expired | Refusal::ClockUnset => Code::CONFLICT,
        Refusal::Failed(_) | Refusal::Uncertain(_) => Code::INTERNAL_SERVER_ERROR,
    }
}

const ROOT: ResourceId = ResourceId(0);
const FORMATS: [coap::Format; 3] = [coap::Format::TEXT, coap::Format::SENML_JSON, coap::Format::SENML_CBOR];
const ACTUATOR: Methods = Methods::of(&[Code::GET, Code::PUT, Code::POST]);
/// Two names of 64 bytes and a slash.
const MAX_PATH: usize = 129;
/// How long readings of one device are gathered before its observers are told.
const GATHER_FOR: Duration = Duration::from_millis(20);
/// What a reading is fresh for at most, in seconds: CoAP's own default.
const MAX_AGE_S: u32 = 60;
