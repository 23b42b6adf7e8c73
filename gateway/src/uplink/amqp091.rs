//! AMQP 0-9-1, as RabbitMQ speaks it, by lapin: a topic exchange, persistent and mandatory messages, publisher
//! confirms (RabbitMQ "Consumer Acknowledgements and Publisher Confirms").
//!
//! lapin's own recovery stays off: the spool's cursor says what to send again, and two who resend would disagree.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind};
use serde::Deserialize;

use super::settings::{Common, Delivery};
use super::tls::Tls;
use super::{Context, Link, Setup, Uplink, UplinkType, host_and_port};
use crate::config::document::settings;
use crate::config::quantity::SecretSource;
use crate::payload;
use crate::payload::parcel::{Origin, Parcel};

/// `type = "amqp"`
pub static UPLINK: UplinkType = UplinkType {
    name: "amqp",
    parse: |table| settings::<Settings>(table).map(|set| Arc::new(set) as Arc<dyn Setup>),
};

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "no method of it is unsafe; tokio's select! makes it look so"
)]
struct Settings {
    /// `host:port`.
    address: String,
    #[serde(default = "default_vhost")]
    vhost: String,
    #[serde(default = "default_exchange")]
    exchange: String,
    /// Whether the exchange is there already and only looked for.
    #[serde(default)]
    passive: bool,
    username: Option<String>,
    password: Option<SecretSource>,
    tls: Option<Tls>,
}

impl Setup for Settings {
    fn type_name(&self) -> &'static str {
        UPLINK.name
    }

    fn target(&self) -> String {
        format!("{} exchange {}", self.address, self.exchange)
    }

    fn deliveries(&self) -> &'static [Delivery] {
        &[Delivery::AtLeastOnce]
    }

    fn problems(&self, _: &Common) -> Vec<String> {
        let mut problems: Vec<String> = self.tls.iter().flat_map(Tls::problems).collect();
        if host_and_port(&self.address).is_none() {
            problems.push(format!("`{}` is not host:port", self.address));
        }
        problems.extend(self.password.as_ref().and_then(|source| source.read().err()));
        for (name, text) in [("exchange", &self.exchange), ("vhost", &self.vhost)] {
            if text.is_empty() || text.len() > 127 {
                problems.push(format!("{name} out of range: 1 to 127 bytes"));
            }
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
        Box::new(Amqp { settings: self.clone(), origin: context.origin })
    }
}

struct Amqp {
    settings: Settings,
    origin: Origin,
}

impl Uplink for Amqp {
    fn carry<'a>(&'a mut self, link: &'a mut Link) -> BoxFuture<'a, anyhow::Result<()>> {
        let Self { settings, origin } = &*self;
        Box::pin(async move {
            let connection = tokio::time::timeout(CONNECT, settings.connect(&origin.gateway))
                .await
                .context("no answer")??;
            let channel =
                tokio::time::timeout(CONNECT, settings.prepare(&connection)).await.context("no answer")??;
            link.connected(&settings.target());
            let carried = settings.publish(origin, &channel, link).await;
            // Said politely where the connection still stands; otherwise dropping it is enough.
            let _ = tokio::time::timeout(CLOSE, connection.close(200, "bye".into())).await;
            carried
        })
    }
}

impl Settings {
    async fn connect(&self, gateway: &str) -> anyhow::Result<Connection> {
        let (host, port) =
            host_and_port(&self.address).ok_or_else(|| anyhow!("`{}` is not host:port", self.address))?;
        let password = match &self.password {
            Some(source) => {
                let secret = source.read().map_err(|error| anyhow!(error))?;
                String::from_utf8(secret.expose().to_vec())
                    .map_err(|_| anyhow!("the password is not UTF-8"))?
            }
            None => "guest".into(),
        };
        let username = self.username.clone().unwrap_or_else(|| "guest".into());
        let uri = AMQPUri {
            scheme: if self.tls.is_some() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username, password },
                host: host.into(),
                port,
            },
            vhost: self.vhost.clone(),
            query: AMQPQueryString { heartbeat: Some(HEARTBEAT_S), ..Default::default() },
        };
        let properties =
            ConnectionProperties::default().with_connection_name(format!("tidegate {gateway}").into());
        let runtime = lapin::runtime::default_runtime()?;
        Ok(Connection::connect_uri_with_config(uri, properties, self.tls_config()?, runtime).await?)
    }

    /// A channel in confirm mode, and the exchange to publish to.
    async fn prepare(&self, connection: &Connection) -> anyhow::Result<Channel> {
        let channel = connection.create_channel().await?;
        let options = ExchangeDeclareOptions { durable: true, passive: self.passive, ..Default::default() };
        channel
            .exchange_declare(
                self.exchange.as_str().into(),
                ExchangeKind::Topic,
                options,
                FieldTable::default(),
            )
            .await
            .with_context(|| format!("exchange {}", self.exchange))?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    fn tls_config(&self) -> anyhow::Result<OwnedTLSConfig> {
        let Some(tls) = &self.tls else { return Ok(OwnedTLSConfig::default()) };
        let read =
            |path: &std::path::PathBuf| std::fs::read(path).with_context(|| path.display().to_string());
        let identity = match (&tls.certificate, &tls.key) {
            (Some(certificate), Some(key)) => {
                Some(OwnedIdentity::PKCS8 { pem: read(certificate)?, key: read(key)? })
            }
            _ => None,
        };
        let authorities = tls.authorities()?;
        let cert_chain = Some(String::from_utf8(read(&authorities)?).context("the CA file is not PEM")?);
        Ok(OwnedTLSConfig { identity, cert_chain })
    }

    /// Publishes until something fails. A message that comes back unroutable fails the connection: taking it for
    /// delivered would lose it, and waiting gives somebody time to bind a queue.
    async fn publish(&self, origin: &Origin, channel: &Channel, link: &mut Link) -> anyhow::Result<()> {
        let stop = link.stopping();
        let mut confirms = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some((key, confirmed)) = confirms.next() => match confirmed? {
                    Confirmation::Ack(None) => {
                        link.confirmed(key).await;
                    }
                    Confirmation::Ack(Some(back)) | Confirmation::Nack(Some(back)) => {
                        bail!("message returned: {} {} (is a queue bound to exchange {}?)", back.reply_code, back.reply_text, self.exchange);
                    }
                    Confirmation::Nack(None) => bail!("the broker refused a message"),
                    Confirmation::NotRequested => bail!("the broker confirms nothing"),
                },
                parcels = link.next() => for parcel in parcels? {
                    let key = parcel.key;
                    let confirm = self.send(origin, channel, &parcel).await?;
                    confirms.push(async move { (key, confirm.await) });
                },
            }
        }
    }

    async fn send(
        &self,
        origin: &Origin,
        channel: &Channel,
        parcel: &Parcel,
    ) -> lapin::Result<lapin::PublisherConfirm> {
        let mut headers = FieldTable::default();
        let text = |text: &str| AMQPValue::LongString(text.into());
        headers.insert("gateway".into(), text(&origin.gateway));
        headers.insert("epoch".into(), text(&format!("{:014x}", origin.epoch)));
        headers.insert("boot".into(), text(&parcel.stamp.boot.to_string()));
        headers.insert("seq".into(), AMQPValue::LongLongInt(parcel.key.first.0 as i64));
        headers.insert("last".into(), AMQPValue::LongLongInt(parcel.key.last.0 as i64));
        headers.insert("lane".into(), text(parcel.key.lane.as_str()));
        let mut properties = BasicProperties::default()
            .with_content_type(parcel.content_type.into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(parcel.id.as_str().into())
            .with_headers(headers);
        if let Some(encoding) = parcel.content_encoding {
            properties = properties.with_content_encoding(encoding.into());
        }
        if let Some(wall) = parcel.stamp.wall {
            properties = properties.with_timestamp((wall.unix_ns / 1_000_000_000).max(0) as u64);
        }
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        channel
            .basic_publish(
                self.exchange.as_str().into(),
                routing_key(&parcel.topic),
                options,
                &parcel.body,
                properties,
            )
            .await
    }
}

/// A topic as a routing key: words divided by dots (AMQP 0-9-1 §3.1.3.3), at most 255 bytes (a short string).
fn routing_key(topic: &str) -> ShortString {
    let mut key = topic.replace('.', "_").replace('/', ".");
    key.truncate(key.floor_char_boundary(255));
    key.into()
}

fn default_vhost() -> String {
    "/".into()
}

fn default_exchange() -> String {
    payload::ROOT.into()
}

const PERSISTENT: u8 = 2;
const HEARTBEAT_S: u16 = 15;
const CONNECT: Duration = Duration::from_secs(15);
const CLOSE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_become_routing_keys_of_at_most_255_bytes() {
        assert_eq!(routing_key("tidegate/barn/cellar/v1.2").as_str(), "tidegate.barn.cellar.v1_2");
        assert!(routing_key(&"é/".repeat(200)).as_str().len() <= 255);
    }
}
