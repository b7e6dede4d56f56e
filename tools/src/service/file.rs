//! A service file in TOML, read and written.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use podmesh_protocol::ids::Name;
use podmesh_protocol::service::{
    DependsOn, HealthCheck, HealthSpec, PortSpec, Project, RestartPolicy, RestartWhen, ServiceSpec,
    UpdatePolicy,
};
use podmesh_protocol::spec::{NetworkMode, PullPolicy, Resources, RuntimeSpec};
use serde::de::{self, Deserializer, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Serialize};

use super::values::{PortNumber, Replicas};
use crate::container::{OneOrMany, STOP_GRACE_MS};
use crate::values::{Amount, Cpus, MountText, Size, Span, UlimitText, VolumeText};

/// A service file. What has its default value is not written.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct ServiceFile {
    pub(super) name: Option<Name>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) image: Option<String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) entrypoint: Option<OneOrMany<String>>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) command: Vec<String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) workdir: Option<String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) user: Option<String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) mounts: Vec<MountText>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) volumes: Vec<VolumeText>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) read_only: bool,
    #[serde(skip_serializing_if = "unset")]
    pub(super) network: Option<NetworkMode>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) networks: BTreeMap<Name, Vec<String>>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) hostname: Option<String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) extra_hosts: Vec<String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) pull: Option<PullPolicy>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) cap_add: Vec<String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) cap_drop: Vec<String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) security_opt: Vec<String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) devices: Vec<String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) pids: Option<u32>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) shm_size: Option<Size>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) init: bool,
    #[serde(skip_serializing_if = "unset")]
    pub(super) tty: bool,
    #[serde(skip_serializing_if = "unset")]
    pub(super) stop_signal: Option<String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) platform: Option<String>,
    /// Always written: for most services these numbers are what changes.
    pub(super) replicas: Option<Replicas>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) spread: Option<Name>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) exclusive: bool,
    pub(super) cpus: Option<Cpus>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) memory: Option<Size>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) stop_grace: Option<Span>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) drain: Option<Span>,
    #[serde(skip_serializing)]
    pub(super) env_file: Option<OneOrMany<PathBuf>>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) require: BTreeMap<Name, String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) prefer: BTreeMap<Name, String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) resources: BTreeMap<Name, Amount>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) tmpfs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) ulimits: BTreeMap<String, UlimitText>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) files: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) depends_on: BTreeMap<Name, DependsOn>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) project: Option<ProjectFile>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) ports: BTreeMap<Name, PortFile>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) health: Option<HealthFile>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) restart: Option<RestartFile>,
    #[serde(skip_serializing_if = "unset")]
    pub(super) update: Option<UpdateFile>,
}

fn unset<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `[project]`
#[derive(Debug, PartialEq, Deserialize, Serialize)]
pub(super) struct ProjectFile {
    pub(super) name: Name,
    pub(super) member: Name,
    #[serde(default, skip_serializing_if = "unset")]
    pub(super) together: bool,
}

impl From<ProjectFile> for Project {
    fn from(file: ProjectFile) -> Self {
        Self { name: file.name, member: file.member, together: file.together }
    }
}

/// `[ports.NAME]`
#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct PortFile {
    #[serde(skip_serializing_if = "unset")]
    container: Option<PortNumber>,
    #[serde(skip_serializing_if = "unset")]
    publish: Option<PortNumber>,
    #[serde(skip_serializing_if = "unset")]
    proxy_protocol: bool,
}

/// `[health]`
#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct HealthFile {
    #[serde(skip_serializing_if = "unset")]
    tcp: Option<Name>,
    #[serde(skip_serializing_if = "unset")]
    command: Option<Vec<String>>,
    #[serde(skip_serializing_if = "unset")]
    none: bool,
    #[serde(skip_serializing_if = "unset")]
    interval: Option<Span>,
    #[serde(skip_serializing_if = "unset")]
    timeout: Option<Span>,
    #[serde(skip_serializing_if = "unset")]
    start_period: Option<Span>,
    #[serde(skip_serializing_if = "unset")]
    failures: Option<u32>,
    #[serde(skip_serializing_if = "unset")]
    http: Option<HttpFile>,
}

/// `health.http`
#[derive(Debug, PartialEq, Deserialize, Serialize)]
pub(super) struct HttpFile {
    port: Name,
    #[serde(default = "root")]
    path: String,
    #[serde(default, skip_serializing_if = "unset")]
    status: Option<u16>,
    #[serde(default, skip_serializing_if = "unset")]
    headers: BTreeMap<String, String>,
}

fn root() -> String {
    "/".into()
}

/// `[restart]`, or `restart = "always"`.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct RestartFile(RestartTable);

/// `[restart]`
#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct RestartTable {
    #[serde(skip_serializing_if = "unset")]
    when: Option<RestartWhen>,
    #[serde(skip_serializing_if = "unset")]
    backoff: Option<Span>,
    #[serde(skip_serializing_if = "unset")]
    backoff_max: Option<Span>,
}

impl<'de> Deserialize<'de> for RestartFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // An untagged enum would lose the line of an error, and accept unknown keys.
        struct WordOrTable;

        impl<'de> Visitor<'de> for WordOrTable {
            type Value = RestartFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"always\", \"on_failure\", \"never\" or a table")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<RestartFile, E> {
                let when = match word {
                    "always" => RestartWhen::Always,
                    "on_failure" => RestartWhen::OnFailure,
                    "never" => RestartWhen::Never,
                    _ => return Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                };
                Ok(RestartFile(RestartTable { when: Some(when), ..RestartTable::default() }))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RestartFile, A::Error> {
                RestartTable::deserialize(MapAccessDeserializer::new(map)).map(RestartFile)
            }
        }

        deserializer.deserialize_any(WordOrTable)
    }
}

/// `[update]`
#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct UpdateFile {
    #[serde(skip_serializing_if = "unset")]
    max_surge: Option<u32>,
    #[serde(skip_serializing_if = "unset")]
    min_healthy: Option<u32>,
    #[serde(skip_serializing_if = "unset")]
    healthy_within: Option<Span>,
    #[serde(skip_serializing_if = "unset")]
    rollback: Option<bool>,
}

impl From<&PortFile> for PortSpec {
    fn from(file: &PortFile) -> Self {
        let number = |port: Option<PortNumber>| port.map(|port| port.0);
        Self {
            container: number(file.container),
            publish: number(file.publish),
            proxy_protocol: file.proxy_protocol,
        }
    }
}

impl HealthFile {
    /// Returns the spec.
    ///
    /// # Errors
    /// What is wrong, if there is not exactly one check.
    pub(super) fn spec(self) -> Result<HealthSpec, &'static str> {
        let http = |http: HttpFile| HealthCheck::Http {
            port: http.port,
            path: http.path,
            status: http.status,
            headers: http.headers,
        };
        let mut checks = [
            self.tcp.map(|port| HealthCheck::Tcp { port }),
            self.http.map(http),
            self.command.map(HealthCheck::Command),
            self.none.then_some(HealthCheck::None),
        ]
        .into_iter()
        .flatten();
        let check = checks.next().ok_or(
            "there is no check; write one of tcp = \"PORT\", http = { port = \"PORT\" }, command = […], none = true",
        )?;
        if checks.next().is_some() {
            return Err(
                "there is more than one check; write only one of tcp, http, command and none",
            );
        }
        let new = HealthSpec::new(check);
        Ok(HealthSpec {
            interval_ms: self.interval.map_or(new.interval_ms, Span::ms),
            timeout_ms: self.timeout.map_or(new.timeout_ms, Span::ms),
            start_period_ms: self.start_period.map_or(new.start_period_ms, Span::ms),
            failures: self.failures.unwrap_or(new.failures),
            ..new
        })
    }
}

impl From<RestartFile> for RestartPolicy {
    fn from(RestartFile(table): RestartFile) -> Self {
        let new = Self::default();
        let backoff_ms = table.backoff.map_or(new.backoff_ms, Span::ms);
        Self {
            when: table.when.unwrap_or_default(),
            backoff_ms,
            // A first pause longer than the default limit raises the limit.
            backoff_ms_max: table.backoff_max.map_or(new.backoff_ms_max.max(backoff_ms), Span::ms),
        }
    }
}

impl From<UpdateFile> for UpdatePolicy {
    fn from(file: UpdateFile) -> Self {
        let new = Self::default();
        Self {
            max_surge: file.max_surge.unwrap_or(new.max_surge),
            min_healthy: file.min_healthy,
            healthy_within_ms: file.healthy_within.map_or(new.healthy_within_ms, Span::ms),
            rollback: file.rollback.unwrap_or(new.rollback),
        }
    }
}

/// Returns the value unless it is the default.
fn other<T: PartialEq>(value: T, default: T) -> Option<T> {
    (value != default).then_some(value)
}

fn other_span(ms: u64, default_ms: u64) -> Option<Span> {
    other(ms, default_ms).map(Span::of_ms)
}

impl From<&ServiceSpec> for ServiceFile {
    fn from(spec: &ServiceSpec) -> Self {
        let run = &spec.run;
        let docker = match &run.runtime {
            RuntimeSpec::Docker(docker) => Some(docker.clone()),
            RuntimeSpec::Process | RuntimeSpec::Noop => None,
        };
        let image = docker.as_ref().map(|docker| docker.image.clone());
        let docker = docker.unwrap_or_default();
        let ports = spec.ports.iter().map(|(name, port)| {
            let file = PortFile {
                container: port.container.map(PortNumber),
                publish: port.publish.map(PortNumber),
                proxy_protocol: port.proxy_protocol,
            };
            (name.clone(), file)
        });
        let restart = RestartPolicy::default();
        let restart = RestartTable {
            when: other(spec.restart.when, restart.when),
            backoff: other_span(spec.restart.backoff_ms, restart.backoff_ms),
            backoff_max: other_span(spec.restart.backoff_ms_max, restart.backoff_ms_max),
        };
        let update = UpdatePolicy::default();
        let update = UpdateFile {
            max_surge: other(spec.update.max_surge, update.max_surge),
            min_healthy: spec.update.min_healthy,
            healthy_within: other_span(spec.update.healthy_within_ms, update.healthy_within_ms),
            rollback: other(spec.update.rollback, update.rollback),
        };
        Self {
            name: Some(spec.name.clone()),
            image,
            entrypoint: docker.entrypoint.map(OneOrMany::Many),
            command: run.command.clone(),
            workdir: run.workdir.clone(),
            user: docker.user,
            mounts: docker.mounts.into_iter().map(MountText).collect(),
            volumes: docker.volumes.into_iter().map(VolumeText).collect(),
            read_only: docker.read_only,
            networks: docker.networks,
            hostname: docker.hostname,
            extra_hosts: docker.extra_hosts,
            network: other(docker.network, NetworkMode::default()),
            pull: other(docker.pull, PullPolicy::default()),
            cap_add: docker.cap_add,
            cap_drop: docker.cap_drop,
            security_opt: docker.security_opt,
            devices: docker.devices,
            pids: docker.pids,
            shm_size: docker.shm_size.map(Size),
            init: docker.init,
            tty: docker.tty,
            stop_signal: docker.stop_signal,
            tmpfs: docker.tmpfs,
            ulimits: docker
                .ulimits
                .into_iter()
                .map(|(name, limit)| (name, UlimitText(limit)))
                .collect(),
            labels: docker.labels,
            files: run.files.clone(),
            platform: docker.platform,
            replicas: Some(Replicas(spec.replicas)),
            spread: spec.spread.clone(),
            exclusive: spec.place.exclusive,
            cpus: Some(Cpus(spec.resources.cpu_millis)),
            memory: other(spec.resources.memory_bytes, Resources::default().memory_bytes).map(Size),
            stop_grace: other_span(run.stop_grace_ms, STOP_GRACE_MS),
            drain: other_span(spec.drain_ms, super::DRAIN_MS),
            env_file: None,
            require: spec.require.clone(),
            prefer: spec.place.prefer.clone(),
            resources: spec
                .place
                .resources
                .iter()
                .map(|(name, millis)| (name.clone(), Amount(*millis)))
                .collect(),
            env: run.env.clone(),
            depends_on: spec.depends_on.clone(),
            project: spec.project.clone().map(|Project { name, member, together }| ProjectFile {
                name,
                member,
                together,
            }),
            ports: ports.collect(),
            health: spec.health.as_deref().map(HealthFile::from),
            restart: other(RestartFile(restart), RestartFile::default()),
            update: other(update, UpdateFile::default()),
        }
    }
}

impl From<&HealthSpec> for HealthFile {
    fn from(spec: &HealthSpec) -> Self {
        let new = HealthSpec::new(HealthCheck::None);
        let mut file = Self {
            interval: other_span(spec.interval_ms, new.interval_ms),
            timeout: other_span(spec.timeout_ms, new.timeout_ms),
            start_period: other_span(spec.start_period_ms, new.start_period_ms),
            failures: other(spec.failures, new.failures),
            ..Self::default()
        };
        match spec.check.clone() {
            HealthCheck::Tcp { port } => file.tcp = Some(port),
            HealthCheck::Http { port, path, status, headers } => {
                file.http = Some(HttpFile { port, path, status, headers });
            }
            HealthCheck::Command(command) => file.command = Some(command),
            HealthCheck::None => file.none = true,
        }
        file
    }
}
