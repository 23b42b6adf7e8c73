//! MQTT 3.1, 3.1.1 and 5.0 as their standards state them: a check per normative statement, spoken in raw bytes over
//! TCP and WebSocket, against the gateway and against mosquitto.
//!
//! Only the gateway's failures fail the test. Mosquitto is asked the same so that a check that is wrong shows: it may
//! fail one in ten, and what both fail is looked at twice. The table of both is left in
//! `tests/out/mqtt-conformance.txt`. `CONFORMANCE_ONLY` runs those checks alone whose name contains it.
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
use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use client::{Client, Connect};
use harness::{Door, Mosquitto, MosquittoConfig, Tidegate, out_dir};
use wire::{Publish, Version};

/// A check and the statements it holds a broker to, by the version it is run in.
pub struct Check {
    name: &'static str,
    statements: &'static [(Version, &'static str)],
    run: fn(&Room),
}

/// Where one check runs: a broker that others use as well, with ids and topics of its own.
pub struct Room {
    /// Where the broker listens.
    pub broker: SocketAddr,
    /// Where it speaks the same over `WebSocket`.
    pub websocket: SocketAddr,
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

const LISTS: [&[Check]; 14] = [
    connect::CHECKS,
    malformed::CHECKS,
    takeover::CHECKS,
    sessions::CHECKS,
    wills::CHECKS,
    topics::CHECKS,
    publish::CHECKS,
    flow::CHECKS,
    retained::CHECKS,
    subscribe::CHECKS,
    options::CHECKS,
    shared::CHECKS,
    properties::CHECKS,
    websocket::CHECKS,
];

impl Room {
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
    let gateway = Tidegate::builder().start();
    let mosquitto = Mosquitto::with(MosquittoConfig {
        extra: vec!["max_packet_size 2097152".to_owned()],
        doors: vec![Door::open().websocket()],
        ..MosquittoConfig::default()
    });
    panic::set_hook(Box::new(|info| {
        LAST_PANIC.with_borrow_mut(|last| *last = info.to_string().replace('\n', " "));
    }));
    let begun = Instant::now();
    let (ours, theirs) = thread::scope(|scope| {
        let ours = scope.spawn(|| run(&cases, gateway.mqtt(), gateway.http()));
        let theirs = scope.spawn(|| run(&cases, mosquitto.address(), mosquitto.door(0)));
        (ours.join().unwrap(), theirs.join().unwrap())
    });
    let _ = panic::take_hook();

    let mut table = String::new();
    let verdict = |outcome: &Outcome| if outcome.is_ok() { "ok" } else { "FAILED" };
    for ((name, _, _), (our, their)) in cases.iter().zip(ours.iter().zip(&theirs)) {
        writeln!(table, "{:8} {:8} {name}", verdict(our), verdict(their)).unwrap();
    }
    let mut summary = format!("{} checks in {:.1} s\n", cases.len(), begun.elapsed().as_secs_f64());
    for (peer, outcomes) in [("tidegate", &ours), ("mosquitto", &theirs)] {
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        writeln!(summary, "{peer}: {} passed, {failed} failed", outcomes.len() - failed).unwrap();
        for ((name, _, _), outcome) in cases.iter().zip(outcomes) {
            if let Err(why) = outcome {
                writeln!(summary, "  {name}: {why}").unwrap();
            }
        }
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
type Case = (String, Version, &'static Check);

/// Every check in every version, by its full name: version, statement, what is expected.
fn cases() -> Vec<Case> {
    let only = std::env::var(ONLY).unwrap_or_default();
    let mut cases = Vec::new();
    for check in LISTS.iter().copied().flatten() {
        for (version, statement) in check.statements {
            let prefix = match version {
                Version::V31 => "mqtt31",
                Version::V311 => "mqtt311",
                Version::V5 => "mqtt5",
            };
            let name = format!("{prefix}_{}_{}", statement.replace(['.', '-'], "_"), check.name);
            if name.contains(&only) {
                cases.push((name, *version, check));
            }
        }
    }
    cases
}

fn run(cases: &[Case], broker: SocketAddr, websocket: SocketAddr) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(vec![Ok(()); cases.len()]);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some((number, (_, version, check))) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, cases.get(n)?)))
                {
                    let room = Room { broker, websocket, version: *version, prefix: format!("r{number}") };
                    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (check.run)(&room)))
                        .map_err(|_| LAST_PANIC.take());
                    outcomes.lock().unwrap()[number] = outcome;
                }
            });
        }
    });
    outcomes.into_inner().unwrap()
}

thread_local! {
    /// What the last panic of this thread said, and where.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Checks mostly wait, so that more of them than processors go on at once.
const WORKERS: usize = 12;
const ONLY: &str = "CONFORMANCE_ONLY";
