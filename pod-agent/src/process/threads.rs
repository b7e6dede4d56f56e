//! The threads of the process runtime.

use std::convert::Infallible;
use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use podmesh_protocol::ids::AttemptId;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::sleep;

use super::starts::ThreadNumber;
use super::{EndRecord, LOOK_EVERY, Shared, not_started};

/// Starts a thread that holds `lives` until it ends.
pub(super) fn spawn_thread(
    name: &str,
    lives: &mpsc::Sender<Infallible>,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let lives = lives.clone();
    let work = move || {
        work();
        drop(lives);
    };
    std::thread::Builder::new().name(name.into()).spawn(work).map(|_| ())
}

impl Shared {
    /// Starts missing threads of the pool that starts processes.
    pub(super) fn start_threads(
        self: &Arc<Self>,
        lives: &mpsc::Sender<Infallible>,
    ) -> io::Result<()> {
        let mut result = Ok(());
        for thread in self.starts.missing(Instant::now()) {
            let this = Arc::clone(self);
            let started = spawn_thread("podmesh-spawn", lives, move || this.start_all(thread));
            if started.is_err() {
                self.starts.not_started();
                result = started;
            }
        }
        result
    }

    /// Handles queued starts until the queue closes or another thread has taken this one's place.
    fn start_all(self: &Arc<Self>, thread: ThreadNumber) {
        while let Ok(start) = self.queue.recv() {
            let attempt = start.attempt;
            self.starts.begin(thread, attempt, Instant::now());
            let result = self.start(thread, start);
            let done = self.starts.end(thread);
            if let Err(outcome) = result
                && !done.given_up
            {
                self.finish(attempt, outcome);
            }
            if done.is_spare {
                return;
            }
        }
    }

    /// Checks the starts in progress: replaces threads that hang, and gives up starts that take too
    /// long.
    pub(super) async fn watch_starts(self: Arc<Self>, lives: mpsc::WeakSender<Infallible>) {
        loop {
            self.asked.notified().await;
            loop {
                sleep(LOOK_EVERY).await;
                let Some(lives) = lives.upgrade() else { return };
                if let Err(error) = self.start_threads(&lives) {
                    tracing::error!("cannot replace a thread that hangs: {error}");
                }
                self.give_up_starts();
                self.look_for_trouble();
                if !self.starts.is_busy() && self.queue.is_empty() {
                    break;
                }
            }
        }
    }

    fn give_up_starts(&self) {
        let is_stopped =
            |attempt| self.states.lock().get(&attempt).is_some_and(|state| state.stop.is_some());
        let kill = |thread| self.children.kill_starting(thread);
        for (attempt, hang) in self.starts.give_up(Instant::now(), is_stopped, kill) {
            self.refuse(attempt, &hang);
        }
    }

    /// Refuses the queued starts if too many threads hang.
    fn look_for_trouble(&self) {
        let trouble = self.starts.trouble();
        self.trouble.send_if_modified(|known| {
            let changed = known.is_some() != trouble.is_some();
            if changed {
                known.clone_from(&trouble);
            }
            changed
        });
        if let Some(why) = trouble {
            while let Ok(start) = self.queue.try_recv() {
                self.refuse(start.attempt, &why);
            }
        }
    }

    /// Ends an attempt that this node cannot start.
    fn refuse(&self, attempt: AttemptId, why: &impl Display) {
        let terms = self.states.lock().get(&attempt).map(|state| Arc::clone(&state.terms));
        if let Some(terms) = terms {
            self.finish(attempt, not_started(&terms, why));
        }
    }

    /// Records how attempts ended.
    pub(super) fn write_ends(&self, mut ends: UnboundedReceiver<EndRecord>) {
        while let Some(EndRecord { attempt, outcome, then }) = ends.blocking_recv() {
            if let Err(error) = self.work_dir.ended(attempt, &outcome) {
                tracing::warn!(%attempt, "cannot record how it ended: {error}");
            }
            then();
        }
    }

    /// Removes the files of ended attempts.
    pub(super) fn remove_all(&self, mut removals: UnboundedReceiver<AttemptId>) {
        while let Some(attempt) = removals.blocking_recv() {
            if let Err(error) = self.work_dir.remove(attempt) {
                tracing::warn!(%attempt, "cannot remove its files: {error}");
            }
        }
    }
}
