//! The options of containers, with a real engine.

use crate::support::*;
use podmesh_protocol::service::{PortEndpoints, ServiceEndpoints};
use podmesh_protocol::spec::{DockerSpec, NetworkMode, Ulimit, VolumeMount};

/// Runs a script in a container with these options, and returns what it printed.
async fn printed(
    node: &TestNode,
    agent: &mut Agent,
    index: u32,
    script: &str,
    options: impl FnOnce(&mut DockerSpec),
) -> String {
    let mut job = node.script(script);
    options(docker_spec(&mut job));
    let outcome = agent.run(attempt(index), job).await;
    let errors = node.text(attempt(index), "stderr");
    assert_eq!(outcome.exit_code, Some(0), "{script}: {outcome:?} {errors}");
    agent.runtime.remove(attempt(index));
    node.text(attempt(index), "stdout")
}

#[tokio::test]
async fn capabilities_are_the_nodes_default_ones_without_and_with_those_of_the_job() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    node.policy.capabilities = vec!["NET_RAW".into()];
    let mut agent = node.agent().await;
    let script = "grep CapEff /proc/self/status | cut -f 2";
    let words = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for (index, drop, add, bits) in [
        (1, &[][..], &[][..], "00000000000405fb"),
        (2, &["CHOWN"], &[], "00000000000405fa"),
        (3, &["ALL"], &[], "0000000000000000"),
        (4, &["ALL"], &["CHOWN", "NET_RAW"], "0000000000002001"),
    ] {
        let said = printed(&node, &mut agent, index, script, |spec| {
            (spec.cap_drop, spec.cap_add) = (words(drop), words(add));
        })
        .await;
        assert_eq!(said.trim(), bits, "{drop:?} {add:?}");
    }
    // As the official images of databases do: take a folder over, and give up root.
    let script = "mkdir /d && chown work:work /d && su work -s /bin/sh -c 'touch /d/x && id -u'";
    assert_eq!(printed(&node, &mut agent, 5, script, |_| {}).await, "1234\n");
    node.policy.default_capabilities.clear();
    let mut agent = node.agent().await;
    let script = "grep CapBnd /proc/self/status | cut -f 2";
    let said = printed(&node, &mut agent, 6, script, |_| {}).await;
    assert_eq!(said.trim(), "0000000000000000");
}

#[tokio::test]
async fn a_container_gets_the_options_of_its_job() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    node.policy.devices = vec!["/dev/fu*".into()];
    node.policy.security_opt = vec!["seccomp=unconfined".into()];
    let mut agent = node.agent().await;
    let said = printed(&node, &mut agent, 1, "cat /proc/1/comm", |spec| spec.init = true).await;
    assert!(said.contains("init"), "{said}");
    let said = printed(&node, &mut agent, 2, "hostname; grep 10.9.8.7 /etc/hosts", |spec| {
        spec.hostname = Some("db-1".into());
        spec.extra_hosts = vec!["cache:10.9.8.7".into()];
    });
    let said = said.await;
    assert!(said.starts_with("db-1\n") && said.contains("cache"), "{said}");
    let said = printed(&node, &mut agent, 3, "ulimit -S -n; ulimit -H -n; ulimit -c", |spec| {
        spec.ulimits = [("nofile".into(), Ulimit { soft: 77, hard: 99 })].into();
    });
    assert_eq!(said.await, "77\n99\n0\n");
    let script = "df -k /dev/shm | tail -n 1 | awk '{print $2}'";
    let said = printed(&node, &mut agent, 4, script, |spec| spec.shm_size = Some(3 << 20)).await;
    assert_eq!(said, "3072\n");
    let script = "touch /x 2>/dev/null || echo fixed; touch /run/x && grep ' /run ' /proc/mounts";
    let said = printed(&node, &mut agent, 5, script, |spec| {
        spec.read_only = true;
        spec.tmpfs = [("/run".into(), "size=64k".into())].into();
    });
    let said = said.await;
    assert!(said.starts_with("fixed\n") && said.contains("size=64k"), "{said}");
    let script = "test -t 1 && echo terminal; echo error >&2";
    let said = printed(&node, &mut agent, 6, script, |spec| spec.tty = true).await;
    assert_eq!(said, "terminal\r\nerror\r\n");
    let said = printed(&node, &mut agent, 7, "test -c /dev/other && echo there", |spec| {
        spec.devices = vec!["/dev/full:/dev/other:rw".into()];
    });
    assert_eq!(said.await, "there\n");
    let script = "grep Seccomp: /proc/self/status | cut -f 2";
    let said = printed(&node, &mut agent, 8, script, |spec| {
        spec.security_opt = vec!["seccomp=unconfined".into()];
    });
    assert_eq!(said.await, "0\n");
    agent.removed(&node).await;
}

#[tokio::test]
async fn a_container_has_the_labels_and_the_stop_signal_of_its_job() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    let script = "trap 'echo interrupted; exit 7' INT; echo ready; while :; do sleep 0.02; done";
    let mut job = node.script(script);
    docker_spec(&mut job).stop_signal = Some("SIGINT".into());
    docker_spec(&mut job).labels = [("traefik.enable".into(), "true".into())].into();
    agent.start(attempt(1), job);
    node.until_printed(attempt(1), "stdout", "ready").await;
    let name = node.container_name(attempt(1));
    let found = engine().inspect_container(&name, None).await.unwrap();
    let labels = found.config.unwrap().labels.unwrap();
    assert_eq!((&*labels["traefik.enable"], &*labels["podmesh.task"]), ("true", "1.1"));
    agent.runtime.stop(attempt(1), 60_000);
    assert_eq!(agent.end(attempt(1)).await.exit_code, Some(7));
    agent.runtime.remove(attempt(1));
    agent.removed(&node).await;
}

#[tokio::test]
async fn a_named_volume_keeps_its_data_and_is_never_removed() {
    if !usable() {
        return;
    }
    let volume = TestVolume::new();
    let node = TestNode::new();
    let mut agent = node.agent().await;
    let mounted =
        |read_only| VolumeMount { volume: volume.0.clone(), target: "/data".into(), read_only };
    let write = "echo kept > /data/word";
    printed(&node, &mut agent, 1, write, |spec| spec.volumes = vec![mounted(false)]).await;
    agent.removed(&node).await;
    let read = "cat /data/word; touch /data/x 2>/dev/null || echo fixed";
    let said = printed(&node, &mut agent, 2, read, |spec| spec.volumes = vec![mounted(true)]).await;
    assert_eq!(said, "kept\nfixed\n");
    agent.removed(&node).await;
    let found = engine().inspect_volume(&volume.docker_name()).await.unwrap();
    assert_eq!(found.labels["podmesh.volume"], volume.0.as_str());
    assert_eq!(found.labels["podmesh.cluster"], node.cluster.to_string());
}

#[tokio::test]
async fn what_the_owner_does_not_allow_is_refused_with_the_rule() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    node.policy.volumes = false;
    let mut agent = node.agent().await;
    let volume = VolumeMount {
        volume: "never-made".parse().unwrap(),
        target: "/d".into(),
        read_only: false,
    };
    for (index, rule, options) in [
        (1, "devices", DockerSpec { devices: vec!["/dev/full".into()], ..DockerSpec::default() }),
        (
            2,
            "security_opt",
            DockerSpec { security_opt: vec!["seccomp=unconfined".into()], ..DockerSpec::default() },
        ),
        (3, "volumes", DockerSpec { volumes: vec![volume], ..DockerSpec::default() }),
    ] {
        let mut job = node.script("true");
        let spec = docker_spec(&mut job);
        *spec = DockerSpec { image: spec.image.clone(), ..options };
        let said = agent.run(attempt(index), job).await.message.unwrap();
        assert!(said.contains(rule) && said.contains("agent.toml"), "{said}");
        agent.runtime.remove(attempt(index));
    }
    assert!(node.containers().await.is_empty());
}

#[tokio::test]
async fn files_of_a_job_are_readable_until_the_attempt_is_removed() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let agent = node.agent().await;
    let kept = || std::fs::read_dir(node.data_dir.path().join("files")).unwrap().count();
    let script = "cat /etc/app.conf /conf/deep/b; stat -c %a /etc/app.conf; id -u; \
                  echo x 2>/dev/null >/etc/app.conf || echo fixed; echo ready; \
                  until test -e /run/go; do sleep 0.02; done; cat /conf/deep/b";
    let mut job = node.script(script);
    docker_spec(&mut job).user = Some("work".into());
    docker_spec(&mut job).tmpfs = [("/run".into(), String::new())].into();
    job.run.files = [("/etc/app.conf", "a = 1\n"), ("/conf/deep/b", "two\n")]
        .map(|(path, text)| (path.to_owned(), text.to_owned()))
        .into();
    agent.start(attempt(1), job.clone());
    node.until_printed(attempt(1), "stdout", "ready").await;
    assert_eq!(node.text(attempt(1), "stdout"), "a = 1\ntwo\n444\n1234\nfixed\nready\n");
    // What an agent that was killed left behind.
    std::fs::create_dir(node.data_dir.path().join("files/9.9.9")).unwrap();
    drop(agent);
    let mut agent = node.agent().await;
    assert_eq!((agent.found.len(), kept()), (1, 1));
    exec(&engine(), &node.container_name(attempt(1)), "touch /run/go").await;
    assert_eq!(agent.end(attempt(1)).await.exit_code, Some(0));
    assert!(node.text(attempt(1), "stdout").ends_with("ready\ntwo\n"));
    agent.runtime.remove(attempt(1));
    agent.removed(&node).await;
    until(|| kept() == 0).await;
}

#[tokio::test]
async fn a_container_reaches_a_service_by_its_name() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    // In place of the node's proxy.
    let proxy = std::net::TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let publish = proxy.local_addr().unwrap().port();
    let port = PortEndpoints {
        port: "http".parse().unwrap(),
        publish,
        proxy_protocol: false,
        endpoints: Vec::new(),
    };
    let web = ServiceEndpoints { service: "web".parse().unwrap(), ports: vec![port] };
    node.names.apply(true, &[web], |_| true);
    let mut agent = node.agent().await;
    let script = "echo $PODMESH_SERVICE_WEB; nc -w 20 web ${PODMESH_SERVICE_WEB#*:} </dev/null";
    let answer = std::thread::spawn(move || {
        let (mut client, _) = proxy.accept().unwrap();
        std::io::Write::write_all(&mut client, b"hello\n").unwrap();
    });
    let said = printed(&node, &mut agent, 1, script, |_| {}).await;
    assert_eq!(said, format!("web:{publish}\nhello\n"));
    answer.join().unwrap();
    let script = "echo \"<$PODMESH_SERVICE_WEB>\"; grep -w web /etc/hosts || true";
    let said = printed(&node, &mut agent, 2, script, |spec| spec.network = NetworkMode::None).await;
    assert_eq!(said, "<>\n");
    agent.removed(&node).await;
}
