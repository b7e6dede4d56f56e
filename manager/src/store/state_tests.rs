//! The state in the core, a follower that applies its serialized changes, and the database are
//! equal after any history.

#![expect(clippy::unwrap_used, reason = "tests")]

mod damage;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fastrand::Rng;
use podmesh_manager_core::ids::{ConnectionId, Ticket};
use podmesh_manager_core::input::{
    Command, HeartbeatChange, Input, QueueAction, ScheduleChange, ServiceChange,
};
use podmesh_manager_core::state::Change;
use podmesh_manager_core::state::{State, Versioned};
use podmesh_manager_core::step::{Answer, Effect, Step};
use podmesh_manager_core::{Core, CoreConfig};
use podmesh_protocol::access::{Caller, PublicKey, Role, TokenId};
use podmesh_protocol::again::{EndedAs, RequeueRequest};
use podmesh_protocol::client::PrincipalKind;
use podmesh_protocol::ids::{AgentId, AttemptId, Epoch, InstanceId, JobId, Name, SubmissionId};
use podmesh_protocol::limits::PROTOCOL_VERSION;
use podmesh_protocol::node::{DrainSpec, MaintenanceSpec, Scheduling};
use podmesh_protocol::place::{Offer, PlaceRules};
use podmesh_protocol::queue::QueueChange;
use podmesh_protocol::report::{Outcome, OutcomeKind, Report, ReportFact};
use podmesh_protocol::schedule::{Overlap, ScheduleSpec, When};
use podmesh_protocol::service::{Health, PortSpec, RestartPolicy, ServiceSpec, UpdatePolicy};
use podmesh_protocol::session::{Hello, ToPeer};
use podmesh_protocol::spec::{
    ArrayRange, DockerSpec, JobRules, JobSpec, OnLost, Resources, RetryPolicy, RuntimeKind,
    RuntimeSpec, VolumeMount,
};
use podmesh_protocol::time::Now;
use podmesh_protocol::version::VersionRange;
use podmesh_protocol::workflow::{Condition, Dependency, WorkflowJob, WorkflowSpec};
use tempfile::TempDir;
use uuid::Uuid;

use super::commit::TimedStep;
use super::tests::{job_spec, name};
use super::{Store, open};

const NODES: [&str; 3] = ["a", "b", "c"];

/// A manager whose steps are committed at once.
struct World {
    dir: TempDir,
    store: Store,
    core: Core,
    follower: State,
    now: Now,
    rng: Rng,
    requeued: usize,
    /// How many jobs were submitted that wait for others.
    waiting: usize,
    /// How many dead-letter jobs were submitted.
    dead_letters: usize,
    /// The open session of each node, with its connection and the number of its last report.
    sessions: BTreeMap<&'static str, (Epoch, ConnectionId, u64)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).unwrap();
        let state = store.state.clone();
        let now = Now { mono_ms: 1_000, wall_ms: 1_700_000_000_000 };
        let core = Self::core(now, state.clone());
        let (rng, sessions) = (Rng::with_seed(seed), BTreeMap::new());
        Self {
            dir,
            store,
            core,
            follower: state,
            now,
            rng,
            requeued: 0,
            waiting: 0,
            dead_letters: 0,
            sessions,
        }
    }

    fn core(now: Now, state: State) -> Core {
        Core::new(
            now,
            CoreConfig {
                lease_ms: 15_000,
                heartbeat_ms: 1_000,
                margin_ms: 5_000,
                versions: VersionRange::SPOKEN,
            },
            state,
        )
    }

    fn give(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut input = Some(input);
        loop {
            let mut step = Step::default();
            self.core.step(self.now, input.take().unwrap_or(Input::Tick), &mut step);
            effects.extend(step.effects.iter().cloned());
            let of = |change: &&Change| match change {
                Change::JobInserted { spec, .. } => spec.dead_letter.is_some(),
                _ => false,
            };
            self.dead_letters += step.changes.iter().filter(of).count();
            let changes = rmp_serde::to_vec_named(&Versioned::new(&step.changes)).unwrap();
            let changes: Versioned<Vec<Change>> = rmp_serde::from_slice(&changes).unwrap();
            let changes = changes.into_value().unwrap();
            assert_eq!(changes, step.changes);
            Step { changes, ..step.clone() }.apply_to(&mut self.follower);
            let timed = TimedStep { step, wall_ms: self.now.wall_ms, age_ms: 1 };
            self.store.writer.commit(&mut vec![timed]).unwrap();
            if self.core.next_wakeup().is_none_or(|at| at > self.now.mono_ms) {
                return effects;
            }
        }
    }

    fn submit(&mut self) {
        let last = self.rng.u32(1..8);
        let after = self.after();
        // A job that waits index by index has the indexes of the other.
        let each = after.iter().find(|own| own.when == Condition::Each).map(|own| own.job);
        let array = each.map_or(ArrayRange { first: 1, last }, |job| self.array(job).unwrap());
        let spec = JobSpec {
            array,
            after,
            priority: self.rng.i32(-1..2),
            resources: Resources { cpu_millis: 1_000 * self.rng.u32(1..3), memory_bytes: 0 },
            retry: RetryPolicy { retries: self.rng.u32(0..3), ..job_spec(1).retry },
            on_lost: if self.rng.bool() { OnLost::Requeue } else { OnLost::Wait },
            rules: JobRules {
                max_failures: (self.rng.u8(0..4) == 0).then_some(2),
                max_active: (self.rng.u8(0..4) == 0).then_some(2),
                expires_ms: (self.rng.u8(0..4) == 0).then_some(60_000),
                queue: (self.rng.u8(0..3) == 0).then(|| name("night")),
                preemptible: self.rng.u8(0..3) == 0,
            }
            .into(),
            place: PlaceRules {
                resources: self.some_resources(),
                exclusive: self.rng.u8(0..9) == 0,
                ..PlaceRules::default()
            }
            .into(),
            ..job_spec(last)
        };
        assert_eq!(spec.validate(), Ok(()));
        let submission = SubmissionId(Uuid::from_u128(self.rng.u128(..)));
        let spec = Arc::new(spec);
        for _ in 0..3 {
            let upstream = self.store.history.upstream(&spec).unwrap();
            let (by, spec) = (name("ann"), Arc::clone(&spec));
            self.waiting += usize::from(!spec.after.is_empty());
            let command = Command::Submit { by, submission, spec, upstream };
            let effects = self.give(Input::Command(Ticket(1), command));
            let again = Effect::Answered { ticket: Ticket(1), result: Ok(Answer::ReadAgain) };
            if !effects.contains(&again) {
                return;
            }
        }
        unreachable!("the second read is enough");
    }

    /// Chooses jobs to wait for.
    fn after(&mut self) -> Vec<Dependency> {
        let mut after: Vec<Dependency> = Vec::new();
        for _ in 0..self.rng.usize(0..3) {
            let job = JobId(self.rng.u64(0..=self.core.state().last_job.0));
            let Some(array) = self.array(job) else { continue };
            let all = [Condition::Succeeded, Condition::Failed, Condition::Ended, Condition::Each];
            let mut when = all[self.rng.usize(0..4)];
            let of_each = after.iter().find(|own| own.when == Condition::Each);
            if of_each.is_some_and(|own| self.array(own.job) != Some(array)) {
                when = Condition::Ended;
            }
            if after.iter().all(|own| own.job != job) {
                after.push(Dependency { job, when });
            }
        }
        after
    }

    fn some_resources(&mut self) -> BTreeMap<Name, u32> {
        match self.rng.u8(0..4) {
            0 => [(name("gpu"), [500, 1_000, 2_000][self.rng.usize(0..3)])].into(),
            _ => BTreeMap::new(),
        }
    }

    /// Returns the tasks of a job that others can wait for.
    fn array(&self, job: JobId) -> Option<ArrayRange> {
        let (detail, _) = self.store.history.job(job).ok()?;
        detail.spec.run.replica.is_none().then_some(detail.spec.array)
    }

    fn workflow(&mut self) {
        let jobs = (0..self.rng.usize(1..6)).map(|at| {
            let before = (0..at).filter(|_| self.rng.bool()).collect::<Vec<_>>();
            let all = [Condition::Succeeded, Condition::Failed, Condition::Ended, Condition::Each];
            let after = before.into_iter().map(|at| Dependency {
                job: name(&format!("j{at}")),
                when: all[self.rng.usize(0..4)],
            });
            let after = after.collect();
            WorkflowJob { spec: JobSpec { name: name(&format!("j{at}")), ..job_spec(3) }, after }
        });
        let jobs = jobs.collect();
        let workflow = Box::new(WorkflowSpec { name: name("flow"), jobs });
        let positions = workflow.check().unwrap();
        let submission = SubmissionId(Uuid::from_u128(self.rng.u128(..)));
        let by = name("ann");
        self.command(Command::SubmitWorkflow { by, submission, workflow, positions });
    }

    /// Returns what a node offers of a named resource: other ids each time.
    fn offers(&mut self) -> BTreeMap<Name, Offer> {
        let ids = [["x", "y"], ["y", "z"]][self.rng.usize(0..2)].map(str::to_owned);
        [(name("gpu"), Offer { count: 0, ids: ids.into() })].into()
    }

    fn connect(&mut self, node: &'static str) {
        let jobs = self.core.state().jobs.values();
        let active = jobs.flat_map(|job| {
            let here = job.active.iter().filter(|(_, active)| active.node.as_str() == node);
            here.map(|(index, active)| AttemptId::new(job.id, *index, active.number))
        });
        let mut attempts: Vec<AttemptId> = active.collect();
        attempts.retain(|_| self.rng.u8(..) > 20);
        let hello = Hello {
            version: PROTOCOL_VERSION,
            version_oldest: None,
            node: name(node),
            boot_id: format!("boot-{}", self.rng.u8(0..2)),
            agent_instance: InstanceId(Uuid::from_u128(1)),
            agent_id: Some(AgentId(Uuid::from_u128(7))),
            cluster: None,
            program_version: "0.1.0".into(),
            capacity: Resources { cpu_millis: 3_000, memory_bytes: 1 << 30 },
            labels: BTreeMap::from([(name("disk"), "fast".into())]),
            runtimes: vec![RuntimeKind::Process.into(), RuntimeKind::Docker.into()],
            withdrawn: BTreeMap::new(),
            unenforced: BTreeMap::new(),
            low_disks: BTreeMap::new(),
            address: Some("10.0.0.1".into()),
            resources: self.offers(),
            attempts,
        };
        let caller = Caller { role: Role::Admin, name: name("root"), key: None };
        let connection = ConnectionId(self.rng.u64(..));
        let hello = Box::new(hello);
        let effects = self.give(Input::AgentConnected { connection, caller, hello });
        let welcome = effects.iter().find_map(|effect| match effect {
            Effect::Send { message: ToPeer::Welcome(welcome), .. } => Some(welcome),
            _ => None,
        });
        if let Some(welcome) = welcome {
            let epoch = welcome.epoch;
            self.sessions.insert(node, (epoch, connection, welcome.acked));
            self.give(Input::HeartbeatChanged { epoch, change: HeartbeatChange::Begun });
        }
    }

    fn report(&mut self, node: &'static str) {
        let Some((epoch, connection, last)) = self.sessions.get(node).copied() else { return };
        let jobs = self.core.state().jobs.values();
        let active: Vec<AttemptId> = jobs
            .flat_map(|job| {
                let here = job.active.iter().filter(|(_, active)| active.node.as_str() == node);
                here.map(|(index, active)| AttemptId::new(job.id, *index, active.number))
            })
            .collect();
        let Some(attempt) = self.rng.choice(active) else { return };
        let fact = match self.rng.u8(0..12) {
            0 => ReportFact::Preparing("pulling".into()),
            1 | 2 => ReportFact::Started,
            3 => ReportFact::Ended(Outcome::not_started("no room")),
            4 => ReportFact::Ended(Outcome::new(OutcomeKind::Lost)),
            5 => ReportFact::Ended(Outcome::exited(3)),
            6 => ReportFact::Listening(vec![self.rng.u16(..)]),
            7 => ReportFact::Health(Health::Healthy, "said".into()),
            11 => ReportFact::Ended(Outcome::new(OutcomeKind::Cancelled)),
            8 => ReportFact::Health(Health::Unhealthy, "said".into()),
            _ => ReportFact::Ended(Outcome::exited(0)),
        };
        let reports = vec![Report(last + 1, attempt, fact)];
        self.sessions.insert(node, (epoch, connection, last + 1));
        self.give(Input::AttemptsReported { connection, epoch, reports });
    }

    fn service(&mut self) {
        let (by, service) = (name("ann"), name(["web", "db"][self.rng.usize(0..2)]));
        let command = match self.rng.u8(0..9) {
            0..3 => {
                let port = PortSpec { publish: Some(80), ..PortSpec::default() };
                let is_web = service.as_str() == "web";
                let ports = Arc::new(is_web.then(|| (name("http"), port)).into_iter().collect());
                let JobSpec { resources, mut run, .. } = job_spec(1);
                run.command.push(self.rng.u8(0..3).to_string());
                if self.rng.bool() {
                    run.runtime = RuntimeSpec::from(DockerSpec {
                        image: "busybox".into(),
                        volumes: vec![VolumeMount {
                            volume: name(["data", "logs"][self.rng.usize(0..2)]),
                            target: "/data".into(),
                            read_only: false,
                        }],
                        ..DockerSpec::default()
                    });
                }
                let spec = ServiceSpec {
                    name: service,
                    replicas: self.rng.u32(0..4),
                    require: BTreeMap::new(),
                    spread: None,
                    place: PlaceRules {
                        resources: self.some_resources(),
                        exclusive: self.rng.u32(0..9) == 0,
                        ..PlaceRules::default()
                    }
                    .into(),
                    project: None,
                    depends_on: BTreeMap::new(),
                    resources,
                    ports,
                    health: None,
                    restart: RestartPolicy::default(),
                    update: UpdatePolicy { healthy_within_ms: 20_000, ..UpdatePolicy::default() },
                    drain_ms: 1_000,
                    run,
                };
                Command::ApplyService { by, spec: Arc::new(spec), back_to: None }
            }
            kind => {
                let change = match kind {
                    3 => ServiceChange::Scale(self.rng.u32(0..4)),
                    4 => ServiceChange::Restart,
                    5 => ServiceChange::Stop,
                    6 | 7 => ServiceChange::Start,
                    _ => ServiceChange::Remove,
                };
                Command::ChangeService { by, service, change }
            }
        };
        self.command(command);
    }

    fn queue(&mut self) {
        let (by, queue) = (name("root"), name(["night", "default"][self.rng.usize(0..2)]));
        let command = match self.rng.u8(0..6) {
            0..3 => {
                let change = QueueChange {
                    weight: self.rng.bool().then(|| self.rng.u32(1..4)),
                    max_active: self.rng.bool().then(|| self.rng.u32(0..4)),
                    max_active_per_caller: self.rng.bool().then(|| self.rng.u32(0..4)),
                    dead_letter: (self.rng.u8(0..4) > 0).then(|| Box::new(job_spec(2))),
                    no_dead_letter: false,
                };
                let no_dead_letter = change.dead_letter.is_none() && self.rng.bool();
                let change = QueueChange { no_dead_letter, ..change };
                Command::SetQueue { by, queue, change }
            }
            3 => Command::ChangeQueue { by, queue, action: QueueAction::Pause },
            4 => Command::ChangeQueue { by, queue, action: QueueAction::Resume },
            _ => Command::ChangeQueue { by, queue, action: QueueAction::Remove },
        };
        self.command(command);
    }

    fn schedule(&mut self) {
        let (by, schedule) = (name("ann"), name(["tick", "tock"][self.rng.usize(0..2)]));
        let command = match self.rng.u8(0..8) {
            0..4 => {
                let when = match self.rng.u8(0..3) {
                    0 => When::Every { every_ms: 1_000 * self.rng.u64(1..9) },
                    1 => When::Cron { pattern: "*/7 * * * * *".into(), zone: "UTC".into() },
                    _ => When::Cron { pattern: "* * * * *".into(), zone: "europe/berlin".into() },
                };
                let all = [Overlap::Skip, Overlap::Queue, Overlap::Replace];
                let spec = ScheduleSpec {
                    name: schedule,
                    when,
                    overlap: all[self.rng.usize(0..3)],
                    catch_up_ms: 1_000 * self.rng.u64(1..9),
                    job: Box::new(job_spec(1)),
                };
                Command::SaveSchedule { by, spec: Arc::new(spec) }
            }
            kind => {
                let submission = SubmissionId(Uuid::from_u128(self.rng.u128(..)));
                let change = match kind {
                    4 => ScheduleChange::Pause,
                    5 => ScheduleChange::Resume,
                    6 => ScheduleChange::Run { submission },
                    _ => ScheduleChange::Remove,
                };
                Command::ChangeSchedule { by, schedule, change }
            }
        };
        self.command(command);
    }

    fn access(&mut self) {
        let by = name("root");
        let token = TokenId(self.rng.u64(0..4));
        let node = name(NODES[self.rng.usize(0..3)]);
        let (old, new) = (PublicKey([self.rng.u8(0..5); 32]), PublicKey([self.rng.u8(5..9); 32]));
        let secret_hash = [1; 32];
        if self.rng.u8(0..8) == 0 {
            self.give(Input::ApiTokenUsed { id: token });
            return;
        }
        let command = match self.rng.u8(0..7) {
            6 => {
                let (role, ttl_ms) = (Role::Viewer, 60_000);
                Command::CreateApiToken { by, secret_hash, role, ttl_ms }
            }
            0 => {
                let (role, ttl_ms, uses) = (Role::Viewer, 60_000, 3);
                Command::CreateToken { by, secret_hash, role, ttl_ms, uses }
            }
            1 => Command::RevokeToken { by, id: token },
            2 | 3 => Command::Join { key: old, token, secret_hash, name: node },
            4 => Command::RenewKey { old, new },
            _ => Command::RevokeKey { by, kind: PrincipalKind::User, name: node },
        };
        self.command(command);
    }

    /// Requeues tasks of any job, as the shell does.
    fn requeue(&mut self) {
        let job = JobId(self.rng.u64(0..=self.core.state().last_job.0));
        let states = [EndedAs::Failed, EndedAs::Cancelled, EndedAs::Lost, EndedAs::TimedOut];
        let state = self.rng.choice(states).filter(|_| self.rng.bool());
        let tasks = self.rng.bool().then(|| ["1-8", "2", "1,3-4"][self.rng.usize(0..3)]);
        let tasks = tasks.map(|tasks| tasks.parse().unwrap());
        let request = RequeueRequest { job, state, tasks, downstream: false };
        let Ok(batch) = self.store.history.requeue(&request, 0) else { return };
        if batch.job.spec.run.replica.is_some() || (batch.rest && batch.missing.is_some()) {
            return;
        }
        let (tasks, rest) = (batch.tasks, batch.rest);
        let ended = batch.has_ended.then_some(batch.job);
        self.requeued += tasks.len() + usize::from(rest);
        self.command(Command::Requeue { by: name("ann"), job, ended, tasks, rest });
    }

    fn command(&mut self, command: Command) {
        self.give(Input::Command(Ticket(1), command));
    }

    fn pass(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
        self.give(Input::Tick);
    }

    /// Restarts the manager from its database, which must hold the same state.
    fn restart(&mut self) {
        assert_eq!(self.follower, *self.core.state(), "what a follower has");
        self.store = open(self.dir.path()).unwrap();
        assert_eq!(self.store.state, self.follower, "what the database has");
        self.core = Self::core(self.now, self.store.state.clone());
        self.sessions.clear();
    }
}

#[test]
fn the_core_a_follower_and_the_database_have_the_same_state() {
    let (mut requeued, mut waiting, mut dead_letters) = (0, 0, 0);
    for seed in 0..20 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for _ in 0..400 {
            let node = NODES[world.rng.usize(0..3)];
            match world.rng.u8(0..48) {
                0..3 | 44 => world.submit(),
                3 => world.workflow(),
                35 => {
                    let job = JobId(world.rng.u64(0..30));
                    world.command(Command::CancelDownstream { job, done: 0 });
                }
                4..7 => world.connect(node),
                7..22 => world.report(node),
                37..40 => (0..8).for_each(|_| world.requeue()),
                22 => {
                    let job = JobId(world.rng.u64(0..30));
                    world.command(Command::Cancel { job });
                }
                23 => world.restart(),
                24 => {
                    let by = name("root");
                    let first = world.rng.u64(1..20);
                    let jobs = (first..first + 3).map(JobId).collect();
                    world.command(Command::RemoveJobs { jobs, by: Some(by) });
                }
                25 => {
                    let (age_ms, keep_ms, by) = (world.now.mono_ms, 100_000, name("root"));
                    world.give(Input::RetentionDue { age_ms, keep_ms, by });
                }
                26 => {
                    let (by, node) = (name("root"), name(node));
                    world.command(Command::ForgetNode { by, node, force: true });
                }
                27..30 => world.access(),
                30..33 => world.service(),
                40..42 => world.schedule(),
                45..47 => world.queue(),
                42 => {
                    // The clock jumps.
                    world.now.wall_ms = world.now.wall_ms + 20_000 - world.rng.u64(0..40_000);
                }
                34 => {
                    let (by, volume) =
                        (name("root"), name(["data", "logs"][world.rng.usize(0..2)]));
                    let force = world.rng.bool();
                    world.command(Command::RemoveVolume { by, volume, force });
                }
                33 => {
                    let (by, node) = (name("root"), name(node));
                    let all = [Scheduling::Open, Scheduling::Cordoned, Scheduling::Draining];
                    let scheduling = all[world.rng.usize(0..3)];
                    let mut drain = DrainSpec::default();
                    if scheduling == Scheduling::Draining {
                        drain.deadline_ms = world.rng.bool().then(|| world.rng.u64(0..20_000));
                        drain.requeue = world.rng.bool();
                    }
                    world.command(Command::ScheduleNode { by, node, scheduling, drain });
                }
                47 => {
                    let (by, node) = (name("root"), name(node));
                    let from_ms = world.now.wall_ms + world.rng.u64(0..20_000);
                    let maintenance = world.rng.bool().then(|| MaintenanceSpec {
                        from_ms,
                        for_ms: 10_000,
                        drain: DrainSpec::default(),
                    });
                    world.command(Command::SetMaintenance { by, node, maintenance });
                }
                43 => {
                    let (by, node, label) = (name("root"), name(node), name("zone"));
                    let (mut set, mut remove) = (BTreeMap::new(), BTreeSet::new());
                    if world.rng.bool() {
                        set.insert(label, world.rng.u64(0..3).to_string());
                    } else {
                        remove.insert(label);
                    }
                    world.command(Command::LabelNode { by, node, set, remove });
                }
                _ => {
                    let ms = world.rng.u64(0..10_000);
                    world.pass(ms);
                }
            }
        }
        world.restart();
        requeued += world.requeued;
        waiting += world.waiting;
        dead_letters += world.dead_letters;
        let path = world.dir.path().join(super::FILE_NAME);
        let checked = super::check::examine(world.store.writer.connection(), &path).unwrap();
        assert!(checked.wrong.is_empty(), "{:?}", checked.wrong);
        assert!(world.follower.last_job > JobId(10) && world.follower.last_epoch > Epoch(10));
        let state = rmp_serde::to_vec_named(&Versioned::new(&world.follower)).unwrap();
        let state: Versioned<State> = rmp_serde::from_slice(&state).unwrap();
        assert_eq!(state.into_value(), Ok(world.follower));
    }
    assert!(requeued > 40, "only {requeued} tasks were requeued");
    assert!(waiting > 300, "only {waiting} jobs waited for others");
    assert!(dead_letters > 15, "only {dead_letters} dead-letter jobs");
}
