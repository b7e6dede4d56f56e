//! The agent: its parts put together, and the loop that feeds the core.

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use podmesh_agent_core::input::{FoundAttempt, Input, RuntimeFact};
use podmesh_agent_core::step::{JobContext, Step};
use podmesh_agent_core::{Core, CoreConfig};
use podmesh_protocol::ids::{AttemptId, Epoch, InstanceId, Name};
use podmesh_protocol::limits::PROTOCOL_VERSION;
use podmesh_protocol::session::{Hello, ToManager, ToPeer};
use podmesh_protocol::spec::{Resources, RuntimeKind};
use podmesh_wire::watchdog::{BEAT_EVERY, Watchdog};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use uuid::Uuid;

use crate::age_clock::AgeClock;
use crate::capture::Captures;
use crate::clock::Clock;
use crate::config::{AgentConfig, DockerSwitch};
use crate::data_dir::{DataDir, boot_id};
use crate::docker::DockerSettings;
use crate::docker_start::{DockerReady, DockerStart, start_docker};
use crate::error::AgentError;
use crate::heartbeat::{Heartbeat, HeartbeatEvent, Target};
use crate::log_notify::LogNotify;
use crate::log_reads::LogReads;
use crate::paths::attempt_log_dir;
use crate::runtimes::Runtimes;
use crate::session::{Opened, SessionEvent, Sessions};
use crate::supervisor::{LinkSettings, Processes};

/// How long the end of the daemon waits for the acknowledgement of what it reported.
const GOODBYE_WAIT_MS: u64 = 5_000;
/// How long the last session may take to end.
const LAST_SESSION_LIMIT: Duration = Duration::from_secs(2);
/// Messages of the manager that wait to be looked at; more wait in the socket.
const EVENTS_MAX: usize = 64;
/// Facts of the runtimes that are looked at together.
const FACTS_MAX: usize = 4096;
/// How often the agent looks whether it can start work: whether there is room, and an engine.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often logs are swept by age.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// Runs an agent until `shutdown`, and returns when what it has to say is said. Containers go on,
/// and processes, too, unless the configuration has them stopped. To be called within a tokio runtime with time and I/O.
///
/// # Errors
/// When the data directory cannot be used, the manager belongs to another cluster or speaks
/// another version, or the operating system refuses a thread.
pub async fn run(
    config: AgentConfig,
    shutdown: impl Future<Output = ()>,
) -> Result<(), AgentError> {
    podmesh_wire::machine::raise_open_files();
    let data_dir = Arc::new(DataDir::open(&config.data_dir)?);
    let logs_dir = make_logs_dir(&config.logs_dir)?;
    let clock = Clock::start();
    let log_notify = LogNotify::default();
    let (facts_sender, facts) = mpsc::unbounded_channel();

    let link_settings = LinkSettings {
        command: config.supervisor,
        stop_with_agent: config.stop_processes,
        agent_id: data_dir.id(),
        data_dir: data_dir.path().to_owned(),
        node: config.name.clone(),
        logs_dir: logs_dir.clone(),
        rotation: config.rotation.clone(),
        log_notify: log_notify.clone(),
    };
    let (captures, capture_requests) = Captures::new();
    // It holds processes, and captures containers.
    let wanted = config.runtimes.process || config.runtimes.docker != DockerSwitch::Off;
    let opened =
        Processes::open(link_settings, wanted, facts_sender.clone(), capture_requests).await?;
    let (process, link, process_found) = match opened {
        Some((process, link, found)) => (Some(process), Some(link), found),
        None => (None, None, Vec::new()),
    };
    let docker_settings = DockerSettings {
        node: config.name.clone(),
        agent_id: data_dir.id(),
        data_dir: data_dir.path().to_owned(),
        policy: config.policy.clone(),
        captures,
        docker_config: crate::docker::config_dir(),
    };
    let docker = start_docker(
        config.runtimes.docker,
        docker_settings,
        data_dir.cluster()?,
        facts_sender.clone(),
    )
    .await;

    let (heartbeat_sender, heartbeats) = mpsc::unbounded_channel();
    let (session_sender, session_events) = mpsc::channel(EVENTS_MAX);
    let (drop_session, dropped) = watch::channel(None);
    let mut agent = Agent {
        core: Core::new(CoreConfig {
            goodbye_wait_ms: GOODBYE_WAIT_MS,
            processes_outlive: !config.stop_processes,
        }),
        step: Step::default(),
        clock,
        runtimes: Runtimes::new(
            config.name.clone(),
            config.policy,
            config.runtimes,
            [data_dir.path().to_owned(), logs_dir.clone()],
            process,
            facts_sender,
        ),
        heartbeat: Heartbeat::start(clock, heartbeat_sender)?,
        session: None,
        drop_session,
        log_reads: LogReads::new(logs_dir.clone(), log_notify.clone()),
        log_notify,
        hello: HelloParts {
            node: config.name,
            boot_id: boot_id()?,
            instance: InstanceId(Uuid::new_v4()),
            capacity: config.capacity,
            labels: config.labels,
        },
        data_dir: Arc::clone(&data_dir),
        hello_outdated: false,
        stop_means: if config.stop_processes {
            "processes are stopped, containers go on"
        } else {
            "processes and containers go on"
        },
        may_exit: false,
        waits_for_docker: false,
    };
    agent.found(RuntimeKind::Process, process_found);
    let mut docker_later = None;
    match docker {
        DockerStart::Ready(ready) => agent.docker_ready(ready),
        DockerStart::Later(later) => {
            docker_later = Some(later);
            agent.waits_for_docker = true;
        }
        DockerStart::None => {}
    }
    let age_clock = AgeClock::open(data_dir.path());
    let sessions =
        Sessions { locator: config.manager, clock, data_dir, events: session_sender, dropped };
    let sessions = tokio::spawn(sessions.run());
    let sources = Sources { session_events, heartbeats, facts, docker_later };
    let sweep = Sweep { logs_dir, age_max: config.rotation.age_max, clock: age_clock };
    let work = async {
        let result = agent.run(sources, sweep, shutdown).await;
        agent.session = None;
        // The goodbye is on its way.
        if timeout(LAST_SESSION_LIMIT, sessions).await.is_err() {
            tracing::debug!("the last session does not end");
        }
        agent.runtimes.close().await;
        result
    };
    // In one task: no thread has to wake another one for each process.
    let link = async {
        if let Some(link) = link {
            link.run().await;
        }
        std::future::pending().await
    };
    tokio::select! {
        result = work => result,
        never = link => match never {},
    }
}

fn make_logs_dir(path: &Path) -> Result<PathBuf, AgentError> {
    let made = std::fs::create_dir_all(path).and_then(|()| path.canonicalize());
    made.map_err(|source| AgentError::DataDir {
        doing: "make the folder for logs",
        path: path.to_owned(),
        source,
    })
}

/// What the agent says of itself in every hello.
struct HelloParts {
    node: Name,
    boot_id: String,
    instance: InstanceId,
    capacity: Resources,
    labels: BTreeMap<Name, String>,
}

/// Where facts come from.
struct Sources {
    session_events: mpsc::Receiver<SessionEvent>,
    heartbeats: mpsc::UnboundedReceiver<HeartbeatEvent>,
    facts: mpsc::UnboundedReceiver<(AttemptId, RuntimeFact)>,
    docker_later: Option<oneshot::Receiver<DockerReady>>,
}

/// What is swept by age.
struct Sweep {
    logs_dir: PathBuf,
    age_max: Duration,
    clock: AgeClock,
}

/// The session there is now.
struct Session {
    epoch: Epoch,
    messages: mpsc::UnboundedSender<ToManager>,
    slices: mpsc::Sender<ToManager>,
}

struct Agent {
    core: Core,
    step: Step,
    clock: Clock,
    runtimes: Runtimes,
    heartbeat: Heartbeat,
    session: Option<Session>,
    /// The last session that is to be dropped.
    drop_session: watch::Sender<Option<Epoch>>,
    log_reads: LogReads,
    log_notify: LogNotify,
    hello: HelloParts,
    data_dir: Arc<DataDir>,
    /// Whether more is known now than the last hello said.
    hello_outdated: bool,
    /// What becomes of what runs when the agent stops, for people.
    stop_means: &'static str,
    may_exit: bool,
    /// Whether the attempts in the engine are not known yet.
    waits_for_docker: bool,
}

impl Agent {
    /// Feeds the core until it may end.
    async fn run(
        &mut self,
        sources: Sources,
        sweep: Sweep,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), AgentError> {
        let Sources { mut session_events, mut heartbeats, mut facts, mut docker_later } = sources;
        let mut shutdown = std::pin::pin!(shutdown);
        let mut is_shutting_down = false;
        let mut sweeps = interval(SWEEP_EVERY);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watchdog = Watchdog::default();
        let pulse = watchdog.pulse("agent");
        let _watching = watchdog
            .start()
            .map_err(|source| AgentError::System { doing: "start a thread", source })?;
        let mut beats = interval(BEAT_EVERY);
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.may_exit {
            pulse.beat();
            let wakeup = self.core.next_wakeup().map(|at| self.clock.until(at));
            let mut batch = Vec::new();
            tokio::select! {
                Some(event) = session_events.recv() => self.session_event(event)?,
                Some(event) = heartbeats.recv() => self.heartbeat_event(event),
                _ = facts.recv_many(&mut batch, FACTS_MAX) => self.facts(batch),
                () = sleep(wakeup.unwrap_or_default()), if wakeup.is_some() => {
                    self.feed(Input::Tick);
                }
                ready = wait_for(&mut docker_later), if docker_later.is_some() => {
                    docker_later = None;
                    self.waits_for_docker = false;
                    if let Some(ready) = ready {
                        self.docker_ready(ready);
                        self.hello_outdated = true;
                        self.drop_session();
                    }
                }
                _ = beats.tick() => {}
                _ = looks.tick() => {
                    if self.runtimes.look() {
                        self.hello_outdated = true;
                        self.drop_session();
                    }
                }
                _ = sweeps.tick() => self.sweep(&sweep),
                () = &mut shutdown, if !is_shutting_down => {
                    is_shutting_down = true;
                    tracing::info!("stopping: {}", self.stop_means);
                    self.feed(Input::ShutdownRequested);
                }
            }
        }
        Ok(())
    }

    /// Gives a fact to the core, and does what it decides.
    fn feed(&mut self, input: Input) {
        let is_contact =
            matches!(input, Input::SessionOpened { .. } | Input::HeartbeatAnswered { .. });
        self.core.step(self.clock.now(), input, &mut self.step);
        // Told only of a contact, not of what is assumed before the first: about as often as there
        // are heartbeats.
        if is_contact && let Some(until) = self.core.lease_until() {
            self.runtimes.lease(self.clock.on_machine(until));
        }
        for command in self.step.commands.drain(..) {
            self.runtimes.carry_out(command);
        }
        for message in self.step.messages.drain(..) {
            if let Some(session) = &self.session {
                // One that is over sends it again in the next.
                _ = session.messages.send(message);
            }
        }
        self.may_exit |= self.step.may_exit;
        let reconnect = self.step.reconnect;
        self.step.clear();
        if reconnect {
            self.drop_session();
        }
    }

    fn drop_session(&mut self) {
        if let Some(session) = &self.session {
            self.drop_session.send_replace(Some(session.epoch));
        }
    }

    fn found(&mut self, kind: RuntimeKind, found: Vec<FoundAttempt>) {
        if !found.is_empty() {
            tracing::info!(attempts = found.len(), runtime = %kind, "an earlier life left attempts");
            self.runtimes.found(kind, &found);
            self.feed(Input::AttemptsFound(found));
        }
    }

    fn docker_ready(&mut self, (docker, found): DockerReady) {
        tracing::info!("this node takes containers");
        self.runtimes.set_docker(docker);
        // The first session may have come in between.
        if let Ok(Some(cluster)) = self.data_dir.cluster() {
            self.runtimes.set_cluster(cluster);
        }
        self.found(RuntimeKind::Docker, found);
    }

    fn facts(&mut self, facts: Vec<(AttemptId, RuntimeFact)>) {
        let is_end = |fact: &(AttemptId, RuntimeFact)| matches!(fact.1, RuntimeFact::Ended(_));
        let ended: Vec<_> =
            facts.iter().filter(|f| is_end(f)).map(|(attempt, _)| *attempt).collect();
        self.feed(Input::RuntimeReported(facts));
        for attempt in ended {
            self.log_notify.ended(attempt);
        }
    }

    fn session_event(&mut self, event: SessionEvent) -> Result<(), AgentError> {
        match event {
            SessionEvent::HelloAsked(answer) => {
                // Without a receiver the try has failed meanwhile.
                _ = answer.send(self.hello()?);
                self.hello_outdated = false;
            }
            SessionEvent::Opened(opened) => self.opened(opened),
            SessionEvent::Received(message) => self.received(message),
            SessionEvent::Closed => {
                self.session = None;
                self.heartbeat.set(None);
                self.feed(Input::SessionClosed);
            }
            SessionEvent::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn hello(&self) -> Result<Hello, AgentError> {
        let HelloParts { node, boot_id, instance, capacity, labels } = &self.hello;
        Ok(Hello {
            version: PROTOCOL_VERSION,
            node: node.clone(),
            boot_id: boot_id.clone(),
            agent_instance: *instance,
            cluster: self.data_dir.cluster()?,
            program_version: env!("CARGO_PKG_VERSION").into(),
            capacity: *capacity,
            labels: labels.clone(),
            runtimes: self.runtimes.kinds(),
            withdrawn: self.runtimes.withdrawn(),
            attempts: self.core.hello_attempts(),
        })
    }

    fn opened(&mut self, opened: Opened) {
        let Opened { route, welcome, hello_sent_mono_ms, messages, slices } = opened;
        self.runtimes.set_cluster(welcome.cluster);
        self.heartbeat.set(Some(Target {
            route,
            epoch: welcome.epoch,
            interval: Duration::from_millis(welcome.heartbeat_ms),
            lease: Duration::from_millis(welcome.lease_ms),
        }));
        self.session = Some(Session { epoch: welcome.epoch, messages, slices });
        self.feed(Input::SessionOpened { welcome, hello_sent_mono_ms });
        if self.hello_outdated {
            self.drop_session();
        }
    }

    fn received(&mut self, message: ToPeer) {
        let input = match message {
            ToPeer::JobSpec { epoch, job, on_lost, resources, run, name } => {
                let context = Arc::new(JobContext { job, name, on_lost, resources, run });
                Input::JobSpecReceived { epoch, context }
            }
            ToPeer::Starts(epoch, attempts) => Input::StartsReceived { epoch, attempts },
            ToPeer::Stops(epoch, mut stops) => {
                // What is not here can still be with the engine, which is asked when it answers;
                // the hello after that says so, and the manager tells it again.
                stops.retain(|(attempt, _)| !self.waits_for_docker || self.core.holds(attempt));
                Input::StopsReceived { epoch, stops }
            }
            ToPeer::Acked(epoch, acked) => Input::ReportsAcked { epoch, acked },
            ToPeer::ForgetJobs(epoch, jobs) => Input::JobsForgotten { epoch, jobs },
            ToPeer::LogRead(number, read) => {
                if let Some(session) = &self.session {
                    let goes_on = self.core.goes_on(read.attempt);
                    self.log_reads.answer(number, read, goes_on, session.slices.clone());
                }
                return;
            }
            // Belong to the beginning of a session, to clients, or were dealt with already.
            ToPeer::Welcome(_)
            | ToPeer::Refused(_)
            | ToPeer::HelloAgain(_)
            | ToPeer::Reply(_)
            | ToPeer::Error(_) => return,
        };
        self.feed(input);
    }

    fn heartbeat_event(&mut self, event: HeartbeatEvent) {
        match event {
            HeartbeatEvent::Answered { epoch, sent_mono_ms } => {
                self.feed(Input::HeartbeatAnswered { epoch, sent_mono_ms });
            }
            HeartbeatEvent::Silent(epoch) => {
                if self.session.as_ref().is_some_and(|session| session.epoch == epoch) {
                    tracing::warn!("the manager does not answer heartbeats");
                    self.drop_session();
                }
            }
        }
    }

    /// Removes logs that are too old, beside everything else.
    fn sweep(&self, Sweep { logs_dir, age_max, clock }: &Sweep) {
        let held = self.core.hello_attempts().into_iter();
        let held: HashSet<_> = held.map(|attempt| attempt_log_dir(logs_dir, attempt)).collect();
        let (logs_dir, age_max, clock) = (logs_dir.clone(), *age_max, clock.clone());
        spawn_blocking(move || {
            let is_held = |dir: &Path| held.contains(dir);
            let report = podmesh_logrotate::prune(&logs_dir, age_max, clock.now(), is_held);
            if let Err(error) = clock.save() {
                tracing::warn!("the age of logs cannot be kept: {error}");
            }
            for error in report.errors {
                tracing::warn!("old logs stay: {error}");
            }
            if report.files_removed > 0 {
                let (files, bytes) = (report.files_removed, report.bytes_removed);
                tracing::info!(files, bytes, "removed old logs");
            }
        });
    }
}

async fn wait_for(later: &mut Option<oneshot::Receiver<DockerReady>>) -> Option<DockerReady> {
    later.as_mut()?.await.ok()
}
