//! Health checks that are commands.

use std::future::Future;

use podmesh_protocol::service::{HealthCheck, HealthSpec, ReplicaSpec};

use super::*;
use crate::health::Said;

/// Limit for checks that end, far longer than any takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn replica(run: &mut RunSpec) {
    run.replica = Some(Box::new(ReplicaSpec {
        service: "web".parse().unwrap(),
        revision: 1,
        number: 1,
        spread: None,
        ports: Arc::default(),
        health: Some(Arc::new(HealthSpec::new(HealthCheck::Command(vec!["true".into()])))),
    }));
}

impl Node {
    /// Starts a replica, and waits until its script has printed `ready` and checks can run.
    async fn start_replica(&self, script: &str) {
        self.start_with(|run| {
            run.command =
                ["sh", "-c", &format!("echo ready; {script}")].map(str::to_owned).to_vec();
            run.env.insert("COLOUR".into(), "blue".into());
            replica(run);
        });
        self.printed("ready").await;
        // It can print before its start is noted. Checks begin after that.
        while self.check("true").await == Err("the replica has ended".into()) {
            tokio::task::yield_now().await;
        }
    }

    fn check_for(&self, command: &[&str], limit: Duration) -> impl Future<Output = Said> + use<> {
        let command = command.iter().map(|part| (*part).to_owned()).collect();
        self.runtime.check(ATTEMPT, command, limit)
    }

    async fn check(&self, script: &str) -> Said {
        self.check_for(&["sh", "-c", script], PATIENCE).await
    }
}

const IDLE: &str = "exec sleep 1000";

async fn gone(pid: Pid) {
    while is_alive(pid) {
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_runs_beside_the_process_with_its_folder_and_environment() {
    let mut node = Node::new();
    node.start_replica(&format!("echo blue >colour; {IDLE}")).await;
    while node.check("test -s colour").await.is_err() {}
    let said = node.check("cat colour; echo $COLOUR $PODMESH_TASK $PODMESH_SERVICE; id -u").await;
    let uid = nix::unistd::geteuid().to_string();
    assert_eq!(said, Ok(uid));
    let said =
        node.check("echo \"$(cat colour) $COLOUR $PODMESH_TASK $PODMESH_SERVICE\" >&2").await;
    assert_eq!(said, Ok("blue blue 42.7 web".into()));
    assert_eq!(node.check("exit 0").await, Ok("exit code 0".into()));
    assert_eq!(
        node.check("echo a; echo 'no disk'; exit 3").await,
        Err("exit code 3: no disk".into())
    );
    let said = node.check("kill -9 $$").await;
    assert!(said.as_ref().is_err_and(|why| why.contains("signal: 9")), "{said:?}");
    // The end of a check is not the end of the replica.
    node.runtime.stop(ATTEMPT, 0);
    assert_eq!(node.end().await.signal, Some(9));
    let said = node.check("true").await;
    assert_eq!(said, Err("the replica has ended".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_cannot_run_says_why() {
    let node = Node::new();
    node.start_replica(IDLE).await;
    for (command, says) in [
        ("nosuch", "command not found"),
        ("./nosuch", "does not exist"),
        ("/etc/passwd", "not executable"),
        ("/etc", "folder"),
    ] {
        let said = node.check_for(&[command], PATIENCE).await;
        assert!(said.as_ref().is_err_and(|why| why.contains(says)), "{command}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_does_not_end_is_killed_with_its_process_group() {
    let node = Node::new();
    node.start_replica(IDLE).await;
    let script = "sleep 1000 & echo $! >pid; exec sleep 1000";
    let hangs = node.check_for(&["sh", "-c", script], Duration::from_millis(500)).await;
    assert_eq!(hangs, Err("the command did not end within 500ms".into()));
    // The next check may have to wait for the end of the killed one.
    let mut said = node.check("cat pid").await;
    while said.as_ref().is_err_and(|why| why.contains("earlier check")) {
        said = node.check("cat pid").await;
    }
    gone(pid_in(&said.unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_keeps_the_output_open_is_not_waited_for() {
    let node = Node::new();
    node.start_replica(IDLE).await;
    // It leaves the process group, so that it is not killed with the check.
    let script = "setsid sleep 1000 & echo $!";
    let said = timeout(Duration::from_secs(20), node.check(script)).await.unwrap();
    let pid = pid_in(&said.unwrap());
    // It ends with the replica.
    node.runtime.stop(ATTEMPT, 0);
    timeout(PATIENCE, gone(pid)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_prints_without_end_takes_no_memory() {
    let node = Node::new();
    node.start_replica(IDLE).await;
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before_kib = resident();
    let said = node.check("head -c 1000000000 /dev/zero; echo; echo done").await;
    assert_eq!(said, Ok("done".into()));
    assert!(resident() < before_kib + 50_000, "{before_kib} KiB, {} KiB", resident());
    let endless = node.check_for(&["cat", "/dev/zero"], Duration::from_millis(300)).await;
    assert!(endless.is_err_and(|why| why.contains("did not end")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_ends_when_its_replica_is_told_to_stop() {
    let mut node = Node::new();
    node.start_replica("trap 'exit 4' TERM; while :; do sleep 0.01; done").await;
    let check = node.check("touch runs; exec sleep 1000");
    let runs = async {
        while !node.data.path().join("work/0/folder/runs").exists() {
            sleep(Duration::from_millis(5)).await;
        }
        node.runtime.stop(ATTEMPT, 60_000);
    };
    let (said, ()) = tokio::join!(timeout(PATIENCE, check), runs);
    assert_eq!(said.unwrap(), Err("the replica has ended".into()));
    assert_eq!(node.end().await.exit_code, Some(4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_check_of_a_replica_runs_at_a_time() {
    let node = Node::new();
    node.start_replica(IDLE).await;
    let first = node.check("touch first; until test -e go; do sleep 0.01; done");
    let second = async {
        let folder = node.data.path().join("work/0/folder");
        while !folder.join("first").exists() {
            sleep(Duration::from_millis(5)).await;
        }
        let said = node.check("true").await;
        fs::write(folder.join("go"), "").unwrap();
        said
    };
    let (first, second) = tokio::join!(timeout(PATIENCE, first), second);
    assert_eq!(first.unwrap(), Ok("exit code 0".into()));
    assert!(second.is_err_and(|why| why.contains("earlier check")));
}
