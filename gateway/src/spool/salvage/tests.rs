//! Stores that are damaged in every way a card has: what is promised is there, or a gap says which places are lost, and
//! nothing that was not written is ever read.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::super::crash::{self, Random};
use super::super::damage::open_or_quarantine;
use super::super::reader::Reader;
use super::super::{Body, GapReason, Options, Progress, Seq, Spool, WhenFull, store_path};
use super::*;
use crate::clock::Clock;

/// A store as a process left it behind, and what it had promised.
struct Left {
    directory: TempDir,
    entries: BTreeMap<u64, u64>,
    epoch: u64,
    progress: Progress,
}

fn clock() -> Clock {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    *CLOCK.get_or_init(Clock::new)
}

fn options() -> Options {
    Options {
        max_size: 32 << 20,
        rpo: Duration::from_millis(1),
        wear_budget: u64::MAX,
        when_full: WhenFull::DropOldest,
        retain: Duration::from_secs(3600),
        uplinks: vec!["cloud".into()],
    }
}

impl Left {
    /// Filled by the spool itself; stopped in order, or as by `kill -9`.
    fn new(seed: u64, is_killed: bool) -> Self {
        let mut random = Random::new(seed);
        let (live, directory) = (crash::memory(), crash::memory());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (spool, damage) = Spool::open(live.path(), options(), clock()).unwrap();
            assert!(damage.is_none());
            let mut entries = BTreeMap::new();
            let commits = 100 + random.below(120);
            for _ in 0..commits {
                let numbers: Vec<u64> = (0..=random.below(20)).map(|_| random.below(1 << 40)).collect();
                let group = numbers.iter().map(|number| crash::entry(*number)).collect();
                let places = spool.append(group, true).await.unwrap();
                entries.extend((places.start.0..places.end.0).zip(numbers));
            }
            let progress = Progress::at(Seq(random.below(200)));
            spool.store_progress("cloud", progress.clone(), b"state".to_vec()).await.unwrap();
            let epoch = spool.epoch();
            if is_killed {
                crash::copy(live.path(), directory.path());
                spool.close().await;
            } else {
                spool.close().await;
                crash::copy(live.path(), directory.path());
            }
            Self { directory, entries, epoch, progress }
        })
    }

    /// Opens a damaged copy and holds what is read against what was promised; how many entries are lost.
    fn check(&self, directory: &Path) -> Result<usize, String> {
        let begun = Instant::now();
        let (mut store, damage) = open_or_quarantine(directory, &options(), clock())
            .map_err(|error| format!("it does not open: {error}"))?;
        if begun.elapsed() > Duration::from_secs(5) {
            return Err(format!("the start took {:?}", begun.elapsed()));
        }
        while !store.take_over_remains(Instant::now() + PATIENCE).map_err(|error| error.to_string())? {}
        let mut reader = Reader::open(&store_path(directory)).map_err(|error| error.to_string())?;
        let mut there = BTreeMap::new();
        let (mut lost, mut exact) = (Vec::new(), Vec::new());
        for stored in reader.after(Seq(0), usize::MAX >> 1).map_err(|error| error.to_string())? {
            match stored.body {
                Body::Gap(gap) if gap.reason == GapReason::Damage => {
                    let range = gap.from_seq.unwrap_or(0)..=gap.to_seq.unwrap_or(u64::MAX);
                    if gap.count.is_some() {
                        exact.push(range.clone());
                    }
                    lost.push(range);
                }
                Body::Message { payload, .. } => {
                    there.insert(stored.seq.0, crash::number_in(&payload)?);
                }
                Body::Alarm { text, .. } => {
                    there.insert(stored.seq.0, text.parse().map_err(|_| format!("an alarm says {text}"))?);
                }
                other => return Err(format!("nobody wrote {other:?}")),
            }
        }
        let is_in =
            |ranges: &[RangeInclusive<u64>], seq: &u64| ranges.iter().any(|range| range.contains(seq));
        for (seq, number) in &self.entries {
            match there.get(seq) {
                Some(found) if found == number => {
                    if is_in(&exact, seq) {
                        return Err(format!("{seq} is there and said to be lost"));
                    }
                }
                Some(found) => return Err(format!("{seq} holds {found:x} instead of {number:x}")),
                None if is_in(&lost, seq) => {}
                None => return Err(format!("{seq} is not there, and no gap says so")),
            }
        }
        if let Some(seq) = there.keys().find(|seq| !self.entries.contains_key(seq)) {
            return Err(format!("nobody wrote {seq}"));
        }
        if !lost.is_empty() && damage.is_none() {
            return Err("a loss, and no damage".into());
        }
        let newest = self.entries.keys().last().copied().unwrap_or_default();
        if store.last_seq().0 < newest {
            return Err(format!("{newest} will be given out again: the last place is {}", store.last_seq()));
        }
        let progress = store.progress("cloud");
        let is_ahead = progress.live > self.progress.live || progress.alarm > self.progress.alarm;
        if store.epoch() == self.epoch && is_ahead {
            return Err(format!("{progress:?} is ahead of {:?}", self.progress));
        }
        // With the page that it stands on, the number is lost that tells two stores apart.
        if store.epoch() != self.epoch && damage.is_none() {
            return Err("another epoch".into());
        }
        Ok(self.entries.len() - self.entries.keys().filter(|seq| there.contains_key(seq)).count())
    }
}

/// Damages one file of a store as a card would; says how.
fn damage(random: &mut Random, directory: &Path) -> Option<String> {
    let files: Vec<_> = ["spool.db", "spool.db", "spool.db-wal", "spool.db-wal", "spool.db-shm"]
        .into_iter()
        .filter(|name| directory.join(name).exists())
        .collect();
    let path = directory.join(files[random.below(files.len() as u64) as usize]);
    let mut bytes = fs::read(&path).unwrap();
    // What was never written holds nothing.
    let used = bytes.iter().rposition(|byte| *byte != 0)? as u64 + 1;
    let at = random.below(used) as usize;
    let how = match random.below(6) {
        0 => {
            bytes[at] ^= 1 << random.below(8);
            "a bit turned"
        }
        1 => {
            for _ in 0..=random.below(8) {
                bytes[random.below(used) as usize] ^= 1 << random.below(8);
            }
            "some bits turned"
        }
        2 => {
            bytes.truncate(at.max(1));
            "truncated"
        }
        kind => {
            let size = [512, 4096, 65_536][random.below(3) as usize];
            let from = at / size * size;
            let end = (from + size).min(bytes.len());
            for byte in &mut bytes[from..end] {
                *byte = match kind {
                    3 => 0,
                    4 => 0xFF,
                    _ => random.below(256) as u8,
                };
            }
            ["a block of zeros", "an erased block", "a block of noise"][kind as usize - 3]
        }
    };
    fs::write(&path, bytes).unwrap();
    Some(format!("{} of {used}: {how} at {at}", path.file_name()?.to_string_lossy()))
}

#[test]
fn whatever_is_damaged_everything_else_is_there_and_every_loss_is_a_gap() {
    let half = |seeds: std::ops::Range<u64>| {
        let (mut lost, mut all, mut hit) = (0, 0, 0);
        for seed in seeds {
            let left = Left::new(seed, seed % 3 != 0);
            for run in 0..RUNS {
                let mut random = Random::new(seed * 1_000_003 + run);
                let copy = crash::memory();
                crash::copy(left.directory.path(), copy.path());
                let Some(how) = damage(&mut random, copy.path()) else { continue };
                let kept = crash::memory();
                crash::copy(copy.path(), kept.path());
                let found = left.check(copy.path());
                let gone = found.unwrap_or_else(|error| {
                    panic!(
                        "seed {seed}, run {run}, {how}: {error}; the files as they were damaged: {}",
                        crash::keep(kept.path())
                    )
                });
                (lost, all, hit) = (lost + gone, all + left.entries.len(), hit + usize::from(gone > 0));
            }
        }
        println!("{lost} of {all} entries lost, in {hit} runs");
        (lost, all, hit)
    };
    let (one, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(SEEDS / 2..SEEDS));
        (half(0..SEEDS / 2), other.join().unwrap())
    });
    let (lost, all, hit) = (one.0 + other.0, one.1 + other.1, one.2 + other.2);
    // A test that damages nothing, and a salvage that saves nothing, would be as green.
    assert!(hit > 100 && lost < all / 10, "{lost} of {all} entries lost, in {hit} runs");
}

#[test]
fn a_store_that_is_not_damaged_is_not_touched() {
    for (seed, is_killed) in [(1, true), (2, false)] {
        let left = Left::new(seed, is_killed);
        assert_eq!(left.check(left.directory.path()), Ok(0));
        assert!(!left.directory.path().join("spool.db.damaged-1").exists());
    }
}

#[test]
fn a_power_cut_while_a_store_is_taken_over_loses_nothing_more() {
    let left = Left::new(7, true);
    for cut in 0..12 {
        let copy = crash::memory();
        crash::copy(left.directory.path(), copy.path());
        let path = store_path(copy.path());
        let mut bytes = fs::read(&path).unwrap();
        let at = 20 * PAGE + 100;
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        let kept_as = copy.path().join("spool.db.damaged-1");
        mark(copy.path(), &kept_as).unwrap();
        // Cut after each rename, then after each slice.
        for suffix in ["-shm", "-wal", ""].iter().take(cut) {
            let name = |base: &str| copy.path().join(format!("{base}{suffix}"));
            fs::rename(name("spool.db"), name("spool.db.damaged-1")).unwrap();
        }
        if cut > 3 {
            let mut remains = Remains::open(&kept_as);
            assert!(remains.look(Instant::now() + PATIENCE));
            let beginning = remains.beginning(None, None);
            let mut store = Store::open(copy.path(), &options(), clock(), &beginning).unwrap();
            store.begin_remains(remains).unwrap();
            for _ in 4..cut {
                store.take_over_remains(Instant::now()).unwrap();
            }
            store.let_go().unwrap();
        }
        let lost = left.check(copy.path()).unwrap_or_else(|error| panic!("cut {cut}: {error}"));
        assert!(lost < 100, "cut {cut}: {lost}");
        assert_eq!(marked(copy.path()), None);
    }
}

#[test]
fn a_row_that_was_deleted_is_never_read_with_the_content_of_another() {
    let content = |key: i64| vec![key as u8; 9000];
    let mut met = 0;
    for order in 0..3 {
        let directory = crash::memory();
        let path = directory.path().join("a.db");
        let flags = rusqlite::OpenFlags::default();
        let db = super::super::vfs::open(&path, flags).unwrap();
        super::super::vfs::reserve(&db).unwrap();
        super::super::schema::create_rows(&db, "r_1").unwrap();
        let insert = |keys: RangeInclusive<i64>| {
            for key in keys {
                db.execute("INSERT INTO r_1 VALUES (?, 1, 0, 0, 0, 0, 0, 0, ?)", (key, content(key)))
                    .unwrap();
            }
        };
        insert(1..=40);
        // Whole leaves become free, and some of the pages behind them are given to other rows.
        db.execute("DELETE FROM r_1 WHERE seq BETWEEN ? AND 30", [1 + order]).unwrap();
        insert(41..=48 + order);
        drop(db);
        let mut bytes = fs::read(&path).unwrap();
        let trunk = u32::from_be_bytes(*bytes[32..].first_chunk().unwrap()) as usize;
        bytes[(trunk - 1) * PAGE + 50] ^= 1;
        fs::write(&path, bytes).unwrap();
        let mut remains = Remains::open(&path);
        assert!(!remains.is_free_whole);
        assert!(remains.look(Instant::now() + PATIENCE));
        let pages: Vec<u64> = remains.pages.iter().flatten().map(|(_, page)| *page).collect();
        for record in remains.records(&pages) {
            assert_eq!(record.fields.last(), Some(&Value::Blob(content(record.key))), "row {}", record.key);
            met += 1;
        }
    }
    assert!(met > 20, "{met} rows are read");
}

#[test]
fn what_is_not_covered_is_left() {
    assert_eq!(without(&(1..=10), &[]), [1..=10]);
    assert_eq!(without(&(1..=10), &[0..=0, 3..=4, 6..=6, 10..=20]), [1..=2, 5..=5, 7..=9]);
    assert_eq!(without(&(5..=6), &[1..=9]), []);
}

#[test]
fn pages_survive_mutated_input() {
    let left = Left::new(3, false);
    let bytes = fs::read(store_path(left.directory.path())).unwrap();
    let corpus: Vec<Vec<u8>> = bytes.chunks(PAGE).take(40).map(<[u8]>::to_vec).collect();
    crate::fuzz::mutated("spool-page", corpus, |input| {
        let mut page = [0; PAGE];
        let length = input.len().min(PAGE);
        page[..length].copy_from_slice(&input[..length]);
        for number in [1, 2] {
            if record::tree(number, &page).is_some() {
                let records = record::records(number, &page, &|_, length| Some(vec![1; length.min(1 << 16)]));
                let shapes = records.iter().filter(|row| table_of(row).is_some() || kind_of(row).is_some());
                assert!(shapes.count() <= record::count(number, &page));
            }
        }
    });
}

#[test]
fn logs_survive_mutated_input() {
    let left = Left::new(4, true);
    let directory = crash::memory();
    let path = directory.path().join("a.db");
    let whole = fs::read(left.directory.path().join("spool.db-wal")).unwrap();
    let index = fs::read(left.directory.path().join("spool.db-shm")).unwrap();
    // The first byte says how much of the rest is the log's index.
    let short = [&[96][..], &index[..96], &whole[..40_000]].concat();
    fs::write(&path, [0; PAGE]).unwrap();
    crate::fuzz::mutated("spool-log", vec![short], |input| {
        let (length, rest) = input.split_first().unwrap_or((&0, &[]));
        let (index, log) = rest.split_at(usize::from(*length).min(rest.len()));
        fs::write(directory.path().join("a.db-shm"), index).unwrap();
        fs::write(directory.path().join("a.db-wal"), log).unwrap();
        assert!(beyond(&path).commits <= log.len() as u64 / PAGE as u64);
        if let Ok(image) = image::Image::open(&path) {
            let mut page = [0; PAGE];
            for number in (0..image.count()).map(|at| image.number(at)) {
                image.read(number, &mut page);
            }
        }
    });
}

const SEEDS: u64 = 20;
const RUNS: u64 = 50;
