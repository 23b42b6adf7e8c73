//! What was written, in order, and what a power cut at any moment may have left of it.
//!
//! The model of a disk: what a file held at its last sync is there. Of everything written since, any part may be
//! there: all of it, none, a beginning, an end, any writes out of order, any sectors of them. Each file is on its own:
//! syncing one says nothing of another. A file that was never synced may not exist. A deletion is there when its
//! directory was synced, else perhaps.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;

use super::Random;

/// Everything that was done to the files of one directory.
#[derive(Default)]
pub(super) struct Log {
    names: Vec<String>,
    operations: Vec<Operation>,
    /// What was written; operations say where in here.
    bytes: Vec<u8>,
}

#[derive(Clone)]
enum Operation {
    Write { file: usize, at: usize, bytes: Range<usize> },
    Truncate { file: usize, size: usize },
    Sync { file: usize },
    Delete { file: usize, is_synced: bool },
}

impl Log {
    /// The number of the file with that name.
    pub(super) fn file(&mut self, name: &str) -> usize {
        self.names.iter().position(|have| have == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        })
    }

    pub(super) fn len(&self) -> usize {
        self.operations.len()
    }

    /// How many syncs there are, to see that the machine did what it promises.
    pub(super) fn syncs(&self) -> usize {
        self.operations.iter().filter(|operation| matches!(operation, Operation::Sync { .. })).count()
    }

    pub(super) fn write(&mut self, file: usize, at: usize, data: &[u8]) {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(data);
        self.operations.push(Operation::Write { file, at, bytes: begin..self.bytes.len() });
    }

    pub(super) fn truncate(&mut self, file: usize, size: usize) {
        self.operations.push(Operation::Truncate { file, size });
    }

    pub(super) fn sync(&mut self, file: usize) {
        self.operations.push(Operation::Sync { file });
    }

    pub(super) fn delete(&mut self, file: usize, is_synced: bool) {
        self.operations.push(Operation::Delete { file, is_synced });
    }
}

/// The disk as it goes through a log, with what is safe and what is not yet.
pub(super) struct Disk<'a> {
    log: &'a Log,
    at: usize,
    files: Vec<Medium>,
}

/// One file: what its last sync made safe, and the operations since.
#[derive(Clone, Default)]
struct Medium {
    safe: Option<Vec<u8>>,
    pending: Vec<usize>,
}

impl<'a> Disk<'a> {
    /// The disk before the first operation; `directory` holds the files as they were then, all of them safe.
    pub(super) fn new(log: &'a Log, directory: &Path) -> Self {
        let safe = |name: &String| Medium { safe: fs::read(directory.join(name)).ok(), pending: Vec::new() };
        Self { log, at: 0, files: log.names.iter().map(safe).collect() }
    }

    /// Goes on to just before operation `to`.
    pub(super) fn advance(&mut self, to: usize) {
        while self.at < to {
            match &self.log.operations[self.at] {
                Operation::Write { file, .. } | Operation::Truncate { file, .. } => {
                    self.files[*file].pending.push(self.at);
                }
                Operation::Sync { file } => {
                    let medium = &mut self.files[*file];
                    let mut image = medium.safe.take().unwrap_or_default();
                    for operation in medium.pending.drain(..) {
                        apply(self.log, operation, &mut image, |_| true);
                    }
                    medium.safe = Some(image);
                }
                // One that is not synced is decided when the power is cut; the file may be written anew before.
                Operation::Delete { file, is_synced: true } => self.files[*file] = Medium::default(),
                Operation::Delete { file, is_synced: false } => self.files[*file].pending.push(self.at),
            }
            self.at += 1;
        }
    }

    /// Cuts the power now and leaves in `directory` what is left, and nothing else. Returns how each file was left, for
    /// people.
    pub(super) fn cut(&self, random: &mut Random, directory: &Path) -> String {
        let mut told = String::new();
        let mut kept = Vec::new();
        for (name, medium) in self.log.names.iter().zip(&self.files) {
            let remains = Remains::choose(random, medium.pending.len());
            if let Some(image) = self.left(medium, &remains, random) {
                overwrite(&directory.join(name), &image).expect("there is room for a disk");
                kept.push(name);
            }
            let _ = write!(told, "{name}: {} unsynced, {remains:?}; ", medium.pending.len());
        }
        for file in fs::read_dir(directory).expect("the directory is there").flatten() {
            if !kept.iter().any(|name| file.file_name() == name.as_str()) {
                let _ = fs::remove_file(file.path());
            }
        }
        told
    }

    fn left(&self, medium: &Medium, remains: &Remains, random: &mut Random) -> Option<Vec<u8>> {
        let mut image = medium.safe.clone();
        for (number, operation) in medium.pending.iter().enumerate() {
            let is_whole = match remains {
                Remains::Nothing => break,
                Remains::Everything | Remains::Sectors(_) => true,
                Remains::Beginning { whole, .. } => number <= *whole,
                Remains::End { from } => number >= *from,
                Remains::Some => random.below(2) == 0,
            };
            if !is_whole {
                continue;
            }
            if let Operation::Delete { .. } = self.log.operations[*operation] {
                if *remains == Remains::Everything || random.below(2) == 0 {
                    image = None;
                }
                continue;
            }
            let sector = match remains {
                Remains::Sectors(size) => Some(*size),
                Remains::Beginning { whole, sector } if number == *whole => Some(*sector),
                _ => None,
            };
            match sector {
                None => apply(self.log, *operation, image.get_or_insert_default(), |_| true),
                Some(size) => {
                    let salt = random.below(u64::MAX);
                    // One decision per sector of the file and write, however the write lies across sectors.
                    let is_kept = |at: usize| Random::new(salt ^ (at / size) as u64).below(2) == 0;
                    apply(self.log, *operation, image.get_or_insert_default(), is_kept);
                }
            }
        }
        image
    }
}

/// What is left of the writes that no sync has covered.
#[derive(Debug, PartialEq)]
enum Remains {
    /// None of them.
    Nothing,
    /// All: the process was killed, the machine was not.
    Everything,
    /// The first ones, the last of them torn.
    Beginning { whole: usize, sector: usize },
    /// The last ones without those before.
    End { from: usize },
    /// Any of them.
    Some,
    /// Any sectors of any of them.
    Sectors(usize),
}

impl Remains {
    fn choose(random: &mut Random, pending: usize) -> Self {
        let any = |random: &mut Random| random.below(pending.max(1) as u64) as usize;
        let sector = if random.below(2) == 0 { 512 } else { 4096 };
        match random.below(6) {
            0 => Self::Nothing,
            1 => Self::Everything,
            2 => Self::Beginning { whole: any(random), sector },
            3 => Self::End { from: any(random) },
            4 => Self::Some,
            _ => Self::Sectors(sector),
        }
    }
}

/// Writes into the file that is there, which costs far less than a new one: there are thousands of disks.
fn overwrite(path: &Path, image: &[u8]) -> std::io::Result<()> {
    let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
    file.write_all(image)?;
    file.set_len(image.len() as u64)
}

/// Does an operation to `image`, of a write those bytes whose place `is_kept`.
fn apply(log: &Log, operation: usize, image: &mut Vec<u8>, is_kept: impl Fn(usize) -> bool) {
    match &log.operations[operation] {
        Operation::Write { at, bytes, .. } => {
            let data = &log.bytes[bytes.clone()];
            if image.len() < at + data.len() {
                // The file is as long as its last written byte; what was not written reads as zeros.
                image.resize(at + data.len(), 0);
            }
            let mut from = 0;
            while from < data.len() {
                // Pieces end where a sector of the smallest size ends.
                let piece = (512 - (at + from) % 512).min(data.len() - from);
                if is_kept(at + from) {
                    image[at + from..at + from + piece].copy_from_slice(&data[from..from + piece]);
                }
                from += piece;
            }
        }
        Operation::Truncate { size, .. } => image.resize(*size, 0),
        Operation::Sync { .. } | Operation::Delete { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_is_always_left_and_what_was_not_may_be_torn() {
        let mut log = Log::default();
        let file = log.file("a");
        log.write(file, 0, &[1; 2048]);
        log.sync(file);
        log.write(file, 1024, &[2; 2048]);
        let empty = tempfile::TempDir::new().unwrap();
        let mut disk = Disk::new(&log, empty.path());
        disk.advance(log.len());
        let mut seen = std::collections::HashSet::new();
        for seed in 0..200 {
            let left = tempfile::TempDir::new().unwrap();
            disk.cut(&mut Random::new(seed), left.path());
            let image = fs::read(left.path().join("a")).unwrap();
            assert!(image.len() >= 2048 && image[..1024].iter().all(|byte| *byte == 1));
            for sector in image[1024..].chunks(512) {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "torn within a sector");
            }
            seen.insert(image);
        }
        assert!(seen.len() > 8, "only {} different disks", seen.len());
    }

    #[test]
    fn before_the_first_sync_a_file_may_be_missing() {
        let mut log = Log::default();
        let file = log.file("a");
        log.write(file, 0, &[1; 10]);
        let empty = tempfile::TempDir::new().unwrap();
        let mut disk = Disk::new(&log, empty.path());
        disk.advance(log.len());
        let is_there = |seed| {
            let left = tempfile::TempDir::new().unwrap();
            disk.cut(&mut Random::new(seed), left.path());
            left.path().join("a").exists()
        };
        assert!((0..20).any(is_there) && !(0..20).all(is_there));
    }
}
