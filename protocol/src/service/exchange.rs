//! What clients ask about services, and what they are told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Project, ServiceSpec};
use crate::access::Role;
use crate::ids::{AttemptId, Name, Revision};
use crate::word::MaybeKnown;

/// A request of a client about services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceRequest {
    /// Creates a service, or changes it to this spec. The same spec again changes nothing. →
    /// [`ServiceReply::Changed`]
    Apply {
        /// The spec.
        spec: Box<ServiceSpec>,
    },
    /// Says what an `apply` of this spec would do, and changes nothing. → [`ServiceReply::Plan`]
    Plan {
        /// The spec.
        spec: Box<ServiceSpec>,
    },
    /// Sets the number of replicas. → [`ServiceReply::Changed`]
    Scale {
        /// The service.
        service: Name,
        /// The number, at most [`REPLICAS_MAX`](crate::limits::REPLICAS_MAX).
        replicas: u32,
    },
    /// Replaces all replicas by new ones, as an update does. → [`ServiceReply::Changed`]
    Restart {
        /// The service.
        service: Name,
    },
    /// Goes back to an earlier revision. → [`ServiceReply::Changed`]
    Rollback {
        /// The service.
        service: Name,
        /// The revision; default: the one before the current one.
        #[serde(default)]
        to: Option<u32>,
    },
    /// Stops all replicas, and keeps the service. → [`ServiceReply::Changed`]
    Stop {
        /// The service.
        service: Name,
    },
    /// Starts the replicas of a stopped service. → [`ServiceReply::Changed`]
    Start {
        /// The service.
        service: Name,
    },
    /// Stops all replicas, and removes the service when the last one has ended. →
    /// [`ServiceReply::Changed`]
    Remove {
        /// The service.
        service: Name,
    },
    /// The services, by name. → [`ServiceReply::List`]
    List {
        /// Only services whose names sort after this one, for the next page.
        #[serde(default)]
        after: Option<Name>,
        /// Rows of the page, at most [`PAGE_ROWS_MAX`](crate::limits::PAGE_ROWS_MAX).
        limit: u32,
    },
    /// One service. → [`ServiceReply::Service`]
    Show {
        /// The service.
        service: Name,
        /// When given, the reply waits until there is a later event of the service, or `wait_ms`
        /// have passed.
        #[serde(default)]
        since: Option<Revision>,
        /// Milliseconds to wait, at most [`WAIT_MS_MAX`](crate::limits::WAIT_MS_MAX).
        #[serde(default)]
        wait_ms: u32,
    },
    /// The revisions of a service, newest first. → [`ServiceReply::History`]
    History {
        /// The service.
        service: Name,
    },
}

impl ServiceRequest {
    /// Returns the required role.
    pub fn needs(&self) -> Role {
        match self {
            Self::Plan { .. } | Self::List { .. } | Self::Show { .. } | Self::History { .. } => {
                Role::Viewer
            }
            Self::Apply { .. }
            | Self::Scale { .. }
            | Self::Restart { .. }
            | Self::Rollback { .. }
            | Self::Stop { .. }
            | Self::Start { .. }
            | Self::Remove { .. } => Role::Operator,
        }
    }
}

/// The reply to a [`ServiceRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceReply {
    /// To a request that changes a service.
    Changed {
        /// The service.
        service: Name,
        /// Its current revision.
        revision: u32,
        /// Whether the request has changed anything.
        changed: bool,
    },
    /// To [`ServiceRequest::Plan`].
    Plan(ServicePlan),
    /// To [`ServiceRequest::List`].
    List(Vec<ServiceView>),
    /// To [`ServiceRequest::Show`].
    Service(Box<ServiceDetail>),
    /// To [`ServiceRequest::History`].
    History(Vec<ServiceRevision>),
}

/// What an `apply` would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlan {
    /// The current spec; `None` if the service is new.
    pub before: Option<Box<ServiceSpec>>,
    /// Whether all replicas would be replaced, or started for the first time.
    pub replaces: bool,
    /// How many new replicas each node would get, by the room that the nodes have now.
    pub placements: BTreeMap<Name, u32>,
    /// How many would have to wait for room.
    pub waiting: u32,
    /// Why they would wait.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<String>,
}

/// What a service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// All wanted replicas are healthy.
    Healthy,
    /// Fewer replicas than wanted are healthy.
    Degraded,
    /// Replicas of an older revision are being replaced.
    Updating,
    /// The last update failed, and its replicas are being replaced by those of an older revision.
    RollingBack,
    /// It was stopped.
    Stopped,
    /// It is being removed.
    Removing,
}

/// A row of `services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// The service.
    pub service: Name,
    /// What it does.
    pub state: MaybeKnown<ServiceState>,
    /// The current revision.
    pub revision: u32,
    /// How many replicas are wanted.
    pub replicas: u32,
    /// How many replicas of the current revision are healthy.
    pub healthy: u32,
    /// How many replicas exist, of all revisions.
    pub existing: u32,
    /// The image, or the command.
    pub runs: String,
    /// The published ports, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub published: BTreeMap<Name, u16>,
    /// See [`ServiceSpec::project`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Project>,
}

/// Everything about a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDetail {
    /// Its row.
    pub view: ServiceView,
    /// Its current spec.
    pub spec: ServiceSpec,
    /// The revision of the last event of the service; for `since` of the next request.
    pub changed: Revision,
    /// Its replicas, by number; the current revision first.
    pub replicas: Vec<ReplicaView>,
    /// Why wanted replicas wait: one reason per entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<String>,
    /// How the last update ended, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_update: Option<String>,
    /// On which nodes published ports are not open, and why: one sentence per entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed_ports: Vec<String>,
}

/// A replica, or the wait for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaView {
    /// Its number.
    pub number: u32,
    /// The revision of its spec.
    pub revision: u32,
    /// What it does.
    pub state: MaybeKnown<ReplicaState>,
    /// Its last attempt, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptId>,
    /// The node of that attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// Where it listens, by the name of the port: `address:port`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<Name, String>,
    /// What its last health check said, or how the last one with its number ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How many replicas with its number have ended in a row without ten healthy minutes.
    #[serde(default)]
    pub failures: u32,
    /// Milliseconds until it is started again, if it waits for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts_in_ms: Option<u64>,
}

/// What a replica does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// It waits for room on a node.
    Queued,
    /// A node prepares its start.
    Preparing,
    /// It runs, and has not shown yet that it works.
    Starting,
    /// It works.
    Healthy,
    /// Its health check fails.
    Unhealthy,
    /// It works, but its node does not answer.
    Unreachable,
    /// It gets no new connections, and is stopped when the present ones have ended.
    Draining,
    /// It is being stopped.
    Stopping,
    /// It has ended, and is started again after a pause.
    Restarting,
    /// It has ended, and its restart policy says that it is not started again.
    Ended,
    /// It waits until another replica has ended, or until other services have come so far.
    Waiting,
}

/// A row of a service's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRevision {
    /// The revision.
    pub revision: u32,
    /// The spec.
    pub spec: ServiceSpec,
    /// Who applied it.
    pub by: Name,
    /// When: milliseconds since 1970 by the manager's clock, for display.
    pub applied_wall_ms: u64,
    /// What became of it.
    pub state: MaybeKnown<RevisionState>,
    /// Why it failed, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What became of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevisionState {
    /// It has not been reached completely.
    Begun,
    /// All its replicas were healthy.
    Reached,
    /// It did not become healthy in time.
    Failed,
}
