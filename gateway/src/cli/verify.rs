//! `tidegate verify-ledger`: what a consumer stored against what the gateway signed.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value as Json, json};

use super::show::Paint;
use crate::count;
use crate::ledger::{Book, Findings, Tally, Verdict, is_key, read};

/// Exit code for a consumer that has all the gateway had, while the gateway recorded losses of its own.
pub const LOSSES: u8 = 3;

/// Reads the files (`-` is stdin) and says what was found.
///
/// # Errors
/// A file or the key cannot be read, or there is more than fits into the bounds.
pub fn run(
    key: Option<&str>,
    files: &[PathBuf],
    is_json: bool,
    with_colour: bool,
) -> Result<(String, ExitCode)> {
    let key = key.map(key_of).transpose()?;
    let (mut book, mut tally) = (Book::default(), Tally::default());
    for path in files {
        let name = if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
        let mut input: Box<dyn BufRead> = if path == Path::new("-") {
            Box::new(io::stdin().lock())
        } else {
            Box::new(BufReader::new(File::open(path).with_context(|| name.clone())?))
        };
        read(&name, &mut *input, &mut book, &mut tally).with_context(|| name)?;
    }
    let findings = book.findings(key.as_deref());
    let verdict = overall(&findings, &tally);
    let text = if is_json {
        format!("{:#}\n", as_json(&findings, &tally, verdict))
    } else {
        as_text(&findings, &tally, key.is_some(), &Paint(with_colour))
    };
    let code = match verdict {
        Verdict::Complete => ExitCode::SUCCESS,
        Verdict::Losses => ExitCode::from(LOSSES),
        Verdict::Incomplete => ExitCode::FAILURE,
    };
    Ok((text, code))
}

/// The key itself, or what stands in the file of that name.
fn key_of(text: &str) -> Result<String> {
    if is_key(text) {
        return Ok(text.to_owned());
    }
    let read = std::fs::read_to_string(text)
        .with_context(|| format!("{}: neither 64 hex digits nor a file", text.escape_debug()))?;
    if !is_key(read.trim()) {
        bail!("{text}: no key: expected 64 hex digits, as in ledger.pub");
    }
    Ok(read.trim().to_owned())
}

fn overall(findings: &[Findings], tally: &Tally) -> Verdict {
    if tally.unreadable > 0 {
        return Verdict::Incomplete;
    }
    findings.iter().map(Findings::verdict).max().unwrap_or(Verdict::Incomplete)
}

fn as_json(findings: &[Findings], tally: &Tally, verdict: Verdict) -> Json {
    let ranges = |ranges: &[(u64, u64)]| -> Json {
        ranges.iter().take(JSON_RANGES).map(|(from, to)| json!([from, to])).collect()
    };
    let ledgers: Json = findings
        .iter()
        .map(|found| {
            json!({
                "gateway": found.gateway, "epoch": found.epoch, "verdict": word(found.verdict()),
                "entries": found.entries, "manifests": found.manifests, "key": found.key,
                "covered": found.covered.map(|(from, to)| [from, to]),
                "missing": ranges(&found.missing), "missing_count": found.missing_count,
                "lost": found.lost.iter().take(JSON_RANGES).collect::<Vec<_>>(),
                "duplicated": ranges(&found.duplicated), "repeats": found.repeats,
                "altered": ranges(&found.altered), "invented": ranges(&found.invented),
                "unproven": ranges(&found.unproven), "uncovered": ranges(&found.uncovered),
                "chain": found.chain.iter().take(JSON_RANGES).collect::<Vec<_>>(),
                "signatures": found.signatures.iter().take(JSON_RANGES).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "verdict": word(verdict), "ledgers": ledgers, "lines": tally.lines, "foreign": tally.foreign,
        "unreadable": tally.unreadable, "mistakes": tally.mistakes,
    })
}

fn as_text(findings: &[Findings], tally: &Tally, is_pinned: bool, paint: &Paint) -> String {
    let mut out = String::new();
    for found in findings {
        ledger(&mut out, found, is_pinned, paint);
    }
    if findings.is_empty() {
        let _ =
            writeln!(out, "{}: no record of a gateway in {}", paint.red("nothing to verify"), lines(tally));
    }
    if tally.foreign > 0 {
        let _ = writeln!(
            out,
            "{} without gw, epoch and seq: not of a gateway, passed over",
            count(tally.foreign as usize, "record")
        );
    }
    if tally.unreadable > 0 {
        let _ = writeln!(
            out,
            "{} of {} cannot be read:",
            paint.red(&count(tally.unreadable as usize, "line")),
            tally.lines
        );
        for mistake in &tally.mistakes {
            let _ = writeln!(out, "  {}", mistake.escape_debug());
        }
    }
    out
}

fn ledger(out: &mut String, found: &Findings, is_pinned: bool, paint: &Paint) {
    let verdict = match found.verdict() {
        Verdict::Complete => paint.green("complete"),
        Verdict::Losses => paint.green("complete but for recorded losses"),
        Verdict::Incomplete => paint.red("not complete"),
    };
    // What names itself may hold anything.
    let (gateway, epoch) = (found.gateway.escape_debug().to_string(), found.epoch.escape_debug());
    let _ = writeln!(out, "{} epoch {epoch}: {verdict}", paint.bold(&gateway));
    let places = found.covered.map_or(String::new(), |(from, to)| format!(" for the places {from} to {to}"));
    let _ = writeln!(
        out,
        "  {}, {}{places}",
        counted(found.entries, "entry", "entries"),
        count(found.manifests as usize, "manifest")
    );
    if let Some(key) = &found.key {
        let whose = if is_pinned { "" } else { "  whose it is, only --key can say" };
        let _ = writeln!(out, "  signed with {key}{}", paint.dim(whose));
    }
    let missing = if found.missing.is_empty() { 0 } else { found.missing_count };
    row(out, &paint.red("missing"), 7, missing, &found.missing, "");
    for loss in found.lost.iter().take(SHOWN) {
        let places = match (loss.from, loss.to) {
            (Some(from), Some(to)) => format!("{}  ", range((from, to))),
            _ => "before they were given a place  ".to_owned(),
        };
        let number = loss.count.map_or("unknown".to_owned(), |count| count.to_string());
        let reason = loss.reason.escape_debug();
        let _ = writeln!(
            out,
            "  {:<12} {number:>8}  {places}{}",
            "lost",
            paint.dim(&format!("{reason}, as the gateway recorded"))
        );
    }
    if found.lost.len() > SHOWN {
        let _ = writeln!(out, "  {:<12} {:>8}  and {} more ranges", "lost", "", found.lost.len() - SHOWN);
    }
    row(out, &paint.red("altered"), 7, 0, &found.altered, "at least one entry in each of these");
    row(
        out,
        &paint.red("invented"),
        8,
        total(&found.invented),
        &found.invented,
        "the gateway had nothing there",
    );
    row(out, "duplicated", 10, found.repeats, &found.duplicated, "");
    row(
        out,
        "unproven",
        8,
        total(&found.unproven),
        &found.unproven,
        "beside missing or lost ones, so no digest fits",
    );
    row(out, "uncovered", 9, total(&found.uncovered), &found.uncovered, "by no manifest that is here");
    for what in found.chain.iter().chain(&found.signatures).take(SHOWN) {
        let _ = writeln!(out, "  {} {}", paint.red("!"), what.escape_debug());
    }
}

/// A line about ranges, if there are any; `width` is that of `what` without its colour.
fn row(out: &mut String, what: &str, width: usize, number: u64, ranges: &[(u64, u64)], note: &str) {
    if ranges.is_empty() {
        return;
    }
    let shown: Vec<String> = ranges.iter().take(SHOWN).map(|places| range(*places)).collect();
    let more = ranges.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let number = if number > 0 { number.to_string() } else { String::new() };
    let note = if note.is_empty() { String::new() } else { format!("  ({note})") };
    let pad = " ".repeat(12usize.saturating_sub(width));
    let _ = writeln!(out, "  {what}{pad} {number:>8}  {}{more}{note}", shown.join(", "));
}

fn total(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().map(|(from, to)| to - from + 1).sum()
}

fn range((from, to): (u64, u64)) -> String {
    if from == to { from.to_string() } else { format!("{from}–{to}") }
}

fn lines(tally: &Tally) -> String {
    count(tally.lines as usize, "line")
}

fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Complete => "complete",
        Verdict::Losses => "complete but for recorded losses",
        Verdict::Incomplete => "not complete",
    }
}

/// Ranges in a line for people.
const SHOWN: usize = 8;
/// Ranges in JSON.
const JSON_RANGES: usize = 10_000;
