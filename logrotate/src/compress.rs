//! The background thread that compresses rotated files for all writers of the process.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::failpoint;
use crate::stream::{Stream, lock};

/// The maximum number of waiting streams. If the queue is full, a file stays uncompressed, which is
/// readable too. It is compressed at the next rotation, at the next open, or by a sweep.
const QUEUE_MAX: usize = 4096;

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Arc<Stream>>,
    busy: bool,
    running: bool,
}

#[derive(Default)]
struct Compressor {
    queue: Mutex<Queue>,
    changed: Condvar,
}

fn compressor() -> &'static Compressor {
    static COMPRESSOR: OnceLock<Compressor> = OnceLock::new();
    COMPRESSOR.get_or_init(Compressor::default)
}

/// Queues the plain rotated files of a stream for compression. Never blocks. The caller must not
/// hold the stream's lock.
pub(crate) fn enqueue(stream: &Arc<Stream>) {
    if !failpoint::background() {
        return;
    }
    let this = compressor();
    {
        let mut state = stream.lock();
        if state.queued {
            return;
        }
        state.queued = true;
    }
    let mut queue = lock(&this.queue);
    if !queue.running {
        queue.running =
            thread::Builder::new().name("podmesh-log-gz".to_owned()).spawn(|| run(this)).is_ok();
    }
    let accepted = queue.running && queue.waiting.len() < QUEUE_MAX;
    if accepted {
        queue.waiting.push_back(Arc::clone(stream));
        this.changed.notify_all();
    }
    drop(queue);
    if !accepted {
        stream.lock().queued = false;
    }
}

/// Waits up to `timeout` until no rotated file of this process waits for compression. Returns
/// whether that is so. A process can exit without calling this: a plain rotated file is readable
/// too and is compressed later.
#[must_use]
pub fn wait_for_compression(timeout: Duration) -> bool {
    let this = compressor();
    let until = Instant::now() + timeout;
    let mut queue = lock(&this.queue);
    while queue.busy || !queue.waiting.is_empty() {
        let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
        queue = match this.changed.wait_timeout(queue, left) {
            Ok((queue, _)) => queue,
            Err(poisoned) => poisoned.into_inner().0,
        };
    }
    true
}

fn run(this: &'static Compressor) {
    let mut queue = lock(&this.queue);
    loop {
        let Some(stream) = queue.waiting.pop_front() else {
            queue = match this.changed.wait(queue) {
                Ok(queue) => queue,
                Err(poisoned) => poisoned.into_inner(),
            };
            continue;
        };
        queue.busy = true;
        drop(queue);
        compress_all(&stream);
        drop(stream);
        queue = lock(&this.queue);
        queue.busy = false;
        this.changed.notify_all();
    }
}

fn compress_all(stream: &Stream) {
    // Cleared before the work, so that a rotation meanwhile queues the stream again.
    stream.lock().queued = false;
    loop {
        match stream.compress_one() {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                // No lock is held here, because the warning itself may go to a log of this process.
                tracing::warn!(
                    log = %stream.names.live.display(),
                    %error,
                    "rotated log stays uncompressed until the next rotation"
                );
                return;
            }
        }
    }
}
