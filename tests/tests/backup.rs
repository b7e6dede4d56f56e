//! Backups of a busy manager, restores from them, and damaged databases, which are refused.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

fn database(mesh: &Mesh) -> PathBuf {
    mesh.data_dir().join("manager/podmesh.db")
}

/// Replaces the database with a backup, as the README says.
fn restore(mesh: &Mesh, backup: &Path) {
    for file in ["podmesh.db", "podmesh.db-wal", "podmesh.db-shm"] {
        _ = fs::remove_file(database(mesh).with_file_name(file));
    }
    fs::copy(backup, database(mesh)).unwrap();
}

/// Returns the numbers of all jobs.
fn jobs(mesh: &Mesh) -> BTreeSet<u64> {
    let listed = mesh.json(&["jobs", "--all"]);
    listed["jobs"].as_array().unwrap().iter().map(|job| job["job"].as_u64().unwrap()).collect()
}

/// Runs the manager, which must refuse to start, and returns its message.
fn refused(mesh: &Mesh) -> String {
    let output = mesh.podmesh(&["manager", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_backup_of_a_busy_manager_contains_everything_acknowledged_before() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    mesh.submit(&["--array", "1-500", "--", "true"]);
    let done = AtomicBool::new(false);
    let (backups, all) = std::thread::scope(|scope| {
        let submitting = scope.spawn(|| {
            let mut acknowledged = Vec::new();
            while !done.load(Ordering::Acquire) {
                acknowledged.push(mesh.submit(&["--array", "1-20", "--", "true"]));
            }
            acknowledged
        });
        let mut backups = Vec::new();
        for n in 0..5 {
            until_true("more was submitted", || jobs(&mesh).len() > 4 * (n + 1));
            // The backup must contain everything acknowledged so far.
            let before = jobs(&mesh);
            let file = mesh.folder().join(format!("backup-{n}.db"));
            let printed = mesh.ok(&["backup", file.to_str().unwrap()]);
            assert!(printed.contains("jobs") && printed.contains("revision"), "{printed}");
            backups.push((file, before));
        }
        done.store(true, Ordering::Release);
        (backups, submitting.join().unwrap())
    });
    let (file, _) = &backups[0];
    let again = mesh.output(&["backup", file.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&again.stderr).contains("not overwritten"));
    assert!(mesh.ok(&["check"]).contains("no errors found"), "while the manager is running");
    assert!(jobs(&mesh).is_superset(&all.into_iter().collect()), "the backup lost nothing");

    for (file, before) in &backups {
        let mut fresh = Mesh::new(PODMESH);
        fs::create_dir_all(database(&fresh).parent().unwrap()).unwrap();
        fs::copy(file, database(&fresh)).unwrap();
        assert!(fresh.ok(&["check"]).contains("checksum: matches"));
        fresh.start_manager();
        let restored = jobs(&fresh);
        assert!(restored.is_superset(before), "{:?}", before.difference(&restored));
        let next = fresh.submit(&["--", "true"]);
        assert!(next > *restored.last().unwrap() + 1, "{next} may have been given out before");
    }

    // Restored in place of a lost database, next to the manager's key, so that its agent
    // reconnects.
    mesh.kill_manager();
    restore(&mesh, &backups[4].0);
    mesh.start_manager();
    mesh.wait_for_node("a", "alive");
    mesh.ok(&["run", "--", "true"]);
    until_true("all restored jobs have ended", || {
        let listed = mesh.json(&["jobs", "--active"]);
        listed["jobs"].as_array().unwrap().is_empty()
    });
    mesh.stop_agent("a");
    assert!(mesh.stop_manager().success());
    assert!(mesh.ok(&["check"]).contains("checksum: matches"));
}

#[test]
fn a_damaged_database_is_refused_with_advice_and_the_backup_works() {
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    mesh.ok(&["submit", "--wait", "--array", "1-200", "--", "true"]);
    let backup = mesh.folder().join("backup.db");
    mesh.ok(&["backup", backup.to_str().unwrap()]);
    mesh.stop_agent("a");
    assert!(mesh.stop_manager().success());
    let path = database(&mesh);
    let whole = fs::read(&path).unwrap();

    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    for bytes in [&whole[..0], &whole[..5000], &whole[..whole.len() / 2], &flipped] {
        fs::write(&path, bytes).unwrap();
        let said = refused(&mesh);
        for part in ["damaged", "podmesh check", "podmesh backup", "-wal", "podmesh.db"] {
            assert!(said.contains(part), "{said}");
        }
        let checked = mesh.output(&["check"]);
        assert_eq!(checked.status.code(), Some(1));
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert!(said.contains("damaged") && said.contains("restore a backup"), "{said}");
        assert!(fs::read(&path).unwrap() == bytes, "the file was changed");
    }

    restore(&mesh, &backup);
    mesh.start_manager();
    assert_eq!(mesh.wait_for_job(1, "succeeded")["tasks"]["succeeded"], 200);
}

#[test]
fn attempts_unknown_to_a_restored_manager_are_not_confused_with_new_ones() {
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    let (life, go) = (mesh.folder().join("life"), mesh.folder().join("go"));
    fs::write(&life, "forgotten\n").unwrap();
    let print = format!("cat {}", life.display());
    // The mark shows which work folder an attempt has.
    let wait = format!("until test -e {}; do sleep 0.05; done", go.display());
    let print_and_wait = format!("touch of-$PODMESH_JOB; {print}; {wait}");
    mesh.spawn_local_agent("a", &[]);
    mesh.wait_for_node("a", "alive");
    mesh.stop_agent("a");
    // In the backup these jobs are queued.
    let ended = mesh.submit(&["--", "sh", "-c", &print]);
    let running = mesh.submit(&["--", "sh", "-c", &print_and_wait]);
    let backup = mesh.folder().join("backup.db");
    mesh.ok(&["backup", backup.to_str().unwrap()]);
    mesh.spawn_local_agent("a", &["--cpus", "4"]);
    mesh.wait_for_job(ended, "succeeded");
    mesh.wait_for_job(running, "running");
    let new = [&print, &print_and_wait].map(|script| mesh.submit(&["--", "sh", "-c", script]));
    mesh.wait_for_job(new[0], "succeeded");
    mesh.wait_for_job(new[1], "running");
    let work = mesh.agent_dir("a").join("agent/work");
    let has_work_folder = |job: u64| {
        let mark = format!("of-{job}");
        fs::read_dir(&work)
            .unwrap()
            .any(|folder| folder.unwrap().path().join("folder").join(&mark).exists())
    };
    until_true("the job runs in its work folder", || has_work_folder(new[1]));
    // Open more sessions, which the backup does not contain.
    for _ in 0..3 {
        mesh.kill_agent("a");
        mesh.spawn_local_agent("a", &["--cpus", "4"]);
        mesh.wait_for_node("a", "alive");
    }

    assert!(mesh.stop_manager().success());
    restore(&mesh, &backup);
    fs::write(&life, "again\n").unwrap();
    mesh.start_manager();
    mesh.wait_for_job(ended, "succeeded");
    mesh.wait_for_job(running, "running");
    until_true("the forgotten attempt is stopped", || !has_work_folder(new[1]));
    for script in [&print, &print_and_wait] {
        let next = mesh.submit(&["--", "sh", "-c", script]);
        assert!(next > new[1], "{next}");
        let log = mesh.logs("a", next, 1, 1).join("stdout.log");
        until_true("it prints", || fs::read(&log).is_ok_and(|bytes| bytes == b"again\n"));
    }
    fs::write(&go, "").unwrap();
    mesh.wait_for_job(running, "succeeded");
    for job in [ended, running] {
        assert_eq!(mesh.ok(&["logs", &job.to_string()]), "again\n");
    }
    // The session was opened at once.
    let events = mesh.ok(&["events"]);
    let connected = events.lines().filter(|line| line.contains("node a connected")).count();
    assert_eq!(connected, 2, "{events}");
}
