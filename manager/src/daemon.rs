//! The manager's life: everything that it starts, and the order in which it stops.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crossbeam_channel::bounded;
use podmesh_manager_core::{Core, CoreConfig};
use podmesh_protocol::ids::InstanceId;
use podmesh_protocol::limits::STORE_QUEUE_STEPS;
use podmesh_wire::WireError;
use podmesh_wire::control::{ManagerReceiver, ManagerSender, ManagerSocket};
use podmesh_wire::front::{Front, FrontConfig, HeartbeatStream};
use podmesh_wire::key::digest_of;
use podmesh_wire::machine;
use podmesh_wire::manager_keys::{ManagerKeys, ShownKeys};
use podmesh_wire::publish::Publisher;
use podmesh_wire::watchdog::{BEAT_EVERY, Pulse, Watchdog, Watching};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use uuid::Uuid;

use crate::callers::Callers;
use crate::clock::{Clock, millis};
use crate::config::{ManagerConfig, ManagerError};
use crate::endpoint::{ENDPOINT_FILE, Endpoint};
use crate::heartbeat::Heartbeats;
use crate::log_reads::LogReads;
use crate::own_key::OwnKey;
use crate::publisher::{self, Beacon, Hints};
use crate::requests::{Manager, Questions};
use crate::store::{Closing, Store, StoreError};
use crate::threads::{Inputs, Part, Reads, run_core, run_reads, yield_to_others};
use crate::tokens::Tokens;
use crate::waiters::Waiters;
use crate::{data_dir, router, sender, store};

/// The folder in the data directory for sockets between the front and ZeroMQ.
const PRIVATE_DIR: &str = "private";
/// Threads for TLS and the guard.
const FRONT_THREADS: usize = 2;
/// Commits whose effects wait for the sender at the most; then the store waits, too.
const COMMITS_MAX: usize = 16;
/// How long requests that are held may take to be answered when the manager stops.
const HELD_LIMIT: Duration = Duration::from_secs(3);
/// How long the sockets stay when all is sent: what is queued in them leaves on its own.
const LINGER: Duration = Duration::from_millis(100);

/// Runs a manager until `shutdown` is done. `ready` is called once it serves.
///
/// A stop is orderly: what was read is committed, and its replies are sent. When this future is
/// dropped instead, or the process dies, a later start recovers: nothing that was acknowledged is
/// lost.
///
/// # Errors
/// When it cannot start, or when a part of it fails; the disk, for instance. It has stopped then.
pub async fn run(
    config: ManagerConfig,
    ready: impl FnOnce(Endpoint),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ManagerError> {
    config.validate()?;
    machine::raise_open_files();
    let data_dir = config.data_dir.clone();
    // Opening may take long: a log to recover after a kill.
    let (lock, store) = tokio::task::spawn_blocking(move || {
        let lock = data_dir::lock(&data_dir)?;
        Ok::<_, ManagerError>((lock, store::open(&data_dir)?))
    })
    .await
    .map_err(|_| ManagerError::Ended { part: "store" })??;
    let keys = ManagerKeys::load_or_create(&config.data_dir)?;
    let shown = ShownKeys::new(&keys).map_err(|source| ManagerError::Listen { source })?;
    let sockets = Sockets::bind(&config, shown.clone()).await?;
    let endpoint = Endpoint {
        address: sockets.front.address(),
        sockets: config.sockets_dir.clone(),
        key: digest_of(&keys.current.public()).to_string(),
        pid: std::process::id(),
        instance: InstanceId(Uuid::new_v4()),
        cluster: store.snapshot.cluster,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let closing = Arc::new(Closing::new(&config.data_dir, lock));
    let mut parts = Parts::start(&config, &endpoint, store, sockets, shown, closing)?;
    let file = endpoint
        .write(&config.data_dir)
        .map_err(|e| data_dir::cannot_write(&config.data_dir, ENDPOINT_FILE, e))?;
    tracing::info!(address = %endpoint.address, cluster = %endpoint.cluster, "the manager serves");
    ready(endpoint);
    let result = tokio::select! {
        error = parts.failed() => Err(error),
        () = shutdown => Ok(()),
    };
    // From here on nobody is to find it.
    drop(file);
    match result {
        Ok(()) => parts.stop().await,
        Err(error) => {
            tracing::error!(%error, "the manager stops");
            Err(error)
        }
    }
}

/// The listeners.
struct Sockets {
    front: Front,
    heartbeats: mpsc::UnboundedReceiver<HeartbeatStream>,
    control: ManagerSocket,
    publisher: Publisher,
}

impl Sockets {
    async fn bind(config: &ManagerConfig, keys: ShownKeys) -> Result<Self, ManagerError> {
        let listen = |source| ManagerError::Listen { source };
        let (heartbeats_sender, heartbeats) = mpsc::unbounded_channel();
        let (front, inner) = Front::bind(FrontConfig {
            listen: config.listen,
            keys,
            local_dir: config.sockets_dir.clone(),
            group: config.sockets_group,
            private_dir: config.data_dir.join(PRIVATE_DIR),
            heartbeats: heartbeats_sender,
        })
        .map_err(listen)?;
        let control = ManagerSocket::bind(inner.control).await.map_err(listen)?;
        let publisher = Publisher::bind(inner.publications).await.map_err(listen)?;
        Ok(Self { front, heartbeats, control, publisher })
    }
}

/// Everything that runs. Dropped, the tasks end at once, and with them the threads.
struct Parts {
    manager: Arc<Manager>,
    /// Until the stop, which takes its time.
    watching: Option<Watching>,
    stopping: watch::Sender<bool>,
    core: Part<()>,
    store: Part<Result<(), StoreError>>,
    reads: Part<Result<(), StoreError>>,
    lookups: Part<Result<(), StoreError>>,
    heartbeats: Part<std::io::Result<()>>,
    front: Part<std::io::Result<()>>,
    /// Dropped, it ends the front.
    front_stop: Option<oneshot::Sender<()>>,
    router: Task<Result<(JoinSet<()>, ManagerReceiver), WireError>>,
    sender: Task<ManagerSender>,
    publisher: Task<Publisher>,
    stop_publisher: watch::Sender<bool>,
}

impl Drop for Parts {
    fn drop(&mut self) {
        // These threads hold the means to be told something themselves: nothing else ends them.
        // The core ends the store with it, and the reader goes with the last task.
        self.manager.heartbeats.stop();
        self.manager.inputs.stop();
    }
}

/// The whole life of the front's thread: with a runtime of its own, so that a flood of strangers
/// and the work of TLS do not hold up anything else.
fn run_front(
    front: Front,
    callers: Callers,
    stopped: oneshot::Receiver<()>,
    pulse: Pulse,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(FRONT_THREADS)
        .thread_name("podmesh-front")
        .enable_all()
        .build()?;
    let beats = async move {
        loop {
            pulse.beat();
            tokio::time::sleep(BEAT_EVERY).await;
        }
    };
    // On a worker, as the connections are.
    runtime.spawn(beats);
    let result = runtime.block_on(async {
        tokio::select! {
            result = front.run(Arc::new(callers)) => result,
            _ = stopped => Ok(()),
        }
    });
    // The connections end now, each when what waits for its peer has left.
    runtime.block_on(async { tokio::time::sleep(LINGER).await });
    runtime.shutdown_background();
    result
}

/// A task that ends when this is dropped.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn ended(part: &'static str) -> impl Fn(JoinError) -> ManagerError {
    move |_| ManagerError::Ended { part }
}

impl Parts {
    fn start(
        config: &ManagerConfig,
        endpoint: &Endpoint,
        store: Store,
        sockets: Sockets,
        shown: ShownKeys,
        closing: Arc<Closing>,
    ) -> Result<Self, ManagerError> {
        let clock = Clock::start();
        let (lease_ms, heartbeat_ms) = (millis(config.lease), millis(config.heartbeat));
        let core_config =
            CoreConfig { lease_ms, heartbeat_ms, margin_ms: millis(config.lease_margin) };
        let mut watchdog = Watchdog::default();
        let Store { writer, history, lookups, snapshot } = store;
        let (inputs, inputs_receiver) = Inputs::new();
        let (reads, reads_receiver) = Reads::new();
        let (lookups_sender, lookups_receiver) = Reads::new();
        let heartbeats = Heartbeats::new(clock, inputs.clone(), heartbeat_ms, lease_ms);
        let (stopping, stopping_receiver) = watch::channel(false);
        let last_revision: Arc<AtomicU64> = writer.last_revision();
        let life = <[u8; 8]>::try_from(&endpoint.instance.0.as_bytes()[..8]).unwrap_or_default();
        let keys = snapshot.keys.iter().filter(|row| !row.revoked);
        let keys = keys.map(|row| (row.key, row.role, row.name.clone(), row.renews.is_some()));
        let callers = Callers::new(endpoint.cluster, life, keys, inputs.clone());
        let writer_stopping = stopping_receiver.clone();
        let manager = Arc::new(Manager {
            data_dir: config.data_dir.clone(),
            priority_max: config.priority_max,
            cluster: endpoint.cluster,
            instance: endpoint.instance,
            program_version: endpoint.version.clone(),
            tokens: Tokens::new(config, endpoint.address),
            own_key: OwnKey::new(config.data_dir.clone(), shown, endpoint.clone()),
            clock,
            callers: callers.clone(),
            last_revision: Arc::clone(&last_revision),
            inputs,
            reads,
            lookups: lookups_sender,
            heartbeats: heartbeats.clone(),
            hints: Arc::new(Hints::default()),
            log_reads: LogReads::default(),
            waiters: Waiters::default(),
            questions: Questions::default(),
            stopping: stopping_receiver,
        });

        let (steps, steps_receiver) = bounded(STORE_QUEUE_STEPS);
        let (committed, committed_receiver) = mpsc::channel(COMMITS_MAX);
        let writing = Arc::clone(&closing);
        let pulse = watchdog.pulse("store");
        let store = Part::start("podmesh-store", move || {
            let result = writer.run(&steps_receiver, &committed, &writer_stopping, &pulse);
            writing.closed(result.is_ok());
            result
        })?;
        let pulse = watchdog.pulse("core");
        let core = Part::start("podmesh-core", move || {
            let core = Core::new(clock.now(), core_config, snapshot);
            run_core(core, clock, &inputs_receiver, &steps, &pulse);
        })?;
        let reading = Arc::clone(&closing);
        let reads = Part::start("podmesh-reads", move || {
            yield_to_others();
            let result = run_reads(history, &reads_receiver);
            reading.closed(result.is_ok());
            result
        })?;
        let lookups = Part::start("podmesh-lookups", move || {
            let result = run_reads(lookups, &lookups_receiver);
            closing.closed(result.is_ok());
            result
        })?;
        let Sockets { front, heartbeats: streams, control, publisher } = sockets;
        let heartbeats = Part::start("podmesh-beats", move || heartbeats.run(streams))?;
        let (front_stop, front_stopped) = oneshot::channel();
        let pulse = watchdog.pulse("front");
        let front =
            Part::start("podmesh-front", move || run_front(front, callers, front_stopped, pulse))?;

        let (receiver, sender) = control.split();
        let router = tokio::spawn(router::run(
            Arc::clone(&manager),
            receiver,
            sender.clone(),
            watchdog.pulse("router"),
        ));
        let sender = tokio::spawn(sender::run(
            Arc::clone(&manager),
            sender,
            committed_receiver,
            watchdog.pulse("sender"),
        ));
        let beacon =
            Beacon { instance: endpoint.instance, last_revision, interval: config.heartbeat };
        let (stop_publisher, mut stopped) = watch::channel(false);
        let hints = Arc::clone(&manager.hints);
        let publisher = tokio::spawn(publisher::run(publisher, hints, beacon, async move {
            _ = stopped.wait_for(|stopped| *stopped).await;
        }));
        let watching = watchdog
            .start()
            .map_err(|source| ManagerError::Thread { name: "podmesh-watch", source })?;
        Ok(Self {
            manager,
            watching: Some(watching),
            stopping,
            core,
            store,
            reads,
            lookups,
            heartbeats,
            front,
            front_stop: Some(front_stop),
            router: Task(router),
            sender: Task(sender),
            publisher: Task(publisher),
            stop_publisher,
        })
    }

    /// The first part that ends though nobody stopped it, and why.
    async fn failed(&mut self) -> ManagerError {
        let ended = |part| ManagerError::Ended { part };
        tokio::select! {
            // When the store fails, others end for it: its word counts.
            biased;
            result = self.store.ended() => match result {
                Ok(Ok(())) => ended("podmesh-store"),
                Ok(Err(error)) => error.into(),
                Err(error) => error,
            },
            result = self.core.ended() => self.core_ended(result).await,
            result = self.reads.ended() => match result {
                Ok(Ok(())) => ended("podmesh-reads"),
                Ok(Err(error)) => error.into(),
                Err(error) => error,
            },
            result = self.lookups.ended() => match result {
                Ok(Ok(())) => ended("podmesh-lookups"),
                Ok(Err(error)) => error.into(),
                Err(error) => error,
            },
            result = self.heartbeats.ended() => match result {
                Ok(Ok(())) => ended("podmesh-beats"),
                Ok(Err(source)) => ManagerError::Thread { name: "podmesh-beats", source },
                Err(error) => error,
            },
            result = self.front.ended() => match result {
                Ok(Ok(())) => ended("podmesh-front"),
                Ok(Err(source)) => ManagerError::Thread { name: "podmesh-front", source },
                Err(error) => error,
            },
            result = &mut self.router.0 => match result {
                Ok(Err(error)) => error.into(),
                Ok(Ok(_)) | Err(_) => ended("router"),
            },
            _ = &mut self.sender.0 => ended("sender"),
            _ = &mut self.publisher.0 => ended("publisher"),
        }
    }

    /// The core ends by itself when the store has failed and says why, or by a panic.
    async fn core_ended(&mut self, result: Result<(), ManagerError>) -> ManagerError {
        match (result, self.store.ended().await) {
            (_, Ok(Err(error))) => error.into(),
            (Err(error), _) | (Ok(()), Err(error)) => error,
            (Ok(()), Ok(Ok(()))) => ManagerError::Ended { part: "podmesh-core" },
        }
    }

    /// Stops: first what comes in, then the core, then the store, then what goes out.
    async fn stop(mut self) -> Result<(), ManagerError> {
        tracing::info!("the manager stops");
        drop(self.watching.take());
        self.stopping.send_replace(true);
        let (mut held, receiver) = (&mut self.router.0).await.map_err(ended("router"))??;
        // What was asked is still answered, for which the core and the reader must go on.
        let all_answered = async { while held.join_next().await.is_some() {} };
        if tokio::time::timeout(HELD_LIMIT, all_answered).await.is_err() {
            tracing::warn!("requests were left without an answer");
        }
        // Submissions are looked up first: those before this are with the core now.
        _ = self.manager.lookups.run(|_| Ok(())).await;
        self.manager.inputs.stop();
        self.core.ended().await?;
        self.store.ended().await??;
        let sender = (&mut self.sender.0).await.map_err(ended("sender"))?;
        self.manager.reads.stop();
        self.reads.ended().await??;
        self.manager.lookups.stop();
        self.lookups.ended().await??;
        self.stop_publisher.send_replace(true);
        let publisher = (&mut self.publisher.0).await.map_err(ended("publisher"))?;
        self.manager.heartbeats.stop();
        match self.heartbeats.ended().await? {
            Ok(()) => {}
            Err(source) => return Err(ManagerError::Thread { name: "podmesh-beats", source }),
        }
        tokio::time::sleep(LINGER).await;
        drop(self.front_stop.take());
        match self.front.ended().await? {
            Ok(()) => {}
            Err(source) => return Err(ManagerError::Thread { name: "podmesh-front", source }),
        }
        drop((publisher, receiver, sender));
        tracing::info!("the manager has stopped");
        Ok(())
    }
}
