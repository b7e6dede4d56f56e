//! Services: what should keep running, and what clients and agents say about it.

mod exchange;
mod rules;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{AttemptId, Name};
use crate::place::PlaceRules;
use crate::rare::Rare;
use crate::spec::{Resources, RunSpec};

pub use self::exchange::{
    ReplicaState, ReplicaView, RevisionState, ServiceDetail, ServicePlan, ServiceReply,
    ServiceRequest, ServiceRevision, ServiceState, ServiceView,
};

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
    /// Where replicas may go, beyond `require` and `resources`. Its own `spread` is `None`.
    #[serde(default, skip_serializing_if = "PlaceRules::is_default")]
    pub place: Rare<PlaceRules>,
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
    pub ports: Arc<BTreeMap<Name, PortSpec>>,
    /// How a replica shows that it works. Default: the image's own health check; without one, a
    /// connection to its first port; without a port, a replica works as soon as it has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Arc<HealthSpec>>,
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
    pub ports: Arc<BTreeMap<Name, PortSpec>>,
    /// How it shows that it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Arc<HealthSpec>>,
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

pub(crate) fn variable(prefix: &str, name: &Name) -> String {
    let word = name
        .as_str()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    prefix.chars().chain(word).collect()
}
