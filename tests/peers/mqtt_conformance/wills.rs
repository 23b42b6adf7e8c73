//! Wills: when they are published, when not, and as what (§3.1.2.5, §3.1.3.2, §3.14).

use std::time::{Duration, Instant};

use crate::client::Client;
use crate::wire::{Publish, kind, property};
use crate::{Check, Room, check};

pub const CHECKS: &[Check] = &[
    check!(a_lost_connection_publishes_the_will, V31 "3.1", V311 "3.1.2-8", V5 "3.1.2.5"),
    check!(a_protocol_error_publishes_the_will, V311 "3.1.2-8", V5 "3.1.2.5"),
    check!(silence_publishes_the_will, V311 "3.1.2-8", V5 "3.1.2-22"),
    check!(disconnect_discards_the_will, V31 "3.1", V311 "3.14.4-3", V5 "3.14.4-3"),
    check!(a_will_is_published_once, V311 "3.1.2-10", V5 "3.1.2.5"),
    check!(without_a_will_none_is_published, V311 "3.1.2-12", V5 "3.1.2-10"),
    check!(a_will_is_published_at_its_qos, V311 "3.1.2-9", V5 "3.1.2-6"),
    check!(a_will_that_is_not_retained_is_not_kept, V311 "3.1.2-16", V5 "3.1.2-14"),
    check!(a_retained_will_is_kept, V311 "3.1.2-17", V5 "3.1.2-15"),
    check!(an_empty_will_is_published, V311 "3.1.3.3", V5 "3.1.3.4"),
    check!(a_binary_will_is_published_as_it_is, V311 "3.1.3.3", V5 "3.1.3.4"),
    check!(a_will_reaches_its_own_session_later, V311 "3.1.2-8", V5 "3.1.2.5"),
    check!(the_last_connection_decides_which_will, V311 "3.1.2-8", V5 "3.1.2.5"),
    check!(a_will_on_a_wildcard_is_refused, V311 "3.1.3-10", V5 "3.1.3-11"),
    check!(a_will_has_its_properties, V5 "3.1.3.2"),
    check!(a_will_has_its_user_properties_in_order, V5 "3.1.3-10"),
    check!(a_will_waits_for_its_delay, V5 "3.1.3.2.2"),
    check!(a_client_that_comes_back_in_time_has_no_will_published, V5 "3.1.3-9"),
    check!(a_will_does_not_wait_longer_than_its_session, V5 "3.1.2.5"),
    check!(disconnect_with_will_publishes_it, V5 "3.14.2.1"),
    check!(disconnect_with_will_waits_for_the_delay_too, V5 "3.14.2.1"),
    check!(disconnect_with_an_error_publishes_the_will, V5 "3.14.4-3"),
    check!(the_expiry_of_a_will_begins_when_it_is_published, V5 "3.1.3.2.4"),
];

/// A client that hears of wills at any QoS.
fn watcher(room: &Room) -> Client {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("will"), 2);
    watcher
}

fn will(room: &Room) -> Publish {
    Publish::new(room.topic("will"), "bye")
}

fn a_lost_connection_publishes_the_will(room: &Room) {
    let mut watcher = watcher(room);
    let client = room.hello("a").will(will(room)).open(room.broker);
    watcher.expect_nothing();
    client.vanish();
    assert_eq!(watcher.message().text(), "bye");
}

fn a_protocol_error_publishes_the_will(room: &Room) {
    let mut watcher = watcher(room);
    let mut client = room.hello("a").will(will(room)).open(room.broker);
    client.send(&[0, 0]);
    client.expect_closed();
    assert_eq!(watcher.message().text(), "bye");
}

fn silence_publishes_the_will(room: &Room) {
    let mut watcher = watcher(room);
    let mut client = room.hello("a").keep_alive(1).will(will(room)).open(room.broker);
    client.expect_closed();
    assert_eq!(watcher.message().text(), "bye");
}

fn disconnect_discards_the_will(room: &Room) {
    let mut watcher = watcher(room);
    room.hello("a").will(will(room)).open(room.broker).disconnect();
    room.hello("b").lasting().will(will(room)).open(room.broker).disconnect();
    watcher.expect_nothing();
    // Nor later, when the same client fails without a will.
    room.hello("b").lasting().open(room.broker).vanish();
    watcher.expect_nothing();
}

fn a_will_is_published_once(room: &Room) {
    let mut watcher = watcher(room);
    room.hello("a").lasting().will(will(room)).open(room.broker).vanish();
    assert_eq!(watcher.message().text(), "bye");
    room.hello("a").lasting().open(room.broker).vanish();
    watcher.expect_nothing();
}

fn without_a_will_none_is_published(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("#"), 0);
    room.client("a").vanish();
    watcher.expect_nothing();
}

fn a_will_is_published_at_its_qos(room: &Room) {
    let mut watcher = watcher(room);
    for qos in [0, 1, 2] {
        room.hello("a").will(will(room).qos(qos)).open(room.broker).vanish();
        let message = watcher.message();
        assert_eq!((message.qos, message.dup, message.retain), (qos, false, false));
    }
}

fn a_will_that_is_not_retained_is_not_kept(room: &Room) {
    room.hello("a").will(will(room).qos(1)).open(room.broker).vanish();
    watcher(room).expect_nothing();
}

fn a_retained_will_is_kept(room: &Room) {
    room.hello("a").will(will(room).qos(1).retained()).open(room.broker).vanish();
    let message = watcher(room).message();
    assert_eq!((message.text().as_str(), message.retain), ("bye", true));
}

fn an_empty_will_is_published(room: &Room) {
    let mut watcher = watcher(room);
    room.hello("a").will(Publish::new(room.topic("will"), "")).open(room.broker).vanish();
    assert!(watcher.message().payload.is_empty());
}

fn a_binary_will_is_published_as_it_is(room: &Room) {
    let mut watcher = watcher(room);
    let payload: Vec<u8> = (0..=255).cycle().take(60_000).collect();
    room.hello("a").will(Publish::new(room.topic("will"), &payload)).open(room.broker).vanish();
    assert!(watcher.message().payload == payload);
}

fn a_will_reaches_its_own_session_later(room: &Room) {
    let hello = room.hello("a").lasting();
    let mut client = hello.clone().will(will(room).qos(1)).open(room.broker);
    client.subscribe(room.topic("will"), 1);
    client.vanish();
    assert_eq!(hello.open(room.broker).message().text(), "bye");
}

fn the_last_connection_decides_which_will(room: &Room) {
    let mut watcher = watcher(room);
    let hello = room.hello("a").lasting();
    hello.clone().will(Publish::new(room.topic("will"), "old")).open(room.broker).disconnect();
    hello.will(Publish::new(room.topic("will"), "new")).open(room.broker).vanish();
    assert_eq!(watcher.message().text(), "new");
    watcher.expect_nothing();
}

fn a_will_on_a_wildcard_is_refused(room: &Room) {
    for topic in ["a/+", "#", ""] {
        let mut client = room.dial();
        client.send(&room.hello("a").will(Publish::new(topic, "bye")).bytes());
        for packet in client.expect_closed() {
            assert!(packet.kind() == kind::CONNACK && packet.body[1] != 0, "{packet:02x?}");
        }
    }
}

fn a_will_has_its_properties(room: &Room) {
    let mut watcher = watcher(room);
    let will = will(room)
        .qos(1)
        .with(property::number(property::PAYLOAD_FORMAT, 1))
        .with(property::bytes(property::CONTENT_TYPE, "text/plain"))
        .with(property::bytes(property::RESPONSE_TOPIC, "answers/here"))
        .with(property::bytes(property::CORRELATION_DATA, b"\x00\xff"));
    room.hello("a").will(will.clone()).open(room.broker).vanish();
    let properties = watcher.message().properties;
    assert_eq!(properties.number(property::PAYLOAD_FORMAT), Some(1));
    for id in [property::CONTENT_TYPE, property::RESPONSE_TOPIC, property::CORRELATION_DATA] {
        assert_eq!(properties.bytes(id), will.properties.bytes(id), "0x{id:02x}");
    }
    assert_eq!(properties.number(property::WILL_DELAY), None);
}

fn a_will_has_its_user_properties_in_order(room: &Room) {
    let mut watcher = watcher(room);
    let mut will = will(room);
    for (name, value) in [("b", "1"), ("a", "2"), ("b", "0"), ("", "")] {
        will = will.with(property::user(name, value));
    }
    let expected = will.properties.user();
    room.hello("a").will(will).open(room.broker).vanish();
    assert_eq!(watcher.message().properties.user(), expected);
}

fn a_will_waits_for_its_delay(room: &Room) {
    let mut watcher = watcher(room);
    let will = will(room).with(property::will_delay(2));
    let client = room.hello("a").lasting().will(will).open(room.broker);
    let begun = Instant::now();
    client.vanish();
    assert_eq!(watcher.message().text(), "bye");
    let waited = begun.elapsed();
    // A broker whose clock ticks in seconds may be one early.
    assert!(waited >= Duration::from_millis(950) && waited < Duration::from_secs(5), "{waited:?}");
}

fn a_client_that_comes_back_in_time_has_no_will_published(room: &Room) {
    let mut watcher = watcher(room);
    let will = will(room).with(property::will_delay(1));
    room.hello("a").lasting().will(will).open(room.broker).vanish();
    let mut client = room.hello("a").lasting().open(room.broker);
    watcher.expect_nothing_for(Duration::from_millis(2_500));
    client.ping();
}

fn a_will_does_not_wait_longer_than_its_session(room: &Room) {
    let mut watcher = watcher(room);
    let delayed = will(room).with(property::will_delay(600));
    room.hello("a").will(delayed.clone()).open(room.broker).vanish();
    assert_eq!(watcher.message().text(), "bye", "a session without an expiry ends at once");
    let hello = room.hello("b").with(property::session_expiry(1)).will(delayed);
    hello.open(room.broker).vanish();
    assert_eq!(watcher.message().text(), "bye");
}

fn disconnect_with_will_publishes_it(room: &Room) {
    let mut watcher = watcher(room);
    room.hello("a").will(will(room)).open(room.broker).disconnect_with(4, &[]);
    assert_eq!(watcher.message().text(), "bye");
}

fn disconnect_with_will_waits_for_the_delay_too(room: &Room) {
    let mut watcher = watcher(room);
    let will = will(room).with(property::will_delay(2));
    let client = room.hello("a").lasting().will(will).open(room.broker);
    let begun = Instant::now();
    client.disconnect_with(4, &[]);
    assert_eq!(watcher.message().text(), "bye");
    assert!(begun.elapsed() >= Duration::from_millis(950), "{:?}", begun.elapsed());
}

fn disconnect_with_an_error_publishes_the_will(room: &Room) {
    let mut watcher = watcher(room);
    room.hello("a").will(will(room)).open(room.broker).disconnect_with(0x80, &[]);
    assert_eq!(watcher.message().text(), "bye");
}

fn the_expiry_of_a_will_begins_when_it_is_published(room: &Room) {
    let will = will(room).qos(1).retained().with(property::message_expiry(60));
    let will = will.with(property::will_delay(2));
    let mut early = watcher(room);
    room.hello("a").lasting().will(will).open(room.broker).vanish();
    let message = early.message();
    assert_eq!(message.properties.number(property::MESSAGE_EXPIRY), Some(60));
}
