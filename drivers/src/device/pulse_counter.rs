//! `pulse-counter`: a meter that closes a contact once per so much of something (S0 electricity, water, gas, rain,
//! wind). Every pulse is counted on the kernel's time stamp of its edge; what the kernel had to drop is counted too.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::edges::EdgeWatch;
use crate::bus::Backend;
use crate::bus::gpio::{Bias, ChipName, LineAt, LineName, SimSignal};
use crate::channel::ChannelSpec;
use crate::error::DeviceError;
use crate::monotonic_ns;
use crate::quality::UncertainReason;
use crate::samples::Samples;
use crate::settings::{Period, SettingsError, parse_settings};
use crate::setup::{BusKey, Device, DeviceType, Driver, EventDevice, Setup, Wires};

pub(super) static TYPE: DeviceType = DeviceType {
    name: "pulse-counter",
    summary: "meter that pulses a GPIO line: electricity, water, gas, rain, wind",
    example: r#"line = "GPIO22"        # the line's name, see `gpioinfo`; chip = "sim" for a simulated meter
bias = "pull-up"
active_low = true
debounce = "2ms"       # shorter pulses are noise
pulses_per_unit = 1000 # what is printed on the meter: 1000 imp/kWh
unit = "kWh"           # of the channel `total`
rate_unit = "kW"       # of the channel `rate`; without it, pulses per second
rate_scale = 3.6       # rate = pulses per second * rate_scale
"#,
    parse: |table| {
        let whole = table.span();
        let s: Settings = parse_settings(table)?;
        let at = LineAt::new(s.chip, s.line, s.active_low, s.bias, s.backend)
            .map_err(|message| SettingsError::at(whole, message))?;
        let per_unit = s.pulses_per_unit.as_ref();
        if let Some(bad) = per_unit.filter(|n| !(n.get_ref().is_finite() && *n.get_ref() > 0.0)) {
            return Err(SettingsError::at(bad.span(), "`pulses_per_unit` must be above 0"));
        }
        Ok(Arc::new(CounterSetup {
            at,
            debounce: s.debounce.map_or(DEBOUNCE, |period| period.0),
            total: per_unit.map(|n| (*n.get_ref(), s.unit.unwrap_or_default())),
            rate: (s.rate_scale.unwrap_or(1.0), s.rate_unit.unwrap_or_else(|| "1/s".to_owned())),
        }))
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    line: LineName,
    chip: Option<ChipName>,
    #[serde(default)]
    active_low: bool,
    #[serde(default)]
    bias: Bias,
    debounce: Option<Period>,
    pulses_per_unit: Option<Spanned<f64>>,
    unit: Option<String>,
    rate_unit: Option<String>,
    rate_scale: Option<f64>,
    #[serde(default)]
    backend: Backend,
}

#[derive(Debug, PartialEq)]
struct CounterSetup {
    at: LineAt,
    debounce: Duration,
    total: Option<(f64, String)>,
    rate: (f64, String),
}

struct Counter {
    at: LineAt,
    debounce: Duration,
    pulses_per_unit: Option<f64>,
    rate_scale: f64,
    watch: Option<EdgeWatch>,
    count: PulseCount,
    lost_before: u64,
    lost_reported: u64,
    channels: Vec<ChannelSpec>,
}

/// Pulses and how fast they come. Pure.
#[derive(Debug, Default)]
struct PulseCount {
    pulses: u64,
    last_ns: Option<u64>,
    interval_ns: Option<u64>,
}

impl Setup for CounterSetup {
    fn bus(&self) -> BusKey {
        self.at.bus()
    }

    fn occupies(&self) -> Option<String> {
        Some(self.at.occupies())
    }

    fn is_simulated(&self) -> bool {
        self.at.is_simulated()
    }

    fn channels(&self) -> Vec<ChannelSpec> {
        let mut channels = vec![
            ChannelSpec::counter("count", "").titled("Pulses"),
            ChannelSpec::number("rate", self.rate.1.clone()).digits(3),
            ChannelSpec::counter("lost_edges", "").titled("Lost edges"),
        ];
        if let Some((_, unit)) = &self.total {
            let total = ChannelSpec::counter("total", unit.clone());
            channels.push(ChannelSpec { value_type: crate::ValueType::Number, precision: 3, ..total });
        }
        channels
    }

    fn missing(&self) -> Option<String> {
        self.at.missing()
    }

    fn build(&self, _wires: &Wires) -> Result<Driver, DeviceError> {
        Ok(Driver::Events(Box::new(Counter {
            at: self.at.clone(),
            debounce: self.debounce,
            pulses_per_unit: self.total.as_ref().map(|(per_unit, _)| *per_unit),
            rate_scale: self.rate.0,
            watch: None,
            count: PulseCount::default(),
            lost_before: 0,
            lost_reported: 0,
            channels: self.channels(),
        })))
    }
}

impl Device for Counter {
    fn channels(&self) -> &[ChannelSpec] {
        &self.channels
    }

    fn init(&mut self) -> Result<(), DeviceError> {
        // What was counted stays counted when the line is opened anew.
        self.lost_before += self.watch.take().map_or(0, |watch| watch.lost());
        self.watch = Some(EdgeWatch::new(self.at.open_input(SimSignal::Pulses)?, self.debounce)?);
        Ok(())
    }

    fn sample(&mut self, out: &mut Samples) -> Result<(), DeviceError> {
        let watch = self.watch.as_ref().ok_or(DeviceError::Nack)?;
        let lost = self.lost_before + watch.lost();
        let has_lost = std::mem::replace(&mut self.lost_reported, lost) < lost;
        let mut put = |channel, value: crate::Value| {
            if has_lost {
                out.uncertain(channel, value, UncertainReason::LostEdges);
            } else {
                out.put(channel, value);
            }
        };
        put(COUNT, (self.count.pulses as i64).into());
        put(RATE, (self.count.per_second(monotonic_ns()) * self.rate_scale).into());
        put(LOST, (lost as i64).into());
        if let Some(per_unit) = self.pulses_per_unit {
            put(TOTAL, (self.count.pulses as f64 / per_unit).into());
        }
        Ok(())
    }
}

impl EventDevice for Counter {
    /// Pulses are counted as they come and reported at each tick.
    fn wait(&mut self, timeout: Duration, _out: &mut Samples) -> Result<(), DeviceError> {
        let watch = self.watch.as_mut().ok_or(DeviceError::Nack)?;
        let count = &mut self.count;
        watch.wait(timeout, |level, at_ns| {
            if level {
                count.pulse(at_ns);
            }
        })
    }
}

impl PulseCount {
    fn pulse(&mut self, at_ns: u64) {
        self.pulses += 1;
        self.interval_ns = self.last_ns.map(|last_ns| at_ns.saturating_sub(last_ns).max(1));
        self.last_ns = Some(at_ns);
    }

    /// By the last interval; when the next pulse is late, by how long it is late: the rate falls towards 0.
    fn per_second(&self, now_ns: u64) -> f64 {
        let (Some(last_ns), Some(interval_ns)) = (self.last_ns, self.interval_ns) else { return 0.0 };
        1e9 / interval_ns.max(now_ns.saturating_sub(last_ns)) as f64
    }
}

const COUNT: usize = 0;
const RATE: usize = 1;
const LOST: usize = 2;
const TOTAL: usize = 3;

/// S0 pulses are at least 30 ms long (EN 62053-31), a reed contact bounces for about one.
const DEBOUNCE: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::tests::parse;

    #[test]
    fn the_rate_follows_the_last_interval_and_falls_when_pulses_stop() {
        let mut count = PulseCount::default();
        assert!(count.per_second(5).abs() < f64::EPSILON);
        count.pulse(1_000_000_000);
        count.pulse(1_500_000_000);
        assert!((count.per_second(1_600_000_000) - 2.0).abs() < 1e-9);
        assert!((count.per_second(11_500_000_000) - 0.1).abs() < 1e-9);
        assert_eq!(count.pulses, 2);
    }

    #[test]
    fn a_simulated_meter_counts_each_pulse_once_whatever_bounces() {
        let mut line = crate::sim::gpio::SimInput::new("sim:meter", SimSignal::Pulses, 0);
        let mut filter = crate::bus::gpio::Debounce::new(DEBOUNCE, false);
        let mut count = PulseCount::default();
        let mut edges = 0;
        while let Some(edge) = line.edge_until(600_000_000_000) {
            edges += 1;
            if let Some((true, at_ns)) = filter.edge(edge.is_active, edge.at_ns) {
                count.pulse(at_ns);
            }
        }
        assert!((500..1600).contains(&count.pulses), "{}", count.pulses);
        assert!(edges > 3 * count.pulses, "{edges}");
    }

    #[test]
    fn the_scale_is_what_is_printed_on_the_meter() {
        let setup =
            parse("pulse-counter", "line = \"m\"\nchip = \"sim\"\npulses_per_unit = 1000\nunit = \"kWh\"");
        let channels = setup.channels();
        assert_eq!((&*channels[TOTAL].name, &*channels[TOTAL].unit), ("total", "kWh"));
        let bad = "line = \"m\"\npulses_per_unit = 0";
        let error = crate::device::tests::try_parse("pulse-counter", bad).unwrap_err();
        assert_eq!(&bad[error.span.unwrap()], "0");
    }
}
