//! A datagram read in place: [`Message`] (RFC 7252 §3).

use super::{Code, Format, number, uint};

/// One CoAP message as it lies in its datagram. Whoever holds one knows that every option is within bounds.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Confirmable, non-confirmable, acknowledgement or reset.
    pub kind: Kind,
    /// Method or response code.
    pub code: Code,
    /// The message id: matches acknowledgements, detects duplicates.
    pub id: u16,
    /// Matches a response to its request.
    pub token: Token,
    /// What follows the payload marker; empty without one.
    pub payload: &'a [u8],
    options: &'a [u8],
}

/// The four types of message (RFC 7252 §4.2, §4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// CON: is repeated until acknowledged.
    Confirmable = 0,
    /// NON: is sent once.
    NonConfirmable = 1,
    /// ACK.
    Acknowledgement = 2,
    /// RST.
    Reset = 3,
}

/// 0 to 8 bytes that match a response to its request (RFC 7252 §5.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Token {
    bytes: [u8; 8],
    len: u8,
}

/// Why a datagram is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a header, or of another version: "MUST be silently ignored" (RFC 7252 §3).
    #[error("not a CoAP 1 message")]
    Foreign,
    /// A format error: rejected with a reset when it was confirmable (RFC 7252 §4.2).
    #[error("format error")]
    Format {
        /// The type in the header.
        kind: Kind,
        /// The message id in the header.
        id: u16,
    },
}

impl<'a> Message<'a> {
    /// The most options that are read; a message with more is malformed to us.
    pub const MAX_OPTIONS: usize = 64;

    /// Reads a datagram of any bytes, without copying.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let Some((&[first, code, id_high, id_low], rest)) = datagram.split_first_chunk::<4>() else {
            return Err(Malformed::Foreign);
        };
        if first >> 6 != 1 {
            return Err(Malformed::Foreign);
        }
        let kind = match first >> 4 & 3 {
            0 => Kind::Confirmable,
            1 => Kind::NonConfirmable,
            2 => Kind::Acknowledgement,
            _ => Kind::Reset,
        };
        let (code, id) = (Code(code), u16::from_be_bytes([id_high, id_low]));
        let malformed = Malformed::Format { kind, id };
        // "An Empty message ... MUST contain no more than the header" (RFC 7252 §4.1).
        if code == Code::EMPTY && (first & 15 != 0 || !rest.is_empty()) {
            return Err(malformed);
        }
        // Token lengths 9 to 15 are reserved and a format error.
        let (token, rest) = Token::split(rest, usize::from(first & 15)).ok_or(malformed)?;
        let (options, payload) = split_options(rest).ok_or(malformed)?;
        Ok(Self { kind, code, id, token, payload, options })
    }

    /// The options in the order of their numbers, which is the order on the wire.
    pub fn options(&self) -> OptionIter<'a> {
        OptionIter { rest: self.options, number: 0 }
    }

    /// The values of every option of one number.
    pub fn values(&self, number: u16) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let behind = self.options().skip_while(move |option| option.0 < number);
        behind.take_while(move |option| option.0 == number).map(|option| option.1)
    }

    /// The first value of one number.
    pub fn value(&self, number: u16) -> Option<&'a [u8]> {
        self.values(number).next()
    }

    /// The first value of one number as an unsigned integer; `None` also when it is longer than four bytes.
    pub fn uint(&self, number: u16) -> Option<u32> {
        self.value(number).filter(|value| value.len() <= 4).map(uint)
    }

    /// The payload's content format, when one is named.
    pub fn format(&self) -> Option<Format> {
        self.uint(number::CONTENT_FORMAT).map(|format| Format(format as u16))
    }

    /// The bytes of all options as they stand on the wire.
    pub(crate) fn option_bytes(&self) -> &'a [u8] {
        self.options
    }
}

/// Walks over the options of a [`Message`]: number and value.
#[derive(Debug, Clone)]
pub struct OptionIter<'a> {
    rest: &'a [u8],
    number: u16,
}

impl<'a> Iterator for OptionIter<'a> {
    type Item = (u16, &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (delta, value, rest) = split_option(self.rest)?;
        self.rest = rest;
        self.number = self.number.checked_add(delta)?;
        Some((self.number, value))
    }
}

impl Token {
    /// The most bytes a token has.
    pub const MAX_LEN: usize = 8;

    /// Takes 0 to 8 bytes; `None` for more.
    pub fn new(value: &[u8]) -> Option<Self> {
        let mut bytes = [0; 8];
        bytes.get_mut(..value.len())?.copy_from_slice(value);
        Some(Self { bytes, len: value.len() as u8 })
    }

    /// The token's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }

    fn split(rest: &[u8], len: usize) -> Option<(Self, &[u8])> {
        let (token, rest) = rest.split_at_checked(len)?;
        Some((Self::new(token)?, rest))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x?}", self.as_bytes())
    }
}

/// Checks every option and parts them from the payload; `None` for a format error.
fn split_options(all: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut rest, mut number, mut count) = (all, 0u16, 0);
    while let Some(first) = rest.first() {
        if *first == PAYLOAD_MARKER {
            let options = &all[..all.len() - rest.len()];
            // "The presence of a marker followed by a zero-length payload MUST be processed as a message format
            // error" (RFC 7252 §3).
            return (rest.len() > 1).then_some((options, &rest[1..]));
        }
        let (delta, _, behind) = split_option(rest)?;
        number = number.checked_add(delta)?;
        count += 1;
        if count > Message::MAX_OPTIONS {
            return None;
        }
        rest = behind;
    }
    Some((all, &[]))
}

/// Takes one option off the front: delta, value, rest.
#[inline]
fn split_option(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let (delta, rest) = split_extended(first >> 4, rest)?;
    let (len, rest) = split_extended(first & 15, rest)?;
    let (value, rest) = rest.split_at_checked(usize::from(len))?;
    Some((delta, value, rest))
}

/// A nibble of delta or length with its one or two further bytes (RFC 7252 §3.1); 15 is reserved.
#[inline]
fn split_extended(nibble: u8, rest: &[u8]) -> Option<(u16, &[u8])> {
    match nibble {
        0..=12 => Some((u16::from(nibble), rest)),
        13 => rest.split_first().map(|(byte, rest)| (u16::from(*byte) + 13, rest)),
        14 => {
            let (bytes, rest) = rest.split_first_chunk::<2>()?;
            Some((u16::from_be_bytes(*bytes).checked_add(269)?, rest))
        }
        _ => None,
    }
}

const PAYLOAD_MARKER: u8 = 0xff;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_of_rfc_7252_figure_16_is_read() {
        // GET /temperature, CON, message id 0x7d34, no token.
        let bytes = b"\x40\x01\x7d\x34\xbbtemperature";
        let message = Message::parse(bytes).unwrap();
        assert_eq!((message.kind, message.code, message.id), (Kind::Confirmable, Code::GET, 0x7d34));
        assert_eq!(message.options().collect::<Vec<_>>(), [(number::URI_PATH, &b"temperature"[..])]);
        assert!(message.token.as_bytes().is_empty() && message.payload.is_empty());
    }

    #[test]
    fn the_response_of_rfc_7252_figure_17_is_read() {
        let message = Message::parse(b"\x61\x45\x7d\x35\x20\xff22.3 C").unwrap();
        assert_eq!((message.kind, message.code), (Kind::Acknowledgement, Code::CONTENT));
        assert_eq!((message.token.as_bytes(), message.payload), (&[0x20][..], &b"22.3 C"[..]));
    }

    #[test]
    fn what_is_not_coap_is_told_from_a_format_error() {
        for foreign in
            [&b""[..], b"\x40\x01\x00", b"\x00\x01\x00\x01", b"\x80\x01\x00\x01", b"\xc0\x01\x00\x01"]
        {
            assert_eq!(Message::parse(foreign).unwrap_err(), Malformed::Foreign);
        }
        let malformed: [&[u8]; 12] = [
            b"\x49\x01\x00\x01123456789",            // token of 9
            b"\x4f\x01\x00\x01123456789012345",      // token of 15
            b"\x44\x01\x00\x01abc",                  // token cut off
            b"\x40\x01\x00\x01\xff",                 // marker, no payload
            b"\x40\x01\x00\x01\xb4abc",              // value cut off
            b"\x40\x01\x00\x01\xf0",                 // delta 15
            b"\x40\x01\x00\x01\x0f",                 // length 15
            b"\x40\x01\x00\x01\xd0",                 // extended delta cut off
            b"\x40\x01\x00\x01\xe0\xff\xff",         // number beyond 65535
            b"\x40\x01\x00\x01\xe0\xfe\x00\xd0\xff", // the sum beyond 65535
            b"\x40\x00\x00\x01\xb1a",                // Empty with an option
            b"\x41\x00\x00\x01a",                    // Empty with a token
        ];
        for bytes in malformed {
            let expected = Malformed::Format { kind: Kind::Confirmable, id: bytes[3].into() };
            assert_eq!(Message::parse(bytes).unwrap_err(), expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn more_options_than_the_limit_are_malformed() {
        let mut bytes = b"\x40\x01\x00\x01\xb0".to_vec();
        bytes.extend([0; Message::MAX_OPTIONS - 1]);
        assert_eq!(Message::parse(&bytes).unwrap().options().count(), Message::MAX_OPTIONS);
        bytes.push(0);
        assert!(Message::parse(&bytes).is_err());
    }
}
