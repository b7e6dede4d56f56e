//! A service: what should run, how far its update has come, and which replicas wait for a restart.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use podmesh_protocol::ids::Name;
use podmesh_protocol::service::{Health, ServiceSpec};
use serde::{Deserialize, Serialize};

/// A service. Its replicas are jobs of one task, with the number and revision in their specs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The current spec.
    pub spec: Arc<ServiceSpec>,
    /// The revision of that spec, which its replicas are brought to.
    pub revision: u32,
    /// The highest revision that there was.
    pub last_revision: u32,
    /// Who asked for the current revision.
    pub by: Name,
    /// What it should do.
    pub phase: ServicePhase,
    /// The update to the current revision, until it has succeeded or failed.
    pub update: Option<Update>,
    /// Why the last update failed, until there is another one.
    pub failed_update: Option<String>,
    /// The replicas of the current revision that have ended, by number, until they are healthy for
    /// some time.
    pub failures: BTreeMap<u32, Failures>,
}

/// What a service should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServicePhase {
    /// Run its replicas.
    Running,
    /// Run none.
    Stopped,
    /// Run none, and be removed when the last one has ended.
    Removing,
}

/// An update that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The revision to go back to if the update fails, with its spec. It was the last one that was
    /// reached; `None` if there was none.
    pub from: Option<(u32, Arc<ServiceSpec>)>,
    /// Whether the service goes back to an earlier revision because an update has failed.
    pub rolls_back: bool,
    /// The most replicas of the current revision that have been healthy at a time.
    pub healthy: u32,
    /// When that number was reached, or the update began.
    pub progress_wall_ms: u64,
}

/// The replicas with one number that have ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// How many have ended in a row without having been healthy for long.
    pub count: u32,
    /// When the last one ended.
    pub ended_wall_ms: u64,
    /// Milliseconds from then until the next one starts; `None` if the restart policy has none.
    pub after_ms: Option<u64>,
    /// Whether it exited with 0.
    pub succeeded: bool,
    /// How it ended, for people.
    pub message: String,
}

impl Failures {
    /// Returns whether the replica has done its work: it succeeded, and is not started again.
    pub(crate) fn is_done(&self) -> bool {
        self.after_ms.is_none() && self.succeeded
    }

    /// Returns whether the replica has failed, and is not started again.
    fn is_final(&self) -> bool {
        self.after_ms.is_none() && !self.succeeded
    }
}

/// What is known of the active attempt of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// The ports of its node that it listens on, in the order of their names in the spec.
    pub listening: Vec<u16>,
    /// Its health.
    pub health: Health,
    /// What the last health check said.
    pub message: String,
}

impl Service {
    /// Returns how many replicas should run.
    pub fn wanted(&self) -> u32 {
        match self.phase {
            ServicePhase::Running => self.spec.replicas,
            ServicePhase::Stopped | ServicePhase::Removing => 0,
        }
    }

    /// Returns how many of the wanted replicas have done their work and are not started again. They are
    /// as good as healthy.
    pub fn done(&self) -> u32 {
        self.ended().filter(|failures| failures.is_done()).count() as u32
    }

    /// Returns whether a wanted replica has failed and is not started again: the service does not become
    /// healthy with this revision.
    pub(crate) fn has_failed(&self) -> bool {
        self.ended().any(Failures::is_final)
    }

    fn ended(&self) -> impl Iterator<Item = &Failures> {
        self.failures.range(..=self.wanted()).map(|(_, failures)| failures)
    }
}
