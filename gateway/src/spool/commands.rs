//! The ledger of commands: an id is written down before anybody acts on it, so that it is acted on once only, whatever
//! restarts in between.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::store::StoreError;

/// A command that is about to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandRow {
    /// What tells it from others; chosen by whoever commands.
    pub id: String,
    /// `device/channel`: which actuator.
    pub channel: String,
    /// When it came, in nanoseconds since 1970.
    pub received_ns: i64,
    /// When it stops being wanted, in nanoseconds since 1970.
    pub expires_ns: Option<i64>,
}

/// Whether a command may be acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// Its id was never seen and is on disk now.
    New,
    /// Its id is known: it was begun before. With its outcome as JSON once there is one.
    Known(Option<String>),
}

/// One step in a command's life.
#[derive(Debug, Clone)]
pub(super) enum CommandStep {
    Begin(CommandRow),
    Finish { id: String, outcome: String },
}

impl CommandStep {
    /// Writes the step; what to answer to one that begins.
    pub(super) fn write(&self, db: &Connection) -> Result<Option<Begun>, StoreError> {
        match self {
            Self::Begin(row) => begin(db, row).map(Some),
            Self::Finish { id, outcome } => {
                db.prepare_cached("UPDATE command SET outcome = ? WHERE id = ?")?.execute([outcome, id])?;
                Ok(None)
            }
        }
    }
}

fn begin(db: &Connection, row: &CommandRow) -> Result<Begun, StoreError> {
    let known: Option<Option<String>> = db
        .prepare_cached("SELECT outcome FROM command WHERE id = ?")?
        .query_row([&row.id], |row| row.get(0))
        .optional()?;
    if let Some(outcome) = known {
        return Ok(Begun::Known(outcome));
    }
    db.prepare_cached("INSERT INTO command (id, channel, received, expires) VALUES (?, ?, ?, ?)")?
        .execute(params![row.id, row.channel, row.received_ns, row.expires_ns])?;
    db.prepare_cached("DELETE FROM command WHERE n <= ?")?.execute([db.last_insert_rowid() - KEPT])?;
    Ok(Begun::New)
}

/// Commands that were begun and have no outcome, oldest first.
pub(super) fn unfinished(db: &Connection) -> Result<Vec<CommandRow>, StoreError> {
    let mut rows = db.prepare_cached(
        "SELECT id, channel, received, expires FROM command WHERE outcome IS NULL ORDER BY n",
    )?;
    let rows = rows.query_map([], |row| {
        Ok(CommandRow {
            id: row.get(0)?,
            channel: row.get(1)?,
            received_ns: row.get(2)?,
            expires_ns: row.get(3)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Ids kept: a command that is repeated after so many others is a new one.
const KEPT: i64 = 10_000;
