//! The threads around the core: its own, and those that read the database.

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
use crate::store::{Decided, History, ReadError, StoreError};

/// Messages that wait for the core at the most; then no more are read.
const INPUTS_MAX: usize = 256;

/// A thread of the manager.
pub(crate) struct Part<T> {
    name: &'static str,
    result: oneshot::Receiver<T>,
}

impl<T: Send + 'static> Part<T> {
    /// Starts it.
    pub(crate) fn start(
        name: &'static str,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Self, ManagerError> {
        let (sender, result) = oneshot::channel();
        thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                // Nobody listens any more when the daemon was cut off.
                _ = sender.send(run());
            })
            .map_err(|source: io::Error| ManagerError::Thread { name, source })?;
        Ok(Self { name, result })
    }

    /// Waits for its end. Can be dropped and called again until then.
    pub(crate) async fn ended(&mut self) -> Result<T, ManagerError> {
        // The sender is dropped without a word only by a panic.
        (&mut self.result).await.map_err(|_| ManagerError::Ended { part: self.name })
    }
}

enum ToCore {
    Input { input: Input, _room: Option<OwnedSemaphorePermit> },
    Stop,
}

/// The way into the core.
#[derive(Clone)]
pub(crate) struct Inputs {
    sender: Sender<ToCore>,
    room: Arc<Semaphore>,
}

/// The core's end of [`Inputs`].
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

    /// Hands a message to the core, with the room that it takes until then.
    pub(crate) fn send(&self, input: Input, room: Option<OwnedSemaphorePermit>) {
        // When the core has ended, the daemon is about to, and says why.
        _ = self.sender.send(ToCore::Input { input, _room: room });
    }

    /// Tells the core of something that happened inside the manager. Never waits: these are as
    /// many as there are sessions.
    pub(crate) fn tell(&self, input: Input) {
        self.send(input, None);
    }

    /// Lets the core finish what it was sent before, and end.
    pub(crate) fn stop(&self) {
        _ = self.sender.send(ToCore::Stop);
    }
}

/// Runs the core until it is stopped. The send to the store waits when the store has enough to
/// do: then inputs pile up to their limit, and the socket is no longer read.
pub(crate) fn run_core(
    mut core: Core,
    clock: Clock,
    inputs: &InputsReceiver,
    store: &Sender<Decided>,
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
                // When nothing is due, it was time for a beat.
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        };
        let now = clock.now();
        let mut step = Step::default();
        core.step(now, input, &mut step);
        if !step.is_empty() && store.send(Decided { step, wall_ms: now.wall_ms }).is_err() {
            return; // The store has failed, and says why.
        }
    }
}

/// None: the last one.
type Read = Option<Box<dyn FnOnce(&History) + Send>>;

/// The way to the reader of the database. Everything is read in the order in which it is asked.
#[derive(Clone)]
pub(crate) struct Reads {
    sender: Sender<Read>,
}

/// The reader's end of [`Reads`].
pub(crate) struct ReadsReceiver(Receiver<Read>);

impl Reads {
    pub(crate) fn new() -> (Self, ReadsReceiver) {
        let (sender, receiver) = unbounded();
        (Self { sender }, ReadsReceiver(receiver))
    }

    /// Has something read, without waiting for it. Not bounded: whoever asks is.
    pub(crate) fn post(&self, read: impl FnOnce(&History) + Send + 'static) {
        // When the reader has ended, the daemon is about to.
        _ = self.sender.send(Some(Box::new(read)));
    }

    /// Lets the reader finish what it was asked before, and end.
    pub(crate) fn stop(&self) {
        _ = self.sender.send(None);
    }

    /// Reads something.
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

/// The answer to what comes too late.
pub(crate) fn stopping() -> ErrorReply {
    ErrorReply::new(ErrorCode::Stopping, "the manager is stopping: ask again when it is back")
}

/// Lets the calling thread wait while others of the machine have work: who reads history must not
/// slow down what makes it.
pub(crate) fn yield_to_others() {
    let niceness = 10;
    // On Linux this is about the thread, not the process (setpriority(2), BUGS).
    if let Err(error) = rustix::process::setpriority_process(None, niceness) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}

/// Reads for whoever asks, until it is stopped or all of them are gone.
///
/// # Errors
/// When the database is found to be damaged: going on would hand out what is wrong.
pub(crate) fn run_reads(history: History, reads: &ReadsReceiver) -> Result<(), StoreError> {
    while let Ok(Some(read)) = reads.0.recv() {
        read(&history);
        if let Some(error) = history.damage() {
            return Err(error);
        }
    }
    Ok(())
}
