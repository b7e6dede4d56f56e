//! The threads that serve connections.
//!
//! Each thread has a runtime of its own, and accepts connections itself. So a connection stays on
//! one thread, and no other thread must be woken for it. That matters most on a busy machine.

use std::io;
use std::num::NonZeroUsize;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Maximum number of threads. An idle thread wakes for every connection, also if another one
/// accepts it.
const THREADS_MAX: usize = 4;

/// The threads. When this is dropped, they end, and so do all connections.
#[derive(Debug)]
pub(super) struct Workers {
    threads: Vec<(Handle, oneshot::Sender<()>)>,
}

impl Workers {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(super) fn start() -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let mut threads = Vec::new();
        for _ in 0..cores.min(THREADS_MAX) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let (stop, stopped) = oneshot::channel();
            let work = move || {
                // It ends when the sender is dropped.
                _ = runtime.block_on(stopped);
            };
            thread::Builder::new().name("podmesh-proxy".into()).spawn(work)?;
            threads.push((handle, stop));
        }
        Ok(Self { threads })
    }

    pub(super) fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.threads.iter().map(|(handle, _)| handle)
    }
}
