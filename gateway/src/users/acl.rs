//! Who may publish and subscribe what on the LAN broker.
//!
//! Without a rule, whoever is let in may do everything. With one, only what a rule allows: a rule names users and topic
//! filters, and the order of rules does not matter. `%u` in a filter stands for the user's name and `%c` for the client
//! id; one that has a `/`, `+` or `#` in it matches nothing.

use std::borrow::Cow;
use std::fmt;

use mqtt::Filter;
use serde::Deserialize;

/// `[[mqtt.rule]]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Names from `[users]`; `*` is everyone who has a name, `anonymous` whoever has none.
    pub users: Vec<String>,
    /// Topic filters that they may publish to, wills and retained messages among it.
    #[serde(default)]
    pub publish: Vec<String>,
    /// Topic filters that they may subscribe and are given messages of.
    #[serde(default)]
    pub subscribe: Vec<String>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// To publish on a topic.
    Publish,
    /// To subscribe to a filter, or to be given a message.
    Subscribe,
}

/// What the rules say, and which of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// There are no rules.
    Open,
    /// This rule, counted from 1, with this filter.
    Allowed { number: usize, pattern: String },
    /// No rule allows it.
    Denied,
}

/// The rules.
#[derive(Debug, Clone, Default)]
pub struct Acl {
    rules: Vec<Rule>,
}

impl Acl {
    /// Takes rules whose filters are valid.
    ///
    /// # Errors
    /// Says which filter is none, and where `%` stands for nothing.
    pub fn new(rules: &[Rule]) -> Result<Self, String> {
        for (number, rule) in (1..).zip(rules) {
            if rule.users.is_empty() {
                return Err(format!("rule {number} names no users"));
            }
            for pattern in rule.publish.iter().chain(&rule.subscribe) {
                let filled = fill(pattern, "u", "c");
                if filled.contains('%') {
                    return Err(format!("`{pattern}` has a % that is neither %u nor %c"));
                }
                if let Err(error) = Filter::new(&*filled) {
                    return Err(format!("`{pattern}` is not a topic filter: {error}"));
                }
                if pattern.starts_with("$share/") {
                    return Err(format!(
                        "`{pattern}`: a rule is for topics, shared or not: leave the $share part out"
                    ));
                }
            }
        }
        Ok(Self { rules: rules.to_vec() })
    }

    /// Whether everything is allowed.
    pub fn is_open(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether this client may do that with `name`: a topic, or the filter of a subscription.
    pub fn decide(&self, right: Right, user: Option<&str>, client_id: &str, name: &str) -> Decision {
        if self.is_open() {
            return Decision::Open;
        }
        let is_plain = |text: &str| !text.contains(['/', '+', '#']);
        for (number, rule) in (1..).zip(&self.rules) {
            let is_meant = rule.users.iter().any(|named| match user {
                Some(user) => named == user || named == EVERYONE,
                None => named == ANONYMOUS,
            });
            if !is_meant {
                continue;
            }
            let patterns = if right == Right::Publish { &rule.publish } else { &rule.subscribe };
            for pattern in patterns {
                let is_fillable = (!pattern.contains("%u") || user.is_some_and(is_plain))
                    && (!pattern.contains("%c") || is_plain(client_id));
                if is_fillable && covers(&fill(pattern, user.unwrap_or_default(), client_id), name) {
                    return Decision::Allowed { number, pattern: pattern.clone() };
                }
            }
        }
        Decision::Denied
    }
}

impl Decision {
    /// Whether it may be done.
    pub fn is_allowed(&self) -> bool {
        *self != Self::Denied
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("allowed: there is no [[mqtt.rule]]"),
            Self::Allowed { number, pattern } => write!(f, "allowed by rule {number}, `{pattern}`"),
            Self::Denied => f.write_str("denied: no rule allows it"),
        }
    }
}

fn fill<'p>(pattern: &'p str, user: &str, client_id: &str) -> Cow<'p, str> {
    if !pattern.contains('%') {
        return Cow::Borrowed(pattern);
    }
    // Piece by piece: what is put in is not looked through again.
    let mut filled = String::new();
    let mut rest = pattern;
    while let Some((before, behind)) = rest.split_once('%') {
        filled += before;
        rest = match behind.as_bytes().first() {
            Some(b'u') => {
                filled += user;
                &behind[1..]
            }
            Some(b'c') => {
                filled += client_id;
                &behind[1..]
            }
            _ => {
                filled.push('%');
                behind
            }
        };
    }
    Cow::Owned(filled + rest)
}

/// Whether every topic that `name` stands for is one that `pattern` stands for.
fn covers(pattern: &str, name: &str) -> bool {
    // A wildcard in the first level does not match `$…` [MQTT-4.7.2-1].
    if name.starts_with('$') && pattern.starts_with(['+', '#']) {
        return false;
    }
    let (mut pattern, mut name) = (pattern.split('/'), name.split('/'));
    loop {
        match (pattern.next(), name.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

/// In place of a user's name: everyone who has one.
const EVERYONE: &str = "*";
/// Whoever has none.
const ANONYMOUS: &str = "anonymous";

#[cfg(test)]
mod tests {
    use mqtt::Topic;
    use proptest::prelude::*;

    use super::*;

    fn rule(users: &[&str], publish: &[&str], subscribe: &[&str]) -> Rule {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        Rule { users: owned(users), publish: owned(publish), subscribe: owned(subscribe) }
    }

    #[test]
    fn what_no_rule_allows_is_denied_and_without_rules_all_is_allowed() {
        let open = Acl::new(&[]).unwrap();
        assert_eq!(open.decide(Right::Publish, None, "c", "a"), Decision::Open);
        let acl = Acl::new(&[
            rule(&["panel"], &["site/%c/#"], &["tidegate/#", "site/+/state"]),
            rule(&["*"], &["home/%u/log"], &[]),
            rule(&["anonymous"], &[], &["public/#"]),
        ])
        .unwrap();
        let is_allowed = |right, user, client, name| acl.decide(right, user, client, name).is_allowed();
        let panel = Some("panel");
        assert!(
            is_allowed(Right::Publish, panel, "p1", "site/p1/a/b")
                && !is_allowed(Right::Publish, panel, "p2", "site/p1/a")
        );
        assert!(
            is_allowed(Right::Publish, panel, "p1", "home/panel/log")
                && is_allowed(Right::Publish, Some("x"), "", "home/x/log")
        );
        assert!(
            !is_allowed(Right::Publish, None, "", "home//log")
                && !is_allowed(Right::Publish, None, "c", "public/a")
        );
        assert!(
            is_allowed(Right::Subscribe, None, "c", "public/#")
                && !is_allowed(Right::Subscribe, None, "c", "#")
        );
        assert!(
            !is_allowed(Right::Subscribe, panel, "c", "#")
                && !is_allowed(Right::Subscribe, panel, "c", "site/#")
        );
        assert!(is_allowed(Right::Subscribe, panel, "c", "site/+/state"));
        assert_eq!(
            acl.decide(Right::Subscribe, panel, "c", "tidegate/barn/#"),
            Decision::Allowed { number: 1, pattern: "tidegate/#".into() }
        );
    }

    #[test]
    fn a_name_with_a_wildcard_in_it_is_no_way_round_the_rules() {
        let acl = Acl::new(&[rule(&["*", "anonymous"], &["dev/%c/#"], &["dev/%c/#", "of/%u"])]).unwrap();
        for client in ["+", "#", "a/../b", "%u"] {
            let decision = acl.decide(Right::Subscribe, Some("u"), client, "dev/other/x");
            assert_eq!(decision, Decision::Denied, "{client}");
        }
        assert!(acl.decide(Right::Publish, Some("u"), "%u", "dev/%u/x").is_allowed(), "taken as it is");
        assert!(!acl.decide(Right::Subscribe, Some("+"), "c", "of/x").is_allowed());
    }

    #[test]
    fn a_rule_that_cannot_be_meant_is_refused_with_its_reason() {
        let refused = |rule: Rule| Acl::new(&[rule]).unwrap_err();
        assert_eq!(refused(rule(&[], &["a"], &[])), "rule 1 names no users");
        assert!(refused(rule(&["a"], &["a/#/b"], &[])).contains("`a/#/b` is not a topic filter"));
        assert!(refused(rule(&["a"], &[], &["a/%x"])).contains("neither %u nor %c"));
        assert!(refused(rule(&["a"], &[], &["$share/g/a"])).contains("leave the $share part out"));
    }

    proptest! {
        #[test]
        fn a_filter_that_is_covered_matches_no_topic_that_the_rule_does_not(
            pattern in "(\\$s|[ab]|\\+)(/([ab]|\\+)){0,3}(/#)?",
            filter in "(\\$s|[ab]|\\+)(/([ab]|\\+)){0,3}(/#)?",
            topic in "(\\$s|[ab])(/[ab]){0,4}",
        ) {
            let topic = Topic::new(topic).unwrap();
            let matches = |text: &str| Filter::new(text).unwrap().matches(&topic);
            if covers(&pattern, &filter) && matches(&filter) {
                prop_assert!(matches(&pattern), "{} {} {}", pattern, filter, topic);
            }
            prop_assert_eq!(covers(&pattern, topic.as_str()), matches(&pattern));
        }
    }
}
