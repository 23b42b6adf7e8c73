//! The configuration: what may be set, what it is when nothing is set, and everything that is wrong with it at once.
//!
//! `tidegate.toml`, then `conf.d/*.toml` in the order of their names: arrays of tables (`[[device]]`, `[[uplink]]`)
//! add up, of other keys the last file wins.

pub mod document;
mod items;
mod limits;
pub mod quantity;
mod sections;
mod tls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drivers::Period;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use self::document::{Diagnostic, Sources, read, settings};
pub use self::limits::MqttLimits;
use self::quantity::{DailySize, LedgerInterval, SecretSource, Size};
use self::sections::Section;
pub use self::tls::MqttTls;
use crate::reading::is_name;
use crate::sampler::DeviceConfig;
use crate::spool::WhenFull;
use crate::uplink::UplinkConfig;
use crate::users::acl::Rule;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[gateway]`
    pub gateway: Gateway,
    /// `[mqtt]`
    pub mqtt: Mqtt,
    /// `[coap]`
    pub coap: Coap,
    /// `[http]`
    pub http: Http,
    /// `[home_assistant]`
    pub home_assistant: HomeAssistant,
    /// `[spool]`
    pub spool: Spool,
    /// `[ledger]`
    pub ledger: Ledger,
    /// `[users]`: who may use MQTT and the page, by name, with the place of the password.
    pub users: BTreeMap<String, SecretSource>,
    /// `[[device]]`
    pub devices: Vec<DeviceConfig>,
    /// `[[uplink]]`
    pub uplinks: Vec<UplinkConfig>,
    /// The files that were read; none means that the defaults are used.
    pub files: Vec<PathBuf>,
}

/// `[gateway]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// The gateway's name in topics and ids; the host's name unless set.
    pub name: String,
}

/// `[mqtt]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mqtt {
    /// Where MQTT 3.1.1 and 5.0 clients connect; port 0 takes any free one.
    pub listen: Vec<SocketAddr>,
    /// Topics of LAN clients that go to the uplinks: stored before they are acknowledged.
    pub forward: Vec<String>,
    /// Connections at a time.
    pub max_connections: usize,
    /// `[mqtt.limits]`
    pub limits: MqttLimits,
    /// `[mqtt.tls]`
    pub tls: Option<MqttTls>,
    /// `[[mqtt.rule]]`: who may publish and subscribe what; without one, everybody everything.
    #[serde(rename = "rule")]
    pub rules: Vec<Rule>,
}

/// `[coap]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Coap {
    /// Where CoAP clients send to, UDP.
    pub listen: Vec<SocketAddr>,
    /// Lets everyone who reaches an address beyond loopback read (never command) over plain CoAP.
    pub public: bool,
}

/// `[http]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Where the page, the API and MQTT over WebSocket are.
    pub listen: Vec<SocketAddr>,
    /// Names under which browsers may ask for the page, beside addresses and `localhost`.
    pub names: Vec<String>,
}

/// `[home_assistant]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HomeAssistant {
    /// Announces devices so that Home Assistant finds them by itself.
    pub discovery: bool,
    /// The topic under which Home Assistant listens.
    pub prefix: String,
}

/// `[spool]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// The most that the database may take on disk.
    pub max_size: Size,
    /// The longest that a reading may wait for its commit: what a power cut may cost. Alarms and whoever waits for an
    /// acknowledgement never wait.
    pub rpo: Period,
    /// What may be written to the disk in a day, `"300MB/day"`; 1 GB unless set. Commits become rarer, within `rpo`, to
    /// keep to it.
    pub wear_budget: Option<DailySize>,
    /// What is done when `max_size` is reached while an uplink is away: `thin-out`, `drop-oldest` or `refuse`.
    pub when_full: WhenFull,
    /// How long what every uplink has is kept for history.
    pub retain: Period,
}

/// `[ledger]`
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ledger {
    /// How often the gateway signs what it gave out, so that whoever stores it can verify that: `"15m"`, or `"off"`.
    pub interval: LedgerInterval,
}

impl Default for Gateway {
    fn default() -> Self {
        Self { name: host_name() }
    }
}

impl Default for Mqtt {
    fn default() -> Self {
        Self {
            listen: vec![loopback(1883)],
            forward: Vec::new(),
            max_connections: 1024,
            limits: MqttLimits::default(),
            tls: None,
            rules: Vec::new(),
        }
    }
}

impl Default for Coap {
    fn default() -> Self {
        Self { listen: vec![loopback(5683)], public: false }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: vec![loopback(8080)], names: Vec::new() }
    }
}

impl Default for HomeAssistant {
    fn default() -> Self {
        Self { discovery: true, prefix: "homeassistant".into() }
    }
}

impl Default for Spool {
    fn default() -> Self {
        Self {
            max_size: Size(512_000_000),
            rpo: Period(Duration::from_secs(1)),
            wear_budget: None,
            when_full: WhenFull::default(),
            retain: Period(Duration::from_secs(30 * 24 * 3600)),
        }
    }
}

/// A configuration that cannot be used: every mistake, drawn for a person and as data.
#[derive(Debug)]
pub struct Rejected {
    /// The texts that the mistakes point into.
    pub sources: Sources,
    /// At least one.
    pub diagnostics: Vec<Diagnostic>,
}

impl Config {
    /// Reads the configuration.
    ///
    /// `chosen` is a file or directory that the user named: it must exist. Otherwise `$CONFIGURATION_DIRECTORY`, else
    /// the XDG configuration directory is looked at, and nothing there means the defaults.
    ///
    /// # Errors
    /// [`Rejected`] with every mistake found.
    pub fn load(chosen: Option<&Path>) -> Result<Self, Box<Rejected>> {
        let mut sources = Sources::default();
        let mut diagnostics = Vec::new();
        for path in files(chosen, &mut diagnostics) {
            match read_text(&path) {
                Ok(text) => sources.add(&path, &text),
                Err(error) => diagnostics.push(Diagnostic::general(format!("{}: {error}", path.display()))),
            }
        }
        Self::from_sources(sources, diagnostics)
    }

    /// Reads the configuration from one text.
    ///
    /// # Errors
    /// [`Rejected`] with every mistake found.
    pub fn parse(text: &str) -> Result<Self, Box<Rejected>> {
        let mut sources = Sources::default();
        sources.add(Path::new("tidegate.toml"), text);
        Self::from_sources(sources, Vec::new())
    }

    fn from_sources(sources: Sources, mut diagnostics: Vec<Diagnostic>) -> Result<Self, Box<Rejected>> {
        let config = {
            let mut root = sources.parse(&mut diagnostics);
            let config = assemble(root.get_mut(), &mut diagnostics);
            Self { files: sources.paths(), ..config }
        };
        diagnostics.sort_by_key(|diagnostic| diagnostic.span.as_ref().map_or(0, |span| span.start));
        if diagnostics.is_empty() { Ok(config) } else { Err(Box::new(Rejected { sources, diagnostics })) }
    }

    /// What is not there at the moment and may come: no mistake, but worth saying.
    pub fn notes(&self) -> Vec<String> {
        let absent = self.devices.iter().filter_map(|device| Some((device, device.setup.missing()?)));
        absent.map(|(device, path)| format!("{}: {path} is not plugged in", device.name)).collect()
    }

    /// The devices of a gateway that nobody has configured: this machine, and, where it has no wires, simulated ones.
    pub fn add_demo_devices(&mut self) {
        let text = if has_wires() { DEMO_HOST.to_owned() } else { format!("{DEMO_HOST}{DEMO_SIM}") };
        if let Ok(demo) = Self::parse(&text) {
            self.devices = demo.devices;
        }
    }
}

impl Rejected {
    /// All mistakes as text.
    pub fn render(&self, with_colour: bool) -> String {
        let drawn: Vec<String> =
            self.diagnostics.iter().map(|diagnostic| self.sources.render(diagnostic, with_colour)).collect();
        drawn.join("\n\n")
    }
}

/// Which files make up the configuration.
fn files(chosen: Option<&Path>, diagnostics: &mut Vec<Diagnostic>) -> Vec<PathBuf> {
    let directory = match chosen {
        Some(path) if path.is_dir() => path.to_owned(),
        Some(path) => return vec![path.to_owned()],
        None => match default_directory() {
            Some(directory) => directory,
            None => return Vec::new(),
        },
    };
    let main = directory.join("tidegate.toml");
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory.join("conf.d"))
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    if main.exists() || (chosen.is_some() && files.is_empty()) {
        files.insert(0, main);
    }
    if files.len() > MAX_FILES {
        diagnostics
            .push(Diagnostic::general(format!("{}: more than {MAX_FILES} files", directory.display())));
        files.truncate(MAX_FILES);
    }
    files
}

/// `$CONFIGURATION_DIRECTORY` as systemd sets it, else `tidegate` in the XDG configuration directory.
fn default_directory() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("CONFIGURATION_DIRECTORY")
        .or_else(|| set("XDG_CONFIG_HOME").map(|home| home.join("tidegate")))
        .or_else(|| set("HOME").map(|home| home.join(".config/tidegate")))
}

fn read_text(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > MAX_FILE {
        return Err(format!("larger than {MAX_FILE} bytes"));
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    String::from_utf8(bytes)
        .map_err(|error| format!("not UTF-8 from byte {} on", error.utf8_error().valid_up_to()))
}

fn assemble(root: &mut DeTable<'_>, diagnostics: &mut Vec<Diagnostic>) -> Config {
    let listen = |root: &DeTable<'_>, name: &str| root.get(name).map(listen_span).unwrap_or_default();
    let (mqtt_listen, http_listen) = (listen(root, "mqtt"), listen(root, "http"));
    let tls = root.get("mqtt").and_then(|mqtt| mqtt.get_ref().as_table()?.get("tls"));
    let tls_listen =
        ["listen", "websocket_listen"].map(|key| tls.map(|tls| key_span(tls, key)).unwrap_or_default());
    let wear_budget = root.get("spool").map(|table| key_span(table, "wear_budget")).unwrap_or_default();
    let config = Config {
        gateway: section(root, "gateway", diagnostics),
        mqtt: section(root, "mqtt", diagnostics),
        coap: section(root, "coap", diagnostics),
        http: section(root, "http", diagnostics),
        home_assistant: section(root, "home_assistant", diagnostics),
        spool: section(root, "spool", diagnostics),
        ledger: section(root, "ledger", diagnostics),
        users: section(root, "users", diagnostics),
        devices: items::devices(root, diagnostics),
        uplinks: items::uplinks(root, diagnostics),
        files: Vec::new(),
    };
    if config.users.is_empty() {
        for (addresses, span) in [(&config.mqtt.listen, mqtt_listen), (&config.http.listen, http_listen)] {
            if let Some(address) = addresses.iter().find(|address| !is_loopback(address)) {
                let message =
                    format!("{address} is reachable from the network, and nobody would need a password");
                diagnostics.push(Diagnostic::at(span, message).help(
                    "to let only known users in, add the two lines\n[users]\npanel = { file = \"/etc/tidegate/panel.password\" }",
                ));
            }
        }
    }
    if let Some(tls) = config.mqtt.tls.as_ref().filter(|_| config.users.is_empty()) {
        tls.check_door(&tls_listen, diagnostics);
    }
    check_wear(&config, wear_budget, diagnostics);
    for key in root.keys() {
        let known = "gateway, mqtt, coap, http, home_assistant, spool, ledger, users, device, uplink";
        diagnostics.push(Diagnostic::at(
            key.span(),
            format!("unknown section `{key}`, expected one of {known}", key = key.get_ref()),
        ));
    }
    config
}

/// Whether what the devices give can be committed as often as `rpo` asks within the budget that was set. One that was
/// not set is only aimed at.
fn check_wear(config: &Config, place: Range<usize>, diagnostics: &mut Vec<Diagnostic>) {
    let Some(budget) = config.spool.wear_budget else { return };
    let sources: Vec<(Duration, usize)> =
        config.devices.iter().map(|device| (device.interval, device.setup.channels().len().max(1))).collect();
    let rpo = config.spool.rpo.0;
    let needed = crate::spool::daily_bytes(rpo, &sources);
    if needed <= budget.0 {
        return;
    }
    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
    let message = format!(
        "the devices give so much that commits at most {} s apart write about {} MB a day, {} MB are allowed",
        rpo.as_secs_f64(),
        megabytes(needed),
        megabytes(budget.0)
    );
    let longer = [2, 5, 10, 20, 30, 60].into_iter().map(Duration::from_secs);
    let fits = longer.into_iter().find(|longer| crate::spool::daily_bytes(*longer, &sources) <= budget.0);
    let help = match fits {
        Some(rpo) => format!(
            "let a power cut cost more, rpo = \"{}s\", or allow more, wear_budget = \"{}MB/day\"",
            rpo.as_secs(),
            megabytes(needed)
        ),
        None => format!(
            "allow more, wear_budget = \"{}MB/day\", or ask the devices less often",
            megabytes(needed)
        ),
    };
    diagnostics.push(Diagnostic::at(place, message).help(help));
}

/// Where a table's `listen` stands, for a mistake that other tables have a part in.
fn listen_span(table: &Spanned<DeValue<'_>>) -> Range<usize> {
    key_span(table, "listen")
}

/// Where a key of a table stands, else the table.
fn key_span(table: &Spanned<DeValue<'_>>, key: &str) -> Range<usize> {
    table.get_ref().as_table().and_then(|table| table.get(key)).map_or_else(|| table.span(), Spanned::span)
}

/// Reads one table, checks it, and takes it out of the root.
fn section<T: Section>(root: &mut DeTable<'_>, name: &str, diagnostics: &mut Vec<Diagnostic>) -> T {
    let Some(value) = root.remove(name) else { return T::default() };
    let span = value.span();
    let DeValue::Table(table) = value.into_inner() else {
        diagnostics.push(Diagnostic::at(span, format!("`{name}` is a table: write [{name}]")));
        return T::default();
    };
    let mut places = BTreeMap::new();
    note_places(&table, "", &mut places);
    let place = |key: &str| places.get(key).cloned().unwrap_or_else(|| span.clone());
    let parsed: Option<T> = read(Spanned::new(span.clone(), table), diagnostics, settings);
    if let Some(section) = &parsed {
        section.check(&place, diagnostics);
    }
    parsed.unwrap_or_default()
}

/// Where each key of a table stands, by its name; those of tables in it by `table.key`.
fn note_places(table: &DeTable<'_>, prefix: &str, places: &mut BTreeMap<String, Range<usize>>) {
    for (key, value) in table {
        let name = format!("{prefix}{}", key.get_ref());
        if let DeValue::Table(inner) = value.get_ref() {
            note_places(inner, &format!("{name}."), places);
        }
        places.insert(name, value.span());
    }
}

fn bad_name(name: &str) -> String {
    format!(
        "`{}` is not a name: 1 to 64 of a-z 0-9 _ -, beginning with a letter or digit",
        name.escape_debug()
    )
}

fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The host's name as far as it makes a name, else `tidegate`.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().split('.').next().unwrap_or_default().to_lowercase();
    if is_name(&name) { name } else { "tidegate".into() }
}

/// Whether the machine has an I2C bus or GPIO lines to use.
fn has_wires() -> bool {
    let begins = |name: &std::ffi::OsStr| {
        let name = name.to_string_lossy();
        name.starts_with("i2c-") || name.starts_with("gpiochip")
    };
    std::fs::read_dir("/dev")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .any(|entry| begins(&entry.file_name()))
}

const DEMO_HOST: &str = r#"
[[device]]
name = "host"
type = "host"
title = "This machine"
interval = "2s"
"#;

const DEMO_SIM: &str = r#"
[[device]]
name = "cellar"
type = "bme280"
title = "Cellar climate"
bus = "sim"
address = 0x76
interval = "2s"

[[device]]
name = "door"
type = "gpio-input"
title = "Cellar door"
chip = "sim"
line = "GPIO17"

[[device]]
name = "meter"
type = "pulse-counter"
title = "Power meter"
chip = "sim"
line = "GPIO22"

[[device]]
name = "pump"
type = "gpio-output"
title = "Sump pump"
chip = "sim"
line = "GPIO27"
"#;

const MAX_FILES: usize = 256;
const MAX_FILE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<String> {
        let rejected = Config::parse(text).expect_err("it is wrong");
        rejected
            .diagnostics
            .iter()
            .map(|mistake| {
                let line = mistake
                    .span
                    .as_ref()
                    .and_then(|span| rejected.sources.locate(span.start))
                    .map_or(0, |at| at.1);
                format!("{line}: {}", mistake.message)
            })
            .collect()
    }

    #[test]
    fn nothing_set_is_loopback_only_and_the_demo_reads_this_machine() {
        let mut config = Config::parse("").unwrap();
        assert!(
            config.mqtt.listen.iter().chain(&config.coap.listen).chain(&config.http.listen).all(is_loopback)
        );
        config.add_demo_devices();
        assert_eq!(config.devices[0].name, "host");
        assert!(config.home_assistant.discovery && config.uplinks.is_empty());
        assert_eq!(Config::parse(&format!("{DEMO_HOST}{DEMO_SIM}")).unwrap().devices.len(), 5);
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_its_line() {
        let text = "[gateway]\nname = \"Barn 1\"\nnmae = 1\n[mqtt]\nforward = [\"a/#/b\"]\n[spool]\nmax_size = 5\n\
                    [[device]]\nname = \"a\"\ntype = \"bme280\"\nbus = \"sim\"\naddress = 0x76\ncolour = \"red\"\n\
                    [[device]]\nname = \"b\"\ntype = \"bme280\"\nbus = \"sim\"\naddress = 0x76\n\
                    [[device]]\nname = \"b\"\ntype = \"bme208\"\n\
                    [[uplink]]\nname = \"u\"\ntype = \"mqtt\"\naddress = \"nowhere\"\nwindow = 0\n[misc]\n";
        let found = mistakes(text);
        for expected in [
            "2: `Barn 1` is not a name",
            "3: unknown field `nmae`",
            "5: `a/#/b` is not a topic filter",
            "7: invalid type: integer `5`",
            "13: unknown field `colour`",
            "14: sim address 0x76 is used by two devices",
            "20: two devices are named `b`",
            "21: no device type `bme208`",
            "22: u: `nowhere` is not host:port",
            "22: u: window out of range: 0",
            "27: unknown section `misc`",
        ] {
            assert!(
                found.iter().any(|mistake| mistake.starts_with(expected)),
                "{expected} not in {found:#?}"
            );
        }
        assert_eq!(found.len(), 11, "{found:#?}");
    }

    #[test]
    fn an_open_door_is_refused_with_the_two_lines_that_close_it() {
        let rejected =
            Config::parse("[mqtt]\nlisten = [\"0.0.0.0:1883\"]\n[coap]\nlisten = [\"[::]:5683\"]\n")
                .unwrap_err();
        let help: Vec<&str> =
            rejected.diagnostics.iter().filter_map(|mistake| mistake.help.as_deref()).collect();
        assert!(
            help[0].contains("[users]\npanel = { file") && help[1].contains("[coap]\npublic = true"),
            "{help:?}"
        );
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "secret\n").unwrap();
        let mended = format!(
            "[mqtt]\nlisten = [\"0.0.0.0:1883\"]\n[coap]\nlisten = [\"[::]:5683\"]\npublic = true\n[users]\npanel = {{ file = {:?} }}\n",
            secret.path()
        );
        assert!(Config::parse(&mended).is_ok());
    }

    #[test]
    fn a_budget_that_the_devices_cannot_keep_is_refused_with_one_that_they_can() {
        let device =
            "[[device]]\nname = \"a\"\ntype = \"bme280\"\nbus = \"sim\"\naddress = 0x76\ninterval = \"1s\"\n";
        let rejected =
            Config::parse(&format!("[spool]\nrpo = \"1s\"\nwear_budget = \"300MB/day\"\n{device}"))
                .unwrap_err();
        let mistake = &rejected.diagnostics[0];
        assert_eq!(rejected.sources.locate(mistake.span.as_ref().unwrap().start).unwrap().1, 3);
        assert!(mistake.message.contains("300 MB are allowed"), "{}", mistake.message);
        assert!(mistake.help.as_ref().unwrap().contains("rpo = \"5s\""), "{:?}", mistake.help);
        assert!(
            Config::parse(&format!("[spool]\nrpo = \"5s\"\nwear_budget = \"300MB/day\"\n{device}")).is_ok()
        );
        // Nobody set a budget: it is aimed at, and the devices are served all the same.
        assert!(Config::parse(&device.replace("1s", "50ms")).is_ok());
    }

    #[test]
    fn later_files_add_devices_and_override_settings() {
        let directory = tempfile::TempDir::new().unwrap();
        std::fs::create_dir(directory.path().join("conf.d")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let device = |name: &str, address: &str| {
            format!("[[device]]\nname = \"{name}\"\ntype = \"bme280\"\nbus = \"sim\"\naddress = {address}\n")
        };
        write("tidegate.toml", &("[gateway]\nname = \"one\"\n".to_owned() + &device("a", "0x76")));
        write("conf.d/20.toml", &device("b", "0x77"));
        write("conf.d/10.toml", "[gateway]\nname = \"two\"\n");
        write("conf.d/ignored.txt", "rubbish");
        let config = Config::load(Some(directory.path())).unwrap();
        assert_eq!(config.gateway.name, "two");
        assert_eq!(config.devices.iter().map(|device| &*device.name).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(config.files.len(), 3);
    }
}
