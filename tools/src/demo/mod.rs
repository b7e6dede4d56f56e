//! `podmesh demo`: runs a whole mesh on this machine with a real job, and cleans up.

mod container;
mod files;
mod mesh;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use comfy_table::{Cell, CellAlignment};
use podmesh_protocol::client::{LogPosition, LogRead, LogStream, TaskDetail};
use podmesh_protocol::ids::{AttemptId, JobId, Revision, TaskId};
use podmesh_protocol::limits::LOG_READ_BYTES_MAX;
use podmesh_protocol::node::NodeState;
use podmesh_protocol::report::JobState;
use podmesh_protocol::spec::{
    ArrayRange, JobSpec, OnLost, Resources, RetryPolicy, RunSpec, RuntimeSpec,
};
use tokio::time::{sleep, timeout};

use crate::cli::daemon::DemoArgs;
use crate::connect::{Connection, JobsQuery, PATIENCE_SUBMIT};
use crate::context::Context;
use crate::error::{CliError, CliResult, EXIT_INTERRUPTED};
use crate::output::screen::{self, say};
use crate::output::table;
use crate::output::text::{clip, count, escape};
use crate::output::time::coarse;
use crate::signals::Interrupts;
use crate::verbs::submit::{send, watch};

use files::Summary;
use mesh::Mesh;

/// The nodes of the demo.
const NODES: [&str; 2] = ["demo-a", "demo-b"];
/// How long the nodes may take to connect.
const NODES_LIMIT: Duration = Duration::from_secs(20);
/// How long cancelled jobs may take to end when the demo is interrupted.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);
/// The number of result rows to show.
const ROWS_SHOWN: usize = 12;

/// Runs the demo. In any case its processes end and its folder is removed.
///
/// # Errors
/// Any failure, including a failed task.
pub(crate) async fn demo(context: &Context, args: DemoArgs) -> CliResult {
    let began = Instant::now();
    let found = files::find(&args.folder)?;
    let mut interrupts = Interrupts::new()?;
    screen::line(format!(
        "Starting a manager and {} on this machine.",
        count(NODES.len() as u64, "agent")
    ))?;
    let mut mesh = tokio::select! {
        mesh = Mesh::start(&NODES) => mesh?,
        _ = interrupts.next() => return Ok(EXIT_INTERRUPTED),
    };
    let connection = Connection::new(mesh.locator(), PATIENCE_SUBMIT);
    let shown = tokio::select! {
        shown = show(context, &mut mesh, &connection, &args.folder, found) => shown.map(|()| 0),
        _ = interrupts.next() => Ok(EXIT_INTERRUPTED),
    };
    if !matches!(shown, Ok(0)) {
        if !matches!(shown, Err(CliError::StdoutClosed)) {
            say("stopping the demo and removing all that it started");
        }
        // Tasks that still run are stopped by their agent, not by the end of the agent.
        _ = timeout(CANCEL_LIMIT, cancel_all(&connection)).await;
    }
    let stopped = tokio::select! {
        stopped = mesh.stop() => stopped,
        _ = interrupts.next() => return Ok(EXIT_INTERRUPTED),
    };
    let code = shown?;
    stopped?;
    if code == 0 {
        let took = coarse(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
        screen::line(format!(
            "\nDone in {took}. All processes have ended, and the folder is removed."
        ))?;
        screen::line("Next: `podmesh dev`, and in another terminal `podmesh run -- echo hello`.")?;
    }
    Ok(code)
}

async fn show(
    context: &Context,
    mesh: &mut Mesh,
    connection: &Connection,
    folder: &Path,
    found: files::FileSelection,
) -> CliResult<()> {
    screen::line(format!("All their files are in {}\n", mesh.folder().display()))?;
    nodes(context, mesh, connection).await?;

    let files = choose(mesh, folder, found)?;
    let links = mesh.folder().join("files");
    files::link(&files, &links).map_err(cannot_write)?;
    let spec = spec(&links, files.len())?;
    screen::line("\n$ podmesh submit --wait --array … -- sh -c 'cksum …; wc …'")?;
    let job = send(connection, spec).await?;
    let detail = watch(connection, job).await?;
    mesh.still_runs()?;
    let counts = &detail.view.counts;
    screen::line(format!(
        "job {job}: {} succeeded, {} failed",
        count(counts.succeeded.into(), "task"),
        counts.failed
    ))?;
    if detail.view.state != JobState::Succeeded {
        return Err(failed(connection, job).await);
    }

    let mut results = Vec::new();
    for (index, file) in (1..).zip(&files) {
        results.push(result(connection, TaskId { job, index }, file.clone()).await?);
    }
    show_log(mesh, connection, &results).await?;
    show_results(context, folder, &results)?;
    container::show(mesh, connection).await?;
    let events = count_events(connection).await?;
    screen::line(format!(
        "\n$ podmesh events\n{}, each with a revision; every event is on disk before anyone sees it",
        count(events, "event")
    ))
}

/// Waits for the nodes, and shows them.
async fn nodes(context: &Context, mesh: &mut Mesh, connection: &Connection) -> CliResult<()> {
    let began = Instant::now();
    loop {
        let nodes = connection.nodes().await?;
        if nodes.iter().filter(|node| node.state == NodeState::Alive).count() == NODES.len() {
            screen::line("$ podmesh nodes")?;
            return screen::print(&table::nodes(context.screen, &nodes));
        }
        mesh.still_runs()?;
        if began.elapsed() > NODES_LIMIT {
            return Err(CliError::failure("the agents did not connect").because(format!(
                "only {} connected within {}",
                nodes.len(),
                coarse(NODES_LIMIT.as_millis() as u64)
            )));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the files to process, and prints which are skipped.
fn choose(mesh: &Mesh, folder: &Path, found: files::FileSelection) -> CliResult<Vec<PathBuf>> {
    let shown = escape(&folder.display().to_string());
    let mut files = found.files;
    if files.is_empty() {
        files = files::samples(&mesh.folder().join("samples")).map_err(cannot_write)?;
        screen::line(format!(
            "\nThere is no readable file in {shown}; the job processes {} instead.",
            count(files.len() as u64, "sample file")
        ))?;
    } else {
        let more = if found.more { " (the first ones found)" } else { "" };
        screen::line(format!(
            "\nComputing checksums and word counts of {} in {shown}{more}:",
            count(files.len() as u64, "file")
        ))?;
    }
    if found.unreadable > 0 {
        screen::line(format!("({} skipped: this user cannot read them.)", found.unreadable))?;
    }
    Ok(files)
}

fn cannot_write(why: std::io::Error) -> CliError {
    CliError::failure("the temporary folder cannot be written").because(why)
}

fn spec(links: &Path, files: usize) -> CliResult<JobSpec> {
    let links = links.to_str().ok_or_else(|| {
        CliError::failure("the name of the temporary folder is not UTF-8")
            .hint("set TMPDIR to a folder with a UTF-8 name")
    })?;
    let last = u32::try_from(files).map_err(|_| CliError::failure("there are too many files"))?;
    job(
        "checksums",
        ArrayRange { first: 1, last },
        RunSpec {
            runtime: RuntimeSpec::Process,
            command: ["sh", "-c", files::SCRIPT].map(String::from).to_vec(),
            env: [("DEMO_FILES".to_owned(), links.to_owned())].into(),
            workdir: None,
            timeout_ms: Some(60_000),
            stop_grace_ms: 1_000,
            replica: None,
            files: [].into(),
        },
    )
}

/// Returns a job of the demo: small, and without retries.
fn job(name: &str, array: ArrayRange, run: RunSpec) -> CliResult<JobSpec> {
    Ok(JobSpec {
        name: name.parse().map_err(|why| CliError::failure("the job has no name").because(why))?,
        array,
        priority: 0,
        require: [].into(),
        resources: Resources { cpu_millis: 250, memory_bytes: 0 },
        retry: RetryPolicy::default(),
        on_lost: OnLost::Wait,
        rules: Default::default(),
        place: Default::default(),
        not_before_ms: None,
        after: Vec::new(),
        scheduled: None,
        dead_letter: None,
        workflow: None,
        run,
    })
}

/// The result of a task.
struct TaskResult {
    attempt: AttemptId,
    node: String,
    file: PathBuf,
    summary: Summary,
}

async fn result(connection: &Connection, task: TaskId, file: PathBuf) -> CliResult<TaskResult> {
    let detail = connection.task(task, None, Duration::ZERO).await?;
    let (attempt, output) = output(connection, &detail).await?;
    let summary = Summary::parse(&output).ok_or_else(|| {
        let shown = clip(&escape(&String::from_utf8_lossy(&output)), 200);
        CliError::failure(format!("the output of {attempt} has an unexpected format"))
            .because(format!("it is `{shown}`"))
    })?;
    let node = detail.attempts.last().map(|view| view.node.to_string()).unwrap_or_default();
    Ok(TaskResult { attempt, node, file, summary })
}

/// Returns the standard output of a task's last attempt, read as by `podmesh logs`; at most one
/// read.
async fn output(connection: &Connection, detail: &TaskDetail) -> CliResult<(AttemptId, Vec<u8>)> {
    let number = detail.attempts.last().map_or(1, |view| view.number);
    let attempt = AttemptId { task: detail.task, number };
    let read = LogRead {
        attempt,
        stream: LogStream::Stdout,
        from: LogPosition::Offset(0),
        bytes_max: LOG_READ_BYTES_MAX,
        wait_ms: 0,
        find: None,
    };
    Ok((attempt, connection.log(read).await?.bytes))
}

/// Shows one log, and its file.
async fn show_log(mesh: &Mesh, connection: &Connection, results: &[TaskResult]) -> CliResult<()> {
    let Some(done) = results.iter().max_by_key(|done| done.summary.words) else { return Ok(()) };
    let task = done.attempt.task;
    let detail = connection.task(task, None, Duration::ZERO).await?;
    let (attempt, output) = output(connection, &detail).await?;
    screen::line(format!("\n$ podmesh logs {task}"))?;
    screen::print(&escape_lines(&output))?;
    let path = mesh
        .agent(&done.node)
        .task_logs()
        .join(task.job.to_string())
        .join(task.index.to_string())
        .join(attempt.number.to_string())
        .join("stdout.log");
    if !path.is_file() {
        return Err(CliError::failure(format!("the log of {task} is not at {}", path.display())));
    }
    screen::line(format!("  the file on {} is {}", done.node, path.display()))
}

/// Returns the output of a task, line by line, safe for a terminal.
fn escape_lines(output: &[u8]) -> String {
    String::from_utf8_lossy(output).lines().map(|line| format!("{}\n", escape(line))).collect()
}

fn show_results(context: &Context, folder: &Path, results: &[TaskResult]) -> CliResult<()> {
    let top = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let number = |n: u64| Cell::new(n).set_alignment(CellAlignment::Right);
    let row = |done: &TaskResult| {
        let name = done.file.strip_prefix(&top).unwrap_or(&done.file).to_string_lossy();
        let Summary { checksum, bytes, lines, words } = done.summary;
        vec![
            Cell::new(done.attempt.task),
            Cell::new(&done.node),
            number(checksum.into()),
            number(bytes),
            number(lines),
            number(words),
            Cell::new(escape(&name)),
        ]
    };
    let header = ["TASK", "NODE", "CHECKSUM", "BYTES", "LINES", "WORDS", "FILE"];
    screen::line("\nResults of the tasks:")?;
    let shown: Vec<_> = results.iter().take(ROWS_SHOWN).map(row).collect();
    screen::print(&table::render(context.screen, &header, shown))?;
    let sum = |of: fn(&Summary) -> u64| results.iter().map(|done| of(&done.summary)).sum::<u64>();
    let hidden = results.len().saturating_sub(ROWS_SHOWN);
    let hidden = if hidden > 0 { format!("… and {hidden} more; ") } else { String::new() };
    let by_node = NODES.map(|node| {
        let tasks = results.iter().filter(|done| done.node == node).count();
        format!("{} on {node}", count(tasks as u64, "task"))
    });
    screen::line(format!(
        "{hidden}total: {} bytes, {} lines, {} words; {}",
        sum(|s| s.bytes),
        sum(|s| s.lines),
        sum(|s| s.words),
        by_node.join(", ")
    ))
}

/// Returns an error with the first failed task of a job of the demo, and its reason.
async fn failed(connection: &Connection, job: JobId) -> CliError {
    let error = CliError::failure(format!("job {job} of the demo failed"));
    let state = Some(podmesh_protocol::report::TaskState::Failed);
    let Ok((tasks, _)) = connection.tasks(job, 0, state, 1).await else { return error };
    let last = tasks.first().and_then(|task| Some((task.task, task.last.as_ref()?)));
    match last.and_then(|(task, last)| Some((task, last.outcome.as_ref()?))) {
        Some((task, outcome)) => {
            error.because(format!("{task} {}", crate::output::events::outcome_text(outcome)))
        }
        None => error,
    }
}

async fn count_events(connection: &Connection) -> CliResult<u64> {
    let mut since = Revision(0);
    let mut events = 0;
    loop {
        let (chunks, last) = connection.events(since).await?;
        events += chunks.iter().map(|chunk| chunk.facts.len() as u64).sum::<u64>();
        match chunks.last() {
            Some(chunk) if chunk.last() < last => since = chunk.last(),
            _ => return Ok(events),
        }
    }
}

/// Cancels all active jobs, and waits for their end.
async fn cancel_all(connection: &Connection) -> CliResult<()> {
    let query = JobsQuery { active: true, limit: 10, ..JobsQuery::default() };
    let jobs = connection.jobs(query).await?;
    for view in &jobs {
        connection.cancel(view.job).await?;
    }
    let mut containers = false;
    for view in &jobs {
        let ended = crate::follow::ended(connection, view.job).await?;
        containers |= matches!(ended.spec.run.runtime, RuntimeSpec::Docker(_));
    }
    if containers { container::removed(connection).await } else { Ok(()) }
}
