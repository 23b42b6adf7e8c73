//! SUBSCRIBE and UNSUBSCRIBE (§3.8 to §3.11, §3.3.5).

use crate::client::subscribe_bytes;
use crate::wire::{Publish, Version, kind, packet, property, push_field};
use crate::{Check, Room, check};

pub const CHECKS: &[Check] = &[
    check!(subscribe_is_answered_by_suback, V31 "3.9", V311 "3.8.4-1", V5 "3.8.4-1"),
    check!(suback_has_the_id_of_subscribe, V311 "3.8.4-2", V5 "3.8.4-2"),
    check!(suback_has_a_code_for_each_filter_in_order, V31 "3.9", V311 "3.9.3-1", V5 "3.9.3-1"),
    check!(a_bad_filter_among_good_ones_harms_none_of_them, V311 "3.8.4-5", V5 "3.8.4-6"),
    check!(fifty_filters_in_one_subscribe, V311 "3.8.4-4", V5 "3.8.4-5"),
    check!(subscribing_again_replaces_the_qos, V31 "3.8", V311 "3.8.4-3", V5 "3.8.4-3"),
    check!(subscribing_again_makes_no_second_copy, V311 "3.8.4-3", V5 "3.8.4-3"),
    check!(subscribing_again_loses_no_message, V311 "3.8.4-3", V5 "3.8.4-4"),
    check!(a_session_may_have_five_hundred_subscriptions, V311 "3.8.4-1", V5 "3.8.4-1"),
    check!(overlapping_filters_bring_the_highest_qos, V311 "3.3.5-1", V5 "3.3.4-2"),
    check!(unsubscribe_is_answered_by_unsuback, V31 "3.11", V311 "3.10.4-4", V5 "3.10.4-4"),
    check!(unsuback_comes_even_when_nothing_was_subscribed, V311 "3.10.4-5", V5 "3.10.4-5"),
    check!(unsuback_comes_once_for_many_filters, V311 "3.10.4-6", V5 "3.10.4-6"),
    check!(unsuback_has_a_code_for_each_filter, V5 "3.11.3-1"),
    check!(unsuback_before_5_has_no_codes, V31 "3.11", V311 "3.11"),
    check!(nothing_comes_after_unsubscribe, V31 "3.10", V311 "3.10.4-2", V5 "3.10.4-2"),
    check!(only_the_same_filter_is_unsubscribed, V311 "3.10.4-1", V5 "3.10.4-1"),
    check!(what_is_under_way_is_finished_after_unsubscribe, V311 "3.10.4-3", V5 "3.10.4-3"),
    check!(unsubscribe_outlives_the_connection, V311 "3.10.4-1", V5 "3.10.4-1"),
    check!(suback_comes_before_what_is_published_later, V311 "3.8.4-1", V5 "3.8.4-1"),
    check!(a_subscription_id_comes_with_every_message, V5 "3.3.4-3"),
    check!(overlapping_subscriptions_bring_all_their_ids, V5 "3.3.4-4"),
    check!(a_subscription_without_an_id_brings_none, V5 "3.3.4-3"),
    check!(one_subscribe_gives_its_id_to_all_its_filters, V5 "3.8.2.1.2"),
    check!(subscribing_again_replaces_the_id, V5 "3.8.4-3"),
    check!(retained_messages_come_with_the_id, V5 "3.3.4-3"),
    check!(queued_messages_come_with_the_id, V5 "3.3.4-3"),
    check!(a_subscription_id_outlives_the_connection, V5 "3.8.2.1.2"),
    check!(a_subscription_id_has_up_to_four_bytes, V5 "3.8.2.1.2"),
    check!(subscription_id_0_ends_the_connection, V5 "3.8.2.1.2"),
    check!(two_subscription_ids_end_the_connection, V5 "3.8.2.1.2"),
    check!(a_publish_with_a_subscription_id_ends_the_connection, V5 "3.3.4-6"),
    check!(subscribe_and_unsubscribe_may_have_user_properties, V5 "3.8.2.1.3"),
    check!(acknowledgements_have_no_properties_that_nobody_asked_for, V5 "3.1.2-29"),
];

fn subscribe_is_answered_by_suback(room: &Room) {
    let mut client = room.client("a");
    for qos in [0, 1, 2] {
        let codes = client.subscribe_all(&[(room.topic("x").as_bytes(), qos)], &[]);
        assert_eq!(codes, [qos]);
    }
    client.expect_nothing();
}

fn suback_has_the_id_of_subscribe(room: &Room) {
    let mut client = room.client("a");
    for id in [1, 0x0100, 0xffff] {
        client.send(&subscribe_bytes(room.version, id, &[(room.topic("x").as_bytes(), 0)], &[]));
        client.expect_ack(kind::SUBACK, id);
    }
}

fn suback_has_a_code_for_each_filter_in_order(room: &Room) {
    let mut client = room.client("a");
    let filters = ["a", "b", "c/#", "+/d"].map(|filter| room.topic(filter));
    let asked: Vec<(&[u8], u8)> = filters.iter().map(String::as_bytes).zip([2, 0, 1, 2]).collect();
    assert_eq!(client.subscribe_all(&asked, &[]), [2, 0, 1, 2]);
    client.expect_nothing();
}

fn a_bad_filter_among_good_ones_harms_none_of_them(room: &Room) {
    let mut client = room.client("a");
    let (one, two) = (room.topic("one"), room.topic("two"));
    client.send(&subscribe_bytes(
        room.version,
        1,
        &[(one.as_bytes(), 1), (b"a/#/b", 1), (two.as_bytes(), 1)],
        &[],
    ));
    // A malformed filter may also end the connection.
    let answer = match client.read(crate::client::PATIENCE) {
        Ok(Some(packet)) if packet.kind() == kind::SUBACK => packet,
        Ok(Some(packet)) if packet.kind() == kind::DISCONNECT => return,
        Err(_) => return,
        other => panic!("{other:02x?}"),
    };
    let expected = if room.is_v5() { 0x8f } else { 0x80 };
    assert_eq!(answer.codes(room.version), [1, expected, 1]);
    for topic in [one, two] {
        client.publish(Publish::new(&topic, "y").qos(1));
        assert_eq!(client.message().topic(), topic);
    }
}

fn fifty_filters_in_one_subscribe(room: &Room) {
    let mut client = room.client("a");
    let filters: Vec<String> = (0..50).map(|number| room.topic(&number.to_string())).collect();
    let asked: Vec<(&[u8], u8)> = filters.iter().map(|filter| (filter.as_bytes(), 1)).collect();
    assert_eq!(client.subscribe_all(&asked, &[]), [1; 50]);
    client.publish(Publish::new(&filters[49], "y").qos(1));
    assert_eq!(client.message().topic(), filters[49]);
}

fn subscribing_again_replaces_the_qos(room: &Room) {
    let mut client = room.client("a");
    for qos in [2, 0, 1] {
        client.subscribe(room.topic("x"), qos);
        room.publish(Publish::new(room.topic("x"), "y").qos(2));
        assert_eq!(client.message().qos, qos);
    }
}

fn subscribing_again_makes_no_second_copy(room: &Room) {
    let mut client = room.client("a");
    for _ in 0..3 {
        client.subscribe(room.topic("x"), 1);
    }
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    assert_eq!(client.payloads(1), ["y"]);
    client.expect_nothing();
    client.unsubscribe(&[room.topic("x").as_bytes()]);
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    client.expect_nothing();
}

fn subscribing_again_loses_no_message(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1);
    let mut publisher = room.client("p");
    let texts: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    for text in &texts {
        publisher.publish(Publish::new(room.topic("x"), text).qos(1));
        client.subscribe(room.topic("x"), 1);
    }
    assert_eq!(client.payloads(100), texts);
    client.expect_nothing();
}

fn a_session_may_have_five_hundred_subscriptions(room: &Room) {
    let mut client = room.client("a");
    for number in 0..500 {
        client.subscribe(room.topic(&format!("{number}/+")), 1);
    }
    for number in [0, 250, 499] {
        room.publish(Publish::new(room.topic(&format!("{number}/x")), "y").qos(1));
        assert_eq!(client.message().topic(), room.topic(&format!("{number}/x")));
    }
    client.unsubscribe(&[room.topic("250/+").as_bytes()]);
    room.publish(Publish::new(room.topic("250/x"), "y").qos(1));
    client.expect_nothing();
}

fn overlapping_filters_bring_the_highest_qos(room: &Room) {
    let mut client = room.client("a");
    for (filter, qos) in [("a/+", 0), ("a/b", 2), ("#", 1)] {
        client.subscribe(room.topic(filter), qos);
    }
    room.publish(Publish::new(room.topic("a/b"), "y").qos(2));
    // One copy at the highest QoS, or one for each filter at its own.
    let mut qos = vec![client.message().qos];
    client.ping();
    while let Ok(Some(packet)) = client.read(std::time::Duration::from_millis(150)) {
        let message = packet.publish(room.version);
        client.finish(&message);
        qos.push(message.qos);
    }
    qos.sort_unstable();
    assert!(qos == [2] || qos == [0, 1, 2], "{qos:?}");
}

fn unsubscribe_bytes(room: &Room, id: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if room.is_v5() {
        body.push(0);
    }
    for filter in filters {
        push_field(&mut body, filter.as_bytes());
    }
    packet(kind::UNSUBSCRIBE << 4 | 2, &body)
}

fn unsubscribe_is_answered_by_unsuback(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1);
    for id in [0x0100, 0xffff] {
        client.send(&unsubscribe_bytes(room, id, &[&room.topic("x")]));
        assert_eq!(client.expect_ack(kind::UNSUBACK, id).first, kind::UNSUBACK << 4);
    }
}

fn unsuback_comes_even_when_nothing_was_subscribed(room: &Room) {
    let mut client = room.client("a");
    client.send(&unsubscribe_bytes(room, 7, &[&room.topic("never")]));
    client.expect_ack(kind::UNSUBACK, 7);
}

fn unsuback_comes_once_for_many_filters(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1);
    client.subscribe(room.topic("y"), 1);
    client.send(&unsubscribe_bytes(room, 7, &[&room.topic("x"), &room.topic("z"), &room.topic("y")]));
    client.expect_ack(kind::UNSUBACK, 7);
    client.expect_nothing();
    for topic in ["x", "y"] {
        room.publish(Publish::new(room.topic(topic), "y").qos(1));
    }
    client.expect_nothing();
}

fn unsuback_has_a_code_for_each_filter(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1);
    client.subscribe(room.topic("y/#"), 1);
    let filters = ["never", "x", "y/+", "y/#", "x"].map(|filter| room.topic(filter));
    let codes = client.unsubscribe(&filters.each_ref().map(String::as_bytes));
    assert_eq!(codes, [0x11, 0, 0x11, 0, 0x11]);
}

fn unsuback_before_5_has_no_codes(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1);
    let codes = client.unsubscribe(&[room.topic("x").as_bytes(), room.topic("y").as_bytes()]);
    assert!(codes.is_empty(), "{codes:02x?}");
}

fn nothing_comes_after_unsubscribe(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("#"), 2);
    client.unsubscribe(&[room.topic("#").as_bytes()]);
    for qos in [0, 1, 2] {
        room.publish(Publish::new(room.topic("x"), "y").qos(qos));
    }
    client.expect_nothing();
}

fn only_the_same_filter_is_unsubscribed(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("a/+"), 1);
    for other in ["a/b", "a/#", "#", "A/+", "a/+/"] {
        client.unsubscribe(&[room.topic(other).as_bytes()]);
    }
    room.publish(Publish::new(room.topic("a/b"), "y").qos(1));
    assert_eq!(client.payloads(1), ["y"]);
}

fn what_is_under_way_is_finished_after_unsubscribe(room: &Room) {
    let mut client = room.hello("a").lasting().open(room.broker);
    client.subscribe(room.topic("x"), 2);
    room.publish(Publish::new(room.topic("x"), "1").qos(1));
    room.publish(Publish::new(room.topic("x"), "2").qos(2));
    let (one, two) = (client.unacked(), client.unacked());
    client.unsubscribe(&[room.topic("x").as_bytes()]);
    client.vanish();
    let mut client = room.hello("a").lasting().open(room.broker);
    for before in [one, two] {
        assert_eq!(client.message(), Publish { dup: true, ..before });
    }
    client.expect_nothing();
}

fn unsubscribe_outlives_the_connection(room: &Room) {
    let mut client = room.hello("a").lasting().open(room.broker);
    client.subscribe(room.topic("x"), 1);
    client.unsubscribe(&[room.topic("x").as_bytes()]);
    client.disconnect();
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    let mut client = room.hello("a").lasting().open(room.broker);
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    client.expect_nothing();
}

fn suback_comes_before_what_is_published_later(room: &Room) {
    let mut client = room.client("a");
    let filter = room.topic("x");
    let mut bytes = subscribe_bytes(room.version, 1, &[(filter.as_bytes(), 0)], &[]);
    bytes.extend(Publish::new(&filter, "y").bytes(room.version));
    client.send(&bytes);
    // The standard lets messages of the new subscription come first, but both have to come.
    let order = [client.next().kind(), client.next().kind()];
    assert!(order.contains(&kind::SUBACK) && order.contains(&kind::PUBLISH), "{order:?}");
}

/// Subscribes one filter with a subscription id.
fn subscribe_as(client: &mut crate::client::Client, filter: &str, options: u8, id: u32) {
    let codes = client.subscribe_all(&[(filter.as_bytes(), options)], &[property::subscription_id(id)]);
    assert_eq!(codes, [options & 3]);
}

fn a_subscription_id_comes_with_every_message(room: &Room) {
    let mut client = room.client("a");
    subscribe_as(&mut client, &room.topic("x"), 2, 42);
    for qos in [0, 1, 2] {
        room.publish(Publish::new(room.topic("x"), "y").qos(qos));
        assert_eq!(client.message().properties.numbers(property::SUBSCRIPTION_ID), [42]);
    }
}

fn overlapping_subscriptions_bring_all_their_ids(room: &Room) {
    let mut client = room.client("a");
    subscribe_as(&mut client, &room.topic("a/#"), 1, 1);
    subscribe_as(&mut client, &room.topic("a/+"), 1, 300);
    client.subscribe(room.topic("#"), 1);
    room.publish(Publish::new(room.topic("a/b"), "y").qos(1));
    let mut ids = Vec::new();
    let mut copies = 0;
    client.ping();
    while let Ok(Some(packet)) = client.read(std::time::Duration::from_millis(150)) {
        let message = packet.publish(Version::V5);
        client.finish(&message);
        ids.extend(message.properties.numbers(property::SUBSCRIPTION_ID));
        copies += 1;
    }
    ids.sort_unstable();
    assert_eq!(ids, [1, 300], "in one copy or in one for each");
    assert!(copies == 1 || copies == 3, "{copies} copies");
}

fn a_subscription_without_an_id_brings_none(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("x"), 1);
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    assert!(client.message().properties.0.is_empty());
}

fn one_subscribe_gives_its_id_to_all_its_filters(room: &Room) {
    let mut client = room.client("a");
    let filters = ["x", "y"].map(|filter| room.topic(filter));
    let asked = filters.each_ref().map(|filter| (filter.as_bytes(), 0));
    client.subscribe_all(&asked, &[property::subscription_id(7)]);
    for topic in filters {
        room.publish(Publish::new(topic, "y"));
        assert_eq!(client.message().properties.numbers(property::SUBSCRIPTION_ID), [7]);
    }
}

fn subscribing_again_replaces_the_id(room: &Room) {
    let mut client = room.client("a");
    subscribe_as(&mut client, &room.topic("x"), 1, 1);
    subscribe_as(&mut client, &room.topic("x"), 1, 2);
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    assert_eq!(client.message().properties.numbers(property::SUBSCRIPTION_ID), [2]);
    client.subscribe(room.topic("x"), 1);
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    assert!(client.message().properties.numbers(property::SUBSCRIPTION_ID).is_empty());
}

fn retained_messages_come_with_the_id(room: &Room) {
    room.publish(Publish::new(room.topic("x"), "kept").qos(1).retained());
    let mut client = room.client("a");
    subscribe_as(&mut client, &room.topic("x"), 1, 9);
    let message = client.message();
    assert!(message.retain);
    assert_eq!(message.properties.numbers(property::SUBSCRIPTION_ID), [9]);
}

fn queued_messages_come_with_the_id(room: &Room) {
    let mut client = room.hello("a").lasting().open(room.broker);
    subscribe_as(&mut client, &room.topic("x"), 1, 9);
    client.disconnect();
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    let message = room.hello("a").lasting().open(room.broker).message();
    assert_eq!(message.properties.numbers(property::SUBSCRIPTION_ID), [9]);
}

fn a_subscription_id_outlives_the_connection(room: &Room) {
    let mut client = room.hello("a").lasting().open(room.broker);
    subscribe_as(&mut client, &room.topic("x"), 1, 9);
    client.disconnect();
    let mut client = room.hello("a").lasting().open(room.broker);
    room.publish(Publish::new(room.topic("x"), "y"));
    assert_eq!(client.message().properties.numbers(property::SUBSCRIPTION_ID), [9]);
}

fn a_subscription_id_has_up_to_four_bytes(room: &Room) {
    let mut client = room.client("a");
    for id in [127, 128, 16_384, 2_097_152, 268_435_455] {
        subscribe_as(&mut client, &room.topic("x"), 0, id);
        room.publish(Publish::new(room.topic("x"), "y"));
        assert_eq!(client.message().properties.numbers(property::SUBSCRIPTION_ID), [id]);
    }
}

fn subscription_id_0_ends_the_connection(room: &Room) {
    let mut client = room.client("a");
    client.send(&subscribe_bytes(Version::V5, 1, &[(b"x", 0)], &[property::subscription_id(0)]));
    client.expect_rejected(&[0x82, 0x81]);
}

fn two_subscription_ids_end_the_connection(room: &Room) {
    let twice = [property::subscription_id(1), property::subscription_id(2)];
    let mut client = room.client("a");
    client.send(&subscribe_bytes(Version::V5, 1, &[(room.topic("x").as_bytes(), 0)], &twice));
    client.expect_rejected(&[0x82, 0x81]);
}

fn a_publish_with_a_subscription_id_ends_the_connection(room: &Room) {
    let mut client = room.client("a");
    let message = Publish::new(room.topic("x"), "y").with(property::subscription_id(1));
    client.send(&message.bytes(Version::V5));
    client.expect_rejected(&[0x82, 0x81]);
}

fn subscribe_and_unsubscribe_may_have_user_properties(room: &Room) {
    let mut client = room.client("a");
    let user = [property::user("k", "1"), property::user("k", "2")];
    assert_eq!(client.subscribe_all(&[(room.topic("x").as_bytes(), 1)], &user), [1]);
    let mut body = vec![0, 9];
    crate::wire::Properties(user.to_vec()).push(&mut body);
    push_field(&mut body, room.topic("x").as_bytes());
    client.send(&packet(kind::UNSUBSCRIBE << 4 | 2, &body));
    assert_eq!(client.expect_ack(kind::UNSUBACK, 9).codes(Version::V5), [0]);
}

fn acknowledgements_have_no_properties_that_nobody_asked_for(room: &Room) {
    let none = property::number(property::REQUEST_PROBLEM_INFORMATION, 0);
    let mut client = room.hello("a").with(none).open(room.broker);
    client.send(&subscribe_bytes(Version::V5, 1, &[(room.topic("x").as_bytes(), 1)], &[]));
    assert_eq!(client.expect_ack(kind::SUBACK, 1).body[2], 0);
    client.send(&Publish::new(room.topic("y"), "y").qos(1).id(2).bytes(Version::V5));
    assert!(client.expect_ack(kind::PUBACK, 2).body.len() <= 4);
    client.send(&unsubscribe_bytes(room, 3, &[&room.topic("never")]));
    assert_eq!(client.expect_ack(kind::UNSUBACK, 3).body[2], 0);
    client.ack(kind::PUBREL, 4);
    assert!(client.expect_ack(kind::PUBCOMP, 4).body.len() <= 4);
}
