//! A database on a full disk that has space again later.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::thread;

use crossbeam_channel::unbounded;
use podmesh_protocol::report::{JobState, TaskCounts};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::tests::{event_step, job_spec};
use super::*;
use crate::store::commit::TimedStep;

/// Returns a step with a job and more events than fit a page.
fn large_step(job: u64, first_event: u64) -> (TimedStep, u64) {
    let (mut decided, last) = event_step(first_event, 2_000);
    decided.step.changes = vec![
        podmesh_manager_core::state::Change::JobInserted {
            job: podmesh_protocol::ids::JobId(job),
            submission: podmesh_protocol::ids::SubmissionId(Uuid::from_u128(u128::from(job))),
            spec: std::sync::Arc::new(job_spec(1)),
            by: "ann".parse().unwrap(),
            wall_ms: 1,
        },
        super::tests::job_change(
            podmesh_protocol::ids::JobId(job),
            JobState::Queued,
            1,
            TaskCounts { queued: 1, ..TaskCounts::default() },
            0,
        ),
    ];
    (decided, last)
}

/// Limits the database to this many pages.
fn pages_max(writer: &Writer, pages: i64) {
    let set = format!("PRAGMA max_page_count = {pages}");
    writer.connection().query_row(&set, [], |_| Ok(())).unwrap();
}

#[test]
fn a_commit_on_a_full_disk_loses_nothing_and_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    pages_max(&store.writer, 1);
    let (decided, last) = large_step(1, 1);
    let mut batch = vec![decided];
    for _ in 0..2 {
        let error = store.writer.commit(&mut batch).unwrap_err();
        assert!(matches!(error, StoreError::Full { .. }), "{error}");
        assert_eq!(batch[0].step.events.len(), 2_000, "the batch is unchanged");
    }
    pages_max(&store.writer, 1 << 30);
    let done = store.writer.commit(&mut batch).unwrap();
    assert_eq!(done.chunks.iter().map(|row| row.chunk.facts.len()).sum::<usize>(), 2_000);
    assert_eq!(done.chunks.last().unwrap().chunk.last().0, last);
    drop(store);
    assert_eq!(open(dir.path()).unwrap().state.last_revision.0, last);
}

#[test]
fn a_stopping_manager_does_not_wait_for_disk_space() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    pages_max(&store.writer, 1);
    let (steps, receiver) = unbounded();
    let (committed, _effects) = mpsc::channel(1);
    let (stop, stopping) = watch::channel(false);
    let pulse = podmesh_wire::watchdog::Watchdog::default().pulse("store");
    let writer = thread::spawn(move || store.writer.run(&receiver, &committed, &stopping, &pulse));
    steps.send(large_step(1, 1).0).unwrap();
    stop.send(true).unwrap();
    let error = writer.join().unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
}
