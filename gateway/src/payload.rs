//! One reading, the same on every protocol: as text, as SenML, as what an uplink carries.

pub mod parcel;

use drivers::{ChannelSpec, Kind, Quality, Value, ValueType};
use senml::{Extension, OwnedValue, Record};
use serde_json::json;

use crate::clock::{Stamp, WallQuality};
use crate::reading::{Channel, Reading};

/// The first level of every topic and name of ours.
pub const ROOT: &str = "tidegate";

/// The value alone, as it stands under a topic or a CoAP path; `None` when there is none.
pub fn text(reading: &Reading) -> Option<String> {
    reading.value.as_ref().map(Value::to_string)
}

/// Quality in words: `good`, `uncertain: …`, `bad: …`.
pub fn quality_text(quality: Quality) -> String {
    match quality.reason() {
        Some(reason) => format!("{}: {reason}", quality.as_str()),
        None => quality.as_str().to_owned(),
    }
}

/// A SenML pack of readings of one gateway, in JSON.
pub fn senml_json(gateway: &str, readings: &[&Reading]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + 64 * readings.len());
    with_records(gateway, readings, |records| senml::write_json(records, &mut out));
    out
}

/// A SenML pack of readings of one gateway, in CBOR.
pub fn senml_cbor(gateway: &str, readings: &[&Reading]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + 32 * readings.len());
    with_records(gateway, readings, |records| senml::write_cbor(records, &mut out));
    out
}

/// How a command's value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `on`, `1`, `21.5`.
    Text,
    /// A SenML pack of one record.
    SenmlJson,
    /// The same in CBOR.
    SenmlCbor,
}

/// Reads the value that an actuator is told.
///
/// # Errors
/// Says in a fragment what was expected.
pub fn parse_command(format: Format, bytes: &[u8], spec: &ChannelSpec) -> Result<Value, String> {
    let value = match format {
        Format::Text => {
            let text = std::str::from_utf8(bytes).map_err(|_| "not UTF-8".to_owned())?;
            return parse_text(text.trim(), spec);
        }
        Format::SenmlJson => senml::parse_json_below(&spec.name, bytes),
        Format::SenmlCbor => senml::parse_cbor_below(&spec.name, bytes),
    };
    let mut records = value.map_err(|error| error.to_string())?;
    match (records.len(), records.pop().and_then(|record| record.value)) {
        (1, Some(OwnedValue::Boolean(truth))) => parse_text(if truth { "true" } else { "false" }, spec),
        (1, Some(OwnedValue::Number(number))) => parse_text(&number.to_string(), spec),
        (1, Some(OwnedValue::Text(text))) => parse_text(&text, spec),
        _ => Err("expected a pack of one record with a value".into()),
    }
}

/// A value as a person or a page writes it.
fn parse_text(text: &str, spec: &ChannelSpec) -> Result<Value, String> {
    let shown: String = text.chars().take(40).collect();
    let expected = |what: &str| format!("expected {what}, found \"{}\"", shown.escape_debug());
    match spec.value_type {
        ValueType::Boolean => match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "on" => Ok(Value::Boolean(true)),
            "0" | "false" | "off" => Ok(Value::Boolean(false)),
            _ => Err(expected("on or off")),
        },
        ValueType::Integer => {
            let number = text.parse::<i64>().map_err(|_| expected("a whole number"))?;
            within(number as f64, spec).map(|_| Value::Integer(number))
        }
        ValueType::Number => {
            let number =
                text.parse::<f64>().ok().filter(|n| n.is_finite()).ok_or_else(|| expected("a number"))?;
            within(number, spec).map(Value::Number)
        }
        ValueType::Text if text.len() <= Value::TEXT_MAX => Ok(Value::Text(text.into())),
        ValueType::Text => Err(expected("at most 1024 bytes")),
    }
}

fn within(number: f64, spec: &ChannelSpec) -> Result<f64, String> {
    match spec.range {
        Some((low, high)) if !(low..=high).contains(&number) => {
            Err(format!("out of range: {number}, allowed {low} to {high}"))
        }
        _ => Ok(number),
    }
}

/// What stands under `…/meta`: all about a channel but the value.
pub fn meta(channel: &Channel, quality: Quality, stamp: Option<&Stamp>) -> serde_json::Value {
    let mut meta = describe(channel);
    meta["quality"] = quality_text(quality).into();
    meta["time"] = stamp.and_then(rfc3339).into();
    meta["clock"] =
        stamp.and_then(|stamp| stamp.wall).map_or(WallQuality::None, |wall| wall.quality).as_str().into();
    meta
}

/// The channel itself, as JSON.
pub fn describe(channel: &Channel) -> serde_json::Value {
    let spec = &channel.spec;
    let kind = match spec.kind {
        Kind::Sensor => "sensor",
        Kind::Counter => "counter",
        Kind::Actuator => "actuator",
    };
    let value_type = match spec.value_type {
        ValueType::Number => "number",
        ValueType::Integer => "integer",
        ValueType::Boolean => "boolean",
        ValueType::Text => "text",
    };
    json!({
        "unit": spec.unit, "title": spec.title, "range": spec.range.map(|(low, high)| [low, high]),
        "precision": spec.precision, "kind": kind, "type": value_type, "simulated": channel.is_simulated,
        "class": spec.class,
    })
}

/// A value as JSON: numbers and booleans as such; what is not finite is null.
pub fn json_value(value: Option<&Value>) -> serde_json::Value {
    match value {
        Some(Value::Number(number)) => (*number).into(),
        Some(Value::Integer(number)) => (*number).into(),
        Some(Value::Boolean(truth)) => (*truth).into(),
        Some(Value::Text(text)) => (&**text).into(),
        None => serde_json::Value::Null,
    }
}

/// Wall time as RFC 3339 with milliseconds, `None` while it is unknown.
pub fn rfc3339(stamp: &Stamp) -> Option<String> {
    rfc3339_ns(stamp.wall?.unix_ns)
}

/// Nanoseconds since 1970 as RFC 3339 with milliseconds.
pub fn rfc3339_ns(unix_ns: i64) -> Option<String> {
    let time = jiff::Timestamp::from_nanosecond(i128::from(unix_ns)).ok()?;
    Some(format!("{time:.3}"))
}

/// A record needs a value (RFC 8428 §4.4): where there is none, its place is taken by words about the quality, under
/// a name of their own so that nobody takes them for a value.
pub fn quality_name(name: &str, is_without_value: bool) -> std::borrow::Cow<'_, str> {
    if is_without_value { format!("{name}/quality").into() } else { name.into() }
}

fn senml_value(value: &Value) -> senml::Value<'_> {
    match value {
        Value::Number(number) => senml::Value::Number(*number),
        Value::Integer(number) => senml::Value::Integer(*number),
        Value::Boolean(truth) => senml::Value::Boolean(*truth),
        Value::Text(text) => senml::Value::Text(text),
    }
}

/// Seconds since 1970 to the millisecond, if wall time is known at all.
fn seconds(stamp: &Stamp) -> Option<f64> {
    let wall = stamp.wall.filter(|wall| wall.quality > WallQuality::None)?;
    Some(wall.unix_ns.div_euclid(1_000_000) as f64 / 1e3)
}

fn with_records(gateway: &str, readings: &[&Reading], write: impl FnOnce(&[Record<'_>])) {
    let base = format!("{ROOT}/{gateway}/");
    let words: Vec<String> = readings.iter().map(|reading| quality_text(reading.quality)).collect();
    let names: Vec<_> = readings
        .iter()
        .map(|reading| quality_name(reading.channel.id.as_str(), reading.value.is_none()))
        .collect();
    let quality: Vec<_> = words.iter().map(|words| [("quality", Extension::Text(words))]).collect();
    let records: Vec<Record<'_>> = readings
        .iter()
        .enumerate()
        .map(|(index, reading)| Record {
            base_name: (index == 0).then_some(&*base),
            name: Some(&names[index]),
            unit: Some(&*reading.channel.spec.unit).filter(|unit| !unit.is_empty()),
            value: Some(reading.value.as_ref().map_or(senml::Value::Text(&words[index]), senml_value)),
            time: seconds(&reading.stamp),
            extensions: if reading.quality.is_good() { &[] } else { &quality[index] },
            ..Record::default()
        })
        .collect();
    write(&records);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reads_the_same_in_every_format() {
        let switch = ChannelSpec::boolean("relay").kind(Kind::Actuator);
        let on = Ok(Value::Boolean(true));
        for text in ["1", "on", "TRUE", " true\n"] {
            assert_eq!(parse_command(Format::Text, text.as_bytes(), &switch), on, "{text}");
        }
        assert_eq!(
            parse_command(Format::SenmlJson, br#"[{"vb":true}]"#, &switch),
            on,
            "no name: the resource's own"
        );
        assert_eq!(parse_command(Format::SenmlJson, br#"[{"n":"relay","v":1}]"#, &switch), on);
        let mut pack = Vec::new();
        let record =
            Record { name: Some("relay"), value: Some(senml::Value::Boolean(true)), ..Record::default() };
        senml::write_cbor(&[record], &mut pack);
        assert_eq!(parse_command(Format::SenmlCbor, &pack, &switch), on);
        for bad in [&b"perhaps"[..], b"", b"\xff", b"2"] {
            assert!(parse_command(Format::Text, bad, &switch).is_err());
        }
        assert!(parse_command(Format::SenmlJson, br#"[{"vb":true},{"n":"x","vb":true}]"#, &switch).is_err());
        let dimmer = ChannelSpec::number("level", "/100").within(0.0, 100.0).kind(Kind::Actuator);
        assert_eq!(parse_command(Format::Text, b"21.5", &dimmer), Ok(Value::Number(21.5)));
        for bad in ["100.1", "-1", "NaN", "inf"] {
            assert!(parse_command(Format::Text, bad.as_bytes(), &dimmer).is_err(), "{bad}");
        }
    }
}
