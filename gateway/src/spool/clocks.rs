//! Wall time attached late: rows keep what the clock said, and whoever reads them corrects it by what was learnt since.
//!
//! A row whose clock was not synchronised takes its monotonic time and the offset of its boot's best clock record: the
//! last record at or before it, else the first one after it. So what was read once corrected reads the same later,
//! unless a better source of time comes up within the same boot.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use super::entry::ClockRecord;
use super::store::StoreError;
use crate::clock::WallQuality;

/// What is known of every boot's clock, by the boot's number.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    boots: HashMap<i64, Best>,
    newest: i64,
}

/// The records of one boot that are as good as its best one, in order of their time.
#[derive(Debug)]
struct Best {
    quality: WallQuality,
    records: Vec<(i64, Offset)>,
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offset {
    /// Wall time minus monotonic time.
    pub(super) ns: i64,
    pub(super) error_ns: Option<u64>,
    pub(super) quality: WallQuality,
}

impl Clocks {
    /// Reads the records that have come since.
    pub(super) fn learn(&mut self, db: &Connection) -> Result<(), StoreError> {
        let mut rows = db.prepare_cached(
            "SELECT id, boot, mono, offset, error, quality FROM clock WHERE id > ? ORDER BY id",
        )?;
        let mut rows = rows.query([self.newest])?;
        while let Some(row) = rows.next()? {
            self.newest = row.get(0)?;
            let offset = Offset {
                ns: row.get(3)?,
                error_ns: row.get::<_, Option<i64>>(4)?.and_then(|ns| u64::try_from(ns).ok()),
                quality: WallQuality::from_u8(row.get(5)?),
            };
            self.add(row.get(1)?, row.get(2)?, offset);
        }
        Ok(())
    }

    fn add(&mut self, boot: i64, mono: i64, offset: Offset) {
        // What is no better than a battery-backed clock corrects nothing.
        if offset.quality < WallQuality::Ntp {
            return;
        }
        let best =
            self.boots.entry(boot).or_insert_with(|| Best { quality: offset.quality, records: Vec::new() });
        if offset.quality > best.quality {
            *best = Best { quality: offset.quality, records: Vec::new() };
        }
        if offset.quality == best.quality {
            let at = best.records.partition_point(|(other, _)| *other <= mono);
            best.records.insert(at, (mono, offset));
        }
    }

    /// The better time of a row, if there is one: wall time in nanoseconds and what it rests on.
    pub(super) fn correct(&self, boot: i64, mono: i64, quality: WallQuality) -> Option<(i64, Offset)> {
        // What a synchronised clock said stays: it may have left already, and a digest may hold it.
        if quality >= WallQuality::Ntp {
            return None;
        }
        let best = self.boots.get(&boot)?;
        let behind = best.records.partition_point(|(other, _)| *other <= mono);
        let (_, offset) = best.records.get(behind.saturating_sub(1))?;
        Some((mono.saturating_add(offset.ns), *offset))
    }

    /// Whether that boot's clock was synchronised at some time.
    pub(super) fn is_known(&self, boot: i64) -> bool {
        self.boots.contains_key(&boot)
    }

    /// The smallest and the largest that is added to that boot's monotonic time.
    pub(super) fn offsets(&self, boot: i64) -> Option<(i64, i64)> {
        let offsets = self.boots.get(&boot)?.records.iter().map(|(_, offset)| offset.ns);
        Some((offsets.clone().min()?, offsets.max()?))
    }
}

/// Writes a record down, made at `mono`.
pub(super) fn insert(db: &Connection, boot: i64, mono: i64, record: &ClockRecord) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO clock (boot, mono, offset, error, quality) VALUES (?, ?, ?, ?, ?)")?
        .execute(params![
            boot,
            mono,
            record.offset_ns,
            record.error_ns.map(|ns| i64::try_from(ns).unwrap_or(i64::MAX)),
            record.quality as i64
        ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_record_before_a_row_corrects_it_else_the_first() {
        let mut clocks = Clocks::default();
        let offset = |ns, quality| Offset { ns, error_ns: Some(5), quality };
        clocks.add(1, 100, offset(1_000, WallQuality::Rtc));
        clocks.add(1, 500, offset(5_000, WallQuality::Ntp));
        clocks.add(1, 200, offset(2_000, WallQuality::Ntp));
        let wall = |mono, quality| clocks.correct(1, mono, quality).map(|(wall, _)| wall);
        assert_eq!(wall(50, WallQuality::None), Some(2_050));
        assert_eq!(wall(499, WallQuality::Rtc), Some(2_499));
        assert_eq!(wall(500, WallQuality::File), Some(5_500));
        assert_eq!(wall(500, WallQuality::Ntp), None);
        assert_eq!(clocks.correct(2, 500, WallQuality::None), None);
    }
}
