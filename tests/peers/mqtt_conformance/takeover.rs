//! A second connection with the same client id takes the session over (§3.1.4).

use crate::client::Connect;
use crate::wire::{Publish, Version, property};
use crate::{Check, Room, check};

pub const CHECKS: &[Check] = &[
    check!(a_second_connection_ends_the_first, V31 "3.1", V311 "3.1.4-2", V5 "3.1.4-3"),
    check!(the_first_is_told_that_it_was_taken_over, V5 "3.1.4-3"),
    check!(the_second_works_on_after_the_first_has_gone, V31 "3.1", V311 "3.1.4-2", V5 "3.1.4-3"),
    check!(a_lasting_session_goes_over_with_its_subscriptions, V311 "3.1.2-4", V5 "3.1.2-5"),
    check!(what_the_first_left_unacknowledged_comes_to_the_second, V311 "4.4.0-1", V5 "4.4.0-1"),
    check!(a_clean_second_starts_anew, V311 "3.1.2-6", V5 "3.1.2-4"),
    check!(the_will_of_the_first_is_published, V311 "3.1.2-8", V5 "3.1.2-10"),
    check!(the_will_of_the_second_is_kept_until_it_goes, V311 "3.1.2-8", V5 "3.1.2-10"),
    check!(a_delayed_will_of_the_first_is_not_published_when_the_session_goes_on, V5 "3.1.3-9"),
    check!(a_delayed_will_of_the_first_is_published_when_the_session_ends, V5 "3.1.2.5"),
    check!(a_5_0_client_may_take_over_from_a_3_1_1_client, V5 "3.1.4-3"),
    check!(fifty_takeovers_leave_one_client, V311 "3.1.4-2", V5 "3.1.4-3"),
];

fn a_second_connection_ends_the_first(room: &Room) {
    let mut first = room.client("a");
    let mut second = room.client("a");
    first.expect_rejected(&[0x8e]);
    second.ping();
}

fn the_first_is_told_that_it_was_taken_over(room: &Room) {
    let mut first = room.client("a");
    let _second = room.client("a");
    first.expect_disconnect(0x8e);
}

fn the_second_works_on_after_the_first_has_gone(room: &Room) {
    let mut first = room.client("a");
    let mut second = room.client("a");
    second.subscribe(room.topic("x"), 1);
    first.expect_closed();
    drop(first);
    second.publish(Publish::new(room.topic("x"), "y").qos(1));
    assert_eq!(second.message().text(), "y");
}

fn a_lasting_session_goes_over_with_its_subscriptions(room: &Room) {
    let mut first = room.hello("a").lasting().open(room.broker);
    first.subscribe(room.topic("x"), 1);
    let (mut second, connack) = room.hello("a").lasting().open_with(room.broker);
    assert!(connack.is_present());
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    assert_eq!(second.message().text(), "y");
    first.expect_closed();
}

fn what_the_first_left_unacknowledged_comes_to_the_second(room: &Room) {
    let mut first = room.hello("a").lasting().open(room.broker);
    first.subscribe(room.topic("x"), 1);
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    let sent = first.unacked();
    let mut second = room.hello("a").lasting().open(room.broker);
    let again = second.message();
    assert_eq!((again.text(), again.id, again.dup), (sent.text(), sent.id, true));
}

fn a_clean_second_starts_anew(room: &Room) {
    let mut first = room.hello("a").lasting().open(room.broker);
    first.subscribe(room.topic("x"), 1);
    let (mut second, connack) = room.hello("a").open_with(room.broker);
    assert!(!connack.is_present());
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    second.expect_nothing();
}

fn the_will_of_the_first_is_published(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("will"), 1);
    let with_will = |text: &str| room.hello("a").will(Publish::new(room.topic("will"), text).qos(1));
    let mut first = with_will("first").open(room.broker);
    let mut second = with_will("second").open(room.broker);
    assert_eq!(watcher.message().text(), "first");
    first.expect_closed();
    watcher.expect_nothing();
    second.ping();
}

fn the_will_of_the_second_is_kept_until_it_goes(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("will"), 1);
    let _first = room.client("a");
    let will = Publish::new(room.topic("will"), "second").qos(1);
    let second = room.hello("a").will(will).open(room.broker);
    watcher.expect_nothing();
    second.vanish();
    assert_eq!(watcher.message().text(), "second");
}

fn a_delayed_will_of_the_first_is_not_published_when_the_session_goes_on(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("will"), 1);
    let will = Publish::new(room.topic("will"), "first").qos(1).with(property::will_delay(1));
    let mut first = room.hello("a").lasting().will(will).open(room.broker);
    let mut second = room.hello("a").lasting().open(room.broker);
    first.expect_closed();
    watcher.expect_nothing_for(std::time::Duration::from_millis(2_500));
    second.ping();
}

fn a_delayed_will_of_the_first_is_published_when_the_session_ends(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("will"), 1);
    let will = Publish::new(room.topic("will"), "first").qos(1).with(property::will_delay(60));
    let _first = room.hello("a").lasting().will(will).open(room.broker);
    let _second = room.client("a");
    assert_eq!(watcher.message().text(), "first", "clean start ends the session, and with it the delay");
}

fn a_5_0_client_may_take_over_from_a_3_1_1_client(room: &Room) {
    let mut old = Connect::new(Version::V311, room.id("a")).clean(false).open(room.broker);
    old.subscribe(room.topic("x"), 1);
    let (mut new, connack) = room.hello("a").lasting().open_with(room.broker);
    assert!(connack.is_present());
    assert!(old.expect_closed().is_empty(), "3.1.1 has no DISCONNECT from the server");
    room.publish(Publish::new(room.topic("x"), "y").qos(1));
    assert_eq!(new.message().text(), "y");
}

fn fifty_takeovers_leave_one_client(room: &Room) {
    let mut clients: Vec<_> = (0..50).map(|_| room.client("a")).collect();
    let mut last = clients.pop().unwrap();
    for mut client in clients {
        client.expect_rejected(&[0x8e]);
    }
    last.subscribe(room.topic("x"), 1);
    last.publish(Publish::new(room.topic("x"), "y").qos(1));
    assert_eq!(last.payloads(1), ["y"]);
    last.expect_nothing();
}
