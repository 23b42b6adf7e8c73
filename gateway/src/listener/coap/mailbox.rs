//! What others have to tell the listener's thread: [`Mailbox`].
//!
//! Nothing queues up here: of each channel the newest reading waits, of each device its newest change. The mailbox is
//! therefore bounded by what is configured, however slow the thread.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::wait::Bell;
use crate::reading::{Channel, ChannelId, Reading};

/// Shared between whoever has news, who writes, and the thread, which empties it; held for a copy.
#[derive(Debug)]
pub(super) struct Mailbox {
    waiting: Mutex<Mail>,
    coalesced: AtomicU64,
    bell: Arc<Bell>,
}

/// What has come since the thread looked last.
#[derive(Debug, Default)]
pub(super) struct Mail {
    /// Devices that were announced or removed.
    pub(super) devices: BTreeMap<String, Change>,
    /// The newest reading of each channel, in the order in which channels had news first.
    pub(super) readings: Vec<Reading>,
    places: HashMap<ChannelId, usize>,
}

/// What became of a device.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// What was known before is gone.
    pub(super) is_removed: bool,
    /// These are there now.
    pub(super) channels: Vec<Arc<Channel>>,
}

impl Mailbox {
    pub(super) fn new(bell: Arc<Bell>) -> Self {
        Self { waiting: Mutex::default(), coalesced: AtomicU64::new(0), bell }
    }

    pub(super) fn put_reading(&self, reading: &Reading) {
        let mut mail = self.lock();
        let is_first = mail.is_empty();
        if let Some(&place) = mail.places.get(&reading.channel.id) {
            mail.readings[place] = reading.clone();
            self.coalesced.fetch_add(1, Ordering::Relaxed);
        } else {
            let place = mail.readings.len();
            mail.places.insert(reading.channel.id.clone(), place);
            mail.readings.push(reading.clone());
        }
        self.ring(mail, is_first);
    }

    pub(super) fn put_channels(&self, device: &str, channels: &[Arc<Channel>]) {
        let mut mail = self.lock();
        let is_first = mail.is_empty();
        let change = mail.devices.entry(device.to_owned()).or_default();
        change.channels.retain(|old| channels.iter().all(|new| new.id != old.id));
        change.channels.extend_from_slice(channels);
        self.ring(mail, is_first);
    }

    pub(super) fn remove(&self, device: &str) {
        let mut mail = self.lock();
        let is_first = mail.is_empty();
        mail.devices.insert(device.to_owned(), Change { is_removed: true, channels: Vec::new() });
        // A reading from before must not come back with the device.
        mail.readings.retain(|reading| reading.channel.device() != device);
        mail.places = mail.readings.iter().map(|r| r.channel.id.clone()).zip(0..).collect();
        self.ring(mail, is_first);
    }

    /// Takes what waits; `None` when nothing does.
    pub(super) fn take(&self) -> Option<Mail> {
        let mut mail = self.lock();
        (!mail.is_empty()).then(|| std::mem::take(&mut *mail))
    }

    /// Readings that a newer one replaced here.
    pub(super) fn coalesced(&self) -> u64 {
        self.coalesced.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread, unless it was woken already and has not looked yet.
    fn ring(&self, mail: MutexGuard<'_, Mail>, is_first: bool) {
        drop(mail);
        if is_first {
            self.bell.ring();
        }
    }
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.readings.is_empty()
    }
}
