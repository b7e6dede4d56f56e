//! `podmesh logs`

use std::time::Duration;

use podmesh_protocol::report::AttemptState;

use crate::cli::query::{LogsArgs, LogsOf};
use crate::connect::PATIENCE_ASK;
use crate::context::Context;
use crate::error::{CliError, Outcome};
use crate::follow::{Follower, Show};

/// Prints output; the exit code is 0 when it could be read, however the tasks ended.
pub(crate) async fn logs(context: &Context, args: LogsArgs) -> Outcome {
    let connection = context.connection(PATIENCE_ASK)?;
    let show = Show { follow: args.follow, tail: args.tail, stream: args.stream.map(Into::into) };
    match args.of {
        LogsOf::Job(job) => {
            let detail = connection.job(job, None, Duration::ZERO).await?;
            if args.follow {
                connection.follow();
            }
            let headers = detail.spec.array.tasks() > 1;
            Follower::new(&connection, show, headers).job(detail).await?;
        }
        LogsOf::Task(task) => {
            connection.task(task, None, Duration::ZERO).await?;
            if args.follow {
                connection.follow();
            }
            Follower::new(&connection, show, false).task(task).await?;
        }
        LogsOf::Attempt(attempt) => {
            let detail = connection.task(attempt.task, None, Duration::ZERO).await?;
            if args.follow {
                connection.follow();
            }
            let view = detail
                .attempts
                .iter()
                .find(|view| view.number == attempt.number)
                .ok_or_else(|| {
                    CliError::failure(format!("there is no attempt {attempt}")).because(format!(
                        "{} has had {} so far",
                        attempt.task,
                        crate::output::text::count(detail.attempts.len() as u64, "attempt")
                    ))
                })?;
            let begun = matches!(view.state, AttemptState::Running | AttemptState::Ended);
            if begun || args.follow {
                Follower::new(&connection, show, false).attempt(attempt, view).await?;
            }
        }
    }
    Ok(0)
}
