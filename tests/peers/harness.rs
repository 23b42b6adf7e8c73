//! The harness itself: its peers start, its faults bite, its ledgers find what was planted.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use harness::{
    AmqpLedger, Chromium, Door, FaultProxy, Id, Incoming, Mode, Mosquitto, MosquittoConfig, MqttClient,
    MqttLedger, RabbitMq, Rng, Rumqttd, Scratch, Viewport, script, wait_until,
};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn mosquitto_keeps_a_session_over_a_stop_and_its_port_over_a_kill() {
    let mut broker = Mosquitto::durable();
    let mut subscriber = MqttClient::connect_with(broker.address(), "s", false).unwrap();
    subscriber.subscribe("t/#", 1).unwrap();
    drop(subscriber);
    let mut publisher = MqttClient::connect(broker.address(), "p").unwrap();
    publisher.publish_and_wait("t/1", b"kept", 1).unwrap();
    broker.stop();
    broker.restart();
    let mut subscriber = MqttClient::connect_with(broker.address(), "s", false).unwrap();
    assert!(subscriber.session_present());
    let message = subscriber.read(10 * SECOND).unwrap();
    assert!(matches!(message, Some(Incoming::Publish { payload, .. }) if payload == b"kept"));
    broker.kill();
    broker.restart();
    MqttClient::connect(broker.address(), "p").unwrap();
}

#[test]
fn the_raw_client_speaks_every_qos() {
    let broker = Mosquitto::start();
    let mut subscriber = MqttClient::connect(broker.address(), "s").unwrap();
    subscriber.subscribe("q/#", 2).unwrap();
    let mut publisher = MqttClient::connect(broker.address(), "p").unwrap();
    for wanted in 0..=2 {
        publisher.publish_and_wait("q/x", &vec![wanted; 300], wanted).unwrap();
        let Some(Incoming::Publish { topic, payload, qos, .. }) = subscriber.read(10 * SECOND).unwrap()
        else {
            panic!("no message at QoS {wanted}")
        };
        assert_eq!((topic.as_str(), payload.len(), qos), ("q/x", 300, wanted));
    }
    publisher.disconnect().unwrap();
}

#[test]
fn rumqttd_delivers_to_the_raw_client_what_it_publishes_at_every_qos() {
    let broker = Rumqttd::start();
    let mut client = MqttClient::connect(broker.address(), "c").unwrap();
    client.subscribe("q/#", 2).unwrap();
    for qos in 0..=2 {
        client.publish("q/x", &[qos; 300], qos, false).unwrap();
        let payload = loop {
            match client.read(10 * SECOND).unwrap() {
                Some(Incoming::Publish { payload, .. }) => break payload,
                Some(_) => {}
                None => panic!("no message at QoS {qos}"),
            }
        };
        assert_eq!(payload, [qos; 300]);
    }
    assert!(broker.process().cpu_time().unwrap() > Duration::ZERO);
}

#[test]
fn the_mqtt_ledger_survives_cuts_and_a_restart_and_finds_a_planted_loss() {
    let mut broker = Mosquitto::durable();
    let proxy = FaultProxy::start(broker.address());
    let ledger = MqttLedger::start(proxy.address(), "up/#", 1);
    let mut rng = Rng::from_env("mqtt ledger");
    let mut publisher = MqttClient::connect(broker.address(), "p").unwrap();
    let lost = 1 + rng.below(1999) as u64;
    let mut sent = Vec::new();
    for seq in 1..=2000 {
        let id = Id { gateway: "barn".into(), epoch: "b".into(), seq };
        if seq == 1000 {
            broker.stop();
            broker.restart();
            publisher = MqttClient::connect(broker.address(), "p").unwrap();
        }
        if seq % 100 == 0 {
            let is_back = wait_until(10 * SECOND, || (proxy.open() > 0).then_some(()));
            is_back.expect("the subscriber connects again");
            proxy.cut();
        }
        if seq != lost {
            let pack = format!(r#"[{{"n":"c{}","v":1,"gw":"barn","epoch":"b","seq":{seq}}}]"#, seq % 3);
            publisher.publish_and_wait("up/x", pack.as_bytes(), 1).unwrap();
        }
        sent.push(id);
    }
    assert!(ledger.wait_for_ids(1999, 60 * SECOND), "only {} ids came", ledger.ledger().distinct());
    assert!(proxy.cuts() >= 15, "the proxy cut {} connections", proxy.cuts());
    let report = ledger.ledger().check(&sent);
    println!("{}\n{}", harness::Report::HEAD, report.row("mqtt"));
    assert_eq!(report.lost.iter().map(|id| id.seq).collect::<Vec<_>>(), [lost]);
    assert!(report.unexpected.is_empty() && report.inversions.is_empty());
}

#[test]
fn the_amqp_ledger_survives_cuts_and_a_kill_and_counts_a_planted_repeat() {
    let mut broker = RabbitMq::start();
    println!("RabbitMQ listened after {:?}", broker.start_time());
    let proxy = FaultProxy::start(broker.address());
    let ledger = AmqpLedger::start(proxy.address(), "tidegate");
    let publish = |from: u64, to: u64| {
        let mut command = script("amqp_publish");
        command.args(["127.0.0.1", &broker.address().port().to_string(), "tidegate"]);
        command.args([from.to_string(), to.to_string()]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    publish(1, 500);
    proxy.cut();
    publish(401, 800);
    assert!(ledger.wait_for_ids(800, 60 * SECOND));
    broker.kill();
    broker.restart();
    println!("again after {:?}", broker.start_time());
    let mut command = script("amqp_publish");
    command.args(["127.0.0.1", &broker.address().port().to_string(), "tidegate", "801", "1000"]);
    assert!(command.status().unwrap().success());
    assert!(ledger.wait_for_ids(1000, 60 * SECOND));
    let sent: Vec<Id> = (1..=1000).map(|seq| Id { gateway: "barn".into(), epoch: "b".into(), seq }).collect();
    let report = ledger.ledger().check(&sent);
    println!("{}\n{}", harness::Report::HEAD, report.row("amqp"));
    report.assert_whole("amqp");
    assert!(report.repeated >= 100, "{} repeats seen, 100 planted", report.repeated);
    let first = &ledger.messages()[0];
    assert_eq!((first["id"].as_str(), first["persistent"].as_bool()), (Some("barn/b/1"), Some(true)));
}

#[test]
fn the_proxy_passes_a_large_body_whole_and_in_order() {
    let proxy = FaultProxy::start(echo());
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    let sent: Vec<u8> = (0..4_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
    let mut half = stream.try_clone().unwrap();
    let copy = sent.clone();
    let writer = thread::spawn(move || half.write_all(&copy).unwrap());
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).unwrap();
    writer.join().unwrap();
    assert!(received == sent);
    // The last bytes are counted a moment after they have been written.
    wait_until(SECOND, || (proxy.forwarded() == 8_000_000).then_some(())).expect("every byte is counted");
    assert_eq!(proxy.accepted(), 1);
}

#[test]
fn a_flapping_proxy_cuts_and_refuses_until_it_is_calmed() {
    let mut proxy = FaultProxy::start(echo());
    proxy.flap(Rng::from_env("flap"), Duration::from_millis(10), Duration::from_millis(40));
    let (mut cut, mut refused) = (0, 0);
    let enough = wait_until(20 * SECOND, || {
        match TcpStream::connect(proxy.address()) {
            Ok(mut stream) => cut += usize::from(stream.read(&mut [0]).is_err()),
            Err(_) => refused += 1,
        }
        (cut > 5 && refused > 0).then_some(())
    });
    assert!(enough.is_some(), "{cut} cut, {refused} refused");
    proxy.calm();
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    stream.write_all(b"a").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn the_proxy_refuses_hangs_cuts_swallows_and_crawls() {
    let proxy = FaultProxy::start(echo());
    let mut open = TcpStream::connect(proxy.address()).unwrap();
    open.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
    let mut byte = [0];
    open.write_all(b"a").unwrap();
    open.read_exact(&mut byte).unwrap();

    proxy.set(Mode::Refuse);
    let refused = TcpStream::connect(proxy.address()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    proxy.set(Mode::Hang);
    let mut hanging = TcpStream::connect(proxy.address()).unwrap();
    hanging.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
    hanging.write_all(b"x").unwrap();
    assert_eq!(hanging.read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);

    proxy.set(Mode::Blackhole);
    open.write_all(b"b").unwrap();
    assert_eq!(open.read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    proxy.set(Mode::Pass);
    open.set_read_timeout(Some(10 * SECOND)).unwrap();
    open.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"b", "what was swallowed comes when the wire is back");

    proxy.set(Mode::Slow(10_000));
    let begun = Instant::now();
    open.write_all(&[0; 4000]).unwrap();
    open.read_exact(&mut [0; 4000]).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(300), "4,000 bytes took {:?}", begun.elapsed());

    proxy.cut();
    let cut = open.read(&mut byte).unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(hanging.read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn chromium_renders_a_page_on_a_phone_in_the_dark() {
    let scratch = Scratch::new("page");
    let page = scratch.write(
        "page.html",
        "<meta name=viewport content='width=device-width'><body><script>
         setTimeout(() => document.body.append('later'), 100);
         console.error('a planted error');</script>",
    );
    let browser = Chromium::start();
    browser.resize(Viewport::PHONE);
    browser.prefer_dark(true);
    browser.open(&format!("file://{}", page.display()));
    browser.wait_for("document.body.innerText.includes('later')", 10 * SECOND);
    assert_eq!(browser.run("return innerWidth"), 390);
    assert_eq!(browser.run("return matchMedia('(prefers-color-scheme: dark)').matches"), true);
    assert!(browser.console().iter().any(|line| line.contains("a planted error")));
    let shot = scratch.join("shot.png");
    browser.screenshot(&shot);
    assert!(shot.metadata().unwrap().len() > 500);
}

#[test]
fn a_process_and_all_it_started_end_with_its_handle() {
    let scratch = Scratch::new("process");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "sleep 600 & echo child $!; wait"]);
    let process = harness::Process::start("sh", &scratch, command);
    let line = process.wait_for_line("child", 5 * SECOND);
    let child = line.split(' ').nth(1).unwrap().to_owned();
    assert!(process.resident_bytes().unwrap() > 100_000);
    drop(process);
    // The orphan is reaped by init, or stays a zombie where init does not reap.
    let gone = wait_until(5 * SECOND, || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat"));
        stat.map_or(true, |text| text.contains(") Z ")).then_some(())
    });
    assert!(gone.is_some(), "the child {child} outlived its group");
}

fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut &stream));
        }
    });
    address
}

#[test]
fn mosquitto_lets_in_through_a_door_only_whom_it_is_for_and_to_what_it_allows() {
    let config = MosquittoConfig {
        doors: vec![Door::for_users(&[("u", "p")]).allowing(&["user u", "topic write a/#"])],
        ..MosquittoConfig::default()
    };
    let broker = Mosquitto::with(config);
    let mut open = MqttClient::connect(broker.address(), "open").unwrap();
    open.subscribe("#", 0).unwrap();
    assert!(MqttClient::connect(broker.door(0), "nobody").is_err());
    let publish = |topic: &str| {
        let mut command = std::process::Command::new(harness::tool("mosquitto_pub"));
        command.args(["-h", "127.0.0.1", "-p", &broker.door(0).port().to_string(), "-u", "u", "-P", "p"]);
        assert!(command.args(["-q", "1", "-t", topic, "-m", topic]).status().unwrap().success());
    };
    publish("b/refused");
    publish("a/allowed");
    let Some(Incoming::Publish { topic, .. }) = open.read(10 * SECOND).unwrap() else { panic!("no message") };
    assert_eq!(topic, "a/allowed");
}

#[test]
fn the_proxy_resets_every_connection_after_so_many_bytes() {
    let broker = Mosquitto::start();
    let proxy = FaultProxy::start(broker.address());
    let mut client = MqttClient::connect(proxy.address(), "c").unwrap();
    client.publish_and_wait("t", b"x", 1).unwrap();
    proxy.set(Mode::ResetAfter(400));
    assert!((0..100).any(|_| client.publish_and_wait("t", &[0; 100], 1).is_err()));
    let mut next = MqttClient::connect(proxy.address(), "c").unwrap();
    assert!(next.publish_and_wait("t", &[0; 1000], 1).is_err());
    assert!(proxy.cuts() >= 2);
    proxy.set(Mode::Pass);
    MqttClient::connect(proxy.address(), "c").unwrap().publish_and_wait("t", &[0; 1000], 1).unwrap();
}
