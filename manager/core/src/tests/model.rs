//! A follower of the core: it applies the changes to a state of its own, and checks their rules
//! against a history of all attempts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, JobId, Name, SubmissionId, TaskId};
use podmesh_protocol::limits::DEAD_LETTERS_PER_JOB;
use podmesh_protocol::queue::DEFAULT_QUEUE;
use podmesh_protocol::report::{AttemptState, JobState, OutcomeKind, TaskCounts};
use podmesh_protocol::spec::{ArrayRange, JobSpec};
use podmesh_protocol::workflow::{Condition, Dependency};

use super::CLUSTER;
use crate::state::UpstreamFact;
use crate::state::{Change, JobRow, KeyRow};
use crate::state::{EndedTask, IndexSet, Job, Progress, State, Upstream, failed};
use crate::step::Step;

#[derive(Debug)]
pub(super) struct Model {
    /// The state to which the changes lead, as they were serialized.
    pub(super) state: State,
    /// All jobs that were not removed, ended ones included.
    jobs: BTreeMap<JobId, ModelJob>,
    submissions: BTreeSet<SubmissionId>,
    tasks: BTreeMap<TaskId, Vec<ModelAttempt>>,
    /// The attempts of removed jobs. Agents can still report on them.
    removed: Vec<(AttemptId, Name)>,
    /// The instants of schedules that were decided on.
    instants: BTreeSet<(Name, u64)>,
    /// The attempts that have a dead-letter job.
    dead_letters: BTreeSet<AttemptId>,
}

#[derive(Debug)]
struct ModelJob {
    spec: Arc<JobSpec>,
    submission: SubmissionId,
    by: Name,
    waits_since_wall_ms: u64,
    row: Option<JobRow>,
    /// What it waits for, as it was at its end.
    upstream: Option<Box<Upstream>>,
    /// In which ways it has ended.
    ends: Vec<JobState>,
}

#[derive(Debug)]
struct ModelAttempt {
    number: u32,
    node: Name,
    state: AttemptState,
    kind: Option<OutcomeKind>,
    /// When the task is tried again.
    retry_at: Option<u64>,
    ended_wall_ms: u64,
    /// Whether the retry was dropped.
    dropped: bool,
}

impl ModelAttempt {
    /// Returns whether its task has ended with it.
    fn has_ended(&self) -> bool {
        self.kind.is_some() && (self.retry_at.is_none() || self.dropped)
    }

    fn is_cancelled(&self) -> bool {
        self.dropped || self.kind == Some(OutcomeKind::Cancelled)
    }
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            state: State::new(CLUSTER),
            jobs: BTreeMap::new(),
            submissions: BTreeSet::new(),
            tasks: BTreeMap::new(),
            removed: Vec::new(),
            instants: BTreeSet::new(),
            dead_letters: BTreeSet::new(),
        }
    }

    pub(super) fn apply(&mut self, mono_ms: u64, step: &Step) {
        self.check(mono_ms, step);
        let changes = rmp_serde::to_vec_named(&step.changes).unwrap();
        let changes = rmp_serde::from_slice(&changes).unwrap();
        Step { changes, ..step.clone() }.apply_to(&mut self.state);
    }

    fn check(&mut self, mono_ms: u64, step: &Step) {
        let mut updated = Vec::new();
        let mut state = self.state.clone();
        let mut due_letters = BTreeSet::new();
        for change in &step.changes {
            if let Some(attempt) = attempt_of(change) {
                let job = attempt.task.job;
                assert!(!updated.contains(&job), "{change:?} comes after its job's row");
            }
            match change {
                Change::JobInserted { job, submission, spec, by, wall_ms } => {
                    assert_eq!(job.0, state.last_job.0 + 1, "job numbers have no gaps");
                    assert!(self.submissions.insert(*submission), "a submission is used once");
                    if let Some(letter) = spec.dead_letter.as_deref() {
                        assert!(due_letters.remove(&letter.attempt), "{letter:?} is not due");
                        assert!(self.dead_letters.insert(letter.attempt), "{letter:?} twice");
                    }
                    let (spec, by) = (Arc::clone(spec), by.clone());
                    let (submission, waits_since_wall_ms) = (*submission, *wall_ms);
                    let new = ModelJob {
                        spec,
                        submission,
                        by,
                        waits_since_wall_ms,
                        row: None,
                        upstream: None,
                        ends: Vec::new(),
                    };
                    self.jobs.insert(*job, new);
                }
                Change::JobClosed(job, _) => assert!(!state.jobs[job].is_stopping(), "{job}"),
                Change::JobReopened(job) => {
                    assert!(!state.jobs.contains_key(&job.id));
                    let row = self.jobs.get_mut(&job.id).unwrap().row.take().unwrap();
                    let same = JobRow { closed: None, ended_wall_ms: None, ..row };
                    let now = JobRow { state: same.state, ..job.row(None) };
                    assert_eq!(now, same);
                }
                Change::TaskRequeued { job, task } => {
                    let id = TaskId { job: *job, index: task.index };
                    let last = self.tasks.get_mut(&id).unwrap().last_mut().unwrap();
                    assert_eq!(last.number, task.number, "{id}");
                    assert!(last.has_ended(), "{id} waits or runs");
                    assert_ne!(last.kind, Some(OutcomeKind::Succeeded), "{id}");
                    assert_eq!(task.cancelled, last.is_cancelled(), "{id}");
                    last.retry_at = Some(mono_ms);
                    last.dropped = false;
                }
                Change::RestRequeued { job, wall_ms } => {
                    assert!(state.jobs[job].rest_cancelled, "{job}");
                    self.jobs.get_mut(job).unwrap().waits_since_wall_ms = *wall_ms;
                }
                Change::JobUpdated(row) => {
                    assert!(!updated.contains(&row.job), "a job is updated once a step");
                    updated.push(row.job);
                    let job = self.jobs.get_mut(&row.job).unwrap();
                    let old = job.row.replace(row.clone());
                    assert!(!old.is_some_and(|old| old.state.is_end()), "an ended job changes");
                    assert_eq!(row.state.is_end(), row.ended_wall_ms.is_some());
                    if row.state.is_end() {
                        job.upstream = state.jobs[&row.job].upstream.clone();
                        job.ends.push(row.state);
                    }
                }
                Change::DependencyChanged { job, upstream, progress, starts_wall_ms } => {
                    let of = &state.jobs[job].upstream.as_ref().unwrap().dependencies[upstream];
                    assert!(!of.is_met(), "{job} has waited for {upstream}");
                    if let Progress::Blocked(ended) = progress {
                        assert!(!of.when.is_met_by(*ended));
                    }
                    if let Some(wall_ms) = starts_wall_ms {
                        self.jobs.get_mut(job).unwrap().waits_since_wall_ms = *wall_ms;
                    }
                }
                Change::TasksReleased { upstream, tasks, .. } => {
                    for index in tasks.first..=tasks.last {
                        self.check_succeeded(TaskId { job: *upstream, index });
                    }
                }
                Change::AttemptInserted { attempt, node, .. } => {
                    self.check_upstream(attempt.task);
                    state.check_start(attempt.task.job);
                    assert!(state.nodes.contains_key(node));
                    let attempts = self.tasks.entry(attempt.task).or_default();
                    assert_eq!(attempt.number as usize, attempts.len() + 1, "{attempt}");
                    if let Some(last) = attempts.last() {
                        let due = last.retry_at.is_some_and(|at| at <= mono_ms) && !last.dropped;
                        assert!(
                            due,
                            "{attempt}: the previous one has not ended, or may not be tried again"
                        );
                    }
                    attempts.push(ModelAttempt {
                        number: attempt.number,
                        node: node.clone(),
                        state: AttemptState::Assigned,
                        kind: None,
                        retry_at: None,
                        ended_wall_ms: 0,
                        dropped: false,
                    });
                }
                Change::AttemptAdvanced { attempt, state, .. } => {
                    let active = self.active(*attempt);
                    assert!(active.state < *state && *state < AttemptState::Ended, "{attempt}");
                    active.state = *state;
                }
                Change::AttemptEnded { attempt, outcome, retry_after_ms, wall_ms } => {
                    if retry_after_ms.is_none() && may_have_letter(&state, *attempt, outcome.kind) {
                        due_letters.insert(*attempt);
                    }
                    let active = self.active(*attempt);
                    active.state = AttemptState::Ended;
                    active.kind = Some(outcome.kind);
                    active.ended_wall_ms = *wall_ms;
                    active.retry_at = retry_after_ms.map(|ms| mono_ms + ms);
                }
                Change::RetryDropped { attempt } => {
                    let last = self.tasks.get_mut(&attempt.task).unwrap().last_mut().unwrap();
                    assert_eq!(last.number, attempt.number);
                    assert!(last.retry_at.is_some() && !last.dropped);
                    last.dropped = true;
                }
                Change::JobRemoved(job) => self.remove(*job),
                Change::NodeForgotten(node) => {
                    let of = |all: &Vec<ModelAttempt>| {
                        all.last().is_some_and(|last| last.kind.is_none() && last.node == *node)
                    };
                    assert!(!self.tasks.values().any(of), "{node} has active attempts");
                    assert!(state.nodes.contains_key(node));
                }
                Change::EpochTaken(epoch) => assert!(*epoch > state.last_epoch),
                Change::TokenSaved(row) => {
                    let known = state.tokens.contains_key(&row.id);
                    assert!(known || row.id > state.last_token, "a token's number is new");
                }
                Change::TokenRemoved(id) => assert!(state.tokens.contains_key(id)),
                Change::KeySaved(row) => {
                    let marked = |before: &KeyRow| {
                        *before == KeyRow { revoked_age_ms: None, ..row.clone() }
                            && row.revoked_age_ms.is_some()
                    };
                    let revoked = state.keys.get(&row.key).filter(|before| before.revoked);
                    assert!(revoked.is_none_or(marked), "a revoked key changes");
                }
                Change::KeyRemoved(key) => {
                    assert!(state.keys[key].revoked, "a valid key is removed");
                }
                Change::ReplicaChanged { attempt, .. } => _ = self.active(*attempt),
                Change::AttemptStopping { attempt, .. } => {
                    _ = self.active(*attempt);
                    let job = &state.jobs[&attempt.task.job];
                    assert_eq!(job.active[&attempt.task.index].stop, None, "{attempt}");
                }
                Change::ServiceRemoved(service) => {
                    assert!(state.services.contains_key(service));
                    let of = |spec: &JobSpec| {
                        spec.run.replica.as_ref().is_some_and(|of| of.service == *service)
                    };
                    let going_on = |(id, job): (&JobId, &ModelJob)| {
                        state.jobs.contains_key(id) && of(&job.spec)
                    };
                    assert!(!self.jobs.iter().any(going_on), "{service} has replicas");
                }
                Change::VolumeRemoved(volume) => assert!(state.volumes.contains_key(volume)),
                Change::RevisionEnded { service, revision, .. } => {
                    assert!(state.services[service].last_revision >= *revision);
                }
                Change::ScheduleAdvanced { schedule, progress, runs } => {
                    let before = &state.schedules[schedule].progress;
                    assert!(progress.last_ms >= before.last_ms, "{schedule} goes back");
                    for (row, number) in runs.iter().zip(before.last_row + 1..) {
                        assert_eq!(row.number, number, "{schedule}");
                        let inserted = row.job.is_none_or(|job| state.jobs.contains_key(&job));
                        assert!(inserted, "the job of {row:?} is in the same step");
                        let is_new = self.instants.insert((schedule.clone(), row.instant_ms));
                        assert!(is_new || row.by_hand, "{schedule}: {row:?} was decided before");
                    }
                }
                Change::QueueRemoved(queue) => {
                    let mut queues = state.jobs.values().map(|job| job.spec.rules.queue.as_ref());
                    assert!(!queues.any(|of| of == Some(queue)), "{queue} has jobs");
                }
                Change::ScheduleRemoved(schedule) => {
                    self.instants.retain(|(of, _)| of != schedule);
                }
                Change::NodeSaved(_)
                | Change::ScheduleSaved { .. }
                | Change::QueueSaved { .. }
                | Change::AgeSaved(_)
                | Change::ServiceSaved { .. }
                | Change::VolumeSaved { .. }
                | Change::RevisionSaved { .. } => {}
            }
            state.apply(change);
        }
        for event in &step.events {
            if let EventFact::DeadLetterSkipped { attempt, .. } = event {
                due_letters.remove(attempt);
            }
        }
        assert!(due_letters.is_empty(), "without a dead-letter job: {due_letters:?}");
        for job in updated {
            assert_eq!(self.job(job).counts, self.count(job), "job {job}: counts");
            let attempts: usize = self.of_job(job).map(|(_, attempts)| attempts.len()).sum();
            assert_eq!(self.job(job).attempts, attempts as u64, "job {job}: attempts");
        }
    }

    fn remove(&mut self, job: JobId) {
        let Some(removed) = self.jobs.remove(&job) else { return };
        assert!(removed.row.unwrap().state.is_end(), "job {job} was removed before its end");
        let tasks: Vec<TaskId> = self.of_job(job).map(|(task, _)| *task).collect();
        for task in tasks {
            for attempt in self.tasks.remove(&task).unwrap() {
                self.removed.push((AttemptId { task, number: attempt.number }, attempt.node));
            }
        }
    }

    fn active(&mut self, attempt: AttemptId) -> &mut ModelAttempt {
        let last = self.tasks.get_mut(&attempt.task).unwrap().last_mut().unwrap();
        assert_eq!(last.number, attempt.number, "only the last attempt is active");
        assert_ne!(last.state, AttemptState::Ended, "{attempt} has already ended");
        last
    }

    pub(super) fn job(&self, job: JobId) -> &JobRow {
        self.jobs[&job].row.as_ref().unwrap()
    }

    /// Returns the state counts of the tasks, computed from the attempts alone.
    fn count(&self, id: JobId) -> TaskCounts {
        let job = &self.jobs[&id];
        let row = self.job(id);
        let mut counts = TaskCounts::default();
        let untried = (job.spec.array.tasks() - self.of_job(id).count() as u64) as u32;
        if row.rest_cancelled {
            counts.cancelled = untried;
        } else {
            counts.queued = untried;
        }
        for attempts in self.of_job(id).map(|(_, attempts)| attempts) {
            let last = attempts.last().unwrap();
            *match last {
                ModelAttempt { kind: None, .. } => &mut counts.active,
                ModelAttempt { dropped: true, .. } => &mut counts.cancelled,
                ModelAttempt { retry_at: Some(_), .. } => &mut counts.queued,
                ModelAttempt { kind: Some(OutcomeKind::Succeeded), .. } => &mut counts.succeeded,
                ModelAttempt { kind: Some(OutcomeKind::Cancelled), .. } => &mut counts.cancelled,
                ModelAttempt { .. } => &mut counts.failed,
            } += 1;
        }
        counts
    }

    /// Returns what the shell reads to requeue: the job, if it has ended, and its tasks that ended
    /// without success.
    pub(super) fn ended_tasks(&self, id: JobId) -> (Option<Box<Job>>, Vec<EndedTask>) {
        let Some(job) = self.jobs.get(&id) else { return (None, Vec::new()) };
        let row = self.job(id);
        let mut upstream = job.upstream.clone();
        upstream.iter_mut().for_each(|own| own.update(&self.upstream(&job.spec)));
        let ended = row.state.is_end().then(|| {
            Box::new(Job {
                id,
                submission: job.submission,
                spec: Arc::clone(&job.spec),
                by: Some(job.by.clone()),
                closed: row.closed,
                next_index: row.next_index,
                rest_cancelled: row.rest_cancelled,
                waits_since_wall_ms: job.waits_since_wall_ms,
                counts: row.counts,
                attempts: row.attempts,
                started_wall_ms: row.started_wall_ms,
                active: BTreeMap::new(),
                retries: BTreeMap::new(),
                upstream,
            })
        });
        let tasks = self.of_job(id).filter_map(|(task, attempts)| {
            let last = attempts.last().unwrap();
            let kind = last.kind.filter(|kind| *kind != OutcomeKind::Succeeded)?;
            last.has_ended().then(|| EndedTask {
                index: task.index,
                number: last.number,
                cancelled: last.is_cancelled(),
                avoid: failed(kind).then(|| last.node.clone()),
                ended_wall_ms: last.ended_wall_ms,
            })
        });
        (ended, tasks.collect())
    }

    /// Returns what the shell reads of the jobs that a job waits for.
    pub(super) fn upstream(&self, spec: &JobSpec) -> BTreeMap<JobId, UpstreamFact> {
        let known = spec.after.iter().filter(|own| self.jobs.contains_key(&own.job));
        let fact = |id: JobId| {
            let job = &self.jobs[&id];
            let mut succeeded = IndexSet::default();
            for (task, attempts) in self.of_job(id) {
                if attempts.iter().any(|last| last.kind == Some(OutcomeKind::Succeeded)) {
                    succeeded.insert(ArrayRange { first: task.index, last: task.index });
                }
            }
            UpstreamFact {
                array: job.spec.array,
                is_replica: job.spec.run.replica.is_some(),
                ended: Some(self.job(id).state).filter(|state| state.is_end()),
                succeeded,
            }
        };
        known.map(|own| (own.job, fact(own.job))).collect()
    }

    /// Returns the tasks of a job that others can wait for.
    pub(super) fn may_be_upstream(&self, id: JobId) -> Option<ArrayRange> {
        let job = self.jobs.get(&id).filter(|job| job.spec.run.replica.is_none())?;
        Some(job.spec.array)
    }

    /// Checks that a task may start: the jobs that its job waits for have ended as asked before.
    fn check_upstream(&self, task: TaskId) {
        for Dependency { job, when } in &self.jobs[&task.job].spec.after {
            let Some(upstream) = self.jobs.get(job) else { continue };
            let is_met = upstream.ends.iter().any(|end| when.is_met_by(*end));
            if *when == Condition::Each && !is_met {
                self.check_succeeded(TaskId { job: *job, index: task.index });
            } else {
                assert!(is_met, "{task} starts before {job} has {when}");
            }
        }
    }

    fn check_succeeded(&self, task: TaskId) {
        let attempts = self.tasks.get(&task).into_iter().flatten();
        let mut kinds = attempts.map(|attempt| attempt.kind);
        assert!(kinds.any(|kind| kind == Some(OutcomeKind::Succeeded)), "{task} has not succeeded");
    }

    fn of_job(&self, job: JobId) -> impl Iterator<Item = (&TaskId, &Vec<ModelAttempt>)> {
        self.tasks.range(TaskId { job, index: 0 }..=TaskId { job, index: u32::MAX })
    }

    /// Returns all attempts that there have ever been, with their nodes.
    pub(super) fn attempts(&self) -> Vec<(AttemptId, Name)> {
        let mut all = self.removed.clone();
        for (task, attempts) in &self.tasks {
            all.extend(attempts.iter().map(|attempt| {
                (AttemptId { task: *task, number: attempt.number }, attempt.node.clone())
            }));
        }
        all
    }

    pub(super) fn is_replica(&self, job: JobId) -> bool {
        self.jobs.get(&job).is_some_and(|job| job.spec.run.replica.is_some())
    }

    pub(super) fn ended(&self) -> bool {
        self.jobs.keys().all(|id| self.job(*id).state.is_end())
    }
}

/// Returns whether a task that ends for good now has a dead-letter job.
fn may_have_letter(state: &State, attempt: AttemptId, kind: OutcomeKind) -> bool {
    let job = &state.jobs[&attempt.task.job];
    let queue = job.spec.rules.queue.as_ref().map_or(DEFAULT_QUEUE, Name::as_str);
    let row = state.queues.iter().find(|(name, _)| name.as_str() == queue);
    failed(kind)
        && job.spec.run.replica.is_none()
        && job.spec.dead_letter.is_none()
        && job.counts.failed < DEAD_LETTERS_PER_JOB
        && row.is_some_and(|(_, row)| row.dead_letter.is_some())
}

fn attempt_of(change: &Change) -> Option<&AttemptId> {
    match change {
        Change::AttemptInserted { attempt, .. }
        | Change::AttemptAdvanced { attempt, .. }
        | Change::AttemptEnded { attempt, .. }
        | Change::RetryDropped { attempt }
        | Change::AttemptStopping { attempt, .. }
        | Change::ReplicaChanged { attempt, .. } => Some(attempt),
        Change::JobInserted { .. }
        | Change::JobClosed(..)
        | Change::JobReopened(_)
        | Change::TaskRequeued { .. }
        | Change::RestRequeued { .. }
        | Change::DependencyChanged { .. }
        | Change::TasksReleased { .. }
        | Change::JobUpdated(_)
        | Change::JobRemoved(_)
        | Change::AgeSaved(_)
        | Change::ServiceSaved { .. }
        | Change::ScheduleSaved { .. }
        | Change::ScheduleAdvanced { .. }
        | Change::ScheduleRemoved(_)
        | Change::QueueSaved { .. }
        | Change::QueueRemoved(_)
        | Change::VolumeSaved { .. }
        | Change::VolumeRemoved(_)
        | Change::ServiceRemoved(_)
        | Change::RevisionSaved { .. }
        | Change::RevisionEnded { .. }
        | Change::NodeSaved(_)
        | Change::NodeForgotten(_)
        | Change::EpochTaken(_)
        | Change::TokenSaved(_)
        | Change::TokenRemoved(_)
        | Change::KeySaved(_)
        | Change::KeyRemoved(_) => None,
    }
}
