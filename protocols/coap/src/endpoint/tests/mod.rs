//! The endpoint from outside: raw bytes in, raw bytes out (`server`), two endpoints over a bad wire (`pair`), and
//! noise (`torture`).

mod pair;
mod server;
mod torture;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Endpoint;
use crate::Peer;
use crate::config::Config;
use crate::link::Link;
use crate::request::Request;
use crate::resource::{Answer, Methods, Resource, ResourceId, Resources, Response, Ticket};
use crate::wire::{Code, ETag, Format, Kind, Message, Token, Writer};

/// A server's resources: `/value` (text, CBOR; observable; written by PUT), `/large`, `/slow` (answers later),
/// `/count` (POST counts), `/silent` (observable, has nothing to notify).
#[derive(Debug)]
pub(super) struct Store {
    pub(super) value: Vec<u8>,
    pub(super) large: Arc<[u8]>,
    pub(super) count: u32,
    pub(super) put: u32,
    pub(super) tickets: Vec<Ticket>,
    pub(super) is_gone: bool,
    pub(super) log: Vec<Vec<u8>>,
}

pub(super) const VALUE: ResourceId = ResourceId(1);
const LARGE: ResourceId = ResourceId(2);
const SLOW: ResourceId = ResourceId(3);
const COUNT: ResourceId = ResourceId(4);
const SILENT: ResourceId = ResourceId(5);
const NAMES: [(&str, ResourceId); 5] =
    [("value", VALUE), ("large", LARGE), ("slow", SLOW), ("count", COUNT), ("silent", SILENT)];

impl Default for Store {
    fn default() -> Self {
        let large: Vec<u8> = (0..5000u32).map(|n| (n / 16) as u8).collect();
        Self {
            value: b"22.3".to_vec(),
            large: large.into(),
            count: 0,
            put: 0,
            tickets: Vec::new(),
            is_gone: false,
            log: Vec::new(),
        }
    }
}

impl Resources for Store {
    fn find(&self, request: &Request<'_>) -> Option<Resource<'_>> {
        let mut segments = request.segments();
        let name = segments.next()?;
        let (_, id) =
            NAMES.into_iter().find(|known| known.0 == name).filter(|_| segments.next().is_none())?;
        if id == VALUE && self.is_gone {
            return None;
        }
        let (methods, offers, takes): (Methods, &[Format], &[Format]) = match id {
            VALUE => (
                Methods::of(&[Code::GET, Code::PUT, Code::DELETE]),
                &[Format::TEXT, Format::CBOR],
                &[Format::TEXT],
            ),
            COUNT => (Methods::of(&[Code::POST]), &[], &[]),
            SLOW => (Methods::of(&[Code::GET, Code::PUT]), &[], &[]),
            _ => (Methods::GET, &[Format::OCTET_STREAM], &[]),
        };
        Some(Resource { id, methods, offers, takes, is_observable: matches!(id, VALUE | SILENT | LARGE) })
    }

    fn answer(&mut self, id: ResourceId, request: &Request<'_>, format: Option<Format>) -> Answer {
        Answer::Now(match (id, request.code()) {
            (VALUE, Code::PUT) => {
                self.put += 1;
                self.value = request.payload.to_vec();
                self.log.push(self.value.clone());
                Response::new(Code::CHANGED)
            }
            (VALUE, Code::DELETE) => {
                self.is_gone = true;
                Response::new(Code::DELETED)
            }
            (VALUE, _) => Response::content(format.expect("negotiated"), &self.value[..])
                .tagged(ETag::of(&self.value))
                .fresh_for(30),
            (COUNT, _) => {
                self.count += 1;
                Response {
                    location: vec!["count".into(), self.count.to_string()],
                    ..Response::new(Code::CREATED)
                }
            }
            (SLOW, _) => {
                self.tickets.push(request.ticket);
                return Answer::Later;
            }
            (SILENT, _) if request.is_notification => return Answer::Nothing,
            (SILENT, _) => Response::content(Format::OCTET_STREAM, *b"x"),
            _ => Response::content(Format::OCTET_STREAM, self.large.clone()),
        })
    }

    fn has_etag(&mut self, id: ResourceId, etag: &[u8]) -> bool {
        id == VALUE && ETag::of(&self.value).as_bytes() == etag
    }

    fn links(&self, _peer: Peer, each: &mut dyn FnMut(&Link<'_>)) {
        each(&Link { path: "/value", resource_type: "t.value", is_observable: true, ..Link::default() });
        each(&Link { path: "/large", resource_type: "t.large", size: Some(5000), ..Link::default() });
    }
}

/// A server to which bytes are given by hand.
struct Bench {
    now: Instant,
    endpoint: Endpoint,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        let now = Instant::now();
        Self { now, endpoint: Endpoint::new(config, 1, now), store: Store::default() }
    }

    /// Gives a datagram to the endpoint and takes what it sends.
    fn tell(&mut self, peer: Peer, bytes: &[u8]) -> Vec<Said> {
        self.endpoint.handle_datagram(self.now, peer, false, bytes, &mut self.store);
        self.said()
    }

    /// As [`Bench::tell`], where one answer is expected.
    fn ask(&mut self, bytes: &[u8]) -> Said {
        let mut said = self.tell(peer(1), bytes);
        assert_eq!(said.len(), 1, "{said:?}");
        said.remove(0)
    }

    fn said(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        while let Some((_, bytes)) = self.endpoint.poll_transmit() {
            said.push(Said::read(bytes));
        }
        said
    }

    fn notify(&mut self, value: &[u8]) -> Vec<Said> {
        self.store.value = value.to_vec();
        self.endpoint.notify(self.now, VALUE, &mut self.store);
        self.said()
    }

    fn pass(&mut self, time: Duration) -> Vec<Said> {
        self.now += time;
        self.endpoint.handle_timeout(self.now, &mut self.store);
        self.said()
    }
}

/// A message that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    kind: Kind,
    code: Code,
    id: u16,
    token: Token,
    options: BTreeMap<u16, Vec<Vec<u8>>>,
    payload: Vec<u8>,
}

impl Said {
    fn read(bytes: &[u8]) -> Self {
        let message = Message::parse(bytes).expect("we only send what can be read");
        let mut options: BTreeMap<u16, Vec<Vec<u8>>> = BTreeMap::new();
        for (number, value) in message.options() {
            options.entry(number).or_default().push(value.to_vec());
        }
        let Message { kind, code, id, token, payload, .. } = message;
        Self { kind, code, id, token, options, payload: payload.to_vec() }
    }

    fn uint(&self, number: u16) -> Option<u32> {
        self.options.get(&number).map(|values| crate::wire::uint(&values[0]))
    }
}

fn peer(port: u16) -> Peer {
    Peer { socket: 0, address: ([127, 0, 0, 1], port).into() }
}

/// A request with options given as numbers and bytes, in order.
fn request(kind: Kind, code: Code, id: u16, options: &[(u16, &[u8])], payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let token = Token::new(&id.to_be_bytes()).expect("two bytes");
    let mut writer = Writer::new(&mut bytes, kind, code, id, token);
    for (number, value) in options {
        writer.option(*number, value);
    }
    writer.payload(payload);
    bytes
}

fn con(code: Code, id: u16, options: &[(u16, &[u8])], payload: &[u8]) -> Vec<u8> {
    request(Kind::Confirmable, code, id, options, payload)
}
