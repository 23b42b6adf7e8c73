//! The broker against the clients people use (Paho, mosquitto's, mqtt.js, rumqttc), in both versions and over every
//! transport that they know, alone and all together.
//!
//! Each client is a process that holds one connection. It is given the connection as JSON: `host`, `port`, `transport`
//! (`tcp`, `tls`, `ws`, `wss`), `ca`, `version` (4 is 3.1.1), `id`, `clean`, `expiry` (the session's, in seconds),
//! `will`, `user`, `password`. Then it is told, a line each:
//!
//! ```text
//! {"do":"subscribe","filter":"a/#","qos":1}
//! {"do":"publish","topic":"a/b","payload":"6869","qos":2,"retain":false,"properties":{},"alias":1}
//! {"do":"leave"}
//! ```
//!
//! and says what happens, payloads in hexadecimal as well:
//!
//! ```text
//! {"event":"connected","session":false}
//! {"event":"subscribed","granted":[1]}
//! {"event":"published"}
//! {"event":"message","topic":"a/b","payload":"6869","qos":1,"retain":false,"properties":{"user":[["a","1"]]}}
//! ```
//!
//! With an alias it publishes twice, the second time without a topic. The table of what was run is left in
//! `tests/out/mqtt-clients.txt`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write;
use std::panic::{self, AssertUnwindSafe};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Authority, Port, Process, Scratch, Tidegate, node, out_dir, quoted, rumqtt, script, tool};
use serde_json::{Value, json};

/// A client, the version it speaks, and the transport.
type Row = (&'static str, &'static str, &'static str);

/// Debian's mosquitto clients speak no WebSocket: that came with 2.1.
const ROWS: [Row; 28] = [
    ("paho", "3.1.1", "tcp"),
    ("paho", "3.1.1", "tls"),
    ("paho", "3.1.1", "ws"),
    ("paho", "3.1.1", "wss"),
    ("paho", "5.0", "tcp"),
    ("paho", "5.0", "tls"),
    ("paho", "5.0", "ws"),
    ("paho", "5.0", "wss"),
    ("mqtt.js", "3.1.1", "tcp"),
    ("mqtt.js", "3.1.1", "tls"),
    ("mqtt.js", "3.1.1", "ws"),
    ("mqtt.js", "3.1.1", "wss"),
    ("mqtt.js", "5.0", "tcp"),
    ("mqtt.js", "5.0", "tls"),
    ("mqtt.js", "5.0", "ws"),
    ("mqtt.js", "5.0", "wss"),
    ("rumqttc", "3.1.1", "tcp"),
    ("rumqttc", "3.1.1", "tls"),
    ("rumqttc", "3.1.1", "ws"),
    ("rumqttc", "3.1.1", "wss"),
    ("rumqttc", "5.0", "tcp"),
    ("rumqttc", "5.0", "tls"),
    ("rumqttc", "5.0", "ws"),
    ("rumqttc", "5.0", "wss"),
    ("mosquitto", "3.1.1", "tcp"),
    ("mosquitto", "3.1.1", "tls"),
    ("mosquitto", "5.0", "tcp"),
    ("mosquitto", "5.0", "tls"),
];

/// A name, the version from which on there is such a thing, and what is done.
type Check = (&'static str, &'static str, fn(&Room));

/// What every client is put through.
const CHECKS: [Check; 7] = [
    ("qos", "3.1.1", every_qos),
    ("retained", "3.1.1", retained),
    ("will", "3.1.1", will),
    ("session", "3.1.1", session),
    ("properties", "5.0", properties),
    ("alias", "5.0", alias),
    ("request", "5.0", request),
];

#[test]
fn every_client_on_every_transport_finds_a_broker() {
    let house = House::start();
    let begun = Instant::now();
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(vec![Vec::new(); ROWS.len()]);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some((number, row)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, ROWS.get(n)?)))
                {
                    let room = Room { house: &house, row: *row, prefix: format!("r{number}") };
                    let run = |(_, since, check): &Check| {
                        let is_there = *since <= row.1;
                        is_there.then(|| panic::catch_unwind(AssertUnwindSafe(|| check(&room))).is_ok())
                    };
                    outcomes.lock().unwrap()[number] = CHECKS.iter().map(run).collect();
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap();

    let mut table = format!("{:10} {:6} {:4}", "client", "MQTT", "over");
    for (name, ..) in CHECKS {
        write!(table, " {name:>10}").unwrap();
    }
    for ((client, version, transport), outcomes) in ROWS.iter().zip(&outcomes) {
        write!(table, "\n{client:10} {version:6} {transport:4}").unwrap();
        for outcome in outcomes {
            let verdict = outcome.map_or("-", |is_ok| if is_ok { "ok" } else { "FAILED" });
            write!(table, " {verdict:>10}").unwrap();
        }
    }
    let done: Vec<bool> = outcomes.iter().flatten().copied().flatten().collect();
    let failed = done.iter().filter(|is_ok| !**is_ok).count();
    let seconds = begun.elapsed().as_secs_f64();
    write!(table, "\n{} passed, {failed} failed, in {seconds:.1} s", done.len() - failed).unwrap();
    println!("{table}");
    std::fs::write(out_dir().join("mqtt-clients.txt"), table + "\n").unwrap();
    assert!(failed == 0, "{failed} of {} failed", done.len());
}

#[test]
fn what_one_client_says_all_the_others_hear_once() {
    let house = House::start();
    let mut clients: Vec<Client> = ROWS
        .iter()
        .enumerate()
        .map(|(number, row)| {
            let room = Room { house: &house, row: *row, prefix: format!("all{number}") };
            Client::start(&room, &room.hello("member"))
        })
        .collect();
    for client in &mut clients {
        client.await_connected();
        client.subscribe("all/#", 1);
    }
    for (number, client) in clients.iter_mut().enumerate() {
        client.publish(&format!("all/{number}"), format!("from {number}").as_bytes(), 1);
    }
    let said: BTreeSet<(String, Vec<u8>)> = (0..ROWS.len())
        .map(|number| (format!("all/{number}"), format!("from {number}").into_bytes()))
        .collect();
    for (client, row) in clients.iter_mut().zip(ROWS) {
        let heard: BTreeSet<_> =
            ROWS.iter().map(|_| client.message()).map(|m| (m.topic, m.payload)).collect();
        assert_eq!(heard, said, "{row:?}");
    }
    clients[0].publish("all/end", b"", 1);
    for (client, row) in clients.iter_mut().zip(ROWS) {
        assert_eq!(client.message().topic, "all/end", "{row:?} hears something twice");
    }
    clients.into_iter().for_each(Client::leave);
    println!("{} clients have heard {} messages each", ROWS.len(), ROWS.len() + 1);
}

/// Everything arrives once, whole, at the `QoS` it was sent at.
fn every_qos(room: &Room) {
    let mut client = room.client("qos");
    client.subscribe(&room.topic("q/#"), 2);
    let payload = "grüße ".repeat(3000).into_bytes();
    for qos in 0..=2 {
        client.publish(&room.topic(&format!("q/{qos}")), &payload, qos);
    }
    // What is sent at QoS 0 by a process of its own may come after what was sent later.
    let mut came: Vec<Message> = (0..=2).map(|_| client.message()).collect();
    came.sort_by_key(|message| message.qos);
    for (qos, message) in came.iter().enumerate() {
        assert_eq!((&message.topic, message.qos), (&room.topic(&format!("q/{qos}")), qos as u64));
        assert!(message.payload == payload && !message.retain, "QoS {qos}: changed on the way");
    }
    client.publish(&room.topic("q/end"), b"", 2);
    assert_eq!(client.message().topic, room.topic("q/end"), "something comes twice");
    client.leave();
}

/// The last retained message is there for those who come later, until it is deleted.
fn retained(room: &Room) {
    let mut writer = room.client("writer");
    let topic = room.topic("kept/x");
    let retain = json!({"retain": true});
    writer.publish_with(&topic, b"one", 1, &retain);
    writer.publish_with(&topic, b"two", 1, &retain);
    let mut reader = room.client("reader");
    reader.subscribe(&room.topic("kept/#"), 1);
    let message = reader.message();
    assert_eq!((message.payload.as_slice(), message.retain), (&b"two"[..], true));
    writer.publish_with(&topic, b"three", 1, &retain);
    let message = reader.message();
    assert_eq!((message.payload.as_slice(), message.retain), (&b"three"[..], false));
    writer.publish_with(&topic, b"", 1, &retain);
    assert_eq!(reader.message().payload, b"");
    let mut late = room.client("late");
    late.subscribe(&room.topic("kept/#"), 1);
    writer.publish(&room.topic("kept/end"), b"", 1);
    assert_eq!(late.message().topic, room.topic("kept/end"), "it was deleted");
    [writer, reader, late].into_iter().for_each(Client::leave);
}

/// Who is killed leaves a will, who takes leave does not; but `mosquitto_sub` says so in 5.0 with code 4, "with will".
fn will(room: &Room) {
    let mut watcher = room.client("watcher");
    watcher.subscribe(&room.topic("will/#"), 1);
    let hello = |who: &str| {
        let topic = room.topic(&format!("will/{who}"));
        let mut hello = room.hello(who);
        let retain = who == "killed";
        hello["will"] = json!({"topic": topic, "payload": hex(b"gone"), "qos": 1, "retain": retain});
        let mut client = Client::start(room, &hello);
        client.await_connected();
        client.subscribe(&room.topic("nothing"), 0);
        client
    };
    let mut killed = hello("killed");
    let polite = hello("polite");
    polite.leave();
    if room.row.0 == "mosquitto" && room.is_v5() {
        assert_eq!(watcher.message().topic, room.topic("will/polite"));
    }
    killed.process.kill();
    let message = watcher.message();
    assert_eq!((message.topic, message.payload.as_slice()), (room.topic("will/killed"), &b"gone"[..]));
    let mut late = room.client("late");
    late.subscribe(&room.topic("will/#"), 1);
    let message = late.message();
    assert_eq!((message.topic, message.retain), (room.topic("will/killed"), true));
    late.publish(&room.topic("will/end"), b"", 1);
    assert_eq!(late.message().topic, room.topic("will/end"), "more than one will is kept");
    assert_eq!(watcher.message().topic, room.topic("will/end"), "a will of one who took leave");
    [watcher, late].into_iter().for_each(Client::leave);
}

/// Who comes back to a session gets what came meanwhile, in order, once, and not what has expired.
fn session(room: &Room) {
    let filter = room.topic("away/#");
    let mut hello = room.hello("away");
    hello["clean"] = json!(false);
    hello["expiry"] = json!(3600);
    let mut reader = Client::start(room, &hello);
    assert_ne!(reader.await_connected(), json!(true), "a session before the first");
    reader.subscribe(&filter, 1);
    reader.leave();
    let mut writer = room.client("writer");
    if room.is_v5() {
        writer.publish_with(&room.topic("away/short"), b"", 1, &json!({"properties": {"expiry": 1}}));
    }
    for number in 0..5 {
        writer.publish(&room.topic("away/x"), format!("{number}").as_bytes(), 1);
    }
    if room.is_v5() {
        // The interval is the thing under test: it has to pass.
        thread::sleep(Duration::from_millis(1100));
    }
    let mut reader = Client::start(room, &hello);
    let session = reader.await_connected();
    if session.is_null() {
        // mosquitto_sub does not tell, and does not come without a subscription.
        reader.subscribe(&filter, 1);
    } else {
        assert_eq!(session, json!(true));
    }
    for number in 0..5 {
        assert_eq!(reader.message().payload, format!("{number}").into_bytes());
    }
    writer.publish(&room.topic("away/end"), b"", 1);
    assert_eq!(reader.message().topic, room.topic("away/end"), "something comes twice");
    reader.leave();
    let mut anew = room.client("away");
    if !anew.session.is_null() {
        assert_eq!(anew.session, json!(false), "a clean start ends the session");
    }
    anew.subscribe(&room.topic("none"), 0);
    [writer, anew].into_iter().for_each(Client::leave);
}

/// What a message says about itself arrives as it was said.
fn properties(room: &Room) {
    let mut client = room.client("properties");
    client.subscribe(&room.topic("p"), 1);
    let said = json!({
        "user": [["a", "1"], ["a", "2"], ["ü", "é"]],
        "response_topic": room.topic("answer"),
        "correlation": "question 7",
        "content_type": "text/plain",
        "expiry": 100,
    });
    client.publish_with(&room.topic("p"), b"x", 1, &json!({ "properties": said }));
    let heard = client.message().properties;
    for name in ["user", "response_topic", "correlation", "content_type"] {
        assert_eq!(heard[name], said[name], "{name}");
    }
    let left = heard["expiry"].as_u64().unwrap();
    assert!((90..=100).contains(&left), "{left} s are left of 100");
    client.leave();
}

/// A topic alias stands for the topic it was given with.
fn alias(room: &Room) {
    let mut client = room.client("alias");
    client.subscribe(&room.topic("alias/#"), 1);
    client.publish_with(&room.topic("alias/x"), b"twice", 1, &json!({"alias": 1}));
    for _ in 0..2 {
        let message = client.message();
        assert_eq!((message.topic, message.payload.as_slice()), (room.topic("alias/x"), &b"twice"[..]));
    }
    client.leave();
}

/// A request of `mosquitto_rr` is answered where it says, with what it gave along.
fn request(room: &Room) {
    let mut client = room.client("responder");
    client.subscribe(&room.topic("request"), 1);
    let mut command = Command::new(tool("mosquitto_rr"));
    command.args(["-h", "127.0.0.1", "-p", &room.house.gateway.mqtt().port().to_string(), "-V", "mqttv5"]);
    command.args(["-t", &room.topic("request"), "-e", &room.topic("response"), "-m", "how much?", "-q", "1"]);
    command.args(["-D", "publish", "correlation-data", "7", "-F", "%p for %D", "-W", "10"]);
    let mut asking = Process::start("mosquitto_rr", &client.scratch, command);
    let question = client.message();
    assert_eq!(question.payload, b"how much?");
    let (response, correlation) =
        (&question.properties["response_topic"], &question.properties["correlation"]);
    let properties = json!({"properties": {"correlation": correlation}});
    client.publish_with(response.as_str().unwrap(), b"enough", 1, &properties);
    asking.wait_for_line("enough for 7", LIMIT);
    assert!(asking.wait(LIMIT).success());
    client.leave();
}

/// A gateway with a door for each transport.
struct House {
    gateway: Tidegate,
    authority: Authority,
    mqtts: Port,
    wss: Port,
    _passwords: Scratch,
}

impl House {
    fn start() -> Self {
        let passwords = Scratch::new("passwords");
        let password = passwords.write("panel", "secret\n");
        let (authority, mqtts, wss) = (Authority::new("house"), Port::reserve(), Port::reserve());
        let certificate = authority.server();
        let tables = format!(
            "[mqtt.tls]\nlisten = [\"{}\"]\nwebsocket_listen = [\"{}\"]\ncertificate = {}\nkey = {{ file = {} }}\n\
             [users]\npanel = {{ file = {} }}\n",
            mqtts.address(),
            wss.address(),
            quoted(&certificate.pem),
            quoted(&certificate.key),
            quoted(&password),
        );
        let gateway = Tidegate::builder().tables(&tables).start();
        Self { gateway, authority, mqtts, wss, _passwords: passwords }
    }

    fn port(&self, transport: &str) -> u16 {
        match transport {
            "tcp" => self.gateway.mqtt().port(),
            "tls" => self.mqtts.number(),
            "ws" => self.gateway.http().port(),
            _ => self.wss.number(),
        }
    }
}

/// Where one row's checks run: a broker that others use as well, with ids and topics of its own.
struct Room<'a> {
    house: &'a House,
    row: Row,
    prefix: String,
}

impl Room<'_> {
    fn topic(&self, rest: &str) -> String {
        format!("{}/{rest}", self.prefix)
    }

    fn is_v5(&self) -> bool {
        self.row.1 == "5.0"
    }

    /// What a client is given to connect with.
    fn hello(&self, who: &str) -> Value {
        json!({
            "host": "127.0.0.1",
            "port": self.house.port(self.row.2),
            "transport": self.row.2,
            "ca": self.house.authority.pem(),
            "version": if self.is_v5() { 5 } else { 4 },
            "id": format!("{}{who}", self.prefix),
            "clean": true,
            "user": "panel",
            "password": "secret",
        })
    }

    /// One that is connected and leaves no session.
    fn client(&self, who: &str) -> Client {
        let mut client = Client::start(self, &self.hello(who));
        client.await_connected();
        client
    }
}

/// A foreign client's process.
struct Client {
    // Declared before the directory its log is in, so that it ends before the directory goes.
    process: Process,
    scratch: Scratch,
    next_line: usize,
    messages: VecDeque<Message>,
    session: Value,
}

#[derive(Debug)]
struct Message {
    topic: String,
    payload: Vec<u8>,
    qos: u64,
    retain: bool,
    properties: Value,
}

impl Client {
    fn start(room: &Room, hello: &Value) -> Self {
        let mut command = match room.row.0 {
            "paho" => script("mqtt_clients/eclipse_paho"),
            "mqtt.js" => node("mqtt_clients/mqtt_js"),
            "mosquitto" => script("mqtt_clients/mosquitto"),
            _ => {
                let mut command = Command::new(rumqtt());
                command.arg("client");
                command
            }
        };
        command.arg(hello.to_string());
        let scratch = Scratch::new("client");
        let process = Process::start_listening(room.row.0, &scratch, command);
        Self { process, scratch, next_line: 0, messages: VecDeque::new(), session: Value::Null }
    }

    /// Whether it found a session; null where it does not tell.
    fn await_connected(&mut self) -> Value {
        self.session = self.event("connected")["session"].clone();
        self.session.clone()
    }

    fn subscribe(&mut self, filter: &str, qos: u8) {
        self.say(&json!({"do": "subscribe", "filter": filter, "qos": qos}));
        assert_eq!(self.event("subscribed")["granted"], json!([qos]), "{filter}");
    }

    fn publish(&mut self, topic: &str, payload: &[u8], qos: u8) {
        self.publish_with(topic, payload, qos, &json!({}));
    }

    /// Publishes with `retain`, `properties` or `alias`, and waits until the broker has acknowledged it.
    fn publish_with(&mut self, topic: &str, payload: &[u8], qos: u8, more: &Value) {
        let mut order =
            json!({"do": "publish", "topic": topic, "payload": hex(payload), "qos": qos, "retain": false});
        for (name, value) in more.as_object().unwrap() {
            order[name] = value.clone();
        }
        self.say(&order);
        let times = if more["alias"].is_null() { 1 } else { 2 };
        (0..times).for_each(|_| drop(self.event("published")));
    }

    /// The next message that came.
    fn message(&mut self) -> Message {
        if self.messages.is_empty() {
            let event = self.event("message");
            self.messages.push_back(Message::parse(&event));
        }
        self.messages.pop_front().unwrap()
    }

    /// Disconnects, and waits until its process has ended.
    fn leave(mut self) {
        self.say(&json!({"do": "leave"}));
        let status = self.process.wait(LIMIT);
        assert!(status.success(), "{status}");
    }

    fn say(&mut self, order: &Value) {
        self.process.say(&order.to_string());
    }

    /// The next event of that kind; messages that come before it are kept.
    fn event(&mut self, kind: &str) -> Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.process.line(self.next_line, left).unwrap_or_else(|| panic!("no event `{kind}`"));
            self.next_line += 1;
            // Others are what it says to people.
            let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
            if event["event"] == kind {
                return event;
            }
            assert_eq!(event["event"], "message", "instead of `{kind}`: {event}");
            self.messages.push_back(Message::parse(&event));
        }
    }
}

impl Message {
    fn parse(event: &Value) -> Self {
        Self {
            topic: event["topic"].as_str().unwrap().to_owned(),
            payload: unhex(event["payload"].as_str().unwrap()),
            qos: event["qos"].as_u64().unwrap(),
            retain: event["retain"] == true,
            properties: event["properties"].clone(),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Clients mostly start and wait: more of them than processors go on at once.
const WORKERS: usize = 6;
const LIMIT: Duration = Duration::from_secs(20);
