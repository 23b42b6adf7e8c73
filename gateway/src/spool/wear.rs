//! What the spool costs the disk, and the log that is grown beforehand so that a commit costs one flush.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::Path;

/// Bytes that the calling thread caused to be written to a disk since it started, as the kernel counts them when pages
/// become dirty (`/proc/thread-self/io`, proc(5)). A file system in memory counts as none.
pub(super) fn written_by_this_thread() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or_default()
}

/// Makes the write-ahead log beside the database at least `length` bytes long, with zeros behind what is in it.
///
/// A file that grows costs a second flush with each commit, for the file system's own journal; one that is overwritten
/// does not. Blocks that are only reserved do not help: they change their state when they are first written. SQLite
/// reads frames up to the first one whose checksum does not hold, and zeros never do (its file format, section 4).
pub(super) fn grow_log(log: &Path, length: u64) -> io::Result<()> {
    let mut file = File::options().write(true).open(log)?;
    let mut at = file.metadata()?.len();
    if at >= length {
        return Ok(());
    }
    file.seek(SeekFrom::Start(at))?;
    let zeros = vec![0; 64 << 10];
    #[cfg(test)]
    let recorder = super::crash::Recorder::of(log);
    while at < length {
        let part = (length - at).min(zeros.len() as u64);
        file.write_all(&zeros[..part as usize])?;
        #[cfg(test)]
        if let Some(recorder) = &recorder {
            recorder.wrote(at as usize, &zeros[..part as usize]);
        }
        at += part;
    }
    #[cfg(test)]
    if let Some(recorder) = recorder {
        recorder.synced();
    }
    file.sync_all()
}
