//! Bosch BME280: temperature, relative humidity, pressure (datasheet BST-BME280-DS001 rev. 1.23), through the `bme280`
//! crate in forced mode with one sample each and no filter (§3.5.1, weather monitoring).

use bme280::{Configuration, Error};
use embedded_hal::i2c::I2c;

use super::i2c_chip::{self, I2cChip};
use crate::bus::i2c::{I2cFault, I2cHandle};
use crate::channel::ChannelSpec;
use crate::error::DeviceError;
use crate::quality::BadReason;
use crate::samples::Samples;
use crate::setup::{Device, DeviceType};
use crate::sim;
use crate::value::decimal;

pub(super) static TYPE: DeviceType = DeviceType {
    name: CHIP.name,
    summary: "Bosch BME280 on I2C: temperature, humidity, pressure",
    example: r#"bus = "i2c-1"        # /dev/i2c-1, or "sim"
address = 0x76       # or 0x77
"#,
    parse: |table| i2c_chip::parse(&CHIP, table),
};

static CHIP: I2cChip = I2cChip {
    name: "bme280",
    addresses: &[0x76, 0x77],
    channels,
    driver: |handle, address| {
        let chip = bme280::i2c::BME280::new(handle.clone(), address);
        Box::new(Bme280 { chip, handle, address, channels: channels() })
    },
    model: |seed| Box::new(sim::bme280::Bme280::new(seed)),
};

struct Bme280 {
    chip: bme280::i2c::BME280<I2cHandle>,
    handle: I2cHandle,
    address: u8,
    channels: Vec<ChannelSpec>,
}

impl Device for Bme280 {
    fn channels(&self) -> &[ChannelSpec] {
        &self.channels
    }

    fn init(&mut self) -> Result<(), DeviceError> {
        // The crate also takes the BMP280, which has no humidity and shows 0 %.
        let found = self.register(CHIP_ID)?;
        if found != BME280_ID {
            return Err(DeviceError::WrongChip { expected: u32::from(BME280_ID), found: u32::from(found) });
        }
        self.chip.init_with_config(&mut self.handle, Configuration::default()).map_err(explain)
    }

    fn sample(&mut self, out: &mut Samples) -> Result<(), DeviceError> {
        // A chip that lost its power between two polls answers as if nothing had happened, with nothing measured.
        if self.register(CTRL_HUM)? != HUMIDITY_ONCE {
            return Err(DeviceError::Protocol("the chip lost its settings".to_owned()));
        }
        let measured = self.chip.measure(&mut self.handle).map_err(explain)?;
        // The crate clamps: what stands at an end lay beyond it.
        for (channel, value, low, high) in [
            (TEMPERATURE, measured.temperature, -40.0, 85.0),
            (PRESSURE, measured.pressure, 30_000.0, 110_000.0),
        ] {
            if low < value && value < high {
                out.put(channel, decimal(value));
            } else {
                out.bad(channel, BadReason::Range);
            }
        }
        out.put(HUMIDITY, decimal(measured.humidity));
        Ok(())
    }
}

impl Bme280 {
    fn register(&mut self, register: u8) -> Result<u8, DeviceError> {
        let mut byte = [0];
        self.handle.write_read(self.address, &[register], &mut byte)?;
        Ok(byte[0])
    }
}

/// Operating ranges of tables 1 to 3; the rates are what a room, a breath and a slammed door can do.
fn channels() -> Vec<ChannelSpec> {
    vec![
        ChannelSpec::number("temperature", "Cel").within(-40.0, 85.0).class("temperature").slower_than(5.0),
        ChannelSpec::number("humidity", "%RH")
            .within(0.0, 100.0)
            .digits(1)
            .class("humidity")
            .slower_than(30.0),
        ChannelSpec::number("pressure", "Pa")
            .within(30_000.0, 110_000.0)
            .digits(0)
            .class("atmospheric_pressure")
            .slower_than(1000.0)
            .noisy(100),
    ]
}

fn explain(error: Error<I2cFault>) -> DeviceError {
    match error {
        Error::Bus(fault) => fault.into(),
        Error::UnsupportedChip => DeviceError::WrongChip { expected: u32::from(BME280_ID), found: 0 },
        Error::CompensationFailed | Error::InvalidData | Error::NoCalibrationData | Error::Delay => {
            DeviceError::Protocol("the chip's registers make no sense".to_owned())
        }
    }
}

const TEMPERATURE: usize = 0;
const HUMIDITY: usize = 1;
const PRESSURE: usize = 2;

const CHIP_ID: u8 = 0xD0;
const BME280_ID: u8 = 0x60;
const CTRL_HUM: u8 = 0xF2;
const HUMIDITY_ONCE: u8 = 0x01;
