//! What is wrong from outside: configurations, ports, directories, files, disks, wires. Each is named, nothing else
//! stops.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::Duration;

use harness::{MqttClient, Process, Scratch, Tidegate, binary, tool, unshare, wait_until};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

const SENSOR: &str = r#"
[[device]]
name = "cellar"
type = "bme280"
bus = "sim"
address = 0x76
interval = "50ms"
"#;

fn check(text: &str, arguments: &[&str]) -> (Output, String) {
    let scratch = Scratch::new("check");
    let file = scratch.write("tidegate.toml", text);
    let output =
        Command::new(binary()).arg("check").args(arguments).arg("--config").arg(file).output().unwrap();
    let words =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, words)
}

const MISTAKES: &str = r#"
[gateway]
name = "barn"
colour = "red"

[mqtt]
listen = "here"

[spool]
max_size = 7

[[device]]
name = "cellar"
type = "bme280"
bus = "sim"
address = 0x76

[[device]]
name = "cellar"
type = "bme280"
bus = "sim"
address = 0x76

[[uplink]]
name = "cloud"
type = "mqtt"
address = "127.0.0.1:1"
password = { file = "/nowhere/at/all" }
"#;

#[test]
fn every_mistake_is_reported_at_once_with_its_place_and_exit_78() {
    let (output, words) = check(MISTAKES, &[]);
    assert_eq!(output.status.code(), Some(78), "{words}");
    // Unknown key, wrong type twice, a name used twice, an address used twice, a path that leads nowhere.
    for (word, line) in [
        ("colour", 4),
        ("listen", 7),
        ("max_size", 10),
        ("cellar", 19),
        ("0x76", 18),
        ("/nowhere/at/all", 24),
    ] {
        assert!(words.contains(word), "{word} is not in:\n{words}");
        assert!(words.contains(&format!("tidegate.toml:{line}:")), "line {line} is not pointed at:\n{words}");
    }
    assert!(words.contains('^'), "no caret in:\n{words}");
    let (output, words) = check(MISTAKES, &["--json"]);
    assert_eq!(output.status.code(), Some(78));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {words}"));
    assert!(json.to_string().matches("\"line\"").count() >= 6, "{json}");
}

#[test]
fn a_sound_configuration_passes_and_text_that_is_no_toml_is_pointed_at() {
    let (output, words) = check(&format!("[gateway]\nname = \"barn\"\n{SENSOR}"), &[]);
    assert_eq!(output.status.code(), Some(0), "{words}");
    let (output, words) = check("[gateway\nname = ", &[]);
    assert_eq!(output.status.code(), Some(78), "{words}");
    assert!(words.contains(":1:"), "{words}");
}

#[test]
fn a_listener_beyond_loopback_without_credentials_is_refused_with_the_lines_that_mend_it() {
    for section in ["mqtt", "http"] {
        let (output, words) = check(&format!("[{section}]\nlisten = [\"0.0.0.0:0\"]\n"), &[]);
        assert_eq!(output.status.code(), Some(78), "{words}");
        assert!(words.contains("[users]") && words.contains("0.0.0.0"), "{words}");
    }
    let (output, words) = check("[coap]\nlisten = [\"0.0.0.0:0\"]\n", &[]);
    assert_eq!(output.status.code(), Some(78), "{words}");
    assert!(words.contains("public = true"), "{words}");
}

#[test]
fn a_busy_port_is_named_together_with_what_may_hold_it() {
    let mut gateway = Tidegate::builder().prepare();
    let _holder = TcpListener::bind(gateway.mqtt()).unwrap();
    gateway.start_unready();
    let status = gateway.process_mut().wait(10 * SECOND);
    let words = gateway.process().lines().join("\n");
    assert_eq!(status.code(), Some(1), "{words}");
    assert!(words.contains(&gateway.mqtt().port().to_string()), "{words}");
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named() {
    let scratch = Scratch::new("state");
    // Beneath a file there is no directory, not even for root.
    let file = scratch.write("file", "");
    let gateway = Tidegate::builder().prepare();
    let output = Command::new(binary())
        .args(["run", "--config"])
        .arg(gateway.config())
        .arg("--state-dir")
        .arg(file.join("state"))
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains(file.to_str().unwrap()), "{words}");
}

#[test]
fn a_corrupt_database_is_set_aside_and_the_loss_reported() {
    let mut gateway = Tidegate::builder().tables(SENSOR).start();
    wait_until(10 * SECOND, || (gateway.newest() > 50).then_some(())).unwrap();
    gateway.kill();
    let database = gateway.state_dir().join("spool.db");
    let mut bytes = fs::read(&database).unwrap();
    let length = bytes.len();
    bytes[..length.min(60_000)].fill(0xA5);
    fs::write(&database, bytes).unwrap();
    let _ = fs::remove_file(gateway.state_dir().join("spool.db-wal"));
    gateway.start();
    let status = gateway.status();
    assert!(!status["spool"]["gaps"].as_array().unwrap().is_empty(), "no gap in {status}");
    let is_kept = fs::read_dir(gateway.state_dir()).unwrap().flatten().any(|entry| {
        let name = entry.file_name().into_string().unwrap();
        name.contains("corrupt") || name.contains("damaged") || name.contains("quarantine")
    });
    assert!(is_kept, "the damaged file is gone");
    wait_until(10 * SECOND, || (gateway.newest() > 0).then_some(())).expect("readings are stored again");
}

#[test]
fn a_full_disk_wedges_nothing_and_is_reported() {
    // A file system of 12 MB in a mount namespace of the gateway's own, most of it taken by somebody else.
    let mount =
        "mount -t tmpfs -o size=24m tmpfs state && head -c 14m /dev/zero >state/others && exec \"$@\"";
    let mut gateway = Tidegate::builder()
        .tables(&SENSOR.replace("50ms", "1ms"))
        .tables("[[uplink]]\nname = \"away\"\ntype = \"mqtt\"\naddress = \"127.0.0.1:9\"")
        .through(&[&*unshare("--mount"), &["sh", "-c", mount, "sh"]].concat())
        .start();
    let gaps = || gateway.status()["spool"]["gaps"].as_array().map_or(0, Vec::len);
    let noticed = wait_until(120 * SECOND, || (gaps() > 0).then_some(()));
    assert!(noticed.is_some(), "{}", gateway.status());
    // The broker still serves, the sensors are still read.
    let mut client = MqttClient::connect(gateway.mqtt(), "c").unwrap();
    client.subscribe("tidegate/barn/cellar/temperature", 0).unwrap();
    for _ in 0..10 {
        assert!(client.read(5 * SECOND).unwrap().is_some());
    }
    assert_eq!(gateway.stop().code(), Some(0));
}

#[test]
fn a_serial_line_full_of_garbage_stops_nothing_else() {
    let scratch = Scratch::new("serial");
    let (near, far) = (scratch.join("near"), scratch.join("far"));
    let mut command = Command::new(tool("socat"));
    command.arg(format!("pty,raw,echo=0,link={}", near.display()));
    command.arg(format!("pty,raw,echo=0,link={}", far.display()));
    let _wire = Process::start("socat", &scratch, command);
    wait_until(5 * SECOND, || (near.exists() && far.exists()).then_some(())).unwrap();
    let gps =
        format!("[[device]]\nname = \"gps\"\ntype = \"nmea\"\nport = \"{}\"\nbaud = 9600\n", near.display());
    let gateway = Tidegate::builder().tables(SENSOR).tables(&gps).start();
    let mut line = fs::File::options().write(true).open(&far).unwrap();
    let mut rng = harness::Rng::from_env("serial garbage");
    let mut client = MqttClient::connect(gateway.mqtt(), "c").unwrap();
    client.subscribe("tidegate/barn/#", 0).unwrap();
    let noise: Vec<u8> = (0..200_000).map(|_| rng.bits() as u8).collect();
    for piece in noise.chunks(4096) {
        std::io::Write::write_all(&mut line, piece).unwrap();
    }
    let sentence = b"\r\n$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47\r\n";
    for _ in 0..5 {
        std::io::Write::write_all(&mut line, sentence).unwrap();
    }
    let heard = wait_until(20 * SECOND, || match client.read(SECOND).unwrap() {
        Some(harness::Incoming::Publish { topic, payload, .. }) if topic.contains("/gps/") => {
            String::from_utf8(payload).ok().filter(|text| text.contains("545.4") || text.contains("48.117"))
        }
        _ => None,
    });
    assert!(heard.is_some(), "behind the garbage the sentence is not heard");
}
