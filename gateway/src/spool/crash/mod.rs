//! The crash explorer: the real spool on a disk whose every write is recorded, and the power cut at any of them.
//!
//! A life is a run of the whole spool ([`life`]): appends in groups, confirmations with holes, commands, alarms,
//! partitions that fill and are dropped, checkpoints, a log that begins anew, a clean close. From its record any number
//! of disks is made as a power cut may have left them ([`disk`]), each is opened by the store itself, and what it holds
//! is held against what had been promised by then. One of them is where the next life begins, so that a recovery is cut
//! short as well. A failure names its seed and keeps the disk.

mod disk;
mod life;
mod recorder;

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use disk::Disk;
use life::{Found, Life};
pub(super) use life::{entry, number_in};
pub(super) use recorder::Recorder;
use recorder::Watched;

/// What many states showed.
#[derive(Default, Debug)]
struct Tally {
    states: usize,
    operations: usize,
    syncs: usize,
    /// States that held entries which had not been promised yet.
    early: usize,
    /// States in which a partition had been dropped.
    dropped: usize,
}

/// Explores `lives` lives of one seed, `states` disks each.
fn explore(seed: u64, lives: usize, states: usize, is_normal: bool, tally: &mut Tally) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut begun = Found::default();
    let mut start = memory();
    for number in 0..lives {
        let directory = memory();
        copy(start.path(), directory.path());
        let watched = Watched::new(directory.path(), is_normal);
        let life = Life::live(&mut random, &watched, directory.path(), &begun)
            .map_err(|error| format!("seed {seed}, life {number}: {error}"))?;
        let log = watched.take();
        drop(watched);
        tally.operations += log.len();
        tally.syncs += log.syncs();
        let mut disk = Disk::new(&log, start.path());
        let mut moments: Vec<usize> =
            (0..states).map(|_| random.below(log.len() as u64 + 1) as usize).collect();
        moments.sort_unstable();
        let chosen = random.below(states as u64) as usize;
        let (left, next) = (memory(), memory());
        let mut next_begun = Found::default();
        for (state, moment) in moments.into_iter().enumerate() {
            disk.advance(moment);
            let remains = disk.cut(&mut random, left.path());
            if state == chosen {
                copy(left.path(), next.path());
            }
            let found = Found::open(left.path()).and_then(|found| {
                life.check(moment, &begun, &found)?;
                Ok(found)
            });
            let found = found.map_err(|error| {
                format!(
                    "seed {seed}, life {number}, power cut before operation {moment} of {} ({remains}): {error}; the disk \
                     after its recovery: {}",
                    log.len(),
                    keep(left.path())
                )
            })?;
            tally.states += 1;
            tally.early += usize::from(life.is_early(moment, &found));
            tally.dropped += usize::from(found.first > 1);
            if state == chosen {
                next_begun = found;
            }
        }
        (start, begun) = (next, next_begun);
    }
    Ok(())
}

pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`: splitmix64.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

/// A directory in memory where there is any: what is looked at is the order of writes, not the disk.
pub(super) fn memory() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

pub(super) fn copy(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

pub(super) fn keep(directory: &Path) -> String {
    let kept = TempDir::new().unwrap().keep();
    copy(directory, &kept);
    kept.display().to_string()
}

#[test]
fn after_a_power_cut_at_any_write_nothing_that_was_promised_is_lost_or_damaged() {
    let half = |seeds: std::ops::Range<u64>| {
        let mut tally = Tally::default();
        for seed in seeds {
            if let Err(error) = explore(seed, LIVES, STATES, false, &mut tally) {
                panic!("after {} states: {error}", tally.states);
            }
        }
        println!("{tally:?}");
        tally
    };
    let halves = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(SEEDS / 2..SEEDS));
        [half(0..SEEDS / 2), other.join().unwrap()]
    });
    // An explorer that explored nothing would be as green.
    assert!(halves.iter().map(|tally| tally.states).sum::<usize>() >= 10_000);
    for tally in halves {
        let Tally { states, operations, syncs, early, dropped } = tally;
        assert!(syncs > operations / 100 && early > states / 50 && dropped > states / 4, "{tally:?}");
    }
}

#[test]
fn with_synchronous_normal_the_same_run_loses_what_was_promised() {
    for seed in 0..4 {
        let failure = explore(seed, 1, 200, true, &mut Tally::default());
        let failure = failure.expect_err("the explorer does not see what NORMAL loses");
        assert!(["lost", "promised", "damaged"].iter().any(|word| failure.contains(word)), "{failure}");
    }
}

const SEEDS: u64 = 10;
const LIVES: usize = 4;
const STATES: usize = 250;
