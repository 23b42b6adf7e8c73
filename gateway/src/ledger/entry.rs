//! The canonical line of an entry as the log has it: the same that whoever receives its record makes of that.

use super::line::{Line, LineDigest, Value};
use super::manifest::{Kind, Loss};
use crate::clock::WallQuality;
use crate::payload::parcel::{self, milliseconds};
use crate::payload::{quality_name, quality_text};
use crate::reading;
use crate::spool::{Body, Stored};

/// The digest of an entry's line, and what it is to the ledger. `scratch` is room for the line.
pub fn canonical(entry: &Stored, scratch: &mut String) -> (LineDigest, Kind) {
    let quality = entry.stamp.wall.map_or(WallQuality::None, |wall| wall.quality);
    // A time that was attached later may differ between two sendings.
    let is_sure = quality >= WallQuality::Ntp && !entry.is_corrected;
    let name = parcel::name(&entry.body);
    let time_ms = milliseconds(&entry.stamp).filter(|_| is_sure);
    let line = Line { seq: entry.seq.0, name: &name, time_ms, ..Line::default() };
    let mut kind = Kind::Plain;
    let digest = match &entry.body {
        Body::Reading { channel, value, quality } => {
            let words = quality_text(*quality);
            let name = quality_name(&channel.name, value.is_none());
            let value = match value {
                Some(reading::Value::Number(number)) => Value::Number(*number),
                Some(reading::Value::Integer(number)) => Value::Number(*number as f64),
                Some(reading::Value::Boolean(truth)) => Value::Boolean(*truth),
                Some(reading::Value::Text(text)) => Value::Text(text),
                None => Value::Text(&words),
            };
            let quality = Some(&*words).filter(|_| !quality.is_good());
            Line { name: &name, value, unit: unit(&channel.unit), quality, ..line }.digest(scratch)
        }
        Body::Message { topic, payload } => {
            Line { name: topic, value: Value::Bytes(payload), ..line }.digest(scratch)
        }
        Body::Aggregate { channel, min, mean, max, n } => {
            kind = Kind::Aggregate;
            let (value, unit) = (Value::Number(*mean), unit(&channel.unit));
            let (count, min, max) = (Some(*n), Some(*min), Some(*max));
            Line { value, unit, count, min, max, ..line }.digest(scratch)
        }
        Body::Outcome { json, .. } => Line { value: Value::Text(json), ..line }.digest(scratch),
        Body::Gap(gap) => {
            let (from, to, count, reason) = (gap.from_seq, gap.to_seq, gap.count, gap.reason.as_str());
            kind = Kind::Gap(Loss { from, to, count, reason: reason.to_owned() });
            Line { value: Value::Text(reason), from, to, count, ..line }.digest(scratch)
        }
        Body::Alarm { is_raised, text, .. } => {
            Line { value: Value::Text(text), raised: Some(*is_raised), ..line }.digest(scratch)
        }
        Body::Clock { record } => {
            let offset = Some(record.offset_ns.div_euclid(1_000_000));
            let error = record.error_ns.map(|error| (error / 1_000_000) as i64);
            Line { value: Value::Text(record.quality.as_str()), offset, error, ..line }.digest(scratch)
        }
        Body::Manifest { text } => {
            kind = Kind::Manifest;
            Line { value: Value::Text(text), ..line }.digest(scratch)
        }
    };
    (digest, kind)
}

fn unit(unit: &str) -> Option<&str> {
    Some(unit).filter(|unit| !unit.is_empty())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base64::Engine as _;
    use proptest::prelude::*;

    use super::super::key::Key;
    use super::super::manifest::{Draft, Header, Signed};
    use super::super::received::{Tally, read};
    use super::super::verify::{Book, Verdict};
    use super::*;
    use crate::clock::{BootId, Stamp, Wall};
    use crate::payload::parcel::{Compression, Encoding, Origin, Packing, Parcel};
    use crate::reading::Quality;
    use crate::spool::{ClockRecord, Gap, GapReason, Seq, StoredChannel};
    use crate::uplink::forwarder::Lane;

    fn body() -> impl Strategy<Value = Body> {
        let channel = || Arc::new(StoredChannel { name: "cellar/temperature".into(), unit: "Cel".into() });
        let bare = || Arc::new(StoredChannel { name: "pump/state".into(), unit: String::new() });
        let number = prop_oneof![
            any::<f64>(),
            Just(f64::INFINITY),
            Just(-0.0),
            (-9_999_999i64..9_999_999, 0i32..6).prop_map(|(m, e)| m as f64 / 10f64.powi(e)),
        ];
        let value = prop_oneof![
            number.clone().prop_map(|number| Some(reading::Value::Number(number))),
            any::<i64>().prop_map(|number| Some(reading::Value::Integer(number))),
            any::<bool>().prop_map(|truth| Some(reading::Value::Boolean(truth))),
            ".{0,20}".prop_map(|text| Some(reading::Value::Text(text.into()))),
            Just(None),
        ];
        prop_oneof![
            4 => (value, 0u8..20, any::<bool>()).prop_map(move |(value, quality, has_unit)| Body::Reading {
                channel: if has_unit { channel() } else { bare() },
                value,
                quality: Quality::from_code(quality).unwrap_or(Quality::Good),
            }),
            2 => ("[a-z]{1,4}/.{0,8}", proptest::collection::vec(any::<u8>(), 0..20))
                .prop_map(|(topic, payload)| Body::Message { topic, payload }),
            1 => ("[a-z]{1,4}/.{0,8}", ".{0,20}")
                .prop_map(|(topic, text)| Body::Message { topic, payload: text.into_bytes() }),
            1 => ".{0,20}".prop_map(move |json| Body::Outcome { channel: bare(), json }),
            1 => (any::<bool>(), ".{0,20}")
                .prop_map(|(is_raised, text)| Body::Alarm { name: "spool".into(), is_raised, text }),
            1 => (any::<i64>(), proptest::option::of(any::<u64>())).prop_map(|(offset_ns, error_ns)| {
                let quality = WallQuality::Ntp;
                Body::Clock { record: ClockRecord { boot: BootId(7), offset_ns, error_ns, quality } }
            }),
            // A gap of places that nothing else is at, so that nothing seems lost.
            1 => Just(Body::Gap(Gap { from_seq: None, to_seq: Some(3), count: Some(7), reason: GapReason::Overload })),
            1 => (number.clone(), number.clone(), number, 1u64..1000)
                .prop_map(move |(min, mean, max, n)| Body::Aggregate { channel: channel(), min, mean, max, n }),
        ]
    }

    fn stamp() -> impl Strategy<Value = (Stamp, bool)> {
        let wall = (0i64..4_000_000_000_000_000_000, 0u8..5).prop_map(|(unix_ns, quality)| Wall {
            unix_ns,
            error_ns: None,
            quality: WallQuality::from_u8(quality),
        });
        (proptest::option::of(wall), 0u128..3, any::<u64>(), any::<bool>()).prop_map(
            |(wall, boot, mono, is_corrected)| {
                (Stamp { boot: BootId(boot), monotonic_ns: mono >> 1, wall }, is_corrected)
            },
        )
    }

    proptest! {
        #[test]
        fn whoever_receives_an_entry_in_any_form_makes_the_same_line_of_it(
            made in proptest::collection::vec((body(), stamp(), 1u64..4), 1..40), batch in 1usize..10, form in 0usize..4
        ) {
            let mut seq = 0;
            let mut entries: Vec<Stored> = made.into_iter().map(|(body, (stamp, is_corrected), step)| {
                seq += step;
                Stored { seq: Seq(seq), stamp, is_corrected, body }
            }).collect();
            let state = tempfile::TempDir::new().unwrap();
            let key = Key::load_or_make(state.path()).unwrap();
            let mut draft = Draft::new(1);
            for entry in &entries {
                let (line, kind) = canonical(entry, &mut String::new());
                draft.add(entry.seq.0, &line, kind);
            }
            let origin = Origin { gateway: "barn".into(), epoch: 42 };
            let header =
                Header { gateway: "barn", epoch: "0000000000002a", number: 1, previous: None, key: key.public() };
            let signed = Signed::new(&draft.finish(header, Vec::new()), &key);
            let (stamp, is_corrected) = (entries[0].stamp, false);
            entries.push(Stored { seq: Seq(seq + 1), stamp, is_corrected, body: Body::Manifest { text: signed.to_json() } });

            let (encoding, compression) = [
                (Encoding::SenmlJson, Compression::None),
                (Encoding::SenmlJson, Compression::Zstd),
                (Encoding::SenmlCbor, Compression::None),
                (Encoding::SenmlCbor, Compression::Zstd),
            ][form];
            let packing = Packing { batch, encoding, compression };
            let mut stored = Vec::new();
            for chunk in entries.chunks(batch) {
                let parcel = Parcel::new(&origin, Lane::Live, packing, chunk).unwrap();
                if form == 0 {
                    stored.extend_from_slice(&parcel.body);
                } else {
                    let body = base64::engine::general_purpose::STANDARD.encode(&parcel.body);
                    let line = serde_json::json!({
                        "content_type": parcel.content_type, "content_encoding": parcel.content_encoding, "body_base64": body,
                    });
                    stored.extend_from_slice(line.to_string().as_bytes());
                }
                stored.push(b'\n');
            }
            let (mut book, mut tally) = (Book::default(), Tally::default());
            read("test", &mut &*stored, &mut book, &mut tally).unwrap();
            prop_assert_eq!((tally.unreadable, tally.foreign), (0, 0), "{:?}", tally.mistakes);
            let found = &book.findings(Some(key.public()))[0];
            prop_assert_eq!(found.entries, entries.len() as u64);
            prop_assert!(found.verdict() <= Verdict::Losses, "{:?}", found);
        }
    }
}
