//! The `docker` runtime: attempts as containers of a Docker engine.
//!
//! - `engine.rs`: the calls to the engine, each with its deadline;
//! - `container.rs`: labels, name and configuration of a container, within what the node allows;
//! - `mounts.rs`: what may be mounted; `stage.rs`: how it is held until it is;
//! - `attempt.rs`: one attempt's life; `pull.rs`: missing images; `registry.rs`: credentials for
//!   them; `adopt.rs`: after a restart;
//!
//! The output is captured by somebody else, see [`Captures`]: the container waits for that before
//! it is started, and its end waits for the last byte.
//!
//! A container's name and labels say which attempt it is: creating it twice gives one container,
//! and a restarted agent finds it. It is kept until [`DockerRuntime::remove`]. Containers without
//! our labels and our name are never touched.

mod adopt;
mod attempt;
mod container;
mod engine;
mod error;
mod mounts;
mod pull;
mod registry;
mod stage;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podmesh_agent_core::input::RuntimeFact;
use podmesh_agent_core::step::JobContext;
use podmesh_protocol::ids::{AttemptId, ClusterId, Name};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use uuid::Uuid;

pub use self::error::DockerError;
pub(crate) use self::registry::config_dir;

use self::attempt::Attempt;
use self::engine::Engine;
use self::pull::Pulls;
use self::stage::Stage;
use crate::capture::Captures;
use crate::policy::NodePolicy;

/// What the runtime has to know of its node.
#[derive(Clone, Debug)]
pub struct DockerSettings {
    /// The node's name.
    pub node: Name,
    /// The identity of the agent's data directory. Containers carry it: it must not change over
    /// restarts, and no two agents may share it.
    pub agent_id: Uuid,
    /// The agent's data directory: never mounted.
    pub data_dir: PathBuf,
    /// What the node's owner allows.
    pub policy: NodePolicy,
    /// Who captures output.
    pub captures: Captures,
    /// The folder of Docker's client configuration, with the credentials of `docker login`.
    pub docker_config: Option<PathBuf>,
}

/// The version of the engine that an agent here would use.
///
/// # Errors
/// Why it could use none.
pub async fn engine_version() -> Result<String, DockerError> {
    Ok(Engine::connect().await?.version)
}

/// Runs attempts as containers. What becomes of them is told on the channel given to
/// [`connect`](Self::connect).
///
/// Dropping it stops watching, as a crash of the agent would: containers go on, and
/// [`adopt`](Self::adopt) of the next one finds them.
#[derive(Debug)]
pub struct DockerRuntime {
    shared: Arc<Shared>,
    /// Looks whether the engine answers.
    watching: AbortHandle,
}

impl DockerRuntime {
    /// Connects to the engine that `DOCKER_HOST` names, by default the one of this machine. To be
    /// called on the tokio runtime that is to do the work.
    ///
    /// # Errors
    /// When no engine answers within 10 s.
    pub async fn connect(
        settings: DockerSettings,
        facts: mpsc::UnboundedSender<(AttemptId, RuntimeFact)>,
    ) -> Result<Self, DockerError> {
        let engine = Arc::new(Engine::connect().await?);
        let shared = Arc::new(Shared {
            engine,
            pulls: Arc::new(Pulls::new(settings.docker_config.clone())),
            stage: Stage::of(settings.agent_id),
            settings,
            facts,
            runtime: Handle::current(),
            cluster: Mutex::default(),
            attempts: Mutex::default(),
        });
        let watching = Handle::current().spawn(Arc::clone(&shared.engine).watch()).abort_handle();
        Ok(Self { shared, watching })
    }

    /// Why nothing can be started now: the engine does not answer.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.shared.engine.trouble()
    }

    /// Says whose attempts these are; before the first [`start`](Self::start).
    pub fn set_cluster(&self, cluster: ClusterId) {
        *lock(&self.shared.cluster) = Some(cluster);
    }

    /// Starts an attempt. It is told as [`RuntimeFact::Started`] and, in any case,
    /// [`RuntimeFact::Ended`]. One that is known already is not started again.
    pub fn start(&self, id: AttemptId, context: Arc<JobContext>) {
        if let Some(attempt) = self.shared.register(id) {
            self.shared.run(id, attempt.run(context));
        }
    }

    /// Stops an attempt: its image's stop signal (TERM), and after `grace_ms` milliseconds,
    /// rounded up to seconds, KILL; 0 kills at once. One that has not been started yet never is.
    /// Asked again with less grace, it is stopped harder. Its end is told as of any other.
    pub fn stop(&self, id: AttemptId, grace_ms: u64) {
        if let Some(known) = lock(&self.shared.attempts).get(&id) {
            known.stop.send_if_modified(|grace| {
                let harder = grace.is_none_or(|grace| grace_ms < grace);
                if harder {
                    *grace = Some(grace_ms);
                }
                harder
            });
        }
    }

    /// Forgets an attempt whose end is known to the manager, and removes its container with its
    /// anonymous volumes, in the background and until it is gone. Its logs stay.
    pub fn remove(&self, id: AttemptId) {
        self.shared.discard(id);
        self.shared.settings.captures.forget(id);
        if let Some(known) = lock(&self.shared.attempts).remove(&id) {
            known.abort();
        }
    }
}

impl Drop for DockerRuntime {
    fn drop(&mut self) {
        self.watching.abort();
        for (_, known) in lock(&self.shared.attempts).drain() {
            known.abort();
        }
    }
}

/// What all attempts share.
#[derive(Debug)]
struct Shared {
    engine: Arc<Engine>,
    pulls: Arc<Pulls>,
    stage: Stage,
    settings: DockerSettings,
    facts: mpsc::UnboundedSender<(AttemptId, RuntimeFact)>,
    runtime: Handle,
    cluster: Mutex<Option<ClusterId>>,
    attempts: Mutex<HashMap<AttemptId, Known>>,
}

/// An attempt, from its start to its removal.
#[derive(Debug)]
struct Known {
    /// The grace in milliseconds, once it is to be stopped.
    stop: watch::Sender<Option<u64>>,
    /// Once it is created.
    container: Option<String>,
    task: Option<AbortHandle>,
}

impl Known {
    fn abort(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Shared {
    /// A new attempt; none if it is known already.
    fn register(self: &Arc<Self>, id: AttemptId) -> Option<Attempt> {
        let mut attempts = lock(&self.attempts);
        if attempts.contains_key(&id) {
            return None;
        }
        let (stop, stopped) = watch::channel(None);
        attempts.insert(id, Known { stop, container: None, task: None });
        Some(Attempt { shared: Arc::clone(self), id, stop: stopped })
    }

    /// Runs the life of a registered attempt.
    fn run(&self, id: AttemptId, life: impl Future<Output = ()> + Send + 'static) {
        let mut attempts = lock(&self.attempts);
        if let Some(known) = attempts.get_mut(&id) {
            known.task = Some(self.runtime.spawn(life).abort_handle());
        }
    }

    fn has_container(&self, id: AttemptId, container: &str) {
        if let Some(known) = lock(&self.attempts).get_mut(&id) {
            known.container = Some(container.to_owned());
        }
    }

    /// Removes the container of an attempt, if it has one.
    fn discard(&self, id: AttemptId) {
        let container = lock(&self.attempts).get_mut(&id).and_then(|known| known.container.take());
        if let Some(container) = container {
            let engine = Arc::clone(&self.engine);
            self.runtime.spawn(async move { engine.remove_patiently(&container).await });
        }
    }

    fn cluster(&self) -> Option<ClusterId> {
        *lock(&self.cluster)
    }

    fn tell(&self, id: AttemptId, fact: RuntimeFact) {
        // Nobody listens when the agent is about to end: then its next life finds the container.
        _ = self.facts.send((id, fact));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
