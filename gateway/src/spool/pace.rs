//! How long telemetry may wait for its commit. Pure: times and bytes come in, an interval goes out.
//!
//! A commit costs about the same whether it holds one reading or fifty, and a card lives as long as little is written
//! to it. So commits are made as seldom as the day's budget asks for, never less often than `rpo` allows, and as soon
//! as nothing is gained by waiting.

use std::time::Duration;

/// Bytes written and bytes allowed.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    rpo: Duration,
    budget: u64,
    /// What one commit costs, a moving mean.
    per_commit: f64,
    day: i64,
    today: u64,
}

impl Pace {
    /// Begins on `day` (days since 1970) with `today` bytes written already.
    pub(super) fn new(rpo: Duration, budget: u64, day: i64, today: u64) -> Self {
        Self { rpo, budget, per_commit: COMMIT_BYTES, day, today }
    }

    pub(super) fn reconfigure(&mut self, rpo: Duration, budget: u64) {
        (self.rpo, self.budget) = (rpo, budget);
    }

    /// So many commits have written so many bytes, on `day`.
    pub(super) fn wrote(&mut self, day: i64, commits: u64, bytes: u64) {
        if day != self.day {
            (self.day, self.today) = (day, 0);
        }
        self.today += bytes;
        if commits > 0 {
            let weight = (commits as f64 / MEAN_OVER).min(0.5);
            self.per_commit += (bytes as f64 / commits as f64 - self.per_commit) * weight;
        }
    }

    /// How long telemetry waits at the most, with `left` of the day to come.
    pub(super) fn interval(&self, left: Duration) -> Duration {
        let shortest = SHORTEST.min(self.rpo);
        let allowed = self.budget.saturating_sub(self.today) as f64;
        if allowed <= 0.0 {
            return self.rpo;
        }
        let seconds = self.per_commit * left.as_secs_f64() / allowed;
        Duration::try_from_secs_f64(seconds).unwrap_or(self.rpo).clamp(shortest, self.rpo)
    }

    /// Whether more is written than the budget allows although commits are as rare as `rpo` lets them be.
    pub(super) fn is_over_budget(&self) -> bool {
        self.today > self.budget
    }

    pub(super) fn today(&self) -> u64 {
        self.today
    }

    pub(super) fn day(&self) -> i64 {
        self.day
    }

    pub(super) fn per_commit(&self) -> u64 {
        self.per_commit as u64
    }
}

/// About what a day writes at the slowest pace: readings that come so often and so many at a time.
///
/// `sources` are devices: how long between two samples, and how many readings a sample gives.
pub fn daily_bytes(rpo: Duration, sources: &[(Duration, usize)]) -> u64 {
    let per_second = |interval: &Duration| 1.0 / interval.as_secs_f64().max(0.001);
    let samples: f64 = sources.iter().map(|(interval, _)| per_second(interval)).sum();
    let readings: f64 = sources.iter().map(|(interval, count)| per_second(interval) * *count as f64).sum();
    let commits = samples.min(1.0 / rpo.as_secs_f64().max(0.01));
    ((commits * COMMIT_BYTES + readings * READING_BYTES) * DAY.as_secs_f64()) as u64
}

/// What a commit of its own costs before its readings, measured: two pages to the log, one to the file.
const COMMIT_BYTES: f64 = 9_000.0;
/// What each reading adds, measured at a hundred to a commit: its row to the log and to the file.
const READING_BYTES: f64 = 130.0;
/// Waiting less gains nothing that anybody notices, and costs a commit each time.
pub(super) const SHORTEST: Duration = Duration::from_millis(100);
/// Commits that the mean looks back on.
const MEAN_OVER: f64 = 50.0;
pub(super) const DAY: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    const RPO: Duration = Duration::from_secs(1);

    #[test]
    fn commits_are_as_rare_as_the_budget_asks_and_never_rarer_than_rpo() {
        let mut pace = Pace::new(RPO, 100_000_000, 1, 0);
        pace.wrote(1, 100, 1_000_000);
        // 10 kB a commit and 100 MB a day: 10,000 commits, one each 8.6 s, which rpo does not allow.
        assert_eq!(pace.interval(DAY), RPO);
        pace.reconfigure(Duration::from_secs(60), 100_000_000);
        let interval = pace.interval(DAY);
        assert!((7.0..9.0).contains(&interval.as_secs_f64()), "{interval:?}");
        pace.reconfigure(RPO, u64::MAX);
        assert_eq!(pace.interval(DAY), SHORTEST);
        pace.reconfigure(Duration::from_millis(20), u64::MAX);
        assert_eq!(pace.interval(DAY), Duration::from_millis(20));
    }

    #[test]
    fn a_day_that_has_used_up_its_budget_commits_at_rpo_and_a_new_day_begins_anew() {
        let mut pace = Pace::new(RPO, 1_000_000_000, 1, 0);
        pace.wrote(1, 1000, 2_000_000_000);
        assert!(pace.is_over_budget());
        assert_eq!(pace.interval(DAY), RPO);
        pace.wrote(2, 1, 2_000_000);
        assert_eq!((pace.today(), pace.is_over_budget()), (2_000_000, false));
    }

    #[test]
    fn a_day_of_one_sample_a_second_is_known_beforehand() {
        let each_second = [(Duration::from_secs(1), 3)];
        let bytes = daily_bytes(RPO, &each_second);
        assert!((700_000_000..1_000_000_000).contains(&bytes), "{bytes}");
        assert!(daily_bytes(Duration::from_secs(10), &each_second) < bytes / 5);
        // Who is asked once in ten minutes needs no commit a second.
        assert!(daily_bytes(RPO, &[(Duration::from_secs(600), 3)]) < 2_000_000);
    }
}
