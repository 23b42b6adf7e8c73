//! Sensirion SHT30, SHT31 and SHT35 as their datasheet (SHT3x-DIS version 7, December 2022) describes them: single-shot commands (§4.3),
//! conversion times (table 4), status (§4.11), checksum (§4.12).

use super::{Chip, weather};

/// The chip.
pub struct Sht3x {
    seed: u64,
    converts_until_ns: Option<u64>,
    answer: Vec<u8>,
    status: u16,
}

impl Sht3x {
    /// A chip in the weather of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, converts_until_ns: None, answer: Vec::new(), status: STATUS_RESET }
    }

    fn convert(&mut self, now_ns: u64) {
        let temperature = ((weather::temperature(self.seed, now_ns) + 45.0) / 175.0 * 65535.0).round() as u16;
        let humidity = (weather::humidity(self.seed, now_ns) / 100.0 * 65535.0).round() as u16;
        self.answer = words(&[temperature, humidity]);
    }
}

impl Chip for Sht3x {
    fn write(&mut self, bytes: &[u8], now_ns: u64) -> bool {
        let [high, low, ..] = *bytes else { return bytes.is_empty() };
        // During a conversion no command is acknowledged.
        if self.converts_until_ns.is_some_and(|until_ns| now_ns < until_ns) {
            return false;
        }
        self.answer.clear();
        self.converts_until_ns = match u16::from_be_bytes([high, low]) {
            0x2400 => Some(now_ns + 15_500_000),
            0x240B => Some(now_ns + 6_500_000),
            0x2416 => Some(now_ns + 4_500_000),
            0xF32D => {
                self.answer = words(&[self.status]);
                None
            }
            0x3041 => {
                self.status &= !STATUS_RESET;
                None
            }
            0x30A2 => {
                self.status = STATUS_RESET;
                None
            }
            0x3066 | 0x306D | 0x3093 => None,
            // Clock stretching (0x2Cxx) is not for this bus; the rest is reserved.
            _ => return false,
        };
        true
    }

    fn read(&mut self, buffer: &mut [u8], now_ns: u64) -> bool {
        if let Some(until_ns) = self.converts_until_ns {
            if now_ns < until_ns {
                return false;
            }
            self.converts_until_ns = None;
            self.convert(until_ns);
        }
        if self.answer.is_empty() {
            return false;
        }
        let answer = std::mem::take(&mut self.answer);
        for (n, byte) in buffer.iter_mut().enumerate() {
            *byte = answer.get(n).copied().unwrap_or(0xFF);
        }
        true
    }

    fn power_on(&mut self, _now_ns: u64) {
        *self = Self::new(self.seed);
    }
}

/// Each word with its checksum behind it.
fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| [(word >> 8) as u8, *word as u8, checksum(*word)]).collect()
}

/// CRC-8 with polynomial 0x31, bit by bit (§4.12).
fn checksum(word: u16) -> u8 {
    let mut crc = 0xFF_u8;
    for byte in word.to_be_bytes() {
        crc ^= byte;
        for _ in 0..8 {
            crc = if crc & 0x80 == 0 { crc << 1 } else { crc << 1 ^ 0x31 };
        }
    }
    crc
}

/// Bit 4: a reset was seen.
const STATUS_RESET: u16 = 0x0010;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_datasheets() {
        assert_eq!(checksum(0xBEEF), 0x92);
    }
}
