//! The spec of a service, as JSON.

use std::collections::BTreeMap;

use podmesh_protocol::service;
use podmesh_protocol::spec::RuntimeSpec;
use schemars::JsonSchema;
use serde::Serialize;

use crate::json::{ContainerOutput, RuntimeKind, Word, labels, resource_millis, words};
use crate::service::ProjectOutput;

words! {
    /// How far another service must have come.
    DependsOn = service::DependsOn {
        /// All its replicas have been started.
        Started "started",
        /// All its replicas are healthy.
        Healthy "healthy",
        /// All its replicas have exited with 0, and are not started again.
        Completed "completed",
    }
    /// After which ends a replica is started again.
    RestartWhen = service::RestartWhen {
        /// After every end.
        Always "always",
        /// Unless it has exited with 0.
        OnFailure "on_failure",
        /// Never. A replica whose node was lost is still started on another node.
        Never "never",
    }
}

/// The spec of a service.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ServiceSpecOutput {
    /// How many replicas should run.
    pub replicas: u32,
    /// What runs the replicas.
    pub runtime: RuntimeKind,
    /// Program and arguments; empty for an image's own.
    pub command: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Working folder, if given.
    pub workdir: Option<String>,
    /// The files that each replica gets, by path.
    pub files: BTreeMap<String, String>,
    /// The options of a container.
    pub container: Option<ContainerOutput>,
    /// Thousandths of a core for each replica.
    pub cpu_millis: u32,
    /// Bytes of memory for each replica; 0 if not limited and not reserved.
    pub memory_bytes: u64,
    /// Labels that a node must have.
    pub require: BTreeMap<String, String>,
    /// The label over whose values replicas are spread.
    pub spread: Option<String>,
    /// What each replica needs of named resources, in thousandths.
    pub resource_millis: BTreeMap<String, u32>,
    /// Labels of the nodes that are tried first.
    pub prefer: BTreeMap<String, String>,
    /// Whether each replica has its node for itself.
    pub exclusive: bool,
    /// The project that it is a part of.
    pub project: Option<ProjectOutput>,
    /// The services that its first replica waits for, and how far they must have come.
    pub depends_on: BTreeMap<String, DependsOn>,
    /// The time between TERM and KILL.
    pub stop_grace_ms: u64,
    /// The time that the connections of a replica get to end before it is stopped.
    pub drain_ms: u64,
    /// The ports that a replica listens on, by name.
    pub ports: BTreeMap<String, PortOutput>,
    /// How a replica shows that it works; null for the default.
    pub health: Option<HealthOutput>,
    /// When a replica that has ended is started again.
    pub restart: RestartOutput,
    /// How replicas of an older revision are replaced.
    pub update: UpdateOutput,
}

/// A port of a service.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PortOutput {
    /// The port inside the container; null for a command.
    pub container: Option<u16>,
    /// The port on every node; null if it is not published.
    pub publish: Option<u16>,
    /// Whether each connection to a replica begins with a PROXY protocol header.
    pub proxy_protocol: bool,
}

/// How a replica shows that it works.
#[derive(Debug, Serialize, JsonSchema)]
pub struct HealthOutput {
    /// The check.
    #[serde(flatten)]
    pub check: CheckOutput,
    /// The time between two checks.
    pub interval_ms: u64,
    /// The time that a check may take.
    pub timeout_ms: u64,
    /// The time after the start in which failed checks do not count.
    pub start_period_ms: u64,
    /// How many checks in a row must fail before the replica is unhealthy.
    pub failures: u32,
}

/// A health check.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CheckOutput {
    /// A connection to a port is accepted.
    Tcp {
        /// The name of the port.
        port: String,
    },
    /// An HTTP request is answered.
    Http {
        /// The name of the port.
        port: String,
        /// The path.
        path: String,
        /// The status that the answer must have; null for 200 to 399.
        status: Option<u16>,
        /// Further headers of the request.
        headers: BTreeMap<String, String>,
    },
    /// A command exits with 0.
    Command {
        /// Program and arguments.
        command: Vec<String>,
    },
    /// A replica works as soon as it has started.
    None,
}

/// When a replica that has ended is started again.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RestartOutput {
    /// After which ends.
    pub when: RestartWhen,
    /// The pause before the second restart in a row; doubled for each further one.
    pub backoff_ms: u64,
    /// The maximum pause.
    pub backoff_max_ms: u64,
}

/// How replicas of an older revision are replaced.
#[derive(Debug, Serialize, JsonSchema)]
pub struct UpdateOutput {
    /// How many replicas more than wanted may exist meanwhile.
    pub max_surge: u32,
    /// How many replicas stay healthy meanwhile; null for all.
    pub min_healthy: Option<u32>,
    /// The time within which each further replica must become healthy.
    pub healthy_within_ms: u64,
    /// Whether to go back to the older revision otherwise.
    pub rollback: bool,
}

impl From<&service::ServiceSpec> for ServiceSpecOutput {
    fn from(spec: &service::ServiceSpec) -> Self {
        let run = &spec.run;
        let port = |port: &service::PortSpec| PortOutput {
            container: port.container,
            publish: port.publish,
            proxy_protocol: port.proxy_protocol,
        };
        Self {
            replicas: spec.replicas,
            runtime: run.runtime.kind().into(),
            command: run.command.clone(),
            env: run.env.clone(),
            workdir: run.workdir.clone(),
            files: run.files.clone(),
            container: match &run.runtime {
                RuntimeSpec::Docker(docker) => Some(docker.as_ref().into()),
                RuntimeSpec::Process | RuntimeSpec::Noop => None,
            },
            cpu_millis: spec.resources.cpu_millis,
            memory_bytes: spec.resources.memory_bytes,
            require: labels(&spec.require),
            spread: spec.spread.as_ref().map(ToString::to_string),
            resource_millis: resource_millis(&spec.place),
            prefer: labels(&spec.place.prefer),
            exclusive: spec.place.exclusive,
            project: spec.project.as_ref().map(Into::into),
            depends_on: spec
                .depends_on
                .iter()
                .map(|(service, needs)| (service.to_string(), (*needs).into()))
                .collect(),
            stop_grace_ms: run.stop_grace_ms,
            drain_ms: spec.drain_ms,
            ports: spec.ports.iter().map(|(name, spec)| (name.to_string(), port(spec))).collect(),
            health: spec.health.as_deref().map(Into::into),
            restart: RestartOutput {
                when: spec.restart.when.into(),
                backoff_ms: spec.restart.backoff_ms,
                backoff_max_ms: spec.restart.backoff_ms_max,
            },
            update: UpdateOutput {
                max_surge: spec.update.max_surge,
                min_healthy: spec.update.min_healthy,
                healthy_within_ms: spec.update.healthy_within_ms,
                rollback: spec.update.rollback,
            },
        }
    }
}

impl From<&service::HealthSpec> for HealthOutput {
    fn from(spec: &service::HealthSpec) -> Self {
        let check = match &spec.check {
            service::HealthCheck::Tcp { port } => CheckOutput::Tcp { port: port.to_string() },
            service::HealthCheck::Http { port, path, status, headers } => CheckOutput::Http {
                port: port.to_string(),
                path: path.clone(),
                status: *status,
                headers: headers.clone(),
            },
            service::HealthCheck::Command(command) => {
                CheckOutput::Command { command: command.clone() }
            }
            service::HealthCheck::None => CheckOutput::None,
        };
        Self {
            check,
            interval_ms: spec.interval_ms,
            timeout_ms: spec.timeout_ms,
            start_period_ms: spec.start_period_ms,
            failures: spec.failures,
        }
    }
}
