//! Which subscriptions match a topic: a tree of topic levels with `+`, `#` and shared groups (MQTT 5.0 §4.7, §4.8.2).

use std::cell::Cell;
use std::collections::HashMap;

use crate::{Filter, Topic};

/// Subscriptions by filter. `S` names the subscriber, `O` is what the subscription asks for.
///
/// A filter that nobody subscribes leaves nothing behind: empty nodes are pruned and tables shrunk.
pub(crate) struct Router<S, O> {
    root: Node<S, O>,
    len: usize,
}

/// One match of a topic.
pub(crate) enum Match<'a, S, O> {
    /// A plain subscription.
    One(&'a S, &'a O),
    /// A shared subscription: one member is to be chosen.
    Group(&'a Group<S, O>),
}

/// The members that share one filter under one group name.
pub(crate) struct Group<S, O> {
    /// The whole filter, `$share/group/` included.
    pub(crate) filter: Filter,
    members: Vec<(S, O)>,
    next: Cell<usize>,
}

struct Node<S, O> {
    children: HashMap<Box<str>, Node<S, O>>,
    plus: Option<Box<Node<S, O>>>,
    here: Vec<(S, O)>,
    rest: Vec<(S, O)>,
    shared: Option<Box<Shared<S, O>>>,
}

struct Shared<S, O> {
    here: Vec<Group<S, O>>,
    rest: Vec<Group<S, O>>,
}

impl<S: PartialEq, O> Router<S, O> {
    pub(crate) fn new() -> Self {
        Self { root: Node::default(), len: 0 }
    }

    /// Subscriptions in all.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a subscription; returns what the same subscriber had on the same filter before.
    pub(crate) fn subscribe(&mut self, filter: &Filter, subscriber: S, options: O) -> Option<O> {
        let (path, is_rest) = split(filter);
        let mut node = &mut self.root;
        for level in path {
            node = if level == "+" {
                node.plus.get_or_insert_default()
            } else {
                if !node.children.contains_key(level) {
                    node.children.insert(level.into(), Node::default());
                }
                node.children.get_mut(level).expect("just inserted")
            };
        }
        let before = replace(node.members(filter, is_rest), subscriber, options);
        self.len += usize::from(before.is_none());
        before
    }

    /// Removes a subscription; returns whether there was one.
    pub(crate) fn unsubscribe(&mut self, filter: &Filter, subscriber: &S) -> bool {
        let (path, is_rest) = split(filter);
        let levels: Vec<&str> = path.collect();
        let removed = self.root.remove(&levels, filter, is_rest, subscriber);
        self.len -= usize::from(removed);
        removed
    }

    /// Calls `found` for every subscription that matches.
    pub(crate) fn matches<'a>(&'a self, topic: &Topic, found: &mut impl FnMut(Match<'a, S, O>)) {
        // A wildcard in the first level does not match `$…` [MQTT-4.7.2-1].
        let is_reserved = topic.as_str().starts_with('$');
        self.root.visit(Some(topic.as_str()), is_reserved, found);
    }

    /// Whether any subscription matches.
    pub(crate) fn has_match(&self, topic: &Topic) -> bool {
        let mut has_match = false;
        if self.len() > 0 {
            self.matches(topic, &mut |_| has_match = true);
        }
        has_match
    }

    /// The group of a shared filter, while it has members.
    pub(crate) fn group(&self, filter: &Filter) -> Option<&Group<S, O>> {
        let (path, is_rest) = split(filter);
        let mut node = &self.root;
        for level in path {
            node = if level == "+" { node.plus.as_deref()? } else { node.children.get(level)? };
        }
        let shared = node.shared.as_ref()?;
        let groups = if is_rest { &shared.rest } else { &shared.here };
        groups.iter().find(|group| group.filter == *filter)
    }
}

impl<S, O> Group<S, O> {
    /// The next member in turn that `is_ready`, else simply the next in turn.
    pub(crate) fn choose(&self, is_ready: impl Fn(&S) -> bool) -> Option<&(S, O)> {
        let count = self.members.len();
        let start = self.next.get() % count.max(1);
        let turn =
            (0..count).map(|step| (start + step) % count).find(|turn| is_ready(&self.members[*turn].0));
        let turn = turn.unwrap_or(start);
        self.next.set(turn + 1);
        self.members.get(turn)
    }
}

impl<S, O> Default for Node<S, O> {
    fn default() -> Self {
        Self { children: HashMap::new(), plus: None, here: Vec::new(), rest: Vec::new(), shared: None }
    }
}

impl<S: PartialEq, O> Node<S, O> {
    fn members(&mut self, filter: &Filter, is_rest: bool) -> &mut Vec<(S, O)> {
        if filter.group().is_none() {
            return if is_rest { &mut self.rest } else { &mut self.here };
        }
        let shared =
            self.shared.get_or_insert_with(|| Box::new(Shared { here: Vec::new(), rest: Vec::new() }));
        let groups = if is_rest { &mut shared.rest } else { &mut shared.here };
        let position = groups.iter().position(|group| group.filter == *filter).unwrap_or_else(|| {
            groups.push(Group { filter: filter.clone(), members: Vec::new(), next: Cell::new(0) });
            groups.len() - 1
        });
        &mut groups[position].members
    }

    fn visit<'a>(&'a self, rest: Option<&str>, is_reserved: bool, found: &mut impl FnMut(Match<'a, S, O>)) {
        if !is_reserved {
            report(&self.rest, self.shared.as_ref().map(|shared| &shared.rest), found);
        }
        let Some(rest) = rest else {
            report(&self.here, self.shared.as_ref().map(|shared| &shared.here), found);
            return;
        };
        let (level, below) = match rest.split_once('/') {
            Some((level, below)) => (level, Some(below)),
            None => (rest, None),
        };
        if let Some(child) = self.children.get(level) {
            child.visit(below, false, found);
        }
        if !is_reserved && let Some(plus) = &self.plus {
            plus.visit(below, false, found);
        }
    }

    fn remove(&mut self, levels: &[&str], filter: &Filter, is_rest: bool, subscriber: &S) -> bool {
        let Some((level, below)) = levels.split_first() else {
            let members = self.members(filter, is_rest);
            let position = members.iter().position(|(member, _)| member == subscriber);
            if let Some(position) = position {
                // The order of the others is their order of delivery.
                members.remove(position);
                shrink(members);
            }
            self.prune_groups();
            return position.is_some();
        };
        if *level == "+" {
            let Some(plus) = &mut self.plus else { return false };
            let removed = plus.remove(below, filter, is_rest, subscriber);
            if plus.is_empty() {
                self.plus = None;
            }
            return removed;
        }
        let Some(child) = self.children.get_mut(*level) else { return false };
        let removed = child.remove(below, filter, is_rest, subscriber);
        if child.is_empty() {
            self.children.remove(*level);
            if self.children.len() * 4 < self.children.capacity() {
                self.children.shrink_to(self.children.len() * 2);
            }
        }
        removed
    }

    fn prune_groups(&mut self) {
        if let Some(shared) = &mut self.shared {
            shared.here.retain(|group| !group.members.is_empty());
            shared.rest.retain(|group| !group.members.is_empty());
            if shared.here.is_empty() && shared.rest.is_empty() {
                self.shared = None;
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.children.is_empty()
            && self.plus.is_none()
            && self.here.is_empty()
            && self.rest.is_empty()
            && self.shared.is_none()
    }
}

fn report<'a, S, O>(
    plain: &'a [(S, O)],
    groups: Option<&'a Vec<Group<S, O>>>,
    found: &mut impl FnMut(Match<'a, S, O>),
) {
    for (subscriber, options) in plain {
        found(Match::One(subscriber, options));
    }
    for group in groups.into_iter().flatten() {
        found(Match::Group(group));
    }
}

fn replace<S: PartialEq, O>(members: &mut Vec<(S, O)>, subscriber: S, options: O) -> Option<O> {
    if let Some((_, held)) = members.iter_mut().find(|(member, _)| *member == subscriber) {
        return Some(std::mem::replace(held, options));
    }
    members.push((subscriber, options));
    None
}

fn shrink<T>(list: &mut Vec<T>) {
    if list.len() * 4 < list.capacity() {
        list.shrink_to(list.len() * 2);
    }
}

/// The levels of a filter without a final `#`, and whether there was one.
fn split(filter: &Filter) -> (impl Iterator<Item = &str>, bool) {
    let pattern = filter.pattern();
    let is_rest = pattern == "#" || pattern.ends_with("/#");
    let levels = pattern.split('/');
    let count = levels.clone().count() - usize::from(is_rest);
    (levels.take(count), is_rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(router: &Router<u32, ()>, topic: &Topic) -> Vec<u32> {
        let mut found = Vec::new();
        router.matches(topic, &mut |hit| match hit {
            Match::One(subscriber, ()) => found.push(*subscriber),
            Match::Group(group) => found.extend(group.choose(|_| true).map(|(subscriber, ())| *subscriber)),
        });
        found.sort_unstable();
        found
    }

    fn any_filter() -> impl Strategy<Value = Filter> {
        let level = prop_oneof![4 => "[ab]?", 2 => Just("+".to_owned()), 1 => Just("$s".to_owned())];
        (proptest::collection::vec(level, 1..5), any::<bool>(), any::<bool>()).prop_filter_map(
            "not a filter",
            |(mut levels, rest, shared)| {
                if rest {
                    levels.push("#".to_owned());
                }
                let text = levels.join("/");
                Filter::new(if shared { format!("$share/g/{text}") } else { text }).ok()
            },
        )
    }

    proptest! {
        #[test]
        fn the_tree_finds_what_matching_each_filter_alone_finds(
            filters in proptest::collection::vec(any_filter(), 1..24),
            removed in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
            topics in proptest::collection::vec(proptest::collection::vec("[ab]?|\\$s", 1..6), 1..12),
        ) {
            let mut router = Router::new();
            // Each filter has a subscriber of its own, so that a group has one member and is no choice.
            let mut reference: Vec<(u32, Filter)> = Vec::new();
            for (number, filter) in filters.into_iter().enumerate() {
                if reference.iter().all(|(_, known)| *known != filter) {
                    router.subscribe(&filter, number as u32, ());
                    reference.push((number as u32, filter));
                }
            }
            for index in removed {
                if !reference.is_empty() {
                    let (number, filter) = reference.swap_remove(index.index(reference.len()));
                    prop_assert!(router.unsubscribe(&filter, &number));
                    prop_assert!(!router.unsubscribe(&filter, &number));
                }
            }
            prop_assert_eq!(router.len(), reference.len());
            for topic in topics {
                let Ok(topic) = Topic::new(topic.join("/")) else { continue };
                let mut expected: Vec<u32> =
                    reference.iter().filter(|(_, filter)| filter.matches(&topic)).map(|(number, _)| *number).collect();
                expected.sort_unstable();
                prop_assert_eq!(found(&router, &topic), expected, "topic {}", topic);
            }
        }
    }

    #[test]
    fn a_filter_that_is_gone_leaves_no_node_behind() {
        let mut router = Router::new();
        for number in 0..1_000 {
            let filter = Filter::new(format!("reply/{number}/+/x/#")).unwrap();
            router.subscribe(&filter, 1, ());
            router.unsubscribe(&filter, &1);
        }
        assert!(router.root.is_empty());
        assert!(router.root.children.capacity() < 8);
    }

    #[test]
    fn a_group_takes_turns_and_passes_over_members_that_are_not_ready() {
        let mut router = Router::new();
        let filter = Filter::new("$share/g/a/#").unwrap();
        for member in 1..=3 {
            router.subscribe(&filter, member, ());
        }
        let group = router.group(&filter).unwrap();
        let turns: Vec<u32> = (0..6).map(|_| group.choose(|_| true).unwrap().0).collect();
        assert_eq!(turns, [1, 2, 3, 1, 2, 3]);
        let turns: Vec<u32> = (0..4).map(|_| group.choose(|member| *member != 2).unwrap().0).collect();
        assert_eq!(turns, [1, 3, 1, 3]);
    }
}
