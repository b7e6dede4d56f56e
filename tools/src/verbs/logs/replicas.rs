//! `podmesh logs` of a service: the output of all its replicas, merged line by line.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Reset};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use podmesh_protocol::ids::{AttemptId, JobId, Name, TaskId};
use podmesh_protocol::service::{ReplicaState, ReplicaView, ServiceDetail};

use super::begun;
use crate::connect::{Connection, JobsQuery, RequestError};
use crate::context::Context;
use crate::error::{CliError, CliResult, EXIT_FAILURE};
use crate::follow::{Follower, ShowOptions};
use crate::output::screen::{say, say_error};
use crate::output::text::count;
use crate::pace::Pace;
use crate::sink::{Out, Prefix, Sink};
use crate::turns::Turns;
use crate::verbs::service::not_found;

/// How long one request waits for a change of the service.
const WAIT: Duration = Duration::from_secs(20);
/// How many of the last jobs of a replica are searched for those that have run.
const JOBS_SEARCHED: u32 = 5;
/// How many of the attempts of a replica that were shown are remembered: more than could be found
/// again.
const SHOWN_REMEMBERED: usize = 32;
/// The colours of the names of replicas, in turn.
const COLORS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::Red,
];

/// Prints the output of a service, or of one of its replicas.
pub(super) async fn logs(
    context: &Context,
    connection: &Connection,
    name: Name,
    show: ShowOptions,
) -> CliResult {
    let (only, detail) = find(connection, &name).await?;
    let label = detail.view.service.clone();
    merged(context, connection, detail, only, show, Look::alone(label)).await
}

/// How the output of a service looks beside that of others.
pub(crate) struct Look {
    /// What the service is called.
    pub(crate) label: Name,
    /// The least length of the names of replicas.
    pub(crate) width: usize,
    /// The colour of its first replica: an index.
    pub(crate) color: usize,
    /// Shared by all that is shown at the same time.
    pub(crate) turns: Arc<Turns>,
}

impl Look {
    /// For a service that is shown alone.
    fn alone(label: Name) -> Self {
        Self { label, width: 0, color: 0, turns: Arc::default() }
    }
}

/// Prints the output of a service, or `only` that of one of its replicas.
pub(crate) async fn merged(
    context: &Context,
    connection: &Connection,
    detail: ServiceDetail,
    only: Option<u32>,
    show: ShowOptions,
    look: Look,
) -> CliResult {
    let merge = Merge {
        stdout_color: context.screen.color,
        stderr_color: anstream::AutoStream::choice(&std::io::stderr())
            != anstream::ColorChoice::Never,
        ..Merge::new(connection, &detail, only, look, Out::Own)
    };
    if show.follow { merge.follow(detail, show).await } else { merge.once(&detail, show).await }
}

/// Follows the output of a service, or of one of its replicas, without colour, until the service is
/// removed. `show.follow` must be set.
pub(crate) async fn follow(
    connection: &Connection,
    service: Name,
    only: Option<u32>,
    show: ShowOptions,
    out: Out,
) -> CliResult {
    let detail = connection.service(service.clone(), None, Duration::ZERO).await?;
    let look = Look::alone(service);
    Merge::new(connection, &detail, only, look, out).follow(detail, show).await
}

/// Returns the service, and the number if one replica is meant. `web.3` is replica 3 of `web` if
/// there is a service `web`, else the service `web.3`.
async fn find(connection: &Connection, name: &Name) -> CliResult<(Option<u32>, ServiceDetail)> {
    if let Some((service, number)) = replica_of(name) {
        match connection.service(service, None, Duration::ZERO).await {
            Ok(detail) => return Ok((Some(number), detail)),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    match connection.service(name.clone(), None, Duration::ZERO).await {
        Ok(detail) => Ok((None, detail)),
        Err(error) => {
            let service = replica_of(name).map_or_else(|| name.clone(), |(service, _)| service);
            Err(not_found(connection, &service, error).await)
        }
    }
}

/// Returns service and number of `web.3`.
fn replica_of(name: &Name) -> Option<(Name, u32)> {
    let (service, number) = name.as_str().rsplit_once('.')?;
    if number.starts_with('0') || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((service.parse().ok()?, number.parse().ok()?))
}

fn label(service: &Name, number: u32) -> String {
    format!("{service}.{number}")
}

/// Returns whether there can be output of the replica's attempt.
fn has_output(replica: &ReplicaView) -> bool {
    !matches!(
        replica.state.known(),
        Some(ReplicaState::Queued | ReplicaState::Preparing | ReplicaState::Waiting)
    )
}

/// An attempt of a replica, and its node.
type Present = (AttemptId, Name);

/// The output of several replicas.
struct Merge<'a> {
    connection: &'a Connection,
    service: Name,
    /// The only replica to show.
    only: Option<u32>,
    /// What the service is called in front of its lines.
    label: Name,
    /// The colour of its first replica.
    color: usize,
    /// The length of the longest label.
    width: usize,
    stdout_color: bool,
    stderr_color: bool,
    turns: Arc<Turns>,
    out: Out,
}

/// The attempt of a replica that has output, and how often it has failed.
type Sign = (Option<AttemptId>, u32);

/// The attempts that were shown, by number of the replica.
type Seen = RefCell<BTreeMap<u32, BTreeSet<AttemptId>>>;

/// Remembers an attempt. Returns whether it is new.
fn remember(seen: &Seen, number: u32, attempt: AttemptId) -> bool {
    let mut seen = seen.borrow_mut();
    let seen = seen.entry(number).or_default();
    let new = seen.insert(attempt);
    if seen.len() > SHOWN_REMEMBERED {
        seen.pop_first();
    }
    new
}

type Shown<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = CliResult<()>> + 'a>>>;

impl<'a> Merge<'a> {
    /// Without colour.
    fn new(
        connection: &'a Connection,
        detail: &ServiceDetail,
        only: Option<u32>,
        look: Look,
        out: Out,
    ) -> Self {
        let highest = detail.replicas.iter().map(|replica| replica.number).max().unwrap_or(0);
        let longest = label(&look.label, detail.view.replicas.max(highest)).len();
        Self {
            connection,
            service: detail.view.service.clone(),
            only,
            width: longest.max(look.width),
            label: look.label,
            color: look.color,
            stdout_color: false,
            stderr_color: false,
            turns: look.turns,
            out,
        }
    }
}

impl Merge<'_> {
    fn wanted(&self, number: u32) -> bool {
        self.only.is_none_or(|only| only == number)
    }

    /// Returns the numbers of the replicas to show, also of those that do not exist now.
    fn numbers(&self, detail: &ServiceDetail) -> BTreeSet<u32> {
        let existing = detail.replicas.iter().map(|replica| replica.number);
        let all: BTreeSet<u32> = existing.chain(1..=detail.view.replicas).collect();
        match self.only {
            Some(only) => [only].into(),
            None => all,
        }
    }

    fn present(&self, detail: &ServiceDetail, number: u32) -> Vec<Present> {
        detail
            .replicas
            .iter()
            .filter(|replica| replica.number == number && has_output(replica))
            .filter_map(|replica| Some((replica.attempt?, replica.node.clone()?)))
            .collect()
    }

    fn prefix(&self, number: u32) -> Prefix {
        if self.only.is_some() {
            return Prefix::default();
        }
        let plain = format!("{:width$} | ", label(&self.label, number), width = self.width);
        // Colours that a program has left on end at the next line.
        let color = COLORS[(self.color + number as usize) % COLORS.len()].on_default();
        let colored = format!("{Reset}{color}{plain}{color:#}");
        let choose = |color: bool| if color { colored.clone() } else { plain.clone() };
        Prefix { stdout: choose(self.stdout_color), stderr: choose(self.stderr_color) }
    }

    /// Shows what there is of each replica: its present attempts, or the last one that has run.
    async fn once(&self, detail: &ServiceDetail, show: ShowOptions) -> CliResult {
        let mut shown = Shown::new();
        for number in self.numbers(detail) {
            let present = self.present(detail, number);
            shown.push(Box::pin(async move {
                let attempts = match present {
                    present if present.is_empty() => self.last(number).await?,
                    present => present,
                };
                if attempts.is_empty() && self.only.is_some() && number > detail.view.replicas {
                    return Err(self.no_replica(detail));
                }
                for (attempt, node) in attempts {
                    self.attempt(number, attempt, &node, show).await?;
                }
                Ok(())
            }));
        }
        let mut code = 0;
        while let Some(result) = shown.next().await {
            code = keep_on(result)?.unwrap_or(code);
        }
        Ok(code)
    }

    /// Shows the attempts of each replica as they come, until the service is removed.
    async fn follow(&self, mut detail: ServiceDetail, show: ShowOptions) -> CliResult {
        if let Some(only) = self.only
            && only > detail.view.replicas
            && detail.replicas.iter().all(|replica| replica.number != only)
        {
            return Err(self.no_replica(&detail));
        }
        self.connection.follow();
        let newest = self.jobs(None, 1).await?.first().copied();
        let seen = Seen::default();
        let mut shown = Shown::new();
        for number in self.numbers(&detail) {
            let present = self.present(&detail, number);
            let seen = &seen;
            // Counted before the first one is read: none of many may wait for output.
            let counted = [self.turns.count(), self.turns.count()];
            shown.push(Box::pin(async move {
                let attempts = match present {
                    present if present.is_empty() => self.last(number).await?,
                    present => present,
                };
                drop(counted);
                self.show_new(number, attempts, seen, show).await
            }));
        }
        // What comes later is new: all of it is shown.
        let show = ShowOptions { tail: None, ..show };
        let mut signs = self.signs(&detail);
        loop {
            let mut next = std::pin::pin!(self.next(detail.changed));
            let changed = loop {
                tokio::select! {
                    changed = &mut next => break changed,
                    Some(result) = shown.next() => {
                        keep_on(result)?;
                    }
                }
            };
            detail = match changed {
                Ok(detail) => detail,
                Err(error) if error.is_not_found() => {
                    while let Some(result) = shown.next().await {
                        keep_on(result)?;
                    }
                    say(format!("service {} was removed", self.service));
                    return Ok(0);
                }
                Err(error) => return Err(error.into()),
            };
            let now = self.signs(&detail);
            for (number, sign) in &now {
                if signs.get(number) == Some(sign) {
                    continue;
                }
                let (number, seen) = (*number, &seen);
                let present = self.present(&detail, number);
                shown.push(Box::pin(async move {
                    // A replica that ended soon after its start may never have been present.
                    let mut attempts = self.since(number, newest).await?;
                    attempts.extend(present);
                    self.show_new(number, attempts, seen, show).await
                }));
            }
            signs = now;
        }
    }

    /// Returns what of each replica shows that it has, or had, another attempt.
    fn signs(&self, detail: &ServiceDetail) -> BTreeMap<u32, Vec<Sign>> {
        let mut signs: BTreeMap<u32, Vec<Sign>> = BTreeMap::new();
        for replica in detail.replicas.iter().filter(|replica| self.wanted(replica.number)) {
            let sign = (replica.attempt.filter(|_| has_output(replica)), replica.failures);
            signs.entry(replica.number).or_default().push(sign);
        }
        signs
    }

    /// Shows those of the attempts that have not been shown, all at the same time.
    async fn show_new(
        &self,
        number: u32,
        attempts: Vec<Present>,
        seen: &Seen,
        show: ShowOptions,
    ) -> CliResult<()> {
        let mut shown = Shown::new();
        for (attempt, node) in attempts {
            if !remember(seen, number, attempt) {
                continue;
            }
            shown.push(Box::pin(async move { self.attempt(number, attempt, &node, show).await }));
        }
        while let Some(result) = shown.next().await {
            keep_on(result)?;
        }
        Ok(())
    }

    /// Waits for the next change of the service.
    async fn next(
        &self,
        since: podmesh_protocol::ids::Revision,
    ) -> Result<ServiceDetail, RequestError> {
        let asked = Instant::now();
        let detail = self.connection.service(self.service.clone(), Some(since), WAIT).await?;
        // A large service changes all the time.
        Pace::longest().wait(asked).await;
        Ok(detail)
    }

    async fn attempt(
        &self,
        number: u32,
        attempt: AttemptId,
        node: &Name,
        show: ShowOptions,
    ) -> CliResult<()> {
        let sink = Sink::lines(self.prefix(number), self.out.clone());
        let turns = Arc::clone(&self.turns);
        Follower::merged(self.connection, show, sink, turns).attempt(attempt, node).await
    }

    /// Returns the last attempt of a replica that has run, if there is one.
    async fn last(&self, number: u32) -> CliResult<Vec<Present>> {
        for job in self.jobs(Some(number), JOBS_SEARCHED).await? {
            if let Some(last) = self.begun(job).await?.pop() {
                return Ok(vec![last]);
            }
        }
        Ok(Vec::new())
    }

    /// Returns the attempts of a replica that have run, of its last jobs after `newest`.
    async fn since(&self, number: u32, newest: Option<JobId>) -> CliResult<Vec<Present>> {
        let mut jobs = self.jobs(Some(number), JOBS_SEARCHED).await?;
        jobs.retain(|job| Some(*job) > newest);
        let mut attempts = Vec::new();
        for job in jobs.into_iter().rev() {
            attempts.extend(self.begun(job).await?);
        }
        Ok(attempts)
    }

    /// Returns the last jobs of the service, or of one of its replicas, newest first.
    async fn jobs(&self, replica: Option<u32>, limit: u32) -> CliResult<Vec<JobId>> {
        let _turn = self.turns.next().await;
        let service = Some(self.service.clone());
        let query = JobsQuery { service, replica, limit, ..JobsQuery::default() };
        Ok(self.connection.jobs(query).await?.into_iter().map(|view| view.job).collect())
    }

    /// Returns the attempts of a replica's job that have run, oldest first.
    async fn begun(&self, job: JobId) -> CliResult<Vec<Present>> {
        let _turn = self.turns.next().await;
        let task = TaskId { job, index: 1 };
        let detail = self.connection.task(task, None, Duration::ZERO).await?;
        let attempts = detail.attempts.into_iter().filter(begun);
        Ok(attempts.map(|view| (AttemptId { task, number: view.number }, view.node)).collect())
    }

    fn no_replica(&self, detail: &ServiceDetail) -> CliError {
        let (service, number) = (&self.service, self.only.unwrap_or(0));
        let replicas = count(u64::from(detail.view.replicas), "replica");
        CliError::failure(format!("there is no replica {service}.{number}"))
            .because(format!("the service has {replicas}"))
    }
}

/// Reports the error of one replica: the others are still shown. Returns the exit code that it
/// means.
pub(crate) fn keep_on(result: CliResult<()>) -> CliResult<Option<u8>> {
    match result {
        Ok(()) => Ok(None),
        Err(CliError::StdoutClosed) => Err(CliError::StdoutClosed),
        Err(error) => {
            say_error(&error);
            Ok(Some(EXIT_FAILURE))
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_a_service_and_a_number() {
        let of = |name: &str| {
            replica_of(&name.parse().unwrap()).map(|(service, number)| label(&service, number))
        };
        assert_eq!(of("web.3").as_deref(), Some("web.3"));
        assert_eq!(of("my.web.1000").as_deref(), Some("my.web.1000"));
        for name in ["web", "web.0", "web.03", "web.x", "web.", "web.99999999999"] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}
