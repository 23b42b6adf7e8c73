//! From devices to readings: one thread per bus, one task per serial port, and an event for everything that changes.
//!
//! A bus thread never waits for whoever takes the events: when the channel is full, readings are dropped and counted,
//! while states, channel lists and lapsed leases wait in their device's slot, the latest winning.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::TrySendError;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use drivers::schedule::State;
use drivers::{BusKey, DeviceError, Lapse, Setup, Value};
use tokio::sync::{mpsc, oneshot};

use crate::alarm::Limits;
use crate::clock::Clock;
use crate::reading::{Channel, Reading};

use bus_thread::{BusThread, Command};
use feed::Feed;
use stream::StreamTask;

mod bus_thread;
mod feed;
mod stream;

/// What happens among the devices.
#[derive(Debug)]
pub enum Event {
    /// A device answers, and this is what it measures. Comes again with a longer list when the device has come to know
    /// more channels.
    Online {
        /// Its name.
        device: Arc<str>,
        /// All of its channels.
        channels: Vec<Arc<Channel>>,
    },
    /// A device's state changed.
    State {
        /// Its name.
        device: Arc<str>,
        /// How it is now.
        state: State,
        /// Why, unless it is well.
        detail: Option<String>,
    },
    /// What one poll of one device, or one chunk of a serial port, came to.
    Readings(Vec<Reading>),
    /// An output went to its safe state because its lease ran out.
    Lapsed {
        /// Its device.
        device: Arc<str>,
        /// What became of it.
        lapse: Lapse,
    },
}

/// A device as it is configured.
#[derive(Debug, Clone)]
pub struct DeviceConfig {
    /// Its name: [`crate::reading::is_name`] holds.
    pub name: String,
    /// Its type's name in the configuration.
    pub type_name: &'static str,
    /// What a person calls it.
    pub title: Option<String>,
    /// How often it is read; for a serial port, how long its silence is no cause for worry.
    pub interval: Duration,
    /// For how long it may be silent before that is cause for alarm.
    pub absent_after: Duration,
    /// Its own settings.
    pub setup: Arc<dyn Setup>,
    /// What the user set for single channels, by name.
    pub channels: BTreeMap<String, ChannelOverride>,
}

/// What the user set for one channel.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChannelOverride {
    /// What a person calls it.
    pub title: Option<String>,
    /// Outside of it a value is uncertain; in the unit of the calibrated value.
    pub range: Option<(f64, f64)>,
    /// `value = raw * scale + offset`; 1 unless set.
    pub scale: Option<f64>,
    /// `value = raw * scale + offset`; 0 unless set.
    pub offset: Option<f64>,
    /// Digits behind the point that mean something.
    pub precision: Option<u8>,
    /// Which values are cause for alarm.
    pub alarm: Option<Limits>,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// No such device.
    #[error("there is no device {0}")]
    UnknownDevice(String),
    /// The device is not online.
    #[error("the device is {}", .0.as_str())]
    NotOnline(State),
    /// The device refused, or failed at it.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Its time was over before its turn came; nothing was done.
    #[error("expired before it could be carried out")]
    Expired,
    /// Too many commands wait for this bus; nothing was done.
    #[error("too many commands are waiting")]
    Busy,
    /// The bus did not answer: whether it was carried out is not known.
    #[error("no answer from the bus")]
    NoAnswer,
}

/// Reads all devices.
#[derive(Debug)]
pub struct Sampler {
    outlet: Outlet,
    buses: HashMap<BusKey, BusThread>,
    streams: HashMap<String, StreamTask>,
    commander: Commander,
    // Every thread and task holds a clone; the channel closes when the last one has ended.
    running: mpsc::Sender<()>,
    ended: mpsc::Receiver<()>,
}

/// Sends commands to devices. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Commander {
    // Written by `apply` alone, read by every command: a lock held for one look-up.
    routes: Arc<RwLock<HashMap<String, Route>>>,
}

/// The clock, the way out, and the count of what found no room there.
#[derive(Debug, Clone)]
struct Outlet {
    clock: Clock,
    events: mpsc::Sender<Event>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug, Clone)]
enum Route {
    Bus(std::sync::mpsc::SyncSender<Command>),
    ReadOnly,
}

impl Sampler {
    /// Nothing is read yet. When `events` is full, readings are dropped and counted ([`Sampler::dropped`]).
    pub fn new(clock: Clock, events: mpsc::Sender<Event>) -> Self {
        // Carries nothing, is only watched for its end.
        let (running, ended) = mpsc::channel(1);
        Self {
            outlet: Outlet { clock, events, dropped: Arc::default() },
            buses: HashMap::new(),
            streams: HashMap::new(),
            commander: Commander::default(),
            running,
            ended,
        }
    }

    /// Reads these devices and no others from now on. What did not change goes on undisturbed. Needs a tokio runtime
    /// around it.
    pub fn apply(&mut self, devices: Vec<DeviceConfig>) {
        let mut by_bus: HashMap<BusKey, Vec<DeviceConfig>> = HashMap::new();
        let mut streams = HashMap::new();
        for device in devices {
            match device.setup.bus() {
                BusKey::Serial(_) => drop(streams.insert(device.name.clone(), device)),
                key => by_bus.entry(key).or_default().push(device),
            }
        }
        let mut routes: HashMap<String, Route> = HashMap::new();
        self.streams.retain(|name, task| streams.get(name).is_some_and(|device| task.is_for(device)));
        for (name, device) in streams {
            routes.insert(name.clone(), Route::ReadOnly);
            let outlet = self.outlet.clone();
            let running = self.running.clone();
            self.streams.entry(name).or_insert_with(|| StreamTask::start(device, outlet, running));
        }
        for key in by_bus.keys() {
            if !self.buses.contains_key(key) {
                let thread = BusThread::start(key.clone(), self.outlet.clone(), self.running.clone());
                self.buses.insert(key.clone(), thread);
            }
        }
        for (key, thread) in &self.buses {
            let devices = by_bus.remove(key).unwrap_or_default();
            routes.extend(devices.iter().map(|device| (device.name.clone(), Route::Bus(thread.commands()))));
            thread.want(devices);
        }
        *self.commander.routes.write().unwrap_or_else(PoisonError::into_inner) = routes;
    }

    /// A handle that sends commands.
    pub fn commander(&self) -> Commander {
        self.commander.clone()
    }

    /// Counts the readings that were dropped because the events' receiver was too slow.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        self.outlet.dropped.clone()
    }

    /// Stops reading; outputs go to their safe state. Returns when all threads have ended, after [`STOP_WITHIN`] at
    /// the latest.
    pub async fn stop(self) {
        let Self { buses, streams, running, mut ended, .. } = self;
        for thread in buses.values() {
            thread.stop();
        }
        drop(streams);
        drop(running);
        if tokio::time::timeout(STOP_WITHIN, ended.recv()).await.is_err() {
            log::warn!("a bus does not answer and is left behind");
        }
    }
}

impl Commander {
    /// Tells a channel a value and answers with what was read back. It is carried out at most once, and never after
    /// `deadline`.
    pub async fn command(
        &self,
        device: &str,
        channel: &str,
        value: Value,
        deadline: Instant,
    ) -> Result<Value, CommandError> {
        let route = self.routes.read().unwrap_or_else(PoisonError::into_inner).get(device).cloned();
        let commands = match route {
            None => return Err(CommandError::UnknownDevice(device.to_owned())),
            Some(Route::ReadOnly) => return Err(DeviceError::ReadOnly(channel.to_owned()).into()),
            Some(Route::Bus(commands)) => commands,
        };
        let (reply, answer) = oneshot::channel();
        let command = Command {
            device: device.to_owned(),
            channel: channel.to_owned(),
            value,
            deadline,
            reply: Some(reply),
        };
        commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => CommandError::Busy,
            TrySendError::Disconnected(_) => CommandError::NoAnswer,
        })?;
        // The bus says itself when the deadline has passed; only a bus that hangs says nothing.
        let patience = tokio::time::Instant::from_std(deadline) + BUS_PATIENCE;
        match tokio::time::timeout_at(patience, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(CommandError::NoAnswer),
        }
    }
}

// Not derived: the derive tries to move the trait object.
impl PartialEq for DeviceConfig {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.title == other.title
            && self.interval == other.interval
            && self.absent_after == other.absent_after
            && *self.setup == *other.setup
            && self.channels == other.channels
    }
}

impl Outlet {
    /// Sends readings, or drops and counts them.
    fn send_readings(&self, readings: Vec<Reading>) -> bool {
        let count = readings.len() as u64;
        if count == 0 || self.events.try_send(Event::Readings(readings)).is_ok() {
            return true;
        }
        self.dropped.fetch_add(count, Ordering::Relaxed);
        false
    }
}

/// After this a bus that hangs is left behind.
pub const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Longer than any chip keeps its bus.
const BUS_PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
