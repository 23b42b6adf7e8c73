//! `host`: the machine itself, from procfs and sysfs: processor, memory, disks, network, uptime, every temperature and
//! voltage that a kernel driver shows, and what a Raspberry Pi's firmware says of its power supply. What does not exist
//! makes no channel.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use crate::bus::sysfs::Sysfs;
use crate::channel::ChannelSpec;
use crate::error::DeviceError;
use crate::monotonic_ns;
use crate::quality::BadReason;
use crate::samples::Samples;
use crate::settings::parse_settings;
use crate::setup::{BusKey, Device, DeviceType, Driver, Setup, Wires};

use disks::Disks;
use firmware::Firmware;
use kernel_sensors::KernelSensors;
use network::Network;
use system::System;

mod disks;
mod firmware;
mod kernel_sensors;
mod network;
mod system;

pub(super) static TYPE: DeviceType = DeviceType {
    name: "host",
    summary: "the machine itself: processor, memory, disks, network, temperatures, power supply",
    example: r#"paths = ["/"]   # whose file systems are watched; "/" and the state directory unless said
"#,
    parse: |table| {
        let settings: Settings = parse_settings(table)?;
        Ok(Arc::new(HostSetup { root: settings.root, paths: settings.paths.unwrap_or_else(default_paths) }))
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    paths: Option<Vec<PathBuf>>,
    /// Where `proc` and `sys` are: moved when the gateway runs in a container that sees the host's elsewhere.
    #[serde(default = "default_root")]
    root: PathBuf,
}

#[derive(Debug, PartialEq)]
struct HostSetup {
    root: PathBuf,
    paths: Vec<PathBuf>,
}

struct Host {
    setup: HostSetup,
    parts: Vec<(Box<dyn Part>, usize)>,
    channels: Vec<ChannelSpec>,
}

/// One corner of the machine.
trait Part {
    /// What it shows; fixed once it was found.
    fn channels(&self) -> Vec<ChannelSpec>;

    /// Reads them all at `now_ns`; the places of `out` count from the part's own first channel.
    fn sample(&mut self, now_ns: u64, out: &mut PartSamples<'_>);
}

/// Samples whose channels count from a part's first.
struct PartSamples<'a> {
    first: usize,
    samples: &'a mut Samples,
}

/// Turns a counter into a rate.
#[derive(Debug, Default)]
struct Rate {
    last: Option<(u64, u64)>,
}

impl Setup for HostSetup {
    fn bus(&self) -> BusKey {
        BusKey::Host
    }

    fn occupies(&self) -> Option<String> {
        Some(format!("the host at {}", self.root.display()))
    }

    fn channels(&self) -> Vec<ChannelSpec> {
        self.find_parts().iter().flat_map(|part| part.channels()).collect()
    }

    fn missing(&self) -> Option<String> {
        let missing = self.paths.iter().find(|path| !path.exists());
        missing.map(|path| path.display().to_string())
    }

    fn build(&self, _wires: &Wires) -> Result<Driver, DeviceError> {
        let setup = Self { root: self.root.clone(), paths: self.paths.clone() };
        Ok(Driver::Polled(Box::new(Host { setup, parts: Vec::new(), channels: Vec::new() })))
    }
}

impl HostSetup {
    fn find_parts(&self) -> Vec<Box<dyn Part>> {
        let sysfs = Sysfs::new(&self.root);
        vec![
            Box::new(System::find(&sysfs)),
            Box::new(Disks::find(&sysfs, &self.paths)),
            Box::new(Network::find(&sysfs)),
            Box::new(Firmware::find(&sysfs)),
            Box::new(KernelSensors::find(&sysfs)),
        ]
    }
}

impl Device for Host {
    fn channels(&self) -> &[ChannelSpec] {
        &self.channels
    }

    fn init(&mut self) -> Result<(), DeviceError> {
        self.channels.clear();
        self.parts.clear();
        for part in self.setup.find_parts() {
            let first = self.channels.len();
            self.channels.extend(part.channels());
            self.parts.push((part, first));
        }
        Ok(())
    }

    fn sample(&mut self, out: &mut Samples) -> Result<(), DeviceError> {
        let now_ns = monotonic_ns();
        for (part, first) in &mut self.parts {
            part.sample(now_ns, &mut PartSamples { first: *first, samples: out });
        }
        Ok(())
    }
}

impl PartSamples<'_> {
    fn put(&mut self, channel: usize, value: impl Into<crate::Value>) {
        self.samples.put(self.first + channel, value);
    }

    fn put_or_bad(&mut self, channel: usize, value: Option<impl Into<crate::Value>>) {
        match value {
            Some(value) => self.put(channel, value),
            None => self.samples.bad(self.first + channel, BadReason::NoAnswer),
        }
    }
}

impl Rate {
    /// Per second since the last call; none at the first, and when the counter began anew.
    fn per_second(&mut self, count: u64, now_ns: u64) -> Option<f64> {
        let (last, last_ns) = self.last.replace((count, now_ns))?;
        let seconds = now_ns.saturating_sub(last_ns) as f64 / 1e9;
        (seconds > 0.0).then_some(())?;
        Some(count.checked_sub(last)? as f64 / seconds)
    }
}

fn default_root() -> PathBuf {
    "/".into()
}

/// The root, and where systemd tells us to keep our state.
fn default_paths() -> Vec<PathBuf> {
    let state = std::env::var_os("STATE_DIRECTORY").map(PathBuf::from);
    std::iter::once(default_root()).chain(state.filter(|path| path.exists())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::tests::parse;

    #[test]
    fn this_machine_has_a_processor_memory_and_a_disk() {
        let setup = parse("host", "");
        let Ok(Driver::Polled(mut host)) = setup.build(&Wires::new()) else {
            panic!("a polled device expected")
        };
        host.init().unwrap();
        let mut samples = Samples::new();
        host.sample(&mut samples).unwrap();
        samples.clear();
        std::thread::sleep(std::time::Duration::from_millis(50));
        host.sample(&mut samples).unwrap();
        let channels = host.channels();
        assert_eq!(channels, setup.channels());
        let mut seen = std::collections::HashSet::new();
        for sample in samples.as_slice() {
            let spec = &channels[sample.channel];
            assert!(seen.insert(&*spec.name), "{} twice", spec.name);
            println!(
                "{:32} {:>16} {:5} {:?}",
                spec.name,
                format!("{:?}", sample.value),
                spec.unit,
                spec.range
            );
            let Some(value) = sample.value.as_ref().and_then(crate::Value::as_f64) else { continue };
            assert!(
                spec.range.is_none_or(|(low, high)| low <= value && value <= high),
                "{} {value}",
                spec.name
            );
        }
        for name in
            ["cpu_used", "load_1m", "memory_used", "memory_available", "uptime", "disk_used", "disk_free"]
        {
            assert!(seen.contains(name), "{name}");
        }
    }

    #[test]
    fn a_machine_with_nothing_at_all_is_still_a_device() {
        let empty = tempfile::tempdir().unwrap();
        let setup = parse("host", &format!("root = {:?}\npaths = []", empty.path()));
        assert!(setup.channels().is_empty());
    }

    #[test]
    fn a_counter_that_begins_anew_makes_no_rate() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(100, 1_000_000_000), None);
        assert_eq!(rate.per_second(150, 3_000_000_000), Some(25.0));
        assert_eq!(rate.per_second(10, 4_000_000_000), None);
        assert_eq!(rate.per_second(20, 4_000_000_000), None);
    }
}
