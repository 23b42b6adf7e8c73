//! What a command's sender writes: a bare value, or an object with value, id and expiry.

use serde_json::Value as Json;

/// A command's content, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Order {
    /// The value as text.
    pub value: Vec<u8>,
    /// Names the command so that a repetition is recognised.
    pub id: Option<String>,
    /// When it stops being wanted, in nanoseconds since 1970.
    pub expires_ns: Option<i64>,
}

impl Order {
    /// Reads `on`, `21.5` or `{"value": …, "id": …, "expires": …}`; `expires` is RFC 3339 or seconds since 1970.
    ///
    /// # Errors
    /// A key that is not known or an expiry that cannot be read: a mistyped expiry must not make a command last.
    pub fn parse(payload: &[u8]) -> Result<Self, String> {
        let Ok(Json::Object(object)) = serde_json::from_slice::<Json>(payload) else {
            return Ok(Self { value: payload.to_vec(), ..Self::default() });
        };
        let mut order = Self::default();
        for (key, value) in &object {
            match key.as_str() {
                "value" => order.value = text(value).into_bytes(),
                "id" => order.id = Some(text(value)),
                "expires" => order.expires_ns = Some(expiry(value)?),
                _ => {
                    let key: String = key.chars().take(40).collect();
                    return Err(format!(
                        "unknown key `{}`, expected value, id or expires",
                        key.escape_debug()
                    ));
                }
            }
        }
        if object.contains_key("value") { Ok(order) } else { Err("an order needs a value".into()) }
    }
}

/// When a command stops being wanted, as JSON: RFC 3339 or seconds since 1970.
///
/// # Errors
/// It is neither.
pub fn expiry(value: &Json) -> Result<i64, String> {
    match value {
        Json::Number(seconds) => {
            seconds.as_f64().and_then(from_seconds).ok_or_else(|| not_a_time(&seconds.to_string()))
        }
        Json::String(text) => parse_expiry(text),
        other => Err(not_a_time(&other.to_string())),
    }
}

/// As [`expiry`], written as text.
///
/// # Errors
/// It is neither.
pub fn parse_expiry(text: &str) -> Result<i64, String> {
    let time = match text.parse::<f64>() {
        Ok(seconds) => from_seconds(seconds),
        Err(_) => {
            text.parse::<jiff::Timestamp>().ok().and_then(|time| i64::try_from(time.as_nanosecond()).ok())
        }
    };
    time.ok_or_else(|| not_a_time(text))
}

fn from_seconds(seconds: f64) -> Option<i64> {
    (0.0..9e9).contains(&seconds).then_some((seconds * 1e9) as i64)
}

fn not_a_time(text: &str) -> String {
    let text: String = text.chars().take(40).collect();
    format!("expires is 2026-11-21T09:00:00Z or seconds since 1970, found \"{}\"", text.escape_debug())
}

fn text(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(value: &str, id: Option<&str>, expires_ns: Option<i64>) -> Order {
        Order { value: value.into(), id: id.map(Into::into), expires_ns }
    }

    #[test]
    fn a_command_is_a_bare_value_or_an_object_with_id_and_expiry() {
        assert_eq!(Order::parse(b"on").unwrap(), order("on", None, None));
        assert_eq!(Order::parse(b"21.5").unwrap(), order("21.5", None, None));
        assert_eq!(Order::parse(br#"{"value": true, "id": "a1"}"#).unwrap(), order("true", Some("a1"), None));
        assert_eq!(Order::parse(br#"{"id": 7, "value": "off"}"#).unwrap(), order("off", Some("7"), None));
        let noon = Some(1_795_262_400_000_000_000);
        for expires in
            ["\"2026-11-21T12:00:00Z\"", "\"2026-11-21T13:00:00+01:00\"", "1795262400", "\"1795262400\""]
        {
            let payload = format!("{{\"value\":1,\"expires\":{expires}}}");
            assert_eq!(Order::parse(payload.as_bytes()).unwrap(), order("1", None, noon), "{expires}");
        }
    }

    #[test]
    fn an_expiry_that_cannot_be_read_makes_no_command_last() {
        for bad in [
            r#"{"value":1,"expires":"tomorrow"}"#,
            r#"{"value":1,"expires":-5}"#,
            r#"{"value":1,"expires":1e300}"#,
            r#"{"value":1,"expires":null}"#,
            r#"{"value":1,"expiers":5}"#,
            r#"{"id":"a"}"#,
        ] {
            assert!(Order::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,60}") {
            let _ = Order::parse(&bytes);
            let _ = Order::parse(format!("{{\"value\":1,\"expires\":\"{text}\"}}").as_bytes());
            let _ = parse_expiry(&text);
        }
    }
}
