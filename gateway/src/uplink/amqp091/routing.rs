//! Routing keys: where a parcel goes within an exchange, and which channel a command is for. Pure.

use crate::payload::ROOT;

/// A routing key with places to fill in: `{gateway}`, `{device}`, `{channel}`, `{lane}`, `{topic}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Gateway,
    Device,
    Channel,
    Lane,
    Topic,
}

/// What a template is filled in with.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The gateway's name.
    pub gateway: &'a str,
    /// `alarm`, `live`, `backfill`.
    pub lane: &'a str,
    /// Levels divided by `/`.
    pub topic: &'a str,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// Says what is wrong: an unknown name, a brace without its other half.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, behind) = rest.split_at(at);
            let inner = behind.strip_prefix('{').and_then(|behind| behind.split_once('}'));
            let Some((name, after)) = inner else {
                return Err(format!("routing_key: a brace without its other half in \"{text}\""));
            };
            let field = match name {
                "gateway" => Field::Gateway,
                "device" => Field::Device,
                "channel" => Field::Channel,
                "lane" => Field::Lane,
                "topic" => Field::Topic,
                other => {
                    return Err(format!(
                        "routing_key: no `{{{other}}}`, there are {{gateway}}, {{device}}, {{channel}}, {{lane}}, {{topic}}"
                    ));
                }
            };
            parts.extend((!before.is_empty()).then(|| Part::Text(before.to_owned())));
            parts.push(Part::Field(field));
            rest = after;
        }
        parts.extend((!rest.is_empty()).then(|| Part::Text(rest.to_owned())));
        Ok(Self { parts })
    }

    /// The key of one message: words divided by dots (AMQP 0-9-1 §3.1.3.3), at most 255 bytes (a short string).
    pub fn fill(&self, place: &Place<'_>) -> String {
        let mut key = String::with_capacity(64);
        let (device, channel) = place.device_and_channel();
        for part in &self.parts {
            match part {
                Part::Text(text) => key.push_str(text),
                Part::Field(Field::Gateway) => key.push_str(place.gateway),
                Part::Field(Field::Lane) => key.push_str(place.lane),
                Part::Field(Field::Device) => words(&mut key, device),
                Part::Field(Field::Channel) => words(&mut key, channel),
                Part::Field(Field::Topic) => words(&mut key, place.topic),
            }
        }
        key.truncate(key.floor_char_boundary(255));
        key
    }
}

impl<'a> Place<'a> {
    /// Of a reading, its device and channel; of a batch, `$batch` and its lane; of a LAN client's message, `lan` and
    /// its topic.
    fn device_and_channel(&self) -> (&'a str, &'a str) {
        let below = self
            .topic
            .strip_prefix(ROOT)
            .and_then(|rest| rest.strip_prefix('/')?.strip_prefix(self.gateway)?.strip_prefix('/'));
        match below {
            Some(name) => name.split_once('/').unwrap_or((name, "")),
            None => ("lan", self.topic),
        }
    }
}

/// The binding key under which a gateway's commands come.
pub fn command_key(gateway: &str) -> String {
    format!("{ROOT}.{gateway}.*.*.set")
}

/// The channel that a command with this routing key is for: `<device>/<channel>`.
pub fn commanded(gateway: &str, key: &str) -> Option<String> {
    let rest = key.strip_prefix(ROOT)?.strip_prefix('.')?.strip_prefix(gateway)?.strip_prefix('.')?;
    let (device, channel) = rest.strip_suffix(".set")?.split_once('.')?;
    (!device.is_empty() && !channel.is_empty()).then(|| format!("{device}/{channel}"))
}

fn words(key: &mut String, levels: &str) {
    key.extend(levels.chars().map(|c| match c {
        '/' => '.',
        '.' => '_',
        other => other,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(template: &str, topic: &str) -> String {
        Template::parse(template).unwrap().fill(&Place { gateway: "barn", lane: "live", topic })
    }

    #[test]
    fn topics_become_routing_keys_of_at_most_255_bytes() {
        assert_eq!(fill("{topic}", "tidegate/barn/cellar/v1.2"), "tidegate.barn.cellar.v1_2");
        assert!(fill("{topic}", &"é/".repeat(200)).len() <= 255);
    }

    #[test]
    fn a_template_names_gateway_device_and_channel() {
        let template = "plant.{gateway}.{device}.{channel}.{lane}";
        assert_eq!(fill(template, "tidegate/barn/cellar/temperature"), "plant.barn.cellar.temperature.live");
        assert_eq!(fill(template, "tidegate/barn/$batch/alarm"), "plant.barn.$batch.alarm.live");
        assert_eq!(fill(template, "site/door"), "plant.barn.lan.site.door.live");
        assert_eq!(fill(template, "tidegate/barn/gap"), "plant.barn.gap..live");
        assert_eq!(fill("readings", "tidegate/barn/gap"), "readings");
    }

    #[test]
    fn what_is_no_template_is_refused_with_what_there_is() {
        for bad in ["{gateway", "gateway}", "{}", "{Gateway}", "{a{b}}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_commands_routing_key_names_its_channel() {
        assert_eq!(commanded("barn", "tidegate.barn.pump.relay.set").as_deref(), Some("pump/relay"));
        for bad in
            ["tidegate.barn.pump.set", "tidegate.shed.pump.relay.set", "tidegate.barn..relay.set", "set", ""]
        {
            assert_eq!(commanded("barn", bad), None, "{bad}");
        }
    }
}
