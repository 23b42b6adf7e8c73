//! What stands in the log: [`Entry`] on the way in, [`Stored`] on the way out, and how a row holds it.

use std::sync::Arc;

use drivers::{Quality, Value};
use rusqlite::types::{ToSqlOutput, Value as Sql, ValueRef};
use serde::{Deserialize, Serialize};

use super::Seq;
use crate::clock::{BootId, Stamp, Wall, WallQuality};
use crate::reading::Reading;

/// Something to be kept.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A reading of one of our channels.
    Reading(Reading),
    /// What a LAN client published under a forwarded topic.
    Message {
        /// The topic it was published to.
        topic: Arc<str>,
        /// Its payload as it came.
        payload: bytes::Bytes,
        /// When it came in.
        stamp: Stamp,
    },
    /// How a command went, as JSON.
    Outcome {
        /// `device/channel`.
        channel: Arc<str>,
        /// The outcome's JSON form.
        json: Arc<str>,
        /// When it was known.
        stamp: Stamp,
    },
    /// A loss.
    Gap {
        /// What was lost and why.
        gap: Gap,
        /// When it was noticed.
        stamp: Stamp,
    },
    /// Something that people have to hear of, or its end.
    Alarm {
        /// What tells it from other alarms.
        name: Arc<str>,
        /// Whether it begins or is over.
        is_raised: bool,
        /// What is wrong, for people.
        text: Arc<str>,
        /// When it was noticed.
        stamp: Stamp,
    },
    /// What was learnt of the clock: corrects the times of what has left already.
    Clock {
        /// The boot and what has to be added to its monotonic time.
        record: ClockRecord,
        /// When it was learnt.
        stamp: Stamp,
    },
    /// What the gateway vouches for, signed.
    Manifest {
        /// Its JSON form.
        text: Arc<str>,
        /// When it was made.
        stamp: Stamp,
    },
}

/// What an entry is to the ways out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Readings and LAN clients' messages.
    Telemetry,
    /// What may not wait for telemetry and is never displaced by it: alarms, outcomes, losses, clock records,
    /// manifests.
    Alarm,
}

/// An entry with its place.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its place in the log.
    pub seq: Seq,
    /// When it was measured or came in.
    pub stamp: Stamp,
    /// Whether its wall time is not what the clock said then but what was learnt later.
    pub is_corrected: bool,
    /// What it is.
    pub body: Body,
}

/// The content of a stored entry.
#[derive(Debug, Clone)]
pub enum Body {
    /// A reading; its channel may be gone from the configuration.
    Reading {
        /// Name and unit at the time of writing.
        channel: Arc<StoredChannel>,
        /// The value, if there was one.
        value: Option<Value>,
        /// Its quality.
        quality: Quality,
    },
    /// A LAN client's message.
    Message {
        /// The topic.
        topic: String,
        /// The payload.
        payload: Vec<u8>,
    },
    /// A command's outcome.
    Outcome {
        /// `device/channel`.
        channel: Arc<StoredChannel>,
        /// Its JSON form.
        json: String,
    },
    /// A loss.
    Gap(Gap),
    /// An alarm or its end.
    Alarm {
        /// What tells it from other alarms.
        name: String,
        /// Whether it begins or is over.
        is_raised: bool,
        /// What is wrong, for people.
        text: String,
    },
    /// What was learnt of the clock.
    Clock {
        /// The boot and what has to be added to its monotonic time.
        record: ClockRecord,
    },
    /// What the gateway vouches for, signed.
    Manifest {
        /// Its JSON form.
        text: String,
    },
    /// What is left of a minute of readings that had to make room.
    Aggregate {
        /// Name and unit at the time of writing.
        channel: Arc<StoredChannel>,
        /// The smallest value.
        min: f64,
        /// Their mean.
        mean: f64,
        /// The largest.
        max: f64,
        /// How many there were.
        n: u64,
    },
}

/// What is known of one boot's clock: wall time is monotonic time plus the offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockRecord {
    /// Whose monotonic time.
    #[serde(with = "boot_text")]
    pub boot: BootId,
    /// Wall time minus monotonic time, in nanoseconds.
    pub offset_ns: i64,
    /// How far off that may be, either way.
    pub error_ns: Option<u64>,
    /// Where the time came from.
    #[serde(with = "quality_text")]
    pub quality: WallQuality,
}

/// A channel as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChannel {
    /// `device/channel`.
    pub name: String,
    /// SenML unit, empty for none.
    pub unit: String,
}

/// A loss: the far side never has to guess.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The first place that is lost, where places were given.
    pub from_seq: Option<u64>,
    /// The last place that is lost.
    pub to_seq: Option<u64>,
    /// How many entries, where it is known.
    pub count: Option<u64>,
    /// Why.
    pub reason: GapReason,
}

/// Why entries were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GapReason {
    /// The size limit was reached while an uplink was away: the oldest made room.
    Quota,
    /// The disk is full: readings could not be written.
    DiskFull,
    /// More came in than could be written.
    Overload,
    /// The database was damaged and set aside.
    Damage,
    /// The size limit came near while an uplink was away: minute means took the readings' place.
    Thinned,
    /// Somebody gave up what waited for an uplink.
    DroppedByHand,
}

impl GapReason {
    /// The word used on the wire and the page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::DiskFull => "disk-full",
            Self::Overload => "overload",
            Self::Damage => "damage",
            Self::Thinned => "thinned",
            Self::DroppedByHand => "dropped-by-hand",
        }
    }
}

/// The columns of a row but for its key.
pub(super) struct Row<'a> {
    pub(super) kind: i64,
    pub(super) channel: i64,
    pub(super) quality: i64,
    pub(super) value: ToSqlOutput<'a>,
}

impl Entry {
    /// Which lanes it takes.
    pub fn class(&self) -> Class {
        match self {
            Self::Reading(_) | Self::Message { .. } => Class::Telemetry,
            Self::Outcome { .. }
            | Self::Gap { .. }
            | Self::Alarm { .. }
            | Self::Clock { .. }
            | Self::Manifest { .. } => Class::Alarm,
        }
    }

    pub(super) fn stamp(&self) -> &Stamp {
        match self {
            Self::Reading(reading) => &reading.stamp,
            Self::Message { stamp, .. }
            | Self::Outcome { stamp, .. }
            | Self::Gap { stamp, .. }
            | Self::Alarm { stamp, .. }
            | Self::Clock { stamp, .. }
            | Self::Manifest { stamp, .. } => stamp,
        }
    }

    /// The channel to look up or make, with its unit.
    pub(super) fn channel(&self) -> Option<(&str, &str)> {
        match self {
            Self::Reading(reading) => Some((reading.channel.id.as_str(), &reading.channel.spec.unit)),
            Self::Outcome { channel, .. } => Some((channel, "")),
            Self::Message { .. }
            | Self::Gap { .. }
            | Self::Alarm { .. }
            | Self::Clock { .. }
            | Self::Manifest { .. } => None,
        }
    }

    /// About how many bytes the row takes.
    pub(super) fn weight(&self) -> u64 {
        let content = match self {
            Self::Reading(reading) => match &reading.value {
                Some(Value::Text(text)) => text.len(),
                _ => 8,
            },
            Self::Message { topic, payload, .. } => topic.len() + payload.len(),
            Self::Outcome { json, .. } => json.len(),
            Self::Gap { .. } => 64,
            Self::Alarm { name, text, .. } => name.len() + text.len(),
            Self::Clock { .. } => 128,
            Self::Manifest { text, .. } => text.len(),
        };
        ROW_OVERHEAD + content as u64
    }

    pub(super) fn row(&self, channel: i64) -> Row<'_> {
        let text = |text: &'_ str| ToSqlOutput::Owned(Sql::Text(text.to_owned()));
        let (kind, quality, value) = match self {
            Self::Reading(reading) => {
                let (kind, value) = match &reading.value {
                    Some(Value::Number(number)) => (NUMBER, ToSqlOutput::Owned(Sql::Real(*number))),
                    Some(Value::Integer(number)) => (INTEGER, ToSqlOutput::Owned(Sql::Integer(*number))),
                    Some(Value::Boolean(truth)) => {
                        (BOOLEAN, ToSqlOutput::Owned(Sql::Integer(i64::from(*truth))))
                    }
                    Some(Value::Text(words)) => {
                        (TEXT, ToSqlOutput::Borrowed(ValueRef::Text(words.as_bytes())))
                    }
                    None => (NO_VALUE, ToSqlOutput::Owned(Sql::Null)),
                };
                (kind, i64::from(reading.quality.to_code()), value)
            }
            Self::Message { topic, payload, .. } => (MESSAGE, 0, named(topic, payload)),
            Self::Alarm { name, is_raised, text, .. } => {
                (ALARM, i64::from(*is_raised), named(name, text.as_bytes()))
            }
            Self::Clock { record, .. } => {
                (CLOCK, 0, text(&serde_json::to_string(record).unwrap_or_default()))
            }
            Self::Manifest { text, .. } => {
                (MANIFEST, 0, ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())))
            }
            Self::Outcome { json, .. } => (OUTCOME, 0, text(json)),
            Self::Gap { gap, .. } => (GAP, 0, text(&serde_json::to_string(gap).unwrap_or_default())),
        };
        Row { kind, channel, quality, value }
    }
}

/// A row as it was read; `None` for one that a newer version wrote or damage changed.
pub(super) fn body(
    kind: i64,
    channel: Arc<StoredChannel>,
    quality: i64,
    value: ValueRef<'_>,
) -> Option<Body> {
    let reading = |value| {
        let quality = Quality::from_code(u8::try_from(quality).ok()?)?;
        Some(Body::Reading { channel: channel.clone(), value, quality })
    };
    match (kind, value) {
        (NUMBER, ValueRef::Real(number)) => reading(Some(Value::Number(number))),
        // SQLite keeps a NaN as NULL.
        (NUMBER | NO_VALUE, _) => reading(None),
        (INTEGER, ValueRef::Integer(number)) => reading(Some(Value::Integer(number))),
        (BOOLEAN, ValueRef::Integer(number)) => reading(Some(Value::Boolean(number != 0))),
        (TEXT, ValueRef::Text(words)) => reading(Some(Value::Text(String::from_utf8_lossy(words).into()))),
        (MESSAGE, ValueRef::Blob(blob)) => {
            let (topic, payload) = split_name(blob)?;
            Some(Body::Message { topic, payload: payload.to_vec() })
        }
        (ALARM, ValueRef::Blob(blob)) => {
            let (name, text) = split_name(blob)?;
            let text = String::from_utf8_lossy(text).into_owned();
            Some(Body::Alarm { name, is_raised: quality != 0, text })
        }
        (CLOCK, ValueRef::Text(json)) => {
            serde_json::from_slice(json).ok().map(|record| Body::Clock { record })
        }
        (MANIFEST, ValueRef::Text(text)) => {
            Some(Body::Manifest { text: String::from_utf8_lossy(text).into_owned() })
        }
        (AGGREGATE, ValueRef::Blob(blob)) => {
            let Aggregate { min, sum, max, n } = Aggregate::parse(blob)?;
            Some(Body::Aggregate { channel, min, mean: sum / n.max(1) as f64, max, n })
        }
        (OUTCOME, ValueRef::Text(json)) => {
            Some(Body::Outcome { channel, json: String::from_utf8_lossy(json).into_owned() })
        }
        (GAP, ValueRef::Text(json)) => serde_json::from_slice(json).ok().map(Body::Gap),
        _ => None,
    }
}

/// Wall time and quality as two columns: nanoseconds and a small number; 0 stands for unknown.
pub(super) fn wall_columns(stamp: &Stamp) -> (i64, i64) {
    stamp.wall.map_or((0, 0), |wall| (wall.unix_ns, wall.quality as i64 + 1))
}

pub(super) fn stamp(boot: BootId, monotonic_ns: i64, unix_ns: i64, quality: i64) -> Stamp {
    let wall = (quality > 0).then(|| Wall { unix_ns, error_ns: None, quality: quality_of(quality) });
    Stamp { boot, monotonic_ns: monotonic_ns as u64, wall }
}

/// A name and what follows it, as one value.
fn named<'a>(name: &str, rest: &[u8]) -> ToSqlOutput<'a> {
    // A topic is at most 65,535 bytes (MQTT 5.0 §1.5.4); no other name is longer.
    let name = &name.as_bytes()[..name.len().min(usize::from(u16::MAX))];
    let mut blob = Vec::with_capacity(2 + name.len() + rest.len());
    blob.extend_from_slice(&(name.len() as u16).to_be_bytes());
    blob.extend_from_slice(name);
    blob.extend_from_slice(rest);
    ToSqlOutput::Owned(Sql::Blob(blob))
}

fn split_name(blob: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = blob.split_first_chunk::<2>()?;
    let (name, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some((String::from_utf8(name.to_vec()).ok()?, rest))
}

/// Several values of one channel, summed up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Aggregate {
    pub(super) min: f64,
    pub(super) sum: f64,
    pub(super) max: f64,
    pub(super) n: u64,
}

impl Aggregate {
    pub(super) fn of(value: f64) -> Self {
        Self { min: value, sum: value, max: value, n: 1 }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.min = self.min.min(other.min);
        self.sum += other.sum;
        self.max = self.max.max(other.max);
        self.n += other.n;
    }

    /// What a row of kind aggregate holds: four big-endian words.
    pub(super) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let words = [self.min.to_bits(), self.sum.to_bits(), self.max.to_bits(), self.n];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<8>();
        let [min, sum, max, n] = <[[u8; 8]; 4]>::try_from(words).ok()?.map(u64::from_be_bytes);
        let aggregate =
            Self { min: f64::from_bits(min), sum: f64::from_bits(sum), max: f64::from_bits(max), n };
        (rest.is_empty() && n > 0 && aggregate.sum.is_finite()).then_some(aggregate)
    }
}

/// [`BootId`] as text.
mod boot_text {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::BootId;

    pub fn serialize<S: Serializer>(boot: &BootId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(boot)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BootId, D::Error> {
        BootId::parse(&String::deserialize(deserializer)?).ok_or_else(|| de::Error::custom("not a boot id"))
    }
}

/// [`WallQuality`] as its word.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands fields over by reference")]
mod quality_text {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::WallQuality;

    pub fn serialize<S: Serializer>(quality: &WallQuality, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(quality.as_str())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<WallQuality, D::Error> {
        let word = String::deserialize(deserializer)?;
        (0..=4)
            .map(WallQuality::from_u8)
            .find(|quality| quality.as_str() == word)
            .ok_or_else(|| de::Error::custom("not a clock's quality"))
    }
}

/// A row's clock column as a quality; 0 stands for unknown.
pub(super) fn quality_of(clock: i64) -> WallQuality {
    WallQuality::from_u8(u8::try_from(clock - 1).unwrap_or_default())
}

/// Whether a row's clock column says less than that the clock was synchronised.
pub(super) fn is_unsynchronised(clock: i64) -> bool {
    clock <= WallQuality::Ntp as i64
}

/// What a row of one of [`SUMMED_KINDS`] adds to a summary.
pub(super) fn summed(value: ValueRef<'_>) -> Option<Aggregate> {
    let value = match value {
        ValueRef::Real(number) => number,
        ValueRef::Integer(number) => number as f64,
        ValueRef::Blob(blob) => return Aggregate::parse(blob),
        _ => return None,
    };
    value.is_finite().then(|| Aggregate::of(value))
}

/// Kinds whose value is a number that history can average.
pub(super) const NUMERIC_KINDS: &str = "1, 2, 3";
/// The same, and summaries of such rows.
pub(super) const SUMMED_KINDS: &str = "1, 2, 3, 6";
/// Kinds that the class alarm is made of.
pub(super) const ALARM_KINDS: &str = "9, 10, 11, 12, 13";

const NUMBER: i64 = 1;
const INTEGER: i64 = 2;
const BOOLEAN: i64 = 3;
const TEXT: i64 = 4;
const NO_VALUE: i64 = 5;
pub(super) const AGGREGATE: i64 = 6;
const MESSAGE: i64 = 8;
pub(super) const OUTCOME: i64 = 9;
pub(super) const GAP: i64 = 10;
const ALARM: i64 = 11;
const CLOCK: i64 = 12;
const MANIFEST: i64 = 13;

/// Key, stamps, codes and SQLite's own header of a row.
pub(super) const ROW_OVERHEAD: u64 = 36;
