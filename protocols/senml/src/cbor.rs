//! SenML in CBOR (RFC 8428 §6): the same records, field names as small integers.

use minicbor::data::{Tag, Type};
use minicbor::{Decoder, Encoder};

use crate::MAX_RECORDS;
use crate::record::{Extension, OwnedValue, ParseError, Raw, Record, Resolved, Resolver, Value};

/// Writes a pack as one CBOR array of maps.
pub fn write(records: &[Record<'_>], out: &mut Vec<u8>) {
    // Writing into a `Vec` cannot fail.
    let _ = encode(records, out, false);
}

/// As [`write`], with numbers as decimal fractions where those are shorter (tag 4, RFC 8428 §6): what a sensor
/// measured to a few digits takes a few bytes, and packs compress well.
pub fn write_compact(records: &[Record<'_>], out: &mut Vec<u8>) {
    let _ = encode(records, out, true);
}

/// Reads and resolves a pack.
///
/// # Errors
/// [`ParseError`], as for JSON.
pub fn parse(bytes: &[u8]) -> Result<Vec<Resolved>, ParseError> {
    parse_below("", bytes)
}

/// As [`crate::parse_json_below`].
///
/// # Errors
/// [`ParseError`], as for JSON.
pub fn parse_below(base: &str, bytes: &[u8]) -> Result<Vec<Resolved>, ParseError> {
    let mut decoder = Decoder::new(bytes);
    let mut resolver = Resolver::below(base);
    let length = decoder.array()?;
    let mut read = 0;
    while length.map_or_else(|| !at_break(&mut decoder), |length| read < length) {
        if read as usize == MAX_RECORDS {
            return Err(ParseError::TooMany);
        }
        resolver.push(record(&mut decoder)?)?;
        read += 1;
    }
    if length.is_none() {
        decoder.skip()?;
    }
    if decoder.position() != bytes.len() {
        return Err(ParseError::Malformed("bytes behind the pack".into()));
    }
    Ok(resolver.finish())
}

impl From<minicbor::decode::Error> for ParseError {
    fn from(error: minicbor::decode::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

fn encode(
    records: &[Record<'_>],
    out: &mut Vec<u8>,
    is_compact: bool,
) -> Result<(), minicbor::encode::Error<<Vec<u8> as minicbor::encode::Write>::Error>> {
    let mut e = Encoder::new(out);
    e.array(records.len() as u64)?;
    for record in records {
        // As in JSON, a number that is not finite is left out (RFC 8428 §4.3).
        let value =
            record.value.filter(|value| !matches!(value, Value::Number(number) if !number.is_finite()));
        let fields = record.base_name.is_some() as u64
            + record.base_time.is_some() as u64
            + record.name.is_some() as u64
            + record.unit.is_some() as u64
            + value.is_some() as u64
            + record.time.is_some() as u64
            + record.extensions.len() as u64;
        e.map(fields)?;
        if let Some(name) = record.base_name {
            e.i8(BASE_NAME)?.str(name)?;
        }
        if let Some(time) = record.base_time {
            write_time(e.i8(BASE_TIME)?, time, is_compact)?;
        }
        if let Some(name) = record.name {
            e.i8(NAME)?.str(name)?;
        }
        if let Some(unit) = record.unit {
            e.i8(UNIT)?.str(unit)?;
        }
        match value {
            Some(Value::Number(number)) => write_number(e.i8(VALUE)?, number, is_compact)?,
            Some(Value::Integer(number)) => e.i8(VALUE)?.i64(number)?,
            Some(Value::Text(text)) => e.i8(TEXT)?.str(text)?,
            Some(Value::Boolean(truth)) => e.i8(BOOLEAN)?.bool(truth)?,
            None => &mut e,
        };
        if let Some(time) = record.time {
            write_time(e.i8(TIME)?, time, is_compact)?;
        }
        for (name, value) in record.extensions {
            e.str(name)?;
            match value {
                Extension::Integer(number) => e.i64(*number)?,
                Extension::Number(number) => write_number(&mut e, *number, is_compact)?,
                Extension::Text(text) => e.str(text)?,
                Extension::Boolean(truth) => e.bool(*truth)?,
            };
        }
    }
    Ok(())
}

type Written<'e, 'o> = Result<
    &'e mut Encoder<&'o mut Vec<u8>>,
    minicbor::encode::Error<<Vec<u8> as minicbor::encode::Write>::Error>,
>;

/// The shortest form that reads back as the same number.
fn write_number<'e, 'o>(
    e: &'e mut Encoder<&'o mut Vec<u8>>,
    number: f64,
    is_compact: bool,
) -> Written<'e, 'o> {
    let is_single = f64::from(number as f32) == number;
    match decimal(number).filter(|_| is_compact) {
        Some((mantissa, 0)) if !is_single || u32::try_from(mantissa.unsigned_abs()).is_ok() => {
            e.i64(mantissa)
        }
        // Tag, array, exponent and mantissa: three bytes and the mantissa's one to five, against five or nine.
        Some((mantissa, exponent))
            if (-24..0).contains(&exponent)
                && mantissa.unsigned_abs() <= if is_single { 0xFF } else { 0xFFFF_FFFF } =>
        {
            e.tag(Tag::new(DECIMAL_FRACTION))?.array(2)?.i8(exponent)?.i64(mantissa)
        }
        _ if is_single => e.f32(number as f32),
        _ => e.f64(number),
    }
}

/// Plainly a double, as every reader expects of a time.
fn write_time<'e, 'o>(e: &'e mut Encoder<&'o mut Vec<u8>>, time: f64, is_compact: bool) -> Written<'e, 'o> {
    if is_compact { write_number(e, time, true) } else { e.f64(time) }
}

/// The shortest digits that read back as `number`: a mantissa and a power of ten, which is 0 or negative.
fn decimal(number: f64) -> Option<(i64, i8)> {
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e')?;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mantissa: i64 = format!("{whole}{fraction}").parse().ok()?;
    let exponent = exponent.parse::<i32>().ok()? - fraction.len() as i32;
    // A negative zero has no integer.
    if number == 0.0 && number.is_sign_negative() {
        return None;
    }
    match u32::try_from(exponent) {
        Ok(power) => Some((10i64.checked_pow(power)?.checked_mul(mantissa)?, 0)),
        Err(_) => Some((mantissa, i8::try_from(exponent).ok()?)),
    }
}

fn record(decoder: &mut Decoder<'_>) -> Result<Raw, ParseError> {
    let mut raw = Raw::default();
    let length = decoder.map()?;
    let mut read = 0;
    while length.map_or_else(|| !at_break(decoder), |length| read < length) {
        read += 1;
        if decoder.datatype()? == Type::String {
            if decoder.str()?.ends_with('_') {
                return Err(ParseError::Malformed("a field that must be understood is not".into()));
            }
            decoder.skip()?;
            continue;
        }
        // A label that is none of ours matches nothing below.
        match i8::try_from(decoder.i64()?).unwrap_or(i8::MAX) {
            VERSION => raw.version = Some(decoder.i64()?),
            BASE_NAME => raw.base_name = Some(decoder.str()?.to_owned()),
            BASE_TIME => raw.base_time = Some(number(decoder)?),
            BASE_UNIT => raw.base_unit = Some(decoder.str()?.to_owned()),
            BASE_VALUE => raw.base_value = Some(number(decoder)?),
            NAME => raw.name = Some(decoder.str()?.to_owned()),
            UNIT => raw.unit = Some(decoder.str()?.to_owned()),
            VALUE => raw.value = Some(OwnedValue::Number(number(decoder)?)),
            TEXT => raw.value = Some(OwnedValue::Text(decoder.str()?.to_owned())),
            BOOLEAN => raw.value = Some(OwnedValue::Boolean(decoder.bool()?)),
            DATA => raw.value = Some(OwnedValue::Data(decoder.bytes()?.to_vec())),
            SUM | BASE_SUM => {
                number(decoder)?;
                raw.has_sum = true;
            }
            TIME => raw.time = Some(number(decoder)?),
            _ => decoder.skip()?,
        }
    }
    if length.is_none() {
        decoder.skip()?;
    }
    Ok(raw)
}

/// Any of CBOR's numbers as `f64` (RFC 8428 §6 allows integers, halves, singles, doubles and decimal fractions).
fn number(decoder: &mut Decoder<'_>) -> Result<f64, ParseError> {
    let number = match decoder.datatype()? {
        Type::F16 | Type::F32 | Type::F64 => decoder.f64()?,
        Type::Tag => {
            if decoder.tag()? != Tag::new(DECIMAL_FRACTION) || decoder.array()? != Some(2) {
                return Err(ParseError::Malformed("a tag that is no decimal fraction".into()));
            }
            let (exponent, mantissa) = (decoder.i16()?, decoder.i64()?);
            // By way of its digits: that rounds once.
            format!("{mantissa}e{exponent}").parse().unwrap_or(f64::NAN)
        }
        _ => decoder.i64()? as f64,
    };
    if number.is_finite() {
        Ok(number)
    } else {
        Err(ParseError::Malformed("a number that is not finite".into()))
    }
}

fn at_break(decoder: &mut Decoder<'_>) -> bool {
    matches!(decoder.datatype(), Ok(Type::Break) | Err(_))
}

/// RFC 8949 §3.4.4: an array of a power of ten and a mantissa.
const DECIMAL_FRACTION: u64 = 4;
const VERSION: i8 = -1;
const BASE_NAME: i8 = -2;
const BASE_TIME: i8 = -3;
const BASE_UNIT: i8 = -4;
const BASE_VALUE: i8 = -5;
const BASE_SUM: i8 = -6;
const NAME: i8 = 0;
const UNIT: i8 = 1;
const VALUE: i8 = 2;
const TEXT: i8 = 3;
const BOOLEAN: i8 = 4;
const SUM: i8 = 5;
const TIME: i8 = 6;
const DATA: i8 = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_section_6_reads() {
        // RFC 8428 §6, figure 2: the first record of the pack, as an array of one.
        let bytes = [
            &[0x81, 0xa7, 0x21, 0x78, 0x1b][..],
            b"urn:dev:ow:10e2073a0108006:",
            &[
                0x22, 0xfb, 0x41, 0xd3, 0x03, 0xa1, 0x5b, 0x00, 0x10, 0x62, 0x23, 0x61, 0x41, 0x20, 0x05,
                0x00, 0x67,
            ],
            b"voltage",
            &[0x01, 0x61, 0x56, 0x02, 0xfb, 0x40, 0x5e, 0x06, 0x66, 0x66, 0x66, 0x66, 0x66],
        ]
        .concat();
        let records = parse(&bytes).unwrap();
        assert_eq!(records[0].name, "urn:dev:ow:10e2073a0108006:voltage");
        assert_eq!(records[0].value, Some(OwnedValue::Number(120.1)));
        assert!((records[0].time - 1.276_020_076_001e9).abs() < 1e-3);
    }

    #[test]
    fn bytes_are_a_value_and_a_large_label_is_not_a_small_one() {
        // [{0: "a", 8: h'0102'}] and [{256: "x", 0: "b", 2: 1}]
        let data = parse(&[0x81, 0xa2, 0x00, 0x61, b'a', 0x08, 0x42, 1, 2]).unwrap();
        assert_eq!(data[0].value, Some(OwnedValue::Data(vec![1, 2])));
        let large = parse(&[0x81, 0xa3, 0x19, 0x01, 0x00, 0x61, b'x', 0x00, 0x61, b'b', 0x02, 0x01]).unwrap();
        assert_eq!((large[0].name.as_str(), &large[0].value), ("b", &Some(OwnedValue::Number(1.0))));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(name in "[a-z][a-z0-9/_-]{0,20}", number in any::<f64>().prop_filter("finite", |n| n.is_finite()), truth: bool) {
            let mut out = Vec::new();
            write(&[
                Record { base_name: Some("x/"), name: Some(&name), value: Some(Value::Number(number)), time: Some(1.5e9), extensions: &[("seq", Extension::Integer(-3))], ..Record::default() },
                Record { name: Some("b"), value: Some(Value::Boolean(truth)), ..Record::default() },
            ], &mut out);
            let records = parse(&out).unwrap();
            prop_assert_eq!(&records[0].name, &format!("x/{name}"));
            prop_assert_eq!(&records[0].value, &Some(OwnedValue::Number(number)));
            prop_assert_eq!(&records[1].value, &Some(OwnedValue::Boolean(truth)));
        }

        #[test]
        fn the_compact_form_reads_back_to_the_last_bit(
            number in prop_oneof![any::<f64>().prop_filter("finite", |n| n.is_finite()), (-9_999_999i64..9_999_999, 0i32..6).prop_map(|(m, e)| m as f64 / 10f64.powi(e))],
            ms in 0i64..4_000_000_000_000,
        ) {
            let (mut out, mut plain) = (Vec::new(), Vec::new());
            let time = ms as f64 / 1e3;
            let record = [Record { name: Some("x"), value: Some(Value::Number(number)), time: Some(time), ..Record::default() }];
            write_compact(&record, &mut out);
            write(&record, &mut plain);
            prop_assert!(out.len() <= plain.len());
            let records = parse(&out).unwrap();
            let read = match records[0].value { Some(OwnedValue::Number(read)) => read, _ => f64::NAN };
            prop_assert_eq!(read, number);
            prop_assert_eq!(records[0].time, time);
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
