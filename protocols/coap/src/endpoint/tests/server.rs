//! What a server says to single messages, by the RFCs' rules.

use super::*;
use crate::wire::number::*;

type Options<'a> = Vec<(u16, &'a [u8])>;

const PATH: (u16, &[u8]) = (URI_PATH, b"value");

#[test]
fn a_get_is_answered_by_its_acknowledgement_with_tag_and_freshness() {
    let mut bench = Bench::new();
    let said = bench.ask(&con(Code::GET, 7, &[PATH], b""));
    assert_eq!((said.kind, said.code, said.id), (Kind::Acknowledgement, Code::CONTENT, 7));
    assert_eq!(said.token.as_bytes(), [0, 7]);
    assert_eq!(
        (&said.payload[..], said.uint(CONTENT_FORMAT), said.uint(MAX_AGE)),
        (&b"22.3"[..], Some(0), Some(30))
    );
    assert_eq!(said.options[&ETAG], [ETag::of(b"22.3").as_bytes()]);
    let said = bench.ask(&request(Kind::NonConfirmable, Code::GET, 8, &[PATH], b""));
    assert_eq!(
        (said.kind, said.code, said.token.as_bytes()),
        (Kind::NonConfirmable, Code::CONTENT, &[0, 8][..])
    );
}

#[test]
fn host_and_port_and_unknown_elective_options_are_ignored() {
    let mut bench = Bench::new();
    let options: [(u16, &[u8]); 5] =
        [(URI_HOST, b"gw.local"), (URI_PORT, &[0x16, 0x33]), PATH, (SIZE1, &[1]), (65_000, b"?")];
    assert_eq!(bench.ask(&con(Code::GET, 1, &options, b"")).code, Code::CONTENT);
}

#[test]
fn a_critical_option_that_is_unknown_repeated_or_of_the_wrong_length_is_4_02() {
    let mut bench = Bench::new();
    for (n, options) in [
        vec![PATH, (65_001, &b"?"[..])],
        vec![(OSCORE, &b"x"[..]), PATH],
        vec![PATH, (ACCEPT, &[0]), (ACCEPT, &[60])],
        vec![PATH, (ACCEPT, &[0, 0, 60])],
        vec![(URI_HOST, b""), PATH],
        vec![(IF_NONE_MATCH, &[1]), PATH],
        vec![PATH, (BLOCK2, &[0, 0, 0, 6])],
        vec![PATH, (BLOCK2, &[6]), (BLOCK2, &[6])],
        vec![(URI_PATH, &[0xff, 0xfe])],
    ]
    .into_iter()
    .enumerate()
    {
        let said = bench.ask(&con(Code::GET, n as u16, &options, b""));
        assert_eq!((said.code, said.kind), (Code::BAD_OPTION, Kind::Acknowledgement), "case {n}");
        let non = request(Kind::NonConfirmable, Code::GET, n as u16, &options, b"");
        assert!(bench.tell(peer(1), &non).is_empty(), "a non-confirmable one is rejected silently, case {n}");
    }
    assert_eq!(bench.store.put, 0);
}

#[test]
fn what_is_not_allowed_is_told_by_its_code() {
    let mut bench = Bench::new();
    let long: Options<'_> = vec![(URI_PATH, b"a"); 17];
    let cases: Vec<(Code, Options<'_>, &[u8], Code)> = vec![
        (Code::GET, vec![(URI_PATH, b"nothing")], b"", Code::NOT_FOUND),
        (Code::GET, vec![], b"", Code::NOT_FOUND),
        (Code::GET, vec![PATH, (URI_PATH, b"deeper")], b"", Code::NOT_FOUND),
        (Code::GET, long, b"", Code::NOT_FOUND),
        (Code::POST, vec![PATH], b"", Code::METHOD_NOT_ALLOWED),
        (Code::FETCH, vec![PATH], b"", Code::METHOD_NOT_ALLOWED),
        (Code::IPATCH, vec![PATH], b"", Code::METHOD_NOT_ALLOWED),
        (Code::new(0, 31), vec![PATH], b"", Code::METHOD_NOT_ALLOWED),
        (Code::GET, vec![PATH, (ACCEPT, &[50])], b"", Code::NOT_ACCEPTABLE),
        (Code::GET, vec![PATH, (ACCEPT, &[60])], b"", Code::CONTENT),
        (Code::GET, vec![PATH, (ACCEPT, &[])], b"", Code::CONTENT),
        (Code::PUT, vec![PATH, (CONTENT_FORMAT, &[50])], b"1", Code::UNSUPPORTED_CONTENT_FORMAT),
        (Code::GET, vec![PATH, (BLOCK2, &[7])], b"", Code::BAD_REQUEST),
        (Code::GET, vec![(PROXY_URI, b"coap://a/b")], b"", Code::PROXYING_NOT_SUPPORTED),
        (Code::GET, vec![PATH, (PROXY_SCHEME, b"coap")], b"", Code::PROXYING_NOT_SUPPORTED),
        (Code::PUT, vec![(IF_NONE_MATCH, b""), PATH], b"1", Code::PRECONDITION_FAILED),
        (Code::PUT, vec![(IF_MATCH, b"other"), PATH], b"1", Code::PRECONDITION_FAILED),
        (Code::PUT, vec![(IF_MATCH, b""), (URI_PATH, b"nothing")], b"1", Code::PRECONDITION_FAILED),
        (Code::PUT, vec![(IF_MATCH, b""), PATH], b"22.3", Code::CHANGED),
    ];
    for (n, (code, options, payload, expected)) in cases.into_iter().enumerate() {
        let said = bench.ask(&con(code, n as u16, &options, payload));
        assert_eq!(said.code, expected, "case {n}");
    }
    let tag = ETag::of(b"22.3");
    let said =
        bench.ask(&con(Code::PUT, 100, &[(IF_MATCH, b"other"), (IF_MATCH, tag.as_bytes()), PATH], b"5"));
    assert_eq!((said.code, bench.store.put), (Code::CHANGED, 2));
}

#[test]
fn a_held_representation_is_confirmed_by_2_03_without_payload() {
    let mut bench = Bench::new();
    let tag = ETag::of(b"22.3");
    let said = bench.ask(&con(Code::GET, 1, &[(ETAG, b"old"), (ETAG, tag.as_bytes()), PATH], b""));
    assert_eq!((said.code, said.payload.len(), said.uint(CONTENT_FORMAT)), (Code::VALID, 0, None));
    assert_eq!((&said.options[&ETAG][0][..], said.uint(MAX_AGE)), (tag.as_bytes(), Some(30)));
    bench.store.value = b"23.0".to_vec();
    assert_eq!(bench.ask(&con(Code::GET, 2, &[(ETAG, tag.as_bytes()), PATH], b"")).code, Code::CONTENT);
}

#[test]
fn a_ping_a_reserved_code_and_a_format_error_are_answered_by_a_reset_or_not_at_all() {
    let mut bench = Bench::new();
    let reset = bench.ask(&[0x40, 0, 0x12, 0x34]);
    assert_eq!((reset.kind, reset.code, reset.id), (Kind::Reset, Code::EMPTY, 0x1234));
    for con in [
        &[0x40, 0x20, 0, 1][..],
        &[0x40, 0xe0, 0, 1],
        &[0x40, 1, 0, 1, 0xff],
        &[0x4f, 1, 0, 1],
        &[0x40, 0, 0, 1, 9],
    ] {
        assert_eq!(bench.ask(con).kind, Kind::Reset, "{con:02x?}");
        let non = [&[con[0] | 0x10][..], &con[1..]].concat();
        assert!(bench.tell(peer(1), &non).is_empty(), "{non:02x?}");
    }
    for silent in
        [&[0x80, 1, 0, 1][..], &[0x40, 1], &[], &[0x50, 0, 0, 1], &[0x60, 1, 0, 1], &[0x70, 1, 0, 1]]
    {
        assert!(bench.tell(peer(1), silent).is_empty(), "{silent:02x?}");
    }
    // A confirmable response to nothing we asked.
    assert_eq!(bench.ask(&con(Code::CONTENT, 9, &[], b"x")).kind, Kind::Reset);
}

#[test]
fn a_source_that_cannot_be_answered_and_a_confirmable_message_to_a_group_are_dropped() {
    let mut bench = Bench::new();
    let get = con(Code::GET, 1, &[PATH], b"");
    for address in [
        "127.0.0.1:0",
        "0.0.0.0:5683",
        "224.0.1.187:5683",
        "255.255.255.255:5683",
        "[ff02::fd]:5683",
        "[::]:1",
    ] {
        let peer = Peer { socket: 0, address: address.parse().unwrap() };
        assert!(bench.tell(peer, &get).is_empty(), "{address}");
    }
    bench.endpoint.handle_datagram(bench.now, peer(1), true, &get, &mut bench.store);
    bench.endpoint.handle_datagram(bench.now, peer(1), true, &[0x40, 0, 0, 1], &mut bench.store);
    let missing = request(Kind::NonConfirmable, Code::GET, 2, &[(URI_PATH, b"nothing")], b"");
    bench.endpoint.handle_datagram(bench.now, peer(1), true, &missing, &mut bench.store);
    assert!(bench.said().is_empty());
    assert_eq!(bench.endpoint.counters().unanswerable, 8);
    let get = request(Kind::NonConfirmable, Code::GET, 3, &[PATH], b"");
    bench.endpoint.handle_datagram(bench.now, peer(1), true, &get, &mut bench.store);
    assert_eq!(bench.said()[0].code, Code::CONTENT);
}

#[test]
fn a_repeated_post_is_answered_from_the_stored_reply_until_its_lifetime_ends() {
    let mut bench = Bench::new();
    let post = con(Code::POST, 5, &[(URI_PATH, b"count")], b"");
    let first = bench.ask(&post);
    assert_eq!(first.options[&LOCATION_PATH], [b"count".to_vec(), b"1".to_vec()]);
    bench.now += Duration::from_secs(246);
    assert_eq!(bench.ask(&post), first);
    assert_eq!(bench.store.count, 1);
    assert_eq!(bench.tell(peer(2), &post).len(), 1);
    assert_eq!(bench.store.count, 2, "the same id of another peer is another message");
    bench.now += Duration::from_secs(2);
    assert_ne!(bench.ask(&post), first);
    assert_eq!(bench.store.count, 3);
    let non = request(Kind::NonConfirmable, Code::POST, 6, &[(URI_PATH, b"count")], b"");
    assert_eq!(bench.tell(peer(1), &non).len(), 1);
    assert!(bench.tell(peer(1), &non).is_empty(), "a repeated non-confirmable one is ignored");
    assert_eq!(bench.store.count, 4);
}

#[test]
fn no_response_suppresses_the_class_and_leaves_the_acknowledgement() {
    let mut bench = Bench::new();
    let put = |kind, id, mask: u8| request(kind, Code::PUT, id, &[PATH, (NO_RESPONSE, &[mask])], b"1");
    let said = bench.ask(&put(Kind::Confirmable, 1, 2));
    assert_eq!((said.kind, said.code), (Kind::Acknowledgement, Code::EMPTY));
    assert!(bench.tell(peer(1), &put(Kind::NonConfirmable, 2, 26)).is_empty());
    assert_eq!(bench.ask(&put(Kind::Confirmable, 3, 24)).code, Code::CHANGED);
}

#[test]
fn a_quick_answer_rides_on_the_acknowledgement() {
    let mut bench = Bench::new();
    let put = con(Code::PUT, 5, &[(URI_PATH, b"slow")], b"1");
    assert!(bench.tell(peer(1), &put).is_empty());
    assert_eq!(bench.endpoint.deadline(), Some(bench.now + Duration::from_millis(100)));
    let ticket = bench.store.tickets[0];
    assert!(bench.endpoint.respond(bench.now, ticket, &Response::new(Code::CHANGED)));
    let said = bench.said();
    assert_eq!((said[0].kind, said[0].code, said[0].id), (Kind::Acknowledgement, Code::CHANGED, 5));
    assert_eq!(bench.tell(peer(1), &put), said);
    assert!(!bench.endpoint.respond(bench.now, ticket, &Response::new(Code::CHANGED)), "once");
    assert_eq!((bench.store.tickets.len(), bench.endpoint.deadline()), (1, None));
}

#[test]
fn a_slow_answer_comes_as_a_confirmable_message_until_it_is_acknowledged() {
    let mut bench = Bench::new();
    let get = con(Code::GET, 5, &[(URI_PATH, b"slow")], b"");
    assert!(bench.tell(peer(1), &get).is_empty());
    assert!(bench.tell(peer(1), &get).is_empty(), "a repetition is not carried out");
    let said = bench.pass(Duration::from_millis(100));
    assert_eq!((said[0].kind, said[0].code, said[0].id), (Kind::Acknowledgement, Code::EMPTY, 5));
    assert_eq!(bench.tell(peer(1), &get), said);
    bench.now += Duration::from_secs(3);
    let ticket = bench.store.tickets[0];
    bench.endpoint.respond(bench.now, ticket, &Response::content(Format::TEXT, *b"done"));
    let said = bench.said();
    assert_eq!(
        (said[0].kind, said[0].code, &said[0].payload[..]),
        (Kind::Confirmable, Code::CONTENT, &b"done"[..])
    );
    assert_eq!(said[0].token.as_bytes(), [0, 5]);
    assert_eq!(bench.pass(Duration::from_secs(3)), said, "it is repeated");
    bench.tell(peer(1), &[[0x60, 0], said[0].id.to_be_bytes()].concat());
    assert!(bench.pass(Duration::from_secs(100)).is_empty());
    assert_eq!((bench.store.tickets.len(), bench.endpoint.deadline()), (1, None));
}

#[test]
fn a_resource_that_never_answers_is_a_5_04() {
    let mut bench = Bench::new();
    bench.tell(peer(1), &con(Code::GET, 5, &[(URI_PATH, b"slow")], b""));
    bench.pass(Duration::from_secs(1));
    let said = bench.pass(Duration::from_secs(90));
    assert_eq!((said[0].kind, said[0].code), (Kind::Confirmable, Code::GATEWAY_TIMEOUT));
    assert_eq!(bench.endpoint.counters().deferred_expired, 1);
}

#[test]
fn more_requests_than_may_wait_are_turned_away_before_they_begin() {
    let mut config = Config::default();
    config.limits.deferred = 2;
    let mut bench = Bench::with(config);
    for id in 0..2 {
        assert!(bench.tell(peer(1), &con(Code::PUT, id, &[(URI_PATH, b"slow")], b"")).is_empty());
    }
    assert_eq!(bench.ask(&con(Code::PUT, 9, &[(URI_PATH, b"slow")], b"")).code, Code::SERVICE_UNAVAILABLE);
    assert_eq!(bench.store.tickets.len(), 2);
}

#[test]
fn the_well_known_resource_lists_links_and_filters_them() {
    let mut bench = Bench::new();
    let mut ask = |id, query: &[u8]| {
        let mut options: Vec<(u16, &[u8])> = vec![(URI_PATH, b".well-known"), (URI_PATH, b"core")];
        options.extend((!query.is_empty()).then_some((URI_QUERY, query)));
        let said = bench.ask(&con(Code::GET, id, &options, b""));
        assert_eq!((said.code, said.uint(CONTENT_FORMAT)), (Code::CONTENT, Some(40)));
        String::from_utf8(said.payload).unwrap()
    };
    assert_eq!(ask(1, b""), "</value>;rt=\"t.value\";obs,</large>;rt=\"t.large\";sz=5000");
    assert_eq!(ask(2, b"rt=t.l*"), "</large>;rt=\"t.large\";sz=5000");
    assert_eq!(ask(3, b"rt=none"), "");
    let core: [(u16, &[u8]); 3] = [(URI_PATH, b".well-known"), (URI_PATH, b"core"), (ACCEPT, &[50])];
    assert_eq!(bench.ask(&con(Code::GET, 4, &core, b"")).code, Code::NOT_ACCEPTABLE);
    assert_eq!(bench.ask(&con(Code::PUT, 5, &core[..2], b"")).code, Code::METHOD_NOT_ALLOWED);
}

#[test]
fn a_large_representation_is_fetched_in_any_order_from_one_snapshot() {
    let mut bench = Bench::new();
    let path: (u16, &[u8]) = (URI_PATH, b"large");
    let body = bench.store.large.clone();
    let first = bench.ask(&con(Code::GET, 1, &[path], b""));
    assert_eq!((first.uint(BLOCK2), first.uint(SIZE2)), (Some(0x0e), Some(5000)));
    assert_eq!(first.payload, body[..1024]);
    bench.store.large = vec![9; 5000].into();
    for (id, number) in [(2, 4u32), (3, 1), (4, 3), (5, 2)] {
        let said = bench.ask(&con(Code::GET, id, &[path, (BLOCK2, &[(number << 4 | 6) as u8])], b""));
        let (begin, end) = (number as usize * 1024, (number as usize * 1024 + 1024).min(5000));
        assert_eq!(said.payload, body[begin..end]);
        assert_eq!(said.uint(BLOCK2), Some(number << 4 | u32::from(number < 4) << 3 | 6));
        assert_eq!(said.options[&ETAG], first.options[&ETAG]);
    }
    let said = bench.ask(&con(Code::GET, 6, &[path, (BLOCK2, &[0x56])], b""));
    assert_eq!(said.code, Code::BAD_REQUEST, "there is no sixth block");
    // The client may ask for smaller blocks at once.
    let said = bench.ask(&con(Code::GET, 7, &[path, (BLOCK2, &[0x02])], b""));
    assert_eq!((said.uint(BLOCK2), said.payload.len()), (Some(0x0a), 64));
    // Another peer has no part in the snapshot.
    let said = &bench.tell(peer(2), &con(Code::GET, 8, &[path, (BLOCK2, &[0x16])], b""))[0];
    assert_eq!(said.payload, [9; 1024]);
    assert_ne!(said.options[&ETAG], first.options[&ETAG]);
}

#[test]
fn a_body_in_blocks_is_put_together_and_a_gap_is_4_08() {
    let mut bench = Bench::new();
    let mut put =
        |id, block: u8, payload: &[u8]| bench.ask(&con(Code::PUT, id, &[PATH, (BLOCK1, &[block])], payload));
    let said = put(1, 0x08, &[b'a'; 16]);
    assert_eq!((said.code, said.uint(BLOCK1)), (Code::CONTINUE, Some(8)));
    assert_eq!(put(1, 0x08, &[b'a'; 16]), said, "a repeated block is not added twice");
    assert_eq!(put(2, 0x28, &[b'c'; 16]).code, Code::REQUEST_ENTITY_INCOMPLETE);
    assert_eq!(put(3, 0x08, &[b'a'; 16]).code, Code::CONTINUE);
    assert_eq!(put(4, 0x18, &[b'b'; 16]).code, Code::CONTINUE);
    assert_eq!(put(5, 0x20, b"c").code, Code::CHANGED);
    assert_eq!(bench.store.value, [vec![b'a'; 16], vec![b'b'; 16], vec![b'c']].concat());
    let mut config = Config::default();
    config.limits.body_bytes = 20;
    let mut bench = Bench::with(config);
    assert_eq!(bench.ask(&con(Code::PUT, 1, &[PATH, (BLOCK1, &[0x08])], &[0; 16])).code, Code::CONTINUE);
    let said = bench.ask(&con(Code::PUT, 2, &[PATH, (BLOCK1, &[0x18])], &[0; 16]));
    assert_eq!((said.code, said.uint(SIZE1)), (Code::REQUEST_ENTITY_TOO_LARGE, Some(20)));
    assert_eq!(bench.ask(&con(Code::PUT, 3, &[PATH], &[0; 21])).code, Code::REQUEST_ENTITY_TOO_LARGE);
    assert_eq!(bench.store.put, 0);
}

#[test]
fn an_observer_is_notified_with_rising_numbers_until_it_leaves() {
    let mut bench = Bench::new();
    let observe = |id, value: &'static [u8]| con(Code::GET, id, &[(OBSERVE, value), PATH], b"");
    let mut last = bench.ask(&observe(1, b"")).uint(OBSERVE).unwrap();
    for n in 0..5 {
        let said = bench.notify(&[n]);
        assert_eq!(
            (said.len(), said[0].kind, said[0].token.as_bytes()),
            (1, Kind::NonConfirmable, &[0, 1][..])
        );
        let number = said[0].uint(OBSERVE).unwrap();
        assert!(number > last);
        last = number;
    }
    // Deregistration uses the token of the registration.
    let mut leave = observe(1, &[1]);
    leave[3] = 9;
    let said = bench.ask(&leave);
    assert_eq!((said.code, said.uint(OBSERVE)), (Code::CONTENT, None));
    assert!(bench.notify(b"x").is_empty());
    // A reset of any of the last notifications ends the observation as well.
    bench.ask(&observe(2, b""));
    let said = bench.notify(b"y");
    bench.notify(b"z");
    bench.tell(peer(1), &[[0x70, 0], said[0].id.to_be_bytes()].concat());
    assert!(bench.notify(b"x").is_empty());
    assert_eq!((bench.endpoint.observers(), bench.endpoint.counters().observers_lost), (0, 1));
}

#[test]
fn every_so_often_a_notification_is_confirmable_and_only_the_newest_value_follows_it() {
    let mut bench = Bench::new();
    bench.ask(&con(Code::GET, 1, &[(OBSERVE, b""), PATH], b""));
    let kinds: Vec<_> = (0..16).map(|n| bench.notify(&[n])[0].clone()).collect();
    assert!(kinds[..15].iter().all(|said| said.kind == Kind::NonConfirmable));
    let confirmable = &kinds[15];
    assert_eq!(confirmable.kind, Kind::Confirmable);
    assert!(bench.notify(b"1").is_empty() && bench.notify(b"2").is_empty());
    let repeated = bench.pass(Duration::from_secs(3));
    assert_eq!((repeated[0].kind, &repeated[0].payload[..]), (Kind::Confirmable, &b"2"[..]));
    assert_ne!(repeated[0].id, confirmable.id, "other content is another message");
    assert!(bench.notify(b"3").is_empty() && bench.notify(b"4").is_empty());
    let said = bench.tell(peer(1), &[[0x60, 0], repeated[0].id.to_be_bytes()].concat());
    assert_eq!((said.len(), said[0].kind, &said[0].payload[..]), (1, Kind::NonConfirmable, &b"4"[..]));
    assert_eq!(bench.endpoint.counters().notifications_coalesced, 2);
}

#[test]
fn an_observer_that_does_not_acknowledge_is_forgotten() {
    let mut bench = Bench::new();
    bench.ask(&con(Code::GET, 1, &[(OBSERVE, b""), PATH], b""));
    bench.ask(&con(Code::GET, 2, &[(OBSERVE, b""), (URI_PATH, b"large")], b""));
    for n in 0..16 {
        bench.notify(&[n]);
    }
    for _ in 0..6 {
        bench.pass(Duration::from_secs(48));
    }
    assert_eq!((bench.endpoint.observers(), bench.endpoint.counters().observers_lost), (0, 2));
    assert_eq!(bench.endpoint.deadline(), None);
}

#[test]
fn a_silent_observer_is_asked_once_a_day_whether_it_is_there() {
    let mut bench = Bench::new();
    bench.ask(&con(Code::GET, 1, &[(OBSERVE, b""), PATH], b""));
    let mut confirmable = 0;
    for _ in 0..24 * 3 {
        let said = bench.pass(Duration::from_secs(3600));
        for said in said.into_iter().filter(|said| said.kind == Kind::Confirmable) {
            confirmable += 1;
            bench.tell(peer(1), &[[0x60, 0], said.id.to_be_bytes()].concat());
        }
    }
    assert_eq!((confirmable, bench.endpoint.observers()), (3, 1));
}

#[test]
fn a_resource_that_is_gone_or_has_nothing_to_say_tells_its_observers_so() {
    let mut bench = Bench::new();
    bench.ask(&con(Code::GET, 1, &[(OBSERVE, b""), PATH], b""));
    bench.ask(&con(Code::GET, 2, &[(OBSERVE, b""), (URI_PATH, b"silent")], b""));
    bench.endpoint.notify(bench.now, SILENT, &mut bench.store);
    assert!(bench.said().is_empty());
    bench.store.is_gone = true;
    let said = bench.notify(b"");
    assert_eq!((said[0].code, said[0].uint(OBSERVE)), (Code::NOT_FOUND, None));
    assert_eq!(bench.endpoint.observers(), 1);
}

#[test]
fn observers_beyond_the_bound_are_answered_plainly() {
    let mut config = Config::default();
    (config.limits.observers, config.limits.observers_per_peer) = (3, 2);
    let mut bench = Bench::with(config);
    let mut observe = |port, id| {
        let said = &bench.tell(peer(port), &con(Code::GET, id, &[(OBSERVE, b""), PATH], b""))[0];
        assert_eq!(said.code, Code::CONTENT);
        said.uint(OBSERVE).is_some()
    };
    assert!(observe(1, 1) && observe(1, 2) && !observe(1, 3) && observe(2, 1) && !observe(3, 1));
    assert!(observe(1, 1), "a registration can be renewed");
    assert_eq!(bench.endpoint.counters().observers_refused, 2);
}

#[test]
fn notifications_wait_for_room_and_then_carry_the_newest_value() {
    let mut config = Config::default();
    (config.limits.outbox_bytes, config.limits.observers_per_peer) = (400, 64);
    let mut bench = Bench::with(config);
    for id in 0..40 {
        bench.tell(peer(1), &con(Code::GET, id, &[(OBSERVE, b""), PATH], b""));
    }
    bench.store.value = b"old".to_vec();
    bench.endpoint.notify(bench.now, VALUE, &mut bench.store);
    bench.store.value = b"new".to_vec();
    bench.endpoint.notify(bench.now, VALUE, &mut bench.store);
    let mut last = std::collections::HashMap::new();
    loop {
        let said = bench.said();
        last.extend(said.into_iter().map(|said| (said.token, said.payload)));
        if bench.endpoint.deadline().is_none_or(|deadline| deadline > bench.now) {
            break;
        }
        bench.endpoint.handle_timeout(bench.now, &mut bench.store);
    }
    let newest = last.values().filter(|payload| payload[..] == *b"new").count();
    assert!(last.len() == 40 && newest >= 30, "{newest} of {}", last.len());
}

#[test]
fn a_response_by_an_acknowledgement_counts_only_with_the_token_of_its_request() {
    let mut bench = Bench::new();
    let id = bench.endpoint.request(bench.now, peer(9), crate::Outgoing::get("/value")).unwrap();
    let sent = bench.said().remove(0);
    let mut answer = |token: Token, from, kind, message_id| {
        let mut bytes = Vec::new();
        Writer::new(&mut bytes, kind, Code::CONTENT, message_id, token).payload(b"x");
        bench.tell(peer(from), &bytes);
        bench.endpoint.poll_event()
    };
    let other = Token::new(b"other").unwrap();
    assert_eq!(answer(sent.token, 8, Kind::Acknowledgement, sent.id), None, "another peer");
    assert_eq!(answer(sent.token, 9, Kind::Acknowledgement, sent.id ^ 1), None, "another message");
    assert_eq!(answer(other, 9, Kind::Acknowledgement, sent.id), None, "another token");
    let event = answer(sent.token, 9, Kind::NonConfirmable, 1);
    assert!(
        matches!(event, Some(crate::Event::Response { request, is_last: true, .. }) if request == id),
        "{event:?}"
    );
}
