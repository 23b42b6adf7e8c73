//! A directory of a test's own, kept when the test fails.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::{fs, thread};

/// A new directory under the temporary directory; removed when dropped, kept and named when the test is failing.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one; `name` is part of its path.
    pub fn new(name: &str) -> Self {
        let path = tempfile::Builder::new()
            .prefix(&format!("tidegate-{name}-"))
            .tempdir()
            .expect("the temporary directory is writable")
            .keep();
        Self { path }
    }

    /// Writes a file in it and returns the file's path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, content).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        path
    }

    /// Makes a directory in it and returns its path.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("cannot create {}: {e}", path.display()));
        path
    }
}

impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("kept for you: {}", self.path.display());
        } else {
            // What cannot be removed lies in the temporary directory and harms nobody.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
