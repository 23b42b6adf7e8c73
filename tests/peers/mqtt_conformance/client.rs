//! A client on a bare connection that does what a check tells it, right or wrong, and says what came back.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use harness::{Endpoint, Wire};

use crate::wire::{
    Fields, Packet, Properties, Property, Publish, Version, kind, length, packet, property, push_field,
};

/// How long anything may take that has to come.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long is listened for what must not come, after everything that would make it come was answered.
const SILENCE: Duration = Duration::from_millis(150);

/// What CONNECT says.
#[derive(Clone, Debug)]
pub struct Connect {
    pub version: Version,
    pub id: Vec<u8>,
    pub clean: bool,
    pub keep_alive: u16,
    pub properties: Properties,
    pub will: Option<Publish>,
    pub user: Option<Vec<u8>>,
    pub password: Option<Vec<u8>>,
}

/// What CONNACK says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connack {
    pub flags: u8,
    pub reason: u8,
    pub properties: Properties,
}

/// The connection was closed by the broker.
#[derive(Debug)]
pub struct Closed;

/// One connection.
#[derive(Debug)]
pub struct Client {
    wire: Wire,
    held: Vec<u8>,
    /// Read while something else was waited for.
    pending: VecDeque<Packet>,
    pub version: Version,
    last_id: u16,
}

impl Connect {
    pub fn new(version: Version, id: impl AsRef<[u8]>) -> Self {
        Self {
            version,
            id: id.as_ref().to_vec(),
            clean: true,
            keep_alive: 60,
            properties: Properties::default(),
            will: None,
            user: None,
            password: None,
        }
    }

    /// A session that is resumed and that stays: clean start 0, and in 5.0 an expiry of a minute.
    pub fn lasting(mut self) -> Self {
        self.clean = false;
        if self.version == Version::V5 { self.with(property::session_expiry(60)) } else { self }
    }

    pub fn clean(mut self, clean: bool) -> Self {
        self.clean = clean;
        self
    }

    pub fn keep_alive(mut self, seconds: u16) -> Self {
        self.keep_alive = seconds;
        self
    }

    pub fn with(mut self, property: Property) -> Self {
        self.properties.0.push(property);
        self
    }

    /// The will's properties are those of the message.
    pub fn will(mut self, will: Publish) -> Self {
        self.will = Some(will);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut flags = u8::from(self.clean) << 1;
        if let Some(will) = &self.will {
            flags |= 4 | will.qos << 3 | u8::from(will.retain) << 5;
        }
        flags |= u8::from(self.password.is_some()) << 6 | u8::from(self.user.is_some()) << 7;
        let (name, level): (&[u8], u8) = match self.version {
            Version::V31 => (b"MQIsdp", 3),
            Version::V311 => (b"MQTT", 4),
            Version::V5 => (b"MQTT", 5),
        };
        self.bytes_as(name, level, flags)
    }

    /// The same with a head of the check's choice.
    pub fn bytes_as(&self, name: &[u8], level: u8, flags: u8) -> Vec<u8> {
        let is_v5 = self.version == Version::V5;
        let mut body = Vec::new();
        push_field(&mut body, name);
        body.extend_from_slice(&[level, flags]);
        body.extend_from_slice(&self.keep_alive.to_be_bytes());
        if is_v5 {
            self.properties.push(&mut body);
        }
        push_field(&mut body, &self.id);
        if let Some(will) = &self.will {
            if is_v5 {
                will.properties.push(&mut body);
            }
            push_field(&mut body, &will.topic);
            push_field(&mut body, &will.payload);
        }
        for field in [&self.user, &self.password].into_iter().flatten() {
            push_field(&mut body, field);
        }
        packet(kind::CONNECT << 4, &body)
    }

    /// Connects and expects to be let in.
    pub fn open(&self, broker: &Endpoint) -> Client {
        self.open_with(broker).0
    }

    /// Connects, expects to be let in, and shows the CONNACK.
    pub fn open_with(&self, broker: &Endpoint) -> (Client, Connack) {
        let mut client = Client::dial(broker, self.version);
        client.send(&self.bytes());
        let connack = client.connack();
        assert_eq!(connack.reason, 0, "the connection was refused: {connack:?}");
        (client, connack)
    }
}

impl Connack {
    pub fn is_present(&self) -> bool {
        self.flags & 1 != 0
    }
}

impl Client {
    /// A connection on which nothing has been said.
    pub fn dial(broker: &Endpoint, version: Version) -> Self {
        let wire = broker.dial().expect("the broker listens");
        Self { wire, held: Vec::new(), pending: VecDeque::new(), version, last_id: 0 }
    }

    /// Sends bytes as they are. The broker may have closed already: what it said then is what counts.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.wire.write_all(bytes);
    }

    /// The next packet, or `None` when none came in time.
    pub fn read(&mut self, within: Duration) -> Result<Option<Packet>, Closed> {
        if let Some(packet) = self.pending.pop_front() {
            return Ok(Some(packet));
        }
        self.read_new(within)
    }

    fn read_new(&mut self, within: Duration) -> Result<Option<Packet>, Closed> {
        let until = Instant::now() + within;
        loop {
            if let Some((size, took)) = length(self.held.get(1..).unwrap_or(&[]))
                && self.held.len() > size + took
            {
                let rest = self.held.split_off(1 + took + size);
                let whole = std::mem::replace(&mut self.held, rest);
                return Ok(Some(Packet { first: whole[0], body: whole[1 + took..].to_vec() }));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wire.socket().set_read_timeout(Some(left)).expect("a timeout above zero");
            let mut chunk = [0; 16_384];
            match self.wire.read(&mut chunk) {
                Ok(0) => return Err(Closed),
                Ok(count) => self.held.extend_from_slice(&chunk[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Closed),
            }
        }
    }

    /// The next packet, which has to come.
    #[track_caller]
    pub fn next(&mut self) -> Packet {
        match self.read(PATIENCE) {
            Ok(Some(packet)) => packet,
            Ok(None) => panic!("nothing came within {PATIENCE:?}"),
            Err(Closed) => panic!("the broker closed the connection"),
        }
    }

    /// The next packet of this type, which has to come; others are kept for later.
    #[track_caller]
    pub fn expect(&mut self, kind: u8) -> Packet {
        if let Some(at) = self.pending.iter().position(|packet| packet.kind() == kind) {
            return self.pending.remove(at).expect("just found");
        }
        let until = Instant::now() + PATIENCE;
        loop {
            match self.read_new(until.saturating_duration_since(Instant::now())) {
                Ok(Some(packet)) if packet.kind() == kind => return packet,
                Ok(Some(packet)) => self.pending.push_back(packet),
                Ok(None) => panic!("no packet of type {kind} within {PATIENCE:?}"),
                Err(Closed) => panic!("closed instead of a packet of type {kind}: {:02x?}", self.pending),
            }
        }
    }

    /// An acknowledgement of this type for this packet id.
    #[track_caller]
    pub fn expect_ack(&mut self, kind: u8, id: u16) -> Packet {
        let ack = self.expect(kind);
        assert_eq!(ack.id(), id, "an acknowledgement of type {kind} for another packet");
        ack
    }

    #[track_caller]
    pub fn connack(&mut self) -> Connack {
        let packet = self.next();
        assert_eq!(packet.first, kind::CONNACK << 4, "the first packet is CONNACK, not {packet:02x?}");
        let mut fields = Fields(&packet.body);
        let (flags, reason) = (fields.byte(), fields.byte());
        let is_v5 = self.version == Version::V5 && !fields.0.is_empty();
        let properties = if is_v5 { fields.properties() } else { Properties::default() };
        assert!(fields.0.is_empty(), "CONNACK is too long: {packet:02x?}");
        Connack { flags, reason, properties }
    }

    /// Waits until the broker closes the connection, and gives what it said before. PINGRESP does not count.
    #[track_caller]
    pub fn expect_closed(&mut self) -> Vec<Packet> {
        self.expect_closed_within(PATIENCE)
    }

    #[track_caller]
    pub fn expect_closed_within(&mut self, within: Duration) -> Vec<Packet> {
        let until = Instant::now() + within;
        let mut said = Vec::new();
        loop {
            match self.read(until.saturating_duration_since(Instant::now())) {
                Ok(Some(packet)) => said.push(packet),
                Ok(None) => panic!("still open after {within:?}; it said {said:02x?}"),
                Err(Closed) => return said,
            }
        }
    }

    /// Waits for the end of a connection that broke the rules. A 5.0 broker may say why, in one of these words.
    #[track_caller]
    pub fn expect_rejected(&mut self, reasons: &[u8]) {
        let said = self.expect_closed();
        for packet in said {
            assert_eq!(packet.kind(), kind::DISCONNECT, "{packet:02x?} instead of the end");
            assert_eq!(self.version, Version::V5, "only 5.0 has a DISCONNECT from the server");
            let reason = packet.disconnect_reason();
            assert!(reasons.contains(&reason), "ended with 0x{reason:02x} and not one of {reasons:02x?}");
        }
    }

    /// Waits for a DISCONNECT with this reason and the end.
    #[track_caller]
    pub fn expect_disconnect(&mut self, reason: u8) {
        let said = self.expect_closed();
        let last = said.last().unwrap_or_else(|| panic!("closed without a DISCONNECT"));
        assert_eq!(last.kind(), kind::DISCONNECT, "{last:02x?} at the end");
        assert_eq!(last.disconnect_reason(), reason, "the reason of {last:02x?}");
    }

    /// The connection works, and nothing comes that was not asked for.
    #[track_caller]
    pub fn expect_nothing(&mut self) {
        self.expect_nothing_for(SILENCE);
    }

    #[track_caller]
    pub fn expect_nothing_for(&mut self, time: Duration) {
        self.ping();
        match self.read(time) {
            Ok(None) => {}
            Ok(Some(packet)) => panic!("unexpected: {packet:02x?}"),
            Err(Closed) => panic!("the broker closed the connection"),
        }
    }

    #[track_caller]
    pub fn ping(&mut self) {
        self.send(&[kind::PINGREQ << 4, 0]);
        let pong = self.expect(kind::PINGRESP);
        assert!(pong.body.is_empty() && pong.first == kind::PINGRESP << 4, "{pong:02x?}");
    }

    /// A packet id that this connection has not used.
    pub fn fresh_id(&mut self) -> u16 {
        self.last_id += 1;
        self.last_id
    }

    /// Publishes and waits for the whole exchange of its QoS.
    #[track_caller]
    pub fn publish(&mut self, mut message: Publish) {
        if message.qos > 0 && message.id == 0 {
            message.id = self.fresh_id();
        }
        let (qos, id) = (message.qos, message.id);
        self.send(&message.bytes(self.version));
        match qos {
            0 => self.ping(),
            1 => drop(self.expect_ack(kind::PUBACK, id)),
            _ => {
                self.expect_ack(kind::PUBREC, id);
                self.ack(kind::PUBREL, id);
                self.expect_ack(kind::PUBCOMP, id);
            }
        }
    }

    /// Sends PUBACK, PUBREC, PUBREL or PUBCOMP.
    pub fn ack(&mut self, kind: u8, id: u16) {
        let [high, low] = id.to_be_bytes();
        self.send(&[kind << 4 | if kind == kind::PUBREL { 2 } else { 0 }, 2, high, low]);
    }

    /// The next packet is a message; it is not acknowledged.
    #[track_caller]
    pub fn unacked(&mut self) -> Publish {
        let packet = self.next();
        packet.publish(self.version)
    }

    /// The next packet is a message; it is acknowledged as its QoS wants.
    #[track_caller]
    pub fn message(&mut self) -> Publish {
        let message = self.unacked();
        self.finish(&message);
        message
    }

    /// As many messages, as their payloads in their order.
    #[track_caller]
    pub fn payloads(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.message().text()).collect()
    }

    /// Acknowledges a message as its QoS wants.
    #[track_caller]
    pub fn finish(&mut self, message: &Publish) {
        match message.qos {
            0 => {}
            1 => self.ack(kind::PUBACK, message.id),
            _ => {
                self.ack(kind::PUBREC, message.id);
                self.expect_ack(kind::PUBREL, message.id);
                self.ack(kind::PUBCOMP, message.id);
            }
        }
    }

    /// Subscribes one filter and expects to get it as asked. In 5.0 `options` may hold more than the QoS.
    #[track_caller]
    pub fn subscribe(&mut self, filter: impl AsRef<[u8]>, options: u8) {
        let codes = self.subscribe_all(&[(filter.as_ref(), options)], &[]);
        assert_eq!(codes, [options & 3], "granted");
    }

    /// Subscribes and gives the codes of the SUBACK.
    #[track_caller]
    pub fn subscribe_all(&mut self, filters: &[(&[u8], u8)], properties: &[Property]) -> Vec<u8> {
        let id = self.fresh_id();
        self.send(&subscribe_bytes(self.version, id, filters, properties));
        let suback = self.expect_ack(kind::SUBACK, id);
        assert_eq!(suback.first, kind::SUBACK << 4);
        suback.codes(self.version)
    }

    /// Unsubscribes and gives the codes of the UNSUBACK.
    #[track_caller]
    pub fn unsubscribe(&mut self, filters: &[&[u8]]) -> Vec<u8> {
        let id = self.fresh_id();
        let mut body = id.to_be_bytes().to_vec();
        if self.version == Version::V5 {
            body.push(0);
        }
        for filter in filters {
            push_field(&mut body, filter);
        }
        self.send(&packet(kind::UNSUBSCRIBE << 4 | 2, &body));
        let unsuback = self.expect_ack(kind::UNSUBACK, id);
        unsuback.codes(self.version)
    }

    /// Goes as a client does that means to, and waits until the broker has let go.
    pub fn disconnect(mut self) {
        self.send(&[kind::DISCONNECT << 4, 0]);
        self.until_gone();
    }

    /// Goes with a reason and properties of 5.0.
    pub fn disconnect_with(mut self, reason: u8, properties: &[Property]) {
        self.send(&disconnect_bytes(reason, properties));
        self.until_gone();
    }

    /// Ends its own direction, on TCP and without a word above it. What the broker says can still be read.
    pub fn half_close(&mut self) {
        let _ = self.wire.socket().shutdown(Shutdown::Write);
    }

    /// Goes as a client does whose power fails: without a word.
    pub fn vanish(mut self) {
        self.half_close();
        self.until_gone();
    }

    fn until_gone(&mut self) {
        let until = Instant::now() + PATIENCE;
        while let Ok(Some(_)) = self.read(until.saturating_duration_since(Instant::now())) {}
    }
}

pub fn subscribe_bytes(
    version: Version,
    id: u16,
    filters: &[(&[u8], u8)],
    properties: &[Property],
) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == Version::V5 {
        Properties(properties.to_vec()).push(&mut body);
    }
    for (filter, options) in filters {
        push_field(&mut body, filter);
        body.push(*options);
    }
    packet(kind::SUBSCRIBE << 4 | 2, &body)
}

pub fn disconnect_bytes(reason: u8, properties: &[Property]) -> Vec<u8> {
    let mut body = vec![reason];
    Properties(properties.to_vec()).push(&mut body);
    packet(kind::DISCONNECT << 4, &body)
}
