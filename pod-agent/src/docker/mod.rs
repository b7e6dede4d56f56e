//! The `docker` runtime: attempts as containers of a Docker engine.
//!
//! - `engine.rs`: calls to the engine, each with a deadline;
//! - `container.rs`: a container's labels, name and configuration, within the node's policy;
//! - `mounts.rs`: which mounts are allowed; `stage.rs`: keeps them unchanged until they are
//!   mounted;
//! - `attempt.rs`: the life of one attempt; `pull.rs`: pulls missing images; `registry.rs`: the
//!   credentials for that; `adopt.rs`: finds containers after a restart of the agent;
//! - `checks.rs`: what the health checks of replicas need;
//! - `networks.rs`, `volumes.rs`: what containers share on this node;
//! - `files.rs`: the files that a job contains;
//! - `inventory.rs`: lists images and containers.
//!
//! Output is captured separately, see [`Captures`]: a container starts only when the capture is
//! attached, and its end is reported only after the last byte.
//!
//! A container's name and labels identify its attempt. So creating it twice gives one container,
//! and a restarted agent finds it. It is kept until [`DockerRuntime::remove`]. Containers without
//! our labels and our name are never touched.

mod adopt;
mod attempt;
mod checks;
mod container;
mod engine;
mod error;
mod files;
mod inventory;
mod mounts;
mod networks;
mod pull;
mod registry;
mod stage;
mod volumes;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use podmesh_agent_core::input::RuntimeFact;
use podmesh_agent_core::step::JobContext;
use podmesh_protocol::ids::{AttemptId, ClusterId, Name};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use uuid::Uuid;

pub(crate) use self::checks::ContainerChecks;
pub use self::error::DockerError;
pub use self::inventory::{bridge_gateway, containers, images};
pub(crate) use self::registry::config_dir;

use self::attempt::Attempt;
use self::engine::Engine;
use self::networks::Networks;
use self::pull::Pulls;
use self::stage::Stage;
use crate::capture::Captures;
use crate::health::{Place, Runs};
use crate::policy::NodePolicy;
use crate::ports::ReplicaPorts;
use crate::service_names::ServiceNames;

/// The runtime's settings.
#[derive(Clone, Debug)]
pub struct DockerSettings {
    /// The node's name.
    pub node: Name,
    /// The id of the agent's data directory. Containers have it in a label, so it must not change
    /// over restarts, and no two agents may share it.
    pub agent_id: Uuid,
    /// The agent's data directory. Never mounted.
    pub data_dir: PathBuf,
    /// What the node's owner allows.
    pub policy: NodePolicy,
    /// Captures the output of containers.
    pub captures: Captures,
    /// The ports of replicas.
    pub ports: Arc<ReplicaPorts>,
    /// The names of services.
    pub names: Arc<ServiceNames>,
    /// The folder of Docker's client configuration, with the credentials from `docker login`.
    pub docker_config: Option<PathBuf>,
}

/// Returns the version of the engine that an agent here would use.
///
/// # Errors
/// Why no engine can be used.
pub async fn engine_version() -> Result<String, DockerError> {
    Ok(Engine::connect().await?.version)
}

/// Runs attempts as containers. It reports facts about them on the channel given to
/// [`connect`](Self::connect).
///
/// Dropping it is like a crash of the agent: containers keep running unwatched, and
/// [`adopt`](Self::adopt) of a later runtime finds them.
#[derive(Debug)]
pub struct DockerRuntime {
    shared: Arc<Shared>,
    /// Pings the engine.
    watching: AbortHandle,
}

impl DockerRuntime {
    /// Connects to the engine in `DOCKER_HOST`, by default this machine's engine. Call it on the
    /// tokio runtime that will do the work.
    ///
    /// # Errors
    /// If no engine answers within 10 s.
    pub async fn connect(
        settings: DockerSettings,
        facts: mpsc::UnboundedSender<(AttemptId, RuntimeFact)>,
    ) -> Result<Self, DockerError> {
        let engine = Arc::new(Engine::connect().await?);
        let shared = Arc::new(Shared {
            engine,
            pulls: Arc::new(Pulls::new(settings.docker_config.clone())),
            stage: Stage::of(settings.agent_id),
            networks: Networks::new(settings.agent_id),
            settings,
            facts,
            runtime: Handle::current(),
            cluster: Mutex::default(),
            attempts: Mutex::default(),
        });
        let watching = Handle::current().spawn(Arc::clone(&shared.engine).watch()).abort_handle();
        Ok(Self { shared, watching })
    }

    /// Returns why nothing can be started now, if the engine does not answer.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.shared.engine.trouble()
    }

    /// Sets the cluster. Call it before the first [`start`](Self::start).
    pub fn set_cluster(&self, cluster: ClusterId) {
        *self.shared.cluster.lock() = Some(cluster);
    }

    /// Starts an attempt, unless it is already known. Reports [`RuntimeFact::Started`] if it
    /// starts, and always [`RuntimeFact::Ended`].
    pub fn start(&self, id: AttemptId, context: Arc<JobContext>) {
        if let Some(attempt) = self.shared.register(id, context.run.timeout_ms) {
            self.shared.run(id, attempt.run(context));
        }
    }

    /// Stops an attempt: sends its image's stop signal (SIGTERM by default), and SIGKILL after
    /// `grace_ms` milliseconds, rounded up to seconds; 0 kills at once. An attempt that has not
    /// started will not start. A second call with less grace shortens the first. The end is
    /// reported as usual.
    pub fn stop(&self, id: AttemptId, grace_ms: u64) {
        if let Some(known) = self.shared.attempts.lock().get(&id) {
            known.stop.send_if_modified(|grace| {
                let harder = grace.is_none_or(|grace| grace_ms < grace);
                if harder {
                    *grace = Some(grace_ms);
                }
                harder
            });
        }
    }

    /// Returns access to the container of an attempt for health checks; `None` if it has none.
    pub fn place(&self, id: AttemptId) -> Option<Place> {
        let container = self.shared.attempts.lock().get(&id)?.container.clone()?;
        let checks = ContainerChecks::new(Arc::clone(&self.shared.engine), container);
        Some(Place(Runs::Container(checks)))
    }

    /// Forgets an attempt whose end the manager knows, and removes its container with its anonymous
    /// volumes in the background, retrying until it is gone, and the files of its job. Keeps its
    /// logs.
    pub fn remove(&self, id: AttemptId) {
        let (shared, container) = (Arc::clone(&self.shared), self.shared.take_container(id));
        self.shared.runtime.spawn(async move {
            if let Some(container) = container {
                shared.engine.remove_patiently(&container).await;
            }
            shared.networks.leave(&shared.engine, id).await;
        });
        let shared = Arc::clone(&self.shared);
        self.shared.runtime.spawn_blocking(move || {
            if let Err(error) = files::remove(&shared.settings.data_dir, id) {
                tracing::warn!(attempt = %id, %error, "cannot remove the files of an attempt");
            }
        });
        self.shared.settings.captures.forget(id);
        if let Some(known) = self.shared.attempts.lock().remove(&id) {
            known.abort();
        }
    }
}

impl DockerRuntime {
    /// Removes named volumes with their data. Returns those that are gone, and why others are not.
    pub fn remove_volumes(
        &self,
        volumes: Vec<Name>,
    ) -> impl Future<Output = RemovedVolumes> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        async move {
            let mut done = RemovedVolumes::default();
            let Some(cluster) = shared.cluster() else { return done };
            for volume in volumes {
                match volumes::remove(&shared.engine, cluster, &volume).await {
                    Ok(()) => done.removed.push(volume),
                    Err(why) => _ = done.failed.insert(volume, why),
                }
            }
            done
        }
    }
}

/// What has become of volumes that had to be removed.
#[derive(Debug, Default)]
pub struct RemovedVolumes {
    /// Those that the node no longer has.
    pub removed: Vec<Name>,
    /// Why it still has the others.
    pub failed: BTreeMap<Name, String>,
}

impl Drop for DockerRuntime {
    fn drop(&mut self) {
        self.watching.abort();
        for (_, known) in self.shared.attempts.lock().drain() {
            known.abort();
        }
    }
}

/// State shared by all attempts.
#[derive(Debug)]
struct Shared {
    engine: Arc<Engine>,
    pulls: Arc<Pulls>,
    stage: Stage,
    networks: Networks,
    settings: DockerSettings,
    facts: mpsc::UnboundedSender<(AttemptId, RuntimeFact)>,
    runtime: Handle,
    cluster: Mutex<Option<ClusterId>>,
    attempts: Mutex<HashMap<AttemptId, KnownAttempt>>,
}

/// A known attempt, from its start to its removal.
#[derive(Debug)]
struct KnownAttempt {
    /// The grace in milliseconds, once a stop is requested.
    stop: watch::Sender<Option<u64>>,
    /// The id of its container, once created.
    container: Option<String>,
    task: Option<AbortHandle>,
}

impl KnownAttempt {
    fn abort(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Shared {
    /// A new attempt; none if it is known already.
    fn register(self: &Arc<Self>, id: AttemptId, timeout_ms: Option<u64>) -> Option<Attempt> {
        let mut attempts = self.attempts.lock();
        if attempts.contains_key(&id) {
            return None;
        }
        let (stop, stopped) = watch::channel(None);
        attempts.insert(id, KnownAttempt { stop, container: None, task: None });
        Some(Attempt { shared: Arc::clone(self), id, timeout_ms, stop: stopped })
    }

    /// Spawns the task of a registered attempt.
    fn run(&self, id: AttemptId, life: impl Future<Output = ()> + Send + 'static) {
        let mut attempts = self.attempts.lock();
        if let Some(known) = attempts.get_mut(&id) {
            known.task = Some(self.runtime.spawn(life).abort_handle());
        }
    }

    fn has_container(&self, id: AttemptId, container: &str) {
        if let Some(known) = self.attempts.lock().get_mut(&id) {
            known.container = Some(container.to_owned());
        }
    }

    /// Removes a container that did not start, so that another one can have its name.
    async fn discard_now(&self, id: AttemptId, container: &str) {
        if let Some(known) = self.attempts.lock().get_mut(&id) {
            known.container = None;
        }
        self.engine.remove_patiently(container).await;
    }

    /// Removes the container of an attempt, if it has one.
    fn discard(&self, id: AttemptId) {
        if let Some(container) = self.take_container(id) {
            let engine = Arc::clone(&self.engine);
            self.runtime.spawn(async move { engine.remove_patiently(&container).await });
        }
    }

    fn take_container(&self, id: AttemptId) -> Option<String> {
        self.attempts.lock().get_mut(&id).and_then(|known| known.container.take())
    }

    fn cluster(&self) -> Option<ClusterId> {
        *self.cluster.lock()
    }

    fn tell(&self, id: AttemptId, fact: RuntimeFact) {
        // Nobody listens when the agent is ending. It finds the container after its restart.
        _ = self.facts.send((id, fact));
    }
}
