//! What flows through the gateway: readings to everybody who shows or keeps them, clients' messages to the spool,
//! commands to the desk. One task each.

use std::sync::Arc;
use std::time::Instant;

use drivers::schedule::State;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use log::{info, warn};
use mqtt::{Filter, Message, Origin};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::COMMANDS;
use crate::command::{Command, Order};
use crate::gateway::Gateway;
use crate::listener::broker::{Delivered, Ingress, Taking};
use crate::listener::coap;
use crate::payload::{Format, ROOT};
use crate::reading::ChannelId;
use crate::spool::Entry;
use crate::{live, sampler};

/// Readings and states from the sampler: shown live at once, then handed to the spool.
pub(super) async fn take_readings(
    gateway: Arc<Gateway>,
    mut events: mpsc::Receiver<sampler::Event>,
    stop: CancellationToken,
) {
    while let Some(event) = events.recv().await {
        match event {
            sampler::Event::Online { device, channels } => gateway.live.set_channels(&device, &channels),
            sampler::Event::State { device, state, detail } => {
                let detail = detail.unwrap_or_default();
                // A device that is being found is not silent yet.
                if state != State::Probing {
                    gateway.alarms.device(&device, state == State::Online, &detail);
                }
                gateway.live.set_state(&device, state.as_str(), detail);
            }
            sampler::Event::Lapsed { device, lapse } => {
                if let Some(channel) = ChannelId::new(&device, &lapse.channel) {
                    gateway.desk.report_lapse(channel, lapse);
                }
            }
            sampler::Event::Readings(readings) => {
                for reading in readings {
                    let reading = live::rounded(reading);
                    gateway.live.set_reading(&reading);
                    gateway.alarms.reading(&reading);
                    // Nobody tails: that is fine.
                    let _ = gateway.readings.send(reading.clone());
                    gateway.intake.offer(Entry::Reading(reading));
                }
            }
        }
    }
    // The sampler has stopped; this task ends with the others.
    stop.cancelled().await;
}

/// Clients' messages on forwarded topics: acknowledged once the spool has them.
pub(super) async fn take_ingress(
    gateway: Arc<Gateway>,
    mut ingress: mpsc::Receiver<Ingress>,
    stop: CancellationToken,
) {
    let mut waiting = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(()) = waiting.next() => {}
            // Cancel-safe: a message is taken or it is not.
            taken = ingress.recv() => {
                let Some(Ingress { message, receipt, .. }) = taken else { return };
                let entry = Entry::Message {
                    topic: message.topic.as_str().into(),
                    payload: message.payload.clone(),
                    stamp: gateway.clock.stamp(),
                };
                if message.qos == mqtt::Qos::AtMostOnce {
                    // Nobody waits: it shares a commit like a reading.
                    gateway.intake.offer(entry);
                    receipt.stored();
                    continue;
                }
                let (done, stored) = oneshot::channel();
                gateway.intake.store(entry, done).await;
                waiting.push(async move {
                    match stored.await {
                        Ok(Ok(())) => receipt.stored(),
                        _ => receipt.refused(mqtt::ReasonCode::QUOTA_EXCEEDED),
                    }
                });
            }
        }
    }
}

/// Commands by MQTT: `tidegate/<gateway>/<device>/<channel>/set`, the value as text or as
/// `{"value": …, "id": …, "expires": …}`.
pub(super) async fn take_mqtt_commands(
    gateway: Arc<Gateway>,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let prefix = format!("{ROOT}/{}/", gateway.live.gateway());
    // The subscription stands before anything is announced.
    let mut messages = match Filter::new(format!("{prefix}+/+/set")) {
        Ok(filter) => Some(gateway.broker.subscribe(filter, Taking::Answered).await),
        Err(_) => None,
    };
    async move {
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = under_way.next() => {}
                Some(Delivered { message, origin, receipt }) = next_of(&mut messages), if under_way.len() < COMMANDS => {
                    let Some(command) = command_of(&prefix, &message, &origin) else {
                        receipt.stored();
                        continue;
                    };
                    // One that has a name may come again, and its sender waits until it is dealt with. Without one it
                    // must not: it counts as taken now.
                    let receipt = match command.id {
                        Some(_) => Some(receipt),
                        None => {
                            receipt.stored();
                            None
                        }
                    };
                    let desk = gateway.desk.clone();
                    under_way.push(async move {
                        desk.carry_out(command).await;
                        if let Some(receipt) = receipt {
                            receipt.stored();
                        }
                    });
                }
            }
        }
    }
}

/// What a message below `tidegate/<gateway>/` orders, if anything.
fn command_of(prefix: &str, message: &Message, origin: &Origin) -> Option<Command> {
    // It would be carried out again at every start.
    if message.retain {
        warn!("a retained command on {} is not carried out", message.topic.as_str());
        return None;
    }
    let path = message.topic.as_str().strip_prefix(prefix)?.strip_suffix("/set")?;
    let channel = ChannelId::parse(path)?;
    let source = match origin {
        Origin::Client(client) => format!("mqtt {}", client.escape_debug()),
        Origin::Gateway => "mqtt".into(),
    };
    let Order { value, id, expires_ns } = match Order::parse(&message.payload) {
        Ok(order) => order,
        Err(why) => {
            info!(source:% = source; "command to {channel} refused: {why}");
            return None;
        }
    };
    // MQTT 5.0 §3.3.2.3.3: the publisher's own word on how long the message is worth anything.
    let lifetime = message.properties.as_ref().and_then(|properties| properties.expiry);
    let not_after = lifetime.and_then(|lifetime| Instant::now().checked_add(lifetime));
    Some(Command { channel, format: Format::Text, value, source, id, expires_ns, not_after })
}

/// Commands by CoAP.
pub(super) async fn take_coap_commands(
    gateway: Arc<Gateway>,
    mut requests: mpsc::Receiver<coap::CommandRequest>,
    stop: CancellationToken,
) {
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(()) = under_way.next() => {}
            Some(request) = requests.recv(), if under_way.len() < COMMANDS => {
                let desk = gateway.desk.clone();
                under_way.push(async move {
                    let coap::CommandRequest { channel, format, value, source, id, expires_ns, reply } = request;
                    let not_after = None;
                    let command = Command { channel, format, value, source, id, expires_ns, not_after };
                    let _ = reply.send(desk.carry_out(command).await.result);
                });
            }
        }
    }
}

/// Home Assistant says `online` when it has started: it then wants to hear of everything again.
pub(super) async fn greet_home_assistant(gateway: Arc<Gateway>, stop: CancellationToken) {
    let topic = format!("{}/status", gateway.config().home_assistant.prefix);
    let Ok(filter) = Filter::new(topic) else { return stop.cancelled().await };
    let mut births = gateway.broker.subscribe(filter, Taking::Unseen).await;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(birth) = births.recv() => {
                if &birth.message.payload[..] == b"online" {
                    gateway.live.announce_all();
                }
            }
        }
    }
}

async fn next_of(messages: &mut Option<mpsc::Receiver<Delivered>>) -> Option<Delivered> {
    match messages {
        Some(messages) => messages.recv().await,
        None => None,
    }
}
