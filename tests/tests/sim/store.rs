//! The manager's database: the state to which the committed steps lead, and a history of all
//! attempts, by which the rules for steps are checked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use podmesh_manager_core::state::{self as core_state, EndedTask, Job, State, Stop, Upstream};
use podmesh_manager_core::state::{Change, JobRow};
use podmesh_manager_core::step::Step;
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{AttemptId, ClusterId, JobId, Name, Revision, SubmissionId, TaskId};
use podmesh_protocol::place::{Claims, WHOLE};
use podmesh_protocol::report::{AttemptState, JobState, Outcome, OutcomeKind, TaskCounts};
use podmesh_protocol::spec::{JobSpec, Resources};

use crate::dead_letters::DeadLetters;
use crate::host::Node;
use crate::users::night;

pub(crate) const CLUSTER: ClusterId = ClusterId(uuid::Uuid::from_u128(77));

#[derive(Clone, Debug)]
pub(crate) struct Store {
    /// What a manager reads when it starts.
    pub(crate) state: State,
    /// All that there ever were: what was removed is still judged.
    pub(crate) jobs: BTreeMap<JobId, StoredJob>,
    removed: BTreeSet<JobId>,
    submissions: BTreeMap<SubmissionId, JobId>,
    pub(crate) tasks: BTreeMap<TaskId, Vec<StoredAttempt>>,
    /// Whether the wall clock has jumped, so that retries may come too early after a restart.
    pub(crate) clock_jumped: bool,
    /// The updates of services that have not ended, with their revisions.
    pub(crate) updates: BTreeMap<Name, u32>,
    /// The instants of schedules that have run.
    pub(crate) instants: BTreeMap<Name, BTreeSet<u64>>,
}

#[derive(Clone, Debug)]
pub(crate) struct StoredJob {
    pub(crate) spec: Arc<JobSpec>,
    submission: SubmissionId,
    by: Name,
    waits_since_wall_ms: u64,
    row: Option<JobRow>,
    /// What it waited for, as it was at its end.
    upstream: Option<Box<Upstream>>,
    /// In which ways it has ended.
    pub(crate) ends: Vec<JobState>,
}

#[derive(Clone, Debug)]
pub(crate) struct StoredAttempt {
    pub(crate) number: u32,
    pub(crate) node: Name,
    pub(crate) state: AttemptState,
    pub(crate) outcome: Option<Outcome>,
    ended_wall_ms: u64,
    /// When the retry is due.
    retry_at: Option<u64>,
    dropped: bool,
    /// Whether its task is to run again, because its node is drained.
    stop: Option<Stop>,
    claims: Option<Box<Claims>>,
}

impl StoredAttempt {
    /// Returns whether its task has ended with it.
    fn has_ended(&self) -> bool {
        self.outcome.is_some() && (self.retry_at.is_none() || self.dropped)
    }
}

impl Store {
    pub(crate) fn new() -> Self {
        let mut state = State::new(CLUSTER);
        state.queues.insert(night(), Default::default());
        Self {
            state,
            jobs: BTreeMap::new(),
            removed: BTreeSet::new(),
            submissions: BTreeMap::new(),
            tasks: BTreeMap::new(),
            clock_jumped: false,
            updates: BTreeMap::new(),
            instants: BTreeMap::new(),
        }
    }

    /// Commits a step that was decided at `now`, and checks the rules for every step.
    pub(crate) fn apply(&mut self, now: u64, step: &Step) {
        self.check_runs(step);
        let (mut updated, mut failed) = (BTreeSet::new(), BTreeSet::new());
        let mut dead_letters = DeadLetters::default();
        for change in &step.changes {
            dead_letters.note(self, change);
            match change {
                Change::JobInserted { job, submission, spec, by, wall_ms } => {
                    assert_eq!(job.0, self.jobs.len() as u64 + 1, "job numbers have no gap");
                    let before = self.submissions.insert(*submission, *job);
                    assert_eq!(before, None, "a submission made two jobs");
                    let new = StoredJob {
                        spec: Arc::clone(spec),
                        submission: *submission,
                        by: by.clone(),
                        waits_since_wall_ms: *wall_ms,
                        row: None,
                        upstream: None,
                        ends: Vec::new(),
                    };
                    self.jobs.insert(*job, new);
                }
                Change::JobClosed(job, _) => {
                    let job = self.state.jobs.get(job).expect("an active job");
                    assert!(!job.is_stopping(), "job {} is cancelled twice", job.id);
                }
                Change::JobReopened(job) => {
                    let id = job.id;
                    assert!(!self.is_removed(id), "job {id} was removed, and goes on");
                    let stored = self.jobs.get_mut(&id).expect("a job that was inserted");
                    let row = stored.row.take().expect("every job has a row");
                    let ended = JobRow { closed: None, ended_wall_ms: None, ..row };
                    let reopened = JobRow { state: ended.state, ..job.row(None) };
                    assert_eq!(reopened, ended, "job {id} goes on as another one");
                }
                Change::TaskRequeued { job, task } => {
                    let last = self.last(AttemptId::new(*job, task.index, task.number));
                    let id = TaskId { job: *job, index: task.index };
                    assert!(last.has_ended(), "task {id} is requeued, and waits or runs");
                    last.retry_at = Some(now);
                    last.dropped = false;
                    failed.remove(job);
                }
                Change::RestRequeued { job, wall_ms } => {
                    let job = self.jobs.get_mut(job).expect("a job that was inserted");
                    job.waits_since_wall_ms = *wall_ms;
                }
                Change::JobUpdated(row) => {
                    assert!(updated.insert(row.job), "job {} is updated once a step", row.job);
                    let job = self.jobs.get_mut(&row.job).expect("a job that was inserted");
                    if row.state.is_end() {
                        job.upstream = self.state.jobs[&row.job].upstream.clone();
                        job.ends.push(row.state);
                    }
                    let old = job.row.replace(row.clone());
                    assert!(!old.is_some_and(|old| old.state.is_end()), "an ended job changes");
                }
                Change::DependencyChanged { job, starts_wall_ms: Some(wall_ms), .. } => {
                    let job = self.jobs.get_mut(job).expect("a job that was inserted");
                    job.waits_since_wall_ms = *wall_ms;
                }
                Change::AttemptInserted { attempt, node, claims, wall_ms } => {
                    self.check_order(attempt.task);
                    self.check_maintenance(*attempt, node, *wall_ms);
                    self.state.check_start(attempt.task.job);
                    self.insert_attempt(now, *attempt, node, claims.clone());
                }
                Change::AttemptStopping { attempt, stop } => {
                    let live = self.live(*attempt);
                    assert_eq!(live.stop.replace(*stop), None, "{attempt} is stopped twice");
                }
                Change::AttemptAdvanced { attempt, state, .. } => {
                    let live = self.live(*attempt);
                    assert!(live.state < *state && *state < AttemptState::Ended, "{attempt}");
                    live.state = *state;
                }
                Change::AttemptEnded { attempt, outcome, retry_after_ms, wall_ms } => {
                    if retry_after_ms.is_none() && core_state::failed(outcome.kind) {
                        failed.insert(attempt.task.job);
                    }
                    self.check_stop(*attempt, outcome);
                    let live = self.live(*attempt);
                    live.state = AttemptState::Ended;
                    live.outcome = Some(outcome.clone());
                    live.ended_wall_ms = *wall_ms;
                    live.retry_at = retry_after_ms.map(|ms| now + ms);
                }
                Change::RetryDropped { attempt } => {
                    let last = self.last(*attempt);
                    assert!(
                        last.retry_at.is_some() && !last.dropped,
                        "{attempt}: no retry to drop"
                    );
                    last.dropped = true;
                }
                Change::NodeForgotten(node) => {
                    let known = self.state.nodes.contains_key(node);
                    assert!(known, "an unknown node is forgotten");
                }
                Change::EpochTaken(epoch) => {
                    let last = self.state.last_epoch;
                    assert!(*epoch > last, "epoch {epoch} was given out before");
                }
                Change::JobRemoved(job) if self.jobs.contains_key(job) => {
                    assert!(self.row(*job).state.is_end(), "job {job} was removed before its end");
                    self.removed.insert(*job);
                }
                Change::JobRemoved(job) => panic!("unknown job {job} was removed"),
                Change::ScheduleAdvanced { schedule, progress, runs } => {
                    self.check_instants(schedule, progress, runs);
                }
                Change::ScheduleRemoved(schedule) => _ = self.instants.remove(schedule),
                Change::DependencyChanged { starts_wall_ms: None, .. }
                | Change::TasksReleased { .. }
                | Change::NodeSaved(_)
                | Change::AgeSaved(_)
                | Change::ReplicaChanged { .. }
                | Change::ServiceSaved { .. }
                | Change::ServiceRemoved(_)
                | Change::ScheduleSaved { .. }
                | Change::QueueSaved { .. }
                | Change::QueueRemoved(_)
                | Change::RevisionSaved { .. }
                | Change::RevisionEnded { .. }
                | Change::VolumeSaved { .. }
                | Change::VolumeRemoved(_) => {}
                Change::TokenSaved(_)
                | Change::TokenRemoved(_)
                | Change::KeySaved(_)
                | Change::KeyRemoved(_) => panic!("nobody joins in this world"),
            }
            self.state.apply(change);
        }
        dead_letters.check(step);
        if !step.events.is_empty() {
            let next = Revision(self.state.last_revision.0 + 1);
            assert_eq!(step.first_revision, Some(next), "revisions of events have a gap");
        }
        self.state.last_revision.0 += step.events.len() as u64;
        step.events.iter().for_each(|event| self.note_update(event));
        for job in failed {
            let (row, rules) = (self.row(job), &self.jobs[&job].spec.rules);
            let is_over = rules.max_failures.is_some_and(|max| row.counts.failed >= max);
            let ends = row.closed.is_some() || row.state.is_end();
            assert!(!is_over || ends, "job {job} goes on after too many failures");
        }
        for job in updated {
            assert_eq!(self.row(job).counts, self.count(job), "job {job}: counts");
            let attempts: usize = self.of_job(job).map(|(_, all)| all.len()).sum();
            assert_eq!(self.row(job).attempts, attempts as u64, "job {job}: attempts");
        }
        if step.changes.iter().any(|change| matches!(change, Change::AttemptInserted { .. })) {
            self.check_capacity();
            self.check_claims();
        }
    }

    /// Checks that an attempt that has a timeout will be over when the planned maintenance of its node
    /// begins, unless that lets it run again elsewhere.
    fn check_maintenance(&self, attempt: AttemptId, node: &Name, wall_ms: u64) {
        let planned = self.state.nodes.get(node).and_then(|row| row.maintenance.as_deref());
        let run = &self.jobs[&attempt.task.job].spec.run;
        let (Some(planned), Some(timeout_ms)) = (planned, run.timeout_ms) else { return };
        let spec = &planned.spec;
        // The core lets the wall clock and the monotonic one drift apart by up to a second.
        let in_time = wall_ms + timeout_ms + run.stop_grace_ms < spec.from_ms + 1_000;
        assert!(
            in_time || spec.drain.requeue,
            "{attempt} starts on {node}, whose maintenance begins before it must be over"
        );
    }

    /// Checks that a task whose attempt was stopped so that it runs again does not end by that.
    fn check_stop(&self, attempt: AttemptId, outcome: &Outcome) {
        let Some(last) = self.attempt(attempt) else { return };
        // A program that fails by itself has an outcome of its own.
        let message = outcome.message.as_deref().unwrap_or_default();
        let uses_retry = outcome.kind == OutcomeKind::Failed && message.starts_with("stopped ");
        assert!(
            !matches!(last.stop, Some(Stop::Requeue | Stop::Preempt)) || !uses_retry,
            "{attempt} was stopped so that its task runs again, and has failed"
        );
        assert!(
            last.stop != Some(Stop::Preempt) || self.jobs[&attempt.task.job].spec.rules.preemptible,
            "{attempt} was stopped to make room, and is not preemptible"
        );
    }

    /// Checks that no attempts share an id that they must not share, and that a task that has its node
    /// for itself is alone.
    fn check_claims(&self) {
        let mut shares: BTreeMap<(&Name, &Name, &str), u32> = BTreeMap::new();
        let mut on: BTreeMap<&Name, (usize, bool)> = BTreeMap::new();
        for (task, attempts) in &self.tasks {
            let last = attempts.last().filter(|last| last.outcome.is_none());
            let Some(last) = last else { continue };
            let rules = &self.jobs[&task.job].spec.place;
            let (tasks, alone) = on.entry(&last.node).or_default();
            *tasks += 1;
            *alone |= rules.exclusive;
            let claims = last.claims.iter().flat_map(|claims| claims.iter());
            assert_eq!(claims.clone().count(), rules.resources.len(), "{task}: what it was given");
            for (name, claim) in claims {
                assert_eq!(rules.resources.get(name), Some(&claim.millis), "{task}: how much");
                for id in &claim.ids {
                    *shares.entry((&last.node, name, id)).or_default() += claim.of_each();
                }
            }
        }
        for ((node, name, id), millis) in shares {
            assert!(millis <= WHOLE, "{name} {id} of {node} is given out {millis} thousandths");
        }
        for (node, (tasks, alone)) in on {
            assert!(!alone || tasks == 1, "{node} runs {tasks} tasks, and one has it for itself");
        }
    }

    /// Notes the beginning or the end of an update. The end is that of the update that has begun.
    fn note_update(&mut self, event: &EventFact) {
        match event {
            EventFact::ServiceApplied { service, revision, .. }
            | EventFact::ServiceUpdateFailed { service, back_to: Some(revision), .. } => {
                self.updates.insert(service.clone(), *revision);
            }
            EventFact::ServiceUpdated { service, revision }
            | EventFact::ServiceUpdateFailed { service, revision, back_to: None, .. } => {
                let begun = self.updates.remove(service);
                assert!(
                    begun.is_none_or(|begun| begun == *revision),
                    "the update of {service} to {revision} ends, and {begun:?} has begun"
                );
            }
            EventFact::ServiceRemoved { service } => _ = self.updates.remove(service),
            _ => {}
        }
    }

    fn insert_attempt(
        &mut self,
        now: u64,
        attempt: AttemptId,
        node: &Name,
        claims: Option<Box<Claims>>,
    ) {
        assert!(self.state.nodes.contains_key(node), "{attempt} goes to an unknown node");
        let attempts = self.tasks.entry(attempt.task).or_default();
        assert_eq!(attempt.number as usize, attempts.len() + 1, "{attempt}: number");
        if let Some(last) = attempts.last() {
            let due = last.retry_at.is_some_and(|at| at <= now || self.clock_jumped);
            let due = due && !last.dropped;
            assert!(due, "{attempt} follows one that goes on, or is not to be tried again (now)");
        }
        attempts.push(StoredAttempt {
            number: attempt.number,
            node: node.clone(),
            state: AttemptState::Assigned,
            outcome: None,
            ended_wall_ms: 0,
            retry_at: None,
            dropped: false,
            stop: None,
            claims,
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
            let has = &self.state.nodes[node].capacity;
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

    /// Returns the jobs of the attempts of a node that have not ended.
    fn live_on(&self, node: &Name) -> impl Iterator<Item = &JobSpec> {
        let lasts = self.tasks.iter().filter_map(|(task, all)| Some((task, all.last()?)));
        let live = lasts.filter(move |(_, last)| last.outcome.is_none() && last.node == *node);
        live.map(|(task, _)| &*self.jobs[&task.job].spec)
    }

    /// Returns whether attempts on a node have not ended that are no replicas.
    pub(crate) fn has_tasks(&self, node: &Name) -> bool {
        self.live_on(node).any(|spec| spec.run.replica.is_none())
    }

    /// Returns whether a node has replicas.
    pub(crate) fn has_replicas(&self, node: &Name) -> bool {
        self.live_on(node).any(|spec| spec.run.replica.is_some())
    }

    /// Returns the resources of a node that its replicas do not use.
    pub(crate) fn room_beside_replicas(&self, node: &Node) -> Resources {
        let mut room = node.capacity;
        for spec in self.live_on(&node.name).filter(|spec| spec.run.replica.is_some()) {
            room.cpu_millis -= spec.resources.cpu_millis;
            room.memory_bytes -= spec.resources.memory_bytes;
        }
        room
    }

    /// Returns whether a node can have this much of a named resource while its replicas keep what they
    /// have.
    pub(crate) fn has_beside_replicas(&self, node: &Node, name: &Name, millis: u32) -> bool {
        let row = self.state.nodes.get(&node.name);
        let offers = row.map_or_else(|| node.offers(0), |row| row.resources.clone());
        let Some(offer) = offers.get(name).filter(|offer| offer.suits(millis)) else {
            return false;
        };
        let lasts = self.tasks.iter().filter_map(|(task, all)| Some((task, all.last()?)));
        let replicas = lasts.filter(|(task, last)| {
            let is_replica = self.jobs[&task.job].spec.run.replica.is_some();
            is_replica && last.outcome.is_none() && last.node == node.name
        });
        let claims = replicas.filter_map(|(_, last)| last.claims.as_ref()?.get(name));
        let mut used: BTreeMap<&str, u32> = BTreeMap::new();
        for claim in claims {
            claim.ids.iter().for_each(|id| *used.entry(id).or_default() += claim.of_each());
        }
        let left = offer.ids.iter().map(|id| WHOLE - used.get(&**id).copied().unwrap_or(0));
        match millis < WHOLE {
            _ if offer.ids.is_empty() => true,
            true => left.max().is_some_and(|most| millis <= most),
            false => left.filter(|left| *left == WHOLE).count() >= (millis / WHOLE) as usize,
        }
    }

    /// Returns the replicas that have ended and were not removed.
    pub(crate) fn ended_replicas(&self) -> impl Iterator<Item = JobId> {
        let replicas = self.jobs.iter().filter(|(_, job)| job.spec.run.replica.is_some());
        let ended = replicas.filter(|(id, _)| !self.state.jobs.contains_key(id));
        ended.map(|(id, _)| *id).filter(|id| !self.is_removed(*id))
    }

    pub(crate) fn row(&self, job: JobId) -> &JobRow {
        self.jobs[&job].row.as_ref().expect("every job has a row")
    }

    /// Counts a job's tasks by state, from its attempts.
    fn count(&self, id: JobId) -> TaskCounts {
        let (job, row) = (&self.jobs[&id], self.row(id));
        let mut counts = TaskCounts::default();
        let untried = (job.spec.array.tasks() - self.of_job(id).count() as u64) as u32;
        if row.rest_cancelled {
            counts.cancelled = untried;
        } else {
            counts.queued = untried;
        }
        for last in self.of_job(id).filter_map(|(_, all)| all.last()) {
            *match (&last.outcome, last.retry_at) {
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

    /// Returns what a reader of the database requeues: the job, if it has ended, and its tasks that
    /// ended without success. With a state, also those that have not ended in it: nobody may run them
    /// again.
    pub(crate) fn ended_tasks(
        &self,
        id: JobId,
        decided: Option<&State>,
    ) -> Option<(Option<Box<Job>>, Vec<EndedTask>)> {
        let job = self
            .jobs
            .get(&id)
            .filter(|job| job.spec.run.replica.is_none() && !self.is_removed(id))?;
        let row = self.row(id);
        let mut upstream = job.upstream.clone();
        if let Some(own) = &mut upstream {
            own.update(&self.upstream(&job.spec)?);
        }
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
        let going_on = decided.and_then(|state| state.jobs.get(&id));
        let goes_on = |index: u32| {
            going_on.is_some_and(|job| {
                job.active.contains_key(&index) || job.retries.contains_key(&index)
            })
        };
        let lasts = self.of_job(id).filter_map(|(task, all)| Some((task, all.last()?)));
        let tasks = lasts.filter_map(|(task, last)| {
            let kind = last.outcome.as_ref().map(|outcome| outcome.kind);
            let wanted =
                kind != Some(OutcomeKind::Succeeded) && (last.has_ended() || goes_on(task.index));
            wanted.then(|| EndedTask {
                index: task.index,
                number: last.number,
                cancelled: last.dropped || kind == Some(OutcomeKind::Cancelled),
                avoid: kind.is_some_and(core_state::failed).then(|| last.node.clone()),
                ended_wall_ms: last.ended_wall_ms,
            })
        });
        Some((ended, tasks.collect()))
    }

    fn of_job(&self, job: JobId) -> impl Iterator<Item = (&TaskId, &Vec<StoredAttempt>)> {
        self.tasks.range(TaskId { job, index: 0 }..=TaskId { job, index: u32::MAX })
    }
}
