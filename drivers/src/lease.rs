//! How long an output may stay out of its safe state without being told so again. Pure: `now` is given.
//!
//! Whoever commands a pump may crash, lose the network or be switched off. With a lease the output does not depend on
//! anybody's goodbye: each command holds for one period, and without another one the output goes back by itself.

use std::time::Duration;

/// Time that runs out unless it is granted again.
#[derive(Debug, Clone)]
pub struct Lease {
    period: Duration,
    until_ns: Option<u64>,
}

impl Lease {
    /// Nothing is granted yet.
    pub fn new(period: Duration) -> Self {
        Self { period, until_ns: None }
    }

    /// How long one grant holds.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// Grants one period from `now_ns` on; what was left of an earlier grant does not add up.
    pub fn grant(&mut self, now_ns: u64) {
        self.until_ns = Some(now_ns.saturating_add(self.period.as_nanos() as u64));
    }

    /// The output is in its safe state: nothing runs out any more.
    pub fn end(&mut self) {
        self.until_ns = None;
    }

    /// It has run out and the output could not be set: it is to be tried again shortly.
    pub fn try_again(&mut self, now_ns: u64) {
        self.until_ns = Some(now_ns.saturating_add(TRY_AGAIN.as_nanos() as u64));
    }

    /// When something is to be done, if anything.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.until_ns
    }

    /// Whether it has run out.
    pub fn has_lapsed(&self, now_ns: u64) -> bool {
        self.until_ns.is_some_and(|until_ns| now_ns >= until_ns)
    }
}

/// A line that could not be set is tried so often: it is not where it should be.
const TRY_AGAIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_grant_holds_for_one_period_and_a_later_one_replaces_it() {
        let mut lease = Lease::new(Duration::from_secs(30));
        assert!(!lease.has_lapsed(u64::MAX), "nothing was granted");
        lease.grant(100 * S);
        assert_eq!(lease.deadline_ns(), Some(130 * S));
        assert!(!lease.has_lapsed(130 * S - 1) && lease.has_lapsed(130 * S));
        lease.grant(129 * S);
        assert!(!lease.has_lapsed(158 * S) && lease.has_lapsed(159 * S), "grants do not add up");
        lease.try_again(160 * S);
        assert!(!lease.has_lapsed(160 * S) && lease.has_lapsed(161 * S));
        lease.end();
        assert_eq!((lease.deadline_ns(), lease.has_lapsed(u64::MAX)), (None, false));
    }

    #[test]
    fn a_grant_near_the_end_of_time_does_not_wrap() {
        let mut lease = Lease::new(Duration::MAX);
        lease.grant(u64::MAX - 1);
        assert!(!lease.has_lapsed(u64::MAX - 1));
    }
}
