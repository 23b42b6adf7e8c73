//! A broker on the test bench: raw packets in, raw packets out, time in the test's hands.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mqtt::{
    Broker, Change, ConnectionId, Event, Limits, Peer, ReasonCode, Record, Restored, Shelf, Transport,
};

pub struct Bench {
    pub now: Instant,
    pub broker: Broker,
    pub events: Vec<Event>,
    /// What is kept over a restart.
    pub disk: BTreeMap<(Shelf, u64), Bytes>,
    limits: Limits,
    start: Instant,
    closed: Vec<ConnectionId>,
    unread: BTreeMap<ConnectionId, Vec<u8>>,
}

/// A received packet: its first byte, and what follows the length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet(pub u8, pub Vec<u8>);

impl Bench {
    pub fn new(limits: Limits) -> Self {
        let now = Instant::now();
        Self {
            now,
            broker: Broker::new(limits.clone(), 42),
            events: Vec::new(),
            disk: BTreeMap::new(),
            limits,
            start: now,
            closed: Vec::new(),
            unread: BTreeMap::new(),
        }
    }

    /// A broker that keeps what it has to on [`Bench::disk`].
    pub fn keeping(limits: Limits) -> Self {
        let mut bench = Self::new(limits);
        bench.restart();
        bench
    }

    /// As after `kill -9`: what was not stored is gone, and so is every connection.
    pub fn restart(&mut self) -> Restored {
        self.broker = Broker::new(self.limits.clone(), 42);
        self.events.clear();
        self.closed.clear();
        self.unread.clear();
        let records = self.disk.iter().map(|((shelf, key), body)| Record {
            shelf: *shelf,
            key: *key,
            body: body.clone(),
        });
        let unix_ms = 1_800_000_000_000 + (self.now - self.start).as_millis() as u64;
        self.broker.restore(self.now, unix_ms, records.collect())
    }

    /// Stores whatever waits; how many records that were.
    pub fn store(&mut self) -> usize {
        let mut count = 0;
        while let Some(changes) = self.broker.take_changes() {
            count += changes.len();
            self.write(changes);
            self.broker.settle_changes(self.now, Ok(()));
            self.obey();
        }
        count
    }

    /// Takes what waits and cannot store it.
    pub fn fail_to_store(&mut self) {
        if self.broker.take_changes().is_some() {
            self.broker.settle_changes(self.now, Err(ReasonCode::QUOTA_EXCEEDED));
            self.obey();
        }
    }

    pub fn write(&mut self, changes: Vec<Change>) {
        for Change { shelf, key, body } in changes {
            match body {
                Some(body) => self.disk.insert((shelf, key), body),
                None => self.disk.remove(&(shelf, key)),
            };
        }
    }

    pub fn open(&mut self) -> ConnectionId {
        self.broker.accept(self.now, Peer::new(None, Transport::Memory)).expect("there is room")
    }

    /// Opens a connection and expects the CONNECT to be accepted.
    pub fn connect(&mut self, connect: &[u8]) -> ConnectionId {
        let id = self.open();
        let packets = self.send(id, connect);
        assert_eq!((packets[0].0, packets[0].1[1]), (0x20, 0), "CONNACK: {packets:?}");
        // What came with the CONNACK is read again by the test.
        let rest = packets[1..].iter().flat_map(|packet| frame(packet.0, &packet.1));
        self.unread.insert(id, rest.collect());
        id
    }

    /// Sends bytes and returns what came back on the same connection.
    pub fn send(&mut self, id: ConnectionId, bytes: &[u8]) -> Vec<Packet> {
        self.broker.handle_input(self.now, id, bytes);
        self.read(id)
    }

    /// Everything that waits for a connection.
    pub fn read(&mut self, id: ConnectionId) -> Vec<Packet> {
        self.obey();
        let mut bytes = self.unread.remove(&id).unwrap_or_default();
        loop {
            let mut more = Vec::new();
            self.broker.transmit(self.now, id, &mut more);
            if more.is_empty() {
                break;
            }
            bytes.extend(more);
        }
        self.obey();
        split(&bytes)
    }

    /// Lets time pass, calling the broker whenever it asked for it.
    pub fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.broker.deadline()
            && deadline <= end
        {
            self.now = deadline;
            self.broker.handle_timeout(deadline);
        }
        self.now = end;
        self.obey();
    }

    pub fn lose(&mut self, id: ConnectionId) {
        self.broker.handle_gone(self.now, id);
        self.obey();
    }

    pub fn is_closed(&mut self, id: ConnectionId) -> bool {
        self.obey();
        self.closed.contains(&id)
    }

    fn obey(&mut self) {
        while let Some(event) = self.broker.poll_event() {
            match event {
                Event::Output(_) => {}
                Event::Close(id) => self.closed.push(id),
                event => self.events.push(event),
            }
        }
    }
}

/// CONNECT of MQTT 3.1.1 with a clean session.
pub fn connect_v3(client_id: &str) -> Vec<u8> {
    connect(4, 0x02, 0, None, client_id, &[])
}

/// CONNECT of MQTT 5.0 with these properties and a clean start.
pub fn connect_v5(client_id: &str, properties: &[u8]) -> Vec<u8> {
    connect(5, 0x02, 0, Some(properties), client_id, &[])
}

/// Any CONNECT: `rest` is what follows the client id.
pub fn connect(
    level: u8,
    flags: u8,
    keep_alive: u16,
    properties: Option<&[u8]>,
    client_id: &str,
    rest: &[u8],
) -> Vec<u8> {
    let mut body = field(b"MQTT");
    body.extend([level, flags]);
    body.extend(keep_alive.to_be_bytes());
    if let Some(properties) = properties {
        body.push(properties.len() as u8);
        body.extend(properties);
    }
    body.extend(field(client_id.as_bytes()));
    body.extend(rest);
    frame(0x10, &body)
}

pub fn publish_v3(flags: u8, packet_id: u16, topic: &str, payload: &[u8]) -> Vec<u8> {
    publish(flags, packet_id, topic, None, payload)
}

pub fn publish_v5(flags: u8, packet_id: u16, topic: &str, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    publish(flags, packet_id, topic, Some(properties), payload)
}

fn publish(flags: u8, packet_id: u16, topic: &str, properties: Option<&[u8]>, payload: &[u8]) -> Vec<u8> {
    frame(0x30 | flags, &publish_body(flags, packet_id, topic, properties, payload))
}

/// What a PUBLISH carries, to compare with.
pub fn publish_body(
    flags: u8,
    packet_id: u16,
    topic: &str,
    properties: Option<&[u8]>,
    payload: &[u8],
) -> Vec<u8> {
    let mut body = field(topic.as_bytes());
    if flags & 6 != 0 {
        body.extend(packet_id.to_be_bytes());
    }
    if let Some(properties) = properties {
        body.push(properties.len() as u8);
        body.extend(properties);
    }
    body.extend(payload);
    body
}

pub fn subscribe_v3(packet_id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    subscribe(packet_id, None, filters)
}

pub fn subscribe_v5(packet_id: u16, properties: &[u8], filters: &[(&str, u8)]) -> Vec<u8> {
    subscribe(packet_id, Some(properties), filters)
}

fn subscribe(packet_id: u16, properties: Option<&[u8]>, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if let Some(properties) = properties {
        body.push(properties.len() as u8);
        body.extend(properties);
    }
    for (filter, options) in filters {
        body.extend(field(filter.as_bytes()));
        body.push(*options);
    }
    frame(0x82, &body)
}

pub fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        let byte = (length % 128) as u8;
        length /= 128;
        bytes.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    bytes.extend(body);
    bytes
}

pub fn field(bytes: &[u8]) -> Vec<u8> {
    let mut field = (bytes.len() as u16).to_be_bytes().to_vec();
    field.extend(bytes);
    field
}

fn split(mut bytes: &[u8]) -> Vec<Packet> {
    let mut packets = Vec::new();
    while !bytes.is_empty() {
        let (mut length, mut at, mut shift) = (0usize, 1, 0);
        loop {
            length |= usize::from(bytes[at] & 0x7f) << shift;
            shift += 7;
            at += 1;
            if bytes[at - 1] & 0x80 == 0 {
                break;
            }
        }
        packets.push(Packet(bytes[0], bytes[at..at + length].to_vec()));
        bytes = &bytes[at + length..];
    }
    packets
}
