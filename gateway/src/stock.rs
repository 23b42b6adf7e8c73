//! The spool as people ask about it, in JSON: what waits for whom and how long it lasts, what stands where, whether it
//! is sound. The same from a running gateway and from a stopped one's files.

use serde_json::{Value as Json, json};

use crate::payload::rfc3339_ns;
use crate::spool::{Check, Class, Gap, Inspector, Partition, Progress, Seq, StoreError};

/// What the files alone do not say.
#[derive(Debug, Clone, Default)]
pub struct Circumstances {
    /// Nanoseconds since 1970.
    pub now_ns: i64,
    /// Bytes of the database in use.
    pub bytes: u64,
    /// The limit.
    pub quota: u64,
    /// What each uplink's peer has, by the uplink's name; newer than what the files say while it runs.
    pub progress: Vec<(String, Progress)>,
}

/// How much waits for whom, since when, and how long an outage may last from now on.
///
/// # Errors
/// The files cannot be read.
pub fn stat(inspector: &mut Inspector, at: &Circumstances) -> Result<Json, StoreError> {
    let partitions = inspector.partitions()?;
    let entries: u64 = partitions.iter().map(|partition| partition.entries).sum();
    let (first, last) = places(&partitions);
    let oldest_ns = partitions.iter().map(|partition| partition.from_ns).filter(|ns| *ns > 0).min();
    // Today's rate: since midnight UTC, or since the oldest entry if that is younger.
    let midnight = at.now_ns - at.now_ns.rem_euclid(DAY_NS);
    let since = oldest_ns.unwrap_or(at.now_ns).max(midnight);
    let before = inspector.place_before(since)?.0.max(first.saturating_sub(1));
    let passed_s = (at.now_ns - since).max(1) as f64 / 1e9;
    let per_s = last.saturating_sub(before) as f64 / passed_s;
    let mut most = 0;
    let mut uplinks = Vec::new();
    for (name, progress) in &at.progress {
        let (lanes, waiting) = lanes(inspector, progress, Seq(last), at.now_ns)?;
        most = most.max(waiting);
        uplinks.push(json!({ "name": name, "waiting": waiting, "lanes": lanes }));
    }
    let per_entry = if entries == 0 { 0.0 } else { at.bytes as f64 / entries as f64 };
    // At nine tenths, room is made; what everybody has makes it first.
    let room = (per_entry > 0.0).then(|| (at.quota as f64 * 0.9 / per_entry - most as f64).max(0.0));
    let hours = room.filter(|_| per_s > 0.0).map(|room| room / per_s / 3600.0);
    Ok(json!({
        "entries": entries, "first_seq": first, "last_seq": last, "bytes": at.bytes, "quota_bytes": at.quota,
        "oldest": oldest_ns.and_then(rfc3339_ns),
        "oldest_age_s": oldest_ns.map(|oldest| (at.now_ns - oldest).max(0) as f64 / 1e9),
        "today_per_s": per_s, "bytes_per_entry": per_entry, "capacity_h": hours, "uplinks": uplinks,
    }))
}

/// What stands where, and what was lost.
///
/// # Errors
/// The files cannot be read.
pub fn list(inspector: &Inspector) -> Result<Json, StoreError> {
    let time = |ns: i64| Some(ns).filter(|ns| *ns > 0).and_then(rfc3339_ns);
    let partitions: Vec<Json> = inspector
        .partitions()?
        .iter()
        .map(|partition| {
            json!({
                "class": class(partition.class), "first": partition.first.0, "last": partition.last.0,
                "entries": partition.entries, "from": time(partition.from_ns), "to": time(partition.to_ns),
                "thinned_to": (partition.thinned_to > Seq(0)).then_some(partition.thinned_to.0),
            })
        })
        .collect();
    let gaps: Vec<Json> = inspector.losses()?.iter().map(|(at, gap)| gap_json(*at, gap)).collect();
    Ok(json!({ "partitions": partitions, "gaps": gaps }))
}

/// Whether it is sound.
pub fn check_json(check: &Check) -> Json {
    json!({
        "ok": is_sound(check), "entries": check.entries, "unreadable": check.unreadable,
        "integrity": check.integrity, "holes": check.holes, "explained": check.explained,
    })
}

fn is_sound(check: &Check) -> bool {
    check.unreadable == 0 && check.integrity.is_empty() && check.holes.is_empty()
}

/// What waits on each lane and how old the oldest of it is; and how many entries that are.
fn lanes(
    inspector: &mut Inspector,
    progress: &Progress,
    last: Seq,
    now_ns: i64,
) -> Result<(Json, u64), StoreError> {
    let mut backfill = 0;
    for hole in &progress.holes {
        backfill += inspector.telemetry(hole.acked, hole.until)?;
    }
    let first_hole = progress.holes.first().map_or(last, |hole| hole.acked);
    let all = [
        ("alarm", Class::Alarm, inspector.alarms(progress.alarm)?, progress.alarm),
        ("live", Class::Telemetry, inspector.telemetry(progress.live, last)?, progress.live),
        ("backfill", Class::Telemetry, backfill, first_hole),
    ];
    let mut lanes = json!({});
    let mut waiting = 0;
    for (lane, class, count, after) in all {
        let oldest = if count == 0 { None } else { inspector.time_behind(class, after)? };
        let age_s = oldest.map(|oldest| (now_ns - oldest).max(0) as f64 / 1e9);
        lanes[lane] = json!({ "waiting": count, "oldest_age_s": age_s });
        waiting += count;
    }
    Ok((lanes, waiting))
}

fn places(partitions: &[Partition]) -> (u64, u64) {
    let first = partitions.iter().map(|partition| partition.first.0).min().unwrap_or_default();
    (first, partitions.iter().map(|partition| partition.last.0).max().unwrap_or_default())
}

fn class(class: Class) -> &'static str {
    match class {
        Class::Telemetry => "telemetry",
        Class::Alarm => "alarm",
    }
}

fn gap_json(at: i64, gap: &Gap) -> Json {
    json!({
        "from_seq": gap.from_seq, "to_seq": gap.to_seq, "count": gap.count, "reason": gap.reason.as_str(),
        "at": rfc3339_ns(at),
    })
}

const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;
