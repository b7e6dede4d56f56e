//! Tests the core through its inputs and steps, checking the invariants after each step.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod lease;
mod random;
mod reports;
mod starts;

use std::collections::BTreeMap;
use std::sync::Arc;

use podmesh_protocol::ids::{AttemptId, ClusterId, Epoch, JobId};
use podmesh_protocol::report::{Outcome, Report, ReportFact};
use podmesh_protocol::service::{Health, ReplicaSpec};
use podmesh_protocol::session::{StopReason, ToManager, Welcome};
use podmesh_protocol::spec::{DockerSpec, OnLost, Resources, RunSpec, RuntimeSpec};
use podmesh_protocol::time::{Millis, Now};

use crate::input::{FoundAttempt, Input, RuntimeFact};
use crate::replica::Replica;
use crate::step::{Command, JobContext, Step};
use crate::{Core, CoreConfig};

const LEASE_MS: u64 = 15_000;
const GOODBYE_MS: u64 = 5_000;
const CONFIG: CoreConfig = CoreConfig { goodbye_wait_ms: GOODBYE_MS, processes_outlive: false };
const GRACE_MS: u64 = 700;
const TIMEOUT_MS: u64 = 30_000;

/// Returns a job: 1 waits when lost, 2 is requeued, 3 has a timeout, 4 runs in a container.
fn context(job: u64) -> Arc<JobContext> {
    let runtime =
        if job == 4 { RuntimeSpec::from(DockerSpec::default()) } else { RuntimeSpec::Process };
    Arc::new(JobContext {
        claims: Default::default(),
        job: JobId(job),
        name: "job".parse().unwrap(),
        on_lost: if job == 2 { OnLost::Requeue } else { OnLost::Wait },
        resources: Resources::default(),
        run: RunSpec {
            runtime,
            command: vec!["true".into()],
            env: BTreeMap::new(),
            workdir: None,
            timeout_ms: (job == 3).then_some(TIMEOUT_MS),
            stop_grace_ms: GRACE_MS,
            replica: None,
            files: [].into(),
        },
    })
}

fn attempt(job: u64, index: u32, number: u32) -> AttemptId {
    AttemptId::new(JobId(job), index, number)
}

fn found(attempt: AttemptId, ended: Option<Outcome>) -> FoundAttempt {
    let job = attempt.task.job.0;
    FoundAttempt {
        attempt,
        ended,
        started: true,
        outlives_agent: job == 4,
        on_lost: context(job).on_lost,
        ran_ms: 0,
        replica: None,
    }
}

struct Agent {
    core: Core,
    now: Millis,
    epoch: u64,
}

impl Agent {
    fn new() -> Self {
        Self { core: Core::new(CONFIG), now: 1_000, epoch: 0 }
    }

    /// Creates an agent in a session, which knows jobs 1 to 4.
    fn in_session() -> Self {
        let mut agent = Self::new();
        agent.open_session(0, &[]);
        agent
    }

    fn step(&mut self, input: Input) -> Step {
        let mut step = Step::default();
        self.core.step(Now { mono_ms: self.now, wall_ms: 0 }, input, &mut step);
        self.core.check_invariants();
        step
    }

    fn tick_at(&mut self, now: Millis) -> Step {
        self.now = now;
        self.step(Input::Tick)
    }

    fn welcome(&mut self, acked: u64, stop: &[AttemptId]) -> Welcome {
        self.epoch += 1;
        Welcome {
            version: 1,
            epoch: Epoch(self.epoch),
            cluster: ClusterId(Default::default()),
            lease_ms: LEASE_MS,
            heartbeat_ms: 1_000,
            acked,
            stop: stop.to_vec(),
            keep: self.core.hello_attempts(),
        }
    }

    fn open_session(&mut self, acked: u64, stop: &[AttemptId]) -> Step {
        let welcome = self.welcome(acked, stop);
        let step = self.step(Input::SessionOpened {
            welcome: Box::new(welcome),
            hello_sent_mono_ms: self.now,
        });
        for job in 1..=4 {
            let context = context(job);
            self.step(Input::JobSpecReceived { epoch: Epoch(self.epoch), context });
        }
        step
    }

    fn start(&mut self, attempts: &[AttemptId]) -> Step {
        let epoch = Epoch(self.epoch);
        self.step(Input::StartsReceived { epoch, attempts: attempts.to_vec() })
    }

    /// Starts an attempt, and acknowledges the report of its start.
    fn run(&mut self, attempt: AttemptId) {
        let step = self.start(&[attempt]);
        assert_eq!(step.commands, [started(attempt)]);
        let step = self.tell(attempt, RuntimeFact::Started);
        let last = rows(&step).last().unwrap().0;
        self.ack(last);
    }

    fn cancel(&mut self, attempt: AttemptId) -> Step {
        self.stop(attempt, StopReason::Cancelled)
    }

    fn stop(&mut self, attempt: AttemptId, reason: StopReason) -> Step {
        let epoch = Epoch(self.epoch);
        self.step(Input::StopsReceived { epoch, stops: vec![(attempt, reason)] })
    }

    fn ack(&mut self, acked: u64) -> Step {
        self.step(Input::ReportsAcked { epoch: Epoch(self.epoch), acked })
    }

    fn tell(&mut self, attempt: AttemptId, fact: RuntimeFact) -> Step {
        self.step(Input::RuntimeReported(vec![(attempt, fact)]))
    }

    fn end(&mut self, attempt: AttemptId, outcome: Outcome) -> Step {
        self.tell(attempt, RuntimeFact::Ended(outcome))
    }
}

fn started(attempt: AttemptId) -> Command {
    Command::Start { attempt, context: context(attempt.task.job.0) }
}

fn stopped(attempt: AttemptId, grace_ms: u64) -> Command {
    Command::Stop { attempt, grace_ms }
}

fn removed(attempt: AttemptId) -> Command {
    Command::Remove { attempt }
}

fn rows(step: &Step) -> Vec<Report> {
    let rows = |message: &ToManager| match message {
        ToManager::Reports(_, rows) => rows.clone(),
        _ => Vec::new(),
    };
    step.messages.iter().flat_map(rows).collect()
}

/// Returns the only outcome that a step reports.
fn outcome(step: &Step) -> Outcome {
    match rows(step).as_slice() {
        [Report(_, _, ReportFact::Ended(outcome))] => outcome.clone(),
        rows => panic!("not exactly one end: {rows:?}"),
    }
}

fn signalled(signal: i32) -> Outcome {
    Outcome { signal: Some(signal), ..Outcome::new(podmesh_protocol::report::OutcomeKind::Failed) }
}
