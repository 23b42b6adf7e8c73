//! What the CLI shows to a person.

use std::fmt::Write as _;

use drivers::scan::Found;
use serde_json::{Value as Json, json};

/// `tidegate status`
pub fn status(status: &Json, with_colour: bool) -> String {
    let paint = Paint(with_colour);
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Json| value.as_f64().unwrap_or_default();
    let mut out = String::new();
    let problems = status["health"]["problems"].as_array().cloned().unwrap_or_default();
    let health = if problems.is_empty() {
        paint.green("well")
    } else {
        paint.red(&crate::count(problems.len(), "problem"))
    };
    let _ = writeln!(
        out,
        "{} {health} · up {} · {} of memory · tidegate {}",
        paint.bold(&text(&status["gateway"])),
        span(number(&status["uptime_s"])),
        bytes(number(&status["memory_bytes"])),
        text(&status["version"]),
    );
    for problem in &problems {
        let _ = writeln!(out, "  {} {}", paint.red("!"), text(&problem["what"]));
    }

    let _ = writeln!(out, "\n{}", paint.bold("Devices"));
    for device in status["devices"].as_array().into_iter().flatten() {
        let state = text(&device["state"]);
        let shown = if state == "online" {
            paint.green(&format!("{state:<9}"))
        } else {
            paint.red(&format!("{state:<9}"))
        };
        let last = device["last_s"].as_f64().map_or("never".to_owned(), |age| format!("{} ago", span(age)));
        let bus = text(&device["bus"]);
        // A simulated wire says so by its name.
        let is_silent = device["simulated"].as_bool() != Some(true) || bus.contains("sim");
        let sim = if is_silent { String::new() } else { paint.dim("  sim") };
        let detail = text(&device["detail"]);
        let detail = if detail.is_empty() { detail } else { format!("  {detail}") };
        let _ = writeln!(
            out,
            "  {:<16} {:<14} {shown} {:<12} {:<10}{sim}{detail}",
            text(&device["name"]),
            text(&device["type"]),
            last,
            bus
        );
    }

    let spool = &status["spool"];
    let _ = writeln!(out, "\n{}", paint.bold("Spool"));
    let _ = writeln!(
        out,
        "  {} entries, {} of {}, {:.1} a second",
        number(&spool["entries"]),
        bytes(number(&spool["bytes"])),
        bytes(number(&spool["quota_bytes"])),
        number(&spool["appended_per_s"]),
    );
    let _ = writeln!(out, "  {}", text(&spool["durability"]));
    for gap in spool["gaps"].as_array().into_iter().flatten().take(5) {
        let count = gap["count"].as_u64().map_or("an unknown number of".into(), |count| count.to_string());
        let _ = writeln!(
            out,
            "  {} {count} entries lost: {} at {}",
            paint.red("gap"),
            text(&gap["reason"]),
            text(&gap["at"])
        );
    }

    let _ = writeln!(out, "\n{}", paint.bold("Uplinks"));
    let uplinks = status["uplinks"].as_array().cloned().unwrap_or_default();
    if uplinks.is_empty() {
        let _ = writeln!(out, "  none configured: nothing leaves this machine");
    }
    for uplink in uplinks {
        let state = text(&uplink["state"]);
        let shown = if state == "connected" {
            paint.green(&format!("{state:<10}"))
        } else {
            paint.red(&format!("{state:<10}"))
        };
        let age =
            uplink["oldest_age_s"].as_f64().map(|age| format!(", oldest {}", span(age))).unwrap_or_default();
        let _ = writeln!(
            out,
            "  {:<16} {:<5} {shown} {} waiting{age}, {:.0}/s  {}",
            text(&uplink["name"]),
            text(&uplink["type"]),
            number(&uplink["waiting"]),
            number(&uplink["rate_per_s"]),
            paint.dim(&text(&uplink["target"])),
        );
        let detail = text(&uplink["detail"]);
        if !detail.is_empty() {
            let _ = writeln!(out, "  {:<16} {}", "", paint.dim(&detail));
        }
    }

    let _ = writeln!(out, "\n{}", paint.bold("Listeners"));
    for listener in status["listeners"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "  {:<5} {}", text(&listener["name"]), text(&listener["address"]));
    }
    let _ = writeln!(
        out,
        "  {} MQTT clients, {} messages in, {} out; {} CoAP requests, {} observers",
        number(&status["mqtt"]["clients"]),
        number(&status["mqtt"]["messages_in"]),
        number(&status["mqtt"]["messages_out"]),
        number(&status["coap"]["requests"]),
        number(&status["coap"]["observers"]),
    );
    out
}

/// One reading of `tidegate tail`.
pub fn reading(reading: &Json, with_colour: bool) -> String {
    let paint = Paint(with_colour);
    if let Some(missed) = reading["missed"].as_u64() {
        return format!(
            "{}\n",
            paint.red(&format!("{missed} readings missed: they came faster than they were read"))
        );
    }
    let text = |key: &str| reading[key].as_str().unwrap_or_default().to_owned();
    let unit = text("unit");
    let label = senml::unit(&unit).map_or(&*unit, |unit| unit.label);
    let quality = text("quality");
    let quality = if quality == "good" { String::new() } else { paint.red(&format!("  {quality}")) };
    let sim = if reading["simulated"].as_bool() == Some(true) { paint.dim("  sim") } else { String::new() };
    let time = text("time");
    let clock = time.get(11..23).unwrap_or(&time);
    format!(
        "{}  {:<34} {:>12} {label:<6}{sim}{quality}\n",
        paint.dim(clock),
        text("id"),
        value(&reading["value"])
    )
}

/// A value without quotes; nothing is a dash.
pub fn value(value: &Json) -> String {
    match value {
        Json::Null => "–".into(),
        Json::String(text) => text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        Json::Number(number) => {
            number.as_i64().map_or_else(|| number.as_f64().unwrap_or_default().to_string(), |n| n.to_string())
        }
        other => other.to_string(),
    }
}

/// `tidegate scan`
pub fn scan(found: &[Found], with_colour: bool) -> String {
    let paint = Paint(with_colour);
    if found.is_empty() {
        return "nothing found: no I2C bus, GPIO chip, serial port or kernel sensor on this machine\n".into();
    }
    let mut out = String::new();
    for thing in found {
        let _ = writeln!(
            out,
            "{:<12} {:<34} {}",
            thing.kind.as_str(),
            paint.bold(&format!("{:<34}", thing.path)).trim_end(),
            thing.what
        );
        if let Some(problem) = &thing.problem {
            let _ = writeln!(out, "             {}", paint.red(problem));
        }
    }
    let suggestions: Vec<&str> = found.iter().filter_map(|thing| thing.suggestion.as_deref()).collect();
    if !suggestions.is_empty() {
        let _ = writeln!(out, "\n{}\n", paint.dim("To read them, put this into tidegate.toml:"));
        let _ =
            writeln!(out, "{}", suggestions.iter().map(|text| text.trim()).collect::<Vec<_>>().join("\n\n"));
    }
    out
}

/// `tidegate scan --json`
pub fn scan_json(found: &[Found]) -> Json {
    found
        .iter()
        .map(|thing| {
            json!({
                "kind": thing.kind.as_str(), "path": thing.path, "what": thing.what,
                "confidence": thing.confidence.map(drivers::scan::Confidence::as_str),
                "problem": thing.problem, "suggestion": thing.suggestion,
            })
        })
        .collect()
}

/// Colours, where they are wanted.
pub(super) struct Paint(pub(super) bool);

impl Paint {
    fn with(&self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn bold(&self, text: &str) -> String {
        self.with("1", text)
    }

    pub(super) fn dim(&self, text: &str) -> String {
        self.with("90", text)
    }

    pub(super) fn red(&self, text: &str) -> String {
        self.with("31", text)
    }

    pub(super) fn green(&self, text: &str) -> String {
        self.with("32", text)
    }
}

/// Seconds as a person says them.
pub(super) fn span(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

/// A size as a person says it.
pub(super) fn bytes(bytes: f64) -> String {
    match bytes {
        b if b < 1e3 => format!("{b:.0} B"),
        b if b < 1e6 => format!("{:.1} kB", b / 1e3),
        b if b < 1e9 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} GB", b / 1e9),
    }
}
