//! The command line as a person meets it: the first session, the verbs, the signals.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};
use std::time::Duration;

use harness::{MqttClient, Scratch, Tidegate, binary, script, tool, unshare, wait_until};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

const SENSOR: &str = r#"
[[device]]
name = "cellar"
type = "bme280"
bus = "sim"
address = 0x76
interval = "100ms"
"#;

/// The default ports are free in a network namespace of its own, wherever the test runs.
const FIRST_SESSION: &str = r#"
ip link set lo up || exit 1
"$TIDEGATE" >banner 2>&1 &
gateway=$!
begun=$(date +%s%N)
until mosquitto_sub -t 'tidegate/#' -W 1 -C 1 >/dev/null 2>&1; do
    [ $(($(date +%s%N) - begun)) -lt 2000000000 ] || { echo 'nothing within 2 s'; break; }
done
echo "first reading after $((($(date +%s%N) - begun) / 1000000)) ms"
mosquitto_sub -v -t 'tidegate/#' -W 2 | sed 's/^/mqtt /'
coap-client-notls -v 2 -B 5 -m get coap://127.0.0.1/.well-known/core | tr ',' '\n' | sed 's/^/core /'
coap-client-notls -v 2 -B 5 -s 5 -m get coap://127.0.0.1/host/load_1m | sed 's/^/observed /'
echo
"$PYTHON" -c 'import urllib.request as u; print("page", u.urlopen("http://127.0.0.1:8080/").read()[:2000])'
sed 's/^/banner /' banner
kill $gateway
wait $gateway
echo "exit $?"
"#;

#[test]
fn the_first_session_works_on_the_default_ports_without_any_configuration() {
    let scratch = Scratch::new("first-session");
    let words = unshare("--net");
    let output = Command::new(tool(words[0]))
        .args(&words[1..])
        .args(["sh", "-c", FIRST_SESSION])
        .current_dir(&*scratch)
        .env("TIDEGATE", binary())
        .env("PYTHON", harness::python())
        .env("HOME", &*scratch)
        .env("XDG_CONFIG_HOME", &*scratch)
        .env("XDG_STATE_HOME", &*scratch)
        .env("XDG_RUNTIME_DIR", &*scratch)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = |prefix: &str| text.lines().filter(|line| line.starts_with(prefix)).collect::<Vec<_>>();
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("nothing within 2 s"));
    let host = lines("mqtt tidegate/").iter().filter(|line| line.contains("/host/")).count();
    assert!(host >= 5, "{host} lines of the host's readings");
    assert!(lines("core </host").len() >= 5, "the list has none of the host's channels");
    assert!(lines("page").iter().any(|line| line.contains("Tidegate")), "no page");
    for word in ["1883", "8080", "5683", "mosquitto_sub"] {
        assert!(lines("banner").iter().any(|line| line.contains(word)), "the banner does not say {word}");
    }
    assert!(text.contains("exit 0"), "it did not end with 0 when asked to");
}

#[test]
fn status_tail_export_and_scan_answer_people_and_programs() {
    let mut gateway = Tidegate::builder().tables(SENSOR).start();
    let full = wait_until(10 * SECOND, || {
        let status = gateway.cli_json(&["status"]);
        (status["spool"]["last_seq"].as_u64()? >= 30).then_some(status)
    });
    let status = full.expect("the spool fills");
    assert_eq!(status["gateway"], "barn");
    assert_eq!(status["devices"][0]["name"], "cellar", "{status}");
    assert_succeeds(&gateway.cli(&["status"]), "barn");
    let exported = gateway.cli(&["export", "--json"]);
    assert_succeeds(&exported, "cellar/temperature");
    for line in String::from_utf8(exported.stdout).unwrap().lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "not JSON: {line}");
    }
    assert_succeeds(&gateway.cli(&["export"]), "cellar/temperature");
    assert_succeeds(&gateway.cli(&["scan", "--json"]), "");
    gateway.stop();
    // What does not need the running gateway works when it is stopped; what does, says so.
    assert_succeeds(&gateway.cli(&["export", "--json"]), "cellar/temperature");
    assert_succeeds(&gateway.cli(&["scan"]), "");
    let output = gateway.cli(&["status"]);
    let words =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(words.contains("no running gateway"), "{words}");
}

#[test]
fn help_can_be_read_and_a_mistyped_verb_is_pointed_out() {
    let help = Command::new(binary()).arg("--help").output().unwrap();
    for verb in ["run", "check", "status", "scan", "tail", "export"] {
        assert_succeeds(&help, verb);
    }
    for line in String::from_utf8(help.stdout).unwrap().lines() {
        assert!(line.chars().count() <= 120, "too wide to read: {line}");
    }
    let output = Command::new(binary()).arg("statsu").output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("status"), "no hint at what was meant");
}

#[test]
fn sigterm_ends_it_within_five_seconds_with_clients_and_a_dead_uplink() {
    let dead = "[[uplink]]\nname = \"c\"\ntype = \"mqtt\"\naddress = \"127.0.0.1:9\"\n";
    let mut gateway = Tidegate::builder().tables(SENSOR).tables(dead).start();
    let clients: Vec<MqttClient> =
        (0..20).map(|n| MqttClient::connect(gateway.mqtt(), &format!("c{n}")).unwrap()).collect();
    let status = gateway.stop();
    assert_eq!(status.code(), Some(0), "{status}");
    drop(clients);
    gateway.start();
}

#[test]
fn sighup_takes_a_new_device_and_cuts_no_client() {
    let gateway = Tidegate::builder().tables(SENSOR).start();
    let mut client = MqttClient::connect(gateway.mqtt(), "stays").unwrap();
    client.subscribe("tidegate/barn/attic/temperature", 0).unwrap();
    let more = format!("{SENSOR}{}", SENSOR.replace("cellar", "attic").replace("0x76", "0x77"));
    gateway.configure("", &more);
    gateway.process().signal(libc::SIGHUP);
    let message = client.read(10 * SECOND).unwrap();
    assert!(message.is_some(), "the new device's readings do not come");
    // A configuration that cannot be used changes nothing.
    gateway.configure("", "[nonsense]\n");
    gateway.process().signal(libc::SIGHUP);
    gateway.process().wait_for_line("nonsense", 5 * SECOND);
    for _ in 0..5 {
        assert!(client.read(10 * SECOND).unwrap().is_some());
    }
}

#[test]
fn a_second_gateway_on_the_same_state_is_refused() {
    let gateway = Tidegate::builder().start();
    let output = gateway.cli(&["run"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn the_python_environment_is_there() {
    assert!(script("paho_checks").output().is_ok());
}

fn assert_succeeds(output: &Output, word: &str) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(word), "{word} is not in:\n{text}");
}
