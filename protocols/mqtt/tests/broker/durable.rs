//! What is promised is stored before it is promised, and is there after a restart.

use std::time::Duration;

use mqtt::{Filter, Limits, Message, Restored, Shelf, Topic};

use crate::bench::*;

const SECOND: Duration = Duration::from_secs(1);

/// CONNECT of MQTT 3.1.1 whose session stays.
fn persistent_v3(client_id: &str) -> Vec<u8> {
    connect(4, 0, 0, None, client_id, &[])
}

/// CONNECT of MQTT 5.0 whose session stays for so long.
fn persistent_v5(client_id: &str, expiry_secs: u32) -> Vec<u8> {
    let mut properties = vec![0x11];
    properties.extend(expiry_secs.to_be_bytes());
    connect(5, 0, 0, Some(&properties), client_id, &[])
}

/// Connects, subscribes, and goes away.
fn subscribed(bench: &mut Bench, connect: &[u8], topic: &str, qos: u8) {
    let id = bench.open();
    bench.send(id, connect);
    bench.store();
    bench.read(id);
    let subscribe = if connect[8] == 5 {
        subscribe_v5(1, &[], &[(topic, qos)])
    } else {
        subscribe_v3(1, &[(topic, qos)])
    };
    bench.send(id, &subscribe);
    bench.store();
    assert_eq!(bench.read(id)[0].0, 0x90);
    bench.lose(id);
    bench.store();
}

#[test]
fn every_answer_waits_for_what_it_promises_and_no_other_does() {
    let mut bench = Bench::keeping(Limits::default());
    let keeper = bench.open();
    assert_eq!(bench.send(keeper, &persistent_v3("keeper")), []);
    bench.store();
    assert_eq!(bench.read(keeper), [Packet(0x20, vec![0, 0])]);
    assert_eq!(bench.send(keeper, &subscribe_v3(1, &[("kept/#", 2)])), []);
    bench.store();
    assert_eq!(bench.read(keeper), [Packet(0x90, vec![0, 1, 2])]);
    bench.lose(keeper);
    bench.store();

    // Nobody keeps anything of these.
    let guest = bench.connect(&connect_v3("guest"));
    assert_eq!(bench.send(guest, &subscribe_v3(1, &[("#", 1)])), [Packet(0x90, vec![0, 1, 1])]);
    let publisher = bench.connect(&connect_v3("publisher"));
    assert_eq!(bench.send(publisher, &publish_v3(2, 1, "other", b"1")), [Packet(0x40, vec![0, 1])]);
    assert_eq!(bench.send(publisher, &publish_v3(0, 0, "kept/a", b"0")), []);
    assert_eq!(bench.broker.waiting_changes(), None, "a message that nobody durable waits for costs nothing");

    assert_eq!(bench.send(publisher, &publish_v3(2, 2, "kept/a", b"1")), []);
    assert_eq!(bench.send(publisher, &publish_v3(4, 3, "kept/a", b"2")), []);
    // A live subscriber does not wait for the disk.
    assert_eq!(bench.read(guest).len(), 4);
    assert_eq!(bench.store(), 2);
    assert_eq!(bench.read(publisher), [Packet(0x40, vec![0, 2]), Packet(0x50, vec![0, 3])]);
    // Retained for later subscribers is a promise, too.
    assert_eq!(bench.send(publisher, &publish_v3(3, 4, "state", b"on")), []);
    assert_eq!(bench.store(), 1);
    assert_eq!(bench.read(publisher), [Packet(0x40, vec![0, 4])]);
    bench.send(publisher, &publish_v3(1, 0, "state", b"off"));
    assert!(
        bench.broker.waiting_changes().is_some_and(|waiting| !waiting.is_urgent),
        "at QoS 0 nobody waits"
    );
}

#[test]
fn a_session_its_subscriptions_and_its_messages_are_there_after_a_restart() {
    let mut bench = Bench::keeping(Limits::default());
    subscribed(&mut bench, &persistent_v3("old"), "t/#", 1);
    subscribed(&mut bench, &persistent_v5("new", 60), "t/a", 2);
    let publisher = bench.connect(&connect_v5("publisher", &[]));
    for n in 1..=3 {
        bench.send(publisher, &publish_v5(4, n, "t/a", &[3, 0, 1, b'x'], &[b'0' + n as u8]));
    }
    bench.store();
    assert_eq!(bench.read(publisher).len(), 3);
    assert_eq!(bench.disk.keys().filter(|(shelf, _)| *shelf == Shelf::Message).count(), 3, "once for both");
    let found = bench.restart();
    assert_eq!(found, Restored { sessions: 2, messages: 6, retained: 0, wills: 0, unreadable: 0 });

    let old = bench.open();
    bench.send(old, &persistent_v3("old"));
    bench.store();
    let packets = bench.read(old);
    assert_eq!(packets[0], Packet(0x20, vec![1, 0]), "session present");
    let payloads: Vec<u8> = packets[1..].iter().map(|packet| *packet.1.last().unwrap()).collect();
    assert_eq!(payloads, b"123");
    for n in 1..=3 {
        bench.send(old, &frame(0x40, &[0, n]));
    }
    let new = bench.open();
    bench.send(new, &persistent_v5("new", 60));
    bench.store();
    let packets = bench.read(new);
    assert_eq!(packets[1], Packet(0x34, publish_body(4, 1, "t/a", Some(&[3, 0, 1, b'x']), b"1")));
    for n in 1..=3 {
        bench.send(new, &frame(0x50, &[0, n]));
        bench.store();
        assert_eq!(bench.read(new), [Packet(0x62, vec![0, n])]);
        bench.send(new, &frame(0x70, &[0, n]));
    }
    bench.store();
    assert_eq!(bench.disk.len(), 2, "two sessions and nothing else: {:?}", bench.disk.keys());
    // What is subscribed still is.
    let publisher = bench.connect(&connect_v3("publisher"));
    bench.send(publisher, &publish_v3(2, 1, "t/b", b"4"));
    assert_eq!(bench.read(old).len(), 1);
}

#[test]
fn what_was_in_flight_comes_again_with_its_packet_id_and_dup() {
    let mut bench = Bench::keeping(Limits::default());
    subscribed(&mut bench, &persistent_v3("c"), "t", 2);
    let id = bench.open();
    bench.send(id, &persistent_v3("c"));
    bench.store();
    bench.read(id);
    let publisher = bench.connect(&connect_v3("publisher"));
    for n in 1..=3 {
        bench.send(publisher, &publish_v3(4, n, "t", &[b'0' + n as u8]));
    }
    assert_eq!(bench.read(id), [], "an id that its receiver remembers is on disk before it is used");
    bench.store();
    assert_eq!(bench.read(id).len(), 3);
    // The first is received and the answer to that on disk, the second is finished.
    bench.send(id, &frame(0x50, &[0, 1]));
    bench.send(id, &frame(0x50, &[0, 2]));
    bench.store();
    bench.send(id, &frame(0x70, &[0, 2]));
    bench.store();
    bench.restart();
    let id = bench.open();
    bench.send(id, &persistent_v3("c"));
    bench.store();
    let packets = bench.read(id);
    assert_eq!(
        packets,
        [
            Packet(0x20, vec![1, 0]),
            Packet(0x62, vec![0, 1]),
            Packet(0x3c, publish_body(4, 3, "t", None, b"3")),
        ]
    );
    // Behind them, ids go on.
    let publisher = bench.connect(&connect_v3("publisher"));
    bench.send(publisher, &publish_v3(4, 1, "t", b"4"));
    bench.store();
    assert_eq!(bench.read(id), [Packet(0x34, publish_body(4, 4, "t", None, b"4"))]);
}

#[test]
fn a_qos_2_message_that_was_taken_is_not_taken_again_after_a_restart() {
    let mut bench = Bench::keeping(Limits::default());
    subscribed(&mut bench, &persistent_v3("reader"), "t", 2);
    let id = bench.open();
    bench.send(id, &persistent_v3("writer"));
    bench.store();
    bench.read(id);
    bench.send(id, &publish_v3(4, 7, "t", b"once"));
    bench.store();
    assert_eq!(bench.read(id), [Packet(0x50, vec![0, 7])]);
    bench.restart();
    let id = bench.open();
    bench.send(id, &persistent_v3("writer"));
    bench.store();
    bench.read(id);
    assert_eq!(bench.send(id, &publish_v3(12, 7, "t", b"once")), [Packet(0x50, vec![0, 7])]);
    assert_eq!(bench.send(id, &frame(0x62, &[0, 7])), [], "PUBCOMP waits until the id is forgotten");
    bench.store();
    assert_eq!(bench.read(id), [Packet(0x70, vec![0, 7])]);
    bench.restart();
    // Now the id is free for another message.
    let id = bench.open();
    bench.send(id, &persistent_v3("writer"));
    bench.store();
    bench.read(id);
    bench.send(id, &publish_v3(4, 7, "t", b"another"));
    bench.store();
    assert_eq!(bench.broker.clients().iter().map(|client| client.queued).sum::<usize>(), 2);
}

#[test]
fn retained_messages_of_clients_stay_and_their_time_runs_on() {
    let mut bench = Bench::keeping(Limits::default());
    let publisher = bench.connect(&connect_v5("publisher", &[]));
    bench.send(publisher, &publish_v5(3, 1, "a", &[], b"old"));
    bench.send(publisher, &publish_v5(3, 2, "a", &[], b"new"));
    bench.send(publisher, &publish_v5(1, 0, "b", &[2, 0, 0, 0, 100], b"short"));
    bench.send(publisher, &publish_v5(1, 0, "c", &[2, 0, 0, 0, 5], b"shorter"));
    bench.send(publisher, &publish_v5(1, 0, "d", &[], b"gone"));
    bench.send(publisher, &publish_v5(1, 0, "d", &[], b""));
    bench.broker.publish(bench.now, Message::new(Topic::new("own").unwrap(), "1").retained());
    assert_eq!(bench.store(), 3);
    bench.wait(10 * SECOND);
    assert_eq!(bench.restart(), Restored { retained: 2, unreadable: 1, ..Restored::default() });
    let reader = bench.connect(&connect_v5("reader", &[]));
    let packets = bench.send(reader, &subscribe_v5(1, &[], &[("#", 0)]));
    assert_eq!(
        packets[1..],
        [
            Packet(0x31, publish_body(0, 0, "a", Some(&[]), b"new")),
            Packet(0x31, publish_body(0, 0, "b", Some(&[2, 0, 0, 0, 90]), b"short")),
        ]
    );
    // The process takes a topic over: then it is not ours to keep.
    bench.broker.publish(bench.now, Message::new(Topic::new("a").unwrap(), "1").retained());
    bench.store();
    assert_eq!(bench.disk.len(), 1);
}

#[test]
fn a_subscriber_that_acknowledges_at_once_costs_no_disk() {
    let mut bench = Bench::keeping(Limits::default());
    let id = bench.open();
    bench.send(id, &persistent_v3("c"));
    bench.send(id, &subscribe_v3(1, &[("t", 1)]));
    bench.store();
    bench.read(id);
    let publisher = bench.connect(&connect_v3("publisher"));
    bench.send(publisher, &publish_v3(2, 1, "t", b"1"));
    bench.send(id, &frame(0x40, &[0, 1]));
    assert_eq!(bench.store(), 0);
    assert_eq!(bench.read(publisher), [Packet(0x40, vec![0, 1])]);
}

#[test]
fn what_cannot_be_stored_is_refused_and_stored_later() {
    let mut bench = Bench::keeping(Limits::default());
    subscribed(&mut bench, &persistent_v3("reader"), "t", 1);
    let new = bench.connect(&connect_v5("new", &[]));
    let old = bench.connect(&connect_v3("old"));
    bench.send(new, &publish_v5(2, 1, "t", &[], b"1"));
    bench.send(old, &publish_v3(2, 1, "t", b"2"));
    bench.fail_to_store();
    assert_eq!(bench.read(new), [Packet(0x40, vec![0, 1, 0x97])]);
    assert!(bench.is_closed(old) && !bench.is_closed(new));
    // Neither a session nor a subscription is promised without a disk.
    let other = bench.open();
    assert_eq!(bench.send(other, &persistent_v3("other")), []);
    bench.fail_to_store();
    assert_eq!(bench.read(other), [Packet(0x20, vec![0, 3])]);
    assert!(bench.is_closed(other));
    assert_eq!(bench.broker.counters().failed_changes, 2);
    // The disk is there again: what is known is written, also what was refused.
    bench.store();
    assert_eq!(bench.restart(), Restored { sessions: 2, messages: 2, retained: 0, wills: 0, unreadable: 0 });
}

#[test]
fn a_session_ends_on_disk_when_it_ends() {
    let mut bench = Bench::keeping(Limits::default());
    subscribed(&mut bench, &persistent_v5("expires", 30), "t", 1);
    subscribed(&mut bench, &persistent_v3("cleaned"), "t", 1);
    let publisher = bench.connect(&connect_v3("publisher"));
    bench.send(publisher, &publish_v3(2, 1, "t", b"1"));
    bench.store();
    bench.wait(20 * SECOND);
    assert_eq!(bench.restart().sessions, 2);
    bench.wait(11 * SECOND);
    let id = bench.open();
    assert_eq!(bench.send(id, &connect_v3("cleaned")), [], "not before the old one is gone");
    bench.store();
    assert_eq!(bench.read(id), [Packet(0x20, vec![0, 0])]);
    assert!(bench.disk.is_empty(), "{:?}", bench.disk.keys());
}

#[test]
fn a_connection_that_waits_for_its_session_can_be_taken_over_and_lost() {
    let mut bench = Bench::keeping(Limits::default());
    let one = bench.open();
    bench.send(one, &persistent_v3("c"));
    let other = bench.open();
    bench.send(other, &persistent_v3("c"));
    assert!(bench.is_closed(one));
    bench.store();
    assert_eq!(bench.read(other), [Packet(0x20, vec![1, 0])]);
    let third = bench.open();
    bench.send(third, &persistent_v3("d"));
    bench.lose(third);
    bench.store();
    assert_eq!(bench.broker.clients().len(), 2);
    assert_eq!(bench.broker.connection_count(), 2);
    bench.lose(one);
}

#[test]
fn records_that_do_not_read_are_dropped_and_the_others_stay() {
    let mut bench = Bench::keeping(Limits::default());
    subscribed(&mut bench, &persistent_v3("c"), "t", 1);
    subscribed(&mut bench, &persistent_v3("d"), "t", 1);
    let publisher = bench.connect(&connect_v3("publisher"));
    for n in 1..=3 {
        bench.send(publisher, &publish_v3(2, n, "t", b"x"));
    }
    bench.store();
    // A session, and a message that both wait for.
    bench.disk.insert((Shelf::State, 1), "nonsense".into());
    bench.disk.insert((Shelf::Message, 2), "nonsense".into());
    let found = bench.restart();
    assert_eq!((found.sessions, found.messages), (1, 2));
    bench.store();
    assert_eq!(bench.restart(), Restored { sessions: 1, messages: 2, retained: 0, wills: 0, unreadable: 0 });
    assert!(
        bench.broker.clients().iter().all(|client| &*client.client_id == "d" && client.subscriptions == 1)
    );
    let _ = Filter::new("t");
}

/// CONNECT with a retained will `gone` on `will`, QoS 1: of a session that ends with its connection, or lasts a minute,
/// whose will waits for so long.
fn with_will(client_id: &str, is_kept: bool, delay_secs: u32) -> Vec<u8> {
    let mut rest = vec![5, 0x18];
    rest.extend(delay_secs.to_be_bytes());
    rest.extend([field(b"will"), field(b"gone")].concat());
    let properties: &[u8] = if is_kept { &[0x11, 0, 0, 0, 240] } else { &[] };
    connect(5, 0x2e, 0, Some(properties), client_id, &rest)
}

/// What a subscriber has got since it was asked last.
fn wills(bench: &mut Bench, reader: mqtt::ConnectionId) -> usize {
    let packets = bench.read(reader);
    for packet in &packets {
        assert_eq!(packet.1, publish_body(0, 0, "will", None, b"gone"));
    }
    packets.len()
}

#[test]
fn the_will_of_a_client_that_does_not_come_back_after_a_restart_is_published() {
    let limits = Limits { will_grace: 30 * SECOND, ..Limits::default() };
    // A delay that is longer than the session counts as its end: no time for one, 240 s for the other.
    for (is_kept, delay, due_secs) in
        [(false, 0, 30), (false, 900, 30), (true, 0, 30), (true, 100, 100), (true, 900, 240)]
    {
        let mut bench = Bench::keeping(limits.clone());
        for client_id in ["lost", "back", "polite"] {
            let id = bench.open();
            bench.send(id, &with_will(client_id, is_kept, delay));
            bench.store();
            bench.read(id);
            if client_id == "polite" {
                bench.send(id, &frame(0xe0, &[]));
            }
        }
        bench.store();
        assert_eq!(bench.restart().wills, 2, "who said goodbye left none");
        let reader = bench.connect(&connect_v3("reader"));
        bench.send(reader, &subscribe_v3(1, &[("will", 0)]));
        let back = bench.open();
        bench.send(back, &with_will("back", is_kept, delay));
        bench.store();
        bench.wait(SECOND * (due_secs - 1));
        assert_eq!(wills(&mut bench, reader), 0);
        bench.wait(2 * SECOND);
        assert_eq!(wills(&mut bench, reader), 1);
        bench.store();
        // Said once, and what is retained of it stays; the one that is back has its own will.
        let found = bench.restart();
        assert_eq!((found.wills, found.retained), (1, 1));
        let reader = bench.connect(&connect_v3("reader"));
        bench.send(reader, &subscribe_v3(1, &[("other", 0)]));
        bench.wait(300 * SECOND);
        bench.store();
        assert_eq!(bench.broker.counters().wills, 1);
        assert_eq!(bench.restart().wills, 0);
    }
}

#[test]
fn a_client_that_is_refused_is_not_back() {
    let mut bench = Bench::keeping(Limits::default());
    let id = bench.open();
    bench.send(id, &with_will("lost", true, 0));
    bench.store();
    bench.restart();
    let id = bench.open();
    bench.send(id, &with_will("lost", true, 0));
    bench.fail_to_store();
    assert!(bench.is_closed(id));
    bench.lose(id);
    bench.store();
    assert_eq!(bench.restart().wills, 1, "its will is still there");
}

#[test]
fn a_broker_that_says_goodbye_leaves_no_will_behind_but_those_that_were_due() {
    let mut bench = Bench::keeping(Limits::default());
    for client_id in ["connected", "lost"] {
        let id = bench.open();
        bench.send(id, &with_will(client_id, true, 100));
        bench.store();
        if client_id == "lost" {
            bench.lose(id);
        }
    }
    bench.broker.shut_down(bench.now);
    bench.store();
    assert_eq!(bench.restart().wills, 1);
}
