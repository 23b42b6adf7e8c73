//! GPIO lines over the kernel's character device (uAPI v2, through gpiocdev), addressed by line name.
//!
//! A chip's number changes between kernels (the Pi 5's header was gpiochip4, then gpiochip0), a line's name does not.
//! The kernel's own debounce is not used: it counts in jiffies (4 ms at 250 Hz) and swallows pulses of a few
//! milliseconds. Debouncing is done on the kernel's time stamps instead ([`Debounce`]).

use std::time::Duration;

use gpiocdev::Request;
use gpiocdev::line::{Bias as KernelBias, EdgeDetection, EdgeKind, EventClock, Offset};
use serde::Deserialize;

use crate::bus::Backend;
use crate::error::DeviceError;
use crate::setup::BusKey;
use crate::sim::gpio as sim;

/// Where a line is and how it is wired.
#[derive(Debug, Clone, PartialEq)]
pub struct LineAt {
    chip: Option<ChipName>,
    line: LineName,
    is_active_low: bool,
    bias: Bias,
    backend: Backend,
}

/// A chip's label (`pinctrl-bcm2711`), a path (`/dev/gpiochip-relays`), or `sim`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "ChipText")]
pub struct ChipName(String);

/// A line's name (`GPIO17`), or its offset on the chip that is named beside.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a line name such as \"GPIO17\", or an offset on the `chip` named beside"
)]
pub enum LineName {
    /// As the board's makers named it.
    Name(String),
    /// On the chip that is named.
    Offset(u32),
}

/// What pulls an open line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bias {
    /// As the firmware left it.
    #[default]
    AsIs,
    /// Nothing.
    Disabled,
    /// Up, for a contact to ground.
    PullUp,
    /// Down, for a contact to the supply.
    PullDown,
}

/// A line was switched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// The line became active.
    pub is_active: bool,
    /// `CLOCK_MONOTONIC` of the interrupt.
    pub at_ns: u64,
    /// Counts the line's edges; a gap shows how many were lost.
    pub number: u32,
}

/// A line that tells of its edges.
pub trait InputLine {
    /// Waits for the next edge, at most `timeout`.
    fn next_edge(&mut self, timeout: Duration) -> Result<Option<Edge>, DeviceError>;

    /// Whether the line is active now.
    fn is_active(&mut self) -> Result<bool, DeviceError>;
}

/// A line that we drive.
pub trait OutputLine {
    /// Drives it.
    fn set_active(&mut self, is_active: bool) -> Result<(), DeviceError>;

    /// Reads back what it is.
    fn is_active(&mut self) -> Result<bool, DeviceError>;
}

/// What a simulated input shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimSignal {
    /// A door that is opened now and then.
    Contact,
    /// A meter that pulses, its contact bouncing.
    Pulses,
}

/// Takes the bounces out of a row of edges: a level counts once it has stood for the whole period. Pure.
#[derive(Debug, Clone)]
pub struct Debounce {
    period_ns: u64,
    level: bool,
    candidate: Option<u64>,
}

impl LineAt {
    /// Joins the settings of a line.
    pub fn new(
        chip: Option<ChipName>,
        line: LineName,
        is_active_low: bool,
        bias: Bias,
        backend: Backend,
    ) -> Result<Self, String> {
        match &line {
            LineName::Offset(offset) if chip.is_none() => {
                return Err(format!(
                    "offset {offset} of which chip? name the line (`GPIO{offset}`), or add `chip`"
                ));
            }
            LineName::Name(name) if name.is_empty() || name.len() > 32 => {
                return Err(format!("`{name}` is no line name: `gpioinfo` lists them"));
            }
            _ => {}
        }
        if backend == Backend::Rppal && !cfg!(feature = "rppal") {
            return Err("this program was built without the feature `rppal`: leave `backend` out".to_owned());
        }
        Ok(Self { chip, line, is_active_low, bias, backend })
    }

    /// The thread's key.
    pub fn bus(&self) -> BusKey {
        BusKey::Gpio(self.occupies_line())
    }

    /// What only one device can have.
    pub fn occupies(&self) -> String {
        format!("gpio line {}", self.occupies_line())
    }

    /// On the simulated chip.
    pub fn is_simulated(&self) -> bool {
        self.chip.as_ref().is_some_and(|chip| chip.0 == "sim")
    }

    /// The line, if no chip has it.
    pub fn missing(&self) -> Option<String> {
        let is_missing = !self.is_simulated() && self.backend == Backend::Kernel && self.find().is_err();
        is_missing.then(|| self.occupies())
    }

    /// Opens the line as an input with both edges. `signal` is what a simulated one shows.
    pub fn open_input(&self, signal: SimSignal) -> Result<Box<dyn InputLine>, DeviceError> {
        if self.is_simulated() {
            return Ok(Box::new(sim::SimInput::new(&self.occupies_line(), signal, crate::monotonic_ns())));
        }
        #[cfg(feature = "rppal")]
        if self.backend == Backend::Rppal {
            return crate::bus::rppal::open_input(&self.occupies_line(), self.is_active_low, self.bias);
        }
        let (chip, offset) = self.find()?;
        let mut builder = Request::builder();
        builder
            .on_chip(&chip)
            .with_consumer(CONSUMER)
            .with_line(offset)
            .as_input()
            .with_edge_detection(EdgeDetection::BothEdges)
            .with_event_clock(EventClock::Monotonic)
            .with_kernel_event_buffer_size(KERNEL_EVENTS);
        self.wire(&mut builder);
        let request = builder.request().map_err(|error| self.explain(&error))?;
        Ok(Box::new(KernelInput { request, offset, at: self.clone() }))
    }

    /// Opens the line as an output that begins with `is_active`.
    pub fn open_output(&self, is_active: bool) -> Result<Box<dyn OutputLine>, DeviceError> {
        if self.is_simulated() {
            return Ok(Box::new(sim::SimOutput::new(is_active)));
        }
        #[cfg(feature = "rppal")]
        if self.backend == Backend::Rppal {
            return crate::bus::rppal::open_output(&self.occupies_line(), self.is_active_low, is_active);
        }
        let (chip, offset) = self.find()?;
        let mut builder = Request::builder();
        builder.on_chip(&chip).with_consumer(CONSUMER).with_line(offset).as_output(is_active.into());
        self.wire(&mut builder);
        let request = builder.request().map_err(|error| self.explain(&error))?;
        Ok(Box::new(KernelOutput { request, offset, at: self.clone() }))
    }

    fn wire(&self, builder: &mut gpiocdev::request::Builder) {
        if self.is_active_low {
            builder.as_active_low();
        }
        match self.bias {
            Bias::AsIs => {}
            Bias::Disabled => drop(builder.with_bias(KernelBias::Disabled)),
            Bias::PullUp => drop(builder.with_bias(KernelBias::PullUp)),
            Bias::PullDown => drop(builder.with_bias(KernelBias::PullDown)),
        }
    }

    /// `GPIO17`, or `pinctrl-bcm2711:17`, `sim:door`.
    fn occupies_line(&self) -> String {
        let line = self.line.text();
        self.chip.as_ref().map_or(line.clone(), |chip| format!("{}:{line}", chip.0))
    }

    /// Chip and offset of the line.
    fn find(&self) -> Result<(std::path::PathBuf, Offset), DeviceError> {
        let not_there = || DeviceError::NotPresent(self.occupies());
        let Some(chip) = &self.chip else {
            let LineName::Name(name) = &self.line else { return Err(not_there()) };
            let found = gpiocdev::find_named_line(name).ok_or_else(not_there)?;
            return Ok((found.chip, found.info.offset));
        };
        for path in gpiocdev::chip::chips().map_err(|_| not_there())? {
            let Ok(open) = gpiocdev::chip::Chip::from_path(&path) else { continue };
            let is_it = if chip.0.starts_with('/') {
                std::fs::canonicalize(&chip.0).is_ok_and(|named| named == path)
            } else {
                open.info().is_ok_and(|info| info.label == chip.0)
            };
            if is_it {
                return match &self.line {
                    LineName::Offset(offset) => Ok((path, *offset)),
                    LineName::Name(name) => {
                        open.find_line_info(name).map(|info| (path, info.offset)).ok_or_else(not_there)
                    }
                };
            }
        }
        Err(not_there())
    }

    fn explain(&self, error: &gpiocdev::Error) -> DeviceError {
        let what = self.occupies();
        // The library does not re-export the type that holds the error number; its text ends in `(os error 16)`.
        let text = error.to_string();
        let number =
            text.rsplit_once("(os error ").and_then(|(_, rest)| rest.split(')').next()?.parse().ok());
        match number {
            Some(errno) => DeviceError::from_io(what, &std::io::Error::from_raw_os_error(errno)),
            None => DeviceError::Io { what, message: text },
        }
    }
}

impl Debounce {
    /// For levels that stand for at least `period`; the line is at `level` now.
    pub fn new(period: Duration, level: bool) -> Self {
        Self { period_ns: period.as_nanos() as u64, level, candidate: None }
    }

    /// The level that counts.
    pub fn level(&self) -> bool {
        self.level
    }

    /// The line went to `level` at `at_ns`. Answers with the change that this edge proves, and when it began: either
    /// the one before, which stood long enough, or with a period of zero this one.
    pub fn edge(&mut self, level: bool, at_ns: u64) -> Option<(bool, u64)> {
        let settled = self.settle(at_ns);
        if level == self.level {
            self.candidate = None;
        } else if self.period_ns == 0 {
            self.level = level;
            return Some((level, at_ns));
        } else if self.candidate.is_none() {
            self.candidate = Some(at_ns);
        }
        settled
    }

    /// It is `now_ns` and no edge came: a level that stood long enough counts from when it began.
    pub fn settle(&mut self, now_ns: u64) -> Option<(bool, u64)> {
        let began_ns = self.candidate?;
        if now_ns < began_ns.saturating_add(self.period_ns) {
            return None;
        }
        self.candidate = None;
        self.level = !self.level;
        Some((self.level, began_ns))
    }

    /// When [`Debounce::settle`] is to be called next.
    pub fn due_ns(&self) -> Option<u64> {
        self.candidate.map(|began_ns| began_ns.saturating_add(self.period_ns))
    }

    /// Edges were lost: the line was read and is at `level`.
    pub fn resync(&mut self, level: bool, now_ns: u64) -> Option<(bool, u64)> {
        self.edge(level, now_ns)
    }
}

impl LineName {
    /// As it stands in the configuration.
    pub fn text(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Offset(offset) => offset.to_string(),
        }
    }
}

/// What a person may write for a chip; a number gets an explanation instead of a type error.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a chip's label such as \"pinctrl-bcm2711\"")]
enum ChipText {
    Text(String),
    Number(i64),
}

impl TryFrom<ChipText> for ChipName {
    type Error = String;

    fn try_from(text: ChipText) -> Result<Self, String> {
        let text = match text {
            ChipText::Text(text) => text,
            ChipText::Number(number) => number.to_string(),
        };
        let number = text.strip_prefix("/dev/").unwrap_or(&text);
        let number = number.strip_prefix("gpiochip").unwrap_or(number);
        if text.is_empty() || text.len() > 255 || number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!(
                "`{text}`: a chip's number changes between kernels; name the line alone (`line = \"GPIO17\"`), or \
                 the chip by its label (`pinctrl-bcm2711`, see `gpiodetect`)"
            ));
        }
        Ok(Self(text))
    }
}

struct KernelInput {
    request: Request,
    offset: Offset,
    at: LineAt,
}

impl InputLine for KernelInput {
    fn next_edge(&mut self, timeout: Duration) -> Result<Option<Edge>, DeviceError> {
        if !self.request.wait_edge_event(timeout).map_err(|error| self.at.explain(&error))? {
            return Ok(None);
        }
        let event = self.request.read_edge_event().map_err(|error| self.at.explain(&error))?;
        Ok(Some(Edge {
            is_active: event.kind == EdgeKind::Rising,
            at_ns: event.timestamp_ns,
            number: event.line_seqno,
        }))
    }

    fn is_active(&mut self) -> Result<bool, DeviceError> {
        self.request.value(self.offset).map(bool::from).map_err(|error| self.at.explain(&error))
    }
}

struct KernelOutput {
    request: Request,
    offset: Offset,
    at: LineAt,
}

impl OutputLine for KernelOutput {
    fn set_active(&mut self, is_active: bool) -> Result<(), DeviceError> {
        self.request
            .set_value(self.offset, is_active.into())
            .map(drop)
            .map_err(|error| self.at.explain(&error))
    }

    fn is_active(&mut self) -> Result<bool, DeviceError> {
        self.request.value(self.offset).map(bool::from).map_err(|error| self.at.explain(&error))
    }
}

/// What `gpioinfo` shows beside a line that we hold.
const CONSUMER: &str = "tidegate";

/// Edges that the kernel keeps for us while we are busy; the oldest are lost beyond, which the numbers show.
const KERNEL_EVENTS: u32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_bouncing_contact_changes_once_and_when_it_first_moved() {
        let mut debounce = Debounce::new(Duration::from_millis(20), false);
        let mut changes = Vec::new();
        for (level, at_ms) in
            [(true, 100), (false, 101), (true, 102), (false, 104), (true, 105), (false, 300), (true, 301)]
        {
            changes.extend(debounce.edge(level, at_ms * MS));
        }
        changes.extend(debounce.settle(400 * MS));
        assert_eq!(changes, [(true, 105 * MS)]);
        assert!(debounce.level());
    }

    #[test]
    fn pulses_of_three_milliseconds_are_all_counted_behind_one_of_debounce() {
        let mut debounce = Debounce::new(Duration::from_millis(1), false);
        let mut pulses = 0;
        for n in 0..400_u64 {
            for (level, at_ns) in [(true, n * 6 * MS), (false, n * 6 * MS + 3 * MS)] {
                pulses += u32::from(debounce.edge(level, at_ns).is_some_and(|(level, _)| level));
            }
        }
        assert_eq!(pulses, 400);
    }

    #[test]
    fn a_spike_is_no_pulse() {
        let mut debounce = Debounce::new(Duration::from_millis(10), false);
        assert_eq!(debounce.edge(true, 100 * MS), None);
        assert_eq!(debounce.edge(false, 101 * MS), None);
        assert_eq!(debounce.settle(200 * MS), None);
        assert_eq!(Debounce::new(Duration::ZERO, false).edge(true, 5), Some((true, 5)));
    }

    #[test]
    fn chips_are_not_numbered() {
        for bad in ["0", "gpiochip4", "/dev/gpiochip0", ""] {
            assert!(ChipName::try_from(ChipText::Text(bad.to_owned())).is_err(), "{bad}");
        }
        assert!(ChipName::try_from(ChipText::Number(0)).is_err());
        for good in ["pinctrl-bcm2711", "sim", "/dev/gpiochip-relays"] {
            assert!(ChipName::try_from(ChipText::Text(good.to_owned())).is_ok(), "{good}");
        }
        assert!(LineAt::new(None, LineName::Offset(17), false, Bias::AsIs, Backend::Kernel).is_err());
    }
}
