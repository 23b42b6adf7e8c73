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
}

/// An entry with its place.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its place in the log.
    pub seq: Seq,
    /// When it was measured or came in.
    pub stamp: Stamp,
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
}

impl GapReason {
    /// The word used on the wire and the page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::DiskFull => "disk-full",
            Self::Overload => "overload",
            Self::Damage => "damage",
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
    pub(super) fn stamp(&self) -> &Stamp {
        match self {
            Self::Reading(reading) => &reading.stamp,
            Self::Message { stamp, .. } | Self::Outcome { stamp, .. } | Self::Gap { stamp, .. } => stamp,
        }
    }

    /// The channel to look up or make, with its unit.
    pub(super) fn channel(&self) -> Option<(&str, &str)> {
        match self {
            Self::Reading(reading) => Some((reading.channel.id.as_str(), &reading.channel.spec.unit)),
            Self::Outcome { channel, .. } => Some((channel, "")),
            Self::Message { .. } | Self::Gap { .. } => None,
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
            Self::Message { topic, payload, .. } => {
                let mut blob = Vec::with_capacity(2 + topic.len() + payload.len());
                // A topic is at most 65,535 bytes (MQTT 5.0 §1.5.4).
                blob.extend_from_slice(&(topic.len() as u16).to_be_bytes());
                blob.extend_from_slice(topic.as_bytes());
                blob.extend_from_slice(payload);
                (MESSAGE, 0, ToSqlOutput::Owned(Sql::Blob(blob)))
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
            let (length, rest) = blob.split_at_checked(2)?;
            let (topic, payload) =
                rest.split_at_checked(usize::from(u16::from_be_bytes([length[0], length[1]])))?;
            Some(Body::Message { topic: String::from_utf8(topic.to_vec()).ok()?, payload: payload.to_vec() })
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
    let wall = (quality > 0).then(|| Wall {
        unix_ns,
        quality: WallQuality::from_u8(u8::try_from(quality - 1).unwrap_or_default()),
    });
    Stamp { boot, monotonic_ns: monotonic_ns as u64, wall }
}

/// Kinds whose value is a number that history can average.
pub(super) const NUMERIC_KINDS: &str = "1, 2, 3";

const NUMBER: i64 = 1;
const INTEGER: i64 = 2;
const BOOLEAN: i64 = 3;
const TEXT: i64 = 4;
const NO_VALUE: i64 = 5;
const MESSAGE: i64 = 8;
const OUTCOME: i64 = 9;
const GAP: i64 = 10;

/// Key, stamps, codes and SQLite's own header of a row.
const ROW_OVERHEAD: u64 = 36;
