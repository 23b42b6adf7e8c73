//! How a device's settings are read: TOML tables with their places in the file, so that an error can point.

use std::ops::Range;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::DeTable;

/// What is wrong with a device's settings, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SettingsError {
    /// Bytes of the configuration file that are to blame, where that is known.
    pub span: Option<Range<usize>>,
    /// What is wrong and what was expected.
    pub message: String,
}

impl SettingsError {
    /// An error of the bytes `span`.
    pub fn at(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { span: Some(span), message: message.into() }
    }
}

/// Reads a device's own keys; unknown ones are an error when `T` says `deny_unknown_fields`.
pub fn parse_settings<T: DeserializeOwned>(table: Spanned<DeTable<'_>>) -> Result<T, SettingsError> {
    let whole = table.span();
    T::deserialize(toml::de::Deserializer::from(table)).map_err(|error| SettingsError {
        span: error.span().or(Some(whole)),
        message: error.message().trim().to_owned(),
    })
}

/// A length of time as a person writes it: `"20ms"`, `"5s"`, `"1.5m"`, `"2h"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Period(pub Duration);

impl TryFrom<String> for Period {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let error = || format!("`{text}` is no length of time: write `20ms`, `5s`, `1m` or `2h`");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: f64 = digits.trim().parse().map_err(|_| error())?;
        let unit_s = match &text[digits.len()..] {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(error()),
        };
        let seconds = number * unit_s;
        if !(0.0..=YEAR_S).contains(&seconds) {
            return Err(error());
        }
        Ok(Self(Duration::from_nanos((seconds * 1e9).round() as u64)))
    }
}

/// No setting of ours is longer.
const YEAR_S: f64 = 366.0 * 86400.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_as_a_person_writes_them() {
        for (text, ms) in [("20ms", 20), ("5s", 5000), ("1.5m", 90_000), ("2 h", 7_200_000), ("0s", 0)] {
            assert_eq!(Period::try_from(text.to_owned()).unwrap().0, Duration::from_millis(ms), "{text}");
        }
        for bad in ["", "5", "s", "-1s", "1e300h", "NaNs", "5 parsec", "infs"] {
            assert!(Period::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
