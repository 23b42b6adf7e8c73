//! The earliest that it can be: certificates are not checked by a clock that shows less.

use std::sync::atomic::{AtomicI64, Ordering};

/// A moment that has passed for certain, kept as its offset to `CLOCK_MONOTONIC`, so that it passes with it.
#[derive(Debug)]
pub(super) struct Floor(AtomicI64);

impl Floor {
    /// Takes a moment that is now or has passed; an earlier one than is known changes nothing.
    pub(super) fn raise(&self, unix_ns: i64, now_ns: u64) {
        self.0.fetch_max(unix_ns.saturating_sub(now_ns as i64), Ordering::Relaxed);
    }

    /// The earliest that it can be now.
    pub(super) fn at(&self, now_ns: u64) -> i64 {
        self.0.load(Ordering::Relaxed).saturating_add(now_ns as i64).max(BUILT_NS)
    }
}

impl Default for Floor {
    fn default() -> Self {
        Self(AtomicI64::new(i64::MIN / 2))
    }
}

/// When the program was built, in nanoseconds since 1970. Before that, no clock can be right.
pub(super) const BUILT_NS: i64 = {
    let built_s = decimal(env!("TIDEGATE_BUILT"));
    let latest = if built_s > FIRST_S { built_s } else { FIRST_S };
    latest * 1_000_000_000
};

/// 2026-01-01: there was no such program before.
const FIRST_S: i64 = 1_767_225_600;

const fn decimal(text: &str) -> i64 {
    let bytes = text.as_bytes();
    let (mut number, mut at) = (0, 0);
    while at < bytes.len() {
        number = number * 10 + (bytes[at] - b'0') as i64;
        at += 1;
    }
    number
}
