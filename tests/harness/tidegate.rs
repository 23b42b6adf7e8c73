//! The gateway under test: the release binary, as a process, on ports and directories of its own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Id, Port, Process, Scratch, request, wait_until, workspace};

/// A table of a simulated BME280 called `cellar`, sampled at that interval.
pub fn sensor(interval: &str) -> String {
    format!(
        "[[device]]\nname = \"cellar\"\ntype = \"bme280\"\nbus = \"sim\"\naddress = 0x76\ninterval = \"{interval}\"\n"
    )
}

/// The binary: `$TIDEGATE_BIN`, else `tidegate` of the release profile.
///
/// # Panics
/// When there is none.
pub fn binary() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let path =
        std::env::var_os("TIDEGATE_BIN").map_or_else(|| target.join("release/tidegate"), PathBuf::from);
    assert!(path.is_file(), "no binary at {}; `tests/run build` makes it", path.display());
    path
}

/// A gateway whose state outlives the process: kill it, start it again, ask it from outside.
#[derive(Debug)]
pub struct Tidegate {
    name: String,
    mqtt: Port,
    http: Port,
    coap: Port,
    config: PathBuf,
    state: PathBuf,
    wrapper: Vec<String>,
    // Declared before the directory it lives in, so that it ends before the directory goes.
    process: Option<Process>,
    start_time: Duration,
    scratch: Scratch,
}

/// Puts the configuration of a [`Tidegate`] together.
#[derive(Debug, Clone)]
pub struct TidegateBuilder {
    name: String,
    mqtt: String,
    tail: String,
    state: Option<PathBuf>,
    wrapper: Vec<String>,
}

impl TidegateBuilder {
    /// The gateway's name; `barn` otherwise.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Further lines of the `[mqtt]` table.
    #[must_use]
    pub fn mqtt(mut self, lines: &str) -> Self {
        self.mqtt.push_str(lines);
        self.mqtt.push('\n');
        self
    }

    /// Further tables.
    #[must_use]
    pub fn tables(mut self, text: &str) -> Self {
        self.tail.push_str(text);
        self.tail.push('\n');
        self
    }

    /// Starts the gateway through another program: `words` stand before its own command line.
    #[must_use]
    pub fn through(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Keeps the state in a directory of the test's choice.
    #[must_use]
    pub fn state_in(mut self, directory: &Path) -> Self {
        self.state = Some(directory.to_owned());
        self
    }

    /// Writes the configuration without starting anything.
    pub fn prepare(self) -> Tidegate {
        let scratch = Scratch::new("gateway");
        for dir in ["state", "run", "home"] {
            scratch.dir(dir);
        }
        let (mqtt, http, coap) = (Port::reserve(), Port::reserve(), Port::reserve());
        let config = scratch.join("tidegate.toml");
        let Self { name, mqtt: lines, tail, state, wrapper } = self;
        let state = state.unwrap_or_else(|| scratch.join("state"));
        let start_time = Duration::ZERO;
        let gateway =
            Tidegate { name, mqtt, http, coap, config, state, wrapper, process: None, start_time, scratch };
        gateway.configure(&lines, &tail);
        gateway
    }

    /// Starts it and waits until it says that it is ready.
    pub fn start(self) -> Tidegate {
        let mut gateway = self.prepare();
        gateway.start();
        gateway
    }
}

impl Tidegate {
    /// A gateway with no devices but the ones its configuration names.
    pub fn builder() -> TidegateBuilder {
        TidegateBuilder {
            name: "barn".to_owned(),
            mqtt: String::new(),
            tail: String::new(),
            state: None,
            wrapper: Vec::new(),
        }
    }

    /// Writes its configuration anew: further lines of the `[mqtt]` table, further tables. Holds from the next start,
    /// or from `SIGHUP`.
    pub fn configure(&self, mqtt: &str, tables: &str) {
        let text = format!(
            "[gateway]\nname = \"{}\"\n\n[mqtt]\nlisten = [\"{}\"]\n{mqtt}\n[http]\nlisten = [\"{}\"]\n\n\
             [coap]\nlisten = [\"{}\"]\n\n{tables}",
            self.name,
            self.mqtt.address(),
            self.http.address(),
            self.coap.address(),
        );
        std::fs::write(&self.config, text).expect("the test's own directory is writable");
    }

    /// Starts it on the state it has and waits for `READY=1`, as systemd would.
    ///
    /// # Panics
    /// When it ends instead, or is not ready within 20 s.
    pub fn start(&mut self) {
        let begun = Instant::now();
        let notify = self.start_unready();
        let process = self.process_mut();
        let mut message = [0; 4096];
        let ready = wait_until(Duration::from_secs(20), || match notify.recv(&mut message) {
            Ok(n) if message[..n].split(|b| *b == b'\n').any(|line| line == b"READY=1") => Some(true),
            Ok(_) => None,
            Err(_) => (!process.is_running()).then_some(false),
        });
        let time = begun.elapsed();
        assert_eq!(
            ready,
            Some(true),
            "the gateway is not ready after {time:?}:\n{}",
            process.lines().join("\n")
        );
        self.start_time = time;
    }

    /// Starts it without waiting; the socket hears what it tells systemd.
    pub fn start_unready(&mut self) -> UnixDatagram {
        assert!(self.process.is_none(), "the gateway runs already");
        let socket = self.scratch.join("notify");
        let _ = std::fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket).expect("a socket in the test's own directory");
        notify.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout above zero");
        let mut command = self.command();
        command.arg("run").arg("--config").arg(&self.config).arg("--state-dir").arg(self.state_dir());
        command.env("NOTIFY_SOCKET", &socket);
        self.process = Some(Process::start("tidegate", &self.scratch, command));
        notify
    }

    /// How long the last start took, until `READY=1`.
    pub fn start_time(&self) -> Duration {
        self.start_time
    }

    /// The running process.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the gateway was stopped by the test")
    }

    /// The running process, to wait for or to signal.
    pub fn process_mut(&mut self) -> &mut Process {
        self.process.as_mut().expect("the gateway was stopped by the test")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// `SIGTERM`; it must have ended within the promised 5 s.
    pub fn stop(&mut self) -> ExitStatus {
        let (time, status) = self.process_mut().terminate(Duration::from_secs(5));
        assert!(time <= Duration::from_secs(5), "it took {time:?} to stop");
        self.process = None;
        status
    }

    /// Runs the CLI against this gateway: same state, same control socket.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = self.command();
        command.args(arguments).arg("--config").arg(&self.config).arg("--state-dir").arg(self.state_dir());
        command.output().expect("the binary can be started")
    }

    /// Runs a command of the CLI with `--json` and reads its answer. How it exits says how the gateway is, and is not
    /// looked at.
    ///
    /// # Panics
    /// When it answers something else.
    pub fn cli_json(&self, arguments: &[&str]) -> Value {
        let output = self.cli(&[arguments, &["--json"]].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("tidegate {arguments:?} is not JSON: {e}\n{text}{error}"))
    }

    /// The id of every entry that is in the spool, in order.
    ///
    /// # Panics
    /// When the export fails, or an id is there twice.
    pub fn stored(&self) -> BTreeSet<Id> {
        let output = self.cli(&["export", "--json"]);
        assert!(output.status.success(), "tidegate export: {}", String::from_utf8_lossy(&output.stderr));
        let mut ids = BTreeSet::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let entry: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("export: {e}: {line}"));
            let id =
                entry["id"].as_str().and_then(Id::parse).unwrap_or_else(|| panic!("export: no id in {line}"));
            assert!(ids.insert(id.clone()), "the spool has handed out {id} twice");
        }
        ids
    }

    /// How it is, by its HTTP API.
    pub fn status(&self) -> Value {
        let reply = request(self.http(), "GET", "/api/v1/status", &[], b"");
        reply.unwrap_or_else(|e| panic!("the gateway's API does not answer: {e}")).json()
    }

    /// The newest place in the spool; 0 when it is empty.
    pub fn newest(&self) -> u64 {
        self.status()["spool"]["last_seq"].as_u64().unwrap_or(0)
    }

    /// The MQTT listener.
    pub fn mqtt(&self) -> SocketAddr {
        self.mqtt.address()
    }

    /// The HTTP listener.
    pub fn http(&self) -> SocketAddr {
        self.http.address()
    }

    /// The CoAP listener.
    pub fn coap(&self) -> SocketAddr {
        self.coap.address()
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.state.clone()
    }

    /// A directory of the test's own, beside the state.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The binary in an environment of its own: nothing of the user's configuration or state reaches it.
    fn command(&self) -> Command {
        let mut words = self.wrapper.iter();
        let mut command = match words.next() {
            Some(program) => Command::new(program),
            None => Command::new(binary()),
        };
        if !self.wrapper.is_empty() {
            command.args(words).arg(binary());
        }
        for name in
            ["CONFIGURATION_DIRECTORY", "STATE_DIRECTORY", "NOTIFY_SOCKET", "JOURNAL_STREAM", "LISTEN_FDS"]
        {
            command.env_remove(name);
        }
        for (name, dir) in [("XDG_CONFIG_HOME", "home"), ("XDG_STATE_HOME", "home"), ("HOME", "home")] {
            command.env(name, self.scratch.join(dir));
        }
        command.env("RUNTIME_DIRECTORY", self.scratch.join("run"));
        command.env("XDG_RUNTIME_DIR", self.scratch.join("run"));
        command.current_dir(&*self.scratch);
        command
    }
}
