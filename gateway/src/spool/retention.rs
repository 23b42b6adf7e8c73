//! What is dropped, when, and which losses that makes: by bytes, by age and by need.
//!
//! All of it happens inside the commit that needs the room, and the losses are entries of the same commit: a crash
//! leaves either both or neither.

use std::ops::RangeInclusive;

use rusqlite::{Connection, params};

use super::Seq;
use super::entry::{Gap, GapReason};
use super::progress::merged;
use super::schema;
use super::store::{Alarms, Partition, Store, StoreError};

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
}

/// When to look again whether something has to go.
#[derive(Debug)]
pub(super) struct Tending {
    /// Something happened that may have changed the answer.
    pub(super) is_due: bool,
    /// Bytes written since it was last looked.
    since: u64,
    /// How many of the oldest partitions have to make room whatever the size is: the disk is full.
    pub(super) forced: usize,
}

impl Default for Tending {
    fn default() -> Self {
        Self { is_due: true, since: 0, forced: 0 }
    }
}

impl Tending {
    /// A commit with `weight` bytes is through.
    pub(super) fn done(&mut self, has_looked: bool, weight: u64) {
        if has_looked {
            *self = Self { is_due: false, since: 0, forced: 0 };
        }
        self.since += weight;
        self.is_due |= self.since >= LOOK_EVERY;
    }
}

impl Store {
    /// Has the next commit drop at least so many partitions, because the disk is full.
    pub(super) fn force_room(&mut self, partitions: usize) {
        self.tending.forced = partitions;
        self.tending.is_due = true;
    }

    /// Begins a new partition when the last is full, and drops what nobody needs or what has to make room.
    ///
    /// Policy at the limit: first what every uplink has, oldest first; then, if an uplink is away, the oldest all the
    /// same.
    pub(super) fn tend(&self, tx: &Connection) -> Result<Tended, StoreError> {
        let is_full = self.partitions.last().is_some_and(|last| last.weight >= self.partition_weight());
        if !is_full && !self.tending.is_due {
            return Ok(Tended::default());
        }
        let mut tended = Tended { has_looked: true, ..Tended::default() };
        let mut partitions = self.partitions.clone();
        let before = partitions.len();
        if is_full || (self.tending.forced > 0 && before < 2) {
            partitions.push(self.add_partition(tx, partitions.last().map_or(1, |last| last.id + 1))?);
        }
        let mut changed = partitions.len() != before;
        let now = self.clock().stamp().wall.map_or(0, |wall| wall.unix_ns);
        let mut forced = self.tending.forced;
        while partitions.len() > 1 {
            let (oldest, behind) = (&partitions[0], &partitions[1]);
            let last = Seq(behind.first.0 - 1);
            let is_over = self.bytes()? > self.options.max_size / 10 * 9;
            let is_old = now.saturating_sub(behind.oldest_ns) > self.options.retain.as_nanos() as i64;
            let is_had = self.missing(oldest.first, last).is_empty();
            if !(forced > 0 || is_over || (is_old && is_had)) {
                break;
            }
            let reason = if is_over { GapReason::Quota } else { GapReason::DiskFull };
            self.drop_partition(tx, oldest, behind, reason, &mut tended.gaps)?;
            partitions.remove(0);
            forced = forced.saturating_sub(1);
            changed = true;
        }
        tended.partitions = changed.then_some(partitions);
        Ok(tended)
    }

    /// The parts of `first..=last` whose telemetry an uplink still needs.
    pub(super) fn missing(&self, first: Seq, last: Seq) -> Vec<RangeInclusive<u64>> {
        let uplinks = self.options.uplinks.iter();
        merged(uplinks.flat_map(|uplink| self.progress(uplink).missing(first, last)).collect())
    }

    /// Drops a partition; what an uplink did not have of it is a loss.
    fn drop_partition(
        &self,
        tx: &Connection,
        oldest: &Partition,
        behind: &Partition,
        reason: GapReason,
        gaps: &mut Vec<Gap>,
    ) -> Result<(), StoreError> {
        for range in self.missing(oldest.first, Seq(behind.first.0 - 1)) {
            gaps.extend(loss(tx, oldest.id, &range, reason)?);
        }
        tx.execute_batch(&format!("DROP TABLE r_{}", oldest.id))?;
        tx.execute("DELETE FROM part WHERE id = ?", [oldest.id])?;
        tx.execute("DELETE FROM span WHERE first < ?", [behind.first.0 as i64])?;
        tx.execute("DELETE FROM rollup WHERE minute < ?", [behind.oldest_ns / MINUTE_NS - ROLLUP_MINUTES])?;
        Ok(())
    }

    /// Makes a partition that begins with the next place.
    pub(super) fn add_partition(&self, tx: &Connection, id: i64) -> Result<Partition, StoreError> {
        let first = self.last_seq().next();
        schema::create_rows(tx, &format!("r_{id}"))?;
        tx.execute("INSERT INTO part (id, first) VALUES (?, ?)", params![id, first.0 as i64])?;
        let oldest_ns = self.clock().stamp().wall.map_or(0, |wall| wall.unix_ns);
        Ok(Partition { id, first, weight: 0, oldest_ns })
    }

    /// A partition is a small part of the whole, so that dropping one frees little more than is needed.
    fn partition_weight(&self) -> u64 {
        (self.options.max_size / 32).clamp(256 << 10, 64 << 20)
    }
}

/// The rows of a range as a loss; `None` when there are none.
fn loss(
    tx: &Connection,
    partition: i64,
    range: &RangeInclusive<u64>,
    reason: GapReason,
) -> Result<Option<Gap>, StoreError> {
    let sql = format!("SELECT count(*), min(seq), max(seq) FROM r_{partition} WHERE seq BETWEEN ? AND ?");
    let end = i64::try_from(*range.end()).unwrap_or(i64::MAX);
    let place = |seq: Option<i64>| seq.map(|seq| seq as u64);
    let (count, from, to) = tx.query_row(&sql, [*range.start() as i64, end], |row| {
        Ok((row.get::<_, i64>(0)?, place(row.get(1)?), place(row.get(2)?)))
    })?;
    Ok((count > 0).then_some(Gap { from_seq: from, to_seq: to, count: Some(count as u64), reason }))
}

/// Bytes after which it is looked again whether the limit is near.
const LOOK_EVERY: u64 = 32 << 10;
const MINUTE_NS: i64 = 60_000_000_000;
/// A year: minute means outlive the readings by that much at the most.
const ROLLUP_MINUTES: i64 = 366 * 24 * 60;
