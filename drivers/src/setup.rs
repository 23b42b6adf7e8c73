//! The shape that every device has: a [`DeviceType`] in the registry, its settings as a [`Setup`], and the
//! [`Driver`] that they build.

use std::any::Any;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeTable;

use crate::bus::i2c::I2cHandle;
use crate::bus::serial::SerialSettings;
use crate::channel::ChannelSpec;
use crate::error::DeviceError;
use crate::gnss::TimeFix;
use crate::samples::Samples;
use crate::settings::SettingsError;
use crate::sim::SimBus;
use crate::value::Value;

/// A kind of device that a configuration can name.
#[derive(Debug)]
pub struct DeviceType {
    /// The word for `type = "..."`.
    pub name: &'static str,
    /// What it is, in one line for a person.
    pub summary: &'static str,
    /// The device's own keys as a person would write them, each with a comment. Is itself valid.
    pub example: &'static str,
    /// Reads the device's own keys (those that all devices have are taken out before).
    pub parse: Parse,
}

/// Reads a table of a device's own keys.
pub type Parse = fn(Spanned<DeTable<'_>>) -> Result<Arc<dyn Setup>, SettingsError>;

/// A device's settings: everything that is known of it without touching it.
pub trait Setup: fmt::Debug + Send + Sync + Any + EqualSetup {
    /// The wire it hangs on: devices with equal keys share a thread.
    fn bus(&self) -> BusKey;

    /// What only one device can have, in words for a person (`i2c-1 address 0x76`).
    fn occupies(&self) -> Option<String> {
        None
    }

    /// Whether the values come from the simulated bus.
    fn is_simulated(&self) -> bool {
        false
    }

    /// The channels, as far as they are known before the device was opened; [`Device::channels`] has the last word.
    fn channels(&self) -> Vec<ChannelSpec>;

    /// How often it is read when the configuration does not say.
    fn default_interval(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// A path or line that it needs and that does not exist now.
    fn missing(&self) -> Option<String> {
        None
    }

    /// Makes the driver, on the thread that will own it. Opens wires, does not talk to the device yet.
    fn build(&self, wires: &Wires) -> Result<Driver, DeviceError>;
}

/// Equality across the setups of different device types. Every `PartialEq` type has it.
pub trait EqualSetup {
    /// Same type, same settings.
    fn equals(&self, other: &dyn Any) -> bool;
}

impl<T: PartialEq + Any> EqualSetup for T {
    fn equals(&self, other: &dyn Any) -> bool {
        other.downcast_ref::<T>() == Some(self)
    }
}

impl PartialEq for dyn Setup {
    fn eq(&self, other: &Self) -> bool {
        self.equals(other as &dyn Any)
    }
}

/// The wire that a device hangs on. What shares a wire shares a thread.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BusKey {
    /// `i2c-1`: an adapter of the kernel.
    I2c(String),
    /// `gpio/GPIO17`: one line.
    Gpio(String),
    /// `serial//dev/ttyUSB0`: one port. Its driver is a [`Driver::Stream`].
    Serial(String),
    /// `host`: sysfs and procfs.
    Host,
    /// `sim`: the simulated I2C bus.
    Sim,
}

impl fmt::Display for BusKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::I2c(name) => f.write_str(name),
            Self::Gpio(line) => write!(f, "gpio/{line}"),
            Self::Serial(port) => write!(f, "serial/{port}"),
            Self::Host => f.write_str("host"),
            Self::Sim => f.write_str("sim"),
        }
    }
}

/// A device, opened. Lives on one thread, because third-party chip drivers are not `Send`.
pub enum Driver {
    /// Is asked at each tick of its interval.
    Polled(Box<dyn Device>),
    /// Speaks up by itself, and is also asked at each tick. Has its bus to itself.
    Events(Box<dyn EventDevice>),
    /// Makes samples of what a serial port says.
    Stream(Box<dyn Decoder>),
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Polled(_) => "Driver::Polled",
            Self::Events(_) => "Driver::Events",
            Self::Stream(_) => "Driver::Stream",
        })
    }
}

/// A device that is asked.
pub trait Device {
    /// What it measures. Final after [`Device::init`]; may only grow after that.
    fn channels(&self) -> &[ChannelSpec];

    /// Makes sure that the right device is there and makes it ready. Is called before the first sample and after
    /// every failure, so that a device which was replugged works again.
    fn init(&mut self) -> Result<(), DeviceError>;

    /// Reads every channel. On an error nothing of `out` counts.
    fn sample(&mut self, out: &mut Samples) -> Result<(), DeviceError>;

    /// Tells a channel a value and answers with what was read back.
    fn command(&mut self, channel: &str, value: &Value) -> Result<Value, DeviceError> {
        let _ = value;
        Err(DeviceError::ReadOnly(channel.to_owned()))
    }

    /// When [`Device::lapse`] is to be called whatever the schedule and the device's state say, on `CLOCK_MONOTONIC`;
    /// `None` while nothing runs out.
    fn deadline_ns(&self) -> Option<u64> {
        None
    }

    /// The deadline has passed: an output whose lease has run out goes to its safe state here. `None` when there was
    /// nothing to do.
    fn lapse(&mut self, now_ns: u64) -> Result<Option<Lapse>, DeviceError> {
        let _ = now_ns;
        Ok(None)
    }
}

/// An output went to its safe state because nobody commanded it again in time.
#[derive(Debug, Clone, PartialEq)]
pub struct Lapse {
    /// The channel's name within its device.
    pub channel: Cow<'static, str>,
    /// The safe state, as it was read back.
    pub value: Value,
    /// How long a command holds.
    pub lease: Duration,
}

/// A device that speaks up by itself.
pub trait EventDevice: Device {
    /// Waits for the next event, at most `timeout`, and adds what came of it. Returning early without a sample is
    /// allowed.
    fn wait(&mut self, timeout: Duration, out: &mut Samples) -> Result<(), DeviceError>;
}

/// Makes samples of the bytes of a serial port. Pure: bytes and time in, samples out.
pub trait Decoder: Send {
    /// How its port is opened.
    fn port(&self) -> &SerialSettings;

    /// What it can decode so far; grows when the other side says something new.
    fn channels(&self) -> &[ChannelSpec];

    /// Takes what came from the port at `now_ns` of `CLOCK_MONOTONIC`, in pieces of any size. Keeps a bounded rest.
    fn feed(&mut self, bytes: &[u8], now_ns: u64, out: &mut Samples);

    /// Forgets a half-received line: the port was opened anew.
    fn reset(&mut self);

    /// Lines or sentences thrown away since the start because they made no sense.
    fn rejected(&self) -> u64;

    /// What the other side said of the time since this was last asked; the newest, if several.
    fn take_time(&mut self) -> Option<TimeFix> {
        None
    }
}

/// The wires of one bus thread: each is opened once and shared by the devices on it.
#[derive(Default)]
pub struct Wires {
    i2c: RefCell<HashMap<String, I2cHandle>>,
    sim: RefCell<HashMap<String, Rc<RefCell<SimBus>>>>,
}

impl fmt::Debug for Wires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.i2c.borrow().keys()).entries(self.sim.borrow().keys()).finish()
    }
}

impl Wires {
    /// No wire is open yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The handle for `key`, opened by `open` at the first call.
    pub fn i2c(
        &self,
        key: &str,
        open: impl FnOnce() -> Result<I2cHandle, DeviceError>,
    ) -> Result<I2cHandle, DeviceError> {
        let mut open_buses = self.i2c.borrow_mut();
        if let Some(handle) = open_buses.get(key) {
            return Ok(handle.clone());
        }
        let handle = open()?;
        open_buses.insert(key.to_owned(), handle.clone());
        Ok(handle)
    }

    /// The simulated bus of that name. Tests reach in here to unplug chips and to set the time.
    pub fn sim(&self, name: &str) -> Rc<RefCell<SimBus>> {
        self.sim.borrow_mut().entry(name.to_owned()).or_default().clone()
    }

    /// Forgets the handle for `key`: the next device to ask opens the wire anew. For a wire that vanished.
    pub fn forget(&self, key: &str) {
        self.i2c.borrow_mut().remove(key);
    }
}
