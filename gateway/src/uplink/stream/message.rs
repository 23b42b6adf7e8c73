//! A message of a stream: AMQP 1.0 sections, as every consumer of RabbitMQ streams reads them (OASIS AMQP 1.0 part 3
//! §3.2, part 1 §1.2 and §1.6). Pure.

/// A message of a stream, to be written as AMQP 1.0 sections.
#[derive(Debug, Clone, Default)]
pub struct Envelope<'a> {
    /// `message-id`.
    pub id: &'a str,
    /// `subject`: the topic.
    pub subject: &'a str,
    /// `content-type`.
    pub content_type: &'a str,
    /// `content-encoding`, if the body is compressed.
    pub content_encoding: Option<&'a str>,
    /// `creation-time` in milliseconds since 1970, if it is known.
    pub created_ms: Option<i64>,
    /// Application properties.
    pub properties: &'a [(&'a str, Property<'a>)],
    /// The data section.
    pub body: &'a [u8],
}

/// An application property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Property<'a> {
    /// UTF-8.
    Text(&'a str),
    /// A whole number.
    Number(i64),
}

/// Writes a message as sections: properties, application properties, data.
pub fn message(out: &mut Vec<u8>, envelope: &Envelope<'_>) {
    section(out, PROPERTIES);
    // The fields of the list in their order; what stands behind the last one is absent.
    compound(out, LIST32, 10, |out| {
        text(out, envelope.id);
        out.extend([NULL; 2]); // user-id, to
        text(out, envelope.subject);
        out.extend([NULL; 2]); // reply-to, correlation-id
        symbol(out, Some(envelope.content_type));
        symbol(out, envelope.content_encoding);
        out.push(NULL); // absolute-expiry-time
        match envelope.created_ms {
            Some(ms) => {
                out.push(TIMESTAMP);
                out.extend(ms.to_be_bytes());
            }
            None => out.push(NULL),
        }
    });
    if !envelope.properties.is_empty() {
        section(out, APPLICATION_PROPERTIES);
        compound(out, MAP32, 2 * envelope.properties.len() as u32, |out| {
            for (key, value) in envelope.properties {
                text(out, key);
                match value {
                    Property::Text(value) => text(out, value),
                    Property::Number(value) => {
                        out.push(LONG);
                        out.extend(value.to_be_bytes());
                    }
                }
            }
        });
    }
    section(out, DATA);
    variable(out, BINARY8, envelope.body);
}

fn section(out: &mut Vec<u8>, descriptor: u8) {
    out.extend([0, SMALL_ULONG, descriptor]);
}

fn compound(out: &mut Vec<u8>, constructor: u8, count: u32, content: impl FnOnce(&mut Vec<u8>)) {
    out.push(constructor);
    let begin = out.len();
    out.extend([0; 4]);
    out.extend(count.to_be_bytes());
    content(out);
    // The size counts everything behind itself, the count included (part 1 §1.6.22).
    let size = (out.len() - begin - 4) as u32;
    out[begin..begin + 4].copy_from_slice(&size.to_be_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    variable(out, STRING8, text.as_bytes());
}

fn symbol(out: &mut Vec<u8>, symbol: Option<&str>) {
    match symbol {
        Some(symbol) => variable(out, SYMBOL8, symbol.as_bytes()),
        None => out.push(NULL),
    }
}

/// The short form of a variable-width type, or the long one, whose constructor is 0x10 higher (part 1 §1.2).
fn variable(out: &mut Vec<u8>, short: u8, content: &[u8]) {
    if let Ok(length) = u8::try_from(content.len()) {
        out.extend([short, length]);
    } else {
        out.push(short + 0x10);
        out.extend((content.len() as u32).to_be_bytes());
    }
    out.extend(content);
}

const NULL: u8 = 0x40;
const SMALL_ULONG: u8 = 0x53;
const LONG: u8 = 0x81;
const TIMESTAMP: u8 = 0x83;
const BINARY8: u8 = 0xa0;
const STRING8: u8 = 0xa1;
const SYMBOL8: u8 = 0xa3;
const LIST32: u8 = 0xd0;
const MAP32: u8 = 0xd1;
const PROPERTIES: u8 = 0x73;
const APPLICATION_PROPERTIES: u8 = 0x74;
const DATA: u8 = 0x75;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The end of a value at the head of `bytes`, by its constructor alone (part 1 §1.2.1).
    fn skip(bytes: &[u8]) -> usize {
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        match bytes[0] >> 4 {
            0 => 1 + skip(&bytes[1..]) + skip(&bytes[1 + skip(&bytes[1..])..]),
            4 => 1,
            5 => 2,
            8 => 9,
            0xa | 0xc => 2 + usize::from(bytes[1]),
            0xb | 0xd => 5 + word(1),
            other => panic!("constructor {other:x}"),
        }
    }

    #[test]
    fn a_message_is_the_sections_of_the_standard() {
        let mut out = Vec::new();
        let envelope = Envelope {
            id: "i",
            subject: "t",
            content_type: "a/b",
            content_encoding: None,
            created_ms: Some(1),
            properties: &[("k", Property::Text("v")), ("n", Property::Number(2))],
            body: b"hi",
        };
        message(&mut out, &envelope);
        let mut expected =
            b"\x00\x53\x73\xd0\0\0\0\x1e\0\0\0\x0a\xa1\x01i@@\xa1\x01t@@\xa3\x03a/b@@".to_vec();
        expected.extend(b"\x83\0\0\0\0\0\0\0\x01");
        expected
            .extend(b"\x00\x53\x74\xd1\0\0\0\x16\0\0\0\x04\xa1\x01k\xa1\x01v\xa1\x01n\x81\0\0\0\0\0\0\0\x02");
        expected.extend(b"\x00\x53\x75\xa0\x02hi");
        assert_eq!(out, expected);
    }

    proptest! {
        #[test]
        fn every_length_is_consistent(
            id in "\\PC{0,300}", key in "[a-z]{1,10}", value in "\\PC{0,300}",
            body in proptest::collection::vec(any::<u8>(), 0..600), encoding in any::<bool>(),
        ) {
            let mut out = Vec::new();
            let properties = [(&*key, Property::Text(&value)), ("seq", Property::Number(7))];
            let content_encoding = encoding.then_some("zstd");
            let envelope = Envelope {
                id: &id, subject: "t", content_type: "x", content_encoding, created_ms: None,
                properties: &properties, body: &body,
            };
            message(&mut out, &envelope);
            let mut at = 0;
            let mut sections = Vec::new();
            while at < out.len() {
                sections.push(out[at + 2]);
                at += skip(&out[at..]);
            }
            prop_assert_eq!(at, out.len());
            prop_assert_eq!(sections, [PROPERTIES, APPLICATION_PROPERTIES, DATA]);
            prop_assert!(out.ends_with(&body));
        }
    }
}
