//! Restarts of the agent and failures of the engine: nothing is lost or duplicated.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters as query;
use podmesh_protocol::ids::ClusterId;
use podmesh_protocol::report::OutcomeKind;
use podmesh_protocol::spec::OnLost;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::support::*;

const PORTIONS: usize = 40;

/// Returns a script that prints short and long lines on both streams for some seconds, and ends
/// after [`go`].
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

/// A shell command that waits for [`go`].
const UNTIL_GO: &str = "while [ ! -e /tmp/go ]; do sleep 0.05; done";

async fn go(docker: &Docker, container: &str) {
    exec(docker, container, "touch /tmp/go").await;
}

fn check_printed(node: &TestNode) {
    let long = "x".repeat(40_000);
    let (mut stdout, mut stderr) = (String::new(), String::new());
    for k in 1..=PORTIONS {
        stdout.extend((k * 500 - 499..=k * 500).map(|n| format!("{n}\n")));
        stdout.push_str(&long);
        stdout.push('\n');
        stderr.push_str(&format!("error {k}\n"));
    }
    assert_eq!(node.text(attempt(1), "stderr"), stderr);
    assert!(node.text(attempt(1), "stdout") == stdout, "stdout differs");
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
async fn restarts_of_the_agent_neither_lose_nor_duplicate_output() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    node.rotation = small_files();
    let first = node.agent().await;
    first.start(attempt(1), node.script(&printer()));
    let mut agent = Some(first);
    for life in 1..=8 {
        node.until_printed(attempt(1), "stderr", &format!("error {}\n", life * 3)).await;
        // Like a kill: it ends in the middle of its work.
        drop(agent.take());
        let next = node.agent().await;
        assert_eq!(next.found.len(), 1);
        assert_eq!(next.found[0].on_lost, OnLost::Requeue);
        assert!(next.found[0].outlives_agent && next.found[0].ended.is_none());
        agent = Some(next);
    }
    let mut agent = agent.unwrap();
    go(&engine(), &node.container_name(attempt(1))).await;
    assert_eq!(agent.end(attempt(1)).await.exit_code, Some(6));
    check_printed(&node);
    assert!(node.gaps().is_empty(), "{:?}", node.gaps());
    agent.runtime.remove(attempt(1));
    agent.removed(&node).await;
}

#[tokio::test]
async fn a_new_capture_marks_the_gap_that_a_failed_one_left() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    let agent = node.agent().await;
    let script = format!("echo before; {UNTIL_GO}; echo after; exit 3");
    agent.start(attempt(1), node.script(&script));
    node.until_printed(attempt(1), "stdout", "before").await;
    drop(agent);
    node.lose_captures();
    let mut agent = node.agent().await;
    node.until_printed(attempt(1), "stdout", "podmesh").await;
    go(&engine(), &node.container_name(attempt(1))).await;
    assert_eq!(agent.end(attempt(1)).await.exit_code, Some(3));
    let text = node.text(attempt(1), "stdout");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines[0], lines[2], lines.len()), ("before", "after", 3), "{text}");
    assert!(lines[1].starts_with("[podmesh: output may be missing here"), "{text}");
    assert_eq!(node.gaps().len(), 1);
}

/// Proxies connections to the engine, and repeatedly cuts them and stays away for a moment.
async fn unstable_proxy(path: PathBuf) {
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

/// Not a test by itself: an agent that uses the engine through [`unstable_proxy`].
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

/// An agent's process. Killed when dropped.
struct AgentProcess(Child);

impl Drop for AgentProcess {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[tokio::test]
async fn lost_connections_to_the_engine_are_restored_and_gaps_are_marked() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    node.rotation = small_files();
    let socket = node.path().join("engine.sock");
    let proxy = tokio::spawn(unstable_proxy(socket.clone()));
    until(|| socket.exists()).await;
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["adopt::agent_in_a_child_process", "--exact", "--nocapture"])
        .env(CHILD, node.path())
        .env("PODMESH_TEST_CHILD_IDS", format!("{} {}", node.cluster, node.agent))
        .env("PODMESH_TEST_CHILD_IMAGE", &node.image.name)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .stdout(Stdio::null())
        .spawn();
    let mut agent = AgentProcess(child.unwrap());
    let (docker, name) = (engine(), node.container_name(attempt(1)));
    node.until_printed(attempt(1), "stderr", &format!("error {PORTIONS}\n")).await;
    go(&docker, &name).await;
    until(|| agent.0.try_wait().unwrap().is_some()).await;
    assert!(!proxy.is_finished());
    proxy.abort();
    let ended = std::fs::read_to_string(node.path().join("ended"));
    assert_eq!(ended.unwrap(), "Some(6)");
    // Numbers only grow, and every missing number has a mark.
    let text = node.text(attempt(1), "stdout");
    let is_mark = |line: &str| line.starts_with("[podmesh: output may be missing");
    let lines: Vec<_> = text.lines().collect();
    let (mut last, mut is_marked) = (0, false);
    for (at, line) in lines.iter().enumerate() {
        if is_mark(line) {
            is_marked = true;
            continue;
        }
        // A line next to a mark can be incomplete.
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
async fn containers_that_ended_while_no_agent_ran_are_reported_with_complete_output() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let agent = node.agent().await;
    agent.start(attempt(1), node.script(&format!("echo one; {UNTIL_GO}; echo two; exit 3")));
    agent.start(attempt(2), node.job(&["no-such-program"]));
    node.until_printed(attempt(1), "stdout", "one").await;
    let mut agent = agent;
    agent.end(attempt(2)).await;
    drop(agent);
    let docker = engine();
    let name = node.container_name(attempt(1));
    go(&docker, &name).await;
    exited(&docker, &name).await;

    let mut agent = node.agent().await;
    agent.found.sort_by_key(|found| found.attempt);
    let ended: Vec<_> = agent.found.iter().map(|found| found.ended.clone()).collect();
    assert_eq!(ended[1].as_ref().unwrap().exit_code, Some(127), "it never was started");
    assert_eq!(ended[0], None, "its output is completed first");
    let outcome = agent.end(attempt(1)).await;
    assert_eq!(outcome.exit_code, Some(3));
    assert!((50..600_000).contains(&outcome.ran_ms), "{outcome:?}");
    assert_eq!(node.text(attempt(1), "stdout"), "one\ntwo\n");
    for index in [1, 2] {
        agent.runtime.remove(attempt(index));
    }
    agent.removed(&node).await;
}

#[tokio::test]
async fn containers_that_never_ran_are_removed_and_vanished_ones_are_lost() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let docker = engine();
    let agent = node.agent().await;
    agent.start(attempt(1), node.script("echo here; sleep 600"));
    node.until_printed(attempt(1), "stdout", "here").await;
    // Like a container of ours that was created by an agent that died before the start.
    let seen = docker.inspect_container(&node.container_name(attempt(1)), None).await.unwrap();
    let mut labels = seen.config.unwrap().labels.unwrap();
    labels.insert("podmesh.task".into(), "1.2".into());
    let body = ContainerCreateBody {
        image: Some(node.image.name.clone()),
        cmd: Some(vec!["true".into()]),
        labels: Some(labels),
        ..ContainerCreateBody::default()
    };
    let name = node.container_name(attempt(2));
    let options = query::CreateContainerOptionsBuilder::default().name(&name).build();
    docker.create_container(Some(options), body).await.unwrap();
    assert_eq!(node.containers().await.len(), 2);
    drop(agent);
    let mut agent = node.agent().await;
    assert_eq!(agent.found.iter().map(|found| found.attempt).collect::<Vec<_>>(), [attempt(1)]);
    assert_eq!(node.containers().await.len(), 1);

    remove(&docker, &node.container_name(attempt(1))).await;
    let outcome = agent.end(attempt(1)).await;
    // The engine kills it first. Whether its end is seen before it is gone depends on the engine.
    let seen = outcome.kind == OutcomeKind::Failed && outcome.exit_code == Some(137);
    assert!(seen || outcome.kind == OutcomeKind::Lost, "{outcome:?}");
    assert_eq!(node.text(attempt(1), "stdout").lines().next(), Some("here"));
}

#[tokio::test]
async fn a_timeout_is_enforced_while_no_agent_is_running() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    for supervisor_dies in [false, true] {
        let index = 1 + u32::from(supervisor_dies);
        let agent = node.agent().await;
        let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done";
        let mut job = node.script(script);
        job.run.timeout_ms = Some(2_000);
        agent.start(attempt(index), job);
        node.until_printed(attempt(index), "stdout", "up").await;
        drop(agent);
        if supervisor_dies {
            // The label tells the next agent the timeout.
            node.lose_captures();
            drop(node.agent().await);
        }
        exited(&engine(), &node.container_name(attempt(index))).await;
        assert!(node.text(attempt(index), "stdout").ends_with("bye\n"));
        let mut agent = node.agent().await;
        let found = agent.found.iter().find(|found| found.attempt == attempt(index)).unwrap();
        let outcome = match found.ended.clone() {
            Some(outcome) => outcome,
            None => agent.end(attempt(index)).await,
        };
        assert_eq!((outcome.kind, outcome.exit_code), (OutcomeKind::TimedOut, Some(5)));
        assert!(outcome.message.unwrap().contains("its timeout of 2 s"));
        agent.runtime.remove(attempt(index));
    }
}

/// Proxies connections to the engine, and changes the start times of containers to a thousand years ago.
async fn engine_with_another_clock(path: PathBuf) {
    const BEFORE_YEAR: &[u8] = b"\"StartedAt\":\"";
    let listener = UnixListener::bind(&path).unwrap();
    loop {
        let (from, _) = listener.accept().await.unwrap();
        let to = UnixStream::connect("/var/run/docker.sock").await.unwrap();
        let ((mut request, mut answer), (mut answered, mut asked)) =
            (from.into_split(), to.into_split());
        tokio::spawn(async move { tokio::io::copy(&mut request, &mut asked).await });
        tokio::spawn(async move {
            let (mut matched, mut block) = (0, vec![0; 4096]);
            while let Ok(length @ 1..) = answered.read(&mut block).await {
                for byte in &mut block[..length] {
                    if matched == BEFORE_YEAR.len() && *byte == b'2' {
                        *byte = b'1';
                    }
                    let goes_on = BEFORE_YEAR.get(matched) == Some(byte);
                    matched = if goes_on { matched + 1 } else { usize::from(*byte == b'"') };
                }
                if answer.write_all(&block[..length]).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Not a test by itself: an agent that uses the engine through [`engine_with_another_clock`].
#[tokio::test]
async fn adopting_agent_in_a_child_process() {
    let Ok(dir) = std::env::var("PODMESH_TEST_ADOPTING_DIR") else { return };
    let ids = std::env::var("PODMESH_TEST_CHILD_IDS").unwrap();
    let (cluster, agent_id) = ids.split_once(' ').unwrap();
    let dir = PathBuf::from(dir);
    let captures = captures(dir.join("logs"), small_files(), Default::default());
    let settings = settings(agent_id.parse().unwrap(), captures, Default::default());
    let agent = Agent::new(settings, ClusterId(cluster.parse().unwrap())).await;
    let found = agent.runtime.adopt().await.unwrap();
    std::fs::write(dir.join("ran"), found[0].ran_ms.to_string()).unwrap();
}

#[tokio::test]
async fn the_run_time_of_a_container_does_not_depend_on_a_wall_clock() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let socket = node.path().join("engine.sock");
    let proxy = tokio::spawn(engine_with_another_clock(socket.clone()));
    let agent = node.agent().await;
    let before = Instant::now();
    agent.start(attempt(1), node.script("echo up; sleep 600"));
    node.until_printed(attempt(1), "stdout", "up").await;
    let runs = Instant::now();
    drop(agent);
    until(|| socket.exists()).await;
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["adopt::adopting_agent_in_a_child_process", "--exact", "--nocapture"])
        .env("PODMESH_TEST_ADOPTING_DIR", node.path())
        .env("PODMESH_TEST_CHILD_IDS", format!("{} {}", node.cluster, node.agent))
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .stdout(Stdio::null())
        .spawn();
    let mut agent = AgentProcess(child.unwrap());
    let least = runs.elapsed();
    until(|| agent.0.try_wait().unwrap().is_some()).await;
    assert!(!proxy.is_finished());
    proxy.abort();
    let ran = std::fs::read_to_string(node.path().join("ran")).unwrap();
    let ran = Duration::from_millis(ran.parse().unwrap());
    // The kernel's resolution is a hundredth of a second.
    let tick = Duration::from_millis(10);
    assert!((least..=before.elapsed() + tick).contains(&ran), "{ran:?}");
}
