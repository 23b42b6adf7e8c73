//! What an endpoint asks of others: [`Outgoing`] in, [`Event`]s out; and the table of what is asked, [`Requests`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use crate::Peer;
use crate::exchange::ExchangeId;
use crate::wire::{Block, Code, ETag, Format, Kind, Message, Token, Writer, number};

/// Names a request of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(crate) u64);

/// A request to be sent.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The method.
    pub code: Code,
    /// The segments of the path, at most 255 bytes each.
    pub path: Vec<String>,
    /// The arguments of the query, at most 255 bytes each.
    pub query: Vec<String>,
    /// The representation asked for.
    pub accept: Option<Format>,
    /// What the payload is.
    pub format: Option<Format>,
    /// The body; more than 1024 bytes go in blocks (Block1).
    pub payload: Vec<u8>,
    /// Whether it is repeated until acknowledged.
    pub is_confirmable: bool,
    /// Whether to be told of every change, until [`crate::Endpoint::cancel`].
    pub observe: bool,
    /// The size exponent of the blocks asked for, 0 to 6; `None` leaves it to the server.
    pub block_exponent: Option<u8>,
}

/// What a request of ours has led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A response, complete if it came in blocks.
    Response {
        /// Which request.
        request: RequestId,
        /// What was said.
        response: Received,
        /// Whether it is the last for this request; `false` while an observation goes on.
        is_last: bool,
    },
    /// There will be no (further) response.
    Failed {
        /// Which request.
        request: RequestId,
        /// Why.
        failure: Failure,
    },
}

/// A response to a request of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// What happened.
    pub code: Code,
    /// What the payload is.
    pub format: Option<Format>,
    /// The whole representation, or a diagnostic message.
    pub payload: Vec<u8>,
    /// Identifies the representation.
    pub etag: Option<ETag>,
    /// Seconds for which it may be reused.
    pub max_age_s: u32,
    /// The number of the notification, when it is one.
    pub observe: Option<u32>,
    /// Where a created resource is: the segments of its path.
    pub location: Vec<String>,
}

/// Why a request of ours has no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nobody acknowledged, or nobody answered in time.
    #[error("no answer")]
    Timeout,
    /// The peer has no idea what this is about.
    #[error("reset by the peer")]
    Reset,
    /// The response's body exceeds [`crate::Limits::body_bytes`].
    #[error("response too large")]
    TooLarge,
    /// The response has options that it must not have, or its blocks do not fit together.
    #[error("response makes no sense")]
    BadResponse,
}

impl Outgoing {
    /// A confirmable request of a path like `/cellar/temperature`, without a query.
    pub fn new(code: Code, path: &str) -> Self {
        Self {
            code,
            path: path.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect(),
            query: Vec::new(),
            accept: None,
            format: None,
            payload: Vec::new(),
            is_confirmable: true,
            observe: false,
            block_exponent: None,
        }
    }

    /// A confirmable GET.
    pub fn get(path: &str) -> Self {
        Self::new(Code::GET, path)
    }

    /// A confirmable PUT.
    pub fn put(path: &str, format: Format, payload: impl Into<Vec<u8>>) -> Self {
        Self { format: Some(format), payload: payload.into(), ..Self::new(Code::PUT, path) }
    }

    /// A confirmable GET that asks to be told of every change.
    pub fn observe(path: &str) -> Self {
        Self { observe: true, ..Self::get(path) }
    }

    /// Writes the request. `block2` asks for one block of a body whose others came already.
    pub(crate) fn write(&self, out: &mut Vec<u8>, id: u16, token: Token, part: &Part) {
        let kind = if self.is_confirmable { Kind::Confirmable } else { Kind::NonConfirmable };
        let mut writer = Writer::new(out, kind, self.code, id, token);
        if self.observe && matches!(part, Part::Whole) {
            writer.uint(number::OBSERVE, 0);
        }
        for segment in &self.path {
            writer.option(number::URI_PATH, segment.as_bytes());
        }
        if let Some(format) = self.format {
            writer.uint(number::CONTENT_FORMAT, format.0.into());
        }
        for query in &self.query {
            writer.option(number::URI_QUERY, query.as_bytes());
        }
        if let Some(accept) = self.accept {
            writer.uint(number::ACCEPT, accept.0.into());
        }
        match part {
            Part::Fetch(block) => {
                writer.uint(number::BLOCK2, block.to_bits());
                // The body went with the first block.
                writer.payload(&[]);
            }
            Part::Whole => {
                if let Some(exponent) = self.block_exponent {
                    writer.uint(number::BLOCK2, Block { number: 0, more: false, exponent }.to_bits());
                }
                writer.payload(&self.payload);
            }
            Part::Upload(block) => {
                if let Some(exponent) = self.block_exponent {
                    writer.uint(number::BLOCK2, Block { number: 0, more: false, exponent }.to_bits());
                }
                writer.uint(number::BLOCK1, block.to_bits());
                if block.number == 0 {
                    writer.uint(number::SIZE1, self.payload.len() as u32);
                }
                let begin = block.offset().min(self.payload.len());
                let end = (begin + block.size()).min(self.payload.len());
                writer.payload(&self.payload[begin..end]);
            }
        }
    }

    /// The block of the body that begins at `offset`.
    pub(crate) fn upload(&self, offset: usize, exponent: u8) -> Part {
        let size = 16 << exponent;
        let more = offset + size < self.payload.len();
        Part::Upload(Block { number: (offset / size) as u32, more, exponent })
    }
}

impl Received {
    /// Takes what a response says apart from its body. `None` when it has critical options that we do not know.
    pub(crate) fn read(message: &Message<'_>) -> Option<Self> {
        let mut received = Self {
            code: message.code,
            format: message.format(),
            payload: message.payload.to_vec(),
            etag: message.value(number::ETAG).and_then(ETag::new),
            max_age_s: message.uint(number::MAX_AGE).unwrap_or(60),
            observe: message.uint(number::OBSERVE),
            location: Vec::new(),
        };
        for (number, value) in message.options() {
            if number == number::LOCATION_PATH {
                received.location.push(std::str::from_utf8(value).ok()?.to_owned());
            }
            let is_known =
                crate::wire::definition(number).is_some_and(|d| (d.min..=d.max).contains(&value.len()));
            if crate::wire::is_critical(number) && !is_known {
                return None;
            }
        }
        Some(received)
    }
}

/// Which part of a request or response a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    Upload(Block),
    Fetch(Block),
}

/// A request of ours that is under way.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) peer: Peer,
    pub(crate) outgoing: Outgoing,
    /// The token of the request and, for an observation, of every notification.
    pub(crate) token: Token,
    pub(crate) exchange: Option<ExchangeId>,
    /// What was sent last.
    pub(crate) part: Part,
    /// The last notification's number, and when it came.
    pub(crate) observed: Option<(u32, Instant)>,
    pub(crate) fetch: Option<Fetch>,
    pub(crate) expiry: Option<Instant>,
}

/// A response whose blocks are being fetched.
#[derive(Debug)]
pub(crate) struct Fetch {
    /// Under its own token, so that notifications can come meanwhile.
    pub(crate) token: Token,
    /// What the first block said, with all that has come of the body.
    pub(crate) response: Received,
    /// How often it was begun anew because the representation had changed.
    pub(crate) restarts: u8,
}

/// Every request of ours that has no (last) response yet.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    pub(crate) pending: BTreeMap<RequestId, Pending>,
    pub(crate) tokens: HashMap<(Peer, Token), RequestId>,
    timers: BTreeSet<(Instant, RequestId)>,
    next: u64,
}

impl Requests {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    pub(crate) fn next_id(&mut self) -> RequestId {
        self.next += 1;
        RequestId(self.next)
    }

    /// Sets or clears the moment at which a request is given up.
    pub(crate) fn set_expiry(&mut self, id: RequestId, expiry: Option<Instant>) {
        if let Some(pending) = self.pending.get_mut(&id) {
            if let Some(old) = std::mem::replace(&mut pending.expiry, expiry) {
                self.timers.remove(&(old, id));
            }
            self.timers.extend(expiry.map(|expiry| (expiry, id)));
        }
    }

    /// The next request that is to be given up.
    pub(crate) fn expired(&self, now: Instant) -> Option<RequestId> {
        self.timers.first().filter(|(due, _)| *due <= now).map(|(_, id)| *id)
    }

    pub(crate) fn remove(&mut self, id: RequestId) -> Option<Pending> {
        self.set_expiry(id, None);
        let pending = self.pending.remove(&id)?;
        self.tokens.remove(&(pending.peer, pending.token));
        if let Some(fetch) = &pending.fetch {
            self.tokens.remove(&(pending.peer, fetch.token));
        }
        Some(pending)
    }
}
