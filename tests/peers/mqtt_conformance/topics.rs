//! Topic names and filters: what they may be and what matches what (§4.7).

use crate::client::Client;
use crate::wire::Publish;
use crate::{Check, Room, check};

pub const CHECKS: &[Check] = &[
    check!(a_wildcard_in_a_topic_ends_the_connection, V31 "3.3", V311 "3.3.2-2", V5 "3.3.2-2"),
    check!(an_empty_topic_ends_the_connection, V311 "4.7.3-1", V5 "4.7.3-1"),
    check!(an_empty_filter_is_not_granted, V311 "4.7.3-1", V5 "4.7.3-1"),
    check!(a_misplaced_hash_is_not_granted, V311 "4.7.1-2", V5 "4.7.1-1"),
    check!(a_misplaced_plus_is_not_granted, V311 "4.7.1-3", V5 "4.7.1-2"),
    check!(hash_matches_its_parent_and_everything_below, V31 "A.2", V311 "4.7.1-2", V5 "4.7.1-1"),
    check!(plus_matches_one_level, V31 "A.2", V311 "4.7.1-3", V5 "4.7.1-2"),
    check!(plus_matches_an_empty_level, V311 "4.7.1-3", V5 "4.7.1-2"),
    check!(a_leading_slash_is_a_level, V311 "4.7.3", V5 "4.7.3"),
    check!(topics_are_case_sensitive_and_may_have_spaces, V311 "4.7.3", V5 "4.7.3"),
    check!(nothing_is_normalised, V311 "4.7.3-4", V5 "4.7.3-4"),
    check!(a_byte_order_mark_is_part_of_a_topic, V311 "1.5.3-3", V5 "1.5.4-3"),
    check!(topics_in_any_language_are_carried, V311 "1.5.3-1", V5 "1.5.4-1"),
    check!(a_first_letter_beyond_ascii_is_carried, V311 "1.5.3-1", V5 "1.5.4-1"),
    check!(dollar_topics_match_no_leading_wildcard, V311 "4.7.2-1", V5 "4.7.2-1"),
    check!(dollar_topics_match_a_filter_that_names_them, V311 "4.7.2-1", V5 "4.7.2-1"),
    check!(a_dollar_further_in_is_a_character, V311 "4.7.2-1", V5 "4.7.2-1"),
    check!(a_message_comes_under_the_topic_it_was_published_on, V311 "3.3.2-3", V5 "3.3.2-3"),
    check!(a_topic_of_65535_bytes_is_carried_or_refused, V311 "4.7.3-3", V5 "4.7.3-3"),
    check!(a_hundred_levels_are_carried, V311 "4.7.3", V5 "4.7.3"),
];

fn a_wildcard_in_a_topic_ends_the_connection(room: &Room) {
    for wrong in ["+", "#", "a/+/b", "a/#", "a+", "a#b"] {
        let mut client = room.client("a");
        client.send(&Publish::new(room.topic(wrong), "x").bytes(room.version));
        client.expect_rejected(&[0x81, 0x82, 0x90]);
    }
}

fn an_empty_topic_ends_the_connection(room: &Room) {
    let mut client = room.client("a");
    client.send(&Publish::new("", "x").bytes(room.version));
    client.expect_rejected(&[0x81, 0x82, 0x90]);
}

/// A filter that breaks the rules: the connection ends, or SUBACK says that there is no such subscription.
#[track_caller]
fn assert_not_granted(room: &Room, filter: &str) {
    let mut client = room.client("a");
    client.send(&crate::client::subscribe_bytes(room.version, 1, &[(filter.as_bytes(), 0)], &[]));
    let Ok(Some(packet)) = client.read(crate::client::PATIENCE) else { return };
    if packet.kind() == crate::wire::kind::SUBACK {
        let codes = packet.codes(room.version);
        assert!(codes.len() == 1 && codes[0] >= 0x80, "{filter:?} was granted: {codes:02x?}");
        return;
    }
    assert_eq!(packet.kind(), crate::wire::kind::DISCONNECT, "{packet:02x?}");
    client.expect_closed();
}

fn an_empty_filter_is_not_granted(room: &Room) {
    assert_not_granted(room, "");
}

fn a_misplaced_hash_is_not_granted(room: &Room) {
    for wrong in ["a#", "a/#/b", "#/a", "##", "a/b#"] {
        assert_not_granted(room, wrong);
    }
}

fn a_misplaced_plus_is_not_granted(room: &Room) {
    for wrong in ["a+", "+a", "a/+b/c", "++", "a/b+"] {
        assert_not_granted(room, wrong);
    }
}

/// Publishes on each topic and expects exactly those that match.
#[track_caller]
fn assert_matches(room: &Room, filter: &str, matching: &[&str], others: &[&str]) {
    let mut client: Client = room.client("m");
    client.subscribe(room.topic(filter), 0);
    let mut publisher = room.client("p");
    for topic in others.iter().chain(matching) {
        publisher.publish(Publish::new(room.topic(topic), "x").qos(1));
    }
    let came: Vec<String> = matching.iter().map(|_| client.message().topic()).collect();
    let expected: Vec<String> = matching.iter().map(|topic| room.topic(topic)).collect();
    assert_eq!(came, expected, "of {filter}");
    client.expect_nothing();
}

fn hash_matches_its_parent_and_everything_below(room: &Room) {
    assert_matches(
        room,
        "sport/tennis/player1/#",
        &["sport/tennis/player1", "sport/tennis/player1/ranking", "sport/tennis/player1/score/wimbledon"],
        &["sport/tennis", "sport/tennis/player2", "sport/tennis/player11"],
    );
    assert_matches(room, "#", &["a", "a/b", "/", "/a/"], &[]);
}

fn plus_matches_one_level(room: &Room) {
    assert_matches(
        room,
        "sport/tennis/+",
        &["sport/tennis/player1", "sport/tennis/player2"],
        &["sport/tennis", "sport/tennis/player1/ranking"],
    );
    assert_matches(room, "+/tennis/+/x", &["a/tennis/b/x"], &["a/tennis/b", "a/golf/b/x", "tennis/b/x"]);
    assert_matches(room, "+/+/#", &["a/b", "a/b/c", "a/b/c/d"], &["a"]);
}

fn plus_matches_an_empty_level(room: &Room) {
    assert_matches(room, "sport/+", &["sport/"], &["sport", "sport//"]);
    assert_matches(room, "a/+/b", &["a//b"], &["a/b"]);
}

fn a_leading_slash_is_a_level(room: &Room) {
    // Behind the room's own level: `/finance` there is two levels more.
    assert_matches(room, "+/+", &["/finance"], &["finance", "/finance/x"]);
    assert_matches(room, "/+", &["/finance"], &["finance"]);
    assert_matches(room, "+", &["finance"], &["/finance"]);
}

fn topics_are_case_sensitive_and_may_have_spaces(room: &Room) {
    assert_matches(room, "ACCOUNTS", &["ACCOUNTS"], &["Accounts", "accounts"]);
    assert_matches(
        room,
        "Accounts payable/ ",
        &["Accounts payable/ "],
        &["Accounts payable/", "Accounts  payable/ "],
    );
}

fn nothing_is_normalised(room: &Room) {
    // é in one character and in two; a fullwidth letter; `.` and `..` mean nothing.
    assert_matches(room, "caf\u{e9}", &["caf\u{e9}"], &["cafe\u{301}", "cafe"]);
    assert_matches(room, "\u{ff21}", &["\u{ff21}"], &["A", "a"]);
    assert_matches(room, "a/../b", &["a/../b"], &["b", "a/b"]);
    assert_matches(room, "a/./b", &["a/./b"], &["a/b"]);
}

fn a_byte_order_mark_is_part_of_a_topic(room: &Room) {
    assert_matches(room, "\u{feff}x", &["\u{feff}x"], &["x"]);
    assert_matches(room, "+", &["x\u{feff}y"], &[]);
}

fn topics_in_any_language_are_carried(room: &Room) {
    assert_matches(room, "+/+", &["キッチン/温度", "кухня/температура", "🌡/🏠", "été/°C"], &[]);
}

fn a_first_letter_beyond_ascii_is_carried(room: &Room) {
    let topic = format!("été{}", room.topic("x"));
    let mut client = room.client("a");
    client.subscribe(&topic, 1);
    room.publish(Publish::new(&topic, "y").qos(1));
    assert_eq!(client.message().topic(), topic);
}

fn dollar_topics_match_no_leading_wildcard(room: &Room) {
    let hidden = format!("$check/{}", room.topic("x"));
    let mut client = room.client("a");
    client.subscribe("#", 0);
    client.subscribe(format!("+/{}", room.topic("x")), 0);
    let mut publisher = room.client("p");
    publisher.publish(Publish::new(&hidden, "hidden").qos(1));
    let last = room.topic("last");
    publisher.publish(Publish::new(&last, "seen").qos(1));
    loop {
        // Others publish as well, and `#` is all of it.
        let message = client.message();
        assert!(!message.topic().starts_with('$'), "{}", message.topic());
        if message.topic() == last {
            break;
        }
    }
}

fn dollar_topics_match_a_filter_that_names_them(room: &Room) {
    let topic = format!("$check/{}", room.topic("x"));
    for filter in [topic.clone(), format!("$check/{}", room.topic("#")), format!("$check/+/{}", "x")] {
        let mut client = room.client("a");
        client.subscribe(&filter, 0);
        room.publish(Publish::new(&topic, "seen").qos(1));
        // `$check/+/x` sees other rooms too.
        while client.message().topic() != topic {}
    }
}

fn a_dollar_further_in_is_a_character(room: &Room) {
    assert_matches(room, "+/x", &["$SYS/x", "a$/x"], &[]);
    assert_matches(room, "#", &["$share/g/x", "$"], &[]);
}

fn a_message_comes_under_the_topic_it_was_published_on(room: &Room) {
    let mut client = room.client("a");
    client.subscribe(room.topic("+/b/#"), 1);
    room.publish(Publish::new(room.topic("a/b/c"), "x").qos(1));
    assert_eq!(client.message().topic(), room.topic("a/b/c"));
}

fn a_topic_of_65535_bytes_is_carried_or_refused(room: &Room) {
    let long = format!("{}{}", room.topic(""), "x".repeat(65_535 - room.topic("").len()));
    let mut client = room.client("a");
    client.subscribe(room.topic("+"), 0);
    client.publish(Publish::new(&long, "y").qos(1));
    assert!(client.message().topic() == long);
}

fn a_hundred_levels_are_carried(room: &Room) {
    let deep = room.topic(&"x/".repeat(98));
    let mut client = room.client("a");
    client.subscribe(room.topic(&"+/".repeat(98)), 0);
    client.publish(Publish::new(&deep, "y").qos(1));
    assert_eq!(client.message().topic(), deep);
}
