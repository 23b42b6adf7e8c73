//! The database itself: schema, transactions, partitions and what is dropped when room runs out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, params};

use super::entry::{Entry, Gap, GapReason, NUMERIC_KINDS, wall_columns};
use super::{Committed, Options, Seq, store_path};
use crate::clock::{BootId, Clock};

/// How the spool stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// A random number made with the file: tells two stores of one gateway apart.
    pub epoch: u64,
    /// The oldest place still there; 0 when empty.
    pub first_seq: u64,
    /// The newest place; 0 when empty.
    pub last_seq: u64,
    /// Bytes of the database in use.
    pub bytes: u64,
    /// The limit.
    pub max_bytes: u64,
    /// When the oldest entry was measured, in nanoseconds since 1970.
    pub oldest_unix_ns: Option<i64>,
    /// Losses, newest last; at most [`MAX_GAPS`].
    pub gaps: Vec<(i64, Gap)>,
    /// Commits since start.
    pub commits: u64,
    /// Entries appended since start.
    pub appended: u64,
    /// Why writing fails at the moment.
    pub refusing: Option<String>,
}

/// Why the store could not be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state directory.
    #[error("{}: {error}", path.display())]
    Directory {
        /// Which file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// Another process has it.
    #[error("{}: another tidegate is using this state directory", .0.display())]
    Locked(PathBuf),
    /// SQLite.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A store of a newer version.
    #[error("the spool has format {0}, this version knows {FORMAT}: it was written by a newer tidegate")]
    Newer(i64),
}

impl StoreError {
    /// Whether the file is damaged (and a new one may be begun), as opposed to not writable or newer.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite(rusqlite::Error::SqliteFailure(error, _)) => {
                matches!(error.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            }
            Self::Sqlite(
                rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::QueryReturnedNoRows
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::SqlInputError { .. },
            ) => true,
            _ => false,
        }
    }

    /// Whether there is no room: on the disk, or under the limit.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Sqlite(rusqlite::Error::SqliteFailure(error, _)) if error.code == ErrorCode::DiskFull)
    }
}

/// The open database, owned by the writer's thread.
pub(super) struct Store {
    db: Connection,
    directory: PathBuf,
    clock: Clock,
    boot: i64,
    epoch: u64,
    options: Options,
    last: Seq,
    /// Oldest first; the last one is written to.
    partitions: Vec<Partition>,
    channels: HashMap<String, i64>,
    cursors: HashMap<String, Seq>,
    minutes: Minutes,
    gaps: Vec<(i64, Gap)>,
    commits: u64,
    appended: u64,
}

#[derive(Debug, Clone)]
struct Partition {
    id: i64,
    first: Seq,
    weight: u64,
    oldest_ns: i64,
}

/// Minimum, maximum, sum and number per channel of the minute that is still open.
#[derive(Default)]
struct Minutes {
    minute: i64,
    open: HashMap<i64, (f64, f64, f64, i64)>,
}

impl Store {
    /// Opens or makes the database. `first` is the place to begin with when it is new.
    pub(super) fn open(
        directory: &Path,
        options: &Options,
        clock: Clock,
        first: Seq,
    ) -> Result<Self, StoreError> {
        let path = store_path(directory);
        let db = Connection::open(&path)?;
        db.pragma_update(None, "page_size", PAGE)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "wal_autocheckpoint", 1000)?;
        db.pragma_update(None, "journal_size_limit", 8 << 20)?;
        db.pragma_update(None, "cache_size", -1024)?;
        db.pragma_update(None, "temp_store", "MEMORY")?;
        db.set_prepared_statement_cache_capacity(32);
        let format: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if format > FORMAT {
            return Err(StoreError::Newer(format));
        }
        if format == 0 {
            create(&db, first)?;
        } else if db.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0))? < QUICK_CHECK_PAGES {
            let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            if verdict != "ok" {
                return Err(damaged(&verdict));
            }
        }
        let epoch = db
            .query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| row.get::<_, i64>(0))?
            as u64;
        let base =
            db.query_row("SELECT value FROM meta WHERE key = 'base'", [], |row| row.get::<_, i64>(0))? as u64;
        let boot = intern_boot(&db, clock.boot())?;
        let mut store = Self {
            db,
            directory: directory.to_owned(),
            clock,
            boot,
            epoch,
            options: options.clone(),
            last: Seq(base),
            partitions: Vec::new(),
            channels: HashMap::new(),
            cursors: HashMap::new(),
            minutes: Minutes::default(),
            gaps: Vec::new(),
            commits: 0,
            appended: 0,
        };
        store.load()?;
        store.limit_pages()?;
        store.rebuild_minutes()?;
        Ok(store)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Lets go of the file without touching the log beside it, so that both can be renamed.
    pub(super) fn let_go(&mut self) -> Result<(), StoreError> {
        self.db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        self.db = Connection::open_in_memory()?;
        Ok(())
    }

    pub(super) fn last_seq(&self) -> Seq {
        self.last
    }

    pub(super) fn committed(&self) -> Committed {
        Committed { last: self.last, cursors: Arc::new(self.cursors.clone()) }
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    pub(super) fn cursor(&self, uplink: &str) -> Seq {
        let oldest = self.partitions.first().map_or(self.last, |first| Seq(first.first.0.saturating_sub(1)));
        self.cursors.get(uplink).copied().unwrap_or(oldest)
    }

    pub(super) fn reconfigure(&mut self, options: Options) -> Result<(), StoreError> {
        self.options = options;
        self.limit_pages()
    }

    /// Appends `entries` and stores the cursors in one transaction; everything or nothing.
    pub(super) fn append<'a>(
        &mut self,
        entries: impl Iterator<Item = &'a Entry>,
        cursors: &HashMap<String, Seq>,
    ) -> Result<(), StoreError> {
        let partition = self.partitions.last().map(|last| last.id).unwrap_or_default();
        let mut last = self.last;
        let mut weight = 0;
        let mut added = Vec::new();
        let mut gaps = Vec::new();
        let mut minutes = std::mem::take(&mut self.minutes);
        let appended = (|| {
            let tx = self.db.transaction()?;
            {
                let mut insert = tx.prepare_cached(&format!(
                    "INSERT INTO r_{partition} (seq, kind, channel, boot, mono, wall, clock, quality, value) \
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
                ))?;
                for entry in entries {
                    let channel = match entry.channel() {
                        None => 0,
                        Some((name, unit)) => match self.channels.get(name).or_else(|| find(&added, name)) {
                            Some(id) => *id,
                            None => {
                                let id = intern_channel(&tx, name, unit)?;
                                added.push((name.to_owned(), id));
                                id
                            }
                        },
                    };
                    last = last.next();
                    weight += entry.weight();
                    let stamp = entry.stamp();
                    let (wall, clock) = wall_columns(stamp);
                    let row = entry.row(channel);
                    let mono = stamp.monotonic_ns as i64;
                    insert.execute(params![
                        last.0 as i64,
                        row.kind,
                        row.channel,
                        self.boot,
                        mono,
                        wall,
                        clock,
                        row.quality,
                        row.value
                    ])?;
                    if let Entry::Reading(reading) = entry
                        && let Some(number) = reading.value.as_ref().and_then(drivers::Value::as_f64)
                    {
                        minutes.add(&tx, channel, wall, number)?;
                    }
                    if let Entry::Gap { gap, .. } = entry {
                        tx.prepare_cached("INSERT INTO gap (wall, json) VALUES (?, ?)")?
                            .execute(params![wall, serde_json::to_string(gap).unwrap_or_default()])?;
                        gaps.push((wall, gap.clone()));
                    }
                }
            }
            for (uplink, seq) in cursors {
                tx.prepare_cached("INSERT OR REPLACE INTO cursor (uplink, acked) VALUES (?, ?)")?
                    .execute(params![uplink, seq.0 as i64])?;
            }
            tx.commit()?;
            Ok::<_, StoreError>(())
        })();
        if let Err(error) = appended {
            // What was added to the open minute is rebuilt from what the table truly holds.
            self.rebuild_minutes()?;
            return Err(error);
        }
        self.minutes = minutes;
        self.appended += last.0 - self.last.0;
        self.last = last;
        self.commits += 1;
        self.channels.extend(added);
        self.cursors.extend(cursors.iter().map(|(uplink, seq)| (uplink.clone(), *seq)));
        self.gaps.extend(gaps);
        self.gaps.drain(..self.gaps.len().saturating_sub(MAX_GAPS));
        if let Some(partition) = self.partitions.last_mut() {
            partition.weight += weight;
        }
        Ok(())
    }

    /// Begins a new partition when the last is full, and drops what nobody needs or what has to make room.
    ///
    /// Policy at the limit: first what every uplink has, oldest first; then, if an uplink is away, the oldest all the
    /// same. Returns the losses that this made; they are to be appended as entries.
    pub(super) fn tend(&mut self) -> Result<Vec<Gap>, StoreError> {
        if self.partitions.last().is_some_and(|last| last.weight >= self.partition_weight()) {
            self.add_partition()?;
        }
        let mut gaps = Vec::new();
        let now = self.clock.stamp().wall.map_or(0, |wall| wall.unix_ns);
        while self.partitions.len() > 1 {
            let is_over = self.bytes()? > self.options.max_size / 10 * 9;
            let second = &self.partitions[1];
            let is_old = now.saturating_sub(second.oldest_ns) > self.options.retain.as_nanos() as i64;
            let last_of_first = Seq(second.first.0 - 1);
            let is_had_by_all =
                self.options.uplinks.iter().all(|uplink| self.cursor(uplink) >= last_of_first);
            if !(is_over || (is_old && is_had_by_all)) {
                break;
            }
            gaps.extend(self.drop_oldest(GapReason::Quota)?);
        }
        Ok(gaps)
    }

    /// Drops the oldest partition; a loss if an uplink did not have all of it.
    pub(super) fn drop_oldest(&mut self, reason: GapReason) -> Result<Option<Gap>, StoreError> {
        if self.partitions.len() < 2 {
            self.add_partition()?;
        }
        let first = self.partitions[0].clone();
        let last = Seq(self.partitions[1].first.0 - 1);
        let had = self.options.uplinks.iter().map(|uplink| self.cursor(uplink)).min().unwrap_or(last);
        let tx = self.db.transaction()?;
        tx.execute_batch(&format!("DROP TABLE r_{}", first.id))?;
        tx.execute("DELETE FROM part WHERE id = ?", [first.id])?;
        tx.execute(
            "DELETE FROM rollup WHERE minute < ?",
            [self.partitions[1].oldest_ns / MINUTE_NS - ROLLUP_MINUTES],
        )?;
        tx.commit()?;
        self.partitions.remove(0);
        // An empty partition was dropped to get going again: nothing is lost.
        if had >= last || last < first.first {
            return Ok(None);
        }
        let from = had.next().max(first.first);
        for uplink in &self.options.uplinks {
            let cursor = self.cursors.entry(uplink.clone()).or_insert(last);
            *cursor = (*cursor).max(last);
        }
        Ok(Some(Gap {
            from_seq: Some(from.0),
            to_seq: Some(last.0),
            count: Some(last.0 + 1 - from.0),
            reason,
        }))
    }

    /// Writes the log back into the database and shortens it: frees room on a full disk.
    pub(super) fn checkpoint(&self) -> Result<(), StoreError> {
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    pub(super) fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        self.show(&mut stats, self.bytes().ok());
        stats
    }

    /// Brings `stats` up to date; the size only where the caller looked it up.
    pub(super) fn show(&self, stats: &mut Stats, bytes: Option<u64>) {
        stats.epoch = self.epoch;
        stats.first_seq = self.partitions.first().map_or(0, |first| first.first.0.min(self.last.0));
        stats.last_seq = self.last.0;
        stats.bytes = bytes.unwrap_or(stats.bytes);
        stats.max_bytes = self.options.max_size;
        stats.oldest_unix_ns = self.partitions.first().map(|first| first.oldest_ns).filter(|ns| *ns > 0);
        stats.commits = self.commits;
        stats.appended = self.appended;
        if stats.gaps != self.gaps {
            stats.gaps.clone_from(&self.gaps);
        }
    }

    /// Reads back what the file holds.
    fn load(&mut self) -> Result<(), StoreError> {
        let mut partitions = self
            .db
            .prepare("SELECT id, first FROM part ORDER BY id")?
            .query_map([], |row| {
                Ok(Partition {
                    id: row.get(0)?,
                    first: Seq(row.get::<_, i64>(1)? as u64),
                    weight: 0,
                    oldest_ns: 0,
                })
            })?
            .collect::<Result<Vec<_>, _>>()?;
        for partition in &mut partitions {
            let table = format!("r_{}", partition.id);
            partition.oldest_ns = self
                .db
                .query_row(
                    &format!("SELECT wall FROM {table} WHERE wall > 0 ORDER BY seq LIMIT 1"),
                    [],
                    |row| row.get(0),
                )
                .optional()?
                .unwrap_or_default();
            let last: Option<i64> =
                self.db.query_row(&format!("SELECT max(seq) FROM {table}"), [], |row| row.get(0))?;
            self.last = self
                .last
                .max(Seq(last.unwrap_or_default() as u64))
                .max(Seq(partition.first.0.saturating_sub(1)));
        }
        if let Some(last) = partitions.last_mut() {
            // As `Entry::weight` counts: a number takes 8 bytes, what is longer its length.
            let sql = format!(
                "SELECT coalesce(sum(36 + max(8, coalesce(length(value), 0))), 0) FROM r_{}",
                last.id
            );
            last.weight = self.db.query_row(&sql, [], |row| row.get::<_, i64>(0))? as u64;
        }
        self.partitions = partitions;
        if self.partitions.is_empty() {
            self.add_partition()?;
        }
        self.channels = self
            .db
            .prepare("SELECT name, id FROM channel")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        self.cursors = self
            .db
            .prepare("SELECT uplink, acked FROM cursor")?
            .query_map([], |row| Ok((row.get(0)?, Seq(row.get::<_, i64>(1)? as u64))))?
            .collect::<Result<_, _>>()?;
        let gaps = self
            .db
            .prepare("SELECT wall, json FROM (SELECT * FROM gap ORDER BY id DESC LIMIT ?) ORDER BY id")?
            .query_map([MAX_GAPS as i64], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?
            .collect::<Result<Vec<_>, _>>()?;
        self.gaps = gaps
            .into_iter()
            .filter_map(|(wall, json)| Some((wall, serde_json::from_str(&json).ok()?)))
            .collect();
        Ok(())
    }

    fn add_partition(&mut self) -> Result<(), StoreError> {
        let id = self.partitions.last().map_or(1, |last| last.id + 1);
        let first = self.last.next();
        let tx = self.db.transaction()?;
        tx.execute_batch(&format!(
            "CREATE TABLE r_{id} (seq INTEGER PRIMARY KEY, kind INTEGER NOT NULL, channel INTEGER NOT NULL, \
             boot INTEGER NOT NULL, mono INTEGER NOT NULL, wall INTEGER NOT NULL, clock INTEGER NOT NULL, \
             quality INTEGER NOT NULL, value)"
        ))?;
        tx.execute("INSERT INTO part (id, first) VALUES (?, ?)", params![id, first.0 as i64])?;
        tx.commit()?;
        let oldest_ns = self.clock.stamp().wall.map_or(0, |wall| wall.unix_ns);
        self.partitions.push(Partition { id, first, weight: 0, oldest_ns });
        Ok(())
    }

    /// A partition is a thirty-second of the whole, so that dropping one frees little more than is needed.
    fn partition_weight(&self) -> u64 {
        (self.options.max_size / 32).clamp(256 << 10, 64 << 20)
    }

    /// Bytes in use: pages of the file without the free ones.
    pub(super) fn bytes(&self) -> Result<u64, StoreError> {
        let pragma =
            |name: &str| self.db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
        Ok((pragma("page_count")? - pragma("freelist_count")?) as u64 * PAGE as u64)
    }

    /// SQLite's own limit stands a little above ours: it is hit only when dropping could not keep up.
    fn limit_pages(&self) -> Result<(), StoreError> {
        let pages = (self.options.max_size / PAGE as u64).max(64) as i64;
        self.db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
        Ok(())
    }

    /// Closes minutes that a crash left open, from the rows themselves.
    fn rebuild_minutes(&mut self) -> Result<(), StoreError> {
        self.minutes = Minutes::default();
        let since: i64 =
            self.db.query_row("SELECT coalesce(max(minute), 0) FROM rollup", [], |row| row.get(0))?;
        // A minute may lie across two partitions.
        let rows: Vec<String> = self
            .partitions
            .iter()
            .rev()
            .take(2)
            .map(|partition| format!("SELECT channel, wall, kind, value FROM r_{}", partition.id))
            .collect();
        self.db.execute(
            &format!(
                "INSERT OR REPLACE INTO rollup (channel, minute, n, min, max, sum) \
                 SELECT channel, wall / {MINUTE_NS}, count(*), min(value), max(value), sum(value) FROM ({}) \
                 WHERE kind IN ({NUMERIC_KINDS}) AND value IS NOT NULL AND wall >= ? * {MINUTE_NS} \
                 GROUP BY channel, wall / {MINUTE_NS}",
                rows.join(" UNION ALL ")
            ),
            [since],
        )?;
        Ok(())
    }
}

impl Minutes {
    /// Counts a value in; when its minute is another than the open one, writes the open one first.
    fn add(
        &mut self,
        tx: &Transaction<'_>,
        channel: i64,
        wall_ns: i64,
        value: f64,
    ) -> Result<(), StoreError> {
        if wall_ns <= 0 || !value.is_finite() {
            return Ok(());
        }
        let minute = wall_ns / MINUTE_NS;
        if minute != self.minute {
            self.flush(tx)?;
            self.minute = minute;
        }
        self.open
            .entry(channel)
            .and_modify(|(min, max, sum, n)| {
                *min = min.min(value);
                *max = max.max(value);
                *sum += value;
                *n += 1;
            })
            .or_insert((value, value, value, 1));
        Ok(())
    }

    fn flush(&mut self, tx: &Transaction<'_>) -> Result<(), StoreError> {
        let mut upsert = tx.prepare_cached(
            "INSERT INTO rollup (channel, minute, n, min, max, sum) VALUES (?, ?, ?, ?, ?, ?) \
             ON CONFLICT DO UPDATE SET n = n + excluded.n, min = min(min, excluded.min), \
             max = max(max, excluded.max), sum = sum + excluded.sum",
        )?;
        for (channel, (min, max, sum, n)) in self.open.drain() {
            upsert.execute(params![channel, self.minute, n, min, max, sum])?;
        }
        Ok(())
    }
}

pub(super) fn damaged(what: &str) -> StoreError {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    StoreError::Sqlite(rusqlite::Error::SqliteFailure(code, Some(what.to_owned())))
}

fn create(db: &Connection, first: Seq) -> Result<(), StoreError> {
    let mut epoch = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| std::io::Read::read_exact(&mut random, &mut epoch))
        .map_err(|error| StoreError::Directory { path: PathBuf::from("/dev/urandom"), error })?;
    // 53 bits: every JSON reader holds it exactly.
    let epoch = (u64::from_le_bytes(epoch) >> 11) as i64;
    db.execute_batch(
        "BEGIN;
         CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
         CREATE TABLE boot (id INTEGER PRIMARY KEY, uuid BLOB NOT NULL UNIQUE);
         CREATE TABLE channel (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, unit TEXT NOT NULL);
         CREATE TABLE part (id INTEGER PRIMARY KEY, first INTEGER NOT NULL);
         CREATE TABLE cursor (uplink TEXT PRIMARY KEY, acked INTEGER NOT NULL) WITHOUT ROWID;
         CREATE TABLE gap (id INTEGER PRIMARY KEY, wall INTEGER NOT NULL, json TEXT NOT NULL);
         CREATE TABLE rollup (channel INTEGER, minute INTEGER, n INTEGER, min REAL, max REAL, sum REAL,
                              PRIMARY KEY (channel, minute)) WITHOUT ROWID;",
    )?;
    db.execute("INSERT INTO meta (key, value) VALUES ('epoch', ?), ('base', ?)", [epoch, first.0 as i64])?;
    db.execute_batch(&format!("PRAGMA user_version = {FORMAT}; COMMIT;"))?;
    Ok(())
}

fn intern_boot(db: &Connection, boot: BootId) -> Result<i64, StoreError> {
    let uuid = boot.0.to_be_bytes();
    db.execute("INSERT OR IGNORE INTO boot (uuid) VALUES (?)", [&uuid[..]])?;
    Ok(db.query_row("SELECT id FROM boot WHERE uuid = ?", [&uuid[..]], |row| row.get(0))?)
}

fn intern_channel(tx: &Transaction<'_>, name: &str, unit: &str) -> Result<i64, StoreError> {
    tx.prepare_cached(
        "INSERT INTO channel (name, unit) VALUES (?, ?) ON CONFLICT DO UPDATE SET unit = excluded.unit",
    )?
    .execute([name, unit])?;
    Ok(tx.prepare_cached("SELECT id FROM channel WHERE name = ?")?.query_row([name], |row| row.get(0))?)
}

fn find<'a>(added: &'a [(String, i64)], name: &str) -> Option<&'a i64> {
    added.iter().find(|(have, _)| have == name).map(|(_, id)| id)
}

/// The format of the schema; a store with a higher one is refused.
const FORMAT: i64 = 1;
const PAGE: i64 = 4096;
/// Up to 64 MB the whole file is checked at start, which takes a fraction of a second.
const QUICK_CHECK_PAGES: i64 = 16_384;
/// Losses kept in memory and shown.
const MAX_GAPS: usize = 100;
const MINUTE_NS: i64 = 60_000_000_000;
/// A year: minute means outlive the readings by that much at the most.
const ROLLUP_MINUTES: i64 = 366 * 24 * 60;
