//! 200 gateways, each a process of the real binary, into one RabbitMQ: half of them over AMQP 0-9-1 into a quorum
//! queue, half into a stream. The broker goes away in the middle; at the end every gateway's ledger is whole.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use harness::{
    Arrivals, LaneReport, RabbitMq, RabbitMqConfig, Scratch, Store, Tidegate, out_dir, quoted, wait_until,
};

const GATEWAYS: usize = 200;
/// Started side by side.
const AT_ONCE: usize = 4;
const SECOND: Duration = Duration::from_secs(1);
const QUEUE: Store<'_> = Store::Queue("fleet");
const STREAM: Store<'_> = Store::Stream("fleet-stream");

#[test]
fn two_hundred_gateways_bring_every_reading_into_one_rabbitmq() {
    let mut broker = RabbitMq::with(RabbitMqConfig { streams: true, ..RabbitMqConfig::default() });
    let scratch = Scratch::new("secrets");
    let password = quoted(&scratch.write("guest", "guest"));
    let uplink = |n: usize| {
        if n.is_multiple_of(2) {
            let queue = "queue = { name = \"fleet\", type = \"quorum\" }";
            format!(
                "[[uplink]]\nname = \"cloud\"\ntype = \"amqp\"\naddress = \"{}\"\n{queue}\n",
                broker.address()
            )
        } else {
            format!(
                "[[uplink]]\nname = \"cloud\"\ntype = \"rabbitmq-stream\"\naddress = \"{}\"\n\
                 stream = \"fleet-stream\"\ndelivery = \"exactly-once\"\nusername = \"guest\"\n\
                 password = {{ file = {password} }}\n",
                broker.stream()
            )
        }
    };
    let uplinks: Vec<String> = (0..GATEWAYS).map(uplink).collect();

    let begun = Instant::now();
    let mut fleet = start(&uplinks);
    let started = begun.elapsed();
    let resident: u64 = fleet.iter().filter_map(|gateway| gateway.process().resident_bytes()).sum();

    let running = Instant::now();
    thread::sleep(10 * SECOND);
    broker.stop();
    thread::sleep(8 * SECOND);
    broker.restart();
    let back = Instant::now();
    let states = |fleet: &[Tidegate]| -> BTreeMap<String, usize> {
        let mut states = BTreeMap::new();
        for gateway in fleet {
            let uplink = gateway.status()["uplinks"][0].clone();
            let is_done = uplink["waiting"] == 0 && uplink["in_flight"] == 0;
            let state = uplink["state"].as_str().unwrap_or("").to_owned();
            *states.entry(if is_done { state + ", done" } else { state }).or_default() += 1;
        }
        states
    };
    let all_back = wait_until(120 * SECOND, || {
        let states = states(&fleet);
        states.keys().all(|state| state.starts_with("connected")).then_some(())
    });
    assert!(all_back.is_some(), "{:?}", states(&fleet));
    let reconnected = back.elapsed();
    thread::sleep(5 * SECOND);
    let measured = running.elapsed();

    // The sensors end, by a reload that leaves the uplinks alone.
    for (gateway, uplink) in fleet.iter().zip(&uplinks) {
        gateway.configure("", uplink);
        gateway.process().signal(libc::SIGHUP);
    }
    let done = wait_until(120 * SECOND, || {
        let states = states(&fleet);
        (states.len() == 1 && states.contains_key("connected, done")).then_some(())
    });
    assert!(done.is_some(), "{:?}", states(&fleet));
    let cpu: Duration = fleet.iter().filter_map(|gateway| gateway.process().cpu_time()).sum();
    for gateway in &mut fleet {
        gateway.kill();
    }

    let reading = Instant::now();
    let (queue, stream) = (Arrivals::read(broker.address(), QUEUE), Arrivals::read(broker.address(), STREAM));
    let read_in = reading.elapsed();
    assert_eq!(queue.gateways().len() + stream.gateways().len(), GATEWAYS);
    let (mut whole, mut total, mut least) = (0, LaneReport::default(), usize::MAX);
    for (n, gateway) in fleet.iter().enumerate() {
        let ids = gateway.stored();
        let is_stream = !n.is_multiple_of(2);
        let report = if is_stream { &stream } else { &queue }.check(&ids);
        report.assert_whole(&name(n));
        if is_stream {
            assert_eq!(report.repeated, 0, "{}: exactly once", name(n));
        }
        whole += 1;
        least = least.min(report.expected);
        total.expected += report.expected;
        total.messages += report.messages;
        total.arrived += report.arrived;
        total.repeated += report.repeated;
        total.farthest_repeat = total.farthest_repeat.max(report.farthest_repeat);
        for (lane, count) in report.lanes {
            *total.lanes.entry(lane).or_default() += count;
        }
    }
    let table = format!(
        "{whole} of {GATEWAYS} ledgers whole, the smallest with {least} entries\n{}\n{}\n\
         started in {started:.1?}, {} MB resident each; {:.0} readings/s in all, {:.1} % of a core each;\n\
         all back {reconnected:.1?} after the broker; its queue and stream read in {read_in:.1?}",
        LaneReport::HEAD,
        total.row("fleet"),
        resident / GATEWAYS as u64 / 1_000_000,
        total.expected as f64 / measured.as_secs_f64(),
        100.0 * cpu.as_secs_f64() / measured.as_secs_f64() / GATEWAYS as f64,
    );
    println!("\n{table}");
    std::fs::write(out_dir().join("fleet.txt"), table + "\n").unwrap();
}

/// Starts them all, some at a time.
fn start(uplinks: &[String]) -> Vec<Tidegate> {
    let numbered: Vec<(usize, &String)> = uplinks.iter().enumerate().collect();
    let mut fleet: Vec<(usize, Tidegate)> = thread::scope(|scope| {
        let shares = (0..AT_ONCE).map(|share| {
            let mine: Vec<_> = numbered.iter().skip(share).step_by(AT_ONCE).copied().collect();
            scope.spawn(move || {
                let gateways = mine.into_iter().map(|(n, uplink)| {
                    let gateway = Tidegate::builder().name(&name(n)).tables(SENSOR).tables(uplink).start();
                    (n, gateway)
                });
                gateways.collect::<Vec<_>>()
            })
        });
        let shares: Vec<_> = shares.collect();
        shares.into_iter().flat_map(|share| share.join().unwrap()).collect()
    });
    fleet.sort_by_key(|(n, _)| *n);
    fleet.into_iter().map(|(_, gateway)| gateway).collect()
}

fn name(n: usize) -> String {
    format!("site-{n:03}")
}

const SENSOR: &str =
    "[[device]]\nname = \"room\"\ntype = \"bme280\"\nbus = \"sim\"\naddress = 0x76\ninterval = \"500ms\"\n";
