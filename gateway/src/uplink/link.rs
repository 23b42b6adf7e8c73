//! What an uplink's protocol sees of the spool: the next parcels, and where to say what was confirmed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{info, warn};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::forwarder::{Forwarder, Lane, Want};
use super::pace::{Account, Pace, Verdict};
use super::settings::{Common, Delivery};
use super::{Commands, Context, Status};
use crate::clock::{Clock, WallQuality};
use crate::payload::parcel::{Origin, Parcel, ParcelKey};
use crate::reading::Value;
use crate::spool::{Body, Class, Committed, Progress, Seq, Spool, SpoolError, Stored};

/// An uplink's access to the spool, over all its connections.
pub struct Link {
    name: String,
    origin: Origin,
    common: Common,
    spool: Spool,
    clock: Clock,
    committed: watch::Receiver<Committed>,
    forwarder: Forwarder,
    /// The progress that the spool was last told.
    noted: Progress,
    /// The protocol's own state, as the spool was last told.
    state: Vec<u8>,
    pace: Pace,
    kept_account: (Instant, Account),
    /// Since when there are entries for a batch that is not full yet.
    gathering: Option<Instant>,
    /// Given up by the cursor already, and not handed out yet (at most once).
    ready: Vec<Parcel>,
    stop: CancellationToken,
    status: Arc<Mutex<Status>>,
    rate: Rate,
    connected_at: Option<Instant>,
    commands: Commands,
}

impl Link {
    /// Takes up where the spool says that the uplink `name` left off.
    pub(super) async fn open(
        context: Context,
        spool: Spool,
        clock: Clock,
        commands: Commands,
        stop: CancellationToken,
        status: Arc<Mutex<Status>>,
    ) -> Result<Self, SpoolError> {
        let Context { name, origin, common } = context;
        let (progress, state) = spool.progress(&name).await?;
        let account: Account = match spool.meta(&account_key(&name)).await {
            Ok(Some(kept)) => serde_json::from_slice(&kept).unwrap_or_default(),
            _ => Account::default(),
        };
        let now = Instant::now();
        Ok(Self {
            forwarder: Forwarder::new(progress.clone(), common.window, common.live_first),
            committed: spool.committed(),
            noted: progress,
            state,
            pace: Pace::new(
                common.rate.map(|rate| rate.0),
                common.monthly_budget.map(|budget| budget.0),
                account,
                now,
            ),
            kept_account: (now, account),
            gathering: None,
            ready: Vec::new(),
            rate: Rate::new(),
            connected_at: None,
            name,
            origin,
            common,
            spool,
            clock,
            stop,
            status,
            commands,
        })
    }

    /// Fires when the uplink is to end.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Where commands from there go.
    pub fn commands(&self) -> Commands {
        self.commands.clone()
    }

    /// The peer accepted us.
    pub fn connected(&mut self, target: &str) {
        info!(uplink:% = self.name; "connected to {target}");
        self.connected_at = Some(Instant::now());
        self.set_state("connected", String::new(), None);
    }

    /// The next parcels to send, of one lane and in its order, no more than the window has room for. Waits until
    /// there are some. What is sent at most once is behind the cursor on disk when it is returned.
    ///
    /// Cancel-safe: entries count as sent only when they are returned.
    pub async fn next(&mut self) -> Result<Vec<Parcel>, SpoolError> {
        loop {
            if !self.ready.is_empty() {
                self.store(None).await?;
                return Ok(std::mem::take(&mut self.ready));
            }
            let committed = self.committed.borrow_and_update().clone();
            if let Some(stored) = committed.progress.get(&self.name) {
                self.forwarder.stored(stored);
            }
            // With every commit, so that a rate that has ended is not shown for ever.
            self.note();
            let want = self.forwarder.wants(&committed);
            if self.forwarder.is_late() {
                self.note_progress(true).await;
            }
            let Some(want) = want else {
                self.committed.changed().await.map_err(|_| SpoolError::Closed)?;
                continue;
            };
            if let Some(wait) = self.hold(want) {
                // Either way it is looked again: what is committed meanwhile may be more urgent.
                if let Ok(changed) = tokio::time::timeout(wait, self.committed.changed()).await {
                    changed.map_err(|_| SpoolError::Closed)?;
                }
                continue;
            }
            self.keep_account(false).await;
            let parcels = self.read(want).await?;
            self.note();
            if parcels.is_empty() {
                self.note_progress(false).await;
            } else if self.common.delivery == Delivery::AtMostOnce {
                for parcel in &parcels {
                    self.forwarder.confirmed(parcel.key.lane, parcel.key.last);
                    self.rate.count(parcel.entries as u64);
                }
                self.note();
                self.ready = parcels;
            } else {
                return Ok(parcels);
            }
        }
    }

    /// The peer has this parcel for good; `false` for one that was not sent over this connection.
    pub async fn confirmed(&mut self, key: ParcelKey) -> bool {
        let Some(entries) = self.forwarder.confirmed(key.lane, key.last) else {
            return key.last <= self.forwarder.cursor(key.lane);
        };
        self.rate.count(entries as u64);
        if self.forwarder.is_late() || self.forwarder.in_flight() == 0 {
            self.note_progress(self.forwarder.is_late()).await;
        }
        self.note();
        true
    }

    /// The peer says that it has everything of `lane` up to `last`, from an earlier connection. To be told before
    /// anything of that lane is sent.
    pub fn confirmed_through(&mut self, lane: Lane, last: Seq) {
        self.forwarder.confirmed_through(lane, last);
        self.note();
    }

    /// Takes parcels that an earlier connection, or process, had in flight for in flight again; in order, before
    /// anything else is sent. `false` for one that is not to be finished any more.
    pub fn resumed(&mut self, key: ParcelKey, entries: usize) -> bool {
        let is_taken = self.forwarder.resumed(key.lane, key.first, key.last, entries);
        self.note();
        is_taken
    }

    /// Makes a parcel again from the log; `None` when its entries are gone.
    pub async fn rebuild(&self, key: ParcelKey) -> Result<Option<Parcel>, SpoolError> {
        let after = Seq(key.first.0 - 1);
        let entries = self.spool.read(class_of(key.lane), after, key.last, self.common.window).await?;
        Ok(Parcel::new(&self.origin, key.lane, self.common.packing(), &entries))
    }

    /// The protocol's own state, as it was last stored.
    pub fn state(&self) -> &[u8] {
        &self.state
    }

    /// Stores the protocol's own state together with the progress; returns when both are on disk.
    pub async fn store_state(&mut self, state: Vec<u8>) -> Result<(), SpoolError> {
        self.store(Some(state)).await
    }

    /// How many messages were sent again although the peer may have had them.
    pub fn note_doubtful(&mut self, count: u64) {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).doubtful = count;
    }

    /// Whether the connection held long enough to be called healthy; forgets it.
    pub(super) fn take_connected(&mut self) -> Option<Duration> {
        self.connected_at.take().map(|at| at.elapsed())
    }

    /// Whether there is a connection.
    pub(super) fn is_connected(&self) -> bool {
        self.connected_at.is_some()
    }

    /// The connection is gone.
    pub(super) async fn disconnected(&mut self) {
        self.note_progress(false).await;
        self.forwarder.disconnected();
        self.gathering = None;
        self.keep_account(true).await;
    }

    /// Has telemetry of `(after, until]` sent once more; how many places that are. Only between two connections.
    pub(super) async fn replay(&mut self, after: Seq, until: Seq) -> Result<u64, SpoolError> {
        let places = self.forwarder.replay(after, until);
        self.store(None).await?;
        Ok(places)
    }

    /// Gives up telemetry up to `until`; the ranges that were not confirmed. Only between two connections.
    pub(super) async fn give_up(&mut self, until: Seq) -> Result<Vec<(Seq, Seq)>, SpoolError> {
        let given_up = self.forwarder.give_up(until);
        self.store(None).await?;
        Ok(given_up)
    }

    pub(super) fn set_state(&mut self, state: &'static str, detail: String, next_try: Option<Instant>) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.state = state;
        status.detail = detail;
        status.next_try = next_try;
        drop(status);
        self.note();
    }

    /// How long telemetry has to wait: for its rate, the next month, or others to share its message.
    fn hold(&mut self, want: Want) -> Option<Duration> {
        if want.lane == Lane::Alarm {
            return None;
        }
        let verdict = self.pace.verdict(Instant::now(), self.month());
        self.note_budget(verdict == Verdict::Exhausted);
        match verdict {
            Verdict::Wait(wait) => return Some(wait),
            Verdict::Exhausted => return Some(LOOK_AGAIN),
            Verdict::Go => {}
        }
        let there = (want.until.0 - want.after.0) as usize;
        if there.min(want.room) >= self.common.batch {
            return None;
        }
        if there >= self.common.batch {
            // Only the window is in the way: a full message soon is better than a small one now.
            return Some(LOOK_AGAIN);
        }
        let since = *self.gathering.get_or_insert_with(Instant::now);
        self.common.batch_wait.0.checked_sub(since.elapsed()).filter(|wait| !wait.is_zero())
    }

    /// Reads what is wanted and makes parcels of it, as far as the link's rate and budget go. No await behind what counts
    /// entries as sent.
    async fn read(&mut self, want: Want) -> Result<Vec<Parcel>, SpoolError> {
        let limit = want.room.min(READ_AT_ONCE.max(self.common.batch));
        let mut entries = self.spool.read(class_of(want.lane), want.after, want.until, limit).await?;
        let batch = self.common.batch;
        // Only what came short of the limit was everything; what is put back for a whole message is not.
        let mut is_all = entries.len() < limit;
        if !is_all && entries.len() > batch {
            entries.truncate(entries.len() / batch * batch);
        }
        let packing = self.common.packing();
        let parcels =
            chunks(&entries, batch).filter_map(|chunk| Parcel::new(&self.origin, want.lane, packing, chunk));
        let (now, month) = (Instant::now(), self.month());
        let parcels = affordable(&mut self.pace, want.lane, now, month, parcels);
        // What cannot be paid for now is read again.
        let last = parcels.last().map(|parcel| parcel.key.last);
        is_all &= last == entries.last().map(|entry| entry.seq);
        let read_to = if is_all { want.until } else { last.unwrap_or(want.after) };
        let sent = parcels.iter().map(|parcel| (parcel.key.first, parcel.key.last, parcel.entries));
        self.forwarder.sent(want.lane, sent, read_to);
        self.gathering = None;
        Ok(parcels)
    }

    /// Tells the spool how far it is, if that is news.
    async fn note_progress(&mut self, is_urgent: bool) {
        let progress = self.forwarder.progress();
        if progress == self.noted {
            return;
        }
        // A closed spool ends this uplink's next read.
        if self.spool.note_progress(&self.name, progress.clone(), is_urgent).await.is_ok() {
            self.noted = progress;
        }
    }

    /// Stores the progress, and the state if there is a new one, and waits until they are on disk.
    async fn store(&mut self, state: Option<Vec<u8>>) -> Result<(), SpoolError> {
        let progress = self.forwarder.progress();
        let state = state.unwrap_or_else(|| self.state.clone());
        self.spool.store_progress(&self.name, progress.clone(), state.clone()).await?;
        self.forwarder.stored(&progress);
        self.noted = progress;
        self.state = state;
        Ok(())
    }

    /// Keeps the month's account now and then: what a crash forgets of it is little.
    async fn keep_account(&mut self, is_now: bool) {
        let account = self.pace.account();
        let (at, kept) = self.kept_account;
        if self.pace.budget().is_none() || account == kept || !(is_now || at.elapsed() > ACCOUNT_INTERVAL) {
            return;
        }
        self.kept_account = (Instant::now(), account);
        let text = serde_json::to_vec(&account).unwrap_or_default();
        if let Err(error) = self.spool.set_meta(&account_key(&self.name), text).await {
            warn!(uplink:% = self.name; "the month's account is not kept: {error}");
        }
    }

    /// Months since year 0, UTC; 0 while the time is not known.
    fn month(&self) -> i32 {
        let wall = self.clock.stamp().wall.filter(|wall| wall.quality > WallQuality::None);
        let time = wall.and_then(|wall| jiff::Timestamp::from_nanosecond(i128::from(wall.unix_ns)).ok());
        time.map_or(0, |time| {
            let date = time.to_zoned(jiff::tz::TimeZone::UTC).date();
            i32::from(date.year()) * 12 + i32::from(date.month()) - 1
        })
    }

    fn note_budget(&mut self, is_exhausted: bool) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.is_budget_exhausted = is_exhausted;
    }

    fn note(&mut self) {
        let committed = self.committed.borrow().clone();
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.cursor = self.forwarder.cursor(Lane::Live).0;
        status.alarm_cursor = self.forwarder.cursor(Lane::Alarm).0;
        status.backfill = self.forwarder.waiting(Lane::Backfill, &committed);
        status.ahead = self.forwarder.ahead();
        status.oldest = self.forwarder.oldest().0;
        status.in_flight = self.forwarder.in_flight();
        status.confirmed = self.rate.total;
        status.rate = self.rate.per_second();
        status.sent_this_month = self.pace.account().bytes;
        status.monthly_budget = self.pace.budget();
    }
}

/// Chunks of at most `batch` entries and of bounded size.
fn chunks(entries: &[Stored], batch: usize) -> impl Iterator<Item = &[Stored]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take(batch).take_while(|entry| {
            bytes += weight(entry);
            bytes <= MAX_PARCEL
        });
        // An entry that is too large alone goes alone.
        let length = fits.count().max(1).min(rest.len());
        let (chunk, behind) = rest.split_at(length);
        rest = behind;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// As many of `parcels` as may go out now, each paid for before the next is looked at: a rate or a budget is overdrawn
/// by one parcel at the most. Alarms all go out.
fn affordable(
    pace: &mut Pace,
    lane: Lane,
    now: Instant,
    month: i32,
    parcels: impl Iterator<Item = Parcel>,
) -> Vec<Parcel> {
    let mut taken = Vec::new();
    for parcel in parcels {
        pace.spend(parcel.weight(), month);
        taken.push(parcel);
        if lane != Lane::Alarm && pace.verdict(now, month) != Verdict::Go {
            break;
        }
    }
    taken
}

/// About how many bytes an entry takes in a message.
fn weight(entry: &Stored) -> usize {
    let content = match &entry.body {
        Body::Message { topic, payload } => topic.len() + payload.len(),
        Body::Outcome { json: text, .. } | Body::Manifest { text } => text.len(),
        Body::Alarm { name, text, .. } => name.len() + text.len(),
        Body::Reading { value: Some(Value::Text(text)), .. } => text.len(),
        Body::Reading { .. } | Body::Aggregate { .. } | Body::Gap(_) | Body::Clock { .. } => 0,
    };
    content + 64
}

/// Where a lane's entries stand.
fn class_of(lane: Lane) -> Class {
    match lane {
        Lane::Alarm => Class::Alarm,
        Lane::Live | Lane::Backfill => Class::Telemetry,
    }
}

fn account_key(uplink: &str) -> String {
    format!("account/{uplink}")
}

/// Confirmations per second over the last whole seconds.
struct Rate {
    total: u64,
    since: Instant,
    at_since: u64,
    last: f64,
}

impl Rate {
    fn new() -> Self {
        Self { total: 0, since: Instant::now(), at_since: 0, last: 0.0 }
    }

    fn count(&mut self, n: u64) {
        self.total += n;
    }

    fn per_second(&mut self) -> f64 {
        let passed = self.since.elapsed();
        if passed > Duration::from_secs(2) {
            self.last = (self.total - self.at_since) as f64 / passed.as_secs_f64();
            (self.since, self.at_since) = (Instant::now(), self.total);
        }
        self.last
    }
}

/// Entries read from disk at a time.
const READ_AT_ONCE: usize = 512;
/// Bytes of entries in one message: what AWS IoT Core takes, with room for names.
const MAX_PARCEL: usize = 96 * 1024;
/// When nothing else wakes: a bound on how late a new month or more room is noticed.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const ACCOUNT_INTERVAL: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{BootId, Stamp};
    use crate::payload::parcel::{Compression, Encoding, Packing};

    const PACKING: Packing =
        Packing { batch: 3, encoding: Encoding::SenmlJson, compression: Compression::None };

    fn entries(places: std::ops::RangeInclusive<u64>) -> Vec<Stored> {
        let stamp = Stamp { boot: BootId(1), monotonic_ns: 1, wall: None };
        let body = || Body::Message { topic: "site/a".into(), payload: vec![b'x'; 100] };
        places.map(|place| Stored { seq: Seq(place), stamp, is_corrected: false, body: body() }).collect()
    }

    /// Hands out what may go out of `want`; the parcels and how far that is looked at.
    fn hand_out(pace: &mut Pace, lane: Lane, now: Instant, month: i32, entries: &[Stored]) -> Vec<Parcel> {
        let origin = Origin { gateway: "barn".into(), epoch: 7 };
        let parcels =
            chunks(entries, PACKING.batch).filter_map(|chunk| Parcel::new(&origin, lane, PACKING, chunk));
        affordable(pace, lane, now, month, parcels)
    }

    #[test]
    fn a_budget_is_overdrawn_by_one_parcel_at_the_most_and_what_is_left_waits_for_the_next_month() {
        let (now, budget) = (Instant::now(), 20_000);
        let mut pace = Pace::new(None, Some(budget), Account::default(), now);
        let all = entries(1..=300);
        let first = hand_out(&mut pace, Lane::Live, now, 7, &all);
        let most = first.iter().map(Parcel::weight).max().unwrap();
        let spent: u64 = first.iter().map(Parcel::weight).sum();
        let telemetry = budget / 100 * 95;
        assert!((telemetry..telemetry + most).contains(&spent), "{spent} of {telemetry}");
        assert_eq!((pace.account().bytes, pace.verdict(now, 7)), (spent, Verdict::Exhausted));
        let behind = first.last().unwrap().key.last;
        let second = hand_out(&mut pace, Lane::Live, now, 8, &all[behind.0 as usize..]);
        assert_eq!(second[0].key.first, behind.next(), "nothing is left out between two months");
        let alarms = hand_out(&mut pace, Lane::Alarm, now, 8, &all);
        assert_eq!(alarms.len(), 100, "alarms ask nobody");
    }

    #[test]
    fn a_rate_is_overdrawn_by_one_parcel_at_the_most() {
        let start = Instant::now();
        let mut pace = Pace::new(Some(50_000), None, Account::default(), start);
        let all = entries(1..=2000);
        let (mut sent, mut at, mut most) = (0, 0, 0);
        for second in 0..5u32 {
            let now = start + Duration::from_secs(u64::from(second));
            assert_eq!(pace.verdict(now, 1), Verdict::Go);
            let parcels = hand_out(&mut pace, Lane::Backfill, now, 1, &all[at..]);
            at = parcels.last().unwrap().key.last.0 as usize;
            sent += parcels.iter().map(Parcel::weight).sum::<u64>();
            most = most.max(parcels.iter().map(Parcel::weight).max().unwrap());
            assert!(sent < 50_000 * u64::from(second + 1) + most, "{sent} within {second} s");
        }
    }
}
