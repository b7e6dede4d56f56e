//! The agent: connects its parts, and runs the loop that feeds the core.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use podmesh_agent_core::input::{FoundAttempt, Input, RuntimeFact};
use podmesh_agent_core::step::{JobContext, Step};
use podmesh_agent_core::{Core, CoreConfig};
use podmesh_metrics::Page;
use podmesh_protocol::ids::{AgentId, AttemptId, Epoch, InstanceId, Name};
use podmesh_protocol::place::{Claims, Offer};
use podmesh_protocol::session::{Hello, ToManager, ToPeer};
use podmesh_protocol::spec::{Resources, RuntimeKind};
use podmesh_protocol::version::VersionRange;
use podmesh_wire::locate::ManagerPlace;
use podmesh_wire::watchdog::{BEAT_EVERY, Watchdog};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use uuid::Uuid;

use crate::address;
use crate::age_clock::AgeClock;
use crate::capture::Captures;
use crate::clock::Clock;
use crate::config::{AgentConfig, DockerSwitch};
use crate::data_dir::{DataDir, boot_id};
use crate::disks::Disks;
use crate::docker::{DockerSettings, RemovedVolumes};
use crate::docker_start::{DockerReady, DockerStart, start_docker};
use crate::error::AgentError;
use crate::heartbeat::{Heartbeat, HeartbeatEvent, Target};
use crate::log_notify::LogNotify;
use crate::log_reads::LogReads;
use crate::log_sweep::{LogLimits, LogSweep, RemovedLogs};
use crate::metrics::{Counts, MetricsServer, Scrape, Shown};
use crate::ports::ReplicaPorts;
use crate::proxy::{Ack, Endpoints, Proxy, ProxySettings};
use crate::runtimes::Runtimes;
use crate::service_names::ServiceNames;
use crate::session::{Opened, SessionEvent, Sessions};
use crate::supervisor::{LinkSettings, Processes};
use crate::user::{ProcessUser, process_user};

/// How long a shutdown waits for the acknowledgement of reports.
const GOODBYE_WAIT_MS: u64 = 5_000;
/// How long the last session may take to end.
const LAST_SESSION_LIMIT: Duration = Duration::from_secs(2);
/// Maximum number of unprocessed messages of the manager. Further ones wait in the socket.
const EVENTS_MAX: usize = 64;
/// Maximum number of facts of the runtimes processed together.
const FACTS_MAX: usize = 4096;
/// Maximum number of requests for the metrics that wait.
const SCRAPES_MAX: usize = 4;
/// Interval between checks whether the agent can start work: disk space and the engine.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Interval between checks whether a sweep of the logs is due.
const SWEEP_LOOK_EVERY: Duration = Duration::from_secs(10);

/// Runs an agent until `shutdown`, and returns when its reports are sent. Containers keep running,
/// and so do processes unless the configuration says that they are stopped. Call it in a tokio
/// runtime with time and I/O.
///
/// # Errors
/// If the data directory cannot be used, the manager belongs to another cluster or speaks another
/// version, or the operating system refuses a thread.
pub fn run<'a>(config: AgentConfig, shutdown: impl Future<Output = ()> + Send + 'a) -> Running<'a> {
    run_until(config, Box::pin(shutdown))
}

type Running<'a> = Pin<Box<dyn Future<Output = Result<(), AgentError>> + Send + 'a>>;
type Shutdown<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Not generic, and boxed, so that the whole agent is compiled in this crate and not again in the
/// caller's.
fn run_until(config: AgentConfig, shutdown: Shutdown<'_>) -> Running<'_> {
    Box::pin(run_all(config, shutdown))
}

async fn run_all(config: AgentConfig, shutdown: Shutdown<'_>) -> Result<(), AgentError> {
    podmesh_wire::machine::raise_open_files();
    config.address.map_or(Ok(()), address::check)?;
    let data_dir = Arc::new(DataDir::open(&config.data_dir)?);
    let server = match config.metrics {
        Some(address) => Some(MetricsServer::bind(address).await?),
        None => None,
    };
    let logs_dir = make_logs_dir(&config.logs_dir)?;
    let clock = Clock::start();
    let log_notify = LogNotify::default();
    let removed_logs = RemovedLogs::open(data_dir.path());
    let (facts_sender, facts) = mpsc::unbounded_channel();

    let (process_user, process_trouble) = find_process_user(&config).await?;
    let link_settings = LinkSettings {
        command: config.supervisor,
        stop_with_agent: config.stop_processes,
        agent_id: data_dir.id(),
        data_dir: data_dir.path().to_owned(),
        node: config.name.clone(),
        logs_dir: logs_dir.clone(),
        rotation: config.rotation.clone(),
        log_notify: log_notify.clone(),
        user: process_user,
    };
    let ports = Arc::new(ReplicaPorts::new(config.policy.replica_ports));
    let names = Arc::new(ServiceNames::new(config.ingress.address.clone()));
    let (captures, capture_requests) = Captures::new();
    let docker_settings = DockerSettings {
        node: config.name.clone(),
        agent_id: data_dir.id(),
        data_dir: data_dir.path().to_owned(),
        policy: config.policy.clone(),
        captures,
        ports: Arc::clone(&ports),
        names: Arc::clone(&names),
        docker_config: crate::docker::config_dir(),
    };
    let docker = start_docker(
        config.runtimes.docker,
        docker_settings,
        data_dir.cluster()?,
        facts_sender.clone(),
    )
    .await;
    // This includes processes and containers that the previous run of the agent started.
    let wanted = config.runtimes.process
        || config.runtimes.docker != DockerSwitch::Off
        || matches!(docker, DockerStart::Ready(_));
    let opened =
        Processes::open(link_settings, wanted, facts_sender.clone(), capture_requests).await?;
    let (process, link, process_found) = match opened {
        Some((process, link, found)) => (Some(process), Some(link), found),
        None => (None, None, Vec::new()),
    };

    let (proxy, acks) = Proxy::open(ProxySettings {
        command: config.proxy,
        data_dir: data_dir.path().to_owned(),
        agent_id: data_dir.id(),
        stop_with_agent: config.stop_processes,
        ingress: config.ingress,
        replica_ports: config.policy.replica_ports,
        names: Arc::clone(&names),
    });
    let (heartbeat_sender, heartbeats) = mpsc::unbounded_channel();
    let (session_sender, session_events) = mpsc::channel(EVENTS_MAX);
    let (drop_session, dropped) = watch::channel(0);
    let mut core = Core::new(CoreConfig {
        goodbye_wait_ms: GOODBYE_WAIT_MS,
        processes_outlive: !config.stop_processes,
    });
    core.set_offers(config.resources.clone());
    let mut agent = Agent {
        core,
        step: Step::default(),
        clock,
        runtimes: Runtimes::new(
            config.name.clone(),
            config.policy,
            config.runtimes,
            [data_dir.path().to_owned(), logs_dir.clone()],
            (process, process_trouble),
            (Arc::clone(&ports), names),
            facts_sender,
        ),
        ports,
        proxy,
        heartbeat: Heartbeat::start(clock, heartbeat_sender)?,
        session: None,
        drop_session,
        log_reads: LogReads::new(logs_dir.clone(), log_notify.clone(), removed_logs.clone()),
        log_notify,
        hello: HelloParts {
            versions: config.versions,
            node: config.name,
            boot_id: boot_id()?,
            instance: InstanceId(Uuid::new_v4()),
            address: config.address,
            capacity: config.capacity,
            labels: config.labels,
            resources: config.resources,
        },
        data_dir: Arc::clone(&data_dir),
        hello_outdated: false,
        stop_means: if config.stop_processes {
            "processes are stopped, containers keep running"
        } else {
            "processes and containers keep running"
        },
        attempts_ended: 0,
        may_exit: false,
        waits_for_docker: false,
        counts: Counts::new(),
        disks: Disks::new(&logs_dir, data_dir.path()),
        logs_dir: logs_dir.clone(),
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
    let kept = LogLimits { age_max: config.rotation.age_max, bytes_max: config.logs_bytes_max };
    let sweep = LogSweep::new(logs_dir, kept, age_clock, removed_logs);
    let sessions =
        Sessions { locator: config.manager, clock, data_dir, events: session_sender, dropped };
    let sessions = tokio::spawn(sessions.run());
    let (scrapes_sender, scrapes) = mpsc::channel(SCRAPES_MAX);
    let sources = Sources { session_events, heartbeats, facts, acks, docker_later, scrapes };
    let work = async {
        let result = agent.run(sources, sweep, shutdown).await;
        agent.session = None;
        // Let the session send the goodbye.
        if timeout(LAST_SESSION_LIMIT, sessions).await.is_err() {
            tracing::debug!("the last session did not end in time");
        }
        agent.runtimes.close().await;
        agent.proxy.close().await;
        result
    };
    // Run in this task, so that no other thread must be woken for each process.
    let link = async {
        if let Some(link) = link {
            link.run().await;
        }
        std::future::pending().await
    };
    let metrics = async {
        if let Some(server) = server {
            server.run(scrapes_sender).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        result = work => result,
        never = link => match never {},
        never = metrics => match never {},
    }
}

/// Returns the user that commands run as, or the reason why commands cannot be started.
async fn find_process_user(
    config: &AgentConfig,
) -> Result<(Option<ProcessUser>, Option<String>), AgentError> {
    if !config.runtimes.process {
        return Ok((None, None));
    }
    let asked = config.process_user.clone();
    let manager_dir = match &config.manager.place {
        Some(ManagerPlace::DataDir(dir)) => dir,
        _ => &config.manager.data_dir,
    };
    let folders = [config.data_dir.clone(), manager_dir.join("manager")];
    let found = tokio::task::spawn_blocking(move || {
        process_user(asked.as_deref(), &folders.each_ref().map(PathBuf::as_path))
    });
    let found = found.await.map_err(|source| AgentError::System {
        doing: "look up the user that commands run as",
        source: source.into(),
    })?;
    match found {
        Ok(user) => {
            match &user {
                Some(user) => tracing::info!("commands run as {}", user.name),
                None if config.process_user.is_some() => {
                    tracing::warn!("commands run as the agent's own user, as agent.toml says");
                }
                None => {}
            }
            Ok((user, None))
        }
        // Containers do not need this user.
        Err(error) if config.process_user.is_none() => Ok((None, Some(error.to_string()))),
        Err(error) => Err(error.into()),
    }
}

fn make_logs_dir(path: &Path) -> Result<PathBuf, AgentError> {
    let made = std::fs::create_dir_all(path).and_then(|()| path.canonicalize());
    made.map_err(|source| AgentError::DataDir {
        doing: "create the folder for logs",
        path: path.to_owned(),
        source,
    })
}

/// The constant parts of every hello.
struct HelloParts {
    versions: VersionRange,
    node: Name,
    boot_id: String,
    instance: InstanceId,
    /// The configured address.
    address: Option<IpAddr>,
    capacity: Resources,
    labels: BTreeMap<Name, String>,
    resources: BTreeMap<Name, Offer>,
}

/// The channels that the loop reads.
struct Sources {
    session_events: mpsc::Receiver<SessionEvent>,
    heartbeats: mpsc::UnboundedReceiver<HeartbeatEvent>,
    facts: mpsc::UnboundedReceiver<(AttemptId, RuntimeFact)>,
    acks: mpsc::UnboundedReceiver<Ack>,
    docker_later: Option<oneshot::Receiver<DockerReady>>,
    scrapes: mpsc::Receiver<Scrape>,
}

/// The current session.
struct Session {
    number: u64,
    epoch: Epoch,
    messages: mpsc::UnboundedSender<ToManager>,
    slices: mpsc::Sender<ToManager>,
}

struct Agent {
    core: Core,
    step: Step,
    clock: Clock,
    runtimes: Runtimes,
    ports: Arc<ReplicaPorts>,
    proxy: Proxy,
    heartbeat: Heartbeat,
    session: Option<Session>,
    /// The number of the session up to which sessions must be dropped.
    drop_session: watch::Sender<u64>,
    log_reads: LogReads,
    log_notify: LogNotify,
    hello: HelloParts,
    data_dir: Arc<DataDir>,
    /// Whether the last hello is outdated.
    hello_outdated: bool,
    disks: Disks,
    /// What happens to running attempts when the agent stops, for people.
    stop_means: &'static str,
    /// The number of attempts that have ended in this run of the agent.
    attempts_ended: u64,
    may_exit: bool,
    /// Whether the attempts in the engine are not known yet.
    waits_for_docker: bool,
    counts: Counts,
    logs_dir: PathBuf,
}

impl Agent {
    /// Feeds the core until the agent may exit.
    async fn run(
        &mut self,
        sources: Sources,
        mut sweep: LogSweep,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), AgentError> {
        let Sources {
            mut session_events,
            mut heartbeats,
            mut facts,
            mut acks,
            mut docker_later,
            mut scrapes,
        } = sources;
        let mut troubles = self.proxy.troubles();
        let mut shutdown = std::pin::pin!(shutdown);
        let mut is_shutting_down = false;
        let mut sweeps = interval(SWEEP_LOOK_EVERY);
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
                Some(ack) = acks.recv() => self.endpoints_applied(ack),
                Ok(()) = troubles.changed() => self.tell_troubles(),
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
                Some(scrape) = scrapes.recv() => {
                    // If there is no receiver, the client has left.
                    _ = scrape.send(self.page(sweep.bytes()));
                }
                _ = beats.tick() => {}
                _ = looks.tick() => {
                    let disks_changed = self.disks.look();
                    if self.runtimes.look() || disks_changed {
                        self.hello_outdated = true;
                        self.drop_session();
                    }
                }
                _ = sweeps.tick() => {
                    sweep.look(self.attempts_ended, || self.core.held_attempts().collect()).await;
                }
                () = &mut shutdown, if !is_shutting_down => {
                    is_shutting_down = true;
                    tracing::info!("stopping: {}", self.stop_means);
                    self.feed(Input::ShutdownRequested);
                }
            }
        }
        Ok(())
    }

    /// Passes an input to the core, and carries out its decisions.
    fn feed(&mut self, input: Input) {
        let is_contact =
            matches!(input, Input::SessionOpened { .. } | Input::HeartbeatAnswered { .. });
        self.core.step(self.clock.now(), input, &mut self.step);
        // Only a real contact counts, not the lease that is assumed before the first one. This
        // happens about as often as heartbeats.
        if is_contact && let Some(until) = self.core.lease_until() {
            self.runtimes.lease(self.clock.on_machine(until));
        }
        for command in self.step.commands.drain(..) {
            self.runtimes.carry_out(command);
        }
        for message in self.step.messages.drain(..) {
            if let Some(session) = &self.session {
                // If the session has ended, the next one sends it again.
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
            self.drop_session.send_replace(session.number);
        }
    }

    fn found(&mut self, kind: RuntimeKind, found: Vec<FoundAttempt>) {
        if !found.is_empty() {
            tracing::info!(attempts = found.len(), runtime = %kind, "found attempts of the previous run");
            self.runtimes.found(kind, &found);
            self.feed(Input::AttemptsFound(found));
        }
    }

    fn docker_ready(&mut self, (docker, found): DockerReady) {
        self.runtimes.set_docker(docker);
        if self.runtimes.kinds().contains(&RuntimeKind::Docker) {
            tracing::info!("this node runs containers");
        }
        // The first session may have opened in the meantime.
        if let Ok(Some(cluster)) = self.data_dir.cluster() {
            self.runtimes.set_cluster(cluster);
        }
        self.found(RuntimeKind::Docker, found);
    }

    fn facts(&mut self, facts: Vec<(AttemptId, RuntimeFact)>) {
        let is_end = |fact: &(AttemptId, RuntimeFact)| matches!(fact.1, RuntimeFact::Ended(_));
        let ended: Vec<_> =
            facts.iter().filter(|f| is_end(f)).map(|(attempt, _)| *attempt).collect();
        for (attempt, fact) in &facts {
            let replica = || self.ports.get(*attempt).map(|replica| replica.spec.service.clone());
            self.counts.fact(*attempt, fact, self.runtimes.kind_of(*attempt), replica);
        }
        self.runtimes.see(&facts);
        self.feed(Input::RuntimeReported(facts));
        self.attempts_ended += ended.len() as u64;
        for attempt in ended {
            self.log_notify.ended(attempt);
        }
    }

    fn session_event(&mut self, event: SessionEvent) -> Result<(), AgentError> {
        match event {
            SessionEvent::HelloAsked { answer, local_address } => {
                // If there is no receiver, the session has already failed.
                _ = answer.send(self.hello(local_address)?);
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

    fn hello(&self, local_address: Option<IpAddr>) -> Result<Hello, AgentError> {
        let HelloParts { versions, node, boot_id, instance, address, capacity, labels, resources } =
            &self.hello;
        let withdrawn = self.runtimes.withdrawn();
        let address = address.unwrap_or_else(|| address::find(local_address));
        self.ports.set_address(address);
        Ok(Hello {
            version: versions.newest,
            version_oldest: Some(versions.oldest),
            node: node.clone(),
            boot_id: boot_id.clone(),
            agent_instance: *instance,
            agent_id: Some(AgentId(self.data_dir.id())),
            cluster: self.data_dir.cluster()?,
            program_version: env!("CARGO_PKG_VERSION").into(),
            capacity: *capacity,
            labels: labels.clone(),
            runtimes: self.runtimes.kinds().into_iter().map(Into::into).collect(),
            withdrawn: withdrawn.into_iter().map(|(kind, why)| (kind.into(), why)).collect(),
            unenforced: self.runtimes.unenforced(),
            low_disks: self.disks.low(),
            address: Some(address.to_string()),
            resources: resources.clone(),
            attempts: self.core.hello_attempts(),
        })
    }

    fn opened(&mut self, opened: Opened) {
        let Opened { number, route, welcome, hello_sent_mono_ms, messages, slices } = opened;
        self.runtimes.set_cluster(welcome.cluster);
        self.heartbeat.set(Some(Target {
            route,
            epoch: welcome.epoch,
            interval: Duration::from_millis(welcome.heartbeat_ms),
            lease: Duration::from_millis(welcome.lease_ms),
        }));
        self.counts.session_opened();
        self.session = Some(Session { number, epoch: welcome.epoch, messages, slices });
        self.feed(Input::SessionOpened { welcome, hello_sent_mono_ms });
        if !self.proxy.troubles().borrow().is_empty() {
            self.tell_troubles();
        }
        if self.hello_outdated {
            self.drop_session();
        }
    }

    fn received(&mut self, message: ToPeer) {
        let input = match message {
            ToPeer::JobSpec { epoch, job, on_lost, resources, run, name } => {
                let context =
                    JobContext { job, name, on_lost, resources, run, claims: Claims::new() };
                let context = Arc::new(context);
                Input::JobSpecReceived { epoch, context }
            }
            ToPeer::Claims { epoch, claims } => Input::ClaimsReceived { epoch, claims },
            ToPeer::Starts(epoch, attempts) => Input::StartsReceived { epoch, attempts },
            ToPeer::Stops(epoch, mut stops) => {
                // An unknown attempt may still be in the engine, which has not answered yet. The
                // hello after that lists it, and the manager sends the stop again.
                stops.retain(|(attempt, _)| {
                    let can_tell = !self.waits_for_docker || self.core.holds(attempt);
                    if !can_tell {
                        tracing::warn!(
                            %attempt,
                            "cannot stop this attempt before the Docker engine answers; if the engine was removed, start the agent with `--docker off`"
                        );
                    }
                    can_tell
                });
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
            ToPeer::Endpoints { epoch, update, all, services } => {
                if let Some(session) = self.session.as_ref().filter(|of| of.epoch == epoch) {
                    let session = session.number;
                    self.proxy.apply(Endpoints { session, update, all, services });
                }
                return;
            }
            ToPeer::RemoveVolumes { epoch, volumes } => return self.remove_volumes(epoch, volumes),
            // These belong to the start of a session or to clients, or were already handled.
            ToPeer::Welcome(_)
            | ToPeer::Refused(_)
            | ToPeer::HelloAgain(_)
            | ToPeer::Reply(_)
            | ToPeer::Error(_) => return,
        };
        self.feed(input);
    }

    /// Removes named volumes in the background, and tells the manager what has become of them.
    fn remove_volumes(&self, epoch: Epoch, volumes: Vec<Name>) {
        let Some(of) = self.session.as_ref().filter(|of| of.epoch == epoch) else { return };
        let (messages, removal) = (of.messages.clone(), self.runtimes.remove_volumes(volumes));
        tokio::spawn(async move {
            let RemovedVolumes { removed, failed } = removal.await;
            // If the session has ended, the next one begins with the same request.
            _ = messages.send(ToManager::VolumesRemoved { epoch, removed, failed });
        });
    }

    /// Tells the manager what the node's proxy has done.
    fn endpoints_applied(&mut self, ack: Ack) {
        let Ack { session, applied, drained } = ack;
        if let Some(of) = self.session.as_ref().filter(|of| of.number == session) {
            // If the session has ended, the next one starts over.
            _ = of.messages.send(ToManager::EndpointsApplied { epoch: of.epoch, applied, drained });
        }
    }

    /// Tells the manager which published ports are not open here.
    fn tell_troubles(&mut self) {
        let closed = self.proxy.troubles().borrow().clone();
        if let Some(Session { epoch, messages, .. }) = &self.session {
            // If the session has ended, the next one begins with it.
            _ = messages.send(ToManager::PortsClosed { epoch: *epoch, closed });
        }
    }

    /// Returns the page of metrics.
    fn page(&self, log_bytes: Option<u64>) -> Page {
        let attempts = self.runtimes.attempts().filter(|(attempt, _)| self.core.goes_on(*attempt));
        let attempts: Vec<_> = attempts.map(|(_, kind)| kind).collect();
        self.counts.page(&Shown {
            has_session: self.session.is_some(),
            attempts: &attempts,
            proxy: self.proxy.counters(),
            log_bytes,
            log_written: self.log_notify.bytes(),
            logs_dir: &self.logs_dir,
        })
    }

    fn heartbeat_event(&mut self, event: HeartbeatEvent) {
        match event {
            HeartbeatEvent::Answered { epoch, sent_mono_ms, round_trip } => {
                self.counts.heartbeat(round_trip);
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
}

async fn wait_for(later: &mut Option<oneshot::Receiver<DockerReady>>) -> Option<DockerReady> {
    later.as_mut()?.await.ok()
}
