//! The ways out: each reads the spool behind its own cursor, keeps a window in flight, and moves the cursor only when
//! its peer has confirmed.
//!
//! An uplink file gives an [`UplinkType`] and speaks one protocol over one connection; everything else (cursor, order,
//! window, waiting, state for people) is done here once for all of them.

mod amqp091;
#[cfg(feature = "amqp10")]
mod amqp10;
mod backoff;
mod dial;
pub mod forwarder;
mod link;
mod mqtt;
mod pace;
pub mod settings;
mod stream;
mod tls;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use log::warn;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use toml::Spanned;
use toml::de::DeTable;

use self::backoff::Backoff;
pub use self::link::Link;
use self::settings::{Common, Delivery};
use crate::clock::Clock;
use crate::command::{Desk, Remote};
use crate::config::document::Diagnostic;
use crate::payload::parcel::Origin;
use crate::spool::{Seq, Spool};

/// All kinds of uplinks, one line each.
static REGISTRY: &[&UplinkType] = &[
    &amqp091::UPLINK,
    #[cfg(feature = "amqp10")]
    &amqp10::UPLINK,
    &mqtt::UPLINK,
    &stream::UPLINK,
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
    /// What it can promise.
    fn deliveries(&self) -> &'static [Delivery];
    /// What would keep it from working, found without connecting.
    fn problems(&self, common: &Common) -> Vec<String>;
    /// Whether `other` holds the same settings.
    fn is_same(&self, other: &dyn Setup) -> bool;
    /// For [`Setup::is_same`].
    fn as_any(&self) -> &dyn std::any::Any;
    /// An uplink with these settings.
    fn open(&self, context: Context) -> Box<dyn Uplink>;
}

/// What an uplink knows of where it stands.
#[derive(Debug, Clone)]
pub struct Context {
    /// Its name in the configuration.
    pub name: String,
    /// Whose entries it carries.
    pub origin: Origin,
    /// The settings that all kinds have.
    pub common: Common,
}

/// A way out. Lives as long as its settings, over many connections.
pub trait Uplink: Send {
    /// Connects and carries entries until something fails. Ends without an error only when `link` is told to stop.
    fn carry<'a>(&'a mut self, link: &'a mut Link) -> BoxFuture<'a, anyhow::Result<()>>;
}

/// `[[uplink]]`
#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// The uplink's name: its progress is kept under it.
    pub name: String,
    /// The settings that all kinds have.
    pub common: Common,
    /// The kind's settings.
    pub setup: Arc<dyn Setup>,
}

impl PartialEq for UplinkConfig {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.common == other.common && self.setup.is_same(&*other.setup)
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
    /// Where the live lane stands.
    pub cursor: u64,
    /// Where the alarm lane stands.
    pub alarm_cursor: u64,
    /// Entries left to the backfill lane.
    pub backfill: u64,
    /// How many of them are still ahead of the live lane.
    pub ahead: u64,
    /// Everything of telemetry up to here is confirmed.
    pub oldest: u64,
    /// Bytes sent this month.
    pub sent_this_month: u64,
    /// Bytes that may be sent a month.
    pub monthly_budget: Option<u64>,
    /// Whether only alarms go out until the month is over.
    pub is_budget_exhausted: bool,
    /// Sent and not yet confirmed.
    pub in_flight: usize,
    /// Confirmed since start.
    pub confirmed: u64,
    /// Sent again although the peer may have had them: what lost sessions left in doubt at exactly-once.
    pub doubtful: u64,
    /// Confirmed per second, over the last seconds.
    pub rate: f64,
}

/// A running uplink: the task's handle and what it shows.
#[derive(Clone)]
pub struct Handle {
    /// Its settings.
    pub config: UplinkConfig,
    status: Arc<Mutex<Status>>,
    orders: mpsc::Sender<Order>,
    stop: CancellationToken,
    ended: CancellationToken,
}

/// What a person has an uplink do with what was kept for it.
enum Order {
    Replay { after: Seq, until: Seq, reply: oneshot::Sender<Result<u64, String>> },
    GiveUp { until: Seq, reply: oneshot::Sender<Result<Vec<(Seq, Seq)>, String>> },
}

/// Where commands that come down an uplink go.
#[derive(Clone)]
pub struct Commands {
    desk: Desk,
    uplink: String,
}

impl Commands {
    /// Carries out what came down and may have waited anywhere, at most once, and gives the outcome as JSON. It needs an
    /// id and an expiry, from the message (`id`, `expires_ns` since 1970) or from its payload; `path` is
    /// `device/channel` or the whole topic.
    pub async fn carry_out(
        &self,
        path: &str,
        payload: &[u8],
        id: Option<String>,
        expires_ns: Option<i64>,
    ) -> serde_json::Value {
        let uplink = &self.uplink;
        self.desk.carry_out_remote(Remote { uplink, path, payload, id, expires_ns }).await
    }
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

    /// Waits until it has ended and its progress is with the spool.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Sends telemetry of `(after, until]` once more, as far as it was sent; returns how many places that are.
    ///
    /// # Errors
    /// The uplink is ending, promises that nothing comes twice, or the spool cannot write.
    pub async fn replay(&self, after: Seq, until: Seq) -> Result<u64, String> {
        if self.config.common.delivery != Delivery::AtLeastOnce {
            let delivery = self.config.common.delivery.as_str();
            return Err(format!("{} delivers {delivery}: it sends nothing twice", self.config.name));
        }
        self.order(|reply| Order::Replay { after, until, reply }).await
    }

    /// Gives up telemetry up to `until` that was not confirmed; returns the ranges `(after, until]`, of which the
    /// caller makes gaps.
    ///
    /// # Errors
    /// The uplink is ending, or the spool cannot write.
    pub async fn give_up(&self, until: Seq) -> Result<Vec<(Seq, Seq)>, String> {
        self.order(|reply| Order::GiveUp { until, reply }).await
    }

    async fn order<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Order,
    ) -> Result<T, String> {
        let (reply, answer) = oneshot::channel();
        let ending = || format!("uplink {} is ending", self.config.name);
        self.orders.send(order(reply)).await.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())?
    }
}

/// What all uplinks of a gateway share.
#[derive(Clone)]
pub struct Shared {
    /// The log.
    pub spool: Spool,
    /// The machine's clocks.
    pub clock: Clock,
    /// Where commands go.
    pub desk: Desk,
    /// The gateway's name.
    pub gateway: String,
}

/// Makes an uplink and the task that runs it.
pub fn start(
    config: UplinkConfig,
    shared: Shared,
    stop: CancellationToken,
) -> (Handle, impl Future<Output = ()> + Send + 'static) {
    let status = Arc::new(Mutex::new(Status { state: "connecting", ..Status::default() }));
    let ended = CancellationToken::new();
    // Full: the person who gives the order waits.
    let (orders, received) = mpsc::channel(4);
    let handle = Handle {
        config: config.clone(),
        status: status.clone(),
        orders,
        stop: stop.clone(),
        ended: ended.clone(),
    };
    let task = async move {
        run(config, shared, received, stop, status).await;
        ended.cancel();
    };
    (handle, task)
}

async fn run(
    config: UplinkConfig,
    shared: Shared,
    mut orders: mpsc::Receiver<Order>,
    stop: CancellationToken,
    status: Arc<Mutex<Status>>,
) {
    let UplinkConfig { name, common, setup } = config;
    let Shared { spool, clock, desk, gateway } = shared;
    let origin = Origin { gateway, epoch: spool.epoch() };
    let commands = Commands { desk, uplink: name.clone() };
    let context = Context { name: name.clone(), origin: origin.clone(), common: common.clone() };
    let opened = Link::open(context.clone(), spool, clock, commands, stop.clone(), status).await;
    let Ok(mut link) = opened else { return };
    let mut backoff = Backoff::new(seed(&name), common.retry_within.0);
    let mut uplink = setup.open(context);
    loop {
        link.set_state("connecting", String::new(), None);
        let ended = tokio::select! {
            // It stops by itself; one that does not say goodbye in time is dropped, and what was in flight stays
            // unconfirmed and is read again.
            () = async { stop.cancelled().await; tokio::time::sleep(GOODBYE).await } => break,
            Some(order) = orders.recv() => {
                link.disconnected().await;
                obey(&mut link, order).await;
                continue;
            }
            ended = uplink.carry(&mut link) => ended,
        };
        if let Err(error) = &ended {
            // Once per change of state: a link that stays down fills no log.
            if link.is_connected() {
                warn!(uplink:% = name; "connection to {} lost: {error:#}", setup.target());
            } else if backoff.is_fresh() {
                warn!(uplink:% = name; "cannot reach {}: {error:#}", setup.target());
            }
        } else if stop.is_cancelled() {
            break;
        }
        link.disconnected().await;
        if link.take_connected().is_some_and(|held| held > HEALTHY) {
            backoff.reset();
        }
        let wait = backoff.next();
        let detail = ended.err().map(|error| format!("{error:#}")).unwrap_or_default();
        link.set_state("backoff", detail, Some(Instant::now() + wait));
        tokio::select! {
            () = stop.cancelled() => break,
            Some(order) = orders.recv() => obey(&mut link, order).await,
            () = tokio::time::sleep(wait) => {}
        }
    }
    link.disconnected().await;
    link.set_state("stopped", String::new(), None);
}

async fn obey(link: &mut Link, order: Order) {
    match order {
        Order::Replay { after, until, reply } => {
            let _ = reply.send(link.replay(after, until).await.map_err(|error| error.to_string()));
        }
        Order::GiveUp { until, reply } => {
            let _ = reply.send(link.give_up(until).await.map_err(|error| error.to_string()));
        }
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

/// For a polite end where the connection still stands.
const GOODBYE: Duration = Duration::from_millis(800);
/// A connection that held this long was healthy: the next loss begins with a short wait again.
const HEALTHY: Duration = Duration::from_secs(10);
