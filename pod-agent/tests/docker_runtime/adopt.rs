//! Restarts of the agent, and trouble with the engine: nothing is lost, nothing comes twice.

use std::path::PathBuf;
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

fn small_files() -> podmesh_logrotate::RotationPolicy {
    podmesh_logrotate::RotationPolicy {
        file_bytes_max: 100_000,
        files_max: 1000,
        total_bytes_max: 1 << 30,
        ..Default::default()
    }
}

#[tokio::test]
async fn agents_that_come_and_go_neither_lose_nor_double_output() {
    if !usable() {
        return;
    }
    let mut place = Place::new();
    place.rotation = small_files();
    let first = place.agent().await;
    first.start(attempt(1), place.script(&printer()));
    let mut agent = Some(first);
    for life in 1..=8 {
        place.until_printed(attempt(1), "stderr", &format!("error {}\n", life * 3)).await;
        // As a kill: it ends in the middle of whatever it does.
        drop(agent.take());
        let next = place.agent().await;
        assert_eq!(next.found.len(), 1);
        assert_eq!(next.found[0].on_lost, OnLost::Requeue);
        assert!(next.found[0].outlives_agent && next.found[0].ended.is_none());
        agent = Some(next);
    }
    let mut agent = agent.unwrap();
    go(&engine(), &place.container_name(attempt(1))).await;
    assert_eq!(agent.end(attempt(1)).await.exit_code, Some(6));
    check_printed(&place);
    assert!(place.gaps().is_empty(), "{:?}", place.gaps());
    agent.runtime.remove(attempt(1));
    agent.removed(&place).await;
}

#[tokio::test]
async fn a_capture_that_died_leaves_a_mark_and_another_goes_on() {
    if !usable() {
        return;
    }
    let mut place = Place::new();
    let agent = place.agent().await;
    let script = format!("echo before; {UNTIL_GO}; echo after; exit 3");
    agent.start(attempt(1), place.script(&script));
    place.until_printed(attempt(1), "stdout", "before").await;
    drop(agent);
    place.lose_captures();
    let mut agent = place.agent().await;
    place.until_printed(attempt(1), "stdout", "podmesh").await;
    go(&engine(), &place.container_name(attempt(1))).await;
    assert_eq!(agent.end(attempt(1)).await.exit_code, Some(3));
    let text = place.text(attempt(1), "stdout");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines[0], lines[2], lines.len()), ("before", "after", 3), "{text}");
    assert!(lines[1].starts_with("[podmesh: output may be missing here"), "{text}");
    assert_eq!(place.gaps().len(), 1);
}

/// A connection to the engine that is cut, and away for a moment, again and again.
async fn cut_again_and_again(path: PathBuf) {
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
}

const CHILD: &str = "PODMESH_TEST_CHILD_DIR";

/// Not a test of its own: an agent that has the engine behind [`cut_again_and_again`].
#[tokio::test]
async fn agent_in_a_child_process() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let ids = std::env::var("PODMESH_TEST_CHILD_IDS").unwrap();
    let (cluster, agent_id) = ids.split_once(' ').unwrap();
    let image = std::env::var("PODMESH_TEST_CHILD_IMAGE").unwrap();
    let dir = PathBuf::from(dir);
    let captures = captures(dir.join("logs"), small_files(), Default::default());
    let settings = settings(agent_id.parse().unwrap(), captures, Default::default());
    let mut agent = Agent::new(settings, ClusterId(cluster.parse().unwrap())).await;
    agent.start(attempt(1), job(&image, &["sh", "-c", &printer()]));
    let outcome = agent.end(attempt(1)).await;
    std::fs::write(dir.join("ended"), format!("{:?}", outcome.exit_code)).unwrap();
}

/// Ended when it is dropped.
struct AgentProcess(Child);

impl Drop for AgentProcess {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[tokio::test]
async fn an_engine_that_comes_and_goes_is_borne_and_what_is_missing_is_marked() {
    if !usable() {
        return;
    }
    let mut place = Place::new();
    place.rotation = small_files();
    let socket = place.path().join("engine.sock");
    let proxy = tokio::spawn(cut_again_and_again(socket.clone()));
    until(|| socket.exists()).await;
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["adopt::agent_in_a_child_process", "--exact", "--nocapture"])
        .env(CHILD, place.path())
        .env("PODMESH_TEST_CHILD_IDS", format!("{} {}", place.cluster, place.agent))
        .env("PODMESH_TEST_CHILD_IMAGE", &place.image.name)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .stdout(Stdio::null())
        .spawn();
    let mut agent = AgentProcess(child.unwrap());
    let (docker, name) = (engine(), place.container_name(attempt(1)));
    place.until_printed(attempt(1), "stderr", &format!("error {PORTIONS}\n")).await;
    go(&docker, &name).await;
    until(|| agent.0.try_wait().unwrap().is_some()).await;
    assert!(!proxy.is_finished());
    proxy.abort();
    let ended = std::fs::read_to_string(place.path().join("ended"));
    assert_eq!(ended.unwrap(), "Some(6)");
    // Numbers only grow, and where one is left out there is a mark.
    let text = place.text(attempt(1), "stdout");
    let is_mark = |line: &str| line.starts_with("[podmesh: output may be missing");
    let lines: Vec<_> = text.lines().collect();
    let (mut last, mut is_marked) = (0, false);
    for (at, line) in lines.iter().enumerate() {
        if is_mark(line) {
            is_marked = true;
            continue;
        }
        // A line beside a mark can be a part of one.
        let beside = [at.checked_sub(1), Some(at + 1)];
        let beside = beside.into_iter().flatten().filter_map(|at| lines.get(at));
        if beside.clone().any(|line| is_mark(line)) {
            continue;
        }
        if let Ok(number) = line.parse::<u32>() {
            assert!(number > last, "{number} after {last}");
            assert!(number == last + 1 || is_marked, "{number} after {last} without a mark");
            (last, is_marked) = (number, false);
        }
    }
    assert_eq!(last, 20_000);
    assert!(lines.iter().any(|line| is_mark(line)), "no connection was cut");
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
