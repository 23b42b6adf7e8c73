//! `tidegate spool …`: what waits, what stands where, whether it is sound; giving up and sending again by hand.
//!
//! The running gateway answers over the control socket. Of a stopped one the files are read; only a running one
//! changes them.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};

use super::show::{Paint, bytes, span};
use super::{Cli, parse_time, print, with_colour};
use crate::control::Control;
use crate::payload::parcel::Origin;
use crate::spool::{Inspector, Seq, store_path};
use crate::stock::{self, Circumstances};
use crate::{count, export as log_export, paths};

/// What can be done with the spool.
#[derive(Debug, Subcommand)]
pub enum SpoolVerb {
    /// How much waits for whom, since when, how fast it goes, how long an outage may last
    Stat,
    /// What stands where: tables with their places and times, and the gaps
    Ls,
    /// Look whether everything reads and nothing is missing that no gap explains
    Verify,
    /// Write the log to stdout, as `tidegate export` does
    Export(Selection),
    /// Give up what waits for one uplink: it never gets it, and a gap says so
    Drop {
        /// For which uplink
        #[arg(long)]
        uplink: String,
        /// What was measured before this time: RFC 3339 or seconds since 1970
        #[arg(long, value_name = "TIME", value_parser = parse_time, group = "upto", required = true)]
        before: Option<f64>,
        /// What stands before this place
        #[arg(long, value_name = "SEQ", group = "upto")]
        before_seq: Option<u64>,
        /// Everything that waits now
        #[arg(long, group = "upto")]
        all: bool,
        /// Do it; without this, only say what would be given up
        #[arg(long)]
        yes: bool,
    },
    /// Send what was sent before once more, on the lane of the past
    Replay {
        /// To which uplink
        #[arg(long)]
        uplink: String,
        /// From this time on: RFC 3339 or seconds since 1970
        #[arg(long, value_name = "TIME", value_parser = parse_time, group = "begin", required = true)]
        from: Option<f64>,
        /// From this place on
        #[arg(long, value_name = "SEQ", group = "begin")]
        from_seq: Option<u64>,
        /// Up to this time, excluded; up to now unless set
        #[arg(long, value_name = "TIME", value_parser = parse_time, group = "end")]
        to: Option<f64>,
        /// Up to and with this place
        #[arg(long, value_name = "SEQ", group = "end")]
        to_seq: Option<u64>,
    },
}

/// Which entries are exported, and how.
#[derive(Debug, Args)]
pub struct Selection {
    /// Only this channel, as in cellar/temperature
    #[arg(long)]
    channel: Option<String>,
    /// From this time on: RFC 3339 or seconds since 1970
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: Option<f64>,
    /// Up to this time, excluded
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    to: Option<f64>,
    /// From this place on
    #[arg(long, value_name = "SEQ")]
    from_seq: Option<u64>,
    /// Up to and with this place
    #[arg(long, value_name = "SEQ")]
    to_seq: Option<u64>,
    /// csv, or jsonl: one JSON object a line
    #[arg(long, default_value = "csv", value_parser = ["csv", "jsonl"])]
    format: String,
}

/// `tidegate spool …`
///
/// # Errors
/// What went wrong, for a person.
pub async fn perform(cli: &Cli, verb: &SpoolVerb) -> Result<ExitCode> {
    let paint = Paint(with_colour());
    match verb {
        SpoolVerb::Stat => {
            let found = match ask(cli, "stat").await {
                Some(found) => found?,
                None => offline_stat(cli)?,
            };
            show(cli, &found, stat(&found, &paint));
        }
        SpoolVerb::Ls => {
            let found = match ask(cli, "ls").await {
                Some(found) => found?,
                None => stock::list(&Inspector::open(&state(cli)?)?)?,
            };
            show(cli, &found, list(&found, &paint));
        }
        SpoolVerb::Verify => {
            let found = match ask(cli, "verify").await {
                Some(found) => found?,
                None => stock::check_json(&Inspector::open(&state(cli)?)?.check()?),
            };
            show(cli, &found, verify(&found, &paint));
            if found["ok"] != true {
                return Ok(ExitCode::FAILURE);
            }
        }
        SpoolVerb::Export(selection) => return export(cli, selection).await,
        SpoolVerb::Drop { uplink, before, before_seq, all, yes } => {
            let order = json!({ "uplink": uplink, "before": before, "before_seq": before_seq, "all": all, "yes": yes });
            let done = order_of(cli, "drop", &order).await?;
            show(cli, &done, dropped(&done, &paint));
            // Nothing was done without --yes, and a script should notice.
            if done["is_done"] != true && done["count"] != 0 {
                return Ok(ExitCode::FAILURE);
            }
        }
        SpoolVerb::Replay { uplink, from, from_seq, to, to_seq } => {
            let order =
                json!({ "uplink": uplink, "from": from, "from_seq": from_seq, "to": to, "to_seq": to_seq });
            let done = order_of(cli, "replay", &order).await?;
            let text = format!(
                "{} gets {} once more, places {} to {}\n",
                uplink,
                count(done["places"].as_u64().unwrap_or_default() as usize, "place"),
                done["from_seq"],
                done["to_seq"]
            );
            show(cli, &done, text);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `tidegate export`: from the running gateway, else from the files of a stopped one.
///
/// # Errors
/// Neither can be read.
pub async fn export(cli: &Cli, selection: &Selection) -> Result<ExitCode> {
    let Selection { channel, from, to, from_seq, to_seq, format } = selection;
    let format = if cli.json { "jsonl" } else { format };
    match Control::connect(cli.state_dir.as_deref()).await {
        Ok(mut control) => {
            let mut path = format!("/api/v1/export?format={format}");
            if let Some(channel) = channel {
                // Names need no escaping; what is no name is refused there.
                let _ = write!(path, "&channel={}", channel.replace(['&', '#', '%', ' ', '+', '?'], "_"));
            }
            for (key, time) in [("from", from), ("to", to)] {
                if let Some(time) = time {
                    let _ = write!(path, "&{key}={time}");
                }
            }
            if let Some(from_seq) = from_seq {
                let _ = write!(path, "&after={}", from_seq.saturating_sub(1));
            }
            if let Some(to_seq) = to_seq {
                let _ = write!(path, "&until={to_seq}");
            }
            control.stream(&path, |piece| Ok(io::stdout().write_all(piece).is_ok())).await?;
        }
        Err(_) => {
            let mut inspector = Inspector::open(&state(cli)?)?;
            // The configuration may be gone or wrong; the log has no name of its own then.
            let gateway = crate::load_config(cli.config.as_deref())
                .map_or_else(|_| "tidegate".into(), |config| config.gateway.name);
            let origin = Origin { gateway, epoch: inspector.epoch()? };
            let is_csv = format == "csv";
            if is_csv {
                print(log_export::CSV_HEAD);
            }
            let mut after = Seq(from_seq.unwrap_or_default().saturating_sub(1));
            let until = Seq(to_seq.unwrap_or(u64::MAX));
            loop {
                let entries = inspector.read_after(after, 1000)?;
                let Some(last) = entries.last().map(|last| last.seq).filter(|_| after < until) else { break };
                after = last;
                let mut text = String::new();
                let chosen = |entry: &&crate::spool::Stored| {
                    entry.seq <= until && log_export::is_chosen(entry, channel.as_deref(), *from, *to)
                };
                for entry in entries.iter().filter(chosen) {
                    log_export::write_entry(&mut text, &origin, entry, is_csv);
                }
                if !print(&text) {
                    break;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The running gateway's answer; `None` when there is none running.
async fn ask(cli: &Cli, what: &str) -> Option<Result<Json>> {
    let mut control = Control::connect(cli.state_dir.as_deref()).await.ok()?;
    Some(control.get(&format!("/api/v1/spool/{what}")).await)
}

/// Has the running gateway do something.
async fn order_of(cli: &Cli, what: &str, order: &Json) -> Result<Json> {
    let mut control = Control::connect(cli.state_dir.as_deref()).await?;
    match control.post(&format!("/api/v1/spool/{what}"), order).await? {
        (true, done) => Ok(done),
        (false, why) => bail!("{}", why["error"].as_str().unwrap_or("refused")),
    }
}

fn state(cli: &Cli) -> Result<PathBuf> {
    let state = paths::state_directory(cli.state_dir.as_deref()).map_err(|error| anyhow!(error))?;
    if !store_path(&state).exists() {
        bail!("no running gateway, and no spool in {}", state.display());
    }
    Ok(state)
}

fn offline_stat(cli: &Cli) -> Result<Json> {
    let state = state(cli)?;
    let mut inspector = Inspector::open(&state)?;
    let quota = crate::load_config(cli.config.as_deref()).map_or(0, |config| config.spool.max_size.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let bytes = size(&store_path(&state)) + size(&state.join("spool.db-wal"));
    let progress = inspector.progress()?;
    let at = Circumstances { now_ns: now.as_nanos() as i64, bytes, quota, progress };
    let mut found = stock::stat(&mut inspector, &at)?;
    found["running"] = false.into();
    Ok(found)
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn show(cli: &Cli, found: &Json, text: String) {
    print(&if cli.json { format!("{found:#}\n") } else { text });
}

fn stat(found: &Json, paint: &Paint) -> String {
    let number = |value: &Json| value.as_f64().unwrap_or_default();
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let mut out = String::new();
    let age =
        found["oldest_age_s"].as_f64().map_or(String::new(), |age| format!(", oldest {} ago", span(age)));
    let quota = match number(&found["quota_bytes"]) {
        0.0 => String::new(),
        quota => format!(" of {}", bytes(quota)),
    };
    let _ = writeln!(
        out,
        "{} {} entries, {}{quota}{age}",
        paint.bold("Spool"),
        found["entries"],
        bytes(number(&found["bytes"])),
    );
    let is_running = found["running"] == true;
    if !is_running {
        let _ = writeln!(out, "  {}", paint.dim("the gateway is not running: this is what the files say"));
    }
    let _ = write!(out, "  {:.1} a second today", number(&found["today_per_s"]));
    if is_running {
        let _ = write!(
            out,
            ", {} of {} written",
            bytes(number(&found["written_today_bytes"])),
            bytes(number(&found["wear_budget_bytes"])),
        );
    }
    out.push('\n');
    if let Some(hours) = found["capacity_h"].as_f64() {
        let _ = writeln!(out, "  at that rate an outage of {} fits from now on", span(hours * 3600.0));
    }
    if is_running {
        let _ = writeln!(out, "  {}", text(&found["durability"]));
    }
    if let Some(why) = found["refusing"].as_str() {
        let _ = writeln!(out, "  {} {why}", paint.red("cannot write:"));
    }
    let uplinks = found["uplinks"].as_array().cloned().unwrap_or_default();
    if uplinks.is_empty() {
        let _ = writeln!(out, "\nno uplinks: nothing waits");
        return out;
    }
    let head = format!(
        "{:<16} {:<10} {:>12}   {:<10} {:>10}   {}",
        "Uplink", "lane", "waiting", "oldest", "rate", "drained in"
    );
    let _ = writeln!(out, "\n{}", paint.bold(&head));
    for uplink in uplinks {
        let state = text(&uplink["state"]);
        let state = match &*state {
            "" => String::new(),
            "connected" => paint.green(&state),
            _ => paint.red(&state),
        };
        let rate = uplink["rate_per_s"].as_f64().map_or(String::new(), |rate| format!("{rate:.0}/s"));
        let drained = match uplink["drain_s"].as_f64() {
            _ if !is_running => String::new(),
            Some(0.0) => "nothing waits".into(),
            Some(seconds) => span(seconds),
            None => "not at this rate".into(),
        };
        let _ = writeln!(
            out,
            "{:<16} {:<10} {:>12}   {:<10} {rate:>10}   {drained:<16} {state}",
            text(&uplink["name"]),
            "",
            uplink["waiting"].to_string(),
            ""
        );
        for lane in ["alarm", "live", "backfill"] {
            let of = &uplink["lanes"][lane];
            let age = of["oldest_age_s"].as_f64().map_or("–".to_owned(), span);
            let line = format!("{:<16} {lane:<10} {:>12}   {age}", "", of["waiting"].to_string());
            let _ = writeln!(out, "{}", if of["waiting"] == 0 { paint.dim(&line) } else { line });
        }
    }
    out
}

fn list(found: &Json, paint: &Paint) -> String {
    let time = |value: &Json| {
        let text = value.as_str().unwrap_or("–");
        text.get(..19).map_or_else(|| text.to_owned(), |text| text.replace('T', " "))
    };
    let mut out = String::new();
    let head = format!(
        "{:<10} {:>14} {:>14} {:>10}   {:<20} {:<20}",
        "class", "first", "last", "entries", "from", "to"
    );
    let _ = writeln!(out, "{}", paint.bold(head.trim_end()));
    for part in found["partitions"].as_array().into_iter().flatten() {
        let thinned = part["thinned_to"].as_u64();
        let thinned = thinned.map_or(String::new(), |to| paint.dim(&format!("thinned out up to {to}")));
        let line = format!(
            "{:<10} {:>14} {:>14} {:>10}   {:<20} {:<20} {thinned}",
            part["class"].as_str().unwrap_or_default(),
            part["first"].to_string(),
            part["last"].to_string(),
            part["entries"].to_string(),
            time(&part["from"]),
            time(&part["to"]),
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let gaps = found["gaps"].as_array().cloned().unwrap_or_default();
    if gaps.is_empty() {
        let _ = writeln!(out, "\nno gaps");
        return out;
    }
    let head = format!("{:<16} {:>14} {:>14} {:>10}   {:<20}", "gap", "from", "to", "entries", "noticed");
    let _ = writeln!(out, "\n{}", paint.bold(head.trim_end()));
    for gap in gaps {
        let place = |key: &str| gap[key].as_u64().map_or("–".to_owned(), |place| place.to_string());
        let _ = writeln!(
            out,
            "{} {:>14} {:>14} {:>10}   {}",
            paint.red(&format!("{:<16}", gap["reason"].as_str().unwrap_or_default())),
            place("from_seq"),
            place("to_seq"),
            place("count"),
            time(&gap["at"]),
        );
    }
    out
}

fn verify(found: &Json, paint: &Paint) -> String {
    let mut out = String::new();
    let verdict = if found["ok"] == true { paint.green("sound") } else { paint.red("not sound") };
    let _ = writeln!(out, "{verdict}: {} entries read", found["entries"]);
    if let Some(explained) = found["explained"].as_u64().filter(|explained| *explained > 0) {
        let _ = writeln!(out, "  {explained} places are empty, and gaps say why");
    }
    if let Some(unreadable) = found["unreadable"].as_u64().filter(|unreadable| *unreadable > 0) {
        let _ = writeln!(out, "  {} {unreadable} rows do not read as entries", paint.red("!"));
    }
    for hole in found["holes"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "  {} nothing stands from {} to {}, and no gap says why",
            paint.red("!"),
            hole[0],
            hole[1]
        );
    }
    for line in found["integrity"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "  {} {}", paint.red("!"), line.as_str().unwrap_or_default());
    }
    out
}

fn dropped(done: &Json, paint: &Paint) -> String {
    let uplink = done["uplink"].as_str().unwrap_or_default();
    let mut out = match (done["count"].as_u64().unwrap_or_default(), done["is_done"] == true) {
        (0, _) => format!("nothing of that waits for {uplink}\n"),
        (count, true) => {
            format!("{count} entries are given up: {uplink} never gets them, and a gap says so\n")
        }
        (count, false) => format!(
            "{} {count} entries that {uplink} would never get; {}\n",
            paint.red("would give up"),
            paint.bold("--yes does it")
        ),
    };
    for range in done["ranges"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "  places {} to {}", range[0], range[1]);
    }
    out
}
