//! The command line. stdout is data, stderr is talk; `--json` wherever something is shown.

mod bench;
mod show;
mod spool;
mod verify;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Value as Json, json};

use crate::config::{Config, Rejected};
use crate::control::Control;
use crate::count;
use crate::logging::no_colour;
use crate::users::acl::{Acl, Right};

/// Edge gateway: reads sensors, serves them over MQTT and CoAP, keeps them safe, forwards them.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do; without it: run
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// Configuration file, or a directory with tidegate.toml and conf.d
    #[arg(long, short, global = true, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Where the spool and the gateway's own files are
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Show data as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the gateway in the foreground
    Run,
    /// Read the configuration and say everything that is wrong with it
    Check,
    /// Show how the running gateway is
    Status,
    /// Look for what is connected: I2C buses, GPIO lines, serial ports, sensors of the kernel
    Scan,
    /// Follow the readings as they come
    Tail {
        /// Only channels that begin with this, as in cellar or cellar/temperature
        #[arg(value_name = "CHANNEL")]
        prefix: Option<String>,
        /// End after so many readings
        #[arg(long, short = 'n', value_name = "N")]
        count: Option<usize>,
    },
    /// Write the stored log to stdout; works on a stopped gateway too
    Export(spool::Selection),
    /// What waits, what stands where, whether it is sound; give up or send again by hand
    #[command(subcommand)]
    Spool(spool::SpoolVerb),
    /// Tell an actuator a value, and wait for how it went
    Set {
        /// As in pump/state
        channel: String,
        /// on, off, or a number
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// Names the command: it is carried out once, however often it is sent
        #[arg(long)]
        id: Option<String>,
        /// Not carried out after this time: RFC 3339 or seconds since 1970
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
    },
    /// Have the running gateway read its configuration again
    Reload,
    /// Compare what a consumer stored with what the gateway signed: complete, missing, doubled, altered
    VerifyLedger {
        /// The public key whose signatures count: 64 hex digits, or a file with them, as ledger.pub is
        #[arg(long, value_name = "HEX|FILE")]
        key: Option<String>,
        /// JSON lines, each a SenML pack, a record, or a body in base64; - is stdin
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// What the rules for MQTT clients say
    #[command(subcommand)]
    Acl(AclVerb),
    /// Make the hash of a password, which is read from stdin: for the file that [users] names
    Passwd,
    /// Measure the spool alone: appends entries as fast as it can
    #[command(hide = true)]
    BenchSpool(bench::Load),
}

/// `tidegate acl`
#[derive(Debug, Subcommand)]
pub enum AclVerb {
    /// Whether a user may publish on a topic or subscribe to a filter, and which rule says so
    Check {
        /// A name from [users], or anonymous
        user: String,
        /// What is to be done
        #[arg(value_enum)]
        what: Doing,
        /// A topic, or a filter
        topic: String,
        /// The client id, for rules with %c
        #[arg(long, default_value = "")]
        client_id: String,
    },
}

/// What a client wants to do.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Doing {
    /// Publish
    Pub,
    /// Subscribe, or be given a message
    Sub,
}

/// Exit code for a configuration that cannot be used (`EX_CONFIG` of sysexits.h).
pub const BAD_CONFIG: u8 = 78;

/// `tidegate check`
pub fn check(cli: &Cli, loaded: Result<Config, Box<Rejected>>) -> ExitCode {
    match loaded {
        Ok(config) => {
            let files: Vec<String> = config.files.iter().map(|file| file.display().to_string()).collect();
            if cli.json {
                print(&format!(
                    "{}\n",
                    json!({ "ok": true, "files": files, "errors": [], "notes": config.notes() })
                ));
            } else {
                let from = if files.is_empty() { "the defaults".to_owned() } else { files.join(", ") };
                let parts = format!(
                    "{}, {}",
                    count(config.devices.len(), "device"),
                    count(config.uplinks.len(), "uplink")
                );
                print(&format!("{from}: good, {parts}\n"));
                for note in config.notes() {
                    eprintln!("note: {note}");
                }
            }
            ExitCode::SUCCESS
        }
        Err(rejected) => {
            if cli.json {
                let errors: Vec<Json> = rejected
                    .diagnostics
                    .iter()
                    .map(|mistake| {
                        let place = mistake.span.as_ref().and_then(|span| rejected.sources.locate(span.start));
                        json!({
                            "message": mistake.message, "help": mistake.help,
                            "file": place.map(|(file, ..)| file.display().to_string()),
                            "line": place.map(|(_, line, _)| line), "column": place.map(|(.., column)| column),
                        })
                    })
                    .collect();
                print(&format!("{}\n", json!({ "ok": false, "errors": errors })));
            } else {
                eprintln!("{}\n", rejected.render(io::stderr().is_terminal() && !no_colour()));
                eprintln!("{}", count(rejected.diagnostics.len(), "mistake"));
            }
            ExitCode::from(BAD_CONFIG)
        }
    }
}

/// `tidegate acl check`: exit 0 allowed, 1 denied.
///
/// # Errors
/// The topic is none.
pub fn acl(cli: &Cli, verb: &AclVerb, config: &Config) -> Result<ExitCode> {
    let AclVerb::Check { user, what, topic, client_id } = verb;
    let user = (user != "anonymous").then_some(user.as_str());
    if let Some(user) = user.filter(|user| !config.users.contains_key(*user)) {
        eprintln!("note: {user} is not in [users]");
    }
    let (right, name) = match what {
        Doing::Pub => (Right::Publish, mqtt::Topic::new(topic)?.as_str().to_owned()),
        Doing::Sub => (Right::Subscribe, mqtt::Filter::new(topic)?.pattern().to_owned()),
    };
    let acl = Acl::new(&config.mqtt.rules).map_err(|error| anyhow!(error))?;
    let decision = acl.decide(right, user, client_id, &name);
    print(&if cli.json {
        format!("{}\n", json!({ "allowed": decision.is_allowed(), "why": decision.to_string() }))
    } else {
        format!("{decision}\n")
    });
    Ok(if decision.is_allowed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `tidegate passwd`
///
/// # Errors
/// There is nothing to read, or no randomness.
pub fn passwd() -> Result<ExitCode> {
    if io::stdin().is_terminal() {
        bail!(
            "the password would be seen: pipe it in, as in `systemd-ask-password | tidegate passwd > FILE`"
        );
    }
    let mut password = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(io::stdin(), 64 * 1024), &mut password)?;
    if password.last() == Some(&b'\n') {
        password.pop();
    }
    if password.is_empty() {
        bail!("no password came on stdin");
    }
    let mut salt = [0; 16];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut salt)
        .map_err(|_| anyhow!("the system has no randomness"))?;
    let hash = crate::users::password::hash(&password, salt).map_err(|error| anyhow!(error))?;
    print(&format!("{hash}\n"));
    Ok(ExitCode::SUCCESS)
}

/// Everything but `run`, `check` and what needs the configuration alone.
///
/// # Errors
/// What went wrong, for a person.
pub async fn perform(cli: &Cli, verb: &Verb) -> Result<ExitCode> {
    match verb {
        Verb::Run | Verb::Check | Verb::Acl(_) | Verb::Passwd => bail!("handled before"),
        Verb::Status => {
            let status = Control::connect(cli.state_dir.as_deref()).await?.get("/api/v1/status").await?;
            print(&if cli.json { format!("{status:#}\n") } else { show::status(&status, with_colour()) });
            let is_well = status["health"]["ok"].as_bool().unwrap_or(false);
            Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Verb::Scan => {
            let found = drivers::scan::everything();
            print(&if cli.json {
                format!("{:#}\n", show::scan_json(&found))
            } else {
                show::scan(&found, with_colour())
            });
            Ok(ExitCode::SUCCESS)
        }
        Verb::Tail { prefix, count } => tail(cli, prefix.as_deref(), *count).await,
        Verb::Export(selection) => spool::export(cli, selection).await,
        Verb::Spool(verb) => spool::perform(cli, verb).await,
        Verb::Set { channel, value, id, expires } => {
            let order = json!({ "channel": channel, "value": value, "id": id, "expires": expires });
            let (is_ok, outcome) =
                Control::connect(cli.state_dir.as_deref()).await?.post("/api/v1/command", &order).await?;
            if cli.json {
                print(&format!("{outcome}\n"));
            } else if is_ok {
                print(&format!("{channel} is {}\n", show::value(&outcome["value"])));
            } else {
                bail!("{}", outcome["error"].as_str().unwrap_or("refused"));
            }
            Ok(if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Verb::Reload => {
            let (is_ok, answer) =
                Control::connect(cli.state_dir.as_deref()).await?.post("/api/v1/reload", &json!({})).await?;
            if cli.json {
                print(&format!("{answer}\n"));
            } else if is_ok {
                print(&format!("read again: {}\n", answer["changed"].as_str().unwrap_or_default()));
            } else {
                eprintln!(
                    "{}\n\nthe old configuration stays in force",
                    answer["error"].as_str().unwrap_or_default()
                );
            }
            Ok(if is_ok { ExitCode::SUCCESS } else { ExitCode::from(BAD_CONFIG) })
        }
        Verb::VerifyLedger { key, files } => {
            let (text, code) = verify::run(key.as_deref(), files, cli.json, with_colour())?;
            print(&text);
            Ok(code)
        }
        Verb::BenchSpool(load) => {
            bench::spool(cli.state_dir.as_deref(), load, |text| {
                print(text);
            })
            .await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn tail(cli: &Cli, prefix: Option<&str>, most: Option<usize>) -> Result<ExitCode> {
    let mut control = Control::connect(cli.state_dir.as_deref()).await?;
    let mut left = most.unwrap_or(usize::MAX);
    let mut rest = Vec::new();
    let take = |piece: &[u8]| {
        rest.extend_from_slice(piece);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let reading: Json = serde_json::from_slice(&line)?;
            if !prefix.is_none_or(|prefix| reading["id"].as_str().is_none_or(|id| id.starts_with(prefix))) {
                continue;
            }
            let text = if cli.json {
                String::from_utf8_lossy(&line).into_owned()
            } else {
                show::reading(&reading, with_colour())
            };
            if !print(&text) {
                return Ok(false);
            }
            left = left.saturating_sub(1);
            if left == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    };
    control.stream("/api/v1/tail", take).await?;
    Ok(ExitCode::SUCCESS)
}

/// Writes to stdout; `false` when nobody reads any more (`tidegate tail | head`).
fn print(text: &str) -> bool {
    io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).is_ok()
}

fn with_colour() -> bool {
    io::stdout().is_terminal() && !no_colour()
}

/// Seconds since 1970, or RFC 3339.
fn parse_time(text: &str) -> Result<f64, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Ok(seconds);
    }
    let time: jiff::Timestamp =
        text.parse().map_err(|_| "expected 2026-11-21T09:00:00Z or seconds since 1970")?;
    Ok(time.as_millisecond() as f64 / 1e3)
}

const AFTER_HELP: &str = "\
Without a configuration everything listens on loopback only, and the page is at http://127.0.0.1:8080/

Examples:
  tidegate                          run with this machine's own sensors
  tidegate check -c barn.toml       say all that is wrong with a configuration
  tidegate tail cellar              follow the readings of one device
  tidegate set pump/state on        switch an actuator
  tidegate spool stat               say what waits for whom, and how long it lasts
  tidegate export --channel cellar/temperature --from 2026-11-20T00:00:00Z > cellar.csv

Exit codes: 0 done, 1 failed or not well, 3 complete but for recorded losses (verify-ledger), 78 the configuration cannot be used";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_read_both_ways() {
        assert_eq!(parse_time("12.5"), Ok(12.5));
        assert_eq!(parse_time("1970-01-01T00:01:00Z"), Ok(60.0));
        assert!(parse_time("yesterday").is_err());
    }
}
