//! What every chip on an I2C bus has to stand, whatever it is: run for each registered device on the simulated bus.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::registry;
use super::tests::parse;
use crate::check::{Calibration, Checker};
use crate::error::DeviceError;
use crate::quality::Quality;
use crate::samples::{Sample, Samples};
use crate::setup::{BusKey, Device, Driver, Setup, Wires};
use crate::sim::{Chip, SimFaults};

const S: u64 = 1_000_000_000;

/// One device on a bus of its own, in a time of its own.
struct Rig {
    name: &'static str,
    setup: Arc<dyn Setup>,
    wires: Wires,
    now_ns: Rc<Cell<u64>>,
    device: Box<dyn Device>,
    address: u8,
}

impl Rig {
    /// Every registered I2C device, freshly built.
    fn all() -> Vec<Self> {
        let rigs = registry().iter().filter(|device_type| {
            matches!(parse(device_type.name, device_type.example).bus(), BusKey::I2c(_))
        });
        rigs.map(|device_type| {
            Self::new(device_type.name, &device_type.example.replace("\"i2c-1\"", "\"sim\""))
        })
        .collect()
    }

    fn new(name: &'static str, toml: &str) -> Self {
        let setup = parse(name, toml);
        assert!(setup.is_simulated() && setup.bus() == BusKey::Sim && setup.missing().is_none(), "{name}");
        let occupies = setup.occupies().expect("an address");
        let address = occupies.rsplit_once("0x").and_then(|(_, hex)| u8::from_str_radix(hex, 16).ok());
        let wires = Wires::new();
        let now_ns = Rc::new(Cell::new(1000 * S));
        let clock = now_ns.clone();
        wires.sim("sim").borrow_mut().set_clock(move || clock.get());
        let Ok(Driver::Polled(device)) = setup.build(&wires) else {
            panic!("{name}: a polled device expected")
        };
        Self { name, setup, wires, now_ns, device, address: address.expect("an address") }
    }

    fn pass(&self, ns: u64) {
        self.now_ns.set(self.now_ns.get() + ns);
    }

    fn plug(&self, chip: impl Chip + 'static) {
        self.wires.sim("sim").borrow_mut().plug(self.address, Box::new(chip), SimFaults::default());
    }

    fn faults(&self, faults: SimFaults) {
        self.wires.sim("sim").borrow_mut().set_faults(self.address, faults);
    }

    fn sample(&mut self) -> Result<Vec<Sample>, DeviceError> {
        let mut samples = Samples::new();
        self.device.sample(&mut samples)?;
        Ok(samples.drain().collect())
    }

    /// Reads it until now and checks that everything is as it should be.
    fn must_work(&mut self) {
        self.device.init().unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let samples = self.sample().unwrap_or_else(|error| panic!("{}: {error}", self.name));
        self.must_be_sane(&samples);
    }

    fn must_be_sane(&self, samples: &[Sample]) {
        let channels = self.device.channels();
        assert_eq!(samples.len(), channels.len(), "{}", self.name);
        for sample in samples {
            let spec = &channels[sample.channel];
            let value = sample.value.as_ref().and_then(crate::Value::as_f64);
            let (low, high) = spec.range.expect("a range");
            assert!(
                value.is_some_and(|value| low < value && value < high),
                "{} {} {value:?}",
                self.name,
                spec.name
            );
            assert_eq!(sample.quality, Quality::Good);
        }
    }
}

/// Acknowledges everything and always answers the same.
struct Mute(u8);

impl Chip for Mute {
    fn write(&mut self, _bytes: &[u8], _now_ns: u64) -> bool {
        true
    }

    fn read(&mut self, buffer: &mut [u8], _now_ns: u64) -> bool {
        buffer.fill(self.0);
        true
    }

    fn power_on(&mut self, _now_ns: u64) {}
}

/// Answers with noise, or not at all. The identity is left as the chip's own, so that the driver believes it.
struct Noise {
    chip: Box<dyn Chip>,
    dice: u64,
    keeps: usize,
}

impl Chip for Noise {
    fn write(&mut self, bytes: &[u8], now_ns: u64) -> bool {
        self.chip.write(bytes, now_ns)
    }

    fn read(&mut self, buffer: &mut [u8], now_ns: u64) -> bool {
        let is_acknowledged = self.chip.read(buffer, now_ns);
        if self.keeps > 0 {
            self.keeps -= 1;
            return is_acknowledged;
        }
        for byte in buffer {
            self.dice ^= self.dice << 13;
            self.dice ^= self.dice >> 7;
            self.dice ^= self.dice << 17;
            *byte = self.dice as u8;
        }
        !self.dice.is_multiple_of(16)
    }

    fn power_on(&mut self, now_ns: u64) {
        self.chip.power_on(now_ns);
    }
}

#[test]
fn there_is_something_to_test() {
    assert!(!Rig::all().is_empty());
}

#[test]
fn a_good_chip_measures_every_channel_for_hours() {
    for mut rig in Rig::all() {
        assert_eq!(rig.device.channels(), rig.setup.channels());
        for spec in rig.device.channels() {
            assert!(spec.range.is_some() && !spec.unit.is_empty(), "{} {}", rig.name, spec.name);
        }
        rig.must_work();
        let mut checkers: Vec<_> = rig.device.channels().iter().map(checker).collect();
        for _ in 0..2000 {
            rig.pass(5 * S);
            let samples = rig.sample().unwrap();
            rig.must_be_sane(&samples);
            for sample in samples {
                let (_, quality) = judge(&mut checkers, &sample, rig.now_ns.get());
                assert_eq!(quality, Quality::Good, "{}", rig.name);
            }
        }
    }
}

#[test]
fn another_chip_at_the_address_is_not_believed() {
    for mut rig in Rig::all() {
        for byte in [0x00, 0xFF] {
            rig.plug(Mute(byte));
            let result = rig.device.init();
            assert!(
                matches!(result, Err(DeviceError::WrongChip { .. })),
                "{} {byte:#x} {result:?}",
                rig.name
            );
        }
    }
}

#[test]
fn a_chip_that_is_not_there_is_a_nack() {
    for mut rig in Rig::all() {
        rig.wires.sim("sim").borrow_mut().set_plugged(rig.address, false);
        assert_eq!(rig.device.init(), Err(DeviceError::Nack), "{}", rig.name);
        assert_eq!(rig.sample(), Err(DeviceError::Nack), "{}", rig.name);
    }
}

#[test]
fn a_chip_that_was_unplugged_works_again() {
    for mut rig in Rig::all() {
        rig.must_work();
        rig.wires.sim("sim").borrow_mut().set_plugged(rig.address, false);
        rig.pass(S);
        assert_eq!(rig.sample(), Err(DeviceError::Nack), "{}", rig.name);
        rig.wires.sim("sim").borrow_mut().set_plugged(rig.address, true);
        rig.pass(S);
        rig.must_work();
    }
}

#[test]
fn a_chip_that_lost_its_power_unseen_shows_no_nonsense() {
    for mut rig in Rig::all() {
        rig.must_work();
        rig.wires.sim("sim").borrow_mut().power_cycle(rig.address);
        rig.pass(S);
        match rig.sample() {
            Ok(samples) => rig.must_be_sane(&samples),
            Err(error) => assert!(error.is_transient(), "{} {error}", rig.name),
        }
        rig.must_work();
    }
}

#[test]
fn a_flipped_bit_never_passes_for_a_good_jump() {
    for mut rig in Rig::all() {
        rig.must_work();
        let mut checkers: Vec<_> = rig.device.channels().iter().map(checker).collect();
        let mut truth = vec![0.0; checkers.len()];
        for sample in rig.sample().unwrap() {
            truth[sample.channel] = judge(&mut checkers, &sample, rig.now_ns.get()).0.unwrap();
        }
        for seed in 0..200 {
            // One in three reads: between two wrong values there is a right one.
            rig.faults(SimFaults { seed, flip_every: 3, ..SimFaults::default() });
            rig.pass(S);
            let Ok(samples) = rig.sample() else { continue };
            for sample in samples {
                let (value, quality) = judge(&mut checkers, &sample, rig.now_ns.get());
                let spec = &rig.device.channels()[sample.channel];
                if let (Some(value), Quality::Good) = (value, quality) {
                    let far = (value - truth[sample.channel]).abs();
                    assert!(far <= 20.0 * spec.max_rate.unwrap(), "{} {} {far}", rig.name, spec.name);
                }
            }
        }
    }
}

#[test]
fn lost_acknowledges_and_a_dead_bus_pass() {
    for mut rig in Rig::all() {
        rig.must_work();
        rig.faults(SimFaults { nack_every: 7, ..SimFaults::default() });
        for _ in 0..50 {
            rig.pass(S);
            if let Err(error) = rig.sample() {
                assert_eq!(error, DeviceError::Nack, "{}", rig.name);
            }
        }
        rig.faults(SimFaults::default());
        rig.wires.sim("sim").borrow_mut().set_dead(true);
        assert_eq!(rig.sample(), Err(DeviceError::Timeout), "{}", rig.name);
        rig.wires.sim("sim").borrow_mut().set_dead(false);
        rig.must_work();
    }
}

#[test]
fn no_bytes_make_a_driver_fail_or_show_the_impossible() {
    for mut rig in Rig::all() {
        for seed in 1..2000_u64 {
            // From the very first byte, after the identity, and in the midst of measuring.
            let keeps = seed as usize % 12;
            let chip = chip_of(&rig);
            rig.plug(Noise { chip, dice: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15), keeps });
            rig.pass(S);
            if rig.device.init().is_err() {
                continue;
            }
            let Ok(samples) = rig.sample() else { continue };
            let mut checkers: Vec<_> = rig.device.channels().iter().map(checker).collect();
            for sample in samples {
                let (value, _) = judge(&mut checkers, &sample, rig.now_ns.get());
                let (low, high) = rig.device.channels()[sample.channel].range.unwrap();
                assert!(value.is_none_or(|value| low <= value && value <= high), "{} {value:?}", rig.name);
            }
        }
        rig.plug_good();
        rig.must_work();
    }
}

impl Rig {
    fn plug_good(&self) {
        self.wires.sim("sim").borrow_mut().plug(self.address, chip_of(self), SimFaults::default());
    }
}

/// The chip model that the device itself brings along.
fn chip_of(rig: &Rig) -> Box<dyn Chip> {
    let wires = Wires::new();
    rig.setup.build(&wires).expect("it was built before");
    let chip = wires.sim("sim").borrow_mut().unplug(rig.address);
    chip.expect("building plugs the model in")
}

fn checker(spec: &crate::ChannelSpec) -> Checker {
    Checker::new(spec, None, Calibration::default())
}

fn judge(checkers: &mut [Checker], sample: &Sample, now_ns: u64) -> (Option<f64>, Quality) {
    match sample.value.as_ref().and_then(crate::Value::as_f64) {
        Some(raw) => checkers[sample.channel].check(raw, sample.quality, now_ns),
        None => (None, sample.quality),
    }
}
