//! The spool in numbers, for people.

use std::time::Duration;

use super::entry::Gap;
use super::store::Store;

/// How the spool stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// A random number made with the file: tells two stores of one gateway apart.
    pub epoch: u64,
    /// The oldest place still there; 0 when empty.
    pub first_seq: u64,
    /// The newest place; 0 when empty.
    pub last_seq: u64,
    /// Bytes of the database in use.
    pub bytes: u64,
    /// The limit.
    pub max_bytes: u64,
    /// When the oldest entry was measured, in nanoseconds since 1970.
    pub oldest_unix_ns: Option<i64>,
    /// Losses, newest last; at most [`MAX_GAPS`].
    pub gaps: Vec<(i64, Gap)>,
    /// Commits since start.
    pub commits: u64,
    /// Entries appended since start.
    pub appended: u64,
    /// Why writing fails at the moment.
    pub refusing: Option<String>,
    /// The class alarm's bytes, about.
    pub alarm_bytes: u64,
    /// How long telemetry waits for its commit at the moment: what a power cut would cost.
    pub interval: Duration,
    /// Bytes that may be written a day.
    pub wear_budget: u64,
    /// Bytes that the spool has written today (UTC), over restarts.
    pub written_today: u64,
    /// What a commit costs, a moving mean.
    pub bytes_per_commit: u64,
    /// Whether the budget is used up although commits are as rare as they may be.
    pub is_over_budget: bool,
}

impl Store {
    pub(super) fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        self.show(&mut stats, self.bytes().ok());
        stats
    }

    /// Brings `stats` up to date; the size only where the caller looked it up.
    pub(super) fn show(&self, stats: &mut Stats, bytes: Option<u64>) {
        stats.epoch = self.epoch;
        stats.first_seq = self.first_seq().0.min(self.last.0);
        stats.last_seq = self.last.0;
        stats.bytes = bytes.unwrap_or(stats.bytes);
        stats.max_bytes = self.options.max_size;
        stats.oldest_unix_ns = self.partitions.first().map(|first| first.oldest_ns).filter(|ns| *ns > 0);
        stats.alarm_bytes = self.alarms.weight;
        stats.commits = self.commits;
        stats.appended = self.appended;
        if stats.gaps != self.gaps {
            stats.gaps.clone_from(&self.gaps);
        }
    }
}
