//! The keys that open a page, or ask before a change.

use podmesh_protocol::node::Scheduling;

use super::{Model, Prompt};
use crate::top::action::Action;
use crate::top::row::Row;
use crate::top::subject::{About, Source, Subject};

impl Model {
    pub(super) fn open(&mut self) {
        let Some(row) = self.page().selected() else { return };
        let subject = match row {
            Row::Node(view) => Subject::About(About::Node(view.node.clone())),
            Row::Job(view) => Subject::Tasks(view.job),
            Row::Service(view) => Subject::Replicas(view.service.clone()),
            Row::Volume(view) => Subject::About(About::Volume(view.volume.clone())),
            Row::Schedule(view) => Subject::Runs(view.schedule.clone()),
            Row::Workflow(view) => Subject::WorkflowJobs(view.workflow),
            Row::WorkflowJob(line) => Subject::Tasks(line.job),
            Row::Queue(view) => Subject::About(About::Queue(view.queue.clone())),
            Row::Run(view) => match view.job {
                Some(job) => Subject::Tasks(job),
                None => return self.say("this time did not run, so it has no job", false),
            },
            Row::Task(view) => Subject::Attempts(view.task),
            Row::Attempt(..) => return self.logs(),
            Row::Event { fact, .. } => match fact.job() {
                Some(job) => Subject::Tasks(job),
                None => return self.say("this event is not about a job", false),
            },
            Row::Replica(_, view) => match view.attempt {
                Some(attempt) => Subject::Attempts(attempt.task),
                None => return self.say("this replica has not started yet", false),
            },
        };
        self.push(subject);
    }

    pub(super) fn logs(&mut self) {
        let source = match (&self.page().subject, self.page().selected()) {
            (Subject::Log(_), _) => return,
            (Subject::About(About::Job(job)), _) => Source::Job(*job),
            (Subject::About(About::Task(task)), _) => Source::Task(*task),
            (Subject::About(About::Service(service)), _) => Source::Service(service.clone()),
            (_, Some(Row::Job(view))) if view.counts.total() == 1 => Source::Job(view.job),
            (_, Some(Row::Job(view))) => {
                let job = view.job;
                self.push(Subject::Tasks(job));
                return self.say("this job has several tasks: choose one, then press l", false);
            }
            (_, Some(Row::WorkflowJob(line))) => Source::Job(line.job),
            (_, Some(Row::Run(run))) if let Some(job) = run.job => Source::Job(job),
            (_, Some(Row::Task(view))) => Source::Task(view.task),
            (_, Some(Row::Attempt(task, view))) => {
                let id = podmesh_protocol::ids::AttemptId { task: *task, number: view.number };
                Source::Attempt(id, view.node.clone())
            }
            (_, Some(Row::Service(view))) => Source::Service(view.service.clone()),
            (_, Some(Row::Replica(service, view))) => Source::Replica(service.clone(), view.number),
            _ => return self.say("there are no logs of this", false),
        };
        self.push(Subject::Log(source));
    }

    pub(super) fn describe(&mut self) {
        let about = match (&self.page().subject, self.page().selected()) {
            (Subject::About(_) | Subject::Log(_), _) => return,
            (_, Some(Row::Node(view))) => About::Node(view.node.clone()),
            (_, Some(Row::Job(view))) => About::Job(view.job),
            (_, Some(Row::Service(view))) => About::Service(view.service.clone()),
            (_, Some(Row::Volume(view))) => About::Volume(view.volume.clone()),
            (_, Some(Row::Schedule(view))) => About::Schedule(view.schedule.clone()),
            (Subject::Runs(schedule), _) => About::Schedule(schedule.clone()),
            (_, Some(Row::Workflow(view))) => About::Workflow(view.workflow),
            (_, Some(Row::WorkflowJob(line))) => About::Job(line.job),
            (_, Some(Row::Queue(view))) => About::Queue(view.queue.clone()),
            (_, Some(Row::Task(view))) => About::Task(view.task),
            (_, Some(Row::Attempt(task, _))) => About::Task(*task),
            (_, Some(Row::Replica(service, _))) => About::Service(service.clone()),
            (_, Some(Row::Event { fact, .. })) => match fact.job() {
                Some(job) => About::Job(job),
                None => return self.say("this event is not about a job", false),
            },
            (_, None | Some(Row::Run(_))) => return,
        };
        self.push(Subject::About(about));
    }

    /// Asks before a change.
    pub(super) fn ask(&mut self, key: char) {
        let page = self.page();
        let action = match key {
            'x' => page.cancellable(),
            'p' => page.pause(),
            's' => {
                if let Some((service, replicas)) = page.chosen_service() {
                    let digits = replicas.to_string();
                    self.prompt = Some(Prompt::Scale { service, digits });
                    return;
                }
                None
            }
            'r' => page.chosen_service().map(|(service, _)| Action::Restart(service)),
            'R' => page.chosen_service().map(|(service, _)| Action::Rollback(service)),
            _ => page.chosen_node().map(|node| {
                let scheduling = match key {
                    'c' => Scheduling::Cordoned,
                    'u' => Scheduling::Open,
                    _ => Scheduling::Draining,
                };
                Action::Schedule(node, scheduling)
            }),
        };
        match action {
            Some(action) => self.prompt = Some(Prompt::Confirm(action)),
            None => {
                let what = match key {
                    'x' => "a job or workflow",
                    'p' => "a schedule or queue",
                    's' | 'r' | 'R' => "a service",
                    _ => "a node",
                };
                self.say(format!("no row with {what} is selected here"), false);
            }
        }
    }
}
