//! Users whose jobs wait for other jobs, and what must hold for these.

use std::collections::BTreeMap;
use std::sync::Arc;

use podmesh_manager_core::input::{Command, Input};
use podmesh_manager_core::state::UpstreamFact;
use podmesh_manager_core::state::{IndexSet, Progress};
use podmesh_protocol::ids::{JobId, TaskId};
use podmesh_protocol::report::OutcomeKind;
use podmesh_protocol::spec::{ArrayRange, JobSpec};
use podmesh_protocol::workflow::{Condition, Dependency, WorkflowJob, WorkflowSpec};

use crate::store::Store;
use crate::users::UserRequest;
use crate::world::World;

/// What a user submits.
#[derive(Clone)]
pub(crate) enum Submission {
    Job(Arc<JobSpec>),
    Workflow(WorkflowSpec),
}

const CONDITIONS: [Condition; 4] =
    [Condition::Succeeded, Condition::Failed, Condition::Ended, Condition::Each];

impl World {
    /// Makes a workflow of jobs like one.
    pub(crate) fn make_workflow(&mut self, spec: &JobSpec) -> WorkflowSpec {
        let jobs = self.rng.within(2, 5);
        let name = |at: u64| format!("j{at}").parse().expect("a name");
        let jobs = (0..jobs).map(|at| {
            let before: Vec<u64> = (0..at).filter(|_| self.rng.percent(40)).collect();
            let after = before.into_iter().map(|before| Dependency {
                job: name(before),
                when: CONDITIONS[self.rng.below(4) as usize],
            });
            let after = after.collect();
            WorkflowJob { spec: JobSpec { name: name(at), ..spec.clone() }, after }
        });
        WorkflowSpec { name: "flow".parse().expect("a name"), jobs: jobs.collect() }
    }

    /// Lets a new job wait for jobs that exist.
    pub(crate) fn choose_upstream(&mut self, spec: &mut JobSpec) {
        let store = &self.store;
        let may = |id: &JobId| !store.is_removed(*id) && store.jobs[id].spec.run.replica.is_none();
        let jobs: Vec<JobId> = store.jobs.keys().copied().filter(may).collect();
        for _ in 0..self.rng.within(1, 3) {
            if jobs.is_empty() {
                return;
            }
            let job = jobs[self.rng.below(jobs.len() as u64) as usize];
            let array = self.store.jobs[&job].spec.array;
            let mut when = CONDITIONS[self.rng.below(4) as usize];
            let each = spec.after.iter().any(|own| own.when == Condition::Each);
            match when {
                Condition::Each if each && array != spec.array => when = Condition::Ended,
                Condition::Each => spec.array = array,
                _ => {}
            }
            if spec.after.iter().all(|own| own.job != job) {
                spec.after.push(Dependency { job, when });
            }
        }
    }

    /// Cancels the jobs that can never run.
    pub(crate) fn users_cancel_the_blocked(&mut self) {
        let jobs = self.decided.state.jobs.values();
        let blocked = jobs
            .filter(|job| job.unmet().any(|(_, own)| matches!(own.progress, Progress::Blocked(_))));
        for job in blocked.map(|job| job.id).collect::<Vec<_>>() {
            self.ask(UserRequest::Cancel(job));
        }
    }

    /// Returns whether a job waits for another one, which goes on.
    pub(crate) fn waits_for_a_job(&self, job: JobId) -> bool {
        let jobs = &self.store.state.jobs;
        let mut unmet = jobs.get(&job).into_iter().flat_map(|job| job.unmet());
        unmet.any(|(upstream, own)| {
            own.progress == Progress::Waiting && jobs.contains_key(&upstream)
        })
    }

    /// Submits what a user wants, as the shell does. Returns whether that has to wait.
    pub(crate) fn pass_on(
        &mut self,
        ticket: podmesh_manager_core::ids::Ticket,
        user: usize,
    ) -> bool {
        let by = ["user", "other"][user % 2].parse().expect("a name");
        let submission = self.users[user].submission;
        let command = match self.users[user].wants.clone() {
            Submission::Workflow(workflow) => {
                let positions = workflow.check().expect("a valid workflow");
                let workflow = Box::new(workflow);
                Command::SubmitWorkflow { by, submission, workflow, positions }
            }
            Submission::Job(spec) if spec.after.is_empty() => {
                let upstream = BTreeMap::new();
                Command::Submit { by, submission, spec, upstream }
            }
            Submission::Job(spec) => {
                // The shell waits for what it or another one has decided about ended jobs.
                if self.manager.as_ref().is_some_and(|manager| manager.decides_of_ended_jobs()) {
                    return true;
                }
                let Some(upstream) = self.store.upstream(&spec) else {
                    // One of them was removed.
                    self.users[user].gave_up = true;
                    return false;
                };
                let command = Command::Submit { by, submission, spec, upstream };
                self.feed_manager(Input::Command(ticket, command));
                return false;
            }
        };
        let life = self.manager.as_ref().map(|manager| manager.life);
        let pause = self.rng.short(20);
        if let Some(life) = life {
            let input = Box::new(Input::Command(ticket, command));
            self.after(pause, crate::world::Event::ToCore(life, input));
        }
        false
    }
}

impl Store {
    /// Returns what a reader of the database finds of the jobs that a job waits for; `None` if one was
    /// removed.
    pub(crate) fn upstream(&self, spec: &JobSpec) -> Option<BTreeMap<JobId, UpstreamFact>> {
        let fact = |id: JobId| {
            if self.is_removed(id) {
                return None;
            }
            let job = &self.jobs[&id];
            let mut succeeded = IndexSet::default();
            for index in (job.spec.array.first..=job.spec.array.last)
                .filter(|index| self.has_succeeded(TaskId { job: id, index: *index }))
            {
                succeeded.insert(ArrayRange { first: index, last: index });
            }
            Some(UpstreamFact {
                array: job.spec.array,
                is_replica: job.spec.run.replica.is_some(),
                ended: Some(self.row(id).state).filter(|state| state.is_end()),
                succeeded,
            })
        };
        spec.after.iter().map(|own| Some((own.job, fact(own.job)?))).collect()
    }

    fn has_succeeded(&self, task: TaskId) -> bool {
        let attempts = self.tasks.get(&task).into_iter().flatten();
        let mut outcomes = attempts.filter_map(|attempt| attempt.outcome.as_ref());
        outcomes.any(|outcome| outcome.kind == OutcomeKind::Succeeded)
    }

    /// Checks that a task may start: the jobs that its job waits for have ended as asked before, or the
    /// tasks with its index have succeeded.
    pub(crate) fn check_order(&self, task: TaskId) {
        for Dependency { job, when } in &self.jobs[&task.job].spec.after {
            let ends = &self.jobs[job].ends;
            let is_met = ends.iter().any(|end| when.is_met_by(*end));
            let released = *when == Condition::Each
                && self.has_succeeded(TaskId { job: *job, index: task.index });
            assert!(is_met || released, "{task} starts against the order of its dependencies");
        }
    }
}
