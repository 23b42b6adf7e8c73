//! Simulated GPIO lines: a contact that is opened now and then, a meter whose contact bounces, a relay. What an input
//! shows depends on its name and the time alone.

use std::collections::VecDeque;
use std::time::Duration;

use super::weather;
use crate::bus::gpio::{Edge, InputLine, OutputLine, SimSignal};
use crate::error::DeviceError;
use crate::monotonic_ns;

/// A simulated input.
#[derive(Debug)]
pub struct SimInput {
    seed: u64,
    signal: SimSignal,
    // Edges that lie ahead, in order; made piece by piece.
    ahead: VecDeque<(bool, u64)>,
    made_until_ns: u64,
    pieces: u64,
    is_active: bool,
    number: u32,
}

/// A simulated output: what was set is read back.
#[derive(Debug)]
pub struct SimOutput {
    is_active: bool,
}

impl SimInput {
    /// A line whose edges follow from `name`, beginning at `now_ns`.
    pub fn new(name: &str, signal: SimSignal, now_ns: u64) -> Self {
        let seed = name.bytes().fold(7, |seed, byte| weather::mix(seed, u64::from(byte)));
        Self {
            seed,
            signal,
            ahead: VecDeque::new(),
            made_until_ns: now_ns,
            pieces: 0,
            is_active: false,
            number: 0,
        }
    }

    /// The next edge up to `until_ns`.
    pub fn edge_until(&mut self, until_ns: u64) -> Option<Edge> {
        while self.ahead.is_empty() && self.made_until_ns <= until_ns {
            self.make_piece();
        }
        let (is_active, at_ns) = *self.ahead.front().filter(|(_, at_ns)| *at_ns <= until_ns)?;
        self.ahead.pop_front();
        self.is_active = is_active;
        self.number = self.number.wrapping_add(1);
        Some(Edge { is_active, at_ns, number: self.number })
    }

    fn make_piece(&mut self) {
        self.pieces += 1;
        let dice = weather::unit(self.seed, self.pieces);
        let ms = |ms: f64| (ms * 1e6) as u64;
        let start_ns = self.made_until_ns;
        match self.signal {
            // Shut for 5 to 25 s, open for half of that.
            SimSignal::Contact => {
                let shut_ns = ms(5000.0 + 20_000.0 * dice);
                self.bounce(true, start_ns + shut_ns);
                self.bounce(false, start_ns + shut_ns + shut_ns / 2);
                self.made_until_ns = start_ns + shut_ns + shut_ns / 2 + ms(100.0);
            }
            // 0.8 to 2.5 pulses a second, each 30 ms long, as an S0 meter makes them (EN 62053-31).
            SimSignal::Pulses => {
                let load = 0.5 + 0.5 * (start_ns as f64 / 1e9 / 60.0 * std::f64::consts::TAU).sin();
                let period_ns = ms(1250.0 - 850.0 * load + 50.0 * dice);
                self.bounce(true, start_ns + period_ns - ms(60.0));
                self.bounce(false, start_ns + period_ns - ms(30.0));
                self.made_until_ns = start_ns + period_ns;
            }
        }
    }

    /// The contact goes to `is_active` and jumps back once or twice, for less than a millisecond.
    fn bounce(&mut self, is_active: bool, at_ns: u64) {
        let times = weather::mix(self.seed, at_ns) % 3;
        for n in 0..times {
            self.ahead.push_back((is_active, at_ns + n * 300_000));
            self.ahead.push_back((!is_active, at_ns + n * 300_000 + 150_000));
        }
        self.ahead.push_back((is_active, at_ns + times * 300_000));
    }
}

impl InputLine for SimInput {
    fn next_edge(&mut self, timeout: Duration) -> Result<Option<Edge>, DeviceError> {
        let until_ns = monotonic_ns().saturating_add(timeout.as_nanos() as u64);
        let edge = self.edge_until(until_ns);
        let wake_ns = edge.map_or(until_ns, |edge| edge.at_ns);
        std::thread::sleep(Duration::from_nanos(wake_ns.saturating_sub(monotonic_ns())));
        Ok(edge)
    }

    fn is_active(&mut self) -> Result<bool, DeviceError> {
        Ok(self.is_active)
    }
}

impl SimOutput {
    /// A line driven to `is_active`.
    pub fn new(is_active: bool) -> Self {
        Self { is_active }
    }
}

impl OutputLine for SimOutput {
    fn set_active(&mut self, is_active: bool) -> Result<(), DeviceError> {
        self.is_active = is_active;
        Ok(())
    }

    fn is_active(&mut self) -> Result<bool, DeviceError> {
        Ok(self.is_active)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lines_edges_follow_from_its_name_alternate_and_never_go_back_in_time() {
        for signal in [SimSignal::Contact, SimSignal::Pulses] {
            let edges = |name| {
                let mut line = SimInput::new(name, signal, 5);
                std::iter::from_fn(move || line.edge_until(600_000_000_000)).collect::<Vec<_>>()
            };
            let door = edges("door");
            assert!(door.len() > 40, "{}", door.len());
            assert_eq!(door, edges("door"));
            assert_ne!(door, edges("gate"));
            for pair in door.windows(2) {
                assert!(pair[0].at_ns < pair[1].at_ns && pair[0].is_active != pair[1].is_active, "{pair:?}");
                assert_eq!(pair[0].number + 1, pair[1].number);
            }
        }
    }
}
