//! The page in Chromium: live tiles, a chart, the spool's card, every width and colour scheme, an empty console.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use harness::{
    Chromium, FaultProxy, Mosquitto, MqttClient, Tidegate, Viewport, out_dir, request, wait_until,
};

const SECOND: Duration = Duration::from_secs(1);

const DEVICES: &str = r#"
[[device]]
name = "host"
type = "host"
title = "This machine"
interval = "1s"

[[device]]
name = "cellar"
type = "bme280"
title = "Cellar climate"
bus = "sim"
address = 0x76
interval = "250ms"

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

const TILE: &str = "document.querySelector('[data-channel=\"cellar/temperature\"] [data-value]')";

fn uplink(broker: &FaultProxy) -> String {
    format!("[[uplink]]\nname = \"cloud\"\ntype = \"mqtt\"\naddress = \"{}\"\n", broker.address())
}

/// Tells the kernel's messages of a resource that is away from what the page itself got wrong.
fn complaints(browser: &Chromium) -> Vec<String> {
    browser
        .console()
        .into_iter()
        .filter(|line| !line.starts_with("INFO") && !line.starts_with("DEBUG"))
        .collect()
}

#[test]
fn tiles_live_and_a_chart_opens_in_light_dark_and_on_a_phone() {
    let broker = Mosquitto::start();
    let wire = FaultProxy::start(broker.address());
    let gateway = Tidegate::builder().tables(DEVICES).tables(&uplink(&wire)).start();
    let browser = Chromium::start();
    let url = format!("http://{}/", gateway.http());
    // So that there is a curve to be seen.
    wait_until(60 * SECOND, || (gateway.newest() > 600).then_some(())).expect("the spool fills");
    for (name, viewport, dark) in [
        ("light", Viewport::DESKTOP, false),
        ("dark", Viewport::DESKTOP, true),
        ("phone", Viewport::PHONE, false),
        ("phone-dark", Viewport::PHONE, true),
    ] {
        browser.resize(viewport);
        browser.prefer_dark(dark);
        browser.open(&url);
        browser.wait_for("document.querySelectorAll('[data-testid=tile]').length >= 8", 10 * SECOND);
        let first = browser.wait_for(&format!("{TILE}.dataset.value"), 10 * SECOND);
        browser.wait_for(&format!("{TILE}.dataset.value !== '{}'", first.as_str().unwrap()), 15 * SECOND);
        browser.wait_for(
            "document.querySelector('[data-uplink=cloud]').dataset.state === 'connected'",
            10 * SECOND,
        );
        let width = browser.run("return document.documentElement.scrollWidth - innerWidth");
        assert!(width.as_i64().unwrap() <= 0, "{name}: the page is {width} pixels wider than the screen");
        browser.screenshot(&out_dir().join(format!("page-{name}.png")));
        browser.open(&format!("{url}#/cellar/temperature"));
        browser.wait_for("document.querySelector('dialog[open] canvas')", 10 * SECOND);
        browser.wait_for(
            "[...document.querySelectorAll('dialog[open] canvas')].some(c => c.getContext('2d')
                .getImageData(0, 0, c.width, c.height).data.some(v => v))",
            10 * SECOND,
        );
        browser.screenshot(&out_dir().join(format!("chart-{name}.png")));
        assert_eq!(complaints(&browser), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn an_actuator_is_switched_from_the_page() {
    let gateway = Tidegate::builder().tables(DEVICES).start();
    let browser = Chromium::start();
    browser.resize(Viewport::DESKTOP);
    browser.open(&format!("http://{}/", gateway.http()));
    let tile = "document.querySelector('[data-channel=\"pump/state\"]')";
    browser.wait_for(&format!("{tile}.querySelector('[data-value=false]')"), 10 * SECOND);
    browser.run(&format!("{tile}.querySelector('button, input, [role=switch]').click()"));
    browser.wait_for(&format!("{tile}.querySelector('[data-value=true]')"), 10 * SECOND);
}

#[test]
fn the_page_tells_when_the_uplink_or_the_gateway_is_away_and_comes_back_by_itself() {
    let broker = Mosquitto::start();
    let wire = FaultProxy::start(broker.address());
    let mut gateway = Tidegate::builder().tables(DEVICES).tables(&uplink(&wire)).start();
    let browser = Chromium::start();
    browser.resize(Viewport::DESKTOP);
    browser.open(&format!("http://{}/", gateway.http()));
    let state = "document.querySelector('[data-uplink=cloud]').dataset.state";
    browser.wait_for(&format!("{state} === 'connected'"), 15 * SECOND);
    wire.set(harness::Mode::Refuse);
    wire.cut();
    browser.wait_for(&format!("{state} !== 'connected'"), 15 * SECOND);
    browser.screenshot(&out_dir().join("page-uplink-away.png"));
    wire.set(harness::Mode::Pass);
    gateway.kill();
    browser.wait_for("document.querySelector('main.is-stale')", 15 * SECOND);
    browser.screenshot(&out_dir().join("page-gateway-away.png"));
    gateway.start();
    browser.wait_for("!document.querySelector('main.is-stale')", 60 * SECOND);
    browser.wait_for(&format!("{state} === 'connected'"), 60 * SECOND);
}

#[test]
fn hostile_names_and_payloads_are_shown_as_text_or_not_at_all() {
    let gateway = Tidegate::builder().tables(DEVICES).start();
    let mut visitor = MqttClient::connect(gateway.mqtt(), "visitor").unwrap();
    let hostile = [
        "<img src=x onerror=\"window.broken=1\">",
        "</script><script>window.broken=1</script>",
        "\u{202e}gnp.exe",
        "javascript:window.broken=1",
    ];
    let browser = Chromium::start();
    browser.resize(Viewport::DESKTOP);
    browser.open(&format!("http://{}/", gateway.http()));
    browser.wait_for("document.querySelectorAll('[data-testid=tile]').length >= 8", 10 * SECOND);
    for (n, text) in hostile.iter().enumerate() {
        for topic in [format!("tidegate/barn/evil{n}/text"), format!("tidegate/barn/evil{n}/text/meta")] {
            // The broker may refuse its own tree to a stranger: then there is nothing to show.
            let _ = visitor.publish(&topic, text.as_bytes(), 0, false);
        }
    }
    let _ = visitor.publish("tidegate/barn/evil/large", &vec![b'<'; 65_536], 0, false);
    browser.wait_for(&format!("{TILE}.dataset.value"), 10 * SECOND);
    browser.run("return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))");
    assert!(browser.run("return window.broken").is_null(), "a payload was executed");
    assert_eq!(browser.run("return document.querySelectorAll('img[src=x]').length"), 0);
}

#[test]
fn the_http_api_answers_with_json_and_strict_headers() {
    let gateway = Tidegate::builder().tables(DEVICES).start();
    let get =
        |path: &str, headers: &[(&str, &str)]| request(gateway.http(), "GET", path, headers, b"").unwrap();
    let page = get("/", &[]);
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").expect("a content security policy");
    assert!(policy.contains("default-src") && !policy.contains("unsafe-eval"), "{policy}");
    let status = wait_until(10 * SECOND, || {
        let status = get("/api/v1/status", &[]).json();
        (status["spool"]["last_seq"].as_u64()? > 5).then_some(status)
    });
    assert_eq!(status.expect("a status")["gateway"], "barn");
    let channels = get("/api/v1/channels", &[]).json();
    assert!(channels.as_array().unwrap().iter().any(|one| one["id"] == "cellar/temperature"), "{channels}");
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let path = format!(
        "/api/v1/history?channel=cellar/temperature&from={}&to={}&buckets=60",
        seconds - 60,
        seconds + 1
    );
    let history = get(&path, &[]).json();
    assert!(!history["mean"].as_array().unwrap().is_empty(), "{history}");
    assert_eq!(get("/no/such/page", &[]).status, 404);
    assert_eq!(get("/../../etc/passwd", &[]).status, 404);
    // Another site's page must not reach the gateway through the visitor's browser.
    let foreign = request(gateway.http(), "GET", "/api/v1/status", &[("Host", "evil.example")], b"");
    assert!(foreign.unwrap().status >= 400, "a foreign host name was served");
}
