//! Where things stand and what they are called.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use toml::{Table, Value};

use crate::tree::{has_word, nothing_found, sources};

#[test]
fn the_visible_top_level_is_the_house() {
    let entries = fs::read_dir(harness::workspace()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let stray: Vec<String> = names
        .filter(|name| !name.starts_with('.') && name != "target" && !TOP_LEVEL.contains(&name.as_str()))
        .collect();
    nothing_found("these stand on the top level and belong into a room", &stray);
}

#[test]
fn no_room_is_called_by_what_it_is_made_of() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.is_rust()) {
        let parts = source.path.trim_end_matches(".rs").split('/');
        findings
            .extend(parts.filter(|part| VAGUE.contains(part)).map(|part| format!("{}: {part}", source.path)));
    }
    for (path, manifest) in manifests() {
        let name =
            manifest.get("package").and_then(|package| package["name"].as_str()).unwrap_or("").to_owned();
        findings.extend(
            VAGUE
                .iter()
                .filter(|word| name.split('-').any(|part| part == **word))
                .map(|_| format!("{path}: {name}")),
        );
    }
    nothing_found("a name that says nothing", &findings);
}

#[test]
fn third_party_names_stay_in_their_corner() {
    let mut findings = Vec::new();
    for source in
        sources().iter().filter(|source| source.is_rust() && !source.path.starts_with("tests/tidy/"))
    {
        for (name, corners) in CORNERS {
            if corners.iter().any(|corner| source.path.starts_with(corner)) {
                continue;
            }
            findings.extend(source.code().filter(|(_, line)| has_word(line, name)).map(|(number, _)| {
                format!("{}:{number}: {name} belongs into {}", source.path, corners.join(" or "))
            }));
        }
    }
    nothing_found("a library is named outside its corner", &findings);
}

#[test]
fn protocols_and_drivers_depend_neither_on_each_other_nor_on_a_runtime() {
    let ours = ["coap", "drivers", "mqtt", "senml", "tidegate"];
    let mut findings = Vec::new();
    for (path, manifest) in manifests() {
        if !path.starts_with("protocols/") && path != "drivers/Cargo.toml" {
            continue;
        }
        for name in dependencies(&manifest, &["dependencies", "dev-dependencies", "build-dependencies"]) {
            let bare = name.strip_prefix("tidegate-").unwrap_or(&name);
            if ours.contains(&bare)
                || ["tokio", "tokio-util", "async-std", "smol", "futures-util"].contains(&bare)
            {
                findings.push(format!("{path}: {name}"));
            }
        }
    }
    nothing_found("an arrow points outwards", &findings);
}

#[test]
fn every_member_takes_the_workspace_lints_and_its_versions() {
    let mut findings = Vec::new();
    for (path, manifest) in manifests().into_iter().filter(|(path, _)| path != "Cargo.toml") {
        let inherits = |table: Option<&Value>| {
            table.and_then(|t| t.get("workspace")).and_then(Value::as_bool) == Some(true)
        };
        if !inherits(manifest.get("lints")) {
            findings.push(format!("{path}: no `[lints] workspace = true`"));
        }
        for key in ["edition", "rust-version", "license", "version"] {
            if !inherits(manifest["package"].get(key)) {
                findings.push(format!("{path}: {key} is not the workspace's"));
            }
        }
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(Value::Table(entries)) = manifest.get(table) else { continue };
            let strays = entries.iter().filter(|(_, value)| !inherits(Some(value)));
            findings.extend(strays.map(|(name, _)| format!("{path}: {name} has a version of its own")));
        }
    }
    nothing_found("versions and lints are decided once, in the root manifest", &findings);
}

#[test]
fn nothing_is_ignored_left_open_or_tied_to_one_machine() {
    // Put together so that this file does not find itself.
    let code = [["#[ig", "nore"], ["to", "do!("], ["unimple", "mented!("]].map(|parts| parts.concat());
    let hosts = [
        ["npm", "js.org"],
        ["npm", "js.com"],
        ["pypi", ".org"],
        ["pythonhosted", ".org"],
        ["deb.deb", "ian.org"],
    ];
    let hosts = hosts.map(|parts| parts.concat());
    let index =
        [["index.crates", ".io"], ["static.crates", ".io"], ["//crates", ".io"]].map(|parts| parts.concat());
    let places = [["/wo", "rk/"], ["/tmp/tar", "get-"]].map(|parts| parts.concat());
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| !source.path.ends_with("Cargo.lock")) {
        for (number, line) in source.text.lines().enumerate() {
            let is_code = source.is_rust() && !line.trim_start().starts_with("//");
            let open = code.iter().filter(|_| is_code);
            let place =
                places.iter().filter(|place| line.split_whitespace().any(|word| begins_inside(word, place)));
            let found =
                open.chain(&hosts).chain(&index).filter(|text| line.contains(text.as_str())).chain(place);
            findings.extend(found.map(|text| format!("{}:{}: {text}", source.path, number + 1)));
        }
    }
    nothing_found("not in a finished tree", &findings);
}

#[test]
fn a_file_has_one_subject() {
    let counted = ["rs", "js", "mjs", "py", "sh", "css"];
    let long = |limit: usize| {
        let files = sources()
            .iter()
            .filter(|source| counted.contains(&source.extension()) || source.path == "tests/run");
        let lengths = files.map(|source| (source.text.lines().count(), &source.path));
        lengths
            .filter(|(lines, _)| *lines > limit)
            .map(|(lines, path)| format!("{lines} {path}"))
            .collect::<Vec<_>>()
    };
    for file in long(LONG) {
        println!("look for a second subject: {file}");
    }
    nothing_found("too long to be read at once", &long(TOO_LONG));
}

#[test]
fn vendored_files_are_the_ones_that_were_published() {
    let dashboard = harness::workspace().join("gateway/dashboard");
    let lock: Table = fs::read_to_string(dashboard.join("vendor.lock")).unwrap().parse().unwrap();
    let mut recorded = BTreeSet::new();
    let mut findings = Vec::new();
    for library in lock["library"].as_array().unwrap() {
        for file in library["file"].as_array().unwrap() {
            let (path, wanted) = (file["path"].as_str().unwrap(), file["sha256"].as_str().unwrap());
            let output = Command::new(harness::tool("sha256sum")).arg(dashboard.join(path)).output().unwrap();
            let actual = String::from_utf8(output.stdout).unwrap();
            if actual.split(' ').next() != Some(wanted) {
                findings.push(format!("{path} is not what vendor.lock recorded"));
            }
            recorded.insert(path.to_owned());
        }
    }
    for library in fs::read_dir(dashboard.join("vendor")).unwrap() {
        for file in fs::read_dir(library.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let path = path.strip_prefix(&dashboard).unwrap().to_str().unwrap().to_owned();
            if !recorded.contains(&path) {
                findings.push(format!("{path} is not in vendor.lock"));
            }
        }
    }
    nothing_found("gateway/dashboard/vendor", &findings);
}

/// Whether `word` holds `place` at its beginning or behind a quote or bracket, not inside a longer path.
fn begins_inside(word: &str, place: &str) -> bool {
    word.find(place)
        .is_some_and(|at| !word[..at].ends_with(|c: char| c.is_alphanumeric() || c == '.' || c == '/'))
}

/// Those of the house; `tests/rumqtt` is a workspace of its own.
fn manifests() -> Vec<(String, Table)> {
    let ours = |path: &str| path.ends_with("Cargo.toml") && !path.starts_with("tests/rumqtt/");
    let files = sources().iter().filter(|source| ours(&source.path));
    files.map(|source| (source.path.clone(), source.text.parse().unwrap())).collect()
}

fn dependencies(manifest: &Table, tables: &[&str]) -> Vec<String> {
    let names = tables.iter().filter_map(|table| manifest.get(*table)?.as_table());
    names.flat_map(|table| table.keys().cloned()).collect()
}

const TOP_LEVEL: [&str; 12] = [
    "Cargo.toml",
    "Cargo.lock",
    "Cross.toml",
    "README.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "gateway",
    "drivers",
    "protocols",
    "image",
    "systemd",
    "tests",
];

const VAGUE: [&str; 9] =
    ["common", "core", "util", "utils", "helper", "helpers", "types", "manager", "service"];

const CORNERS: [(&str, &[&str]); 14] = [
    ("annotate_snippets", &["gateway/src/config"]),
    ("coap_lite", &["protocols/coap/"]),
    ("dimpl", &["gateway/src/listener/coap"]),
    ("fe2o3_amqp", &["gateway/src/uplink/amqp10"]),
    ("gpiocdev", &["drivers/src/bus", "drivers/src/scan/gpio_chips.rs"]),
    ("lapin", &["gateway/src/uplink/amqp091", "gateway/src/logging.rs"]),
    ("mqtt_protocol_core", &["protocols/mqtt/"]),
    ("rppal", &["drivers/src/bus"]),
    ("rumqttc", &["tests/"]),
    ("rumqttd", &["tests/"]),
    ("rusqlite", &["gateway/src/spool/", "tests/bench/"]),
    ("systemd_journal_logger", &["gateway/src/logging.rs"]),
    ("tokio_serial", &["drivers/src/bus", "gateway/src/sampler/tests.rs"]),
    ("tokio_xmpp", &["gateway/src/uplink/xmpp"]),
];

const LONG: usize = 700;
const TOO_LONG: usize = 900;
