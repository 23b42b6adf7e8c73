//! The database itself: how it is opened and what one commit writes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use mqtt::{Change, Record};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, ffi, params};

use super::clocks::{self, Clocks};
use super::commands::{self, Begun, CommandRow, CommandStep};
use super::entry::{Class, ClockRecord, Entry, Gap, wall_columns};
use super::kept;
use super::progress::Progress;
use super::retention::{Tended, Tending};
use super::rollup::{Point, Rollup, Settled};
use super::rows::{Line, Recent, Rows};
use super::salvage::{self, Beginning, Beyond, Remains};
use super::schema::{self, FORMAT};
use super::{Committed, Options, Seq, store_path, vfs, wear};
use crate::clock::{BootId, Clock, WallQuality};

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
    /// The class alarm's bytes, about.
    pub alarm_bytes: u64,
    /// How long telemetry waits for its commit at the moment: what a power cut would cost.
    pub interval: Duration,
    /// Bytes that may be written a day.
    pub wear_budget: u64,
    /// Bytes that the spool has written today (UTC), over restarts.
    pub written_today: u64,
    /// What a commit costs, a moving mean.
    pub bytes_per_commit: u64,
    /// Whether the budget is used up although commits are as rare as they may be.
    pub is_over_budget: bool,
    /// Whether what a damaged store held is still being taken over.
    pub is_salvaging: bool,
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
    #[error("{}", plain(.0))]
    Sqlite(#[from] rusqlite::Error),
    /// The size is reached, and nothing may be dropped.
    #[error("the spool has reached its size, and nothing of it may be dropped (when_full = \"refuse\")")]
    Quota,
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
                    || UNREADABLE.contains(&error.extended_code)
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
    pub(super) db: Connection,
    directory: PathBuf,
    clock: Clock,
    boot: i64,
    epoch: u64,
    pub(super) options: Options,
    last: Seq,
    last_alarm: Seq,
    /// Oldest first; the last one is written to.
    pub(super) partitions: Vec<Partition>,
    pub(super) alarms: Alarms,
    base: Seq,
    /// Bytes that the log has at least, from when it was opened until it is closed.
    log_length: u64,
    /// What is still to be taken over from a damaged store.
    pub(super) remains: Option<Box<Remains>>,
    channels: HashMap<String, i64>,
    progress: Arc<HashMap<String, Progress>>,
    clocks: Clocks,
    pub(super) rollup: Rollup,
    gaps: Vec<(i64, Gap)>,
    commits: u64,
    appended: u64,
    pub(super) tending: Tending,
}

/// A table of telemetry.
#[derive(Debug, Clone)]
pub(super) struct Partition {
    pub(super) id: i64,
    /// No place before this one is in it.
    pub(super) first: Seq,
    pub(super) weight: u64,
    pub(super) oldest_ns: i64,
    /// Up to here its readings are minute means.
    pub(super) thinned_to: Seq,
}

/// The table of the class alarm.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Alarms {
    /// The oldest place there, if any.
    pub(super) first: Option<Seq>,
    pub(super) weight: u64,
}

/// What one commit makes safe: all of it or nothing.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Losses to be recorded before everything else.
    pub(super) lost: Vec<Gap>,
    pub(super) entries: Vec<Entry>,
    pub(super) progress: HashMap<String, Progress>,
    pub(super) states: HashMap<String, Vec<u8>>,
    /// Each with the monotonic time at which it was made.
    pub(super) clocks: Vec<(ClockRecord, i64)>,
    pub(super) commands: Vec<CommandStep>,
    pub(super) blobs: Vec<(String, Vec<u8>)>,
    /// What the MQTT broker keeps.
    pub(super) kept: Vec<Change>,
}

impl Batch {
    /// Whether there is anything in it that is refused when telemetry is.
    pub(super) fn has_telemetry(&self) -> bool {
        self.entries.iter().any(|entry| entry.class() == Class::Telemetry)
    }

    /// Whether a commit would change nothing that anybody asked for.
    pub(super) fn is_empty(&self) -> bool {
        let Self { lost: _, entries, progress, states, clocks, commands, blobs, kept } = self;
        entries.is_empty()
            && progress.is_empty()
            && states.is_empty()
            && clocks.is_empty()
            && commands.is_empty()
            && blobs.is_empty()
            && kept.is_empty()
    }
}

/// What came of a commit.
#[derive(Debug)]
pub(super) struct Done {
    /// The place of the batch's first entry.
    pub(super) first: Seq,
    /// What had to make room; recorded as entries in the same commit.
    #[cfg_attr(not(test), expect(dead_code, reason = "what the tests' worlds compare with"))]
    pub(super) dropped: Vec<Gap>,
    /// What to answer to commands that begin, in their order.
    pub(super) begun: Vec<Begun>,
}

/// What a transaction changes in memory, once it is committed.
#[derive(Default)]
struct Written {
    last: Seq,
    last_alarm: Seq,
    weight: u64,
    alarm_weight: u64,
    first_alarm: Option<Seq>,
    channels: Vec<(String, i64)>,
    gaps: Vec<(i64, Gap)>,
    begun: Vec<Begun>,
    points: Vec<Point>,
    has_taken_back: bool,
}

impl Store {
    /// Opens the database, or makes it with that beginning.
    pub(super) fn open(
        directory: &Path,
        options: &Options,
        clock: Clock,
        beginning: &Beginning,
    ) -> Result<Self, StoreError> {
        let path = store_path(directory);
        let beyond = salvage::beyond(&path);
        if beyond.length > 0 && std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == 0) {
            // SQLite would remove the log.
            return Err(damaged("the database is empty beside its log"));
        }
        let db = vfs::open(&path, OpenFlags::default())?;
        // Closing would write the log back up to where it is damaged, and remove the rest.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let is_new = db.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0))? == 0;
        db.pragma_update(None, "page_size", PAGE)?;
        if is_new {
            vfs::reserve(&db)?;
        }
        // Before the log is there: EXTRA also flushes that the first transaction's journal is gone, which would undo it
        // after a power cut. With the log it is FULL.
        db.pragma_update(None, "synchronous", "EXTRA")?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        let frames = log_frames(options.max_size);
        db.pragma_update(None, "wal_autocheckpoint", frames as i64)?;
        let log_length = log_length(frames);
        db.pragma_update(None, "journal_size_limit", log_length as i64)?;
        db.pragma_update(None, "cache_size", -1024)?;
        db.pragma_update(None, "temp_store", "MEMORY")?;
        db.set_prepared_statement_cache_capacity(64);
        let format: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if format > FORMAT {
            return Err(StoreError::Newer(format));
        }
        if format == 0 {
            schema::create(&db, beginning)?;
        } else {
            let noted = check_log(&db, beyond, clock.boot())?;
            // It must not become shorter than what is noted before something else is.
            db.pragma_update(None, "journal_size_limit", log_length.max(noted) as i64)?;
            if db.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0))? < QUICK_CHECK_PAGES {
                let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
                if verdict != "ok" {
                    return Err(damaged(&verdict));
                }
            }
            schema::migrate(&db, format)?;
        }
        let meta = |key: &str| {
            db.query_row("SELECT value FROM meta WHERE key = ?", [key], |row| row.get::<_, i64>(0))
        };
        let (epoch, base) = (meta("epoch")? as u64, meta("base")? as u64);
        let boot = intern_boot(&db, &clock.boot().0.to_be_bytes())?;
        let mut store = Self {
            db,
            directory: directory.to_owned(),
            clock,
            boot,
            epoch,
            base: Seq(base),
            log_length,
            remains: None,
            options: options.clone(),
            last: Seq(base),
            last_alarm: Seq(0),
            partitions: Vec::new(),
            alarms: Alarms::default(),
            channels: HashMap::new(),
            progress: Arc::default(),
            clocks: Clocks::default(),
            rollup: Rollup::default(),
            gaps: Vec::new(),
            commits: 0,
            appended: 0,
            tending: Tending::default(),
        };
        store.limit_pages()?;
        store.load()?;
        store.rollup = Rollup::open(&store.db, boot, &store.partitions)?;
        store.db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
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

    /// Whether telemetry is refused at the moment.
    pub(super) fn is_refusing(&self) -> bool {
        self.tending.is_refusing
    }

    /// Commits since it was opened.
    pub(super) fn commits(&self) -> u64 {
        self.commits
    }

    pub(super) fn last_seq(&self) -> Seq {
        self.last
    }

    pub(super) fn committed(&self) -> Committed {
        // Before what stands in front is here, nobody may pass it.
        let (last, last_alarm) =
            if self.remains.is_some() { (Seq(0), Seq(0)) } else { (self.last, self.last_alarm) };
        Committed { last, last_alarm, progress: self.progress.clone() }
    }

    /// The place before the first that this store gave out itself.
    pub(super) fn base(&self) -> Seq {
        self.base
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The losses that are known here, newest last.
    pub(super) fn told_losses(&self) -> Vec<Gap> {
        self.gaps.iter().map(|(_, gap)| gap.clone()).collect()
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    /// What an uplink's peer has; one that was never heard of begins before the oldest entry.
    pub(super) fn progress(&self, uplink: &str) -> Progress {
        self.progress
            .get(uplink)
            .cloned()
            .unwrap_or_else(|| Progress::at(Seq(self.first_seq().0.saturating_sub(1))))
    }

    /// The blob of an uplink's protocol; empty where there is none.
    pub(super) fn state(&self, uplink: &str) -> Result<Vec<u8>, StoreError> {
        Ok(self.blob(&state_key(uplink))?.unwrap_or_default())
    }

    /// What the MQTT broker keeps here.
    pub(super) fn kept(&self) -> Result<Vec<Record>, StoreError> {
        kept::read(&self.db)
    }

    /// What somebody keeps here under `key`.
    pub(super) fn blob(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self
            .db
            .prepare_cached("SELECT value FROM blob WHERE key = ?")?
            .query_row([key], |row| row.get(0))
            .optional()?)
    }

    /// Commands that were begun and have no outcome.
    pub(super) fn unfinished_commands(&self) -> Result<Vec<CommandRow>, StoreError> {
        commands::unfinished(&self.db)
    }

    pub(super) fn reconfigure(&mut self, options: Options) -> Result<(), StoreError> {
        self.options = options;
        self.tending.is_due = true;
        self.limit_pages()
    }

    /// The oldest place that is still there, else the one that comes next.
    pub(super) fn first_seq(&self) -> Seq {
        let oldest = self.partitions.first().map_or(self.last.next(), |first| first.first);
        let oldest =
            self.remains.as_ref().and_then(|remains| remains.oldest()).map_or(oldest, |old| old.min(oldest));
        self.alarms.first.map_or(oldest, |alarm| alarm.min(oldest))
    }

    /// Writes a batch in one transaction, everything or nothing, with what has to make room for it and the losses
    /// that this makes.
    pub(super) fn commit(&mut self, batch: &Batch) -> Result<Done, StoreError> {
        let is_forced = self.tending.is_forced();
        let (tended, settled, written) = self.write(batch)?;
        let first = Seq(self.last.0 + (tended.gaps.len() + batch.lost.len()) as u64 + 1);
        if !batch.progress.is_empty() {
            let told = batch.progress.iter().map(|(uplink, progress)| (uplink.clone(), progress.clone()));
            Arc::make_mut(&mut self.progress).extend(told);
        }
        self.rollup.done(settled);
        self.rollup.add(&self.clocks, &written.points);
        let has_taken_back = written.has_taken_back;
        let (dropped, begun) = self.take_over(tended, written);
        if is_forced {
            self.limit_pages()?;
        }
        if !batch.clocks.is_empty()
            && let Err(error) = self.learn_clocks(has_taken_back)
        {
            // The batch is safe all the same; what could not be read back is damage that the next commit meets.
            warn!("what was learnt of the clock cannot be read back: {error}");
        }
        Ok(Done { first, dropped, begun })
    }

    /// The transaction of [`Store::commit`]; nothing in memory changes.
    fn write(&self, batch: &Batch) -> Result<(Tended, Settled, Written), StoreError> {
        let tx = self.db.unchecked_transaction()?;
        let tended = self.tend(&tx)?;
        if tended.is_refusing && batch.has_telemetry() {
            return Err(StoreError::Quota);
        }
        let partitions = tended.partitions.as_deref().unwrap_or(&self.partitions);
        let settled = self.rollup.settle(&tx, &self.clocks, partitions)?;
        let stamp = self.clock.stamp();
        let gaps: Vec<Entry> =
            tended.gaps.iter().chain(&batch.lost).map(|gap| Entry::Gap { gap: gap.clone(), stamp }).collect();
        let mut written = Written { last: self.last, last_alarm: self.last_alarm, ..Written::default() };
        let partition = partitions.last().map(|last| last.id).unwrap_or_default();
        self.insert(&tx, partition, gaps.iter().chain(&batch.entries), &mut written)?;
        for (uplink, progress) in &batch.progress {
            tx.prepare_cached(
                "INSERT OR REPLACE INTO progress (uplink, alarm, live, holes) VALUES (?, ?, ?, ?)",
            )?
            .execute(params![
                uplink,
                progress.alarm.0 as i64,
                progress.live.0 as i64,
                progress.holes_json()
            ])?;
        }
        for (record, mono) in &batch.clocks {
            let boot = if record.boot == self.clock.boot() {
                self.boot
            } else {
                intern_boot(&tx, &record.boot.0.to_be_bytes())?
            };
            clocks::insert(&tx, boot, *mono, record)?;
            if record.quality >= WallQuality::Ntp && !self.clocks.is_known(boot) {
                Rollup::take_back(&tx, boot)?;
                written.has_taken_back = true;
            }
        }
        for step in &batch.commands {
            written.begun.extend(step.write(&tx)?);
        }
        for (uplink, state) in &batch.states {
            put_blob(&tx, &state_key(uplink), state)?;
        }
        for (key, value) in &batch.blobs {
            put_blob(&tx, key, value)?;
        }
        kept::write(&tx, &batch.kept)?;
        tx.commit()?;
        Ok((tended, settled, written))
    }

    fn learn_clocks(&mut self, has_taken_back: bool) -> Result<(), StoreError> {
        self.clocks.learn(&self.db)?;
        if has_taken_back {
            self.rollup.start_again(&self.db)?;
        }
        Ok(())
    }

    /// Writes entries into their tables, each at the next place.
    fn insert<'a>(
        &self,
        tx: &Connection,
        partition: i64,
        entries: impl Iterator<Item = &'a Entry>,
        written: &mut Written,
    ) -> Result<(), StoreError> {
        let mut telemetry = Rows::new(tx, format!("r_{partition}"), self.boot);
        let mut alarm = Rows::new(tx, "alarm".to_owned(), self.boot);
        let mut recent = Recent::default();
        written.points.reserve(entries.size_hint().0);
        for entry in entries {
            let known = recent.find(entry);
            let channel = match (known, entry.channel()) {
                (Some(id), _) => id,
                (None, None) => 0,
                (None, Some((name, unit))) => {
                    let id = match self.channels.get(name).or_else(|| find(&written.channels, name)) {
                        Some(id) => *id,
                        None => {
                            let id = intern_channel(tx, name, unit)?;
                            written.channels.push((name.to_owned(), id));
                            id
                        }
                    };
                    recent.note(entry, id);
                    id
                }
            };
            let seq = written.last.next();
            written.last = seq;
            let stamp = entry.stamp();
            let (wall, clock) = wall_columns(stamp);
            let row = entry.row(channel);
            let mono = stamp.monotonic_ns as i64;
            let rows = match entry.class() {
                Class::Telemetry => {
                    written.weight += entry.weight();
                    let value = match entry {
                        Entry::Reading(reading) => reading.value.as_ref().and_then(drivers::Value::as_f64),
                        _ => None,
                    };
                    written.points.push(Point { seq, channel, mono, wall, clock, value });
                    &mut telemetry
                }
                Class::Alarm => {
                    written.alarm_weight += entry.weight();
                    written.last_alarm = seq;
                    written.first_alarm.get_or_insert(seq);
                    &mut alarm
                }
            };
            rows.push(Line { seq, mono, wall, clock, row })?;
            if let Entry::Gap { gap, .. } = entry {
                tx.prepare_cached("INSERT INTO gap (wall, json) VALUES (?, ?)")?
                    .execute(params![wall, serde_json::to_string(gap).unwrap_or_default()])?;
                tx.prepare_cached("DELETE FROM gap WHERE id <= ?")?
                    .execute([tx.last_insert_rowid() - 10 * MAX_GAPS as i64])?;
                written.gaps.push((wall, gap.clone()));
            }
        }
        telemetry.flush()?;
        alarm.flush()
    }

    /// Takes over into memory what a transaction has committed.
    fn take_over(&mut self, tended: Tended, written: Written) -> (Vec<Gap>, Vec<Begun>) {
        self.tending.done(&tended, written.weight + written.alarm_weight, self.options.max_size);
        if let Some(partitions) = tended.partitions {
            self.partitions = partitions;
        }
        if let Some(alarms) = tended.alarms {
            self.alarms = alarms;
        }
        if let Some(partition) = self.partitions.last_mut() {
            partition.weight += written.weight;
        }
        self.alarms.weight += written.alarm_weight;
        self.alarms.first = self.alarms.first.or(written.first_alarm);
        self.appended += written.last.0 - self.last.0;
        self.last = written.last;
        self.last_alarm = written.last_alarm;
        self.commits += 1;
        self.channels.extend(written.channels);
        self.gaps.extend(written.gaps);
        self.gaps.drain(..self.gaps.len().saturating_sub(MAX_GAPS));
        (tended.gaps, written.begun)
    }

    /// Writes the log back into the database and removes it: the database stands on its own then.
    pub(super) fn checkpoint(&self) -> Result<(), StoreError> {
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// Writes back what it can of the log, so that it is used from its beginning again instead of growing. The room
    /// that it has is kept: on a full disk it is what lets anything be written at all.
    pub(super) fn reuse_log(&self) -> Result<(), StoreError> {
        self.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// Grows the log to the length that it has between checkpoints anyway, and notes it in the database itself: a
    /// shorter one has lost something.
    pub(super) fn grow_log(&mut self) -> Result<(), StoreError> {
        let mut log = store_path(&self.directory).into_os_string();
        log.push("-wal");
        wear::grow_log(Path::new(&log), self.log_length)
            .map_err(|error| StoreError::Directory { path: log.into(), error })?;
        if self.blob(GROWN)?.as_deref() != Some(&self.log_length.to_be_bytes()) {
            self.note_log(self.log_length)?;
            self.reuse_log()?;
            self.db.pragma_update(None, "journal_size_limit", self.log_length as i64)?;
        }
        Ok(())
    }

    /// Notes how long the log is at least; 0 before it is removed.
    pub(super) fn note_log(&mut self, length: u64) -> Result<(), StoreError> {
        let blobs = vec![(GROWN.to_owned(), length.to_be_bytes().to_vec())];
        self.commit(&Batch { blobs, ..Batch::default() }).map(drop)
    }

    /// Reads again what was written into the tables of names, progress and clocks.
    pub(super) fn learn_rows(&mut self) -> Result<(), StoreError> {
        self.channels = self
            .db
            .prepare("SELECT name, id FROM channel")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        self.load_progress()?;
        self.clocks.learn(&self.db)
    }

    pub(super) fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        self.show(&mut stats, self.bytes().ok());
        stats
    }

    /// Brings `stats` up to date; the size only where the caller looked it up.
    pub(super) fn show(&self, stats: &mut Stats, bytes: Option<u64>) {
        stats.epoch = self.epoch;
        stats.is_salvaging = self.remains.is_some();
        stats.first_seq = self.first_seq().0.min(self.last.0);
        stats.last_seq = self.last.0;
        stats.bytes = bytes.unwrap_or(stats.bytes);
        stats.max_bytes = self.options.max_size;
        stats.oldest_unix_ns = self.partitions.first().map(|first| first.oldest_ns).filter(|ns| *ns > 0);
        stats.alarm_bytes = self.alarms.weight;
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
            .prepare("SELECT id, first, thinned_to FROM part ORDER BY id")?
            .query_map([], |row| {
                Ok(Partition {
                    id: row.get(0)?,
                    first: Seq(row.get::<_, i64>(1)? as u64),
                    weight: 0,
                    oldest_ns: 0,
                    thinned_to: Seq(row.get::<_, i64>(2)? as u64),
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
            last.weight = self.weight_of(&format!("r_{}", last.id))?;
        }
        self.partitions = partitions;
        let (first, last) = self.db.query_row("SELECT min(seq), max(seq) FROM alarm", [], |row| {
            Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?))
        })?;
        self.alarms = Alarms { first: first.map(|seq| Seq(seq as u64)), weight: self.weight_of("alarm")? };
        self.last_alarm = Seq(last.unwrap_or_default() as u64);
        self.last = self.last.max(self.last_alarm);
        if self.partitions.is_empty() {
            let tx = self.db.unchecked_transaction()?;
            let first = self.add_partition(&tx, 1)?;
            tx.commit()?;
            self.partitions.push(first);
        }
        self.learn_rows()?;
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

    fn load_progress(&mut self) -> Result<(), StoreError> {
        let mut rows = self.db.prepare("SELECT uplink, alarm, live, holes FROM progress")?;
        let mut rows = rows.query([])?;
        let mut progress = HashMap::new();
        while let Some(row) = rows.next()? {
            let holes = Progress::parse_holes(&row.get::<_, String>(3)?)
                .ok_or_else(|| damaged("an uplink's holes are not what was written"))?;
            let place = |at: usize| row.get::<_, i64>(at).map(|seq| Seq(seq as u64));
            progress.insert(row.get(0)?, Progress { alarm: place(1)?, live: place(2)?, holes });
        }
        self.progress = Arc::new(progress);
        Ok(())
    }

    /// What a table's rows weigh, as [`Entry::weight`] counts: a number takes 8 bytes, what is longer its length.
    fn weight_of(&self, table: &str) -> Result<u64, StoreError> {
        let sql = format!("SELECT coalesce(sum(36 + max(8, coalesce(length(value), 0))), 0) FROM {table}");
        Ok(self.db.query_row(&sql, [], |row| row.get::<_, i64>(0))? as u64)
    }

    /// Bytes in use: pages of the file without the free ones.
    pub(super) fn bytes(&self) -> Result<u64, StoreError> {
        let pragma = |sql: &str| self.db.prepare_cached(sql)?.query_row([], |row| row.get::<_, i64>(0));
        Ok((pragma("PRAGMA page_count")? - pragma("PRAGMA freelist_count")?) as u64 * PAGE as u64)
    }

    /// SQLite's own limit stands a little above ours: it is hit only when dropping could not keep up.
    fn limit_pages(&self) -> Result<(), StoreError> {
        self.allow_pages(0)
    }

    /// The limit with so many pages more: a full database needs some to make room in.
    pub(super) fn allow_pages(&self, more: u64) -> Result<(), StoreError> {
        let pages = ((self.options.max_size / PAGE as u64).max(64) + more) as i64;
        self.db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
        Ok(())
    }
}

/// What SQLite says, in words a person understands where it says a number.
fn plain(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(error, _) if error.extended_code == ffi::SQLITE_IOERR_DATA => {
            "a page of the database is not what was written to it".into()
        }
        error => error.to_string(),
    }
}

/// Whether the log beside the database is what this store, or an earlier process of this boot, left behind.
///
/// SQLite takes the first frame that is not whole for the log's end: right after a power cut in the middle of a commit,
/// which promised nothing, and wrong where whole commits follow. One may follow after a power cut, the last, whose
/// frames reach the disk in any order; more cannot, each being flushed before the next begins.
///
/// The length that is noted of it, 0 for none.
fn check_log(db: &Connection, beyond: Beyond, boot: BootId) -> Result<u64, StoreError> {
    let written_by: Option<Vec<u8>> =
        db.query_row("SELECT uuid FROM boot ORDER BY id DESC LIMIT 1", [], |row| row.get(0)).optional()?;
    let is_same_boot = written_by.as_deref() == Some(&boot.0.to_be_bytes());
    if beyond.is_headless || beyond.is_short || beyond.commits > u64::from(!is_same_boot) {
        return Err(damaged("the log is damaged before its end"));
    }
    let has_blobs = db.table_exists(None, "blob")?;
    let grown: Option<Vec<u8>> = if has_blobs {
        db.query_row("SELECT value FROM blob WHERE key = ?", [GROWN], |row| row.get(0)).optional()?
    } else {
        None
    };
    let grown = grown.and_then(|bytes| bytes.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)));
    let grown = grown.unwrap_or_default();
    if beyond.length < grown {
        return Err(damaged("the log is shorter than it was"));
    }
    Ok(grown)
}

/// Pages in the log before it is written back: three thousand, and less where the whole store is small. Writing back
/// costs flushes of its own, which is much where commits are large.
fn log_frames(max_size: u64) -> u64 {
    (max_size / 8 / PAGE as u64).clamp(64, 3000)
}

/// A header, and frames with headers of their own; a tenth more, because it is only looked at after a commit.
fn log_length(frames: u64) -> u64 {
    32 + (frames + frames / 10) * (24 + PAGE as u64)
}

pub(super) fn damaged(what: &str) -> StoreError {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    StoreError::Sqlite(rusqlite::Error::SqliteFailure(code, Some(what.to_owned())))
}

fn put_blob(tx: &Connection, key: &str, value: &[u8]) -> Result<(), StoreError> {
    tx.prepare_cached("INSERT OR REPLACE INTO blob (key, value) VALUES (?, ?)")?
        .execute(params![key, value])?;
    Ok(())
}

fn state_key(uplink: &str) -> String {
    format!("state/{uplink}")
}

pub(super) fn intern_boot(db: &Connection, uuid: &[u8]) -> Result<i64, StoreError> {
    db.execute("INSERT OR IGNORE INTO boot (uuid) VALUES (?)", [uuid])?;
    Ok(db.query_row("SELECT id FROM boot WHERE uuid = ?", [uuid], |row| row.get(0))?)
}

pub(super) fn intern_channel(db: &Connection, name: &str, unit: &str) -> Result<i64, StoreError> {
    db.prepare_cached(
        "INSERT INTO channel (name, unit) VALUES (?, ?) ON CONFLICT DO UPDATE SET unit = excluded.unit",
    )?
    .execute([name, unit])?;
    Ok(db.prepare_cached("SELECT id FROM channel WHERE name = ?")?.query_row([name], |row| row.get(0))?)
}

fn find<'a>(added: &'a [(String, i64)], name: &str) -> Option<&'a i64> {
    added.iter().find(|(have, _)| have == name).map(|(_, id)| id)
}

const PAGE: i64 = vfs::PAGE as i64;
/// Where the length is noted that the log was grown to.
pub(super) const GROWN: &str = "spool/log";
/// What SQLite says of a page that the disk does not give back, or not as it was written.
const UNREADABLE: [i32; 4] = [
    ffi::SQLITE_IOERR_DATA,
    ffi::SQLITE_IOERR_READ,
    ffi::SQLITE_IOERR_SHORT_READ,
    ffi::SQLITE_IOERR_CORRUPTFS,
];
/// Up to 64 MB the whole file is checked at start, which takes a fraction of a second.
const QUICK_CHECK_PAGES: i64 = 16_384;
/// Losses kept in memory and shown.
const MAX_GAPS: usize = 100;
