//! One device's way out: its channels, the checks on them, and what still has to be said of it.

use std::sync::Arc;

use drivers::check::{Calibration, Checker};
use drivers::gnss::TimeFix;
use drivers::schedule::State;
use drivers::{ChannelSpec, DeviceError, Lapse, Quality, Sample, Samples, Value, ValueType};

use super::{ChannelOverride, DeviceConfig, Event, Outlet};
use crate::clock::Stamp;
use crate::reading::{Channel, ChannelId, Reading};

/// One device's way out.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) config: DeviceConfig,
    outlet: Outlet,
    name: Arc<str>,
    channels: Vec<Option<Watched>>,
    online_is_unsaid: bool,
    unsaid_state: Option<(State, Option<String>)>,
    unsaid_lapse: Option<Lapse>,
}

#[derive(Debug)]
struct Watched {
    channel: Arc<Channel>,
    checker: Checker,
    calibration: Calibration,
    // What was last said, when it was bad: that is said once.
    last_bad: Option<Quality>,
}

impl Feed {
    pub(super) fn new(config: DeviceConfig, outlet: Outlet) -> Self {
        let name = config.name.as_str().into();
        Self {
            config,
            outlet,
            name,
            channels: Vec::new(),
            online_is_unsaid: false,
            unsaid_state: None,
            unsaid_lapse: None,
        }
    }

    /// The device answers and has these channels. Those that are known already keep their checks.
    pub(super) fn set_channels(&mut self, specs: &[ChannelSpec]) {
        let is_same =
            self.channels.len() == specs.len()
                && self.channels.iter().zip(specs).all(|(known, spec)| {
                    known.as_ref().is_none_or(|known| known.channel.name() == spec.name)
                });
        if is_same {
            return;
        }
        let grew = self.channels.len().min(specs.len());
        let is_longer = self
            .channels
            .iter()
            .zip(specs)
            .take(grew)
            .all(|(known, spec)| known.as_ref().is_none_or(|known| known.channel.name() == spec.name));
        if !is_longer || specs.len() < self.channels.len() {
            self.channels.clear();
        }
        for spec in &specs[self.channels.len()..] {
            let watched = self.watch(spec);
            if watched.is_none() {
                log::error!(device:% = self.name; "channel {} has no valid name", spec.name);
            }
            self.channels.push(watched);
        }
        self.online_is_unsaid = true;
    }

    /// Says the device's state.
    pub(super) fn say_state(&mut self, state: State, detail: Option<String>) {
        match &detail {
            Some(detail) => log::warn!(device:% = self.name; "{}: {detail}", state.as_str()),
            None => log::info!(device:% = self.name; "{}", state.as_str()),
        }
        self.unsaid_state = Some((state, detail));
        self.flush();
    }

    /// An output went to its safe state by itself.
    pub(super) fn say_lapse(&mut self, lapse: Lapse) {
        self.unsaid_lapse = Some(lapse);
        self.flush();
    }

    /// The device told the time.
    pub(super) fn take_fix(&self, fix: TimeFix) {
        self.outlet.clock.take_fix(fix);
    }

    /// Checks the samples of one poll and sends them as readings.
    pub(super) fn deliver(&mut self, samples: &mut Samples) {
        if samples.is_empty() {
            return;
        }
        let stamp = self.outlet.clock.stamp();
        let mut readings = Vec::with_capacity(samples.as_slice().len());
        for sample in samples.drain() {
            let Some(Some(watched)) = self.channels.get_mut(sample.channel) else { continue };
            let stamp = sample.at_ns.map_or(stamp, |at_ns| self.outlet.clock.stamp_at(at_ns));
            readings.extend(watched.judge(sample, stamp));
        }
        self.send(readings);
    }

    /// The device failed: says once of each channel that there is no value, and why.
    pub(super) fn fail(&mut self, error: &DeviceError) {
        let quality = error.quality();
        self.say_bad(quality);
        for watched in self.channels.iter_mut().flatten() {
            watched.checker.reset();
        }
    }

    /// Nothing came for too long.
    pub(super) fn say_bad(&mut self, quality: Quality) {
        let stamp = self.outlet.clock.stamp();
        let mut readings = Vec::new();
        for watched in self.channels.iter_mut().flatten() {
            if watched.last_bad.replace(quality) != Some(quality) {
                readings.push(Reading { channel: watched.channel.clone(), value: None, quality, stamp });
            }
        }
        if !self.send(readings) {
            // Not said: said again at the next failure.
            self.channels.iter_mut().flatten().for_each(|watched| watched.last_bad = None);
        }
    }

    /// Says what there was no room for before. Answers whether all is said.
    pub(super) fn flush(&mut self) -> bool {
        if self.online_is_unsaid {
            let channels = self.channels.iter().flatten().map(|watched| watched.channel.clone()).collect();
            let event = Event::Online { device: self.name.clone(), channels };
            self.online_is_unsaid = self.outlet.events.try_send(event).is_err();
        }
        if !self.online_is_unsaid
            && let Some((state, detail)) = self.unsaid_state.take()
        {
            let event = Event::State { device: self.name.clone(), state, detail: detail.clone() };
            if self.outlet.events.try_send(event).is_err() {
                self.unsaid_state = Some((state, detail));
            }
        }
        if !self.online_is_unsaid
            && let Some(lapse) = self.unsaid_lapse.take()
        {
            let event = Event::Lapsed { device: self.name.clone(), lapse: lapse.clone() };
            if self.outlet.events.try_send(event).is_err() {
                self.unsaid_lapse = Some(lapse);
            }
        }
        !self.online_is_unsaid && self.unsaid_state.is_none() && self.unsaid_lapse.is_none()
    }

    /// Readings never overtake the news of their channels.
    fn send(&mut self, readings: Vec<Reading>) -> bool {
        if self.flush() {
            return self.outlet.send_readings(readings);
        }
        self.outlet.dropped.fetch_add(readings.len() as u64, std::sync::atomic::Ordering::Relaxed);
        readings.is_empty()
    }

    fn watch(&self, spec: &ChannelSpec) -> Option<Watched> {
        let id = ChannelId::new(&self.config.name, &spec.name)?;
        let default = ChannelOverride::default();
        let wish = self.config.channels.get(&*spec.name).unwrap_or(&default);
        let calibration =
            Calibration { scale: wish.scale.unwrap_or(1.0), offset: wish.offset.unwrap_or(0.0) };
        let checker = Checker::new(spec, wish.range, calibration);
        let mut spec = spec.clone();
        if let Some((low, high)) = spec.range {
            let (a, b) = (calibration.apply(low), calibration.apply(high));
            spec.range = Some((a.min(b), a.max(b)));
        }
        spec.range = wish.range.or(spec.range);
        spec.precision = wish.precision.unwrap_or(spec.precision);
        if let Some(title) = &wish.title {
            spec.title = title.clone().into();
        }
        if spec.value_type == ValueType::Integer && calibration != Calibration::default() {
            spec.value_type = ValueType::Number;
        }
        let is_simulated = self.config.setup.is_simulated();
        let channel = Arc::new(Channel { id, spec, is_simulated });
        Some(Watched { channel, checker, calibration, last_bad: None })
    }
}

impl Watched {
    /// Checks one sample. A bad quality is a reading only when it is new.
    fn judge(&mut self, sample: Sample, stamp: Stamp) -> Option<Reading> {
        let (value, quality) = match sample.value {
            Some(Value::Number(raw)) => {
                let (value, quality) = self.checker.check(raw, sample.quality, stamp.monotonic_ns);
                (value.map(Value::Number), quality)
            }
            Some(Value::Integer(raw)) => {
                let (value, quality) = self.checker.check(raw as f64, sample.quality, stamp.monotonic_ns);
                let is_exact = self.calibration == Calibration::default();
                (
                    value.map(|value| if is_exact { Value::Integer(raw) } else { Value::Number(value) }),
                    quality,
                )
            }
            value => (value, sample.quality),
        };
        if matches!(quality, Quality::Bad(_)) {
            if self.last_bad.replace(quality) == Some(quality) {
                return None;
            }
        } else {
            self.last_bad = None;
        }
        Some(Reading { channel: self.channel.clone(), value, quality, stamp })
    }
}
