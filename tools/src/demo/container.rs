//! The demo's container, where there is an engine with an image at hand.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::{ListContainersOptionsBuilder, ListImagesOptionsBuilder};
use podmesh_protocol::ids::TaskId;
use podmesh_protocol::report::JobState;
use podmesh_protocol::spec::{
    ArrayRange, DockerSpec, NetworkMode, PullPolicy, RunSpec, RuntimeKind, RuntimeSpec,
};
use tokio::time::{sleep, timeout};

use super::mesh::Mesh;
use super::{escape_lines, failed, job, output};
use crate::connect::Connection;
use crate::error::{CliError, Outcome};
use crate::follow::ended;
use crate::output::screen;
use crate::output::text::escape;
use crate::verbs::submit::send;

/// How long the engine may take to say what images it has.
const ENGINE_LIMIT: Duration = Duration::from_secs(5);
/// How long the agents may take to remove a container whose end has been acknowledged.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);
/// Images that surely have a shell, by a part of their name; the first that is there is taken.
const WITH_SHELL: [&str; 8] =
    ["busybox", "alpine", "debian", "ubuntu", "fedora", "rockylinux", "python", "node"];
/// What the container runs.
const SCRIPT: &str =
    "echo \"task $PODMESH_TASK in a container on $PODMESH_NODE: $(uname -s) $(uname -m)\"";

/// Runs a container and shows what it printed, or says why not.
///
/// # Errors
/// When there is an image to run, and running it fails.
pub(crate) async fn show(mesh: &mut Mesh, connection: &Connection) -> Outcome<()> {
    let image = match image(connection).await? {
        Ok(image) => image,
        Err(why) => return screen::line(format!("\nNo container this time: {why}.")),
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
            runtime: RuntimeSpec::Docker(container),
            command: ["sh", "-c", SCRIPT].map(String::from).to_vec(),
            env: [].into(),
            workdir: None,
            timeout_ms: Some(60_000),
            stop_grace_ms: 1_000,
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

/// An image of this machine that a shell can be run in; else why there is none.
async fn image(connection: &Connection) -> Outcome<Result<String, String>> {
    let nodes = connection.nodes().await?;
    if !nodes.iter().any(|node| node.runtimes.contains(&RuntimeKind::Docker)) {
        return Ok(Err("no Docker engine answers on this machine".into()));
    }
    let names = match timeout(ENGINE_LIMIT, images()).await {
        Ok(Ok(names)) => names,
        Ok(Err(why)) => {
            return Ok(Err(format!("the Docker engine does not say what images it has ({why})")));
        }
        Err(_) => return Ok(Err("the Docker engine does not answer in time".into())),
    };
    let repository = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
    let known = WITH_SHELL
        .iter()
        .find_map(|part| names.iter().find(|name| repository(name).contains(part)));
    Ok(known.cloned().ok_or_else(|| {
        format!("the Docker engine has no image that is known to have a shell ({} at hand); none is pulled", names.len())
    }))
}

async fn images() -> Result<Vec<String>, Error> {
    let docker = Docker::connect_with_defaults()?;
    let options = ListImagesOptionsBuilder::new().build();
    let images = docker.list_images(Some(options)).await?;
    let mut names: Vec<String> = images.into_iter().flat_map(|image| image.repo_tags).collect();
    names.retain(|name| !name.starts_with("<none>"));
    names.sort();
    Ok(names)
}

/// Waits until the agents have removed the containers of this mesh.
///
/// # Errors
/// When one is still there after a while, or the engine does not answer.
pub(super) async fn removed(connection: &Connection) -> Outcome<()> {
    let cluster = connection.info().await?.cluster.to_string();
    let began = Instant::now();
    loop {
        let left = match timeout(ENGINE_LIMIT, containers(&cluster)).await {
            Ok(Ok(left)) => left,
            Ok(Err(why)) => {
                return Err(CliError::failure("the Docker engine cannot be asked").because(why));
            }
            Err(_) => return Err(CliError::failure("the Docker engine does not answer in time")),
        };
        let Some(name) = left.first() else { return Ok(()) };
        if began.elapsed() > REMOVE_LIMIT {
            return Err(CliError::failure(format!("the container {name} was not removed"))
                .hint(format!("remove it: docker rm -f {name}")));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// The containers with the cluster in a label.
async fn containers(cluster: &str) -> Result<Vec<String>, Error> {
    let docker = Docker::connect_with_defaults()?;
    let options = ListContainersOptionsBuilder::new().all(true).build();
    let containers = docker.list_containers(Some(options)).await?;
    let ours = |labels: &HashMap<String, String>| labels.values().any(|value| value == cluster);
    let ours =
        containers.into_iter().filter(|container| container.labels.as_ref().is_some_and(ours));
    Ok(ours.filter_map(|container| container.id).collect())
}
