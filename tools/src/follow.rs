//! Shows the output of jobs, tasks and attempts: with long polls, across restarts of the manager
//! and of nodes, until the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memchr::memmem::Finder;
use memchr::memrchr;
use podmesh_protocol::client::{
    AttemptView, JobDetail, LogPosition, LogRead, LogStream, TaskDetail,
};
use podmesh_protocol::error::ErrorCode;
use podmesh_protocol::ids::{AttemptId, JobId, Name, Revision, TaskId};
use podmesh_protocol::limits::{LOG_READ_BYTES_MAX, PAGE_ROWS_MAX};
use podmesh_protocol::report::{AttemptState, JobState, OutcomeKind, TaskState};
use tokio::time::sleep;

use crate::connect::{Connection, RequestError};
use crate::error::{CliError, CliResult};
use crate::output::events::outcome_text;
use crate::output::screen::{say, say_to_watcher};
use crate::output::text::escape;
use crate::pace::Pace;
use crate::sink::Sink;
use crate::turns::Turns;

/// How long one request waits for a change.
const WAIT: Duration = Duration::from_secs(20);
/// How long to wait for a task to start before asking why its job waits.
const WAIT_QUEUED: Duration = Duration::from_secs(1);
/// How long to wait for a node that is away while it has the output of an ended attempt.
const NODE_PATIENCE: Duration = Duration::from_secs(30);

/// What to show, and how.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ShowOptions {
    /// Continue until the end.
    pub(crate) follow: bool,
    /// Show only this number of lines, from the end of the last attempt.
    pub(crate) tail: Option<u64>,
    /// Show only this stream.
    pub(crate) stream: Option<LogStream>,
}

/// Shows the output of jobs, tasks and attempts.
pub(crate) struct Follower<'a> {
    connection: &'a Connection,
    show: ShowOptions,
    /// Show only the lines with this text.
    grep: Option<String>,
    /// Whether there was such a line.
    found: AtomicBool,
    sink: Sink,
    turns: Arc<Turns>,
}

/// An attempt whose output is being shown.
struct AttemptOutput<'a> {
    id: AttemptId,
    node: &'a Name,
    /// Whether the user has been told that its node is away.
    away: AtomicBool,
}

impl<'a> Follower<'a> {
    /// `headers`: whether the output of more than one task is shown.
    pub(crate) fn new(connection: &'a Connection, show: ShowOptions, headers: bool) -> Self {
        Self::merged(connection, show, Sink::new(headers), Arc::default())
    }

    /// Shows only the lines with this text, which their node looks for. Not for output that is
    /// followed.
    pub(crate) fn grep(self, grep: Option<String>) -> Self {
        Self { grep, ..self }
    }

    /// For one of several attempts whose output is shown at the same time: they share the turns.
    pub(crate) fn merged(
        connection: &'a Connection,
        show: ShowOptions,
        sink: Sink,
        turns: Arc<Turns>,
    ) -> Self {
        Self { connection, show, grep: None, found: AtomicBool::new(false), sink, turns }
    }

    /// Returns whether output was shown that has the text of [`Self::grep`].
    pub(crate) fn has_found(&self) -> bool {
        self.found.load(Ordering::Relaxed)
    }

    /// Shows all tasks of a job in order of index. Returns the job's final state; when following,
    /// after its end.
    pub(crate) async fn job(&self, detail: JobDetail) -> CliResult<JobDetail> {
        let job = detail.view.job;
        if self.show.follow {
            for index in detail.spec.array.first..=detail.spec.array.last {
                self.task(TaskId { job, index }).await?;
            }
            return ended(self.connection, job).await;
        }
        let mut from = Some(detail.spec.array.first);
        while let Some(index) = from {
            let (tasks, next) = self.connection.tasks(job, index, None, PAGE_ROWS_MAX).await?;
            for view in tasks.iter().filter(|view| view.attempts > 0) {
                self.task(view.task).await?;
            }
            from = next;
        }
        Ok(detail)
    }

    /// Shows all attempts of a task. Returns the task's final state.
    pub(crate) async fn task(&self, task: TaskId) -> CliResult<TaskDetail> {
        let mut shown = 0;
        let mut unless = None;
        let mut queue = Queue::default();
        let mut pace = Pace::default();
        loop {
            let asked = Instant::now();
            let detail = self.connection.task(task, unless, WAIT).await?;
            let last = detail.attempts.last();
            let mut news = false;
            for view in &detail.attempts {
                let begun = begun(view);
                let wanted = self.show.tail.is_none() || Some(view) == last;
                if view.number > shown && begun && wanted {
                    self.attempt(AttemptId { task, number: view.number }, &view.node).await?;
                    shown = view.number;
                    news = true;
                }
            }
            let over = match detail.state.known() {
                Some(state) => !matches!(state, TaskState::Queued | TaskState::Active),
                None => last.is_some_and(|last| last.outcome.is_some()),
            };
            if !self.show.follow || (over && last.is_none_or(|last| shown >= last.number)) {
                return Ok(detail);
            }
            if detail.state == TaskState::Queued {
                if let Some(last) = last {
                    queue.tell_retry(AttemptId { task, number: last.number }, last);
                }
                // The last attempt does not change when the task leaves the queue: it may be
                // cancelled.
                unless = None;
                queue.wait(self.connection, task.job).await?;
            } else {
                unless = last.and_then(|last| Some((last.number, *last.state.known()?)));
            }
            if news {
                pace.reset();
            } else {
                // A job of many tasks changes all the time, although this task does not.
                pace.wait(asked).await;
            }
        }
    }

    /// Shows one attempt; when following, up to its last byte.
    pub(crate) async fn attempt(&self, id: AttemptId, node: &Name) -> CliResult<()> {
        let shown = AttemptOutput { id, node, away: AtomicBool::new(false) };
        match self.show.stream {
            Some(stream) => self.stream(&shown, stream).await,
            None => tokio::try_join!(
                self.stream(&shown, LogStream::Stdout),
                self.stream(&shown, LogStream::Stderr)
            )
            .map(|((), ())| ()),
        }
    }

    async fn stream(&self, shown: &AttemptOutput<'_>, stream: LogStream) -> CliResult<()> {
        let _counted = self.turns.count();
        let result = self.read_all(shown, stream).await;
        // Also after an error: what was read must not be lost.
        self.sink.end(shown.id, stream).await?;
        result
    }

    async fn read_all(&self, shown: &AttemptOutput<'_>, stream: LogStream) -> CliResult<()> {
        let mut from = match self.show.tail {
            Some(lines) => LogPosition::TailLines(lines),
            None => LogPosition::Offset(0),
        };
        let mut away_since: Option<Instant> = None;
        let mut pace = Pace::default();
        loop {
            let turn = self.turns.next().await;
            let asked = Instant::now();
            let read = LogRead {
                attempt: shown.id,
                stream,
                from,
                bytes_max: LOG_READ_BYTES_MAX,
                wait_ms: if self.show.follow { self.turns.wait_ms() } else { 0 },
                find: self.grep.clone(),
            };
            let slice = match self.connection.log(read).await {
                Ok(slice) => slice,
                Err(RequestError::Refused(reply)) => match reply.code {
                    ErrorCode::NodeUnavailable => {
                        drop(turn);
                        let since = *away_since.get_or_insert_with(Instant::now);
                        if self.node_away(shown, stream, since, &reply.message).await? {
                            return Ok(());
                        }
                        continue;
                    }
                    // The attempt never ran, or its output has been removed.
                    ErrorCode::NotFound if self.show.follow || self.sink.merges() => {
                        say_to_watcher(escape(&reply.message));
                        return Ok(());
                    }
                    _ => return Err(RequestError::Refused(reply).into()),
                },
                Err(error) => return Err(error.into()),
            };
            if away_since.take().is_some() && shown.away.swap(false, Ordering::Relaxed) {
                say(format!("node {} is back", shown.node));
            }
            if let LogPosition::Offset(expected) = from
                && slice.offset > expected
                && self.grep.is_none()
            {
                let bytes = slice.offset - expected;
                let what = stream.file_stem();
                say(format!("{}: {bytes} bytes of {what} have been removed by rotation", shown.id));
            }
            if slice.removed && self.turns.first_removed() {
                say(format!(
                    "{}: node {} has no output of it: it printed nothing, or its output was removed (`log_age` and `log_node_size` in agent.toml on that node)",
                    shown.id, shown.node
                ));
            }
            let nothing = slice.bytes.is_empty();
            let (next, lines) = match &self.grep {
                Some(text) => {
                    let (next, lines) = matching(slice.offset, slice.bytes, text, slice.end);
                    self.found.fetch_or(!lines.is_empty(), Ordering::Relaxed);
                    (next, lines)
                }
                None => (slice.offset + slice.bytes.len() as u64, slice.bytes),
            };
            // A search that has come further goes on.
            let searches = self.grep.is_some() && from != LogPosition::Offset(next);
            from = LogPosition::Offset(next);
            self.sink.write(shown.id, stream, lines).await?;
            drop(turn);
            if slice.end || (nothing && !self.show.follow && !searches) {
                return Ok(());
            }
            if searches {
                continue;
            }
            if nothing {
                pace.wait(asked).await;
                self.turns.pause(asked).await;
            } else {
                pace.reset();
            }
        }
    }

    /// Handles an unavailable node that has the output. Returns whether to give up on the stream;
    /// otherwise it waits.
    async fn node_away(
        &self,
        shown: &AttemptOutput<'_>,
        stream: LogStream,
        since: Instant,
        why: &str,
    ) -> CliResult<bool> {
        let (id, node) = (shown.id, shown.node);
        let lost = || {
            CliError::failure(format!(
                "{id}: its {} is on node {node}, which is away",
                stream.file_stem()
            ))
            .because(escape(why))
            .hint(format!("when the node is back: podmesh logs '{id}'"))
        };
        if !self.show.follow {
            return Err(lost());
        }
        if !shown.away.swap(true, Ordering::Relaxed) {
            say(format!("node {node}, which has the output of {id}, is away; waiting for it"));
        }
        let asked = Instant::now();
        let detail = self.connection.task(id.task, None, Duration::ZERO).await?;
        let newer = detail.attempts.last().is_some_and(|last| last.number > id.number);
        let own = detail.attempts.iter().find(|view| view.number == id.number);
        let outcome = own.and_then(|view| view.outcome.as_ref());
        if newer || outcome.is_some_and(|outcome| outcome.kind == OutcomeKind::Lost) {
            say(format!("{id}: the rest of its output is on node {node}, which is away"));
            return Ok(true);
        }
        if outcome.is_some() && since.elapsed() > NODE_PATIENCE {
            return Err(lost());
        }
        sleep(Duration::from_secs(1).saturating_sub(asked.elapsed())).await;
        Ok(false)
    }
}

/// A task that waits for room, or for its next attempt.
#[derive(Default)]
struct Queue {
    /// The job's revision at the last request.
    since: Option<Revision>,
    /// When the task began to wait.
    from: Option<Instant>,
    told: Vec<String>,
    told_retry: u32,
}

impl Queue {
    /// Waits until the job changes. After a second it prints why the tasks wait.
    async fn wait(&mut self, connection: &Connection, job: JobId) -> CliResult<()> {
        let from = *self.from.get_or_insert_with(Instant::now);
        let wait = if from.elapsed() < WAIT_QUEUED { WAIT_QUEUED } else { WAIT };
        let detail = connection.job(job, self.since, wait).await?;
        self.since = Some(detail.revision);
        if from.elapsed() >= WAIT_QUEUED && detail.waits_for != self.told {
            for reason in &detail.waits_for {
                say_to_watcher(format!("job {job} waits: {}", escape(reason)));
            }
            self.told = detail.waits_for;
        }
        Ok(())
    }

    /// Reports that an attempt failed and will be retried.
    fn tell_retry(&mut self, id: AttemptId, view: &AttemptView) {
        if let Some(outcome) = &view.outcome
            && std::mem::replace(&mut self.told_retry, id.number) != id.number
        {
            say(format!("{id} on {} {}; retrying", view.node, outcome_text(outcome)));
        }
    }
}

/// Returns whether there can be output. In a state of a later version there may be some.
pub(crate) fn begun(view: &AttemptView) -> bool {
    !matches!(view.state.known(), Some(AttemptState::Assigned | AttemptState::Preparing))
}

/// Waits until a job has ended.
pub(crate) async fn ended(connection: &Connection, job: JobId) -> CliResult<JobDetail> {
    let mut since = None;
    let mut pace = Pace::default();
    loop {
        let asked = Instant::now();
        let detail = connection.job(job, since, WAIT).await?;
        if detail.view.is_end() {
            return Ok(detail);
        }
        since = Some(detail.revision);
        // A large array changes all the time.
        pace.wait(asked).await;
    }
}

/// Returns the exit code for a job that has ended: the task's own for a single task; for an array 0
/// if every task succeeded, otherwise 1. Prints the reason if the task's output cannot show it.
pub(crate) async fn exit_code(connection: &Connection, detail: &JobDetail) -> CliResult {
    let job = detail.view.job;
    let succeeded = detail.view.state == JobState::Succeeded;
    if detail.spec.array.tasks() != 1 {
        if !succeeded {
            let counts = &detail.view.counts;
            say(format!(
                "job {job}: {} of {} tasks failed, {} were cancelled; see `podmesh tasks {job}`",
                counts.failed,
                counts.total(),
                counts.cancelled
            ));
        }
        return Ok(u8::from(!succeeded));
    }
    let task = TaskId { job, index: detail.spec.array.first };
    let ended = connection.task(task, None, Duration::ZERO).await?;
    let Some((view, outcome)) =
        ended.attempts.last().and_then(|view| Some((view, view.outcome.as_ref()?)))
    else {
        // It never reached a node: it was cancelled, or all nodes refused it.
        return Ok(match ended.state.known() {
            Some(TaskState::Cancelled) => crate::error::EXIT_INTERRUPTED,
            _ => crate::error::EXIT_FAILURE,
        });
    };
    let plain = outcome.message.is_none() && outcome.exit_code.is_some() && !outcome.oom_killed;
    let exited = [OutcomeKind::Succeeded, OutcomeKind::Failed, OutcomeKind::Cancelled];
    if !plain || !exited.iter().any(|kind| outcome.kind == *kind) {
        say(format!("{task} on {} {}", view.node, outcome_text(outcome)));
    }
    // Larger codes are truncated, as the system does.
    Ok((outcome.shell_code() & 0xff) as u8)
}

/// Returns the lines with the text, of the bytes that begin at `offset`, and the offset after what
/// was looked through. A last line that goes on after the bytes is left, unless there is no other.
fn matching(offset: u64, mut bytes: Vec<u8>, text: &str, is_last: bool) -> (u64, Vec<u8>) {
    if !is_last && let Some(end) = memrchr(b'\n', &bytes) {
        bytes.truncate(end + 1);
    }
    let finder = Finder::new(text);
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let found = lines.filter(|line| finder.find(line).is_some()).flatten().copied().collect();
    (offset + bytes.len() as u64, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_with_the_text_are_shown() {
        let found = |bytes: &str, is_last| {
            let (next, lines) = matching(10, bytes.into(), "b", is_last);
            (next, String::from_utf8_lossy(&lines).into_owned())
        };
        assert_eq!(found("abc\nx\nb", false), (16, "abc\n".into()));
        assert_eq!(found("abc\nx\nb", true), (17, "abc\nb".into()));
        assert_eq!(found("xb", false), (12, "xb".into()));
        assert_eq!(found("", true), (10, String::new()));
    }
}
