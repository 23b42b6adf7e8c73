//! What a consumer stored against what the gateway signed: complete, missing, duplicated, altered. Pure; entries come
//! in any order, and each costs 24 bytes until the end.

use std::collections::BTreeMap;

use super::line::{Chunk, LineDigest};
use super::manifest::{Loss, Manifest, Signed, THINNED};

/// One record that a consumer stored, as far as the ledger needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Received<'a> {
    /// The gateway's name.
    pub gateway: &'a str,
    /// The store's epoch, as it came.
    pub epoch: &'a str,
    /// The place in the log.
    pub seq: u64,
    /// The digest of its canonical line.
    pub line: LineDigest,
    /// The text of a manifest, if it is one.
    pub manifest: Option<&'a str>,
}

/// Everything that a consumer stored.
#[derive(Default)]
pub struct Book {
    epochs: BTreeMap<(String, String), Epoch>,
    entries: u64,
    manifest_bytes: usize,
}

/// Why nothing more is taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The entries' own bound.
    #[error(
        "more than {MAX_ENTRIES} entries: verify them in several parts, each from one manifest's range to another's"
    )]
    Entries,
    /// Of different gateways and epochs.
    #[error("more than {MAX_EPOCHS} gateways and epochs")]
    Epochs,
    /// Of manifests.
    #[error("more than {} MB of manifests", MAX_MANIFEST_BYTES >> 20)]
    Manifests,
}

#[derive(Default)]
struct Epoch {
    entries: Vec<(u64, LineDigest)>,
    manifests: Vec<(Signed, Manifest)>,
    bad: Vec<String>,
}

/// What is to be said of one gateway's epoch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings {
    /// The gateway's name.
    pub gateway: String,
    /// The store's epoch.
    pub epoch: String,
    /// Different entries received.
    pub entries: u64,
    /// Manifests that hold.
    pub manifests: u64,
    /// The key that they are signed with.
    pub key: Option<String>,
    /// From the first to the last place that a manifest covers.
    pub covered: Option<(u64, u64)>,
    /// Places whose entry was not received and whose loss nobody recorded.
    pub missing: Vec<(u64, u64)>,
    /// How many entries `missing` stands for: thinned ranges count what they kept.
    pub missing_count: u64,
    /// Losses that the gateway recorded and that this consumer has not received all the same.
    pub lost: Vec<Loss>,
    /// Places whose entry came more than once with the same content.
    pub duplicated: Vec<(u64, u64)>,
    /// How many times more.
    pub repeats: u64,
    /// Places among which at least one entry is not what was signed, or came with different contents.
    pub altered: Vec<(u64, u64)>,
    /// Places at which the gateway says that no entry was.
    pub invented: Vec<(u64, u64)>,
    /// Received, covered, and without a digest that could be compared: beside missing ones, or recorded as lost.
    pub unproven: Vec<(u64, u64)>,
    /// Received and covered by no manifest yet.
    pub uncovered: Vec<(u64, u64)>,
    /// Where the chain of manifests is broken.
    pub chain: Vec<String>,
    /// Manifests that were not taken, and why.
    pub signatures: Vec<String>,
}

/// In one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// All that was signed is here as it was signed.
    Complete,
    /// All that the gateway had; it recorded losses of its own.
    Losses,
    /// Something is missing, altered, invented or not to be verified.
    Incomplete,
}

impl Book {
    /// Takes a record in.
    ///
    /// # Errors
    /// [`Full`]; the record was not taken.
    pub fn add(&mut self, received: &Received<'_>) -> Result<(), Full> {
        if self.entries == MAX_ENTRIES {
            return Err(Full::Entries);
        }
        let epoch = self.epoch(received.gateway, received.epoch)?;
        epoch.entries.push((received.seq, received.line));
        self.entries += 1;
        let Some(text) = received.manifest else { return Ok(()) };
        self.manifest_bytes += text.len();
        if self.manifest_bytes > MAX_MANIFEST_BYTES {
            return Err(Full::Manifests);
        }
        let at = received.seq;
        match Signed::parse(text) {
            Ok((_, manifest)) if manifest.gateway != received.gateway => {
                let what = format!("the manifest at {at} is another gateway's");
                self.epoch(received.gateway, received.epoch)?.bad.push(what);
            }
            // A manifest that was still made for the old store is an entry of the new one.
            Ok((signed, manifest)) => {
                self.epoch(received.gateway, &manifest.epoch)?.manifests.push((signed, manifest));
            }
            Err(error) => {
                let what = format!("the manifest at {at} cannot be read: {error}");
                self.epoch(received.gateway, received.epoch)?.bad.push(what);
            }
        }
        Ok(())
    }

    /// What is to be said, by gateway and epoch. With `key` (64 hex digits) only what it signed counts.
    pub fn findings(self, key: Option<&str>) -> Vec<Findings> {
        self.epochs.into_iter().map(|((gateway, epoch), book)| book.findings(gateway, epoch, key)).collect()
    }

    fn epoch(&mut self, gateway: &str, epoch: &str) -> Result<&mut Epoch, Full> {
        let key = (gateway.to_owned(), epoch.to_owned());
        if self.epochs.len() == MAX_EPOCHS && !self.epochs.contains_key(&key) {
            return Err(Full::Epochs);
        }
        Ok(self.epochs.entry(key).or_default())
    }
}

impl Findings {
    /// In one word.
    pub fn verdict(&self) -> Verdict {
        let is_whole = self.manifests > 0
            && self.missing.is_empty()
            && self.altered.is_empty()
            && self.invented.is_empty()
            && self.chain.is_empty()
            && self.signatures.is_empty();
        match (is_whole, self.lost.is_empty()) {
            (false, _) => Verdict::Incomplete,
            (true, false) => Verdict::Losses,
            (true, true) => Verdict::Complete,
        }
    }
}

impl Epoch {
    fn findings(mut self, gateway: String, epoch: String, pinned: Option<&str>) -> Findings {
        let mut found = Findings { gateway, epoch, signatures: self.bad.clone(), ..Findings::default() };
        let manifests = self.chain(pinned, &mut found);
        // Stable: of two contents at one place the first to come stays first.
        self.entries.sort_by_key(|(seq, _)| *seq);
        let entries = distinct(&self.entries, &mut found);
        found.entries = entries.len() as u64;
        found.manifests = manifests.len() as u64;

        let mut losses: Vec<&Loss> = manifests.iter().flat_map(|manifest| &manifest.gaps).collect();
        losses.sort();
        losses.dedup();
        let ranged = |is_wanted: &dyn Fn(&Loss) -> bool| -> Vec<(u64, u64)> {
            let wanted = losses.iter().filter(|loss| is_wanted(loss));
            union(wanted.filter_map(|loss| loss.from.zip(loss.to)).filter(|(from, to)| from <= to).collect())
        };
        let known = ranged(&|_| true);
        let gone = ranged(&|loss| loss.reason != THINNED);
        // What was thinned after it had been covered: there, only what stands now can be compared.
        let restated = manifests.iter().flat_map(|manifest| {
            let before = manifest.thinned.iter().filter(|thinned| thinned.from < manifest.from_seq);
            before.map(|thinned| (thinned.from, thinned.to))
        });
        let restated = union(restated.collect());

        // Ranges that are thinned do not overlap; hostile ones might, over everything, a million times.
        let mut budget = 2 * entries.len() + 1000;
        for manifest in &manifests {
            judge(manifest, &entries, &known, &restated, &mut found);
            for thinned in &manifest.thinned {
                let there = within(&entries, thinned.from, thinned.to);
                let is_gone = overlaps(&gone, thinned.from, thinned.to);
                let have = there.len() as u64;
                budget = budget.saturating_sub(there.len());
                if budget == 0 {
                    found.chain.push(format!("manifest {}: thinned places overlap", manifest.number));
                    break;
                }
                if have == thinned.kept && is_signed(there, &thinned.digest) {
                    continue;
                }
                if is_gone {
                    found.unproven.extend(there.iter().map(|entry| (entry.0, entry.0)));
                } else if have < thinned.kept {
                    found.missing.push((thinned.from, thinned.to));
                    found.missing_count += thinned.kept - have;
                } else {
                    found.altered.push((thinned.from, thinned.to));
                }
            }
        }
        let covered = union(manifests.iter().map(|manifest| (manifest.from_seq, manifest.to_seq)).collect());
        found.covered = covered.first().zip(covered.last()).map(|(first, last)| (first.0, last.1));
        let outside = entries.iter().filter(|entry| !overlaps(&covered, entry.0, entry.0));
        found.uncovered = outside.map(|entry| (entry.0, entry.0)).collect();
        // A recorded loss counts where this consumer has not got the entries by then: another uplink may have.
        for loss in losses {
            let Some((from, to)) = loss.from.zip(loss.to).filter(|(from, to)| from <= to) else {
                found.lost.push(loss.clone());
                continue;
            };
            let have = within(&entries, from, to).len() as u64;
            if have < to - from + 1 {
                let count = if have == 0 { loss.count } else { Some(to - from + 1 - have) };
                found.lost.push(Loss { count, ..loss.clone() });
            }
        }
        for ranges in [
            &mut found.missing,
            &mut found.duplicated,
            &mut found.altered,
            &mut found.invented,
            &mut found.unproven,
            &mut found.uncovered,
        ] {
            *ranges = union(std::mem::take(ranges));
        }
        found
    }

    /// The manifests that hold, in order, one per number; what is wrong with the others and between them.
    fn chain(&mut self, pinned: Option<&str>, found: &mut Findings) -> Vec<Manifest> {
        let mut manifests = std::mem::take(&mut self.manifests);
        // Stable: of two manifests with one number the first to come stays first.
        manifests.sort_by_key(|(_, manifest)| manifest.number);
        let key = pinned.map(str::to_lowercase).or_else(|| {
            let honest = manifests.iter().find(|(signed, manifest)| signed.is_signed_by(&manifest.key));
            honest.map(|(_, manifest)| manifest.key.to_lowercase())
        });
        let mut whole: Vec<(Signed, Manifest)> = Vec::new();
        for (signed, manifest) in manifests {
            let number = manifest.number;
            if whole.last().is_some_and(|(last, _)| *last == signed) {
                continue;
            }
            if !signed.is_signed_by(&manifest.key) {
                found.signatures.push(format!("manifest {number}: the signature is not good"));
            } else if Some(manifest.key.to_lowercase()) != key {
                found
                    .signatures
                    .push(format!("manifest {number}: signed with another key, {}", manifest.key));
            } else if whole.last().is_some_and(|(_, last)| last.number == number) {
                found.chain.push(format!("manifest {number} is there twice, and they differ"));
            } else if let Some((_, last)) = whole.last().filter(|(_, last)| manifest.from_seq <= last.to_seq)
            {
                // What overlaps is not taken: each place is judged once.
                found.chain.push(format!("manifest {number} begins before {} ended", last.number));
            } else {
                whole.push((signed, manifest));
            }
        }
        found.key = key.filter(|_| !whole.is_empty());
        let not_there = |from: u64, to: u64| match to - from {
            0 => format!("manifest {from} is not there"),
            _ => format!("manifests {from} to {to} are not there"),
        };
        if let Some((_, first)) = whole.first()
            && first.number > 1
        {
            found.chain.push(not_there(1, first.number - 1));
        }
        for pair in whole.windows(2) {
            let ((before, last), (_, next)) = (&pair[0], &pair[1]);
            if next.number > last.number + 1 {
                found.chain.push(not_there(last.number + 1, next.number - 1));
            } else if next.previous.as_deref() != Some(&*before.hash()) {
                found.chain.push(format!(
                    "manifest {} does not name {} as the one before",
                    next.number, last.number
                ));
            } else if next.from_seq > last.to_seq + 1 {
                found
                    .chain
                    .push(format!("manifest {} does not begin where {} ended", next.number, last.number));
            }
        }
        if whole.is_empty() {
            found.chain.push("no manifest is there: nothing to compare with".into());
        }
        whole.into_iter().map(|(_, manifest)| manifest).collect()
    }
}

/// Compares what one manifest says, place by place and chunk by chunk.
fn judge(
    manifest: &Manifest,
    entries: &[Entry],
    known: &[(u64, u64)],
    restated: &[(u64, u64)],
    found: &mut Findings,
) {
    let standing = manifest.standing();
    for (from, to) in &standing {
        let mut next = *from;
        let mut absent = |from: u64, to: u64| {
            for (from, to) in subtract((from, to), known) {
                found.missing.push((from, to));
                found.missing_count += to - from + 1;
            }
        };
        for entry in within(entries, *from, *to) {
            if entry.0 > next {
                absent(next, entry.0 - 1);
            }
            next = entry.0 + 1;
        }
        if next <= *to {
            absent(next, *to);
        }
    }
    for (from, to, digest) in manifest.chunks(&standing) {
        if overlaps(restated, from, to) {
            let there =
                within(entries, from, to).iter().filter(|entry| !overlaps(restated, entry.0, entry.0));
            found.unproven.extend(there.map(|entry| (entry.0, entry.0)));
            continue;
        }
        // The runs of the chunk: one, but for holes.
        let first = standing.partition_point(|run| run.1 < from);
        let runs = standing[first..].iter().take_while(|run| run.0 <= to);
        let (mut wanted, mut there) = (0, Vec::new());
        for run in runs {
            let (from, to) = (run.0.max(from), run.1.min(to));
            wanted += to - from + 1;
            there.extend_from_slice(within(entries, from, to));
        }
        if there.len() as u64 != wanted {
            found.unproven.extend(there.iter().map(|entry| (entry.0, entry.0)));
        } else if !is_signed(&there, digest) {
            found.altered.push((from, to));
        }
    }
    for (from, to) in &manifest.absent {
        for entry in within(entries, *from, *to) {
            let place = (entry.0, entry.0);
            let list =
                if overlaps(known, entry.0, entry.0) { &mut found.unproven } else { &mut found.invented };
            list.push(place);
        }
    }
}

/// A place with the content that came first and the one that came last.
type Entry = (u64, LineDigest, LineDigest);

/// Whether the first or the last contents to come have this digest.
fn is_signed(entries: &[Entry], digest: &str) -> bool {
    let of = |pick: fn(&Entry) -> &LineDigest| {
        let mut chunk = Chunk::new();
        for entry in entries {
            chunk.add(pick(entry));
        }
        chunk.finish()
    };
    let is_same = |other: String| other.eq_ignore_ascii_case(digest);
    is_same(of(|entry| &entry.1)) || is_same(of(|entry| &entry.2))
}

/// One entry per place of what is sorted; the others are repeats, or differ.
fn distinct(sorted: &[(u64, LineDigest)], found: &mut Findings) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::with_capacity(sorted.len());
    for (seq, line) in sorted {
        match entries.last_mut().filter(|last| last.0 == *seq) {
            None => entries.push((*seq, *line, *line)),
            Some(last) if last.1 == *line || last.2 == *line => {
                found.repeats += 1;
                push(&mut found.duplicated, *seq);
            }
            Some(last) => {
                last.2 = *line;
                push(&mut found.altered, *seq);
            }
        }
    }
    entries
}

/// Adds a place to ranges whose last one it may continue.
fn push(ranges: &mut Vec<(u64, u64)>, seq: u64) {
    match ranges.last_mut() {
        Some((_, to)) if *to == seq || *to + 1 == seq => *to = seq,
        _ => ranges.push((seq, seq)),
    }
}

/// The entries from one place to another.
fn within(entries: &[Entry], from: u64, to: u64) -> &[Entry] {
    let first = entries.partition_point(|entry| entry.0 < from);
    let behind = entries.partition_point(|entry| entry.0 <= to);
    &entries[first..behind.max(first)]
}

/// Ranges in order, those that touch made one.
fn union(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (from, to) in ranges {
        match joined.last_mut() {
            Some((_, last)) if from <= last.saturating_add(1) => *last = to.max(*last),
            _ => joined.push((from, to)),
        }
    }
    joined
}

/// Whether any of the ranges, which are in order and do not touch, holds a place from `from` to `to`.
fn overlaps(ranges: &[(u64, u64)], from: u64, to: u64) -> bool {
    ranges.get(ranges.partition_point(|range| range.1 < from)).is_some_and(|range| range.0 <= to)
}

/// What of a range is in none of the others, which are in order.
fn subtract((from, to): (u64, u64), others: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut left = Vec::new();
    let mut next = from;
    for other in &others[others.partition_point(|range| range.1 < from)..] {
        if other.0 > to {
            break;
        }
        if other.0 > next {
            left.push((next, other.0 - 1));
        }
        next = other.1.saturating_add(1);
    }
    if next <= to {
        left.push((next, to));
    }
    left
}

/// 24 bytes each while they come, 40 more while they are judged.
const MAX_ENTRIES: u64 = 10_000_000;
const MAX_EPOCHS: usize = 10_000;
const MAX_MANIFEST_BYTES: usize = 64 << 20;

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
