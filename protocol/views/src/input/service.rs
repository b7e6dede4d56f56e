//! Services.

use std::collections::BTreeMap;
use std::sync::Arc;

use podmesh_protocol::ids::Name;
use podmesh_protocol::place::PlaceRules;
use podmesh_protocol::service::{self, ServiceSpec};
use podmesh_protocol::spec::{DockerSpec, RuntimeKind as WireRuntimeKind};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

use super::{InputError, container, optional, resources, run, runtime};
use crate::json::RuntimeKind;
use crate::service::ProjectOutput;
use crate::service_spec::{DependsOn, PortOutput, RestartWhen};

/// What a service runs.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ServiceSpecInput {
    /// How many replicas should run; default 1.
    pub replicas: Option<u32>,
    /// What runs the replicas; default: `docker` with a container, otherwise `process`.
    #[schemars(with = "Option<RuntimeKind>")]
    pub runtime: Option<WireRuntimeKind>,
    /// Program and arguments; empty for an image's own.
    pub command: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Working folder.
    pub workdir: Option<String>,
    /// The files that each replica gets, by path.
    pub files: BTreeMap<String, String>,
    /// The options of a container.
    #[schemars(schema_with = "container")]
    pub container: Option<DockerSpec>,
    /// Thousandths of a core for each replica; default 1000.
    pub cpu_millis: Option<u32>,
    /// Bytes of memory for each replica; default 0: not limited and not reserved.
    pub memory_bytes: u64,
    /// Labels that a node must have.
    #[schemars(with = "BTreeMap<String, String>")]
    pub require: BTreeMap<Name, String>,
    /// The label over whose values replicas are spread.
    #[schemars(with = "Option<String>")]
    pub spread: Option<Name>,
    /// What each replica needs of named resources, in thousandths: 2000 for two, 500 for a half of one.
    #[schemars(with = "BTreeMap<String, u32>")]
    pub resource_millis: BTreeMap<Name, u32>,
    /// Labels of the nodes that are tried first.
    #[schemars(with = "BTreeMap<String, String>")]
    pub prefer: BTreeMap<Name, String>,
    /// Whether each replica has its node for itself.
    pub exclusive: bool,
    /// The project that it is a part of.
    #[schemars(with = "Option<ProjectOutput>")]
    pub project: Option<service::Project>,
    /// The services that its first replica waits for, and how far they must have come.
    #[schemars(with = "BTreeMap<String, DependsOn>")]
    pub depends_on: BTreeMap<Name, service::DependsOn>,
    /// The time between TERM and KILL; default 10 s.
    pub stop_grace_ms: Option<u64>,
    /// The time that the connections of a replica get to end before it is stopped; default 10 s.
    pub drain_ms: Option<u64>,
    /// The ports that a replica listens on, by name.
    #[schemars(schema_with = "ports")]
    pub ports: BTreeMap<Name, service::PortSpec>,
    /// How a replica shows that it works. Default: the image's own check, or a connection to the
    /// first port.
    pub health: Option<HealthInput>,
    /// When a replica that has ended is started again.
    pub restart: RestartInput,
    /// How replicas of an older revision are replaced.
    pub update: UpdateInput,
}

/// The kinds of health check.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// A connection to a port is accepted.
    Tcp,
    /// An HTTP request is answered.
    Http,
    /// A command exits with 0.
    Command,
    /// A replica works as soon as it has started.
    None,
}

/// How a replica shows that it works.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct HealthInput {
    /// The kind of check.
    pub kind: CheckKind,
    /// `tcp` and `http`: the name of the port.
    #[schemars(with = "Option<String>")]
    pub port: Option<Name>,
    /// `http`: the path; default `/`.
    pub path: Option<String>,
    /// `http`: the status that the answer must have; default: 200 to 399.
    pub status: Option<u16>,
    /// `http`: further headers of the request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// `command`: program and arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// The time between two checks; default 10 s.
    pub interval_ms: Option<u64>,
    /// The time that a check may take; default 5 s.
    pub timeout_ms: Option<u64>,
    /// The time after the start in which failed checks do not count; default 30 s.
    pub start_period_ms: Option<u64>,
    /// How many checks in a row must fail before the replica is unhealthy; default 3.
    pub failures: Option<u32>,
}

/// When a replica that has ended is started again.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RestartInput {
    /// After which ends; default: always.
    #[schemars(with = "RestartWhen")]
    pub when: service::RestartWhen,
    /// The pause before the second restart in a row, doubled for each further one; default 1 s.
    pub backoff_ms: Option<u64>,
    /// The maximum pause; default 1 min.
    pub backoff_max_ms: Option<u64>,
}

/// How replicas of an older revision are replaced.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UpdateInput {
    /// How many replicas more than wanted may exist meanwhile; default 1.
    pub max_surge: Option<u32>,
    /// How many replicas stay healthy meanwhile; default: all.
    pub min_healthy: Option<u32>,
    /// The time within which each further replica must become healthy; default 5 min.
    pub healthy_within_ms: Option<u64>,
    /// Whether to go back to the older revision otherwise; default true.
    pub rollback: Option<bool>,
}

impl TryFrom<HealthInput> for service::HealthSpec {
    type Error = InputError;

    fn try_from(health: HealthInput) -> Result<Self, InputError> {
        let missing = |kind, field| InputError::Check { kind, field };
        let check = match health.kind {
            CheckKind::Tcp => {
                service::HealthCheck::Tcp { port: health.port.ok_or(missing("tcp", "port"))? }
            }
            CheckKind::Http => service::HealthCheck::Http {
                port: health.port.ok_or(missing("http", "port"))?,
                path: health.path.unwrap_or_else(|| "/".into()),
                status: health.status,
                headers: health.headers,
            },
            CheckKind::Command if health.command.is_empty() => {
                return Err(missing("command", "command"));
            }
            CheckKind::Command => service::HealthCheck::Command(health.command),
            CheckKind::None => service::HealthCheck::None,
        };
        let mut spec = Self::new(check);
        spec.interval_ms = health.interval_ms.unwrap_or(spec.interval_ms);
        spec.timeout_ms = health.timeout_ms.unwrap_or(spec.timeout_ms);
        spec.start_period_ms = health.start_period_ms.unwrap_or(spec.start_period_ms);
        spec.failures = health.failures.unwrap_or(spec.failures);
        Ok(spec)
    }
}

impl ServiceSpecInput {
    /// Returns the spec of a service with this name.
    ///
    /// # Errors
    /// If fields contradict each other.
    pub fn into_spec(self, name: Name) -> Result<ServiceSpec, InputError> {
        let (restart, update) =
            (service::RestartPolicy::default(), service::UpdatePolicy::default());
        Ok(ServiceSpec {
            name,
            replicas: self.replicas.unwrap_or(1),
            require: self.require,
            spread: self.spread,
            place: PlaceRules {
                resources: self.resource_millis,
                prefer: self.prefer,
                spread: None,
                exclusive: self.exclusive,
            }
            .into(),
            project: self.project,
            depends_on: self.depends_on,
            resources: resources(self.cpu_millis, self.memory_bytes),
            ports: self.ports.into(),
            health: self.health.map(TryInto::try_into).transpose()?.map(Arc::new),
            restart: service::RestartPolicy {
                when: self.restart.when,
                backoff_ms: self.restart.backoff_ms.unwrap_or(restart.backoff_ms),
                backoff_ms_max: self.restart.backoff_max_ms.unwrap_or(restart.backoff_ms_max),
            },
            update: service::UpdatePolicy {
                max_surge: self.update.max_surge.unwrap_or(update.max_surge),
                min_healthy: self.update.min_healthy,
                healthy_within_ms: self
                    .update
                    .healthy_within_ms
                    .unwrap_or(update.healthy_within_ms),
                rollback: self.update.rollback.unwrap_or(update.rollback),
            },
            drain_ms: self.drain_ms.unwrap_or(ServiceSpec::DRAIN_MS_DEFAULT),
            run: run(
                runtime(self.runtime, self.container)?,
                self.command,
                self.env,
                self.workdir,
                self.files,
                self.stop_grace_ms,
            ),
        })
    }
}

/// The schema of a port, of which nothing is required.
fn ports(generator: &mut SchemaGenerator) -> Schema {
    let port = optional::<PortOutput>(generator, &[]);
    schemars::json_schema!({ "type": "object", "additionalProperties": port })
}
