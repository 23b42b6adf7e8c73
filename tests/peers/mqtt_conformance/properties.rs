//! What a message carries from 5.0 to 5.0, and what is left of it in other versions (§3.3.2.3, §4.10).

use std::time::Duration;

use crate::wire::{Property, Publish, Version, property};
use crate::{Check, Connect, Room, check};

pub const CHECKS: &[Check] = &[
    check!(the_payload_format_is_passed_on, V5 "3.3.2-4"),
    check!(the_content_type_is_passed_on, V5 "3.3.2-20"),
    check!(the_response_topic_is_passed_on, V5 "3.3.2-15"),
    check!(the_correlation_data_is_passed_on, V5 "3.3.2-16"),
    check!(user_properties_are_passed_on_in_their_order, V5 "3.3.2-18"),
    check!(a_message_without_properties_is_given_none, V5 "3.3.2-17"),
    check!(user_properties_in_any_language_are_passed_on, V5 "3.3.2-17"),
    check!(many_user_properties_are_passed_on, V5 "3.3.2-17"),
    check!(a_response_topic_with_wildcards_ends_the_connection, V5 "3.3.2-14"),
    check!(a_request_is_answered, V5 "4.10"),
    check!(the_expiry_is_passed_on_less_the_time_that_passed, V5 "3.3.2-6"),
    check!(the_expiry_counts_down_in_the_queue, V5 "3.3.2-6"),
    check!(an_expired_message_is_not_delivered, V5 "3.3.2-5"),
    check!(a_message_without_an_expiry_never_expires, V5 "3.3.2.3.3"),
    check!(an_expired_message_does_not_hold_up_the_others, V5 "3.3.2-5"),
    check!(what_was_sent_before_it_expired_is_sent_again, V5 "4.3.3-7"),
    check!(properties_wait_with_their_message, V5 "4.5.0-1"),
    check!(properties_come_again_with_their_message, V5 "4.4.0-1"),
    check!(a_message_of_5_0_reaches_older_clients, V5 "3.3.2-17"),
    check!(a_message_of_an_older_client_reaches_5_0, V31 "3.3", V311 "3.3.4-1"),
    check!(an_expiry_holds_for_older_clients_too, V5 "3.3.2-5"),
];

/// What the message looks like to another 5.0 client.
fn passed_on(room: &Room, message: &Publish) -> Publish {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 2);
    room.publish(message.clone());
    client.message()
}

fn the_payload_format_is_passed_on(room: &Room) {
    for format in [0, 1] {
        for qos in [0, 1, 2] {
            let format = property::number(property::PAYLOAD_FORMAT, format);
            let message = Publish::new(room.topic("x"), "text").qos(qos).with(format.clone());
            assert_eq!(passed_on(room, &message).properties.0, [format]);
        }
    }
}

fn assert_passed_on(room: &Room, properties: &[Property]) {
    for property in properties {
        let message = Publish::new(room.topic("x"), "y").qos(1).with(property.clone());
        assert_eq!(&passed_on(room, &message).properties.0, std::slice::from_ref(property));
    }
}

fn the_content_type_is_passed_on(room: &Room) {
    let long = "x".repeat(10_000);
    let types = ["application/json", "été", "", &long];
    assert_passed_on(room, &types.map(|content| property::bytes(property::CONTENT_TYPE, content)));
}

fn the_response_topic_is_passed_on(room: &Room) {
    let topics = ["answers/here", "$check/x", "été"];
    assert_passed_on(room, &topics.map(|topic| property::bytes(property::RESPONSE_TOPIC, topic)));
}

fn the_correlation_data_is_passed_on(room: &Room) {
    let all: Vec<u8> = (0..=255).collect();
    let data: [&[u8]; 3] = [b"id", b"\x00\xff", &all];
    assert_passed_on(room, &data.map(|data| property::bytes(property::CORRELATION_DATA, data)));
}

fn user_properties_are_passed_on_in_their_order(room: &Room) {
    let mut message = Publish::new(room.topic("x"), "y").qos(1);
    for (name, value) in [("b", "1"), ("a", "2"), ("b", "0"), ("", ""), ("a", "2")] {
        message = message.with(property::user(name, value));
    }
    for qos in [0, 1, 2] {
        message.qos = qos;
        assert_eq!(passed_on(room, &message).properties, message.properties);
    }
}

fn a_message_without_properties_is_given_none(room: &Room) {
    for qos in [0, 1, 2] {
        let message = Publish::new(room.topic("x"), "y").qos(qos);
        assert!(passed_on(room, &message).properties.0.is_empty());
    }
}

fn user_properties_in_any_language_are_passed_on(room: &Room) {
    let message = Publish::new(room.topic("x"), "y").with(property::user("température", "🌡 25 °C"));
    assert_eq!(passed_on(room, &message).properties, message.properties);
}

fn many_user_properties_are_passed_on(room: &Room) {
    let mut message = Publish::new(room.topic("x"), "y").qos(1);
    for number in 0..500 {
        message = message.with(property::user(format!("name {number}"), "v".repeat(number)));
    }
    assert_eq!(passed_on(room, &message).properties, message.properties);
}

fn a_response_topic_with_wildcards_ends_the_connection(room: &Room) {
    for topic in ["a/+", "#"] {
        let mut client = room.client("a");
        let wrong = property::bytes(property::RESPONSE_TOPIC, topic);
        client.send(&Publish::new(room.topic("x"), "y").with(wrong).bytes(Version::V5));
        client.expect_rejected(&[0x81, 0x82, 0x90]);
    }
}

fn a_request_is_answered(room: &Room) {
    let (mut asker, mut answerer) = (room.client("asker"), room.client("answerer"));
    asker.subscribe(room.topic("answers"), 1);
    answerer.subscribe(room.topic("questions"), 1);
    let question = Publish::new(room.topic("questions"), "how warm?")
        .qos(1)
        .with(property::bytes(property::RESPONSE_TOPIC, room.topic("answers")))
        .with(property::bytes(property::CORRELATION_DATA, "17"));
    asker.publish(question);
    let heard = answerer.message().properties;
    let topic = heard.bytes(property::RESPONSE_TOPIC).expect("a response topic");
    let correlation = heard.bytes(property::CORRELATION_DATA).expect("correlation data");
    let answer = Publish::new(topic, "20").qos(1);
    answerer.publish(answer.with(property::bytes(property::CORRELATION_DATA, correlation)));
    let answer = asker.message();
    assert_eq!(answer.text(), "20");
    assert_eq!(answer.properties.bytes(property::CORRELATION_DATA).as_deref(), Some(&b"17"[..]));
}

fn the_expiry_is_passed_on_less_the_time_that_passed(room: &Room) {
    for qos in [0, 1, 2] {
        let message = Publish::new(room.topic("x"), "y").qos(qos).with(property::message_expiry(100));
        let left = passed_on(room, &message).properties.number(property::MESSAGE_EXPIRY);
        assert!(left == Some(100) || left == Some(99), "{left:?}");
    }
}

/// Subscribes and goes; the session stays.
fn away(room: &Room) -> Connect {
    let hello = room.hello("a").lasting();
    let mut client = hello.open(room.broker);
    client.subscribe(room.topic("x"), 2);
    client.disconnect();
    hello
}

fn wait_two_seconds(room: &Room) {
    room.client("clock").expect_nothing_for(Duration::from_millis(2_200));
}

fn the_expiry_counts_down_in_the_queue(room: &Room) {
    let hello = away(room);
    room.publish(Publish::new(room.topic("x"), "y").qos(1).with(property::message_expiry(100)));
    wait_two_seconds(room);
    let left = hello.open(room.broker).message().properties.number(property::MESSAGE_EXPIRY);
    assert!(left.is_some_and(|left| (96..=98).contains(&left)), "{left:?} after two seconds");
}

fn an_expired_message_is_not_delivered(room: &Room) {
    let hello = away(room);
    for qos in [1, 2] {
        room.publish(Publish::new(room.topic("x"), "y").qos(qos).with(property::message_expiry(1)));
    }
    wait_two_seconds(room);
    hello.open(room.broker).expect_nothing();
}

fn a_message_without_an_expiry_never_expires(room: &Room) {
    let hello = away(room);
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    wait_two_seconds(room);
    let message = hello.open(room.broker).message();
    assert_eq!(message.properties.number(property::MESSAGE_EXPIRY), None);
}

fn an_expired_message_does_not_hold_up_the_others(room: &Room) {
    let hello = away(room);
    for number in 0..6 {
        let message = Publish::new(room.topic("x"), number.to_string()).qos(1);
        let short = property::message_expiry(1);
        room.publish(if number % 2 == 0 { message.with(short) } else { message });
    }
    wait_two_seconds(room);
    let mut client = hello.open(room.broker);
    assert_eq!(client.payloads(3), ["1", "3", "5"]);
    client.expect_nothing();
}

fn what_was_sent_before_it_expired_is_sent_again(room: &Room) {
    let hello = away(room);
    let mut client = hello.open(room.broker);
    room.publish(Publish::new(room.topic("x"), "y").qos(2).with(property::message_expiry(1)));
    let first = client.unacked();
    client.vanish();
    wait_two_seconds(room);
    let again = hello.open(room.broker).message();
    assert_eq!((again.id, again.dup, again.text()), (first.id, true, first.text()));
}

/// A message with everything in it.
fn full(room: &Room) -> Publish {
    Publish::new(room.topic("x"), "y")
        .qos(1)
        .with(property::number(property::PAYLOAD_FORMAT, 1))
        .with(property::bytes(property::CONTENT_TYPE, "text/plain"))
        .with(property::bytes(property::RESPONSE_TOPIC, "r"))
        .with(property::bytes(property::CORRELATION_DATA, b"\x00\x01"))
        .with(property::user("b", "1"))
        .with(property::user("a", "2"))
}

#[track_caller]
fn assert_same(came: &Publish, sent: &Publish) {
    let sorted = |message: &Publish| {
        let mut properties = message.properties.0.clone();
        // The order counts among user properties only.
        properties.sort_by_key(|property| property.id);
        properties
    };
    assert_eq!(sorted(came), sorted(sent));
    assert_eq!(came.payload, sent.payload);
}

fn properties_wait_with_their_message(room: &Room) {
    let hello = away(room);
    room.publish(full(room));
    assert_same(&hello.open(room.broker).message(), &full(room));
}

fn properties_come_again_with_their_message(room: &Room) {
    let hello = away(room);
    let mut client = hello.open(room.broker);
    room.publish(full(room));
    assert_same(&client.unacked(), &full(room));
    client.vanish();
    let again = hello.open(room.broker).message();
    assert!(again.dup);
    assert_same(&again, &full(room));
}

fn a_message_of_5_0_reaches_older_clients(room: &Room) {
    for version in [Version::V31, Version::V311] {
        let mut client = Connect::new(version, room.id("old")).open(room.broker);
        client.subscribe(room.topic("x"), 2);
        for qos in [0, 1, 2] {
            room.publish(Publish { qos, ..full(room) });
            let message = client.message();
            assert_eq!(
                (message.topic(), message.text(), message.qos),
                (room.topic("x"), "y".to_owned(), qos)
            );
        }
        client.disconnect();
    }
}

fn a_message_of_an_older_client_reaches_5_0(room: &Room) {
    for version in [Version::V31, Version::V311, Version::V5] {
        let mut client = Connect::new(version, room.id("new")).open(room.broker);
        client.subscribe(room.topic("x"), 2);
        for qos in [0, 1, 2] {
            room.publish(Publish::new(room.topic("x"), "y").qos(qos));
            let message = client.message();
            assert_eq!(
                (message.topic(), message.text(), message.qos),
                (room.topic("x"), "y".to_owned(), qos)
            );
            assert!(message.properties.0.is_empty());
        }
        client.disconnect();
    }
}

fn an_expiry_holds_for_older_clients_too(room: &Room) {
    let hello = Connect::new(Version::V311, room.id("old")).clean(false);
    let mut client = hello.open(room.broker);
    client.subscribe(room.topic("x"), 1);
    client.disconnect();
    room.publish(Publish::new(room.topic("x"), "short").qos(1).with(property::message_expiry(1)));
    room.publish(Publish::new(room.topic("x"), "long").qos(1).with(property::message_expiry(60)));
    wait_two_seconds(room);
    let mut client = hello.open(room.broker);
    assert_eq!(client.payloads(1), ["long"]);
    client.expect_nothing();
}
