//! The tables, how they are made, and how those of an earlier format become today's.
//!
//! | table | holds |
//! |---|---|
//! | `meta` | the epoch and the first place |
//! | `boot`, `channel` | names behind the numbers in rows |
//! | `part` | the partitions of telemetry, each a table `r_<id>` and how far it is thinned out |
//! | `alarm` | the class alarm, in the same places as telemetry |
//! | `progress` | what each uplink's peer has |
//! | `clock` | what was learnt of each boot's clock |
//! | `gap` | losses, for the page |
//! | `span` | stretches of rows with the bounds of their times |
//! | `rollup` | minimum, maximum, sum and number per channel and minute |
//! | `guess` | the same of boots whose clock was never set |
//! | `command` | ids of commands and their outcomes |
//! | `mqtt_state`, `mqtt_message`, `mqtt_delivery` | what the MQTT broker keeps over a restart, a table a shelf |
//! | `blob` | what others keep here: small, by name; the state of each uplink's protocol is among it |
//!
//! Every table that has to survive a damaged one is known by the shape of its rows: [`super::salvage`] reads pages
//! without knowing whose they are. `span`, `rollup` and `guess` have no row of a shape that another table has either.

use std::path::PathBuf;

use rusqlite::Connection;

use super::entry::{ALARM_KINDS, NUMERIC_KINDS};
use super::kept;
use super::rollup::MINUTE_NS;
use super::salvage::{self, Beginning};
use super::store::StoreError;

/// The format of the schema; a store with a higher one is refused.
pub(super) const FORMAT: i64 = 3;

/// Makes the tables of a new store.
pub(super) fn create(db: &Connection, beginning: &Beginning) -> Result<(), StoreError> {
    let mut epoch = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| std::io::Read::read_exact(&mut random, &mut epoch))
        .map_err(|error| StoreError::Directory { path: PathBuf::from("/dev/urandom"), error })?;
    // 53 bits: every JSON reader holds it exactly.
    let epoch = beginning.epoch.unwrap_or(u64::from_le_bytes(epoch) >> 11) as i64;
    let tx = db.unchecked_transaction()?;
    tx.execute_batch(
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL);
         CREATE TABLE boot (id INTEGER PRIMARY KEY, uuid BLOB NOT NULL UNIQUE);
         CREATE TABLE channel (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, unit TEXT NOT NULL);
         CREATE TABLE gap (id INTEGER PRIMARY KEY, wall INTEGER NOT NULL, json TEXT NOT NULL);
         CREATE TABLE part (id INTEGER PRIMARY KEY, first INTEGER NOT NULL);",
    )?;
    let base = beginning.base.0 as i64;
    tx.execute("INSERT INTO meta (key, value) VALUES ('epoch', ?), ('base', ?)", [epoch, base])?;
    create_since_2(&tx)?;
    create_since_3(&tx)?;
    salvage::insert_rows(&tx, &beginning.rows)?;
    if let Some(id) = beginning.partition {
        create_rows(&tx, &format!("r_{id}"))?;
        tx.execute("INSERT INTO part (id, first) VALUES (?, ?)", [id, base + 1])?;
    }
    tx.execute_batch(&format!("PRAGMA user_version = {FORMAT}"))?;
    tx.commit()?;
    Ok(())
}

/// A table of rows: partitions and the class alarm have the same columns.
pub(super) fn create_rows(db: &Connection, table: &str) -> Result<(), StoreError> {
    db.execute_batch(&format!(
        "CREATE TABLE {table} (seq INTEGER PRIMARY KEY, kind INTEGER NOT NULL, channel INTEGER NOT NULL, \
         boot INTEGER NOT NULL, mono INTEGER NOT NULL, wall INTEGER NOT NULL, clock INTEGER NOT NULL, \
         quality INTEGER NOT NULL, value)"
    ))?;
    Ok(())
}

/// Brings a store of an earlier format to today's, in one transaction: all or nothing.
pub(super) fn migrate(db: &Connection, format: i64) -> Result<(), StoreError> {
    if format >= FORMAT {
        return Ok(());
    }
    let tx = db.unchecked_transaction()?;
    if format < 2 {
        migrate_to_2(&tx)?;
    }
    create_since_3(&tx)?;
    tx.execute_batch(&format!("PRAGMA user_version = {FORMAT}"))?;
    tx.commit()?;
    Ok(())
}

fn migrate_to_2(tx: &Connection) -> Result<(), StoreError> {
    tx.execute_batch("ALTER TABLE rollup RENAME TO rollup_1")?;
    create_since_2(tx)?;
    tx.execute_batch(
        "INSERT INTO progress (uplink, alarm, live, holes) SELECT uplink, acked, acked, '[]' FROM cursor;
         DROP TABLE cursor;
         INSERT INTO rollup (channel, minute, n, min, max, sum)
             SELECT channel, minute, n, min, max, sum FROM rollup_1;
         DROP TABLE rollup_1;",
    )?;
    let parts: Vec<i64> = tx
        .prepare("SELECT id FROM part ORDER BY id")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    // The newest minute with a summary may have been open still: it is made again from the rows, and all behind it.
    let open: i64 = tx.query_row("SELECT coalesce(max(minute), 0) FROM rollup", [], |row| row.get(0))?;
    tx.execute("DELETE FROM rollup WHERE minute >= ?", [open])?;
    for (at, id) in parts.iter().enumerate() {
        tx.execute_batch(&format!(
            "INSERT INTO alarm SELECT * FROM r_{id} WHERE kind IN ({ALARM_KINDS});
             DELETE FROM r_{id} WHERE kind IN ({ALARM_KINDS});"
        ))?;
        // Only the newest two can hold rows of the open minute.
        if at + 2 >= parts.len() {
            tx.execute(
                &format!(
                    "INSERT INTO rollup (channel, minute, n, min, max, sum) \
                     SELECT channel, wall / {MINUTE_NS}, count(*), min(value), max(value), sum(value) \
                     FROM r_{id} WHERE kind IN ({NUMERIC_KINDS}) AND value IS NOT NULL AND wall >= ?1 \
                     AND wall >= {MINUTE_NS} GROUP BY channel, wall / {MINUTE_NS} \
                     ON CONFLICT DO UPDATE SET n = n + excluded.n, min = min(min, excluded.min), \
                     max = max(max, excluded.max), sum = sum + excluded.sum"
                ),
                [open * MINUTE_NS],
            )?;
        }
        tx.execute_batch(&format!(
            "INSERT INTO span (first, last, boot, mono_from, mono_to, wall_from, wall_to, clock, rolled) \
             SELECT min(seq), max(seq), boot, min(mono), max(mono), min(wall), max(wall), min(clock), 1 \
             FROM r_{id} GROUP BY boot, seq / 4096"
        ))?;
    }
    Ok(())
}

/// What format 2 brought.
fn create_since_2(db: &Connection) -> Result<(), StoreError> {
    db.execute_batch(
        "ALTER TABLE part ADD COLUMN thinned_to INTEGER NOT NULL DEFAULT 0;
         CREATE TABLE progress (uplink TEXT PRIMARY KEY, alarm INTEGER NOT NULL, live INTEGER NOT NULL,
                                holes TEXT NOT NULL);
         CREATE TABLE clock (id INTEGER PRIMARY KEY, boot INTEGER NOT NULL, mono INTEGER NOT NULL,
                             offset INTEGER NOT NULL, error INTEGER, quality INTEGER NOT NULL);
         CREATE TABLE span (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, boot INTEGER NOT NULL,
                            mono_from INTEGER NOT NULL, mono_to INTEGER NOT NULL, wall_from INTEGER NOT NULL,
                            wall_to INTEGER NOT NULL, clock INTEGER NOT NULL, rolled INTEGER NOT NULL) WITHOUT ROWID;
         CREATE TABLE rollup (channel INTEGER, minute INTEGER, n INTEGER, min REAL, max REAL, sum REAL,
                              PRIMARY KEY (channel, minute)) WITHOUT ROWID;
         CREATE TABLE guess (boot INTEGER, channel INTEGER, minute INTEGER, n INTEGER, min REAL, max REAL,
                             sum REAL, PRIMARY KEY (boot, channel, minute)) WITHOUT ROWID;
         CREATE TABLE command (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, channel TEXT NOT NULL,
                               received INTEGER NOT NULL, expires INTEGER, outcome TEXT);
         CREATE TABLE blob (key TEXT PRIMARY KEY, value BLOB NOT NULL);",
    )?;
    create_rows(db, "alarm")
}

/// What format 3 brought. The shelf in every row tells a row without its table whose it is.
fn create_since_3(db: &Connection) -> Result<(), StoreError> {
    for (_, table) in kept::TABLES {
        db.execute_batch(&format!(
            "CREATE TABLE {table} (key INTEGER PRIMARY KEY, body BLOB NOT NULL, shelf INTEGER NOT NULL)"
        ))?;
    }
    Ok(())
}
