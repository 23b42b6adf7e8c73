//! AMQP 0-9-1, as RabbitMQ speaks it, by lapin: a topic exchange, persistent and mandatory messages, publisher
//! confirms (RabbitMQ "Consumer Acknowledgements and Publisher Confirms"), and commands from a queue.
//!
//! lapin's own recovery stays off: the spool's cursor says what to send again, and two who resend would disagree.

mod commands;
mod connect;
mod routing;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use lapin::{BasicProperties, Channel, Confirmation, ConnectionProperties, ExchangeKind, PublisherConfirm};
use serde::{Deserialize, Deserializer, de};

use self::commands::Taker;
use self::connect::Line;
use self::routing::{Place, Template};
use super::dial::dial;
use super::settings::{Common, Delivery};
use super::tls::Tls;
use super::{Context, Link, Setup, Uplink, UplinkType, host_and_port};
use crate::config::document::settings;
use crate::config::quantity::SecretSource;
use crate::payload::ROOT;
use crate::payload::parcel::{Parcel, milliseconds};

/// `type = "amqp"`
pub static UPLINK: UplinkType = UplinkType {
    name: "amqp",
    parse: |table| settings::<Settings>(table).map(|set| Arc::new(set) as Arc<dyn Setup>),
};

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// `host:port`.
    address: String,
    #[serde(default = "default_vhost")]
    vhost: String,
    /// A durable topic exchange.
    #[serde(default = "default_exchange")]
    exchange: String,
    /// Whether the exchange is there already and only looked for.
    #[serde(default)]
    passive: bool,
    /// Where in the exchange a message goes.
    #[serde(default = "default_routing_key", deserialize_with = "template")]
    routing_key: Template,
    /// A queue to declare and bind, so that there is one before the first message.
    queue: Option<Queue>,
    /// Where commands are taken from; `tidegate.<gateway>.commands` unless it is named.
    command_queue: Option<String>,
    /// Without a user and with a client certificate, that one says who we are (SASL EXTERNAL); with neither it is
    /// `guest`, whom brokers let in from loopback alone.
    username: Option<String>,
    password: Option<SecretSource>,
    tls: Option<Tls>,
    /// Between signs of life; after two without one the connection is given up.
    #[serde(default = "default_keep_alive")]
    keep_alive: drivers::Period,
}

/// `queue = { name = …, type = "quorum", bind = "#" }`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Queue {
    name: String,
    #[serde(default, rename = "type")]
    kind: QueueKind,
    /// The binding key.
    #[serde(default = "everything")]
    bind: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum QueueKind {
    /// Replicated: confirmed when a majority of the cluster's nodes has it on disk.
    #[default]
    Quorum,
    /// On one node.
    Classic,
}

impl Setup for Settings {
    fn type_name(&self) -> &'static str {
        UPLINK.name
    }

    fn target(&self) -> String {
        format!("{} exchange {}", self.address, self.exchange)
    }

    fn deliveries(&self) -> &'static [Delivery] {
        &[Delivery::AtMostOnce, Delivery::AtLeastOnce]
    }

    fn problems(&self, _: &Common) -> Vec<String> {
        let mut problems: Vec<String> = self.tls.iter().flat_map(Tls::problems).collect();
        if host_and_port(&self.address).is_none() {
            problems.push(format!("`{}` is not host:port", self.address));
        }
        problems.extend(self.password.as_ref().and_then(|source| source.read().err()));
        let queue = self.queue.as_ref();
        for (name, text) in [
            ("exchange", Some(&self.exchange)),
            ("vhost", Some(&self.vhost)),
            ("queue.name", queue.map(|queue| &queue.name)),
            ("queue.bind", queue.map(|queue| &queue.bind)),
            ("command_queue", self.command_queue.as_ref()),
        ] {
            if text.is_some_and(|text| text.is_empty() || text.len() > 127) {
                problems.push(format!("{name} out of range: 1 to 127 bytes"));
            }
        }
        if self.username.is_some() != self.password.is_some() {
            problems.push("username and password go together".into());
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.keep_alive.0) {
            problems.push("keep_alive out of range: 1s to 1h".into());
        }
        problems
    }

    fn is_same(&self, other: &dyn Setup) -> bool {
        other.as_any().downcast_ref::<Self>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn open(&self, context: Context) -> Box<dyn Uplink> {
        Box::new(Amqp { settings: self.clone(), context })
    }
}

struct Amqp {
    settings: Settings,
    context: Context,
}

impl Uplink for Amqp {
    fn carry<'a>(&'a mut self, link: &'a mut Link) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            let open = async {
                let line = self.connect().await?;
                let channel = self.prepare(&line).await?;
                let taker = self.take_commands(&line, link).await?;
                anyhow::Ok((line, channel, taker))
            };
            let (line, channel, taker) = tokio::time::timeout(CONNECT, open).await.context("no answer")??;
            link.connected(&self.settings.target());
            let carried = self.publish(&channel, link, taker).await;
            // Said politely where the connection still stands; otherwise dropping it is enough.
            let _ = tokio::time::timeout(CLOSE, line.connection.close(200, "bye".into())).await;
            carried
        })
    }
}

impl Amqp {
    async fn connect(&self) -> anyhow::Result<Line> {
        let set = &self.settings;
        let (host, port) =
            host_and_port(&set.address).ok_or_else(|| anyhow!("`{}` is not host:port", set.address))?;
        let password = match &set.password {
            Some(source) => {
                let secret = source.read().map_err(|error| anyhow!(error))?;
                String::from_utf8(secret.expose().to_vec())
                    .map_err(|_| anyhow!("the password is not UTF-8"))?
            }
            None => GUEST.into(),
        };
        let username = set.username.clone().unwrap_or_else(|| GUEST.into());
        let has_certificate = set.tls.as_ref().is_some_and(|tls| tls.certificate.is_some());
        let is_external = set.username.is_none() && has_certificate;
        let uri = AMQPUri {
            // What is below it is not lapin's business.
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username, password },
                host: host.into(),
                port,
            },
            vhost: set.vhost.clone(),
            query: AMQPQueryString {
                heartbeat: Some(u16::try_from(set.keep_alive.0.as_secs()).unwrap_or(u16::MAX)),
                auth_mechanism: is_external.then_some(SASLMechanism::External),
                ..Default::default()
            },
        };
        let name = format!("tidegate {}", self.context.origin);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let stream = dial(&set.address, set.tls.as_ref()).await?;
        Ok(connect::open(stream, uri, properties).await?)
    }

    /// The exchange, the queue if there is one to make, and a channel to publish on.
    async fn prepare(&self, line: &Line) -> anyhow::Result<Channel> {
        let set = &self.settings;
        let channel = line.connection.create_channel().await?;
        let options = ExchangeDeclareOptions { durable: true, passive: set.passive, ..Default::default() };
        let exchange = set.exchange.as_str();
        channel
            .exchange_declare(exchange.into(), ExchangeKind::Topic, options, FieldTable::default())
            .await
            .with_context(|| format!("exchange {exchange}"))?;
        if let Some(queue) = &set.queue {
            declare(&channel, &queue.name, queue.kind).await?;
            bind(&channel, &queue.name, exchange, &queue.bind).await?;
        }
        if self.context.common.delivery != Delivery::AtMostOnce {
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
        }
        Ok(channel)
    }

    async fn take_commands(&self, line: &Line, link: &Link) -> anyhow::Result<Option<Taker>> {
        if !self.context.common.commands {
            return Ok(None);
        }
        let set = &self.settings;
        let gateway = &self.context.origin.gateway;
        let queue = set.command_queue.clone().unwrap_or_else(|| format!("{ROOT}.{gateway}.commands"));
        // Its own: an error there does not take the readings' channel with it, and the other way round.
        let channel = line.connection.create_channel().await?;
        declare(&channel, &queue, QueueKind::Classic).await?;
        bind(&channel, &queue, &set.exchange, &routing::command_key(gateway)).await?;
        Taker::start(channel, &queue, gateway, link.commands()).await.map(Some)
    }

    /// Publishes until something fails. A message that comes back unroutable fails the connection: taking it for
    /// delivered would lose it, and waiting gives somebody time to bind a queue.
    async fn publish(&self, channel: &Channel, link: &mut Link, taker: Option<Taker>) -> anyhow::Result<()> {
        let stop = link.stopping();
        let mut confirms = FuturesUnordered::new();
        let mut taking = Box::pin(commands::run(taker));
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some((key, confirmed)) = confirms.next() => match confirmed? {
                    Confirmation::Ack(None) | Confirmation::NotRequested => {
                        link.confirmed(key).await;
                    }
                    Confirmation::Ack(Some(back)) | Confirmation::Nack(Some(back)) => {
                        bail!(
                            "message returned: {} {} (is a queue bound to exchange {}?)",
                            back.reply_code, back.reply_text, self.settings.exchange
                        );
                    }
                    Confirmation::Nack(None) => bail!("the broker refused a message"),
                },
                ended = &mut taking => ended.context("commands")?,
                parcels = link.next() => for parcel in parcels? {
                    let key = parcel.key;
                    let confirm = self.send(channel, &parcel).await?;
                    confirms.push(async move { (key, confirm.await) });
                },
            }
        }
    }

    async fn send(&self, channel: &Channel, parcel: &Parcel) -> lapin::Result<PublisherConfirm> {
        let origin = &self.context.origin;
        let lane = parcel.key.lane.as_str();
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut headers = FieldTable::default();
        for (name, value) in [
            ("gateway", text(&origin.gateway)),
            ("epoch", text(&format!("{:014x}", origin.epoch))),
            ("boot", text(&parcel.stamp.boot.to_string())),
            ("lane", text(lane)),
            ("seq", AMQPValue::LongLongInt(parcel.key.first.0 as i64)),
            ("last", AMQPValue::LongLongInt(parcel.key.last.0 as i64)),
        ] {
            headers.insert(name.into(), value);
        }
        let mut properties = BasicProperties::default()
            .with_content_type(parcel.content_type.into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(parcel.id.as_str().into())
            .with_headers(headers);
        if let Some(encoding) = parcel.content_encoding {
            properties = properties.with_content_encoding(encoding.into());
        }
        if let Some(ms) = milliseconds(&parcel.stamp) {
            properties = properties.with_timestamp((ms / 1000).max(0) as u64);
        }
        let place = Place { gateway: &origin.gateway, lane, topic: &parcel.topic };
        let key = self.settings.routing_key.fill(&place);
        // Sent at most once, a message that nobody wants is not sent back either.
        let mandatory = self.context.common.delivery != Delivery::AtMostOnce;
        let options = BasicPublishOptions { mandatory, ..Default::default() };
        let exchange = self.settings.exchange.as_str();
        channel.basic_publish(exchange.into(), key.into(), options, &parcel.body, properties).await
    }
}

/// A durable queue.
async fn declare(channel: &Channel, name: &str, kind: QueueKind) -> anyhow::Result<()> {
    let mut arguments = FieldTable::default();
    if kind == QueueKind::Quorum {
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    }
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.into(), options, arguments).await.with_context(|| format!("queue {name}"))?;
    Ok(())
}

async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> anyhow::Result<()> {
    channel
        .queue_bind(
            queue.into(),
            exchange.into(),
            key.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .with_context(|| format!("queue {queue}"))
}

fn template<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Template, D::Error> {
    Template::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

fn default_vhost() -> String {
    "/".into()
}

fn default_exchange() -> String {
    ROOT.into()
}

fn default_routing_key() -> Template {
    Template::parse("{topic}").expect("it names what there is")
}

fn everything() -> String {
    "#".into()
}

fn default_keep_alive() -> drivers::Period {
    drivers::Period(Duration::from_secs(15))
}

const GUEST: &str = "guest";
const PERSISTENT: u8 = 2;
const CONNECT: Duration = Duration::from_secs(20);
const CLOSE: Duration = Duration::from_secs(2);
