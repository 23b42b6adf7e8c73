//! The pages of a store as its files hold them, each only if it is whole: from the write-ahead log what its sums prove
//! (SQLite's file format, section 4), from the database what its sums prove.
//!
//! SQLite reads the log up to the first frame whose sum does not hold and takes that for its end. A frame's sum is
//! seeded with that of the frame before, which stands in the file, so what lies behind a damaged frame can be proven as
//! well.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::super::vfs::{self, PAGE, RESERVED};

/// The files of a store, opened for reading.
pub(super) struct Image {
    database: File,
    in_database: u64,
    /// Pages that only the log has, in order.
    in_log: Vec<u64>,
    log: Option<File>,
    /// Where in the log each page's newest whole frame has its content.
    frames: HashMap<u64, u64>,
    /// Overflow pages that are not read.
    avoided: HashSet<u64>,
    is_wary: bool,
}

impl Image {
    /// Opens the database at `path` and the log beside it.
    ///
    /// # Errors
    /// The database cannot be opened, or carries no sums: nothing of it can be proven.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let database = File::open(path)?;
        let in_database = database.metadata()?.len() / PAGE as u64;
        let mut image = Self {
            database,
            in_database,
            in_log: Vec::new(),
            log: None,
            frames: HashMap::new(),
            avoided: HashSet::new(),
            is_wary: false,
        };
        let log = beside(path, "-wal");
        if let Ok(frames) = frames(&log) {
            for frame in frames.into_iter().filter(|frame| frame.is_whole) {
                image.frames.insert(frame.page, frame.at);
            }
            image.in_log = image.frames.keys().copied().filter(|page| *page > in_database).collect();
            image.in_log.sort_unstable();
            image.log = File::open(log).ok();
        }
        let mut page = [0; PAGE];
        let has_sums = (1..=in_database.min(64))
            .any(|number| image.read_database(number, &mut page) && vfs::is_summed(&page));
        if in_database > 0 && !has_sums {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its pages carry no sums"));
        }
        Ok(image)
    }

    /// How many pages there are.
    pub(super) fn count(&self) -> u64 {
        self.in_database + self.in_log.len() as u64
    }

    /// The number of the page at `at` (from 0) among all that there are.
    pub(super) fn number(&self, at: u64) -> u64 {
        let behind = at.checked_sub(self.in_database).and_then(|at| self.in_log.get(at as usize));
        behind.copied().unwrap_or(at + 1)
    }

    /// Reads page `number` (from 1); whether it is whole.
    pub(super) fn read(&self, number: u64, page: &mut [u8; PAGE]) -> bool {
        if let (Some(at), Some(log)) = (self.frames.get(&number), &self.log) {
            return log.read_exact_at(page, *at).is_ok();
        }
        self.read_database(number, page) && vfs::is_sound(number, page)
    }

    /// So many bytes from the overflow page `number` on.
    pub(super) fn overflow(&self, number: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut page = [0; PAGE];
        for number in self.chain(number, length)? {
            if self.avoided.contains(&number) || !self.read(number, &mut page) {
                return None;
            }
            let content = &page[4..PAGE - RESERVED];
            bytes.extend_from_slice(&content[..content.len().min(length - bytes.len())]);
        }
        Some(bytes)
    }

    /// The overflow pages of so many bytes from `number` on. The last one names no other; one that does, or that looks
    /// like a page of the list of free ones where that is not known, has become something else.
    pub(super) fn chain(&self, mut number: u64, length: usize) -> Option<Vec<u64>> {
        let count = length.div_ceil(PAGE - RESERVED - 4);
        let mut chain = Vec::new();
        let mut page = [0; PAGE];
        while chain.len() < count {
            if number == 0 || !self.read(number, &mut page) {
                return None;
            }
            chain.push(number);
            number = u64::from(word(&page, 0));
        }
        let is_trunk = self.is_wary && leaves(&page).all(|leaf| leaf > 0 && leaf <= self.count());
        (number == 0 && !is_trunk).then_some(chain)
    }

    /// It is not known which pages are free: one that looks as if it were is not read as anything else.
    pub(super) fn be_wary(&mut self) {
        self.is_wary = true;
    }

    /// Overflow pages of which it is not known whose they are.
    pub(super) fn avoid(&mut self, pages: HashSet<u64>) {
        self.avoided = pages;
    }

    fn read_database(&self, number: u64, page: &mut [u8; PAGE]) -> bool {
        let at = number.checked_sub(1).map(|before| before * PAGE as u64);
        at.is_some_and(|at| self.database.read_exact_at(page, at).is_ok())
    }
}

/// What stands in the log behind the place where SQLite stops to read it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in super::super) struct Beyond {
    /// The log's length in bytes.
    pub(in super::super) length: u64,
    /// Whether its header is neither whole nor blank. It is flushed before the first frame is written.
    pub(in super::super) is_headless: bool,
    /// Whole commits of the log's present round behind a frame that is not whole.
    pub(in super::super) commits: u64,
    /// Whether more had been committed than the log gives back, as the memory shared by its users knows.
    pub(in super::super) is_short: bool,
}

/// Looks through the log beside the database at `path`. To be done before SQLite opens it, which may write over it.
pub(in super::super) fn beyond(path: &Path) -> Beyond {
    let log = beside(path, "-wal");
    let length = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
    let frames = frames(&log).unwrap_or_default();
    let behind = frames.iter().filter(|frame| frame.is_whole && !frame.is_reached && frame.is_commit);
    let reached = frames.iter().filter(|frame| frame.is_reached).count();
    let is_short = committed(path).is_some_and(|committed| committed > reached);
    let is_headless = Header::read(&log).is_ok_and(|header| !header.is_whole && !header.is_blank);
    Beyond { length, is_headless, commits: behind.count() as u64, is_short }
}

/// How many frames of the log's present round were committed, as the index of the log says (SQLite's "WAL-mode file
/// format", section 2.1). It is written behind each flush of the log, so it never says too much; it outlives a process
/// and seldom a power cut.
fn committed(path: &Path) -> Option<usize> {
    let mut header = [0; HEADER];
    File::open(beside(path, "-wal")).ok()?.read_exact(&mut header).ok()?;
    let mut index = [0; 2 * INDEX_HEADER];
    File::open(beside(path, "-shm")).ok()?.read_exact(&mut index).ok()?;
    let (first, second) = index.split_at(INDEX_HEADER);
    // In the machine's own order of bytes, and there twice: who reads it must not meet half a change.
    let native = |at: usize| first[at..].first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
    let is_whole =
        first == second && sum(cfg!(target_endian = "big"), (0, 0), &first[..40]) == (native(40), native(44));
    let is_of_this_round = first[32..40] == header[16..24] || header == [0; HEADER];
    (is_whole && is_of_this_round).then(|| native(16) as usize)
}

/// One frame of the log's present round.
#[derive(Debug, Clone, Copy)]
struct Frame {
    page: u64,
    /// Where its content begins.
    at: u64,
    is_commit: bool,
    is_whole: bool,
    /// Every frame before it is whole, too.
    is_reached: bool,
}

type Sum = (u32, u32);

fn frames(log: &Path) -> io::Result<Vec<Frame>> {
    let header = Header::read(log)?;
    let known = if header.is_whole { Some((header.salts, header.is_big)) } else { first_proven(log) };
    let Some((salts, is_big)) = known else { return Ok(Vec::new()) };
    let mut file = BufReader::with_capacity(64 * FRAME, File::open(log)?);
    file.seek_relative(HEADER as i64)?;
    let (mut seed, mut is_reached) = (header.sum, header.is_whole);
    let mut frames = Vec::new();
    let mut slot = [0; FRAME];
    let mut number = 0;
    while file.read_exact(&mut slot).is_ok() {
        let said = (word(&slot, 16), word(&slot, 20));
        let is_current = salts == (word(&slot, 8), word(&slot, 12)) && salts != (0, 0);
        let is_whole =
            is_current && sum(is_big, sum(is_big, seed, &slot[..8]), &slot[FRAME - PAGE..]) == said;
        is_reached &= is_whole;
        if is_current {
            frames.push(Frame {
                page: u64::from(word(&slot, 0)),
                at: (HEADER + number * FRAME + FRAME - PAGE) as u64,
                is_commit: word(&slot, 4) != 0,
                is_whole,
                is_reached,
            });
        }
        seed = said;
        number += 1;
    }
    Ok(frames)
}

/// What the log begins with.
#[derive(Debug)]
struct Header {
    is_whole: bool,
    /// Nothing was ever written to it.
    is_blank: bool,
    is_big: bool,
    salts: Sum,
    sum: Sum,
}

impl Header {
    /// A log that is shorter than a header has a blank one.
    fn read(log: &Path) -> io::Result<Self> {
        let mut header = [0; HEADER];
        let mut file = File::open(log)?;
        if file.read_exact(&mut header).is_err() {
            header = [0; HEADER];
        }
        // The lowest bit of the magic number says in which order of bytes the sums are made.
        let is_big = header[..3] == MAGIC && header[3] == 0x83;
        let said = (word(&header, 24), word(&header, 28));
        Ok(Self {
            is_whole: word(&header, 8) == PAGE as u32 && sum(is_big, (0, 0), &header[..24]) == said,
            is_blank: header == [0; HEADER],
            is_big,
            salts: (word(&header, 16), word(&header, 20)),
            sum: said,
        })
    }
}

/// The salts of the first frame that the sum of the one before proves, and whether its sums are big-endian: for a log
/// whose header is damaged.
fn first_proven(log: &Path) -> Option<(Sum, bool)> {
    let mut file = BufReader::with_capacity(64 * FRAME, File::open(log).ok()?);
    file.seek_relative(HEADER as i64).ok()?;
    let mut slot = [0; FRAME];
    let mut seed = None;
    while file.read_exact(&mut slot).is_ok() {
        let (salts, said) = ((word(&slot, 8), word(&slot, 12)), (word(&slot, 16), word(&slot, 20)));
        let follows = |is_big, seed| {
            salts != (0, 0) && sum(is_big, sum(is_big, seed, &slot[..8]), &slot[FRAME - PAGE..]) == said
        };
        let order = seed.and_then(|seed| [false, true].into_iter().find(|is_big| follows(*is_big, seed)));
        if let Some(is_big) = order {
            return Some((salts, is_big));
        }
        seed = Some(said);
    }
    None
}

/// The free pages that a page of their list names (SQLite's file format, section 1.5).
pub(super) fn leaves(trunk: &[u8; PAGE]) -> impl Iterator<Item = u64> {
    let count = (word(trunk, 4) as usize).min(PAGE / 4 - 2);
    (0..count).map(|at| u64::from(word(trunk, 8 + 4 * at)))
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |word| u32::from_be_bytes(*word))
}

/// The log's sum over pairs of words, continued from `seed`.
fn sum(is_big: bool, seed: Sum, bytes: &[u8]) -> Sum {
    let (pairs, _) = bytes.as_chunks::<8>();
    pairs.iter().fold(seed, |(first, second), pair| {
        let [a, b] = [[pair[0], pair[1], pair[2], pair[3]], [pair[4], pair[5], pair[6], pair[7]]]
            .map(|word| if is_big { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) });
        let first = first.wrapping_add(a).wrapping_add(second);
        (first, second.wrapping_add(b).wrapping_add(first))
    })
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

const MAGIC: [u8; 3] = [0x37, 0x7F, 0x06];
const HEADER: usize = 32;
const INDEX_HEADER: usize = 48;
const FRAME: usize = 24 + PAGE;

#[cfg(test)]
mod tests {
    use rusqlite::OpenFlags;

    use super::*;

    /// A log of ten commits, left behind as by a process that was killed.
    fn killed(directory: &Path) -> PathBuf {
        let (live, path) = (directory.join("live.db"), directory.join("a.db"));
        let db = vfs::open(&live, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE).unwrap();
        vfs::reserve(&db).unwrap();
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        db.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY, b BLOB)").unwrap();
        for n in 0..10 {
            db.execute("INSERT INTO t VALUES (?, zeroblob(3000))", [n]).unwrap();
        }
        std::fs::copy(&live, &path).unwrap();
        std::fs::copy(beside(&live, "-wal"), beside(&path, "-wal")).unwrap();
        path
    }

    #[test]
    fn an_undamaged_log_ends_where_sqlite_says() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = killed(directory.path());
        assert_eq!(beyond(&path).commits, 0);
        let frames = frames(&beside(&path, "-wal")).unwrap();
        assert!(frames.iter().all(|frame| frame.is_whole && frame.is_reached) && frames.len() > 20);
        // What a process leaves that was killed while it wrote a frame is no damage.
        let log = std::fs::read(beside(&path, "-wal")).unwrap();
        std::fs::write(beside(&path, "-wal"), &log[..log.len() - 2000]).unwrap();
        assert_eq!(beyond(&path).commits, 0);
    }

    #[test]
    fn behind_a_damaged_frame_the_others_are_proven_and_counted() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = killed(directory.path());
        let log = std::fs::read(beside(&path, "-wal")).unwrap();
        let whole = frames(&beside(&path, "-wal")).unwrap().len();
        for (at, lost) in [
            (HEADER + 3 * FRAME + 1000, 1),
            (HEADER + 3 * FRAME + 17, 2),
            (HEADER + 3 * FRAME + 9, 1),
            (18, 1),
            (26, 1),
        ] {
            let mut damaged = log.clone();
            damaged[at] ^= 16;
            std::fs::write(beside(&path, "-wal"), &damaged).unwrap();
            let found = frames(&beside(&path, "-wal")).unwrap();
            let proven = found.iter().filter(|frame| frame.is_whole).count();
            assert!(proven >= whole - lost, "{at}: {proven} of {whole}");
            assert!(beyond(&path).commits > 5, "{at}: {:?}", beyond(&path));
        }
        // A block at its beginning, whatever stands in it then.
        for filling in [0, 0xFF, 0xA5] {
            let mut damaged = log.clone();
            damaged[..HEADER + 4 * FRAME + 100].fill(filling);
            std::fs::write(beside(&path, "-wal"), &damaged).unwrap();
            let proven =
                frames(&beside(&path, "-wal")).unwrap().iter().filter(|frame| frame.is_whole).count();
            // Of the first one behind it, it is not known what it follows.
            assert_eq!(proven, whole - 6, "{filling:x}");
            assert!(beyond(&path).commits > 5 && beyond(&path).is_headless == (filling != 0));
        }
    }
}
