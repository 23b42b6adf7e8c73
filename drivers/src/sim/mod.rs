//! A simulated I2C bus with register-accurate chips and faults, and simulated GPIO lines ([`gpio`]).
//!
//! It is read through the very code that reads the hardware, serves as the demo's hardware, and is where the tests
//! break things. What it shows depends on a seed and on the time alone. Like i2c-bcm2835 it takes one read and only as
//! the last operation, no neighbours of one direction, and no clock stretching.

pub mod bme280;
pub mod gpio;
pub mod sht3x;

mod weather;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use embedded_hal::i2c::Operation;
use serde::Deserialize;

use crate::bus::i2c::{I2cFault, Transport};
use crate::settings::Period;

/// One simulated bus.
pub struct SimBus {
    slots: BTreeMap<u8, Slot>,
    clock: Box<dyn Fn() -> u64>,
    // A delay on this bus takes no time: it moves the chips' clock ahead of the world's, which catches up.
    ahead_ns: u64,
    is_dead: bool,
    transfers: u64,
}

/// A chip on the simulated bus, as seen from the wire.
pub trait Chip {
    /// Takes the bytes behind the address; `false` is a NACK.
    fn write(&mut self, bytes: &[u8], now_ns: u64) -> bool;

    /// Fills `buffer`; `false` is a NACK of the address.
    fn read(&mut self, buffer: &mut [u8], now_ns: u64) -> bool;

    /// Power came on: everything is as the datasheet says after a reset.
    fn power_on(&mut self, now_ns: u64);
}

/// What goes wrong with a simulated chip, as the key `sim = { ... }` of its device.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimFaults {
    /// Which weather the chip measures, and which bits flip.
    pub seed: u64,
    /// Every so many transfers the address is not acknowledged; 0 for never.
    pub nack_every: u32,
    /// Every so many reads one bit is wrong; 0 for never.
    pub flip_every: u32,
    /// Every so long the chip is unplugged.
    pub unplug_every: Option<Period>,
    /// For how long it is then away; 5 s unless said.
    pub unplug_for: Option<Period>,
}

struct Slot {
    chip: Box<dyn Chip>,
    faults: SimFaults,
    transfers: u64,
    reads: u64,
    is_plugged: bool,
    was_present: bool,
}

impl SimBus {
    /// An empty bus on the machine's clock.
    pub fn new() -> Self {
        Self::with_clock(crate::monotonic_ns)
    }

    /// An empty bus whose chips live by `clock`, in nanoseconds.
    pub fn with_clock(clock: impl Fn() -> u64 + 'static) -> Self {
        Self { slots: BTreeMap::new(), clock: Box::new(clock), ahead_ns: 0, is_dead: false, transfers: 0 }
    }

    /// Makes the chips live by another clock.
    pub fn set_clock(&mut self, clock: impl Fn() -> u64 + 'static) {
        self.clock = Box::new(clock);
        self.ahead_ns = 0;
    }

    /// Puts a chip at `address`, in place of what was there, and powers it on.
    pub fn plug(&mut self, address: u8, mut chip: Box<dyn Chip>, faults: SimFaults) {
        chip.power_on(self.now_ns());
        let slot = Slot { chip, faults, transfers: 0, reads: 0, is_plugged: true, was_present: true };
        self.slots.insert(address, slot);
    }

    /// Takes the chip at `address` out for good.
    pub fn unplug(&mut self, address: u8) -> Option<Box<dyn Chip>> {
        self.slots.remove(&address).map(|slot| slot.chip)
    }

    /// The chip at `address` loses its power for a moment.
    pub fn power_cycle(&mut self, address: u8) {
        let now_ns = self.now_ns();
        if let Some(slot) = self.slots.get_mut(&address) {
            slot.chip.power_on(now_ns);
        }
    }

    /// Pulls the chip at `address`, or puts it back in.
    pub fn set_plugged(&mut self, address: u8, is_plugged: bool) {
        if let Some(slot) = self.slots.get_mut(&address) {
            slot.is_plugged = is_plugged;
        }
    }

    /// Changes what goes wrong at `address`.
    pub fn set_faults(&mut self, address: u8, faults: SimFaults) {
        if let Some(slot) = self.slots.get_mut(&address) {
            slot.faults = faults;
        }
    }

    /// A dead bus times out whoever is asked.
    pub fn set_dead(&mut self, is_dead: bool) {
        self.is_dead = is_dead;
    }

    /// Transfers since the start, failed ones included.
    pub fn transfers(&self) -> u64 {
        self.transfers
    }

    fn now_ns(&self) -> u64 {
        (self.clock)().max(self.ahead_ns)
    }
}

impl Default for SimBus {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SimBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimBus({:02x?})", self.slots.keys())
    }
}

impl Transport for SimBus {
    fn transfer(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), I2cFault> {
        self.transfers += 1;
        if self.is_dead {
            return Err(I2cFault::Timeout);
        }
        let takes_it = matches!(
            operations,
            [Operation::Write(_) | Operation::Read(_)] | [Operation::Write(_), Operation::Read(_)]
        );
        if !takes_it {
            return Err(I2cFault::Unsupported);
        }
        let now_ns = self.now_ns();
        let slot = self.slots.get_mut(&address).ok_or(I2cFault::Nack)?;
        slot.transfer(operations, now_ns)
    }

    fn delay_ns(&mut self, ns: u32) {
        self.ahead_ns = self.now_ns() + u64::from(ns);
    }
}

impl Slot {
    fn transfer(&mut self, operations: &mut [Operation<'_>], now_ns: u64) -> Result<(), I2cFault> {
        let is_present = self.is_plugged && !self.faults.is_away(now_ns);
        if is_present && !self.was_present {
            self.chip.power_on(now_ns);
        }
        self.was_present = is_present;
        self.transfers += 1;
        let nack_every = u64::from(self.faults.nack_every);
        if !is_present || (nack_every != 0 && self.transfers.is_multiple_of(nack_every)) {
            return Err(I2cFault::Nack);
        }
        for operation in operations {
            let is_acknowledged = match operation {
                Operation::Write(bytes) => self.chip.write(bytes, now_ns),
                Operation::Read(buffer) => {
                    let is_acknowledged = self.chip.read(buffer, now_ns);
                    self.reads += 1;
                    let flip_every = u64::from(self.faults.flip_every);
                    if flip_every != 0 && self.reads.is_multiple_of(flip_every) && !buffer.is_empty() {
                        let dice = weather::mix(self.faults.seed, self.reads);
                        buffer[dice as usize % buffer.len()] ^= 1 << (dice >> 32 & 7);
                    }
                    is_acknowledged
                }
            };
            if !is_acknowledged {
                return Err(I2cFault::Nack);
            }
        }
        Ok(())
    }
}

impl SimFaults {
    fn is_away(&self, now_ns: u64) -> bool {
        let Some(every) = self.unplug_every else { return false };
        let away = self.unplug_for.map_or(Duration::from_secs(5), |period| period.0).as_nanos();
        let every = every.0.as_nanos().max(1);
        u128::from(now_ns) % (every + away) >= every
    }
}
