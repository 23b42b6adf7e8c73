use std::path::Path;
use std::sync::Arc;

use super::super::received::{Tally, read};
use super::super::verify::{Book, Findings, Verdict};
use super::*;
use crate::payload::parcel::{Compression, Encoding, Origin, Packing, Parcel};
use crate::reading::{self, Channel, ChannelId, Quality, Reading};
use crate::spool::{Gap, GapReason, Options, WhenFull};
use crate::uplink::forwarder::Lane;

fn options() -> Options {
    Options {
        max_size: 64 << 20,
        rpo: Duration::from_millis(1),
        wear_budget: u64::MAX,
        when_full: WhenFull::DropOldest,
        retain: Duration::from_secs(3600),
        uplinks: Vec::new(),
    }
}

/// A gateway as far as the ledger needs it: opened on a state directory, as after a start.
struct Started {
    spool: Spool,
    keeper: Keeper,
    stop: CancellationToken,
}

impl Started {
    fn on(state: &Path) -> Self {
        Self::with(state, options())
    }

    fn with(state: &Path, options: Options) -> Self {
        let (clock, stop) = (Clock::new(), CancellationToken::new());
        let (spool, _) = Spool::open(state, options, clock).unwrap();
        let (intake, task) = Intake::new(spool.clone(), clock, stop.clone());
        tokio::spawn(task);
        let keeper = Keeper::new("barn", Key::load_or_make(state).unwrap(), spool.clone(), intake, clock);
        Self { spool, keeper, stop }
    }

    async fn write(&self, count: usize) {
        let stamp = Clock::new().stamp();
        let message =
            |n: usize| Entry::Message { topic: "site/door".into(), payload: n.to_string().into(), stamp };
        self.spool.append((0..count).map(message).collect(), true).await.unwrap();
    }

    async fn sign(&mut self) {
        self.keeper.follow(true, &CancellationToken::new()).await.unwrap();
    }

    async fn close(self) {
        drop(self.keeper);
        self.stop.cancel();
        self.spool.close().await;
    }

    /// What a consumer that has everything in the log would find.
    async fn findings(&self) -> Findings {
        let origin = Origin { gateway: "barn".into(), epoch: self.spool.epoch() };
        let packing = Packing { batch: 1, encoding: Encoding::SenmlJson, compression: Compression::None };
        let mut stored = Vec::new();
        for entry in self.spool.read_after(Seq(0), 100_000).await.unwrap() {
            stored.extend_from_slice(&Parcel::new(&origin, Lane::Live, packing, &[entry]).unwrap().body);
            stored.push(b'\n');
        }
        let (mut book, mut tally) = (Book::default(), Tally::default());
        read("test", &mut &*stored, &mut book, &mut tally).unwrap();
        book.findings(Some(self.keeper.key.public())).remove(0)
    }

    async fn kept(&self) -> State {
        serde_json::from_slice(&self.spool.meta(STATE).await.unwrap().unwrap()).unwrap()
    }

    async fn keep(&self, state: &State) {
        self.spool.set_meta(STATE, serde_json::to_vec(state).unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn manifests_cover_every_place_over_restarts_and_nothing_written_makes_none() {
    let state = tempfile::TempDir::new().unwrap();
    let mut gateway = Started::on(state.path());
    gateway.sign().await;
    assert_eq!(gateway.spool.stats().last_seq, 0, "an empty log has nothing to sign");
    for round in 1..=3 {
        gateway.write(150).await;
        gateway.sign().await;
        gateway.sign().await;
        let found = gateway.findings().await;
        assert_eq!((found.verdict(), found.manifests), (Verdict::Complete, round), "{found:?}");
        gateway.close().await;
        gateway = Started::on(state.path());
    }
    let found = gateway.findings().await;
    assert_eq!(found.covered, Some((1, gateway.spool.stats().last_seq - 1)));
}

#[tokio::test]
async fn a_manifest_that_a_crash_kept_from_the_log_is_appended_as_it_was_signed() {
    let state = tempfile::TempDir::new().unwrap();
    let mut gateway = Started::on(state.path());
    gateway.write(10).await;
    gateway.sign().await;
    gateway.write(20).await;
    // As far as `kill -9` lets it come: kept, and not in the log.
    gateway.keeper.follow(false, &CancellationToken::new()).await.unwrap();
    let mut chain = gateway.keeper.chain.take().unwrap();
    gateway.keeper.make(&mut chain).await.unwrap();
    let text = gateway.kept().await.pending.unwrap();
    gateway.close().await;

    let mut gateway = Started::on(state.path());
    gateway.write(30).await;
    gateway.sign().await;
    let found = gateway.findings().await;
    assert_eq!((found.verdict(), found.manifests), (Verdict::Complete, 3), "{found:?}");
    let appended = gateway.spool.read_after(Seq(0), 1000).await.unwrap();
    let is_it =
        |entry: &&crate::spool::Stored| matches!(&entry.body, Body::Manifest { text: it } if *it == text);
    assert_eq!(appended.iter().filter(is_it).count(), 1);

    // Or as far as in the log, and not noted as such: it comes twice, and nobody minds.
    let mut kept = gateway.kept().await;
    let newest = appended.iter().rev().find(|entry| matches!(entry.body, Body::Manifest { .. }));
    let Some(Body::Manifest { text }) = newest.map(|entry| &entry.body) else { panic!("no manifest") };
    kept.pending = Some(text.clone());
    gateway.keep(&kept).await;
    gateway.close().await;
    let mut gateway = Started::on(state.path());
    gateway.write(1).await;
    gateway.sign().await;
    let found = gateway.findings().await;
    assert_eq!((found.verdict(), found.manifests), (Verdict::Complete, 4), "{found:?}");
}

#[tokio::test]
async fn a_chain_whose_state_was_lost_goes_on_where_the_log_says() {
    let state = tempfile::TempDir::new().unwrap();
    let mut gateway = Started::on(state.path());
    for _ in 0..3 {
        gateway.write(10).await;
        gateway.sign().await;
    }
    let of_another_store = State { epoch: "0".into(), ..gateway.kept().await };
    gateway.keep(&of_another_store).await;
    gateway.close().await;
    let mut gateway = Started::on(state.path());
    gateway.write(10).await;
    gateway.sign().await;
    let found = gateway.findings().await;
    assert_eq!((found.verdict(), found.manifests), (Verdict::Complete, 4), "{found:?}");
}

#[tokio::test]
async fn more_than_a_manifest_can_cover_makes_several_and_losses_are_named() {
    let state = tempfile::TempDir::new().unwrap();
    let mut gateway = Started::on(state.path());
    gateway.write(60_000).await;
    gateway.write(50_000).await;
    let gap = Gap { from_seq: None, to_seq: None, count: Some(5), reason: GapReason::Overload };
    let stamp = Clock::new().stamp();
    gateway.spool.append(vec![Entry::Gap { gap, stamp }], true).await.unwrap();
    gateway.sign().await;
    let entries = gateway.spool.read_after(Seq(0), 200_000).await.unwrap();
    let manifests: Vec<Manifest> = entries
        .iter()
        .filter_map(|entry| match &entry.body {
            Body::Manifest { text } => Some(Signed::parse(text).unwrap().1),
            _ => None,
        })
        .collect();
    assert_eq!(manifests.len(), 2);
    assert_eq!((manifests[0].to_seq, manifests[1].from_seq), (100_000, 100_001));
    assert_eq!(manifests[1].gaps[0].reason, "overload");
    let largest = manifests.iter().map(|manifest| manifest.digests.len()).max();
    assert_eq!(largest, Some(16_000));
}

#[tokio::test]
async fn readings_that_became_means_are_vouched_for_as_they_stand_now() {
    let state = tempfile::TempDir::new().unwrap();
    // An uplink that never comes, and little room.
    let options = Options {
        max_size: 4 << 20,
        when_full: WhenFull::ThinOut,
        uplinks: vec!["cloud".into()],
        ..options()
    };
    let mut gateway = Started::with(state.path(), options);
    gateway.spool.progress("cloud").await.unwrap();
    let channels: Vec<Arc<Channel>> = (0..150)
        .map(|n| {
            let name = format!("t{n}");
            let id = ChannelId::new("cellar", &name).unwrap();
            Arc::new(Channel { id, spec: drivers::ChannelSpec::number("t", "Cel"), is_simulated: true })
        })
        .collect();
    let mut thinned = 0;
    for round in 0..400 {
        let readings = (0..10).flat_map(|_| channels.iter()).map(|channel| {
            let value = Some(reading::Value::Number(f64::from(round)));
            let stamp = Clock::new().stamp();
            Entry::Reading(Reading { channel: channel.clone(), value, quality: Quality::Good, stamp })
        });
        gateway.spool.append(readings.collect(), true).await.unwrap();
        if round % 10 == 0 {
            gateway.sign().await;
        }
        thinned =
            gateway.spool.stats().gaps.iter().filter(|(_, gap)| gap.reason == GapReason::Thinned).count();
        if thinned > 2 {
            break;
        }
    }
    assert!(thinned > 2, "nothing was thinned out: {:?}", gateway.spool.stats());
    // The commit of a manifest may thin out more, which the next one vouches for.
    loop {
        let before = gateway.spool.stats().gaps.len();
        gateway.sign().await;
        if gateway.spool.stats().gaps.len() == before {
            break;
        }
    }
    let found = gateway.findings().await;
    assert_eq!(found.verdict(), Verdict::Losses, "{found:?}");
    assert!(found.lost.iter().all(|loss| loss.reason == "thinned"), "{:?}", found.lost);
}
