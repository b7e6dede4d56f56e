//! Checks every field of the engine's configuration. The structs are destructured without `..`, so
//! this does not compile when the engine's interface gains a field, until it is handled here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bollard::models::{DeviceMapping, MountType, ResourcesUlimits};
use podmesh_protocol::spec::{
    Mount, PullPolicy, Resources, RunSpec, RuntimeSpec, Ulimit, VolumeMount,
};

use super::*;
use crate::docker::engine::EngineFacts;
use crate::docker::stage::Stage;
use crate::policy::{MountRoot, NodePolicy};

/// Returns a job that uses every option.
fn demanding() -> (JobContext, DockerSpec) {
    let spec = DockerSpec {
        image: "busybox:1.36".into(),
        entrypoint: Some(vec!["sh".into()]),
        user: Some("0:0".into()),
        mounts: vec![Mount { source: "/".into(), target: "/host".into(), read_only: false }],
        volumes: vec![VolumeMount {
            volume: "data".parse().unwrap(),
            target: "/data".into(),
            read_only: false,
        }],
        tmpfs: [("/run".into(), "size=64m".into())].into(),
        read_only: true,
        network: NetworkMode::Host,
        networks: [].into(),
        hostname: Some("db-1".into()),
        extra_hosts: vec!["db:10.0.0.5".into()],
        pull: PullPolicy::Always,
        cap_add: vec!["SYS_ADMIN".into(), "KILL".into()],
        cap_drop: vec!["CHOWN".into(), "KILL".into()],
        security_opt: vec!["seccomp=unconfined".into()],
        devices: vec!["/dev/dri/card0:/dev/card:rw".into()],
        pids: Some(7),
        ulimits: [("nofile".into(), Ulimit { soft: 5, hard: 9 })].into(),
        shm_size: Some(1 << 20),
        init: true,
        tty: true,
        stop_signal: Some("SIGINT".into()),
        labels: [("a".into(), "b".into())].into(),
        platform: Some("linux/amd64".into()),
    };
    let run = RunSpec {
        runtime: RuntimeSpec::from(spec.clone()),
        command: vec!["true".into()],
        env: BTreeMap::from([("A".into(), "b".into())]),
        workdir: Some("/w".into()),
        timeout_ms: Some(1),
        stop_grace_ms: 1_500,
        replica: None,
        files: [].into(),
    };
    let context = JobContext {
        claims: [(
            "gpu".parse().unwrap(),
            podmesh_protocol::place::Claim { millis: 1_000, ids: vec!["GPU-1".into()] },
        )]
        .into(),
        job: JobId(1),
        name: "job".parse().unwrap(),
        on_lost: OnLost::Wait,
        resources: Resources { cpu_millis: 500, memory_bytes: 1 << 20 },
        run,
    };
    (context, spec)
}

fn identity() -> Identity {
    let attempt = AttemptId::new(JobId(1), 1, 1);
    let (cluster, agent) = (ClusterId(Uuid::from_u128(1)), Uuid::from_u128(2));
    Identity { cluster, agent, attempt, on_lost: OnLost::Wait, timeout_ms: None }
}

fn made(policy: &NodePolicy) -> Result<ContainerCreateBody, String> {
    let (context, spec) = demanding();
    let engine = EngineFacts { cpu_millis: 64_000, ..EngineFacts::default() };
    make(&context, &spec, policy, &engine)
}

fn make(
    context: &JobContext,
    spec: &DockerSpec,
    policy: &NodePolicy,
    engine: &EngineFacts,
) -> Result<ContainerCreateBody, String> {
    let (node, stage) = ("n1".parse().unwrap(), Stage::unable());
    let data_dir = Path::new("/nowhere");
    let rules = MountRules { node: &node, policy, engine, data_dir, stage: &stage };
    let names = ServiceNames::new(crate::policy::IngressAddress::All);
    Ok(configuration(
        &identity(),
        context,
        spec,
        None,
        &rules,
        &names,
        &Networks::new(Uuid::nil()),
    )?
    .body)
}

#[test]
fn a_node_that_allows_nothing_refuses_a_demanding_job() {
    assert!(made(&NodePolicy::default()).unwrap_err().contains("does not allow"));
}

#[test]
fn every_field_is_ours_or_allowed_or_unset() {
    let folder = tempfile::tempdir().unwrap();
    let root = MountRoot { path: PathBuf::from(folder.path()), writable: true };
    let policy = NodePolicy {
        mount_roots: vec![root],
        allow_host_network: true,
        default_capabilities: vec!["CHOWN".into(), "KILL".into(), "SETUID".into()],
        capabilities: vec!["SYS_ADMIN".into()],
        devices: vec!["/dev/dri/*".into()],
        security_opt: vec!["seccomp=unconfined".into()],
        ..NodePolicy::default()
    };
    // No root allows the whole file system.
    assert!(made(&policy).unwrap_err().contains("does not allow mounting /"));
    let (context, mut spec) = demanding();
    spec.mounts[0].source = folder.path().to_str().unwrap().into();
    let engine = EngineFacts { cpu_millis: 64_000, ..EngineFacts::default() };
    let body = make(&context, &spec, &policy, &engine).unwrap();
    let ContainerCreateBody {
        hostname,
        domainname,
        user,
        attach_stdin,
        attach_stdout,
        attach_stderr,
        exposed_ports,
        tty,
        open_stdin,
        stdin_once,
        env,
        cmd,
        healthcheck,
        args_escaped,
        image,
        volumes,
        working_dir,
        entrypoint,
        network_disabled,
        on_build,
        labels,
        stop_signal,
        stop_timeout,
        shell,
        host_config,
        networking_config,
    } = body;
    macro_rules! never {
        ($field:ident) => {
            assert_eq!($field, None, stringify!($field));
        };
    }
    never!(domainname);
    never!(attach_stdin);
    never!(attach_stdout);
    never!(attach_stderr);
    never!(exposed_ports);
    never!(open_stdin);
    never!(stdin_once);
    never!(healthcheck);
    never!(args_escaped);
    never!(volumes);
    never!(network_disabled);
    never!(on_build);
    never!(shell);
    never!(networking_config);
    // From the job.
    assert_eq!(image.as_deref(), Some("busybox:1.36"));
    assert_eq!(cmd, Some(vec!["true".into()]));
    assert_eq!(entrypoint, Some(vec!["sh".into()]));
    assert!(env.unwrap().contains(&"A=b".to_owned()));
    assert_eq!(working_dir.as_deref(), Some("/w"));
    assert_eq!(user.as_deref(), Some("0:0"));
    assert_eq!(stop_timeout, Some(2));
    assert_eq!((hostname.as_deref(), tty), (Some("db-1"), Some(true)));
    assert_eq!(stop_signal.as_deref(), Some("SIGINT"));
    // Ours, and the job's.
    let mut all = identity().labels(&"n1".parse().unwrap(), &context.name, None);
    all.insert("a".into(), "b".into());
    assert_eq!(labels, Some(all));
    host_is_as_allowed(host_config.unwrap(), folder.path());
}

fn host_is_as_allowed(host: HostConfig, folder: &Path) {
    let HostConfig {
        cpu_shares,
        memory,
        cgroup_parent,
        blkio_weight,
        blkio_weight_device,
        blkio_device_read_bps,
        blkio_device_write_bps,
        blkio_device_read_iops,
        blkio_device_write_iops,
        cpu_period,
        cpu_quota,
        cpu_realtime_period,
        cpu_realtime_runtime,
        cpuset_cpus,
        cpuset_mems,
        devices,
        device_cgroup_rules,
        device_requests,
        memory_reservation,
        memory_swap,
        memory_swappiness,
        nano_cpus,
        oom_kill_disable,
        init,
        pids_limit,
        ulimits,
        cpu_count,
        cpu_percent,
        io_maximum_iops,
        io_maximum_bandwidth,
        binds,
        container_id_file,
        log_config,
        network_mode,
        port_bindings,
        restart_policy,
        auto_remove,
        volume_driver,
        volumes_from,
        mounts,
        console_size,
        annotations,
        cap_add,
        cap_drop,
        cgroupns_mode,
        dns,
        dns_options,
        dns_search,
        extra_hosts,
        group_add,
        ipc_mode,
        cgroup,
        links,
        oom_score_adj,
        pid_mode,
        privileged,
        publish_all_ports,
        readonly_rootfs,
        security_opt,
        storage_opt,
        tmpfs,
        uts_mode,
        userns_mode,
        shm_size,
        sysctls,
        runtime,
        isolation,
        masked_paths,
        readonly_paths,
    } = host;
    macro_rules! never {
        ($field:ident) => {
            assert_eq!($field, None, stringify!($field));
        };
    }
    never!(cpu_shares);
    never!(cgroup_parent);
    never!(blkio_weight);
    never!(blkio_weight_device);
    never!(blkio_device_read_bps);
    never!(blkio_device_write_bps);
    never!(blkio_device_read_iops);
    never!(blkio_device_write_iops);
    never!(cpu_period);
    never!(cpu_quota);
    never!(cpu_realtime_period);
    never!(cpu_realtime_runtime);
    never!(cpuset_cpus);
    never!(cpuset_mems);
    never!(device_cgroup_rules);
    let requests = device_requests.unwrap_or_default();
    let request = requests.first().and_then(|request| request.device_ids.clone());
    assert_eq!(request, Some(vec!["GPU-1".into()]));
    never!(memory_reservation);
    never!(memory_swappiness);
    never!(oom_kill_disable);
    never!(cpu_count);
    never!(cpu_percent);
    never!(io_maximum_iops);
    never!(io_maximum_bandwidth);
    never!(binds);
    never!(container_id_file);
    never!(port_bindings);
    never!(restart_policy);
    never!(auto_remove);
    never!(volume_driver);
    never!(volumes_from);
    never!(console_size);
    never!(annotations);
    never!(cgroupns_mode);
    never!(dns);
    never!(dns_options);
    never!(dns_search);
    never!(group_add);
    never!(ipc_mode);
    never!(cgroup);
    never!(links);
    never!(oom_score_adj);
    never!(pid_mode);
    never!(privileged);
    never!(publish_all_ports);
    never!(storage_opt);
    never!(uts_mode);
    never!(userns_mode);
    never!(sysctls);
    never!(runtime);
    never!(isolation);
    never!(masked_paths);
    never!(readonly_paths);
    // From the job, within the node's policy.
    assert_eq!(nano_cpus, Some(500_000_000));
    assert_eq!((memory, memory_swap), (Some(1 << 20), Some(1 << 20)));
    assert_eq!(network_mode.as_deref(), Some("host"));
    assert_eq!(cap_add, Some(["KILL", "SETUID", "SYS_ADMIN"].map(Into::into).into()));
    assert_eq!(pids_limit, Some(7));
    let device = DeviceMapping {
        path_on_host: Some("/dev/dri/card0".into()),
        path_in_container: Some("/dev/card".into()),
        cgroup_permissions: Some("rw".into()),
    };
    assert_eq!(devices, Some(vec![device]));
    assert_eq!((init, readonly_rootfs, shm_size), (Some(true), Some(true), Some(1 << 20)));
    assert_eq!(extra_hosts, Some(vec!["db:10.0.0.5".into()]));
    assert_eq!(tmpfs.unwrap()["/run"], "size=64m");
    let mounts = mounts.unwrap();
    let source = folder.canonicalize().unwrap();
    assert_eq!(mounts.len(), 2);
    assert_eq!(mounts[1].source.as_deref(), Some("podmesh-data"));
    assert_eq!((mounts[1].typ, mounts[1].read_only), (Some(MountType::VOLUME), Some(false)));
    let labels = mounts[1].volume_options.clone().unwrap().labels.unwrap();
    assert_eq!(labels["podmesh.volume"], "data");
    assert_eq!(labels["podmesh.cluster"], identity().cluster.to_string());
    assert_eq!(mounts[0].source.as_deref(), source.to_str());
    assert_eq!(mounts[0].typ, Some(MountType::BIND));
    // Ours, whatever the job requests.
    assert_eq!(cap_drop, Some(vec!["ALL".into()]));
    let options = ["no-new-privileges", "seccomp=unconfined"].map(Into::into);
    assert_eq!(security_opt, Some(options.into()));
    assert_eq!(log_config.unwrap().typ.as_deref(), Some(LOG_DRIVER));
    let limit = |name: &str, soft, hard| ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(soft),
        hard: Some(hard),
    };
    assert_eq!(ulimits, Some(vec![limit("core", 0, 0), limit("nofile", 5, 9)]));
}
