//! Sensirion SHT30, SHT31, SHT35: temperature and relative humidity (datasheet SHT3x-DIS version 7).
//!
//! Read here and not through the `sht31` crate, which takes the temperature's raw word for signed: above 42.5 °C it
//! shows 175 °C too little. Single shots without clock stretching (§4.3), which the Raspberry Pi cannot do.

use embedded_hal::delay::DelayNs;
use embedded_hal::i2c::I2c;

use super::i2c_chip::{self, I2cChip};
use crate::bus::i2c::I2cHandle;
use crate::channel::ChannelSpec;
use crate::error::DeviceError;
use crate::samples::Samples;
use crate::setup::{Device, DeviceType};
use crate::sim;

pub(super) static TYPE: DeviceType = DeviceType {
    name: CHIP.name,
    summary: "Sensirion SHT30, SHT31 or SHT35 on I2C: temperature, humidity",
    example: r#"bus = "i2c-1"        # /dev/i2c-1, or "sim"
address = 0x44       # or 0x45
"#,
    parse: |table| i2c_chip::parse(&CHIP, table),
};

static CHIP: I2cChip = I2cChip {
    name: "sht3x",
    addresses: &[0x44, 0x45],
    channels,
    driver: |handle, address| Box::new(Sht3x { handle, address, channels: channels() }),
    model: |seed| Box::new(sim::sht3x::Sht3x::new(seed)),
};

struct Sht3x {
    handle: I2cHandle,
    address: u8,
    channels: Vec<ChannelSpec>,
}

impl Device for Sht3x {
    fn channels(&self) -> &[ChannelSpec] {
        &self.channels
    }

    /// The chip has no identity. That it answers the status command with the right checksum, twice if need be, is what
    /// no other chip at these addresses does.
    fn init(&mut self) -> Result<(), DeviceError> {
        let mut status = [0; 3];
        for _ in 0..2 {
            self.handle.write_read(self.address, &STATUS, &mut status)?;
            if word(status).is_ok() {
                return Ok(());
            }
        }
        let expected = u32::from(checksum([status[0], status[1]]));
        Err(DeviceError::WrongChip { expected, found: u32::from(status[2]) })
    }

    fn sample(&mut self, out: &mut Samples) -> Result<(), DeviceError> {
        let mut answer = [0; 6];
        self.handle.write(self.address, &MEASURE)?;
        self.handle.delay_us(CONVERSION_US);
        self.handle.read(self.address, &mut answer)?;
        let (temperature, humidity) = decode(answer)?;
        out.put(TEMPERATURE, temperature);
        out.put(HUMIDITY, humidity);
        Ok(())
    }
}

/// Operating ranges of tables 1 and 2.
fn channels() -> Vec<ChannelSpec> {
    vec![
        ChannelSpec::number("temperature", "Cel").within(-40.0, 125.0).class("temperature").slower_than(5.0),
        ChannelSpec::number("humidity", "%RH")
            .within(0.0, 100.0)
            .digits(1)
            .class("humidity")
            .slower_than(30.0),
    ]
}

/// Degrees Celsius and percent (§4.13).
fn decode(answer: [u8; 6]) -> Result<(f64, f64), DeviceError> {
    let temperature = f64::from(word([answer[0], answer[1], answer[2]])?);
    let humidity = f64::from(word([answer[3], answer[4], answer[5]])?);
    Ok((temperature / 65535.0 * 175.0 - 45.0, humidity / 65535.0 * 100.0))
}

/// A word and its checksum.
fn word(bytes: [u8; 3]) -> Result<u16, DeviceError> {
    let [high, low, sum] = bytes;
    if checksum([high, low]) == sum {
        Ok(u16::from_be_bytes([high, low]))
    } else {
        Err(DeviceError::Crc("a word"))
    }
}

/// CRC-8 with polynomial 0x31 and first value 0xFF (§4.12).
fn checksum(bytes: [u8; 2]) -> u8 {
    bytes.into_iter().fold(0xFF, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc, _| if crc & 0x80 == 0 { crc << 1 } else { crc << 1 ^ 0x31 })
    })
}

const TEMPERATURE: usize = 0;
const HUMIDITY: usize = 1;

/// Read the status register (§4.11).
const STATUS: [u8; 2] = [0xF3, 0x2D];

/// Single shot, high repeatability, no clock stretching (§4.3).
const MEASURE: [u8; 2] = [0x24, 0x00];

/// 15.5 ms at most (table 4).
const CONVERSION_US: u32 = 16_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_decoded_as_the_datasheet_says() {
        // §4.12: the checksum of 0xBEEF is 0x92.
        assert_eq!(checksum([0xBE, 0xEF]), 0x92);
        let (temperature, humidity) = decode([0x5F, 0x58, 0x38, 0x7B, 0xB2, 0x7D]).unwrap();
        assert!((temperature - 20.177).abs() < 0.001, "{temperature}");
        assert!((humidity - 48.319).abs() < 0.001, "{humidity}");
    }

    #[test]
    fn both_ends_and_what_lies_above_half_the_range() {
        let of = |raw: u16| {
            let [high, low] = raw.to_be_bytes();
            let sum = checksum([high, low]);
            decode([high, low, sum, high, low, sum]).unwrap()
        };
        assert_eq!(of(0), (-45.0, 0.0));
        assert_eq!(of(0xFFFF), (130.0, 100.0));
        assert!((of(0x8000).0 - 42.5).abs() < 0.01);
    }

    #[test]
    fn any_flipped_bit_is_seen() {
        let good = [0x5F, 0x58, 0x38, 0x7B, 0xB2, 0x7D];
        for bit in 0..48 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(bad), Err(DeviceError::Crc("a word")), "bit {bit}");
        }
    }
}
