//! Named volumes: their names in the engine, whose they are, and how they are removed.

use std::time::Duration;

use podmesh_protocol::ids::{ClusterId, Name};
use podmesh_protocol::spec::DockerSpec;
use tokio::time::{Instant, sleep};

use super::container::CLUSTER;
use super::engine::Engine;
use super::error::CallError;

/// How long a volume may still be in use: the engine removes a container a moment after its end.
const IN_USE: Duration = Duration::from_secs(5);
/// The time between two tries to remove it.
const PAUSE: Duration = Duration::from_millis(250);

/// Returns the name of a volume in the engine.
pub(super) fn engine_name(volume: &Name) -> String {
    format!("podmesh-{volume}")
}

/// Checks that the volumes of a container are not those of another cluster.
///
/// # Errors
/// Which one is, as a message for people.
pub(super) async fn check(
    engine: &Engine,
    cluster: ClusterId,
    spec: &DockerSpec,
) -> Result<(), String> {
    for mount in &spec.volumes {
        let name = engine_name(&mount.volume);
        match engine.volume_labels(&name).await {
            Ok(labels) => belongs(&name, labels.get(CLUSTER).map(String::as_str), cluster)?,
            // It is made together with the container.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(format!("cannot look at volume {name}: {error}")),
        }
    }
    Ok(())
}

fn belongs(name: &str, label: Option<&str>, cluster: ClusterId) -> Result<(), String> {
    if label == Some(cluster.to_string().as_str()) {
        return Ok(());
    }
    Err(format!(
        "the Docker volume {name} exists, but not from this cluster; use a volume with another name, or remove it on the node (`docker volume rm {name}`)"
    ))
}

/// Removes a volume with its data. It is no error if there is none.
///
/// # Errors
/// Why it is still there, as a message for people.
pub(super) async fn remove(
    engine: &Engine,
    cluster: ClusterId,
    volume: &Name,
) -> Result<(), String> {
    let name = engine_name(volume);
    match engine.volume_labels(&name).await {
        Ok(labels) => belongs(&name, labels.get(CLUSTER).map(String::as_str), cluster)?,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error.to_string()),
    }
    let deadline = Instant::now() + IN_USE;
    loop {
        match engine.remove_volume(&name).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_not_found() => return Ok(()),
            Err(CallError::Refused { status: 409, .. }) if Instant::now() < deadline => {
                sleep(PAUSE).await;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}
