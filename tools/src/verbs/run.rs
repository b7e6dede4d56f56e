//! `podmesh run`

use podmesh_protocol::ids::JobId;
use podmesh_protocol::trace::TRACEPARENT;
use tokio::sync::OnceCell;

use crate::cli::RunArgs;
use crate::cli::workflow::AfterArgs;
use crate::connect::{Connection, PATIENCE_SUBMIT};
use crate::context::Context;
use crate::error::{CliError, CliResult, EXIT_INTERRUPTED, EXIT_PIPE};
use crate::follow::exit_code;
use crate::job;
use crate::output::screen::say;
use crate::signals::Interrupts;
use crate::trace;
use crate::verbs::submit::{send, show};

/// Runs a job in the foreground.
///
/// The first Ctrl-C (or SIGTERM) cancels the job and waits for its end, the second one exits at
/// once. If standard output is closed, the job is cancelled too: a local command would get a
/// SIGPIPE.
pub(crate) async fn run(context: &Context, args: RunArgs) -> CliResult {
    let lookup = |name: &str| std::env::var_os(name);
    let mut spec = job::build(args.options, args.command.command, AfterArgs::default(), &lookup)?;
    trace::join(&mut spec, args.trace.traceparent, std::env::var_os(TRACEPARENT));
    let connection = context.connection(PATIENCE_SUBMIT)?;
    let mut interrupts = Interrupts::new()?;
    let submitted = OnceCell::new();
    let work = async {
        let job = send(&connection, spec).await?;
        // Only set here, once.
        _ = submitted.set(job);
        connection.follow();
        let ended = match show(&connection, job).await {
            Err(CliError::StdoutClosed) => {
                connection.cancel(job).await?;
                return Ok(EXIT_PIPE);
            }
            shown => shown?,
        };
        exit_code(&connection, &ended).await
    };
    let stop = async {
        interrupts.next().await;
        if !connection.heard() {
            // The manager does not have the job.
            return Ok(EXIT_INTERRUPTED);
        }
        tokio::select! {
            _ = interrupts.next() => {}
            error = cancel_once_known(&connection, &submitted) => return Err(error),
        }
        leave(submitted.get().copied());
        Ok(EXIT_INTERRUPTED)
    };
    tokio::select! {
        result = work => result,
        result = stop => result,
    }
}

/// Cancels the job as soon as it has a number. Returns only if it cannot be cancelled.
async fn cancel_once_known(connection: &Connection, submitted: &OnceCell<JobId>) -> CliError {
    let job = loop {
        match submitted.get() {
            Some(job) => break *job,
            None => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    };
    say(format!("cancelling job {job} (Ctrl-C again: exit at once)"));
    match connection.cancel(job).await {
        // The end of the job ends the other future.
        Ok(_) => std::future::pending().await,
        Err(error) => error.into(),
    }
}

fn leave(job: Option<JobId>) {
    match job {
        Some(job) => say(format!("stopped waiting; see `podmesh job {job}`")),
        None => say("stopped before the job had a number; see `podmesh jobs`"),
    }
}
