//! What the appliance promises of itself: memory at rest, time until the first reading is served, size on disk.

use std::time::{Duration, Instant};

use harness::{Incoming, MqttClient, Tidegate, binary, wait_until};

use crate::report::Report;

pub(crate) fn run(rounds: usize, report: &mut Report) {
    let (mut memory, mut first) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut gateway = Tidegate::builder().tables(DEMO).prepare();
        let begun = Instant::now();
        gateway.start_unready();
        let served = wait_until(Duration::from_secs(20), || first_reading(&gateway));
        served.expect("a reading is served");
        first.push(begun.elapsed().as_secs_f64() * 1e3);
        // At rest: everything has been read, stored and served several times.
        std::thread::sleep(Duration::from_secs(8));
        memory.push(gateway.process().resident_bytes().expect("the gateway runs") as f64 / 1e6);
    }
    report.at_most("memory at rest (RSS)", "MB", memory, 25.0);
    report.at_most("start to first reading served", "ms", first, 1000.0);
    let size = binary().metadata().expect("the binary is there").len();
    report.at_most("binary", "MB", vec![size as f64 / 1e6], 15.0);
}

/// Whether a subscriber is shown a reading: a retained value of the simulated chip.
pub(crate) fn first_reading(gateway: &Tidegate) -> Option<()> {
    let mut client = MqttClient::connect(gateway.mqtt(), "first").ok()?;
    client.subscribe("tidegate/+/cellar/temperature", 0).ok()?;
    let message = client.read(Duration::from_secs(5)).ok()??;
    matches!(message, Incoming::Publish { payload, .. } if !payload.is_empty()).then_some(())
}

/// The devices of a gateway that nobody has configured.
const DEMO: &str = r#"
[[device]]
name = "host"
type = "host"
interval = "2s"

[[device]]
name = "cellar"
type = "bme280"
bus = "sim"
address = 0x76
interval = "2s"

[[device]]
name = "door"
type = "gpio-input"
chip = "sim"
line = "GPIO17"

[[device]]
name = "meter"
type = "pulse-counter"
chip = "sim"
line = "GPIO22"

[[device]]
name = "pump"
type = "gpio-output"
chip = "sim"
line = "GPIO27"
"#;
