//! Summaries that make the past quick to draw: minimum, mean and maximum per channel and minute, and the bounds of the
//! times of stretches of rows ("spans"), so that a window is found without an index.
//!
//! Every row of telemetry lies in one span or behind the last one. A span's rows are in the summaries (`rolled` is 1),
//! or in provisional ones of their boot whose clock was never set (2), or in none yet (0). Whoever reads takes
//! summaries for the first two and rows for the third and for what lies behind the last span. So nothing is counted
//! twice or forgotten, whenever the power is cut.
//!
//! When a boot's clock is learnt at last, its provisional summaries are deleted and its spans are summed up again with
//! corrected times, a few with each commit.

use std::collections::{BTreeMap, VecDeque};

use rusqlite::{Connection, params};

use super::Seq;
use super::clocks::Clocks;
use super::entry::{self, Aggregate, SUMMED_KINDS};
use super::store::{Partition, StoreError};

/// Summaries that are not on disk yet. What a commit adds is counted here once the commit has worked, and is written by
/// a later one.
#[derive(Debug, Default)]
pub(super) struct Rollup {
    boot: i64,
    open: Option<Span>,
    /// To be written as spans whose rows are in no summary.
    closing: Vec<Span>,
    /// The minutes of the open span.
    minutes: Minutes,
    /// The minutes of spans on disk.
    pending: Minutes,
    /// These spans' first places, and whether their minutes are provisional.
    waiting: Vec<(Seq, bool)>,
    waiting_rows: u64,
    /// Spans on disk that are in no summary and not in `pending` either.
    backlog: VecDeque<(Seq, Seq)>,
}

/// What of [`Rollup`] a transaction has written; takes effect with [`Rollup::done`].
#[derive(Debug, Default)]
pub(super) struct Settled {
    has_closed_open: bool,
    closed: Vec<(Seq, Seq)>,
    has_flushed: bool,
    caught_up: usize,
}

/// A row of telemetry as far as summaries go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    pub(super) seq: Seq,
    pub(super) channel: i64,
    pub(super) mono: i64,
    pub(super) wall: i64,
    pub(super) clock: i64,
    pub(super) value: Option<f64>,
}

type Minutes = BTreeMap<Key, Aggregate>;

/// Whether the time is provisional, channel and minute.
type Key = (bool, i64, i64);

/// The bounds of a stretch of rows of one boot.
#[derive(Debug, Clone, Copy)]
struct Span {
    boot: i64,
    first: Seq,
    last: Seq,
    rows: u64,
    mono: (i64, i64),
    wall: (i64, i64),
    /// The worst of the rows' clocks, as a column holds it.
    clock: i64,
    is_provisional: bool,
}

impl Rollup {
    /// Continues where the file ends. Writes nothing: the disk may be full.
    pub(super) fn open(db: &Connection, boot: i64, partitions: &[Partition]) -> Result<Self, StoreError> {
        let mut rollup = Self { boot, ..Self::default() };
        let last: i64 = db.query_row("SELECT coalesce(max(last), 0) FROM span", [], |row| row.get(0))?;
        for partition in partitions.iter().rev() {
            let sql = format!(
                "SELECT boot, min(seq), max(seq), count(*), min(mono), max(mono), min(wall), max(wall), min(clock) \
                 FROM r_{} WHERE seq > ? GROUP BY boot ORDER BY boot DESC",
                partition.id
            );
            let mut rows = db.prepare(&sql)?;
            let mut rows = rows.query([last])?;
            while let Some(row) = rows.next()? {
                rollup.closing.push(Span {
                    boot: row.get(0)?,
                    first: Seq(row.get::<_, i64>(1)? as u64),
                    last: Seq(row.get::<_, i64>(2)? as u64),
                    rows: row.get::<_, i64>(3)? as u64,
                    mono: (row.get(4)?, row.get(5)?),
                    wall: (row.get(6)?, row.get(7)?),
                    clock: row.get(8)?,
                    is_provisional: false,
                });
            }
            if partition.first.0 as i64 <= last + 1 {
                break;
            }
        }
        rollup.closing.reverse();
        rollup.load_backlog(db)?;
        Ok(rollup)
    }

    fn load_backlog(&mut self, db: &Connection) -> Result<(), StoreError> {
        self.backlog = db
            .prepare_cached("SELECT first, last FROM span WHERE rolled = 0 ORDER BY first")?
            .query_map([], |row| Ok((Seq(row.get::<_, i64>(0)? as u64), Seq(row.get::<_, i64>(1)? as u64))))?
            .collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Counts in what a commit has added.
    pub(super) fn add(&mut self, clocks: &Clocks, points: &[Point]) {
        let mut growing = Growing::default();
        for point in points {
            let quality = entry::quality_of(point.clock);
            let corrected = clocks.correct(self.boot, point.mono, quality).map(|(wall, _)| wall);
            let is_uncertain = entry::is_unsynchronised(point.clock) && corrected.is_none();
            let open = self.open.get_or_insert(Span::at(self.boot, point));
            open.take(point);
            open.is_provisional |= is_uncertain;
            let wall = corrected.unwrap_or(point.wall);
            if let Some(value) = point.value.filter(|value| wall > 0 && value.is_finite()) {
                growing.add(&mut self.minutes, (false, point.channel, wall / MINUTE_NS), value);
            }
        }
        growing.put_back(&mut self.minutes);
    }

    /// Writes spans over rows that are written otherwise, in order and each with its boot: they are summed up later.
    pub(super) fn adopt(tx: &Connection, rows: &[(i64, Point)]) -> Result<Vec<(Seq, Seq)>, StoreError> {
        let mut spans = Vec::new();
        for rows in rows.chunk_by(|(before, _), (boot, _)| before == boot) {
            let (boot, first) = &rows[0];
            let mut span = Span::at(*boot, first);
            for (_, point) in rows {
                span.take(point);
            }
            span.insert(tx)?;
            spans.push((span.first, span.last));
        }
        Ok(spans)
    }

    /// What [`Rollup::adopt`] wrote is committed.
    pub(super) fn adopted(&mut self, spans: Vec<(Seq, Seq)>) {
        self.backlog.extend(spans);
    }

    /// Writes what is due: spans, summaries, and some of the backlog.
    pub(super) fn settle(
        &self,
        tx: &Connection,
        clocks: &Clocks,
        partitions: &[Partition],
    ) -> Result<Settled, StoreError> {
        let mut settled = Settled::default();
        let full = self.open.as_ref().filter(|open| open.rows >= SPAN_ROWS);
        for span in self.closing.iter().chain(full) {
            span.insert(tx)?;
        }
        settled.closed = self.closing.iter().map(|span| (span.first, span.last)).collect();
        if let Some(open) = full {
            settled.has_closed_open = true;
            // A minute that may still grow is not worth writing yet, unless too much would have to be read for it.
            let newest = self.minutes.keys().map(|(_, _, minute)| *minute).max();
            let is_any_over = self.pending.keys().chain(self.minutes.keys()).any(|key| Some(key.2) < newest);
            let many = self.pending.len() + self.minutes.len() >= PENDING_MINUTES;
            if is_any_over || many || self.waiting_rows + open.rows >= WAITING_ROWS {
                settled.has_flushed = true;
                upsert(tx, self.boot, &self.pending)?;
                upsert(tx, self.boot, &as_provisional(&self.minutes, open.is_provisional))?;
                let waiting = self.waiting.iter().copied().chain([(open.first, open.is_provisional)]);
                for (first, is_provisional) in waiting {
                    mark(tx, first, if is_provisional { PROVISIONAL } else { ROLLED })?;
                }
            }
        }
        for (first, last) in self.backlog.iter().take(CATCH_UP) {
            let (boot, clock): (i64, i64) = tx
                .prepare_cached("SELECT boot, clock FROM span WHERE first = ?")?
                .query_row([first.0 as i64], |row| Ok((row.get(0)?, row.get(1)?)))
                .unwrap_or((0, i64::MAX));
            let is_provisional = entry::is_unsynchronised(clock) && !clocks.is_known(boot);
            let minutes = sum(tx, clocks, partitions, *first, *last)?;
            upsert(tx, boot, &as_provisional(&minutes, is_provisional))?;
            mark(tx, *first, if is_provisional { PROVISIONAL } else { ROLLED })?;
            settled.caught_up += 1;
        }
        Ok(settled)
    }

    /// What [`Rollup::settle`] wrote is committed.
    pub(super) fn done(&mut self, settled: Settled) {
        self.backlog.drain(..settled.caught_up);
        self.closing.drain(..settled.closed.len());
        self.backlog.extend(settled.closed);
        if settled.has_closed_open
            && let Some(open) = self.open.take()
        {
            let minutes = std::mem::take(&mut self.minutes);
            if settled.has_flushed {
                self.pending.clear();
                self.waiting.clear();
                self.waiting_rows = 0;
            } else {
                for (key, aggregate) in as_provisional(&minutes, open.is_provisional) {
                    add(&mut self.pending, key, aggregate);
                }
                self.waiting.push((open.first, open.is_provisional));
                self.waiting_rows += open.rows;
            }
        }
    }

    /// A boot's clock is known now: the transaction that says so takes its provisional summaries back.
    pub(super) fn take_back(tx: &Connection, boot: i64) -> Result<(), StoreError> {
        tx.execute("DELETE FROM guess WHERE boot = ?", [boot])?;
        tx.execute("UPDATE span SET rolled = 0 WHERE boot = ? AND rolled = ?", [boot, PROVISIONAL])?;
        Ok(())
    }

    /// After [`Rollup::take_back`]: what is not written yet is summed up again, with what is known now.
    pub(super) fn start_again(&mut self, db: &Connection) -> Result<(), StoreError> {
        self.closing.extend(self.open.take());
        self.minutes.clear();
        self.pending.clear();
        self.waiting.clear();
        self.waiting_rows = 0;
        self.load_backlog(db)
    }
}

impl Span {
    fn at(boot: i64, point: &Point) -> Self {
        Self {
            boot,
            first: point.seq,
            last: point.seq,
            rows: 0,
            mono: (point.mono, point.mono),
            wall: (point.wall, point.wall),
            clock: point.clock,
            is_provisional: false,
        }
    }

    fn take(&mut self, point: &Point) {
        self.last = point.seq;
        self.rows += 1;
        self.mono = (self.mono.0.min(point.mono), self.mono.1.max(point.mono));
        self.wall = (self.wall.0.min(point.wall), self.wall.1.max(point.wall));
        self.clock = self.clock.min(point.clock);
    }

    fn insert(&self, tx: &Connection) -> Result<(), StoreError> {
        tx.prepare_cached(
            "INSERT OR REPLACE INTO span (first, last, boot, mono_from, mono_to, wall_from, wall_to, clock, rolled) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)",
        )?
        .execute(params![
            self.first.0 as i64,
            self.last.0 as i64,
            self.boot,
            self.mono.0,
            self.mono.1,
            self.wall.0,
            self.wall.1,
            self.clock
        ])?;
        Ok(())
    }
}

/// The minutes that a commit adds to, taken out of the map while it does: a commit holds many readings of few channels.
struct Growing {
    /// By channel.
    slots: [Option<(Key, Aggregate)>; 64],
}

impl Growing {
    fn add(&mut self, minutes: &mut Minutes, key: Key, value: f64) {
        let slot = &mut self.slots[key.1 as usize % 64];
        match slot {
            Some((have, sum)) if *have == key => sum.add(&Aggregate::of(value)),
            _ => {
                if let Some((have, sum)) = slot.take() {
                    minutes.insert(have, sum);
                }
                let mut sum = Aggregate::of(value);
                if let Some(before) = minutes.get(&key) {
                    sum = *before;
                    sum.add(&Aggregate::of(value));
                }
                *slot = Some((key, sum));
            }
        }
    }

    fn put_back(self, minutes: &mut Minutes) {
        minutes.extend(self.slots.into_iter().flatten());
    }
}

impl Default for Growing {
    fn default() -> Self {
        Self { slots: [None; 64] }
    }
}

fn add(minutes: &mut Minutes, key: Key, aggregate: Aggregate) {
    minutes.entry(key).and_modify(|sum| sum.add(&aggregate)).or_insert(aggregate);
}

/// A span's minutes are all provisional or none is: one row with an uncertain time makes the whole span uncertain.
fn as_provisional(minutes: &Minutes, is_provisional: bool) -> Minutes {
    minutes.iter().map(|((_, channel, minute), sum)| ((is_provisional, *channel, *minute), *sum)).collect()
}

/// The rows of a span by minute, with the times known now.
fn sum(
    tx: &Connection,
    clocks: &Clocks,
    partitions: &[Partition],
    first: Seq,
    last: Seq,
) -> Result<Minutes, StoreError> {
    let mut minutes = Minutes::new();
    for (at, partition) in partitions.iter().enumerate() {
        let ends_before = partitions.get(at + 1).is_some_and(|behind| behind.first <= first);
        if ends_before || partition.first > last {
            continue;
        }
        let mut rows = tx.prepare(&format!(
            "SELECT channel, boot, mono, wall, clock, value FROM r_{} \
             WHERE seq BETWEEN ? AND ? AND kind IN ({SUMMED_KINDS})",
            partition.id
        ))?;
        let mut rows = rows.query([first.0 as i64, last.0 as i64])?;
        while let Some(row) = rows.next()? {
            let (mono, quality) = (row.get(2)?, entry::quality_of(row.get(4)?));
            let corrected = clocks.correct(row.get(1)?, mono, quality).map(|(wall, _)| wall);
            let wall = corrected.map_or_else(|| row.get(3), Ok)?;
            if let Some(summed) = entry::summed(row.get_ref(5)?).filter(|_| wall > 0) {
                add(&mut minutes, (false, row.get(0)?, wall / MINUTE_NS), summed);
            }
        }
    }
    Ok(minutes)
}

fn upsert(tx: &Connection, boot: i64, minutes: &Minutes) -> Result<(), StoreError> {
    let grow = "ON CONFLICT DO UPDATE SET n = n + excluded.n, min = min(min, excluded.min), \
                max = max(max, excluded.max), sum = sum + excluded.sum";
    let mut certain = tx.prepare_cached(&format!(
        "INSERT INTO rollup (channel, minute, n, min, max, sum) VALUES (?, ?, ?, ?, ?, ?) {grow}"
    ))?;
    let mut guess = tx.prepare_cached(&format!(
        "INSERT INTO guess (boot, channel, minute, n, min, max, sum) VALUES (?, ?, ?, ?, ?, ?, ?) {grow}"
    ))?;
    for ((is_provisional, channel, minute), Aggregate { min, sum, max, n }) in minutes {
        let n = *n as i64;
        if *is_provisional {
            guess.execute(params![boot, channel, minute, n, min, max, sum])?;
        } else {
            certain.execute(params![channel, minute, n, min, max, sum])?;
        }
    }
    Ok(())
}

fn mark(tx: &Connection, first: Seq, rolled: i64) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE span SET rolled = ? WHERE first = ?")?.execute([rolled, first.0 as i64])?;
    Ok(())
}

/// The rows are in the summaries.
const ROLLED: i64 = 1;
/// The rows are in the provisional summaries of their boot.
const PROVISIONAL: i64 = 2;
/// Rows of a span: finding a window's ends costs reading about so many at each end.
const SPAN_ROWS: u64 = 4096;
/// Rows that may be in no summary on disk: a chart reads so many.
const WAITING_ROWS: u64 = 65_536;
/// Minutes of channels kept in memory.
const PENDING_MINUTES: usize = 8192;
/// Spans of the backlog summed up with one commit: some milliseconds.
const CATCH_UP: usize = 2;
pub(super) const MINUTE_NS: i64 = 60_000_000_000;
