//! I2C adapters, and the chips on those that are there for chips like ours: the Raspberry Pi's header, buses over GPIO
//! lines, USB bridges, and what hangs on a multiplexer behind one of them.
//!
//! Others are listed and left alone, because what they lead to (a display's identity, a memory module, a power
//! controller, a camera, the identity of a HAT) may be changed for good by being asked. So are addresses that the kernel
//! knows a chip at.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use super::chips::{self, Answer};
use super::{Confidence, Found, Kind, Names, access, clean, number_behind, suggest};
use crate::bus::i2c::{I2cFault, I2cHandle, LinuxI2c};
use crate::bus::sysfs::{Sysfs, names_in};
use crate::error::DeviceError;

/// Every adapter and behind it what is on it.
pub(super) fn find(sysfs: &Sysfs, deadline: Instant) -> Vec<Found> {
    find_with(sysfs, deadline, |name| LinuxI2c::open(&format!("/dev/{name}")).map(I2cHandle::new))
}

fn find_with(
    sysfs: &Sysfs,
    deadline: Instant,
    open: impl Fn(&str) -> Result<I2cHandle, DeviceError>,
) -> Vec<Found> {
    let adapters = adapters(sysfs);
    let kernels = chips_of_the_kernel(sysfs);
    let mut order: Vec<_> = adapters.values().collect();
    // What answers on a bus answers behind its multiplexers too, and is shown where it is.
    order.sort_by_key(|adapter| (adapter.behind.len(), adapter.number));
    let mut names = Names::default();
    let mut taken: BTreeMap<&str, BTreeSet<u8>> = BTreeMap::new();
    let mut found = Vec::new();
    for adapter in order {
        let name = adapter.name.as_str();
        let mut bus = Found::new(Kind::I2cBus, format!("/dev/{name}"), adapter.title.clone());
        let of_kernel = kernels.get(name);
        let mut devices: Vec<_> = of_kernel.into_iter().flatten().map(|chip| chip.found(name)).collect();
        let mine = taken.entry(name).or_default();
        mine.extend(of_kernel.into_iter().flatten().map(|chip| chip.address));
        let mut skipped = mine.clone();
        skipped.extend(adapter.behind.iter().filter_map(|upper| taken.get(upper.as_str())).flatten());
        let node = sysfs.path(&format!("dev/{name}"));
        if let Some(reason) = adapter.reason_to_leave_alone(&adapters) {
            bus.what = format!("{}; not probed: {reason}", adapter.title);
        } else if !node.exists() {
            bus.problem =
                Some("has no device node: load the module i2c-dev (`sudo modprobe i2c-dev`)".into());
        } else {
            match open(name) {
                Ok(mut handle) => {
                    let (answers, problem) = probe(&mut handle, &skipped, deadline);
                    bus.problem = problem;
                    taken.entry(name).or_default().extend(answers.iter().map(|(address, _)| *address));
                    devices.extend(
                        answers
                            .into_iter()
                            .map(|(address, answer)| chip_found(name, address, answer, &mut names)),
                    );
                }
                Err(DeviceError::Permission(_)) => {
                    bus.problem = Some(access::no_permission(sysfs, &node, "i2c"));
                }
                Err(error) => bus.problem = Some(error.to_string()),
            }
        }
        devices.sort_by(|a, b| a.path.cmp(&b.path));
        found.push(bus);
        found.extend(devices);
    }
    found
}

/// Addresses and who is there; a fault where a kernel driver is.
type Answers = Vec<(u8, Result<Answer, I2cFault>)>;

/// Everybody who answers, and why the rest was not asked.
fn probe(handle: &mut I2cHandle, skipped: &BTreeSet<u8>, deadline: Instant) -> (Answers, Option<String>) {
    let mut answers = Vec::new();
    let (mut stuck, mut unclear) = (0, None);
    let (mut odd, mut asked) = (None, 0);
    for address in chips::addresses().filter(|address| !skipped.contains(address)) {
        if Instant::now() > deadline {
            return (answers, Some(format!("too slow: only asked below {address:#04x}")));
        }
        asked += 1;
        match chips::ask(handle, address) {
            Ok(Answer::Absent) => stuck = 0,
            Ok(answer) => {
                stuck = 0;
                answers.push((address, Ok(answer)));
            }
            // A kernel driver that sysfs does not show.
            Err(I2cFault::Busy) => answers.push((address, Err(I2cFault::Busy))),
            Err(fault @ (I2cFault::Timeout | I2cFault::Arbitration)) => {
                stuck += 1;
                unclear.get_or_insert((address, fault));
                if stuck == MOST_STUCK {
                    let problem = format!(
                        "the bus is stuck ({}): look for a short on SDA or SCL, missing pull-ups, a chip without \
                         power",
                        DeviceError::from(fault)
                    );
                    return (answers, Some(problem));
                }
            }
            Err(fault @ (I2cFault::Gone | I2cFault::Unsupported)) => {
                return (answers, Some(DeviceError::from(fault).to_string()));
            }
            // Some bridges have no better word for an address where nobody is.
            Err(fault @ (I2cFault::Nack | I2cFault::Other(_))) => {
                odd = Some((fault, odd.map_or(1, |(_, times)| times + 1)));
            }
        }
    }
    let all_odd =
        odd.filter(|(_, times)| *times == asked).map(|(fault, _)| DeviceError::from(fault).to_string());
    let unclear = unclear.map(|(address, fault)| format!("{} at {address:#04x}", DeviceError::from(fault)));
    (answers, all_odd.or(unclear))
}

fn chip_found(bus: &str, address: u8, answer: Result<Answer, I2cFault>, names: &mut Names) -> Found {
    let mut found = Found::new(Kind::I2cDevice, format!("{bus} {address:#04x}"), "");
    match answer {
        Ok(Answer::Known(known)) => {
            known.what.clone_into(&mut found.what);
            found.confidence = Some(known.confidence);
            let keys = format!("bus = \"{bus}\"\naddress = {address:#04x}\n");
            found.suggestion = known.device_type.and_then(|device_type| {
                // Asked first, so that a type which is not there uses up no name.
                suggest(device_type, device_type, &keys)?;
                suggest(device_type, &names.next(device_type), &keys)
            });
            if found.suggestion.is_none() {
                found.what.push_str(", which no device type reads");
            }
        }
        Ok(_) => {
            let usual = chips::usual_at(address);
            found.what = if usual.is_empty() {
                "a chip that does not tell what it is".to_owned()
            } else {
                format!("a chip that does not tell what it is; usual here: {usual}")
            };
            found.confidence = Some(Confidence::Candidate);
        }
        Err(_) => "held by a kernel driver".clone_into(&mut found.what),
    }
    found
}

struct Adapter {
    name: String,
    number: u32,
    /// The kernel's name for it.
    title: String,
    /// The kernel driver of the controller.
    driver: String,
    is_in_device_tree: bool,
    /// The adapters that it hangs behind.
    behind: Vec<String>,
}

impl Adapter {
    /// Why nobody is to be asked here.
    fn reason_to_leave_alone(&self, all: &BTreeMap<String, Adapter>) -> Option<&'static str> {
        if self.number == 0 {
            return Some("on a Raspberry Pi the identity of HATs and the camera");
        }
        let title = self.title.to_ascii_lowercase();
        if DISPLAYS.iter().any(|word| title.contains(word)) {
            return Some("a display's or the camera's");
        }
        if !self.behind.is_empty() {
            let uppers = || self.behind.iter().filter_map(|name| all.get(name));
            return if !title.contains("mux") || uppers().count() != self.behind.len() {
                Some("nobody knows what hangs here")
            } else {
                uppers().find_map(|upper| upper.reason_to_leave_alone(all))
            };
        }
        let is_for_us = match self.driver.as_str() {
            "i2c-gpio" => true,
            "i2c-bcm2835" | "i2c-bcm2708" => self.is_in_device_tree,
            // The Pi 5's; the same controller is in PCs, and 10 and 11 are the connectors of cameras and displays.
            "i2c_designware" | "i2c_designware_platform" => {
                self.is_in_device_tree && !matches!(self.number, 10 | 11)
            }
            _ => BRIDGES.iter().any(|word| title.contains(word)),
        };
        (!is_for_us).then_some("no bus for sensors, as far as is known")
    }
}

/// A chip that the kernel knows of.
struct KernelChip {
    address: u8,
    name: String,
    driver: Option<String>,
}

impl KernelChip {
    fn found(&self, bus: &str) -> Found {
        let what = match &self.driver {
            Some(driver) => {
                format!("{}, held by the kernel driver {driver}; `host` reads what that shows", self.name)
            }
            None => format!("{}, known to the kernel, not probed", self.name),
        };
        Found::new(Kind::I2cDevice, format!("{bus} {:#04x}", self.address), what)
    }
}

fn adapters(sysfs: &Sysfs) -> BTreeMap<String, Adapter> {
    let mut names = names_in(&sysfs.path("sys/bus/i2c/devices"));
    names.extend(names_in(&sysfs.path("dev")));
    let mut adapters = BTreeMap::new();
    for name in names {
        let Some(number) = number_behind("i2c-", &name) else { continue };
        if adapters.len() == MOST_ADAPTERS || adapters.contains_key(&name) {
            continue;
        }
        let link = format!("sys/bus/i2c/devices/{name}");
        let at = fs::canonicalize(sysfs.path(&link)).unwrap_or_default();
        let controller = at.parent().map(PathBuf::from).unwrap_or_default();
        let parts = at.iter().filter_map(|part| part.to_str());
        let behind = parts.filter(|part| number_behind("i2c-", part).is_some() && *part != name);
        let title = sysfs.text(&format!("{link}/name"));
        let adapter = Adapter {
            number,
            title: title.map_or_else(|| "I2C adapter".to_owned(), |title| clean(&title)),
            driver: link_name(controller.join("driver")).unwrap_or_default(),
            is_in_device_tree: at.join("of_node").exists() || controller.join("of_node").exists(),
            behind: behind.map(str::to_owned).collect(),
            name: name.clone(),
        };
        adapters.insert(name, adapter);
    }
    adapters
}

/// `1-0076` in sysfs, by adapter. Ten-bit addresses (`1-a076`) are nobody's whom we would ask.
fn chips_of_the_kernel(sysfs: &Sysfs) -> BTreeMap<String, Vec<KernelChip>> {
    let mut chips: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for entry in names_in(&sysfs.path("sys/bus/i2c/devices")) {
        let Some((number, address)) = entry.split_once("-00").filter(|(_, address)| address.len() == 2)
        else {
            continue;
        };
        let (Ok(number), Ok(address)) = (number.parse::<u32>(), u8::from_str_radix(address, 16)) else {
            continue;
        };
        let device = format!("sys/bus/i2c/devices/{entry}");
        let name =
            sysfs.text(&format!("{device}/name")).map_or_else(|| "a chip".to_owned(), |name| clean(&name));
        let driver = link_name(sysfs.path(&format!("{device}/driver"))).map(|driver| clean(&driver));
        chips.entry(format!("i2c-{number}")).or_default().push(KernelChip { address, name, driver });
    }
    chips
}

/// The last name of where a link leads.
fn link_name(link: PathBuf) -> Option<String> {
    fs::read_link(link).ok()?.file_name()?.to_str().map(str::to_owned)
}

/// In titles, in lower case. The addresses are the Raspberry Pi's: i2c0 and HDMI up to the Pi 3, HDMI of Pi 4 and 5.
const DISPLAYS: [&str; 14] = [
    "hdmi", "ddc", "dp aux", "dpdc", "aux ", "i915", "gmbus", "nvidia", "amdgpu", "radeon", "7e205000",
    "7e805000", "ef04500", "ef09500",
];

/// In titles, in lower case: buses that somebody plugged in or made for trying out.
const BRIDGES: [&str; 7] = ["usb", "cp2112", "mcp2221", "ch341", "ft260", "i2c_virtio", "smbus stub"];

const MOST_ADAPTERS: usize = 100;

/// Each costs the kernel's 100 ms.
const MOST_STUCK: u32 = 3;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::Duration;

    use embedded_hal::i2c::Operation;

    use super::*;
    use crate::bus::i2c::Transport;
    use crate::scan::tests::{assert_suggestions_parse, machine};
    use crate::sim::{SimBus, SimFaults, bme280, sht3x};

    const CONTROLLER: &str = "sys/devices/platform/soc/fe804000.i2c";

    /// A Raspberry Pi 4 with buses 0, 1 and a multiplexer's 5, HDMI's 20, and one without a node.
    fn pi() -> tempfile::TempDir {
        machine(&[
            ("dev/i2c-0", ""),
            ("dev/i2c-1", ""),
            ("dev/i2c-5", ""),
            ("dev/i2c-20", ""),
            ("sys/drivers/i2c-bcm2835/", ""),
            (&format!("{CONTROLLER}/driver"), "-> sys/drivers/i2c-bcm2835"),
            (&format!("{CONTROLLER}/of_node/"), ""),
            (&format!("{CONTROLLER}/i2c-1/name"), "bcm2835 (i2c@7e804000)\n"),
            (&format!("{CONTROLLER}/i2c-1/i2c-5/name"), "i2c-1-mux (chan_id 0)\n"),
            (&format!("{CONTROLLER}/i2c-1/1-0077/name"), "bme280\n"),
            (&format!("{CONTROLLER}/i2c-1/1-0077/driver"), "-> sys/drivers/bmp280"),
            (&format!("{CONTROLLER}/i2c-1/1-0070/name"), "pca9548\n"),
            ("sys/devices/platform/fef04500.i2c/i2c-20/name", "fef04500.i2c\n"),
            ("sys/devices/platform/i2c@0/driver", "-> sys/drivers/i2c-gpio"),
            ("sys/devices/platform/i2c@0/i2c-3/name", "i2c@0\n"),
            ("sys/bus/i2c/devices/i2c-1", &format!("-> {CONTROLLER}/i2c-1")),
            ("sys/bus/i2c/devices/i2c-3", "-> sys/devices/platform/i2c@0/i2c-3"),
            ("sys/bus/i2c/devices/i2c-5", &format!("-> {CONTROLLER}/i2c-1/i2c-5")),
            ("sys/bus/i2c/devices/i2c-20", "-> sys/devices/platform/fef04500.i2c/i2c-20"),
            ("sys/bus/i2c/devices/1-0077", &format!("-> {CONTROLLER}/i2c-1/1-0077")),
            ("sys/bus/i2c/devices/1-0070", &format!("-> {CONTROLLER}/i2c-1/1-0070")),
        ])
    }

    fn bus_with_sensors() -> Rc<RefCell<SimBus>> {
        let mut bus = SimBus::new();
        bus.plug(0x44, Box::new(sht3x::Sht3x::new(1)), SimFaults::default());
        bus.plug(0x76, Box::new(bme280::Bme280::new(1)), SimFaults::default());
        bus.plug(0x77, Box::new(bme280::Bme280::new(2)), SimFaults::default());
        Rc::new(RefCell::new(bus))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    fn lines(found: &[Found]) -> Vec<String> {
        found.iter().map(|f| format!("{} {}: {}", f.kind.as_str(), f.path, f.what)).collect()
    }

    #[test]
    fn only_sensor_buses_are_opened_and_the_kernels_chips_left_alone() {
        let root = pi();
        let opened = RefCell::new(Vec::new());
        let main = bus_with_sensors();
        let found = find_with(&Sysfs::new(root.path()), soon(), |name| {
            opened.borrow_mut().push(name.to_owned());
            let mut second = SimBus::new();
            second.plug(0x45, Box::new(sht3x::Sht3x::new(3)), SimFaults::default());
            // What is on the upper bus is seen from behind the multiplexer too.
            second.plug(0x76, Box::new(bme280::Bme280::new(1)), SimFaults::default());
            Ok(if name == "i2c-1" { I2cHandle::shared(main.clone()) } else { I2cHandle::new(second) })
        });
        assert_eq!(opened.take(), ["i2c-1", "i2c-5"]);
        assert_eq!(
            lines(&found),
            [
                "i2c-bus /dev/i2c-0: I2C adapter; not probed: on a Raspberry Pi the identity of HATs and the camera",
                "i2c-bus /dev/i2c-1: bcm2835 (i2c@7e804000)",
                "i2c-device i2c-1 0x44: Sensirion SHT30, SHT31 or SHT35",
                "i2c-device i2c-1 0x70: pca9548, known to the kernel, not probed",
                "i2c-device i2c-1 0x76: Bosch BME280",
                "i2c-device i2c-1 0x77: bme280, held by the kernel driver bmp280; `host` reads what that shows",
                "i2c-bus /dev/i2c-3: i2c@0",
                "i2c-bus /dev/i2c-20: fef04500.i2c; not probed: a display's or the camera's",
                "i2c-bus /dev/i2c-5: i2c-1-mux (chan_id 0)",
                "i2c-device i2c-5 0x45: Sensirion SHT30, SHT31 or SHT35",
            ]
        );
        assert!(found[6].problem.as_ref().unwrap().contains("modprobe i2c-dev"));
        assert_eq!(assert_suggestions_parse(&found), 3);
        assert_eq!(
            found[4].suggestion.as_deref(),
            Some("[[device]]\nname = \"bme280\"\ntype = \"bme280\"\nbus = \"i2c-1\"\naddress = 0x76\n")
        );
        assert!(found[9].suggestion.as_ref().unwrap().contains("name = \"sht3x-2\""));
    }

    #[test]
    fn a_faulty_bus_is_a_problem_and_the_others_go_on() {
        let root = pi();
        let sysfs = Sysfs::new(root.path());
        let dead = bus_with_sensors();
        dead.borrow_mut().set_dead(true);
        let found = find_with(&sysfs, soon(), |name| match name {
            "i2c-1" => Ok(I2cHandle::shared(dead.clone())),
            _ => Err(DeviceError::Permission(name.to_owned())),
        });
        assert_eq!(dead.borrow().transfers(), u64::from(MOST_STUCK));
        assert!(found[1].problem.as_ref().unwrap().contains("the bus is stuck (no answer in time)"));
        assert!(found.last().unwrap().problem.as_ref().unwrap().contains("no permission"));
        assert_eq!(assert_suggestions_parse(&found), 0);
        // No time at all: nobody is asked.
        let found = find_with(&sysfs, Instant::now().checked_sub(Duration::from_secs(1)).unwrap(), |_| {
            Ok(I2cHandle::shared(bus_with_sensors()))
        });
        assert!(found[1].problem.as_ref().unwrap().contains("too slow"));
    }

    /// A bus on which somebody holds the clock at one address, and a kernel driver another.
    struct Trouble(SimBus);

    impl Transport for Trouble {
        fn transfer(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), I2cFault> {
            match address {
                0x30 => Err(I2cFault::Timeout),
                0x31 => Err(I2cFault::Busy),
                _ => self.0.transfer(address, operations),
            }
        }
    }

    #[test]
    fn trouble_at_one_address_is_told_and_costs_the_others_nothing() {
        let root = pi();
        let found = find_with(&Sysfs::new(root.path()), soon(), |_| {
            let mut bus = SimBus::new();
            bus.plug(0x76, Box::new(bme280::Bme280::new(1)), SimFaults::default());
            Ok(I2cHandle::new(Trouble(bus)))
        });
        assert_eq!(found[1].problem.as_deref(), Some("no answer in time at 0x30"));
        assert_eq!(lines(&found)[2], "i2c-device i2c-1 0x31: held by a kernel driver");
        assert_eq!(assert_suggestions_parse(&found), 1);
    }

    #[test]
    fn adapters_of_displays_memory_and_pcs_are_left_alone() {
        let adapter = |title: &str, driver: &str, number, is_in_device_tree| {
            let (name, behind) = (format!("i2c-{number}"), Vec::new());
            let (title, driver) = (title.to_owned(), driver.to_owned());
            let adapter = Adapter { name, number, title, driver, is_in_device_tree, behind };
            adapter.reason_to_leave_alone(&BTreeMap::new()).is_none()
        };
        assert!(adapter("Synopsys DesignWare I2C adapter", "i2c_designware", 1, true));
        assert!(adapter("bcm2835 (i2c@7e205600)", "i2c-bcm2835", 3, true));
        assert!(adapter("i2c-tiny-usb at bus 001 device 004", "i2c-tiny-usb", 7, false));
        assert!(!adapter("Synopsys DesignWare I2C adapter", "i2c_designware", 1, false));
        assert!(!adapter("Synopsys DesignWare I2C adapter", "i2c_designware", 10, true));
        assert!(!adapter("bcm2835 (i2c@7e805000)", "i2c-bcm2835", 2, true));
        assert!(!adapter("bcm2835 (i2c@7e205000)", "i2c-bcm2835", 22, true));
        assert!(!adapter("107d508200.i2c", "brcmstb-i2c", 13, true));
        assert!(!adapter("SMBus I801 adapter at efa0", "i801_smbus", 4, false));
        assert!(!adapter("NVIDIA i2c adapter 1 at 1:00.0", "nouveau", 5, false));
        assert!(!adapter("SMBus stub driver", "", 0, false));
        assert!(adapter("SMBus stub driver", "", 9, false));
    }
}
