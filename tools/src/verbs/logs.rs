//! `podmesh logs`

pub(crate) mod replicas;

use std::time::Duration;

use podmesh_protocol::client::AttemptView;
use podmesh_protocol::ids::AttemptId;
use podmesh_protocol::report::AttemptState;
use tokio::time::sleep;

use crate::cli::query::{LogsArgs, LogsOf};
use crate::connect::{Connection, PATIENCE_ASK};
use crate::context::Context;
use crate::error::{CliError, CliResult};
use crate::follow::{Follower, ShowOptions, begun};
use crate::output::text::count;

/// How long one request waits for a change.
const WAIT: Duration = Duration::from_secs(20);
/// The time between two requests.
const PAUSE: Duration = Duration::from_millis(100);

/// The exit code if no line has the text of `--grep`, as that of grep(1).
const EXIT_NOT_FOUND: u8 = 1;

/// Prints output. The exit code is 0 if it could be read, however the tasks ended; with `--grep`, if a
/// line has the text.
pub(crate) async fn logs(context: &Context, args: LogsArgs) -> CliResult {
    let connection = context.connection(PATIENCE_ASK)?;
    let show =
        ShowOptions { follow: args.follow, tail: args.tail, stream: args.stream.map(Into::into) };
    let searches = args.grep.is_some();
    let found = match args.of {
        LogsOf::Job(job) => {
            let detail = connection.job(job, None, Duration::ZERO).await?;
            if args.follow {
                connection.follow();
            }
            let headers = detail.spec.array.tasks() > 1;
            let follower = Follower::new(&connection, show, headers).grep(args.grep);
            follower.job(detail).await?;
            follower.has_found()
        }
        LogsOf::Task(task) => {
            connection.task(task, None, Duration::ZERO).await?;
            if args.follow {
                connection.follow();
            }
            let follower = Follower::new(&connection, show, false).grep(args.grep);
            follower.task(task).await?;
            follower.has_found()
        }
        LogsOf::Attempt(attempt) => {
            let mut view = find(&connection, attempt, None).await?;
            if args.follow {
                connection.follow();
            }
            while args.follow && !begun(&view) {
                view = find(&connection, attempt, view.state.known().copied()).await?;
                // If this is not the last attempt, the request does not wait.
                sleep(PAUSE).await;
            }
            let follower = Follower::new(&connection, show, false).grep(args.grep);
            if begun(&view) {
                follower.attempt(attempt, &view.node).await?;
            }
            follower.has_found()
        }
        LogsOf::Service(name) if args.grep.is_some() => {
            return Err(CliError::usage("--grep is for jobs, tasks and attempts".to_owned())
                .hint(format!("for a service: podmesh logs {name} | grep TEXT")));
        }
        LogsOf::Service(name) => return replicas::logs(context, &connection, name, show).await,
    };
    Ok(if searches && !found { EXIT_NOT_FOUND } else { 0 })
}

/// Returns an attempt. With a previous state, returns once the state has changed or a while has
/// passed.
async fn find(
    connection: &Connection,
    attempt: AttemptId,
    before: Option<AttemptState>,
) -> CliResult<AttemptView> {
    let unless = before.map(|state| (attempt.number, state));
    let detail = connection.task(attempt.task, unless, WAIT).await?;
    let had = detail.attempts.len() as u64;
    let view = detail.attempts.into_iter().find(|view| view.number == attempt.number);
    view.ok_or_else(|| {
        CliError::failure(format!("there is no attempt {attempt}")).because(format!(
            "task {} has {} so far",
            attempt.task,
            count(had, "attempt")
        ))
    })
}
