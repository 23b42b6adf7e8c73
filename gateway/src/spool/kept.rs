//! What the MQTT broker keeps over a restart, in the spool's database: one commit and one flush serve both.

use mqtt::{Change, Record, Shelf};
use rusqlite::{Connection, params};

use super::store::{StoreError, damaged};

/// The table of each shelf.
pub(super) const TABLES: [(Shelf, &str); 3] =
    [(Shelf::State, "mqtt_state"), (Shelf::Message, "mqtt_message"), (Shelf::Delivery, "mqtt_delivery")];

/// Writes changes, within a transaction.
pub(super) fn write(db: &Connection, changes: &[Change]) -> Result<(), StoreError> {
    for Change { shelf, key, body } in changes {
        let table = table(*shelf);
        match body {
            Some(body) => db
                .prepare_cached(&format!(
                    "INSERT OR REPLACE INTO {table} (key, body, shelf) VALUES (?, ?, ?)"
                ))?
                .execute(params![*key as i64, &body[..], *shelf as i64])?,
            None => {
                db.prepare_cached(&format!("DELETE FROM {table} WHERE key = ?"))?.execute([*key as i64])?
            }
        };
    }
    Ok(())
}

/// All records, shelf by shelf in the order of their keys.
pub(super) fn read(db: &Connection) -> Result<Vec<Record>, StoreError> {
    let mut records = Vec::new();
    for (shelf, table) in TABLES {
        let mut select = db.prepare(&format!("SELECT key, body FROM {table} ORDER BY key"))?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let key = u64::try_from(row.get::<_, i64>(0)?)
                .map_err(|_| damaged("a key of the broker's is negative"))?;
            records.push(Record { shelf, key, body: row.get::<_, Vec<u8>>(1)?.into() });
        }
    }
    Ok(records)
}

fn table(shelf: Shelf) -> &'static str {
    TABLES.into_iter().find(|(one, _)| *one == shelf).map_or("", |(_, table)| table)
}
