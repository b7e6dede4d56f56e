//! `podmesh cancel`

use podmesh_protocol::report::JobState as WireJobState;

use crate::cli::query::CancelArgs;
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::{CliResult, EXIT_FAILURE};
use crate::output::json::{CancelOutput, CancelledJob, JobState, Word};
use crate::output::screen;

/// Cancels jobs. If one job cannot be cancelled, the others still are.
pub(crate) async fn cancel(context: &Context, args: CancelArgs) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let mut output = CancelOutput { jobs: Vec::new() };
    let mut code = 0;
    for job in args.jobs {
        match connection.cancel(job).await {
            Ok(state) => {
                if !context.json() {
                    let word = JobState::from(&state).word();
                    screen::line(match state.known() {
                        Some(WireJobState::Cancelling | WireJobState::Cancelled) | None => {
                            format!("job {job}: {word}")
                        }
                        Some(_) => format!("job {job}: already ended: {word}"),
                    })?;
                }
                output.jobs.push(CancelledJob { job: job.0, state: (&state).into() });
            }
            Err(error @ crate::connect::RequestError::Refused(_)) => {
                screen::say_error(&error.into());
                code = EXIT_FAILURE;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if context.json() {
        screen::json(&output)?;
    }
    Ok(code)
}
