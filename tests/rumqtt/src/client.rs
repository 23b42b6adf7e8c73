//! rumqttc 0.25 as a client that is told what to do, a line of JSON each, and tells what happens to it.
//!
//! Lines in and out are those of `tests/peers/mqtt_clients.rs`; every client that is tested there speaks them.

mod v3;
mod v5;

use std::fmt::Write as _;
use std::io::BufRead;
use std::{fs, thread};

use rumqttc::{TlsConfiguration, Transport};
use serde_json::{Value, json};

/// Where to connect, how, and as whom.
struct Connection {
    host: String,
    port: u16,
    transport: Transport,
    id: String,
    clean: bool,
    session_expiry: Option<u32>,
    will: Option<Message>,
    login: Option<(String, String)>,
}

/// What is published.
#[derive(Default)]
struct Message {
    topic: String,
    payload: Vec<u8>,
    qos: u64,
    retain: bool,
    properties: Value,
    /// Publish it twice, the second time by this alias alone.
    alias: Option<u16>,
}

/// What is asked of a client that is connected.
trait Client: Send {
    fn subscribe(&self, filter: &str, qos: u64) -> Result<(), String>;
    fn publish(&self, message: Message) -> Result<(), String>;
    fn leave(&self) -> Result<(), String>;
}

/// Connects, does what the standard input says, and ends when it was told to leave or the connection does.
pub(crate) fn run(connection: &str) -> Result<(), String> {
    let text: Value = serde_json::from_str(connection).map_err(|error| format!("no connection: {error}"))?;
    // It is the only one that is compiled in; named so that a second one would not make it a question.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let connection = Connection::parse(&text)?;
    if text["version"] == 5 { v5::run(connection) } else { v3::run(connection) }
}

impl Connection {
    fn parse(text: &Value) -> Result<Self, String> {
        let word = |name: &str| text[name].as_str().map(str::to_owned);
        let host = word("host").ok_or("no host")?;
        let port = text["port"].as_u64().and_then(|port| port.try_into().ok()).ok_or("no port")?;
        let kind = word("transport").ok_or("no transport")?;
        let ca = word("ca").map(fs::read).transpose().map_err(|error| format!("ca: {error}"))?;
        let tls = TlsConfiguration::Simple { ca: ca.unwrap_or_default(), alpn: None, client_auth: None };
        let transport = match kind.as_str() {
            "tcp" => Transport::Tcp,
            "tls" => Transport::tls_with_config(tls),
            "ws" => Transport::Ws,
            "wss" => Transport::wss_with_config(tls),
            other => return Err(format!("no transport {other}")),
        };
        Ok(Self {
            // What is behind a WebSocket is named by its address as a whole.
            host: if kind.starts_with("ws") { format!("{kind}://{host}:{port}/mqtt") } else { host },
            port,
            transport,
            id: word("id").ok_or("no id")?,
            clean: text["clean"] != false,
            session_expiry: text["expiry"].as_u64().and_then(|seconds| seconds.try_into().ok()),
            will: text["will"].is_object().then(|| Message::parse(&text["will"])),
            login: word("user").zip(word("password")),
        })
    }
}

impl Message {
    fn parse(text: &Value) -> Self {
        Self {
            topic: text["topic"].as_str().unwrap_or_default().to_owned(),
            payload: unhex(text["payload"].as_str().unwrap_or_default()),
            qos: text["qos"].as_u64().unwrap_or(0),
            retain: text["retain"] == true,
            properties: text["properties"].clone(),
            alias: text["alias"].as_u64().and_then(|alias| alias.try_into().ok()),
        }
    }
}

/// Does what comes in on the standard input, in a thread: the connection is driven by the caller.
fn obey(client: impl Client + 'static) {
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let Ok(order) = serde_json::from_str::<Value>(&line) else { return failed("not JSON") };
            let outcome = match order["do"].as_str() {
                Some("subscribe") => client.subscribe(
                    order["filter"].as_str().unwrap_or_default(),
                    order["qos"].as_u64().unwrap_or(0),
                ),
                Some("publish") => client.publish(Message::parse(&order)),
                Some("leave") => client.leave(),
                _ => Err(format!("not known: {line}")),
            };
            if let Err(why) = outcome {
                failed(&why);
            }
        }
    });
}

/// One event, as a line that is there at once.
fn tell(event: &Value) {
    println!("{event}");
}

fn failed(why: &str) {
    tell(&json!({"event": "failed", "why": why}));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.filter_map(byte).collect()
}
