//! GPIO chips and which of their lines have a name and a user. Asking changes nothing: no line is requested. Which line
//! carries a contact only the owner knows, so none is suggested.

use std::collections::HashSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Instant;

use gpiocdev::chip::Chip;

use super::{Found, Kind, access, clean, number_behind};
use crate::bus::sysfs::{Sysfs, names_in};

/// Each `/dev/gpiochipN` once, whatever links lead to it.
pub(super) fn find(sysfs: &Sysfs, deadline: Instant) -> Vec<Found> {
    let mut numbered: Vec<_> = names_in(&sysfs.path("dev"))
        .into_iter()
        .filter_map(|name| Some((number_behind("gpiochip", &name)?, name)))
        .collect();
    numbered.sort();
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for (_, name) in numbered.into_iter().take(MOST_CHIPS) {
        // Raspberry Pi OS links the Pi 5's old gpiochip4 to gpiochip0.
        let Ok(node) = fs::canonicalize(sysfs.path(&format!("dev/{name}"))) else { continue };
        if seen.insert(node.clone()) {
            found.push(chip(sysfs, &format!("/dev/{name}"), &node, deadline));
        }
    }
    found
}

fn chip(sysfs: &Sysfs, path: &str, node: &Path, deadline: Instant) -> Found {
    // Only reading is asked for; still the node's group is the one to be in, because using a line needs it.
    if let Some(problem) = access::problem(sysfs, node, "gpio") {
        return Found::new(Kind::GpioChip, path, "GPIO chip").with_problem(problem);
    }
    let opened = Chip::from_path(node).and_then(|chip| chip.info().map(|info| (chip, info)));
    let (chip, info) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            return Found::new(Kind::GpioChip, path, "GPIO chip").with_problem(clean(&error.to_string()));
        }
    };
    let mut lines = Vec::new();
    for offset in 0..info.num_lines.min(MOST_LINES) {
        if Instant::now() > deadline {
            break;
        }
        let Ok(line) = chip.line_info(offset) else { continue };
        lines.push(Line { name: line.name, consumer: line.consumer, is_used: line.used });
    }
    Found::new(Kind::GpioChip, path, describe(&info.label, info.num_lines, &lines))
}

struct Line {
    name: String,
    consumer: String,
    is_used: bool,
}

/// `pinctrl-bcm2711, 58 lines; free: GPIO4 GPIO17; in use: GPIO2 (i2c), ...`
fn describe(label: &str, count: u32, lines: &[Line]) -> String {
    let mut text = format!("{}, {count} lines", clean(label));
    let named = |is_used: bool| lines.iter().filter(move |line| line.is_used == is_used && has_name(line));
    let free: Vec<_> = named(false).map(|line| clean(&line.name)).collect();
    let used: Vec<_> = named(true)
        .map(|line| match clean(&line.consumer) {
            consumer if consumer.is_empty() => clean(&line.name),
            consumer => format!("{} ({consumer})", clean(&line.name)),
        })
        .collect();
    for (title, names) in [("free", free), ("in use", used)] {
        if names.is_empty() {
            continue;
        }
        let shown = names.len().min(MOST_SHOWN);
        let _ = write!(text, "; {title}: {}", names[..shown].join(" "));
        if shown < names.len() {
            let _ = write!(text, " and {} more", names.len() - shown);
        }
    }
    if !lines.iter().any(has_name) {
        text.push_str(", none of them named");
    }
    text
}

/// Lines without a function are named `-`, `NC` or not at all.
fn has_name(line: &Line) -> bool {
    !matches!(line.name.trim(), "" | "-" | "NC")
}

const MOST_CHIPS: usize = 64;
const MOST_LINES: u32 = 1024;

/// The header of a Raspberry Pi has 28.
const MOST_SHOWN: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::tests::machine;

    fn line(name: &str, consumer: &str, is_used: bool) -> Line {
        Line { name: name.to_owned(), consumer: consumer.to_owned(), is_used }
    }

    #[test]
    fn named_lines_are_shown_by_whether_they_are_free() {
        let lines = [
            line("GPIO2", "i2c", true),
            line("GPIO4", "", false),
            line("GPIO17\x1b", "", false),
            line("GPIO22", "", true),
            line("-", "", false),
            line("", "", true),
        ];
        assert_eq!(
            describe("pinctrl-bcm2711", 58, &lines),
            "pinctrl-bcm2711, 58 lines; free: GPIO4 GPIO17?; in use: GPIO2 (i2c) GPIO22"
        );
        assert_eq!(describe("gpio-sim", 2, &lines[4..]), "gpio-sim, 2 lines, none of them named");
        let many: Vec<_> = (0..50).map(|n| line(&format!("L{n}"), "", false)).collect();
        assert!(describe("x", 50, &many).ends_with("L39 and 10 more"));
    }

    #[test]
    fn what_is_no_chip_is_a_problem_and_links_are_followed_once() {
        let root =
            machine(&[("dev/gpiochip0", ""), ("dev/gpiochip4", "-> dev/gpiochip0"), ("dev/gpiochip", "")]);
        let found = find(&Sysfs::new(root.path()), Instant::now());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "/dev/gpiochip0");
        assert!(found[0].problem.is_some());
    }
}
