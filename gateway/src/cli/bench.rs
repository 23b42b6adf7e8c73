//! The spool alone, as fast as it goes: for the figures beside a raw file and bare SQLite.

use std::collections::VecDeque;
use std::io::{BufRead as _, stdin};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use clap::Args;
use drivers::{ChannelSpec, Quality, Value};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use serde_json::json;

use crate::clock::Clock;
use crate::paths;
use crate::reading::{Channel, ChannelId, Reading};
use crate::spool::{Entry, Options, Progress, Seq, Spool, WhenFull};

/// What is appended, and what becomes of it.
#[derive(Debug, Clone, Args)]
pub struct Load {
    /// Entries per commit
    #[arg(long, default_value = "100", value_parser = at_least_one)]
    batch: usize,
    /// Entries that are measured
    #[arg(long, default_value_t = 100_000)]
    count: usize,
    /// Entries before those
    #[arg(long, default_value_t = 0)]
    warm_up: usize,
    /// Bytes of text that each reading is, instead of a number
    #[arg(long)]
    text: Option<usize>,
    /// Channels that the entries are of, in turn
    #[arg(long, default_value_t = 12)]
    channels: usize,
    /// Megabytes that the database may take
    #[arg(long, default_value_t = 4096)]
    max_size: u64,
    /// An uplink confirms every commit as soon as it is made
    #[arg(long)]
    confirm: bool,
    /// What is confirmed is not kept
    #[arg(long)]
    forget: bool,
    /// Appends that are begun before the first of them is answered
    #[arg(long, default_value = "1", value_parser = at_least_one)]
    under_way: usize,
    /// Say `warm` before measuring, and wait for a line before and after it
    #[arg(long)]
    attended: bool,
}

/// Appends batches and says how long it took, as a line of JSON. Making the entries is not measured.
pub async fn spool(state: Option<&Path>, load: &Load, say: impl Fn(&str)) -> Result<()> {
    let state = paths::state_directory(state).map_err(|error| anyhow!(error))?;
    std::fs::create_dir_all(&state)?;
    let clock = Clock::new();
    let options = Options {
        max_size: load.max_size << 20,
        rpo: Duration::from_millis(1),
        wear_budget: u64::MAX,
        when_full: WhenFull::DropOldest,
        retain: if load.forget { Duration::ZERO } else { Duration::from_secs(3600) },
        uplinks: vec![UPLINK.into()],
    };
    let (spool, _) = Spool::open(&state, options, clock)?;
    let channels = (1..=load.channels.max(1)).map(channel).collect::<Result<Vec<_>>>()?;
    append(&spool, clock, &channels, load, load.warm_up).await?;
    if load.attended {
        say("warm\n");
        wait_for_line();
    }
    let before = spool.stats().commits;
    let spent = append(&spool, clock, &channels, load, load.count).await?.as_secs_f64();
    let commits = spool.stats().commits - before;
    let rate = load.count as f64 / spent;
    let first = spool.stats().first_seq;
    say(&format!(
        "{}\n",
        json!({
            "rows": load.count, "seconds": spent, "rows_per_s": rate, "commits": commits, "first_seq": first
        })
    ));
    if load.attended {
        wait_for_line();
    }
    spool.close().await;
    Ok(())
}

async fn append(
    spool: &Spool,
    clock: Clock,
    channels: &[Arc<Channel>],
    load: &Load,
    count: usize,
) -> Result<Duration> {
    let mut spent = Duration::ZERO;
    let mut done = 0;
    while done < count {
        let some = done..count.min(done + load.batch * load.under_way * BATCHES);
        let starts = some.clone().step_by(load.batch);
        let mut batches: VecDeque<Vec<Entry>> = starts
            .map(|start| make(clock, channels, load.text, start..some.end.min(start + load.batch)))
            .collect();
        done = some.end;
        let begun = Instant::now();
        let mut under_way = FuturesUnordered::new();
        while !batches.is_empty() || !under_way.is_empty() {
            let free = load.under_way - under_way.len();
            under_way.extend(batches.drain(..free.min(batches.len())).map(|batch| spool.append(batch, true)));
            let Some(places) = under_way.next().await.transpose()? else { continue };
            if load.confirm {
                spool.note_progress(UPLINK, Progress::at(Seq(places.end.0 - 1)), false).await?;
            }
        }
        spent += begun.elapsed();
    }
    Ok(spent)
}

fn make(clock: Clock, channels: &[Arc<Channel>], text: Option<usize>, numbers: Range<usize>) -> Vec<Entry> {
    let value = |n: usize| match text {
        Some(length) => Value::Text("t".repeat(length).into()),
        None => Value::Number(n as f64 / 8.0),
    };
    let reading = |n: usize| Reading {
        channel: channels[n % channels.len()].clone(),
        value: Some(value(n)),
        quality: Quality::Good,
        stamp: clock.stamp(),
    };
    numbers.map(|n| Entry::Reading(reading(n))).collect()
}

fn channel(number: usize) -> Result<Arc<Channel>> {
    let id = ChannelId::new("bench", &format!("value{number}")).ok_or_else(|| anyhow!("a name"))?;
    Ok(Arc::new(Channel { id, spec: ChannelSpec::number("value", "Cel"), is_simulated: true }))
}

/// The end of the input counts as a line: whoever attended is gone.
fn wait_for_line() {
    let _ = stdin().lock().read_line(&mut String::new());
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "a number from 1 on".to_owned())
}

const UPLINK: &str = "none";
/// Made ahead, for each that is under way.
const BATCHES: usize = 50;
