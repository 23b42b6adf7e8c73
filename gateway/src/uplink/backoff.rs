//! How long to wait before the next try: decorrelated jitter, so that many gateways do not come back together.

use std::time::Duration;

/// Waits that grow from half a second to the longest, each drawn between the shortest and three times the last.
#[derive(Debug)]
pub struct Backoff {
    last: Duration,
    tries: u32,
    longest: Duration,
    random: u64,
}

impl Backoff {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64, longest: Duration) -> Self {
        Self { last: SHORTEST, tries: 0, longest, random: seed | 1 }
    }

    /// Whether no wait has been drawn since the last success.
    pub fn is_fresh(&self) -> bool {
        self.tries == 0
    }

    /// It worked: begin with a short wait again.
    pub fn reset(&mut self) {
        self.last = SHORTEST;
        self.tries = 0;
    }

    /// The next wait.
    pub fn next(&mut self) -> Duration {
        // xorshift64*: the waits need to differ, not to be secret.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let unit = (self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64;
        let shortest = SHORTEST.min(self.longest);
        let upper = (self.last * 3).min(self.longest);
        self.last = shortest + (upper.saturating_sub(shortest)).mul_f64(unit);
        self.tries = self.tries.saturating_add(1);
        self.last
    }
}

const SHORTEST: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(60);

    #[test]
    fn waits_stay_within_bounds_grow_and_begin_short_after_success() {
        for seed in 0..100 {
            let mut backoff = Backoff::new(seed, LONGEST);
            let waits: Vec<Duration> = (0..50).map(|_| backoff.next()).collect();
            assert!(waits.iter().all(|wait| (SHORTEST..=LONGEST).contains(wait)));
            assert!(waits[0] <= SHORTEST * 3);
            assert!(waits.iter().max() > Some(&Duration::from_secs(10)), "seed {seed}");
            backoff.reset();
            assert!(backoff.next() <= SHORTEST * 3);
        }
    }

    #[test]
    fn two_gateways_do_not_wait_alike() {
        let (mut one, mut other) = (Backoff::new(1, LONGEST), Backoff::new(2, LONGEST));
        assert!((0..10).any(|_| one.next() != other.next()));
    }
}
