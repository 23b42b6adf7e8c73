//! Python clients: paho-mqtt, pika and aiocoap in a virtual environment, and the consumers that keep ledgers with them;
//! and what runs on Node.js.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::{Ledger, Process, Scratch, record_of, tool, wait_until, workspace};

/// The interpreter of `tests/.venv`.
///
/// # Panics
/// When there is none: `tests/run tools` makes it.
pub fn python() -> PathBuf {
    let path = workspace().join("tests/.venv/bin/python");
    assert!(path.is_file(), "missing peer: no Python environment in tests/.venv; `tests/run tools` makes it");
    path
}

/// A command that runs `tests/peers/NAME.mjs` with Node.js and the packages of `tests/.node`.
///
/// # Panics
/// When there are none: `tests/run tools` installs them.
pub fn node(name: &str) -> Command {
    let modules = workspace().join("tests/.node/node_modules");
    assert!(modules.is_dir(), "missing peer: no packages in tests/.node; `tests/run tools` installs them");
    let mut command = Command::new(tool("node"));
    command.arg(workspace().join(format!("tests/peers/{name}.mjs")));
    command
}

/// A command that runs `tests/peers/NAME.py`.
pub fn script(name: &str) -> Command {
    let mut command = Command::new(python());
    command.arg("-u").arg(workspace().join(format!("tests/peers/{name}.py")));
    command
}

/// A paho-mqtt subscriber with a persistent session, which writes down every message before it acknowledges it.
#[derive(Debug)]
pub struct MqttLedger {
    consumer: Consumer,
}

impl MqttLedger {
    /// Subscribes to `filter` at `qos` and waits until the broker has granted it.
    pub fn start(broker: SocketAddr, filter: &str, qos: u8) -> Self {
        let qos = qos.to_string();
        Self { consumer: Consumer::start("mqtt_ledger", broker, &[filter, &qos]) }
    }

    /// What has been written down so far.
    pub fn ledger(&self) -> Ledger {
        self.consumer.ledger()
    }

    /// Every message as JSON: `topic`, `payload`, `qos`, `retain`, `dup`, `properties`.
    pub fn messages(&self) -> Vec<Value> {
        self.consumer.messages()
    }

    /// Waits until so many different ids have arrived; `false` when they have not within `limit`.
    pub fn wait_for_ids(&self, count: usize, limit: Duration) -> bool {
        self.consumer.wait_for_ids(count, limit)
    }
}

/// A pika consumer of a durable queue bound to everything in a topic exchange, which writes down every message before
/// it acknowledges it.
#[derive(Debug)]
pub struct AmqpLedger {
    consumer: Consumer,
}

impl AmqpLedger {
    /// Declares the exchange and the queue and waits until they are bound.
    pub fn start(broker: SocketAddr, exchange: &str) -> Self {
        Self { consumer: Consumer::start("amqp_ledger", broker, &[exchange]) }
    }

    /// What has been written down so far.
    pub fn ledger(&self) -> Ledger {
        self.consumer.ledger()
    }

    /// Every message as JSON: `topic` (the routing key), `payload`, `id` (the message id), `persistent`.
    pub fn messages(&self) -> Vec<Value> {
        self.consumer.messages()
    }

    /// Waits until so many different ids have arrived; `false` when they have not within `limit`.
    pub fn wait_for_ids(&self, count: usize, limit: Duration) -> bool {
        self.consumer.wait_for_ids(count, limit)
    }
}

#[derive(Debug)]
struct Consumer {
    file: PathBuf,
    _process: Process,
    _scratch: Scratch,
}

impl Consumer {
    fn start(name: &str, broker: SocketAddr, arguments: &[&str]) -> Self {
        let scratch = Scratch::new(name);
        let file = scratch.write("messages.jsonl", "");
        let mut command = script(name);
        command.arg(broker.ip().to_string()).arg(broker.port().to_string()).arg(&file).args(arguments);
        let process = Process::start(name, &scratch, command);
        process.wait_for_line("ready", Duration::from_secs(30));
        Self { file, _process: process, _scratch: scratch }
    }

    fn messages(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.file).expect("the consumer's file is there");
        // The last line may be half written.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::new();
        let mut seen = HashSet::new();
        for message in self.messages() {
            for (id, channel) in record_of(message["payload"].as_str().unwrap_or("")) {
                // DUP is between the broker and its subscriber (MQTT 5.0 §3.3.1.1): after a restart it gives again what
                // it does not know to be acknowledged. What the gateway repeats comes without.
                let is_redelivered = message["dup"] == true;
                if seen.insert(id.clone()) || !is_redelivered {
                    ledger.note(id, channel);
                }
            }
        }
        ledger
    }

    fn wait_for_ids(&self, count: usize, limit: Duration) -> bool {
        let mut read = 0;
        let found = wait_until(limit, || {
            // Parsing everything is dear: only when the file has grown, and the file cannot hold the ids before.
            let size = fs::metadata(&self.file).map_or(0, |data| data.len());
            if size == read {
                std::thread::sleep(Duration::from_millis(50));
                return None;
            }
            read = size;
            (self.ledger().distinct() >= count).then_some(())
        });
        found.is_some()
    }
}
