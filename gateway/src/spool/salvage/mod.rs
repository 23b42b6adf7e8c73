//! What a damaged store still holds, taken over into a new one.
//!
//! A damaged database is never written to again. Its files are set aside and read page by page ([`image`]), each page
//! only if its sum holds, and the rows are found in the pages themselves ([`record`]), without the trees that led to
//! them: a damaged root costs no more than a damaged leaf. Which table a row is of shows in its shape. Rows keep their
//! places, and the new store keeps the old one's epoch, so uplinks go on where they were and what comes twice has the
//! same id. What is missing then is recorded as a loss, range by range.
//!
//! It happens in slices, beside the gateway's work: a start waits [`PATIENCE`] for it at the most. Until it is done,
//! uplinks are shown nothing new, because what they have not sent yet stands before it.
//!
//! A power cut may come at any point: a marker names the store that is being taken over until all of it is, and every
//! slice can be done twice.

mod image;
mod record;
mod tables;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use self::image::Image;
pub(super) use self::image::{Beyond, beyond};
use self::record::{Record, Tree};
use self::tables::{Names, is_alarm, is_summary, kind_of, replace, table_of};
pub(super) use self::tables::{Table, insert_rows};
use super::Seq;
use super::entry::{self, Gap, GapReason};
use super::progress::merged;
use super::retention::partition_weight;
use super::rollup::{MINUTE_NS, Point, Rollup};
use super::schema;
use super::store::{Batch, GROWN, Partition, Store, StoreError};
use super::vfs::PAGE;

/// What is left of a damaged store.
pub(super) struct Remains {
    /// None where nothing of it can be read, or proven.
    image: Option<Image>,
    /// Up to this page it was looked whose the overflow pages are, where that has to be asked.
    claimed: u64,
    /// Up to this page it was looked what there is.
    looked: u64,
    /// Pages that are in no tree any more: what stands in them was deleted.
    free: HashSet<u64>,
    /// Whether these are all.
    is_free_whole: bool,
    claims: Claims,
    damaged: u64,
    /// Rows of everything but entries and summaries.
    rows: Vec<(Table, Record)>,
    /// How many of them are taken over.
    taken_rows: usize,
    names: Names,
    /// Pages of entries by their first place, those of the class alarm first.
    pages: [Vec<(i64, u64)>; 2],
    /// Pages of summaries.
    summaries: Vec<u64>,
    /// Where each partition begins.
    parts: BTreeMap<i64, u64>,
    newest: Option<u64>,
    /// The pages of entries and of summaries that are taken over.
    taken: [usize; 3],
    /// Entries of telemetry up to here had been taken over before a restart.
    taken_to: i64,
    /// Places that are there, and those that the old store said were lost.
    there: Vec<RangeInclusive<u64>>,
    explained: Vec<RangeInclusive<u64>>,
    /// The first minute that has rows.
    oldest_minute: i64,
}

/// What a new store begins with.
#[derive(Default)]
pub(super) struct Beginning {
    /// The place before its first one.
    pub(super) base: Seq,
    /// Another store's, to be gone on with.
    pub(super) epoch: Option<u64>,
    /// The number of its first partition, where others are to stand before it.
    pub(super) partition: Option<i64>,
    pub(super) rows: Vec<(Table, Record)>,
}

impl Remains {
    /// Opens what is left at `path`; that nothing can be read is no error.
    pub(super) fn open(path: &Path) -> Self {
        let image = Image::open(path)
            .inspect_err(|error| log::error!("nothing of {} can be read: {error}", path.display()))
            .ok();
        let mut remains = Self {
            image,
            claimed: 0,
            looked: 0,
            free: HashSet::new(),
            is_free_whole: false,
            claims: Claims::default(),
            damaged: 0,
            rows: Vec::new(),
            taken_rows: 0,
            names: Names::default(),
            pages: [Vec::new(), Vec::new()],
            summaries: Vec::new(),
            parts: BTreeMap::new(),
            newest: None,
            taken: [0; 3],
            taken_to: 0,
            there: Vec::new(),
            explained: Vec::new(),
            oldest_minute: i64::MAX,
        };
        remains.find_free();
        remains
    }

    /// Looks through the pages until there are no more (`true`) or `until`.
    pub(super) fn look(&mut self, until: Instant) -> bool {
        let Some(mut image) = self.image.take() else { return true };
        let is_done = self.look_for_claims(&mut image, until) && self.look_through(&image, until);
        self.image = Some(image);
        is_done
    }

    /// Where it is not known which pages are free, one that is may still hold rows, whose overflow pages are long those
    /// of other rows. Then an overflow page that two rows name is neither's.
    fn look_for_claims(&mut self, image: &mut Image, until: Instant) -> bool {
        if self.is_free_whole {
            return true;
        }
        image.be_wary();
        let mut page = [0; PAGE];
        while self.claimed < image.count() {
            if self.claimed.is_multiple_of(64) && Instant::now() >= until {
                return false;
            }
            let number = image.number(self.claimed);
            self.claimed += 1;
            if self.free.contains(&number)
                || !image.read(number, &mut page)
                || record::tree(number, &page) != Some(Tree::Table)
            {
                continue;
            }
            for at in 0..record::count(number, &page) {
                let chain = RefCell::new(Vec::new());
                let overflow = |from, length| {
                    chain.replace(image.chain(from, length)?);
                    Some(vec![0; length])
                };
                let Some(record) = record::record(number, &page, at, &overflow) else { continue };
                self.claims.add(&record, chain.take());
            }
        }
        if !self.claims.contested.is_empty() {
            image.avoid(std::mem::take(&mut self.claims.contested));
        }
        true
    }

    fn look_through(&mut self, image: &Image, until: Instant) -> bool {
        let mut page = [0; PAGE];
        let overflow = |number, length| image.overflow(number, length);
        while self.looked < image.count() {
            if self.looked.is_multiple_of(64) && Instant::now() >= until {
                return false;
            }
            let number = image.number(self.looked);
            self.looked += 1;
            if self.free.contains(&number) {
                continue;
            }
            if !image.read(number, &mut page) {
                self.damaged += 1;
                continue;
            }
            match record::tree(number, &page) {
                Some(Tree::Table) => self.look_at(number, &page, &overflow),
                Some(Tree::Index)
                    if record::record(number, &page, 0, &overflow)
                        .is_some_and(|first| is_summary(&first)) =>
                {
                    self.summaries.push(number);
                }
                _ => {}
            }
        }
        // As often as it is asked: they are sorted then, which costs next to nothing.
        self.pages.iter_mut().for_each(|pages| pages.sort_unstable());
        true
    }

    fn look_at(&mut self, number: u64, page: &[u8; PAGE], overflow: &record::Overflow<'_>) {
        let count = record::count(number, page);
        let Some(first) = record::record(number, page, 0, overflow) else { return };
        if let Some(kind) = kind_of(&first) {
            let last = record::record(number, page, count - 1, overflow);
            let last = last.map_or(first.key, |last| last.key.max(first.key));
            self.newest = self.newest.max(u64::try_from(last).ok().filter(|seq| *seq < MAX_SEQ));
            self.pages[usize::from(!is_alarm(kind))].push((first.key, number));
            return;
        }
        for record in record::records(number, page, overflow) {
            let Some(table) = table_of(&record) else { continue };
            match (table, &record.fields[..]) {
                (Table::Part, [_, Value::Integer(first), _]) => {
                    if let Ok(first) = u64::try_from(*first) {
                        self.parts.insert(record.key, first);
                        self.newest = self.newest.max(first.checked_sub(1).filter(|seq| *seq < MAX_SEQ));
                    }
                    continue;
                }
                (Table::Gap, [_, _, Value::Text(json)]) => self.explain(json),
                // Of the old log.
                (Table::Blob, [Value::Text(key), _]) if key == GROWN => continue,
                _ => {}
            }
            self.rows.push((table, record));
        }
    }

    /// Walks the list of free pages, as far as it can be read (SQLite's file format, section 1.5).
    fn find_free(&mut self) {
        let Some(image) = &self.image else { return };
        let mut page = [0; PAGE];
        if !image.read(1, &mut page) {
            return;
        }
        let count = image::word(&page, 36) as usize;
        let mut trunk = u64::from(image::word(&page, 32));
        while trunk != 0 && self.free.insert(trunk) && image.read(trunk, &mut page) {
            self.free.extend(image::leaves(&page));
            trunk = u64::from(image::word(&page, 0));
        }
        self.is_free_whole = self.free.len() == count;
    }

    fn explain(&mut self, json: &str) {
        let Ok(gap) = serde_json::from_str::<Gap>(json) else { return };
        self.explained
            .extend(gap.from_seq.zip(gap.to_seq).filter(|(from, to)| from <= to).map(|(from, to)| from..=to));
    }

    /// What the store that takes its place begins with. `last` is the last place that was given out, where that is
    /// known; else the new store begins so far behind what was found that no place is given out twice.
    pub(super) fn beginning(&mut self, epoch: Option<u64>, last: Option<Seq>) -> Beginning {
        let found = self.rows.iter().find_map(|(table, record)| match (table, &record.fields[..]) {
            (Table::Meta, [Value::Text(key), Value::Integer(epoch)]) if key == "epoch" => Some(*epoch as u64),
            _ => None,
        });
        // Where nothing is known of the old places, only another epoch makes sure that none is given out twice.
        let found = found.filter(|_| last.or(self.newest.map(Seq)).is_some());
        let base = match (last, self.newest) {
            (Some(last), _) => last,
            (None, Some(newest)) => Seq((newest / STEP + 2) * STEP),
            (None, None) => random_base(),
        };
        self.newest = last.map_or(self.newest, |last| Some(last.0));
        Beginning { base, epoch: epoch.or(found), partition: Some(OWN_PARTITIONS), rows: self.rows.clone() }
    }

    /// The oldest place that may be there.
    pub(super) fn oldest(&self) -> Option<Seq> {
        let part = self.parts.values().copied().min();
        part.or_else(|| Some(self.pages[1].first()?.0 as u64)).map(Seq)
    }

    /// What of the places that the old store must have held is not there, and no loss of its own explains.
    fn lost(&self, base: Seq) -> Vec<Gap> {
        let gap = |from, to, count| Gap { from_seq: from, to_seq: to, count, reason: GapReason::Damage };
        let Some(newest) = self.newest else { return vec![gap(None, None, None)] };
        let firsts: Vec<u64> = self.parts.values().copied().collect();
        let mut held: Vec<_> =
            firsts.windows(2).filter(|pair| pair[0] < pair[1]).map(|pair| pair[0]..=pair[1] - 1).collect();
        let last = firsts.last().copied().or_else(|| self.there.first().map(|range| *range.start()));
        held.extend(last.filter(|first| *first <= newest).map(|first| first..=newest));
        let covered = merged(self.there.iter().chain(&self.explained).cloned().collect());
        let mut lost: Vec<RangeInclusive<u64>> =
            merged(held).iter().flat_map(|range| without(range, &covered)).collect();
        // A range too many is told as part of the last one.
        if let Some(rest) = lost.get(MAX_GAPS - 1..).filter(|rest| rest.len() > 1) {
            let (from, to) = (*rest[0].start(), *rest[rest.len() - 1].end());
            lost.truncate(MAX_GAPS - 1);
            lost.push(from..=to);
        }
        let mut gaps = Vec::new();
        // Where the partitions are not known, neither is how far back they went.
        if firsts.is_empty() {
            let first = self.there.first().map_or(newest + 1, |range| *range.start());
            gaps.push(gap(None, Some(first - 1), None));
        }
        gaps.extend(lost.iter().map(|range| {
            gap(Some(*range.start()), Some(*range.end()), Some(range.end() - range.start() + 1))
        }));
        // What was written last may be gone without a trace.
        if newest < base.0 && without(&(newest + 1..=base.0), &covered).len() == 1 {
            gaps.push(gap(Some(newest + 1), Some(base.0), None));
        }
        gaps
    }
}

impl Store {
    /// Takes over what is left of a damaged store until all of it is here (`true`) or `until`.
    pub(super) fn take_over_remains(&mut self, until: Instant) -> Result<bool, StoreError> {
        let Some(mut remains) = self.remains.take() else { return Ok(true) };
        let result = self.take_slices(&mut remains, until);
        match &result {
            Ok(true) => log::warn!(
                "{} entries of the damaged spool are taken over, {} of its {} pages were damaged",
                remains.there.iter().map(|range| range.end() - range.start() + 1).sum::<u64>(),
                remains.damaged,
                remains.looked
            ),
            Ok(false) | Err(_) => self.remains = Some(remains),
        }
        result
    }

    /// Ends the taking over with what is here: the rest is lost, and recorded as that.
    pub(super) fn give_up_remains(&mut self) -> Result<(), StoreError> {
        let Some(remains) = self.remains.take() else { return Ok(()) };
        self.finish_remains(&remains)
    }

    /// Has `remains` taken over from here on.
    pub(super) fn begin_remains(&mut self, mut remains: Remains) -> Result<(), StoreError> {
        let base = self.base().0 as i64;
        if let Some(newest) = self.partitions.iter().rfind(|partition| (partition.first.0 as i64) <= base) {
            let sql = format!("SELECT coalesce(max(seq), 0) FROM r_{}", newest.id);
            remains.taken_to = self.db.query_row(&sql, [], |row| row.get(0))?;
        }
        // A store that an earlier start made knows only what was found by then.
        remains.taken_rows = 0;
        self.remains = Some(Box::new(remains));
        Ok(())
    }

    fn take_slices(&mut self, remains: &mut Remains, until: Instant) -> Result<bool, StoreError> {
        if !remains.look(until) {
            return Ok(false);
        }
        while self.take_slice(remains)? {
            if Instant::now() >= until {
                return Ok(false);
            }
        }
        self.finish_remains(remains)?;
        Ok(true)
    }

    /// Takes over some more; whether there was any.
    fn take_slice(&mut self, remains: &mut Remains) -> Result<bool, StoreError> {
        if remains.taken_rows < remains.rows.len() {
            let tx = self.db.unchecked_transaction()?;
            insert_rows(&tx, &remains.rows[remains.taken_rows..])?;
            tx.commit()?;
            remains.taken_rows = remains.rows.len();
            remains.names = Names::learn(&self.db, &remains.rows)?;
            self.learn_rows()?;
            return Ok(true);
        }
        for kind in 0..2 {
            let (from, end) = (remains.taken[kind], remains.pages[kind].len());
            if from < end {
                let to = (from + SLICE).min(end);
                let pages: Vec<u64> = remains.pages[kind][from..to].iter().map(|(_, page)| *page).collect();
                self.take_entries(remains, &pages)?;
                remains.taken[kind] = to;
                return Ok(true);
            }
        }
        let (from, end) = (remains.taken[2], remains.summaries.len());
        if from < end {
            let to = (from + SLICE).min(end);
            self.take_summaries(remains, from..to)?;
            remains.taken[2] = to;
        }
        Ok(from < end)
    }

    fn take_entries(&mut self, remains: &mut Remains, pages: &[u64]) -> Result<(), StoreError> {
        let base = self.base();
        let oldest = remains.parts.values().copied().min().unwrap_or(0) as i64;
        let mut alarms = self.alarms;
        let (mut own, others) = self.split_partitions(base);
        let tx = self.db.unchecked_transaction()?;
        let (mut points, mut there, mut explained) = (Vec::new(), Vec::new(), Vec::new());
        for record in remains.records(pages) {
            let Some(kind) = kind_of(&record) else { continue };
            let is_alarm = is_alarm(kind);
            if record.key < 1 || record.key > base.0 as i64 || (!is_alarm && record.key < oldest) {
                continue;
            }
            let seq = Seq(record.key as u64);
            there.push(seq.0..=seq.0);
            if let (entry::GAP, Some(Value::Text(json))) = (kind, record.fields.last()) {
                explained.push(json.clone());
            }
            if !is_alarm && record.key <= remains.taken_to {
                continue;
            }
            let table =
                if is_alarm { "alarm".to_owned() } else { self.table_for(&tx, &mut own, seq, &record)? };
            let sql = format!(
                "INSERT OR IGNORE INTO {table} (seq, kind, channel, boot, mono, wall, clock, quality, value) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            );
            let is_new =
                tx.prepare_cached(&sql)?.execute(params_from_iter(remains.names.entry(&record)))? > 0;
            let weight = if is_new { weight(&record) } else { 0 };
            if is_alarm {
                alarms.weight += weight;
                alarms.first = Some(alarms.first.map_or(seq, |first| first.min(seq)));
            } else {
                if let Some(partition) = own.last_mut() {
                    partition.weight += weight;
                }
                let point = point(&record);
                if point.1.wall >= MINUTE_NS {
                    remains.oldest_minute = remains.oldest_minute.min(point.1.wall / MINUTE_NS);
                }
                points.push((remains.names.boots.get(&point.0).copied().unwrap_or_default(), point.1));
            }
        }
        let spans = Rollup::adopt(&tx, &points)?;
        tx.commit()?;
        self.rollup.adopted(spans);
        self.partitions = own.into_iter().chain(others).collect();
        self.alarms = alarms;
        remains.there = merged(remains.there.drain(..).chain(there).collect());
        for json in explained {
            remains.explain(&json);
        }
        Ok(())
    }

    /// The partitions that hold what was taken over, and those of this store's own.
    fn split_partitions(&self, base: Seq) -> (Vec<Partition>, Vec<Partition>) {
        self.partitions.iter().cloned().partition(|partition| partition.first <= base)
    }

    /// The table that a row of telemetry goes into; begins a new one where the last is full.
    fn table_for(
        &self,
        tx: &Connection,
        own: &mut Vec<Partition>,
        seq: Seq,
        record: &Record,
    ) -> Result<String, StoreError> {
        let is_full = |last: &Partition| last.weight >= partition_weight(&self.options);
        if own.last().is_none_or(is_full) {
            let id = own.last().map_or(1, |last| last.id + 1);
            schema::create_rows(tx, &format!("r_{id}"))?;
            tx.execute("INSERT INTO part (id, first) VALUES (?, ?)", [id, seq.0 as i64])?;
            let oldest_ns = point(record).1.wall;
            own.push(Partition { id, first: seq, weight: 0, oldest_ns, thinned_to: Seq(0) });
        }
        Ok(format!("r_{}", own.last().map_or(1, |last| last.id)))
    }

    /// Summaries of minutes whose rows are gone; the others are made again from the rows.
    fn take_summaries(&self, remains: &Remains, slice: std::ops::Range<usize>) -> Result<(), StoreError> {
        let tx = self.db.unchecked_transaction()?;
        {
            let mut insert = tx.prepare_cached(
                "INSERT OR IGNORE INTO rollup (channel, minute, n, min, max, sum) VALUES (?, ?, ?, ?, ?, ?)",
            )?;
            let rows = remains.records(&remains.summaries[slice]);
            let is_over = |row: &Record| matches!(row.fields.get(1), Some(Value::Integer(minute)) if *minute < remains.oldest_minute);
            for mut row in rows.into_iter().filter(|row| is_summary(row) && is_over(row)) {
                replace(&mut row.fields[0], &remains.names.channels);
                insert.execute(params_from_iter(&row.fields))?;
            }
        }
        tx.commit()?;
        Ok(())
    }

    fn finish_remains(&mut self, remains: &Remains) -> Result<(), StoreError> {
        let told = self.told_losses();
        let mut gaps = remains.lost(self.base());
        gaps.retain(|gap| !told.contains(gap));
        if !gaps.is_empty() {
            self.commit(&Batch { lost: gaps, ..Batch::default() })?;
        }
        unmark(self.directory());
        Ok(())
    }
}

/// Which row each overflow page belongs to, as rows say.
#[derive(Default)]
struct Claims {
    rows: HashMap<u64, (i64, usize, Option<i64>)>,
    contested: HashSet<u64>,
}

impl Claims {
    fn add(&mut self, record: &Record, chain: Vec<u64>) {
        let number = |value: &Value| if let Value::Integer(number) = value { Some(*number) } else { None };
        // A row that stands in two pages because its leaf was split is one.
        let row = (record.key, record.fields.len(), record.fields.iter().find_map(number));
        for page in chain {
            if *self.rows.entry(page).or_insert(row) != row {
                self.contested.insert(page);
            }
        }
    }
}

impl Remains {
    /// All records of these pages, in the order of the pages.
    fn records(&self, pages: &[u64]) -> Vec<Record> {
        let Some(image) = &self.image else { return Vec::new() };
        let mut records = Vec::new();
        let mut page = [0; PAGE];
        for number in pages {
            if image.read(*number, &mut page) && record::tree(*number, &page).is_some() {
                records.extend(record::records(*number, &page, &|from, length| image.overflow(from, length)));
            }
        }
        records
    }
}

/// As [`super::entry::Entry::weight`] counts, about.
fn weight(record: &Record) -> u64 {
    let content = match record.fields.last() {
        Some(Value::Text(text)) => text.len(),
        Some(Value::Blob(blob)) => blob.len(),
        _ => 0,
    };
    entry::ROW_OVERHEAD + content.max(8) as u64
}

/// An entry of telemetry as far as summaries go, with its boot.
fn point(record: &Record) -> (i64, Point) {
    let field = |at: usize| if let Some(Value::Integer(value)) = record.fields.get(at) { *value } else { 0 };
    let point = Point {
        seq: Seq(record.key as u64),
        channel: field(2),
        mono: field(4),
        wall: field(5),
        clock: field(6),
        value: None,
    };
    (field(3), point)
}

/// The parts of `range` that none of `covered` (merged) has.
fn without(range: &RangeInclusive<u64>, covered: &[RangeInclusive<u64>]) -> Vec<RangeInclusive<u64>> {
    let mut left = Vec::new();
    let mut from = *range.start();
    let first = covered.partition_point(|other| *other.end() < from);
    for other in covered[first..].iter().take_while(|other| other.start() <= range.end()) {
        if *other.start() > from {
            left.push(from..=other.start() - 1);
        }
        from = from.max(other.end().saturating_add(1));
    }
    if from <= *range.end() {
        left.push(from..=*range.end());
    }
    left
}

/// The numbers of pages of the database at `path` that are not what was written to them, at most `limit`.
pub(super) fn damaged_pages(path: &Path, limit: usize) -> Vec<u64> {
    let remains = Remains::open(path);
    let Some(image) = &remains.image else { return Vec::new() };
    let mut page = [0; PAGE];
    let numbers = (0..image.count()).map(|at| image.number(at));
    numbers
        .filter(|number| !remains.free.contains(number) && !image.read(*number, &mut page))
        .take(limit)
        .collect()
}

/// Writes down that the store that is now, or will be, at `kept_as` has to be taken over.
pub(super) fn mark(directory: &Path, kept_as: &Path) -> io::Result<()> {
    let name = kept_as.file_name().unwrap_or_default();
    let (new, marker) = (directory.join("salvage.new"), directory.join(MARKER));
    fs::write(&new, name.as_encoded_bytes())?;
    File::open(&new)?.sync_all()?;
    fs::rename(&new, &marker)?;
    sync(directory)
}

/// The store that has to be taken over, if there is one.
pub(super) fn marked(directory: &Path) -> Option<PathBuf> {
    let name = fs::read_to_string(directory.join(MARKER)).ok()?;
    name.starts_with("spool.db.damaged-")
        .then(|| directory.join(name))
        .filter(|path| path.parent() == Some(directory))
}

/// All of it is taken over.
pub(super) fn unmark(directory: &Path) {
    let _ = fs::remove_file(directory.join(MARKER));
    let _ = sync(directory);
}

/// Makes what was renamed in a directory last.
pub(super) fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Nothing of the old places is known: far away from any of them, and still exact in JSON.
fn random_base() -> Seq {
    let mut bytes = [0; 8];
    let _ = File::open("/dev/urandom").and_then(|mut random| io::Read::read_exact(&mut random, &mut bytes));
    Seq((u64::from_le_bytes(bytes) >> 20) / STEP * STEP + STEP)
}

/// How long a start waits for it at the most; the rest is taken over while the gateway works.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// The same for a gateway that is at work.
pub(super) const SHORT_PATIENCE: Duration = Duration::from_millis(200);
/// How long the writer is held up by one slice.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// Names the store that is being taken over.
const MARKER: &str = "salvage";
/// Pages in one transaction.
const SLICE: usize = 32;
/// Ranges that are recorded one by one.
const MAX_GAPS: usize = 1000;
/// The new store's own partitions are numbered from here on: those that are taken over stand before them.
const OWN_PARTITIONS: i64 = 1 << 20;
/// New stores begin at a multiple of this: further behind than a log can hold entries that left no trace.
const STEP: u64 = 1_000_000;
/// 2⁵³: what JSON readers hold exactly.
const MAX_SEQ: u64 = 1 << 53;
