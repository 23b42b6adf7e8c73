//! Records as they are written, records as they are once resolved, and the rules between (RFC 8428 §4).

use crate::MAX_RECORDS;

/// One record on its way out. Borrowed: writing allocates nothing but the output.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Record<'a> {
    /// `bn`: put in front of the names of this and all later records.
    pub base_name: Option<&'a str>,
    /// `bt`: seconds added to the times of this and all later records.
    pub base_time: Option<f64>,
    /// `n`: the name behind the base name.
    pub name: Option<&'a str>,
    /// `u`: a unit of the registry.
    pub unit: Option<&'a str>,
    /// `v`, `vs` or `vb`.
    pub value: Option<Value<'a>>,
    /// `t`: seconds since 1970 from 2²⁸ on; below that, relative to now (RFC 8428 §4.5.3).
    pub time: Option<f64>,
    /// Fields of our own behind the standard ones; a receiver that does not know them ignores them (§4.4).
    pub extensions: &'a [(&'a str, Extension<'a>)],
}

/// A value: number, text or truth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// `v`: finite; what is not finite is left out when written.
    Number(f64),
    /// `v` as a whole number, written without a point.
    Integer(i64),
    /// `vs`.
    Text(&'a str),
    /// `vb`.
    Boolean(bool),
}

/// The value of a field of our own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Extension<'a> {
    /// A whole number.
    Integer(i64),
    /// A number; what is not finite is written as 0.
    Number(f64),
    /// Text.
    Text(&'a str),
    /// A truth.
    Boolean(bool),
}

/// One record on its way in, resolved: nothing of it depends on its neighbours any more (§4.6).
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// Base name and name together.
    pub name: String,
    /// The record's unit, else the pack's base unit.
    pub unit: Option<String>,
    /// The value, base value added.
    pub value: Option<OwnedValue>,
    /// Base time and time together, in seconds; 0 means "now".
    pub time: f64,
}

/// A parsed value.
#[derive(Debug, Clone, PartialEq)]
pub enum OwnedValue {
    /// `v`.
    Number(f64),
    /// `vs`.
    Text(String),
    /// `vd`: bytes.
    Data(Vec<u8>),
    /// `vb`.
    Boolean(bool),
}

/// Why a pack was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not JSON or CBOR, or cut short.
    #[error("malformed pack: {0}")]
    Malformed(String),
    /// Well-formed, but a field holds what the RFC forbids.
    #[error("record {record}: {what}")]
    Invalid {
        /// The record's place in the pack, from 0.
        record: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// More than [`MAX_RECORDS`] records.
    #[error("more than {MAX_RECORDS} records")]
    TooMany,
    /// A version newer than 10 (`bver`, RFC 8428 §4.4).
    #[error("version {0} is not known")]
    Version(i64),
}

/// The fields of one record as they came, before resolution.
#[derive(Debug, Default)]
pub(crate) struct Raw {
    pub(crate) base_name: Option<String>,
    pub(crate) base_time: Option<f64>,
    pub(crate) base_unit: Option<String>,
    pub(crate) base_value: Option<f64>,
    pub(crate) version: Option<i64>,
    pub(crate) name: Option<String>,
    pub(crate) unit: Option<String>,
    pub(crate) value: Option<OwnedValue>,
    pub(crate) has_sum: bool,
    pub(crate) time: Option<f64>,
}

/// Carries the base fields from record to record.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    name: String,
    time: f64,
    unit: Option<String>,
    value: f64,
    records: Vec<Resolved>,
}

impl Resolver {
    /// Names without a base name stand below `base`.
    pub(crate) fn below(base: &str) -> Self {
        Self { name: base.to_owned(), ..Self::default() }
    }

    pub(crate) fn push(&mut self, raw: Raw) -> Result<(), ParseError> {
        let record = self.records.len();
        if record == MAX_RECORDS {
            return Err(ParseError::TooMany);
        }
        if let Some(version) = raw.version.filter(|v| *v > VERSION) {
            return Err(ParseError::Version(version));
        }
        if let Some(name) = raw.base_name {
            self.name = name;
        }
        if let Some(time) = raw.base_time {
            self.time = time;
        }
        if let Some(unit) = raw.base_unit {
            self.unit = Some(unit);
        }
        if let Some(value) = raw.base_value {
            self.value = value;
        }
        let name = self.name.clone() + raw.name.as_deref().unwrap_or("");
        if !is_valid_name(&name) {
            return Err(ParseError::Invalid {
                record,
                what: "the name is empty or holds a character that §4.5.1 forbids",
            });
        }
        if raw.value.is_none() && !raw.has_sum && self.value == 0.0 {
            return Err(ParseError::Invalid { record, what: "neither a value nor a sum" });
        }
        let value = match raw.value {
            Some(OwnedValue::Number(number)) => Some(OwnedValue::Number(number + self.value)),
            None if self.value != 0.0 => Some(OwnedValue::Number(self.value)),
            other => other,
        };
        let time = self.time + raw.time.unwrap_or(0.0);
        self.records.push(Resolved { name, unit: raw.unit.or_else(|| self.unit.clone()), value, time });
        Ok(())
    }

    pub(crate) fn finish(self) -> Vec<Resolved> {
        self.records
    }
}

/// Whether a complete name obeys RFC 8428 §4.5.1: it begins with a letter or digit, then also `- : . / _`.
pub fn is_valid_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b':' | b'.' | b'/' | b'_'))
}

const VERSION: i64 = 10;
