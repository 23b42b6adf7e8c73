//! MQTT 5.0.

use std::time::Duration;

use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectReturnCode, LastWill, Packet, PublishProperties, SubscribeReasonCode,
};
use rumqttc::v5::{Client as Sender, Event, MqttOptions};
use serde_json::{Value, json};

use super::{Client, Connection, Message, hex, obey, tell};

pub(super) fn run(connection: Connection) -> Result<(), String> {
    let mut options = MqttOptions::new(connection.id, connection.host, connection.port);
    options.set_transport(connection.transport).set_clean_start(connection.clean);
    options.set_keep_alive(Duration::from_secs(20)).set_max_packet_size(Some(1024 * 1024));
    options.set_session_expiry_interval(connection.session_expiry).set_topic_alias_max(Some(10));
    if let Some(will) = connection.will {
        options.set_last_will(LastWill::new(will.topic, will.payload, qos(will.qos)?, will.retain, None));
    }
    if let Some((user, password)) = connection.login {
        options.set_credentials(user, password);
    }
    let (client, mut events) = Sender::new(options, 100);
    let mut is_leaving = false;
    for event in events.iter() {
        match event {
            Ok(Event::Incoming(Packet::ConnAck(answer))) if answer.code == ConnectReturnCode::Success => {
                tell(&json!({"event": "connected", "session": answer.session_present}));
                obey(client.clone());
            }
            Ok(Event::Incoming(Packet::SubAck(answer))) => {
                let granted: Vec<u8> = answer.return_codes.iter().copied().map(code).collect();
                tell(&json!({"event": "subscribed", "granted": granted}));
            }
            Ok(
                Event::Outgoing(Outgoing::Publish(0))
                | Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_)),
            ) => tell(&json!({"event": "published"})),
            Ok(Event::Incoming(Packet::Publish(message))) => tell(&json!({
                "event": "message",
                "topic": String::from_utf8_lossy(&message.topic),
                "payload": hex(&message.payload),
                "qos": message.qos as u8,
                "retain": message.retain,
                "properties": message.properties.as_ref().map_or(Value::Null, shown),
            })),
            Ok(Event::Outgoing(Outgoing::Disconnect)) => is_leaving = true,
            Ok(_) => {}
            Err(_) if is_leaving => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

impl Client for Sender {
    fn subscribe(&self, filter: &str, level: u64) -> Result<(), String> {
        Sender::subscribe(self, filter, qos(level)?).map_err(|error| error.to_string())
    }

    fn publish(&self, message: Message) -> Result<(), String> {
        let level = qos(message.qos)?;
        let mut properties = parsed(&message.properties);
        properties.topic_alias = message.alias;
        let again = message.alias.map(|_| (properties.clone(), message.payload.clone()));
        self.publish_with_properties(message.topic, level, message.retain, message.payload, properties)
            .map_err(|error| error.to_string())?;
        if let Some((properties, payload)) = again {
            self.publish_with_properties("", level, message.retain, payload, properties)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn leave(&self) -> Result<(), String> {
        self.disconnect().map_err(|error| error.to_string())
    }
}

fn parsed(text: &Value) -> PublishProperties {
    let word = |name: &str| text[name].as_str().map(str::to_owned);
    let pair = |pair: &Value| Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned()));
    PublishProperties {
        message_expiry_interval: text["expiry"].as_u64().and_then(|seconds| seconds.try_into().ok()),
        response_topic: word("response_topic"),
        correlation_data: word("correlation").map(Into::into),
        content_type: word("content_type"),
        user_properties: text["user"].as_array().into_iter().flatten().filter_map(pair).collect(),
        ..PublishProperties::default()
    }
}

fn shown(properties: &PublishProperties) -> Value {
    json!({
        "expiry": properties.message_expiry_interval,
        "response_topic": properties.response_topic,
        "correlation": properties.correlation_data.as_ref().map(|data| String::from_utf8_lossy(data)),
        "content_type": properties.content_type,
        "user": properties.user_properties,
    })
}

fn code(granted: SubscribeReasonCode) -> u8 {
    match granted {
        SubscribeReasonCode::Success(level) => level as u8,
        _ => 0x80,
    }
}

fn qos(level: u64) -> Result<QoS, String> {
    match level {
        0 => Ok(QoS::AtMostOnce),
        1 => Ok(QoS::AtLeastOnce),
        2 => Ok(QoS::ExactlyOnce),
        other => Err(format!("no QoS {other}")),
    }
}
