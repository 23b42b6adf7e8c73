//! The broker over TLS and secure WebSocket, against clients people use (mosquitto's, Paho), against those who must not
//! come in, and against sockets that come and say nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use harness::{
    Authority, Certificate, Port, Scratch, Tidegate, binary, quoted, script, sensor, tool, unshare,
    wait_until,
};

const SECOND: Duration = Duration::from_secs(1);

/// A gateway that listens on TLS with a certificate of its own authority.
struct House {
    gateway: Tidegate,
    authority: Authority,
    shown: Certificate,
    mqtts: Port,
    wss: Port,
}

impl House {
    /// `lines` are further ones of `[mqtt.tls]`.
    fn new(lines: &str) -> Self {
        Self::of(Authority::new("house"), |_| lines.to_owned())
    }

    /// Where clients have to show a certificate of the same authority, which says who they are.
    fn with_client_certificates() -> Self {
        Self::of(Authority::new("house"), |authority| {
            format!("client_ca = {}\ncertificate_users = true", quoted(&authority.pem()))
        })
    }

    fn of(authority: Authority, lines: impl FnOnce(&Authority) -> String) -> Self {
        let (mqtts, wss, shown) = (Port::reserve(), Port::reserve(), authority.server());
        let gateway = Tidegate::builder().prepare();
        let mut house = Self { gateway, authority, shown, mqtts, wss };
        let lines = lines(&house.authority);
        house.gateway.configure("", &house.tables(&lines));
        house.gateway.start();
        house
    }

    fn tables(&self, lines: &str) -> String {
        format!(
            "[mqtt.tls]\nlisten = [\"{}\"]\nwebsocket_listen = [\"{}\"]\ncertificate = {}\nkey = {{ file = {} }}\n{lines}\n{}",
            self.mqtts.address(),
            self.wss.address(),
            quoted(&self.shown.pem),
            quoted(&self.shown.key),
            sensor("200ms"),
        )
    }

    /// A mosquitto client at the TLS listener that believes the authority.
    fn mosquitto(&self, program: &str, version: &str, client: Option<&Certificate>) -> Command {
        // Into a pipe it would speak only at its end.
        let mut command = Command::new(tool("stdbuf"));
        command.arg("-oL").arg(tool(program)).args(["-h", "127.0.0.1", "-V", version, "-d"]);
        command.args(["-p", &self.mqtts.to_string()]).arg("--cafile").arg(self.authority.pem());
        if let Some(client) = client {
            command.arg("--cert").arg(&client.pem).arg("--key").arg(&client.key);
        }
        command
    }

    fn publish(&self, topic: &str, client: Option<&Certificate>) -> Output {
        let mut command = self.mosquitto("mosquitto_pub", "mqttv5", client);
        command.args(["-q", "1", "-t", topic, "-m", "hi"]).output().unwrap()
    }

    /// Runs checks of `paho_checks.py` and reports every one that fails.
    fn paho(&self, address: SocketAddr, version: &str, path: Option<&str>, checks: &[&str]) {
        let mut failed = Vec::new();
        for check in checks {
            let mut command = script("paho_checks");
            command.args([&address.ip().to_string(), &address.port().to_string(), version, check]);
            command.args(path).arg(format!("ca={}", self.authority.pem().display()));
            let output = command.output().unwrap();
            if !output.status.success() {
                failed.push(format!("{check}: {}", String::from_utf8_lossy(&output.stderr).trim()));
            }
        }
        assert!(failed.is_empty(), "{} of {} failed:\n{}", failed.len(), checks.len(), failed.join("\n"));
    }

    /// `openssl s_client`, sending `input` once the handshake is done; all that came, the certificate among it.
    fn openssl(&self, address: SocketAddr, arguments: &[&str], input: &str) -> String {
        let mut client = Command::new(tool("openssl"))
            .args(["s_client", "-connect", &address.to_string(), "-ign_eof", "-CAfile"])
            .arg(self.authority.pem())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may have ended already.
        let _ = client.stdin.take().unwrap().write_all(input.as_bytes());
        let output = client.wait_with_output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    /// A counter of what became of handshakes.
    fn handshakes(&self, counter: &str) -> u64 {
        self.gateway.status()["mqtt"]["tls"][counter].as_u64().unwrap()
    }

    /// Waits until so many handshakes have failed, and no more.
    fn wait_for_failed(&self, count: u64) {
        wait_until(5 * SECOND, || (self.handshakes("failed") >= count).then_some(()));
        assert_eq!(self.handshakes("failed"), count);
    }
}

/// A `mosquitto_sub` that has its grant.
struct Subscriber {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Subscriber {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // `-d` prints the grant: from then on nothing can be missed.
        while !lines.next().expect("the subscriber is let in").unwrap().contains("Subscribed") {}
        Self { child, lines }
    }

    fn line(&mut self, end: &str) -> String {
        self.lines.by_ref().map(Result::unwrap).find(|line| line.ends_with(end)).unwrap_or_default()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn mosquitto_sub_and_pub_talk_over_tls_in_both_versions() {
    let house = House::new("");
    for version in ["mqttv311", "mqttv5"] {
        for tls in ["tlsv1.2", "tlsv1.3"] {
            let mut command = house.mosquitto("mosquitto_sub", version, None);
            command.args(["-q", "2", "-v", "-t", "m/+", "-C", "3", "-W", "10", "--tls-version", tls]);
            let mut subscriber = Subscriber::start(command);
            for qos in ["0", "1", "2"] {
                let mut command = house.mosquitto("mosquitto_pub", version, None);
                command.args(["-q", qos, "-t", &format!("m/{qos}"), "-m", "hi", "--tls-version", tls]);
                let output = command.output().unwrap();
                assert!(output.status.success(), "{version} QoS {qos}: {}", words(&output));
                assert_eq!(subscriber.line(" hi"), format!("m/{qos} hi"), "{version}");
            }
            assert!(subscriber.child.wait().unwrap().success());
        }
    }
}

#[test]
fn paho_finds_the_same_broker_behind_tls() {
    let house = House::new("");
    let address = house.mqtts.address();
    house.paho(address, "3", None, &["every_qos", "retained", "session", "takeover", "large", "live"]);
    house.paho(address, "5", None, &["every_qos", "will", "properties", "large"]);
}

#[test]
fn paho_finds_the_same_broker_behind_a_secure_websocket() {
    let house = House::new("");
    let address = house.wss.address();
    house.paho(address, "3", Some("/mqtt"), &["every_qos", "retained", "session", "large"]);
    house.paho(address, "5", Some("/mqtt"), &["every_qos", "will", "properties", "live"]);
}

#[test]
fn only_a_certificate_of_the_named_authority_lets_in() {
    let house = House::with_client_certificates();
    let foreign = Authority::new("foreign");
    let (known, stranger) = (house.authority.client("panel"), foreign.client("panel"));
    let output = house.publish("c/x", Some(&known));
    assert!(output.status.success(), "{}", words(&output));
    for client in [None, Some(&stranger)] {
        let output = house.publish("c/x", client);
        assert!(!output.status.success(), "{client:?} was let in: {}", words(&output));
    }
    // The server's own certificate is signed by the same authority, but not for clients.
    assert!(!house.publish("c/x", Some(&house.shown)).status.success());
    house.wait_for_failed(3);
    assert_eq!(house.handshakes("done"), 1);
}

#[test]
fn the_name_in_a_certificate_is_the_user_that_rules_are_about() {
    let house = House::of(Authority::new("house"), |authority| {
        let rule = "[[mqtt.rule]]\nusers = [\"panel\"]\npublish = [\"of/%u\"]";
        format!("client_ca = {}\ncertificate_users = true\n{rule}", quoted(&authority.pem()))
    });
    let (panel, other) = (house.authority.client("panel"), house.authority.client("other"));
    let is_allowed = |topic: &str, client: &Certificate| {
        let words = words(&house.publish(topic, Some(client)));
        assert!(words.contains("received PUBACK"), "{words}");
        words.contains("RC:0)")
    };
    assert!(is_allowed("of/panel", &panel));
    assert!(!is_allowed("of/other", &panel));
    assert!(!is_allowed("of/other", &other));
}

/// A machine with an address that is not loopback, and who comes in there.
const BEYOND_LOOPBACK: &str = r#"
ip link set lo up
ip address add 192.0.2.1/24 dev lo
"$TIDEGATE" run --config tidegate.toml --state-dir state >log 2>&1 &
gateway=$!
until mosquitto_sub -t 'tidegate/#' -W 1 -C 1 >/dev/null 2>&1; do kill -0 $gateway || exit 1; done
try() {
    name=$1
    shift
    mosquitto_pub -h 192.0.2.1 -p 8883 --cafile "$CA" --insecure -q 1 -t x -m y "$@" >/dev/null 2>&1 && verdict=in
    echo "$name ${verdict:-out}"
    unset verdict
}
try nobody
try password -u panel -P secret
try wrong-password -u panel -P wrong
try certificate --cert "$CERT" --key "$KEY"
try foreign --cert "$FOREIGN_CERT" --key "$FOREIGN_KEY"
try foreign-with-password --cert "$FOREIGN_CERT" --key "$FOREIGN_KEY" -u panel -P secret
kill $gateway
wait $gateway
"#;

#[test]
fn beyond_loopback_a_certificate_or_a_password_lets_in_over_tls_and_nothing_else() {
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let (server, client, stranger) = (ours.server(), ours.client("tablet"), foreign.client("tablet"));
    let scratch = Scratch::new("beyond-loopback");
    scratch.write("password", "secret\n");
    let admitted = |lines: &str| {
        let (pem, key) = (quoted(&server.pem), quoted(&server.key));
        let config = format!(
            "[mqtt.tls]\nlisten = [\"0.0.0.0:8883\"]\ncertificate = {pem}\nkey = {{ file = {key} }}\n{lines}\n\
             [users]\npanel = {{ file = \"password\" }}\n{}",
            sensor("200ms")
        );
        scratch.write("tidegate.toml", config);
        let words = unshare("--net");
        let output = Command::new(tool(words[0]))
            .args(&words[1..])
            .args(["sh", "-c", BEYOND_LOOPBACK])
            .current_dir(&*scratch)
            .env("TIDEGATE", binary())
            .env("XDG_RUNTIME_DIR", &*scratch)
            .envs([("CA", ours.pem()), ("CERT", client.pem.clone()), ("KEY", client.key.clone())])
            .envs([("FOREIGN_CERT", &stranger.pem), ("FOREIGN_KEY", &stranger.key)])
            .output()
            .unwrap();
        let text = words_of_those_let_in(&output);
        let _ = std::fs::remove_dir_all(scratch.join("state"));
        text
    };
    let ca = quoted(&ours.pem());
    // Without an authority nobody is asked for a certificate, so nobody's is looked at.
    assert_eq!(admitted(""), ["password", "foreign-with-password"]);
    let optional = "require_client_certificate = false\ncertificate_users = true";
    assert_eq!(admitted(&format!("client_ca = {ca}\n{optional}")), ["password", "certificate"]);
    assert_eq!(admitted(&format!("client_ca = {ca}")), ["certificate"]);
}

/// The first words of the lines that end in `in`.
fn words_of_those_let_in(output: &Output) -> Vec<String> {
    let text = words(output);
    println!("{text}");
    assert_eq!(text.lines().filter(|line| line.ends_with(" in") || line.ends_with(" out")).count(), 6);
    text.lines().filter_map(|line| line.strip_suffix(" in")).map(str::to_owned).collect()
}

#[test]
fn a_client_that_trusts_another_authority_does_not_stay() {
    let house = House::new("");
    let mut command = Command::new(tool("mosquitto_pub"));
    command.args(["-h", "127.0.0.1", "-p", &house.mqtts.to_string(), "-t", "x", "-m", "y", "--cafile"]);
    let foreign = Authority::new("foreign");
    let output = command.arg(foreign.pem()).output().unwrap();
    assert!(!output.status.success(), "{}", words(&output));
    house.wait_for_failed(1);
}

#[test]
fn plain_bytes_and_cut_handshakes_close_their_own_connection_and_nothing_else() {
    let house = House::new("");
    let plain: [&[u8]; 3] = [
        b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02xx",
        b"GET /mqtt HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0; 600],
    ];
    for address in [house.mqtts.address(), house.wss.address()] {
        for bytes in plain {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(5 * SECOND)).unwrap();
            let _ = stream.write_all(bytes);
            let mut rest = Vec::new();
            match stream.read_to_end(&mut rest) {
                // An alert may come first.
                Ok(_) => assert!(rest.is_empty() || rest[0] == 21, "{rest:02x?}"),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
            }
        }
        // A ClientHello that never gets further than its first bytes.
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").unwrap();
    }
    house.wait_for_failed(8);
    assert!(house.publish("x", None).status.success());
}

#[test]
fn a_good_client_among_five_hundred_idle_ones_is_served_at_once() {
    let house = House::new("");
    let mut idle = Vec::new();
    for number in 0..500 {
        let address = if number % 2 == 0 { house.mqtts.address() } else { house.wss.address() };
        let mut stream = TcpStream::connect(address).unwrap();
        if number % 3 == 0 {
            stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00").unwrap();
        }
        idle.push(stream);
    }
    let begun = Instant::now();
    let output = house.publish("x", None);
    let time = begun.elapsed();
    assert!(output.status.success(), "{}", words(&output));
    assert!(time < SECOND, "a client among {} idle ones took {time:?}", idle.len());
    // More than there is room for: the oldest made it.
    assert!(house.handshakes("displaced") >= 244, "{}", house.handshakes("displaced"));
    // Those that are left are closed in time.
    let last = idle.last_mut().unwrap();
    last.set_read_timeout(Some(12 * SECOND)).unwrap();
    assert!(matches!(last.read(&mut [0; 16]), Ok(0)), "left open for {:?}", begun.elapsed());
    assert!(begun.elapsed() > 8 * SECOND, "closed after {:?}", begun.elapsed());
}

#[test]
fn a_client_that_is_silent_behind_the_handshake_has_no_more_time_than_on_tcp() {
    let house = House::new("");
    let begun = Instant::now();
    house.openssl(house.mqtts.address(), &[], "");
    let time = begun.elapsed();
    assert!((8 * SECOND..14 * SECOND).contains(&time), "closed after {time:?}");
}

#[test]
fn a_renewed_certificate_is_shown_from_sighup_on_and_cuts_no_client() {
    let house = House::new("");
    let mut command = house.mosquitto("mosquitto_sub", "mqttv5", None);
    command.args(["-v", "-t", "n/+"]);
    let mut subscriber = Subscriber::start(command);
    let shown = || {
        let input = "\0";
        let text = house.openssl(house.mqtts.address(), &[], input);
        let (_, rest) = text.split_once("-----BEGIN CERTIFICATE-----").unwrap_or_else(|| panic!("{text}"));
        rest.split_once("-----END").unwrap().0.trim().to_owned()
    };
    let pem = |certificate: &Certificate| std::fs::read_to_string(&certificate.pem).unwrap();
    assert!(pem(&house.shown).contains(&shown()));
    // At the same place, as those who renew certificates do.
    house.authority.server();
    assert!(!pem(&house.shown).contains(&shown()), "read before it was asked to");
    house.gateway.process().signal(libc::SIGHUP);
    house.gateway.process().wait_for_line("TLS certificates", 5 * SECOND);
    assert!(pem(&house.shown).contains(&shown()));
    let good = pem(&house.shown);
    std::fs::write(&house.shown.pem, "no certificate").unwrap();
    house.gateway.process().signal(libc::SIGHUP);
    house.gateway.process().wait_for_line("holds no certificate", 5 * SECOND);
    house.gateway.process().wait_for_line("the old one stays in force", 5 * SECOND);
    assert!(good.contains(&shown()));
    assert!(house.publish("n/1", None).status.success());
    assert_eq!(subscriber.line(" hi"), "n/1 hi");
}

#[test]
fn a_page_of_another_origin_opens_no_secure_websocket() {
    let house = House::new("");
    let ask = |path: &str, headers: &str| {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: barn.example:1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Protocol: mqtt\r\n{headers}\r\n"
        );
        // Behind the head, what no WebSocket is: it ends the connection, if one was made.
        let text =
            house.openssl(house.wss.address(), &["-quiet"], &format!("{request}{}", "\u{7f}".repeat(16)));
        let line =
            text.lines().find_map(|line| line.strip_prefix("HTTP/1.1 ")).unwrap_or_else(|| panic!("{text}"));
        let text = text.to_lowercase();
        let is_mqtt = text.contains("sec-websocket-protocol: mqtt");
        // Some clients do not read a list here.
        assert!(
            text.contains(if is_mqtt { "connection: upgrade\r\n" } else { "connection: close\r\n" }),
            "{text}"
        );
        (line[..3].to_owned(), is_mqtt)
    };
    assert_eq!(ask("/mqtt", "Origin: https://barn.example:1\r\n"), ("101".to_owned(), true));
    assert_eq!(ask("/mqtt", ""), ("101".to_owned(), true));
    assert_eq!(ask("/mqtt", "Origin: https://evil.example\r\n").0, "403");
    assert_eq!(ask("/", "").0, "404");
    assert_eq!(ask("/api/v1/status", "").0, "404");
}

#[test]
fn a_stopping_gateway_says_goodbye_over_tls() {
    let mut house = House::new("");
    let mut command = house.mosquitto("mosquitto_sub", "mqttv5", None);
    command.args(["-t", "x"]);
    let mut subscriber = Subscriber::start(command);
    house.gateway.stop();
    // 139: the server is shutting down.
    let line = subscriber.line("DISCONNECT (139)");
    assert!(!line.is_empty(), "no goodbye");
}
