//! Commands that come down from the broker: what is asked, in the forms of the platforms, and what is answered.

use std::time::Duration;

use jiff::Timestamp;
use mqtt::{Message, Qos, Topic};
use serde_json::{Value, json};

/// A command as it came, before anybody has looked whether there is such a channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// `device/channel`.
    pub channel: String,
    /// The value as text.
    pub value: Vec<u8>,
    /// Names the command.
    pub id: Option<String>,
    /// From when on it must not be carried out any more.
    pub expires: Option<Timestamp>,
    /// Where an answer is expected, and around what the platform wants it.
    pub reply: Option<Reply>,
}

/// How a platform wants its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// Where to.
    pub topic: String,
    /// What stands around it: the outcome becomes the field `data`. `Null`: nothing.
    pub around: Value,
}

impl Asked {
    /// From a value alone, or `{"value": …, "id": …, "expires": …}`.
    pub fn from_value(channel: &str, payload: &[u8]) -> Self {
        let bare = || Self {
            channel: channel.to_owned(),
            value: payload.to_vec(),
            id: None,
            expires: None,
            reply: None,
        };
        match serde_json::from_slice(payload) {
            Ok(Value::Object(fields)) if fields.contains_key("value") => {
                Self::from_fields(Some(channel.to_owned()), &Value::Object(fields)).unwrap_or_else(bare)
            }
            _ => bare(),
        }
    }

    /// From JSON that may name its channel itself, or, with the channel known, from a value alone.
    pub fn from_json(channel: Option<String>, payload: &[u8]) -> Option<Self> {
        match (serde_json::from_slice(payload), channel) {
            (Ok(Value::Object(fields)), channel) => Self::from_fields(channel, &Value::Object(fields)),
            (_, Some(channel)) => Some(Self::from_value(&channel, payload)),
            _ => None,
        }
    }

    /// From an object with `value`, and `channel` unless that is known.
    pub fn from_fields(channel: Option<String>, fields: &Value) -> Option<Self> {
        let text = |key: &str| fields[key].as_str().map(str::to_owned);
        Some(Self {
            channel: channel.or_else(|| text("channel"))?,
            value: text_of(&fields["value"])?.into_bytes(),
            id: text("id").filter(|id| !id.is_empty() && id.len() <= MAX_ID),
            expires: match &fields["expires"] {
                Value::String(time) => time.parse().ok(),
                Value::Number(ms) => ms.as_i64().and_then(|ms| Timestamp::from_millisecond(ms).ok()),
                _ => None,
            },
            reply: None,
        })
    }
}

impl Asked {
    /// Gives it an id and an expiry where it has none: for what is asked on a live connection by a platform that
    /// numbers its requests. Numbers begin again with the platform, so the minute is part of the id.
    pub fn set_bounds(&mut self, number: &str, wait: Duration) {
        let now = Timestamp::now();
        self.id.get_or_insert_with(|| format!("{number} {}", now.as_second() / 60));
        self.expires = self.expires.or_else(|| now.checked_add(wait).ok());
    }
}

impl Reply {
    /// The message that says how it went.
    pub fn message(&self, outcome: Value) -> Option<Message> {
        let mut body = self.around.clone();
        match &mut body {
            Value::Object(fields) => drop(fields.insert("data".into(), outcome)),
            _ => body = outcome,
        }
        let topic = Topic::new(self.topic.clone()).ok()?;
        Some(Message::new(topic, json!(body).to_string()).with_qos(Qos::AtLeastOnce))
    }
}

/// A value as the desk reads it: text as it is, the rest as JSON writes it.
pub fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    }
}

/// Bytes of an id at the most.
const MAX_ID: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_a_value_or_says_more() {
        let bare = Asked::from_value("relay/pump", b"on");
        assert_eq!((bare.channel.as_str(), &bare.value[..], bare.id), ("relay/pump", &b"on"[..], None));
        let full = Asked::from_value(
            "relay/pump",
            br#"{"value": 21.5, "id": "a", "expires": "2027-01-15T08:00:00Z"}"#,
        );
        assert_eq!((&full.value[..], full.id.as_deref()), (&b"21.5"[..], Some("a")));
        assert_eq!(full.expires, "2027-01-15T08:00:00Z".parse().ok());
        let numbered = Asked::from_value("a/b", br#"{"value": true, "expires": 1800000000000}"#);
        assert_eq!(numbered.expires, Timestamp::from_second(1_800_000_000).ok());
        // What is neither goes to the desk as it is, which says what is wrong with it.
        assert_eq!(Asked::from_value("a/b", b"{\"value\": [1]}").value, b"{\"value\": [1]}");
        let long = format!(r#"{{"value": 1, "id": "{}"}}"#, "x".repeat(200));
        assert_eq!(Asked::from_value("a/b", long.as_bytes()).id, None);
    }

    #[test]
    fn a_command_from_beyond_survives_mutated_input() {
        let corpus: [&[u8]; 6] = [
            br#"{"value": 21.5, "id": "a", "expires": "2027-01-15T08:00:00Z"}"#,
            br#"{"channel": "relay/pump", "value": true, "id": "7", "expires": 1800000000000}"#,
            br#"{"value": "on", "expires": -1e300}"#,
            b"on",
            b"-0.5e3",
            br#"{"value": [1], "id": ""}"#,
        ];
        crate::fuzz::mutated("remote-command", corpus.map(<[u8]>::to_vec).into(), |input| {
            let known = Asked::from_value("relay/pump", input);
            let named = Asked::from_json(None, input);
            let either = Asked::from_json(Some("relay/pump".into()), input);
            for mut asked in [Some(known), named, either].into_iter().flatten() {
                assert!(asked.id.as_ref().is_none_or(|id| (1..=MAX_ID).contains(&id.len())));
                // As the desk reads on.
                let _ = crate::command::Order::parse(&asked.value);
                asked.set_bounds("1", Duration::from_secs(10));
                assert!(asked.id.is_some() && asked.expires.is_some());
            }
            let _ = crate::command::Order::parse(input);
        });
    }
}
