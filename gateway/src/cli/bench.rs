//! The spool alone, as fast as it goes: for the side-by-side figures with bare SQLite.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use drivers::{ChannelSpec, Quality, Value};
use serde_json::{Value as Json, json};

use crate::clock::Clock;
use crate::paths;
use crate::reading::{Channel, ChannelId, Reading};
use crate::spool::{Entry, Options, Spool, WhenFull};

/// Appends `count` readings, `batch` to a commit, and says how long it took.
pub async fn spool(state: Option<&Path>, batch: usize, count: usize) -> Result<Json> {
    let state = paths::state_directory(state).map_err(|error| anyhow!(error))?;
    std::fs::create_dir_all(&state)?;
    let clock = Clock::new();
    let options = Options {
        max_size: 4 << 30,
        rpo: Duration::from_millis(1),
        wear_budget: u64::MAX,
        when_full: WhenFull::DropOldest,
        retain: Duration::from_secs(3600),
        uplinks: vec!["none".into()],
    };
    let (spool, _) = Spool::open(&state, options, clock)?;
    let id = ChannelId::new("bench", "value").ok_or_else(|| anyhow!("a name"))?;
    let channel = Arc::new(Channel { id, spec: ChannelSpec::number("value", "Cel"), is_simulated: true });
    let reading = |n: usize| {
        Entry::Reading(Reading {
            channel: channel.clone(),
            value: Some(Value::Number(n as f64 / 8.0)),
            quality: Quality::Good,
            stamp: clock.stamp(),
        })
    };
    let begun = Instant::now();
    let mut done = 0;
    while done < count {
        let size = batch.clamp(1, count - done);
        spool.append((done..done + size).map(reading).collect(), true).await?;
        done += size;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let commits = spool.stats().commits;
    spool.close().await;
    Ok(json!({ "rows": done, "seconds": seconds, "rows_per_s": done as f64 / seconds, "commits": commits }))
}
