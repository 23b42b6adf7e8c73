//! The API's handlers: the page's, the CLI's (over the control socket) and anybody's.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Extension, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::Door;
use crate::command::{Command, Refusal, expiry};
use crate::gateway::Gateway;
use crate::payload::parcel::Origin;
use crate::payload::{self, Format};
use crate::reading::{ChannelId, Reading};
use crate::spool::{HistoryQuery, Seq};
use crate::{export as log_export, health};

type App = State<Arc<Gateway>>;

/// 200 while the process serves: for watchdogs and load balancers.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Everything about the gateway's state.
pub async fn status(State(gateway): App) -> Json<Value> {
    Json(health::status(&gateway).await)
}

/// Every channel with its last reading.
pub async fn channels(State(gateway): App) -> Json<Value> {
    let channels = gateway.live.channels();
    Json(channels.iter().map(|(channel, reading)| channel_json(channel, reading.as_ref())).collect())
}

/// The window of [`history`].
#[derive(Debug, Deserialize)]
pub struct Window {
    channel: String,
    from: Option<f64>,
    to: Option<f64>,
    buckets: Option<u32>,
}

/// One channel's past in buckets.
pub async fn history(State(gateway): App, query: Result<Query<Window>, QueryRejection>) -> Response {
    let window = match query {
        Ok(Query(window)) => window,
        Err(rejection) => return refuse(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    let Some(id) = ChannelId::parse(&window.channel) else {
        return refuse(StatusCode::BAD_REQUEST, "channel is device/channel");
    };
    let now_s = gateway.clock.stamp().wall.map_or(0, |wall| wall.unix_ns) as f64 / 1e9;
    let to = window.to.unwrap_or(now_s);
    let from = window.from.unwrap_or(to - 3600.0);
    if !(from.is_finite() && to.is_finite() && from < to && from >= 0.0 && to < 9e9) {
        return refuse(StatusCode::BAD_REQUEST, "from and to are seconds since 1970, from before to");
    }
    let buckets = window.buckets.unwrap_or(600).clamp(1, 5000);
    let mut step_ns = (((to - from) / f64::from(buckets)) * 1e9).ceil().max(1e6) as i64;
    if step_ns >= MINUTE_NS {
        step_ns = (step_ns + MINUTE_NS - 1) / MINUTE_NS * MINUTE_NS;
    }
    let query = HistoryQuery {
        channel: id.as_str().to_owned(),
        from_ns: (from * 1e9) as i64,
        to_ns: (to * 1e9) as i64,
        step_ns,
    };
    let buckets = match gateway.spool.history(query).await {
        Ok(buckets) => buckets,
        Err(error) => return refuse(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    };
    let unit = gateway.live.channel(&id).map(|channel| channel.spec.unit.to_string()).unwrap_or_default();
    let column = |pick: fn(&crate::spool::Bucket) -> Value| buckets.iter().map(pick).collect::<Value>();
    Json(json!({
        "channel": id.as_str(), "unit": unit, "from": from, "to": to, "step": step_ns as f64 / 1e9,
        "t": column(|bucket| (bucket.start_ns as f64 / 1e9).into()),
        "min": column(|bucket| bucket.min.into()), "mean": column(|bucket| bucket.mean.into()),
        "max": column(|bucket| bucket.max.into()), "n": column(|bucket| bucket.n.into()),
    }))
    .into_response()
}

/// What [`export`] is asked for.
#[derive(Debug, Deserialize)]
pub struct Selection {
    channel: Option<String>,
    from: Option<f64>,
    to: Option<f64>,
    format: Option<String>,
    after: Option<u64>,
    until: Option<u64>,
}

/// The log itself, as JSON lines or CSV, read as it is sent.
pub async fn export(State(gateway): App, query: Result<Query<Selection>, QueryRejection>) -> Response {
    let selection = match query {
        Ok(Query(selection)) => selection,
        Err(rejection) => return refuse(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    let is_csv = match selection.format.as_deref() {
        None | Some("jsonl") => false,
        Some("csv") => true,
        Some(_) => return refuse(StatusCode::BAD_REQUEST, "format is csv or jsonl"),
    };
    let origin = Origin { gateway: gateway.config().gateway.name.clone(), epoch: gateway.spool.epoch() };
    let until = Seq(selection.until.unwrap_or(u64::MAX));
    let start = (
        Seq(selection.after.unwrap_or_default()),
        is_csv.then(|| Bytes::from_static(log_export::CSV_HEAD.as_bytes())),
    );
    let lines = stream::unfold(Some(start), move |state| {
        let (gateway, origin) = (gateway.clone(), origin.clone());
        let (channel, from, to) = (selection.channel.clone(), selection.from, selection.to);
        async move {
            let (after, head) = state?;
            if let Some(head) = head {
                return Some((Ok::<_, Infallible>(head), Some((after, None))));
            }
            if after >= until {
                return None;
            }
            let entries = gateway.spool.read_after(after, EXPORT_AT_ONCE).await.ok()?;
            let last = entries.last()?.seq;
            let chosen = entries.iter().filter(|entry| {
                entry.seq <= until && log_export::is_chosen(entry, channel.as_deref(), from, to)
            });
            let mut text = String::new();
            for entry in chosen {
                log_export::write_entry(&mut text, &origin, entry, is_csv);
            }
            Some((Ok(Bytes::from(text)), Some((last, None))))
        }
    });
    let mime = if is_csv { "text/csv; charset=utf-8" } else { "application/x-ndjson" };
    ([(header::CONTENT_TYPE, mime)], Body::from_stream(lines)).into_response()
}

/// Readings as they come, as JSON lines, until the asker leaves. One who is too slow misses some and is told.
pub async fn tail(State(gateway): App) -> Response {
    let readings = gateway.readings.subscribe();
    let lines = stream::unfold(readings, async |mut readings| {
        let line = match readings.recv().await {
            Ok(reading) => channel_json(&reading.channel, Some(&reading)).to_string(),
            Err(RecvError::Lagged(missed)) => json!({ "missed": missed }).to_string(),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok::<_, Infallible>(Bytes::from(line + "\n")), readings))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// A command to an actuator.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    channel: String,
    value: Value,
    id: Option<String>,
    expires: Option<Value>,
}

/// Carries a command out and says how it went.
pub async fn command(
    State(gateway): App,
    Extension(door): Extension<Door>,
    order: Result<Json<Order>, JsonRejection>,
) -> Response {
    let order = match order {
        Ok(Json(order)) => order,
        Err(rejection) => return refuse(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    let Some(channel) = ChannelId::parse(&order.channel) else {
        return refuse(StatusCode::BAD_REQUEST, "channel is device/channel");
    };
    let value = match &order.value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let source = match door {
        Door::Tcp(peer) => format!("http {peer}"),
        Door::Control => "control".into(),
    };
    let expires_ns = match order.expires.as_ref().map(expiry).transpose() {
        Ok(expires_ns) => expires_ns,
        Err(why) => return refuse(StatusCode::BAD_REQUEST, &why),
    };
    let (format, value, id) = (Format::Text, value.into_bytes(), order.id);
    let command = Command { channel, format, value, source, id, expires_ns, not_after: None };
    let channel = command.channel.clone();
    let outcome = gateway.desk.carry_out(command).await;
    let code = match &outcome.result {
        Ok(_) => StatusCode::OK,
        Err(Refusal::Unknown(_)) => StatusCode::NOT_FOUND,
        Err(Refusal::NotAnActuator(_) | Refusal::BadValue(_)) => StatusCode::BAD_REQUEST,
        Err(Refusal::Expired | Refusal::ClockUnset) => StatusCode::CONFLICT,
        Err(Refusal::Failed(_) | Refusal::Uncertain(_)) => StatusCode::BAD_GATEWAY,
    };
    (code, Json(outcome.json(&channel, &gateway.clock.stamp()))).into_response()
}

/// Reads the configuration again; over the control socket only.
pub async fn reload(State(gateway): App, Extension(door): Extension<Door>) -> Response {
    if door != Door::Control {
        return refuse(StatusCode::FORBIDDEN, "reload comes over the control socket only");
    }
    match gateway.request_reload().await {
        Ok(summary) => Json(json!({ "ok": true, "changed": summary })).into_response(),
        Err(why) => refuse(StatusCode::UNPROCESSABLE_ENTITY, &why),
    }
}

fn channel_json(channel: &crate::reading::Channel, reading: Option<&Reading>) -> Value {
    let mut json = payload::describe(channel);
    json["id"] = channel.id.as_str().into();
    json["device"] = channel.device().into();
    json["value"] = payload::json_value(reading.and_then(|reading| reading.value.as_ref()));
    json["quality"] = reading.map(|reading| payload::quality_text(reading.quality)).into();
    json["time"] = reading.and_then(|reading| payload::rfc3339(&reading.stamp)).into();
    json
}

fn refuse(code: StatusCode, why: &str) -> Response {
    (code, Json(json!({ "error": why }))).into_response()
}

const MINUTE_NS: i64 = 60_000_000_000;
const EXPORT_AT_ONCE: usize = 1000;
