//! The ways out against real brokers: what arrives, under which name, and what happens when the far side misbehaves.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{
    AmqpLedger, FaultProxy, Mode, Mosquitto, MosquittoConfig, MqttClient, MqttLedger, Port, RabbitMq, Report,
    Scratch, Tidegate, record_of, wait_until,
};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

fn sensor(interval: &str) -> String {
    format!(
        "[[device]]\nname = \"cellar\"\ntype = \"bme280\"\nbus = \"sim\"\naddress = 0x76\ninterval = \"{interval}\"\n"
    )
}

fn mqtt(name: &str, address: SocketAddr, version: &str, qos: u8) -> String {
    let delivery = if qos == 2 { "exactly-once" } else { "at-least-once" };
    format!(
        "[[uplink]]\nname = \"{name}\"\ntype = \"mqtt\"\naddress = \"{address}\"\nversion = \"{version}\"\n\
         delivery = \"{delivery}\"\n"
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
fn an_mqtt_uplink_over_tls_trusts_the_named_authority_and_no_other() {
    let scratch = Scratch::new("tls");
    let ours = authority(&scratch, "ours");
    let foreign = authority(&scratch, "foreign");
    let (certificate, key) = certificate(&scratch, "ours");
    let door = Port::reserve();
    let broker = Mosquitto::with(MosquittoConfig {
        persistence: false,
        extra: vec![
            format!("listener {} 127.0.0.1", door.number()),
            format!("certfile {}", certificate.display()),
            format!("keyfile {}", key.display()),
        ],
        ..MosquittoConfig::default()
    });
    let ledger = MqttLedger::start(broker.address(), "#", 1);
    let cloud = |authority: &Path| {
        mqtt("cloud", door.address(), "5.0", 1)
            + &format!("tls = {{ ca = {:?} }}\n", authority.display().to_string())
    };
    let mut gateway = Tidegate::builder().tables(&sensor("20ms")).tables(&cloud(&foreign)).start();
    let refused = wait_until(20 * SECOND, || {
        let uplink = gateway.status()["uplinks"][0].clone();
        (uplink["state"] == "backoff").then(|| uplink["detail"].as_str().unwrap_or("").to_owned())
    });
    assert!(refused.as_deref().is_some_and(|why| why.contains("ertificate")), "{refused:?}");
    assert_eq!(ledger.ledger().distinct(), 0, "nothing goes to a broker that nobody vouches for");
    gateway.stop();
    gateway.configure("", &(sensor("20ms") + &cloud(&ours)));
    gateway.start();
    assert!(ledger.wait_for_ids(100, 20 * SECOND), "{:?}", gateway.status()["uplinks"]);
}

/// A certificate authority of its own, made by openssl.
fn authority(scratch: &Scratch, name: &str) -> PathBuf {
    let path = |end: &str| scratch.join(format!("{name}.{end}"));
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        &format!("/CN={name}"),
        "-addext",
        "keyUsage=critical,keyCertSign",
        "-keyout",
        path("key").to_str().unwrap(),
        "-out",
        path("pem").to_str().unwrap(),
    ]);
    path("pem")
}

/// A server's certificate for loopback, signed by that authority, and its key.
fn certificate(scratch: &Scratch, authority: &str) -> (PathBuf, PathBuf) {
    let path = |name: &str| scratch.join(name);
    let text = |name: &str| path(name).display().to_string();
    openssl(&[
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=broker",
        "-keyout",
        &text("broker.key"),
        "-out",
        &text("broker.csr"),
    ]);
    scratch.write("broker.ext", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n");
    openssl(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        &text("broker.csr"),
        "-extfile",
        &text("broker.ext"),
        "-CA",
        &text(&format!("{authority}.pem")),
        "-CAkey",
        &text(&format!("{authority}.key")),
        "-CAcreateserial",
        "-out",
        &text("broker.pem"),
    ]);
    (path("broker.pem"), path("broker.key"))
}

fn openssl(arguments: &[&str]) {
    let output =
        Command::new("openssl").args(arguments).output().expect("openssl is installed by tests/run tools");
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
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
