//! What the gateway signs now and then: which places it gave out, what stood there, what it lost. Made entry by entry
//! ([`Draft`]), so that a manifest costs no memory that grows with what it covers.

use serde::{Deserialize, Serialize};

use super::key::{Key, is_signed};
use super::line::{Chunk, LineDigest, sha256, unhex};

/// The content of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The gateway's name.
    pub gateway: String,
    /// The store's epoch, as every record carries it.
    pub epoch: String,
    /// 1 for the first of an epoch, then one more each.
    pub number: u64,
    /// The first place covered: behind the last one of the manifest before.
    pub from_seq: u64,
    /// The last place covered.
    pub to_seq: u64,
    /// How many entries stood there.
    pub count: u64,
    /// Places within that held no entry, thinned ones aside: never given out, or lost (`gaps` then say why, this
    /// manifest's or a later one's).
    pub absent: Vec<(u64, u64)>,
    /// The losses that entries within report.
    pub gaps: Vec<Loss>,
    /// Where aggregates stand for readings: within, or in places that an earlier manifest covered, whose chunks
    /// no longer hold then.
    pub thinned: Vec<Thinned>,
    /// Places per chunk, counted from `from_seq`.
    pub chunk: u64,
    /// 16 hex digits for each chunk that has a place which is neither absent nor thinned, in order, without anything
    /// between.
    pub digests: String,
    /// SHA-256 of the text of the manifest before; none for the first of an epoch.
    pub previous: Option<String>,
    /// The public key, 64 hex digits.
    pub key: String,
}

/// A loss that the gateway recorded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Loss {
    /// The first place lost; none where no places had been given.
    pub from: Option<u64>,
    /// The last place lost.
    pub to: Option<u64>,
    /// How many entries, where it is known.
    pub count: Option<u64>,
    /// Why, a word of `spool::GapReason`.
    pub reason: String,
}

/// Places whose readings were replaced by aggregates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thinned {
    /// The first place.
    pub from: u64,
    /// The last place.
    pub to: u64,
    /// How many entries stand there now.
    pub kept: u64,
    /// The digest over those, as of a chunk.
    pub digest: String,
}

/// A manifest as it travels: the exact text, and the signature over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The JSON text of a [`Manifest`].
    pub manifest: String,
    /// Ed25519 over the text, 128 hex digits.
    pub signature: String,
}

impl Signed {
    /// Signs a manifest.
    pub fn new(manifest: &Manifest, key: &Key) -> Self {
        // A struct of strings and numbers has a JSON form.
        let text = serde_json::to_string(manifest).unwrap_or_default();
        Self { signature: key.sign(&text), manifest: text }
    }

    /// What the entry holds.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What the next manifest names as the one before.
    pub fn hash(&self) -> String {
        sha256(self.manifest.as_bytes())
    }

    /// Reads what [`Signed::to_json`] wrote, and checks that it makes sense.
    ///
    /// # Errors
    /// Says in a fragment what is wrong.
    pub fn parse(json: &str) -> Result<(Self, Manifest), String> {
        let signed: Self = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let manifest: Manifest = serde_json::from_str(&signed.manifest).map_err(|error| error.to_string())?;
        manifest.check()?;
        Ok((signed, manifest))
    }

    /// Whether the key with these 64 hex digits signed it.
    pub fn is_signed_by(&self, key: &str) -> bool {
        unhex(key)
            .zip(unhex(&self.signature))
            .is_some_and(|(key, signature)| is_signed(&key, &self.manifest, &signature))
    }
}

impl Manifest {
    /// Runs of places that are neither absent nor thinned, in order.
    pub fn standing(&self) -> Vec<(u64, u64)> {
        let inner = |range: &(u64, u64)| range.0 >= self.from_seq;
        let thinned = self.thinned.iter().map(|thinned| (thinned.from, thinned.to)).filter(inner);
        let mut holes: Vec<(u64, u64)> = self.absent.iter().copied().chain(thinned).collect();
        holes.sort_unstable();
        let mut runs = Vec::new();
        let mut next = self.from_seq;
        for (from, to) in holes {
            if from > next {
                runs.push((next, from - 1));
            }
            next = next.max(to + 1);
        }
        if next <= self.to_seq {
            runs.push((next, self.to_seq));
        }
        runs
    }

    /// Each chunk that has a digest: its first and last place, and the digest.
    pub fn chunks(&self, standing: &[(u64, u64)]) -> Vec<(u64, u64, &str)> {
        let mut chunks: Vec<(u64, u64, &str)> = Vec::new();
        let mut digests = self.digests.as_bytes().chunks_exact(16);
        let mut done = 0;
        for (from, to) in standing {
            let index = |seq: u64| (seq - self.from_seq) / self.chunk;
            for chunk in index(*from).max(done)..=index(*to) {
                let Some(digest) = digests.next() else { return chunks };
                let first = self.from_seq + chunk * self.chunk;
                let last = (first + self.chunk - 1).min(self.to_seq);
                chunks.push((first, last, std::str::from_utf8(digest).unwrap_or_default()));
                done = chunk + 1;
            }
        }
        chunks
    }

    fn check(&self) -> Result<(), String> {
        let is_hex = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let is_range = |from: u64, to: u64| from <= to && to < MAX_SEQ;
        if self.format != FORMAT {
            return Err(format!("format {} is not known", self.format));
        }
        if !is_range(self.from_seq, self.to_seq) || !(1..=MAX_CHUNK).contains(&self.chunk) || self.number == 0
        {
            return Err("number, places or chunk out of range".into());
        }
        let mut next = self.from_seq;
        for (from, to) in &self.absent {
            if !is_range(*from, *to) || *from < next || *to > self.to_seq {
                return Err("absent places out of order".into());
            }
            next = to + 1;
        }
        let is_thinned = |thinned: &Thinned| {
            is_range(thinned.from, thinned.to) && thinned.to <= self.to_seq && is_hex(&thinned.digest, 16)
        };
        if !self.thinned.iter().all(is_thinned) {
            return Err("thinned places out of range".into());
        }
        if !is_hex(&self.key, 64) {
            return Err("the key is not 64 hex digits".into());
        }
        let wanted = self.digests.len() / 16;
        // Counted before they are listed: a hostile range is longer than its digests.
        let most = self.standing().iter().map(|(from, to)| (to - from) / self.chunk).sum::<u64>();
        if !is_hex(&self.digests, 16 * wanted) || most > wanted as u64 || self.chunks_wanted() != wanted {
            return Err("digests do not fit the places".into());
        }
        Ok(())
    }

    fn chunks_wanted(&self) -> usize {
        let (mut count, mut done) = (0, 0);
        for (from, to) in self.standing() {
            let first = ((from - self.from_seq) / self.chunk).max(done);
            let behind = (to - self.from_seq) / self.chunk + 1;
            count += behind.saturating_sub(first);
            done = done.max(behind);
        }
        count as usize
    }
}

/// What an entry is to the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// One like any other.
    Plain,
    /// A manifest: covered, and no reason for another one.
    Manifest,
    /// A loss.
    Gap(Loss),
    /// One that stands for many.
    Aggregate,
}

/// A manifest while its entries come in.
#[derive(Clone)]
pub struct Draft {
    from: u64,
    next: u64,
    count: u64,
    is_worth_it: bool,
    absent: Vec<(u64, u64)>,
    gaps: Vec<Loss>,
    thinned: Vec<(u64, u64, Chunk)>,
    /// Whether the last entry was an aggregate, whose run the next one continues.
    is_thin: bool,
    chunk: Option<(u64, Chunk)>,
    digests: String,
}

impl Draft {
    /// Begins behind everything before `from`.
    pub fn new(from: u64) -> Self {
        Self {
            from,
            next: from,
            count: 0,
            is_worth_it: false,
            absent: Vec::new(),
            gaps: Vec::new(),
            thinned: Vec::new(),
            is_thin: false,
            chunk: None,
            digests: String::new(),
        }
    }

    /// The place behind the last one that was added.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// Whether there is something to sign: manifests alone are no reason for a further one.
    pub fn is_worth_it(&self) -> bool {
        self.is_worth_it
    }

    /// Whether it has to be signed before more is added, so that a manifest stays a message of moderate size.
    pub fn is_full(&self) -> bool {
        let is_done = |(index, _): &(u64, Chunk)| self.next - self.from >= (index + 1) * CHUNK;
        self.digests.len() / 16 + usize::from(self.chunk.as_ref().is_some_and(is_done)) >= MAX_CHUNKS
            || self.absent.len() + self.gaps.len() + self.thinned.len() >= MAX_RANGES
    }

    /// The next entry; places that were skipped held none.
    pub fn add(&mut self, seq: u64, line: &LineDigest, kind: Kind) {
        if seq < self.next {
            return;
        }
        self.is_worth_it |= kind != Kind::Manifest;
        self.count += 1;
        let hole = (seq > self.next).then_some((self.next, seq - 1));
        self.next = seq + 1;
        if kind == Kind::Aggregate {
            match self.thinned.last_mut().filter(|_| self.is_thin) {
                Some((_, to, chunk)) => {
                    *to = seq;
                    chunk.add(line);
                }
                None => {
                    let mut chunk = Chunk::new();
                    chunk.add(line);
                    self.thinned.push((hole.map_or(seq, |hole| hole.0), seq, chunk));
                }
            }
            self.is_thin = true;
            return;
        }
        self.is_thin = false;
        self.absent.extend(hole);
        if let Kind::Gap(loss) = kind {
            self.gaps.push(loss);
        }
        let index = (seq - self.from) / CHUNK;
        match &mut self.chunk {
            Some((current, chunk)) if *current == index => chunk.add(line),
            open => {
                let mut chunk = Chunk::new();
                chunk.add(line);
                if let Some((_, full)) = open.replace((index, chunk)) {
                    self.digests.push_str(&full.finish());
                }
            }
        }
    }

    /// The recorded ranges that were thinned after an earlier manifest had covered them: their places below `from`.
    pub fn thinned_before(&self) -> Vec<(u64, u64)> {
        let thinned = self.gaps.iter().filter(|loss| loss.reason == THINNED);
        let ranges = thinned.filter_map(|loss| loss.from.zip(loss.to));
        ranges.filter(|(from, _)| *from < self.from).map(|(from, to)| (from, to.min(self.from - 1))).collect()
    }

    /// The manifest of what was added; `restated` is what stands now in [`Draft::thinned_before`].
    pub fn finish(self, header: Header<'_>, restated: Vec<Thinned>) -> Manifest {
        let mut digests = self.digests;
        if let Some((_, chunk)) = self.chunk {
            digests.push_str(&chunk.finish());
        }
        let within = self.thinned.into_iter().map(|(from, to, chunk)| Thinned {
            from,
            to,
            kept: chunk.lines,
            digest: chunk.finish(),
        });
        Manifest {
            format: FORMAT,
            gateway: header.gateway.to_owned(),
            epoch: header.epoch.to_owned(),
            number: header.number,
            from_seq: self.from,
            to_seq: self.next - 1,
            count: self.count,
            absent: self.absent,
            gaps: self.gaps,
            thinned: restated.into_iter().chain(within).collect(),
            chunk: CHUNK,
            digests,
            previous: header.previous.map(str::to_owned),
            key: header.key.to_owned(),
        }
    }
}

/// What a manifest says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    /// The gateway's name.
    pub gateway: &'a str,
    /// The store's epoch.
    pub epoch: &'a str,
    /// Its number.
    pub number: u64,
    /// The hash of the one before.
    pub previous: Option<&'a str>,
    /// The public key.
    pub key: &'a str,
}

/// The name of a manifest's record, behind `tidegate/<gateway>/`.
pub const NAME: &str = "manifest";
/// The reason of a loss whose entries were replaced by aggregates.
pub const THINNED: &str = "thinned";
/// This format.
const FORMAT: u32 = 1;
/// Places per chunk: an altered entry is found among so many.
const CHUNK: u64 = 100;
const MAX_CHUNK: u64 = 100_000;
/// Chunks per manifest: 16 kB of digests.
const MAX_CHUNKS: usize = 1000;
/// Ranges per manifest.
const MAX_RANGES: usize = 500;
/// 2⁵³: what JSON readers hold exactly.
const MAX_SEQ: u64 = 1 << 53;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header<'static> {
        Header { gateway: "barn", epoch: "0000000000002a", number: 1, previous: None, key: "" }
    }

    fn drafted(entries: &[(u64, Kind)], from: u64) -> Manifest {
        let mut draft = Draft::new(from);
        for (seq, kind) in entries {
            draft.add(*seq, &[*seq as u8; 16], kind.clone());
        }
        draft.finish(Header { key: &"0".repeat(64), ..header() }, Vec::new())
    }

    #[test]
    fn places_that_held_nothing_are_absent_and_aggregates_have_a_digest_of_their_own() {
        let entries: Vec<(u64, Kind)> = [(5, Kind::Plain), (6, Kind::Plain), (9, Kind::Plain)]
            .into_iter()
            .chain([
                (60, Kind::Aggregate),
                (61, Kind::Aggregate),
                (62, Kind::Plain),
                (1_000_000, Kind::Plain),
            ])
            .collect();
        let manifest = drafted(&entries, 5);
        assert_eq!((manifest.from_seq, manifest.to_seq, manifest.count), (5, 1_000_000, 7));
        assert_eq!(manifest.absent, [(7, 8), (63, 999_999)]);
        let thinned = &manifest.thinned[0];
        assert_eq!((thinned.from, thinned.to, thinned.kept), (10, 61, 2));
        assert_eq!(manifest.standing(), [(5, 6), (9, 9), (62, 62), (1_000_000, 1_000_000)]);
        let chunks = manifest.chunks(&manifest.standing());
        assert_eq!(
            chunks.iter().map(|chunk| (chunk.0, chunk.1)).collect::<Vec<_>>(),
            [(5, 104), (999_905, 1_000_000)]
        );
        assert_eq!(manifest.check(), Ok(()));
    }

    #[test]
    fn only_what_came_from_the_key_is_signed_by_it() {
        let state = tempfile::TempDir::new().unwrap();
        let key = Key::load_or_make(state.path()).unwrap();
        let manifest = Draft::new(1).finish(Header { key: key.public(), ..header() }, Vec::new());
        let mut signed = Signed::new(&Manifest { to_seq: 1, absent: vec![(1, 1)], ..manifest }, &key);
        let (read, _) = Signed::parse(&signed.to_json()).unwrap();
        assert!(read.is_signed_by(key.public()));
        signed.manifest = signed.manifest.replace("barn", "bern");
        assert!(!signed.is_signed_by(key.public()) && !signed.is_signed_by("00") && !signed.is_signed_by(""));
    }

    #[test]
    fn nonsense_is_refused_with_its_reason() {
        let good = drafted(&[(1, Kind::Plain), (2, Kind::Plain)], 1);
        assert_eq!(good.check(), Ok(()));
        for bad in [
            Manifest { format: 2, ..good.clone() },
            Manifest { to_seq: u64::MAX, ..good.clone() },
            Manifest { to_seq: MAX_SEQ - 1, ..good.clone() },
            Manifest { chunk: 0, ..good.clone() },
            Manifest { absent: vec![(2, 1)], ..good.clone() },
            Manifest { absent: vec![(1, 1), (1, 2)], ..good.clone() },
            Manifest { digests: String::new(), ..good.clone() },
            Manifest { digests: "é".repeat(8), ..good.clone() },
            Manifest { key: "00".into(), ..good.clone() },
            Manifest {
                thinned: vec![Thinned { from: 9, to: 3, kept: 1, digest: "0".repeat(16) }],
                ..good.clone()
            },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        assert!(Signed::parse("{}").is_err() && Signed::parse("[").is_err());
    }

    proptest! {
        #[test]
        fn every_draft_makes_a_manifest_that_checks_and_covers_each_standing_entry_once(
            steps in proptest::collection::vec((1u64..250, 0u8..4), 1..400), from in 1u64..1000
        ) {
            let mut seq = from - 1;
            let entries: Vec<(u64, Kind)> = steps.iter().map(|(step, kind)| {
                seq += if *step < 200 { 1 } else { *step };
                (seq, if *kind == 0 { Kind::Aggregate } else { Kind::Plain })
            }).collect();
            let manifest = drafted(&entries, from);
            prop_assert_eq!(manifest.check(), Ok(()));
            let standing = manifest.standing();
            for (seq, kind) in &entries {
                let stands = standing.iter().filter(|(from, to)| (from..=to).contains(&seq)).count();
                prop_assert_eq!(stands, usize::from(*kind == Kind::Plain));
                let chunks = manifest.chunks(&standing);
                let chunked = chunks.iter().filter(|(from, to, _)| (from..=to).contains(&seq)).count();
                prop_assert!(chunked == 1 || *kind == Kind::Aggregate);
            }
        }
    }
}
