//! The state inside the core, which changes only together with the step.

use core::ops::Deref;

use podmesh_protocol::ids::Revision;

use crate::state::{Change, State};
use crate::step::Step;

/// A state that can be read freely, and changes only by what a step records.
#[derive(Debug)]
pub(crate) struct Recorded(State);

impl Recorded {
    pub(crate) fn new(state: State) -> Self {
        Self(state)
    }

    /// Applies a change, and adds it to the step.
    pub(crate) fn record(&mut self, out: &mut Step, change: Change) {
        self.0.apply(&change);
        out.changes.push(change);
    }

    /// Gives the events of a step, which is complete, their revisions.
    pub(crate) fn number_events(&mut self, out: &mut Step) {
        if !out.events.is_empty() {
            out.first_revision = Some(Revision(self.0.last_revision.0 + 1));
            self.0.last_revision.0 += out.events.len() as u64;
        }
    }
}

impl Deref for Recorded {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}
