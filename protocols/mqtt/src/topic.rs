//! Topic names and topic filters (MQTT 5.0 §4.7, §4.8.2): made once at the edge, valid ever after.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// A topic name: 1 to 65,535 bytes of UTF-8 without NUL and wildcards, at most [`MAX_LEVELS`] levels.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

/// A topic filter, shared (`$share/group/filter`) or plain.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Filter {
    text: Arc<str>,
    /// Where the part that is matched begins: 0 for a plain filter, after `$share/group/` for a shared one.
    pattern: u16,
}

/// Why a text is not a topic name or not a topic filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TopicError {
    /// A topic and a filter have at least one character [MQTT-4.7.3-1].
    #[error("empty topic")]
    Empty,
    /// More than 65,535 bytes [MQTT-4.7.3-3].
    #[error("topic of {0} bytes is too long")]
    TooLong(usize),
    /// More than [`MAX_LEVELS`] levels.
    #[error("topic has more than {MAX_LEVELS} levels")]
    TooDeep,
    /// U+0000 [MQTT-4.7.3-2].
    #[error("topic contains NUL")]
    Nul,
    /// `+` or `#` in a topic name [MQTT-3.3.2-2].
    #[error("wildcard in a topic name")]
    Wildcard,
    /// A wildcard that does not fill its level, or `#` that is not last [MQTT-4.7.1-1, -2].
    #[error("misplaced wildcard")]
    MisplacedWildcard,
    /// `$share/` without a valid group and filter behind it [MQTT-4.8.2-1, -2].
    #[error("invalid shared subscription")]
    Share,
}

impl Topic {
    /// Checks and takes a topic name.
    pub fn new(text: impl AsRef<str>) -> Result<Self, TopicError> {
        let text = text.as_ref();
        check_text(text)?;
        if text.bytes().any(|byte| byte == b'+' || byte == b'#') {
            return Err(TopicError::Wildcard);
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Filter {
    /// Checks and takes a topic filter.
    pub fn new(text: impl AsRef<str>) -> Result<Self, TopicError> {
        let text = text.as_ref();
        check_text(text)?;
        let pattern = match text.strip_prefix(SHARE) {
            None => 0,
            Some(rest) => {
                let (group, pattern) = rest.split_once('/').ok_or(TopicError::Share)?;
                if group.is_empty() || group.contains(['+', '#']) || pattern.is_empty() {
                    return Err(TopicError::Share);
                }
                SHARE.len() + group.len() + 1
            }
        };
        let mut levels = text[pattern..].split('/').peekable();
        while let Some(level) = levels.next() {
            let is_last = levels.peek().is_none();
            if level.contains(['+', '#']) && !(level == "+" || (level == "#" && is_last)) {
                return Err(TopicError::MisplacedWildcard);
            }
        }
        Ok(Self { text: text.into(), pattern: pattern as u16 })
    }

    /// The filter as it was subscribed, `$share/group/` included.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The part that topics are matched against: without `$share/group/`.
    pub fn pattern(&self) -> &str {
        &self.text[usize::from(self.pattern)..]
    }

    /// The name of the shared subscription's group.
    pub fn group(&self) -> Option<&str> {
        let end = usize::from(self.pattern).checked_sub(1)?;
        Some(&self.text[SHARE.len()..end])
    }

    /// Whether a message on `topic` belongs to this filter. A wildcard in the first level does not match a topic that
    /// begins with `$` [MQTT-4.7.2-1].
    pub fn matches(&self, topic: &Topic) -> bool {
        let pattern = self.pattern();
        if topic.as_str().starts_with('$') && pattern.starts_with(['+', '#']) {
            return false;
        }
        let mut levels = topic.as_str().split('/');
        for wanted in pattern.split('/') {
            match (wanted, levels.next()) {
                // "#" also stands for its parent level [MQTT-4.7.1-2].
                ("#", _) | ("+", Some(_)) => {
                    if wanted == "#" {
                        return true;
                    }
                }
                (_, Some(level)) if level == wanted => {}
                _ => return false,
            }
        }
        levels.next().is_none()
    }

    /// Whether the filter has no wildcard and so is one topic.
    pub fn is_exact(&self) -> bool {
        !self.pattern().contains(['+', '#'])
    }
}

impl From<&Topic> for Filter {
    fn from(topic: &Topic) -> Self {
        Self { text: topic.0.clone(), pattern: 0 }
    }
}

impl Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

fn check_text(text: &str) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.len() > usize::from(u16::MAX) {
        return Err(TopicError::TooLong(text.len()));
    }
    let mut levels = 1;
    for byte in text.bytes() {
        match byte {
            0 => return Err(TopicError::Nul),
            b'/' => levels += 1,
            _ => {}
        }
    }
    if levels > MAX_LEVELS { Err(TopicError::TooDeep) } else { Ok(()) }
}

/// The deepest topic and filter taken, in levels: bounds the stack of the matcher. Mosquitto's figure.
pub const MAX_LEVELS: usize = 200;

const SHARE: &str = "$share/";

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filter: &str, topic: &str) -> bool {
        Filter::new(filter).unwrap().matches(&Topic::new(topic).unwrap())
    }

    #[test]
    fn filters_match_as_the_examples_of_section_4_7_say() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("#", "/", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("$SYS/+", "$SYS/x", true),
            ("été/+", "été/1", true),
            ("a/b", "a/b/c", false),
            ("a/b/c", "a/b", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} against {topic}");
        }
    }

    #[test]
    fn topics_and_filters_that_break_the_rules_are_refused_with_the_reason() {
        assert_eq!(Topic::new(""), Err(TopicError::Empty));
        assert_eq!(Topic::new("a/+"), Err(TopicError::Wildcard));
        assert_eq!(Topic::new("a\0b"), Err(TopicError::Nul));
        assert_eq!(Topic::new("a".repeat(65_536)), Err(TopicError::TooLong(65_536)));
        assert_eq!(Topic::new("/".repeat(MAX_LEVELS)), Err(TopicError::TooDeep));
        for bad in ["a+", "a/#/b", "#a", "a/b#", "+a/b"] {
            assert_eq!(Filter::new(bad), Err(TopicError::MisplacedWildcard), "{bad}");
        }
        for bad in ["$share/", "$share/g", "$share//a", "$share/g/", "$share/+/a"] {
            assert_eq!(Filter::new(bad), Err(TopicError::Share), "{bad}");
        }
    }

    #[test]
    fn a_shared_filter_knows_its_group_and_its_pattern() {
        let shared = Filter::new("$share/workers/jobs/+").unwrap();
        assert_eq!((shared.group(), shared.pattern()), (Some("workers"), "jobs/+"));
        assert!(shared.matches(&Topic::new("jobs/1").unwrap()));
        assert_eq!(Filter::new("jobs/+").unwrap().group(), None);
    }
}
