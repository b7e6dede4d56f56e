//! The bytes that each caller has under way: request bodies, replies that were not read, and
//! streams. The limit is that of a client at the manager's ROUTER.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use podmesh_protocol::limits::CLIENT_UNREAD_BYTES_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::problem::Problem;

/// What an open stream counts for: what is buffered for it in this process.
pub(crate) const STREAM_BYTES: u32 = 16 << 10;

/// The budgets of the callers that have something under way, by name.
#[derive(Default)]
pub(crate) struct Budgets(Mutex<HashMap<String, Weak<Semaphore>>>);

/// The budget of one caller.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Semaphore>);

/// Bytes under way. They are free again when this is dropped.
pub(crate) type Charge = OwnedSemaphorePermit;

impl Budgets {
    pub(crate) fn of(&self, caller: &str) -> Budget {
        // No code that can panic runs while it is held.
        let mut all = self.0.lock();
        if let Some(budget) = all.get(caller).and_then(Weak::upgrade) {
            return Budget(budget);
        }
        all.retain(|_, budget| budget.strong_count() > 0);
        let budget = Arc::new(Semaphore::new(CLIENT_UNREAD_BYTES_MAX as usize));
        all.insert(caller.to_owned(), Arc::downgrade(&budget));
        Budget(budget)
    }
}

impl Budget {
    /// Takes bytes from the budget.
    ///
    /// # Errors
    /// If the caller has too many under way.
    pub(crate) fn charge(&self, bytes: u32) -> Result<Charge, Problem> {
        Arc::clone(&self.0).try_acquire_many_owned(bytes).map_err(|_| {
            Problem::overloaded(format!(
                "more than {CLIENT_UNREAD_BYTES_MAX} bytes of this caller are under way (CLIENT_UNREAD_BYTES_MAX): read the replies, close streams, and try again"
            ))
        })
    }
}

/// A body whose bytes are under way until it has been sent or given up.
pub(crate) struct Charged {
    body: Body,
    _charge: Charge,
}

impl Charged {
    pub(crate) fn body(body: Body, charge: Charge) -> Body {
        Body::new(Self { body, _charge: charge })
    }
}

impl http_body::Body for Charged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_one_budget_for_all_connections() {
        let budgets = Budgets::default();
        let (one, other) = (budgets.of("ann"), budgets.of("bob"));
        let all = one.charge(CLIENT_UNREAD_BYTES_MAX).unwrap();
        assert!(budgets.of("ann").charge(1).is_err());
        drop(other.charge(1).unwrap());
        drop(all);
        drop(budgets.of("ann").charge(1).unwrap());
        drop((one, other));
        assert_eq!(budgets.0.lock().values().filter(|it| it.strong_count() > 0).count(), 0);
        budgets.of("carl");
        assert_eq!(budgets.0.lock().len(), 1, "budgets that nobody uses are dropped");
    }
}
