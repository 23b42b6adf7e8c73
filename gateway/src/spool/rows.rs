//! Rows on their way into a table: many with one statement, and without looking for where they belong.
//!
//! Half of what an insert of one row costs is the statement itself and the search for its key. So rows whose places
//! follow on each other go in up to 32 at a time and leave the key out: SQLite then gives each the one behind the
//! largest (<https://www.sqlite.org/autoinc.html>), which it finds without a search. Only the first row behind a break
//! names its place. That the others stand where they should is asked after each statement.

use std::sync::Arc;

use rusqlite::{CachedStatement, Connection};

use super::Seq;
use super::entry::{Entry, Row};
use super::store::{StoreError, damaged};

/// A row with its place and time.
pub(super) struct Line<'e> {
    pub(super) seq: Seq,
    pub(super) mono: i64,
    pub(super) wall: i64,
    pub(super) clock: i64,
    pub(super) row: Row<'e>,
}

/// The way into one table, for the length of a transaction. What was pushed is there after [`Rows::flush`].
pub(super) struct Rows<'t, 'e> {
    tx: &'t Connection,
    table: String,
    boot: i64,
    /// In the order of [`SIZES`].
    inserts: [Option<Insert<'t>>; SIZES.len()],
    /// Each with the place behind the one before.
    waiting: Vec<Line<'e>>,
    /// The last place in the table, once it is known.
    last: Option<Seq>,
}

/// A statement for so many rows.
struct Insert<'t> {
    statement: CachedStatement<'t>,
    /// What is bound already of that which changes seldom, by row: kind, channel, clock and quality.
    bound: Vec<[i64; 4]>,
}

impl<'t, 'e> Rows<'t, 'e> {
    pub(super) fn new(tx: &'t Connection, table: String, boot: i64) -> Self {
        Self {
            tx,
            table,
            boot,
            inserts: Default::default(),
            waiting: Vec::with_capacity(SIZES[0]),
            last: None,
        }
    }

    /// Takes a row; places grow from one to the next.
    pub(super) fn push(&mut self, line: Line<'e>) -> Result<(), StoreError> {
        let before = self.waiting.last().map(|line| line.seq).or(self.last);
        if before.is_none_or(|before| before.next() != line.seq) {
            self.flush()?;
            return self.insert_at_its_place(&line);
        }
        self.waiting.push(line);
        if self.waiting.len() == SIZES[0] { self.flush() } else { Ok(()) }
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        let waiting = std::mem::take(&mut self.waiting);
        let mut rest = &waiting[..];
        for (at, size) in SIZES.into_iter().enumerate() {
            while let Some((lines, behind)) = rest.split_at_checked(size) {
                self.insert(at, lines)?;
                rest = behind;
            }
        }
        self.waiting = waiting;
        self.waiting.clear();
        Ok(())
    }

    fn insert_at_its_place(&mut self, line: &Line<'_>) -> Result<(), StoreError> {
        let Line { seq, mono, wall, clock, row } = line;
        let (table, boot) = (&self.table, self.boot);
        self.tx
            .prepare_cached(&format!(
                "INSERT INTO {table} (seq, {COLUMNS}) VALUES (?, ?, ?, {boot}, ?, ?, ?, ?, ?)"
            ))?
            .execute((seq.0 as i64, row.kind, row.channel, mono, wall, clock, row.quality, &row.value))?;
        self.last = Some(*seq);
        Ok(())
    }

    /// Writes as many lines as [`SIZES`] has at `at`.
    fn insert(&mut self, at: usize, lines: &[Line<'_>]) -> Result<(), StoreError> {
        let insert = match &mut self.inserts[at] {
            Some(insert) => insert,
            none => none.insert(Insert::prepare(self.tx, &self.table, self.boot, lines.len())?),
        };
        for (slot, line) in lines.iter().enumerate() {
            insert.bind(slot, line)?;
        }
        insert.statement.raw_execute()?;
        self.last = lines.last().map(|line| line.seq);
        if self.last.map(|last| last.0 as i64) != Some(self.tx.last_insert_rowid()) {
            return Err(damaged("a row does not stand behind the one before it"));
        }
        Ok(())
    }
}

impl<'t> Insert<'t> {
    fn prepare(tx: &'t Connection, table: &str, boot: i64, rows: usize) -> Result<Self, StoreError> {
        // What fails undoes the whole transaction: a statement needs no journal of its own to be undone by.
        let head = format!("INSERT OR FAIL INTO {table} ({COLUMNS}) VALUES ");
        let row = format!("(?, ?, {boot}, ?, ?, ?, ?, ?)");
        let sql = head + &row + &format!(", {row}").repeat(rows - 1);
        Ok(Self { statement: tx.prepare_cached(&sql)?, bound: vec![[UNBOUND; 4]; rows] })
    }

    fn bind(&mut self, slot: usize, line: &Line<'_>) -> Result<(), StoreError> {
        let Line { seq: _, mono, wall, clock, row } = line;
        let (first, bound) = (slot * PARAMETERS, &mut self.bound[slot]);
        let wanted = [row.kind, row.channel, *clock, row.quality];
        for (place, (bound, wanted)) in [1, 2, 5, 6].into_iter().zip(bound.iter_mut().zip(wanted)) {
            if *bound != wanted {
                self.statement.raw_bind_parameter(first + place, wanted)?;
                *bound = wanted;
            }
        }
        self.statement.raw_bind_parameter(first + 3, mono)?;
        self.statement.raw_bind_parameter(first + 4, wall)?;
        self.statement.raw_bind_parameter(first + 7, &row.value)?;
        Ok(())
    }
}

/// Numbers of channels by where the channel stands in memory, for the length of a commit: its name is looked up once and
/// not with every reading.
pub(super) struct Recent {
    slots: [(usize, i64); 64],
}

impl Recent {
    pub(super) fn find(&self, entry: &Entry) -> Option<i64> {
        let address = Self::address(entry)?;
        let (have, id) = self.slots[Self::slot(address)];
        (have == address).then_some(id)
    }

    pub(super) fn note(&mut self, entry: &Entry, id: i64) {
        if let Some(address) = Self::address(entry) {
            self.slots[Self::slot(address)] = (address, id);
        }
    }

    /// Never zero, and of one channel only as long as the entries live.
    fn address(entry: &Entry) -> Option<usize> {
        match entry {
            Entry::Reading(reading) => Some(Arc::as_ptr(&reading.channel).addr()),
            _ => None,
        }
    }

    fn slot(address: usize) -> usize {
        // What is allocated differs above its alignment.
        ((address / 16) ^ (address / 1024)) % 64
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self { slots: [(0, 0); 64] }
    }
}

/// The columns of a row but its key.
const COLUMNS: &str = "kind, channel, boot, mono, wall, clock, quality, value";
/// Those that differ from row to row: the boot is the same for all of a run.
const PARAMETERS: usize = 7;
/// In no column that this is compared with.
const UNBOUND: i64 = i64::MIN;
/// Rows of a statement, the most first. More than these gains nothing that can be measured.
const SIZES: [usize; 3] = [32, 8, 1];
