//! Requests that wait until a commit changes a job.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podmesh_protocol::ids::JobId;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// The requests that wait, by job. Their number is limited, because that of requests is.
#[derive(Default)]
pub(crate) struct Waiters {
    jobs: Mutex<HashMap<JobId, WatchedJob>>,
}

#[derive(Default)]
struct WatchedJob {
    notify: Arc<Notify>,
    watches: usize,
}

/// Watches a job for one request.
pub(crate) struct Watch<'a> {
    waiters: &'a Waiters,
    job: JobId,
    notify: Arc<Notify>,
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, WatchedJob>> {
        // No code that can panic runs while it is held.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn watch(&self, job: JobId) -> Watch<'_> {
        let mut jobs = self.lock();
        let watched = jobs.entry(job).or_default();
        watched.watches += 1;
        Watch { waiters: self, job, notify: Arc::clone(&watched.notify) }
    }

    /// Wakes the requests that wait for these jobs, whose changes can now be read.
    pub(crate) fn wake(&self, touched: &BTreeSet<JobId>) {
        let jobs = self.lock();
        if jobs.is_empty() {
            return;
        }
        for watched in touched.iter().filter_map(|job| jobs.get(job)) {
            watched.notify.notify_waiters();
        }
    }
}

impl Watch<'_> {
    /// Returns a future of the next change after this call, even if it is polled later. So a read
    /// after this call either sees a change, or the future still reports it.
    pub(crate) fn next(&self) -> OwnedNotified {
        Arc::clone(&self.notify).notified_owned()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut jobs = self.waiters.lock();
        if let Some(watched) = jobs.get_mut(&self.job) {
            watched.watches -= 1;
            if watched.watches == 0 {
                jobs.remove(&self.job);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_between_two_reads_is_not_missed() {
        let waiters = Waiters::default();
        let watch = waiters.watch(JobId(1));
        let next = watch.next();
        waiters.wake(&[JobId(1)].into());
        next.await;

        let mut next = std::pin::pin!(watch.next());
        waiters.wake(&[JobId(2)].into());
        tokio::select! {
            biased;
            () = &mut next => unreachable!("another job has changed"),
            () = std::future::ready(()) => {}
        }
        let second = waiters.watch(JobId(1));
        drop(watch);
        waiters.wake(&[JobId(1)].into());
        next.await;
        drop(second);
        assert!(waiters.lock().is_empty());
    }
}
