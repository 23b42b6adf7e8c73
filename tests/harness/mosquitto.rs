//! Eclipse Mosquitto as the broker on the far side, and as the one Tidegate is measured against.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use crate::{Authority, Port, Process, Scratch, tool};

/// A broker with its own port, configuration and data directory.
#[derive(Debug)]
pub struct Mosquitto {
    scratch: Scratch,
    port: Port,
    doors: Vec<Port>,
    process: Option<Process>,
}

/// What a test may want to change.
#[derive(Debug, Clone, Default)]
pub struct MosquittoConfig {
    /// Keep sessions, queues and retained messages on disk: written at a graceful stop, not at `kill -9`.
    pub persistence: bool,
    /// Further lines of `mosquitto.conf`.
    pub extra: Vec<String>,
    /// Further listeners, each with rules of its own: where the gateway comes in, while the test's consumers use the
    /// open one.
    pub doors: Vec<Door>,
}

/// A listener that does not let everybody in, or not to everything.
#[derive(Debug, Clone, Default)]
pub struct Door {
    /// Lines that stand behind `listener`.
    lines: Vec<String>,
    users: Vec<(String, String)>,
    acl: Option<String>,
}

impl Mosquitto {
    /// Starts one that keeps nothing.
    pub fn start() -> Self {
        Self::with(MosquittoConfig::default())
    }

    /// Starts one that keeps sessions over [`Mosquitto::stop`].
    pub fn durable() -> Self {
        Self::with(MosquittoConfig { persistence: true, ..MosquittoConfig::default() })
    }

    /// Starts one with the given settings. Queues are unbounded: a ledger must not lose to the broker's own limit.
    pub fn with(config: MosquittoConfig) -> Self {
        let scratch = Scratch::new("mosquitto");
        let data = scratch.dir("data");
        let port = Port::reserve();
        let mut lines = vec![
            // Before any listener: each has rules of its own only where that is said.
            format!("per_listener_settings {}", !config.doors.is_empty()),
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
        let doors: Vec<Port> = config.doors.iter().map(|_| Port::reserve()).collect();
        for (number, (door, port)) in config.doors.iter().zip(&doors).enumerate() {
            lines.extend(door.write(number, port, &scratch));
        }
        scratch.write("mosquitto.conf", lines.join("\n") + "\n");
        let mut broker = Self { scratch, port, doors, process: None };
        broker.restart();
        broker
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Where the door with that number is.
    pub fn door(&self, number: usize) -> SocketAddr {
        self.doors[number].address()
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

impl Door {
    /// One that lets everybody in.
    pub fn open() -> Self {
        Self { lines: vec!["allow_anonymous true".to_owned()], ..Self::default() }
    }

    /// One that only these users come through, with their passwords.
    pub fn for_users(users: &[(&str, &str)]) -> Self {
        let users = users.iter().map(|(name, password)| ((*name).to_owned(), (*password).to_owned()));
        let lines = vec!["allow_anonymous false".to_owned()];
        Self { lines, users: users.collect(), acl: None }
    }

    /// One that only clients with a certificate of `authority` come through; its common name is the user.
    pub fn for_certificates(authority: &Authority) -> Self {
        let lines = [
            "allow_anonymous false".to_owned(),
            "require_certificate true".to_owned(),
            "use_identity_as_username true".to_owned(),
            format!("cafile {}", authority.pem().display()),
        ];
        Self { lines: lines.to_vec(), ..Self::default() }
    }

    /// The same behind TLS, with a certificate that `authority` signed.
    #[must_use]
    pub fn tls(mut self, authority: &Authority) -> Self {
        let certificate = authority.server();
        self.lines.push(format!("certfile {}", certificate.pem.display()));
        self.lines.push(format!("keyfile {}", certificate.key.display()));
        self
    }

    /// The same on WebSocket.
    #[must_use]
    pub fn websocket(mut self) -> Self {
        self.lines.push("protocol websockets".to_owned());
        self
    }

    /// The same, where only what these lines of an access list name is allowed.
    #[must_use]
    pub fn allowing(mut self, lines: &[&str]) -> Self {
        self.acl = Some(lines.join("\n") + "\n");
        self
    }

    fn write(&self, number: usize, port: &Port, scratch: &Scratch) -> Vec<String> {
        let mut lines = vec![format!("listener {port} 127.0.0.1"), "set_tcp_nodelay true".to_owned()];
        lines.extend(self.lines.iter().cloned());
        if !self.users.is_empty() {
            let file = scratch.write(&format!("users{number}"), "");
            for (name, password) in &self.users {
                let mut command = Command::new(tool("mosquitto_passwd"));
                command.arg("-b").arg(&file).args([name, password]);
                let output = command.output().expect("mosquitto_passwd can be started");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
            lines.push(format!("password_file {}", file.display()));
        }
        if let Some(acl) = &self.acl {
            lines.push(format!("acl_file {}", scratch.write(&format!("acl{number}"), acl).display()));
        }
        lines
    }
}
