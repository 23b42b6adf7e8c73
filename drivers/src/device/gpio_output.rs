//! `gpio-output`: a relay, lamp or valve on a GPIO line. It is in its safe state when the program starts, when it
//! stops, when its device is taken out of the configuration, and, with a lease, when nobody has commanded it again in
//! time.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use crate::bus::Backend;
use crate::bus::gpio::{Bias, ChipName, LineAt, LineName, OutputLine};
use crate::channel::{ChannelSpec, Kind};
use crate::error::DeviceError;
use crate::lease::Lease;
use crate::monotonic_ns;
use crate::samples::Samples;
use crate::settings::{Period, SettingsError, parse_settings};
use crate::setup::{BusKey, Device, DeviceType, Driver, Lapse, Setup, Wires};
use crate::value::Value;

pub(super) static TYPE: DeviceType = DeviceType {
    name: "gpio-output",
    summary: "relay, lamp or valve on a GPIO line",
    example: r#"line = "GPIO27"      # the line's name, see `gpioinfo`; chip = "sim" for a simulated relay
active_low = true    # the relay board switches on when its input is low
safe_state = false   # what it is set to at start and at stop
# lease = "30s"      # without another command for so long it goes back to its safe state by itself
"#,
    parse: |table| {
        let whole = table.span();
        let s: Settings = parse_settings(table)?;
        let at = LineAt::new(s.chip, s.line, s.active_low, Bias::AsIs, s.backend)
            .map_err(|message| SettingsError::at(whole, message))?;
        if let Some(lease) = &s.lease
            && !(SHORTEST_LEASE..=LONGEST_LEASE).contains(&lease.get_ref().0)
        {
            return Err(SettingsError::at(lease.span(), "lease out of range: 100ms to 7d"));
        }
        let lease = s.lease.map(|lease| lease.into_inner().0);
        Ok(Arc::new(OutputSetup { at, safe_state: s.safe_state, lease }))
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
    lease: Option<Spanned<Period>>,
    #[serde(default)]
    backend: Backend,
}

#[derive(Debug, PartialEq)]
struct OutputSetup {
    at: LineAt,
    safe_state: bool,
    lease: Option<Duration>,
}

struct Output {
    at: LineAt,
    safe_state: bool,
    lease: Option<Lease>,
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
            lease: self.lease.map(Lease::new),
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
        if let Some(lease) = &mut self.lease {
            lease.end();
        }
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
        // Before the line is touched: a failure half-way must not leave it on for ever.
        if let Some(lease) = self.lease.as_mut().filter(|_| is_active != self.safe_state) {
            lease.grant(monotonic_ns());
        }
        line.set_active(is_active)?;
        if let Some(lease) = self.lease.as_mut().filter(|_| is_active == self.safe_state) {
            lease.end();
        }
        Ok(Value::Boolean(line.is_active()?))
    }

    fn deadline_ns(&self) -> Option<u64> {
        self.lease.as_ref()?.deadline_ns()
    }

    fn lapse(&mut self, now_ns: u64) -> Result<Option<Lapse>, DeviceError> {
        let Some(lease) = self.lease.as_mut().filter(|lease| lease.has_lapsed(now_ns)) else {
            return Ok(None);
        };
        let line = self.line.as_mut().ok_or(DeviceError::Nack);
        let is_active = line.and_then(|line| {
            line.set_active(self.safe_state)?;
            line.is_active()
        });
        match is_active {
            Ok(is_active) if is_active == self.safe_state => {
                lease.end();
                let value = Value::Boolean(is_active);
                Ok(Some(Lapse { channel: "state".into(), value, lease: lease.period() }))
            }
            Ok(_) => {
                lease.try_again(now_ns);
                Err(DeviceError::Protocol("does not go to its safe state".to_owned()))
            }
            Err(error) => {
                lease.try_again(now_ns);
                Err(error)
            }
        }
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

const SHORTEST_LEASE: Duration = Duration::from_millis(100);
const LONGEST_LEASE: Duration = Duration::from_secs(7 * 24 * 3600);

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;
    use crate::device::tests::parse;

    /// What outlives the device is what the relay sees; a line that is stuck refuses.
    struct Wire {
        is_active: Rc<Cell<bool>>,
        is_stuck: Rc<Cell<bool>>,
    }

    impl OutputLine for Wire {
        fn set_active(&mut self, is_active: bool) -> Result<(), DeviceError> {
            if self.is_stuck.get() {
                return Err(DeviceError::Timeout);
            }
            self.is_active.set(is_active);
            Ok(())
        }

        fn is_active(&mut self) -> Result<bool, DeviceError> {
            Ok(self.is_active.get())
        }
    }

    /// A relay, what it drives, and whether it is stuck.
    fn relay(safe_state: bool, lease: Option<Duration>) -> (Output, Rc<Cell<bool>>, Rc<Cell<bool>>) {
        let at =
            LineAt::new(None, LineName::Name("lamp".to_owned()), false, Bias::AsIs, Backend::Kernel).unwrap();
        let (is_active, is_stuck) = (Rc::new(Cell::new(safe_state)), Rc::new(Cell::new(false)));
        let wire = Wire { is_active: is_active.clone(), is_stuck: is_stuck.clone() };
        let channels = parse("gpio-output", "line = \"lamp\"\nchip = \"sim\"").channels();
        let lease = lease.map(Lease::new);
        (Output { at, safe_state, lease, line: Some(Box::new(wire)), channels }, is_active, is_stuck)
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
        assert_eq!(relay.deadline_ns(), None, "no lease, no deadline");
    }

    #[test]
    fn a_relay_is_left_in_its_safe_state() {
        let (mut relay, is_active, _) = relay(false, None);
        relay.command("state", &Value::Boolean(true)).unwrap();
        assert!(is_active.get());
        drop(relay);
        assert!(!is_active.get());
    }

    #[test]
    fn without_another_command_a_leased_relay_goes_back_by_itself() {
        let lease = Duration::from_secs(30);
        for safe_state in [false, true] {
            let (mut relay, is_active, is_stuck) = relay(safe_state, Some(lease));
            assert_eq!(relay.deadline_ns(), None, "nothing runs out in the safe state");
            relay.command("state", &Value::Boolean(!safe_state)).unwrap();
            let first_ns = relay.deadline_ns().unwrap();
            assert_eq!(relay.lapse(first_ns - 1), Ok(None));
            assert_eq!(is_active.get(), !safe_state);
            // Told again, it holds for longer.
            relay.command("state", &Value::Boolean(!safe_state)).unwrap();
            let second_ns = relay.deadline_ns().unwrap();
            assert!(second_ns > first_ns);
            // A line that fails is tried again, and soon.
            is_stuck.set(true);
            assert_eq!(relay.lapse(second_ns), Err(DeviceError::Timeout));
            let third_ns = relay.deadline_ns().unwrap();
            assert!((second_ns + 1..second_ns + 1_000_000_000).contains(&third_ns));
            assert_eq!(is_active.get(), !safe_state);
            is_stuck.set(false);
            let value = Value::Boolean(safe_state);
            assert_eq!(relay.lapse(third_ns), Ok(Some(Lapse { channel: "state".into(), value, lease })));
            assert_eq!((is_active.get(), relay.deadline_ns()), (safe_state, None));
            // Told its safe state, it stays there for good.
            relay.command("state", &Value::Boolean(!safe_state)).unwrap();
            relay.command("state", &Value::Boolean(safe_state)).unwrap();
            assert_eq!(relay.deadline_ns(), None);
        }
    }

    #[test]
    fn a_command_that_fails_half_way_runs_out_all_the_same() {
        let (mut relay, _, is_stuck) = relay(false, Some(Duration::from_secs(1)));
        is_stuck.set(true);
        assert!(relay.command("state", &Value::Boolean(true)).is_err());
        assert!(relay.deadline_ns().is_some());
    }

    #[test]
    fn a_lease_has_a_length() {
        for bad in ["0s", "99ms", "8d"] {
            let settings = format!("line = \"lamp\"\nlease = \"{bad}\"");
            let error = crate::device::tests::try_parse("gpio-output", &settings).unwrap_err();
            assert!(error.message.contains("lease out of range"), "{error}");
        }
        assert!(
            *parse("gpio-output", "line = \"a\"") != *parse("gpio-output", "line = \"a\"\nlease = \"1s\"")
        );
    }
}
