//! What is asked, and when: at once when something else is wanted, and again when an event says
//! that the answer may have changed, at most a few times a second.

mod about;
mod window;

use std::sync::Arc;
use std::time::Duration;

use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::Name;
use podmesh_protocol::node::DrainSpec;
use podmesh_protocol::queue::QueueRequest;
use podmesh_protocol::schedule::ScheduleRequest;
use podmesh_protocol::service::ServiceRequest;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use self::window::{Jobs, Tasks, Workflows, part};
use super::action::Action;
use super::row::Row;
use super::subject::{Answer, Query};
use crate::connect::{Connection, RequestError};
use crate::error::{CliError, CliResult};
use crate::output::json::{JobState, Word};
use crate::output::text::count;
use crate::output::workflow_table;

/// The least time between two answers to the same query.
const PAUSE: Duration = Duration::from_millis(300);
/// How much longer than an answer takes the time until the next one is: a slow list is asked for
/// less often.
const PAUSE_FACTOR: u32 = 4;
/// After this time a query is asked again without an event: some things have none, such as why a
/// published port is closed.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// The time until a failed query is asked again.
const PAUSE_FAILED: Duration = Duration::from_secs(2);
/// How many runs of a schedule are shown.
const RUNS: u32 = 200;

/// The queries whose answers are wanted: for the page, and besides.
pub(super) struct Asker {
    connection: Arc<Connection>,
    slots: [Slot; 2],
    running: JoinSet<Asked>,
}

#[derive(Default)]
struct Slot {
    wanted: Option<Query>,
    /// Whether the answer is old.
    old: bool,
    running: Option<AbortHandle>,
    /// When the next question is allowed.
    not_before: Option<Instant>,
    /// When to ask even without an event.
    latest: Option<Instant>,
}

/// An answer to the query of a slot.
struct Asked {
    slot: usize,
    query: Query,
    took: Duration,
    result: Result<Answer, String>,
}

impl Asker {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { connection, slots: Default::default(), running: JoinSet::new() }
    }

    /// Sets what is wanted. Something new is asked for at once.
    pub(super) fn want(&mut self, wanted: [Option<Query>; 2]) {
        for (slot, query) in self.slots.iter_mut().zip(wanted) {
            if slot.wanted != query {
                if let Some(running) = slot.running.take() {
                    running.abort();
                }
                *slot = Slot { old: query.is_some(), wanted: query, ..Slot::default() };
            }
        }
    }

    /// Takes an event into account.
    pub(super) fn event(&mut self, fact: &EventFact) {
        for slot in &mut self.slots {
            slot.old |= slot.wanted.as_ref().is_some_and(|query| query.is_changed_by(fact));
        }
    }

    /// Asks for everything again, because the user has changed something or events were missed.
    pub(super) fn refresh(&mut self) {
        for slot in &mut self.slots {
            slot.old |= slot.wanted.is_some();
        }
    }

    /// Returns the next answer. Cancel-safe.
    pub(super) async fn next(&mut self) -> (Query, Result<Answer, String>) {
        loop {
            let due = self.start();
            let answer = tokio::select! {
                Some(answer) = self.running.join_next() => answer,
                () = wait(due) => continue,
            };
            let asked = match answer {
                Ok(asked) => asked,
                Err(error) if error.is_cancelled() => continue,
                // A mistake in this program ends it, like any other.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            let slot = &mut self.slots[asked.slot];
            if slot.wanted.as_ref() != Some(&asked.query) {
                continue;
            }
            slot.running = None;
            let now = Instant::now();
            let pause = if asked.result.is_ok() {
                PAUSE.max(asked.took * PAUSE_FACTOR)
            } else {
                slot.old = true;
                PAUSE_FAILED
            };
            slot.not_before = Some(now + pause);
            slot.latest = Some(now + pause.max(PAUSE_MAX));
            return (asked.query, asked.result);
        }
    }

    /// Starts what is due. Returns when the next question is due.
    fn start(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for (number, slot) in self.slots.iter_mut().enumerate() {
            let Some(query) = &slot.wanted else { continue };
            if slot.running.is_some() {
                continue;
            }
            let due = if slot.old {
                slot.not_before.unwrap_or(now)
            } else {
                // Something was answered: `latest` is set.
                slot.latest.unwrap_or(now)
            };
            if due > now {
                next = Some(next.map_or(due, |next| next.min(due)));
                continue;
            }
            slot.old = false;
            let (connection, query) = (Arc::clone(&self.connection), query.clone());
            slot.running = Some(self.running.spawn(async move {
                let result = ask(&connection, &query).await.map_err(|error| told(&error.into()));
                Asked { slot: number, query, took: now.elapsed(), result }
            }));
        }
        next
    }
}

async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// Returns an error as one line.
pub(super) fn told(error: &CliError) -> String {
    match error.hint_text() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

async fn ask(connection: &Connection, query: &Query) -> Result<Answer, RequestError> {
    Ok(match query {
        Query::Nodes => {
            let nodes = connection.nodes().await?;
            Answer::Rows(nodes.into_iter().map(|view| Row::Node(Box::new(view))).collect())
        }
        Query::Jobs { at, active, filter } => {
            Answer::Part(part(&Jobs { connection, active: *active }, *at, filter).await?)
        }
        Query::Services => {
            let services = connection.services().await?;
            Answer::Rows(services.into_iter().map(|view| Row::Service(Box::new(view))).collect())
        }
        Query::Volumes => {
            let volumes = connection.volumes().await?;
            Answer::Rows(volumes.into_iter().map(|view| Row::Volume(Box::new(view))).collect())
        }
        Query::Schedules => {
            let schedules = connection.schedules().await?;
            Answer::Rows(schedules.into_iter().map(|view| Row::Schedule(Box::new(view))).collect())
        }
        Query::Workflows { at, filter } => {
            Answer::Part(part(&Workflows { connection }, *at, filter).await?)
        }
        Query::Queues => {
            let queues = connection.queues().await?;
            Answer::Rows(queues.into_iter().map(|view| Row::Queue(Box::new(view))).collect())
        }
        Query::Runs(schedule) => {
            let detail = connection.schedule(schedule.clone()).await?;
            let runs = connection.schedule_history(schedule.clone(), RUNS).await?;
            Answer::Runs(Box::new(detail), runs)
        }
        Query::WorkflowJobs(workflow) => {
            let (_, jobs) = connection.workflow(*workflow).await?;
            let lines = workflow_table::lines(&jobs).into_iter();
            Answer::Rows(lines.map(|line| Row::WorkflowJob(Box::new(line))).collect())
        }
        Query::Tasks { job, at, state, filter } => {
            Answer::Part(part(&Tasks { connection, job: *job, state: *state }, *at, filter).await?)
        }
        Query::Attempts(task) => {
            let detail = connection.task(*task, None, Duration::ZERO).await?;
            let row = |view| Row::Attempt(*task, Box::new(view));
            Answer::Rows(detail.attempts.into_iter().map(row).collect())
        }
        Query::Service(service) => {
            let detail = connection.service(service.clone(), None, Duration::ZERO).await?;
            Answer::Service(Box::new(detail))
        }
        Query::Job(job) => Answer::Job(Box::new(connection.job(*job, None, Duration::ZERO).await?)),
        Query::About(about) => Answer::Text(about::describe(connection, about).await?),
    })
}

/// Changes something. Returns what that did.
pub(super) async fn act(connection: &Connection, action: &Action) -> CliResult<String> {
    let request = match action {
        Action::Cancel(job) => {
            let state = connection.cancel(*job).await?;
            return Ok(format!("job {job}: {}", JobState::from(&state).word()));
        }
        Action::Schedule(node, scheduling) => {
            let set = connection.node_scheduling(node.clone(), *scheduling, DrainSpec::default());
            return Ok(set.await?.line());
        }
        Action::CancelWorkflow(workflow) => {
            let (workflow, jobs) = connection.cancel_workflow(*workflow).await?;
            return Ok(format!("workflow {workflow}: {} cancelled", count(jobs.into(), "job")));
        }
        Action::PauseSchedule(name, pause) => {
            let schedule = name.clone();
            let changed = connection.change_schedule(match pause {
                true => ScheduleRequest::Pause { schedule },
                false => ScheduleRequest::Resume { schedule },
            });
            return Ok(paused("schedule", name, *pause, changed.await?));
        }
        Action::PauseQueue(name, pause) => {
            let queue = name.clone();
            let changed = connection.change_queue(match pause {
                true => QueueRequest::Pause { queue },
                false => QueueRequest::Resume { queue },
            });
            return Ok(paused("queue", name, *pause, changed.await?));
        }
        Action::Scale(service, replicas) => {
            ServiceRequest::Scale { service: service.clone(), replicas: *replicas }
        }
        Action::Restart(service) => ServiceRequest::Restart { service: service.clone() },
        Action::Rollback(service) => {
            ServiceRequest::Rollback { service: service.clone(), to: None }
        }
    };
    let changed = connection.change_service(request).await?;
    let (service, revision) = (changed.service, changed.revision);
    Ok(match changed.changed {
        true => format!("{service}: revision {revision}"),
        false => format!("{service}: nothing to change; it has revision {revision}"),
    })
}

/// Returns what a pause, or its end, has done.
fn paused(what: &str, name: &Name, pause: bool, changed: bool) -> String {
    match (changed, pause) {
        (true, true) => format!("{what} {name}: paused"),
        (true, false) => format!("{what} {name}: resumed"),
        (false, true) => format!("{what} {name}: was paused already"),
        (false, false) => format!("{what} {name}: was not paused"),
    }
}
