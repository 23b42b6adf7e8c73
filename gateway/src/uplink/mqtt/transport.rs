//! The way to the broker: TCP, TLS over it, WebSocket over either; and the bytes on it.

use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use mqtt::client::Client;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use super::websocket::WebSocketStream;
use crate::uplink::host_and_port;
use crate::uplink::tls::Tls;

/// Where a broker is and how it is reached.
#[derive(Debug)]
pub struct Route<'a> {
    /// `host:port`.
    pub address: &'a str,
    /// TLS, if there is to be any.
    pub tls: Option<&'a Tls>,
    /// What TLS says to be spoken inside (RFC 7301).
    pub alpn: Option<&'static str>,
    /// The resource, if it is spoken inside a WebSocket.
    pub websocket: Option<&'a str>,
}

/// A transport.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Route<'_> {
    /// Connects. Each step is given a time of its own.
    pub async fn dial(&self) -> anyhow::Result<Box<dyn Stream>> {
        let (host, port) =
            host_and_port(self.address).ok_or_else(|| anyhow!("`{}` is not host:port", self.address))?;
        let connecting = TcpStream::connect((host, port));
        let tcp = tokio::time::timeout(CONNECT, connecting).await.context("no answer")??;
        tcp.set_nodelay(true)?;
        let mut stream: Box<dyn Stream> = Box::new(tcp);
        if let Some(tls) = self.tls {
            let name = ServerName::try_from(tls.server_name.clone().unwrap_or_else(|| host.to_owned()))?;
            let handshake = tls.connector_for(self.alpn)?.connect(name, stream);
            stream = Box::new(tokio::time::timeout(CONNECT, handshake).await.context("no TLS answer")??);
        }
        if let Some(path) = self.websocket {
            let upgrade = WebSocketStream::upgrade(stream, self.tls.is_some(), self.address, path);
            stream = Box::new(tokio::time::timeout(CONNECT, upgrade).await.context("no WebSocket answer")??);
        }
        Ok(stream)
    }
}

/// The two directions of a transport with what is still to be written.
pub struct Wire {
    stream: Box<dyn Stream>,
    out: Vec<u8>,
    written: usize,
    /// TLS and WebSocket hold bytes back until they are flushed.
    is_unflushed: bool,
    buffer: Vec<u8>,
}

/// What [`Wire::turn`] did.
pub enum Turn<'a> {
    /// These bytes came.
    Read(&'a [u8]),
    /// Some bytes went.
    Wrote,
}

impl Wire {
    /// Nothing is written or read yet.
    pub fn new(stream: Box<dyn Stream>) -> Self {
        Self { stream, out: Vec::new(), written: 0, is_unflushed: false, buffer: vec![0; 16 * 1024] }
    }

    /// Takes what the engine has to say, once all before it is written.
    pub fn take_output(&mut self, client: &mut Client) {
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
            client.transmit(Instant::now(), &mut self.out);
        }
    }

    /// Whether everything that was taken is written.
    pub fn is_idle(&self) -> bool {
        self.written == self.out.len() && !self.is_unflushed
    }

    /// Reads something or writes something, whichever is possible first. Cancel-safe.
    pub async fn turn(&mut self) -> anyhow::Result<Turn<'_>> {
        let read = std::future::poll_fn(|context| {
            if self.written < self.out.len() {
                let rest = &self.out[self.written..];
                if let Poll::Ready(wrote) = Pin::new(&mut *self.stream).poll_write(context, rest) {
                    self.written += wrote?;
                    self.is_unflushed = true;
                    return Poll::Ready(Ok(None));
                }
            } else if self.is_unflushed
                && let Poll::Ready(flushed) = Pin::new(&mut *self.stream).poll_flush(context)
            {
                flushed?;
                self.is_unflushed = false;
                return Poll::Ready(Ok(None));
            }
            let mut buffer = ReadBuf::new(&mut self.buffer);
            ready!(Pin::new(&mut *self.stream).poll_read(context, &mut buffer))?;
            Poll::Ready(Ok::<_, std::io::Error>(Some(buffer.filled().len())))
        });
        match read.await? {
            None => Ok(Turn::Wrote),
            Some(0) => bail!("the broker closed the connection"),
            Some(length) => Ok(Turn::Read(&self.buffer[..length])),
        }
    }

    /// Writes all there is, for as long as that is worth waiting for.
    pub async fn flush(&mut self, client: &mut Client) -> anyhow::Result<()> {
        tokio::time::timeout(CLOSE, async {
            loop {
                self.take_output(client);
                if self.out.is_empty() {
                    return Ok(());
                }
                self.stream.write_all(&self.out[self.written..]).await?;
                self.stream.flush().await?;
                self.written = self.out.len();
            }
        })
        .await
        .context("no answer")?
    }
}

/// How long a step of connecting may take.
pub const CONNECT: Duration = Duration::from_secs(15);
const CLOSE: Duration = Duration::from_secs(1);
