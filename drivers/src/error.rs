//! What goes wrong between us and a device: [`DeviceError`].

use crate::quality::{BadReason, Quality};

/// What went wrong between us and a device.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// Nobody acknowledged the address.
    #[error("no acknowledge")]
    Nack,
    /// Another master won the bus.
    #[error("bus arbitration lost")]
    Arbitration,
    /// The bus or the device did not finish in time.
    #[error("no answer in time")]
    Timeout,
    /// A checksum is wrong.
    #[error("wrong checksum in {0}")]
    Crc(&'static str),
    /// The device answers against its own rules.
    #[error("{0}")]
    Protocol(String),
    /// What we would open does not exist.
    #[error("{0} does not exist")]
    NotPresent(String),
    /// Another chip answers.
    #[error("wrong chip: id {found:#04x} where {expected:#04x} was expected")]
    WrongChip {
        /// The id that this driver knows.
        expected: u32,
        /// The id that was read.
        found: u32,
    },
    /// A kernel driver or another process holds the address, line or port.
    #[error("{0} is in use by a kernel driver or another process")]
    Busy(String),
    /// We may not open it.
    #[error("no permission for {0}")]
    Permission(String),
    /// A command's value does not fit the channel.
    #[error("{0}")]
    Range(String),
    /// The channel does not exist or takes no commands.
    #[error("channel {0} takes no commands")]
    ReadOnly(String),
    /// The device cannot work as it is set up.
    #[error("{0}")]
    Config(String),
    /// Anything else that the kernel says.
    #[error("{what}: {message}")]
    Io {
        /// What was being done.
        what: String,
        /// The kernel's words.
        message: String,
    },
}

impl DeviceError {
    /// Worth an immediate second try.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Nack | Self::Arbitration | Self::Timeout | Self::Crc(_) | Self::Protocol(_))
    }

    /// The quality of a reading that could not be made because of this.
    pub fn quality(&self) -> Quality {
        Quality::Bad(match self {
            Self::Nack | Self::Arbitration | Self::Timeout | Self::NotPresent(_) | Self::Io { .. } => {
                BadReason::NoAnswer
            }
            Self::Crc(_) => BadReason::Crc,
            Self::Protocol(_) => BadReason::Parse,
            Self::WrongChip { .. } => BadReason::WrongChip,
            Self::Busy(_) | Self::Permission(_) => BadReason::NoAccess,
            Self::Range(_) => BadReason::Range,
            Self::ReadOnly(_) | Self::Config(_) => BadReason::Fault,
        })
    }

    /// Sorts what the kernel said while `what` was opened or used.
    pub fn from_io(what: impl Into<String>, error: &std::io::Error) -> Self {
        let what = what.into();
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV) => Self::NotPresent(what),
            Some(libc::EACCES | libc::EPERM) => Self::Permission(what),
            Some(libc::EBUSY) => Self::Busy(what),
            Some(libc::ETIMEDOUT) => Self::Timeout,
            _ => Self::Io { what, message: error.to_string() },
        }
    }
}
