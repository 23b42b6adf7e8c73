//! The ways out against real brokers: what arrives, under which name, and what happens when the far side misbehaves.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::{
    AmqpLedger, FaultProxy, Mode, Mosquitto, MqttClient, MqttLedger, RabbitMq, Report, Tidegate, record_of,
    wait_until,
};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

fn sensor(interval: &str) -> String {
    format!(
        "[[device]]\nname = \"cellar\"\ntype = \"bme280\"\nbus = \"sim\"\naddress = 0x76\ninterval = \"{interval}\"\n"
    )
}

fn mqtt(name: &str, address: SocketAddr, version: &str, qos: u8) -> String {
    format!(
        "[[uplink]]\nname = \"{name}\"\ntype = \"mqtt\"\naddress = \"{address}\"\nversion = \"{version}\"\nqos = {qos}\n"
    )
}

fn amqp(address: SocketAddr) -> String {
    format!(
        "[[uplink]]\nname = \"rabbit\"\ntype = \"amqp\"\naddress = \"{address}\"\nexchange = \"tidegate\"\n"
    )
}

#[test]
fn mqtt_uplinks_of_both_versions_and_qualities_deliver_every_reading_under_its_id() {
    let broker = Mosquitto::durable();
    let ledger = MqttLedger::start(broker.address(), "#", 2);
    for (version, qos) in [("3.1.1", 1), ("3.1.1", 2), ("5.0", 1), ("5.0", 2)] {
        let name = format!("v{}q{qos}", version.replace('.', ""));
        let mut gateway = Tidegate::builder()
            .name(&name)
            .tables(&sensor("20ms"))
            .tables(&mqtt("cloud", broker.address(), version, qos))
            .start();
        let ours = |ledger: &MqttLedger| -> Vec<Value> {
            let is_ours = |m: &Value| {
                record_of(m["payload"].as_str().unwrap_or("")).iter().any(|r| r.0.gateway == name)
            };
            ledger.messages().into_iter().filter(is_ours).collect()
        };
        let arrived = wait_until(20 * SECOND, || (ours(&ledger).len() >= 300).then_some(()));
        assert!(arrived.is_some(), "{name}: {} messages", ours(&ledger).len());
        gateway.stop();
        for message in ours(&ledger) {
            let [(id, channel)] = &record_of(message["payload"].as_str().unwrap())[..] else {
                panic!("{message}")
            };
            assert_eq!(message["qos"], qos, "{message}");
            assert!(message["topic"].as_str().unwrap().ends_with(channel), "{message}");
            if version == "5.0" {
                assert_eq!(message["properties"]["id"], id.to_string());
            }
        }
    }
}

#[test]
fn a_retained_or_lost_session_costs_no_reading_when_mosquitto_restarts() {
    let mut broker = Mosquitto::durable();
    let ledger = MqttLedger::start(broker.address(), "#", 1);
    let cloud = mqtt("cloud", broker.address(), "5.0", 2);
    let mut gateway = Tidegate::builder().tables(&sensor("5ms")).tables(&cloud).start();
    for _ in 0..3 {
        let before = ledger.ledger().distinct();
        assert!(ledger.wait_for_ids(before + 500, 30 * SECOND));
        broker.stop();
        broker.restart();
    }
    gateway.stop();
    gateway.configure("", &cloud);
    gateway.start();
    let ids = gateway.stored();
    ledger.wait_for_ids(ids.len(), 60 * SECOND);
    let report = ledger.ledger().check(&ids);
    println!("{}\n{}", Report::HEAD, report.row("mosquitto"));
    report.assert_whole("mosquitto");
}

#[test]
fn rabbitmq_receives_persistent_messages_with_ids_and_keeps_them_through_kill_9() {
    let mut broker = RabbitMq::start();
    let ledger = AmqpLedger::start(broker.address(), "tidegate");
    let mut gateway = Tidegate::builder()
        .mqtt("forward = [\"site/#\"]")
        .tables(&sensor("10ms"))
        .tables(&amqp(broker.address()))
        .start();
    let mut visitor = MqttClient::connect(gateway.mqtt(), "visitor").unwrap();
    visitor.publish_and_wait("site/door", b"opened", 1).unwrap();
    assert!(ledger.wait_for_ids(1000, 30 * SECOND));
    broker.kill();
    broker.restart();
    assert!(ledger.wait_for_ids(2000, 60 * SECOND));
    gateway.stop();
    gateway.configure("forward = [\"site/#\"]", &amqp(broker.address()));
    gateway.start();
    let ids = gateway.stored();
    ledger.wait_for_ids(ids.len(), 60 * SECOND);
    let report = ledger.ledger().check(&ids);
    println!("{}\n{}", Report::HEAD, report.row("RabbitMQ"));
    report.assert_whole("RabbitMQ");
    let mut has_message = false;
    for message in ledger.messages() {
        let payload = message["payload"].as_str().unwrap();
        let [(id, _)] = &record_of(payload)[..] else { panic!("{message}") };
        assert_eq!(message["id"], id.to_string());
        assert_eq!(message["persistent"], true);
        has_message |= message["topic"] == "site.door" && payload.contains("\"opened\"");
    }
    assert!(has_message, "the LAN client's message is not under its routing key");
}

#[test]
fn a_message_that_rabbitmq_can_route_nowhere_is_not_taken_for_delivered() {
    let broker = RabbitMq::start();
    // The exchange is there and no queue is bound: RabbitMQ confirms and returns, and nobody has the reading.
    let gateway = Tidegate::builder().tables(&sensor("20ms")).tables(&amqp(broker.address())).start();
    let uplink = || gateway.status()["uplinks"][0].clone();
    let waiting = wait_until(20 * SECOND, || (uplink()["waiting"].as_u64()? >= 300).then_some(()));
    assert!(waiting.is_some(), "{}", uplink());
    assert_eq!(uplink()["confirmed"], 0, "{}", uplink());
    // A queue comes, and so does everything from the first reading on.
    let ledger = AmqpLedger::start(broker.address(), "tidegate");
    assert!(ledger.wait_for_ids(300, 90 * SECOND), "{} came; {}", ledger.ledger().distinct(), uplink());
    let first = gateway.stored().into_iter().next().unwrap();
    assert_eq!(ledger.ledger().check([&first]).lost, []);
}

#[test]
fn a_far_side_that_refuses_hangs_or_swallows_slows_neither_sensors_nor_lan_clients() {
    let broker = Mosquitto::durable();
    let ledger = MqttLedger::start(broker.address(), "#", 1);
    let wire = FaultProxy::start(broker.address());
    let cloud = mqtt("cloud", wire.address(), "5.0", 1);
    let gateway =
        Tidegate::builder().mqtt("forward = [\"site/#\"]").tables(&sensor("20ms")).tables(&cloud).start();
    assert!(ledger.wait_for_ids(50, 20 * SECOND));
    for mode in [Mode::Refuse, Mode::Hang, Mode::Blackhole, Mode::Slow(2000)] {
        wire.set(mode);
        if mode != Mode::Blackhole {
            wire.cut();
        }
        let before = gateway.newest();
        let begun = Instant::now();
        let mut visitor = MqttClient::connect(gateway.mqtt(), "visitor").unwrap();
        visitor.publish_and_wait("site/x", b"y", 1).unwrap();
        assert!(begun.elapsed() < SECOND, "{mode:?}: a publish took {:?}", begun.elapsed());
        let grown = wait_until(5 * SECOND, || (gateway.newest() >= before + 300).then_some(()));
        assert!(grown.is_some(), "{mode:?}: the sensors stand still");
    }
    wire.set(Mode::Pass);
    wire.cut();
    let ids = gateway.stored();
    assert!(ledger.wait_for_ids(ids.len(), 90 * SECOND), "{} of {}", ledger.ledger().distinct(), ids.len());
    let report = ledger.ledger().check(&ids);
    assert!(
        report.lost.is_empty() && report.inversions.is_empty(),
        "{}\n{}",
        Report::HEAD,
        report.row("mosquitto")
    );
}
