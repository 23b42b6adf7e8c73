//! The MQTT uplink against mosquitto: what each delivery promises, through every fault; the platforms' forms; commands.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{
    Authority, Door, FaultProxy, Id, Incoming, Mode, Mosquitto, MosquittoConfig, MqttClient, MqttLedger,
    Process, Report, Rng, Scratch, Tidegate, quoted, record_of, tool, wait_until,
};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
/// Entries that a course sends through its faults.
const READINGS: u64 = 60_000;
const FORWARD: &str = "forward = [\"site/#\"]";

const SENSORS: &str = r#"
[[device]]
name = "cellar"
type = "bme280"
bus = "sim"
address = 0x76
interval = "10ms"
"#;

const RELAY: &str = r#"
[[device]]
name = "relay"
type = "gpio-output"
chip = "sim"
line = "GPIO17"
"#;

fn cloud(address: SocketAddr, lines: &str) -> String {
    format!("[[uplink]]\nname = \"cloud\"\ntype = \"mqtt\"\naddress = \"{address}\"\n{lines}\n")
}

fn uplink(gateway: &Tidegate) -> Value {
    gateway.status()["uplinks"][0].clone()
}

/// The ids that the uplink has to deliver.
fn stored(gateway: &Tidegate) -> BTreeSet<Id> {
    let epoch = gateway.status()["spool"]["epoch"].as_str().unwrap().to_owned();
    gateway.stored().into_iter().map(|id| Id { epoch: epoch.clone(), ..id }).collect()
}

/// Waits until nothing waits for the uplink any more.
fn drained(gateway: &Tidegate, limit: Duration) {
    let is_empty = |status: &Value| {
        let lanes = ["alarm", "live", "backfill"].map(|lane| status["lanes"][lane].as_u64());
        lanes == [Some(0); 3] && status["in_flight"] == 0
    };
    let done = wait_until(limit, || {
        thread::sleep(Duration::from_millis(50));
        is_empty(&uplink(gateway)).then_some(())
    });
    assert!(done.is_some(), "not drained within {limit:?}: {}", uplink(gateway));
}

/// LAN clients that publish so many numbered messages at `QoS` 1 on forwarded topics, each as often as it takes to be
/// acknowledged, whatever becomes of the gateway meanwhile.
struct Visitors {
    acknowledged: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Visitors {
    fn start(gateway: SocketAddr, count: u64) -> Self {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let threads = (0..3).map(|visitor| {
            let acknowledged = Arc::clone(&acknowledged);
            thread::spawn(move || {
                let mut next = 0;
                while next < count / 3 {
                    let Ok(mut client) = MqttClient::connect(gateway, &format!("visitor{visitor}")) else {
                        thread::sleep(Duration::from_millis(10));
                        continue;
                    };
                    while next < count / 3 {
                        let burst = (count / 3 - next).min(200);
                        if publish(&mut client, visitor, next, burst).is_err() {
                            break;
                        }
                        next += burst;
                        acknowledged.fetch_add(burst, Ordering::Relaxed);
                    }
                }
            })
        });
        Self { threads: threads.collect(), acknowledged }
    }

    fn are_done(&self) -> bool {
        self.threads.iter().all(thread::JoinHandle::is_finished)
    }

    fn join(self) -> u64 {
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.acknowledged.load(Ordering::Relaxed)
    }
}

/// Publishes `count` messages and waits for all their acknowledgements.
fn publish(client: &mut MqttClient, visitor: u64, first: u64, count: u64) -> std::io::Result<()> {
    let mut open = BTreeSet::new();
    for number in first..first + count {
        let topic = format!("site/door{visitor}");
        open.insert(client.publish(&topic, format!("visit {visitor} {number}").as_bytes(), 1, false)?);
    }
    while !open.is_empty() {
        match client.read(5 * SECOND)? {
            Some(Incoming::Done(id)) => drop(open.remove(&id)),
            Some(_) => {}
            None => return Err(std::io::ErrorKind::TimedOut.into()),
        }
    }
    Ok(())
}

/// What came of 60,000 entries on a way that flaps every 150 to 600 ms, whose broker restarts twice, and whose gateway
/// is killed again and again until everything is through.
struct Course {
    report: Report,
    doubtful: u64,
}

fn course(name: &str, lines: &str) -> Course {
    let begun = Instant::now();
    let mut rng = Rng::from_env(name);
    let mut broker = Mosquitto::durable();
    let mut wire = FaultProxy::start(broker.address());
    // The consumer stands beside the broker: it is the gateway's way there that is faulty.
    let ledger = MqttLedger::start(broker.address(), "#", 2);
    let uplink_table = cloud(wire.address(), lines);
    let mut gateway = Tidegate::builder().mqtt(FORWARD).tables(SENSORS).tables(&uplink_table).start();
    let visitors = Visitors::start(gateway.mqtt(), READINGS);
    wire.flap(Rng::new(rng.bits()), Duration::from_millis(150), Duration::from_millis(600));
    let mut kills = 0;
    // Until everything published is nearly through, and enough has gone wrong on the way.
    let is_enough = |kills: usize, gateway: &Tidegate| {
        let has_suffered = kills >= 12 && wire.cuts() >= 20;
        begun.elapsed() > 45 * SECOND || (has_suffered && visitors.are_done() && is_nearly_through(gateway))
    };
    while !is_enough(kills, &gateway) {
        thread::sleep(rng.between(Duration::from_millis(300), Duration::from_millis(2500)));
        match kills {
            3 | 6 => broker.stop(),
            4 | 7 => broker.restart(),
            _ => {}
        }
        gateway.kill();
        kills += 1;
        gateway.start();
    }
    let published = visitors.join();
    wire.calm();
    gateway.stop();
    // Without sensors: what is in the spool now is what must come out.
    gateway.configure(FORWARD, &uplink_table);
    gateway.start();
    let ids = stored(&gateway);
    drained(&gateway, 60 * SECOND);
    wait_for_the_end(&broker, &ledger);
    let report = ledger.ledger().check(&ids);
    println!(
        "{name}: {} entries, {published} of them LAN messages, {kills} kills, {} cuts, {:.0?}",
        ids.len(),
        wire.cuts(),
        begun.elapsed()
    );
    println!("{}\n{}", Report::HEAD, report.row(name));
    assert!(ids.len() as u64 >= READINGS, "{} entries", ids.len());
    assert!(wire.cuts() >= 20 && kills >= 12, "not faulty enough: {} cuts, {kills} kills", wire.cuts());
    Course { report, doubtful: uplink(&gateway)["doubtful"].as_u64().unwrap() }
}

fn is_nearly_through(gateway: &Tidegate) -> bool {
    uplink(gateway)["waiting"].as_u64().is_some_and(|waiting| waiting < 500)
}

/// A subscriber's queue is a line: when this has come, so has everything before it.
fn wait_for_the_end(broker: &Mosquitto, ledger: &MqttLedger) {
    let mut last = MqttClient::connect(broker.address(), "last").unwrap();
    last.publish_and_wait("the/end", b"", 2).unwrap();
    let came = wait_until(60 * SECOND, || {
        thread::sleep(Duration::from_millis(100));
        ledger.messages().iter().any(|message| message["topic"] == "the/end").then_some(())
    });
    assert!(came.is_some(), "the subscriber does not get on");
}

#[test]
fn exactly_once_loses_nothing_and_repeats_nothing_through_flaps_kills_and_broker_restarts() {
    let lines = "delivery = \"exactly-once\"\nbatch = 20\nbatch_wait = \"50ms\"";
    let Course { report, doubtful } = course("exactly-once", lines);
    report.assert_whole("exactly-once");
    assert_eq!(
        (report.repeated, doubtful),
        (0, 0),
        "the broker kept its sessions: there was nothing to doubt"
    );
}

#[test]
fn exactly_once_holds_for_mqtt_3_1_1_too() {
    let lines = "version = \"3.1.1\"\ndelivery = \"exactly-once\"\nbatch = 50\nbatch_wait = \"50ms\"";
    let Course { report, doubtful } = course("exactly-once 3.1.1", lines);
    report.assert_whole("exactly-once 3.1.1");
    assert_eq!((report.repeated, doubtful), (0, 0));
}

#[test]
fn at_least_once_loses_nothing_and_repeats_no_more_than_a_window() {
    let lines = "delivery = \"at-least-once\"\nwindow = 500\nbatch = 20\nbatch_wait = \"50ms\"";
    let Course { report, .. } = course("at-least-once", lines);
    report.assert_whole("at-least-once");
    assert!(report.farthest_repeat <= 2 * 500, "repeated from {} places back", report.farthest_repeat);
    assert!(report.repeated > 0, "no fault ever hit a message under way");
}

#[test]
fn at_most_once_repeats_nothing_whatever_fails() {
    let lines = "delivery = \"at-most-once\"\nbatch = 20\nbatch_wait = \"50ms\"";
    let Course { report, .. } = course("at-most-once", lines);
    assert_eq!((report.repeated, report.unexpected.len()), (0, 0));
    assert!(report.inversions.is_empty(), "out of order: {:?}", report.inversions);
    // Whether a fault hits one of the few messages that are under way is chance: none may be lost.
    assert!(report.lost.len() < report.expected / 2, "{} lost", report.lost.len());
}

#[test]
fn a_session_that_the_broker_loses_costs_nothing_and_what_may_come_twice_is_counted() {
    let mut rng = Rng::from_env("lost sessions");
    let broker = Mosquitto::durable();
    let wire = FaultProxy::start(broker.address());
    let ledger = MqttLedger::start(broker.address(), "#", 2);
    let table = cloud(wire.address(), "delivery = \"exactly-once\"\nclient_id = \"ours\"");
    let mut gateway = Tidegate::builder().mqtt(FORWARD).tables(SENSORS).tables(&table).start();
    let visitors = Visitors::start(gateway.mqtt(), 15_000);
    for round in 0..15 {
        wait_until(20 * SECOND, || (uplink(&gateway)["state"] == "connected").then_some(())).unwrap();
        thread::sleep(rng.between(Duration::from_millis(20), Duration::from_millis(600)));
        // Somebody with our client id and a clean session: ours is gone, whatever was under way in it.
        if round % 3 == 0 {
            MqttClient::connect(broker.address(), "ours").unwrap();
            continue;
        }
        // The same while nothing gets through any more, and then a session in its place that is not ours; the gateway
        // lives on, or is killed and has to find out.
        wire.set(Mode::Blackhole);
        thread::sleep(Duration::from_millis(100));
        if round % 3 == 1 {
            gateway.kill();
        }
        MqttClient::connect(broker.address(), "ours").unwrap();
        MqttClient::connect_with(broker.address(), "ours", false).unwrap();
        wire.set(Mode::Pass);
        wire.cut();
        if round % 3 == 1 {
            gateway.start();
        }
    }
    visitors.join();
    gateway.stop();
    gateway.configure(FORWARD, &table);
    gateway.start();
    let ids = stored(&gateway);
    drained(&gateway, 60 * SECOND);
    wait_for_the_end(&broker, &ledger);
    let doubtful = uplink(&gateway)["doubtful"].as_u64().unwrap();
    let report = ledger.ledger().check(&ids);
    println!("{}\n{}\n{doubtful} in doubt", Report::HEAD, report.row("lost sessions"));
    report.assert_whole("lost sessions");
    assert!(report.repeated as u64 <= doubtful, "{} repeated, {doubtful} in doubt", report.repeated);
    assert!(doubtful > 0, "no session was lost at the moment that matters");
}

#[test]
fn a_far_side_that_refuses_hangs_crawls_or_resets_in_mid_tls_costs_no_reading() {
    let ours = Authority::new("ours");
    let door = Door::open().tls(&ours);
    let broker =
        Mosquitto::with(MosquittoConfig { persistence: true, doors: vec![door], ..Default::default() });
    let ledger = MqttLedger::start(broker.address(), "#", 2);
    let wire = FaultProxy::start(broker.door(0));
    let table = cloud(
        wire.address(),
        &format!(
            "delivery = \"exactly-once\"\nkeep_alive = \"5s\"\ntls = {{ ca = {} }}",
            quoted(&ours.pem())
        ),
    );
    let mut gateway = Tidegate::builder().mqtt(FORWARD).tables(SENSORS).tables(&table).start();
    assert!(ledger.wait_for_ids(50, 20 * SECOND), "{}", uplink(&gateway));
    for mode in [Mode::ResetAfter(700), Mode::Refuse, Mode::Hang, Mode::Slow(4000), Mode::ResetAfter(6000)] {
        wire.set(mode);
        wire.cut();
        let before = wire.cuts() + wire.accepted();
        let bitten = wait_until(20 * SECOND, || {
            let is_tried = mode == Mode::Refuse || wire.cuts() + wire.accepted() > before;
            (is_tried && uplink(&gateway)["state"] != "connected" || mode == Mode::Slow(4000)).then_some(())
        });
        assert!(bitten.is_some(), "{mode:?}: {}", uplink(&gateway));
        thread::sleep(Duration::from_millis(500));
    }
    wire.set(Mode::Pass);
    wire.cut();
    gateway.stop();
    gateway.configure(FORWARD, &table);
    gateway.start();
    let ids = stored(&gateway);
    drained(&gateway, 30 * SECOND);
    wait_for_the_end(&broker, &ledger);
    let report = ledger.ledger().check(&ids);
    println!("{}\n{}", Report::HEAD, report.row("over TLS"));
    report.assert_whole("over TLS");
    assert_eq!(report.repeated, 0);
}

#[test]
fn an_uplink_comes_by_websocket_and_with_its_certificate_and_trusts_no_other_authority() {
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let doors = vec![
        Door::open().websocket(),
        Door::open().websocket().tls(&ours),
        Door::for_certificates(&ours).tls(&ours).allowing(&["user barn", "topic write tidegate/#"]),
    ];
    let broker = Mosquitto::with(MosquittoConfig { doors, ..Default::default() });
    let ledger = MqttLedger::start(broker.address(), "#", 1);
    let client = ours.client("barn");
    let ca = quoted(&ours.pem());
    let certificate = format!("certificate = {}, key = {}", quoted(&client.pem), quoted(&client.key));
    let tables = [
        cloud(broker.door(0), "transport = \"websocket\"\npath = \"/mqtt\""),
        cloud(broker.door(1), &format!("transport = \"websocket\"\ntls = {{ ca = {ca} }}")),
        cloud(broker.door(2), &format!("tls = {{ ca = {ca}, {certificate} }}")),
    ];
    let mut gateway = Tidegate::builder().tables(SENSORS).tables(&tables[0]).start();
    for (number, table) in tables.iter().enumerate() {
        let before = ledger.ledger().distinct();
        gateway.stop();
        gateway.configure("", &format!("{SENSORS}{table}"));
        gateway.start();
        assert!(ledger.wait_for_ids(before + 100, 20 * SECOND), "way {number}: {}", uplink(&gateway));
    }
    for lines in [
        format!("tls = {{ ca = {ca} }}"),
        format!("tls = {{ ca = {}, {certificate} }}", quoted(&foreign.pem())),
    ] {
        gateway.stop();
        gateway.configure("", &format!("{SENSORS}{}", cloud(broker.door(2), &lines)));
        gateway.start();
        let refused = wait_until(20 * SECOND, || {
            let uplink = uplink(&gateway);
            (uplink["state"] == "backoff").then(|| uplink["detail"].as_str().unwrap_or("").to_owned())
        });
        assert!(refused.as_deref().is_some_and(|why| why.contains("ertificate")), "{lines}: {refused:?}");
    }
}

#[test]
fn properties_say_how_long_a_message_is_good_what_it_is_and_which_entries_it_holds() {
    let broker = Mosquitto::start();
    let mut listen = Command::new(tool("mosquitto_sub"));
    listen.args([
        "-V",
        "5",
        "-h",
        "127.0.0.1",
        "-p",
        &broker.address().port().to_string(),
        "-t",
        "tidegate/#",
    ]);
    listen.args(["-F", "got %t|%E|%C|%P|%x"]);
    let scratch = Scratch::new("properties");
    let listener = Process::start("mosquitto_sub", &scratch, listen);
    let lines = "message_expiry = \"1h\"\nbatch = 5\nencoding = \"senml-cbor\"\ncompression = \"zstd\"";
    let _gateway = Tidegate::builder().tables(SENSORS).tables(&cloud(broker.address(), lines)).start();
    let line = listener.wait_for_line("$batch", 20 * SECOND);
    let parts: Vec<&str> = line.split('|').collect();
    assert_eq!((parts[0], parts[2]), ("got tidegate/barn/$batch/live", "application/senml+cbor"), "{line}");
    let expiry: u32 = parts[1].parse().unwrap();
    assert!((3_590..=3_600).contains(&expiry), "{line}");
    assert!(parts[3].contains("id:barn/") && parts[3].contains("lane:live"), "{line}");
    assert!(parts[3].contains("content-encoding:zstd"), "{line}");
    assert!(parts[4].starts_with("28b52ffd"), "a Zstandard frame: {line}");
}

/// A file with a secret, as a configuration names it.
fn secret(scratch: &Scratch, name: &str, text: &str) -> String {
    format!("{{ file = {} }}", quoted(&scratch.write(name, text)))
}

/// The first message whose topic begins so.
fn message(ledger: &MqttLedger, begin: &str, gateway: &Tidegate) -> Value {
    let found = wait_until(20 * SECOND, || {
        let messages = ledger.messages();
        messages
            .into_iter()
            .find(|message| message["topic"].as_str().is_some_and(|topic| topic.starts_with(begin)))
    });
    found.unwrap_or_else(|| panic!("nothing on {begin}: {}", uplink(gateway)))
}

#[test]
fn aws_iot_core_is_met_with_a_thing_its_certificate_and_no_more_than_its_policy_allows() {
    let ours = Authority::new("ours");
    let acl = [
        "user barn",
        "topic write tidegate/barn/+/+",
        "topic write tidegate/barn/$state",
        "topic read tidegate/barn/+/+/set",
    ];
    let door = Door::for_certificates(&ours).tls(&ours).allowing(&acl);
    let broker = Mosquitto::with(MosquittoConfig {
        doors: vec![door],
        // As there: no QoS 2, nothing retained.
        extra: vec!["max_qos 1".into(), "retain_available false".into()],
        ..Default::default()
    });
    let ledger = MqttLedger::start(broker.address(), "tidegate/#", 1);
    let client = ours.client("barn");
    let (ca, pem, key) = (quoted(&ours.pem()), quoted(&client.pem), quoted(&client.key));
    let lines = format!("preset = \"aws-iot\"\ntls = {{ ca = {ca}, certificate = {pem}, key = {key} }}");
    let gateway = Tidegate::builder().tables(SENSORS).tables(&cloud(broker.door(0), &lines)).start();
    let reading = message(&ledger, "tidegate/barn/cellar/temperature", &gateway);
    assert_eq!(record_of(reading["payload"].as_str().unwrap()).len(), 1, "{reading}");
    assert_eq!(message(&ledger, "tidegate/barn/$state", &gateway)["payload"], "online");
    broker.process().wait_for_line("as barn (p5", 5 * SECOND);
}

#[test]
fn azure_iot_hub_is_met_by_its_device_with_a_token_that_is_renewed() {
    let ours = Authority::new("ours");
    let scratch = Scratch::new("azure");
    // A token differs every time, and mosquitto cannot check one: it looks at the name. What a token is made of has a
    // test beside its code.
    let acl = [
        "user 127.0.0.1/dev/?api-version=2021-04-12",
        "topic write devices/dev/messages/events/#",
        "topic read devices/dev/messages/devicebound/#",
    ];
    let door = Door::open().tls(&ours).allowing(&acl);
    let broker = Mosquitto::with(MosquittoConfig {
        doors: vec![door],
        extra: vec!["max_qos 1".into(), "retain_available false".into()],
        ..Default::default()
    });
    let ledger = MqttLedger::start(broker.address(), "devices/dev/messages/events/#", 1);
    let key = secret(&scratch, "key", "YSBkZXZpY2Uga2V5IG9mIDMyIGJ5dGVzIGV4YWN0bHk=\n");
    let lines = format!(
        "preset = \"azure-iot-hub\"\nclient_id = \"dev\"\ndevice_key = {key}\ntoken_lifetime = \"10s\"\ncommands = true\n\
         tls = {{ ca = {} }}",
        quoted(&ours.pem())
    );
    let tables = format!("{SENSORS}{RELAY}{}", cloud(broker.door(0), &lines));
    let gateway = Tidegate::builder().tables(&tables).start();
    let reading = message(&ledger, "devices/dev/messages/events/", &gateway);
    let topic = reading["topic"].as_str().unwrap();
    let wanted = "devices/dev/messages/events/$.ct=application%2Fjson&$.ce=utf-8&id=barn%2F";
    assert!(topic.starts_with(wanted) && topic.ends_with("&lane=live"), "{topic}");
    // A command, as the hub hands it down, and its outcome as a message of its own.
    let mut hub = MqttClient::connect(broker.address(), "hub").unwrap();
    let down = "devices/dev/messages/devicebound/%24.mid=order-1&%24.exp=2100-01-01T00%3A00%3A00Z&%24.to=%2Fdevices%2Fdev%2Fmessages%2Fdevicebound";
    hub.publish_and_wait(down, br#"{"channel": "relay/state", "value": "on"}"#, 1).unwrap();
    outcome(&ledger, "order-1", &gateway);
    // A second connection under the same name, with nothing lost between.
    let renewed = wait_until(20 * SECOND, || {
        let lines = broker.process().lines();
        (lines.iter().filter(|line| line.contains(" as dev (p2")).count() >= 2).then_some(())
    });
    assert!(renewed.is_some(), "the token was not renewed");
    let ids = ledger.ledger().distinct();
    assert!(ledger.wait_for_ids(ids + 100, 10 * SECOND), "{}", uplink(&gateway));
}

#[test]
fn thingsboard_is_met_as_a_gateway_with_its_token_and_gets_json_by_device_and_time() {
    let ours = Authority::new("ours");
    let scratch = Scratch::new("thingsboard");
    let acl = ["user A1_TOKEN", "topic write v1/gateway/telemetry", "topic readwrite v1/gateway/rpc"];
    let broker = Mosquitto::with(MosquittoConfig {
        doors: vec![Door::open().tls(&ours).allowing(&acl)],
        extra: vec!["max_qos 1".into()],
        ..Default::default()
    });
    let ledger = MqttLedger::start(broker.address(), "v1/#", 1);
    let token = secret(&scratch, "token", "A1_TOKEN\n");
    let lines = format!(
        "preset = \"thingsboard\"\naccess_token = {token}\ncommands = true\nbatch = 10\ntls = {{ ca = {} }}",
        quoted(&ours.pem())
    );
    let tables = format!("{SENSORS}{RELAY}{}", cloud(broker.door(0), &lines));
    let gateway = Tidegate::builder().tables(&tables).start();
    let telemetry = message(&ledger, "v1/gateway/telemetry", &gateway);
    let body: Value = serde_json::from_str(telemetry["payload"].as_str().unwrap()).unwrap();
    let row = &body["cellar"][0];
    assert!(row["ts"].as_i64().is_some_and(|ts| ts > 1_500_000_000_000), "{body}");
    assert!(row["values"]["temperature"].is_number() && row["values"]["pressure"].is_number(), "{body}");
    let mut platform = MqttClient::connect(broker.address(), "platform").unwrap();
    platform.subscribe("v1/gateway/rpc", 1).unwrap();
    let request = br#"{"device": "relay", "data": {"id": 7, "method": "state", "params": true}}"#;
    platform.publish_and_wait("v1/gateway/rpc", request, 1).unwrap();
    let answer = wait_until(10 * SECOND, || match platform.read(SECOND).unwrap() {
        Some(Incoming::Publish { payload, .. }) if payload != request => Some(payload),
        _ => None,
    });
    let answer: Value = serde_json::from_slice(&answer.expect("no answer")).unwrap();
    assert_eq!(
        (&answer["device"], &answer["id"], &answer["data"]["ok"]),
        (&json!("relay"), &json!(7), &json!(true))
    );
}

#[test]
fn hivemq_and_emqx_are_met_by_user_name_over_tls_and_websocket() {
    let ours = Authority::new("ours");
    let scratch = Scratch::new("hivemq");
    let acl = ["user pi", "topic write tidegate/barn/#", "topic readwrite tidegate/barn/$session/#"];
    let door = || Door::for_users(&[("pi", "secret")]).tls(&ours).allowing(&acl);
    let doors = vec![door(), door().websocket()];
    let broker = Mosquitto::with(MosquittoConfig { doors, ..Default::default() });
    let ledger = MqttLedger::start(broker.address(), "tidegate/#", 2);
    let (right, wrong) = (secret(&scratch, "right", "secret"), secret(&scratch, "wrong", "guess"));
    let table = |preset: &str, door: usize, password: &str, more: &str| {
        let lines = format!(
            "preset = \"{preset}\"\ndelivery = \"exactly-once\"\nusername = \"pi\"\npassword = {password}\n\
             tls = {{ ca = {} }}\n{more}",
            quoted(&ours.pem())
        );
        format!("{SENSORS}{}", cloud(broker.door(door), &lines))
    };
    let mut gateway = Tidegate::builder().tables(&table("hivemq", 0, &right, "")).start();
    assert!(ledger.wait_for_ids(100, 20 * SECOND), "{}", uplink(&gateway));
    gateway.stop();
    gateway.configure("", &table("emqx", 1, &right, "transport = \"websocket\""));
    gateway.start();
    let before = ledger.ledger().distinct();
    assert!(ledger.wait_for_ids(before + 100, 20 * SECOND), "{}", uplink(&gateway));
    gateway.stop();
    gateway.configure("", &table("emqx", 0, &wrong, ""));
    gateway.start();
    let refused =
        wait_until(20 * SECOND, || (uplink(&gateway)["state"] == "backoff").then(|| uplink(&gateway)));
    assert!(refused.is_some(), "{}", uplink(&gateway));
    assert_eq!(ledger.ledger().check(&stored(&gateway)).repeated, 0);
}

/// The outcome of the command with that id.
fn outcome(ledger: &MqttLedger, id: &str, gateway: &Tidegate) -> Value {
    let found = wait_until(20 * SECOND, || {
        let messages = ledger.messages();
        let records = messages.iter().filter_map(|message| {
            serde_json::from_str::<Value>(message["payload"].as_str()?).ok()?.as_array().cloned()
        });
        let outcomes = records.flatten().filter_map(|record| {
            let is_outcome = record["n"].as_str().is_some_and(|name| name.ends_with("/set/result"));
            serde_json::from_str::<Value>(record["vs"].as_str()?).ok().filter(|_| is_outcome)
        });
        outcomes.into_iter().find(|outcome| outcome["id"] == id)
    });
    found.unwrap_or_else(|| panic!("no outcome of {id}: {}", uplink(gateway)))
}

#[test]
fn a_command_comes_down_by_subscription_is_done_once_and_never_after_its_expiry() {
    let extra = vec!["log_type all".to_owned()];
    let broker = Mosquitto::with(MosquittoConfig { persistence: true, extra, ..Default::default() });
    let ledger = MqttLedger::start(broker.address(), "tidegate/#", 1);
    let table = cloud(broker.address(), "commands = true\ndelivery = \"exactly-once\"");
    let mut gateway = Tidegate::builder().tables(&format!("{RELAY}{table}")).start();
    wait_until(20 * SECOND, || (uplink(&gateway)["state"] == "connected").then_some(())).unwrap();
    broker.process().wait_for_line("tidegate/barn/+/+/set", 10 * SECOND);
    let mut operator = MqttClient::connect(broker.address(), "operator").unwrap();
    let set = "tidegate/barn/relay/state/set";
    let order = |value: &str, id: &str, year: u32| {
        format!(r#"{{"value": "{value}", "id": "{id}", "expires": "{year}-01-01T00:00:00Z"}}"#)
    };
    let mut send = |text: &str| operator.publish_and_wait(set, text.as_bytes(), 1).unwrap();
    send(&order("on", "one", 2100));
    assert_eq!(outcome(&ledger, "one", &gateway)["ok"], true);
    send(&order("off", "late", 2020));
    assert_eq!(outcome(&ledger, "late", &gateway)["ok"], false);
    // What is sent while the gateway is away waits in the session: with an expiry it is good until then, without one
    // nobody knows how old it is. What comes again is not done again.
    gateway.stop();
    send(r#"{"value": "off", "id": "unknown age"}"#);
    send(&order("off", "good", 2100));
    send(&order("on", "one", 2100));
    gateway.start();
    assert_eq!(outcome(&ledger, "good", &gateway)["ok"], true);
    gateway.process().wait_for_line("command refused: a command from beyond the LAN needs", 10 * SECOND);
    drained(&gateway, 10 * SECOND);
    let outcomes = ledger.messages();
    let done = |id: &str| {
        let named = format!("\\\"id\\\":\\\"{id}\\\"");
        let texts = outcomes.iter().filter_map(|message| message["payload"].as_str());
        texts.filter(|text| text.contains("set/result") && text.contains(&named)).count()
    };
    assert_eq!((done("good"), done("one"), done("unknown age")), (1, 1, 0), "carried out and reported once");
}
