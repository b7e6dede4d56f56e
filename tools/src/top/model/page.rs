//! A page: a table, or a text.

use podmesh_protocol::client::JobDetail;
use podmesh_protocol::ids::Name;
use podmesh_protocol::node::NodeView;
use podmesh_protocol::report::TaskState;
use podmesh_protocol::schedule::ScheduleDetail;
use podmesh_protocol::service::ServiceDetail;

use super::pager::Pager;
use super::table::Table;
use crate::output::service_table::summary;
use crate::output::text::{count, escape};
use crate::output::time::local;
use crate::top::action::Action;
use crate::top::row::{Kind, Row};
use crate::top::subject::{About, Answer, Query, Source, Subject};

/// The order in which `o` shows the tasks of one state: what needs attention first.
const STATES: [TaskState; 5] = [
    TaskState::Failed,
    TaskState::Active,
    TaskState::Queued,
    TaskState::Cancelled,
    TaskState::Succeeded,
];

/// A page.
#[derive(Debug)]
pub(in crate::top) struct Page {
    pub(in crate::top) subject: Subject,
    pub(in crate::top) body: Body,
    /// Why the last query failed.
    pub(in crate::top) error: Option<String>,
    /// Jobs: only those that have not ended.
    pub(in crate::top) active: bool,
    /// Tasks: only those in this state.
    pub(in crate::top) state: Option<TaskState>,
    /// The job of the page, or of its selected row.
    pub(in crate::top) job: Option<Box<JobDetail>>,
    /// The service of the page.
    pub(in crate::top) service: Option<Box<ServiceDetail>>,
    /// The schedule of the page.
    pub(in crate::top) schedule: Option<Box<ScheduleDetail>>,
}

#[derive(Debug)]
pub(in crate::top) enum Body {
    Table(Table),
    Pager(Pager),
}

impl Page {
    pub(in crate::top) fn new(subject: Subject) -> Self {
        let body = match &subject {
            Subject::Nodes => Body::Table(Table::new(Kind::Nodes)),
            Subject::Jobs => Body::Table(Table::new(Kind::Jobs)),
            Subject::Services => Body::Table(Table::new(Kind::Services)),
            Subject::Events => Body::Table(Table::new(Kind::Events)),
            Subject::Volumes => Body::Table(Table::new(Kind::Volumes)),
            Subject::Tasks(_) => Body::Table(Table::new(Kind::Tasks)),
            Subject::Attempts(_) => Body::Table(Table::new(Kind::Attempts)),
            Subject::Replicas(_) => Body::Table(Table::new(Kind::Replicas)),
            Subject::Schedules => Body::Table(Table::new(Kind::Schedules)),
            Subject::Workflows => Body::Table(Table::new(Kind::Workflows)),
            Subject::Queues => Body::Table(Table::new(Kind::Queues)),
            Subject::Runs(_) => Body::Table(Table::new(Kind::Runs)),
            Subject::WorkflowJobs(_) => Body::Table(Table::new(Kind::WorkflowJobs)),
            Subject::About(_) => Body::Pager(Pager::default()),
            Subject::Log(_) => Body::Pager(Pager::following()),
        };
        Self {
            subject,
            body,
            error: None,
            active: false,
            state: None,
            job: None,
            service: None,
            schedule: None,
        }
    }

    /// Returns the selected row of a table.
    pub(in crate::top) fn selected(&self) -> Option<&Row> {
        match &self.body {
            Body::Table(table) => table.selected(),
            Body::Pager(_) => None,
        }
    }

    /// Returns what to ask for the page.
    pub(in crate::top) fn query(&self) -> Option<Query> {
        let (at, filter) = match &self.body {
            Body::Table(table) => (table.at, table.filter.clone()),
            Body::Pager(_) => Default::default(),
        };
        Some(match &self.subject {
            Subject::Nodes => Query::Nodes,
            Subject::Jobs => Query::Jobs { at, active: self.active, filter },
            Subject::Services => Query::Services,
            Subject::Volumes => Query::Volumes,
            Subject::Tasks(job) => Query::Tasks { job: *job, at, state: self.state, filter },
            Subject::Attempts(task) => Query::Attempts(*task),
            Subject::Replicas(service) => Query::Service(service.clone()),
            Subject::Schedules => Query::Schedules,
            Subject::Workflows => Query::Workflows { at, filter },
            Subject::Queues => Query::Queues,
            Subject::Runs(schedule) => Query::Runs(schedule.clone()),
            Subject::WorkflowJobs(workflow) => Query::WorkflowJobs(*workflow),
            Subject::About(about) => Query::About(about.clone()),
            Subject::Events | Subject::Log(_) => return None,
        })
    }

    /// Returns the job that is asked for besides: why its tasks wait.
    pub(in crate::top) fn aside(&self) -> Option<Query> {
        match &self.subject {
            Subject::Tasks(job) => Some(Query::Job(*job)),
            Subject::Jobs => match self.selected()? {
                Row::Job(view) if view.counts.queued > 0 => Some(Query::Job(view.job)),
                _ => None,
            },
            Subject::WorkflowJobs(_) => match self.selected()? {
                Row::WorkflowJob(line) if line.may_wait() => Some(Query::Job(line.job)),
                _ => None,
            },
            _ => None,
        }
    }

    /// Takes an answer.
    pub(in crate::top) fn set(&mut self, answer: Answer) {
        match (answer, &mut self.body) {
            (Answer::Rows(rows), Body::Table(table)) => table.set(rows),
            (Answer::Part(part), Body::Table(table)) => table.set_part(part),
            (Answer::Text(text), Body::Pager(pager)) => pager.set(&text),
            (Answer::Service(detail), Body::Table(table)) => {
                let service = &detail.view.service;
                let row = |view: &_| Row::Replica(service.clone(), Box::new(Clone::clone(view)));
                table.set(detail.replicas.iter().map(row).collect());
                self.service = Some(detail);
            }
            (Answer::Runs(detail, runs), Body::Table(table)) => {
                table.set(runs.into_iter().map(|run| Row::Run(Box::new(run))).collect());
                self.schedule = Some(detail);
            }
            (Answer::Job(detail), _) => self.job = Some(detail),
            // Another kind of answer is that of another page.
            (
                Answer::Rows(_)
                | Answer::Part(_)
                | Answer::Service(_)
                | Answer::Runs(..)
                | Answer::Text(_),
                _,
            ) => {}
        }
    }

    /// Shows the tasks of the next state that has some, after the last one all.
    pub(in crate::top) fn next_state(&mut self) {
        let Body::Table(table) = &mut self.body else { return };
        let counts = self.job.as_ref().map(|job| &job.view.counts);
        let has = |state: &TaskState| {
            counts.is_none_or(|counts| {
                let number = match state {
                    TaskState::Queued => counts.queued,
                    TaskState::Active => counts.active,
                    TaskState::Succeeded => counts.succeeded,
                    TaskState::Failed => counts.failed,
                    TaskState::Cancelled => counts.cancelled,
                };
                number > 0
            })
        };
        let from = match self.state {
            Some(state) => STATES.iter().position(|other| *other == state).map_or(0, |at| at + 1),
            None => 0,
        };
        self.state = STATES[from..].iter().copied().find(has);
        table.restart();
    }

    /// Returns what `x` would cancel: the job or workflow of the page, or of its selected row.
    pub(in crate::top) fn cancellable(&self) -> Option<Action> {
        let job = match &self.subject {
            Subject::Tasks(job) | Subject::About(About::Job(job)) => *job,
            Subject::Attempts(task) => task.job,
            Subject::Jobs | Subject::WorkflowJobs(_) => self.selected()?.job()?,
            Subject::About(About::Workflow(workflow)) => {
                return Some(Action::CancelWorkflow(*workflow));
            }
            _ => match self.selected()? {
                Row::Workflow(view) => return Some(Action::CancelWorkflow(view.workflow)),
                _ => return None,
            },
        };
        Some(Action::Cancel(job))
    }

    /// Returns the service of the page or of its selected row, and how many replicas it wants.
    pub(in crate::top) fn chosen_service(&self) -> Option<(Name, u32)> {
        match (&self.subject, self.selected()) {
            (Subject::Services, Some(Row::Service(view))) => {
                Some((view.service.clone(), view.replicas))
            }
            (Subject::Replicas(service), _) => {
                let wanted = self.service.as_ref().map_or(1, |detail| detail.view.replicas);
                Some((service.clone(), wanted))
            }
            _ => None,
        }
    }

    /// Returns what `p` would do to the schedule or queue of the page, or of its selected row.
    pub(in crate::top) fn pause(&self) -> Option<Action> {
        match (&self.subject, self.selected()) {
            (Subject::Runs(schedule), _) => {
                let detail = self.schedule.as_ref()?;
                Some(Action::PauseSchedule(schedule.clone(), !detail.view.paused))
            }
            (_, Some(Row::Schedule(view))) => {
                Some(Action::PauseSchedule(view.schedule.clone(), !view.paused))
            }
            (_, Some(Row::Queue(view))) => {
                Some(Action::PauseQueue(view.queue.clone(), !view.paused))
            }
            _ => None,
        }
    }

    /// Returns the selected node.
    pub(in crate::top) fn chosen_node(&self) -> Option<Name> {
        match self.selected() {
            Some(Row::Node(view)) => Some(view.node.clone()),
            _ => None,
        }
    }

    /// Returns the title, without the place in which it is.
    pub(in crate::top) fn title(&self) -> String {
        match &self.subject {
            Subject::Nodes => "Nodes".into(),
            Subject::Jobs if self.active => "Active jobs".into(),
            Subject::Jobs => "Jobs".into(),
            Subject::Services => "Services".into(),
            Subject::Events => "Events".into(),
            Subject::Volumes => "Volumes".into(),
            Subject::Tasks(job) => match &self.job {
                Some(detail) => format!("Job {job} ({})", detail.view.name),
                None => format!("Job {job}"),
            },
            Subject::Attempts(task) => format!("Task {task}"),
            Subject::Replicas(service) => format!("Service {service}"),
            Subject::Schedules => "Schedules".into(),
            Subject::Workflows => "Workflows".into(),
            Subject::Queues => "Queues".into(),
            Subject::Runs(schedule) => format!("Schedule {schedule}"),
            Subject::WorkflowJobs(workflow) => format!("Workflow {workflow}"),
            Subject::About(about) => match about {
                About::Node(node) => format!("Node {node}"),
                About::Job(job) => format!("Job {job} in detail"),
                About::Task(task) => format!("Task {task} in detail"),
                About::Service(service) => format!("Service {service} in detail"),
                About::Volume(volume) => format!("Volume {volume}"),
                About::Schedule(schedule) => format!("Schedule {schedule} in detail"),
                About::Workflow(workflow) => format!("Workflow {workflow} in detail"),
                About::Queue(queue) => format!("Queue {queue}"),
            },
            Subject::Log(source) => match source {
                Source::Job(job) => format!("Logs of job {job}"),
                Source::Task(task) => format!("Logs of task {task}"),
                Source::Attempt(attempt, node) => format!("Logs of {attempt} on {node}"),
                Source::Service(service) => format!("Logs of service {service}"),
                Source::Replica(service, number) => format!("Logs of {service}.{number}"),
            },
        }
    }

    /// Returns what stands after the title: numbers that say how things are.
    pub(in crate::top) fn note(&self) -> String {
        match &self.body {
            Body::Table(table) => self.table_note(table),
            Body::Pager(pager) => {
                let mut note = format!("line {} of {}", pager.bottom(), pager.len());
                if pager.cut {
                    note += "; older lines are not kept here";
                }
                if let Subject::Log(source) = &self.subject {
                    note += match &pager.ended {
                        Some(_) => "; ended",
                        None if pager.follows => "; following",
                        None => "; G follows again",
                    };
                    note += &format!(" · podmesh logs {}", source.argument());
                }
                note
            }
        }
    }

    fn table_note(&self, table: &Table) -> String {
        let mut notes = Vec::new();
        match &self.subject {
            Subject::Nodes => notes.extend(nodes_note(table.all())),
            Subject::Tasks(_) => {
                if let Some(job) = &self.job {
                    notes.push(counts_note(job));
                }
                if let Some(state) = self.state {
                    use crate::output::json::{TaskState as Shown, Word};
                    notes.push(format!("only {}", Shown::from(state).word()));
                }
            }
            Subject::Replicas(_) => {
                notes.extend(self.service.as_ref().map(|detail| summary(&detail.view)));
            }
            Subject::Runs(_) => {
                notes.extend(self.schedule.as_ref().map(|detail| next_run(detail)));
            }
            _ => {}
        }
        if !table.filter.is_empty() {
            notes.push(format!("filter: {}", escape(&table.filter)));
            if table.next.is_some() {
                notes.push("more below".into());
            }
        }
        if !table.loaded && self.error.is_none() {
            notes.push("loading…".into());
        }
        notes.join(" · ")
    }

    /// Returns what a user may have to know about the selected row, or about the page.
    pub(in crate::top) fn remarks(&self) -> Vec<String> {
        let waits = |reasons: &[String]| -> Vec<String> {
            // Some reasons begin with the word themselves.
            let plain = |reason: &String| reason.trim_start_matches("waits ").to_owned();
            reasons.iter().map(|reason| format!("waits: {}", escape(&plain(reason)))).collect()
        };
        match (&self.subject, self.selected()) {
            (Subject::Jobs, Some(Row::Job(view))) => match &self.job {
                Some(detail) if detail.view.job == view.job => waits(&detail.waits_for),
                _ => Vec::new(),
            },
            (Subject::WorkflowJobs(_), Some(Row::WorkflowJob(line))) => match &self.job {
                Some(detail) if detail.view.job == line.job => waits(&detail.waits_for),
                _ => Vec::new(),
            },
            (Subject::Schedules, Some(Row::Schedule(view))) if view.waiting => {
                vec!["a run starts when the last one has ended".into()]
            }
            (Subject::Queues, Some(Row::Queue(view))) if view.paused && view.queued > 0 => {
                let verb = if view.queued == 1 { "waits" } else { "wait" };
                let tasks = count(view.queued, "task");
                vec![format!("{tasks} {verb} until the queue is resumed")]
            }
            (Subject::Tasks(_), _) => {
                self.job.as_ref().map(|detail| waits(&detail.waits_for)).unwrap_or_default()
            }
            (Subject::Nodes, Some(Row::Node(view))) => node_remarks(view),
            (Subject::Replicas(_), _) => {
                let Some(detail) = &self.service else { return Vec::new() };
                let mut remarks = waits(&detail.waits_for);
                let failed = detail.failed_update.iter();
                remarks.extend(failed.map(|why| format!("the update failed: {}", escape(why))));
                remarks.extend(detail.closed_ports.iter().map(|port| escape(port)));
                remarks
            }
            (Subject::Volumes, Some(Row::Volume(view))) => {
                let why = view.failed.iter();
                why.map(|why| format!("could not be removed: {}", escape(why))).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Returns what a node does not do, and why.
pub(in crate::top) fn node_remarks(view: &NodeView) -> Vec<String> {
    let withdrawn = view
        .withdrawn
        .iter()
        .map(|(runtime, why)| format!("takes no work for {runtime}: {}", escape(why)));
    let unenforced = view.unenforced.iter().map(|(what, why)| {
        format!("does not enforce --{} for commands: {}", escape(what), escape(why))
    });
    let low = view.low_disks.values().map(|why| format!("a disk is nearly full: {}", escape(why)));
    withdrawn.chain(low).chain(unenforced).collect()
}

/// Returns when a schedule runs next.
fn next_run(detail: &ScheduleDetail) -> String {
    match detail.view.next_wall_ms {
        _ if detail.view.paused => "paused".into(),
        Some(ms) => format!("next at {}", local(ms)),
        None => "never again".into(),
    }
}

fn nodes_note(rows: &[Row]) -> Option<String> {
    use crate::output::table::{cores, size};
    use podmesh_protocol::node::NodeState;

    let nodes = || {
        rows.iter().filter_map(|row| match row {
            Row::Node(view) => Some(view),
            _ => None,
        })
    };
    nodes().next()?;
    let alive = || nodes().filter(|view| view.state == NodeState::Alive);
    let sum = |of: fn(&NodeView) -> u64| alive().map(|view| of(view)).sum::<u64>();
    let cpus = |millis: u64| cores(u32::try_from(millis).unwrap_or(u32::MAX));
    Some(format!(
        "{} of {} alive · free: {}/{} cpus, {}/{} · {} attempts",
        alive().count(),
        nodes().count(),
        cpus(sum(|view| view.free.cpu_millis.into())),
        cpus(sum(|view| view.capacity.cpu_millis.into())),
        size(sum(|view| view.free.memory_bytes)),
        size(sum(|view| view.capacity.memory_bytes)),
        nodes().map(|view| u64::from(view.attempts)).sum::<u64>(),
    ))
}

/// Returns `2 failed, 3 active`: the tasks by state, what needs attention first.
fn counts_note(job: &JobDetail) -> String {
    let counts = &job.view.counts;
    let parts: Vec<String> = [
        (counts.failed, "failed"),
        (counts.active, "active"),
        (counts.queued, "queued"),
        (counts.cancelled, "cancelled"),
        (counts.succeeded, "succeeded"),
    ]
    .into_iter()
    .filter(|(number, _)| *number > 0)
    .map(|(number, word)| format!("{number} {word}"))
    .collect();
    parts.join(", ")
}
