//! Clients that keep the rules, and a broker that is killed at any moment, whose disk is full now and then: what was
//! acknowledged arrives, and at QoS 2 it arrives once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mqtt::{ConnectionId, Limits};

use crate::bench::*;

/// xorshift64*: a seed is a whole run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }
}

/// A client with a session that stays, which publishes or reads.
struct Client {
    name: String,
    qos: u8,
    connection: Option<ConnectionId>,
    is_welcome: bool,
    has_session: bool,
    is_subscribed: bool,
    /// What it published and has no last word of, by packet id: the number, and whether PUBREC has come.
    sent: BTreeMap<u16, (u32, bool)>,
    next_id: u16,
    /// QoS 2 messages received and not released.
    received: BTreeSet<u16>,
    /// What it read, in order.
    seen: Vec<u32>,
}

impl Client {
    fn new(name: String, qos: u8) -> Self {
        Self {
            name,
            qos,
            connection: None,
            is_welcome: false,
            has_session: false,
            is_subscribed: false,
            sent: BTreeMap::new(),
            next_id: 0,
            received: BTreeSet::new(),
            seen: Vec::new(),
        }
    }

    fn connect(&mut self, bench: &mut Bench) {
        let id = bench.open();
        self.connection = Some(id);
        self.is_welcome = false;
        bench.broker.handle_input(bench.now, id, &connect(4, 0, 0, None, &self.name, &[]));
    }

    fn publish(&mut self, bench: &mut Bench, number: u32) {
        self.next_id += 1;
        self.sent.insert(self.next_id, (number, false));
        let packet = publish_v3(self.qos << 1, self.next_id, "t", &number.to_be_bytes());
        if let Some(id) = self.connection.filter(|_| self.is_welcome) {
            bench.broker.handle_input(bench.now, id, &packet);
        }
    }

    /// Reads what has come and answers it; returns numbers that are acknowledged now.
    fn read(&mut self, bench: &mut Bench) -> Vec<u32> {
        let Some(id) = self.connection else { return Vec::new() };
        let mut done = Vec::new();
        for Packet(first, body) in bench.read(id) {
            let packet_id = || u16::from_be_bytes([body[0], body[1]]);
            match first >> 4 {
                2 => {
                    if body[1] != 0 {
                        // Its session could not be stored.
                        continue;
                    }
                    assert!(body[0] == 1 || !self.has_session, "{}: the session is gone", self.name);
                    self.is_welcome = true;
                    self.has_session = true;
                    for (packet_id, (number, is_received)) in &self.sent {
                        let packet = if *is_received {
                            frame(0x62, &packet_id.to_be_bytes())
                        } else {
                            publish_v3(8 | self.qos << 1, *packet_id, "t", &number.to_be_bytes())
                        };
                        bench.broker.handle_input(bench.now, id, &packet);
                    }
                    if !self.is_subscribed && self.name.starts_with('r') {
                        bench.broker.handle_input(bench.now, id, &subscribe_v3(1, &[("t", self.qos)]));
                    }
                }
                9 => self.is_subscribed = true,
                4 => done.extend(self.sent.remove(&packet_id()).map(|(number, _)| number)),
                5 => {
                    if let Some(sent) = self.sent.get_mut(&packet_id()) {
                        sent.1 = true;
                    }
                    bench.broker.handle_input(bench.now, id, &frame(0x62, &body[..2]));
                }
                7 => done.extend(self.sent.remove(&packet_id()).map(|(number, _)| number)),
                3 => {
                    let number = u32::from_be_bytes(*body.last_chunk().unwrap());
                    let packet_id = [body[3], body[4]];
                    if first & 6 == 2 {
                        self.seen.push(number);
                        bench.broker.handle_input(bench.now, id, &frame(0x40, &packet_id));
                    } else {
                        if self.received.insert(u16::from_be_bytes(packet_id)) {
                            self.seen.push(number);
                        }
                        bench.broker.handle_input(bench.now, id, &frame(0x50, &packet_id));
                    }
                }
                6 => {
                    self.received.remove(&packet_id());
                    bench.broker.handle_input(bench.now, id, &frame(0x70, &body[..2]));
                }
                _ => panic!("{first:x} {body:?}"),
            }
        }
        if bench.is_closed(id) {
            self.lose(bench);
        }
        done
    }

    fn lose(&mut self, bench: &mut Bench) {
        if let Some(id) = self.connection.take() {
            bench.lose(id);
        }
        self.is_welcome = false;
    }
}

fn run(seed: u64) {
    let mut random = Random(seed * 2 + 1);
    let limits = Limits { window: 1 + random.below(8) as u16, ..Limits::default() };
    let mut bench = Bench::keeping(limits);
    let mut readers = [Client::new("r1".into(), 1), Client::new("r2".into(), 2), Client::new("r3".into(), 2)];
    let mut writers = [Client::new("w1".into(), 1), Client::new("w2".into(), 2)];
    let mut acknowledged = Vec::new();
    for reader in &mut readers {
        reader.connect(&mut bench);
        while !reader.is_subscribed {
            bench.store();
            reader.read(&mut bench);
        }
    }
    let mut published = 0;
    let mut numbers = [Vec::new(), Vec::new()];
    let mut restarts = 0;
    for _ in 0..400 {
        let all = random.below(5) as usize;
        match random.below(12) {
            0..=3 => {
                published += 1;
                let writer = random.below(2) as usize;
                numbers[writer].push(published);
                writers[writer].publish(&mut bench, published);
            }
            4 | 5 => drop(bench.store()),
            6 if random.below(4) == 0 => bench.fail_to_store(),
            7 if random.below(4) == 0 => {
                // Killed while it stores: it is there or it is not, and nobody has heard of it.
                if let Some(changes) = bench.broker.take_changes()
                    && random.below(2) == 0
                {
                    bench.write(changes);
                }
                assert_eq!(bench.restart().unreadable, 0);
                restarts += 1;
                for client in readers.iter_mut().chain(&mut writers) {
                    client.connection = None;
                    client.is_welcome = false;
                }
            }
            8 if random.below(3) == 0 => {
                readers.iter_mut().chain(&mut writers).nth(all).unwrap().lose(&mut bench);
            }
            9 => bench.wait(Duration::from_millis(random.below(2000))),
            _ => {
                let client = readers.iter_mut().chain(&mut writers).nth(all).unwrap();
                if client.connection.is_none() {
                    client.connect(&mut bench);
                }
                acknowledged.extend(client.read(&mut bench));
            }
        }
    }
    // The faults are over.
    for round in 0.. {
        assert!(round < 3000, "seed {seed}: it does not come to rest");
        let is_quiet = |client: &mqtt::ClientStatus| client.queued == 0 && client.in_flight == 0;
        if writers.iter().all(|writer| writer.sent.is_empty()) && bench.broker.clients().iter().all(is_quiet)
        {
            break;
        }
        for client in readers.iter_mut().chain(&mut writers) {
            if client.connection.is_none() {
                client.connect(&mut bench);
            }
            bench.store();
            acknowledged.extend(client.read(&mut bench));
        }
    }
    assert_eq!(acknowledged.len(), published as usize, "seed {seed}");
    for reader in &readers {
        for (writer, numbers) in writers.iter().zip(&numbers) {
            let seen = reader.seen.iter().copied().filter(|number| numbers.contains(number));
            let mut firsts: Vec<u32> = Vec::new();
            for number in seen.clone() {
                if !firsts.contains(&number) {
                    firsts.push(number);
                }
            }
            let who = format!("seed {seed}, {restarts} restarts, {} of {}", reader.name, writer.name);
            assert_eq!(firsts, *numbers, "{who}: all of them, in order");
            if reader.qos == 2 && writer.qos == 2 {
                assert_eq!(seen.count(), numbers.len(), "{who}: once");
            }
        }
    }
    bench.store();
    assert_eq!(bench.disk.len(), 5, "five sessions are left: {:?}", bench.disk.keys());
}

#[test]
fn what_is_acknowledged_arrives_whenever_the_broker_is_killed() {
    for seed in 1..=400 {
        run(seed);
    }
}
