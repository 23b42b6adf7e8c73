//! The SASL layer in front of AMQP 1.0 (OASIS AMQP 1.0 part 5 §5.3): PLAIN, ANONYMOUS and EXTERNAL.
//!
//! Our own because the library refuses EXTERNAL on a TLS stream that it did not make itself, and ours is made with our
//! authorities and our idea of the time. What is read is bounded by the standard: a SASL frame has at most 512 bytes.

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// How we say who we are.
#[derive(Clone, PartialEq, Eq)]
pub enum Mechanism {
    /// Nobody; an Azure hub is told later, by a token.
    Anonymous,
    /// A user's name and password.
    Plain {
        /// The user.
        username: String,
        /// The password's bytes.
        password: Vec<u8>,
    },
    /// Whom the TLS client certificate names.
    External,
}

/// Why the peer and we did not come together.
#[derive(Debug, Error)]
pub enum SaslError {
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It answered with another protocol.
    #[error("the peer does not speak AMQP 1.0 with SASL: it began with {0:02x?}")]
    Protocol([u8; 8]),
    /// A frame that is none.
    #[error("malformed SASL frame")]
    Malformed,
    /// It does not offer what we need.
    #[error("the peer offers no SASL {wanted}, only {offered}")]
    NotOffered {
        /// What we need.
        wanted: &'static str,
        /// What there is.
        offered: String,
    },
    /// Wrong user, password, certificate or rights (code 1), or trouble on its side (2 to 4).
    #[error("the peer refused the login: SASL code {0}")]
    Refused(u8),
}

/// What a peer says in a SASL frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// The mechanisms it offers.
    Mechanisms(Vec<&'a [u8]>),
    /// It asks something, which none of our mechanisms has an answer to.
    Challenge,
    /// How it went: 0 is well.
    Outcome(u8),
}

impl Mechanism {
    fn name(&self) -> &'static str {
        match self {
            Self::Anonymous => "ANONYMOUS",
            Self::Plain { .. } => "PLAIN",
            Self::External => "EXTERNAL",
        }
    }

    fn response(&self) -> Vec<u8> {
        match self {
            Self::Plain { username, password } => [&[0], username.as_bytes(), &[0], password].concat(),
            Self::Anonymous | Self::External => Vec::new(),
        }
    }
}

/// Logs in; afterwards the stream is at the beginning of AMQP itself.
///
/// # Errors
/// The peer speaks something else, offers nothing that fits, or refuses.
pub async fn authenticate<S>(stream: &mut S, mechanism: &Mechanism, hostname: &str) -> Result<(), SaslError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(HEADER).await?;
    stream.flush().await?;
    let mut header = [0; 8];
    stream.read_exact(&mut header).await?;
    if header != *HEADER {
        return Err(SaslError::Protocol(header));
    }
    let mut frame = Vec::new();
    loop {
        read_frame(stream, &mut frame).await?;
        match parse(&frame)? {
            Heard::Mechanisms(offered) => {
                let wanted = mechanism.name();
                if !offered.contains(&wanted.as_bytes()) {
                    let words: Vec<_> = offered.iter().map(|name| String::from_utf8_lossy(name)).collect();
                    return Err(SaslError::NotOffered { wanted, offered: words.join(", ") });
                }
                stream.write_all(&init(wanted, &mechanism.response(), hostname)).await?;
                stream.flush().await?;
            }
            Heard::Outcome(0) => return Ok(()),
            Heard::Outcome(code) => return Err(SaslError::Refused(code)),
            Heard::Challenge => return Err(SaslError::Malformed),
        }
    }
}

/// Reads one frame, its eight bytes of head included.
async fn read_frame<S: AsyncRead + Unpin>(stream: &mut S, frame: &mut Vec<u8>) -> Result<(), SaslError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let size = u32::from_be_bytes(length) as usize;
    if !(8..=FRAME_MAX).contains(&size) {
        return Err(SaslError::Malformed);
    }
    frame.clear();
    frame.extend(length);
    frame.resize(size, 0);
    stream.read_exact(&mut frame[4..]).await?;
    Ok(())
}

/// Reads a SASL frame.
///
/// # Errors
/// It is none.
pub fn parse(frame: &[u8]) -> Result<Heard<'_>, SaslError> {
    let &[_, _, _, _, offset, kind, ..] = frame else { return Err(SaslError::Malformed) };
    let body = frame.get(usize::from(offset) * 4..).filter(|_| kind == 1).ok_or(SaslError::Malformed)?;
    read(body).ok_or(SaslError::Malformed)
}

fn read(body: &[u8]) -> Option<Heard<'_>> {
    let (descriptor, rest) = match body {
        [0, 0x53, code, rest @ ..] => (u64::from(*code), rest),
        [0, 0x80, rest @ ..] => {
            let (code, rest) = rest.split_first_chunk()?;
            (u64::from_be_bytes(*code), rest)
        }
        _ => return None,
    };
    let mut fields = match rest {
        [0x45, ..] => &[][..],
        [0xc0, size, rest @ ..] => rest.get(1..usize::from(*size))?,
        [0xd0, rest @ ..] => {
            let (size, rest) = rest.split_first_chunk()?;
            rest.get(4..u32::from_be_bytes(*size) as usize)?
        }
        _ => return None,
    };
    match descriptor {
        MECHANISMS => mechanisms(&mut fields).map(Heard::Mechanisms),
        CHALLENGE => Some(Heard::Challenge),
        OUTCOME => match fields {
            [0x50, code, ..] => Some(Heard::Outcome(*code)),
            _ => None,
        },
        _ => None,
    }
}

/// One symbol, or an array of them (part 1 §1.4 "multiple").
fn mechanisms<'a>(rest: &mut &'a [u8]) -> Option<Vec<&'a [u8]>> {
    let (constructor, tail) = rest.split_first()?;
    let wide = match constructor {
        0xa3 | 0xb3 => return variable(rest, *constructor, tail).map(|name| vec![name]),
        0xe0 => false,
        0xf0 => true,
        _ => return None,
    };
    let (head, count) = if wide {
        (8, u32::from_be_bytes(*tail.get(4..)?.first_chunk()?) as usize)
    } else {
        (2, usize::from(*tail.get(1)?))
    };
    let constructor = *tail.get(head)?;
    let mut names = Vec::new();
    let mut at = tail.get(head + 1..)?;
    // Every name takes a byte at least: a count alone reserves nothing.
    for _ in 0..count {
        let here = at;
        names.push(variable(&mut at, constructor, here)?);
    }
    Some(names)
}

/// The content behind a length of one or four bytes; `rest` moves behind it.
fn variable<'a>(rest: &mut &'a [u8], constructor: u8, at: &'a [u8]) -> Option<&'a [u8]> {
    let (length, tail) = match constructor {
        0xa3 => at.split_first().map(|(length, tail)| (usize::from(*length), tail))?,
        0xb3 => at.split_first_chunk().map(|(length, tail)| (u32::from_be_bytes(*length) as usize, tail))?,
        _ => return None,
    };
    let (content, tail) = tail.split_at_checked(length)?;
    *rest = tail;
    Some(content)
}

/// The frame that names a mechanism and gives its first answer. Names and passwords are short enough for the long
/// forms alone: at most 512 bytes, which the settings check.
fn init(mechanism: &str, response: &[u8], hostname: &str) -> Vec<u8> {
    let mut fields = Vec::new();
    for (constructor, content) in
        [(0xb3, mechanism.as_bytes()), (0xb0, response), (0xb1, hostname.as_bytes())]
    {
        fields.push(constructor);
        fields.extend((content.len() as u32).to_be_bytes());
        fields.extend(content);
    }
    let mut frame = vec![0, 0, 0, 0, 2, 1, 0, 0, 0, 0x53, INIT, 0xd0];
    frame.extend((fields.len() as u32 + 4).to_be_bytes());
    frame.extend(3u32.to_be_bytes());
    frame.extend(fields);
    let size = frame.len() as u32;
    frame[..4].copy_from_slice(&size.to_be_bytes());
    frame
}

const HEADER: &[u8; 8] = b"AMQP\x03\x01\x00\x00";
/// MIN-MAX-FRAME-SIZE, beyond which no SASL frame may go (part 5 §5.3.1).
const FRAME_MAX: usize = 512;
const MECHANISMS: u64 = 0x40;
const INIT: u8 = 0x41;
const CHALLENGE: u64 = 0x42;
const OUTCOME: u64 = 0x44;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn what_rabbitmq_and_proton_offer_is_read() {
        // As RabbitMQ 3.10 sends it: a short array of symbols in their long form.
        let rabbit =
            b"\0\0\0\x27\x02\x01\0\0\0\x53\x40\xc0\x1a\x01\xe0\x17\x02\xb3\0\0\0\x05PLAIN\0\0\0\x08AMQPLAIN";
        assert_eq!(parse(rabbit).unwrap(), Heard::Mechanisms(vec![b"PLAIN", b"AMQPLAIN"]));
        let short = b"\0\0\0\x1a\x02\x01\0\0\0\x53\x40\xc0\x0f\x01\xe0\x0c\x01\xa3\x09ANONYMOUS";
        assert_eq!(parse(short).unwrap(), Heard::Mechanisms(vec![b"ANONYMOUS"]));
        let single = b"\0\0\0\x16\x02\x01\0\0\0\x53\x40\xc0\x08\x01\xa3\x05PLAIN";
        assert_eq!(parse(single).unwrap(), Heard::Mechanisms(vec![b"PLAIN"]));
        assert_eq!(
            parse(b"\0\0\0\x10\x02\x01\0\0\0\x53\x44\xc0\x03\x01\x50\x00").unwrap(),
            Heard::Outcome(0)
        );
        assert_eq!(
            parse(b"\0\0\0\x10\x02\x01\0\0\0\x53\x44\xc0\x03\x01\x50\x01").unwrap(),
            Heard::Outcome(1)
        );
    }

    #[test]
    fn a_plain_login_is_the_bytes_of_the_standard() {
        let plain = Mechanism::Plain { username: "u".into(), password: b"p".to_vec() };
        let frame = init(plain.name(), &plain.response(), "h");
        let expected = b"\0\0\0\x2d\x02\x01\0\0\0\x53\x41\xd0\0\0\0\x1d\0\0\0\x03\xb3\0\0\0\x05PLAIN\xb0\0\0\0\x04\0u\0p\xb1\0\0\0\x01h";
        assert_eq!(frame, expected);
    }

    #[test]
    fn a_login_survives_mutated_input() {
        let offers: [&[u8]; 4] = [
            b"\0\0\0\x27\x02\x01\0\0\0\x53\x40\xc0\x1a\x01\xe0\x17\x02\xb3\0\0\0\x05PLAIN\0\0\0\x08AMQPLAIN",
            b"\0\0\0\x15\x02\x01\0\0\0\x53\x40\xc0\x08\x01\xa3\x05PLAIN",
            b"\0\0\0\x2d\x02\x01\0\0\0\x53\x40\xd0\0\0\0\x1d\0\0\0\x01\xf0\0\0\0\x14\0\0\0\x02\xa3\x05PLAIN\x08EXTERNAL",
            b"\0\0\0\x1f\x02\x01\0\0\0\x80\0\0\0\0\0\0\0\x40\xc0\x0b\x01\xe0\x08\x01\xa3\x05PLAIN",
        ];
        let ends: [&[u8]; 3] = [
            b"\0\0\0\x10\x02\x01\0\0\0\x53\x44\xc0\x03\x01\x50\x00",
            b"\0\0\0\x10\x02\x01\0\0\0\x53\x44\xc0\x03\x01\x50\x01",
            b"\0\0\0\x12\x02\x01\0\0\0\x53\x42\xc0\x05\x01\xa0\x02hi",
        ];
        assert!(offers.iter().all(|frame| matches!(parse(frame), Ok(Heard::Mechanisms(_)))));
        assert!(ends.iter().all(|frame| matches!(parse(frame), Ok(Heard::Outcome(_) | Heard::Challenge))));
        let corpus = offers.iter().flat_map(|offer| ends.iter().map(|end| [HEADER, *offer, *end].concat()));
        let plain = Mechanism::Plain { username: "u".into(), password: b"p".to_vec() };
        crate::fuzz::mutated("amqp10-sasl", corpus.collect(), |input| {
            // What the peer says is all there already: nothing waits.
            let mut peer = tokio::io::join(input, tokio::io::sink());
            let logged_in = authenticate(&mut peer, &plain, "h").now_or_never();
            assert!(logged_in.is_some());
            let _ = parse(input);
        });
    }
}
