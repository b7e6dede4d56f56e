//! The world: its time, its pending events and their order.

use std::collections::{BTreeMap, BTreeSet};

use podmesh_agent_core::input::RuntimeFact;
use podmesh_manager_core::input::{Command, Input};
use podmesh_protocol::ids::{AttemptId, JobId, SubmissionId};
use podmesh_protocol::service::Health;
use podmesh_protocol::spec::Resources;

use crate::faults::Planted;
use crate::host::{EndCause, Node};
use crate::judge::Judge;
use crate::manager::Manager;
use crate::net::{Conn, ConnId, Direction, Stream, StreamId};
use crate::proxy::{Status, Update};
use crate::rng::Rng;
use crate::schedules::ScheduleUsers;
use crate::services::ServiceUsers;
use crate::store::Store;
use crate::users::{User, UserReply, UserRequest};

/// The id of one run of a process. Never reused.
pub(crate) type Life = u64;

/// When all faults end. From then on the world must converge.
const CALM_AFTER_MS: u64 = 90_000;
/// EndCause long the convergence may take.
const CONVERGES_WITHIN_MS: u64 = 1_200_000;
/// How long users wait for what they have asked for until they ask again.
const INSIST_EVERY_MS: u64 = 10_000;
/// More events than any healthy run needs.
const EVENTS_MAX: u64 = 3_000_000;

/// A pending event.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A fault or a user's cancel.
    Chaos,
    UserSubmits(usize),
    RequestArrives(UserRequest),
    ReplyArrives(UserRequest, UserReply),
    ManagerStarts,
    CoreWakes(Life),
    LeasesWake(Life),
    Commit(Life),
    Deliver(Life),
    /// Another thread of the manager sends an input to its core.
    ToCore(Life, Box<Input>),
    AgentStarts(usize),
    AgentWakes(usize, Life),
    Connect(usize, Life),
    WelcomeLimit(usize, ConnId),
    DockerReady(usize, Life),
    Pump(ConnId, Direction),
    ManagerHears(ConnId),
    AgentHears(ConnId),
    Beat(StreamId),
    BeatArrives(StreamId, u64),
    AnswerArrives(StreamId, u64),
    StreamEnds(StreamId),
    StreamFails(StreamId),
    Runs(usize, AttemptId, u64),
    Exits(usize, AttemptId, u64, EndCause),
    Fact(usize, Life, AttemptId, RuntimeFact),
    /// A supervisor's lease ends, unless it was told a newer one.
    SupervisorLease(usize, u64),
    HealthTurns(usize, AttemptId, u64, Health),
    ServiceUserActs,
    ScheduleUserActs,
    ProxyStarts(usize, Life),
    ProxyHears(usize, Life, u64, Box<Update>),
    ProxySays(usize, Life, Status),
    ClientConnects(usize),
    ClientLeaves(usize, u64, u64),
}

/// The parameters of one seed.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) lease_ms: u64,
    pub(crate) heartbeat_ms: u64,
    pub(crate) margin_ms: u64,
    /// The longest time between two faults; the average is about half of it.
    pub(crate) chaos_every_ms: u64,
    /// The longest time that a message usually takes.
    pub(crate) latency_ms: u64,
}

pub(crate) struct World {
    pub(crate) now: u64,
    sequence: u64,
    events: BTreeMap<(u64, u64), Event>,
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) planted: Option<Planted>,
    pub(crate) calm: bool,
    pub(crate) manager: Option<Manager>,
    /// What is on the manager's disk.
    pub(crate) store: Store,
    /// What the manager's core has decided, on disk or not.
    pub(crate) decided: Store,
    pub(crate) nodes: Vec<Node>,
    pub(crate) conns: BTreeMap<ConnId, Conn>,
    pub(crate) streams: BTreeMap<StreamId, Stream>,
    pub(crate) users: Vec<User>,
    pub(crate) service_users: ServiceUsers,
    pub(crate) schedule_users: ScheduleUsers,
    pub(crate) judge: Judge,
    /// Attempts that were ended because their node was forgotten.
    pub(crate) forgotten: BTreeSet<AttemptId>,
    last_number: u64,
    log: Option<Vec<String>>,
    pub(crate) stats: Stats,
}

/// Statistics of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) events: u64,
    pub(crate) attempts: u64,
    pub(crate) crashes: u64,
    /// Attempts of `on_lost = requeue` tasks that ran while an older copy outlived its dead agent.
    pub(crate) orphan_copies: u64,
    /// Connections through proxies.
    pub(crate) connections: u64,
}

impl Stats {
    pub(crate) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.attempts += other.attempts;
        self.crashes += other.crashes;
        self.orphan_copies += other.orphan_copies;
        self.connections += other.connections;
    }
}

/// Writes a line to the event log, if there is one.
macro_rules! note {
    ($world:expr, $($text:tt)*) => {
        if $world.logs() {
            let line = format!($($text)*);
            $world.write_line(line);
        }
    };
}
pub(crate) use note;

impl World {
    pub(crate) fn new(seed: u64, planted: Option<Planted>, log: bool) -> Self {
        let mut rng = Rng::new(seed);
        let short = rng.percent(25);
        let plan = Plan {
            lease_ms: if short { 4_000 } else { 15_000 },
            heartbeat_ms: if short { 500 } else { 1_000 },
            margin_ms: 5_000,
            chaos_every_ms: [500, 2_000, 6_000, 20_000][rng.below(4) as usize],
            latency_ms: [2, 20, 300][rng.below(3) as usize],
        };
        let mut world = Self {
            now: 1_000,
            sequence: 0,
            events: BTreeMap::new(),
            rng,
            plan,
            planted,
            calm: false,
            manager: None,
            store: Store::new(),
            decided: Store::new(),
            nodes: Vec::new(),
            conns: BTreeMap::new(),
            streams: BTreeMap::new(),
            users: Vec::new(),
            service_users: ServiceUsers::default(),
            schedule_users: ScheduleUsers::default(),
            judge: Judge::default(),
            forgotten: BTreeSet::new(),
            last_number: 0,
            log: log.then(Vec::new),
            stats: Stats::default(),
        };
        let nodes = world.rng.within(1, 4);
        for index in 0..nodes {
            let cpus = world.rng.within(1, 4) as u32;
            let capacity = Resources { cpu_millis: cpus * 1_000, memory_bytes: 4 << 30 };
            let has_address = !world.rng.percent(10);
            world.nodes.push(Node::new(index as usize, capacity, has_address));
            let at = world.rng.within(0, 3_000);
            world.after(at, Event::AgentStarts(index as usize));
        }
        if world.rng.percent(25) {
            let index = nodes as usize;
            let of = world.rng.below(nodes) as usize;
            let stranger = world.nodes[of].stranger(index);
            world.nodes.push(stranger);
            let at = world.rng.within(0, 60_000);
            world.after(at, Event::AgentStarts(index));
        }
        world.after(0, Event::ManagerStarts);
        world.make_users();
        world.make_services();
        world.make_schedules();
        world.after(1_000, Event::Chaos);
        world
    }

    pub(crate) fn logs(&self) -> bool {
        self.log.is_some()
    }

    pub(crate) fn write_line(&mut self, line: String) {
        let now = self.now;
        if let Some(log) = &mut self.log {
            log.push(format!("{now:>8} {line}"));
        }
    }

    pub(crate) fn take_log(&mut self) -> Vec<String> {
        self.log.take().unwrap_or_default()
    }

    /// Returns a new number that was never used.
    pub(crate) fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    pub(crate) fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now + ms, event);
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((at.max(self.now), self.sequence), event);
    }

    /// Returns whether a user's submission is on its way to the manager's core.
    pub(crate) fn is_under_way(&self, user: usize, submission: &SubmissionId) -> bool {
        self.events.values().any(|event| match event {
            Event::RequestArrives(UserRequest::Submit(asks)) => *asks == user,
            Event::ToCore(_, input) => {
                matches!(
                    &**input,
                    Input::Command(
                        _,
                        Command::Submit { submission: of, .. }
                            | Command::SubmitWorkflow { submission: of, .. }
                    ) if of == submission
                )
            }
            _ => false,
        })
    }

    /// Runs the seed to its end. Panics if an invariant breaks.
    pub(crate) fn run(&mut self) {
        let (mut looked, mut insisted) = (0, 0);
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            self.stats.events += 1;
            assert!(self.stats.events < EVENTS_MAX, "the run does not end");
            if !self.calm && self.now >= CALM_AFTER_MS {
                self.mend();
            }
            self.happen(event);
            if self.calm && self.now >= looked + 500 {
                looked = self.now;
                self.put_strangers_right();
                if self.now >= insisted + INSIST_EVERY_MS {
                    insisted = self.now;
                    self.users_insist();
                    self.admins_open_queues();
                    self.users_remove_schedules();
                    self.users_cancel_the_blocked();
                    self.users_forget_the_gone();
                }
                let Err(why) = self.has_converged() else { return self.check_the_end() };
                let late = self.now > CALM_AFTER_MS + CONVERGES_WITHIN_MS;
                assert!(!late, "no convergence after all faults ended: {why}");
            }
        }
        panic!("no more events, but no convergence: {:?}", self.has_converged());
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Chaos => self.chaos(),
            Event::UserSubmits(user) => self.user_submits(user),
            Event::RequestArrives(ask) => self.request_arrives(ask),
            Event::ReplyArrives(ask, reply) => self.reply_arrives(ask, reply),
            Event::ManagerStarts => self.manager_starts(),
            Event::CoreWakes(life) => self.core_wakes(life),
            Event::LeasesWake(life) => self.leases_wake(life),
            Event::Commit(life) => self.commit(life),
            Event::Deliver(life) => self.deliver(life),
            Event::ToCore(life, input) => self.core_hears(life, *input),
            Event::AgentStarts(node) => self.agent_starts(node),
            Event::AgentWakes(node, life) => self.agent_wakes(node, life),
            Event::Connect(node, life) => self.connect(node, life),
            Event::WelcomeLimit(node, conn) => self.welcome_limit(node, conn),
            Event::DockerReady(node, life) => self.docker_ready(node, life),
            Event::Pump(conn, direction) => self.pump(conn, direction),
            Event::ManagerHears(conn) => self.manager_hears(conn),
            Event::AgentHears(conn) => self.agent_hears(conn),
            Event::Beat(stream) => self.beat(stream),
            Event::BeatArrives(stream, sent) => self.beat_arrives(stream, sent),
            Event::AnswerArrives(stream, sent) => self.answer_arrives(stream, sent),
            Event::StreamEnds(stream) => self.stream_ends(stream),
            Event::StreamFails(stream) => self.stream_fails(stream),
            Event::Runs(node, attempt, serial) => self.runs(node, attempt, serial),
            Event::Exits(node, attempt, serial, cause) => self.exits(node, attempt, serial, cause),
            Event::Fact(node, life, attempt, fact) => self.fact(node, life, attempt, fact),
            Event::SupervisorLease(node, until) => self.supervisor_lease_ends(node, until),
            Event::HealthTurns(node, attempt, serial, health) => {
                self.health_turns(node, attempt, serial, health);
            }
            Event::ServiceUserActs => self.service_user_acts(),
            Event::ScheduleUserActs => self.schedule_user_acts(),
            Event::ProxyStarts(node, life) => self.proxy_starts(node, life),
            Event::ProxyHears(node, life, process, update) => {
                self.proxy_hears(node, life, process, *update);
            }
            Event::ProxySays(node, life, status) => self.proxy_said(node, life, status),
            Event::ClientConnects(node) => self.client_connects(node),
            Event::ClientLeaves(node, process, client) => {
                self.client_leaves(node, process, client);
            }
        }
    }

    /// Causes a random fault.
    fn chaos(&mut self) {
        if self.calm {
            return;
        }
        let next = self.rng.within(1, self.plan.chaos_every_ms);
        self.after(next, Event::Chaos);
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        match self.rng.below(100) {
            0..10 => self.manager_crashes(),
            10..16 => {
                let ms = if self.rng.percent(50) {
                    self.rng.within(10_000, 40_000)
                } else {
                    self.rng.short(40_000)
                };
                self.manager_stalls(ms);
            }
            16..30 => self.agent_crashes(node),
            30..34 => self.host_reboots(node),
            34..50 => {
                let ms = if self.rng.percent(40) {
                    self.rng.within(20_000, 60_000)
                } else {
                    self.rng.short(20_000)
                };
                let way = self.rng.below(3);
                self.cut(node, ms, way);
            }
            50..60 => self.break_conn(node),
            60..68 => self.break_stream(node),
            68..72 => self.shut_agent_down(node),
            72..80 => self.clocks_jump(node),
            80..84 => {
                let ms = self.rng.short(5_000);
                self.disk_is_slow(ms);
            }
            84..88 => self.supervisor_dies(node),
            88..92 => self.user_forgets(node),
            92..94 => self.proxy_dies(node),
            _ => self.user_cancels(),
        }
    }

    /// Ends all faults.
    fn mend(&mut self) {
        note!(self, "ALL FAULTS END");
        self.calm = true;
        self.plan.latency_ms = 2;
        self.settle_schedules();
        for node in 0..self.nodes.len() {
            self.cut(node, 0, 2);
        }
        if let Some(manager) = &mut self.manager {
            manager.stalled_until = self.now;
            manager.slow_until = self.now;
        }
    }

    /// Somebody stops the agents that have the names of others.
    fn put_strangers_right(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_stranger && !self.has_work(node) {
                self.shut_agent_down(node);
            }
        }
    }

    /// Whether a stranger whose agent does not run stays away for good; with all that it has left.
    pub(crate) fn is_put_right(&mut self, node: usize) -> bool {
        if self.calm && self.nodes[node].is_stranger && !self.has_work(node) {
            note!(self, "node {node}: the stranger is gone");
            let stranger = &mut self.nodes[node];
            stranger.is_gone = true;
            stranger.workloads.clear();
        }
        self.nodes[node].is_gone
    }

    /// Whether a machine has its name, and attempts of jobs that have not ended. Replicas do not
    /// end by themselves: they move when the machine is gone.
    pub(crate) fn has_work(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        let row = self.decided.state.nodes.get(&node.name);
        row.is_some_and(|row| row.agent_id == Some(node.agent_id()))
            && self.decided.has_tasks(&node.name)
    }

    fn has_converged(&self) -> Result<(), String> {
        let Some(manager) = &self.manager else { return Err("no manager".into()) };
        if !manager.rests() {
            return Err("the manager still has something to commit or to send".into());
        }
        for user in &self.users {
            if user.wants_an_answer() {
                return Err(format!("submission {:?} has no answer", user.submission));
            }
        }
        if let Some(schedule) = self.store.state.schedules.keys().next() {
            return Err(format!("there is a schedule {schedule}"));
        }
        for (id, job) in &self.store.jobs {
            let row = self.store.row(*id);
            let is_replica = job.spec.run.replica.is_some();
            let waits = self.waits_for_a_node(&job.spec, row) || self.waits_for_a_job(*id);
            if !is_replica && !row.state.is_end() && !waits {
                return Err(format!("job {id} has not ended: {row:?}"));
            }
        }
        for node in &self.nodes {
            node.is_at_rest(|attempt| self.is_running_replica(attempt))?;
        }
        self.services_converged()
    }

    /// Returns whether an attempt is a replica that runs and goes on.
    fn is_running_replica(&self, attempt: AttemptId) -> bool {
        let job = self.store.state.jobs.get(&attempt.task.job);
        let goes_on = job.is_some_and(|job| !job.is_stopping() && job.spec.run.replica.is_some());
        goes_on && self.store.is_live(attempt)
    }

    /// Returns whether no node can ever run the job's tasks.
    fn waits_for_a_node(
        &self,
        spec: &podmesh_protocol::spec::JobSpec,
        row: &podmesh_manager_core::state::JobRow,
    ) -> bool {
        row.counts.active == 0
            && !self.nodes.iter().filter(|node| !node.is_gone).any(|node| {
                let row = self.store.state.nodes.get(&node.name);
                row.is_none_or(|row| row.scheduling.is_open())
                    && spec.resources.fits(&self.store.room_beside_replicas(node))
                    && !(spec.place.exclusive && self.store.has_replicas(&node.name))
                    && spec
                        .place
                        .resources
                        .iter()
                        .all(|(name, millis)| self.store.has_beside_replicas(node, name, *millis))
                    && spec.require.iter().all(|(k, v)| node.labels().get(k) == Some(v))
            })
    }

    /// Checks what must be true at the end.
    fn check_the_end(&mut self) {
        note!(self, "CONVERGED");
        for user in &self.users {
            if let Some(job) = user.acked {
                let stored = self.store.submissions().get(&user.submission);
                assert_eq!(stored, Some(&job), "an acknowledged submission was lost");
            }
        }
        let known: Vec<SubmissionId> = self.users.iter().map(|user| user.submission).collect();
        let of_users = |id: &SubmissionId, job: &JobId| {
            known.contains(id)
                || *id == SubmissionId::of_job(*job)
                || self.schedule_users.have_asked(id)
        };
        assert!(self.store.submissions().iter().all(|(id, job)| of_users(id, job)));
        self.check_truths();
    }
}
