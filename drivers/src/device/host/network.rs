//! Bytes through each network interface (`/proc/net/dev`).

use super::{Part, PartSamples, Rate};
use crate::bus::sysfs::Sysfs;
use crate::channel::{ChannelSpec, name_from};

pub(super) struct Network {
    sysfs: Sysfs,
    interfaces: Vec<Interface>,
}

struct Interface {
    name: String,
    channel_name: String,
    received: Rate,
    sent: Rate,
}

impl Network {
    /// Every interface but the loopback and those that never carried a byte and have no hardware.
    pub(super) fn find(sysfs: &Sysfs) -> Self {
        let text = sysfs.text("proc/net/dev").unwrap_or_default();
        let mut interfaces: Vec<Interface> = Vec::new();
        for (name, received, sent) in counters(&text) {
            let has_hardware = sysfs.path(&format!("sys/class/net/{name}/device")).exists();
            let Some(channel_name) = name_from(&name[..name.len().min(32)]) else { continue };
            let is_known = interfaces.iter().any(|other| other.channel_name == channel_name);
            if name != "lo" && !is_known && (has_hardware || received + sent > 0) && interfaces.len() < MOST {
                let name = name.to_owned();
                interfaces.push(Interface {
                    name,
                    channel_name,
                    received: Rate::default(),
                    sent: Rate::default(),
                });
            }
        }
        Self { sysfs: sysfs.clone(), interfaces }
    }
}

impl Part for Network {
    fn channels(&self) -> Vec<ChannelSpec> {
        let mut channels = Vec::new();
        for Interface { name, channel_name, .. } in &self.interfaces {
            for way in ["received", "sent"] {
                let bytes = ChannelSpec::counter(format!("net_{channel_name}_{way}"), "B").class("data_size");
                channels.push(bytes.titled(format!("{name} {way}")));
            }
            for way in ["receive", "send"] {
                let rate =
                    ChannelSpec::number(format!("net_{channel_name}_{way}_rate"), "B/s").within(0.0, 1e12);
                channels.push(rate.digits(0).class("data_rate").titled(format!("{name} {way} rate")));
            }
        }
        channels
    }

    fn sample(&mut self, now_ns: u64, out: &mut PartSamples<'_>) {
        let text = self.sysfs.text("proc/net/dev").unwrap_or_default();
        for (n, interface) in self.interfaces.iter_mut().enumerate() {
            let found = counters(&text).find(|(name, ..)| *name == interface.name);
            out.put_or_bad(4 * n, found.map(|(_, received, _)| received as i64));
            out.put_or_bad(4 * n + 1, found.map(|(.., sent)| sent as i64));
            let Some((_, received, sent)) = found else { continue };
            if let Some(rate) = interface.received.per_second(received, now_ns) {
                out.put(4 * n + 2, rate);
            }
            if let Some(rate) = interface.sent.per_second(sent, now_ns) {
                out.put(4 * n + 3, rate);
            }
        }
    }
}

/// Name, bytes received, bytes sent of each line.
fn counters(text: &str) -> impl Iterator<Item = (&str, u64, u64)> {
    text.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let mut numbers = numbers.split_whitespace();
        let received = numbers.next()?.parse().ok()?;
        Some((name.trim(), received, numbers.nth(7)?.parse().ok()?))
    })
}

const MOST: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_ninth_number_are_bytes() {
        let text = "Inter-|   Receive | Transmit\n face |bytes packets|bytes\n  eth0: 437264108 17057 0 0 0 0 0 0 1173672 11080 0 0 0 0 0 0\n";
        assert_eq!(counters(text).collect::<Vec<_>>(), [("eth0", 437_264_108, 1_173_672)]);
    }
}
