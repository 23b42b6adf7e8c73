//! Sizes as people write them, `"512MB"`, and secrets that are never written down here. (Time spans, `"10s"`, are
//! [`drivers::Period`].)

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use drivers::Period;
use serde::{Deserialize, Deserializer, de};

/// A number of bytes: a number and one of `B kB MB GB KiB MiB GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A number of bytes a day: a [`Size`] and `/day`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DailySize(pub u64);

/// Bytes per second: a [`Size`] and `/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRate(pub u64);

/// How often something is signed, or never: a length of time, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerInterval(pub Option<Duration>);

/// Where a secret is read from when it is needed. Holds the place, never the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file; one trailing newline does not count.
    File(PathBuf),
    /// A systemd credential, in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// A secret in memory. `Debug` and `Display` show nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl SecretSource {
    /// Reads the secret.
    ///
    /// # Errors
    /// Says which file could not be read, or that it is empty or longer than 64 KiB.
    pub fn read(&self) -> Result<Secret, String> {
        let path = match self {
            Self::File(path) => path.clone(),
            Self::Credential(name) => {
                let directory = std::env::var_os("CREDENTIALS_DIRECTORY")
                    .ok_or_else(|| format!("credential {name}: CREDENTIALS_DIRECTORY is not set"))?;
                PathBuf::from(directory).join(name)
            }
        };
        let mut secret = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        if secret.last() == Some(&b'\n') {
            secret.pop();
        }
        match secret.len() {
            0 => Err(format!("{}: the file is empty", path.display())),
            1..=MAX_SECRET => Ok(Secret(secret)),
            _ => Err(format!("{}: longer than {MAX_SECRET} bytes", path.display())),
        }
    }
}

impl Secret {
    /// Keeps bytes as a secret.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes. The caller keeps them out of logs.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Compares in a time that does not depend on where the first difference is.
    pub fn is(&self, candidate: &[u8]) -> bool {
        let difference = self.0.iter().zip(candidate).fold(0, |seen, (a, b)| seen | (a ^ b));
        difference == 0 && self.0.len() == candidate.len()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_quantity(&text, &SIZES).map(Self).ok_or_else(|| {
            de::Error::custom(format!("not a size: \"{text}\", expected one like \"512MB\" or \"2GiB\""))
        })
    }
}

impl<'de> Deserialize<'de> for DailySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let size = text.trim().strip_suffix("/day").and_then(|size| parse_quantity(size, &SIZES));
        size.map(Self).ok_or_else(|| {
            de::Error::custom(format!("not a size per day: \"{text}\", expected one like \"300MB/day\""))
        })
    }
}

impl<'de> Deserialize<'de> for ByteRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let rate = text.trim().strip_suffix("/s").and_then(|rate| parse_quantity(rate, &SIZES));
        rate.filter(|rate| *rate > 0)
            .map(Self)
            .ok_or_else(|| de::Error::custom(format!("not a rate: \"{text}\", expected one like \"50kB/s\"")))
    }
}

impl Default for LedgerInterval {
    fn default() -> Self {
        Self(Some(Duration::from_secs(15 * 60)))
    }
}

impl<'de> Deserialize<'de> for LedgerInterval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "off" {
            return Ok(Self(None));
        }
        let period =
            Period::try_from(text).map_err(|error| de::Error::custom(format!("{error}, or `off`")))?;
        Ok(Self(Some(period.0)))
    }
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Place {
            file: Option<PathBuf>,
            credential: Option<String>,
        }
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = SecretSource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("{ file = \"PATH\" } or { credential = \"NAME\" }")
            }

            fn visit_str<E: de::Error>(self, _: &str) -> Result<SecretSource, E> {
                // The text itself may be the secret: it is not repeated.
                Err(E::custom(
                    "a secret does not belong into the configuration, expected { file = \"PATH\" } or { credential = \"NAME\" }",
                ))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<SecretSource, A::Error> {
                match Place::deserialize(de::value::MapAccessDeserializer::new(map))? {
                    Place { file: Some(file), credential: None } => Ok(SecretSource::File(file)),
                    Place { file: None, credential: Some(name) }
                        if !name.contains('/') && !name.is_empty() =>
                    {
                        Ok(SecretSource::Credential(name))
                    }
                    _ => Err(de::Error::custom("expected either file = \"PATH\" or credential = \"NAME\"")),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

fn parse_quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let (number, factor) = units
        .iter()
        .filter_map(|(unit, factor)| Some((text.strip_suffix(unit)?.trim_end(), *factor)))
        .find(|(number, _)| number.ends_with(|c: char| c.is_ascii_digit()))?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let number: f64 = number.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0)?;
    let product = number * factor as f64;
    (product < 9e18).then_some(product as u64)
}

const SIZES: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];
const MAX_SECRET: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        let size = |text: &str| {
            Size::deserialize(de::value::StrDeserializer::<de::value::Error>::new(text)).ok().map(|s| s.0)
        };
        assert_eq!(size("512MB"), Some(512_000_000));
        assert_eq!(size("2GiB"), Some(2 << 30));
        assert_eq!(size("512"), None);
        let rate = |text: &str| {
            ByteRate::deserialize(de::value::StrDeserializer::<de::value::Error>::new(text)).ok().map(|r| r.0)
        };
        assert_eq!(rate("50kB/s"), Some(50_000));
        assert_eq!((rate("50kB"), rate("0B/s"), rate("fast")), (None, None, None));
        let daily = |text: &str| {
            DailySize::deserialize(de::value::StrDeserializer::<de::value::Error>::new(text))
                .ok()
                .map(|s| s.0)
        };
        assert_eq!(
            (daily("300MB/day"), daily("1 GB /day"), daily("300MB")),
            (Some(300_000_000), Some(1_000_000_000), None)
        );
    }

    #[test]
    fn an_interval_is_a_length_of_time_or_off() {
        let interval = |text: &str| {
            LedgerInterval::deserialize(de::value::StrDeserializer::<de::value::Error>::new(text))
                .map_err(|error| error.to_string())
        };
        assert_eq!(interval("off"), Ok(LedgerInterval(None)));
        assert_eq!(interval("1h"), Ok(LedgerInterval(Some(Duration::from_secs(3600)))));
        assert!(interval("never").unwrap_err().ends_with("or `off`"));
    }

    #[test]
    fn a_secret_shows_nothing_of_itself() {
        let secret = Secret(b"hunter2".to_vec());
        assert_eq!(format!("{secret:?}"), "***");
        assert!(secret.is(b"hunter2") && !secret.is(b"hunter") && !secret.is(b"hunter22"));
    }

    #[test]
    fn a_secret_in_the_configuration_is_refused_without_being_repeated() {
        let error = SecretSource::deserialize(de::value::StrDeserializer::<de::value::Error>::new("hunter2"))
            .unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
