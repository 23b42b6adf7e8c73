//! MQTT 3.1.1 and 5.0 to a broker elsewhere, over TCP or TLS: every entry one PUBLISH at QoS 1 or 2.
//!
//! At QoS 1 each connection begins with a clean session: the spool's cursor says what to send again, a broker's
//! memory of us is not needed. At QoS 2 the session is kept over reconnects so that nothing comes twice, but the
//! first connection of a process clears it: packet ids that an earlier process left behind at the broker would be
//! taken for repetitions, and new messages under them lost (MQTT 5.0 §4.3.3).

use std::any::Any;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use futures_util::future::BoxFuture;
use mqtt::client::{Client, Event, Options};
use mqtt::{Message, Properties, Qos, Topic, Version};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use super::settings::{Common, Delivery};
use super::tls::Tls;
use super::{Context, Link, Setup, Uplink, UplinkType, host_and_port};
use crate::config::document::settings;
use crate::config::quantity::SecretSource;
use crate::payload::ROOT;
use crate::payload::parcel::{Parcel, ParcelKey};

/// `type = "mqtt"`
pub static UPLINK: UplinkType = UplinkType {
    name: "mqtt",
    parse: |table| settings::<Settings>(table).map(|set| Arc::new(set) as Arc<dyn Setup>),
};

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// `host:port`.
    address: String,
    #[serde(default)]
    version: ProtocolVersion,
    client_id: Option<String>,
    username: Option<String>,
    password: Option<SecretSource>,
    tls: Option<Tls>,
    #[serde(default = "default_keep_alive")]
    keep_alive: drivers::Period,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
enum ProtocolVersion {
    #[serde(rename = "3.1.1")]
    V311,
    #[default]
    #[serde(rename = "5.0")]
    V5,
}

impl Setup for Settings {
    fn type_name(&self) -> &'static str {
        UPLINK.name
    }

    fn target(&self) -> String {
        self.address.clone()
    }

    fn deliveries(&self) -> &'static [Delivery] {
        &[Delivery::AtLeastOnce, Delivery::ExactlyOnce]
    }

    fn problems(&self, _: &Common) -> Vec<String> {
        let mut problems: Vec<String> = self.tls.iter().flat_map(Tls::problems).collect();
        if host_and_port(&self.address).is_none() {
            problems.push(format!("`{}` is not host:port", self.address));
        }
        problems.extend(self.password.as_ref().and_then(|source| source.read().err()));
        if self.keep_alive.0 > Duration::from_secs(65_535) {
            problems.push("keep_alive out of range: at most 65535s".into());
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
        let Context { name, origin, common } = context;
        let client_id = self.client_id.clone().unwrap_or_else(|| format!("{ROOT}-{}-{name}", origin.gateway));
        Box::new(Mqtt {
            settings: self.clone(),
            gateway: origin.gateway,
            common,
            client_id,
            client: None,
            early: BTreeSet::new(),
        })
    }
}

struct Mqtt {
    settings: Settings,
    gateway: String,
    common: Common,
    client_id: String,
    /// Lives over reconnects: at QoS 2 it holds the halves of unfinished handshakes.
    client: Option<Client>,
    /// Confirmed after a reconnect before they were offered again: not to be sent a second time.
    early: BTreeSet<u64>,
}

impl Uplink for Mqtt {
    fn carry<'a>(&'a mut self, link: &'a mut Link) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            if self.is_exact() && self.client.is_none() {
                let mut stream = self.settings.dial().await?;
                let mut client = Client::new(Instant::now(), self.options(true)?)?;
                tokio::time::timeout(CONNECT, clear_session(&mut stream, &mut client))
                    .await
                    .context("no answer")??;
            }
            let mut stream = self.settings.dial().await?;
            let is_exact = self.is_exact();
            let options = self.options(!is_exact)?;
            let client = match &mut self.client {
                Some(client) if is_exact => client,
                slot => slot.insert(Client::new(Instant::now(), options)?),
            };
            let mut publisher = Publisher {
                settings: &self.settings,
                gateway: &self.gateway,
                early: &mut self.early,
                keys: HashMap::new(),
                is_exact,
            };
            let carried = publisher.carry(&mut stream, client, link).await;
            client.handle_gone();
            carried
        })
    }
}

impl Mqtt {
    fn is_exact(&self) -> bool {
        self.common.delivery == Delivery::ExactlyOnce
    }

    fn options(&self, is_clean: bool) -> anyhow::Result<Options> {
        let set = &self.settings;
        let state = Topic::new(format!("{ROOT}/{}/$state", self.gateway))?;
        let password = match &set.password {
            Some(source) => Some(source.read().map_err(|error| anyhow!(error))?.expose().to_vec()),
            None => None,
        };
        Ok(Options {
            version: if set.version == ProtocolVersion::V5 { Version::V5 } else { Version::V311 },
            client_id: self.client_id.clone(),
            clean_start: is_clean,
            session_expiry: if is_clean { Duration::ZERO } else { SESSION },
            keep_alive: set.keep_alive.0,
            user: set.username.clone(),
            password,
            will: Some(Message::new(state, "offline").with_qos(Qos::AtLeastOnce).retained()),
            window: u16::try_from(self.client_window()).unwrap_or(u16::MAX),
            ..Options::default()
        })
    }
}

impl Mqtt {
    /// Messages under way to the broker. MQTT 5.0 brokers say how many they take; a 3.1.1 broker cannot, and mosquitto
    /// cuts a client off that has more than its `max_inflight_messages`, 20 by default, unfinished at QoS 2.
    fn client_window(&self) -> usize {
        let window = self.common.window;
        if self.settings.version == ProtocolVersion::V311 && self.is_exact() {
            window.min(20)
        } else {
            window
        }
    }
}

impl Settings {
    async fn dial(&self) -> anyhow::Result<Box<dyn Stream>> {
        let (host, port) =
            host_and_port(&self.address).ok_or_else(|| anyhow!("`{}` is not host:port", self.address))?;
        let connecting = TcpStream::connect((host, port));
        let tcp = tokio::time::timeout(CONNECT, connecting).await.context("no answer")??;
        tcp.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::new(tcp)) };
        let name = ServerName::try_from(tls.server_name.clone().unwrap_or_else(|| host.to_owned()))?;
        let handshake = tls.connector()?.connect(name, tcp);
        Ok(Box::new(tokio::time::timeout(CONNECT, handshake).await.context("no TLS answer")??))
    }
}

struct Publisher<'a> {
    settings: &'a Settings,
    gateway: &'a str,
    early: &'a mut BTreeSet<u64>,
    /// The parcels that were offered, by their last place.
    keys: HashMap<u64, ParcelKey>,
    is_exact: bool,
}

impl Publisher<'_> {
    async fn carry(
        &mut self,
        stream: &mut Box<dyn Stream>,
        client: &mut Client,
        link: &mut Link,
    ) -> anyhow::Result<()> {
        let stop = link.stopping();
        let mut wire = Wire::new(stream);
        let mut waiting: VecDeque<Parcel> = VecDeque::new();
        let mut is_connected = false;
        client.connect(Instant::now());
        loop {
            while let Some(event) = client.poll_event() {
                match event {
                    Event::Connected { .. } => {
                        is_connected = true;
                        link.connected(&self.settings.target());
                        self.publish_state(client, "online");
                    }
                    Event::Confirmed { id } if id != STATE_ID => {
                        // Confirmed from before the reconnect while it stands in line again.
                        let at = waiting.iter().position(|parcel| parcel.key.last.0 == id);
                        let key = at.and_then(|at| waiting.remove(at)).map(|parcel| parcel.key);
                        match key.or_else(|| self.keys.remove(&id)) {
                            Some(key) if link.confirmed(key).await => {}
                            _ => {
                                self.early.insert(id);
                            }
                        }
                    }
                    Event::Failed { id, reason } if id != STATE_ID => {
                        bail!("the broker refused a message: {reason:?}")
                    }
                    Event::Closed { reason } => {
                        let _ = tokio::time::timeout(CLOSE, wire.flush(client)).await;
                        bail!("{reason}");
                    }
                    _ => {}
                }
            }
            while client.capacity() > 0 {
                let Some(parcel) = waiting.pop_front() else { break };
                if self.early.remove(&parcel.key.last.0) {
                    link.confirmed(parcel.key).await;
                    continue;
                }
                self.publish(client, &parcel)?;
                self.keys.insert(parcel.key.last.0, parcel.key);
            }
            wire.take_output(client);
            let deadline = client.deadline();
            tokio::select! {
                () = stop.cancelled() => break,
                // Cancel-safe: what was written or read is known, or nothing was.
                done = wire.turn() => match done? {
                    Turn::Read(bytes) => client.handle_input(Instant::now(), bytes),
                    Turn::Wrote => {}
                },
                entries = link.next(), if is_connected && waiting.is_empty() => waiting.extend(entries?),
                () = until(deadline) => client.handle_timeout(Instant::now()),
            }
        }
        self.publish_state(client, "offline");
        client.disconnect();
        // Said politely where the connection still stands.
        let _ = tokio::time::timeout(CLOSE, wire.flush(client)).await;
        Ok(())
    }

    fn publish(&self, client: &mut Client, parcel: &Parcel) -> anyhow::Result<()> {
        let qos = if self.is_exact { Qos::ExactlyOnce } else { Qos::AtLeastOnce };
        let mut message = Message::new(Topic::new(parcel.topic.clone())?, parcel.body.clone()).with_qos(qos);
        if self.settings.version == ProtocolVersion::V5 {
            let mut user =
                vec![("id".into(), parcel.id.clone()), ("lane".into(), parcel.key.lane.as_str().to_owned())];
            user.extend(parcel.content_encoding.map(|how| ("content-encoding".into(), how.to_owned())));
            message = message.with_properties(Properties {
                is_text: (parcel.content_type == senml::MEDIA_TYPE_JSON && parcel.content_encoding.is_none())
                    .then_some(true),
                content_type: Some(parcel.content_type.into()),
                user,
                ..Properties::default()
            });
        }
        client.publish(parcel.key.last.0, &message).map_err(|error| anyhow!("{error}"))
    }

    /// The counterpart of our will. Not an entry: if it is lost with the connection, the next one says it again.
    fn publish_state(&self, client: &mut Client, state: &'static str) {
        if let Ok(topic) = Topic::new(format!("{ROOT}/{}/$state", self.gateway)) {
            let _ =
                client.publish(STATE_ID, &Message::new(topic, state).with_qos(Qos::AtLeastOnce).retained());
        }
    }
}

/// Connects with a clean session and leaves again.
async fn clear_session(stream: &mut Box<dyn Stream>, client: &mut Client) -> anyhow::Result<()> {
    let mut wire = Wire::new(stream);
    client.connect(Instant::now());
    loop {
        match client.poll_event() {
            Some(Event::Connected { .. }) => {
                client.disconnect();
                return wire.flush(client).await;
            }
            Some(Event::Closed { reason }) => bail!("{reason}"),
            Some(_) => {}
            None => {
                wire.take_output(client);
                if let Turn::Read(bytes) = wire.turn().await? {
                    client.handle_input(Instant::now(), bytes);
                }
            }
        }
    }
}

/// A transport: TCP, or TLS over it.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The two directions of a transport with what is still to be written.
struct Wire<'a> {
    stream: &'a mut Box<dyn Stream>,
    out: Vec<u8>,
    written: usize,
    /// A TLS stream holds bytes back until it is flushed.
    is_unflushed: bool,
    buffer: Vec<u8>,
}

enum Turn<'a> {
    Read(&'a [u8]),
    Wrote,
}

impl<'a> Wire<'a> {
    fn new(stream: &'a mut Box<dyn Stream>) -> Self {
        Self { stream, out: Vec::new(), written: 0, is_unflushed: false, buffer: vec![0; 16 * 1024] }
    }

    fn take_output(&mut self, client: &mut Client) {
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
            client.transmit(Instant::now(), &mut self.out);
        }
    }

    /// Reads something or writes something, whichever is possible first. Cancel-safe.
    async fn turn(&mut self) -> anyhow::Result<Turn<'_>> {
        let read = std::future::poll_fn(|context| {
            if self.written < self.out.len() {
                let rest = &self.out[self.written..];
                if let Poll::Ready(wrote) = Pin::new(&mut *self.stream).poll_write(context, rest) {
                    self.written += wrote?;
                    self.is_unflushed = true;
                    return Poll::Ready(Ok(None));
                }
            } else if self.is_unflushed
                && let Poll::Ready(flushed) = Pin::new(&mut *self.stream).poll_flush(context)
            {
                flushed?;
                self.is_unflushed = false;
            }
            let mut buffer = ReadBuf::new(&mut self.buffer);
            ready!(Pin::new(&mut *self.stream).poll_read(context, &mut buffer))?;
            Poll::Ready(Ok::<_, std::io::Error>(Some(buffer.filled().len())))
        });
        match read.await? {
            None => Ok(Turn::Wrote),
            Some(0) => bail!("the broker closed the connection"),
            Some(length) => Ok(Turn::Read(&self.buffer[..length])),
        }
    }

    /// Writes all there is.
    async fn flush(&mut self, client: &mut Client) -> anyhow::Result<()> {
        loop {
            self.take_output(client);
            if self.out.is_empty() {
                return Ok(());
            }
            self.stream.write_all(&self.out[self.written..]).await?;
            self.stream.flush().await?;
            self.written = self.out.len();
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn default_keep_alive() -> drivers::Period {
    drivers::Period(Duration::from_secs(30))
}

/// No entry has this place: the log begins at 1.
const STATE_ID: u64 = 0;
const CONNECT: Duration = Duration::from_secs(15);
const CLOSE: Duration = Duration::from_secs(2);
/// How long the broker keeps a QoS 2 session while we are away.
const SESSION: Duration = Duration::from_secs(24 * 3600);
