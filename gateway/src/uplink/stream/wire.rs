//! The RabbitMQ stream protocol, version 1: frames as bytes (the server's `deps/rabbitmq_stream/docs/PROTOCOL.adoc`),
//! as far as a publisher needs it.
//!
//! Pure: bytes in, bytes out. Nothing a server says makes it hold more than one frame of [`FRAME_MAX`].

use std::fmt;

/// The largest frame that is taken or sent, without its length.
pub const FRAME_MAX: usize = 1024 * 1024;

/// What a server answered, beyond [`OK`]; the names of the protocol's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u16);

/// It was done.
pub const OK: Code = Code(1);
/// What was asked for exists, with other arguments.
pub const PRECONDITION_FAILED: Code = Code(17);
/// What was asked for exists already.
pub const STREAM_EXISTS: Code = Code(5);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "ok",
            2 => "no such stream",
            5 => "the stream exists already",
            6 => "the stream is not available",
            7 => "SASL mechanism not supported",
            8 => "wrong user or password",
            9 => "SASL error",
            10 => "SASL challenge",
            11 => "this user may connect from loopback only",
            12 => "no access to the virtual host",
            13 => "unknown frame",
            14 => "frame too large",
            15 => "internal error",
            16 => "access refused",
            17 => "precondition failed",
            18 => "no such publisher",
            other => return write!(f, "code {other}"),
        })
    }
}

/// A frame from the server, as far as a publisher cares. Borrows from the frame's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound<'a> {
    /// The answer to a request.
    Reply {
        /// The request's key.
        key: u16,
        /// The request's number.
        correlation: u32,
        /// How it went.
        code: Code,
        /// What the kind of request adds: the sequence, the mechanisms.
        rest: &'a [u8],
    },
    /// Messages are stored by the stream's majority, or were stored before.
    Confirm {
        /// Whose they were.
        publisher: u8,
        /// Their publishing ids.
        ids: Ids<'a>,
    },
    /// A message was not stored.
    PublishError {
        /// Whose it was.
        publisher: u8,
        /// Its publishing id; the first where there are several.
        id: u64,
        /// Why.
        code: Code,
    },
    /// The limits the server proposes; to be answered.
    Tune {
        /// Bytes in a frame; 0 for no limit.
        frame_max: u32,
        /// Seconds between signs of life; 0 for none.
        heartbeat_s: u32,
    },
    /// The server is there.
    Heartbeat,
    /// The server ends the connection; to be answered.
    Close {
        /// The request's number.
        correlation: u32,
        /// Why.
        code: Code,
        /// Why, in words.
        reason: &'a str,
    },
    /// The stream moved or is gone: publishers on it have ended.
    MetadataUpdate {
        /// What happened.
        code: Code,
        /// Which stream.
        stream: &'a str,
    },
    /// A frame that a publisher need not know.
    Other(u16),
}

/// The publishing ids of a confirmation: 8 bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids<'a>(&'a [u8]);

impl Ids<'_> {
    /// In the order of the frame.
    pub fn iter(self) -> impl Iterator<Item = u64> {
        self.0.as_chunks::<8>().0.iter().map(|id| u64::from_be_bytes(*id))
    }
}

/// Why bytes are not the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A frame longer than [`FRAME_MAX`].
    #[error("frame out of range: {0} bytes")]
    TooLong(usize),
    /// A frame that ends before its content does, or text that is not UTF-8.
    #[error("malformed frame of kind {0:#06x}")]
    Malformed(u16),
}

/// Puts frames together from what a socket gives.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: Vec<u8>,
    /// Where the next frame begins; what stands before it was given out.
    start: usize,
}

impl Frames {
    /// Takes bytes of any number. Call [`Frames::next`] until it has none before more are taken: then no more than a
    /// frame and these bytes are held.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// What cannot be a frame; the connection is of no use any more.
    pub fn next(&mut self) -> Result<Option<Inbound<'_>>, WireError> {
        let Some((length, rest)) = self.buffer[self.start..].split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > FRAME_MAX {
            return Err(WireError::TooLong(length));
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        self.start += 4 + length;
        parse(frame).map(Some)
    }
}

/// Reads one frame, without its length.
///
/// # Errors
/// It ends too early.
pub fn parse(frame: &[u8]) -> Result<Inbound<'_>, WireError> {
    let mut reader = Reader { rest: frame, key: 0 };
    let key = reader.u16()?;
    reader.key = key;
    reader.u16()?;
    if key & RESPONSE != 0 && key != RESPONSE | TUNE {
        return Ok(match key & !RESPONSE {
            // The one answer without a correlation; only a consumer gets it.
            CREDIT => Inbound::Other(key),
            key => Inbound::Reply {
                key,
                correlation: reader.u32()?,
                code: Code(reader.u16()?),
                rest: reader.rest,
            },
        });
    }
    Ok(match key & !RESPONSE {
        PUBLISH_CONFIRM => {
            let publisher = reader.u8()?;
            let count = reader.u32()? as usize;
            Inbound::Confirm { publisher, ids: Ids(reader.take(count.saturating_mul(8))?) }
        }
        PUBLISH_ERROR => {
            let publisher = reader.u8()?;
            if reader.u32()? == 0 {
                return Ok(Inbound::Other(key));
            }
            Inbound::PublishError { publisher, id: reader.u64()?, code: Code(reader.u16()?) }
        }
        METADATA_UPDATE => Inbound::MetadataUpdate { code: Code(reader.u16()?), stream: reader.string()? },
        TUNE => Inbound::Tune { frame_max: reader.u32()?, heartbeat_s: reader.u32()? },
        HEARTBEAT => Inbound::Heartbeat,
        CLOSE => {
            let correlation = reader.u32()?;
            Inbound::Close { correlation, code: Code(reader.u16()?), reason: reader.string()? }
        }
        _ => Inbound::Other(key),
    })
}

/// The strings at the end of an answer to [`sasl_handshake`].
///
/// # Errors
/// It ends too early.
pub fn mechanisms(rest: &[u8]) -> Result<Vec<&str>, WireError> {
    let mut reader = Reader { rest, key: SASL_HANDSHAKE };
    let count = reader.u32()? as usize;
    // Each takes two bytes at least: a count alone reserves nothing.
    (0..count).map(|_| reader.string()).collect()
}

/// The number at the end of an answer to [`query_publisher_sequence`].
///
/// # Errors
/// It ends too early.
pub fn sequence(rest: &[u8]) -> Result<u64, WireError> {
    Reader { rest, key: QUERY_PUBLISHER_SEQUENCE }.u64()
}

struct Reader<'a> {
    rest: &'a [u8],
    /// For errors.
    key: u16,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(WireError::Malformed(self.key))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(WireError::Malformed(self.key))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// An absent string (length -1) reads as an empty one.
    fn string(&mut self) -> Result<&'a str, WireError> {
        let length = self.u16()?;
        let bytes = if length == u16::MAX { &[][..] } else { self.take(usize::from(length))? };
        std::str::from_utf8(bytes).map_err(|_| WireError::Malformed(self.key))
    }
}

/// Says who we are: the first frame.
pub fn peer_properties(out: &mut Vec<u8>, correlation: u32, properties: &[(&str, &str)]) {
    request(out, PEER_PROPERTIES, correlation, |out| pairs(out, properties));
}

/// Asks which SASL mechanisms there are.
pub fn sasl_handshake(out: &mut Vec<u8>, correlation: u32) {
    request(out, SASL_HANDSHAKE, correlation, |_| {});
}

/// Names a mechanism and gives its first answer.
pub fn sasl_authenticate(out: &mut Vec<u8>, correlation: u32, mechanism: &str, answer: &[u8]) {
    request(out, SASL_AUTHENTICATE, correlation, |out| {
        string(out, mechanism);
        bytes(out, answer);
    });
}

/// Agrees on limits: the answer to the server's.
pub fn tune(out: &mut Vec<u8>, frame_max: u32, heartbeat_s: u32) {
    command(out, RESPONSE | TUNE, |out| {
        out.extend(frame_max.to_be_bytes());
        out.extend(heartbeat_s.to_be_bytes());
    });
}

/// Enters a virtual host.
pub fn open(out: &mut Vec<u8>, correlation: u32, vhost: &str) {
    request(out, OPEN, correlation, |out| string(out, vhost));
}

/// Makes a stream; `arguments` as in `x-` arguments of a queue, without the `x-`.
pub fn create(out: &mut Vec<u8>, correlation: u32, stream: &str, arguments: &[(&str, &str)]) {
    request(out, CREATE, correlation, |out| {
        string(out, stream);
        pairs(out, arguments);
    });
}

/// Makes a publisher with a name, under which the server drops what it has already.
pub fn declare_publisher(out: &mut Vec<u8>, correlation: u32, publisher: u8, name: &str, stream: &str) {
    request(out, DECLARE_PUBLISHER, correlation, |out| {
        out.push(publisher);
        string(out, name);
        string(out, stream);
    });
}

/// Asks for the highest publishing id that a name has stored; 0 when there is none.
pub fn query_publisher_sequence(out: &mut Vec<u8>, correlation: u32, name: &str, stream: &str) {
    request(out, QUERY_PUBLISHER_SEQUENCE, correlation, |out| {
        string(out, name);
        string(out, stream);
    });
}

/// Publishes messages, each with its publishing id; the caller keeps the frame below the agreed limit.
pub fn publish<'m>(
    out: &mut Vec<u8>,
    publisher: u8,
    messages: impl ExactSizeIterator<Item = (u64, &'m [u8])>,
) {
    command(out, PUBLISH, |out| {
        out.push(publisher);
        out.extend((messages.len() as u32).to_be_bytes());
        for (id, message) in messages {
            out.extend(id.to_be_bytes());
            bytes(out, message);
        }
    });
}

/// A sign of life.
pub fn heartbeat(out: &mut Vec<u8>) {
    command(out, HEARTBEAT, |_| {});
}

/// Ends the connection.
pub fn close(out: &mut Vec<u8>, correlation: u32, reason: &str) {
    request(out, CLOSE, correlation, |out| {
        out.extend(OK.0.to_be_bytes());
        string(out, reason);
    });
}

/// Answers the server's close.
pub fn close_reply(out: &mut Vec<u8>, correlation: u32) {
    request(out, RESPONSE | CLOSE, correlation, |out| out.extend(OK.0.to_be_bytes()));
}

fn command(out: &mut Vec<u8>, key: u16, content: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend([0; 4]);
    out.extend(key.to_be_bytes());
    out.extend(VERSION.to_be_bytes());
    content(out);
    let length = (out.len() - begin - 4) as u32;
    out[begin..begin + 4].copy_from_slice(&length.to_be_bytes());
}

fn request(out: &mut Vec<u8>, key: u16, correlation: u32, content: impl FnOnce(&mut Vec<u8>)) {
    command(out, key, |out| {
        out.extend(correlation.to_be_bytes());
        content(out);
    });
}

/// At most 32,767 bytes: the length is signed. What is longer is cut; only names of ours and settings come here, which
/// are checked to be shorter.
fn string(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(i16::MAX as usize)];
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}

fn bytes(out: &mut Vec<u8>, content: &[u8]) {
    out.extend((content.len() as u32).to_be_bytes());
    out.extend(content);
}

fn pairs(out: &mut Vec<u8>, pairs: &[(&str, &str)]) {
    out.extend((pairs.len() as u32).to_be_bytes());
    for (key, value) in pairs {
        string(out, key);
        string(out, value);
    }
}

const VERSION: u16 = 1;
const RESPONSE: u16 = 0x8000;
const DECLARE_PUBLISHER: u16 = 1;
const PUBLISH: u16 = 2;
const PUBLISH_CONFIRM: u16 = 3;
const PUBLISH_ERROR: u16 = 4;
const QUERY_PUBLISHER_SEQUENCE: u16 = 5;
const CREDIT: u16 = 9;
const CREATE: u16 = 13;
const METADATA_UPDATE: u16 = 16;
const PEER_PROPERTIES: u16 = 17;
const SASL_HANDSHAKE: u16 = 18;
const SASL_AUTHENTICATE: u16 = 19;
const TUNE: u16 = 20;
const OPEN: u16 = 21;
const CLOSE: u16 = 22;
const HEARTBEAT: u16 = 23;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(bytes: &[u8]) -> Inbound<'_> {
        parse(&bytes[4..]).unwrap()
    }

    #[test]
    fn requests_are_the_bytes_of_the_protocol() {
        let mut out = Vec::new();
        declare_publisher(&mut out, 7, 1, "me", "s");
        let expected = b"\0\0\0\x10\0\x01\0\x01\0\0\0\x07\x01\0\x02me\0\x01s";
        assert_eq!(out, expected);
        out.clear();
        publish(&mut out, 1, [(258, &b"ab"[..]), (259, b"")].into_iter());
        let mut expected = b"\0\0\0\x23\0\x02\0\x01\x01\0\0\0\x02".to_vec();
        expected.extend(b"\0\0\0\0\0\0\x01\x02\0\0\0\x02ab\0\0\0\0\0\0\x01\x03\0\0\0\0");
        assert_eq!(out, expected);
        out.clear();
        tune(&mut out, 1 << 20, 60);
        assert_eq!(out, b"\0\0\0\x0c\x80\x14\0\x01\0\x10\0\0\0\0\0\x3c");
        assert_eq!(one(&out), Inbound::Tune { frame_max: 1 << 20, heartbeat_s: 60 });
        out.clear();
        heartbeat(&mut out);
        assert_eq!(one(&out), Inbound::Heartbeat);
        out.clear();
        close(&mut out, 3, "bye");
        assert_eq!(one(&out), Inbound::Close { correlation: 3, code: OK, reason: "bye" });
    }

    #[test]
    fn what_a_server_says_is_read() {
        let confirm = b"\0\x03\0\x01\x02\0\0\0\x02\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\x01\0";
        let Ok(Inbound::Confirm { publisher: 2, ids }) = parse(confirm) else {
            panic!("{:?}", parse(confirm))
        };
        assert_eq!(ids.iter().collect::<Vec<_>>(), [5, 256]);
        let error = b"\0\x04\0\x01\x02\0\0\0\x01\0\0\0\0\0\0\0\x05\0\x12";
        assert_eq!(parse(error), Ok(Inbound::PublishError { publisher: 2, id: 5, code: Code(18) }));
        let update = b"\0\x10\0\x01\0\x06\0\x01s";
        assert_eq!(parse(update), Ok(Inbound::MetadataUpdate { code: Code(6), stream: "s" }));
        let reply = b"\x80\x05\0\x01\0\0\0\x09\0\x01\0\0\0\0\0\0\0\x2a";
        let Ok(Inbound::Reply { key: 5, correlation: 9, code: OK, rest }) = parse(reply) else { panic!() };
        assert_eq!(sequence(rest), Ok(42));
        assert_eq!(mechanisms(b"\0\0\0\x02\0\x05PLAIN\0\x08EXTERNAL"), Ok(vec!["PLAIN", "EXTERNAL"]));
        assert!(mechanisms(b"\xff\xff\xff\xff\0\x05PLAIN").is_err());
    }

    #[test]
    fn a_frame_of_another_length_than_it_says_is_refused_and_a_huge_one_is_not_waited_for() {
        let confirm = b"\0\x03\0\x01\x02\xff\xff\xff\xff\0\0\0\0";
        assert_eq!(parse(confirm), Err(WireError::Malformed(3)));
        let mut frames = Frames::default();
        frames.push(&[0xff; 4]);
        assert_eq!(frames.next(), Err(WireError::TooLong(u32::MAX as usize)));
    }

    /// What a server says, one frame after the other.
    fn corpus() -> Vec<Vec<u8>> {
        let frames: [&[u8]; 12] = [
            b"\x80\x11\0\x01\0\0\0\x01\0\x01\0\0\0\x01\0\x07product\0\x08RabbitMQ",
            b"\x80\x12\0\x01\0\0\0\x02\0\x01\0\0\0\x02\0\x05PLAIN\0\x08AMQPLAIN",
            b"\x80\x13\0\x01\0\0\0\x03\0\x01",
            b"\0\x14\0\x01\0\x10\0\0\0\0\0\x3c",
            b"\x80\x15\0\x01\0\0\0\x04\0\x01\0\0\0\0",
            b"\x80\x05\0\x01\0\0\0\x05\0\x01\0\0\0\0\0\0\0\x2a",
            b"\0\x03\0\x01\x02\0\0\0\x02\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\x01\0",
            b"\0\x04\0\x01\x02\0\0\0\x01\0\0\0\0\0\0\0\x05\0\x12",
            b"\0\x10\0\x01\0\x06\0\x01s",
            b"\0\x17\0\x01",
            b"\0\x16\0\x01\0\0\0\x09\0\x01\0\x03bye",
            b"\x80\x09\0\x01\0\x01\x01",
        ];
        let framed = frames.map(|frame| [&(frame.len() as u32).to_be_bytes(), frame].concat());
        let together = framed.concat();
        framed.into_iter().chain([together]).collect()
    }

    #[test]
    fn a_servers_frames_survive_mutated_input() {
        assert!(corpus().iter().all(|input| {
            let mut frames = Frames::default();
            frames.push(input);
            matches!(frames.next(), Ok(Some(_)))
        }));
        crate::fuzz::mutated("stream-frames", corpus(), |input| {
            // Whole, and as a socket may cut it: both are read to the same end.
            let read = |size: usize| {
                let (mut frames, mut said) = (Frames::default(), Vec::new());
                for piece in input.chunks(size) {
                    frames.push(piece);
                    loop {
                        match frames.next() {
                            Ok(Some(frame)) => {
                                if let Inbound::Reply { rest, .. } = frame {
                                    let names = mechanisms(rest);
                                    assert!(
                                        names.is_err() || names.is_ok_and(|names| names.len() <= rest.len())
                                    );
                                    let _ = sequence(rest);
                                }
                                if let Inbound::Confirm { ids, .. } = frame {
                                    assert!(ids.iter().count() * 8 <= input.len());
                                }
                                said.push(format!("{frame:?}"));
                            }
                            Ok(None) => break,
                            Err(error) => {
                                said.push(error.to_string());
                                return said;
                            }
                        }
                    }
                }
                said
            };
            assert_eq!(read(input.len().max(1)), read(7));
        });
    }

    proptest! {
        #[test]
        fn frames_come_whole_however_the_bytes_are_cut(cuts in proptest::collection::vec(1..40usize, 1..40)) {
            let mut bytes = Vec::new();
            for correlation in 0..20u32 {
                close(&mut bytes, correlation, &"x".repeat(correlation as usize));
            }
            let (mut frames, mut seen, mut at) = (Frames::default(), 0, 0);
            for cut in cuts.iter().cycle() {
                let end = bytes.len().min(at + cut);
                frames.push(&bytes[at..end]);
                while let Some(frame) = frames.next().unwrap() {
                    let Inbound::Close { correlation, reason, .. } = frame else { panic!("{frame:?}") };
                    prop_assert_eq!((correlation, reason.len()), (seen, seen as usize));
                    seen += 1;
                }
                at = end;
                if at == bytes.len() { break; }
            }
            prop_assert_eq!(seen, 20);
        }
    }
}
