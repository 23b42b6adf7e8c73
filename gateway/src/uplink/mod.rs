//! The ways out: each reads the spool behind its own cursor, keeps a window in flight, and moves the cursor only when
//! its peer has confirmed.
//!
//! An uplink file gives an [`UplinkType`] and speaks one protocol over one connection; everything else (cursor, order,
//! window, waiting, state for people) is done here once for all of them.

mod amqp091;
mod backoff;
pub mod forwarder;
mod mqtt;
mod tls;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use log::{info, warn};
use tokio_util::sync::CancellationToken;
use toml::Spanned;
use toml::de::DeTable;

use self::backoff::Backoff;
use self::forwarder::Forwarder;
use crate::config::document::Diagnostic;
use crate::spool::{Committed, Progress, Seq, Spool, SpoolError, Stored};

/// All kinds of uplinks, one line each.
static REGISTRY: &[&UplinkType] = &[
    &amqp091::UPLINK, //
    &mqtt::UPLINK,
];

/// All kinds of uplinks.
pub fn registry() -> &'static [&'static UplinkType] {
    REGISTRY
}

/// The kind with that name.
pub fn find(name: &str) -> Option<&'static UplinkType> {
    registry().iter().copied().find(|known| known.name == name)
}

/// From an uplink's table, its common keys taken out, to its settings.
pub type Parse = fn(Spanned<DeTable<'_>>) -> Result<Arc<dyn Setup>, Diagnostic>;

/// A kind of uplink.
#[derive(Debug)]
pub struct UplinkType {
    /// What stands behind `type =`.
    pub name: &'static str,
    /// Reads the kind's own settings.
    pub parse: Parse,
}

/// An uplink's settings, checked.
pub trait Setup: fmt::Debug + Send + Sync {
    /// `mqtt`, `amqp`.
    fn type_name(&self) -> &'static str;
    /// Where it goes, for people: no credentials.
    fn target(&self) -> String;
    /// Entries in flight at a time.
    fn window(&self) -> usize;
    /// What would keep it from working, found without connecting.
    fn problems(&self) -> Vec<String>;
    /// Whether `other` holds the same settings.
    fn is_same(&self, other: &dyn Setup) -> bool;
    /// For [`Setup::is_same`].
    fn as_any(&self) -> &dyn std::any::Any;
    /// An uplink with these settings for a gateway of that name.
    fn open(&self, gateway: &str, name: &str) -> Box<dyn Uplink>;
}

/// A way out. Lives as long as its settings, over many connections.
pub trait Uplink: Send {
    /// Connects and carries entries until something fails. Ends without an error only when `link` is told to stop.
    fn carry<'a>(&'a mut self, link: &'a mut Link) -> BoxFuture<'a, anyhow::Result<()>>;
}

/// `[[uplink]]`
#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// The uplink's name: its cursor is kept under it.
    pub name: String,
    /// The kind's settings.
    pub setup: Arc<dyn Setup>,
}

impl PartialEq for UplinkConfig {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.setup.is_same(&*other.setup)
    }
}

/// How an uplink stands, for people.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// `connected`, `connecting`, `backoff`, `stopped`.
    pub state: &'static str,
    /// Why, where that helps.
    pub detail: String,
    /// When the next try is due.
    pub next_try: Option<Instant>,
    /// The last place confirmed.
    pub cursor: u64,
    /// Sent and not yet confirmed.
    pub in_flight: usize,
    /// Confirmed since start.
    pub confirmed: u64,
    /// Confirmed per second, over the last seconds.
    pub rate: f64,
}

/// A running uplink: the task's handle and what it shows.
#[derive(Clone)]
pub struct Handle {
    /// Its settings.
    pub config: UplinkConfig,
    status: Arc<Mutex<Status>>,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Handle {
    /// How it stands.
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it; what is in flight is sent again by the next one with its name.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until it has ended and its cursor is with the spool.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

/// Makes an uplink and the task that runs it.
pub fn start(
    config: UplinkConfig,
    gateway: String,
    spool: Spool,
    stop: CancellationToken,
) -> (Handle, impl Future<Output = ()> + Send + 'static) {
    let status = Arc::new(Mutex::new(Status { state: "connecting", ..Status::default() }));
    let ended = CancellationToken::new();
    let handle =
        Handle { config: config.clone(), status: status.clone(), stop: stop.clone(), ended: ended.clone() };
    let task = async move {
        run(config, gateway, spool, stop, status).await;
        ended.cancel();
    };
    (handle, task)
}

async fn run(
    config: UplinkConfig,
    gateway: String,
    spool: Spool,
    stop: CancellationToken,
    status: Arc<Mutex<Status>>,
) {
    let name = config.name.clone();
    let Ok((progress, _)) = spool.progress(&name).await else { return };
    let cursor = progress.live.min(progress.alarm);
    let mut link = Link {
        forwarder: Forwarder::new(cursor, config.setup.window()),
        committed: spool.committed(),
        name: name.clone(),
        spool,
        stop: stop.clone(),
        status,
        rate: Rate::new(),
        connected_at: None,
    };
    let mut backoff = Backoff::new(seed(&name));
    let mut uplink = config.setup.open(&gateway, &name);
    loop {
        link.set_state("connecting", String::new(), None);
        let ended = tokio::select! {
            // Cancelled: the connection is dropped; what was in flight stays unconfirmed and is read again.
            () = stop.cancelled() => break,
            ended = uplink.carry(&mut link) => ended,
        };
        if let Err(error) = &ended {
            // Once per change of state: a link that stays down fills no log.
            if link.connected_at.is_some() {
                warn!(uplink:% = name; "connection to {} lost: {error:#}", config.setup.target());
            } else if backoff.is_fresh() {
                warn!(uplink:% = name; "cannot reach {}: {error:#}", config.setup.target());
            }
        } else if stop.is_cancelled() {
            break;
        }
        link.store_cursor().await;
        link.forwarder.disconnected();
        if link.connected_at.take().is_some_and(|at| at.elapsed() > HEALTHY) {
            backoff.reset();
        }
        let wait = backoff.next();
        let detail = ended.err().map(|error| format!("{error:#}")).unwrap_or_default();
        link.set_state("backoff", detail, Some(Instant::now() + wait));
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
    link.store_cursor().await;
    link.set_state("stopped", String::new(), None);
}

/// What an uplink's protocol sees of the spool: the next entries, and where to say what was confirmed.
pub struct Link {
    name: String,
    spool: Spool,
    committed: tokio::sync::watch::Receiver<Committed>,
    forwarder: Forwarder,
    stop: CancellationToken,
    status: Arc<Mutex<Status>>,
    rate: Rate,
    connected_at: Option<Instant>,
}

impl Link {
    /// Fires when the uplink is to end.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// The peer accepted us.
    pub fn connected(&mut self, target: &str) {
        info!(uplink:% = self.name; "connected to {target}");
        self.connected_at = Some(Instant::now());
        self.set_state("connected", String::new(), None);
    }

    /// The next entries to send, in order, no more than the window has room for. Waits until there are some.
    ///
    /// Cancel-safe: entries count as sent only when they are returned.
    pub async fn next(&mut self) -> Result<Vec<Stored>, SpoolError> {
        loop {
            let last = {
                let committed = self.committed.borrow_and_update();
                if let Some(stored) = committed.progress.get(&self.name) {
                    self.forwarder.stored(stored.live);
                }
                committed.last
            };
            let Some((after, room)) = self.forwarder.wants(last) else {
                self.committed.changed().await.map_err(|_| SpoolError::Closed)?;
                continue;
            };
            let entries = self.spool.read_after(after, room.min(READ_AT_ONCE)).await?;
            let read_to = entries.last().map_or(last, |last| last.seq);
            self.forwarder.sent(entries.iter().map(|entry| entry.seq), read_to);
            if entries.is_empty() {
                self.store_cursor().await;
                continue;
            }
            self.note();
            return Ok(entries);
        }
    }

    /// The peer has this entry for good; `false` for one that was not sent over this connection.
    pub async fn confirmed(&mut self, seq: Seq) -> bool {
        if !self.forwarder.is_in_flight(seq) {
            return seq <= self.forwarder.cursor();
        }
        self.rate.count(1);
        let has_moved = self.forwarder.confirmed(seq).is_some();
        if has_moved && (self.forwarder.is_cursor_late() || self.forwarder.in_flight() == 0) {
            self.store_cursor().await;
        }
        self.note();
        true
    }

    async fn store_cursor(&mut self) {
        // A closed spool ends this uplink's next read.
        let is_urgent = self.forwarder.is_cursor_late();
        let progress = Progress::at(self.forwarder.cursor());
        let _ = self.spool.note_progress(&self.name, progress, is_urgent).await;
    }

    fn set_state(&mut self, state: &'static str, detail: String, next_try: Option<Instant>) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.state = state;
        status.detail = detail;
        status.next_try = next_try;
        drop(status);
        self.note();
    }

    fn note(&mut self) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.cursor = self.forwarder.cursor().0;
        status.in_flight = self.forwarder.in_flight();
        status.confirmed = self.rate.total;
        status.rate = self.rate.per_second();
    }
}

/// Confirmations per second over the last whole seconds.
struct Rate {
    total: u64,
    since: Instant,
    at_since: u64,
    last: f64,
}

impl Rate {
    fn new() -> Self {
        Self { total: 0, since: Instant::now(), at_since: 0, last: 0.0 }
    }

    fn count(&mut self, n: u64) {
        self.total += n;
    }

    fn per_second(&mut self) -> f64 {
        let passed = self.since.elapsed();
        if passed > Duration::from_secs(2) {
            self.last = (self.total - self.at_since) as f64 / passed.as_secs_f64();
            (self.since, self.at_since) = (Instant::now(), self.total);
        }
        self.last
    }
}

/// The parts of `host:port`; an IPv6 address stands in brackets.
fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host, port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

fn seed(name: &str) -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    // Randomly keyed: a thousand gateways that lose one broker come back at a thousand different moments.
    RandomState::new().hash_one(name)
}

/// A connection that held this long was healthy: the next loss begins with a short wait again.
const HEALTHY: Duration = Duration::from_secs(10);
/// Entries read from disk at a time.
const READ_AT_ONCE: usize = 512;
