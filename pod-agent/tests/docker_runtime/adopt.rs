//! Restarts of the agent, and trouble with the engine: nothing is lost, nothing comes twice.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters as query;
use podmesh_protocol::ids::ClusterId;
use podmesh_protocol::report::OutcomeKind;
use podmesh_protocol::spec::OnLost;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::support::*;

const PORTIONS: usize = 40;

/// Prints for some seconds: short lines, lines of several pieces, both streams. Ends when it may.
fn printer() -> String {
    format!(
        "long=$(head -c 40000 /dev/zero | tr '\\0' x)
         for k in $(seq 1 {PORTIONS}); do
             seq $((k * 500 - 499)) $((k * 500)); echo $long; echo error $k >&2; sleep 0.1
         done
         {UNTIL_GO}
         exit 6"
    )
}

/// Waits until [`go`] is called.
const UNTIL_GO: &str = "while [ ! -e /tmp/go ]; do sleep 0.05; done";

async fn go(docker: &Docker, container: &str) {
    exec(docker, container, "touch /tmp/go").await;
}

fn check_printed(place: &Place) {
    let long = "x".repeat(40_000);
    let (mut stdout, mut stderr) = (String::new(), String::new());
    for k in 1..=PORTIONS {
        stdout.extend((k * 500 - 499..=k * 500).map(|n| format!("{n}\n")));
        stdout.push_str(&long);
        stdout.push('\n');
        stderr.push_str(&format!("error {k}\n"));
    }
    assert_eq!(place.text(attempt(1), "stderr"), stderr);
    assert!(place.text(attempt(1), "stdout") == stdout, "stdout differs");
}

const CHILD: &str = "PODMESH_TEST_CHILD_DIR";
const CHILD_IDS: &str = "PODMESH_TEST_CHILD_IDS";
const CHILD_STARTS: &str = "PODMESH_TEST_CHILD_STARTS";

/// Not a test of its own: the agent process that other tests start and kill. It goes on with what
/// it finds, or starts an attempt, and writes down its exit code.
#[tokio::test]
async fn agent_in_a_child_process() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let ids = std::env::var(CHILD_IDS).unwrap();
    let (cluster, agent_id) = ids.split_once(' ').unwrap();
    let dir = PathBuf::from(dir);
    let settings =
        settings(agent_id.parse().unwrap(), dir.join("logs"), small_files(), Default::default());
    let mut agent = Agent::new(settings, ClusterId(cluster.parse().unwrap())).await;
    agent.found = agent.runtime.adopt().await.unwrap();
    if let Ok(image) = std::env::var(CHILD_STARTS) {
        agent.start(attempt(1), job(&image, &["sh", "-c", &printer()]));
    } else {
        assert_eq!(agent.found.len(), 1);
    }
    let outcome = match agent.found.pop().and_then(|found| found.ended) {
        Some(outcome) => outcome,
        None => agent.end(attempt(1)).await,
    };
    assert!(agent.gaps().is_empty(), "{:?}", agent.gaps());
    std::fs::write(dir.join("ended"), format!("{:?}", outcome.exit_code)).unwrap();
}

struct AgentProcess(Child);

impl AgentProcess {
    fn spawn(place: &Place, starts: bool, docker_host: Option<&Path>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["adopt::agent_in_a_child_process", "--exact", "--nocapture"])
            .env(CHILD, place.path())
            .env(CHILD_IDS, format!("{} {}", place.cluster, place.agent))
            .stdout(Stdio::null());
        if starts {
            command.env(CHILD_STARTS, &place.image.name);
        }
        if let Some(socket) = docker_host {
            command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        }
        Self(command.spawn().unwrap())
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn small_files() -> podmesh_logrotate::RotationPolicy {
    podmesh_logrotate::RotationPolicy {
        file_bytes_max: 100_000,
        files_max: 1000,
        total_bytes_max: 1 << 30,
        ..Default::default()
    }
}

#[tokio::test]
async fn killed_agents_neither_lose_nor_double_output() {
    if !usable() {
        return;
    }
    let mut place = Place::new();
    place.rotation = small_files();
    for life in 1..=8 {
        // A kill in the middle of whatever it does once there is some more output.
        let agent = AgentProcess::spawn(&place, life == 1, None);
        place.until_printed(attempt(1), "stderr", &format!("error {}\n", life * 3)).await;
        drop(agent);
    }
    let mut agent = place.agent().await;
    assert_eq!(agent.found.len(), 1);
    assert_eq!(agent.found[0].on_lost, OnLost::Requeue);
    assert!(agent.found[0].outlives_agent && agent.found[0].ended.is_none());
    assert!(agent.found[0].ran_ms > 0);
    go(&engine(), &place.container_name(attempt(1))).await;
    assert_eq!(agent.end(attempt(1)).await.exit_code, Some(6));
    check_printed(&place);
    agent.runtime.remove(attempt(1));
    agent.removed(&place).await;
}

#[tokio::test]
async fn an_engine_that_comes_and_goes_is_borne() {
    if !usable() {
        return;
    }
    let mut place = Place::new();
    place.rotation = small_files();
    let socket = place.path().join("engine.sock");
    let path = socket.clone();
    // Between agent and engine: cuts every connection, and is away for a moment, again and again.
    let proxy = tokio::spawn(async move {
        loop {
            let listener = UnixListener::bind(&path).unwrap();
            let mut connections = JoinSet::new();
            let serve = async {
                loop {
                    let (mut from, _) = listener.accept().await.unwrap();
                    connections.spawn(async move {
                        if let Ok(mut to) = UnixStream::connect("/var/run/docker.sock").await {
                            _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                        }
                    });
                }
            };
            _ = tokio::time::timeout(Duration::from_millis(1500), serve).await;
            connections.shutdown().await;
            drop(listener);
            std::fs::remove_file(&path).unwrap();
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    });
    until(|| socket.exists()).await;
    let mut agent = AgentProcess::spawn(&place, true, Some(&socket));
    place.until_printed(attempt(1), "stderr", &format!("error {PORTIONS}\n")).await;
    go(&engine(), &place.container_name(attempt(1))).await;
    until(|| agent.0.try_wait().unwrap().is_some()).await;
    assert!(!proxy.is_finished());
    proxy.abort();
    let ended = std::fs::read_to_string(place.path().join("ended"));
    assert_eq!(ended.unwrap(), "Some(6)");
    check_printed(&place);
}

#[tokio::test]
async fn what_ended_while_no_agent_was_there_is_completed() {
    if !usable() {
        return;
    }
    let place = Place::new();
    let agent = place.agent().await;
    agent.start(attempt(1), place.script(&format!("echo one; {UNTIL_GO}; echo two; exit 3")));
    agent.start(attempt(2), place.job(&["no-such-program"]));
    place.until_printed(attempt(1), "stdout", "one").await;
    let mut agent = agent;
    agent.end(attempt(2)).await;
    drop(agent);
    let docker = engine();
    let name = place.container_name(attempt(1));
    go(&docker, &name).await;
    exited(&docker, &name).await;

    let mut agent = place.agent().await;
    agent.found.sort_by_key(|found| found.attempt);
    let codes: Vec<_> = agent
        .found
        .iter()
        .map(|found| found.ended.as_ref().and_then(|ended| ended.exit_code))
        .collect();
    assert_eq!(codes, [Some(3), Some(127)]);
    let ran = agent.found[0].ended.as_ref().unwrap().ran_ms;
    assert!((50..600_000).contains(&ran), "{ran}");
    assert_eq!(place.text(attempt(1), "stdout"), "one\ntwo\n");
    for index in [1, 2] {
        agent.runtime.remove(attempt(index));
    }
    agent.removed(&place).await;
}

#[tokio::test]
async fn what_never_ran_is_removed_and_what_vanished_is_lost() {
    if !usable() {
        return;
    }
    let place = Place::new();
    let docker = engine();
    let agent = place.agent().await;
    agent.start(attempt(1), place.script("echo here; sleep 600"));
    place.until_printed(attempt(1), "stdout", "here").await;
    // A container just as ours, created by an agent that died before the start.
    let seen = docker.inspect_container(&place.container_name(attempt(1)), None).await.unwrap();
    let mut labels = seen.config.unwrap().labels.unwrap();
    labels.insert("podmesh.task".into(), "1.2".into());
    let body = ContainerCreateBody {
        image: Some(place.image.name.clone()),
        cmd: Some(vec!["true".into()]),
        labels: Some(labels),
        ..ContainerCreateBody::default()
    };
    let name = place.container_name(attempt(2));
    let options = query::CreateContainerOptionsBuilder::default().name(&name).build();
    docker.create_container(Some(options), body).await.unwrap();
    assert_eq!(place.containers().await.len(), 2);
    drop(agent);
    let mut agent = place.agent().await;
    assert_eq!(agent.found.iter().map(|found| found.attempt).collect::<Vec<_>>(), [attempt(1)]);
    assert_eq!(place.containers().await.len(), 1);

    remove(&docker, &place.container_name(attempt(1))).await;
    let outcome = agent.end(attempt(1)).await;
    // The engine kills it first; whether its end is seen before it is gone is up to the engine.
    let seen = outcome.kind == OutcomeKind::Failed && outcome.exit_code == Some(137);
    assert!(seen || outcome.kind == OutcomeKind::Lost, "{outcome:?}");
    assert_eq!(place.text(attempt(1), "stdout").lines().next(), Some("here"));
}
