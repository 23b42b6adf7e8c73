//! Options: their numbers, which may repeat, how long they are (RFC 7252 §5.10 and its successors), and the two values
//! that have types of their own: [`Format`] and [`ETag`].

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Option numbers of the IANA registry "CoAP Option Numbers".
#[expect(missing_docs, reason = "the names are the registry's own")]
pub mod number {
    pub const IF_MATCH: u16 = 1;
    pub const URI_HOST: u16 = 3;
    pub const ETAG: u16 = 4;
    pub const IF_NONE_MATCH: u16 = 5;
    pub const OBSERVE: u16 = 6;
    pub const URI_PORT: u16 = 7;
    pub const LOCATION_PATH: u16 = 8;
    pub const OSCORE: u16 = 9;
    pub const URI_PATH: u16 = 11;
    pub const CONTENT_FORMAT: u16 = 12;
    pub const MAX_AGE: u16 = 14;
    pub const URI_QUERY: u16 = 15;
    pub const HOP_LIMIT: u16 = 16;
    pub const ACCEPT: u16 = 17;
    pub const LOCATION_QUERY: u16 = 20;
    pub const BLOCK2: u16 = 23;
    pub const BLOCK1: u16 = 27;
    pub const SIZE2: u16 = 28;
    pub const PROXY_URI: u16 = 35;
    pub const PROXY_SCHEME: u16 = 39;
    pub const SIZE1: u16 = 60;
    pub const ECHO: u16 = 252;
    pub const NO_RESPONSE: u16 = 258;
    pub const REQUEST_TAG: u16 = 292;
}

/// A content format's number (IANA "CoAP Content-Formats").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Format(pub u16);

impl Format {
    /// `text/plain; charset=utf-8`
    pub const TEXT: Self = Self(0);
    /// `application/link-format`
    pub const LINK_FORMAT: Self = Self(40);
    /// `application/octet-stream`
    pub const OCTET_STREAM: Self = Self(42);
    /// `application/json`
    pub const JSON: Self = Self(50);
    /// `application/cbor`
    pub const CBOR: Self = Self(60);
    /// `application/senml+json`
    pub const SENML_JSON: Self = Self(110);
    /// `application/senml+cbor`
    pub const SENML_CBOR: Self = Self(112);
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ct={}", self.0)
    }
}

/// What identifies a representation: 1 to 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ETag {
    bytes: [u8; 8],
    len: u8,
}

impl ETag {
    /// Takes 1 to 8 bytes; `None` for any other length.
    pub fn new(value: &[u8]) -> Option<Self> {
        let mut bytes = [0; 8];
        bytes.get_mut(..value.len())?.copy_from_slice(value);
        (!value.is_empty()).then_some(Self { bytes, len: value.len() as u8 })
    }

    /// A tag made of a representation's bytes: equal bytes give equal tags within one release of the program.
    pub fn of(representation: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        representation.hash(&mut hasher);
        Self { bytes: hasher.finish().to_be_bytes(), len: 8 }
    }

    /// The tag's bytes as the option carries them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

impl fmt::Debug for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", self.as_bytes())
    }
}

/// Whether a receiver that does not know the option must refuse the message (RFC 7252 §5.4.1).
pub const fn is_critical(number: u16) -> bool {
    number & 1 == 1
}

/// What the RFCs say of an option that we know.
pub(crate) struct Definition {
    pub(crate) min: usize,
    pub(crate) max: usize,
    pub(crate) is_repeatable: bool,
}

/// The definition of an option, or `None` when we do not know it.
pub(crate) fn definition(option: u16) -> Option<Definition> {
    let (min, max, is_repeatable) = match option {
        number::IF_MATCH | number::REQUEST_TAG => (0, 8, true),
        number::URI_HOST | number::PROXY_SCHEME => (1, 255, false),
        number::ETAG => (1, 8, true),
        number::IF_NONE_MATCH => (0, 0, false),
        number::OBSERVE | number::BLOCK1 | number::BLOCK2 => (0, 3, false),
        number::URI_PORT | number::CONTENT_FORMAT | number::ACCEPT => (0, 2, false),
        number::LOCATION_PATH | number::URI_PATH | number::URI_QUERY | number::LOCATION_QUERY => {
            (0, 255, true)
        }
        number::MAX_AGE | number::SIZE1 | number::SIZE2 => (0, 4, false),
        number::HOP_LIMIT => (1, 1, false),
        number::PROXY_URI => (1, 1034, false),
        number::ECHO => (1, 40, false),
        number::NO_RESPONSE => (0, 1, false),
        _ => return None,
    };
    Some(Definition { min, max, is_repeatable })
}

/// An option's value as an unsigned integer of at most four bytes (RFC 7252 §3.2); leading zeros are allowed.
pub(crate) fn uint(value: &[u8]) -> u32 {
    value.iter().take(4).fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use coap_lite::{CoapOption, ContentFormat};

    use super::*;

    #[test]
    fn numbers_agree_with_coap_lite() {
        for (ours, theirs) in [
            (number::IF_MATCH, CoapOption::IfMatch),
            (number::URI_HOST, CoapOption::UriHost),
            (number::ETAG, CoapOption::ETag),
            (number::IF_NONE_MATCH, CoapOption::IfNoneMatch),
            (number::OBSERVE, CoapOption::Observe),
            (number::URI_PORT, CoapOption::UriPort),
            (number::LOCATION_PATH, CoapOption::LocationPath),
            (number::OSCORE, CoapOption::Oscore),
            (number::URI_PATH, CoapOption::UriPath),
            (number::CONTENT_FORMAT, CoapOption::ContentFormat),
            (number::MAX_AGE, CoapOption::MaxAge),
            (number::URI_QUERY, CoapOption::UriQuery),
            (number::ACCEPT, CoapOption::Accept),
            (number::LOCATION_QUERY, CoapOption::LocationQuery),
            (number::BLOCK2, CoapOption::Block2),
            (number::BLOCK1, CoapOption::Block1),
            (number::SIZE2, CoapOption::Size2),
            (number::PROXY_URI, CoapOption::ProxyUri),
            (number::PROXY_SCHEME, CoapOption::ProxyScheme),
            (number::SIZE1, CoapOption::Size1),
            (number::NO_RESPONSE, CoapOption::NoResponse),
        ] {
            assert_eq!(CoapOption::from(ours), theirs);
        }
        for (ours, theirs) in [
            (Format::TEXT, ContentFormat::TextPlain),
            (Format::LINK_FORMAT, ContentFormat::ApplicationLinkFormat),
            (Format::OCTET_STREAM, ContentFormat::ApplicationOctetStream),
            (Format::JSON, ContentFormat::ApplicationJSON),
            (Format::CBOR, ContentFormat::ApplicationCBOR),
            (Format::SENML_JSON, ContentFormat::ApplicationSenmlJSON),
            (Format::SENML_CBOR, ContentFormat::ApplicationSenmlCBOR),
        ] {
            assert_eq!(usize::from(ours.0), usize::from(theirs));
        }
    }

    #[test]
    fn an_entity_tag_has_one_to_eight_bytes() {
        assert!(ETag::new(&[]).is_none());
        assert!(ETag::new(&[0; 9]).is_none());
        assert_eq!(ETag::new(&[1, 2]).unwrap().as_bytes(), [1, 2]);
        assert_eq!(ETag::of(b"23.5"), ETag::of(b"23.5"));
        assert_ne!(ETag::of(b"23.5"), ETag::of(b"23.6"));
    }
}
