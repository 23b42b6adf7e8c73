//! A backlog of a million readings after a long outage: how fast it drains in batches, how late live messages are
//! meanwhile, and whether memory stays flat. And how many bytes a reading costs on the wire.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harness::{
    FaultProxy, Incoming, Mosquitto, MqttClient, Process, RabbitMq, Scratch, Tidegate, binary, python,
    wait_until, workspace,
};

use crate::report::Report;

/// Drains into mosquitto and into RabbitMQ. One round: it takes a minute, and what it promises is far from the noise.
pub(crate) fn run(_: usize, report: &mut Report) {
    let broker = Mosquitto::start();
    let uplink = format!("type = \"mqtt\"\naddress = \"{}\"\n", broker.address());
    drain(&uplink, "mosquitto", report, watch_mqtt(broker.address()));
    let scratch = Scratch::new("drain");
    let broker = RabbitMq::start();
    let uplink = format!(
        "type = \"amqp\"\naddress = \"{}\"\nqueue = {{ name = \"all\", type = \"quorum\", bind = \"#\" }}\n",
        broker.address()
    );
    drain(&uplink, "RabbitMQ", report, watch_amqp(broker.address(), &scratch));
}

/// Bytes on the wire per reading: twelve sensors, a hundred readings a message.
pub(crate) fn wire(rounds: usize, report: &mut Report) {
    let mut plain = Vec::new();
    let mut packed = Vec::new();
    for _ in 0..rounds {
        plain.push(bytes_per_reading("batch = 1\n"));
        packed.push(bytes_per_reading(
            "batch = 100\nbatch_wait = \"1m\"\nencoding = \"senml-cbor\"\ncompression = \"zstd\"\n",
        ));
    }
    report.at_most("wire, a reading a message, JSON", "B", plain, 600.0);
    report.at_most("wire, batch 100, CBOR and zstd", "B", packed, 16.0);
}

fn drain(uplink: &str, name: &str, report: &mut Report, delays: impl Fn() -> Vec<f64>) {
    let tables = format!(
        "[spool]\nmax_size = \"4GB\"\n[ledger]\ninterval = \"off\"\n\
         [[uplink]]\nname = \"cloud\"\nbatch = 100\nbatch_wait = \"50ms\"\nwindow = 4000\n{uplink}"
    );
    let mut gateway = Tidegate::builder().mqtt("forward = [\"live/#\"]").tables(&tables).prepare();
    let output = Command::new(binary())
        .args(["bench-spool", "--batch", "5000", "--count", &BACKLOG.to_string(), "--state-dir"])
        .arg(gateway.state_dir())
        .output()
        .expect("the binary can be started");
    assert!(output.status.success(), "bench-spool: {}", String::from_utf8_lossy(&output.stderr));
    let begun = Instant::now();
    gateway.start();
    let is_over = Arc::new(AtomicBool::new(false));
    let publisher = {
        let (address, is_over) = (gateway.mqtt(), is_over.clone());
        thread::spawn(move || publish_live(address, &is_over))
    };
    let mut memory = Vec::new();
    let drained = wait_until(Duration::from_secs(300), || {
        memory.push(gateway.process().resident_bytes().expect("the gateway runs") as f64 / 1e6);
        let uplink = &gateway.status()["uplinks"][0];
        (uplink["confirmed"].as_u64().unwrap_or_default() >= BACKLOG).then_some(())
    });
    let seconds = begun.elapsed().as_secs_f64();
    is_over.store(true, Ordering::Relaxed);
    drained.unwrap_or_else(|| panic!("not drained in 300 s: {}", gateway.status()["uplinks"][0]));
    publisher.join().expect("the publisher does not panic");
    let mut delays = delays();
    delays.sort_by(f64::total_cmp);
    assert!(delays.len() > 20, "only {} live messages arrived", delays.len());
    let p99 = delays[delays.len() * 99 / 100];
    let third = memory.len() / 3;
    let peak = |part: &mut dyn Iterator<Item = &f64>| part.copied().fold(0.0, f64::max);
    let early = peak(&mut memory.iter().take(third.max(1)));
    let late = peak(&mut memory.iter().skip(2 * third));
    report.at_least(format!("1 M backlog into {name}"), "rows/s", vec![BACKLOG as f64 / seconds], 10_000.0);
    report.at_most(format!("live p99 while draining, {name}"), "ms", vec![p99], 250.0);
    report.at_most(format!("memory while draining, {name}"), "MB", vec![early.max(late)], 40.0);
    report.at_most(format!("memory late / early, {name}"), "", vec![late / early], 1.15);
}

/// A LAN client that publishes the time twenty times a second, each message acknowledged before the next.
fn publish_live(address: SocketAddr, is_over: &AtomicBool) {
    let mut client = MqttClient::connect(address, "machine").expect("the gateway accepts a client");
    while !is_over.load(Ordering::Relaxed) {
        let payload = format!("ping:{}:", now_ns());
        client.publish_and_wait("live/press", payload.as_bytes(), 1).expect("it is acknowledged");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A subscriber at the far side; how late each live message was, in milliseconds.
fn watch_mqtt(broker: SocketAddr) -> impl Fn() -> Vec<f64> {
    let mut client = MqttClient::connect(broker, "far").expect("mosquitto accepts a client");
    client.subscribe("tidegate/barn/$batch/#", 0).expect("mosquitto grants it");
    let (sender, delays) = channel();
    thread::spawn(move || {
        // It ends with the broker.
        while let Ok(message) = client.read(Duration::from_secs(1)) {
            if let Some(Incoming::Publish { payload, .. }) = message {
                pings(&String::from_utf8_lossy(&payload)).for_each(|delay| {
                    let _ = sender.send(delay);
                });
            }
        }
    });
    move || delays.try_iter().collect()
}

/// The same with a consumer of the live lane alone: what the backlog makes of a queue is RabbitMQ's own affair.
fn watch_amqp(broker: SocketAddr, dir: &Path) -> impl Fn() -> Vec<f64> {
    let mut command = Command::new(python());
    command.arg("-u").arg(workspace().join("tests/bench/amqp_live.py")).args([
        broker.ip().to_string(),
        broker.port().to_string(),
        "tidegate.*.$batch.live".to_owned(),
    ]);
    let consumer = Process::start("amqp_live", dir, command);
    consumer.wait_for_line("ready", Duration::from_secs(20));
    move || consumer.lines().iter().filter_map(|line| line.strip_prefix("late ")?.parse().ok()).collect()
}

/// How late the times in a message are, in milliseconds.
fn pings(text: &str) -> impl Iterator<Item = f64> {
    let now = now_ns();
    let times = text.split("ping:").skip(1).filter_map(|rest| rest.split(':').next()?.parse::<u128>().ok());
    times.map(move |then| now.saturating_sub(then) as f64 / 1e6)
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_nanos()
}

/// What the transport carries both ways, and what TCP and IP put around each message and its acknowledgement, per
/// reading.
fn bytes_per_reading(keys: &str) -> f64 {
    let broker = Mosquitto::start();
    let proxy = FaultProxy::start(broker.address());
    let device = |(name, bus, address)| {
        format!(
            "[[device]]\nname = \"{name}\"\ntype = \"bme280\"\nbus = \"{bus}\"\naddress = {address}\ninterval = \"100ms\"\n"
        )
    };
    let places = [
        ("cellar", "sim", "0x76"),
        ("attic", "sim", "0x77"),
        ("barn", "sim-2", "0x76"),
        ("stall", "sim-2", "0x77"),
    ];
    let devices: String = places.map(device).concat();
    let uplink = format!(
        "[ledger]\ninterval = \"off\"\n{devices}[[uplink]]\nname = \"cloud\"\ntype = \"mqtt\"\naddress = \"{}\"\n{keys}",
        proxy.address()
    );
    let gateway = Tidegate::builder().tables(&uplink).start();
    let confirmed = || gateway.status()["uplinks"][0]["confirmed"].as_u64().unwrap_or_default();
    wait_until(Duration::from_secs(60), || (confirmed() > 0).then_some(())).expect("readings go out");
    let (from_bytes, from) = (proxy.forwarded(), confirmed());
    wait_until(Duration::from_secs(60), || (confirmed() >= from + 1000).then_some(()))
        .expect("a thousand more");
    let readings = (confirmed() - from) as f64;
    let batch = if keys.contains("batch = 100") { 100.0 } else { 1.0 };
    let packets = readings / batch * 2.0;
    ((proxy.forwarded() - from_bytes) as f64 + packets * TCP_IP) / readings
}

/// Readings that waited.
const BACKLOG: u64 = 1_000_000;
/// IPv4 and TCP with timestamps (RFC 9293, RFC 7323).
const TCP_IP: f64 = 52.0;
