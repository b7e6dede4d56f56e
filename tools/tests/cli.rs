//! The program without a manager: usage, help, and errors.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// The program with its own data folder, and without the settings of this process.
fn podmesh(home: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podmesh"));
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PODMESH_") {
            command.env_remove(name);
        }
    }
    command.env("PODMESH_DATA_DIR", home.path()).stdin(Stdio::null());
    command
}

fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    let home = tempfile::tempdir().unwrap();
    podmesh(&home).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Asserts the exit code, that standard output is empty, and parts of standard error.
fn refused(output: &Output, code: i32, says: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(output.stdout.is_empty(), "{:?}", text(&output.stdout));
    for part in says {
        assert!(stderr.contains(part), "{stderr:?} does not say {part:?}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(stderr.len() < 2_000, "{} bytes of error", stderr.len());
}

/// An address where nobody listens: the port belongs to root, for a service that is never
/// installed.
const NOBODY: &str = "127.0.0.1:1";

const VERBS: [&str; 24] = [
    "backup",
    "check",
    "demo",
    "dev",
    "manager",
    "agent",
    "run",
    "submit",
    "jobs",
    "job",
    "tasks",
    "logs",
    "cancel",
    "services",
    "service",
    "nodes",
    "users",
    "token",
    "key",
    "login",
    "logout",
    "doctor",
    "events",
    "completions",
];

#[test]
fn every_verb_has_help() {
    let all = run(["--help"]);
    assert!(all.status.success());
    for verb in VERBS {
        assert!(text(&all.stdout).contains(&format!("\n  {verb} ")), "{verb}");
        let output = run([verb, "--help"]);
        let help = text(&output.stdout);
        assert!(output.status.success() && help.contains("Usage: podmesh "), "{verb}: {help}");
        assert!(output.stderr.is_empty());
    }
    assert!(text(&run(["--version"]).stdout).starts_with("podmesh "));
}

#[test]
fn every_verb_of_a_service_has_help_with_an_example() {
    for verb in
        ["show", "apply", "scale", "restart", "rollback", "stop", "start", "remove", "history"]
    {
        let help = text(&run(["service", verb, "--help"]).stdout);
        assert!(help.contains("Usage: podmesh service ") && help.contains("Example"), "{verb}");
    }
    assert!(text(&run(["nodes", "drain", "--help"]).stdout).contains("Example"));
    assert!(text(&run(["logs", "--help"]).stdout).contains("podmesh logs -f web"));
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(["completions", shell]);
        let script = text(&output.stdout);
        assert!(output.status.success() && script.contains("podmesh"), "{shell}");
        assert!(VERBS.iter().all(|verb| script.contains(verb)), "{shell}");
        for word in ["rollback", "endpoints", "uncordon", "dry-run"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    refused(&run(["completions", "csh"]), 2, &["csh", "possible values"]);
}

#[test]
fn an_invalid_command_line_is_a_usage_error() {
    refused(&run::<&str>([]), 2, &["Usage: podmesh"]);
    refused(&run(["submt"]), 2, &["submt", "'submit'"]);
    refused(&run(["jobs", "--actve"]), 2, &["--actve", "'--active'"]);
    refused(&run(["run"]), 2, &["no command to run", "hint:", "--"]);
    refused(&run(["run", "--", ""]), 2, &["no command to run"]);
    refused(&run(["run", "echo"]), 2, &["unexpected argument 'echo'", "--"]);
    refused(&run(["job", "x"]), 2, &["job number such as 42"]);
    refused(&run(["job", "0"]), 2, &["job number"]);
    refused(&run(["logs", "1.x"]), 2, &["42.7#2"]);
    refused(&run(["cancel"]), 2, &["<JOBS>"]);
    refused(&run(["tasks", "1", "--state", "odd"]), 2, &["queued", "succeeded"]);
    refused(&run(["submit", "--wait", "--follow", "--", "true"]), 2, &["cannot be used with"]);
    refused(&run(["--manager", "a b", "jobs"]), 2, &["host:port"]);
    refused(&run(["--manager", "a:0", "jobs"]), 2, &["1 to 65535"]);
    refused(&run(["--output", "yaml", "jobs"]), 2, &["table, json"]);
    refused(&run(["run", "-o", "json", "--", "true"]), 2, &["`run` has no JSON output", "hint:"]);
    refused(&run(["manager", "--listen", "here"]), 2, &["here"]);
    refused(&run(["backup"]), 2, &["<FILE>"]);
    refused(&run(["backup", "x", "-o", "json"]), 2, &["has no JSON output", "hint:"]);
    refused(&run(["token", "make"]), 2, &["make", "--help"]);
    refused(&run(["token", "create", "--role", "root"]), 2, &["agent, viewer, operator"]);
    refused(&run(["token", "create", "--ttl", "soon"]), 2, &["1h"]);
    refused(&run(["token", "create", "--uses", "0"]), 2, &["1..=10000"]);
    refused(&run(["token", "revoke", "x"]), 2, &["<NUMBER>"]);
    refused(&run(["nodes", "revoke"]), 2, &["<NODE>"]);
    refused(&run(["nodes", "drain"]), 2, &["<NODE>"]);
    refused(&run(["nodes", "drain", "a", "--timeout", "1s"]), 2, &["--wait"]);
    refused(&run(["service"]), 2, &["<NAME>"]);
    refused(&run(["service", "web", "history", "web"]), 2, &["before the command", "hint:"]);
    refused(&run(["service", "a b"]), 2, &["' '"]);
    refused(&run(["service", "apply"]), 2, &["--file"]);
    refused(&run(["service", "apply", "-f", "x", "--dry-run", "--wait"]), 2, &["cannot be used"]);
    refused(&run(["service", "scale", "web", "-1"]), 2, &["REPLICAS_MAX"]);
    refused(&run(["service", "scale", "web", "1001"]), 2, &["REPLICAS_MAX"]);
    refused(&run(["service", "rollback", "web", "--to", "0"]), 2, &["1.."]);
    refused(&run(["service", "stop", "web", "--timeout", "1s"]), 2, &["--wait"]);
    refused(&run(["service", "web", "--format", "nginx"]), 2, &["prometheus-sd, haproxy"]);
    refused(
        &run(["service", "web", "--format", "haproxy", "-o", "json"]),
        2,
        &["has no JSON output", "hint:"],
    );
    refused(&run(["users", "revoke", "a b"]), 2, &["' '"]);
    refused(&run(["users", "revoke", "a", "-o", "json"]), 2, &["has no JSON output", "hint:"]);
    refused(&run(["login", "SWMTKN-1"]), 2, &["token", "hint:"]);
    refused(&run(["dev", "--agents", "101"]), 2, &["101"]);
}

#[test]
fn backup_and_check_fail_without_a_database() {
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("copy");
    let output = podmesh(&home).arg("backup").arg(&target).output().unwrap();
    refused(&output, 125, &["no backup was made", "podmesh.db", "--data-dir"]);
    refused(&podmesh(&home).args(["check"]).output().unwrap(), 125, &["podmesh.db", "--data-dir"]);
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0, "nothing was created");
}

#[test]
fn invalid_values_of_a_job_are_usage_errors() {
    for (option, value, says) in [
        ("--array", "0", "contains no task"),
        ("--array", "10000001", "ARRAY_TASKS_MAX"),
        ("--cpus", "0", "above 0"),
        ("--cpus", "-1", "above 0"),
        ("--cpus", "NaN", "above 0"),
        ("--memory", "12 parsecs", "512MiB"),
        ("--name", "a/b", "'/'"),
        ("--name", "a\nb", "not allowed"),
        ("--env", "NOT_SET_HERE_AT_ALL", "no `=`"),
        ("--require", "gpu", "no `=`"),
        ("--timeout", "soon", "90s"),
        ("--file", "/no/such.toml", "No such file"),
    ] {
        refused(&run(["submit", option, value, "--", "true"]), 2, &[says]);
    }
    refused(&run(["run", "--name", &"x".repeat(10_000), "--", "true"]), 2, &["NAME_BYTES_MAX"]);
}

#[test]
fn control_characters_of_an_argument_do_not_reach_the_terminal() {
    let output = run(["run", "--name", "\u{1b}]0;title\u{7}", "--", "true"]);
    refused(&output, 2, &["not allowed"]);
    assert!(!output.stderr.contains(&0x1b), "{:?}", text(&output.stderr));
}

#[test]
fn arguments_that_are_not_utf8_are_usage_errors() {
    let bytes = || OsString::from_vec(vec![b'a', 0xff, 0xfe]);
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    for mut arguments in [
        words(&["run", "--"]),
        words(&["run", "--", "echo"]),
        words(&["run", "--name"]),
        words(&["run", "--env"]),
        words(&["jobs", "--manager"]),
        words(&["job"]),
        words(&["logs"]),
    ] {
        arguments.push(bytes());
        refused(&run(&arguments), 2, &["UTF-8"]);
    }
    // A path may contain any bytes.
    let arguments = [words(&["submit", "--file"]), vec![bytes()]].concat();
    refused(&run(&arguments), 2, &["cannot be read", "No such file"]);
}

/// Asserts that the program does not read more than a little of a file of 100 MB.
fn bounded(arguments: &[&str]) {
    let home = tempfile::tempdir().unwrap();
    let mut child = podmesh(&home)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than any pipe holds: only a program that reads everything takes all of it.
    let mut stdin = child.stdin.take().unwrap();
    let line = [b'#'; 1 << 16];
    let written = (0..1_600).take_while(|_| stdin.write_all(&line).is_ok()).count();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    refused(&output, 2, &["standard input is too large", "JOB_FILE_BYTES_MAX"]);
    assert!(written < 100, "{written} of 1600 pieces of the file were read");
}

#[test]
fn a_job_file_is_bounded_and_unknown_keys_are_errors() {
    bounded(&["submit", "--file", "-"]);
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("job.toml");
    fs::write(&file, "command = [\"true\"]\npriorty = 3\n").unwrap();
    let output = podmesh(&home).args(["submit", "-f"]).arg(&file).output().unwrap();
    refused(&output, 2, &["job.toml", "`priorty`", "did you mean `priority`?"]);
    fs::write(&file, "command = [\"true\"]\n\ncpus = nan\n").unwrap();
    let output = podmesh(&home).args(["submit", "-f"]).arg(&file).output().unwrap();
    refused(&output, 2, &["line 3", "above 0"]);
}

#[test]
fn a_service_file_is_bounded_and_its_errors_are_usage_errors() {
    bounded(&["service", "apply", "--file", "-"]);
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("web.toml");
    for (content, says) in [
        (&b"name: web\nimage: nginx\n"[..], &["web.toml, line 1", "hint:", "YAML"][..]),
        (b"name = \"web\"\nimage = \"x\"\nreplicas = -1\n", &["line 3", "REPLICAS_MAX"]),
        (b"name = \"web\"\nname = \"x\"\n", &["line 2", "duplicate key"]),
        (b"name = \"a\x1b[31m\"\n", &["line 1"]),
        (b"name = \"a\0b\"\n", &["line 1"]),
        (b"name = \"a\xff\"\n", &["byte 9 is not UTF-8"]),
        (b"", &["has no name"]),
    ] {
        fs::write(&file, content).unwrap();
        let output = podmesh(&home).args(["service", "apply", "-f"]).arg(&file).output().unwrap();
        refused(&output, 2, says);
        assert!(!output.stderr.contains(&0x1b), "{:?}", text(&output.stderr));
    }
    refused(&run(["service", "apply", "-f", "/no/such"]), 2, &["/no/such", "No such file"]);
}

#[test]
fn settings_files_are_read_and_unknown_keys_are_errors() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("agent.toml"), "cpu = 3\n").unwrap();
    let output = podmesh(&home).arg("agent").output().unwrap();
    refused(&output, 2, &["agent.toml", "`cpu`", "did you mean `cpus`?"]);
    let file = home.path().join("other.toml");
    fs::write(&file, "leas = \"1s\"\n").unwrap();
    let output = podmesh(&home).args(["manager", "--config"]).arg(&file).output().unwrap();
    refused(&output, 2, &["other.toml", "did you mean `lease`?"]);
    let output = podmesh(&home).args(["manager", "--config", "/no/such"]).output().unwrap();
    refused(&output, 2, &["/no/such", "No such file"]);
    let output = podmesh(&home).args(["manager", "--log-level", "a=b=c"]).output().unwrap();
    refused(&output, 2, &["a=b=c", "debug"]);
}

#[test]
fn without_a_manager_the_error_says_what_to_do() {
    for arguments in [
        &["jobs"][..],
        &["nodes"],
        &["logs", "1"],
        &["logs", "web"],
        &["events", "-f"],
        &["cancel", "1"],
        &["services"],
        &["service", "web"],
        &["service", "-o", "json", "history", "web"],
        &["nodes", "cordon", "a"],
    ] {
        let output = run(arguments);
        let says = ["no manager answers", "hint:", "podmesh manager", "podmesh login"];
        refused(&output, 125, &says);
        let output = run(arguments.iter().copied().chain(["--manager", NOBODY]));
        refused(&output, 125, &["not joined a cluster", "podmesh token create"]);
    }
    for verb in ["submit", "run"] {
        let output = run([verb, "--", "true"]);
        refused(&output, 125, &["no manager answers", "hint:"]);
    }
}

#[test]
fn a_folder_without_a_manager_never_means_another_manager() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("other");
    fs::create_dir(&folder).unwrap();
    let output = podmesh(&home).args(["jobs", "--manager"]).arg(&folder).output().unwrap();
    refused(&output, 125, &["no manager answers", folder.to_str().unwrap()]);
}

#[test]
fn a_data_folder_that_cannot_be_written_is_named_in_the_error() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    for verb in ["manager", "agent", "dev"] {
        let output = podmesh(&home).args([verb, "--data-dir"]).arg(&file).output().unwrap();
        refused(&output, 125, &[file.to_str().unwrap(), "hint:", "--data-dir"]);
    }
}

#[test]
fn a_closed_standard_output_is_not_an_error() {
    let home = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = podmesh(&home)
        .args(["completions", "bash"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{:?}", text(&output.stderr));
}
