//! The console in a real browser: every page, live, with questions before what changes something.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod console {
    mod access;
    mod attention;
    mod axe;
    mod keys;
    mod live;
    mod log;
    mod own;
    mod pages;
    mod questions;
}

use std::fs;

use podmesh_tests::browser::Browser;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::ports::free_port;
use podmesh_tests::wait::until_true;
use serde_json::json;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// A mesh, and a browser that shows its console.
struct Console {
    // Before the mesh, so that the browser has ended when the manager does.
    browser: Browser,
    mesh: Mesh,
    origin: String,
}

impl Console {
    /// Starts a mesh and a browser that shows the page where one signs in. Returns `None` if there
    /// is no browser.
    fn start(agents: &[&str]) -> Option<Self> {
        let browser = Browser::start()?;
        // The address stays when the manager starts again.
        let address = format!("127.0.0.1:{}", free_port());
        let mut mesh = Mesh::new(PODMESH).manager_flags(&["--http", &address]);
        mesh.start_manager();
        for name in agents {
            let dir = mesh.agent_dir(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("agent.toml"), "resources = { license = 3 }\n").unwrap();
            mesh.start_agent(name, &["--label", "disk=fast"]);
        }
        let origin = format!("http://{address}");
        browser.resize(1280, 900);
        browser.open(&origin);
        Some(Self { browser, mesh, origin })
    }

    /// The same, signed in with a token of this role, at the overview.
    fn signed_in(agents: &[&str], role: &str) -> Option<Self> {
        let console = Self::start(agents)?;
        console.sign_in(&console.token(role));
        Some(console)
    }

    fn token(&self, role: &str) -> String {
        self.mesh.ok(&["token", "create", "--api", "--role", role]).trim().to_owned()
    }

    fn sign_in(&self, token: &str) {
        self.browser.wait("//input[@name='token']").type_text(token);
        self.browser.click("//button[.='Sign in']");
        self.wait_for_status("live");
    }

    /// Waits until the stream of events is `live`, or `interrupted`.
    fn wait_for_status(&self, word: &str) {
        self.browser.wait(&format!("//*[@id='status'][contains(., '{word}')]"));
    }

    /// Goes to a page such as `jobs/1`, without loading anew, and waits until its values are there.
    fn go(&self, page: &str) {
        self.browser.script("location.hash = arguments[0];", &json!([format!("#/{page}")]));
        self.ready();
    }

    /// Waits until the values of the page are there.
    fn ready(&self) {
        let loaded = "document.querySelector('main h1') !== null
            && !document.body.innerText.includes('Loading …')
            && document.title !== 'podmesh'";
        until_true("the page is loaded", || self.browser.value(loaded) == true);
    }

    /// Waits until the row of a table with this first cell contains a text.
    fn wait_for_row(&self, first: &str, text: &str) {
        self.browser.wait(&row(first, text));
    }

    /// Runs a job of a shell script.
    fn run(&self, name: &str, script: &str) -> u64 {
        self.mesh.submit(&["--name", name, "--cpus", "0.01", "--", "sh", "-c", script])
    }

    /// Applies a service whose replicas wait.
    fn apply(&self, name: &str, replicas: u32, word: &str) {
        let file = format!(
            "name = \"{name}\"\ncommand = [\"sh\", \"-c\", \"exec sleep 600\"]\nreplicas = {replicas}\ncpus = 0.01\n\
             [env]\nWORD = \"{word}\"\n"
        );
        let path = self.mesh.folder().join("service.toml");
        fs::write(&path, file).unwrap();
        self.mesh.ok(&[
            "service",
            "apply",
            "-f",
            path.to_str().unwrap(),
            "--wait",
            "--timeout",
            "50s",
        ]);
    }

    /// Fails if the browser has logged an error, such as of a script or of the policy, or the page
    /// has asked another host.
    fn check_quiet(&self) {
        let log = self.browser.log().into_iter();
        let bad: Vec<_> = log.filter(|line| line.level != "DEBUG").collect();
        assert!(bad.is_empty(), "{bad:#?}");
        self.changes();
    }

    /// Returns the requests since the last call that are not only reads, such as
    /// `POST /api/v1/jobs/1/cancel`. Fails if one is for another host.
    fn changes(&self) -> Vec<String> {
        let mut changes = Vec::new();
        for request in self.browser.requests() {
            let (method, address) = request.split_once(' ').unwrap();
            let path = address.strip_prefix(&self.origin).filter(|path| path.starts_with('/'));
            let path = path.unwrap_or_else(|| panic!("{request}: not for {}", self.origin));
            if method != "GET" {
                changes.push(format!("{method} {path}"));
            }
        }
        changes
    }
}

/// Returns the XPath of a row of a table.
fn row(first: &str, text: &str) -> String {
    format!("//tr[td[1][normalize-space(.)='{first}']][contains(., '{text}')]")
}
