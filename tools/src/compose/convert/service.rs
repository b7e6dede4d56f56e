//! One service of a compose file as the spec of a podmesh service.

use std::collections::BTreeMap;
use std::sync::Arc;

use podmesh_protocol::ids::Name;
use podmesh_protocol::service::{DependsOn, Project, ServiceSpec};
use podmesh_protocol::spec::{DockerSpec, NetworkMode, PullPolicy, RunSpec, SpecError, Ulimit};

use super::super::dotenv;
use super::super::interpolate::Variables;
use super::super::node::Value;
use super::super::read::{Item, Keys, Notes};
use super::super::values::{Bytes, words};
use super::deploy::deploy;
use super::health::{health, span};
use super::mounts::{Mounts, Reader};
use super::ports::ports;
use super::top::Shared;
use crate::container::{STOP_GRACE_MS, entrypoint};
use crate::env_vars::Lookup;
use crate::error::CliResult;

/// Milliseconds that the connections of a replica get to end before it is stopped.
const DRAIN_MS: u64 = 10_000;

/// What the conversion of every service needs.
pub(super) struct Scope<'a> {
    pub(super) shared: &'a Shared,
    pub(super) variables: &'a Variables<'a>,
    pub(super) lookup: Lookup<'a>,
}

/// Keys without an effect here, each with the reason.
const IGNORED: [(&str, &str); 9] = [
    ("expose", "containers of a network reach all ports of each other"),
    ("stdin_open", "containers have no standard input"),
    ("attach", "`compose logs` shows the output"),
    ("annotations", "podmesh has no annotations"),
    ("develop", "podmesh does not watch files"),
    ("isolation", "it has no effect on Linux"),
    ("storage_opt", "the node decides about its disk"),
    ("mac_address", "the node chooses the address"),
    ("cgroup_parent", "the node decides about its groups"),
];

/// Keys that are refused, each with what to do.
const REFUSED: [(&str, &str); 5] = [
    (
        "build",
        "podmesh runs images, and does not build them: build and push the image (`docker compose build --push`), write its name at `image`, and remove `build`",
    ),
    ("volumes_from", "name the volumes in this service too"),
    ("external_links", "join the other project's network: `networks:` with `external: true`"),
    ("credential_spec", "it has no meaning on Linux"),
    ("provider", "podmesh runs only containers"),
];

/// Further keys of the compose specification that are refused.
const UNSUPPORTED: [&str; 22] = [
    "cgroup",
    "cpu_rt_period",
    "cpu_rt_runtime",
    "cpuset",
    "device_cgroup_rules",
    "dns",
    "dns_opt",
    "dns_search",
    "gpus",
    "group_add",
    "ipc",
    "label_file",
    "models",
    "pid",
    "post_start",
    "pre_stop",
    "runtime",
    "sysctls",
    "use_api_socket",
    "userns_mode",
    "uts",
    "volume_driver",
];

/// Returns the spec. `depends_on` are the podmesh services that it needs.
pub(super) fn service(
    scope: &Scope<'_>,
    name: &str,
    member: (Name, Name),
    item: &Item<'_>,
    depends_on: BTreeMap<Name, DependsOn>,
    notes: &mut Notes,
) -> CliResult<ServiceSpec> {
    let (service_name, member) = member;
    let mut keys = item.keys()?;
    for (key, why) in REFUSED {
        keys.refuse(key, why)?;
    }
    keys.unsupported(&UNSUPPORTED)?;
    for (key, why) in IGNORED {
        keys.ignore(key, notes, why);
    }
    // Read for the whole project before.
    for key in ["profiles", "depends_on", "links"] {
        keys.take(key);
    }
    let Some(image) = keys.take("image") else {
        return Err(
            item.wrong("the service has no `image`; podmesh runs images, and does not build them")
        );
    };
    let deploy = deploy(&mut keys, notes)?;
    let run_env = environment(scope, &mut keys)?;
    let mut reader = Reader {
        shared: scope.shared,
        service: name,
        lookup: scope.lookup,
        notes,
        found: Mounts::default(),
    };
    if let Some(item) = keys.take("volumes") {
        reader.volumes(&item)?;
    }
    if let Some(item) = keys.take("tmpfs") {
        reader.tmpfs(&item)?;
    }
    if let Some(item) = keys.take("configs") {
        reader.grants(&item, &scope.shared.configs, "")?;
    }
    if let Some(item) = keys.take("secrets") {
        reader.grants(&item, &scope.shared.secrets, "/run/secrets")?;
    }
    let found = reader.found;
    let command = keys.take("command").map(|item| command(&item)).transpose()?;
    let docker = DockerSpec {
        image: image.text()?.to_owned(),
        entrypoint: keys.take("entrypoint").map(|item| command_or_none(&item)).transpose()?,
        user: text(keys.take("user"))?,
        mounts: found.mounts,
        volumes: found.volumes,
        tmpfs: found.tmpfs,
        read_only: flag(keys.take("read_only"))?,
        extra_hosts: extra_hosts(keys.take("extra_hosts"))?,
        cap_add: capabilities(keys.take("cap_add"))?,
        cap_drop: capabilities(keys.take("cap_drop"))?,
        security_opt: security_opt(keys.take("security_opt"), notes)?,
        devices: keys.take("devices").map(|item| item.texts()).transpose()?.unwrap_or_default(),
        pids: deploy.pids,
        ulimits: ulimits(keys.take("ulimits"))?,
        shm_size: keys
            .take("shm_size")
            .map(|item| CliResult::Ok(item.parsed::<Bytes>()?.0))
            .transpose()?,
        init: flag(keys.take("init"))?,
        tty: flag(keys.take("tty"))?,
        stop_signal: text(keys.take("stop_signal"))?,
        labels: labels(keys.take("labels"))?,
        platform: text(keys.take("platform"))?,
        pull: pull(keys.take("pull_policy"))?,
        hostname: text(keys.take("hostname"))?,
        ..DockerSpec::default()
    };
    let docker = networks(scope, name, docker, &mut keys, notes)?;
    if let Some(item) = keys.take("privileged")
        && item.boolean()?
    {
        let why = "podmesh starts no privileged containers; ask for what it needs with `cap_add` and `devices`, which the owner of the node must allow";
        return Err(item.wrong(why));
    }
    logging(keys.take("logging"), notes)?;
    let spec = ServiceSpec {
        name: service_name,
        replicas: deploy.replicas,
        require: deploy.require,
        spread: deploy.spread,
        place: Default::default(),
        project: Some(Project {
            name: scope.shared.project.clone(),
            member,
            together: scope.shared.together,
        }),
        depends_on,
        resources: deploy.resources,
        ports: ports(keys.take("ports"), notes)?.into(),
        health: health(keys.take("healthcheck"), notes)?.map(Arc::new),
        restart: deploy.restart,
        update: deploy.update,
        drain_ms: DRAIN_MS,
        run: RunSpec {
            runtime: docker.into(),
            command: command.unwrap_or_default(),
            env: run_env,
            workdir: text(keys.take("working_dir"))?,
            files: found.files,
            timeout_ms: None,
            stop_grace_ms: span(keys.take("stop_grace_period"))?.unwrap_or(STOP_GRACE_MS),
            replica: None,
        },
    };
    keys.finish()?;
    spec.validate().map_err(|why| place_of(item, &why).wrong(&why))?;
    Ok(spec)
}

/// Returns the value that an error of the validation is about, if its key can be known.
fn place_of<'a>(service: &Item<'a>, error: &SpecError) -> Item<'a> {
    let (SpecError::Name { field, .. }
    | SpecError::Empty { field }
    | SpecError::Range { field, .. }
    | SpecError::TooMuch { field, .. }
    | SpecError::Text { field, .. }) = error;
    let key = match field.split([':', ' ']).next().unwrap_or_default() {
        "env" | "environment" => "environment",
        "health" => "healthcheck",
        "update" | "replicas" | "require" => "deploy",
        "workdir" => "working_dir",
        "mount" | "mounts" | "files" => "volumes",
        key => key,
    };
    match service.node.get(key) {
        Some(node) => Item::new(node, format!("{}.{key}", service.path)),
        None => service.clone(),
    }
}

fn text(item: Option<Item<'_>>) -> CliResult<Option<String>> {
    item.map(|item| Ok(item.text()?.to_owned())).transpose()
}

fn flag(item: Option<Item<'_>>) -> CliResult<bool> {
    Ok(item.map(|item| item.boolean()).transpose()?.unwrap_or(false))
}

fn command(item: &Item<'_>) -> CliResult<Vec<String>> {
    match &item.node.value {
        Value::Scalar(text) => words(text).map_err(|why| item.wrong(why)),
        _ => item.texts(),
    }
}

fn command_or_none(item: &Item<'_>) -> CliResult<Vec<String>> {
    Ok(entrypoint(command(item)?))
}

/// Returns the variables of `env_file` and `environment`; the latter win.
fn environment(scope: &Scope<'_>, keys: &mut Keys<'_>) -> CliResult<BTreeMap<String, String>> {
    let mut env = BTreeMap::new();
    let here = |name: &str| scope.variables.get(name).ok().flatten().map(Into::into);
    for item in
        keys.take("env_file").map(|item| item.one_or_many()).transpose()?.unwrap_or_default()
    {
        let (path, required, raw) = if let Some(path) = item.node.text() {
            (path, true, false)
        } else {
            let mut keys = item.keys()?;
            let Some(path) = keys.take("path") else { return Err(item.wrong("`path` is missing")) };
            let required = keys.take("required").map(|item| item.boolean()).transpose()?;
            let format = keys.take("format");
            keys.finish()?;
            let raw = match format {
                None => false,
                Some(format) if format.text()? == "raw" => true,
                Some(format) => return Err(format.wrong("podmesh knows only the format `raw`")),
            };
            (path.text()?, required.unwrap_or(true), raw)
        };
        let path = item.node.place.source.folder.join(path);
        if !path.exists() {
            if required {
                return Err(item.wrong(format!("{} does not exist", path.display())));
            }
            continue;
        }
        if raw {
            crate::env_vars::add_file(&mut env, &path, &here)?;
        } else {
            dotenv::add_file(&mut env, &path, &here)?;
        }
    }
    let Some(item) = keys.take("environment") else { return Ok(env) };
    for (key, value) in item.entries()? {
        if key.text.is_empty() {
            return Err(value.wrong("a variable is written NAME=VALUE"));
        }
        let text = match &value.node.value {
            // Without a value, that of this machine; without one there, the variable is not set.
            Value::Null => scope.variables.get(&key.text).map_err(|why| value.wrong(why))?,
            _ => Some(value.text()?.to_owned()),
        };
        match text {
            Some(text) => env.insert(key.text.clone(), text),
            None => env.remove(&key.text),
        };
    }
    Ok(env)
}

fn labels(item: Option<Item<'_>>) -> CliResult<BTreeMap<String, String>> {
    let entries = item.map(|item| item.entries()).transpose()?.unwrap_or_default();
    let label = |(key, value): &(&super::super::node::Key, Item<'_>)| {
        let text = if value.node.value == Value::Null { "" } else { value.text()? };
        Ok((key.text.clone(), text.to_owned()))
    };
    entries.iter().map(label).collect()
}

/// Returns the lines `name:address`, from a list or a map.
fn extra_hosts(item: Option<Item<'_>>) -> CliResult<Vec<String>> {
    let Some(item) = item else { return Ok(Vec::new()) };
    if matches!(item.node.value, Value::Map(_)) {
        let mut hosts = Vec::new();
        for (key, value) in item.entries()? {
            for address in value.one_or_many()? {
                hosts.push(format!("{}:{}", key.text, address.text()?));
            }
        }
        return Ok(hosts);
    }
    let bare = |address: &str| address.trim_start_matches('[').trim_end_matches(']').to_owned();
    let line = |text: String| match text.split_once('=').or_else(|| text.split_once(':')) {
        Some((name, address)) => format!("{name}:{}", bare(address)),
        None => text,
    };
    Ok(item.texts()?.into_iter().map(line).collect())
}

fn capabilities(item: Option<Item<'_>>) -> CliResult<Vec<String>> {
    let names = item.map(|item| item.texts()).transpose()?.unwrap_or_default();
    let plain = |name: String| {
        let name = name.to_ascii_uppercase();
        name.strip_prefix("CAP_").map_or(name.clone(), str::to_owned)
    };
    Ok(names.into_iter().map(plain).collect())
}

fn security_opt(item: Option<Item<'_>>, notes: &mut Notes) -> CliResult<Vec<String>> {
    let mut options = Vec::new();
    for item in item.map(|item| item.list()).transpose()?.unwrap_or_default() {
        match item.text()? {
            "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true" => {
                item.ignore(notes, "every container has it");
            }
            option => options.push(option.to_owned()),
        }
    }
    Ok(options)
}

fn ulimits(item: Option<Item<'_>>) -> CliResult<BTreeMap<String, Ulimit>> {
    let mut limits = BTreeMap::new();
    for (key, item) in item.map(|item| item.entries()).transpose()?.unwrap_or_default() {
        let limit = if matches!(item.node.value, Value::Map(_)) {
            let mut keys = item.keys()?;
            let (Some(soft), Some(hard)) = (keys.take("soft"), keys.take("hard")) else {
                return Err(item.wrong("write a number, or `soft` and `hard`"));
            };
            keys.finish()?;
            Ulimit { soft: soft.parsed()?, hard: hard.parsed()? }
        } else {
            let both = item.parsed()?;
            Ulimit { soft: both, hard: both }
        };
        limits.insert(key.text.clone(), limit);
    }
    Ok(limits)
}

fn pull(item: Option<Item<'_>>) -> CliResult<PullPolicy> {
    let Some(item) = item else { return Ok(PullPolicy::default()) };
    match item.text()? {
        "always" => Ok(PullPolicy::Always),
        "never" => Ok(PullPolicy::Never),
        "missing" | "if_not_present" => Ok(PullPolicy::Missing),
        _ => Err(item.wrong("podmesh knows always, missing and never")),
    }
}

fn logging(item: Option<Item<'_>>, notes: &mut Notes) -> CliResult<()> {
    let Some(item) = item else { return Ok(()) };
    let mut keys = item.keys()?;
    let driver = keys.take("driver");
    match driver.as_ref().map(Item::text).transpose()? {
        None | Some("json-file" | "local" | "journald" | "none") => {}
        Some(_) => {
            let why = "podmesh writes output to files on the node, and not to other programs; remove `logging`, and let such a program read the files";
            return Err(item.wrong(why));
        }
    }
    keys.take("options");
    keys.finish()?;
    item.ignore(notes, "output goes to files on the node, within the bounds that its owner sets");
    Ok(())
}

/// Sets the network: the project's networks, with the names of the service there, or a mode.
fn networks(
    scope: &Scope<'_>,
    service: &str,
    mut docker: DockerSpec,
    keys: &mut Keys<'_>,
    notes: &mut Notes,
) -> CliResult<DockerSpec> {
    let container = keys.take("container_name");
    if let Some(domain) = keys.take("domainname") {
        return Err(domain.wrong("write the whole name at `hostname`"));
    }
    let joined = keys.take("networks");
    if let Some(mode) = keys.take("network_mode") {
        if let Some(joined) = joined {
            return Err(joined.wrong("a service has either `networks` or `network_mode`"));
        }
        docker.network = match mode.text()? {
            "bridge" => NetworkMode::Bridge,
            "host" => NetworkMode::Host,
            "none" => NetworkMode::None,
            other => {
                return Err(mode.wrong(format!(
                    "`{other}`: podmesh knows bridge, host and none; services of a project reach each other by their names"
                )));
            }
        };
        if let Some(container) = container {
            container.ignore(notes, "podmesh names containers itself");
        }
        return Ok(docker);
    }
    let mut names = vec![service.to_owned()];
    if let Some(container) = container {
        names.push(container.text()?.to_owned());
        let why = if scope.shared.together {
            "podmesh names containers itself; on the project's networks it is a further name of the service"
        } else {
            "podmesh names containers itself"
        };
        container.ignore(notes, why);
    }
    names.extend(docker.hostname.clone());
    let joined = match &joined {
        Some(item) => {
            item.entries()?.into_iter().map(|(key, item)| (key.text.clone(), Some(item))).collect()
        }
        None => vec![("default".to_owned(), None)],
    };
    for (network, item) in joined {
        let Some(name) = scope.shared.networks.get(&network) else {
            let why =
                format!("network `{network}` is not in the top-level `networks`; add it there");
            // Without an entry, it is `default`, which always exists.
            return Err(item.map_or_else(
                || crate::error::CliError::usage(why.clone()),
                |item| item.wrong(&why),
            ));
        };
        let mut aliases = names.clone();
        if let Some(item) = &item {
            let mut keys = item.keys()?;
            aliases.extend(
                keys.take("aliases").map(|item| item.texts()).transpose()?.unwrap_or_default(),
            );
            for key in ["priority", "gw_priority", "link_local_ips"] {
                keys.ignore(key, notes, "it has no effect here");
            }
            let why = "the node chooses addresses; reach the service by its name";
            keys.refuse("ipv4_address", why)?;
            keys.refuse("ipv6_address", why)?;
            keys.finish()?;
        }
        aliases.sort();
        aliases.dedup();
        if scope.shared.together {
            docker.networks.insert(name.clone(), aliases);
        }
    }
    Ok(docker)
}
