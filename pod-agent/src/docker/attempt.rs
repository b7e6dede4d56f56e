//! The life of one attempt: create, start, watch, end.

use std::sync::Arc;
use std::time::Duration;

use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum as Status,
};
use podmesh_agent_core::input::RuntimeFact;
use podmesh_agent_core::replica::Replica;
use podmesh_agent_core::step::JobContext;
use podmesh_protocol::ids::AttemptId;
use podmesh_protocol::report::{Outcome, OutcomeKind};
use podmesh_protocol::spec::{DockerSpec, NetworkMode, PullPolicy, RuntimeSpec};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep};

use super::Shared;
use super::container::{self, Configuration, Identity};
use super::engine::Pause;
use super::error::{CallError, is_about_ports, start_error_code};
use super::files;
use super::mounts::MountRules;
use super::stage::Held;
use super::volumes;
use crate::capture::{Capturing, Container, Standing};
use crate::ports::PortSource;

/// The exit code of an attempt that podmesh or the engine could not start.
const CANNOT_START: i32 = 125;
/// Maximum number of tries of a create or a start while the engine does not answer.
const START_TRIES: u32 = 6;

/// Maximum number of tries of a start with other ports.
const PORT_TRIES: u32 = 5;

/// How long after an exit the engine may still learn that memory ran out in a container whose main
/// process was not killed.
const OOM_WAIT: Duration = Duration::from_millis(50);
/// The same for a container whose main process was killed. On a busy node it takes longer than
/// [`OOM_WAIT`], and few containers end like this for another reason.
const OOM_WAIT_IF_KILLED: Duration = Duration::from_secs(2);
/// The exit code of a process killed by SIGKILL (128 + 9).
const KILLED: i64 = 137;
/// Message of a container that ended while its engine was stopped.
const ENGINE_STOPPED: &str = "the node's Docker engine was stopped, and its containers with it \
     (with the engine's setting `live-restore` they keep running)";

/// Tells when all output is in the files, and the timeout, in milliseconds, because of which the
/// container was stopped.
pub(super) type CaptureEnd = oneshot::Receiver<Option<u64>>;

/// Why a container was not started.
enum NoStart {
    /// One of its ports cannot be published on the node.
    Ports(String),
    /// Any other reason.
    Outcome(Outcome),
}

impl From<Outcome> for NoStart {
    fn from(outcome: Outcome) -> Self {
        Self::Outcome(outcome)
    }
}

/// One attempt, seen from its task.
pub(super) struct Attempt {
    pub(super) shared: Arc<Shared>,
    pub(super) id: AttemptId,
    /// For how many milliseconds it may run.
    pub(super) timeout_ms: Option<u64>,
    /// The grace in milliseconds, once it is to be stopped.
    pub(super) stop: watch::Receiver<Option<u64>>,
}

/// A container that exists.
struct Created {
    container: String,
    /// Whether it was started before. Starting it again would run it twice.
    has_run: bool,
    /// Its staged mounts, kept until it is started.
    held: Vec<Held>,
}

impl Attempt {
    /// Runs the attempt to its end, and always reports the end.
    pub(super) async fn run(self, context: Arc<JobContext>) {
        let outcome = match self.launch(&context).await {
            Ok((container, captured)) => {
                let started = Instant::now();
                // Frees the spec, which can be large, while the container runs.
                drop(context);
                self.shared.tell(self.id, RuntimeFact::Started);
                let replica = self.shared.settings.ports.get(self.id);
                if let Some(replica) = replica.filter(|replica| !replica.ports.is_empty()) {
                    let listening = RuntimeFact::Listening(replica.ports.clone());
                    self.shared.tell(self.id, listening);
                }
                self.watch(&container, captured, Some(started)).await
            }
            Err(outcome) => outcome,
        };
        self.shared.tell(self.id, RuntimeFact::Ended(outcome));
    }

    fn is_stopped(&self) -> bool {
        self.stop.borrow().is_some()
    }

    /// Has the container running and captured, or says why it does not.
    async fn launch(&self, context: &Arc<JobContext>) -> Result<(String, CaptureEnd), Outcome> {
        let RuntimeSpec::Docker(spec) = &context.run.runtime else {
            return Err(cannot_start("the job is not for the docker runtime"));
        };
        let cluster = self.shared.cluster().ok_or_else(|| {
            cannot_start("the agent does not know its cluster yet; this is a bug in podmesh")
        })?;
        let identity = Identity {
            cluster,
            agent: self.shared.settings.agent_id,
            attempt: self.id,
            on_lost: context.on_lost,
            timeout_ms: self.timeout_ms,
        };
        if spec.pull == PullPolicy::Always {
            self.pull(spec).await?;
        }
        self.write_files(context).await?;
        let mut tries = 0;
        loop {
            let replica = self.take_ports(context, spec)?;
            let created = self.create(&identity, context, spec, replica.as_ref()).await?;
            let Created { container, has_run, held } = created;
            self.shared.has_container(self.id, &container);
            if !has_run {
                let Shared { engine, networks, .. } = &*self.shared;
                networks.connect_others(engine, &container, spec).await.map_err(|error| {
                    self.shared.discard(self.id);
                    self.not_started(&format!(
                        "cannot connect the container to its networks: {error}"
                    ))
                })?;
            }
            if has_run {
                let captured = self.capture(container.clone(), Standing::Running).complete;
                return Ok((container, captured));
            }
            if self.is_stopped() {
                self.shared.discard(self.id);
                return Err(stopped());
            }
            let started = self.start(&container).await;
            drop(held);
            let error = match started {
                Ok(captured) => return Ok((container, captured)),
                Err(error) => error,
            };
            self.shared.settings.captures.forget(self.id);
            let why = match error {
                NoStart::Outcome(outcome) => return Err(outcome),
                NoStart::Ports(why) => why,
            };
            // Another program has taken a port in the meantime.
            tries += 1;
            self.shared.discard_now(self.id, &container).await;
            if tries == PORT_TRIES {
                let text = format!("cannot publish the ports of the container: {why}");
                return Err(self.not_started(&text));
            }
            tracing::warn!(attempt = %self.id, "trying other ports: {why}");
        }
    }

    /// Writes the files of the job that its container mounts.
    async fn write_files(&self, context: &Arc<JobContext>) -> Result<(), Outcome> {
        if context.run.files.is_empty() {
            return Ok(());
        }
        let (shared, context, id) = (Arc::clone(&self.shared), Arc::clone(context), self.id);
        let written = tokio::task::spawn_blocking(move || {
            files::write(&shared.settings.data_dir, id, &context.run.files)
        });
        written.await.unwrap_or_else(|error| Err(error.into())).map_err(|error| {
            let dir = self.shared.settings.data_dir.display();
            self.not_started(&format!("cannot write the files of the job in {dir}: {error}"))
        })
    }

    /// Returns the ports of the attempt, if it is a replica.
    fn take_ports(
        &self,
        context: &JobContext,
        spec: &DockerSpec,
    ) -> Result<Option<Arc<Replica>>, Outcome> {
        let Some(replica) = &context.run.replica else { return Ok(None) };
        let source = match spec.network {
            NetworkMode::Host => PortSource::Own,
            NetworkMode::Bridge | NetworkMode::None => PortSource::Range,
        };
        let taken = self.shared.settings.ports.take(self.id, replica, source);
        taken.map(Some).map_err(|why| self.not_started(&why.to_string()))
    }

    /// Starts the capture of a container's output.
    pub(super) fn capture(&self, container: String, standing: Standing) -> Capturing {
        let engine = self.shared.engine.address.clone();
        let (attempt, timeout_ms) = (self.id, self.timeout_ms);
        let container = Container { attempt, id: container, engine, standing, timeout_ms };
        self.shared.settings.captures.begin(container)
    }

    async fn pull(&self, spec: &DockerSpec) -> Result<(), Outcome> {
        let Shared { engine, pulls, settings, .. } = &*self.shared;
        let image = &spec.image;
        let tell = |text| self.shared.tell(self.id, RuntimeFact::Preparing(text));
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(Option::is_some) => Err(stopped()),
            pulled = pulls.pull(engine, image, spec.platform.as_deref(), tell) => pulled.map_err(|why| cannot_start(format!(
                "cannot pull image {image}: {why}; check its name, and that node {} can reach its registry",
                settings.node
            ))),
        }
    }

    async fn create(
        &self,
        identity: &Identity,
        context: &Arc<JobContext>,
        spec: &DockerSpec,
        replica: Option<&Arc<Replica>>,
    ) -> Result<Created, Outcome> {
        let name = container::name(identity.cluster, self.id);
        let Shared { engine, networks, .. } = &*self.shared;
        volumes::check(engine, identity.cluster, spec).await.map_err(cannot_start)?;
        networks.join(engine, self.id, spec).await.map_err(|error| {
            self.not_started(&format!("cannot create the container's network: {error}"))
        })?;
        let mut pulled = spec.pull == PullPolicy::Always;
        let mut pause = Pause::new();
        let mut tries = 0;
        loop {
            if self.is_stopped() {
                return Err(stopped());
            }
            let Configuration { body, held } =
                self.configuration(identity, context, replica).await?;
            let error = match self.shared.engine.create(&name, spec.platform.as_deref(), body).await
            {
                Ok(container) => return Ok(Created { container, has_run: false, held }),
                Err(error) => error,
            };
            if error.is_no_such_image() {
                let image = &spec.image;
                if spec.pull == PullPolicy::Never {
                    return Err(cannot_start(format!(
                        "image {image} is not on node {}, and the job's pull policy is `never`; \
                         load it there, or submit with another pull policy",
                        self.shared.settings.node
                    )));
                }
                if pulled {
                    return Err(cannot_start(format!(
                        "image {image} disappeared after the pull: {error}"
                    )));
                }
                pulled = true;
                self.pull(spec).await?;
                continue;
            }
            if error.is_conflict() {
                if let Some(found) = self.existing(&name, identity).await? {
                    return Ok(Created { held, ..found });
                }
            } else if !error.is_no_answer() {
                return Err(cannot_start(format!("cannot create the container: {error}")));
            }
            tries += 1;
            if tries == START_TRIES {
                // The container may still exist, but was never started. The agent removes it
                // after its next restart.
                let text = format!("cannot create the container: {error}");
                return Err(if error.is_no_answer() {
                    self.not_started(&text)
                } else {
                    cannot_start(text)
                });
            }
            tracing::warn!(attempt = %self.id, %error, "creating the container failed; retrying");
            pause.wait().await;
        }
    }

    /// Returns the configuration. Runs on a blocking thread if it reads the file system.
    async fn configuration(
        &self,
        identity: &Identity,
        context: &Arc<JobContext>,
        replica: Option<&Arc<Replica>>,
    ) -> Result<Configuration, Outcome> {
        let RuntimeSpec::Docker(spec) = &context.run.runtime else {
            return Err(cannot_start("the job is not for the docker runtime"));
        };
        let replica = replica.cloned();
        let make =
            move |shared: &Shared, identity: &Identity, context: &JobContext, spec: &DockerSpec| {
                let settings = &shared.settings;
                let rules = MountRules {
                    node: &settings.node,
                    policy: &settings.policy,
                    engine: &shared.engine.facts,
                    data_dir: &settings.data_dir,
                    stage: &shared.stage,
                };
                let (names, networks) = (&settings.names, &shared.networks);
                let replica = replica.as_deref();
                container::configuration(identity, context, spec, replica, &rules, names, networks)
            };
        if spec.mounts.is_empty() {
            return make(&self.shared, identity, context, spec).map_err(cannot_start);
        }
        let (shared, identity, context) =
            (Arc::clone(&self.shared), identity.clone(), Arc::clone(context));
        let made = tokio::task::spawn_blocking(move || match &context.run.runtime {
            RuntimeSpec::Docker(spec) => make(&shared, &identity, &context, spec),
            _ => Err(String::new()),
        });
        made.await.unwrap_or_else(|error| Err(error.to_string())).map_err(cannot_start)
    }

    /// Returns the existing container with our name, if it belongs to this attempt; `None` if it
    /// is being removed.
    async fn existing(&self, name: &str, wanted: &Identity) -> Result<Option<Created>, Outcome> {
        let found = match self.shared.engine.inspect(name).await {
            Ok(found) => found,
            Err(error) if error.is_not_found() || error.is_no_answer() => return Ok(None),
            Err(error) => return Err(cannot_start(error.to_string())),
        };
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        let owner = Identity::of(&labels, found.name.as_deref().unwrap_or_default());
        if owner.as_ref() != Some(wanted) {
            return Err(cannot_start(format!(
                "a container named {name} already exists and does not belong to this agent; \
                 remove it (`docker rm {name}`), then run the job again"
            )));
        }
        let state = found.state.unwrap_or_default();
        if matches!(state.status, Some(Status::REMOVING | Status::DEAD)) {
            return Ok(None);
        }
        tracing::info!(attempt = %self.id, "continuing with the existing container");
        if let Some(replica) = container::replica_of(&labels) {
            self.shared.settings.ports.adopt(self.id, Arc::new(replica));
        }
        Ok(found.id.map(|container| Created { container, has_run: has_run(&state), held: vec![] }))
    }

    /// Attaches to the container, and only then starts it: not a byte is missed.
    async fn start(&self, container: &str) -> Result<CaptureEnd, NoStart> {
        let engine = &self.shared.engine;
        let mut pause = Pause::new();
        for _ in 0..START_TRIES {
            let Capturing { attached, complete } =
                self.capture(container.to_owned(), Standing::New);
            let started = match attached.await {
                Ok(Ok(())) => engine.start(container).await,
                Ok(Err(why)) => Err(CallError::NoAnswer(format!("cannot attach: {why}"))),
                // The agent is ending. After its restart it removes the container.
                Err(_) => return std::future::pending().await,
            };
            match started {
                Ok(()) => return Ok(complete),
                Err(CallError::Refused { message, .. }) if is_about_ports(&message) => {
                    return Err(NoStart::Ports(message));
                }
                Err(CallError::Refused { message, .. }) => {
                    let text = format!("cannot start the container: {message}");
                    return Err(Outcome::start_failed(start_error_code(&message), text).into());
                }
                Err(error) => {
                    tracing::warn!(attempt = %self.id, %error, "starting the container: no answer from the engine")
                }
            }
            pause.wait().await;
            match engine.inspect_patiently(container).await {
                Ok(found) if found.state.as_ref().is_some_and(has_run) => return Ok(complete),
                Ok(_) => {}
                Err(error) => return Err(cannot_start(error.to_string()).into()),
            }
        }
        // The engine answers that the container has not run.
        self.shared.discard(self.id);
        Err(self.not_started("the Docker engine currently does not start containers").into())
    }

    /// Returns the outcome of an attempt that is to be tried on another node.
    fn not_started(&self, why: &str) -> Outcome {
        Outcome::not_started(format!("node {}: {why}", self.shared.settings.node))
    }

    /// Waits for a started container to end and for the last byte of its output. Stops the
    /// container on request.
    pub(super) async fn watch(
        &self,
        container: &str,
        captured: CaptureEnd,
        started: Option<Instant>,
    ) -> Outcome {
        let end = async {
            let exit = self.exit(container).await;
            let ran = started.map(|started| started.elapsed());
            let Some((found, was_away)) = exit else { return (None, ran) };
            (Some((self.with_oom(container, found).await, was_away)), ran)
        };
        let captured = async {
            match captured.await {
                Ok(timed_out_ms) => timed_out_ms,
                // The agent ends, and leaves this to its next life.
                Err(_) => std::future::pending().await,
            }
        };
        let ((state, ran), timed_out_ms) = tokio::select! {
            ended = futures_util::future::join(end, captured) => ended,
            never = self.stop_when_asked(container) => match never {},
        };
        let Some((state, engine_was_away)) = state else {
            return Outcome::new(OutcomeKind::Lost)
                .with_message("somebody else removed its container; its outcome is unknown");
        };
        if engine_was_away && !self.shared.engine.facts.live_restore {
            return Outcome {
                exit_code: outcome(&state).exit_code,
                ..Outcome::new(OutcomeKind::Lost)
            }
            .with_message(ENGINE_STOPPED);
        }
        let ran_ms = match ran {
            Some(ran) => u64::try_from(ran.as_millis()).unwrap_or(u64::MAX),
            None => shown_ran_ms(&state),
        };
        let outcome = Outcome { ran_ms, ..outcome(&state) };
        match timed_out_ms {
            Some(timeout_ms) => outcome.timed_out(timeout_ms),
            None => outcome,
        }
    }

    /// Waits for the container to exit. Returns what the engine says about it and whether it did not
    /// answer around the exit; `None` if the container no longer exists.
    async fn exit(&self, container: &str) -> Option<(ContainerInspectResponse, bool)> {
        let engine = &self.shared.engine;
        let mut pause = Pause::new();
        loop {
            let waited = engine.wait(container).await;
            let mut was_away = waited.as_ref().is_err_and(CallError::is_no_answer);
            let mut found = engine.inspect(container).await;
            if found.as_ref().is_err_and(|error| !error.is_not_found()) {
                was_away = true;
                found = engine.inspect_patiently(container).await;
            }
            match found {
                Ok(found) => {
                    let is = |flag: fn(&ContainerState) -> Option<bool>| {
                        found.state.as_ref().and_then(flag) == Some(true)
                    };
                    if !is(|state| state.running) && !is(|state| state.restarting) {
                        return Some((found, was_away));
                    }
                }
                Err(_) => return None,
            }
            if let Err(error) = waited {
                tracing::warn!(attempt = %self.id, %error, "waiting for the exit was interrupted; retrying");
            }
            pause.wait().await;
        }
    }

    /// Inspects a container with limited memory again, because the engine learns of its exit
    /// and of an out-of-memory kill separately and in any order.
    async fn with_oom(&self, container: &str, found: ContainerInspectResponse) -> ContainerState {
        let state = found.state.unwrap_or_default();
        let is_limited =
            found.host_config.and_then(|host| host.memory).is_some_and(|bytes| bytes > 0);
        if !is_limited || state.oom_killed == Some(true) {
            return state;
        }
        let killed = state.exit_code == Some(KILLED) && self.stop.borrow().is_none();
        let until = Instant::now() + if killed { OOM_WAIT_IF_KILLED } else { OOM_WAIT };
        loop {
            sleep(OOM_WAIT).await;
            match self.shared.engine.inspect(container).await.map(|again| again.state) {
                Ok(Some(again)) if again.oom_killed == Some(true) => return again,
                Ok(_) if Instant::now() < until => {}
                _ => return state,
            }
        }
    }

    /// Stops the container on request, and with less grace on each further request.
    async fn stop_when_asked(&self, container: &str) -> std::convert::Infallible {
        let mut stop = self.stop.clone();
        let asked = |grace: &Option<u64>| grace.is_some();
        let first = stop.wait_for(asked).await.ok().and_then(|grace| *grace);
        let Some(mut grace_ms) = first else { return std::future::pending().await };
        loop {
            tokio::select! {
                () = self.stop_now(container, grace_ms) => {}
                changed = stop.changed() => {
                    if changed.is_err() {
                        std::future::pending().await
                    }
                    grace_ms = stop.borrow().unwrap_or(0);
                }
            }
        }
    }

    /// Stops the container. Never returns: [`exit`](Self::exit) sees the end.
    async fn stop_now(&self, container: &str, grace_ms: u64) {
        self.shared.settings.captures.stopped(self.id);
        let mut pause = Pause::new();
        while let Err(error) = self.shared.engine.stop(container, grace_ms.div_ceil(1000)).await {
            // It does not exist or does not run.
            if error.is_not_found() || error.is_conflict() {
                break;
            }
            tracing::warn!(attempt = %self.id, %error, "stopping the container failed; retrying");
            pause.wait().await;
        }
        std::future::pending().await
    }
}

/// Returns whether a container has ever been started. The engine reports year 1 for never.
pub(super) fn has_run(state: &ContainerState) -> bool {
    state.started_at.as_deref().is_some_and(|at| !at.is_empty() && !at.starts_with("0001-"))
}

/// Returns the outcome of a container that the engine created but could not start.
pub(super) fn start_failure(state: &ContainerState) -> Option<Outcome> {
    let message = state.error.as_deref().filter(|error| !error.is_empty())?;
    let text = format!("cannot start the container: {message}");
    Some(Outcome::start_failed(start_error_code(message), text))
}

fn outcome(state: &ContainerState) -> Outcome {
    let code = state.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(CANNOT_START);
    let mut outcome = Outcome::exited(code);
    outcome.oom_killed = state.oom_killed == Some(true);
    match state.error.as_deref() {
        Some(error) if !error.is_empty() => outcome.with_message(error),
        _ if outcome.oom_killed => outcome.out_of_memory(),
        _ => outcome,
    }
}

/// Milliseconds from the start to the end, by the engine's wall clock: for people, where nobody of
/// ours was there to measure it.
fn shown_ran_ms(state: &ContainerState) -> u64 {
    let ran = time(state.started_at.as_deref())
        .zip(time(state.finished_at.as_deref()))
        .map(|(started, end)| end.as_millisecond() - started.as_millisecond());
    ran.and_then(|ran| u64::try_from(ran).ok()).unwrap_or(0)
}

fn time(text: Option<&str>) -> Option<jiff::Timestamp> {
    text?.parse().ok()
}

fn cannot_start(message: impl Into<String>) -> Outcome {
    Outcome::start_failed(CANNOT_START, message)
}

fn stopped() -> Outcome {
    Outcome::new(OutcomeKind::Failed).with_message("stopped before it started")
}
