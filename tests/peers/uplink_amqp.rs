//! AMQP in its three forms against RabbitMQ and Qpid Proton: TLS and logins, where messages go, what counts as
//! delivered, commands.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use harness::{
    Arrivals, Authority, FaultProxy, Mode, Port, Process, RabbitMq, RabbitMqConfig, Scratch, Store, Tidegate,
    quoted, rabbitmq, request, sensor, wait_until, workspace,
};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

fn uplink(address: SocketAddr, keys: &str) -> String {
    format!("[[uplink]]\nname = \"cloud\"\naddress = \"{address}\"\n{keys}\n")
}

fn cloud(gateway: &Tidegate) -> Value {
    gateway.status()["uplinks"][0].clone()
}

fn wait_for_confirmed(gateway: &Tidegate, count: u64) {
    let enough = wait_until(40 * SECOND, || (cloud(gateway)["confirmed"].as_u64()? >= count).then_some(()));
    assert!(enough.is_some(), "{}", cloud(gateway));
}

fn wait_for_detail(gateway: &Tidegate, needle: &str) {
    let found = wait_until(40 * SECOND, || {
        cloud(gateway)["detail"].as_str().is_some_and(|why| why.contains(needle)).then_some(())
    });
    assert!(found.is_some(), "no \"{needle}\" in {}", cloud(gateway));
}

/// `guest` with its password in a file, as an uplink's keys.
fn guest(scratch: &Scratch) -> String {
    let file = scratch.write("guest", "guest");
    format!("username = \"guest\"\npassword = {{ file = {} }}\n", quoted(&file))
}

#[test]
fn over_tls_all_three_trust_the_named_authority_and_no_other_and_a_certificate_logs_in() {
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let broker = RabbitMq::with(RabbitMqConfig { streams: true, amqp10: true, tls: Some(&ours) });
    let scratch = Scratch::new("secrets");
    let client = ours.client("guest");
    let tls = |authority: &Authority, with_certificate: bool| {
        let certificate = if with_certificate {
            format!(", certificate = {}, key = {}", quoted(&client.pem), quoted(&client.key))
        } else {
            String::new()
        };
        format!("tls = {{ ca = {}{certificate} }}\n", quoted(&authority.pem()))
    };
    let guest = guest(&scratch);
    let kinds = [
        ("type = \"amqp\"\nqueue = { name = \"q\" }\n", broker.tls(), true),
        ("type = \"rabbitmq-stream\"\nstream = \"s\"\n", broker.stream_tls(), false),
        ("type = \"amqp10\"\nnode = \"/queue/ten\"\n", broker.tls(), true),
    ];
    for (keys, address, can_external) in kinds {
        let with = |more: &[&str]| sensor("20ms") + &uplink(address, &(keys.to_owned() + &more.concat()));
        let mut gateway = Tidegate::builder().tables(&with(&[&guest, &tls(&foreign, false)])).start();
        wait_for_detail(&gateway, "ertificate");
        assert_eq!(cloud(&gateway)["confirmed"], 0, "nothing goes to a broker that nobody vouches for");
        let mut goes = |more: &[&str]| {
            gateway.stop();
            gateway.configure("", &with(more));
            gateway.start();
            wait_for_confirmed(&gateway, 50);
        };
        goes(&[&guest, &tls(&ours, false)]);
        goes(&[&guest, &tls(&ours, true)]);
        if can_external {
            goes(&[&tls(&ours, true)]);
        }
    }
}

#[test]
fn a_wrong_password_is_said_as_such_by_all_three() {
    let broker = RabbitMq::with(RabbitMqConfig { streams: true, amqp10: true, tls: None });
    let scratch = Scratch::new("secrets");
    let file = scratch.write("wrong", "wrong");
    let wrong = format!("username = \"guest\"\npassword = {{ file = {} }}\n", quoted(&file));
    for (keys, address, why) in [
        ("type = \"amqp\"\n", broker.address(), "ACCESS_REFUSED"),
        ("type = \"rabbitmq-stream\"\n", broker.stream(), "wrong user or password"),
        ("type = \"amqp10\"\nnode = \"/queue/ten\"\n", broker.address(), "refused the login"),
    ] {
        let tables = sensor("1s") + &uplink(address, &(keys.to_owned() + &wrong));
        let gateway = Tidegate::builder().tables(&tables).start();
        wait_for_detail(&gateway, why);
    }
}

#[test]
fn the_routing_key_and_the_headers_say_what_a_message_is() {
    let broker = RabbitMq::start();
    let keys = "type = \"amqp\"\nrouting_key = \"plant.{gateway}.{device}.{channel}\"\n\
                queue = { name = \"temperatures\", type = \"quorum\", bind = \"plant.*.*.temperature\" }\n";
    let rest = "[[uplink]]\nname = \"rest\"\ntype = \"amqp\"\nexchange = \"other\"\nencoding = \"senml-cbor\"\n\
                queue = { name = \"all\", type = \"classic\" }\n";
    let rest = format!("{rest}address = \"{}\"\n", broker.address());
    rabbitmq(broker.address(), &["declare", "spare", "classic"]);
    let mut gateway = Tidegate::builder()
        .tables(&sensor("50ms"))
        .tables(&uplink(broker.address(), keys))
        .tables(&rest)
        .start();
    // Pressure and humidity are bound to nothing there: they come back, and nothing behind them is delivered either.
    wait_for_detail(&gateway, "NO_ROUTE");
    let all = wait_until(20 * SECOND, || {
        (gateway.status()["uplinks"][1]["confirmed"].as_u64()? >= 100).then_some(())
    });
    assert!(all.is_some(), "{}", gateway.status()["uplinks"][1]);
    gateway.stop();
    let temperatures = Arrivals::read(broker.address(), Store::Queue("temperatures"));
    let first = &temperatures.messages()[0];
    assert_eq!(first["topic"], "plant.barn.cellar.temperature");
    assert_eq!(first["persistent"], true);
    assert_eq!(first["content_type"], "application/senml+json");
    let (headers, id) = (&first["headers"], first["id"].as_str().unwrap());
    let epoch = headers["epoch"].as_str().unwrap();
    assert_eq!(id, format!("barn/{epoch}/{}", headers["seq"]));
    assert_eq!((&headers["gateway"], &headers["lane"]), (&"barn".into(), &"live".into()));
    assert_eq!(headers["last"], headers["seq"]);
    let all = Arrivals::read(broker.address(), Store::Queue("all"));
    assert_eq!(all.messages()[0]["content_type"], "application/senml+cbor");
    assert!(all.messages()[0]["topic"].as_str().unwrap().starts_with("tidegate.barn.cellar."));
}

#[test]
fn a_command_from_a_queue_is_carried_out_once_answered_and_never_when_it_is_late() {
    let broker = RabbitMq::start();
    let pump = "[[device]]\nname = \"pump\"\ntype = \"gpio-output\"\nchip = \"sim\"\nline = 17\n";
    let keys = "type = \"amqp\"\ncommands = true\nqueue = { name = \"all\" }\n";
    let gateway = Tidegate::builder().tables(pump).tables(&uplink(broker.address(), keys)).start();
    wait_for_confirmed(&gateway, 1);
    let key = "tidegate.barn.pump.state.set";
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let ask = |body: &str, id: &str, timestamp: u64| -> Value {
        let (id, timestamp) = (format!("message_id={id}"), format!("timestamp={timestamp}"));
        let arguments = ["ask", "tidegate", key, body, &id, &timestamp, "expiration=20000", "reply_to=yes"];
        let answer = rabbitmq(broker.address(), &arguments);
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer}"));
        serde_json::from_str(answer["body"].as_str().unwrap()).unwrap()
    };
    let done = ask("on", "c-1", now);
    assert_eq!(done["ok"], true, "{done}");
    // The same id again: the first one's outcome, and nothing happens.
    let again = ask("off", "c-1", now);
    assert_eq!(again["ok"], true, "{again}");
    let late = ask("off", "c-2", now - 3600);
    assert_eq!(late["ok"], false, "{late}");
    assert!(late["error"].as_str().unwrap().contains("expired"), "{late}");
    let odd = ask("perhaps", "c-3", now);
    assert_eq!(odd["ok"], false, "{odd}");
    let state = || {
        let channels = request(gateway.http(), "GET", "/api/v1/channels", &[], b"").unwrap().json();
        let pump = channels.as_array().unwrap().iter().find(|channel| channel["id"] == "pump/state").cloned();
        pump.unwrap_or_else(|| panic!("{channels}"))["value"].clone()
    };
    assert_eq!(state(), true);
    assert_eq!(ask("off", "c-4", now)["ok"], true);
    assert_eq!(state(), false);
}

#[test]
fn a_broker_that_hangs_costs_neither_threads_nor_connections() {
    let broker = RabbitMq::with(RabbitMqConfig { streams: true, amqp10: true, tls: None });
    let scratch = Scratch::new("secrets");
    let guest = guest(&scratch);
    for (keys, address) in [
        ("type = \"amqp\"\nqueue = { name = \"q\" }\n", broker.address()),
        ("type = \"rabbitmq-stream\"\n", broker.stream()),
        ("type = \"amqp10\"\nnode = \"/queue/ten\"\n", broker.address()),
    ] {
        let wire = FaultProxy::start(address);
        let keys = format!("{keys}{guest}keep_alive = \"1s\"");
        let tables = sensor("20ms") + &uplink(wire.address(), &keys);
        let gateway = Tidegate::builder().tables(&tables).start();
        wait_for_confirmed(&gateway, 50);
        let threads = || std::fs::read_dir(format!("/proc/{}/task", gateway.process().id())).unwrap().count();
        let usual = threads();
        for _ in 0..3 {
            // Dead in the middle: two signs of life are missed, and the next connection is a new one.
            let before = wire.accepted();
            wire.set(Mode::Blackhole);
            wait_for_detail(&gateway, "");
            std::thread::sleep(3 * SECOND);
            wire.set(Mode::Pass);
            let back = wait_until(40 * SECOND, || (wire.accepted() > before).then_some(()));
            assert!(back.is_some(), "{keys}: {}", cloud(&gateway));
            wait_for_confirmed(&gateway, cloud(&gateway)["confirmed"].as_u64().unwrap() + 10);
        }
        let settled = wait_until(20 * SECOND, || (threads() <= usual + 1).then_some(()));
        assert!(settled.is_some(), "{keys}: {} threads, {usual} before", threads());
    }
}

/// A node of AMQP 1.0 by Qpid Proton, which Debian packages for its own Python.
struct Node {
    process: Process,
    port: Port,
    _scratch: Scratch,
}

impl Node {
    fn start(manner: &str) -> Self {
        let (scratch, port) = (Scratch::new("amqp10-node"), Port::reserve());
        assert!(
            Path::new("/usr/lib/python3/dist-packages/proton").is_dir(),
            "missing peer: python3-qpid-proton is not installed; `tests/run tools` installs it"
        );
        let mut command = Command::new("/usr/bin/python3");
        command.arg("-u").arg(workspace().join("tests/peers/amqp10_peer.py"));
        command.args(["127.0.0.1", &port.to_string(), manner]);
        let process = Process::start("amqp10-node", &scratch, command);
        process.wait_for_line("ready", 20 * SECOND);
        Self { process, port, _scratch: scratch }
    }

    /// What happened, by kind.
    fn events(&self, kind: &str) -> Vec<Value> {
        let lines = self.process.lines();
        let events = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["event"] == kind).collect()
    }

    fn wait_for(&self, kind: &str, count: usize) -> Vec<Value> {
        let enough = wait_until(40 * SECOND, || {
            let events = self.events(kind);
            (events.len() >= count).then_some(events)
        });
        enough.unwrap_or_else(|| panic!("{} of {count} {kind}", self.events(kind).len()))
    }
}

#[test]
fn over_amqp_1_0_only_an_accepted_message_is_delivered() {
    for manner in ["reject", "release", "modify"] {
        let node = Node::start(manner);
        // One at a time: what is turned down comes again behind whatever was accepted meanwhile.
        let keys = "type = \"amqp10\"\nnode = \"hub\"\nwindow = 1\nretry_within = \"1s\"\n";
        let gateway =
            Tidegate::builder().tables(&sensor("100ms")).tables(&uplink(node.port.address(), keys)).start();
        // The first five were turned down, in as many connections as it took; each of them came again, in order.
        let outcomes = node.wait_for("outcome", 25);
        wait_for_confirmed(&gateway, 20);
        let accepted: Vec<&str> = outcomes
            .iter()
            .filter(|outcome| outcome["outcome"] == "ACCEPTED")
            .map(|outcome| outcome["id"].as_str().unwrap())
            .collect();
        let numbers: Vec<u64> =
            accepted.iter().map(|id| id.rsplit('/').next().unwrap().parse().unwrap()).collect();
        assert_eq!(outcomes.len() - accepted.len(), 5, "{manner}");
        assert!(
            numbers.len() >= 20 && numbers.iter().enumerate().all(|(n, seq)| *seq == n as u64 + 1),
            "{numbers:?}"
        );
        let first = &node.events("message")[0];
        assert_eq!((&first["durable"], &first["settled"]), (&true.into(), &false.into()));
        assert_eq!(first["properties"]["seq"], 1);
        assert_eq!(first["content_type"], "application/senml+json");
    }
}

#[test]
fn sent_at_most_once_messages_go_out_settled() {
    let node = Node::start("accept");
    let keys = "type = \"amqp10\"\nnode = \"hub\"\ndelivery = \"at-most-once\"\n";
    let gateway =
        Tidegate::builder().tables(&sensor("50ms")).tables(&uplink(node.port.address(), keys)).start();
    let messages = node.wait_for("message", 30);
    assert!(messages.iter().all(|message| message["settled"] == true));
    assert_eq!(node.events("opened")[0]["mechanism"], "ANONYMOUS");
    drop(gateway);
}

#[test]
fn an_azure_node_gets_a_signed_token_before_anything_else_and_a_new_one_in_time() {
    let node = Node::start("want-token");
    let scratch = Scratch::new("secrets");
    let key = scratch.write("key", "c2VjcmV0");
    let sas = format!(
        "sas = {{ resource = \"sb://barn.example/hub\", policy = \"send\", key = {{ file = {} }}, lifetime = \"4s\" }}\n",
        quoted(&key)
    );
    let keys = format!("type = \"amqp10\"\nnode = \"hub\"\nhostname = \"barn.example\"\n{sas}");
    let gateway =
        Tidegate::builder().tables(&sensor("100ms")).tables(&uplink(node.port.address(), &keys)).start();
    wait_for_confirmed(&gateway, 10);
    let tokens = node.wait_for("token", 3);
    assert_eq!(node.events("opened").len(), 1, "the connection outlives its tokens");
    assert_eq!(node.events("opened")[0]["hostname"], "barn.example");
    assert_eq!(node.events("refused").len(), 0);
    let expiry = |token: &Value| -> u64 {
        assert_eq!(token["operation"], "put-token");
        assert_eq!(token["type"], "servicebus.windows.net:sastoken");
        assert_eq!(token["name"], "sb://barn.example/hub");
        let text = token["token"].as_str().unwrap();
        assert!(text.starts_with("SharedAccessSignature sr=sb%3A%2F%2Fbarn.example%2Fhub&sig="), "{text}");
        text.split("&se=").nth(1).unwrap().split('&').next().unwrap().parse().unwrap()
    };
    let expiries: Vec<u64> = tokens.iter().map(expiry).collect();
    assert!(expiries.windows(2).all(|pair| pair[1] > pair[0]), "{expiries:?}");
}
