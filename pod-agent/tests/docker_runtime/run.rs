//! Running, stopping and configuring containers with a real engine.

use std::collections::HashMap;

use crate::support::*;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters as query;
use podmesh_agent_core::input::RuntimeFact;
use podmesh_protocol::report::OutcomeKind;
use podmesh_protocol::spec::{NetworkMode, PullPolicy};

#[tokio::test]
async fn exit_codes_are_those_of_docker_run() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    for (index, command, code) in [
        (1, vec!["true"], 0),
        (2, vec!["sh", "-c", "exit 3"], 3),
        (3, vec!["no-such-program"], 127),
        (4, vec!["/etc/passwd"], 126),
    ] {
        let outcome = agent.run(attempt(index), node.job(&command)).await;
        assert_eq!(outcome.exit_code, Some(code), "{command:?}: {outcome:?}");
        let kind = if code == 0 { OutcomeKind::Succeeded } else { OutcomeKind::Failed };
        assert_eq!(outcome.kind, kind, "{command:?}");
        let ran = !matches!(code, 126 | 127);
        assert_eq!(agent.heard(attempt(index)).contains(&RuntimeFact::Started), ran, "{command:?}");
        assert_eq!(outcome.message.is_none(), ran, "{command:?}: {outcome:?}");
        // Nothing printed, nothing created.
        assert_eq!(node.output(attempt(index), "stdout"), None);
        agent.runtime.remove(attempt(index));
    }
    agent.removed(&node).await;
    assert!(!node.logs_dir().exists());
}

#[tokio::test]
async fn a_container_is_configured_as_the_job_requests() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    let mut job = node.job(&["-c", "echo $A; echo $PODMESH_TASK_INDEX $PODMESH_JOB $PODMESH_NODE; pwd; id -u; id -g; cat /sys/class/net/*/address"]);
    job.run.env.insert("A".into(), "b = c".into());
    job.run.env.insert("PODMESH_NODE".into(), "forged".into());
    job.run.workdir = Some("/in".into());
    docker_spec(&mut job).entrypoint = Some(vec!["sh".into()]);
    docker_spec(&mut job).user = Some("work".into());
    docker_spec(&mut job).network = NetworkMode::None;
    let outcome = agent.run(attempt(7), job).await;
    assert_eq!(outcome.exit_code, Some(0), "{outcome:?} {}", node.text(attempt(7), "stderr"));
    assert_eq!(
        node.text(attempt(7), "stdout"),
        "b = c\n7 1 test-node\n/in\n1234\n1234\n00:00:00:00:00:00\n"
    );

    let mut job = node.script("exit 4");
    docker_spec(&mut job).entrypoint = Some(Vec::new());
    job.resources.memory_bytes = 64 << 20;
    job.resources.cpu_millis = 500;
    assert_eq!(agent.run(attempt(8), job).await.exit_code, Some(4));
    let seen = engine().inspect_container(&node.container_name(attempt(8)), None).await.unwrap();
    let limits: HostConfig = seen.host_config.unwrap();
    assert_eq!((limits.memory, limits.memory_swap), (Some(64 << 20), Some(64 << 20)));
    assert_eq!(limits.nano_cpus, Some(500_000_000));
    assert_eq!(limits.auto_remove, Some(false));
    assert_ne!(limits.privileged, Some(true));
    let labels: HashMap<_, _> = seen.config.unwrap().labels.unwrap();
    let (cluster, agent_id) = (node.cluster.to_string(), node.agent.to_string());
    for (label, value) in [
        ("podmesh.cluster", cluster.as_str()),
        ("podmesh.agent", &agent_id),
        ("podmesh.node", "test-node"),
        ("podmesh.job", "1"),
        ("podmesh.task", "1.8"),
        ("podmesh.attempt", "1"),
        ("podmesh.on_lost", "requeue"),
        ("podmesh.job_name", "test-job"),
    ] {
        assert_eq!(labels.get(label).map(String::as_str), Some(value), "{label}");
    }
}

#[tokio::test]
async fn running_out_of_memory_is_reported() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    let limited = |script: &str| {
        let mut job = node.script(script);
        job.resources.memory_bytes = 16 << 20;
        job
    };
    let hungry = "dd if=/dev/zero of=/dev/null bs=200M count=1";
    let killed = agent.run(attempt(100), limited(&format!("exec {hungry}"))).await;
    assert!(killed.oom_killed && killed.exit_code == Some(137), "{killed:?}");
    let job = limited(&format!("{hungry}; echo went on"));
    // A busy engine may notice it after the end of the container: then nobody can know it.
    let mut outcome = agent.run(attempt(1), job.clone()).await;
    for number in 2..=20 {
        if !outcome.oom_killed {
            outcome = agent.run(attempt(number), job.clone()).await;
        }
    }
    assert!(outcome.oom_killed, "{outcome:?}");
    // The shell survived, so the exit code is its own.
    assert_eq!(outcome.exit_code, Some(0));
    assert_eq!(node.text(attempt(1), "stdout"), "went on\n");
}

#[tokio::test]
async fn a_stop_gives_grace_and_then_kills() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    let script = |on_term: &str| {
        node.script(&format!("trap '{on_term}' TERM; echo ready; while :; do sleep 0.1; done"))
    };
    for (index, on_term, grace_ms, code) in
        [(1, "exit 5", 60_000, 5), (2, "", 700, 137), (3, "exit 5", 0, 137)]
    {
        agent.start(attempt(index), script(on_term));
        node.until_printed(attempt(index), "stdout", "ready").await;
        agent.runtime.stop(attempt(index), grace_ms);
        let outcome = agent.end(attempt(index)).await;
        assert_eq!(outcome.exit_code, Some(code), "{on_term:?} {grace_ms}: {outcome:?}");
    }
    // A second stop with less grace does not wait for the first.
    agent.start(attempt(4), script(""));
    node.until_printed(attempt(4), "stdout", "ready").await;
    agent.runtime.stop(attempt(4), 3_600_000);
    agent.runtime.stop(attempt(4), 0);
    assert_eq!(agent.end(attempt(4)).await.exit_code, Some(137));
    // One that has ended is left alone.
    agent.runtime.stop(attempt(4), 0);
    // One whose start was just requested never starts, or is stopped.
    agent.start(attempt(5), script("exit 0"));
    agent.runtime.stop(attempt(5), 0);
    assert_eq!(agent.end(attempt(5)).await.kind, OutcomeKind::Failed);
    for index in 1..=5 {
        agent.runtime.remove(attempt(index));
    }
    agent.removed(&node).await;
}

#[tokio::test]
async fn the_error_for_a_missing_image_names_it() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    // Nothing listens there.
    let image = "127.0.0.1:1/no/such-image:7";
    for (index, policy) in
        [(1, PullPolicy::Missing), (2, PullPolicy::Always), (3, PullPolicy::Never)]
    {
        let mut job = job(image, &["true"]);
        docker_spec(&mut job).pull = policy;
        let outcome = agent.run(attempt(index), job).await;
        let said = outcome.message.unwrap();
        assert_eq!(outcome.exit_code, Some(125));
        assert!(said.contains(image) && said.contains("test-node"), "{said}");
        let pulls = agent
            .heard(attempt(index))
            .contains(&RuntimeFact::Preparing(format!("pulling image {image}")));
        assert_eq!(pulls, policy != PullPolicy::Never);
    }
    let outcome = agent.run(attempt(4), job("Not An Image", &["true"])).await;
    assert_eq!(outcome.exit_code, Some(125), "{outcome:?}");
}

#[tokio::test]
async fn a_pull_can_be_stopped() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    // A registry that accepts connections and never answers.
    let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let image = format!("{}/silent:1", registry.local_addr().unwrap());
    agent.start(attempt(1), job(&image, &["true"]));
    let call = within(registry.accept()).await.unwrap();
    agent.runtime.stop(attempt(1), 10_000);
    let outcome = agent.end(attempt(1)).await;
    assert_eq!((outcome.kind, outcome.exit_code), (OutcomeKind::Failed, None));
    assert!(outcome.message.unwrap().contains("stopped"));
    drop(call);
}

#[tokio::test]
async fn an_attempt_has_only_one_container() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let counted = "echo run; while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 9";
    let first = node.agent().await;
    first.start(attempt(1), node.script(counted));
    node.until_printed(attempt(1), "stdout", "run").await;
    drop(first);
    // An agent that does not know the container is told to start the attempt again.
    let mut second = node.blind_agent().await;
    second.start(attempt(1), node.script(counted));
    second.started(attempt(1)).await;
    assert_eq!(node.containers().await.len(), 1);
    second.runtime.stop(attempt(1), 0);
    assert_eq!(second.end(attempt(1)).await.exit_code, Some(137));
    drop(second);
    // It does not run again after it has ended either.
    let mut third = node.blind_agent().await;
    assert_eq!(third.run(attempt(1), node.script(counted)).await.exit_code, Some(137));
    assert_eq!(node.text(attempt(1), "stdout"), "run\n");
}

#[tokio::test]
async fn containers_that_are_not_ours_are_left_alone() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let docker = engine();
    let create = |name: String, labels: HashMap<String, String>| {
        let (docker, image) = (docker.clone(), node.image.name.clone());
        async move {
            let body = ContainerCreateBody {
                image: Some(image),
                cmd: Some(vec!["sleep".into(), "600".into()]),
                labels: Some(labels),
                ..ContainerCreateBody::default()
            };
            let options = query::CreateContainerOptionsBuilder::default().name(&name).build();
            let id = docker.create_container(Some(options), body).await.unwrap().id;
            ForeignContainer(id)
        }
    };
    // The name of one of our attempts, without labels.
    let named = create(node.container_name(attempt(1)), HashMap::new()).await;
    // Some of our labels, but not our name.
    let labels = [("podmesh.agent", node.agent.to_string()), ("podmesh.job", "1".into())];
    let labels = labels.map(|(label, value)| (label.to_owned(), value));
    let labelled = create(format!("{}-x", node.container_name(attempt(2))), labels.into()).await;

    let mut agent = node.agent().await;
    assert!(agent.found.is_empty());
    let outcome = agent.run(attempt(1), node.job(&["true"])).await;
    assert_eq!(outcome.exit_code, Some(125));
    assert!(outcome.message.unwrap().contains("does not belong to this agent"));
    agent.runtime.remove(attempt(1));
    // A wrong removal would begin before this run is done.
    assert_eq!(agent.run(attempt(3), node.job(&["true"])).await.exit_code, Some(0));
    agent.runtime.remove(attempt(3));
    within(async {
        while node.containers().await != [labelled.0.clone()] {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(docker.inspect_container(&named.0, None).await.is_ok());
}

#[tokio::test]
async fn a_container_has_only_the_privileges_that_it_was_given() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    let script = "grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; ulimit -c; \
                  cat /sys/fs/cgroup/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids/pids.max";
    let outcome = agent.run(attempt(1), node.job(&["sh", "-c", script])).await;
    assert_eq!(outcome.exit_code, Some(0), "{outcome:?}");
    let said = node.text(attempt(1), "stdout");
    for part in ["CapEff:\t00000000000405fb", "CapBnd:\t00000000000405fb", "NoNewPrivs:\t1"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(said.ends_with("\n0\n4096\n"), "{said}");

    // It cannot create more processes than its limit.
    let mut job = node.job(&["sh", "-c", "for n in $(seq 50); do sleep 30 & done; wait"]);
    docker_spec(&mut job).pids = Some(10);
    let outcome = agent.run(attempt(2), job).await;
    assert_ne!(outcome.exit_code, Some(0), "{outcome:?}");

    let mut job = node.job(&["true"]);
    docker_spec(&mut job).cap_add = vec!["NET_RAW".into()];
    let outcome = agent.run(attempt(3), job).await;
    let said = outcome.message.unwrap();
    assert!(said.contains("NET_RAW") && said.contains("agent.toml"), "{said}");
    for index in 1..=3 {
        agent.runtime.remove(attempt(index));
    }
    agent.removed(&node).await;
}
