//! A real browser: Chromium without a window, driven by its own driver (WebDriver).
//!
//! WebDriver is JSON over HTTP, so the client of the API speaks it. The crates for it do not fit here:
//! `thirtyfour` changes how `serde_json` orders the keys of objects, also in the program under
//! test, and `fantoccini` needs a crate whose licence is not permitted.

use std::fmt::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, killpg};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api::{Api, Place};
use crate::ports::free_port;
use crate::process::Daemon;
use crate::wait::{PATIENCE, until, until_true};

const CHROMIUM: &str = "chromium";
const DRIVER: &str = "chromedriver";
/// The key of an element in JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

const FLAGS: [&str; 10] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    // A page of 400 pixels is 400 pixels wide.
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    // Only this machine can be reached.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];

/// What the browser says of requests that it ends because an interface came or went, such as that of a
/// container.
const NETWORK_CHANGED: &str = "ERR_NETWORK_CHANGED";

/// Returns whether a browser is required: `PODMESH_TEST_CHROMIUM=required`.
pub fn is_required() -> bool {
    std::env::var("PODMESH_TEST_CHROMIUM").is_ok_and(|value| value == "required")
}

/// Says that a test is skipped, or fails it if a browser is required.
pub fn skip(what: &str, why: &str) {
    assert!(!is_required(), "PODMESH_TEST_CHROMIUM=required, but: {why}");
    eprintln!("SKIPPED: {what}: {why}");
}

/// A line of the browser's log.
#[derive(Debug)]
pub struct LogLine {
    /// `SEVERE`, `WARNING`, `INFO` or `DEBUG`.
    pub level: String,
    /// What it says.
    pub message: String,
}

/// A browser with one page. Dropping it ends the browser and its driver.
pub struct Browser {
    driver: Daemon,
    api: Api,
    /// The path of the session.
    session: String,
    // After the driver, so that nothing writes to it when it is removed.
    folder: TempDir,
}

/// An element of a page.
pub struct Element<'a> {
    browser: &'a Browser,
    id: String,
}

fn has(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl Browser {
    /// Starts a browser. Prints a message and returns `None` if there is none; panics instead with
    /// `PODMESH_TEST_CHROMIUM=required`.
    pub fn start() -> Option<Self> {
        if let Some(missing) = [CHROMIUM, DRIVER].into_iter().find(|program| !has(program)) {
            skip(
                "tests in a browser",
                &format!(
                    "`{missing}` cannot be run (Debian: packages chromium and chromium-driver)"
                ),
            );
            return None;
        }
        let folder = tempfile::Builder::new().prefix("podmesh-browser-").tempdir().unwrap();
        let port = free_port();
        let mut command = Command::new(DRIVER);
        command.arg(format!("--port={port}")).process_group(0);
        // Everything that they leave behind is in the folder.
        command.env("HOME", folder.path()).env("TMPDIR", folder.path());
        let driver = Daemon::start(command, &folder.path().join("driver.txt"));
        let api = Api::new(Place::Address(([127, 0, 0, 1], port).into()));
        let session = String::new();
        let mut browser = Self { driver, api, session, folder };
        until_true("the driver answers", || {
            browser.api.send("GET", "/status", None).is_ok_and(|reply| reply.status == 200)
        });
        let profile =
            format!("--user-data-dir={}", browser.folder.path().join("profile").display());
        let mut flags: Vec<&str> = FLAGS.to_vec();
        flags.push(&profile);
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {
                "args": flags,
                "perfLoggingPrefs": { "enableNetwork": true, "enablePage": false },
            },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        } } });
        let started = browser.call("POST", "/session", Some(&wanted)).unwrap();
        browser.session = format!("/session/{}", started["sessionId"].as_str().unwrap());
        Some(browser)
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{method} {path}: {error}");
        let mut reply = self.api.send(method, path, body).map_err(|error| failed(&error))?;
        let text = reply.body().map_err(|error| failed(&error))?;
        let mut parsed: Value = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
        let value = parsed["value"].take();
        if reply.status == 200 {
            Ok(value)
        } else {
            Err(format!("{}: {}", value["error"], value["message"]))
        }
    }

    fn ask(&self, path: &str, body: &Value) -> Result<Value, String> {
        self.call("POST", &format!("{}{path}", self.session), Some(body))
    }

    fn tell(&self, path: &str, body: &Value) -> Value {
        self.ask(path, body).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Opens a page, and waits until it is loaded.
    pub fn open(&self, address: &str) {
        let address = json!({ "url": address });
        until("the page is opened", || match self.ask("/url", &address) {
            Err(error) if error.contains(NETWORK_CHANGED) => None,
            opened => Some(opened.unwrap()),
        });
    }

    /// Loads the page anew.
    pub fn reload(&self) {
        self.tell("/refresh", &json!({}));
    }

    /// Runs the body of a function in the page, and returns what it returns. `arguments[0]` … are
    /// the arguments.
    pub fn script(&self, body: &str, arguments: &Value) -> Value {
        self.tell("/execute/sync", &json!({ "script": body, "args": arguments }))
    }

    /// The same without arguments.
    pub fn value(&self, expression: &str) -> Value {
        self.script(&format!("return {expression};"), &json!([]))
    }

    /// Runs a command of the browser's own protocol.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.tell("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// Sets the size of the page, in pixels.
    pub fn resize(&self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Sets the scheme that the user prefers: `light` or `dark`.
    pub fn prefer(&self, scheme: &str) {
        let feature = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": feature }));
    }

    /// Writes a picture of the whole page.
    pub fn picture(&self, path: &Path) {
        let shot = json!({ "format": "png", "captureBeyondViewport": true });
        let shot = self.devtools("Page.captureScreenshot", &shot);
        let bytes = decode_base64(shot["data"].as_str().unwrap());
        std::fs::write(path, bytes).unwrap();
    }

    /// Returns the element that an XPath names first.
    pub fn find(&self, path: &str) -> Option<Element<'_>> {
        let found = self.ask("/element", &json!({ "using": "xpath", "value": path })).ok()?;
        Some(Element { browser: self, id: found[ELEMENT].as_str()?.to_owned() })
    }

    /// Returns the text of the page, and what the browser logged.
    fn told(&self) -> String {
        format!("{}\n{:#?}", self.text(), self.log())
    }

    /// Waits for an element.
    pub fn wait(&self, path: &str) -> Element<'_> {
        let start = Instant::now();
        loop {
            if let Some(element) = self.find(path) {
                return element;
            }
            assert!(start.elapsed() < PATIENCE, "there is no {path} in:\n{}", self.told());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Waits until a click on an element has been possible.
    pub fn click(&self, path: &str) {
        // The page may replace an element at any moment.
        until(&format!("a click on {path}"), || self.wait(path).click().ok());
    }

    /// Returns the text of the page, as it is seen.
    pub fn text(&self) -> String {
        self.value("document.body.innerText").as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the page has this text.
    pub fn wait_for_text(&self, text: &str) {
        let start = Instant::now();
        while !self.text().contains(text) {
            assert!(start.elapsed() < PATIENCE, "there is no {text:?} in:\n{}", self.told());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Presses a key where the focus is.
    pub fn press(&self, key: &str) {
        let steps = json!([{ "type": "keyDown", "value": key }, { "type": "keyUp", "value": key }]);
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": steps });
        self.tell("/actions", &json!({ "actions": [keyboard] }));
    }

    /// Returns what the browser has logged since the last call, such as errors of scripts and
    /// violations of the policy, but not that it began requests anew because of this machine.
    pub fn log(&self) -> Vec<LogLine> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let line =
            |line: &Value| LogLine { level: text(&line["level"]), message: text(&line["message"]) };
        let lines = self.log_of("browser");
        lines.iter().map(line).filter(|line| !line.message.contains(NETWORK_CHANGED)).collect()
    }

    /// Returns the requests of the page since the last call, such as `GET http://…`.
    pub fn requests(&self) -> Vec<String> {
        let request = |line: &Value| {
            let line: Value = serde_json::from_str(line["message"].as_str()?).ok()?;
            let message = &line["message"];
            let request = &message["params"]["request"];
            let text = format!("{} {}", request["method"].as_str()?, request["url"].as_str()?);
            // The browser's own first page asks as well.
            let ours = message["params"]["documentURL"].as_str()?.starts_with("http");
            (ours && message["method"] == "Network.requestWillBeSent").then_some(text)
        };
        self.log_of("performance").iter().filter_map(request).collect()
    }

    fn log_of(&self, kind: &str) -> Vec<Value> {
        let lines = self.tell("/se/log", &json!({ "type": kind }));
        lines.as_array().cloned().unwrap_or_default()
    }
}

impl Element<'_> {
    fn part(&self, what: &str) -> String {
        format!("/element/{}/{what}", self.id)
    }

    /// Clicks on it, as a user does.
    ///
    /// # Errors
    /// If it cannot be clicked on now.
    pub fn click(&self) -> Result<(), String> {
        self.browser.ask(&self.part("click"), &json!({})).map(|_| ())
    }

    /// Types text into it.
    pub fn type_text(&self, text: &str) {
        self.browser.tell(&self.part("value"), &json!({ "text": text }));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A failed request must not panic again.
            let text = self.ask("/execute/sync", &json!({ "script": "return location.hash + '\\n' + document.body.innerText", "args": [] }));
            let log = self.ask("/se/log", &json!({ "type": "browser" }));
            let mut said = String::new();
            _ = writeln!(
                said,
                "--- the page\n{}",
                text.unwrap_or_default().as_str().unwrap_or_default()
            );
            _ = writeln!(said, "--- the browser's log\n{}", log.unwrap_or_default());
            eprintln!("{said}");
        }
        _ = self.call("DELETE", &self.session, None);
        // The driver, and what is left of the browser if the driver could not end it.
        _ = killpg(self.driver.pid(), Signal::SIGKILL);
    }
}

fn decode_base64(text: &str) -> Vec<u8> {
    data_encoding::BASE64.decode(text.as_bytes()).unwrap()
}
