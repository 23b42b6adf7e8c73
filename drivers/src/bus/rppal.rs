//! The retired `rppal` crate as a second way to the Raspberry Pi's I2C and GPIO.
//!
//! Only its inherent I2C calls are used: its `embedded-hal` face puts a STOP between the write and the read of a
//! register. Its GPIO reaches into the chip's registers past the kernel, and needs the kernel of Raspberry Pi OS.

use std::time::Duration;

use embedded_hal::i2c::Operation;
use rppal::gpio::{Gpio, InputPin, Level, OutputPin, Trigger};
use rppal::i2c::I2c;

use super::gpio::{Bias, Edge, InputLine, OutputLine};
use super::i2c::{I2cFault, Transport};
use crate::error::DeviceError;

/// Opens `i2c-N`.
pub(super) fn open_i2c(bus: &str) -> Result<impl Transport + use<>, DeviceError> {
    let number = bus.strip_prefix("i2c-").and_then(|number| number.parse().ok());
    let number = number.ok_or_else(|| DeviceError::Config(format!("rppal knows no bus {bus}")))?;
    let i2c = I2c::with_bus(number).map_err(|error| match error {
        rppal::i2c::Error::Io(error) => DeviceError::from_io(format!("/dev/{bus}"), &error),
        error => DeviceError::Config(format!("rppal: {error}")),
    })?;
    Ok(RppalI2c(i2c))
}

/// Opens `GPIO17` as an input with both edges.
pub(super) fn open_input(
    line: &str,
    is_active_low: bool,
    bias: Bias,
) -> Result<Box<dyn InputLine>, DeviceError> {
    let pin = pin(line)?;
    let mut pin = match bias {
        Bias::AsIs | Bias::Disabled => pin.into_input(),
        Bias::PullUp => pin.into_input_pullup(),
        Bias::PullDown => pin.into_input_pulldown(),
    };
    pin.set_interrupt(Trigger::Both, None).map_err(|error| gpio_error(line, error))?;
    Ok(Box::new(RppalInput { pin, is_active_low, line: line.to_owned() }))
}

/// Opens `GPIO17` as an output.
pub(super) fn open_output(
    line: &str,
    is_active_low: bool,
    is_active: bool,
) -> Result<Box<dyn OutputLine>, DeviceError> {
    let pin = pin(line)?;
    let mut pin = if is_active == is_active_low { pin.into_output_low() } else { pin.into_output_high() };
    // The safe state stays when we go; an input would let the relay decide.
    pin.set_reset_on_drop(false);
    Ok(Box::new(RppalOutput { pin, is_active_low }))
}

struct RppalI2c(I2c);

impl Transport for RppalI2c {
    fn transfer(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), I2cFault> {
        self.0.set_slave_address(u16::from(address)).map_err(i2c_fault)?;
        match operations {
            [Operation::Write(bytes)] => self.0.write(bytes).map(drop),
            [Operation::Read(buffer)] => self.0.read(buffer).map(drop),
            [Operation::Write(bytes), Operation::Read(buffer)] => self.0.write_read(bytes, buffer),
            _ => return Err(I2cFault::Unsupported),
        }
        .map_err(i2c_fault)
    }
}

struct RppalInput {
    pin: InputPin,
    is_active_low: bool,
    line: String,
}

impl InputLine for RppalInput {
    fn next_edge(&mut self, timeout: Duration) -> Result<Option<Edge>, DeviceError> {
        let event =
            self.pin.poll_interrupt(false, Some(timeout)).map_err(|error| gpio_error(&self.line, error))?;
        Ok(event.map(|event| Edge {
            is_active: (event.trigger == Trigger::RisingEdge) != self.is_active_low,
            at_ns: event.timestamp.as_nanos() as u64,
            number: event.seqno,
        }))
    }

    fn is_active(&mut self) -> Result<bool, DeviceError> {
        Ok(self.pin.is_high() != self.is_active_low)
    }
}

struct RppalOutput {
    pin: OutputPin,
    is_active_low: bool,
}

impl OutputLine for RppalOutput {
    fn set_active(&mut self, is_active: bool) -> Result<(), DeviceError> {
        self.pin.write(if is_active == self.is_active_low { Level::Low } else { Level::High });
        Ok(())
    }

    fn is_active(&mut self) -> Result<bool, DeviceError> {
        Ok(self.pin.is_set_high() != self.is_active_low)
    }
}

fn pin(line: &str) -> Result<rppal::gpio::Pin, DeviceError> {
    let number = line.strip_prefix("GPIO").and_then(|number| number.parse().ok());
    let number = number.ok_or_else(|| {
        DeviceError::Config(format!("rppal knows only lines such as `GPIO17`, not `{line}`"))
    })?;
    Gpio::new().and_then(|gpio| gpio.get(number)).map_err(|error| gpio_error(line, error))
}

fn gpio_error(line: &str, error: rppal::gpio::Error) -> DeviceError {
    match error {
        rppal::gpio::Error::PermissionDenied(path) => DeviceError::Permission(path),
        rppal::gpio::Error::PinUsed(_) => DeviceError::Busy(line.to_owned()),
        rppal::gpio::Error::Io(error) => DeviceError::from_io(line, &error),
        error => DeviceError::Config(format!("rppal: {error}")),
    }
}

fn i2c_fault(error: rppal::i2c::Error) -> I2cFault {
    match error {
        rppal::i2c::Error::Io(error) => error.raw_os_error().map_or(I2cFault::Gone, super::i2c::fault),
        _ => I2cFault::Unsupported,
    }
}
