//! Backups of a manager at work, what is restored from them, and damage that is refused.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

fn database(mesh: &Mesh) -> PathBuf {
    mesh.data_dir().join("manager/podmesh.db")
}

/// The numbers of all jobs.
fn jobs(mesh: &Mesh) -> BTreeSet<u64> {
    let listed = mesh.json(&["jobs", "--all"]);
    listed["jobs"].as_array().unwrap().iter().map(|job| job["job"].as_u64().unwrap()).collect()
}

/// Runs the manager to its end, which must be a refusal; what it says.
fn refused(mesh: &Mesh) -> String {
    let output = mesh.podmesh(&["manager", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn backups_of_a_busy_manager_have_all_that_was_acknowledged_before() {
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
            // What is acknowledged now must be in it.
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
    assert!(mesh.ok(&["check"]).contains("all is well"), "beside the manager");
    assert!(jobs(&mesh).is_superset(&all.into_iter().collect()), "the manager lost nothing by it");

    for (file, before) in &backups {
        let mut fresh = Mesh::new(PODMESH);
        fs::create_dir_all(database(&fresh).parent().unwrap()).unwrap();
        fs::copy(file, database(&fresh)).unwrap();
        assert!(fresh.ok(&["check"]).contains("every byte is as it was"));
        fresh.start_manager();
        let restored = jobs(&fresh);
        assert!(restored.is_superset(before), "{:?}", before.difference(&restored));
        let next = fresh.submit(&["--", "true"]);
        assert_eq!(Some(&(next - 1)), restored.last(), "numbers go on");
    }

    // In the place of the one that is lost, with the manager's key there: its agent comes back.
    mesh.kill_manager();
    for file in ["podmesh.db", "podmesh.db-wal", "podmesh.db-shm"] {
        _ = fs::remove_file(database(&mesh).with_file_name(file));
    }
    fs::copy(&backups[4].0, database(&mesh)).unwrap();
    mesh.start_manager();
    mesh.wait_for_node("a", "alive");
    mesh.ok(&["run", "--", "true"]);
    until_true("what was queued then has ended", || {
        let listed = mesh.json(&["jobs", "--active"]);
        listed["jobs"].as_array().unwrap().is_empty()
    });
    mesh.stop_agent("a");
    assert!(mesh.stop_manager().success());
    assert!(mesh.ok(&["check"]).contains("every byte is as it was"));
}

#[test]
fn a_damaged_database_is_refused_with_what_to_do_and_the_backup_works() {
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
        assert!(fs::read(&path).unwrap() == bytes, "nothing was changed");
    }

    for file in ["podmesh.db", "podmesh.db-wal", "podmesh.db-shm"] {
        _ = fs::remove_file(path.with_file_name(file));
    }
    fs::copy(&backup, &path).unwrap();
    mesh.start_manager();
    assert_eq!(mesh.wait_for_job(1, "succeeded")["tasks"]["succeeded"], 200);
}
