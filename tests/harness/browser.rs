//! Chromium without a window, driven through its `WebDriver` (the W3C standard, and the Chrome developer tools' commands that
//! chromedriver passes on).

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Port, Process, Scratch, request, tool};

/// A browser with a fresh profile.
#[derive(Debug)]
pub struct Chromium {
    address: SocketAddr,
    session: String,
    _driver: Process,
    _port: Port,
    _scratch: Scratch,
}

/// What the page believes its screen to be. Emulated, because a window narrower than 500 pixels cannot be had.
#[derive(Debug, Clone, Copy)]
pub struct Viewport {
    /// CSS pixels.
    pub width: u32,
    /// CSS pixels.
    pub height: u32,
    /// Device pixels per CSS pixel.
    pub scale: f64,
    /// With touch, and the `viewport` meta element obeyed.
    pub is_phone: bool,
}

impl Viewport {
    /// A desktop's window.
    pub const DESKTOP: Self = Self { width: 1280, height: 900, scale: 1.0, is_phone: false };
    /// A phone held upright.
    pub const PHONE: Self = Self { width: 390, height: 844, scale: 2.0, is_phone: true };
}

impl Chromium {
    /// Starts chromedriver and a browser.
    pub fn start() -> Self {
        let scratch = Scratch::new("chromium");
        let port = Port::reserve();
        let mut command = Command::new(tool("chromedriver"));
        command.arg(format!("--port={port}")).env("HOME", scratch.dir("home"));
        let driver = Process::start("chromedriver", &scratch, command);
        driver.wait_for_line("started successfully", Duration::from_secs(30));
        let profile = format!("--user-data-dir={}", scratch.dir("profile").display());
        let options = json!({"binary": tool("chromium"), "args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--hide-scrollbars", profile
        ]});
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}
        }}});
        let mut browser = Self {
            address: port.address(),
            session: String::new(),
            _driver: driver,
            _port: port,
            _scratch: scratch,
        };
        let opened = browser.call("POST", "/session", &wanted);
        opened["sessionId"].as_str().expect("a session has an id").clone_into(&mut browser.session);
        browser.command("timeouts", &json!({"script": 120_000, "pageLoad": 60_000}));
        browser
    }

    /// Loads a page and waits for its `load` event.
    pub fn open(&self, url: &str) {
        self.command("url", &json!({ "url": url }));
    }

    /// Runs the body of a function in the page and returns what it returns.
    pub fn run(&self, body: &str) -> Value {
        self.command("execute/sync", &json!({"script": body, "args": []}))
    }

    /// Waits until a JavaScript expression becomes truthy, and returns it.
    ///
    /// # Panics
    /// After `limit`.
    pub fn wait_for(&self, expression: &str, limit: Duration) -> Value {
        let body = format!(
            "const done = arguments[arguments.length - 1], end = Date.now() + {};
             (function look() {{
                 let found; try {{ found = ({expression}); }} catch {{}}
                 if (found) done(found); else if (Date.now() > end) done(null); else setTimeout(look, 20);
             }})();",
            limit.as_millis()
        );
        let found = self.command("execute/async", &json!({"script": body, "args": []}));
        assert!(!found.is_null(), "after {limit:?} the page still says no to `{expression}`");
        found
    }

    /// Emulates a screen.
    pub fn resize(&self, viewport: Viewport) {
        let Viewport { width, height, scale, is_phone } = viewport;
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": is_phone});
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// Makes the page believe that the user prefers dark (or light) colours.
    pub fn prefer_dark(&self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.devtools("Emulation.setEmulatedMedia", &feature);
    }

    /// Writes what is to be seen to a PNG file.
    pub fn screenshot(&self, path: &Path) {
        let shot = self.call("GET", &format!("/session/{}/screenshot", self.session), &Value::Null);
        let png = base64(shot.as_str().expect("a screenshot is text"));
        assert!(png.starts_with(b"\x89PNG"), "a screenshot is a PNG");
        std::fs::write(path, png).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    }

    /// Writes one element with a little of its ground around it to a PNG file, also what a scroll would bring.
    ///
    /// # Panics
    /// When there is no such element, or it does not stay where it is.
    pub fn screenshot_of(&self, selector: &str, path: &Path) {
        let place = || {
            self.run(&format!(
                "const box = document.querySelector({selector:?}).getBoundingClientRect(), edge = 12;
                 return {{ x: Math.max(0, box.x + scrollX - edge), y: Math.max(0, box.y + scrollY - edge),
                           width: box.width + 2 * edge, height: box.height + 2 * edge, scale: 1 }}"
            ))
        };
        // What came in meanwhile may have moved it: then the picture shows something else.
        let shot = (0..20).find_map(|_| {
            self.settle();
            let before = place();
            let parameters = json!({"format": "png", "clip": &before, "captureBeyondViewport": true});
            let shot = self.devtools("Page.captureScreenshot", &parameters);
            (place() == before).then_some(shot)
        });
        let shot = shot.unwrap_or_else(|| panic!("{selector} does not stay where it is"));
        let png = base64(shot["data"].as_str().expect("a screenshot is text"));
        assert!(png.starts_with(b"\x89PNG"), "a screenshot is a PNG");
        std::fs::write(path, png).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
    }

    /// Waits until what changes gradually has changed and is drawn.
    pub fn settle(&self) {
        self.run(
            "const frame = () => new Promise(requestAnimationFrame);
             const gradual = document.getAnimations().filter(one => one instanceof CSSTransition);
             return frame().then(() => Promise.allSettled(gradual.map(one => one.finished))).then(frame).then(() => 1)",
        );
    }

    /// Runs a script in every page opened from now on, before the page's own.
    pub fn run_first(&self, script: &str) {
        self.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": script }));
    }

    /// What the console has said since it was asked last, level first: warnings and worse come from the browser too.
    pub fn console(&self) -> Vec<String> {
        let entries = self.command("se/log", &json!({"type": "browser"}));
        let line = |entry: &Value| {
            format!("{} {}", entry["level"].as_str().unwrap_or("?"), entry["message"].as_str().unwrap_or("?"))
        };
        entries.as_array().map(|list| list.iter().map(line).collect()).unwrap_or_default()
    }

    /// A command of the Chrome developer tools' protocol.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.command("goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    fn command(&self, name: &str, body: &Value) -> Value {
        self.call("POST", &format!("/session/{}/{name}", self.session), body)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let reply =
            request(self.address, method, path, &[("Content-Type", "application/json")], text.as_bytes())
                .unwrap_or_else(|e| panic!("chromedriver does not answer {method} {path}: {e}"));
        assert_eq!(reply.status, 200, "chromedriver on {method} {path}: {}", reply.text());
        reply.json()["value"].take()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // A browser asked to close takes its helpers along; the driver's process group is killed after this anyway.
        let path = format!("/session/{}", self.session);
        let _ = request(self.address, "DELETE", &path, &[], b"");
    }
}

fn base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut held, mut bits) = (0u32, 0);
    for symbol in text.bytes() {
        let value = match symbol {
            b'A'..=b'Z' => symbol - b'A',
            b'a'..=b'z' => symbol - b'a' + 26,
            b'0'..=b'9' => symbol - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        held = held << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_decodes_every_length_of_tail() {
        for (text, plain) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob")]
        {
            assert_eq!(super::base64(text), plain.as_bytes());
        }
    }
}
