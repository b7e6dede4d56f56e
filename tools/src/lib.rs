//! The `podmesh` program: every verb, including the two daemons, as a library, so that tests and
//! benchmarks can run the same code.
//!
//! Where to look: `cli/` defines the command line; `verbs/` has a file for each verb; `job.rs`
//! builds the spec of a job from flags and files, `service/` that of a service; `connect.rs` keeps
//! the connection to the manager, and `follow.rs` shows output through it; `output/` has tables,
//! lines and JSON; `top/` is the view in the terminal; `console.rs` serves the page for browsers
//! through the mesh; `demo/` the demo.

mod bounded;
mod cli;
mod compose;
mod connect;
mod connect_access;
mod connect_queues;
mod connect_schedules;
mod connect_services;
mod connect_volumes;
mod connect_workflows;
mod console;
mod container;
mod context;
mod daemon_log;
mod demo;
mod env_vars;
mod error;
mod follow;
mod hints;
mod job;
mod output;
mod pace;
mod progress;
mod service;
mod settings;
mod signals;
mod sink;
mod toml_file;
mod top;
mod trace;
mod turns;
mod values;
mod verbs;
mod workflow;
mod workflow_wait;

use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue};

use crate::cli::{Cli, Verb};
use crate::context::Context;
use crate::error::{CliError, CliResult, EXIT_USAGE};
use crate::output::screen;
use crate::output::text::{clip, escape};

/// The maximum number of characters of a wrong value that an error repeats.
const SHOWN_VALUE: usize = 100;

/// Runs the program with the arguments of this process, and returns its exit code.
///
/// Exit codes: the task's own for `run`; 2 for an invalid command line; 124 when a `--timeout` is
/// over; 125 for a failure of
/// podmesh itself; 130 after Ctrl-C.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(error),
    };
    let context = Context::new(cli.global);
    let result = run(&context, cli.verb);
    ExitCode::from(result.unwrap_or_else(|error| {
        if !matches!(error, CliError::StdoutClosed) {
            screen::say_error(&error);
        }
        error.exit_code()
    }))
}

/// Prints a message of clap; help and version are errors of clap, too.
fn usage(mut error: clap::Error) -> ExitCode {
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) {
        let shown = clip(&escape(value), SHOWN_VALUE);
        error.insert(ContextKind::InvalidValue, ContextValue::String(shown));
    }
    // If this fails, nobody reads it.
    _ = error.print();
    ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 })
}

fn run(context: &Context, verb: Verb) -> CliResult {
    if context.json()
        && let Some(name) = verb.without_json()
    {
        return Err(CliError::usage(format!("`{name}` has no JSON output")).hint(
            "omit `--output json`; jobs, job, tasks, workflow, schedule, queue, services, service, compose ps, compose config, nodes, events, submit, cancel, forget, token, users and doctor support it",
        ));
    }
    if let Verb::ProcessSupervisor(args) = &verb
        && !args.kept
    {
        return verbs::process_supervisor::keeper(context, args);
    }
    // The supervisor needs one thread only, besides those that start processes and write to disks.
    // Waking other threads for each process costs more than it gains. The proxy has threads of its own.
    let daemon = matches!(verb, Verb::Dev(_) | Verb::Manager(_) | Verb::Agent(_));
    let mut builder = if daemon {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder
        .enable_all()
        .build()
        .map_err(|why| CliError::failure("podmesh cannot start").because(why))?;
    let result = runtime.block_on(dispatch(context, verb));
    // A thread may hang in a write that nobody reads.
    runtime.shutdown_background();
    result
}

async fn dispatch(context: &Context, verb: Verb) -> CliResult {
    match verb {
        Verb::Demo(args) => demo::demo(context, args).await,
        Verb::Dev(args) => verbs::dev::dev(context, args).await,
        Verb::Manager(args) => verbs::manager::manager(context, args).await,
        Verb::Backup(args) => verbs::backup::backup(context, &args),
        Verb::Check => verbs::check::check(context),
        Verb::Agent(args) => verbs::agent::agent(context, args).await,
        Verb::ProcessSupervisor(args) => verbs::process_supervisor::supervisor(context, args).await,
        Verb::NodeProxy(args) => verbs::node_proxy::node_proxy(context, args).await,
        Verb::Run(args) => verbs::run::run(context, args).await,
        Verb::Submit(args) => verbs::submit::submit(context, args).await,
        Verb::Jobs(args) => verbs::jobs::jobs(context, args).await,
        Verb::Job(args) => verbs::job::job(context, args).await,
        Verb::Tasks(args) => verbs::tasks::tasks(context, args).await,
        Verb::Logs(args) => verbs::logs::logs(context, args).await,
        Verb::Cancel(args) => verbs::cancel::cancel(context, args).await,
        Verb::Requeue(args) => verbs::again::requeue(context, args).await,
        Verb::Failed(args) => verbs::again::failed(context, args).await,
        Verb::Forget(args) => verbs::forget::forget(context, args).await,
        Verb::Workflow(args) => verbs::workflow::workflow(context, args).await,
        Verb::Queue(args) => verbs::queue::queue(context, args).await,
        Verb::Schedule(args) => verbs::schedule::schedule(context, args).await,
        Verb::Services => verbs::services::services(context).await,
        Verb::Service(args) => verbs::service::service(context, args).await,
        Verb::Compose(args) => verbs::compose::compose(context, args).await,
        Verb::Volumes => verbs::volumes::volumes(context).await,
        Verb::Volume(args) => verbs::volumes::volume(context, args).await,
        Verb::Nodes(args) => verbs::nodes::nodes(context, args).await,
        Verb::Token(args) => verbs::token::token(context, args.verb).await,
        Verb::Key(verb) => verbs::key::key(context, verb).await,
        Verb::Login(args) => verbs::login::login(context, args).await,
        Verb::Logout => verbs::logout::logout(context),
        Verb::Users(args) => verbs::users::users(context, args).await,
        Verb::Doctor(args) => verbs::doctor::doctor(context, args).await,
        Verb::Events(args) => verbs::events::events(context, args).await,
        Verb::Top => verbs::top::top(context).await,
        Verb::Console(args) => verbs::console::console(context, args).await,
        Verb::Completions { shell } => verbs::completions::completions(shell),
    }
}
