//! The world in a box: the real store, retention, clock correction and forwarders, a made-up wire and peers, faults
//! from a seed: flapping links, lost acknowledgements, `kill -9`, clock jumps, a full disk.
//!
//! Safety is checked at every step: an uplink's progress never passes an entry that its peer does not have and that no
//! gap names; entries leave in order on each lane and on one lane only; a crash repeats no more than a window a lane.
//! Liveness is checked at the end: when the faults stop, every peer gets everything that is left, and everything that
//! was acknowledged to anybody is with every peer or named by a gap. A failure prints its seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tempfile::TempDir;

use super::entry::{Body, ClockRecord, Entry, Gap};
use super::reader::{Range, Reader};
use super::salvage::Beginning;
use super::store::{Batch, Store};
use super::{Class, Options, Progress, Seq, WhenFull, store_path};
use crate::clock::{Clock, Stamp, Wall, WallQuality};
use crate::uplink::forwarder::{Forwarder, Lane, Want};

/// What is wrong on purpose, to see that the world finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Planted {
    Nothing,
    /// Somebody is told that an entry is safe before its commit.
    AckBeforeCommit,
    /// The cursor moves when an entry is sent.
    CursorOnSend,
    /// After a lost connection what was in flight is taken for delivered.
    SkipAfterReconnect,
    /// What the quota drops is recorded nowhere.
    SilentDrop,
}

struct Random(u64);

impl Random {
    /// A number below `bound`: splitmix64.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A parcel on the wire: lane, and the places in it.
type Sent = (Lane, Vec<u64>);

struct Peer {
    name: String,
    window: usize,
    batch: usize,
    is_live_first: bool,
    forwarder: Forwarder,
    is_up: bool,
    wire: VecDeque<Sent>,
    /// Arrived, acknowledgement under way: lane and last place.
    acks: Vec<(Lane, u64)>,
    received: BTreeMap<u64, Lane>,
    /// Places that hold telemetry, or an alarm, and have not arrived.
    missing: [BTreeSet<u64>; 2],
    /// The last place that arrived over this connection, and what came twice, by lane.
    newest: BTreeMap<Lane, u64>,
    repeated: BTreeMap<Lane, usize>,
    /// Whether it has told the store of its progress since the last commit.
    told: Option<Progress>,
}

struct World {
    random: Random,
    directory: TempDir,
    options: Options,
    store: Store,
    reader: Reader,
    peers: Vec<Peer>,
    is_bursty: bool,
    /// Entries that wait for the next commit, each with a number of its own.
    queue: Vec<(u64, Entry)>,
    produced: u64,
    /// The numbers that somebody was told are safe.
    promised: BTreeSet<u64>,
    /// The place of each number.
    places: BTreeMap<u64, u64>,
    /// Places that a gap names.
    lost: BTreeSet<u64>,
    alarms: BTreeSet<u64>,
    /// Wall minus monotonic time, as the machine believes, and whether it knows better by now.
    offset_ns: i64,
    is_synchronised: bool,
    is_disk_full: bool,
    planted: Planted,
}

impl World {
    fn new(seed: u64, planted: Planted) -> Self {
        let mut random = Random(seed);
        // Memory where there is any: what is looked at is the logic, not the disk.
        let directory = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        let options = Options {
            max_size: 1_200_000 + random.below(1_000_000),
            rpo: Duration::from_millis(1),
            wear_budget: u64::MAX,
            when_full: if random.one_in(2) { WhenFull::ThinOut } else { WhenFull::DropOldest },
            retain: Duration::from_secs(3600),
            uplinks: vec!["a".into(), "b".into()],
        };
        let store = Store::open(directory.path(), &options, Clock::new(), &Beginning::default()).unwrap();
        let reader = Reader::open(&store_path(directory.path())).unwrap();
        // A small window takes long over what a burst leaves behind.
        let is_bursty = random.one_in(8);
        let peers =
            options.uplinks.iter().map(|name| Peer::new(name, &store, is_bursty, &mut random)).collect();
        Self {
            random,
            directory,
            options,
            store,
            reader,
            peers,
            is_bursty,
            queue: Vec::new(),
            produced: 0,
            promised: BTreeSet::new(),
            places: BTreeMap::new(),
            lost: BTreeSet::new(),
            alarms: BTreeSet::new(),
            offset_ns: 1_000_000_000,
            is_synchronised: false,
            is_disk_full: false,
            planted,
        }
    }

    fn run(mut self) -> Result<(), String> {
        for _ in 0..120 {
            let peer = self.random.below(2) as usize;
            match self.random.below(30) {
                0..=6 => self.produce(),
                7..=10 => self.commit()?,
                11..=17 => {
                    self.send(peer)?;
                }
                18..=20 => self.arrive(peer)?,
                21..=23 => self.acknowledge(peer),
                24 | 25 => self.cut(peer),
                26 => self.peers[peer].is_up = true,
                27 => self.jump_clock(),
                28 => self.fill_disk(),
                _ => self.crash()?,
            }
            self.check()?;
        }
        self.settle()
    }

    /// The faults stop: everything must arrive.
    fn settle(&mut self) -> Result<(), String> {
        self.is_disk_full = false;
        self.limit_disk();
        for _ in 0..20_000 {
            self.commit()?;
            let mut is_done = true;
            for peer in 0..2 {
                self.peers[peer].is_up = true;
                while self.send(peer)? {}
                while !self.peers[peer].wire.is_empty() {
                    self.arrive(peer)?;
                }
                while !self.peers[peer].acks.is_empty() {
                    self.acknowledge(peer);
                }
                let Peer { forwarder, told, .. } = &self.peers[peer];
                let committed = self.store.committed();
                is_done &=
                    told.is_none() && Lane::ALL.iter().all(|lane| forwarder.waiting(*lane, &committed) == 0);
            }
            self.check()?;
            if is_done && self.queue.is_empty() {
                return self.check_all_arrived();
            }
        }
        Err("it never finishes".into())
    }

    /// Readings, messages and now and then an alarm, or so many messages that the live lane falls behind.
    fn produce(&mut self) {
        // The writer's own bound on a commit, as far as this small a database needs it.
        if self.queue.iter().map(|(_, entry)| entry.weight()).sum::<u64>() > 200_000 {
            return;
        }
        let count = if self.is_bursty && self.random.one_in(12) { 5000 } else { 1 + self.random.below(60) };
        let size = if count > 100 { 0 } else { self.random.below(3000) as usize };
        for _ in 0..count {
            self.produced += 1;
            let mut payload = self.produced.to_be_bytes().to_vec();
            payload.resize(8 + size, 0);
            let stamp = self.stamp();
            let entry = if self.random.one_in(50) {
                Entry::Alarm {
                    name: "x".into(),
                    is_raised: true,
                    text: self.produced.to_string().into(),
                    stamp,
                }
            } else {
                Entry::Message { topic: "x".into(), payload: payload.into(), stamp }
            };
            if self.planted == Planted::AckBeforeCommit {
                self.promised.insert(self.produced);
            }
            self.queue.push((self.produced, entry));
        }
    }

    fn stamp(&mut self) -> Stamp {
        let stamp = self.store.clock().stamp();
        let unix_ns = stamp.monotonic_ns as i64 + self.offset_ns;
        let quality = if self.is_synchronised { WallQuality::Ntp } else { WallQuality::None };
        Stamp { wall: Some(Wall { unix_ns, quality, ..stamp.wall.unwrap() }), ..stamp }
    }

    /// What the writer does: everything that waits in one transaction, answers after it.
    fn commit(&mut self) -> Result<(), String> {
        let (numbers, entries): (Vec<u64>, Vec<Entry>) = std::mem::take(&mut self.queue).into_iter().unzip();
        let alarms: Vec<bool> = entries.iter().map(|entry| entry.class() == Class::Alarm).collect();
        let mut batch = Batch { entries, ..Batch::default() };
        for peer in &mut self.peers {
            batch.progress.extend(peer.told.take().map(|progress| (peer.name.clone(), progress)));
        }
        if batch.is_empty() {
            return Ok(());
        }
        let mut written = self.store.commit(&batch);
        // As the writer does: a batch that does not fit makes room, a partition more with each try.
        for forced in 1..=8 {
            if self.is_disk_full || !written.as_ref().is_err_and(super::store::StoreError::is_full) {
                break;
            }
            self.store.force_room(forced);
            written = self.store.commit(&batch);
        }
        let done = match written {
            Ok(done) => done,
            Err(error) if error.is_full() && self.is_disk_full => {
                // Refused: nobody was promised anything, and what the peers told they tell again.
                for peer in &mut self.peers {
                    peer.told = Some(peer.forwarder.progress());
                }
                return Ok(());
            }
            Err(error) => {
                return Err(format!("{} entries are not written: {error}", batch.entries.len()));
            }
        };
        self.record_losses(done.dropped);
        for (index, number) in numbers.into_iter().enumerate() {
            let place = done.first.0 + index as u64;
            self.places.insert(number, place);
            self.promised.insert(number);
            let class = if alarms[index] { Class::Alarm } else { Class::Telemetry };
            if class == Class::Alarm {
                self.alarms.insert(place);
            }
            for peer in &mut self.peers {
                peer.missing[class as usize].insert(place);
            }
        }
        let committed = self.store.committed();
        for peer in &mut self.peers {
            if let Some(stored) = committed.progress.get(&peer.name) {
                peer.forwarder.stored(stored);
            }
        }
        Ok(())
    }

    /// Sends the next parcels of one lane; whether there were any.
    fn send(&mut self, at: usize) -> Result<bool, String> {
        let committed = self.store.committed();
        let peer = &mut self.peers[at];
        if !peer.is_up {
            return Ok(false);
        }
        let want = peer.forwarder.wants(&committed);
        if peer.forwarder.is_late() && Some(&peer.forwarder.progress()) != committed.progress.get(&peer.name)
        {
            peer.told = Some(peer.forwarder.progress());
        }
        let Some(Want { lane, after, until, room }) = want else { return Ok(false) };
        if room > peer.window {
            return Err(format!("{}: {room} entries wanted, the window is {}", peer.name, peer.window));
        }
        let limit = 1 + self.random.below(room as u64) as usize;
        let class = if lane == Lane::Alarm { Class::Alarm } else { Class::Telemetry };
        let entries = self
            .reader
            .range(class, Range { after, until, limit })
            .map_err(|error| format!("reading {class:?} {after} {until}: {error}"))?;
        for entry in &entries {
            if let Body::Gap(gap) = &entry.body
                && self.planted != Planted::SilentDrop
            {
                self.lost.extend(gap.from_seq.unwrap()..=gap.to_seq.unwrap());
            }
            let wall = entry.stamp.wall.unwrap();
            if self.is_synchronised && wall.quality < WallQuality::Ntp {
                return Err(format!("{}: {} goes out uncorrected", peer.name, entry.seq));
            }
        }
        let read_to = if entries.len() < limit { until } else { entries[entries.len() - 1].seq };
        let parcels: Vec<Vec<u64>> =
            entries.chunks(peer.batch).map(|chunk| chunk.iter().map(|entry| entry.seq.0).collect()).collect();
        let ends = parcels.iter().map(|places| (Seq(places[0]), Seq(places[places.len() - 1]), places.len()));
        peer.forwarder.sent(lane, ends, read_to);
        if self.planted == Planted::CursorOnSend {
            for places in &parcels {
                peer.forwarder.confirmed(lane, Seq(places[places.len() - 1]));
            }
        }
        peer.wire.extend(parcels.into_iter().map(|places| (lane, places)));
        Ok(true)
    }

    fn arrive(&mut self, at: usize) -> Result<(), String> {
        let peer = &mut self.peers[at];
        for _ in 0..=self.random.below(20) {
            let Some((lane, places)) = peer.wire.pop_front() else { break };
            for place in &places {
                let newest = peer.newest.entry(lane).or_default();
                if place <= newest {
                    return Err(format!("{}: {place} arrives behind {newest} on {lane:?}", peer.name));
                }
                *newest = *place;
                for missing in &mut peer.missing {
                    missing.remove(place);
                }
                if let Some(before) = peer.received.insert(*place, lane) {
                    if before != lane {
                        return Err(format!("{}: {place} arrives on {before:?} and on {lane:?}", peer.name));
                    }
                    let repeated = peer.repeated.entry(lane).or_default();
                    *repeated += 1;
                    if *repeated > peer.window {
                        return Err(format!("{}: more than a window is repeated on {lane:?}", peer.name));
                    }
                }
            }
            peer.acks.push((lane, places[places.len() - 1]));
        }
        Ok(())
    }

    /// Some acknowledgements come back, in any order.
    fn acknowledge(&mut self, at: usize) {
        for _ in 0..=self.random.below(20) {
            let peer = &mut self.peers[at];
            if peer.acks.is_empty() {
                return;
            }
            let (lane, last) = peer.acks.swap_remove(self.random.below(peer.acks.len() as u64) as usize);
            peer.forwarder.confirmed(lane, Seq(last));
            peer.told = Some(peer.forwarder.progress());
        }
    }

    fn cut(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        if self.planted == Planted::SkipAfterReconnect {
            for (lane, places) in std::mem::take(&mut peer.wire) {
                peer.forwarder.confirmed(lane, Seq(places[places.len() - 1]));
            }
        }
        peer.cut();
    }

    /// The machine's clock is set, wrongly or, once, rightly; from then on everything of this boot goes out corrected.
    fn jump_clock(&mut self) {
        self.offset_ns = 1_700_000_000_000_000_000 + self.random.below(10_000_000_000_000) as i64;
        self.is_synchronised |= self.random.one_in(4);
        if self.is_synchronised {
            let record = ClockRecord {
                boot: self.store.clock().boot(),
                offset_ns: self.offset_ns,
                error_ns: Some(1_000_000),
                quality: WallQuality::Ntp,
            };
            let made = self.store.clock().stamp().monotonic_ns as i64;
            let noted = self.store.commit(&Batch { clocks: vec![(record, made)], ..Batch::default() });
            // On a full disk nothing is noted; the gateway notes it when it can.
            self.is_synchronised = noted.is_ok();
            self.record_losses(noted.map(|done| done.dropped).unwrap_or_default());
        }
    }

    fn record_losses(&mut self, gaps: Vec<Gap>) {
        if self.planted != Planted::SilentDrop {
            self.lost.extend(gaps.iter().flat_map(|gap| gap.from_seq.unwrap()..=gap.to_seq.unwrap()));
        }
    }

    fn fill_disk(&mut self) {
        self.is_disk_full = !self.is_disk_full;
        self.limit_disk();
    }

    /// A full disk is a database that may not grow.
    fn limit_disk(&self) {
        let pages = if self.is_disk_full { 1 } else { self.options.max_size / 4096 };
        let set = format!("PRAGMA max_page_count = {pages}");
        self.store.db.query_row(&set, [], |_| Ok(())).unwrap();
    }

    /// `kill -9`: the file stays as the last commit left it, everything else is gone.
    fn crash(&mut self) -> Result<(), String> {
        self.queue.clear();
        self.store.let_go().map_err(|error| format!("it does not let go: {error}"))?;
        self.store = Store::open(self.directory.path(), &self.options, Clock::new(), &Beginning::default())
            .map_err(|error| format!("it does not open again: {error}"))?;
        self.reader = Reader::open(&store_path(self.directory.path()))
            .map_err(|error| format!("no reader: {error}"))?;
        self.limit_disk();
        for peer in &mut self.peers {
            peer.cut();
            peer.told = None;
            peer.forwarder = Forwarder::new(self.store.progress(&peer.name), peer.window, peer.is_live_first);
        }
        Ok(())
    }

    /// What the progress passes has arrived or is in a gap.
    fn check(&self) -> Result<(), String> {
        for peer in &self.peers {
            let progress = peer.forwarder.progress();
            let mut passed = vec![(Class::Alarm, 1..=progress.alarm.0)];
            let mut after = 0;
            let mut holes = progress.holes.clone();
            holes.sort_by_key(|hole| hole.until);
            for hole in holes.iter().filter(|hole| hole.acked < progress.live) {
                passed.push((Class::Telemetry, after + 1..=hole.acked.0));
                after = hole.until.0;
            }
            passed.push((Class::Telemetry, after + 1..=progress.live.0));
            for (class, range) in passed.into_iter().filter(|(_, range)| !range.is_empty()) {
                let mut missing = peer.missing[class as usize].range(range);
                if let Some(place) = missing.find(|place| !self.lost.contains(place)) {
                    return Err(format!(
                        "{}: {place} is passed, and neither arrived nor is in a gap: {progress:?}",
                        peer.name
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_all_arrived(&self) -> Result<(), String> {
        for number in &self.promised {
            let Some(place) = self.places.get(number) else {
                return Err(format!("number {number} was acknowledged and never written"));
            };
            for peer in &self.peers {
                if !peer.received.contains_key(place) && !self.lost.contains(place) {
                    return Err(format!("{}: {place} was acknowledged and never arrived", peer.name));
                }
                if self.alarms.contains(place) && !peer.received.contains_key(place) {
                    return Err(format!("{}: the alarm {place} made room for telemetry", peer.name));
                }
            }
        }
        Ok(())
    }
}

impl Peer {
    fn new(name: &str, store: &Store, is_bursty: bool, random: &mut Random) -> Self {
        let window = if is_bursty { 100 + random.below(900) } else { 1 + random.below(40) } as usize;
        let is_live_first = !random.one_in(4);
        Self {
            name: name.to_owned(),
            window,
            batch: 1 + random.below(10) as usize,
            is_live_first,
            forwarder: Forwarder::new(store.progress(name), window, is_live_first),
            is_up: true,
            wire: VecDeque::new(),
            acks: Vec::new(),
            received: BTreeMap::new(),
            missing: [BTreeSet::new(), BTreeSet::new()],
            newest: BTreeMap::new(),
            repeated: BTreeMap::new(),
            told: None,
        }
    }

    fn cut(&mut self) {
        self.is_up = false;
        self.wire.clear();
        self.acks.clear();
        self.newest.clear();
        self.repeated.clear();
        self.forwarder.disconnected();
    }
}

fn first_failure(planted: Planted, seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| World::new(seed, planted).run().err().map(|error| (seed, error)))
}

/// `WORLD_SEEDS` says how many worlds, 150 unless set; `WORLD_FIRST` with which seed to begin.
#[test]
fn under_any_faults_nothing_is_lost_reordered_or_repeated_beyond_a_window() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, seeds) = (number("WORLD_FIRST").unwrap_or(0), number("WORLD_SEEDS").unwrap_or(150));
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let share = seeds.div_ceil(threads);
    let failures: Vec<(u64, String)> = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|n| {
                let part = first + n * share..(first + (n + 1) * share).min(first + seeds);
                scope.spawn(|| first_failure(Planted::Nothing, part))
            })
            .collect();
        parts.into_iter().filter_map(|part| part.join().expect("a world does not panic")).collect()
    });
    for (seed, error) in &failures {
        eprintln!("seed {seed}: {error}");
    }
    assert!(
        failures.is_empty(),
        "{} of {threads} parts found a failure: its seed stands above",
        failures.len()
    );
    println!("{seeds} worlds");
}

#[test]
fn each_planted_bug_is_found() {
    for planted in
        [Planted::AckBeforeCommit, Planted::CursorOnSend, Planted::SkipAfterReconnect, Planted::SilentDrop]
    {
        assert!(first_failure(planted, 0..300).is_some(), "{planted:?} stays unseen");
    }
}
