//! Who comes in, and what they may do: passwords behind hashes, rules, and what clients of mosquitto are told.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use harness::{Incoming, MqttClient, Process, Scratch, Tidegate, binary, quoted, tool, wait_until};

const SECOND: Duration = Duration::from_secs(1);

const RULES: &str = r#"
[[mqtt.rule]]
users = ["panel"]
publish = ["site/%c/#"]
subscribe = ["site/#", "tidegate/#"]

[[mqtt.rule]]
users = ["anonymous"]
subscribe = ["public/#"]
"#;

/// The hash that `tidegate passwd` makes.
fn passwd(password: &str) -> String {
    let mut child =
        Command::new(binary()).arg("passwd").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{password}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn users(scratch: &Scratch) -> String {
    let hash = passwd("open sesame");
    assert!(hash.starts_with("$argon2id$v=19$") && !hash.contains("sesame"), "{hash}");
    let (panel, pump) = (scratch.write("panel", &hash), scratch.write("pump", "in the clear"));
    format!("[users]\npanel = {{ file = {} }}\npump = {{ file = {} }}\n", quoted(&panel), quoted(&pump))
}

/// `mosquitto_pub` of one message.
fn publish(broker: SocketAddr, topic: &str, more: &[&str]) -> Output {
    let port = broker.port().to_string();
    let words = ["-h", "127.0.0.1", "-p", &port, "-q", "1", "-t", topic, "-m", "x"];
    Command::new(tool("mosquitto_pub")).args(words).args(more).output().unwrap()
}

#[test]
fn a_password_behind_a_hash_lets_its_user_in_and_no_other_does() {
    let scratch = Scratch::new("secrets");
    let gateway = Tidegate::builder().tables(&users(&scratch)).start();
    for version in ["mqttv311", "mqttv5"] {
        let with = |user: &str, password: &str| {
            let output = publish(gateway.mqtt(), "a", &["-V", version, "-u", user, "-P", password]);
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        assert!(with("panel", "open sesame").0, "{version}");
        assert!(with("pump", "in the clear").0, "{version}");
        // Over loopback, a name that is nobody's is no name.
        assert!(with("stranger", "x").0, "{version}");
        for (user, password) in [("panel", "open"), ("panel", "$argon2id"), ("pump", "")] {
            let (is_in, text) = with(user, password);
            let text = text.to_lowercase();
            let is_told = text.contains("bad user name or password") || text.contains("not authori");
            assert!(!is_in && is_told, "{version} {user}: {text}");
        }
    }
    let log = gateway.process().lines().join("\n");
    assert!(!log.contains("sesame") && !log.contains("in the clear"), "{log}");
}

#[test]
fn guessing_at_a_hash_delays_nobody_who_is_known() {
    let scratch = Scratch::new("secrets");
    let gateway = Tidegate::builder().tables(&users(&scratch)).start();
    let known = || publish(gateway.mqtt(), "a", &["-u", "panel", "-P", "open sesame"]);
    assert!(known().status.success());
    // Forty that try at once; each is worked out, one after the other.
    let guesses: Vec<TcpStream> = (0..40)
        .map(|number| {
            let mut stream = TcpStream::connect(gateway.mqtt()).unwrap();
            stream.write_all(&connect(5, "panel", &format!("guess {number}"))).unwrap();
            stream
        })
        .collect();
    let begun = Instant::now();
    assert!(known().status.success());
    let mut other = MqttClient::connect(gateway.mqtt(), "other").unwrap();
    other.publish_and_wait("a", b"x", 1).unwrap();
    assert!(begun.elapsed() < 2 * SECOND, "{:?}", begun.elapsed());
    for mut stream in guesses {
        stream.set_read_timeout(Some(30 * SECOND)).unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!((answer[0], answer[3]), (0x20, 0x86));
    }
}

#[test]
fn what_no_rule_allows_is_refused_in_the_words_of_each_version_and_a_reload_counts_at_once() {
    let scratch = Scratch::new("secrets");
    let users = users(&scratch);
    let mut tables = format!("{users}{RULES}");
    let gateway = Tidegate::builder().tables(&tables).start();
    let login = ["-u", "panel", "-P", "open sesame"];
    // A subscriber who hears what gets through.
    let port = gateway.mqtt().port().to_string();
    let mut command = Command::new("stdbuf");
    command.arg("-oL").arg(tool("mosquitto_sub"));
    command.args(["-h", "127.0.0.1", "-p", &port, "-v", "-d", "-t", "site/#"]).args(login);
    let hearer = Process::start("mosquitto_sub", &scratch.dir("hearer"), command);
    hearer.wait_for_line("Subscribed", 10 * SECOND);

    assert!(publish(gateway.mqtt(), "site/p1/door", &[&login[..], &["-i", "p1"]].concat()).status.success());
    hearer.wait_for_line("site/p1/door x", 10 * SECOND);
    // Elsewhere: 5.0 is told so, 3.1.1 has no words for it; neither arrives.
    for version in ["mqttv311", "mqttv5"] {
        let words = [&login[..], &["-i", "p2", "-V", version, "-d"]].concat();
        let output = publish(gateway.mqtt(), "site/p1/window", &words);
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(version == "mqttv311" || text.to_lowercase().contains("not authori"), "{text}");
    }
    // A will counts as a publish.
    let will = ["--will-topic", "other", "--will-payload", "bye"];
    let refused = publish(gateway.mqtt(), "site/p1/a", &[&login[..], &["-i", "p1"], &will].concat());
    assert!(!refused.status.success(), "{refused:?}");
    // SUBACK, in both versions: the first is allowed, the others are not.
    for (level, refusal) in [(4, 0x80), (5, 0x87)] {
        let codes = subscribe(gateway.mqtt(), level, &["public/a", "site/#", "#"]);
        assert_eq!(codes, [0, refusal, refusal]);
    }
    assert!(!hearer.lines().iter().any(|line| line.contains("window")), "{:?}", hearer.lines());

    // The subscriber stays, and is given nothing any more.
    let delivered = |topic: &str| {
        publish(gateway.mqtt(), topic, &[&login[..], &["-i", "p1"]].concat());
        let line = format!("{topic} x");
        wait_until(2 * SECOND, || hearer.lines().contains(&line).then_some(())).is_some()
    };
    tables = tables.replace("\"site/#\", \"tidegate/#\"", "\"site/p1/a\"");
    gateway.configure("", &tables);
    assert!(gateway.cli(&["reload"]).status.success());
    assert!(!delivered("site/p1/b") && delivered("site/p1/a"));
}

#[test]
fn the_command_line_says_which_rule_decides() {
    let scratch = Scratch::new("secrets");
    let gateway = Tidegate::builder().tables(&format!("{}{RULES}", users(&scratch))).prepare();
    let check = |words: &[&str]| {
        let config = gateway.config().to_str().unwrap().to_owned();
        let output =
            Command::new(binary()).args(["--config", &config, "acl", "check"]).args(words).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(
        check(&["panel", "pub", "site/p1/x", "--client-id", "p1"]),
        (0, "allowed by rule 1, `site/%c/#`\n".into())
    );
    assert_eq!(check(&["panel", "pub", "site/p1/x"]), (1, "denied: no rule allows it\n".into()));
    assert_eq!(check(&["anonymous", "sub", "public/#"]), (0, "allowed by rule 2, `public/#`\n".into()));
    assert_eq!(check(&["panel", "sub", "#"]).0, 1);
}

fn connect(level: u8, user: &str, password: &str) -> Vec<u8> {
    let mut body = b"\x00\x04MQTT".to_vec();
    body.extend([level, if user.is_empty() { 2 } else { 0xC2 }, 0, 0]);
    if level == 5 {
        body.push(0);
    }
    let mut field = |text: &str| {
        body.extend((text.len() as u16).to_be_bytes());
        body.extend(text.as_bytes());
    };
    field("");
    if !user.is_empty() {
        field(user);
        field(password);
    }
    [&[0x10, body.len() as u8], &body[..]].concat()
}

/// The reason codes of a SUBACK, for a client without a name.
fn subscribe(broker: SocketAddr, level: u8, filters: &[&str]) -> Vec<u8> {
    let mut stream = TcpStream::connect(broker).unwrap();
    stream.set_read_timeout(Some(10 * SECOND)).unwrap();
    stream.write_all(&connect(level, "", "")).unwrap();
    packet(&mut stream);
    let mut body = vec![0, 1];
    if level == 5 {
        body.push(0);
    }
    for filter in filters {
        body.extend((filter.len() as u16).to_be_bytes());
        body.extend(filter.as_bytes());
        body.push(0);
    }
    stream.write_all(&[&[0x82, body.len() as u8], &body[..]].concat()).unwrap();
    packet(&mut stream)[if level == 5 { 3 } else { 2 }..].to_vec()
}

fn packet(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    let mut body = vec![0; usize::from(head[1])];
    stream.read_exact(&mut body).unwrap();
    body
}

#[test]
fn limits_hold_over_a_socket_and_are_counted() {
    let limits = "[mqtt.limits]\npublish_rate = 50\ntopic_levels = 4\nsubscriptions = 2\npacket_size = \"2kB\"\n\
                  connect_timeout = \"300ms\"\n";
    let gateway = Tidegate::builder().tables(limits).start();
    let mut client = MqttClient::connect(gateway.mqtt(), "c").unwrap();
    let begun = Instant::now();
    for _ in 0..100 {
        client.publish("a/b/c/d", b"x", 1, false).unwrap();
    }
    client.publish("a/b/c/d/e", b"x", 1, false).unwrap();
    for n in 0..101 {
        assert!(matches!(client.read(SECOND * 10).unwrap(), Some(Incoming::Done(_))), "acknowledgement {n}");
    }
    // A second's worth at once, the rest in its own time.
    assert!(begun.elapsed() > SECOND * 9 / 10, "{:?}", begun.elapsed());
    client.subscribe("a", 0).unwrap();
    client.subscribe("b", 0).unwrap();
    assert!(client.subscribe("c", 0).is_err());
    let mut large = MqttClient::connect(gateway.mqtt(), "large").unwrap();
    large.publish("a", &[b'x'; 3000], 0, false).unwrap();
    assert!(large.read(SECOND * 10).is_err(), "its connection ends");
    // Connected, and silent.
    let mut silent = std::net::TcpStream::connect(gateway.mqtt()).unwrap();
    silent.set_read_timeout(Some(SECOND * 10)).unwrap();
    assert_eq!(silent.read(&mut [0; 8]).unwrap(), 0, "it is closed");
    let counted = gateway.status()["mqtt"]["limits"].clone();
    for name in
        ["throttled", "refused_topics", "refused_subscriptions", "oversized_packets", "connect_timeouts"]
    {
        assert!(counted[name].as_u64().unwrap() > 0, "{name}: {counted}");
    }
}
