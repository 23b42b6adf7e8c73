//! What GNSS receivers on plain serial lines make of wall time. Pure: moments in, an offset out.
//!
//! A sentence comes some time after the second it speaks of, so an offset made of it is too small, by a varying amount,
//! and never too large: of late ones the largest is the best. One alone may be anything (a receiver that has just
//! started, a line that kept old sentences), so nothing is believed before a few in a row agree.

use drivers::gnss::TimeFix;

use super::{Known, WallQuality};

/// Follows the moments that receivers tell.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    agreed: Option<Agreed>,
    candidate: Option<(Agreed, u32)>,
}

/// An offset that is believed, or may be soon.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "the unit is part of each name")]
struct Agreed {
    offset_ns: i64,
    error_ns: u64,
    at_ns: u64,
}

impl Receiver {
    /// Takes a moment; one before `earliest_ns` is a receiver's own beginning of time, or its weeks rolled over.
    pub(super) fn take(&mut self, fix: TimeFix, earliest_ns: i64) {
        if fix.unix_ns < earliest_ns {
            return;
        }
        let told = Agreed {
            offset_ns: fix.unix_ns.saturating_sub(fix.at_ns as i64),
            error_ns: fix.error_ns,
            at_ns: fix.at_ns,
        };
        if let Some(agreed) = self.agreed.as_mut().filter(|agreed| agreed.is_near(told)) {
            *agreed = agreed.joined(told);
            self.candidate = None;
            return;
        }
        let (candidate, times) = match self.candidate {
            Some((candidate, times)) if candidate.is_near(told) => (candidate.joined(told), times + 1),
            _ => (told, 1),
        };
        self.candidate = Some((candidate, times));
        if times >= ENOUGH {
            self.agreed = Some(candidate);
            self.candidate = None;
        }
    }

    /// What is believed at `now_ns`; its error grows while no receiver is heard.
    pub(super) fn known(&self, now_ns: u64) -> Option<Known> {
        let agreed = self.agreed?;
        let error_ns = agreed.error_ns.saturating_add(drift_ns(agreed.at_ns, now_ns));
        let quality = WallQuality::Gnss;
        Some(Known { offset_ns: agreed.offset_ns, error_ns: Some(error_ns), quality })
    }
}

impl Agreed {
    /// Whether both can be the same time, told with different delays.
    fn is_near(self, told: Self) -> bool {
        self.offset_ns.abs_diff(told.offset_ns) < NEAR_NS + drift_ns(self.at_ns, told.at_ns)
    }

    fn joined(self, told: Self) -> Self {
        let faded_ns = self.offset_ns.saturating_sub(drift_ns(self.at_ns, told.at_ns) as i64);
        Self { offset_ns: told.offset_ns.max(faded_ns), ..told }
    }
}

/// How far a machine's own oscillator may have wandered.
fn drift_ns(from_ns: u64, to_ns: u64) -> u64 {
    to_ns.saturating_sub(from_ns) / 1_000_000 * DRIFT_PPM
}

/// More than delays differ by, less than a second: old sentences that come in a heap do not agree.
const NEAR_NS: u64 = 700_000_000;
/// So many moments in a row are believed.
const ENOUGH: u32 = 3;
/// A Pi's crystal, from -20 to 60 °C, with room.
const DRIFT_PPM: u64 = 100;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: i64 = 1_000_000_000;
    const MS: i64 = 1_000_000;

    /// A moment `unix_s` that arrived `delay_ms` after it, on a machine that booted at 1,000 s.
    fn fix(unix_s: i64, delay_ms: i64) -> TimeFix {
        let at_ns = ((unix_s - 1000) * S + delay_ms * MS) as u64;
        TimeFix { unix_ns: unix_s * S, at_ns, error_ns: 500 * MS as u64 }
    }

    fn offset_ms(receiver: &Receiver) -> Option<i64> {
        receiver.known(0).map(|known| (known.offset_ns - 1000 * S) / MS)
    }

    #[test]
    fn three_moments_in_a_row_are_believed_and_the_one_with_the_least_delay_counts() {
        let mut receiver = Receiver::default();
        receiver.take(fix(2000, 300), 0);
        receiver.take(fix(2001, 80), 0);
        assert_eq!(offset_ms(&receiver), None);
        receiver.take(fix(2002, 250), 0);
        assert_eq!(offset_ms(&receiver), Some(-80));
        receiver.take(fix(2003, 60), 0);
        receiver.take(fix(2004, 400), 0);
        assert_eq!(offset_ms(&receiver), Some(-60));
    }

    #[test]
    fn what_stands_alone_or_comes_in_a_heap_is_not_believed() {
        let mut receiver = Receiver::default();
        // Ten old sentences that the line had kept arrive at once.
        for second in 0..10 {
            let at_ns = 1010 * S as u64;
            receiver.take(TimeFix { unix_ns: (2000 + second) * S, at_ns, error_ns: 0 }, 0);
        }
        assert_eq!(offset_ms(&receiver), None);
        for second in 2011..2014 {
            receiver.take(fix(second, 100), 0);
        }
        assert_eq!(offset_ms(&receiver), Some(-100));
        // One wild moment does not move it, three that agree do.
        receiver.take(fix(9000, 100), 0);
        assert_eq!(offset_ms(&receiver), Some(-100));
        for second in 0..3 {
            let told = fix(2020 + second, 0);
            receiver.take(TimeFix { unix_ns: told.unix_ns + 3600 * S, ..told }, 0);
        }
        assert_eq!(offset_ms(&receiver), Some(3_600_000));
    }

    #[test]
    fn a_receivers_beginning_of_time_is_not_believed() {
        let mut receiver = Receiver::default();
        for second in 0..10 {
            receiver.take(fix(315_964_800 + second, 100), 1_767_225_600 * S);
        }
        assert_eq!(offset_ms(&receiver), None);
    }

    #[test]
    fn the_error_grows_while_nobody_is_heard() {
        let mut receiver = Receiver::default();
        (2000..2004).for_each(|second| receiver.take(fix(second, 0), 0));
        let error_ms = |later_s: i64| {
            receiver.known(((1003 + later_s) * S) as u64).unwrap().error_ns.unwrap() / 1_000_000
        };
        assert_eq!((error_ms(0), error_ms(10_000)), (500, 1500));
    }

    proptest! {
        #[test]
        fn no_moments_make_it_fail(moments in prop::collection::vec((any::<i64>(), any::<u64>(), any::<u64>()), 0..20), now_ns: u64) {
            let mut receiver = Receiver::default();
            for (unix_ns, at_ns, error_ns) in moments {
                receiver.take(TimeFix { unix_ns, at_ns, error_ns }, i64::MIN);
                receiver.known(now_ns);
            }
        }
    }
}
