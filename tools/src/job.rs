//! Builds the spec of a job from flags, a job file, or both.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use podmesh_protocol::ids::Name;
use podmesh_protocol::place::PlaceRules;
use podmesh_protocol::ranges::Ranges;
use podmesh_protocol::schedule::{Overlap, ScheduleSpec, When};
use podmesh_protocol::spec::{
    DockerSpec, JobRules, JobSpec, Mount, NetworkMode, OnLost, PullPolicy, Resources, RetryPolicy,
    RunSpec, RuntimeSpec, VolumeMount,
};
use podmesh_protocol::workflow::Dependency;
use serde::Deserialize;

use crate::bounded::{JOB_FILE, read_bounded};
use crate::cli::job::{JobOptions, RuntimeFlag};
use crate::cli::schedule::RuleArgs;
use crate::cli::workflow::AfterArgs;
use crate::container::{Container, OneOrMany, STOP_GRACE_MS, entrypoint};
use crate::env_vars::{self, Lookup};
use crate::error::{CliError, CliResult};
use crate::output::time::local_zone;
use crate::toml_file;
use crate::values::{
    Amount, Array, Cpus, MountText, Size, Span, UlimitText, VolumeText, made_name,
};
use crate::workflow::{self, AfterKeys, Upstream};

/// A job file in TOML, with a key for every flag of `run`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct JobFile {
    name: Option<Name>,
    image: Option<String>,
    command: Option<Vec<String>>,
    array: Option<Array>,
    cpus: Option<Cpus>,
    memory: Option<Size>,
    require: BTreeMap<Name, String>,
    resources: BTreeMap<Name, Amount>,
    prefer: BTreeMap<Name, String>,
    spread: Option<Name>,
    exclusive: Option<bool>,
    env: BTreeMap<String, String>,
    env_file: Option<OneOrMany<PathBuf>>,
    timeout: Option<Span>,
    retries: Option<u32>,
    retry_backoff: Option<Span>,
    retry_on: Option<Ranges>,
    no_retry_on: Option<Ranges>,
    max_failures: Option<u32>,
    max_active: Option<u32>,
    preemptible: Option<bool>,
    expires: Option<Span>,
    queue: Option<Name>,
    priority: Option<i32>,
    on_lost: Option<OnLost>,
    stop_grace: Option<Span>,
    workdir: Option<String>,
    user: Option<String>,
    entrypoint: Option<OneOrMany<String>>,
    mounts: Vec<MountText>,
    volumes: Vec<VolumeText>,
    tmpfs: BTreeMap<String, String>,
    read_only: Option<bool>,
    network: Option<NetworkMode>,
    hostname: Option<String>,
    extra_hosts: Vec<String>,
    cap_add: Vec<String>,
    cap_drop: Vec<String>,
    security_opt: Vec<String>,
    devices: Vec<String>,
    pids: Option<u32>,
    ulimits: BTreeMap<String, UlimitText>,
    shm_size: Option<Size>,
    init: Option<bool>,
    tty: Option<bool>,
    stop_signal: Option<String>,
    labels: BTreeMap<String, String>,
    files: BTreeMap<String, String>,
    platform: Option<String>,
    pull: Option<PullPolicy>,
    after: Option<OneOrMany<Upstream>>,
    after_failed: Option<OneOrMany<Upstream>>,
    after_any: Option<OneOrMany<Upstream>>,
    after_each: Option<OneOrMany<Upstream>>,
    // In the file of a schedule.
    cron: Option<String>,
    every: Option<Span>,
    tz: Option<String>,
    overlap: Option<Overlap>,
    catch_up: Option<Span>,
}

impl JobFile {
    /// Takes what the job waits for.
    fn take_after(&mut self) -> AfterKeys {
        let Self { after, after_failed, after_any, after_each, .. } = self;
        [after.take(), after_failed.take(), after_any.take(), after_each.take()]
    }

    /// Returns a key that only a schedule has, if the file has one.
    fn key_of_schedule(&self) -> Option<&'static str> {
        let Self { cron, every, tz, overlap, catch_up, .. } = self;
        let keys = [
            ("cron", cron.is_some()),
            ("every", every.is_some()),
            ("tz", tz.is_some()),
            ("overlap", overlap.is_some()),
            ("catch_up", catch_up.is_some()),
        ];
        keys.into_iter().find(|(_, given)| *given).map(|(key, _)| key)
    }
}

/// Builds and validates the spec. Flags override the file. `env`, `require`, `mounts`, `volumes`,
/// `tmpfs`, `ulimits` and `labels` are merged; a flag overrides the file's entry with the same name
/// or target.
///
/// # Errors
/// Whatever the manager would refuse, and what cannot be read.
pub(crate) fn build(
    options: JobOptions,
    command: Vec<OsString>,
    after: AfterArgs,
    lookup: Lookup<'_>,
) -> CliResult<JobSpec> {
    let mut file = file_of(&options)?;
    let after = workflow::after(after, file.take_after())?;
    if let Some(key) = file.key_of_schedule() {
        return Err(CliError::usage(format!(
            "the job file has the key `{key}`, which is for schedules"
        ))
        .hint("`podmesh schedule add -f FILE` adds a schedule; omit the key to submit one job"));
    }
    assemble(file, options, command, after, lookup)
}

/// Builds and validates a job of a workflow file, and returns it with what it waits for.
///
/// # Errors
/// Whatever the manager would refuse, and what cannot be read.
pub(crate) fn of_workflow(
    mut file: JobFile,
    path: &Path,
    lookup: Lookup<'_>,
) -> CliResult<(JobSpec, AfterKeys)> {
    if let Some(key) = file.key_of_schedule() {
        return Err(CliError::usage(format!("the key `{key}` is for schedules")));
    }
    let after = file.take_after();
    // Other files that it names are beside this one.
    let options = JobOptions { file: Some(path.into()), ..JobOptions::default() };
    Ok((assemble(file, options, Vec::new(), Vec::new(), lookup)?, after))
}

/// Builds and validates a schedule. Its job is built as by [`build`], and has its name by default.
///
/// # Errors
/// Whatever the manager would refuse, apart from the rule itself, and what cannot be read.
pub(crate) fn schedule(
    name: Option<Name>,
    rule: RuleArgs,
    mut options: JobOptions,
    command: Vec<OsString>,
    lookup: Lookup<'_>,
) -> CliResult<ScheduleSpec> {
    let mut file = file_of(&options)?;
    let after = workflow::after(AfterArgs::default(), file.take_after())?;
    let Some(name) = name.or(file.name.take()) else {
        return Err(CliError::usage("the schedule has no name")
            .hint("write it after `add`, or as `name` in the file"));
    };
    options.name.get_or_insert_with(|| name.clone());
    let of_file = if rule.cron.is_some() || rule.every.is_some() {
        (None, None)
    } else {
        (file.cron.take(), file.every.take())
    };
    let tz = rule.tz.or(file.tz.take());
    let when = match (rule.cron.or(of_file.0), rule.every.or(of_file.1)) {
        (Some(pattern), None) => {
            let zone = tz.unwrap_or_else(|| local_zone().name().into());
            When::Cron { pattern, zone }
        }
        (None, Some(_)) if tz.is_some() => {
            return Err(CliError::usage("an interval has no time zone").hint("omit `tz`"));
        }
        (None, Some(every)) => When::Every { every_ms: every.ms() },
        (Some(_), Some(_)) => {
            return Err(CliError::usage("a schedule has either `cron` or `every`, not both"));
        }
        (None, None) => {
            return Err(CliError::usage("it is not said when the schedule runs")
                .hint("give --cron, as in --cron '0 3 * * *', or --every, as in --every 15m"));
        }
    };
    let overlap = rule.overlap.map(Into::into).or(file.overlap.take()).unwrap_or_default();
    let catch_up = rule.catch_up.or(file.catch_up.take());
    let spec = ScheduleSpec {
        name,
        when,
        overlap,
        catch_up_ms: catch_up.map_or(ScheduleSpec::CATCH_UP_MS_DEFAULT, Span::ms),
        job: Box::new(assemble(file, options, command, after, lookup)?),
    };
    spec.validate().map_err(|why| CliError::usage("the schedule is not valid").because(why))?;
    Ok(spec)
}

fn file_of(options: &JobOptions) -> CliResult<JobFile> {
    options.file.as_deref().map_or_else(|| Ok(JobFile::default()), read_file)
}

fn assemble(
    file: JobFile,
    options: JobOptions,
    command: Vec<OsString>,
    after: Vec<Dependency>,
    lookup: Lookup<'_>,
) -> CliResult<JobSpec> {
    let command = match utf8(command)? {
        command if command.is_empty() => file.command.unwrap_or_default(),
        command => command,
    };

    let mut env = BTreeMap::new();
    let base = options.file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    for path in file.env_file.map(OneOrMany::into_vec).unwrap_or_default() {
        // Relative to the job file, not to the current folder.
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

    let mut place = PlaceRules {
        resources: file.resources.into_iter().map(|(name, amount)| (name, amount.0)).collect(),
        prefer: file.prefer,
        spread: options.spread.or(file.spread),
        exclusive: options.exclusive || file.exclusive == Some(true),
    };
    place.resources.extend(options.resources.into_iter().map(|text| (text.0, text.1.0)));
    place.prefer.extend(options.prefer.into_iter().map(|label| (label.0, label.1)));

    let mounts = joined(file.mounts, options.mounts);
    let image = options.image.or(file.image);
    let mut tmpfs = file.tmpfs;
    tmpfs.extend(options.tmpfs.into_iter().map(|folder| (folder.0, folder.1)));
    let mut ulimits = file.ulimits;
    ulimits.extend(options.ulimits.into_iter().map(|limit| (limit.0, limit.1)));
    let mut labels = file.labels;
    labels.extend(options.labels.into_iter().map(|label| (label.0, label.1)));
    let list = |flags: Vec<String>, file| if flags.is_empty() { file } else { flags };
    let container = Container {
        spec: DockerSpec {
            entrypoint: match options.entrypoint {
                Some(text) => Some(entrypoint(vec![text])),
                None => file.entrypoint.map(|words| entrypoint(words.into_vec())),
            },
            user: options.user.or(file.user),
            mounts,
            volumes: joined_volumes(file.volumes, options.volumes),
            tmpfs,
            read_only: options.read_only || file.read_only == Some(true),
            hostname: options.hostname.or(file.hostname),
            extra_hosts: list(options.extra_hosts, file.extra_hosts),
            cap_add: list(options.cap_add, file.cap_add),
            cap_drop: list(options.cap_drop, file.cap_drop),
            security_opt: list(options.security_opt, file.security_opt),
            devices: list(options.devices, file.devices),
            pids: options.pids.or(file.pids),
            ulimits: ulimits.into_iter().map(|(name, limit)| (name, limit.0)).collect(),
            shm_size: options.shm_size.or(file.shm_size).map(|size| size.0),
            init: options.init || file.init == Some(true),
            tty: options.tty || file.tty == Some(true),
            stop_signal: options.stop_signal.or(file.stop_signal),
            labels,
            platform: options.platform.or(file.platform),
            ..DockerSpec::default()
        },
        network: options.network.map(Into::into).or(file.network),
        pull: options.pull.map(Into::into).or(file.pull),
    };
    let runtime = runtime(options.runtime, image, container, &command)?;
    let name = match options.name.or(file.name) {
        Some(name) => name,
        None => default_name(&runtime, &command),
    };

    let resources = Resources::default();
    let retry = RetryPolicy::default();
    let backoff_ms =
        options.retry_backoff.or(file.retry_backoff).map_or(retry.backoff_ms, Span::ms);
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
            // A first pause longer than the default limit raises the limit.
            backoff_ms_max: retry.backoff_ms_max.max(backoff_ms),
            on: options.retry_on.or(file.retry_on),
            not_on: options.no_retry_on.or(file.no_retry_on),
        },
        on_lost: options.on_lost.map(Into::into).or(file.on_lost).unwrap_or_default(),
        rules: JobRules {
            max_failures: options.max_failures.or(file.max_failures),
            max_active: options.max_active.or(file.max_active),
            expires_ms: options.expires.or(file.expires).map(Span::ms),
            queue: options.queue.or(file.queue),
            preemptible: options.preemptible || file.preemptible == Some(true),
        }
        .into(),
        place: place.into(),
        not_before_ms: None,
        after,
        scheduled: None,
        dead_letter: None,
        workflow: None,
        run: RunSpec {
            runtime,
            command,
            env,
            workdir: options.workdir.or(file.workdir),
            timeout_ms: options.timeout.or(file.timeout).map(Span::ms),
            stop_grace_ms: options.stop_grace.or(file.stop_grace).map_or(STOP_GRACE_MS, Span::ms),
            replica: None,
            files: file.files,
        },
    };
    spec.validate().map_err(|why| {
        let why = crate::output::text::clip(&crate::output::text::escape(&why.to_string()), 400);
        CliError::usage("the job is not valid").because(why)
    })?;
    Ok(spec)
}

fn read_file(path: &Path) -> CliResult<JobFile> {
    let text = read_bounded(path, "job file", JOB_FILE)?;
    let name =
        if path == Path::new("-") { "the job file".into() } else { path.display().to_string() };
    toml_file::parse(&text, &name, &[])
}

fn utf8(arguments: Vec<OsString>) -> CliResult<Vec<String>> {
    (1..)
        .zip(arguments)
        .map(|(number, argument)| {
            argument.into_string().map_err(|bytes| {
                let shown = crate::output::text::clip(&bytes.to_string_lossy().escape_debug().to_string(), 80);
                CliError::usage(format!("word {number} of the command is not UTF-8: `{shown}`")).hint(
                    "a job's command is text; put other bytes in a file, or let a shell create them",
                )
            })
        })
        .collect()
}

/// Merges the mounts of both; a flag replaces the file's mount with the same target.
fn joined(file: Vec<MountText>, flags: Vec<MountText>) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = file.into_iter().map(|mount| mount.0).collect();
    mounts.retain(|mount| flags.iter().all(|flag| flag.0.target != mount.target));
    mounts.extend(flags.into_iter().map(|mount| mount.0));
    mounts
}

/// Merges the volumes of both; a flag replaces the file's volume with the same target.
fn joined_volumes(file: Vec<VolumeText>, flags: Vec<VolumeText>) -> Vec<VolumeMount> {
    let mut volumes: Vec<VolumeMount> = file.into_iter().map(|volume| volume.0).collect();
    volumes.retain(|volume| flags.iter().all(|flag| flag.0.target != volume.target));
    volumes.extend(flags.into_iter().map(|volume| volume.0));
    volumes
}

fn runtime(
    flag: Option<RuntimeFlag>,
    image: Option<String>,
    container: Container,
    command: &[String],
) -> CliResult<RuntimeSpec> {
    if let Some(RuntimeFlag::Noop) = flag {
        return Ok(RuntimeSpec::Noop);
    }
    match image {
        Some(image) => Ok(RuntimeSpec::from(container.with_image(image))),
        None => {
            if let Some(option) = container.asked() {
                return Err(CliError::usage(format!(
                    "`{option}` is for containers, and no image is given"
                ))
                .hint("name an image with --image, or omit the option"));
            }
            if command.first().is_none_or(String::is_empty) {
                return Err(CliError::usage("there is no command to run").hint(
                    "write it after `--`, as in `podmesh run -- echo hello`, or name an image with --image",
                ));
            }
            Ok(RuntimeSpec::Process)
        }
    }
}

/// Returns a valid name made from the name of the program or image.
#[expect(clippy::expect_used, reason = "`job` is a valid name")]
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
    made_name(text).unwrap_or_else(|| "job".parse().expect("`job` is a name"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use clap::Parser;
    use podmesh_protocol::spec::Ulimit;

    use super::*;
    use crate::cli::{Cli, Verb};

    fn here(name: &str) -> Option<OsString> {
        (name == "HERE").then(|| "set".into())
    }

    /// Returns the spec of `podmesh submit` with these arguments, or its error.
    fn made(words: &[&str]) -> Result<JobSpec, String> {
        let words = ["podmesh", "submit"].iter().chain(words);
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        let Verb::Submit(args) = cli.verb else { unreachable!("a submission was asked for") };
        build(args.options, args.command.command, args.upstream, &here).map_err(|error| {
            assert_eq!(error.exit_code(), 2);
            format!("{error} / {}", error.hint_text().unwrap_or_default())
        })
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.toml");
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (folder, path)
    }

    #[test]
    fn a_command_is_enough_for_a_job() {
        let spec = made(&["--", "/bin/echo", "-n", "a b"]).unwrap();
        assert_eq!(spec.name.as_str(), "echo");
        assert_eq!(spec.run.command, ["/bin/echo", "-n", "a b"]);
        assert_eq!(spec.run.runtime, RuntimeSpec::Process);
        assert_eq!(spec.resources, Resources::default());
        assert_eq!((spec.array.tasks(), spec.run.stop_grace_ms), (1, 10_000));
    }

    #[test]
    fn every_flag_is_in_the_spec() {
        let spec = made(&[
            "--name",
            "n",
            "--image",
            "quay.io/a/b:1@sha256:0",
            "--array",
            "0-9",
            "--cpus",
            "0.5",
            "--memory",
            "512MiB",
            "--require",
            "gpu=a100",
            "-e",
            "A=b",
            "-e",
            "HERE",
            "--timeout",
            "90s",
            "--retries",
            "3",
            "--retry-backoff",
            "10min",
            "--no-retry-on",
            "2,10-12",
            "--max-failures",
            "4",
            "--max-active",
            "5",
            "--expires",
            "1h",
            "--queue",
            "night",
            "--preemptible",
            "--priority",
            "-5",
            "--on-lost",
            "requeue",
            "--stop-grace",
            "1s",
            "-w",
            "/w",
            "--user",
            "1:2",
            "--entrypoint",
            "",
            "-v",
            "/s:/t:ro",
            "--volume",
            "data:/d",
            "--tmpfs",
            "/run:size=1m",
            "--tmpfs",
            "/tmp",
            "--read-only",
            "--hostname",
            "h",
            "--extra-host",
            "db:10.0.0.5",
            "--cap-drop",
            "CHOWN,KILL",
            "--security-opt",
            "seccomp=unconfined",
            "--device",
            "/dev/a",
            "--ulimit",
            "nofile=5:9",
            "--shm-size",
            "1MiB",
            "--init",
            "--tty",
            "--stop-signal",
            "INT",
            "--label",
            "a=b=c",
            "--network",
            "none",
            "--pull",
            "never",
        ])
        .unwrap();
        assert_eq!((spec.array.first, spec.array.last, spec.priority), (0, 9, -5));
        assert_eq!((spec.resources.cpu_millis, spec.resources.memory_bytes), (500, 512 << 20));
        assert_eq!(spec.require.values().collect::<Vec<_>>(), ["a100"]);
        assert_eq!((&*spec.run.env["A"], &*spec.run.env["HERE"]), ("b", "set"));
        assert_eq!((spec.run.timeout_ms, spec.run.stop_grace_ms), (Some(90_000), 1_000));
        let retry = RetryPolicy {
            retries: 3,
            backoff_ms: 600_000,
            backoff_ms_max: 600_000,
            on: None,
            not_on: "2,10-12".parse().ok(),
        };
        assert_eq!((spec.retry, spec.on_lost), (retry, OnLost::Requeue));
        let rules = (spec.rules.max_failures, spec.rules.max_active, spec.rules.expires_ms);
        assert_eq!(rules, (Some(4), Some(5), Some(3_600_000)));
        assert_eq!(spec.rules.queue.as_ref().map(Name::as_str), Some("night"));
        assert!(spec.rules.preemptible);
        assert_eq!(spec.run.workdir.as_deref(), Some("/w"));
        let RuntimeSpec::Docker(docker) = spec.run.runtime else {
            unreachable!("an image is given")
        };
        assert_eq!((docker.user.as_deref(), docker.entrypoint), (Some("1:2"), Some(vec![])));
        assert_eq!((docker.network, docker.pull), (NetworkMode::None, PullPolicy::Never));
        assert!(docker.mounts[0].read_only);
        assert_eq!((docker.volumes[0].volume.as_str(), &*docker.volumes[0].target), ("data", "/d"));
        assert_eq!((&*docker.tmpfs["/run"], &*docker.tmpfs["/tmp"]), ("size=1m", ""));
        assert!(docker.read_only && docker.init && docker.tty);
        assert_eq!((docker.hostname.as_deref(), docker.shm_size), (Some("h"), Some(1 << 20)));
        assert_eq!(
            (docker.extra_hosts, docker.devices),
            (vec!["db:10.0.0.5".into()], vec!["/dev/a".into()])
        );
        assert_eq!((docker.cap_drop.len(), docker.security_opt.len()), (2, 1));
        assert_eq!(docker.ulimits["nofile"], Ulimit { soft: 5, hard: 9 });
        assert_eq!((docker.stop_signal.as_deref(), &*docker.labels["a"]), (Some("INT"), "b=c"));
    }

    #[test]
    fn the_default_name_is_the_name_of_the_image() {
        for (image, name) in [("busybox", "busybox"), ("a.b:5000/c/d:1", "d"), ("x@sha256:0", "x")]
        {
            assert_eq!(made(&["--image", image]).unwrap().name.as_str(), name);
        }
    }

    #[test]
    fn flags_override_the_file_and_lists_are_merged() {
        let (folder, path) = file(
            "name = \"f\"\nimage = \"busybox\"\ncommand = [\"true\"]\narray = 3\ncpus = 2\n\
             env_file = \"more.env\"\nmounts = [\"/a:/x\", \"/b:/y\"]\n\
             volumes = [\"v:/v:ro\"]\ninit = true\nulimits.nproc = 7\n\
             files.\"/etc/a\" = \"text\"\n\
             [env]\nA = \"1\"\nB = \"2\"\n[require]\nzone = \"a\"\n",
        );
        std::fs::write(folder.path().join("more.env"), "A=0\nC=3\n").unwrap();
        let spec =
            made(&["--file", &path, "--cpus", "1", "-e", "B=9", "-v", "/c:/y", "--", "echo"])
                .unwrap();
        assert_eq!((spec.name.as_str(), spec.array.last), ("f", 3));
        assert_eq!(
            (spec.resources.cpu_millis, spec.run.command.as_slice()),
            (1000, &["echo".into()][..])
        );
        let env: Vec<_> = spec.run.env.values().map(String::as_str).collect();
        assert_eq!(env, ["1", "9", "3"]);
        let RuntimeSpec::Docker(docker) = spec.run.runtime else {
            unreachable!("an image is given")
        };
        let sources: Vec<_> = docker.mounts.iter().map(|mount| mount.source.as_str()).collect();
        assert_eq!(sources, ["/a", "/c"]);
        assert!(docker.volumes[0].read_only && docker.init);
        assert_eq!(docker.ulimits["nproc"], Ulimit { soft: 7, hard: 7 });
        assert_eq!(spec.run.files["/etc/a"], "text");
        assert_eq!(made(&["--file", &path]).unwrap().run.command, ["true"]);
    }

    #[test]
    fn invalid_input_is_an_error() {
        let long = "x".repeat(10_000);
        for (words, says) in [
            (&[][..], "no command to run"),
            (&["--"], "no command to run"),
            (&["--", ""], "no command to run"),
            (&["--array", "0", "--", "true"], "contains no task"),
            (&["--array", "10000001", "--", "true"], "ARRAY_TASKS_MAX"),
            (&["--cpus", "0", "--", "true"], "above 0"),
            (&["--cpus", "-1", "--", "true"], "above 0"),
            (&["--cpus", "NaN", "--", "true"], "above 0"),
            (&["--cpus", "1e99", "--", "true"], "CPU_MILLIS_MAX"),
            (&["--memory", "12 parsecs", "--", "true"], "512MiB"),
            (&["--name", "a/b", "--", "true"], "'/'"),
            (&["--name", "a\nb", "--", "true"], "'\\n'"),
            (&["--name", &long, "--", "true"], "NAME_BYTES_MAX"),
            (&["-e", "NOT_SET", "--", "true"], "no `=`"),
            (&["-e", "=x", "--", "true"], "name"),
            (&["--timeout", "90", "--", "true"], "90s"),
            (&["--retry-on", "1", "--no-retry-on", "2", "--", "true"], "--no-retry-on"),
            (&["--retry-on", "0", "--", "true"], "retry_on: 0 is not between 1 and 255"),
            (&["--retry-on", "1-256", "--", "true"], "retry_on: 256 is not between 1 and 255"),
            (&["--retry-on", "one", "--", "true"], "3,7,10-20"),
            (&["--max-failures", "0", "--", "true"], "0 is not in 1.."),
            (&["--max-active", "-1", "--", "true"], "-1 is not in 1.."),
            (&["--expires", "0s", "--", "true"], "expires"),
            (&["--expires", "3600", "--", "true"], "90s"),
            (&["--timeout", "0s", "--", "true"], "timeout"),
            (&["-w", "rel", "--", "true"], "absolute"),
            (&["--user", "me", "--", "true"], "no image"),
            (&["--network", "lan", "--image", "x"], "possible values"),
            (&["--image", "a b"], "image"),
            (&["-v", "/a:/b/../c", "--image", "x"], ".."),
            (&["-v", "data:/d", "--image", "x"], "--volume"),
            (&["--volume", "/data:/d", "--image", "x"], "--mount"),
            (&["--volume", "a b:/d", "--image", "x"], "' '"),
            (&["--volume", "data:/d", "--", "true"], "`volumes` is for containers"),
            (&["--init", "--", "true"], "`init` is for containers"),
            (&["--ulimit", "nofile", "--image", "x"], "NAME=SOFT"),
            (&["--ulimit", "nofile=many", "--image", "x"], "1024:4096"),
            (&["--tmpfs", "run", "--image", "x"], "/run:size=64m"),
            (&["--label", "podmesh.job=1", "--image", "x"], "podmesh."),
            (&["--imge", "x"], "--image"),
            (&["echo"], "unexpected argument"),
            (&["--file", "/no/such.toml"], "No such file"),
        ] {
            let said = made(words).unwrap_err();
            assert!(said.contains(says), "{words:?}: {said}");
        }
    }

    #[test]
    fn an_input_over_a_limit_is_an_error_that_names_the_limit() {
        let (folder, path) = file(&format!("name = \"{}\"", "x".repeat(2 << 20)));
        assert!(made(&["--file", &path]).unwrap_err().contains("JOB_FILE_BYTES_MAX"));

        let env = folder.path().join("env");
        std::fs::write(&env, format!("A={}\n", "x".repeat(500 << 10))).unwrap();
        let said = made(&["--env-file", env.to_str().unwrap(), "--", "true"]).unwrap_err();
        assert!(said.contains("ENV_BYTES_MAX") && said.len() < 1000, "{said}");
        std::fs::write(&env, "A=x\n".repeat(3 << 20)).unwrap();
        let said = made(&["--env-file", env.to_str().unwrap(), "--", "true"]).unwrap_err();
        assert!(said.contains("JOB_FILE_BYTES_MAX"), "{said}");
    }

    #[test]
    fn an_unknown_key_of_a_job_file_is_an_error_that_names_a_similar_key() {
        for (text, near) in
            [("comand = [\"true\"]", "`command`"), ("on-lost = \"wait\"", "`on_lost`")]
        {
            let (_folder, path) = file(text);
            let said = made(&["--file", &path]).unwrap_err();
            assert!(said.contains(near), "{text}: {said}");
        }
        let (_folder, path) = file("command = \"true\"");
        assert!(made(&["--file", &path]).unwrap_err().contains("sequence"));
    }

    #[test]
    fn a_command_that_is_not_utf8_is_an_error() {
        let words = vec!["true".into(), OsString::from_vec(vec![b'a', 0xff])];
        let said = build(JobOptions::default(), words, AfterArgs::default(), &here)
            .unwrap_err()
            .to_string();
        assert!(said.contains("word 2") && said.contains("not UTF-8"), "{said}");
    }
}
