//! AMQP 1.0 (OASIS), by fe2o3-amqp: `RabbitMQ`, `ActiveMQ` Artemis, Qpid, and Azure's Event Hubs, Service Bus and IoT Hub.
//!
//! One sender link to one node. A message is durable, carries its id and its place, and counts as delivered only when
//! the peer's disposition says *accepted*; released, rejected and modified are failures that end the connection, so
//! that nothing is skipped. Sent at most once, messages go out settled. AMQP 1.0 has no exactly-once that brokers
//! offer: the far side drops repeats by the id.

mod cbs;
mod sasl;

use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use fe2o3_amqp::link::delivery::{DeliveryFut, Sendable};
use fe2o3_amqp::link::{SendError, Sender};
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::definitions::SenderSettleMode;
use fe2o3_amqp::types::messaging::{
    ApplicationProperties, Body, Data, Header, Message, MessageId, Outcome, Properties,
};
use fe2o3_amqp::types::primitives::{Binary, Symbol, Timestamp, Value};
use fe2o3_amqp::{Connection, Session};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use serde::Deserialize;

use self::cbs::{Cbs, Sas};
use self::sasl::Mechanism;
use super::dial::dial;
use super::settings::{Common, Delivery};
use super::tls::Tls;
use super::{Context, Link, Setup, Uplink, UplinkType, host_and_port};
use crate::config::document::settings;
use crate::config::quantity::SecretSource;
use crate::payload::ROOT;
use crate::payload::parcel::{Origin, Parcel, ParcelKey, milliseconds};

/// `type = "amqp10"`
pub static UPLINK: UplinkType = UplinkType {
    name: "amqp10",
    parse: |table| settings::<Settings>(table).map(|set| Arc::new(set) as Arc<dyn Setup>),
};

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// `host:port`.
    address: String,
    /// The node to send to: `/queue/readings`, `/exchange/tidegate`, an event hub's name.
    node: String,
    /// The virtual host or namespace; the address's host unless it is named.
    hostname: Option<String>,
    /// Without a user, a client certificate says who we are (SASL EXTERNAL); without that we are nobody (ANONYMOUS).
    username: Option<String>,
    password: Option<SecretSource>,
    /// A shared-access signature for an Azure node.
    sas: Option<Sas>,
    tls: Option<Tls>,
    /// After so long without a sign of life from the peer the connection is given up.
    #[serde(default = "default_keep_alive")]
    keep_alive: drivers::Period,
}

impl Setup for Settings {
    fn type_name(&self) -> &'static str {
        UPLINK.name
    }

    fn target(&self) -> String {
        format!("{} {}", self.address, self.node)
    }

    fn deliveries(&self) -> &'static [Delivery] {
        &[Delivery::AtMostOnce, Delivery::AtLeastOnce]
    }

    fn problems(&self, common: &Common) -> Vec<String> {
        let mut problems: Vec<String> = self.tls.iter().flat_map(Tls::problems).collect();
        if host_and_port(&self.address).is_none() {
            problems.push(format!("`{}` is not host:port", self.address));
        }
        if common.commands {
            problems.push("amqp10 takes no commands: use amqp or mqtt for them".into());
        }
        problems.extend(self.password.as_ref().and_then(|source| source.read().err()));
        problems.extend(self.sas.iter().flat_map(Sas::problems));
        if self.node.is_empty() || self.node.len() > 255 {
            problems.push("node out of range: 1 to 255 bytes".into());
        }
        // What SASL says has to fit into 512 bytes.
        for (name, text) in [("username", &self.username), ("hostname", &self.hostname)] {
            if text.as_ref().is_some_and(|text| text.is_empty() || text.len() > 128) {
                problems.push(format!("{name} out of range: 1 to 128 bytes"));
            }
        }
        if self.username.is_some() != self.password.is_some() {
            problems.push("username and password go together".into());
        }
        if self.username.is_some() && self.sas.is_some() {
            problems.push("either username or sas".into());
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
        Box::new(Amqp10 { settings: self.clone(), context })
    }
}

struct Amqp10 {
    settings: Settings,
    context: Context,
}

/// An open connection with its one link.
struct Line {
    // Dropped in this order: link, session, connection.
    sender: Sender,
    cbs: Option<Cbs>,
    session: SessionHandle<()>,
    connection: fe2o3_amqp::connection::ConnectionHandle<()>,
}

impl Uplink for Amqp10 {
    fn carry<'a>(&'a mut self, link: &'a mut Link) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            let line = tokio::time::timeout(CONNECT, self.connect()).await.context("no answer")??;
            link.connected(&self.settings.target());
            self.publish(line, link).await
        })
    }
}

impl Amqp10 {
    async fn connect(&self) -> anyhow::Result<Line> {
        let set = &self.settings;
        let (host, _) =
            host_and_port(&set.address).ok_or_else(|| anyhow!("`{}` is not host:port", set.address))?;
        let hostname = set.hostname.as_deref().unwrap_or(host);
        let mut stream = dial(&set.address, set.tls.as_ref()).await?;
        sasl::authenticate(&mut stream, &set.mechanism()?, hostname).await?;
        let mut connection = Connection::builder()
            .container_id(format!("{ROOT}-{}-{}", self.context.origin.gateway, self.context.name))
            .hostname(hostname)
            .max_frame_size(FRAME_MAX)
            .channel_max(1)
            .idle_time_out(u32::try_from(set.keep_alive.0.as_millis()).unwrap_or(u32::MAX))
            .open_with_stream(stream)
            .await?;
        let mut session = Session::begin(&mut connection).await?;
        let mut cbs = None;
        if let Some(sas) = &set.sas {
            cbs.insert(Cbs::attach(&mut session).await?).put(sas).await?;
        }
        let is_settled = self.context.common.delivery == Delivery::AtMostOnce;
        let sender = Sender::builder()
            .name(format!("{ROOT}-{}", self.context.name))
            .target(set.node.as_str())
            .sender_settle_mode(if is_settled {
                SenderSettleMode::Settled
            } else {
                SenderSettleMode::Unsettled
            })
            .attach(&mut session)
            .await
            .with_context(|| set.node.clone())?;
        Ok(Line { sender, cbs, session, connection })
    }

    async fn publish(&self, line: Line, link: &mut Link) -> anyhow::Result<()> {
        let Line { sender, mut cbs, mut session, mut connection } = line;
        let stop = link.stopping();
        let renew_after = self.settings.sas.as_ref().map_or(NEVER, Sas::renew_after);
        let renewal = tokio::time::sleep(renew_after);
        tokio::pin!(renewal);
        let mut waiting: VecDeque<Parcel> = VecDeque::new();
        let mut outcomes = FuturesUnordered::new();
        let mut desk = Desk::Idle(Box::new(sender));
        loop {
            if matches!(desk, Desk::Idle(_))
                && let Some(parcel) = waiting.pop_front()
            {
                desk = desk.send(&self.context.origin, parcel);
            }
            tokio::select! {
                () = stop.cancelled() => break,
                Some((key, outcome)) = outcomes.next() => {
                    judge(outcome?)?;
                    link.confirmed(key).await;
                }
                (sender, key, sent) = desk.sent() => {
                    desk = Desk::Idle(sender);
                    let settled: DeliveryFut<Result<Outcome, SendError>> = sent?;
                    outcomes.push(async move { (key, settled.await) });
                }
                parcels = link.next(), if waiting.is_empty() => waiting.extend(parcels?),
                closed = connection.on_close() => {
                    closed?;
                    bail!("closed by the peer");
                }
                () = &mut renewal => {
                    if let (Some(cbs), Some(sas)) = (&mut cbs, &self.settings.sas) {
                        tokio::time::timeout(CONNECT, cbs.put(sas)).await.context("no answer from $cbs")??;
                    }
                    renewal.as_mut().reset(tokio::time::Instant::now() + renew_after);
                }
            }
        }
        // Said politely where the connection still stands; otherwise dropping it is enough.
        let _ = tokio::time::timeout(CLOSE, async {
            let _ = session.end().await;
            connection.close().await
        })
        .await;
        Ok(())
    }
}

type Sent = (Box<Sender>, ParcelKey, Result<DeliveryFut<Result<Outcome, SendError>>, SendError>);

/// The sender, or the message that it is handing over. Handing over waits for the peer's credit and is never broken
/// off: whether the message went out would not be known.
enum Desk {
    Idle(Box<Sender>),
    Busy(Pin<Box<dyn Future<Output = Sent> + Send>>),
}

impl Desk {
    fn send(self, origin: &Origin, parcel: Parcel) -> Self {
        let Self::Idle(mut sender) = self else { return self };
        let key = parcel.key;
        let message = message(origin, parcel);
        Self::Busy(Box::pin(async move {
            let sent = sender.send_batchable(message).await;
            (sender, key, sent)
        }))
    }

    /// Never, while there is nothing to hand over. Cancel-safe: the handing over goes on with the next call.
    async fn sent(&mut self) -> Sent {
        match self {
            Self::Idle(_) => std::future::pending().await,
            Self::Busy(sending) => sending.await,
        }
    }
}

impl Settings {
    fn mechanism(&self) -> anyhow::Result<Mechanism> {
        if let (Some(username), Some(password)) = (&self.username, &self.password) {
            let secret = password.read().map_err(|error| anyhow!(error))?;
            let password = secret.expose().to_vec();
            return Ok(Mechanism::Plain { username: username.clone(), password });
        }
        let has_certificate = self.tls.as_ref().is_some_and(|tls| tls.certificate.is_some());
        Ok(if has_certificate && self.sas.is_none() { Mechanism::External } else { Mechanism::Anonymous })
    }
}

/// Only *accepted* is delivered.
fn judge(outcome: Outcome) -> anyhow::Result<()> {
    match outcome {
        Outcome::Accepted(_) => Ok(()),
        Outcome::Rejected(rejected) => match rejected.error {
            Some(error) => {
                let text = error.description.unwrap_or_default();
                bail!("the peer rejected a message: {:?} {text}", error.condition)
            }
            None => bail!("the peer rejected a message"),
        },
        Outcome::Released(_) => bail!("the peer released a message: nobody takes it there"),
        Outcome::Modified(_) => bail!("the peer gave a message back"),
    }
}

// One type of body here and in `cbs`: each is some 50 kB of code.
fn message(origin: &Origin, parcel: Parcel) -> Sendable<Body<Value>> {
    let mut properties = Properties::builder()
        .message_id(MessageId::String(parcel.id))
        .subject(parcel.topic)
        .content_type(Symbol::from(parcel.content_type))
        .build();
    properties.content_encoding = parcel.content_encoding.map(Symbol::from);
    properties.creation_time = milliseconds(&parcel.stamp).map(Timestamp::from_milliseconds);
    let key = parcel.key;
    let about = ApplicationProperties::builder()
        .insert("gateway", origin.gateway.as_str())
        .insert("epoch", format!("{:014x}", origin.epoch))
        .insert("boot", parcel.stamp.boot.to_string())
        .insert("lane", key.lane.as_str())
        .insert("seq", key.first.0 as i64)
        .insert("last", key.last.0 as i64)
        .build();
    let message = Message::builder()
        .header(Header::builder().durable(true).build())
        .properties(properties)
        .application_properties(about)
        .body(Body::Data(vec![Data(Binary::from(parcel.body.to_vec()))].into()))
        .build();
    Sendable::from(message)
}

fn default_keep_alive() -> drivers::Period {
    drivers::Period(Duration::from_secs(30))
}

/// The largest frame we take and send; a larger message takes several.
const FRAME_MAX: u32 = 64 * 1024;
const CONNECT: Duration = Duration::from_secs(20);
const CLOSE: Duration = Duration::from_secs(2);
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
