//! How far an uplink is: one place per class, and the stretches of telemetry that its backfill lane still has to send.

use std::ops::RangeInclusive;

use super::Seq;

/// Telemetry behind `acked` up to and with `until` that was left behind and is still to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hole {
    /// The last place of it that is confirmed, or the place before it.
    pub acked: Seq,
    /// Its last place.
    pub until: Seq,
}

/// What an uplink's peer has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Every entry of class alarm up to here is confirmed.
    pub alarm: Seq,
    /// All telemetry up to here is confirmed, but for what is in `holes`.
    pub live: Seq,
    /// Telemetry that the backfill lane has still to send, in order, not overlapping, all of it up to `live`.
    pub holes: Vec<Hole>,
}

impl Progress {
    /// Everything up to `seq` is confirmed, nothing behind it.
    #[must_use]
    pub fn at(seq: Seq) -> Self {
        Self { alarm: seq, live: seq, holes: Vec::new() }
    }

    /// The parts of `first..=last` whose telemetry is not confirmed yet.
    pub(super) fn missing(&self, first: Seq, last: Seq) -> Vec<RangeInclusive<u64>> {
        let behind = Hole { acked: self.live, until: Seq(u64::MAX) };
        let stretches = self.holes.iter().chain(std::iter::once(&behind));
        stretches
            .map(|hole| hole.acked.next().max(first).0..=hole.until.min(last).0)
            .filter(|range| !range.is_empty())
            .collect()
    }

    /// Whether all telemetry of `first..=last` is confirmed.
    #[cfg(test)]
    pub(super) fn has(&self, first: Seq, last: Seq) -> bool {
        self.missing(first, last).is_empty()
    }

    /// `[[acked, until], …]`
    pub(super) fn holes_json(&self) -> String {
        let holes: Vec<[u64; 2]> = self.holes.iter().map(|hole| [hole.acked.0, hole.until.0]).collect();
        serde_json::to_string(&holes).unwrap_or_default()
    }

    /// The inverse of [`Progress::holes_json`]; `None` for what it never writes.
    pub(super) fn parse_holes(json: &str) -> Option<Vec<Hole>> {
        let holes: Vec<[u64; 2]> = serde_json::from_str(json).ok()?;
        // The database's own numbers end there.
        if holes.iter().flatten().any(|place| *place > i64::MAX as u64) {
            return None;
        }
        Some(holes.into_iter().map(|[acked, until]| Hole { acked: Seq(acked), until: Seq(until) }).collect())
    }
}

/// Ranges of places, in order and without overlaps.
pub(super) fn merged(mut ranges: Vec<RangeInclusive<u64>>) -> Vec<RangeInclusive<u64>> {
    ranges.sort_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_behind_the_live_place_and_in_the_holes() {
        let hole = |acked, until| Hole { acked: Seq(acked), until: Seq(until) };
        let progress = Progress { alarm: Seq(0), live: Seq(100), holes: vec![hole(10, 20), hole(40, 50)] };
        assert!(
            progress.has(Seq(1), Seq(10))
                && progress.has(Seq(21), Seq(40))
                && !progress.has(Seq(20), Seq(20))
        );
        assert_eq!(progress.missing(Seq(15), Seq(45)), [15..=20, 41..=45]);
        assert_eq!(progress.missing(Seq(90), Seq(110)), [101..=110]);
        assert_eq!(Progress::parse_holes(&progress.holes_json()), Some(progress.holes));
    }

    #[test]
    fn holes_on_disk_survive_mutated_input() {
        let corpus = [&b"[]"[..], b"[[10,20],[40,50]]", b"[[0,9223372036854775807]]"].map(<[u8]>::to_vec);
        crate::fuzz::mutated("spool-holes", corpus.into(), |input| {
            let holes = std::str::from_utf8(input).ok().and_then(Progress::parse_holes);
            let Some(holes) = holes else { return };
            let progress = Progress { alarm: Seq(0), live: Seq(100), holes };
            let _ = progress.missing(Seq(1), Seq(1000));
            assert_eq!(Progress::parse_holes(&progress.holes_json()), Some(progress.holes));
        });
    }

    #[test]
    fn ranges_that_touch_become_one() {
        assert_eq!(merged(vec![5..=9, 1..=2, 3..=4, 20..=30, 8..=12]), [1..=12, 20..=30]);
    }
}
