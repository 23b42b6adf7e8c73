//! Commands to actuators, leases and alarms on the whole program: what is done once, what never, and who hears of it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harness::{
    Incoming, Mosquitto, MqttClient, MqttLedger, Process, Rng, Tidegate, TidegateBuilder, tool, wait_until,
};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);
const SET: &str = "tidegate/barn/pump/state/set";

/// A pump that is read when it is commanded, and else once an hour.
fn pump(keys: &str) -> String {
    format!(
        "[[device]]\nname = \"pump\"\ntype = \"gpio-output\"\nchip = \"sim\"\nline = \"GPIO27\"\ninterval = \"1h\"\n{keys}\n"
    )
}

fn gateway(keys: &str) -> TidegateBuilder {
    Tidegate::builder().tables(&pump(keys))
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn set(gateway: &Tidegate, value: &str, id: &str) -> Value {
    gateway.cli_json(&["set", "pump/state", value, "--id", id])
}

/// Every line of the log that `pick` makes something of, in order.
fn log<T>(gateway: &Tidegate, pick: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    let output = gateway.cli(&["export", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| pick(&serde_json::from_str(line).unwrap())).collect()
}

/// The pump's states in the log: each is a moment at which the pin was looked at.
fn states(gateway: &Tidegate) -> Vec<bool> {
    log(gateway, |line| line["value"].as_bool().filter(|_| line["channel"] == "pump/state"))
}

/// How often the pin went up.
fn rises(states: &[bool]) -> usize {
    usize::from(states.first() == Some(&true)) + states.windows(2).filter(|pair| !pair[0] && pair[1]).count()
}

/// The outcomes in the log, of the command with that id.
fn outcomes(gateway: &Tidegate, id: &str) -> Vec<Value> {
    log(gateway, |line| Some(line["outcome"].clone()).filter(|outcome| outcome["id"] == id))
}

fn is_ready(gateway: &Tidegate) {
    let ready = wait_until(10 * SECOND, || (!states(gateway).is_empty()).then_some(()));
    assert!(ready.is_some(), "the pump was never read");
}

/// Waits until nothing is written any more: the next flush is then the command's.
fn is_idle(gateway: &Tidegate) {
    let commits = || gateway.status()["spool"]["commits"].as_u64().unwrap();
    let mut seen = (commits(), Instant::now());
    let idle = wait_until(30 * SECOND, || {
        let now = commits();
        if now != seen.0 {
            seen = (now, Instant::now());
        }
        // Telemetry waits for its commit for a second at most.
        (seen.0 > 0 && seen.1.elapsed() > 2 * SECOND).then_some(())
    });
    assert!(idle.is_some(), "it never stops writing");
}

/// The next message whose topic ends so.
fn next(client: &mut MqttClient, end: &str) -> Value {
    let deadline = Instant::now() + 20 * SECOND;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match client.read(left).unwrap() {
            Some(Incoming::Publish { topic, payload, .. }) if topic.ends_with(end) => {
                return serde_json::from_slice(&payload)
                    .unwrap_or_else(|_| String::from_utf8_lossy(&payload).into());
            }
            Some(_) => {}
            None => panic!("nothing came on …{end}"),
        }
    }
}

fn mosquitto_pub(gateway: &Tidegate, arguments: &[&str]) {
    let port = gateway.mqtt().port().to_string();
    let mut command = Command::new(tool("mosquitto_pub"));
    command.args(["-h", "127.0.0.1", "-p", &port, "-q", "1"]).args(arguments);
    assert!(command.status().unwrap().success(), "mosquitto_pub {arguments:?}");
}

#[test]
fn one_id_is_one_command_over_every_protocol_and_restart() {
    let mut gateway = gateway("").start();
    is_ready(&gateway);
    let mut visitor = MqttClient::connect(gateway.mqtt(), "visitor").unwrap();
    visitor.subscribe("tidegate/barn/pump/state/set/result", 1).unwrap();
    mosquitto_pub(&gateway, &["-t", SET, "-m", r#"{"value": "on", "id": "a"}"#]);
    let outcome = next(&mut visitor, "/set/result");
    assert_eq!(
        (&outcome["state"], &outcome["value"], &outcome["id"]),
        (&"done".into(), &true.into(), &"a".into())
    );
    assert_eq!(set(&gateway, "off", "b")["value"], false);
    // The id again, from everywhere, asks for nothing new: the first outcome is the answer, and the pump stays off.
    assert_eq!(set(&gateway, "on", "a")["value"], true);
    let coap = format!("coap://127.0.0.1:{}/pump/state?id=a", gateway.coap().port());
    let put =
        Command::new(tool("coap-client-notls")).args(["-m", "put", "-e", "on", &coap]).output().unwrap();
    assert!(put.status.success(), "{put:?}");
    mosquitto_pub(&gateway, &["-t", SET, "-m", r#"{"value": "on", "id": "a"}"#]);
    gateway.stop();
    gateway.start();
    assert_eq!(set(&gateway, "on", "a")["value"], true, "remembered over a restart");
    gateway.kill();
    gateway.start();
    assert_eq!(set(&gateway, "on", "a")["value"], true, "and over kill -9");
    assert_eq!(rises(&states(&gateway)), 1, "{:?}", states(&gateway));
    assert_eq!(outcomes(&gateway, "a").len(), 1);
    // One that names another channel's id is told so and not taken for done.
    let other = gateway.cli_json(&["set", "pump/power", "on", "--id", "a"]);
    assert_eq!((&other["ok"], &other["state"]), (&false.into(), &"refused".into()));
    assert_eq!(set(&gateway, "on", "c")["value"], true, "a new id is a new command");
}

#[test]
fn kill_9_on_either_side_of_the_act_carries_no_command_out_twice() {
    let mut gateway = gateway("").prepare();
    let mut seen = Vec::new();
    // Killed as it enters its first flush, its second, …: before the pin moves, and after it.
    for flush in 1..=4 {
        let id = format!("cut-{flush}");
        gateway.start();
        is_idle(&gateway);
        let mut killer = Command::new(tool("strace"));
        let inject = format!("inject=fsync,fdatasync:signal=SIGKILL:when={flush}");
        let process = gateway.process().id().to_string();
        killer.args(["-f", "-y", "-e", "trace=fsync,fdatasync", "-e", &inject, "-p", &process]);
        let mut killer = Process::start("strace", gateway.scratch(), killer);
        killer.wait_for_line("attached", 20 * SECOND);
        let mut visitor = MqttClient::connect(gateway.mqtt(), "visitor").unwrap();
        visitor.subscribe("tidegate/barn/pump/#", 1).unwrap();
        // Not acknowledged: the gateway does not live so long.
        visitor
            .publish(SET, format!("{{\"value\": \"on\", \"id\": \"{id}\"}}").as_bytes(), 1, false)
            .unwrap();
        // What the LAN was shown until the end is what the pin did.
        let mut was_on = false;
        while let Ok(Some(message)) = visitor.read(10 * SECOND) {
            if let Incoming::Publish { topic, payload, .. } = message {
                was_on |= topic.ends_with("/state") && payload == b"true";
            }
        }
        gateway.process().signal(9);
        killer.wait(10 * SECOND);
        gateway.kill();
        gateway.start();
        is_ready(&gateway);
        // Nobody has to ask: what was cut short is reported by itself.
        let reported = wait_until(10 * SECOND, || outcomes(&gateway, &id).pop());
        let reported = reported.unwrap_or_else(|| panic!("flush {flush}: no outcome of {id}"));
        let state = reported["state"].as_str().unwrap().to_owned();
        // An outcome that was being flushed is there after a kill, and the LAN may not have been shown the change yet.
        assert!(state == "unknown" || was_on || flush > 1, "flush {flush}: {reported}");
        let before = rises(&states(&gateway));
        for _ in 0..3 {
            let again = set(&gateway, "on", &id);
            assert_eq!(again["state"].as_str(), Some(&*state), "{again}");
        }
        assert_eq!(rises(&states(&gateway)), before, "flush {flush}: the pin moved again");
        assert_eq!(outcomes(&gateway, &id).len(), 1, "told once");
        seen.push((was_on, state));
        gateway.stop();
    }
    assert!(seen.contains(&(false, "unknown".into())), "none was cut short before the act: {seen:?}");
    assert!(seen.iter().any(|(was_on, _)| *was_on), "none was cut short after the act: {seen:?}");
}

#[test]
fn kill_9_at_any_moment_carries_no_command_out_twice() {
    let mut rng = Rng::from_env("commands");
    let mut gateway = gateway("").start();
    for round in 0..15 {
        is_ready(&gateway);
        let id = format!("any-{round}");
        let mut shown = 0;
        let mut visitor = MqttClient::connect(gateway.mqtt(), "visitor").unwrap();
        visitor.subscribe("tidegate/barn/pump/state", 1).unwrap();
        let payload = format!("{{\"value\": \"on\", \"id\": \"{id}\"}}");
        visitor.publish(SET, payload.as_bytes(), 1, false).unwrap();
        std::thread::sleep(Duration::from_micros(rng.below(12_000) as u64));
        gateway.kill();
        while let Ok(Some(message)) = visitor.read(SECOND) {
            shown += usize::from(matches!(message, Incoming::Publish { payload, .. } if payload == b"true"));
        }
        gateway.start();
        is_ready(&gateway);
        let before = rises(&states(&gateway));
        let outcome = set(&gateway, "on", &id);
        let repeated = rises(&states(&gateway)) - before;
        // Done now, or done or cut short before: never both.
        let was_begun = shown > 0 || !outcomes(&gateway, &id).is_empty() && outcome["state"] != "done";
        assert!(shown + repeated <= 1, "{id}: shown {shown} times, then {repeated}: {outcome}");
        assert!(!(was_begun && repeated > 0), "{id}: {outcome}");
        set(&gateway, "off", &format!("{id}-off"));
    }
}

#[test]
fn a_command_that_waited_past_its_expiry_is_refused_and_one_in_time_is_done() {
    let broker = Mosquitto::with(harness::MosquittoConfig {
        persistence: true,
        extra: vec!["log_type all".to_owned()],
        ..Default::default()
    });
    let cloud = format!(
        "[[uplink]]\nname = \"cloud\"\ntype = \"mqtt\"\naddress = \"{}\"\nversion = \"5.0\"\ncommands = true\ndelivery = \"exactly-once\"\n",
        broker.address()
    );
    let mut gateway = gateway("").tables(&cloud).start();
    is_ready(&gateway);
    let connected =
        wait_until(20 * SECOND, || (gateway.status()["uplinks"][0]["state"] == "connected").then_some(()));
    assert!(connected.is_some(), "{}", gateway.status()["uplinks"]);
    broker.process().wait_for_line("tidegate/barn/+/+/set", 10 * SECOND);
    gateway.stop();
    // Both wait at the broker while the gateway is away.
    let mut operator = MqttClient::connect(broker.address(), "operator").unwrap();
    let soon = now_s() + 2;
    let late = format!("{{\"value\": \"on\", \"id\": \"late\", \"expires\": \"{}\"}}", rfc3339(soon));
    let good =
        format!("{{\"value\": \"off\", \"id\": \"good\", \"expires\": \"{}\"}}", rfc3339(now_s() + 600));
    operator.publish_and_wait(SET, late.as_bytes(), 1).unwrap();
    operator.publish_and_wait(SET, good.as_bytes(), 1).unwrap();
    wait_until(5 * SECOND, || (now_s() > soon).then_some(())).unwrap();
    gateway.start();
    let done = wait_until(20 * SECOND, || outcomes(&gateway, "good").pop()).expect("an outcome");
    assert_eq!(done["state"], "done", "{done}");
    let refused = wait_until(20 * SECOND, || outcomes(&gateway, "late").pop()).expect("an outcome");
    assert_eq!((&refused["ok"], &refused["state"]), (&false.into(), &"expired".into()), "{refused}");
    assert_eq!(rises(&states(&gateway)), 0, "the pump never ran");
    // On the LAN it is the same, in every form; and an expiry that cannot be read is no leave to act.
    for expires in ["2020-01-01T00:00:00Z", "1577836800"] {
        let late = gateway.cli_json(&["set", "pump/state", "on", "--expires", expires]);
        assert_eq!(late["state"], "expired", "{late}");
    }
    assert_eq!(gateway.cli_json(&["set", "pump/state", "on", "--expires", "tomorrow"])["ok"], Value::Null);
    mosquitto_pub(&gateway, &["-t", SET, "-m", r#"{"value": "on", "expires": 1577836800}"#]);
    mosquitto_pub(&gateway, &["-t", SET, "-m", r#"{"value": "on", "expiers": 9999999999}"#]);
    let coap = format!("coap://127.0.0.1:{}/pump/state?expires=1577836800", gateway.coap().port());
    let put =
        Command::new(tool("coap-client-notls")).args(["-m", "put", "-e", "on", &coap]).output().unwrap();
    let said = String::from_utf8_lossy(&put.stderr).into_owned() + &String::from_utf8_lossy(&put.stdout);
    assert!(said.contains("expired"), "{said}");
    let later = rfc3339(now_s() + 600);
    assert_eq!(gateway.cli_json(&["set", "pump/state", "on", "--expires", &later])["state"], "done");
    assert_eq!(rises(&states(&gateway)), 1);
}

/// Whole seconds since 1970 as RFC 3339, by the system's own `date`.
fn rfc3339(unix_s: u64) -> String {
    let output =
        Command::new("date").args(["-u", "-d", &format!("@{unix_s}"), "+%Y-%m-%dT%H:%M:%SZ"]).output();
    String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned()
}

#[test]
fn retained_commands_are_never_carried_out() {
    let mut gateway = gateway("").start();
    is_ready(&gateway);
    mosquitto_pub(&gateway, &["-r", "-t", SET, "-m", "on"]);
    mosquitto_pub(&gateway, &["-t", SET, "-m", r#"{"value": "off", "id": "after"}"#]);
    let after = wait_until(10 * SECOND, || outcomes(&gateway, "after").pop());
    assert!(after.is_some(), "commands are taken in order");
    gateway.stop();
    gateway.start();
    is_ready(&gateway);
    assert_eq!(set(&gateway, "off", "last")["state"], "done");
    assert_eq!(rises(&states(&gateway)), 0, "{:?}", states(&gateway));
}

#[test]
fn an_output_nobody_renews_goes_to_its_safe_state_and_everybody_hears_of_it() {
    let broker = Mosquitto::durable();
    let ledger = MqttLedger::start(broker.address(), "#", 1);
    let cloud =
        format!("[[uplink]]\nname = \"cloud\"\ntype = \"mqtt\"\naddress = \"{}\"\n", broker.address());
    let gateway = gateway("lease = \"1500ms\"").tables(&cloud).start();
    is_ready(&gateway);
    let mut visitor = MqttClient::connect(gateway.mqtt(), "visitor").unwrap();
    visitor.subscribe("tidegate/barn/#", 1).unwrap();
    // Renewed for longer than one lease it stays on.
    let begun = Instant::now();
    while begun.elapsed() < 3 * SECOND {
        assert_eq!(set(&gateway, "on", &format!("{:?}", begun.elapsed()))["value"], true);
        assert_eq!(rises(&states(&gateway)), 1);
    }
    let renewed = Instant::now();
    assert_eq!(next(&mut visitor, "/alarm/pump/state/lease")["raised"], true);
    let after = renewed.elapsed();
    assert!(after > SECOND && after < 4 * SECOND, "{after:?} after the last command");
    assert_eq!(states(&gateway).last(), Some(&false));
    let problems = gateway.status()["health"]["problems"].to_string();
    assert!(problems.contains("went to its safe state"), "{problems}");
    let lapsed =
        log(&gateway, |line| Some(line["outcome"].clone()).filter(|outcome| outcome["state"] == "lapsed"));
    assert_eq!(lapsed.len(), 1, "{lapsed:?}");
    assert_eq!(lapsed[0]["value"], false);
    let far = wait_until(20 * SECOND, || {
        ledger.messages().iter().any(|m| m.to_string().contains("pump/state/lease")).then_some(())
    });
    assert!(far.is_some(), "the cloud hears of it");
    // Somebody is there again.
    assert_eq!(set(&gateway, "on", "again")["value"], true);
    assert_eq!(next(&mut visitor, "/alarm/pump/state/lease")["raised"], false);
    assert_eq!(set(&gateway, "off", "off")["value"], false);
    let quiet = wait_until(3 * SECOND, || {
        (log(&gateway, |line| (line["outcome"]["state"] == "lapsed").then_some(())).len() > 1).then_some(())
    });
    assert!(quiet.is_none(), "in its safe state nothing runs out");
}

#[test]
fn an_alarm_is_told_once_when_it_begins_and_once_when_it_ends_on_the_lan_and_in_the_cloud_over_a_restart() {
    let broker = Mosquitto::durable();
    let ledger = MqttLedger::start(broker.address(), "#", 1);
    let tables = |above: i32| {
        format!(
            "[[device]]\nname = \"cellar\"\ntype = \"bme280\"\nbus = \"sim\"\ninterval = \"50ms\"\n\
             channels.temperature = {{ alarm = {{ above = {above}, hysteresis = 0.5, delay = \"200ms\" }} }}\n\
             [[device]]\nname = \"attic\"\ntype = \"nmea\"\nport = \"/dev/no-such-port\"\nabsent_after = \"1s\"\n\
             [[uplink]]\nname = \"cloud\"\ntype = \"mqtt\"\naddress = \"{}\"\n",
            broker.address()
        )
    };
    let mut gateway = Tidegate::builder().tables(&tables(-40)).start();
    let alarms = |gateway: &Tidegate| gateway.status()["alarms"].clone();
    let raised = wait_until(10 * SECOND, || {
        Some(alarms(&gateway)).filter(|alarms| alarms.as_array().unwrap().len() == 2)
    });
    let raised = raised.unwrap_or_else(|| panic!("{}", alarms(&gateway)));
    assert_eq!(
        (&raised[0]["name"], &raised[1]["name"]),
        (&"attic/absent".into(), &"cellar/temperature/above".into())
    );
    let mut visitor = MqttClient::connect(gateway.mqtt(), "visitor").unwrap();
    visitor.subscribe("tidegate/barn/$state/alarm/#", 1).unwrap();
    let shown = next(&mut visitor, "/alarm/cellar/temperature/above");
    assert!(shown["text"].as_str().unwrap().ends_with("above -40"), "{shown}");
    assert_eq!(shown["raised"], true);
    // Killed while it is raised, well at the next start: its end is told all the same.
    gateway.kill();
    gateway.configure("", &tables(80));
    gateway.start();
    let ended = wait_until(10 * SECOND, || {
        Some(alarms(&gateway)).filter(|alarms| alarms.as_array().unwrap().len() == 1)
    });
    assert!(ended.is_some(), "{}", alarms(&gateway));
    let told = || {
        log(&gateway, |line| {
            let alarm = &line["alarm"];
            (alarm["name"] == "cellar/temperature/above").then(|| alarm["raised"].as_bool().unwrap())
        })
    };
    wait_until(10 * SECOND, || (told().len() > 1).then_some(()));
    assert_eq!(told(), [true, false]);
    // After kill -9 one of them may come twice, with the same id.
    let far = |is_raised: bool| {
        let raised = format!("\"raised\":{is_raised}");
        ledger.messages().iter().any(|message| {
            let payload = message["payload"].as_str().unwrap_or_default();
            payload.contains("temperature/above") && payload.contains(&raised)
        })
    };
    let both = wait_until(20 * SECOND, || (far(true) && far(false)).then_some(()));
    assert!(both.is_some(), "its beginning: {}, its end: {}", far(true), far(false));
    let absent = log(&gateway, |line| (line["alarm"]["name"] == "attic/absent").then_some(()));
    assert_eq!(absent.len(), 1, "a restart does not raise what is raised");
}

#[test]
fn a_command_with_an_id_is_acknowledged_when_it_is_in_the_log_and_killing_loses_none() {
    let mut gateway = gateway("").start();
    is_ready(&gateway);
    let mut acknowledged = Vec::new();
    for round in 0..5 {
        let mut client = MqttClient::connect(gateway.mqtt(), "visitor").unwrap();
        let mut sent = std::collections::BTreeMap::new();
        for number in 0..20 {
            let (id, value) = (format!("{round}-{number}"), ["on", "off"][number % 2]);
            let order = format!(r#"{{"value": "{value}", "id": "{id}"}}"#);
            sent.insert(client.publish(SET, order.as_bytes(), 1, false).unwrap(), id);
        }
        // Killed with some of them answered, right after an answer.
        for _ in 0..=round * 4 {
            let packet = client.read(20 * SECOND).unwrap();
            let Some(Incoming::Done(id)) = packet else { panic!("no acknowledgement: {packet:?}") };
            acknowledged.push(sent.remove(&id).unwrap());
        }
        gateway.kill();
        gateway.start();
    }
    let known = log(&gateway, |line| line["outcome"]["id"].as_str().map(str::to_owned));
    let lost: Vec<&String> = acknowledged.iter().filter(|id| !known.contains(id)).collect();
    assert!(lost.is_empty(), "{} acknowledged, lost {lost:?}", acknowledged.len());
    // One without a name is acknowledged before it is carried out: it may not come again.
    let mut client = MqttClient::connect(gateway.mqtt(), "visitor").unwrap();
    client.publish_and_wait(SET, b"on", 1).unwrap();
}
