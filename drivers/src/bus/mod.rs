//! The wires: each is opened once, speaks the kernel's interface, and maps what the kernel says to
//! [`crate::DeviceError`].

pub mod gpio;
pub mod i2c;
pub mod serial;
pub mod sysfs;

#[cfg(feature = "rppal")]
mod rppal;

use serde::Deserialize;

/// Which library reaches the hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The kernel's character devices.
    #[default]
    Kernel,
    /// The retired `rppal` crate; needs the cargo feature `rppal` and a Raspberry Pi OS kernel.
    Rppal,
}
