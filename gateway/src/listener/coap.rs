//! CoAP for the LAN: every channel as a resource, over UDP.
//!
//! | path | is | formats |
//! |---|---|---|
//! | `/` | what this is and where to look | text |
//! | `/.well-known/core` | every resource (RFC 6690) | link format |
//! | `/<device>` | a pack of all its channels, observable | SenML JSON, SenML CBOR |
//! | `/<device>/<channel>` | the last reading, observable; PUT or POST commands an actuator, `?id=…&expires=…` as everywhere | text, SenML JSON, SenML CBOR |
//!
//! One thread owns the sockets and the engine (`coap::Endpoint`): it waits in poll(2), takes and sends datagrams in
//! batches, and never waits for anything else. Readings reach it through a [`mailbox`]; commands leave through a
//! bounded channel to the command desk, whose answer wakes the thread. Commands are taken only on sockets bound to a
//! loopback address: plain CoAP does not tell who speaks.

mod mailbox;
mod shelf;
mod udp;
mod wait;

use std::io;
use std::net::UdpSocket;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use coap::{Endpoint, Peer};
use drivers::Value;
use log::{debug, warn};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::mailbox::Mailbox;
use self::shelf::Shelf;
use self::udp::{Received, Receiver, Sender};
use self::wait::{Bell, wait};
use crate::command::Refusal;
use crate::payload::Format;
use crate::reading::{Channel, ChannelId, Reading};

/// What the listener is started with.
pub struct CoapConfig {
    /// The gateway's name.
    pub gateway: String,
    /// Bound sockets. On those bound to a loopback address actuators may be commanded.
    pub sockets: Vec<UdpSocket>,
    /// Where commands go. Full: the client is told 5.03 and may try again.
    pub commands: mpsc::Sender<CommandRequest>,
    /// Where chance comes from; hard to guess.
    pub seed: u64,
}

/// A command that a client has sent.
#[derive(Debug)]
pub struct CommandRequest {
    /// Which actuator.
    pub channel: ChannelId,
    /// How `value` is written.
    pub format: Format,
    /// The value, as it came.
    pub value: Vec<u8>,
    /// Who asks: `coap 192.0.2.7:4711`.
    pub source: String,
    /// Names the command so that a repetition is recognised.
    pub id: Option<String>,
    /// When it stops being wanted, in nanoseconds since 1970.
    pub expires_ns: Option<i64>,
    /// Takes the value read back, or why it was not done. Dropped unused, the client is told 5.03.
    pub reply: oneshot::Sender<Result<Value, Refusal>>,
}

/// A listener that runs.
pub struct Started {
    /// Speaks to it.
    pub handle: CoapHandle,
    /// Resolves when it has ended.
    pub finished: oneshot::Receiver<()>,
}

/// Speaks to the listener; nothing here waits. Cheap to clone.
#[derive(Clone)]
pub struct CoapHandle {
    mailbox: Arc<Mailbox>,
    // Written by the listener's thread after each turn, read by whoever asks for health; held for a copy.
    counters: Arc<Mutex<Counters>>,
}

/// What the listener has done since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests carried out.
    pub requests: u64,
    /// Observers registered now.
    pub observers: u64,
    /// Commands handed to the desk.
    pub commands: u64,
    /// Datagrams that the kernel did not take.
    pub send_errors: u64,
    /// Datagrams larger than any request we take.
    pub oversized: u64,
    /// Readings that a newer one replaced before observers could be told.
    pub readings_coalesced: u64,
    /// What the engine counts.
    pub engine: coap::Counters,
}

/// Starts the listener on a thread of its own; `stop` ends it.
///
/// # Errors
/// The kernel gave no event descriptor or thread, or a socket no address.
pub fn start(config: CoapConfig, stop: CancellationToken) -> io::Result<Started> {
    let bell = Arc::new(Bell::new()?);
    let mailbox = Arc::new(Mailbox::new(bell.clone()));
    let counters = Arc::new(Mutex::default());
    let mut sockets = Vec::new();
    for socket in config.sockets {
        let is_writable = socket.local_addr()?.ip().is_loopback();
        socket.set_nonblocking(true)?;
        let buffer_bytes = udp::enlarge_buffers(&socket);
        debug!("coap {:?}: receive buffer of {buffer_bytes} bytes", socket.local_addr());
        sockets.push((socket, is_writable));
    }
    let writable = sockets.iter().map(|(_, is_writable)| *is_writable).collect();
    let listener = Listener {
        shelf: Shelf::new(config.gateway, writable, config.commands, Waker::from(bell.clone())),
        endpoint: Endpoint::new(coap::Config::default(), config.seed, Instant::now()),
        sockets: sockets.into_iter().map(|(socket, _)| socket).collect(),
        receiver: Receiver::new(),
        sender: Sender::new(),
        mailbox: mailbox.clone(),
        counters: counters.clone(),
        bell,
    };
    let (ended, finished) = oneshot::channel();
    std::thread::Builder::new().name("coap".into()).spawn(move || {
        listener.run(&stop);
        let _ = ended.send(());
    })?;
    Ok(Started { handle: CoapHandle { mailbox, counters }, finished })
}

impl CoapHandle {
    /// A new reading: served from now on, and sent to observers. Of one channel only the newest waits.
    pub fn update(&self, reading: &Reading) {
        self.mailbox.put_reading(reading);
    }

    /// Adds a device's channels, or replaces what is known of them.
    pub fn announce(&self, device: &str, channels: &[Arc<Channel>]) {
        self.mailbox.put_channels(device, channels);
    }

    /// Takes a device and its channels away; their observers are told 4.04.
    pub fn remove(&self, device: &str) {
        self.mailbox.remove(device);
    }

    /// What the listener has done since its start.
    pub fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that the thread owns.
struct Listener {
    endpoint: Endpoint,
    shelf: Shelf,
    sockets: Vec<UdpSocket>,
    receiver: Receiver,
    sender: Sender,
    mailbox: Arc<Mailbox>,
    counters: Arc<Mutex<Counters>>,
    bell: Arc<Bell>,
}

impl Listener {
    fn run(mut self, stop: &CancellationToken) {
        let waker = Waker::from(self.bell.clone());
        let mut stopped = pin!(stop.cancelled());
        let mut ready = vec![true; self.sockets.len()];
        loop {
            // Polled each turn, so that its waker rings the bell.
            if stopped.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                return;
            }
            let now = Instant::now();
            self.take_mail(now);
            self.answer_commands(now);
            let mut is_more = false;
            for (index, is_ready) in ready.iter_mut().enumerate() {
                if std::mem::take(is_ready) {
                    let count = self.take_datagrams(now, index);
                    // More than a few at once: others have come meanwhile, as likely as not.
                    *is_ready = count >= BUSY;
                    is_more |= *is_ready;
                }
            }
            if self.endpoint.deadline().is_some_and(|deadline| deadline <= now) {
                self.endpoint.handle_timeout(now, &mut self.shelf);
            }
            self.shelf.notify_devices(now, &mut self.endpoint);
            self.send();
            self.publish_counters();
            let deadline = match (self.endpoint.deadline(), self.shelf.deadline()) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            let deadline = if is_more { Some(now) } else { deadline };
            if let Err(error) = wait(&self.sockets, &self.bell, deadline, &mut ready) {
                // poll(2) fails only when the kernel is out of memory; without a pause this would be a busy loop.
                warn!("coap: cannot wait for datagrams: {error}");
                std::thread::sleep(PAUSE);
            }
        }
    }

    fn take_mail(&mut self, now: Instant) {
        if let Some(mail) = self.mailbox.take() {
            for (device, change) in mail.devices {
                self.shelf.change_device(now, &device, change, &mut self.endpoint);
            }
            for reading in mail.readings {
                if let Some(resource) = self.shelf.put(now, reading) {
                    self.endpoint.notify(now, resource, &mut self.shelf);
                }
            }
        }
    }

    fn answer_commands(&mut self, now: Instant) {
        while let Some((ticket, response)) = self.shelf.next_outcome() {
            self.endpoint.respond(now, ticket, &response);
        }
    }

    /// Takes one batch off a socket and answers it. Returns how many there were.
    fn take_datagrams(&mut self, now: Instant, index: usize) -> usize {
        let count = match self.receiver.receive(&self.sockets[index]) {
            Ok(count) => count,
            // An error of an earlier datagram, or no memory: nothing that concerns the next one.
            Err(error) => {
                debug!("coap: receiving failed: {error}");
                return 0;
            }
        };
        for datagram in 0..count {
            if let Some(Received { address, bytes }) = self.receiver.datagram(datagram) {
                let peer = Peer { socket: index as u16, address };
                self.endpoint.handle_datagram(now, peer, false, bytes, &mut self.shelf);
            }
        }
        count
    }

    fn send(&mut self) {
        while let Some((peer, bytes)) = self.endpoint.poll_transmit() {
            if self.sender.add(peer.socket, peer.address, bytes) {
                self.sender.flush(&self.sockets);
            }
        }
        self.sender.flush(&self.sockets);
    }

    fn publish_counters(&self) {
        let engine = self.endpoint.counters();
        let counters = Counters {
            requests: engine.requests,
            observers: self.endpoint.observers() as u64,
            commands: self.shelf.commands(),
            send_errors: self.sender.errors(),
            oversized: self.receiver.oversized(),
            readings_coalesced: self.mailbox.coalesced(),
            engine,
        };
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }
}

/// So many datagrams in one batch mean that more are waiting.
const BUSY: usize = 8;
const PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;
