//! Tests that compare the steps for given inputs, and check every invariant after each step.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod access;
mod claims;
mod dead_letters;
mod drains;
mod explain;
mod forget;
mod jobs;
mod lease;
mod maintenance;
mod measures;
mod model;
mod placement;
mod preempt;
mod property;
mod queues;
mod renewal;
mod reports;
mod requeue;
mod reservation;
mod restore;
mod retention;
mod schedules;
mod services;
mod sessions;
mod upstream;

use std::collections::BTreeMap;
use std::sync::Arc;

use podmesh_protocol::access::{Caller, Role};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::{
    AgentId, AttemptId, ClusterId, Epoch, InstanceId, JobId, Name, Revision, SubmissionId,
};
use podmesh_protocol::limits::{EVENTS_PER_CHUNK_MAX, PROTOCOL_VERSION};
use podmesh_protocol::node::{NodeState, NodeView};
use podmesh_protocol::report::{JobState, Outcome, Report, ReportFact, ShownOutcome};
use podmesh_protocol::session::{Hello, StopReason, ToPeer, Welcome};
use podmesh_protocol::spec::{
    ArrayRange, JobSpec, OnLost, Resources, RetryPolicy, RunSpec, RuntimeKind, RuntimeSpec,
};
use podmesh_protocol::time::Now;
use podmesh_protocol::version::VersionRange;
use uuid::Uuid;

use self::model::Model;
use crate::ids::{ConnectionId, Ticket};
use crate::input::{Command, HeartbeatChange, Input};
use crate::state::NodeRow;
use crate::step::{Answer, Effect, Step};
use crate::{Core, CoreConfig};

const LEASE_MS: u64 = 15_000;
const MARGIN_MS: u64 = 5_000;
const GIB: u64 = 1 << 30;
const TICKET: Ticket = Ticket(7);
const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(77));

fn config() -> CoreConfig {
    CoreConfig {
        lease_ms: LEASE_MS,
        heartbeat_ms: 1_000,
        margin_ms: MARGIN_MS,
        versions: VersionRange::SPOKEN,
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn connection(number: u64) -> ConnectionId {
    ConnectionId(number)
}

/// A caller on the manager's own machine.
fn local() -> Caller {
    Caller { role: Role::Admin, name: name("root"), key: None }
}

fn instance(number: u128) -> InstanceId {
    InstanceId(Uuid::from_u128(number))
}

fn at(job: u64, index: u32, number: u32) -> AttemptId {
    AttemptId::new(JobId(job), index, number)
}

/// A job of one task that takes one core.
fn spec() -> JobSpec {
    JobSpec {
        name: name("work"),
        array: ArrayRange::default(),
        priority: 0,
        require: BTreeMap::new(),
        resources: Resources { cpu_millis: 1000, memory_bytes: 0 },
        retry: RetryPolicy { backoff_ms_max: 5_000, ..RetryPolicy::default() },
        on_lost: OnLost::Wait,
        rules: Default::default(),
        place: Default::default(),
        not_before_ms: None,
        after: Vec::new(),
        scheduled: None,
        dead_letter: None,
        workflow: None,
        run: RunSpec {
            runtime: RuntimeSpec::Process,
            command: vec!["true".into()],
            env: BTreeMap::new(),
            workdir: None,
            timeout_ms: None,
            stop_grace_ms: 10_000,
            replica: None,
            files: [].into(),
        },
    }
}

fn array(tasks: u32) -> JobSpec {
    JobSpec { array: ArrayRange { first: 1, last: tasks }, ..spec() }
}

/// The hello of an agent with four cores and 8 GiB. The number gives its instance.
fn hello(node: &str, number: u64) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        version_oldest: None,
        node: name(node),
        boot_id: "boot-1".into(),
        agent_instance: instance(u128::from(number)),
        agent_id: None,
        cluster: Some(CLUSTER),
        program_version: "0.1.0".into(),
        capacity: Resources { cpu_millis: 4000, memory_bytes: 8 * GIB },
        labels: BTreeMap::new(),
        runtimes: vec![RuntimeKind::Process.into()],
        withdrawn: [].into(),
        unenforced: [].into(),
        low_disks: [].into(),
        address: None,
        resources: Default::default(),
        attempts: Vec::new(),
    }
}

/// The same, with an agent ID.
fn hello_of(agent_id: u128, node: &str, number: u64) -> Hello {
    Hello { agent_id: Some(AgentId(Uuid::from_u128(agent_id))), ..hello(node, number) }
}

/// A core with a clock, and a store that applies its changes.
struct World {
    core: Core,
    now: Now,
    model: Model,
    /// The key of the last submission.
    last_key: u128,
}

impl World {
    fn new() -> Self {
        let model = Model::new();
        let now = Now { mono_ms: 1_000_000, wall_ms: 5_000 };
        Self { core: Core::new(now, config(), model.state.clone()), now, model, last_key: 0 }
    }

    /// Restarts the manager with the state from the store.
    fn restart(&mut self) {
        // A new process. Its monotonic clock is independent of the previous one.
        self.now.mono_ms += 1_000_000;
        self.core = Core::new(self.now, config(), self.model.state.clone());
        self.core.check_invariants();
    }

    fn give(&mut self, input: Input) -> Step {
        let mut step = Step::default();
        let before = self.core.state().last_revision;
        self.core.step(self.now, input, &mut step);
        self.core.check_invariants();
        assert!(step.events.len() <= EVENTS_PER_CHUNK_MAX, "a step has {}", step.events.len());
        let first = (!step.events.is_empty()).then_some(Revision(before.0 + 1));
        assert_eq!(step.first_revision, first);
        assert_eq!(self.core.state().last_revision.0, before.0 + step.events.len() as u64);
        self.model.apply(self.now.mono_ms, &step);
        assert_eq!(self.model.state, *self.core.state(), "the changes lead to the same state");
        step
    }

    /// Ticks until no work is left over.
    fn drain(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        while self.core.next_wakeup().is_some_and(|at| at <= self.now.mono_ms) {
            steps.push(self.give(Input::Tick));
            assert!(steps.len() < 10_000, "the core always has more work");
        }
        steps
    }

    fn pass(&mut self, ms: u64) -> Step {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
        self.give(Input::Tick)
    }

    fn submit(&mut self, spec: JobSpec) -> Step {
        self.submit_as("ann", spec)
    }

    fn submit_as(&mut self, by: &str, spec: JobSpec) -> Step {
        assert_eq!(spec.validate(), Ok(()));
        self.last_key += 1;
        let submission = SubmissionId(Uuid::from_u128(self.last_key));
        loop {
            let upstream = self.model.upstream(&spec);
            let (by, spec) = (name(by), Arc::new(spec.clone()));
            let command = Command::Submit { by, submission, spec, upstream };
            let step = self.give(Input::Command(TICKET, command));
            if replies(&step) != [Ok(Answer::ReadAgain)] {
                return step;
            }
        }
    }

    fn cancel(&mut self, job: u64) -> Step {
        self.give(Input::Command(TICKET, Command::Cancel { job: JobId(job) }))
    }

    /// Requeues the ended tasks that the filter takes, as the shell does with what is stored.
    fn requeue(&mut self, job: u64, rest: bool, take: impl Fn(u32) -> bool) -> Step {
        let (ended, mut tasks) = self.model.ended_tasks(JobId(job));
        tasks.retain(|task| take(task.index));
        let (by, job) = (name("ann"), JobId(job));
        self.give(Input::Command(TICKET, Command::Requeue { by, job, ended, tasks, rest }))
    }

    fn connect(&mut self, hello: Hello, number: u64) -> Step {
        self.connect_as(local(), hello, number)
    }

    fn connect_as(&mut self, caller: Caller, hello: Hello, number: u64) -> Step {
        self.give(Input::AgentConnected {
            connection: connection(number),
            caller,
            hello: Box::new(hello),
        })
    }

    /// Connects a node with four cores, whose connection and instance are `number`. Returns the epoch.
    fn join(&mut self, node: &str, number: u64) -> Epoch {
        let step = self.connect(hello(node, number), number);
        welcome(&step).epoch
    }

    fn report(&mut self, number: u64, epoch: Epoch, reports: Vec<Report>) -> Step {
        self.give(Input::AttemptsReported { connection: connection(number), epoch, reports })
    }

    fn beat(&mut self, epoch: Epoch, change: HeartbeatChange) -> Step {
        self.give(Input::HeartbeatChanged { epoch, change })
    }

    fn node(&self, node: &str) -> NodeView {
        let rows = self.core.list_nodes(self.now, None, 99);
        rows.into_iter().find(|row| row.node == name(node)).unwrap()
    }

    fn node_row(&self, node: &str) -> &NodeRow {
        let ix = self.core.nodes.by_name(&name(node)).unwrap();
        &self.core.nodes.get(ix).row
    }

    fn explain(&self, job: u64) -> Vec<String> {
        let reasons = self.core.explain(self.now, JobId(job));
        reasons.iter().map(ToString::to_string).collect()
    }

    fn counts(&self, job: u64) -> [u32; 5] {
        let counts = self.model.job(JobId(job)).counts;
        [counts.queued, counts.active, counts.succeeded, counts.failed, counts.cancelled]
    }

    fn state(&self, job: u64) -> JobState {
        self.model.job(JobId(job)).state
    }
}

fn messages(step: &Step) -> Vec<&ToPeer> {
    step.effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { message, .. } => Some(message),
            _ => None,
        })
        .collect()
}

fn replies(step: &Step) -> Vec<Result<Answer, ErrorReply>> {
    step.effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Answered { result, .. } => Some(result.clone()),
            _ => None,
        })
        .collect()
}

fn welcome(step: &Step) -> &Welcome {
    let found = messages(step).into_iter().find_map(|message| match message {
        ToPeer::Welcome(welcome) => Some(welcome),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no welcome in {step:?}"))
}

fn refusal(step: &Step) -> (ErrorCode, String) {
    assert!(step.changes.is_empty() && step.events.is_empty(), "{step:?}");
    match messages(step).as_slice() {
        [ToPeer::Refused(error)] => (error.code, error.message.clone()),
        other => panic!("{other:?}"),
    }
}

fn starts(step: &Step) -> Vec<AttemptId> {
    let of = |message: &ToPeer| match message {
        ToPeer::Starts(_, attempts) => attempts.clone(),
        _ => Vec::new(),
    };
    messages(step).into_iter().flat_map(of).collect()
}

fn stops(step: &Step) -> Vec<(AttemptId, StopReason)> {
    let of = |message: &ToPeer| match message {
        ToPeer::Stops(_, stops) => stops.clone(),
        _ => Vec::new(),
    };
    messages(step).into_iter().flat_map(of).collect()
}

/// Returns the attempts that a step has assigned, with their nodes.
fn placed(step: &Step) -> Vec<(AttemptId, &str)> {
    step.events
        .iter()
        .filter_map(|event| match event {
            EventFact::AttemptAssigned { attempt, node } => Some((*attempt, node.as_str())),
            _ => None,
        })
        .collect()
}

fn started(number: u64, attempt: AttemptId) -> Report {
    Report(number, attempt, ReportFact::Started)
}

fn exited(number: u64, attempt: AttemptId, code: i32) -> Report {
    ended(number, attempt, Outcome::exited(code))
}

fn ended(number: u64, attempt: AttemptId, outcome: Outcome) -> Report {
    Report(number, attempt, ReportFact::Ended(outcome))
}

/// Returns an outcome of this version, as the core decided on it.
fn known(outcome: &ShownOutcome) -> Outcome {
    let ShownOutcome { kind, exit_code, signal, oom_killed, message, ran_ms } = outcome.clone();
    let kind = *kind.known().unwrap();
    Outcome { kind, exit_code, signal, oom_killed, message, ran_ms }
}

/// Returns the attempts that ended in a step, with the wait before the next attempt.
fn ends(step: &Step) -> Vec<(AttemptId, Outcome, Option<u64>)> {
    step.events
        .iter()
        .filter_map(|event| match event {
            EventFact::AttemptEnded { attempt, outcome, retry_after_ms: retry } => {
                Some((*attempt, known(outcome), *retry))
            }
            _ => None,
        })
        .collect()
}

/// Returns the state of a node as the core sees it.
fn node_state(world: &mut World, node: &str) -> NodeState {
    *world.node(node).state.known().unwrap()
}
