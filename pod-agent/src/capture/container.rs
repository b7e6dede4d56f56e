//! From a container to its logs, through the engine's attach: the container's pipe, handed on.
//!
//! The container is created with the log driver `none` and attached before it is started, so the
//! engine keeps no copy and every byte comes once. While its bytes are not taken, the container
//! waits. Of the ways to a container's output this is the fastest, needs no rights beyond those to
//! start containers, and works with every engine (`bench logs` compares them).
//!
//! An attach is a connection to the engine, and ends when the engine does. An engine with
//! `live-restore` comes back while the container goes on, and drops what it prints until there is an
//! attach again: then the log says that output may be missing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::Docker;
use bollard::container::{AttachContainerResults, LogOutput};
use bollard::errors::Error;
use bollard::models::{ContainerState, ContainerStateStatusEnum as Status};
use bollard::query_parameters as query;
use bytes::BytesMut;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use podmesh_agent_core::input::RuntimeFact;
use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::client::LogStream;
use podmesh_protocol::ids::AttemptId;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::{Life, OutputLog, Sink};
use crate::log_notify::LogNotify;
use crate::paths::attempt_log_dir;

/// The streams, by their place in all arrays here.
const STREAMS: [LogStream; 2] = [LogStream::Stdout, LogStream::Stderr];
/// Bytes that are gathered for one write.
const BATCH_BYTES: usize = 256 << 10;
/// How long output is let gather after less than that came: engines hand it on in pieces of a few
/// KiB, and a wakeup for each costs more than all else.
const GATHER: Duration = Duration::from_millis(1);
/// The pause before an engine that does not answer is asked again, at first and at most.
const PAUSE: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

const MISSED: &str = "output may be missing here: what captured it had ended";
const INTERRUPTED: &str =
    "output may be missing here: the connection to the Docker engine was interrupted";

/// Where a container stands when its capture begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// It was never started, and is not before it is attached.
    New,
    /// It was started.
    Running,
    /// It was started, and does not run any more.
    Exited,
}

/// A container whose output is to be captured.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) attempt: AttemptId,
    /// Its id.
    pub(crate) id: String,
    /// The address of its engine, as in `DOCKER_HOST`.
    pub(crate) engine: String,
    pub(crate) standing: Standing,
}

/// Where output goes.
#[derive(Clone, Debug)]
pub(crate) struct LogPlace {
    /// Absolute.
    pub(crate) logs_dir: PathBuf,
    pub(crate) rotation: RotationPolicy,
}

/// What is told of a capture.
#[derive(Debug)]
pub(crate) enum CaptureFact {
    /// It is attached, or why that cannot be.
    Attached(Result<(), String>),
    /// All output is in the files.
    Complete,
}

/// The captures that are held by this process.
#[derive(Debug)]
pub(crate) struct Holder {
    captures: HashMap<AttemptId, Held>,
    notify: LogNotify,
    facts: mpsc::UnboundedSender<(AttemptId, RuntimeFact)>,
    told: mpsc::UnboundedSender<(AttemptId, CaptureFact)>,
}

#[derive(Debug)]
struct Held {
    life: watch::Sender<Life>,
    task: AbortHandle,
    is_attached: bool,
    is_complete: bool,
}

impl Holder {
    /// Tells gaps to `facts`, and how captures stand to `told`; what comes there is to be given to
    /// [`Holder::note`].
    pub(crate) fn new(
        notify: LogNotify,
        facts: mpsc::UnboundedSender<(AttemptId, RuntimeFact)>,
        told: mpsc::UnboundedSender<(AttemptId, CaptureFact)>,
    ) -> Self {
        Self { captures: HashMap::new(), notify, facts, told }
    }

    /// How many go on.
    pub(crate) fn live(&self) -> usize {
        self.captures.values().filter(|held| !held.is_complete).count()
    }

    /// How many are held, those that are complete included.
    pub(crate) fn len(&self) -> usize {
        self.captures.len()
    }

    /// Captures a container, unless it is captured already; how that stands is told in any case.
    pub(crate) fn begin(&mut self, container: Container, place: LogPlace) {
        let attempt = container.attempt;
        if let Some(held) = self.captures.get(&attempt) {
            if held.is_attached {
                self.tell(attempt, CaptureFact::Attached(Ok(())));
            }
            if held.is_complete {
                self.tell(attempt, CaptureFact::Complete);
            }
            return;
        }
        let (life, lives) = watch::channel(Life::default());
        let log = |stream| {
            OutputLog::new(Sink {
                attempt,
                stream,
                log_dir: attempt_log_dir(&place.logs_dir, attempt),
                rotation: place.rotation.clone(),
                notify: self.notify.clone(),
                facts: self.facts.clone(),
                life: lives.clone(),
            })
        };
        let capture = Capture {
            log_dir: attempt_log_dir(&place.logs_dir, attempt),
            logs: STREAMS.map(log),
            container,
            told: self.told.clone(),
            facts: self.facts.clone(),
        };
        let task = tokio::spawn(capture.run()).abort_handle();
        let held = Held { life, task, is_attached: false, is_complete: false };
        self.captures.insert(attempt, held);
    }

    /// Takes note of what is about to be told.
    pub(crate) fn note(&mut self, attempt: AttemptId, fact: &CaptureFact) {
        let Some(held) = self.captures.get_mut(&attempt) else { return };
        match fact {
            CaptureFact::Attached(Ok(())) => held.is_attached = true,
            // It can be begun again.
            CaptureFact::Attached(Err(_)) => drop(self.captures.remove(&attempt)),
            CaptureFact::Complete => held.is_complete = true,
        }
    }

    /// The attempt was told to stop: a full disk is no longer waited for.
    pub(crate) fn stopped(&self, attempt: AttemptId) {
        if let Some(held) = self.captures.get(&attempt) {
            held.life.send_modify(|life| *life = Life { ended: true, stopped: true });
        }
    }

    /// Ends a capture, and forgets it.
    pub(crate) fn forget(&mut self, attempt: AttemptId) {
        if let Some(held) = self.captures.remove(&attempt) {
            held.task.abort();
        }
    }

    fn tell(&self, attempt: AttemptId, fact: CaptureFact) {
        // Its receiver lives as long as this.
        _ = self.told.send((attempt, fact));
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.captures.values().for_each(|held| held.task.abort());
    }
}

/// The capture of one container.
struct Capture {
    container: Container,
    log_dir: PathBuf,
    logs: [OutputLog; 2],
    told: mpsc::UnboundedSender<(AttemptId, CaptureFact)>,
    facts: mpsc::UnboundedSender<(AttemptId, RuntimeFact)>,
}

/// A pause that gets longer.
struct Pause(Duration);

impl Pause {
    fn new() -> Self {
        Self(PAUSE[0])
    }

    async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = (2 * self.0).min(PAUSE[1]);
    }
}

impl Capture {
    async fn run(mut self) {
        let attached = self.follow().await;
        if let Err(why) = attached {
            return self.tell(CaptureFact::Attached(Err(why)));
        }
        for log in &mut self.logs {
            log.finish().await;
        }
        self.tell(CaptureFact::Complete);
    }

    fn tell(&self, fact: CaptureFact) {
        // Without a receiver this process ends.
        _ = self.told.send((self.container.attempt, fact));
    }

    /// Writes down all output until the container has exited or is gone. An error says why it
    /// could not be attached before its start.
    async fn follow(&mut self) -> Result<(), String> {
        match self.container.standing {
            Standing::New => {}
            Standing::Running => self.note_gap(MISSED).await,
            Standing::Exited => {
                self.note_gap(MISSED).await;
                self.tell(CaptureFact::Attached(Ok(())));
                return Ok(());
            }
        }
        let mut docker = None;
        let mut is_first = true;
        let mut pause = Pause::new();
        loop {
            match attach(&mut docker, &self.container).await {
                Ok(output) => {
                    if !is_first
                        && self.state(&mut docker).await.is_some_and(|state| has_run(&state))
                    {
                        self.note_gap(INTERRUPTED).await;
                    }
                    if is_first {
                        self.tell(CaptureFact::Attached(Ok(())));
                        is_first = false;
                    }
                    pause = Pause::new();
                    if let Err(error) = self.copy(output).await {
                        tracing::warn!(attempt = %self.container.attempt, %error, "an attach is interrupted");
                    }
                }
                Err(error) if is_first && self.container.standing == Standing::New => {
                    return Err(error.to_string());
                }
                Err(error) => {
                    tracing::warn!(attempt = %self.container.attempt, %error, "cannot attach; trying again");
                    docker = None;
                }
            }
            match self.state(&mut docker).await {
                // It goes on, or is about to be started: the engine was away.
                Some(state) if state.running == Some(true) || !has_run(&state) => {}
                _ => return Ok(()),
            }
            pause.wait().await;
        }
    }

    /// How the container stands; asks until the engine answers. `None` when it is gone.
    async fn state(&self, docker: &mut Option<Docker>) -> Option<ContainerState> {
        let mut pause = Pause::new();
        loop {
            let inspected = async {
                let docker = connect(docker, &self.container.engine).await?;
                let options = None::<query::InspectContainerOptions>;
                docker.inspect_container(&self.container.id, options).await
            };
            match inspected.await {
                Ok(found) => return Some(found.state.unwrap_or_default()),
                Err(Error::DockerResponseServerError { status_code: 404, .. }) => return None,
                Err(error) => {
                    tracing::debug!(%error, "the engine does not say how a container stands");
                    *docker = None;
                }
            }
            pause.wait().await;
        }
    }

    async fn copy(
        &mut self,
        mut output: impl Stream<Item = Result<LogOutput, Error>> + Unpin,
    ) -> Result<(), Error> {
        let mut buffers = [BytesMut::new(), BytesMut::new()];
        let mut next = output.next().await;
        while let Some(item) = next.take() {
            let mut item = Some(item);
            let mut bytes = 0;
            let mut failed = None;
            // What is there already goes into one write.
            loop {
                match item {
                    Some(Ok(printed)) => {
                        let (stream, printed) = match printed {
                            LogOutput::StdErr { message } => (1, message),
                            LogOutput::StdOut { message }
                            | LogOutput::StdIn { message }
                            | LogOutput::Console { message } => (0, message),
                        };
                        bytes += printed.len();
                        buffers[stream].extend_from_slice(&printed);
                    }
                    Some(Err(error)) => {
                        failed = Some(error);
                        break;
                    }
                    None => break,
                }
                if bytes >= BATCH_BYTES {
                    break;
                }
                match output.next().now_or_never() {
                    Some(following) => item = following,
                    None => break,
                }
            }
            for (buffer, log) in buffers.iter_mut().zip(&mut self.logs) {
                if !buffer.is_empty() {
                    log.write(buffer.split().freeze()).await;
                }
            }
            if let Some(error) = failed {
                return Err(error);
            }
            if bytes < BATCH_BYTES {
                sleep(GATHER).await;
            }
            next = output.next().await;
        }
        Ok(())
    }

    /// Says that output may be missing: by an event, and in the files that exist, or in that of
    /// stdout where none does.
    async fn note_gap(&mut self, text: &str) {
        let attempt = self.container.attempt;
        tracing::warn!(%attempt, text);
        // Without a receiver this process ends.
        _ = self.facts.send((attempt, RuntimeFact::LogGap(text.to_owned())));
        let exists = STREAMS.map(|stream| exists(&self.log_dir, stream));
        for (at, log) in self.logs.iter_mut().enumerate() {
            if exists[at] || (at == 0 && !exists[1]) {
                log.note(text.to_owned()).await;
            }
        }
    }
}

fn exists(log_dir: &Path, stream: LogStream) -> bool {
    log_dir.join(format!("{}.log", stream.file_stem())).exists()
}

/// Whether a container was started at least once. The engine says year 1 for never.
fn has_run(state: &ContainerState) -> bool {
    state.status != Some(Status::CREATED)
}

async fn connect<'a>(docker: &'a mut Option<Docker>, engine: &str) -> Result<&'a Docker, Error> {
    if docker.is_none() {
        *docker = Some(Docker::connect_with_host(engine)?.negotiate_version().await?);
    }
    #[expect(clippy::expect_used, reason = "it was made right above")]
    Ok(docker.as_ref().expect("a client"))
}

async fn attach(
    docker: &mut Option<Docker>,
    container: &Container,
) -> Result<impl Stream<Item = Result<LogOutput, Error>> + Unpin + use<>, Error> {
    let options = query::AttachContainerOptionsBuilder::default()
        .stream(true)
        .stdout(true)
        .stderr(true)
        .build();
    let docker = connect(docker, &container.engine).await?;
    let attached = docker.attach_container(&container.id, Some(options)).await?;
    let AttachContainerResults { output, .. } = attached;
    Ok(output)
}
