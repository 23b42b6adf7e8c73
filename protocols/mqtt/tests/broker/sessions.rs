//! Sessions, wills, takeover, redelivery.

use std::time::Duration;

use mqtt::{Limits, Message, Qos, Topic};

use crate::bench::*;

const SECOND: Duration = Duration::from_secs(1);

/// The rest of a CONNECT with a will on `will`.
fn will(payload: &[u8], properties: Option<&[u8]>) -> Vec<u8> {
    let mut rest = Vec::new();
    if let Some(properties) = properties {
        rest.push(properties.len() as u8);
        rest.extend(properties);
    }
    rest.extend(field(b"will"));
    rest.extend(field(payload));
    rest
}

fn watcher(bench: &mut Bench) -> mqtt::ConnectionId {
    let id = bench.connect(&connect_v3("watcher"));
    bench.send(id, &subscribe_v3(1, &[("will", 0)]));
    id
}

fn payloads(packets: &[Packet]) -> Vec<String> {
    let publishes = packets.iter().filter(|packet| packet.0 >> 4 == 3);
    publishes.map(|packet| String::from_utf8_lossy(&packet.1[6..]).into_owned()).collect()
}

#[test]
fn a_takeover_publishes_the_old_will_and_keeps_the_new() {
    let mut bench = Bench::new(Limits::default());
    let watcher = watcher(&mut bench);
    let old = bench.connect(&connect(5, 0x06, 0, Some(&[]), "same", &will(b"old", Some(&[]))));
    let new = bench.connect(&connect(5, 0x06, 0, Some(&[]), "same", &will(b"new", Some(&[]))));
    assert_eq!(bench.read(old), [Packet(0xe0, vec![0x8e])]);
    assert!(bench.is_closed(old));
    assert_eq!(payloads(&bench.read(watcher)), ["old"]);
    // The end of the old connection is not the end of the new one.
    bench.lose(old);
    assert_eq!(bench.send(new, &[0xc0, 0]), [Packet(0xd0, vec![])]);
    bench.lose(new);
    assert_eq!(payloads(&bench.read(watcher)), ["new"]);
    assert_eq!((bench.broker.counters().takeovers, bench.broker.counters().wills), (1, 2));
}

#[test]
fn a_client_that_says_goodbye_leaves_no_will_unless_it_asks_for_it() {
    let mut bench = Bench::new(Limits::default());
    let watcher = watcher(&mut bench);
    let id = bench.connect(&connect(4, 0x06, 0, None, "polite", &will(b"x", None)));
    bench.send(id, &[0xe0, 0]);
    assert!(bench.is_closed(id));
    assert_eq!(payloads(&bench.read(watcher)), [""; 0]);
    let id = bench.connect(&connect(5, 0x06, 0, Some(&[]), "dramatic", &will(b"asked", Some(&[]))));
    bench.send(id, &[0xe0, 1, 4]);
    assert_eq!(payloads(&bench.read(watcher)), ["asked"]);
}

#[test]
fn a_delayed_will_waits_is_called_off_by_a_return_and_comes_with_the_end_of_the_session() {
    let mut bench = Bench::new(Limits::default());
    let watcher = watcher(&mut bench);
    // Session expiry 20 s, will delay 10 s.
    let connect_with = |clean: u8, expiry: u8| {
        connect(
            5,
            0x04 | clean,
            0,
            Some(&[0x11, 0, 0, 0, expiry]),
            "c",
            &will(b"x", Some(&[0x18, 0, 0, 0, 10])),
        )
    };
    let id = bench.connect(&connect_with(2, 20));
    bench.lose(id);
    bench.wait(9 * SECOND);
    let id = bench.connect(&connect_with(0, 20));
    bench.wait(60 * SECOND);
    assert_eq!(payloads(&bench.read(watcher)), [""; 0], "it came back in time");
    bench.lose(id);
    bench.wait(10 * SECOND);
    assert_eq!(payloads(&bench.read(watcher)), ["x"]);
    let id = bench.connect(&connect_with(0, 5));
    bench.lose(id);
    bench.wait(5 * SECOND);
    assert_eq!(payloads(&bench.read(watcher)), ["x"], "the session ended before the delay");
    let id = bench.connect(&connect_with(0, 20));
    bench.lose(id);
    bench.connect(&connect_with(2, 20));
    assert_eq!(payloads(&bench.read(watcher)), ["x"], "a clean start ends the session");
}

#[test]
fn a_session_lives_as_long_as_agreed_and_no_longer() {
    let mut bench = Bench::new(Limits { session_expiry: 100 * SECOND, ..Limits::default() });
    let present = |bench: &mut Bench, flags: u8, expiry: Option<u8>| {
        let properties = expiry.map_or(Vec::new(), |seconds| vec![0x11, 0, 0, 0, seconds]);
        let id = bench.open();
        let answer = bench.send(id, &connect(5, flags, 0, Some(&properties), "c", &[]));
        let is_present = answer[0].1[0] == 1;
        bench.lose(id);
        is_present
    };
    assert!(!present(&mut bench, 2, Some(50)));
    bench.wait(49 * SECOND);
    assert!(present(&mut bench, 0, Some(50)));
    bench.wait(51 * SECOND);
    assert!(!present(&mut bench, 0, None), "expired");
    assert!(!present(&mut bench, 0, None), "without an expiry it ends with the connection");
    // Longer than the broker allows: the CONNACK says so, and it ends then.
    let id = bench.open();
    let answer = bench.send(id, &connect(5, 0, 0, Some(&[0x11, 0xff, 0xff, 0xff, 0xff]), "c", &[]));
    assert!(answer[0].1.windows(5).any(|part| part == [0x11, 0, 0, 0, 100]), "{answer:?}");
    bench.lose(id);
    bench.wait(99 * SECOND);
    assert_eq!(bench.broker.clients().len(), 1);
    bench.wait(SECOND);
    assert_eq!(bench.broker.clients().len(), 0);
    assert!(bench.broker.deadline().is_none());
}

#[test]
fn disconnect_may_change_the_expiry_but_not_revive_a_session_that_was_to_end() {
    let mut bench = Bench::new(Limits::default());
    let id = bench.connect(&connect_v5("a", &[]));
    let longer = [0xe0, 7, 0, 5, 0x11, 0, 0, 0, 9];
    assert_eq!(bench.send(id, &longer), [Packet(0xe0, vec![0x82])]);
    let id = bench.connect(&connect_v5("b", &[0x11, 0, 0, 0, 99]));
    bench.send(id, &[0xe0, 7, 0, 5, 0x11, 0, 0, 0, 0]);
    assert!(bench.is_closed(id));
    assert_eq!(bench.broker.clients().len(), 0, "ended at once");
}

#[test]
fn a_persistent_session_keeps_its_queue_in_order_and_sends_again_what_was_in_flight() {
    let mut bench = Bench::new(Limits { window: 2, ..Limits::default() });
    let persistent = connect(4, 0, 0, None, "c", &[]);
    let id = bench.connect(&persistent);
    bench.send(id, &subscribe_v3(1, &[("t", 2)]));
    for number in 0..4u8 {
        let qos = if number % 2 == 0 { Qos::ExactlyOnce } else { Qos::AtLeastOnce };
        bench
            .broker
            .publish(bench.now, Message::new(Topic::new("t").unwrap(), vec![b'0' + number]).with_qos(qos));
    }
    let body = |packet_id, payload: &[u8]| publish_body(2, packet_id, "t", None, payload);
    assert_eq!(
        bench.read(id),
        [Packet(0x34, body(1, b"0")), Packet(0x32, body(2, b"1"))],
        "the window is two"
    );
    assert_eq!(bench.send(id, &[0x50, 2, 0, 1]), [Packet(0x62, vec![0, 1])]);
    bench.lose(id);
    let id = bench.open();
    let packets = bench.send(id, &persistent);
    assert_eq!(packets, [Packet(0x20, vec![1, 0]), Packet(0x62, vec![0, 1]), Packet(0x3a, body(2, b"1"))]);
    assert_eq!(bench.send(id, &[0x40, 2, 0, 2]), [Packet(0x34, body(3, b"2"))]);
    assert_eq!(bench.send(id, &[0x70, 2, 0, 1]), [Packet(0x32, body(4, b"3"))]);
    assert_eq!(bench.broker.counters().resent, 1);
}

#[test]
fn what_a_client_no_longer_takes_is_given_up_when_it_comes_back() {
    let mut bench = Bench::new(Limits::default());
    let id = bench.connect(&connect(5, 0, 0, Some(&[0x11, 0, 0, 1, 0]), "c", &[]));
    bench.send(id, &subscribe_v5(1, &[], &[("t", 1)]));
    bench
        .broker
        .publish(bench.now, Message::new(Topic::new("t").unwrap(), vec![0; 100]).with_qos(Qos::AtLeastOnce));
    assert_eq!(bench.read(id).len(), 1);
    bench.lose(id);
    let id = bench.open();
    let packets = bench.send(id, &connect(5, 0, 0, Some(&[0x11, 0, 0, 1, 0, 0x27, 0, 0, 0, 50]), "c", &[]));
    assert_eq!(packets.len(), 1, "CONNACK alone: {packets:?}");
    assert_eq!((bench.broker.counters().dropped_too_large, bench.broker.clients()[0].in_flight), (1, 0));
}

#[test]
fn a_client_that_takes_fewer_at_once_than_it_did_is_sent_no_more_than_that_again() {
    let mut bench = Bench::new(Limits::default());
    let expiry = [0x11, 0, 0, 1, 0];
    let id = bench.connect(&connect(5, 0, 0, Some(&expiry), "c", &[]));
    bench.send(id, &subscribe_v5(1, &[], &[("t", 1)]));
    let publish = |bench: &mut Bench, payload: &'static str| {
        let mut message = Message::new(Topic::new("t").unwrap(), payload).with_qos(Qos::AtLeastOnce);
        let properties = mqtt::Properties { expiry: Some(5 * SECOND), ..mqtt::Properties::default() };
        message.properties = Some(Box::new(properties));
        bench.broker.publish(bench.now, message);
    };
    for payload in ["1", "2", "3"] {
        publish(&mut bench, payload);
    }
    assert_eq!(bench.read(id).len(), 3);
    bench.lose(id);
    publish(&mut bench, "4");
    // Longer than they last: what was sent goes again all the same, what was not does not.
    bench.wait(10 * SECOND);
    let id = bench.open();
    // Receive maximum 2.
    let packets = bench.send(id, &connect(5, 0, 0, Some(&[&expiry[..], &[0x21, 0, 2]].concat()), "c", &[]));
    let body = |packet_id, payload: &[u8]| publish_body(2, packet_id, "t", Some(&[2, 0, 0, 0, 0]), payload);
    assert_eq!(packets[1..], [Packet(0x3a, body(1, b"1")), Packet(0x3a, body(2, b"2"))]);
    assert_eq!(bench.send(id, &[0x40, 2, 0, 1]), [Packet(0x3a, body(3, b"3"))]);
    assert_eq!(bench.send(id, &[0x40, 4, 0, 2, 0, 0]), []);
    assert_eq!(bench.send(id, &[0x40, 2, 0, 3]), []);
    let client = &bench.broker.clients()[0];
    assert_eq!((client.in_flight, client.queued), (0, 0));
    assert_eq!((bench.broker.counters().resent, bench.broker.counters().dropped_expired), (3, 1));
}

#[test]
fn a_qos_2_message_sent_again_is_not_published_again() {
    let mut bench = Bench::new(Limits::default());
    let watcher = watcher(&mut bench);
    let persistent = connect(4, 0, 0, None, "c", &[]);
    let id = bench.connect(&persistent);
    assert_eq!(bench.send(id, &publish_v3(4, 5, "will", b"once")), [Packet(0x50, vec![0, 5])]);
    bench.lose(id);
    let id = bench.connect(&persistent);
    assert_eq!(bench.send(id, &publish_v3(0x0c, 5, "will", b"once")), [Packet(0x50, vec![0, 5])]);
    assert_eq!(bench.send(id, &[0x62, 2, 0, 5]), [Packet(0x70, vec![0, 5])]);
    assert_eq!(bench.send(id, &[0x62, 2, 0, 5]), [Packet(0x70, vec![0, 5])], "unknown by now, and answered");
    assert_eq!(payloads(&bench.read(watcher)), ["once"]);
    bench.send(id, &publish_v3(4, 5, "will", b"next"));
    assert_eq!(payloads(&bench.read(watcher)), ["next"], "the id is free again");
}

#[test]
fn stray_acknowledgements_are_passed_over() {
    let mut bench = Bench::new(Limits::default());
    let id = bench.connect(&connect_v5("a", &[]));
    assert_eq!(bench.send(id, &[0x40, 2, 0, 9]), []);
    assert_eq!(bench.send(id, &[0x70, 2, 0, 9]), []);
    assert_eq!(bench.send(id, &[0x50, 2, 0, 9]), [Packet(0x62, vec![0, 9, 0x92])]);
    assert_eq!(bench.send(id, &[0x62, 2, 0, 9]), [Packet(0x70, vec![0, 9, 0x92])]);
    assert!(!bench.is_closed(id));
}

#[test]
fn a_full_queue_drops_the_newest_and_counts_it() {
    let mut bench = Bench::new(Limits { queue_messages: 3, ..Limits::default() });
    let persistent = connect(4, 0, 0, None, "c", &[]);
    let id = bench.connect(&persistent);
    bench.send(id, &subscribe_v3(1, &[("will", 1)]));
    bench.lose(id);
    for number in 0..5u8 {
        let message = Message::new(Topic::new("will").unwrap(), vec![b'0' + number]);
        bench.broker.publish(bench.now, message.with_qos(Qos::AtLeastOnce));
    }
    let id = bench.open();
    let packets = bench.send(id, &persistent);
    let kept: Vec<u8> = packets[1..].iter().map(|packet| *packet.1.last().unwrap()).collect();
    assert_eq!(kept, b"012");
    assert_eq!(bench.broker.counters().dropped_queue_full, 2);
}

#[test]
fn an_expired_message_is_not_sent() {
    let mut bench = Bench::new(Limits::default());
    let persistent = connect(5, 0, 0, Some(&[0x11, 0, 0, 1, 0]), "c", &[]);
    let id = bench.connect(&persistent);
    bench.send(id, &subscribe_v5(1, &[], &[("t", 1)]));
    bench.lose(id);
    let publisher = bench.connect(&connect_v5("p", &[]));
    bench.send(publisher, &publish_v5(2, 1, "t", &[2, 0, 0, 0, 5], b"short"));
    bench.send(publisher, &publish_v5(2, 2, "t", &[2, 0, 0, 0, 50], b"long"));
    bench.wait(10 * SECOND);
    let id = bench.open();
    let packets = bench.send(id, &persistent);
    assert_eq!(packets[1..], [Packet(0x32, publish_body(2, 2, "t", Some(&[2, 0, 0, 0, 40]), b"long"))]);
    assert_eq!(bench.broker.counters().dropped_expired, 1);
}
