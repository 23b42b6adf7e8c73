//! Makes the manifests: follows the log, and signs now and then what has come since the last time.
//!
//! What must hold over `kill -9`: no place is left out, and no two different manifests have one number. So a manifest
//! is kept in the store's own table first ([`State::pending`]), then appended as an entry, then marked as appended;
//! a start that finds one pending appends that very text once more, which may repeat it and never changes it.
//!
//! The log is read as it grows, so a manifest costs a few digests in memory, and the one at a stop costs little time.

use std::time::{Duration, Instant};

use log::{debug, warn};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::entry::canonical;
use super::key::Key;
use super::line::Chunk;
use super::manifest::{Draft, Header, Manifest, Signed, Thinned};
use crate::clock::Clock;
use crate::intake::Intake;
use crate::spool::{Body, Entry, Seq, Spool, SpoolError};

/// What the store keeps of the chain, as JSON under [`STATE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// The store's epoch: the state of another one is none.
    epoch: String,
    /// The number of the last manifest.
    number: u64,
    /// The last place that it covers.
    to_seq: u64,
    /// Its hash.
    hash: String,
    /// The manifest's entry, while it is not known to be in the log.
    pending: Option<String>,
}

/// Makes the manifests of one running gateway.
pub struct Keeper {
    gateway: String,
    key: Key,
    spool: Spool,
    intake: Intake,
    clock: Clock,
    chain: Option<Chain>,
    /// Whether manifests are wanted.
    is_on: bool,
    scratch: String,
}

/// The chain of the epoch that the store has now.
struct Chain {
    epoch: u64,
    state: Option<State>,
    draft: Draft,
}

impl Keeper {
    /// Nothing is read or written before [`Keeper::run`].
    pub fn new(gateway: &str, key: Key, spool: Spool, intake: Intake, clock: Clock) -> Self {
        Self {
            gateway: gateway.to_owned(),
            key,
            spool,
            intake,
            clock,
            chain: None,
            is_on: false,
            scratch: String::new(),
        }
    }

    /// Follows the log and signs every `interval()` (asked anew each time, none for never) until told to stop, then
    /// gives itself back for [`Keeper::finish`].
    pub async fn run(
        mut self,
        interval: impl Fn() -> Option<Duration>,
        stop: CancellationToken,
        back: oneshot::Sender<Self>,
    ) {
        let mut signed = Instant::now();
        let mut complaint = None;
        loop {
            let pause = interval().map_or(FOLLOW, |interval| (interval / 2).min(FOLLOW));
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
            let Some(interval) = interval() else { continue };
            let is_due = signed.elapsed() >= interval;
            match self.follow(is_due, &stop).await {
                Ok(()) => {
                    complaint = None;
                    if is_due {
                        signed = Instant::now();
                    }
                }
                // Said once; what was not signed now is with the next one.
                Err(error) if complaint.as_ref() != Some(&error) => {
                    warn!("no manifest for the moment: {error}");
                    complaint = Some(error);
                }
                Err(_) => {}
            }
        }
        self.is_on = interval().is_some();
        // The receiver is gone when nobody stops in order.
        let _ = back.send(self);
    }

    /// Signs what is left, at a clean stop; what cannot be done within `limit` is done after the next start.
    pub async fn finish(mut self, limit: Duration) {
        if !self.is_on {
            return;
        }
        let stop = CancellationToken::new();
        match tokio::time::timeout(limit, self.follow(true, &stop)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!("no last manifest: {error}"),
            Err(_) => debug!("no last manifest within {limit:?}"),
        }
    }

    /// Reads what has come; signs where a draft is full, and at the end if it `is_due`.
    async fn follow(&mut self, is_due: bool, stop: &CancellationToken) -> Result<(), String> {
        // What is taken over from a damaged store stands before what would be signed now.
        if self.spool.stats().is_salvaging {
            return Ok(());
        }
        let epoch = self.spool.epoch();
        if self.chain.as_ref().is_none_or(|chain| chain.epoch != epoch) {
            self.chain = self.resume(epoch).await?;
        }
        // An empty log has nothing to begin with.
        let Some(mut chain) = self.chain.take() else { return Ok(()) };
        let result = self.advance(&mut chain, is_due, stop).await;
        self.chain = Some(chain);
        result
    }

    async fn advance(
        &mut self,
        chain: &mut Chain,
        is_due: bool,
        stop: &CancellationToken,
    ) -> Result<(), String> {
        self.append_pending(chain).await?;
        let head = self.spool.committed().borrow().last.0;
        while chain.draft.next_seq() <= head && !stop.is_cancelled() {
            let after = Seq(chain.draft.next_seq() - 1);
            let entries = self.spool.read_after(after, AT_ONCE).await.map_err(text)?;
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                if chain.draft.is_full() {
                    self.sign(chain).await?;
                }
                let (line, kind) = canonical(&entry, &mut self.scratch);
                chain.draft.add(entry.seq.0, &line, kind);
            }
        }
        if is_due && chain.draft.is_worth_it() { self.sign(chain).await } else { Ok(()) }
    }

    /// Signs what the draft holds and appends it.
    async fn sign(&mut self, chain: &mut Chain) -> Result<(), String> {
        self.make(chain).await?;
        self.append_pending(chain).await
    }

    /// Signs what the draft holds; it is kept and stands in the log only after [`Keeper::append_pending`].
    async fn make(&mut self, chain: &mut Chain) -> Result<(), String> {
        let mut restated = Vec::new();
        for (from, to) in chain.draft.thinned_before() {
            restated.push(self.restate(from, to).await?);
        }
        let epoch = epoch_text(chain.epoch);
        let header = Header {
            gateway: &self.gateway,
            epoch: &epoch,
            number: chain.state.as_ref().map_or(0, |state| state.number) + 1,
            previous: chain.state.as_ref().map(|state| &*state.hash),
            key: self.key.public(),
        };
        let manifest = chain.draft.clone().finish(header, restated);
        let signed = Signed::new(&manifest, &self.key);
        let pending = Some(signed.to_json());
        let state =
            State { epoch, number: manifest.number, to_seq: manifest.to_seq, hash: signed.hash(), pending };
        self.keep(&state).await?;
        debug!("manifest {} covers {} to {}", state.number, manifest.from_seq, state.to_seq);
        chain.draft = Draft::new(state.to_seq + 1);
        chain.state = Some(state);
        Ok(())
    }

    /// Appends the manifest that is kept and not known to be in the log.
    async fn append_pending(&mut self, chain: &mut Chain) -> Result<(), String> {
        let Some(state) = &mut chain.state else { return Ok(()) };
        let Some(json) = &state.pending else { return Ok(()) };
        let entry = Entry::Manifest { text: json.as_str().into(), stamp: self.clock.stamp() };
        let (done, stored) = oneshot::channel();
        self.intake.store(entry.clone(), done).await;
        match stored.await {
            Ok(result) => result?,
            // The intake has ended, at a stop: nobody is before us.
            Err(_) => {
                self.spool.append(vec![entry], true).await.map_err(text)?;
            }
        }
        state.pending = None;
        let state = state.clone();
        self.keep(&state).await
    }

    /// What stands now in places that were thinned.
    async fn restate(&mut self, from: u64, to: u64) -> Result<Thinned, String> {
        let mut chunk = Chunk::new();
        let mut next = from;
        while next <= to {
            let entries = self.spool.read_after(Seq(next - 1), AT_ONCE).await.map_err(text)?;
            let Some(last) = entries.last().map(|last| last.seq.0) else { break };
            for entry in entries.iter().filter(|entry| entry.seq.0 <= to) {
                chunk.add(&canonical(entry, &mut self.scratch).0);
            }
            next = last + 1;
        }
        Ok(Thinned { from, to, kept: chunk.lines, digest: chunk.finish() })
    }

    /// Where the chain of this epoch goes on; none while the log is empty.
    async fn resume(&mut self, epoch: u64) -> Result<Option<Chain>, String> {
        let kept = self.spool.meta(STATE).await.map_err(text)?;
        let state = kept.and_then(|json| serde_json::from_slice::<State>(&json).ok());
        let state = match state.filter(|state| state.epoch == epoch_text(epoch)) {
            Some(state) => Some(state),
            None => self.newest(epoch).await?,
        };
        let from = match &state {
            Some(state) => state.to_seq + 1,
            None => match self.spool.read_after(Seq(0), 1).await.map_err(text)?.first() {
                Some(first) => first.seq.0,
                None => return Ok(None),
            },
        };
        Ok(Some(Chain { epoch, state, draft: Draft::new(from) }))
    }

    /// The chain as the log itself has it, where the store lost what it kept beside: in a database that was mended.
    async fn newest(&mut self, epoch: u64) -> Result<Option<State>, String> {
        let mut newest: Option<State> = None;
        let mut after = Seq(0);
        loop {
            let entries = self.spool.read_after(after, AT_ONCE).await.map_err(text)?;
            let Some(last) = entries.last() else { return Ok(newest) };
            after = last.seq;
            for entry in &entries {
                let Body::Manifest { text } = &entry.body else { continue };
                let Ok((signed, manifest)) = Signed::parse(text) else { continue };
                let Manifest { number, to_seq, epoch: of, .. } = manifest;
                let is_newer = newest.as_ref().is_none_or(|newest| newest.number < number);
                if is_newer && of == epoch_text(epoch) && signed.is_signed_by(self.key.public()) {
                    newest = Some(State { epoch: of, number, to_seq, hash: signed.hash(), pending: None });
                }
            }
        }
    }

    async fn keep(&self, state: &State) -> Result<(), String> {
        let json = serde_json::to_vec(state).map_err(|error| error.to_string())?;
        self.spool.set_meta(STATE, json).await.map_err(text)
    }
}

/// The epoch as every record carries it.
fn epoch_text(epoch: u64) -> String {
    format!("{epoch:014x}")
}

fn text(error: SpoolError) -> String {
    error.to_string()
}

/// The key under which the store keeps the chain's state.
const STATE: &str = "ledger";
/// How often the log is followed.
const FOLLOW: Duration = Duration::from_secs(5);
/// Entries read at a time.
const AT_ONCE: usize = 1000;

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
