//! Turns a job's spec into a container's configuration, within the node's policy.

mod options;

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, PortBinding, PortMap,
};
use podmesh_agent_core::replica::Replica;
use podmesh_agent_core::step::JobContext;
use podmesh_protocol::ids::{AttemptId, ClusterId, JobId, Name, TaskId};
use podmesh_protocol::spec::{DockerSpec, NetworkMode, OnLost};
use uuid::Uuid;

use super::files;
use super::mounts::MountRules;
use super::networks::Networks;
use super::stage::Held;
use crate::service_names::{ContainerNames, ServiceNames};
use crate::task_env::task_env;

pub(super) const CLUSTER: &str = "podmesh.cluster";
const NODE: &str = "podmesh.node";
/// The id of the agent's data directory.
pub(super) const AGENT: &str = "podmesh.agent";
const JOB: &str = "podmesh.job";
const TASK: &str = "podmesh.task";
const ATTEMPT: &str = "podmesh.attempt";
const ON_LOST: &str = "podmesh.on_lost";
const JOB_NAME: &str = "podmesh.job_name";
/// For how long it may run, where that is limited.
const TIMEOUT_MS: &str = "podmesh.timeout_ms";
/// Where it listens, as JSON, if it is a replica. Every container has it, because otherwise an image
/// could set it.
const REPLICA: &str = "podmesh.replica";

/// The log driver. The agent writes the output to its own files, so the engine keeps no copy.
const LOG_DRIVER: &str = "none";

/// The smallest limit that the engine accepts, in thousandths of a core.
const CPU_MILLIS_MIN: u64 = 10;

/// Disables core files, which would fill the engine's disk. Other limits keep the engine's
/// defaults, because the engine may lack the right to raise them.
const NO_CORE_FILES: (&str, i64) = ("core", 0);

/// Returns the name of an attempt's container. The name makes the create idempotent.
pub(super) fn name(cluster: ClusterId, attempt: AttemptId) -> String {
    let AttemptId { task: TaskId { job, index }, number } = attempt;
    format!("podmesh-{:08x}-{job}.{index}.{number}", cluster.0.as_fields().0)
}

/// The agent and the attempt that a container belongs to, as in its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) cluster: ClusterId,
    pub(super) agent: Uuid,
    pub(super) attempt: AttemptId,
    pub(super) on_lost: OnLost,
    pub(super) timeout_ms: Option<u64>,
}

impl Identity {
    pub(super) fn labels(
        &self,
        node: &Name,
        job_name: &Name,
        replica: Option<&Replica>,
    ) -> HashMap<String, String> {
        let AttemptId { task, number } = self.attempt;
        let on_lost = match self.on_lost {
            OnLost::Wait => "wait",
            OnLost::Requeue => "requeue",
        };
        let timeout = self.timeout_ms.map(|timeout_ms| (TIMEOUT_MS, timeout_ms.to_string()));
        let labels = [
            (CLUSTER, self.cluster.to_string()),
            (NODE, node.to_string()),
            (AGENT, self.agent.to_string()),
            (JOB, task.job.to_string()),
            (TASK, task.to_string()),
            (ATTEMPT, number.to_string()),
            (ON_LOST, on_lost.to_owned()),
            (JOB_NAME, job_name.to_string()),
            // A replica consists of text and numbers, which JSON can express.
            (REPLICA, replica.and_then(|one| serde_json::to_string(one).ok()).unwrap_or_default()),
        ];
        labels.into_iter().chain(timeout).map(|(label, value)| (label.to_owned(), value)).collect()
    }

    /// Reads the labels of a container. Returns `None` unless its name matches them, because an
    /// image can set labels but not the name.
    pub(super) fn of(labels: &HashMap<String, String>, container_name: &str) -> Option<Self> {
        let label = |key| labels.get(key).map(String::as_str);
        let cluster = ClusterId(label(CLUSTER)?.parse().ok()?);
        let job: JobId = label(JOB)?.parse().ok()?;
        let task: TaskId = label(TASK)?.parse().ok()?;
        let attempt = AttemptId { task, number: label(ATTEMPT)?.parse().ok()? };
        let on_lost = match label(ON_LOST)? {
            "wait" => OnLost::Wait,
            "requeue" => OnLost::Requeue,
            _ => return None,
        };
        let timeout_ms = label(TIMEOUT_MS).and_then(|text| text.parse().ok());
        let agent = label(AGENT)?.parse().ok()?;
        let found = Self { cluster, agent, attempt, on_lost, timeout_ms };
        let named = container_name.trim_start_matches('/') == name(cluster, attempt);
        (task.job == job && named).then_some(found)
    }
}

/// Reads where a replica listens from the labels of its container.
pub(super) fn replica_of(labels: &HashMap<String, String>) -> Option<Replica> {
    serde_json::from_str(labels.get(REPLICA)?).ok()
}

/// A container's configuration.
pub(super) struct Configuration {
    pub(super) body: ContainerCreateBody,
    /// Its mounts, staged until it is started.
    pub(super) held: Vec<Held>,
}

/// Returns the configuration of an attempt's container. Reads the file system, so do not call it
/// from async code.
///
/// # Errors
/// What the node does not allow, as a message for people.
pub(super) fn configuration(
    identity: &Identity,
    context: &JobContext,
    spec: &DockerSpec,
    replica: Option<&Replica>,
    rules: &MountRules<'_>,
    names: &ServiceNames,
    networks: &Networks,
) -> Result<Configuration, String> {
    let run = &context.run;
    let ports = published(spec, replica)?;
    let MountRules { node, policy, engine, .. } = *rules;
    policy.check_resources(node, &context.resources)?;
    policy.check_container(node, spec)?;
    let (mut mounts, mut held) = (vec![], vec![]);
    for (index, mount) in spec.mounts.iter().enumerate() {
        let (mount, hold) = rules.mount(mount, identity.attempt, index)?;
        mounts.push(mount);
        held.extend(hold);
    }
    mounts.extend(files::mounts(rules.data_dir, identity.attempt, &run.files));
    mounts.extend(
        spec.volumes.iter().map(|volume| options::volume(volume, identity.cluster, replica)),
    );
    let ContainerNames { hosts, variables } = names.of_container(spec);
    let mut env = run.env.clone();
    env.extend(variables);
    env.extend(
        task_env(identity.attempt, context, node).map(|(key, value)| (key.to_owned(), value)),
    );
    let cpu_millis = u64::from(context.resources.cpu_millis).max(CPU_MILLIS_MIN);
    let memory = i64::try_from(context.resources.memory_bytes).ok().filter(|bytes| *bytes > 0);
    let (network_mode, networking_config) = match (networks.first(spec), spec.network) {
        (Some((name, config)), _) => (name, Some(config)),
        (None, NetworkMode::Bridge) => ("bridge".into(), None),
        (None, NetworkMode::None) => ("none".into(), None),
        (None, NetworkMode::Host) => ("host".into(), None),
    };
    let host_config = HostConfig {
        // All cores means no limit, and the engine rejects more cores than there are.
        nano_cpus: (cpu_millis < engine.cpu_millis)
            .then(|| i64::try_from(cpu_millis * 1_000_000).ok())
            .flatten(),
        memory,
        memory_swap: memory,
        log_config: Some(HostConfigLogConfig { typ: Some(LOG_DRIVER.to_owned()), config: None }),
        network_mode: Some(network_mode),
        port_bindings: (!ports.is_empty()).then(|| ports.clone()),
        mounts: (!mounts.is_empty()).then_some(mounts),
        tmpfs: (!spec.tmpfs.is_empty()).then(|| spec.tmpfs.clone().into_iter().collect()),
        readonly_rootfs: spec.read_only.then_some(true),
        extra_hosts: (!hosts.is_empty()).then_some(hosts),
        // Exactly these, whatever the engine's own default is.
        cap_drop: Some(vec!["ALL".into()]),
        cap_add: Some(options::capabilities(policy, spec)).filter(|names| !names.is_empty()),
        security_opt: Some(options::security_opt(spec)),
        devices: Some(options::devices(spec, &context.claims)?)
            .filter(|devices| !devices.is_empty()),
        device_requests: options::gpus(&context.claims),
        pids_limit: Some(i64::from(spec.pids.unwrap_or(policy.pids_max))),
        ulimits: Some(options::ulimits(spec)),
        shm_size: spec.shm_size.and_then(|bytes| i64::try_from(bytes).ok()),
        init: spec.init.then_some(true),
        ..HostConfig::default()
    };
    let body = ContainerCreateBody {
        image: Some(spec.image.clone()),
        cmd: (!run.command.is_empty()).then(|| run.command.clone()),
        // For the engine, one empty string means no entrypoint; an empty list does not.
        entrypoint: spec
            .entrypoint
            .as_ref()
            .map(|parts| if parts.is_empty() { vec![String::new()] } else { parts.clone() }),
        env: Some(env.into_iter().map(|(key, value)| format!("{key}={value}")).collect()),
        working_dir: run.workdir.clone(),
        user: spec.user.clone(),
        hostname: spec.hostname.clone(),
        tty: spec.tty.then_some(true),
        stop_signal: spec.stop_signal.clone(),
        exposed_ports: (!ports.is_empty()).then(|| ports.into_keys().collect()),
        // The agent makes the check, and the engine would make the image's.
        healthcheck: replica.and_then(|replica| replica.spec.health.as_ref()).map(|_| {
            HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }
        }),
        // Ours come last, and so win.
        labels: Some(
            spec.labels
                .clone()
                .into_iter()
                .chain(identity.labels(node, &context.name, replica))
                .collect(),
        ),
        stop_timeout: i64::try_from(run.stop_grace_ms.div_ceil(1000)).ok(),
        host_config: Some(host_config),
        networking_config,
        ..ContainerCreateBody::default()
    };
    Ok(Configuration { body, held })
}

/// Returns the ports of a container that are published on the node.
fn published(spec: &DockerSpec, replica: Option<&Replica>) -> Result<PortMap, String> {
    let Some(replica) = replica.filter(|replica| !replica.ports.is_empty()) else {
        return Ok(PortMap::new());
    };
    match spec.network {
        NetworkMode::Bridge => {}
        // Its own ports are the node's.
        NetworkMode::Host => return Ok(PortMap::new()),
        NetworkMode::None => {
            return Err("a container with network \"none\" cannot have ports; remove them, or choose another network".into());
        }
    }
    let mut published = PortMap::new();
    for (port, number) in replica.spec.ports.values().zip(&replica.ports) {
        let binding = PortBinding {
            host_ip: Some(replica.address.to_string()),
            host_port: Some(number.to_string()),
        };
        // The manager has checked that there is one. Two names may have the same one.
        let inside = format!("{}/tcp", port.container.unwrap_or_default());
        published.entry(inside).or_default().get_or_insert_default().push(binding);
    }
    Ok(published)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod fields;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            cluster: ClusterId(Uuid::from_u128(0xfeed_0000_0000_0000_0000_0000_0000_0001 << 8)),
            agent: Uuid::from_u128(7),
            attempt: AttemptId::new(JobId(42), 7, 2),
            on_lost: OnLost::Requeue,
            timeout_ms: Some(1_500),
        }
    }

    #[test]
    fn labels_are_read_back() {
        let identity = identity();
        let name = name(identity.cluster, identity.attempt);
        let labels = identity.labels(&"n1".parse().unwrap(), &"job".parse().unwrap(), None);
        assert_eq!(Identity::of(&labels, &name), Some(identity.clone()));
        assert_eq!(Identity::of(&labels, &format!("/{name}")), Some(identity.clone()));
        // Those of an older agent say nothing of a timeout.
        let mut older = labels;
        older.remove(TIMEOUT_MS);
        assert_eq!(Identity::of(&older, &name), Some(Identity { timeout_ms: None, ..identity }));
    }

    #[test]
    fn a_container_needs_our_labels_and_the_matching_name_to_be_ours() {
        let labels = identity().labels(&"n1".parse().unwrap(), &"job".parse().unwrap(), None);
        assert_eq!(Identity::of(&labels, "somebody-elses"), None);
        let mut fewer = labels.clone();
        fewer.remove(AGENT);
        assert_eq!(Identity::of(&fewer, &name(identity().cluster, identity().attempt)), None);
    }
}
