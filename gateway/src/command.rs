//! Commands to actuators: the one desk that every protocol hands them to, and the outcome that every one reports.
//!
//! A command with an id is carried out at most once, whatever protocols, repetitions and restarts lie between: its id is
//! on disk before anything is done, and its outcome is on disk before anybody is told. One that was begun when the
//! gateway ended unexpectedly is reported as `unknown` and never tried again. A command whose expiry has passed is not
//! carried out, wherever it has waited; while the time is not known, no command with an expiry is.

mod order;
mod outcome;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use drivers::{Kind, Lapse, Value};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use log::{info, warn};
use serde_json::{Value as Json, json};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use self::order::{Order, expiry, parse_expiry};
pub use self::outcome::{Outcome, Refusal};
use crate::alarm::Alarms;
use crate::clock::{Clock, WallQuality};
use crate::intake::Intake;
use crate::live::Live;
use crate::payload::{self, Format, ROOT};
use crate::reading::{Channel, ChannelId};
use crate::sampler::{CommandError, Commander};
use crate::spool::{Begun, CommandRow, Entry, Spool};

/// What is asked of an actuator.
#[derive(Debug, Clone)]
pub struct Command {
    /// Which one.
    pub channel: ChannelId,
    /// How `value` is written.
    pub format: Format,
    /// The value, as it came.
    pub value: Vec<u8>,
    /// Who asks, for the log: `mqtt`, `coap 192.0.2.7:4711`, `cli`.
    pub source: String,
    /// Names the command so that a repetition is recognised; two without an id are two commands.
    pub id: Option<String>,
    /// When it stops being wanted, in nanoseconds since 1970.
    pub expires_ns: Option<i64>,
    /// When it stops being wanted, for a protocol that says for how long.
    pub not_after: Option<Instant>,
}

/// What an uplink hands down.
#[derive(Debug, Clone)]
pub struct Remote<'a> {
    /// The uplink's name.
    pub uplink: &'a str,
    /// Which actuator: `device/channel`, alone or as `tidegate/<gateway>/device/channel/set`, with slashes or dots.
    pub path: &'a str,
    /// The value, or an object with value, id and expiry.
    pub payload: &'a [u8],
    /// The message's id, where the protocol has one; else that of the payload counts.
    pub id: Option<String>,
    /// When the message expires, in nanoseconds since 1970, where the protocol says so; the earlier of this and the
    /// payload's counts.
    pub expires_ns: Option<i64>,
}

/// Takes commands and says how they went. Cloned into every listener and uplink.
#[derive(Clone)]
pub struct Desk {
    tasks: mpsc::Sender<Task>,
    intake: Intake,
    bench: Bench,
}

/// What commands are carried out with.
#[derive(Clone)]
struct Bench {
    live: Live,
    commander: Commander,
    spool: Spool,
    alarms: Alarms,
    clock: Clock,
    /// Ids of commands that are under way. Shared because a repetition may come over another protocol.
    under_way: Arc<Mutex<HashSet<String>>>,
}

struct Task {
    command: Command,
    reply: oneshot::Sender<Outcome>,
}

impl Desk {
    /// A desk for the devices behind `commander`, and the task that carries commands out: it does so to the end, even
    /// when whoever asked has gone.
    pub fn new(
        live: Live,
        commander: Commander,
        (spool, intake): (Spool, Intake),
        alarms: Alarms,
        clock: Clock,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        // Full: the command is refused as one too many.
        let (tasks, queue) = mpsc::channel(WAITING);
        let bench = Bench { live, commander, spool, alarms, clock, under_way: Arc::default() };
        (Self { tasks, intake, bench: bench.clone() }, run(bench, queue, stop))
    }

    /// Carries a command out, at most once per id; publishes the outcome and hands it to the spool.
    pub async fn carry_out(&self, command: Command) -> Outcome {
        let id = command.id.clone();
        let (reply, outcome) = oneshot::channel();
        let refused = |why: &str| Outcome { id: id.clone(), result: Err(Refusal::Failed(why.into())) };
        match self.tasks.try_send(Task { command, reply }) {
            Ok(()) => outcome.await.unwrap_or_else(|_| refused("the gateway is stopping")),
            Err(mpsc::error::TrySendError::Full(_)) => refused("too many commands are waiting"),
            Err(mpsc::error::TrySendError::Closed(_)) => refused("the gateway is stopping"),
        }
    }

    /// Carries out what came down an uplink, and gives the outcome as JSON.
    ///
    /// It needs an id and an expiry: brokers keep messages while a gateway is away and may hand them
    /// out twice, and without both nobody could tell a stale or a second one.
    pub async fn carry_out_remote(&self, remote: Remote<'_>) -> Json {
        let source = format!("uplink {}", remote.uplink);
        let channel = self.channel_of(remote.path);
        let order = Order::parse(remote.payload);
        let (channel, order) = match (channel, order) {
            (Some(channel), Ok(order)) => (channel, order),
            (None, _) => return self.refusal(&source, None, remote.id, "no channel's name"),
            (Some(channel), Err(why)) => return self.refusal(&source, Some(&channel), remote.id, &why),
        };
        let id = remote.id.or(order.id);
        let expires_ns = match (remote.expires_ns, order.expires_ns) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if id.is_none() || expires_ns.is_none() {
            let why = "a command from beyond the LAN needs an id and an expiry";
            return self.refusal(&source, Some(&channel), id, why);
        }
        let (format, value) = (Format::Text, order.value);
        let command = Command { channel, format, value, source, id, expires_ns, not_after: None };
        let channel = command.channel.clone();
        self.carry_out(command).await.json(&channel, &self.bench.clock.stamp())
    }

    /// An output went to its safe state by itself: everybody is told, and the cloud too.
    pub fn report_lapse(&self, channel: ChannelId, lapse: Lapse) {
        let seconds = lapse.lease.as_secs_f64();
        let text = format!("{channel} went to its safe state: not commanded again within {seconds} s");
        let stamp = self.bench.clock.stamp();
        let json = json!({
            "id": null, "channel": channel.as_str(), "ok": true, "state": "lapsed",
            "value": payload::json_value(Some(&lapse.value)), "error": null, "time": payload::rfc3339(&stamp),
        });
        self.bench.alarms.lapsed(&channel, text);
        let json = json.to_string();
        self.bench.live.publish_outcome(&channel, &json);
        self.intake.offer(Entry::Outcome { channel: channel.as_str().into(), json: json.into(), stamp });
    }

    fn channel_of(&self, path: &str) -> Option<ChannelId> {
        let path = path.replace('.', "/");
        let prefix = format!("{ROOT}/{}/", self.bench.live.gateway());
        let path = path.strip_prefix(&prefix).unwrap_or(&path);
        ChannelId::parse(path.strip_suffix("/set").unwrap_or(path))
    }

    /// The outcome of what never became a command.
    fn refusal(&self, source: &str, channel: Option<&ChannelId>, id: Option<String>, why: &str) -> Json {
        info!(source:% = source; "command refused: {why}");
        json!({
            "id": id, "channel": channel.map(ChannelId::as_str), "ok": false, "state": "refused", "value": null,
            "error": why, "time": payload::rfc3339(&self.bench.clock.stamp()),
        })
    }
}

async fn run(bench: Bench, mut queue: mpsc::Receiver<Task>, stop: CancellationToken) {
    bench.report_unfinished().await;
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(()) = under_way.next() => {}
            // Cancel-safe: a task is taken or it is not.
            Some(task) = queue.recv(), if under_way.len() < AT_A_TIME => {
                let bench = &bench;
                under_way.push(async move {
                    let outcome = bench.carry_out(task.command).await;
                    // Whoever asked may have gone; the world hears of it all the same.
                    let _ = task.reply.send(outcome);
                });
            }
        }
    }
    // What was begun gets its outcome; what still waits is answered by its closed channel.
    queue.close();
    while under_way.next().await.is_some() {}
}

impl Bench {
    async fn carry_out(&self, command: Command) -> Outcome {
        let outcome = |result| Outcome { id: command.id.clone(), result };
        let (channel, value) = match self.check(&command) {
            Ok(checked) => checked,
            Err(refusal) => {
                info!(source:% = command.source; "command to {} refused: {refusal}", command.channel);
                let outcome = outcome(Err(refusal));
                // Only outcomes of channels that exist are kept: a stranger's guesses fill no disk.
                if !matches!(outcome.result, Err(Refusal::Unknown(_))) {
                    let json = outcome.json(&command.channel, &self.clock.stamp()).to_string();
                    self.tell(&command.channel, &json, None).await;
                }
                return outcome;
            }
        };
        let _under_way = match command.id.as_deref().map(|id| self.begin(id)) {
            None => None,
            Some(Some(mark)) => Some(mark),
            Some(None) => return outcome(Err(Refusal::Failed("still under way".into()))),
        };
        if let Some(id) = &command.id {
            let row = CommandRow {
                id: id.clone(),
                channel: command.channel.as_str().to_owned(),
                received_ns: self.clock.stamp().wall.map_or(0, |wall| wall.unix_ns),
                expires_ns: command.expires_ns,
            };
            match self.spool.begin_command(row).await {
                Ok(Begun::New) => {}
                Ok(Begun::Known(Some(kept))) => return Outcome::from_kept(id, &command.channel, &kept),
                Ok(Begun::Known(None)) => {
                    let outcome = outcome(Err(Refusal::Uncertain(CUT_SHORT.into())));
                    let json = outcome.json(&command.channel, &self.clock.stamp()).to_string();
                    self.tell(&command.channel, &json, Some(id)).await;
                    return outcome;
                }
                Err(error) => {
                    let why = format!("it could not be written down, so nothing was done: {error}");
                    return outcome(Err(Refusal::Failed(why)));
                }
            }
        }
        let result = self.execute(&command, &channel, value).await;
        match &result {
            Ok(value) => {
                info!(source:% = command.source; "{} set to {value}", command.channel);
                self.alarms.commanded(&command.channel);
            }
            Err(error) => {
                info!(source:% = command.source; "command to {} not done: {error}", command.channel);
            }
        }
        let outcome = outcome(result);
        let json = outcome.json(&command.channel, &self.clock.stamp()).to_string();
        self.tell(&command.channel, &json, command.id.as_deref()).await;
        outcome
    }

    /// What can be said without touching anything.
    fn check(&self, command: &Command) -> Result<(Arc<Channel>, Value), Refusal> {
        let channel =
            self.live.channel(&command.channel).ok_or_else(|| Refusal::Unknown(command.channel.clone()))?;
        if channel.spec.kind != Kind::Actuator {
            return Err(Refusal::NotAnActuator(command.channel.clone()));
        }
        if command.id.as_ref().is_some_and(|id| id.is_empty() || id.len() > LONGEST_ID) {
            return Err(Refusal::BadValue(format!("an id has 1 to {LONGEST_ID} bytes")));
        }
        let value = payload::parse_command(command.format, &command.value, &channel.spec)
            .map_err(Refusal::BadValue)?;
        self.time_left(command)?;
        Ok((channel, value))
    }

    /// How long the command is still wanted, at most [`LIMIT`].
    fn time_left(&self, command: &Command) -> Result<Duration, Refusal> {
        let mut left = LIMIT;
        if let Some(not_after) = command.not_after {
            left = left.min(not_after.saturating_duration_since(Instant::now()));
        }
        if let Some(expires_ns) = command.expires_ns {
            let wall = self.clock.stamp().wall.filter(|wall| wall.quality > WallQuality::None);
            let wall = wall.ok_or(Refusal::ClockUnset)?;
            left = left.min(Duration::from_nanos(u64::try_from(expires_ns - wall.unix_ns).unwrap_or(0)));
        }
        if left.is_zero() { Err(Refusal::Expired) } else { Ok(left) }
    }

    async fn execute(&self, command: &Command, channel: &Channel, value: Value) -> Result<Value, Refusal> {
        // Looked at again: writing it down may have taken its time.
        let deadline = Instant::now() + self.time_left(command)?;
        self.commander.command(channel.device(), channel.name(), value, deadline).await.map_err(|error| {
            match error {
                CommandError::Expired => Refusal::Expired,
                CommandError::NoAnswer => Refusal::Uncertain(error.to_string()),
                _ => Refusal::Failed(error.to_string()),
            }
        })
    }

    /// Writes an outcome down, for the command `id` if it has one, then publishes it.
    async fn tell(&self, channel: &ChannelId, json: &str, id: Option<&str>) {
        let entry =
            Entry::Outcome { channel: channel.as_str().into(), json: json.into(), stamp: self.clock.stamp() };
        let written = match id {
            Some(id) => self.spool.finish_command(id, json, Some(entry)).await,
            None => self.spool.append(vec![entry], true).await.map(drop),
        };
        if let Err(error) = written {
            warn!("the outcome of a command to {channel} is not stored: {error}");
        }
        self.live.publish_outcome(channel, json);
    }

    /// What was begun when the gateway ended unexpectedly: nobody knows how it went, and everybody is told so.
    async fn report_unfinished(&self) {
        let unfinished = match self.spool.unfinished_commands().await {
            Ok(unfinished) => unfinished,
            Err(error) => return warn!("commands that were cut short are not known: {error}"),
        };
        for row in unfinished {
            let Some(channel) = ChannelId::parse(&row.channel) else { continue };
            warn!("command {} to {channel} was cut short: whether it was carried out is not known", row.id);
            let result = Err(Refusal::Uncertain(CUT_SHORT.into()));
            let json = Outcome { id: Some(row.id.clone()), result }.json(&channel, &self.clock.stamp());
            self.tell(&channel, &json.to_string(), Some(&row.id)).await;
        }
    }

    /// Marks an id as under way; `None` when it is already.
    fn begin(&self, id: &str) -> Option<UnderWay> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.insert(id.to_owned()).then(|| UnderWay { id: id.to_owned(), all: self.under_way.clone() })
    }
}

/// Takes an id back when its command is over.
struct UnderWay {
    id: String,
    all: Arc<Mutex<HashSet<String>>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// A command that could not be carried out by then never is.
const LIMIT: Duration = Duration::from_secs(5);
/// Commands that wait for the desk; further ones are refused.
const WAITING: usize = 64;
/// Commands under way at a time: one device that is slow holds up none of the others.
const AT_A_TIME: usize = 64;
/// An id is a name, not a document.
const LONGEST_ID: usize = 128;
const CUT_SHORT: &str = "the gateway ended while it was under way: whether it was carried out is not known";
