//! The devices that a configuration can name: one file each, a line for the module and a line for the registry.

mod bme280;
mod gpio_input;
mod gpio_output;
mod host;
mod nmea;
mod pulse_counter;
mod serial_line;
mod sht3x;

#[rustfmt::skip] // A line each, so that a device is added in lines of its own.
static REGISTRY: &[&DeviceType] = &[
    &host::TYPE,
    &bme280::TYPE,
    &sht3x::TYPE,
    &gpio_input::TYPE,
    &gpio_output::TYPE,
    &pulse_counter::TYPE,
    &nmea::TYPE,
    &serial_line::TYPE,
];

// What several of them share.
mod edges;
mod i2c_chip;
mod lines;

#[cfg(test)]
mod conformance;

use crate::setup::DeviceType;

/// Every device type, in the order in which a person is told of them.
pub fn registry() -> &'static [&'static DeviceType] {
    REGISTRY
}

/// The device type of that name.
pub fn find(name: &str) -> Option<&'static DeviceType> {
    REGISTRY.iter().copied().find(|device_type| device_type.name == name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use toml::de::DeTable;

    use super::*;
    use crate::samples::Samples;
    use crate::settings::SettingsError;
    use crate::setup::{Decoder, Driver, Setup, Wires};
    use crate::value::Value;

    /// The device's own keys, as the gateway hands them over.
    pub(crate) fn try_parse(name: &str, toml: &str) -> Result<Arc<dyn Setup>, SettingsError> {
        let device_type = find(name).expect("a registered device type");
        (device_type.parse)(DeTable::parse(toml).expect("valid TOML"))
    }

    /// The decoder of a serial device.
    pub(crate) fn decoder(name: &str, toml: &str) -> Box<dyn Decoder> {
        match parse(name, toml).build(&Wires::new()) {
            Ok(Driver::Stream(decoder)) => decoder,
            other => panic!("a decoder expected: {other:?}"),
        }
    }

    /// Plays `<<` lines, in which `\r` and `\n` are written so, and compares what comes of each with the `=` lines
    /// behind it: channel, value with up to six digits, unit; or `bad` and the reason.
    pub(crate) fn transcript(name: &str, toml: &str, script: &str) {
        let mut decoder = decoder(name, toml);
        let mut expected = Vec::new();
        let mut seen = Vec::new();
        for line in script.lines() {
            if let Some(bytes) = line.strip_prefix("<< ") {
                assert_eq!(seen, expected, "before {line}");
                (seen, expected) = (Vec::new(), Vec::new());
                let mut samples = Samples::new();
                decoder.feed(bytes.replace("\\r", "\r").replace("\\n", "\n").as_bytes(), 1, &mut samples);
                for sample in samples.drain() {
                    let spec = &decoder.channels()[sample.channel];
                    let value = match &sample.value {
                        Some(Value::Number(number)) => ((number * 1e6).round() / 1e6).to_string(),
                        Some(value) => value.to_string(),
                        None => format!("bad {}", sample.quality.reason().unwrap_or_default()),
                    };
                    let unit = sample.value.as_ref().map_or("", |_| &*spec.unit);
                    seen.push(format!("= {} {value} {unit}", spec.name).trim_end().to_owned());
                }
            } else if line != "= none" {
                expected.push(line.to_owned());
            }
        }
        assert_eq!(seen, expected, "at the end");
    }

    pub(crate) fn parse(name: &str, toml: &str) -> Arc<dyn Setup> {
        try_parse(name, toml).expect("valid settings")
    }

    #[test]
    fn every_example_is_valid_and_equal_to_itself() {
        for device_type in registry() {
            let setup = parse(device_type.name, device_type.example);
            assert!(*setup == *parse(device_type.name, device_type.example), "{}", device_type.name);
            assert!(!device_type.summary.is_empty());
            for channel in setup.channels() {
                assert_eq!(crate::channel::name_from(&channel.name).as_deref(), Some(&*channel.name));
            }
        }
    }

    #[test]
    fn setups_of_different_types_or_settings_differ() {
        let one = parse("bme280", "bus = \"i2c-1\"");
        assert!(*one == *parse("bme280", "bus = \"/dev/i2c-1\"\naddress = 0x76"));
        assert!(*one != *parse("bme280", "bus = \"i2c-1\"\naddress = 0x77"));
        assert!(*one != *parse("gpio-input", "line = \"GPIO17\""));
    }

    #[test]
    fn errors_point_at_the_key_or_value_to_blame() {
        for (name, toml, blamed, word) in [
            ("bme280", "bus = \"i2c-1\"\nadress = 0x76", "adress", "unknown field"),
            ("bme280", "bus = \"one\"", "\"one\"", "no I2C bus"),
            ("bme280", "bus = \"i2c-1\"\naddress = 0x40", "0x40", "only 0x76 or 0x77"),
            ("bme280", "bus = \"i2c-1\"\naddress = 300", "300", "no I2C address"),
            ("gpio-input", "line = \"GPIO17\"\ndebounce = \"long\"", "\"long\"", "no length of time"),
            ("gpio-input", "line = \"GPIO17\"\nchip = 0", "0", "changes between kernels"),
            // The table as a whole: in a configuration its header, in a bare document nothing.
            ("gpio-output", "safe_state = true", "", "missing field `line`"),
        ] {
            let error = try_parse(name, toml).unwrap_err();
            assert_eq!(&toml[error.span.clone().unwrap()], blamed, "{error}");
            assert!(error.message.contains(word), "{error}");
        }
    }
}
