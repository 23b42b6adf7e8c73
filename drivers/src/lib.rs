//! What the gateway reads and commands: wires below ([`bus`]), chips above ([`device`]), a simulated bus beside
//! them ([`sim`]).
//!
//! The crate knows no cloud and no protocol, and it does not wait: whoever drives it (the gateway's sampler) owns the
//! threads. Decoding is pure; what belongs to time ([`schedule`]) and to plausibility ([`check`]) is pure too and is
//! given `now`. So do the time a receiver tells ([`gnss`]) and how long an output may stay commanded ([`lease`]).
//!
//! A configuration's device is looked up in [`device::registry`], parsed into a [`Setup`], and built into a
//! [`Driver`] on the thread of its bus.

pub mod bus;
pub mod check;
pub mod device;
pub mod gnss;
pub mod lease;
pub mod scan;
pub mod schedule;
pub mod sim;

mod channel;
mod error;
mod quality;
mod samples;
mod settings;
mod setup;
mod value;

pub use channel::{ChannelSpec, Kind, ValueType};
pub use error::DeviceError;
pub use quality::{BadReason, Quality, UncertainReason};
pub use samples::{Sample, Samples};
pub use settings::{Period, SettingsError, parse_settings};
pub use setup::{BusKey, Decoder, Device, DeviceType, Driver, EventDevice, Lapse, Parse, Setup, Wires};
pub use value::Value;

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock that the kernel stamps GPIO edges with.
#[expect(unsafe_code, reason = "std offers no way to read CLOCK_MONOTONIC as a number")]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call only fills the struct that lives here; this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
