//! `podmesh job`

use std::fmt::Write as _;
use std::time::Duration;

use podmesh_protocol::client::JobDetail;
use podmesh_protocol::spec::{DockerSpec, JobSpec, Mount, RuntimeSpec, Ulimit, VolumeMount};
use podmesh_protocol::workflow::Condition;

use crate::cli::query::JobArgs;
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::CliResult;
use crate::output::json::{JobOutput, JobState, NetworkMode, OnLost, PullPolicy, Word};
use crate::output::screen;
use crate::output::table::{cores, size};
use crate::output::text::{command_line, count, escape};
use crate::output::time::{ago, coarse, local, now_ms};
use crate::output::why::JobWhyOutput;

/// Shows one job.
pub(crate) async fn job(context: &Context, args: JobArgs) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let detail = connection.job(args.job, None, Duration::ZERO).await?;
    match (context.json(), args.why) {
        (true, false) => screen::json(&JobOutput::from(&detail))?,
        (true, true) => screen::json(&JobWhyOutput::from(&detail))?,
        (false, false) => screen::print(&describe(&detail))?,
        (false, true) => screen::print(&why(&(&detail).into()))?,
    }
    Ok(0)
}

/// Says why a job waits, or that it does not.
fn why(output: &JobWhyOutput) -> String {
    let JobWhyOutput { job, name, queued, total, .. } = output;
    let state = output.state.word();
    if !output.waits {
        let verb = match output.state {
            JobState::Succeeded | JobState::Failed | JobState::Expired => "has",
            JobState::Cancelled => "was",
            _ => "is",
        };
        return format!("job {job} ({name}) does not wait: it {verb} {state}\n");
    }
    let mut lines = Lines::default();
    lines.add("job", format!("{job} ({name})"));
    lines.add("state", format!("{state}, {queued} of {} queued", count(*total, "task")));
    lines.add("queue", &output.queue);
    lines.add("priority", output.priority);
    for reason in &output.waits_for {
        lines.add("waits for", escape(reason));
    }
    if output.waits_for.is_empty() {
        lines.add("waits for", "nothing: it starts now");
    }
    lines.0
}

/// How the jobs that a job waits for must end.
const AFTER: [(Condition, &str); 4] = [
    (Condition::Succeeded, "after"),
    (Condition::Failed, "after failed"),
    (Condition::Ended, "after any"),
    (Condition::Each, "after each"),
];
/// The most jobs of each kind to name.
const JOBS_SHOWN: usize = 20;

/// Describes the job, one property per line; unset options are omitted.
pub(crate) fn describe(detail: &JobDetail) -> String {
    let (view, spec) = (&detail.view, &detail.spec);
    let mut lines = Lines::default();
    lines.add("job", view.job);
    lines.add("name", &view.name);
    lines.add("state", JobState::from(&view.state).word());
    lines.add_some("reason", detail.ended_early.as_deref().map(escape));
    for reason in &detail.waits_for {
        lines.add("waits for", escape(reason));
    }
    let counts = &view.counts;
    let mut tasks = counts.total().to_string();
    for (number, word) in [
        (counts.queued, "queued"),
        (counts.active, "active"),
        (counts.succeeded, "succeeded"),
        (counts.failed, "failed"),
        (counts.cancelled, "cancelled"),
    ] {
        if number > 0 {
            _ = write!(tasks, ", {number} {word}");
        }
    }
    lines.add("tasks", tasks);
    let moment = |ms| format!("{} ({})", local(ms), ago(now_ms(), ms));
    lines.add("submitted", moment(view.submitted_wall_ms));
    lines.add_some("submitted by", view.submitted_by.as_ref().map(ToString::to_string));
    if let Some(run) = &spec.scheduled {
        lines.add("schedule", format!("{} for {}", run.schedule, local(run.instant_ms)));
    }
    if let Some(of) = &spec.dead_letter {
        lines.add("dead letter", format!("of task {}, queue {}", of.attempt.task, of.queue));
    }
    if let Some(part) = &spec.workflow {
        lines.add("workflow", format!("{} ({})", part.workflow, part.name));
    }
    for (when, what) in AFTER {
        let of = spec.after.iter().filter(|own| own.when == when);
        let jobs: Vec<String> =
            of.clone().take(JOBS_SHOWN).map(|own| own.job.to_string()).collect();
        if !jobs.is_empty() {
            let more = of.count() - jobs.len();
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            lines.add(what, format!("{}{more}", jobs.join(", ")));
        }
    }
    lines.add_some("not before", spec.not_before_ms.map(local));
    lines.add_some("started", view.started_wall_ms.map(moment));
    lines.add_some("ended", view.ended_wall_ms.map(moment));
    describe_spec(&mut lines, spec);
    lines.0
}

fn describe_container(lines: &mut Lines, docker: &DockerSpec) {
    let mode = |read_only| if read_only { ":ro" } else { "" };
    lines.add("image", escape(&docker.image));
    lines.add_some("entrypoint", docker.entrypoint.as_ref().map(|words| command_line(words)));
    lines.add_some("user", docker.user.as_deref().map(escape));
    for Mount { source, target, read_only } in &docker.mounts {
        lines.add("mount", format!("{}:{}{}", escape(source), escape(target), mode(*read_only)));
    }
    for VolumeMount { volume, target, read_only } in &docker.volumes {
        lines.add("volume", format!("{volume}:{}{}", escape(target), mode(*read_only)));
    }
    for (path, options) in &docker.tmpfs {
        let colon = if options.is_empty() { "" } else { ":" };
        lines.add("tmpfs", format!("{}{colon}{}", escape(path), escape(options)));
    }
    lines.add("network", NetworkMode::from(docker.network).word());
    lines.add_some("hostname", docker.hostname.as_deref().map(escape));
    lines.add("pull", PullPolicy::from(docker.pull).word());
    for (name, list) in [
        ("extra hosts", &docker.extra_hosts),
        ("cap add", &docker.cap_add),
        ("cap drop", &docker.cap_drop),
        ("security opt", &docker.security_opt),
        ("devices", &docker.devices),
    ] {
        if !list.is_empty() {
            lines.add(name, escape(&list.join(" ")));
        }
    }
    lines.add_some("pids", docker.pids);
    for (name, Ulimit { soft, hard }) in &docker.ulimits {
        lines.add("ulimit", format!("{}={soft}:{hard}", escape(name)));
    }
    lines.add_some("shm size", docker.shm_size.map(size));
    for (name, on) in [("read only", docker.read_only), ("init", docker.init), ("tty", docker.tty)]
    {
        if on {
            lines.add(name, "yes");
        }
    }
    lines.add_some("stop signal", docker.stop_signal.as_deref().map(escape));
    for (name, value) in &docker.labels {
        lines.add("label", format!("{}={}", escape(name), escape(value)));
    }
    lines.add_some("platform", docker.platform.as_deref().map(escape));
}

fn describe_spec(lines: &mut Lines, spec: &JobSpec) {
    let run = &spec.run;
    if spec.array.tasks() > 1 {
        lines.add("array", format!("{}-{}", spec.array.first, spec.array.last));
    }
    match &run.runtime {
        RuntimeSpec::Docker(docker) => {
            describe_container(lines, docker);
        }
        RuntimeSpec::Process => {}
        RuntimeSpec::Noop => lines.add("runtime", "noop"),
    }
    if !run.command.is_empty() {
        lines.add("command", command_line(&run.command));
    }
    lines.add_some("workdir", run.workdir.as_deref().map(escape));
    for (path, text) in &run.files {
        lines.add("file", format!("{} ({} bytes)", escape(path), text.len()));
    }
    for (name, value) in &run.env {
        lines.add("env", format!("{}={}", escape(name), escape(value)));
    }
    lines.add("cpus", cores(spec.resources.cpu_millis));
    if spec.resources.memory_bytes > 0 {
        lines.add("memory", size(spec.resources.memory_bytes));
    }
    for (name, value) in &spec.require {
        lines.add("require", format!("{name}={}", escape(value)));
    }
    for (name, millis) in &spec.place.resources {
        lines.add("resource", format!("{name}={}", f64::from(*millis) / 1_000.0));
    }
    for (name, value) in &spec.place.prefer {
        lines.add("prefer", format!("{name}={}", escape(value)));
    }
    lines.add_some("spread over", spec.place.spread.as_ref());
    if spec.place.exclusive {
        lines.add("exclusive", "each task has its node for itself");
    }
    if spec.priority != 0 {
        lines.add("priority", spec.priority);
    }
    lines.add_some("timeout", run.timeout_ms.map(coarse));
    if spec.retry.retries > 0 {
        let first = coarse(spec.retry.backoff_ms);
        lines.add("retries", format!("{}, the first after {first}", spec.retry.retries));
    }
    lines.add_some("retry on", spec.retry.on.as_ref());
    lines.add_some("no retry on", spec.retry.not_on.as_ref());
    lines.add_some("max failures", spec.rules.max_failures);
    lines.add_some("queue", spec.rules.queue.as_ref());
    lines.add_some("max active", spec.rules.max_active);
    if spec.rules.preemptible {
        lines.add("preemptible", "makes room for jobs that are not");
    }
    lines.add_some("expires", spec.rules.expires_ms.map(coarse));
    lines.add("on lost", OnLost::from(spec.on_lost).word());
    lines.add("stop grace", coarse(run.stop_grace_ms));
}

/// `name  value` lines.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        _ = writeln!(self.0, "{name:<11} {value}");
    }

    fn add_some(&mut self, name: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_job_waits_is_one_screen_and_a_job_that_does_not_wait_says_so() {
        let mut output = JobWhyOutput {
            job: 42,
            name: "simulate".into(),
            state: JobState::Queued,
            waits: true,
            queued: 3,
            total: 10,
            queue: "night".into(),
            priority: 5,
            waits_for: vec!["no node has joined yet".into(), "share: x\u{1b}".into()],
        };
        let expected = "\
job         42 (simulate)
state       queued, 3 of 10 tasks queued
queue       night
priority    5
waits for   no node has joined yet
waits for   share: x\\u{1b}
";
        assert_eq!(why(&output), expected);
        output.waits_for.clear();
        assert!(why(&output).ends_with("waits for   nothing: it starts now\n"));
        (output.waits, output.state) = (false, JobState::Succeeded);
        assert_eq!(why(&output), "job 42 (simulate) does not wait: it has succeeded\n");
    }
}
