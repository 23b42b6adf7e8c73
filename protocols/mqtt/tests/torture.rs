//! Bytes that no client should send, in every state: nothing panics, and memory stays within the limits.
#![expect(unsafe_code, reason = "counts what is allocated; the system's allocator does the work")]
#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use mqtt::client::{Client, Options};
use mqtt::{
    Broker, Event, Filter, Limits, Message, Peer, Qos, ReasonCode, Taking, Topic, Transport, Version,
};

struct Counting;

thread_local! {
    /// Bytes this thread holds: each test has a thread of its own.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator unaltered.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.with(|held| held.set(held.get() + layout.size() as isize));
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.with(|held| held.set(held.get() - layout.size() as isize));
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn held() -> isize {
    HELD.with(Cell::get)
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Well-formed packets of every type and both versions; what a client sends and what only a broker may.
fn packets() -> Vec<Vec<u8>> {
    let hex = [
        "101400044d5154540402003c00086162636465666768",
        "101600044d51545405c2003c000001610001750003c3a9ff",
        "102500044d515454052e00000511000000ff000163051800000001000474657374000474657374",
        "100f00064d51497364700302003c000163",
        "20020000",
        "300900047465737468656c",
        "320b0004746573740001686579",
        "340b0004746573740002686579",
        "3c0b0004746573740002686579",
        "31060004746573740a",
        "301b000474657374132600016b00017608000161090001ff0300017478",
        "3208000023000501010a",
        "320b0004746573740003026869",
        "320b0004746573740004006869",
        "40020001",
        "400400011000",
        "50020002",
        "5003000297",
        "62020002",
        "70020002",
        "8209000100047465737402",
        "820c0002020b0100047465737402",
        "820e000300092473686172652f672f2b01",
        "820600040001230002",
        "8212000500000123010001240000032b2f6100",
        "9003000101",
        "a20800010004746573740a",
        "a209000100000474657374",
        "b0020001",
        "c000",
        "d000",
        "e000",
        "e00104",
        "e00700051100000064",
        "f000",
    ];
    hex.iter()
        .map(|hex| {
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap()).collect()
        })
        .collect()
}

fn damage(random: &mut Random, packet: &mut Vec<u8>) {
    match random.below(20) {
        0 => packet.truncate(random.below(packet.len() + 1)),
        1 => {
            let at = random.below(packet.len());
            packet[at] ^= 1 << random.below(8);
        }
        2 => {
            let at = random.below(packet.len());
            packet[at] = random.next() as u8;
        }
        3 => packet.insert(random.below(packet.len() + 1), random.next() as u8),
        4 => {
            // A length that belongs to another packet.
            packet[1] = random.next() as u8;
        }
        _ => {}
    }
}

fn limits() -> Limits {
    Limits {
        packet_bytes: 4_096,
        output_bytes: 8_192,
        sessions: 20,
        connections: 20,
        subscriptions: 20,
        queue_messages: 50,
        queue_bytes: 20_000,
        queue_bytes_total: 100_000,
        retained_messages: 50,
        retained_bytes: 50_000,
        ingress: 10,
        receive_maximum: 10,
        ..Limits::default()
    }
}

#[test]
fn no_sequence_of_damaged_packets_panics_the_broker_or_makes_it_hoard() {
    let packets = packets();
    let mut random = Random(2026);
    let mut now = Instant::now();
    let mut broker = Broker::new(limits(), 1);
    broker.set_forwarded(&[Filter::new("test").unwrap()]);
    broker.subscribe_local(now, Filter::new("#").unwrap(), Taking::Unseen);
    let before = held();
    let mut open = Vec::new();
    let (mut accepted, mut most) = (0u64, 0);
    for round in 0..150_000 {
        now += Duration::from_millis(random.next() % 3_000);
        broker.handle_timeout(now);
        if let Some(id) = broker.accept(now, Peer::new(None, Transport::Memory)) {
            open.push(id);
        }
        let turn = random.below(open.len());
        let id = open[turn];
        let mut bytes = Vec::new();
        if random.below(3) > 0 {
            // Mostly in a session, where there is more to break.
            bytes.extend_from_slice(&packets[[0, 1, 2, 3][random.below(4)]]);
        }
        for _ in 0..random.below(6) {
            let mut packet = packets[random.below(packets.len())].clone();
            damage(&mut random, &mut packet);
            bytes.extend(packet);
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(1 + random.below(rest.len()));
            if broker.wants_input(id) {
                broker.handle_input(now, id, piece);
            }
            rest = after;
        }
        if random.below(20) == 0 {
            let message = Message::new(Topic::new("test").unwrap(), vec![0; random.below(200)]);
            broker.publish(now, message.with_qos(Qos::ExactlyOnce));
        }
        while let Some(event) = broker.poll_event() {
            match event {
                Event::Close(id) => {
                    open.retain(|open| *open != id);
                    broker.handle_gone(now, id);
                }
                Event::Ingress { token: Some(token), .. } => {
                    let stored = if random.below(4) == 0 { Err(ReasonCode::QUOTA_EXCEEDED) } else { Ok(()) };
                    broker.acknowledge(now, token, stored);
                }
                _ => {}
            }
        }
        if random.below(10) == 0 && !open.is_empty() {
            let id = open.swap_remove(random.below(open.len()));
            broker.handle_gone(now, id);
        }
        for id in &open {
            // Some clients read, some never do.
            if id.slot() % 2 == 0 {
                broker.transmit(now, *id, &mut Vec::new());
            }
        }
        accepted += broker.clients().len() as u64;
        most = most.max(held() - before);
        assert!(most < 4_000_000, "round {round}: {most} bytes are held");
    }
    assert!(accepted > 0 && broker.counters().received > 10_000, "{:?}", broker.counters());
    assert!(broker.counters().protocol_errors > 10_000);
    for id in open {
        broker.handle_gone(now, id);
    }
    broker.handle_timeout(now + Duration::from_secs(30 * 86_400));
    assert_eq!((broker.clients().len(), broker.subscription_count()), (0, 1), "the local one");
    while broker.poll_event().is_some() {}
    let left = held() - before;
    assert!(left < 100_000, "{left} bytes are left when all have gone");
}

#[test]
fn every_packet_cut_at_every_length_is_waited_for_or_refused() {
    let start = Instant::now();
    for begin in [None, Some(0), Some(1)] {
        for packet in packets() {
            for length in 0..=packet.len() {
                let mut broker = Broker::new(limits(), 1);
                let id = broker.accept(start, Peer::new(None, Transport::Memory)).unwrap();
                if let Some(connect) = begin {
                    broker.handle_input(start, id, &packets()[connect]);
                }
                broker.handle_input(start, id, &packet[..length]);
                let mut is_closed = false;
                while let Some(event) = broker.poll_event() {
                    is_closed |= matches!(event, Event::Close(_));
                }
                // A sound packet is waited for until its last byte; what no client may send is refused at the latest
                // with it.
                let is_sound =
                    begin == Some(1) && packet == packets()[10] || begin.is_none() && packet[0] == 0x10;
                assert!(!(is_sound && is_closed), "{packet:02x?} cut at {length}");
                assert!(length > 0 || !is_closed, "nothing came");
                let is_a_brokers = matches!(packet[0] >> 4, 2 | 9 | 11 | 13);
                assert!(is_closed || !(is_a_brokers && length == packet.len()), "{packet:02x?} was taken");
                broker.handle_gone(start, id);
            }
        }
    }
}

#[test]
fn no_sequence_of_damaged_packets_panics_the_client_or_makes_it_hoard() {
    let packets = packets();
    let connacks =
        [&[0x20, 2, 0, 0][..], &[0x20, 3, 0, 0, 0], &[0x20, 2, 1, 0], &[0x20, 6, 1, 0, 3, 0x21, 0, 5]];
    for version in [Version::V311, Version::V5] {
        let mut random = Random(7);
        let mut now = Instant::now();
        let options = Options {
            version,
            client_id: "c".into(),
            clean_start: false,
            packet_bytes: 4_096,
            window: 5,
            receive_maximum: 5,
            acknowledges_by_itself: false,
            ..Options::default()
        };
        let mut client = Client::new(now, options).unwrap();
        let before = held();
        let mut connected = 0;
        for round in 0..60_000u64 {
            now += Duration::from_millis(random.next() % 500);
            client.handle_timeout(now);
            if client.deadline().is_none() || random.below(10) == 0 {
                client.handle_gone();
                client.connect(now);
                client.handle_input(now, connacks[random.below(connacks.len())]);
                connected += u64::from(client.is_connected());
            }
            let message = Message::new(Topic::new("t").unwrap(), "x").with_qos(Qos::ExactlyOnce);
            let _ = client.publish(round, &message);
            let mut packet = packets[random.below(packets.len())].clone();
            damage(&mut random, &mut packet);
            client.handle_input(now, &packet);
            let tokens: Vec<_> = std::iter::from_fn(|| client.poll_event()).collect();
            for event in tokens {
                if let mqtt::client::Event::Message { token: Some(token), .. } = event {
                    client.acknowledge(token);
                }
            }
            client.transmit(now, &mut Vec::new());
            let more = held() - before;
            assert!(more < 2_000_000, "round {round}: {more} bytes are held");
        }
        assert!(connected > 1_000);
    }
}
