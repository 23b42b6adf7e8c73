//! The spool: the log on disk that every reading passes through on its way out.
//!
//! Constraints: what was acknowledged survives `kill -9` and a power cut; an uplink that is away costs disk and never
//! memory; the disk used is bounded; one writer, one flush per commit.
//!
//! Layout: one SQLite file in WAL mode with `synchronous=FULL`. Entries stand in partition tables `r_<id>` under a
//! plain integer key and no secondary index, because an index on the hot table costs four times the writes. A
//! partition is dropped whole, which costs nothing. Each uplink's cursor is one row and rides in the next commit.
//!
//! Why not `locking_mode=EXCLUSIVE`: history and forwarders read through a connection of their own, so that neither
//! ever waits for the writer nor holds it up. A file lock keeps a second process out instead.

mod damage;
mod entry;
mod reader;
mod store;
#[cfg(test)]
mod tests;
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

use tokio::sync::{mpsc, oneshot, watch};

pub use damage::Damage;
pub use entry::{Body, Entry, Gap, GapReason, Stored};
pub use reader::{Bucket, HistoryQuery};
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
    /// How long a reading may wait for others to share its commit.
    pub commit_interval: Duration,
    /// How long what every uplink has is kept for history.
    pub retain: Duration,
    /// The uplinks that read from here; cursors of others are forgotten.
    pub uplinks: Vec<String>,
}

/// What the last commit made safe.
#[derive(Debug, Clone, Default)]
pub struct Committed {
    /// The last place.
    pub last: Seq,
    /// Each uplink's cursor as it stands on disk.
    pub cursors: Arc<HashMap<String, Seq>>,
}

/// The spool of a running gateway: a handle on the writer's and the reader's thread.
#[derive(Clone)]
pub struct Spool {
    writer: mpsc::Sender<writer::Job>,
    reader: mpsc::Sender<reader::Job>,
    committed: watch::Receiver<Committed>,
    stats: Arc<Mutex<Stats>>,
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
    /// Opens the spool in `directory`, mending or quarantining what is damaged, and starts its threads.
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
        let reader_path = store_path(directory);
        let writer_thread = {
            let stats = stats.clone();
            spawn("spool-writer", move || {
                writer::run(store, &options, writer_jobs, &committed_tx, &stats);
                drop(lock);
            })
        };
        let reader_thread = spawn("spool-reader", move || reader::run(&reader_path, reader_jobs));
        let threads = Arc::new(Mutex::new(vec![writer_thread?, reader_thread?]));
        Ok((Self { writer, reader, committed, stats, threads }, damage))
    }

    /// Appends entries and returns their places after the commit that holds them.
    ///
    /// `is_urgent` says that somebody waits: the commit then happens at once, with whatever else is there.
    ///
    /// # Errors
    /// [`SpoolError::Refused`] when the disk is full beyond what the policy can free; nothing was stored then.
    pub async fn append(&self, entries: Vec<Entry>, is_urgent: bool) -> Result<Range<Seq>, SpoolError> {
        let (reply, stored) = oneshot::channel();
        let job = writer::Job::Append { entries, is_urgent, reply };
        self.writer.send(job).await.map_err(|_| SpoolError::Closed)?;
        stored.await.map_err(|_| SpoolError::Closed)?.map_err(SpoolError::Refused)
    }

    /// Notes that `uplink`'s peer has everything up to `seq`. Stored with the next commit, at once when `is_urgent`:
    /// a cursor that is lost costs duplicates, never entries.
    pub async fn acknowledge(&self, uplink: &str, seq: Seq, is_urgent: bool) -> Result<(), SpoolError> {
        let job = writer::Job::Acknowledge { uplink: uplink.to_owned(), seq, is_urgent };
        self.writer.send(job).await.map_err(|_| SpoolError::Closed)
    }

    /// Where `uplink` continues: the last place its peer has confirmed.
    pub async fn cursor(&self, uplink: &str) -> Result<Seq, SpoolError> {
        let (reply, cursor) = oneshot::channel();
        self.writer
            .send(writer::Job::Cursor { uplink: uplink.to_owned(), reply })
            .await
            .map_err(|_| SpoolError::Closed)?;
        cursor.await.map_err(|_| SpoolError::Closed)
    }

    /// Changes what may be changed while running: size, interval, age, uplinks.
    pub async fn reconfigure(&self, options: Options) -> Result<(), SpoolError> {
        self.writer.send(writer::Job::Reconfigure(options)).await.map_err(|_| SpoolError::Closed)
    }

    /// Up to `limit` entries behind `after`, in order. Empty when there are none.
    pub async fn read_after(&self, after: Seq, limit: usize) -> Result<Vec<Stored>, SpoolError> {
        self.ask(|reply| reader::Job::After { after, limit, reply }).await
    }

    /// Minimum, mean and maximum of one channel, a bucket a step; empty steps are absent.
    pub async fn history(&self, query: HistoryQuery) -> Result<Vec<Bucket>, SpoolError> {
        self.ask(|reply| reader::Job::History { query, reply }).await
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
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let _ = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let _ = thread.join();
            }
        })
        .await;
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, String>>) -> reader::Job,
    ) -> Result<T, SpoolError> {
        let (reply, answer) = oneshot::channel();
        self.reader.send(job(reply)).await.map_err(|_| SpoolError::Closed)?;
        answer.await.map_err(|_| SpoolError::Closed)?.map_err(SpoolError::Unreadable)
    }
}

/// The spool of a gateway that is not running, for reading only.
pub struct Offline(reader::Reader);

impl Offline {
    /// Opens the spool in `directory` without changing it.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        reader::Reader::open(&store_path(directory)).map(Self)
    }

    /// As [`Spool::read_after`].
    pub fn read_after(&mut self, after: Seq, limit: usize) -> Result<Vec<Stored>, StoreError> {
        self.0.after(after, limit)
    }
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

/// Full: the caller waits. The callers are the intake, which has a bound of its own and counts what it drops, and
/// the uplinks' cursors, which may be late.
const WRITER_QUEUE: usize = 256;
/// Full: the caller waits; it is a forwarder, a page or an export.
const READER_QUEUE: usize = 64;
