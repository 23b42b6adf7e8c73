//! Shared subscriptions (§4.8.2): each message to one member of the group.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::client::Client;
use crate::wire::{Publish, Version, kind, property};
use crate::{Check, Connect, Room, check};

pub const CHECKS: &[Check] = &[
    check!(each_message_goes_to_one_member, V5 "4.8.2"),
    check!(every_member_gets_some, V5 "4.8.2"),
    check!(groups_are_independent, V5 "4.8.2"),
    check!(the_same_name_with_another_filter_is_another_group, V5 "4.8.2"),
    check!(shared_and_plain_subscriptions_both_bring_it, V5 "4.8.2"),
    check!(a_share_name_must_not_be_empty_or_hold_wildcards, V5 "4.8.2-2"),
    check!(a_shared_filter_must_not_be_empty, V5 "4.8.2-1"),
    check!(wildcards_in_a_shared_filter_match, V5 "4.8.2-1"),
    check!(the_qos_of_each_member_holds, V5 "4.8.2-3"),
    check!(no_retained_messages_for_a_shared_subscription, V5 "4.8.2"),
    check!(a_member_that_unsubscribes_gets_no_more, V5 "3.10.4-2"),
    check!(a_member_that_leaves_leaves_the_rest_to_the_others, V5 "4.8.2"),
    check!(what_a_member_left_unacknowledged_goes_to_another, V5 "4.8.2"),
    check!(a_qos_2_message_under_way_goes_to_no_other_member, V5 "4.8.2-5"),
    check!(a_qos_2_message_is_finished_with_its_member, V5 "4.8.2-4"),
    check!(a_refused_message_goes_to_no_other_member, V5 "4.8.2-6"),
    check!(a_shared_subscription_id_comes_with_the_message, V5 "3.3.4-3"),
    check!(a_full_window_does_not_hold_up_the_group, V5 "4.8.2"),
    check!(a_lasting_session_stays_a_member_while_away, V5 "4.8.2"),
    check!(unsuback_knows_a_shared_filter, V5 "3.11.3-1"),
];

/// Clients that share the room's `x` in one group.
fn members(room: &Room, count: usize, qos: u8) -> Vec<Client> {
    let member = |number: usize| {
        let mut client = room.client(&format!("m{number}"));
        client.subscribe(shared(room, "g", "x"), qos);
        client
    };
    (0..count).map(member).collect()
}

fn shared(room: &Room, group: &str, filter: &str) -> String {
    format!("$share/{group}{}/{}", room.id(""), room.topic(filter))
}

/// Everything a client is sent now, acknowledged.
fn drain(client: &mut Client) -> Vec<String> {
    client.ping();
    let mut texts = Vec::new();
    while let Ok(Some(packet)) = client.read(Duration::from_millis(200)) {
        let message = packet.publish(client.version);
        client.finish(&message);
        texts.push(message.text());
    }
    texts
}

fn publish_many(room: &Room, count: usize, qos: u8) -> Vec<String> {
    let texts: Vec<String> = (0..count).map(|number| format!("{number:03}")).collect();
    let mut publisher = room.client("p");
    for text in &texts {
        publisher.publish(Publish::new(room.topic("x"), text).qos(qos));
    }
    texts
}

fn each_message_goes_to_one_member(room: &Room) {
    for qos in [0, 1, 2] {
        let mut members = members(room, 3, 2);
        let texts = publish_many(room, 30, qos);
        let mut came: Vec<String> = members.iter_mut().flat_map(drain).collect();
        came.sort();
        assert_eq!(came, texts);
    }
}

fn every_member_gets_some(room: &Room) {
    let mut members = members(room, 3, 1);
    publish_many(room, 60, 1);
    for member in &mut members {
        assert!(!drain(member).is_empty(), "a member got nothing of sixty");
    }
}

fn groups_are_independent(room: &Room) {
    let mut one = room.client("one");
    one.subscribe(shared(room, "g", "x"), 1);
    let mut two = room.client("two");
    two.subscribe(shared(room, "h", "x"), 1);
    let texts = publish_many(room, 10, 1);
    assert_eq!(drain(&mut one), texts);
    assert_eq!(drain(&mut two), texts);
}

fn the_same_name_with_another_filter_is_another_group(room: &Room) {
    let mut one = room.client("one");
    one.subscribe(shared(room, "g", "x"), 1);
    let mut two = room.client("two");
    two.subscribe(shared(room, "g", "+"), 1);
    let mut three = room.client("three");
    three.subscribe(shared(room, "g", "other"), 1);
    let texts = publish_many(room, 20, 1);
    assert_eq!(drain(&mut one), texts);
    assert_eq!(drain(&mut two), texts);
    three.expect_nothing();
}

fn shared_and_plain_subscriptions_both_bring_it(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(shared(room, "g", "x"), 1);
    client.subscribe(room.topic("x"), 1);
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    assert_eq!(client.payloads(2), ["y", "y"]);
    client.expect_nothing();
}

fn assert_not_granted(room: &Room, filter: &str) {
    let mut client = room.client("a");
    client.send(&crate::client::subscribe_bytes(Version::V5, 1, &[(filter.as_bytes(), 0)], &[]));
    match client.read(crate::client::PATIENCE) {
        Ok(Some(packet)) if packet.kind() == kind::SUBACK => {
            assert!(packet.codes(Version::V5)[0] >= 0x80, "{filter} was granted");
        }
        Ok(Some(packet)) => assert_eq!(packet.kind(), kind::DISCONNECT, "{filter}"),
        Ok(None) => panic!("{filter} was not answered"),
        Err(_) => {}
    }
}

fn a_share_name_must_not_be_empty_or_hold_wildcards(room: &Room) {
    for filter in ["$share//x", "$share/+/x", "$share/#/x", "$share/a+b/x"] {
        assert_not_granted(room, filter);
    }
}

fn a_shared_filter_must_not_be_empty(room: &Room) {
    for filter in ["$share/g", "$share/g/", "$share/", "$share/g/a#"] {
        assert_not_granted(room, filter);
    }
}

fn wildcards_in_a_shared_filter_match(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(shared(room, "g", "+/b/#"), 1);
    room.publish(Publish::new(room.topic("a/b/c"), "yes").qos(1));
    room.publish(Publish::new(room.topic("a/c"), "no").qos(1));
    assert_eq!(client.payloads(1), ["yes"]);
    client.expect_nothing();
}

fn the_qos_of_each_member_holds(room: &Room) {
    for qos in [0, 1, 2] {
        let mut member = members(room, 1, qos).remove(0);
        room.publish(Publish::new(room.topic("x"), "y").qos(2));
        assert_eq!(member.message().qos, qos);
        member.disconnect();
    }
}

fn no_retained_messages_for_a_shared_subscription(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    let mut member = members(room, 1, 1).remove(0);
    member.expect_nothing();
}

fn a_member_that_unsubscribes_gets_no_more(room: &Room) {
    let mut members = members(room, 2, 1);
    members[0].unsubscribe(&[shared(room, "g", "x").as_bytes()]);
    let texts = publish_many(room, 10, 1);
    members[0].expect_nothing();
    assert_eq!(drain(&mut members[1]), texts);
}

fn a_member_that_leaves_leaves_the_rest_to_the_others(room: &Room) {
    let mut members = members(room, 2, 1);
    members.remove(0).vanish();
    let texts = publish_many(room, 10, 1);
    assert_eq!(drain(&mut members[0]), texts);
}

fn what_a_member_left_unacknowledged_goes_to_another(room: &Room) {
    let mut members = members(room, 2, 1);
    let texts = publish_many(room, 10, 1);
    // The first takes nothing over: its session ends with its connection.
    let mut silent = members.remove(0);
    silent.ping();
    silent.vanish();
    let came: BTreeSet<String> = drain(&mut members[0]).into_iter().collect();
    assert_eq!(came, texts.into_iter().collect());
}

fn a_qos_2_message_under_way_goes_to_no_other_member(room: &Room) {
    let mut members = members(room, 1, 2);
    room.publish(Publish::new(room.topic("x"), "y").qos(2));
    let mut first = members.remove(0);
    assert_eq!(first.unacked().text(), "y");
    let mut second = room.client("second");
    second.subscribe(shared(room, "g", "x"), 2);
    first.vanish();
    second.expect_nothing();
}

fn a_qos_2_message_is_finished_with_its_member(room: &Room) {
    let hello = room.hello("a").lasting();
    let mut first = hello.open(room.broker);
    first.subscribe(shared(room, "g", "x"), 2);
    room.publish(Publish::new(room.topic("x"), "y").qos(2));
    let before = first.unacked();
    let mut second = room.client("second");
    second.subscribe(shared(room, "g", "x"), 2);
    first.vanish();
    second.expect_nothing();
    assert_eq!(hello.open(room.broker).message(), Publish { dup: true, ..before });
}

fn a_refused_message_goes_to_no_other_member(room: &Room) {
    let mut members = members(room, 2, 1);
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    let mut refused = 0;
    for member in &mut members {
        member.ping();
        while let Ok(Some(packet)) = member.read(Duration::from_millis(200)) {
            let [high, low] = packet.publish(Version::V5).id.to_be_bytes();
            member.send(&[kind::PUBACK << 4, 3, high, low, 0x80]);
            refused += 1;
        }
    }
    assert_eq!(refused, 1);
    for member in &mut members {
        member.expect_nothing();
    }
}

fn a_shared_subscription_id_comes_with_the_message(room: &Room) {
    let mut client = room.client("a");
    let filter = shared(room, "g", "x");
    client.subscribe_all(&[(filter.as_bytes(), 1)], &[property::subscription_id(5)]);
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    assert_eq!(client.message().properties.numbers(property::SUBSCRIPTION_ID), [5]);
}

fn a_full_window_does_not_hold_up_the_group(room: &Room) {
    let mut full = room.hello("full").with(property::receive_maximum(1)).open(room.broker);
    full.subscribe(shared(room, "g", "x"), 1);
    let mut quick = room.client("quick");
    quick.subscribe(shared(room, "g", "x"), 1);
    let texts = publish_many(room, 10, 1);
    let mut came = drain(&mut quick);
    assert!(!came.is_empty());
    // What the full one was given comes to it when it has room.
    came.extend(drain(&mut full));
    came.sort();
    assert_eq!(came, texts);
}

fn a_lasting_session_stays_a_member_while_away(room: &Room) {
    let hello = room.hello("a").lasting();
    let mut client = hello.open(room.broker);
    client.subscribe(shared(room, "g", "x"), 1);
    client.disconnect();
    let texts = publish_many(room, 5, 1);
    assert_eq!(drain(&mut hello.open(room.broker)), texts);
}

fn unsuback_knows_a_shared_filter(room: &Room) {
    let mut client = Connect::new(Version::V5, room.id("a")).open(room.broker);
    let (mine, other) = (shared(room, "g", "x"), shared(room, "h", "x"));
    client.subscribe(&mine, 1);
    let codes = client.unsubscribe(&[other.as_bytes(), mine.as_bytes(), room.topic("x").as_bytes()]);
    assert_eq!(codes, [0x11, 0, 0x11]);
}
