//! Heartbeats. The front's threads answer them, and a separate thread notices silence, so that nothing
//! else in the manager makes a node look dead.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use podmesh_manager_core::input::{HeartbeatChange, Input};
use podmesh_manager_core::lease::LeaseTable;
use podmesh_metrics::{Buckets, Histogram};
use podmesh_protocol::access::{Caller, Role};
use podmesh_protocol::ids::{Epoch, Name};
use podmesh_wire::heartbeat::{Beat, read_beat, write_beat};
use podmesh_wire::route::Duplex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::core::CoreHandle;

/// The time limit for the first beat of a new stream, and for sending an answer.
const BEAT_LIMIT: Duration = Duration::from_secs(5);
/// The upper ends of the intervals of delays, in seconds.
const DELAY_BOUNDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0];

/// A shared handle to the watched sessions.
#[derive(Clone)]
pub(crate) struct Heartbeats {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    core: CoreHandle,
    table: Mutex<Table>,
    /// Notified when the next wakeup has changed, or the thread must end.
    changed: Notify,
    /// How much later than the interval beats came.
    delays: Histogram,
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
    pub(crate) fn new(clock: Clock, core: CoreHandle, heartbeat_ms: u64, lease_ms: u64) -> Self {
        let table = Table {
            leases: LeaseTable::new(heartbeat_ms, lease_ms),
            sessions: HashMap::new(),
            last_stream: 0,
            stopping: false,
        };
        let delays = Histogram::new(DELAY_BOUNDS);
        let table = Mutex::new(table);
        let shared = Shared { clock, core, table, changed: Notify::new(), delays };
        Self { shared: Arc::new(shared) }
    }

    /// Starts watching a session.
    pub(crate) fn open(&self, epoch: Epoch, node: Name) {
        let mut table = self.shared.table.lock();
        table.leases.open(self.shared.clock.mono_ms(), epoch);
        table.sessions.insert(epoch, (node, None));
        drop(table);
        self.shared.changed.notify_one();
    }

    /// Stops watching a session, and closes its stream.
    pub(crate) fn close(&self, epoch: Epoch) {
        let mut table = self.shared.table.lock();
        table.leases.close(epoch);
        if let Some((_, Some(stream))) = table.sessions.remove(&epoch) {
            stream.task.abort();
        }
    }

    /// Returns how much later than the interval beats came.
    pub(crate) fn delays(&self) -> Buckets {
        self.shared.delays.buckets()
    }

    /// Tells the thread to end.
    pub(crate) fn stop(&self) {
        self.shared.table.lock().stopping = true;
        self.shared.changed.notify_one();
    }

    /// Watches for silence until [`Heartbeats::stop`].
    ///
    /// # Errors
    /// If the thread's own runtime cannot be made.
    pub(crate) fn run(&self) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(self.shared.watch());
        Ok(())
    }

    /// Answers the beats of a stream until it ends or its session does. `own` ends this call.
    pub(crate) async fn serve(
        &self,
        caller: &Caller,
        mut stream: Box<dyn Duplex>,
        own: AbortHandle,
    ) {
        let shared = &self.shared;
        let Ok(Ok(first)) = timeout(BEAT_LIMIT, read_beat(&mut stream)).await else { return };
        let epoch = first.epoch;
        let Some(number) = shared.adopt(epoch, caller, own) else { return };
        let mut beat: Beat = first;
        loop {
            let answered = timeout(BEAT_LIMIT, write_beat(&mut stream, &beat)).await;
            if !matches!(answered, Ok(Ok(()))) {
                break;
            }
            // Silence ends the lease, which ends the session and this task.
            match read_beat(&mut stream).await {
                Ok(next) if next.epoch == epoch && shared.beat(epoch, number) => beat = next,
                Ok(_) | Err(_) => break,
            }
        }
        shared.ended(epoch, number);
    }
}

impl Shared {
    fn tell(&self, epoch: Epoch, change: HeartbeatChange) {
        self.core.tell(Input::HeartbeatChanged { epoch, change });
    }

    /// Reports sessions whose heartbeats are late or whose leases have expired.
    async fn watch(&self) {
        let mut changes = Vec::new();
        loop {
            let wakeup = {
                let mut table = self.table.lock();
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

    /// Handles the first beat of a stream, which replaces an older stream of the session. Returns the
    /// stream's number; `None` if there is no such session, or it belongs to another node.
    fn adopt(&self, epoch: Epoch, caller: &Caller, task: AbortHandle) -> Option<u64> {
        let change;
        let number;
        {
            let mut table = self.table.lock();
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

    /// Handles a further beat. Returns false if the session has another stream or has ended.
    fn beat(&self, epoch: Epoch, number: u64) -> bool {
        let change = {
            let mut table = self.table.lock();
            // After the lease has expired, an answer would extend it.
            if !table.is_stream(epoch, number) || !table.leases.watches(epoch) {
                return false;
            }
            let now_ms = self.clock.mono_ms();
            if let Some(ms) = table.leases.delay_ms(now_ms, epoch) {
                self.delays.add(Duration::from_millis(ms));
            }
            table.leases.on_beat(now_ms, epoch)
        };
        if let Some(change) = change {
            self.tell(epoch, change);
        }
        true
    }

    /// Handles the end of a stream. It is ignored if another stream has replaced it.
    fn ended(&self, epoch: Epoch, number: u64) {
        let change = {
            let mut table = self.table.lock();
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
