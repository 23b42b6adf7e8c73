//! The weather that simulated chips measure: a day's curve, slower and faster waves upon it, and noise.

/// Degrees Celsius: about 21 in a room.
pub(super) fn temperature(seed: u64, now_ns: u64) -> f64 {
    21.0 + 2.5 * wave(seed, 1, now_ns, 86_400.0)
        + 0.6 * wave(seed, 2, now_ns, 1_700.0)
        + 0.15 * wave(seed, 3, now_ns, 97.0)
        + 0.02 * noise(seed, 4, now_ns)
}

/// Percent relative humidity: falls when it gets warmer.
pub(super) fn humidity(seed: u64, now_ns: u64) -> f64 {
    let warm = temperature(seed, now_ns) - 21.0;
    (48.0 - 2.5 * warm + 3.0 * wave(seed, 5, now_ns, 5_100.0) + 0.1 * noise(seed, 6, now_ns)).clamp(5.0, 95.0)
}

/// Pascal: highs and lows pass.
pub(super) fn pressure(seed: u64, now_ns: u64) -> f64 {
    101_300.0
        + 900.0 * wave(seed, 7, now_ns, 260_000.0)
        + 60.0 * wave(seed, 8, now_ns, 7_300.0)
        + 1.5 * noise(seed, 9, now_ns)
}

/// A well-mixed number of two (splitmix64).
pub(super) fn mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_mul(0xA24B_AED4_963E_E407).wrapping_add(n).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// 0 to 1.
pub(super) fn unit(seed: u64, n: u64) -> f64 {
    (mix(seed, n) >> 11) as f64 / (1_u64 << 53) as f64
}

fn wave(seed: u64, which: u64, now_ns: u64, period_s: f64) -> f64 {
    let phase = unit(seed, which);
    ((now_ns as f64 / 1e9 / period_s + phase) * std::f64::consts::TAU).sin()
}

/// -1 to 1, new every millisecond.
fn noise(seed: u64, which: u64, now_ns: u64) -> f64 {
    unit(seed ^ which << 48, now_ns / 1_000_000) * 2.0 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weather_stays_believable_for_a_month() {
        for seed in 0..4 {
            for minute in 0..30 * 24 * 60 {
                let now_ns = minute * 60_000_000_000;
                assert!((15.0..28.0).contains(&temperature(seed, now_ns)));
                assert!((5.0..=95.0).contains(&humidity(seed, now_ns)));
                assert!((100_000.0..102_600.0).contains(&pressure(seed, now_ns)));
            }
        }
    }
}
