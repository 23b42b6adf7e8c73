//! `gpio-output`: a relay, lamp or valve on a GPIO line. It is in its safe state when the program starts, when it
//! stops, and when its device is taken out of the configuration.

use std::sync::Arc;

use serde::Deserialize;

use crate::bus::Backend;
use crate::bus::gpio::{Bias, ChipName, LineAt, LineName, OutputLine};
use crate::channel::{ChannelSpec, Kind};
use crate::error::DeviceError;
use crate::samples::Samples;
use crate::settings::{SettingsError, parse_settings};
use crate::setup::{BusKey, Device, DeviceType, Driver, Setup, Wires};
use crate::value::Value;

pub(super) static TYPE: DeviceType = DeviceType {
    name: "gpio-output",
    summary: "relay, lamp or valve on a GPIO line",
    example: r#"line = "GPIO27"      # the line's name, see `gpioinfo`; chip = "sim" for a simulated relay
active_low = true    # the relay board switches on when its input is low
safe_state = false   # what it is set to at start and at stop
"#,
    parse: |table| {
        let whole = table.span();
        let s: Settings = parse_settings(table)?;
        let at = LineAt::new(s.chip, s.line, s.active_low, Bias::AsIs, s.backend)
            .map_err(|message| SettingsError::at(whole, message))?;
        Ok(Arc::new(OutputSetup { at, safe_state: s.safe_state }))
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
    safe_state: bool,
    #[serde(default)]
    backend: Backend,
}

#[derive(Debug, PartialEq)]
struct OutputSetup {
    at: LineAt,
    safe_state: bool,
}

struct Output {
    at: LineAt,
    safe_state: bool,
    line: Option<Box<dyn OutputLine>>,
    channels: Vec<ChannelSpec>,
}

impl Setup for OutputSetup {
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
        vec![ChannelSpec::boolean("state").kind(Kind::Actuator).class("switch")]
    }

    fn missing(&self) -> Option<String> {
        self.at.missing()
    }

    fn build(&self, _wires: &Wires) -> Result<Driver, DeviceError> {
        Ok(Driver::Polled(Box::new(Output {
            at: self.at.clone(),
            safe_state: self.safe_state,
            line: None,
            channels: self.channels(),
        })))
    }
}

impl Device for Output {
    fn channels(&self) -> &[ChannelSpec] {
        &self.channels
    }

    fn init(&mut self) -> Result<(), DeviceError> {
        // The line is let go first: it cannot be requested twice.
        self.line = None;
        self.line = Some(self.at.open_output(self.safe_state)?);
        Ok(())
    }

    fn sample(&mut self, out: &mut Samples) -> Result<(), DeviceError> {
        let line = self.line.as_mut().ok_or(DeviceError::Nack)?;
        out.put(0, line.is_active()?);
        Ok(())
    }

    fn command(&mut self, channel: &str, value: &Value) -> Result<Value, DeviceError> {
        if channel != "state" {
            return Err(DeviceError::ReadOnly(channel.to_owned()));
        }
        let is_active = match value {
            Value::Boolean(is_active) => *is_active,
            Value::Integer(number @ (0 | 1)) => *number == 1,
            Value::Number(0.0) => false,
            Value::Number(1.0) => true,
            _ => return Err(DeviceError::Range(format!("`{value}` is neither on nor off"))),
        };
        let line = self.line.as_mut().ok_or(DeviceError::Nack)?;
        line.set_active(is_active)?;
        Ok(Value::Boolean(line.is_active()?))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(line) = &mut self.line
            && let Err(error) = line.set_active(self.safe_state)
        {
            log::error!("{}: could not be left in its safe state: {error}", self.at.occupies());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;
    use crate::device::tests::parse;

    /// What outlives the device is what the relay sees.
    struct Wire(Rc<Cell<bool>>);

    impl OutputLine for Wire {
        fn set_active(&mut self, is_active: bool) -> Result<(), DeviceError> {
            self.0.set(is_active);
            Ok(())
        }

        fn is_active(&mut self) -> Result<bool, DeviceError> {
            Ok(self.0.get())
        }
    }

    #[test]
    fn a_relay_is_commanded_and_read_back() {
        let setup = parse("gpio-output", "line = \"lamp\"\nchip = \"sim\"\nsafe_state = true");
        let Ok(Driver::Polled(mut relay)) = setup.build(&Wires::new()) else {
            panic!("a polled device expected")
        };
        let mut samples = Samples::new();
        relay.init().unwrap();
        relay.sample(&mut samples).unwrap();
        assert_eq!(samples.as_slice()[0].value, Some(Value::Boolean(true)));
        assert_eq!(relay.command("state", &Value::Boolean(false)), Ok(Value::Boolean(false)));
        assert_eq!(relay.command("state", &Value::Integer(1)), Ok(Value::Boolean(true)));
        assert!(matches!(relay.command("state", &Value::Number(0.5)), Err(DeviceError::Range(_))));
        assert!(matches!(relay.command("power", &Value::Boolean(true)), Err(DeviceError::ReadOnly(_))));
    }

    #[test]
    fn a_relay_is_left_in_its_safe_state() {
        let setup = parse("gpio-output", "line = \"lamp\"\nchip = \"sim\"");
        let wire = Rc::new(Cell::new(false));
        let at =
            LineAt::new(None, LineName::Name("lamp".to_owned()), false, Bias::AsIs, Backend::Kernel).unwrap();
        let mut relay = Output {
            at,
            safe_state: false,
            line: Some(Box::new(Wire(wire.clone()))),
            channels: setup.channels(),
        };
        relay.command("state", &Value::Boolean(true)).unwrap();
        assert!(wire.get());
        drop(relay);
        assert!(!wire.get());
    }
}
