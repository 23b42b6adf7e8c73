//! The reading side: entries for forwarders and exports, buckets for charts, on a connection of its own.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Row, params};
use tokio::sync::{mpsc, oneshot};

use super::Seq;
use super::clocks::Clocks;
use super::entry::{self, Class, Stored, StoredChannel};
use super::history::{Bucket, HistoryQuery};
use super::store::{StoreError, damaged};
use super::{vfs, writer};
use crate::clock::{BootId, Wall, WallQuality};

/// What the reader is asked.
pub(super) enum Job {
    After { after: Seq, limit: usize, reply: oneshot::Sender<Result<Vec<Stored>, String>> },
    Range { class: Class, range: Range, reply: oneshot::Sender<Result<Vec<Stored>, String>> },
    History { query: HistoryQuery, reply: oneshot::Sender<Result<Vec<Bucket>, String>> },
    Close,
}

/// Up to `limit` entries behind `after` up to and with `until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) after: Seq,
    pub(super) until: Seq,
    pub(super) limit: usize,
}

/// Serves jobs until told to close. Reopens when the database was replaced; tells the writer when it is damaged, which
/// then replaces it.
pub(super) fn run(path: &Path, mut jobs: mpsc::Receiver<Job>, writer: &mpsc::WeakSender<writer::Job>) {
    let mut reader: Option<Reader> = None;
    while let Some(job) = jobs.blocking_recv() {
        if reader.as_ref().is_some_and(|reader| !reader.is_current()) {
            reader = None;
        }
        let mut with = |read: &mut dyn FnMut(&mut Reader) -> Result<(), StoreError>| -> Result<(), String> {
            if reader.is_none() {
                reader = Some(Reader::open(path).map_err(|error| error.to_string())?);
            }
            let result = reader.as_mut().map_or(Ok(()), read);
            let inode = reader.as_ref().map_or(0, |reader| reader.inode);
            if result.is_err() {
                reader = None;
            }
            result.map_err(|error| {
                if error.is_damage()
                    && let Some(writer) = writer.upgrade()
                {
                    // Its queue is full: it is told by the next who reads.
                    let _ = writer.try_send(writer::Job::Unsound { inode, what: error.to_string() });
                }
                error.to_string()
            })
        };
        match job {
            Job::After { after, limit, reply } => {
                let mut entries = Vec::new();
                let result = with(&mut |reader| reader.after(after, limit).map(|read| entries = read));
                let _ = reply.send(result.map(|()| entries));
            }
            Job::Range { class, range, reply } => {
                let mut entries = Vec::new();
                let result = with(&mut |reader| reader.range(class, range).map(|read| entries = read));
                let _ = reply.send(result.map(|()| entries));
            }
            Job::History { query, reply } => {
                let mut buckets = Vec::new();
                let result = with(&mut |reader| reader.history(&query).map(|read| buckets = read));
                let _ = reply.send(result.map(|()| buckets));
            }
            Job::Close => return,
        }
    }
}

/// A read-only connection and the names it has learnt.
pub(super) struct Reader {
    pub(super) db: Connection,
    path: PathBuf,
    inode: u64,
    channels: HashMap<i64, Arc<StoredChannel>>,
    boots: HashMap<i64, BootId>,
    pub(super) clocks: Clocks,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let metadata = |error| StoreError::Directory { path: path.to_owned(), error };
        let inode = fs::metadata(path).map_err(metadata)?.ino();
        let db = vfs::open(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        // Closing must never touch the log beside the file: another database may stand under the name by then.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        db.pragma_update(None, "cache_size", -512)?;
        db.busy_timeout(std::time::Duration::from_secs(2))?;
        Ok(Self {
            db,
            path: path.to_owned(),
            inode,
            channels: HashMap::new(),
            boots: HashMap::new(),
            clocks: Clocks::default(),
        })
    }

    fn is_current(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode)
    }

    /// Up to `limit` entries of both classes behind `after`, in order. What no longer reads as an entry is passed over.
    pub(super) fn after(&mut self, after: Seq, limit: usize) -> Result<Vec<Stored>, StoreError> {
        let range = Range { after, until: LAST, limit };
        self.learn()?;
        // One view of both: an alarm that comes in between would be passed over.
        let tx = self.db.unchecked_transaction()?;
        let mut entries = self.rows(&tx, Class::Alarm, range)?;
        entries.extend(self.rows(&tx, Class::Telemetry, range)?);
        entries.sort_by_key(|entry| entry.seq);
        entries.truncate(limit);
        Ok(entries)
    }

    /// Entries of one class, in order. What no longer reads as an entry is passed over.
    pub(super) fn range(&mut self, class: Class, range: Range) -> Result<Vec<Stored>, StoreError> {
        self.learn()?;
        let tx = self.db.unchecked_transaction()?;
        self.rows(&tx, class, range)
    }

    fn rows(&self, tx: &Connection, class: Class, range: Range) -> Result<Vec<Stored>, StoreError> {
        let (after, until) = (range.after.0 as i64, range.until.min(LAST).0 as i64);
        let tables: Vec<String> = match class {
            Class::Alarm => vec!["alarm".into()],
            Class::Telemetry => partitions(tx)?
                .into_iter()
                .filter(|part| part.first <= until && part.end.is_none_or(|end| end > after + 1))
                .map(|part| format!("r_{}", part.id))
                .collect(),
        };
        let mut entries = Vec::new();
        for table in tables {
            let left = range.limit - entries.len();
            let mut rows = tx.prepare_cached(&format!(
                "SELECT seq, kind, channel, boot, mono, wall, clock, quality, value FROM {table} \
                 WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
            ))?;
            let mut rows = rows.query(params![after, until, left as i64])?;
            while let Some(row) = rows.next()? {
                entries.extend(stored(row, &self.channels, &self.boots, &self.clocks)?);
            }
            if entries.len() == range.limit {
                break;
            }
        }
        Ok(entries)
    }

    /// Learns the channels and boots that have come since.
    pub(super) fn learn(&mut self) -> Result<(), StoreError> {
        let known = self.channels.keys().max().copied().unwrap_or_default();
        let mut rows = self.db.prepare_cached("SELECT id, name, unit FROM channel WHERE id > ?")?;
        let mut rows = rows.query([known])?;
        while let Some(row) = rows.next()? {
            self.channels
                .insert(row.get(0)?, Arc::new(StoredChannel { name: row.get(1)?, unit: row.get(2)? }));
        }
        let known = self.boots.keys().max().copied().unwrap_or_default();
        let mut rows = self.db.prepare_cached("SELECT id, uuid FROM boot WHERE id > ?")?;
        let mut rows = rows.query([known])?;
        while let Some(row) = rows.next()? {
            let uuid: Vec<u8> = row.get(1)?;
            let uuid =
                <[u8; 16]>::try_from(uuid.as_slice()).map_err(|_| damaged("a boot id is not 16 bytes"))?;
            self.boots.insert(row.get(0)?, BootId(u128::from_be_bytes(uuid)));
        }
        self.clocks.learn(&self.db)
    }
}

fn stored(
    row: &Row<'_>,
    channels: &HashMap<i64, Arc<StoredChannel>>,
    boots: &HashMap<i64, BootId>,
    clocks: &Clocks,
) -> Result<Option<Stored>, rusqlite::Error> {
    let seq = Seq(row.get::<_, i64>(0)? as u64);
    let channel = channels.get(&row.get(2)?).cloned();
    let (boot, mono) = (row.get(3)?, row.get(4)?);
    let boot_id = boots.get(&boot).copied().unwrap_or(BootId(0));
    let mut stamp = entry::stamp(boot_id, mono, row.get(5)?, row.get(6)?);
    let quality = stamp.wall.map_or(WallQuality::None, |wall| wall.quality);
    let corrected = clocks.correct(boot, mono, quality);
    if let Some((unix_ns, offset)) = corrected {
        stamp.wall = Some(Wall { unix_ns, error_ns: offset.error_ns, quality: offset.quality });
    }
    let channel =
        channel.unwrap_or_else(|| Arc::new(StoredChannel { name: String::new(), unit: String::new() }));
    let body = entry::body(row.get(1)?, channel, row.get(7)?, row.get_ref(8)?);
    Ok(body.map(|body| Stored { seq, stamp, is_corrected: corrected.is_some(), body }))
}

/// A partition as a reader sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) id: i64,
    pub(super) first: i64,
    /// The first place of the next one.
    pub(super) end: Option<i64>,
}

pub(super) fn partitions(db: &Connection) -> Result<Vec<Part>, rusqlite::Error> {
    db.prepare_cached("SELECT id, first, lead(first) OVER (ORDER BY id) FROM part ORDER BY id")?
        .query_map([], |row| Ok(Part { id: row.get(0)?, first: row.get(1)?, end: row.get(2)? }))?
        .collect()
}

/// SQLite's keys end here.
const LAST: Seq = Seq(i64::MAX as u64);
