//! What is written to a watched directory, in order, so that [`super::disk`] can rebuild what a power cut would have
//! left. Directories that are not watched are not recorded. The shared memory beside a WAL is no disk and is not
//! recorded either.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::Log;

/// A directory whose writes are recorded, for as long as this is held.
pub(super) struct Watched {
    directory: PathBuf,
    log: Arc<Mutex<Log>>,
}

impl Watched {
    /// Records what SQLite writes in `directory` from now on, to files opened from now on. With `is_normal`,
    /// connections there run with `synchronous=NORMAL` whatever they ask for.
    pub(super) fn new(directory: &Path, is_normal: bool) -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        watched().push(Entry { directory: directory.to_owned(), log: log.clone(), is_normal });
        Self { directory: directory.to_owned(), log }
    }

    /// How many operations have been recorded: a moment to cut the power at.
    pub(super) fn now(&self) -> usize {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Everything recorded so far; later writes are no longer in it.
    pub(super) fn take(&self) -> Log {
        std::mem::take(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        watched().retain(|entry| entry.directory != self.directory);
    }
}

struct Entry {
    directory: PathBuf,
    log: Arc<Mutex<Log>>,
    is_normal: bool,
}

fn watched() -> MutexGuard<'static, Vec<Entry>> {
    static WATCHED: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes down what happens to one file.
pub(in super::super) struct Recorder {
    log: Arc<Mutex<Log>>,
    file: usize,
    /// Whether `synchronous` is kept at NORMAL.
    pub(in super::super) is_normal: bool,
}

impl Recorder {
    /// Who records what happens to the file at `path`, if somebody watches it.
    pub(in super::super) fn of(path: &Path) -> Option<Self> {
        let watched = watched();
        let entry = watched.iter().find(|entry| path.parent() == Some(&entry.directory))?;
        let name = path.file_name()?.to_str()?;
        let file = entry.log.lock().unwrap_or_else(PoisonError::into_inner).file(name);
        Some(Self { log: entry.log.clone(), file, is_normal: entry.is_normal })
    }

    pub(in super::super) fn wrote(&self, at: usize, data: &[u8]) {
        self.log().write(self.file, at, data);
    }

    pub(in super::super) fn truncated(&self, size: usize) {
        self.log().truncate(self.file, size);
    }

    pub(in super::super) fn synced(&self) {
        self.log().sync(self.file);
    }

    pub(in super::super) fn deleted(&self, is_synced: bool) {
        self.log().delete(self.file, is_synced);
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
