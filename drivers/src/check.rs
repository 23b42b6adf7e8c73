//! From a raw value to a value with a quality: calibration, range, rate of change, stuck sensors. Pure.

use crate::channel::ChannelSpec;
use crate::quality::{BadReason, Quality, UncertainReason};

/// How raw values of one channel become values: `raw * scale + offset`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calibration {
    /// Factor.
    pub scale: f64,
    /// Added after the factor.
    pub offset: f64,
}

/// Watches one channel.
#[derive(Debug, Clone)]
pub struct Checker {
    calibration: Calibration,
    sensor_range: Option<(f64, f64)>,
    user_range: Option<(f64, f64)>,
    max_rate: Option<f64>,
    stuck_after: Option<u32>,
    // Raw values, so that a calibration hides nothing.
    trusted: Option<(f64, u64)>,
    suspect: Option<(f64, u64)>,
    last_raw: Option<f64>,
    equals: u32,
}

impl Checker {
    /// For a channel, with what the user set for it.
    pub fn new(spec: &ChannelSpec, user_range: Option<(f64, f64)>, calibration: Calibration) -> Self {
        Self {
            calibration,
            sensor_range: spec.range,
            user_range,
            max_rate: spec.max_rate,
            stuck_after: spec.stuck_after,
            trusted: None,
            suspect: None,
            last_raw: None,
            equals: 0,
        }
    }

    /// Judges `raw`, measured at `now_ns` of `CLOCK_MONOTONIC`, of which the driver itself says `quality`. No value
    /// comes out when the sensor cannot have measured it.
    pub fn check(&mut self, raw: f64, quality: Quality, now_ns: u64) -> (Option<f64>, Quality) {
        if !raw.is_finite() || self.sensor_range.is_some_and(|range| !contains(range, raw)) {
            return (None, Quality::Bad(BadReason::Range));
        }
        let value = self.calibration.apply(raw);
        if !value.is_finite() {
            return (None, Quality::Bad(BadReason::Range));
        }
        let is_step = self.is_step(raw, now_ns);
        let is_stuck = self.is_stuck(raw);
        let quality = if !quality.is_good() {
            quality
        } else if is_step {
            Quality::Uncertain(UncertainReason::Step)
        } else if is_stuck {
            Quality::Uncertain(UncertainReason::Stuck)
        } else if self.user_range.is_some_and(|range| !contains(range, value)) {
            Quality::Uncertain(UncertainReason::Range)
        } else {
            Quality::Good
        };
        (Some(value), quality)
    }

    /// Forgets what came before: the device was away.
    pub fn reset(&mut self) {
        self.trusted = None;
        self.suspect = None;
        self.last_raw = None;
        self.equals = 0;
    }

    /// Too far from the last trusted value. A second value that agrees with the suspect one shows that the quantity
    /// really moved.
    fn is_step(&mut self, raw: f64, now_ns: u64) -> bool {
        let Some(max_rate) = self.max_rate else { return false };
        let agrees = |(other, at_ns): (f64, u64)| {
            let seconds = (now_ns.saturating_sub(at_ns) as f64 / 1e9).max(SHORTEST_STEP_S);
            (raw - other).abs() <= max_rate * seconds
        };
        let is_step =
            self.trusted.is_some_and(|trusted| !agrees(trusted)) && !self.suspect.is_some_and(agrees);
        if is_step {
            self.suspect = Some((raw, now_ns));
        } else {
            self.trusted = Some((raw, now_ns));
            self.suspect = None;
        }
        is_step
    }

    fn is_stuck(&mut self, raw: f64) -> bool {
        let Some(stuck_after) = self.stuck_after else { return false };
        self.equals = if self.last_raw == Some(raw) { self.equals.saturating_add(1) } else { 1 };
        self.last_raw = Some(raw);
        self.equals >= stuck_after
    }
}

impl Calibration {
    /// The value for a raw one.
    pub fn apply(self, raw: f64) -> f64 {
        raw * self.scale + self.offset
    }
}

impl Default for Calibration {
    fn default() -> Self {
        Self { scale: 1.0, offset: 0.0 }
    }
}

fn contains((low, high): (f64, f64), value: f64) -> bool {
    low <= value && value <= high
}

/// Two samples closer than this may differ by noise alone as much as by motion.
const SHORTEST_STEP_S: f64 = 1.0;

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn checker() -> Checker {
        let spec = ChannelSpec::number("t", "Cel").within(-40.0, 85.0).slower_than(2.0).noisy(4);
        Checker::new(&spec, Some((0.0, 30.0)), Calibration::default())
    }

    #[test]
    fn one_flipped_bit_is_a_step_and_does_not_spoil_what_follows() {
        let mut checker = checker();
        let seen: Vec<_> = [25.08, 25.10, 4.58, 25.09, 25.12]
            .into_iter()
            .enumerate()
            .map(|(n, raw)| checker.check(raw, Quality::Good, n as u64 * S).1)
            .collect();
        let step = Quality::Uncertain(UncertainReason::Step);
        assert_eq!(seen, [Quality::Good, Quality::Good, step, Quality::Good, Quality::Good]);
    }

    #[test]
    fn a_real_jump_is_doubted_once() {
        let mut checker = checker();
        let seen: Vec<_> = [25.0, 10.0, 10.1]
            .into_iter()
            .enumerate()
            .map(|(n, raw)| checker.check(raw, Quality::Good, n as u64 * S).1)
            .collect();
        assert_eq!(seen, [Quality::Good, Quality::Uncertain(UncertainReason::Step), Quality::Good]);
    }

    #[test]
    fn a_sensor_that_repeats_itself_is_stuck() {
        let mut checker = checker();
        let seen: Vec<_> = (0..5).map(|n| checker.check(20.0, Quality::Good, n * S).1.is_good()).collect();
        assert_eq!(seen, [true, true, true, false, false]);
        assert!(checker.check(20.01, Quality::Good, 6 * S).1.is_good());
    }

    #[test]
    fn the_sensors_range_takes_the_value_and_the_users_range_does_not() {
        let mut checker = checker();
        assert_eq!(checker.check(85.1, Quality::Good, 0), (None, Quality::Bad(BadReason::Range)));
        assert_eq!(checker.check(f64::NAN, Quality::Good, 0), (None, Quality::Bad(BadReason::Range)));
        assert_eq!(
            checker.check(30.5, Quality::Good, S),
            (Some(30.5), Quality::Uncertain(UncertainReason::Range))
        );
        let calibration = Calibration { scale: 2.0, offset: -1.0 };
        let mut checker = Checker::new(&ChannelSpec::number("x", ""), None, calibration);
        assert_eq!(checker.check(3.0, Quality::Good, 0), (Some(5.0), Quality::Good));
    }
}
