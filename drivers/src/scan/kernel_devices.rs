//! What the kernel's own drivers show in sysfs: thermal zones, hardware monitors, industrial I/O, 1-Wire slaves. Only
//! names are read: asking a sensor for its value can take a second.

use std::fs;
use std::time::Instant;

use super::{Found, Kind, clean, suggest};
use crate::bus::sysfs::{Sysfs, names_in};

/// All of them; one of them carries the `host` device that reads them all.
pub(super) fn find(sysfs: &Sysfs, _deadline: Instant) -> Vec<Found> {
    let mut found = thermal_zones(sysfs);
    found.extend(hwmon(sysfs));
    found.extend(iio(sysfs));
    if let Some(first) = found.first_mut() {
        first.suggestion = suggest("host", "host", "");
    }
    found.extend(one_wire(sysfs));
    found
}

fn thermal_zones(sysfs: &Sysfs) -> Vec<Found> {
    let zones = devices(sysfs, "sys/class/thermal", "thermal_zone").into_iter();
    zones
        .filter_map(|zone| {
            let kind = sysfs.text(&format!("{zone}/type"))?;
            Some(Found::new(Kind::Thermal, format!("/{zone}"), format!("temperature {}", clean(&kind))))
        })
        .collect()
}

fn hwmon(sysfs: &Sysfs) -> Vec<Found> {
    let mut found = Vec::new();
    for device in devices(sysfs, "sys/class/hwmon", "hwmon") {
        // A thermal zone shows itself here once more.
        let on = fs::canonicalize(sysfs.path(&format!("{device}/device")));
        if on.is_ok_and(|on| on.to_string_lossy().contains("thermal_zone")) {
            continue;
        }
        let Some(chip) = sysfs.text(&format!("{device}/name")) else { continue };
        let what = with_channels(&chip, sysfs, &device, |file| file.strip_suffix("_input"));
        found.push(Found::new(Kind::Hwmon, format!("/{device}"), what));
    }
    found
}

fn iio(sysfs: &Sysfs) -> Vec<Found> {
    let mut found = Vec::new();
    for device in devices(sysfs, "sys/bus/iio/devices", "iio:device") {
        let Some(chip) = sysfs.text(&format!("{device}/name")) else { continue };
        let what = with_channels(&chip, sysfs, &device, |file| {
            let channel = file.strip_prefix("in_")?;
            channel.strip_suffix("_input").or_else(|| channel.strip_suffix("_raw"))
        });
        found.push(Found::new(Kind::Iio, format!("/{device}"), what));
    }
    found
}

fn one_wire(sysfs: &Sysfs) -> Vec<Found> {
    let mut found = Vec::new();
    for name in names_in(&sysfs.path("sys/bus/w1/devices")).into_iter().take(MOST_DEVICES) {
        let Some((family, _)) = name.split_once('-').filter(|(family, _)| family.len() == 2) else {
            continue;
        };
        let device = format!("sys/bus/w1/devices/{name}");
        let chip = family_name(family).map_or_else(|| format!("family {}", clean(family)), str::to_owned);
        let is_monitored = !names_in(&sysfs.path(&format!("{device}/hwmon"))).is_empty();
        let reader = if is_monitored { ", read by the `host` device through hwmon" } else { "" };
        found.push(Found::new(Kind::OneWire, clean(&format!("/{device}")), format!("{chip}{reader}")));
    }
    found
}

/// `ina219: curr1 in0 in1 power1`
fn with_channels(chip: &str, sysfs: &Sysfs, device: &str, channel: impl Fn(&str) -> Option<&str>) -> String {
    let files = names_in(&sysfs.path(device));
    let channels: Vec<_> = files.iter().filter_map(|file| channel(file)).take(MOST_CHANNELS).collect();
    if channels.is_empty() { clean(chip) } else { clean(&format!("{}: {}", chip.trim(), channels.join(" "))) }
}

fn devices(sysfs: &Sysfs, class: &str, prefix: &str) -> Vec<String> {
    let names = names_in(&sysfs.path(class)).into_iter();
    let mut numbered: Vec<_> =
        names.filter_map(|name| Some((super::number_behind(prefix, &name)?, name))).collect();
    numbered.sort();
    numbered.into_iter().take(MOST_DEVICES).map(|(_, name)| format!("{class}/{name}")).collect()
}

/// Linux `drivers/w1/w1_family.h` and the slaves beside it.
fn family_name(family: &str) -> Option<&'static str> {
    Some(match family.to_ascii_lowercase().as_str() {
        "01" => "DS2401 serial number",
        "10" => "DS18S20 temperature",
        "12" => "DS2406 switch",
        "1c" => "DS28E04 memory",
        "1d" => "DS2423 counter",
        "22" => "DS1822 temperature",
        "26" => "DS2438 battery monitor",
        "28" => "DS18B20 temperature",
        "29" => "DS2408 switch",
        "2d" => "DS2431 memory",
        "3a" => "DS2413 switch",
        "3b" => "DS1825 or MAX31850 temperature",
        "42" => "DS28EA00 temperature",
        _ => return None,
    })
}

const MOST_DEVICES: usize = 100;
const MOST_CHANNELS: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::tests::{assert_suggestions_parse, machine};

    #[test]
    fn each_is_listed_once_and_the_host_device_suggested_once() {
        let root = machine(&[
            ("sys/class/thermal/thermal_zone10/type", "nvme\n"),
            ("sys/class/thermal/thermal_zone2/type", "cpu-thermal\n"),
            ("sys/class/thermal/cooling_device0/type", "fan\n"),
            ("sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
            ("sys/class/hwmon/hwmon0/device", "-> sys/class/thermal/thermal_zone2"),
            ("sys/class/hwmon/hwmon1/name", "ina219\n"),
            ("sys/class/hwmon/hwmon1/in1_input", "1"),
            ("sys/class/hwmon/hwmon1/curr1_input", "1"),
            ("sys/class/hwmon/hwmon1/in1_label", "x"),
            ("sys/bus/iio/devices/iio:device0/name", "bme280\n"),
            ("sys/bus/iio/devices/iio:device0/in_temp_input", "1"),
            ("sys/bus/w1/devices/28-0316a279f5ff/hwmon/hwmon3/", ""),
            ("sys/bus/w1/devices/ff-000000000001/", ""),
            ("sys/bus/w1/devices/w1_bus_master1/", ""),
        ]);
        let found = find(&Sysfs::new(root.path()), Instant::now());
        let lines: Vec<_> =
            found.iter().map(|f| format!("{} {}: {}", f.kind.as_str(), f.path, f.what)).collect();
        assert_eq!(
            lines,
            [
                "thermal /sys/class/thermal/thermal_zone2: temperature cpu-thermal",
                "thermal /sys/class/thermal/thermal_zone10: temperature nvme",
                "hwmon /sys/class/hwmon/hwmon1: ina219: curr1 in1",
                "iio /sys/bus/iio/devices/iio:device0: bme280: temp",
                "one-wire /sys/bus/w1/devices/28-0316a279f5ff: DS18B20 temperature, read by the `host` device \
                 through hwmon",
                "one-wire /sys/bus/w1/devices/ff-000000000001: family ff",
            ]
        );
        assert_eq!(assert_suggestions_parse(&found), 1);
        assert!(found[0].suggestion.is_some());
    }
}
