//! After a restart of the agent: finds the containers of its earlier life, and goes on with them.

use std::time::Duration;

use bollard::models::{ContainerState, ContainerStateStatusEnum as Status, ContainerSummary};
use futures_util::future::join_all;
use podmesh_agent_core::input::{FoundAttempt, RuntimeFact};
use podmesh_protocol::report::Outcome;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::DockerRuntime;
use super::attempt::{has_run, ran_ms, start_failure};
use super::container::{AGENT, Identity};
use super::error::{CallError, DockerError};
use crate::capture::Standing;

/// How long the ends of attempts that are over are waited for: their output is completed first.
const ENDS_WAIT: Duration = Duration::from_secs(10);

/// A container that was started, or that the engine failed to start.
struct Found {
    identity: Identity,
    container: String,
    state: ContainerState,
    failure: Option<Outcome>,
}

impl DockerRuntime {
    /// Finds the containers of an earlier life of this agent, as their labels say. Those that run
    /// are watched and logged from now on, and their ends told as facts. Of those that have
    /// exited the output is completed first; where that takes long, they are listed without
    /// outcome, and their end is told as a fact, too. Containers that never ran are removed and
    /// not listed; those that the engine failed to start are listed with that as their outcome.
    ///
    /// To be called once, before the first [`start`](Self::start); again only after an error.
    ///
    /// # Errors
    /// When the engine does not answer, or does not remove a container that never ran.
    pub async fn adopt(&self) -> Result<Vec<FoundAttempt>, DockerError> {
        if let Err(error) = self.shared.stage.clear() {
            tracing::warn!(%error, "mounts of an earlier life of the agent are left");
        }
        let engine = &self.shared.engine;
        let mut found = Vec::new();
        for (identity, container) in self.find().await.map_err(failed("list the containers"))? {
            let state = match engine.inspect(&container).await {
                Ok(seen) => seen.state.unwrap_or_default(),
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(failed("inspect a container")(error)),
            };
            if state.status == Some(Status::REMOVING) {
                continue;
            }
            let failure = if has_run(&state) { None } else { start_failure(&state) };
            if failure.is_none() && !has_run(&state) {
                let removed = engine.remove(&container).await;
                removed.map_err(failed("remove a container that never ran"))?;
                continue;
            }
            found.push(Found { identity, container, state, failure });
        }
        let until = Instant::now() + ENDS_WAIT;
        Ok(join_all(found.into_iter().map(|found| self.take_up(found, until))).await)
    }

    async fn find(&self) -> Result<Vec<(Identity, String)>, CallError> {
        let agent = self.shared.settings.agent_id;
        let listed = self.shared.engine.list(format!("{AGENT}={agent}")).await?;
        let known = |container: ContainerSummary| {
            let labels = container.labels.unwrap_or_default();
            let names = container.names.unwrap_or_default();
            let identity = names.iter().find_map(|name| Identity::of(&labels, name));
            let Some(identity) = identity.filter(|found| found.agent == agent) else {
                tracing::warn!(?names, "a container has our label, and is not ours; left alone");
                return None;
            };
            if self.shared.cluster().is_some_and(|cluster| cluster != identity.cluster) {
                tracing::warn!(?names, "a container is of another cluster; left alone");
                return None;
            }
            Some((identity, container.id?))
        };
        Ok(listed.into_iter().filter_map(known).collect())
    }

    async fn take_up(&self, found: Found, until: Instant) -> FoundAttempt {
        let Found { identity, container, state, failure } = found;
        let id = identity.attempt;
        let runs = state.running == Some(true);
        let ran_ms = if runs { ran_ms(&state, Some(jiff::Timestamp::now())) } else { 0 };
        let told = |ended| FoundAttempt {
            attempt: id,
            ended,
            started: true,
            outlives_agent: true,
            on_lost: identity.on_lost,
            ran_ms,
        };
        let Some(attempt) = self.shared.register(id) else {
            // An earlier call took it up.
            return told(None);
        };
        self.shared.has_container(id, &container);
        if failure.is_some() {
            return told(failure);
        }
        let standing = if runs { Standing::Running } else { Standing::Exited };
        let captured = attempt.capture(container.clone(), standing).complete;
        let (tell, mut hear) = oneshot::channel();
        let shared = self.shared.clone();
        self.shared.run(id, async move {
            let outcome = attempt.watch(&container, captured, None).await;
            if let Err(outcome) = tell.send(outcome) {
                shared.tell(id, RuntimeFact::Ended(outcome));
            }
        });
        if runs {
            // Its end is told as a fact.
            hear.close();
            return told(None);
        }
        match timeout_at(until, &mut hear).await {
            Ok(outcome) => told(outcome.ok()),
            Err(_) => {
                hear.close();
                // It may have been told just before.
                told(hear.try_recv().ok())
            }
        }
    }
}

fn failed(doing: &'static str) -> impl Fn(CallError) -> DockerError {
    move |error| DockerError::Call { doing, why: error.to_string() }
}
