//! The wiring: what is started in which order, what is connected to what, and how it ends.

mod flows;
mod reload;

use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use log::{error, info, warn};
use mqtt::Filter;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::alarm::{self, Alarms};
use crate::clock::{Clock, watch};
use crate::command::Desk;
use crate::config::Config;
use crate::gateway::Gateway;
use crate::intake::Intake;
use crate::ledger::{self, Keeper};
use crate::listener::broker::{self, BrokerConfig, Shelves};
use crate::listener::canary::{Canary, WithCanary};
use crate::listener::coap::{self, CoapConfig};
use crate::listener::tls::{self, ByCertificate, Fault, Handshakes, Identity, TlsConfig};
use crate::listener::{bind, web};
use crate::live::{self, Live};
use crate::sampler::{DeviceConfig, Sampler};
use crate::spool::{self, Spool};
use crate::supervise::Supervisor;
use crate::uplink;
use crate::users::Users;
use crate::{banner, health, notify, paths};

/// How the gateway is to run.
#[derive(Debug, Clone)]
pub struct Start {
    /// The file or directory the user named.
    pub config: Option<PathBuf>,
    /// The state directory the user named.
    pub state: Option<PathBuf>,
    /// Whether a person watches.
    pub is_watched: bool,
}

/// Runs the gateway until it is told to stop.
///
/// # Errors
/// What kept it from starting, or which part of it ended unasked.
pub async fn run(start: Start, config: Config) -> Result<()> {
    let clock = Clock::new();
    let started = clock.stamp();
    let state = paths::state_directory(start.state.as_deref()).map_err(|error| anyhow!(error))?;
    make_private(&state)?;
    // All addresses first: whatever is wrong with one is said before anything runs.
    let listen = |what, addresses: &[SocketAddr]| {
        addresses.iter().map(|at| bind::tcp(what, *at)).collect::<Result<Vec<_>>>()
    };
    let mqtt_listeners = listen("mqtt", &config.mqtt.listen)?;
    let tls = config.mqtt.tls.as_ref();
    let tls_listeners = listen("mqtt.tls", tls.map_or(&[], |tls| &tls.listen))?;
    let wss_listeners = listen("mqtt.tls", tls.map_or(&[], |tls| &tls.websocket_listen))?;
    let http_listeners = listen("http", &config.http.listen)?;
    let coap_sockets =
        config.coap.listen.iter().map(|at| bind::udp("coap", *at)).collect::<Result<Vec<_>>>()?;
    let (control, control_path) = bind_control(start.state.as_deref(), &state)?;
    let mut listeners = Vec::new();
    for (what, address) in mqtt_listeners
        .iter()
        .map(|l| ("mqtt", l.local_addr()))
        .chain(tls_listeners.iter().map(|l| ("mqtts", l.local_addr())))
        .chain(wss_listeners.iter().map(|l| ("wss", l.local_addr())))
        .chain(http_listeners.iter().map(|l| ("http", l.local_addr())))
        .chain(coap_sockets.iter().map(|s| ("coap", s.local_addr())))
    {
        listeners.push((what, address?));
    }

    let mut supervisor = Supervisor::default();
    let stop = supervisor.token();
    let (spool, damage) = Spool::open(&state, spool_options(&config), clock)?;
    // Before anything connects.
    if let Err(error) = watch::restore_floor(clock, &spool).await {
        warn!("the floor under the time of TLS is the time of the build: {error}");
    }
    let (intake, intake_task) = Intake::new(spool.clone(), clock, stop.clone());
    let users = Users::default();
    users.load(&config.users, &config.mqtt.rules).map_err(|error| anyhow!(error))?;
    let identity = tls.map(Identity::load).transpose().map_err(|faults| anyhow!(told(&faults)))?;

    // Somebody has to ask whether the broker is well, and it has to have a door without TLS.
    let door = listeners.iter().find(|(what, _)| *what == "mqtt").map(|(_, address)| *address);
    let canary = notify::watchdog().filter(|_| door.is_some()).map(Canary::new).transpose()?;

    // The listeners end after everything that speaks through them.
    let farewell = CancellationToken::new();
    let broker_config = BrokerConfig {
        limits: broker_limits(&config),
        listeners: mqtt_listeners,
        forwarded: filters(&config.mqtt.forward),
        access: match &identity {
            Some(identity) => {
                let others = ByCertificate::or(identity.clone(), users.clone());
                Box::new(WithCanary::before(canary.clone(), others))
            }
            None => Box::new(WithCanary::before(canary.clone(), users.clone())),
        },
        judge: Some(judge(users.clone())),
        seed: random(),
        shelves: Some(Shelves::open(spool.clone(), clock).await),
    };
    let broker::Started { handle: broker, ingress, finished: broker_finished } =
        broker::start(broker_config, farewell.clone()).context("mqtt")?;
    let (coap_orders, coap_commands) = mpsc::channel(COMMANDS);
    let coap_config = CoapConfig {
        gateway: config.gateway.name.clone(),
        sockets: coap_sockets,
        commands: coap_orders,
        seed: random(),
    };
    let coap::Started { handle: coap, finished: coap_finished } =
        coap::start(coap_config, farewell.clone()).context("coap")?;

    // Full: readings are dropped and counted by the sampler, a bus is never held up.
    let (events_in, events) = mpsc::channel(EVENTS);
    let mut sampler = Sampler::new(clock, events_in);
    let discovery = config.home_assistant.discovery.then(|| config.home_assistant.prefix.clone());
    let live = Live::new(config.gateway.name.clone(), broker.clone(), coap.clone(), discovery);
    let alarms = Alarms::new(clock, &config);
    let commander = sampler.commander();
    let log = (spool.clone(), intake.clone());
    let (desk, desk_task) = Desk::new(live.clone(), commander, log, alarms.clone(), clock, stop.clone());
    let (reloads, reload_requests) = mpsc::channel(1);
    let gateway = Arc::new(Gateway {
        live: live.clone(),
        spool: spool.clone(),
        intake: intake.clone(),
        desk,
        alarms,
        broker: broker.clone(),
        coap,
        readings: broadcast::channel(TAIL).0,
        dropped_by_sampler: sampler.dropped(),
        users,
        tls: identity.clone(),
        handshakes: Handshakes::default(),
        clock,
        started,
        damage,
        listeners,
        config: RwLock::new(Arc::new(config.clone())),
        uplinks: Mutex::default(),
        reloads,
        appended: Mutex::new((Instant::now(), 0, 0.0)),
    });

    supervisor.spawn("intake", intake_task);
    supervisor.spawn("commands", desk_task);
    supervisor.spawn("alarms", alarm::run(gateway.clone(), stop.clone()));
    supervisor.spawn("clock", watch::run(clock, spool.clone(), stop.clone()));
    // Full: it holds the one keeper.
    let (keeper_back, keeper) = oneshot::channel();
    match ledger::Key::load_or_make(&state) {
        Ok(key) => {
            let keeper = Keeper::new(gateway.live.gateway(), key, spool.clone(), intake.clone(), clock);
            let config = gateway.clone();
            let interval = move || config.config().ledger.interval.0;
            supervisor.spawn("ledger", keeper.run(interval, stop.clone(), keeper_back));
        }
        // What is measured is worth more than its proof.
        Err(error) => {
            error!("no manifests will be signed: {error}");
            // Nobody is waited for at the end.
            drop(keeper_back);
        }
    }
    supervisor.spawn("readings", flows::take_readings(gateway.clone(), events, stop.clone()));
    supervisor.spawn("ingress", flows::take_ingress(gateway.clone(), ingress, stop.clone()));
    supervisor.spawn("MQTT commands", flows::take_mqtt_commands(gateway.clone(), stop.clone()).await);
    supervisor
        .spawn("CoAP commands", flows::take_coap_commands(gateway.clone(), coap_commands, stop.clone()));
    supervisor.spawn("Home Assistant", flows::greet_home_assistant(gateway.clone(), stop.clone()));
    for listener in http_listeners {
        let listener = TcpListener::from_std(listener)?;
        supervisor.spawn("http", web::serve_tcp(listener, gateway.clone(), stop.clone()));
    }
    if let Some(identity) = identity {
        let tls_config = TlsConfig {
            listeners: tls_listeners,
            websocket_listeners: wss_listeners,
            identity,
            connect_timeout: broker_limits(&config).connect_timeout,
        };
        let finished = tls::start(tls_config, gateway.clone(), farewell.clone()).context("mqtt.tls")?;
        let stop = stop.clone();
        supervisor.spawn("mqtt.tls", async move {
            tokio::select! {
                _ = finished => {}
                () = stop.cancelled() => {}
            }
        });
    }
    if let (Some(canary), Some(door)) = (&canary, door) {
        supervisor.spawn("canary", canary.clone().run(door, stop.clone()));
    }
    supervisor.spawn("control", web::serve_control(control, control_path, gateway.clone(), stop.clone()));
    live.gateway_state(true);
    for device in &config.devices {
        live.add_device(shown(device));
    }
    sampler.apply(config.devices.clone());
    for uplink in &config.uplinks {
        start_uplink(&gateway, uplink.clone(), &mut supervisor);
    }

    if start.is_watched {
        banner::print(&gateway, &state);
    }
    info!(
        "{} serves {} devices, {} uplinks",
        config.gateway.name,
        config.devices.len(),
        config.uplinks.len()
    );
    // Whoever is told that we are ready may send one at once, and unheard it would end us where we stand.
    let signals = Signals::listen()?;
    notify::ready();
    let ended =
        serve(&gateway, &start, canary, &mut sampler, &mut supervisor, signals, reload_requests).await;

    notify::stopping();
    info!("stopping");
    sampler.stop().await;
    live.gateway_state(false);
    supervisor.stop(STOP_TASKS).await;
    if let Ok(keeper) = keeper.await {
        keeper.finish(STOP_LEDGER).await;
    }
    farewell.cancel();
    let _ = tokio::time::timeout(STOP_LISTENERS, async {
        let _ = broker_finished.await;
        let _ = coap_finished.await;
    })
    .await;
    spool.close().await;
    info!("stopped");
    ended
}

/// What systemd, or a person at a terminal, says by signal.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Waits for signals, reloads and failures, and keeps the watchdog fed, until it is time to stop.
async fn serve(
    gateway: &Arc<Gateway>,
    start: &Start,
    canary: Option<Canary>,
    sampler: &mut Sampler,
    supervisor: &mut Supervisor,
    mut signals: Signals,
    mut reloads: mpsc::Receiver<oneshot::Sender<Result<String, String>>>,
) -> Result<()> {
    let limit = notify::watchdog().unwrap_or(STATUS_INTERVAL);
    let mut beat = tokio::time::interval(limit.min(STATUS_INTERVAL));
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            name = supervisor.first_to_end() => bail!("{name} ended unasked"),
            _ = signals.hangup.recv() => {
                // The mistakes are logged; the old configuration stays.
                let _ = reload::reload(gateway, start, sampler, supervisor).await;
            }
            Some(reply) = reloads.recv() => {
                let _ = reply.send(reload::reload(gateway, start, sampler, supervisor).await);
            }
            _ = beat.tick() => {
                // Both have to answer before the watchdog is told that we are alive: the broker's own thread, and the
                // broker to one who asks from outside.
                let status = tokio::time::timeout(limit, gateway.broker.status()).await;
                let is_answered = status.is_ok_and(|status| status.is_some());
                if is_answered && canary.as_ref().is_none_or(Canary::is_well) {
                    notify::alive();
                }
                notify::status(&summary(gateway));
            }
        }
    }
}

fn start_uplink(gateway: &Arc<Gateway>, config: uplink::UplinkConfig, supervisor: &mut Supervisor) {
    let shared = uplink::Shared {
        spool: gateway.spool.clone(),
        clock: gateway.clock,
        desk: gateway.desk.clone(),
        gateway: gateway.live.gateway().to_owned(),
    };
    let (handle, task) = uplink::start(config, shared, supervisor.token().child_token());
    gateway.uplinks.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
    let stop = supervisor.token();
    supervisor.spawn("uplink", async move {
        task.await;
        // One that a reload stopped is no failure: its task ends with the others.
        stop.cancelled().await;
    });
}

fn shown(device: &DeviceConfig) -> live::Device {
    live::Device {
        name: device.name.clone(),
        title: device.title.clone().unwrap_or_else(|| device.name.clone()),
        type_name: device.type_name.to_owned(),
        bus: device.setup.bus().to_string(),
        is_simulated: device.setup.is_simulated(),
        interval_s: device.interval.as_secs_f64(),
        state: "probing",
        detail: String::new(),
        errors: 0,
        last: None,
    }
}

fn spool_options(config: &Config) -> spool::Options {
    spool::Options {
        max_size: config.spool.max_size.0,
        rpo: config.spool.rpo.0,
        wear_budget: config.spool.wear_budget.map_or(spool::WEAR_BUDGET, |budget| budget.0),
        when_full: config.spool.when_full,
        retain: config.spool.retain.0,
        uplinks: config.uplinks.iter().map(|uplink| uplink.name.clone()).collect(),
    }
}

/// Finds out what takes a while: whether a password is the one behind a hash.
fn judge(users: Users) -> broker::Judge {
    Box::new(move |user, password| match (user, password) {
        (Some(user), Some(password)) if users.is_password(&user, &password) => {
            mqtt::Verdict::Accept(Some(user.into()))
        }
        _ => mqtt::Verdict::Refuse(mqtt::ReasonCode::BAD_CREDENTIALS),
    })
}

/// What waits for MQTT clients and what is retained takes no more than a quarter of the spool.
fn broker_limits(config: &Config) -> mqtt::Limits {
    let limits = config.mqtt.limits.apply(mqtt::Limits::default());
    let share = usize::try_from(config.spool.max_size.0 / 8).unwrap_or(usize::MAX);
    mqtt::Limits {
        connections: config.mqtt.max_connections,
        queue_bytes: limits.queue_bytes.min(share),
        queue_bytes_total: limits.queue_bytes_total.min(share),
        retained_bytes: limits.retained_bytes.min(share),
        ..limits
    }
}

/// The faults as one text.
fn told(faults: &[Fault]) -> String {
    faults
        .iter()
        .map(|fault| format!("[mqtt.tls] {}: {}", fault.key, fault.message))
        .collect::<Vec<_>>()
        .join("\n")
}

fn filters(texts: &[String]) -> Vec<Filter> {
    texts.iter().filter_map(|text| Filter::new(text).ok()).collect()
}

fn summary(gateway: &Gateway) -> String {
    let problems = health::problems(gateway);
    let waiting = gateway
        .uplinks()
        .iter()
        .map(|handle| {
            let status = handle.status();
            gateway.spool.stats().last_seq.saturating_sub(status.cursor) + status.backfill
        })
        .max();
    let waiting =
        waiting.map_or(String::new(), |waiting| format!(", {waiting} entries wait for the uplinks"));
    match problems.first() {
        None => format!("well; {} devices{waiting}", gateway.live.devices().len()),
        Some(first) => format!("{} problems, first: {}{waiting}", problems.len(), first.what),
    }
}

/// Makes a directory that only we may read.
fn make_private(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| {
            // It may be there and belong to another, or be on a file system that is read-only: find out now.
            let probe = path.join(".probe");
            std::fs::write(&probe, b"")?;
            std::fs::remove_file(probe)
        })
        .with_context(|| format!("the state directory {} cannot be written", path.display()))
}

fn bind_control(chosen: Option<&Path>, state: &Path) -> Result<(UnixListener, PathBuf)> {
    let path = paths::control_socket(chosen, state);
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("{} cannot be made", directory.display()))?;
    }
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        bail!("another tidegate is running: it answers on {}", path.display());
    }
    // Nobody answers: what is left of an earlier run.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("the control socket {} cannot be made", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660))?;
    Ok((listener, path))
}

fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// Sampler events on their way to the live copy.
const EVENTS: usize = 4096;
/// Commands under way at a time; further ones wait in line.
const COMMANDS: usize = 64;
/// Readings that a slow `tail` may be behind.
const TAIL: usize = 1024;
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
const STOP_TASKS: Duration = Duration::from_millis(1500);
const STOP_LEDGER: Duration = Duration::from_millis(800);
const STOP_LISTENERS: Duration = Duration::from_millis(800);
