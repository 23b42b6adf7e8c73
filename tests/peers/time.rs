//! A machine that boots in 1970: what its readings say, how a GNSS receiver mends them, and how it gets through TLS.
//!
//! The gateway runs under libfaketime, which moves its system clock and leaves the monotonic one alone; the receiver is a
//! pseudo-terminal that this test speaks NMEA 0183 into.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use harness::{
    FaultProxy, Mode, Mosquitto, MosquittoConfig, MqttLedger, Port, Process, Scratch, Tidegate,
    TidegateBuilder, tool, wait_until,
};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

/// A gateway that was switched on ten minutes after 1970 began.
fn in_1970() -> TidegateBuilder {
    let library = std::fs::read_dir("/usr/lib")
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketimeMT.so.1")))
        .find(|path| path.exists())
        .expect("missing peer: faketime is not installed; `tests/run tools` installs it");
    let preload = format!("LD_PRELOAD={}", library.display());
    let time = "FAKETIME=@1970-01-01 00:10:00";
    Tidegate::builder().through(&["env", "TZ=UTC", &preload, time, "FAKETIME_DONT_FAKE_MONOTONIC=1"])
}

fn sensor() -> String {
    "[[device]]\nname = \"cellar\"\ntype = \"bme280\"\nbus = \"sim\"\ninterval = \"50ms\"\n".to_owned()
}

fn nmea(port: &Path) -> String {
    format!("[[device]]\nname = \"gnss\"\ntype = \"nmea\"\nport = {}\n", quoted(port))
}

/// A path as it stands in a configuration.
fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

/// A certificate for loopback that vouches for itself, valid from now on, and its key.
fn certificate(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let (pem, key) = (scratch.join("broker.pem"), scratch.join("broker.key"));
    let mut openssl = Command::new(tool("openssl"));
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args(["-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1"]);
    // One that may sign would be no end of a chain to rustls.
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.arg("-keyout").arg(&key).arg("-out").arg(&pem);
    let output = openssl.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (pem, key)
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A receiver with a fix, on a pseudo-terminal. Speaks every 200 ms while it is let.
struct Receiver {
    port: PathBuf,
    speaks: Arc<AtomicBool>,
    /// What it adds to the time, in seconds.
    shift_s: Arc<AtomicI64>,
    _line: Process,
}

impl Receiver {
    fn new(scratch: &Scratch) -> Self {
        let (port, far) = (scratch.join("gnss"), scratch.join("gnss-far"));
        let mut socat = Command::new(tool("socat"));
        let end = |path: &Path| format!("PTY,link={},raw,echo=0", path.display());
        socat.arg(end(&port)).arg(end(&far));
        let line = Process::start("socat", scratch, socat);
        let is_there = wait_until(10 * SECOND, || (port.exists() && far.exists()).then_some(()));
        assert!(is_there.is_some(), "socat makes two ends");
        let (speaks, shift_s) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let (theirs, their_shift) = (speaks.clone(), shift_s.clone());
        let mut out = std::fs::File::options().write(true).open(&far).unwrap();
        std::thread::spawn(move || {
            // Ends with the line.
            loop {
                if theirs.load(Ordering::Relaxed)
                    && out
                        .write_all(rmc(now_s() + their_shift.load(Ordering::Relaxed) as f64).as_bytes())
                        .is_err()
                {
                    return;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Self { port, speaks, shift_s, _line: line }
    }

    fn speak(&self, shift_s: i64) {
        self.shift_s.store(shift_s, Ordering::Relaxed);
        self.speaks.store(true, Ordering::Relaxed);
    }
}

/// An RMC sentence with a fix for that time.
fn rmc(unix_s: f64) -> String {
    let date =
        Command::new("date").args(["-u", "-d", &format!("@{}", unix_s as i64), "+%H%M%S %d%m%y"]).output();
    let date = String::from_utf8(date.unwrap().stdout).unwrap();
    let (clock, day) = date.trim().split_once(' ').unwrap();
    let hundredths = (unix_s.fract() * 100.0) as u32;
    let body = format!("GPRMC,{clock}.{hundredths:02},A,4916.45,N,12311.12,W,000.5,054.7,{day},020.3,E,A");
    let sum = body.bytes().fold(0, |sum, byte| sum ^ byte);
    format!("${body}*{sum:02X}\r\n")
}

fn quality(gateway: &Tidegate) -> String {
    gateway.status()["time"]["quality"].as_str().unwrap_or_default().to_owned()
}

fn wait_for_quality(gateway: &Tidegate, wanted: &str) {
    let reached = wait_until(20 * SECOND, || (quality(gateway) == wanted).then_some(()));
    assert!(reached.is_some(), "{}", gateway.status()["time"]);
}

fn log(gateway: &Tidegate) -> Vec<Value> {
    let output = gateway.cli(&["export", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// When the first reading was made, as far as the log knows: RFC 3339.
fn first_time(gateway: &Tidegate) -> String {
    let first = log(gateway).into_iter().find(|line| line["channel"] == "cellar/temperature");
    first.unwrap()["time"].as_str().unwrap_or_default().to_owned()
}

fn year() -> String {
    String::from_utf8(Command::new("date").args(["-u", "+%Y-"]).output().unwrap().stdout)
        .unwrap()
        .trim()
        .to_owned()
}

/// Every record of every message that came, in order.
fn records(ledger: &MqttLedger) -> Vec<Value> {
    let messages = ledger.messages();
    let packs = messages
        .iter()
        .filter_map(|message| serde_json::from_str::<Value>(message["payload"].as_str()?).ok());
    packs.filter_map(|pack| pack.as_array().cloned()).flatten().collect()
}

#[test]
fn readings_from_1970_leave_with_the_right_time_once_a_receiver_tells_it() {
    let scratch = Scratch::new("gnss");
    let receiver = Receiver::new(&scratch);
    let broker = Mosquitto::durable();
    let ledger = MqttLedger::start(broker.address(), "#", 1);
    let wire = FaultProxy::start(broker.address());
    let cloud = format!("[[uplink]]\nname = \"cloud\"\ntype = \"mqtt\"\naddress = \"{}\"\n", wire.address());
    let begun_s = now_s();
    let gateway = in_1970().tables(&(sensor() + &nmea(&receiver.port) + &cloud)).start();
    // Some leave at once, as good as they are; then the link is gone.
    assert!(ledger.wait_for_ids(20, 20 * SECOND));
    assert_eq!(quality(&gateway), "none");
    wire.set(Mode::Refuse);
    wire.cut();
    let sent = ledger.ledger().distinct();
    let before = gateway.newest();
    wait_until(20 * SECOND, || (gateway.newest() > before + 100).then_some(())).unwrap();
    assert!(first_time(&gateway).starts_with("1970-"), "{}", first_time(&gateway));
    receiver.speak(0);
    wait_for_quality(&gateway, "gnss");
    let corrected = wait_until(10 * SECOND, || first_time(&gateway).starts_with(&year()).then_some(()));
    assert!(corrected.is_some(), "{}", first_time(&gateway));
    let error = gateway.status()["time"]["error_s"].as_f64().unwrap();
    assert!((0.4..1.0).contains(&error), "{error}");
    // What had not left leaves corrected, and a record corrects what had.
    wire.set(Mode::Pass);
    let newest = gateway.newest();
    assert!(ledger.wait_for_ids(newest as usize - 5, 60 * SECOND), "{}", gateway.status()["uplinks"][0]);
    let all = records(&ledger);
    let clock = all.iter().find(|record| record["vs"] == "gnss").unwrap_or_else(|| panic!("no clock record"));
    assert!(clock["offset"].as_f64().is_some() || clock["offset"].as_i64().is_some(), "{clock}");
    let readings: Vec<&Value> = all.iter().filter(|record| record["v"].is_number()).collect();
    let time = |record: &Value| record["t"].as_f64().or(record["bt"].as_f64());
    let (early, late): (Vec<&Value>, Vec<&Value>) =
        readings.into_iter().partition(|record| record["corrected"] != true && record["clock"] == "none");
    assert!(
        !early.is_empty() && early.len() <= sent + 2,
        "{} left uncorrected, {sent} before the cut",
        early.len()
    );
    assert!(early.iter().all(|record| time(record).is_none_or(|t| t < 1e9)), "{}", early[0]);
    let is_right = |record: &Value| time(record).is_some_and(|t| t > begun_s - 1.0 && t < now_s() + 1.0);
    assert!(
        late.len() > 100 && late.iter().all(|record| is_right(record)),
        "{:?}",
        late.iter().find(|r| !is_right(r))
    );
    assert!(late.iter().any(|record| record["corrected"] == true));
    let report = ledger.ledger().check(&gateway.stored());
    assert!(report.inversions.is_empty(), "nothing is put into another order");
}

#[test]
fn a_step_back_of_the_time_reorders_nothing_and_is_written_down() {
    let scratch = Scratch::new("gnss");
    let receiver = Receiver::new(&scratch);
    let gateway = in_1970().tables(&(sensor() + &nmea(&receiver.port))).start();
    receiver.speak(7200);
    wait_for_quality(&gateway, "gnss");
    let records = |gateway: &Tidegate| log(gateway).iter().filter(|line| line["clock"].is_object()).count();
    wait_until(10 * SECOND, || (records(&gateway) == 1).then_some(()))
        .expect("the first agreement is written down");
    // The receiver thinks better of it: two hours back.
    receiver.speak(0);
    wait_until(20 * SECOND, || (records(&gateway) == 2).then_some(())).expect("and so is the step");
    let newest = gateway.newest();
    wait_until(20 * SECOND, || (gateway.newest() > newest + 50).then_some(())).unwrap();
    let lines = log(&gateway);
    let places: Vec<u64> = lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    assert!(places.windows(2).all(|pair| pair[0] < pair[1]), "the log is in the order of its places");
    let times: Vec<&str> = lines
        .iter()
        .filter(|line| line["channel"] == "cellar/temperature")
        .filter_map(|line| line["time"].as_str())
        .collect();
    assert!(times.windows(2).any(|pair| pair[0] > pair[1]), "the times did go back");
    assert!(
        times.iter().all(|time| time.starts_with(&year())),
        "{:?}",
        times.iter().find(|t| t.starts_with("1970"))
    );
}

#[test]
fn a_machine_in_1970_gets_through_tls_by_the_newest_moment_it_remembers() {
    let scratch = Scratch::new("gnss");
    let receiver = Receiver::new(&scratch);
    // Certified now: later than the program was built.
    let (pem, key) = certificate(&scratch);
    let door = Port::reserve();
    let broker = Mosquitto::with(MosquittoConfig {
        persistence: false,
        extra: vec![
            format!("listener {} 127.0.0.1", door.number()),
            format!("certfile {}", pem.display()),
            format!("keyfile {}", key.display()),
        ],
        ..MosquittoConfig::default()
    });
    let ledger = MqttLedger::start(broker.address(), "#", 1);
    let cloud = format!(
        "[[uplink]]\nname = \"cloud\"\ntype = \"mqtt\"\naddress = \"{}\"\ntls = {{ ca = {} }}\n",
        door.address(),
        quoted(&pem)
    );
    let mut gateway = in_1970().tables(&(sensor() + &cloud)).start();
    let uplink = |gateway: &Tidegate| gateway.status()["uplinks"][0].clone();
    let refused = wait_until(20 * SECOND, || {
        let uplink = uplink(&gateway);
        (uplink["state"] == "backoff").then(|| uplink["detail"].as_str().unwrap_or_default().to_owned())
    });
    assert!(refused.as_deref().is_some_and(|why| why.contains("valid yet")), "{refused:?}");
    assert_eq!(ledger.ledger().distinct(), 0);
    gateway.stop();
    // One run that knows the time, without the uplink.
    gateway.configure("", &(sensor() + &nmea(&receiver.port)));
    gateway.start();
    receiver.speak(0);
    wait_for_quality(&gateway, "gnss");
    let is_written =
        wait_until(10 * SECOND, || log(&gateway).iter().any(|line| line["clock"].is_object()).then_some(()));
    assert!(is_written.is_some());
    // The floor is kept right behind the record.
    std::thread::sleep(SECOND);
    gateway.kill();
    // From then on 1970 is no obstacle, although nobody tells the time.
    gateway.configure("", &(sensor() + &cloud));
    gateway.start();
    assert_eq!(quality(&gateway), "none");
    assert!(ledger.wait_for_ids(50, 20 * SECOND), "{}", uplink(&gateway));
}

#[test]
fn without_the_time_no_command_with_an_expiry_is_carried_out() {
    let pump = "[[device]]\nname = \"pump\"\ntype = \"gpio-output\"\nchip = \"sim\"\nline = \"GPIO27\"\n";
    let gateway = in_1970().tables(pump).start();
    wait_until(10 * SECOND, || (gateway.newest() > 0).then_some(())).unwrap();
    assert_eq!(quality(&gateway), "none");
    let refused = gateway.cli_json(&["set", "pump/state", "on", "--expires", "2100-01-01T00:00:00Z"]);
    assert_eq!(refused["state"], "clock-unset", "{refused}");
    let done = gateway.cli_json(&["set", "pump/state", "on", "--id", "without expiry"]);
    assert_eq!(done["state"], "done", "{done}");
}
