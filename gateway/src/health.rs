//! What is wrong right now, in words a person can act on. An uplink that is away for a while is normal life.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value as Json, json};

use crate::clock::WallQuality;
use crate::gateway::Gateway;
use crate::listener::tls::Handshakes;
use crate::listener::{broker, canary};
use crate::payload;
use crate::spool::{Class, GapReason, Seq, Stats};
use crate::uplink;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What, and what to do where that is known.
    pub what: String,
}

/// All that is wrong.
pub fn problems(gateway: &Gateway) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |what: String| problems.push(Problem { what });
    let stats = gateway.spool.stats();
    if let Some(why) = &stats.refusing {
        add(format!("the spool cannot write, readings are being lost: {why}"));
    }
    if let Some(damage) = &gateway.damage {
        add(format!(
            "the spool was damaged at start and begun anew with what could be read of the old one, which is kept as {}",
            damage.kept_as.display()
        ));
    }
    if stats.is_salvaging {
        add("what a damaged spool held is being taken over: uplinks wait for it".into());
    }
    let recent = gateway.clock.stamp().wall.map_or(0, |wall| wall.unix_ns) - DAY_NS;
    let gone = |is_thinned: bool| -> u64 {
        let gaps = stats
            .gaps
            .iter()
            .filter(|(at, gap)| *at > recent && (gap.reason == GapReason::Thinned) == is_thinned);
        gaps.filter_map(|(_, gap)| gap.count).sum()
    };
    let (lost, thinned) = (gone(false), gone(true));
    if lost > 0 {
        add(format!("{lost} readings were lost in the last 24 hours: see the gaps"));
    }
    if thinned > 0 {
        add(format!("{thinned} readings became minute means in the last 24 hours: the spool is nearly full"));
    }
    if stats.is_over_budget {
        add(format!(
            "{} were written today, the budget is {}: a longer rpo or fewer readings would spare the card",
            size(stats.written_today),
            size(stats.wear_budget)
        ));
    }
    for device in gateway.live.devices() {
        if matches!(device.state, "absent" | "degraded") {
            let detail = if device.detail.is_empty() { "no answer" } else { &device.detail };
            add(format!("device {} is {}: {detail}", device.name, device.state));
        }
    }
    for handle in gateway.uplinks() {
        let status = handle.status();
        let waiting = waiting(&status, &stats);
        if status.is_budget_exhausted {
            add(format!("uplink {} has used up its monthly budget: only alarms go out", handle.config.name));
        } else if status.state == "backoff" && waiting > 1000 {
            add(format!("uplink {} is away, {waiting} entries wait: {}", handle.config.name, status.detail));
        }
    }
    gateway.alarms.problems().into_iter().for_each(&mut add);
    if gateway.clock.stamp().wall.is_none_or(|wall| wall.quality == WallQuality::None) {
        add("the clock was never set: times are not shown to the cloud".into());
    }
    problems
}

/// The whole state as JSON, for the page, the CLI and whoever asks the API.
pub async fn status(gateway: &Gateway) -> Json {
    let config = gateway.config();
    let stats = gateway.spool.stats();
    let stamp = gateway.clock.stamp();
    let now_ns = stamp.wall.map_or(0, |wall| wall.unix_ns);
    let problems = problems(gateway);
    let broker = gateway.broker.status().await;
    let coap = gateway.coap.counters();
    let devices: Vec<Json> = gateway
        .live
        .devices()
        .iter()
        .map(|device| {
            json!({
                "name": device.name, "title": device.title, "type": device.type_name, "bus": device.bus,
                "simulated": device.is_simulated, "state": device.state, "detail": device.detail,
                "errors": device.errors, "last_s": device.last.map(|last| last.elapsed().as_secs_f64()),
            })
        })
        .collect();
    let listeners: Vec<Json> = gateway
        .listeners
        .iter()
        .map(|(name, address)| json!({ "name": name, "address": address.to_string() }))
        .collect();
    let mut uplinks = Vec::new();
    for handle in gateway.uplinks() {
        uplinks.push(uplink_json(gateway, &handle, &stats, now_ns).await);
    }
    json!({
        "gateway": config.gateway.name,
        "version": env!("CARGO_PKG_VERSION"),
        "boot": gateway.clock.boot().to_string(),
        "started": payload::rfc3339(&gateway.started),
        "uptime_s": (stamp.monotonic_ns - gateway.started.monotonic_ns) as f64 / 1e9,
        "time": {
            "now": payload::rfc3339(&stamp),
            "quality": stamp.wall.map_or(WallQuality::None, |wall| wall.quality).as_str(),
            "error_s": stamp.wall.and_then(|wall| wall.error_ns).map(|error_ns| error_ns as f64 / 1e9),
        },
        "health": {
            "ok": problems.is_empty(),
            "problems": problems.iter().map(|problem| json!({ "what": problem.what })).collect::<Vec<_>>(),
        },
        "alarms": gateway.alarms.json(),
        "memory_bytes": resident_bytes(),
        "spool": spool_json(gateway, &stats),
        "uplinks": uplinks,
        "listeners": listeners,
        "devices": devices,
        "mqtt": broker.map(|broker| json!({
            "clients": broker.connections - own(&broker), "sessions": broker.clients.len() - own(&broker),
            "subscriptions": broker.subscriptions - own(&broker),
            "retained": broker.retained, "messages_in": broker.counters.received, "messages_out": broker.counters.sent,
            "dropped": broker.counters.dropped_slow + broker.counters.dropped_offline
                + broker.counters.dropped_queue_full + broker.dropped_publishes
                + broker.dropped_deliveries
                + broker.dropped_ingress,
            "protocol_errors": broker.counters.protocol_errors,
            "limits": limits_json(&broker.counters),
            "tls": gateway.tls.as_ref().map(|_| handshakes_json(gateway)),
        })),
        "coap": { "requests": coap.requests, "observers": coap.observers },
        "intake": {
            "dropped": gateway.intake.dropped(),
            "dropped_by_sampler": gateway.dropped_by_sampler.load(Ordering::Relaxed),
        },
    })
}

/// How often each bound of the broker was hit.
fn limits_json(counters: &mqtt::Counters) -> Json {
    json!({
        "refused_connections": counters.refused_connections, "crowded_addresses": counters.crowded_addresses,
        "connect_timeouts": counters.connect_timeouts, "keep_alive_timeouts": counters.keep_alive_timeouts,
        "oversized_packets": counters.oversized_packets, "throttled": counters.throttled,
        "stalls": counters.stalls, "refused_topics": counters.refused_topics,
        "denied_publishes": counters.denied_publishes, "refused_subscriptions": counters.refused_subscriptions,
        "dropped_slow": counters.dropped_slow, "dropped_offline": counters.dropped_offline,
        "dropped_queue_full": counters.dropped_queue_full, "dropped_expired": counters.dropped_expired,
        "dropped_too_large": counters.dropped_too_large, "dropped_retained": counters.dropped_retained,
    })
}

/// The canary, which is no client of anybody's, and has one subscription.
fn own(broker: &broker::Status) -> usize {
    let is_own =
        |client: &&mqtt::ClientStatus| client.is_connected && client.user.as_deref() == Some(canary::USER);
    broker.clients.iter().filter(is_own).count()
}

fn handshakes_json(gateway: &Gateway) -> Json {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let Handshakes { done, failed, timed_out, displaced } = &gateway.handshakes;
    json!({
        "done": count(done), "failed": count(failed), "timed_out": count(timed_out), "displaced": count(displaced),
    })
}

/// Free and used memory of this process in bytes, from `/proc/self/statm`.
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4096
}

fn spool_json(gateway: &Gateway, stats: &Stats) -> Json {
    let gaps: Vec<Json> = stats
        .gaps
        .iter()
        .rev()
        .map(|(at, gap)| {
            json!({
                "from_seq": gap.from_seq, "to_seq": gap.to_seq, "count": gap.count,
                "reason": gap.reason.as_str(), "at": payload::rfc3339_ns(*at),
            })
        })
        .collect();
    json!({
        "entries": if stats.last_seq == 0 { 0 } else { stats.last_seq + 1 - stats.first_seq },
        "bytes": stats.bytes, "quota_bytes": stats.max_bytes,
        "oldest": stats.oldest_unix_ns.and_then(payload::rfc3339_ns),
        "first_seq": stats.first_seq, "last_seq": stats.last_seq, "epoch": format!("{:014x}", stats.epoch),
        "gaps": gaps, "written_today_bytes": stats.written_today, "commits": stats.commits, "appended": stats.appended,
        "appended_per_s": gateway.appended_per_s(),
        "refusing": stats.refusing, "is_salvaging": stats.is_salvaging,
        "alarm_bytes": stats.alarm_bytes, "interval_s": stats.interval.as_secs_f64(),
        "rpo_s": gateway.config().spool.rpo.0.as_secs_f64(), "wear_budget_bytes": stats.wear_budget,
        "bytes_per_commit": stats.bytes_per_commit, "is_over_budget": stats.is_over_budget,
        "durability": durability(stats),
    })
}

async fn uplink_json(gateway: &Gateway, handle: &uplink::Handle, stats: &Stats, now_ns: i64) -> Json {
    let status = handle.status();
    let waiting = waiting(&status, stats);
    let oldest_ns = if waiting == 0 {
        None
    } else {
        let next = gateway.spool.read_after(Seq(status.oldest), 1).await.unwrap_or_default();
        next.first().and_then(|entry| entry.stamp.wall).map(|wall| wall.unix_ns)
    };
    let alarms =
        gateway.spool.read(Class::Alarm, Seq(status.alarm_cursor), Seq(stats.last_seq), ALARMS_COUNTED);
    let alarms = alarms.await.map_or(0, |alarms| alarms.len());
    let age_s = oldest_ns.map(|oldest| (now_ns - oldest).max(0) as f64 / 1e9);
    let common = &handle.config.common;
    json!({
        "name": handle.config.name, "type": handle.config.setup.type_name(), "target": handle.config.setup.target(),
        "state": status.state, "detail": status.detail,
        "next_try_s": status.next_try.map(|at| at.saturating_duration_since(std::time::Instant::now()).as_secs_f64()),
        "waiting": waiting, "oldest_age_s": age_s, "lag_s": age_s.unwrap_or(0.0), "in_flight": status.in_flight,
        "confirmed": status.confirmed, "rate_per_s": status.rate, "cursor": status.cursor,
        "doubtful": status.doubtful, "delivery": common.delivery.as_str(), "window": common.window,
        "lanes": {
            "alarm": alarms, "live": waiting.saturating_sub(status.backfill), "backfill": status.backfill,
        },
        "drain_s": (status.rate > 0.0 && waiting > 0).then(|| waiting as f64 / status.rate),
        "sent_this_month_bytes": status.sent_this_month, "monthly_budget_bytes": status.monthly_budget,
        "is_budget_exhausted": status.is_budget_exhausted,
    })
}

/// Telemetry that an uplink's peer does not have yet.
fn waiting(status: &uplink::Status, stats: &Stats) -> u64 {
    // What was dropped is not waited for any more.
    let before_first = stats.first_seq.saturating_sub(1);
    stats.last_seq.saturating_sub(status.cursor.max(before_first)).saturating_sub(status.ahead)
        + status.backfill
}

/// What a power cut would cost now, and what it costs the card to keep it so small.
fn durability(stats: &Stats) -> String {
    let written = size(stats.written_today);
    match &stats.refusing {
        Some(_) => format!("nothing is being stored now; {written} written today"),
        None => format!(
            "a power cut now loses at most {:.1} s of telemetry, no alarms; {written} written today",
            stats.interval.as_secs_f64()
        ),
    }
}

/// A number of bytes for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1_000)),
        1_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}

/// Alarms that wait are counted up to here.
const ALARMS_COUNTED: usize = 1000;
const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;
