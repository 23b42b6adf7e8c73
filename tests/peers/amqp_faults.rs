//! 60,000 readings into RabbitMQ over TLS, through everything that a network, a broker and a power cut do: into a
//! quorum queue, into a stream (single entries and batches), and over AMQP 1.0. The ledger says what it cost.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::{
    Arrivals, Authority, FaultProxy, LaneReport, Mode, RabbitMq, RabbitMqConfig, Rng, Scratch, Store,
    Tidegate, out_dir, quoted, rabbitmq, wait_until,
};

const READINGS: u64 = 60_000;
/// Where only the promise differs from a course that has gone through everything: flaps, kills and one restart.
const FEWER: u64 = 25_000;
/// Entries in flight on each lane.
const WINDOW: usize = 500;
const SECOND: Duration = Duration::from_secs(1);

/// Where the readings go, and how.
struct Course {
    name: &'static str,
    /// The uplink's own keys.
    keys: String,
    /// The listener that the uplink talks to.
    door: fn(&RabbitMq) -> SocketAddr,
    store: Store<'static>,
    promise: Promise,
    readings: u64,
}

/// How often each reading arrives, with the word `once`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// What is lost is lost.
    AtMost,
    /// A failure repeats at most a window a lane.
    AtLeast,
    Exactly,
}

#[test]
fn a_quorum_queue_has_every_reading_after_all_faults() {
    endure(&Course {
        name: "quorum queue",
        keys: "type = \"amqp\"\nqueue = { name = \"readings\", type = \"quorum\" }\n".into(),
        door: RabbitMq::tls,
        store: Store::Queue("readings"),
        promise: Promise::AtLeast,
        readings: READINGS,
    });
}

#[test]
fn a_stream_has_every_reading_once_after_all_faults() {
    endure(&Course {
        name: "stream",
        keys: "type = \"rabbitmq-stream\"\nstream = \"readings\"\ndelivery = \"exactly-once\"\n".into(),
        door: RabbitMq::stream_tls,
        store: Store::Stream("readings"),
        promise: Promise::Exactly,
        readings: READINGS,
    });
}

#[test]
fn a_stream_has_every_reading_of_every_batch_once_after_all_faults() {
    endure(&Course {
        name: "stream, batches",
        keys: "type = \"rabbitmq-stream\"\nstream = \"readings\"\ndelivery = \"exactly-once\"\nbatch = 50\n\
               batch_wait = \"100ms\"\n"
            .into(),
        door: RabbitMq::stream_tls,
        store: Store::Stream("readings"),
        promise: Promise::Exactly,
        readings: READINGS,
    });
}

#[test]
fn amqp_1_0_brings_every_reading_into_a_queue_after_all_faults() {
    endure(&Course {
        name: "AMQP 1.0",
        keys: "type = \"amqp10\"\nnode = \"/amq/queue/readings\"\n".into(),
        door: RabbitMq::tls,
        store: Store::Queue("readings"),
        promise: Promise::AtLeast,
        readings: READINGS,
    });
}

#[test]
fn a_stream_without_a_publishers_name_has_every_reading_and_repeats_no_more_than_a_window() {
    endure(&Course {
        name: "stream, at least",
        keys: "type = \"rabbitmq-stream\"\nstream = \"readings\"\n".into(),
        door: RabbitMq::stream_tls,
        store: Store::Stream("readings"),
        promise: Promise::AtLeast,
        readings: FEWER,
    });
}

#[test]
fn a_stream_gets_nothing_twice_that_is_sent_at_most_once() {
    endure(&Course {
        name: "stream, at most",
        keys: "type = \"rabbitmq-stream\"\nstream = \"readings\"\ndelivery = \"at-most-once\"\n".into(),
        door: RabbitMq::stream_tls,
        store: Store::Stream("readings"),
        promise: Promise::AtMost,
        readings: FEWER,
    });
}

#[test]
fn a_queue_gets_nothing_twice_that_is_sent_at_most_once() {
    endure(&Course {
        name: "queue, at most",
        keys: "type = \"amqp\"\nqueue = { name = \"readings\", type = \"quorum\" }\ndelivery = \"at-most-once\"\n"
            .into(),
        door: RabbitMq::tls,
        store: Store::Queue("readings"),
        promise: Promise::AtMost,
        readings: FEWER,
    });
}

fn endure(course: &Course) {
    let mut rng = Rng::from_env(course.name);
    let begun = Instant::now();
    let authority = Authority::new("barn's own");
    let config = RabbitMqConfig { streams: true, amqp10: true, tls: Some(&authority) };
    let mut broker = RabbitMq::with(config);
    if course.keys.contains("amqp10") {
        // AMQP 1.0 knows no quorum queues: the far side has made one.
        rabbitmq(broker.address(), &["declare", "readings", "quorum"]);
    }
    let mut wire = FaultProxy::start((course.door)(&broker));
    // Login by the client's certificate, whose common name is `guest`; the stream listener cannot do that.
    let client = authority.client("guest");
    let tls = format!(
        "tls = {{ ca = {}, certificate = {}, key = {} }}\n",
        quoted(&authority.pem()),
        quoted(&client.pem),
        quoted(&client.key)
    );
    let scratch = Scratch::new("secrets");
    let password = format!(
        "username = \"guest\"\npassword = {{ file = {} }}\n",
        quoted(&scratch.write("guest", "guest"))
    );
    let user = if course.keys.contains("stream") { &*password } else { "" };
    let uplink = format!(
        "[[uplink]]\nname = \"cloud\"\naddress = \"{}\"\nwindow = {WINDOW}\nkeep_alive = \"2s\"\n{}{user}{tls}",
        wire.address(),
        course.keys
    );
    let mut gateway = Tidegate::builder().tables(&sensors()).tables(&uplink).start();
    let (mut kills, mut restarts) = (0, 0);
    let mut kill = |gateway: &mut Tidegate| {
        gateway.kill();
        gateway.start();
        kills += 1;
    };

    let cloud = |gateway: &Tidegate| gateway.status()["uplinks"][0].clone();
    let moves = |gateway: &Tidegate, what: &str| {
        let before = cloud(gateway)["confirmed"].as_u64().unwrap();
        let moved = wait_until(60 * SECOND, || {
            (cloud(gateway)["confirmed"].as_u64().unwrap() > before + 50).then_some(())
        });
        assert!(moved.is_some(), "{}: nothing arrives after {what}: {}", course.name, cloud(gateway));
    };
    moves(&gateway, "the start");

    if course.readings == READINGS {
        // Nobody listens; those who come are not answered; the wire is dead and nobody is told.
        for (mode, time) in [(Mode::Refuse, SECOND), (Mode::Hang, 3 * SECOND), (Mode::Blackhole, 5 * SECOND)]
        {
            wire.set(mode);
            if mode != Mode::Blackhole {
                wire.cut();
            }
            std::thread::sleep(time);
            wire.set(Mode::Pass);
            moves(&gateway, &format!("{mode:?}"));
        }
        // In the middle of the handshake, from a process that has not learnt to wait.
        for _ in 0..4 {
            let accepted = wire.accepted();
            wire.cut();
            kill(&mut gateway);
            let came = wait_until(20 * SECOND, || (wire.accepted() > accepted).then_some(()));
            assert!(came.is_some(), "{}: it does not come back", course.name);
            std::thread::sleep(rng.between(Duration::ZERO, Duration::from_millis(12)));
        }
        wire.cut();
        moves(&gateway, "resets in the handshake");
        wire.set(Mode::Slow(30_000));
        std::thread::sleep(2 * SECOND);
        // What it sent last is still on the slow wire when it comes back.
        kill(&mut gateway);
        std::thread::sleep(SECOND);
        wire.set(Mode::Pass);
        moves(&gateway, "a slow wire");
    }

    wire.flap(Rng::new(rng.bits()), Duration::from_millis(150), Duration::from_millis(600));
    for round in 0..course.readings * 12 / READINGS {
        std::thread::sleep(rng.between(Duration::from_millis(400), Duration::from_millis(2500)));
        kill(&mut gateway);
        match round {
            3 => {
                broker.stop();
                broker.restart();
                restarts += 1;
            }
            7 => {
                broker.kill();
                broker.restart();
                restarts += 1;
            }
            _ => {}
        }
    }
    let enough = wait_until(120 * SECOND, || (gateway.newest() >= course.readings).then_some(()));
    assert!(enough.is_some(), "{} readings after {:?}", gateway.newest(), begun.elapsed());
    std::thread::sleep(2 * SECOND);
    wire.calm();

    // The faults are over, and the sensors: what is in the spool now is what must be there.
    gateway.stop();
    gateway.configure("", &uplink);
    gateway.start();
    let drained = wait_until(120 * SECOND, || {
        let uplink = cloud(&gateway);
        (uplink["waiting"] == 0 && uplink["in_flight"] == 0 && uplink["state"] == "connected").then_some(())
    });
    assert!(drained.is_some(), "{}: not drained: {}", course.name, cloud(&gateway));
    // Not stopped but killed: a clean end writes what nobody sends any more.
    gateway.kill();
    let ids = gateway.stored();
    let report = Arrivals::read(broker.address(), course.store).check(&ids);
    let table = format!(
        "{kills} kills of the gateway, {restarts} restarts of the broker, {} cuts, {:.0?}\n{}\n{}",
        wire.cuts(),
        begun.elapsed(),
        LaneReport::HEAD,
        report.row(course.name)
    );
    println!("\n{table}");
    let file = format!("ledger-{}.txt", course.name.replace([' ', ','], "-"));
    std::fs::write(out_dir().join(file), table + "\n").unwrap();
    assert!(report.expected as u64 >= course.readings);
    match course.promise {
        Promise::AtMost => {
            assert_eq!(report.repeated, 0, "{}: at most once", course.name);
            assert_eq!((report.strangers.len(), report.inversions), (0, 0), "{}", course.name);
            assert!(report.lost.len() < report.expected / 2, "{}: {} lost", course.name, report.lost.len());
        }
        Promise::AtLeast => {
            report.assert_whole(course.name);
            assert!(report.farthest_repeat <= WINDOW, "{}: {} back", course.name, report.farthest_repeat);
        }
        Promise::Exactly => {
            report.assert_whole(course.name);
            assert_eq!(report.repeated, 0, "{}: exactly once", course.name);
        }
    }
}

/// Five chips with three channels each, on buses of their own: some 1,900 readings a second.
fn sensors() -> String {
    let device = |n: usize| {
        format!(
            "[[device]]\nname = \"room-{n}\"\ntype = \"bme280\"\nbus = \"sim-{n}\"\naddress = 0x76\n\
             interval = \"8ms\"\n"
        )
    };
    [0, 1, 2, 3, 4].map(device).concat()
}
