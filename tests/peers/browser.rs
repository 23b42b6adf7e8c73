//! The page in Chromium: live tiles, a chart, the spool's card, every width and colour scheme, an empty console.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use harness::{
    Chromium, FaultProxy, Mode, Mosquitto, MqttClient, Tidegate, Viewport, out_dir, request, wait_until,
};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
/// Waiting so long that the live lane jumps and the backfill lane takes some time.
const BACKLOG: u64 = 12_000;

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
    wire.set(Mode::Refuse);
    wire.cut();
    browser.wait_for(&format!("{state} !== 'connected'"), 15 * SECOND);
    browser.screenshot(&out_dir().join("page-uplink-away.png"));
    wire.set(Mode::Pass);
    gateway.kill();
    browser.wait_for("document.querySelector('main.is-stale')", 15 * SECOND);
    browser.screenshot(&out_dir().join("page-gateway-away.png"));
    gateway.start();
    browser.wait_for("!document.querySelector('main.is-stale')", 60 * SECOND);
    browser.wait_for(&format!("{state} === 'connected'"), 60 * SECOND);
}

/// A text of the uplink's row, by the name that it carries for tests.
fn in_row(name: &str) -> String {
    format!("document.querySelector('[data-uplink=cloud] [data-testid={name}]')?.textContent")
}

/// How much waits on a lane, as the page shows it.
fn waits(browser: &Chromium, lane: &str) -> u64 {
    let found = browser.run(&format!(
        "return Number(document.querySelector('[data-uplink=cloud] [data-lane={lane}]').dataset.waits)"
    ));
    found.as_u64().unwrap_or_else(|| panic!("lane {lane}: {found}"))
}

/// The text that an expression gives.
fn text(browser: &Chromium, expression: &str) -> String {
    browser.run(&format!("return {expression}")).as_str().unwrap_or_default().to_owned()
}

/// The spool's card by day, by night and on a phone, without loading the page anew: it would forget what it has seen.
fn take_pictures(browser: &Chromium, name: &str) {
    for (end, viewport, dark) in [
        ("", Viewport { scale: 2.0, ..Viewport::DESKTOP }, false),
        ("-dark", Viewport { scale: 2.0, ..Viewport::DESKTOP }, true),
        ("-phone", Viewport::PHONE, false),
    ] {
        browser.resize(viewport);
        browser.prefer_dark(dark);
        let width = browser.run("return document.documentElement.scrollWidth - innerWidth");
        assert!(
            width.as_i64().unwrap() <= 0,
            "{name}{end}: the page is {width} pixels wider than the screen"
        );
        browser.screenshot_of("#spool", &out_dir().join(format!("{name}{end}.png")));
    }
    browser.resize(Viewport::DESKTOP);
}

#[test]
fn the_spool_card_shows_an_outage_and_how_it_drains() {
    let broker = Mosquitto::start();
    let wire = FaultProxy::start(broker.address());
    let cloud = uplink(&wire) + "rate = \"400kB/s\"\n";
    let devices = DEVICES.replace("250ms", "5ms");
    let gateway = Tidegate::builder().tables(&devices).tables(&cloud).start();
    let browser = Chromium::start();
    browser.resize(Viewport::DESKTOP);
    browser.open(&format!("http://{}/", gateway.http()));
    let row = "document.querySelector('[data-uplink=cloud]')";
    let lane = |name: &str| format!("{row}.querySelector('[data-lane={name}]')");
    let tide = "document.querySelector('.tideline').textContent";
    browser.wait_for(&format!("{row}.dataset.state === 'connected'"), 20 * SECOND);
    browser.wait_for(&format!("{}.matches('.is-flowing')", lane("live")), 20 * SECOND);
    browser.wait_for(&format!("{tide}.includes('The gate is open: cloud has every reading')"), 20 * SECOND);
    let delivery = text(&browser, &in_row("delivery"));
    assert!(delivery.starts_with("At least once."), "{delivery}");
    let durability = text(&browser, "document.querySelector('[data-testid=durability]').textContent");
    assert!(durability.trim().starts_with("A power cut now loses at most"), "{durability}");

    wire.set(Mode::Refuse);
    wire.cut();
    browser.wait_for(&format!("{row}.dataset.state === 'backoff'"), 20 * SECOND);
    // So much that the live lane leaves it to the backfill lane.
    let waiting = || gateway.status()["uplinks"][0]["waiting"].as_u64();
    wait_until(120 * SECOND, || (waiting()? > BACKLOG).then_some(())).expect("readings wait");
    browser.wait_for(&format!("Number({}.dataset.waits) > {BACKLOG}", lane("live")), 20 * SECOND);
    let told = text(&browser, tide);
    assert!(told.contains("Uplink cloud cannot be reached"), "{told}");
    assert_eq!(text(&browser, &in_row("drain")), "What waits is safe on disk, in order.");
    let capacity = "document.querySelector('[data-testid=capacity]').textContent";
    browser.wait_for(&format!("/^[0-9,]+\\s(min|h|d)$/.test({capacity})"), 20 * SECOND);
    // What came of a command is as urgent as an alarm.
    browser.run("document.querySelector('[data-channel=\"pump/state\"] [role=switch]').click()");
    browser.wait_for(&format!("Number({}.dataset.waits) > 0", lane("alarm")), 10 * SECOND);
    take_pictures(&browser, "spool-outage");

    wire.set(Mode::Pass);
    browser.wait_for(&format!("{row}.dataset.draining === 'yes'"), 90 * SECOND);
    let said = r"/^[2-7]\d % of the backfill is out; the rest is out in about .*\. New readings go out meanwhile\.$/";
    browser.wait_for(&format!("{said}.test({})", in_row("drain")), 30 * SECOND);
    for name in ["live", "backfill"] {
        browser.wait_for(&format!("{}.matches('.is-flowing')", lane(name)), 10 * SECOND);
    }
    assert_eq!(waits(&browser, "alarm"), 0, "what is urgent goes first");
    let (left, before) = (waits(&browser, "backfill"), gateway.status()["uplinks"][0].clone());
    take_pictures(&browser, "spool-draining");
    browser.wait_for(&format!("Number({}.dataset.waits) < {left}", lane("backfill")), 20 * SECOND);
    // What the page says is so: the newest goes out while the past follows.
    let after = gateway.status()["uplinks"][0].clone();
    assert!(after["cursor"].as_u64() > before["cursor"].as_u64(), "the live lane stands still: {after}");
    assert!(after["lanes"]["live"].as_u64() < Some(BACKLOG / 2), "the live lane is behind: {after}");

    browser.wait_for(&format!("{row}.dataset.draining === 'no'"), 120 * SECOND);
    browser.wait_for(&format!("{tide}.includes('cloud has every reading')"), 20 * SECOND);
    assert_eq!(waits(&browser, "backfill"), 0);
    browser.wait_for("document.querySelector('.gaps-none')", SECOND);
    assert_eq!(complaints(&browser), Vec::<String>::new());
}

#[test]
fn a_used_up_month_is_shown_as_what_it_is() {
    let broker = Mosquitto::start();
    let wire = FaultProxy::start(broker.address());
    let cloud = uplink(&wire) + "monthly_budget = \"100kB\"\n";
    let devices = DEVICES.replace("250ms", "20ms");
    let gateway = Tidegate::builder().tables(&devices).tables(&cloud).start();
    let browser = Chromium::start();
    browser.resize(Viewport::DESKTOP);
    browser.open(&format!("http://{}/", gateway.http()));
    browser.wait_for(&format!(r"/of 100\skB this month/.test({})", in_row("budget")), 20 * SECOND);
    browser
        .wait_for(&format!("{}?.startsWith('This month’s bytes are used up')", in_row("drain")), 60 * SECOND);
    let tide = text(&browser, "document.querySelector('.tideline').textContent");
    assert!(tide.contains("cloud has used up this month’s bytes"), "{tide}");
    browser.screenshot_of("#spool", &out_dir().join("spool-budget.png"));
}

#[test]
fn what_made_room_is_listed_as_lost_with_its_reason() {
    let broker = Mosquitto::start();
    let wire = FaultProxy::start(broker.address());
    wire.set(Mode::Refuse);
    let spool = "[spool]\nmax_size = \"2MB\"\nwhen_full = \"drop-oldest\"\n";
    let gateway = Tidegate::builder()
        .mqtt("forward = [\"plant/#\"]")
        .tables(spool)
        .tables(DEVICES)
        .tables(&uplink(&wire))
        .start();
    let browser = Chromium::start();
    browser.resize(Viewport::DESKTOP);
    browser.open(&format!("http://{}/", gateway.http()));
    browser.wait_for("document.querySelector('.gaps-none')", 20 * SECOND);
    let mut press = MqttClient::connect(gateway.mqtt(), "press").unwrap();
    for n in 0..1500 {
        press.publish_and_wait("plant/press/log", &vec![b'a' + (n % 26) as u8; 4000], 1).unwrap();
    }
    let lost = wait_until(20 * SECOND, || {
        let gaps = gateway.status()["spool"]["gaps"].clone();
        let lost: u64 = gaps.as_array()?.iter().filter_map(|gap| gap["count"].as_u64()).sum();
        (lost > 0).then_some(lost)
    });
    assert!(lost > Some(100), "{lost:?} were lost");
    let gap = "document.querySelector('[data-reason=quota]')?.textContent";
    browser.wait_for(
        &format!("{gap}?.includes('the size limit was reached while an uplink was away')"),
        10 * SECOND,
    );
    let title = text(&browser, "document.querySelector('#gaps-title').textContent");
    assert!(title.ends_with("readings are missing"), "{title}");
    browser.screenshot_of("#spool", &out_dir().join("spool-gaps.png"));
}

#[test]
fn how_a_backlog_goes_down_is_measured_and_not_guessed() {
    let gateway = Tidegate::builder().start();
    let browser = Chromium::start();
    browser.open(&format!("http://{}/", gateway.http()));
    // Each row: seconds, state, waiting, backfill, confirmed.
    let follow = |rows: &str| -> Value {
        browser.run(&format!(
            "return import('/drain.js').then(({{ Drains }}) => {{
                 const drains = new Drains();
                 for (const [s, state, waiting, backfill, confirmed] of {rows})
                     drains.take([{{ name: 'cloud', state, waiting, confirmed, lanes: {{ backfill }} }}], s * 1000);
                 const of = drains.of('cloud');
                 return {{ ...of, leftS: String(of.leftS) }};
             }})"
        ))
    };
    let outage = "[0,'backoff',900,0,5],[2,'backoff',1000,0,5]";
    let found = follow(&format!("[{outage},[4,'connected',1000,900,5],[6,'connected',800,700,305]]"));
    assert_eq!(found["leftS"], "8", "what comes in meanwhile is in it: {found}");
    assert_eq!(found["most"], 1000);
    assert_eq!(found["behind"], json!({"most": 900, "sent": 200, "isWhole": true}));
    let found = follow(&format!("[{outage},[4,'connected',1000,900,5]]"));
    assert_eq!(found["leftS"], "NaN", "one look tells no rate: {found}");
    let found = follow("[[0,'connected',1000,900,5],[2,'connected',1200,900,205]]");
    assert_eq!(found["leftS"], "Infinity", "it gets more: {found}");
    assert_eq!(found["behind"]["isWhole"], false, "who comes late does not know the whole: {found}");
    let found = follow("[[0,'connected',1000,0,5],[6,'connected',1100,0,5],[12,'connected',1200,0,5]]");
    assert_eq!((&found["stillS"], &found["outPerS"]), (&json!(12), &json!(0)), "{found}");
    let found = follow("[[0,'backoff',5000,0,5],[2,'connected',4000,0,5],[4,'connected',90,0,4000]]");
    assert_eq!(found["most"], 90, "what is always on its way is no backlog: {found}");
    let found = follow("[[0,'connected',90,80,500],[2,'connected',80,70,3],[4,'connected',70,60,13]]");
    assert_eq!(found["leftS"], "14", "a gateway that starts again begins anew: {found}");
    let found = follow("[[0,'connected','<b>',null,-1],[2,'connected',{},'9',undefined]]");
    assert_eq!((&found["most"], &found["behind"]), (&json!(0), &Value::Null), "{found}");
}

#[test]
fn an_alarm_stands_at_the_top_while_it_lasts() {
    let limit = "address = 0x76\nchannels.temperature.alarm = { above = -40 }";
    let gateway = Tidegate::builder().tables(&DEVICES.replace("address = 0x76", limit)).start();
    let browser = Chromium::start();
    browser.open(&format!("http://{}/", gateway.http()));
    let alarm = "document.querySelector('[data-alarm=\"cellar/temperature/above\"]')";
    browser.wait_for(&format!("{alarm}.querySelector('a').hash === '#/cellar/temperature'"), 20 * SECOND);
    let said = text(&browser, &format!("{alarm}.textContent"));
    assert!(said.contains("above -40") && said.contains("since "), "{said}");
    for (name, viewport) in [("alarm", Viewport::DESKTOP), ("alarm-phone", Viewport::PHONE)] {
        browser.resize(viewport);
        browser.settle();
        browser.screenshot(&out_dir().join(format!("page-{name}.png")));
    }
    gateway.configure("", DEVICES);
    gateway.process().signal(libc::SIGHUP);
    browser.wait_for("!document.querySelector('.alarm, .alarms h2')", 20 * SECOND);
    assert_eq!(complaints(&browser), Vec::<String>::new());
}

#[test]
fn what_the_status_says_is_shown_as_text_whatever_it_says() {
    let broker = Mosquitto::start();
    let wire = FaultProxy::start(broker.address());
    let gateway = Tidegate::builder().tables(DEVICES).tables(&uplink(&wire)).start();
    let browser = Chromium::start();
    browser.resize(Viewport::DESKTOP);
    // The gateway's own answer, with every text that the card and the strip show replaced on its way to the page.
    browser.run_first(
        "const own = fetch, evil = '<img src=x onerror=\"window.broken=1\">\\u202e';
         window.fetch = async (path, ...more) => {
             const answer = await own(path, ...more);
             if (!String(path).endsWith('/status') || window.isWell) return answer;
             const told = await answer.json();
             told.alarms = [{ name: evil, text: evil, since: evil }, { name: 'constructor', text: null },
                 { name: 'cellar/temperature/above', text: 'too warm', since: '2026-01-02T03:04:05Z' }];
             Object.assign(told.spool, { durability: evil, capacity_s: evil, wear_budget_bytes: evil, gaps: [
                 { reason: evil, at: evil, from_seq: evil, to_seq: 7, count: evil },
                 { reason: '__proto__', at: null, from_seq: 1, to_seq: 9, count: 9 },
                 { reason: 'quota', at: '2026-01-02T03:04:05Z', from_seq: 10, to_seq: 19, count: 10 },
                 { reason: 'thinned', at: '2026-01-02T03:04:05Z', from_seq: 20, to_seq: 29, count: 10 }] });
             Object.assign(told.uplinks[0], { type: evil, target: evil, state: evil, detail: evil, delivery: evil,
                 lanes: { alarm: evil, live: evil, backfill: evil }, waiting: evil, monthly_budget_bytes: evil });
             return new Response(JSON.stringify(told));
         };",
    );
    browser.open(&format!("http://{}/", gateway.http()));
    browser.wait_for("document.querySelectorAll('.alarm').length === 3", 20 * SECOND);
    let alarm = "document.querySelector('[data-alarm=\"cellar/temperature/above\"]')";
    browser.wait_for(&format!("{alarm}.querySelector('a').hash === '#/cellar/temperature'"), 10 * SECOND);
    let said = text(&browser, &format!("{alarm}.textContent.trim()"));
    assert!(said.starts_with("Too warm"), "{said}");
    let gaps = text(&browser, "document.querySelector('[data-testid=gaps]').textContent");
    assert!(gaps.contains("At least 19 readings are missing"), "{gaps}");
    assert!(gaps.contains("10 readings lost: the size limit was reached while an uplink was away"), "{gaps}");
    assert!(gaps.contains("10 readings are kept as minute means"), "{gaps}");
    assert!(gaps.contains("places 10–19"), "{gaps}");
    assert!(browser.run("return window.broken").is_null(), "a text was executed");
    assert_eq!(browser.run("return document.querySelectorAll('img[src=x]').length"), 0);
    let page = text(&browser, "document.body.textContent");
    assert!(page.contains("<img") && !page.contains('\u{202e}'), "a text turns the page's direction");
    // What ends vanishes.
    browser.run("window.isWell = true");
    browser.wait_for("!document.querySelector('.alarm, .alarms h2')", 10 * SECOND);
    browser.wait_for("document.querySelector('.gaps-none')", 10 * SECOND);
    assert_eq!(complaints(&browser), Vec::<String>::new());
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
