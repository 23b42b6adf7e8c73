//! Medians, ratios, and the table people read.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// All measurements of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

/// One quantity, measured in every round for us and, where there is one, for a peer or against a promise.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    ours: Vec<f64>,
    other: Other,
}

#[derive(Debug)]
enum Other {
    Peer(&'static str, Vec<f64>),
    AtMost(f64),
    AtLeast(f64),
}

impl Report {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Compares with a peer.
    pub(crate) fn beside(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        ours: Vec<f64>,
        peer: &'static str,
        theirs: Vec<f64>,
    ) {
        self.push(Row { what: what.into(), unit, ours, other: Other::Peer(peer, theirs) });
    }

    /// Compares with a promise.
    pub(crate) fn at_most(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        ours: Vec<f64>,
        promise: f64,
    ) {
        self.push(Row { what: what.into(), unit, ours, other: Other::AtMost(promise) });
    }

    /// Compares with a promise that is a lower bound.
    pub(crate) fn at_least(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        ours: Vec<f64>,
        promise: f64,
    ) {
        self.push(Row { what: what.into(), unit, ours, other: Other::AtLeast(promise) });
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        println!("\n{HEAD}");
        for row in &self.rows {
            println!("{}", row.line());
        }
    }

    /// Writes every round's figures.
    pub(crate) fn write_json(&self, path: &Path) {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        let text = serde_json::to_string_pretty(&rows).expect("numbers and text are JSON");
        fs::write(path, text + "\n").unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        println!("\nfigures of every round: {}", path.display());
    }

    /// Shows a row at once: a long run should be seen to move.
    fn push(&mut self, row: Row) {
        eprintln!("{}", row.line());
        self.rows.push(row);
    }
}

impl Row {
    fn line(&self) -> String {
        let ours = median(&self.ours);
        let (name, theirs, ratio) = match &self.other {
            Other::Peer(name, theirs) => (*name, median(theirs), ours / median(theirs)),
            Other::AtMost(promise) if ours <= *promise => ("at most", *promise, ours / promise),
            Other::AtMost(promise) => ("EXCEEDS", *promise, ours / promise),
            Other::AtLeast(promise) if ours >= *promise => ("at least", *promise, ours / promise),
            Other::AtLeast(promise) => ("FALLS SHORT", *promise, ours / promise),
        };
        let Self { what, unit, .. } = self;
        format!("{what:<34} {ours:>12.2} {unit:<8} {name:<18} {theirs:>12.2} {ratio:>7.2}")
    }

    fn json(&self) -> Value {
        let mut row = json!({"what": self.what, "unit": self.unit, "tidegate": self.ours});
        match &self.other {
            Other::Peer(name, theirs) => {
                row["peer"] = json!({"name": name, "rounds": theirs});
                row["ratio"] = json!(median(&self.ours) / median(theirs));
            }
            Other::AtMost(promise) | Other::AtLeast(promise) => row["promise"] = json!(promise),
        }
        row
    }
}

/// The middle one; of an even number the mean of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

const HEAD: &str =
    "what                                   Tidegate unit     beside                    peer   ratio";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }
}
