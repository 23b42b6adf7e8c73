//! The subscription options of 5.0: no local, retain as published, retain handling (§3.8.3.1).

use crate::client::subscribe_bytes;
use crate::wire::{Publish, Version};
use crate::{Check, Room, check};

pub const CHECKS: &[Check] = &[
    check!(no_local_keeps_a_client_from_its_own_messages, V5 "3.8.3.1"),
    check!(no_local_lets_the_messages_of_others_through, V5 "3.8.3.1"),
    check!(no_local_is_of_one_subscription, V5 "3.8.3.1"),
    check!(no_local_outlives_the_connection, V5 "3.8.3.1"),
    check!(no_local_goes_when_the_filter_is_subscribed_again, V5 "3.8.4-3"),
    check!(no_local_on_a_shared_subscription_ends_the_connection, V5 "3.8.3-4"),
    check!(without_retain_as_published_the_flag_is_cleared, V5 "3.3.1-12"),
    check!(retain_as_published_keeps_the_flag, V5 "3.3.1-13"),
    check!(retain_as_published_outlives_the_connection, V5 "3.3.1-13"),
    check!(retain_as_published_holds_for_the_queue, V5 "3.3.1-13"),
    check!(a_new_subscription_brings_the_flag_whatever_it_asked_for, V5 "3.3.1.3"),
    check!(retain_handling_0_sends_at_every_subscribe, V5 "3.3.1-9"),
    check!(retain_handling_1_sends_at_the_first_subscribe, V5 "3.3.1-10"),
    check!(retain_handling_1_sends_again_after_unsubscribe, V5 "3.3.1-10"),
    check!(retain_handling_1_knows_the_session, V5 "3.3.1-10"),
    check!(retain_handling_2_sends_nothing, V5 "3.3.1-11"),
    check!(retain_handling_2_lets_new_messages_through, V5 "3.3.1-11"),
    check!(retain_handling_is_of_each_filter, V5 "3.3.1-9"),
];

const NO_LOCAL: u8 = 0x04;
const AS_PUBLISHED: u8 = 0x08;
const IF_NEW: u8 = 0x10;
const NEVER: u8 = 0x20;

fn no_local_keeps_a_client_from_its_own_messages(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 2 | NO_LOCAL);
    for qos in [0, 1, 2] {
        client.publish(Publish::new(room.topic("x"), "y").qos(qos));
    }
    client.expect_nothing();
}

fn no_local_lets_the_messages_of_others_through(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1 | NO_LOCAL);
    client.publish(Publish::new(room.topic("x"), "own").qos(1));
    room.publish(Publish::new(room.topic("x"), "other").qos(1));
    assert_eq!(client.payloads(1), ["other"]);
}

fn no_local_is_of_one_subscription(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1 | NO_LOCAL);
    client.subscribe(room.topic("#"), 1);
    client.publish(Publish::new(room.topic("x"), "y").qos(1));
    assert_eq!(client.payloads(1), ["y"], "the other subscription has it");
    client.expect_nothing();
}

fn no_local_outlives_the_connection(room: &Room) {
    let mut client = room.hello("a").lasting().open(room.broker);
    client.subscribe(room.topic("x"), 1 | NO_LOCAL);
    client.disconnect();
    let mut client = room.hello("a").lasting().open(room.broker);
    client.publish(Publish::new(room.topic("x"), "y").qos(1));
    client.expect_nothing();
}

fn no_local_goes_when_the_filter_is_subscribed_again(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1 | NO_LOCAL);
    client.subscribe(room.topic("x"), 1);
    client.publish(Publish::new(room.topic("x"), "y").qos(1));
    assert_eq!(client.payloads(1), ["y"]);
}

fn no_local_on_a_shared_subscription_ends_the_connection(room: &Room) {
    let mut client = room.client("a");
    let filter = format!("$share/g/{}", room.topic("x"));
    client.send(&subscribe_bytes(Version::V5, 1, &[(filter.as_bytes(), 1 | NO_LOCAL)], &[]));
    client.expect_rejected(&[0x82, 0x81]);
}

fn without_retain_as_published_the_flag_is_cleared(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1);
    room.publish(Publish::new(room.topic("x"), "y").qos(1).retained());
    assert!(!client.message().retain);
}

fn retain_as_published_keeps_the_flag(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 2 | AS_PUBLISHED);
    for qos in [0, 1, 2] {
        room.publish(Publish::new(room.topic("x"), "y").qos(qos).retained());
        assert!(client.message().retain);
        room.publish(Publish::new(room.topic("x"), "y").qos(qos));
        assert!(!client.message().retain);
    }
}

fn retain_as_published_outlives_the_connection(room: &Room) {
    let mut client = room.hello("a").lasting().open(room.broker);
    client.subscribe(room.topic("x"), 1 | AS_PUBLISHED);
    client.disconnect();
    let mut client = room.hello("a").lasting().open(room.broker);
    room.publish(Publish::new(room.topic("x"), "y").qos(1).retained());
    assert!(client.message().retain);
}

fn retain_as_published_holds_for_the_queue(room: &Room) {
    let mut client = room.hello("a").lasting().open(room.broker);
    client.subscribe(room.topic("as"), 1 | AS_PUBLISHED);
    client.subscribe(room.topic("cleared"), 1);
    client.disconnect();
    for topic in ["as", "cleared"] {
        room.publish(Publish::new(room.topic(topic), topic).qos(1).retained());
    }
    let mut client = room.hello("a").lasting().open(room.broker);
    assert!(client.message().retain);
    assert!(!client.message().retain);
}

fn a_new_subscription_brings_the_flag_whatever_it_asked_for(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    for options in [1, 1 | AS_PUBLISHED] {
        let mut client = room.client("a");
        client.subscribe(room.topic("x"), options);
        assert!(client.message().retain);
        client.disconnect();
    }
}

fn retain_handling_0_sends_at_every_subscribe(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    let mut client = room.client("a");
    for _ in 0..3 {
        client.subscribe(room.topic("x"), 1);
        assert_eq!(client.payloads(1), ["kept"]);
    }
}

fn retain_handling_1_sends_at_the_first_subscribe(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1 | IF_NEW);
    assert_eq!(client.payloads(1), ["kept"]);
    client.subscribe(room.topic("x"), 1 | IF_NEW);
    client.subscribe(room.topic("x"), IF_NEW);
    client.expect_nothing();
}

fn retain_handling_1_sends_again_after_unsubscribe(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    let mut client = room.client("a");
    for _ in 0..2 {
        client.subscribe(room.topic("x"), 1 | IF_NEW);
        assert_eq!(client.payloads(1), ["kept"]);
        client.unsubscribe(&[room.topic("x").as_bytes()]);
    }
}

fn retain_handling_1_knows_the_session(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    let mut client = room.hello("a").lasting().open(room.broker);
    client.subscribe(room.topic("x"), 1 | IF_NEW);
    assert_eq!(client.payloads(1), ["kept"]);
    client.ping();
    client.disconnect();
    let mut client = room.hello("a").lasting().open(room.broker);
    client.subscribe(room.topic("x"), 1 | IF_NEW);
    client.expect_nothing();
}

fn retain_handling_2_sends_nothing(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1 | NEVER);
    client.subscribe(room.topic("#"), 1 | NEVER);
    client.expect_nothing();
}

fn retain_handling_2_lets_new_messages_through(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1 | NEVER);
    room.publish(Publish::new(room.topic("x"), "new").qos(1).retained());
    let message = client.message();
    assert_eq!((message.text().as_str(), message.retain), ("new", false));
}

fn retain_handling_is_of_each_filter(room: &Room) {
    for topic in ["a", "b"] {
        room.publish(Publish::new(room.topic(topic), topic).qos(1).retained());
    }
    let mut client = room.client("a");
    let filters = ["a", "b"].map(|filter| room.topic(filter));
    let asked = [(filters[0].as_bytes(), 1 | NEVER), (filters[1].as_bytes(), 1)];
    assert_eq!(client.subscribe_all(&asked, &[]), [1, 1]);
    assert_eq!(client.payloads(1), ["b"]);
    client.expect_nothing();
}
