//! MQTT beside mosquitto and rumqttd: many to one, one to many; messages per second and processor time per delivered message.

use std::io;
use std::time::{Duration, Instant};

use harness::{Mosquitto, Process, Rumqttd, Tidegate};

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
        // It keeps what went through it: one that has done nothing yet for each kind of load.
        let rumqttd = Rumqttd::start();
        let peers = [
            ("tidegate", gateway.mqtt(), gateway.process()),
            ("mosquitto", mosquitto.address(), mosquitto.process()),
            ("rumqttd", rumqttd.address(), rumqttd.process()),
        ];
        let mut figures: [Measured; 3] = [const { Ok(Vec::new()) }; 3];
        for round in 0..rounds {
            for turn in 0..peers.len() {
                // Who begins changes from round to round.
                let who = (turn + round) % peers.len();
                let (_, address, process) = peers[who];
                if let Ok(list) = &mut figures[who] {
                    match round_trip(address, process, shape, qos, ROUND) {
                        Ok(figure) => list.push(figure),
                        Err(error) => figures[who] = Err(error.to_string()),
                    }
                }
            }
        }
        let rate_limit = Limit::AtLeast(shape.at_least);
        for (what, unit, limit, which) in
            [("rate", "msg/s", rate_limit, RATE), ("CPU", "µs/msg", Limit::AtMost(0.4), CPU)]
        {
            let what = format!("{name} QoS {qos} {what}");
            let of = |who: usize| {
                let pick = |list: &Vec<(f64, f64)>| list.iter().map(which).collect::<Vec<_>>();
                figures[who].as_ref().map(pick).map_err(Clone::clone)
            };
            let must = |who: usize| of(who).unwrap_or_else(|why| panic!("{what}: {}: {why}", peers[who].0));
            report.beside_within(&what, unit, must(0), "mosquitto", must(1), Some(limit));
            report.beside_if(&what, unit, must(0), "rumqttd", of(2));
        }
    }
}

/// Rates and processor times, or why there are none.
type Measured = Result<Vec<(f64, f64)>, String>;

const RATE: fn(&(f64, f64)) -> f64 = |figure| figure.0;
const CPU: fn(&(f64, f64)) -> f64 = |figure| figure.1;

/// Deliveries per second, and the server's processor time per delivery in microseconds.
fn round_trip(
    address: std::net::SocketAddr,
    server: &Process,
    shape: Shape,
    qos: u8,
    time: Duration,
) -> io::Result<(f64, f64)> {
    let subscribers =
        (0..shape.subscribers).map(|n| Conn::open(address, &format!("sub{n}"), Some(("bench/#", qos))));
    let publishers = (0..shape.publishers).map(|n| Conn::open(address, &format!("pub{n}"), None));
    let mut conns: Vec<Conn> = subscribers.chain(publishers).collect::<Result<_, _>>()?;
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
        publishers.iter_mut().try_for_each(Conn::flush)?;
        wait(&conns).map_err(|error| io::Error::other(format!("{done} of {sent} are done: {error}")))?;
        conns.iter_mut().try_for_each(Conn::drain)?;
        if begun.elapsed() > time + Duration::from_secs(30) {
            return Err(io::Error::other(format!("{done} of {sent} are done after half a minute")));
        }
    }
    let time = begun.elapsed();
    if conns[..shape.subscribers].iter().any(|conn| conn.received != sent) {
        return Err(io::Error::other("more came than was sent"));
    }
    let cpu = server.cpu_time().expect("the server runs").saturating_sub(cpu_before);
    let deliveries = (sent * shape.subscribers as u64) as f64;
    Ok((deliveries / time.as_secs_f64(), cpu.as_secs_f64() * 1e6 / deliveries))
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
                round_trip(broker.address(), broker.process(), shape, qos, Duration::from_millis(300))
                    .unwrap();
            assert!(rate > 100.0 && cpu > 0.0, "QoS {qos}: {rate} messages per second, {cpu} µs each");
        }
    }
}
