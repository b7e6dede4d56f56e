//! The core's thread, and the handle through which others reach it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, unbounded};
use parking_lot::Mutex;
use podmesh_manager_core::Core;
use podmesh_manager_core::ids::Ticket;
use podmesh_manager_core::input::{Command, Input};
use podmesh_manager_core::step::{Answer, Step};
use podmesh_protocol::error::ErrorReply;
use podmesh_protocol::time::Now;
use podmesh_wire::watchdog::{BEAT_EVERY, Pulse};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::clock::Clock;
use crate::store::TimedStep;
use crate::threads::stopping;

/// The most inputs of peers that wait for the core.
const INPUTS_MAX: usize = 256;
/// How often the core tries to pass on a step for which the store has no room.
const STORE_RETRY: Duration = Duration::from_millis(1);
/// How often the core compares the wall clock, which may jump, with what waits for a time of it.
const WALL_LOOK: Duration = Duration::from_secs(1);

/// A function that looks at the core between two steps.
type Read = Box<dyn FnOnce(&Core, Now) + Send>;

enum ToCore {
    Input { input: Input, _room: Option<Room> },
    Read(Read),
    Stop,
}

/// Room for one more input of a peer.
pub(crate) type Room = OwnedSemaphorePermit;

/// The answer to a command, once it is on disk.
pub(crate) type CommandResult = Result<Answer, ErrorReply>;

/// A handle to the core.
#[derive(Clone)]
pub(crate) struct CoreHandle {
    sender: Sender<ToCore>,
    room: Arc<Semaphore>,
    tickets: Arc<Tickets>,
}

/// The receiving end of [`CoreHandle`].
pub(crate) struct CoreReceiver(Receiver<ToCore>);

/// Who waits for the answers to commands.
#[derive(Default)]
struct Tickets {
    last: AtomicU64,
    waiting: Mutex<HashMap<Ticket, oneshot::Sender<CommandResult>>>,
}

/// A command that was sent, or will be.
pub(crate) struct Pending {
    pub(crate) ticket: Ticket,
    answer: oneshot::Receiver<CommandResult>,
}

impl Pending {
    /// Waits for the answer.
    pub(crate) async fn answer(self) -> CommandResult {
        self.answer.await.map_err(|_| stopping())?
    }
}

impl CoreHandle {
    pub(crate) fn new() -> (Self, CoreReceiver) {
        let (sender, receiver) = unbounded();
        let room = Arc::new(Semaphore::new(INPUTS_MAX));
        (Self { sender, room, tickets: Arc::default() }, CoreReceiver(receiver))
    }

    /// Waits until there is room for one more input of a peer.
    pub(crate) async fn room(&self) -> Option<Room> {
        // The semaphore is never closed.
        Arc::clone(&self.room).acquire_owned().await.ok()
    }

    /// Returns room for one more input of a peer, if there is some.
    pub(crate) fn try_room(&self) -> Option<Room> {
        Arc::clone(&self.room).try_acquire_owned().ok()
    }

    /// Sends an input of a peer, with the room that is released when the core takes it.
    pub(crate) fn send(&self, input: Input, room: Option<Room>) {
        // If the core has ended, the daemon ends too, and reports why.
        _ = self.sender.send(ToCore::Input { input, _room: room });
    }

    /// Sends an input from inside the manager. Never waits, because the number of sessions and
    /// connections bounds the number of such inputs.
    pub(crate) fn tell(&self, input: Input) {
        self.send(input, None);
    }

    /// Returns a ticket for a command that will be sent by [`Self::send`].
    pub(crate) fn ticket(&self) -> Pending {
        let ticket = Ticket(self.tickets.last.fetch_add(1, Ordering::Relaxed) + 1);
        let (sender, answer) = oneshot::channel();
        self.tickets.waiting.lock().insert(ticket, sender);
        Pending { ticket, answer }
    }

    /// Sends a command.
    pub(crate) fn command(&self, command: Command, room: Option<Room>) -> Pending {
        let pending = self.ticket();
        self.send(Input::Command(pending.ticket, command), room);
        pending
    }

    /// Passes the answer to a command to whoever waits for it.
    pub(crate) fn answered(&self, ticket: Ticket, result: CommandResult) {
        let waiting = self.tickets.waiting.lock().remove(&ticket);
        if let Some(waiting) = waiting {
            // The caller may have left.
            _ = waiting.send(result);
        }
    }

    /// Looks at the core between two steps. Does not wait for the disk.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Core, Now) -> T + Send + 'static,
    ) -> Result<T, ErrorReply> {
        let (sender, result) = oneshot::channel();
        let read: Read = Box::new(move |core, now| _ = sender.send(read(core, now)));
        _ = self.sender.send(ToCore::Read(read));
        result.await.map_err(|_| stopping())
    }

    /// Ends the core after the inputs that were sent before.
    pub(crate) fn stop(&self) {
        _ = self.sender.send(ToCore::Stop);
    }
}

/// The core's thread.
pub(crate) struct CoreThread {
    pub(crate) core: Core,
    pub(crate) clock: Clock,
    pub(crate) receiver: CoreReceiver,
    pub(crate) store: Sender<TimedStep>,
    pub(crate) pulse: Pulse,
}

impl CoreThread {
    /// Runs until the core is stopped. While the store has no room for a step, inputs queue up to
    /// their limit, and reads are still answered.
    pub(crate) fn run(mut self) {
        // What came while the store had no room.
        let mut waiting = VecDeque::new();
        let mut stopping = false;
        loop {
            self.pulse.beat();
            let due = self.core.next_wakeup();
            let now = self.clock.now();
            let due_wall = self.core.next_wakeup_wall().map(|at| at.saturating_sub(now.wall_ms));
            let input = if due.is_some_and(|due| due <= now.mono_ms) || due_wall == Some(0) {
                Input::Tick
            } else if stopping {
                return;
            } else {
                match self.next(&mut waiting, due, due_wall) {
                    Ok(ToCore::Input { input, .. }) => input,
                    Ok(ToCore::Read(read)) => {
                        read(&self.core, self.clock.now());
                        continue;
                    }
                    Ok(ToCore::Stop) => {
                        stopping = true;
                        continue;
                    }
                    // Either a timer is due, or it is time for a beat.
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            };
            let (now, age_ms) = (self.clock.now(), self.clock.age_ms());
            let mut step = Step::default();
            self.core.step(now, input, &mut step);
            let step = TimedStep { step, wall_ms: now.wall_ms, age_ms };
            if !step.step.is_empty() && !self.pass_on(step, &mut waiting) {
                return; // The store has failed, and reports why.
            }
        }
    }

    fn next(
        &self,
        waiting: &mut VecDeque<ToCore>,
        due: Option<u64>,
        due_wall_ms: Option<u64>,
    ) -> Result<ToCore, RecvTimeoutError> {
        if let Some(next) = waiting.pop_front() {
            return Ok(next);
        }
        let next_beat = Instant::now() + BEAT_EVERY;
        let mut until = due.map_or(next_beat, |due| self.clock.instant(due).min(next_beat));
        if let Some(ms) = due_wall_ms {
            until = until.min(Instant::now() + Duration::from_millis(ms).min(WALL_LOOK));
        }
        self.receiver.0.recv_deadline(until)
    }

    /// Passes a step to the store. Returns false if the store has ended.
    fn pass_on(&self, mut step: TimedStep, waiting: &mut VecDeque<ToCore>) -> bool {
        loop {
            step = match self.store.try_send(step) {
                Ok(()) => return true,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(step)) => step,
            };
            self.pulse.beat();
            match self.receiver.0.recv_timeout(STORE_RETRY) {
                Ok(ToCore::Read(read)) => read(&self.core, self.clock.now()),
                Ok(other) => waiting.push_back(other),
                Err(_) => {}
            }
        }
    }
}
