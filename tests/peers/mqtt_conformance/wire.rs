//! MQTT packets as bytes, made by hand so that they can also be wrong: no codec of ours or of anyone's is trusted here.

/// The protocol a check speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// MQTT 3.1, `MQIsdp`.
    V31,
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.0.
    V5,
}

/// Packet types.
pub mod kind {
    pub const CONNECT: u8 = 1;
    pub const CONNACK: u8 = 2;
    pub const PUBLISH: u8 = 3;
    pub const PUBACK: u8 = 4;
    pub const PUBREC: u8 = 5;
    pub const PUBREL: u8 = 6;
    pub const PUBCOMP: u8 = 7;
    pub const SUBSCRIBE: u8 = 8;
    pub const SUBACK: u8 = 9;
    pub const UNSUBSCRIBE: u8 = 10;
    pub const UNSUBACK: u8 = 11;
    pub const PINGREQ: u8 = 12;
    pub const PINGRESP: u8 = 13;
    pub const DISCONNECT: u8 = 14;
    pub const AUTH: u8 = 15;
}

/// One packet: its first byte and everything behind the remaining length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub first: u8,
    pub body: Vec<u8>,
}

/// A PUBLISH, to be sent or received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    pub topic: Vec<u8>,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    pub dup: bool,
    /// Zero has none, or lets the client choose.
    pub id: u16,
    pub properties: Properties,
}

/// A property section, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties(pub Vec<Property>);

/// One property of MQTT 5.0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    pub id: u8,
    pub value: Value,
}

/// What a property holds: text and binary data look the same on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Number(u32),
    Bytes(Vec<u8>),
    Pair(Vec<u8>, Vec<u8>),
}

/// A fixed header and what belongs behind it.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    push_length(&mut out, body.len());
    out.extend_from_slice(body);
    out
}

pub fn push_length(out: &mut Vec<u8>, mut length: usize) {
    loop {
        let byte = (length & 0x7f) as u8;
        length >>= 7;
        out.push(if length == 0 { byte } else { byte | 0x80 });
        if length == 0 {
            return;
        }
    }
}

/// Bytes with their length in two bytes before them.
pub fn push_field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// The number of a variable length and how many bytes it took.
pub fn length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (position, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return Some((value, position + 1));
        }
    }
    None
}

impl Packet {
    pub fn kind(&self) -> u8 {
        self.first >> 4
    }

    /// The packet id at the front of an acknowledgement.
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.body[0], self.body[1]])
    }

    /// The reason of a PUBACK, PUBREC, PUBREL or PUBCOMP: left out, it is success.
    pub fn reason(&self) -> u8 {
        self.body.get(2).copied().unwrap_or(0)
    }

    /// The codes of a SUBACK or UNSUBACK.
    pub fn codes(&self, version: Version) -> Vec<u8> {
        let mut fields = Fields(&self.body[2..]);
        if version == Version::V5 {
            fields.properties();
        }
        fields.0.to_vec()
    }

    /// The reason of a DISCONNECT: left out, it is success.
    pub fn disconnect_reason(&self) -> u8 {
        self.body.first().copied().unwrap_or(0)
    }

    /// The message, if this is a PUBLISH.
    pub fn publish(&self, version: Version) -> Publish {
        assert_eq!(self.kind(), kind::PUBLISH, "not a PUBLISH: {self:02x?}");
        let mut fields = Fields(&self.body);
        let qos = (self.first >> 1) & 3;
        let topic = fields.field().to_vec();
        let id = if qos > 0 { fields.number() } else { 0 };
        assert!(qos == 0 || id != 0, "a PUBLISH with packet id 0");
        let properties = if version == Version::V5 { fields.properties() } else { Properties::default() };
        Publish {
            topic,
            payload: fields.0.to_vec(),
            qos,
            retain: self.first & 1 != 0,
            dup: self.first & 8 != 0,
            id,
            properties,
        }
    }
}

impl Publish {
    pub fn new(topic: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> Self {
        Self {
            topic: topic.as_ref().to_vec(),
            payload: payload.as_ref().to_vec(),
            qos: 0,
            retain: false,
            dup: false,
            id: 0,
            properties: Properties::default(),
        }
    }

    pub fn qos(mut self, qos: u8) -> Self {
        self.qos = qos;
        self
    }

    pub fn retained(mut self) -> Self {
        self.retain = true;
        self
    }

    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    pub fn dup(mut self) -> Self {
        self.dup = true;
        self
    }

    pub fn with(mut self, property: Property) -> Self {
        self.properties.0.push(property);
        self
    }

    pub fn bytes(&self, version: Version) -> Vec<u8> {
        let mut body = Vec::new();
        push_field(&mut body, &self.topic);
        if self.qos > 0 {
            body.extend_from_slice(&self.id.to_be_bytes());
        }
        if version == Version::V5 {
            self.properties.push(&mut body);
        }
        body.extend_from_slice(&self.payload);
        let flags = u8::from(self.dup) << 3 | self.qos << 1 | u8::from(self.retain);
        packet(kind::PUBLISH << 4 | flags, &body)
    }

    /// The payload as text, for messages that say what they are.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    pub fn topic(&self) -> String {
        String::from_utf8_lossy(&self.topic).into_owned()
    }
}

impl Properties {
    pub fn push(&self, out: &mut Vec<u8>) {
        let mut section = Vec::new();
        for property in &self.0 {
            property.push(&mut section);
        }
        push_length(out, section.len());
        out.extend_from_slice(&section);
    }

    /// The number of the first property with this id.
    pub fn number(&self, id: u8) -> Option<u32> {
        self.numbers(id).first().copied()
    }

    pub fn numbers(&self, id: u8) -> Vec<u32> {
        let numbers = self.0.iter().filter(|property| property.id == id);
        numbers
            .filter_map(|p| if let Value::Number(number) = p.value { Some(number) } else { None })
            .collect()
    }

    pub fn bytes(&self, id: u8) -> Option<Vec<u8>> {
        self.0.iter().find(|property| property.id == id).and_then(|property| match &property.value {
            Value::Bytes(bytes) => Some(bytes.clone()),
            _ => None,
        })
    }

    /// User properties in their order.
    pub fn user(&self) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let pairs = self.0.iter().filter_map(|property| match &property.value {
            Value::Pair(name, value) => Some((text(name), text(value))),
            _ => None,
        });
        pairs.collect()
    }
}

impl Property {
    fn push(&self, out: &mut Vec<u8>) {
        out.push(self.id);
        match &self.value {
            Value::Number(number) => match width(self.id) {
                Width::One => out.push(*number as u8),
                Width::Two => out.extend_from_slice(&(*number as u16).to_be_bytes()),
                Width::Four => out.extend_from_slice(&number.to_be_bytes()),
                _ => push_length(out, *number as usize),
            },
            Value::Bytes(bytes) => push_field(out, bytes),
            Value::Pair(name, value) => {
                push_field(out, name);
                push_field(out, value);
            }
        }
    }
}

/// Makes properties; each function is called as the standard calls the property.
pub mod property {
    use super::{Property, Value};

    pub const PAYLOAD_FORMAT: u8 = 0x01;
    pub const MESSAGE_EXPIRY: u8 = 0x02;
    pub const CONTENT_TYPE: u8 = 0x03;
    pub const RESPONSE_TOPIC: u8 = 0x08;
    pub const CORRELATION_DATA: u8 = 0x09;
    pub const SUBSCRIPTION_ID: u8 = 0x0b;
    pub const SESSION_EXPIRY: u8 = 0x11;
    pub const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub const AUTHENTICATION_METHOD: u8 = 0x15;
    pub const AUTHENTICATION_DATA: u8 = 0x16;
    pub const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub const WILL_DELAY: u8 = 0x18;
    pub const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub const RESPONSE_INFORMATION: u8 = 0x1a;
    pub const REASON_STRING: u8 = 0x1f;
    pub const RECEIVE_MAXIMUM: u8 = 0x21;
    pub const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub const TOPIC_ALIAS: u8 = 0x23;
    pub const MAXIMUM_QOS: u8 = 0x24;
    pub const RETAIN_AVAILABLE: u8 = 0x25;
    pub const USER: u8 = 0x26;
    pub const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub const WILDCARD_AVAILABLE: u8 = 0x28;
    pub const SUBSCRIPTION_ID_AVAILABLE: u8 = 0x29;
    pub const SHARED_AVAILABLE: u8 = 0x2a;

    pub fn number(id: u8, number: u32) -> Property {
        Property { id, value: Value::Number(number) }
    }

    pub fn bytes(id: u8, bytes: impl AsRef<[u8]>) -> Property {
        Property { id, value: Value::Bytes(bytes.as_ref().to_vec()) }
    }

    pub fn user(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Property {
        Property { id: USER, value: Value::Pair(name.as_ref().to_vec(), value.as_ref().to_vec()) }
    }

    pub fn session_expiry(seconds: u32) -> Property {
        number(SESSION_EXPIRY, seconds)
    }

    pub fn message_expiry(seconds: u32) -> Property {
        number(MESSAGE_EXPIRY, seconds)
    }

    pub fn topic_alias(alias: u32) -> Property {
        number(TOPIC_ALIAS, alias)
    }

    pub fn receive_maximum(messages: u32) -> Property {
        number(RECEIVE_MAXIMUM, messages)
    }

    pub fn will_delay(seconds: u32) -> Property {
        number(WILL_DELAY, seconds)
    }

    pub fn subscription_id(id: u32) -> Property {
        number(SUBSCRIPTION_ID, id)
    }

    pub fn maximum_packet_size(bytes: u32) -> Property {
        number(MAXIMUM_PACKET_SIZE, bytes)
    }
}

/// Reads fields from the front of a body; a broker that sends less than it says fails the check.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        assert!(self.0.len() >= count, "a packet ends {} bytes early", count - self.0.len());
        let (front, rest) = self.0.split_at(count);
        self.0 = rest;
        front
    }

    pub fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    pub fn number(&mut self) -> u16 {
        let bytes = self.take(2);
        u16::from_be_bytes([bytes[0], bytes[1]])
    }

    pub fn field(&mut self) -> &'a [u8] {
        let count = self.number();
        self.take(usize::from(count))
    }

    pub fn properties(&mut self) -> Properties {
        let (count, took) = length(self.0).expect("a property section has a length");
        self.take(took);
        let mut section = Fields(self.take(count));
        let mut properties = Vec::new();
        while !section.0.is_empty() {
            let id = section.byte();
            let value = match width(id) {
                Width::One => Value::Number(section.byte().into()),
                Width::Two => Value::Number(section.number().into()),
                Width::Four => Value::Number(u32::from(section.number()) << 16 | u32::from(section.number())),
                Width::Length => {
                    let (number, took) = length(section.0).expect("a subscription id");
                    section.take(took);
                    Value::Number(number as u32)
                }
                Width::Bytes => Value::Bytes(section.field().to_vec()),
                Width::Pair => Value::Pair(section.field().to_vec(), section.field().to_vec()),
            };
            properties.push(Property { id, value });
        }
        Properties(properties)
    }
}

enum Width {
    One,
    Two,
    Four,
    Length,
    Bytes,
    Pair,
}

/// MQTT 5.0 §2.2.2.2.
fn width(id: u8) -> Width {
    match id {
        0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => Width::One,
        0x13 | 0x21 | 0x22 | 0x23 => Width::Two,
        0x02 | 0x11 | 0x18 | 0x27 => Width::Four,
        0x0b => Width::Length,
        0x26 => Width::Pair,
        _ => Width::Bytes,
    }
}
