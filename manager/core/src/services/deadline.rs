//! Times that are durable, and so of the wall clock, as times of the monotonic clock.

use podmesh_protocol::time::{Millis, Now};

use crate::state::{Failures, Service};

/// Some milliseconds after a time of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    from_wall_ms: u64,
    lasts_ms: u64,
    /// How many came before it. Two spans can begin at the same time if the clock jumps.
    count: u32,
}

impl Span {
    /// Returns the pause before the next replica; `None` if there will be none.
    pub(super) fn of_pause(failures: &Failures) -> Option<Self> {
        let lasts_ms = failures.after_ms?;
        Some(Self { from_wall_ms: failures.ended_wall_ms, lasts_ms, count: failures.count })
    }

    /// Returns the time in which an update must have one more healthy replica.
    pub(super) fn of_update(service: &Service) -> Option<Self> {
        let update = service.update.as_ref()?;
        let lasts_ms = service.spec.update.healthy_within_ms;
        Some(Self { from_wall_ms: update.progress_wall_ms, lasts_ms, count: update.healthy })
    }
}

/// The end of a span on the monotonic clock. The wall clock may jump, so it is read once for each
/// span: when the span begins, or after a restart of the manager.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    of: Span,
    pub(super) at: Millis,
}

impl Deadline {
    /// Returns the end of a span: `known`, if that is of this span.
    pub(super) fn of(span: Span, known: Option<Self>, now: Now) -> Self {
        known.filter(|known| known.of == span).unwrap_or_else(|| {
            let due = span.from_wall_ms.saturating_add(span.lasts_ms);
            // Never longer than the whole span, also if the wall clock went back meanwhile.
            let left_ms = due.saturating_sub(now.wall_ms).min(span.lasts_ms);
            Self { of: span, at: now.mono_ms.saturating_add(left_ms) }
        })
    }

    /// Returns the same, but not before a time.
    pub(super) fn not_before(self, at: Millis) -> Self {
        Self { at: self.at.max(at), ..self }
    }
}
