//! How the agent comes to its Docker engine: at the start, or later.

use podmesh_agent_core::input::{FoundAttempt, RuntimeFact};
use podmesh_protocol::ids::{AttemptId, ClusterId};
use podmesh_wire::backoff::reconnect_delays;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::config::DockerSwitch;
use crate::docker::{DockerError, DockerRuntime, DockerSettings};

/// A Docker engine that answers, and the attempts of an earlier life of the agent in it.
pub(crate) type DockerReady = (DockerRuntime, Vec<FoundAttempt>);

/// Docker at the start of the agent.
pub(crate) enum DockerStart {
    /// It is there.
    Ready(DockerReady),
    /// It will be told when it is there.
    Later(oneshot::Receiver<DockerReady>),
    /// There is none.
    None,
}

/// Looks for the engine, as the switch says.
pub(crate) async fn start_docker(
    switch: DockerSwitch,
    settings: DockerSettings,
    cluster: Option<ClusterId>,
    facts: UnboundedSender<(AttemptId, RuntimeFact)>,
) -> DockerStart {
    if switch == DockerSwitch::Off {
        return DockerStart::None;
    }
    let error = match connect(settings.clone(), cluster, facts.clone()).await {
        Ok(ready) => return DockerStart::Ready(ready),
        Err(error) => error,
    };
    // An engine can be started, or installed, after the agent.
    if switch == DockerSwitch::Auto {
        tracing::info!("this node takes no containers until there is an engine: {error}");
    } else {
        tracing::error!("this node takes no containers yet: {error}; retrying");
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
                    // Without a receiver the agent has ended.
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
