//! Tidegate: reads sensors, serves them over MQTT and CoAP, keeps them safe, forwards them.

mod alarm;
mod app;
mod banner;
mod cli;
mod clock;
mod command;
mod config;
mod control;
mod export;
#[cfg(test)]
mod fuzz;
mod gateway;
mod health;
mod home_assistant;
mod intake;
mod ledger;
mod listener;
mod live;
mod logging;
mod notify;
mod paths;
mod payload;
mod reading;
mod sampler;
mod spool;
mod stock;
mod supervise;
mod tls;
mod uplink;
mod users;

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Verb};
use config::{Config, Rejected};

fn main() -> ExitCode {
    let cli = Cli::parse();
    keep_to_ourselves();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match &cli.verb {
        None | Some(Verb::Run) => {
            logging::start();
            match load_config(cli.config.as_deref()) {
                Ok(config) => {
                    let start = app::Start {
                        config: cli.config.clone(),
                        state: cli.state_dir.clone(),
                        is_watched: !logging::is_to_journal(),
                    };
                    match runtime.block_on(app::run(start, config)) {
                        Ok(()) => ExitCode::SUCCESS,
                        Err(error) => fail(&error),
                    }
                }
                Err(rejected) => reject(&rejected),
            }
        }
        Some(Verb::Check) => cli::check(&cli, load_config(cli.config.as_deref())),
        Some(Verb::Acl(verb)) => match load_config(cli.config.as_deref()) {
            Ok(config) => cli::acl(&cli, verb, &config).unwrap_or_else(|error| fail(&error)),
            Err(rejected) => reject(&rejected),
        },
        Some(Verb::Passwd) => cli::passwd().unwrap_or_else(|error| fail(&error)),
        Some(verb) => match runtime.block_on(cli::perform(&cli, verb)) {
            Ok(code) => code,
            Err(error) => fail(&error),
        },
    }
}

/// Reads the configuration; one that names no files gets the demo's devices.
fn load_config(chosen: Option<&Path>) -> Result<Config, Box<Rejected>> {
    let mut config = Config::load(chosen)?;
    if config.files.is_empty() {
        config.add_demo_devices();
    }
    Ok(config)
}

fn reject(rejected: &Rejected) -> ExitCode {
    let with_colour = std::io::stderr().is_terminal() && !logging::no_colour();
    eprintln!("{}\n", rejected.render(with_colour));
    eprintln!("{} in the configuration; nothing was started", count(rejected.diagnostics.len(), "mistake"));
    ExitCode::from(cli::BAD_CONFIG)
}

fn fail(error: &anyhow::Error) -> ExitCode {
    log::error!("{error:#}");
    eprintln!("tidegate: {error:#}");
    ExitCode::FAILURE
}

fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// What we write is for us alone unless we say otherwise.
#[expect(unsafe_code, reason = "umask(2) has no wrapper in std")]
fn keep_to_ourselves() {
    // SAFETY: changes one number of this process, before any thread is started.
    unsafe { libc::umask(0o077) };
}
