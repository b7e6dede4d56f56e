#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use podmesh_manager_core::ids::{ConnectionId, Ticket};
use podmesh_manager_core::state::{Change, JobRow, KeyRow, NodeRow, TokenRow};
use podmesh_manager_core::state::{Closed, Losses, State};
use podmesh_manager_core::step::{Answer, Effect, Step};
use podmesh_protocol::access::{PublicKey, Role, TokenId};
use podmesh_protocol::client::{ReplyBody, TokenState};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{
    AgentId, AttemptId, Epoch, InstanceId, JobId, Name, Revision, SubmissionId, TaskId,
};
use podmesh_protocol::limits::{EVENTS_KEPT, EVENTS_PER_CHUNK_MAX, FRAME_BYTES_MAX};
use podmesh_protocol::node::Scheduling;
use podmesh_protocol::report::{
    AttemptState, JobState, Outcome, OutcomeKind, TaskCounts, TaskState,
};
use podmesh_protocol::session::ToPeer;
use podmesh_protocol::spec::{JobSpec, Resources, RuntimeKind};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::*;

const JOB: JobId = JobId(1);

pub(super) fn job_spec(tasks: u32) -> JobSpec {
    let text = format!(
        r#"{{"name": "count", "array": {{"first": 1, "last": {tasks}}}, "priority": 3,
            "run": {{"runtime": "process", "command": ["true"]}}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) fn node(text: &str) -> NodeRow {
    NodeRow {
        drain: None,
        maintenance: None,
        admin_labels: Default::default(),
        resources: Default::default(),
        node: name(text),
        boot_id: "boot".into(),
        agent_instance: InstanceId(Uuid::from_u128(7)),
        program_version: "1.2.3".into(),
        capacity: Resources { cpu_millis: 4000, memory_bytes: u64::MAX },
        labels: [(name("gpu"), "a100".to_owned())].into(),
        runtimes: vec![RuntimeKind::Process],
        epoch: Epoch(4),
        agent_id: Some(AgentId(Uuid::from_u128(8))),
        lost_age_ms: Some(6),
        scheduling: Scheduling::Draining,
        address: Some("10.0.0.1".into()),
    }
}

pub(super) fn job_change(
    job: JobId,
    state: JobState,
    next_index: u64,
    counts: TaskCounts,
    attempts: u64,
) -> Change {
    let ended = state.is_end().then_some(99);
    let is_cancelled = matches!(state, JobState::Cancelling | JobState::Cancelled);
    Change::JobUpdated(JobRow {
        job,
        state,
        closed: is_cancelled.then_some(Closed::Cancelled),
        rest_cancelled: is_cancelled,
        next_index,
        counts,
        attempts,
        started_wall_ms: (state != JobState::Queued).then_some(10),
        ended_wall_ms: ended,
    })
}

fn job_row(state: JobState, next_index: u64, counts: TaskCounts) -> Change {
    job_change(JOB, state, next_index, counts, next_index - 1)
}

/// Returns a step with this many events, and the revision of the last one.
pub(super) fn event_step(first: u64, number: u64) -> (TimedStep, u64) {
    let last = first + number - 1;
    (events(first, (first..=last).map(fact).collect()), last)
}

fn attempt(index: u32, number: u32) -> AttemptId {
    AttemptId::new(JOB, index, number)
}

fn inserted(index: u32, number: u32) -> Change {
    Change::AttemptInserted {
        attempt: attempt(index, number),
        node: name("a"),
        wall_ms: 10,
        claims: None,
    }
}

fn ended(index: u32, number: u32, kind: OutcomeKind, retry_after_ms: Option<u64>) -> Change {
    let outcome = Outcome { ran_ms: u64::MAX, ..Outcome::new(kind).with_message("why") };
    Change::AttemptEnded { attempt: attempt(index, number), outcome, wall_ms: 20, retry_after_ms }
}

fn submitted(tasks: u32, submission: u128) -> Vec<Change> {
    let spec = Arc::new(job_spec(tasks));
    let submission = SubmissionId(Uuid::from_u128(submission));
    vec![
        Change::EpochTaken(Epoch(4)),
        Change::NodeSaved(Arc::new(node("a"))),
        Change::JobInserted { job: JOB, submission, spec, by: name("ann"), wall_ms: 1 },
        job_row(JobState::Queued, 1, TaskCounts { queued: tasks, ..TaskCounts::default() }),
    ]
}

fn step(changes: Vec<Change>) -> TimedStep {
    TimedStep { step: Step { changes, ..Step::default() }, wall_ms: 1, age_ms: 1 }
}

fn effect(ticket: u64) -> Effect {
    Effect::Answered { ticket: Ticket(ticket), result: Ok(Answer::TokenRevoked) }
}

fn events(first: u64, facts: Vec<EventFact>) -> TimedStep {
    let first_revision = Some(Revision(first));
    TimedStep {
        step: Step { events: facts, first_revision, ..Step::default() },
        wall_ms: 1,
        age_ms: 1,
    }
}

fn fact(n: u64) -> EventFact {
    EventFact::JobCancelRequested { job: JobId(n) }
}

pub(super) fn write(store: &mut Store, steps: Vec<TimedStep>) -> Commit {
    let mut batch = steps;
    store.writer.commit(&mut batch).unwrap()
}

fn replied(history: &History, since: u64) -> (Vec<(u64, u64)>, u64) {
    let Ok(ReplyBody::Events { chunks, last }) = history.events(Revision(since)) else {
        unreachable!("no events reply")
    };
    let numbers = chunks
        .iter()
        .flat_map(podmesh_protocol::event::EventChunk::iter)
        .map(|(revision, fact)| (revision.0, fact.job().unwrap().0))
        .collect();
    (numbers, last.0)
}

#[test]
fn a_start_restores_what_has_not_ended_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let mut state = store.state.clone();
    assert_eq!(state, State::new(state.cluster));
    let mut changes = submitted(10, 1);
    changes.extend([
        inserted(1, 1),
        inserted(2, 1),
        inserted(3, 1),
        inserted(4, 1),
        Change::AttemptAdvanced {
            attempt: attempt(1, 1),
            state: AttemptState::Running,
            wall_ms: 11,
        },
        ended(2, 1, OutcomeKind::Succeeded, None),
        ended(3, 1, OutcomeKind::Failed, Some(500)),
        ended(4, 1, OutcomeKind::Lost, Some(0)),
        inserted(4, 2),
    ]);
    let counts = TaskCounts { queued: 7, active: 2, succeeded: 1, failed: 0, cancelled: 0 };
    changes.push(job_change(JOB, JobState::Running, 5, counts, 5));
    let mut done = step(changes);
    done.step.events = vec![fact(1), fact(2)];
    done.step.first_revision = Some(Revision(1));
    done.step.apply_to(&mut state);
    write(&mut store, vec![done]);
    drop(store);
    let restored = open(dir.path()).unwrap().state;
    // SQLite has no larger integers.
    let saved = &mut state.nodes.get_mut(&name("a")).unwrap();
    Arc::make_mut(saved).capacity.memory_bytes = i64::MAX as u64;
    assert_eq!(restored, state);
    assert_eq!(restored.last_revision, Revision(2));
    let job = &restored.jobs[&JOB];
    assert_eq!((job.counts, job.attempts), (counts, 5));
    assert_eq!(job.retries.keys().collect::<Vec<_>>(), [&3]);
    assert_eq!(job.active.keys().collect::<Vec<_>>(), [&1, &4]);
    assert_eq!(job.active[&4].past.losses, Losses { lost: 1, ..Losses::default() });
}

#[test]
fn a_forgotten_node_is_gone_except_in_the_history_of_its_attempts() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let mut changes = submitted(2, 1);
    changes.extend([inserted(1, 1), ended(1, 1, OutcomeKind::Lost, None)]);
    let counts = TaskCounts { queued: 1, failed: 1, ..TaskCounts::default() };
    changes.extend([Change::NodeForgotten(name("a")), job_row(JobState::Running, 2, counts)]);
    write(&mut store, vec![step(changes)]);
    let task = TaskId { job: JOB, index: 1 };
    let node_of = |store: &Store| store.history.task(task).unwrap().attempts[0].node.clone();
    assert_eq!(node_of(&store), name("a"));
    drop(store);
    let mut store = open(dir.path()).unwrap();
    assert!(store.state.nodes.is_empty());
    assert!(check(dir.path()).unwrap().wrong.is_empty());
    // The node gets no attempts until an agent has its name again.
    let error = store.writer.commit(&mut vec![step(vec![inserted(2, 1)])]).err().unwrap();
    assert!(matches!(error, StoreError::Contradiction { .. }), "{error}");
    let other = NodeRow { agent_id: Some(AgentId(Uuid::from_u128(9))), ..node("a") };
    let counts = TaskCounts { active: 1, failed: 1, ..TaskCounts::default() };
    let saved = Change::NodeSaved(Arc::new(other.clone()));
    let again = vec![saved, inserted(2, 1), job_row(JobState::Running, 3, counts)];
    write(&mut store, vec![step(again)]);
    assert_eq!(node_of(&store), name("a"));
    drop(store);
    let nodes = open(dir.path()).unwrap().state.nodes;
    assert_eq!((nodes.len(), nodes[&name("a")].agent_id), (1, other.agent_id));
}

#[test]
fn tokens_and_keys_are_restored_as_last_saved() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let token = |id, role, uses_left| TokenRow {
        id: TokenId(id),
        secret_hash: [id as u8; 32],
        role,
        expires_wall_ms: 1_700_000_000_123,
        uses_left,
        created_by: name("root"),
        revoked: id == 4,
        api: id == 3,
        used_wall_ms: (id == 3).then_some(78),
    };
    let key = |number: u8, role| KeyRow {
        key: PublicKey([number; 32]),
        role,
        name: name("a"),
        token: TokenId(2),
        enrolled_wall_ms: 77,
        revoked: false,
        renews: (number == 4).then_some(PublicKey([3; 32])),
        revoked_age_ms: None,
    };
    let revoked = KeyRow { revoked: true, revoked_age_ms: Some(6), ..key(3, Role::Agent) };
    write(
        &mut store,
        vec![
            step(vec![
                Change::TokenSaved(token(1, Role::Agent, 1)),
                Change::TokenSaved(token(2, Role::Viewer, 2)),
                Change::TokenSaved(token(3, Role::Operator, 10_000)),
                Change::TokenSaved(token(4, Role::Admin, 1)),
                Change::KeySaved(key(3, Role::Agent)),
                Change::KeySaved(key(4, Role::Viewer)),
                Change::KeySaved(key(5, Role::Viewer)),
                Change::KeySaved(KeyRow { name: name("bob"), ..key(7, Role::Viewer) }),
                Change::KeySaved(KeyRow { name: name("ann"), ..key(6, Role::Admin) }),
            ]),
            step(vec![
                Change::TokenRemoved(TokenId(1)),
                Change::TokenSaved(token(2, Role::Viewer, 1)),
                Change::KeySaved(revoked.clone()),
                Change::KeyRemoved(PublicKey([5; 32])),
            ]),
        ],
    );
    let users = |after: Option<&Name>, limit| {
        let users = store.history.users(after, limit).unwrap();
        users.into_iter().map(|user| (user.name.to_string(), user.key.0[0])).collect::<Vec<_>>()
    };
    let (ann, bob) = (("ann".to_owned(), 6), ("bob".to_owned(), 7));
    // Neither a node, nor a key that waits for its first use.
    assert_eq!(users(None, 9), [ann.clone(), bob.clone()]);
    assert_eq!(users(None, 1), std::slice::from_ref(&ann));
    assert_eq!(users(Some(&name("ann")), 9), [bob]);
    let listed = store.history.join_tokens(1_700_000_000_122).unwrap();
    let states: Vec<_> = listed.iter().map(|token| token.state.clone()).collect();
    assert_eq!(states, [TokenState::Usable, TokenState::Usable, TokenState::Revoked]);
    drop(store);
    let state = open(dir.path()).unwrap().state;
    let tokens =
        [token(2, Role::Viewer, 1), token(3, Role::Operator, 10_000), token(4, Role::Admin, 1)];
    assert_eq!(state.last_token, TokenId(4));
    assert_eq!(state.tokens.into_values().collect::<Vec<_>>(), tokens);
    let keys: Vec<_> = state.keys.into_values().take(2).collect();
    assert_eq!(keys, [revoked, key(4, Role::Viewer)]);
}

#[test]
fn a_dropped_retry_and_an_ended_job_are_not_restored() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let mut changes = submitted(1, 1);
    changes.extend([inserted(1, 1), ended(1, 1, OutcomeKind::Failed, Some(5))]);
    write(&mut store, vec![step(changes)]);
    write(
        &mut store,
        vec![step(vec![
            Change::RetryDropped { attempt: attempt(1, 1) },
            job_row(JobState::Cancelled, 2, TaskCounts { cancelled: 1, ..TaskCounts::default() }),
        ])],
    );
    let task = store.history.task(TaskId { job: JOB, index: 1 }).unwrap();
    assert_eq!(task.state, TaskState::Cancelled);
    assert_eq!(store.history.job_state(JOB).unwrap().0, JobState::Cancelled);
    drop(store);
    let state = open(dir.path()).unwrap().state;
    assert!(state.jobs.is_empty());
    assert_eq!(state.last_job, JOB);
}

/// A running thread of the writer, with its channels.
struct Running {
    steps: Option<crossbeam_channel::Sender<TimedStep>>,
    committed: mpsc::Receiver<Commit>,
    thread: thread::JoinHandle<Result<(), StoreError>>,
}

impl Running {
    fn start(writer: Writer) -> Self {
        let (steps, receiver) = crossbeam_channel::bounded(16);
        let (sender, committed) = mpsc::channel(16);
        let (_stop, stopping) = watch::channel(false);
        let pulse = podmesh_wire::watchdog::Watchdog::default().pulse("store");
        let thread = thread::spawn(move || writer.run(&receiver, &sender, &stopping, &pulse));
        Self { steps: Some(steps), committed, thread }
    }

    fn send(&self, step: TimedStep) {
        self.steps.as_ref().unwrap().send(step).unwrap();
    }

    fn stop(&mut self) {
        self.steps = None;
    }
}

#[test]
fn effects_are_released_only_after_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let other = Connection::open(dir.path().join(FILE_NAME)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut running = Running::start(store.writer);
    let mut first = step(submitted(1, 1));
    first.step.effects = vec![effect(1)];
    running.send(first);
    // There can be no commit while another connection holds the lock. A longer wait would only make
    // it more likely to catch a wrong writer.
    thread::sleep(Duration::from_millis(100));
    assert!(running.committed.try_recv().is_err());
    assert_eq!(store.history.submission(SubmissionId(Uuid::from_u128(1))).unwrap(), None);

    other.execute_batch("ROLLBACK").unwrap();
    let done = running.committed.blocking_recv().unwrap();
    assert_eq!(done.effects, [effect(1)]);
    assert_eq!(store.history.submission(SubmissionId(Uuid::from_u128(1))).unwrap(), Some(JOB));
    running.stop();
    running.thread.join().unwrap().unwrap();
}

#[test]
fn waiting_steps_are_committed_together_and_their_effects_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let other = Connection::open(dir.path().join(FILE_NAME)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut running = Running::start(store.writer);
    let mut first = step(submitted(10, 1));
    first.step.effects = vec![effect(0)];
    running.send(first);
    for index in 1..=10_u32 {
        let mut next = step(vec![inserted(index, 1)]);
        next.step.effects = vec![effect(u64::from(index))];
        // Every fifth step has nothing to write.
        if index % 5 == 0 {
            next.step.changes.clear();
        }
        running.send(next);
    }
    running.stop();
    other.execute_batch("ROLLBACK").unwrap();
    let mut effects = Vec::new();
    let mut commits = 0;
    while let Some(done) = running.committed.blocking_recv() {
        commits += 1;
        effects.extend(done.effects);
    }
    running.thread.join().unwrap().unwrap();
    assert_eq!(effects, (0..=10).map(effect).collect::<Vec<_>>());
    // The writer takes the first step, alone or with some others, and then all the rest at once.
    assert!(commits <= 2, "{commits} commits");
}

#[test]
fn a_change_that_contradicts_the_database_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    write(&mut store, vec![step(submitted(3, 1)), events(1, vec![fact(1)])]);
    for wrong in [
        step(vec![ended(1, 1, OutcomeKind::Succeeded, None)]),
        step(vec![Change::AttemptInserted {
            claims: None,
            attempt: attempt(1, 1),
            node: name("unknown"),
            wall_ms: 1,
        }]),
        events(3, vec![fact(3)]),
        events(1, vec![fact(1)]),
    ] {
        let mut batch = vec![step(vec![inserted(2, 1)]), wrong];
        let said = store.writer.commit(&mut batch).unwrap_err().to_string();
        assert!(said.contains("bug"), "{said}");
    }
    drop(store);
    assert!(open(dir.path()).unwrap().state.jobs.values().all(|job| job.active.is_empty()));
}

#[test]
fn events_have_no_gap_from_any_revision() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    assert_eq!(replied(&store.history, 0), (vec![], 0));
    let many = EVENTS_PER_CHUNK_MAX as u64 + 3;
    let done = write(
        &mut store,
        vec![
            events(1, vec![fact(1), fact(2), fact(3)]),
            events(4, (4..4 + many).map(fact).collect()),
        ],
    );
    let last = 3 + many;
    assert_eq!(store.writer.last_revision().load(std::sync::atomic::Ordering::Acquire), last);
    assert!(done.chunks.iter().all(|chunk| chunk.chunk.facts.len() <= EVENTS_PER_CHUNK_MAX));
    for since in [0, 1, 2, 3, 4, 1000, last - 1] {
        let expected = (since + 1..=last).map(|n| (n, n)).collect::<Vec<_>>();
        assert_eq!(replied(&store.history, since), (expected, last), "since {since}");
    }
    assert_eq!(replied(&store.history, last), (vec![], last));
    assert_eq!(replied(&store.history, u64::MAX), (vec![], last));
}

#[test]
fn large_events_are_split_into_messages_that_fit() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let text = "x".repeat(2048);
    let facts = (1..=2000).map(|n| EventFact::LogGap {
        attempt: AttemptId::new(JobId(n), 1, 1),
        message: text.clone(),
    });
    write(&mut store, vec![events(1, facts.collect())]);
    let mut since = 0;
    let mut pages = 0;
    while since < 2000 {
        let reply = store.history.events(Revision(since)).unwrap();
        assert!(rmp_serde::to_vec_named(&reply).unwrap().len() < FRAME_BYTES_MAX - 1024);
        let (numbers, _) = replied(&store.history, since);
        assert_eq!(numbers.first(), Some(&(since + 1, since + 1)));
        since += numbers.len() as u64;
        pages += 1;
    }
    assert!((4..20).contains(&pages), "{pages} pages");
}

#[test]
fn old_events_are_removed_and_a_request_for_them_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let mut next = 1;
    while next <= EVENTS_KEPT + 10_000 {
        let facts = (next..next + 4000).map(fact).collect();
        write(&mut store, vec![events(next, facts)]);
        next += 4000;
    }
    let kept: i64 = store
        .writer
        .connection()
        .query_row("SELECT sum(last - first + 1) FROM events", [], |row| row.get(0))
        .unwrap();
    assert!((EVENTS_KEPT as i64..EVENTS_KEPT as i64 + 8000).contains(&kept), "{kept} are kept");
    let Err(ReadError::Compacted { oldest, .. }) = store.history.events(Revision(0)) else {
        unreachable!("not refused")
    };
    assert!(store.history.events(Revision(oldest.0 - 2)).is_err());
    let (numbers, _) = replied(&store.history, oldest.0 - 1);
    assert_eq!(numbers.first(), Some(&(oldest.0, oldest.0)));
}

#[test]
fn tasks_with_and_without_attempts_form_one_list() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let mut changes = submitted(2500, 1);
    for index in 1..=6 {
        changes.push(inserted(index, 1));
    }
    changes.extend([
        ended(1, 1, OutcomeKind::Succeeded, None),
        ended(2, 1, OutcomeKind::Failed, Some(1)),
        ended(3, 1, OutcomeKind::Failed, Some(1)),
        inserted(3, 2),
        ended(4, 1, OutcomeKind::TimedOut, None),
        ended(5, 1, OutcomeKind::Cancelled, None),
    ]);
    let counts = TaskCounts { queued: 2495, active: 2, succeeded: 1, failed: 1, cancelled: 1 };
    changes.push(job_row(JobState::Running, 7, counts));
    write(&mut store, vec![step(changes)]);

    let (all, next) = store.history.tasks(JOB, 0, None, 7).unwrap();
    let states: Vec<_> = all
        .iter()
        .map(|task| (task.task.index, *task.state.known().unwrap(), task.attempts))
        .collect();
    assert_eq!(
        states,
        [
            (1, TaskState::Succeeded, 1),
            (2, TaskState::Queued, 1),
            (3, TaskState::Active, 2),
            (4, TaskState::Failed, 1),
            (5, TaskState::Cancelled, 1),
            (6, TaskState::Active, 1),
            (7, TaskState::Queued, 0),
        ]
    );
    assert_eq!(next, Some(8));
    assert_eq!(all[2].last.as_ref().unwrap().number, 2);

    // All pages together have each task once, also when filtered by state.
    for (state, expected) in
        [(None, 2500), (Some(TaskState::Queued), 2495), (Some(TaskState::Active), 2)]
    {
        let mut seen = Vec::new();
        let mut from = Some(0);
        while let Some(at) = from {
            let (tasks, next) = store.history.tasks(JOB, at, state, 999).unwrap();
            seen.extend(tasks.iter().map(|task| task.task.index));
            from = next;
        }
        assert_eq!(seen.len(), expected);
        assert!(seen.is_sorted_by(|a, b| a < b));
    }

    write(&mut store, vec![step(vec![job_row(JobState::Cancelling, 7, counts)])]);
    let (tasks, _) = store.history.tasks(JOB, 2500, None, 10).unwrap();
    assert_eq!(tasks[0].state, TaskState::Cancelled);
    assert_eq!(store.history.tasks(JOB, 2501, None, 10).unwrap(), (vec![], None));
}

#[test]
fn large_pages_and_details_fit_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let mut changes = submitted(1000, 1);
    let long = |index, number, retry| Change::AttemptEnded {
        attempt: attempt(index, number),
        outcome: Outcome::new(OutcomeKind::Failed).with_message("\u{1f4a5}".repeat(600)),
        wall_ms: 1,
        retry_after_ms: retry,
    };
    for index in 1..=1000 {
        changes.extend([inserted(index, 1), long(index, 1, (index == 1).then_some(0))]);
    }
    for number in 2..=1001 {
        changes.extend([inserted(1, number), long(1, number, Some(0))]);
    }
    write(&mut store, vec![step(changes)]);
    let (tasks, next) = store.history.tasks(JOB, 1, None, 1000).unwrap();
    assert_eq!(next, Some(u32::try_from(tasks.len()).unwrap() + 1));
    assert!(tasks.len() > 300);
    let reply = ReplyBody::Tasks { tasks, next };
    assert!(rmp_serde::to_vec_named(&reply).unwrap().len() < FRAME_BYTES_MAX - 1024);
    let detail = store.history.task(TaskId { job: JOB, index: 1 }).unwrap();
    assert_eq!(detail.attempts.last().unwrap().number, 1001);
    assert!(detail.attempts.len() > 300);
    assert!(rmp_serde::to_vec_named(&detail).unwrap().len() < FRAME_BYTES_MAX - 1024);
}

#[test]
fn errors_for_missing_jobs_tasks_and_attempts_say_what_exists() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let said = |error: ReadError| error.to_string();
    assert_eq!(
        said(store.history.job(JobId(12)).unwrap_err()),
        "there is no job 12; no job has been submitted yet"
    );
    write(&mut store, vec![step(submitted(3, 1))]);
    assert_eq!(
        said(store.history.job(JobId(u64::MAX)).unwrap_err()),
        format!("there is no job {}; the last one is 1", u64::MAX)
    );
    assert_eq!(
        said(store.history.task(TaskId { job: JOB, index: 4 }).unwrap_err()),
        "there is no task 1.4; its tasks are 1.1 to 1.3"
    );
    assert_eq!(
        said(store.history.node_of(attempt(3, 1)).unwrap_err()),
        "there is no attempt 1.3#1; task 1.3 has not been tried yet"
    );
    write(&mut store, vec![step(vec![inserted(3, 1)])]);
    assert_eq!(
        said(store.history.node_of(attempt(3, 2)).unwrap_err()),
        "there is no attempt 1.3#2; the last one is 1.3#1"
    );
    assert_eq!(store.history.node_of(attempt(3, 1)).unwrap(), name("a"));
}

#[test]
fn a_job_stores_the_revision_of_its_last_change() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let mut first = step(submitted(3, 1));
    first.step.events = vec![fact(1), fact(2)];
    first.step.first_revision = Some(Revision(1));
    let done = write(&mut store, vec![first, events(3, vec![fact(3)])]);
    assert_eq!(done.touched.into_iter().collect::<Vec<_>>(), [JOB]);
    let (detail, changed) = store.history.job(JOB).unwrap();
    assert_eq!((detail.revision, changed), (Revision(3), Revision(2)));
    assert_eq!(detail.view.counts.queued, 3);
    let (ann, bob) = (name("ann"), name("bob"));
    for active in [true, false] {
        let listed = |by: Option<&Name>| {
            let only = JobFilter { active, by: by.cloned(), ..JobFilter::default() };
            store.history.jobs(None, &only, 10).unwrap()
        };
        let view = std::slice::from_ref(&detail.view);
        assert_eq!(listed(None), view);
        assert_eq!(listed(Some(&ann)), view);
        assert_eq!(listed(Some(&bob)), []);
    }
    assert_eq!(store.history.jobs(Some(JOB), &JobFilter::default(), 10).unwrap(), []);
}

#[test]
fn effects_are_released_without_a_commit_if_there_is_nothing_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let other = Connection::open(dir.path().join(FILE_NAME)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let connection = ConnectionId(1);
    let send = Effect::Send { connection, message: ToPeer::HelloAgain(Epoch(1)) };
    let mut only = step(Vec::new());
    only.step.effects = vec![send.clone()];
    assert_eq!(write(&mut store, vec![only]).effects, [send]);
}
