//! What is dropped, when, and which losses that makes: by bytes, by age and by need.
//!
//! All of it happens inside the commit that needs the room, and the losses are entries of the same commit: a crash
//! leaves either both or neither.
//!
//! In this order: what every uplink has goes when its time is over or when the limit comes near. Then, while an uplink
//! is away, old readings become minute means; then the oldest are dropped, or new ones are refused, as the
//! configuration says. What is of class alarm has a share of its own, which telemetry cannot touch.

use std::ops::RangeInclusive;

use rusqlite::{Connection, OptionalExtension as _, params};

use super::entry::{Gap, GapReason};
use super::progress::{Progress, merged};
use super::rollup::MINUTE_NS;
use super::store::{Alarms, Partition, Store, StoreError};
use super::{Options, Seq, WhenFull, schema, thin};

/// What was done to make room; takes effect in memory once the transaction is committed.
#[derive(Debug, Default)]
pub(super) struct Tended {
    /// The partitions that are there now, where that changed.
    pub(super) partitions: Option<Vec<Partition>>,
    /// What is left of the alarms, where that changed.
    pub(super) alarms: Option<Alarms>,
    /// Losses, to be recorded as entries.
    pub(super) gaps: Vec<Gap>,
    pub(super) has_looked: bool,
    /// There is no room for telemetry, and nothing may be dropped for it.
    pub(super) is_refusing: bool,
}

/// When to look again whether something has to go.
#[derive(Debug)]
pub(super) struct Tending {
    /// Something happened that may have changed the answer.
    pub(super) is_due: bool,
    /// Bytes written since it was last looked.
    since: u64,
    /// How many of the oldest partitions have to make room whatever the size is: the disk is full.
    forced: usize,
    /// Telemetry is refused at the moment.
    pub(super) is_refusing: bool,
}

impl Default for Tending {
    fn default() -> Self {
        Self { is_due: true, since: 0, forced: 0, is_refusing: false }
    }
}

impl Tending {
    /// Whether the next commit has to make room.
    pub(super) fn is_forced(&self) -> bool {
        self.forced > 0
    }

    /// A commit with `weight` bytes is through, of a store that may be `max_size` bytes large.
    pub(super) fn done(&mut self, tended: &Tended, weight: u64, max_size: u64) {
        if tended.has_looked {
            *self = Self { is_due: false, since: 0, forced: 0, is_refusing: tended.is_refusing };
        }
        self.since += weight;
        self.is_due |= self.is_refusing || self.since >= LOOK_EVERY.min(max_size / 64);
    }
}

/// The work of [`Store::tend`] within one transaction.
struct Room<'a> {
    tx: &'a Connection,
    store: &'a Store,
    options: &'a Options,
    uplinks: Vec<Progress>,
    partitions: Vec<Partition>,
    gaps: Vec<Gap>,
    has_changed: bool,
}

impl Store {
    /// Has the next commit drop at least so many partitions, because the disk is full.
    pub(super) fn force_room(&mut self, partitions: usize) {
        self.tending.forced = partitions;
        if let Err(error) = self.allow_pages(RESERVE_PAGES) {
            log::warn!("the spool's limit cannot be lifted to make room: {error}");
        }
        self.tending.is_due = true;
    }

    /// Making room did not help, and the batch is given up. The next one finds out for itself whether the disk is still
    /// full: were it made to drop anything beforehand, that would be lost to a disk that has room again.
    pub(super) fn force_nothing(&mut self) {
        self.tending.forced = 0;
        if let Err(error) = self.allow_pages(0) {
            log::warn!("the spool's limit stays lifted: {error}");
        }
    }

    /// Begins a new partition when the last is full, and drops what nobody needs or what has to make room.
    pub(super) fn tend(&self, tx: &Connection) -> Result<Tended, StoreError> {
        let is_full =
            self.partitions.last().is_some_and(|last| last.weight >= partition_weight(&self.options));
        if !is_full && !self.tending.is_due {
            return Ok(Tended::default());
        }
        let mut room = Room {
            tx,
            store: self,
            options: &self.options,
            uplinks: self.options.uplinks.iter().map(|uplink| self.progress(uplink)).collect(),
            partitions: self.partitions.clone(),
            gaps: Vec::new(),
            has_changed: false,
        };
        if is_full || (self.tending.forced > 0 && room.partitions.len() < 2) {
            let id = room.partitions.last().map_or(1, |last| last.id + 1);
            room.partitions.push(self.add_partition(tx, id)?);
            room.has_changed = true;
        }
        room.drop_what_all_have()?;
        room.drop_for_the_disk(self.tending.forced)?;
        if self.options.when_full == WhenFull::ThinOut {
            room.thin_out()?;
        }
        let is_refusing = room.drop_oldest()?;
        let alarms = room.tend_alarms(self.alarms)?;
        Ok(Tended {
            partitions: room.has_changed.then_some(room.partitions),
            alarms,
            gaps: room.gaps,
            has_looked: true,
            is_refusing,
        })
    }

    /// Makes a partition that begins with the next place.
    pub(super) fn add_partition(&self, tx: &Connection, id: i64) -> Result<Partition, StoreError> {
        let first = self.last_seq().next();
        schema::create_rows(tx, &format!("r_{id}"))?;
        tx.execute("INSERT INTO part (id, first) VALUES (?, ?)", params![id, first.0 as i64])?;
        let oldest_ns = self.clock().stamp().wall.map_or(0, |wall| wall.unix_ns);
        Ok(Partition { id, first, weight: 0, oldest_ns, thinned_to: Seq(0) })
    }
}

impl Room<'_> {
    fn is_above(&self, sixteenths: u64) -> Result<bool, StoreError> {
        Ok(self.store.bytes()? > self.options.max_size / 16 * sixteenths)
    }

    /// The last place that can be in the partition at `at`; the newest has none.
    fn last_of(&self, at: usize) -> Option<Seq> {
        self.partitions.get(at + 1).map(|behind| Seq(behind.first.0 - 1))
    }

    /// The parts of the partition at `at` that an uplink still needs.
    fn missing(&self, at: usize) -> Vec<RangeInclusive<u64>> {
        let Some(last) = self.last_of(at) else { return Vec::new() };
        let first = self.partitions[at].first;
        merged(self.uplinks.iter().flat_map(|uplink| uplink.missing(first, last)).collect())
    }

    /// The oldest partition, wherever it stands, that every uplink has.
    fn first_had(&self) -> Option<usize> {
        (0..self.partitions.len() - 1).find(|at| self.missing(*at).is_empty())
    }

    fn drop_what_all_have(&mut self) -> Result<(), StoreError> {
        let now = self.store.clock().stamp().wall.map_or(0, |wall| wall.unix_ns);
        let mut is_near = self.is_above(NEAR)?;
        let mut at = 0;
        while at + 1 < self.partitions.len() {
            let behind = self.partitions[at + 1].oldest_ns;
            // A clock that was never set says nothing about age.
            let is_old = behind > PLAUSIBLE_NS
                && now.saturating_sub(behind)
                    > i64::try_from(self.options.retain.as_nanos()).unwrap_or(i64::MAX);
            if (is_old || is_near) && self.missing(at).is_empty() {
                self.drop_at(at, GapReason::Quota)?;
                is_near = is_near && self.is_above(NEAR)?;
            } else {
                at += 1;
            }
        }
        Ok(())
    }

    fn drop_for_the_disk(&mut self, count: usize) -> Result<(), StoreError> {
        for _ in 0..count {
            let at = match self.first_had() {
                Some(at) => at,
                None if self.options.when_full == WhenFull::Refuse || self.partitions.len() < 2 => break,
                None => 0,
            };
            self.drop_at(at, GapReason::DiskFull)?;
        }
        Ok(())
    }

    /// Thins out some of the oldest telemetry that no lane can have sent anything of.
    fn thin_out(&mut self) -> Result<(), StoreError> {
        for _ in 0..SLICES {
            if !self.is_above(NEAR)? {
                break;
            }
            let candidates = 0..self.partitions.len() - 1;
            let next = candidates.into_iter().find(|at| {
                self.last_of(*at).is_some_and(|last| {
                    let partition = &self.partitions[*at];
                    partition.thinned_to < last
                        && self.uplinks.iter().all(|uplink| is_untouched(uplink, partition.first, last))
                })
            });
            let Some(at) = next else { break };
            let last = self.last_of(at).unwrap_or_default();
            let partition = &mut self.partitions[at];
            let (to, gap) = thin::slice(self.tx, partition.id, partition.thinned_to)?;
            partition.thinned_to = to.unwrap_or(last);
            self.tx.execute(
                "UPDATE part SET thinned_to = ? WHERE id = ?",
                params![partition.thinned_to.0 as i64, partition.id],
            )?;
            self.gaps.extend(gap);
            self.has_changed = true;
        }
        Ok(())
    }

    /// Drops the oldest as long as the limit is reached; `true` when that is needed and forbidden.
    fn drop_oldest(&mut self) -> Result<bool, StoreError> {
        while self.is_above(FULL)? {
            if self.options.when_full == WhenFull::Refuse {
                return Ok(true);
            }
            if self.partitions.len() < 2 {
                break;
            }
            self.drop_at(0, GapReason::Quota)?;
        }
        Ok(false)
    }

    /// Drops a partition; what an uplink did not have of it is a loss.
    fn drop_at(&mut self, at: usize, reason: GapReason) -> Result<(), StoreError> {
        let (partition, last) = (self.partitions[at].clone(), self.last_of(at).unwrap_or_default());
        for range in self.missing(at) {
            self.gaps.extend(loss(self.tx, &format!("r_{}", partition.id), &range, reason)?);
        }
        self.tx.execute_batch(&format!("DROP TABLE r_{}", partition.id))?;
        self.tx.execute("DELETE FROM part WHERE id = ?", [partition.id])?;
        self.tx.execute(
            "DELETE FROM span WHERE first BETWEEN ? AND ?",
            [partition.first.0 as i64, last.0 as i64],
        )?;
        if at == 0 {
            self.tx.execute(
                "DELETE FROM rollup WHERE channel IN (SELECT id FROM channel) AND minute < ?",
                [self.partitions[1].oldest_ns / MINUTE_NS - ROLLUP_MINUTES],
            )?;
        }
        self.partitions.remove(at);
        self.has_changed = true;
        Ok(())
    }

    /// Deletes alarms that every uplink has and whose time is over, and the oldest beyond the share that alarms have.
    fn tend_alarms(&mut self, mut alarms: Alarms) -> Result<Option<Alarms>, StoreError> {
        let Some(first) = alarms.first else { return Ok(None) };
        let share = self.options.max_size / 16;
        let now = self.store.clock().stamp().wall.map_or(0, |wall| wall.unix_ns);
        let retain = i64::try_from(self.options.retain.as_nanos()).unwrap_or(i64::MAX);
        let had = self.uplinks.iter().map(|uplink| uplink.alarm).min().unwrap_or(self.store.last_seq());
        let mut rows = self.tx.prepare_cached(
            "SELECT seq, wall, 36 + max(8, coalesce(length(value), 0)) FROM alarm ORDER BY seq LIMIT ?",
        )?;
        let mut rows = rows.query([ALARMS_AT_ONCE])?;
        let mut gone = None;
        while let Some(row) = rows.next()? {
            let (seq, wall) = (Seq(row.get::<_, i64>(0)? as u64), row.get::<_, i64>(1)?);
            let is_old = wall > PLAUSIBLE_NS && now.saturating_sub(wall) > retain;
            // The newest place stays on disk: what is opened again counts on from there.
            if !(alarms.weight > share || (is_old && seq <= had)) || seq == self.store.last_seq() {
                break;
            }
            alarms.weight = alarms.weight.saturating_sub(row.get::<_, i64>(2)? as u64);
            gone = Some(seq);
        }
        let Some(gone) = gone else { return Ok(None) };
        if gone > had {
            let lost = had.next().max(first).0..=gone.0;
            self.gaps.extend(loss(self.tx, "alarm", &lost, GapReason::Quota)?);
        }
        self.tx.execute("DELETE FROM alarm WHERE seq <= ?", [gone.0 as i64])?;
        let first = self
            .tx
            .query_row("SELECT seq FROM alarm ORDER BY seq LIMIT 1", [], |row| row.get::<_, i64>(0))
            .optional()?;
        alarms.first = first.map(|seq| Seq(seq as u64));
        Ok(Some(alarms))
    }
}

/// A partition is a small part of the whole, so that dropping one frees little more than is needed, and takes no
/// longer than a commit may take.
pub(super) fn partition_weight(options: &Options) -> u64 {
    (options.max_size / 64).clamp(128 << 10, 8 << 20)
}

/// Whether nothing of `first..=last` that an uplink misses can be under way to it: it lies far behind what it has.
fn is_untouched(uplink: &Progress, first: Seq, last: Seq) -> bool {
    let live = uplink.live.0.saturating_add(UNDER_WAY) < first.0 || uplink.live >= last;
    let holes = uplink.holes.iter().all(|hole| {
        hole.until < first || hole.acked >= last || hole.acked.0.saturating_add(UNDER_WAY) < first.0
    });
    live && holes
}

/// The rows of a range as a loss; `None` when there are none.
fn loss(
    tx: &Connection,
    table: &str,
    range: &RangeInclusive<u64>,
    reason: GapReason,
) -> Result<Option<Gap>, StoreError> {
    let sql = format!("SELECT count(*), min(seq), max(seq) FROM {table} WHERE seq BETWEEN ? AND ?");
    let end = i64::try_from(*range.end()).unwrap_or(i64::MAX);
    let place = |seq: Option<i64>| seq.map(|seq| seq as u64);
    let (count, from, to) = tx.query_row(&sql, [*range.start() as i64, end], |row| {
        Ok((row.get::<_, i64>(0)?, place(row.get(1)?), place(row.get(2)?)))
    })?;
    Ok((count > 0).then_some(Gap { from_seq: from, to_seq: to, count: Some(count as u64), reason }))
}

/// Sixteenths of the limit from which on what all have is dropped, and readings are thinned out.
const NEAR: u64 = 12;
/// Sixteenths of the limit from which on the oldest is dropped or new telemetry is refused. What is left above serves
/// alarms, progress and the work of making room.
const FULL: u64 = 14;
/// Slices thinned out with one commit at the most: some tens of milliseconds.
const SLICES: usize = 4;
/// Entries that a lane may have read or sent beyond what is confirmed; more than any window.
const UNDER_WAY: u64 = 65_536;
/// Alarms deleted with one commit at the most.
const ALARMS_AT_ONCE: i64 = 512;
/// Pages that a full database may take for the commit that makes room.
const RESERVE_PAGES: u64 = 64;
/// Bytes after which it is looked again whether the limit is near, in a store that is not small.
const LOOK_EVERY: u64 = 128 << 10;
/// A year: minute means outlive the readings by that much at the most.
const ROLLUP_MINUTES: i64 = 366 * 24 * 60;
/// 2020-01-01: a clock that says less was never set.
const PLAUSIBLE_NS: i64 = 1_577_836_800_000_000_000;
