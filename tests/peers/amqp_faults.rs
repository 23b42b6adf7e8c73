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
    /// What may come twice, over how many losses of the connection; nothing, where the server drops repeats.
    is_exact: bool,
}

#[test]
fn a_quorum_queue_has_every_reading_after_all_faults() {
    endure(&Course {
        name: "quorum queue",
        keys: "type = \"amqp\"\nqueue = { name = \"readings\", type = \"quorum\" }\n".into(),
        door: RabbitMq::tls,
        store: Store::Queue("readings"),
        is_exact: false,
    });
}

#[test]
fn a_stream_has_every_reading_once_after_all_faults() {
    endure(&Course {
        name: "stream",
        keys: "type = \"rabbitmq-stream\"\nstream = \"readings\"\ndelivery = \"exactly-once\"\n".into(),
        door: RabbitMq::stream_tls,
        store: Store::Stream("readings"),
        is_exact: true,
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
        is_exact: true,
    });
}

#[test]
fn amqp_1_0_brings_every_reading_into_a_queue_after_all_faults() {
    endure(&Course {
        name: "AMQP 1.0",
        keys: "type = \"amqp10\"\nnode = \"/amq/queue/readings\"\n".into(),
        door: RabbitMq::tls,
        store: Store::Queue("readings"),
        is_exact: false,
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
    let mut kills = 0;
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

    // Nobody listens; those who come are not answered; the wire is dead and nobody is told.
    for (mode, time) in [(Mode::Refuse, SECOND), (Mode::Hang, 3 * SECOND), (Mode::Blackhole, 5 * SECOND)] {
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

    wire.flap(Rng::new(rng.bits()), Duration::from_millis(150), Duration::from_millis(600));
    for round in 0..12 {
        std::thread::sleep(rng.between(Duration::from_millis(400), Duration::from_millis(2500)));
        kill(&mut gateway);
        match round {
            3 => {
                broker.stop();
                broker.restart();
            }
            7 => {
                broker.kill();
                broker.restart();
            }
            _ => {}
        }
    }
    let enough = wait_until(120 * SECOND, || (gateway.newest() >= READINGS).then_some(()));
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
        "{kills} kills of the gateway, 2 of the broker's restarts, {} cuts, {:.0?}\n{}\n{}",
        wire.cuts(),
        begun.elapsed(),
        LaneReport::HEAD,
        report.row(course.name)
    );
    println!("\n{table}");
    let file = format!("ledger-{}.txt", course.name.replace([' ', ','], "-"));
    std::fs::write(out_dir().join(file), table + "\n").unwrap();
    report.assert_whole(course.name);
    assert!(report.expected as u64 >= READINGS);
    if course.is_exact {
        assert_eq!(report.repeated, 0, "{}: exactly once", course.name);
    } else {
        assert!(report.farthest_repeat <= WINDOW, "{}: {} back", course.name, report.farthest_repeat);
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
