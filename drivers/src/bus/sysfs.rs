//! sysfs and procfs below a root that tests can move, and the sensors that the kernel's own drivers show there:
//! thermal zones, hwmon and IIO (Linux `Documentation/ABI/testing/sysfs-class-thermal`, `.../sysfs-class-hwmon`,
//! `.../sysfs-bus-iio`).

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::channel::{ChannelSpec, name_from};

/// The root of a file system that looks like a Linux machine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysfs {
    root: PathBuf,
}

/// A value that a kernel driver shows in a file: `(number + offset) * scale`.
#[derive(Debug, Clone)]
pub struct KernelSensor {
    /// What it measures.
    pub spec: ChannelSpec,
    path: PathBuf,
    offset: f64,
    scale: f64,
}

impl Sysfs {
    /// Everything below `root`, which is `/` outside of tests.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// `path`, which begins without a slash, below the root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The file's text without white space at its ends.
    pub fn text(&self, path: &str) -> Option<String> {
        read_text(&self.path(path))
    }

    /// Every thermal zone, hwmon and IIO value of the machine that can be read now, in an order that does not depend
    /// on which driver was loaded first. Names are unique.
    pub fn sensors(&self) -> Vec<KernelSensor> {
        let mut sensors = self.thermal_zones();
        sensors.extend(self.hwmon());
        sensors.extend(self.iio());
        sensors.retain(|sensor| sensor.read().is_some());
        sensors.truncate(MOST_SENSORS);
        let mut names = HashSet::new();
        for sensor in &mut sensors {
            let first = sensor.spec.name.clone();
            let mut n = 1;
            while !names.insert(sensor.spec.name.clone()) {
                n += 1;
                sensor.spec.name = format!("{}_{n}", &first[..first.len().min(60)]).into();
            }
        }
        sensors
    }

    fn thermal_zones(&self) -> Vec<KernelSensor> {
        let zones = self.devices("sys/class/thermal", "thermal_zone").into_iter();
        let sensors = zones.filter_map(|zone| {
            let kind = read_text(&zone.join("type"))?;
            let name = name_from(&format!("temp {kind}"))?;
            let title = if kind.contains("cpu") || kind.contains("x86_pkg") {
                "CPU temperature".to_owned()
            } else {
                format!("Temperature {kind}")
            };
            Some(KernelSensor {
                spec: temperature(name).titled(title),
                path: zone.join("temp"),
                offset: 0.0,
                scale: 1e-3,
            })
        });
        sensors.collect()
    }

    fn hwmon(&self) -> Vec<KernelSensor> {
        let mut sensors = Vec::new();
        for device in self.devices("sys/class/hwmon", "hwmon") {
            // A thermal zone shows itself here once more.
            if fs::canonicalize(device.join("device"))
                .is_ok_and(|path| path.to_string_lossy().contains("thermal_zone"))
            {
                continue;
            }
            let Some(chip) = read_text(&device.join("name")) else { continue };
            for file in names_in(&device) {
                let Some(input) = file.strip_suffix("_input") else { continue };
                let kind = input.trim_end_matches(|c: char| c.is_ascii_digit());
                let label =
                    read_text(&device.join(format!("{input}_label"))).unwrap_or_else(|| input.to_owned());
                let Some(name) = name_from(&format!("{chip} {label}")) else { continue };
                let (spec, scale) = match kind {
                    "temp" => (temperature(name), 1e-3),
                    "in" => (ChannelSpec::number(name, "V").digits(3).class("voltage"), 1e-3),
                    "curr" => (ChannelSpec::number(name, "A").digits(3).class("current"), 1e-3),
                    "power" => (ChannelSpec::number(name, "W").digits(3).class("power"), 1e-6),
                    "humidity" => (
                        ChannelSpec::number(name, "%RH").within(0.0, 100.0).digits(1).class("humidity"),
                        1e-3,
                    ),
                    "fan" => (ChannelSpec::number(name, "rpm").digits(0), 1.0),
                    _ => continue,
                };
                let spec = spec.titled(format!("{chip} {label}"));
                sensors.push(KernelSensor { spec, path: device.join(&file), offset: 0.0, scale });
            }
        }
        sensors
    }

    fn iio(&self) -> Vec<KernelSensor> {
        let mut sensors = Vec::new();
        for device in self.devices("sys/bus/iio/devices", "iio:device") {
            let Some(chip) = read_text(&device.join("name")) else { continue };
            for file in names_in(&device) {
                let Some(channel) = file.strip_prefix("in_") else { continue };
                let (channel, is_raw) = match (channel.strip_suffix("_input"), channel.strip_suffix("_raw")) {
                    (Some(channel), _) => (channel, false),
                    (_, Some(channel)) => (channel, true),
                    _ => continue,
                };
                let kind = channel.split(|c: char| c.is_ascii_digit() || c == '-' || c == '_').next();
                let Some(name) = name_from(&format!("{chip} {channel}")) else { continue };
                let Some((spec, unit_scale)) = iio_quantity(kind.unwrap_or_default(), name) else { continue };
                let (mut offset, mut scale) = (0.0, 1.0);
                if is_raw {
                    // One for the channel, or one for all of its kind.
                    let setting = |what: &str| {
                        read_number(&device.join(format!("in_{channel}_{what}"))).or_else(|| {
                            read_number(&device.join(format!("in_{}_{what}", kind.unwrap_or_default())))
                        })
                    };
                    offset = setting("offset").unwrap_or(0.0);
                    // Without a scale a raw number has no unit.
                    let Some(raw_scale) = setting("scale") else { continue };
                    scale = raw_scale;
                }
                let spec = spec.titled(format!("{chip} {}", channel.replace('_', " ")));
                sensors.push(KernelSensor {
                    spec,
                    path: device.join(&file),
                    offset,
                    scale: scale * unit_scale,
                });
            }
        }
        sensors
    }

    /// The directories of a class whose names begin with `prefix`, in the order of what they hang on.
    fn devices(&self, class: &str, prefix: &str) -> Vec<PathBuf> {
        let class = self.path(class);
        let mut devices: Vec<_> = names_in(&class)
            .into_iter()
            .filter(|name| name.starts_with(prefix))
            .map(|name| class.join(name))
            .map(|path| (fs::canonicalize(path.join("device")).unwrap_or_else(|_| path.clone()), path))
            .collect();
        devices.sort();
        devices.into_iter().map(|(_, path)| path).collect()
    }
}

impl KernelSensor {
    /// The value now, in the unit of its channel.
    pub fn read(&self) -> Option<f64> {
        read_number(&self.path).map(|number: f64| (number + self.offset) * self.scale)
    }
}

/// The file's number.
pub(crate) fn read_number<T: FromStr>(path: &Path) -> Option<T> {
    read_text(path)?.parse().ok()
}

/// The file's text without white space at its ends, at most 64 KiB of it.
pub(crate) fn read_text(path: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(LONGEST_TEXT).read_to_string(&mut text).ok()?;
    text.truncate(text.trim_end().len());
    Some(text)
}

/// The names in a directory, sorted; none if there is no such directory.
pub(crate) fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn temperature(name: String) -> ChannelSpec {
    ChannelSpec::number(name, "Cel").within(-100.0, 250.0).digits(1).class("temperature")
}

/// The quantity of an IIO channel, and how its unit comes to SenML's.
fn iio_quantity(kind: &str, name: String) -> Option<(ChannelSpec, f64)> {
    let number = |unit: &'static str| ChannelSpec::number(name.clone(), unit).digits(3);
    Some(match kind {
        "temp" => (temperature(name), 1e-3),
        "humidityrelative" => (number("%RH").within(0.0, 100.0).digits(1).class("humidity"), 1e-3),
        "pressure" => (number("Pa").digits(0).class("atmospheric_pressure"), 1e3),
        "voltage" => (number("V").class("voltage"), 1e-3),
        "current" => (number("A").class("current"), 1e-3),
        "power" => (number("W").class("power"), 1e-3),
        "resistance" => (number("Ohm"), 1.0),
        "illuminance" => (number("lx").class("illuminance"), 1.0),
        "distance" | "proximity" => (number("m").class("distance"), 1.0),
        "accel" => (number("m/s2"), 1.0),
        "anglvel" => (number("rad/s"), 1.0),
        // Gauss.
        "magn" => (number("T").digits(9), 1e-4),
        "concentration" => (number("/100"), 1.0),
        _ => return None,
    })
}

const LONGEST_TEXT: u64 = 64 * 1024;

/// A machine with more is a server; a person would drown.
const MOST_SENSORS: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernels_drivers_show_comes_in_our_units() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
            ("sys/class/thermal/thermal_zone0/temp", "48312\n"),
            ("sys/class/hwmon/hwmon0/name", "ina219\n"),
            ("sys/class/hwmon/hwmon0/in1_input", "5112\n"),
            ("sys/class/hwmon/hwmon0/power1_input", "1250000\n"),
            ("sys/class/hwmon/hwmon0/temp1_input", "garbage\n"),
            ("sys/bus/iio/devices/iio:device0/name", "bme280\n"),
            ("sys/bus/iio/devices/iio:device0/in_temp_input", "24738\n"),
            ("sys/bus/iio/devices/iio:device0/in_pressure_input", "92.947\n"),
            ("sys/bus/iio/devices/iio:device0/in_humidityrelative_input", "41230\n"),
            ("sys/bus/iio/devices/iio:device1/name", "ads1015\n"),
            ("sys/bus/iio/devices/iio:device1/in_voltage0_raw", "1000\n"),
            ("sys/bus/iio/devices/iio:device1/in_voltage0_scale", "2\n"),
            ("sys/bus/iio/devices/iio:device1/in_voltage1_raw", "500\n"),
            ("sys/bus/iio/devices/iio:device1/in_voltage_scale", "3\n"),
            ("sys/bus/iio/devices/iio:device1/in_voltage_offset", "-100\n"),
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let sensors = Sysfs::new(dir.path()).sensors();
        let seen: Vec<_> = sensors
            .iter()
            .map(|s| format!("{} {:.4} {}", s.spec.name, s.read().unwrap(), s.spec.unit))
            .collect();
        assert_eq!(
            seen,
            [
                "temp_cpu-thermal 48.3120 Cel",
                "ina219_in1 5.1120 V",
                "ina219_power1 1.2500 W",
                "bme280_humidityrelative 41.2300 %RH",
                "bme280_pressure 92947.0000 Pa",
                "bme280_temp 24.7380 Cel",
                "ads1015_voltage0 1.8000 V",
                "ads1015_voltage1 1.2000 V",
            ]
        );
    }

    #[test]
    fn a_machine_without_any_is_no_error() {
        assert!(Sysfs::new("/nonexistent").sensors().is_empty());
    }
}
