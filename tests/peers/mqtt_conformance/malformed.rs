//! Bytes that are no packet, or not one that may come here (§1.5, §2.1, §4.13): the connection ends, and nothing else.

use crate::client::{disconnect_bytes, subscribe_bytes};
use crate::wire::{Properties, Publish, Version, kind, packet, property, push_field};
use crate::{Check, Room, check};

pub const CHECKS: &[Check] = &[
    check!(packet_type_0_ends_the_connection, V311 "2.2.1", V5 "2.1.2"),
    check!(packet_type_15_ends_the_connection_before_5, V31 "2.1", V311 "2.2.1"),
    check!(packets_only_a_server_sends_end_the_connection, V311 "4.8.0-1", V5 "4.13.1-1"),
    check!(a_remaining_length_of_five_bytes_ends_the_connection, V311 "2.2.3", V5 "1.5.5-1"),
    check!(connect_with_flags_is_refused, V311 "2.2.2-2", V5 "2.1.3-1"),
    check!(subscribe_with_other_flags_ends_the_connection, V311 "3.8.1-1", V5 "3.8.1-1"),
    check!(unsubscribe_with_other_flags_ends_the_connection, V311 "3.10.1-1", V5 "3.10.1-1"),
    check!(pubrel_with_other_flags_ends_the_connection, V311 "3.6.1-1", V5 "3.6.1-1"),
    check!(acknowledgements_with_flags_end_the_connection, V311 "2.2.2-2", V5 "2.1.3-1"),
    check!(pingreq_with_flags_ends_the_connection, V311 "2.2.2-2", V5 "2.1.3-1"),
    check!(disconnect_with_flags_ends_the_connection, V311 "3.14.1-1", V5 "3.14.1-1"),
    check!(auth_with_flags_ends_the_connection, V5 "3.15.1-1"),
    check!(publish_of_qos_3_ends_the_connection, V31 "2.1", V311 "3.3.1-4", V5 "3.3.1-4"),
    check!(dup_at_qos_0_ends_the_connection, V311 "3.3.1-2", V5 "3.3.1-2"),
    check!(publish_with_packet_id_0_ends_the_connection, V311 "2.3.1-1", V5 "2.2.1-3"),
    check!(subscribe_with_packet_id_0_ends_the_connection, V311 "2.3.1-1", V5 "2.2.1-3"),
    check!(unsubscribe_with_packet_id_0_ends_the_connection, V311 "2.3.1-1", V5 "2.2.1-3"),
    check!(subscribe_without_a_filter_ends_the_connection, V311 "3.8.3-3", V5 "3.8.3-2"),
    check!(unsubscribe_without_a_filter_ends_the_connection, V311 "3.10.3-2", V5 "3.10.3-2"),
    check!(subscribe_with_qos_3_ends_the_connection, V311 "3.8.3-4", V5 "3.8.3-5"),
    check!(subscribe_with_reserved_bits_ends_the_connection, V311 "3.8.3-4", V5 "3.8.3-5"),
    check!(retain_handling_3_ends_the_connection, V5 "3.8.3.1"),
    check!(a_filter_cut_short_ends_the_connection, V311 "3.8.3-1", V5 "3.8.3-1"),
    check!(nul_in_a_topic_ends_the_connection, V311 "4.7.3-2", V5 "4.7.3-2"),
    check!(nul_in_a_filter_ends_the_connection_or_is_refused, V311 "4.7.3-2", V5 "4.7.3-2"),
    check!(nul_in_a_client_id_is_refused, V311 "1.5.3-2", V5 "1.5.4-2"),
    check!(ill_formed_utf8_in_a_topic_ends_the_connection, V311 "1.5.3-1", V5 "1.5.4-1"),
    check!(ill_formed_utf8_in_a_filter_ends_the_connection, V311 "3.8.3-1", V5 "3.8.3-1"),
    check!(ill_formed_utf8_in_a_client_id_is_refused, V311 "3.1.3-4", V5 "1.5.4-1"),
    check!(ill_formed_utf8_in_a_will_topic_is_refused, V311 "3.1.3-10", V5 "3.1.3-11"),
    check!(ill_formed_utf8_in_a_user_name_is_refused, V311 "3.1.3-11", V5 "3.1.3-12"),
    check!(ill_formed_utf8_in_a_user_property_ends_the_connection, V5 "1.5.7-1"),
    check!(ill_formed_utf8_in_a_content_type_ends_the_connection, V5 "3.3.2-19"),
    check!(an_unknown_property_ends_the_connection, V5 "2.2.2.2"),
    check!(a_property_that_does_not_belong_into_publish_ends_the_connection, V5 "2.2.2.2"),
    check!(a_property_that_does_not_belong_into_an_acknowledgement_ends_the_connection, V5 "2.2.2.2"),
    check!(a_reason_string_twice_ends_the_connection, V5 "3.4.2.2.2"),
    check!(a_property_that_does_not_belong_into_subscribe_ends_the_connection, V5 "2.2.2.2"),
    check!(a_property_that_does_not_belong_into_a_will_is_refused, V5 "2.2.2.2"),
    check!(a_property_that_does_not_belong_into_disconnect_ends_the_connection_with_the_will, V5 "2.2.2.2"),
    check!(a_packet_that_ends_early_ends_the_connection, V311 "4.8.0-1", V5 "4.13.1-1"),
    check!(a_packet_with_more_than_belongs_to_it_ends_the_connection, V311 "4.8.0-1", V5 "4.13.1-1"),
    check!(dup_in_subscribe_and_pubrel_is_known_to_3_1, V31 "2.1"),
    check!(a_publish_property_twice_ends_the_connection, V5 "3.3.2.3"),
    check!(a_property_length_beyond_the_packet_ends_the_connection, V5 "4.13.1-1"),
    check!(a_broken_connection_harms_no_other, V311 "4.8.0-1", V5 "4.13.2-1"),
];

/// Sends bytes after a CONNECT that was accepted; the end has to follow, and in 5.0 one of the words for it.
#[track_caller]
fn assert_ends(room: &Room, bytes: &[u8]) {
    let mut client = room.client("a");
    client.send(bytes);
    client.expect_rejected(&[0x81, 0x82]);
}

/// Sends a CONNECT that must not be accepted.
#[track_caller]
fn assert_refused(room: &Room, bytes: &[u8]) {
    let mut client = room.dial();
    client.send(bytes);
    for packet in client.expect_closed() {
        let is_refusal = packet.kind() == kind::CONNACK && packet.body[1] != 0;
        assert!(is_refusal || packet.kind() == kind::DISCONNECT, "{packet:02x?}");
    }
}

/// A property section with nothing in it, in the versions that have one.
fn no_properties(room: &Room) -> &'static [u8] {
    if room.is_v5() { &[0] } else { &[] }
}

fn packet_type_0_ends_the_connection(room: &Room) {
    assert_ends(room, &[0, 0]);
}

fn packet_type_15_ends_the_connection_before_5(room: &Room) {
    assert_ends(room, &[0xf0, 0]);
}

fn packets_only_a_server_sends_end_the_connection(room: &Room) {
    assert_ends(room, &[kind::CONNACK << 4, 2, 0, 0]);
    assert_ends(room, &[kind::SUBACK << 4, 3, 0, 1, 0]);
    assert_ends(room, &[kind::UNSUBACK << 4, 2, 0, 1]);
    assert_ends(room, &[kind::PINGRESP << 4, 0]);
}

fn a_remaining_length_of_five_bytes_ends_the_connection(room: &Room) {
    assert_ends(room, &[kind::PUBLISH << 4, 0xff, 0xff, 0xff, 0xff, 1]);
}

fn connect_with_flags_is_refused(room: &Room) {
    let mut bytes = room.hello("a").bytes();
    bytes[0] |= 1;
    assert_refused(room, &bytes);
}

fn subscribe_with_other_flags_ends_the_connection(room: &Room) {
    for flags in [0, 1, 3, 8] {
        let mut bytes = subscribe_bytes(room.version, 1, &[(room.topic("x").as_bytes(), 0)], &[]);
        bytes[0] = kind::SUBSCRIBE << 4 | flags;
        assert_ends(room, &bytes);
    }
}

fn unsubscribe_with_other_flags_ends_the_connection(room: &Room) {
    let mut body = [&[0, 1], no_properties(room)].concat();
    push_field(&mut body, b"x");
    assert_ends(room, &packet(kind::UNSUBSCRIBE << 4, &body));
}

fn pubrel_with_other_flags_ends_the_connection(room: &Room) {
    let mut client = room.client("a");
    client.send(&Publish::new(room.topic("x"), "y").qos(2).id(1).bytes(room.version));
    client.expect_ack(kind::PUBREC, 1);
    client.send(&[kind::PUBREL << 4, 2, 0, 1]);
    client.expect_rejected(&[0x81, 0x82]);
}

fn acknowledgements_with_flags_end_the_connection(room: &Room) {
    for kind in [kind::PUBACK, kind::PUBREC, kind::PUBCOMP] {
        assert_ends(room, &[kind << 4 | 1, 2, 0, 1]);
    }
}

fn pingreq_with_flags_ends_the_connection(room: &Room) {
    assert_ends(room, &[kind::PINGREQ << 4 | 1, 0]);
}

fn disconnect_with_flags_ends_the_connection(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("will"), 0);
    let hello = room.hello("a").will(Publish::new(room.topic("will"), "bye"));
    let mut client = hello.open(room.broker);
    client.send(&[kind::DISCONNECT << 4 | 1, 0]);
    client.expect_rejected(&[0x81, 0x82]);
    assert_eq!(watcher.message().text(), "bye", "that was no DISCONNECT");
}

fn auth_with_flags_ends_the_connection(room: &Room) {
    assert_ends(room, &[kind::AUTH << 4 | 1, 0]);
}

fn publish_of_qos_3_ends_the_connection(room: &Room) {
    assert_ends(room, &Publish::new(room.topic("x"), "y").qos(3).id(1).bytes(room.version));
}

fn dup_at_qos_0_ends_the_connection(room: &Room) {
    assert_ends(room, &Publish::new(room.topic("x"), "y").dup().bytes(room.version));
}

fn publish_with_packet_id_0_ends_the_connection(room: &Room) {
    for qos in [1, 2] {
        assert_ends(room, &Publish::new(room.topic("x"), "y").qos(qos).bytes(room.version));
    }
}

fn subscribe_with_packet_id_0_ends_the_connection(room: &Room) {
    assert_ends(room, &subscribe_bytes(room.version, 0, &[(b"x", 0)], &[]));
}

fn unsubscribe_with_packet_id_0_ends_the_connection(room: &Room) {
    let mut body = [&[0, 0], no_properties(room)].concat();
    push_field(&mut body, b"x");
    assert_ends(room, &packet(kind::UNSUBSCRIBE << 4 | 2, &body));
}

fn subscribe_without_a_filter_ends_the_connection(room: &Room) {
    assert_ends(room, &subscribe_bytes(room.version, 1, &[], &[]));
}

fn unsubscribe_without_a_filter_ends_the_connection(room: &Room) {
    let body = [&[0, 1], no_properties(room)].concat();
    assert_ends(room, &packet(kind::UNSUBSCRIBE << 4 | 2, &body));
}

fn subscribe_with_qos_3_ends_the_connection(room: &Room) {
    assert_ends(room, &subscribe_bytes(room.version, 1, &[(b"x", 3)], &[]));
}

fn subscribe_with_reserved_bits_ends_the_connection(room: &Room) {
    let bits: &[u8] = if room.is_v5() { &[0x40, 0x80] } else { &[0x04, 0x08, 0x10, 0x20, 0x40, 0x80] };
    for bit in bits {
        assert_ends(room, &subscribe_bytes(room.version, 1, &[(b"x", *bit)], &[]));
    }
}

fn retain_handling_3_ends_the_connection(room: &Room) {
    assert_ends(room, &subscribe_bytes(room.version, 1, &[(b"x", 0x30)], &[]));
}

fn a_filter_cut_short_ends_the_connection(room: &Room) {
    let body = [&[0, 1], no_properties(room), b"\x00\x09abc"].concat();
    assert_ends(room, &packet(kind::SUBSCRIBE << 4 | 2, &body));
    // A filter without its options.
    let body = [&[0, 1], no_properties(room), b"\x00\x01x"].concat();
    assert_ends(room, &packet(kind::SUBSCRIBE << 4 | 2, &body));
}

fn nul_in_a_topic_ends_the_connection(room: &Room) {
    let mut client = room.client("a");
    client.send(&Publish::new(room.topic("a\0b"), "y").bytes(room.version));
    client.expect_rejected(&[0x81, 0x82, 0x90]);
}

fn nul_in_a_filter_ends_the_connection_or_is_refused(room: &Room) {
    let mut client = room.client("a");
    client.send(&subscribe_bytes(room.version, 1, &[(b"a\0b", 0)], &[]));
    client.expect_rejected(&[0x81, 0x82, 0x8f]);
}

fn nul_in_a_client_id_is_refused(room: &Room) {
    assert_refused(room, &room.hello("a\0b").bytes());
}

/// Never UTF-8: a lone continuation, an overlong slash, a surrogate, what is beyond Unicode, a cut sequence.
const ILL_FORMED: [&[u8]; 5] = [b"\x80", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"];

fn ill_formed_utf8_in_a_topic_ends_the_connection(room: &Room) {
    for bytes in ILL_FORMED {
        let topic = [room.topic("x").as_bytes(), bytes].concat();
        let mut client = room.client("a");
        client.send(&Publish::new(topic, "y").bytes(room.version));
        client.expect_rejected(&[0x81, 0x82, 0x90]);
    }
}

fn ill_formed_utf8_in_a_filter_ends_the_connection(room: &Room) {
    for bytes in ILL_FORMED {
        let mut client = room.client("a");
        client.send(&subscribe_bytes(room.version, 1, &[(bytes, 0)], &[]));
        client.expect_rejected(&[0x81, 0x82, 0x8f]);
    }
}

fn ill_formed_utf8_in_a_client_id_is_refused(room: &Room) {
    for bytes in ILL_FORMED {
        let mut hello = room.hello("a");
        hello.id.extend_from_slice(bytes);
        assert_refused(room, &hello.bytes());
    }
}

fn ill_formed_utf8_in_a_will_topic_is_refused(room: &Room) {
    assert_refused(room, &room.hello("a").will(Publish::new(b"\xed\xa0\x80", "bye")).bytes());
}

fn ill_formed_utf8_in_a_user_name_is_refused(room: &Room) {
    let mut hello = room.hello("a");
    hello.user = Some(b"\xed\xa0\x80".to_vec());
    assert_refused(room, &hello.bytes());
}

fn ill_formed_utf8_in_a_user_property_ends_the_connection(room: &Room) {
    for pair in
        [property::user(b"\x80", b"v"), property::user(b"k", b"\xed\xa0\x80"), property::user("k", "\0")]
    {
        assert_ends(room, &Publish::new(room.topic("x"), "y").with(pair).bytes(Version::V5));
    }
}

fn ill_formed_utf8_in_a_content_type_ends_the_connection(room: &Room) {
    let wrong = property::bytes(property::CONTENT_TYPE, b"\xc0\xaf");
    assert_ends(room, &Publish::new(room.topic("x"), "y").with(wrong).bytes(Version::V5));
}

fn an_unknown_property_ends_the_connection(room: &Room) {
    for id in [0x00, 0x04, 0x7f] {
        let unknown = property::bytes(id, "x");
        assert_ends(room, &Publish::new(room.topic("x"), "y").with(unknown).bytes(Version::V5));
    }
}

fn a_property_that_does_not_belong_into_publish_ends_the_connection(room: &Room) {
    for stranger in [property::session_expiry(1), property::will_delay(1), property::receive_maximum(1)] {
        assert_ends(room, &Publish::new(room.topic("x"), "y").with(stranger).bytes(Version::V5));
    }
}

fn a_property_that_does_not_belong_into_an_acknowledgement_ends_the_connection(room: &Room) {
    let stranger = b"\x00\x01\x00\x05\x11\x00\x00\x00\x01";
    for first in [kind::PUBACK << 4, kind::PUBREC << 4, kind::PUBREL << 4 | 2, kind::PUBCOMP << 4] {
        assert_ends(room, &packet(first, stranger));
    }
}

fn a_reason_string_twice_ends_the_connection(room: &Room) {
    let twice = b"\x00\x01\x00\x08\x1f\x00\x01a\x1f\x00\x01b";
    for first in [kind::PUBACK << 4, kind::PUBREC << 4, kind::PUBREL << 4 | 2, kind::PUBCOMP << 4] {
        assert_ends(room, &packet(first, twice));
    }
}

fn a_property_that_does_not_belong_into_subscribe_ends_the_connection(room: &Room) {
    let filter = room.topic("x");
    for stranger in [property::session_expiry(1), property::bytes(property::REASON_STRING, "why")] {
        let bytes =
            subscribe_bytes(Version::V5, 1, &[(filter.as_bytes(), 0)], std::slice::from_ref(&stranger));
        assert_ends(room, &bytes);
        let mut body = vec![0, 1];
        Properties(vec![stranger]).push(&mut body);
        push_field(&mut body, filter.as_bytes());
        assert_ends(room, &packet(kind::UNSUBSCRIBE << 4 | 2, &body));
    }
}

fn a_property_that_does_not_belong_into_a_will_is_refused(room: &Room) {
    for stranger in [property::topic_alias(1), property::subscription_id(1), property::session_expiry(1)] {
        let will = Publish::new(room.topic("will"), "bye").with(stranger);
        assert_refused(room, &room.hello("a").will(will).bytes());
    }
}

fn a_property_that_does_not_belong_into_disconnect_ends_the_connection_with_the_will(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("will"), 0);
    let reason = property::bytes(property::REASON_STRING, "off to bed");
    for wrong in [vec![property::message_expiry(1)], vec![reason.clone(), reason]] {
        let mut client = room.hello("a").will(Publish::new(room.topic("will"), "bye")).open(room.broker);
        client.send(&disconnect_bytes(0, &wrong));
        client.expect_rejected(&[0x81, 0x82]);
        assert_eq!(watcher.message().text(), "bye", "that was no DISCONNECT");
    }
}

fn a_packet_that_ends_early_ends_the_connection(room: &Room) {
    for bytes in [
        &[kind::PUBLISH << 4, 1, 0][..],
        &[kind::PUBLISH << 4, 3, 0, 5, b'x'],
        &[kind::PUBLISH << 4 | 2, 4, 0, 1, b'x', 0],
        &[kind::PUBACK << 4, 1, 0],
        &[kind::PUBREL << 4 | 2, 0],
        &[kind::SUBSCRIBE << 4 | 2, 1, 0],
        &[kind::UNSUBSCRIBE << 4 | 2, 0],
    ] {
        assert_ends(room, bytes);
    }
}

fn a_packet_with_more_than_belongs_to_it_ends_the_connection(room: &Room) {
    let is_v5 = room.is_v5();
    assert_ends(room, if is_v5 { b"\x40\x05\x00\x01\x00\x00x" } else { b"\x40\x03\x00\x01x" });
    assert_ends(room, if is_v5 { b"\xe0\x03\x00\x00x" } else { b"\xe0\x01\x00" });
    let mut connect = room.hello("a").bytes();
    connect[1] += 1;
    connect.push(b'x');
    assert_refused(room, &connect);
}

fn dup_in_subscribe_and_pubrel_is_known_to_3_1(room: &Room) {
    let mut client = room.client("a");
    let filter = room.topic("x");
    let mut subscribe = subscribe_bytes(room.version, 1, &[(filter.as_bytes(), 1)], &[]);
    subscribe[0] |= 8;
    client.send(&subscribe);
    client.expect_ack(kind::SUBACK, 1);
    client.send(&Publish::new(&filter, "y").qos(2).id(2).bytes(room.version));
    client.expect_ack(kind::PUBREC, 2);
    client.send(&[kind::PUBREL << 4 | 2 | 8, 2, 0, 2]);
    client.expect_ack(kind::PUBCOMP, 2);
    assert_eq!(client.payloads(1), ["y"]);
}

fn a_publish_property_twice_ends_the_connection(room: &Room) {
    for twice in [
        property::number(property::PAYLOAD_FORMAT, 1),
        property::message_expiry(5),
        property::topic_alias(1),
        property::bytes(property::RESPONSE_TOPIC, "r"),
        property::bytes(property::CORRELATION_DATA, "c"),
        property::bytes(property::CONTENT_TYPE, "t"),
    ] {
        let message = Publish::new(room.topic("x"), "y").with(twice.clone()).with(twice);
        assert_ends(room, &message.bytes(Version::V5));
    }
}

fn a_property_length_beyond_the_packet_ends_the_connection(room: &Room) {
    assert_ends(room, &packet(kind::PUBLISH << 4, b"\x00\x01x\x7f\x01\x01"));
}

fn a_broken_connection_harms_no_other(room: &Room) {
    let mut good = room.client("good");
    good.subscribe(room.topic("#"), 1);
    assert_ends(room, &[0, 0]);
    good.publish(Publish::new(room.topic("x"), "still here").qos(1));
    assert_eq!(good.message().text(), "still here");
}
