//! Sessions: when they begin, what they hold, when they end (§3.1.2.4, §3.1.2.11.2, §4.1, §4.4, §4.5).

use std::time::{Duration, Instant};

use crate::client::{Client, disconnect_bytes};
use crate::wire::{Packet, Publish, Version, kind, property};
use crate::{Check, Connect, Room, check};

pub const CHECKS: &[Check] = &[
    check!(a_new_session_is_not_present, V311 "3.2.2-3", V5 "3.2.2-2"),
    check!(a_lasting_session_is_present_later, V311 "3.2.2-2", V5 "3.2.2-3"),
    check!(a_clean_session_ends_with_its_connection, V31 "3.1", V311 "3.1.2-6", V5 "4.1.0-2"),
    check!(clean_start_discards_what_was_there, V31 "3.1", V311 "3.1.2-6", V5 "3.1.2-4"),
    check!(a_clean_connection_leaves_nothing_for_later, V311 "3.1.2-6", V5 "3.1.2-4"),
    check!(a_session_keeps_its_subscriptions, V31 "3.1", V311 "4.1.0-1", V5 "3.1.2-23"),
    check!(the_queue_of_one_who_was_away_comes_in_order, V31 "4.2", V311 "3.1.2-5", V5 "4.5.0-1"),
    check!(each_message_waits_at_its_own_qos, V311 "3.1.2-5", V5 "4.5.0-1"),
    check!(a_thousand_messages_wait, V311 "3.1.2-5", V5 "4.5.0-1"),
    check!(what_was_not_acknowledged_comes_again_with_dup_in_order, V311 "4.4.0-1", V5 "4.4.0-1"),
    check!(what_comes_again_comes_before_what_waited, V311 "4.6.0-1", V5 "4.6.0-5"),
    check!(what_was_acknowledged_does_not_come_again, V311 "4.3.2-1", V5 "4.3.2-3"),
    check!(nothing_is_sent_again_while_the_connection_lasts, V5 "4.4.0-1"),
    check!(a_session_starts_at_clean_start_and_lasts_as_long_as_its_expiry, V5 "3.1.2-23"),
    check!(without_an_expiry_a_session_ends_with_its_connection, V5 "3.1.2.11.2"),
    check!(a_session_ends_when_its_expiry_has_passed, V5 "4.1.0-2"),
    check!(disconnect_can_end_a_session_at_once, V5 "3.14.2.2.2"),
    check!(disconnect_can_make_a_session_last_longer, V5 "3.14.2.2.2"),
    check!(an_expiry_after_0_is_a_protocol_error, V5 "3.14.2.2.2"),
    check!(the_expiry_of_the_last_connection_counts, V5 "3.1.2.11.2"),
    check!(the_longest_expiry_is_granted_or_told, V5 "3.2.2.3.2"),
    check!(a_subscription_is_gone_after_its_session_has_ended, V5 "4.1.0-2"),
    check!(a_session_outlives_a_change_of_version, V311 "3.1.2-4", V5 "3.1.2-5"),
    check!(retained_messages_do_not_end_with_a_session, V311 "3.1.2-7", V5 "4.1"),
    check!(a_refused_connack_says_that_no_session_is_present, V311 "3.2.2-4", V5 "3.2.2-6"),
    check!(connack_of_3_1_has_no_session_flag, V31 "3.2"),
];

fn a_new_session_is_not_present(room: &Room) {
    for hello in [room.hello("a"), room.hello("b").lasting()] {
        let (_, connack) = hello.open_with(room.broker);
        assert_eq!(connack.flags, 0);
    }
}

fn a_lasting_session_is_present_later(room: &Room) {
    room.hello("a").lasting().open(room.broker).disconnect();
    let (client, connack) = room.hello("a").lasting().open_with(room.broker);
    assert_eq!(connack.flags, 1);
    client.vanish();
    let (_, connack) = room.hello("a").lasting().open_with(room.broker);
    assert_eq!(connack.flags, 1);
}

fn a_clean_session_ends_with_its_connection(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1);
    client.disconnect();
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    let (mut client, connack) = room.hello("a").lasting().open_with(room.broker);
    assert!(!connack.is_present());
    client.expect_nothing();
}

fn clean_start_discards_what_was_there(room: &Room) {
    let mut client = room.hello("a").lasting().open(room.broker);
    client.subscribe(room.topic("x"), 1);
    client.disconnect();
    room.publish(Publish::new(room.topic("x"), "old").qos(1));
    let (mut client, connack) = room.hello("a").open_with(room.broker);
    assert!(!connack.is_present());
    room.publish(Publish::new(room.topic("x"), "new").qos(1));
    client.expect_nothing();
}

fn a_clean_connection_leaves_nothing_for_later(room: &Room) {
    room.hello("a").lasting().open(room.broker).disconnect();
    room.client("a").disconnect();
    let (_, connack) = room.hello("a").lasting().open_with(room.broker);
    assert!(!connack.is_present());
}

/// A client with a lasting session that subscribes to everything of the room, and goes.
fn away(room: &Room, qos: u8) {
    let mut client = room.hello("a").lasting().open(room.broker);
    client.subscribe(room.topic("#"), qos);
    client.disconnect();
}

fn back(room: &Room) -> Client {
    room.hello("a").lasting().open(room.broker)
}

fn a_session_keeps_its_subscriptions(room: &Room) {
    away(room, 1);
    let mut client = back(room);
    room.publish(Publish::new(room.topic("x"), "y"));
    assert_eq!(client.message().text(), "y");
}

fn the_queue_of_one_who_was_away_comes_in_order(room: &Room) {
    for qos in [1, 2] {
        away(room, 2);
        let mut publisher = room.client("p");
        let texts: Vec<String> = (0..30).map(|n| n.to_string()).collect();
        for text in &texts {
            publisher.publish(Publish::new(room.topic("x"), text).qos(qos));
        }
        let mut client = back(room);
        assert_eq!(client.payloads(30), texts);
        client.expect_nothing();
    }
}

fn each_message_waits_at_its_own_qos(room: &Room) {
    away(room, 2);
    let mut publisher = room.client("p");
    for qos in [1, 2, 1, 2] {
        publisher.publish(Publish::new(room.topic("x"), qos.to_string()).qos(qos));
    }
    let mut client = back(room);
    for qos in [1, 2, 1, 2] {
        let message = client.message();
        assert_eq!((message.qos, message.text(), message.dup), (qos, qos.to_string(), false));
    }
}

fn a_thousand_messages_wait(room: &Room) {
    away(room, 1);
    let mut publisher = room.client("p");
    for id in 1..=1_000 {
        publisher.send(&Publish::new(room.topic("x"), id.to_string()).qos(1).id(id).bytes(room.version));
        // As many at once as any broker takes.
        if id % 10 == 0 {
            for acked in id - 9..=id {
                publisher.expect_ack(kind::PUBACK, acked);
            }
        }
    }
    let mut client = back(room);
    let texts: Vec<String> = (1..=1_000).map(|id: u16| id.to_string()).collect();
    assert_eq!(client.payloads(1_000), texts);
}

fn what_was_not_acknowledged_comes_again_with_dup_in_order(room: &Room) {
    for qos in [1, 2] {
        away(room, 2);
        let mut client = back(room);
        let mut publisher = room.client("p");
        for text in ["1", "2", "3"] {
            publisher.publish(Publish::new(room.topic("x"), text).qos(qos));
        }
        let first: Vec<_> = (0..3).map(|_| client.unacked()).collect();
        assert!(first.iter().all(|message| !message.dup));
        client.vanish();
        let mut client = back(room);
        let again: Vec<_> = (0..3).map(|_| client.unacked()).collect();
        for (before, after) in first.iter().zip(&again) {
            let dup = Publish { dup: true, ..before.clone() };
            assert_eq!(&dup, after, "the same, with DUP");
        }
        for message in &again {
            client.finish(message);
        }
        client.disconnect();
        back(room).expect_nothing();
    }
}

fn what_comes_again_comes_before_what_waited(room: &Room) {
    away(room, 1);
    let mut client = back(room);
    room.publish(Publish::new(room.topic("x"), "1").qos(1));
    assert_eq!(client.unacked().text(), "1");
    client.vanish();
    room.publish(Publish::new(room.topic("x"), "2").qos(1));
    let mut client = back(room);
    let both = [client.message(), client.message()];
    assert_eq!(
        both.each_ref().map(|message| (message.text(), message.dup)),
        [("1".to_owned(), true), ("2".to_owned(), false)]
    );
}

fn what_was_acknowledged_does_not_come_again(room: &Room) {
    away(room, 1);
    let mut client = back(room);
    let mut publisher = room.client("p");
    for text in ["1", "2", "3"] {
        publisher.publish(Publish::new(room.topic("x"), text).qos(1));
    }
    let [first, second, third] = [client.unacked(), client.unacked(), client.unacked()];
    client.finish(&second);
    client.finish(&first);
    client.ping();
    client.vanish();
    let mut client = back(room);
    let again = client.message();
    assert_eq!((again.text(), again.id), (third.text(), third.id));
    client.expect_nothing();
}

fn nothing_is_sent_again_while_the_connection_lasts(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 2);
    room.publish(Publish::new(room.topic("x"), "1").qos(1));
    room.publish(Publish::new(room.topic("x"), "2").qos(2));
    client.unacked();
    let second = client.unacked();
    client.ack(kind::PUBREC, second.id);
    client.expect_ack(kind::PUBREL, second.id);
    client.expect_nothing_for(Duration::from_secs(2));
}

fn a_session_starts_at_clean_start_and_lasts_as_long_as_its_expiry(room: &Room) {
    let hello = room.hello("a").with(property::session_expiry(60));
    let mut client = hello.open(room.broker);
    client.subscribe(room.topic("x"), 1);
    client.disconnect();
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    let (mut client, connack) = room.hello("a").clean(false).open_with(room.broker);
    assert!(connack.is_present());
    assert_eq!(client.message().text(), "y");
}

fn without_an_expiry_a_session_ends_with_its_connection(room: &Room) {
    for expiry in [None, Some(property::session_expiry(0))] {
        let mut hello = room.hello("a").clean(false);
        hello.properties.0.extend(expiry);
        hello.open(room.broker).disconnect();
        assert!(!hello.open_with(room.broker).1.is_present());
        hello.open(room.broker).vanish();
        assert!(!hello.open_with(room.broker).1.is_present());
    }
}

/// Asks with a client that changes nothing but by asking: present or not.
fn is_present(room: &Room, expiry: u32) -> bool {
    let hello = room.hello("a").clean(false).with(property::session_expiry(expiry));
    let (client, connack) = hello.open_with(room.broker);
    client.disconnect();
    connack.is_present()
}

/// Passes the time that a broker which looks once a second needs to see that one second is over.
fn let_a_second_expire(room: &Room) {
    room.client("clock").expect_nothing_for(Duration::from_millis(2_500));
}

fn a_session_ends_when_its_expiry_has_passed(room: &Room) {
    room.hello("a").with(property::session_expiry(1)).open(room.broker).disconnect();
    let_a_second_expire(room);
    assert!(!is_present(room, 60));
    assert!(is_present(room, 0));
}

fn disconnect_can_end_a_session_at_once(room: &Room) {
    let client = room.hello("a").with(property::session_expiry(60)).open(room.broker);
    client.disconnect_with(0, &[property::session_expiry(0)]);
    assert!(!is_present(room, 0));
}

fn disconnect_can_make_a_session_last_longer(room: &Room) {
    let client = room.hello("a").with(property::session_expiry(1)).open(room.broker);
    client.disconnect_with(0, &[property::session_expiry(60)]);
    let_a_second_expire(room);
    assert!(is_present(room, 0));
}

fn an_expiry_after_0_is_a_protocol_error(room: &Room) {
    for hello in [room.hello("a"), room.hello("a").with(property::session_expiry(0))] {
        let mut client = hello.open(room.broker);
        client.send(&disconnect_bytes(0, &[property::session_expiry(60)]));
        client.expect_rejected(&[0x82]);
        assert!(!is_present(room, 0));
    }
}

fn the_expiry_of_the_last_connection_counts(room: &Room) {
    room.hello("a").with(property::session_expiry(600)).open(room.broker).disconnect();
    assert!(is_present(room, 0), "this one ends it");
    assert!(!is_present(room, 0));
}

fn the_longest_expiry_is_granted_or_told(room: &Room) {
    let hello = room.hello("a").with(property::session_expiry(u32::MAX));
    let (client, connack) = hello.open_with(room.broker);
    assert_ne!(connack.properties.number(property::SESSION_EXPIRY), Some(0));
    client.disconnect();
    assert!(is_present(room, 0));
}

fn a_subscription_is_gone_after_its_session_has_ended(room: &Room) {
    let mut client = room.hello("a").with(property::session_expiry(1)).open(room.broker);
    client.subscribe(room.topic("x"), 1);
    client.vanish();
    let_a_second_expire(room);
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    let mut client = room.hello("a").clean(false).open(room.broker);
    client.expect_nothing();
}

fn a_session_outlives_a_change_of_version(room: &Room) {
    let other = if room.is_v5() { Version::V311 } else { Version::V5 };
    away(room, 1);
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    let (mut client, connack) = Connect::new(other, room.id("a")).lasting().open_with(room.broker);
    assert!(connack.is_present());
    let message = client.unacked();
    assert_eq!(message.text(), "y");
    client.vanish();
    let again = back(room).message();
    assert_eq!((again.id, again.text(), again.dup), (message.id, message.text(), true));
}

fn retained_messages_do_not_end_with_a_session(room: &Room) {
    let mut client = room.client("a");
    client.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    client.disconnect();
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 0);
    assert_eq!(client.message().text(), "kept");
}

fn a_refused_connack_says_that_no_session_is_present(room: &Room) {
    away(room, 1);
    let mut client = room.dial();
    let hello = room.hello("a").lasting();
    client.send(&hello.bytes_as(b"MQTT", if room.is_v5() { 6 } else { 1 }, 0));
    let connack: Packet = client.next();
    assert!(connack.body[0] == 0 && connack.body[1] != 0, "{connack:02x?}");
    let begun = Instant::now();
    client.expect_closed();
    assert!(begun.elapsed() < Duration::from_secs(5));
}

fn connack_of_3_1_has_no_session_flag(room: &Room) {
    away(room, 1);
    let (_, connack) = room.hello("a").lasting().open_with(room.broker);
    assert_eq!(connack.flags, 0, "reserved in 3.1");
}
