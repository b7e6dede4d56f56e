//! `podmesh top` in a terminal.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::{PATIENCE, until, until_true};
use pty_process::blocking::{Pty, open};
use rustix::termios::{LocalModes, tcgetattr};

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

const COLUMNS: u16 = 80;
const LINES: u16 = 24;

/// A program in a terminal.
struct Terminal {
    child: Child,
    pty: Arc<Pty>,
    seen: Arc<Mutex<Seen>>,
}

struct Seen {
    screen: vt100::Parser,
    bytes: Vec<u8>,
}

impl Terminal {
    fn start(command: Command) -> Self {
        let (pty, pts) = open().unwrap();
        pty.resize(pty_process::Size::new(LINES, COLUMNS)).unwrap();
        let command = pty_process::blocking::Command::from(command);
        let child = command.env("TERM", "xterm-256color").spawn(pts).unwrap();
        let pty = Arc::new(pty);
        let screen = vt100::Parser::new(LINES.try_into().unwrap(), COLUMNS.try_into().unwrap(), 0);
        let seen = Arc::new(Mutex::new(Seen { screen, bytes: Vec::new() }));
        let (from, to) = (Arc::clone(&pty), Arc::clone(&seen));
        // It ends with an error when the program has ended.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = (&*from).read(&mut buffer) {
                let mut seen = to.lock().unwrap();
                seen.screen.process(&buffer[..read]);
                seen.bytes.extend_from_slice(&buffer[..read]);
            }
        });
        Self { child, pty, seen }
    }

    fn top(mesh: &Mesh) -> Self {
        let mut command = mesh.podmesh(&["top"]);
        command.env_remove("NO_COLOR");
        Self::start(command)
    }

    fn text(&self) -> String {
        self.seen.lock().unwrap().screen.screen().contents()
    }

    /// Returns everything that the program has sent to the terminal.
    fn bytes(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap().bytes).into_owned()
    }

    fn shows(&self, text: &str) {
        until_or("the screen shows", text, || self.text().contains(text), || self.text());
    }

    fn hides(&self, text: &str) {
        until_or(
            "the screen no longer shows",
            text,
            || !self.text().contains(text),
            || self.text(),
        );
    }

    fn press(&self, keys: &str) {
        (&*self.pty).write_all(keys.as_bytes()).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn is_as_before(&self) -> bool {
        let modes = tcgetattr(&*self.pty).unwrap().local_modes;
        let seen = self.seen.lock().unwrap();
        let screen = seen.screen.screen();
        modes.contains(LocalModes::ICANON | LocalModes::ECHO)
            && !screen.alternate_screen()
            && !screen.hide_cursor()
    }

    /// Waits for the end. The terminal must be as it was before.
    fn ends(&mut self) -> ExitStatus {
        let status = until("the program ends", || self.child.try_wait().unwrap());
        until_true("the terminal is as before", || self.is_as_before());
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Waits for a condition. If it does not come, shows what is there instead.
fn until_or(what: &str, text: &str, is: impl Fn() -> bool, instead: impl Fn() -> String) {
    let start = std::time::Instant::now();
    while !is() {
        assert!(start.elapsed() < PATIENCE, "{what} {text:?}:\n{}", instead());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_job_appears_its_log_is_shown_and_it_is_cancelled_after_a_question() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let mut top = Terminal::top(&mesh);
    top.shows("1 of 1 alive");
    assert!(!top.is_as_before());
    top.press("2");
    top.shows("there are no jobs");

    // It appears without a key, and although the user has asked for nothing.
    let script = r"printf 'hello \033]0;title\007\033[31mred\033[0m\n'; exec sleep 600";
    let job = mesh.submit(&["--name", "sleeper", "--", "sh", "-c", script]);
    top.shows("sleeper");
    top.shows("running");

    top.press("l");
    top.shows(r"hello \u{1b}]0;title\u{7}red");
    assert!(!top.bytes().contains("\u{1b}]0;"));
    top.press("\u{1b}");
    top.hides("hello");

    top.press("x");
    top.shows(&format!("The same as: podmesh cancel {job}"));
    top.press("n");
    top.shows("nothing was changed");
    assert_eq!(mesh.json(&["job", &job.to_string()])["state"], "running");
    top.press("x");
    top.shows("Sure?");
    top.press("y");
    mesh.wait_for_job(job, "cancelled");
    top.shows("cancelled");

    // Why a job waits is shown below the table.
    mesh.submit(&["--name", "waiter", "--require", "no=where", "--", "true"]);
    top.shows("waits: ");

    assert!(top.bytes().contains("\u{1b}[38;5;"));
    top.press("q");
    assert_eq!(top.ends().code(), Some(0));
}

#[test]
fn it_survives_a_restart_of_the_manager_and_gives_the_terminal_back_at_a_signal() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let mut command = mesh.podmesh(&["top"]);
    command.env("NO_COLOR", "1");
    let mut top = Terminal::start(command);
    top.shows("1 of 1 alive");
    mesh.kill_manager();
    top.shows("manager away");
    mesh.start_manager();
    mesh.wait_for_node("a", "alive");
    top.hides("manager away");

    // Events of after the restart arrive.
    top.press("D");
    top.shows("podmesh nodes drain a");
    top.press("y");
    top.shows("a: drained");
    mesh.ok(&["nodes", "uncordon", "a"]);
    top.shows("open");

    top.signal(Signal::SIGTERM);
    assert_eq!(top.ends().code(), Some(130));
    let bytes = top.bytes();
    for color in ["\u{1b}[38;", "\u{1b}[48;", "\u{1b}[31m", "\u{1b}[32m"] {
        assert!(!bytes.contains(color), "{bytes:?}");
    }
}

#[test]
fn the_replicas_of_a_service_are_shown_with_their_logs_and_scaled() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    let path = mesh.folder().join("web.toml");
    let script = "echo replica $PODMESH_REPLICA runs; exec sleep 600";
    let file = format!(
        "name = \"web\"\nreplicas = 2\ncpus = 0.1\ncommand = [\"sh\", \"-c\", {script:?}]\n"
    );
    std::fs::write(&path, file).unwrap();
    mesh.ok(&["service", "apply", "-f", path.to_str().unwrap(), "--wait"]);
    let mut top = Terminal::top(&mesh);
    top.press("3");
    top.shows("2/2");
    top.press("l");
    top.shows("web.1 | replica 1 runs");
    top.shows("web.2 | replica 2 runs");
    top.press("\u{1b}");
    top.hides("replica 1 runs");
    top.press("\r");
    top.shows("web.2");
    top.press("s");
    top.shows("How many replicas of web? 2_");
    top.press("\u{7f}3");
    top.shows("podmesh service scale web 3");
    top.press("\r");
    top.shows("web.3");
    top.shows("3 of 3 healthy");
    top.press("\u{3}");
    assert_eq!(top.ends().code(), Some(0));
}

#[test]
fn schedules_workflows_queues_and_volumes_are_shown_and_paused() {
    let mesh = Mesh::with_agents(PODMESH, &["a"]);
    mesh.ok(&["schedule", "add", "yearly", "--cron", "0 3 1 1 *", "--", "true"]);
    mesh.ok(&["queue", "set", "night", "--weight", "3"]);
    mesh.ok(&["queue", "pause", "night"]);
    let held = mesh.submit(&["--queue", "night", "--", "true"]);
    let path = mesh.folder().join("flow.toml");
    let file = "name = \"etl\"\n[[job]]\nname = \"bad\"\ncommand = [\"false\"]\n\
                [[job]]\nname = \"next\"\ncommand = [\"true\"]\nafter = \"bad\"\n";
    std::fs::write(&path, file).unwrap();
    mesh.ok(&["workflow", "submit", "-f", path.to_str().unwrap()]);

    let mut command = mesh.podmesh(&["top"]);
    command.env("NO_COLOR", "1");
    let mut top = Terminal::start(command);
    top.press("6");
    top.shows("0 3 1 1 *");
    top.shows("idle");
    top.press("p");
    top.shows("podmesh schedule pause yearly");
    top.press("n");
    top.shows("nothing was changed");
    assert_eq!(mesh.json(&["schedule", "show", "yearly"])["paused"], false);
    top.press("py");
    top.shows("schedule yearly: paused");
    assert_eq!(mesh.json(&["schedule", "show", "yearly"])["paused"], true);
    // What others do is shown, too.
    mesh.ok(&["schedule", "resume", "yearly"]);
    top.shows("idle");
    top.press("\r");
    top.shows("it has not run yet");
    mesh.ok(&["schedule", "run", "yearly"]);
    top.shows("ran");
    top.press("d");
    top.shows("catch-up");

    top.press("7");
    top.shows("etl");
    top.press("\r");
    top.shows("blocked");
    top.press("j");
    top.shows("waits: upstream");

    top.press("8");
    top.shows("night");
    top.press("j");
    top.shows("1 task waits until the queue is resumed");
    top.press("d");
    top.shows("last changed by");
    top.press("\u{1b}");
    top.hides("last changed by");
    top.press("p");
    top.shows("podmesh queue resume night");
    top.press("y");
    mesh.wait_for_job(held, "succeeded");
    top.hides("paused");

    top.press("5");
    top.shows("there are no volumes");
    top.press("q");
    assert_eq!(top.ends().code(), Some(0));
}

#[test]
fn without_a_terminal_it_says_what_to_use() {
    let mesh = Mesh::new(PODMESH);
    let output = mesh.output(&["top"]);
    assert_eq!(output.status.code(), Some(125));
    let error = String::from_utf8(output.stderr).unwrap();
    for verb in ["podmesh nodes", "podmesh jobs", "podmesh services"] {
        assert!(error.contains(verb), "{error}");
    }
}
