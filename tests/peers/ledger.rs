//! The ledger from end to end: consumers store what real brokers give them, through faults and `kill -9`; both programs
//! that verify it say that it is complete, and name whatever is then done to it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use harness::{
    FaultProxy, Mosquitto, Process, RabbitMq, Rng, Scratch, Tidegate, binary, out_dir, python, script,
    wait_until, workspace,
};
use serde_json::Value;

const SENSORS: &str = r#"
[[device]]
name = "cellar"
type = "bme280"
bus = "sim"
address = 0x76
interval = "10ms"

[[device]]
name = "pump"
type = "gpio-output"
chip = "sim"
line = "GPIO27"
"#;
const LEDGER: &str = "[ledger]\ninterval = \"2s\"\n";
const KILLS: usize = 6;
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn both_programs_say_complete_after_faults_and_kills_and_name_what_is_then_done() {
    let mut rng = Rng::from_env("ledger");
    let (plain, packed) = (Mosquitto::durable(), Mosquitto::durable());
    let rabbit = RabbitMq::start();
    let mut wires = [plain.address(), packed.address(), rabbit.address()].map(FaultProxy::start);
    let stores = [
        Store::start("mqtt", plain.address()),
        Store::start("mqtt", packed.address()),
        Store::start("amqp", rabbit.address()),
    ];
    let uplinks = format!(
        "{LEDGER}\n{}{}{}",
        uplink("plain", "mqtt", wires[0].address(), ""),
        uplink(
            "packed",
            "mqtt",
            wires[1].address(),
            "batch = 50\nencoding = \"senml-cbor\"\ncompression = \"zstd\"\n"
        ),
        uplink("rabbit", "amqp", wires[2].address(), "exchange = \"tidegate\"\nbatch = 10\n"),
    );
    let mut gateway = Tidegate::builder().mqtt(FORWARD).tables(SENSORS).tables(&uplinks).start();
    for wire in &mut wires {
        wire.flap(Rng::new(rng.bits()), SECOND / 4, 3 * SECOND);
    }
    for _ in 0..KILLS {
        thread::sleep(rng.between(SECOND, 5 * SECOND));
        gateway.kill();
        gateway.start();
        visit(&gateway);
        gateway.cli(&["set", "pump/state", "on"]);
    }
    for wire in &mut wires {
        wire.calm();
    }
    thread::sleep(3 * SECOND);
    gateway.stop();
    gateway.configure(FORWARD, &uplinks);
    gateway.start();
    let newest = gateway.newest();
    assert!(newest > 2000, "only {newest} entries");

    let key = gateway.state_dir().join("ledger.pub");
    for (store, name) in stores.iter().zip(["plain", "packed", "rabbit"]) {
        let begun = Instant::now();
        let whole = wait_until(120 * SECOND, || {
            thread::sleep(SECOND);
            let found = ours(&key, &store.file);
            let covered = found.of_ours()["covered"][1].as_u64().unwrap_or(0);
            (found.verdict() == "complete" && covered + 100 > newest).then_some(found)
        });
        let found = whole.unwrap_or_else(|| panic!("{name}, of {newest}:\n{}", ours(&key, &store.file).text));
        println!("{name} after {:.0?}: {}", begun.elapsed(), found.of_ours());
        assert_eq!(found.code, Some(0), "{}", found.text);
        assert!(found.of_ours()["manifests"].as_u64().unwrap() >= KILLS as u64 / 2, "{}", found.text);
    }
    fs::copy(&key, out_dir().join("ledger.pub")).unwrap();
    for (store, name) in [(&stores[0], "plain"), (&stores[2], "rabbit")] {
        fs::copy(&store.file, out_dir().join(format!("ledger-{name}.jsonl"))).unwrap();
        let second = theirs(&key, &store.file);
        assert_eq!((second.verdict(), second.code), ("complete", Some(0)), "{name}: {}", second.text);
        agree(&ours(&key, &store.file), &second);
    }

    let lines: Vec<String> =
        fs::read_to_string(&stores[0].file).unwrap().lines().map(str::to_owned).collect();
    plant(&gateway, &key, &lines);
}

/// What is done to stored lines, each alone, has to be named by both programs.
fn plant(gateway: &Tidegate, key: &Path, lines: &[String]) {
    let record = |line: &str| serde_json::from_str::<Value>(line).unwrap()[0].clone();
    let is = |line: &str, name: &str| record(line)["n"] == name;
    // A reading that came once, in the middle; the manifests around it stand.
    let seq_of = |line: &str| record(line)["seq"].as_u64().unwrap();
    let once = |line: &&String| lines.iter().filter(|other| seq_of(other) == seq_of(line)).count() == 1;
    let at = lines.len() / 2;
    let reading = lines[at..].iter().find(|line| is(line, "cellar/temperature") && once(line)).unwrap();
    let manifest = lines[at..].iter().find(|line| is(line, "manifest") && once(line)).unwrap();
    let (seq, place) = (seq_of(reading), seq_of(manifest));
    let number: Value = serde_json::from_str(record(manifest)["vs"].as_str().unwrap()).unwrap();
    let number: Value = serde_json::from_str(number["manifest"].as_str().unwrap()).unwrap();
    let number = number["number"].as_u64().unwrap();
    let planted = |what: &str, from: &str, to: &[String]| {
        let changed: Vec<&str> = lines
            .iter()
            .flat_map(|line| {
                if line == from { to.iter().map(String::as_str).collect() } else { vec![line.as_str()] }
            })
            .collect();
        let file = gateway.scratch().write(&format!("{what}.jsonl"), changed.join("\n") + "\n");
        let (first, second) = (ours(key, &file), theirs(key, &file));
        println!("{what}:\n{}", readable(key, &file));
        agree(&first, &second);
        let expected = if what == "doubled" { "complete" } else { "not complete" };
        assert_eq!((first.verdict(), second.verdict()), (expected, expected), "{what}");
        first
    };
    let edit = |line: &str, edit: &dyn Fn(&mut Value)| {
        let mut pack: Value = serde_json::from_str(line).unwrap();
        edit(&mut pack[0]);
        pack.to_string()
    };
    let holds = |ranges: &Value, seq: u64| {
        let ranges = ranges.as_array().unwrap();
        ranges.iter().any(|range| (range[0].as_u64().unwrap()..=range[1].as_u64().unwrap()).contains(&seq))
    };

    let found = planted("removed", reading, &[]);
    assert_eq!(found.of_ours()["missing"], serde_json::json!([[seq, seq]]));
    let repeats = |found: &Found| found.of_ours()["repeats"].as_u64().unwrap();
    let before = repeats(&planted("doubled", "", &[]));
    let found = planted("doubled", reading, &[reading.clone(), reading.clone()]);
    assert!(repeats(&found) == before + 1 && holds(&found.of_ours()["duplicated"], seq));
    let value = edit(reading, &|record| record["v"] = (record["v"].as_f64().unwrap() + 0.01).into());
    // Where the clock of this machine is not known to be right, a time becomes one that claims to be.
    let time = edit(reading, &|record| {
        record["t"] = (record["t"].as_f64().unwrap() + 1.0).into();
        record.as_object_mut().unwrap().remove("clock");
    });
    let name = edit(reading, &|record| record["n"] = "attic/temperature".into());
    for (what, line) in [("value", value), ("time", time), ("name", name)] {
        let found = planted(what, reading, &[line]);
        let altered = &found.of_ours()["altered"];
        assert!(altered.as_array().unwrap().len() == 1 && holds(altered, seq), "{what}: {altered}");
    }
    let found = planted("manifest removed", manifest, &[]);
    let chain = found.of_ours()["chain"].to_string();
    assert!(chain.contains(&format!("manifest {number} is not there")), "{chain}");
    assert!(holds(&found.of_ours()["missing"], place));
    let signature = edit(manifest, &|record| {
        let mut signed: Value = serde_json::from_str(record["vs"].as_str().unwrap()).unwrap();
        let digits = signed["signature"].as_str().unwrap();
        let last = if digits.ends_with('0') { "1" } else { "0" };
        signed["signature"] = (digits[..127].to_owned() + last).into();
        record["vs"] = signed.to_string().into();
    });
    let found = planted("signature", manifest, &[signature]);
    let signatures = found.of_ours()["signatures"].to_string();
    assert!(signatures.contains(&format!("manifest {number}: the signature is not good")), "{signatures}");
}

/// A LAN client's messages, of text and of bytes.
fn visit(gateway: &Tidegate) {
    let mut client = harness::MqttClient::connect(gateway.mqtt(), "visitor").unwrap();
    for payload in [&b"plain text"[..], b"\xff\x00\x01", b"", "ümläut\n".as_bytes()] {
        client.publish("site/door", payload, 1, false).unwrap();
        client.read(5 * SECOND).unwrap();
    }
}

fn uplink(name: &str, kind: &str, address: SocketAddr, further: &str) -> String {
    format!(
        "[[uplink]]\nname = \"{name}\"\ntype = \"{kind}\"\naddress = \"{address}\"\nwindow = 100\n{further}\n"
    )
}

const FORWARD: &str = "forward = [\"site/#\"]";

/// What one of the programs said.
struct Found {
    json: Value,
    text: String,
    code: Option<i32>,
}

impl Found {
    /// The ledger of the one gateway; the Python script's list holds it alone.
    fn of_ours(&self) -> &Value {
        if self.json.is_array() { &self.json[0] } else { &self.json["ledgers"][0] }
    }

    fn verdict(&self) -> &str {
        self.of_ours()["verdict"].as_str().unwrap_or("")
    }
}

fn ours(key: &Path, file: &Path) -> Found {
    let mut command = Command::new(binary());
    command.arg("verify-ledger").arg("--json").arg("--key").arg(key).arg(file);
    found(command)
}

fn theirs(key: &Path, file: &Path) -> Found {
    let mut command = Command::new(python());
    let key = fs::read_to_string(key).unwrap();
    command.arg(workspace().join("tests/verify_ledger.py")).arg("--key").arg(key.trim()).arg(file);
    found(command)
}

fn found(mut command: Command) -> Found {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{command:?}: {e}\n{text}{error}"));
    Found { json, text: text + &error, code: output.status.code() }
}

/// As a person sees it.
fn readable(key: &Path, file: &Path) -> String {
    let mut command = Command::new(binary());
    command.arg("verify-ledger").arg("--key").arg(key).arg(file);
    String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
}

/// The two programs have found the same, each in its own words.
fn agree(first: &Found, second: &Found) {
    let (ours, theirs) = (first.of_ours(), second.of_ours());
    for key in ["verdict", "gateway", "epoch", "entries", "manifests"] {
        assert_eq!(ours[key], theirs[key], "{key}:\n{}\n{}", first.text, second.text);
    }
    let places = |ranges: &Value| -> Vec<u64> {
        let ranges = ranges.as_array().unwrap();
        ranges.iter().flat_map(|range| range[0].as_u64().unwrap()..=range[1].as_u64().unwrap()).collect()
    };
    let list =
        |list: &Value| -> Vec<u64> { list.as_array().unwrap().iter().filter_map(Value::as_u64).collect() };
    assert_eq!(places(&ours["missing"]), list(&theirs["missing"]), "missing");
    assert_eq!(places(&ours["altered"]), places(&theirs["altered"]), "altered");
    assert_eq!(places(&ours["invented"]), list(&theirs["invented"]), "invented");
    assert_eq!(ours["repeats"].as_u64().unwrap() as usize, list(&theirs["duplicated"]).len(), "duplicated");
    for key in ["chain", "signatures"] {
        assert_eq!(ours[key] == Value::Array(vec![]), theirs[key] == Value::Array(vec![]), "{key}");
    }
}

/// A consumer that stores what it gets.
struct Store {
    file: PathBuf,
    _process: Process,
    _scratch: Scratch,
}

impl Store {
    fn start(protocol: &str, broker: SocketAddr) -> Self {
        let scratch = Scratch::new("store");
        let file = scratch.write("stored.jsonl", "");
        let mut command = script("ledger_store");
        command.arg(protocol).arg(broker.ip().to_string()).arg(broker.port().to_string()).arg(&file);
        let process = Process::start("ledger_store", &scratch, command);
        process.wait_for_line("ready", 30 * SECOND);
        Self { file, _process: process, _scratch: scratch }
    }
}
