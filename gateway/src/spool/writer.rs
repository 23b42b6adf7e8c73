//! The one writer: gathers what comes in, commits it together, answers when it is safe.

use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use log::{error, info, warn};
use mqtt::{Change, Record};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::commands::{Begun, CommandRow, CommandStep};
use super::damage::{self, Ballast};
use super::entry::{Class, ClockRecord, Entry, Gap, GapReason};
use super::pace::{DAY, Pace, SHORTEST};
use super::progress::Progress;
use super::store::{Batch, Done, Stats, Store, StoreError};
use super::{Committed, Options, Seq, salvage, wear};

/// Where what came of a job is waited for; an error says why it could not be done.
pub(super) type Reply<T> = oneshot::Sender<Result<T, String>>;

/// What the writer is asked.
pub(super) enum Job {
    Append {
        entries: Vec<Entry>,
        is_urgent: bool,
        reply: Option<Reply<Range<Seq>>>,
    },
    Note {
        uplink: String,
        progress: Progress,
        is_urgent: bool,
    },
    Store {
        uplink: String,
        progress: Progress,
        state: Vec<u8>,
        reply: Reply<()>,
    },
    Progress {
        uplink: String,
        reply: Reply<(Progress, Vec<u8>)>,
    },
    Clock {
        record: ClockRecord,
        mono: i64,
        reply: Reply<()>,
    },
    Begin {
        command: CommandRow,
        reply: Reply<Begun>,
    },
    Finish {
        id: String,
        outcome: String,
        entry: Option<Entry>,
        reply: Reply<()>,
    },
    Unfinished {
        reply: Reply<Vec<CommandRow>>,
    },
    Meta {
        key: String,
        reply: Reply<Option<Vec<u8>>>,
    },
    SetMeta {
        key: String,
        value: Vec<u8>,
        reply: Reply<()>,
    },
    /// What the MQTT broker keeps.
    Kept {
        reply: Reply<Vec<Record>>,
    },
    Keep {
        changes: Vec<Change>,
        reply: Reply<()>,
    },
    /// A reader met damage in the file with that inode.
    Unsound {
        inode: u64,
        what: String,
    },
    Reconfigure(Options),
    Close(oneshot::Sender<()>),
}

/// Who waits for a commit, in the order of the batch.
enum Waiting {
    Places { count: u64, is_refused: bool, reply: Option<Reply<Range<Seq>>> },
    Begun(Reply<Begun>),
    Done(Reply<()>),
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
    let (day, written) = today(&store);
    let mut writer = Writer {
        ballast: Ballast::new(&directory),
        directory,
        pace: Pace::new(options.rpo, options.wear_budget, day, written),
        interval: options.rpo,
        measured: (store.commits(), wear::written_by_this_thread()),
        noted: written,
        wear_note: None,
        store,
        options: options.clone(),
        batch: Batch::default(),
        spent: Batch::default(),
        waiting: Vec::new(),
        lost: HashMap::new(),
        refusing: None,
        may_linger: false,
        has_processors: std::thread::available_parallelism().is_ok_and(|number| number.get() > 1),
        short_since: None,
    };
    writer.reserve();
    // That was a commit, which may have made room and told of it.
    writer.show(stats, true);
    committed.send_replace(writer.store.committed());
    let mut looked_at: Option<Instant> = None;
    loop {
        let close = runtime.block_on(writer.gather(&mut jobs));
        let done = writer.commit();
        writer.take_over_remains();
        let waiting = std::mem::take(&mut writer.waiting);
        // What costs queries is looked up now and then; what changed with the commit is shown at once.
        let is_time = looked_at.is_none_or(|at| at.elapsed() > STATS_INTERVAL) || close.is_some();
        if is_time {
            looked_at = Some(Instant::now());
            writer.measure();
        }
        writer.show(stats, is_time);
        committed.send_replace(writer.store.committed());
        // Last: who is answered sees the state that the answer speaks of.
        answer(waiting, done);
        writer.may_linger = writer.has_processors;
        // Nobody waits for the memory.
        writer.spent = Batch::default();
        if let Some(reply) = close {
            writer.note_wear();
            let note = writer.wear_note.take().map(|note| (WEAR.to_owned(), note));
            if let Err(error) =
                writer.store.commit(&Batch { blobs: note.into_iter().collect(), ..Batch::default() })
            {
                warn!("what was written today is not noted: {error}");
            }
            // The log is removed with the last connection.
            if let Err(error) = writer.store.note_log(0).and_then(|()| writer.store.checkpoint()) {
                warn!("the spool's log stays behind: {error}");
                // Closing would remove it all the same.
                if let Err(error) = writer.store.let_go() {
                    warn!("the spool's log cannot be kept: {error}");
                }
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
    ballast: Ballast,
    pace: Pace,
    /// How long telemetry waits for its commit at the moment.
    interval: Duration,
    /// Commits and this thread's bytes when wear was measured last.
    measured: (u64, u64),
    /// Today's bytes as they were noted last.
    noted: u64,
    /// What of that is to be kept with the next commit.
    wear_note: Option<Vec<u8>>,
    batch: Batch,
    /// What the last commit has written.
    spent: Batch,
    waiting: Vec<Waiting>,
    /// Entries that could not be written, by reason; recorded as gaps with the next commit that works.
    lost: HashMap<&'static str, (GapReason, u64)>,
    refusing: Option<String>,
    /// Right behind a commit, where there is a processor for it.
    may_linger: bool,
    has_processors: bool,
    /// Since when what is held back is used up; it is taken again when there is room.
    short_since: Option<Instant>,
}

impl Writer {
    /// Takes jobs until a commit is due; `Some` when the writer is to end after it.
    async fn gather(&mut self, jobs: &mut mpsc::Receiver<Job>) -> Option<Option<oneshot::Sender<()>>> {
        // What is to be taken over from a damaged store is taken over between two commits.
        let mut due: Option<Instant> = self.store.remains.is_some().then(Instant::now);
        loop {
            if self.batch.entries.len() >= MAX_BATCH {
                return None;
            }
            let next = match due {
                None => match self.linger(jobs) {
                    Some(job) => Some(job),
                    None => jobs.recv().await,
                },
                Some(due) if due <= Instant::now() => match jobs.try_recv() {
                    // Whoever is already here shares the flush.
                    Ok(job) => Some(job),
                    Err(_) => return None,
                },
                Some(due) => match tokio::time::timeout_at(due, jobs.recv()).await {
                    Ok(job) => job,
                    Err(_) => return None,
                },
            };
            match next {
                None => return Some(None),
                Some(Job::Close(reply)) => return Some(Some(reply)),
                Some(job) => {
                    if let Some(wait) = self.take(job) {
                        let by = Instant::now() + wait;
                        due = Some(due.map_or(by, |due| due.min(by)));
                    }
                }
            }
        }
    }

    /// Looks for the next job for a moment before it sleeps: who was just answered is often about to ask again, and
    /// being woken takes longer than that.
    fn linger(&mut self, jobs: &mut mpsc::Receiver<Job>) -> Option<Job> {
        if !std::mem::take(&mut self.may_linger) {
            return None;
        }
        let begun = Instant::now();
        while begun.elapsed() < LINGER {
            if let Ok(job) = jobs.try_recv() {
                return Some(job);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Takes a job into the batch, or does it at once; how long its commit may wait, if it needs one.
    fn take(&mut self, job: Job) -> Option<Duration> {
        let wait = match job {
            Job::Append { entries, reply: Some(reply), .. } if entries.is_empty() => {
                let next = self.store.last_seq().next();
                let _ = reply.send(Ok(next..next));
                return None;
            }
            Job::Append { mut entries, is_urgent, reply } => {
                let is_urgent = is_urgent || entries.iter().any(|entry| entry.class() == Class::Alarm);
                let count = entries.len() as u64;
                self.waiting.push(Waiting::Places { count, is_refused: false, reply });
                if self.batch.entries.is_empty() {
                    self.batch.entries = entries;
                } else {
                    self.batch.entries.append(&mut entries);
                }
                if is_urgent {
                    Duration::ZERO
                } else if self.batch.entries.len() >= MANY {
                    self.interval.min(SHORTEST)
                } else {
                    self.interval
                }
            }
            Job::Note { uplink, progress, is_urgent } => {
                self.batch.progress.insert(uplink, progress);
                if is_urgent { Duration::ZERO } else { PROGRESS_WAIT }
            }
            Job::Store { uplink, progress, state, reply } => {
                self.batch.progress.insert(uplink.clone(), progress);
                self.batch.states.insert(uplink, state);
                self.waiting.push(Waiting::Done(reply));
                Duration::ZERO
            }
            Job::Clock { record, mono, reply } => {
                self.batch.clocks.push((record, mono));
                self.waiting.push(Waiting::Done(reply));
                Duration::ZERO
            }
            Job::Begin { reply, .. } if self.store.remains.is_some() => {
                // Its id may be among what is still to come.
                let _ = reply.send(Err("a damaged spool is being mended".into()));
                return None;
            }
            Job::Begin { command, reply } => {
                self.batch.commands.push(CommandStep::Begin(command));
                self.waiting.push(Waiting::Begun(reply));
                Duration::ZERO
            }
            Job::Finish { id, outcome, entry, reply } => {
                self.batch.commands.push(CommandStep::Finish { id, outcome });
                if let Some(entry) = entry {
                    self.batch.entries.push(entry);
                    self.waiting.push(Waiting::Places { count: 1, is_refused: false, reply: None });
                }
                self.waiting.push(Waiting::Done(reply));
                Duration::ZERO
            }
            Job::SetMeta { key, value, reply } => {
                self.batch.blobs.push((key, value));
                self.waiting.push(Waiting::Done(reply));
                Duration::ZERO
            }
            Job::Progress { uplink, reply } => {
                let progress = self.batch.progress.get(&uplink).cloned();
                let progress = progress.unwrap_or_else(|| self.store.progress(&uplink));
                let state = match self.batch.states.get(&uplink) {
                    Some(state) => Ok(state.clone()),
                    None => self.store.state(&uplink).map_err(|error| error.to_string()),
                };
                let _ = reply.send(state.map(|state| (progress, state)));
                return None;
            }
            Job::Unfinished { reply } => {
                // What the batch holds is under way, not cut short.
                let _ = reply.send(self.store.unfinished_commands().map_err(|error| error.to_string()));
                return None;
            }
            Job::Meta { key, reply } => {
                let waiting = self.batch.blobs.iter().rev().find(|(have, _)| *have == key);
                let value = match waiting {
                    Some((_, value)) => Ok(Some(value.clone())),
                    None => self.store.blob(&key).map_err(|error| error.to_string()),
                };
                let _ = reply.send(value);
                return None;
            }
            Job::Kept { reply } => {
                let _ = reply.send(self.store.kept().map_err(|error| error.to_string()));
                return None;
            }
            Job::Keep { changes, reply } => {
                self.batch.kept.extend(changes);
                self.waiting.push(Waiting::Done(reply));
                Duration::ZERO
            }
            Job::Unsound { inode, what } => {
                // Another reader may have said so of a file that is replaced by now.
                let path = super::store_path(&self.directory);
                if std::fs::metadata(path).is_ok_and(|metadata| metadata.ino() == inode) {
                    error!("the spool is damaged: {what}");
                    self.replace_store();
                }
                // Whoever waits for news hears of the new store at once.
                Duration::ZERO
            }
            Job::Reconfigure(options) => {
                self.options = options.clone();
                self.pace.reconfigure(options.rpo, options.wear_budget);
                self.interval = self.interval.min(options.rpo);
                if let Err(error) = self.store.reconfigure(options) {
                    error!("the spool keeps its old limits: {error}");
                }
                return None;
            }
            Job::Close(reply) => {
                // Asked for twice: the first one ends it all.
                let _ = reply.send(());
                return None;
            }
        };
        Some(wait)
    }

    /// Writes what waits; on a full or damaged disk does what the policy says and tries again, else refuses. `None`
    /// when there is nothing to write.
    fn commit(&mut self) -> Option<Result<Done, String>> {
        if self.batch.is_empty() {
            return None;
        }
        let mut result = self.write();
        for attempt in 0..MAX_RESCUES {
            match &result {
                // Once: what is left has room of its own. It may come after the disk was found full.
                Err(StoreError::Quota) if self.batch.has_telemetry() => {
                    self.refuse_telemetry();
                    result = self.write();
                }
                Err(error) if error.is_full() => {
                    self.make_room(1 << (2 * attempt.min(2)));
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
        let result = match result {
            Ok(done) => {
                if !self.store.is_refusing() && self.refusing.take().is_some() {
                    info!("the spool writes again");
                }
                if self.short_since.is_some_and(|since| since.elapsed() > RESERVE_INTERVAL) {
                    self.reserve();
                }
                self.spent = std::mem::take(&mut self.batch);
                Ok(done)
            }
            Err(error) => Err(self.refuse(&error)),
        };
        Some(result)
    }

    /// Takes back the room that is held for bad times: the ballast and the log's length.
    fn reserve(&mut self) {
        let is_filled = self.ballast.fill(self.options.max_size);
        let is_grown = self.store.grow_log().is_ok();
        self.short_since = (!is_filled || !is_grown).then(Instant::now);
    }

    /// Looks at what was written, and how long telemetry may wait after that.
    fn measure(&mut self) {
        let (commits, bytes) = (self.store.commits(), wear::written_by_this_thread());
        let (day, left) = day_and_left(&self.store);
        self.pace.wrote(day, commits.saturating_sub(self.measured.0), bytes.saturating_sub(self.measured.1));
        self.measured = (commits, bytes);
        self.interval = self.pace.interval(left);
        if self.pace.today() < self.noted || self.pace.today() - self.noted > self.options.wear_budget / 100 {
            self.note_wear();
        }
    }

    /// Has the day's bytes kept with the next commit, so that a restart begins no new budget.
    fn note_wear(&mut self) {
        self.noted = self.pace.today();
        let note = [self.pace.day().to_be_bytes(), (self.noted as i64).to_be_bytes()].concat();
        self.wear_note = Some(note);
    }

    fn show(&self, stats: &Mutex<Stats>, with_size: bool) {
        let mut shown = stats.lock().unwrap_or_else(PoisonError::into_inner);
        self.store.show(&mut shown, with_size.then(|| self.store.bytes().ok()).flatten());
        shown.refusing.clone_from(&self.refusing);
        shown.interval = self.interval;
        shown.wear_budget = self.options.wear_budget;
        shown.written_today = self.pace.today();
        shown.bytes_per_commit = self.pace.per_commit();
        shown.is_over_budget = self.pace.is_over_budget();
    }

    /// One transaction: losses first, then what waits.
    fn write(&mut self) -> Result<Done, StoreError> {
        // What the limit keeps out is told once there is room again, not with every alarm until then.
        self.batch.lost = self
            .lost
            .values()
            .filter(|(reason, _)| *reason != GapReason::Quota || self.batch.has_telemetry())
            .map(|(reason, count)| Gap { from_seq: None, to_seq: None, count: Some(*count), reason: *reason })
            .collect();
        if let Some(note) = &self.wear_note {
            self.batch.blobs.retain(|(key, _)| key != WEAR);
            self.batch.blobs.push((WEAR.into(), note.clone()));
        }
        let done = self.store.commit(&self.batch)?;
        self.wear_note = None;
        let told: Vec<GapReason> = self.batch.lost.iter().map(|gap| gap.reason).collect();
        self.lost.retain(|_, (reason, _)| !told.contains(reason));
        Ok(done)
    }

    /// Takes the telemetry out of the batch and counts it as lost; the rest has room of its own.
    fn refuse_telemetry(&mut self) {
        let text = StoreError::Quota.to_string();
        if self.refusing.as_ref() != Some(&text) {
            error!("telemetry is refused until there is room: {text}");
        }
        self.refusing = Some(text);
        let mut entries = std::mem::take(&mut self.batch.entries).into_iter();
        let mut refused = 0;
        for waiting in &mut self.waiting {
            if let Waiting::Places { count, is_refused, .. } = waiting {
                let before = self.batch.entries.len();
                let own = entries.by_ref().take(usize::try_from(*count).unwrap_or(usize::MAX));
                self.batch.entries.extend(own.filter(|entry| entry.class() == Class::Alarm));
                let kept = (self.batch.entries.len() - before) as u64;
                *is_refused |= kept < *count;
                refused += *count - kept;
                *count = kept;
            }
        }
        self.note_lost(GapReason::Quota, refused);
    }

    fn note_lost(&mut self, reason: GapReason, count: u64) {
        if count > 0 {
            self.lost.entry(reason.as_str()).or_insert((reason, 0)).1 += count;
        }
    }

    /// Gives up on the batch: its entries are counted as lost. What uplinks told is kept for the next commit.
    fn refuse(&mut self, error: &StoreError) -> String {
        let text = error.to_string();
        if self.refusing.as_ref() != Some(&text) {
            error!("the spool cannot write, entries are lost until it can: {text}");
        }
        let reason = if error.is_full() { GapReason::DiskFull } else { GapReason::Damage };
        self.store.force_nothing();
        self.note_lost(reason, self.batch.entries.len() as u64);
        let refused = std::mem::take(&mut self.batch);
        // Whoever stored a state was told that it failed, and what goes with it must not stand without it.
        self.batch.progress = refused.progress;
        self.batch.progress.retain(|uplink, _| !refused.states.contains_key(uplink));
        self.refusing = Some(text.clone());
        text
    }

    /// Frees the ballast, then so many of the oldest partitions with the next try, then the log's own room.
    fn make_room(&mut self, partitions: usize) {
        if self.ballast.release() {
            warn!("the disk is full: the reserve of {} MB is used now", Ballast::SIZE >> 20);
        }
        self.short_since = Some(Instant::now());
        self.store.force_room(partitions);
        if let Err(error) = self.store.reuse_log() {
            warn!("the spool's log cannot be written back: {error}");
        }
    }

    /// Takes over some of what a damaged store held.
    fn take_over_remains(&mut self) {
        if self.store.remains.is_none() {
            return;
        }
        let done = match self.store.take_over_remains(std::time::Instant::now() + salvage::PAUSE) {
            Err(error) if error.is_full() => {
                error!("there is no room for the rest of what the damaged spool held: {error}");
                self.store.give_up_remains()
            }
            done => done.map(drop),
        };
        if let Err(error) = done {
            error!("what the damaged spool held cannot be taken over: {error}");
            self.store.remains = None;
        }
    }

    /// Sets a database that broke while running aside and begins a new one with what the old one still holds.
    fn replace_store(&mut self) -> bool {
        let clock = self.store.clock();
        let known = damage::Known {
            epoch: self.store.epoch(),
            last: self.store.last_seq(),
            progress: self.store.committed().progress,
        };
        if let Err(error) = self.store.let_go() {
            error!("the damaged spool cannot be let go: {error}");
            return false;
        }
        match damage::quarantine(&self.directory, &self.options, clock, Some(known)) {
            Ok((store, damage)) => {
                self.store = store;
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

/// Tells everybody what came of the commit they wait for.
fn answer(waiting: Vec<Waiting>, done: Option<Result<Done, String>>) {
    // Nobody listening is fine: a caller may have given up waiting.
    let (mut first, mut begun) = match done {
        Some(Ok(done)) => (done.first, done.begun.into_iter()),
        Some(Err(text)) => {
            for waiting in waiting {
                match waiting {
                    Waiting::Places { reply: Some(reply), .. } => drop(reply.send(Err(text.clone()))),
                    Waiting::Places { reply: None, .. } => {}
                    Waiting::Begun(reply) => drop(reply.send(Err(text.clone()))),
                    Waiting::Done(reply) => drop(reply.send(Err(text.clone()))),
                }
            }
            return;
        }
        None => return,
    };
    for waiting in waiting {
        match waiting {
            Waiting::Places { count, is_refused, reply } => {
                let places = first..Seq(first.0 + count);
                first = places.end;
                if let Some(reply) = reply {
                    let _ =
                        reply.send(if is_refused { Err(StoreError::Quota.to_string()) } else { Ok(places) });
                }
            }
            Waiting::Begun(reply) => {
                let _ = reply.send(begun.next().ok_or_else(|| "no answer".to_owned()));
            }
            Waiting::Done(reply) => drop(reply.send(Ok(()))),
        }
    }
}

/// The day, and what of it is left; days of this run where wall time is unknown.
fn day_and_left(store: &Store) -> (i64, Duration) {
    let stamp = store.clock().stamp();
    let now = stamp.wall.map_or(stamp.monotonic_ns as i64, |wall| wall.unix_ns).max(0);
    let day = DAY.as_nanos() as i64;
    (now / day, Duration::from_nanos((day - now % day) as u64))
}

/// The day, and what an earlier run noted to have written on it.
fn today(store: &Store) -> (i64, u64) {
    let (day, _) = day_and_left(store);
    let note = store.blob(WEAR).ok().flatten().unwrap_or_default();
    let (words, _) = note.as_chunks::<8>();
    match words {
        [noted, bytes] if i64::from_be_bytes(*noted) == day => (day, u64::from_be_bytes(*bytes)),
        _ => (day, 0),
    }
}

/// So many entries end the gathering: a commit stays short, and waiting clients are answered.
const MAX_BATCH: usize = 8192;
/// From so many entries on nothing is gained by waiting longer than [`SHORTEST`] for more.
const MANY: usize = 512;
/// Progress alone is worth a commit only now and then; it rides with the next entries otherwise.
const PROGRESS_WAIT: Duration = Duration::from_secs(2);
/// How often it is tried to take back the room that is held for bad times.
const RESERVE_INTERVAL: Duration = Duration::from_secs(1);
/// At ten commits a second, less than a thousandth of a processor.
const LINGER: Duration = Duration::from_micros(50);
/// Where the day's bytes are kept.
const WEAR: &str = "spool/wear";
/// How old the shown size may be.
const STATS_INTERVAL: Duration = Duration::from_millis(100);
/// Tries per commit to free room or to begin anew.
const MAX_RESCUES: u32 = 4;
