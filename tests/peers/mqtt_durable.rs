//! The LAN broker is killed, again and again: whatever it acknowledged is there afterwards.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Incoming, MqttClient, Rng, Tidegate, out_dir, wait_until};

const KILLS: u64 = 200;
/// Messages of a round at the most: all of them together stay below what one session may have waiting.
const A_ROUND: u64 = 90;
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn after_two_hundred_kills_readers_that_were_away_get_everything_that_was_acknowledged_once() {
    let mut rng = Rng::from_env("mqtt kill");
    let begun = Instant::now();
    let mut gateway = Tidegate::builder().start();
    let readers = [("once-or-more", 1), ("once", 2)];
    for (name, qos) in readers {
        let mut reader = MqttClient::connect_with(gateway.mqtt(), name, false).unwrap();
        reader.subscribe("log/#", qos).unwrap();
        reader.disconnect().unwrap();
    }
    let mut acknowledged: HashSet<u64> = HashSet::new();
    let mut kept = BTreeMap::new();
    for round in 0..KILLS {
        let writer = Writer::start(gateway.mqtt(), round * 1_000_000, if round % 2 == 0 { 1 } else { 2 });
        let enough = rng.below(60);
        wait_until(20 * SECOND, || (writer.done.load(Ordering::Relaxed) > enough).then_some(())).unwrap();
        gateway.kill();
        let (done, last_state) = writer.stop();
        acknowledged.extend(done);
        kept.insert(round % 7, last_state);
        gateway.start();
    }
    let clients = gateway.status()["mqtt"]["clients"].clone();
    let mut table = format!(
        "{KILLS} kills, {} messages acknowledged, {:.0?}\nreader            arrived      lost  repeated  out of order\n",
        acknowledged.len(),
        begun.elapsed()
    );
    let mut failures = Vec::new();
    for (name, qos) in readers {
        let mut reader = MqttClient::connect_with(gateway.mqtt(), name, false).unwrap();
        assert!(reader.session_present(), "{name}: {clients}");
        let mut times: HashMap<u64, u32> = HashMap::new();
        let (mut newest, mut inversions) = (0, 0);
        while let Some(incoming) = reader.read(2 * SECOND).unwrap() {
            let Incoming::Publish { payload, qos: delivered, .. } = incoming else { continue };
            let text = String::from_utf8(payload).unwrap();
            let number: u64 = text.trim_end_matches('.').parse().unwrap();
            assert!(delivered <= qos);
            *times.entry(number).or_default() += 1;
            inversions += u64::from(number < newest);
            newest = newest.max(number);
        }
        let lost = acknowledged.iter().filter(|number| !times.contains_key(number)).count();
        let repeated = times.values().filter(|times| **times > 1).count();
        let _ = writeln!(table, "{name:<14}  {:>9}  {lost:>8}  {repeated:>8}  {inversions:>12}", times.len());
        if lost + repeated > 0 || inversions > 0 {
            failures.push(name);
        }
    }
    println!("\n{table}");
    std::fs::write(out_dir().join("mqtt-kills.txt"), &table).unwrap();
    assert_eq!(failures, [""; 0]);
    assert!(acknowledged.len() > 5_000, "only {} were acknowledged", acknowledged.len());

    // What is retained is what was acknowledged last on its topic, or a later one.
    let mut late = MqttClient::connect(gateway.mqtt(), "late").unwrap();
    late.subscribe("state/#", 1).unwrap();
    let mut states = HashMap::new();
    while let Some(incoming) = late.read(SECOND).unwrap() {
        let Incoming::Publish { topic, payload, retain: true, .. } = incoming else { continue };
        states.insert(topic, String::from_utf8(payload).unwrap().parse::<u64>().unwrap());
    }
    for (topic, state) in kept {
        let Some(state) = state else { continue };
        let found = states.get(&format!("state/{topic}"));
        assert!(found.is_some_and(|found| *found >= state), "state/{topic}: {found:?}, acknowledged {state}");
    }
}

#[test]
fn what_is_there_after_a_kill_is_there_after_a_stop_and_a_session_that_is_over_is_not() {
    let mut gateway = Tidegate::builder().start();
    let mut reader = MqttClient::connect_with(gateway.mqtt(), "reader", false).unwrap();
    reader.subscribe("a/+", 1).unwrap();
    reader.disconnect().unwrap();
    let mut writer = MqttClient::connect(gateway.mqtt(), "writer").unwrap();
    for n in 0..100 {
        writer.publish_and_wait("a/b", format!("{n}").as_bytes(), 1).unwrap();
    }
    for end in ["kill", "stop", "kill"] {
        if end == "kill" {
            gateway.kill();
        } else {
            gateway.stop();
        }
        gateway.start();
    }
    let mut reader = MqttClient::connect_with(gateway.mqtt(), "reader", false).unwrap();
    assert!(reader.session_present());
    for n in 0..100 {
        let Some(Incoming::Publish { payload, dup, .. }) = reader.read(5 * SECOND).unwrap() else {
            panic!("{n}")
        };
        assert_eq!((payload, dup), (format!("{n}").into_bytes(), false), "never sent before");
    }
    // A clean session ends the old one, on disk as well.
    reader.disconnect().unwrap();
    MqttClient::connect(gateway.mqtt(), "reader").unwrap().disconnect().unwrap();
    gateway.kill();
    gateway.start();
    let reader = MqttClient::connect_with(gateway.mqtt(), "reader", false).unwrap();
    assert!(!reader.session_present());
}

#[test]
fn the_will_of_a_client_that_is_not_back_after_a_kill_is_published_and_stays_retained() {
    let mut gateway = Tidegate::builder().tables("[mqtt.limits]\nwill_grace = \"2s\"\n").start();
    let will = |name: &[u8]| {
        let mut stream = std::net::TcpStream::connect(gateway.mqtt()).unwrap();
        // A clean session with a retained will `gone` on `will/x`.
        let mut packet = b"\x10\x1d\x00\x04MQTT\x04\x26\x00\x3c\x00\x01".to_vec();
        packet.extend([name, b"\x00\x06will/", name, b"\x00\x04gone"].concat());
        packet[1] = (packet.len() - 2) as u8;
        stream.write_all(&packet).unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0x20, 2, 0, 0]);
        stream
    };
    let connected = [will(b"x"), will(b"y")];
    // Its CONNACK waits for a commit, with all that waits for one.
    MqttClient::connect_with(gateway.mqtt(), "reader", false).unwrap();
    gateway.kill();
    drop(connected);
    gateway.start();
    let back = MqttClient::connect(gateway.mqtt(), "y").unwrap();
    let mut reader = MqttClient::connect(gateway.mqtt(), "reader").unwrap();
    reader.subscribe("will/+", 1).unwrap();
    let Some(Incoming::Publish { topic, payload, .. }) = reader.read(10 * SECOND).unwrap() else { panic!() };
    assert_eq!((topic.as_str(), &payload[..]), ("will/x", &b"gone"[..]));
    assert_eq!(reader.read(SECOND).unwrap(), None, "the other is there");
    drop(back);
    gateway.stop();
    gateway.start();
    let mut reader = MqttClient::connect(gateway.mqtt(), "reader").unwrap();
    reader.subscribe("will/+", 1).unwrap();
    assert!(matches!(reader.read(10 * SECOND).unwrap(), Some(Incoming::Publish { retain: true, .. })));
}

/// Publishes numbers one behind the other with up to twenty under way, and now and then a retained one, until the broker
/// is gone.
struct Writer {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: thread::JoinHandle<(Vec<u64>, Option<u64>)>,
}

impl Writer {
    fn start(broker: SocketAddr, first: u64, qos: u8) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (is_over, count) = (stop.clone(), done.clone());
        let thread = thread::spawn(move || {
            let mut acknowledged = Vec::new();
            let mut state = None;
            let mut under_way: HashMap<u16, (u64, bool)> = HashMap::new();
            let mut client = MqttClient::connect(broker, "writer").unwrap();
            let mut number = first;
            while !is_over.load(Ordering::Relaxed) {
                while under_way.len() < 20 && number < first + A_ROUND {
                    number += 1;
                    let is_state = number.is_multiple_of(50);
                    let (topic, text) = if is_state {
                        (format!("state/{}", first / 1_000_000 % 7), number.to_string())
                    } else {
                        ("log/numbers".to_owned(), format!("{number}{:.<200}", ""))
                    };
                    let Ok(id) = client.publish(&topic, text.as_bytes(), qos, is_state) else {
                        return (acknowledged, state);
                    };
                    under_way.insert(id, (number, is_state));
                }
                match client.read(SECOND / 10) {
                    Ok(Some(Incoming::Done(id))) => {
                        let Some((number, is_state)) = under_way.remove(&id) else { continue };
                        if is_state {
                            state = Some(number);
                        } else {
                            acknowledged.push(number);
                        }
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            (acknowledged, state)
        });
        Self { stop, done, thread }
    }

    /// What was acknowledged, and the newest state among it.
    fn stop(self) -> (Vec<u64>, Option<u64>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
