//! What the CLI asks about the spool of a running gateway, and has done to it. Over the control socket alone: a check
//! reads everything, and who gives up entries should be somebody on the machine.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::Door;
use crate::gateway::Gateway;
use crate::spool::{Entry, Gap, GapReason, Inspector, Seq};
use crate::stock::{self, Circumstances};
use crate::{health, uplink};

type App = State<Arc<Gateway>>;

/// The routes, to be merged into those of the API.
pub fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/api/v1/spool/stat", get(stat))
        .route("/api/v1/spool/ls", get(list))
        .route("/api/v1/spool/verify", get(verify))
        .route("/api/v1/spool/drop", post(give_up))
        .route("/api/v1/spool/replay", post(replay))
}

async fn stat(State(gateway): App, Extension(door): Extension<Door>) -> Response {
    answer(door, async {
        let stats = gateway.spool.stats();
        let mut progress = Vec::new();
        for handle in gateway.uplinks() {
            let name = handle.config.name.clone();
            let (of, _) = gateway.spool.progress(&name).await.map_err(unavailable)?;
            progress.push((name, of));
        }
        let now_ns = gateway.clock.stamp().wall.map_or(0, |wall| wall.unix_ns);
        let at = Circumstances { now_ns, bytes: stats.bytes, quota: stats.max_bytes, progress };
        let mut found =
            gateway.spool.inspect(move |inspector| stock::stat(inspector, &at)).await.map_err(unavailable)?;
        let status = health::status(&gateway).await;
        found["gateway"] = status["gateway"].clone();
        for key in ["epoch", "appended_per_s", "written_today_bytes", "durability", "refusing"] {
            found[key] = status["spool"][key].clone();
        }
        found["written_today_bytes"] = stats.written_today.into();
        found["wear_budget_bytes"] = stats.wear_budget.into();
        for uplink in found["uplinks"].as_array_mut().into_iter().flatten() {
            let all = status["uplinks"].as_array().into_iter().flatten();
            let Some(of) = all.into_iter().find(|of| of["name"] == uplink["name"]) else { continue };
            for key in ["type", "state", "detail", "rate_per_s", "in_flight", "delivery"] {
                uplink[key] = of[key].clone();
            }
            let (waiting, rate) = (
                uplink["waiting"].as_f64().unwrap_or_default(),
                of["rate_per_s"].as_f64().unwrap_or_default(),
            );
            // What comes in meanwhile goes out, too.
            let spare = rate - found_rate(&status);
            uplink["drain_s"] = if waiting == 0.0 {
                0.0.into()
            } else if spare > 0.0 {
                (waiting / spare).into()
            } else {
                Value::Null
            };
        }
        found["running"] = true.into();
        Ok(found)
    })
    .await
}

async fn list(State(gateway): App, Extension(door): Extension<Door>) -> Response {
    answer(door, async {
        gateway.spool.inspect(|inspector| stock::list(inspector)).await.map_err(unavailable)
    })
    .await
}

async fn verify(State(gateway): App, Extension(door): Extension<Door>) -> Response {
    answer(door, async {
        let check = gateway.spool.inspect(Inspector::check).await.map_err(unavailable)?;
        Ok(stock::check_json(&check))
    })
    .await
}

/// Up to where something is given up, exactly one of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Surrender {
    uplink: String,
    /// Before this time, in seconds since 1970.
    before: Option<f64>,
    /// Before this place.
    before_seq: Option<u64>,
    /// Everything that waits now.
    #[serde(default)]
    all: bool,
    /// Do it; else only say what it would be.
    #[serde(default)]
    yes: bool,
}

async fn give_up(
    State(gateway): App,
    Extension(door): Extension<Door>,
    order: Result<Json<Surrender>, JsonRejection>,
) -> Response {
    answer(door, async {
        let Json(order) = order.map_err(|rejection| (StatusCode::BAD_REQUEST, rejection.body_text()))?;
        let handle = handle_of(&gateway, &order.uplink)?;
        let last = Seq(gateway.spool.stats().last_seq);
        let until = match (order.before, order.before_seq, order.all) {
            (Some(before), None, false) => place_before(&gateway, before).await?,
            (None, Some(before), false) => Seq(before.saturating_sub(1)).min(last),
            (None, None, true) => last,
            _ => return Err(bad("give one of before, before_seq and all")),
        };
        let (progress, _) = gateway.spool.progress(&order.uplink).await.map_err(unavailable)?;
        let ranges = progress.waiting(until);
        let looked = ranges.clone();
        let counts = gateway
            .spool
            .inspect(move |inspector| {
                looked
                    .iter()
                    .map(|(after, until)| inspector.telemetry(*after, *until))
                    .collect::<Result<Vec<_>, _>>()
            })
            .await
            .map_err(unavailable)?;
        let gaps: Vec<Gap> = ranges
            .iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .map(|((after, until), count)| Gap {
                from_seq: Some(after.0 + 1),
                to_seq: Some(until.0),
                count: Some(count),
                reason: GapReason::DroppedByHand,
            })
            .collect();
        if order.yes {
            // The losses first: a crash between the two leaves a loss recorded that is none, never one that is not.
            for gap in &gaps {
                let (done, stored) = oneshot::channel();
                let entry = Entry::Gap { gap: gap.clone(), stamp: gateway.clock.stamp() };
                gateway.intake.store(entry, done).await;
                let refused = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why);
                stored.await.map_err(|_| refused("the gateway is stopping".into()))?.map_err(refused)?;
            }
            handle.give_up(until).await.map_err(|why| (StatusCode::CONFLICT, why))?;
        }
        Ok(json!({
            "uplink": order.uplink, "is_done": order.yes,
            "count": gaps.iter().filter_map(|gap| gap.count).sum::<u64>(),
            "ranges": gaps.iter().map(|gap| [gap.from_seq, gap.to_seq]).collect::<Vec<_>>(),
        }))
    })
    .await
}

/// What is sent once more: by time or by place.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Repeat {
    uplink: String,
    /// From this time on, in seconds since 1970.
    from: Option<f64>,
    /// Up to this time, excluded.
    to: Option<f64>,
    /// From this place on.
    from_seq: Option<u64>,
    /// Up to and with this place.
    to_seq: Option<u64>,
}

async fn replay(
    State(gateway): App,
    Extension(door): Extension<Door>,
    order: Result<Json<Repeat>, JsonRejection>,
) -> Response {
    answer(door, async {
        let Json(order) = order.map_err(|rejection| (StatusCode::BAD_REQUEST, rejection.body_text()))?;
        let handle = handle_of(&gateway, &order.uplink)?;
        let stats = gateway.spool.stats();
        let after = match (order.from, order.from_seq) {
            (Some(from), None) => place_before(&gateway, from).await?,
            (None, Some(from)) => Seq(from.saturating_sub(1)),
            _ => return Err(bad("give one of from and from_seq")),
        };
        let until = match (order.to, order.to_seq) {
            (Some(to), None) => place_before(&gateway, to).await?,
            (None, Some(to)) => Seq(to),
            (None, None) => Seq(stats.last_seq),
            _ => return Err(bad("give to or to_seq, not both")),
        };
        let after = after.max(Seq(stats.first_seq.saturating_sub(1)));
        let until = until.min(Seq(stats.last_seq));
        if after >= until {
            return Err((StatusCode::NOT_FOUND, "nothing of that is in the spool".into()));
        }
        let places = handle.replay(after, until).await.map_err(|why| (StatusCode::CONFLICT, why))?;
        Ok(json!({ "uplink": order.uplink, "from_seq": after.0 + 1, "to_seq": until.0, "places": places }))
    })
    .await
}

type Refused = (StatusCode, String);

async fn answer(door: Door, what: impl Future<Output = Result<Value, Refused>>) -> Response {
    if door != Door::Control {
        return refuse(StatusCode::FORBIDDEN, "this comes over the control socket only");
    }
    match what.await {
        Ok(json) => Json(json).into_response(),
        Err((code, why)) => refuse(code, &why),
    }
}

fn handle_of(gateway: &Gateway, name: &str) -> Result<uplink::Handle, Refused> {
    let uplinks = gateway.uplinks();
    let names: Vec<String> = uplinks.iter().map(|handle| handle.config.name.clone()).collect();
    uplinks.into_iter().find(|handle| handle.config.name == name).ok_or_else(|| {
        let known = if names.is_empty() { "there are none".into() } else { names.join(", ") };
        (StatusCode::NOT_FOUND, format!("no uplink {}: {known}", name.escape_debug()))
    })
}

async fn place_before(gateway: &Gateway, seconds: f64) -> Result<Seq, Refused> {
    if !(0.0..9e9).contains(&seconds) {
        return Err(bad("a time is in seconds since 1970"));
    }
    let unix_ns = (seconds * 1e9) as i64;
    gateway.spool.inspect(move |inspector| inspector.place_before(unix_ns)).await.map_err(unavailable)
}

fn found_rate(status: &Value) -> f64 {
    status["spool"]["appended_per_s"].as_f64().unwrap_or_default()
}

fn bad(why: &str) -> Refused {
    (StatusCode::BAD_REQUEST, why.into())
}

fn unavailable(error: impl std::fmt::Display) -> Refused {
    (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}

fn refuse(code: StatusCode, why: &str) -> Response {
    (code, Json(json!({ "error": why }))).into_response()
}
