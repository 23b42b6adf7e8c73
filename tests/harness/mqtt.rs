//! An MQTT 3.1.1 client on a bare socket, for loads and for saying what no well-behaved client says.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A connection that has been accepted with CONNACK 0.
#[derive(Debug)]
pub struct MqttClient {
    stream: TcpStream,
    held: Vec<u8>,
    start: usize,
    next_id: u16,
    ready: VecDeque<Incoming>,
    session_present: bool,
}

/// What came from the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A message.
    Publish {
        /// Where it was published.
        topic: String,
        /// Its content.
        payload: Vec<u8>,
        /// The quality of service it was delivered at.
        qos: u8,
        /// Whether it is the retained one.
        retain: bool,
        /// Whether the broker believes to have sent it before.
        dup: bool,
        /// Zero at `QoS` 0.
        id: u16,
    },
    /// PUBACK or PUBCOMP: a publish of ours is done.
    Done(u16),
    /// SUBACK with the reason codes.
    Granted(u16, Vec<u8>),
    /// Any other packet, by its first byte.
    Other(u8),
}

impl MqttClient {
    /// Connects with a clean session and a keep-alive that no test lasts: rumqttd refuses a client without one.
    pub fn connect(broker: SocketAddr, client_id: &str) -> io::Result<Self> {
        Self::connect_with(broker, client_id, true)
    }

    /// Connects; `clean: false` keeps or resumes the session.
    pub fn connect_with(broker: SocketAddr, client_id: &str, clean: bool) -> io::Result<Self> {
        let mut stream = TcpStream::connect(broker)?;
        stream.set_nodelay(true)?;
        let mut body = b"\x00\x04MQTT\x04".to_vec();
        body.extend_from_slice(&[u8::from(clean) << 1, 0xFF, 0xFF]);
        push_text(&mut body, client_id);
        stream.write_all(&packet(0x10, &body))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        if answer[0] != 0x20 || answer[3] != 0 {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("CONNACK {answer:02x?}")));
        }
        let session_present = answer[2] & 1 == 1;
        Ok(Self { stream, held: Vec::new(), start: 0, next_id: 1, ready: VecDeque::new(), session_present })
    }

    /// Whether the broker resumed a session.
    pub fn session_present(&self) -> bool {
        self.session_present
    }

    /// The bare socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Subscribes and waits for the grant; messages that come before it are kept for [`MqttClient::read`].
    pub fn subscribe(&mut self, filter: &str, qos: u8) -> io::Result<()> {
        let id = self.take_id();
        let mut body = id.to_be_bytes().to_vec();
        push_text(&mut body, filter);
        body.push(qos);
        self.stream.write_all(&packet(0x82, &body))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut early = VecDeque::new();
        loop {
            match self.read(deadline.saturating_duration_since(Instant::now()))? {
                Some(Incoming::Granted(granted, codes)) if granted == id => {
                    early.append(&mut self.ready);
                    self.ready = early;
                    let is_refused = codes.first().is_none_or(|code| *code >= 0x80);
                    return if is_refused { Err(io::Error::other("subscription refused")) } else { Ok(()) };
                }
                Some(other) => early.push_back(other),
                None => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Ends a subscription and waits until the broker says so; what comes before that is kept for [`MqttClient::read`].
    pub fn unsubscribe(&mut self, filter: &str) -> io::Result<()> {
        let id = self.take_id();
        let mut body = id.to_be_bytes().to_vec();
        push_text(&mut body, filter);
        self.stream.write_all(&packet(0xA2, &body))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut early = VecDeque::new();
        while let Some(incoming) = self.read(deadline.saturating_duration_since(Instant::now()))? {
            if incoming == Incoming::Other(0xB0) {
                early.append(&mut self.ready);
                self.ready = early;
                return Ok(());
            }
            early.push_back(incoming);
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Publishes without waiting; the packet's id (zero at `QoS` 0).
    pub fn publish(&mut self, topic: &str, payload: &[u8], qos: u8, retain: bool) -> io::Result<u16> {
        let id = if qos == 0 { 0 } else { self.take_id() };
        self.stream.write_all(&publish_packet(topic, payload, qos, retain, id))?;
        Ok(id)
    }

    /// Publishes and waits until the broker has taken responsibility (`QoS` 1: PUBACK, `QoS` 2: PUBCOMP).
    pub fn publish_and_wait(&mut self, topic: &str, payload: &[u8], qos: u8) -> io::Result<()> {
        let id = self.publish(topic, payload, qos, false)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        if qos == 0 {
            return Ok(());
        }
        loop {
            match self.read(deadline.saturating_duration_since(Instant::now()))? {
                Some(Incoming::Done(done)) if done == id => return Ok(()),
                Some(_) => {}
                None => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// The next packet, acknowledged as its `QoS` wants; `None` after `limit`.
    pub fn read(&mut self, limit: Duration) -> io::Result<Option<Incoming>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(packet) = self.ready.pop_front() {
                return Ok(Some(packet));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            if let Err(error) = self.fill() {
                let is_timeout = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                return if is_timeout { Ok(None) } else { Err(error) };
            }
        }
    }

    /// Writes bytes as they are.
    pub fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says DISCONNECT: no will, an orderly end.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.stream.write_all(&[0xE0, 0])
    }

    fn take_id(&mut self) -> u16 {
        let id = self.next_id;
        self.next_id = id.checked_add(1).unwrap_or(1);
        id
    }

    /// Reads once and takes every whole packet out of what is held.
    fn fill(&mut self) -> io::Result<()> {
        let mut piece = [0; 16 * 1024];
        let count = self.stream.read(&mut piece)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.held.extend_from_slice(&piece[..count]);
        let mut answers = Vec::new();
        while let Some((first, body, end)) = whole_packet(&self.held, self.start) {
            let incoming = parse(first, &self.held[body..end], &mut answers);
            self.ready.extend(incoming);
            self.start = end;
        }
        self.held.drain(..self.start);
        self.start = 0;
        if !answers.is_empty() {
            self.stream.write_all(&answers)?;
        }
        Ok(())
    }
}

/// The bytes of a PUBLISH; `id` is left out at `QoS` 0.
pub(crate) fn publish_packet(topic: &str, payload: &[u8], qos: u8, retain: bool, id: u16) -> Vec<u8> {
    let mut body = Vec::with_capacity(topic.len() + payload.len() + 4);
    push_text(&mut body, topic);
    if qos > 0 {
        body.extend_from_slice(&id.to_be_bytes());
    }
    body.extend_from_slice(payload);
    packet(0x30 | qos << 1 | u8::from(retain), &body)
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut left = body.len();
    loop {
        let low = (left & 0x7F) as u8;
        left >>= 7;
        bytes.push(if left > 0 { low | 0x80 } else { low });
        if left == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&(text.len() as u16).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// The first byte of the packet at `start`, and where its body begins and ends, if all of it is there.
fn whole_packet(held: &[u8], start: usize) -> Option<(u8, usize, usize)> {
    let first = *held.get(start)?;
    let (mut length, mut at) = (0usize, start + 1);
    for shift in [0, 7, 14, 21] {
        let byte = *held.get(at)?;
        length |= usize::from(byte & 0x7F) << shift;
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    (held.len() >= at + length).then_some((first, at, at + length))
}

fn parse(first: u8, body: &[u8], answers: &mut Vec<u8>) -> Option<Incoming> {
    let id_at = |at: usize| body.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    match first >> 4 {
        3 => {
            let length = usize::from(id_at(0));
            let topic = String::from_utf8_lossy(body.get(2..2 + length)?).into_owned();
            let qos = first >> 1 & 3;
            let (id, from) = if qos > 0 { (id_at(2 + length), 4 + length) } else { (0, 2 + length) };
            match qos {
                1 => answers.extend_from_slice(&packet(0x40, &id.to_be_bytes())),
                2 => answers.extend_from_slice(&packet(0x50, &id.to_be_bytes())),
                _ => {}
            }
            let (retain, dup) = (first & 1 == 1, first & 8 == 8);
            Some(Incoming::Publish { topic, payload: body.get(from..)?.to_vec(), qos, retain, dup, id })
        }
        4 | 7 => Some(Incoming::Done(id_at(0))),
        5 => {
            answers.extend_from_slice(&packet(0x62, &id_at(0).to_be_bytes()));
            None
        }
        6 => {
            answers.extend_from_slice(&packet(0x70, &id_at(0).to_be_bytes()));
            None
        }
        9 => Some(Incoming::Granted(id_at(0), body.get(2..)?.to_vec())),
        _ => Some(Incoming::Other(first)),
    }
}
