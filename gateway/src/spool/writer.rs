//! The one writer: gathers what comes in, commits it together, answers when it is safe.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use log::{error, info, warn};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::damage::{self, Ballast};
use super::entry::{Entry, Gap, GapReason};
use super::store::{Stats, Store, StoreError};
use super::{Committed, Options, Seq};

/// Where an append's places, or why it was refused, are waited for.
type Reply = oneshot::Sender<Answer>;
type Answer = Result<Range<Seq>, String>;

/// What the writer is asked.
pub(super) enum Job {
    Append { entries: Vec<Entry>, is_urgent: bool, reply: Reply },
    Acknowledge { uplink: String, seq: Seq, is_urgent: bool },
    Cursor { uplink: String, reply: oneshot::Sender<Seq> },
    Reconfigure(Options),
    Close(oneshot::Sender<()>),
}

/// Runs until it is closed or nobody holds a handle.
pub(super) fn run(
    store: Store,
    options: &Options,
    mut jobs: mpsc::Receiver<Job>,
    committed: &watch::Sender<Committed>,
    stats: &Mutex<Stats>,
) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else {
        error!("the spool's writer cannot wait: no timer");
        return;
    };
    let directory = store.directory().to_owned();
    let mut writer = Writer {
        store,
        interval: options.commit_interval,
        ballast: Ballast::new(&directory),
        directory,
        options: options.clone(),
        pending: Vec::new(),
        cursors: HashMap::new(),
        lost: HashMap::new(),
        refusing: None,
    };
    writer.ballast.fill(options.max_size);
    let mut looked_at = Instant::now();
    loop {
        let close = runtime.block_on(writer.gather(&mut jobs));
        let answers = writer.commit();
        // What costs queries is looked up now and then; what changed with the commit is shown at once.
        let bytes = (looked_at.elapsed() > STATS_INTERVAL || close.is_some())
            .then(|| writer.store.bytes().ok())
            .flatten();
        if bytes.is_some() {
            looked_at = Instant::now();
        }
        let mut shown = stats.lock().unwrap_or_else(PoisonError::into_inner);
        writer.store.show(&mut shown, bytes);
        shown.refusing.clone_from(&writer.refusing);
        drop(shown);
        committed.send_replace(writer.store.committed());
        // Last: who is answered sees the state that the answer speaks of.
        for (reply, answer) in answers {
            // Nobody listening is fine: a caller may have given up waiting.
            let _ = reply.send(answer);
        }
        if let Some(reply) = close {
            if let Err(error) = writer.store.checkpoint() {
                warn!("the spool's log stays behind: {error}");
            }
            if let Some(reply) = reply {
                let _ = reply.send(());
            }
            return;
        }
    }
}

struct Writer {
    store: Store,
    directory: PathBuf,
    options: Options,
    interval: Duration,
    ballast: Ballast,
    pending: Vec<(Vec<Entry>, Reply)>,
    cursors: HashMap<String, Seq>,
    /// Entries that could not be written, by reason; recorded as gaps with the next commit that works.
    lost: HashMap<&'static str, (GapReason, u64)>,
    refusing: Option<String>,
}

impl Writer {
    /// Takes jobs until a commit is due; `Some` when the writer is to end after it.
    async fn gather(&mut self, jobs: &mut mpsc::Receiver<Job>) -> Option<Option<oneshot::Sender<()>>> {
        let mut due: Option<Instant> = None;
        let mut entries = 0;
        loop {
            let next = match due {
                None => jobs.recv().await,
                Some(due) if entries >= MAX_BATCH || due <= Instant::now() => match jobs.try_recv() {
                    // Whoever is already here shares the flush.
                    Ok(job) if entries < MAX_BATCH => Some(job),
                    _ => return None,
                },
                Some(due) => match tokio::time::timeout_at(due, jobs.recv()).await {
                    Ok(job) => job,
                    Err(_) => return None,
                },
            };
            match next {
                None => return Some(None),
                Some(Job::Close(reply)) => return Some(Some(reply)),
                Some(Job::Append { entries: more, is_urgent, reply }) => {
                    entries += more.len();
                    self.pending.push((more, reply));
                    let by = Instant::now() + if is_urgent { Duration::ZERO } else { self.interval };
                    due = Some(due.map_or(by, |due| due.min(by)));
                }
                Some(Job::Acknowledge { uplink, seq, is_urgent }) => {
                    let cursor = self.cursors.entry(uplink).or_default();
                    *cursor = (*cursor).max(seq);
                    let by = Instant::now() + if is_urgent { Duration::ZERO } else { CURSOR_INTERVAL };
                    due = Some(due.map_or(by, |due| due.min(by)));
                }
                Some(Job::Cursor { uplink, reply }) => {
                    let stored = self.store.cursor(&uplink);
                    let _ =
                        reply.send(self.cursors.get(&uplink).copied().map_or(stored, |seq| seq.max(stored)));
                }
                Some(Job::Reconfigure(options)) => {
                    self.interval = options.commit_interval;
                    self.options = options.clone();
                    if let Err(error) = self.store.reconfigure(options) {
                        error!("the spool keeps its old limits: {error}");
                    }
                }
            }
        }
    }

    /// Writes what waits; on a full or damaged disk does what the policy says and tries again, else refuses.
    fn commit(&mut self) -> Vec<(Reply, Answer)> {
        if self.pending.is_empty() && self.cursors.is_empty() {
            return Vec::new();
        }
        let mut result = self.write();
        for _ in 0..MAX_RESCUES {
            match &result {
                Err(error) if error.is_full() => {
                    self.make_room();
                    result = self.write();
                }
                Err(error) if error.is_damage() => {
                    error!("the spool is damaged: {error}");
                    if !self.replace_store() {
                        break;
                    }
                    result = self.write();
                }
                _ => break,
            }
        }
        match result {
            Ok(first) => {
                if self.refusing.take().is_some() {
                    info!("the spool writes again");
                }
                self.cursors.clear();
                self.ballast.fill(self.options.max_size);
                self.places(first)
            }
            Err(error) => self.refuse(&error),
        }
    }

    /// One transaction: losses first, then what waits. Returns the first place given to what waits.
    fn write(&mut self) -> Result<Seq, StoreError> {
        let mut gaps = self.store.tend()?;
        let dropped = gaps.len();
        gaps.extend(self.lost.values().map(|(reason, count)| Gap {
            from_seq: None,
            to_seq: None,
            count: Some(*count),
            reason: *reason,
        }));
        let stamp = self.store.clock().stamp();
        let gaps: Vec<Entry> = gaps.into_iter().map(|gap| Entry::Gap { gap, stamp }).collect();
        let first = Seq(self.store.last_seq().0 + gaps.len() as u64 + 1);
        let entries = gaps.iter().chain(self.pending.iter().flat_map(|(entries, _)| entries));
        let written = self.store.append(entries, &self.cursors);
        if written.is_ok() {
            self.lost.clear();
        } else if dropped > 0 {
            // The partition is gone although the entry that says so is not written yet: keep the number.
            for gap in gaps.iter().take(dropped) {
                if let Entry::Gap { gap, .. } = gap {
                    self.note_loss(gap.reason, gap.count.unwrap_or_default());
                }
            }
        }
        written.map(|()| first)
    }

    /// Everybody's places, from `first` on.
    fn places(&mut self, mut first: Seq) -> Vec<(Reply, Answer)> {
        let pending = std::mem::take(&mut self.pending).into_iter();
        let places = pending.map(|(entries, reply)| {
            let behind = Seq(first.0 + entries.len() as u64);
            (reply, Ok(std::mem::replace(&mut first, behind)..behind))
        });
        places.collect()
    }

    fn refuse(&mut self, error: &StoreError) -> Vec<(Reply, Answer)> {
        let text = error.to_string();
        if self.refusing.as_ref() != Some(&text) {
            error!("the spool cannot write, entries are lost until it can: {text}");
        }
        let reason = if error.is_full() { GapReason::DiskFull } else { GapReason::Damage };
        let pending = std::mem::take(&mut self.pending);
        let count = pending.iter().map(|(entries, _)| entries.len() as u64).sum();
        self.note_loss(reason, count);
        self.refusing = Some(text.clone());
        pending.into_iter().map(|(_, reply)| (reply, Err(text.clone()))).collect()
    }

    fn note_loss(&mut self, reason: GapReason, count: u64) {
        if count > 0 {
            self.lost.entry(reason.as_str()).or_insert((reason, 0)).1 += count;
        }
    }

    /// Frees the ballast, then the oldest partition, then the log's own room.
    fn make_room(&mut self) {
        if self.ballast.release() {
            warn!("the disk is full: the reserve of {} MB is used now", Ballast::SIZE >> 20);
        }
        match self.store.drop_oldest(GapReason::DiskFull) {
            Ok(Some(gap)) => self.note_loss(gap.reason, gap.count.unwrap_or_default()),
            Ok(None) => {}
            Err(error) => warn!("no partition could be dropped: {error}"),
        }
        if let Err(error) = self.store.checkpoint() {
            warn!("the spool's log cannot be shortened: {error}");
        }
    }

    /// Sets a database that broke while running aside and begins a new one.
    fn replace_store(&mut self) -> bool {
        let clock = self.store.clock();
        let last = self.store.last_seq();
        if let Err(error) = self.store.let_go() {
            error!("the damaged spool cannot be let go: {error}");
            return false;
        }
        match damage::quarantine(&self.directory, &self.options, clock, Some(last)) {
            Ok((store, damage)) => {
                self.store = store;
                self.cursors.clear();
                warn!("the damaged spool is kept as {}", damage.kept_as.display());
                true
            }
            Err(error) => {
                error!("no new spool could be begun: {error}");
                false
            }
        }
    }
}

/// So many entries end the gathering: a commit stays short, and waiting clients are answered.
const MAX_BATCH: usize = 8192;
/// A cursor alone is worth a commit only now and then; it rides with the next entries otherwise.
const CURSOR_INTERVAL: Duration = Duration::from_secs(2);
/// How old the shown size may be.
const STATS_INTERVAL: Duration = Duration::from_millis(100);
/// Tries per commit to free room or to begin anew.
const MAX_RESCUES: usize = 3;
