//! Nothing that was acknowledged is lost: two uplinks, faults on both, and `kill -9` at random moments.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use harness::{
    AmqpLedger, FaultProxy, Incoming, Ledger, Mosquitto, MqttClient, MqttLedger, RabbitMq, Report, Rng,
    Tidegate, out_dir, wait_until,
};
use serde_json::Value;

/// The readings that must have been in the spool before the faults end, and the kills until then.
const READINGS: u64 = 20_000;
const KILLS: usize = 50;
/// Entries beyond the cursor on disk: in flight, or confirmed since the cursor was stored last. No more is repeated.
const WINDOW: u64 = 200;

const SENSORS: &str = r#"
[[device]]
name = "cellar"
type = "bme280"
bus = "sim"
address = 0x76
interval = "5ms"

[[device]]
name = "attic"
type = "bme280"
bus = "sim"
address = 0x77
interval = "7ms"
"#;

#[test]
fn every_id_that_was_in_the_spool_reaches_both_clouds_through_faults_and_fifty_kills() {
    let mut rng = Rng::from_env("kill");
    let begun = Instant::now();
    let mut mosquitto = Mosquitto::durable();
    let mut rabbit = RabbitMq::start();
    let mut mqtt_wire = FaultProxy::start(mosquitto.address());
    let mut amqp_wire = FaultProxy::start(rabbit.address());
    // The consumers stand beside the brokers: it is the gateway's way there that is faulty.
    let on_mqtt = MqttLedger::start(mosquitto.address(), "#", 2);
    let on_amqp = AmqpLedger::start(rabbit.address(), "tidegate");
    let uplinks = uplinks(mqtt_wire.address(), amqp_wire.address());
    let forward = "forward = [\"site/#\"]";
    let mut gateway = Tidegate::builder().mqtt(forward).tables(SENSORS).tables(&uplinks).start();
    let visitor = Visitor::start(gateway.mqtt());

    let (low, high) = (Duration::from_millis(200), Duration::from_millis(2500));
    mqtt_wire.flap(Rng::new(rng.bits()), low, high);
    amqp_wire.flap(Rng::new(rng.bits()), low, high);
    let mut kills = 0;
    while kills < KILLS {
        thread::sleep(rng.between(Duration::from_millis(20), Duration::from_millis(1500)));
        gateway.kill();
        kills += 1;
        match kills {
            10 | 30 => mosquitto.stop(),
            15 | 35 => mosquitto.restart(),
            20 => rabbit.stop(),
            25 => rabbit.restart(),
            // The broker itself dies: what it confirmed is on its disk.
            40 => {
                rabbit.kill();
                rabbit.restart();
            }
            _ => {}
        }
        gateway.start();
    }
    // Every publish of the visitor may be an entry too, the unacknowledged included.
    let enough = wait_until(Duration::from_secs(180), || {
        (gateway.newest() >= READINGS + visitor.published.load(Ordering::Relaxed)).then_some(())
    });
    assert!(enough.is_some(), "{} entries after {:?}", gateway.newest(), begun.elapsed());

    // The faults end, and the sensors: what is in the spool now is what must come out.
    let visits = visitor.stop();
    mqtt_wire.calm();
    amqp_wire.calm();
    gateway.stop();
    gateway.configure(forward, &uplinks);
    gateway.start();
    let ids = gateway.stored();
    let drained = Duration::from_secs(120);
    let on_time = [on_mqtt.wait_for_ids(ids.len(), drained), on_amqp.wait_for_ids(ids.len(), drained)];

    let (mqtt, amqp) = (on_mqtt.ledger().check(&ids), on_amqp.ledger().check(&ids));
    let table = [
        format!(
            "{} entries, {kills} kills, {} and {} cuts, {:.0?}",
            ids.len(),
            mqtt_wire.cuts(),
            amqp_wire.cuts(),
            begun.elapsed()
        ),
        Report::HEAD.to_owned(),
        mqtt.row("mosquitto"),
        amqp.row("RabbitMQ"),
        format!("LAN publishes acknowledged at QoS 1: {}", visits.len()),
    ]
    .join("\n");
    println!("\n{table}");
    std::fs::write(out_dir().join("ledger.txt"), table + "\n").unwrap();
    for (name, report, messages) in
        [("mosquitto", &mqtt, on_mqtt.messages()), ("RabbitMQ", &amqp, on_amqp.messages())]
    {
        report.assert_whole(name);
        assert!(
            report.farthest_repeat <= WINDOW,
            "{name}: repeated from {} places back",
            report.farthest_repeat
        );
        let missing = missing(&visits, &messages);
        assert!(
            missing.is_empty(),
            "{name}: {} acknowledged publishes are missing: {missing:?}",
            missing.len()
        );
    }
    assert_eq!(on_time, [true, true], "the spool did not drain within {drained:?}");
    assert!(mqtt_wire.cuts() > 10 && amqp_wire.cuts() > 10, "the wires were not faulty");
    assert!(visits.len() > 500, "only {} publishes were acknowledged", visits.len());
}

#[test]
fn an_acknowledged_publish_of_a_lan_client_survives_kill_at_any_moment() {
    let mut rng = Rng::from_env("lan kill");
    let mosquitto = Mosquitto::durable();
    let on_mqtt = MqttLedger::start(mosquitto.address(), "#", 1);
    let forward = "forward = [\"site/#\"]";
    let cloud = mqtt_uplink(mosquitto.address());
    let mut gateway = Tidegate::builder().mqtt(forward).tables(&cloud).start();
    let mut acknowledged = HashSet::new();
    for round in 0..20 {
        let visitor = Visitor::start_numbered(gateway.mqtt(), round * 1_000_000);
        // Killed while publishes are on their way: some of them have been acknowledged an instant before.
        let enough = rng.below(40);
        wait_until(Duration::from_secs(20), || (visitor.acknowledged() > enough).then_some(())).unwrap();
        gateway.kill();
        acknowledged.extend(visitor.stop());
        gateway.start();
    }
    let arrived = wait_until(Duration::from_secs(60), || {
        thread::sleep(Duration::from_millis(200));
        missing(&acknowledged, &on_mqtt.messages()).is_empty().then_some(())
    });
    let missing = missing(&acknowledged, &on_mqtt.messages());
    println!("{} publishes acknowledged over 20 kills, {} missing", acknowledged.len(), missing.len());
    assert!(arrived.is_some() && missing.is_empty(), "missing: {missing:?}");
}

/// A LAN client that publishes numbered messages at `QoS` 1 for as long as it may, through every restart of the gateway,
/// and remembers those that were acknowledged. What was not acknowledged it does not repeat.
struct Visitor {
    stop: Arc<AtomicBool>,
    // Written by the visitor's thread, counted by the test.
    acknowledged: Arc<Mutex<HashSet<String>>>,
    published: Arc<AtomicU64>,
    thread: thread::JoinHandle<()>,
}

impl Visitor {
    fn start(gateway: SocketAddr) -> Self {
        Self::start_numbered(gateway, 0)
    }

    fn start_numbered(gateway: SocketAddr, mut number: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(HashSet::new()));
        let published = Arc::new(AtomicU64::new(0));
        let (is_over, done, sent) = (Arc::clone(&stop), Arc::clone(&acknowledged), Arc::clone(&published));
        let thread = thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let Ok(mut client) = MqttClient::connect(gateway, "visitor") else {
                    thread::sleep(Duration::from_millis(10));
                    continue;
                };
                while !is_over.load(Ordering::Relaxed) {
                    let text = format!("visit-{number}");
                    number += 1;
                    sent.fetch_add(1, Ordering::Relaxed);
                    let topic = format!("site/door{}", number % 3);
                    let Ok(id) = client.publish(&topic, text.as_bytes(), 1, false) else { break };
                    match client.read(Duration::from_secs(5)) {
                        Ok(Some(Incoming::Done(answered))) if answered == id => {
                            done.lock().unwrap().insert(text);
                        }
                        _ => break,
                    }
                }
            }
        });
        Self { stop, acknowledged, published, thread }
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    fn stop(self) -> HashSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        Arc::into_inner(self.acknowledged).unwrap().into_inner().unwrap()
    }
}

/// The acknowledged texts that no message carries; at most ten, to be read.
fn missing(visits: &HashSet<String>, messages: &[Value]) -> Vec<String> {
    let arrived: HashSet<String> = messages
        .iter()
        .filter_map(|message| serde_json::from_str::<Value>(message["payload"].as_str()?).ok())
        .filter_map(|pack| Some(pack[0]["vs"].as_str()?.to_owned()))
        .collect();
    visits.iter().filter(|text| !arrived.contains(*text)).take(10).cloned().collect()
}

fn uplinks(mqtt: SocketAddr, amqp: SocketAddr) -> String {
    format!(
        "{}\n[[uplink]]\nname = \"rabbit\"\ntype = \"amqp\"\naddress = \"{amqp}\"\nexchange = \"tidegate\"\nwindow = {WINDOW}\n",
        mqtt_uplink(mqtt)
    )
}

fn mqtt_uplink(address: SocketAddr) -> String {
    format!(
        "[[uplink]]\nname = \"cloud\"\ntype = \"mqtt\"\naddress = \"{address}\"\nversion = \"5.0\"\nwindow = {WINDOW}\n"
    )
}

#[test]
fn the_check_for_missing_publishes_finds_a_planted_one() {
    let visits = HashSet::from(["visit-1".to_owned(), "visit-2".to_owned()]);
    let message = serde_json::json!({"payload": r#"[{"n":"message","vs":"visit-1"}]"#});
    assert_eq!(missing(&visits, &[message]), ["visit-2"]);
    assert_eq!(Ledger::new().distinct(), 0);
}
