//! What is connected to this machine, for `tidegate scan`, found without harming anything: nothing is configured, no
//! GPIO line is requested, no serial port opened, and on an I2C bus only what a chip's documentation calls a read is
//! done, and only on adapters that are there for chips like ours ([`i2c_buses`]).
//!
//! A gateway that reads the same chips at the same time may see one reading fail, and repeats it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use toml::de::DeTable;

use crate::bus::sysfs::Sysfs;
use crate::device;

mod access;
mod chips;
mod gpio_chips;
mod i2c_buses;
mod kernel_devices;
mod serial_ports;

/// One thing that is connected, or that could be if somebody mended `problem`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which sort of thing.
    pub kind: Kind,
    /// Where: `/dev/i2c-1`, `i2c-1 0x76`, `/dev/serial/by-id/...`, `/sys/class/...`. No control characters.
    pub path: String,
    /// What it is, in one line for a person. No control characters.
    pub what: String,
    /// How sure that is, where it had to be found out.
    pub confidence: Option<Confidence>,
    /// Why it cannot be used or was not looked at, and what to do.
    pub problem: Option<String>,
    /// The `[[device]]` that reads it. Its settings were parsed by the registry; names do not repeat in one scan.
    pub suggestion: Option<String>,
}

/// Sorts of things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An I2C adapter.
    I2cBus,
    /// A chip on an I2C bus.
    I2cDevice,
    /// A GPIO chip with its lines.
    GpioChip,
    /// A serial port.
    SerialPort,
    /// A thermal zone of the kernel.
    Thermal,
    /// A hardware monitor of the kernel.
    Hwmon,
    /// An industrial I/O device of the kernel.
    Iio,
    /// A slave on a 1-Wire bus of the kernel.
    OneWire,
}

/// How sure an identification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confidence {
    /// It said so itself.
    Certain,
    /// It looks like it.
    Candidate,
}

/// Everything that is connected, in the order of [`Kind`]; empty where there is nothing. Takes less than 3 s whatever
/// the kernel's drivers do; a part that does not finish in that time is named as a problem.
pub fn everything() -> Vec<Found> {
    below(Path::new("/"), TIME_LIMIT, &PARTS)
}

impl Kind {
    /// `i2c-bus`, `gpio-chip`, ...
    pub fn as_str(self) -> &'static str {
        match self {
            Self::I2cBus => "i2c-bus",
            Self::I2cDevice => "i2c-device",
            Self::GpioChip => "gpio-chip",
            Self::SerialPort => "serial-port",
            Self::Thermal => "thermal",
            Self::Hwmon => "hwmon",
            Self::Iio => "iio",
            Self::OneWire => "one-wire",
        }
    }
}

impl Confidence {
    /// `certain` or `candidate`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Certain => "certain",
            Self::Candidate => "candidate",
        }
    }
}

impl Found {
    fn new(kind: Kind, path: impl Into<String>, what: impl Into<String>) -> Self {
        let (path, what) = (path.into(), what.into());
        Self { kind, path, what, confidence: None, problem: None, suggestion: None }
    }

    fn with_problem(mut self, problem: impl Into<String>) -> Self {
        self.problem = Some(problem.into());
        self
    }
}

/// A corner of the machine to look into. Is to be done by the deadline, as far as that lies with us.
struct Part {
    kind: Kind,
    path: &'static str,
    find: fn(&Sysfs, Instant) -> Vec<Found>,
}

/// Device names that this scan gave away.
#[derive(Default)]
struct Names(HashSet<String>);

impl Names {
    /// `bme280`, then `bme280-2`, ...
    fn next(&mut self, name: &str) -> String {
        let mut next = name.to_owned();
        for n in 2.. {
            if self.0.insert(next.clone()) {
                break;
            }
            next = format!("{name}-{n}");
        }
        next
    }
}

/// Each part looks on its own thread: a driver of the kernel that hangs costs its part alone.
fn below(root: &Path, limit: Duration, parts: &'static [Part]) -> Vec<Found> {
    let began = Instant::now();
    let (deadline, end) = (began + limit / 4 * 3, began + limit);
    // Each part sends one message: never full.
    let (sender, results) = mpsc::sync_channel(parts.len());
    for (place, part) in parts.iter().enumerate() {
        let (sender, root) = (sender.clone(), PathBuf::from(root));
        // Without a thread the part is missing below, which names it.
        let _ = std::thread::Builder::new().name(format!("scan-{}", part.kind.as_str())).spawn(move || {
            let found = (part.find)(&Sysfs::new(root), deadline);
            let _ = sender.send((place, found));
        });
    }
    drop(sender);
    let mut found: Vec<Option<Vec<Found>>> = parts.iter().map(|_| None).collect();
    while let Ok((place, part)) = results.recv_timeout(end.saturating_duration_since(Instant::now())) {
        found[place] = Some(part);
    }
    let named = parts.iter().zip(found).flat_map(|(part, found)| {
        found.unwrap_or_else(|| {
            let problem = "a driver of the kernel did not answer in time: `dmesg` may say why";
            vec![Found::new(part.kind, part.path, "not listed").with_problem(problem)]
        })
    });
    named.take(MOST_FOUND).collect()
}

/// The `[[device]]` of that type with these own keys, if the registry takes it.
fn suggest(device_type: &str, name: &str, keys: &str) -> Option<String> {
    (device::find(device_type)?.parse)(DeTable::parse(keys).ok()?).ok()?;
    Some(format!("[[device]]\nname = \"{name}\"\ntype = \"{device_type}\"\n{keys}"))
}

/// What stands in sysfs or in a file's name is shown to a person: no control characters, and not too much of it.
fn clean(text: &str) -> String {
    text.trim().chars().take(MOST_CHARS).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// `name` is `prefix` and a number.
fn number_behind(prefix: &str, name: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    let is_number = (1..=5).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

#[rustfmt::skip] // A line each.
static PARTS: [Part; 4] = [
    Part { kind: Kind::I2cBus, path: "/dev/i2c-*", find: i2c_buses::find },
    Part { kind: Kind::GpioChip, path: "/dev/gpiochip*", find: gpio_chips::find },
    Part { kind: Kind::SerialPort, path: "/dev/tty*", find: serial_ports::find },
    Part { kind: Kind::Thermal, path: "/sys/class", find: kernel_devices::find },
];

const TIME_LIMIT: Duration = Duration::from_millis(2800);

/// A person would drown in more.
const MOST_FOUND: usize = 500;

const MOST_CHARS: usize = 120;

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes files with text, directories for names that end in `/`, and links for `(path, "-> target")`.
    pub(super) fn machine(entries: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in entries {
            let at = root.path().join(path);
            if path.ends_with('/') {
                std::fs::create_dir_all(at).unwrap();
                continue;
            }
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            match text.strip_prefix("-> ") {
                Some(target) => std::os::unix::fs::symlink(root.path().join(target), at).unwrap(),
                None => std::fs::write(at, text).unwrap(),
            }
        }
        root
    }

    /// All of them are one valid file, and each one's own keys are taken by its type. Answers with how many there are.
    pub(super) fn assert_suggestions_parse(found: &[Found]) -> usize {
        let suggestions: Vec<_> = found.iter().filter_map(|found| found.suggestion.as_deref()).collect();
        let whole: toml::Table = toml::from_str(&suggestions.concat()).unwrap();
        assert_eq!(whole.values().flat_map(|list| list.as_array().unwrap()).count(), suggestions.len());
        let mut names = HashSet::new();
        for suggestion in &suggestions {
            let mut keys = suggestion.splitn(4, '\n');
            assert_eq!(keys.next(), Some("[[device]]"));
            let mut word = |key: &str| {
                let value = keys.next().and_then(|line| line.strip_prefix(key)).unwrap();
                value.strip_prefix(" = \"").and_then(|value| value.strip_suffix('"')).unwrap()
            };
            let name = word("name");
            assert_eq!(crate::channel::name_from(name).as_deref(), Some(name));
            assert!(names.insert(name), "{name} twice");
            let device_type = device::find(word("type")).expect("a registered type");
            (device_type.parse)(DeTable::parse(keys.next().unwrap()).unwrap()).unwrap();
        }
        suggestions.len()
    }

    #[test]
    fn this_very_machine_is_scanned_in_time() {
        let began = Instant::now();
        let found = everything();
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        assert_suggestions_parse(&found);
        for found in found {
            assert!(!format!("{}{}", found.path, found.what).contains(char::is_control), "{found:?}");
        }
    }

    #[test]
    fn a_machine_with_nothing_has_nothing() {
        assert_eq!(below(Path::new("/nonexistent"), TIME_LIMIT, &PARTS), []);
    }

    #[test]
    fn a_part_that_hangs_is_named_and_the_others_are_shown() {
        static PARTS: [Part; 2] = [
            Part {
                kind: Kind::I2cBus,
                path: "/dev/i2c-*",
                find: |_, _| loop {
                    std::thread::park();
                },
            },
            Part {
                kind: Kind::Thermal,
                path: "/sys/class",
                find: |_, _| vec![Found::new(Kind::Thermal, "/sys/class/thermal/thermal_zone0", "cpu")],
            },
        ];
        let found = below(Path::new("/"), Duration::from_millis(50), &PARTS);
        assert_eq!(found.len(), 2);
        assert!(found[0].problem.as_ref().unwrap().contains("did not answer"), "{found:?}");
        assert_eq!((found[1].kind, found[1].what.as_str()), (Kind::Thermal, "cpu"));
    }

    #[test]
    fn names_do_not_repeat_and_what_no_type_takes_is_not_suggested() {
        let mut names = Names::default();
        assert_eq!(["a", "a", "b", "a"].map(|name| names.next(name)), ["a", "a-2", "b", "a-3"]);
        assert_eq!(suggest("no-such-type", "a", ""), None);
        assert_eq!(suggest("bme280", "a", "bus = \"i2c-1\"\naddress = 0x40\n"), None);
        assert!(suggest("bme280", "a", "bus = \"i2c-1\"\naddress = 0x77\n").is_some());
        assert_eq!(clean(" a\x1b[31mb\n"), "a?[31mb");
    }
}
