//! The thread of one bus: all devices on the wire, each at its time, one after the other.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use drivers::schedule::{Due, Lifecycle, State};
use drivers::{BusKey, Device, DeviceError, Driver, Samples, Value, Wires, monotonic_ns};
use tokio::sync::{mpsc, oneshot};

use super::{CommandError, DeviceConfig, Feed, Outlet};

/// A bus thread, seen from outside. Dropping it stops the thread.
#[derive(Debug)]
pub(super) struct BusThread {
    commands: SyncSender<Command>,
    // What is wanted of the thread: written here, taken there; the latest wins, so there is no queue to fill.
    wanted: Arc<Mutex<Wanted>>,
}

/// What an actuator is to do. Without a way to reply it only wakes the thread.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) device: String,
    pub(super) channel: String,
    pub(super) value: Value,
    pub(super) deadline: Instant,
    pub(super) reply: Option<oneshot::Sender<Result<Value, CommandError>>>,
}

#[derive(Debug, Default)]
struct Wanted {
    devices: Option<Vec<DeviceConfig>>,
    stop: bool,
}

struct Bus {
    key: BusKey,
    outlet: Outlet,
    wires: Wires,
    slots: Vec<Slot>,
    samples: Samples,
}

struct Slot {
    feed: Feed,
    life: Lifecycle,
    driver: Option<Driver>,
    last_error: Option<DeviceError>,
    lapse_error: Option<DeviceError>,
}

impl BusThread {
    /// Starts the thread, with no devices yet. It lets go of `running` when it ends.
    pub(super) fn start(key: BusKey, outlet: Outlet, running: mpsc::Sender<()>) -> Self {
        // A command that finds it full is refused: an actuator that far behind must not act on stale orders.
        let (commands, receiver) = sync_channel(COMMANDS_WAITING);
        let wanted = Arc::new(Mutex::new(Wanted::default()));
        let theirs = wanted.clone();
        let name = key.to_string();
        let run = move || {
            let bus = Bus { key, outlet, wires: Wires::new(), slots: Vec::new(), samples: Samples::new() };
            bus.run(&receiver, &theirs);
            drop(running);
        };
        if let Err(error) = thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(run) {
            log::error!("cannot start a thread for a bus: {error}");
        }
        Self { commands, wanted }
    }

    /// The way for commands.
    pub(super) fn commands(&self) -> SyncSender<Command> {
        self.commands.clone()
    }

    /// Has these devices read from now on, and no others.
    pub(super) fn want(&self, devices: Vec<DeviceConfig>) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).devices = Some(devices);
        self.wake();
    }

    /// Ends the thread; its outputs go to their safe state.
    pub(super) fn stop(&self) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.wake();
    }

    fn wake(&self) {
        let nothing = Command {
            device: String::new(),
            channel: String::new(),
            value: Value::Boolean(false),
            deadline: Instant::now(),
            reply: None,
        };
        // When there is no room the thread has commands to read and wakes by itself.
        let _ = self.commands.try_send(nothing);
    }
}

impl Drop for BusThread {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Bus {
    fn run(mut self, commands: &Receiver<Command>, wanted: &Mutex<Wanted>) {
        loop {
            let wish = std::mem::take(&mut *wanted.lock().unwrap_or_else(PoisonError::into_inner));
            if wish.stop {
                return;
            }
            if let Some(devices) = wish.devices {
                self.reconcile(devices);
            }
            for n in 0..self.slots.len() {
                self.slots[n].feed.flush();
                self.slots[n].lapse_if_due(&mut self.samples);
                self.slots[n].run_if_due(&self.wires, &self.key, &mut self.samples);
            }
            let now_ns = monotonic_ns();
            let due_ns = self.slots.iter().map(Slot::due_ns).min();
            let patience =
                due_ns.map_or(IDLE, |due_ns| Duration::from_nanos(due_ns.saturating_sub(now_ns)).min(IDLE));
            let command = if self.wait_for_events(patience) {
                match commands.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => continue,
                    Err(TryRecvError::Disconnected) => return,
                }
            } else {
                match commands.recv_timeout(patience) {
                    Ok(command) => command,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            };
            self.carry_out(command);
        }
    }

    /// Keeps what did not change; the rest is let go before anything new is opened.
    fn reconcile(&mut self, devices: Vec<DeviceConfig>) {
        self.slots.retain(|slot| devices.contains(&slot.feed.config));
        for device in devices {
            if !self.slots.iter().any(|slot| slot.feed.config == device) {
                self.slots.push(Slot::new(device, self.outlet.clone()));
            }
        }
    }

    /// Lets the devices that speak up by themselves do so, for at most `patience`. Answers whether there are any.
    fn wait_for_events(&mut self, patience: Duration) -> bool {
        let mut patience = patience.min(EVENTS_AT_MOST);
        let mut has_any = false;
        for slot in &mut self.slots {
            if slot.life.state() != State::Online {
                continue;
            }
            let Some(Driver::Events(device)) = &mut slot.driver else { continue };
            has_any = true;
            let result = device.wait(std::mem::take(&mut patience), &mut self.samples);
            slot.finish(result, &mut self.samples, &self.wires, &self.key, false);
        }
        has_any
    }

    fn carry_out(&mut self, command: Command) {
        let Command { device, channel, value, deadline, reply: Some(reply) } = command else { return };
        let slot = self.slots.iter_mut().find(|slot| slot.feed.config.name == device);
        let result = match slot {
            None => Err(CommandError::UnknownDevice(device)),
            Some(_) if Instant::now() >= deadline => Err(CommandError::Expired),
            Some(slot) => slot.command(&channel, &value, &mut self.samples),
        };
        // Whoever asked may have gone; the reading tells the rest of the world.
        let _ = reply.send(result);
    }
}

impl Slot {
    fn new(config: DeviceConfig, outlet: Outlet) -> Self {
        let life = Lifecycle::new(&config.name, config.interval, monotonic_ns());
        Self { feed: Feed::new(config, outlet), life, driver: None, last_error: None, lapse_error: None }
    }

    /// When it wants to run: by its schedule, or because something runs out.
    fn due_ns(&self) -> u64 {
        self.life.due_ns().min(self.deadline_ns().unwrap_or(u64::MAX))
    }

    fn deadline_ns(&self) -> Option<u64> {
        match &self.driver {
            Some(Driver::Polled(device)) => device.deadline_ns(),
            Some(Driver::Events(device)) => device.deadline_ns(),
            Some(Driver::Stream(_)) | None => None,
        }
    }

    /// Lets an output whose lease has run out go to its safe state. Here, on the thread of its bus, it depends on
    /// nobody else in the program.
    fn lapse_if_due(&mut self, samples: &mut Samples) {
        let now_ns = monotonic_ns();
        if self.deadline_ns().is_none_or(|deadline_ns| deadline_ns > now_ns) {
            return;
        }
        let Ok(device) = self.device() else { return };
        let lapse = device.lapse(now_ns);
        samples.clear();
        match lapse {
            Ok(None) => {}
            Ok(Some(lapse)) => {
                if device.sample(samples).is_ok() {
                    self.feed.deliver(samples);
                }
                self.lapse_error = None;
                self.feed.say_lapse(lapse);
            }
            Err(error) => {
                if self.lapse_error.as_ref() != Some(&error) {
                    log::error!(device:% = self.feed.config.name; "its lease has run out and it is not in its safe state: {error}");
                }
                self.lapse_error = Some(error);
            }
        }
    }

    fn run_if_due(&mut self, wires: &Wires, key: &BusKey, samples: &mut Samples) {
        let Some(due) = self.life.due(monotonic_ns()) else { return };
        samples.clear();
        let result = match due {
            Due::Probe => self.probe(wires, samples),
            Due::Sample => self.sample(samples),
        };
        self.finish(result, samples, wires, key, true);
    }

    fn probe(&mut self, wires: &Wires, samples: &mut Samples) -> Result<(), DeviceError> {
        if self.driver.is_none() {
            self.driver = Some(self.feed.config.setup.build(wires)?);
        }
        let device = self.device()?;
        device.init()?;
        device.sample(samples)
    }

    /// Reads it; what is transient gets two more tries at once.
    fn sample(&mut self, samples: &mut Samples) -> Result<(), DeviceError> {
        let device = self.device()?;
        let mut result = device.sample(samples);
        for wait in RETRIES {
            match &result {
                Err(error) if error.is_transient() => thread::sleep(wait),
                _ => break,
            }
            samples.clear();
            result = device.sample(samples);
        }
        result
    }

    /// Takes note of how it went and says what came of it.
    fn finish(
        &mut self,
        result: Result<(), DeviceError>,
        samples: &mut Samples,
        wires: &Wires,
        key: &BusKey,
        is_tick: bool,
    ) {
        match result {
            Ok(()) => {
                if is_tick && self.life.succeeded(monotonic_ns()) {
                    self.last_error = None;
                    self.announce();
                    self.feed.say_state(State::Online, None);
                }
                self.feed.deliver(samples);
            }
            Err(error) => {
                samples.clear();
                let has_changed = self.life.failed(&error, monotonic_ns());
                if has_changed || self.last_error.as_ref() != Some(&error) {
                    self.feed.say_state(self.life.state(), Some(error.to_string()));
                }
                self.feed.fail(&error);
                if !error.is_transient() {
                    // The wire itself may have gone: open it anew next time.
                    self.driver = None;
                    wires.forget(&key.to_string());
                }
                self.last_error = Some(error);
            }
        }
    }

    fn command(
        &mut self,
        channel: &str,
        value: &Value,
        samples: &mut Samples,
    ) -> Result<Value, CommandError> {
        if self.life.state() != State::Online {
            return Err(CommandError::NotOnline(self.life.state()));
        }
        let device = self.device()?;
        let read_back = device.command(channel, value)?;
        // The world hears of it at once, not at the next tick.
        samples.clear();
        if device.sample(samples).is_ok() {
            self.feed.deliver(samples);
        }
        Ok(read_back)
    }

    fn announce(&mut self) {
        let specs = match &self.driver {
            Some(Driver::Polled(device)) => device.channels(),
            Some(Driver::Events(device)) => device.channels(),
            Some(Driver::Stream(_)) | None => &[],
        };
        self.feed.set_channels(specs);
    }

    fn device(&mut self) -> Result<&mut dyn Device, DeviceError> {
        match &mut self.driver {
            Some(Driver::Polled(device)) => Ok(device.as_mut()),
            Some(Driver::Events(device)) => Ok(device.as_mut()),
            Some(Driver::Stream(_)) => {
                Err(DeviceError::Config("a serial device outside of a serial port".to_owned()))
            }
            None => Err(DeviceError::Nack),
        }
    }
}

/// Commands that wait while the bus is busy.
const COMMANDS_WAITING: usize = 64;

/// A chip driver needs little; the default of 8 MiB would count in a small machine's limits.
const STACK_BYTES: usize = 512 * 1024;

/// Immediate retries of what is transient.
const RETRIES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(10)];

/// With nothing to do the thread looks up this often, to say what it could not say before.
const IDLE: Duration = Duration::from_secs(1);

/// While a line is watched, commands and the wish to stop wait this long at most.
const EVENTS_AT_MOST: Duration = Duration::from_millis(100);
