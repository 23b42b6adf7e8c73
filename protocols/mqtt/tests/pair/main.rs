//! The client engine against the broker engine over wires that break, from seeds.
#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use mqtt::client::{Client, Event, Options, PublishError};
use mqtt::{Broker, Filter, Limits, Message, Peer, Properties, Qos, Topic, Transport, Version};
use world::{Faults, World};

const VERSIONS: [Version; 2] = [Version::V311, Version::V5];
const MESSAGES: u64 = 150;
const SEEDS: u64 = 60;

/// One publisher and one subscriber with persistent sessions; the wires break, then they hold and all must arrive.
fn one_way(seed: u64, qos: Qos, versions: (Version, Version), faults: Faults) -> World {
    let mut world = World::new(seed, Limits::default(), faults);
    let subscriber = world.add("subscriber", versions.0, qos);
    subscriber.filter = Some(Filter::new("t/+").unwrap());
    assert!(world.run_until(10_000, |world| world.peers[0].is_subscribed()), "seed {seed}: never subscribed");
    let publisher = world.add("publisher", versions.1, qos);
    publisher.topic = Some(Topic::new("t/1").unwrap());
    publisher.log = (0..MESSAGES).collect();
    for _ in 0..2_000 {
        world.step();
    }
    world.faults = Faults::default();
    let is_done = |world: &World| {
        let received: BTreeSet<_> = world.peers[0].received.iter().collect();
        world.peers[1].log.is_empty() && received.len() as u64 == MESSAGES
    };
    let was_done = world.run_until(20_000, is_done);
    assert!(
        was_done,
        "seed {seed}, {qos:?}, {versions:?}: {} unconfirmed, {} received, {:?}",
        world.peers[1].log.len(),
        world.peers[0].received.len(),
        world.broker.counters()
    );
    world
}

fn for_each_seed(mut test: impl FnMut(u64, (Version, Version), Faults)) {
    for seed in 0..SEEDS {
        let versions = (VERSIONS[seed as usize % 2], VERSIONS[(seed / 2) as usize % 2]);
        test(seed, versions, Faults { cut: 15, restart: 5, refused: 100 });
    }
}

#[test]
fn at_qos_1_nothing_is_lost_and_first_copies_keep_their_order() {
    let mut repeated = 0;
    for_each_seed(|seed, versions, faults| {
        let world = one_way(seed, Qos::AtLeastOnce, versions, faults);
        let mut seen = BTreeSet::new();
        let firsts: Vec<u64> =
            world.peers[0].received.iter().copied().filter(|id| seen.insert(*id)).collect();
        assert_eq!(firsts, (0..MESSAGES).collect::<Vec<_>>(), "seed {seed}");
        repeated += world.peers[0].received.len() - firsts.len();
    });
    assert!(repeated > 0, "the wires never broke in the right places");
}

#[test]
fn at_qos_2_everything_arrives_exactly_once_and_in_order() {
    let mut resent = 0;
    for_each_seed(|seed, versions, faults| {
        let world = one_way(seed, Qos::ExactlyOnce, versions, faults);
        assert_eq!(world.peers[0].received, (0..MESSAGES).collect::<Vec<_>>(), "seed {seed}");
        resent += world.broker.counters().resent;
    });
    assert!(resent > 0, "the wires never broke in the right places");
}

#[test]
fn who_notes_each_step_before_taking_it_ends_at_any_moment_and_sends_nothing_twice() {
    let mut crashes = 0;
    for seed in 0..200 {
        let versions = (VERSIONS[seed as usize % 2], VERSIONS[(seed / 2) as usize % 2]);
        let faults = Faults { cut: 15, restart: 0, refused: 0 };
        let mut world = World::new(seed, Limits::default(), faults);
        let subscriber = world.add("subscriber", versions.0, Qos::ExactlyOnce);
        subscriber.filter = Some(Filter::new("t/+").unwrap());
        assert!(world.run_until(10_000, |world| world.peers[0].is_subscribed()), "seed {seed}");
        let publisher = world.add("publisher", versions.1, Qos::ExactlyOnce);
        publisher.topic = Some(Topic::new("t/1").unwrap());
        publisher.take_care(MESSAGES);
        for _ in 0..4_000 {
            if world.random.chance(20) {
                world.crash(1);
                crashes += 1;
            }
            world.step();
        }
        world.faults = Faults::default();
        let is_done =
            |world: &World| world.peers[1].log.is_empty() && world.peers[0].received.len() as u64 >= MESSAGES;
        let was_done = world.run_until(20_000, is_done);
        assert!(was_done, "seed {seed}: {} unconfirmed", world.peers[1].log.len());
        assert_eq!(world.peers[0].received, (0..MESSAGES).collect::<Vec<_>>(), "seed {seed}");
    }
    assert!(crashes > 5_000, "{crashes}");
}

#[test]
fn pubrel_waits_for_the_caller_and_is_written_again_after_a_reconnect() {
    let now = std::time::Instant::now();
    let careful = || Options {
        version: Version::V311,
        clean_start: false,
        releases_by_itself: false,
        own_packet_ids: 1..=99,
        ..named("c")
    };
    let mut client = Client::new(now, careful()).unwrap();
    let message = Message::new(Topic::new("t").unwrap(), "x").with_qos(Qos::ExactlyOnce);
    let written = |client: &mut Client| {
        let mut bytes = Vec::new();
        client.transmit(now, &mut bytes);
        bytes
    };
    client.connect(now);
    client.handle_input(now, &[0x20, 2, 0, 0]);
    written(&mut client);
    client.publish_as(7, 300, &message).unwrap();
    assert_eq!(client.publish_as(8, 300, &message), Err(PublishError::PacketIdInUse(300)));
    assert_eq!(written(&mut client), [0x34, 6, 0, 1, b't', 1, 44, b'x']);
    client.handle_input(now, &[0x50, 2, 1, 44, 0x50, 2, 1, 44]);
    client.poll_event();
    assert_eq!(client.poll_event(), Some(Event::Received { id: 7 }));
    assert_eq!((client.poll_event(), written(&mut client)), (None, vec![]), "not on the caller's disk yet");
    // The connection goes before the disk is done.
    client.handle_gone();
    client.release(7);
    client.connect(now);
    written(&mut client);
    client.handle_input(now, &[0x20, 2, 1, 0]);
    assert_eq!(written(&mut client), [0x62, 2, 1, 44]);
    // The process goes before PUBCOMP comes.
    let mut next = Client::new(now, careful()).unwrap();
    next.import(&client.unfinished(), &[]);
    next.release(7);
    next.connect(now);
    written(&mut next);
    next.handle_input(now, &[0x20, 2, 1, 0]);
    next.publish_as(7, 300, &message).unwrap();
    assert_eq!(written(&mut next), [0x62, 2, 1, 44], "PUBREL and nothing else");
    next.handle_input(now, &[0x70, 2, 1, 44]);
    next.poll_event();
    assert_eq!((next.poll_event(), next.unfinished()), (Some(Event::Confirmed { id: 7 }), vec![]));
}

#[test]
fn nothing_is_confirmed_before_it_is_stored() {
    for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
        for_each_seed(|seed, versions, faults| {
            let mut world = World::new(seed, Limits { ingress: 3, ..Limits::default() }, faults);
            world.broker.set_forwarded(&[Filter::new("t/#").unwrap()]);
            let publisher = world.add("publisher", versions.1, qos);
            publisher.topic = Some(Topic::new("t/1").unwrap());
            publisher.log = (0..MESSAGES).collect();
            for step in 0..30_000 {
                if step == 3_000 {
                    world.faults = Faults::default();
                }
                world.step();
                let stored: BTreeSet<_> = world.stored.iter().collect();
                let confirmed = &world.peers[0].confirmed;
                assert!(
                    confirmed.iter().all(|id| stored.contains(id)),
                    "seed {seed}: confirmed and not stored"
                );
                if world.peers[0].log.is_empty() {
                    break;
                }
            }
            assert!(world.peers[0].log.is_empty(), "seed {seed}: never finished");
            if qos == Qos::ExactlyOnce {
                let mut stored = world.stored.clone();
                stored.sort_unstable();
                assert_eq!(stored, (0..MESSAGES).collect::<Vec<_>>(), "seed {seed}: stored more than once");
            }
        });
    }
}

#[test]
fn a_silent_broker_is_noticed_by_the_client_and_a_silent_client_by_the_broker() {
    let mut world = World::new(1, Limits::default(), Faults::default());
    world.add("quiet", Version::V311, Qos::AtMostOnce);
    assert!(world.run_until(1_000, |world| world.peers[0].client.is_connected()));
    // An hour in which both are there: pings keep them together.
    let mut broker_calls = 0;
    for _ in 0..400_000 {
        world.step();
        broker_calls += 1;
    }
    assert!(world.peers[0].client.is_connected(), "after {broker_calls} steps");
    assert_eq!(world.broker.counters().keep_alive_timeouts, 0);

    // The wire swallows everything: each side finds out by itself.
    let client = &mut world.peers[0].client;
    let mut now = world.now;
    let start = now;
    while client.is_connected() {
        now = client.deadline().expect("a connected client with a keep-alive has a deadline");
        client.handle_timeout(now);
        assert!(now - start < Duration::from_secs(40), "20 s of keep-alive and 10 s for the answer");
    }
    let start = world.now;
    while world.broker.counters().keep_alive_timeouts == 0 {
        let deadline = world.broker.deadline().expect("a client is connected");
        assert!(deadline - start <= Duration::from_secs(30), "one and a half times 20 s");
        world.broker.handle_timeout(deadline);
    }
}

#[test]
fn properties_cross_the_broker_unaltered_and_expiry_counts_down() {
    let mut now = std::time::Instant::now();
    let mut broker = Broker::new(Limits::default(), 0);
    let mut client = Client::new(
        now,
        Options { clean_start: false, session_expiry: Duration::from_secs(900), ..named("c") },
    )
    .unwrap();
    let mut id = broker.accept(now, Peer::new(None, Transport::Memory)).unwrap();
    client.connect(now);
    exchange(now, &mut broker, id, &mut client);
    client.subscribe(&[(Filter::new("a").unwrap(), Qos::AtLeastOnce)]).unwrap();
    exchange(now, &mut broker, id, &mut client);
    let sent = Properties {
        is_text: Some(true),
        expiry: Some(Duration::from_secs(60)),
        content_type: Some("text/plain".into()),
        response_topic: Some(Topic::new("answer").unwrap()),
        correlation_data: Some(vec![0, 1].into()),
        user: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
    };
    broker.handle_gone(now, id);
    client.handle_gone();
    let message = Message::new(Topic::new("a").unwrap(), "x").with_qos(Qos::AtLeastOnce);
    broker.publish(now, message.with_properties(sent.clone()));
    now += Duration::from_secs(25);
    id = broker.accept(now, Peer::new(None, Transport::Memory)).unwrap();
    client.connect(now);
    let events = exchange(now, &mut broker, id, &mut client);
    let Some(Event::Message { message, .. }) = events.into_iter().last() else { panic!("no message") };
    let expected = Properties { expiry: Some(Duration::from_secs(35)), ..sent };
    assert_eq!(message.properties.as_deref(), Some(&expected));
}

#[test]
fn an_unconfirmed_message_goes_out_again_under_its_packet_id_with_dup() {
    let now = std::time::Instant::now();
    let options = Options { version: Version::V311, clean_start: false, ..named("c") };
    let mut client = Client::new(now, options).unwrap();
    let message = Message::new(Topic::new("t").unwrap(), "x").with_qos(Qos::AtLeastOnce);
    let mut sent = Vec::new();
    for session_present in [0, 1, 0] {
        client.handle_gone();
        client.connect(now);
        client.transmit(now, &mut Vec::new());
        client.handle_input(now, &[0x20, 2, session_present, 0]);
        client.publish(7, &message).unwrap();
        client.publish(7, &message).unwrap();
        let mut bytes = Vec::new();
        client.transmit(now, &mut bytes);
        sent.push(bytes);
    }
    let packet = |first: u8, id: u8| vec![first, 6, 0, 1, b't', 0, id, b'x'];
    assert_eq!(sent, [packet(0x32, 1), packet(0x3a, 1), packet(0x32, 2)], "a lost session begins anew");
}

#[test]
fn the_packet_id_of_a_forgotten_message_is_not_used_while_its_answer_may_come() {
    let now = std::time::Instant::now();
    let options = Options { version: Version::V311, clean_start: false, ..named("c") };
    let mut client = Client::new(now, options).unwrap();
    client.connect(now);
    client.handle_input(now, &[0x20, 2, 0, 0]);
    let message = Message::new(Topic::new("t").unwrap(), "x").with_qos(Qos::ExactlyOnce);
    client.publish(1, &message).unwrap();
    client.forget(1);
    for id in 2..=65_000 {
        client.publish(id, &message).unwrap();
        let [high, low] = (id as u16).to_be_bytes();
        client.handle_input(now, &[0x50, 2, high, low, 0x70, 2, high, low]);
    }
    while client.poll_event().is_some() {}
    for id in 65_001..65_540 {
        client.publish(id, &message).unwrap();
        let unfinished = client.unfinished();
        assert_ne!(unfinished[0].packet_id, 1);
        let [high, low] = unfinished[0].packet_id.to_be_bytes();
        client.handle_input(now, &[0x50, 2, high, low, 0x70, 2, high, low]);
        assert_eq!(client.unfinished(), []);
    }
    // The late answer frees it.
    client.handle_input(now, &[0x50, 2, 0, 1, 0x70, 2, 0, 1]);
    for id in 70_000..140_000 {
        client.publish(id, &message).unwrap();
        let packet_id = client.unfinished()[0].packet_id;
        if packet_id == 1 {
            return;
        }
        let [high, low] = packet_id.to_be_bytes();
        client.handle_input(now, &[0x50, 2, high, low, 0x70, 2, high, low]);
    }
    panic!("never used again");
}

#[test]
fn the_client_keeps_to_what_the_broker_grants() {
    let now = std::time::Instant::now();
    let mut client = Client::new(now, named("c")).unwrap();
    client.connect(now);
    // Receive maximum 1, maximum packet size 30, QoS at most 1, no retained messages, server keep-alive 5 s.
    let granted = [0x21, 0, 1, 0x27, 0, 0, 0, 30, 0x24, 1, 0x25, 0, 0x13, 0, 5];
    client.handle_input(now, &[&[0x20, 18, 0, 0, 15][..], &granted].concat());
    assert!(matches!(client.poll_event(), Some(Event::Connected { .. })));
    let message = Message::new(Topic::new("t").unwrap(), "x").with_qos(Qos::AtLeastOnce);
    let refused = |client: &mut Client, id, message: Message| {
        client.publish(id, &message).unwrap();
        match client.poll_event() {
            Some(Event::Failed { id: failed, reason }) if failed == id => reason.0,
            event => panic!("{event:?}"),
        }
    };
    let long = Message::new(message.topic.clone(), vec![0; 30]).with_qos(Qos::AtLeastOnce);
    assert_eq!(refused(&mut client, 1, long), 0x95);
    assert_eq!(refused(&mut client, 2, message.clone().with_qos(Qos::ExactlyOnce)), 0x9b);
    assert_eq!(refused(&mut client, 3, message.clone().retained()), 0x9a);
    client.publish(4, &message).unwrap();
    assert_eq!(client.publish(5, &message), Err(PublishError::WindowFull));
    assert_eq!(client.capacity(), 0);
    // The one that was too long had taken the first packet id.
    client.handle_input(now, &[0x40, 3, 0, 2, 0x97]);
    let failed = Event::Failed { id: 4, reason: mqtt::ReasonCode::QUOTA_EXCEEDED };
    assert_eq!((client.poll_event(), client.capacity()), (Some(failed), 1));
    assert_eq!(client.deadline(), Some(now + Duration::from_secs(5)));
}

#[test]
fn a_message_is_acknowledged_when_the_caller_is_done_and_in_the_order_of_arrival() {
    let now = std::time::Instant::now();
    let options = Options { acknowledges_by_itself: false, version: Version::V311, ..named("c") };
    let mut client = Client::new(now, options).unwrap();
    client.connect(now);
    client.transmit(now, &mut Vec::new());
    client.handle_input(now, &[0x20, 2, 0, 0]);
    client.poll_event();
    client.handle_input(
        now,
        &[0x32, 5, 0, 1, b't', 0, 1, 0x34, 5, 0, 1, b't', 0, 2, 0x3c, 5, 0, 1, b't', 0, 2],
    );
    let tokens: Vec<_> = std::iter::from_fn(|| client.poll_event())
        .map(|event| match event {
            Event::Message { token: Some(token), .. } => token,
            event => panic!("{event:?}"),
        })
        .collect();
    assert_eq!(tokens.len(), 2, "the repeated one does not come twice");
    let answers = |client: &mut Client| {
        let mut bytes = Vec::new();
        client.transmit(now, &mut bytes);
        bytes
    };
    client.acknowledge(tokens[1]);
    assert_eq!((answers(&mut client), client.incoming()), (vec![], vec![2]));
    client.acknowledge(tokens[0]);
    assert_eq!(answers(&mut client), [0x40, 2, 0, 1, 0x50, 2, 0, 2, 0x50, 2, 0, 2]);
    client.handle_input(now, &[0x62, 2, 0, 2]);
    assert_eq!((answers(&mut client), client.incoming()), (vec![0x70, 2, 0, 2], vec![]));
}

fn named(name: &str) -> Options {
    Options { client_id: name.into(), ..Options::default() }
}

/// Carries bytes both ways until there are none, over a wire without faults.
fn exchange(
    now: std::time::Instant,
    broker: &mut Broker,
    id: mqtt::ConnectionId,
    client: &mut Client,
) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        client.transmit(now, &mut up);
        broker.handle_input(now, id, &up);
        while broker.poll_event().is_some() {}
        broker.transmit(now, id, &mut down);
        client.handle_input(now, &down);
        events.extend(std::iter::from_fn(|| client.poll_event()));
        if up.is_empty() && down.is_empty() {
            return events;
        }
    }
}
