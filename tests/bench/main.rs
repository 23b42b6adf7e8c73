//! Tidegate beside its peers: the same load on both, rounds interleaved, medians and ratios printed.
//!
//! `bench [NAME…] [--rounds N]`; the names are those of [`BENCHES`]. Absolute figures belong to the machine they were
//! measured on; the ratios are what is compared. The table goes to standard output, the figures of every round as
//! JSON to `tests/out/bench.json`.

mod coap;
mod crowd;
mod drain;
mod durable;
mod footprint;
mod load;
mod mend;
mod mqtt;
mod report;
mod spool;

use std::process::ExitCode;

use report::Report;

fn main() -> ExitCode {
    let mut names = Vec::new();
    let mut rounds = 3;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => match arguments.next().and_then(|text| text.parse().ok()).filter(|n| *n > 0) {
                Some(number) => rounds = number,
                None => return usage("--rounds needs a number above zero"),
            },
            // The peer that answers what it is sent, as a process of its own so that its time can be told apart.
            "--udp-echo" => return coap::echo(),
            name if BENCHES.iter().any(|bench| bench.0 == name) => names.push(argument),
            other => return usage(&format!("no bench {other}")),
        }
    }
    let mut report = Report::new();
    for (name, run) in BENCHES {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            run(rounds, &mut report);
        }
    }
    report.print();
    report.write_json(&harness::out_dir().join("bench.json"));
    ExitCode::SUCCESS
}

fn usage(problem: &str) -> ExitCode {
    let names: Vec<&str> = BENCHES.iter().map(|bench| bench.0).collect();
    eprintln!("{problem}\nusage: bench [{}]… [--rounds N]", names.join(" | "));
    ExitCode::from(2)
}

/// A bench adds its measurements to the report, as many rounds as it is told.
type Bench = fn(usize, &mut Report);

/// All of them, in the order they run.
const BENCHES: [(&str, Bench); 10] = [
    ("fan-in", mqtt::fan_in),
    ("fan-out", mqtt::fan_out),
    ("crowd", crowd::run),
    ("durable", durable::run),
    ("coap", coap::run),
    ("spool", spool::run),
    ("drain", drain::run),
    ("wire", drain::wire),
    ("mend", mend::run),
    ("footprint", footprint::run),
];
