use proptest::prelude::*;

use super::super::key::Key;
use super::super::line::Line;
use super::super::manifest::{Draft, Header, Kind, NAME, Thinned};
use super::*;

/// A gateway that writes entries and manifests, and what a consumer has of it.
struct World {
    key: Key,
    epoch: &'static str,
    last: u64,
    draft: Draft,
    number: u64,
    previous: Option<String>,
    stored: Vec<(u64, LineDigest, Option<String>)>,
}

impl World {
    fn new() -> Self {
        let state = tempfile::TempDir::new().unwrap();
        Self {
            key: Key::load_or_make(state.path()).unwrap(),
            epoch: "0000000000002a",
            last: 0,
            draft: Draft::new(1),
            number: 0,
            previous: None,
            stored: Vec::new(),
        }
    }

    fn line(seq: u64, value: f64) -> LineDigest {
        let line = Line {
            seq,
            name: "cellar/temperature",
            value: super::super::line::Value::Number(value),
            ..Line::default()
        };
        line.digest(&mut String::new())
    }

    fn write(&mut self, count: u64) {
        for _ in 0..count {
            self.entry(Kind::Plain);
        }
    }

    fn entry(&mut self, kind: Kind) {
        self.last += 1;
        let line = Self::line(self.last, 1.5);
        self.draft.add(self.last, &line, kind);
        self.stored.push((self.last, line, None));
    }

    fn gap(&mut self, from: u64, to: u64, reason: &str) {
        let loss = Loss { from: Some(from), to: Some(to), count: Some(to + 1 - from), reason: reason.into() };
        self.entry(Kind::Gap(loss));
    }

    fn sign(&mut self) {
        self.sign_with(Vec::new());
    }

    fn sign_with(&mut self, restated: Vec<Thinned>) {
        self.number += 1;
        let draft = std::mem::replace(&mut self.draft, Draft::new(self.last + 1));
        let header = Header {
            gateway: "barn",
            epoch: self.epoch,
            number: self.number,
            previous: self.previous.as_deref(),
            key: self.key.public(),
        };
        let signed = Signed::new(&draft.finish(header, restated), &self.key);
        self.previous = Some(signed.hash());
        let text = signed.to_json();
        self.last += 1;
        let line = Line {
            seq: self.last,
            name: NAME,
            value: super::super::line::Value::Text(&text),
            ..Line::default()
        };
        let line = line.digest(&mut String::new());
        self.draft.add(self.last, &line, Kind::Manifest);
        self.stored.push((self.last, line, Some(text)));
    }

    /// Loses what the consumer has of these places.
    fn lose(&mut self, from: u64, to: u64) {
        self.stored.retain(|(seq, ..)| !(from..=to).contains(seq));
    }

    fn findings(&self, key: Option<&str>) -> Findings {
        let mut book = Book::default();
        for (seq, line, manifest) in &self.stored {
            let manifest = manifest.as_deref();
            book.add(&Received { gateway: "barn", epoch: self.epoch, seq: *seq, line: *line, manifest })
                .unwrap();
        }
        let mut all = book.findings(key);
        assert_eq!(all.len(), 1);
        all.remove(0)
    }
}

/// 250 entries, a manifest (251), 349 entries, a manifest (601), 10 entries.
fn world() -> World {
    let mut world = World::new();
    world.write(250);
    world.sign();
    world.write(349);
    world.sign();
    world.write(10);
    world
}

#[test]
fn what_came_whole_is_complete_in_any_order() {
    let mut world = world();
    world.stored.reverse();
    let found = world.findings(None);
    assert_eq!(found.verdict(), Verdict::Complete, "{found:?}");
    assert_eq!((found.entries, found.manifests, found.covered), (611, 2, Some((1, 600))));
    assert_eq!(found.uncovered, [(601, 611)]);
    let key = world.key.public().to_owned();
    assert_eq!(world.findings(Some(&key.to_uppercase())).verdict(), Verdict::Complete);
    let other = world.findings(Some(&"0".repeat(64)));
    assert_eq!((other.verdict(), other.signatures.len(), other.manifests), (Verdict::Incomplete, 2, 0));
}

#[test]
fn a_missing_a_doubled_an_altered_and_an_invented_entry_are_each_named() {
    let mut missing = world();
    missing.lose(120, 121);
    let found = missing.findings(None);
    assert_eq!((found.missing.as_slice(), found.missing_count), (&[(120, 121)][..], 2));
    assert!(found.altered.is_empty() && found.verdict() == Verdict::Incomplete);
    assert_eq!(found.unproven, [(101, 119), (122, 200)]);

    let mut doubled = world();
    let again = doubled.stored[29].clone();
    doubled.stored.push(again);
    let found = doubled.findings(None);
    assert_eq!(
        (found.duplicated.as_slice(), found.repeats, found.verdict()),
        (&[(30, 30)][..], 1, Verdict::Complete)
    );

    let mut altered = world();
    altered.stored[300].1 = World::line(301, 1.6);
    let found = altered.findings(None);
    assert_eq!((found.altered.as_slice(), found.verdict()), (&[(251, 350)][..], Verdict::Incomplete));

    let mut both = world();
    both.stored.push((301, World::line(301, 1.6), None));
    assert_eq!(both.findings(None).altered, [(301, 301)], "the honest content is recognised");

    let mut invented = World::new();
    invented.write(5);
    invented.last = 20;
    invented.write(5);
    invented.sign();
    assert_eq!(invented.findings(None).verdict(), Verdict::Complete);
    invented.stored.push((7, World::line(7, 1.0), None));
    let found = invented.findings(None);
    assert_eq!((found.invented.as_slice(), found.verdict()), (&[(7, 7)][..], Verdict::Incomplete));
}

#[test]
fn a_manifest_that_is_missing_false_or_doubled_is_named() {
    let mut removed = world();
    removed.lose(251, 251);
    let found = removed.findings(None);
    assert_eq!(found.chain, ["manifest 1 is not there"]);
    assert_eq!((found.missing.as_slice(), &found.uncovered[0]), (&[(251, 251)][..], &(1, 250)));

    let mut forged = world();
    let text = forged.stored[250].2.as_mut().unwrap();
    let at = text.rfind("\"signature\":\"").unwrap() + 13;
    let digit = if &text[at..=at] == "0" { "1" } else { "0" };
    text.replace_range(at..=at, digit);
    let found = forged.findings(None);
    assert_eq!(found.signatures, ["manifest 1: the signature is not good"]);
    assert_eq!((found.verdict(), found.manifests), (Verdict::Incomplete, 1));

    let mut broken = world();
    broken.stored[250].2 = Some("{".into());
    assert!(broken.findings(None).signatures[0].starts_with("the manifest at 251 cannot be read"));

    // Written twice after a crash: the same text, and nothing to complain about.
    let mut repeated = World::new();
    repeated.write(5);
    repeated.sign();
    let text = repeated.stored[5].2.clone();
    repeated.write(1);
    repeated.stored[6].2 = text;
    repeated.sign();
    assert_eq!(repeated.findings(None).verdict(), Verdict::Complete);

    let none = World { stored: vec![(1, [0; 16], None)], ..World::new() };
    assert_eq!(none.findings(None).verdict(), Verdict::Incomplete);
}

#[test]
fn recorded_losses_stand_apart_from_unexplained_ones() {
    let mut world = World::new();
    world.write(200);
    world.sign();
    world.gap(40, 60, "quota");
    world.entry(Kind::Gap(Loss { from: None, to: None, count: Some(9), reason: "overload".into() }));
    world.sign();
    let has_all = world.findings(None);
    assert_eq!(has_all.lost.len(), 1, "only what never got a place is lost here: {has_all:?}");
    world.lose(40, 60);
    let found = world.findings(None);
    assert_eq!((found.missing.len(), found.verdict()), (0, Verdict::Losses));
    assert!(found.lost.iter().any(|loss| (loss.reason.as_str(), loss.count) == ("quota", Some(21))));
    world.lose(61, 61);
    assert_eq!(world.findings(None).missing, [(61, 61)]);
}

#[test]
fn thinned_places_are_compared_as_they_stand_now() {
    let mut world = World::new();
    world.write(300);
    world.sign();
    // 101 to 200 become two aggregates, in places that had readings.
    world.lose(101, 200);
    let kept = [(150, World::line(150, 7.0)), (200, World::line(200, 8.0))];
    world.stored.extend(kept.iter().map(|(seq, line)| (*seq, *line, None)));
    world.gap(101, 200, "thinned");
    let mut chunk = Chunk::new();
    for (_, line) in &kept {
        chunk.add(line);
    }
    world.sign_with(vec![Thinned { from: 101, to: 200, kept: 2, digest: chunk.finish() }]);
    let found = world.findings(None);
    assert_eq!((found.verdict(), found.lost.len()), (Verdict::Losses, 1), "{found:?}");
    let last = world.stored.iter().position(|(seq, ..)| *seq == 200).unwrap();
    let honest = std::mem::replace(&mut world.stored[last].1, World::line(200, 8.5));
    assert_eq!(world.findings(None).altered, [(101, 200)]);
    world.stored[last].1 = honest;
    world.lose(150, 150);
    let found = world.findings(None);
    assert_eq!((found.missing.as_slice(), found.missing_count), (&[(101, 200)][..], 1));
}

#[test]
fn two_epochs_of_one_gateway_are_two_chains() {
    let (first, mut second) = (world(), World::new());
    second.epoch = "0000000000002b";
    second.last = 5_000_000;
    second.draft = Draft::new(5_000_001);
    second.write(3);
    second.sign();
    let mut book = Book::default();
    for world in [&first, &second] {
        for (seq, line, manifest) in &world.stored {
            let manifest = manifest.as_deref();
            book.add(&Received { gateway: "barn", epoch: world.epoch, seq: *seq, line: *line, manifest })
                .unwrap();
        }
    }
    let found = book.findings(None);
    assert!(found.len() == 2 && found.iter().all(|found| found.verdict() == Verdict::Complete), "{found:?}");
}

proptest! {
    #[test]
    fn whatever_is_done_to_what_was_stored_is_noticed(
        blocks in proptest::collection::vec(1u64..150, 1..6), seed in any::<prop::sample::Index>(), what in 0u8..4
    ) {
        let mut world = World::new();
        for count in blocks {
            world.write(count);
            world.sign();
        }
        // The last manifest is covered by no other.
        let covered = world.stored.len() - 1;
        let at = seed.index(covered);
        let seq = world.stored[at].0;
        match what {
            0 => drop(world.stored.remove(at)),
            1 => world.stored[at].1[3] ^= 1,
            2 => {
                let again = world.stored[at].clone();
                world.stored.push(again);
            }
            _ => {}
        }
        let found = world.findings(None);
        let holds = |ranges: &[(u64, u64)]| ranges.iter().any(|(from, to)| (*from..=*to).contains(&seq));
        match what {
            0 => prop_assert!(holds(&found.missing) && found.verdict() == Verdict::Incomplete),
            1 => prop_assert!(holds(&found.altered) && found.verdict() == Verdict::Incomplete),
            2 => prop_assert!(holds(&found.duplicated) && found.verdict() == Verdict::Complete),
            _ => prop_assert_eq!(found.verdict(), Verdict::Complete),
        }
    }
}
