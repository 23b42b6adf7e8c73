//! A disk that somebody else fills to the last block, again and again, while the gateway writes to it: a real file
//! system of 64 MB, so that what runs out is what runs out on a card.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use harness::{
    FaultProxy, Id, Incoming, LoopDisk, Mode, Mosquitto, MqttClient, MqttLedger, Report, Tidegate, wait_until,
};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);
const ROUNDS: usize = 10;
/// How long the disk is full at the least.
const FULL_FOR: Duration = Duration::from_secs(2);
const FORWARD: &str = "forward = [\"site/#\"]";

const SENSORS: &str = r#"
[[device]]
name = "cellar"
type = "bme280"
bus = "sim"
address = 0x76
interval = "2ms"

[[device]]
name = "attic"
type = "bme280"
bus = "sim"
address = 0x77
interval = "2ms"
"#;

/// As large as the disk: it is the disk that runs out, not the limit.
const SPOOL: &str = "[spool]\nmax_size = \"64MB\"\nrpo = \"100ms\"\nwear_budget = \"100GB/day\"\n";

#[test]
fn a_disk_that_others_fill_ten_times_costs_no_acknowledged_publish_and_every_loss_is_told() {
    // In every third round the far side is away while the disk is full.
    let course = Course::run("refuse", |round| round % 3 == 2);
    course.report.assert_whole("mosquitto");
    assert!(course.missing.is_empty(), "acknowledged publishes are missing: {:?}", course.missing);
}

#[test]
fn where_the_oldest_may_be_dropped_for_a_full_disk_every_place_arrives_or_lies_in_a_gap() {
    let course = Course::run("thin-out", |round| round > 0);
    let told = |seq: u64| course.gaps.iter().any(|gap| gap.from <= Some(seq) && Some(seq) <= gap.to);
    let untold: Vec<String> =
        course.report.lost.iter().filter(|id| !told(id.seq)).map(ToString::to_string).take(10).collect();
    assert!(untold.is_empty(), "lost without a word: {untold:?}; gaps: {:?}", course.gaps);
    assert!(course.report.unexpected.is_empty(), "nobody sent {:?}", course.report.unexpected);
}

/// What came of ten times that the disk was full.
struct Course {
    /// Every place that the spool has given out, against what the broker has.
    report: Report,
    gaps: BTreeSet<Gap>,
    /// Acknowledged publishes that the broker does not have.
    missing: Vec<String>,
}

/// A loss as the gateway tells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Gap {
    from: Option<u64>,
    to: Option<u64>,
    count: u64,
    reason: String,
}

impl Course {
    fn run(when_full: &str, is_away: impl Fn(usize) -> bool) -> Self {
        let begun = Instant::now();
        let disk = LoopDisk::new(64).unwrap_or_else(|missing| panic!("missing: {missing}"));
        let broker = Mosquitto::durable();
        let wire = FaultProxy::start(broker.address());
        let ledger = MqttLedger::start(broker.address(), "#", 2);
        let cloud = format!(
            "{SPOOL}when_full = \"{when_full}\"\n\n[[uplink]]\nname = \"cloud\"\ntype = \"mqtt\"\naddress = \"{}\"\n\
             batch = 100\nbatch_wait = \"100ms\"\n",
            wire.address()
        );
        let builder = Tidegate::builder().mqtt(FORWARD).tables(SENSORS).tables(&cloud);
        let mut gateway = builder.state_in(&disk.root().join("state")).start();
        let visitor = Visitor::start(gateway.mqtt());
        let mut gaps = BTreeSet::new();
        let mut times = Vec::new();
        for round in 0..ROUNDS {
            if is_away(round) {
                wire.set(Mode::Refuse);
                wire.cut();
            }
            times.push(fill_and_give_back(&gateway, disk.root(), round));
            gaps.extend(Gap::all(&gateway));
            wire.set(Mode::Pass);
        }
        assert!(gateway.process_mut().is_running());
        let visits = visitor.stop();

        // Without sensors: what is in the spool now is what must come out.
        assert_eq!(gateway.stop().code(), Some(0));
        gateway.configure(FORWARD, &cloud);
        gateway.start();
        gaps.extend(Gap::all(&gateway));
        // Those that are no longer in the spool have arrived, or are a loss.
        let newest = gateway.stored().last().cloned().expect("something is stored");
        let ids: Vec<Id> = (1..=newest.seq).map(|seq| Id { seq, ..newest.clone() }).collect();
        drained(&gateway);
        arrived(&broker, &ledger);
        let report = ledger.ledger().check(&ids);
        let messages = ledger.messages();
        let missing = missing(&visits, &messages);
        println!(
            "{when_full}: {ROUNDS} times full, seconds until noticed and until written again: {}; {:.0?}",
            times.join(" "),
            begun.elapsed()
        );
        println!("{}\n{}", Report::HEAD, report.row("mosquitto"));
        let reasons: BTreeSet<&str> = gaps.iter().map(|gap| &*gap.reason).collect();
        println!(
            "LAN publishes acknowledged at QoS 1: {}, missing {}; {} gaps: {reasons:?}",
            visits.len(),
            missing.len(),
            gaps.len()
        );
        assert!(visits.len() > 500, "only {} publishes were acknowledged", visits.len());
        assert!(reasons.contains("disk-full"), "what could not be written is told: {reasons:?}");
        let is_told = |message: &Value| message["payload"].as_str().is_some_and(is_gap_for_the_disk);
        assert!(messages.iter().any(is_told), "the far side was not told of what could not be written");

        assert_eq!(gateway.stop().code(), Some(0));
        let verified = gateway.cli(&["spool", "verify"]);
        let words = String::from_utf8_lossy(&verified.stdout);
        println!("{words}");
        assert!(verified.status.success(), "{words}{}", String::from_utf8_lossy(&verified.stderr));
        Self { report, gaps, missing }
    }
}

/// Somebody fills the disk, the gateway notices and serves on, room is given back, the gateway writes again; the
/// seconds that the one and the other took.
fn fill_and_give_back(gateway: &Tidegate, root: &Path, round: usize) -> String {
    let full = Instant::now();
    let others = Others::fill(root);
    let refusing = wait_until(60 * SECOND, || spool(gateway)["refusing"].as_str().map(str::to_owned));
    let noticed = full.elapsed();
    let refusing = refusing
        .unwrap_or_else(|| panic!("round {round}: the disk is full and nobody notices: {}", spool(gateway)));
    assert!(others.refusals() > 0, "round {round}: the disk is not full, but: {refusing}");
    // All that was held back for this is used up as well before there is room again.
    let is_over = wait_until(60 * SECOND, || {
        serves(gateway, round);
        (full.elapsed() > FULL_FOR).then_some(())
    });
    assert!(is_over.is_some(), "round {round}: LAN clients are served too slowly");
    others.give_back();
    let back = Instant::now();
    let before = gateway.newest();
    let writes = wait_until(30 * SECOND, || {
        (spool(gateway)["refusing"].is_null() && gateway.newest() > before + 100).then_some(())
    });
    assert!(writes.is_some(), "round {round}: there is room, and nothing is written: {}", spool(gateway));
    format!("{:.1}/{:.1}", noticed.as_secs_f64(), back.elapsed().as_secs_f64())
}

/// Waits until nothing waits for the uplink any more.
fn drained(gateway: &Tidegate) {
    let waiting = || gateway.status()["uplinks"][0]["waiting"].as_u64();
    let done = wait_until(120 * SECOND, || {
        thread::sleep(Duration::from_millis(50));
        (waiting() == Some(0)).then_some(())
    });
    assert!(done.is_some(), "not drained: {}", gateway.status()["uplinks"][0]);
}

/// A subscriber's queue is a line: when this has come, so has everything before it.
fn arrived(broker: &Mosquitto, ledger: &MqttLedger) {
    MqttClient::connect(broker.address(), "last").unwrap().publish_and_wait("the/end", b"", 2).unwrap();
    let came = wait_until(60 * SECOND, || {
        thread::sleep(Duration::from_millis(100));
        ledger.messages().iter().any(|message| message["topic"] == "the/end").then_some(())
    });
    assert!(came.is_some(), "the subscriber does not get on");
}

fn spool(gateway: &Tidegate) -> Value {
    gateway.status()["spool"].clone()
}

impl Gap {
    /// The losses that the gateway knows of.
    ///
    /// # Panics
    /// When one has no reason, or does not say how many.
    fn all(gateway: &Tidegate) -> Vec<Self> {
        let spool = spool(gateway);
        let gaps = spool["gaps"].as_array().unwrap().iter().map(|gap| Self {
            from: gap["from_seq"].as_u64(),
            to: gap["to_seq"].as_u64(),
            count: gap["count"].as_u64().unwrap_or_else(|| panic!("a gap of nobody knows how many: {gap}")),
            reason: gap["reason"]
                .as_str()
                .unwrap_or_else(|| panic!("a gap without a reason: {gap}"))
                .to_owned(),
        });
        gaps.collect()
    }
}

fn is_gap_for_the_disk(pack: &str) -> bool {
    pack.contains("\"gap\"") && pack.contains("disk-full")
}

/// LAN clients are served while nothing can be written: live readings, and messages that nothing has to be kept of.
fn serves(gateway: &Tidegate, round: usize) {
    let mut subscriber = MqttClient::connect(gateway.mqtt(), "subscriber").unwrap();
    for filter in ["tidegate/barn/cellar/temperature", "house/#"] {
        subscriber.subscribe(filter, 1).unwrap();
    }
    let mut publisher = MqttClient::connect(gateway.mqtt(), "publisher").unwrap();
    let text = format!("round {round}");
    publisher.publish_and_wait("house/lamp", text.as_bytes(), 1).expect("a publish is acknowledged");
    let (mut readings, mut is_heard) = (0, false);
    let served = wait_until(10 * SECOND, || {
        if let Some(Incoming::Publish { topic, payload, .. }) = subscriber.read(SECOND).unwrap() {
            is_heard |= payload == text.as_bytes();
            readings += u32::from(topic.ends_with("temperature"));
        }
        (is_heard && readings >= 10).then_some(())
    });
    assert!(served.is_some(), "round {round}: {readings} readings, the other's message heard: {is_heard}");
}

/// Somebody else's file, which takes every block that is free, and every one that becomes free, until it is deleted.
struct Others {
    file: PathBuf,
    stop: Arc<AtomicBool>,
    refusals: Arc<AtomicU64>,
    thread: thread::JoinHandle<()>,
}

impl Others {
    fn fill(root: &Path) -> Self {
        let file = root.join("others");
        let (stop, refusals) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (is_over, refused, mut out) =
            (Arc::clone(&stop), Arc::clone(&refusals), File::create(&file).unwrap());
        let thread = thread::spawn(move || {
            let piece = vec![0x5A; 64 << 10];
            while !is_over.load(Ordering::Relaxed) {
                match out.write_all(&piece) {
                    Ok(()) => {}
                    Err(error) => {
                        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
                        refused.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            }
        });
        Self { file, stop, refusals, thread }
    }

    /// How often there was no block left.
    fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    fn give_back(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        std::fs::remove_file(self.file).unwrap();
    }
}

/// A LAN client that publishes numbered messages of a kilobyte at `QoS` 1, each again until it is acknowledged, and
/// remembers those that were.
struct Visitor {
    stop: Arc<AtomicBool>,
    // Written by the visitor's thread, taken at its end.
    acknowledged: Arc<Mutex<HashSet<String>>>,
    thread: thread::JoinHandle<()>,
}

impl Visitor {
    fn start(gateway: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(HashSet::new()));
        let (is_over, done) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let thread = thread::spawn(move || {
            let mut number = 0;
            while !is_over.load(Ordering::Relaxed) {
                let Ok(mut client) = MqttClient::connect(gateway, "visitor") else {
                    thread::sleep(Duration::from_millis(10));
                    continue;
                };
                while !is_over.load(Ordering::Relaxed) {
                    let text = format!("visit-{number}");
                    let payload = format!("{text} {:1000}", "");
                    if client.publish_and_wait("site/door", payload.as_bytes(), 1).is_err() {
                        break;
                    }
                    done.lock().unwrap().insert(text);
                    number += 1;
                }
            }
        });
        Self { stop, acknowledged, thread }
    }

    fn stop(self) -> HashSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        Arc::into_inner(self.acknowledged).unwrap().into_inner().unwrap()
    }
}

/// The acknowledged texts that no message carries.
fn missing(visits: &HashSet<String>, messages: &[Value]) -> Vec<String> {
    let mut arrived = HashSet::new();
    for message in messages {
        let records: Vec<Value> =
            serde_json::from_str(message["payload"].as_str().unwrap_or_default()).unwrap_or_default();
        let texts = records.iter().filter_map(|record| record["vs"].as_str()?.split(' ').next());
        arrived.extend(texts.map(str::to_owned));
    }
    visits.iter().filter(|text| !arrived.contains(*text)).cloned().collect()
}

#[test]
fn the_check_for_missing_publishes_finds_a_planted_one() {
    let visits = HashSet::from(["visit-1".to_owned(), "visit-2".to_owned()]);
    let message =
        serde_json::json!({"payload": r#"[{"n":"message","vs":"visit-1  "},{"n":"message","v":3}]"#});
    assert_eq!(missing(&visits, &[message]), ["visit-2"]);
}
