//! Services: what should keep running, and what clients and agents say about it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::access::Role;
use crate::ids::{AttemptId, Name, Revision};
use crate::limits::*;
use crate::spec::{Resources, RunSpec, RuntimeSpec, SpecError, VolumeMount, validate_label_value};

/// What a user wants to keep running. The latest spec of a service replaces the earlier ones.
///
/// A `ServiceSpec` from the wire must not be trusted before [`ServiceSpec::validate`] has succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// The name of the service. No two services have the same one, whatever the case of its letters.
    pub name: Name,
    /// How many replicas should run. Default 1.
    #[serde(default = "one")]
    pub replicas: u32,
    /// Labels that a node must have, with exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub require: BTreeMap<Name, String>,
    /// The label over whose values replicas are spread. They are spread over nodes in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Name>,
    /// The project that it is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Project>,
    /// The services that it needs. Its first replica waits until all of them have come so far; later
    /// ones do not wait.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub depends_on: BTreeMap<Name, DependsOn>,
    /// The resources of one replica.
    #[serde(default)]
    pub resources: Resources,
    /// The ports that a replica listens on, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<Name, PortSpec>,
    /// How a replica shows that it works. Default: the image's own health check; without one, a
    /// connection to its first port; without a port, a replica works as soon as it has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSpec>,
    /// When a replica that has ended is started again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How replicas of an older revision are replaced.
    #[serde(default)]
    pub update: UpdatePolicy,
    /// Milliseconds that the connections of a replica get to end before it is stopped. Default 10 s.
    #[serde(default = "drain_default")]
    pub drain_ms: u64,
    /// How each replica is run. [`RunSpec::replica`] is empty here.
    pub run: RunSpec,
}

fn one() -> u32 {
    1
}

impl ServiceSpec {
    /// The default of [`ServiceSpec::drain_ms`].
    pub const DRAIN_MS_DEFAULT: u64 = 10_000;
}

fn drain_default() -> u64 {
    ServiceSpec::DRAIN_MS_DEFAULT
}

/// Services that belong together, such as those of a compose file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// The name of the project.
    pub name: Name,
    /// What the service is called in the project.
    pub member: Name,
    /// Whether it runs on the same node as the other services of the project that say so. Without
    /// a volume that binds them to a node, they move together.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub together: bool,
}

/// How far another service must have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DependsOn {
    /// All its replicas have been started.
    Started,
    /// All its replicas are healthy.
    Healthy,
    /// All its replicas have exited with 0, and are not started again.
    Completed,
}

/// A port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    /// The port inside the container. A command has none: it listens on the port in
    /// `PODMESH_PORT_<NAME>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<u16>,
    /// The port on every node, on which the node's proxy listens. `None`: only the replicas' own
    /// addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<u16>,
    /// Whether the proxy begins each connection to a replica with a PROXY protocol header of
    /// version 2, which tells the client's address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proxy_protocol: bool,
}

/// How a replica shows that it works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSpec {
    /// The check.
    pub check: HealthCheck,
    /// Milliseconds between two checks. Default 10 s. While the replica starts, checks come more
    /// often: at most a second apart.
    #[serde(default = "interval_default")]
    pub interval_ms: u64,
    /// Milliseconds that a check may take. Default 5 s.
    #[serde(default = "timeout_default")]
    pub timeout_ms: u64,
    /// Milliseconds after the start in which failed checks do not count. Default 30 s. The first
    /// successful check ends it.
    #[serde(default = "start_period_default")]
    pub start_period_ms: u64,
    /// How many checks in a row must fail before the replica is unhealthy. Default 3. While it
    /// starts, only failed checks an interval apart count.
    #[serde(default = "failures_default")]
    pub failures: u32,
}

fn interval_default() -> u64 {
    10_000
}

fn timeout_default() -> u64 {
    5_000
}

fn start_period_default() -> u64 {
    30_000
}

fn failures_default() -> u32 {
    3
}

impl HealthSpec {
    /// Returns a check with the default times.
    pub fn new(check: HealthCheck) -> Self {
        Self {
            check,
            interval_ms: interval_default(),
            timeout_ms: timeout_default(),
            start_period_ms: start_period_default(),
            failures: failures_default(),
        }
    }
}

/// The kinds of health check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthCheck {
    /// A connection to a port is accepted.
    Tcp {
        /// The port.
        port: Name,
    },
    /// An HTTP/1.1 request is answered. Redirects are not followed.
    Http {
        /// The port.
        port: Name,
        /// The path, with a query if needed. Begins with `/`.
        path: String,
        /// The status that the answer must have. Default: 200 to 399.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        /// Further headers of the request, by name.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<String, String>,
    },
    /// A command exits with 0. It runs inside the container, or beside the process as its user.
    Command(Vec<String>),
    /// None: a replica works as soon as it has started, whatever the image says.
    None,
}

/// When a replica that has ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// After which ends.
    #[serde(default)]
    pub when: RestartWhen,
    /// Milliseconds before the second restart in a row; the first comes at once. Doubled for each
    /// further one. Default 1 s. A replica that was healthy for ten minutes starts anew.
    pub backoff_ms: u64,
    /// The maximum pause in milliseconds. Default 1 min.
    pub backoff_ms_max: u64,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { when: RestartWhen::Always, backoff_ms: 1_000, backoff_ms_max: 60_000 }
    }
}

/// After which ends a replica is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartWhen {
    /// After every end.
    #[default]
    Always,
    /// Unless it has exited with 0.
    OnFailure,
    /// Never. A replica whose node was lost is still started on another node.
    Never,
}

/// How the replicas of an older revision are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdatePolicy {
    /// How many replicas more than wanted may exist meanwhile. Default 1. None in a service that
    /// writes to a volume: two replicas with the same data could damage it.
    pub max_surge: u32,
    /// How many replicas stay healthy meanwhile. Default: all; one fewer if there can be no surge
    /// because of a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_healthy: Option<u32>,
    /// Milliseconds within which each further replica of the new revision must become healthy.
    /// Default 5 min.
    pub healthy_within_ms: u64,
    /// Whether to go back to the older revision otherwise. Default true.
    pub rollback: bool,
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self { max_surge: 1, min_healthy: None, healthy_within_ms: 300_000, rollback: true }
    }
}

/// What makes a task a replica of a service: a part of its [`RunSpec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaSpec {
    /// The service.
    pub service: Name,
    /// The revision of the service's spec.
    pub revision: u32,
    /// The number of the replica: 1 to the number of replicas. A replica and its successor have the
    /// same one.
    pub number: u32,
    /// See [`ServiceSpec::spread`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Name>,
    /// The ports that it listens on, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<Name, PortSpec>,
    /// How it shows that it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSpec>,
}

/// Whether a replica works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Not known yet: no check has succeeded since the start, and they do not count against it yet.
    #[default]
    Starting,
    /// Its checks succeed.
    Healthy,
    /// Its checks fail. It is replaced.
    Unhealthy,
}

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
        /// The number, at most [`REPLICAS_MAX`].
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
        /// Rows of the page, at most [`PAGE_ROWS_MAX`].
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
        /// Milliseconds to wait, at most [`WAIT_MS_MAX`].
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
    pub state: ServiceState,
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
    pub state: ReplicaState,
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
    pub state: RevisionState,
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

/// The ready replicas of a service, which the proxies pass connections to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEndpoints {
    /// The service.
    pub service: Name,
    /// Its published ports. Empty if the service is gone.
    pub ports: Vec<PortEndpoints>,
}

/// The ready replicas behind one published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortEndpoints {
    /// The name of the port.
    pub port: Name,
    /// The port that the proxies listen on.
    pub publish: u16,
    /// See [`PortSpec::proxy_protocol`].
    pub proxy_protocol: bool,
    /// The replicas: each an attempt, and the `address:port` on which it listens.
    pub endpoints: Vec<(AttemptId, String)>,
}

impl ServiceSpec {
    /// Checks every rule and limit.
    ///
    /// # Errors
    /// The first [`SpecError`] found.
    pub fn validate(&self) -> Result<(), SpecError> {
        use crate::spec::{at_most, within};

        let text = |field, why: String| Err(SpecError::Text { field, why });
        within("replicas", self.replicas, 0..=i128::from(REPLICAS_MAX), Some("REPLICAS_MAX"))?;
        at_most("require", self.require.len(), "labels", LABELS_MAX, "LABELS_MAX")?;
        for value in self.require.values() {
            validate_label_value("require", value)?;
        }
        self.resources.validate()?;
        let duration_max = i128::from(DURATION_MS_MAX);
        for (field, value) in [
            ("drain (ms)", self.drain_ms),
            ("restart: backoff (ms)", self.restart.backoff_ms),
            ("restart: longest backoff (ms)", self.restart.backoff_ms_max),
            ("update: healthy_within (ms)", self.update.healthy_within_ms),
        ] {
            within(field, value, 0..=duration_max, Some("DURATION_MS_MAX"))?;
        }
        within(
            "update: max_surge",
            self.update.max_surge,
            0..=i128::from(REPLICAS_MAX),
            Some("REPLICAS_MAX"),
        )?;
        if self.update.max_surge == 0
            && self.update.min_healthy.is_none_or(|least| least >= self.replicas.max(1))
        {
            let why = format!(
                "with max_surge = 0, min_healthy must be less than the number of replicas ({}): otherwise no replica could ever be replaced",
                self.replicas
            );
            return text("update", why);
        }
        let dependencies = self.depends_on.len();
        at_most("depends_on", dependencies, "services", DEPENDENCIES_MAX, "DEPENDENCIES_MAX")?;
        if self.depends_on.contains_key(&self.name) {
            return text("depends_on", "a service cannot wait for itself".into());
        }
        if self.run.replica.is_some() {
            return text("run", "contains a replica, which only the manager sets".into());
        }
        if self.run.timeout_ms.is_some() {
            return text("timeout", "a service has none: it keeps running".into());
        }
        self.run.validate()?;
        at_most("ports", self.ports.len(), "ports", PORTS_MAX, "PORTS_MAX")?;
        let is_container = matches!(self.run.runtime, RuntimeSpec::Docker(_));
        for (name, port) in &self.ports {
            if port.container.is_some() != is_container {
                let why = if is_container {
                    format!("port `{name}` needs `container`: the port inside the container")
                } else {
                    format!(
                        "port `{name}` has `container`, but the service is a command: it must listen on the port in its environment variable {}",
                        port_variable(name)
                    )
                };
                return text("ports", why);
            }
            if port.container == Some(0) || port.publish == Some(0) {
                return text("ports", format!("port `{name}`: 0 is not a port"));
            }
            let variable = port_variable(name);
            let namesake = |other: &&Name| *other != name && port_variable(other) == variable;
            if let Some(other) = self.ports.keys().find(namesake) {
                let why = format!(
                    "`{name}` and `{other}` are too similar: both would be {variable} in the environment"
                );
                return text("ports", why);
            }
            let twin = self.ports.iter().find(|(other, their)| {
                *other != name && their.publish.is_some() && their.publish == port.publish
            });
            if let (Some((other, _)), Some(publish)) = (twin, port.publish) {
                return text("ports", format!("`{name}` and `{other}` both publish {publish}"));
            }
        }
        self.health.iter().try_for_each(|health| health.validate(&self.ports))
    }

    /// Returns whether replicas of this spec differ from replicas of another one, so that an update
    /// replaces them.
    pub fn replaces(&self, other: &Self) -> bool {
        let published = |spec: &Self| -> BTreeMap<Name, PortSpec> {
            let ports = spec.ports.iter();
            ports
                .map(|(name, port)| (name.clone(), PortSpec { publish: None, ..port.clone() }))
                .collect()
        };
        (&self.require, &self.spread, &self.resources, &self.health, &self.run)
            != (&other.require, &other.spread, &other.resources, &other.health, &other.run)
            || published(self) != published(other)
    }

    /// Returns how many replicas stay healthy during an update.
    pub fn min_healthy(&self) -> u32 {
        let most = self.replicas.saturating_sub(self.writes_volumes().into());
        self.update.min_healthy.unwrap_or(self.replicas).min(most)
    }

    /// Returns how many replicas more than wanted may exist during an update.
    pub fn max_surge(&self) -> u32 {
        if self.writes_volumes() { 0 } else { self.update.max_surge }
    }

    /// Returns the named volumes of its replicas.
    pub fn volumes(&self) -> &[VolumeMount] {
        self.run.volumes()
    }

    fn writes_volumes(&self) -> bool {
        self.volumes().iter().any(|volume| !volume.read_only)
    }
}

impl HealthSpec {
    fn validate(&self, ports: &BTreeMap<Name, PortSpec>) -> Result<(), SpecError> {
        use crate::spec::{no_nul, within};

        let text = |field, why: String| Err(SpecError::Text { field, why });
        let duration_max = i128::from(DURATION_MS_MAX);
        let limit = Some("DURATION_MS_MAX");
        within("health: interval (ms)", self.interval_ms, 1..=duration_max, limit)?;
        within("health: timeout (ms)", self.timeout_ms, 1..=duration_max, limit)?;
        within("health: start_period (ms)", self.start_period_ms, 0..=duration_max, limit)?;
        within(
            "health: failures",
            self.failures,
            1..=i128::from(RETRIES_MAX),
            Some("RETRIES_MAX"),
        )?;
        match &self.check {
            HealthCheck::Tcp { port } | HealthCheck::Http { port, .. }
                if !ports.contains_key(port) =>
            {
                return text("health", format!("there is no port `{port}`"));
            }
            HealthCheck::Http { path, status, headers, .. } => {
                let plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
                if !path.starts_with('/') || !plain(path) || path.len() > PATH_BYTES_MAX {
                    let why = format!("`{}` is not a path such as /health", path.escape_debug());
                    return text("health: path", why);
                }
                if let Some(status) = status {
                    within("health: status", *status, 100..=599, None)?;
                }
                for (name, value) in headers {
                    let token =
                        |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
                    let sound = !name.is_empty()
                        && name.bytes().all(token)
                        && value.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
                    if !sound || name.len() + value.len() > PATH_BYTES_MAX {
                        let why = format!("`{}` is not a header", name.escape_debug());
                        return text("health: headers", why);
                    }
                }
            }
            HealthCheck::Command(command) => {
                if command.first().is_none_or(String::is_empty) {
                    return Err(SpecError::Empty { field: "health: command" });
                }
                let bytes: usize = command.iter().map(|arg| arg.len() + 1).sum();
                if bytes > PATH_BYTES_MAX {
                    let why = format!(
                        "{bytes} bytes are over the limit of {PATH_BYTES_MAX} (PATH_BYTES_MAX)"
                    );
                    return text("health: command", why);
                }
                command.iter().try_for_each(|arg| no_nul("health: command", arg))?;
            }
            HealthCheck::Tcp { .. } | HealthCheck::None => {}
        }
        Ok(())
    }
}

/// Returns the name of the environment variable that has a port of a replica: `PODMESH_PORT_HTTP`
/// for `http`. Every character that is not a letter or digit becomes `_`.
pub fn port_variable(port: &Name) -> String {
    variable("PODMESH_PORT_", port)
}

/// Returns the name of the environment variable that has the address of a service:
/// `PODMESH_SERVICE_WEB` for `web`.
pub fn service_variable(service: &Name) -> String {
    variable("PODMESH_SERVICE_", service)
}

fn variable(prefix: &str, name: &Name) -> String {
    let word = name
        .as_str()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    prefix.chars().chain(word).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn spec(json: &str) -> ServiceSpec {
        let mut value: serde_json::Value = serde_json::from_str(
            r#"{"name": "web", "replicas": 2, "run": {"runtime": "process", "command": ["x"]},
                "ports": {"http": {"publish": 80}}}"#,
        )
        .unwrap();
        let change: serde_json::Value = serde_json::from_str(json).unwrap();
        for (key, new) in change.as_object().unwrap() {
            value[key] = new.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_error_says_what_is_wrong() {
        assert_eq!(spec("{}").validate(), Ok(()));
        for (json, said) in [
            (r#"{"replicas": 1001}"#, "REPLICAS_MAX"),
            (r#"{"ports": {"http": {"container": 80}}}"#, "PODMESH_PORT_HTTP"),
            (r#"{"ports": {"a": {"publish": 0}}}"#, "0 is not a port"),
            (r#"{"ports": {"a": {"publish": 1}, "b": {"publish": 1}}}"#, "both publish 1"),
            (r#"{"ports": {"Http": {}, "http": {}}}"#, "PODMESH_PORT_HTTP"),
            (r#"{"health": {"check": {"tcp": {"port": "x"}}}}"#, "no port `x`"),
            (r#"{"health": {"check": {"http": {"port": "http", "path": "x"}}}}"#, "not a path"),
            (
                r#"{"health": {"check": {"http": {"port": "http", "path": "/",
                    "headers": {"A\r\nB": "x"}}}}}"#,
                "not a header",
            ),
            (r#"{"health": {"check": {"command": []}}}"#, "must not be empty"),
            (r#"{"health": {"check": "none", "failures": 0}}"#, "failures"),
            (
                r#"{"update": {"max_surge": 0, "min_healthy": 2, "healthy_within_ms": 1,
                    "rollback": true}}"#,
                "min_healthy must be less",
            ),
            (
                r#"{"run": {"runtime": "process", "command": ["x"], "timeout_ms": 1}}"#,
                "it keeps running",
            ),
        ] {
            let error = spec(json).validate().unwrap_err().to_string();
            assert!(error.contains(said), "{error:?} does not say {said:?}");
        }
    }

    #[test]
    fn a_change_that_a_replica_does_not_notice_replaces_none() {
        let before = spec("{}");
        for same in
            [r#"{"replicas": 5}"#, r#"{"drain_ms": 1}"#, r#"{"ports": {"http": {"publish": 81}}}"#]
        {
            assert!(!spec(same).replaces(&before), "{same}");
        }
        for other in
            [r#"{"spread": "zone"}"#, r#"{"ports": {}}"#, r#"{"resources": {"cpu_millis": 5}}"#]
        {
            assert!(spec(other).replaces(&before), "{other}");
        }
    }

    #[test]
    fn variables_have_names_that_shells_know() {
        assert_eq!(port_variable(&"grpc-web".parse().unwrap()), "PODMESH_PORT_GRPC_WEB");
        assert_eq!(service_variable(&"my.db".parse().unwrap()), "PODMESH_SERVICE_MY_DB");
    }
}
