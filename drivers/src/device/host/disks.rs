//! File systems' space (statvfs(3)) and bytes written to the disks (`/proc/diskstats`): the first wears out a person's
//! patience, the second an SD card.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Part, PartSamples, Rate};
use crate::bus::sysfs::Sysfs;
use crate::channel::{ChannelSpec, name_from};

pub(super) struct Disks {
    sysfs: Sysfs,
    paths: Vec<PathBuf>,
    names: Vec<String>,
    rate: Rate,
    channels: Vec<ChannelSpec>,
}

impl Disks {
    pub(super) fn find(sysfs: &Sysfs, paths: &[PathBuf]) -> Self {
        let mut found: Vec<(u64, PathBuf)> = Vec::new();
        let mut channels = Vec::new();
        for path in paths.iter().take(MOST_PATHS) {
            // Two paths on one file system are one thing.
            let Ok(metadata) = std::fs::metadata(path) else { continue };
            if found.iter().any(|(device, _)| *device == metadata.dev()) || space(path).is_none() {
                continue;
            }
            found.push((metadata.dev(), path.clone()));
            let of = name_from(&path.to_string_lossy()).map_or(String::new(), |name| format!("_{name}"));
            let of = &of[..of.len().min(48)];
            channels.push(
                ChannelSpec::number(format!("disk{of}_used"), "/100")
                    .within(0.0, 100.0)
                    .digits(1)
                    .titled(format!("Disk {} used", path.display())),
            );
            channels.push(
                ChannelSpec::number(format!("disk{of}_free"), "B")
                    .within(0.0, 1e18)
                    .digits(0)
                    .class("data_size")
                    .titled(format!("Disk {} free", path.display())),
            );
        }
        let disks = disks(sysfs);
        if !disks.is_empty() {
            channels.push(ChannelSpec::counter("disk_written", "B").class("data_size"));
            channels.push(
                ChannelSpec::number("disk_write_rate", "B/s").within(0.0, 1e12).digits(0).class("data_rate"),
            );
        }
        let paths = found.into_iter().map(|(_, path)| path).collect();
        Self { sysfs: sysfs.clone(), paths, names: disks, rate: Rate::default(), channels }
    }
}

impl Part for Disks {
    fn channels(&self) -> Vec<ChannelSpec> {
        self.channels.clone()
    }

    fn sample(&mut self, now_ns: u64, out: &mut PartSamples<'_>) {
        for (n, path) in self.paths.iter().enumerate() {
            let space = space(path);
            out.put_or_bad(2 * n, space.map(|(used, _)| used));
            out.put_or_bad(2 * n + 1, space.map(|(_, free)| free));
        }
        if self.names.is_empty() {
            return;
        }
        let written = self.sysfs.text("proc/diskstats").map(|text| written_bytes(&text, &self.names));
        let channel = 2 * self.paths.len();
        out.put_or_bad(channel, written.map(|bytes| bytes as i64));
        if let Some(rate) = written.and_then(|bytes| self.rate.per_second(bytes, now_ns)) {
            out.put(channel + 1, rate);
        }
    }
}

/// Percent used as df(1) counts it, and bytes free for those who are not root.
#[expect(unsafe_code, reason = "std has no statvfs")]
fn space(path: &Path) -> Option<(f64, f64)> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends in a zero byte and `stat` lives here; the call fills it or fails.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } != 0 || stat.f_blocks == 0 {
        return None;
    }
    let used = (stat.f_blocks - stat.f_bfree.min(stat.f_blocks)) as f64;
    let free = stat.f_bavail as f64;
    Some((used / (used + free).max(1.0) * 100.0, free * stat.f_frsize as f64))
}

/// The whole disks that hold data: no partitions, no loops, no memory.
fn disks(sysfs: &Sysfs) -> Vec<String> {
    let text = sysfs.text("proc/diskstats").unwrap_or_default();
    let names = text.lines().filter_map(|line| line.split_whitespace().nth(2));
    let is_disk = |name: &&str| {
        !["loop", "ram", "zram", "sr", "dm-", "md"].iter().any(|other| name.starts_with(other))
            && sysfs.path(&format!("sys/block/{name}")).exists()
    };
    names.filter(is_disk).map(str::to_owned).collect()
}

/// Sectors written are the seventh number behind the name, of 512 bytes whatever the disk's own are (Linux
/// `Documentation/admin-guide/iostats.rst`).
fn written_bytes(diskstats: &str, disks: &[String]) -> u64 {
    let mut sectors = 0_u64;
    for line in diskstats.lines() {
        let mut words = line.split_whitespace().skip(2);
        if words.next().is_some_and(|name| disks.iter().any(|disk| disk == name)) {
            sectors = sectors.saturating_add(words.nth(6).and_then(|n| n.parse().ok()).unwrap_or(0));
        }
    }
    sectors.saturating_mul(512)
}

const MOST_PATHS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_written_are_summed_over_the_disks() {
        let text = " 254 0 vda 67029 15537 10369922 45434 49084 53961 6616544 15167 0 11624 62110\n 254 1 vda1 1 1 1 1 1 1 9 1\n 8 0 sda 0 0 0 0 0 0 2 0\n";
        assert_eq!(written_bytes(text, &["vda".to_owned(), "sda".to_owned()]), (6_616_544 + 2) * 512);
    }
}
