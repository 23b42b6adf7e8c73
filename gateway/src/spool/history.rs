//! The past of one channel, drawn from summaries where they serve and from rows where they do not.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension as _, params};

use super::clocks::Clocks;
use super::entry::{self, Aggregate, SUMMED_KINDS};
use super::reader::{Reader, partitions};
use super::rollup::MINUTE_NS;
use super::store::StoreError;

/// A window of one channel's past.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryQuery {
    /// `device/channel`.
    pub channel: String,
    /// From when on, in nanoseconds since 1970.
    pub from_ns: i64,
    /// Up to when, excluded.
    pub to_ns: i64,
    /// The length of a bucket in nanoseconds; 1 gives the readings themselves. From a minute on, buckets and the ends
    /// of the window are whole minutes.
    pub step_ns: i64,
}

/// What one channel did within one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// The step's beginning, in nanoseconds since 1970.
    pub start_ns: i64,
    /// How many values.
    pub n: u64,
    /// The smallest.
    pub min: f64,
    /// Their mean.
    pub mean: f64,
    /// The largest.
    pub max: f64,
}

/// A window with what its rows become.
struct Window<'a> {
    channel: i64,
    from: i64,
    to: i64,
    step: i64,
    clocks: &'a Clocks,
    buckets: HashMap<i64, Aggregate>,
}

impl Reader {
    /// Buckets of one channel, oldest first; those without a value are absent.
    pub(super) fn history(&mut self, query: &HistoryQuery) -> Result<Vec<Bucket>, StoreError> {
        self.learn()?;
        let tx = self.db.unchecked_transaction()?;
        let channel: Option<i64> = tx
            .prepare_cached("SELECT id FROM channel WHERE name = ?")?
            .query_row([&query.channel], |row| row.get(0))
            .optional()?;
        let Some(channel) = channel else { return Ok(Vec::new()) };
        let step = query.step_ns.max(1);
        let mut window = Window {
            channel,
            from: query.from_ns,
            to: query.to_ns,
            step,
            clocks: &self.clocks,
            buckets: HashMap::new(),
        };
        let is_summed = step >= MINUTE_NS;
        if is_summed {
            window.from = window.from.div_euclid(MINUTE_NS) * MINUTE_NS;
            window.to = window.to.saturating_add(MINUTE_NS - 1).div_euclid(MINUTE_NS) * MINUTE_NS;
            window.take_summaries(&tx)?;
        }
        let stretches = window.stretches(&tx, is_summed)?;
        window.take_rows(&tx, &stretches)?;
        let mut buckets: Vec<Bucket> = window
            .buckets
            .into_iter()
            .map(|(start_ns, Aggregate { min, sum, max, n })| Bucket {
                start_ns,
                n,
                min,
                mean: sum / n as f64,
                max,
            })
            .collect();
        buckets.sort_by_key(|bucket| bucket.start_ns);
        Ok(buckets)
    }
}

impl Window<'_> {
    fn add(&mut self, at: i64, aggregate: Aggregate) {
        self.buckets
            .entry(at.div_euclid(self.step) * self.step)
            .and_modify(|sum| sum.add(&aggregate))
            .or_insert(aggregate);
    }

    fn take_summaries(&mut self, tx: &Connection) -> Result<(), StoreError> {
        let mut rows = tx.prepare_cached(
            "SELECT minute, n, min, sum, max FROM rollup WHERE channel = ?1 AND minute >= ?2 AND minute < ?3 \
             UNION ALL SELECT minute, n, min, sum, max FROM guess \
             WHERE boot IN (SELECT id FROM boot) AND channel = ?1 AND minute >= ?2 AND minute < ?3",
        )?;
        let mut rows = rows.query(params![self.channel, self.from / MINUTE_NS, self.to / MINUTE_NS])?;
        while let Some(row) = rows.next()? {
            let n = row.get::<_, i64>(1)? as u64;
            let sum = Aggregate { min: row.get(2)?, sum: row.get(3)?, max: row.get(4)?, n };
            self.add(row.get::<_, i64>(0)? * MINUTE_NS, sum);
        }
        Ok(())
    }

    /// Stretches of places, in order, whose rows have to be looked at.
    fn stretches(&self, tx: &Connection, is_summed: bool) -> Result<Vec<(i64, i64)>, StoreError> {
        let mut spans = tx.prepare_cached(
            "SELECT first, last, boot, mono_from, mono_to, wall_from, wall_to, clock, rolled FROM span ORDER BY first",
        )?;
        let mut spans = spans.query([])?;
        let mut stretches: Vec<(i64, i64)> = Vec::new();
        let mut behind = 0;
        while let Some(span) = spans.next()? {
            let (first, last): (i64, i64) = (span.get(0)?, span.get(1)?);
            behind = last;
            if is_summed && span.get::<_, i64>(8)? != 0 {
                continue;
            }
            let (mut from, mut to): (i64, i64) = (span.get(5)?, span.get(6)?);
            if entry::is_unsynchronised(span.get(7)?)
                && let Some((least, most)) = self.clocks.offsets(span.get(2)?)
            {
                // Some of its rows may be corrected, others not.
                from = from.min(span.get::<_, i64>(3)?.saturating_add(least));
                to = to.max(span.get::<_, i64>(4)?.saturating_add(most));
            }
            if to < self.from || from >= self.to {
                continue;
            }
            match stretches.last_mut() {
                Some(stretch) if stretch.1 + 1 >= first => stretch.1 = last,
                _ => stretches.push((first, last)),
            }
        }
        stretches.push((behind + 1, i64::MAX));
        Ok(stretches)
    }

    fn take_rows(&mut self, tx: &Connection, stretches: &[(i64, i64)]) -> Result<(), StoreError> {
        for part in partitions(tx)? {
            let end = part.end.map_or(i64::MAX, |end| end - 1);
            let mut read: Option<rusqlite::CachedStatement<'_>> = None;
            for (first, last) in stretches.iter().filter(|(first, last)| *last >= part.first && *first <= end)
            {
                let read = match &mut read {
                    Some(read) => read,
                    None => read.insert(tx.prepare_cached(&format!(
                        "SELECT boot, mono, wall, clock, value FROM r_{} \
                         WHERE seq BETWEEN ? AND ? AND channel = ? AND kind IN ({SUMMED_KINDS})",
                        part.id
                    ))?),
                };
                let mut rows = read.query([*first, *last, self.channel])?;
                while let Some(row) = rows.next()? {
                    let (mono, quality) = (row.get(1)?, entry::quality_of(row.get(3)?));
                    let corrected = self.clocks.correct(row.get(0)?, mono, quality).map(|(wall, _)| wall);
                    let wall = corrected.map_or_else(|| row.get(2), Ok)?;
                    if (self.from..self.to).contains(&wall)
                        && let Some(summed) = entry::summed(row.get_ref(4)?).filter(|_| wall > 0)
                    {
                        self.add(wall, summed);
                    }
                }
            }
        }
        Ok(())
    }
}
