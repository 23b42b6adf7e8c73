//! `tidegate spool …` against a running gateway, and against the files of a stopped one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::time::Duration;

use harness::{Mosquitto, MqttLedger, Tidegate, python, wait_until};
use serde_json::Value;

const SENSOR: &str = r#"
[[device]]
name = "cellar"
type = "bme280"
bus = "sim"
address = 0x76
interval = "10ms"
"#;
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn what_waits_is_shown_given_up_with_a_gap_and_sent_again_when_asked() {
    let mut broker = Mosquitto::durable();
    let ledger = MqttLedger::start(broker.address(), "#", 1);
    let cloud = format!(
        "[[uplink]]\nname = \"cloud\"\ntype = \"mqtt\"\naddress = \"{}\"\nlive_first = false\n",
        broker.address()
    );
    let mut gateway = Tidegate::builder().tables(SENSOR).tables(&cloud).start();
    assert!(ledger.wait_for_ids(100, MINUTE), "nothing arrives");
    broker.stop();
    let waiting = wait_until(MINUTE, || {
        let found = gateway.cli_json(&["spool", "stat"]);
        (found["uplinks"][0]["waiting"].as_u64()? > 500).then_some(found)
    });
    let found = waiting.expect("entries wait while the broker is away");
    println!("{}", text(&gateway.cli(&["spool", "stat"])));
    assert!(found["running"] == true && found["uplinks"][0]["name"] == "cloud", "{found:#}");
    assert!(found["uplinks"][0]["lanes"]["live"]["oldest_age_s"].as_f64().unwrap() > 0.5, "{found:#}");
    assert!(found["capacity_h"].as_f64().unwrap() > 0.0 && found["today_per_s"].as_f64().unwrap() > 1.0);
    assert!(found["durability"].as_str().unwrap().contains("power cut"));

    // Only said, not done.
    let last = found["last_seq"].as_u64().unwrap();
    let before = (last - 100).to_string();
    let asked = gateway.cli(&["spool", "drop", "--uplink", "cloud", "--before-seq", &before]);
    assert_eq!(asked.status.code(), Some(1), "{}", text(&asked));
    assert!(text(&asked).contains("--yes"), "{}", text(&asked));
    assert_eq!(gateway.cli_json(&["spool", "ls"])["gaps"], Value::Array(vec![]));
    let nobody = gateway.cli(&["spool", "drop", "--uplink", "nobody", "--all", "--yes"]);
    assert!(!nobody.status.success() && text(&nobody).contains("cloud"), "{}", text(&nobody));

    let done = gateway.cli_json(&["spool", "drop", "--uplink", "cloud", "--before-seq", &before, "--yes"]);
    let (from, to) = (done["ranges"][0][0].as_u64().unwrap(), done["ranges"][0][1].as_u64().unwrap());
    assert!(done["is_done"] == true && to == last - 101, "{done}");
    println!("{}", text(&gateway.cli(&["spool", "ls"])));
    let listed = gateway.cli_json(&["spool", "ls"]);
    let gap = &listed["gaps"][0];
    assert!(gap["reason"] == "dropped-by-hand" && gap["to_seq"] == to, "{gap}");

    broker.restart();
    let arrived = |ledger: &MqttLedger| -> BTreeSet<u64> {
        let messages = ledger.messages();
        let packs =
            messages.iter().filter_map(|m| serde_json::from_str::<Value>(m["payload"].as_str()?).ok());
        packs.filter_map(|pack| pack[0]["seq"].as_u64()).collect()
    };
    let behind = wait_until(MINUTE, || arrived(&ledger).range(to + 1..).next().copied());
    assert!(behind.is_some(), "what stands behind is sent");
    let lost: Vec<u64> = arrived(&ledger).range(from..=to).copied().collect();
    assert!(lost.is_empty(), "what was given up is not sent");

    // Some of it is wanted after all.
    let (some, end) = ((from + 10).to_string(), (from + 59).to_string());
    let asked = gateway.cli(&["spool", "replay", "--uplink", "cloud", "--from-seq", &some, "--to-seq", &end]);
    assert!(asked.status.success(), "{}", text(&asked));
    let again = wait_until(MINUTE, || {
        let here: Vec<u64> = arrived(&ledger).range(from..=to).copied().collect();
        (here.len() == 50).then_some(here)
    });
    assert_eq!(again, Some((from + 10..from + 60).collect()), "{:?}", gateway.status()["uplinks"]);

    // Running and stopped say the same.
    let running = gateway.cli(&["spool", "verify"]);
    assert!(running.status.success(), "{}", text(&running));
    gateway.stop();
    let verified = gateway.cli(&["spool", "verify"]);
    assert!(verified.status.success(), "{}", text(&verified));
    println!("{}{}", text(&verified), text(&gateway.cli(&["spool", "stat"])));
    let stopped = gateway.cli_json(&["spool", "stat"]);
    assert!(stopped["running"] == false && stopped["uplinks"][0]["name"] == "cloud", "{stopped:#}");
    let exported = gateway.cli(&["spool", "export", "--from-seq", "11", "--to-seq", "20"]);
    assert_eq!(text(&exported).lines().count(), 11, "a head and ten lines:\n{}", text(&exported));
    let refused = gateway.cli(&["spool", "replay", "--uplink", "cloud", "--from-seq", "1"]);
    assert!(!refused.status.success() && text(&refused).contains("no running gateway"), "{}", text(&refused));
}

#[test]
fn a_spool_that_another_program_has_written_to_is_not_sound_and_the_next_start_mends_it() {
    let mut gateway = Tidegate::builder().tables(SENSOR).start();
    wait_until(MINUTE, || (gateway.newest() > 500).then_some(())).expect("readings");
    gateway.stop();
    let taken = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); \
                 db.execute('DELETE FROM r_1 WHERE seq BETWEEN 50 AND 52'); db.commit()";
    let mut command = Command::new(python());
    command.arg("-c").arg(taken).arg(gateway.state_dir().join("spool.db"));
    assert!(command.status().unwrap().success());
    let verified = gateway.cli(&["spool", "verify"]);
    println!("{}", text(&verified));
    assert_eq!(verified.status.code(), Some(1));
    assert!(
        text(&verified).contains("not sound") && text(&verified).contains("is damaged"),
        "{}",
        text(&verified)
    );

    gateway.start();
    let gaps = gateway.cli_json(&["spool", "ls"])["gaps"].clone();
    let is_lost = |seq: u64| {
        gaps.as_array().unwrap().iter().any(|gap| {
            gap["reason"] == "damage"
                && gap["from_seq"].as_u64().is_some_and(|from| from <= seq)
                && gap["to_seq"].as_u64().is_some_and(|to| to >= seq)
        })
    };
    assert!((50..=52).all(is_lost) && !is_lost(400), "{gaps}");
    gateway.stop();
    let verified = gateway.cli(&["spool", "verify"]);
    assert!(verified.status.success(), "{}", text(&verified));
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
