//! The broker's rules, one by one, packet by packet.
#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod bench;
mod durable;
mod restarts;
mod sessions;
mod subscriptions;

use std::time::{Duration, Instant};

use bench::*;
use mqtt::{
    Access, Broker, ConnectRequest, Event, Filter, IngressToken, Limits, Message, Origin, Peer, Principal,
    Qos, ReasonCode, Taking, Topic, Transport, Verdict,
};

#[test]
fn each_version_is_answered_in_its_own_words_on_the_same_port() {
    let mut bench = Bench::new(Limits::default());
    let id = bench.open();
    assert_eq!(bench.send(id, &connect_v3("a")), [Packet(0x20, vec![0, 0])]);
    let id = bench.open();
    let packets = bench.send(id, &connect_v5("b", &[]));
    assert_eq!((packets[0].0, &packets[0].1[..2]), (0x20, &[0, 0][..]));
    // MQTT 3.1.
    let id = bench.open();
    let old = frame(0x10, b"\x00\x06MQIsdp\x03\x02\x00\x00\x00\x01c");
    assert_eq!(bench.send(id, &old), [Packet(0x20, vec![0, 0])]);
    // What nobody speaks: 3.1.1 to say so to an old client, 5.0 to one of the future.
    for (level, answer) in [(2, vec![0, 1]), (6, vec![0, 0x84, 0])] {
        let id = bench.open();
        assert_eq!(bench.send(id, &connect(level, 2, 0, None, "d", &[])), [Packet(0x20, answer)]);
        assert!(bench.is_closed(id));
    }
}

#[test]
fn a_connection_begins_with_one_connect_and_has_no_second() {
    let mut bench = Bench::new(Limits::default());
    let id = bench.open();
    assert_eq!(bench.send(id, &[0xc0, 0]), []);
    assert!(bench.is_closed(id), "PINGREQ is no beginning");
    let id = bench.connect(&connect_v5("a", &[]));
    assert_eq!(bench.send(id, &connect_v5("a", &[])), [Packet(0xe0, vec![0x82])]);
    assert!(bench.is_closed(id));
    let id = bench.connect(&connect_v3("a"));
    assert_eq!(bench.send(id, &connect_v3("a")), []);
    assert!(bench.is_closed(id));
    assert_eq!(bench.broker.counters().protocol_errors, 3);
}

#[test]
fn a_connection_without_a_connect_is_closed_in_time() {
    let mut bench = Bench::new(Limits::default());
    let id = bench.open();
    bench.send(id, &connect_v3("slow")[..5]);
    bench.wait(Duration::from_secs(9));
    assert!(!bench.is_closed(id));
    bench.wait(Duration::from_secs(1));
    assert!(bench.is_closed(id));
    assert_eq!(bench.broker.counters().connect_timeouts, 1);
}

#[test]
fn an_empty_client_id_is_given_a_name_or_refused() {
    let mut bench = Bench::new(Limits::default());
    let id = bench.open();
    let packets = bench.send(id, &connect_v5("", &[]));
    assert!(packets[0].1.windows(9).any(|part| part == b"tidegate-"), "assigned: {packets:?}");
    let id = bench.open();
    assert_eq!(bench.send(id, &connect(4, 0, 0, None, "", &[])), [Packet(0x20, vec![0, 2])]);
    bench.connect(&connect_v3(""));
    // 3.1 has no empty client id.
    let id = bench.open();
    let old = frame(0x10, b"\x00\x06MQIsdp\x03\x02\x00\x00\x00\x00");
    assert_eq!(bench.send(id, &old), [Packet(0x20, vec![0, 2])]);
}

#[test]
fn the_dup_flag_of_subscribe_and_pubrel_is_known_to_3_1_alone() {
    let mut bench = Bench::new(Limits::default());
    let old = bench.connect(&frame(0x10, b"\x00\x06MQIsdp\x03\x02\x00\x00\x00\x01c"));
    let mut subscribe = subscribe_v3(1, &[("t", 0)]);
    subscribe[0] |= 8;
    assert_eq!(bench.send(old, &subscribe), [Packet(0x90, vec![0, 1, 0])]);
    assert_eq!(bench.send(old, &[0x6a, 2, 0, 7]), [Packet(0x70, vec![0, 7])]);
    let new = bench.connect(&connect_v3("a"));
    assert_eq!(bench.send(new, &subscribe), []);
    assert!(bench.is_closed(new));
}

#[test]
fn an_acknowledgement_with_a_property_of_another_packet_ends_the_connection() {
    let mut bench = Bench::new(Limits::default());
    // A session expiry; a reason string, twice.
    for properties in [&[0x11, 0, 0, 0, 1][..], &[0x1f, 0, 1, b'x', 0x1f, 0, 1, b'y']] {
        let id = bench.connect(&connect_v5("a", &[]));
        let body = [&[0, 1, 0, properties.len() as u8], properties].concat();
        assert_eq!(bench.send(id, &frame(0x40, &body)), [Packet(0xe0, vec![0x82])]);
        assert!(bench.is_closed(id));
    }
}

#[test]
fn extended_authentication_is_refused() {
    let mut bench = Bench::new(Limits::default());
    let id = bench.open();
    let mut method = vec![0x15];
    method.extend(field(b"SCRAM"));
    assert_eq!(bench.send(id, &connect_v5("a", &method)), [Packet(0x20, vec![0, 0x8c, 0])]);
    assert!(bench.is_closed(id));
}

#[test]
fn connect_properties_that_contradict_each_other_are_refused() {
    let mut bench = Bench::new(Limits::default());
    let data_without_a_method = [&[0x16][..], &field(b"x")].concat();
    for properties in [&data_without_a_method[..], &[0x17, 1, 0x17, 1], &[0x19, 0, 0x19, 1]] {
        let id = bench.open();
        let answer = bench.send(id, &connect_v5("a", properties));
        assert_eq!(answer, [Packet(0x20, vec![0, 0x82, 0])], "{properties:02x?}");
        assert!(bench.is_closed(id));
    }
}

#[test]
fn silence_ends_a_connection_even_while_it_is_being_sent_messages_and_zero_means_never() {
    let mut bench = Bench::new(Limits::default());
    let silent = bench.connect(&connect(5, 2, 10, Some(&[]), "silent", &[]));
    bench.send(silent, &subscribe_v5(1, &[], &[("t", 0)]));
    let patient = bench.connect(&connect_v3("patient"));
    for _ in 0..14 {
        bench.wait(Duration::from_secs(1));
        bench.send(patient, &publish_v3(0, 0, "t", b"x"));
        assert_eq!(bench.read(silent).len(), 1);
    }
    bench.wait(Duration::from_secs(1));
    assert_eq!(bench.read(silent), [Packet(0xe0, vec![0x8d])]);
    assert!(bench.is_closed(silent));
    bench.wait(Duration::from_secs(86_400));
    assert!(!bench.is_closed(patient));
}

#[test]
fn a_packet_above_the_limit_is_refused_by_its_length_alone() {
    let mut bench = Bench::new(Limits { packet_bytes: 1_000, ..Limits::default() });
    let id = bench.connect(&connect_v5("a", &[]));
    assert_eq!(bench.send(id, &[0x30, 0xe8, 0x07]), [Packet(0xe0, vec![0x95])]);
    assert!(bench.is_closed(id));
    assert_eq!(bench.broker.counters().oversized_packets, 1);
}

#[test]
fn a_client_gets_no_packet_larger_than_it_takes() {
    let mut bench = Bench::new(Limits::default());
    // Maximum packet size 40.
    let id = bench.connect(&connect_v5("small", &[0x27, 0, 0, 0, 40]));
    bench.send(id, &subscribe_v5(1, &[], &[("t", 1)]));
    let publisher = bench.connect(&connect_v3("p"));
    for (packet_id, length) in [(1, 100), (2, 10)] {
        bench.send(publisher, &publish_v3(2, packet_id, "t", &vec![b'x'; length]));
    }
    let packets = bench.read(id);
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].1.len(), 3 + 2 + 1 + 10);
    assert_eq!(bench.broker.counters().dropped_too_large, 1);
}

#[test]
fn a_topic_alias_stands_for_its_topic_and_an_unknown_one_ends_the_connection() {
    let mut bench = Bench::new(Limits { topic_aliases: 2, ..Limits::default() });
    let reader = bench.connect(&connect_v3("reader"));
    bench.send(reader, &subscribe_v3(1, &[("#", 0)]));
    let id = bench.connect(&connect_v5("a", &[]));
    bench.send(id, &publish_v5(0, 0, "long/topic", &[0x23, 0, 1], b"1"));
    bench.send(id, &publish_v5(0, 0, "", &[0x23, 0, 1], b"2"));
    bench.send(id, &publish_v5(0, 0, "other", &[0x23, 0, 1], b"3"));
    bench.send(id, &publish_v5(0, 0, "", &[0x23, 0, 1], b"4"));
    let bodies: Vec<Vec<u8>> = bench.read(reader).into_iter().map(|packet| packet.1).collect();
    let body = |topic: &str, payload: &[u8]| publish_body(0, 0, topic, None, payload);
    assert_eq!(
        bodies,
        [body("long/topic", b"1"), body("long/topic", b"2"), body("other", b"3"), body("other", b"4")]
    );
    assert_eq!(bench.send(id, &publish_v5(0, 0, "", &[0x23, 0, 2], b"5")), [Packet(0xe0, vec![0x82])]);
    let id = bench.connect(&connect_v5("a", &[]));
    assert_eq!(bench.send(id, &publish_v5(0, 0, "t", &[0x23, 0, 3], b"5")), [Packet(0xe0, vec![0x94])]);
}

#[test]
fn a_client_that_takes_aliases_is_sent_them_for_its_first_topics_until_it_is_gone() {
    let mut bench = Bench::new(Limits { topic_aliases_sent: 2, ..Limits::default() });
    // Its session stays for a minute.
    let taking = |aliases: u8| connect(5, 0, 0, Some(&[0x22, 0, aliases, 0x11, 0, 0, 0, 60]), "reader", &[]);
    let mut reader = bench.connect(&taking(9));
    bench.send(reader, &subscribe_v5(1, &[], &[("#", 1)]));
    let sender = bench.connect(&connect_v3("sender"));
    let publish = |bench: &mut Bench, topic: &str| {
        bench.send(sender, &publish_v3(0, 0, topic, b"x"));
    };
    for topic in ["a/1", "a/2", "a/1", "a/3", "a/2", "a/3"] {
        publish(&mut bench, topic);
    }
    let topics = |packets: Vec<Packet>| -> Vec<(String, Option<u8>)> {
        packets
            .into_iter()
            .map(|Packet(_, body)| {
                let length = usize::from(body[1]);
                let properties = &body[2 + length..];
                let alias = (properties[0] == 3).then(|| properties[3]);
                (String::from_utf8(body[2..2 + length].to_vec()).unwrap(), alias)
            })
            .collect()
    };
    let got = |list: &[(&str, Option<u8>)]| -> Vec<(String, Option<u8>)> {
        list.iter().map(|(topic, alias)| ((*topic).to_owned(), *alias)).collect()
    };
    assert_eq!(
        topics(bench.read(reader)),
        got(&[
            ("a/1", Some(1)),
            ("a/2", Some(2)),
            ("", Some(1)),
            ("a/3", None),
            ("", Some(2)),
            ("a/3", None)
        ])
    );
    // The next connection knows none of them.
    bench.lose(reader);
    reader = bench.connect(&taking(1));
    for topic in ["a/2", "a/2", "a/1"] {
        publish(&mut bench, topic);
    }
    assert_eq!(topics(bench.read(reader)), got(&[("a/2", Some(1)), ("", Some(1)), ("a/1", None)]));
    bench.lose(reader);
    reader = bench.connect(&taking(0));
    publish(&mut bench, "a/2");
    assert_eq!(topics(bench.read(reader)), got(&[("a/2", None)]));
}

#[test]
fn more_unacknowledged_messages_than_agreed_end_a_5_0_connection() {
    let mut bench = Bench::new(Limits { receive_maximum: 2, ..Limits::default() });
    let id = bench.connect(&connect_v5("a", &[]));
    for packet_id in 1..=2 {
        let answer = bench.send(id, &publish_v5(4, packet_id, "t", &[], b"x"));
        assert_eq!(answer, [Packet(0x50, vec![0, packet_id as u8])]);
    }
    assert_eq!(bench.send(id, &publish_v5(4, 3, "t", &[], b"x")), [Packet(0xe0, vec![0x93])]);
}

#[test]
fn acknowledgements_leave_in_order_and_only_when_what_they_promise_is_stored() {
    let mut bench = Bench::new(Limits::default());
    bench.broker.set_forwarded(&[Filter::new("up/#").unwrap()]);
    let id = bench.connect(&connect_v5("a", &[]));
    assert_eq!(bench.send(id, &publish_v5(2, 1, "up/1", &[], b"1")), []);
    assert_eq!(bench.send(id, &publish_v5(4, 2, "up/2", &[], b"2")), []);
    assert_eq!(
        bench.send(id, &publish_v5(2, 3, "local", &[], b"3")),
        [],
        "behind the others, though not forwarded"
    );
    assert_eq!(bench.send(id, &publish_v5(0, 0, "up/0", &[], b"0")), []);
    let token = |event: &Event| match event {
        Event::Ingress { token, origin, .. } => {
            assert_eq!(*origin, Origin::Client("a".into()));
            *token
        }
        event => panic!("{event:?}"),
    };
    let tokens: Vec<_> = bench.events.iter().map(token).collect();
    let [Some(first), Some(second), None] = tokens[..] else { panic!("{tokens:?}") };
    bench.broker.acknowledge(bench.now, second, Err(ReasonCode::QUOTA_EXCEEDED));
    assert_eq!(bench.read(id), []);
    bench.broker.acknowledge(bench.now, first, Ok(()));
    assert_eq!(
        bench.read(id),
        [Packet(0x40, vec![0, 1]), Packet(0x50, vec![0, 2, 0x97]), Packet(0x40, vec![0, 3])]
    );
}

#[test]
fn what_could_not_be_stored_closes_an_older_client_without_an_acknowledgement() {
    let mut bench = Bench::new(Limits::default());
    bench.broker.set_forwarded(&[Filter::new("up").unwrap()]);
    let id = bench.connect(&connect_v3("a"));
    bench.send(id, &publish_v3(2, 1, "up", b"1"));
    let Some(Event::Ingress { token: Some(token), .. }) = bench.events.pop() else { panic!("no ingress") };
    bench.broker.acknowledge(bench.now, token, Err(ReasonCode::QUOTA_EXCEEDED));
    assert_eq!(bench.read(id), []);
    assert!(bench.is_closed(id));
}

#[test]
fn a_full_store_stops_the_reading_of_those_who_fill_it_and_of_nobody_else() {
    let mut bench = Bench::new(Limits { ingress: 2, ..Limits::default() });
    bench.broker.set_forwarded(&[Filter::new("up").unwrap()]);
    let greedy = bench.connect(&connect_v3("greedy"));
    let other = bench.connect(&connect_v3("other"));
    let mut bytes = Vec::new();
    for packet_id in 1..=4 {
        bytes.extend(publish_v3(2, packet_id, "up", b"x"));
    }
    bytes.extend([0xc0, 0]);
    assert_eq!(bench.send(greedy, &bytes), []);
    assert!(!bench.broker.wants_input(greedy));
    assert_eq!(bench.send(other, &publish_v3(2, 1, "down", b"x")), [Packet(0x40, vec![0, 1])]);
    // Silence is not the client's fault now.
    bench.wait(Duration::from_secs(3_600));
    let mut answers = Vec::new();
    while answers.len() < 5 {
        let position = bench.events.iter().position(|event| matches!(event, Event::Ingress { .. }));
        let Event::Ingress { token: Some(token), .. } = bench.events.remove(position.expect("one waits"))
        else {
            panic!("no token");
        };
        bench.broker.acknowledge(bench.now, token, Ok(()));
        answers.extend(bench.read(greedy));
    }
    let acks: Vec<u8> = answers.iter().filter(|packet| packet.0 == 0x40).map(|packet| packet.1[1]).collect();
    assert_eq!(acks, [1, 2, 3, 4]);
    assert_eq!(answers.iter().filter(|packet| packet.0 == 0xd0).count(), 1, "the PINGREQ behind them");
    assert!(bench.broker.wants_input(greedy));
    assert_eq!(bench.broker.counters().stalls, 2);
}

struct Rules;

impl Access for Rules {
    fn connect(&self, request: &ConnectRequest<'_>) -> Verdict {
        match request.user {
            None => Verdict::Refuse(ReasonCode::NOT_AUTHORIZED),
            Some("slow") => Verdict::Later,
            Some(user) if request.password == Some(b"right") => Verdict::Accept(Some(user.into())),
            Some(_) => Verdict::Refuse(ReasonCode::BAD_CREDENTIALS),
        }
    }

    fn may_publish(&self, who: &Principal, topic: &Topic, _: bool) -> bool {
        topic.as_str().starts_with(who.user.as_deref().unwrap_or_default())
    }

    fn may_subscribe(&self, _: &Principal, filter: &Filter) -> bool {
        filter.as_str() != "secret"
    }

    fn may_receive(&self, _: &Principal, topic: &Topic) -> bool {
        topic.as_str() != "secret"
    }
}

fn with_login(level: u8, client_id: &str, user: &str, password: &[u8]) -> Vec<u8> {
    let mut rest = field(user.as_bytes());
    rest.extend(field(password));
    connect(level, 0xc2, 0, (level == 5).then_some(&[][..]), client_id, &rest)
}

#[test]
fn the_access_rules_decide_in_the_words_of_each_version() {
    let mut bench = Bench::new(Limits::default());
    bench.broker.set_access(Box::new(Rules));
    for (bytes, answer) in [
        (connect_v3("a"), vec![0, 5]),
        (connect_v5("a", &[]), vec![0, 0x87, 0]),
        (with_login(4, "a", "u", b"wrong"), vec![0, 4]),
        (with_login(5, "a", "u", b"wrong"), vec![0, 0x86, 0]),
    ] {
        let id = bench.open();
        assert_eq!(bench.send(id, &bytes), [Packet(0x20, answer)]);
        assert!(bench.is_closed(id));
    }
    let new = bench.connect(&with_login(5, "new", "u", b"right"));
    let old = bench.connect(&with_login(4, "old", "u", b"right"));
    let answer = bench.send(new, &subscribe_v5(1, &[], &[("secret", 0), ("#", 2)]));
    assert_eq!(answer, [Packet(0x90, vec![0, 1, 0, 0x87, 2])]);
    let answer = bench.send(old, &subscribe_v3(1, &[("secret", 0), ("#", 2)]));
    assert_eq!(answer, [Packet(0x90, vec![0, 1, 0x80, 2])]);
    assert_eq!(bench.send(new, &publish_v5(2, 7, "x", &[], b"")), [Packet(0x40, vec![0, 7, 0x87])]);
    assert_eq!(bench.send(new, &publish_v5(4, 8, "x", &[], b"")), [Packet(0x50, vec![0, 8, 0x87])]);
    assert_eq!(bench.send(old, &publish_v3(2, 7, "x", b"")), [Packet(0x40, vec![0, 7])], "taken and dropped");
    assert_eq!(bench.broker.counters().denied_publishes, 3);
    bench.broker.publish(bench.now, Message::new(Topic::new("secret").unwrap(), "s"));
    bench.broker.publish(bench.now, Message::new(Topic::new("public").unwrap(), "p"));
    assert_eq!(bench.read(new), [Packet(0x30, publish_body(0, 0, "public", Some(&[]), b"p"))]);
}

#[test]
fn a_verdict_that_takes_time_holds_back_this_client_alone() {
    let mut bench = Bench::new(Limits::default());
    bench.broker.set_access(Box::new(Rules));
    let slow = bench.open();
    let mut bytes = with_login(4, "s", "slow", b"x");
    bytes.extend([0xc0, 0]);
    assert_eq!(bench.send(slow, &bytes), []);
    bench.connect(&with_login(4, "quick", "u", b"right"));
    let Some(Event::Authenticate { connection, user, .. }) = bench.events.pop() else {
        panic!("nobody asked")
    };
    assert_eq!(user.as_deref(), Some("slow"));
    bench.broker.decide(bench.now, connection, Verdict::Accept(Some("slow".into())));
    assert_eq!(bench.read(slow), [Packet(0x20, vec![0, 0]), Packet(0xd0, vec![])]);
}

#[test]
fn the_gateway_itself_publishes_and_subscribes_and_knows_who_a_message_is_from() {
    let mut bench = Bench::new(Limits::default());
    let topic = |text: &str| Topic::new(text).unwrap();
    bench
        .broker
        .publish(bench.now, Message::new(topic("state"), "kept").with_qos(Qos::AtLeastOnce).retained());
    let id = bench.connect(&connect_v3("lamp"));
    bench.broker.subscribe_local(bench.now, Filter::new("#").unwrap(), Taking::Unseen);
    bench.send(id, &publish_v3(2, 1, "lamp/set", b"on"));
    bench.broker.publish(bench.now, Message::new(topic("lamp/state"), "on"));
    bench.read(id);
    let seen: Vec<(String, Origin)> = bench
        .events
        .drain(..)
        .map(|event| match event {
            Event::Local { message, origin, .. } => (message.topic.to_string(), origin),
            event => panic!("{event:?}"),
        })
        .collect();
    let client = Origin::Client("lamp".into());
    let expected = [("state", Origin::Gateway), ("lamp/set", client), ("lamp/state", Origin::Gateway)];
    assert_eq!(seen, expected.map(|(topic, origin)| (topic.to_owned(), origin)));
}

#[test]
fn a_stopping_broker_says_so_and_publishes_no_will() {
    let mut bench = Bench::new(Limits::default());
    let mut will = field(b"will");
    will.extend(field(b"gone"));
    let new = bench.connect(&connect(5, 0x06, 0, Some(&[]), "new", &[&[0], &will[..]].concat()));
    let old = bench.connect(&connect(4, 0x06, 0, None, "old", &will));
    bench.broker.subscribe_local(bench.now, Filter::new("will").unwrap(), Taking::Unseen);
    bench.broker.shut_down(bench.now);
    assert_eq!(bench.read(new), [Packet(0xe0, vec![0x8b])]);
    assert_eq!(bench.read(old), []);
    assert!(bench.is_closed(new) && bench.is_closed(old) && bench.events.is_empty());
}

#[test]
fn a_reader_in_the_process_that_answers_holds_up_the_acknowledgement_and_then_the_sender() {
    let mut bench = Bench::new(Limits { local: 2, ..Limits::default() });
    bench.broker.set_forwarded(&[Filter::new("a/up").unwrap()]);
    let reader = bench.broker.subscribe_local(bench.now, Filter::new("a/+").unwrap(), Taking::Answered);
    bench.broker.subscribe_local(bench.now, Filter::new("a/+").unwrap(), Taking::Unseen);
    let sender = bench.connect(&connect_v5("s", &[]));
    let tokens = |bench: &mut Bench| -> Vec<IngressToken> {
        let token = |event| match event {
            Event::Local { token, .. } | Event::Ingress { token, .. } => token,
            _ => None,
        };
        std::mem::take(&mut bench.events).into_iter().filter_map(token).collect()
    };
    // Two have it: the reader and the intake. The second answer decides, the first failure counts.
    assert_eq!(bench.send(sender, &publish_v5(2, 1, "a/up", &[], b"1")), []);
    let held = tokens(&mut bench);
    assert_eq!(held.len(), 2);
    bench.broker.acknowledge(bench.now, held[0], Err(ReasonCode::QUOTA_EXCEEDED));
    assert_eq!(bench.read(sender), []);
    bench.broker.acknowledge(bench.now, held[1], Ok(()));
    assert_eq!(bench.read(sender), [Packet(0x40, vec![0, 1, 0x97])]);
    // QoS 0 waits for nobody; the gateway's own messages neither.
    bench.send(sender, &publish_v5(0, 0, "a/x", &[], b"0"));
    bench.broker.publish(bench.now, Message::new(Topic::new("a/y").unwrap(), "g").with_qos(Qos::AtLeastOnce));
    bench.read(sender);
    assert_eq!(tokens(&mut bench), []);
    // Two that it has not answered for are all it gets; other topics go on for others.
    for id in [2, 3, 4] {
        assert_eq!(bench.send(sender, &publish_v5(2, id, "a/x", &[], b"x")), []);
    }
    assert!(!bench.broker.wants_input(sender));
    let held = tokens(&mut bench);
    assert_eq!(held.len(), 2);
    let other = bench.connect(&connect_v5("o", &[]));
    assert_eq!(bench.send(other, &publish_v5(2, 1, "b", &[], b"x")), [Packet(0x40, vec![0, 1])]);
    bench.broker.acknowledge(bench.now, held[0], Ok(()));
    assert_eq!(bench.read(sender), [Packet(0x40, vec![0, 2])]);
    assert!(bench.broker.wants_input(sender));
    // Who unsubscribes still answers for what it has; what comes then is acknowledged at once.
    let held = [held[1], tokens(&mut bench)[0]];
    bench.broker.unsubscribe_local(reader);
    assert_eq!(bench.send(sender, &publish_v5(2, 5, "a/x", &[], b"x")), []);
    for token in held {
        bench.broker.acknowledge(bench.now, token, Ok(()));
    }
    let packets: Vec<Packet> = [3, 4, 5].map(|id| Packet(0x40, vec![0, id])).into();
    assert_eq!(bench.read(sender), packets);
}

#[test]
fn one_address_beyond_loopback_gets_no_more_connections_than_its_share() {
    let limits = Limits { connections_per_address: 2, ..Limits::default() };
    let mut broker = Broker::new(limits, 1);
    let now = Instant::now();
    let accept = |broker: &mut Broker, address: &str| {
        broker.accept(now, Peer::new(Some(address.parse().unwrap()), Transport::Tcp))
    };
    let first = accept(&mut broker, "192.0.2.7:1").unwrap();
    assert!(accept(&mut broker, "[::ffff:192.0.2.7]:2").is_some(), "the same, as a socket for both says it");
    assert!(accept(&mut broker, "192.0.2.7:3").is_none());
    assert!(accept(&mut broker, "192.0.2.8:3").is_some());
    assert!((0..5).all(|port| accept(&mut broker, &format!("127.0.0.1:{port}")).is_some()));
    assert_eq!((broker.counters().crowded_addresses, broker.counters().connections), (1, 8));
    broker.handle_gone(now, first);
    assert!(accept(&mut broker, "192.0.2.7:4").is_some());
    assert!(accept(&mut broker, "192.0.2.7:5").is_none());
}

#[test]
fn who_publishes_too_fast_is_read_more_slowly_and_loses_nothing() {
    let mut bench = Bench::new(Limits { publish_rate: 10, ..Limits::default() });
    let reader = bench.connect(&connect_v3("reader"));
    bench.send(reader, &subscribe_v3(1, &[("#", 0)]));
    let fast = bench.connect(&connect_v3("fast"));
    let all: Vec<u8> = (0..35).flat_map(|n| publish_v3(0, 0, &format!("t/{n}"), b"x")).collect();
    bench.send(fast, &all);
    // A second's worth at once.
    assert_eq!(bench.read(reader).len(), 10);
    assert!(!bench.broker.wants_input(fast));
    assert_eq!(bench.broker.counters().throttled, 1);
    let slow = bench.connect(&connect_v3("slow"));
    bench.send(slow, &publish_v3(0, 0, "s", b"x"));
    assert_eq!(bench.read(reader).len(), 1, "another is read as ever");
    bench.wait(Duration::from_millis(1050));
    assert_eq!(bench.read(reader).len(), 10);
    bench.wait(Duration::from_secs(2));
    assert_eq!(bench.read(reader).len(), 15);
    assert!(bench.broker.wants_input(fast));
}

#[test]
fn a_topic_that_is_too_deep_is_refused_in_the_words_of_each_version() {
    let mut bench = Bench::new(Limits { topic_levels: 3, ..Limits::default() });
    let new = bench.connect(&connect_v5("new", &[]));
    let answer =
        bench.send(new, &subscribe_v5(1, &[], &[("a/b/c/d", 0), ("a/b/#", 0), ("$share/g/a/+/c/d", 0)]));
    assert_eq!(answer, [Packet(0x90, vec![0, 1, 0, 0x8f, 0, 0x8f])]);
    assert_eq!(bench.send(new, &publish_v5(2, 1, "a/b/c/d", &[], b"x")), [Packet(0x40, vec![0, 1, 0x90])]);
    assert_eq!(bench.send(new, &publish_v5(4, 2, "a/b/c/d", &[], b"x")), [Packet(0x50, vec![0, 2, 0x90])]);
    let old = bench.connect(&connect_v3("old"));
    assert_eq!(bench.send(old, &subscribe_v3(1, &[("a/b/c/d", 0)])), [Packet(0x90, vec![0, 1, 0x80])]);
    assert_eq!(bench.send(old, &publish_v3(2, 1, "a/b/c/d", b"x")), [Packet(0x40, vec![0, 1])]);
    assert_eq!(bench.read(new), [], "and nobody gets it");
    assert_eq!(bench.broker.counters().refused_topics, 3);
    assert_eq!(bench.broker.counters().refused_subscriptions, 3);
    // A will on such a topic could never be published.
    let id = bench.open();
    let will = [b"\x00\x07a/b/c/d".as_slice(), b"\x00\x01w"].concat();
    let answer = bench.send(id, &connect(5, 0x06, 0, Some(&[]), "w", &[&[0], &will[..]].concat()));
    assert_eq!(answer, [Packet(0x20, vec![0, 0x90, 0])]);
}
