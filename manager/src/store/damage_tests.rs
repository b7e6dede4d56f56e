//! Damaged databases are refused or reported, and sound ones are accepted.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use podmesh_manager_core::state::Change;
use podmesh_protocol::ids::{AttemptId, JobId, Revision, SubmissionId};
use podmesh_protocol::report::{AttemptState, JobState, Outcome, OutcomeKind, TaskCounts};
use rusqlite::types::Value;
use tempfile::TempDir;
use uuid::Uuid;

use super::schema::FileKind;
use super::seal::FileState;
use super::tests::{event_step, job_change, job_spec, name, node, write};
use super::*;
use podmesh_wire::manager_keys::KEY_FILE;

use crate::data_dir;

/// Writes a consistent job with tasks in every state. Returns the last revision.
fn add_job(store: &mut Store, job: u64, revision: u64) -> u64 {
    let attempt = |index, number| AttemptId::new(JobId(job), index, number);
    let inserted = |index, number| Change::AttemptInserted {
        claims: None,
        attempt: attempt(index, number),
        node: name("a"),
        wall_ms: 1_700_000_000_000 + u64::from(index),
    };
    let ended = |index, number, kind, retry_after_ms| Change::AttemptEnded {
        attempt: attempt(index, number),
        outcome: Outcome { exit_code: Some(3), ..Outcome::new(kind).with_message("why it ended") },
        wall_ms: 1_700_000_100_000 + u64::from(index),
        retry_after_ms,
    };
    let mut changes = vec![
        Change::NodeSaved(Arc::new(node("a"))),
        Change::EpochTaken(node("a").epoch),
        Change::JobInserted {
            job: JobId(job),
            submission: SubmissionId(Uuid::from_u128(u128::from(job) << 64 | 77)),
            spec: std::sync::Arc::new(job_spec(40)),
            by: name("ann"),
            wall_ms: 1_700_000_000_000,
        },
    ];
    for index in 1..=30 {
        changes.push(inserted(index, 1));
        match index % 5 {
            0 => changes.push(Change::AttemptAdvanced {
                attempt: attempt(index, 1),
                state: AttemptState::Running,
                wall_ms: 1_700_000_000_500,
            }),
            1 => changes.push(ended(index, 1, OutcomeKind::Failed, None)),
            2 => changes.extend([
                ended(index, 1, OutcomeKind::Lost, Some(0)),
                inserted(index, 2),
                ended(index, 2, OutcomeKind::Failed, Some(500)),
            ]),
            _ => changes.push(ended(index, 1, OutcomeKind::Succeeded, None)),
        }
    }
    let counts = TaskCounts { queued: 16, active: 6, succeeded: 12, failed: 6, cancelled: 0 };
    changes.push(job_change(JobId(job), JobState::Running, 31, counts, 36));
    let (mut step, last) = event_step(revision + 1, 20);
    step.step.changes = changes;
    write(store, vec![step]);
    last
}

/// Returns a data directory that a manager has used, with its database closed.
fn closed(jobs: u64, sealed: bool) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let mut revision = 0;
    for job in 1..=jobs {
        revision = add_job(&mut store, job, revision);
    }
    drop((store.history, store.lookups));
    drop(store.writer);
    fs::write(dir.path().join(KEY_FILE), "").unwrap();
    for file in ["-wal", "-shm"] {
        _ = fs::remove_file(dir.path().join(format!("{FILE_NAME}{file}")));
    }
    if sealed {
        assert!(seal::seal(&dir.path().join(FILE_NAME)).unwrap());
    }
    dir
}

/// Returns a data directory with these bytes as its database.
fn directory_of(bytes: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(KEY_FILE), "").unwrap();
    fs::write(dir.path().join(FILE_NAME), bytes).unwrap();
    dir
}

/// Returns every row of every table.
fn dump(dir: &Path) -> rusqlite::Result<Vec<(String, Vec<Value>)>> {
    let connection = open_for_reading(&dir.join(FILE_NAME))?;
    let mut all = Vec::new();
    for table in [
        "meta",
        "jobs",
        "job_specs",
        "nodes",
        "attempts",
        "events",
        "tokens",
        "keys",
        "removals",
        "sqlite_schema",
    ] {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table}"))?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let values = (0..columns).map(|column| row.get(column)).collect::<Result<_, _>>()?;
            all.push((table.to_owned(), values));
        }
    }
    Ok(all)
}

fn says_what_to_do(error: &StoreError) {
    let said = error.to_string();
    for part in [FILE_NAME, "damaged", "podmesh check", "podmesh backup", "-wal"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn a_truncated_database_of_any_length_is_refused() {
    for sealed in [false, true] {
        let whole = fs::read(closed(20, sealed).path().join(FILE_NAME)).unwrap();
        let data = whole.len() - if sealed { 32 } else { 0 };
        let mut lengths = vec![0, 1, 15, 16, 99, 100, 101, 512, data - 1, data - 32, data - 33];
        for page in (4096..data).step_by(4096 * 5) {
            lengths.extend([page - 1, page, page + 1]);
        }
        lengths.push(data - 4096);
        for length in lengths {
            let dir = directory_of(&whole[..length]);
            let error = open(dir.path()).err().unwrap();
            says_what_to_do(&error);
            says_what_to_do(&check(dir.path()).unwrap_err());
            let copy = dir.path().join("copy");
            backup(dir.path(), &copy).unwrap_err();
            assert!(!copy.exists() && !dir.path().join("copy.new").exists());
            assert!(fs::read(dir.path().join(FILE_NAME)).unwrap() == whole[..length], "{length}");
        }
    }
}

/// Returns what podmesh guarantees: which jobs and tasks exist, and their states.
fn promised(dir: &Path) -> rusqlite::Result<Vec<Vec<Value>>> {
    let connection = open_for_reading(&dir.join(FILE_NAME))?;
    let mut all = Vec::new();
    for sql in [
        "SELECT job, submission, name, priority, first_index, last_index, state, next_index,
             queued, active, succeeded, failed, cancelled FROM jobs",
        "SELECT job, task, number, node, state, standing, outcome = 0 FROM attempts",
        "SELECT last, first FROM events",
    ] {
        let mut statement = connection.prepare(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            all.push((0..columns).map(|column| row.get(column)).collect::<Result<_, _>>()?);
        }
    }
    Ok(all)
}

/// The results of flipping single bits of a database.
#[derive(Debug, Default)]
struct Flips {
    refused: usize,
    found: usize,
    same: usize,
    /// A value became another possible value: a time, a text, an exit code, a word of a command.
    values: usize,
    missed: Vec<usize>,
}

fn flips(sealed: bool, number: usize) -> Flips {
    let origin = closed(20, sealed);
    let (before, promised_before) =
        (dump(origin.path()).unwrap(), promised(origin.path()).unwrap());
    let whole = fs::read(origin.path().join(FILE_NAME)).unwrap();
    let mut random = fastrand::Rng::with_seed(4711);
    let mut flips = Flips::default();
    // The headers of the file and of two pages, and random places.
    let mut places: Vec<usize> = (0..100 * 8).step_by(7).collect();
    for page in [1, 2] {
        places.extend((4096 * 8 * page..(4096 * page + 12) * 8).step_by(5));
    }
    places.extend((0..number).map(|_| random.usize(..whole.len() * 8)));
    for bit in places {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let dir = directory_of(&bytes);
        // The check comes first, because a start changes the file.
        let checked = check(dir.path());
        let (after, promised_after) = (dump(dir.path()), promised(dir.path()));
        match (open(dir.path()), checked) {
            (Err(_), _) => flips.refused += 1,
            (Ok(_), Err(_)) => flips.found += 1,
            (Ok(_), Ok(found)) if !found.wrong.is_empty() => flips.found += 1,
            _ if after.is_ok_and(|after| after == before) => flips.same += 1,
            _ if promised_after.is_ok_and(|after| after == promised_before) => flips.values += 1,
            _ => flips.missed.push(bit / 8),
        }
    }
    flips
}

#[test]
fn every_flipped_bit_of_a_sealed_database_is_refused() {
    let flips = flips(true, 600);
    assert_eq!((flips.found, flips.values, &flips.missed[..]), (0, 0, &[][..]), "{flips:?}");
    // Only bits in the seal's magic are not noticed.
    assert!(flips.same < 5 && flips.refused > 700, "{flips:?}");
}

#[test]
fn a_flipped_bit_of_an_unsealed_database_changes_no_guarantee_unnoticed() {
    let flips = flips(false, 600);
    assert!(flips.missed.is_empty(), "{flips:?}");
    // The others are in unused space, or change a value to another possible one.
    assert!(flips.refused + flips.found > 200, "{flips:?}");
    println!("{flips:?}");
}

#[test]
fn foreign_and_incomplete_databases_are_refused_with_a_specific_message() {
    let change = |sql: &str| {
        let dir = closed(2, false);
        let path = dir.path().join(FILE_NAME);
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(sql).unwrap();
        connection.close().unwrap();
        let started = open(dir.path()).err().unwrap().to_string();
        let checked = match check(dir.path()) {
            Err(error) => error.to_string(),
            Ok(found) => found.wrong.join("; "),
        };
        assert!(started.contains(FILE_NAME), "{started}");
        (started, checked)
    };
    for (sql, says) in [
        ("DROP TABLE attempts", "`attempts` is missing"),
        ("DROP INDEX attempts_going_on", "`attempts_going_on` is missing"),
        ("ALTER TABLE nodes RENAME COLUMN name TO nome", "`nodes` is missing or changed"),
        ("PRAGMA application_id = 7", "another program"),
        ("PRAGMA user_version = 99", "newer podmesh"),
        ("PRAGMA user_version = 0", "the version of its schema is missing"),
        ("DELETE FROM meta", "no rows"),
        ("UPDATE jobs SET active = active + 1 WHERE job = 2", "job 2 has 40 tasks"),
        ("UPDATE jobs SET state = 3 WHERE job = 2", "that job has ended or is missing"),
        ("UPDATE nodes SET labels = x'c1'", "labels"),
        ("DELETE FROM nodes", "Null"),
        ("UPDATE nodes SET forgotten = 1", "was forgotten"),
    ] {
        let (started, checked) = change(sql);
        assert!(started.contains(says) || says == "labels", "{sql}: {started}");
        assert!(checked.contains(says) || says == "labels", "{sql}: {checked}");
    }
}

#[test]
fn check_finds_contradictions_in_ended_jobs() {
    for sql in [
        "UPDATE jobs SET succeeded = succeeded - 1, failed = failed + 1 WHERE job = 2",
        "DELETE FROM attempts WHERE job = 1 AND task = 3",
        "UPDATE attempts SET outcome = 9 WHERE job = 1 AND task = 3",
        "UPDATE attempts SET outcome = NULL WHERE job = 1 AND task = 3",
        "UPDATE attempts SET number = 4 WHERE job = 1 AND task = 3",
        "UPDATE attempts SET job = 44 WHERE job = 2 AND task = 3",
        "UPDATE attempts SET failed_ms = ended_ms WHERE job = 1 AND task = 3",
        "UPDATE job_specs SET spec = x'80' WHERE job = 1",
        "UPDATE jobs SET name = 'other' WHERE job = 1",
        "UPDATE jobs SET attempts = 5 WHERE job = 1",
        "UPDATE jobs SET ended_age_ms = 5 WHERE job = 1",
        "INSERT INTO removals VALUES (1)",
        "UPDATE meta SET value = value + 1 WHERE key = 'kept'",
        "UPDATE events SET facts = x'90' WHERE last = 40",
        "DELETE FROM events WHERE last = 40",
        "UPDATE meta SET value = 1 WHERE key = 'last_epoch'",
    ] {
        let dir = closed(3, false);
        let connection = Connection::open(dir.path().join(FILE_NAME)).unwrap();
        assert!(check(dir.path()).unwrap().wrong.is_empty());
        connection.execute_batch(sql).unwrap();
        connection.close().unwrap();
        assert!(!check(dir.path()).unwrap().wrong.is_empty(), "{sql}");
    }
}

#[test]
fn the_database_of_a_manager_killed_at_any_moment_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    fs::write(dir.path().join(KEY_FILE), "").unwrap();
    // Many times, to hit different moments, but not before the third job: the schema takes some pages.
    store.writer.connection().pragma_update(None, "wal_autocheckpoint", 100).unwrap();
    let mut revision = 0;
    for job in 1..=60 {
        revision = add_job(&mut store, job, revision);
        let killed = tempfile::tempdir().unwrap();
        for file in [KEY_FILE.to_owned(), FILE_NAME.to_owned(), format!("{FILE_NAME}-wal")] {
            fs::write(killed.path().join(&file), fs::read(dir.path().join(&file)).unwrap())
                .unwrap();
        }
        // In the middle of a checkpoint, the pages that are not written yet are in the log.
        let path = killed.path().join(FILE_NAME);
        let wal_holds_all = job < 3;
        if wal_holds_all {
            fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
        }
        assert!(check(killed.path()).unwrap().wrong.is_empty());
        assert_eq!(open(killed.path()).unwrap().state.last_revision, Revision(revision));
    }
}

#[test]
fn damage_in_the_log_that_would_lose_commits_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    fs::write(dir.path().join(KEY_FILE), "").unwrap();
    let log = format!("{FILE_NAME}-wal");
    let (mut revision, mut lengths) = (0, Vec::new());
    for job in 1..=12 {
        revision = add_job(&mut store, job, revision);
        lengths.push(fs::metadata(dir.path().join(&log)).unwrap().len() as usize);
    }
    let whole = fs::read(dir.path().join(&log)).unwrap();
    let killed = |bytes: &[u8]| {
        let killed = tempfile::tempdir().unwrap();
        for file in [KEY_FILE, FILE_NAME] {
            fs::copy(dir.path().join(file), killed.path().join(file)).unwrap();
        }
        fs::write(killed.path().join(&log), bytes).unwrap();
        killed
    };
    let mut random = fastrand::Rng::with_seed(1147);
    // Up to the second last commit, every bit matters.
    let counts = lengths[lengths.len() - 2];
    let bits = (0..32 * 8).chain((0..200).map(|_| random.usize(..counts * 8)));
    for bit in bits {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let killed = killed(&bytes);
        let last_two = bit / 8 >= lengths[lengths.len() - 3];
        match open(killed.path()) {
            Err(error) => says_what_to_do(&error),
            // The damage is in one of the last two commits.
            Ok(_) => assert!(last_two, "byte {}", bit / 8),
        }
    }
    // A power cut or a kill leaves parts of the last commit, in any order.
    for cut in [counts, counts + 1, counts + 24, counts + 4120, whole.len() - 1] {
        let state = open(killed(&whole[..cut]).path()).unwrap().state;
        assert_eq!(state.last_revision, Revision(revision - 20), "{cut}");
    }
    let mut torn = whole.clone();
    torn[counts..counts + 4120].fill(0);
    assert_eq!(open(killed(&torn).path()).unwrap().state.last_revision.0, revision - 20);
    assert_eq!(open(killed(&whole).path()).unwrap().state.last_revision.0, revision);
}

#[test]
fn the_last_user_to_close_a_database_seals_it_and_a_start_removes_the_seal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    for life in 1..=3 {
        let lock = data_dir::lock(dir.path()).unwrap();
        let mut store = open(dir.path()).unwrap();
        assert!(check(dir.path()).unwrap().in_use);
        add_job(&mut store, life, (life - 1) * 20);
        let closing = Closing::new(dir.path(), lock);
        let (steps, receiver) = crossbeam_channel::bounded(1);
        drop(steps);
        let (_stop, stopping) = tokio::sync::watch::channel(false);
        let pulse = podmesh_wire::watchdog::Watchdog::default().pulse("store");
        store.writer.run(&receiver, &tokio::sync::mpsc::channel(1).0, &stopping, &pulse).unwrap();
        closing.closed(true);
        drop(store.history);
        closing.closed(life != 2);
        drop(store.lookups);
        closing.closed(true);
        drop(closing);
        let found = if life == 2 { FileState::Complete } else { FileState::Sealed };
        assert_eq!(seal::look(&path).unwrap(), found);
        let looked = schema::look(&path).unwrap();
        assert!(matches!(looked, FileKind::Ours { sealed, .. } if sealed == (life != 2)));
        assert!(check(dir.path()).unwrap().wrong.is_empty());
    }
    // A write by another program removes the seal.
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("UPDATE meta SET value = value + 1 WHERE key = 'last_epoch'").unwrap();
    connection.close().unwrap();
    assert_eq!(seal::look(&path).unwrap(), FileState::Complete);
    open(dir.path()).unwrap();
}

#[test]
fn a_backup_beside_a_writer_is_consistent_and_a_manager_starts_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let _lock = data_dir::lock(dir.path()).unwrap();
    let mut store = open(dir.path()).unwrap();
    let mut revision = 0;
    for job in 1..=50 {
        revision = add_job(&mut store, job, revision);
    }
    let copies = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let (folder, copies) = (dir.path(), copies.path());
        let copying = scope.spawn(move || {
            (0..10)
                .map(|n| backup(folder, &copies.join(n.to_string())).unwrap())
                .collect::<Vec<_>>()
        });
        let mut job = 50;
        while !copying.is_finished() {
            job += 1;
            revision = add_job(&mut store, job, revision);
        }
        for (n, made) in copying.join().unwrap().into_iter().enumerate() {
            let file = copies.join(n.to_string());
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
            assert!(made.jobs >= 50 && made.revision == made.jobs * 20, "{made:?}");
            let fresh = tempfile::tempdir().unwrap();
            fs::copy(&file, fresh.path().join(FILE_NAME)).unwrap();
            assert!(check(fresh.path()).unwrap().sealed);
            let state = open(fresh.path()).unwrap().state;
            assert!(state.last_job.0 > made.jobs);
            assert_eq!(state.jobs.len() as u64, made.jobs);
            assert_eq!(state.cluster, store.state.cluster);
        }
    });
    let entries = fs::read_dir(copies.path()).unwrap().count();
    assert_eq!(entries, 10, "nothing else is left");
}

#[test]
fn a_backup_overwrites_nothing_and_leaves_nothing_behind() {
    let dir = closed(2, true);
    let file = dir.path().join("copy");
    fs::write(&file, "mine").unwrap();
    let said = backup(dir.path(), &file).unwrap_err().to_string();
    assert!(said.contains("not overwritten") && said.contains("copy"), "{said}");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    fs::remove_file(&file).unwrap();

    let unfinished = dir.path().join("copy.new");
    fs::write(&unfinished, "").unwrap();
    let said = backup(dir.path(), &file).unwrap_err().to_string();
    assert!(said.contains("copy.new") && said.contains("remove it"), "{said}");
    fs::remove_file(&unfinished).unwrap();

    let said = backup(dir.path(), &dir.path().join("no/folder")).unwrap_err().to_string();
    assert!(said.contains("no/folder"), "{said}");
    backup(dir.path(), &file).unwrap();

    // A damaged database is not copied.
    let connection = Connection::open(dir.path().join(FILE_NAME)).unwrap();
    connection.execute_batch("UPDATE jobs SET failed = 0 WHERE job = 1").unwrap();
    connection.close().unwrap();
    let other = dir.path().join("other");
    says_what_to_do(match &backup(dir.path(), &other).unwrap_err() {
        BackupError::Store(error) => error,
        other => unreachable!("{other}"),
    });
    assert!(!other.exists() && !dir.path().join("other.new").exists());
}

#[test]
fn damage_found_while_the_manager_runs_ends_it() {
    let dir = closed(20, false);
    let mut store = open(dir.path()).unwrap();
    let path = dir.path().join(FILE_NAME);
    let pages = fs::metadata(&path).unwrap().len() / 4096;
    let root: i64 = store
        .writer
        .connection()
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'attempts'", [], |r| r.get(0))
        .unwrap();
    // By another process: closing a file handle in this one would release SQLite's locks.
    let status = std::process::Command::new("dd")
        .args(["if=/dev/urandom", "bs=4096", "conv=notrunc", "status=none"])
        .arg(format!("of={}", path.display()))
        .arg(format!("seek={}", root - 1))
        .arg("count=1")
        .status()
        .unwrap();
    assert!(status.success() && pages > 10);
    let connection = open_for_reading(&path).unwrap();
    let history = History::new(connection, path.clone());
    assert!(history.damage().is_none());
    assert!(history.note(history.job(JobId(1))).is_ok() && history.damage().is_none());
    history.note(history.tasks(JobId(1), 1, None, 10)).unwrap_err();
    says_what_to_do(&history.damage().unwrap());

    store.writer.connection().execute_batch("PRAGMA shrink_memory").unwrap();
    let attempt = AttemptId::new(JobId(1), 33, 1);
    let change = Change::AttemptInserted { attempt, node: name("a"), wall_ms: 1, claims: None };
    let (mut step, _) = event_step(20 * 20 + 1, 1);
    step.step.changes = vec![change];
    says_what_to_do(&store.writer.commit(&mut vec![step]).err().unwrap());
}
