//! Disks of the manager and of agents that fill up and later have space again. Each is a separate
//! file system.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use podmesh_tests::mesh::Mesh;
use podmesh_tests::small_disk::{SmallDisk, may_mount};
use podmesh_tests::wait::{until, until_true};

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");
/// Far longer than a refusal takes, and shorter than waiting for the disk would.
const REFUSAL_LIMIT: Duration = Duration::from_secs(10);

fn refused(mesh: &Mesh) -> String {
    let began = Instant::now();
    let output = mesh.output(&["submit", "--", "true"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(began.elapsed() < REFUSAL_LIMIT, "{:?}: {said}", began.elapsed());
    said
}

#[test]
fn a_manager_with_a_full_disk_refuses_work_and_recovers_by_itself() {
    if !may_mount() {
        return;
    }
    // Declared after the mesh, so that it is unmounted before the mesh's folder is removed.
    let mut mesh = Mesh::new(PODMESH);
    let disk = SmallDisk::mount(&mesh.data_dir());
    mesh.start_manager();
    mesh.start_agent("a", &[]);
    let file = mesh.folder().join("go");
    let script = format!("until test -e {}; do sleep 0.05; done; echo done", file.display());
    let job = mesh.submit(&["--", "sh", "-c", &script]);
    mesh.wait_for_job(job, "running");

    // Little space: running work continues and is still recorded.
    disk.fill(4 << 20);
    let said = refused(&mesh);
    assert!(said.contains("no room is left in"), "{said}");
    assert!(said.contains(mesh.data_dir().to_str().unwrap()), "{said}");
    assert_eq!(mesh.nodes()[0]["state"], "alive");
    fs::write(&file, "").unwrap();
    mesh.wait_for_job(job, "succeeded");
    disk.make_room();
    assert_eq!(mesh.ok(&["run", "--", "echo", "again"]), "again\n");

    // No space at all: nothing can be recorded, and nothing is lost.
    fs::remove_file(&file).unwrap();
    let job = mesh.submit(&["--", "sh", "-c", &script]);
    mesh.wait_for_job(job, "running");
    disk.fill(0);
    fs::write(&file, "").unwrap();
    let output = mesh.folder().join(format!("host-a/logs/{job}/1/1/stdout.log"));
    until_true("the task ends", || fs::read(&output).is_ok_and(|text| text == b"done\n"));
    refused(&mesh);
    assert!(mesh.manager().runs());
    // What needs no commit is still answered, with what is on disk.
    assert_eq!(mesh.nodes()[0]["state"], "alive");
    assert_eq!(mesh.json(&["job", &job.to_string()])["state"], "running");
    mesh.ok(&["token", "list"]);
    disk.make_room();
    mesh.wait_for_job(job, "succeeded");
    assert_eq!(mesh.ok(&["run", "--", "echo", "and again"]), "and again\n");
    assert_eq!(mesh.ok(&["events"]).matches("node a connected").count(), 1, "a session was lost");

    mesh.stop_manager();
    let checked = mesh.ok(&["check", "--data-dir", mesh.data_dir().to_str().unwrap()]);
    assert!(!checked.is_empty());
    drop(mesh);
    drop(disk);
}

#[test]
fn an_agent_with_a_full_disk_starts_nothing_and_loses_no_line() {
    if !may_mount() {
        return;
    }
    let mut mesh = Mesh::new(PODMESH);
    let disk = SmallDisk::mount(&mesh.agent_dir("a"));
    mesh.start_manager();
    mesh.start_agent("a", &["--docker", "off"]);
    let file = mesh.folder().join("go");
    // More than a pipe holds, so that some of it waits for the disk.
    let script = format!(
        "until test -e {}; do sleep 0.05; done; i=0; \
         while [ $i -lt 50000 ]; do i=$((i+1)); echo line $i; done",
        file.display()
    );
    let job = mesh.submit(&["--", "sh", "-c", &script]);
    mesh.wait_for_job(job, "running");
    disk.fill(0);
    // It accepts no work and says why; new work waits.
    let folder = mesh.agent_dir("a");
    let takes = |mesh: &Mesh| !mesh.nodes()[0]["runtimes"].as_array().unwrap().is_empty();
    until_true("it accepts no work", || !takes(&mesh));
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
    assert!(mesh.ok(&["logs", &job.to_string()]) == expected, "a line is missing or duplicated");
    assert_eq!(mesh.ok(&["run", "--", "echo", "again"]), "again\n");

    // The output of a program that has ended waits for the disk, however long that takes.
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
    // Longer than the limit for output that is given up.
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
fn a_node_with_a_full_disk_takes_no_work_from_other_nodes() {
    if !may_mount() {
        return;
    }
    let mut mesh = Mesh::new(PODMESH);
    let disk = SmallDisk::mount(&mesh.agent_dir("full"));
    mesh.start_manager();
    let flags = ["--docker", "off", "--cpus", "100"];
    mesh.start_agent("full", &flags);
    mesh.start_agent("good", &["--docker", "off", "--cpus", "2"]);
    // Its disk fills up just before the work arrives.
    disk.fill(0);
    let job = mesh.submit(&["--array", "1-400", "--", "true"]);
    mesh.wait_for_job(job, "succeeded");
    // Nothing is started on a node whose disk is full when it starts.
    mesh.kill_agent("full");
    mesh.start_agent("full", &flags);
    let job = mesh.submit(&["--array", "1-50", "--", "true"]);
    mesh.wait_for_job(job, "succeeded");
    assert!(!mesh.ok(&["tasks", &job.to_string()]).contains("full"));
    drop(mesh);
    drop(disk);
}

#[test]
fn a_disk_of_a_node_that_is_nearly_full_is_named() {
    if !may_mount() {
        return;
    }
    let mut mesh = Mesh::new(PODMESH);
    let logs = mesh.folder().join("logs-of-a");
    let disk = SmallDisk::mount(&logs);
    mesh.start_manager();
    mesh.start_agent("a", &["--docker", "off", "--logs-dir", logs.to_str().unwrap()]);
    let low = |mesh: &Mesh| mesh.nodes()[0]["low_disks"]["logs"].as_str().map(str::to_owned);
    let takes_work = |mesh: &Mesh| mesh.nodes()[0]["withdrawn"].as_object().unwrap().is_empty();
    // It takes no work already before the disk is nearly full, which is then said besides.
    disk.fill(8 << 20);
    until_true("it takes no work", || !takes_work(&mesh));
    assert_eq!(low(&mesh), None);
    let more = logs.join("more");
    fs::write(&more, vec![0x5a; 6 << 20]).unwrap();
    let why = until("the disk is nearly full", || low(&mesh));
    assert!(why.contains(logs.to_str().unwrap()) && why.contains(" of 64 MiB"), "{why}");
    let nodes = mesh.output(&["nodes"]);
    let said = String::from_utf8(nodes.stderr).unwrap();
    assert!(said.contains("a has a disk that is nearly full: less than 5 %"), "{said}");
    fs::remove_file(more).unwrap();
    until_true("the disk has room", || low(&mesh).is_none());
    assert!(!takes_work(&mesh));
    disk.make_room();
    until_true("it takes work", || takes_work(&mesh));
    mesh.wait_for_node("a", "alive");
    drop(mesh);
    drop(disk);
}

#[test]
fn a_node_whose_log_folder_is_read_only_takes_no_work() {
    if !may_mount() {
        return;
    }
    let mut mesh = Mesh::new(PODMESH);
    let logs = mesh.folder().join("logs-of-a");
    let disk = SmallDisk::mount(&logs);
    mesh.start_manager();
    mesh.start_agent("a", &["--docker", "off", "--logs-dir", logs.to_str().unwrap()]);
    disk.remount("ro");
    let takes = |mesh: &Mesh| !mesh.nodes()[0]["runtimes"].as_array().unwrap().is_empty();
    until_true("it accepts no work", || !takes(&mesh));
    let why = mesh.nodes()[0]["withdrawn"]["process"].as_str().unwrap().to_owned();
    assert!(why.contains("cannot write to") && why.contains(logs.to_str().unwrap()), "{why}");
    let waits = mesh.submit(&["--", "echo", "written"]);
    disk.remount("rw");
    mesh.wait_for_job(waits, "succeeded");
    assert_eq!(mesh.ok(&["logs", &waits.to_string()]), "written\n");
    drop(mesh);
    drop(disk);
}
