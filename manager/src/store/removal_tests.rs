//! Tests of removed jobs and nodes, and of a file that becomes shorter.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::sync::Arc;

use podmesh_manager_core::state::Change;
use podmesh_manager_core::step::Step;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{AttemptId, JobId, SubmissionId, TaskId};
use podmesh_protocol::report::{JobState, Outcome, OutcomeKind, TaskCounts};
use uuid::Uuid;

use super::tests::{job_change, job_spec, name, node, write};
use super::*;

const HOUR_MS: u64 = 3600 * 1000;

fn step(changes: Vec<Change>, age_ms: u64) -> TimedStep {
    TimedStep { step: Step { changes, ..Step::default() }, wall_ms: 1, age_ms }
}

/// Returns the changes of a job with `tasks` tasks. Each has had one attempt, which has ended if the
/// job has.
fn job(job: u64, tasks: u32, state: JobState) -> Vec<Change> {
    let id = JobId(job);
    let submission = SubmissionId(Uuid::from_u128(job.into()));
    let spec = Arc::new(job_spec(tasks));
    let mut changes =
        vec![Change::JobInserted { job: id, submission, spec, by: name("ann"), wall_ms: 1 }];
    for index in 1..=tasks {
        let attempt = AttemptId::new(id, index, 1);
        changes.push(Change::AttemptInserted {
            attempt,
            node: name("a"),
            wall_ms: 1,
            claims: None,
        });
        if state.is_end() {
            let outcome = Outcome::new(OutcomeKind::Succeeded);
            let (wall_ms, retry_after_ms) = (2, None);
            changes.push(Change::AttemptEnded { attempt, outcome, wall_ms, retry_after_ms });
        }
    }
    let counts = TaskCounts::default();
    let counts = match state.is_end() {
        true => TaskCounts { succeeded: tasks, ..counts },
        false => TaskCounts { active: tasks, ..counts },
    };
    changes.push(job_change(id, state, u64::from(tasks) + 1, counts, tasks.into()));
    changes
}

/// Returns a store with these jobs: the number of tasks, the state, and the time of the end of each.
fn store_with(dir: &Path, jobs: &[(u32, JobState, u64)]) -> Store {
    let mut store = open(dir).unwrap();
    write(&mut store, vec![step(vec![Change::NodeSaved(Arc::new(node("a")))], 0)]);
    let epoch = Change::EpochTaken(node("a").epoch);
    write(&mut store, vec![step(vec![epoch], 0)]);
    for (number, (tasks, state, age_ms)) in (1..).zip(jobs) {
        write(&mut store, vec![step(job(number, *tasks, *state), *age_ms)]);
    }
    store
}

fn remove(store: &mut Store, jobs: &[u64]) {
    let changes = jobs.iter().map(|job| Change::JobRemoved(JobId(*job))).collect();
    write(store, vec![step(changes, 0)]);
}

fn refused<T: std::fmt::Debug>(result: Result<T, ReadError>) -> String {
    let error: ErrorReply = result.unwrap_err().into();
    assert_eq!(error.code, ErrorCode::NotFound);
    error.message
}

fn attempts(store: &Store) -> i64 {
    let count = "SELECT count(*) FROM attempts";
    store.writer.connection().query_row(count, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_removed_job_is_gone_at_once_and_its_attempts_step_by_step() {
    let dir = tempfile::tempdir().unwrap();
    let done = JobState::Succeeded;
    let jobs = [(5_000, done, 0), (3, done, 0), (2, JobState::Running, 0)];
    let mut store = store_with(dir.path(), &jobs);
    remove(&mut store, &[1, 2]);
    for job in [1, 2] {
        let task = TaskId { job: JobId(job), index: 1 };
        let whys = [
            refused(store.history.job(JobId(job))),
            refused(store.history.job_state(JobId(job))),
            refused(store.history.tasks(JobId(job), 0, None, 10)),
            refused(store.history.task(task)),
            refused(store.history.node_of(AttemptId { task, number: 1 })),
        ];
        for why in whys {
            assert!(why.contains(&format!("job {job} was removed")), "{why}");
            assert!(why.contains("keep_attempts") && why.contains(&format!("{job}/")), "{why}");
        }
    }
    assert!(refused(store.history.job(JobId(4))).contains("the last one is 3"));
    assert!(!refused(store.history.job(JobId(4))).contains("removed"));
    assert_eq!(store.history.jobs(None, &JobFilter::default(), 10).unwrap().len(), 1);
    let submission = SubmissionId(Uuid::from_u128(1));
    assert_eq!(store.history.submission(submission).unwrap(), None);

    // The small job is removed completely. The attempts of the large one are removed in steps; the
    // remaining ones are not damage.
    assert_eq!(attempts(&store), 5_002);
    let mut before = attempts(&store);
    while before > 2 {
        store.writer.remove_leftovers().unwrap();
        let after = attempts(&store);
        assert!(after < before && before - after < 2_000, "{before} became {after}");
        let found = check::examine(store.writer.connection(), dir.path()).unwrap();
        assert_eq!((found.wrong, found.attempts), (vec![], 2));
        before = after;
    }
    remove(&mut store, &[1]);
    assert_eq!(attempts(&store), 2, "removing it again does nothing");
}

#[test]
fn a_restart_continues_to_remove_and_reuses_no_number() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store_with(dir.path(), &[(2_500, JobState::Succeeded, 0)]);
    remove(&mut store, &[1]);
    store.writer.remove_leftovers().unwrap();
    drop(store);
    let mut store = open(dir.path()).unwrap();
    assert_eq!(store.state.last_job, JobId(1));
    assert!(attempts(&store) > 0);
    for _ in 0..5 {
        store.writer.remove_leftovers().unwrap();
    }
    assert_eq!(attempts(&store), 0);
    assert!(refused(store.history.job(JobId(2))).contains("the last one is 1"));
}

#[test]
fn commits_of_a_busy_manager_remove_more_than_they_add() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store_with(dir.path(), &[(3_000, JobState::Succeeded, 0)]);
    remove(&mut store, &[1]);
    let mut commits = 0;
    for number in 2.. {
        let before = attempts(&store);
        write(&mut store, vec![step(job(number, 500, JobState::Succeeded), 0)]);
        if before == attempts(&store) - 500 {
            break;
        }
        assert!(attempts(&store) < before);
        commits += 1;
    }
    assert!(commits < 6, "it took {commits} commits");
    let found = check::examine(store.writer.connection(), dir.path()).unwrap();
    assert_eq!(found.wrong, Vec::<String>::new());
}

#[test]
fn the_file_shrinks_after_jobs_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let mut store = store_with(dir.path(), &[(100_000, JobState::Succeeded, 0)]);
    let length = || fs::metadata(&path).unwrap().len();
    assert!(store.writer.empty_the_wal(Duration::ZERO));
    let before = length();
    remove(&mut store, &[1]);
    for _ in 0..10_000 {
        store.writer.remove_leftovers().unwrap();
    }
    // Some unused pages stay in it, to be used again.
    assert!(length() < before / 2, "{before} became {}", length());
    let found = check::examine(store.writer.connection(), dir.path()).unwrap();
    assert_eq!(found.wrong, Vec::<String>::new());
    // It can be backed up.
    let made = backup(dir.path(), &dir.path().join("copy")).unwrap();
    assert!(made.bytes <= length() + 32);
}

#[test]
fn overdue_jobs_come_in_the_order_of_their_ends() {
    let dir = tempfile::tempdir().unwrap();
    let done = JobState::Succeeded;
    let jobs = [
        (10, done, 5 * HOUR_MS),
        (1, done, 2 * HOUR_MS),
        (0, JobState::Cancelled, 3 * HOUR_MS),
        (7, JobState::Running, 0),
        (4, done, 9 * HOUR_MS),
    ];
    let mut store = store_with(dir.path(), &jobs);
    let overdue = |store: &Store, before: u64, attempts: u64, limit: u32| {
        let jobs = store.history.overdue(before * HOUR_MS, attempts, limit).unwrap();
        jobs.into_iter().map(|job| job.0).collect::<Vec<_>>()
    };
    // By age.
    assert_eq!(overdue(&store, 0, u64::MAX, 10), [0; 0]);
    assert_eq!(overdue(&store, 3, u64::MAX, 10), [2]);
    assert_eq!(overdue(&store, 6, u64::MAX, 10), [2, 3, 1]);
    assert_eq!(overdue(&store, 1_000_000, u64::MAX, 10), [2, 3, 1, 5]);
    assert_eq!(overdue(&store, 1_000_000, u64::MAX, 2), [2, 3]);
    // By number: 16 attempts are kept. The job without attempts counts as one.
    assert_eq!(overdue(&store, 0, 16, 10), [0; 0]);
    assert_eq!(overdue(&store, 0, 15, 10), [2]);
    assert_eq!(overdue(&store, 0, 13, 10), [2, 3, 1]);
    assert_eq!(overdue(&store, 0, 0, 10), [2, 3, 1, 5]);
    // Or by both.
    assert_eq!(overdue(&store, 3, 14, 10), [2, 3]);
    remove(&mut store, &[2, 3, 3]);
    assert_eq!(overdue(&store, 0, 14, 10), [0; 0]);
    assert_eq!(overdue(&store, 0, 13, 10), [1]);
}

#[test]
fn a_range_has_the_jobs_that_exist_and_whether_they_have_ended() {
    let dir = tempfile::tempdir().unwrap();
    let done = JobState::Succeeded;
    let jobs = [(1, done, 0), (1, JobState::Running, 0), (1, done, 0), (1, done, 0)];
    let mut store = store_with(dir.path(), &jobs);
    remove(&mut store, &[3]);
    let between = |first, last, limit| {
        let found = store.history.jobs_between(JobId(first), JobId(last), limit);
        found.map(|found| found.into_iter().map(|(job, ended)| (job.0, ended)).collect::<Vec<_>>())
    };
    assert_eq!(between(0, u64::MAX, 10).unwrap(), [(1, true), (2, false), (4, true)]);
    assert_eq!(between(2, 4, 1).unwrap(), [(2, false)]);
    assert_eq!(between(3, 3, 10).unwrap(), []);
    assert_eq!(between(5, 9, 10).unwrap(), []);
    assert!(refused(between(5, 5, 10)).contains("the last one is 4"));
}

#[test]
fn a_forgotten_node_is_removed_when_no_job_can_have_attempts_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let done = JobState::Succeeded;
    let mut store = store_with(dir.path(), &[(1, done, 0), (100, done, 0)]);
    write(&mut store, vec![step(vec![Change::NodeForgotten(name("a"))], 0)]);
    // Job 3 is submitted later and cannot have attempts on it.
    let mut later = vec![Change::NodeSaved(Arc::new(node("b")))];
    later.extend(job(3, 0, JobState::Cancelled));
    write(&mut store, vec![step(later, 0)]);
    let nodes_after = |store: &mut Store, removed: &[u64]| -> i64 {
        remove(store, removed);
        write(store, vec![step(vec![Change::AgeSaved(1)], 0)]);
        let count = "SELECT count(*) FROM nodes";
        store.writer.connection().query_row(count, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(nodes_after(&mut store, &[1]), 2);
    assert_eq!(nodes_after(&mut store, &[2]), 2, "attempts of job 2 are still there");
    while attempts(&store) > 0 {
        store.writer.remove_leftovers().unwrap();
    }
    assert_eq!(nodes_after(&mut store, &[]), 1);
    let found = check::examine(store.writer.connection(), dir.path()).unwrap();
    assert_eq!(found.wrong, Vec::<String>::new());
    // A node of the same name can come back.
    let saved = Change::NodeSaved(Arc::new(node("a")));
    write(&mut store, vec![step(vec![saved], 0)]);
    assert_eq!(nodes_after(&mut store, &[3]), 2);
}

#[test]
fn a_clock_that_jumps_makes_nothing_old() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let (year_ms, wall_ms) = (366 * 24 * HOUR_MS, 1_700_000_000_000);
    let mut saved = step(vec![Change::AgeSaved(100 * HOUR_MS)], 0);
    saved.wall_ms = wall_ms;
    write(&mut store, vec![saved]);
    let age = |wall_ms| restore::age_ms(store.writer.connection(), wall_ms).unwrap() / HOUR_MS;
    assert_eq!(age(wall_ms + 5 * HOUR_MS), 105);
    assert_eq!(age(wall_ms + year_ms), 124, "a year off, or a jump of a year, counts as one day");
    assert_eq!(age(wall_ms - year_ms), 100, "it never goes back");
}
