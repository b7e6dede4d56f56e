//! Heartbeats: a thread of their own, so that nothing else in the manager makes a node look dead.
//! Their streams come from the front, which knows who sends them.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use podmesh_manager_core::input::{HeartbeatChange, Input};
use podmesh_manager_core::lease::LeaseTable;
use podmesh_protocol::access::{Caller, Role};
use podmesh_protocol::ids::{Epoch, Name};
use podmesh_wire::front::HeartbeatStream;
use podmesh_wire::heartbeat::{Beat, read_beat, write_beat};
use tokio::io::DuplexStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::threads::Inputs;

/// How long a new stream may take to its first beat, and an answer to leave.
const BEAT_LIMIT: Duration = Duration::from_secs(5);

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
    /// The sessions, each with its node and its stream.
    sessions: HashMap<Epoch, (Name, Option<Stream>)>,
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
    pub(crate) fn open(&self, epoch: Epoch, node: Name) {
        let mut table = self.shared.lock();
        table.leases.open(self.shared.clock.mono_ms(), epoch);
        table.sessions.insert(epoch, (node, None));
        drop(table);
        self.shared.changed.notify_one();
    }

    /// Watches it no more, and drops its stream.
    pub(crate) fn close(&self, epoch: Epoch) {
        let mut table = self.shared.lock();
        table.leases.close(epoch);
        if let Some((_, Some(stream))) = table.sessions.remove(&epoch) {
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
    pub(crate) fn run(&self, streams: mpsc::UnboundedReceiver<HeartbeatStream>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let accepting = tokio::spawn(accept(Arc::clone(&self.shared), streams));
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
    /// when there is no such session, or it is that of another node.
    fn adopt(&self, epoch: Epoch, caller: &Caller, task: AbortHandle) -> Option<u64> {
        let change;
        let number;
        {
            let mut table = self.lock();
            let table = &mut *table;
            if !table.leases.watches(epoch) {
                return None;
            }
            let (node, stream) = table.sessions.get_mut(&epoch)?;
            if caller.role == Role::Agent && caller.name != *node {
                return None;
            }
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
            if let Some((_, stream)) = table.sessions.get_mut(&epoch) {
                *stream = None;
            }
            table.leases.on_stream_closed(epoch)
        };
        if let Some(change) = change {
            self.tell(epoch, change);
        }
    }
}

impl Table {
    fn is_stream(&self, epoch: Epoch, number: u64) -> bool {
        matches!(self.sessions.get(&epoch), Some((_, Some(stream))) if stream.number == number)
    }
}

/// Streams are as many as the front lets in: so many of each key.
async fn accept(shared: Arc<Shared>, mut streams: mpsc::UnboundedReceiver<HeartbeatStream>) {
    while let Some((caller, stream)) = streams.recv().await {
        let shared = Arc::clone(&shared);
        let (sender, own) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            // Sent right below.
            if let Ok(own) = own.await {
                serve(&shared, &caller, stream, own).await;
            }
        });
        _ = sender.send(task.abort_handle());
    }
}

/// The life of one stream.
async fn serve(shared: &Shared, caller: &Caller, mut stream: DuplexStream, own: AbortHandle) {
    let Ok(Ok(first)) = timeout(BEAT_LIMIT, read_beat(&mut stream)).await else { return };
    let epoch = first.epoch;
    let Some(number) = shared.adopt(epoch, caller, own) else { return };
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
