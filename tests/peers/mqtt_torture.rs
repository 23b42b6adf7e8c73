//! Every packet of MQTT 3.1, 3.1.1 and 5.0, broken in every way that can be listed, in every state of a connection: cut
//! short at each length, each of its bits flipped, and with lengths that are not its own.
//!
//! Whatever is sent, the connection ends when its client has ended it, a client beside it is served all the while, and
//! afterwards the gateway holds nothing that it did not hold before.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "mqtt_conformance/client.rs"]
#[allow(dead_code, reason = "the conformance checks use the rest of it")]
mod client;
#[path = "mqtt_conformance/wire.rs"]
#[allow(dead_code, reason = "the conformance checks use the rest of it")]
mod wire;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use client::{Client, Connect, subscribe_bytes};
use harness::{Endpoint, MqttClient, Tidegate, wait_until};
use wire::{Properties, Publish, Version, kind, length, packet, property, push_field, push_length};

const SECOND: Duration = Duration::from_secs(1);
const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];
/// What the gateway may have more in memory afterwards: queues and tables that have grown once stay.
const GROWTH: u64 = 8_000_000;

/// Where a connection is when the broken packet comes.
#[derive(Clone, Copy, Debug)]
enum State {
    BeforeConnect,
    Connected,
    /// Subscribed, with messages of QoS 1 and 2 sent to it that it has not acknowledged, and one of QoS 2 that it has
    /// published and not released.
    InFlight,
    /// The same in a session that has just been resumed.
    Resumed,
}

const STATES: [State; 4] = [State::BeforeConnect, State::Connected, State::InFlight, State::Resumed];

/// One who breaks packets: of a version, in a state, with a client id and topics that nobody else has.
struct Breaker<'a> {
    broker: &'a Endpoint,
    version: Version,
    state: State,
    id: String,
}

impl Breaker<'_> {
    /// Breaks every packet in every way; how many there were.
    fn run(&self) -> usize {
        let mut count = 0;
        for whole in packets(self.version, &self.id) {
            for broken in broken(&whole) {
                self.send(&broken);
                count += 1;
            }
        }
        count
    }

    /// Sends bytes in a connection that is in the state, ends it, and waits until the gateway has let go.
    fn send(&self, bytes: &[u8]) {
        let mut client = self.reach();
        client.send(bytes);
        client.half_close();
        client.expect_closed();
    }

    /// A connection that is in the state.
    fn reach(&self) -> Client {
        let hello = Connect::new(self.version, &self.id);
        match self.state {
            State::BeforeConnect => Client::dial(self.broker, self.version),
            State::Connected => hello.open(self.broker),
            State::InFlight => self.in_flight(&hello),
            State::Resumed => {
                let hello = hello.lasting();
                let resumed = wait_until(10 * SECOND, || match self.resume(&hello) {
                    ControlFlow::Break(client) => Some(client),
                    ControlFlow::Continue(()) => {
                        // The last one has changed it, or it is the first: made anew.
                        Connect::new(self.version, &self.id).open(self.broker).disconnect();
                        self.in_flight(&hello).vanish();
                        None
                    }
                });
                resumed.expect("a session that is left can be resumed")
            }
        }
    }

    /// Resumes the session, if it holds what it should.
    fn resume(&self, hello: &Connect) -> ControlFlow<Client> {
        let (mut client, connack) = hello.open_with(self.broker);
        // 3.1 does not say whether there is a session.
        let may_follow = connack.is_present() || self.version == Version::V31;
        let mut again = 0;
        // What is sent again follows at once; a session that has changed may have nothing.
        while may_follow && again < 2 {
            match client.read(SECOND / 20) {
                Ok(Some(packet)) if packet.kind() == kind::PUBLISH => again += 1,
                Ok(Some(_)) => {}
                Ok(None) | Err(client::Closed) => break,
            }
        }
        if again == 2 {
            return ControlFlow::Break(client);
        }
        client.vanish();
        ControlFlow::Continue(())
    }

    fn in_flight(&self, hello: &Connect) -> Client {
        let mut client = Client::dial(self.broker, self.version);
        let topic = format!("{}/t", self.id);
        let publish = |topic: &str, qos, id| Publish::new(topic, "x").qos(qos).id(id).bytes(self.version);
        let said = [
            hello.bytes(),
            subscribe_bytes(self.version, 1, &[(topic.as_bytes(), 2)], &[]),
            publish(&topic, 1, 1),
            publish(&topic, 2, 2),
            vec![kind::PUBREL << 4 | 2, 2, 0, 2],
            publish(&self.id, 2, 3),
        ];
        client.send(&said.concat());
        let mut kinds: Vec<u8> = (0..8).map(|_| client.next().kind()).collect();
        kinds.sort_unstable();
        let (publish, pubrec) = (kind::PUBLISH, kind::PUBREC);
        let expected =
            [kind::CONNACK, publish, publish, kind::PUBACK, pubrec, pubrec, kind::PUBCOMP, kind::SUBACK];
        assert_eq!(kinds, expected);
        client
    }
}

/// Every packet there is, those of a server as well, with all its fields.
fn packets(version: Version, id: &str) -> Vec<Vec<u8>> {
    let topic = format!("{id}/m");
    let mut hello = Connect::new(version, id).will(Publish::new(format!("{id}/w"), "bye").qos(1));
    hello.user = Some(b"u".to_vec());
    hello.password = Some(b"p".to_vec());
    let mut message = Publish::new(&topic, "hi");
    let mut properties = Vec::new();
    if version == Version::V5 {
        hello = hello.with(property::session_expiry(1)).with(property::receive_maximum(9));
        message = message.with(property::message_expiry(9)).with(property::topic_alias(1));
        properties.push(property::user("k", "v"));
    }
    // Behind a packet id: reason and properties, properties, or a flag.
    let with_properties = |before: &[u8]| {
        let mut body = before.to_vec();
        if version == Version::V5 {
            Properties(properties.clone()).push(&mut body);
        }
        body
    };
    let acknowledgement = |first, id| {
        let body = if version == Version::V5 { with_properties(&[0, id, 0]) } else { vec![0, id] };
        packet(first, &body)
    };
    let mut unsubscribe = with_properties(&[0, 8]);
    push_field(&mut unsubscribe, topic.as_bytes());
    let last = if version == Version::V5 { with_properties(&[0]) } else { Vec::new() };
    vec![
        hello.bytes(),
        packet(kind::CONNACK << 4, &with_properties(&[0, 0])),
        message.bytes(version),
        message.clone().qos(1).id(4).bytes(version),
        message.qos(2).id(5).retained().bytes(version),
        // The gateway counts its packets from 1.
        acknowledgement(kind::PUBACK << 4, 1),
        acknowledgement(kind::PUBREC << 4, 2),
        acknowledgement(kind::PUBREL << 4 | 2, 3),
        acknowledgement(kind::PUBCOMP << 4, 2),
        subscribe_bytes(version, 6, &[(topic.as_bytes(), 1), (b"+/w", 2)], &properties),
        packet(kind::SUBACK << 4, &[&with_properties(&[0, 6])[..], &[1]].concat()),
        packet(kind::UNSUBSCRIBE << 4 | 2, &unsubscribe),
        packet(kind::UNSUBACK << 4, &with_properties(&[0, 8])),
        packet(kind::PINGREQ << 4, &[]),
        packet(kind::PINGRESP << 4, &[]),
        packet(kind::DISCONNECT << 4, &last),
        packet(kind::AUTH << 4, &last),
    ]
}

/// The packet cut short at every length, with each bit flipped, and with every kind of length that is not its own.
fn broken(whole: &[u8]) -> Vec<Vec<u8>> {
    let (size, took) = length(&whole[1..]).unwrap();
    let body = &whole[1 + took..];
    let cut = (1..whole.len()).map(|end| whole[..end].to_vec());
    let flipped = (0..whole.len() * 8).map(|bit| {
        let mut bytes = whole.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    });
    let lengths = [size + 1, size.saturating_sub(1), 2 * size + 1, 16_384, 2_097_152, 268_435_455];
    let mut lengths: Vec<Vec<u8>> = lengths
        .iter()
        .map(|length| {
            let mut bytes = Vec::new();
            push_length(&mut bytes, *length);
            bytes
        })
        .collect();
    // More bytes than it takes, up to those that no length has.
    let low = size as u8 & 0x7f | 0x80;
    lengths.extend(
        [&[low, 0][..], &[low, 0x80, 0], &[low, 0x80, 0x80, 0], &[low, 0x80, 0x80, 0x80, 0]].map(Vec::from),
    );
    lengths.extend(
        [&[0xff; 4][..], &[0xff, 0xff, 0xff, 0xff, 0x7f], &[0x80, 0x80, 0x80, 0x80, 0x01]].map(Vec::from),
    );
    let lengths = lengths.into_iter().map(|length| [&whole[..1], &length, body].concat());
    cut.chain(flipped).chain(lengths).collect()
}

/// Publishes to itself and hears it.
fn goes_round(good: &mut MqttClient) {
    let begun = Instant::now();
    good.publish("good/x", b"y", 1, false).unwrap();
    while !good
        .read(SECOND)
        .unwrap()
        .is_some_and(|packet| matches!(packet, harness::Incoming::Publish { .. }))
    {
        assert!(begun.elapsed() < SECOND, "a good client is not served");
    }
    let time = begun.elapsed();
    assert!(time < SECOND, "a good client was served after {time:?}");
}

fn good(gateway: &Tidegate, id: &str) -> MqttClient {
    let mut good = MqttClient::connect(gateway.mqtt(), id).unwrap();
    good.subscribe("good/#", 1).unwrap();
    goes_round(&mut good);
    good
}

#[test]
fn no_packet_broken_in_any_way_harms_the_gateway_or_those_beside_it() {
    let mut gateway = Tidegate::builder().start();
    let broker = Endpoint::tcp(gateway.mqtt());
    let mut beside = good(&gateway, "beside");
    let before = gateway.process().resident_bytes().unwrap();
    let begun = Instant::now();
    let (count, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let mut breakers = Vec::new();
        for (version, state) in VERSIONS.iter().flat_map(|version| STATES.map(|state| (*version, state))) {
            let id = format!("b{}", breakers.len());
            let breaker = Breaker { broker: &broker, version, state, id };
            let count = &count;
            breakers.push(scope.spawn(move || count.fetch_add(breaker.run(), Ordering::Relaxed)));
        }
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                goes_round(&mut beside);
                thread::sleep(Duration::from_millis(20));
            }
        });
        let ends: Vec<_> = breakers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(ends.iter().all(Result::is_ok), "a connection was left open or none could be made");
    });
    let (count, seen) =
        (count.into_inner() as u64, gateway.status()["mqtt"]["protocol_errors"].as_u64().unwrap());
    println!("{count} broken packets in {:?}, {seen} of them against the rules", begun.elapsed());
    // A flipped bit may make another packet that is right.
    assert!(seen * 2 > count, "{seen} of {count} packets were read as broken ones");
    assert_unharmed(&mut gateway, before);
}

#[test]
fn packets_that_stop_in_the_middle_hold_up_nobody() {
    let mut gateway = Tidegate::builder().start();
    let broker = Endpoint::tcp(gateway.mqtt());
    let mut beside = good(&gateway, "beside");
    let before = gateway.process().resident_bytes().unwrap();
    let mut stalled = Vec::new();
    for (version, state) in VERSIONS.iter().flat_map(|version| STATES.map(|state| (*version, state))) {
        for whole in packets(version, "s") {
            let id = format!("s{}", stalled.len());
            let mut client = Breaker { broker: &broker, version, state, id }.reach();
            client.send(&whole[..whole.len().div_ceil(2)]);
            stalled.push(client);
            goes_round(&mut beside);
        }
    }
    goes_round(&mut good(&gateway, "come-late"));
    assert_eq!(stalled.len(), 12 * 17);
    for mut client in stalled {
        client.half_close();
        client.expect_closed();
    }
    assert_unharmed(&mut gateway, before);
}

/// The same process runs and serves, has said nothing of a panic, and has let go of all but the client beside.
fn assert_unharmed(gateway: &mut Tidegate, before: u64) {
    goes_round(&mut good(gateway, "after"));
    assert!(gateway.process_mut().is_running());
    let panics: Vec<String> =
        gateway.process().lines().into_iter().filter(|line| line.to_lowercase().contains("panic")).collect();
    assert!(panics.is_empty(), "{panics:?}");
    let clients = || gateway.status()["mqtt"]["clients"].as_u64().unwrap();
    let is_empty = wait_until(5 * SECOND, || (clients() == 1).then_some(()));
    assert!(is_empty.is_some(), "{} clients are still there", clients());
    let grown = gateway.process().resident_bytes().unwrap().saturating_sub(before);
    println!("{grown} bytes more than before");
    assert!(grown < GROWTH, "{grown} bytes more than before");
}
