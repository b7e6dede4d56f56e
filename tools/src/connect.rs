//! The connection to the manager: found, made, and made again when it is lost.
//!
//! Every request is safe to repeat: those that change something carry an idempotency key, or ask
//! for a state. So a request goes on over restarts of the manager until patience ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use podmesh_protocol::client::{
    Info, JobDetail, JobView, LogRead, LogSlice, NodeView, ReplyBody, RequestBody, TaskDetail,
    TaskView,
};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventChunk;
use podmesh_protocol::ids::{JobId, Name, Revision, SubmissionId, TaskId};
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::report::{AttemptState, JobState, TaskState};
use podmesh_protocol::spec::JobSpec;
use podmesh_wire::WireError;
use podmesh_wire::backoff::reconnect_delays;
use podmesh_wire::client::{Client, ClientError};
use podmesh_wire::locate::Locator;
use podmesh_wire::route::Route;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::error::CliError;
use crate::output::screen::say;
use crate::output::text::escape;

/// How long a question waits for a manager that has not answered yet.
pub(crate) const PATIENCE_ASK: Duration = Duration::from_secs(2);
/// How long a submission waits for a manager that has not answered yet.
pub(crate) const PATIENCE_SUBMIT: Duration = Duration::from_secs(5);
/// How long anything waits for a manager that has answered before and is gone: for its restart.
pub(crate) const PATIENCE_BACK: Duration = Duration::from_secs(30);
/// The longest time between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// After how long without the manager whoever follows is told.
const SAY_AFTER: Duration = Duration::from_secs(1);

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// The manager says no.
    Refused(ErrorReply),
    /// There is no answer to be had.
    Failed(CliError),
}

impl From<RequestError> for CliError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Failed(error) => error,
            RequestError::Refused(reply) => {
                let error = CliError::failure(escape(&reply.message));
                match reply.code {
                    ErrorCode::UnsupportedVersion => {
                        error.hint("install the same version of podmesh on every machine")
                    }
                    ErrorCode::Compacted => {
                        error.hint("ask without --since for all events that are kept")
                    }
                    _ => error,
                }
            }
        }
    }
}

/// A connection that is made again when it is lost.
pub(crate) struct Connection {
    locator: Locator,
    first_patience: Duration,
    /// Whether to wait for ever for a manager that has answered before.
    follows: AtomicBool,
    heard: AtomicBool,
    current: Mutex<Current>,
    seen: StdMutex<Seen>,
}

#[derive(Default)]
struct Current {
    client: Option<Client>,
    generation: u64,
}

/// What has been seen of the manager.
#[derive(Default)]
struct Seen {
    /// The way by which it was last asked.
    route: Option<Route>,
    /// Whether whoever follows has been told that it is gone.
    told_gone: bool,
}

impl Connection {
    /// No connection yet; the first request makes it. `first_patience` is how long it tries when
    /// nobody has ever answered.
    pub(crate) fn new(locator: Locator, first_patience: Duration) -> Self {
        Self {
            locator,
            first_patience,
            follows: AtomicBool::new(false),
            heard: AtomicBool::new(false),
            current: Mutex::new(Current::default()),
            seen: StdMutex::default(),
        }
    }

    /// From now on, waits for ever for a manager that is gone, and says so on standard error.
    pub(crate) fn follow(&self) {
        self.follows.store(true, Ordering::Relaxed);
    }

    /// Whether a manager has ever answered.
    pub(crate) fn heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// Where the manager is now, and the number of the connection: another one means that the
    /// manager may have restarted since.
    pub(crate) async fn generation(&self) -> u64 {
        self.current.lock().await.generation
    }

    /// The way by which the manager was last asked.
    pub(crate) fn route(&self) -> Option<Route> {
        self.with_seen(|seen| seen.route.clone())
    }

    /// Asks until there is an answer or patience ends.
    pub(crate) async fn request(&self, body: RequestBody) -> Result<ReplyBody, RequestError> {
        let mut delays = reconnect_delays();
        let mut failing_since: Option<Instant> = None;
        loop {
            let why = match self.once(&body).await {
                Ok(reply) => {
                    self.tell_back();
                    return Ok(reply);
                }
                Err(Miss::Refused(reply)) => match reply.code {
                    ErrorCode::Stopping | ErrorCode::Overloaded => escape(&reply.message),
                    _ => {
                        self.tell_back();
                        return Err(RequestError::Refused(reply));
                    }
                },
                Err(Miss::Never(error)) => return Err(RequestError::Failed(error)),
                Err(Miss::NotNow(why)) => why,
            };
            let since = *failing_since.get_or_insert_with(Instant::now);
            let delay = delays.next().unwrap_or(PAUSE_MAX);
            let patience = match (self.heard(), self.follows.load(Ordering::Relaxed)) {
                (false, _) => Some(self.first_patience),
                (true, false) => Some(PATIENCE_BACK),
                (true, true) => None,
            };
            match patience {
                Some(patience) if since.elapsed() + delay > patience => {
                    return Err(RequestError::Failed(self.gone(&why)));
                }
                None if since.elapsed() > SAY_AFTER => self.tell_gone(&why),
                Some(_) | None => {}
            }
            sleep(delay).await;
        }
    }

    /// One try: connects where there is no connection, and asks.
    async fn once(&self, body: &RequestBody) -> Result<ReplyBody, Miss> {
        let (client, generation) = self.client().await?;
        let result = client.request(body.clone()).await;
        if let Err(ClientError::Wire(_)) = &result {
            let mut current = self.current.lock().await;
            // Another request may have made a new connection already.
            if current.generation == generation {
                current.client = None;
            }
        } else {
            self.heard.store(true, Ordering::Relaxed);
        }
        result.map_err(|error| match error {
            ClientError::Refused(reply) => Miss::Refused(reply),
            ClientError::Wire(error) if !matches!(error, WireError::Encode(_)) => {
                Miss::NotNow(error.to_string())
            }
            ClientError::Wire(_) | ClientError::UnexpectedReply => {
                Miss::Never(CliError::failure("the request to the manager failed").because(error))
            }
        })
    }

    /// The connection, made where there is none, and its number.
    async fn client(&self) -> Result<(Client, u64), Miss> {
        let mut current = self.current.lock().await;
        if let Some(client) = &current.client {
            return Ok((client.clone(), current.generation));
        }
        let route = self.locator.find().map_err(|error| {
            Miss::Never(CliError::failure("no manager can be reached").because(error))
        })?;
        let client = Client::connect(&route).await;
        self.with_seen(|seen| seen.route = Some(route));
        let client = client.map_err(|error| match error {
            // No further try with the same key has another answer.
            WireError::Refused { .. } | WireError::WrongKey { .. } => {
                Miss::Never(CliError::failure("the request to the manager failed").because(error))
            }
            _ => Miss::NotNow(error.to_string()),
        })?;
        current.generation += 1;
        current.client = Some(client.clone());
        Ok((client, current.generation))
    }

    fn gone(&self, why: &str) -> CliError {
        let at = self.route().map_or_else(String::new, |route| format!(" at {route}"));
        if self.heard() {
            return CliError::failure(format!("the manager{at} has stopped responding"))
                .because(why)
                .hint("is it running? its log is log/manager.log in its data folder");
        }
        CliError::failure(format!("no manager answers{at}"))
            .because(why)
            .hint("start one here with `podmesh manager`, or join one elsewhere with `podmesh login TOKEN`")
    }

    fn with_seen<R>(&self, f: impl FnOnce(&mut Seen) -> R) -> R {
        // Nothing panics while the lock is held.
        f(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn tell_gone(&self, why: &str) {
        if !self.with_seen(|seen| std::mem::replace(&mut seen.told_gone, true)) {
            say(format!("the manager does not answer ({why}); trying again"));
        }
    }

    fn tell_back(&self) {
        if self.with_seen(|seen| std::mem::take(&mut seen.told_gone)) {
            say("the manager is back");
        }
    }
}

/// Why one try has no answer.
enum Miss {
    /// The manager says no.
    Refused(ErrorReply),
    /// The next try may have one.
    NotNow(String),
    /// No try ever will.
    Never(CliError),
}

pub(crate) fn unexpected() -> RequestError {
    let why = ClientError::UnexpectedReply;
    RequestError::Failed(
        CliError::failure("the manager's answer cannot be understood").because(why),
    )
}

/// The requests by name, with the answer that belongs to each.
impl Connection {
    /// Who the manager is.
    pub(crate) async fn info(&self) -> Result<Info, RequestError> {
        match self.request(RequestBody::Info).await? {
            ReplyBody::Info(info) => Ok(info),
            _ => Err(unexpected()),
        }
    }

    /// Submits; safe to repeat with the same `submission`.
    pub(crate) async fn submit(
        &self,
        submission: SubmissionId,
        spec: JobSpec,
    ) -> Result<JobId, RequestError> {
        match self.request(RequestBody::Submit { submission, spec: Box::new(spec) }).await? {
            ReplyBody::Submitted { job, .. } => Ok(job),
            _ => Err(unexpected()),
        }
    }

    /// Cancels a job.
    pub(crate) async fn cancel(&self, job: JobId) -> Result<JobState, RequestError> {
        match self.request(RequestBody::Cancel { job }).await? {
            ReplyBody::Cancelled { state } => Ok(state),
            _ => Err(unexpected()),
        }
    }

    /// A page of jobs, newest first.
    pub(crate) async fn jobs(
        &self,
        before: Option<JobId>,
        active: bool,
        limit: u32,
    ) -> Result<Vec<JobView>, RequestError> {
        match self.request(RequestBody::Jobs { before, active, limit }).await? {
            ReplyBody::Jobs(jobs) => Ok(jobs),
            _ => Err(unexpected()),
        }
    }

    /// A job; with `since`, once it has changed or `wait` has passed.
    pub(crate) async fn job(
        &self,
        job: JobId,
        since: Option<Revision>,
        wait: Duration,
    ) -> Result<JobDetail, RequestError> {
        match self.request(RequestBody::Job { job, since, wait_ms: wait_ms(wait) }).await? {
            ReplyBody::Job(detail) => Ok(*detail),
            _ => Err(unexpected()),
        }
    }

    /// A page of tasks, and the index of the next one.
    pub(crate) async fn tasks(
        &self,
        job: JobId,
        from: u32,
        state: Option<TaskState>,
        limit: u32,
    ) -> Result<(Vec<TaskView>, Option<u32>), RequestError> {
        match self.request(RequestBody::Tasks { job, from, state, limit }).await? {
            ReplyBody::Tasks { tasks, next } => Ok((tasks, next)),
            _ => Err(unexpected()),
        }
    }

    /// A task; with `unless`, once it is otherwise or `wait` has passed.
    pub(crate) async fn task(
        &self,
        task: TaskId,
        unless: Option<(u32, AttemptState)>,
        wait: Duration,
    ) -> Result<TaskDetail, RequestError> {
        match self.request(RequestBody::Task { task, unless, wait_ms: wait_ms(wait) }).await? {
            ReplyBody::Task(detail) => Ok(detail),
            _ => Err(unexpected()),
        }
    }

    /// All nodes in order of name. A page can be shorter than asked for, because its bytes are
    /// bounded, too: only an empty one is the last.
    pub(crate) async fn nodes(&self) -> Result<Vec<NodeView>, RequestError> {
        let mut nodes: Vec<NodeView> = Vec::new();
        loop {
            let after: Option<Name> = nodes.last().map(|node| node.node.clone());
            match self.request(RequestBody::Nodes { after, limit: PAGE_ROWS_MAX }).await? {
                ReplyBody::Nodes(page) if page.is_empty() => return Ok(nodes),
                ReplyBody::Nodes(page) => nodes.extend(page),
                _ => return Err(unexpected()),
            }
        }
    }

    /// Events after a revision, as many as fit a message, and the last revision of all.
    pub(crate) async fn events(
        &self,
        since: Revision,
    ) -> Result<(Vec<EventChunk>, Revision), RequestError> {
        match self.request(RequestBody::Events { since }).await? {
            ReplyBody::Events { chunks, last } => Ok((chunks, last)),
            _ => Err(unexpected()),
        }
    }

    /// A part of an attempt's output.
    pub(crate) async fn log(&self, read: LogRead) -> Result<LogSlice, RequestError> {
        match self.request(RequestBody::Log(read)).await? {
            ReplyBody::Log(slice) => Ok(slice),
            _ => Err(unexpected()),
        }
    }
}

fn wait_ms(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).min(podmesh_protocol::limits::WAIT_MS_MAX)
}
