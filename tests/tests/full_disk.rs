//! Disks that fill up, and have room again: the manager's and an agent's, on a file system of their
//! own.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");
/// Far more than a refusal takes, and less than patience with a disk would.
const REFUSAL_LIMIT: Duration = Duration::from_secs(10);

/// A small file system in memory; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m", "podmesh-test"])
            .arg(path)
            .status()
            .unwrap();
        assert!(status.success(), "a file system can be mounted: {status}");
        Self(path.to_owned())
    }

    /// Writes until nothing more fits but `leave` bytes.
    fn fill(&self, leave: u64) {
        let mut file = File::create(self.0.join("ballast")).unwrap();
        let block = vec![0x5a; 64 << 10];
        while file.write_all(&block).is_ok() {}
        let full = file.metadata().unwrap().len();
        file.set_len(full - leave).unwrap();
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Whether file systems can be mounted here; said aloud where not, and a failure in CI.
fn may_mount() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let required = std::env::var("PODMESH_TEST_DOCKER").is_ok_and(|value| value == "required");
    assert!(root || !required, "full disks are tested as root");
    if !root {
        eprintln!("LEFT OUT: only root can mount a file system to fill");
    }
    root
}

fn refused(mesh: &Mesh) -> String {
    let began = Instant::now();
    let output = mesh.output(&["submit", "--", "true"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(began.elapsed() < REFUSAL_LIMIT, "{:?}: {said}", began.elapsed());
    said
}

#[test]
fn a_manager_without_room_refuses_work_and_goes_on_by_itself() {
    if !may_mount() {
        return;
    }
    // After the mesh: what is mounted in its folder goes before the folder.
    let mut mesh = Mesh::new(PODMESH);
    let disk = SmallDisk::mount(&mesh.data_dir());
    mesh.start_manager();
    mesh.start_agent("a", &[]);
    let file = mesh.folder().join("go");
    let script = format!("until test -e {}; do sleep 0.05; done; echo done", file.display());
    let job = mesh.submit(&["--", "sh", "-c", &script]);
    mesh.wait_for_job(job, "running");

    // Little room: what is under way goes on, and is still written down.
    disk.fill(4 << 20);
    let said = refused(&mesh);
    assert!(said.contains("no room is left in"), "{said}");
    assert!(said.contains(mesh.data_dir().to_str().unwrap()), "{said}");
    assert_eq!(mesh.nodes()[0]["state"], "alive");
    fs::write(&file, "").unwrap();
    mesh.wait_for_job(job, "succeeded");
    disk.make_room();
    assert_eq!(mesh.ok(&["run", "--", "echo", "again"]), "again\n");

    // No room at all: nothing can be written down, and nothing is lost.
    fs::remove_file(&file).unwrap();
    let job = mesh.submit(&["--", "sh", "-c", &script]);
    mesh.wait_for_job(job, "running");
    disk.fill(0);
    fs::write(&file, "").unwrap();
    let output = mesh.folder().join(format!("host-a/logs/{job}/1/1/stdout.log"));
    until_true("the task ends", || fs::read(&output).is_ok_and(|text| text == b"done\n"));
    refused(&mesh);
    assert!(mesh.manager().runs());
    disk.make_room();
    mesh.wait_for_job(job, "succeeded");
    assert_eq!(mesh.ok(&["run", "--", "echo", "and again"]), "and again\n");
    assert_eq!(mesh.ok(&["events"]).matches("node a connected").count(), 1, "nobody was lost");

    mesh.stop_manager();
    let checked = mesh.ok(&["check", "--data-dir", mesh.data_dir().to_str().unwrap()]);
    assert!(!checked.is_empty());
    drop(mesh);
    drop(disk);
}

#[test]
fn an_agent_without_room_starts_nothing_and_loses_no_line() {
    if !may_mount() {
        return;
    }
    let mut mesh = Mesh::new(PODMESH);
    let disk = SmallDisk::mount(&mesh.agent_dir("a"));
    mesh.start_manager();
    mesh.start_agent("a", &["--docker", "off"]);
    let file = mesh.folder().join("go");
    // More than the pipe holds, so that some of it waits for the disk.
    let script = format!(
        "until test -e {}; do sleep 0.05; done; i=0; \
         while [ $i -lt 50000 ]; do i=$((i+1)); echo line $i; done",
        file.display()
    );
    let job = mesh.submit(&["--", "sh", "-c", &script]);
    mesh.wait_for_job(job, "running");
    disk.fill(0);
    // It takes no work, and says why; work that comes waits.
    let folder = mesh.agent_dir("a");
    let takes = |mesh: &Mesh| !mesh.nodes()[0]["runtimes"].as_array().unwrap().is_empty();
    until_true("it takes no work", || !takes(&mesh));
    let why = mesh.nodes()[0]["withdrawn"]["process"].as_str().unwrap().to_owned();
    assert!(why.contains("no room is left in") && why.contains(folder.to_str().unwrap()), "{why}");
    assert!(mesh.ok(&["events"]).contains("node a takes no work for process: no room is left in"));
    let waits = mesh.submit(&["--", "true"]);
    fs::write(&file, "").unwrap();
    assert_eq!(mesh.nodes()[0]["state"], "alive");
    disk.make_room();
    mesh.wait_for_job(job, "succeeded");
    mesh.wait_for_job(waits, "succeeded");
    assert!(mesh.ok(&["events"]).contains("node a takes work for process again"));
    let expected: String = (1..=50_000).map(|number| format!("line {number}\n")).collect();
    assert!(mesh.ok(&["logs", &job.to_string()]) == expected, "a line is missing or doubled");
    assert_eq!(mesh.ok(&["run", "--", "echo", "again"]), "again\n");

    // One that has ended while its output waits: it is waited for, however long it takes.
    fs::remove_file(&file).unwrap();
    let pid = mesh.folder().join("pid");
    let script = format!(
        "echo $$ >{}; until test -e {}; do sleep 0.05; done; echo last",
        pid.display(),
        file.display()
    );
    let job = mesh.submit(&["--", "sh", "-c", &script]);
    mesh.wait_for_job(job, "running");
    disk.fill(0);
    until_true("the program runs", || {
        fs::read_to_string(&pid).is_ok_and(|pid| pid.ends_with('\n'))
    });
    let process = Path::new("/proc").join(fs::read_to_string(&pid).unwrap().trim());
    fs::write(&file, "").unwrap();
    until_true("the program ends", || !process.exists());
    // Longer than anything that is not worth waiting for would be given.
    std::thread::sleep(Duration::from_secs(6));
    let state = mesh.ok(&["job", &job.to_string()]);
    assert!(state.contains("running"), "{state}");
    disk.make_room();
    mesh.wait_for_job(job, "succeeded");
    assert_eq!(mesh.ok(&["logs", &job.to_string()]), "last\n");
    drop(mesh);
    drop(disk);
}

#[test]
fn a_node_without_room_takes_no_work_from_one_that_has() {
    if !may_mount() {
        return;
    }
    let mut mesh = Mesh::new(PODMESH);
    let disk = SmallDisk::mount(&mesh.agent_dir("full"));
    mesh.start_manager();
    let flags = ["--docker", "off", "--cpus", "100"];
    mesh.start_agent("full", &flags);
    mesh.start_agent("good", &["--docker", "off", "--cpus", "2"]);
    // Its room ends just as the work comes.
    disk.fill(0);
    let job = mesh.submit(&["--array", "1-400", "--", "true"]);
    mesh.wait_for_job(job, "succeeded");
    // And of a node that starts so, nothing is tried at all.
    mesh.kill_agent("full");
    mesh.start_agent("full", &flags);
    let job = mesh.submit(&["--array", "1-50", "--", "true"]);
    mesh.wait_for_job(job, "succeeded");
    assert!(!mesh.ok(&["tasks", &job.to_string()]).contains("full"));
    drop(mesh);
    drop(disk);
}
