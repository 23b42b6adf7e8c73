//! A database that is damaged never stops the gateway: it is set aside, a new one begun, the loss recorded.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use log::{error, warn};
use rusqlite::{Connection, OpenFlags};

use super::entry::{Gap, GapReason};
use super::store::{Batch, Store, StoreError};
use super::{Options, Seq, store_path};
use crate::clock::Clock;

/// What was found damaged, and where it is kept.
#[derive(Debug, Clone)]
pub struct Damage {
    /// The damaged database's new name.
    pub kept_as: PathBuf,
    /// What SQLite said, where it was found at start.
    pub what: String,
}

/// Opens the store; if it is damaged, sets it aside and begins a new one.
pub(super) fn open_or_quarantine(
    directory: &Path,
    options: &Options,
    clock: Clock,
) -> Result<(Store, Option<Damage>), StoreError> {
    match Store::open(directory, options, clock, Seq(0)) {
        Ok(store) => Ok((store, None)),
        Err(error) if error.is_damage() => {
            error!("the spool is damaged: {error}");
            let (store, mut damage) = quarantine(directory, options, clock, None)?;
            damage.what = error.to_string();
            Ok((store, Some(damage)))
        }
        Err(error) => Err(error),
    }
}

/// Renames the damaged files and begins a new store behind every place that the old one gave out. The loss is the
/// new store's first entry.
pub(super) fn quarantine(
    directory: &Path,
    options: &Options,
    clock: Clock,
    last: Option<Seq>,
) -> Result<(Store, Damage), StoreError> {
    let path = store_path(directory);
    let (oldest, newest) = last_places(&path);
    let newest = last.max(newest);
    let kept_as = free_name(directory);
    for suffix in ["", "-wal", "-shm"] {
        let (from, to) = (with_suffix(&path, suffix), with_suffix(&kept_as, suffix));
        if let Err(error) = fs::rename(&from, &to)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(StoreError::Directory { path: from, error });
        }
    }
    forget_older(directory, &kept_as);
    // A step beyond the last place known: entries may have been committed that can no longer be read.
    let base = newest.map_or_else(random_base, |newest| Seq((newest.0 / STEP + 2) * STEP));
    let mut store = Store::open(directory, options, clock, base)?;
    let from_seq = oldest.map(|seq| seq.0);
    let to_seq = newest.map(|seq| seq.0);
    let count = from_seq.zip(to_seq).map(|(from, to)| to + 1 - from.min(to));
    let gap = Gap { from_seq, to_seq, count, reason: GapReason::Damage };
    store.commit(&Batch { lost: vec![gap], ..Batch::default() })?;
    Ok((store, Damage { kept_as, what: String::new() }))
}

/// Room held back on the disk, so that a full one can still be put in order: SQLite needs space even to delete.
pub(super) struct Ballast {
    path: PathBuf,
}

impl Ballast {
    /// Bytes held back.
    pub(super) const SIZE: u64 = 8 << 20;

    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join("ballast") }
    }

    /// Takes the room again once there is plenty; whether it is held now. A spool smaller than four times the ballast
    /// does without.
    pub(super) fn fill(&mut self, max_size: u64) -> bool {
        if max_size < 4 * Self::SIZE || self.path.exists() {
            return true;
        }
        let fill = || {
            let file = File::create(&self.path)?;
            // Real blocks: a sparse file would hold nothing back.
            allocate(&file, Self::SIZE)
        };
        let is_filled = fill().is_ok();
        if !is_filled {
            let _ = fs::remove_file(&self.path);
        }
        is_filled
    }

    /// Gives the room free; whether there was any.
    pub(super) fn release(&mut self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }
}

#[expect(unsafe_code, reason = "posix_fallocate(3) has no wrapper in std")]
fn allocate(file: &File, length: u64) -> std::io::Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the descriptor is open for the length of the call.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length as libc::off_t) } {
        0 => Ok(()),
        code => Err(std::io::Error::from_raw_os_error(code)),
    }
}

/// The first and last place in a damaged database, as far as it can still be read.
fn last_places(path: &Path) -> (Option<Seq>, Option<Seq>) {
    let Ok(db) = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY) else {
        return (None, None);
    };
    let read = |sql: &str| -> Option<i64> { db.query_row(sql, [], |row| row.get(0)).ok() };
    let oldest = read("SELECT min(first) FROM part");
    let newest = read("SELECT max(first) FROM part").map(|first| {
        let id = read("SELECT max(id) FROM part").unwrap_or_default();
        read(&format!("SELECT max(seq) FROM r_{id}")).unwrap_or(first).max(first)
    });
    let place =
        |seq: Option<i64>| seq.and_then(|seq| u64::try_from(seq).ok()).filter(|seq| *seq < MAX_SEQ).map(Seq);
    (place(oldest), place(newest))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn free_name(directory: &Path) -> PathBuf {
    let mut number = 1;
    loop {
        let path = directory.join(format!("spool.db.damaged-{number}"));
        if !path.exists() {
            return path;
        }
        number += 1;
    }
}

/// Keeps the newest damaged database and one before it; a disk that damages often must not fill with remains.
fn forget_older(directory: &Path, newest: &Path) {
    let mut kept: Vec<(std::time::SystemTime, PathBuf)> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with("spool.db.damaged-") && !name.ends_with("-wal") && !name.ends_with("-shm")
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .filter(|(_, path)| path != newest)
        .collect();
    kept.sort();
    kept.pop();
    for (_, path) in kept {
        warn!("an older damaged spool is deleted: {}", path.display());
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(with_suffix(&path, suffix));
        }
    }
}

/// Nothing of the old places is known: far away from any of them, and still exact in JSON.
fn random_base() -> Seq {
    let mut bytes = [0; 8];
    let _ =
        File::open("/dev/urandom").and_then(|mut random| std::io::Read::read_exact(&mut random, &mut bytes));
    Seq((u64::from_le_bytes(bytes) >> 20) / STEP * STEP + STEP)
}

/// New stores begin at a multiple of this.
const STEP: u64 = 1_000_000;
/// 2⁵³: what JSON readers hold exactly.
const MAX_SEQ: u64 = 1 << 53;
