//! The broker against clients people use (Paho, mosquitto's), against idle ones and hostile ones.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{
    Authority, Endpoint, Incoming, MqttClient, Rng, Tidegate, Transport, script, sensor, tool, wait_until,
};

const SECOND: Duration = Duration::from_secs(1);

/// Runs checks of `paho_checks.py` against one gateway and reports every one that fails.
fn paho(version: &str, checks: &[&str], websocket: bool) {
    let gateway = Tidegate::builder().tables(&sensor("200ms")).start();
    let address = if websocket { gateway.http() } else { gateway.mqtt() };
    let mut failed = Vec::new();
    for check in checks {
        let mut command = script("paho_checks");
        command.args([&address.ip().to_string(), &address.port().to_string(), version, check]);
        if websocket {
            command.arg("/mqtt");
        }
        let output = command.output().unwrap();
        if !output.status.success() {
            failed.push(format!("{check}: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
    }
    assert!(failed.is_empty(), "{} of {} failed:\n{}", failed.len(), checks.len(), failed.join("\n"));
}

const BOTH: [&str; 8] =
    ["every_qos", "retained", "will", "session", "wildcards", "takeover", "large", "live"];

#[test]
fn paho_with_mqtt_3_1_1_finds_a_broker() {
    paho("3", &BOTH, false);
}

#[test]
fn paho_with_mqtt_5_0_finds_a_broker() {
    paho("5", &BOTH, false);
    paho("5", &["properties", "options", "expiry"], false);
}

#[test]
fn paho_finds_the_same_broker_behind_a_websocket() {
    paho("3", &["every_qos", "retained", "session", "large"], true);
    paho("5", &["every_qos", "will", "live"], true);
}

#[test]
fn mosquitto_sub_and_pub_talk_through_the_broker_in_both_versions() {
    let gateway = Tidegate::builder().start();
    let port = gateway.mqtt().port().to_string();
    for version in ["mqttv311", "mqttv5"] {
        // Into a pipe it would speak only at its end.
        let mut subscriber = Command::new(tool("stdbuf"))
            .arg("-oL")
            .arg(tool("mosquitto_sub"))
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-V",
                version,
                "-q",
                "2",
                "-v",
                "-t",
                "m/+",
                "-C",
                "3",
                "-W",
                "10",
                "-d",
            ])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // `-d` prints the grant: from then on nothing can be missed.
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(subscriber.stdout.take().unwrap()));
        while !lines.next().unwrap().unwrap().contains("Subscribed") {}
        for qos in ["0", "1", "2"] {
            let status = Command::new(tool("mosquitto_pub"))
                .args([
                    "-h",
                    "127.0.0.1",
                    "-p",
                    &port,
                    "-V",
                    version,
                    "-q",
                    qos,
                    "-t",
                    &format!("m/{qos}"),
                    "-m",
                    "hi",
                ])
                .status();
            assert!(status.unwrap().success(), "{version} QoS {qos}");
        }
        let shown: Vec<String> = lines.map_while(Result::ok).filter(|line| line.ends_with(" hi")).collect();
        assert_eq!(shown, ["m/0 hi", "m/1 hi", "m/2 hi"], "{version}");
        assert!(subscriber.wait().unwrap().success());
    }
}

#[test]
fn malformed_packets_close_their_own_connection_and_nothing_else() {
    let gateway = Tidegate::builder().start();
    let mut good = MqttClient::connect(gateway.mqtt(), "good").unwrap();
    good.subscribe("g/#", 1).unwrap();
    let connect = b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02xx";
    let first_packets: [&[u8]; 9] = [
        b"\x00\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x10\xff\xff\xff\xff\xff",
        b"\x10\xff\xff\xff\x7f",
        b"\x10\x0e\x00\x04MQTT\x63\x02\x00\x3c\x00\x02xx",
        b"\x10\x0e\x00\x04MQTT\x04\x03\x00\x3c\x00\x02xx",
        b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\xff\x00",
        b"\x30\x05\x00\x03a/b",
        b"\xf0\x00",
    ];
    for bytes in first_packets {
        let mut stream = TcpStream::connect(gateway.mqtt()).unwrap();
        // The broker may close before it has read everything.
        let _ = stream.write_all(bytes);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_closes(&mut stream, bytes);
    }
    let later_packets: [&[u8]; 7] = [
        connect,
        b"\x82\x06\x00\x01\x00\x01#\x03",
        b"\x80\x06\x00\x01\x00\x01#\x00",
        b"\x36\x05\x00\x03a/b",
        b"\x30\x05\x00\x03a/#",
        b"\x30\x05\x00\x03a\x00b",
        b"\x30\x05\x00\x03\xc3\x28b",
    ];
    for bytes in later_packets {
        let mut stream = TcpStream::connect(gateway.mqtt()).unwrap();
        stream.write_all(connect).unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        stream.write_all(bytes).unwrap();
        assert_closes(&mut stream, bytes);
    }
    good.publish_and_wait("x", b"still here", 1).unwrap();
}

#[test]
fn noise_from_many_sockets_harms_nobody() {
    let gateway = Tidegate::builder().start();
    let mut rng = Rng::from_env("mqtt noise");
    let before = gateway.process().resident_bytes().unwrap();
    let connect = b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02xx";
    for _ in 0..500 {
        let mut stream = TcpStream::connect(gateway.mqtt()).unwrap();
        if rng.below(2) == 0 {
            stream.write_all(connect).unwrap();
        }
        let noise: Vec<u8> = (0..rng.below(3000)).map(|_| rng.bits() as u8).collect();
        let _ = stream.write_all(&noise);
    }
    let mut client = MqttClient::connect(gateway.mqtt(), "after").unwrap();
    client.publish_and_wait("x", b"y", 1).unwrap();
    let grown = gateway.process().resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < 30_000_000, "{grown} bytes more than before");
}

#[test]
fn idle_and_half_open_sockets_delay_nobody() {
    let authority = Authority::new("house");
    let (gateway, endpoints) = Endpoint::all_of_a_gateway(&authority, "");
    for endpoint in &endpoints {
        let (transport, host) = (endpoint.transport(), endpoint.address());
        let begun_to_say: &[u8] = match transport {
            Transport::Tcp => b"\x10\x0e\x00\x04MQ",
            Transport::WebSocket => b"GET /mqtt HTTP/1.1\r\nHost: x",
            Transport::Tls | Transport::SecureWebSocket => b"\x16\x03\x01\x02\x00\x01\x00",
        };
        let (mut idle, mut silent) = (Vec::new(), Vec::new());
        for number in 0..500 {
            match number % 4 {
                // All that comes before CONNECT.
                0 => silent.push(endpoint.dial().unwrap()),
                1 => {
                    let mut stream = TcpStream::connect(host).unwrap();
                    stream.write_all(begun_to_say).unwrap();
                    idle.push(stream);
                }
                _ => idle.push(TcpStream::connect(host).unwrap()),
            }
        }
        let (name, count) = (transport.name(), idle.len() + silent.len());
        let begun = Instant::now();
        let mut client = endpoint.dial().unwrap_or_else(|e| panic!("{name}, {count} idle ones: {e}"));
        let mut answer = [0; 4];
        client.write_all(b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02xx").unwrap();
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0x20, 2, 0, 0]);
        client.write_all(b"\x32\x06\x00\x01x\x00\x01y").unwrap();
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0x40, 2, 0, 1]);
        // The page is behind the same listener.
        if host == gateway.http() {
            gateway.status();
        }
        let time = begun.elapsed();
        println!("{name}: {time:?} among {count} idle ones");
        assert!(time < SECOND, "{name}: a client among {count} idle ones took {time:?}");
    }
}

#[test]
fn a_subscriber_that_does_not_read_delays_nobody_and_costs_bounded_memory() {
    let gateway = Tidegate::builder().start();
    let mut stuck = MqttClient::connect(gateway.mqtt(), "stuck").unwrap();
    stuck.subscribe("load/#", 0).unwrap();
    let mut reader = MqttClient::connect(gateway.mqtt(), "reader").unwrap();
    reader.subscribe("load/#", 0).unwrap();
    let mut publisher = MqttClient::connect(gateway.mqtt(), "publisher").unwrap();
    let payload = vec![b'x'; 4096];
    // 120 MB: more than the sockets' buffers and any sensible queue.
    for n in 0..30_000 {
        publisher.publish("load/x", &payload, 0, false).unwrap();
        if n % 100 == 99 {
            for _ in 0..100 {
                let message = reader.read(10 * SECOND).unwrap();
                assert!(matches!(message, Some(Incoming::Publish { .. })), "after {n}: {message:?}");
            }
        }
    }
    let resident = gateway.process().resident_bytes().unwrap();
    assert!(resident < 100_000_000, "{resident} bytes resident for one stuck subscriber");
}

/// The other side ends the connection within five seconds; a DISCONNECT or a refusing CONNACK may come before.
fn assert_closes(stream: &mut TcpStream, sent: &[u8]) {
    stream.set_read_timeout(Some(5 * SECOND)).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => assert!(!rest.starts_with(&[0x20, 2, 0, 0]), "accepted {sent:02x?}"),
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "left open after {sent:02x?}");
        }
    }
}

/// What it tells systemd within a time: how often that it is alive.
fn fed(notify: &UnixDatagram, time: Duration) -> usize {
    let (end, mut count, mut message) = (Instant::now() + time, 0, [0; 4096]);
    while Instant::now() < end {
        if let Ok(n) = notify.recv(&mut message) {
            count += message[..n].split(|byte| *byte == b'\n').filter(|line| *line == b"WATCHDOG=1").count();
        }
    }
    count
}

#[test]
fn the_watchdog_is_fed_while_the_listener_serves_and_not_when_it_does_not() {
    // Two seconds are half of what systemd would wait.
    let mut gateway = Tidegate::builder().through(&["env", "WATCHDOG_USEC=4000000"]).prepare();
    let notify = gateway.start_unready();
    assert!(wait_until(20 * SECOND, || (fed(&notify, SECOND / 10) > 0).then_some(())).is_some());
    let mut client = MqttClient::connect(gateway.mqtt(), "c").unwrap();
    client.subscribe("#", 0).unwrap();
    client.subscribe("$canary", 0).unwrap();
    // It goes in and out by the listener, and people see it only if they ask for it.
    let mut heard = 0;
    while heard < 3 {
        let packet = client.read(10 * SECOND).unwrap();
        heard += usize::from(matches!(packet, Some(Incoming::Publish { topic, .. }) if topic == "$canary"));
    }
    assert_eq!(gateway.status()["mqtt"]["clients"], 1);
    client.publish("$canary", b"0", 1, false).unwrap();
    assert!(fed(&notify, 5 * SECOND) > 1);
    gateway.kill();

    // The same, but that no connection is accepted.
    let strace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "inject=accept4:error=EMFILE"];
    let strace = [&["env", "WATCHDOG_USEC=4000000"][..], &strace].concat();
    let mut gateway = Tidegate::builder().through(&strace).prepare();
    let notify = gateway.start_unready();
    assert!(wait_until(20 * SECOND, || (fed(&notify, SECOND / 10) > 0).then_some(())).is_some());
    fed(&notify, 3 * SECOND);
    assert_eq!(fed(&notify, 4 * SECOND), 0);
    assert!(gateway.process_mut().is_running());
}
