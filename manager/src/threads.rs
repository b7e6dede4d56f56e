//! The core's thread, and the threads that read the database.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use podmesh_manager_core::Core;
use podmesh_manager_core::input::Input;
use podmesh_manager_core::step::Step;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_wire::watchdog::{BEAT_EVERY, Pulse};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::clock::Clock;
use crate::config::ManagerError;
use crate::store::{History, ReadError, StoreError, TimedStep};

/// The most messages that wait for the core. When it is reached, no more are read from the socket.
const INPUTS_MAX: usize = 256;

/// A thread of the manager.
pub(crate) struct ManagerThread<T> {
    name: &'static str,
    result: oneshot::Receiver<T>,
}

impl<T: Send + 'static> ManagerThread<T> {
    /// Starts a thread.
    pub(crate) fn start(
        name: &'static str,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Self, ManagerError> {
        let (sender, result) = oneshot::channel();
        thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                // The receiver is gone if the daemon was dropped.
                _ = sender.send(run());
            })
            .map_err(|source: io::Error| ManagerError::Thread { name, source })?;
        Ok(Self { name, result })
    }

    /// Waits for the end of the thread. Until then, the future can be dropped and requested again.
    pub(crate) async fn ended(&mut self) -> Result<T, ManagerError> {
        // Only a panic drops the sender without a result.
        (&mut self.result).await.map_err(|_| ManagerError::Ended { part: self.name })
    }
}

enum ToCore {
    Input { input: Input, _room: Option<OwnedSemaphorePermit> },
    Stop,
}

/// A handle to send inputs to the core.
#[derive(Clone)]
pub(crate) struct Inputs {
    sender: Sender<ToCore>,
    room: Arc<Semaphore>,
}

/// The receiving end of [`Inputs`].
pub(crate) struct InputsReceiver(Receiver<ToCore>);

impl Inputs {
    pub(crate) fn new() -> (Self, InputsReceiver) {
        let (sender, receiver) = unbounded();
        (Self { sender, room: Arc::new(Semaphore::new(INPUTS_MAX)) }, InputsReceiver(receiver))
    }

    /// Waits until there is room for one more message of a peer.
    pub(crate) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.room).acquire_owned().await.ok()
    }

    /// Sends a message to the core, with the permit that is released when the core takes it.
    pub(crate) fn send(&self, input: Input, room: Option<OwnedSemaphorePermit>) {
        // If the core has ended, the daemon ends too, and reports why.
        _ = self.sender.send(ToCore::Input { input, _room: room });
    }

    /// Sends an input from inside the manager to the core. Never waits, because the number of sessions
    /// bounds the number of such inputs.
    pub(crate) fn tell(&self, input: Input) {
        self.send(input, None);
    }

    /// Ends the core after the inputs that were sent before.
    pub(crate) fn stop(&self) {
        _ = self.sender.send(ToCore::Stop);
    }
}

/// Runs the core until it is stopped. If the store is busy, the send to it waits. Then inputs queue
/// up to their limit, and the socket is no longer read.
pub(crate) fn run_core(
    mut core: Core,
    clock: Clock,
    inputs: &InputsReceiver,
    store: &Sender<TimedStep>,
    pulse: &Pulse,
) {
    let mut stopping = false;
    loop {
        pulse.beat();
        let due = core.next_wakeup();
        let input = if due.is_some_and(|due| due <= clock.mono_ms()) {
            Input::Tick
        } else if stopping {
            return;
        } else {
            let next_beat = Instant::now() + BEAT_EVERY;
            let until = due.map_or(next_beat, |due| clock.instant(due).min(next_beat));
            match inputs.0.recv_deadline(until) {
                Ok(ToCore::Input { input, .. }) => input,
                Ok(ToCore::Stop) => {
                    stopping = true;
                    continue;
                }
                // Either a timer is due, or it is time for a beat.
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        };
        let (now, age_ms) = (clock.now(), clock.age_ms());
        let mut step = Step::default();
        core.step(now, input, &mut step);
        if !step.is_empty() && store.send(TimedStep { step, wall_ms: now.wall_ms, age_ms }).is_err()
        {
            return; // The store has failed, and reports why.
        }
    }
}

/// A read of the database; `None` stops the reader.
type Read = Option<Box<dyn FnOnce(&History) + Send>>;

/// A handle to send reads to a reader of the database, which runs them in order.
#[derive(Clone)]
pub(crate) struct Reads {
    sender: Sender<Read>,
}

/// The receiving end of [`Reads`].
pub(crate) struct ReadsReceiver(Receiver<Read>);

impl Reads {
    pub(crate) fn new() -> (Self, ReadsReceiver) {
        let (sender, receiver) = unbounded();
        (Self { sender }, ReadsReceiver(receiver))
    }

    /// Queues a read without waiting for it. The queue has no limit of its own: its callers are
    /// limited.
    pub(crate) fn post(&self, read: impl FnOnce(&History) + Send + 'static) {
        // If the reader has ended, the daemon ends too.
        _ = self.sender.send(Some(Box::new(read)));
    }

    /// Ends the reader after the reads that were queued before.
    pub(crate) fn stop(&self) {
        _ = self.sender.send(None);
    }

    /// Runs a read and returns its result.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&History) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ErrorReply> {
        let (sender, result) = oneshot::channel();
        self.post(move |history| _ = sender.send(history.note(read(history))));
        match result.await {
            Ok(result) => result.map_err(|error| {
                if let ReadError::Sqlite(error) = &error {
                    tracing::error!(%error, "a read of the database failed");
                }
                error.into()
            }),
            Err(_) => Err(stopping()),
        }
    }
}

/// Returns the error for requests that come while the manager stops.
pub(crate) fn stopping() -> ErrorReply {
    ErrorReply::new(ErrorCode::Stopping, "the manager is stopping: try again when it is back")
}

/// Lowers the priority of the calling thread, so that reads of history do not slow down running
/// work.
pub(crate) fn yield_to_others() {
    let niceness = 10;
    // On Linux this affects only the thread, not the process (setpriority(2), BUGS).
    if let Err(error) = rustix::process::setpriority_process(None, niceness) {
        tracing::debug!(%error, "cannot lower the priority of a thread");
    }
}

/// Runs reads until it is stopped or all senders are gone.
///
/// # Errors
/// Fails if a read finds damage in the database, because further results could be wrong.
pub(crate) fn run_reads(history: History, reads: &ReadsReceiver) -> Result<(), StoreError> {
    while let Ok(Some(read)) = reads.0.recv() {
        read(&history);
        if let Some(error) = history.damage() {
            return Err(error);
        }
    }
    Ok(())
}
