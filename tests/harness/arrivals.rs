//! What a RabbitMQ ended up with, checked lane by lane: read out once everything is over, so that no consumer's own
//! repeats are counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::process::Stdio;

use serde_json::Value;

use crate::{Id, Scratch, script};

/// Messages as they stood in a queue or a stream.
#[derive(Debug, Clone, Default)]
pub struct Arrivals {
    messages: Vec<Value>,
}

/// Where messages are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store<'a> {
    /// A queue, which is empty afterwards.
    Queue(&'a str),
    /// A stream, from its beginning; it keeps what it has.
    Stream(&'a str),
}

impl Arrivals {
    /// Reads everything that is there.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn read(broker: SocketAddr, store: Store<'_>) -> Self {
        let scratch = Scratch::new("arrivals");
        let file = scratch.join("messages.jsonl");
        let (name, kind) = match store {
            Store::Queue(name) => (name, "queue"),
            Store::Stream(name) => (name, "stream"),
        };
        rabbitmq(broker, &["drain", name, &file.display().to_string(), kind]);
        let text = std::fs::read_to_string(&file).expect("the script has written it");
        Self {
            messages: text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect(),
        }
    }

    /// Each as JSON: `topic` (the routing key), `id`, `headers`, `content_type`, `content_encoding`, `persistent`, and
    /// `payload`, or `base64` where it is not text.
    pub fn messages(&self) -> &[Value] {
        &self.messages
    }

    /// The gateways that have sent something.
    pub fn gateways(&self) -> BTreeSet<String> {
        self.messages.iter().filter_map(gateway_of).collect()
    }

    /// Compares what came from the gateway of these ids with what should have come.
    pub fn check<'a>(&self, expected: impl IntoIterator<Item = &'a Id>) -> LaneReport {
        let mut wanted: BTreeMap<u64, &Id> = BTreeMap::new();
        for id in expected {
            wanted.insert(id.seq, id);
        }
        let gateway = wanted.values().next().map(|id| id.gateway.clone());
        let mut report = LaneReport { expected: wanted.len(), ..LaneReport::default() };
        // By lane: each entry's place among the lane's first arrivals, and the highest Seq.
        let mut lanes: BTreeMap<String, (HashMap<u64, usize>, u64)> = BTreeMap::new();
        let mut home: HashMap<u64, String> = HashMap::new();
        for message in self.messages.iter().filter(|message| gateway_of(message) == gateway) {
            report.messages += 1;
            let (lane, entries) = entries(message);
            for seq in entries {
                report.arrived += 1;
                if !wanted.contains_key(&seq) {
                    report.strangers.push(seq);
                }
                let (seen, newest) = lanes.entry(lane.clone()).or_default();
                if let Some(first) = home.get(&seq) {
                    report.repeated += 1;
                    if *first == lane {
                        report.farthest_repeat = report.farthest_repeat.max(seen.len() - seen[&seq]);
                    } else {
                        report.on_two_lanes += 1;
                    }
                    continue;
                }
                home.insert(seq, lane.clone());
                seen.insert(seq, seen.len());
                if seq < *newest {
                    report.inversions += 1;
                }
                *newest = seq.max(*newest);
            }
        }
        report.lost = wanted.keys().copied().filter(|seq| !home.contains_key(seq)).collect();
        report.lanes = lanes.into_iter().map(|(lane, (seen, _))| (lane, seen.len())).collect();
        report
    }
}

/// What [`Arrivals::check`] found. All counts are of entries, not of messages.
#[derive(Debug, Clone, Default)]
pub struct LaneReport {
    /// Entries that should have come.
    pub expected: usize,
    /// Messages that came.
    pub messages: usize,
    /// Entries that came, repeated ones included.
    pub arrived: usize,
    /// Those that never came.
    pub lost: Vec<u64>,
    /// Arrivals of an entry that had come before.
    pub repeated: usize,
    /// How many entries of its lane stood behind a repeated one at most: the sender's window bounds it.
    pub farthest_repeat: usize,
    /// Entries that came on a second lane.
    pub on_two_lanes: usize,
    /// First arrivals behind a later entry of their lane.
    pub inversions: usize,
    /// Entries that nobody expected.
    pub strangers: Vec<u64>,
    /// Different entries by lane.
    pub lanes: BTreeMap<String, usize>,
}

impl LaneReport {
    /// The table's head, for the rows of [`LaneReport::row`].
    pub const HEAD: &str =
        "uplink              expected   arrived  messages      lost  repeated  farthest  inversions  lanes";

    /// One row of the table.
    pub fn row(&self, name: &str) -> String {
        let lanes: Vec<String> = self.lanes.iter().map(|(lane, count)| format!("{lane} {count}")).collect();
        format!(
            "{name:<18}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>10}  {}",
            self.expected,
            self.arrived,
            self.messages,
            self.lost.len(),
            self.repeated,
            self.farthest_repeat,
            self.inversions,
            lanes.join(", ")
        )
    }

    /// Nothing lost, nothing invented, every lane in order, no entry on two.
    ///
    /// # Panics
    /// When it is otherwise, naming the first ones.
    pub fn assert_whole(&self, name: &str) {
        let first = |seqs: &[u64]| {
            let mut ranges: Vec<(u64, u64)> = Vec::new();
            for seq in seqs {
                match ranges.last_mut() {
                    Some((_, last)) if *last + 1 == *seq => *last = *seq,
                    _ => ranges.push((*seq, *seq)),
                }
            }
            let words: Vec<String> = ranges.iter().take(9).map(|(from, to)| format!("{from}-{to}")).collect();
            words.join(", ")
        };
        assert!(self.lost.is_empty(), "{name}: {} lost: {}", self.lost.len(), first(&self.lost));
        assert!(self.strangers.is_empty(), "{name}: nobody sent {}", first(&self.strangers));
        assert_eq!(self.inversions, 0, "{name}: out of order");
        assert_eq!(self.on_two_lanes, 0, "{name}: on two lanes");
    }
}

/// Runs `rabbitmq.py` against a broker; what it printed.
///
/// # Panics
/// When it fails.
pub fn rabbitmq(broker: SocketAddr, arguments: &[&str]) -> String {
    let mut command = script("rabbitmq");
    command.arg(broker.ip().to_string()).arg(broker.port().to_string()).args(arguments);
    let output = command.stderr(Stdio::piped()).output().expect("Python can be started");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "rabbitmq.py {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn gateway_of(message: &Value) -> Option<String> {
    message["id"].as_str()?.split_once('/').map(|(gateway, _)| gateway.to_owned())
}

/// The lane and the entries of a message: its first record says `seq`, a further one only where it is not the one
/// before plus one.
fn entries(message: &Value) -> (String, Vec<u64>) {
    let payload = message["payload"].as_str().unwrap_or("");
    let records: Vec<Value> = serde_json::from_str(payload).unwrap_or_default();
    let mut last = None;
    let entries = records
        .iter()
        .filter_map(|record| {
            last = record["seq"].as_u64().or(last.map(|last: u64| last + 1));
            last
        })
        .collect();
    let lane = records.first().and_then(|record| record["lane"].as_str()).unwrap_or("live");
    (lane.to_owned(), entries)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id(seq: u64) -> Id {
        Id { gateway: "barn".into(), epoch: "e".into(), seq }
    }

    fn message(seqs: &[u64], lane: &str) -> Value {
        let mut before = None;
        let records: Vec<Value> = seqs
            .iter()
            .map(|seq| {
                let mut record = json!({"n": "a", "v": 1});
                if before.is_none() {
                    record["lane"] = lane.into();
                }
                if before != Some(*seq - 1) {
                    record["seq"] = (*seq).into();
                }
                before = Some(*seq);
                record
            })
            .collect();
        json!({"id": format!("barn/e/{}-{}", seqs[0], seqs[seqs.len() - 1]), "payload": json!(records).to_string()})
    }

    fn check(messages: Vec<Value>, expected: &[u64]) -> LaneReport {
        let ids: Vec<Id> = expected.iter().map(|seq| id(*seq)).collect();
        Arrivals { messages }.check(&ids)
    }

    #[test]
    fn lanes_are_ordered_each_for_itself_and_batches_are_taken_apart() {
        let messages = vec![
            message(&[1, 2, 4], "live"),
            message(&[9], "live"),
            message(&[5, 6], "backfill"),
            message(&[3], "alarm"),
        ];
        let report = check(messages, &[1, 2, 3, 4, 5, 6, 9]);
        report.assert_whole("test");
        assert_eq!((report.arrived, report.messages, report.repeated), (7, 4, 0));
    }

    #[test]
    fn a_loss_a_repeat_a_swap_a_stranger_and_a_second_lane_are_found() {
        let live = |seqs: &[u64]| message(seqs, "live");
        let report = check(vec![live(&[1, 2]), live(&[2, 3]), live(&[7]), live(&[5])], &[1, 2, 3, 4, 5]);
        assert_eq!(report.lost, [4]);
        assert_eq!(report.strangers, [7]);
        assert_eq!((report.repeated, report.farthest_repeat, report.inversions), (1, 1, 1));
        let report = check(vec![live(&[1]), message(&[1], "backfill")], &[1]);
        assert_eq!((report.repeated, report.on_two_lanes), (1, 1));
    }
}
