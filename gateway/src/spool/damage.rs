//! A database that is damaged never stops the gateway: it is set aside, a new one begun with what the old one still
//! holds, the loss recorded.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use log::{error, warn};

use super::progress::Progress;
use super::salvage::{self, Beginning, Remains};
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

/// What a running gateway knows of a store that broke.
pub(super) struct Known {
    pub(super) epoch: u64,
    /// The last place that was given out.
    pub(super) last: Seq,
    pub(super) progress: Arc<HashMap<String, Progress>>,
}

/// Opens the store; if it is damaged, sets it aside and begins a new one with what the old one still holds. Goes on
/// with that where an earlier start was cut short.
pub(super) fn open_or_quarantine(
    directory: &Path,
    options: &Options,
    clock: Clock,
) -> Result<(Store, Option<Damage>), StoreError> {
    let opened = match salvage::marked(directory) {
        Some(kept_as) => {
            set_aside(directory, &kept_as)?;
            begin_anew(directory, options, clock, kept_as, None)
                .map(|(store, damage)| (store, Some(Damage { what: "found earlier".into(), ..damage })))
        }
        None => Store::open(directory, options, clock, &Beginning::default()).map(|store| (store, None)),
    };
    match opened {
        Err(error) if error.is_damage() => {
            error!("the spool is damaged: {error}");
            salvage::unmark(directory);
            let (store, mut damage) = quarantine(directory, options, clock, None)?;
            damage.what = error.to_string();
            Ok((store, Some(damage)))
        }
        opened => opened,
    }
}

/// Renames the damaged files and begins a new store with what is left of them, behind every place that the old one gave
/// out.
pub(super) fn quarantine(
    directory: &Path,
    options: &Options,
    clock: Clock,
    known: Option<Known>,
) -> Result<(Store, Damage), StoreError> {
    let kept_as = free_name(directory);
    if let Err(error) = salvage::mark(directory, &kept_as) {
        // On a full disk, for one. A power cut before all is taken over then loses the rest.
        warn!("what is being mended is not noted: {error}");
    }
    set_aside(directory, &kept_as)?;
    begin_anew(directory, options, clock, kept_as, known)
}

/// Renames the files of a damaged store, as far as that is not done. The database itself is the last: as long as it is
/// not renamed, no other stands in its place.
fn set_aside(directory: &Path, kept_as: &Path) -> Result<(), StoreError> {
    if kept_as.exists() {
        return Ok(());
    }
    let path = store_path(directory);
    for suffix in ["-shm", "-wal", ""] {
        let (from, to) = (with_suffix(&path, suffix), with_suffix(kept_as, suffix));
        if let Err(error) = fs::rename(&from, &to)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(StoreError::Directory { path: from, error });
        }
    }
    salvage::sync(directory).map_err(|error| StoreError::Directory { path: directory.to_owned(), error })
}

fn begin_anew(
    directory: &Path,
    options: &Options,
    clock: Clock,
    kept_as: PathBuf,
    known: Option<Known>,
) -> Result<(Store, Damage), StoreError> {
    forget_older(directory, &kept_as);
    let patience = if known.is_some() { salvage::SHORT_PATIENCE } else { salvage::PATIENCE };
    let until = Instant::now() + patience;
    let mut remains = Remains::open(&kept_as);
    remains.look(until);
    let (epoch, last) = (known.as_ref().map(|known| known.epoch), known.as_ref().map(|known| known.last));
    let beginning = remains.beginning(epoch, last);
    let mut store = Store::open(directory, options, clock, &beginning)?;
    if let Some(known) = known {
        let progress = known.progress.iter().map(|(uplink, progress)| (uplink.clone(), progress.clone()));
        store.commit(&Batch { progress: progress.collect(), ..Batch::default() })?;
    }
    store.begin_remains(remains)?;
    match store.take_over_remains(until) {
        Err(error) if error.is_full() => store.give_up_remains()?,
        taken => drop(taken?),
    }
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
