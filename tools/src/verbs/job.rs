//! `podmesh job`

use std::fmt::Write as _;
use std::time::Duration;

use podmesh_protocol::client::JobDetail;
use podmesh_protocol::spec::{JobSpec, RuntimeSpec};

use crate::cli::query::JobArgs;
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::CliResult;
use crate::output::json::{JobOutput, JobState, NetworkMode, OnLost, PullPolicy, Word};
use crate::output::screen;
use crate::output::table::{cores, size};
use crate::output::text::{command_line, escape};
use crate::output::time::{ago, coarse, local, now_ms};

/// Shows one job.
pub(crate) async fn job(context: &Context, args: JobArgs) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let detail = connection.job(args.job, None, Duration::ZERO).await?;
    if context.json() {
        screen::json(&JobOutput::from(&detail))?;
    } else {
        screen::print(&describe(&detail))?;
    }
    Ok(0)
}

/// Describes the job, one property per line; unset options are omitted.
fn describe(detail: &JobDetail) -> String {
    let (view, spec) = (&detail.view, &detail.spec);
    let mut lines = Lines::default();
    lines.add("job", view.job);
    lines.add("name", &view.name);
    lines.add("state", JobState::from(&view.state).word());
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
    lines.add_some("started", view.started_wall_ms.map(moment));
    lines.add_some("ended", view.ended_wall_ms.map(moment));
    describe_spec(&mut lines, spec);
    lines.0
}

fn describe_spec(lines: &mut Lines, spec: &JobSpec) {
    let run = &spec.run;
    if spec.array.tasks() > 1 {
        lines.add("array", format!("{}-{}", spec.array.first, spec.array.last));
    }
    match &run.runtime {
        RuntimeSpec::Docker(docker) => {
            lines.add("image", escape(&docker.image));
            lines.add_some(
                "entrypoint",
                docker.entrypoint.as_ref().map(|words| command_line(words)),
            );
            lines.add_some("user", docker.user.as_deref().map(escape));
            for mount in &docker.mounts {
                let mode = if mount.read_only { ":ro" } else { "" };
                lines.add(
                    "mount",
                    format!("{}:{}{mode}", escape(&mount.source), escape(&mount.target)),
                );
            }
            lines.add("network", NetworkMode::from(docker.network).word());
            lines.add("pull", PullPolicy::from(docker.pull).word());
            if !docker.cap_add.is_empty() {
                lines.add("cap add", escape(&docker.cap_add.join(" ")));
            }
            lines.add_some("pids", docker.pids);
            lines.add_some("platform", docker.platform.as_deref().map(escape));
        }
        RuntimeSpec::Process => {}
        RuntimeSpec::Noop => lines.add("runtime", "noop"),
    }
    if !run.command.is_empty() {
        lines.add("command", command_line(&run.command));
    }
    lines.add_some("workdir", run.workdir.as_deref().map(escape));
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
    if spec.priority != 0 {
        lines.add("priority", spec.priority);
    }
    lines.add_some("timeout", run.timeout_ms.map(coarse));
    if spec.retry.retries > 0 {
        let first = coarse(spec.retry.backoff_ms);
        lines.add("retries", format!("{}, the first after {first}", spec.retry.retries));
    }
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
