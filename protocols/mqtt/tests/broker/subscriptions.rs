//! Subscriptions and their options, shared subscriptions, retained messages, slow readers.

use mqtt::{Limits, Message, Qos, Topic};

use crate::bench::*;

fn retained(bench: &mut Bench, topic: &str, payload: &[u8]) {
    let message = Message::new(Topic::new(topic).unwrap(), payload.to_vec()).with_qos(Qos::ExactlyOnce);
    bench.broker.publish(bench.now, message.retained());
}

#[test]
fn the_qos_is_the_lower_of_what_was_published_and_what_was_asked_for() {
    for published in 0..3u8 {
        for asked in 0..3u8 {
            let mut bench = Bench::new(Limits::default());
            let id = bench.connect(&connect_v3("s"));
            let answer = bench.send(id, &subscribe_v3(1, &[("t", asked)]));
            assert_eq!(answer, [Packet(0x90, vec![0, 1, asked])]);
            let publisher = bench.connect(&connect_v5("p", &[]));
            bench.send(publisher, &publish_v5(published << 1, 1, "t", &[], b"x"));
            assert_eq!(bench.read(id)[0].0, 0x30 | published.min(asked) << 1, "{published} to {asked}");
        }
    }
}

#[test]
fn overlapping_subscriptions_bring_one_copy_at_the_highest_qos_with_every_identifier() {
    let mut bench = Bench::new(Limits::default());
    let id = bench.connect(&connect_v5("s", &[]));
    bench.send(id, &subscribe_v5(1, &[0x0b, 1], &[("a/#", 0)]));
    bench.send(id, &subscribe_v5(2, &[0x0b, 0x82, 1], &[("a/+", 2)]));
    bench.send(id, &subscribe_v5(3, &[], &[("a/b", 1)]));
    bench.broker.publish(bench.now, Message::new(Topic::new("a/b").unwrap(), "x").with_qos(Qos::ExactlyOnce));
    let packets = bench.read(id);
    assert_eq!((packets.len(), packets[0].0), (1, 0x34));
    let properties = &packets[0].1[8..13];
    assert!(
        properties == [0x0b, 1, 0x0b, 0x82, 1] || properties == [0x0b, 0x82, 1, 0x0b, 1],
        "{properties:02x?}"
    );
}

#[test]
fn no_local_keeps_a_clients_own_messages_from_it() {
    let mut bench = Bench::new(Limits::default());
    let id = bench.connect(&connect_v5("s", &[]));
    bench.send(id, &subscribe_v5(1, &[], &[("t", 0x04)]));
    assert_eq!(bench.send(id, &publish_v5(0, 0, "t", &[], b"own")), []);
    let other = bench.connect(&connect_v5("o", &[]));
    bench.send(other, &publish_v5(0, 0, "t", &[], b"other"));
    assert_eq!(bench.read(id).len(), 1);
    assert_eq!(bench.send(id, &subscribe_v5(2, &[], &[("$share/g/t", 0x04)])), [Packet(0xe0, vec![0x82])]);
}

#[test]
fn the_retain_flag_is_kept_only_where_it_is_asked_for() {
    let mut bench = Bench::new(Limits::default());
    let plain = bench.connect(&connect_v5("plain", &[]));
    bench.send(plain, &subscribe_v5(1, &[], &[("t", 0)]));
    let bridge = bench.connect(&connect_v5("bridge", &[]));
    bench.send(bridge, &subscribe_v5(1, &[], &[("t", 0x08)]));
    retained(&mut bench, "t", b"x");
    assert_eq!(bench.read(plain)[0].0, 0x30);
    assert_eq!(bench.read(bridge)[0].0, 0x31);
}

#[test]
fn retained_messages_come_with_each_subscription_unless_its_options_say_otherwise() {
    let mut bench = Bench::new(Limits::default());
    retained(&mut bench, "r/1", b"x");
    let id = bench.connect(&connect_v5("s", &[]));
    let count = |bench: &mut Bench, filter: &str, options: u8| {
        bench
            .send(id, &subscribe_v5(1, &[], &[(filter, options)]))
            .iter()
            .filter(|packet| packet.0 == 0x31)
            .count()
    };
    assert_eq!(count(&mut bench, "r/+", 0x10), 1, "new");
    assert_eq!(count(&mut bench, "r/+", 0x10), 0, "not new");
    assert_eq!(count(&mut bench, "r/+", 0x00), 1, "always");
    assert_eq!(count(&mut bench, "r/1", 0x20), 0, "never");
    assert_eq!(count(&mut bench, "$share/g/r/1", 0x00), 0, "shared");
}

#[test]
fn an_empty_retained_message_clears_and_an_ordinary_empty_one_does_not() {
    let mut bench = Bench::new(Limits::default());
    retained(&mut bench, "t", b"x");
    bench.broker.publish(bench.now, Message::new(Topic::new("t").unwrap(), ""));
    assert_eq!(bench.broker.retained_count(), 1);
    retained(&mut bench, "t", b"");
    assert_eq!(bench.broker.retained_count(), 0);
}

#[test]
fn all_of_10_000_retained_messages_reach_a_reader_with_a_small_buffer() {
    for qos in [0, 1] {
        let mut bench = Bench::new(Limits { output_bytes: 2_000, window: 7, ..Limits::default() });
        for number in 0..10_000u32 {
            retained(&mut bench, &format!("r/{number}"), b"value");
        }
        let id = bench.connect(&connect_v3("s"));
        let mut packets = bench.send(id, &subscribe_v3(1, &[("r/#", qos)]));
        assert_eq!(packets.remove(0).0, 0x90);
        let mut seen = 0;
        while !packets.is_empty() {
            seen += packets.len();
            let acks: Vec<u8> = packets
                .iter()
                .filter(|_| qos == 1)
                .flat_map(|packet| {
                    let at = 2 + usize::from(packet.1[1]);
                    [0x40, 2, packet.1[at], packet.1[at + 1]]
                })
                .collect();
            packets = bench.send(id, &acks);
        }
        assert_eq!(seen, 10_000, "QoS {qos}");
    }
}

#[test]
fn a_live_value_is_never_followed_by_an_older_retained_one() {
    let mut bench = Bench::new(Limits { output_bytes: 100, ..Limits::default() });
    for number in 0..50 {
        retained(&mut bench, &format!("r/{number:02}"), b"old");
    }
    let id = bench.connect(&connect_v3("s"));
    bench.broker.handle_input(bench.now, id, &subscribe_v3(1, &[("r/#", 0)]));
    // Most of the retained messages still wait for the reader.
    retained(&mut bench, "r/49", b"new");
    let values: Vec<Vec<u8>> = bench
        .read(id)
        .into_iter()
        .filter(|packet| packet.1.windows(4).any(|part| part == b"r/49"))
        .map(|packet| packet.1[6..].to_vec())
        .collect();
    assert!(!values.is_empty() && values.iter().all(|value| value == b"new"), "{values:?}");
}

#[test]
fn a_shared_subscription_takes_turns_passes_over_the_absent_and_inherits_from_those_who_leave() {
    let mut bench = Bench::new(Limits { window: 1, ..Limits::default() });
    let publish = |bench: &mut Bench, payload: &'static str| {
        let message = Message::new(Topic::new("job").unwrap(), payload).with_qos(Qos::AtLeastOnce);
        bench.broker.publish(bench.now, message);
    };
    let [one, two] = ["one", "two"].map(|name| {
        let id = bench.connect(&connect_v3(name));
        bench.send(id, &subscribe_v3(1, &[("$share/g/job", 1)]));
        id
    });
    publish(&mut bench, "1");
    publish(&mut bench, "2");
    assert_eq!((bench.read(one).len(), bench.read(two).len()), (1, 1));
    // Both windows are full: the next two wait in the queues of both.
    publish(&mut bench, "3");
    publish(&mut bench, "4");
    bench.lose(one);
    let mut seen = Vec::new();
    for packet_id in 1..=4u8 {
        let packets = bench.send(two, &[0x40, 2, 0, packet_id]);
        seen.extend(packets.iter().map(|packet| *packet.1.last().unwrap()));
    }
    seen.sort_unstable();
    assert_eq!(seen, b"134", "2 was acknowledged, the others are inherited");
}

#[test]
fn unsubscribe_answers_each_filter_and_an_unknown_one_too() {
    let mut bench = Bench::new(Limits::default());
    let new = bench.connect(&connect_v5("new", &[]));
    bench.send(new, &subscribe_v5(1, &[], &[("a", 0)]));
    let mut body = vec![0, 2, 0];
    body.extend([field(b"a"), field(b"b"), field(b"a/#/b")].concat());
    assert_eq!(bench.send(new, &frame(0xa2, &body)), [Packet(0xb0, vec![0, 2, 0, 0, 0x11, 0x8f])]);
    let old = bench.connect(&connect_v3("old"));
    assert_eq!(
        bench.send(old, &frame(0xa2, &[&[0, 3][..], &field(b"x")].concat())),
        [Packet(0xb0, vec![0, 3])]
    );
    assert_eq!(bench.broker.subscription_count(), 0);
}

#[test]
fn subscriptions_are_limited_and_bad_filters_answered_one_by_one() {
    let mut bench = Bench::new(Limits { subscriptions: 2, ..Limits::default() });
    let id = bench.connect(&connect_v5("s", &[]));
    let filters = [("a", 0), ("a/#/b", 0), ("b", 1), ("c", 2), ("a", 2), ("$share/g", 0)];
    let answer = bench.send(id, &subscribe_v5(1, &[], &filters));
    assert_eq!(answer, [Packet(0x90, vec![0, 1, 0, 0, 0x8f, 1, 0x97, 2, 0x8f])]);
    assert_eq!(bench.broker.counters().refused_subscriptions, 3);
}

#[test]
fn sys_topics_are_hidden_from_wildcards_and_closed_to_clients() {
    let mut bench = Bench::new(Limits::default());
    let id = bench.connect(&connect_v3("s"));
    bench.send(id, &subscribe_v3(1, &[("#", 0), ("+/x", 0)]));
    bench.broker.publish(bench.now, Message::new(Topic::new("$SYS/x").unwrap(), "1"));
    assert_eq!(bench.read(id), []);
    bench.send(id, &subscribe_v3(1, &[("$SYS/#", 0)]));
    bench.broker.publish(bench.now, Message::new(Topic::new("$SYS/x").unwrap(), "1"));
    assert_eq!(bench.read(id).len(), 1);
    bench.send(id, &publish_v3(0, 0, "$SYS/x", b"lie"));
    assert_eq!((bench.read(id).len(), bench.broker.counters().denied_publishes), (0, 1));
}

#[test]
fn a_reader_that_does_not_read_loses_qos_0_keeps_qos_1_and_delays_nobody() {
    let mut bench = Bench::new(Limits { output_bytes: 10_000, ..Limits::default() });
    let [slow, quick] = ["slow", "quick"].map(|name| {
        let id = bench.connect(&connect_v3(name));
        bench.send(id, &subscribe_v3(1, &[("t", 1)]));
        id
    });
    let mut received = 0;
    for number in 0..1_000u32 {
        let qos = if number % 2 == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce };
        bench
            .broker
            .publish(bench.now, Message::new(Topic::new("t").unwrap(), vec![b'x'; 100]).with_qos(qos));
        for packet in bench.read(quick) {
            received += 1;
            if packet.0 & 6 != 0 {
                bench.broker.handle_input(bench.now, quick, &[0x40, 2, packet.1[3], packet.1[4]]);
            }
        }
    }
    assert_eq!(received, 1_000);
    let dropped = bench.broker.counters().dropped_slow;
    assert!(dropped > 400, "{dropped}");
    let mut kept = 0;
    let mut packets = bench.read(slow);
    while !packets.is_empty() {
        kept += packets.iter().filter(|packet| packet.0 & 6 != 0).count();
        let acks: Vec<u8> = packets
            .iter()
            .filter(|packet| packet.0 & 6 != 0)
            .flat_map(|packet| [0x40, 2, packet.1[3], packet.1[4]])
            .collect();
        packets = bench.send(slow, &acks);
    }
    assert_eq!(kept, 500);
}
