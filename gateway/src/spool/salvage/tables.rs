//! Whose a row is, told by its shape, and how it goes into the new store: names get new numbers there.

use std::collections::HashMap;

use mqtt::Shelf;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, params_from_iter};

use super::super::entry;
use super::super::store::{StoreError, intern_boot, intern_channel};
use super::record::Record;

/// A table but for entries and summaries, told by the shape of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Table {
    Meta,
    Boot,
    Channel,
    Gap,
    Part,
    Progress,
    Clock,
    Command,
    Blob,
    /// What the MQTT broker keeps.
    Kept(Shelf),
}

/// The new store's numbers of boots and channels, by the old one's.
#[derive(Default)]
pub(super) struct Names {
    pub(super) boots: HashMap<i64, i64>,
    pub(super) channels: HashMap<i64, i64>,
}

/// Writes rows into their tables; those that are there already stay.
pub(in super::super) fn insert_rows(db: &Connection, rows: &[(Table, Record)]) -> Result<(), StoreError> {
    let names = Names::learn(db, rows)?;
    for (table, record) in rows {
        let Some((name, columns)) = table.columns() else { continue };
        let places = vec!["?"; columns.split(',').count()].join(", ");
        let sql = format!("INSERT OR IGNORE INTO {name} ({columns}) VALUES ({places})");
        let mut fields = record.fields.clone();
        if fields.first() == Some(&Value::Null) {
            fields[0] = Value::Integer(record.key);
        }
        if *table == Table::Clock {
            replace(&mut fields[1], &names.boots);
            // Its boot may be found later, and it with that.
            if fields[1] == Value::Integer(0) {
                continue;
            }
        }
        db.prepare_cached(&sql)?.execute(params_from_iter(fields))?;
    }
    Ok(())
}

impl Names {
    /// Makes sure that the boots and channels among `rows` are there.
    pub(super) fn learn(db: &Connection, rows: &[(Table, Record)]) -> Result<Self, StoreError> {
        let mut names = Self::default();
        for (table, record) in rows {
            match (table, &record.fields[..]) {
                (Table::Boot, [_, Value::Blob(uuid)]) => {
                    names.boots.insert(record.key, intern_boot(db, uuid)?);
                }
                (Table::Channel, [_, Value::Text(name), Value::Text(unit)]) => {
                    let known = db
                        .prepare_cached("SELECT id FROM channel WHERE name = ?")?
                        .query_row([name], |row| row.get(0))
                        .optional()?;
                    let id = known.map_or_else(|| intern_channel(db, name, unit), Ok)?;
                    names.channels.insert(record.key, id);
                }
                _ => {}
            }
        }
        Ok(names)
    }

    /// The columns of an entry as the new store has them.
    pub(super) fn entry(&self, record: &Record) -> Vec<Value> {
        let mut fields = record.fields.clone();
        fields[0] = Value::Integer(record.key);
        replace(&mut fields[2], &self.channels);
        replace(&mut fields[3], &self.boots);
        fields
    }
}

/// Puts the new number in the place of the old one; 0 where there is none.
pub(super) fn replace(field: &mut Value, numbers: &HashMap<i64, i64>) {
    if let Value::Integer(number) = field {
        *number = numbers.get(number).copied().unwrap_or_default();
    }
}

impl Table {
    fn columns(self) -> Option<(&'static str, &'static str)> {
        match self {
            // Of these the new store has its own.
            Self::Meta | Self::Part | Self::Boot | Self::Channel => None,
            Self::Gap => Some(("gap", "id, wall, json")),
            Self::Progress => Some(("progress", "uplink, alarm, live, holes")),
            Self::Clock => Some(("clock", "id, boot, mono, offset, error, quality")),
            Self::Command => Some(("command", "n, id, channel, received, expires, outcome")),
            Self::Blob => Some(("blob", "key, value")),
            Self::Kept(Shelf::State) => Some(("mqtt_state", "key, body, shelf")),
            Self::Kept(Shelf::Message) => Some(("mqtt_message", "key, body, shelf")),
            Self::Kept(Shelf::Delivery) => Some(("mqtt_delivery", "key, body, shelf")),
        }
    }
}

pub(super) fn table_of(record: &Record) -> Option<Table> {
    use Value::{Blob, Integer, Null, Text};
    Some(match &record.fields[..] {
        [Text(_), Integer(_)] => Table::Meta,
        [Text(_), Blob(_)] => Table::Blob,
        [Null, Blob(uuid)] if uuid.len() == 16 => Table::Boot,
        [Null, Blob(_), Integer(shelf)] => Table::Kept(Shelf::new(u8::try_from(*shelf).ok()?)?),
        [Null, Text(_), Text(_)] => Table::Channel,
        [Null, Integer(_), Text(_)] => Table::Gap,
        [Null, Integer(_), Integer(_)] => Table::Part,
        [Text(_), Integer(_), Integer(_), Text(_)] => Table::Progress,
        [Null, Integer(_), Integer(_), Integer(_), Integer(_) | Null, Integer(_)] => Table::Clock,
        [Null, Text(_), Text(_), Integer(_), Integer(_) | Null, Text(_) | Null] => Table::Command,
        _ => return None,
    })
}

/// The kind of an entry; `None` for a record that is none.
pub(super) fn kind_of(record: &Record) -> Option<i64> {
    use Value::{Integer, Null};
    match &record.fields[..] {
        [Null, Integer(kind), Integer(_), Integer(_), Integer(_), Integer(_), Integer(_), Integer(_), _] => {
            Some(*kind)
        }
        _ => None,
    }
}

pub(super) fn is_alarm(kind: i64) -> bool {
    kind >= entry::OUTCOME
}

pub(super) fn is_summary(record: &Record) -> bool {
    let is_number = |value: &Value| matches!(value, Value::Integer(_) | Value::Real(_));
    matches!(&record.fields[..], [Value::Integer(_), Value::Integer(_), Value::Integer(_), numbers @ ..]
        if numbers.len() == 3 && numbers.iter().all(is_number))
}
