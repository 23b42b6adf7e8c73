//! The log as text: JSON lines and CSV (RFC 4180), the same from a running gateway and from a stopped one's files.

use std::fmt::Write as _;

use serde_json::json;

use crate::payload;
use crate::payload::parcel::Origin;
use crate::spool::{Body as Entry, Stored};

/// One entry as a line of JSON or CSV.
pub fn write_entry(out: &mut String, origin: &Origin, entry: &Stored, is_csv: bool) {
    let time = payload::rfc3339(&entry.stamp);
    let boot = entry.stamp.boot;
    if is_csv {
        let (name, value, unit, quality) = match &entry.body {
            Entry::Reading { channel, value, quality } => (
                channel.name.clone(),
                value.as_ref().map(ToString::to_string).unwrap_or_default(),
                channel.unit.clone(),
                payload::quality_text(*quality),
            ),
            Entry::Message { topic, payload } => {
                (topic.clone(), String::from_utf8_lossy(payload).into_owned(), String::new(), String::new())
            }
            Entry::Outcome { channel, json } => {
                (format!("{}/set/result", channel.name), json.clone(), String::new(), String::new())
            }
            Entry::Gap(gap) => ("gap".into(), gap.reason.as_str().into(), String::new(), String::new()),
            Entry::Alarm { name, text, .. } => {
                (format!("alarm/{name}"), text.clone(), String::new(), String::new())
            }
            Entry::Clock { record } => (
                "clock".into(),
                serde_json::to_string(record).unwrap_or_default(),
                String::new(),
                String::new(),
            ),
            Entry::Manifest { text } => ("manifest".into(), text.clone(), String::new(), String::new()),
            Entry::Aggregate { channel, mean, .. } => {
                (channel.name.clone(), mean.to_string(), channel.unit.clone(), "minute mean".into())
            }
        };
        let cells = [name, value, unit, quality].map(|cell| csv_cell(&cell));
        let _ = writeln!(out, "{},{boot},{},{}", entry.seq, time.unwrap_or_default(), cells.join(","));
        return;
    }
    let mut line = json!({ "id": format!("{origin}/{}", entry.seq), "seq": entry.seq.0, "boot": boot.to_string(), "time": time });
    match &entry.body {
        Entry::Reading { channel, value, quality } => {
            line["channel"] = channel.name.as_str().into();
            line["value"] = payload::json_value(value.as_ref());
            line["unit"] = channel.unit.as_str().into();
            line["quality"] = payload::quality_text(*quality).into();
        }
        Entry::Message { topic, payload } => {
            line["topic"] = topic.as_str().into();
            line["payload"] = String::from_utf8_lossy(payload).into();
        }
        Entry::Outcome { channel, json } => {
            line["channel"] = channel.name.as_str().into();
            line["outcome"] = serde_json::from_str(json).unwrap_or_default();
        }
        Entry::Gap(gap) => line["gap"] = serde_json::to_value(gap).unwrap_or_default(),
        Entry::Alarm { name, is_raised, text } => {
            line["alarm"] = json!({ "name": name, "raised": is_raised, "text": text });
        }
        Entry::Clock { record } => line["clock"] = serde_json::to_value(record).unwrap_or_default(),
        Entry::Manifest { text } => line["manifest"] = text.as_str().into(),
        Entry::Aggregate { channel, min, mean, max, n } => {
            line["channel"] = channel.name.as_str().into();
            line["unit"] = channel.unit.as_str().into();
            (line["min"], line["value"], line["max"]) = ((*min).into(), (*mean).into(), (*max).into());
            line["n"] = (*n).into();
        }
    }
    let _ = writeln!(out, "{line}");
}

/// The first line of an export as CSV.
pub const CSV_HEAD: &str = "seq,boot,time,name,value,unit,quality\n";

/// Whether an entry is one that was asked for.
pub fn is_chosen(entry: &Stored, channel: Option<&str>, from: Option<f64>, to: Option<f64>) -> bool {
    let is_channel = channel.is_none_or(|wanted| match &entry.body {
        Entry::Reading { channel, .. } | Entry::Aggregate { channel, .. } => channel.name == wanted,
        _ => false,
    });
    let at = entry.stamp.wall.map(|wall| wall.unix_ns as f64 / 1e9);
    is_channel
        && from.is_none_or(|from| at.is_some_and(|at| at >= from))
        && to.is_none_or(|to| at.is_some_and(|at| at < to))
}

/// Quoted where RFC 4180 wants it; a leading sign or equals would be a formula to a spreadsheet.
fn csv_cell(text: &str) -> String {
    let is_formula = text.starts_with(['=', '@', '\t', '\r'])
        || (text.starts_with(['+', '-']) && text.parse::<f64>().is_err());
    let text = if is_formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_neither_a_formula_nor_a_break_out() {
        assert_eq!(csv_cell("21.5"), "21.5");
        assert_eq!(csv_cell("-3"), "-3");
        assert_eq!(csv_cell("=cmd()"), "'=cmd()");
        assert_eq!(csv_cell("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
