//! The last retained message of each topic (MQTT 5.0 §3.3.1.3), for subscribers that come later.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use crate::{Filter, Message, Topic};

/// Retained messages by topic, bounded in number and bytes.
///
/// A sorted map rather than a tree: a filter is answered from its literal prefix, which is what filters begin with in
/// practice, and a topic costs one entry.
pub(crate) struct Retained {
    messages: BTreeMap<Topic, Kept>,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
}

/// A retained message and the moment at which it is no longer worth delivering.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) message: Arc<Message>,
    pub(crate) expires: Option<Instant>,
    /// The number of its record; 0 where it is not kept over a restart.
    pub(crate) record: u64,
}

impl Retained {
    pub(crate) fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self { messages: BTreeMap::new(), bytes: 0, max_messages, max_bytes }
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// The number of the record of what is kept on a topic, expired or not; 0 where there is none.
    pub(crate) fn record(&self, topic: &Topic) -> u64 {
        self.messages.get(topic).map_or(0, |kept| kept.record)
    }

    /// Keeps a message, or deletes what is kept on its topic if it is empty. Returns whether there was room; the records
    /// of those that had to go for it are put into `gone`.
    pub(crate) fn store(
        &mut self,
        now: Instant,
        message: &Arc<Message>,
        expires: Option<Instant>,
        record: u64,
        gone: &mut Vec<u64>,
    ) -> bool {
        if let Some(old) = self.messages.remove(&message.topic) {
            self.bytes -= old.message.weight();
        }
        if message.payload.is_empty() {
            return true;
        }
        let weight = message.weight();
        if self.is_full(weight) {
            self.forget_expired(now, gone);
            if self.is_full(weight) {
                return false;
            }
        }
        self.bytes += weight;
        self.messages.insert(message.topic.clone(), Kept { message: message.clone(), expires, record });
        true
    }

    /// The message kept on a topic, unless it has expired.
    pub(crate) fn get(&self, now: Instant, topic: &Topic) -> Option<&Kept> {
        self.messages.get(topic).filter(|kept| is_alive(kept, now))
    }

    /// The topics with a message that matches, in their order.
    pub(crate) fn matching<'a>(
        &'a self,
        now: Instant,
        filter: &'a Filter,
    ) -> impl Iterator<Item = &'a Topic> {
        let pattern = filter.pattern();
        let wildcard = pattern.find(['+', '#']);
        // "a/#" also matches "a", so the separator before a wildcard is not part of the prefix.
        let prefix = wildcard.map_or(pattern, |at| pattern[..at].strip_suffix('/').unwrap_or(&pattern[..at]));
        let is_exact = wildcard.is_none();
        self.messages
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(topic, _)| topic.as_str().starts_with(prefix))
            .take_while(move |(topic, _)| !is_exact || topic.as_str() == prefix)
            .filter(move |(topic, kept)| filter.matches(topic) && is_alive(kept, now))
            .map(|(topic, _)| topic)
    }

    fn is_full(&self, weight: usize) -> bool {
        self.messages.len() >= self.max_messages || self.bytes + weight > self.max_bytes
    }

    fn forget_expired(&mut self, now: Instant, gone: &mut Vec<u64>) {
        let bytes = &mut self.bytes;
        self.messages.retain(|_, kept| {
            let alive = is_alive(kept, now);
            if !alive {
                *bytes -= kept.message.weight();
                gone.extend((kept.record > 0).then_some(kept.record));
            }
            alive
        });
    }
}

fn is_alive(kept: &Kept, now: Instant) -> bool {
    kept.expires.is_none_or(|expires| now < expires)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn message(topic: &str, payload: &'static str) -> Arc<Message> {
        Arc::new(Message::new(Topic::new(topic).unwrap(), payload))
    }

    fn store(
        retained: &mut Retained,
        now: Instant,
        message: &Arc<Message>,
        expires: Option<Instant>,
    ) -> bool {
        retained.store(now, message, expires, 0, &mut Vec::new())
    }

    fn matching(retained: &Retained, now: Instant, filter: &str) -> Vec<String> {
        let filter = Filter::new(filter).unwrap();
        retained.matching(now, &filter).map(|topic| topic.as_str().to_owned()).collect()
    }

    #[test]
    fn every_matching_topic_is_found_and_no_other() {
        let now = Instant::now();
        let mut retained = Retained::new(100, 100_000);
        for topic in ["a", "a/b", "a/b/c", "ab", "a/", "$SYS/x", "b"] {
            assert!(store(&mut retained, now, &message(topic, "1"), None));
        }
        assert_eq!(matching(&retained, now, "a"), ["a"]);
        assert_eq!(matching(&retained, now, "a/#"), ["a", "a/", "a/b", "a/b/c"]);
        assert_eq!(matching(&retained, now, "a/+"), ["a/", "a/b"]);
        assert_eq!(matching(&retained, now, "+"), ["a", "ab", "b"]);
        assert_eq!(matching(&retained, now, "#"), ["a", "a/", "a/b", "a/b/c", "ab", "b"]);
        assert_eq!(matching(&retained, now, "$SYS/#"), ["$SYS/x"]);
        assert_eq!(matching(&retained, now, "+/b"), ["a/b"]);
    }

    #[test]
    fn an_empty_payload_deletes_and_an_expired_message_makes_room() {
        let now = Instant::now();
        let mut retained = Retained::new(1, 100_000);
        let soon = now + Duration::from_secs(1);
        assert!(store(&mut retained, now, &message("a", "1"), Some(soon)));
        assert!(!store(&mut retained, now, &message("b", "1"), None), "full");
        assert!(store(&mut retained, soon, &message("b", "1"), None), "a has expired");
        assert!(store(&mut retained, soon, &message("b", ""), None));
        assert_eq!((retained.len(), retained.bytes), (0, 0));
    }
}
