//! One thread that drives many sockets: polling, so that the generator costs little beside what it measures.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use harness::MqttClient;

/// A non-blocking MQTT connection that counts rather than keeps what it receives.
pub(crate) struct Conn {
    stream: TcpStream,
    out: Vec<u8>,
    held: Vec<u8>,
    next_id: u16,
    published: u64,
    /// Messages received; one at QoS 2 with its PUBREL. Counted with its PUBLISH, the acknowledgements of thousands would
    /// be on their way, and mosquitto looks through all that is unfinished for each.
    pub(crate) received: u64,
    /// PUBACK and PUBCOMP packets received.
    pub(crate) acknowledged: u64,
}

impl Conn {
    /// Connects, and subscribes where there is a filter.
    pub(crate) fn open(broker: SocketAddr, client_id: &str, filter: Option<(&str, u8)>) -> io::Result<Self> {
        let mut client = MqttClient::connect(broker, client_id)?;
        if let Some((filter, qos)) = filter {
            client.subscribe(filter, qos)?;
        }
        let stream = client.stream().try_clone()?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            out: Vec::new(),
            held: Vec::new(),
            next_id: 1,
            published: 0,
            received: 0,
            acknowledged: 0,
        })
    }

    /// Queues a PUBLISH; [`Conn::flush`] sends it.
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8], qos: u8) {
        let body = 2 + topic.len() + payload.len() + if qos > 0 { 2 } else { 0 };
        self.out.push(0x30 | qos << 1);
        if body > 127 {
            self.out.push((body & 0x7F) as u8 | 0x80);
            self.out.push((body >> 7) as u8);
        } else {
            self.out.push(body as u8);
        }
        self.out.extend_from_slice(&(topic.len() as u16).to_be_bytes());
        self.out.extend_from_slice(topic.as_bytes());
        if qos > 0 {
            self.out.extend_from_slice(&self.next_id.to_be_bytes());
            self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        }
        self.out.extend_from_slice(payload);
        self.published += 1;
    }

    /// How many messages were published and have no PUBACK or PUBCOMP.
    pub(crate) fn unacknowledged(&self) -> u64 {
        self.published - self.acknowledged
    }

    /// Writes what the socket takes.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        while written < self.out.len() {
            match self.stream.write(&self.out[written..]) {
                Ok(n) => written += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(closed(&e.to_string())),
            }
        }
        self.out.drain(..written);
        Ok(())
    }

    /// Reads what is there, counts it, queues the acknowledgements.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        let mut piece = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(closed("without a word")),
                Ok(n) => self.held.extend_from_slice(&piece[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(closed(&e.to_string())),
            }
        }
        let mut at = 0;
        while let Some((first, body, end)) = packet_at(&self.held, at) {
            match first >> 4 {
                3 => {
                    let qos = first >> 1 & 3;
                    self.received += u64::from(qos < 2);
                    if qos > 0 {
                        let topic = usize::from(u16::from_be_bytes([self.held[body], self.held[body + 1]]));
                        let id = body + 2 + topic;
                        let answer = if qos == 1 { 0x40 } else { 0x50 };
                        self.out.extend_from_slice(&[answer, 2, self.held[id], self.held[id + 1]]);
                    }
                }
                4 | 7 => self.acknowledged += 1,
                // PUBREC and PUBREL ask for the next step.
                kind @ (5 | 6) => {
                    self.received += u64::from(kind == 6);
                    let answer = if kind == 5 { 0x62 } else { 0x70 };
                    self.out.extend_from_slice(&[answer, 2, self.held[body], self.held[body + 1]]);
                }
                _ => {}
            }
            at = end;
        }
        self.held.drain(..at);
        self.flush()
    }
}

/// Waits until a connection can be read, or written where something waits to be; fails after ten seconds.
#[expect(unsafe_code, reason = "std has no poll")]
pub(crate) fn wait(conns: &[Conn]) -> io::Result<()> {
    let watch = |conn: &Conn| libc::pollfd {
        fd: conn.stream.as_raw_fd(),
        events: libc::POLLIN | if conn.out.is_empty() { 0 } else { libc::POLLOUT },
        revents: 0,
    };
    let mut set: Vec<libc::pollfd> = conns.iter().map(watch).collect();
    // SAFETY: pointer and length are those of one live vector.
    let ready = unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, 10_000) };
    if ready > 0 { Ok(()) } else { Err(io::Error::other("it has been silent for ten seconds")) }
}

fn closed(how: &str) -> io::Error {
    io::Error::other(format!("it closed a connection: {how}"))
}

fn packet_at(held: &[u8], at: usize) -> Option<(u8, usize, usize)> {
    let first = *held.get(at)?;
    let (mut length, mut body) = (0usize, at + 1);
    for shift in [0, 7, 14, 21] {
        let byte = *held.get(body)?;
        length |= usize::from(byte & 0x7F) << shift;
        body += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    (held.len() >= body + length).then_some((first, body, body + length))
}
