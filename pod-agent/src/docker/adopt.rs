//! Adopts the containers that an earlier run of the agent left.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::{ContainerState, ContainerStateStatusEnum as Status, ContainerSummary};
use podmesh_agent_core::input::{FoundAttempt, RuntimeFact};
use podmesh_agent_core::replica::Replica;
use podmesh_protocol::report::Outcome;
use tokio::time::Instant;

use super::DockerRuntime;
use super::attempt::{has_run, start_failure};
use super::container::{AGENT, Identity, replica_of};
use super::error::{CallError, DockerError};
use super::files;
use crate::capture::{Standing, running_ms};

/// A container that was started, or that the engine failed to start.
struct FoundContainer {
    identity: Identity,
    container: String,
    replica: Option<Replica>,
    state: ContainerState,
    /// The names of its networks.
    networks: BTreeSet<String>,
    failure: Option<Outcome>,
}

impl DockerRuntime {
    /// Finds the containers of an earlier run of this agent by their labels.
    ///
    /// - Running: watched and captured from now on; the end is reported as a fact.
    /// - Exited: the end is reported as a fact, once the output is complete.
    /// - The engine failed to start it: listed with that outcome.
    /// - Never ran: removed, and not listed.
    ///
    /// Call it once, before the first [`start`](Self::start), and again only after an error.
    ///
    /// # Errors
    /// If the engine does not answer, or does not remove a container that never ran.
    pub async fn adopt(&self) -> Result<Vec<FoundAttempt>, DockerError> {
        if let Err(error) = self.shared.stage.clear() {
            tracing::warn!(%error, "cannot release the staged mounts of the agent's previous run");
        }
        let engine = &self.shared.engine;
        let mut found = Vec::new();
        let listed = self.find().await.map_err(failed("list the containers"))?;
        for (identity, container, replica) in listed {
            let (state, networks) = match engine.inspect(&container).await {
                Ok(seen) => {
                    let networks = seen.network_settings.and_then(|found| found.networks);
                    let networks = networks.unwrap_or_default().into_keys().collect();
                    (seen.state.unwrap_or_default(), networks)
                }
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
            found.push(FoundContainer { identity, container, replica, state, networks, failure });
        }
        let networks = found.iter().map(|found| (found.identity.attempt, found.networks.clone()));
        let adopted = self.shared.networks.adopt(engine, networks).await;
        adopted.map_err(failed("list the networks"))?;
        let held: Vec<_> = found.iter().map(|found| found.identity.attempt).collect();
        if let Err(error) = files::keep_only(&self.shared.settings.data_dir, &held) {
            tracing::warn!(%error, "cannot remove the files of attempts of the agent's previous run");
        }
        Ok(found.into_iter().map(|found| self.take_up(found)).collect())
    }

    async fn find(&self) -> Result<Vec<(Identity, String, Option<Replica>)>, CallError> {
        let agent = self.shared.settings.agent_id;
        let listed = self.shared.engine.list(format!("{AGENT}={agent}")).await?;
        let known = |container: ContainerSummary| {
            let labels = container.labels.unwrap_or_default();
            let names = container.names.unwrap_or_default();
            let identity = names.iter().find_map(|name| Identity::of(&labels, name));
            let Some(identity) = identity.filter(|found| found.agent == agent) else {
                tracing::warn!(
                    ?names,
                    "ignoring a container that has this agent's label but is not its own"
                );
                return None;
            };
            if self.shared.cluster().is_some_and(|cluster| cluster != identity.cluster) {
                tracing::warn!(?names, "ignoring a container of another cluster");
                return None;
            }
            Some((identity, container.id?, replica_of(&labels)))
        };
        Ok(listed.into_iter().filter_map(known).collect())
    }

    fn take_up(&self, found: FoundContainer) -> FoundAttempt {
        let FoundContainer { identity, container, replica, state, failure, .. } = found;
        let id = identity.attempt;
        let runs = state.running == Some(true);
        let ran_ms = running_ms(&container, &state).filter(|_| runs);
        let ran_from = ran_ms.and_then(|ms| Instant::now().checked_sub(Duration::from_millis(ms)));
        let replica = replica.filter(|_| runs).map(Arc::new);
        let told = |ended| FoundAttempt {
            attempt: id,
            ended,
            started: true,
            outlives_agent: true,
            on_lost: identity.on_lost,
            ran_ms: ran_ms.unwrap_or(0),
            replica: replica.clone(),
        };
        let Some(attempt) = self.shared.register(id, identity.timeout_ms) else {
            // An earlier call took it up.
            return told(None);
        };
        self.shared.has_container(id, &container);
        if failure.is_some() {
            return told(failure);
        }
        let standing = if runs { Standing::Running } else { Standing::Exited };
        let captured = attempt.capture(container.clone(), standing).complete;
        let shared = self.shared.clone();
        self.shared.run(id, async move {
            let outcome = attempt.watch(&container, captured, ran_from).await;
            shared.tell(id, RuntimeFact::Ended(outcome));
        });
        told(None)
    }
}

fn failed(doing: &'static str) -> impl Fn(CallError) -> DockerError {
    move |error| DockerError::Call { doing, why: error.to_string() }
}
