//! The spool alone, as fast as it goes: for the figures beside a raw file and bare SQLite.

use std::io::{BufRead as _, stdin};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use clap::Args;
use drivers::{ChannelSpec, Quality, Value};
use serde_json::json;

use crate::clock::Clock;
use crate::paths;
use crate::reading::{Channel, ChannelId, Reading};
use crate::spool::{Entry, Options, Progress, Seq, Spool, WhenFull};

/// What is appended, and what becomes of it.
#[derive(Debug, Clone, Args)]
pub struct Load {
    /// Entries per commit
    #[arg(long, default_value_t = 100)]
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
    /// Say `warm` before measuring, and wait for a line before and after it
    #[arg(long)]
    attended: bool,
}

/// Appends a batch after the other and says how long it took, as a line of JSON. Making the entries is not measured.
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
        let size = load.batch.clamp(1, count - done);
        let value = |n: usize| match load.text {
            Some(length) => Value::Text("t".repeat(length).into()),
            None => Value::Number(n as f64 / 8.0),
        };
        let entries = (done..done + size).map(|n| {
            Entry::Reading(Reading {
                channel: channels[n % channels.len()].clone(),
                value: Some(value(n)),
                quality: Quality::Good,
                stamp: clock.stamp(),
            })
        });
        let entries = entries.collect();
        let begun = Instant::now();
        let places = spool.append(entries, true).await?;
        spent += begun.elapsed();
        done += size;
        if load.confirm {
            let last = Seq(places.end.0 - 1);
            spool.note_progress(UPLINK, Progress::at(last), false).await?;
        }
    }
    Ok(spent)
}

fn channel(number: usize) -> Result<Arc<Channel>> {
    let id = ChannelId::new("bench", &format!("value{number}")).ok_or_else(|| anyhow!("a name"))?;
    Ok(Arc::new(Channel { id, spec: ChannelSpec::number("value", "Cel"), is_simulated: true }))
}

/// The end of the input counts as a line: whoever attended is gone.
fn wait_for_line() {
    let _ = stdin().lock().read_line(&mut String::new());
}

const UPLINK: &str = "none";
