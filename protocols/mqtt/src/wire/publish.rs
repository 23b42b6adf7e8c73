//! PUBLISH (MQTT 5.0 §3.3), the hot path: read in place, encoded once for many.

use bytes::Bytes;

use super::properties::Extras;
use super::{
    Reader, Version, decode_message_properties, encode_message_properties, kind, length_of_length,
    write_field, write_length,
};
use crate::{Message, Properties, Qos, ReasonCode, Topic};

/// A received PUBLISH; topic and payload still lie in the caller's buffer.
#[derive(Debug)]
pub(crate) struct PublishView<'a> {
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// Empty when a topic alias stands for it.
    pub(crate) topic: &'a str,
    /// Zero at QoS 0.
    pub(crate) packet_id: u16,
    pub(crate) properties: Option<Box<Properties>>,
    pub(crate) topic_alias: Option<u16>,
    /// The subscriptions it was sent for; only a broker sends them.
    pub(crate) subscription_ids: Vec<u32>,
    pub(crate) payload: &'a [u8],
}

impl<'a> PublishView<'a> {
    pub(crate) fn read(version: Version, flags: u8, body: &'a [u8]) -> Result<Self, ReasonCode> {
        let qos = Qos::new((flags >> 1) & 3).ok_or(ReasonCode::MALFORMED_PACKET)?;
        let dup = flags & 8 != 0;
        // DUP has no meaning at QoS 0 [MQTT-3.3.1-2].
        if dup && qos == Qos::AtMostOnce {
            return Err(ReasonCode::MALFORMED_PACKET);
        }
        let mut reader = Reader(body);
        let topic = reader.text()?;
        let packet_id = if qos == Qos::AtMostOnce { 0 } else { reader.packet_id()? };
        let (properties, extras) = if version == Version::V5 {
            decode_message_properties(reader.properties()?)?
        } else {
            (None, Extras::default())
        };
        if extras.will_delay.is_some() {
            return Err(ReasonCode::PROTOCOL_ERROR);
        }
        Ok(Self {
            qos,
            retain: flags & 1 != 0,
            topic,
            packet_id,
            properties,
            topic_alias: extras.topic_alias,
            subscription_ids: extras.subscription_ids,
            payload: reader.0,
        })
    }

    /// The message, with the topic that the view's own or its alias names.
    pub(crate) fn into_message(self, topic: Topic) -> Message {
        Message {
            topic,
            payload: Bytes::copy_from_slice(self.payload),
            qos: self.qos,
            retain: self.retain,
            properties: self.properties,
        }
    }
}

/// A PUBLISH ready to be sent to many: only the first byte and the packet id differ between them.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    bytes: Vec<u8>,
    /// Where the topic stands, with its length.
    topic_at: usize,
    /// Where the packet id stands; 0 when there is none.
    id_at: usize,
}

/// What differs between those who are sent the same message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) dup: bool,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// Zero at QoS 0.
    pub(crate) packet_id: u16,
}

/// A number that stands for a topic on one connection (MQTT 5.0 §3.3.2.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alias {
    pub(crate) number: u16,
    /// Whether the receiver has seen it beside its topic: then it comes instead of it.
    pub(crate) is_known: bool,
}

impl Encoded {
    pub(crate) fn new(
        version: Version,
        message: &Message,
        has_id: bool,
        expiry_secs: Option<u32>,
        subscription_ids: &[u32],
    ) -> Self {
        let topic = message.topic.as_str();
        let mut properties = Vec::new();
        if version == Version::V5 {
            encode_message_properties(
                &mut properties,
                message.properties.as_deref(),
                expiry_secs,
                subscription_ids,
            );
        }
        let length = 2 + topic.len() + if has_id { 2 } else { 0 } + properties.len() + message.payload.len();
        let mut bytes = Vec::with_capacity(1 + length_of_length(length) + length);
        bytes.push(kind::PUBLISH << 4);
        write_length(&mut bytes, length);
        let topic_at = bytes.len();
        write_field(&mut bytes, topic.as_bytes());
        let id_at = if has_id { bytes.len() } else { 0 };
        if has_id {
            bytes.extend_from_slice(&[0, 0]);
        }
        bytes.extend_from_slice(&properties);
        bytes.extend_from_slice(&message.payload);
        Self { bytes, topic_at, id_at }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends the packet with its flags and, above QoS 0, its packet id.
    pub(crate) fn write(&self, out: &mut Vec<u8>, header: Header) {
        let Header { dup, qos, retain, packet_id } = header;
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        out[start] |= (u8::from(dup) << 3) | ((qos as u8) << 1) | u8::from(retain);
        if self.id_at != 0 {
            out[start + self.id_at..start + self.id_at + 2].copy_from_slice(&packet_id.to_be_bytes());
        }
    }

    /// The same packet of version 5.0 under an alias.
    pub(crate) fn under(&self, alias: Alias) -> Self {
        let topic_length =
            usize::from(u16::from_be_bytes([self.bytes[self.topic_at], self.bytes[self.topic_at + 1]]));
        let topic_end = self.topic_at + 2 + topic_length;
        let topic = if alias.is_known { &[] } else { &self.bytes[self.topic_at + 2..topic_end] };
        let has_id = self.id_at != 0;
        // The length of the properties, they themselves and the payload.
        let rest = &self.bytes[topic_end + if has_id { 2 } else { 0 }..];
        let width = rest.iter().take_while(|byte| *byte & 0x80 != 0).count() + 1;
        let before =
            rest[..width].iter().rev().fold(0, |length, byte| length << 7 | usize::from(byte & 0x7f));
        let rest = &rest[width..];
        let properties_length = before + ALIAS_BYTES;
        let length = 2
            + topic.len()
            + if has_id { 2 } else { 0 }
            + length_of_length(properties_length)
            + ALIAS_BYTES
            + rest.len();
        let mut bytes = Vec::with_capacity(1 + length_of_length(length) + length);
        bytes.push(self.bytes[0]);
        write_length(&mut bytes, length);
        let topic_at = bytes.len();
        write_field(&mut bytes, topic);
        let id_at = if has_id { bytes.len() } else { 0 };
        if has_id {
            bytes.extend_from_slice(&[0, 0]);
        }
        write_length(&mut bytes, properties_length);
        bytes.push(TOPIC_ALIAS);
        bytes.extend_from_slice(&alias.number.to_be_bytes());
        bytes.extend_from_slice(rest);
        Self { bytes, topic_at, id_at }
    }
}

/// The property that names an alias: its kind and a two-byte number.
const ALIAS_BYTES: usize = 3;
const TOPIC_ALIAS: u8 = 0x23;

/// Writes one PUBLISH; for a single receiver.
pub(crate) fn encode_publish(
    out: &mut Vec<u8>,
    version: Version,
    message: &Message,
    dup: bool,
    qos: Qos,
    packet_id: u16,
) {
    let expiry = message.expiry().map(|expiry| u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX));
    let header = Header { dup, qos, retain: message.retain, packet_id };
    Encoded::new(version, message, qos != Qos::AtMostOnce, expiry, &[]).write(out, header);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mqtt_protocol_core::mqtt::Arc as CrateArc;
    use mqtt_protocol_core::mqtt::packet::{v3_1_1, v5_0};
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{MAX_PACKET, next_frame};

    fn any_properties() -> impl Strategy<Value = Properties> {
        let texts = || proptest::option::of("[a-zé]{0,8}");
        (
            proptest::option::of(any::<bool>()),
            proptest::option::of(any::<u32>()),
            texts(),
            proptest::option::of("[a-z/]{1,9}"),
            proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9)),
            proptest::collection::vec(("[a-z]{0,5}", "[a-zü]{0,5}"), 0..4),
        )
            .prop_map(|(is_text, expiry, content_type, response, correlation, user)| Properties {
                is_text,
                expiry: expiry.map(|seconds| Duration::from_secs(u64::from(seconds))),
                content_type,
                response_topic: response.map(|topic| Topic::new(topic).unwrap()),
                correlation_data: correlation.map(Bytes::from),
                user,
            })
    }

    proptest! {
        #[test]
        fn a_written_publish_is_read_back_the_same(
            version in prop_oneof![Just(Version::V311), Just(Version::V5)],
            topic in "[a-z/é$]{1,40}",
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            (qos, retain, dup) in (0u8..3, any::<bool>(), any::<bool>()),
            packet_id in 1u16..,
            properties in any_properties(),
        ) {
            let qos = Qos::new(qos).unwrap();
            let dup = dup && qos != Qos::AtMostOnce;
            let mut message = Message::new(Topic::new(topic).unwrap(), payload).with_qos(qos);
            message.retain = retain;
            if version == Version::V5 && properties != Properties::default() {
                message = message.with_properties(properties);
            }
            let mut out = Vec::new();
            encode_publish(&mut out, version, &message, dup, qos, packet_id);
            let frame = next_frame(Version::V5, &out, MAX_PACKET).unwrap().unwrap();
            prop_assert_eq!(frame.len, out.len());
            let view = PublishView::read(version, frame.flags, frame.body).unwrap();
            prop_assert_eq!(frame.flags & 8 != 0, dup);
            prop_assert_eq!(view.packet_id, if qos == Qos::AtMostOnce { 0 } else { packet_id });
            let topic = Topic::new(view.topic).unwrap();
            prop_assert_eq!(view.into_message(topic), message);
        }

        #[test]
        fn under_an_alias_a_message_is_the_same_but_for_its_topic(
            topic in "[a-z/é$]{1,40}",
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            (qos, is_known, number) in (0u8..3, any::<bool>(), 1u16..),
            packet_id in 1u16..,
            properties in any_properties(),
        ) {
            let qos = Qos::new(qos).unwrap();
            let message = Message::new(Topic::new(topic).unwrap(), payload)
                .with_qos(qos)
                .with_properties(properties);
            let expiry = message.expiry().map(|expiry| expiry.as_secs() as u32);
            let header = Header { dup: false, qos, retain: false, packet_id };
            let encoded = Encoded::new(Version::V5, &message, qos != Qos::AtMostOnce, expiry, &[7, 300]);
            let under = encoded.under(Alias { number, is_known });
            let mut out = Vec::new();
            under.write(&mut out, header);
            let frame = next_frame(Version::V5, &out, MAX_PACKET).unwrap().unwrap();
            prop_assert_eq!((frame.len, under.len()), (out.len(), out.len()));
            let view = PublishView::read(Version::V5, frame.flags, frame.body).unwrap();
            prop_assert_eq!(view.topic, if is_known { "" } else { message.topic.as_str() });
            prop_assert_eq!(view.topic_alias, Some(number));
            prop_assert_eq!(&view.subscription_ids, &[7, 300]);
            prop_assert_eq!(view.packet_id, if qos == Qos::AtMostOnce { 0 } else { packet_id });
            let topic = message.topic.clone();
            let read = view.into_message(topic);
            prop_assert_eq!((&read.payload, read.properties.as_deref().cloned().unwrap_or_default()),
                (&message.payload, message.properties.as_deref().cloned().unwrap_or_default()));
        }

        #[test]
        fn the_view_accepts_nothing_that_the_codec_crate_refuses(
            flags in 0u8..16,
            body in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                // Nearly right: a topic, an id, a property section with something in it.
                ("[a-z]{1,4}", any::<u16>(), proptest::collection::vec(0u8..50, 0..12)).prop_map(
                    |(topic, id, rest)| {
                        let mut body = Vec::new();
                        write_field(&mut body, topic.as_bytes());
                        body.extend_from_slice(&id.to_be_bytes());
                        body.push(rest.len() as u8);
                        body.extend(rest);
                        body
                    }
                ),
            ],
        ) {
            let shared: CrateArc<[u8]> = CrateArc::from(body.as_slice());
            if let Ok(view) = PublishView::read(Version::V5, flags, &body) {
                let (theirs, _) = v5_0::Publish::parse(flags, shared.clone()).expect("refused by the crate");
                prop_assert_eq!(theirs.topic_name(), view.topic);
                prop_assert_eq!(theirs.packet_id().unwrap_or(0), view.packet_id);
                prop_assert_eq!(theirs.payload().as_slice(), view.payload);
            }
            if let Ok(view) = PublishView::read(Version::V311, flags, &body) {
                let (theirs, _) = v3_1_1::Publish::parse(flags, shared).expect("refused by the crate");
                prop_assert_eq!(theirs.payload().as_slice(), view.payload);
            }
        }
    }
}
