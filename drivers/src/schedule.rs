//! When a device is asked, and what becomes of one that does not answer. Pure: `now` is given.

use std::time::Duration;

use crate::error::DeviceError;

/// Absolute deadlines `t_k = t_0 + phase + k * period` on `CLOCK_MONOTONIC`. The phase comes from the device's name,
/// so that many devices of one period spread over it; it never shifts the mean.
#[derive(Debug, Clone)]
pub struct Schedule {
    next_ns: u64,
    period_ns: u64,
    missed: u64,
}

/// How a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It does not answer, or something else does.
    Absent,
    /// It is being identified and made ready.
    Probing,
    /// It answers.
    Online,
    /// It answered lately, and does not now.
    Degraded,
}

/// What is to be done with a device now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Make it ready, then read it.
    Probe,
    /// Read it.
    Sample,
}

/// The life of one device: its state, its schedule, and how long it is left alone after failing.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    state: State,
    schedule: Schedule,
    retry_at_ns: u64,
    backoff: Backoff,
    failures: u32,
}

/// Waits that double from 0.5 s to 60 s, each ±10 %.
#[derive(Debug, Clone)]
pub struct Backoff {
    attempt: u32,
    dice: u64,
}

impl Schedule {
    /// Begins now; the first deadline is within one period.
    pub fn new(name: &str, period: Duration, now_ns: u64) -> Self {
        let period_ns = (period.as_nanos() as u64).max(SHORTEST_NS);
        Self { next_ns: now_ns + hash(name) % period_ns, period_ns, missed: 0 }
    }

    /// The next deadline.
    pub fn next_ns(&self) -> u64 {
        self.next_ns
    }

    /// The deadline was met (or not) at `now_ns`: moves on to the next one in the future. Deadlines that passed
    /// meanwhile are skipped and counted, never caught up with.
    pub fn advance(&mut self, now_ns: u64) {
        let behind = now_ns.saturating_sub(self.next_ns) / self.period_ns;
        self.missed += behind;
        self.next_ns += (behind + 1) * self.period_ns;
    }

    /// Deadlines skipped since the start.
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

impl Lifecycle {
    /// A device that nobody has seen yet. It is due at once: a person who just started the program waits for it.
    pub fn new(name: &str, period: Duration, now_ns: u64) -> Self {
        Self {
            state: State::Probing,
            schedule: Schedule::new(name, period, now_ns),
            retry_at_ns: now_ns,
            backoff: Backoff::new(hash(name)),
            failures: 0,
        }
    }

    /// How it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// When something is to be done.
    pub fn due_ns(&self) -> u64 {
        if self.state == State::Online { self.schedule.next_ns() } else { self.retry_at_ns }
    }

    /// What is to be done at `now_ns`, if anything.
    pub fn due(&self, now_ns: u64) -> Option<Due> {
        (now_ns >= self.due_ns()).then_some(if self.state == State::Online {
            Due::Sample
        } else {
            Due::Probe
        })
    }

    /// It was read. Answers whether its state changed.
    pub fn succeeded(&mut self, now_ns: u64) -> bool {
        if self.schedule.next_ns() <= now_ns {
            self.schedule.advance(now_ns);
        }
        self.backoff.reset();
        self.failures = 0;
        self.turn(State::Online)
    }

    /// It failed, immediate retries included. Answers whether its state changed.
    pub fn failed(&mut self, error: &DeviceError, now_ns: u64) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.retry_at_ns = now_ns + self.backoff.next().as_nanos() as u64;
        let was_online = matches!(self.state, State::Online | State::Degraded);
        let may_recover = error.is_transient() && self.failures < FAILURES_UNTIL_ABSENT;
        self.turn(if was_online && may_recover { State::Degraded } else { State::Absent })
    }

    /// Deadlines skipped since the start.
    pub fn missed(&self) -> u64 {
        self.schedule.missed()
    }

    fn turn(&mut self, state: State) -> bool {
        std::mem::replace(&mut self.state, state) != state
    }
}

impl State {
    /// The word used on every protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Probing => "probing",
            Self::Online => "online",
            Self::Degraded => "degraded",
        }
    }
}

impl Backoff {
    /// Begins at 0.5 s; `seed` decides on the ±10 %.
    pub fn new(seed: u64) -> Self {
        Self { attempt: 0, dice: seed | 1 }
    }

    /// The next wait.
    #[expect(clippy::should_implement_trait, reason = "an endless iterator invites collecting it")]
    pub fn next(&mut self) -> Duration {
        // xorshift64: enough to keep devices from marching in step.
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        let base_ms = (FIRST_WAIT_MS << self.attempt.min(16)).min(LONGEST_WAIT_MS);
        self.attempt = self.attempt.saturating_add(1);
        let spread_ms = base_ms / 5;
        Duration::from_millis(base_ms - base_ms / 10 + self.dice % (spread_ms + 1))
    }

    /// Begins anew.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// A shorter period is no schedule.
const SHORTEST_NS: u64 = 1_000_000;

const FIRST_WAIT_MS: u64 = 500;
const LONGEST_WAIT_MS: u64 = 60_000;

/// So many failures in a row show that a device is gone rather than disturbed.
const FAILURES_UNTIL_ABSENT: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn deadlines_are_absolute_and_missed_ones_are_counted() {
        let mut schedule = Schedule::new("cellar", Duration::from_secs(1), 100 * S);
        let first = schedule.next_ns();
        assert!((100 * S..101 * S).contains(&first));
        schedule.advance(first + 300_000_000);
        assert_eq!((schedule.next_ns(), schedule.missed()), (first + S, 0));
        schedule.advance(first + 5 * S + 1);
        assert_eq!((schedule.next_ns(), schedule.missed()), (first + 6 * S, 4));
    }

    #[test]
    fn many_devices_of_one_period_spread_over_it() {
        let mut tenths = [0; 10];
        for n in 0..1000 {
            let schedule = Schedule::new(&format!("device-{n}"), Duration::from_secs(1), 0);
            tenths[(schedule.next_ns() / 100_000_000) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (60..140).contains(count)), "{tenths:?}");
    }

    #[test]
    fn a_device_that_fails_is_degraded_then_absent_and_asked_ever_less_often() {
        let mut life = Lifecycle::new("cellar", Duration::from_secs(1), 0);
        assert_eq!((life.state(), life.due(0)), (State::Probing, Some(Due::Probe)));
        assert!(life.succeeded(0));
        assert_eq!(life.state(), State::Online);
        let mut now_ns = life.due_ns();
        assert_eq!(life.due(now_ns), Some(Due::Sample));
        let mut waits = Vec::new();
        let mut states = Vec::new();
        for _ in 0..12 {
            if life.failed(&DeviceError::Nack, now_ns) {
                states.push(life.state());
            }
            waits.push((life.due_ns() - now_ns) / 1_000_000);
            now_ns = life.due_ns();
            assert_eq!(life.due(now_ns), Some(Due::Probe));
        }
        assert_eq!(states, [State::Degraded, State::Absent]);
        assert!((450..=550).contains(&waits[0]), "{waits:?}");
        assert!((900..=1100).contains(&waits[1]), "{waits:?}");
        assert!(waits[8..].iter().all(|ms| (54_000..=66_000).contains(ms)), "{waits:?}");
        assert!(life.succeeded(now_ns));
        assert!(life.due_ns() > now_ns && life.due_ns() <= now_ns + S);
    }

    #[test]
    fn another_chip_is_never_the_old_device_disturbed() {
        let mut life = Lifecycle::new("cellar", Duration::from_secs(1), 0);
        life.succeeded(0);
        life.failed(&DeviceError::WrongChip { expected: 0x60, found: 0x58 }, S);
        assert_eq!(life.state(), State::Absent);
    }
}
