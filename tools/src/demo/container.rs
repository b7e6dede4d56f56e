//! The demo's container, where there is an engine with an image at hand.

use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::ListImagesOptionsBuilder;
use podmesh_protocol::ids::TaskId;
use podmesh_protocol::report::JobState;
use podmesh_protocol::spec::{
    ArrayRange, DockerSpec, NetworkMode, PullPolicy, RunSpec, RuntimeKind, RuntimeSpec,
};
use tokio::time::timeout;

use super::mesh::Mesh;
use super::{escape_lines, failed, job, output};
use crate::connect::Connection;
use crate::error::Outcome;
use crate::follow::ended;
use crate::output::screen;
use crate::output::text::escape;
use crate::verbs::submit::send;

/// How long the engine may take to say what images it has.
const ENGINE_LIMIT: Duration = Duration::from_secs(5);
/// Images that surely have a shell, by a part of their name; the first that is there is taken.
const WITH_SHELL: [&str; 8] =
    ["busybox", "alpine", "debian", "ubuntu", "fedora", "rockylinux", "python", "node"];
/// What the container runs.
const SCRIPT: &str = "echo \"task $PODMESH_TASK in a container on $PODMESH_NODE: $(uname -s) $(uname -m)\"";

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
    let spec = job("container", ArrayRange::default(), RunSpec {
        runtime: RuntimeSpec::Docker(container),
        command: ["sh", "-c", SCRIPT].map(String::from).to_vec(),
        env: [].into(),
        workdir: None,
        timeout_ms: Some(60_000),
        stop_grace_ms: 1_000,
    })?;
    let job = send(connection, spec).await?;
    let detail = ended(connection, job).await?;
    mesh.still_runs()?;
    if detail.view.state != JobState::Succeeded {
        return Err(failed(connection, job).await);
    }
    let task = TaskId { job, index: detail.spec.array.first };
    let detail = connection.task(task, None, Duration::ZERO).await?;
    screen::print(&escape_lines(&output(connection, &detail).await?.1))
}

/// An image of this machine that a shell can be run in; else why there is none.
async fn image(connection: &Connection) -> Outcome<Result<String, String>> {
    let nodes = connection.nodes().await?;
    if !nodes.iter().any(|node| node.runtimes.contains(&RuntimeKind::Docker)) {
        return Ok(Err("no Docker engine answers on this machine".into()));
    }
    let names = match timeout(ENGINE_LIMIT, images()).await {
        Ok(Ok(names)) => names,
        Ok(Err(why)) => return Ok(Err(format!("the Docker engine does not say what images it has ({why})"))),
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

async fn images() -> Result<Vec<String>, bollard::errors::Error> {
    let docker = Docker::connect_with_defaults()?;
    let options = ListImagesOptionsBuilder::new().build();
    let mut names: Vec<String> =
        docker.list_images(Some(options)).await?.into_iter().flat_map(|image| image.repo_tags).collect();
    names.retain(|name| !name.starts_with("<none>"));
    names.sort();
    Ok(names)
}
