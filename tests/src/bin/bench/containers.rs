//! Containers compared with a bare loop of create, start, wait and remove with as many in flight.

use std::time::Instant;

use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptions, RemoveContainerOptions, StartContainerOptions,
    WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use podmesh_protocol::spec::{DockerSpec, PullPolicy};
use podmesh_tests::docker::{self, AGENT_LABEL};
use tokio::task::JoinSet;

use crate::rig::{Rig, job};
use crate::table::{Table, median};

const TASKS: u32 = 40;
const IN_FLIGHT: usize = 4;
/// The agent label of the bare loop's containers. It differs from that of every agent.
const BARE: &str = "bench-bare-loop";
const FLAGS: [&str; 4] = ["--cpus", "2", "--docker", "on"];

pub(crate) fn measure(table: &mut Table) {
    let Some(image) = docker::image() else {
        table.figure("containers/s", "skipped: no Docker engine".into(), "0.9");
        return;
    };
    // Remove what a killed run left.
    docker::remove_containers_of(BARE);
    let rig = Rig::new(&["a", "b"], &FLAGS);
    let spec = || {
        let docker = DockerSpec {
            image: image.to_owned(),
            pull: PullPolicy::Never,
            ..DockerSpec::default()
        };
        job(docker.into(), &["true"], TASKS)
    };
    let mut ours = Vec::new();
    let mut bare = Vec::new();
    rig.runtime.block_on(loop_of_containers(image, 4));
    for _ in 0..3 {
        bare.push(rig.runtime.block_on(loop_of_containers(image, TASKS)));
        ours.push(rig.rate(spec()));
    }
    let measure = format!("containers/s ×100, {IN_FLIGHT} in flight, against a bare loop");
    table.ratio(&measure, median(ours) * 100.0, median(bare) * 100.0, "/100 s", "0.9");
}

async fn loop_of_containers(image: &str, tasks: u32) -> f64 {
    let docker = Docker::connect_with_local_defaults().unwrap();
    let start = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        if running.len() == IN_FLIGHT {
            running.join_next().await.unwrap().unwrap();
        }
        running.spawn(one(docker.clone(), image.to_owned()));
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    f64::from(tasks) / start.elapsed().as_secs_f64()
}

async fn one(docker: Docker, image: String) {
    let body = ContainerCreateBody {
        image: Some(image),
        cmd: Some(vec!["true".into()]),
        labels: Some([(AGENT_LABEL.to_owned(), BARE.to_owned())].into()),
        ..ContainerCreateBody::default()
    };
    let created = docker.create_container(None::<CreateContainerOptions>, body).await.unwrap();
    let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
    docker.start_container(&created.id, None::<StartContainerOptions>).await.unwrap();
    // Waiting for `next-exit` could miss a container that exits quickly, and never return.
    let exit = docker.wait_container(&created.id, Some(options)).next().await.unwrap().unwrap();
    assert_eq!(exit.status_code, 0);
    docker.remove_container(&created.id, None::<RemoveContainerOptions>).await.unwrap();
}
