//! The keys that every `[[uplink]]` has.

use std::time::Duration;

use drivers::Period;
use serde::Deserialize;

use crate::config::quantity::{ByteRate, Size};
use crate::payload::parcel::{Compression, Encoding, Packing};

/// The keys, so that they can be told from those of an uplink's kind.
pub const KEYS: &[&str] = &[
    "delivery",
    "window",
    "live_first",
    "batch",
    "batch_wait",
    "encoding",
    "compression",
    "rate",
    "monthly_budget",
    "commands",
    "retry_within",
];

/// What an uplink of any kind can be told.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Common {
    /// What is promised.
    pub delivery: Delivery,
    /// Entries in flight at a time, on each lane: what a crash repeats at the most.
    pub window: usize,
    /// Whether after an outage the newest telemetry goes first and the past follows on a lane of its own.
    pub live_first: bool,
    /// Entries per message.
    pub batch: usize,
    /// How long an entry waits for others to share its message; alarms never do.
    pub batch_wait: Period,
    /// How a message is written.
    pub encoding: Encoding,
    /// How it is made smaller.
    pub compression: Compression,
    /// The most that telemetry may take of the link.
    pub rate: Option<ByteRate>,
    /// Bytes per calendar month (UTC); a twentieth of it is kept for alarms.
    pub monthly_budget: Option<Size>,
    /// Whether commands are taken from there.
    pub commands: bool,
    /// The longest wait between two tries to connect.
    pub retry_within: Period,
}

/// What an uplink promises, by the names of the field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(clippy::enum_variant_names, reason = "these are the names of the field")]
pub enum Delivery {
    /// Never twice; what is under way when the link or the gateway fails is lost.
    AtMostOnce,
    /// Never lost; what is under way when the link or the gateway fails may come twice, with the same id.
    #[default]
    AtLeastOnce,
    /// Neither, as far as the uplink's kind says.
    ExactlyOnce,
}

impl Delivery {
    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AtMostOnce => "at-most-once",
            Self::AtLeastOnce => "at-least-once",
            Self::ExactlyOnce => "exactly-once",
        }
    }
}

impl Default for Common {
    fn default() -> Self {
        Self {
            delivery: Delivery::default(),
            window: 1000,
            live_first: true,
            batch: 1,
            batch_wait: Period(Duration::from_secs(1)),
            encoding: Encoding::default(),
            compression: Compression::default(),
            rate: None,
            monthly_budget: None,
            commands: false,
            retry_within: Period(Duration::from_secs(60)),
        }
    }
}

impl Common {
    /// How entries become messages.
    pub fn packing(&self) -> Packing {
        Packing { batch: self.batch, encoding: self.encoding, compression: self.compression }
    }

    /// What is out of range, or not offered by an uplink that offers `deliveries`.
    pub fn problems(&self, kind: &str, deliveries: &[Delivery]) -> Vec<String> {
        let mut problems = Vec::new();
        if !deliveries.contains(&self.delivery) {
            let offered: Vec<&str> = deliveries.iter().map(|delivery| delivery.as_str()).collect();
            problems.push(format!(
                "delivery \"{}\" is not what {kind} can do here, expected one of {}",
                self.delivery.as_str(),
                offered.join(", ")
            ));
        }
        if !(1..=MAX_WINDOW).contains(&self.window) {
            problems.push(format!("window out of range: {}, allowed 1 to {MAX_WINDOW}", self.window));
        }
        // A window that is out of range itself is one mistake, not two.
        let most = MAX_BATCH.min(self.window.max(1));
        if !(1..=most).contains(&self.batch) {
            problems.push(format!("batch out of range: {}, allowed 1 to {most}", self.batch));
        }
        if self.batch_wait.0 > Duration::from_secs(3600) {
            problems.push("batch_wait out of range: at most 1h".into());
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(24 * 3600)).contains(&self.retry_within.0) {
            problems.push("retry_within out of range: 100ms to 1d".into());
        }
        if self.monthly_budget.is_some_and(|budget| budget.0 < 100_000) {
            problems.push("monthly_budget out of range: at least 100kB".into());
        }
        problems
    }
}

/// Half of the packet ids that a lane has at QoS 2 towards MQTT brokers.
const MAX_WINDOW: usize = 8_192;
/// As many records as a SenML reader of ours takes in one pack, divided so that a pack stays small.
const MAX_BATCH: usize = 1_000;
