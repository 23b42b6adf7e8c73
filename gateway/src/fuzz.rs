//! Mutated input for what the gateway reads with code of its own: a program cannot be called from `tests/fuzz`, so these
//! targets are unit tests beside the code. They run shortly with the others, and for `FUZZ_SECONDS` each in
//! `tests/run fuzz`, which finds them by their names: each ends in `mutated_input`.

use std::time::{Duration, Instant};

use mutate::Mutator;
use seed::Rng;

// The mutations and dice of the other targets: one place says what a bad input looks like.
#[path = "../../tests/fuzz/mutate.rs"]
mod mutate;
#[allow(dead_code, reason = "the harness needs more of it")]
#[path = "../../tests/harness/seed.rs"]
mod seed;

/// Has `run` take inputs that grow out of the valid ones in `corpus`, and these first. `run` fails by panicking, or by
/// taking longer than [`LIMIT`]; the input and the seed are then said.
pub fn mutated(name: &str, corpus: Vec<Vec<u8>>, mut run: impl FnMut(&[u8])) {
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    // Longer runs look elsewhere each time.
    let mut rng = if seconds.is_some() { Rng::from_env(name) } else { Rng::new(1) };
    let length = seconds.map_or(SHORT, Duration::from_secs);
    let mut trial = |input: &[u8]| {
        let told = Told { name, input };
        let begun = Instant::now();
        run(input);
        assert!(begun.elapsed() < LIMIT, "{name}: an input takes {:?}", begun.elapsed());
        drop(told);
    };
    for input in &corpus {
        trial(input);
    }
    let mut mutator = Mutator::new(rng.bits(), corpus);
    let (begun, mut count) = (Instant::now(), 0u64);
    while begun.elapsed() < length {
        for _ in 0..16 {
            trial(mutator.input());
            count += 1;
        }
    }
    println!(
        "{name:<16} {count:>10} inputs, {:>8.0} per second",
        count as f64 / begun.elapsed().as_secs_f64()
    );
}

/// Says on a panic which input it was.
struct Told<'a> {
    name: &'a str,
    input: &'a [u8],
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: this input: \"{}\"", self.name, self.input.escape_ascii());
        }
    }
}

/// As part of the unit tests.
const SHORT: Duration = Duration::from_millis(200);
/// The longest one input may take, unoptimised and on a busy machine.
const LIMIT: Duration = Duration::from_secs(5);
