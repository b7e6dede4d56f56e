//! Waits until a change of a service is done, and shows the progress.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use podmesh_protocol::ids::Name;
use podmesh_protocol::service::{
    ReplicaState as Replica, ReplicaView, RevisionState, ServiceDetail, ServiceRevision,
    ServiceState as State,
};

use crate::connect::Connection;
use crate::connect_services::Changed;
use crate::error::{CliError, CliResult, EXIT_TIMED_OUT};
use crate::output::json::Word;
use crate::output::screen::say;
use crate::output::service::{ReplicaState, ServiceState};
use crate::output::service_table::summary;
use crate::output::text::{clip, escape};
use crate::pace::Pace;
use crate::values::Span;

/// How long one request waits for a change.
const WAIT: Duration = Duration::from_secs(10);
/// The exit code if the change failed.
const EXIT_FAILED: u8 = 1;
/// The maximum number of messages about replicas that fail. A service can have a thousand.
const MESSAGES_MAX: usize = 20;
/// The maximum number of characters of such a message.
const MESSAGE_LENGTH: usize = 300;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// All replicas of the revision are healthy.
    Healthy,
    /// All replicas of the revision have ended with success.
    Completed,
    /// No replica exists.
    Stopped,
    /// The service is gone.
    Removed,
}

/// Whether to wait any longer.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Wait,
    Done,
    /// It can no longer be reached, for this reason.
    Failed(String),
}

/// Waits for the goal. Returns 0 if it is reached, 1 if it failed, 124 if `timeout` is over; says
/// why on standard error.
pub(crate) async fn until(
    connection: &Connection,
    asked: &Changed,
    goal: Goal,
    timeout: Option<Span>,
) -> CliResult {
    connection.follow();
    let waiting = watch(connection, asked, goal);
    let Some(Span(timeout)) = timeout else { return waiting.await };
    match tokio::time::timeout(timeout, waiting).await {
        Ok(result) => result,
        Err(_) => {
            let name = &asked.service;
            let what = format!("{name} is not {} after {}", goal.word(), Span(timeout));
            Err(CliError::failure(what)
                .code(EXIT_TIMED_OUT)
                .hint(format!("it goes on; see `podmesh service {name}`")))
        }
    }
}

impl Goal {
    fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Completed => "done",
            Self::Stopped => "stopped",
            Self::Removed => "removed",
        }
    }
}

async fn watch(connection: &Connection, asked: &Changed, goal: Goal) -> CliResult {
    let mut since = None;
    let mut progress = Progress::new(&asked.service);
    let mut pace = Pace::default();
    loop {
        let begun = Instant::now();
        let service = asked.service.clone();
        let detail = match connection.service(service, since, WAIT).await {
            Ok(detail) => detail,
            Err(error) if error.is_not_found() && goal == Goal::Removed => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        progress.show(&detail);
        let fate = fate(connection, asked, &detail).await?;
        match judge(&detail, asked.revision, goal, fate.as_ref()) {
            Verdict::Wait => {}
            Verdict::Done => return Ok(0),
            Verdict::Failed(why) => {
                drop(progress);
                let name = &asked.service;
                return Err(CliError::failure(format!("{name} is not {}", goal.word()))
                    .because(escape(&why))
                    .code(EXIT_FAILED)
                    .hint(format!("podmesh service {name}; podmesh logs {name}")));
            }
        }
        since = Some(detail.changed);
        // A large service changes all the time.
        pace.wait(begun).await;
    }
}

/// Returns what became of the revision, if that is not clear from the service itself: the update that
/// failed may be another one.
async fn fate(
    connection: &Connection,
    asked: &Changed,
    detail: &ServiceDetail,
) -> CliResult<Option<ServiceRevision>> {
    if detail.failed_update.is_none() && detail.view.revision == asked.revision {
        return Ok(None);
    }
    match connection.service_history(asked.service.clone()).await {
        Ok(history) => Ok(history.into_iter().find(|row| row.revision == asked.revision)),
        // The next look at the service shows that it is gone.
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Decides whether to wait any longer for `revision`. `fate`: what is known to have become of it.
fn judge(
    detail: &ServiceDetail,
    revision: u32,
    goal: Goal,
    fate: Option<&ServiceRevision>,
) -> Verdict {
    let view = &detail.view;
    let failed = || {
        let fate = fate.filter(|fate| fate.state == RevisionState::Failed)?;
        let why = fate.message.as_deref().unwrap_or("it did not become healthy in time");
        let back = match view.revision == revision {
            true => String::new(),
            false => format!("; it went back to revision {}", view.revision),
        };
        Some(format!("revision {revision} failed: {why}{back}"))
    };
    let Some(state) = view.state.known() else {
        return failed().map_or(Verdict::Wait, Verdict::Failed);
    };
    match (goal, state) {
        (Goal::Stopped, State::Stopped) if view.existing == 0 => Verdict::Done,
        (Goal::Stopped, State::Stopped) | (Goal::Removed, State::Removing) => Verdict::Wait,
        (Goal::Stopped, State::Removing) => Verdict::Failed("it is being removed".into()),
        (Goal::Stopped, _) => Verdict::Failed("somebody has started it again".into()),
        (Goal::Removed, _) => Verdict::Failed("somebody has created it again".into()),
        // The exit code says how it ended, so the end of the way back is waited for.
        (Goal::Healthy | Goal::Completed, State::RollingBack) => Verdict::Wait,
        (Goal::Healthy | Goal::Completed, State::Removing) => {
            Verdict::Failed("it is being removed".into())
        }
        (Goal::Healthy | Goal::Completed, State::Stopped) => Verdict::Failed(format!(
            "it is stopped; to start it: podmesh service start {}",
            view.service
        )),
        (Goal::Healthy | Goal::Completed, _) => match failed() {
            Some(why) => Verdict::Failed(why),
            None if view.revision != revision => Verdict::Failed(format!(
                "another change came in between: its revision is now {}",
                view.revision
            )),
            // After a scale, surplus replicas are still being stopped.
            None if *state == State::Healthy
                && view.existing <= if goal == Goal::Completed { 0 } else { view.replicas } =>
            {
                Verdict::Done
            }
            None => match ended(detail) {
                Some(why) => Verdict::Failed(why),
                None => Verdict::Wait,
            },
        },
    }
}

/// Returns why a service cannot become healthy any more: all its replicas have ended, not all of them
/// with success, and are not started again.
fn ended(detail: &ServiceDetail) -> Option<String> {
    let over = |view: &ReplicaView| view.state == Replica::Ended;
    if detail.view.state != State::Degraded || !detail.replicas.iter().all(over) {
        return None;
    }
    let view = detail.replicas.first()?;
    let message = view.message.as_deref().unwrap_or("it has ended");
    Some(format!("{}.{}: {message}; it is not started again", detail.view.service, view.number))
}

/// Shows the progress on standard error: on a terminal as a bar, else as a line for each change.
struct Progress {
    service: Name,
    bar: Option<ProgressBar>,
    last: String,
    told: BTreeSet<String>,
}

impl Progress {
    fn new(service: &Name) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let template = "{prefix} {wide_bar} {msg} {elapsed}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(service.to_string());
            bar
        });
        Self { service: service.clone(), bar, last: String::new(), told: BTreeSet::new() }
    }

    fn show(&mut self, detail: &ServiceDetail) {
        let view = &detail.view;
        for message in troubles(detail) {
            if self.told.len() < MESSAGES_MAX && self.told.insert(message.clone()) {
                match &self.bar {
                    Some(bar) => bar.suspend(|| say(&message)),
                    None => say(&message),
                }
            }
        }
        let word = ServiceState::from(&view.state).word();
        let text = format!("{word}, revision {}: {}", view.revision, summary(view));
        if let Some(bar) = &self.bar {
            bar.set_length(u64::from(view.replicas));
            bar.set_position(u64::from(view.healthy));
            bar.set_message(text);
        } else if text != self.last {
            say(format!("{}: {text}", self.service));
            self.last = text;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Returns what keeps replicas from working, one message each.
fn troubles(detail: &ServiceDetail) -> Vec<String> {
    let service = &detail.view.service;
    let waits = detail.waits_for.iter().map(|why| format!("{service} waits: {}", escape(why)));
    let replicas = detail.replicas.iter().filter_map(|view| {
        let bad = matches!(
            view.state.known(),
            Some(Replica::Unhealthy | Replica::Restarting | Replica::Ended)
        );
        let message = view.message.as_deref().filter(|_| bad)?;
        let on = view.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        let word = ReplicaState::from(&view.state).word();
        let message = clip(&escape(message), MESSAGE_LENGTH);
        Some(format!("{service}.{}{on} is {word}: {message}", view.number))
    });
    waits.chain(replicas).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::service::example;

    fn with(state: State, revision: u32) -> ServiceDetail {
        let mut detail = example::detail();
        (detail.view.state, detail.view.revision) = (state.into(), revision);
        detail
    }

    /// Says why it failed; empty if it is done; nothing if it waits.
    fn judged(detail: &ServiceDetail, goal: Goal, fate: Option<RevisionState>) -> Option<String> {
        let fate = fate.map(|state| ServiceRevision {
            state: state.into(),
            message: Some("web.2: exit code 3".into()),
            ..example::revision()
        });
        match judge(detail, 4, goal, fate.as_ref()) {
            Verdict::Wait => None,
            Verdict::Done => Some(String::new()),
            Verdict::Failed(why) => Some(why),
        }
    }

    #[test]
    fn an_update_is_done_when_its_own_revision_is_healthy() {
        let healthy = |state, revision| judged(&with(state, revision), Goal::Healthy, None);
        assert_eq!(healthy(State::Updating, 4), None);
        assert_eq!(healthy(State::Degraded, 4), None);
        assert_eq!(healthy(State::Healthy, 4).as_deref(), Some(""));
        for state in [State::Healthy, State::Updating, State::Degraded] {
            assert!(healthy(state, 5).is_some_and(|why| why.contains("revision is now 5")));
        }
        assert!(healthy(State::Stopped, 4).is_some_and(|why| why.contains("service start web")));
        assert!(healthy(State::Removing, 4).is_some_and(|why| why.contains("removed")));
    }

    #[test]
    fn replicas_that_all_have_ended_are_not_waited_for() {
        let mut detail = with(State::Degraded, 4);
        detail.replicas[0].state = Replica::Ended.into();
        detail.replicas[0].message = Some("exit code 3".into());
        assert_eq!(judged(&detail, Goal::Healthy, None), None);
        detail.replicas[1].state = Replica::Ended.into();
        let why = "web.1: exit code 3; it is not started again";
        assert_eq!(judged(&detail, Goal::Healthy, None).as_deref(), Some(why));
        // Those that have done their work count as healthy.
        detail.view.state = State::Healthy.into();
        assert_eq!(judged(&detail, Goal::Healthy, None).as_deref(), Some(""));
        // One that still runs is healthy, but not done.
        assert_eq!(judged(&detail, Goal::Completed, None), None);
        detail.view.existing = 0;
        assert_eq!(judged(&detail, Goal::Completed, None).as_deref(), Some(""));
    }

    #[test]
    fn surplus_replicas_are_waited_for() {
        let mut detail = with(State::Healthy, 4);
        detail.view.existing = 3;
        assert_eq!(judged(&detail, Goal::Healthy, None), None);
    }

    #[test]
    fn an_update_that_goes_back_has_failed_when_that_is_done() {
        let failed = Some(RevisionState::Failed);
        assert_eq!(judged(&with(State::RollingBack, 3), Goal::Healthy, failed), None);
        for state in [State::Healthy, State::Degraded] {
            assert_eq!(
                judged(&with(state, 3), Goal::Healthy, failed).as_deref(),
                Some("revision 4 failed: web.2: exit code 3; it went back to revision 3")
            );
        }
        // Without a rollback, the update goes on.
        let stays = judged(&with(State::Updating, 4), Goal::Healthy, failed);
        assert_eq!(stays.as_deref(), Some("revision 4 failed: web.2: exit code 3"));
    }

    #[test]
    fn an_earlier_failure_of_another_update_does_not_count() {
        let mut detail = with(State::Degraded, 4);
        detail.failed_update = Some("revision 5: web.1: exit code 1".into());
        let reached = Some(RevisionState::Reached);
        assert_eq!(judged(&detail, Goal::Healthy, reached), None);
        detail.view.state = State::Healthy.into();
        assert_eq!(judged(&detail, Goal::Healthy, reached).as_deref(), Some(""));
    }

    #[test]
    fn a_stopped_service_has_no_replicas() {
        let mut detail = with(State::Stopped, 4);
        assert_eq!(judged(&detail, Goal::Stopped, None), None);
        detail.view.existing = 0;
        assert_eq!(judged(&detail, Goal::Stopped, None).as_deref(), Some(""));
        let started = with(State::Healthy, 4);
        assert!(judged(&started, Goal::Stopped, None).is_some_and(|why| why.contains("again")));
        assert_eq!(judged(&with(State::Removing, 4), Goal::Removed, None), None);
        assert!(judged(&started, Goal::Removed, None).is_some_and(|why| why.contains("again")));
    }

    #[test]
    fn what_keeps_replicas_from_working_is_said() {
        let mut detail = example::detail();
        detail.waits_for = vec!["no node\u{1b}".into()];
        detail.replicas[0].message = Some("200 OK".into());
        detail.replicas[1].message = Some("exit code 3\n".into());
        assert_eq!(
            troubles(&detail),
            ["web waits: no node\\u{1b}", "web.2 on node-1 is restarting: exit code 3\\n"]
        );
    }
}
