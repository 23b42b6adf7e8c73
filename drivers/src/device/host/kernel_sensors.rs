//! Whatever a kernel driver measures: thermal zones, hwmon, IIO.

use super::{Part, PartSamples};
use crate::bus::sysfs::{KernelSensor, Sysfs};
use crate::channel::ChannelSpec;

pub(super) struct KernelSensors(Vec<KernelSensor>);

impl KernelSensors {
    pub(super) fn find(sysfs: &Sysfs) -> Self {
        Self(sysfs.sensors())
    }
}

impl Part for KernelSensors {
    fn channels(&self) -> Vec<ChannelSpec> {
        self.0.iter().map(|sensor| sensor.spec.clone()).collect()
    }

    fn sample(&mut self, _now_ns: u64, out: &mut PartSamples<'_>) {
        for (channel, sensor) in self.0.iter().enumerate() {
            out.put_or_bad(channel, sensor.read());
        }
    }
}
