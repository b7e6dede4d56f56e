//! What is written to the database, and what then may be sent.

use std::collections::BTreeSet;
use std::io;

use podmesh_manager_core::step::{Effect, Step};
use podmesh_protocol::event::EventChunk;
use podmesh_protocol::ids::JobId;

/// A step of the core, and its time.
#[derive(Debug)]
pub(crate) struct TimedStep {
    pub(crate) step: Step,
    /// Milliseconds since 1970, for display.
    pub(crate) wall_ms: u64,
    /// The time of the age clock.
    pub(crate) age_ms: u64,
}

/// What a commit has written, and what may now be sent.
#[derive(Debug, Default)]
pub(crate) struct Commit {
    /// The effects to carry out, in this order.
    pub(crate) effects: Vec<Effect>,
    /// The events of the commit, in order.
    pub(crate) chunks: Vec<CommittedChunk>,
    /// The jobs that have changed, or that have a changed attempt.
    pub(crate) touched: BTreeSet<JobId>,
}

/// Events, with their length on disk, which is about their length on the wire.
#[derive(Debug)]
pub(crate) struct CommittedChunk {
    pub(crate) chunk: EventChunk,
    pub(crate) bytes: usize,
}

/// Why a transaction failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The file of job numbers cannot be written.
    #[error(transparent)]
    File(io::Error),
    #[error("{0}")]
    Contradiction(String),
}

impl From<rmp_serde::encode::Error> for WriteError {
    fn from(error: rmp_serde::encode::Error) -> Self {
        // Our own types can always be encoded.
        Self::Contradiction(error.to_string())
    }
}
