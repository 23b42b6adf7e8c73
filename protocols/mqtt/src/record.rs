//! What a broker keeps over a restart, as records for whoever stores them: a shelf, a key that grows, and bytes.
//!
//! | shelf | key | holds |
//! |---|---|---|
//! | [`Shelf::State`] | a session's number | whose it is, how long it lives, its subscriptions |
//! | | [`RETAINED`] + a number | a retained message |
//! | | [`INCOMING`] + session × 65,536 + packet id | a QoS 2 message taken and not yet released |
//! | | [`WILLS`] + a number | what is to be published when a client is gone without saying so |
//! | [`Shelf::Message`] | a message's number | a message that waits in more than one session |
//! | [`Shelf::Delivery`] | a delivery's number | a message that waits in one session, or where it stands |
//!
//! Numbers in here are big-endian, fields have two bytes of length before them, as in MQTT itself. A record begins with
//! [`FORMAT`]; one that begins otherwise, or is not whole, is no record.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::wire::{
    Reader, SubscribeOptions, Will, decode_message_properties, encode_message_properties, write_field,
    write_length,
};
use crate::{Filter, Message, Qos, ReasonCode, Topic};

/// Where a record stands. Each has keys of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shelf {
    /// Sessions, retained messages, packet ids: few, often written anew.
    State = 1,
    /// Messages that wait in several sessions.
    Message = 2,
    /// Messages that wait in one.
    Delivery = 3,
}

/// One record to be written, or to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub shelf: Shelf,
    /// Which; below 2⁶³.
    pub key: u64,
    /// What it holds from now on; `None` deletes it.
    pub body: Option<Bytes>,
}

/// One record as it was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where.
    pub shelf: Shelf,
    /// Which.
    pub key: u64,
    /// What it holds.
    pub body: Bytes,
}

impl Shelf {
    /// The shelf of this number.
    pub fn new(number: u8) -> Option<Self> {
        [Self::State, Self::Message, Self::Delivery].into_iter().find(|shelf| *shelf as u8 == number)
    }
}

/// A moment that has to be found again by another process: how far off it was when it was written, and when that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) left: Duration,
    /// Milliseconds since 1970; 0 where nobody knew.
    pub(crate) written_ms: u64,
}

impl Due {
    /// How far off it is now. Where nobody knows how much time has passed, none has.
    pub(crate) fn left_at(self, now_ms: u64) -> Duration {
        let is_known = self.written_ms > 0 && now_ms > self.written_ms;
        let passed = if is_known { now_ms - self.written_ms } else { 0 };
        self.left.saturating_sub(Duration::from_millis(passed))
    }
}

/// A session, without the messages that wait in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionRecord {
    pub(crate) client_id: String,
    pub(crate) user: Option<String>,
    /// `None` is as long as the limits allow.
    pub(crate) expiry: Option<Duration>,
    /// When it ends; `None` while its client is connected.
    pub(crate) ends: Option<Due>,
    /// Every delivery before this serial has been sent.
    pub(crate) sent_to: u64,
    pub(crate) subscriptions: Vec<(Filter, SubscribeOptions)>,
}

/// A message that waits in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeliveryRecord {
    pub(crate) session: u64,
    pub(crate) serial: u64,
    pub(crate) stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The client has it and said so: only PUBREL and PUBCOMP are left.
    Released,
    Waiting {
        qos: Qos,
        retain: bool,
        subscription_ids: Vec<u32>,
        expires: Option<Due>,
        shared: Option<Filter>,
        content: Content,
    },
}

/// The message itself, or the number under which it stands on [`Shelf::Message`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Here(Arc<Message>),
    Shared(u64),
}

/// A retained message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RetainedRecord {
    pub(crate) message: Arc<Message>,
    pub(crate) expires: Option<Due>,
}

/// The will of a client that is connected, or was until its will was due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WillRecord {
    pub(crate) client_id: String,
    pub(crate) user: Option<String>,
    pub(crate) will: Will,
}

type Read<T> = Result<T, ReasonCode>;

impl SessionRecord {
    pub(crate) fn write(&self) -> Bytes {
        let mut out = vec![FORMAT, u8::from(self.user.is_some()) | u8::from(self.expiry.is_some()) << 1];
        write_who(&mut out, &self.client_id, self.user.as_deref());
        if let Some(expiry) = self.expiry {
            write_u64(&mut out, expiry.as_millis() as u64);
        }
        write_due(&mut out, self.ends);
        write_u64(&mut out, self.sent_to);
        for (filter, options) in &self.subscriptions {
            write_field(&mut out, filter.as_str().as_bytes());
            let SubscribeOptions { qos, no_local, retain_as_published, retain_handling, id } = *options;
            out.push(
                qos as u8
                    | u8::from(no_local) << 2
                    | u8::from(retain_as_published) << 3
                    | retain_handling << 4,
            );
            out.extend_from_slice(&id.to_be_bytes());
        }
        out.into()
    }

    pub(crate) fn read(body: &[u8]) -> Read<Self> {
        let mut reader = begin(body)?;
        let flags = reader.byte()?;
        let (client_id, user) = read_who(&mut reader, flags)?;
        let expiry = (flags & 2 != 0).then(|| read_u64(&mut reader)).transpose()?.map(Duration::from_millis);
        let ends = read_due(&mut reader)?;
        let sent_to = read_u64(&mut reader)?;
        let mut subscriptions = Vec::new();
        while !reader.0.is_empty() {
            let filter = read_filter(&mut reader)?;
            let bits = reader.byte()?;
            let options = SubscribeOptions {
                qos: Qos::new(bits & 3).ok_or(ReasonCode::MALFORMED_PACKET)?,
                no_local: bits & 4 != 0,
                retain_as_published: bits & 8 != 0,
                retain_handling: (bits >> 4) & 3,
                id: read_u32(&mut reader)?,
            };
            subscriptions.push((filter, options));
        }
        Ok(Self { client_id, user, expiry, ends, sent_to, subscriptions })
    }
}

impl DeliveryRecord {
    pub(crate) fn write(&self) -> Bytes {
        let mut out = vec![FORMAT];
        write_u64(&mut out, self.session);
        write_u64(&mut out, self.serial);
        match &self.stage {
            Stage::Released => out.push(0),
            Stage::Waiting { qos, retain, subscription_ids, expires, shared, content } => {
                let is_here = matches!(content, Content::Here(_));
                out.push(
                    *qos as u8
                        | u8::from(*retain) << 2
                        | u8::from(shared.is_some()) << 3
                        | u8::from(is_here) << 4,
                );
                write_length(&mut out, subscription_ids.len());
                for id in subscription_ids {
                    out.extend_from_slice(&id.to_be_bytes());
                }
                write_due(&mut out, *expires);
                if let Some(filter) = shared {
                    write_field(&mut out, filter.as_str().as_bytes());
                }
                match content {
                    Content::Here(message) => write_message(&mut out, message),
                    Content::Shared(number) => write_u64(&mut out, *number),
                }
            }
        }
        out.into()
    }

    pub(crate) fn read(body: &[u8]) -> Read<Self> {
        let mut reader = begin(body)?;
        let (session, serial) = (read_u64(&mut reader)?, read_u64(&mut reader)?);
        if serial >= MAX_SERIAL {
            return Err(ReasonCode::MALFORMED_PACKET);
        }
        let bits = reader.byte()?;
        let stage = if bits == 0 {
            reader.end()?;
            Stage::Released
        } else {
            let qos = Qos::new(bits & 3).ok_or(ReasonCode::MALFORMED_PACKET)?;
            let count = read_length(&mut reader)?;
            let subscription_ids = (0..count).map(|_| read_u32(&mut reader)).collect::<Read<_>>()?;
            let expires = read_due(&mut reader)?;
            let shared = (bits & 8 != 0).then(|| read_filter(&mut reader)).transpose()?;
            let content = if bits & 16 != 0 {
                Content::Here(Arc::new(read_message(reader)?))
            } else {
                let number = read_u64(&mut reader)?;
                reader.end()?;
                Content::Shared(number)
            };
            Stage::Waiting { qos, retain: bits & 4 != 0, subscription_ids, expires, shared, content }
        };
        Ok(Self { session, serial, stage })
    }
}

impl RetainedRecord {
    pub(crate) fn write(&self) -> Bytes {
        let mut out = vec![FORMAT];
        write_due(&mut out, self.expires);
        write_message(&mut out, &self.message);
        out.into()
    }

    pub(crate) fn read(body: &[u8]) -> Read<Self> {
        let mut reader = begin(body)?;
        Ok(Self { expires: read_due(&mut reader)?, message: Arc::new(read_message(reader)?) })
    }
}

impl WillRecord {
    pub(crate) fn write(&self) -> Bytes {
        let mut out = vec![FORMAT, u8::from(self.user.is_some())];
        write_who(&mut out, &self.client_id, self.user.as_deref());
        write_u64(&mut out, self.will.delay.as_millis() as u64);
        write_message(&mut out, &self.will.message);
        out.into()
    }

    pub(crate) fn read(body: &[u8]) -> Read<Self> {
        let mut reader = begin(body)?;
        let flags = reader.byte()?;
        let (client_id, user) = read_who(&mut reader, flags)?;
        let delay = Duration::from_millis(read_u64(&mut reader)?).min(LONGEST);
        Ok(Self { client_id, user, will: Will { message: read_message(reader)?, delay } })
    }
}

/// The record of [`Shelf::Message`].
pub(crate) fn write_shared(message: &Message) -> Bytes {
    let mut out = vec![FORMAT];
    write_message(&mut out, message);
    out.into()
}

pub(crate) fn read_shared(body: &[u8]) -> Read<Message> {
    read_message(begin(body)?)
}

/// Reads a record of any kind and forgets it: whatever the bytes are, this ends and says whether they were one.
pub fn is_record(shelf: Shelf, key: u64, body: &[u8]) -> bool {
    match shelf {
        Shelf::State if key >= WILLS => WillRecord::read(body).is_ok(),
        Shelf::State if key >= INCOMING => body == [FORMAT],
        Shelf::State if key >= RETAINED => RetainedRecord::read(body).is_ok(),
        Shelf::State => SessionRecord::read(body).is_ok(),
        Shelf::Message => read_shared(body).is_ok(),
        Shelf::Delivery => DeliveryRecord::read(body).is_ok(),
    }
}

fn begin(body: &[u8]) -> Read<Reader<'_>> {
    let mut reader = Reader(body);
    if reader.byte()? == FORMAT { Ok(reader) } else { Err(ReasonCode::MALFORMED_PACKET) }
}

/// A client, and the name under which it was let in, if bit 0 of the record's flags says so.
fn write_who(out: &mut Vec<u8>, client_id: &str, user: Option<&str>) {
    write_field(out, client_id.as_bytes());
    if let Some(user) = user {
        write_field(out, user.as_bytes());
    }
}

fn read_who(reader: &mut Reader<'_>, flags: u8) -> Read<(String, Option<String>)> {
    let client_id = reader.text()?.to_owned();
    let user = (flags & 1 != 0).then(|| reader.text().map(str::to_owned)).transpose()?;
    Ok((client_id, user))
}

/// Last in its record: the payload has no length of its own.
fn write_message(out: &mut Vec<u8>, message: &Message) {
    let Message { topic, payload, qos, retain, properties } = message;
    out.push(*qos as u8 | u8::from(*retain) << 2);
    write_field(out, topic.as_str().as_bytes());
    let expiry = message.expiry().map(|expiry| u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX));
    encode_message_properties(out, properties.as_deref(), expiry, &[]);
    out.extend_from_slice(payload);
}

fn read_message(mut reader: Reader<'_>) -> Read<Message> {
    let bits = reader.byte()?;
    let qos = Qos::new(bits & 3).ok_or(ReasonCode::MALFORMED_PACKET)?;
    let topic = Topic::new(reader.text()?).map_err(|_| ReasonCode::TOPIC_INVALID)?;
    let (properties, _) = decode_message_properties(reader.properties()?)?;
    let payload = Bytes::copy_from_slice(reader.0);
    Ok(Message { topic, payload, qos, retain: bits & 4 != 0, properties })
}

fn write_due(out: &mut Vec<u8>, due: Option<Due>) {
    out.push(u8::from(due.is_some()));
    if let Some(Due { left, written_ms }) = due {
        write_u64(out, left.as_millis() as u64);
        write_u64(out, written_ms);
    }
}

fn read_due(reader: &mut Reader<'_>) -> Read<Option<Due>> {
    match reader.byte()? {
        0 => Ok(None),
        _ => Ok(Some(Due {
            left: Duration::from_millis(read_u64(reader)?).min(LONGEST),
            written_ms: read_u64(reader)?,
        })),
    }
}

fn read_filter(reader: &mut Reader<'_>) -> Read<Filter> {
    Filter::new(reader.text()?).map_err(|_| ReasonCode::FILTER_INVALID)
}

fn write_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn read_u64(reader: &mut Reader<'_>) -> Read<u64> {
    let (bytes, rest) = reader.0.split_first_chunk().ok_or(ReasonCode::MALFORMED_PACKET)?;
    reader.0 = rest;
    Ok(u64::from_be_bytes(*bytes))
}

fn read_u32(reader: &mut Reader<'_>) -> Read<u32> {
    let (bytes, rest) = reader.0.split_first_chunk().ok_or(ReasonCode::MALFORMED_PACKET)?;
    reader.0 = rest;
    Ok(u32::from_be_bytes(*bytes))
}

fn read_length(reader: &mut Reader<'_>) -> Read<usize> {
    let mut length = 0;
    for position in 0..4 {
        let byte = reader.byte()?;
        length |= usize::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return Ok(length);
        }
    }
    Err(ReasonCode::MALFORMED_PACKET)
}

/// The first byte of a record.
pub(crate) const FORMAT: u8 = 1;
/// From this key on, records of [`Shelf::State`] are retained messages.
pub const RETAINED: u64 = 1 << 56;
/// From this key on, they are packet ids.
pub const INCOMING: u64 = 2 << 56;
/// From this key on, they are wills.
pub const WILLS: u64 = 3 << 56;
/// No session has ever had so many messages.
const MAX_SERIAL: u64 = 1 << 62;
/// So far a stored moment may be off: an `Instant` cannot hold everything that eight bytes can say.
const LONGEST: Duration = Duration::from_secs(200 * 365 * 86_400);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Properties;

    fn any_due() -> impl Strategy<Value = Option<Due>> {
        proptest::option::of((0u64..1 << 40, any::<u64>())).prop_map(|due| {
            due.map(|(left, written_ms)| Due { left: Duration::from_millis(left), written_ms })
        })
    }

    fn any_filter() -> impl Strategy<Value = Option<Filter>> {
        proptest::option::of("\\$share/[a-z]{1,3}/[a-zé]{1,5}(/\\+)?(/#)?")
            .prop_map(|text| text.map(|text| Filter::new(text).unwrap()))
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let properties = (proptest::option::of(0u32..1 << 30), proptest::option::of("[a-zü]{0,9}"));
        ("[a-zé/]{1,20}", proptest::collection::vec(any::<u8>(), 0..60), 0u8..3, any::<bool>(), properties)
            .prop_map(|(topic, payload, qos, retain, (expiry, content_type))| {
                let mut message = Message::new(Topic::new(topic).unwrap(), payload);
                (message.qos, message.retain) = (Qos::new(qos).unwrap(), retain);
                let expiry = expiry.map(|seconds| Duration::from_secs(u64::from(seconds)));
                let properties = Properties { expiry, content_type, ..Properties::default() };
                if properties == Properties::default() {
                    message
                } else {
                    message.with_properties(properties)
                }
            })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_and_nothing_shorter_does(
            message in any_message(),
            (due, shared, numbers) in (any_due(), any_filter(), any::<[u64; 3]>()),
            ids in proptest::collection::vec(1u32.., 0..4),
            (client_id, user) in ("[^\\x00]{0,20}", proptest::option::of("[a-z]{0,9}")),
            is_here in any::<bool>(),
        ) {
            let retained = RetainedRecord { message: Arc::new(message.clone()), expires: due };
            prop_assert_eq!(RetainedRecord::read(&retained.write()), Ok(retained.clone()));
            let will = Will { message: Message::clone(&retained.message), delay: Duration::from_secs(7) };
            for user in [None, Some("ü".to_owned())] {
                let will = WillRecord { client_id: "c".into(), user, will: will.clone() };
                prop_assert_eq!(WillRecord::read(&will.write()), Ok(will));
            }
            prop_assert_eq!(read_shared(&write_shared(&message)), Ok(message.clone()));
            let options = SubscribeOptions { qos: message.qos, no_local: message.retain, id: 7, ..<_>::default() };
            let session = SessionRecord {
                client_id,
                user,
                expiry: due.map(|due| due.left),
                ends: due,
                sent_to: numbers[0],
                subscriptions: shared.iter().map(|filter| (filter.clone(), options)).collect(),
            };
            let body = session.write();
            prop_assert_eq!(SessionRecord::read(&body), Ok(session));
            let content = if is_here { Content::Here(Arc::new(message.clone())) } else { Content::Shared(numbers[2]) };
            let stage = Stage::Waiting {
                qos: Qos::ExactlyOnce, retain: true, subscription_ids: ids, expires: due, shared, content,
            };
            let delivery = DeliveryRecord { session: numbers[0], serial: numbers[1] % MAX_SERIAL, stage };
            let body = delivery.write();
            prop_assert!(is_record(Shelf::Delivery, 1, &body));
            let head = body.len() - if is_here { message.payload.len() } else { 0 };
            for length in 0..head {
                prop_assert!(!is_record(Shelf::Delivery, 1, &body[..length]), "{} of {}", length, body.len());
            }
            prop_assert_eq!(DeliveryRecord::read(&body), Ok(delivery));
            let serial = numbers[1] % MAX_SERIAL;
            let released = DeliveryRecord { session: numbers[0], serial, stage: Stage::Released };
            prop_assert_eq!(DeliveryRecord::read(&released.write()), Ok(released));
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            shelf in 1u8..4,
            key in prop_oneof![Just(1), Just(RETAINED), Just(INCOMING)],
            mut body in proptest::collection::vec(any::<u8>(), 1..80),
        ) {
            body[0] = FORMAT;
            is_record(Shelf::new(shelf).unwrap(), key, &body);
        }
    }

    #[test]
    fn time_passes_over_a_restart_where_both_ends_know_it() {
        let due = Due { left: Duration::from_secs(10), written_ms: 1_000_000 };
        assert_eq!(due.left_at(1_004_000), Duration::from_secs(6));
        assert_eq!(due.left_at(2_000_000), Duration::ZERO);
        assert_eq!(due.left_at(0), Duration::from_secs(10), "nobody knows what time it is now");
        assert_eq!(Due { written_ms: 0, ..due }.left_at(2_000_000), Duration::from_secs(10));
        assert_eq!(due.left_at(900_000), Duration::from_secs(10), "the clock was set back");
    }
}
