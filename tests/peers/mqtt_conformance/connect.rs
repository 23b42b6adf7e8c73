//! CONNECT, CONNACK, keep-alive, PINGREQ and DISCONNECT (§3.1, §3.2, §3.12, §3.14).

use std::time::{Duration, Instant};

use crate::client::{Client, Connect, disconnect_bytes, subscribe_bytes};
use crate::wire::{Packet, Publish, Version, kind, packet, property};
use crate::{Check, Room, check};

pub const CHECKS: &[Check] = &[
    check!(the_first_packet_must_be_connect, V311 "3.1.0-1", V5 "3.1.0-1"),
    check!(nothing_is_sent_before_connack, V311 "3.2.0-1", V5 "3.2.0-1"),
    check!(a_second_connect_ends_the_connection, V31 "3.1", V311 "3.1.0-2", V5 "3.1.0-2"),
    check!(a_connect_in_single_bytes_is_understood, V31 "3.1", V311 "4.2.0-1", V5 "4.2-1"),
    check!(a_connect_with_everything_in_it_is_accepted, V31 "3.1", V311 "3.1.3-1", V5 "3.1.3-1"),
    check!(packets_behind_connect_need_not_wait_for_connack, V311 "3.1.4-4", V5 "3.1.4-5"),
    check!(another_protocol_name_is_not_served, V311 "3.1.2-1", V5 "3.1.2-1"),
    check!(a_level_between_the_standards_is_refused_with_1, V311 "3.1.2-2"),
    check!(a_level_above_5_is_refused, V5 "3.1.2-2"),
    check!(nothing_behind_a_refused_connect_is_processed, V311 "3.1.4-5", V5 "3.1.4-6"),
    check!(the_reserved_connect_flag_must_be_zero, V311 "3.1.2-3", V5 "3.1.2-3"),
    check!(will_qos_3_is_refused, V311 "3.1.2-14", V5 "3.1.2-12"),
    check!(will_qos_without_a_will_is_refused, V311 "3.1.2-13", V5 "3.1.2-11"),
    check!(will_retain_without_a_will_is_refused, V311 "3.1.2-15", V5 "3.1.2-13"),
    check!(a_will_flag_without_a_will_is_refused, V311 "3.1.2-9", V5 "3.1.2-9"),
    check!(a_user_flag_without_a_user_is_refused, V311 "3.1.2-19", V5 "3.1.2-17"),
    check!(a_user_without_its_flag_is_refused, V311 "3.1.2-18", V5 "3.1.2-16"),
    check!(a_password_flag_without_a_password_is_refused, V311 "3.1.2-21", V5 "3.1.2-19"),
    check!(a_password_without_its_flag_is_refused, V311 "3.1.2-20", V5 "3.1.2-18"),
    check!(a_password_without_a_user_is_refused_before_5, V311 "3.1.2-22"),
    check!(a_password_without_a_user_is_read_in_5, V5 "3.1.2.9"),
    check!(ids_of_letters_and_digits_are_taken, V31 "3.1", V311 "3.1.3-5", V5 "3.1.3-3"),
    check!(ids_of_any_characters_are_taken, V311 "3.1.3-4", V5 "3.1.3-4"),
    check!(a_long_id_is_taken, V311 "3.1.3-2", V5 "3.1.3-2"),
    check!(an_empty_id_with_a_clean_session_is_taken, V311 "3.1.3-6", V5 "3.1.3-6"),
    check!(an_empty_id_without_a_clean_session_is_refused_with_2, V311 "3.1.3-8"),
    check!(an_empty_id_is_unknown_to_3_1, V31 "3.1"),
    check!(an_assigned_id_is_told_and_can_be_used_again, V5 "3.1.3-7"),
    check!(two_empty_ids_are_two_clients, V311 "3.1.3-6", V5 "3.1.3-7"),
    check!(a_given_id_is_not_answered_with_an_assigned_one, V5 "3.2.2-16"),
    check!(connack_holds_only_what_the_standard_knows, V5 "3.2.2-8"),
    check!(connack_says_neither_qos_nor_features_are_missing, V5 "3.2.2-9"),
    check!(no_response_information_unless_asked_for, V5 "3.1.2-28"),
    check!(keep_alive_0_is_accepted_and_never_ends, V31 "3.1", V311 "3.1.2-23", V5 "3.1.2-20"),
    check!(silence_for_one_and_a_half_keep_alives_ends_it, V31 "3.1", V311 "3.1.2-24", V5 "3.1.2-22"),
    check!(what_it_receives_does_not_keep_a_client_alive, V311 "3.1.2-24", V5 "3.1.2-22"),
    check!(any_packet_keeps_a_client_alive, V311 "3.1.2-23", V5 "3.1.2-20"),
    check!(pingreq_is_answered, V31 "3.12", V311 "3.12.4-1", V5 "3.12.4-1"),
    check!(disconnect_ends_the_connection, V31 "3.14", V311 "3.14.4-1", V5 "3.14.4-2"),
    check!(nothing_behind_disconnect_is_processed, V311 "3.14.4-2", V5 "3.14.4-1"),
    check!(disconnect_may_have_a_reason_and_properties, V5 "3.14.2-1"),
    check!(an_authentication_method_we_do_not_know_is_refused, V5 "4.12.0-1"),
    check!(auth_without_a_method_in_connect_ends_the_connection, V5 "4.12.0-7"),
    check!(authentication_data_without_a_method_is_refused, V5 "3.1.2.11.10"),
    check!(request_problem_information_above_1_is_refused, V5 "3.1.2.11.7"),
    check!(request_response_information_above_1_is_refused, V5 "3.1.2.11.6"),
    check!(receive_maximum_0_is_refused, V5 "3.1.2.11.3"),
    check!(maximum_packet_size_0_is_refused, V5 "3.1.2.11.4"),
    check!(a_connect_property_twice_is_refused, V5 "3.1.2.11"),
    check!(a_property_that_does_not_belong_into_connect_is_refused, V5 "2.2.2.2"),
    check!(user_properties_of_connect_may_repeat, V5 "3.1.2.11.8"),
    check!(a_connect_of_3_1_with_another_level_is_not_served, V31 "3.1"),
];

fn the_first_packet_must_be_connect(room: &Room) {
    let first = Publish::new(room.topic("x"), "early").bytes(room.version);
    let subscribe = subscribe_bytes(room.version, 1, &[(b"#", 0)], &[]);
    for bytes in [&first[..], &subscribe, &[kind::PINGREQ << 4, 0], &[kind::DISCONNECT << 4, 0]] {
        let mut client = room.dial();
        client.send(bytes);
        let said = client.expect_closed();
        assert!(said.is_empty(), "{said:02x?} in answer to {bytes:02x?}");
    }
}

fn nothing_is_sent_before_connack(room: &Room) {
    let topic = room.topic("kept");
    room.publish(Publish::new(&topic, "1").retained());
    let mut client = room.dial();
    client.send(&room.hello("a").bytes());
    client.send(&subscribe_bytes(room.version, 1, &[(topic.as_bytes(), 0)], &[]));
    let order: Vec<u8> = (0..3).map(|_| client.next().kind()).collect();
    assert_eq!(order[0], kind::CONNACK);
    assert!(order.contains(&kind::SUBACK) && order.contains(&kind::PUBLISH), "{order:?}");
}

fn a_second_connect_ends_the_connection(room: &Room) {
    let mut client = room.client("a");
    client.send(&room.hello("a").bytes());
    client.expect_rejected(&[0x82]);
}

fn a_connect_in_single_bytes_is_understood(room: &Room) {
    let mut client = room.dial();
    for byte in room.hello("a").bytes() {
        client.send(&[byte]);
    }
    assert_eq!(client.connack().reason, 0);
    let message = Publish::new(room.topic("x"), "y").qos(1).id(7).bytes(room.version);
    for byte in message {
        client.send(&[byte]);
    }
    client.expect_ack(kind::PUBACK, 7);
}

fn a_connect_with_everything_in_it_is_accepted(room: &Room) {
    let mut hello = room.hello("a").will(Publish::new(room.topic("will"), "bye").qos(2).retained());
    hello.user = Some(b"someone".to_vec());
    hello.password = Some(b"\xff\x00\xfe".to_vec());
    if room.is_v5() {
        hello = hello
            .with(property::session_expiry(9))
            .with(property::receive_maximum(9))
            .with(property::maximum_packet_size(9_000))
            .with(property::number(property::TOPIC_ALIAS_MAXIMUM, 9))
            .with(property::number(property::REQUEST_RESPONSE_INFORMATION, 1))
            .with(property::number(property::REQUEST_PROBLEM_INFORMATION, 1))
            .with(property::user("a", "b"));
    }
    let mut client = hello.open(room.broker);
    client.ping();
    client.disconnect();
}

fn packets_behind_connect_need_not_wait_for_connack(room: &Room) {
    let mut client = room.dial();
    let mut bytes = room.hello("a").bytes();
    bytes.extend(Publish::new(room.topic("x"), "y").qos(1).id(1).bytes(room.version));
    bytes.extend([kind::PINGREQ << 4, 0]);
    client.send(&bytes);
    assert_eq!(client.connack().reason, 0);
    client.expect_ack(kind::PUBACK, 1);
    client.expect(kind::PINGRESP);
}

fn another_protocol_name_is_not_served(room: &Room) {
    for name in [&b"mqtt"[..], b"MQTS", b"", b"MQTTX"] {
        let mut client = room.dial();
        let level = if room.is_v5() { 5 } else { 4 };
        client.send(&room.hello("a").bytes_as(name, level, 2));
        let said = client.expect_closed();
        assert!(!said.iter().any(accepts), "accepted {name:?}");
    }
}

fn accepts(packet: &Packet) -> bool {
    packet.kind() == kind::CONNACK && packet.body.get(1) == Some(&0)
}

fn a_level_between_the_standards_is_refused_with_1(room: &Room) {
    for level in [0, 1, 2] {
        let mut client = room.dial();
        client.send(&room.hello("a").bytes_as(b"MQTT", level, 2));
        let connack = client.connack();
        assert_eq!((connack.flags, connack.reason), (0, 1), "level {level}");
        assert!(client.expect_closed().is_empty());
    }
}

fn a_level_above_5_is_refused(room: &Room) {
    let mut client = room.dial();
    client.send(&room.hello("a").bytes_as(b"MQTT", 6, 2));
    // Which words a client of a version unknown to us reads, nobody can know: 5.0's or 3.1.1's.
    let first = client.next();
    assert_eq!(first.first, kind::CONNACK << 4);
    assert!(first.body[0] == 0 && [0x84, 1].contains(&first.body[1]), "{first:02x?}");
    assert!(client.expect_closed().is_empty());
}

fn nothing_behind_a_refused_connect_is_processed(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("#"), 1);
    let mut client = room.dial();
    let mut bytes = room.hello("a").bytes_as(b"MQTT", if room.is_v5() { 6 } else { 1 }, 2);
    bytes.extend(Publish::new(room.topic("x"), "no").qos(1).id(1).bytes(room.version));
    client.send(&bytes);
    let said = client.expect_closed();
    assert!(said.iter().all(|packet| packet.kind() == kind::CONNACK), "{said:02x?}");
    watcher.expect_nothing();
}

/// Sends a CONNECT that is no CONNECT of its version: before 5.0 without an answer, in 5.0 perhaps with a refusal.
#[track_caller]
fn assert_malformed(room: &Room, bytes: &[u8]) {
    let mut client = room.dial();
    client.send(bytes);
    let said = client.expect_closed();
    for packet in &said {
        assert!(room.is_v5(), "{packet:02x?} instead of the end");
        assert!(packet.kind() == kind::CONNACK && packet.body[1] >= 0x80, "{packet:02x?}");
    }
}

fn the_reserved_connect_flag_must_be_zero(room: &Room) {
    let hello = room.hello("a");
    assert_malformed(room, &hello.bytes_as(b"MQTT", level(room), 3));
}

fn will_qos_3_is_refused(room: &Room) {
    let hello = room.hello("a").will(Publish::new(room.topic("will"), "bye"));
    assert_malformed(room, &hello.bytes_as(b"MQTT", level(room), 2 | 4 | 3 << 3));
}

fn will_qos_without_a_will_is_refused(room: &Room) {
    assert_malformed(room, &room.hello("a").bytes_as(b"MQTT", level(room), 2 | 1 << 3));
}

fn will_retain_without_a_will_is_refused(room: &Room) {
    assert_malformed(room, &room.hello("a").bytes_as(b"MQTT", level(room), 2 | 1 << 5));
}

fn a_will_flag_without_a_will_is_refused(room: &Room) {
    assert_malformed(room, &room.hello("a").bytes_as(b"MQTT", level(room), 2 | 4));
}

fn a_user_flag_without_a_user_is_refused(room: &Room) {
    assert_malformed(room, &room.hello("a").bytes_as(b"MQTT", level(room), 2 | 0x80));
}

fn a_user_without_its_flag_is_refused(room: &Room) {
    let mut hello = room.hello("a");
    hello.user = Some(b"u".to_vec());
    assert_malformed(room, &hello.bytes_as(b"MQTT", level(room), 2));
}

fn a_password_flag_without_a_password_is_refused(room: &Room) {
    let mut hello = room.hello("a");
    hello.user = Some(b"u".to_vec());
    assert_malformed(room, &hello.bytes_as(b"MQTT", level(room), 2 | 0xc0));
}

fn a_password_without_its_flag_is_refused(room: &Room) {
    let mut hello = room.hello("a");
    (hello.user, hello.password) = (Some(b"u".to_vec()), Some(b"p".to_vec()));
    assert_malformed(room, &hello.bytes_as(b"MQTT", level(room), 2 | 0x80));
}

fn a_password_without_a_user_is_refused_before_5(room: &Room) {
    let mut hello = room.hello("a");
    hello.password = Some(b"p".to_vec());
    assert_malformed(room, &hello.bytes());
}

fn a_password_without_a_user_is_read_in_5(room: &Room) {
    let mut hello = room.hello("a");
    hello.password = Some(b"p".to_vec());
    hello.open(room.broker).ping();
}

fn level(room: &Room) -> u8 {
    if room.is_v5() { 5 } else { 4 }
}

fn ids_of_letters_and_digits_are_taken(room: &Room) {
    room.hello("a").open(room.broker).ping();
    let long = format!("{:0<23}", room.id("abcXYZ0189"));
    Connect::new(room.version, &long).open(room.broker).ping();
}

fn ids_of_any_characters_are_taken(room: &Room) {
    for id in ["a/b", "+", "#", "$SYS/x", "été 温度 🌡", "a b", "\u{feff}bom", "%s\\\"'"] {
        let mut client = Connect::new(room.version, room.id(id)).open(room.broker);
        client.publish(Publish::new(room.topic("x"), id).qos(1));
        client.disconnect();
    }
}

fn a_long_id_is_taken(room: &Room) {
    let id = format!("{}{}", room.id("long"), "x".repeat(1_000));
    let first = Connect::new(room.version, &id).lasting().open(room.broker);
    first.disconnect();
    // Cut short, it would be the id of another.
    let other = &id[..id.len() - 1];
    let (_, connack) = Connect::new(room.version, other).lasting().open_with(room.broker);
    assert!(!connack.is_present());
    let (_, connack) = Connect::new(room.version, &id).lasting().open_with(room.broker);
    assert!(connack.is_present());
}

fn an_empty_id_with_a_clean_session_is_taken(room: &Room) {
    let (mut client, connack) = Connect::new(room.version, "").open_with(room.broker);
    assert!(!connack.is_present());
    client.publish(Publish::new(room.topic("x"), "y").qos(1));
}

fn an_empty_id_without_a_clean_session_is_refused_with_2(room: &Room) {
    let mut client = room.dial();
    client.send(&Connect::new(room.version, "").clean(false).bytes());
    let connack = client.connack();
    assert_eq!((connack.flags, connack.reason), (0, 2));
    assert!(client.expect_closed().is_empty());
}

fn an_empty_id_is_unknown_to_3_1(room: &Room) {
    for clean in [true, false] {
        let mut client = room.dial();
        client.send(&Connect::new(Version::V31, "").clean(clean).bytes());
        let connack = client.connack();
        assert_eq!((connack.flags, connack.reason), (0, 2));
        assert!(client.expect_closed().is_empty());
    }
}

fn an_assigned_id_is_told_and_can_be_used_again(room: &Room) {
    for clean in [true, false] {
        let hello = Connect::new(Version::V5, "").clean(clean).with(property::session_expiry(60));
        let (mut client, connack) = hello.open_with(room.broker);
        assert!(!connack.is_present());
        let id = connack.properties.bytes(property::ASSIGNED_CLIENT_ID).expect("an assigned client id");
        assert!(!id.is_empty());
        client.subscribe(room.topic("x"), 1);
        client.disconnect();
        let (_, connack) = Connect::new(Version::V5, &id).clean(false).open_with(room.broker);
        assert!(connack.is_present(), "the session is there under the id that was assigned");
        assert_eq!(connack.properties.bytes(property::ASSIGNED_CLIENT_ID), None);
    }
}

fn two_empty_ids_are_two_clients(room: &Room) {
    let mut first = Connect::new(room.version, "").open(room.broker);
    let mut second = Connect::new(room.version, "").open(room.broker);
    first.ping();
    second.ping();
    first.ping();
}

fn a_given_id_is_not_answered_with_an_assigned_one(room: &Room) {
    let (_, connack) = room.hello("a").open_with(room.broker);
    assert_eq!(connack.properties.bytes(property::ASSIGNED_CLIENT_ID), None);
}

fn connack_holds_only_what_the_standard_knows(room: &Room) {
    let (_, connack) = room.hello("a").with(property::session_expiry(5)).open_with(room.broker);
    assert_eq!(connack.flags, 0);
    let known = [0x11, 0x12, 0x13, 0x1a, 0x1c, 0x1f, 0x21, 0x22, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a];
    let mut seen = Vec::new();
    for property in &connack.properties.0 {
        assert!(known.contains(&property.id), "{property:02x?} in CONNACK");
        assert!(!seen.contains(&property.id) || property.id == property::USER, "{property:02x?} twice");
        seen.push(property.id);
    }
    assert!(connack.properties.user().is_empty(), "user properties that nobody set");
    assert_ne!(connack.properties.number(property::RECEIVE_MAXIMUM), Some(0));
    assert_ne!(connack.properties.number(property::MAXIMUM_PACKET_SIZE), Some(0));
}

fn connack_says_neither_qos_nor_features_are_missing(room: &Room) {
    let (_, connack) = room.hello("a").open_with(room.broker);
    assert_eq!(connack.properties.number(property::MAXIMUM_QOS), None, "1 or 0 if it is there");
    for feature in [
        property::RETAIN_AVAILABLE,
        property::WILDCARD_AVAILABLE,
        property::SUBSCRIPTION_ID_AVAILABLE,
        property::SHARED_AVAILABLE,
    ] {
        assert_ne!(connack.properties.number(feature), Some(0), "0x{feature:02x}");
    }
}

fn no_response_information_unless_asked_for(room: &Room) {
    let hello = room.hello("a").with(property::number(property::REQUEST_RESPONSE_INFORMATION, 0));
    for hello in [room.hello("b"), hello] {
        let (_, connack) = hello.open_with(room.broker);
        assert_eq!(connack.properties.bytes(property::RESPONSE_INFORMATION), None);
    }
}

fn keep_alive_0_is_accepted_and_never_ends(room: &Room) {
    let mut client = room.hello("a").keep_alive(0).open(room.broker);
    // Nothing is an event here: a broker that took 0 for a time would end it by now.
    client.expect_nothing_for(Duration::from_secs(2));
    client.ping();
}

fn silence_for_one_and_a_half_keep_alives_ends_it(room: &Room) {
    let mut client = room.hello("a").keep_alive(1).open(room.broker);
    let begun = Instant::now();
    let said = client.expect_closed_within(LATE);
    assert!(begun.elapsed() >= Duration::from_secs(1), "ended after {:?}", begun.elapsed());
    if let Some(last) = said.last() {
        assert_eq!((room.is_v5(), last.kind(), last.disconnect_reason()), (true, kind::DISCONNECT, 0x8d));
    }
}

fn what_it_receives_does_not_keep_a_client_alive(room: &Room) {
    let mut client = room.hello("a").keep_alive(1).open(room.broker);
    client.subscribe(room.topic("x"), 0);
    let mut publisher = room.client("b");
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < LATE, "still open after {:?}", begun.elapsed());
        publisher.publish(Publish::new(room.topic("x"), "tick"));
        match client.read(Duration::from_millis(200)) {
            Ok(Some(packet)) if packet.kind() == kind::DISCONNECT => break,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    assert!(begun.elapsed() >= Duration::from_secs(1), "ended after {:?}", begun.elapsed());
}

/// Twice what the standard allows: a broker that checks once a second still passes.
const LATE: Duration = Duration::from_secs(3);

fn any_packet_keeps_a_client_alive(room: &Room) {
    let mut client = room.hello("a").keep_alive(1).open(room.broker);
    for id in 1..=4 {
        client.send(&Publish::new(room.topic("x"), "here").qos(1).id(id).bytes(room.version));
        client.expect_ack(kind::PUBACK, id);
        // The time that passes is what is tested.
        assert!(client.read(Duration::from_millis(700)).is_ok_and(|packet| packet.is_none()));
    }
    client.ping();
}

fn pingreq_is_answered(room: &Room) {
    let mut client = room.client("a");
    for _ in 0..3 {
        client.ping();
    }
}

fn disconnect_ends_the_connection(room: &Room) {
    let mut client = room.client("a");
    client.send(&[kind::DISCONNECT << 4, 0]);
    assert!(client.expect_closed().is_empty());
}

fn nothing_behind_disconnect_is_processed(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("#"), 0);
    let mut client = room.client("a");
    let mut bytes = vec![kind::DISCONNECT << 4, 0];
    bytes.extend(Publish::new(room.topic("x"), "no").bytes(room.version));
    client.send(&bytes);
    assert!(client.expect_closed().is_empty());
    watcher.expect_nothing();
}

fn disconnect_may_have_a_reason_and_properties(room: &Room) {
    let reason = property::bytes(property::REASON_STRING, "off to bed");
    for properties in [vec![], vec![reason, property::user("a", "b"), property::user("a", "c")]] {
        let mut client = room.client("a");
        client.send(&disconnect_bytes(0, &properties));
        assert!(client.expect_closed().is_empty());
    }
    let mut client = room.client("a");
    client.send(&[kind::DISCONNECT << 4, 1, 0]);
    assert!(client.expect_closed().is_empty());
}

fn an_authentication_method_we_do_not_know_is_refused(room: &Room) {
    let method = property::bytes(property::AUTHENTICATION_METHOD, "GS2-KRB5");
    let mut client = room.dial();
    client.send(&room.hello("a").with(method).bytes());
    let connack = client.connack();
    assert!([0x8c, 0x87].contains(&connack.reason), "0x{:02x}", connack.reason);
    assert_eq!(connack.flags, 0);
    assert!(client.expect_closed().is_empty());
}

fn auth_without_a_method_in_connect_ends_the_connection(room: &Room) {
    for body in [&[][..], &[0x18, 0], b"\x18\x04\x15\x00\x01m"] {
        let mut client = room.client("a");
        client.send(&packet(kind::AUTH << 4, body));
        client.expect_rejected(&[0x82, 0x81, 0x8c]);
    }
}

#[track_caller]
fn assert_refused(room: &Room, hello: &Connect, reasons: &[u8]) {
    let mut client: Client = room.dial();
    client.send(&hello.bytes());
    for packet in client.expect_closed() {
        assert_eq!(packet.kind(), kind::CONNACK, "{packet:02x?}");
        assert!(packet.body[0] == 0 && reasons.contains(&packet.body[1]), "{packet:02x?}");
    }
}

fn authentication_data_without_a_method_is_refused(room: &Room) {
    let data = property::bytes(property::AUTHENTICATION_DATA, "x");
    assert_refused(room, &room.hello("a").with(data), &[0x82]);
}

fn request_problem_information_above_1_is_refused(room: &Room) {
    let wrong = property::number(property::REQUEST_PROBLEM_INFORMATION, 2);
    assert_refused(room, &room.hello("a").with(wrong), &[0x81, 0x82]);
}

fn request_response_information_above_1_is_refused(room: &Room) {
    let wrong = property::number(property::REQUEST_RESPONSE_INFORMATION, 2);
    assert_refused(room, &room.hello("a").with(wrong), &[0x81, 0x82]);
}

fn receive_maximum_0_is_refused(room: &Room) {
    assert_refused(room, &room.hello("a").with(property::receive_maximum(0)), &[0x82]);
}

fn maximum_packet_size_0_is_refused(room: &Room) {
    assert_refused(room, &room.hello("a").with(property::maximum_packet_size(0)), &[0x82]);
}

fn a_connect_property_twice_is_refused(room: &Room) {
    for twice in [
        property::session_expiry(5),
        property::receive_maximum(5),
        property::maximum_packet_size(5_000),
        property::number(property::TOPIC_ALIAS_MAXIMUM, 5),
        property::number(property::REQUEST_PROBLEM_INFORMATION, 1),
        property::number(property::REQUEST_RESPONSE_INFORMATION, 1),
    ] {
        assert_refused(room, &room.hello("a").with(twice.clone()).with(twice), &[0x81, 0x82]);
    }
}

fn a_property_that_does_not_belong_into_connect_is_refused(room: &Room) {
    let strangers =
        [property::topic_alias(1), property::message_expiry(1), property::number(property::MAXIMUM_QOS, 1)];
    for stranger in strangers {
        assert_refused(room, &room.hello("a").with(stranger), &[0x81, 0x82]);
    }
}

fn user_properties_of_connect_may_repeat(room: &Room) {
    let hello = room.hello("a").with(property::user("k", "1")).with(property::user("k", "2"));
    hello.open(room.broker).ping();
}

fn a_connect_of_3_1_with_another_level_is_not_served(room: &Room) {
    let mut client = room.dial();
    client.send(&room.hello("a").bytes_as(b"MQIsdp", 9, 2));
    let said = client.expect_closed();
    assert!(!said.iter().any(accepts), "{said:02x?}");
}
