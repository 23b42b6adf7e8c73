//! `ThingsBoard`'s shapes: telemetry as JSON by device and time, commands as RPC ("MQTT Device API", "MQTT Gateway API").
//!
//! A pack becomes `{"cellar": [{"ts": 1800000000500, "values": {"temperature": 21.5}}]}`. What belongs to no device
//! (gaps, alarms, clock records) stands under the gateway's name, and so does `tidegate/id`, the message's identity.
//! `ThingsBoard` keeps one value per device, key and millisecond, so what is sent again changes nothing.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use super::commands::{Asked, Reply, text_of};
use super::presets::Devices;
use crate::payload::ROOT;

/// Where telemetry goes.
pub fn telemetry_topic(devices: Devices) -> &'static str {
    match devices {
        Devices::Each => "v1/gateway/telemetry",
        Devices::One => "v1/devices/me/telemetry",
    }
}

/// Where commands come.
pub fn command_filter(devices: Devices) -> &'static str {
    match devices {
        Devices::Each => "v1/gateway/rpc",
        Devices::One => "v1/devices/me/rpc/request/+",
    }
}

/// A SenML JSON pack of ours in this shape.
///
/// # Errors
/// The pack is none.
pub fn telemetry(gateway: &str, devices: Devices, id: &str, pack: &[u8]) -> anyhow::Result<Vec<u8>> {
    let records: Vec<Map<String, Value>> = serde_json::from_slice(pack).context("no SenML pack")?;
    let own = format!("{ROOT}/{gateway}/");
    let mut shape = Shape::default();
    let (mut base_name, mut base_time) = (String::new(), 0.0);
    let mut newest = None;
    for record in &records {
        let text = |key: &str| record.get(key).and_then(Value::as_str);
        let number = |key: &str| record.get(key).and_then(Value::as_f64);
        if let Some(name) = text("bn") {
            name.clone_into(&mut base_name);
        }
        base_time = number("bt").unwrap_or(base_time);
        let full = format!("{base_name}{}", text("n").unwrap_or(""));
        // A LAN client's message is called by its topic.
        let name = text("topic").unwrap_or_else(|| full.strip_prefix(&own).unwrap_or(&full));
        let Some(value) = ["v", "vb", "vs", "vd"].iter().find_map(|key| record.get(*key)) else { continue };
        let seconds = base_time + number("t").unwrap_or(0.0);
        // Below this a time is relative to now (RFC 8428 §4.5.3): here it means that there is none.
        let ts = (seconds >= 268_435_456.0).then(|| (seconds * 1e3).round() as i64);
        newest = newest.max(ts);
        match (devices, name.split_once('/')) {
            (Devices::Each, Some((device, key))) if text("topic").is_none() => {
                shape.add(device, ts, key, value.clone());
            }
            _ => shape.add(gateway, ts, name, value.clone()),
        }
    }
    shape.add(gateway, newest, "tidegate/id", id.into());
    Ok(shape.write(devices).to_string().into_bytes())
}

/// The command in an RPC request. The platform hands one only to who is connected, waits ten seconds for the answer, and
/// numbers the requests from its own start on: the command gets an expiry and an id made from that, unless its
/// parameters say better. A gateway's method is the channel of the device; a single device's is `device/channel`
/// with the value in `params`, or anything with `channel` and `value` in them.
pub fn command(topic: &str, payload: &[u8]) -> Option<Asked> {
    let request: Value = serde_json::from_slice(payload).ok()?;
    if topic == "v1/gateway/rpc" {
        let (device, data) = (request["device"].as_str()?, &request["data"]);
        let method = data["method"].as_str()?;
        let mut asked = asked(Some(format!("{device}/{method}")), &data["params"])?;
        asked.set_bounds(&format!("{device} {}", data["id"]), WAIT);
        let around = json!({"device": device, "id": data["id"]});
        asked.reply = Some(Reply { topic: topic.to_owned(), around });
        return Some(asked);
    }
    let number = topic.strip_prefix("v1/devices/me/rpc/request/")?;
    let method = request["method"].as_str()?;
    let mut asked = asked(method.contains('/').then(|| method.to_owned()), &request["params"])?;
    asked.set_bounds(number, WAIT);
    asked.reply = Some(Reply { topic: format!("v1/devices/me/rpc/response/{number}"), around: Value::Null });
    Some(asked)
}

fn asked(channel: Option<String>, params: &Value) -> Option<Asked> {
    if params.is_object() {
        return Asked::from_fields(channel, params);
    }
    Some(Asked {
        channel: channel?,
        value: text_of(params)?.into_bytes(),
        id: None,
        expires: None,
        reply: None,
    })
}

/// Values by device and time, each in the order in which it first came.
#[derive(Default)]
struct Shape {
    devices: Map<String, Value>,
}

impl Shape {
    fn add(&mut self, device: &str, ts: Option<i64>, key: &str, value: Value) {
        let rows = self.devices.entry(device).or_insert_with(|| Value::Array(Vec::new()));
        let Value::Array(rows) = rows else { return };
        let ts = ts.map_or(Value::Null, Value::from);
        let row = rows.iter_mut().rev().find(|row| row["ts"] == ts && row["values"].get(key).is_none());
        match row {
            Some(row) => row["values"][key] = value,
            None => rows.push(json!({"ts": ts, "values": {key: value}})),
        }
    }

    fn write(mut self, devices: Devices) -> Value {
        for rows in self.devices.values_mut().filter_map(Value::as_array_mut) {
            for row in rows.iter_mut().filter(|row| row["ts"].is_null()) {
                // Without a time the platform takes its own.
                *row = row["values"].take();
            }
        }
        match devices {
            Devices::Each => Value::Object(self.devices),
            Devices::One => self.devices.into_iter().next().map_or(Value::Null, |(_, rows)| rows),
        }
    }
}

/// How long the platform waits for an answer, unless its administrator says otherwise.
const WAIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const PACK: &str = r#"[
        {"bn":"tidegate/barn/","bt":1800000000.5,"n":"cellar/temperature","v":21.5,"gw":"barn","epoch":"a","seq":17,"boot":"1"},
        {"n":"cellar/humidity","v":40},
        {"n":"attic/open","vb":true,"t":1},
        {"n":"message","vs":"opened","topic":"site/door","encoding":"text","t":2},
        {"n":"gap","vs":"full","from":1,"to":2}]"#;

    fn shaped(devices: Devices, pack: &str) -> Value {
        serde_json::from_slice(&telemetry("barn", devices, "barn/a/17-21", pack.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn a_pack_is_grouped_by_device_and_time_as_the_gateway_api_wants_it() {
        assert_eq!(
            shaped(Devices::Each, PACK),
            json!({
                "cellar": [{"ts": 1_800_000_000_500i64, "values": {"temperature": 21.5, "humidity": 40}}],
                "attic": [{"ts": 1_800_000_001_500i64, "values": {"open": true}}],
                "barn": [
                    {"ts": 1_800_000_002_500i64, "values": {"site/door": "opened", "tidegate/id": "barn/a/17-21"}},
                    {"ts": 1_800_000_000_500i64, "values": {"gap": "full"}},
                ],
            })
        );
        assert_eq!(
            [telemetry_topic(Devices::Each), command_filter(Devices::Each)],
            ["v1/gateway/telemetry", "v1/gateway/rpc"]
        );
    }

    #[test]
    fn one_device_gets_rows_of_its_own_and_a_value_without_time_stands_alone() {
        assert_eq!(
            shaped(
                Devices::One,
                r#"[{"bn":"tidegate/barn/","n":"cellar/temperature","v":1,"clock":"none"}]"#
            ),
            json!([{"cellar/temperature": 1, "tidegate/id": "barn/a/17-21"}])
        );
        let twice = r#"[{"bn":"tidegate/barn/","bt":1800000000,"n":"a/b","v":1},{"n":"a/b","v":2}]"#;
        assert_eq!(
            shaped(Devices::One, twice)[1],
            json!({"ts": 1_800_000_000_000i64, "values": {"a/b": 2, "tidegate/id": "barn/a/17-21"}}),
            "neither value is lost"
        );
        assert_eq!(
            [telemetry_topic(Devices::One), command_filter(Devices::One)],
            ["v1/devices/me/telemetry", "v1/devices/me/rpc/request/+"]
        );
        assert!(telemetry("barn", Devices::One, "x", b"no").is_err());
    }

    /// The topic stands on the first line.
    fn requests() -> Vec<Vec<u8>> {
        [
            r#"v1/gateway/rpc
{"device": "relay", "data": {"id": 7, "method": "pump", "params": true}}"#,
            r#"v1/gateway/rpc
{"device": "relay", "data": {"id": "x", "method": "pump", "params": {"value": 1.5, "expires": "2027-01-15T08:00:00Z"}}}"#,
            r#"v1/devices/me/rpc/request/12
{"method": "set", "params": {"channel": "relay/pump", "value": "off", "id": "x", "expires": 1800000000000}}"#,
            r#"v1/devices/me/rpc/request/1
{"method": "relay/pump", "params": "21.5"}"#,
        ]
        .map(|text| text.as_bytes().to_vec())
        .into()
    }

    #[test]
    fn an_rpc_request_survives_mutated_input() {
        let read = |input: &[u8]| {
            let mut lines = input.splitn(2, |byte| *byte == b'\n');
            let topic = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
            command(&topic, lines.next().unwrap_or_default())
        };
        assert!(requests().iter().all(|input| read(input).is_some()));
        crate::fuzz::mutated("thingsboard-rpc", requests(), |input| {
            let Some(asked) = read(input) else { return };
            assert!(asked.id.is_some() && asked.expires.is_some(), "it would wait for ever: {asked:?}");
            let _ = asked.reply.expect("a platform that asks wants an answer").message(json!({"ok": true}));
        });
    }

    #[test]
    fn a_pack_survives_mutated_input() {
        crate::fuzz::mutated("thingsboard-pack", vec![PACK.as_bytes().to_vec()], |input| {
            for devices in [Devices::Each, Devices::One] {
                if let Ok(shaped) = telemetry("barn", devices, "barn/a/1-2", input) {
                    assert!(serde_json::from_slice::<Value>(&shaped).is_ok());
                }
            }
        });
    }

    #[test]
    fn rpc_requests_are_commands_and_their_answers_go_where_the_platform_looks() {
        let request = br#"{"device": "relay", "data": {"id": 7, "method": "pump", "params": true}}"#;
        let asked = command("v1/gateway/rpc", request).unwrap();
        assert_eq!((asked.channel.as_str(), &asked.value[..]), ("relay/pump", &b"true"[..]));
        let answer = asked.reply.unwrap().message(json!({"ok": true})).unwrap();
        assert_eq!(answer.topic.as_str(), "v1/gateway/rpc");
        let body: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!(body, json!({"device": "relay", "id": 7, "data": {"ok": true}}));

        let request = br#"{"method": "set", "params": {"channel": "relay/pump", "value": "off", "id": "x"}}"#;
        let asked = command("v1/devices/me/rpc/request/12", request).unwrap();
        assert_eq!((asked.channel.as_str(), asked.id.as_deref()), ("relay/pump", Some("x")));
        let answer = asked.reply.unwrap().message(json!({"ok": false})).unwrap();
        assert_eq!(answer.topic.as_str(), "v1/devices/me/rpc/response/12");
        assert_eq!(&answer.payload[..], br#"{"ok":false}"#);

        let bare = br#"{"method": "relay/pump", "params": 1}"#;
        assert_eq!(command("v1/devices/me/rpc/request/1", bare).unwrap().value, b"1");
        for (topic, payload) in [
            ("v1/devices/me/rpc/request/1", &br#"{"method": "getTermSize"}"#[..]),
            ("v1/gateway/rpc", br#"{"device": 1}"#),
            ("v1/gateway/rpc", b"\xff"),
            ("v1/devices/me/attributes", b"{}"),
        ] {
            assert_eq!(command(topic, payload), None);
        }
    }
}
