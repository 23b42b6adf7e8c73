//! Alarms: what people have to hear of, told once when it begins and once when it ends.
//!
//! | name | is raised while |
//! |---|---|
//! | `<device>/<channel>/above`, `…/below` | the value is beyond the limit that the configuration sets |
//! | `<device>/<channel>/quality` | the device answers, but this value has been unusable for `absent_after` |
//! | `<device>/<channel>/lease` | an output went to its safe state because nobody commanded it again in time |
//! | `<device>/absent` | the device has not answered as it should for `absent_after` |
//! | `spool/refusing` | readings cannot be written |
//! | `spool/damage`, `spool/loss` | the database was found damaged, or readings were lost, in the last 24 hours |
//! | `clock/unset` | the time has not been known for ten minutes |
//! | `uplink/<name>/budget` | an uplink's monthly budget is used up |
//!
//! Each is shown at once on the LAN (retained, `live.rs`) and among what is wrong (`health.rs`); its beginning and its
//! end are entries of the spool's alarm class, written without waiting for anything, and leave on every uplink's alarm
//! lane before any telemetry.

mod book;
mod limits;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::{info, warn};
use serde_json::{Value as Json, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::book::{Book, Change, Raised, Watched};
pub use self::limits::Limits;
use self::limits::Verdict;
use crate::clock::{Clock, Stamp, WallQuality};
use crate::config::Config;
use crate::gateway::Gateway;
use crate::payload;
use crate::reading::{ChannelId, Reading};
use crate::spool::{Entry, Gap, GapReason, Spool};

/// Takes note of what may be cause for alarm; nothing here waits. Cheap to clone.
#[derive(Clone)]
pub struct Alarms {
    /// Written wherever something is noticed, read by the task that tells; held for a few comparisons.
    book: Arc<Mutex<Book>>,
    changed: Arc<Notify>,
    clock: Clock,
}

impl Alarms {
    /// Nothing is wrong yet.
    pub fn new(clock: Clock, config: &Config) -> Self {
        let alarms = Self { book: Arc::default(), changed: Arc::default(), clock };
        alarms.change(|book, now| book.watch(watched(config), now));
        alarms
    }

    /// A reading came.
    pub fn reading(&self, reading: &Reading) {
        self.change(|book, _| book.reading(reading));
    }

    /// A device's state changed.
    pub fn device(&self, device: &str, is_well: bool, detail: &str) {
        self.change(|book, now| book.device(device, is_well, detail, now));
    }

    /// An output went to its safe state because its lease ran out.
    pub fn lapsed(&self, channel: &ChannelId, text: String) {
        let name = format!("{channel}/lease");
        self.change(|book, now| book.judge(&name, Verdict::Wrong, Duration::ZERO, now, || text));
    }

    /// An output was commanded: somebody is there again.
    pub fn commanded(&self, channel: &ChannelId) {
        let name = format!("{channel}/lease");
        self.change(|book, now| book.judge(&name, Verdict::Well, Duration::ZERO, now, String::new));
    }

    /// What is wrong with values and outputs, in words; what is wrong with devices, disk, clock and uplinks is said
    /// elsewhere before it becomes an alarm.
    pub fn problems(&self) -> Vec<String> {
        let is_of_channel = |name: &str| {
            name.rsplit_once('/')
                .is_some_and(|(_, word)| matches!(word, "above" | "below" | "quality" | "lease"))
        };
        let book = self.lock();
        book.raised().filter(|raised| is_of_channel(&raised.name)).map(|raised| raised.text.clone()).collect()
    }

    /// What is raised: `[{"name", "text", "since"}]`, by name.
    pub fn json(&self) -> Json {
        self.lock().raised().map(|raised| json!(raised)).collect()
    }

    fn change(&self, change: impl FnOnce(&mut Book, Stamp)) {
        let mut book = self.lock();
        change(&mut book, self.clock.stamp());
        if book.next_untold().is_some() {
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches what has to be looked at, and tells what has changed, until `stop`.
pub async fn run(gateway: Arc<Gateway>, stop: CancellationToken) {
    let alarms = &gateway.alarms;
    let mut config = gateway.config();
    let kept = kept(&gateway.spool).await;
    alarms.change(|book, now| {
        book.restore(kept);
        book.watch(watched(&config), now);
    });
    for raised in alarms.lock().raised() {
        gateway
            .live
            .set_alarm(&raised.name, &shown(&raised.name, true, &raised.text, raised.since.as_deref()));
    }
    let mut beat = tokio::time::interval(INTERVAL);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut overflown = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = alarms.changed.notified() => {}
            _ = beat.tick() => {
                let newest = gateway.config();
                if !Arc::ptr_eq(&newest, &config) {
                    config = newest;
                    alarms.change(|book, now| book.watch(watched(&config), now));
                }
                alarms.change(|book, now| look(book, &gateway, now));
            }
        }
        tell(&gateway).await;
        let counted = alarms.lock().overflown();
        if counted > overflown {
            warn!("{} alarms found no room", counted - overflown);
            overflown = counted;
        }
    }
}

/// Conditions that nobody reports: they are looked at now and then.
fn look(book: &mut Book, gateway: &Gateway, now: Stamp) {
    let verdict = |is_wrong| if is_wrong { Verdict::Wrong } else { Verdict::Well };
    let at_once = Duration::ZERO;
    let stats = gateway.spool.stats();
    book.judge("spool/refusing", verdict(stats.refusing.is_some()), at_once, now, || {
        let why = stats.refusing.clone().unwrap_or_default();
        format!("the spool cannot write, readings are being lost: {why}")
    });
    let since_ns = now.wall.map_or(0, |wall| wall.unix_ns) - DAY_NS;
    let recent: Vec<&Gap> = stats.gaps.iter().filter(|(at, _)| *at > since_ns).map(|(_, gap)| gap).collect();
    let is_damage = |gap: &Gap| gap.reason == GapReason::Damage;
    book.judge("spool/damage", verdict(recent.iter().any(|gap| is_damage(gap))), at_once, now, || {
        "the spool was found damaged; see the gaps for what is lost".into()
    });
    let is_loss = |gap: &Gap| !matches!(gap.reason, GapReason::Damage | GapReason::Thinned);
    book.judge("spool/loss", verdict(recent.iter().any(|gap| is_loss(gap))), at_once, now, || {
        "readings were lost; see the gaps for which".into()
    });
    let is_unset = now.wall.is_none_or(|wall| wall.quality == WallQuality::None);
    book.judge("clock/unset", verdict(is_unset), CLOCK_PATIENCE, now, || "the clock was never set".into());
    for handle in gateway.uplinks() {
        let (uplink, is_exhausted) = (&handle.config.name, handle.status().is_budget_exhausted);
        book.judge(&format!("uplink/{uplink}/budget"), verdict(is_exhausted), at_once, now, || {
            format!("uplink {uplink} has used up its monthly budget: only alarms go out")
        });
    }
    book.tick(now);
}

/// Tells what has begun or ended: on the LAN, then to the spool. What the spool cannot take now is told later.
async fn tell(gateway: &Gateway) {
    let alarms = &gateway.alarms;
    let mut has_told = false;
    loop {
        let next = alarms.lock().next_untold().cloned();
        let Some(Change { name, is_raised, text, stamp }) = next else { break };
        gateway.live.set_alarm(&name, &shown(&name, is_raised, &text, payload::rfc3339(&stamp).as_deref()));
        let entry = Entry::Alarm { name: name.clone(), is_raised, text: text.clone(), stamp };
        if let Err(error) = gateway.spool.append(vec![entry], true).await {
            // Said by the spool itself; the beat tries again.
            log::debug!("alarm {name} is not stored yet: {error}");
            break;
        }
        if is_raised {
            warn!(alarm:% = name; "{text}");
        } else {
            info!(alarm:% = name; "over: {text}");
        }
        alarms.lock().told();
        has_told = true;
    }
    if has_told {
        let raised: Vec<Raised> = alarms.lock().raised().cloned().collect();
        let kept = serde_json::to_vec(&raised).unwrap_or_default();
        if let Err(error) = gateway.spool.set_meta(KEPT, kept).await {
            warn!("what is raised is not kept for the next start: {error}");
        }
    }
}

/// What was raised when the gateway stopped.
async fn kept(spool: &Spool) -> Vec<Raised> {
    match spool.meta(KEPT).await {
        Ok(Some(kept)) => serde_json::from_slice(&kept).unwrap_or_default(),
        Ok(None) => Vec::new(),
        Err(error) => {
            warn!("what was raised before the start is not known: {error}");
            Vec::new()
        }
    }
}

fn watched(config: &Config) -> Watched {
    let mut limits = HashMap::new();
    for device in &config.devices {
        for (channel, wish) in &device.channels {
            if let Some((id, wanted)) = ChannelId::new(&device.name, channel).zip(wish.alarm.clone()) {
                limits.insert(id, wanted);
            }
        }
    }
    let devices = config.devices.iter().map(|device| (device.name.clone(), device.absent_after)).collect();
    let uplinks: BTreeSet<String> = config.uplinks.iter().map(|uplink| uplink.name.clone()).collect();
    Watched { limits, devices, uplinks }
}

/// As it stands under its topic.
fn shown(name: &str, is_raised: bool, text: &str, time: Option<&str>) -> String {
    json!({ "name": name, "raised": is_raised, "text": text, "time": time }).to_string()
}

/// How often what nobody reports is looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long after its start a machine may be without the time.
const CLOCK_PATIENCE: Duration = Duration::from_secs(600);
const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;
const KEPT: &str = "alarms";
