//! Captures a container's output through the engine's attach, which passes on the container's pipe.
//!
//! The container is created with the log driver `none` and attached before it is started, so the
//! engine keeps no copy and every byte arrives once. While nobody reads its output, the container
//! waits. This is the fastest way to a container's output, needs no rights beyond those to start
//! containers, and works with every engine (`bench logs` compares the ways).
//!
//! An attach is a connection to the engine, and ends when the engine does. With `live-restore` the
//! container keeps running while the engine restarts, and the engine drops what it prints until the
//! next attach. Then the log says that output may be missing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{ContainerState, ContainerStateStatusEnum as Status};
use bollard::query_parameters as query;
use bytes::BytesMut;
use podmesh_agent_core::input::RuntimeFact;
use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::client::LogStream;
use podmesh_protocol::ids::AttemptId;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::attach::{Attach, AttachError};
use super::timeout::Timeout;
use super::{Life, OutputLog, Sink};
use crate::log_notify::LogNotify;
use crate::paths::attempt_log_dir;

/// The streams, in the order used by all arrays here.
const STREAMS: [LogStream; 2] = [LogStream::Stdout, LogStream::Stderr];
/// Bytes collected for one write.
const BATCH_BYTES: usize = 256 << 10;
/// How long to let output collect after a smaller batch. Engines pass it on in pieces of a few KiB,
/// and waking up for each piece costs more than everything else. In a longer pause the engine's
/// socket, which holds about 200 KiB, is full, and the container waits (`bench logs`).
const GATHER: Duration = Duration::from_millis(1);
/// The first and the longest pause before an engine that does not answer is asked again.
const PAUSE: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

const MISSED: &str = "output may be missing here: its capture was interrupted";
const INTERRUPTED: &str =
    "output may be missing here: the connection to the Docker engine was interrupted";

/// The state of a container when its capture begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// Never started. It will be started after the attach.
    New,
    /// Started.
    Running,
    /// Started, and no longer running.
    Exited,
}

/// A container to capture.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) attempt: AttemptId,
    /// The container's id.
    pub(crate) id: String,
    /// The address of its engine, as in `DOCKER_HOST`.
    pub(crate) engine: String,
    pub(crate) standing: Standing,
    /// Its timeout in milliseconds.
    pub(crate) timeout_ms: Option<u64>,
}

/// Where and how output is written.
#[derive(Clone, Debug)]
pub(crate) struct LogPlace {
    /// An absolute path.
    pub(crate) logs_dir: PathBuf,
    pub(crate) rotation: RotationPolicy,
}

/// A fact about a capture.
#[derive(Clone, Debug)]
pub(crate) enum CaptureFact {
    /// The container is attached, or cannot be attached for this reason.
    Attached(Result<(), String>),
    /// All output is in the files.
    Complete {
        /// The timeout in milliseconds, if the container was stopped because of that.
        timed_out_ms: Option<u64>,
    },
}

/// The captures that this process holds.
#[derive(Debug)]
pub(crate) struct Holder {
    captures: HashMap<AttemptId, Entry>,
    notify: LogNotify,
    facts: mpsc::UnboundedSender<(AttemptId, RuntimeFact)>,
    told: mpsc::UnboundedSender<(AttemptId, CaptureFact)>,
}

#[derive(Debug)]
struct Entry {
    life: watch::Sender<Life>,
    task: AbortHandle,
    is_attached: bool,
    /// How it ended.
    complete: Option<CaptureFact>,
}

impl Holder {
    /// Creates a holder. It reports gaps to `facts` and the progress of captures to `told`. The
    /// receiver of `told` must pass each fact to [`Holder::note`].
    pub(crate) fn new(
        notify: LogNotify,
        facts: mpsc::UnboundedSender<(AttemptId, RuntimeFact)>,
        told: mpsc::UnboundedSender<(AttemptId, CaptureFact)>,
    ) -> Self {
        Self { captures: HashMap::new(), notify, facts, told }
    }

    /// Returns how many captures are not complete.
    pub(crate) fn live(&self) -> usize {
        self.captures.values().filter(|entry| entry.complete.is_none()).count()
    }

    /// Returns how many captures are held, including complete ones.
    pub(crate) fn len(&self) -> usize {
        self.captures.len()
    }

    /// Captures a container, unless that was already begun. Reports the capture's progress in both
    /// cases.
    pub(crate) fn begin(&mut self, container: Container, place: LogPlace) {
        let attempt = container.attempt;
        if let Some(entry) = self.captures.get(&attempt) {
            if entry.is_attached {
                self.tell(attempt, CaptureFact::Attached(Ok(())));
            }
            if let Some(complete) = &entry.complete {
                self.tell(attempt, complete.clone());
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
        let entry = Entry { life, task, is_attached: false, complete: None };
        self.captures.insert(attempt, entry);
    }

    /// Records a fact that is about to be passed on.
    pub(crate) fn note(&mut self, attempt: AttemptId, fact: &CaptureFact) {
        let Some(entry) = self.captures.get_mut(&attempt) else { return };
        match fact {
            CaptureFact::Attached(Ok(())) => entry.is_attached = true,
            // It can be begun again.
            CaptureFact::Attached(Err(_)) => drop(self.captures.remove(&attempt)),
            CaptureFact::Complete { .. } => entry.complete = Some(fact.clone()),
        }
    }

    /// Notes that the attempt was told to stop, so that its output no longer waits for a full disk.
    pub(crate) fn stopped(&self, attempt: AttemptId) {
        if let Some(entry) = self.captures.get(&attempt) {
            entry.life.send_modify(|life| *life = Life { ended: true, stopped: true });
        }
    }

    /// Ends a capture and forgets it.
    pub(crate) fn forget(&mut self, attempt: AttemptId) {
        if let Some(entry) = self.captures.remove(&attempt) {
            entry.task.abort();
        }
    }

    fn tell(&self, attempt: AttemptId, fact: CaptureFact) {
        // The receiver lives as long as this holder.
        _ = self.told.send((attempt, fact));
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.captures.values().for_each(|entry| entry.task.abort());
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
pub(super) struct Pause(Duration);

impl Pause {
    pub(super) fn new() -> Self {
        Self(PAUSE[0])
    }

    pub(super) async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = (2 * self.0).min(PAUSE[1]);
    }
}

impl Capture {
    async fn run(mut self) {
        let timeout = Timeout::new(self.container.clone());
        let attached = tokio::select! {
            attached = self.follow() => attached,
            never = timeout.keep() => match never {},
        };
        if let Err(why) = attached {
            return self.tell(CaptureFact::Attached(Err(why)));
        }
        for log in &mut self.logs {
            log.finish().await;
        }
        self.tell(CaptureFact::Complete { timed_out_ms: timeout.was_over() });
    }

    fn tell(&self, fact: CaptureFact) {
        // If there is no receiver, this process is ending.
        _ = self.told.send((self.container.attempt, fact));
    }

    /// Writes all output until the container has exited or no longer exists. Fails if a container
    /// that was not started cannot be attached.
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
                Ok(attach) => {
                    if !is_first
                        && inspect(&mut docker, &self.container)
                            .await
                            .is_some_and(|state| has_run(&state))
                    {
                        self.note_gap(INTERRUPTED).await;
                    }
                    if is_first {
                        self.tell(CaptureFact::Attached(Ok(())));
                        is_first = false;
                    }
                    pause = Pause::new();
                    if let Err(error) = self.copy(attach).await {
                        tracing::warn!(attempt = %self.container.attempt, %error, "the attach was interrupted");
                    }
                }
                Err(error) if is_first && self.container.standing == Standing::New => {
                    return Err(error.to_string());
                }
                Err(error) => {
                    tracing::warn!(attempt = %self.container.attempt, %error, "cannot attach; retrying");
                    docker = None;
                }
            }
            match inspect(&mut docker, &self.container).await {
                // It keeps running or is about to be started; the engine was unavailable.
                Some(state) if state.running == Some(true) || !has_run(&state) => {}
                _ => return Ok(()),
            }
            pause.wait().await;
        }
    }

    async fn copy(&mut self, mut attach: Attach) -> Result<(), AttachError> {
        let mut streams = [BytesMut::new(), BytesMut::new()];
        loop {
            let bytes = match attach.read(BATCH_BYTES, &mut streams).await {
                Ok(0) => return Ok(()),
                read => read,
            };
            for (stream, log) in streams.iter_mut().zip(&mut self.logs) {
                if !stream.is_empty() {
                    log.write(stream.split().freeze()).await;
                }
            }
            if bytes? < BATCH_BYTES {
                sleep(GATHER).await;
            }
        }
    }

    /// Reports that output may be missing: by an event, and in the files that exist, or in the file
    /// of stdout if none exists.
    async fn note_gap(&mut self, text: &str) {
        let attempt = self.container.attempt;
        tracing::warn!(%attempt, text);
        // If there is no receiver, this process is ending.
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

/// Returns whether a container was started at least once. For a container that never was, the
/// engine reports the year 1.
pub(super) fn has_run(state: &ContainerState) -> bool {
    state.status != Some(Status::CREATED)
}

/// Returns the state of a container. Retries until the engine answers. Returns `None` if the
/// container no longer exists.
pub(super) async fn inspect(
    docker: &mut Option<Docker>,
    container: &Container,
) -> Option<ContainerState> {
    let mut pause = Pause::new();
    loop {
        let inspected = async {
            let docker = connect(docker, &container.engine).await?;
            let options = None::<query::InspectContainerOptions>;
            docker.inspect_container(&container.id, options).await
        };
        match inspected.await {
            Ok(found) => return Some(found.state.unwrap_or_default()),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => return None,
            Err(error) => {
                tracing::debug!(%error, "cannot get the state of a container from the engine");
                *docker = None;
            }
        }
        pause.wait().await;
    }
}

pub(super) async fn connect<'a>(
    docker: &'a mut Option<Docker>,
    engine: &str,
) -> Result<&'a Docker, Error> {
    if docker.is_none() {
        *docker = Some(Docker::connect_with_host(engine)?.negotiate_version().await?);
    }
    #[expect(clippy::expect_used, reason = "it was created right above")]
    Ok(docker.as_ref().expect("a client"))
}

async fn attach(docker: &mut Option<Docker>, container: &Container) -> Result<Attach, AttachError> {
    let docker = connect(docker, &container.engine).await?;
    Attach::open(docker, &container.engine, &container.id).await
}
