//! `gpio-input`: a contact, button or detector on a GPIO line. Every change is reported when it happens, with the
//! kernel's time stamp.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::edges::EdgeWatch;
use crate::bus::Backend;
use crate::bus::gpio::{Bias, ChipName, LineAt, LineName, SimSignal};
use crate::channel::ChannelSpec;
use crate::error::DeviceError;
use crate::samples::Samples;
use crate::settings::{Period, SettingsError, parse_settings};
use crate::setup::{BusKey, Device, DeviceType, Driver, EventDevice, Setup, Wires};

pub(super) static TYPE: DeviceType = DeviceType {
    name: "gpio-input",
    summary: "contact, button or detector on a GPIO line",
    example: r#"line = "GPIO17"      # the line's name, see `gpioinfo`; chip = "sim" for a simulated door
bias = "pull-up"     # or "pull-down", "disabled", "as-is"
active_low = true    # closed to ground is on
debounce = "20ms"    # a level counts once it has stood for this long
"#,
    parse: |table| {
        let whole = table.span();
        let s: Settings = parse_settings(table)?;
        let at = LineAt::new(s.chip, s.line, s.active_low, s.bias, s.backend)
            .map_err(|message| SettingsError::at(whole, message))?;
        Ok(Arc::new(InputSetup { at, debounce: s.debounce.map_or(DEBOUNCE, |period| period.0) }))
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
    #[serde(default)]
    backend: Backend,
}

#[derive(Debug, PartialEq)]
struct InputSetup {
    at: LineAt,
    debounce: Duration,
}

struct Input {
    at: LineAt,
    debounce: Duration,
    watch: Option<EdgeWatch>,
    channels: Vec<ChannelSpec>,
}

impl Setup for InputSetup {
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
        vec![ChannelSpec::boolean("state")]
    }

    /// Changes come by themselves; this often the state is repeated.
    fn default_interval(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn missing(&self) -> Option<String> {
        self.at.missing()
    }

    fn build(&self, _wires: &Wires) -> Result<Driver, DeviceError> {
        Ok(Driver::Events(Box::new(Input {
            at: self.at.clone(),
            debounce: self.debounce,
            watch: None,
            channels: self.channels(),
        })))
    }
}

impl Device for Input {
    fn channels(&self) -> &[ChannelSpec] {
        &self.channels
    }

    fn init(&mut self) -> Result<(), DeviceError> {
        // The line is let go first: it cannot be requested twice.
        self.watch = None;
        self.watch = Some(EdgeWatch::new(self.at.open_input(SimSignal::Contact)?, self.debounce)?);
        Ok(())
    }

    fn sample(&mut self, out: &mut Samples) -> Result<(), DeviceError> {
        let watch = self.watch.as_ref().ok_or(DeviceError::Nack)?;
        out.put(0, watch.level());
        Ok(())
    }
}

impl EventDevice for Input {
    fn wait(&mut self, timeout: Duration, out: &mut Samples) -> Result<(), DeviceError> {
        let watch = self.watch.as_mut().ok_or(DeviceError::Nack)?;
        watch.wait(timeout, |level, at_ns| out.put_at(0, level, at_ns))
    }
}

/// Longer than a switch bounces, shorter than a person notices.
const DEBOUNCE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::tests::parse;

    #[test]
    fn a_simulated_door_reports_each_change_once_with_its_time() {
        let setup = parse("gpio-input", "line = \"door\"\nchip = \"sim\"\ndebounce = \"5ms\"");
        assert!(setup.is_simulated());
        let mut line = crate::sim::gpio::SimInput::new("sim:door", SimSignal::Contact, 0);
        let mut filter = crate::bus::gpio::Debounce::new(Duration::from_millis(5), false);
        let mut changes = Vec::new();
        while let Some(edge) = line.edge_until(300_000_000_000) {
            changes.extend(filter.edge(edge.is_active, edge.at_ns));
        }
        assert!(changes.len() > 10);
        assert!(changes.windows(2).all(|pair| pair[0].0 != pair[1].0 && pair[0].1 < pair[1].1));
    }

    #[test]
    fn a_line_that_is_not_there_is_named() {
        let setup = parse("gpio-input", "line = \"NO_SUCH_LINE\"");
        assert_eq!(setup.missing().as_deref(), Some("gpio line NO_SUCH_LINE"));
        let Ok(Driver::Events(mut input)) = setup.build(&Wires::new()) else {
            panic!("an event device expected")
        };
        assert_eq!(input.init(), Err(DeviceError::NotPresent("gpio line NO_SUCH_LINE".to_owned())));
    }
}
