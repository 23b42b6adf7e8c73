//! Home Assistant's MQTT device discovery: one retained message per device, and it appears by itself.
//!
//! Source: Home Assistant, "MQTT", sections "Device discovery payload" and "Discovery topic".

use std::sync::Arc;

use drivers::{Kind, ValueType};
use serde_json::{Map, Value as Json, json};

use crate::live::Device;
use crate::payload::ROOT;
use crate::reading::Channel;

/// Where a device is announced.
pub fn topic(prefix: &str, gateway: &str, device: &str) -> String {
    format!("{prefix}/device/{ROOT}_{gateway}_{device}/config")
}

/// The announcement of a device with its channels.
pub fn config(gateway: &str, device: &Device, channels: &[Arc<Channel>]) -> Json {
    let id = |device: &str| format!("{ROOT}_{gateway}_{device}");
    let components: Map<String, Json> = channels
        .iter()
        .map(|channel| (channel.name().to_owned(), component(gateway, &id(&device.name), device, channel)))
        .collect();
    let simulated = if device.is_simulated { " (simulated)" } else { "" };
    json!({
        "dev": {
            "ids": [id(&device.name)],
            "name": format!("{}{simulated}", device.title),
            "mf": "Tidegate",
            "mdl": device.type_name,
            "sn": device.bus,
        },
        "o": { "name": ROOT, "sw": env!("CARGO_PKG_VERSION") },
        "cmps": components,
        "avty_mode": "all",
        "avty": [
            { "t": format!("{ROOT}/{gateway}/$state") },
            {
                "t": format!("{ROOT}/{gateway}/{}/$state", device.name),
                "val_tpl": "{{ 'online' if value_json.state in ['online', 'degraded'] else 'offline' }}",
            },
        ],
        "qos": 1,
    })
}

fn component(gateway: &str, device_id: &str, device: &Device, channel: &Channel) -> Json {
    let spec = &channel.spec;
    let topic = format!("{ROOT}/{gateway}/{}", channel.id);
    let mut component = json!({
        "name": spec.title,
        "unique_id": format!("{device_id}_{}", channel.name()),
        "state_topic": topic,
    });
    let mut set = |key: &str, value: Json| component[key] = value;
    match (spec.kind, spec.value_type) {
        (Kind::Actuator, ValueType::Boolean) => {
            set("p", "switch".into());
            set("command_topic", format!("{topic}/set").into());
            set("payload_on", "true".into());
            set("payload_off", "false".into());
        }
        (Kind::Actuator, _) => {
            set("p", if spec.value_type == ValueType::Text { "text" } else { "number" }.into());
            set("command_topic", format!("{topic}/set").into());
            if let Some((low, high)) = spec.range {
                set("min", low.into());
                set("max", high.into());
            }
        }
        (_, ValueType::Boolean) => {
            set("p", "binary_sensor".into());
            set("payload_on", "true".into());
            set("payload_off", "false".into());
        }
        (kind, value_type) => {
            set("p", "sensor".into());
            if value_type != ValueType::Text {
                set(
                    "state_class",
                    if kind == Kind::Counter { "total_increasing" } else { "measurement" }.into(),
                );
                set("suggested_display_precision", spec.precision.into());
            }
            let label = senml::unit(&spec.unit).map_or(&*spec.unit, |unit| unit.label);
            if !label.is_empty() {
                set("unit_of_measurement", label.into());
            }
        }
    }
    if let Some(class) = spec.class {
        set("device_class", class.into());
    }
    // Three missed readings make a value unknown; a device that speaks by itself may be silent for long.
    if device.interval_s > 0.0 && spec.kind != Kind::Actuator && spec.value_type != ValueType::Boolean {
        set("expire_after", ((device.interval_s * 3.0).ceil() as u64).max(10).into());
    }
    component
}

#[cfg(test)]
mod tests {
    use drivers::ChannelSpec;

    use super::*;
    use crate::reading::ChannelId;

    #[test]
    fn a_device_is_announced_with_all_that_home_assistant_requires() {
        let device = Device {
            name: "cellar".into(),
            title: "Cellar".into(),
            type_name: "bme280".into(),
            bus: "i2c-1".into(),
            is_simulated: true,
            interval_s: 10.0,
            state: "online",
            detail: String::new(),
            errors: 0,
            last: None,
        };
        let channel = |spec: ChannelSpec| {
            let id = ChannelId::new("cellar", &spec.name).unwrap();
            Arc::new(Channel { id, spec, is_simulated: true })
        };
        let temperature = channel(ChannelSpec::number("temperature", "Cel").class("temperature"));
        let relay = channel(ChannelSpec::boolean("relay").kind(Kind::Actuator));
        let config = config("barn", &device, &[temperature, relay]);
        assert_eq!(
            topic("homeassistant", "barn", "cellar"),
            "homeassistant/device/tidegate_barn_cellar/config"
        );
        assert!(config["o"]["name"].is_string() && config["dev"]["ids"][0] == "tidegate_barn_cellar");
        let sensor = &config["cmps"]["temperature"];
        assert_eq!(sensor["p"], "sensor");
        assert_eq!(sensor["unit_of_measurement"], "°C");
        assert_eq!(sensor["device_class"], "temperature");
        assert_eq!(sensor["expire_after"], 30);
        assert_eq!(sensor["state_topic"], "tidegate/barn/cellar/temperature");
        let switch = &config["cmps"]["relay"];
        assert_eq!(
            (&switch["p"], &switch["command_topic"]),
            (&"switch".into(), &"tidegate/barn/cellar/relay/set".into())
        );
    }
}
