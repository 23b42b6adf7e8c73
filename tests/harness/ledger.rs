//! The ledger: what should have arrived against what did.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use serde_json::Value;

/// What names an entry everywhere: the gateway, the store it stands in, its place there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// The gateway's name.
    pub gateway: String,
    /// The random number of the gateway's store.
    pub epoch: String,
    /// The entry's number; never used twice.
    pub seq: u64,
}

impl Id {
    /// Reads `gateway/epoch/seq`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let id = Self {
            gateway: parts.next()?.to_owned(),
            epoch: parts.next()?.to_owned(),
            seq: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(id)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.gateway, self.epoch, self.seq)
    }
}

/// Arrivals at one consumer, in the order they came, each with its channel.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    arrivals: Vec<(Id, String)>,
}

impl Ledger {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes an arrival.
    pub fn note(&mut self, id: Id, channel: impl Into<String>) {
        self.arrivals.push((id, channel.into()));
    }

    /// How many different ids have arrived.
    pub fn distinct(&self) -> usize {
        self.arrivals.iter().map(|(id, _)| id).collect::<HashSet<_>>().len()
    }

    /// Compares with what should have come.
    pub fn check<'a>(&self, expected: impl IntoIterator<Item = &'a Id>) -> Report {
        let expected: BTreeSet<&Id> = expected.into_iter().collect();
        let mut report =
            Report { expected: expected.len(), arrived: self.arrivals.len(), ..Report::default() };
        let mut seen = HashMap::new();
        // How many different entries each lane has brought so far.
        let mut lanes: HashMap<&str, u64> = HashMap::new();
        let mut newest_of: HashMap<&str, u64> = HashMap::new();
        for (id, channel) in &self.arrivals {
            let lane = channel.split_once(": ").map_or("", |(lane, _)| lane);
            let count = lanes.entry(lane).or_insert(0);
            if let Some(first) = seen.get(id) {
                report.repeated += 1;
                report.farthest_repeat = report.farthest_repeat.max((*count).saturating_sub(*first));
                continue;
            }
            *count += 1;
            seen.insert(id, *count);
            if !expected.contains(id) {
                report.unexpected.push(id.clone());
            }
            let last = newest_of.entry(channel).or_insert(0);
            if id.seq < *last {
                *report.inversions.entry(channel.clone()).or_insert(0) += 1;
            }
            *last = id.seq.max(*last);
        }
        report.channels = newest_of.len();
        report.lost = expected.into_iter().filter(|id| !seen.contains_key(id)).cloned().collect();
        report
    }
}

/// What a [`Ledger`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Ids that should have come.
    pub expected: usize,
    /// Arrivals, repeated ones included.
    pub arrived: usize,
    /// Ids that never came.
    pub lost: Vec<Id>,
    /// Arrivals of an id that had come before: allowed, the far side drops them.
    pub repeated: usize,
    /// How many entries of its lane had come since a repeated one came first, at most: the sender's window bounds it.
    pub farthest_repeat: u64,
    /// Ids that nobody expected.
    pub unexpected: Vec<Id>,
    /// First arrivals that came after a later one of their channel, by channel.
    pub inversions: BTreeMap<String, usize>,
    /// Channels seen.
    pub channels: usize,
}

impl Report {
    /// The table's head, for the rows of [`Report::row`].
    pub const HEAD: &str = "consumer          expected   arrived      lost  repeated  farthest  unexpected  inversions  channels";

    /// One row of the table.
    pub fn row(&self, consumer: &str) -> String {
        format!(
            "{consumer:<16}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>10}  {:>10}  {:>8}",
            self.expected,
            self.arrived,
            self.lost.len(),
            self.repeated,
            self.farthest_repeat,
            self.unexpected.len(),
            self.inversions.values().sum::<usize>(),
            self.channels
        )
    }

    /// Nothing lost, nothing invented, every channel in order.
    ///
    /// # Panics
    /// When it is otherwise, naming the first ids.
    pub fn assert_whole(&self, consumer: &str) {
        let first = |ids: &[Id]| ids.iter().take(5).map(Id::to_string).collect::<Vec<_>>().join(", ");
        assert!(self.lost.is_empty(), "{consumer}: {} lost: {}", self.lost.len(), first(&self.lost));
        assert!(self.unexpected.is_empty(), "{consumer}: nobody sent {}", first(&self.unexpected));
        assert!(self.inversions.is_empty(), "{consumer}: out of order: {:?}", self.inversions);
    }
}

/// The entries in a message of an uplink, which is a SenML JSON pack that says `gw`, `epoch` and `seq` in its first
/// record, and `seq` further on only where it is not the one before plus one: the id of each, and the lane and channel
/// within which it keeps its order.
pub fn record_of(payload: &str) -> Vec<(Id, String)> {
    let Ok(Value::Array(records)) = serde_json::from_str(payload) else { return Vec::new() };
    let (mut base_name, mut lane) = (String::new(), "");
    let (mut origin, mut next) = (None, None);
    let mut found = Vec::new();
    for record in &records {
        let word = |key: &str| record[key].as_str();
        if let Some(name) = word("bn") {
            name.clone_into(&mut base_name);
        }
        lane = word("lane").unwrap_or(lane);
        origin = word("gw").zip(word("epoch")).or(origin);
        next = record["seq"].as_u64().or(next);
        if let (Some((gateway, epoch)), Some(seq)) = (origin, next) {
            // A LAN client's message keeps its order within its topic.
            let name = word("topic")
                .map_or_else(|| format!("{base_name}{}", word("n").unwrap_or("")), str::to_owned);
            let id = Id { gateway: gateway.to_owned(), epoch: epoch.to_owned(), seq };
            found.push((id, if lane.is_empty() { name } else { format!("{lane}: {name}") }));
            next = Some(seq + 1);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(seq: u64) -> Id {
        Id { gateway: "barn".into(), epoch: "e1".into(), seq }
    }

    fn ledger(arrivals: &[(u64, &str)]) -> Ledger {
        let mut ledger = Ledger::new();
        for (seq, channel) in arrivals {
            ledger.note(id(*seq), *channel);
        }
        ledger
    }

    #[test]
    fn a_whole_delivery_is_whole() {
        let sent: Vec<Id> = (1..=4).map(id).collect();
        let report = ledger(&[(2, "b"), (1, "a"), (3, "a"), (4, "b")]).check(&sent);
        report.assert_whole("test");
        assert_eq!((report.repeated, report.channels), (0, 2));
    }

    #[test]
    fn a_planted_loss_is_found() {
        let sent: Vec<Id> = (1..=4).map(id).collect();
        assert_eq!(ledger(&[(1, "a"), (2, "a"), (4, "a")]).check(&sent).lost, [id(3)]);
    }

    #[test]
    fn a_repeated_id_is_counted_with_its_distance_and_is_no_inversion() {
        let sent: Vec<Id> = (1..=4).map(id).collect();
        let report = ledger(&[(1, "a"), (2, "a"), (3, "a"), (1, "a"), (4, "a")]).check(&sent);
        report.assert_whole("test");
        assert_eq!((report.repeated, report.farthest_repeat), (1, 2));
    }

    #[test]
    fn a_swapped_pair_and_a_stranger_are_found() {
        let sent: Vec<Id> = (1..=3).map(id).collect();
        let report = ledger(&[(2, "a"), (1, "a"), (3, "b"), (9, "b")]).check(&sent);
        assert_eq!(report.inversions, BTreeMap::from([("a".to_owned(), 1)]));
        assert_eq!(report.unexpected, [id(9)]);
    }

    #[test]
    fn every_record_of_a_pack_names_its_reading() {
        let pack = r#"[{"bn":"cellar/","n":"temperature","v":21.5,"gw":"barn","epoch":"e1","seq":7,"lane":"backfill"},
                       {"n":"humidity","v":40}, {"n":"message","topic":"site/x","vs":"y","seq":11}]"#;
        let names =
            ["cellar/temperature", "cellar/humidity", "site/x"].map(|name| format!("backfill: {name}"));
        let expected: Vec<(Id, String)> = [7, 8, 11].map(id).into_iter().zip(names).collect();
        assert_eq!(record_of(pack), expected);
        assert_eq!(record_of(r#"[{"n":"bare","v":1}]"#), []);
        assert_eq!(Id::parse("barn/e1/7"), Some(id(7)));
        assert_eq!(Id::parse("barn/e1/7/8"), None);
    }
}
