//! MQTT 3.1.1.

use std::time::Duration;

use rumqttc::{
    Client as Sender, ConnectReturnCode, Event, LastWill, MqttOptions, Outgoing, Packet, QoS,
    SubscribeReasonCode,
};
use serde_json::json;

use super::{Client, Connection, Message, hex, obey, tell};

pub(super) fn run(connection: Connection) -> Result<(), String> {
    let mut options = MqttOptions::new(connection.id, connection.host, connection.port);
    options.set_transport(connection.transport).set_clean_session(connection.clean);
    options.set_keep_alive(Duration::from_secs(20)).set_max_packet_size(1024 * 1024, 1024 * 1024);
    if let Some(will) = connection.will {
        options.set_last_will(LastWill::new(will.topic, will.payload, qos(will.qos)?, will.retain));
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
                "topic": message.topic,
                "payload": hex(&message.payload),
                "qos": message.qos as u8,
                "retain": message.retain,
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
        Sender::publish(self, message.topic, level, message.retain, message.payload)
            .map_err(|error| error.to_string())
    }

    fn leave(&self) -> Result<(), String> {
        self.disconnect().map_err(|error| error.to_string())
    }
}

fn code(granted: SubscribeReasonCode) -> u8 {
    match granted {
        SubscribeReasonCode::Success(level) => level as u8,
        SubscribeReasonCode::Failure => 0x80,
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
