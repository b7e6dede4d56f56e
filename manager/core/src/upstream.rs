//! Jobs that wait for other jobs.
//!
//! A dependency of a job is durable, and so is how far it has come: what the end of the upstream job
//! means for those that wait is recorded in the same step as that end. So nothing depends on how long
//! ended jobs are kept, except that a job is kept while another one waits for it to be requeued.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;

use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{JobId, TaskId};
use podmesh_protocol::report::JobState;
use podmesh_protocol::spec::{ArrayRange, JobSpec};
use podmesh_protocol::time::Now;
use podmesh_protocol::workflow::Condition;

use crate::faults::planted;
use crate::ids::Ticket;
use crate::input::{Command, Input};
use crate::jobs::Dispatch;
use crate::state::Change;
use crate::state::UpstreamFact;
use crate::state::{Dependency, IndexSet, Job, Progress};
use crate::step::{Answer, Step};
use crate::{Core, answer};

/// The jobs that have not ended, by the jobs that they depend on.
#[derive(Debug, Default)]
pub(crate) struct Dependents(BTreeMap<JobId, BTreeSet<JobId>>);

/// What is known of an upstream job when a job is submitted.
pub(crate) struct Settled {
    upstream: JobId,
    progress: Progress,
    released: IndexSet,
}

impl Dependents {
    pub(crate) fn add_job(&mut self, job: &Job) {
        for upstream in job.upstream.iter().flat_map(|own| own.dependencies.keys()) {
            self.0.entry(*upstream).or_default().insert(job.id);
        }
    }

    pub(crate) fn remove_job(&mut self, job: &Job) {
        for upstream in job.upstream.iter().flat_map(|own| own.dependencies.keys()) {
            if let Some(jobs) = self.0.get_mut(upstream) {
                jobs.remove(&job.id);
                if jobs.is_empty() {
                    self.0.remove(upstream);
                }
            }
        }
    }

    fn of(&self, upstream: JobId) -> impl Iterator<Item = JobId> {
        self.0.get(&upstream).into_iter().flatten().copied()
    }
}

impl Dispatch {
    /// Derives what the job's dependencies hold back.
    pub(crate) fn refresh_upstream(&mut self, job: &Job) {
        let Some(upstream) = &job.upstream else { return };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        self.unmet = count(upstream.unmet().count());
        let holding = upstream.unmet().filter(|(_, dependency)| !dependency.holds_tasks());
        self.holding = count(holding.count());
        self.open = upstream.open_tasks(job.spec.array, job.next_index).map(Box::new);
    }
}

impl Core {
    /// Returns what is known of the jobs that a new job waits for; `None` if what was read of them is
    /// not enough.
    ///
    /// # Errors
    /// If a job cannot wait for one of them as asked.
    pub(crate) fn look_upstream(
        &mut self,
        spec: &JobSpec,
        read: &BTreeMap<JobId, UpstreamFact>,
    ) -> Result<Option<Vec<Settled>>, ErrorReply> {
        let mut settled = Vec::new();
        let mut is_enough = true;
        for dependency in &spec.after {
            let (upstream, when) = (dependency.job, dependency.when);
            let (array, is_replica) = match (self.state.jobs.get(&upstream), read.get(&upstream)) {
                (Some(job), _) => (job.spec.array, job.spec.run.replica.is_some()),
                (None, Some(fact)) => (fact.array, fact.is_replica),
                (None, None) => return Ok(None),
            };
            may_wait(spec, upstream, when, array, is_replica)?;
            let fact = read.get(&upstream);
            match self.look_at(upstream, when, fact.map(|fact| (fact.ended, &fact.succeeded))) {
                Some((progress, released)) => {
                    settled.push(Settled { upstream, progress, released });
                }
                None => is_enough = false,
            }
        }
        Ok(is_enough.then_some(settled))
    }

    /// Brings the dependencies of a job that has ended, and is to go on, up to date. Returns whether
    /// what was read of their upstream jobs was enough.
    pub(crate) fn look_upstream_again(&mut self, job: &mut Job) -> bool {
        let mut is_enough = true;
        for (upstream, dependency) in job.upstream.iter_mut().flat_map(|own| &mut own.dependencies)
        {
            let ended = match dependency.progress {
                Progress::Met => continue,
                Progress::Waiting => None,
                Progress::Blocked(ended) => Some(ended),
            };
            let read = Some((ended, &dependency.released));
            match self.look_at(*upstream, dependency.when, read) {
                Some((progress, released)) => {
                    dependency.progress = progress;
                    dependency.released = released;
                }
                None => is_enough = false,
            }
        }
        is_enough
    }

    /// Returns how far a new dependency has come, and which of its tasks have succeeded, given what
    /// was read of the upstream job: how it has ended, and which tasks have succeeded. `None` if that
    /// is not enough.
    ///
    /// The core does not know which tasks of an active job have succeeded. So it watches the job, lets
    /// the shell read what is on disk by then, and knows what has come since.
    fn look_at(
        &mut self,
        upstream: JobId,
        when: Condition,
        read: Option<(Option<JobState>, &IndexSet)>,
    ) -> Option<(Progress, IndexSet)> {
        let Some(job) = self.state.jobs.get(&upstream) else {
            let (Some(ended), succeeded) = read? else { return None };
            let progress = Progress::after(when, ended);
            let keeps = when == Condition::Each && progress != Progress::Met;
            let released = if keeps { succeeded.clone() } else { IndexSet::default() };
            return Some((progress, released));
        };
        if planted!(self, UpstreamIgnored) {
            return Some((Progress::Met, IndexSet::default()));
        }
        if when != Condition::Each || job.counts.succeeded == 0 {
            return Some((Progress::Waiting, IndexSet::default()));
        }
        let dispatch = self.dispatch.get_mut(&upstream)?;
        match (&dispatch.watched, read) {
            (Some(watched), Some((_, succeeded))) => {
                let mut released = succeeded.clone();
                released.extend(watched);
                Some((Progress::Waiting, released))
            }
            _ => {
                dispatch.watched = Some(Box::default());
                None
            }
        }
    }

    /// Records what is known of the upstream jobs of a new job.
    pub(crate) fn record_settled(&mut self, job: JobId, settled: Vec<Settled>, out: &mut Step) {
        for Settled { upstream, progress, released } in settled {
            for tasks in released.iter() {
                self.state.record(out, Change::TasksReleased { job, upstream, tasks });
            }
            if progress != Progress::Waiting {
                let starts_wall_ms = None;
                let change = Change::DependencyChanged { job, upstream, progress, starts_wall_ms };
                self.state.record(out, change);
            }
            if let Some(dispatch) = self.dispatch.get_mut(&upstream) {
                dispatch.watched = None;
            }
        }
    }

    /// Lets the tasks start that wait for a task which has succeeded.
    pub(crate) fn release_task(&mut self, task: TaskId, out: &mut Step) {
        let TaskId { job: upstream, index } = task;
        let tasks = ArrayRange { first: index, last: index };
        if let Some(dispatch) = self.dispatch.get_mut(&upstream)
            && let Some(watched) = &mut dispatch.watched
        {
            watched.insert(tasks);
        }
        if self.dependents.0.is_empty() {
            return;
        }
        let jobs: Vec<JobId> = self.dependents.of(upstream).collect();
        for id in jobs {
            let own = self.state.jobs.get(&id).and_then(|job| job.dependency(upstream));
            if !own.is_some_and(Dependency::holds_tasks) {
                continue;
            }
            self.state.record(out, Change::TasksReleased { job: id, upstream, tasks });
            let Some(job) = self.state.jobs.get(&id) else { continue };
            let Some(dispatch) = self.dispatch.get_mut(&id) else { continue };
            let all = job
                .unmet()
                .filter(|(_, other)| other.holds_tasks())
                .all(|(_, other)| other.released.contains(index));
            if let Some(open) = &mut dispatch.open
                && all
                && !job.has_tried(index)
            {
                open.insert(tasks);
                if planted!(self, EachIsAny) {
                    open.insert(job.spec.array);
                }
                self.offer(id);
            }
        }
    }

    /// Settles the jobs that have ended in this step and that others wait for, and tells these, so that
    /// they can start in the same step, after the end.
    pub(crate) fn settle_dependents(&mut self, now: Now, out: &mut Step) {
        if self.dependents.0.is_empty() || planted!(self, EndNotPassedOn) {
            return;
        }
        // Those that are added meanwhile have not ended.
        for at in 0..self.dirty.len() {
            let upstream = self.dirty[at];
            let Some(end) =
                self.state.jobs.get(&upstream).filter(|job| job.is_over()).map(|job| job.state())
            else {
                continue;
            };
            let jobs: Vec<JobId> = self.dependents.of(upstream).collect();
            if !jobs.is_empty() {
                self.settle_job(now, upstream, out);
            }
            for id in jobs {
                let Some(job) = self.state.jobs.get(&id).filter(|job| !job.is_over()) else {
                    continue;
                };
                let unmet = job.dependency(upstream).filter(|own| !own.is_met());
                let Some(dependency) = unmet else { continue };
                let mut progress = Progress::after(dependency.when, end);
                if planted!(self, FailureIsSuccess) {
                    progress = Progress::Met;
                }
                self.change_dependency(now, id, upstream, progress, out);
            }
        }
    }

    fn change_dependency(
        &mut self,
        now: Now,
        id: JobId,
        upstream: JobId,
        progress: Progress,
        out: &mut Step,
    ) {
        let Some(dispatch) = self.dispatch.get_mut(&id) else { return };
        let is_met = progress == Progress::Met;
        let is_last = is_met && dispatch.unmet == 1;
        let starts_wall_ms = is_last.then_some(now.wall_ms);
        let change = Change::DependencyChanged { job: id, upstream, progress, starts_wall_ms };
        self.state.record(out, change);
        self.mark_dirty(id);
        if !is_met {
            return;
        }
        let Some(job) = self.state.jobs.get(&id) else { return };
        let Some(dispatch) = self.dispatch.get_mut(&id) else { return };
        if job.dependency(upstream).is_some_and(|own| own.when == Condition::Each) {
            dispatch.refresh_upstream(job);
        } else {
            dispatch.unmet -= 1;
            dispatch.holding -= 1;
        }
        if dispatch.holding == 0 {
            dispatch.since_ms = now.mono_ms;
        }
        if dispatch.unmet == 0 {
            self.set_expiry(now, id);
        }
        self.offer(id);
    }

    /// Lets the jobs wait again that depend on a job which had ended and goes on.
    pub(crate) fn wait_again(&mut self, upstream: JobId, out: &mut Step) {
        if planted!(self, NotWaitedAgain) {
            return;
        }
        let jobs: Vec<JobId> = self.dependents.of(upstream).collect();
        for job in jobs {
            let own = self.state.jobs.get(&job).and_then(|job| job.dependency(upstream));
            if own.is_some_and(|own| matches!(own.progress, Progress::Blocked(_))) {
                let (progress, starts_wall_ms) = (Progress::Waiting, None);
                let change = Change::DependencyChanged { job, upstream, progress, starts_wall_ms };
                self.state.record(out, change);
                self.mark_dirty(job);
            }
        }
    }

    /// Returns whether a job waits for another one, which may have ended in another way than asked.
    pub(crate) fn is_awaited(&self, upstream: JobId) -> bool {
        self.dependents.of(upstream).any(|id| {
            let own = self.state.jobs.get(&id).and_then(|job| job.dependency(upstream));
            own.is_some_and(|own| !own.is_met())
        })
    }

    /// Cancels the jobs downstream of a job, as many as fit into this step; the others follow.
    pub(crate) fn on_cancel_downstream(
        &mut self,
        ticket: Ticket,
        upstream: JobId,
        mut done: u32,
        out: &mut Step,
    ) {
        let mut found = Vec::from([upstream]);
        let mut seen = BTreeSet::from([upstream]);
        let mut at = 0;
        while let Some(of) = found.get(at).copied() {
            at += 1;
            found.extend(self.dependents.of(of).filter(|job| seen.insert(*job)));
        }
        // Those that are furthest away go first, so that the others are found again after a restart,
        // and none starts meanwhile.
        if !self.cancel_jobs(found.into_iter().skip(1).rev(), &mut done, out) {
            let command = Command::CancelDownstream { job: upstream, done };
            return self.backlog.push_front(Input::Command(ticket, command));
        }
        answer(out, ticket, Ok(Answer::JobsCancelled { jobs: done }));
    }

    /// Cancels those jobs that go on, as many as fit into this step, and counts them. Returns whether
    /// that were all.
    pub(crate) fn cancel_jobs(
        &mut self,
        jobs: impl Iterator<Item = JobId>,
        done: &mut u32,
        out: &mut Step,
    ) -> bool {
        for id in jobs {
            if !self.state.jobs.get(&id).is_some_and(|job| !job.is_stopping() && !job.is_over()) {
                continue;
            }
            if !self.has_room(out) {
                return false;
            }
            self.cancel_job(id, out);
            self.replica_touched(id);
            *done += 1;
        }
        true
    }

    #[cfg(any(test, feature = "invariants"))]
    pub(crate) fn check_dependents(&self) {
        let mut dependents = Dependents::default();
        for (id, job) in &self.state.jobs {
            dependents.add_job(job);
            let dispatch = &self.dispatch[id];
            let mut derived = Dispatch::new(dispatch.shape, 0);
            derived.refresh_upstream(job);
            assert_eq!(
                (dispatch.unmet, dispatch.holding, &dispatch.open),
                (derived.unmet, derived.holding, &derived.open),
                "job {id}: what its dependencies hold back"
            );
            assert!(dispatch.expires.is_none() || dispatch.unmet == 0, "job {id} may expire");
            for (upstream, dependency) in job.unmet() {
                let is_active = self.state.jobs.contains_key(&upstream);
                let waits = dependency.progress == Progress::Waiting;
                assert_eq!(waits, is_active, "job {id} waits for job {upstream}");
            }
        }
        assert_eq!(self.dependents.0, dependents.0, "the jobs that wait for others");
    }
}

/// Checks that a job can wait for another one as asked.
fn may_wait(
    spec: &JobSpec,
    upstream: JobId,
    when: Condition,
    array: ArrayRange,
    is_replica: bool,
) -> Result<(), ErrorReply> {
    let refused = |message| Err(ErrorReply::new(ErrorCode::InvalidSpec, message));
    if is_replica {
        return refused(format!(
            "job {upstream} is a replica of a service: jobs can only wait for other jobs"
        ));
    }
    if when == Condition::Each && array != spec.array {
        return refused(format!(
            "--after-each {upstream}: job {upstream} has the tasks {} to {}, and the new job {} to {}; both must have the same (--array)",
            array.first, array.last, spec.array.first, spec.array.last
        ));
    }
    Ok(())
}
