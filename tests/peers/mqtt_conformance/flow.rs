//! What each side can take: receive maximum, maximum packet size, topic aliases (§3.1.2.11, §3.3.2.3.4, §4.9).

use crate::client::Connack;
use crate::wire::{Publish, Version, kind, packet, property, push_length};
use crate::{Check, Room, check};

pub const CHECKS: &[Check] = &[
    check!(no_more_than_the_receive_maximum_is_in_flight, V5 "3.3.4-7"),
    check!(qos_2_counts_until_pubcomp, V5 "4.9.0-2"),
    check!(pubrec_with_an_error_frees_a_place, V5 "4.9"),
    check!(qos_0_does_not_count, V5 "4.9.0-2"),
    check!(other_packets_are_answered_while_the_window_is_full, V5 "4.9.0-3"),
    check!(the_receive_maximum_is_of_the_connection, V5 "3.1.2.11.3"),
    check!(what_comes_again_keeps_within_the_receive_maximum, V5 "3.3.4-7"),
    check!(more_than_our_receive_maximum_ends_the_connection, V5 "3.3.4-8"),
    check!(as_many_as_our_receive_maximum_are_taken, V5 "3.3.4-9"),
    check!(a_message_above_the_clients_packet_size_is_not_sent, V5 "3.1.2-24"),
    check!(a_discarded_message_counts_as_sent, V5 "3.1.2-25"),
    check!(a_message_of_exactly_the_clients_packet_size_is_sent, V5 "3.1.2-24"),
    check!(a_retained_message_above_the_clients_packet_size_is_not_sent, V5 "3.1.2-24"),
    check!(a_queued_message_above_the_clients_packet_size_is_not_sent, V5 "3.1.2-25"),
    check!(a_packet_far_above_our_size_ends_the_connection, V5 "3.2.2-15"),
    check!(a_packet_a_byte_above_our_size_ends_the_connection, V5 "3.2.2-15"),
    check!(one_who_sends_on_still_hears_why_it_ends, V5 "4.13.1"),
    check!(a_packet_of_exactly_our_size_is_taken, V5 "3.2.2-15"),
    check!(a_huge_packet_ends_the_connection_before_5_too, V311 "4.8.0-2"),
    check!(an_alias_stands_for_its_topic, V5 "3.3.2.3.4"),
    check!(an_alias_can_be_given_another_topic, V5 "3.3.2-12"),
    check!(every_alias_up_to_the_maximum_can_be_used, V5 "3.2.2-17"),
    check!(an_alias_above_the_maximum_ends_the_connection, V5 "3.3.2-9"),
    check!(alias_0_ends_the_connection, V5 "3.3.2-8"),
    check!(an_alias_that_stands_for_nothing_ends_the_connection, V5 "3.3.2.3.4"),
    check!(an_alias_ends_with_its_connection, V5 "3.3.2-10"),
    check!(an_alias_of_one_client_is_not_anothers, V5 "3.3.2-10"),
    check!(an_alias_is_not_passed_on, V5 "3.3.2-11"),
    check!(no_alias_is_sent_to_one_who_takes_none, V5 "3.1.2-27"),
    check!(aliases_to_a_client_stay_within_its_maximum_and_name_one_topic_each, V5 "3.1.2-26"),
    check!(an_alias_is_known_at_every_qos, V5 "3.3.2.3.4"),
];

fn no_more_than_the_receive_maximum_is_in_flight(room: &Room) {
    let mut client = room.hello("a").with(property::receive_maximum(2)).open(room.broker);
    client.subscribe(room.topic("x"), 1);
    let mut publisher = room.client("p");
    for number in 0..6 {
        publisher.publish(Publish::new(room.topic("x"), number.to_string()).qos(1));
    }
    let mut open = vec![client.unacked(), client.unacked()];
    for number in 2..6 {
        client.expect_nothing();
        client.finish(&open.remove(0));
        let next = client.unacked();
        assert_eq!(next.text(), number.to_string());
        open.push(next);
    }
    for message in open {
        client.finish(&message);
    }
    client.expect_nothing();
}

fn qos_2_counts_until_pubcomp(room: &Room) {
    let mut client = room.hello("a").with(property::receive_maximum(1)).open(room.broker);
    client.subscribe(room.topic("x"), 2);
    let mut publisher = room.client("p");
    for text in ["1", "2"] {
        publisher.publish(Publish::new(room.topic("x"), text).qos(2));
    }
    let first = client.unacked();
    client.expect_nothing();
    client.ack(kind::PUBREC, first.id);
    client.expect_ack(kind::PUBREL, first.id);
    client.expect_nothing();
    client.ack(kind::PUBCOMP, first.id);
    assert_eq!(client.message().text(), "2");
}

fn pubrec_with_an_error_frees_a_place(room: &Room) {
    let mut client = room.hello("a").with(property::receive_maximum(1)).open(room.broker);
    client.subscribe(room.topic("x"), 2);
    let mut publisher = room.client("p");
    for text in ["1", "2"] {
        publisher.publish(Publish::new(room.topic("x"), text).qos(2));
    }
    let [high, low] = client.unacked().id.to_be_bytes();
    client.send(&packet(kind::PUBREC << 4, &[high, low, 0x83]));
    assert_eq!(client.message().text(), "2");
}

fn qos_0_does_not_count(room: &Room) {
    let mut client = room.hello("a").with(property::receive_maximum(1)).open(room.broker);
    client.subscribe(room.topic("x"), 1);
    room.publish(Publish::new(room.topic("x"), "1").qos(1));
    let first = client.unacked();
    let mut publisher = room.client("p");
    for _ in 0..3 {
        publisher.publish(Publish::new(room.topic("x"), "0"));
    }
    // A broker may hold QoS 0 back; it may not let it take the place of another.
    client.finish(&first);
    assert_eq!(client.payloads(3), ["0", "0", "0"]);
}

fn other_packets_are_answered_while_the_window_is_full(room: &Room) {
    let mut client = room.hello("a").with(property::receive_maximum(1)).open(room.broker);
    client.subscribe(room.topic("x"), 1);
    let mut publisher = room.client("p");
    for text in ["1", "2"] {
        publisher.publish(Publish::new(room.topic("x"), text).qos(1));
    }
    let first = client.unacked();
    client.ping();
    client.subscribe(room.topic("y"), 1);
    client.publish(Publish::new(room.topic("z"), "out").qos(2));
    client.expect_nothing();
    client.finish(&first);
    assert_eq!(client.message().text(), "2");
}

fn the_receive_maximum_is_of_the_connection(room: &Room) {
    let hello = room.hello("a").lasting();
    let mut client = hello.clone().with(property::receive_maximum(1)).open(room.broker);
    client.subscribe(room.topic("x"), 1);
    client.disconnect();
    let mut publisher = room.client("p");
    for number in 0..5 {
        publisher.publish(Publish::new(room.topic("x"), number.to_string()).qos(1));
    }
    let mut client = hello.open(room.broker);
    let all: Vec<String> = (0..5).map(|_| client.unacked().text()).collect();
    assert_eq!(all, ["0", "1", "2", "3", "4"], "65,535 when nothing is said");
}

fn what_comes_again_keeps_within_the_receive_maximum(room: &Room) {
    let hello = room.hello("a").lasting();
    let mut client = hello.open(room.broker);
    client.subscribe(room.topic("x"), 1);
    let mut publisher = room.client("p");
    for number in 0..5 {
        publisher.publish(Publish::new(room.topic("x"), number.to_string()).qos(1));
    }
    for _ in 0..5 {
        client.unacked();
    }
    client.vanish();
    let mut client = hello.with(property::receive_maximum(2)).open(room.broker);
    let mut open = vec![client.unacked(), client.unacked()];
    for number in 2..5 {
        client.expect_nothing();
        client.finish(&open.remove(0));
        let next = client.unacked();
        assert_eq!(next.text(), number.to_string());
        open.push(next);
    }
    for message in open {
        assert!(message.dup);
        client.finish(&message);
    }
    client.expect_nothing();
}

fn receive_maximum(connack: &Connack) -> u32 {
    connack.properties.number(property::RECEIVE_MAXIMUM).unwrap_or(65_535)
}

fn more_than_our_receive_maximum_ends_the_connection(room: &Room) {
    let (mut client, connack) = room.hello("a").open_with(room.broker);
    for id in 1..=receive_maximum(&connack) + 1 {
        client.send(&Publish::new(room.topic("x"), "y").qos(2).id(id as u16).bytes(Version::V5));
    }
    let said = client.expect_closed();
    let last = said.last().expect("a DISCONNECT");
    assert_eq!((last.kind(), last.disconnect_reason()), (kind::DISCONNECT, 0x93));
}

fn as_many_as_our_receive_maximum_are_taken(room: &Room) {
    let (mut client, connack) = room.hello("a").open_with(room.broker);
    let maximum = receive_maximum(&connack) as u16;
    let mut bytes = Vec::new();
    for id in 1..=maximum {
        bytes.extend(Publish::new(room.topic("x"), "y").qos(2).id(id).bytes(Version::V5));
    }
    client.send(&bytes);
    for id in 1..=maximum {
        client.expect_ack(kind::PUBREC, id);
    }
    for id in 1..=maximum {
        client.ack(kind::PUBREL, id);
    }
    for id in 1..=maximum {
        client.expect_ack(kind::PUBCOMP, id);
    }
}

fn a_message_above_the_clients_packet_size_is_not_sent(room: &Room) {
    for qos in [0, 1, 2] {
        let mut client = room.hello("a").with(property::maximum_packet_size(100)).open(room.broker);
        client.subscribe(room.topic("x"), 2);
        room.publish(Publish::new(room.topic("x"), "x".repeat(200)).qos(qos));
        room.publish(Publish::new(room.topic("x"), "small").qos(qos));
        assert_eq!(client.payloads(1), ["small"]);
        client.expect_nothing();
        client.disconnect();
    }
}

fn a_discarded_message_counts_as_sent(room: &Room) {
    let hello = room.hello("a").lasting().with(property::maximum_packet_size(100));
    let mut client = hello.with(property::receive_maximum(1)).open(room.broker);
    client.subscribe(room.topic("x"), 1);
    let mut publisher = room.client("p");
    for _ in 0..5 {
        publisher.publish(Publish::new(room.topic("x"), "x".repeat(200)).qos(1));
    }
    publisher.publish(Publish::new(room.topic("x"), "small").qos(1));
    assert_eq!(client.payloads(1), ["small"], "discarded messages take no place in the window");
    client.ping();
    client.disconnect();
    room.hello("a").lasting().open(room.broker).expect_nothing();
}

fn a_message_of_exactly_the_clients_packet_size_is_sent(room: &Room) {
    let message = |size: usize| Publish::new(room.topic("x"), "x".repeat(size)).qos(1).id(1);
    let head = message(0).bytes(Version::V5).len();
    let mut client = room.hello("a").with(property::maximum_packet_size(100)).open(room.broker);
    client.subscribe(room.topic("x"), 1);
    room.publish(message(100 - head));
    assert_eq!(client.message().payload.len(), 100 - head);
    room.publish(message(101 - head));
    client.expect_nothing();
}

fn a_retained_message_above_the_clients_packet_size_is_not_sent(room: &Room) {
    room.publish(Publish::new(room.topic("big"), "x".repeat(200)).qos(1).retained());
    room.publish(Publish::new(room.topic("small"), "small").qos(1).retained());
    let mut client = room.hello("a").with(property::maximum_packet_size(100)).open(room.broker);
    client.subscribe(room.topic("#"), 1);
    assert_eq!(client.payloads(1), ["small"]);
    client.expect_nothing();
}

fn a_queued_message_above_the_clients_packet_size_is_not_sent(room: &Room) {
    let hello = room.hello("a").lasting();
    let mut client = hello.open(room.broker);
    client.subscribe(room.topic("x"), 1);
    client.disconnect();
    room.publish(Publish::new(room.topic("x"), "x".repeat(200)).qos(1));
    room.publish(Publish::new(room.topic("x"), "small").qos(1));
    let mut client = hello.clone().with(property::maximum_packet_size(100)).open(room.broker);
    assert_eq!(client.payloads(1), ["small"]);
    client.ping();
    client.disconnect();
    hello.open(room.broker).expect_nothing();
}

/// A PUBLISH whose whole packet has this many bytes.
fn publish_of(room: &Room, size: usize) -> Vec<u8> {
    let message = |payload: usize| Publish::new(room.topic("x"), vec![b'x'; payload]).bytes(room.version);
    let overhead = message(size - 100).len() - (size - 100);
    let bytes = message(size - overhead);
    assert_eq!(bytes.len(), size);
    bytes
}

fn a_packet_far_above_our_size_ends_the_connection(room: &Room) {
    assert_too_large(room, 100_000);
}

fn a_packet_a_byte_above_our_size_ends_the_connection(room: &Room) {
    assert_too_large(room, 1);
}

fn assert_too_large(room: &Room, above: usize) {
    let (mut client, connack) = room.hello("a").open_with(room.broker);
    let size = connack.properties.number(property::MAXIMUM_PACKET_SIZE).expect("a maximum packet size");
    let bytes = publish_of(room, size as usize + above);
    // The size is known from the first bytes: the rest need not be read, and is not sent.
    client.send(&bytes[..5]);
    client.expect_disconnect(0x95);
}

fn one_who_sends_on_still_hears_why_it_ends(room: &Room) {
    let (mut client, connack) = room.hello("a").open_with(room.broker);
    let size = connack.properties.number(property::MAXIMUM_PACKET_SIZE).expect("a maximum packet size");
    // All of it, as a client does that has not looked.
    client.send(&publish_of(room, size as usize + 500_000));
    client.expect_disconnect(0x95);
    // More messages at once than may be unacknowledged.
    let (mut client, connack) = room.hello("a").open_with(room.broker);
    let mut bytes = Vec::new();
    for id in 1..=receive_maximum(&connack) as u16 + 500 {
        bytes.extend(Publish::new(room.topic("x"), "y").qos(2).id(id).bytes(Version::V5));
    }
    client.send(&bytes);
    client.expect_disconnect(0x93);
}

fn a_packet_of_exactly_our_size_is_taken(room: &Room) {
    let (mut client, connack) = room.hello("a").open_with(room.broker);
    let size = connack.properties.number(property::MAXIMUM_PACKET_SIZE).expect("a maximum packet size");
    client.send(&publish_of(room, size as usize));
    client.ping();
}

fn a_huge_packet_ends_the_connection_before_5_too(room: &Room) {
    let mut client = room.client("a");
    let mut head = vec![kind::PUBLISH << 4];
    push_length(&mut head, 268_435_455);
    client.send(&head);
    // Some of what was announced: a broker that waits for all of it is full before it can say no.
    client.send(&[b'x'; 10_000]);
    client.expect_rejected(&[]);
}

fn an_alias_stands_for_its_topic(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("#"), 0);
    client.publish(Publish::new(room.topic("x"), "1").with(property::topic_alias(1)));
    client.publish(Publish::new(room.topic("y"), "2").with(property::topic_alias(2)));
    client.publish(Publish::new("", "3").with(property::topic_alias(1)));
    client.publish(Publish::new("", "4").with(property::topic_alias(2)));
    let came: Vec<_> = (0..4).map(|_| client.message()).map(|m| (m.topic(), m.text())).collect();
    let expected = [("x", "1"), ("y", "2"), ("x", "3"), ("y", "4")];
    assert_eq!(came, expected.map(|(topic, text)| (room.topic(topic), text.to_owned())));
}

fn an_alias_can_be_given_another_topic(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("#"), 0);
    client.publish(Publish::new(room.topic("x"), "1").with(property::topic_alias(1)));
    client.publish(Publish::new(room.topic("y"), "2").with(property::topic_alias(1)));
    client.publish(Publish::new("", "3").with(property::topic_alias(1)));
    let topics = [client.message().topic(), client.message().topic(), client.message().topic()];
    assert_eq!(topics, ["x", "y", "y"].map(|topic| room.topic(topic)));
}

fn alias_maximum(connack: &Connack) -> u32 {
    connack.properties.number(property::TOPIC_ALIAS_MAXIMUM).unwrap_or(0)
}

fn every_alias_up_to_the_maximum_can_be_used(room: &Room) {
    let (mut client, connack) = room.hello("a").open_with(room.broker);
    client.subscribe(room.topic("#"), 0);
    let maximum = alias_maximum(&connack);
    for alias in 1..=maximum {
        let topic = room.topic(&alias.to_string());
        client.publish(Publish::new(topic, "set").with(property::topic_alias(alias)));
        client.message();
    }
    for alias in 1..=maximum {
        client.publish(Publish::new("", "used").with(property::topic_alias(alias)));
        assert_eq!(client.message().topic(), room.topic(&alias.to_string()));
    }
}

fn an_alias_above_the_maximum_ends_the_connection(room: &Room) {
    let (mut client, connack) = room.hello("a").open_with(room.broker);
    let above = property::topic_alias(alias_maximum(&connack) + 1);
    client.send(&Publish::new(room.topic("x"), "y").with(above).bytes(Version::V5));
    client.expect_rejected(&[0x94]);
}

fn alias_0_ends_the_connection(room: &Room) {
    let mut client = room.client("a");
    client.send(&Publish::new(room.topic("x"), "y").with(property::topic_alias(0)).bytes(Version::V5));
    client.expect_rejected(&[0x94, 0x82, 0x81]);
}

fn an_alias_that_stands_for_nothing_ends_the_connection(room: &Room) {
    let mut client = room.client("a");
    client.send(&Publish::new("", "y").with(property::topic_alias(1)).bytes(Version::V5));
    client.expect_rejected(&[0x82, 0x94]);
}

fn an_alias_ends_with_its_connection(room: &Room) {
    let mut client = room.hello("a").lasting().open(room.broker);
    client.publish(Publish::new(room.topic("x"), "1").qos(1).with(property::topic_alias(1)));
    client.disconnect();
    let mut client = room.hello("a").lasting().open(room.broker);
    client.send(&Publish::new("", "y").with(property::topic_alias(1)).bytes(Version::V5));
    client.expect_rejected(&[0x82, 0x94]);
}

fn an_alias_of_one_client_is_not_anothers(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("#"), 0);
    let (mut one, mut other) = (room.client("a"), room.client("b"));
    one.publish(Publish::new(room.topic("x"), "1").with(property::topic_alias(1)));
    other.publish(Publish::new(room.topic("y"), "2").with(property::topic_alias(1)));
    one.publish(Publish::new("", "3").with(property::topic_alias(1)));
    let topics = [watcher.message().topic(), watcher.message().topic(), watcher.message().topic()];
    assert_eq!(topics, ["x", "y", "x"].map(|topic| room.topic(topic)));
}

fn an_alias_is_not_passed_on(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("x"), 0);
    let mut client = room.client("a");
    for topic in [room.topic("x"), String::new()] {
        client.publish(Publish::new(topic, "y").with(property::topic_alias(1)));
        let message = watcher.message();
        assert_eq!(message.topic(), room.topic("x"));
        assert_eq!(message.properties.number(property::TOPIC_ALIAS), None);
    }
}

fn no_alias_is_sent_to_one_who_takes_none(room: &Room) {
    let hello = room.hello("b").with(property::number(property::TOPIC_ALIAS_MAXIMUM, 0));
    for hello in [room.hello("a"), hello] {
        let mut client = hello.open(room.broker);
        client.subscribe(room.topic("x"), 0);
        for _ in 0..3 {
            room.publish(Publish::new(room.topic("x"), "y"));
            let message = client.message();
            assert_eq!(message.properties.number(property::TOPIC_ALIAS), None);
            assert_eq!(message.topic(), room.topic("x"));
        }
    }
}

fn aliases_to_a_client_stay_within_its_maximum_and_name_one_topic_each(room: &Room) {
    let hello = room.hello("a").with(property::number(property::TOPIC_ALIAS_MAXIMUM, 2));
    let mut client = hello.open(room.broker);
    client.subscribe(room.topic("+"), 2);
    let mut known = std::collections::HashMap::new();
    for (number, name) in ["x", "y", "x", "z", "y", "z", "x"].into_iter().enumerate() {
        room.publish(Publish::new(room.topic(name), "v").qos(number as u8 % 3));
        let message = client.message();
        let topic = match message.properties.number(property::TOPIC_ALIAS) {
            None => message.topic(),
            Some(alias) => {
                assert!((1..=2).contains(&alias), "alias {alias}");
                if !message.topic().is_empty() {
                    known.insert(alias, message.topic());
                }
                known[&alias].clone()
            }
        };
        assert_eq!(topic, room.topic(name), "message {number}");
    }
}

fn an_alias_is_known_at_every_qos(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 2);
    client.publish(Publish::new(room.topic("x"), "0").qos(2).with(property::topic_alias(1)));
    client.publish(Publish::new("", "1").qos(1).with(property::topic_alias(1)));
    client.publish(Publish::new("", "2").qos(2).with(property::topic_alias(1)));
    let mut came = client.payloads(3);
    came.sort();
    assert_eq!(came, ["0", "1", "2"]);
}
