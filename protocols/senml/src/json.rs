//! SenML in JSON (RFC 8428 §5).

use std::fmt;
use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Deserializer as _, Error as _, MapAccess, SeqAccess, Visitor};

use crate::record::{Extension, OwnedValue, ParseError, Raw, Record, Resolved, Resolver, Value};

/// Writes a pack: `[{…},{…}]`, fields in the order of RFC 8428 §4.3.
pub fn write(records: &[Record<'_>], out: &mut Vec<u8>) {
    out.push(b'[');
    for (index, record) in records.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_record(record, out);
    }
    out.push(b']');
}

/// Reads and resolves a pack.
///
/// # Errors
/// [`ParseError`]: not a JSON array of objects, a forbidden name, no value, a newer version, too many records.
pub fn parse(bytes: &[u8]) -> Result<Vec<Resolved>, ParseError> {
    parse_below("", bytes)
}

/// Reads and resolves a pack whose records, where they give no base name, stand below `base`: what is sent to a
/// resource need not repeat the resource's name.
///
/// # Errors
/// As [`parse`].
pub fn parse_below(base: &str, bytes: &[u8]) -> Result<Vec<Resolved>, ParseError> {
    let mut resolver = Resolver::below(base);
    let mut refused = None;
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = json.deserialize_seq(Pack { resolver: &mut resolver, refused: &mut refused });
    match (refused, read.and_then(|()| json.end())) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(ParseError::Malformed(error.to_string())),
        (None, Ok(())) => Ok(resolver.finish()),
    }
}

fn write_record(record: &Record<'_>, out: &mut Vec<u8>) {
    out.push(b'{');
    let mut first = true;
    let mut key = |name: &str, out: &mut Vec<u8>| {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        write_text(name, out);
        out.push(b':');
    };
    if let Some(name) = record.base_name {
        key("bn", out);
        write_text(name, out);
    }
    if let Some(time) = record.base_time.filter(|t| t.is_finite()) {
        key("bt", out);
        write_number(time, out);
    }
    if let Some(name) = record.name {
        key("n", out);
        write_text(name, out);
    }
    if let Some(unit) = record.unit {
        key("u", out);
        write_text(unit, out);
    }
    match record.value {
        Some(Value::Number(number)) if number.is_finite() => {
            key("v", out);
            write_number(number, out);
        }
        Some(Value::Integer(number)) => {
            key("v", out);
            let _ = write!(out, "{number}");
        }
        Some(Value::Text(text)) => {
            key("vs", out);
            write_text(text, out);
        }
        Some(Value::Boolean(truth)) => {
            key("vb", out);
            let _ = write!(out, "{truth}");
        }
        Some(Value::Number(_)) | None => {}
    }
    if let Some(time) = record.time.filter(|t| t.is_finite()) {
        key("t", out);
        write_number(time, out);
    }
    for (name, value) in record.extensions {
        key(name, out);
        match value {
            Extension::Integer(number) => {
                let _ = write!(out, "{number}");
            }
            Extension::Number(number) => write_number(if number.is_finite() { *number } else { 0.0 }, out),
            Extension::Text(text) => write_text(text, out),
            Extension::Boolean(truth) => {
                let _ = write!(out, "{truth}");
            }
        }
    }
    out.push(b'}');
}

/// Writing into a `Vec` cannot fail, and a string always has a JSON form.
fn write_text(text: &str, out: &mut Vec<u8>) {
    let _ = serde_json::to_writer(out, text);
}

/// The shortest digits that read back as the same number, never an exponent.
fn write_number(number: f64, out: &mut Vec<u8>) {
    let _ = write!(out, "{number}");
}

struct Pack<'a> {
    resolver: &'a mut Resolver,
    refused: &'a mut Option<ParseError>,
}

impl<'de> Visitor<'de> for Pack<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of SenML records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(RawRecord(raw)) = seq.next_element()? {
            if let Err(error) = self.resolver.push(raw) {
                *self.refused = Some(error);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

struct RawRecord(Raw);

impl<'de> serde::Deserialize<'de> for RawRecord {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a SenML record")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut raw = Raw::default();
                while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                    match &*key {
                        "bn" => raw.base_name = Some(map.next_value()?),
                        "bt" => raw.base_time = Some(map.next_value()?),
                        "bu" => raw.base_unit = Some(map.next_value()?),
                        "bv" => raw.base_value = Some(map.next_value()?),
                        "bver" => raw.version = Some(map.next_value()?),
                        "n" => raw.name = Some(map.next_value()?),
                        "u" => raw.unit = Some(map.next_value()?),
                        "v" => raw.value = Some(OwnedValue::Number(map.next_value()?)),
                        "vs" => raw.value = Some(OwnedValue::Text(map.next_value()?)),
                        "vd" => {
                            // RFC 8428 §5: base64url without padding; padding is tolerated.
                            let text: String = map.next_value()?;
                            let data = URL_SAFE_NO_PAD
                                .decode(text.trim_end_matches('='))
                                .map_err(A::Error::custom)?;
                            raw.value = Some(OwnedValue::Data(data));
                        }
                        "vb" => raw.value = Some(OwnedValue::Boolean(map.next_value()?)),
                        "t" => raw.time = Some(map.next_value()?),
                        "s" | "bs" => {
                            let _: f64 = map.next_value()?;
                            raw.has_sum = true;
                        }
                        // A name that ends in "_" must be understood (§4.4); others are ignored.
                        must if must.ends_with('_') => {
                            return Err(A::Error::custom("a field that must be understood is not"));
                        }
                        _ => {
                            let _: serde::de::IgnoredAny = map.next_value()?;
                        }
                    }
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(Fields).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_section_5_1_3_resolves() {
        // RFC 8428 §5.1.3, shortened to the records that differ in kind.
        let pack = br#"[{"bn":"urn:dev:ow:10e2073a0108006:","bt":1.276020076001e+09,"bu":"A","bver":5,"n":"voltage","u":"V","v":120.1},
            {"n":"current","t":-5,"v":1.2},{"n":"current","v":1.7}]"#;
        let records = parse(pack).unwrap();
        assert_eq!(records[0].name, "urn:dev:ow:10e2073a0108006:voltage");
        assert_eq!((records[0].unit.as_deref(), records[1].unit.as_deref()), (Some("V"), Some("A")));
        assert!((records[1].time - 1.276_020_071_001e9).abs() < 1e-3);
        assert_eq!(records[2].value, Some(OwnedValue::Number(1.7)));
    }

    #[test]
    fn bad_packs_are_refused_with_the_reason() {
        for (bad, why) in [
            (&b"{}"[..], "malformed"),
            (b"[{\"n\":\"a b\",\"v\":1}]", "forbids"),
            (b"[{\"n\":\"a\"}]", "neither"),
            (b"[{\"n\":\"a\",\"v\":1,\"bver\":99}]", "version 99"),
            (b"[{\"n\":\"a\",\"v\":1,\"x_\":1}]", "must be understood"),
            (b"[{\"n\":\"a\",\"v\":1}] x", "malformed"),
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let many = format!("[{}]", vec!["{\"n\":\"a\",\"v\":1}"; crate::MAX_RECORDS + 1].join(","));
        assert_eq!(parse(many.as_bytes()), Err(ParseError::TooMany));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(name in "[a-z][a-z0-9/_-]{0,20}", number in -1e9..1e9f64, text in ".{0,20}", time in 2.7e8..4e9f64) {
            let mut out = Vec::new();
            let extensions = [("gw", Extension::Text("barn")), ("seq", Extension::Integer(7))];
            write(&[
                Record { base_name: Some("x/"), name: Some(&name), unit: Some("Cel"), value: Some(Value::Number(number)), time: Some(time), extensions: &extensions, ..Record::default() },
                Record { name: Some("t"), value: Some(Value::Text(&text)), ..Record::default() },
            ], &mut out);
            let records = parse(&out).unwrap();
            prop_assert_eq!(&records[0].name, &format!("x/{name}"));
            prop_assert_eq!(&records[0].value, &Some(OwnedValue::Number(number)));
            prop_assert_eq!(records[0].time, time);
            prop_assert_eq!(&records[1].value, &Some(OwnedValue::Text(text)));
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
