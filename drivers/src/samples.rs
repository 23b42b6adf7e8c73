//! What one poll of a device yields: [`Samples`].

use crate::quality::{BadReason, Quality, UncertainReason};
use crate::value::Value;

/// What one poll of a device yields. Is kept between polls, so that a poll allocates nothing.
#[derive(Debug, Default)]
pub struct Samples {
    list: Vec<Sample>,
}

/// One raw value of one channel, before calibration and checks.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The channel's place in [`crate::Device::channels`] or [`crate::Decoder::channels`].
    pub channel: usize,
    /// The value in the channel's unit; `None` when there is none.
    pub value: Option<Value>,
    /// What the driver itself knows of the value.
    pub quality: Quality,
    /// `CLOCK_MONOTONIC` when it was measured; `None` for the end of the poll.
    pub at_ns: Option<u64>,
}

impl Samples {
    /// Room for the channels of a usual device.
    pub fn new() -> Self {
        Self::default()
    }

    /// A good value, measured now.
    pub fn put(&mut self, channel: usize, value: impl Into<Value>) {
        self.push(Sample { channel, value: Some(value.into()), quality: Quality::Good, at_ns: None });
    }

    /// A good value, measured at `at_ns` of `CLOCK_MONOTONIC`.
    pub fn put_at(&mut self, channel: usize, value: impl Into<Value>, at_ns: u64) {
        self.push(Sample { channel, value: Some(value.into()), quality: Quality::Good, at_ns: Some(at_ns) });
    }

    /// A value to look at twice, measured now.
    pub fn uncertain(&mut self, channel: usize, value: impl Into<Value>, reason: UncertainReason) {
        let quality = Quality::Uncertain(reason);
        self.push(Sample { channel, value: Some(value.into()), quality, at_ns: None });
    }

    /// No usable value.
    pub fn bad(&mut self, channel: usize, reason: BadReason) {
        self.push(Sample { channel, value: None, quality: Quality::Bad(reason), at_ns: None });
    }

    /// Adds a sample as it is; beyond [`Samples::MAX`] it is dropped.
    pub fn push(&mut self, sample: Sample) {
        if self.list.len() < Self::MAX {
            self.list.push(sample);
        }
    }

    /// What has been gathered since the last [`Samples::drain`].
    pub fn as_slice(&self) -> &[Sample] {
        &self.list
    }

    /// Takes everything out and keeps the room.
    pub fn drain(&mut self) -> impl Iterator<Item = Sample> + '_ {
        self.list.drain(..)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// Nothing has been gathered.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The most samples of one poll or one chunk of bytes; a device that offers more in one go is not believed.
    pub const MAX: usize = 4096;
}
