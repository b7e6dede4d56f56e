//! The spec of a job, from flags, a job file, or both.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::NAME_BYTES_MAX;
use podmesh_protocol::spec::{
    DockerSpec, JobSpec, Mount, NetworkMode, OnLost, PullPolicy, Resources, RetryPolicy, RunSpec,
    RuntimeSpec,
};
use serde::Deserialize;

use crate::bounded::read_bounded;
use crate::cli::job::{JobOptions, RuntimeFlag};
use crate::env_vars::{self, Lookup};
use crate::error::{CliError, Outcome};
use crate::toml_file;
use crate::values::{Array, Cpus, MountText, Size, Span};

/// Milliseconds between TERM and KILL where nothing else is asked for, as Docker's.
const STOP_GRACE_MS: u64 = 10_000;

/// A job file: every key that a flag of `run` has, in TOML.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JobFile {
    name: Option<Name>,
    image: Option<String>,
    command: Option<Vec<String>>,
    array: Option<Array>,
    cpus: Option<Cpus>,
    memory: Option<Size>,
    require: BTreeMap<Name, String>,
    env: BTreeMap<String, String>,
    env_file: Option<OneOrMany<PathBuf>>,
    timeout: Option<Span>,
    retries: Option<u32>,
    retry_backoff: Option<Span>,
    priority: Option<i32>,
    on_lost: Option<OnLost>,
    stop_grace: Option<Span>,
    workdir: Option<String>,
    user: Option<String>,
    entrypoint: Option<OneOrMany<String>>,
    mounts: Vec<MountText>,
    network: Option<NetworkMode>,
    pull: Option<PullPolicy>,
}

/// One value, or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// Builds the spec and checks it. Flags win over the file; `env`, `require` and `mounts` are
/// joined, a flag's entry winning over the file's of the same name or target.
///
/// # Errors
/// Everything that the manager would refuse, and what cannot be read.
pub(crate) fn build(options: JobOptions, command: Vec<OsString>, lookup: Lookup<'_>) -> Outcome<JobSpec> {
    let file = match &options.file {
        Some(path) => read_file(path)?,
        None => JobFile::default(),
    };
    let command = match utf8(command)? {
        command if command.is_empty() => file.command.unwrap_or_default(),
        command => command,
    };

    let mut env = BTreeMap::new();
    let base = options.file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    for path in file.env_file.map(OneOrMany::into_vec).unwrap_or_default() {
        // As the job file writes it: beside the job file, not wherever the user stands.
        env_vars::add_file(&mut env, &base.join(path), lookup)?;
    }
    env.extend(file.env);
    for path in &options.env_file {
        env_vars::add_file(&mut env, path, lookup)?;
    }
    for text in &options.env {
        env_vars::add_flag(&mut env, text, lookup)?;
    }

    let mut require = file.require;
    require.extend(options.require.into_iter().map(|label| (label.0, label.1)));

    let mounts = joined(file.mounts, options.mounts);
    let container = Container {
        image: options.image.or(file.image),
        entrypoint: match options.entrypoint {
            Some(text) => Some(entrypoint(vec![text])),
            None => file.entrypoint.map(|words| entrypoint(words.into_vec())),
        },
        user: options.user.or(file.user),
        mounts,
        network: options.network.map(Into::into).or(file.network),
        pull: options.pull.map(Into::into).or(file.pull),
    };
    let runtime = runtime(options.runtime, container, &command)?;
    let name = match options.name.or(file.name) {
        Some(name) => name,
        None => default_name(&runtime, &command),
    };

    let resources = Resources::default();
    let retry = RetryPolicy::default();
    let backoff_ms = options.retry_backoff.or(file.retry_backoff).map_or(retry.backoff_ms, Span::ms);
    let spec = JobSpec {
        name,
        array: options.array.or(file.array).map(|array| array.0).unwrap_or_default(),
        priority: options.priority.or(file.priority).unwrap_or(0),
        require,
        resources: Resources {
            cpu_millis: options.cpus.or(file.cpus).map_or(resources.cpu_millis, |cpus| cpus.0),
            memory_bytes: options.memory.or(file.memory).map_or(resources.memory_bytes, |m| m.0),
        },
        retry: RetryPolicy {
            retries: options.retries.or(file.retries).unwrap_or(retry.retries),
            backoff_ms,
            // A first wait over the usual longest one is meant as it is written.
            backoff_ms_max: retry.backoff_ms_max.max(backoff_ms),
        },
        on_lost: options.on_lost.map(Into::into).or(file.on_lost).unwrap_or_default(),
        run: RunSpec {
            runtime,
            command,
            env,
            workdir: options.workdir.or(file.workdir),
            timeout_ms: options.timeout.or(file.timeout).map(Span::ms),
            stop_grace_ms: options.stop_grace.or(file.stop_grace).map_or(STOP_GRACE_MS, Span::ms),
        },
    };
    spec.validate().map_err(|why| {
        let why = crate::output::text::clip(&crate::output::text::escape(&why.to_string()), 400);
        CliError::usage("the job is not valid").because(why)
    })?;
    Ok(spec)
}

fn read_file(path: &Path) -> Outcome<JobFile> {
    let text = read_bounded(path, "job file")?;
    let name = if path == Path::new("-") { "the job file".into() } else { path.display().to_string() };
    toml_file::parse(&text, &name, &[])
}

fn utf8(arguments: Vec<OsString>) -> Outcome<Vec<String>> {
    (1..)
        .zip(arguments)
        .map(|(number, argument)| {
            argument.into_string().map_err(|bytes| {
                let shown = crate::output::text::clip(&bytes.to_string_lossy().escape_debug().to_string(), 80);
                CliError::usage(format!("word {number} of the command is not UTF-8: `{shown}`")).hint(
                    "a job's command is text; give other bytes in a file, or have a shell make them",
                )
            })
        })
        .collect()
}

/// The mounts of both, a flag's replacing the file's with the same target.
fn joined(file: Vec<MountText>, flags: Vec<MountText>) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = file.into_iter().map(|mount| mount.0).collect();
    mounts.retain(|mount| flags.iter().all(|flag| flag.0.target != mount.target));
    mounts.extend(flags.into_iter().map(|mount| mount.0));
    mounts
}

/// As Docker has it: an empty text removes the image's entrypoint.
fn entrypoint(words: Vec<String>) -> Vec<String> {
    if words == [""] { Vec::new() } else { words }
}

/// What only a container has, as far as it was asked for.
struct Container {
    image: Option<String>,
    entrypoint: Option<Vec<String>>,
    user: Option<String>,
    mounts: Vec<Mount>,
    network: Option<NetworkMode>,
    pull: Option<PullPolicy>,
}

impl Container {
    /// The first option that only a container has.
    fn asked(&self) -> Option<&'static str> {
        [
            (self.entrypoint.is_some(), "entrypoint"),
            (self.user.is_some(), "user"),
            (!self.mounts.is_empty(), "mount"),
            (self.network.is_some(), "network"),
            (self.pull.is_some(), "pull"),
        ]
        .into_iter()
        .find_map(|(asked, name)| asked.then_some(name))
    }
}

fn runtime(flag: Option<RuntimeFlag>, container: Container, command: &[String]) -> Outcome<RuntimeSpec> {
    if let Some(RuntimeFlag::Noop) = flag {
        return Ok(RuntimeSpec::Noop);
    }
    match container.image {
        Some(image) => Ok(RuntimeSpec::Docker(DockerSpec {
            image,
            entrypoint: container.entrypoint,
            user: container.user,
            mounts: container.mounts,
            network: container.network.unwrap_or_default(),
            pull: container.pull.unwrap_or_default(),
        })),
        None => {
            if let Some(option) = container.asked() {
                return Err(CliError::usage(format!("`{option}` is for containers, and there is no image"))
                    .hint("name one with --image, or leave the option out"));
            }
            if command.first().is_none_or(String::is_empty) {
                return Err(CliError::usage("there is no command to run").hint(
                    "write it behind `--`, as in `podmesh run -- echo hello`, or name an image with --image",
                ));
            }
            Ok(RuntimeSpec::Process)
        }
    }
}

/// The program's or the image's own name, made valid.
#[expect(clippy::expect_used, reason = "`job` keeps every rule of a name")]
fn default_name(runtime: &RuntimeSpec, command: &[String]) -> Name {
    let text = match (command.first(), runtime) {
        (Some(program), _) => program.rsplit('/').next().unwrap_or_default(),
        (None, RuntimeSpec::Docker(docker)) => {
            let path = docker.image.split('@').next().unwrap_or_default();
            let last = path.rsplit('/').next().unwrap_or_default();
            last.split(':').next().unwrap_or_default()
        }
        (None, RuntimeSpec::Process | RuntimeSpec::Noop) => "",
    };
    let mut valid: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .collect();
    valid.truncate(NAME_BYTES_MAX);
    valid.parse().or_else(|_| "job".parse()).expect("`job` is a name")
}
