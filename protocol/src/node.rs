//! What an admin asks of a node, and what is shown of it.

use serde::{Deserialize, Serialize};

use crate::ids::{JobId, Name};
use crate::limits::{DURATION_MS_MAX, MESSAGE_BYTES_MAX};
use crate::place::Offer;
use crate::spec::{SpecError, at_most, within};

/// How a node is drained. The default waits for its tasks without an end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainSpec {
    /// The time in milliseconds after which what still runs is stopped, with its grace. `None`:
    /// never, or at once with `requeue`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Whether stopped tasks of jobs are queued again, which uses none of their retries. Otherwise
    /// the attempt has failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub requeue: bool,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl DrainSpec {
    /// Returns whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the milliseconds until what still runs is stopped; `None` if it never is.
    pub fn stops_after_ms(&self) -> Option<u64> {
        self.deadline_ms.or(self.requeue.then_some(0))
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// If the deadline is over [`DURATION_MS_MAX`], or the reason is empty or over
    /// [`MESSAGE_BYTES_MAX`].
    pub fn validate(&self) -> Result<(), SpecError> {
        if let Some(deadline_ms) = self.deadline_ms {
            let times = 0..=i128::from(DURATION_MS_MAX);
            within("deadline (ms)", deadline_ms, times, Some("DURATION_MS_MAX"))?;
        }
        let Some(reason) = &self.reason else { return Ok(()) };
        if reason.trim().is_empty() {
            return Err(SpecError::Text { field: "reason", why: "is empty".into() });
        }
        at_most("reason", reason.len(), "bytes", MESSAGE_BYTES_MAX, "MESSAGE_BYTES_MAX")
    }
}

/// A named resource of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceView {
    /// What the agent offers.
    pub offer: Offer,
    /// How much of it attempts have, in thousandths.
    pub used: u64,
    /// Ids that attempts still have and the agent offers no more. They are not given again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<String>,
}

/// How far the drain of a node has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainView {
    /// Who asked for it.
    pub by: Name,
    /// When: milliseconds since 1970, for display.
    pub since_wall_ms: u64,
    /// How.
    pub spec: DrainSpec,
    /// Milliseconds until what still runs is stopped, 0 if it was told to; `None` if it is not
    /// stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stops_in_ms: Option<u64>,
    /// Jobs whose attempts the node still has: the first
    /// [`DRAIN_JOBS_SHOWN`](crate::limits::DRAIN_JOBS_SHOWN).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<JobId>,
}
