//! The name in a client's certificate: its subject's common name, else the first name of its alternative ones
//! (RFC 5280 §4.1.2.6 and §4.2.1.6).

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// The name of a certificate that was verified; `None` if it has none that can be shown and compared.
pub fn name(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let common = common_name(certificate.subject());
    let name = match common {
        Some(name) => name,
        None => certificate.valid_dns_names().chain(certificate.valid_uri_names()).next()?,
    };
    // A name that a person or a file reads otherwise than we do is nobody's.
    let is_plain = !name.is_empty() && name.len() <= MAX_NAME && !name.contains(char::is_control);
    is_plain.then(|| name.to_owned())
}

/// The first common name of a subject: `SEQUENCE OF SET OF SEQUENCE { type, value }` without the outermost tag.
fn common_name(mut subject: &[u8]) -> Option<&str> {
    while let Some((SET, mut set, rest)) = element(subject) {
        subject = rest;
        while let Some((SEQUENCE, pair, rest)) = element(set) {
            set = rest;
            let (kind, value) = (element(pair)?, element(element(pair)?.2)?);
            if (kind.0, kind.1) == (OBJECT_IDENTIFIER, COMMON_NAME) {
                // The kinds of string whose bytes are UTF-8.
                let is_text = matches!(value.0, UTF8_STRING | PRINTABLE_STRING | IA5_STRING);
                return is_text.then(|| std::str::from_utf8(value.1).ok())?;
            }
        }
    }
    None
}

/// The tag and content of the DER element that `bytes` begins with, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        0x81 => rest.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
        0x82 => {
            rest.split_first_chunk().map(|(length, rest)| (usize::from(u16::from_be_bytes(*length)), rest))?
        }
        // No name is that long.
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

const SET: u8 = 0x31;
const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0C;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// Bytes; X.520 allows a common name 64 characters.
const MAX_NAME: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        match content.len() {
            short @ ..0x80 => bytes.push(short as u8),
            long => bytes.extend([0x82, (long >> 8) as u8, long as u8]),
        }
        bytes.extend(content);
        bytes
    }

    fn attribute(kind: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
        let pair = [wrapped(OBJECT_IDENTIFIER, kind), wrapped(tag, value)].concat();
        wrapped(SET, &wrapped(SEQUENCE, &pair))
    }

    #[test]
    fn the_first_common_name_is_found_among_other_attributes() {
        let organisation = attribute(&[0x55, 0x04, 0x0A], UTF8_STRING, &[b'x'; 200]);
        let name = attribute(COMMON_NAME, PRINTABLE_STRING, b"panel-7");
        let second = attribute(COMMON_NAME, UTF8_STRING, b"other");
        assert_eq!(common_name(&[&organisation[..], &name, &second].concat()), Some("panel-7"));
        assert_eq!(common_name(&organisation), None);
        assert_eq!(common_name(&attribute(COMMON_NAME, UTF8_STRING, "Tür".as_bytes())), Some("Tür"));
        assert_eq!(common_name(&attribute(COMMON_NAME, UTF8_STRING, b"\xff")), None);
        // BMPString: two bytes a character.
        assert_eq!(common_name(&attribute(COMMON_NAME, 0x1E, b"\0a")), None);
    }

    #[test]
    fn a_subject_survives_mutated_input() {
        let organisation = attribute(&[0x55, 0x04, 0x0A], UTF8_STRING, &[b'x'; 200]);
        let whole = [organisation, attribute(COMMON_NAME, UTF8_STRING, b"panel-7")].concat();
        crate::fuzz::mutated("certificate-subject", vec![whole], |input| {
            let _ = common_name(input);
        });
    }
}
