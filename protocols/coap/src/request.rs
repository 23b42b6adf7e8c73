//! A request as a resource sees it: [`Request`]. Options are checked once, here (RFC 7252 §5.4, §5.10).

use crate::wire::{Block, Code, Format, Message, definition, is_critical, number};
use crate::{Peer, Ticket};

/// A request whose options are known and well-formed.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Who asks, and on which socket.
    pub peer: Peer,
    /// Names this request when the resource answers later.
    pub ticket: Ticket,
    /// The message. Its payload is one block when the body came in several; see [`Request::payload`].
    pub message: Message<'a>,
    /// The whole body.
    pub payload: &'a [u8],
    /// The representation asked for.
    pub accept: Option<Format>,
    /// What the body is.
    pub format: Option<Format>,
    /// Whether the resource is asked once more for an observer rather than by a new request.
    pub is_notification: bool,
    /// Whether it was sent to a group.
    pub is_multicast: bool,
    pub(crate) observe: Option<u32>,
    pub(crate) block1: Option<Block>,
    pub(crate) block2: Option<Block>,
    pub(crate) wants_size: bool,
    pub(crate) is_for_proxy: bool,
    pub(crate) has_etag: bool,
    pub(crate) has_condition: bool,
    pub(crate) no_response: u8,
}

/// Why a request is refused before any resource sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// An unknown or misused critical option.
    BadOption(u16),
    /// A block size that is reserved.
    BadBlock,
    /// Deeper than any resource is.
    PathTooLong,
}

impl<'a> Request<'a> {
    /// The most segments of a path that are read.
    pub const MAX_SEGMENTS: usize = 16;

    /// The method.
    pub fn code(&self) -> Code {
        self.message.code
    }

    /// The segments of the path; none for the root. A single empty one, which some clients send for the root, counts
    /// as none.
    pub fn segments(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut segments = self.message.values(number::URI_PATH).map(text).peekable();
        let first = segments.next().filter(|first| !first.is_empty() || segments.peek().is_some());
        first.into_iter().chain(segments)
    }

    /// The arguments of the query, each `name=value` or a bare name.
    pub fn queries(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.message.values(number::URI_QUERY).map(text)
    }

    /// Checks the options of a message that is a request.
    pub(crate) fn read(peer: Peer, ticket: Ticket, message: Message<'a>) -> Result<Self, Refusal> {
        let mut request = Self {
            peer,
            ticket,
            payload: message.payload,
            message,
            accept: None,
            format: None,
            is_notification: false,
            is_multicast: false,
            observe: None,
            block1: None,
            block2: None,
            wants_size: false,
            is_for_proxy: false,
            has_etag: false,
            has_condition: false,
            no_response: 0,
        };
        let (mut last, mut segments) = (0, 0);
        for (number, value) in message.options() {
            let is_repeated = number == last;
            last = number;
            // A length or a repetition that the definition forbids makes the option count as unknown (RFC 7252
            // §5.4.3, §5.4.5).
            let is_known = definition(number).is_some_and(|definition| {
                (definition.min..=definition.max).contains(&value.len())
                    && (definition.is_repeatable || !is_repeated)
            });
            if !is_known {
                if is_critical(number) {
                    return Err(Refusal::BadOption(number));
                }
                continue;
            }
            match number {
                number::URI_PATH | number::URI_QUERY | number::URI_HOST => {
                    segments += usize::from(number == number::URI_PATH);
                    if std::str::from_utf8(value).is_err() {
                        return Err(Refusal::BadOption(number));
                    }
                }
                number::OBSERVE => request.observe = Some(crate::wire::uint(value)),
                number::ACCEPT => request.accept = Some(Format(crate::wire::uint(value) as u16)),
                number::CONTENT_FORMAT => request.format = Some(Format(crate::wire::uint(value) as u16)),
                number::BLOCK1 => request.block1 = Some(Block::parse(value).ok_or(Refusal::BadBlock)?),
                number::BLOCK2 => request.block2 = Some(Block::parse(value).ok_or(Refusal::BadBlock)?),
                number::SIZE2 => request.wants_size = true,
                number::PROXY_URI | number::PROXY_SCHEME => request.is_for_proxy = true,
                number::ETAG => request.has_etag = true,
                number::IF_MATCH | number::IF_NONE_MATCH => request.has_condition = true,
                number::NO_RESPONSE => request.no_response = crate::wire::uint(value) as u8,
                _ => {}
            }
        }
        if segments > Self::MAX_SEGMENTS {
            return Err(Refusal::PathTooLong);
        }
        Ok(request)
    }

    /// Whether the client does not want to hear a response of this class (RFC 7967 §2.1).
    pub(crate) fn suppresses(&self, code: Code) -> bool {
        code.class() != 0 && self.no_response & (1 << (code.class() - 1)) != 0
    }
}

/// Only called for values that [`Request::read`] found to be UTF-8.
fn text(value: &[u8]) -> &str {
    std::str::from_utf8(value).unwrap_or_default()
}
