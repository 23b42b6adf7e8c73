//! RabbitMQ streams over their own protocol: a log on the far side, into which a named publisher writes exactly once.
//!
//! Each lane is a publisher with the name `tidegate-<gateway>-<epoch>-<uplink>-<lane>`, and a parcel's publishing id is
//! its last `Seq`, which only grows within a lane. The server keeps the highest id of every name and confirms what it
//! has already without storing it again. That alone makes single entries exact. A batch needs the same bounds when it
//! is sent again, even if the bytes of a connection long given up arrive late: so its bounds are on our disk before it
//! goes out, and a new connection begins with the batches that were under way. The name holds the store's epoch: with
//! a new store the places begin anew, and so does the name.

mod connection;
mod message;
mod wire;

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use futures_util::future::BoxFuture;
use serde::Deserialize;

use self::connection::{Connection, Login};
use self::message::{Envelope, Property};
use self::wire::{Inbound, OK, STREAM_EXISTS};
use super::dial::dial;
use super::forwarder::Lane;
use super::settings::{Common, Delivery};
use super::tls::Tls;
use super::{Context, Link, Setup, Uplink, UplinkType, host_and_port};
use crate::config::document::settings;
use crate::config::quantity::{SecretSource, Size};
use crate::payload::ROOT;
use crate::payload::parcel::{Origin, Parcel, ParcelKey, milliseconds};
use crate::spool::Seq;

/// `type = "rabbitmq-stream"`
pub static UPLINK: UplinkType = UplinkType {
    name: "rabbitmq-stream",
    parse: |table| settings::<Settings>(table).map(|set| Arc::new(set) as Arc<dyn Setup>),
};

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// `host:port` of the stream listener: 5552, or 5551 over TLS.
    address: String,
    #[serde(default = "default_vhost")]
    vhost: String,
    #[serde(default = "default_stream")]
    stream: String,
    /// Whether the stream is there already and is not made when it is missing.
    #[serde(default)]
    passive: bool,
    /// For a stream that is made: how large it grows before its oldest part is dropped.
    max_size: Option<Size>,
    /// For a stream that is made: how old its messages grow.
    max_age: Option<drivers::Period>,
    /// Streams take a user and a password, over TLS too: RabbitMQ 3.10's listener crashes on SASL EXTERNAL.
    username: String,
    password: SecretSource,
    tls: Option<Tls>,
    /// Between signs of life; after two without one the connection is given up.
    #[serde(default = "default_keep_alive")]
    keep_alive: drivers::Period,
}

impl Setup for Settings {
    fn type_name(&self) -> &'static str {
        UPLINK.name
    }

    fn target(&self) -> String {
        format!("{} stream {}", self.address, self.stream)
    }

    fn deliveries(&self) -> &'static [Delivery] {
        &[Delivery::AtMostOnce, Delivery::AtLeastOnce, Delivery::ExactlyOnce]
    }

    fn problems(&self, _: &Common) -> Vec<String> {
        let mut problems: Vec<String> = self.tls.iter().flat_map(Tls::problems).collect();
        if host_and_port(&self.address).is_none() {
            problems.push(format!("`{}` is not host:port", self.address));
        }
        problems.extend(self.password.read().err());
        for (name, text) in [("stream", &self.stream), ("vhost", &self.vhost)] {
            if text.is_empty() || text.len() > 255 {
                problems.push(format!("{name} out of range: 1 to 255 bytes"));
            }
        }
        if self.username.is_empty() || self.username.len() > 255 {
            problems.push("username out of range: 1 to 255 bytes".into());
        }
        if !(KEEP_ALIVE_LEAST..=KEEP_ALIVE_MOST).contains(&self.keep_alive.0) {
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
        Box::new(Publisher { settings: self.clone(), context, under_way: Vec::new() })
    }
}

impl Settings {
    async fn connect(&self, name: &str) -> anyhow::Result<Connection> {
        let stream = dial(&self.address, self.tls.as_ref()).await?;
        let password = self.password.read().map_err(|error| anyhow!(error))?;
        let login = Login {
            user: &self.username,
            password: password.expose(),
            vhost: &self.vhost,
            name,
            heartbeat: self.keep_alive.0,
        };
        Connection::open(stream, &login).await
    }

    async fn make_stream(&self, connection: &mut Connection) -> anyhow::Result<()> {
        if self.passive {
            return Ok(());
        }
        let size = self.max_size.map(|size| size.0.to_string());
        let age = self.max_age.map(|age| format!("{}s", age.0.as_secs().max(1)));
        let arguments: Vec<(&str, &str)> = [("max-length-bytes", &size), ("max-age", &age)]
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.as_deref()?)))
            .collect();
        let (code, _) =
            connection.request_any(|out, id| wire::create(out, id, &self.stream, &arguments)).await?;
        // With other arguments than ours, the stream is somebody's decision and stays.
        match code {
            OK | STREAM_EXISTS | wire::PRECONDITION_FAILED => Ok(()),
            code => bail!("stream {}: {code}", self.stream),
        }
    }
}

struct Publisher {
    settings: Settings,
    context: Context,
    /// Batches whose bounds are on disk and that may not be confirmed yet; with exactly-once alone.
    under_way: Vec<Flight>,
}

/// A parcel's bounds and how many entries it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flight {
    key: ParcelKey,
    entries: usize,
}

impl Uplink for Publisher {
    fn carry<'a>(&'a mut self, link: &'a mut Link) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            let open = async {
                let mut connection =
                    self.settings.connect(&format!("tidegate {}", self.context.origin)).await?;
                self.settings.make_stream(&mut connection).await?;
                let stored = self.declare(&mut connection).await?;
                anyhow::Ok((connection, stored))
            };
            let (mut connection, stored) =
                tokio::time::timeout(CONNECT, open).await.context("no answer")??;
            link.connected(&self.settings.target());
            let mut wire = Wire { connection: &mut connection, stored, in_flight: Default::default() };
            let carried = self.publish(&mut wire, link).await;
            // Said politely where the connection still stands.
            let _ = tokio::time::timeout(CLOSE, connection.close()).await;
            carried
        })
    }
}

/// A connection with what was published over it.
struct Wire<'c> {
    connection: &'c mut Connection,
    /// By lane: the highest place that the server has from an earlier connection.
    stored: [Seq; 3],
    /// By lane: the publishing ids not yet confirmed, in order.
    in_flight: [VecDeque<ParcelKey>; 3],
}

impl Publisher {
    fn is_exact(&self) -> bool {
        self.context.common.delivery == Delivery::ExactlyOnce
    }

    /// Makes a publisher for each lane; what the server has of each name already.
    async fn declare(&self, connection: &mut Connection) -> anyhow::Result<[Seq; 3]> {
        let mut stored = [Seq(0); 3];
        let stream = &self.settings.stream;
        for lane in Lane::ALL {
            // Without a name nothing is compared: what comes twice is stored twice.
            let name = if self.is_exact() { publisher_name(&self.context, lane) } else { String::new() };
            let publisher = index(lane) as u8;
            connection
                .request(|out, id| wire::declare_publisher(out, id, publisher, &name, stream))
                .await
                .with_context(|| format!("stream {stream}"))?;
            if self.is_exact() {
                let sequence = connection
                    .request(|out, id| wire::query_publisher_sequence(out, id, &name, stream))
                    .await?;
                stored[index(lane)] = Seq(wire::sequence(&sequence)?);
            }
        }
        Ok(stored)
    }

    async fn publish(&mut self, wire: &mut Wire<'_>, link: &mut Link) -> anyhow::Result<()> {
        let stop = link.stopping();
        if self.is_exact() {
            for lane in Lane::ALL {
                link.confirmed_through(lane, wire.stored[index(lane)]);
            }
            self.resume(wire, link).await?;
        }
        loop {
            take_frames(wire, link).await?;
            let deadline = wire.connection.deadline();
            // A slow wire: what is not yet written stays on disk.
            let has_room = wire.connection.waiting() < OUTPUT;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                // Cancel-safe: what was written or read is known, or nothing was.
                done = wire.connection.turn() => done?,
                parcels = link.next(), if has_room => self.send(wire, link, parcels?).await?,
                () = tokio::time::sleep_until(deadline.into()) => wire.connection.keep_alive(Instant::now())?,
            }
        }
    }

    /// Sends the batches again that were under way when the last connection, or process, ended: with the bounds that
    /// they had, so that the server knows them.
    async fn resume(&mut self, wire: &mut Wire<'_>, link: &mut Link) -> anyhow::Result<()> {
        if self.under_way.is_empty() {
            self.under_way = decode(link.state());
        }
        let mut resumed = Vec::new();
        for flight in std::mem::take(&mut self.under_way) {
            let Flight { key, entries } = flight;
            if key.last > wire.stored[index(key.lane)] && link.resumed(key, entries) {
                resumed.push(flight);
            }
        }
        for flight in &resumed {
            match link.rebuild(flight.key).await? {
                Some(parcel) => self.put(wire, flight.key, &parcel)?,
                // Dropped from the log meanwhile: there is nothing left to confirm.
                None => {
                    link.confirmed(flight.key).await;
                }
            }
        }
        self.under_way = resumed;
        Ok(())
    }

    async fn send(
        &mut self,
        wire: &mut Wire<'_>,
        link: &mut Link,
        parcels: Vec<Parcel>,
    ) -> anyhow::Result<()> {
        if self.is_exact() && self.context.common.batch > 1 {
            // Confirmed ones are forgotten here and not earlier: one that is known in vain costs nothing.
            let in_flight = &wire.in_flight;
            self.under_way.retain(|Flight { key, .. }| {
                in_flight[index(key.lane)].binary_search_by_key(&key.last, |known| known.last).is_ok()
            });
            self.under_way
                .extend(parcels.iter().map(|parcel| Flight { key: parcel.key, entries: parcel.entries }));
            link.store_state(encode(&self.under_way)).await?;
        }
        for parcel in parcels {
            let key = parcel.key;
            let stored = wire.stored[index(key.lane)];
            if key.last <= stored {
                link.confirmed(key).await;
            } else if key.first <= stored {
                // The server has the first part of it, from bounds that we do not know any more.
                let rest = ParcelKey { first: stored.next(), ..key };
                match link.rebuild(rest).await? {
                    Some(parcel) => self.put(wire, key, &parcel)?,
                    None => {
                        link.confirmed(key).await;
                    }
                }
            } else {
                self.put(wire, key, &parcel)?;
            }
        }
        Ok(())
    }

    /// Puts a parcel into the output under the publishing id of `key`.
    fn put(&self, wire: &mut Wire<'_>, key: ParcelKey, parcel: &Parcel) -> anyhow::Result<()> {
        let mut message = Vec::with_capacity(parcel.body.len() + 384);
        write_message(&mut message, &self.context.origin, parcel);
        let limit = wire.connection.frame_max().saturating_sub(PUBLISH_HEAD);
        if message.len() > limit {
            bail!("a message of {} bytes is larger than the broker takes: {limit}", message.len());
        }
        let publisher = index(key.lane) as u8;
        let messages = std::iter::once((key.last.0, &message[..]));
        wire::publish(wire.connection.output(), publisher, messages);
        wire.in_flight[index(key.lane)].push_back(key);
        Ok(())
    }
}

/// Handles what the server said.
async fn take_frames(wire: &mut Wire<'_>, link: &mut Link) -> anyhow::Result<()> {
    while let Some(frame) = wire.connection.frames().next()? {
        match frame {
            Inbound::Confirm { publisher, ids } => {
                let Some(in_flight) = wire.in_flight.get_mut(usize::from(publisher)) else { continue };
                for id in ids.iter() {
                    // Confirmations come in order, but that is not promised.
                    let Ok(at) = in_flight.binary_search_by_key(&Seq(id), |key| key.last) else { continue };
                    if let Some(key) = in_flight.remove(at) {
                        link.confirmed(key).await;
                    }
                }
            }
            // What follows it may have been stored, and then its id would be taken for known: nothing more goes out
            // over this connection, and the next one asks how far the server is.
            Inbound::PublishError { code, id, .. } => bail!("message {id} was not stored: {code}"),
            Inbound::MetadataUpdate { code, stream } => bail!("stream {stream}: {code}"),
            Inbound::Close { correlation, code, reason } => {
                let why = anyhow!("closed by the broker: {code} {reason}");
                wire::close_reply(wire.connection.output(), correlation);
                let _ = tokio::time::timeout(CLOSE, wire.connection.turn()).await;
                return Err(why);
            }
            Inbound::Heartbeat | Inbound::Tune { .. } | Inbound::Reply { .. } | Inbound::Other(_) => {}
        }
    }
    Ok(())
}

fn write_message(out: &mut Vec<u8>, origin: &Origin, parcel: &Parcel) {
    let (epoch, boot) = (format!("{:014x}", origin.epoch), parcel.stamp.boot.to_string());
    let properties = [
        ("gateway", Property::Text(&origin.gateway)),
        ("epoch", Property::Text(&epoch)),
        ("boot", Property::Text(&boot)),
        ("lane", Property::Text(parcel.key.lane.as_str())),
        ("seq", Property::Number(parcel.key.first.0 as i64)),
        ("last", Property::Number(parcel.key.last.0 as i64)),
    ];
    let envelope = Envelope {
        id: &parcel.id,
        subject: &parcel.topic,
        content_type: parcel.content_type,
        content_encoding: parcel.content_encoding,
        created_ms: milliseconds(&parcel.stamp),
        properties: &properties,
        body: &parcel.body,
    };
    message::message(out, &envelope);
}

/// The name under which the server remembers a lane; at most 255 bytes of the protocol's 256, because gateways' and
/// uplinks' names are at most 64 each.
fn publisher_name(context: &Context, lane: Lane) -> String {
    let Context { name, origin, .. } = context;
    format!("{ROOT}-{}-{:014x}-{name}-{}", origin.gateway, origin.epoch, lane.as_str())
}

fn index(lane: Lane) -> usize {
    match lane {
        Lane::Alarm => 0,
        Lane::Live => 1,
        Lane::Backfill => 2,
    }
}

/// The state on disk: 25 bytes a batch, its lane, first and last place, and entries.
fn encode(flights: &[Flight]) -> Vec<u8> {
    let mut state = Vec::with_capacity(flights.len() * FLIGHT);
    for Flight { key, entries } in flights {
        state.push(index(key.lane) as u8);
        state.extend(key.first.0.to_be_bytes());
        state.extend(key.last.0.to_be_bytes());
        state.extend((*entries as u64).to_be_bytes());
    }
    state
}

/// What is not a state of ours is none: the name on the server still keeps everything but a batch's bounds.
fn decode(state: &[u8]) -> Vec<Flight> {
    let (flights, rest) = state.as_chunks::<FLIGHT>();
    if !rest.is_empty() {
        return Vec::new();
    }
    let word =
        |flight: &[u8; FLIGHT], at: usize| u64::from_be_bytes(std::array::from_fn(|byte| flight[at + byte]));
    flights
        .iter()
        .filter_map(|flight| {
            let lane = *Lane::ALL.get(usize::from(flight[0]))?;
            let key = ParcelKey { lane, first: Seq(word(flight, 1)), last: Seq(word(flight, 9)) };
            (key.first.0 > 0 && key.first <= key.last)
                .then(|| Flight { key, entries: word(flight, 17) as usize })
        })
        .collect()
}

fn default_vhost() -> String {
    "/".into()
}

fn default_stream() -> String {
    ROOT.into()
}

fn default_keep_alive() -> drivers::Period {
    drivers::Period(Duration::from_secs(15))
}

const KEEP_ALIVE_LEAST: Duration = Duration::from_secs(1);
const KEEP_ALIVE_MOST: Duration = Duration::from_secs(3600);
const CONNECT: Duration = Duration::from_secs(20);
const CLOSE: Duration = Duration::from_secs(2);
/// Bytes that wait for the socket; beyond them nothing more is read from disk.
const OUTPUT: usize = 256 * 1024;
/// What stands in a publish frame besides the message.
const PUBLISH_HEAD: usize = 32;
const FLIGHT: usize = 25;

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(lane: Lane, first: u64, last: u64) -> Flight {
        Flight { key: ParcelKey { lane, first: Seq(first), last: Seq(last) }, entries: 3 }
    }

    #[test]
    fn the_bounds_of_batches_survive_on_disk_and_what_is_no_state_is_none() {
        let flights = [flight(Lane::Alarm, 1, 1), flight(Lane::Live, 5, 900), flight(Lane::Backfill, 2, 4)];
        let state = encode(&flights);
        assert_eq!(decode(&state), flights);
        assert_eq!(decode(&state[1..]), []);
        assert_eq!(decode(&[9; FLIGHT]), []);
        assert_eq!(decode(&[0; FLIGHT]), []);
    }

    #[test]
    fn the_state_on_disk_survives_mutated_input() {
        let flights = [flight(Lane::Alarm, 1, 1), flight(Lane::Live, 5, 900), flight(Lane::Backfill, 2, 4)];
        let corpus = vec![encode(&flights), encode(&flights[..1]), Vec::new()];
        crate::fuzz::mutated("stream-state", corpus, |input| {
            let flights = decode(input);
            assert!(
                flights.iter().all(|flight| flight.key.first.0 > 0 && flight.key.first <= flight.key.last)
            );
            assert_eq!(decode(&encode(&flights)), flights);
        });
    }
}
