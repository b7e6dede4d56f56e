//! Heartbeats: a listener and a thread of their own, so that nothing else in the manager makes a
//! node look dead.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use podmesh_manager_core::input::{HeartbeatChange, Input};
use podmesh_manager_core::lease::LeaseTable;
use podmesh_protocol::ids::Epoch;
use podmesh_wire::heartbeat::{Beat, read_beat, write_beat};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::threads::Inputs;

/// How long a new stream may take to its first beat, and an answer to leave.
const BEAT_LIMIT: Duration = Duration::from_secs(5);
/// Streams at a time that have not shown a live session yet.
const STRANGERS_MAX: usize = 256;
/// The wait after a connection could not be accepted: out of file descriptors, for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The sessions that are watched; shared with whoever opens and closes them.
#[derive(Clone)]
pub(crate) struct Heartbeats {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    inputs: Inputs,
    table: Mutex<Table>,
    /// The next wakeup has changed, or the thread is to end.
    changed: Notify,
}

struct Table {
    leases: LeaseTable,
    /// The sessions, each with its stream.
    sessions: HashMap<Epoch, Option<Stream>>,
    last_stream: u64,
    stopping: bool,
}

struct Stream {
    number: u64,
    task: AbortHandle,
}

impl Heartbeats {
    pub(crate) fn new(clock: Clock, inputs: Inputs, heartbeat_ms: u64, lease_ms: u64) -> Self {
        let table = Table {
            leases: LeaseTable::new(heartbeat_ms, lease_ms),
            sessions: HashMap::new(),
            last_stream: 0,
            stopping: false,
        };
        let shared = Shared { clock, inputs, table: Mutex::new(table), changed: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Watches a session from now on.
    pub(crate) fn open(&self, epoch: Epoch) {
        let mut table = self.shared.lock();
        table.leases.open(self.shared.clock.mono_ms(), epoch);
        table.sessions.insert(epoch, None);
        drop(table);
        self.shared.changed.notify_one();
    }

    /// Watches it no more, and drops its stream.
    pub(crate) fn close(&self, epoch: Epoch) {
        let mut table = self.shared.lock();
        table.leases.close(epoch);
        if let Some(Some(stream)) = table.sessions.remove(&epoch) {
            stream.task.abort();
        }
    }

    /// Lets the thread end.
    pub(crate) fn stop(&self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_one();
    }

    /// Takes heartbeats until [`Heartbeats::stop`]: the whole life of the thread.
    ///
    /// # Errors
    /// When the thread's own runtime cannot be made.
    pub(crate) fn run(&self, listener: TcpListener) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let accepting = tokio::spawn(accept(Arc::clone(&self.shared), listener));
            self.shared.watch().await;
            accepting.abort();
            Ok(())
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // No code that can panic runs while it is held.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, epoch: Epoch, change: HeartbeatChange) {
        self.inputs.tell(Input::HeartbeatChanged { epoch, change });
    }

    /// Notices silence.
    async fn watch(&self) {
        let mut changes = Vec::new();
        loop {
            let wakeup = {
                let mut table = self.lock();
                if table.stopping {
                    return;
                }
                let now_ms = self.clock.mono_ms();
                if table.leases.next_wakeup().is_some_and(|wakeup| wakeup <= now_ms) {
                    table.leases.tick(now_ms, &mut changes);
                }
                table.leases.next_wakeup()
            };
            for (epoch, change) in changes.drain(..) {
                self.tell(epoch, change);
            }
            let sleep = async {
                match wakeup {
                    Some(ms) => tokio::time::sleep_until(self.clock.instant(ms).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// The first beat of a stream: it takes the place of an older stream of the session. `None`
    /// when there is no such session.
    fn adopt(&self, epoch: Epoch, task: AbortHandle) -> Option<u64> {
        let change;
        let number;
        {
            let mut table = self.lock();
            let table = &mut *table;
            if !table.leases.watches(epoch) {
                return None;
            }
            let stream = table.sessions.get_mut(&epoch)?;
            table.last_stream += 1;
            number = table.last_stream;
            if let Some(older) = stream.replace(Stream { number, task }) {
                older.task.abort();
            }
            change = table.leases.on_beat(self.clock.mono_ms(), epoch);
        }
        if let Some(change) = change {
            self.tell(epoch, change);
        }
        Some(number)
    }

    /// A further beat. False when the stream is no longer that of the session.
    fn beat(&self, epoch: Epoch, number: u64) -> bool {
        let change = {
            let mut table = self.lock();
            // After its lease an answer would give the agent another one.
            if !table.is_stream(epoch, number) || !table.leases.watches(epoch) {
                return false;
            }
            table.leases.on_beat(self.clock.mono_ms(), epoch)
        };
        if let Some(change) = change {
            self.tell(epoch, change);
        }
        true
    }

    /// A stream has ended: that counts where no other one has taken its place.
    fn ended(&self, epoch: Epoch, number: u64) {
        let change = {
            let mut table = self.lock();
            if !table.is_stream(epoch, number) {
                return;
            }
            table.sessions.insert(epoch, None);
            table.leases.on_stream_closed(epoch)
        };
        if let Some(change) = change {
            self.tell(epoch, change);
        }
    }
}

impl Table {
    fn is_stream(&self, epoch: Epoch, number: u64) -> bool {
        matches!(self.sessions.get(&epoch), Some(Some(stream)) if stream.number == number)
    }
}

async fn accept(shared: Arc<Shared>, listener: tokio::net::TcpListener) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    loop {
        // Never closed.
        let Ok(stranger) = Arc::clone(&strangers).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = Arc::clone(&shared);
                let (sender, own) = tokio::sync::oneshot::channel();
                let task = tokio::spawn(async move {
                    // Sent right below.
                    if let Ok(own) = own.await {
                        serve(&shared, stream, own, stranger).await;
                    }
                });
                _ = sender.send(task.abort_handle());
            }
            Err(error) => {
                tracing::debug!(%error, "a heartbeat connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The life of one stream.
async fn serve(
    shared: &Shared,
    mut stream: TcpStream,
    own: AbortHandle,
    stranger: OwnedSemaphorePermit,
) {
    // Without it a beat could wait for the acknowledgement of the one before.
    _ = stream.set_nodelay(true);
    let Ok(Ok(first)) = timeout(BEAT_LIMIT, read_beat(&mut stream)).await else { return };
    let epoch = first.epoch;
    let Some(number) = shared.adopt(epoch, own) else { return };
    drop(stranger);
    let mut beat: Beat = first;
    loop {
        let answered = timeout(BEAT_LIMIT, write_beat(&mut stream, &beat)).await;
        if !matches!(answered, Ok(Ok(()))) {
            break;
        }
        // Silence is the lease's matter: it ends the session, and that ends this task.
        match read_beat(&mut stream).await {
            Ok(next) if next.epoch == epoch && shared.beat(epoch, number) => beat = next,
            Ok(_) | Err(_) => break,
        }
    }
    shared.ended(epoch, number);
}
