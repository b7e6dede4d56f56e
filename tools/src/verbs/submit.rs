//! `podmesh submit`

use std::time::{Duration, Instant};

use podmesh_calendar::{CalendarError, Zone, moment};
use podmesh_protocol::client::JobDetail;
use podmesh_protocol::ids::{JobId, SubmissionId};
use podmesh_protocol::spec::JobSpec;
use podmesh_protocol::trace::TRACEPARENT;
use uuid::Uuid;

use crate::cli::SubmitArgs;
use crate::connect::{Connection, PATIENCE_SUBMIT};
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::follow::{Follower, ShowOptions, exit_code};
use crate::job;
use crate::output::json::SubmitOutput;
use crate::output::screen;
use crate::output::time::local_zone;
use crate::pace::Pace;
use crate::progress;
use crate::trace;
use crate::values::Span;

/// Submits a job, prints its number, and waits if requested.
pub(crate) async fn submit(context: &Context, args: SubmitArgs) -> CliResult {
    let lookup = |name: &str| std::env::var_os(name);
    let mut spec = job::build(args.options, args.command.command, args.upstream, &lookup)?;
    trace::join(&mut spec, args.trace.traceparent, std::env::var_os(TRACEPARENT));
    let connection = context.connection(PATIENCE_SUBMIT)?;
    spec.not_before_ms = not_before(&connection, args.at, args.pause, args.tz).await?;
    let output = SubmitOutput { job: 0, name: spec.name.to_string(), tasks: spec.array.tasks() };
    let job = send(&connection, spec).await?;
    if context.json() {
        screen::json(&SubmitOutput { job: job.0, ..output })?;
    } else if args.follow {
        // Standard output belongs to the job.
        screen::say(format!("job {job}"));
    } else {
        screen::line(job)?;
    }
    if !args.wait && !args.follow {
        return Ok(0);
    }
    connection.follow();
    let ended =
        if args.follow { show(&connection, job).await? } else { watch(&connection, job).await? };
    exit_code(&connection, &ended).await
}

/// Returns the time before which the job must not start, by the manager's clock.
async fn not_before(
    connection: &Connection,
    at: Option<String>,
    pause: Option<Span>,
    tz: Option<String>,
) -> CliResult<Option<u64>> {
    if let Some(at) = at {
        return moment_of(&at, tz).map(Some);
    }
    let Some(pause) = pause else { return Ok(None) };
    // The clock of this machine may differ.
    Ok(Some(connection.info().await?.wall_ms.saturating_add(pause.ms())))
}

/// Reads a time to start at, in a time zone or that of this machine.
pub(crate) fn moment_of(at: &str, tz: Option<String>) -> CliResult<u64> {
    let wrong =
        |why: CalendarError| CliError::usage("the time to start at is not valid").because(why);
    let zone = tz.map_or_else(|| Ok(local_zone()), |zone| Zone::new(&zone));
    moment(at, &zone.map_err(wrong)?).map_err(wrong)
}

/// Submits a job exactly once, with as many retries as needed.
pub(crate) async fn send(connection: &Connection, spec: JobSpec) -> CliResult<JobId> {
    // A random id (v4) makes the manager's index of submissions slow once it is large.
    let submission = SubmissionId(Uuid::now_v7());
    connection.submit(submission, spec).await.map_err(CliError::from)
}

/// Shows a job's output until its end.
pub(crate) async fn show(connection: &Connection, job: JobId) -> CliResult<JobDetail> {
    let detail = connection.job(job, None, Duration::ZERO).await?;
    let headers = detail.spec.array.tasks() > 1;
    let show = ShowOptions { follow: true, ..ShowOptions::default() };
    Follower::new(connection, show, headers).job(detail).await
}

/// Shows a job's progress on a terminal until its end.
pub(crate) async fn watch(connection: &Connection, job: JobId) -> CliResult<JobDetail> {
    let bar = progress::bar(format!("job {job}"));
    let mut pace = Pace::default();
    let mut since = None;
    loop {
        let asked = Instant::now();
        let detail = connection.job(job, since, Duration::from_secs(20)).await?;
        let counts = &detail.view.counts;
        bar.set_length(counts.total());
        bar.set_position(counts.ended());
        let failed =
            if counts.failed > 0 { format!(", {} failed", counts.failed) } else { String::new() };
        bar.set_message(format!("{} active{failed}", counts.active));
        if detail.view.is_end() {
            bar.finish_and_clear();
            return Ok(detail);
        }
        since = Some(detail.revision);
        pace.wait(asked).await;
    }
}
