//! What the gateway knows of a channel at one moment: [`Reading`], and what it knows of the channel itself.

use std::fmt;
use std::sync::Arc;

pub use drivers::{ChannelSpec, Quality, Value};

use crate::clock::Stamp;

/// One value of one channel at one moment.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The stream this value belongs to.
    pub channel: Arc<Channel>,
    /// The value in the channel's unit; `None` when nothing usable was read (`quality` then says why).
    pub value: Option<Value>,
    /// Whether the value can be trusted, and if not, why.
    pub quality: Quality,
    /// When it was measured.
    pub stamp: Stamp,
}

/// A stream of readings: who measures, what, in which unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Channel {
    /// `device/channel`, the path under which every protocol shows it.
    pub id: ChannelId,
    /// Unit, range, precision, direction, title.
    pub spec: ChannelSpec,
    /// Whether the values come from the simulated bus.
    pub is_simulated: bool,
}

impl Channel {
    /// The device's name: what stands before the slash.
    pub fn device(&self) -> &str {
        self.id.device()
    }

    /// The channel's name within its device.
    pub fn name(&self) -> &str {
        self.id.name()
    }
}

/// `device/channel`: two names of `a-z 0-9 _ -`, valid in a topic, a CoAP path and a SenML name alike.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(Arc<str>);

impl ChannelId {
    /// Joins two names that [`is_name`] accepts.
    pub fn new(device: &str, channel: &str) -> Option<Self> {
        (is_name(device) && is_name(channel)).then(|| Self(format!("{device}/{channel}").into()))
    }

    /// Reads `device/channel`.
    pub fn parse(text: &str) -> Option<Self> {
        let (device, channel) = text.split_once('/')?;
        Self::new(device, channel)
    }

    /// What stands before the slash.
    pub fn device(&self) -> &str {
        self.0.split_once('/').map_or("", |(device, _)| device)
    }

    /// What stands behind the slash.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }

    /// `device/channel`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `text` may name a gateway, device or channel: 1 to 64 of `a-z 0-9 _ -`, beginning with a letter or digit.
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= 64
        && bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_id_is_two_names_and_nothing_else() {
        let id = ChannelId::parse("cellar/temperature").unwrap();
        assert_eq!((id.device(), id.name()), ("cellar", "temperature"));
        for bad in ["", "cellar", "cellar/", "/t", "Cellar/t", "a/b/c", "a b/c", "a/+", "été/x", "_a/b"] {
            assert!(ChannelId::parse(bad).is_none(), "{bad}");
        }
    }
}
