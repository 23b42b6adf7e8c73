//! Retained messages (§3.3.1.3).

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::wire::{Publish, Version, kind, property};
use crate::{Check, Connect, Room, check};

pub const CHECKS: &[Check] = &[
    check!(a_retained_message_is_sent_to_later_subscribers, V31 "3.3", V311 "3.3.1-6", V5 "3.3.1-9"),
    check!(a_retained_message_has_the_retain_flag, V31 "3.3", V311 "3.3.1-8", V5 "3.3.1.3"),
    check!(the_last_retained_message_is_the_one, V311 "3.3.1-5", V5 "3.3.1-5"),
    check!(a_retained_qos_0_message_replaces_the_one_before, V311 "3.3.1-7", V5 "3.3.1-5"),
    check!(an_empty_retained_message_clears, V31 "3.3", V311 "3.3.1-10", V5 "3.3.1-6"),
    check!(an_empty_retained_message_is_delivered, V311 "3.3.1-10", V5 "3.3.1-6"),
    check!(an_empty_retained_message_is_not_kept, V311 "3.3.1-11", V5 "3.3.1-7"),
    check!(an_ordinary_message_leaves_the_retained_one, V311 "3.3.1-12", V5 "3.3.1-8"),
    check!(an_ordinary_empty_message_leaves_the_retained_one, V311 "3.3.1-12", V5 "3.3.1-8"),
    check!(a_retained_message_is_delivered_at_the_lower_qos, V311 "3.3.1-5", V5 "3.8.4-8"),
    check!(a_wildcard_brings_every_retained_message_once, V311 "3.3.1-6", V5 "3.3.1-9"),
    check!(retained_messages_come_behind_suback, V311 "3.8.4-1", V5 "3.8.4-1"),
    check!(subscribing_again_brings_them_again, V31 "3.8", V311 "3.8.4-3", V5 "3.8.4-4"),
    check!(ten_thousand_retained_messages_all_come, V311 "3.3.1-6", V5 "3.3.1-9"),
    check!(a_retained_message_is_sent_again_until_acknowledged, V311 "4.4.0-1", V5 "4.4.0-1"),
    check!(a_resumed_session_is_not_sent_them_again, V311 "3.3.1-6", V5 "3.3.1-9"),
    check!(a_retained_message_on_a_dollar_topic_is_hidden_from_wildcards, V311 "4.7.2-1", V5 "4.7.2-1"),
    check!(a_retained_message_keeps_its_properties, V5 "3.3.1.3"),
    check!(a_retained_message_of_5_0_reaches_3_1_1, V311 "3.3.1-6", V5 "3.3.1-9"),
    check!(the_expiry_of_a_retained_message_counts_down, V5 "3.3.2-6"),
    check!(an_expired_retained_message_is_not_sent, V5 "3.3.2-5"),
    check!(overlapping_filters_of_one_subscribe_bring_them, V311 "3.8.4-4", V5 "3.8.4-5"),
];

fn a_retained_message_is_sent_to_later_subscribers(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    for who in ["a", "b"] {
        let mut client = room.client(who);
        client.subscribe(room.topic("x"), 1);
        assert_eq!(client.message().text(), "kept");
        client.expect_nothing();
    }
}

fn a_retained_message_has_the_retain_flag(room: &Room) {
    for qos in [0, 1, 2] {
        room.publish(Publish::new(room.topic("x"), "kept").qos(qos).retained());
        let mut client = room.client("a");
        client.subscribe(room.topic("x"), 2);
        let message = client.message();
        assert_eq!((message.retain, message.dup, message.qos), (true, false, qos));
    }
}

fn the_last_retained_message_is_the_one(room: &Room) {
    for text in ["1", "2", "3"] {
        room.publish(Publish::new(room.topic("x"), text).qos(1).retained());
    }
    assert_eq!(kept(room), ["3"]);
}

/// What a new subscriber of the room's `x` gets.
fn kept(room: &Room) -> Vec<String> {
    let mut client = room.client("late");
    client.subscribe(room.topic("x"), 2);
    client.ping();
    let mut texts = Vec::new();
    while let Ok(Some(packet)) = client.read(Duration::from_millis(150)) {
        let message = packet.publish(client.version);
        assert!(message.retain);
        client.finish(&message);
        texts.push(message.text());
    }
    client.disconnect();
    texts
}

fn a_retained_qos_0_message_replaces_the_one_before(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "old").qos(1).retained());
    room.publish(Publish::new(room.topic("x"), "new").retained());
    // It may also be forgotten; the old one must be.
    let kept = kept(room);
    assert!(kept.is_empty() || kept == ["new"], "{kept:?}");
}

fn an_empty_retained_message_clears(room: &Room) {
    for qos in [0, 1, 2] {
        room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
        room.publish(Publish::new(room.topic("x"), "").qos(qos).retained());
        assert!(kept(room).is_empty(), "QoS {qos}");
    }
}

fn an_empty_retained_message_is_delivered(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1);
    room.publish(Publish::new(room.topic("x"), "").qos(1).retained());
    let message = client.message();
    assert!(message.payload.is_empty() && !message.retain);
}

fn an_empty_retained_message_is_not_kept(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "").qos(1).retained());
    assert!(kept(room).is_empty());
}

fn an_ordinary_message_leaves_the_retained_one(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    room.publish(Publish::new(room.topic("x"), "passing").qos(1));
    assert_eq!(kept(room), ["kept"]);
}

fn an_ordinary_empty_message_leaves_the_retained_one(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    for qos in [0, 1, 2] {
        room.publish(Publish::new(room.topic("x"), "").qos(qos));
    }
    assert_eq!(kept(room), ["kept"]);
}

fn a_retained_message_is_delivered_at_the_lower_qos(room: &Room) {
    for published in [0, 1, 2] {
        room.publish(Publish::new(room.topic("x"), "kept").qos(published).retained());
        for granted in [0, 1, 2] {
            let mut client = room.client("a");
            client.subscribe(room.topic("x"), granted);
            assert_eq!(client.message().qos, granted.min(published), "{published} to {granted}");
            client.disconnect();
        }
    }
}

fn a_wildcard_brings_every_retained_message_once(room: &Room) {
    for topic in ["a", "a/b", "a/b/c", "d"] {
        room.publish(Publish::new(room.topic(topic), topic).qos(1).retained());
    }
    for (filter, expected) in
        [("#", vec!["a", "a/b", "a/b/c", "d"]), ("+", vec!["a", "d"]), ("a/#", vec!["a", "a/b", "a/b/c"])]
    {
        let mut client = room.client("w");
        client.subscribe(room.topic(filter), 1);
        let mut came = client.payloads(expected.len());
        came.sort();
        assert_eq!(came, expected, "{filter}");
        client.expect_nothing();
    }
}

fn retained_messages_come_behind_suback(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    let mut client = room.client("a");
    let filter = room.topic("x");
    client.send(&crate::client::subscribe_bytes(room.version, 1, &[(filter.as_bytes(), 1)], &[]));
    // A server may also begin before; ours and most clients' code expect the order of the figures.
    let order = [client.next().kind(), client.next().kind()];
    assert!(order.contains(&kind::SUBACK) && order.contains(&kind::PUBLISH), "{order:?}");
}

fn subscribing_again_brings_them_again(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    let mut client = room.client("a");
    for _ in 0..3 {
        client.subscribe(room.topic("x"), 1);
        assert_eq!(client.message().text(), "kept");
    }
    client.expect_nothing();
}

fn ten_thousand_retained_messages_all_come(room: &Room) {
    // Brokers keep so many and no more; the versions take turns.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let count = 10_000;
    let mut publisher = room.client("p");
    let mut bytes = Vec::new();
    for number in 0..count {
        let topic = room.topic(&format!("many/{number}"));
        bytes.extend(Publish::new(topic, number.to_string()).retained().bytes(room.version));
    }
    publisher.send(&bytes);
    publisher.ping();
    let mut client = room.client("a");
    client.subscribe(room.topic("many/#"), 0);
    let mut came = BTreeSet::new();
    for _ in 0..count {
        let message = client.message();
        assert!(message.retain && message.topic().ends_with(&format!("/{}", message.text())));
        assert!(came.insert(message.text()), "{} came twice", message.text());
    }
    client.expect_nothing();
    let mut bytes = Vec::new();
    for number in 0..count {
        bytes.extend(Publish::new(room.topic(&format!("many/{number}")), "").retained().bytes(room.version));
    }
    publisher.send(&bytes);
    publisher.ping();
}

fn a_retained_message_is_sent_again_until_acknowledged(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    let mut client = room.hello("a").lasting().open(room.broker);
    client.subscribe(room.topic("x"), 1);
    let first = client.unacked();
    client.vanish();
    let mut client = room.hello("a").lasting().open(room.broker);
    let again = client.message();
    assert_eq!(again, Publish { dup: true, ..first });
    client.expect_nothing();
}

fn a_resumed_session_is_not_sent_them_again(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    let mut client = room.hello("a").lasting().open(room.broker);
    client.subscribe(room.topic("x"), 1);
    client.message();
    client.ping();
    client.disconnect();
    room.hello("a").lasting().open(room.broker).expect_nothing();
}

fn a_retained_message_on_a_dollar_topic_is_hidden_from_wildcards(room: &Room) {
    let hidden = format!("$check/{}", room.topic("x"));
    room.publish(Publish::new(&hidden, "hidden").qos(1).retained());
    let mut client = room.client("a");
    client.subscribe(format!("+/{}", room.topic("x")), 0);
    client.expect_nothing();
    client.subscribe(&hidden, 0);
    assert_eq!(client.message().text(), "hidden");
    room.publish(Publish::new(&hidden, "").qos(1).retained());
}

fn a_retained_message_keeps_its_properties(room: &Room) {
    let message = Publish::new(room.topic("x"), "kept")
        .qos(1)
        .retained()
        .with(property::number(property::PAYLOAD_FORMAT, 1))
        .with(property::bytes(property::CONTENT_TYPE, "text/plain"))
        .with(property::bytes(property::RESPONSE_TOPIC, "r"))
        .with(property::bytes(property::CORRELATION_DATA, b"\x00\x01"))
        .with(property::user("b", "1"))
        .with(property::user("a", "2"));
    room.publish(message.clone());
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1);
    let came = client.message().properties;
    assert_eq!(came.user(), message.properties.user());
    assert_eq!(came.number(property::PAYLOAD_FORMAT), Some(1));
    for id in [property::CONTENT_TYPE, property::RESPONSE_TOPIC, property::CORRELATION_DATA] {
        assert_eq!(came.bytes(id), message.properties.bytes(id), "0x{id:02x}");
    }
}

fn a_retained_message_of_5_0_reaches_3_1_1(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    for version in [Version::V31, Version::V311, Version::V5] {
        let mut client = Connect::new(version, room.id("a")).open(room.broker);
        client.subscribe(room.topic("x"), 1);
        let message = client.message();
        assert_eq!((message.text().as_str(), message.retain), ("kept", true), "{version:?}");
        client.disconnect();
    }
}

fn the_expiry_of_a_retained_message_counts_down(room: &Room) {
    let message = Publish::new(room.topic("x"), "kept").qos(1).retained();
    room.publish(message.with(property::message_expiry(100)));
    let left = || {
        let mut client = room.client("a");
        client.subscribe(room.topic("x"), 1);
        let left = client.message().properties.number(property::MESSAGE_EXPIRY).expect("an expiry");
        client.disconnect();
        left
    };
    assert!((99..=100).contains(&left()));
    room.client("clock").expect_nothing_for(Duration::from_secs(2));
    let later = left();
    assert!((96..=98).contains(&later), "{later} after two seconds");
    // Reading it has not made it shorter.
    assert!(later - left() <= 1);
}

fn an_expired_retained_message_is_not_sent(room: &Room) {
    let message = Publish::new(room.topic("x"), "kept").qos(1).retained();
    room.publish(message.with(property::message_expiry(1)));
    room.client("clock").expect_nothing_for(Duration::from_millis(2_200));
    assert!(kept(room).is_empty());
}

fn overlapping_filters_of_one_subscribe_bring_them(room: &Room) {
    room.publish(Publish::new(room.topic("a/b"), "kept").qos(1).retained());
    let mut client = room.client("a");
    let (one, two) = (room.topic("a/#"), room.topic("+/b"));
    let codes = client.subscribe_all(&[(one.as_bytes(), 1), (two.as_bytes(), 1)], &[]);
    assert_eq!(codes, [1, 1]);
    // Once for each filter, or once for both.
    assert_eq!(client.message().text(), "kept");
}
