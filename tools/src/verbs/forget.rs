//! `podmesh forget`

use podmesh_protocol::ids::JobId;

use crate::cli::query::{ForgetArgs, JobRange};
use crate::connect::{Connection, PATIENCE_ASK, RequestError};
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::output::json::ForgetOutput;
use crate::output::screen;
use crate::output::text::count;
use crate::verbs::several::Several;

/// Maximum number of active jobs that an error names.
const NAMED_MAX: usize = 10;

/// Removes ended jobs. Jobs that have not ended are skipped with an error, and the others removed.
pub(crate) async fn forget(context: &Context, args: ForgetArgs) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let mut output = ForgetOutput { removed: 0, active: Vec::new() };
    let mut several = Several::default();
    for jobs in args.jobs {
        let done = several.note(remove(&connection, jobs).await)?;
        let Some((removed, active)) = done else { continue };
        if !context.json() && (removed > 0 || active.is_empty()) {
            screen::line(match (removed, jobs.first == jobs.last) {
                (0, true) => format!("{jobs}: already removed"),
                (_, true) => format!("{jobs}: removed"),
                (removed, false) => format!("{jobs}: {} removed", count(removed, "job")),
            })?;
        }
        if !active.is_empty() {
            several.fail(&not_ended(&active));
        }
        output.removed += removed;
        output.active.extend(active.into_iter().map(|job| job.0));
    }
    if context.json() {
        screen::json(&output)?;
    }
    Ok(several.code())
}

/// Removes the ended jobs of a range, with as many requests as needed. Returns how many were removed,
/// and which have not ended.
async fn remove(
    connection: &Connection,
    JobRange { mut first, last }: JobRange,
) -> Result<(u64, Vec<JobId>), RequestError> {
    let (mut removed, mut active) = (0, Vec::new());
    loop {
        let (more, still_active, next) = connection.forget(first, last).await?;
        removed += u64::from(more);
        active.extend(still_active);
        match next {
            Some(next) => first = next,
            None => return Ok((removed, active)),
        }
    }
}

fn not_ended(active: &[JobId]) -> CliError {
    let numbers: Vec<String> = active.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    let more = active.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let (noun, verb, of) = match active.len() {
        1 => ("job", "has", "it"),
        _ => ("jobs", "have", "them"),
    };
    CliError::failure(format!(
        "{noun} {}{more} {verb} not ended, or another job waits for {of}",
        numbers.join(", ")
    ))
    .hint(format!(
        "wait until they end, or cancel them first: podmesh cancel {}",
        numbers.join(" ")
    ))
}
