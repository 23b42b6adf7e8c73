//! The listener over real sockets, asked by the engine's own client.

use std::collections::VecDeque;

use coap::{Code, Event, NoResources, Outgoing, RequestId};
use drivers::{BadReason, ChannelSpec, Quality};

use super::*;
use crate::clock::{BootId, Stamp};

/// A listener, and a client of it.
struct World {
    handle: CoapHandle,
    finished: oneshot::Receiver<()>,
    stop: CancellationToken,
    commands: mpsc::Receiver<CommandRequest>,
    socket: UdpSocket,
    server: Peer,
    client: Endpoint,
    events: VecDeque<Event>,
}

impl World {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = Peer { socket: 0, address: socket.local_addr().unwrap() };
        let (orders, commands) = mpsc::channel(2);
        let stop = CancellationToken::new();
        let config = CoapConfig { gateway: "gw".into(), sockets: vec![socket], commands: orders, seed: 1 };
        let Started { handle, finished } = start(config, stop.clone()).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = Endpoint::new(coap::Config::default(), 2, Instant::now());
        Self { handle, finished, stop, commands, socket, server, client, events: VecDeque::new() }
    }

    fn request(&mut self, outgoing: Outgoing) -> RequestId {
        let id = self.client.request(Instant::now(), self.server, outgoing).unwrap();
        self.send();
        id
    }

    fn send(&mut self) {
        while let Some((peer, bytes)) = self.client.poll_transmit() {
            self.socket.send_to(bytes, peer.address).unwrap();
        }
    }

    /// The next response to a request.
    fn response(&mut self, request: RequestId) -> coap::Received {
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            let found = self.events.iter().position(|event| {
                matches!(event, Event::Response { request: id, .. } | Event::Failed { request: id, .. } if *id == request)
            });
            match found.and_then(|index| self.events.remove(index)) {
                Some(Event::Response { response, .. }) => return response,
                Some(failed @ Event::Failed { .. }) => panic!("{failed:?}"),
                None => {}
            }
            let now = Instant::now();
            assert!(now < give_up, "no answer");
            let wait = self.client.deadline().map_or(give_up, |deadline| deadline.min(give_up)) - now;
            self.socket.set_read_timeout(Some(wait.max(Duration::from_millis(1)))).unwrap();
            let mut bytes = [0; 2000];
            let received = self.socket.recv_from(&mut bytes);
            let now = Instant::now();
            if let Ok((len, address)) = received {
                let peer = Peer { socket: 0, address };
                self.client.handle_datagram(now, peer, false, &bytes[..len], &mut NoResources);
            }
            self.client.handle_timeout(now, &mut NoResources);
            self.send();
            self.events.extend(std::iter::from_fn(|| self.client.poll_event()));
        }
    }

    fn ask(&mut self, outgoing: Outgoing) -> coap::Received {
        let request = self.request(outgoing);
        self.response(request)
    }

    /// Asks until the listener's thread has read its mail and answers with `code`.
    fn ask_until(&mut self, path: &str, code: Code) -> coap::Received {
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            let response = self.ask(Outgoing::get(path));
            if response.code == code {
                return response;
            }
            assert!(Instant::now() < give_up, "{response:?}");
        }
    }

    fn announce(&self, channel: &Arc<Channel>) {
        self.handle.announce(channel.device(), std::slice::from_ref(channel));
    }
}

fn channel(path: &str, spec: ChannelSpec) -> Arc<Channel> {
    Arc::new(Channel { id: ChannelId::parse(path).unwrap(), spec, is_simulated: true })
}

fn temperature() -> Arc<Channel> {
    channel("cellar/temperature", ChannelSpec::number("temperature", "Cel").class("temperature"))
}

fn relay() -> Arc<Channel> {
    channel("cellar/relay", ChannelSpec::boolean("relay").kind(drivers::Kind::Actuator))
}

fn reading(channel: &Arc<Channel>, value: Option<f64>) -> Reading {
    Reading {
        channel: channel.clone(),
        value: value.map(Value::Number),
        quality: if value.is_some() { Quality::Good } else { Quality::Bad(BadReason::NoAnswer) },
        stamp: Stamp { boot: BootId(1), monotonic_ns: 1, wall: None },
    }
}

#[test]
fn a_reading_is_served_as_text_and_as_both_kinds_of_senml() {
    let mut world = World::new();
    let channel = temperature();
    world.announce(&channel);
    world.handle.update(&reading(&channel, Some(21.5)));
    let text = world.ask_until("/cellar/temperature", Code::CONTENT);
    assert_eq!((&text.payload[..], text.format), (&b"21.5"[..], Some(coap::Format::TEXT)));
    for path in ["/cellar/temperature", "/cellar"] {
        for format in [coap::Format::SENML_JSON, coap::Format::SENML_CBOR] {
            let pack = world.ask(Outgoing { accept: Some(format), ..Outgoing::get(path) });
            assert_eq!((pack.code, pack.format), (Code::CONTENT, Some(format)));
            let records = match format {
                coap::Format::SENML_JSON => senml::parse_json(&pack.payload),
                _ => senml::parse_cbor(&pack.payload),
            };
            let records = records.unwrap();
            assert_eq!(records[0].value, Some(senml::OwnedValue::Number(21.5)));
            assert!(records[0].name.ends_with("gw/cellar/temperature"), "{records:?}");
        }
    }
    let refused = world.ask(Outgoing { accept: Some(coap::Format::JSON), ..Outgoing::get("/cellar") });
    assert_eq!(refused.code, Code::NOT_ACCEPTABLE);
    assert_eq!(world.ask(Outgoing::get("/")).code, Code::CONTENT);
    assert_eq!(world.ask(Outgoing::get("/cellar/none")).code, Code::NOT_FOUND);
    assert!(world.handle.counters().requests >= 5);
}

#[test]
fn a_channel_without_a_value_is_5_03_with_the_reason_while_senml_tells_its_quality() {
    let mut world = World::new();
    let channel = temperature();
    world.announce(&channel);
    assert_eq!(world.ask_until("/cellar/temperature", Code::SERVICE_UNAVAILABLE).payload, b"no reading yet");
    world.handle.update(&reading(&channel, None));
    let json = Outgoing { accept: Some(coap::Format::SENML_JSON), ..Outgoing::get("/cellar/temperature") };
    let pack = loop {
        let pack = world.ask(json.clone());
        if pack.code == Code::CONTENT {
            break String::from_utf8(pack.payload).unwrap();
        }
    };
    assert!(pack.contains("not answering"), "{pack}");
    let text = world.ask(Outgoing::get("/cellar/temperature"));
    assert_eq!((text.code, &text.payload[..]), (Code::SERVICE_UNAVAILABLE, &b"bad: not answering"[..]));
}

#[test]
fn links_say_what_a_channel_is_and_that_it_is_simulated() {
    let mut world = World::new();
    world.announce(&temperature());
    world.announce(&relay());
    world.ask_until("/cellar/relay", Code::SERVICE_UNAVAILABLE);
    let mut links = |query: &str| {
        let query = if query.is_empty() { vec![] } else { vec![query.to_owned()] };
        let response = world.ask(Outgoing { query, ..Outgoing::get("/.well-known/core") });
        String::from_utf8(response.payload).unwrap()
    };
    assert_eq!(
        links("rt=tidegate.temp*"),
        "</cellar/temperature>;rt=\"tidegate.temperature\";if=\"core.s\";ct=\"0 110 112\";\
         title=\"Temperature (simulated)\";obs"
    );
    assert!(links("if=core.a").starts_with("</cellar/relay>;rt=\"tidegate.actuator\""));
    assert!(links("if=core.b").starts_with("</cellar>;rt=\"tidegate.device\""));
    assert_eq!(coap::parse_links(&links(""), 10).len(), 4);
}

#[test]
fn observers_of_a_channel_and_of_its_device_hear_of_every_change_until_it_is_gone() {
    let mut world = World::new();
    let channel = temperature();
    world.announce(&channel);
    world.handle.update(&reading(&channel, Some(1.0)));
    world.ask_until("/cellar/temperature", Code::CONTENT);
    let channel_observer = world.request(Outgoing::observe("/cellar/temperature"));
    let device_observer = world.request(Outgoing::observe("/cellar"));
    assert!(
        world.response(channel_observer).observe.is_some()
            && world.response(device_observer).observe.is_some()
    );
    for value in [2.0, 3.0] {
        world.handle.update(&reading(&channel, Some(value)));
        assert_eq!(world.response(channel_observer).payload, value.to_string().as_bytes());
        let pack = String::from_utf8(world.response(device_observer).payload).unwrap();
        assert!(pack.contains(&format!("\"v\":{value}")), "{pack}");
    }
    world.handle.update(&reading(&channel, None));
    let pack = String::from_utf8(world.response(device_observer).payload).unwrap();
    assert!(pack.contains("not answering"), "{pack}");
    world.handle.remove("cellar");
    assert_eq!(world.response(channel_observer).code, Code::NOT_FOUND);
    assert_eq!(world.response(device_observer).code, Code::NOT_FOUND);
}

#[test]
fn a_command_is_answered_when_the_desk_is_done() {
    let mut world = World::new();
    world.announce(&relay());
    world.announce(&temperature());
    world.ask_until("/cellar/relay", Code::SERVICE_UNAVAILABLE);
    let put = |path: &str| Outgoing::put(path, coap::Format::TEXT, *b"on");
    for (outcome, code, text) in [
        (Ok(Value::Boolean(true)), Code::CHANGED, ""),
        (Err(Refusal::BadValue("expected on or off".into())), Code::BAD_REQUEST, "expected on or off"),
        (Err(Refusal::Failed("line busy".into())), Code::INTERNAL_SERVER_ERROR, "line busy"),
    ] {
        // Once at once, and once after the acknowledgement has gone out empty.
        for pause in [Duration::ZERO, coap::Timing::default().piggyback_window * 2] {
            let request = world.request(put("/cellar/relay"));
            let command = world.commands.blocking_recv().unwrap();
            assert_eq!((command.channel.as_str(), &command.value[..]), ("cellar/relay", &b"on"[..]));
            assert!(command.source.starts_with("coap 127.0.0.1:"));
            let outcome = outcome.clone();
            let desk = std::thread::spawn(move || {
                std::thread::sleep(pause);
                command.reply.send(outcome).unwrap();
            });
            let response = world.response(request);
            assert_eq!((response.code, &response.payload[..]), (code, text.as_bytes()));
            desk.join().unwrap();
        }
    }
    assert_eq!(world.ask(put("/cellar/temperature")).code, Code::METHOD_NOT_ALLOWED);
    // Nobody takes the commands: the third finds the channel full.
    let waiting = [world.request(put("/cellar/relay")), {
        world.client = Endpoint::new(coap::Config::default(), 3, Instant::now());
        world.socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        world.request(put("/cellar/relay"))
    }];
    world.client = Endpoint::new(coap::Config::default(), 4, Instant::now());
    world.socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let refused = world.ask(put("/cellar/relay"));
    assert_eq!((refused.code, waiting.len()), (Code::SERVICE_UNAVAILABLE, 2));
}

#[test]
fn commands_are_refused_on_a_socket_that_others_reach() {
    let (orders, mut commands) = mpsc::channel(2);
    let mut shelf = Shelf::new("gw".into(), vec![true, false], orders, Waker::noop().clone());
    let now = Instant::now();
    let mut endpoint = Endpoint::new(coap::Config::default(), 1, now);
    let change = mailbox::Change { is_removed: false, channels: vec![relay()] };
    shelf.change_device(now, "cellar", change, &mut endpoint);
    for (socket, is_taken) in [(1, false), (0, true), (2, false)] {
        let peer = Peer { socket, address: "127.0.0.1:4711".parse().unwrap() };
        let mut client = Endpoint::new(coap::Config::default(), 2, now);
        client.request(now, peer, Outgoing::put("/cellar/relay", coap::Format::TEXT, *b"1"));
        let (_, put) = client.poll_transmit().unwrap();
        endpoint.handle_datagram(now, peer, false, put, &mut shelf);
        assert_eq!(commands.try_recv().is_ok(), is_taken);
        if let Some((_, said)) = endpoint.poll_transmit() {
            assert_eq!(coap::Message::parse(said).unwrap().code, Code::FORBIDDEN);
        }
    }
}

#[test]
fn of_each_channel_only_the_newest_reading_waits() {
    let mailbox = Mailbox::new(Arc::new(Bell::new().unwrap()));
    let (first, second) = (temperature(), relay());
    for n in 0..1000 {
        mailbox.put_reading(&reading(&first, Some(n.into())));
        mailbox.put_reading(&reading(&second, None));
    }
    let mail = mailbox.take().unwrap();
    assert_eq!(mail.readings.len(), 2);
    assert_eq!(mail.readings[0].value, Some(Value::Number(999.0)));
    assert_eq!(mailbox.coalesced(), 1998);
    assert!(mailbox.take().is_none());
    mailbox.put_reading(&reading(&first, None));
    mailbox.remove("cellar");
    mailbox.put_channels("cellar", &[first]);
    let mail = mailbox.take().unwrap();
    assert!(mail.readings.is_empty(), "a reading from before the removal is gone");
    assert!(mail.devices["cellar"].is_removed && mail.devices["cellar"].channels.len() == 1);
}

#[test]
fn noise_and_datagrams_that_cannot_be_sent_stop_nothing() {
    let mut world = World::new();
    world.socket.send_to(&[0xff; 2000], world.server.address).unwrap();
    for len in 0..200 {
        world.socket.send_to(&vec![0x40 | len as u8; len], world.server.address).unwrap();
    }
    assert_eq!(world.ask(Outgoing::get("/")).code, Code::CONTENT);
    assert_eq!(world.handle.counters().oversized, 1);
    let sockets = [UdpSocket::bind("127.0.0.1:0").unwrap()];
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut sender = Sender::new();
    for to in ["127.0.0.1:0".parse().unwrap(), receiver.local_addr().unwrap(), "[::1]:9".parse().unwrap()] {
        sender.add(0, to, b"x");
    }
    sender.flush(&sockets);
    assert_eq!(receiver.recv(&mut [0; 10]).unwrap(), 1);
    assert_eq!(sender.errors(), 2);
}

#[test]
fn it_ends_when_it_is_told_to() {
    let world = World::new();
    world.stop.cancel();
    world.finished.blocking_recv().unwrap();
}
