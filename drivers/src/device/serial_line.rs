//! `serial-line`: anything that prints lines on a serial port: JSON objects, `key=value` pairs, or whatever a regular
//! expression with named groups can read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;
use serde::Deserialize;
use toml::Spanned;

use super::lines::Lines;
use crate::bus::serial::{Frame, PortPath, SerialSettings, check_baud};
use crate::channel::{ChannelSpec, ValueType, name_from};
use crate::error::DeviceError;
use crate::quality::{BadReason, Quality};
use crate::samples::{Sample, Samples};
use crate::settings::{SettingsError, parse_settings};
use crate::setup::{BusKey, Decoder, DeviceType, Driver, Setup, Wires};
use crate::value::Value;

pub(super) static TYPE: DeviceType = DeviceType {
    name: "serial-line",
    summary: "anything that prints lines on a serial port: JSON, key=value, or by regular expression",
    example: r#"port = "/dev/serial/by-id/usb-Arduino_Uno-if00"
baud = 9600
format = "regex"     # or "json": {"t": 21.5}, or "key-value": t=21.5 h=48
pattern = '^T=(?<temperature>[-0-9.]+) H=(?<humidity>[0-9.]+)$'
fields.temperature = { unit = "Cel", range = [-40, 85] }   # optional; others become channels too
fields.humidity = { unit = "%RH", precision = 1 }
"#,
    parse: |table| {
        let whole = table.span();
        let s: Settings = parse_settings(table)?;
        let baud =
            check_baud(*s.baud.get_ref()).map_err(|message| SettingsError::at(s.baud.span(), message))?;
        let pattern = s.pattern.as_ref();
        match (s.format, pattern) {
            (Format::Regex, None) => {
                return Err(SettingsError::at(
                    whole,
                    "`format = \"regex\"` needs a `pattern` with named groups",
                ));
            }
            (Format::Json | Format::KeyValue, Some(pattern)) => {
                return Err(SettingsError::at(pattern.span(), "`pattern` is for `format = \"regex\"` only"));
            }
            (Format::Regex, Some(pattern)) => {
                let regex = compile(pattern.get_ref())
                    .map_err(|message| SettingsError::at(pattern.span(), message))?;
                if regex.capture_names().flatten().next().is_none() {
                    return Err(SettingsError::at(
                        pattern.span(),
                        "`pattern` has no named group such as `(?<temperature>[0-9.]+)`",
                    ));
                }
            }
            _ => {}
        }
        for (key, field) in &s.fields {
            if field.name.as_ref().is_some_and(|name| name_from(name).as_deref() != Some(name)) {
                return Err(SettingsError::at(
                    whole.clone(),
                    format!("`name` of field `{key}` may hold only a-z 0-9 _ -"),
                ));
            }
        }
        Ok(Arc::new(LineSetup {
            serial: SerialSettings { port: s.port, baud, frame: s.frame },
            format: s.format,
            pattern: s.pattern.map(Spanned::into_inner),
            fields: s.fields,
        }))
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    port: PortPath,
    #[serde(default = "default_baud")]
    baud: Spanned<u32>,
    #[serde(default)]
    frame: Frame,
    format: Format,
    pattern: Option<Spanned<String>>,
    #[serde(default)]
    fields: BTreeMap<String, Field>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Format {
    Regex,
    Json,
    KeyValue,
}

/// What a person knows of a key that the line itself does not say.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Field {
    name: Option<String>,
    title: Option<String>,
    unit: String,
    range: Option<(f64, f64)>,
    precision: Option<u8>,
    text: bool,
}

#[derive(Debug, PartialEq)]
struct LineSetup {
    serial: SerialSettings,
    format: Format,
    pattern: Option<String>,
    fields: BTreeMap<String, Field>,
}

struct LineDecoder {
    serial: SerialSettings,
    format: Format,
    pattern: Option<Regex>,
    lines: Lines,
    table: Table,
    rejected: u64,
}

/// The channels that lines have had so far.
struct Table {
    fields: BTreeMap<String, Field>,
    // The key as it stands in the line, beside the channel.
    keys: Vec<String>,
    channels: Vec<ChannelSpec>,
}

impl Setup for LineSetup {
    fn bus(&self) -> BusKey {
        BusKey::Serial(self.serial.port.as_str().to_owned())
    }

    fn occupies(&self) -> Option<String> {
        Some(format!("serial port {}", self.serial.port.as_str()))
    }

    fn channels(&self) -> Vec<ChannelSpec> {
        self.table().channels
    }

    fn default_interval(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn missing(&self) -> Option<String> {
        self.serial.missing()
    }

    fn build(&self, _wires: &Wires) -> Result<Driver, DeviceError> {
        let pattern = self.pattern.as_deref().map(compile).transpose().map_err(DeviceError::Config)?;
        Ok(Driver::Stream(Box::new(LineDecoder {
            serial: self.serial.clone(),
            format: self.format,
            pattern,
            lines: Lines::new(LONGEST_LINE),
            table: self.table(),
            rejected: 0,
        })))
    }
}

impl LineSetup {
    /// What is known before the first line: the fields that were set.
    fn table(&self) -> Table {
        let mut table = Table { fields: self.fields.clone(), keys: Vec::new(), channels: Vec::new() };
        for (key, field) in &self.fields {
            let value_type = if field.text { ValueType::Text } else { ValueType::Number };
            table.place(key, value_type);
        }
        table
    }
}

impl Decoder for LineDecoder {
    fn port(&self) -> &SerialSettings {
        &self.serial
    }

    fn channels(&self) -> &[ChannelSpec] {
        &self.table.channels
    }

    fn feed(&mut self, bytes: &[u8], now_ns: u64, out: &mut Samples) {
        let Self { format, pattern, lines, table, rejected, .. } = self;
        lines.feed(bytes, |line| {
            let before = out.as_slice().len();
            match (*format, pattern.as_ref()) {
                (Format::Json, _) => {
                    if let Ok(serde_json::Value::Object(object)) = serde_json::from_str(line) {
                        table.put_object("", &object, MOST_DEPTH, now_ns, out);
                    }
                }
                (Format::KeyValue, _) => {
                    for word in line.split([' ', ',', ';', '\t', '&']) {
                        if let Some((key, text)) = word.split_once(['=', ':']) {
                            table.put_text(key.trim(), text.trim(), now_ns, out);
                        }
                    }
                }
                (Format::Regex, Some(pattern)) => {
                    if let Some(found) = pattern.captures(line) {
                        for name in pattern.capture_names().flatten() {
                            if let Some(group) = found.name(name) {
                                table.put_text(name, group.as_str(), now_ns, out);
                            }
                        }
                    }
                }
                (Format::Regex, None) => {}
            }
            *rejected += u64::from(out.as_slice().len() == before);
        });
    }

    fn reset(&mut self) {
        self.lines.reset();
    }

    fn rejected(&self) -> u64 {
        self.rejected + self.lines.rejected()
    }
}

impl Table {
    /// `{"air": {"t": 21}}` is the key `air_t`.
    fn put_object(
        &mut self,
        prefix: &str,
        object: &serde_json::Map<String, serde_json::Value>,
        depth: usize,
        now_ns: u64,
        out: &mut Samples,
    ) {
        for (key, value) in object {
            let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}_{key}") };
            match value {
                serde_json::Value::Number(number) => {
                    if let Some(number) = number.as_f64() {
                        self.put(&key, Value::Number(number), now_ns, out);
                    }
                }
                serde_json::Value::Bool(boolean) => self.put(&key, Value::Boolean(*boolean), now_ns, out),
                serde_json::Value::String(text) => self.put_text(&key, text, now_ns, out),
                serde_json::Value::Object(inner) if depth > 0 => {
                    self.put_object(&key, inner, depth - 1, now_ns, out);
                }
                _ => {}
            }
        }
    }

    /// Text that reads as a number or a boolean is one, unless the field says that it is text.
    fn put_text(&mut self, key: &str, text: &str, now_ns: u64, out: &mut Samples) {
        let is_text = self.fields.get(key).is_some_and(|field| field.text);
        let value = match text {
            _ if is_text => text.into(),
            "true" | "on" | "ON" => Value::Boolean(true),
            "false" | "off" | "OFF" => Value::Boolean(false),
            // `inf` and `nan` are words here: no sensor counts to infinity.
            _ => match text.parse::<f64>().ok().filter(|number| number.is_finite()) {
                Some(number) => Value::Number(number),
                None => text.into(),
            },
        };
        self.put(key, value, now_ns, out);
    }

    fn put(&mut self, key: &str, value: Value, now_ns: u64, out: &mut Samples) {
        let value_type = match &value {
            Value::Number(_) | Value::Integer(_) => ValueType::Number,
            Value::Boolean(_) => ValueType::Boolean,
            Value::Text(_) => ValueType::Text,
        };
        let Some(channel) = self.place(key, value_type) else { return };
        // A channel keeps the type it began with.
        if self.channels[channel].value_type == value_type {
            out.put_at(channel, value, now_ns);
        } else {
            let quality = Quality::Bad(BadReason::Parse);
            out.push(Sample { channel, value: None, quality, at_ns: Some(now_ns) });
        }
    }

    /// The channel of a key; a new one while there is room.
    fn place(&mut self, key: &str, value_type: ValueType) -> Option<usize> {
        if let Some(channel) = self.keys.iter().position(|known| known == key) {
            return Some(channel);
        }
        if self.channels.len() >= MOST_CHANNELS || key.len() > LONGEST_KEY {
            return None;
        }
        let default = Field::default();
        let field = self.fields.get(key).unwrap_or(&default);
        let name = field.name.clone().or_else(|| name_from(key))?;
        if self.channels.iter().any(|channel| channel.name == name) {
            return None;
        }
        let mut spec = match value_type {
            ValueType::Boolean => ChannelSpec::boolean(name),
            ValueType::Text => ChannelSpec::text(name),
            ValueType::Number | ValueType::Integer => ChannelSpec::number(name, field.unit.clone()),
        };
        spec.range = field.range;
        spec.precision = field.precision.unwrap_or(spec.precision);
        if let Some(title) = &field.title {
            spec.title = title.clone().into();
        }
        self.keys.push(key.to_owned());
        self.channels.push(spec);
        Some(self.channels.len() - 1)
    }
}

fn compile(pattern: &str) -> Result<Regex, String> {
    regex::RegexBuilder::new(pattern).size_limit(1 << 20).build().map_err(|error| error.to_string())
}

fn default_baud() -> Spanned<u32> {
    Spanned::new(0..0, 9600)
}

const LONGEST_LINE: usize = 1024;
const LONGEST_KEY: usize = 128;

/// A line that keeps inventing keys is noise.
const MOST_CHANNELS: usize = 64;

/// Objects within objects.
const MOST_DEPTH: usize = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::device::tests::{decoder, transcript, try_parse};

    #[test]
    fn a_regular_expressions_groups_are_channels() {
        transcript(
            "serial-line",
            TYPE.example,
            "<< T=21.5 H=48.3\\r\\n\n= temperature 21.5 Cel\n= humidity 48.3 %RH\n\
             << T=-3 H=\\r\\nnoise\\nT=-3 H=99\\n\n= temperature -3 Cel\n= humidity 99 %RH\n",
        );
    }

    #[test]
    fn json_objects_become_channels_by_key() {
        transcript(
            "serial-line",
            "port = \"/dev/ttyUSB0\"\nformat = \"json\"\nfields.air_t = { name = \"air\", unit = \"Cel\" }",
            "<< {\"air\":{\"t\":21.5},\"door\":true,\n= none\n<< \"id\":\"x7\"}\\n\n\
             = air 21.5 Cel\n= door true\n= id x7\n\
             << {\"air\":{\"t\":\"broken\"}}\\n[1,2]\\n{\"air\":\\n\n= air bad unreadable\n",
        );
    }

    #[test]
    fn keys_and_values_become_channels() {
        transcript(
            "serial-line",
            "port = \"/dev/ttyUSB0\"\nformat = \"key-value\"",
            "<< t=21.5, pump:on;mode=eco\\n\n= t 21.5\n= pump true\n= mode eco\n",
        );
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        for (toml, word) in [
            ("port = \"/dev/ttyUSB0\"\nformat = \"regex\"", "needs a `pattern`"),
            ("port = \"/dev/ttyUSB0\"\nformat = \"regex\"\npattern = '[0-9]'", "no named group"),
            ("port = \"/dev/ttyUSB0\"\nformat = \"regex\"\npattern = '(?<a>'", "regex parse error"),
            ("port = \"/dev/ttyUSB0\"\nformat = \"json\"\npattern = 'x'", "only"),
            ("port = \"ttyUSB0\"\nformat = \"json\"", "no path"),
            ("port = \"/dev/ttyUSB0\"\nformat = \"json\"\nbaud = 7", "no baud rate"),
            ("port = \"/dev/ttyUSB0\"\nformat = \"json\"\nframe = \"9N1\"", "no frame"),
        ] {
            assert!(try_parse("serial-line", toml).unwrap_err().message.contains(word), "{toml}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail_or_grow(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            for format in ["json", "key-value"] {
                let mut decoder = decoder("serial-line", &format!("port = \"/dev/x\"\nformat = \"{format}\""));
                let mut samples = Samples::new();
                decoder.feed(&bytes, 0, &mut samples);
                prop_assert!(decoder.channels().len() <= MOST_CHANNELS);
                prop_assert!(samples.as_slice().iter().all(|sample| sample.channel < decoder.channels().len()));
            }
        }
    }
}
