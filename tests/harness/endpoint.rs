//! A listener that speaks MQTT, and how bytes get to it: bare, through TLS, in WebSocket frames, or both.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::{Authority, Port, Tidegate, quoted};

/// What stands between MQTT and TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Nothing.
    Tcp,
    /// TLS.
    Tls,
    /// Binary frames of WebSocket.
    WebSocket,
    /// Binary frames of WebSocket in TLS.
    SecureWebSocket,
}

/// Where a broker listens, and with which transport.
#[derive(Debug, Clone)]
pub struct Endpoint {
    address: SocketAddr,
    transport: Transport,
    trust: Option<Arc<ClientConfig>>,
}

/// A connection on which nothing has been said yet but the handshake of TLS.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS.
    Plain(TcpStream),
    /// With it.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A connection that carries MQTT, whatever the transport: what is written at once goes in one piece.
#[derive(Debug)]
pub struct Wire {
    stream: Stream,
    frames: Option<Frames>,
}

/// What came in WebSocket frames.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes that do not yet make a frame.
    raw: Vec<u8>,
    /// MQTT out of frames, not yet read.
    held: Vec<u8>,
    is_closed: bool,
}

impl Transport {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Tls, Self::WebSocket, Self::SecureWebSocket];

    /// What it is called in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::WebSocket => "ws",
            Self::SecureWebSocket => "wss",
        }
    }

    /// Whether TLS is part of it.
    pub fn is_secure(self) -> bool {
        matches!(self, Self::Tls | Self::SecureWebSocket)
    }

    /// Whether MQTT goes in frames.
    pub fn is_websocket(self) -> bool {
        matches!(self, Self::WebSocket | Self::SecureWebSocket)
    }
}

impl Endpoint {
    /// A listener whose certificate, if it shows one, has to be signed by `authority`.
    ///
    /// # Panics
    /// When the authority's certificate is none.
    pub fn new(address: SocketAddr, transport: Transport, authority: &Authority) -> Self {
        let trust = transport.is_secure().then(|| Arc::new(trusting(authority)));
        Self { address, transport, trust }
    }

    /// A listener with nothing between MQTT and TCP.
    pub fn tcp(address: SocketAddr) -> Self {
        Self { address, transport: Transport::Tcp, trust: None }
    }

    /// A gateway that listens on every transport, and where, in the order of [`Transport::ALL`]; `tables` are further
    /// ones of its configuration.
    pub fn all_of_a_gateway(authority: &Authority, tables: &str) -> (Tidegate, Vec<Self>) {
        let (mqtts, wss, shown) = (Port::reserve(), Port::reserve(), authority.server());
        let gateway = Tidegate::builder()
            .tables(&format!(
                "[mqtt.tls]\nlisten = [\"{}\"]\nwebsocket_listen = [\"{}\"]\ncertificate = {}\nkey = {{ file = {} }}\n\n{tables}",
                mqtts.address(),
                wss.address(),
                quoted(&shown.pem),
                quoted(&shown.key),
            ))
            .start();
        let addresses = [gateway.mqtt(), mqtts.address(), gateway.http(), wss.address()];
        let endpoints = Transport::ALL.iter().zip(addresses);
        let endpoints = endpoints.map(|(transport, address)| Self::new(address, *transport, authority));
        let endpoints = endpoints.collect();
        (gateway, endpoints)
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What is spoken there below MQTT.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Connects, with TLS if it is part of the transport; a WebSocket is not asked for.
    pub fn connect(&self) -> io::Result<Stream> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let Some(trust) = &self.trust else { return Ok(Stream::Plain(stream)) };
        let name = ServerName::from(self.address.ip());
        let mut session = ClientConnection::new(Arc::clone(trust), name).map_err(Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        Ok(Stream::Tls(Box::new(StreamOwned::new(session, stream))))
    }

    /// Connects so that MQTT can be spoken.
    pub fn dial(&self) -> io::Result<Wire> {
        let mut stream = self.connect()?;
        let mut frames = None;
        if self.transport.is_websocket() {
            let head = stream.upgrade(self.address)?;
            if !head.starts_with("HTTP/1.1 101") {
                return Err(Error::other(head));
            }
            frames = Some(Frames::default());
        }
        Ok(Wire { stream, frames })
    }
}

impl Stream {
    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }

    /// Asks for a WebSocket that speaks MQTT; the head of the answer.
    pub fn upgrade(&mut self, host: SocketAddr) -> io::Result<String> {
        let request = format!(
            "GET /mqtt HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Protocol: mqtt\r\n\r\n"
        );
        self.write_all(request.as_bytes())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&head).into_owned())
    }
}

impl Wire {
    /// The socket below everything.
    pub fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self { stream, frames: Some(frames) } = self else { return self.stream.read(buffer) };
        while frames.held.is_empty() && !frames.is_closed {
            let mut chunk = [0; 16_384];
            let count = stream.read(&mut chunk)?;
            if count == 0 {
                return Ok(0);
            }
            frames.raw.extend_from_slice(&chunk[..count]);
            while let Some((opcode, payload)) = frames.next() {
                match opcode {
                    CONTINUATION | BINARY => frames.held.extend(payload),
                    PING => stream.write_all(&masked_frame(PONG, &payload))?,
                    CLOSE => {
                        frames.is_closed = true;
                        // It may have gone without waiting for this.
                        let _ = stream.write_all(&masked_frame(CLOSE, &payload));
                    }
                    _ => return Err(Error::new(ErrorKind::InvalidData, format!("opcode {opcode}"))),
                }
            }
        }
        let count = buffer.len().min(frames.held.len());
        buffer[..count].copy_from_slice(&frames.held[..count]);
        frames.held.drain(..count);
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.frames.is_none() {
            return self.stream.write(bytes);
        }
        self.stream.write_all(&masked_frame(BINARY, bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Frames {
    /// The next whole frame out of what came.
    fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let [first, short, ..] = self.raw[..] else { return None };
        assert!(short < 0x80, "a server does not mask");
        let (size, start) = match short {
            0x7e => (usize::from(u16::from_be_bytes(self.raw.get(2..4)?.try_into().ok()?)), 4),
            0x7f => (u64::from_be_bytes(self.raw.get(2..10)?.try_into().ok()?) as usize, 10),
            short => (usize::from(short), 2),
        };
        let payload = self.raw.get(start..start + size)?.to_vec();
        self.raw.drain(..start + size);
        Some((first & 0x0f, payload))
    }
}

/// A client that believes the authority and has no certificate of its own.
fn trusting(authority: &Authority) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(authority.pem()).expect("an authority has a certificate");
    roots.add(certificate).expect("an authority's certificate can be believed");
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// A whole message in one frame of a client.
fn masked_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(size), _) if size < 0x7e => frame.push(0x80 | size),
        (_, Ok(size)) => {
            frame.push(0xfe);
            frame.extend(size.to_be_bytes());
        }
        _ => {
            frame.push(0xff);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    // The example of RFC 6455 §5.7.
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(10);

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
