//! The manager's daemon: everything that it starts, and the order in which it stops.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::bounded;
use podmesh_http::Server;
use podmesh_manager_core::{Core, CoreConfig};
use podmesh_protocol::ids::{InstanceId, Name, Revision};
use podmesh_protocol::limits::STORE_QUEUE_STEPS;
use podmesh_wire::WireError;
use podmesh_wire::control::{ManagerReceiver, ManagerSocket};
use podmesh_wire::front::{Front, FrontConfig};
use podmesh_wire::key::digest_of;
use podmesh_wire::machine;
use podmesh_wire::manager_keys::{ManagerKeys, ShownKeys};
use podmesh_wire::publish::Publisher;
use podmesh_wire::watchdog::{BEAT_EVERY, Pulse, Watchdog, Watching};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use uuid::Uuid;

use crate::api::{self, Api, Identity, Measured};
use crate::api_tokens::ApiTokens;
use crate::callers::{Callers, Ours, RunId};
use crate::clock::{Clock, millis};
use crate::config::{ManagerConfig, ManagerError};
use crate::core::{CoreHandle, CoreThread};
use crate::endpoint::{ENDPOINT_FILE, Endpoint};
use crate::heartbeat::Heartbeats;
use crate::http::{self, ManagerDoor, Shared};
use crate::log_reads::LogReads;
use crate::messages::Messages;
use crate::metrics::EventCounts;
use crate::own_key::OwnKey;
use crate::publisher::{self, Beacon, Hints};
use crate::retention::Sweeper;
use crate::router::RouterParts;
use crate::sender::Sender;
use crate::store::{Closing, Store, StoreError};
use crate::submission_rate::SubmissionLimit;
use crate::threads::{ManagerThread, Reads, run_reads, yield_to_others};
use crate::tokens::Tokens;
use crate::traces::{self, Exporter, SpanCounts};
use crate::turns::Turns;
use crate::waiters::Waiters;
use crate::{data_dir, router, store};

/// The folder in the data directory for the sockets between the front and ZeroMQ.
const PRIVATE_DIR: &str = "private";
/// The number of threads for TLS and the guard.
const FRONT_THREADS: usize = 2;
/// The most commits whose effects wait for the sender. When it is reached, the store waits, too.
const COMMITS_MAX: usize = 16;
/// How long the manager waits for replies to waiting requests when it stops.
const HELD_LIMIT: Duration = Duration::from_secs(3);
/// How long the sockets stay open after everything is sent, so that their queues can empty.
const LINGER: Duration = Duration::from_millis(100);

/// Runs a manager until `shutdown` is done. `ready` is called once it serves.
///
/// A stop is orderly: received requests are committed and their replies are sent. If this future is
/// dropped, or the process dies, a later start recovers. Nothing that was acknowledged is lost.
///
/// # Errors
/// Fails if the manager cannot start, or if a part of it fails, such as the disk. It has stopped
/// then.
pub fn run<'a>(
    config: ManagerConfig,
    ready: impl FnOnce(Endpoint) + Send + 'a,
    shutdown: impl Future<Output = ()> + Send + 'a,
) -> Running<'a> {
    run_until(config, Box::new(ready), Box::pin(shutdown))
}

type Running<'a> = Pin<Box<dyn Future<Output = Result<(), ManagerError>> + Send + 'a>>;
type Ready<'a> = Box<dyn FnOnce(Endpoint) + Send + 'a>;
type Shutdown<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Not generic, and boxed, so that the whole manager is compiled in this crate, and not again in its
/// callers.
fn run_until<'a>(config: ManagerConfig, ready: Ready<'a>, shutdown: Shutdown<'a>) -> Running<'a> {
    Box::pin(run_all(config, ready, shutdown))
}

async fn run_all(
    config: ManagerConfig,
    ready: Ready<'_>,
    shutdown: Shutdown<'_>,
) -> Result<(), ManagerError> {
    config.validate()?;
    machine::raise_open_files();
    let data_dir = config.data_dir.clone();
    // Opening can take long, for instance to recover the log after a kill.
    let (lock, store) = tokio::task::spawn_blocking(move || {
        let lock = data_dir::lock(&data_dir)?;
        Ok::<_, ManagerError>((lock, store::open(&data_dir)?))
    })
    .await
    .map_err(|_| ManagerError::Ended { part: "store" })??;
    let keys = ManagerKeys::load_or_create(&config.data_dir)?;
    let shown = ShownKeys::new(&keys).map_err(|source| ManagerError::Listen { source })?;
    let sockets = Sockets::bind(&config, shown.clone()).await?;
    let server = http::bind(&config)?;
    let endpoint = Endpoint {
        address: sockets.front.address(),
        sockets: config.sockets_dir.clone(),
        key: digest_of(&keys.current.public()).to_string(),
        pid: std::process::id(),
        instance: InstanceId(Uuid::new_v4()),
        cluster: store.state.cluster,
        version: env!("CARGO_PKG_VERSION").into(),
        http: server.address(),
    };
    let closing = Arc::new(Closing::new(&config.data_dir, lock));
    let mut parts = Parts::start(&config, &endpoint, store, (sockets, server), shown, closing)?;
    let file = endpoint
        .write(&config.data_dir)
        .map_err(|e| data_dir::cannot_write(&config.data_dir, ENDPOINT_FILE, e))?;
    tracing::info!(address = %endpoint.address, http = ?endpoint.http, cluster = %endpoint.cluster, "the manager is ready");
    ready(endpoint);
    let result = tokio::select! {
        error = parts.failed() => Err(error),
        () = shutdown => Ok(()),
    };
    // New clients must not find a stopping manager.
    drop(file);
    match result {
        Ok(()) => parts.stop().await,
        Err(error) => {
            tracing::error!(%error, "the manager is stopping");
            Err(error)
        }
    }
}

/// The listeners.
struct Sockets {
    front: Front,
    control: ManagerSocket,
    publisher: Publisher,
}

impl Sockets {
    async fn bind(config: &ManagerConfig, keys: ShownKeys) -> Result<Self, ManagerError> {
        let listen = |source| ManagerError::Listen { source };
        let (front, inner) = Front::bind(FrontConfig {
            listen: config.listen,
            keys,
            local_dir: config.sockets_dir.clone(),
            group: config.sockets_group,
            private_dir: config.data_dir.join(PRIVATE_DIR),
        })
        .map_err(listen)?;
        let control = ManagerSocket::bind(inner.control).await.map_err(listen)?;
        let publisher = Publisher::bind(inner.publications).await.map_err(listen)?;
        Ok(Self { front, control, publisher })
    }
}

/// The running parts. Dropping them ends the tasks at once, and with them the threads.
struct Parts {
    handles: Handles,
    /// `None` during a stop, which may take long.
    watching: Option<Watching>,
    stopping: watch::Sender<bool>,
    core: ManagerThread<()>,
    store: ManagerThread<Result<(), StoreError>>,
    reads: ManagerThread<Result<(), StoreError>>,
    lookups: ManagerThread<Result<(), StoreError>>,
    heartbeats: ManagerThread<std::io::Result<()>>,
    front: ManagerThread<std::io::Result<()>>,
    /// Dropping it ends the front.
    front_stop: Option<oneshot::Sender<()>>,
    http: ManagerThread<std::io::Result<()>>,
    /// Until the stop.
    retention: Option<Task<()>>,
    router: Task<Result<(JoinSet<()>, ManagerReceiver), WireError>>,
    sender: Task<Messages>,
    publisher: Task<Publisher>,
    stop_publisher: watch::Sender<bool>,
}

/// The handles by which the parts are stopped.
struct Handles {
    core: CoreHandle,
    reads: Reads,
    lookups: Reads,
    heartbeats: Heartbeats,
}

impl Drop for Parts {
    fn drop(&mut self) {
        // These threads hold senders to their own channels, so nothing else ends them. The end of
        // the core ends the store, and the end of the last task ends the readers.
        self.handles.heartbeats.stop();
        self.handles.core.stop();
    }
}

/// Runs the front's thread. It has its own runtime, so that a flood of connections and the work of
/// TLS do not delay anything else.
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
    // On the worker threads, like the connections: a message that a connection hands on does not
    // wake another thread.
    runtime.spawn(beats);
    let serving = runtime.spawn(async {
        tokio::select! {
            result = front.run(Arc::new(callers)) => result,
            _ = stopped => Ok(()),
        }
    });
    let result =
        runtime.block_on(serving).unwrap_or_else(|error| Err(std::io::Error::other(error)));
    // Connections end now, each after it has sent what waits for its peer.
    runtime.block_on(async { tokio::time::sleep(LINGER).await });
    runtime.shutdown_background();
    result
}

/// A task that is aborted when this is dropped.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn ended(part: &'static str) -> impl Fn(JoinError) -> ManagerError {
    move |_| ManagerError::Ended { part }
}

/// The name that events give for what the manager does by itself.
#[expect(clippy::expect_used, reason = "letters are a name")]
fn own_name() -> Name {
    "manager".parse().expect("a valid name")
}

impl Parts {
    fn start(
        config: &ManagerConfig,
        endpoint: &Endpoint,
        store: Store,
        (sockets, server): (Sockets, Server),
        shown: ShownKeys,
        closing: Arc<Closing>,
    ) -> Result<Self, ManagerError> {
        let clock = Clock::start(store.age_ms);
        let (lease_ms, heartbeat_ms) = (millis(config.lease), millis(config.heartbeat));
        let (margin_ms, versions) = (millis(config.lease_margin), config.versions);
        let core_config = CoreConfig { lease_ms, heartbeat_ms, margin_ms, versions };
        let mut watchdog = Watchdog::default();
        let Store { writer, history, lookups: lookups_history, state, .. } = store;
        let (core, core_receiver) = CoreHandle::new();
        let (reads, reads_receiver) = Reads::new();
        let (lookups, lookups_receiver) = Reads::new();
        let heartbeats = Heartbeats::new(clock, core.clone(), heartbeat_ms, lease_ms);
        let (stopping, stopping_receiver) = watch::channel(false);
        let last_revision: Arc<AtomicU64> = writer.last_revision();
        let (instance, _) = endpoint.instance.0.as_u64_pair();
        let run = RunId(instance.to_be_bytes());
        let keys = state.keys.values().filter(|row| !row.revoked);
        let keys = keys.map(|row| (row.key, row.role, row.name.clone(), row.renews.is_some()));
        let ours = Ours { cluster: endpoint.cluster, run, versions };
        let callers = Callers::new(ours, keys, core.clone(), heartbeats.clone());
        let api_tokens = ApiTokens::new(clock, core.clone());
        for row in state.tokens.values().filter(|row| row.api && !row.revoked) {
            api_tokens.created(row.id, row.secret_hash, row.role, row.expires_wall_ms);
        }
        let Sockets { front, control, publisher } = sockets;
        let (receiver, sender) = control.split();
        let messages = Messages::new(sender, run);
        let (hints, log_reads) = (Arc::new(Hints::default()), Arc::new(LogReads::default()));
        let (waiters, turns) = (Arc::new(Waiters::default()), Arc::new(Turns::new()));
        let (counts, spans) = (Arc::new(EventCounts::default()), Arc::<SpanCounts>::default());
        let handles = Handles {
            core: core.clone(),
            reads: reads.clone(),
            lookups: lookups.clone(),
            heartbeats: heartbeats.clone(),
        };
        let api = Api::new(api::Parts {
            identity: Identity {
                cluster: endpoint.cluster,
                instance: endpoint.instance,
                version: versions.newest,
                program_version: endpoint.version.clone(),
                last_revision: Arc::clone(&last_revision),
                clock,
            },
            data_dir: config.data_dir.clone(),
            priority_max: config.priority_max,
            submissions: SubmissionLimit::new(config.submissions_per_caller),
            tokens: Tokens::new(config, endpoint.address),
            own_key: OwnKey::new(config.data_dir.clone(), shown, endpoint.clone()),
            callers: callers.clone(),
            core: core.clone(),
            reads: reads.clone(),
            lookups,
            messages: messages.clone(),
            log_reads: Arc::clone(&log_reads),
            waiters: Arc::clone(&waiters),
            turns: Arc::clone(&turns),
            measured: Measured {
                events: Arc::clone(&counts),
                store: writer.measures(),
                heartbeats: heartbeats.clone(),
                spans: Arc::clone(&spans),
            },
            ended_jobs: Default::default(),
            stopping: stopping_receiver.clone(),
        });

        let (steps, steps_receiver) = bounded(STORE_QUEUE_STEPS);
        let (committed, committed_receiver) = mpsc::channel(COMMITS_MAX);
        let (writing, writer_stopping) = (Arc::clone(&closing), stopping_receiver.clone());
        let pulse = watchdog.pulse("store");
        let store = ManagerThread::start("podmesh-store", move || {
            let result = writer.run(&steps_receiver, &committed, &writer_stopping, &pulse);
            writing.closed(result.is_ok());
            result
        })?;
        let pulse = watchdog.pulse("core");
        let core_thread = ManagerThread::start("podmesh-core", move || {
            let core = Core::new(clock.now(), core_config, state);
            CoreThread { core, clock, receiver: core_receiver, store: steps, pulse }.run();
        })?;
        let reading = Arc::clone(&closing);
        let reads_thread = ManagerThread::start("podmesh-reads", move || {
            yield_to_others();
            let result = run_reads(history, &reads_receiver);
            reading.closed(result.is_ok());
            result
        })?;
        let lookups_thread = ManagerThread::start("podmesh-lookups", move || {
            let result = run_reads(lookups_history, &lookups_receiver);
            closing.closed(result.is_ok());
            result
        })?;
        let beats = heartbeats.clone();
        let heartbeats_thread = ManagerThread::start("podmesh-beats", move || beats.run())?;
        let (front_stop, front_stopped) = oneshot::channel();
        let pulse = watchdog.pulse("front");
        let gate = callers.clone();
        let front = ManagerThread::start("podmesh-front", move || {
            run_front(front, gate, front_stopped, pulse)
        })?;

        let (revisions, revisions_receiver) =
            watch::channel(Revision(last_revision.load(Ordering::Acquire)));
        let door = ManagerDoor {
            shared: Shared { api: api.clone(), core: core.clone(), tokens: api_tokens.clone() },
            callers: callers.clone(),
            turns: Arc::clone(&turns),
            reads: reads.clone(),
            feed: http::feed_reads(),
            revisions: revisions_receiver,
            data_dir: config.data_dir.clone(),
        };
        let connections = config.otlp.as_ref().map(traces::connections).transpose();
        let connections = connections.map_err(Box::new)?;
        let collector = config.otlp.clone().zip(connections);
        let exporter = collector.map(|(collector, connections)| Exporter {
            collector,
            connections,
            cluster: endpoint.cluster,
            reads: reads.clone(),
            turns: Arc::clone(&turns),
            line: http::feed_reads(),
            revisions: door.revisions.clone(),
            counts: spans,
        });
        let until = stopping_receiver.clone();
        let http =
            ManagerThread::start("podmesh-http", move || http::run(server, door, exporter, until))?;

        let router = RouterParts {
            api: api.clone(),
            core: core.clone(),
            callers: callers.clone(),
            log_reads: Arc::clone(&log_reads),
            messages: messages.clone(),
            versions,
            stopping: stopping_receiver,
        };
        let router = tokio::spawn(router::run(router, receiver, watchdog.pulse("router")));
        let sweeper = Sweeper {
            api,
            core: core.clone(),
            reads,
            clock,
            kept: config.retention.clone(),
            by: own_name(),
        };
        let published = Arc::clone(&hints);
        let sender = Sender {
            messages,
            core,
            callers,
            api_tokens,
            heartbeats,
            log_reads,
            hints,
            counts,
            revisions,
            waiters,
            turns,
        };
        let sender = tokio::spawn(sender.run(committed_receiver, watchdog.pulse("sender")));
        let beacon =
            Beacon { instance: endpoint.instance, last_revision, heartbeat: config.heartbeat };
        let (stop_publisher, mut stopped) = watch::channel(false);
        let publisher = tokio::spawn(publisher::run(publisher, published, beacon, async move {
            _ = stopped.wait_for(|stopped| *stopped).await;
        }));
        let retention = tokio::spawn(sweeper.run());
        let watching = watchdog
            .start()
            .map_err(|source| ManagerError::Thread { name: "podmesh-watch", source })?;
        Ok(Self {
            handles,
            watching: Some(watching),
            stopping,
            core: core_thread,
            store,
            reads: reads_thread,
            lookups: lookups_thread,
            heartbeats: heartbeats_thread,
            front,
            front_stop: Some(front_stop),
            http,
            retention: Some(Task(retention)),
            router: Task(router),
            sender: Task(sender),
            publisher: Task(publisher),
            stop_publisher,
        })
    }

    /// Waits until a part ends unexpectedly, and returns why.
    async fn failed(&mut self) -> ManagerError {
        let ended = |part| ManagerError::Ended { part };
        tokio::select! {
            // If the store fails, other parts end because of it, so its error comes first.
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
            result = self.http.ended() => match result {
                Ok(Ok(())) => ended("podmesh-http"),
                Ok(Err(source)) => ManagerError::Thread { name: "podmesh-http", source },
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

    /// Returns why the core has ended: because the store has failed, or by a panic.
    async fn core_ended(&mut self, result: Result<(), ManagerError>) -> ManagerError {
        match (result, self.store.ended().await) {
            (_, Ok(Err(error))) => error.into(),
            (Err(error), _) | (Ok(()), Err(error)) => error,
            (Ok(()), Ok(Ok(()))) => ManagerError::Ended { part: "podmesh-core" },
        }
    }

    /// Stops the parts in order: first the inputs, then the core, the store, and the outputs.
    async fn stop(mut self) -> Result<(), ManagerError> {
        tracing::info!("the manager is stopping");
        drop((self.watching.take(), self.retention.take()));
        self.stopping.send_replace(true);
        let (mut held, receiver) = (&mut self.router.0).await.map_err(ended("router"))??;
        // Waiting requests are still answered, for which the core and the reader must run.
        let all_answered = async { while held.join_next().await.is_some() {} };
        if tokio::time::timeout(HELD_LIMIT, all_answered).await.is_err() {
            tracing::warn!("some requests were not answered before the stop");
        }
        match self.http.ended().await? {
            Ok(()) => {}
            Err(source) => return Err(ManagerError::Thread { name: "podmesh-http", source }),
        }
        // Submissions are looked up before they go to the core. After this read, the core has all.
        _ = self.handles.lookups.run(|_| Ok(())).await;
        self.handles.core.stop();
        self.core.ended().await?;
        self.store.ended().await??;
        let messages = (&mut self.sender.0).await.map_err(ended("sender"))?;
        self.handles.reads.stop();
        self.reads.ended().await??;
        self.handles.lookups.stop();
        self.lookups.ended().await??;
        self.stop_publisher.send_replace(true);
        let publisher = (&mut self.publisher.0).await.map_err(ended("publisher"))?;
        self.handles.heartbeats.stop();
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
        drop((publisher, receiver, messages));
        tracing::info!("the manager has stopped");
        Ok(())
    }
}
