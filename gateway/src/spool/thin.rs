//! Thinning out: of the readings of one channel within one minute a single row stays, with minimum, mean, maximum and
//! number. Messages, texts and readings without a value stay as they are.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use super::Seq;
use super::entry::{self, AGGREGATE, Aggregate, Gap, GapReason, SUMMED_KINDS};
use super::rollup::MINUTE_NS;
use super::store::StoreError;

/// Thins out the next rows of a partition behind `after`: up to which place (`None`: to its end), and the loss.
///
/// What stays of a minute stands in the place of its last reading. A minute on the border of two slices leaves two.
pub(super) fn slice(
    tx: &Connection,
    partition: i64,
    after: Seq,
) -> Result<(Option<Seq>, Option<Gap>), StoreError> {
    let table = format!("r_{partition}");
    let end: Option<i64> = tx
        .prepare_cached(&format!("SELECT seq FROM {table} WHERE seq > ? ORDER BY seq LIMIT 1 OFFSET ?"))?
        .query_map([after.0 as i64, SLICE - 1], |row| row.get(0))?
        .next()
        .transpose()?;
    let mut minutes: HashMap<Minute, (Aggregate, Vec<i64>)> = HashMap::new();
    {
        let mut rows = tx.prepare_cached(&format!(
            "SELECT seq, channel, boot, clock, mono, wall, value FROM {table} \
             WHERE seq > ? AND seq <= ? AND kind IN ({SUMMED_KINDS}) ORDER BY seq"
        ))?;
        let mut rows = rows.query([after.0 as i64, end.unwrap_or(i64::MAX)])?;
        while let Some(row) = rows.next()? {
            let Some(value) = entry::summed(row.get_ref(6)?) else { continue };
            let (clock, wall) = (row.get(3)?, row.get::<_, i64>(5)?);
            let at = if clock > 0 && wall > 0 { wall } else { row.get(4)? };
            let minute = Minute { channel: row.get(1)?, boot: row.get(2)?, clock, at: at / MINUTE_NS };
            let (sum, places) = minutes.entry(minute).or_insert_with(|| (value, Vec::new()));
            if !places.is_empty() {
                sum.add(&value);
            }
            places.push(row.get(0)?);
        }
    }
    let mut delete = tx.prepare_cached(&format!("DELETE FROM {table} WHERE seq = ?"))?;
    let mut keep = tx.prepare_cached(&format!("UPDATE {table} SET kind = ?, value = ? WHERE seq = ?"))?;
    let (mut from, mut to, mut count) = (u64::MAX, 0, 0);
    for (sum, places) in minutes.into_values() {
        let Some((last, others)) = places.split_last().filter(|(_, others)| !others.is_empty()) else {
            continue;
        };
        for place in others {
            delete.execute([place])?;
            (from, to) = (from.min(*place as u64), to.max(*place as u64));
        }
        count += others.len() as u64;
        // What stands in its place is another entry than before: the range says so of all of them.
        to = to.max(*last as u64);
        keep.execute(params![AGGREGATE, &sum.to_bytes()[..], last])?;
    }
    let gap = Gap { from_seq: Some(from), to_seq: Some(to), count: Some(count), reason: GapReason::Thinned };
    Ok((end.map(|end| Seq(end as u64)), (count > 0).then_some(gap)))
}

/// Whose readings become one row.
#[derive(PartialEq, Eq, Hash)]
struct Minute {
    channel: i64,
    boot: i64,
    clock: i64,
    at: i64,
}

/// Rows looked at in one go: some milliseconds.
const SLICE: i64 = 16_384;
