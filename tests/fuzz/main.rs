//! Mutated input for every function that takes bytes from outside.
//!
//! `fuzz [--seconds N] [--seed N] [TARGET…]` starts a process per target, so that one that dies stops no other, and
//! prints how much each took. `fuzz --replay TARGET FILE` gives a target one file.
//!
//! Without coverage, but not without structure: inputs grow out of valid ones (mutate.rs). A target fails by a
//! panic, by an input that takes longer than [`watch::LIMIT`], or by memory beyond [`watch::MEMORY`]; the input is
//! then left in `tests/out`. The same seed gives the same inputs.

mod mutate;
mod targets;
mod watch;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use harness::Rng;

use mutate::Mutator;
use targets::{TARGETS, Target};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut seconds, mut seed, mut names) = (5u64, None, Vec::new());
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
        match argument.as_str() {
            "--seconds" => match number() {
                Some(n) => seconds = n,
                None => return usage("--seconds needs a number"),
            },
            "--seed" => match number() {
                Some(n) => seed = Some(n),
                None => return usage("--seed needs a number"),
            },
            "--only" | "--replay" => {
                let Some(target) = arguments.next().and_then(|name| find(&name)) else {
                    return usage("no such target");
                };
                if argument == "--only" {
                    return fuzz(target, seconds, seed.unwrap_or(0));
                }
                let Some(Ok(bytes)) = arguments.next().map(std::fs::read) else {
                    return usage("no such file");
                };
                (target.build)()(&bytes);
                return ExitCode::SUCCESS;
            }
            name => match find(name) {
                Some(target) => names.push(target.name),
                None => return usage(&format!("no target {name}")),
            },
        }
    }
    let seed = seed.unwrap_or_else(|| Rng::from_env("fuzz").bits() >> 32);
    let mut failed = 0;
    for target in TARGETS.iter().filter(|target| names.is_empty() || names.contains(&target.name)) {
        let status = Command::new(std::env::current_exe().expect("this program has a path"))
            .args(["--seconds", &seconds.to_string(), "--seed", &seed.to_string(), "--only", target.name])
            .status()
            .expect("this program can start itself");
        if !status.success() {
            println!("{}: FAILED, seed {seed}, {status}", target.name);
            failed += 1;
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one target in this process for a while.
fn fuzz(target: &Target, seconds: u64, seed: u64) -> ExitCode {
    let corpus = (target.corpus)();
    let mut run = (target.build)();
    watch::begin(target.name);
    for input in &corpus {
        watch::note(input);
        run(input);
    }
    let mut mutator = Mutator::new(seed, corpus);
    let begun = Instant::now();
    let mut count = 0u64;
    while begun.elapsed() < Duration::from_secs(seconds) {
        // Looking at the clock once in a while is enough, except where an input takes long.
        for _ in 0..target.batch {
            let input = mutator.input();
            watch::note(input);
            run(input);
            count += 1;
        }
    }
    watch::end();
    println!(
        "{:<16} {count:>10} inputs, {:>8.0} per second",
        target.name,
        count as f64 / begun.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

fn usage(problem: &str) -> ExitCode {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    eprintln!(
        "{problem}\nusage: fuzz [--seconds N] [--seed N] [{}]…\n       fuzz --replay TARGET FILE",
        names.join(" | ")
    );
    ExitCode::from(2)
}
