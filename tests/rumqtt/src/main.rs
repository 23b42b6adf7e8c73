//! rumqttd as a broker, rumqttc as a client: peers for the tests, in one program.
//!
//! `rumqtt broker PORT [PORT_V5]` serves MQTT 3.1.1, and 5.0 on a port of its own, and prints `ready`.
//! `rumqtt client CONNECTION` is a client that is told what to do: see `tests/peers/mqtt_clients.rs`.

mod broker;
mod client;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["broker", v4] => broker::run(v4, None),
        ["broker", v4, v5] => broker::run(v4, Some(v5)),
        ["client", connection] => client::run(connection),
        _ => Err("usage: rumqtt broker PORT [PORT_V5] | rumqtt client CONNECTION".to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("rumqtt: {why}");
            ExitCode::FAILURE
        }
    }
}
