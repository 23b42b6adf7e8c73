//! What an endpoint serves: [`Resources`], and what a resource answers: [`Answer`], [`Response`].

use std::sync::Arc;

use crate::Peer;
use crate::link::Link;
use crate::request::Request;
use crate::wire::{Code, ETag, Format};

/// What an endpoint serves. The endpoint does what is the same for all: methods that a resource lacks, content
/// formats it does not offer or take, `ETag`, `If-Match`, blocks, observers, `/.well-known/core`.
pub trait Resources {
    /// Finds what a request's path names. `None` is 4.04.
    fn find(&self, request: &Request<'_>) -> Option<Resource<'_>>;

    /// Carries a request out. `format` is the one to answer in, negotiated from those the resource offers.
    fn answer(&mut self, id: ResourceId, request: &Request<'_>, format: Option<Format>) -> Answer;

    /// Whether the resource presently has a representation with this tag; asked for `If-Match`.
    fn has_etag(&mut self, _id: ResourceId, _etag: &[u8]) -> bool {
        false
    }

    /// Names every link for `/.well-known/core` that this peer may see.
    fn links(&self, _peer: Peer, _each: &mut dyn FnMut(&Link<'_>)) {}
}

/// For an endpoint that is only a client: every request is answered 4.04.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoResources;

impl Resources for NoResources {
    fn find(&self, _request: &Request<'_>) -> Option<Resource<'_>> {
        None
    }

    fn answer(&mut self, _id: ResourceId, _request: &Request<'_>, _format: Option<Format>) -> Answer {
        Answer::Now(Response::new(Code::NOT_FOUND))
    }
}

/// Names a resource between the endpoint and whoever serves it; stays the same as long as it may have observers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceId(pub u64);

/// Names a request that is answered later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub(crate) u64);

/// What the endpoint must know of a resource before it lets a request through.
#[derive(Debug, Clone, Copy)]
pub struct Resource<'a> {
    /// Its name in later calls.
    pub id: ResourceId,
    /// What it can be asked; anything else is 4.05.
    pub methods: Methods,
    /// The formats it offers, the default first; a GET that accepts none of them is 4.06. Empty: the endpoint does not
    /// negotiate.
    pub offers: &'a [Format],
    /// The formats of a body that it takes; another is 4.15. A body without a format is let through. Empty: any.
    pub takes: &'a [Format],
    /// Whether it can be observed.
    pub is_observable: bool,
}

/// A set of methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Methods(u8);

impl Methods {
    /// GET alone.
    pub const GET: Self = Self::of(&[Code::GET]);

    /// The set of the given methods, `0.01` to `0.07`.
    pub const fn of(codes: &[Code]) -> Self {
        let (mut bits, mut index) = (0, 0);
        while index < codes.len() {
            bits |= 1 << (codes[index].0 & 7);
            index += 1;
        }
        Self(bits)
    }

    /// Whether the method is in the set.
    pub const fn contains(self, code: Code) -> bool {
        code.0 < 8 && self.0 & (1 << code.0) != 0
    }
}

/// What a resource says to a request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// The response.
    Now(Response),
    /// The response will be given to [`crate::Endpoint::respond`] under the request's ticket.
    Later,
    /// Only for [`Request::is_notification`]: nothing worth sending; the observer stays. To a request it is 5.03.
    Nothing,
}

/// A response, before it is cut into blocks.
#[derive(Debug, Clone)]
pub struct Response {
    /// What happened.
    pub code: Code,
    /// What the payload is; `None` for a diagnostic message, which is UTF-8 text (RFC 7252 §5.5.2).
    pub format: Option<Format>,
    /// The representation or diagnostic message. It is kept while its blocks are fetched, hence shared.
    pub payload: Arc<[u8]>,
    /// Identifies the representation; one is made of its bytes when it needs several blocks.
    pub etag: Option<ETag>,
    /// Seconds for which the response may be reused; `None` is the default, 60.
    pub max_age_s: Option<u32>,
    /// Where a created resource is: the segments of `Location-Path`, at most 255 bytes each.
    pub location: Vec<String>,
    /// The largest body that would have been taken, for 4.13.
    pub size1: Option<u32>,
}

impl Response {
    /// A response of a code alone.
    pub fn new(code: Code) -> Self {
        Self {
            code,
            format: None,
            payload: Arc::default(),
            etag: None,
            max_age_s: None,
            location: Vec::new(),
            size1: None,
        }
    }

    /// 2.05 with a representation.
    pub fn content(format: Format, payload: impl Into<Arc<[u8]>>) -> Self {
        Self { format: Some(format), payload: payload.into(), ..Self::new(Code::CONTENT) }
    }

    /// A failure with a diagnostic message for a person; more than 256 bytes of it are cut off.
    pub fn failure(code: Code, diagnostic: &str) -> Self {
        let mut end = diagnostic.len().min(256);
        while !diagnostic.is_char_boundary(end) {
            end -= 1;
        }
        Self { payload: diagnostic.as_bytes()[..end].into(), ..Self::new(code) }
    }

    /// The same response with a tag.
    #[must_use]
    pub fn tagged(mut self, etag: ETag) -> Self {
        self.etag = Some(etag);
        self
    }

    /// The same response, fresh for so many seconds.
    #[must_use]
    pub fn fresh_for(mut self, seconds: u32) -> Self {
        self.max_age_s = Some(seconds);
        self
    }
}
