//! The background thread that compresses rotated files for all writers of the process.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::failpoint;
use crate::stream::Stream;

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
    let mut queue = this.queue.lock();
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
    let mut queue = this.queue.lock();
    while queue.busy || !queue.waiting.is_empty() {
        if this.changed.wait_until(&mut queue, until).timed_out() {
            return false;
        }
    }
    true
}

fn run(this: &'static Compressor) {
    let mut queue = this.queue.lock();
    loop {
        let Some(stream) = queue.waiting.pop_front() else {
            this.changed.wait(&mut queue);
            continue;
        };
        queue.busy = true;
        drop(queue);
        compress_all(&stream);
        drop(stream);
        queue = this.queue.lock();
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
