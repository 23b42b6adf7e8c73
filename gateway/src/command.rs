//! Commands to actuators: the one desk that every protocol hands them to, and the outcome that every one reports.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use drivers::{Kind, Value};
use log::info;
use serde_json::json;

use crate::clock::{Clock, Stamp};
use crate::intake::Intake;
use crate::live::Live;
use crate::payload::{self, Format};
use crate::reading::{Channel, ChannelId};
use crate::sampler::Commander;
use crate::spool::Entry;

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
}

/// How a command went.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The command's id, if it had one.
    pub id: Option<String>,
    /// The value read back, or why it was not done.
    pub result: Result<Value, Refusal>,
}

/// Why a command was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such channel.
    #[error("no channel {0}")]
    Unknown(ChannelId),
    /// A sensor.
    #[error("{0} cannot be told anything")]
    NotAnActuator(ChannelId),
    /// The value does not fit.
    #[error("{0}")]
    BadValue(String),
    /// The device did not do it.
    #[error("{0}")]
    Failed(String),
}

impl Outcome {
    /// What stands under `…/set/result`.
    pub fn json(&self, stamp: &Stamp) -> serde_json::Value {
        json!({
            "id": self.id,
            "ok": self.result.is_ok(),
            "value": payload::json_value(self.result.as_ref().ok()),
            "error": self.result.as_ref().err().map(ToString::to_string),
            "time": payload::rfc3339(stamp),
        })
    }
}

type Known = VecDeque<(String, Option<Outcome>)>;

/// Carries commands out and reports their outcomes. Cloned into every listener.
#[derive(Clone)]
pub struct Desk {
    live: Live,
    commander: Commander,
    intake: Intake,
    clock: Clock,
    /// Ids of the newest commands, noted before they are carried out, and their outcomes once they are known. Shared
    /// because a repetition may come over another protocol.
    known: Arc<Mutex<Known>>,
}

impl Desk {
    /// A desk for the devices behind `commander`.
    pub fn new(live: Live, commander: Commander, intake: Intake, clock: Clock) -> Self {
        Self { live, commander, intake, clock, known: Arc::default() }
    }

    /// Carries a command out, at most once per id; publishes the outcome and hands it to the spool.
    pub async fn carry_out(&self, command: Command) -> Outcome {
        if let Some(earlier) = command.id.as_deref().and_then(|id| self.note(id)) {
            return earlier;
        }
        let result = self.execute(&command).await;
        let outcome = Outcome { id: command.id.clone(), result };
        if let Some(id) = &outcome.id {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, slot)) = known.iter_mut().find(|(known, _)| known == id) {
                *slot = Some(outcome.clone());
            }
        }
        match &outcome.result {
            Ok(value) => info!(source:% = command.source; "{} set to {value}", command.channel),
            Err(error) => info!(source:% = command.source; "command to {} refused: {error}", command.channel),
        }
        // Only outcomes of channels that exist are kept: a stranger's guesses fill no disk.
        if !matches!(outcome.result, Err(Refusal::Unknown(_))) {
            let stamp = self.clock.stamp();
            let json = outcome.json(&stamp).to_string();
            self.live.publish_outcome(&command.channel, &json);
            self.intake.offer(Entry::Outcome {
                channel: command.channel.as_str().into(),
                json: json.into(),
                stamp,
            });
        }
        outcome
    }

    /// Notes an id; if it is known already, the earlier command's outcome, or that it is still under way.
    fn note(&self, id: &str) -> Option<Outcome> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, outcome)) = known.iter().find(|(known, _)| known == id) {
            let under_way = || Outcome {
                id: Some(id.to_owned()),
                result: Err(Refusal::Failed("still under way".into())),
            };
            return Some(outcome.clone().unwrap_or_else(under_way));
        }
        known.truncate(REMEMBERED - 1);
        known.push_front((id.to_owned(), None));
        None
    }

    async fn execute(&self, command: &Command) -> Result<Value, Refusal> {
        let channel: Arc<Channel> =
            self.live.channel(&command.channel).ok_or_else(|| Refusal::Unknown(command.channel.clone()))?;
        if channel.spec.kind != Kind::Actuator {
            return Err(Refusal::NotAnActuator(command.channel.clone()));
        }
        let value = payload::parse_command(command.format, &command.value, &channel.spec)
            .map_err(Refusal::BadValue)?;
        self.commander
            .command(channel.device(), channel.name(), value, Instant::now() + LIMIT)
            .await
            .map_err(|error| Refusal::Failed(error.to_string()))
    }
}

/// A command that could not be carried out by then never is.
const LIMIT: Duration = Duration::from_secs(5);
/// Ids remembered against repetition; the oldest is forgotten.
const REMEMBERED: usize = 1024;
