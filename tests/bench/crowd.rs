//! Many at once and one after the other: memory for idle connections and for topics that are gone, and how soon a
//! message arrives when there is little to do; beside mosquitto.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::{Incoming, Mosquitto, MqttClient, Process, Tidegate, wait_until};

use crate::report::{Limit, Report};

pub(crate) fn run(rounds: usize, report: &mut Report) {
    let limit = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limit.lines().find(|line| line.starts_with("Max open files"));
    let files = files.and_then(|line| line.split_whitespace().nth(3)?.parse::<usize>().ok()).unwrap_or(0);
    if files < CONNECTIONS + 100 {
        return report.skipped("5,000 idle connections", format!("a process may open {files} files here"));
    }
    let mut figures: [Vec<Crowd>; 2] = Default::default();
    let mut delays: [Vec<[f64; 2]>; 2] = Default::default();
    for round in 0..rounds {
        for turn in 0..2 {
            let who = (turn + round) % 2;
            if who == 0 {
                let gateway = Tidegate::builder().mqtt("max_connections = 6000").start();
                delays[who].push(delay(gateway.mqtt()));
                figures[who].push(crowd(gateway.mqtt(), gateway.process()));
            } else {
                let mosquitto = Mosquitto::start();
                delays[who].push(delay(mosquitto.address()));
                figures[who].push(crowd(mosquitto.address(), mosquitto.process()));
            }
        }
    }
    let [ours, theirs] = figures;
    let of = |list: &[Crowd], which: fn(&Crowd) -> f64| list.iter().map(which).collect::<Vec<_>>();
    let mosquitto = "mosquitto";
    let idle = |crowd: &Crowd| crowd.bytes_each;
    report.beside("5,000 idle: memory each", "B", of(&ours, idle), mosquitto, of(&theirs, idle));
    report.at_most("5,000 idle: memory each", "B", of(&ours, idle), 4096.0);
    let connected = |crowd: &Crowd| crowd.seconds;
    report.beside("5,000 connected", "s", of(&ours, connected), mosquitto, of(&theirs, connected));
    report.at_most("5,000 connected", "s", of(&ours, connected), 2.0);
    let left = |crowd: &Crowd| crowd.left;
    report.beside("5,000 gone: memory kept", "of it", of(&ours, left), mosquitto, of(&theirs, left));
    report.at_most("5,000 gone: memory kept", "of it", of(&ours, left), 0.25);
    let topic = |crowd: &Crowd| crowd.bytes_a_topic;
    // Nothing is left of one in either, as often as not: there is no ratio of that.
    report.at_most("reply topic that is gone", "B", of(&ours, topic), 100.0);
    for (at, name, limit) in [(0, "p50", 1.25), (1, "p99", 1.5)] {
        let of = |list: &[[f64; 2]]| list.iter().map(|delays| delays[at]).collect::<Vec<_>>();
        let what = format!("500 messages/s, {name}");
        report.beside_within(
            what,
            "µs",
            of(&delays[0]),
            mosquitto,
            of(&delays[1]),
            Some(Limit::AtMost(limit)),
        );
    }
}

#[derive(Default)]
struct Crowd {
    bytes_each: f64,
    seconds: f64,
    /// The part of it that is still held when all have gone.
    left: f64,
    bytes_a_topic: f64,
}

fn crowd(address: SocketAddr, server: &Process) -> Crowd {
    let resident = || server.resident_bytes().expect("it runs") as f64;
    let mut one = MqttClient::connect(address, "one").expect("accepted");
    let topic = |one: &mut MqttClient, number: usize| {
        let topic = format!("reply/{number:08x}");
        one.subscribe(&topic, 0).expect("granted");
        one.publish(&topic, b"answer", 0, false).expect("taken");
        while !matches!(
            one.read(Duration::from_secs(10)).expect("it answers"),
            Some(Incoming::Publish { .. })
        ) {}
        one.unsubscribe(&topic).expect("granted");
    };
    (0..2000).for_each(|number| topic(&mut one, number));
    let before = resident();
    (2000..2000 + TOPICS).for_each(|number| topic(&mut one, number));
    let bytes_a_topic = (resident() - before).max(0.0) / TOPICS as f64;

    let before = resident();
    let begun = Instant::now();
    let mut clients: Vec<MqttClient> = (0..CONNECTIONS)
        .map(|number| MqttClient::connect(address, &format!("idle-{number}")).expect("accepted"))
        .collect();
    let seconds = begun.elapsed().as_secs_f64();
    for (number, client) in clients.iter_mut().enumerate() {
        client.subscribe(&format!("idle/{number}"), 0).expect("granted");
    }
    let grown = resident() - before;
    drop(clients);
    // As far as it comes down within some seconds.
    let mut left = grown;
    wait_until(Duration::from_secs(5), || {
        left = (resident() - before).max(0.0).min(left);
        (left < grown * 0.1).then_some(())
    });
    Crowd { bytes_each: grown / CONNECTIONS as f64, seconds, left: left / grown, bytes_a_topic }
}

/// The median and the 99th percentile of the way from one client to another, in microseconds, at 500 a second.
fn delay(address: SocketAddr) -> [f64; 2] {
    let mut reader = MqttClient::connect(address, "reader").expect("accepted");
    reader.subscribe("delay", 0).expect("granted");
    let mut writer = MqttClient::connect(address, "writer").expect("accepted");
    let begun = Instant::now();
    let mut delays = Vec::with_capacity(DELAYS as usize);
    for number in 0..DELAYS {
        let due = begun + Duration::from_millis(2) * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let sent = Instant::now();
        writer.publish("delay", &[b'x'; 100], 0, false).expect("taken");
        while !matches!(
            reader.read(Duration::from_secs(5)).expect("it answers"),
            Some(Incoming::Publish { .. })
        ) {}
        delays.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    delays.sort_by(f64::total_cmp);
    [delays[delays.len() / 2], delays[delays.len() * 99 / 100]]
}

const CONNECTIONS: usize = 5000;
const TOPICS: usize = 20_000;
const DELAYS: u32 = 2500;
