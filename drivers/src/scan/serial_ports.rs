//! Serial ports, none of them opened: opening one resets many an Arduino, and may be somebody else's already.

use std::collections::HashSet;
use std::fs;
use std::time::Instant;

use super::{Confidence, Found, Kind, Names, access, clean, number_behind, suggest};
use crate::bus::sysfs::{Sysfs, names_in};

/// By their lasting names under `/dev/serial/by-id` where they have one, else by the kernel's.
pub(super) fn find(sysfs: &Sysfs, _deadline: Instant) -> Vec<Found> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut names = Names::default();
    for id in names_in(&sysfs.path("dev/serial/by-id")).into_iter().take(MOST_PORTS) {
        let path = format!("dev/serial/by-id/{id}");
        let Some(tty) = tty_of(sysfs, &path) else { continue };
        let mut port = port(sysfs, &path, format!("{} ({tty})", clean(&id.replace('_', " "))), &tty);
        // What a TOML string cannot hold as it is stays unsuggested.
        if is_gnss(&id) && !id.contains(|c: char| c.is_control() || c == '"' || c == '\\') {
            let keys = format!("port = \"/{path}\"\nbaud = 9600\n");
            port.suggestion = suggest("nmea", &names.next("gnss"), &keys);
            port.confidence = Some(Confidence::Candidate);
        }
        found.push(port);
        seen.insert(tty);
    }
    let header = tty_of(sysfs, "dev/serial0");
    let bluetooth = tty_of(sysfs, "dev/serial1");
    let mut ttys: Vec<_> = names_in(&sysfs.path("dev"))
        .into_iter()
        .filter_map(|tty| kind_of(sysfs, &tty).map(|(prefix, number, what)| (prefix, number, tty, what)))
        .filter(|(_, _, tty, _)| !seen.contains(tty))
        .collect();
    ttys.sort();
    for (_, _, tty, what) in ttys.into_iter().take(MOST_PORTS) {
        let what = if header.as_ref() == Some(&tty) {
            format!("{what}, on the header (/dev/serial0)")
        } else if bluetooth.as_ref() == Some(&tty) {
            format!("{what}, usually Bluetooth's (/dev/serial1)")
        } else {
            what.to_owned()
        };
        found.push(port(sysfs, &format!("dev/{tty}"), what, &tty));
    }
    found
}

fn port(sysfs: &Sysfs, path: &str, what: String, tty: &str) -> Found {
    let mut found = Found::new(Kind::SerialPort, format!("/{}", clean(path)), what);
    let console = sysfs.text("sys/class/tty/console/active").unwrap_or_default();
    found.problem = if console.split_whitespace().any(|active| active == tty) {
        Some("the kernel's console is on it: take `console=` out of the boot command line first".to_owned())
    } else {
        access::problem(sysfs, &sysfs.path(path), "dialout")
    };
    found
}

/// The name of the port that a link leads to.
fn tty_of(sysfs: &Sysfs, link: &str) -> Option<String> {
    let node = fs::canonicalize(sysfs.path(link)).ok()?;
    node.file_name()?.to_str().map(str::to_owned)
}

/// Order, number, and what it is; `None` for terminals and for UARTs that no machine has.
fn kind_of(sysfs: &Sysfs, tty: &str) -> Option<(u8, u32, &'static str)> {
    for (order, (prefix, what)) in KINDS.iter().enumerate() {
        let Some(number) = number_behind(prefix, tty) else { continue };
        // The kernel makes four or more ttyS whether or not they exist; type 0 is PORT_UNKNOWN.
        let is_real = *prefix != "ttyS"
            || sysfs.text(&format!("sys/class/tty/{tty}/type")).is_some_and(|kind| kind != "0");
        return is_real.then_some((order as u8, number, *what));
    }
    None
}

fn is_gnss(id: &str) -> bool {
    let id = id.to_ascii_lowercase();
    ["gnss", "gps", "u-blox", "nmea"].iter().any(|word| id.contains(word))
}

const KINDS: [(&str, &str); 4] = [
    ("ttyUSB", "USB serial adapter"),
    ("ttyACM", "USB modem or microcontroller"),
    ("ttyAMA", "UART"),
    ("ttyS", "UART"),
];

const MOST_PORTS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::tests::{assert_suggestions_parse, machine};

    #[test]
    fn ports_are_listed_once_by_their_lasting_name() {
        let gnss = "usb-u-blox_AG_u-blox_7_-_GPS_GNSS_Receiver-if00";
        let root = machine(&[
            ("dev/ttyUSB0", ""),
            ("dev/ttyACM0", ""),
            ("dev/ttyACM1", ""),
            ("dev/ttyAMA0", ""),
            ("dev/ttyS0", ""),
            ("dev/ttyS1", ""),
            ("dev/tty1", ""),
            ("dev/ttyUSBx", ""),
            ("dev/serial0", "-> dev/ttyS0"),
            ("dev/serial1", "-> dev/ttyAMA0"),
            ("dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0", "-> dev/ttyUSB0"),
            (&format!("dev/serial/by-id/{gnss}"), "-> dev/ttyACM1"),
            ("dev/serial/by-id/usb-GPS\"\\evil", "-> dev/ttyACM0"),
            ("dev/serial/by-id/usb-unplugged", "-> dev/ttyUSB7"),
            ("sys/class/tty/ttyS0/type", "4\n"),
            ("sys/class/tty/ttyS1/type", "0\n"),
            ("sys/class/tty/console/active", "tty0 ttyS0\n"),
        ]);
        let found = find(&Sysfs::new(root.path()), Instant::now());
        let lines: Vec<_> = found.iter().map(|f| format!("{}: {}", f.path, f.what)).collect();
        assert_eq!(
            lines,
            [
                "/dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0: usb-FTDI FT232R USB UART \
                 A50285BI-if00-port0 (ttyUSB0)",
                "/dev/serial/by-id/usb-GPS\"\\evil: usb-GPS\"\\evil (ttyACM0)",
                "/dev/serial/by-id/usb-u-blox_AG_u-blox_7_-_GPS_GNSS_Receiver-if00: usb-u-blox AG u-blox 7 - GPS \
                 GNSS Receiver-if00 (ttyACM1)",
                "/dev/ttyAMA0: UART, usually Bluetooth's (/dev/serial1)",
                "/dev/ttyS0: UART, on the header (/dev/serial0)",
            ]
        );
        assert_eq!(assert_suggestions_parse(&found), 1);
        assert!(found[2].suggestion.as_ref().unwrap().contains(&format!("\"/dev/serial/by-id/{gnss}\"")));
        assert!(found[4].problem.as_ref().unwrap().contains("console"));
        assert!(found[..4].iter().all(|port| port.problem.is_none()), "{found:?}");
    }
}
