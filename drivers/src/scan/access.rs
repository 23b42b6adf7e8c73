//! Whether this process may use a device node, and what to do if not.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::bus::sysfs::Sysfs;

/// Why we may not read and write `node`, asked without opening it (opening a serial port moves its control lines).
/// `usual_group` is who has it on Raspberry Pi OS and Debian.
pub(super) fn problem(sysfs: &Sysfs, node: &Path, usual_group: &str) -> Option<String> {
    (!may_use(node)).then(|| no_permission(sysfs, node, usual_group))
}

/// What to do about a node that we may not use.
pub(super) fn no_permission(sysfs: &Sysfs, node: &Path, usual_group: &str) -> String {
    let owner = std::fs::metadata(node).map(|node| (node.gid(), node.mode())).ok();
    advice(owner, &sysfs.text("etc/group").unwrap_or_default(), usual_group)
}

/// `owner` is the node's group and mode, `groups` the text of `/etc/group`.
fn advice(owner: Option<(u32, u32)>, groups: &str, usual_group: &str) -> String {
    let group = owner.filter(|(gid, mode)| *gid != 0 && mode & 0o060 == 0o060).and_then(|(gid, _)| {
        let is_it = |line: &&str| line.split(':').nth(2) == Some(gid.to_string().as_str());
        groups.lines().find(is_it)?.split(':').next()
    });
    match group {
        Some(group) => format!(
            "no permission: add yourself to group {group} (`sudo usermod -aG {group} $USER`) and log in again"
        ),
        None => {
            format!("no permission: only root may use it; give it to group {usual_group} with a udev rule")
        }
    }
}

#[expect(unsafe_code, reason = "std offers no way to ask for access without opening")]
fn may_use(node: &Path) -> bool {
    let Ok(path) = CString::new(node.as_os_str().as_bytes()) else { return false };
    // SAFETY: the path ends in NUL and lives through the call, which only reads it.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::R_OK | libc::W_OK, libc::AT_EACCESS) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_the_nodes_own() {
        let groups = "root:x:0:\ndialout:x:20:pi\ni2c:x:998:\n";
        assert!(advice(Some((998, 0o020_660)), groups, "i2c").contains("usermod -aG i2c $USER"));
        assert!(advice(Some((20, 0o020_660)), groups, "tty").contains("usermod -aG dialout $USER"));
        for owner in [Some((0, 0o020_660)), Some((998, 0o020_600)), Some((7, 0o020_660)), None] {
            assert!(advice(owner, groups, "i2c").contains("only root may use it"), "{owner:?}");
        }
    }

    #[test]
    fn what_may_be_used_is_no_problem() {
        let sysfs = Sysfs::new("/");
        assert_eq!(problem(&sysfs, Path::new("/dev/null"), "i2c"), None);
        assert!(problem(&sysfs, Path::new("/dev/nonexistent\0"), "i2c").is_some());
    }
}
