//! Where things lie: the state, and the socket through which the CLI reaches the running gateway.

use std::env;
use std::path::{Path, PathBuf};

/// The state directory: the one the user named, else systemd's `$STATE_DIRECTORY`, else the XDG state directory.
///
/// # Errors
/// There is neither of them nor a home.
pub fn state_directory(chosen: Option<&Path>) -> Result<PathBuf, String> {
    chosen
        .map(Path::to_owned)
        .or_else(|| set("STATE_DIRECTORY"))
        .or_else(default_state_directory)
        .ok_or_else(|| "no state directory: set STATE_DIRECTORY or HOME, or give --state-dir".to_owned())
}

/// Where the running gateway puts its control socket.
pub fn control_socket(chosen: Option<&Path>, state: &Path) -> PathBuf {
    let directory =
        chosen.map(Path::to_owned).or_else(|| set("RUNTIME_DIRECTORY")).or_else(user_runtime_directory);
    directory.unwrap_or_else(|| state.to_owned()).join(SOCKET)
}

/// Where the CLI looks for the control socket, first match first.
pub fn control_sockets(chosen: Option<&Path>) -> Vec<PathBuf> {
    if let Some(chosen) = chosen {
        return vec![chosen.join(SOCKET)];
    }
    let directories = [
        set("RUNTIME_DIRECTORY"),
        Some("/run/tidegate".into()),
        user_runtime_directory(),
        state_directory(None).ok(),
    ];
    directories.into_iter().flatten().map(|directory| directory.join(SOCKET)).collect()
}

fn default_state_directory() -> Option<PathBuf> {
    set("XDG_STATE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("tidegate"))
}

fn user_runtime_directory() -> Option<PathBuf> {
    set("XDG_RUNTIME_DIR").map(|directory| directory.join("tidegate"))
}

fn set(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

const SOCKET: &str = "control.sock";
