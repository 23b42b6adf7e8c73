//! Bytes of any kind: nothing panics, nothing grows, and what is sent can be read.

use proptest::prelude::*;

use super::*;
use crate::wire::number::*;

fn small() -> Config {
    let mut config = Config::default();
    let limits = &mut config.limits;
    (limits.duplicates, limits.duplicate_bytes, limits.deferred) = (64, 500, 8);
    (limits.exchanges, limits.observers, limits.observers_per_peer) = (8, 8, 4);
    (limits.snapshots, limits.assemblies, limits.body_bytes) = (4, 4, 200);
    (limits.outbox_bytes, limits.requests, limits.events) = (4000, 4, 4);
    config
}

/// A message that is nearly right.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![
        Just(IF_MATCH),
        Just(ETAG),
        Just(IF_NONE_MATCH),
        Just(OBSERVE),
        Just(URI_PATH),
        Just(CONTENT_FORMAT),
        Just(URI_QUERY),
        Just(ACCEPT),
        Just(BLOCK2),
        Just(BLOCK1),
        Just(SIZE2),
        Just(NO_RESPONSE),
        0..300u16
    ];
    let value = prop_oneof![
        Just(b"value".to_vec()),
        Just(b"large".to_vec()),
        Just(b"slow".to_vec()),
        Just(b"count".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..9)
    ];
    let options = proptest::collection::vec((number, value), 0..5);
    let code = prop_oneof![4 => 0..6u8, 1 => any::<u8>(), 1 => Just(0x45u8)];
    let payload = proptest::collection::vec(any::<u8>(), 0..40);
    (0..4u8, code, 0..20u16, 0..5usize, options, payload, any::<u16>()).prop_map(
        |(kind, code, id, token, mut options, payload, spoil)| {
            options.sort_by_key(|option| option.0);
            let kind =
                [Kind::Confirmable, Kind::NonConfirmable, Kind::Acknowledgement, Kind::Reset][kind as usize];
            let mut bytes = Vec::new();
            let mut writer =
                Writer::new(&mut bytes, kind, Code(code), id, Token::new(&[7; 8][..token]).unwrap());
            for (number, value) in options {
                writer.option(number, &value);
            }
            writer.payload(&payload);
            if spoil < 6000 {
                let at = spoil as usize % bytes.len();
                bytes[at] ^= (spoil >> 4) as u8;
                bytes.truncate(bytes.len() - at % 3);
            }
            bytes
        },
    )
}

#[test]
fn a_confirmable_message_with_the_id_of_one_that_wanted_no_answer_gets_no_empty_datagram() {
    let mut bench = Bench::with(small());
    // A POST without an answer (No-Response, RFC 7967), then another with its id.
    bench.tell(peer(2), &[0x50, 2, 0, 1, 0xD1, 245, 136]);
    bench.tell(peer(2), &[0x40, 2, 0, 1]);
    bench.said();
}

proptest! {
    #[test]
    fn whatever_comes_state_stays_within_its_bounds_and_everything_sent_is_a_message(
        steps in proptest::collection::vec((nearly(), 0..3u16, 0..4000u64, 0..10u8), 1..120)
    ) {
        let mut bench = Bench::with(small());
        let server = peer(1);
        bench.endpoint.request(bench.now, server, crate::Outgoing::observe("/value"));
        for (bytes, port, wait, action) in steps {
            bench.tell(peer(port), &bytes);
            match action {
                0 => drop(bench.notify(&bytes)),
                1 => drop(bench.pass(Duration::from_millis(wait))),
                2 => {
                    if let Some(ticket) = bench.store.tickets.pop() {
                        bench.endpoint.respond(bench.now, ticket, &Response::content(Format::TEXT, bytes));
                    }
                }
                3 => drop(bench.endpoint.request(bench.now, server, crate::Outgoing::get("/large"))),
                _ => bench.now += Duration::from_millis(wait / 10),
            }
            bench.said();
            while bench.endpoint.poll_event().is_some() {}
            let endpoint = &bench.endpoint;
            prop_assert!(endpoint.deferred.len() <= 8 && endpoint.deferred_timers.len() == endpoint.deferred.len());
            prop_assert!(endpoint.exchanges.len() <= 8 && endpoint.observers.len() <= 8);
            prop_assert!(endpoint.requests.pending.len() <= 4 && endpoint.requests.tokens.len() <= 8);
            prop_assert!(endpoint.behind.len() <= 8);
        }
        // When nothing more comes, everything ends.
        for _ in 0..200 {
            let Some(deadline) = bench.endpoint.deadline().filter(|_| bench.endpoint.observers() == 0 || bench.endpoint.exchanges.len() > 0) else {
                break;
            };
            let wait = deadline.saturating_duration_since(bench.now);
            bench.pass(wait);
        }
        prop_assert_eq!(bench.endpoint.exchanges.len(), 0);
    }

    #[test]
    fn any_bytes_at_all_are_survived(
        datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 1..60)
    ) {
        let mut bench = Bench::with(small());
        for mut bytes in datagrams {
            if bytes.len() > 1 {
                bytes[0] = bytes[0] & 0x3f | 0x40;
            }
            prop_assert!(bench.tell(peer(1), &bytes).len() <= 1);
        }
    }
}
