//! Minute by minute summaries: what long charts are drawn from.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use super::entry::NUMERIC_KINDS;
use super::store::{Partition, StoreError};

/// Minimum, maximum, sum and number per channel of the minute that is still open.
#[derive(Default)]
pub(super) struct Minutes {
    minute: i64,
    open: HashMap<i64, (f64, f64, f64, i64)>,
}

impl Minutes {
    /// Counts a value in; when its minute is another than the open one, writes the open one first.
    pub(super) fn add(
        &mut self,
        tx: &Connection,
        channel: i64,
        wall_ns: i64,
        value: f64,
    ) -> Result<(), StoreError> {
        if wall_ns <= 0 || !value.is_finite() {
            return Ok(());
        }
        let minute = wall_ns / MINUTE_NS;
        if minute != self.minute {
            self.flush(tx)?;
            self.minute = minute;
        }
        self.open
            .entry(channel)
            .and_modify(|(min, max, sum, n)| {
                *min = min.min(value);
                *max = max.max(value);
                *sum += value;
                *n += 1;
            })
            .or_insert((value, value, value, 1));
        Ok(())
    }

    fn flush(&mut self, tx: &Connection) -> Result<(), StoreError> {
        let mut upsert = tx.prepare_cached(
            "INSERT INTO rollup (channel, minute, boot, n, min, max, sum) VALUES (?, ?, 0, ?, ?, ?, ?) \
             ON CONFLICT DO UPDATE SET n = n + excluded.n, min = min(min, excluded.min), \
             max = max(max, excluded.max), sum = sum + excluded.sum",
        )?;
        for (channel, (min, max, sum, n)) in self.open.drain() {
            upsert.execute(params![channel, self.minute, n, min, max, sum])?;
        }
        Ok(())
    }

    /// Closes minutes that a crash left open, from the rows themselves.
    pub(super) fn rebuild(db: &Connection, partitions: &[Partition]) -> Result<Self, StoreError> {
        let since: i64 = db.query_row("SELECT coalesce(max(minute), 0) FROM rollup", [], |row| row.get(0))?;
        // A minute may lie across two partitions.
        let rows: Vec<String> = partitions
            .iter()
            .rev()
            .take(2)
            .map(|partition| format!("SELECT channel, wall, kind, value FROM r_{}", partition.id))
            .collect();
        db.execute(
            &format!(
                "INSERT OR REPLACE INTO rollup (channel, minute, boot, n, min, max, sum) \
                 SELECT channel, wall / {MINUTE_NS}, 0, count(*), min(value), max(value), sum(value) FROM ({}) \
                 WHERE kind IN ({NUMERIC_KINDS}) AND value IS NOT NULL AND wall >= ? * {MINUTE_NS} \
                 GROUP BY channel, wall / {MINUTE_NS}",
                rows.join(" UNION ALL ")
            ),
            [since],
        )?;
        Ok(Self::default())
    }
}

const MINUTE_NS: i64 = 60_000_000_000;
