//! Notifies readers of logs when output is written, in this process or in another process that is
//! told who listens.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use podmesh_protocol::ids::AttemptId;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

/// Notifies readers when an attempt has printed something. Cheap to clone, and almost free to call
/// while nobody listens.
#[derive(Clone, Debug, Default)]
pub struct LogNotify {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The number of waiters, so that writers take no lock while there are none.
    count: AtomicUsize,
    waiters: Mutex<HashMap<AttemptId, Vec<Arc<Signal>>>>,
    elsewhere: OnceLock<UnboundedSender<(AttemptId, bool)>>,
    /// Bytes of output that were written.
    bytes: AtomicU64,
}

impl Shared {
    /// Tells the writers in another process whether anybody listens. Called under the lock, so that
    /// the last message is always true.
    fn tell_elsewhere(&self, attempt: AttemptId, listens: bool) {
        if let Some(elsewhere) = self.elsewhere.get() {
            // If there is no receiver, nothing is written there any more.
            _ = elsewhere.send((attempt, listens));
        }
    }

    fn wake(&self, attempt: AttemptId, ended: bool) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        for signal in self.waiters.lock().get(&attempt).into_iter().flatten() {
            if ended {
                signal.ended.store(true, Ordering::SeqCst);
            }
            signal.news.notify_one();
        }
    }
}

#[derive(Debug, Default)]
struct Signal {
    news: Notify,
    ended: AtomicBool,
}

impl LogNotify {
    /// From now on reports to `elsewhere` each attempt that gets its first listener or loses its
    /// last one. Call it once. The receiver must call [`written`](Self::written) whenever output is
    /// written elsewhere, and once when listening begins, for what was written in between.
    pub(crate) fn follow_elsewhere(&self, elsewhere: UnboundedSender<(AttemptId, bool)>) {
        _ = self.shared.elsewhere.set(elsewhere);
    }

    /// Counts bytes of output that were written to a file.
    pub(crate) fn count(&self, bytes: u64) {
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Replaces the count by that of the process that writes.
    pub(crate) fn count_is(&self, bytes: u64) {
        self.shared.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Returns how many bytes of output were written, since the process that writes has started.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Notifies that new bytes of the attempt are in a file. The writer calls it after the write.
    pub fn written(&self, attempt: AttemptId) {
        self.shared.wake(attempt, false);
    }

    /// Notifies that the attempt has ended and its last byte is in the file.
    pub(crate) fn ended(&self, attempt: AttemptId) {
        self.shared.wake(attempt, true);
    }

    /// Starts to listen. Anything written from now on wakes the waiter, even before
    /// [`LogWaiter::news`] is called.
    pub(crate) fn listen(&self, attempt: AttemptId) -> LogWaiter {
        let signal = Arc::new(Signal::default());
        let mut waiters = self.shared.waiters.lock();
        let signals = waiters.entry(attempt).or_default();
        if signals.is_empty() {
            self.shared.tell_elsewhere(attempt, true);
        }
        signals.push(Arc::clone(&signal));
        drop(waiters);
        self.shared.count.fetch_add(1, Ordering::SeqCst);
        LogWaiter { shared: Arc::clone(&self.shared), attempt, signal }
    }
}

/// Listens for the output of one attempt until it is dropped.
#[derive(Debug)]
pub(crate) struct LogWaiter {
    shared: Arc<Shared>,
    attempt: AttemptId,
    signal: Arc<Signal>,
}

impl LogWaiter {
    /// Returns when something was written or the attempt ended since the last call.
    pub(crate) async fn news(&self) {
        self.signal.news.notified().await;
    }

    /// Returns whether the attempt has ended since this waiter was created.
    pub(crate) fn has_ended(&self) -> bool {
        self.signal.ended.load(Ordering::SeqCst)
    }
}

impl Drop for LogWaiter {
    fn drop(&mut self) {
        let mut waiters = self.shared.waiters.lock();
        if let Some(signals) = waiters.get_mut(&self.attempt) {
            signals.retain(|signal| !Arc::ptr_eq(signal, &self.signal));
            if signals.is_empty() {
                waiters.remove(&self.attempt);
                self.shared.tell_elsewhere(self.attempt, false);
            }
        }
        drop(waiters);
        self.shared.count.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use podmesh_protocol::ids::JobId;

    use super::*;

    fn attempt(index: u32) -> AttemptId {
        AttemptId::new(JobId(1), index, 1)
    }

    #[tokio::test]
    async fn a_write_before_the_wait_is_not_missed() {
        let notify = LogNotify::default();
        let waiter = notify.listen(attempt(1));
        notify.written(attempt(1));
        waiter.news().await;
        assert!(!waiter.has_ended());
        notify.ended(attempt(1));
        waiter.news().await;
        assert!(waiter.has_ended());
    }

    #[tokio::test]
    async fn writers_elsewhere_are_told_who_listens() {
        let notify = LogNotify::default();
        let (sender, mut elsewhere) = tokio::sync::mpsc::unbounded_channel();
        notify.follow_elsewhere(sender);
        let waiters = [notify.listen(attempt(1)), notify.listen(attempt(1))];
        assert_eq!(elsewhere.try_recv(), Ok((attempt(1), true)));
        assert!(elsewhere.try_recv().is_err());
        drop(waiters);
        assert_eq!(elsewhere.try_recv(), Ok((attempt(1), false)));
        assert!(elsewhere.try_recv().is_err());
    }

    #[tokio::test]
    async fn waiters_of_other_attempts_are_not_woken_and_dropped_waiters_are_forgotten() {
        let notify = LogNotify::default();
        let waiter = notify.listen(attempt(1));
        notify.written(attempt(2));
        assert!(waiter.news().now_or_never().is_none());
        drop(waiter);
        assert!(notify.shared.waiters.lock().is_empty());
        assert_eq!(notify.shared.count.load(Ordering::SeqCst), 0);
    }
}
