//! Networks that containers share on this node.
//!
//! A network belongs to this agent, whose id is in its name. It is made for the first container that
//! joins it, and removed after the last one. The engine would remove a network that only containers
//! use which have not started yet, so the users are counted here.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bollard::models::{
    EndpointSettings, NetworkConnectRequest, NetworkCreateRequest, NetworkingConfig,
};
use podmesh_protocol::ids::{AttemptId, Name};
use podmesh_protocol::spec::DockerSpec;
use uuid::Uuid;

use super::container::AGENT;
use super::engine::Engine;
use super::error::CallError;

/// The label of a network with its name in podmesh.
const NETWORK: &str = "podmesh.network";

/// The networks of this agent, and the attempts that use each.
#[derive(Debug)]
pub(super) struct Networks {
    agent: Uuid,
    /// Locked during the calls to the engine, so that no network is removed while a container joins
    /// it.
    users: tokio::sync::Mutex<BTreeMap<Name, BTreeSet<AttemptId>>>,
}

impl Networks {
    pub(super) fn new(agent: Uuid) -> Self {
        Self { agent, users: tokio::sync::Mutex::default() }
    }

    /// Makes the networks that a container joins, unless they exist. They stay until
    /// [`leave`](Self::leave).
    pub(super) async fn join(
        &self,
        engine: &Engine,
        attempt: AttemptId,
        spec: &DockerSpec,
    ) -> Result<(), CallError> {
        if spec.networks.is_empty() {
            return Ok(());
        }
        let mut users = self.users.lock().await;
        for network in spec.networks.keys() {
            users.entry(network.clone()).or_default().insert(attempt);
            let name = self.engine_name(network);
            match engine.network(&name).await {
                Ok(()) => continue,
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
            let labels = HashMap::from([
                (AGENT.to_owned(), self.agent.to_string()),
                (NETWORK.to_owned(), network.to_string()),
            ]);
            let request = NetworkCreateRequest {
                name,
                driver: Some("bridge".into()),
                labels: Some(labels),
                ..NetworkCreateRequest::default()
            };
            match engine.create_network(request).await {
                Err(error) if !error.is_conflict() => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Returns the networks that a container is created with. The engine takes only one before
    /// version 25; [`connect_others`](Self::connect_others) adds the others.
    pub(super) fn first(&self, spec: &DockerSpec) -> Option<(String, NetworkingConfig)> {
        let (network, aliases) = spec.networks.first_key_value()?;
        let name = self.engine_name(network);
        let endpoints = HashMap::from([(name.clone(), endpoint(aliases))]);
        Some((name, NetworkingConfig { endpoints_config: Some(endpoints) }))
    }

    /// Connects a container that has not started yet to all its networks but the first.
    pub(super) async fn connect_others(
        &self,
        engine: &Engine,
        container: &str,
        spec: &DockerSpec,
    ) -> Result<(), CallError> {
        for (network, aliases) in spec.networks.iter().skip(1) {
            let request = NetworkConnectRequest {
                container: container.to_owned(),
                endpoint_config: Some(endpoint(aliases)),
            };
            match engine.connect_network(&self.engine_name(network), request).await {
                // The container was found, and an earlier call has connected it.
                Err(CallError::Refused { message, .. }) if message.contains("already") => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Notes that the container of an attempt is gone, and removes the networks that nothing uses
    /// any more.
    pub(super) async fn leave(&self, engine: &Engine, attempt: AttemptId) {
        let mut users = self.users.lock().await;
        let mut left = Vec::new();
        for (network, attempts) in users.iter_mut() {
            if attempts.remove(&attempt) && attempts.is_empty() {
                left.push(network.clone());
            }
        }
        for network in left {
            users.remove(&network);
            self.remove(engine, &self.engine_name(&network)).await;
        }
    }

    /// Notes the networks of the containers that were found after a start, and removes all others of
    /// this agent.
    pub(super) async fn adopt(
        &self,
        engine: &Engine,
        found: impl Iterator<Item = (AttemptId, BTreeSet<String>)>,
    ) -> Result<(), CallError> {
        let mut users = self.users.lock().await;
        let known: BTreeMap<String, Name> = engine
            .networks(format!("{AGENT}={}", self.agent))
            .await?
            .into_iter()
            .filter_map(|(name, labels)| Some((name, labels.get(NETWORK)?.parse().ok()?)))
            .collect();
        for (attempt, names) in found {
            for network in names.iter().filter_map(|name| known.get(name)) {
                users.entry(network.clone()).or_default().insert(attempt);
            }
        }
        for (name, _) in known.iter().filter(|(_, network)| !users.contains_key(*network)) {
            self.remove(engine, name).await;
        }
        Ok(())
    }

    async fn remove(&self, engine: &Engine, name: &str) {
        if let Err(error) = engine.remove_network(name).await
            && !error.is_not_found()
        {
            tracing::warn!(network = name, %error, "cannot remove a network that nothing uses");
        }
    }

    fn engine_name(&self, network: &Name) -> String {
        format!("podmesh-{:08x}-{network}", self.agent.as_fields().0)
    }
}

fn endpoint(aliases: &[String]) -> EndpointSettings {
    EndpointSettings { aliases: Some(aliases.to_vec()), ..EndpointSettings::default() }
}
