//! rumqttd 0.20 in this process, until it is killed: it has no way to stop.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

/// Serves until the process ends; says `ready` as soon as every port can be connected to.
pub(crate) fn run(v4: &str, v5: Option<&str>) -> Result<(), String> {
    let v4 = address(v4)?;
    let v5 = v5.map(address).transpose()?;
    let listeners = |name: &str, at: SocketAddr| HashMap::from([(name.to_owned(), listener(name, at))]);
    let config = Config {
        router: RouterConfig {
            max_connections: 10_010,
            max_outgoing_packet_count: 200,
            // A filter's log: with ten of a megabyte each it loses messages that were acknowledged.
            max_segment_size: 100 * 1024 * 1024,
            max_segment_count: 10,
            ..RouterConfig::default()
        },
        v4: Some(listeners("v4", v4)),
        v5: v5.map(|at| listeners("v5", at)),
        ..Config::default()
    };
    thread::spawn(move || {
        for at in [Some(v4), v5].into_iter().flatten() {
            while TcpStream::connect(at).is_err() {
                thread::sleep(Duration::from_millis(5));
            }
        }
        println!("ready");
    });
    Broker::new(config).start().map_err(|error| error.to_string())?;
    Err("no listener is left".to_owned())
}

fn address(port: &str) -> Result<SocketAddr, String> {
    let port: u16 = port.parse().map_err(|_| format!("no port: {port}"))?;
    Ok(SocketAddr::from(([127, 0, 0, 1], port)))
}

fn listener(name: &str, listen: SocketAddr) -> ServerSettings {
    ServerSettings {
        name: name.to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 0,
        connections: ConnectionSettings {
            connection_timeout_ms: 60_000,
            max_payload_size: 1024 * 1024,
            max_inflight_count: 500,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    }
}
