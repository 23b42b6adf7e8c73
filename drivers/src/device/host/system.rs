//! Processor, load, memory and uptime (proc(5)).

use std::path::PathBuf;

use super::{Part, PartSamples};
use crate::bus::sysfs::{Sysfs, read_number, read_text};
use crate::channel::ChannelSpec;

pub(super) struct System {
    sysfs: Sysfs,
    channels: Vec<(What, ChannelSpec)>,
    last_times: Option<(u64, u64)>,
    frequency: PathBuf,
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    CpuUsed,
    CpuFrequency,
    Load(usize),
    Tasks,
    MemoryUsed,
    MemoryAvailable,
    MemoryTotal,
    SwapUsed,
    Uptime,
}

impl System {
    pub(super) fn find(sysfs: &Sysfs) -> Self {
        let percent = |name: &'static str| ChannelSpec::number(name, "/100").within(0.0, 100.0).digits(1);
        let bytes = |name: &'static str| {
            ChannelSpec::number(name, "B").within(0.0, 1e18).digits(0).class("data_size")
        };
        let mut channels = Vec::new();
        let frequency = sysfs.path("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq");
        if sysfs.text("proc/stat").is_some() {
            channels.push((What::CpuUsed, percent("cpu_used").titled("CPU used")));
        }
        if read_number::<f64>(&frequency).is_some() {
            let spec =
                ChannelSpec::number("cpu_frequency", "MHz").within(0.0, 1e5).digits(0).class("frequency");
            channels.push((What::CpuFrequency, spec.titled("CPU frequency")));
        }
        if sysfs.text("proc/loadavg").is_some() {
            for (n, name) in ["load_1m", "load_5m", "load_15m"].into_iter().enumerate() {
                channels.push((What::Load(n), ChannelSpec::number(name, "").within(0.0, 1e6)));
            }
            channels.push((What::Tasks, ChannelSpec::number("tasks", "").within(0.0, 1e7).digits(0)));
        }
        if let Some(memory) = sysfs.text("proc/meminfo") {
            channels.push((What::MemoryUsed, percent("memory_used")));
            channels.push((What::MemoryAvailable, bytes("memory_available")));
            channels.push((What::MemoryTotal, bytes("memory_total")));
            if memory_bytes(&memory, "SwapTotal").is_some_and(|total| total > 0) {
                channels.push((What::SwapUsed, percent("swap_used")));
            }
        }
        if sysfs.text("proc/uptime").is_some() {
            let spec = ChannelSpec::number("uptime", "s").within(0.0, 1e10).digits(0).class("duration");
            channels.push((What::Uptime, spec));
        }
        Self { sysfs: sysfs.clone(), channels, last_times: None, frequency }
    }

    /// Percent of the time since the last call that the processors were busy.
    fn cpu_used(&mut self) -> Option<f64> {
        let times = cpu_times(&self.sysfs.text("proc/stat")?)?;
        let (last_busy, last_all) = self.last_times.replace(times)?;
        let all = times.1.checked_sub(last_all).filter(|all| *all > 0)?;
        // iowait may run backwards (proc(5)).
        Some((times.0.saturating_sub(last_busy) as f64 / all as f64 * 100.0).min(100.0))
    }
}

impl Part for System {
    fn channels(&self) -> Vec<ChannelSpec> {
        self.channels.iter().map(|(_, spec)| spec.clone()).collect()
    }

    fn sample(&mut self, _now_ns: u64, out: &mut PartSamples<'_>) {
        let load = self.sysfs.text("proc/loadavg").unwrap_or_default();
        let memory = self.sysfs.text("proc/meminfo").unwrap_or_default();
        let bytes = |name| memory_bytes(&memory, name);
        let used = |free, total| {
            Some(100.0 - bytes(free)? as f64 / bytes(total).filter(|total| *total > 0)? as f64 * 100.0)
        };
        for channel in 0..self.channels.len() {
            let value = match self.channels[channel].0 {
                // The first call has nothing to compare with: no sample rather than a bad one.
                What::CpuUsed => {
                    if let Some(value) = self.cpu_used() {
                        out.put(channel, value);
                    }
                    continue;
                }
                What::CpuFrequency => {
                    read_text(&self.frequency).and_then(|khz| Some(khz.parse::<f64>().ok()? / 1e3))
                }
                What::Load(n) => load.split_whitespace().nth(n).and_then(|load| load.parse().ok()),
                What::Tasks => {
                    load.split_whitespace().nth(3).and_then(|tasks| tasks.split_once('/')?.1.parse().ok())
                }
                What::MemoryUsed => used("MemAvailable", "MemTotal"),
                What::MemoryAvailable => bytes("MemAvailable").map(|bytes| bytes as f64),
                What::MemoryTotal => bytes("MemTotal").map(|bytes| bytes as f64),
                What::SwapUsed => used("SwapFree", "SwapTotal"),
                What::Uptime => {
                    let uptime = self.sysfs.text("proc/uptime").unwrap_or_default();
                    uptime.split_whitespace().next().and_then(|seconds| seconds.parse().ok())
                }
            };
            out.put_or_bad(channel, value);
        }
    }
}

/// Busy and all ticks of the line `cpu`.
fn cpu_times(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    // user nice system idle iowait irq softirq steal; guest time is in user already.
    let ticks: Vec<u64> = line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let all = ticks.iter().fold(0_u64, |sum, ticks| sum.saturating_add(*ticks));
    let idle = ticks.get(3)?.saturating_add(*ticks.get(4).unwrap_or(&0));
    Some((all.saturating_sub(idle), all))
}

/// `MemTotal:       16384 kB`
fn memory_bytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_and_kilobytes_are_read_as_the_kernel_writes_them() {
        assert_eq!(cpu_times("cpu  100 10 50 800 20 5 15 0 0 0\ncpu0 1 2 3 4"), Some((180, 1000)));
        assert_eq!(cpu_times("cpu  1 2 x"), None);
        assert_eq!(memory_bytes("MemTotal:  16 kB\nMemFree: 1 kB", "MemTotal"), Some(16384));
        assert_eq!(memory_bytes("MemTotal:  16 kB", "MemAvailable"), None);
    }
}
