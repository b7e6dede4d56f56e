//! Services, as JSON.

use std::collections::BTreeMap;

use podmesh_protocol::ids::Name;
use podmesh_protocol::service;
use schemars::JsonSchema;
use serde::Serialize;

use crate::json::{Word, words};
use crate::service_spec::ServiceSpecOutput;
use crate::time::rfc3339;

words! {
    /// Whether a replica works.
    Health = service::Health {
        /// Not known yet.
        Starting "starting",
        /// Its checks succeed.
        Healthy "healthy",
        /// Its checks fail. It is replaced.
        Unhealthy "unhealthy",
    }
    /// What an admin lets a node get.
    Scheduling = podmesh_protocol::node::Scheduling {
        /// New work.
        Open "open",
        /// No new work. What it has stays.
        Cordoned "cordoned",
        /// No new work. Its replicas move to other nodes.
        Draining "draining",
    }
    /// What a service does.
    ServiceState = service::ServiceState {
        /// All wanted replicas are healthy.
        Healthy "healthy",
        /// Fewer replicas than wanted are healthy.
        Degraded "degraded",
        /// Replicas of an older revision are being replaced.
        Updating "updating",
        /// The last update failed, and its replicas are being replaced by those of an older revision.
        RollingBack "rolling_back",
        /// It was stopped.
        Stopped "stopped",
        /// It is being removed.
        Removing "removing",
    }
    /// What a replica does.
    ReplicaState = service::ReplicaState {
        /// It waits for room on a node.
        Queued "queued",
        /// A node prepares its start.
        Preparing "preparing",
        /// It runs, and has not shown yet that it works.
        Starting "starting",
        /// It works.
        Healthy "healthy",
        /// Its health check fails.
        Unhealthy "unhealthy",
        /// It works, but its node does not answer.
        Unreachable "unreachable",
        /// It gets no new connections, and is stopped when the present ones have ended.
        Draining "draining",
        /// It is being stopped.
        Stopping "stopping",
        /// It has ended, and is started again after a pause.
        Restarting "restarting",
        /// It has ended, and is not started again.
        Ended "ended",
        /// It waits until another replica has ended.
        Waiting "waiting",
    }
    /// What became of a revision.
    RevisionState = service::RevisionState {
        /// It has not been reached completely.
        Begun "begun",
        /// All its replicas were healthy.
        Reached "reached",
        /// It did not become healthy in time.
        Failed "failed",
    }
}

/// `podmesh services --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct ServicesOutput {
    /// The services in order of name.
    pub services: Vec<ServiceRow>,
}

/// A service.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ServiceRow {
    /// Its name.
    pub service: String,
    /// What it does.
    pub state: ServiceState,
    /// Its current revision.
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
    pub published: BTreeMap<String, u16>,
    /// The project that it is a part of.
    pub project: Option<ProjectOutput>,
}

/// What a service is in its project.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ProjectOutput {
    /// The name of the project.
    pub name: String,
    /// What the service is called in it.
    pub member: String,
    /// Whether it runs on the same node as the other services of the project that say so.
    pub together: bool,
}

impl From<&service::Project> for ProjectOutput {
    fn from(project: &service::Project) -> Self {
        Self {
            name: project.name.to_string(),
            member: project.member.to_string(),
            together: project.together,
        }
    }
}

impl From<&service::ServiceView> for ServiceRow {
    fn from(view: &service::ServiceView) -> Self {
        Self {
            service: view.service.to_string(),
            state: (&view.state).into(),
            revision: view.revision,
            replicas: view.replicas,
            healthy: view.healthy,
            existing: view.existing,
            runs: view.runs.clone(),
            published: by_text(&view.published),
            project: view.project.as_ref().map(Into::into),
        }
    }
}

/// `podmesh service NAME --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct ServiceOutput {
    /// The service as in `services`.
    #[serde(flatten)]
    pub row: ServiceRow,
    /// The current spec.
    pub spec: ServiceSpecOutput,
    /// Its replicas, by number; the current revision first.
    pub replica_list: Vec<ReplicaRow>,
    /// Why wanted replicas wait; empty if none does.
    pub waits_for: Vec<String>,
    /// How the last update ended, if it failed.
    pub failed_update: Option<String>,
    /// On which nodes published ports are not open, and why
    pub closed_ports: Vec<String>,
    /// The last revisions, newest first.
    pub history: Vec<RevisionRow>,
}

impl ServiceOutput {
    /// Returns the view of a service with its history.
    pub fn new(detail: &service::ServiceDetail, history: &[service::ServiceRevision]) -> Self {
        Self {
            row: (&detail.view).into(),
            spec: (&detail.spec).into(),
            replica_list: detail.replicas.iter().map(Into::into).collect(),
            waits_for: detail.waits_for.clone(),
            failed_update: detail.failed_update.clone(),
            closed_ports: detail.closed_ports.clone(),
            history: history.iter().map(Into::into).collect(),
        }
    }
}

/// A replica, or the wait for one.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ReplicaRow {
    /// Its number.
    pub number: u32,
    /// The revision of its spec.
    pub revision: u32,
    /// What it does.
    pub state: ReplicaState,
    /// The number of its job.
    pub job: Option<u64>,
    /// Its last attempt, such as `42.1#1`.
    pub attempt: Option<String>,
    /// The node of that attempt.
    pub node: Option<String>,
    /// Where it listens, by the name of the port: `address:port`.
    pub endpoints: BTreeMap<String, String>,
    /// What its last health check said, or how the last one with its number ended.
    pub message: Option<String>,
    /// How many replicas with its number have ended in a row.
    pub failures: u32,
    /// Time until it is started again, if it waits for that.
    pub restarts_in_ms: Option<u64>,
}

impl From<&service::ReplicaView> for ReplicaRow {
    fn from(view: &service::ReplicaView) -> Self {
        Self {
            number: view.number,
            revision: view.revision,
            state: (&view.state).into(),
            job: view.attempt.map(|attempt| attempt.task.job.0),
            attempt: view.attempt.map(|attempt| attempt.to_string()),
            node: view.node.as_ref().map(ToString::to_string),
            endpoints: by_text(&view.endpoints),
            message: view.message.clone(),
            failures: view.failures,
            restarts_in_ms: view.restarts_in_ms,
        }
    }
}

/// `podmesh service history NAME --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct HistoryOutput {
    /// The service.
    pub service: String,
    /// Its revisions, newest first.
    pub revisions: Vec<RevisionRow>,
}

/// A revision of a service.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RevisionRow {
    /// The revision.
    pub revision: u32,
    /// What became of it.
    pub state: RevisionState,
    /// When it was applied, by the manager's clock: RFC 3339.
    pub applied_at: String,
    /// Who applied it.
    pub by: String,
    /// Why it failed, if it failed.
    pub message: Option<String>,
    /// Its spec.
    pub spec: ServiceSpecOutput,
}

impl From<&service::ServiceRevision> for RevisionRow {
    fn from(revision: &service::ServiceRevision) -> Self {
        Self {
            revision: revision.revision,
            state: (&revision.state).into(),
            applied_at: rfc3339(revision.applied_wall_ms),
            by: revision.by.to_string(),
            message: revision.message.clone(),
            spec: (&revision.spec).into(),
        }
    }
}

/// `podmesh service apply --output json`, and all others that change one service
#[derive(Debug, Serialize, JsonSchema)]
pub struct ServiceChangedOutput {
    /// The service.
    pub service: String,
    /// Its current revision.
    pub revision: u32,
    /// Whether the command has changed anything.
    pub changed: bool,
}

/// `podmesh service remove --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct ServicesRemovedOutput {
    /// The services, in the order of the arguments.
    pub services: Vec<ServiceChangedOutput>,
}

/// `podmesh service apply --dry-run --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct ServicePlanOutput {
    /// The service.
    pub service: String,
    /// Whether the service is new.
    pub new: bool,
    /// The keys of the service file whose values would change.
    pub changes: Vec<String>,
    /// The change of the spec, written as service files: a unified diff. Empty if nothing would
    /// change.
    pub diff: String,
    /// Whether all replicas would be replaced, or started for the first time.
    pub replaces: bool,
    /// How many new replicas each node would get, by the room that the nodes have now.
    pub placements: BTreeMap<String, u32>,
    /// How many would have to wait for room.
    pub waiting: u32,
    /// Why they would wait.
    pub waits_for: Vec<String>,
}

/// `podmesh service NAME --endpoints --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct EndpointsOutput {
    /// The service.
    pub service: String,
    /// Where its healthy replicas listen.
    pub endpoints: Vec<EndpointRow>,
}

/// Where a healthy replica listens.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EndpointRow {
    /// The number of the replica.
    pub replica: u32,
    /// The revision of its spec.
    pub revision: u32,
    /// Its node.
    pub node: Option<String>,
    /// The name of the port.
    pub port: String,
    /// `address:port`
    pub endpoint: String,
}

fn by_text<T: Clone>(map: &BTreeMap<Name, T>) -> BTreeMap<String, T> {
    map.iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
}
