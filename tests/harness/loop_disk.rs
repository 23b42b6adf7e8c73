//! A disk of a test's own: an ext4 file system on a loop device, with the kernel's counters of what reached the device.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A mounted file system that goes when this is dropped, and also when the process ends in any other way: a keeper
/// holds it until the pipe from here is closed.
#[derive(Debug)]
pub struct LoopDisk {
    keeper: Child,
    root: PathBuf,
    stat: PathBuf,
}

/// What has reached the device since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wear {
    /// Bytes written, the file system's journal included.
    pub bytes: u64,
    /// Requests to make what was written last.
    pub flushes: u64,
}

impl LoopDisk {
    /// Makes one of `megabytes`, with blocks of 4 kB as on a card. The image lies in memory where that is offered.
    ///
    /// # Errors
    /// What is missing: it takes root, loop devices, `mkfs.ext4` (e2fsprogs) and `mount`.
    pub fn new(megabytes: u64) -> Result<Self, String> {
        let mut prefix = tempfile::Builder::new();
        let prefix = prefix.prefix("tidegate-disk-");
        let directory = prefix.tempdir_in("/dev/shm").or_else(|_| prefix.tempdir());
        let directory = directory.map_err(|e| format!("no directory for the image: {e}"))?.keep();
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh"])
            .arg(&directory)
            .arg(format!("{megabytes}M"))
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A signal to the terminal's group is not for the keeper: it has to clean up.
            .process_group(0)
            .spawn()
            .map_err(|e| format!("sh cannot be started: {e}"))?;
        let mut line = String::new();
        let output = keeper.stdout.take().expect("piped");
        let _ = BufReader::new(output).read_line(&mut line);
        if line.trim() != "mounted" {
            let mut words = String::new();
            let _ = keeper.stderr.take().expect("piped").read_to_string(&mut words);
            let _ = keeper.wait();
            return Err(format!(
                "an ext4 file system on a loop device takes root, loop devices, mkfs.ext4 (e2fsprogs) and mount: {}",
                words.trim().replace('\n', "; ")
            ));
        }
        let root = directory.join("root");
        let device = fs::metadata(&root).map_err(|e| format!("{}: {e}", root.display()))?.dev();
        let stat =
            PathBuf::from(format!("/sys/dev/block/{}:{}/stat", libc::major(device), libc::minor(device)));
        let disk = Self { keeper, root, stat };
        if !disk.stat.is_file() {
            return Err(format!("{} is not there", disk.stat.display()));
        }
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What has reached the device once everything that was written is on its way there.
    ///
    /// # Panics
    /// When the kernel does not say.
    pub fn wear(&self) -> Wear {
        let status = Command::new("sync").arg("-f").arg(&self.root).status();
        assert!(status.is_ok_and(|status| status.success()), "sync -f {}", self.root.display());
        let text = fs::read_to_string(&self.stat).unwrap_or_else(|e| panic!("{}: {e}", self.stat.display()));
        parse_stat(&text).unwrap_or_else(|| panic!("{} is not what it was: {text}", self.stat.display()))
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Sectors written are the seventh figure and flush requests the sixteenth (`Documentation/block/stat.rst`).
fn parse_stat(text: &str) -> Option<Wear> {
    let figures: Vec<u64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
    Some(Wear { bytes: figures.get(6)? * SECTOR, flushes: *figures.get(15)? })
}

/// Sectors are counted in this size whatever the device's is.
const SECTOR: u64 = 512;

/// `$1` is the directory of the image and the mount, `$2` the size. Everything is initialised at once, so that the
/// kernel writes nothing later that nobody asked for. The loop device goes with the mount.
const KEEPER: &str = r#"
trap '' INT HUP TERM
clean_up() {
    umount "$1/root" 2>/dev/null || umount -l "$1/root" 2>/dev/null
    rm -f "$1/image"
    rmdir "$1/root" "$1" 2>/dev/null
}
mkdir "$1/root" && truncate -s "$2" "$1/image" &&
    mkfs.ext4 -q -F -b 4096 -m 0 -E lazy_itable_init=0,lazy_journal_init=0 "$1/image" &&
    mount -o loop "$1/image" "$1/root" || { clean_up "$1"; exit 1; }
echo mounted
cat >/dev/null
clean_up "$1"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_found_in_their_places() {
        let text = "  59  0  2110  14  302  304  1812  5  0  8  23  0  0  0  0  201  3\n";
        assert_eq!(parse_stat(text), Some(Wear { bytes: 1812 * 512, flushes: 201 }));
        assert_eq!(parse_stat("1 2 3"), None);
    }
}
