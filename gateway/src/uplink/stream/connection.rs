//! One connection to a stream listener: the handshake, requests and their answers, signs of life, and the two
//! directions of the wire without either waiting for the other.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::wire::{self, Code, FRAME_MAX, Frames, Inbound, OK};
use crate::uplink::dial::Stream;

/// How we log in.
pub struct Login<'a> {
    /// The user.
    pub user: &'a str,
    /// The password.
    pub password: &'a [u8],
    /// The virtual host.
    pub vhost: &'a str,
    /// What people see in the broker's list of connections.
    pub name: &'a str,
    /// Between signs of life; two without one end the connection.
    pub heartbeat: Duration,
}

/// An open connection.
pub struct Connection {
    stream: Box<dyn Stream>,
    frames: Frames,
    buffer: Vec<u8>,
    out: Vec<u8>,
    written: usize,
    is_unflushed: bool,
    correlation: u32,
    frame_max: usize,
    heartbeat: Duration,
    heard: Instant,
    said: Instant,
}

impl Connection {
    /// Logs in and enters the virtual host.
    ///
    /// # Errors
    /// The peer is no stream listener, refuses, or breaks off.
    pub async fn open(stream: Box<dyn Stream>, login: &Login<'_>) -> anyhow::Result<Self> {
        let now = Instant::now();
        let mut connection = Self {
            stream,
            frames: Frames::default(),
            buffer: vec![0; 16 * 1024],
            out: Vec::new(),
            written: 0,
            is_unflushed: false,
            correlation: 0,
            frame_max: FRAME_MAX,
            heartbeat: login.heartbeat,
            heard: now,
            said: now,
        };
        connection.log_in(login).await?;
        Ok(connection)
    }

    async fn log_in(&mut self, login: &Login<'_>) -> anyhow::Result<()> {
        let version = env!("CARGO_PKG_VERSION");
        let properties = [("product", "Tidegate"), ("version", version), ("connection_name", login.name)];
        self.request(|out, id| wire::peer_properties(out, id, &properties)).await?;
        let offered = self.request(wire::sasl_handshake).await?;
        let offered = wire::mechanisms(&offered)?;
        if !offered.contains(&PLAIN) {
            bail!("the broker offers no SASL PLAIN, only {}", offered.join(", "));
        }
        let answer = [&[0], login.user.as_bytes(), &[0], login.password].concat();
        self.request(|out, id| wire::sasl_authenticate(out, id, PLAIN, &answer)).await?;
        loop {
            if let Some(frame) = self.frames.next()? {
                let Inbound::Tune { frame_max, heartbeat_s } = frame else { continue };
                if frame_max > 0 {
                    self.frame_max = self.frame_max.min(frame_max as usize);
                }
                if heartbeat_s > 0 {
                    self.heartbeat = self.heartbeat.min(Duration::from_secs(u64::from(heartbeat_s)));
                }
                break;
            }
            self.turn().await?;
        }
        wire::tune(&mut self.out, self.frame_max as u32, self.heartbeat.as_secs() as u32);
        self.request(|out, id| wire::open(out, id, login.vhost))
            .await
            .with_context(|| format!("virtual host {}", login.vhost))?;
        Ok(())
    }

    /// Asks and waits; what the answer adds to its code.
    ///
    /// # Errors
    /// The answer is not [`OK`], or there is none.
    pub async fn request(&mut self, ask: impl FnOnce(&mut Vec<u8>, u32)) -> anyhow::Result<Vec<u8>> {
        let (code, rest) = self.request_any(ask).await?;
        if code != OK {
            bail!("{code}");
        }
        Ok(rest)
    }

    /// Asks and waits, whatever the answer is.
    ///
    /// # Errors
    /// There is none.
    pub async fn request_any(
        &mut self,
        ask: impl FnOnce(&mut Vec<u8>, u32),
    ) -> anyhow::Result<(Code, Vec<u8>)> {
        self.correlation += 1;
        let asked = self.correlation;
        ask(&mut self.out, asked);
        loop {
            while let Some(frame) = self.frames.next()? {
                match frame {
                    Inbound::Reply { correlation, code, rest, .. } if correlation == asked => {
                        return Ok((code, rest.to_vec()));
                    }
                    Inbound::Close { code, reason, .. } => bail!("closed by the broker: {code} {reason}"),
                    _ => {}
                }
            }
            self.turn().await?;
        }
    }

    /// The largest frame that may be sent, without its length.
    pub fn frame_max(&self) -> usize {
        self.frame_max
    }

    /// What is still to be written. Frames are put at its end.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Bytes still to be written.
    pub fn waiting(&self) -> usize {
        self.out.len() - self.written
    }

    /// The frames that have come.
    pub fn frames(&mut self) -> &mut Frames {
        &mut self.frames
    }

    /// When [`Connection::keep_alive`] is due.
    pub fn deadline(&self) -> Instant {
        (self.said + self.heartbeat / 2).min(self.heard + self.heartbeat * 2)
    }

    /// Says that we are there when nothing else was said.
    ///
    /// # Errors
    /// Nothing was heard for two heartbeats.
    pub fn keep_alive(&mut self, now: Instant) -> anyhow::Result<()> {
        if now >= self.heard + self.heartbeat * 2 {
            bail!("the broker has been silent for {:?}", self.heartbeat * 2);
        }
        if now >= self.said + self.heartbeat / 2 {
            // One that could not be written yet says as much as two.
            if self.waiting() == 0 {
                wire::heartbeat(&mut self.out);
            }
            self.said = now;
        }
        Ok(())
    }

    /// Writes something or reads something into the frames, whichever is possible first. Cancel-safe: what was moved
    /// is known, or nothing was.
    pub async fn turn(&mut self) -> anyhow::Result<()> {
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
            // A burst's memory is not kept for ever.
            self.out.shrink_to(64 * 1024);
        }
        let read = poll_fn(|context| {
            if self.written < self.out.len() {
                let rest = &self.out[self.written..];
                if let Poll::Ready(wrote) = Pin::new(&mut self.stream).poll_write(context, rest) {
                    self.written += wrote?;
                    self.is_unflushed = true;
                    return Poll::Ready(Ok(None));
                }
            } else if self.is_unflushed
                && let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(context)
            {
                flushed?;
                self.is_unflushed = false;
            }
            let mut buffer = ReadBuf::new(&mut self.buffer);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            Poll::Ready(Ok::<_, std::io::Error>(Some(buffer.filled().len())))
        });
        match read.await? {
            None => self.said = Instant::now(),
            Some(0) => bail!("the broker closed the connection"),
            Some(length) => {
                self.heard = Instant::now();
                self.frames.push(&self.buffer[..length]);
            }
        }
        Ok(())
    }

    /// Says goodbye and waits for the answer.
    pub async fn close(&mut self) -> anyhow::Result<()> {
        self.request(|out, id| wire::close(out, id, "bye")).await.map(|_| ())
    }
}

const PLAIN: &str = "PLAIN";
