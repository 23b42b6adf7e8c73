//! What all chips on an I2C bus have in common, so that a chip's file holds the chip alone: an [`I2cChip`] says what
//! it is, [`parse`] makes the settings.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeTable;

use crate::bus::Backend;
use crate::bus::i2c::{BusName, I2cAddress, I2cAt, I2cHandle};
use crate::channel::ChannelSpec;
use crate::error::DeviceError;
use crate::settings::{SettingsError, parse_settings};
use crate::setup::{BusKey, Device, Driver, Setup, Wires};
use crate::sim::{Chip, SimFaults};

/// One kind of chip.
pub(super) struct I2cChip {
    /// The word for `type = "..."`.
    pub name: &'static str,
    /// Where it can be; the first is the default.
    pub addresses: &'static [u8],
    /// What it measures.
    pub channels: fn() -> Vec<ChannelSpec>,
    /// Makes the driver for the chip at an address.
    pub driver: fn(I2cHandle, u8) -> Box<dyn Device>,
    /// Makes the chip that stands in for it on the simulated bus.
    pub model: fn(u64) -> Box<dyn Chip>,
}

/// Reads the settings of a chip.
pub(super) fn parse(
    chip: &'static I2cChip,
    table: Spanned<DeTable<'_>>,
) -> Result<Arc<dyn Setup>, SettingsError> {
    let whole = table.span();
    let settings: Settings = parse_settings(table)?;
    let span = settings.address.as_ref().map_or(whole, Spanned::span);
    let address = settings.address.map(Spanned::into_inner);
    let at = I2cAt::new(settings.bus, address, settings.backend, settings.sim, chip.addresses)
        .map_err(|message| SettingsError::at(span, message))?;
    Ok(Arc::new(ChipSetup { chip, at }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    bus: BusName,
    address: Option<Spanned<I2cAddress>>,
    #[serde(default)]
    backend: Backend,
    sim: Option<SimFaults>,
}

#[derive(Debug, PartialEq)]
struct ChipSetup {
    chip: &'static I2cChip,
    at: I2cAt,
}

impl Setup for ChipSetup {
    fn bus(&self) -> BusKey {
        self.at.bus()
    }

    fn occupies(&self) -> Option<String> {
        Some(self.at.occupies())
    }

    fn is_simulated(&self) -> bool {
        self.at.is_simulated()
    }

    fn channels(&self) -> Vec<ChannelSpec> {
        (self.chip.channels)()
    }

    fn missing(&self) -> Option<String> {
        self.at.missing()
    }

    fn build(&self, wires: &Wires) -> Result<Driver, DeviceError> {
        let handle = self.at.open(wires, self.chip.model)?;
        Ok(Driver::Polled((self.chip.driver)(handle, self.at.address())))
    }
}

impl fmt::Debug for I2cChip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for I2cChip {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
