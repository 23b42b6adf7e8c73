//! A broker, some clients and the wires between them, in one thread and in virtual time. Wires cut at any byte, the
//! store answers late or refuses, clients restart from what they exported; every choice comes from one seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use mqtt::client::{self, Client, Options};
use mqtt::{
    Broker, ConnectionId, Event, Filter, IngressToken, Limits, Message, Peer, Qos, ReasonCode, Topic,
    Transport, Version,
};

pub struct World {
    pub now: Instant,
    pub broker: Broker,
    pub peers: Vec<Station>,
    /// Payloads the store has taken, in order.
    pub stored: Vec<u64>,
    pub faults: Faults,
    pub random: Random,
    waiting: VecDeque<(IngressToken, u64)>,
}

/// How much goes wrong. Probabilities are out of a thousand, per step and station.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub cut: u64,
    pub restart: u64,
    pub refused: u64,
}

/// A client with its log, and its wire.
pub struct Station {
    pub options: Options,
    pub client: Client,
    pub qos: Qos,
    pub topic: Option<Topic>,
    pub filter: Option<Filter>,
    /// Numbers to publish and not yet confirmed: the log.
    pub log: BTreeSet<u64>,
    pub confirmed: Vec<u64>,
    pub received: Vec<u64>,
    offered_up_to: Option<u64>,
    connection: Option<ConnectionId>,
    up: VecDeque<u8>,
    down: VecDeque<u8>,
    is_subscribed: bool,
    /// What outlives this client's process, if it takes care of that itself.
    pub disk: Option<Disk>,
}

/// A disk on which everything takes its time: what was given to it and is not on it yet is lost with the process.
#[derive(Default)]
pub struct Disk {
    /// Messages that may have been published, and whether PUBREC is known to have come.
    flights: BTreeMap<u64, bool>,
    /// Messages there are.
    numbers: u64,
    /// Messages that need no more care.
    done: BTreeSet<u64>,
    pending: VecDeque<Note>,
}

enum Note {
    Planned(u64),
    Received(u64),
    Done(u64),
}

/// `SplitMix64`.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, of_a_thousand: u64) -> bool {
        self.below(1_000) < of_a_thousand
    }
}

impl World {
    pub fn new(seed: u64, limits: Limits, faults: Faults) -> Self {
        Self {
            now: Instant::now(),
            broker: Broker::new(limits, seed),
            peers: Vec::new(),
            stored: Vec::new(),
            faults,
            random: Random(seed),
            waiting: VecDeque::new(),
        }
    }

    /// A client with a persistent session.
    pub fn add(&mut self, name: &str, version: Version, qos: Qos) -> &mut Station {
        let options = Options {
            version,
            client_id: name.into(),
            clean_start: false,
            session_expiry: Duration::from_secs(86_400),
            window: 10,
            keep_alive: Duration::from_secs(20),
            ..Options::default()
        };
        self.peers.push(Station {
            client: Client::new(self.now, options.clone()).unwrap(),
            options,
            qos,
            topic: None,
            filter: None,
            log: BTreeSet::new(),
            confirmed: Vec::new(),
            received: Vec::new(),
            offered_up_to: None,
            connection: None,
            up: VecDeque::new(),
            down: VecDeque::new(),
            is_subscribed: false,
            disk: None,
        });
        self.peers.last_mut().unwrap()
    }

    /// Runs until `done`, at most `steps`; then says whether it was.
    pub fn run_until(&mut self, steps: usize, done: impl Fn(&Self) -> bool) -> bool {
        for _ in 0..steps {
            if done(self) {
                return true;
            }
            self.step();
        }
        done(self)
    }

    /// Everything that can happen in a few milliseconds.
    pub fn step(&mut self) {
        self.now += Duration::from_millis(1 + self.random.below(20));
        if self.broker.deadline().is_some_and(|deadline| deadline <= self.now) {
            self.broker.handle_timeout(self.now);
        }
        for index in 0..self.peers.len() {
            if self.random.chance(self.faults.cut) {
                self.cut(index);
            }
            if self.random.chance(self.faults.restart) {
                self.crash(index);
            }
            self.talk(index);
        }
        while self.random.chance(600)
            && let Some((token, number)) = self.waiting.pop_front()
        {
            if self.random.chance(self.faults.refused) {
                self.broker.acknowledge(self.now, token, Err(ReasonCode::QUOTA_EXCEEDED));
            } else {
                self.stored.push(number);
                self.broker.acknowledge(self.now, token, Ok(()));
            }
            self.obey();
        }
        self.obey();
    }

    /// The wire breaks; what is on it is lost.
    pub fn cut(&mut self, index: usize) {
        let station = &mut self.peers[index];
        station.up.clear();
        station.down.clear();
        station.client.handle_gone();
        if let Some(id) = station.connection.take() {
            self.broker.handle_gone(self.now, id);
            self.obey();
        }
    }

    /// The client's process ends and begins again with what it had exported.
    pub fn crash(&mut self, index: usize) {
        self.cut(index);
        let station = &mut self.peers[index];
        let mut client = Client::new(self.now, station.options.clone()).unwrap();
        if let Some(disk) = &mut station.disk {
            disk.pending.clear();
            client.import(&disk.unfinished(), &[]);
            disk.flights
                .iter()
                .filter(|(_, is_received)| **is_received)
                .for_each(|(id, _)| client.release(*id));
            station.log = (0..disk.numbers).filter(|id| !disk.done.contains(id)).collect();
        } else {
            client.import(&station.client.unfinished(), &station.client.incoming());
        }
        station.client = client;
    }

    fn talk(&mut self, index: usize) {
        let now = self.now;
        let station = &mut self.peers[index];
        if station.connection.is_none() {
            let peer = Peer::new(None, Transport::Memory);
            station.connection = Some(self.broker.accept(now, peer).expect("there is room"));
            station.client.connect(now);
            station.offered_up_to = None;
        }
        if station.disk.is_some() {
            let written = self.random.below(4);
            station.offer_with_care(written);
        } else {
            station.offer();
        }
        station.client.handle_timeout(now);
        let mut written = Vec::new();
        station.client.transmit(now, &mut written);
        station.up.extend(written);
        // A wire carries any number of bytes at a time.
        let carried = self.random.below(400) as usize;
        let up: Vec<u8> = station.up.drain(..carried.min(station.up.len())).collect();
        let id = station.connection.expect("just made");
        if !up.is_empty() && self.broker.wants_input(id) {
            self.broker.handle_input(now, id, &up);
        } else {
            up.into_iter().rev().for_each(|byte| station.up.push_front(byte));
        }
        self.obey();
        let station = &mut self.peers[index];
        if station.connection != Some(id) {
            return;
        }
        let mut written = Vec::new();
        self.broker.transmit(now, id, &mut written);
        station.down.extend(written);
        let carried = self.random.below(400) as usize;
        let down: Vec<u8> = station.down.drain(..carried.min(station.down.len())).collect();
        station.client.handle_input(now, &down);
        let is_closed = station.take_events();
        self.obey();
        if is_closed {
            self.cut(index);
        }
    }

    fn obey(&mut self) {
        while let Some(event) = self.broker.poll_event() {
            match event {
                Event::Close(id) => {
                    if let Some(index) = self.peers.iter().position(|station| station.connection == Some(id))
                    {
                        self.cut(index);
                    } else {
                        self.broker.handle_gone(self.now, id);
                    }
                }
                Event::Ingress { token: Some(token), message, .. } => {
                    self.waiting.push_back((token, number(&message)));
                }
                _ => {}
            }
        }
    }
}

impl Station {
    /// Gives it so many messages and a disk of its own to keep track of them.
    pub fn take_care(&mut self, numbers: u64) {
        self.options.releases_by_itself = false;
        self.options.own_packet_ids = 1..=999;
        self.client = Client::new(Instant::now(), self.options.clone()).unwrap();
        self.log = (0..numbers).collect();
        self.disk = Some(Disk { numbers, ..Disk::default() });
    }

    /// Offers the log as far as the window allows: from its beginning on a new connection.
    fn offer(&mut self) {
        let Some(topic) = &self.topic else { return };
        if !self.client.is_connected() {
            return;
        }
        let from = self.offered_up_to.map_or(0, |last| last + 1);
        for &id in self.log.range(from..) {
            let message = Message::new(topic.clone(), id.to_string()).with_qos(self.qos);
            if self.client.publish(id, &message).is_err() {
                break;
            }
            self.offered_up_to = Some(id);
        }
    }

    /// Publishes what is on disk, plans more, and lets the disk write so many notes down.
    fn offer_with_care(&mut self, written: u64) {
        let Some((topic, disk)) = self.topic.as_ref().zip(self.disk.as_mut()) else { return };
        for _ in 0..written {
            match disk.pending.pop_front() {
                Some(Note::Planned(id)) => drop(disk.flights.insert(id, false)),
                Some(Note::Received(id)) => {
                    disk.flights.insert(id, true);
                    self.client.release(id);
                }
                Some(Note::Done(id)) => {
                    disk.flights.remove(&id);
                    disk.done.insert(id);
                }
                None => break,
            }
        }
        for (&id, _) in disk.flights.iter().filter(|(_, is_received)| !**is_received) {
            let message = Message::new(topic.clone(), id.to_string()).with_qos(self.qos);
            if !self.log.contains(&id) || self.client.publish_as(id, packet_id(id), &message).is_err() {
                break;
            }
        }
        let planned = disk.flights.len() + disk.pending.len();
        let newest = disk.flights.last_key_value().map(|(id, _)| *id);
        let newest = disk
            .pending
            .iter()
            .filter_map(|note| match note {
                Note::Planned(id) => Some(*id),
                _ => None,
            })
            .chain(newest)
            .chain(disk.done.last().copied())
            .max();
        let from = newest.map_or(0, |last| last + 1);
        disk.pending.extend(
            self.log.range(from..).take(10usize.saturating_sub(planned)).map(|id| Note::Planned(*id)),
        );
    }

    /// Returns whether the connection is over.
    fn take_events(&mut self) -> bool {
        let mut is_closed = false;
        while let Some(event) = self.client.poll_event() {
            match event {
                client::Event::Connected { session_present, .. } => {
                    // A session may be present and the SUBSCRIBE have been lost: only SUBACK counts.
                    self.is_subscribed &= session_present;
                    if let Some(filter) = &self.filter
                        && !self.is_subscribed
                    {
                        self.client.subscribe(&[(filter.clone(), self.qos)]).unwrap();
                    }
                }
                client::Event::Subscribed { codes, .. } => {
                    assert_eq!(codes, [ReasonCode(self.qos as u8)]);
                    self.is_subscribed = true;
                }
                client::Event::Confirmed { id } => {
                    assert!(self.log.remove(&id), "{id} was confirmed twice");
                    self.confirmed.push(id);
                    if let Some(disk) = &mut self.disk {
                        disk.pending.push_back(Note::Done(id));
                    }
                }
                client::Event::Received { id } => {
                    let disk = self.disk.as_mut().expect("only who takes care is told");
                    disk.pending.push_back(Note::Received(id));
                }
                // A failed message stays in the log; a new connection offers it again, in its place.
                client::Event::Failed { .. } | client::Event::Closed { .. } => is_closed = true,
                client::Event::Message { message, .. } => self.received.push(number(&message)),
            }
        }
        is_closed
    }

    pub fn is_subscribed(&self) -> bool {
        self.is_subscribed
    }
}

impl Disk {
    fn unfinished(&self) -> Vec<client::Unfinished> {
        let unfinished = |(&id, &is_received): (&u64, &bool)| client::Unfinished {
            id,
            packet_id: packet_id(id),
            qos: Qos::ExactlyOnce,
            is_received,
        };
        self.flights.iter().map(unfinished).collect()
    }
}

/// No two messages of a window share one.
fn packet_id(id: u64) -> u16 {
    1_000 + (id % 20) as u16
}

fn number(message: &Message) -> u64 {
    std::str::from_utf8(&message.payload).unwrap().parse().unwrap()
}
