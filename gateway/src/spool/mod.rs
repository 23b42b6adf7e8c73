//! The spool: the log on disk that every reading passes through on its way out.
//!
//! Constraints: what was acknowledged survives `kill -9` and a power cut; an uplink that is away costs disk and never
//! memory; the disk used is bounded; one writer, one flush per commit.
//!
//! Layout: one SQLite file in WAL mode with `synchronous=FULL`. Entries stand in partition tables `r_<id>` under a
//! plain integer key and no secondary index, because an index on the hot table costs four times the writes. A
//! partition is dropped whole, which costs nothing. What may not wait for telemetry and is never displaced by it stands
//! in a table of its own, in the same order of places. What each uplink's peer has is one row that rides in the next
//! commit.
//!
//! Why not `locking_mode=EXCLUSIVE`: history and forwarders read through a connection of their own, so that neither
//! ever waits for the writer nor holds it up. A file lock keeps a second process out instead.

mod clocks;
mod commands;
#[cfg(test)]
mod crash;
mod damage;
mod entry;
mod history;
mod inspect;
mod kept;
#[cfg(test)]
mod model;
mod pace;
mod progress;
mod reader;
mod retention;
mod rollup;
mod rows;
mod salvage;
mod schema;
mod store;
#[cfg(test)]
mod tests;
mod thin;
mod vfs;
mod wear;
#[cfg(test)]
mod world;
mod writer;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{mpsc, oneshot, watch};

pub use commands::{Begun, CommandRow};
pub use damage::Damage;
#[cfg(test)]
pub use entry::StoredChannel;
pub use entry::{Body, Class, ClockRecord, Entry, Gap, GapReason, Stored};
pub use history::{Bucket, HistoryQuery};
pub use inspect::{Check, Inspector, Partition};
pub use pace::daily_bytes;
pub use progress::{Hole, Progress};
pub use store::{Stats, StoreError};

use crate::clock::Clock;

/// A place in the log: grows by one per entry, never reused within a gateway's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

impl Seq {
    /// The place behind this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How the spool may behave.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The most that the database may take on disk, in bytes.
    pub max_size: u64,
    /// The longest that telemetry may wait for its commit: what a power cut may cost.
    pub rpo: Duration,
    /// Bytes that may be written to the disk a day; commits are made less often, within `rpo`, to keep to it.
    pub wear_budget: u64,
    /// What is done when the size is reached while an uplink is away.
    pub when_full: WhenFull,
    /// How long what every uplink has is kept for history.
    pub retain: Duration,
    /// The uplinks that read from here; what others had does not matter.
    pub uplinks: Vec<String>,
}

/// What is done when the size is reached while an uplink is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// Old readings become minute means; only when that is not enough, the oldest are dropped.
    #[default]
    ThinOut,
    /// The oldest are dropped.
    DropOldest,
    /// Nothing that was accepted is dropped: new telemetry is refused until there is room.
    Refuse,
}

/// What the last commit made safe.
#[derive(Debug, Clone, Default)]
pub struct Committed {
    /// The last place.
    pub last: Seq,
    /// The last place of class alarm.
    pub last_alarm: Seq,
    /// Each uplink's progress as it stands on disk.
    pub progress: Arc<HashMap<String, Progress>>,
}

/// The spool of a running gateway: a handle on the writer's and the reader's thread.
#[derive(Clone)]
pub struct Spool {
    writer: mpsc::Sender<writer::Job>,
    reader: mpsc::Sender<reader::Job>,
    historian: mpsc::Sender<reader::Job>,
    committed: watch::Receiver<Committed>,
    stats: Arc<Mutex<Stats>>,
    clock: Clock,
    directory: Arc<Path>,
    threads: Arc<Mutex<Vec<std::thread::JoinHandle<()>>>>,
}

/// Why the spool did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The spool's threads have ended.
    #[error("the spool is closed")]
    Closed,
    /// Nothing more could be written; nothing was promised.
    #[error("the spool cannot write: {0}")]
    Refused(String),
    /// Reading failed.
    #[error("the spool cannot read: {0}")]
    Unreadable(String),
}

impl Spool {
    /// Opens the spool in `directory`, taking over what a damaged one still holds, and starts its threads.
    ///
    /// # Errors
    /// The directory cannot be written, or another process holds the spool.
    pub fn open(
        directory: &Path,
        options: Options,
        clock: Clock,
    ) -> Result<(Self, Option<Damage>), StoreError> {
        let lock = lock(directory)?;
        let (store, damage) = damage::open_or_quarantine(directory, &options, clock)?;
        let (committed_tx, committed) = watch::channel(store.committed());
        let stats = Arc::new(Mutex::new(store.stats()));
        let (writer, writer_jobs) = mpsc::channel(WRITER_QUEUE);
        let (reader, reader_jobs) = mpsc::channel(READER_QUEUE);
        let (historian, historian_jobs) = mpsc::channel(READER_QUEUE);
        let writer_thread = {
            let stats = stats.clone();
            spawn("spool-writer", move || {
                writer::run(store, &options, writer_jobs, &committed_tx, &stats);
                drop(lock);
            })
        };
        // Two of them: a chart of a year keeps no uplink waiting.
        let path = store_path(directory);
        let told = writer.downgrade();
        let reader_thread = spawn("spool-reader", move || reader::run(&path, reader_jobs, &told));
        let path = store_path(directory);
        let told = writer.downgrade();
        let historian_thread = spawn("spool-history", move || reader::run(&path, historian_jobs, &told));
        let threads = Arc::new(Mutex::new(vec![writer_thread?, reader_thread?, historian_thread?]));
        let directory = directory.into();
        Ok((Self { writer, reader, historian, committed, stats, clock, directory, threads }, damage))
    }

    /// Appends entries and returns their places after the commit that holds them.
    ///
    /// `is_urgent` says that somebody waits: the commit then happens at once, with whatever else is there.
    ///
    /// # Errors
    /// [`SpoolError::Refused`] when the disk is full beyond what the policy can free; nothing was stored then.
    pub async fn append(&self, entries: Vec<Entry>, is_urgent: bool) -> Result<Range<Seq>, SpoolError> {
        self.tell(|reply| writer::Job::Append { entries, is_urgent, reply: Some(reply) }).await
    }

    /// Hands entries over that nobody waits for. They are committed within [`Options::rpo`], at once if one is of class
    /// alarm; those that cannot be written are counted and become a gap.
    ///
    /// # Errors
    /// [`SpoolError::Closed`].
    pub async fn offer(&self, entries: Vec<Entry>) -> Result<(), SpoolError> {
        self.send(writer::Job::Append { entries, is_urgent: false, reply: None }).await
    }

    /// What `uplink`'s peer has and the blob of its protocol, the newest that was told. A new uplink begins before the
    /// oldest entry.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`], [`SpoolError::Closed`].
    pub async fn progress(&self, uplink: &str) -> Result<(Progress, Vec<u8>), SpoolError> {
        let uplink = uplink.to_owned();
        self.look_up(|reply| writer::Job::Progress { uplink, reply }).await
    }

    /// Stores what the MQTT broker keeps, all of it or nothing; returns after the commit, which is made at once.
    ///
    /// # Errors
    /// [`SpoolError::Refused`] when it could not be written.
    pub async fn keep(&self, changes: Vec<mqtt::Change>) -> Result<(), SpoolError> {
        self.tell(|reply| writer::Job::Keep { changes, reply }).await
    }

    /// What the MQTT broker has kept, in the order of shelves and keys.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`], [`SpoolError::Closed`].
    pub async fn kept(&self) -> Result<Vec<mqtt::Record>, SpoolError> {
        self.look_up(|reply| writer::Job::Kept { reply }).await
    }

    /// Notes what `uplink`'s peer has. Stored with the next commit, after two seconds at the latest, at once when
    /// `is_urgent`: progress that is lost costs duplicates, never entries. The newest wins as a whole.
    ///
    /// # Errors
    /// [`SpoolError::Closed`].
    pub async fn note_progress(
        &self,
        uplink: &str,
        progress: Progress,
        is_urgent: bool,
    ) -> Result<(), SpoolError> {
        self.send(writer::Job::Note { uplink: uplink.to_owned(), progress, is_urgent }).await
    }

    /// Stores what `uplink`'s peer has together with the blob of its protocol; returns after the commit.
    ///
    /// # Errors
    /// [`SpoolError::Refused`] when it could not be written; what was stored before still holds then.
    pub async fn store_progress(
        &self,
        uplink: &str,
        progress: Progress,
        state: Vec<u8>,
    ) -> Result<(), SpoolError> {
        let uplink = uplink.to_owned();
        self.tell(|reply| writer::Job::Store { uplink, progress, state, reply }).await
    }

    /// Notes what was learnt of a boot's clock, as of now; from the next commit on, times are corrected by it.
    ///
    /// # Errors
    /// [`SpoolError::Refused`] when it could not be written.
    pub async fn note_clock(&self, record: ClockRecord) -> Result<(), SpoolError> {
        let mono = self.clock.stamp().monotonic_ns as i64;
        self.tell(|reply| writer::Job::Clock { record, mono, reply }).await
    }

    /// Writes a command down before it is acted on. Only [`Begun::New`] may be acted on.
    ///
    /// # Errors
    /// [`SpoolError::Refused`] when it could not be written: it must not be acted on then.
    pub async fn begin_command(&self, command: CommandRow) -> Result<Begun, SpoolError> {
        self.tell(|reply| writer::Job::Begin { command, reply }).await
    }

    /// Writes down how a command went, as JSON, and in the same commit the entry that tells the world.
    ///
    /// # Errors
    /// [`SpoolError::Refused`] when it could not be written.
    pub async fn finish_command(
        &self,
        id: &str,
        outcome: &str,
        entry: Option<Entry>,
    ) -> Result<(), SpoolError> {
        let (id, outcome) = (id.to_owned(), outcome.to_owned());
        self.tell(|reply| writer::Job::Finish { id, outcome, entry, reply }).await
    }

    /// Commands that were begun and have no outcome, oldest first: at the start, those that were cut short.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`], [`SpoolError::Closed`].
    pub async fn unfinished_commands(&self) -> Result<Vec<CommandRow>, SpoolError> {
        self.look_up(|reply| writer::Job::Unfinished { reply }).await
    }

    /// What is kept under `key`: small things that have to last, as [`Spool::set_meta`] left them.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`], [`SpoolError::Closed`].
    pub async fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, SpoolError> {
        let key = key.to_owned();
        self.look_up(|reply| writer::Job::Meta { key, reply }).await
    }

    /// Keeps a small thing under `key`; returns after the commit.
    ///
    /// # Errors
    /// [`SpoolError::Refused`] when it could not be written.
    pub async fn set_meta(&self, key: &str, value: Vec<u8>) -> Result<(), SpoolError> {
        let key = key.to_owned();
        self.tell(|reply| writer::Job::SetMeta { key, value, reply }).await
    }

    /// A random number made with the store's file: tells two stores of one gateway apart. A store that takes over what a
    /// damaged one held keeps its number, as far as that could be read.
    pub fn epoch(&self) -> u64 {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).epoch
    }

    /// Changes what may be changed while running: size, interval, age, uplinks.
    pub async fn reconfigure(&self, options: Options) -> Result<(), SpoolError> {
        self.send(writer::Job::Reconfigure(options)).await
    }

    /// Up to `limit` entries of one class behind `after` up to and with `until`, in order. Empty when there are none.
    pub async fn read(
        &self,
        class: Class,
        after: Seq,
        until: Seq,
        limit: usize,
    ) -> Result<Vec<Stored>, SpoolError> {
        let range = reader::Range { after, until, limit };
        ask(&self.reader, |reply| reader::Job::Range { class, range, reply }).await
    }

    /// Up to `limit` entries of both classes behind `after`, in order. Empty when there are none.
    pub async fn read_after(&self, after: Seq, limit: usize) -> Result<Vec<Stored>, SpoolError> {
        ask(&self.historian, |reply| reader::Job::After { after, limit, reply }).await
    }

    /// Minimum, mean and maximum of one channel, a bucket a step; empty steps are absent.
    pub async fn history(&self, query: HistoryQuery) -> Result<Vec<Bucket>, SpoolError> {
        ask(&self.historian, |reply| reader::Job::History { query, reply }).await
    }

    /// Looks at the files on a connection and a thread of its own, for as long as that takes.
    ///
    /// # Errors
    /// [`SpoolError::Unreadable`].
    pub async fn inspect<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Inspector) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        let directory = self.directory.clone();
        let looked = tokio::task::spawn_blocking(move || look(&mut Inspector::open(&directory)?));
        looked
            .await
            .map_err(|_| SpoolError::Closed)?
            .map_err(|error| SpoolError::Unreadable(error.to_string()))
    }

    /// What is safe; changes with every commit.
    pub fn committed(&self) -> watch::Receiver<Committed> {
        self.committed.clone()
    }

    /// How the spool stands.
    pub fn stats(&self) -> Stats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Commits what waits and closes the files.
    pub async fn close(self) {
        let (reply, closed) = oneshot::channel();
        if self.writer.send(writer::Job::Close(reply)).await.is_ok() {
            let _ = closed.await;
        }
        let _ = self.reader.send(reader::Job::Close).await;
        let _ = self.historian.send(reader::Job::Close).await;
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let _ = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let _ = thread.join();
            }
        })
        .await;
    }

    async fn send(&self, job: writer::Job) -> Result<(), SpoolError> {
        self.writer.send(job).await.map_err(|_| SpoolError::Closed)
    }

    /// Has the writer do something and waits for its commit.
    async fn tell<T>(&self, job: impl FnOnce(writer::Reply<T>) -> writer::Job) -> Result<T, SpoolError> {
        let (reply, answer) = oneshot::channel();
        self.send(job(reply)).await?;
        answer.await.map_err(|_| SpoolError::Closed)?.map_err(SpoolError::Refused)
    }

    /// Asks the writer for what only it knows.
    async fn look_up<T>(&self, job: impl FnOnce(writer::Reply<T>) -> writer::Job) -> Result<T, SpoolError> {
        let (reply, answer) = oneshot::channel();
        self.send(job(reply)).await?;
        answer.await.map_err(|_| SpoolError::Closed)?.map_err(SpoolError::Unreadable)
    }
}

async fn ask<T>(
    reader: &mpsc::Sender<reader::Job>,
    job: impl FnOnce(oneshot::Sender<Result<T, String>>) -> reader::Job,
) -> Result<T, SpoolError> {
    let (reply, answer) = oneshot::channel();
    reader.send(job(reply)).await.map_err(|_| SpoolError::Closed)?;
    answer.await.map_err(|_| SpoolError::Closed)?.map_err(SpoolError::Unreadable)
}

/// The database's file in a state directory.
pub fn store_path(directory: &Path) -> PathBuf {
    directory.join("spool.db")
}

/// A lock that ends with the process: two writers on one log would hand out the same places twice.
fn lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| StoreError::Directory { path: path.clone(), error })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::Locked(directory.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => Err(StoreError::Directory { path, error }),
    }
}

fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<std::thread::JoinHandle<()>, StoreError> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map_err(|error| StoreError::Directory { path: PathBuf::from(name), error })
}

/// Bytes a day that may be written unless somebody says otherwise: a card of 16 GB stands that for decades.
pub const WEAR_BUDGET: u64 = 1_000_000_000;
/// Full: the caller waits. The callers are the intake, which has a bound of its own and counts what it drops, the
/// uplinks, whose progress may be late, and the command desk. Small, because a job may hold a thousand entries.
const WRITER_QUEUE: usize = 64;
/// Full: the caller waits; it is a forwarder, a page or an export.
const READER_QUEUE: usize = 64;
