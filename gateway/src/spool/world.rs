//! The world in a box: the real store, retention and forwarders, a made-up wire and peer, faults from a seed.
//!
//! Safety is checked at every step: an uplink's cursor never passes an entry that its peer does not have and that no
//! gap names; entries leave in order; a crash repeats no more than a window. Liveness is checked at the end: when the
//! faults stop, every peer gets everything that is left. A failure prints its seed.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use tempfile::TempDir;

use super::entry::{Body, Entry, Gap};
use super::progress::Progress;
use super::reader::Reader;
use super::store::{Batch, Store};
use super::{Options, Seq, WhenFull, store_path};
use crate::clock::Clock;
use crate::uplink::forwarder::Forwarder;

/// What is wrong on purpose, to see that the world finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Planted {
    Nothing,
    /// The cursor moves when an entry is sent.
    CursorOnSend,
    /// After a lost connection what was in flight is taken for delivered.
    SkipAfterCut,
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
}

struct Peer {
    name: String,
    window: usize,
    forwarder: Forwarder,
    is_up: bool,
    /// Sent and not yet arrived.
    wire: VecDeque<u64>,
    /// Arrived, acknowledgement under way.
    acks: Vec<u64>,
    received: BTreeSet<u64>,
    /// The last entry that arrived over this connection.
    newest: u64,
    repeated_since_crash: u64,
}

struct World {
    random: Random,
    directory: TempDir,
    options: Options,
    store: Store,
    peers: Vec<Peer>,
    pending_progress: HashMap<String, Progress>,
    /// Places that a gap names, per reason of the quota.
    lost: BTreeSet<u64>,
    planted: Planted,
    payload: bytes::Bytes,
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
            when_full: WhenFull::DropOldest,
            retain: Duration::from_secs(3600),
            uplinks: vec!["a".into(), "b".into()],
        };
        let store = Store::open(directory.path(), &options, Clock::new(), Seq(0)).unwrap();
        let peers = options
            .uplinks
            .iter()
            .map(|name| {
                let window = 1 + random.below(40) as usize;
                Peer {
                    name: name.clone(),
                    window,
                    forwarder: Forwarder::new(store.progress(name).live, window),
                    is_up: true,
                    wire: VecDeque::new(),
                    acks: Vec::new(),
                    received: BTreeSet::new(),
                    newest: 0,
                    repeated_since_crash: 0,
                }
            })
            .collect();
        Self {
            random,
            directory,
            options,
            store,
            peers,
            pending_progress: HashMap::new(),
            lost: BTreeSet::new(),
            planted,
            payload: vec![0; 3000].into(),
        }
    }

    fn run(mut self) -> Result<(), String> {
        for _ in 0..120 {
            let peer = self.random.below(2) as usize;
            match self.random.below(20) {
                0..=5 => self.produce(),
                6..=10 => self.send(peer)?,
                11..=12 => self.arrive(peer)?,
                13..=15 => self.acknowledge(peer),
                16..=17 => self.cut(peer),
                18 => self.peers[peer].is_up = true,
                _ => self.crash(),
            }
            self.check()?;
        }
        // The faults stop: everything must arrive.
        for _ in 0..20_000 {
            let mut is_done = true;
            for peer in 0..2 {
                self.peers[peer].is_up = true;
                self.send(peer)?;
                while !self.peers[peer].wire.is_empty() {
                    self.arrive(peer)?;
                }
                while !self.peers[peer].acks.is_empty() {
                    self.acknowledge(peer);
                }
                is_done &= self.peers[peer].forwarder.cursor() == self.store.last_seq();
            }
            self.commit(&[]);
            self.check()?;
            if is_done {
                return self.peers.iter().try_for_each(|peer| self.check_all_arrived(peer));
            }
        }
        Err("it never finishes".into())
    }

    fn produce(&mut self) {
        let size = self.random.below(3000) as usize;
        let entries: Vec<Entry> = (0..=self.random.below(30))
            .map(|_| Entry::Message {
                topic: "x".into(),
                payload: self.payload.slice(..size),
                stamp: self.store.clock().stamp(),
            })
            .collect();
        self.commit(&entries);
    }

    /// What the writer does: tends, records what that lost, appends, stores cursors.
    fn commit(&mut self, entries: &[Entry]) {
        let progress = std::mem::take(&mut self.pending_progress);
        let done =
            self.store.commit(&Batch { entries: entries.to_vec(), progress, ..Batch::default() }).unwrap();
        match self.planted {
            Planted::SilentDrop => self.lost.clear(),
            _ => self.note_lost(&done.dropped),
        }
        let committed = self.store.committed();
        for peer in &mut self.peers {
            if let Some(stored) = committed.progress.get(&peer.name) {
                peer.forwarder.stored(stored.live);
            }
        }
    }

    fn note_lost(&mut self, gaps: &[Gap]) {
        for gap in gaps {
            self.lost.extend(gap.from_seq.unwrap()..=gap.to_seq.unwrap());
        }
    }

    fn send(&mut self, at: usize) -> Result<(), String> {
        let peer = &mut self.peers[at];
        if !peer.is_up {
            return Ok(());
        }
        let last = self.store.last_seq();
        let Some((after, room)) = peer.forwarder.wants(last) else { return Ok(()) };
        if room > peer.window {
            return Err(format!("{}: {room} entries wanted, the window is {}", peer.name, peer.window));
        }
        let read = 1 + self.random.below(room as u64) as usize;
        let mut reader = Reader::open(&store_path(self.directory.path())).unwrap();
        let entries = reader.after(after, read).unwrap();
        for entry in &entries {
            if let Body::Gap(gap) = &entry.body
                && self.planted != Planted::SilentDrop
            {
                self.lost.extend(gap.from_seq.unwrap()..=gap.to_seq.unwrap());
            }
        }
        let read_to = entries.last().map_or(last, |last| last.seq);
        peer.forwarder.sent(entries.iter().map(|entry| entry.seq), read_to);
        peer.wire.extend(entries.iter().map(|entry| entry.seq.0));
        if self.planted == Planted::CursorOnSend {
            for entry in &entries {
                peer.forwarder.confirmed(entry.seq);
            }
        }
        Ok(())
    }

    fn arrive(&mut self, at: usize) -> Result<(), String> {
        let peer = &mut self.peers[at];
        for _ in 0..=self.random.below(20) {
            let Some(seq) = peer.wire.pop_front() else { break };
            if seq <= peer.newest {
                return Err(format!("{}: {seq} arrives behind {}", peer.name, peer.newest));
            }
            peer.newest = seq;
            if !peer.received.insert(seq) {
                peer.repeated_since_crash += 1;
                if peer.repeated_since_crash > peer.window as u64 {
                    return Err(format!("{}: more than a window is repeated", peer.name));
                }
            }
            peer.acks.push(seq);
        }
        Ok(())
    }

    /// One acknowledgement comes back, in any order.
    fn acknowledge(&mut self, at: usize) {
        for _ in 0..=self.random.below(20) {
            let peer = &mut self.peers[at];
            if peer.acks.is_empty() {
                return;
            }
            let seq = peer.acks.swap_remove(self.random.below(peer.acks.len() as u64) as usize);
            peer.forwarder.confirmed(Seq(seq));
            self.pending_progress.insert(peer.name.clone(), Progress::at(peer.forwarder.cursor()));
        }
    }

    fn cut(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        if self.planted == Planted::SkipAfterCut {
            for seq in peer.wire.iter().chain(&peer.acks).copied().collect::<Vec<_>>() {
                peer.forwarder.confirmed(Seq(seq));
            }
        }
        peer.is_up = false;
        peer.wire.clear();
        peer.acks.clear();
        peer.newest = 0;
        peer.repeated_since_crash = 0;
        peer.forwarder.disconnected();
    }

    /// `kill -9`: the file stays as the last commit left it, everything else is gone.
    fn crash(&mut self) {
        self.pending_progress.clear();
        self.store.let_go().unwrap();
        self.store = Store::open(self.directory.path(), &self.options, Clock::new(), Seq(0)).unwrap();
        for at in 0..2 {
            self.cut(at);
            let peer = &mut self.peers[at];
            peer.forwarder = Forwarder::new(self.store.progress(&peer.name).live, peer.window);
        }
    }

    fn check(&self) -> Result<(), String> {
        for peer in &self.peers {
            let cursor = peer.forwarder.cursor().0.min(self.store.last_seq().0);
            let missing = (1..=cursor).find(|seq| !peer.received.contains(seq) && !self.lost.contains(seq));
            if let Some(seq) = missing {
                return Err(format!(
                    "{}: the cursor is at {cursor}, {seq} neither arrived nor is in a gap",
                    peer.name
                ));
            }
        }
        Ok(())
    }

    fn check_all_arrived(&self, peer: &Peer) -> Result<(), String> {
        let last = self.store.last_seq().0;
        match (1..=last).find(|seq| !peer.received.contains(seq) && !self.lost.contains(seq)) {
            Some(seq) => Err(format!("{}: {seq} of {last} never arrived", peer.name)),
            None => Ok(()),
        }
    }
}

fn first_failure(planted: Planted, seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| World::new(seed, planted).run().err().map(|error| (seed, error)))
}

#[test]
fn under_any_faults_nothing_is_lost_reordered_or_repeated_beyond_a_window() {
    let seeds = std::env::var("WORLD_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(150);
    if let Some((seed, error)) = first_failure(Planted::Nothing, 0..seeds) {
        panic!("seed {seed}: {error}");
    }
}

#[test]
fn each_planted_bug_is_found() {
    for planted in [Planted::CursorOnSend, Planted::SkipAfterCut, Planted::SilentDrop] {
        assert!(first_failure(planted, 0..60).is_some(), "{planted:?} stays unseen");
    }
}
