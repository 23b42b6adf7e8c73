//! How a command went, as every protocol reports it and as the ledger of commands keeps it.

use drivers::Value;
use serde_json::{Value as Json, json};

use crate::clock::Stamp;
use crate::payload;
use crate::reading::ChannelId;

/// How a command went.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The command's id, if it had one.
    pub id: Option<String>,
    /// The value read back, or why it was not done.
    pub result: Result<Value, Refusal>,
}

/// Why a command was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such channel.
    #[error("no channel {0}")]
    Unknown(ChannelId),
    /// A sensor.
    #[error("{0} cannot be told anything")]
    NotAnActuator(ChannelId),
    /// The value, the id or the expiry does not fit.
    #[error("{0}")]
    BadValue(String),
    /// Its time was over before it could be carried out; nothing was done.
    #[error("expired before it could be carried out")]
    Expired,
    /// It has an expiry, and nobody can say whether that has passed; nothing was done.
    #[error("the clock was never set, so nobody can tell whether it has expired")]
    ClockUnset,
    /// The device did not do it.
    #[error("{0}")]
    Failed(String),
    /// It may have been carried out or not; it is not tried again.
    #[error("{0}")]
    Uncertain(String),
}

impl Refusal {
    /// What became of the command, in one word.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Unknown(_) | Self::NotAnActuator(_) | Self::BadValue(_) => "refused",
            Self::Expired => "expired",
            Self::ClockUnset => "clock-unset",
            Self::Failed(_) => "failed",
            Self::Uncertain(_) => "unknown",
        }
    }
}

impl Outcome {
    /// What stands under `…/set/result`. `state` is `done`, `refused`, `expired`, `clock-unset`, `failed`, `unknown`.
    pub fn json(&self, channel: &ChannelId, stamp: &Stamp) -> Json {
        json!({
            "id": self.id,
            "channel": channel.as_str(),
            "ok": self.result.is_ok(),
            "state": self.result.as_ref().map_or_else(Refusal::state, |_| "done"),
            "value": payload::json_value(self.result.as_ref().ok()),
            "error": self.result.as_ref().err().map(ToString::to_string),
            "time": payload::rfc3339(stamp),
        })
    }

    /// An outcome as the ledger kept it, for the command `id` of `channel`.
    pub fn from_kept(id: &str, channel: &ChannelId, kept: &str) -> Self {
        let json: Json = serde_json::from_str(kept).unwrap_or_default();
        let result = if json["channel"].as_str().is_some_and(|other| other != channel.as_str()) {
            Err(Refusal::BadValue(format!("the id was used before, for {}", json["channel"])))
        } else if let Some(value) = value(&json["value"]).filter(|_| json["ok"] == true) {
            Ok(value)
        } else {
            let why = json["error"].as_str().unwrap_or_default().to_owned();
            Err(match json["state"].as_str() {
                Some("expired") => Refusal::Expired,
                Some("failed") => Refusal::Failed(why),
                Some("refused") => Refusal::BadValue(why),
                _ => Refusal::Uncertain(why),
            })
        };
        Self { id: Some(id.to_owned()), result }
    }
}

/// The inverse of [`payload::json_value`].
fn value(json: &Json) -> Option<Value> {
    match json {
        Json::Bool(truth) => Some(Value::Boolean(*truth)),
        Json::Number(number) => number.as_i64().map(Value::Integer).or(number.as_f64().map(Value::Number)),
        Json::String(text) => Some(Value::Text(text.as_str().into())),
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn what_the_ledger_kept_is_what_is_answered_again() {
        let pump = ChannelId::parse("pump/state").unwrap();
        for result in [
            Ok(Value::Boolean(true)),
            Ok(Value::Number(21.5)),
            Ok(Value::Integer(7)),
            Err(Refusal::Expired),
            Err(Refusal::Failed("line busy".into())),
            Err(Refusal::Uncertain("no answer".into())),
        ] {
            let outcome = Outcome { id: Some("a".into()), result };
            let kept = outcome.json(&pump, &Clock::new().stamp()).to_string();
            assert_eq!(Outcome::from_kept("a", &pump, &kept), outcome);
        }
    }

    #[test]
    fn an_id_of_another_channels_command_is_refused_rather_than_taken_for_done() {
        let (pump, lamp) = (ChannelId::parse("pump/state").unwrap(), ChannelId::parse("lamp/state").unwrap());
        let outcome = Outcome { id: Some("1".into()), result: Ok(Value::Boolean(true)) };
        let kept = outcome.json(&pump, &Clock::new().stamp()).to_string();
        assert!(matches!(Outcome::from_kept("1", &lamp, &kept).result, Err(Refusal::BadValue(_))));
        assert!(matches!(Outcome::from_kept("1", &lamp, "rubbish").result, Err(Refusal::Uncertain(_))));
    }
}
