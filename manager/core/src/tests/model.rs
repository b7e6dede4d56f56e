//! A store in memory that applies the changes of the core, and checks their rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use podmesh_protocol::access::{PublicKey, TokenId};
use podmesh_protocol::ids::{AttemptId, Epoch, JobId, Name, Revision, SubmissionId, TaskId};
use podmesh_protocol::report::{AttemptState, JobState, OutcomeKind, TaskCounts};
use podmesh_protocol::spec::JobSpec;

use super::CLUSTER;
use crate::step::{Change, JobRow, KeyRow, Losses, NodeRow, RestoredJob, Snapshot, Step, TokenRow};

#[derive(Debug, Default)]
pub(super) struct Model {
    jobs: BTreeMap<JobId, ModelJob>,
    last_job: u64,
    tasks: BTreeMap<TaskId, Vec<ModelAttempt>>,
    /// The attempts of removed jobs. Agents can still report on them.
    removed: Vec<(AttemptId, Name)>,
    pub(super) age_ms: u64,
    nodes: BTreeMap<Name, NodeRow>,
    last_token: u64,
    tokens: BTreeMap<TokenId, TokenRow>,
    pub(super) keys: BTreeMap<PublicKey, KeyRow>,
    last_epoch: u64,
    last_revision: u64,
}

#[derive(Debug)]
struct ModelJob {
    submission: SubmissionId,
    spec: Arc<JobSpec>,
    row: Option<JobRow>,
}

#[derive(Debug)]
struct ModelAttempt {
    number: u32,
    node: Name,
    state: AttemptState,
    kind: Option<OutcomeKind>,
    /// When the task is tried again.
    retry_at: Option<u64>,
    /// Whether the retry was dropped.
    dropped: bool,
}

impl Model {
    pub(super) fn apply(&mut self, mono_ms: u64, step: &Step) {
        let mut updated = Vec::new();
        for change in &step.changes {
            if let Some(attempt) = attempt_of(change) {
                let job = attempt.task.job;
                assert!(!updated.contains(&job), "{change:?} comes after its job's row");
            }
            match change {
                Change::JobInserted { job, submission, spec, .. } => {
                    assert_eq!(job.0, self.last_job + 1, "job numbers have no gaps");
                    self.last_job = job.0;
                    assert!(self.jobs.values().all(|other| other.submission != *submission));
                    let (submission, spec) = (*submission, Arc::clone(spec));
                    self.jobs.insert(*job, ModelJob { submission, spec, row: None });
                }
                Change::JobUpdated(row) => {
                    assert!(!updated.contains(&row.job), "a job is updated once a step");
                    updated.push(row.job);
                    let job = self.jobs.get_mut(&row.job).unwrap();
                    let old = job.row.replace(row.clone());
                    assert!(!old.is_some_and(|old| old.state.is_end()), "an ended job changes");
                    assert_eq!(row.state.is_end(), row.ended_wall_ms.is_some());
                }
                Change::AttemptInserted { attempt, node, .. } => {
                    assert!(self.nodes.contains_key(node));
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
                        dropped: false,
                    });
                }
                Change::AttemptAdvanced { attempt, state, .. } => {
                    let active = self.active(*attempt);
                    assert!(active.state < *state && *state < AttemptState::Ended, "{attempt}");
                    active.state = *state;
                }
                Change::AttemptEnded { attempt, outcome, retry_after_ms, .. } => {
                    let active = self.active(*attempt);
                    active.state = AttemptState::Ended;
                    active.kind = Some(outcome.kind);
                    active.retry_at = retry_after_ms.map(|ms| mono_ms + ms);
                }
                Change::RetryDropped { attempt } => {
                    let last = self.tasks.get_mut(&attempt.task).unwrap().last_mut().unwrap();
                    assert_eq!(last.number, attempt.number);
                    assert!(last.retry_at.is_some() && !last.dropped);
                    last.dropped = true;
                }
                Change::JobRemoved(job) => self.remove(*job),
                Change::AgeSaved(age_ms) => self.age_ms = *age_ms,
                Change::NodeSaved(row) => _ = self.nodes.insert(row.node.clone(), row.clone()),
                Change::NodeForgotten(node) => {
                    let of = |all: &Vec<ModelAttempt>| {
                        all.last().is_some_and(|last| last.kind.is_none() && last.node == *node)
                    };
                    assert!(!self.tasks.values().any(of), "{node} has active attempts");
                    assert!(self.nodes.remove(node).is_some());
                }
                Change::EpochTaken(epoch) => {
                    assert!(epoch.0 > self.last_epoch);
                    self.last_epoch = epoch.0;
                }
                Change::TokenSaved(row) => {
                    let known = self.tokens.insert(row.id, row.clone()).is_some();
                    assert!(known || row.id.0 > self.last_token, "a token's number is new");
                    self.last_token = self.last_token.max(row.id.0);
                }
                Change::TokenRemoved(id) => assert!(self.tokens.remove(id).is_some()),
                Change::KeySaved(row) => {
                    let before = self.keys.insert(row.key, row.clone());
                    let marked = |before: KeyRow| {
                        before == KeyRow { revoked_age_ms: None, ..row.clone() }
                            && row.revoked_age_ms.is_some()
                    };
                    let revoked = before.filter(|before| before.revoked);
                    assert!(revoked.is_none_or(marked), "a revoked key changes");
                }
                Change::KeyRemoved(key) => {
                    let removed = self.keys.remove(key);
                    assert!(removed.is_some_and(|row| row.revoked), "a valid key is removed");
                }
            }
        }
        self.last_revision += step.events.len() as u64;
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
        let untried = (u64::from(job.spec.array.last) + 1 - row.next_index) as u32;
        match row.state {
            JobState::Cancelling | JobState::Cancelled => counts.cancelled = untried,
            _ => counts.queued = untried,
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

    pub(super) fn snapshot(&self, mono_ms: u64) -> Snapshot {
        let mut snapshot = Snapshot {
            cluster: CLUSTER,
            last_job: JobId(self.last_job),
            last_epoch: Epoch(self.last_epoch),
            last_revision: Revision(self.last_revision),
            jobs: Vec::new(),
            attempts: Vec::new(),
            retries: Vec::new(),
            losses: self.losses(),
            nodes: self.nodes.values().cloned().collect(),
            last_token: self.last_token,
            tokens: self.tokens.values().cloned().collect(),
            keys: self.keys.values().cloned().collect(),
        };
        for (id, job) in &self.jobs {
            let row = self.job(*id).clone();
            if row.state.is_end() {
                continue;
            }
            let (submission, spec) = (job.submission, Arc::clone(&job.spec));
            snapshot.jobs.push(RestoredJob { submission, spec, row });
            for (task, attempts) in self.of_job(*id) {
                let last = attempts.last().unwrap();
                let attempt = AttemptId { task: *task, number: last.number };
                match last.retry_at {
                    _ if last.kind.is_none() => {
                        snapshot.attempts.push((attempt, last.node.clone(), last.state));
                    }
                    Some(at) if !last.dropped => {
                        snapshot.retries.push((attempt, at.saturating_sub(mono_ms)));
                    }
                    _ => {}
                }
            }
        }
        snapshot
    }

    fn losses(&self) -> Vec<Losses> {
        let count = |attempts: &[ModelAttempt], kind| {
            attempts.iter().filter(|attempt| attempt.kind == Some(kind)).count() as u32
        };
        let losses = self.tasks.iter().map(|(task, attempts)| Losses {
            task: *task,
            lost: count(attempts, OutcomeKind::Lost),
            not_started: count(attempts, OutcomeKind::NotStarted),
        });
        losses.collect()
    }

    pub(super) fn ended(&self) -> bool {
        self.jobs.keys().all(|id| self.job(*id).state.is_end())
    }
}

fn attempt_of(change: &Change) -> Option<&AttemptId> {
    match change {
        Change::AttemptInserted { attempt, .. }
        | Change::AttemptAdvanced { attempt, .. }
        | Change::AttemptEnded { attempt, .. }
        | Change::RetryDropped { attempt } => Some(attempt),
        Change::JobInserted { .. }
        | Change::JobUpdated(_)
        | Change::JobRemoved(_)
        | Change::AgeSaved(_)
        | Change::NodeSaved(_)
        | Change::NodeForgotten(_)
        | Change::EpochTaken(_)
        | Change::TokenSaved(_)
        | Change::TokenRemoved(_)
        | Change::KeySaved(_)
        | Change::KeyRemoved(_) => None,
    }
}
