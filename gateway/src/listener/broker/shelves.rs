//! Keeps what the engine must not forget in the spool, and gives it back at the start.
//!
//! One commit is under way at a time, so under load each holds what has come during the one before. What nobody waits
//! for gathers for a moment; what a connected client may be done with soon waits for that a little, because then it never
//! has to be written.

use std::rc::Rc;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use mqtt::{Broker, ReasonCode, Record};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Core;
use crate::clock::{Clock, WallQuality};
use crate::spool::{Spool, SpoolError};

/// The spool, and what it had for the broker when it was opened.
pub struct Shelves {
    spool: Spool,
    clock: Clock,
    records: Vec<Record>,
}

impl Shelves {
    /// Reads what was kept. What cannot be read is as if it had never been; the spool has its own ways with damage.
    pub async fn open(spool: Spool, clock: Clock) -> Self {
        let records = spool.kept().await.unwrap_or_else(|error| {
            error!(
                "what the MQTT broker kept cannot be read, sessions and retained messages are lost: {error}"
            );
            Vec::new()
        });
        Self { spool, clock, records }
    }

    /// Puts back what was kept.
    pub(super) fn restore(mut self, broker: &mut Broker) -> Self {
        let records = std::mem::take(&mut self.records);
        let found = broker.restore(Instant::now(), self.unix_ms(), records);
        if found.sessions + found.retained + found.wills > 0 {
            info!(
                "{} MQTT sessions with {} messages, {} retained messages and {} wills are there again",
                found.sessions, found.messages, found.retained, found.wills
            );
        }
        if found.unreadable > 0 {
            warn!(
                "{} records of the MQTT broker cannot be read or have expired, and are deleted",
                found.unreadable
            );
        }
        self
    }

    /// Stores changes as they come until `end`, then what is left.
    pub(super) async fn run(self, core: Rc<Core>, end: CancellationToken) {
        let mut is_failing = false;
        loop {
            let waiting = core.broker.borrow().waiting_changes();
            let Some(waiting) = waiting else {
                if end.is_cancelled() {
                    return;
                }
                tokio::select! {
                    () = core.changed.notified() => {}
                    () = end.cancelled() => {}
                }
                continue;
            };
            if is_failing {
                if end.is_cancelled() {
                    return;
                }
                tokio::select! {
                    () = sleep(RETRY) => {}
                    () = end.cancelled() => {}
                }
            } else if !waiting.is_urgent {
                tokio::select! {
                    () = sleep(LAZY) => {}
                    () = core.hurried.notified() => {}
                    () = end.cancelled() => {}
                }
            } else if waiting.may_vanish {
                sleep(HOPE).await;
            }
            let unix_ms = self.unix_ms();
            let changes = core.drive(|broker, now| {
                broker.set_clock(now, unix_ms);
                broker.take_changes()
            });
            let Some(changes) = changes else { continue };
            let stored = if changes.is_empty() { Ok(()) } else { self.spool.keep(changes).await };
            match &stored {
                Ok(()) if is_failing => info!("what MQTT clients wait for is stored again"),
                Err(error) if !is_failing => {
                    error!("what MQTT clients wait for cannot be stored, they are refused: {error}");
                }
                _ => {}
            }
            is_failing = stored.is_err();
            let stored = stored.map_err(|error| match error {
                SpoolError::Refused(_) => ReasonCode::QUOTA_EXCEEDED,
                _ => ReasonCode::IMPLEMENTATION_SPECIFIC,
            });
            core.drive(|broker, now| broker.settle_changes(now, stored));
        }
    }

    /// Milliseconds since 1970; 0 while the clock may be anything.
    fn unix_ms(&self) -> u64 {
        let wall = self.clock.stamp().wall.filter(|wall| wall.quality > WallQuality::None);
        wall.and_then(|wall| u64::try_from(wall.unix_ns / 1_000_000).ok()).unwrap_or(0)
    }
}

/// What nobody waits for is stored so late.
const LAZY: Duration = Duration::from_secs(1);

/// How long a commit waits for clients that may make it needless.
const HOPE: Duration = Duration::from_millis(2);

/// How long after one that failed the next is tried.
const RETRY: Duration = Duration::from_secs(1);
