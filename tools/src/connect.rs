//! The connection to the manager: locates it, connects, and reconnects.
//!
//! Every request is safe to repeat: requests that change something carry an idempotency key, or ask
//! for a state. So requests are retried across restarts of the manager until a deadline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex as StdMutex;
use podmesh_protocol::again::{FailedTasks, RequeueRequest, Requeued};
use podmesh_protocol::client::{
    Info, JobDetail, JobView, LogRead, LogSlice, ReplyBody, RequestBody, TaskDetail, TaskView,
};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventChunk;
use podmesh_protocol::ids::{JobId, Name, Revision, SubmissionId, TaskId};
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_protocol::node::NodeView;
use podmesh_protocol::report::{AttemptState, JobState, TaskState};
use podmesh_protocol::spec::JobSpec;
use podmesh_protocol::word::MaybeKnown;
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

/// How long a query waits for a manager that has not answered yet.
pub(crate) const PATIENCE_ASK: Duration = Duration::from_secs(2);
/// How long a submission waits for a manager that has not answered yet.
pub(crate) const PATIENCE_SUBMIT: Duration = Duration::from_secs(5);
/// How long any request waits for the restart of a manager that has answered before.
pub(crate) const PATIENCE_BACK: Duration = Duration::from_secs(30);
/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// After this time without the manager, a follower gets a message.
const SAY_AFTER: Duration = Duration::from_secs(1);

/// The reason why a request has no answer.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// The manager refused the request.
    Refused(ErrorReply),
    /// The request failed.
    Failed(CliError),
}

impl From<RequestError> for CliError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Failed(error) => error,
            RequestError::Refused(reply) => {
                let error = CliError::failure(escape(&reply.message));
                match reply.code {
                    ErrorCode::Compacted => {
                        error.hint("omit --since to get all events that are kept")
                    }
                    _ => error,
                }
            }
        }
    }
}

/// A connection that reconnects.
pub(crate) struct Connection {
    locator: Locator,
    first_patience: Duration,
    /// Whether to wait without a limit for a manager that has answered before.
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

/// Which jobs to list: see [`RequestBody::Jobs`].
#[derive(Clone, Debug, Default)]
pub(crate) struct JobsQuery {
    pub(crate) before: Option<JobId>,
    pub(crate) active: bool,
    pub(crate) by: Option<Name>,
    pub(crate) service: Option<Name>,
    pub(crate) replica: Option<u32>,
    pub(crate) limit: u32,
}

/// Facts about the manager.
#[derive(Default)]
struct Seen {
    /// The route of the last request.
    route: Option<Route>,
    /// Whether the user has been told that the manager is gone.
    told_gone: bool,
}

impl Connection {
    /// Does not connect yet; the first request does. `first_patience` is how long it tries while no
    /// manager has ever answered.
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

    /// From now on, waits without a limit for a manager that is gone, and reports that on standard
    /// error.
    pub(crate) fn follow(&self) {
        self.follows.store(true, Ordering::Relaxed);
    }

    /// Returns whether a manager has ever answered.
    pub(crate) fn heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// Returns whether a follower waits for a manager that is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.with_seen(|seen| seen.told_gone)
    }

    /// Returns the number of the current connection. If it changes, the manager may have restarted.
    pub(crate) async fn generation(&self) -> u64 {
        self.current.lock().await.generation
    }

    /// Returns the route of the last request.
    pub(crate) fn route(&self) -> Option<Route> {
        self.with_seen(|seen| seen.route.clone())
    }

    /// Sends a request until there is an answer or the deadline passes.
    pub(crate) async fn request(&self, body: RequestBody) -> Result<ReplyBody, RequestError> {
        let mut delays = reconnect_delays();
        let mut failing_since: Option<Instant> = None;
        loop {
            let mut refused = None;
            let why = match self.once(&body).await {
                Ok(reply) => {
                    self.tell_back();
                    return Ok(reply);
                }
                Err(Miss::Refused(reply)) => match reply.code {
                    ErrorCode::Stopping => escape(&reply.message),
                    ErrorCode::Overloaded => escape(&refused.insert(reply).message),
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
            let asked = refused.as_ref().and_then(|reply| reply.retry_after_ms);
            let delay = delay.max(Duration::from_millis(asked.unwrap_or(0)));
            let patience = match (self.heard(), self.follows.load(Ordering::Relaxed)) {
                (false, _) => Some(self.first_patience),
                (true, false) => Some(PATIENCE_BACK),
                (true, true) => None,
            };
            match patience {
                Some(patience) if since.elapsed() + delay > patience => {
                    return Err(match refused {
                        Some(reply) => RequestError::Refused(reply),
                        None => RequestError::Failed(self.gone(&why)),
                    });
                }
                None if since.elapsed() > SAY_AFTER => self.tell_gone(&why),
                Some(_) | None => {}
            }
            sleep(delay).await;
        }
    }

    /// Makes one attempt: connects if necessary, and sends the request.
    async fn once(&self, body: &RequestBody) -> Result<ReplyBody, Miss> {
        let (client, generation) = self.client().await?;
        let result = client.request(body.clone()).await;
        if let Err(ClientError::Wire(_)) = &result {
            let mut current = self.current.lock().await;
            // Another request may have reconnected already.
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
            ClientError::Wire(_)
            | ClientError::NoCommonVersion(_)
            | ClientError::UnexpectedReply => {
                Miss::Never(CliError::failure("the request to the manager failed").because(error))
            }
        })
    }

    /// Returns the connection and its number; connects if necessary.
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
            // Another attempt with the same key gets the same answer.
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
        f(&mut self.seen.lock())
    }

    fn tell_gone(&self, why: &str) {
        if !self.with_seen(|seen| std::mem::replace(&mut seen.told_gone, true)) {
            say(format!("the manager does not respond ({why}); retrying"));
        }
    }

    fn tell_back(&self) {
        if self.with_seen(|seen| std::mem::take(&mut seen.told_gone)) {
            say("the manager is back");
        }
    }
}

/// The reason why one attempt has no answer.
enum Miss {
    /// The manager refused the request.
    Refused(ErrorReply),
    /// The next attempt may succeed.
    NotNow(String),
    /// No attempt can succeed.
    Never(CliError),
}

pub(crate) fn unexpected() -> RequestError {
    let why = ClientError::UnexpectedReply;
    RequestError::Failed(
        CliError::failure("the manager's answer cannot be understood").because(why),
    )
}

/// One method per request, with the reply of the matching type.
impl Connection {
    /// Returns what the manager says about itself.
    pub(crate) async fn info(&self) -> Result<Info, RequestError> {
        match self.request(RequestBody::Info).await? {
            ReplyBody::Info(info) => Ok(info),
            _ => Err(unexpected()),
        }
    }

    /// Submits a job; safe to repeat with the same `submission`.
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
    pub(crate) async fn cancel(&self, job: JobId) -> Result<MaybeKnown<JobState>, RequestError> {
        self.cancel_with(job, false).await.map(|(state, _)| state)
    }

    /// Cancels a job, maybe with those downstream of it. Returns its state, and how many others were
    /// cancelled.
    pub(crate) async fn cancel_with(
        &self,
        job: JobId,
        downstream: bool,
    ) -> Result<(MaybeKnown<JobState>, u32), RequestError> {
        match self.request(RequestBody::Cancel { job, downstream }).await? {
            ReplyBody::Cancelled { state, downstream } => Ok((state, downstream)),
            _ => Err(unexpected()),
        }
    }

    /// Runs ended tasks of a job again; safe to repeat.
    pub(crate) async fn requeue(&self, request: RequeueRequest) -> Result<Requeued, RequestError> {
        match self.request(RequestBody::Requeue(request)).await? {
            ReplyBody::Requeued(done) => Ok(done),
            _ => Err(unexpected()),
        }
    }

    /// Returns the tasks that failed in the last `since_ms` milliseconds.
    pub(crate) async fn failed(&self, since_ms: Option<u64>) -> Result<FailedTasks, RequestError> {
        match self.request(RequestBody::Failed { since_ms }).await? {
            ReplyBody::Failed(failed) => Ok(failed),
            _ => Err(unexpected()),
        }
    }

    /// Removes the ended jobs of a range. Returns how many it removed, the jobs that have not ended,
    /// and the job to continue with.
    pub(crate) async fn forget(
        &self,
        first: JobId,
        last: JobId,
    ) -> Result<(u32, Vec<JobId>, Option<JobId>), RequestError> {
        match self.request(RequestBody::Forget { first, last }).await? {
            ReplyBody::Forgotten { removed, active, next } => Ok((removed, active, next)),
            _ => Err(unexpected()),
        }
    }

    /// Returns a page of jobs, newest first.
    pub(crate) async fn jobs(&self, query: JobsQuery) -> Result<Vec<JobView>, RequestError> {
        let JobsQuery { before, active, by, service, replica, limit } = query;
        match self
            .request(RequestBody::Jobs { before, active, by, service, replica, limit })
            .await?
        {
            ReplyBody::Jobs(jobs) => Ok(jobs),
            _ => Err(unexpected()),
        }
    }

    /// Returns a job. With `since`, returns once it has changed or `wait` has passed.
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

    /// Returns a page of tasks, and the index of the next one.
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

    /// Returns a task. With `unless`, returns once its state differs or `wait` has passed.
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

    /// Returns all nodes in order of name. A page can be shorter than requested, because its bytes
    /// are limited too: only an empty page is the last.
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

    /// Returns the events after a revision that fit into one message, and the latest revision.
    pub(crate) async fn events(
        &self,
        since: Revision,
    ) -> Result<(Vec<EventChunk>, Revision), RequestError> {
        match self.request(RequestBody::Events { since }).await? {
            ReplyBody::Events { chunks, last } => Ok((chunks, last)),
            _ => Err(unexpected()),
        }
    }

    /// Returns a part of an attempt's output.
    pub(crate) async fn log(&self, read: LogRead) -> Result<LogSlice, RequestError> {
        match self.request(RequestBody::Log(read)).await? {
            ReplyBody::Log(slice) => Ok(slice),
            _ => Err(unexpected()),
        }
    }
}

pub(crate) fn wait_ms(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).min(podmesh_protocol::limits::WAIT_MS_MAX)
}
