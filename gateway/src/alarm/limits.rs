//! The limits of a channel: `alarm = { above = 30, below = 2, hysteresis = 0.5, delay = "10s" }`.

use std::time::Duration;

use drivers::Period;
use serde::Deserialize;

/// When a channel's value is cause for alarm, in its unit.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Limits {
    /// More than this is.
    pub above: Option<f64>,
    /// Less than this is.
    pub below: Option<f64>,
    /// How far the value has to come back before it is none any more.
    pub hysteresis: f64,
    /// How long it has to last before it is told.
    pub delay: Duration,
}

/// Where a value stands to one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Beyond it.
    Wrong,
    /// Back, but not as far as the hysteresis asks.
    Between,
    /// Within it.
    Well,
}

impl Limits {
    /// How `value` stands to the upper limit, if there is one.
    pub fn above(&self, value: f64) -> Option<Verdict> {
        self.above.map(|limit| verdict(value > limit, value <= limit - self.hysteresis))
    }

    /// How `value` stands to the lower limit, if there is one.
    pub fn below(&self, value: f64) -> Option<Verdict> {
        self.below.map(|limit| verdict(value < limit, value >= limit + self.hysteresis))
    }
}

fn verdict(is_beyond: bool, is_within: bool) -> Verdict {
    if is_beyond {
        Verdict::Wrong
    } else if is_within {
        Verdict::Well
    } else {
        Verdict::Between
    }
}

/// As it stands in the configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    above: Option<f64>,
    below: Option<f64>,
    #[serde(default)]
    hysteresis: f64,
    delay: Option<Period>,
}

impl TryFrom<Written> for Limits {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { above, below, hysteresis, delay } = written;
        let numbers = [above, below, Some(hysteresis)];
        if numbers.iter().flatten().any(|number| !number.is_finite()) {
            return Err("limits are finite numbers".into());
        }
        if hysteresis < 0.0 {
            return Err(format!("hysteresis out of range: {hysteresis}, at least 0"));
        }
        match (above, below) {
            (None, None) => return Err("an alarm needs `above` or `below`".into()),
            // Else a value could be beyond one limit and not yet back from the other.
            (Some(above), Some(below)) if above - hysteresis < below + hysteresis => {
                return Err(format!("above = {above} and below = {below} leave no room for the hysteresis"));
            }
            _ => {}
        }
        Ok(Self { above, below, hysteresis, delay: delay.map_or(Duration::ZERO, |delay| delay.0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_to_come_back_as_far_as_the_hysteresis_asks() {
        let limits: Limits = toml::from_str("above = 30\nbelow = 2\nhysteresis = 0.5").unwrap();
        let above = |value| limits.above(value).unwrap();
        assert_eq!([above(30.0), above(30.1)], [Verdict::Between, Verdict::Wrong]);
        assert_eq!([above(29.6), above(29.5)], [Verdict::Between, Verdict::Well]);
        let below = |value| limits.below(value).unwrap();
        assert_eq!([below(1.9), below(2.4), below(2.5)], [Verdict::Wrong, Verdict::Between, Verdict::Well]);
    }

    #[test]
    fn limits_that_make_no_sense_are_refused() {
        for (bad, word) in [
            ("", "needs `above` or `below`"),
            ("above = nan", "finite"),
            ("above = 3\nhysteresis = -1", "hysteresis out of range"),
            ("above = 3\nbelow = 2.5\nhysteresis = 0.5", "no room"),
            ("abvoe = 3", "unknown field"),
        ] {
            let error = toml::from_str::<Limits>(bad).unwrap_err();
            assert!(error.message().contains(word), "{bad}: {error}");
        }
    }
}
