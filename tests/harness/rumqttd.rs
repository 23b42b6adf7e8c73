//! rumqttd as a second broker to be measured against: many messages per wake-up, nothing on disk.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::{Port, Process, Scratch, workspace};

/// A broker with a port for MQTT 3.1.1 and another for 5.0: it does not tell them apart by itself.
#[derive(Debug)]
pub struct Rumqttd {
    v4: Port,
    v5: Port,
    // Declared before the directory its log is in, so that it ends before the directory goes.
    process: Process,
    _scratch: Scratch,
}

/// The program that is rumqttd and rumqttc, built from `tests/rumqtt`.
///
/// # Panics
/// When it is missing.
pub fn rumqtt() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let path = target.join("rumqtt/release/rumqtt");
    assert!(path.is_file(), "missing peer: no {}; `tests/run tools` builds it", path.display());
    path
}

impl Rumqttd {
    /// Starts one and waits until it can be connected to.
    pub fn start() -> Self {
        let scratch = Scratch::new("rumqttd");
        let (v4, v5) = (Port::reserve(), Port::reserve());
        let mut command = Command::new(rumqtt());
        command.args(["broker", &v4.to_string(), &v5.to_string()]);
        let process = Process::start("rumqttd", &scratch, command);
        process.wait_for_line("ready", Duration::from_secs(20));
        Self { v4, v5, process, _scratch: scratch }
    }

    /// Where it speaks MQTT 3.1.1, and only that.
    pub fn address(&self) -> SocketAddr {
        self.v4.address()
    }

    /// Where it speaks MQTT 5.0, and only that.
    pub fn v5(&self) -> SocketAddr {
        self.v5.address()
    }

    /// The running process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}
