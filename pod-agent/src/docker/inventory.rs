//! What `podmesh demo` and `podmesh dev` must know of this machine's engine.
//!
//! The futures are boxed so that bollard is compiled into this crate only.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::{
    InspectNetworkOptions, ListContainersOptionsBuilder, ListImagesOptionsBuilder,
};
use podmesh_protocol::ids::ClusterId;

use super::DockerError;

type Names = Pin<Box<dyn Future<Output = Result<Vec<String>, DockerError>> + Send>>;

/// Returns the names of all images, sorted. Sets no time limit of its own.
///
/// # Errors
/// [`DockerError::Call`] if the engine does not answer.
pub fn images() -> Names {
    Box::pin(async {
        let docker = Docker::connect_with_defaults().map_err(failed("list its images"))?;
        let options = ListImagesOptionsBuilder::new().build();
        let images = docker.list_images(Some(options)).await.map_err(failed("list its images"))?;
        let mut names: Vec<String> = images.into_iter().flat_map(|image| image.repo_tags).collect();
        names.retain(|name| !name.starts_with("<none>"));
        names.sort();
        Ok(names)
    })
}

/// Returns the ids of the containers that have this cluster in a label, including ended ones. Sets
/// no time limit of its own.
///
/// # Errors
/// [`DockerError::Call`] if the engine does not answer.
pub fn containers(cluster: ClusterId) -> Names {
    Box::pin(async move {
        let failed = || failed("list its containers");
        let docker = Docker::connect_with_defaults().map_err(failed())?;
        let options = ListContainersOptionsBuilder::new().all(true).build();
        let containers = docker.list_containers(Some(options)).await.map_err(failed())?;
        let cluster = cluster.to_string();
        let ours = |labels: &HashMap<String, String>| labels.values().any(|it| *it == cluster);
        let ours =
            containers.into_iter().filter(|container| container.labels.as_ref().is_some_and(ours));
        Ok(ours.filter_map(|container| container.id).collect())
    })
}

/// Returns the address of this machine in the engine's default network, at which its containers reach
/// this machine; `None` if that network has none. Sets no time limit of its own.
///
/// # Errors
/// [`DockerError::Call`] if the engine does not answer.
pub fn bridge_gateway() -> Pin<Box<dyn Future<Output = Result<Option<IpAddr>, DockerError>> + Send>>
{
    Box::pin(async {
        let failed = || failed("describe its default network");
        let docker = Docker::connect_with_defaults().map_err(failed())?;
        let options = None::<InspectNetworkOptions>;
        let network = docker.inspect_network("bridge", options).await.map_err(failed())?;
        let parts = network.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
        Ok(parts.into_iter().find_map(|part| part.gateway?.parse().ok()))
    })
}

fn failed(doing: &'static str) -> impl FnOnce(Error) -> DockerError {
    move |error| DockerError::Call { doing, why: error.to_string() }
}
