//! `podmesh demo` and `podmesh dev` need only the binary, and leave nothing behind.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::process::Daemon;
use podmesh_tests::wait::until_true;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

#[test]
fn demo_runs_a_real_job_over_real_files_and_cleans_up() {
    let folder = tempfile::tempdir().unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let files: [(&[u8], &str); 3] = [
        (b"plain.txt", "one two\nthree\n"),
        (b"with space", "four"),
        (b"odd\xff\nname", "five six\n"),
    ];
    for (name, content) in files {
        fs::write(folder.path().join(std::ffi::OsStr::from_bytes(name)), content).unwrap();
    }
    let output = Command::new(PODMESH)
        .arg("demo")
        .arg(folder.path())
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
    // The POSIX cksum(1) of "one two\nthree\n".
    let sum = Command::new("cksum").arg(folder.path().join("plain.txt")).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    let sum = sum.split_whitespace().next().unwrap();
    assert!(said.contains(sum), "no {sum} in {said}");
    assert!(said.contains("with space"), "{said}");
    let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn dev_starts_a_whole_mesh_that_the_cli_finds_by_its_data_directory() {
    let mesh = Mesh::new(PODMESH);
    let mut command = mesh.podmesh(&["dev", "--agents", "2", "--listen", "127.0.0.1:0"]);
    command.stdin(Stdio::null());
    let dev = Daemon::start(command, &mesh.folder().join("dev.txt"));
    until_true("both agents are alive", || {
        mesh.nodes().iter().filter(|node| node["state"] == "alive").count() == 2
    });
    assert_eq!(mesh.ok(&["run", "--", "echo", "hello"]), "hello\n");
    dev.signal(Signal::SIGINT);
    let mut dev = dev;
    assert!(dev.wait_for_end().success(), "{}", dev.printed());
    assert!(!mesh.output(&["nodes"]).status.success());
}

#[test]
fn two_dev_meshes_run_at_the_same_time() {
    let meshes = [Mesh::new(PODMESH), Mesh::new(PODMESH)];
    let devs = meshes.each_ref().map(|mesh| {
        let mut command = mesh.podmesh(&["dev", "--agents", "1"]);
        command.stdin(Stdio::null());
        Daemon::start(command, &mesh.folder().join("dev.txt"))
    });
    for mesh in &meshes {
        mesh.wait_for_node("node-1", "alive");
    }
    for mut dev in devs {
        dev.signal(Signal::SIGINT);
        assert!(dev.wait_for_end().success(), "{}", dev.printed());
    }
}
