//! Many at once and one after the other: memory for idle connections and for topics that are gone, and how soon a
//! message arrives when there is little to do; beside mosquitto
//! and rumqttd.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::{Incoming, Mosquitto, MqttClient, Process, Rumqttd, Tidegate, wait_until};

use crate::report::{Limit, Report};

pub(crate) fn run(rounds: usize, report: &mut Report) {
    let limit = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limit.lines().find(|line| line.starts_with("Max open files"));
    let files = files.and_then(|line| line.split_whitespace().nth(3)?.parse::<usize>().ok()).unwrap_or(0);
    if files < CONNECTIONS + 100 {
        return report.skipped("5,000 idle connections", format!("a process may open {files} files here"));
    }
    let mut figures: [Measured; 3] = [const { Ok(Vec::new()) }; 3];
    for round in 0..rounds {
        for turn in 0..PEERS.len() {
            let who = (turn + round) % PEERS.len();
            if let Ok(list) = &mut figures[who] {
                match PEERS[who].1() {
                    Ok(crowd) => list.push(crowd),
                    Err(error) => figures[who] = Err(error.to_string()),
                }
            }
        }
    }
    let of = |who: usize, which: Figure| {
        let pick = |list: &Vec<Crowd>| list.iter().map(which).collect::<Vec<_>>();
        figures[who].as_ref().map(pick).map_err(Clone::clone)
    };
    let must = |who: usize, which| of(who, which).unwrap_or_else(|why| panic!("{}: {why}", PEERS[who].0));
    let rows: [(&str, &str, Figure, f64); 3] = [
        ("5,000 idle: memory each", "B", |crowd| crowd.bytes_each, 4096.0),
        ("5,000 connected", "s", |crowd| crowd.seconds, 2.0),
        ("5,000 gone: memory kept", "of it", |crowd| crowd.left, 0.25),
    ];
    for (what, unit, which, most) in rows {
        report.beside(what, unit, must(0, which), "mosquitto", must(1, which));
        report.beside_if(what, unit, must(0, which), "rumqttd", of(2, which));
        report.at_most(what, unit, must(0, which), most);
    }
    let what = "reply topic that is gone";
    let topic: Figure = |crowd| crowd.bytes_a_topic;
    // Nothing is left of one in us and in mosquitto, as often as not: there is no ratio of that.
    report.beside_if(what, "B", must(0, topic), "rumqttd", of(2, topic));
    report.at_most(what, "B", must(0, topic), 100.0);
    let rows: [(&str, Figure, f64); 2] =
        [("p50", |crowd| crowd.delays[0], 1.25), ("p99", |crowd| crowd.delays[1], 1.5)];
    for (name, which, most) in rows {
        let what = format!("500 messages/s, {name}");
        let limit = Some(Limit::AtMost(most));
        report.beside_within(&what, "µs", must(0, which), "mosquitto", must(1, which), limit);
        report.beside_if(&what, "µs", must(0, which), "rumqttd", of(2, which));
    }
}

/// The gateway and those beside it, each started for one round.
const PEERS: [(&str, Round); 3] = [
    ("tidegate", || {
        let gateway = Tidegate::builder().mqtt("max_connections = 6000").start();
        measure(gateway.mqtt(), gateway.process(), TOPICS)
    }),
    ("mosquitto", || {
        let mosquitto = Mosquitto::start();
        measure(mosquitto.address(), mosquitto.process(), TOPICS)
    }),
    ("rumqttd", || {
        let rumqttd = Rumqttd::start();
        // Each costs it all those before: fewer are enough to see it.
        measure(rumqttd.address(), rumqttd.process(), TOPICS / 10)
    }),
];

type Round = fn() -> io::Result<Crowd>;

/// One of the figures of a round.
type Figure = fn(&Crowd) -> f64;

/// What the rounds brought, or why there is nothing.
type Measured = Result<Vec<Crowd>, String>;

#[derive(Debug)]
struct Crowd {
    bytes_each: f64,
    seconds: f64,
    /// The part of it that is still held when all have gone.
    left: f64,
    bytes_a_topic: f64,
    /// The median and the 99th percentile of [`delays`].
    delays: [f64; 2],
}

fn measure(address: SocketAddr, server: &Process, topics: usize) -> io::Result<Crowd> {
    let delays = delays(address)?;
    let resident =
        || server.resident_bytes().map(|bytes| bytes as f64).ok_or(io::Error::other("it has ended"));
    let mut one = MqttClient::connect(address, "one")?;
    let mut topic = |number: usize| -> io::Result<()> {
        let topic = format!("reply/{number:08x}");
        one.subscribe(&topic, 0)?;
        one.publish(&topic, b"answer", 0, false)?;
        await_message(&mut one)?;
        one.unsubscribe(&topic)
    };
    (0..topics / 10).try_for_each(&mut topic)?;
    let before = resident()?;
    (topics..2 * topics).try_for_each(&mut topic)?;
    let bytes_a_topic = (resident()? - before).max(0.0) / topics as f64;

    let before = resident()?;
    let begun = Instant::now();
    let mut clients: Vec<MqttClient> = (0..CONNECTIONS)
        .map(|number| MqttClient::connect(address, &format!("idle-{number}")))
        .collect::<Result<_, _>>()?;
    let seconds = begun.elapsed().as_secs_f64();
    for (number, client) in clients.iter_mut().enumerate() {
        client.subscribe(&format!("idle/{number}"), 0)?;
    }
    let grown = resident()? - before;
    drop(clients);
    // As far as it comes down within some seconds.
    let mut left = grown;
    wait_until(Duration::from_secs(5), || {
        left = (resident().ok()? - before).max(0.0).min(left);
        (left < grown * 0.1).then_some(())
    });
    let bytes_each = grown / CONNECTIONS as f64;
    Ok(Crowd { bytes_each, seconds, left: left / grown, bytes_a_topic, delays })
}

/// The median and the 99th percentile of the way from one client to another, in microseconds, at 500 a second.
fn delays(address: SocketAddr) -> io::Result<[f64; 2]> {
    let mut reader = MqttClient::connect(address, "reader")?;
    reader.subscribe("delay", 0)?;
    let mut writer = MqttClient::connect(address, "writer")?;
    let begun = Instant::now();
    let mut delays = Vec::with_capacity(DELAYS as usize);
    for number in 0..DELAYS {
        let due = begun + Duration::from_millis(2) * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let sent = Instant::now();
        writer.publish("delay", &[b'x'; 100], 0, false)?;
        await_message(&mut reader)?;
        delays.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    delays.sort_by(f64::total_cmp);
    Ok([delays[delays.len() / 2], delays[delays.len() * 99 / 100]])
}

fn await_message(client: &mut MqttClient) -> io::Result<()> {
    loop {
        match client.read(Duration::from_secs(10))? {
            Some(Incoming::Publish { .. }) => return Ok(()),
            Some(_) => {}
            None => return Err(io::Error::other("a message has not come within ten seconds")),
        }
    }
}

const CONNECTIONS: usize = 5000;
const TOPICS: usize = 20_000;
const DELAYS: u32 = 2500;
