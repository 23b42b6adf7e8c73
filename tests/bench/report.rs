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
    Peer(&'static str, Vec<f64>, Option<Limit>),
    Failed(&'static str, String),
    AtMost(f64),
    AtLeast(f64),
    Skipped(String),
}

/// What the ratio to a peer has to keep to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Limit {
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
        self.beside_within(what, unit, ours, peer, theirs, None);
    }

    /// Compares with a peer, and the ratio with a promise.
    pub(crate) fn beside_within(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        ours: Vec<f64>,
        peer: &'static str,
        theirs: Vec<f64>,
        limit: Option<Limit>,
    ) {
        self.push(Row { what: what.into(), unit, ours, other: Other::Peer(peer, theirs, limit) });
    }

    /// Compares with a peer that does not always last; else says why there is nothing to compare with.
    pub(crate) fn beside_if(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        ours: Vec<f64>,
        peer: &'static str,
        theirs: Result<Vec<f64>, String>,
    ) {
        let other = match theirs {
            Ok(theirs) => Other::Peer(peer, theirs, None),
            Err(why) => Other::Failed(peer, why),
        };
        self.push(Row { what: what.into(), unit, ours, other });
    }

    /// Says that something could not be measured here.
    pub(crate) fn skipped(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.push(Row { what: what.into(), unit: "", ours: Vec::new(), other: Other::Skipped(why.into()) });
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
            Other::Peer(name, theirs, _) => (*name, median(theirs), ours / median(theirs)),
            Other::Failed(name, why) => {
                return format!("{:<34} {ours:>12.2} {:<8} {name:<18} n/a: {why}", self.what, self.unit);
            }
            Other::Skipped(why) => return format!("{:<34}      SKIPPED: {why}", self.what),
            Other::AtMost(promise) if ours <= *promise => ("at most", *promise, ours / promise),
            Other::AtMost(promise) => ("EXCEEDS", *promise, ours / promise),
            Other::AtLeast(promise) if ours >= *promise => ("at least", *promise, ours / promise),
            Other::AtLeast(promise) => ("FALLS SHORT", *promise, ours / promise),
        };
        let limit = match &self.other {
            Other::Peer(.., Some(limit)) => limit.verdict(ratio),
            _ => String::new(),
        };
        let Self { what, unit, .. } = self;
        format!("{what:<34} {ours:>12.2} {unit:<8} {name:<18} {theirs:>12.2} {ratio:>7.2}{limit}")
    }

    fn json(&self) -> Value {
        let mut row = json!({"what": self.what, "unit": self.unit, "tidegate": self.ours});
        match &self.other {
            Other::Peer(name, theirs, limit) => {
                row["peer"] = json!({"name": name, "rounds": theirs});
                row["ratio"] = json!(median(&self.ours) / median(theirs));
                match limit {
                    Some(Limit::AtMost(most)) => row["ratio_at_most"] = json!(most),
                    Some(Limit::AtLeast(least)) => row["ratio_at_least"] = json!(least),
                    None => {}
                }
            }
            Other::Failed(name, why) => row["peer"] = json!({"name": name, "failed": why}),
            Other::Skipped(why) => row["skipped"] = json!(why),
            Other::AtMost(promise) | Other::AtLeast(promise) => row["promise"] = json!(promise),
        }
        row
    }
}

impl Limit {
    /// What stands behind a ratio in the table.
    fn verdict(self, ratio: f64) -> String {
        match self {
            Self::AtMost(most) if ratio <= most => format!("  at most {most}"),
            Self::AtMost(most) => format!("  EXCEEDS {most}"),
            Self::AtLeast(least) if ratio >= least => format!("  at least {least}"),
            Self::AtLeast(least) => format!("  FALLS SHORT OF {least}"),
        }
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
    fn a_ratio_beyond_its_limit_is_shouted() {
        assert_eq!(Limit::AtLeast(0.45).verdict(0.45), "  at least 0.45");
        assert_eq!(Limit::AtLeast(0.45).verdict(0.44), "  FALLS SHORT OF 0.45");
        assert_eq!(Limit::AtMost(3.0).verdict(2.9), "  at most 3");
        assert_eq!(Limit::AtMost(3.0).verdict(f64::NAN), "  EXCEEDS 3");
    }

    #[test]
    fn a_peer_that_failed_is_named_with_the_reason() {
        let other = Other::Failed("rumqttd", "it closed a connection".to_owned());
        let row = Row { what: "idle".to_owned(), unit: "B", ours: vec![1.0], other };
        assert!(row.line().ends_with(" 1.00 B        rumqttd            n/a: it closed a connection"));
    }

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }
}
