//! Bytes and packets: framing, a bounds-checked reader, and the small packets both engines write.

mod connect;
mod properties;
mod publish;
mod subscribe;

pub(crate) use connect::{Connect, Will};
pub(crate) use properties::{decode_message_properties, encode_message_properties, read_properties};
pub(crate) use publish::{Alias, Encoded, Header, PublishView, encode_publish};
pub(crate) use subscribe::{Subscribe, SubscribeOptions, Unsubscribe};

use mqtt_protocol_core::mqtt::packet::{Properties as WireProperties, PropertiesParse, Property};

use crate::ReasonCode;

/// The protocol a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// MQTT 3.1 (`MQIsdp`), of 2010.
    V31,
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.0.
    V5,
}

/// One packet in the caller's buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    /// The packet type, 1 to 15.
    pub(crate) kind: u8,
    /// The low four bits of the first byte.
    pub(crate) flags: u8,
    /// Everything behind the remaining length.
    pub(crate) body: &'a [u8],
    /// Bytes the packet takes in the buffer, header included.
    pub(crate) len: usize,
}

pub(crate) mod kind {
    pub(crate) const CONNECT: u8 = 1;
    pub(crate) const CONNACK: u8 = 2;
    pub(crate) const PUBLISH: u8 = 3;
    pub(crate) const PUBACK: u8 = 4;
    pub(crate) const PUBREC: u8 = 5;
    pub(crate) const PUBREL: u8 = 6;
    pub(crate) const PUBCOMP: u8 = 7;
    pub(crate) const SUBSCRIBE: u8 = 8;
    pub(crate) const SUBACK: u8 = 9;
    pub(crate) const UNSUBSCRIBE: u8 = 10;
    pub(crate) const UNSUBACK: u8 = 11;
    pub(crate) const PINGREQ: u8 = 12;
    pub(crate) const PINGRESP: u8 = 13;
    pub(crate) const DISCONNECT: u8 = 14;
}

/// The next packet at the front of `bytes`, or `None` until more has come.
///
/// The size is judged as soon as the length is known, before anything is buffered for it.
pub(crate) fn next_frame(
    version: Version,
    bytes: &[u8],
    max_packet: usize,
) -> Result<Option<Frame<'_>>, ReasonCode> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let (kind, flags) = (first >> 4, first & 0x0f);
    let expected_flags = match kind {
        kind::PUBLISH => flags,
        // 3.1 has the DUP flag in these too (its §2.1).
        kind::PUBREL | kind::SUBSCRIBE | kind::UNSUBSCRIBE if version == Version::V31 => 2 | (flags & 8),
        kind::PUBREL | kind::SUBSCRIBE | kind::UNSUBSCRIBE => 2,
        _ => 0,
    };
    // Reserved flag bits must be as the standard says, else the connection is closed [MQTT-2.1.3-1].
    if kind == 0 || flags != expected_flags {
        return Err(ReasonCode::MALFORMED_PACKET);
    }
    let mut length = 0usize;
    for position in 0..4 {
        let Some(&byte) = bytes.get(1 + position) else { return Ok(None) };
        length |= usize::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            let header = 2 + position;
            let len = header + length;
            if len > max_packet {
                return Err(ReasonCode::PACKET_TOO_LARGE);
            }
            return Ok(bytes.get(header..len).map(|body| Frame { kind, flags, body, len }));
        }
    }
    Err(ReasonCode::MALFORMED_PACKET)
}

/// Reads fields from the front of a packet's body; every failure is a malformed packet.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn byte(&mut self) -> Result<u8, ReasonCode> {
        let (&first, rest) = self.0.split_first().ok_or(ReasonCode::MALFORMED_PACKET)?;
        self.0 = rest;
        Ok(first)
    }

    pub(crate) fn number(&mut self) -> Result<u16, ReasonCode> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    /// A packet identifier: never zero [MQTT-2.2.1-3].
    pub(crate) fn packet_id(&mut self) -> Result<u16, ReasonCode> {
        match self.number()? {
            0 => Err(ReasonCode::PROTOCOL_ERROR),
            id => Ok(id),
        }
    }

    pub(crate) fn binary(&mut self) -> Result<&'a [u8], ReasonCode> {
        let length = usize::from(self.number()?);
        let (field, rest) = self.0.split_at_checked(length).ok_or(ReasonCode::MALFORMED_PACKET)?;
        self.0 = rest;
        Ok(field)
    }

    /// A UTF-8 string: well formed and without NUL [MQTT-1.5.4-1, -2].
    pub(crate) fn text(&mut self) -> Result<&'a str, ReasonCode> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| ReasonCode::MALFORMED_PACKET)?;
        if text.as_bytes().contains(&0) {
            return Err(ReasonCode::MALFORMED_PACKET);
        }
        Ok(text)
    }

    /// A property section. A single zero byte, by far the most common, costs nothing.
    pub(crate) fn properties(&mut self) -> Result<WireProperties, ReasonCode> {
        if let Some((0, rest)) = self.0.split_first() {
            self.0 = rest;
            return Ok(WireProperties::new());
        }
        let (properties, length) = WireProperties::parse(self.0).map_err(reason_of)?;
        // The crate checks UTF-8 but lets NUL pass.
        properties::refuse_nul(&properties)?;
        self.0 = &self.0[length..];
        Ok(properties)
    }

    pub(crate) fn end(&self) -> Result<(), ReasonCode> {
        if self.0.is_empty() { Ok(()) } else { Err(ReasonCode::MALFORMED_PACKET) }
    }
}

/// An acknowledgement as it is read: PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) packet_id: u16,
    pub(crate) reason: ReasonCode,
}

impl Ack {
    pub(crate) fn read(version: Version, body: &[u8]) -> Result<Self, ReasonCode> {
        let mut reader = Reader(body);
        let packet_id = reader.packet_id()?;
        let mut reason = ReasonCode::SUCCESS;
        if version == Version::V5 && !reader.0.is_empty() {
            reason = ReasonCode(reader.byte()?);
            if !reader.0.is_empty() {
                let mut text = None;
                read_properties(reader.properties()?, |property| {
                    match property {
                        Property::ReasonString(_) => properties::once(&mut text, ())?,
                        Property::UserProperty(_) => {}
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
            }
        }
        reader.end()?;
        Ok(Self { packet_id, reason })
    }
}

/// Writes PUBACK, PUBREC, PUBREL or PUBCOMP. The reason is left out where it is success or the version knows none.
pub(crate) fn write_ack(out: &mut Vec<u8>, version: Version, kind: u8, packet_id: u16, reason: ReasonCode) {
    let first = (kind << 4) | if kind == kind::PUBREL { 2 } else { 0 };
    let [high, low] = packet_id.to_be_bytes();
    if version == Version::V5 && reason != ReasonCode::SUCCESS {
        out.extend_from_slice(&[first, 3, high, low, reason.0]);
    } else {
        out.extend_from_slice(&[first, 2, high, low]);
    }
}

/// Writes DISCONNECT; the reason is told to 5.0 peers only.
pub(crate) fn write_disconnect(out: &mut Vec<u8>, version: Version, reason: ReasonCode) {
    if version == Version::V5 && reason != ReasonCode::SUCCESS {
        out.extend_from_slice(&[kind::DISCONNECT << 4, 1, reason.0]);
    } else {
        out.extend_from_slice(&[kind::DISCONNECT << 4, 0]);
    }
}

/// Writes a remaining length or property length.
pub(crate) fn write_length(out: &mut Vec<u8>, mut length: usize) {
    loop {
        let byte = (length & 0x7f) as u8;
        length >>= 7;
        if length == 0 {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}

pub(crate) fn length_of_length(length: usize) -> usize {
    match length {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x001f_ffff => 3,
        _ => 4,
    }
}

pub(crate) fn write_field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// The reason code that an error of the codec crate stands for.
pub(crate) fn reason_of(error: mqtt_protocol_core::mqtt::result_code::MqttError) -> ReasonCode {
    let code = error as u16;
    if (0x80..=0xff).contains(&code) { ReasonCode(code as u8) } else { ReasonCode::MALFORMED_PACKET }
}

/// The largest packet the protocol can express.
pub(crate) const MAX_PACKET: usize = 268_435_455 + 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_waits_for_its_last_byte_and_an_oversized_one_does_not() {
        let packet = [0x30, 4, 0, 1, b'a', b'x'];
        for cut in 0..packet.len() {
            assert!(next_frame(Version::V5, &packet[..cut], 100).unwrap().is_none(), "cut at {cut}");
        }
        let frame = next_frame(Version::V5, &packet, 100).unwrap().unwrap();
        assert_eq!((frame.kind, frame.body.len(), frame.len), (3, 4, 6));
        assert_eq!(
            next_frame(Version::V5, &[0x30, 0xff, 0xff, 0x7f], 100).unwrap_err(),
            ReasonCode::PACKET_TOO_LARGE
        );
    }

    #[test]
    fn reserved_types_flags_and_five_byte_lengths_are_malformed() {
        for bytes in [&[0x00, 0][..], &[0x81, 0], &[0x62 ^ 2, 0], &[0xc1, 0], &[0x30, 0xff, 0xff, 0xff, 0xff]]
        {
            assert_eq!(
                next_frame(Version::V5, bytes, MAX_PACKET).unwrap_err(),
                ReasonCode::MALFORMED_PACKET,
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn lengths_are_written_as_section_1_5_5_shows() {
        for (length, expected) in
            [(0, &[0][..]), (127, &[0x7f]), (128, &[0x80, 1]), (16_384, &[0x80, 0x80, 1])]
        {
            let mut out = Vec::new();
            write_length(&mut out, length);
            assert_eq!(out, expected);
            assert_eq!(length_of_length(length), expected.len());
        }
    }
}
