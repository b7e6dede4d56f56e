//! Connects the agent to its Docker engine, at the start or later.

use podmesh_agent_core::input::{FoundAttempt, RuntimeFact};
use podmesh_protocol::ids::{AttemptId, ClusterId};
use podmesh_wire::backoff::reconnect_delays;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::config::DockerSwitch;
use crate::docker::{DockerError, DockerRuntime, DockerSettings};

/// A runtime with an engine that answers, and the attempts that an earlier run of the agent left.
pub(crate) type DockerReady = (DockerRuntime, Vec<FoundAttempt>);

/// The state of Docker when the agent starts.
pub(crate) enum DockerStart {
    /// The engine answers.
    Ready(DockerReady),
    /// The engine does not answer yet; the channel reports when it does.
    Later(oneshot::Receiver<DockerReady>),
    /// Docker is switched off.
    None,
}

/// Looks for the engine as configured.
pub(crate) async fn start_docker(
    switch: DockerSwitch,
    settings: DockerSettings,
    cluster: Option<ClusterId>,
    facts: UnboundedSender<(AttemptId, RuntimeFact)>,
) -> DockerStart {
    let connected = connect(settings.clone(), cluster, facts.clone()).await;
    if switch == DockerSwitch::Off {
        // New ones are not taken. Those of an earlier life are looked after all the same.
        return match connected {
            Ok(ready) if !ready.1.is_empty() => DockerStart::Ready(ready),
            Ok(_) | Err(_) => DockerStart::None,
        };
    }
    let error = match connected {
        Ok(ready) => return DockerStart::Ready(ready),
        Err(error) => error,
    };
    // The engine may be started or installed after the agent.
    if switch == DockerSwitch::Auto {
        tracing::info!("this node runs no containers until it has a Docker engine: {error}");
    } else {
        tracing::error!("this node cannot run containers yet: {error}; retrying");
    }
    let (ready, later) = oneshot::channel();
    tokio::spawn(async move {
        let mut ready = ready;
        for delay in reconnect_delays() {
            tokio::select! {
                () = sleep(delay) => {}
                () = ready.closed() => return,
            }
            match connect(settings.clone(), cluster, facts.clone()).await {
                Ok(found) => {
                    // If there is no receiver, the agent has ended.
                    _ = ready.send(found);
                    return;
                }
                Err(error) => tracing::debug!("still no Docker engine: {error}"),
            }
        }
    });
    DockerStart::Later(later)
}

async fn connect(
    settings: DockerSettings,
    cluster: Option<ClusterId>,
    facts: UnboundedSender<(AttemptId, RuntimeFact)>,
) -> Result<DockerReady, DockerError> {
    let docker = DockerRuntime::connect(settings, facts).await?;
    if let Some(cluster) = cluster {
        docker.set_cluster(cluster);
    }
    let found = docker.adopt().await?;
    Ok((docker, found))
}
