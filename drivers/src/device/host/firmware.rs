//! What a Raspberry Pi's firmware says of its power supply and its heat: the `get_throttled` word (bits as in the
//! documentation of `vcgencmd get_throttled`), or on mainline kernels the alarm of the `rpi_volt` hwmon.

use std::path::PathBuf;

use super::{Part, PartSamples};
use crate::bus::sysfs::{Sysfs, names_in, read_text};
use crate::channel::ChannelSpec;

pub(super) struct Firmware {
    throttled: Option<PathBuf>,
    alarm: Option<PathBuf>,
}

impl Firmware {
    pub(super) fn find(sysfs: &Sysfs) -> Self {
        let throttled = sysfs.path("sys/devices/platform/soc/soc:firmware/get_throttled");
        let throttled = Some(throttled).filter(|path| throttled_word(path).is_some());
        let hwmon = sysfs.path("sys/class/hwmon");
        let is_volt =
            |device: &PathBuf| read_text(&device.join("name")).is_some_and(|name| name == "rpi_volt");
        let alarm = names_in(&hwmon).into_iter().map(|name| hwmon.join(name)).find(is_volt);
        let alarm = alarm.map(|device| device.join("in0_lcrit_alarm"));
        Self { alarm: alarm.filter(|_| throttled.is_none()), throttled }
    }
}

impl Part for Firmware {
    fn channels(&self) -> Vec<ChannelSpec> {
        let problem = |name: &'static str, title| ChannelSpec::boolean(name).class("problem").titled(title);
        if self.throttled.is_some() {
            BITS.iter().map(|(_, name, title)| problem(name, *title)).collect()
        } else if self.alarm.is_some() {
            vec![problem(BITS[0].1, BITS[0].2)]
        } else {
            Vec::new()
        }
    }

    fn sample(&mut self, _now_ns: u64, out: &mut PartSamples<'_>) {
        if let Some(path) = &self.throttled {
            let word = throttled_word(path);
            for (channel, (bit, ..)) in BITS.iter().enumerate() {
                out.put_or_bad(channel, word.map(|word| word >> bit & 1 == 1));
            }
        } else if let Some(path) = &self.alarm {
            out.put_or_bad(0, read_text(path).map(|text| text != "0"));
        }
    }
}

/// `50005`, hexadecimal, with or without `0x`.
fn throttled_word(path: &std::path::Path) -> Option<u32> {
    let text = read_text(path)?;
    u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

const BITS: [(u32, &str, &str); 6] = [
    (0, "undervoltage", "Supply voltage too low"),
    (1, "frequency_capped", "Processor slowed down"),
    (2, "throttled", "Processor throttled"),
    (3, "soft_temp_limit", "Temperature limit reached"),
    (16, "undervoltage_seen", "Supply voltage was too low since boot"),
    (18, "throttled_seen", "Processor was throttled since boot"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Samples, Value};

    #[test]
    fn the_firmwares_word_becomes_its_bits() {
        let dir = tempfile::tempdir().unwrap();
        let firmware = dir.path().join("sys/devices/platform/soc/soc:firmware");
        std::fs::create_dir_all(&firmware).unwrap();
        std::fs::write(firmware.join("get_throttled"), "50005\n").unwrap();
        let mut part = Firmware::find(&Sysfs::new(dir.path()));
        let mut samples = Samples::new();
        part.sample(0, &mut PartSamples { first: 0, samples: &mut samples });
        let names = part.channels();
        let on = samples.as_slice().iter().filter(|sample| sample.value == Some(Value::Boolean(true)));
        let on: Vec<_> = on.map(|sample| &*names[sample.channel].name).collect();
        assert_eq!(on, ["undervoltage", "throttled", "undervoltage_seen", "throttled_seen"]);
    }
}
