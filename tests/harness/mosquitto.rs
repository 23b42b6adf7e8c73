//! Eclipse Mosquitto as the broker on the far side, and as the one Tidegate is measured against.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use crate::{Port, Process, Scratch, tool};

/// A broker with its own port, configuration and data directory.
#[derive(Debug)]
pub struct Mosquitto {
    scratch: Scratch,
    port: Port,
    process: Option<Process>,
}

/// What a test may want to change.
#[derive(Debug, Clone, Default)]
pub struct MosquittoConfig {
    /// Keep sessions, queues and retained messages on disk: written at a graceful stop, not at `kill -9`.
    pub persistence: bool,
    /// Further lines of `mosquitto.conf`.
    pub extra: Vec<String>,
}

impl Mosquitto {
    /// Starts one that keeps nothing.
    pub fn start() -> Self {
        Self::with(MosquittoConfig::default())
    }

    /// Starts one that keeps sessions over [`Mosquitto::stop`].
    pub fn durable() -> Self {
        Self::with(MosquittoConfig { persistence: true, extra: Vec::new() })
    }

    /// Starts one with the given settings. Queues are unbounded: a ledger must not lose to the broker's own limit.
    pub fn with(config: MosquittoConfig) -> Self {
        let scratch = Scratch::new("mosquitto");
        let data = scratch.dir("data");
        let port = Port::reserve();
        let mut lines = vec![
            format!("listener {port} 127.0.0.1"),
            "allow_anonymous true".to_owned(),
            "max_queued_messages 0".to_owned(),
            "max_queued_bytes 0".to_owned(),
            "set_tcp_nodelay true".to_owned(),
            "log_dest stderr".to_owned(),
            // Run by root it would become another user, who may not write into our directory.
            "user root".to_owned(),
            format!("persistence {}", config.persistence),
            format!("persistence_location {}/", data.display()),
        ];
        lines.extend(config.extra);
        scratch.write("mosquitto.conf", lines.join("\n") + "\n");
        let mut broker = Self { scratch, port, process: None };
        broker.restart();
        broker
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The running process.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("mosquitto was stopped by the test")
    }

    /// Starts it again on the same port and data; does nothing while it runs.
    pub fn restart(&mut self) {
        if self.process.as_mut().is_some_and(Process::is_running) {
            return;
        }
        let mut command = Command::new(tool("mosquitto"));
        command.arg("-c").arg(self.scratch.join("mosquitto.conf"));
        let process = Process::start("mosquitto", &self.scratch, command);
        process.wait_for_line("running", Duration::from_secs(20));
        self.process = Some(process);
    }

    /// Stops it as an administrator would; with persistence it writes its data first.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate(Duration::from_secs(20));
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }
}
