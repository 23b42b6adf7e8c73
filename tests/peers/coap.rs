//! The CoAP server against libcoap's client and aiocoap, and against datagrams no client sends.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Rng, Tidegate, script, tool};

const DEVICES: &str = r#"
[[device]]
name = "cellar"
type = "bme280"
bus = "sim"
address = 0x76
interval = "200ms"

[[device]]
name = "pump"
type = "gpio-output"
chip = "sim"
line = "GPIO27"
"#;

/// What libcoap's client prints on standard output. Without `-v 2` its warnings would stand there too.
fn coap_client(gateway: &Tidegate, arguments: &[&str], path: &str) -> String {
    let output = Command::new(tool("coap-client-notls"))
        .args(["-v", "2", "-B", "5"])
        .args(arguments)
        .arg(format!("coap://{}{path}", gateway.coap()))
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn started() -> Tidegate {
    let gateway = Tidegate::builder().tables(DEVICES).start();
    let served = harness::wait_until(Duration::from_secs(5), || {
        let text = coap_client(&gateway, &["-m", "get"], "/cellar/temperature");
        text.trim().parse::<f64>().ok()
    });
    assert!(served.is_some(), "no temperature is served");
    gateway
}

#[test]
fn libcoap_lists_reads_observes_and_commands() {
    let gateway = started();
    let list = coap_client(&gateway, &["-m", "get"], "/.well-known/core");
    for resource in
        ["</cellar/temperature>", "</cellar/humidity>", "</cellar/pressure>", "</pump/", "</cellar>"]
    {
        assert!(list.contains(resource), "{resource} is not in {list}");
    }
    let humidity: f64 = coap_client(&gateway, &["-m", "get"], "/cellar/humidity").trim().parse().unwrap();
    assert!((0.0..=100.0).contains(&humidity));
    let observed = coap_client(&gateway, &["-s", "3", "-m", "get"], "/cellar/temperature");
    let values = observed.split_whitespace().count().max(observed.matches('.').count());
    assert!(values >= 5, "200 ms apart for 3 s, and only this came: {observed:?}");
    let json = coap_client(&gateway, &["-m", "get", "-A", "110"], "/cellar/temperature");
    assert!(json.contains("\"u\":\"Cel\""), "{json}");
}

#[test]
fn aiocoap_finds_a_server_that_keeps_to_the_standards() {
    let gateway = started();
    let port = gateway.coap().port().to_string();
    let mut failed = Vec::new();
    for check in ["lists", "formats", "observes", "blocks", "commands", "refuses"] {
        let output = script("coap_checks").args([&port, check]).output().unwrap();
        if !output.status.success() {
            failed.push(format!("{check}: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_repeated_command_is_answered_from_memory_and_carried_out_once() {
    let gateway = started();
    let socket = client(&gateway);
    let ask = |bytes: &[u8]| {
        socket.send(bytes).unwrap();
        receive(&socket).expect("an answer")
    };
    // CON PUT /pump/state: on under message id 0x1234, off under 0x1235.
    let on = b"\x41\x03\x12\x34\x55\xb4pump\x05state\xff1";
    let off = b"\x41\x03\x12\x35\x56\xb4pump\x05state\xff0";
    let first = ask(on);
    assert_eq!(first[..5], *b"\x61\x44\x12\x34\x55", "{first:02x?}");
    ask(off);
    // The network delivers the first once more: its answer comes again, and the pump stays off.
    assert_eq!(ask(on), first);
    assert_eq!(coap_client(&gateway, &["-m", "get", "-A", "0"], "/pump/state").trim(), "false");
}

#[test]
fn a_ping_is_reset_and_malformed_datagrams_are_rejected_or_dropped() {
    let gateway = started();
    let socket = client(&gateway);
    socket.send(b"\x40\x00\x00\x07").unwrap();
    assert_eq!(receive(&socket).as_deref(), Some(&b"\x70\x00\x00\x07"[..]));
    let malformed: [&[u8]; 7] = [
        b"\x49\x01\x00\x08aaaaaaaaa",
        b"\x40\x01\x00\x09\xff",
        b"\x40\x01\x00\x0a\xf0",
        b"\x40\x01\x00\x0b\xbf\x01",
        b"\x40\x01\x00\x0c\xbdx",
        b"\x40\x00\x00\x0d\x00",
        b"\x42\x01\x00\x0ea",
    ];
    for bytes in malformed {
        socket.send(bytes).unwrap();
        if let Some(answer) = receive(&socket) {
            assert_eq!(
                (answer[0], &answer[2..4]),
                (0x70, &bytes[2..4]),
                "{bytes:02x?} was answered {answer:02x?}"
            );
        }
    }
    for bytes in [&b""[..], b"\x40", b"\x80\x01\x00\x01", b"\x50\x01\x00\x10\xff"] {
        socket.send(bytes).unwrap();
        assert_eq!(receive(&socket), None, "{bytes:02x?} is not worth an answer");
    }
    coap_client(&gateway, &["-m", "get"], "/cellar/temperature").trim().parse::<f64>().unwrap();
}

#[test]
fn a_flood_of_noise_stops_nothing_and_costs_bounded_memory() {
    let gateway = started();
    let mut rng = Rng::from_env("coap noise");
    let before = gateway.process().resident_bytes().unwrap();
    let sockets: Vec<UdpSocket> = (0..50).map(|_| client(&gateway)).collect();
    let valid = b"\x41\x01\x12\x34\x55\x60\x56cellar\x0btemperature";
    for n in 0..100_000 {
        let mut bytes = valid.to_vec();
        for _ in 0..=rng.below(4) {
            let at = rng.below(bytes.len());
            bytes[at] = rng.bits() as u8;
        }
        // The receiver's buffer may be full: that is a flood.
        let _ = sockets[n % sockets.len()].send(&bytes);
    }
    let begun = Instant::now();
    coap_client(&gateway, &["-m", "get"], "/cellar/temperature").trim().parse::<f64>().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "answered after {:?}", begun.elapsed());
    let grown = gateway.process().resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < 40_000_000, "{grown} bytes more than before");
}

fn client(gateway: &Tidegate) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(gateway.coap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut bytes = [0; 1500];
    socket.recv(&mut bytes).ok().map(|n| bytes[..n].to_vec())
}
