//! The demo's container, if there is a Docker engine with a suitable image.

use std::time::{Duration, Instant};

use podmesh_agent::docker;
use podmesh_protocol::ids::TaskId;
use podmesh_protocol::report::JobState;
use podmesh_protocol::spec::{
    ArrayRange, DockerSpec, NetworkMode, PullPolicy, RunSpec, RuntimeKind,
};
use tokio::time::{sleep, timeout};

use super::mesh::Mesh;
use super::{escape_lines, failed, job, output};
use crate::connect::Connection;
use crate::error::{CliError, CliResult};
use crate::follow::ended;
use crate::output::screen;
use crate::output::text::escape;
use crate::verbs::submit::send;

/// How long the engine may take to list its images.
const ENGINE_LIMIT: Duration = Duration::from_secs(5);
/// How long the agents may take to remove a container after its end was acknowledged.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);
/// Parts of the names of images that are known to have a shell; the first match is used.
const WITH_SHELL: [&str; 8] =
    ["busybox", "alpine", "debian", "ubuntu", "fedora", "rockylinux", "python", "node"];
/// The script in the container.
const SCRIPT: &str =
    "echo \"task $PODMESH_TASK in a container on $PODMESH_NODE: $(uname -s) $(uname -m)\"";

/// Runs a container and shows its output, or says why it cannot.
///
/// # Errors
/// If there is an image to run, and running it fails.
pub(crate) async fn show(mesh: &mut Mesh, connection: &Connection) -> CliResult<()> {
    let image = match image(connection).await? {
        Ok(image) => image,
        Err(why) => return screen::line(format!("\nNo container was run: {why}.")),
    };
    screen::line(format!("\n$ podmesh run --image {} -- sh -c 'echo …'", escape(&image)))?;
    let container = DockerSpec {
        image,
        entrypoint: Some(Vec::new()),
        network: NetworkMode::None,
        pull: PullPolicy::Never,
        ..DockerSpec::default()
    };
    let spec = job(
        "container",
        ArrayRange::default(),
        RunSpec {
            runtime: container.into(),
            command: ["sh", "-c", SCRIPT].map(String::from).to_vec(),
            env: [].into(),
            workdir: None,
            timeout_ms: Some(60_000),
            stop_grace_ms: 1_000,
            replica: None,
            files: [].into(),
        },
    )?;
    let job = send(connection, spec).await?;
    let detail = ended(connection, job).await?;
    mesh.still_runs()?;
    if detail.view.state != JobState::Succeeded {
        return Err(failed(connection, job).await);
    }
    let task = TaskId { job, index: detail.spec.array.first };
    let detail = connection.task(task, None, Duration::ZERO).await?;
    screen::print(&escape_lines(&output(connection, &detail).await?.1))?;
    removed(connection).await
}

/// Returns an image of this machine in which a shell can run, or the reason why there is none.
async fn image(connection: &Connection) -> CliResult<Result<String, String>> {
    let nodes = connection.nodes().await?;
    if !nodes.iter().any(|node| node.runtimes.contains(&RuntimeKind::Docker.into())) {
        return Ok(Err("no Docker engine responds on this machine".into()));
    }
    let names = match timeout(ENGINE_LIMIT, docker::images()).await {
        Ok(Ok(names)) => names,
        Ok(Err(why)) => {
            return Ok(Err(why.to_string()));
        }
        Err(_) => return Ok(Err("the Docker engine does not respond in time".into())),
    };
    let repository = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
    let known = WITH_SHELL
        .iter()
        .find_map(|part| names.iter().find(|name| repository(name).contains(part)));
    Ok(known.cloned().ok_or_else(|| {
        format!("none of the Docker engine's {} images is known to have a shell, and the demo pulls no image", names.len())
    }))
}

/// Waits until the agents have removed the containers of this mesh.
///
/// # Errors
/// If a container is still there after a while, or the engine does not respond.
pub(super) async fn removed(connection: &Connection) -> CliResult<()> {
    let cluster = connection.info().await?.cluster;
    let began = Instant::now();
    loop {
        let left = match timeout(ENGINE_LIMIT, docker::containers(cluster)).await {
            Ok(Ok(left)) => left,
            Ok(Err(why)) => {
                return Err(
                    CliError::failure("the request to the Docker engine failed").because(why)
                );
            }
            Err(_) => return Err(CliError::failure("the Docker engine does not respond in time")),
        };
        let Some(name) = left.first() else { return Ok(()) };
        if began.elapsed() > REMOVE_LIMIT {
            return Err(CliError::failure(format!("the container {name} was not removed"))
                .hint(format!("remove it: docker rm -f {name}")));
        }
        sleep(Duration::from_millis(50)).await;
    }
}
