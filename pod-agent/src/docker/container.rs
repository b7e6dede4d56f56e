//! From a job's spec to a container's configuration, within what the node allows.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount as EngineMount, MountType,
    ResourcesUlimits,
};
use podmesh_agent_core::step::JobContext;
use podmesh_protocol::ids::{AttemptId, ClusterId, JobId, Name, TaskId};
use podmesh_protocol::spec::{DockerSpec, Mount, NetworkMode, OnLost};
use uuid::Uuid;

use super::engine::EngineFacts;
use crate::policy::{MountRoot, NodePolicy};
use crate::task_env::task_env;

const CLUSTER: &str = "podmesh.cluster";
const NODE: &str = "podmesh.node";
/// Whose containers: that of the agent's data directory.
pub(super) const AGENT: &str = "podmesh.agent";
const JOB: &str = "podmesh.job";
const TASK: &str = "podmesh.task";
const ATTEMPT: &str = "podmesh.attempt";
const ON_LOST: &str = "podmesh.on_lost";
const JOB_NAME: &str = "podmesh.job_name";

/// The log driver. `json-file` replaces every byte that is not UTF-8; `local` keeps all.
const LOG_DRIVER: &str = "local";
/// How much output the engine holds until it is captured. A reader that is more than one file
/// behind loses what was dropped.
const LOG_OPTIONS: [(&str, &str); 3] =
    [("max-size", "50m"), ("max-file", "3"), ("compress", "false")];

/// The least that the engine takes as a limit, in thousandths of a core.
const CPU_MILLIS_MIN: u64 = 10;

/// No core files, which would fill the engine's disk. Other limits stay as the engine has them: to
/// raise one can be more than it may.
const NO_CORE_FILES: (&str, i64) = ("core", 0);

/// Where engines have their sockets; whoever reaches one has the machine.
const SOCKETS: [&str; 5] = [
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
];

/// The name of an attempt's container; with it a create is idempotent.
pub(super) fn name(cluster: ClusterId, attempt: AttemptId) -> String {
    let AttemptId { task: TaskId { job, index }, number } = attempt;
    format!("podmesh-{:08x}-{job}.{index}.{number}", cluster.0.as_fields().0)
}

/// Whose a container is, and which attempt's, as its labels say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) cluster: ClusterId,
    pub(super) agent: Uuid,
    pub(super) attempt: AttemptId,
    pub(super) on_lost: OnLost,
}

impl Identity {
    pub(super) fn labels(&self, node: &Name, job_name: &Name) -> HashMap<String, String> {
        let AttemptId { task, number } = self.attempt;
        let on_lost = match self.on_lost {
            OnLost::Wait => "wait",
            OnLost::Requeue => "requeue",
        };
        [
            (CLUSTER, self.cluster.to_string()),
            (NODE, node.to_string()),
            (AGENT, self.agent.to_string()),
            (JOB, task.job.to_string()),
            (TASK, task.to_string()),
            (ATTEMPT, number.to_string()),
            (ON_LOST, on_lost.to_owned()),
            (JOB_NAME, job_name.to_string()),
        ]
        .map(|(label, value)| (label.to_owned(), value))
        .into()
    }

    /// Reads the labels of a container. It is ours only if its name says the same: an image can
    /// bring labels, but no name.
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
        let found = Self { cluster, agent: label(AGENT)?.parse().ok()?, attempt, on_lost };
        let named = container_name.trim_start_matches('/') == name(cluster, attempt);
        (task.job == job && named).then_some(found)
    }
}

/// The configuration of an attempt's container. Looks at the file system: not for async code.
///
/// # Errors
/// What the node does not allow, for people.
pub(super) fn configuration(
    identity: &Identity,
    context: &JobContext,
    spec: &DockerSpec,
    node: &Name,
    policy: &NodePolicy,
    engine: &EngineFacts,
) -> Result<ContainerCreateBody, String> {
    let run = &context.run;
    policy.check_resources(node, &context.resources)?;
    policy.check_container(node, spec)?;
    let rules = MountRules { node, policy, engine };
    let mounts =
        spec.mounts.iter().map(|mount| rules.check(mount)).collect::<Result<Vec<_>, _>>()?;
    let mut env = run.env.clone();
    env.extend(
        task_env(identity.attempt, &context.name, node).map(|(key, value)| (key.to_owned(), value)),
    );
    let cpu_millis = u64::from(context.resources.cpu_millis).max(CPU_MILLIS_MIN);
    let memory = i64::try_from(context.resources.memory_bytes).ok().filter(|bytes| *bytes > 0);
    let host_config = HostConfig {
        // As many cores as there are is no limit, and more is none that the engine takes.
        nano_cpus: (cpu_millis < engine.cpu_millis)
            .then(|| i64::try_from(cpu_millis * 1_000_000).ok())
            .flatten(),
        memory,
        memory_swap: memory,
        log_config: Some(HostConfigLogConfig {
            typ: Some(LOG_DRIVER.to_owned()),
            config: Some(LOG_OPTIONS.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        }),
        network_mode: Some(
            match spec.network {
                NetworkMode::Bridge => "bridge",
                NetworkMode::None => "none",
                NetworkMode::Host => "host",
            }
            .to_owned(),
        ),
        mounts: (!mounts.is_empty()).then_some(mounts),
        cap_drop: Some(vec!["ALL".into()]),
        cap_add: (!spec.cap_add.is_empty()).then(|| spec.cap_add.clone()),
        security_opt: Some(vec!["no-new-privileges".into()]),
        pids_limit: Some(i64::from(spec.pids.unwrap_or(policy.pids_max))),
        ulimits: Some(vec![ulimit(NO_CORE_FILES)]),
        ..HostConfig::default()
    };
    Ok(ContainerCreateBody {
        image: Some(spec.image.clone()),
        cmd: (!run.command.is_empty()).then(|| run.command.clone()),
        // The engine takes one empty text, not an empty list, for "none".
        entrypoint: spec
            .entrypoint
            .as_ref()
            .map(|parts| if parts.is_empty() { vec![String::new()] } else { parts.clone() }),
        env: Some(env.into_iter().map(|(key, value)| format!("{key}={value}")).collect()),
        working_dir: run.workdir.clone(),
        user: spec.user.clone(),
        labels: Some(identity.labels(node, &context.name)),
        stop_timeout: i64::try_from(run.stop_grace_ms.div_ceil(1000)).ok(),
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    })
}

fn ulimit((name, number): (&str, i64)) -> ResourcesUlimits {
    let number = Some(number);
    ResourcesUlimits { name: Some(name.to_owned()), soft: number, hard: number }
}

struct MountRules<'a> {
    node: &'a Name,
    policy: &'a NodePolicy,
    engine: &'a EngineFacts,
}

impl MountRules<'_> {
    fn check(&self, mount: &Mount) -> Result<EngineMount, String> {
        let node = self.node;
        // Symlinks are followed first: what counts is where the container would end up.
        let source = Path::new(&mount.source).canonicalize().map_err(|error| {
            format!("cannot mount {}: {error}; the path must be there on node {node}", mount.source)
        })?;
        let root = self.root_of(&source).ok_or_else(|| {
            format!(
                "node {node} does not allow mount {}{}: allowed roots are {}; its owner can change agent.toml",
                mount.source,
                if source == Path::new(&mount.source) { String::new() } else { format!(" (which is {})", source.display()) },
                self.roots()
            )
        })?;
        if !mount.read_only && !root.writable {
            return Err(format!(
                "node {node} does not allow mount {} to be written: allowed roots are {}; mount it \
                 read-only, or its owner can change agent.toml",
                mount.source,
                self.roots()
            ));
        }
        if let Some(socket) = self.sockets().find(|socket| socket.starts_with(&source)) {
            return Err(format!(
                "node {node} never allows mount {}: it holds {}, and with that the whole machine",
                mount.source,
                socket.display()
            ));
        }
        if mount.read_only
            && !self.engine.read_only_is_recursive
            && let Some(inner) = mounted_below(&source)
        {
            return Err(format!(
                "cannot mount {} read-only on node {node}: {} is mounted in it, and this version of \
                 Docker would leave that writable; mount folders that hold no other file system",
                mount.source,
                inner.display()
            ));
        }
        let source = source.to_str().ok_or_else(|| {
            format!("cannot mount {}: it is {}, which is not UTF-8", mount.source, source.display())
        })?;
        Ok(EngineMount {
            typ: Some(MountType::BIND),
            source: Some(source.to_owned()),
            target: Some(mount.target.clone()),
            read_only: Some(mount.read_only),
            ..EngineMount::default()
        })
    }

    /// The root that the path lies in; a writable one if there are several.
    fn root_of(&self, source: &Path) -> Option<&MountRoot> {
        let holds =
            |root: &&MountRoot| root.path.canonicalize().is_ok_and(|root| source.starts_with(root));
        self.policy.mount_roots.iter().filter(holds).max_by_key(|root| root.writable)
    }

    fn roots(&self) -> String {
        let shown = self.policy.mount_roots.iter().map(|root| {
            format!("{}{}", root.path.display(), if root.writable { "" } else { " (read-only)" })
        });
        let shown: Vec<_> = shown.collect();
        if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
    }

    fn sockets(&self) -> impl Iterator<Item = PathBuf> {
        let known = SOCKETS.iter().map(PathBuf::from).chain(self.engine.socket.clone());
        known.filter_map(|socket| socket.canonicalize().ok())
    }
}

/// A mount point below `path`, if there is one.
fn mounted_below(path: &Path) -> Option<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    points.map(PathBuf::from).find(|point| point != path && point.starts_with(path))
}

/// Undoes the escapes of `mountinfo`.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
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
        }
    }

    #[test]
    fn labels_read_back_what_they_say() {
        let identity = identity();
        let name = name(identity.cluster, identity.attempt);
        let labels = identity.labels(&"n1".parse().unwrap(), &"job".parse().unwrap());
        assert_eq!(Identity::of(&labels, &name), Some(identity.clone()));
        assert_eq!(Identity::of(&labels, &format!("/{name}")), Some(identity));
    }

    #[test]
    fn a_container_with_our_labels_and_another_name_is_not_ours() {
        let labels = identity().labels(&"n1".parse().unwrap(), &"job".parse().unwrap());
        assert_eq!(Identity::of(&labels, "somebody-elses"), None);
        let mut fewer = labels.clone();
        fewer.remove(AGENT);
        assert_eq!(Identity::of(&fewer, &name(identity().cluster, identity().attempt)), None);
    }

    fn engine(socket: Option<PathBuf>) -> EngineFacts {
        EngineFacts { socket, ..EngineFacts::default() }
    }

    fn check(
        roots: &[(&Path, bool)],
        source: &Path,
        read_only: bool,
        engine: &EngineFacts,
    ) -> Result<EngineMount, String> {
        let policy = NodePolicy {
            mount_roots: roots
                .iter()
                .map(|(path, writable)| MountRoot { path: path.to_path_buf(), writable: *writable })
                .collect(),
            ..NodePolicy::default()
        };
        let node = "n1".parse().unwrap();
        let mount =
            Mount { source: source.to_str().unwrap().into(), target: "/x".into(), read_only };
        MountRules { node: &node, policy: &policy, engine }.check(&mount)
    }

    #[test]
    fn mounts_stay_inside_their_roots() {
        let dir = tempfile::tempdir().unwrap();
        let [read, write, other] = ["read", "write", "other"].map(|name| dir.path().join(name));
        for folder in [&read, &write, &other] {
            std::fs::create_dir(folder).unwrap();
        }
        std::os::unix::fs::symlink(&other, write.join("link")).unwrap();
        let sock = other.join("engine.sock");
        std::fs::write(&sock, "").unwrap();
        let engine = engine(Some(sock.clone()));
        let roots = [(read.as_path(), false), (write.as_path(), true)];
        assert!(check(&roots, &read, true, &engine).is_ok());
        assert!(check(&roots, &write, false, &engine).is_ok());
        assert!(check(&roots, &read, false, &engine).unwrap_err().contains("to be written"));
        let said = check(&roots, &other, true, &engine).unwrap_err();
        assert!(said.contains("does not allow mount") && said.contains("agent.toml"), "{said}");
        let said = check(&roots, &write.join("link"), true, &engine).unwrap_err();
        assert!(said.contains("which is") && said.contains("other"), "{said}");
        assert!(
            check(&roots, &write.join("none"), true, &engine)
                .unwrap_err()
                .contains("must be there")
        );
        assert!(check(&[], &read, true, &engine).unwrap_err().contains("allowed roots are none"));
        // A sibling whose name begins alike is not inside.
        let alike = dir.path().join("write2");
        std::fs::create_dir(&alike).unwrap();
        assert!(check(&roots, &alike, true, &engine).is_err());
        let all = [(dir.path(), true)];
        for socket in [&sock, &other] {
            assert!(check(&all, socket, true, &engine).unwrap_err().contains("never allows"));
        }
    }

    #[test]
    fn a_file_system_inside_is_found() {
        assert!(mounted_below(Path::new("/")).is_some());
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(mounted_below(dir.path()), None);
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }
}
