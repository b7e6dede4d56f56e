//! `podmesh agent`

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use podmesh_agent::policy::{IngressAddress, MountRoot, NodePolicy, PortRanges};
use podmesh_agent::{
    AgentConfig, DockerSwitch, IngressConfig, NVIDIA_GPUS, RuntimeSwitches, detect_capacity,
    detect_gpus,
};
use podmesh_logrotate::RotationPolicy;
use podmesh_protocol::access::{JoinToken, Role};
use podmesh_protocol::ids::{Name, NameError};
use podmesh_protocol::limits::LABELS_MAX;
use podmesh_protocol::place::{Offer, validate_offers};
use podmesh_protocol::spec::{Resources, validate_label_value};
use podmesh_protocol::version::VersionRange;
use podmesh_wire::enrolment::{Enrolment, EnrolmentError};
use podmesh_wire::locate::ManagerPlace;
use serde::Deserialize;

use crate::cli::daemon::{AgentArgs, DockerFlag, Switch};
use crate::context::Context;
use crate::daemon_log::{self, LEVEL_DEFAULT};
use crate::error::{CliError, CliResult};
use crate::settings::{self, DataDir};
use crate::signals::{Stop, run_daemon};
use crate::values::{Cpus, MetricsAddress, Size, Span, made_name};
use crate::verbs::{node_proxy, process_supervisor};

/// `agent.toml`: every setting has the name of its flag; what the node's owner allows can only be
/// set here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AgentFile {
    name: Option<Name>,
    manager: Option<String>,
    address: Option<IpAddr>,
    metrics: Option<MetricsAddress>,
    cpus: Option<Cpus>,
    memory: Option<Size>,
    labels: BTreeMap<Name, String>,
    resources: BTreeMap<Name, OfferText>,
    docker: Option<DockerFlag>,
    process: Option<Switch>,
    stop_processes: Option<bool>,
    process_user: Option<String>,
    logs_dir: Option<PathBuf>,
    log_file_size: Option<Size>,
    log_files: Option<u32>,
    log_total_size: Option<Size>,
    log_node_size: Option<Size>,
    log_age: Option<Span>,
    log_level: Option<String>,
    ingress_address: Option<IngressAddress>,
    ingress: Option<Vec<String>>,
    mount_roots: Vec<MountRoot>,
    allow_host_network: bool,
    images: Vec<String>,
    users: Vec<String>,
    default_capabilities: Option<Vec<String>>,
    capabilities: Vec<String>,
    devices: Vec<String>,
    security_opt: Vec<String>,
    volumes: Option<Switch>,
    attempt_cpus_max: Option<Cpus>,
    attempt_memory_max: Option<Size>,
    pids_max: Option<NonZeroU32>,
    replica_ports: Option<String>,
}

/// The resource that NVIDIA GPUs are, unless agent.toml says what `gpu` is.
const GPU: &str = "gpu";

/// What the node offers of a named resource: a number, or a list of ids.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "write a number, or a list of ids, such as [\"/dev/nvme0\"]")]
enum OfferText {
    Count(u32),
    Ids(Vec<String>),
}

impl From<OfferText> for Offer {
    fn from(text: OfferText) -> Self {
        match text {
            OfferText::Count(count) => Self { count, ids: Vec::new() },
            OfferText::Ids(ids) => Self { count: 0, ids },
        }
    }
}

/// Returns the user for commands in the settings of this machine's agent.
///
/// # Errors
/// If the settings cannot be read.
pub(crate) fn process_user(data_dir: &DataDir) -> CliResult<Option<String>> {
    let file: AgentFile = settings::load(None, data_dir, "agent", &[])?;
    Ok(file.process_user)
}

/// Runs the agent until it is asked to stop.
pub(crate) async fn agent(context: &Context, args: AgentArgs) -> CliResult {
    let data_dir = context.data_dir()?;
    let file: AgentFile = settings::load(args.daemon.config.as_deref(), &data_dir, "agent", &[])?;
    let level = args.daemon.log_level.clone().or(file.log_level.clone());
    let stop_at_eof = args.daemon.stop_at_eof;
    let token = args.join.clone();
    let mut config = config(context.global.manager.clone(), args, file, &data_dir)?;
    config.supervisor = process_supervisor::command(&data_dir, level.as_deref());
    config.proxy = node_proxy::command(&data_dir, level.as_deref());
    let level = level.as_deref().unwrap_or(LEVEL_DEFAULT);
    let _log = daemon_log::start(level, &data_dir.daemon_logs(), "agent")?;
    if let Some(token) = token {
        join(&data_dir.agent(), &token, &config.name).await?;
    }
    let stop = Stop::new(stop_at_eof)?;
    run_daemon(stop, |shutdown| async {
        podmesh_agent::run(config, shutdown)
            .await
            .map_err(|why| CliError::failure("the agent has failed").because(why))
    })
    .await
}

/// Joins the cluster of a token, unless this machine has already joined with the same token: a unit
/// file that contains the token starts the agent many times.
///
/// # Errors
/// If the manager cannot be reached, or does not let this machine join as an agent.
async fn join(dir: &Path, token: &JoinToken, name: &Name) -> CliResult<()> {
    match Enrolment::load(dir) {
        Ok(enrolment) if enrolment.is_of(token) => {
            tracing::info!(name = %enrolment.name, "has already joined with this token");
            return Ok(());
        }
        Ok(_) | Err(EnrolmentError::None { .. }) => {}
        Err(why) => return Err(CliError::failure("this machine cannot join").because(why)),
    }
    let joined = Enrolment::join(dir, token, name).await;
    let joined =
        joined.map_err(|why| CliError::failure("this machine cannot join").because(why))?;
    if joined.role != Role::Agent {
        return Err(CliError::failure(format!("the token is for the role {}", joined.role))
            .hint("an agent needs a token of `podmesh token create --role agent`"));
    }
    tracing::info!(name = %joined.name, cluster = %joined.cluster, "joined");
    Ok(())
}

/// Returns the configuration of an agent with defaults only, as `dev` uses it.
pub(crate) fn plain(name: Name, manager: Option<ManagerPlace>, data_dir: &DataDir) -> AgentConfig {
    AgentConfig {
        data_dir: data_dir.agent(),
        logs_dir: data_dir.task_logs(),
        name,
        manager: data_dir.agent_locator(manager),
        address: None,
        capacity: detect_capacity(),
        labels: BTreeMap::new(),
        resources: BTreeMap::new(),
        runtimes: RuntimeSwitches::default(),
        process_user: None,
        policy: NodePolicy::default(),
        rotation: RotationPolicy::default(),
        logs_bytes_max: None,
        supervisor: process_supervisor::command(data_dir, None),
        proxy: node_proxy::command(data_dir, None),
        ingress: IngressConfig::default(),
        metrics: None,
        stop_processes: false,
        versions: VersionRange::SPOKEN,
    }
}

/// Builds the configuration. Flags and their variables override the file, the file overrides the
/// defaults.
fn config(
    manager: Option<ManagerPlace>,
    args: AgentArgs,
    file: AgentFile,
    data_dir: &DataDir,
) -> CliResult<AgentConfig> {
    let wrong = |key: &str| CliError::usage(format!("agent.toml: `{key}` is not valid"));
    let manager = match (manager, file.manager) {
        (None, Some(text)) => Some(text.parse().map_err(|why| wrong("manager").because(why))?),
        (named, _) => named,
    };
    let name = match args.name.or(file.name) {
        Some(name) => name,
        None => match Enrolment::load(&data_dir.agent()) {
            Ok(enrolment) => enrolment.name,
            Err(_) => host_name()?,
        },
    };
    let mut config = plain(name, manager, data_dir);
    if let Some(logs_dir) = args.logs_dir.or(file.logs_dir) {
        config.logs_dir = std::path::absolute(&logs_dir).map_err(|why| {
            CliError::usage(format!("{} is not a valid path", logs_dir.display())).because(why)
        })?;
    }

    config.address = args.address.or(file.address);
    config.metrics = args.metrics.or(file.metrics).and_then(|address| address.0);
    let detected = config.capacity;
    config.capacity = Resources {
        cpu_millis: args.cpus.or(file.cpus).map_or(detected.cpu_millis, |cpus| cpus.0),
        memory_bytes: args.memory.or(file.memory).map_or(detected.memory_bytes, |memory| memory.0),
    };
    for value in file.labels.values() {
        validate_label_value("labels", value).map_err(|why| wrong("labels").because(why))?;
    }
    config.labels = file.labels;
    config.labels.extend(args.labels.into_iter().map(|label| (label.0, label.1)));
    if config.labels.len() > LABELS_MAX {
        return Err(CliError::usage(format!("the node has {} labels", config.labels.len()))
            .because(format!("the limit is {LABELS_MAX} (LABELS_MAX)")));
    }

    config.resources =
        file.resources.into_iter().map(|(name, offer)| (name, offer.into())).collect();
    let gpu: Name = GPU.parse().map_err(|why: NameError| wrong("resources").because(why))?;
    if let Entry::Vacant(vacant) = config.resources.entry(gpu) {
        let ids = detect_gpus(Path::new(NVIDIA_GPUS));
        if !ids.is_empty() {
            vacant.insert(Offer { count: 0, ids });
        }
    }
    validate_offers(&config.resources).map_err(|why| wrong("resources").because(why))?;

    config.runtimes = RuntimeSwitches {
        process: args.process.or(file.process) != Some(Switch::Off),
        docker: match args.docker.or(file.docker) {
            None | Some(DockerFlag::Auto) => DockerSwitch::Auto,
            Some(DockerFlag::On) => DockerSwitch::On,
            Some(DockerFlag::Off) => DockerSwitch::Off,
        },
        noop: args.enable_noop,
    };
    config.stop_processes = args
        .stop_processes
        .map_or(file.stop_processes.unwrap_or_default(), |switch| switch == Switch::On);
    for root in &file.mount_roots {
        if !root.path.is_absolute() {
            return Err(wrong("mount_roots")
                .because(format!("`{}` is not an absolute path", root.path.display())));
        }
    }
    if let Some(address) = args.ingress_address.or(file.ingress_address) {
        config.ingress.address = address;
    }
    if let Some(ports) = &file.ingress {
        let ports = PortRanges::parse(ports.iter().map(String::as_str));
        config.ingress.ports = ports.map_err(|why| wrong("ingress").because(why))?;
    }
    config.process_user = file.process_user;
    let usual = NodePolicy::default();
    let replica_ports = match file.replica_ports.as_deref() {
        None => usual.replica_ports,
        Some("off") => None,
        Some(text) => Some(text.parse().map_err(|why| wrong("replica_ports").because(why))?),
    };
    config.policy = NodePolicy {
        mount_roots: file.mount_roots,
        allow_host_network: file.allow_host_network,
        images: file.images,
        users: file.users,
        default_capabilities: file.default_capabilities.unwrap_or(usual.default_capabilities),
        capabilities: file.capabilities,
        devices: file.devices,
        security_opt: file.security_opt,
        volumes: file.volumes != Some(Switch::Off),
        attempt_max: Resources {
            cpu_millis: file.attempt_cpus_max.map_or(usual.attempt_max.cpu_millis, |cpus| cpus.0),
            memory_bytes: file.attempt_memory_max.map_or(usual.attempt_max.memory_bytes, |m| m.0),
        },
        pids_max: file.pids_max.map_or(usual.pids_max, NonZeroU32::get),
        replica_ports,
    };

    config.logs_bytes_max = args.log_node_size.or(file.log_node_size).map(|size| size.0);
    let usual = RotationPolicy::default();
    config.rotation = RotationPolicy {
        file_bytes_max: args
            .log_file_size
            .or(file.log_file_size)
            .map_or(usual.file_bytes_max, |s| s.0),
        files_max: args.log_files.or(file.log_files).unwrap_or(usual.files_max),
        total_bytes_max: args
            .log_total_size
            .or(file.log_total_size)
            .map_or(usual.total_bytes_max, |s| s.0),
        age_max: args.log_age.or(file.log_age).map_or(usual.age_max, |age| age.0),
    };
    Ok(config)
}

/// Returns the name of this machine, converted to a valid name.
fn host_name() -> CliResult<Name> {
    let unnamed =
        || CliError::failure("this machine has no name").hint("name the node with --name");
    let host = nix::unistd::gethostname().map_err(|why| unnamed().because(why))?;
    made_name(&host.to_string_lossy()).ok_or_else(unnamed)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Verb};
    use crate::toml_file;

    fn made(flags: &[&str], toml: &str) -> CliResult<AgentConfig> {
        let words = ["podmesh", "agent"].iter().chain(flags);
        let cli = Cli::try_parse_from(words).unwrap();
        let Verb::Agent(args) = cli.verb else { unreachable!("an agent was asked for") };
        let file = toml_file::parse(toml, "agent.toml", &[])?;
        config(cli.global.manager, args, file, &DataDir::at("/data"))
    }

    #[test]
    fn flags_override_the_file_and_the_file_overrides_defaults() {
        let toml = r#"
            name = "from-file"
            manager = "file.lan"
            cpus = 1.5
            memory = "1GiB"
            docker = "off"
            process = "off"
            stop_processes = true
            log_file_size = "1MiB"
            log_node_size = "2GiB"
            ingress = ["80", "8000-8999"]
            ingress_address = "10.0.0.1"
            log_age = "7days"
            mount_roots = [{ path = "/srv", writable = true }]
            allow_host_network = true
            images = ["busybox"]
            default_capabilities = []
            capabilities = ["NET_RAW"]
            devices = ["/dev/dri/*"]
            security_opt = ["seccomp=unconfined"]
            volumes = "off"
            process_user = "nobody"
            attempt_cpus_max = 1
            pids_max = 100
            address = "10.0.0.5"
            metrics = "9100"
            replica_ports = "4000-4999"
            [labels]
            gpu = "a100"
            zone = "b"
        "#;
        let config = made(&["--cpus", "2", "--label", "zone=c", "--log-files", "3"], toml).unwrap();
        assert_eq!(config.name.as_str(), "from-file");
        assert_eq!(config.manager.place, Some("file.lan:7770".parse().unwrap()));
        assert_eq!(config.capacity, Resources { cpu_millis: 2000, memory_bytes: 1 << 30 });
        assert_eq!(config.labels.values().collect::<Vec<_>>(), ["a100", "c"]);
        let runtimes = RuntimeSwitches { process: false, docker: DockerSwitch::Off, noop: false };
        assert_eq!(config.runtimes, runtimes);
        assert!(config.stop_processes);
        assert_eq!(config.metrics, Some("127.0.0.1:9100".parse().unwrap()));
        assert_eq!(config.ingress.address, "10.0.0.1".parse().unwrap());
        assert_eq!(config.ingress.ports.to_string(), "the ports 80, 8000-8999");
        assert!(config.policy.allow_host_network && config.policy.mount_roots[0].writable);
        assert_eq!((config.policy.attempt_max.cpu_millis, config.policy.pids_max), (1000, 100));
        assert_eq!(config.policy.images, ["busybox"]);
        assert!(config.policy.default_capabilities.is_empty() && !config.policy.volumes);
        assert_eq!(config.policy.devices, ["/dev/dri/*"]);
        assert_eq!(config.policy.security_opt, ["seccomp=unconfined"]);
        assert_eq!(config.policy.replica_ports, Some("4000-4999".parse().unwrap()));
        assert_eq!(config.address, Some([10, 0, 0, 5].into()));
        assert_eq!(config.process_user.as_deref(), Some("nobody"));
        assert_eq!(config.rotation.file_bytes_max, 1 << 20);
        assert_eq!(config.rotation.files_max, 3);
        assert_eq!(config.logs_bytes_max, Some(2 << 30));
        assert_eq!(config.rotation.total_bytes_max, RotationPolicy::default().total_bytes_max);
        assert_eq!(config.rotation.age_max, Duration::from_secs(7 * 24 * 3600));

        let flags = [
            "--manager",
            "flag.lan:1",
            "--docker",
            "on",
            "--stop-processes=off",
            "--address=::1",
            "--ingress-address=off",
        ];
        let config = made(&flags, toml).unwrap();
        assert_eq!(config.address, Some("::1".parse().unwrap()));
        assert!(!config.stop_processes);
        assert_eq!(config.ingress.address, IngressAddress::Off);
        assert_eq!(config.manager.place, Some("flag.lan:1".parse().unwrap()));
        assert_eq!(config.runtimes.docker, DockerSwitch::On);
    }

    #[test]
    fn defaults_make_an_agent_of_this_machine() {
        let config = made(&[], "").unwrap();
        let locator = DataDir::at("/data").agent_locator(None);
        assert_eq!((locator.place.clone(), &config.manager), (None, &locator));
        assert_eq!(config.capacity, detect_capacity());
        assert_eq!(config.logs_dir, PathBuf::from("/data/logs"));
        assert_eq!(config.data_dir, PathBuf::from("/data/agent"));
        assert_eq!(config.runtimes, RuntimeSwitches::default());
        assert_eq!(config.policy, NodePolicy::default());
        assert_eq!(config.ingress, IngressConfig::default());
        assert_eq!((config.logs_bytes_max, config.address), (None, None));
        assert_eq!(made(&[], "replica_ports = \"off\"").unwrap().policy.replica_ports, None);
    }

    #[test]
    fn an_error_in_the_file_names_the_key() {
        for (toml, says) in [
            ("manager = \"a b\"", "manager"),
            ("mount_roots = [{ path = \"srv\" }]", "absolute"),
            ("mount_roots = [{ path = \"/srv\", writeable = true }]", "writeable"),
            ("name = \"a/b\"", "not allowed"),
            ("docker = \"maybe\"", "maybe"),
            ("[labels]\ngpu = \"\\u0007\"", "control"),
            ("cpus = 0", "above 0"),
            ("replica_ports = \"5-4\"", "replica_ports"),
            ("address = \"web.lan\"", "address"),
            ("ingress = [\"80-70\"]", "80-70"),
            ("ingress_address = \"eth0\"", "eth0"),
        ] {
            let said = made(&[], toml).unwrap_err().to_string();
            assert!(said.contains(says), "{toml}: {said}");
        }
        let error = made(&[], "alow_host_network = true").unwrap_err();
        assert!(error.hint_text().unwrap().contains("allow_host_network"));
    }

    /// A settings file with typing errors gives an error or other settings, never a panic.
    #[test]
    fn a_changed_settings_file_is_read_or_is_an_error() {
        let toml = r#"name = "a"
cpus = 1.5
memory = "1GiB"
docker = "off"
log_age = "7days"
mount_roots = [{ path = "/srv", writable = true }]
images = ["busybox:1.*", "registry.lan:5000/x@sha256:aa"]
attempt_memory_max = "8GiB"
[labels]
gpu = "a100"
"#;
        let count = std::env::var("MUTATIONS").map_or(5_000, |text| text.parse().unwrap());
        let mut random = fastrand::Rng::with_seed(1);
        let (mut read, mut refused) = (0, 0);
        for _ in 0..count {
            let mut bytes = toml.as_bytes().to_vec();
            for _ in 0..random.usize(1..=3) {
                let Some(at) = bytes.len().checked_sub(1).map(|last| random.usize(..=last)) else {
                    break;
                };
                match random.u8(..4) {
                    0 => bytes[at] = random.u8(..),
                    1 => _ = bytes.remove(at),
                    2 => bytes.insert(at, *random.choice(b"\"[]{}=.,-#\n09eE").unwrap()),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            match made(&[], &String::from_utf8_lossy(&bytes)) {
                Ok(_) => read += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    refused += 1;
                }
            }
        }
        assert!(read > 0 && refused > 0, "{read} read, {refused} refused");
    }
}
