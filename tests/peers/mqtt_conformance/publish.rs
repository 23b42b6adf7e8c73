//! PUBLISH at every QoS, in both directions (§3.3, §4.3, §4.6).

use crate::client::Client;
use crate::wire::{Publish, Version, kind, packet};
use crate::{Check, Connect, Room, check};

pub const CHECKS: &[Check] = &[
    check!(qos_0_is_answered_by_nothing, V31 "4.1", V311 "4.3.1-1", V5 "4.3.1-1"),
    check!(qos_1_is_answered_by_puback, V31 "4.1", V311 "4.3.2-2", V5 "4.3.2-4"),
    check!(qos_2_is_answered_by_pubrec_and_pubcomp, V31 "4.1", V311 "4.3.3-2", V5 "4.3.3-8"),
    check!(any_packet_id_may_be_used, V311 "2.3.1-6", V5 "2.2.1-5"),
    check!(a_message_is_delivered_at_the_lower_qos, V31 "3.8", V311 "3.8.4-6", V5 "3.8.4-8"),
    check!(a_message_nobody_wants_is_acknowledged, V311 "3.3.4-1", V5 "3.3.4-1"),
    check!(a_client_gets_what_it_publishes_itself, V311 "3.3.5-1", V5 "3.8.3.1"),
    check!(retain_is_not_set_for_one_who_subscribed_before, V311 "3.3.1-9", V5 "3.3.1-12"),
    check!(dup_is_not_passed_on, V311 "3.3.1-3", V5 "3.3.1-3"),
    check!(an_empty_payload_is_delivered, V311 "3.3.3", V5 "3.3.3"),
    check!(any_bytes_are_delivered_as_they_are, V311 "3.3.3", V5 "3.3.3"),
    check!(a_megabyte_is_delivered, V311 "2.2.3", V5 "1.5.5-1"),
    check!(lengths_around_each_step_of_the_length_field, V311 "2.2.3", V5 "1.5.5-1"),
    check!(a_length_with_more_bytes_than_needed_is_understood_or_refused, V311 "2.2.3", V5 "1.5.5-1"),
    check!(messages_of_one_client_stay_in_order, V31 "4.2", V311 "4.6.0-6", V5 "4.6.0-5"),
    check!(pubacks_come_in_the_order_of_the_publishes, V311 "4.6.0-2", V5 "4.6.0-2"),
    check!(pubrecs_come_in_the_order_of_the_publishes, V311 "4.6.0-3", V5 "4.6.0-3"),
    check!(a_qos_1_message_sent_twice_is_acknowledged_twice, V311 "4.3.2-2", V5 "4.3.2-5"),
    check!(a_qos_2_message_sent_twice_is_delivered_once, V31 "4.1", V311 "4.3.3-2", V5 "4.3.3-10"),
    check!(a_qos_2_message_sent_twice_over_a_reconnect_is_delivered_once, V311 "4.3.3-2", V5 "4.3.3-10"),
    check!(a_released_id_may_carry_another_message, V311 "4.3.3-2", V5 "4.3.3-12"),
    check!(pubrel_is_answered_as_often_as_it_comes, V31 "3.6", V311 "4.3.3-2", V5 "4.3.3-11"),
    check!(pubrel_for_an_unknown_id_is_answered_and_named, V5 "3.7.2-1"),
    check!(pubrel_after_a_reconnect_is_answered, V311 "4.4.0-1", V5 "4.4.0-1"),
    check!(pubrel_is_sent_again_after_a_reconnect, V31 "4.2", V311 "4.4.0-1", V5 "4.4.0-1"),
    check!(publish_is_not_sent_again_once_pubrec_came, V311 "4.3.3-1", V5 "4.3.3-6"),
    check!(a_repeated_pubrec_is_answered_by_pubrel, V311 "4.3.3-1", V5 "4.3.3-4"),
    check!(pubrec_with_an_error_ends_the_exchange, V5 "4.4.0-2"),
    check!(puback_with_an_error_ends_the_exchange, V5 "4.4.0-2"),
    check!(acknowledgements_out_of_order_are_taken, V311 "4.3.2-1", V5 "4.3.2-3"),
    check!(acknowledgements_of_nothing_are_passed_over, V311 "4.3.2-1", V5 "4.3.2-3"),
    check!(acknowledgements_with_properties_are_read, V5 "3.4.2-1"),
    check!(ids_in_flight_differ, V311 "2.3.1-4", V5 "2.2.1-4"),
    check!(three_packets_in_one_segment_are_three, V31 "2.1", V311 "4.2.0-1", V5 "4.2-1"),
    check!(both_directions_use_ids_of_their_own, V311 "2.3.1-4", V5 "2.2.1"),
    check!(five_thousand_publishes_at_once_are_all_acknowledged, V31 "4.1", V311 "4.3.2-2"),
    check!(a_message_we_refuse_is_acknowledged_or_ends_the_connection, V311 "3.3.5-2", V5 "3.4.2-1"),
    check!(a_message_we_refuse_frees_its_id, V5 "4.3.3-9"),
    check!(everyone_who_subscribed_gets_a_copy, V31 "3.3", V311 "4.5.0-1", V5 "4.5.0-1"),
];

fn qos_0_is_answered_by_nothing(room: &Room) {
    let mut client = room.client("a");
    client.send(&Publish::new(room.topic("x"), "y").bytes(room.version));
    client.expect_nothing();
}

fn qos_1_is_answered_by_puback(room: &Room) {
    let mut client = room.client("a");
    client.send(&Publish::new(room.topic("x"), "y").qos(1).id(7).bytes(room.version));
    let ack = client.next();
    assert_eq!((ack.first, ack.id()), (kind::PUBACK << 4, 7));
    assert!(ack.reason() < 0x80, "{ack:02x?}");
    client.expect_nothing();
}

fn qos_2_is_answered_by_pubrec_and_pubcomp(room: &Room) {
    let mut client = room.client("a");
    client.send(&Publish::new(room.topic("x"), "y").qos(2).id(7).bytes(room.version));
    let pubrec = client.next();
    assert_eq!((pubrec.first, pubrec.id()), (kind::PUBREC << 4, 7));
    assert!(pubrec.reason() < 0x80, "{pubrec:02x?}");
    client.ack(kind::PUBREL, 7);
    let pubcomp = client.next();
    assert_eq!((pubcomp.first, pubcomp.id(), pubcomp.reason()), (kind::PUBCOMP << 4, 7, 0));
    client.expect_nothing();
}

fn any_packet_id_may_be_used(room: &Room) {
    let mut client = room.client("a");
    for id in [1, 255, 256, 0x7fff, 0x8000, 0xffff] {
        client.publish(Publish::new(room.topic("x"), "y").qos(1).id(id));
        client.publish(Publish::new(room.topic("x"), "y").qos(2).id(id));
    }
}

fn a_message_is_delivered_at_the_lower_qos(room: &Room) {
    for granted in [0, 1, 2] {
        let mut client = room.client("a");
        client.subscribe(room.topic("x"), granted);
        for published in [0, 1, 2] {
            room.publish(Publish::new(room.topic("x"), "y").qos(published));
            assert_eq!(client.message().qos, granted.min(published), "{published} to {granted}");
        }
        client.disconnect();
    }
}

fn a_message_nobody_wants_is_acknowledged(room: &Room) {
    let mut client = room.client("a");
    for qos in [1, 2] {
        client.publish(Publish::new(room.topic("nobody"), "y").qos(qos));
    }
}

fn a_client_gets_what_it_publishes_itself(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 2);
    for qos in [0, 1, 2] {
        client.publish(Publish::new(room.topic("x"), qos.to_string()).qos(qos));
        assert_eq!(client.message().text(), qos.to_string());
    }
}

fn retain_is_not_set_for_one_who_subscribed_before(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1);
    room.publish(Publish::new(room.topic("x"), "y").qos(1).retained());
    assert!(!client.message().retain);
}

fn dup_is_not_passed_on(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 2);
    for qos in [1, 2] {
        room.publish(Publish::new(room.topic("x"), "y").qos(qos).dup());
        assert!(!client.message().dup);
    }
}

fn an_empty_payload_is_delivered(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 2);
    for qos in [0, 1, 2] {
        client.publish(Publish::new(room.topic("x"), "").qos(qos));
        assert!(client.message().payload.is_empty());
    }
}

fn any_bytes_are_delivered_as_they_are(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1);
    let payload: Vec<u8> = (0..=255).collect();
    client.publish(Publish::new(room.topic("x"), &payload).qos(1));
    assert_eq!(client.message().payload, payload);
}

fn a_megabyte_is_delivered(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1);
    let payload: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    client.publish(Publish::new(room.topic("x"), &payload).qos(1));
    assert!(client.message().payload == payload);
}

fn lengths_around_each_step_of_the_length_field(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 0);
    let empty = Publish::new(room.topic("x"), "").bytes(room.version).len() - 2;
    for remaining in [127, 128, 16_383, 16_384] {
        let payload = vec![b'x'; remaining - empty];
        client.publish(Publish::new(room.topic("x"), &payload).qos(0));
        assert_eq!(client.message().payload.len(), payload.len());
    }
}

fn a_length_with_more_bytes_than_needed_is_understood_or_refused(room: &Room) {
    let mut client = room.client("a");
    client.send(&[kind::PINGREQ << 4, 0x80, 0x00]);
    match client.read(crate::client::PATIENCE) {
        Ok(Some(packet)) if packet.kind() == kind::PINGRESP => client.ping(),
        Ok(Some(packet)) => assert_eq!(packet.kind(), kind::DISCONNECT),
        Ok(None) => panic!("neither answered nor ended"),
        Err(_) => {}
    }
}

fn messages_of_one_client_stay_in_order(room: &Room) {
    for qos in [0, 1, 2] {
        let mut client = room.client("a");
        client.subscribe(room.topic("#"), 2);
        let mut publisher = room.client("p");
        let texts: Vec<String> = (0..50).map(|n| n.to_string()).collect();
        for (number, text) in texts.iter().enumerate() {
            // On two topics: the order holds for each, and here for both.
            let topic = room.topic(if number % 2 == 0 { "even" } else { "odd" });
            publisher.publish(Publish::new(topic, text).qos(qos));
        }
        let mut came: [Vec<String>; 2] = Default::default();
        for _ in 0..50 {
            let message = client.message();
            came[usize::from(message.topic().ends_with("odd"))].push(message.text());
        }
        let every_other = |start: usize| texts.iter().skip(start).step_by(2).cloned().collect::<Vec<_>>();
        assert_eq!(came, [every_other(0), every_other(1)]);
        client.disconnect();
    }
}

fn pubacks_come_in_the_order_of_the_publishes(room: &Room) {
    assert_answered_in_order(room, 1, kind::PUBACK);
}

fn pubrecs_come_in_the_order_of_the_publishes(room: &Room) {
    assert_answered_in_order(room, 2, kind::PUBREC);
}

fn assert_answered_in_order(room: &Room, qos: u8, kind: u8) {
    let mut client = room.client("a");
    let ids = [5, 3, 9, 1, 7];
    let mut bytes = Vec::new();
    for id in ids {
        bytes.extend(Publish::new(room.topic("x"), "y").qos(qos).id(id).bytes(room.version));
    }
    client.send(&bytes);
    for id in ids {
        client.expect_ack(kind, id);
    }
}

fn a_qos_1_message_sent_twice_is_acknowledged_twice(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("x"), 0);
    let mut client = room.client("a");
    let message = Publish::new(room.topic("x"), "y").qos(1).id(3);
    client.publish(message.clone());
    client.publish(message.dup());
    assert_eq!(watcher.payloads(2), ["y", "y"], "an acknowledged id is free for a new message");
}

fn a_qos_2_message_sent_twice_is_delivered_once(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("x"), 0);
    let mut client = room.client("a");
    let message = Publish::new(room.topic("x"), "y").qos(2).id(3);
    client.send(&message.bytes(room.version));
    client.expect_ack(kind::PUBREC, 3);
    client.send(&message.dup().bytes(room.version));
    client.expect_ack(kind::PUBREC, 3);
    client.ack(kind::PUBREL, 3);
    client.expect_ack(kind::PUBCOMP, 3);
    assert_eq!(watcher.payloads(1), ["y"]);
    watcher.expect_nothing();
}

fn a_qos_2_message_sent_twice_over_a_reconnect_is_delivered_once(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("x"), 2);
    let message = Publish::new(room.topic("x"), "y").qos(2).id(3);
    let mut client = room.hello("a").lasting().open(room.broker);
    client.send(&message.bytes(room.version));
    client.expect_ack(kind::PUBREC, 3);
    client.vanish();
    let mut client = room.hello("a").lasting().open(room.broker);
    client.send(&message.dup().bytes(room.version));
    client.expect_ack(kind::PUBREC, 3);
    client.ack(kind::PUBREL, 3);
    client.expect_ack(kind::PUBCOMP, 3);
    assert_eq!(watcher.payloads(1), ["y"]);
    watcher.expect_nothing();
}

fn a_released_id_may_carry_another_message(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("x"), 2);
    let mut client = room.client("a");
    for text in ["1", "2", "3"] {
        client.publish(Publish::new(room.topic("x"), text).qos(2).id(3));
    }
    assert_eq!(watcher.payloads(3), ["1", "2", "3"]);
}

fn pubrel_is_answered_as_often_as_it_comes(room: &Room) {
    let mut client = room.client("a");
    client.publish(Publish::new(room.topic("x"), "y").qos(2).id(3));
    for _ in 0..2 {
        client.ack(kind::PUBREL, 3);
        client.expect_ack(kind::PUBCOMP, 3);
    }
    client.ack(kind::PUBREL, 77);
    client.expect_ack(kind::PUBCOMP, 77);
}

fn pubrel_for_an_unknown_id_is_answered_and_named(room: &Room) {
    let mut client = room.client("a");
    client.ack(kind::PUBREL, 77);
    let pubcomp = client.expect_ack(kind::PUBCOMP, 77);
    assert!([0, 0x92].contains(&pubcomp.reason()), "{pubcomp:02x?}");
    client.ping();
}

fn pubrel_after_a_reconnect_is_answered(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("x"), 2);
    let mut client = room.hello("a").lasting().open(room.broker);
    client.send(&Publish::new(room.topic("x"), "y").qos(2).id(3).bytes(room.version));
    client.expect_ack(kind::PUBREC, 3);
    client.vanish();
    let mut client = room.hello("a").lasting().open(room.broker);
    client.ack(kind::PUBREL, 3);
    client.expect_ack(kind::PUBCOMP, 3);
    assert_eq!(watcher.payloads(1), ["y"]);
    watcher.expect_nothing();
}

/// A client with a lasting session that has got a QoS 2 message and said PUBREC.
fn half_received(room: &Room) -> (Client, u16) {
    let mut client = room.hello("a").lasting().open(room.broker);
    client.subscribe(room.topic("x"), 2);
    room.publish(Publish::new(room.topic("x"), "y").qos(2));
    let message = client.unacked();
    client.ack(kind::PUBREC, message.id);
    client.expect_ack(kind::PUBREL, message.id);
    (client, message.id)
}

fn pubrel_is_sent_again_after_a_reconnect(room: &Room) {
    let (client, id) = half_received(room);
    client.vanish();
    for _ in 0..2 {
        let mut client = room.hello("a").lasting().open(room.broker);
        let again = client.next();
        assert_eq!((again.first, again.id()), (kind::PUBREL << 4 | 2, id));
        client.vanish();
    }
    let mut client = room.hello("a").lasting().open(room.broker);
    client.expect_ack(kind::PUBREL, id);
    client.ack(kind::PUBCOMP, id);
    client.ping();
    client.vanish();
    room.hello("a").lasting().open(room.broker).expect_nothing();
}

fn publish_is_not_sent_again_once_pubrec_came(room: &Room) {
    let (client, id) = half_received(room);
    client.vanish();
    let mut client = room.hello("a").lasting().open(room.broker);
    client.expect_ack(kind::PUBREL, id);
    client.expect_nothing();
}

fn a_repeated_pubrec_is_answered_by_pubrel(room: &Room) {
    let (mut client, id) = half_received(room);
    client.ack(kind::PUBREC, id);
    client.expect_ack(kind::PUBREL, id);
    client.ack(kind::PUBCOMP, id);
    client.expect_nothing();
}

fn pubrec_with_an_error_ends_the_exchange(room: &Room) {
    assert_error_ends(room, 2, kind::PUBREC);
}

fn puback_with_an_error_ends_the_exchange(room: &Room) {
    assert_error_ends(room, 1, kind::PUBACK);
}

fn assert_error_ends(room: &Room, qos: u8, kind: u8) {
    let mut client = room.hello("a").lasting().open(room.broker);
    client.subscribe(room.topic("x"), 2);
    room.publish(Publish::new(room.topic("x"), "y").qos(qos));
    let [high, low] = client.unacked().id.to_be_bytes();
    client.send(&packet(kind << 4, &[high, low, 0x80, 0]));
    client.expect_nothing();
    client.vanish();
    room.hello("a").lasting().open(room.broker).expect_nothing();
}

fn acknowledgements_out_of_order_are_taken(room: &Room) {
    let mut client = room.hello("a").lasting().open(room.broker);
    client.subscribe(room.topic("x"), 2);
    let mut publisher = room.client("p");
    for number in 0..6 {
        publisher.publish(Publish::new(room.topic("x"), number.to_string()).qos(1 + number % 2));
    }
    let messages: Vec<_> = (0..6).map(|_| client.unacked()).collect();
    for message in messages.iter().rev() {
        client.finish(message);
    }
    client.ping();
    client.vanish();
    room.hello("a").lasting().open(room.broker).expect_nothing();
}

fn acknowledgements_of_nothing_are_passed_over(room: &Room) {
    let mut client = room.client("a");
    client.ack(kind::PUBACK, 77);
    client.ack(kind::PUBCOMP, 77);
    client.ping();
    client.publish(Publish::new(room.topic("x"), "y").qos(1));
}

fn acknowledgements_with_properties_are_read(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 2);
    let tail = b"\x00\x0c\x1f\x00\x02ok\x26\x00\x01a\x00\x01b";
    room.publish(Publish::new(room.topic("x"), "1").qos(1));
    let id = client.unacked().id.to_be_bytes();
    client.send(&packet(kind::PUBACK << 4, &[&id[..], tail].concat()));
    room.publish(Publish::new(room.topic("x"), "2").qos(2));
    let id = client.unacked().id.to_be_bytes();
    client.send(&packet(kind::PUBREC << 4, &[&id[..], tail].concat()));
    client.expect_ack(kind::PUBREL, u16::from_be_bytes(id));
    // Reason without properties.
    client.send(&packet(kind::PUBCOMP << 4, &[&id[..], &[0]].concat()));
    client.expect_nothing();
}

fn ids_in_flight_differ(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 2);
    let mut publisher = room.client("p");
    for number in 0..15 {
        publisher.publish(Publish::new(room.topic("x"), "y").qos(1 + number % 2));
    }
    let mut ids: Vec<u16> = (0..15).map(|_| client.unacked().id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 15);
}

fn three_packets_in_one_segment_are_three(room: &Room) {
    let mut client = room.client("a");
    let mut bytes = Vec::new();
    for id in 1..=2 {
        bytes.extend(Publish::new(room.topic("x"), "y").qos(1).id(id).bytes(room.version));
    }
    let third = Publish::new(room.topic("x"), "y").qos(1).id(3).bytes(room.version);
    bytes.extend(&third[..5]);
    client.send(&bytes);
    client.expect_ack(kind::PUBACK, 1);
    client.expect_ack(kind::PUBACK, 2);
    client.send(&third[5..]);
    client.expect_ack(kind::PUBACK, 3);
}

fn both_directions_use_ids_of_their_own(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 2);
    room.publish(Publish::new(room.topic("x"), "in").qos(2));
    let message = client.unacked();
    client.publish(Publish::new(room.topic("other"), "out").qos(2).id(message.id));
    client.finish(&message);
    client.expect_nothing();
}

fn five_thousand_publishes_at_once_are_all_acknowledged(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("x"), 0);
    let mut client = room.client("a");
    let mut bytes = Vec::new();
    for id in 1..=5_000 {
        bytes.extend(Publish::new(room.topic("x"), id.to_string()).qos(1).id(id).bytes(room.version));
    }
    client.send(&bytes);
    for id in 1..=5_000 {
        client.expect_ack(kind::PUBACK, id);
    }
    let texts: Vec<String> = (1..=5_000).map(|id: u16| id.to_string()).collect();
    assert_eq!(watcher.payloads(5_000), texts);
}

/// `$SYS` is the broker's own.
fn a_message_we_refuse_is_acknowledged_or_ends_the_connection(room: &Room) {
    for (qos, kind) in [(1, kind::PUBACK), (2, kind::PUBREC)] {
        let mut watcher = room.client("w");
        watcher.subscribe(format!("$SYS/{}", room.topic("x")), 0);
        let mut client = room.client("a");
        let message = Publish::new(format!("$SYS/{}", room.topic("x")), "y").qos(qos).id(1);
        client.send(&message.bytes(room.version));
        match client.read(crate::client::PATIENCE) {
            Ok(Some(packet)) if packet.kind() == kind => assert_eq!(packet.id(), 1),
            Ok(Some(packet)) => assert!(room.is_v5() && packet.kind() == kind::DISCONNECT, "{packet:02x?}"),
            Ok(None) => panic!("QoS {qos}: neither acknowledged nor ended"),
            Err(_) => {}
        }
        watcher.expect_nothing();
    }
}

fn a_message_we_refuse_frees_its_id(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("x"), 0);
    let mut client = room.client("a");
    client.send(&Publish::new(format!("$SYS/{}", room.topic("x")), "y").qos(2).id(1).bytes(room.version));
    let refused = match client.read(crate::client::PATIENCE) {
        Ok(Some(packet)) if packet.kind() == kind::PUBREC => packet,
        // A broker that ends the connection instead has nothing to hold to.
        Ok(Some(packet)) if packet.kind() == kind::DISCONNECT => return,
        Err(_) => return,
        Ok(other) => panic!("{other:02x?}"),
    };
    if refused.reason() < 0x80 {
        // Taken and dropped: then the exchange goes on.
        client.ack(kind::PUBREL, 1);
        client.expect_ack(kind::PUBCOMP, 1);
    }
    client.publish(Publish::new(room.topic("x"), "another").qos(2).id(1));
    assert_eq!(watcher.payloads(1), ["another"]);
}

fn everyone_who_subscribed_gets_a_copy(room: &Room) {
    let mut clients: Vec<Client> = [Version::V31, Version::V311, Version::V5]
        .into_iter()
        .cycle()
        .take(12)
        .enumerate()
        .map(|(number, version)| Connect::new(version, room.id(&format!("c{number}"))).open(room.broker))
        .collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.subscribe(room.topic("x"), (number % 3) as u8);
    }
    room.publish(Publish::new(room.topic("x"), "y").qos(2));
    for (number, client) in clients.iter_mut().enumerate() {
        let message = client.message();
        assert_eq!((message.text().as_str(), usize::from(message.qos)), ("y", number % 3));
        client.expect_nothing();
    }
}
