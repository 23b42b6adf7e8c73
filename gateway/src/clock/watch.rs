//! Watches for the moment when wall time becomes known or jumps, and writes it down.
//!
//! What is written corrects the times of readings that were stamped before: the spool's reader does that for those that
//! have not left yet, and the record itself goes out to correct those that have. Nothing is put into another order by
//! it, whichever way the clock was moved.

use std::time::{Duration, Instant};

use log::{info, warn};
use tokio_util::sync::CancellationToken;

use super::{Clock, Known, WallQuality};
use crate::spool::{ClockRecord, Entry, Spool, SpoolError};

/// Decides what is worth writing down. Pure.
#[derive(Debug, Default)]
struct Watch {
    /// What was last written, or found at the start.
    base: Option<Known>,
    has_ntp: bool,
    has_gnss: bool,
}

impl Watch {
    /// Looks at the clock; `true` when it is to be written down.
    fn look(&mut self, known: Known) -> bool {
        let is_first = match known.quality {
            WallQuality::Ntp => !std::mem::replace(&mut self.has_ntp, true),
            WallQuality::Gnss => !std::mem::replace(&mut self.has_gnss, true),
            WallQuality::None | WallQuality::File | WallQuality::Rtc => false,
        };
        let base = *self.base.get_or_insert(known);
        let has_jumped = base.offset_ns.abs_diff(known.offset_ns) > JUMP_NS;
        if is_first || has_jumped {
            self.base = Some(known);
        }
        is_first || (has_jumped && known.quality > WallQuality::None)
    }
}

/// Takes the newest moment that an earlier run knew for certain as the floor for TLS.
///
/// # Errors
/// The spool cannot be read; the floor is then the time of the build.
pub async fn restore_floor(clock: Clock, spool: &Spool) -> Result<(), SpoolError> {
    let kept =
        spool.meta(FLOOR_KEY).await?.and_then(|bytes| Some(i64::from_le_bytes(bytes.try_into().ok()?)));
    if let Some(unix_ns) = kept {
        clock.raise_floor(unix_ns);
    }
    Ok(())
}

/// Watches the clock until `stop`.
pub async fn run(clock: Clock, spool: Spool, stop: CancellationToken) {
    let mut watch = Watch::default();
    let mut unwritten: Option<ClockRecord> = None;
    let mut floor_kept: Option<Instant> = None;
    let mut beat = tokio::time::interval(INTERVAL);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {}
        }
        let known = clock.known();
        if watch.look(known) {
            info!("the time comes from {}", known.quality.as_str());
            let Known { offset_ns, error_ns, quality } = known;
            unwritten = Some(ClockRecord { boot: clock.boot(), offset_ns, error_ns, quality });
        }
        // A spool that cannot write now can later.
        if let Some(record) = unwritten {
            match write(clock, &spool, record).await {
                Ok(()) => unwritten = None,
                Err(error) => warn!("what was learnt of the clock is not written yet: {error}"),
            }
        }
        // Less than synchronised might be in the future, and would shut out every peer from then on.
        if known.quality >= WallQuality::Ntp && floor_kept.is_none_or(|at| at.elapsed() > KEEP_FLOOR) {
            let unix_ns = clock.stamp().wall.map_or(0, |wall| wall.unix_ns);
            clock.raise_floor(unix_ns);
            if spool.set_meta(FLOOR_KEY, unix_ns.to_le_bytes().to_vec()).await.is_ok() {
                floor_kept = Some(Instant::now());
            }
        }
    }
}

async fn write(clock: Clock, spool: &Spool, record: ClockRecord) -> Result<(), SpoolError> {
    spool.note_clock(record).await?;
    spool.append(vec![Entry::Clock { record, stamp: clock.stamp() }], true).await.map(drop)
}

/// How often the clock is looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// What is less is no jump: clocks are also moved by bending their rate.
const JUMP_NS: u64 = 1_000_000_000;
/// How old the floor on disk may be: certificates do not count hours.
const KEEP_FLOOR: Duration = Duration::from_secs(3600);
const FLOOR_KEY: &str = "clock-floor";

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000_000;

    fn known(offset_s: i64, quality: WallQuality) -> Known {
        Known { offset_ns: offset_s * S, error_ns: None, quality }
    }

    #[test]
    fn the_first_agreement_and_every_jump_are_written_down_once() {
        let mut watch = Watch::default();
        let mut look = |offset_s, quality| watch.look(known(offset_s, quality));
        assert!(!look(0, WallQuality::None), "nothing is known");
        assert!(!look(500, WallQuality::None), "a jump from nothing to nothing");
        assert!(look(1_800_000_000, WallQuality::Gnss));
        assert!(!look(1_800_000_000, WallQuality::Gnss));
        assert!(look(1_800_000_000, WallQuality::Ntp), "another source agrees for the first time");
        assert!(!look(1_800_000_001, WallQuality::Ntp), "one second is no jump");
        assert!(look(1_800_000_002, WallQuality::Ntp), "but two are, however slowly they came");
        assert!(look(1_799_990_000, WallQuality::Ntp), "back");
        assert!(!look(1_799_990_000, WallQuality::Rtc), "the server went away");
        assert!(!look(1_799_990_000, WallQuality::Ntp), "and came back");
    }

    #[test]
    fn a_clock_that_a_person_sets_is_written_down() {
        let mut watch = Watch::default();
        assert!(!watch.look(known(0, WallQuality::None)));
        assert!(watch.look(known(1_800_000_000, WallQuality::File)));
    }

    #[test]
    fn a_clock_that_is_right_from_the_start_is_written_down_for_what_was_read_before() {
        assert!(Watch::default().look(known(1_800_000_000, WallQuality::Ntp)));
        assert!(!Watch::default().look(known(1_800_000_000, WallQuality::Rtc)));
    }
}
