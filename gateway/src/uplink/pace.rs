//! How much may go out: a rate in bytes per second, and a budget of bytes per calendar month. Pure: it is given `now`.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A token bucket and a month's account.
#[derive(Debug)]
pub struct Pace {
    /// Bytes per second.
    rate: Option<u64>,
    /// May be below zero: an alarm goes out at once and is paid for afterwards.
    tokens: f64,
    filled: Instant,
    budget: Option<u64>,
    account: Account,
}

/// What was sent in which month; kept over restarts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Months since year 0, UTC.
    pub month: i32,
    /// Bytes sent in it.
    pub bytes: u64,
}

/// Whether telemetry may go out now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Go,
    /// Not before that time has passed.
    Wait(Duration),
    /// Not this month any more.
    Exhausted,
}

impl Pace {
    /// A full bucket of one second's worth, and the account as it was kept.
    pub fn new(rate: Option<u64>, budget: Option<u64>, account: Account, now: Instant) -> Self {
        let tokens = rate.map_or(0.0, depth);
        Self { rate, tokens, filled: now, budget, account }
    }

    /// Whether telemetry may go out at `now`, in `month`. Alarms go out without asking.
    pub fn verdict(&mut self, now: Instant, month: i32) -> Verdict {
        self.turn(month);
        if self.budget.is_some_and(|budget| self.account.bytes >= budget / 100 * TELEMETRY_PERCENT) {
            return Verdict::Exhausted;
        }
        let Some(rate) = self.rate else { return Verdict::Go };
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * rate as f64).min(depth(rate));
        self.filled = now;
        if self.tokens > 0.0 {
            return Verdict::Go;
        }
        Verdict::Wait(Duration::from_secs_f64((1.0 - self.tokens) / rate.max(1) as f64).min(LONGEST_WAIT))
    }

    /// Bytes went out.
    pub fn spend(&mut self, bytes: u64, month: i32) {
        self.turn(month);
        self.account.bytes += bytes;
        self.tokens -= bytes as f64;
    }

    /// What is to be kept.
    pub fn account(&self) -> Account {
        self.account
    }

    /// The month's budget.
    pub fn budget(&self) -> Option<u64> {
        self.budget
    }

    /// A later month begins at nothing. An earlier one is a clock that was set back: the account stays.
    fn turn(&mut self, month: i32) {
        if month > self.account.month {
            self.account = Account { month, bytes: 0 };
        }
    }
}

/// A bucket holds a second's worth, and always a few packets.
fn depth(rate: u64) -> f64 {
    rate.max(16 * 1024) as f64
}

/// The rest of the budget is kept for alarms.
const TELEMETRY_PERCENT: u64 = 95;
const LONGEST_WAIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_time_no_more_goes_out_than_the_rate_and_one_bucket() {
        let start = Instant::now();
        let mut pace = Pace::new(Some(100_000), None, Account::default(), start);
        let (mut now, mut sent) = (start, 0);
        while now < start + Duration::from_secs(60) {
            match pace.verdict(now, 1) {
                Verdict::Go => {
                    pace.spend(1_500, 1);
                    sent += 1_500;
                }
                Verdict::Wait(wait) => now += wait,
                Verdict::Exhausted => panic!("there is no budget"),
            }
        }
        assert!((5_900_000..=6_110_000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_spent_budget_leaves_room_for_alarms_until_the_next_month() {
        let now = Instant::now();
        let mut pace = Pace::new(None, Some(1_000_000), Account { month: 7, bytes: 949_000 }, now);
        assert_eq!(pace.verdict(now, 7), Verdict::Go);
        pace.spend(2_000, 7);
        assert_eq!(pace.verdict(now, 7), Verdict::Exhausted);
        assert_eq!(pace.verdict(now, 6), Verdict::Exhausted, "a clock that was set back opens nothing");
        assert_eq!(pace.verdict(now, 8), Verdict::Go);
        assert_eq!(pace.account(), Account { month: 8, bytes: 0 });
    }
}
