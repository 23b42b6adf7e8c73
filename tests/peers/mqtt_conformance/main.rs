//! MQTT 3.1, 3.1.1 and 5.0 as their standards state them: a check per normative statement, spoken in raw bytes against
//! the gateway and against mosquitto.
//!
//! What can depend on how packets arrive and connections end is asked over TCP, TLS, WebSocket and secure WebSocket;
//! what is decided once a packet has been read, over TCP.
//!
//! Only the gateway's failures fail the test. Mosquitto is asked the same so that a check that is wrong shows: it may
//! fail one in ten, and what both fail is looked at twice. The table of both is left in
//! `tests/out/mqtt-conformance.txt`. `CONFORMANCE_ONLY` runs those checks alone whose name contains it; a name begins with
//! the transport.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod connect;
mod flow;
mod malformed;
mod options;
mod properties;
mod publish;
mod retained;
mod sessions;
mod shared;
mod subscribe;
mod takeover;
mod topics;
mod websocket;
mod wills;
mod wire;

use std::cell::RefCell;
use std::fmt::Write;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use client::{Client, Connect};
use harness::{Authority, Door, Endpoint, Mosquitto, MosquittoConfig, Transport, out_dir};
use wire::{Publish, Version};

/// A check and the statements it holds a broker to, by the version it is run in.
pub struct Check {
    name: &'static str,
    statements: &'static [(Version, &'static str)],
    run: fn(&Room),
}

/// Where one check runs: a broker that others use as well, with ids and topics of its own.
pub struct Room<'a> {
    /// Where the broker listens, with the transport the check is about.
    pub broker: &'a Endpoint,
    /// Where the same broker listens with nothing between MQTT and TCP.
    pub plain: &'a Endpoint,
    /// The version the check is about.
    pub version: Version,
    prefix: String,
}

/// Puts a check on a list: its function and the statements by version.
#[macro_export]
macro_rules! check {
    ($run:ident, $($version:ident $statement:literal),+) => {
        $crate::Check {
            name: stringify!($run),
            statements: &[$(($crate::wire::Version::$version, $statement)),+],
            run: $run,
        }
    };
}

/// What can depend on the transport: where packets begin and end, how fast they come, how a connection ends and what is
/// still said before, silence, much at once, and what the next connection finds.
const ON_EVERY_TRANSPORT: [&[Check]; 8] = [
    connect::CHECKS,
    malformed::CHECKS,
    takeover::CHECKS,
    sessions::CHECKS,
    wills::CHECKS,
    publish::CHECKS,
    flow::CHECKS,
    retained::CHECKS,
];

/// What is decided once a packet has been read.
const ON_TCP: [&[Check]; 5] =
    [topics::CHECKS, subscribe::CHECKS, options::CHECKS, shared::CHECKS, properties::CHECKS];

/// What frames may hold.
const ON_WEBSOCKET: [&[Check]; 1] = [websocket::CHECKS];

impl Room<'_> {
    /// A topic that only this check uses.
    pub fn topic(&self, rest: &str) -> String {
        format!("{}/{rest}", self.prefix)
    }

    /// A client id that only this check uses.
    pub fn id(&self, who: &str) -> String {
        format!("{}{who}", self.prefix)
    }

    /// What a client of the room's version says, with a session of its own.
    pub fn hello(&self, who: &str) -> Connect {
        Connect::new(self.version, self.id(who))
    }

    /// A client that is connected.
    pub fn client(&self, who: &str) -> Client {
        self.hello(who).open(self.broker)
    }

    /// Opens a connection on which nothing is said.
    pub fn dial(&self) -> Client {
        Client::dial(self.broker, self.version)
    }

    /// Publishes from a client that comes and goes, and returns when the broker has acknowledged it.
    pub fn publish(&self, message: Publish) {
        let mut client = Connect::new(self.version, self.id("once")).open(self.broker);
        client.publish(message);
        client.disconnect();
    }

    /// Whether there are properties, reasons and options.
    pub fn is_v5(&self) -> bool {
        self.version == Version::V5
    }
}

#[test]
fn the_gateway_passes_every_check_that_mosquitto_is_given_too() {
    let cases = cases();
    let authority = Authority::new("house");
    let limits = "[mqtt.limits]\ntopic_aliases_sent = 16\n";
    let (gateway, our_doors) = Endpoint::all_of_a_gateway(&authority, limits);
    let (mosquitto, their_doors) = mosquitto(&authority);
    panic::set_hook(Box::new(|info| {
        LAST_PANIC.with_borrow_mut(|last| *last = info.to_string().replace('\n', " "));
    }));
    let begun = Instant::now();
    let (ours, theirs) = thread::scope(|scope| {
        let ours = scope.spawn(|| run(&cases, &our_doors));
        let theirs = scope.spawn(|| run(&cases, &their_doors));
        (ours.join().unwrap(), theirs.join().unwrap())
    });
    let _ = panic::take_hook();
    drop((gateway, mosquitto));

    let mut table = String::new();
    let verdict = |outcome: &Outcome| if outcome.is_ok() { "ok" } else { "FAILED" };
    for (case, (our, their)) in cases.iter().zip(ours.iter().zip(&theirs)) {
        writeln!(table, "{:8} {:8} {}", verdict(our), verdict(their), case.name).unwrap();
    }
    let mut summary = format!("{} checks in {:.1} s\n", cases.len(), begun.elapsed().as_secs_f64());
    for (peer, outcomes) in [("tidegate", &ours), ("mosquitto", &theirs)] {
        summary.push_str(&summary_of(peer, &cases, outcomes));
    }
    let text = format!("tidegate mosquitto\n{table}\n{summary}");
    println!("{text}");
    let is_whole = std::env::var_os(ONLY).is_none();
    if is_whole {
        std::fs::write(out_dir().join("mqtt-conformance.txt"), &text).unwrap();
    }
    let failed = theirs.iter().filter(|outcome| outcome.is_err()).count();
    assert!(!is_whole || failed * 10 < cases.len(), "mosquitto fails {failed}: the checks are wrong");
    let failed = ours.iter().filter(|outcome| outcome.is_err()).count();
    assert!(failed == 0, "{failed} of {} checks failed:\n{summary}", cases.len());
}

type Outcome = Result<(), String>;

/// A check in one version over one transport.
struct Case {
    /// Transport, version, statement, what is expected.
    name: String,
    transport: Transport,
    version: Version,
    check: &'static Check,
}

/// A mosquitto that listens on every transport, in their order.
fn mosquitto(authority: &Authority) -> (Mosquitto, Vec<Endpoint>) {
    let doors =
        vec![Door::open().tls(authority), Door::open().websocket(), Door::open().tls(authority).websocket()];
    let mosquitto = Mosquitto::with(MosquittoConfig {
        extra: vec!["max_packet_size 2097152".to_owned()],
        doors,
        ..MosquittoConfig::default()
    });
    let addresses = [mosquitto.address(), mosquitto.door(0), mosquitto.door(1), mosquitto.door(2)];
    let doors = Transport::ALL.iter().zip(addresses);
    let doors = doors.map(|(transport, address)| Endpoint::new(address, *transport, authority)).collect();
    (mosquitto, doors)
}

/// Every check in every version over every transport that may matter to it.
fn cases() -> Vec<Case> {
    let only = std::env::var(ONLY).unwrap_or_default();
    let mut cases = Vec::new();
    for transport in Transport::ALL {
        let mut lists = ON_EVERY_TRANSPORT.to_vec();
        match transport {
            Transport::Tcp => lists.extend(ON_TCP),
            Transport::Tls => {}
            Transport::WebSocket | Transport::SecureWebSocket => lists.extend(ON_WEBSOCKET),
        }
        for check in lists.into_iter().flatten() {
            for (version, statement) in check.statements {
                let prefix = match version {
                    Version::V31 => "mqtt31",
                    Version::V311 => "mqtt311",
                    Version::V5 => "mqtt5",
                };
                let statement = statement.replace(['.', '-'], "_");
                let name = format!("{} {prefix}_{statement}_{}", transport.name(), check.name);
                if name.contains(&only) {
                    cases.push(Case { name, transport, version: *version, check });
                }
            }
        }
    }
    cases
}

/// Runs the cases against the broker whose endpoints these are, in the order of [`Transport::ALL`].
fn run(cases: &[Case], doors: &[Endpoint]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(vec![Ok(()); cases.len()]);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some((number, case)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, cases.get(n)?)))
                {
                    let door = |transport| doors.iter().find(|door| door.transport() == transport).unwrap();
                    let (broker, plain) = (door(case.transport), door(Transport::Tcp));
                    let room = Room { broker, plain, version: case.version, prefix: format!("r{number}") };
                    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (case.check.run)(&room)))
                        .map_err(|_| LAST_PANIC.take());
                    outcomes.lock().unwrap()[number] = outcome;
                }
            });
        }
    });
    outcomes.into_inner().unwrap()
}

/// How many passed over each transport, and why the others did not.
fn summary_of(peer: &str, cases: &[Case], outcomes: &[Outcome]) -> String {
    let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    let mut text = format!("{peer}: {} passed, {failed} failed\n", outcomes.len() - failed);
    for transport in Transport::ALL {
        let of_it = || cases.iter().zip(outcomes).filter(|(case, _)| case.transport == transport);
        let passed = of_it().filter(|(_, outcome)| outcome.is_ok()).count();
        writeln!(text, "  {}: {passed} of {}", transport.name(), of_it().count()).unwrap();
    }
    for (case, outcome) in cases.iter().zip(outcomes) {
        if let Err(why) = outcome {
            writeln!(text, "  {}: {why}", case.name).unwrap();
        }
    }
    text
}

thread_local! {
    /// What the last panic of this thread said, and where.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Checks mostly wait, so that more of them than processors go on at once.
const WORKERS: usize = 24;
const ONLY: &str = "CONFORMANCE_ONLY";
