//! Which alarms there are, and which of their beginnings and ends are still to be told. Pure: `now` is given.
//!
//! A condition that is wrong for its delay raises its alarm, once; one that is well again ends it, once. What was raised
//! when the gateway stopped is taken over at the next start, so that its end is told too.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use drivers::{Quality, Value};
use serde::{Deserialize, Serialize};

use super::limits::{Limits, Verdict};
use crate::clock::Stamp;
use crate::payload;
use crate::reading::{ChannelId, Reading};

/// All alarms of a gateway.
#[derive(Debug, Default)]
pub struct Book {
    conditions: BTreeMap<Arc<str>, Condition>,
    untold: VecDeque<Change>,
    overflown: u64,
    watched: Watched,
    /// Devices that do not answer as they should: their channels' quality follows from that.
    unwell: BTreeSet<String>,
}

/// What is watched, as far as the configuration says.
#[derive(Debug, Default)]
pub struct Watched {
    /// The limits of channels.
    pub limits: HashMap<ChannelId, Limits>,
    /// Devices, and for how long they may be silent.
    pub devices: HashMap<String, Duration>,
    /// Uplinks.
    pub uplinks: BTreeSet<String>,
}

/// An alarm's beginning or end.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What tells the alarm from others.
    pub name: Arc<str>,
    /// Whether it begins.
    pub is_raised: bool,
    /// What is wrong, or was.
    pub text: Arc<str>,
    /// When it was noticed.
    pub stamp: Stamp,
}

/// An alarm that is raised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raised {
    /// What tells it from others.
    pub name: String,
    /// What is wrong.
    pub text: String,
    /// Since when, RFC 3339; `None` while the time was not known.
    pub since: Option<String>,
}

#[derive(Debug, Clone)]
struct Condition {
    wrong_since_ns: u64,
    delay: Duration,
    text: Arc<str>,
    raised: Option<Raised>,
}

impl Book {
    /// Takes over what was raised when the gateway stopped.
    pub fn restore(&mut self, raised: Vec<Raised>) {
        for raised in raised.into_iter().take(MAX_ALARMS) {
            let (name, text) = (raised.name.as_str().into(), raised.text.as_str().into());
            let known = self.conditions.entry(name);
            let delay = Duration::ZERO;
            known.or_insert(Condition { wrong_since_ns: 0, delay, text, raised: None }).raised = Some(raised);
        }
    }

    /// Watches this from now on; alarms of what is watched no more end.
    pub fn watch(&mut self, watched: Watched, now: Stamp) {
        self.watched = watched;
        let gone: Vec<Arc<str>> =
            self.conditions.keys().filter(|name| !self.watched.has(name)).cloned().collect();
        for name in gone {
            self.judge(&name, Verdict::Well, Duration::ZERO, now, String::new);
        }
        self.unwell.retain(|device| self.watched.devices.contains_key(device));
    }

    /// A reading came.
    pub fn reading(&mut self, reading: &Reading) {
        let (id, now) = (&reading.channel.id, reading.stamp);
        if let Some(limits) = self.watched.limits.get(id).cloned()
            && let Some(value) = reading.value.as_ref().and_then(Value::as_f64)
        {
            let unit = &reading.channel.spec.unit;
            for (word, verdict, limit) in
                [("above", limits.above(value), limits.above), ("below", limits.below(value), limits.below)]
            {
                if let Some((verdict, limit)) = verdict.zip(limit) {
                    let text = || format!("{id} is {value} {unit}, {word} {limit}").replace(" ,", ",");
                    self.judge(&format!("{id}/{word}"), verdict, limits.delay, now, text);
                }
            }
        }
        let Some(patience) = self.watched.devices.get(id.device()).copied() else { return };
        let name = format!("{id}/quality");
        match reading.quality {
            // A device that does not answer has an alarm of its own.
            Quality::Bad(_) if self.unwell.contains(id.device()) => {}
            Quality::Bad(_) => {
                let text = || format!("{id} has no usable value: {}", payload::quality_text(reading.quality));
                self.judge(&name, Verdict::Wrong, patience, now, text);
            }
            Quality::Good | Quality::Uncertain(_) => {
                self.judge(&name, Verdict::Well, patience, now, String::new);
            }
        }
    }

    /// A device's state changed.
    pub fn device(&mut self, device: &str, is_well: bool, detail: &str, now: Stamp) {
        let Some(patience) = self.watched.devices.get(device).copied() else { return };
        let verdict = if is_well { Verdict::Well } else { Verdict::Wrong };
        if is_well {
            self.unwell.remove(device);
        } else {
            self.unwell.insert(device.to_owned());
            // What was about to be told of its channels is told of it.
            let prefix = format!("{device}/");
            self.conditions.retain(|name, condition| {
                condition.raised.is_some() || !(name.starts_with(&prefix) && name.ends_with("/quality"))
            });
        }
        let text = || match detail {
            "" => format!("device {device} does not answer"),
            detail => format!("device {device} does not answer: {detail}"),
        };
        self.judge(&format!("{device}/absent"), verdict, patience, now, text);
    }

    /// Looks at one condition: wrong for `delay` it becomes an alarm, well again it ends. The text is that of its
    /// beginning.
    pub fn judge(
        &mut self,
        name: &str,
        verdict: Verdict,
        delay: Duration,
        now: Stamp,
        text: impl FnOnce() -> String,
    ) {
        match verdict {
            Verdict::Wrong if !self.conditions.contains_key(name) => {
                if self.conditions.len() >= MAX_ALARMS {
                    self.overflown += 1;
                    return;
                }
                let wrong_since_ns = now.monotonic_ns;
                let condition = Condition { wrong_since_ns, delay, text: text().into(), raised: None };
                self.conditions.insert(name.into(), condition);
                self.raise_due(now, Some(name));
            }
            Verdict::Wrong => self.raise_due(now, Some(name)),
            Verdict::Between => {
                if self.conditions.get(name).is_some_and(|condition| condition.raised.is_none()) {
                    self.conditions.remove(name);
                }
            }
            Verdict::Well => {
                if let Some((name, condition)) = self.conditions.remove_entry(name)
                    && condition.raised.is_some()
                {
                    self.tell(Change { name, is_raised: false, text: condition.text, stamp: now });
                }
            }
        }
    }

    /// Time has passed: what has been wrong for long enough is raised.
    pub fn tick(&mut self, now: Stamp) {
        self.raise_due(now, None);
    }

    /// The oldest beginning or end that is not told yet.
    pub fn next_untold(&self) -> Option<&Change> {
        self.untold.front()
    }

    /// It is on disk.
    pub fn told(&mut self) {
        self.untold.pop_front();
    }

    /// What is raised, by name.
    pub fn raised(&self) -> impl Iterator<Item = &Raised> {
        self.conditions.values().filter_map(|condition| condition.raised.as_ref())
    }

    /// Alarms that found no room, and beginnings and ends that were dropped untold.
    pub fn overflown(&self) -> u64 {
        self.overflown
    }

    fn raise_due(&mut self, now: Stamp, only: Option<&str>) {
        let mut changes = Vec::new();
        for (name, condition) in &mut self.conditions {
            let waited_ns = now.monotonic_ns.saturating_sub(condition.wrong_since_ns);
            let is_meant = only.is_none_or(|only| &**name == only);
            if is_meant && condition.raised.is_none() && waited_ns >= condition.delay.as_nanos() as u64 {
                let (name, text) = (name.clone(), condition.text.clone());
                let since = payload::rfc3339(&now);
                condition.raised = Some(Raised { name: name.to_string(), text: text.to_string(), since });
                changes.push(Change { name, is_raised: true, text, stamp: now });
            }
        }
        for change in changes {
            self.tell(change);
        }
    }

    fn tell(&mut self, change: Change) {
        if self.untold.len() >= MAX_UNTOLD {
            self.untold.pop_front();
            self.overflown += 1;
        }
        self.untold.push_back(change);
    }
}

impl Watched {
    /// Whether what an alarm of that name speaks of is still there.
    fn has(&self, name: &str) -> bool {
        let Some((subject, word)) = name.rsplit_once('/') else { return false };
        let channel = || ChannelId::parse(subject);
        match word {
            "above" => channel().is_some_and(|id| self.limits.get(&id).is_some_and(|l| l.above.is_some())),
            "below" => channel().is_some_and(|id| self.limits.get(&id).is_some_and(|l| l.below.is_some())),
            "quality" | "lease" => channel().is_some_and(|id| self.devices.contains_key(id.device())),
            "absent" => self.devices.contains_key(subject),
            "budget" => subject.strip_prefix("uplink/").is_some_and(|uplink| self.uplinks.contains(uplink)),
            _ => true,
        }
    }
}

/// Alarms at a time; further ones are counted and not raised. A gateway has no more channels than that.
const MAX_ALARMS: usize = 4096;
/// Beginnings and ends that wait for a disk that cannot be written; the oldest are dropped and counted.
const MAX_UNTOLD: usize = 4096;

#[cfg(test)]
mod tests {
    use drivers::{BadReason, ChannelSpec};

    use super::*;
    use crate::clock::Clock;
    use crate::reading::Channel;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(second: u64) -> Stamp {
        Stamp { monotonic_ns: second * 1_000_000_000, wall: None, ..Clock::new().stamp() }
    }

    fn reading(second: u64, value: f64) -> Reading {
        let spec = ChannelSpec::number("temperature", "Cel");
        let id = ChannelId::parse("cellar/temperature").unwrap();
        let channel = Arc::new(Channel { id, spec, is_simulated: false });
        Reading { channel, value: Some(Value::Number(value)), quality: Quality::Good, stamp: at(second) }
    }

    fn bad(second: u64) -> Reading {
        Reading { value: None, quality: Quality::Bad(BadReason::Crc), ..reading(second, 0.0) }
    }

    fn watched(limits: &str) -> Watched {
        let id = ChannelId::parse("cellar/temperature").unwrap();
        Watched {
            limits: HashMap::from([(id, toml::from_str(limits).unwrap())]),
            devices: HashMap::from([("cellar".to_owned(), 60 * SECOND)]),
            uplinks: BTreeSet::from(["cloud".to_owned()]),
        }
    }

    fn book(limits: &str) -> Book {
        let mut book = Book::default();
        book.watch(watched(limits), at(0));
        book
    }

    /// What there is to tell, in short: `+name: text` and `-name`.
    fn told(book: &mut Book) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(change) = book.next_untold() {
            told.push(if change.is_raised {
                format!("+{}: {}", change.name, change.text)
            } else {
                format!("-{}", change.name)
            });
            book.told();
        }
        told
    }

    #[test]
    fn an_alarm_is_raised_and_ended_once_each() {
        let mut book = book("above = 30\nhysteresis = 0.5");
        for (second, value) in [29.0, 30.0, 30.5, 31.0, 29.8, 30.2, 29.6].into_iter().enumerate() {
            book.reading(&reading(second as u64, value));
        }
        assert_eq!(told(&mut book), ["+cellar/temperature/above: cellar/temperature is 30.5 Cel, above 30"]);
        assert_eq!(book.raised().count(), 1);
        book.reading(&reading(10, 29.5));
        book.reading(&reading(11, 29.4));
        assert_eq!(told(&mut book), ["-cellar/temperature/above"]);
        assert_eq!(book.raised().count(), 0);
    }

    #[test]
    fn what_does_not_last_is_no_alarm_and_what_lasts_needs_no_further_reading() {
        let mut book = book("below = 2\ndelay = \"10s\"");
        book.reading(&reading(0, 1.0));
        book.reading(&reading(9, 1.0));
        book.reading(&reading(9, 3.0));
        book.tick(at(20));
        assert_eq!(told(&mut book), [""; 0]);
        book.reading(&reading(30, 1.0));
        book.tick(at(39));
        assert_eq!(told(&mut book), [""; 0]);
        book.tick(at(40));
        assert_eq!(told(&mut book), ["+cellar/temperature/below: cellar/temperature is 1 Cel, below 2"]);
    }

    #[test]
    fn a_silent_device_is_one_alarm_and_a_bad_channel_of_one_that_answers_another() {
        let mut book = book("above = 30");
        book.reading(&bad(0));
        book.device("cellar", false, "no acknowledge", at(1));
        book.reading(&bad(1));
        book.tick(at(200));
        assert_eq!(told(&mut book), ["+cellar/absent: device cellar does not answer: no acknowledge"]);
        book.device("cellar", true, "", at(300));
        book.reading(&bad(301));
        book.tick(at(302));
        assert_eq!(told(&mut book), ["-cellar/absent"]);
        book.tick(at(361));
        let text = "+cellar/temperature/quality: cellar/temperature has no usable value: bad: ";
        assert!(told(&mut book)[0].starts_with(text));
        book.reading(&reading(400, 20.0));
        assert_eq!(told(&mut book), ["-cellar/temperature/quality"]);
        book.device("stranger", false, "", at(400));
        book.tick(at(1000));
        assert_eq!(told(&mut book), [""; 0], "of no device that is configured");
    }

    #[test]
    fn an_alarm_that_outlives_a_restart_ends_with_evidence_or_with_what_it_speaks_of() {
        let mut first = book("above = 30");
        first.reading(&reading(0, 31.0));
        first.judge("uplink/cloud/budget", Verdict::Wrong, Duration::ZERO, at(0), || "used up".into());
        let kept: Vec<Raised> = first.raised().cloned().collect();
        let json = serde_json::to_string(&kept).unwrap();
        let mut second = Book::default();
        second.restore(serde_json::from_str(&json).unwrap());
        second.watch(watched("above = 30"), at(0));
        second.reading(&reading(1, 32.0));
        assert_eq!(told(&mut second), [""; 0], "it is known");
        second.watch(Watched { uplinks: BTreeSet::new(), ..watched("below = 2") }, at(2));
        assert_eq!(told(&mut second), ["-cellar/temperature/above", "-uplink/cloud/budget"]);
    }

    #[test]
    fn what_cannot_be_told_is_bounded_and_counted() {
        let mut book = Book::default();
        for n in 0..MAX_ALARMS + 5 {
            book.judge(&format!("x/{n}/test"), Verdict::Wrong, Duration::ZERO, at(0), String::new);
        }
        assert_eq!((book.overflown(), book.raised().count()), (5, MAX_ALARMS));
        for n in 0..MAX_ALARMS {
            book.judge(&format!("x/{n}/test"), Verdict::Well, Duration::ZERO, at(1), String::new);
        }
        let newest = told(&mut book);
        assert_eq!(newest.len(), MAX_UNTOLD);
        assert!(newest.iter().all(|change| change.starts_with('-')), "the newest are kept");
    }
}
