//! A start with a damaged spool of ten million readings: how long until readings are served, until all that can be read
//! is taken over, and what it takes of memory meanwhile.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Tidegate, binary, wait_until};

use crate::footprint::first_reading;
use crate::report::Report;

/// One round: what it promises is far from the noise.
pub(crate) fn run(_: usize, report: &mut Report) {
    let mut gateway = Tidegate::builder().tables(TABLES).prepare();
    let output = Command::new(binary())
        .args(["bench-spool", "--batch", "5000", "--count", &READINGS.to_string(), "--state-dir"])
        .arg(gateway.state_dir())
        .output()
        .expect("the binary can be started");
    assert!(output.status.success(), "bench-spool: {}", String::from_utf8_lossy(&output.stderr));
    let database =
        File::options().write(true).open(gateway.state_dir().join("spool.db")).expect("it is there");
    let pages = database.metadata().expect("it is there").len() / 4096;
    // The first page, through which everything else is found, and a hundred others.
    for page in (0..=100).map(|n| n * pages / 101) {
        database.write_all_at(&[0xA5; 4096], page * 4096).expect("there is room");
    }
    let begun = Instant::now();
    gateway.start_unready();
    wait_until(Duration::from_secs(30), || first_reading(&gateway)).expect("a reading is served");
    let served = begun.elapsed();
    let mut memory: f64 = 0.0;
    let taken = wait_until(Duration::from_secs(300), || {
        memory = memory.max(gateway.process().resident_bytes().expect("the gateway runs") as f64 / 1e6);
        (gateway.status()["spool"]["is_salvaging"] == false).then(|| begun.elapsed())
    });
    let taken = taken.expect("it ends");
    let gaps = gateway.status()["spool"]["gaps"].clone();
    let counts = gaps.as_array().expect("a list").iter().filter_map(|gap| gap["count"].as_u64());
    let (ranges, lost) = counts.fold((0, 0), |(ranges, lost), count| (ranges + 1, lost + count));
    // A page holds fewer than two hundred readings; some of those damaged held none.
    assert!(
        (50..=101).contains(&ranges) && (2_000..20_000).contains(&lost),
        "{ranges} ranges, {lost} readings: {gaps}"
    );
    report.at_most(
        "start with a damaged spool of 10 M readings",
        "ms",
        vec![served.as_secs_f64() * 1e3],
        5000.0,
    );
    report.at_least("readings taken over", "rows/s", vec![READINGS as f64 / taken.as_secs_f64()], 10_000.0);
    report.at_most("memory while they are taken over", "MB", vec![memory], 40.0);
}

const READINGS: u64 = 10_000_000;
const TABLES: &str = r#"
[spool]
max_size = "2GB"

[ledger]
interval = "off"

[[device]]
name = "cellar"
type = "bme280"
bus = "sim"
interval = "1s"
"#;
