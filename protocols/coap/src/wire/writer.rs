//! Writes a message into a caller's buffer: [`Writer`].

use super::{Code, Kind, Token};

/// Appends one message to a buffer, front to back.
#[derive(Debug)]
pub struct Writer<'b> {
    out: &'b mut Vec<u8>,
    last: u16,
}

impl<'b> Writer<'b> {
    /// Appends the header and the token.
    pub fn new(out: &'b mut Vec<u8>, kind: Kind, code: Code, id: u16, token: Token) -> Self {
        let token = token.as_bytes();
        let [high, low] = id.to_be_bytes();
        out.extend_from_slice(&[0x40 | (kind as u8) << 4 | token.len() as u8, code.0, high, low]);
        out.extend_from_slice(token);
        Self { out, last: 0 }
    }

    /// Appends an empty message: an acknowledgement, a reset, or a ping.
    pub fn empty(out: &'b mut Vec<u8>, kind: Kind, id: u16) {
        Self::new(out, kind, Code::EMPTY, id, Token::default());
    }

    /// Appends an option of up to 65,804 bytes. Options come in the order of their numbers.
    pub fn option(&mut self, number: u16, value: &[u8]) {
        debug_assert!(number >= self.last, "option {number} after {}", self.last);
        let delta = usize::from(number - self.last);
        self.last = number;
        let (delta_nibble, delta_bytes, delta_len) = extended(delta);
        let (len_nibble, len_bytes, len_len) = extended(value.len());
        self.out.push(delta_nibble << 4 | len_nibble);
        self.out.extend_from_slice(&delta_bytes[..delta_len]);
        self.out.extend_from_slice(&len_bytes[..len_len]);
        self.out.extend_from_slice(value);
    }

    /// Appends an option whose value is an unsigned integer, in as few bytes as it needs (RFC 7252 §3.2).
    pub fn uint(&mut self, number: u16, value: u32) {
        let bytes = value.to_be_bytes();
        self.option(number, &bytes[value.leading_zeros() as usize / 8..]);
    }

    /// Appends the payload and ends the message; an empty one has no marker.
    pub fn payload(self, payload: &[u8]) {
        if !payload.is_empty() {
            self.out.push(0xff);
            self.out.extend_from_slice(payload);
        }
    }
}

/// The nibble and the further bytes of a delta or length (RFC 7252 §3.1).
fn extended(value: usize) -> (u8, [u8; 2], usize) {
    match value {
        0..=12 => (value as u8, [0, 0], 0),
        13..=268 => (13, [(value - 13) as u8, 0], 1),
        _ => (14, ((value - 269) as u16).to_be_bytes(), 2),
    }
}

#[cfg(test)]
mod tests {
    use coap_lite::{CoapOption, Packet};
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Message;

    type Parts = (u8, u8, u16, Vec<u8>, Vec<(u16, Vec<u8>)>, Vec<u8>);

    fn parts() -> impl Strategy<Value = Parts> {
        let option = (0..3000u16, proptest::collection::vec(any::<u8>(), 0..300));
        let token = proptest::collection::vec(any::<u8>(), 0..=8);
        let payload = proptest::collection::vec(any::<u8>(), 0..64);
        let options = proptest::collection::vec(option, 0..12);
        (0..4u8, 1..=255u8, any::<u16>(), token, options, payload).prop_map(|mut parts| {
            parts.4.sort_by_key(|option| option.0);
            parts
        })
    }

    fn write((kind, code, id, token, options, payload): &Parts) -> Vec<u8> {
        let kind =
            [Kind::Confirmable, Kind::NonConfirmable, Kind::Acknowledgement, Kind::Reset][*kind as usize];
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, kind, Code(*code), *id, Token::new(token).unwrap());
        for (number, value) in options {
            writer.option(*number, value);
        }
        writer.payload(payload);
        bytes
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(parts in parts()) {
            let bytes = write(&parts);
            let message = Message::parse(&bytes).unwrap();
            let (kind, code, id, token, options, payload) = parts;
            prop_assert_eq!((message.kind as u8, message.code.0, message.id), (kind, code, id));
            prop_assert_eq!((message.token.as_bytes(), message.payload), (&token[..], &payload[..]));
            let read: Vec<_> = message.options().map(|(number, value)| (number, value.to_vec())).collect();
            prop_assert_eq!(read, options);
        }

        #[test]
        fn coap_lite_reads_what_is_written(parts in parts()) {
            let bytes = write(&parts);
            let packet = Packet::from_bytes(&bytes).unwrap();
            prop_assert_eq!(packet.header.message_id, parts.2);
            prop_assert_eq!(packet.get_token(), &parts.3[..]);
            prop_assert_eq!(&packet.payload, &parts.5);
            let mut read: Vec<(u16, Vec<u8>)> = Vec::new();
            for (number, values) in packet.options() {
                read.extend(values.iter().map(|value| (*number, value.clone())));
            }
            prop_assert_eq!(read, parts.4);
        }

        #[test]
        fn what_coap_lite_writes_is_read(
            id in any::<u16>(), path in proptest::collection::vec("[a-z]{0,20}", 0..6), payload in "[ -~]{0,50}"
        ) {
            let mut packet = Packet::new();
            packet.header.message_id = id;
            packet.header.set_code("0.01");
            for segment in &path {
                packet.add_option(CoapOption::UriPath, segment.clone().into_bytes());
            }
            packet.payload = payload.clone().into_bytes();
            let bytes = packet.to_bytes().unwrap();
            let message = Message::parse(&bytes).unwrap();
            prop_assert_eq!(message.id, id);
            prop_assert_eq!(message.payload, payload.as_bytes());
            let read: Vec<_> = message.values(11).map(|s| String::from_utf8(s.to_vec()).unwrap()).collect();
            prop_assert_eq!(read, path);
        }

        #[test]
        fn any_bytes_are_refused_or_read_as_coap_lite_reads_them(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..80), code in 1..6u8
        ) {
            if bytes.len() >= 4 {
                bytes[0] = 0x40 | bytes[0] & 0x38;
                bytes[1] = code;
            }
            if let Ok(message) = Message::parse(&bytes) {
                let packet = Packet::from_bytes(&bytes).unwrap();
                prop_assert_eq!(message.payload, &packet.payload[..]);
                let count: usize = packet.options().map(|(_, values)| values.len()).sum();
                prop_assert_eq!(message.options().count(), count);
            }
        }
    }
}
