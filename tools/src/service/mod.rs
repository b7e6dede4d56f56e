//! Builds the spec of a service from a service file, and writes it as one.

mod diff;
mod file;
#[cfg(test)]
mod tests;
pub(crate) mod values;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use podmesh_protocol::place::PlaceRules;
use podmesh_protocol::service::{PortSpec, ServiceSpec};
use podmesh_protocol::spec::{DockerSpec, Resources, RunSpec, RuntimeSpec, SpecError};

pub(crate) use self::diff::{changed_keys, unified};
use self::file::{
    HealthFile, HttpFile, PortFile, ProjectFile, RestartTable, ServiceFile, UpdateFile,
};
use crate::bounded::{JOB_FILE, read_bounded};
use crate::container::{Container, OneOrMany, STOP_GRACE_MS, entrypoint};
use crate::env_vars::{self, Lookup};
use crate::error::{CliError, CliResult};
use crate::output::text::{clip, escape};
use crate::toml_file::{self, keys_of};
use crate::values::Span;

/// The default of how long the connections of a replica get to end, in milliseconds.
const DRAIN_MS: u64 = 10_000;
/// The maximum number of characters of the reason why a spec is not valid.
const SHOWN_REASON: usize = 400;

/// Reads a service file (`-` is standard input), and validates the spec. Files in `env_file` are
/// relative to it.
///
/// # Errors
/// Whatever the manager would refuse, and what cannot be read: with the file, the line and the key.
pub(crate) fn read(path: &Path, lookup: Lookup<'_>) -> CliResult<ServiceSpec> {
    let text = read_bounded(path, "service file", JOB_FILE)?;
    let name =
        if path == Path::new("-") { "the service file".into() } else { path.display().to_string() };
    let base = path.parent().unwrap_or(Path::new(""));
    build(&text, &name, base, lookup)
}

fn build(text: &str, file_name: &str, base: &Path, lookup: Lookup<'_>) -> CliResult<ServiceSpec> {
    let mut tables: Vec<(String, &[&str])> = vec![
        ("health".into(), keys_of::<HealthFile>()),
        ("health.?.http".into(), keys_of::<HttpFile>()),
        ("restart".into(), keys_of::<RestartTable>()),
        ("update".into(), keys_of::<UpdateFile>()),
        ("project".into(), keys_of::<ProjectFile>()),
    ];
    // Ports have names of the user's choice.
    if let Ok(root) = text.parse::<toml::Table>()
        && let Some(toml::Value::Table(ports)) = root.get("ports")
    {
        tables.extend(ports.keys().map(|port| (format!("ports.{port}"), keys_of::<PortFile>())));
    }
    let tables: Vec<(&str, &[&str])> =
        tables.iter().map(|(name, keys)| (name.as_str(), *keys)).collect();
    let file: ServiceFile = toml_file::parse(text, file_name, &tables)?;

    let wrong = |keys: &[&str], why: &str| {
        let place = toml_file::place_of(text, keys.iter().copied());
        CliError::usage(format!("{file_name}{place}")).because(clip(&escape(why), SHOWN_REASON))
    };
    let Some(name) = file.name else {
        return Err(wrong(&[], "the service has no name; write one, such as name = \"web\""));
    };
    let mut env = BTreeMap::new();
    for path in file.env_file.map(OneOrMany::into_vec).unwrap_or_default() {
        env_vars::add_file(&mut env, &base.join(path), lookup)?;
    }
    env.extend(file.env);
    let container = Container {
        spec: DockerSpec {
            entrypoint: file.entrypoint.map(|words| entrypoint(words.into_vec())),
            user: file.user,
            mounts: file.mounts.into_iter().map(|mount| mount.0).collect(),
            volumes: file.volumes.into_iter().map(|volume| volume.0).collect(),
            tmpfs: file.tmpfs,
            read_only: file.read_only,
            networks: file.networks,
            hostname: file.hostname,
            extra_hosts: file.extra_hosts,
            cap_add: file.cap_add,
            cap_drop: file.cap_drop,
            security_opt: file.security_opt,
            devices: file.devices,
            pids: file.pids,
            ulimits: file.ulimits.into_iter().map(|(name, limit)| (name, limit.0)).collect(),
            shm_size: file.shm_size.map(|size| size.0),
            init: file.init,
            tty: file.tty,
            stop_signal: file.stop_signal,
            labels: file.labels,
            platform: file.platform,
            ..DockerSpec::default()
        },
        network: file.network,
        pull: file.pull,
    };
    let runtime = match (file.image, container.asked()) {
        (Some(image), _) => RuntimeSpec::from(container.with_image(image)),
        (None, Some(key)) => {
            return Err(wrong(
                &[key],
                &format!("`{key}` is for containers, and there is no `image`"),
            ));
        }
        (None, None) if file.command.first().is_none_or(String::is_empty) => {
            return Err(wrong(
                &["command"],
                "there is nothing to run; write image = \"…\", or command = […] for a command",
            ));
        }
        (None, None) => RuntimeSpec::Process,
    };
    let health = match file.health.map(HealthFile::spec).transpose() {
        Ok(health) => health.map(Arc::new),
        Err(why) => return Err(wrong(&["health"], &format!("health: {why}"))),
    };
    let resources = Resources::default();
    let spec = ServiceSpec {
        name,
        replicas: file.replicas.map_or(1, |replicas| replicas.0),
        require: file.require,
        spread: file.spread,
        place: PlaceRules {
            resources: file.resources.into_iter().map(|(name, amount)| (name, amount.0)).collect(),
            prefer: file.prefer,
            spread: None,
            exclusive: file.exclusive,
        }
        .into(),
        project: file.project.map(Into::into),
        depends_on: file.depends_on,
        resources: Resources {
            cpu_millis: file.cpus.map_or(resources.cpu_millis, |cpus| cpus.0),
            memory_bytes: file.memory.map_or(resources.memory_bytes, |memory| memory.0),
        },
        ports: Arc::new(
            file.ports.iter().map(|(name, port)| (name.clone(), PortSpec::from(port))).collect(),
        ),
        health,
        restart: file.restart.map(Into::into).unwrap_or_default(),
        update: file.update.map(Into::into).unwrap_or_default(),
        drain_ms: file.drain.map_or(DRAIN_MS, Span::ms),
        run: RunSpec {
            runtime,
            command: file.command,
            env,
            workdir: file.workdir,
            timeout_ms: None,
            stop_grace_ms: file.stop_grace.map_or(STOP_GRACE_MS, Span::ms),
            replica: None,
            files: file.files,
        },
    };
    match spec.validate() {
        Ok(()) => Ok(spec),
        Err(why) => {
            let keys = keys_of_error(&why);
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            Err(wrong(&keys, &why.to_string()))
        }
    }
}

/// Returns the keys that lead to the value that an error is about: `health`, `path` for
/// `health: path`.
fn keys_of_error(error: &SpecError) -> Vec<String> {
    let (SpecError::Name { field, .. }
    | SpecError::Empty { field }
    | SpecError::Range { field, .. }
    | SpecError::TooMuch { field, .. }
    | SpecError::Text { field, .. }) = error;
    let field = field.split(" (").next().unwrap_or_default();
    field
        .split(": ")
        .map(|part| match part {
            "mount source" | "mount target" => "mounts".to_owned(),
            "longest backoff" => "backoff_max".to_owned(),
            part => part.replace(' ', "_"),
        })
        .collect()
}

/// Returns the spec as a service file, without what has its default value.
///
/// # Errors
/// If the spec cannot be written as TOML.
pub(crate) fn to_toml(spec: &ServiceSpec) -> CliResult<String> {
    toml::to_string(&ServiceFile::from(spec)).map_err(|why| {
        CliError::failure("the spec of the service cannot be written as TOML").because(why)
    })
}
