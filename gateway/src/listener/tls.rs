//! MQTT over TLS and over secure WebSocket: handshakes, then the broker has the connection.
//!
//! One thread makes all handshakes, so that however many clients come at once, sensors and the clients that are
//! connected do not wait for the arithmetic. Accepting waits for none of them: each is a task of its own, of which there
//! are [`MAX_HANDSHAKES`] at a time, and from accept to CONNECT a client has as long as on plain TCP.

mod admission;
mod identity;
mod subject;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use log::{debug, warn};
use mqtt::{Peer, Transport};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet, LocalSet, spawn_local};
use tokio::time::timeout_at;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

pub use self::admission::ByCertificate;
pub use self::identity::{Fault, Identity};
use crate::gateway::Gateway;
use crate::listener::web::secure;

/// What the listeners are started with: bound and listening.
pub struct TlsConfig {
    /// Where MQTT follows the handshake.
    pub listeners: Vec<TcpListener>,
    /// Where a WebSocket follows it.
    pub websocket_listeners: Vec<TcpListener>,
    /// What is shown to clients, and wanted of them.
    pub identity: Identity,
    /// From accept to CONNECT.
    pub connect_timeout: Duration,
}

/// What became of connections before the broker had them.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// The broker has the connection, or HTTP has answered what was no upgrade.
    pub done: AtomicU64,
    /// Ended by an error: no TLS, no certificate, no WebSocket.
    pub failed: AtomicU64,
    /// Not done in time.
    pub timed_out: AtomicU64,
    /// Given up unfinished, because newer ones needed the place.
    pub displaced: AtomicU64,
}

/// What follows the handshake.
#[derive(Debug, Clone, Copy)]
enum Door {
    Mqtt,
    WebSocket,
}

/// What all tasks of the thread share.
struct Porter {
    gateway: Arc<Gateway>,
    identity: Identity,
    connect_timeout: Duration,
    /// Handshakes under way, the oldest first.
    pending: RefCell<VecDeque<AbortHandle>>,
}

/// Starts the listeners on a thread of their own. They accept until `stop`; the connections live on for as long as the
/// broker has them. The receiver resolves when the thread has ended.
pub fn start(
    config: TlsConfig,
    gateway: Arc<Gateway>,
    stop: CancellationToken,
) -> io::Result<oneshot::Receiver<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listeners = {
        let _guard = runtime.enter();
        let mqtt = config.listeners.into_iter().map(|listener| (listener, Door::Mqtt));
        let websocket = config.websocket_listeners.into_iter().map(|listener| (listener, Door::WebSocket));
        let adopt = |(listener, door)| Ok((tokio::net::TcpListener::from_std(listener)?, door));
        mqtt.chain(websocket).map(adopt).collect::<io::Result<Vec<_>>>()?
    };
    let (done, finished) = oneshot::channel();
    thread::Builder::new().name("mqtt-tls".into()).spawn(move || {
        LocalSet::new().block_on(&runtime, async {
            let broker = gateway.broker.clone();
            let porter = Rc::new(Porter {
                gateway,
                identity: config.identity,
                connect_timeout: config.connect_timeout,
                pending: RefCell::default(),
            });
            let mut accepting = JoinSet::new();
            for (listener, door) in listeners {
                accepting.spawn_local(accept(porter.clone(), listener, door));
            }
            stop.cancelled().await;
            drop(accepting);
            // The sockets that the broker says goodbye on are this thread's.
            broker.stopped().await;
        });
        let _ = done.send(());
    })?;
    Ok(finished)
}

async fn accept(porter: Rc<Porter>, listener: tokio::net::TcpListener, door: Door) {
    let mut is_failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                is_failing = false;
                porter.receive(stream, address, door);
            }
            Err(error) => {
                // Out of file descriptors, most likely: those who are connected go on, the next one waits.
                if !is_failing {
                    warn!("cannot accept MQTT connections over TLS: {error}");
                }
                is_failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Porter {
    /// Begins a handshake in a task of its own. Whoever has taken longest makes room: a client that means it is done
    /// long before as many others have come.
    fn receive(self: &Rc<Self>, stream: TcpStream, address: SocketAddr, door: Door) {
        let mut pending = self.pending.borrow_mut();
        pending.retain(|task| !task.is_finished());
        if pending.len() >= MAX_HANDSHAKES
            && let Some(oldest) = pending.pop_front()
        {
            oldest.abort();
            self.gateway.handshakes.displaced.fetch_add(1, Ordering::Relaxed);
        }
        let welcome = self.clone().welcome(stream, address, door, Instant::now());
        pending.push_back(spawn_local(welcome).abort_handle());
    }

    async fn welcome(self: Rc<Self>, stream: TcpStream, address: SocketAddr, door: Door, accepted: Instant) {
        let deadline = (accepted + self.connect_timeout).into();
        let count = &self.gateway.handshakes;
        let counter = match timeout_at(deadline, self.hand_over(stream, address, door, accepted)).await {
            Ok(Ok(())) => &count.done,
            Ok(Err(error)) => {
                debug!(peer:% = address; "no MQTT over TLS: {error:#}");
                &count.failed
            }
            Err(_) => &count.timed_out,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    async fn hand_over(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        door: Door,
        accepted: Instant,
    ) -> Result<()> {
        stream.set_nodelay(true)?;
        let stream = self.identity.acceptor().accept(stream).await?;
        let certificate = certificate_name(&stream)?;
        match door {
            Door::Mqtt => {
                let peer = Peer { certificate, ..Peer::new(Some(address), Transport::Tls) };
                self.gateway.broker.attach(stream, peer, accepted).await;
            }
            Door::WebSocket => {
                let peer = Peer { certificate, ..Peer::new(Some(address), Transport::SecureWebSocket) };
                secure::upgrade(stream, secure::Arrival { peer, accepted }, self.gateway.clone()).await?;
            }
        }
        Ok(())
    }
}

/// The name in the certificate that the client has shown, if it has.
fn certificate_name(stream: &TlsStream<TcpStream>) -> Result<Option<Arc<str>>> {
    let Some(certificate) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) else {
        return Ok(None);
    };
    let name = subject::name(certificate).context("the client's certificate has no name")?;
    Ok(Some(name.into()))
}

/// Handshakes under way at a time, upgrades to WebSocket among them.
const MAX_HANDSHAKES: usize = 256;

/// How long accepting rests after it failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
