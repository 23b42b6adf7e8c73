//! What a person who starts the gateway by hand sees first: what is read, what is served and where, what to try.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use crate::gateway::Gateway;
use crate::logging::no_colour;

/// Prints it to stdout.
pub fn print(gateway: &Gateway, state: &Path) {
    let with_colour = std::io::stdout().is_terminal() && !no_colour();
    // A closed stdout is no reason not to run.
    let _ = std::io::stdout().write_all(text(gateway, state, with_colour).as_bytes());
}

fn text(gateway: &Gateway, state: &Path, with_colour: bool) -> String {
    let (bold, dim, end) = if with_colour { ("\x1b[1m", "\x1b[90m", "\x1b[0m") } else { ("", "", "") };
    let config = gateway.config();
    let name = &config.gateway.name;
    let mut out =
        format!("\n{bold}tidegate {}{end} · gateway {bold}{name}{end}\n\n", env!("CARGO_PKG_VERSION"));

    let _ = writeln!(out, "{bold}Reads{end}");
    if config.devices.is_empty() {
        let _ = writeln!(out, "  no device is configured; `tidegate scan` shows what is connected");
    }
    for device in &config.devices {
        let sim = if device.setup.is_simulated() { format!("  {dim}(sim){end}") } else { String::new() };
        let title = device.title.as_deref().unwrap_or_default();
        let _ = writeln!(
            out,
            "  {:<14} {:<14} every {:<6} {title}{sim}",
            device.name,
            device.type_name,
            format!("{:?}", device.interval)
        );
    }

    let _ = writeln!(out, "\n{bold}Serves{end}");
    let mut ports = BTreeMap::new();
    for (what, address) in &gateway.listeners {
        ports.entry(*what).or_insert(*address);
        let line = match *what {
            "http" => format!("page   http://{address}/"),
            "mqtt" => format!("MQTT   {address}  3.1.1 and 5.0"),
            "mqtts" => format!("MQTT   {address}  TLS"),
            "wss" => format!("MQTT   wss://{address}/mqtt"),
            _ => format!("CoAP   coap://{address}/  UDP"),
        };
        let _ = writeln!(out, "  {line}");
    }
    let _ = writeln!(out, "\n{bold}Sends{end}");
    if config.uplinks.is_empty() {
        let _ = writeln!(out, "  nothing leaves this machine: no [[uplink]] is configured");
    }
    for uplink in &config.uplinks {
        let _ =
            writeln!(out, "  {:<14} {:<5} {}", uplink.name, uplink.setup.type_name(), uplink.setup.target());
    }

    let _ = writeln!(out, "\n{bold}Try{end}");
    if let Some(mqtt) = ports.get("mqtt") {
        let host = if mqtt.ip().is_loopback() { String::new() } else { format!("-h {} ", mqtt.ip()) };
        let port = if mqtt.port() == 1883 { String::new() } else { format!("-p {} ", mqtt.port()) };
        let _ = writeln!(out, "  mosquitto_sub {host}{port}-v -t 'tidegate/#'");
    }
    if let Some(coap) = ports.get("coap") {
        let _ = writeln!(out, "  {} -m get coap://{coap}/.well-known/core", coap_client());
    }
    let _ = writeln!(out, "  tidegate status");

    let _ = writeln!(out, "\n{bold}Keeps{end}");
    let _ = writeln!(out, "  {}", state.display());
    match config.files.as_slice() {
        [] => {
            let _ = writeln!(out, "  {dim}no configuration file: these are the defaults{end}");
        }
        files => {
            for file in files {
                let _ = writeln!(out, "  {dim}configured by{end} {}", file.display());
            }
        }
    }
    out.push('\n');
    out
}

/// The client's name on this machine: Debian 12 installs libcoap's under the name of its TLS library only.
fn coap_client() -> &'static str {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_here = |name: &str| std::env::split_paths(&path).any(|directory| directory.join(name).is_file());
    let plain = "coap-client";
    let debian = "coap-client-notls";
    if !is_here(plain) && is_here(debian) { debian } else { plain }
}
