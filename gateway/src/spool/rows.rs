//! Entries on their way into tables: the path that every reading takes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use rusqlite::{CachedStatement, Connection, ToSql as _, params};

use super::Seq;
use super::entry::{Class, Entry, Gap, Row, wall_columns};
use super::error::StoreError;
use super::rollup::Point;
use super::store::MAX_GAPS;

/// Channels' numbers by name.
pub(super) type Channels = HashMap<String, i64, BuildHasherDefault<Fnv>>;

/// FNV-1a: looked up once per reading, names are short, and they come from the configuration alone, so nobody can
/// choose them to collide.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Where entries are written to, and what is known of them.
pub(super) struct Target<'a> {
    pub(super) partition: i64,
    pub(super) boot: i64,
    pub(super) channels: &'a Channels,
}

/// What was written, once it is committed.
#[derive(Debug, Default)]
pub(super) struct Inserted {
    /// The last place given.
    pub(super) last: Seq,
    pub(super) last_alarm: Option<Seq>,
    pub(super) first_alarm: Option<Seq>,
    /// Bytes of telemetry and of class alarm, about.
    pub(super) weight: u64,
    pub(super) alarm_weight: u64,
    /// Channels that were not known before.
    pub(super) channels: Vec<(String, i64)>,
    pub(super) gaps: Vec<(i64, Gap)>,
    /// Telemetry, for the summaries.
    pub(super) points: Vec<Point>,
}

/// A row that waits for others, to be written with one statement.
struct Waiting<'a> {
    seq: i64,
    mono: i64,
    wall: i64,
    clock: i64,
    row: Row<'a>,
}

/// Writes entries into their tables, each at the next place behind `last`.
pub(super) fn insert<'a>(
    tx: &Connection,
    target: &Target<'_>,
    last: Seq,
    entries: impl Iterator<Item = &'a Entry>,
) -> Result<Inserted, StoreError> {
    let mut inserted = Inserted { last, ..Inserted::default() };
    let table = format!("r_{}", target.partition);
    let mut one = tx.prepare_cached(&statement(&table, 1))?;
    let mut many = tx.prepare_cached(&statement(&table, AT_ONCE))?;
    let mut waiting: Vec<Waiting<'_>> = Vec::with_capacity(AT_ONCE);
    for entry in entries {
        let channel = channel_of(tx, entry, target, &mut inserted)?;
        let seq = inserted.last.next();
        inserted.last = seq;
        let stamp = entry.stamp();
        let (wall, clock) = wall_columns(stamp);
        let mono = stamp.monotonic_ns as i64;
        let row = Waiting { seq: seq.0 as i64, mono, wall, clock, row: entry.row(channel) };
        match entry.class() {
            Class::Telemetry => {
                inserted.weight += entry.weight();
                let value = match entry {
                    Entry::Reading(reading) => reading.value.as_ref().and_then(drivers::Value::as_f64),
                    _ => None,
                };
                inserted.points.push(Point { seq, channel, mono, wall, clock, value });
                waiting.push(row);
                if waiting.len() == AT_ONCE {
                    write(&mut many, target.boot, &waiting)?;
                    waiting.clear();
                }
            }
            Class::Alarm => {
                inserted.alarm_weight += entry.weight();
                inserted.last_alarm = Some(seq);
                inserted.first_alarm.get_or_insert(seq);
                write(&mut tx.prepare_cached(&statement("alarm", 1))?, target.boot, &[row])?;
            }
        }
        if let Entry::Gap { gap, .. } = entry {
            note_gap(tx, wall, gap)?;
            inserted.gaps.push((wall, gap.clone()));
        }
    }
    for row in waiting {
        write(&mut one, target.boot, &[row])?;
    }
    Ok(inserted)
}

/// Writes as many rows as the statement takes.
fn write(statement: &mut CachedStatement<'_>, boot: i64, rows: &[Waiting<'_>]) -> Result<(), StoreError> {
    let mut at = 0;
    for Waiting { seq, mono, wall, clock, row } in rows {
        for column in [*seq, row.kind, row.channel, boot, *mono, *wall, *clock, row.quality] {
            at += 1;
            statement.raw_bind_parameter(at, column)?;
        }
        at += 1;
        statement.raw_bind_parameter(at, row.value.to_sql()?)?;
    }
    statement.raw_execute()?;
    Ok(())
}

/// A loss as the page shows it; the newest thousand stay.
fn note_gap(tx: &Connection, wall: i64, gap: &Gap) -> Result<(), StoreError> {
    tx.prepare_cached("INSERT INTO gap (wall, json) VALUES (?, ?)")?
        .execute(params![wall, serde_json::to_string(gap).unwrap_or_default()])?;
    let oldest = tx.last_insert_rowid() - 10 * MAX_GAPS as i64;
    tx.prepare_cached("DELETE FROM gap WHERE id <= ?")?.execute([oldest])?;
    Ok(())
}

/// The number of an entry's channel, made where it is new; 0 where there is none.
fn channel_of(
    tx: &Connection,
    entry: &Entry,
    target: &Target<'_>,
    inserted: &mut Inserted,
) -> Result<i64, StoreError> {
    let Some((name, unit)) = entry.channel() else { return Ok(0) };
    let added = || inserted.channels.iter().find(|(have, _)| have == name).map(|(_, id)| id);
    if let Some(id) = target.channels.get(name).or_else(added) {
        return Ok(*id);
    }
    tx.prepare_cached(
        "INSERT INTO channel (name, unit) VALUES (?, ?) ON CONFLICT DO UPDATE SET unit = excluded.unit",
    )?
    .execute([name, unit])?;
    let id =
        tx.prepare_cached("SELECT id FROM channel WHERE name = ?")?.query_row([name], |row| row.get(0))?;
    inserted.channels.push((name.to_owned(), id));
    Ok(id)
}

fn statement(table: &str, rows: usize) -> String {
    let places = vec!["(?, ?, ?, ?, ?, ?, ?, ?, ?)"; rows].join(", ");
    format!(
        "INSERT INTO {table} (seq, kind, channel, boot, mono, wall, clock, quality, value) VALUES {places}"
    )
}

/// Rows written with one statement: what a statement costs by itself is shared.
const AT_ONCE: usize = 16;
