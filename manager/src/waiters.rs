//! Requests that wait until a commit changes a job or a service.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use podmesh_protocol::ids::{JobId, Name};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// What a request waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    Job(JobId),
    Service(Name),
}

/// The requests that wait, by subject. Their number is limited, because that of requests is.
#[derive(Default)]
pub(crate) struct Waiters {
    watched: Mutex<HashMap<Subject, Watched>>,
}

#[derive(Default)]
struct Watched {
    notify: Arc<Notify>,
    watches: usize,
}

/// Watches a subject for one request.
pub(crate) struct Watch<'a> {
    waiters: &'a Waiters,
    subject: Subject,
    notify: Arc<Notify>,
}

impl Waiters {
    pub(crate) fn watch(&self, subject: Subject) -> Watch<'_> {
        let mut all = self.watched.lock();
        let watched = all.entry(subject.clone()).or_default();
        watched.watches += 1;
        Watch { waiters: self, subject, notify: Arc::clone(&watched.notify) }
    }

    /// Wakes the requests that wait for these subjects, whose changes can now be read.
    pub(crate) fn wake(&self, touched: impl IntoIterator<Item = Subject>) {
        let all = self.watched.lock();
        if all.is_empty() {
            return;
        }
        for watched in touched.into_iter().filter_map(|subject| all.get(&subject)) {
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
        let mut all = self.waiters.watched.lock();
        if let Some(watched) = all.get_mut(&self.subject) {
            watched.watches -= 1;
            if watched.watches == 0 {
                all.remove(&self.subject);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u64) -> Subject {
        Subject::Job(JobId(number))
    }

    #[tokio::test]
    async fn a_change_between_two_reads_is_not_missed() {
        let waiters = Waiters::default();
        let watch = waiters.watch(job(1));
        let next = watch.next();
        waiters.wake([job(1)]);
        next.await;

        let mut next = std::pin::pin!(watch.next());
        waiters.wake([job(2)]);
        tokio::select! {
            biased;
            () = &mut next => unreachable!("another job has changed"),
            () = std::future::ready(()) => {}
        }
        let second = waiters.watch(job(1));
        drop(watch);
        waiters.wake([job(1)]);
        next.await;
        drop(second);
        assert!(waiters.watched.lock().is_empty());
    }
}
