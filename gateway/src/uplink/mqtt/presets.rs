//! What the brokers of the big platforms want said differently: names, credentials, topics, and what they cannot do.
//!
//! | | AWS `IoT` Core | Azure `IoT` Hub | `ThingsBoard` | `HiveMQ`, EMQX |
//! |---|---|---|---|---|
//! | client id | the thing's name | the device's id | as without a preset | as without a preset |
//! | credential | client certificate | SAS token or client certificate | access token as user name | user name, password |
//! | entries go to | `tidegate/…` | `devices/{id}/messages/events/{properties}` | `v1/gateway/telemetry` or `v1/devices/me/telemetry` | `tidegate/…` |
//! | commands come on | `tidegate/{gw}/+/+/set` | `devices/{id}/messages/devicebound/#` | `v1/gateway/rpc` or `v1/devices/me/rpc/request/+` | `tidegate/{gw}/+/+/set` |
//! | `$state` | not retained unless `retain` | the hub knows | the platform knows | retained |
//! | QoS 2 | no | no | no | yes |
//!
//! Sources: AWS `IoT` Core developer guide, "Device communication protocols" and "MQTT"; Azure `IoT` Hub, "Communicate with
//! an `IoT` hub using the MQTT protocol"; `ThingsBoard`, "MQTT Device API" and "MQTT Gateway API"; `HiveMQ` Cloud and EMQX,
//! their connection guides.

use std::borrow::Cow;
use std::time::Duration;

use mqtt::{Filter, Message, Properties, Qos, Topic, Version};
use serde::Deserialize;

use super::commands::Asked;
use super::sas::{decode, encode};
use super::thingsboard;
use crate::payload::ROOT;
use crate::payload::parcel::Parcel;

/// `preset =`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// AWS `IoT` Core.
    AwsIot,
    /// Azure `IoT` Hub.
    AzureIotHub,
    /// `ThingsBoard`.
    #[serde(rename = "thingsboard")]
    ThingsBoard,
    /// `HiveMQ` and `HiveMQ` Cloud.
    #[serde(rename = "hivemq")]
    HiveMq,
    /// EMQX and EMQX Cloud.
    Emqx,
}

/// `devices =`: whose data `ThingsBoard` is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Devices {
    /// Each device's own; this one is a gateway there.
    #[default]
    Each,
    /// All of them the one device's that the token belongs to.
    One,
}

/// How one uplink speaks to its broker.
#[derive(Debug, Clone)]
pub struct Dialect {
    /// Which platform, if a special one.
    pub preset: Option<Preset>,
    /// The gateway's name.
    pub gateway: String,
    /// The client id: at AWS the thing, at Azure the device.
    pub client_id: String,
    /// The protocol.
    pub version: Version,
    /// How surely a message is carried.
    pub qos: Qos,
    /// Whether `$state` is retained.
    pub is_retaining: bool,
    /// How long a message is worth delivering (5.0).
    pub expiry: Option<Duration>,
    /// Whose data it is at `ThingsBoard`.
    pub devices: Devices,
}

impl Preset {
    /// As the configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AwsIot => "aws-iot",
            Self::AzureIotHub => "azure-iot-hub",
            Self::ThingsBoard => "thingsboard",
            Self::HiveMq => "hivemq",
            Self::Emqx => "emqx",
        }
    }

    /// The protocol it speaks, and whether it speaks no other: `IoT` Hub knows 5.0 only in parts.
    pub fn version(self) -> (Version, bool) {
        match self {
            Self::AzureIotHub => (Version::V311, true),
            Self::ThingsBoard => (Version::V311, false),
            Self::AwsIot | Self::HiveMq | Self::Emqx => (Version::V5, false),
        }
    }

    /// Whether it has QoS 2, and with it exactly-once.
    pub fn has_qos_2(self) -> bool {
        matches!(self, Self::HiveMq | Self::Emqx)
    }

    /// What TLS announces on this port: AWS shares 443 between protocols.
    pub fn alpn(self, port: u16) -> Option<&'static str> {
        (self == Self::AwsIot && port == 443).then_some("x-amzn-mqtt-ca")
    }

    /// The resource of its WebSocket.
    pub fn websocket_path(self) -> &'static str {
        if self == Self::AzureIotHub { "/$iothub/websocket" } else { "/mqtt" }
    }

    /// The longest keep-alive it takes.
    pub fn longest_keep_alive(self) -> Duration {
        match self {
            Self::AwsIot => Duration::from_secs(1_200),
            // Pings are to come in 29.45 minutes.
            Self::AzureIotHub => Duration::from_secs(1_767),
            _ => Duration::from_secs(65_535),
        }
    }
}

impl Dialect {
    /// The message that carries a parcel. The same parcel is the same message, byte for byte.
    ///
    /// # Errors
    /// The parcel's topic is none that may be published to.
    pub fn publish(&self, parcel: &Parcel) -> anyhow::Result<Message> {
        let topic: Cow<'_, str> = match self.preset {
            Some(Preset::AzureIotHub) => self.azure_topic(parcel).into(),
            Some(Preset::ThingsBoard) => thingsboard::telemetry_topic(self.devices).into(),
            _ => parcel.topic.as_str().into(),
        };
        let body = match self.preset {
            Some(Preset::ThingsBoard) => {
                thingsboard::telemetry(&self.gateway, self.devices, &parcel.id, &parcel.body)?.into()
            }
            _ => parcel.body.clone(),
        };
        let message = Message::new(Topic::new(topic)?, body).with_qos(self.qos);
        Ok(if self.version == Version::V5 {
            message.with_properties(self.properties(parcel))
        } else {
            message
        })
    }

    /// What stands under `$state`; `None` where the platform knows by itself.
    pub fn state(&self, state: &'static str) -> Option<Message> {
        if matches!(self.preset, Some(Preset::AzureIotHub | Preset::ThingsBoard)) {
            return None;
        }
        let topic = Topic::new(format!("{ROOT}/{}/$state", self.gateway)).ok()?;
        let message = Message::new(topic, state).with_qos(Qos::AtLeastOnce);
        Some(if self.is_retaining { message.retained() } else { message })
    }

    /// Where commands come.
    pub fn command_filter(&self) -> anyhow::Result<Filter> {
        Ok(Filter::new(match self.preset {
            Some(Preset::AzureIotHub) => format!("devices/{}/messages/devicebound/#", self.client_id),
            Some(Preset::ThingsBoard) => thingsboard::command_filter(self.devices).to_owned(),
            _ => format!("{ROOT}/{}/+/+/set", self.gateway),
        })?)
    }

    /// The command in a message; `None` for what is none.
    pub fn command(&self, message: &Message) -> Option<Asked> {
        let topic = message.topic.as_str();
        match self.preset {
            Some(Preset::AzureIotHub) => {
                let base = format!("devices/{}/messages/devicebound/", self.client_id);
                let properties = bag(topic.strip_prefix(&base)?);
                let find = |name: &str| {
                    properties.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
                };
                let mut asked = Asked::from_json(find("channel"), &message.payload)?;
                asked.id = asked.id.or_else(|| find("$.mid"));
                if asked.expires.is_none() {
                    asked.expires = find("$.exp").and_then(|time| time.parse().ok());
                }
                Some(asked)
            }
            Some(Preset::ThingsBoard) => thingsboard::command(topic, &message.payload),
            _ => {
                let base = format!("{ROOT}/{}/", self.gateway);
                let channel = topic.strip_prefix(&base)?.strip_suffix("/set")?;
                Some(Asked::from_value(channel, &message.payload))
            }
        }
    }

    fn azure_topic(&self, parcel: &Parcel) -> String {
        // The hub looks into bodies that say that they are JSON in UTF-8, and into no others.
        let is_json = parcel.content_type == senml::MEDIA_TYPE_JSON && parcel.content_encoding.is_none();
        let content_type = if is_json { "application/json" } else { parcel.content_type };
        let encoding = if is_json { Some("utf-8") } else { parcel.content_encoding };
        let mut topic = format!("devices/{}/messages/events/$.ct={}", self.client_id, encode(content_type));
        if let Some(encoding) = encoding {
            topic += "&$.ce=";
            topic += encoding;
        }
        topic + "&id=" + &encode(&parcel.id) + "&lane=" + parcel.key.lane.as_str()
    }

    fn properties(&self, parcel: &Parcel) -> Properties {
        let mut user =
            vec![("id".into(), parcel.id.clone()), ("lane".into(), parcel.key.lane.as_str().to_owned())];
        user.extend(parcel.content_encoding.map(|how| ("content-encoding".into(), how.to_owned())));
        let is_shaped = self.preset == Some(Preset::ThingsBoard);
        let is_text = parcel.content_type == senml::MEDIA_TYPE_JSON && parcel.content_encoding.is_none();
        Properties {
            is_text: is_text.then_some(true),
            expiry: self.expiry,
            content_type: Some(if is_shaped {
                "application/json".into()
            } else {
                parcel.content_type.into()
            }),
            user,
            ..Properties::default()
        }
    }
}

/// The properties behind a topic of `IoT` Hub.
fn bag(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (decode(key), decode(value))).take(MAX_PROPERTIES).collect()
}

/// Properties looked at in one message; the hub allows fewer.
const MAX_PROPERTIES: usize = 64;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock::{BootId, Stamp};
    use crate::payload::parcel::ParcelKey;
    use crate::spool::Seq;
    use crate::uplink::forwarder::Lane;

    const PACK: &str = r#"[{"bn":"tidegate/barn/","n":"cellar/temperature","u":"Cel","v":21.5,"t":1800000000.5,"gw":"barn","epoch":"00000000000abc","seq":17,"boot":"1"}]"#;

    fn dialect(preset: Option<Preset>) -> Dialect {
        Dialect {
            preset,
            gateway: "barn".into(),
            client_id: "thing".into(),
            version: preset.map_or(Version::V5, |preset| preset.version().0),
            qos: Qos::AtLeastOnce,
            is_retaining: preset != Some(Preset::AwsIot),
            expiry: Some(Duration::from_secs(60)),
            devices: Devices::Each,
        }
    }

    fn parcel() -> Parcel {
        Parcel {
            key: ParcelKey { lane: Lane::Live, first: Seq(17), last: Seq(17) },
            id: "barn/00000000000abc/17".into(),
            topic: "tidegate/barn/cellar/temperature".into(),
            body: Bytes::from_static(PACK.as_bytes()),
            content_type: senml::MEDIA_TYPE_JSON,
            content_encoding: None,
            entries: 1,
            stamp: Stamp { boot: BootId(1), monotonic_ns: 0, wall: None },
            channel: Some("cellar/temperature".into()),
        }
    }

    fn asked(dialect: &Dialect, topic: &str, payload: &str) -> Option<Asked> {
        dialect.command(&Message::new(Topic::new(topic).unwrap(), payload.to_owned()))
    }

    #[test]
    fn plain_brokers_and_aws_get_the_topics_of_the_lan_and_properties_with_the_id() {
        for preset in [None, Some(Preset::HiveMq), Some(Preset::Emqx), Some(Preset::AwsIot)] {
            let dialect = dialect(preset);
            let message = dialect.publish(&parcel()).unwrap();
            assert_eq!((message.topic.as_str(), &message.payload[..]), (&*parcel().topic, PACK.as_bytes()));
            let properties = message.properties.unwrap();
            assert_eq!(properties.content_type.as_deref(), Some("application/senml+json"));
            assert_eq!((properties.is_text, properties.expiry), (Some(true), Some(Duration::from_secs(60))));
            let pairs = [("id", "barn/00000000000abc/17"), ("lane", "live")];
            assert_eq!(properties.user, pairs.map(|(key, value)| (key.to_owned(), value.to_owned())));
            assert_eq!(dialect.command_filter().unwrap().as_str(), "tidegate/barn/+/+/set");
            let state = dialect.state("online").unwrap();
            assert_eq!(state.topic.as_str(), "tidegate/barn/$state");
            assert_eq!(state.retain, preset != Some(Preset::AwsIot));
            let asked = asked(&dialect, "tidegate/barn/relay/pump/set", "on").unwrap();
            assert_eq!((asked.channel.as_str(), &asked.value[..]), ("relay/pump", &b"on"[..]));
        }
        let compressed = Parcel { content_encoding: Some("zstd"), ..parcel() };
        let properties = dialect(None).publish(&compressed).unwrap().properties.unwrap();
        assert_eq!(properties.is_text, None);
        assert_eq!(properties.user[2], ("content-encoding".to_owned(), "zstd".to_owned()));
    }

    #[test]
    fn azure_gets_properties_in_the_topic_and_gives_commands_the_same_way() {
        let dialect = dialect(Some(Preset::AzureIotHub));
        let message = dialect.publish(&parcel()).unwrap();
        assert_eq!(
            message.topic.as_str(),
            "devices/thing/messages/events/$.ct=application%2Fjson&$.ce=utf-8\
             &id=barn%2F00000000000abc%2F17&lane=live"
        );
        assert_eq!((message.properties, message.retain, dialect.state("online")), (None, false, None));
        let binary =
            Parcel { content_type: senml::MEDIA_TYPE_CBOR, content_encoding: Some("zstd"), ..parcel() };
        assert_eq!(
            dialect.publish(&binary).unwrap().topic.as_str(),
            "devices/thing/messages/events/$.ct=application%2Fsenml%2Bcbor&$.ce=zstd\
             &id=barn%2F00000000000abc%2F17&lane=live"
        );
        assert_eq!(dialect.command_filter().unwrap().as_str(), "devices/thing/messages/devicebound/#");
        let topic = "devices/thing/messages/devicebound/%24.mid=c-1&%24.to=%2Fdevices%2Fthing%2Fmessages%2Fdevicebound\
                     &%24.exp=2027-01-15T08%3A00%3A00Z&channel=relay%2Fpump";
        let command = asked(&dialect, topic, "true").unwrap();
        assert_eq!((command.channel.as_str(), command.id.as_deref()), ("relay/pump", Some("c-1")));
        assert_eq!(
            (&command.value[..], command.expires),
            (&b"true"[..], "2027-01-15T08:00:00Z".parse().ok())
        );
        let command = asked(
            &dialect,
            "devices/thing/messages/devicebound/%24.mid=c-2",
            r#"{"channel":"relay/pump","value":"on","id":"mine"}"#,
        );
        assert_eq!(command.unwrap().id.as_deref(), Some("mine"));
        assert_eq!(asked(&dialect, "devices/other/messages/devicebound/channel=a%2Fb", "1"), None);
        assert_eq!(asked(&dialect, "devices/thing/messages/devicebound/", "1"), None, "for which channel?");
    }

    #[test]
    fn what_each_platform_cannot_do_is_known() {
        use Preset::{AwsIot, AzureIotHub, Emqx, HiveMq, ThingsBoard};
        assert_eq!(
            [AwsIot, AzureIotHub, ThingsBoard, HiveMq, Emqx].map(Preset::has_qos_2),
            [false, false, false, true, true]
        );
        assert_eq!(
            (AwsIot.alpn(443), AwsIot.alpn(8883), Emqx.alpn(443)),
            (Some("x-amzn-mqtt-ca"), None, None)
        );
        assert_eq!(AzureIotHub.version(), (Version::V311, true));
        assert_eq!(AzureIotHub.websocket_path(), "/$iothub/websocket");
    }
}
