//! Allowed and refused mounts with a real engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use podmesh_agent::policy::MountRoot;
use podmesh_protocol::spec::{Mount, NetworkMode};

use crate::support::*;

#[tokio::test]
async fn the_node_decides_which_mounts_and_networks_are_allowed() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    let [open, closed, other] = ["open", "closed", "other"].map(|name| node.path().join(name));
    for dir in [&open, &closed, &other] {
        std::fs::create_dir(dir).unwrap();
    }
    node.policy.mount_roots = vec![
        MountRoot { path: open.clone(), writable: true },
        MountRoot { path: closed.clone(), writable: false },
    ];
    std::fs::write(closed.join("word"), "hello").unwrap();
    let mut agent = node.agent().await;
    let mount = |source: &std::path::Path, target: &str, read_only| Mount {
        source: source.to_str().unwrap().into(),
        target: target.into(),
        read_only,
    };
    let mut job = node.script("cat /in/word > /out/copy; echo x > /in/word; echo $?");
    docker_spec(&mut job).mounts = vec![mount(&closed, "/in", true), mount(&open, "/out", false)];
    let outcome = agent.run(attempt(1), job).await;
    assert_eq!(outcome.exit_code, Some(0), "{outcome:?}");
    assert_eq!(node.text(attempt(1), "stdout"), "1\n");
    assert!(node.text(attempt(1), "stderr").contains("Read-only"));
    assert_eq!(std::fs::read(open.join("copy")).unwrap(), b"hello");
    assert_eq!(std::fs::read(closed.join("word")).unwrap(), b"hello");

    for (index, mount) in [
        (2, mount(&other, "/in", true)),
        (3, mount(&closed, "/in", false)),
        (4, mount("/var/run/docker.sock".as_ref(), "/s", true)),
    ] {
        let mut job = node.job(&["true"]);
        docker_spec(&mut job).mounts = vec![mount];
        let outcome = agent.run(attempt(index), job).await;
        let said = outcome.message.unwrap();
        assert_eq!(outcome.exit_code, Some(125));
        assert!(said.contains("test-node") && said.contains("agent.toml"), "{said}");
    }
    let mut job = node.job(&["true"]);
    docker_spec(&mut job).network = NetworkMode::Host;
    let said = agent.run(attempt(5), job).await.message.unwrap();
    assert!(said.contains("allow_host_network"), "{said}");
    // No container was created for the refused jobs.
    assert_eq!(node.containers().await.len(), 1);
}

/// How many containers must start while the folder that they mount is being swapped for a symbolic
/// link out of its root.
const RACES: u32 = 12;
/// Maximum number of tries. Most find the link, and are refused quickly.
const TRIES_MAX: u32 = 5_000;

/// Swaps a folder and a symbolic link for each other until dropped.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Swapper {
    fn start(folder: PathBuf, link: PathBuf) -> Self {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                renameat_with(CWD, &folder, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                // Long enough that the check often finds the folder, short compared to a start.
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

#[tokio::test]
async fn swapping_folders_does_not_get_a_mount_out_of_its_root() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    let [root, secret] = ["root", "secret"].map(|name| node.path().join(name));
    for dir in [&root.join("data"), &secret] {
        std::fs::create_dir_all(dir).unwrap();
    }
    std::fs::write(root.join("data/word"), "inside").unwrap();
    std::fs::write(secret.join("word"), "outside").unwrap();
    std::os::unix::fs::symlink(&secret, root.join("link")).unwrap();
    node.policy.mount_roots = vec![MountRoot { path: root.clone(), writable: true }];
    let mut agent = node.agent().await;
    let swapper = Swapper::start(root.join("data"), root.join("link"));
    let (mut inside, mut refused) = (0, 0);
    for number in 1..=TRIES_MAX {
        let mut job = node.job(&["cat", "/in/word"]);
        let source = root.join("data").to_str().unwrap().into();
        docker_spec(&mut job).mounts =
            vec![Mount { source, target: "/in".into(), read_only: true }];
        let outcome = agent.run(attempt(number), job).await;
        if outcome.exit_code == Some(0) {
            assert_eq!(node.text(attempt(number), "stdout"), "inside");
            inside += 1;
            if inside == RACES {
                break;
            }
        } else {
            assert_eq!(outcome.exit_code, Some(125), "{outcome:?}");
            refused += 1;
        }
    }
    drop(swapper);
    assert_eq!(inside, RACES, "{refused} were refused");
    assert_eq!(staged_mounts(&node), Vec::<String>::new());
}

/// Returns the staged mounts of a node's agent.
fn staged_mounts(node: &TestNode) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of_agent = node.settings().agent_id.to_string();
    table.lines().filter(|line| line.contains(&of_agent)).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_folder_in_a_root_is_mounted_and_its_staged_mount_released() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    let root = node.path().join("root");
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    std::fs::write(root.join("a/file"), "one file").unwrap();
    node.policy.mount_roots = vec![MountRoot { path: root.clone(), writable: true }];
    let mut agent = node.agent().await;
    let mount = |source: &Path, target: &str| Mount {
        source: source.to_str().unwrap().into(),
        target: target.into(),
        read_only: false,
    };
    let mut job = node.script("cat /file > /b/copy");
    docker_spec(&mut job).mounts =
        vec![mount(&root.join("a/b"), "/b"), mount(&root.join("a/file"), "/file")];
    let outcome = agent.run(attempt(1), job).await;
    assert_eq!(outcome.exit_code, Some(0), "{outcome:?}");
    assert_eq!(std::fs::read(root.join("a/b/copy")).unwrap(), b"one file");
    assert_eq!(staged_mounts(&node), Vec::<String>::new());
    assert!(root.join("a/file").exists());
}
