//! `podmesh cancel`

use podmesh_protocol::report::JobState as WireJobState;

use crate::cli::query::CancelArgs;
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::CliResult;
use crate::output::json::{CancelOutput, CancelledJob, JobState, Word};
use crate::output::screen;
use crate::output::text::count;
use crate::verbs::several::Several;

/// Cancels jobs. If one job cannot be cancelled, the others still are.
pub(crate) async fn cancel(context: &Context, args: CancelArgs) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let mut output = CancelOutput { jobs: Vec::new() };
    let mut several = Several::default();
    for job in args.jobs {
        let done = several.note(connection.cancel_with(job, args.downstream).await)?;
        let Some((state, downstream)) = done else { continue };
        if !context.json() {
            let word = JobState::from(&state).word();
            let others = match downstream {
                0 => String::new(),
                jobs => format!("; {} downstream cancelled", count(jobs.into(), "job")),
            };
            screen::line(match state.known() {
                Some(WireJobState::Cancelling | WireJobState::Cancelled) | None => {
                    format!("job {job}: {word}{others}")
                }
                Some(_) => format!("job {job}: already ended: {word}{others}"),
            })?;
        }
        let state = (&state).into();
        output.jobs.push(CancelledJob { job: job.0, state, downstream });
    }
    if context.json() {
        screen::json(&output)?;
    }
    Ok(several.code())
}
