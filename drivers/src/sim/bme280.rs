//! Bosch BME280 as its datasheet BST-BME280-DS001 rev. 1.23 describes it: registers (§5), modes and conversion times
//! (§3.3, §9.1), calibration and compensation (§4.2.2, §8.1).

use super::{Chip, weather};

/// The chip. Calibration of temperature and pressure is the worked example of the BMP280's datasheet (BST-BMP280-DS001
/// §3.12), which has the same formulas; that of humidity is of a common part.
pub struct Bme280 {
    seed: u64,
    registers: [u8; 256],
    pointer: u8,
    converts_until_ns: Option<u64>,
    boots_until_ns: u64,
    filtered: Option<(f64, f64)>,
}

impl Bme280 {
    /// A chip in the weather of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut chip = Self {
            seed,
            registers: [0; 256],
            pointer: 0,
            converts_until_ns: None,
            boots_until_ns: 0,
            filtered: None,
        };
        chip.reset(0);
        chip
    }

    fn reset(&mut self, now_ns: u64) {
        self.registers = [0; 256];
        self.registers[0x88..0x88 + 24].copy_from_slice(&CALIBRATION_TP);
        self.registers[0xA1] = H1;
        self.registers[0xE1..0xE8].copy_from_slice(&CALIBRATION_H);
        self.registers[0xD0] = 0x60;
        self.registers[0xF7..=0xFE].copy_from_slice(&[0x80, 0, 0, 0x80, 0, 0, 0x80, 0]);
        self.converts_until_ns = None;
        self.filtered = None;
        self.boots_until_ns = now_ns + BOOT_NS;
    }

    fn set(&mut self, register: u8, value: u8, now_ns: u64) {
        match register {
            0xE0 if value == 0xB6 => self.reset(now_ns),
            // Takes effect with the next write to ctrl_meas (§5.4.3).
            0xF2 => self.registers[0xF2] = value & 0x07,
            0xF4 => {
                self.registers[0xF4] = value;
                if value & 0x03 != 0 {
                    self.converts_until_ns = Some(now_ns + self.conversion_ns());
                }
            }
            0xF5 => self.registers[0xF5] = value & 0xFD,
            _ => {}
        }
    }

    /// Lets conversions end that are due.
    fn catch_up(&mut self, now_ns: u64) {
        let Some(until_ns) = self.converts_until_ns.filter(|until_ns| *until_ns <= now_ns) else { return };
        self.convert(until_ns);
        if self.registers[0xF4] & 0x03 == 0x03 {
            let period_ns = self.conversion_ns() + STANDBY_NS[usize::from(self.registers[0xF5] >> 5)];
            let ago_ns = (now_ns - until_ns) % period_ns;
            self.converts_until_ns = Some(now_ns - ago_ns + period_ns);
        } else {
            // Forced mode falls back to sleep by itself.
            self.registers[0xF4] &= !0x03;
            self.converts_until_ns = None;
        }
    }

    fn convert(&mut self, now_ns: u64) {
        let [times_t, times_p, times_h] = self.oversampling();
        let temperature = weather::temperature(self.seed, now_ns);
        let mut raw_t = 0x80000;
        let mut raw_p = 0x80000;
        let mut raw_h = 0x8000;
        let exact_t = invert(20, |raw| compensate_temperature(raw).0 - temperature);
        let t_fine = compensate_temperature(exact_t).1;
        let exact_p =
            invert(20, |raw| weather::pressure(self.seed, now_ns) - compensate_pressure(raw, t_fine));
        // The filter works on temperature and pressure alone (§3.4.4).
        let strength = f64::from(1_u32 << (self.registers[0xF5] >> 2 & 7).min(4));
        let (old_t, old_p) = self.filtered.unwrap_or((f64::from(exact_t), f64::from(exact_p)));
        let smooth_t = old_t + (f64::from(exact_t) - old_t) / strength;
        let smooth_p = old_p + (f64::from(exact_p) - old_p) / strength;
        self.filtered = Some((smooth_t, smooth_p));
        // 16 bits, and one more with each doubling; 20 with the filter.
        let cut = |raw: f64, times: u32| {
            let missing = if strength > 1.0 { 0 } else { 4_u32.saturating_sub(times.trailing_zeros()) };
            (raw.round() as u32) >> missing << missing
        };
        if times_t != 0 {
            raw_t = cut(smooth_t, times_t);
        }
        if times_p != 0 && times_t != 0 {
            raw_p = cut(smooth_p, times_p);
        }
        if times_h != 0 && times_t != 0 {
            raw_h = invert(16, |raw| compensate_humidity(raw, t_fine) - weather::humidity(self.seed, now_ns));
        }
        let bytes = [raw_p, raw_t].map(|raw| [(raw >> 12) as u8, (raw >> 4) as u8, (raw << 4) as u8]);
        self.registers[0xF7..0xFD].copy_from_slice(bytes.as_flattened());
        self.registers[0xFD..=0xFE].copy_from_slice(&(raw_h as u16).to_be_bytes());
    }

    fn oversampling(&self) -> [u32; 3] {
        let ctrl_meas = self.registers[0xF4];
        [ctrl_meas >> 5, ctrl_meas >> 2 & 7, self.registers[0xF2]]
            .map(|bits| if bits == 0 { 0 } else { 1 << (u32::from(bits) - 1).min(4) })
    }

    /// The maximum of §9.1.
    fn conversion_ns(&self) -> u64 {
        let [times_t, times_p, times_h] = self.oversampling().map(f64::from);
        let offset = |times: f64| if times == 0.0 { 0.0 } else { 0.575 };
        let ms = 1.25 + 2.3 * (times_t + times_p + times_h) + offset(times_p) + offset(times_h);
        (ms * 1e6) as u64
    }
}

impl Chip for Bme280 {
    /// Pairs of register and value; a lone register sets the pointer (§6.2.1).
    fn write(&mut self, bytes: &[u8], now_ns: u64) -> bool {
        self.catch_up(now_ns);
        for pair in bytes.chunks(2) {
            match *pair {
                [register, value] => self.set(register, value, now_ns),
                [register] => self.pointer = register,
                _ => {}
            }
        }
        true
    }

    fn read(&mut self, buffer: &mut [u8], now_ns: u64) -> bool {
        self.catch_up(now_ns);
        let is_measuring = u8::from(self.converts_until_ns.is_some()) << 3;
        self.registers[0xF3] = is_measuring | u8::from(now_ns < self.boots_until_ns);
        for byte in buffer {
            *byte = self.registers[usize::from(self.pointer)];
            self.pointer = self.pointer.wrapping_add(1);
        }
        true
    }

    fn power_on(&mut self, now_ns: u64) {
        self.pointer = 0;
        self.reset(now_ns);
    }
}

/// The raw value of `bits` bits where `error`, which grows with it, comes closest to zero from below.
fn invert(bits: u32, error: impl Fn(u32) -> f64) -> u32 {
    (0..bits).rev().fold(0, |raw, bit| if error(raw | 1 << bit) <= 0.0 { raw | 1 << bit } else { raw })
}

/// Degrees Celsius, and the `t_fine` of the other two formulas (§8.1).
fn compensate_temperature(raw: u32) -> (f64, f64) {
    let raw = f64::from(raw);
    let var1 = (raw / 16384.0 - T1 / 1024.0) * T2;
    let var2 = (raw / 131_072.0 - T1 / 8192.0) * (raw / 131_072.0 - T1 / 8192.0) * T3;
    let t_fine = (var1 + var2).trunc();
    ((var1 + var2) / 5120.0, t_fine)
}

/// Pascal (§8.1).
fn compensate_pressure(raw: u32, t_fine: f64) -> f64 {
    let [p1, p2, p3, p4, p5, p6, p7, p8, p9] = P;
    let var1 = t_fine / 2.0 - 64000.0;
    let var2 = var1 * var1 * p6 / 32768.0;
    let var2 = var2 + var1 * p5 * 2.0;
    let var2 = var2 / 4.0 + p4 * 65536.0;
    let var1 = (p3 * var1 * var1 / 524_288.0 + p2 * var1) / 524_288.0;
    let var1 = (1.0 + var1 / 32768.0) * p1;
    let p = (1_048_576.0 - f64::from(raw) - var2 / 4096.0) * 6250.0 / var1;
    p + (p9 * p * p / 2_147_483_648.0 + p * p8 / 32768.0 + p7) / 16.0
}

/// Percent, not clamped (§8.1).
fn compensate_humidity(raw: u32, t_fine: f64) -> f64 {
    let var = t_fine - 76800.0;
    let var = (f64::from(raw) - (H4 * 64.0 + H5 / 16384.0 * var))
        * (H2 / 65536.0 * (1.0 + H6 / 67_108_864.0 * var * (1.0 + H3 / 67_108_864.0 * var)));
    var * (1.0 - f64::from(H1) * var / 524_288.0)
}

const T1: f64 = 27504.0;
const T2: f64 = 26435.0;
const T3: f64 = -1000.0;
const P: [f64; 9] = [36477.0, -10685.0, 3024.0, 2855.0, 140.0, -7.0, 15500.0, -14600.0, 6000.0];
const H1: u8 = 75;
const H2: f64 = 370.0;
const H3: f64 = 0.0;
const H4: f64 = 313.0;
const H5: f64 = 50.0;
const H6: f64 = 30.0;

/// T1..T3 and P1..P9 as they stand from 0x88, low byte first (§4.2.2).
const CALIBRATION_TP: [u8; 24] = {
    let words: [u16; 12] = [
        27504,
        26435,
        -1000_i16 as u16,
        36477,
        -10685_i16 as u16,
        3024,
        2855,
        140,
        -7_i16 as u16,
        15500,
        -14600_i16 as u16,
        6000,
    ];
    let mut bytes = [0; 24];
    let mut n = 0;
    while n < 12 {
        [bytes[2 * n], bytes[2 * n + 1]] = words[n].to_le_bytes();
        n += 1;
    }
    bytes
};

/// H2..H6 as they stand from 0xE1: H4 and H5 share 0xE5 (§4.2.2).
const CALIBRATION_H: [u8; 7] = [
    // H2 = 370, H3 = 0
    0x72, 0x01, 0,
    // H4 = 313 = 0x139, H5 = 50 = 0x032: the upper eight bits of H4, the lower four of both, the upper eight of H5
    0x13, 0x29, 0x03, // H6
    30,
];

const BOOT_NS: u64 = 2_000_000;

/// `t_standby` of the config register (§5.4.6).
const STANDBY_NS: [u64; 8] =
    [500_000, 62_500_000, 125_000_000, 250_000_000, 500_000_000, 1_000_000_000, 10_000_000, 20_000_000];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compensation_gives_the_datasheets_worked_example() {
        // BST-BMP280-DS001-26 §3.12: UT 519888 and UP 415148 are 25.08 °C and 100653.27 Pa.
        let (temperature, t_fine) = compensate_temperature(519_888);
        assert!((temperature - 25.08).abs() < 0.005, "{temperature}");
        assert!((t_fine - 128_422.0).abs() <= 1.0, "{t_fine}");
        let pressure = compensate_pressure(415_148, t_fine);
        assert!((pressure - 100_653.27).abs() < 0.5, "{pressure}");
    }

    #[test]
    fn raw_values_are_the_inverse_of_compensation() {
        for temperature in [-39.9, 0.0, 21.5, 84.9] {
            let raw = invert(20, |raw| compensate_temperature(raw).0 - temperature);
            let (back, t_fine) = compensate_temperature(raw);
            assert!((back - temperature).abs() < 0.001);
            for humidity in [5.0, 48.0, 95.0] {
                let raw = invert(16, |raw| compensate_humidity(raw, t_fine) - humidity);
                assert!(
                    (compensate_humidity(raw, t_fine) - humidity).abs() < 0.02,
                    "{humidity} at {temperature}"
                );
            }
            let raw = invert(20, |raw| 101_325.0 - compensate_pressure(raw, t_fine));
            assert!((compensate_pressure(raw, t_fine) - 101_325.0).abs() < 0.3);
        }
    }

    #[test]
    fn forced_mode_measures_once_and_sleeps() {
        let mut chip = Bme280::new(1);
        let mut status = [0];
        chip.write(&[0xF2, 1, 0xF4, 0x25], 1_000_000_000);
        chip.write(&[0xF3], 1_001_000_000);
        chip.read(&mut status, 1_001_000_000);
        assert_eq!(status, [0x08]);
        chip.write(&[0xF3], 1_010_000_000);
        chip.read(&mut status, 1_010_000_000);
        assert_eq!(status, [0]);
        assert_eq!(chip.registers[0xF4], 0x24);
        assert_ne!(chip.registers[0xFD..=0xFE], [0x80, 0]);
    }
}
