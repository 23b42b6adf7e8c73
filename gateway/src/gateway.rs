//! The running gateway as its listeners, its page and its CLI see it.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc, oneshot};

use crate::alarm::Alarms;
use crate::clock::{Clock, Stamp};
use crate::command::Desk;
use crate::config::Config;
use crate::intake::Intake;
use crate::listener::broker::BrokerHandle;
use crate::listener::coap::CoapHandle;
use crate::listener::tls::{Handshakes, Identity};
use crate::live::Live;
use crate::reading::Reading;
use crate::spool::{Damage, Spool};
use crate::uplink;
use crate::users::Users;

/// What the listeners need of the running gateway.
pub struct Gateway {
    /// The last readings.
    pub live: Live,
    /// The log.
    pub spool: Spool,
    /// The way into it.
    pub intake: Intake,
    /// Commands.
    pub desk: Desk,
    /// What people have to hear of.
    pub alarms: Alarms,
    /// The MQTT broker.
    pub broker: BrokerHandle,
    /// What the TLS listeners show, where there are any; changed by a reload only.
    pub tls: Option<Identity>,
    /// What became of connections over TLS.
    pub handshakes: Handshakes,
    /// The CoAP server.
    pub coap: CoapHandle,
    /// Every reading as it comes; who is too slow misses some.
    pub readings: broadcast::Sender<Reading>,
    /// Readings that the sampler dropped because nobody took them in time.
    pub dropped_by_sampler: Arc<AtomicU64>,
    /// Who may come in.
    pub users: Users,
    /// The machine's clocks.
    pub clock: Clock,
    /// When the gateway started.
    pub started: Stamp,
    /// What was found damaged at start.
    pub damage: Option<Damage>,
    /// What is served where.
    pub listeners: Vec<(&'static str, SocketAddr)>,
    /// The configuration in force; replaced as a whole by a reload, read through [`Gateway::config`].
    pub config: RwLock<Arc<Config>>,
    /// The running uplinks; changed by a reload only.
    pub uplinks: Mutex<Vec<uplink::Handle>>,
    pub reloads: mpsc::Sender<oneshot::Sender<Result<String, String>>>,
    /// Entries appended and when that was looked at, for the rate.
    pub appended: Mutex<(Instant, u64, f64)>,
}

impl Gateway {
    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The running uplinks.
    pub fn uplinks(&self) -> Vec<uplink::Handle> {
        self.uplinks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Entries appended per second, over the last seconds.
    pub fn appended_per_s(&self) -> f64 {
        let total = self.spool.stats().appended;
        let mut seen = self.appended.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = seen.0.elapsed();
        if passed > Duration::from_secs(2) {
            *seen = (Instant::now(), total, (total - seen.1) as f64 / passed.as_secs_f64());
        }
        seen.2
    }

    /// Has the configuration read again; says what changed.
    ///
    /// # Errors
    /// The mistakes, drawn for a person; the old configuration stays in force.
    pub async fn request_reload(&self) -> Result<String, String> {
        let (reply, answer) = oneshot::channel();
        self.reloads.send(reply).await.map_err(|_| "the gateway is stopping".to_owned())?;
        answer.await.map_err(|_| "the gateway is stopping".to_owned())?
    }
}
