//! A model of the manager's database: applies committed steps, and checks the rules for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podmesh_manager_core::step::{Change, JobRow, Losses, NodeRow, RestoredJob, Snapshot, Step};
use podmesh_protocol::ids::{
    AttemptId, ClusterId, Epoch, JobId, Name, Revision, SubmissionId, TaskId,
};
use podmesh_protocol::report::{AttemptState, JobState, Outcome, OutcomeKind, TaskCounts};
use podmesh_protocol::spec::JobSpec;

pub(crate) const CLUSTER: ClusterId = ClusterId(uuid::Uuid::from_u128(77));

#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    /// All that there ever were: what was removed is still judged.
    pub(crate) jobs: BTreeMap<JobId, StoredJob>,
    removed: BTreeSet<JobId>,
    submissions: BTreeMap<SubmissionId, JobId>,
    pub(crate) tasks: BTreeMap<TaskId, Vec<StoredAttempt>>,
    pub(crate) nodes: BTreeMap<Name, NodeRow>,
    pub(crate) last_epoch: u64,
    pub(crate) last_revision: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct StoredJob {
    submission: SubmissionId,
    pub(crate) spec: Arc<JobSpec>,
    row: Option<JobRow>,
}

#[derive(Clone, Debug)]
pub(crate) struct StoredAttempt {
    pub(crate) number: u32,
    pub(crate) node: Name,
    pub(crate) state: AttemptState,
    pub(crate) outcome: Option<Outcome>,
    /// The delay of the retry, and when it is due.
    retry: Option<(u64, u64)>,
    dropped: bool,
}

impl Store {
    /// Commits a step that was decided at `now`, and checks the rules for every step.
    pub(crate) fn apply(&mut self, now: u64, step: &Step) {
        let mut updated = BTreeSet::new();
        for change in &step.changes {
            match change {
                Change::JobInserted { job, submission, spec, .. } => {
                    assert_eq!(job.0, self.jobs.len() as u64 + 1, "job numbers have no gap");
                    let before = self.submissions.insert(*submission, *job);
                    assert_eq!(before, None, "a submission made two jobs");
                    let (submission, spec) = (*submission, Arc::clone(spec));
                    self.jobs.insert(*job, StoredJob { submission, spec, row: None });
                }
                Change::JobUpdated(row) => {
                    assert!(updated.insert(row.job), "job {} is updated once a step", row.job);
                    let job = self.jobs.get_mut(&row.job).expect("a job that was inserted");
                    let old = job.row.replace(row.clone());
                    assert!(!old.is_some_and(|old| old.state.is_end()), "an ended job changes");
                }
                Change::AttemptInserted { attempt, node, .. } => {
                    self.insert_attempt(now, *attempt, node);
                }
                Change::AttemptAdvanced { attempt, state, .. } => {
                    let live = self.live(*attempt);
                    assert!(live.state < *state && *state < AttemptState::Ended, "{attempt}");
                    live.state = *state;
                }
                Change::AttemptEnded { attempt, outcome, retry_after_ms, .. } => {
                    let live = self.live(*attempt);
                    live.state = AttemptState::Ended;
                    live.outcome = Some(outcome.clone());
                    live.retry = retry_after_ms.map(|ms| (ms, now + ms));
                }
                Change::RetryDropped { attempt } => {
                    let last = self.last(*attempt);
                    assert!(last.retry.is_some() && !last.dropped, "{attempt}: no retry to drop");
                    last.dropped = true;
                }
                Change::NodeSaved(row) => _ = self.nodes.insert(row.node.clone(), row.clone()),
                Change::NodeForgotten(node) => {
                    assert!(self.nodes.remove(node).is_some(), "an unknown node is forgotten");
                }
                Change::EpochTaken(epoch) => {
                    assert!(epoch.0 > self.last_epoch, "epoch {epoch} was given out before");
                    self.last_epoch = epoch.0;
                }
                Change::JobRemoved(job) if self.jobs.contains_key(job) => {
                    assert!(self.row(*job).state.is_end(), "job {job} was removed before its end");
                    self.removed.insert(*job);
                }
                Change::JobRemoved(job) => panic!("unknown job {job} was removed"),
                Change::AgeSaved(_) => {}
                Change::TokenSaved(_)
                | Change::TokenRemoved(_)
                | Change::KeySaved(_)
                | Change::KeyRemoved(_) => panic!("nobody joins in this world"),
            }
        }
        if !step.events.is_empty() {
            let next = Revision(self.last_revision + 1);
            assert_eq!(step.first_revision, Some(next), "revisions of events have a gap");
        }
        self.last_revision += step.events.len() as u64;
        for job in updated {
            assert_eq!(self.row(job).counts, self.count(job), "job {job}: counts");
            let attempts: usize = self.of_job(job).map(|(_, all)| all.len()).sum();
            assert_eq!(self.row(job).attempts, attempts as u64, "job {job}: attempts");
        }
        if step.changes.iter().any(|change| matches!(change, Change::AttemptInserted { .. })) {
            self.check_capacity();
        }
    }

    fn insert_attempt(&mut self, now: u64, attempt: AttemptId, node: &Name) {
        assert!(self.nodes.contains_key(node), "{attempt} goes to an unknown node");
        let attempts = self.tasks.entry(attempt.task).or_default();
        assert_eq!(attempt.number as usize, attempts.len() + 1, "{attempt}: number");
        if let Some(last) = attempts.last() {
            let due = last.retry.is_some_and(|(_, at)| at <= now) && !last.dropped;
            assert!(due, "{attempt} follows one that goes on, or is not to be tried again (now)");
        }
        attempts.push(StoredAttempt {
            number: attempt.number,
            node: node.clone(),
            state: AttemptState::Assigned,
            outcome: None,
            retry: None,
            dropped: false,
        });
    }

    /// Checks that no node is over-committed.
    fn check_capacity(&self) {
        let mut used: BTreeMap<&Name, (u64, u64)> = BTreeMap::new();
        for (task, attempts) in &self.tasks {
            let Some(last) = attempts.last().filter(|last| last.outcome.is_none()) else {
                continue;
            };
            let needs = &self.jobs[&task.job].spec.resources;
            let (cpu, memory) = used.entry(&last.node).or_default();
            *cpu += u64::from(needs.cpu_millis);
            *memory += needs.memory_bytes;
        }
        for (node, (cpu, memory)) in used {
            let has = &self.nodes[node].capacity;
            let fits = cpu <= u64::from(has.cpu_millis) && memory <= has.memory_bytes;
            assert!(fits, "node {node} is over-committed: {cpu} of {}", has.cpu_millis);
        }
    }

    fn last(&mut self, attempt: AttemptId) -> &mut StoredAttempt {
        let last = self.tasks.get_mut(&attempt.task).and_then(|all| all.last_mut());
        let last = last.unwrap_or_else(|| panic!("{attempt} was never inserted"));
        assert_eq!(last.number, attempt.number, "{attempt} changes, and is not the last one");
        last
    }

    fn live(&mut self, attempt: AttemptId) -> &mut StoredAttempt {
        let last = self.last(attempt);
        assert_ne!(last.state, AttemptState::Ended, "{attempt} has ended before");
        last
    }

    /// Returns an attempt, if it exists.
    pub(crate) fn attempt(&self, attempt: AttemptId) -> Option<&StoredAttempt> {
        self.tasks.get(&attempt.task)?.get(attempt.number as usize - 1)
    }

    /// Returns whether an attempt is the last one of its task and has not ended.
    pub(crate) fn is_live(&self, attempt: AttemptId) -> bool {
        let last = self.tasks.get(&attempt.task).and_then(|all| all.last());
        last.is_some_and(|last| last.number == attempt.number && last.outcome.is_none())
    }

    /// Returns the job of a submission, as the reader of the database finds it.
    pub(crate) fn of_submission(&self, submission: &SubmissionId) -> Option<JobId> {
        let job = self.submissions.get(submission).copied();
        job.filter(|job| !self.is_removed(*job))
    }

    /// Returns the submissions of all jobs, removed ones included.
    pub(crate) fn submissions(&self) -> &BTreeMap<SubmissionId, JobId> {
        &self.submissions
    }

    pub(crate) fn is_removed(&self, job: JobId) -> bool {
        self.removed.contains(&job)
    }

    /// Whether attempts with a node have not ended.
    pub(crate) fn has_live(&self, node: &Name) -> bool {
        let lasts = self.tasks.values().filter_map(|all| all.last());
        lasts.into_iter().any(|last| last.outcome.is_none() && last.node == *node)
    }

    pub(crate) fn row(&self, job: JobId) -> &JobRow {
        self.jobs[&job].row.as_ref().expect("every job has a row")
    }

    /// Counts a job's tasks by state, from its attempts.
    fn count(&self, id: JobId) -> TaskCounts {
        let (job, row) = (&self.jobs[&id], self.row(id));
        let mut counts = TaskCounts::default();
        let untried = (u64::from(job.spec.array.last) + 1 - row.next_index) as u32;
        match row.state {
            JobState::Cancelling | JobState::Cancelled => counts.cancelled = untried,
            _ => counts.queued = untried,
        }
        for last in self.of_job(id).filter_map(|(_, all)| all.last()) {
            *match (&last.outcome, last.retry) {
                (None, _) => &mut counts.active,
                (Some(_), Some(_)) if last.dropped => &mut counts.cancelled,
                (Some(_), Some(_)) => &mut counts.queued,
                (Some(outcome), None) => match outcome.kind {
                    OutcomeKind::Succeeded => &mut counts.succeeded,
                    OutcomeKind::Cancelled => &mut counts.cancelled,
                    _ => &mut counts.failed,
                },
            } += 1;
        }
        counts
    }

    fn of_job(&self, job: JobId) -> impl Iterator<Item = (&TaskId, &Vec<StoredAttempt>)> {
        self.tasks.range(TaskId { job, index: 0 }..=TaskId { job, index: u32::MAX })
    }

    /// Returns what a manager reads when it starts.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            cluster: CLUSTER,
            last_job: JobId(self.jobs.len() as u64),
            last_epoch: Epoch(self.last_epoch),
            last_revision: Revision(self.last_revision),
            jobs: Vec::new(),
            attempts: Vec::new(),
            retries: Vec::new(),
            losses: Vec::new(),
            nodes: self.nodes.values().cloned().collect(),
            last_token: 0,
            tokens: Vec::new(),
            keys: Vec::new(),
        };
        for (id, job) in &self.jobs {
            let row = self.row(*id).clone();
            if row.state.is_end() {
                continue;
            }
            let (submission, spec) = (job.submission, Arc::clone(&job.spec));
            snapshot.jobs.push(RestoredJob { submission, spec, row });
            for (task, attempts) in self.of_job(*id) {
                let count = |kind| {
                    let outcomes = attempts.iter().filter_map(|attempt| attempt.outcome.as_ref());
                    outcomes.filter(|outcome| outcome.kind == kind).count() as u32
                };
                snapshot.losses.push(Losses {
                    task: *task,
                    lost: count(OutcomeKind::Lost),
                    not_started: count(OutcomeKind::NotStarted),
                });
                let Some(last) = attempts.last() else { continue };
                let attempt = AttemptId { task: *task, number: last.number };
                match last.retry {
                    _ if last.outcome.is_none() => {
                        snapshot.attempts.push((attempt, last.node.clone(), last.state));
                    }
                    // After a restart the whole delay begins again, as in the real store.
                    Some((after_ms, _)) if !last.dropped => {
                        snapshot.retries.push((attempt, after_ms));
                    }
                    _ => {}
                }
            }
        }
        snapshot
    }
}
