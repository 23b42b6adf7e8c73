//! MQTT against mosquitto: many to one, one to many; messages per second and processor time per delivered message.

use std::time::{Duration, Instant};

use harness::{Mosquitto, Process, Tidegate};

use crate::load::{Conn, wait};
use crate::report::{Limit, Report};

/// Twenty publishers, one subscriber, at most a thousand messages on their way.
pub(crate) fn fan_in(rounds: usize, report: &mut Report) {
    compare(
        "fan-in 20→1",
        Shape { publishers: 20, subscribers: 1, window: 1000, at_least: 2.5 },
        rounds,
        report,
    );
}

/// One publisher, a hundred subscribers, at most twenty messages on their way.
pub(crate) fn fan_out(rounds: usize, report: &mut Report) {
    compare(
        "fan-out 1→100",
        Shape { publishers: 1, subscribers: 100, window: 20, at_least: 5.0 },
        rounds,
        report,
    );
}

#[derive(Clone, Copy)]
struct Shape {
    publishers: usize,
    subscribers: usize,
    /// Published and not yet delivered to every subscriber, nor acknowledged.
    window: u64,
    /// How many times as many messages as mosquitto.
    at_least: f64,
}

fn compare(name: &str, shape: Shape, rounds: usize, report: &mut Report) {
    let mosquitto = Mosquitto::start();
    let gateway = Tidegate::builder().start();
    for qos in [0, 1, 2] {
        let mut figures: [Vec<(f64, f64)>; 2] = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for turn in 0..2 {
                // Who begins changes from round to round.
                let who = (turn + round) % 2;
                let (address, process) = match who {
                    0 => (gateway.mqtt(), gateway.process()),
                    _ => (mosquitto.address(), mosquitto.process()),
                };
                figures[who].push(round_trip(address, process, shape, qos, ROUND));
            }
        }
        let [ours, theirs] = figures;
        let pick =
            |list: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| list.iter().map(which).collect::<Vec<_>>();
        let what = format!("{name} QoS {qos} rate");
        let (rates, their_rates) = (pick(&ours, |f| f.0), pick(&theirs, |f| f.0));
        let limit = Some(Limit::AtLeast(shape.at_least));
        report.beside_within(what, "msg/s", rates, "mosquitto", their_rates, limit);
        let what = format!("{name} QoS {qos} CPU");
        let (times, their_times) = (pick(&ours, |f| f.1), pick(&theirs, |f| f.1));
        report.beside_within(what, "µs/msg", times, "mosquitto", their_times, Some(Limit::AtMost(0.4)));
    }
}

/// Deliveries per second, and the server's processor time per delivery in microseconds.
fn round_trip(
    address: std::net::SocketAddr,
    server: &Process,
    shape: Shape,
    qos: u8,
    time: Duration,
) -> (f64, f64) {
    let mut conns: Vec<Conn> = (0..shape.subscribers)
        .map(|n| Conn::open(address, &format!("sub{n}"), Some(("bench/#", qos))))
        .collect();
    conns.extend((0..shape.publishers).map(|n| Conn::open(address, &format!("pub{n}"), None)));
    let payload = [b'x'; 100];
    let topics: Vec<String> = (0..shape.publishers).map(|n| format!("bench/{n}")).collect();
    let cpu_before = server.cpu_time().expect("the server runs");
    let begun = Instant::now();
    let window = shape.window;
    // mosquitto loses what a client publishes beyond twenty unfinished QoS 2 messages.
    let each = if qos == 2 { 20 } else { window };
    let (mut sent, mut next) = (0, 0);
    loop {
        let (subscribers, publishers) = conns.split_at_mut(shape.subscribers);
        let delivered = subscribers.iter().map(|conn| conn.received).min().unwrap_or(0);
        let acknowledged: u64 = publishers.iter().map(|conn| conn.acknowledged).sum();
        let done = if qos == 0 { delivered } else { delivered.min(acknowledged) };
        let is_over = begun.elapsed() >= time;
        if is_over && done == sent {
            break;
        }
        // A QoS 0 message is never acknowledged: the window of all is its only bound.
        while !is_over && sent - done < window && (qos == 0 || publishers[next].unacknowledged() < each) {
            publishers[next].publish(&topics[next], &payload, qos);
            next = (next + 1) % publishers.len();
            sent += 1;
        }
        publishers.iter_mut().for_each(Conn::flush);
        wait(&conns);
        conns.iter_mut().for_each(Conn::drain);
        assert!(begun.elapsed() < time + Duration::from_secs(30), "{done} of {sent} have come back");
    }
    let time = begun.elapsed();
    assert!(conns[..shape.subscribers].iter().all(|conn| conn.received == sent), "more came than was sent");
    let cpu = server.cpu_time().expect("the server runs").saturating_sub(cpu_before);
    let deliveries = (sent * shape.subscribers as u64) as f64;
    (deliveries / time.as_secs_f64(), cpu.as_secs_f64() * 1e6 / deliveries)
}

const ROUND: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_reaches_every_subscriber_and_is_acknowledged() {
        let broker = Mosquitto::start();
        let shape = Shape { publishers: 3, subscribers: 4, window: 50, at_least: 0.0 };
        for qos in [0, 1, 2] {
            let (rate, cpu) =
                round_trip(broker.address(), broker.process(), shape, qos, Duration::from_millis(300));
            assert!(rate > 100.0 && cpu > 0.0, "QoS {qos}: {rate} messages per second, {cpu} µs each");
        }
    }
}
