//! Every function that takes bytes from outside, with valid inputs for the mutations to begin with.

use std::cell::Cell;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coap::{Answer, Code, Endpoint, Format, Methods, Request, Resource, ResourceId, Resources, Response};
use drivers::{Driver, Samples, Wires};
use mqtt::{Broker, Client, Filter, Message, Qos, Topic, Transport, Version, broker, client};
use toml::de::DeTable;

/// One of them.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Valid inputs.
    pub(crate) corpus: fn() -> Vec<Vec<u8>>,
    /// Prepares what takes an input.
    pub(crate) build: fn() -> Run,
    /// Inputs between two looks at the clock.
    pub(crate) batch: u32,
}

/// Takes one input; fails by panicking.
type Run = Box<dyn FnMut(&[u8])>;

/// All of them.
pub(crate) const TARGETS: [Target; 13] = [
    Target { name: "mqtt-broker", corpus: mqtt_corpus, build: mqtt_broker, batch: 16 },
    Target { name: "mqtt-store", corpus: mqtt_store_corpus, build: mqtt_store, batch: 16 },
    Target { name: "mqtt-client", corpus: mqtt_client_corpus, build: mqtt_client, batch: 16 },
    Target { name: "topic-filter", corpus: filter_corpus, build: topic_filter, batch: 64 },
    Target { name: "coap-datagram", corpus: coap_corpus, build: coap_datagram, batch: 16 },
    Target { name: "link-format", corpus: link_corpus, build: link_format, batch: 64 },
    Target { name: "senml-json", corpus: senml_corpus, build: senml_json, batch: 64 },
    Target { name: "senml-cbor", corpus: senml_cbor_corpus, build: senml_cbor, batch: 64 },
    Target { name: "nmea", corpus: nmea_corpus, build: nmea, batch: 16 },
    Target { name: "serial-line", corpus: serial_corpus, build: serial_line, batch: 16 },
    Target { name: "device-table", corpus: device_corpus, build: device_table, batch: 16 },
    Target { name: "config", corpus: config_corpus, build: config, batch: 1 },
    Target { name: "ledger", corpus: ledger_corpus, build: ledger, batch: 1 },
];

fn owned(list: &[&[u8]]) -> Vec<Vec<u8>> {
    list.iter().map(|bytes| bytes.to_vec()).collect()
}

const CONNECT_3: &[u8] = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a";
const CONNECT_5: &[u8] = b"\x10\x13\x00\x04MQTT\x05\x02\x00\x3c\x05\x11\x00\x00\x00\x78\x00\x01a";
const CONNECT_WILL: &[u8] =
    b"\x10\x1d\x00\x04MQTT\x04\xee\x00\x3c\x00\x01a\x00\x03w/t\x00\x03bye\x00\x01u\x00\x01p";

fn mqtt_corpus() -> Vec<Vec<u8>> {
    let after: [&[u8]; 12] = [
        b"\x30\x08\x00\x03a/bhey",
        b"\x32\x08\x00\x03a/b\x00\x01x",
        b"\x34\x08\x00\x03a/b\x00\x02x\x62\x02\x00\x02",
        b"\x82\x08\x00\x01\x00\x03a/#\x01",
        b"\x82\x0e\x00\x01\x00\x09$share/g/a\x01",
        b"\xa2\x07\x00\x03\x00\x03a/#",
        b"\x40\x02\x00\x01\x50\x02\x00\x01\x70\x02\x00\x01",
        b"\xc0\x00\xe0\x00",
        // MQTT 5.0: with properties, an alias, a subscription with options.
        b"\x32\x12\x00\x03a/b\x00\x01\x09\x26\x00\x01k\x00\x01v\x01\x01x",
        b"\x30\x0b\x00\x03a/b\x03\x23\x00\x01x\x30\x06\x00\x00\x03\x23\x00\x01",
        b"\x82\x0b\x00\x01\x02\x0b\x05\x00\x03a/+\x2d",
        b"\xe0\x07\x00\x05\x11\x00\x00\x00\x0a",
    ];
    let greetings = [CONNECT_3, CONNECT_5, CONNECT_WILL];
    let joined = |greeting: &&[u8], packet: &&[u8]| [&[0x40], *greeting, *packet].concat();
    greetings.iter().flat_map(|greeting| after.iter().map(move |packet| joined(greeting, packet))).collect()
}

/// The first byte says how large the pieces are in which the rest arrives.
fn mqtt_broker() -> Run {
    Box::new(|input| {
        let now = Instant::now();
        let mut broker = Broker::new(mqtt::Limits::default(), 1);
        broker.set_forwarded(&[Filter::new("a/#").expect("a valid filter")]);
        let peer = mqtt::Peer::new(None, Transport::Tcp);
        // Somebody else is there, subscribed to everything.
        let witness = broker.accept(now, peer.clone()).expect("an empty broker accepts");
        broker.handle_input(now, witness, CONNECT_3);
        broker.handle_input(now, witness, b"\x82\x06\x00\x01\x00\x01#\x02");
        let Some(guest) = broker.accept(now, peer) else { return };
        let Some((size, rest)) = input.split_first() else { return };
        for piece in rest.chunks(usize::from(*size).max(1)) {
            broker.handle_input(now, guest, piece);
            serve(&mut broker, now);
        }
        let later = broker.deadline().unwrap_or(now) + Duration::from_secs(120);
        broker.handle_timeout(later);
        serve(&mut broker, later);
        broker.handle_gone(later, guest);
        serve(&mut broker, later);
    })
}

fn serve(broker: &mut Broker, now: Instant) {
    while let Some(event) = broker.poll_event() {
        match event {
            broker::Event::Output(id) => broker.transmit(now, id, &mut Vec::new()),
            broker::Event::Ingress { token: Some(token), .. } => broker.acknowledge(now, token, Ok(())),
            _ => {}
        }
    }
}

const CONNECT_STAY: &[u8] = b"\x10\x0d\x00\x04MQTT\x04\x00\x00\x3c\x00\x01a";

const STAY_WITH_WILL: &[u8] = b"\x10\x15\x00\x04MQTT\x04\x04\x00\x3c\x00\x01b\x00\x03a/w\x00\x01w";

/// What a broker keeps of a session with two messages, one shared, of a retained message, of an unfinished id and of a
/// will.
fn mqtt_store_corpus() -> Vec<Vec<u8>> {
    let now = Instant::now();
    let mut broker = Broker::new(mqtt::Limits::default(), 1);
    broker.restore(now, 1_800_000_000_000, Vec::new());
    let mut records = Vec::new();
    for greeting in [CONNECT_STAY, STAY_WITH_WILL] {
        let id = broker.accept(now, mqtt::Peer::new(None, Transport::Tcp)).expect("an empty broker accepts");
        for packet in [
            greeting,
            b"\x82\x06\x00\x01\x00\x01#\x02",
            b"\x82\x0c\x00\x02\x00\x07$share/\x02",
            b"\x34\x08\x00\x03a/b\x00\x02x",
            b"\x33\x08\x00\x03a/b\x00\x03x",
        ] {
            broker.handle_input(now, id, packet);
            while let Some(changes) = broker.take_changes() {
                let stored = |change: mqtt::Change| {
                    let kind = (change.key >> 56) as u8;
                    Some([&[change.shelf as u8, kind], &change.body?[..]].concat())
                };
                records.extend(changes.into_iter().filter_map(stored));
                broker.settle_changes(now, Ok(()));
            }
            serve(&mut broker, now);
        }
    }
    assert!(records.iter().any(|record| record[1] == 3), "a will is kept");
    assert!(records.len() > 5, "the broker keeps what it has to: {}", records.len());
    records
}

/// The first byte is the shelf, the second the kind of state, the rest a record.
fn mqtt_store() -> Run {
    let valid: Vec<mqtt::Record> =
        mqtt_store_corpus().iter().zip(1..).filter_map(|(input, number)| record(input, number)).collect();
    Box::new(move |input| {
        let Some(one) = record(input, 77) else { return };
        let now = Instant::now();
        let mut broker = Broker::new(mqtt::Limits::default(), 1);
        let mut records = valid.clone();
        records.push(one);
        records.sort_by_key(|record| (record.shelf, record.key));
        broker.restore(now, 1_800_000_100_000, records);
        for name in [b"a", b"b"] {
            let Some(id) = broker.accept(now, mqtt::Peer::new(None, Transport::Tcp)) else { return };
            broker.handle_input(now, id, &[&CONNECT_STAY[..14], name].concat());
            while broker.take_changes().is_some() {
                broker.settle_changes(now, Ok(()));
            }
            serve(&mut broker, now);
            broker.handle_input(now, id, b"\x40\x02\x00\x01\x50\x02\x00\x01\x70\x02\x00\x01");
            broker.handle_input(now, id, b"\x34\x08\x00\x03a/b\x00\x09x");
            serve(&mut broker, now);
        }
        let later = broker.deadline().unwrap_or(now) + Duration::from_secs(86_400);
        broker.handle_timeout(later);
        serve(&mut broker, later);
    })
}

fn record(input: &[u8], number: u64) -> Option<mqtt::Record> {
    let ([shelf, kind], body) = input.split_first_chunk()?;
    let shelf = mqtt::Shelf::new(*shelf)?;
    let key = if shelf == mqtt::Shelf::State { (u64::from(*kind) << 56) + number } else { number };
    Some(mqtt::Record { shelf, key, body: body.to_vec().into() })
}

fn mqtt_client_corpus() -> Vec<Vec<u8>> {
    owned(&[
        b"\x20\x03\x00\x00\x00\x40\x02\x00\x01\x50\x02\x00\x02\x70\x02\x00\x02",
        b"\x20\x0b\x01\x00\x08\x21\x00\x0a\x22\x00\x05\x24\x01",
        b"\x20\x09\x00\x00\x06\x13\x00\x3c\x12\x00\x00\x90\x04\x00\x01\x00\x01",
        b"\x20\x03\x00\x00\x00\x32\x09\x00\x03a/b\x00\x07\x00x\x34\x09\x00\x03a/b\x00\x08\x00x\x62\x02\x00\x08",
        b"\x20\x03\x00\x87\x00",
        b"\x20\x03\x00\x00\x00\x40\x04\x00\x01\x97\x00\xe0\x02\x8b\x00",
        b"\x20\x03\x00\x00\x00\xd0\x00",
    ])
}

fn mqtt_client() -> Run {
    Box::new(|input| {
        for version in [Version::V5, Version::V311] {
            let now = Instant::now();
            let options = client::Options { version, client_id: "c".into(), ..client::Options::default() };
            let mut client = Client::new(now, options).expect("valid options");
            client.connect(now);
            client.transmit(now, &mut Vec::new());
            let topic = Topic::new("a/b").expect("a valid topic");
            for (id, piece) in (0..).zip(input.chunks(7)) {
                client.handle_input(now, piece);
                // Refused while it is not connected or the window is full: both are the far side's to bring about.
                let _ = client.publish(id, &Message::new(topic.clone(), "x").with_qos(Qos::ExactlyOnce));
                while client.poll_event().is_some() {}
                client.transmit(now, &mut Vec::new());
            }
            client.handle_timeout(now + Duration::from_secs(60));
            while client.poll_event().is_some() {}
        }
    })
}

fn filter_corpus() -> Vec<Vec<u8>> {
    owned(&[b"a/b/c", b"+/b/#", b"$share/group/a/+", b"#", b"/", "été/°C".as_bytes(), b"$SYS/#", b"a//b"])
}

fn topic_filter() -> Run {
    let topics = ["a", "a/b/c", "/", "$SYS/x", "été/°C"].map(|text| Topic::new(text).expect("a valid topic"));
    Box::new(move |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        if let Ok(filter) = Filter::new(text) {
            for topic in &topics {
                let _ = filter.matches(topic);
            }
        }
        if let Ok(topic) = Topic::new(text) {
            assert!(!topic.as_str().contains(['+', '#', '\0']), "{text:?} was taken for a topic");
            assert!(
                topic.as_str().starts_with('$') || Filter::new("#").expect("a valid filter").matches(&topic)
            );
        }
    })
}

fn coap_corpus() -> Vec<Vec<u8>> {
    owned(&[
        b"\x41\x01\x12\x34\x55\xb6cellar\x0btemperature",
        b"\x41\x01\x12\x35\x55\xbb.well-known\x04core\x44rt=x",
        b"\x42\x01\x12\x36ab\x60\x56cellar\x61\x6e",
        b"\x41\x03\x12\x37\x55\xb4pump\x05state\x10\xff1",
        b"\x41\x03\x12\x38\x55\xb4pump\x11\x32\xd1\x02\x08\xff0123456789abcdef",
        b"\x41\x01\x12\x39\x55\xb6cellar\xc1\x12\xc1\x00",
        b"\x51\x01\x12\x3a\x55\xd1\xf5\x1a",
        b"\x60\x00\x12\x3b",
        b"\x70\x00\x12\x3c",
        b"\x40\x00\x12\x3d",
        b"\x61\x45\x12\x3e\x55\xffhello",
        b"\x41\x02\x12\x3f\x55\x14abcd\xff\x00",
    ])
}

/// One server for a while of inputs: what one leaves behind, the next one meets.
fn coap_datagram() -> Run {
    let started = Instant::now();
    let mut now = started;
    let mut endpoint = Endpoint::new(coap::Config::default(), 7, now);
    let mut resources = Pantry(Cell::new(0));
    let mut count = 0u32;
    Box::new(move |input| {
        count += 1;
        now += Duration::from_millis(20);
        let address = ([127, 0, 0, 1], 40_000 + (count % 50) as u16).into();
        let peer = coap::Peer { socket: 0, address };
        endpoint.handle_datagram(now, peer, count.is_multiple_of(17), input, &mut resources);
        if count.is_multiple_of(5) {
            endpoint.notify(now, ResourceId(1), &mut resources);
        }
        if endpoint.deadline().is_some_and(|at| at <= now) {
            endpoint.handle_timeout(now, &mut resources);
        }
        while endpoint.poll_transmit().is_some() {}
        while endpoint.poll_event().is_some() {}
        if count.is_multiple_of(100_000) {
            endpoint = Endpoint::new(coap::Config::default(), u64::from(count), now);
        }
    })
}

/// A value that changes, a page of several blocks, something that can be told.
struct Pantry(Cell<u32>);

impl Resources for Pantry {
    fn find(&self, request: &Request<'_>) -> Option<Resource<'_>> {
        let first = request.segments().next()?;
        let id = ResourceId(match first {
            "cellar" => 1,
            "pump" => 2,
            _ => return None,
        });
        let methods = if id.0 == 2 { Methods::of(&[Code::GET, Code::PUT, Code::POST]) } else { Methods::GET };
        Some(Resource { id, methods, offers: &[Format::TEXT], takes: &[], is_observable: id.0 == 1 })
    }

    fn answer(&mut self, id: ResourceId, request: &Request<'_>, _: Option<Format>) -> Answer {
        self.0.set(self.0.get() + 1);
        let _ = request.queries().count();
        match id.0 {
            1 => Answer::Now(Response::content(Format::TEXT, self.0.get().to_string().into_bytes())),
            _ => Answer::Now(Response::content(Format::TEXT, vec![b'x'; 3000])),
        }
    }
}

fn link_corpus() -> Vec<Vec<u8>> {
    owned(&[
        b"</cellar/temperature>;rt=\"temperature-c\";if=\"core.s\";ct=\"0 110 112\";obs;title=\"Cellar \\\"a\\\"\"",
        b"</a>,</b>;x,<coap://[::1]/c>;rel=hosts;anchor=\"/\"",
        b"<>;sz=12",
    ])
}

fn link_format() -> Run {
    Box::new(|input| {
        if let Ok(text) = std::str::from_utf8(input) {
            assert!(coap::parse_links(text, 100).len() <= 100);
        }
    })
}

fn senml_corpus() -> Vec<Vec<u8>> {
    owned(&[
        br#"[{"bn":"urn:dev:ow:10e2073a01080063:","u":"Cel","v":23.1,"t":1.276020091e9}]"#,
        br#"[{"bn":"a/","bt":1e9,"bu":"V","bv":1,"bs":2,"bver":5,"n":"x","v":1},{"n":"y","vs":"t"},{"n":"z","vb":true}]"#,
        br#"[{"n":"a","vd":"aGk","ut":3,"s":4.5,"unknown":1}]"#,
        b"[]",
    ])
}

fn senml_json() -> Run {
    Box::new(|input| {
        let _ = senml::parse_json(input);
    })
}

fn senml_cbor_corpus() -> Vec<Vec<u8>> {
    owned(&[
        b"\x81\xa4\x21\x65a/b/c\x00\x61x\x01\x63Cel\x02\xfb\x40\x37\x19\x99\x99\x99\x99\x9a",
        b"\x82\xa2\x00\x61a\x04\xf5\xa2\x00\x61b\x03\x62hi",
        b"\x81\xa3\x00\x61a\x22\xfb\x41\xd2\x65\xf7\xb4\x00\x00\x00\x02\x01",
        b"\x9f\xbf\x00\x61a\x02\x18\x64\xff\xff",
    ])
}

fn senml_cbor() -> Run {
    Box::new(|input| {
        let _ = senml::parse_cbor(input);
    })
}

fn nmea_corpus() -> Vec<Vec<u8>> {
    owned(&[
        b"$GPGGA,092750.000,5321.6802,N,00630.3372,W,1,8,1.03,61.7,M,55.2,M,,*76\r\n",
        b"$GPRMC,225446.33,A,4916.45,N,12311.12,W,000.5,054.7,191194,020.3,E,A*2B\r\n",
        b"$GPHDT,274.07,T*03\r\n$WIMWV,214.8,R,0.1,K,A*28\r\n",
        b"$SDDBT,0017.6,f,0005.4,M,0002.9,F*3C\r\n$WIXDR,C,19.52,C,TempAir,P,1.0146,B,Barometer*5C\r\n",
    ])
}

fn nmea() -> Run {
    decoder("nmea", "port = \"/dev/ttyS0\"\nbaud = 9600\n")
}

fn serial_corpus() -> Vec<Vec<u8>> {
    owned(&[
        b"T=21.5 H=48\n",
        b"T=-3 H=99.9\r\nT=0.0 H=0\n",
        b"{\"t\":21.5,\"deep\":{\"a\":[1,2]}}\n",
        b"t=21.5 h=48\n",
    ])
}

fn serial_line() -> Run {
    let base = "port = \"/dev/ttyS0\"\nbaud = 9600\n";
    let pattern = "format = \"regex\"\npattern = '^T=(?<temperature>[-0-9.]+) H=(?<humidity>[0-9.]+)$'\n";
    let mut all = [pattern, "format = \"json\"\n", "format = \"key-value\"\n"]
        .map(|format| decoder("serial-line", &format!("{base}{format}")));
    Box::new(move |input| all.iter_mut().for_each(|run| run(input)))
}

/// A decoder that lives on, as it does on a line. Every input ends with a line's end; every thousandth time the port
/// is opened anew.
fn decoder(kind: &str, table: &str) -> Run {
    let device_type = drivers::device::find(kind).expect("a registered device type");
    let setup = (device_type.parse)(DeTable::parse(table).expect("valid TOML")).expect("valid settings");
    let Ok(Driver::Stream(mut decoder)) = setup.build(&Wires::new()) else { panic!("{kind} is a stream") };
    let mut samples = Samples::new();
    let mut count = 0u64;
    Box::new(move |input| {
        count += 1;
        if count.is_multiple_of(1000) {
            decoder.reset();
        }
        decoder.feed(input, count, &mut samples);
        decoder.feed(b"\n", count, &mut samples);
        let channels = decoder.channels().len();
        assert!(samples.as_slice().iter().all(|sample| sample.channel < channels), "a sample of no channel");
        assert!(channels < 10_000, "{channels} channels");
        samples.drain().for_each(drop);
    })
}

/// The first byte chooses the device type, the rest is its table.
fn device_corpus() -> Vec<Vec<u8>> {
    let types = drivers::device::registry().iter().enumerate();
    types.map(|(n, device_type)| [&[n as u8], device_type.example.as_bytes()].concat()).collect()
}

fn device_table() -> Run {
    Box::new(|input| {
        let Some((first, rest)) = input.split_first() else { return };
        let registry = drivers::device::registry();
        let device_type = registry[usize::from(*first) % registry.len()];
        let Ok(Ok(table)) = std::str::from_utf8(rest).map(DeTable::parse) else { return };
        if let Ok(setup) = (device_type.parse)(table) {
            let _ = (setup.bus(), setup.occupies(), setup.channels(), setup.default_interval());
        }
    })
}

fn config_corpus() -> Vec<Vec<u8>> {
    owned(&[
        b"[gateway]\nname = \"barn\"\n[mqtt]\nlisten = [\"127.0.0.1:1883\"]\nforward = [\"site/#\"]\n",
        b"[[device]]\nname = \"cellar\"\ntype = \"bme280\"\nbus = \"sim\"\naddress = 0x76\ninterval = \"5s\"\n",
        b"[spool]\nmax_size = \"512MB\"\n[[uplink]]\nname = \"cloud\"\ntype = \"mqtt\"\naddress = \"127.0.0.1:1\"\nqos = 1\n",
        "[http]\nlisten = [\"0.0.0.0:8080\"]\n[users]\nü = \"é\"\n".as_bytes(),
    ])
}

/// The whole configuration belongs to the binary: it is asked, as a process, and must say yes or no.
fn config() -> Run {
    let scratch = harness::Scratch::new("fuzz-config");
    let binary = harness::binary();
    Box::new(move |input| {
        let file = scratch.write("tidegate.toml", input);
        let status = Command::new(&binary)
            .arg("check")
            .arg("--config")
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("the binary can be started");
        assert!(matches!(status.code(), Some(0 | 78)), "check ended with {status}");
    })
}

fn ledger_corpus() -> Vec<Vec<u8>> {
    let id = r#""gw":"barn","epoch":"0000000000002a","seq":1"#;
    let text = format!(
        r#"{{\"format\":1,\"gateway\":\"barn\",\"epoch\":\"0000000000002a\",\"number\":1,\"from_seq\":1,\"to_seq\":3,\"count\":2,\"absent\":[[2,2]],\"gaps\":[{{\"from\":2,\"to\":2,\"count\":1,\"reason\":\"quota\"}}],\"thinned\":[],\"chunk\":100,\"digests\":\"0123456789abcdef\",\"previous\":null,\"key\":\"{}\"}}"#,
        "0f".repeat(32)
    );
    let inner = format!(r#"{{"manifest":"{text}","signature":"{}"}}"#, "0f".repeat(64));
    let manifest = serde_json::json!([{ "bn": "tidegate/barn/", "n": "manifest", "vs": inner, "gw": "barn", "epoch": "0000000000002a", "seq": 4 }]);
    let compressed = "KLUv/QRYXQIAwgQQGJBFLQYwo0rAtz6WWLqJkRlrlJojc/2vEsayAXE3CtjG4Ts5Fka3N2F+C9Am3IHtPPi922cT5lGFSBFFfW++igIANRNYbKfMv+cGgg==";
    vec![
        format!("[{{\"bn\":\"tidegate/barn/\",\"bt\":1795000000.25,\"n\":\"cellar/temperature\",\"u\":\"Cel\",\"v\":21.3,{id}}},{{\"n\":\"door/open\",\"vb\":true,\"t\":0.5,\"seq\":3}}]\n").into_bytes(),
        format!("{manifest}\n").into_bytes(),
        format!("{{\"n\":\"x\",\"vd\":\"AAEC\",\"clock\":\"rtc\",\"corrected\":true,{id}}}\n{{\"n\":\"gap\",\"vs\":\"quota\",\"from\":1,\"to\":2,\"count\":2,{id}}}").into_bytes(),
        b"{\"content_type\":\"application/senml+cbor\",\"body_base64\":\"gqghbnRpZGVnYXRlL2Jhcm4vIvtB2r9hsBAAAAByY2VsbGFyL3RlbXBlcmF0dXJlAWNDZWwCxIIgGNViZ3dkYmFybmVlcG9jaG4wMDAwMDAwMDAwMDAyYWNzZXEBpABheAhCAAFjc2VxA2VjbG9ja2NydGM=\"}\n".to_vec(),
        format!("{{\"content_type\":\"application/senml+json\",\"content_encoding\":\"zstd\",\"body_base64\":\"{compressed}\"}}\n").into_bytes(),
    ]
}

/// As the configuration: the verifier belongs to the binary, and must come to a verdict.
fn ledger() -> Run {
    let binary = harness::binary();
    Box::new(move |input| {
        let mut command = Command::new(&binary);
        command.args(["verify-ledger", "--json", "-"]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.expect("the binary can be started");
        // It may have come to its verdict before it has read everything.
        let _ = child.stdin.take().expect("it was piped").write_all(input);
        let status = child.wait().expect("it was started here");
        assert!(matches!(status.code(), Some(0 | 1 | 3)), "verify-ledger ended with {status}");
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpora_are_what_the_targets_take() {
        assert!(
            senml_corpus().iter().take(3).all(|input| !senml::parse_json(input).expect("valid").is_empty())
        );
        assert!(senml_cbor_corpus().iter().all(|input| !senml::parse_cbor(input).expect("valid").is_empty()));
        assert!(
            filter_corpus().iter().all(|input| Filter::new(str::from_utf8(input).expect("text")).is_ok())
        );
        for input in link_corpus() {
            assert!(!coap::parse_links(str::from_utf8(&input).expect("text"), 9).is_empty());
        }
        for input in coap_corpus() {
            assert!(coap::Message::parse(&input).is_ok(), "{input:02x?}");
        }
    }

    #[test]
    fn the_greetings_are_accepted_by_the_broker_and_the_datagram_answered() {
        let now = Instant::now();
        for greeting in [CONNECT_3, CONNECT_5, CONNECT_WILL] {
            let mut broker = Broker::new(mqtt::Limits::default(), 1);
            let guest = broker.accept(now, mqtt::Peer::new(None, Transport::Tcp)).expect("there is room");
            broker.handle_input(now, guest, greeting);
            let mut answer = Vec::new();
            broker.transmit(now, guest, &mut answer);
            assert!(
                answer.starts_with(&[0x20]) && answer[3] == 0,
                "{greeting:02x?} was answered {answer:02x?}"
            );
        }
        let mut endpoint = Endpoint::new(coap::Config::default(), 7, now);
        let peer = coap::Peer { socket: 0, address: ([127, 0, 0, 1], 4000).into() };
        endpoint.handle_datagram(now, peer, false, &coap_corpus()[0], &mut Pantry(Cell::new(0)));
        let (_, answer) = endpoint.poll_transmit().expect("a GET is answered");
        assert_eq!(answer[..5], *b"\x61\x45\x12\x34\x55");
    }
}
