//! Serial ports over tokio-serial: opened for us alone, named by path.

use std::time::Duration;

use serde::Deserialize;
use tokio_serial::{DataBits, FlowControl, Parity, SerialPortBuilderExt, StopBits};

pub use tokio_serial::SerialStream;

use crate::error::DeviceError;

/// How a port is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialSettings {
    /// `/dev/ttyUSB0`, or better `/dev/serial/by-id/...`, which stays the same at every plugging.
    pub port: PortPath,
    /// Bits per second.
    pub baud: u32,
    /// Data bits, parity, stop bits.
    pub frame: Frame,
}

/// An absolute path of a serial port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PortPath(String);

/// Data bits, parity and stop bits as the field writes them: `8N1`, `7E1`, `8E2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Frame {
    bits: u8,
    parity: u8,
    stop: u8,
}

impl SerialSettings {
    /// Opens the port, raw and for us alone (`TIOCEXCL`). Needs a tokio runtime around it.
    pub fn open(&self) -> Result<SerialStream, DeviceError> {
        let path = self.port.as_str();
        // The library turns most errors of open(2) into one; what is asked first can be told apart.
        if let Err(error) = std::fs::metadata(path) {
            return Err(DeviceError::from_io(path, &error));
        }
        let builder = tokio_serial::new(path, self.baud)
            .data_bits(if self.frame.bits == 7 { DataBits::Seven } else { DataBits::Eight })
            .parity(match self.frame.parity {
                b'E' => Parity::Even,
                b'O' => Parity::Odd,
                _ => Parity::None,
            })
            .stop_bits(if self.frame.stop == 2 { StopBits::Two } else { StopBits::One })
            .flow_control(FlowControl::None)
            .timeout(Duration::ZERO)
            .exclusive(true);
        builder.open_native_async().map_err(|error| match error.kind() {
            tokio_serial::ErrorKind::NoDevice => DeviceError::Busy(path.to_owned()),
            tokio_serial::ErrorKind::Io(std::io::ErrorKind::PermissionDenied) => {
                DeviceError::Permission(path.to_owned())
            }
            tokio_serial::ErrorKind::Io(std::io::ErrorKind::NotFound) => {
                DeviceError::NotPresent(path.to_owned())
            }
            _ => DeviceError::Io { what: path.to_owned(), message: error.to_string() },
        })
    }

    /// The port, if it does not exist.
    pub fn missing(&self) -> Option<String> {
        (!std::path::Path::new(self.port.as_str()).exists()).then(|| self.port.as_str().to_owned())
    }
}

impl PortPath {
    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PortPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.starts_with('/') && text.len() <= 255 && !text.contains('\0') {
            Ok(Self(text))
        } else {
            Err(format!("`{text}` is no path: write `/dev/ttyUSB0` or `/dev/serial/by-id/...`"))
        }
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self { bits: 8, parity: b'N', stop: 1 }
    }
}

impl TryFrom<String> for Frame {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.to_ascii_uppercase().as_bytes() {
            [bits @ (b'7' | b'8'), parity @ (b'N' | b'E' | b'O'), stop @ (b'1' | b'2')] => {
                Ok(Self { bits: bits - b'0', parity: *parity, stop: stop - b'0' })
            }
            _ => Err(format!("`{text}` is no frame: write `8N1`, `7E1`, `8E1`, ...")),
        }
    }
}

/// The default of `baud`.
pub(crate) fn check_baud(baud: u32) -> Result<u32, String> {
    if (50..=4_000_000).contains(&baud) {
        Ok(baud)
    } else {
        Err(format!("{baud} is no baud rate: 50 to 4000000 are"))
    }
}
