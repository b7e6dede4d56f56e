//! Named volumes: data that stays on one node, and the tasks that use it go there.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::access::Role;
use crate::ids::{JobId, Name};

/// A request of a client about volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeRequest {
    /// The volumes, by name. → [`VolumeReply::List`]
    List {
        /// Only volumes whose names sort after this one, for the next page.
        #[serde(default)]
        after: Option<Name>,
        /// Rows of the page, at most [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX).
        limit: u32,
    },
    /// Removes a volume and its data. It is refused while a service or job uses the volume. →
    /// [`VolumeReply::Removing`]
    Remove {
        /// The volume.
        volume: Name,
        /// Forget it without its node, which may never come back. If it does, the data is still
        /// there.
        #[serde(default)]
        force: bool,
    },
}

impl VolumeRequest {
    /// Returns the required role.
    pub fn needs(&self) -> Role {
        match self {
            Self::List { .. } => Role::Viewer,
            Self::Remove { .. } => Role::Operator,
        }
    }
}

/// The reply to a [`VolumeRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeReply {
    /// To [`VolumeRequest::List`].
    List(Vec<VolumeView>),
    /// To [`VolumeRequest::Remove`]: its node has been asked to remove it, or is asked when it
    /// connects. With `force`: it is forgotten.
    Removing {
        /// The node that has the volume.
        node: Name,
    },
}

/// A named volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    /// The volume.
    pub volume: Name,
    /// The node that has it.
    pub node: Name,
    /// When a task was first given it: milliseconds since 1970 by the manager's clock, for display.
    pub created_wall_ms: u64,
    /// Whether it is being removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removing: bool,
    /// Why the node could not remove it, when it last tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// The services that use it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub services: BTreeSet<Name>,
    /// Jobs that use it and have not ended: at most
    /// [`VOLUME_JOBS_SHOWN`](crate::limits::VOLUME_JOBS_SHOWN).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub jobs: BTreeSet<JobId>,
}
