//! Commands from a queue: each is acknowledged after its outcome is known, so that a gateway that dies in between gets
//! it again, and the ledger of commands says whether it was carried out.
//!
//! The message id is the command's id: one that the broker delivers again is known by it. A message's expiration counts
//! from its timestamp; without one, from when it came here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Consumer};
use log::warn;

use super::routing;
use crate::uplink::Commands;

/// A consumer and where its commands go.
pub struct Taker {
    channel: Channel,
    consumer: Consumer,
    gateway: String,
    commands: Commands,
}

impl Taker {
    /// Consumes from `queue`.
    pub async fn start(
        channel: Channel,
        queue: &str,
        gateway: &str,
        commands: Commands,
    ) -> anyhow::Result<Self> {
        // One after the other, in the queue's order; the rest waits at the broker, where it can expire.
        channel.basic_qos(1, BasicQosOptions::default()).await?;
        let consumer = channel
            .basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
            .await
            .with_context(|| format!("queue {queue}"))?;
        Ok(Self { channel, consumer, gateway: gateway.to_owned(), commands })
    }

    async fn next(&mut self) -> anyhow::Result<()> {
        let Some(delivery) = self.consumer.next().await else { bail!("the queue is gone") };
        let delivery = delivery?;
        if let Some(outcome) = self.carry_out(&delivery).await {
            self.report(&delivery.properties, &outcome).await?;
        }
        // What is no command is acknowledged too: it would come back for ever.
        delivery.acker.ack(BasicAckOptions::default()).await?;
        Ok(())
    }

    async fn carry_out(&self, delivery: &Delivery) -> Option<serde_json::Value> {
        let key = delivery.routing_key.as_str();
        let properties = &delivery.properties;
        let channel = header(properties, "channel").or_else(|| routing::commanded(&self.gateway, key));
        let Some(channel) = channel else {
            warn!("a message under {key} names no channel and is no command");
            return None;
        };
        let id = properties.message_id().as_ref().map(|id| id.as_str().to_owned());
        let expires = expiry_ns(properties, SystemTime::now());
        Some(self.commands.carry_out(&channel, &delivery.data, id, expires).await)
    }

    /// Tells who asked, where it said how.
    async fn report(&self, asked: &BasicProperties, outcome: &serde_json::Value) -> anyhow::Result<()> {
        let Some(reply_to) = asked.reply_to() else { return Ok(()) };
        let mut properties = BasicProperties::default().with_content_type("application/json".into());
        if let Some(id) = asked.correlation_id().as_ref().or(asked.message_id().as_ref()) {
            properties = properties.with_correlation_id(id.clone());
        }
        let options = BasicPublishOptions::default();
        // Nobody waits for a confirmation: the outcome that counts is spooled.
        let body = outcome.to_string();
        drop(
            self.channel
                .basic_publish("".into(), reply_to.clone(), options, body.as_bytes(), properties)
                .await?,
        );
        Ok(())
    }
}

/// Takes commands until something fails; without a taker, never ends.
pub async fn run(taker: Option<Taker>) -> anyhow::Result<()> {
    let Some(mut taker) = taker else { return std::future::pending().await };
    loop {
        taker.next().await?;
    }
}

/// When a message expires, in nanoseconds since 1970: `expiration` is a number of milliseconds as text, `timestamp`
/// whole seconds (AMQP 0-9-1 §1.8 and RabbitMQ "Time-to-Live and Expiration").
fn expiry_ns(properties: &BasicProperties, now: SystemTime) -> Option<i64> {
    let lifetime: u64 = properties.expiration().as_ref()?.as_str().parse().ok()?;
    let begin = match properties.timestamp() {
        Some(seconds) => UNIX_EPOCH.checked_add(Duration::from_secs(*seconds))?,
        None => now,
    };
    let end = begin.checked_add(Duration::from_millis(lifetime))?;
    i64::try_from(end.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
}

fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_expires_counted_from_its_timestamp_or_from_when_it_came() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let message = BasicProperties::default().with_expiration("2500".into());
        assert_eq!(expiry_ns(&message, now), Some(1_002_500_000_000));
        assert_eq!(expiry_ns(&message.with_timestamp(900), now), Some(902_500_000_000));
        assert_eq!(expiry_ns(&BasicProperties::default(), now), None);
        let odd = BasicProperties::default().with_expiration("soon".into());
        assert_eq!(expiry_ns(&odd, now), None);
        let huge =
            BasicProperties::default().with_expiration(u64::MAX.to_string().into()).with_timestamp(u64::MAX);
        assert_eq!(expiry_ns(&huge, now), None);
    }
}
