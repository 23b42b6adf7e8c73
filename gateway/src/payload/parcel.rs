//! What an uplink sends as one message: an entry, or several as one SenML pack, with the identity of each.
//!
//! The first record of a pack carries `gw`, `epoch`, `seq` and `boot`; a further one `seq` only when it is not the one
//! before plus one, and `boot` only when it changes. Times are whole milliseconds. Where wall time is not the best,
//! `clock` says what it is and `mono` (milliseconds of the boot's monotonic clock) lets a later clock record correct
//! it; `corrected` marks a time that was attached afterwards.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use senml::{Extension, Record};
use serde::Deserialize;

use super::{ROOT, quality_name, quality_text, senml_value};
use crate::clock::{BootId, Stamp, WallQuality};
use crate::spool::{Body, Seq, Stored};
use crate::uplink::forwarder::Lane;

/// Whose entries they are: together with an entry's `Seq` its identity, everywhere and for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The gateway's name.
    pub gateway: String,
    /// The random number made with its store.
    pub epoch: u64,
}

/// How entries become messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// Entries per message at the most; 1 gives each its own topic.
    pub batch: usize,
    /// How a pack is written.
    pub encoding: Encoding,
    /// How it is made smaller.
    pub compression: Compression,
}

/// `encoding =`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// RFC 8428 §5.
    #[default]
    SenmlJson,
    /// RFC 8428 §6.
    SenmlCbor,
}

/// `compression =`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// As it is.
    #[default]
    None,
    /// One Zstandard frame (RFC 8878).
    Zstd,
}

/// Which entries a parcel holds: a lane's, from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParcelKey {
    /// Whose order it keeps.
    pub lane: Lane,
    /// Its first entry.
    pub first: Seq,
    /// Its last entry.
    pub last: Seq,
}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub struct Parcel {
    /// What to confirm it with.
    pub key: ParcelKey,
    /// `<gateway>/<epoch>/<seq>`, of several entries `<gateway>/<epoch>/<first>-<last>`.
    pub id: String,
    /// Levels divided by `/`, without wildcards.
    pub topic: String,
    /// The pack.
    pub body: Bytes,
    /// The pack's media type.
    pub content_type: &'static str,
    /// `zstd`, if it is compressed.
    pub content_encoding: Option<&'static str>,
    /// How many entries it holds.
    pub entries: usize,
    /// When the first entry was measured.
    pub stamp: Stamp,
    /// `device/channel`, where it is a single reading.
    pub channel: Option<String>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:014x}", self.gateway, self.epoch)
    }
}

impl Parcel {
    /// Packs `entries`, which are in order; `None` for none.
    pub fn new(origin: &Origin, lane: Lane, packing: Packing, entries: &[Stored]) -> Option<Self> {
        let (first, last) = (entries.first()?, entries.last()?);
        let body = pack(origin, lane, packing.encoding, entries);
        let (body, content_encoding) = match packing.compression {
            Compression::None => (body, None),
            // Into memory it cannot fail; if it did, the plain pack is as good.
            Compression::Zstd => match zstd::bulk::compress(&body, ZSTD_LEVEL) {
                Ok(small) => (small, Some("zstd")),
                Err(_) => (body, None),
            },
        };
        let is_batch = packing.batch > 1;
        let id = if is_batch {
            format!("{origin}/{}-{}", first.seq, last.seq)
        } else {
            format!("{origin}/{}", first.seq)
        };
        let base = format!("{ROOT}/{}/", origin.gateway);
        let topic = match &first.body {
            _ if is_batch => format!("{base}$batch/{}", lane.as_str()),
            Body::Message { topic, .. } => topic.clone(),
            body => base + &name(body),
        };
        let channel = match &first.body {
            Body::Reading { channel, .. } | Body::Aggregate { channel, .. } if !is_batch => {
                Some(channel.name.clone())
            }
            _ => None,
        };
        Some(Self {
            key: ParcelKey { lane, first: first.seq, last: last.seq },
            id,
            topic,
            body: body.into(),
            content_type: match packing.encoding {
                Encoding::SenmlJson => senml::MEDIA_TYPE_JSON,
                Encoding::SenmlCbor => senml::MEDIA_TYPE_CBOR,
            },
            content_encoding,
            entries: entries.len(),
            stamp: first.stamp,
            channel,
        })
    }

    /// About how many bytes it takes on a wire: body, names, and what protocols and TLS put around them.
    pub fn weight(&self) -> u64 {
        (self.body.len() + self.topic.len() + self.id.len()) as u64 + ENVELOPE
    }
}

/// An entry's name below `tidegate/<gateway>/`.
pub fn name(body: &Body) -> Cow<'_, str> {
    match body {
        Body::Reading { channel, .. } | Body::Aggregate { channel, .. } => channel.name.as_str().into(),
        Body::Message { .. } => "message".into(),
        Body::Outcome { channel, .. } => format!("{}/set/result", channel.name).into(),
        Body::Gap(_) => "gap".into(),
        Body::Alarm { .. } => "alarm".into(),
        Body::Clock { .. } => "clock".into(),
        Body::Manifest { .. } => "manifest".into(),
    }
}

/// Milliseconds since 1970, if wall time is known at all.
pub fn milliseconds(stamp: &Stamp) -> Option<i64> {
    let wall = stamp.wall.filter(|wall| wall.quality > WallQuality::None)?;
    Some(wall.unix_ns.div_euclid(1_000_000))
}

fn pack(origin: &Origin, lane: Lane, encoding: Encoding, entries: &[Stored]) -> Vec<u8> {
    let base = format!("{ROOT}/{}/", origin.gateway);
    let epoch = format!("{:014x}", origin.epoch);
    // A base time would become the time of those that have none (RFC 8428 §4.5.3).
    let is_timed = entries.len() > 1 && entries.iter().all(|entry| milliseconds(&entry.stamp).is_some());
    let base_ms = if is_timed { milliseconds(&entries[0].stamp).unwrap_or_default() } else { 0 };
    let texts: Vec<Texts> = entries.iter().map(Texts::new).collect();
    let mut boot = BootId(0);
    let mut expected = None;
    let mut extensions: Vec<Vec<(&str, Extension<'_>)>> = Vec::with_capacity(entries.len());
    for (entry, texts) in entries.iter().zip(&texts) {
        let mut fields = Vec::with_capacity(4);
        let is_first = expected.is_none();
        if is_first {
            fields.extend([("gw", Extension::Text(&origin.gateway)), ("epoch", Extension::Text(&epoch))]);
        }
        if expected != Some(entry.seq) {
            fields.push(("seq", Extension::Integer(entry.seq.0 as i64)));
        }
        expected = Some(entry.seq.next());
        if is_first || entry.stamp.boot != boot {
            boot = entry.stamp.boot;
            fields.push(("boot", Extension::Text(&texts.boot)));
        }
        if is_first && lane != Lane::Live {
            fields.push(("lane", Extension::Text(lane.as_str())));
        }
        describe(entry, texts, &mut fields);
        extensions.push(fields);
    }
    let records: Vec<Record<'_>> = entries
        .iter()
        .enumerate()
        .map(|(index, entry)| {
            let texts = &texts[index];
            let (unit, value) = value(&entry.body, texts);
            let time = milliseconds(&entry.stamp).map(|ms| (ms - base_ms) as f64 / 1e3);
            Record {
                base_name: (index == 0).then_some(&*base),
                base_time: (index == 0 && is_timed).then_some(base_ms as f64 / 1e3),
                name: Some(&texts.name),
                unit,
                value: Some(value),
                time: time.filter(|time| !is_timed || *time != 0.0),
                extensions: &extensions[index],
            }
        })
        .collect();
    let mut out = Vec::with_capacity(64 + 64 * entries.len());
    match encoding {
        Encoding::SenmlJson => senml::write_json(&records, &mut out),
        Encoding::SenmlCbor => senml::write_cbor_compact(&records, &mut out),
    }
    out
}

/// What has to be made as text for an entry, and lives as long as its record.
struct Texts {
    name: String,
    boot: String,
    /// The value's text, where it is not in the entry itself.
    value: String,
    quality: String,
}

impl Texts {
    fn new(entry: &Stored) -> Self {
        let mut name = name(&entry.body).into_owned();
        let mut quality = String::new();
        let value = match &entry.body {
            Body::Reading { value, quality: worth, .. } => {
                name = quality_name(&name, value.is_none()).into_owned();
                quality = quality_text(*worth);
                String::new()
            }
            Body::Message { payload, .. } if std::str::from_utf8(payload).is_err() => {
                URL_SAFE_NO_PAD.encode(payload)
            }
            _ => String::new(),
        };
        Self { name, boot: entry.stamp.boot.to_string(), value, quality }
    }
}

/// The fields of our own behind a record's standard ones.
fn describe<'a>(entry: &'a Stored, texts: &'a Texts, fields: &mut Vec<(&'a str, Extension<'a>)>) {
    let clock = entry.stamp.wall.map_or(WallQuality::None, |wall| wall.quality);
    if clock < WallQuality::Ntp {
        fields.push(("clock", Extension::Text(clock.as_str())));
        fields.push(("mono", Extension::Integer((entry.stamp.monotonic_ns / 1_000_000) as i64)));
    }
    if entry.is_corrected {
        fields.push(("corrected", Extension::Boolean(true)));
    }
    match &entry.body {
        Body::Reading { quality, .. } if !quality.is_good() => {
            fields.push(("quality", Extension::Text(&texts.quality)));
        }
        Body::Message { topic, payload } => {
            let encoding = if std::str::from_utf8(payload).is_ok() { "text" } else { "base64url" };
            fields.extend([("topic", Extension::Text(topic)), ("encoding", Extension::Text(encoding))]);
        }
        Body::Gap(gap) => {
            let numbers = [("from", gap.from_seq), ("to", gap.to_seq), ("count", gap.count)];
            fields
                .extend(numbers.iter().filter_map(|(key, n)| Some((*key, Extension::Integer((*n)? as i64)))));
        }
        Body::Aggregate { min, max, n, .. } => fields.extend([
            ("min", Extension::Number(*min)),
            ("max", Extension::Number(*max)),
            ("count", Extension::Integer(*n as i64)),
        ]),
        Body::Alarm { name, is_raised, .. } => {
            fields.extend([("alarm", Extension::Text(name)), ("raised", Extension::Boolean(*is_raised))]);
        }
        Body::Clock { record } => {
            // Milliseconds like the times: `mono` + `offset` is the wall time of an entry of that boot.
            fields.push(("offset", Extension::Integer(record.offset_ns.div_euclid(1_000_000))));
            if let Some(error_ns) = record.error_ns {
                fields.push(("error", Extension::Integer((error_ns / 1_000_000) as i64)));
            }
        }
        _ => {}
    }
}

/// Unit and value; the unit only where there is one.
fn value<'a>(body: &'a Body, texts: &'a Texts) -> (Option<&'a str>, senml::Value<'a>) {
    let unit_of = |unit: &'a String| Some(&**unit).filter(|unit| !unit.is_empty());
    match body {
        Body::Reading { channel, value, .. } => {
            (unit_of(&channel.unit), value.as_ref().map_or(senml::Value::Text(&texts.quality), senml_value))
        }
        Body::Aggregate { channel, mean, .. } => (unit_of(&channel.unit), senml::Value::Number(*mean)),
        Body::Message { payload, .. } => {
            (None, senml::Value::Text(std::str::from_utf8(payload).unwrap_or(&texts.value)))
        }
        Body::Outcome { json, .. } => (None, senml::Value::Text(json)),
        Body::Gap(gap) => (None, senml::Value::Text(gap.reason.as_str())),
        Body::Alarm { text, .. } | Body::Manifest { text } => (None, senml::Value::Text(text)),
        Body::Clock { record } => (None, senml::Value::Text(record.quality.as_str())),
    }
}

/// zstd's own default: above it a Pi spends more time than it saves bytes.
const ZSTD_LEVEL: i32 = 3;
/// Headers of MQTT or AMQP, a TLS record, TCP and IP, both ways, shared with neighbours in the same segment.
const ENVELOPE: u64 = 60;
