//! Threads, and those that read the database.

use std::io;
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use tokio::sync::oneshot;

use crate::config::ManagerError;
use crate::store::{History, ReadError, StoreError};

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
