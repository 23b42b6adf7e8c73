//! A look at the files for people: what stands where, what waits for whom, whether it is sound. On a read-only
//! connection of its own, beside a running gateway as well as without one: a check of everything takes its time, and
//! holds up neither writer nor forwarders.

use std::path::{Path, PathBuf};

use rusqlite::params;

use super::entry::Class;
use super::progress::{Progress, merged};
use super::reader::{Range, Reader};
use super::store::StoreError;
use super::{Body, Gap, Hole, Seq, Stored, salvage, store_path};

/// The files of a state directory, opened for reading.
pub struct Inspector {
    path: PathBuf,
    reader: Reader,
}

/// A table of entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// What stands in it.
    pub class: Class,
    /// Its first entry.
    pub first: Seq,
    /// Its last entry.
    pub last: Seq,
    /// How many there are.
    pub entries: u64,
    /// When the first and the last were measured, in nanoseconds since 1970; 0 where that is not known.
    pub from_ns: i64,
    /// As `from_ns`.
    pub to_ns: i64,
    /// The last place up to which readings were replaced by aggregates; the one before everything where none were.
    pub thinned_to: Seq,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Check {
    /// Entries that read.
    pub entries: u64,
    /// Rows that are there and do not read as entries.
    pub unreadable: u64,
    /// What SQLite says of its own structures; empty for nothing.
    pub integrity: Vec<String>,
    /// Places without an entry that no gap explains, `(first, last)`; at most [`MAX_HOLES`].
    pub holes: Vec<(u64, u64)>,
    /// Places without an entry that a gap explains.
    pub explained: u64,
}

impl Inspector {
    /// Opens the spool in `directory` without changing it.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = store_path(directory);
        Ok(Self { reader: Reader::open(&path)?, path })
    }

    /// The random number made with the store.
    pub fn epoch(&self) -> Result<u64, StoreError> {
        let epoch: i64 =
            self.reader.db.query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| row.get(0))?;
        Ok(epoch as u64)
    }

    /// All tables, oldest first, the alarms last; empty ones are left out.
    pub fn partitions(&self) -> Result<Vec<Partition>, StoreError> {
        let db = &self.reader.db;
        let mut tables: Vec<(String, Seq)> = db
            .prepare("SELECT id, thinned_to FROM part ORDER BY id")?
            .query_map([], |row| {
                Ok((format!("r_{}", row.get::<_, i64>(0)?), Seq(row.get::<_, i64>(1)? as u64)))
            })?
            .collect::<Result<_, _>>()?;
        tables.push(("alarm".into(), Seq(0)));
        let mut found = Vec::new();
        for (table, thinned_to) in tables {
            let edge = |order: &str| {
                let sql = format!("SELECT seq, wall FROM {table} ORDER BY seq {order} LIMIT 1");
                db.query_row(&sql, [], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)?)))
            };
            let (first, from_ns) = match edge("ASC") {
                Err(rusqlite::Error::QueryReturnedNoRows) => continue,
                edge => edge?,
            };
            let (last, to_ns) = edge("DESC")?;
            let entries: i64 =
                db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?;
            let class = if table == "alarm" { Class::Alarm } else { Class::Telemetry };
            let (first, last, entries) = (Seq(first), Seq(last), entries as u64);
            found.push(Partition { class, first, last, entries, from_ns, to_ns, thinned_to });
        }
        Ok(found)
    }

    /// What each uplink's peer has, by the uplink's name.
    pub fn progress(&self) -> Result<Vec<(String, Progress)>, StoreError> {
        let mut rows =
            self.reader.db.prepare("SELECT uplink, alarm, live, holes FROM progress ORDER BY uplink")?;
        let mut rows = rows.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let holes: String = row.get(3)?;
            let progress = Progress {
                alarm: Seq(row.get::<_, i64>(1)? as u64),
                live: Seq(row.get::<_, i64>(2)? as u64),
                holes: Progress::parse_holes(&holes).unwrap_or_default(),
            };
            all.push((row.get(0)?, progress));
        }
        Ok(all)
    }

    /// The last place of telemetry that was measured before `unix_ns`; the place before everything when there is none.
    /// Rows stand in the order in which they came, so the newest partition that begins before that time is looked
    /// through.
    pub fn place_before(&self, unix_ns: i64) -> Result<Seq, StoreError> {
        let db = &self.reader.db;
        let ids: Vec<i64> = db
            .prepare("SELECT id FROM part ORDER BY id DESC")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for id in ids {
            let sql = format!("SELECT max(seq) FROM r_{id} WHERE wall > 0 AND wall < ?");
            let place: Option<i64> = db.query_row(&sql, [unix_ns], |row| row.get(0))?;
            if let Some(place) = place {
                return Ok(Seq(place as u64));
            }
        }
        Ok(Seq(0))
    }

    /// How many entries of telemetry stand behind `after` up to and with `until`.
    pub fn telemetry(&self, after: Seq, until: Seq) -> Result<u64, StoreError> {
        let db = &self.reader.db;
        let until = i64::try_from(until.0).unwrap_or(i64::MAX);
        let ids: Vec<i64> = db
            .prepare("SELECT id FROM part WHERE first <= ?")?
            .query_map([until], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let mut count = 0;
        for id in ids {
            let sql = format!("SELECT count(*) FROM r_{id} WHERE seq > ? AND seq <= ?");
            count += db.query_row(&sql, params![after.0 as i64, until], |row| row.get::<_, i64>(0))? as u64;
        }
        Ok(count)
    }

    /// How many entries of class alarm stand behind `after`.
    pub fn alarms(&self, after: Seq) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) FROM alarm WHERE seq > ?";
        Ok(self.reader.db.query_row(sql, [after.0 as i64], |row| row.get::<_, i64>(0))? as u64)
    }

    /// When the first entry of a class behind `after` was measured, in nanoseconds since 1970.
    pub fn time_behind(&mut self, class: Class, after: Seq) -> Result<Option<i64>, StoreError> {
        let range = Range { after, until: Seq(i64::MAX as u64), limit: 1 };
        let first = self.reader.range(class, range)?;
        Ok(first.first().and_then(|entry| entry.stamp.wall).map(|wall| wall.unix_ns))
    }

    /// The losses that the database keeps for people, oldest first, each with its time in nanoseconds since 1970.
    pub fn losses(&self) -> Result<Vec<(i64, Gap)>, StoreError> {
        let mut rows = self.reader.db.prepare("SELECT wall, json FROM gap ORDER BY id")?;
        let rows = rows.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
        let mut losses = Vec::new();
        for row in rows {
            let (wall, json) = row?;
            losses.extend(serde_json::from_str(&json).ok().map(|gap| (wall, gap)));
        }
        Ok(losses)
    }

    /// Up to `limit` entries of both classes behind `after`, in order.
    pub fn read_after(&mut self, after: Seq, limit: usize) -> Result<Vec<Stored>, StoreError> {
        self.reader.after(after, limit)
    }

    /// Checks everything: the database's structures, that every row reads, and that no place is missing between the
    /// oldest telemetry and the newest entry without a gap that says so.
    pub fn check(&mut self) -> Result<Check, StoreError> {
        match self.check_all() {
            Err(error) if error.is_damage() => {
                let mut integrity = vec![error.to_string()];
                integrity.extend(salvage::damaged_pages(&self.path, MAX_PAGES).into_iter().map(|page| {
                    format!(
                        "page {page} is damaged: a start of the gateway takes over what stands on the others"
                    )
                }));
                Ok(Check { integrity, ..Check::default() })
            }
            checked => checked,
        }
    }

    fn check_all(&mut self) -> Result<Check, StoreError> {
        let mut integrity: Vec<String> = self
            .reader
            .db
            .prepare("PRAGMA integrity_check(20)")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        integrity.retain(|line| line != "ok");
        let mut check = Check { integrity, ..Check::default() };
        let partitions = self.partitions()?;
        let rows: u64 = partitions.iter().map(|partition| partition.entries).sum();
        // What is dropped because everybody has it leaves no gap: only behind that, every place counts.
        let telemetry = partitions.iter().filter(|partition| partition.class == Class::Telemetry);
        let oldest = telemetry.map(|partition| partition.first).min();
        let mut next = oldest.map(|oldest| oldest.0);
        let mut gaps: Vec<_> = self.losses()?.iter().filter_map(|(_, gap)| places(gap)).collect();
        let (mut holes, mut after) = (Vec::new(), Seq(0));
        loop {
            let entries = match self.reader.after(after, AT_ONCE) {
                Ok(entries) => entries,
                // What stands behind cannot be judged.
                Err(error) => {
                    check.integrity.push(error.to_string());
                    break;
                }
            };
            let Some(last) = entries.last() else { break };
            after = last.seq;
            check.entries += entries.len() as u64;
            for entry in entries {
                if let Body::Gap(gap) = &entry.body {
                    gaps.extend(places(gap));
                }
                let seq = entry.seq.0;
                if let Some(expected) = next.filter(|expected| seq >= *expected) {
                    if seq > expected && holes.len() < 100 * MAX_HOLES {
                        holes.push(expected..=seq - 1);
                    }
                    next = Some(seq + 1);
                }
            }
        }
        // A running gateway may have added some meanwhile.
        check.unreadable = rows.saturating_sub(check.entries);
        let gaps = merged(gaps);
        for hole in holes {
            let mut from = *hole.start();
            for gap in gaps.iter().filter(|gap| gap.end() >= hole.start() && gap.start() <= hole.end()) {
                if *gap.start() > from {
                    check.holes.push((from, gap.start() - 1));
                }
                check.explained += gap.end().min(hole.end()) + 1 - from.max(*gap.start());
                from = gap.end() + 1;
            }
            if from <= *hole.end() {
                check.holes.push((from, *hole.end()));
            }
        }
        check.holes.truncate(MAX_HOLES);
        Ok(check)
    }
}

impl Progress {
    /// The stretches of telemetry up to `until` that the peer does not have: each `(after, until]`.
    pub fn waiting(&self, until: Seq) -> Vec<(Seq, Seq)> {
        let behind = Hole { acked: self.live, until: Seq(u64::MAX) };
        let stretches = self.holes.iter().chain(std::iter::once(&behind));
        let cut = stretches.map(|hole| (hole.acked, hole.until.min(until)));
        cut.filter(|(after, until)| after < until).collect()
    }
}

fn places(gap: &Gap) -> Option<std::ops::RangeInclusive<u64>> {
    let (from, to) = gap.from_seq.zip(gap.to_seq)?;
    (from <= to).then_some(from..=to)
}

/// Entries read at a time.
const AT_ONCE: usize = 1000;
/// Holes that are named.
const MAX_HOLES: usize = 100;
/// Damaged pages that are named.
const MAX_PAGES: usize = 20;

#[cfg(test)]
mod tests {
    use super::super::{Entry, GapReason, Options, Spool, WhenFull, vfs};
    use super::*;
    use crate::clock::Clock;

    async fn spool(directory: &Path) -> Spool {
        let options = Options {
            max_size: 64 << 20,
            rpo: std::time::Duration::from_millis(1),
            wear_budget: u64::MAX,
            when_full: WhenFull::DropOldest,
            retain: std::time::Duration::from_secs(3600),
            uplinks: vec!["cloud".into()],
        };
        let (spool, _) = Spool::open(directory, options, Clock::new()).unwrap();
        let message = |n: usize| Entry::Message {
            topic: "site/door".into(),
            payload: n.to_string().into(),
            stamp: Clock::new().stamp(),
        };
        spool.append((0..100).map(message).collect(), true).await.unwrap();
        spool
    }

    #[tokio::test]
    async fn beside_a_running_spool_it_says_what_stands_where_and_what_waits() {
        let directory = tempfile::TempDir::new().unwrap();
        let spool = spool(directory.path()).await;
        let progress =
            Progress { alarm: Seq(0), live: Seq(60), holes: vec![Hole { acked: Seq(10), until: Seq(20) }] };
        spool.store_progress("cloud", progress.clone(), Vec::new()).await.unwrap();
        let mut inspector = Inspector::open(directory.path()).unwrap();
        let partitions = inspector.partitions().unwrap();
        assert_eq!((partitions.len(), partitions[0].first, partitions[0].last), (1, Seq(1), Seq(100)));
        assert_eq!(inspector.progress().unwrap(), [("cloud".to_owned(), progress.clone())]);
        assert_eq!(progress.waiting(Seq(70)), [(Seq(10), Seq(20)), (Seq(60), Seq(70))]);
        assert_eq!(inspector.telemetry(Seq(10), Seq(20)).unwrap(), 10);
        assert_eq!(inspector.place_before(i64::MAX).unwrap(), Seq(100));
        assert_eq!(inspector.place_before(1).unwrap(), Seq(0));
        let check = inspector.check().unwrap();
        assert_eq!(
            (check.entries, check.unreadable, check.holes.len(), check.integrity.len()),
            (100, 0, 0, 0)
        );
        spool.close().await;
    }

    #[tokio::test]
    async fn a_planted_hole_a_row_that_does_not_read_and_a_gap_are_told_apart() {
        let directory = tempfile::TempDir::new().unwrap();
        let spool = spool(directory.path()).await;
        let gap = Gap { from_seq: Some(30), to_seq: Some(39), count: Some(10), reason: GapReason::Quota };
        spool.append(vec![Entry::Gap { gap, stamp: Clock::new().stamp() }], true).await.unwrap();
        spool.close().await;
        let db = vfs::open(&store_path(directory.path()), rusqlite::OpenFlags::default()).unwrap();
        db.execute_batch(
            "DELETE FROM r_1 WHERE seq BETWEEN 30 AND 41; UPDATE r_1 SET kind = 99 WHERE seq = 50",
        )
        .unwrap();
        drop(db);
        let check = Inspector::open(directory.path()).unwrap().check().unwrap();
        assert_eq!(check.holes, [(40, 41), (50, 50)]);
        assert_eq!((check.explained, check.unreadable), (10, 1));
    }
}
