//! Messages for a reader that is away, kept before they are acknowledged: how many a second, and what that writes.
//!
//! mosquitto keeps nothing before a graceful stop unless it is told to save whenever something has changed
//! (`autosave_on_changes`, `autosave_interval 1`); then it writes everything that it holds each time, without a flush.
//! What is compared is therefore the least that survives `kill -9` in each of them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::{Mosquitto, MosquittoConfig, MqttClient, Process, Tidegate};

use crate::load::{Conn, wait};
use crate::report::Report;

pub(crate) fn run(rounds: usize, report: &mut Report) {
    let mut figures: [Vec<(f64, f64)>; 2] = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for turn in 0..2 {
            let who = (turn + round) % 2;
            let measured = if who == 0 {
                let gateway = Tidegate::builder().start();
                measure(gateway.mqtt(), gateway.process(), MESSAGES)
            } else {
                let safe = ["autosave_on_changes true", "autosave_interval 1"].map(str::to_owned);
                let config =
                    MosquittoConfig { persistence: true, extra: safe.into(), ..MosquittoConfig::default() };
                let mosquitto = Mosquitto::with(config);
                // Each message costs it all those before: fewer are enough to see it.
                measure(mosquitto.address(), mosquitto.process(), MESSAGES / 50)
            };
            figures[who].push(measured);
        }
    }
    let [ours, theirs] = figures;
    let rates = |list: &[(f64, f64)]| list.iter().map(|figure| figure.0).collect::<Vec<_>>();
    let bytes = |list: &[(f64, f64)]| list.iter().map(|figure| figure.1).collect::<Vec<_>>();
    report.beside("kept QoS 1 rate", "msg/s", rates(&ours), "mosquitto, saving", rates(&theirs));
    report.at_least("kept QoS 1 rate", "msg/s", rates(&ours), 5000.0);
    report.beside("kept QoS 1 written", "B/B", bytes(&ours), "mosquitto, saving", bytes(&theirs));
    report.at_most("kept QoS 1 written", "B/B", bytes(&ours), 4.0);
}

/// Messages acknowledged a second, and bytes written for each byte of topic and payload.
fn measure(address: SocketAddr, server: &Process, count: u64) -> (f64, f64) {
    // A sixth of them fits into each reader's queue; all of them are more than the log holds before it is written back.
    let topics: Vec<String> = (0..READERS).map(|number| format!("kept/{number}")).collect();
    for topic in &topics {
        let mut reader = MqttClient::connect_with(address, topic, false).expect("a session");
        reader.subscribe(topic, 1).expect("a subscription");
        reader.disconnect().expect("it goes");
    }
    let mut conns = [Conn::open(address, "writer", None).expect("it is let in")];
    let payload = [b'x'; 200];
    let before = server.written_bytes().expect("the kernel counts");
    let begun = Instant::now();
    let mut sent = 0;
    while conns[0].acknowledged < count {
        while sent < count && sent - conns[0].acknowledged < WINDOW {
            conns[0].publish(&topics[sent as usize % topics.len()], &payload, 1);
            sent += 1;
        }
        conns[0]
            .flush()
            .and_then(|()| wait(&conns))
            .and_then(|()| conns[0].drain())
            .expect("the broker goes on");
        assert!(begun.elapsed() < Duration::from_secs(120), "{} of {count}", conns[0].acknowledged);
    }
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    let written = server.written_bytes().expect("the kernel counts") - before;
    (rate, written as f64 / (count as usize * (payload.len() + topics[0].len())) as f64)
}

const READERS: u64 = 6;
const MESSAGES: u64 = READERS * 18_000;
/// Published and not yet acknowledged.
const WINDOW: u64 = 500;
