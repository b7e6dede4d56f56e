//! Tests with real cgroups, as root, including version 2 if the test's kernel provides it.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use tempfile::TempDir;

use super::super::spawn::vfork;
use super::*;

/// Returns whether cgroups can be created here. Prints if they cannot, which is a failure in CI.
fn may_make() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let required = std::env::var("PODMESH_TEST_DOCKER").is_ok_and(|value| value == "required");
    assert!(root || !required, "cgroups are tested as root");
    if !root {
        eprintln!("SKIPPED: only root can create cgroups");
    }
    root
}

struct Node {
    dir: TempDir,
    agent: Uuid,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Also if the test fails.
        remove_left(self.dir.path());
    }
}

impl Node {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), agent: Uuid::new_v4() }
    }

    fn open(&self) -> Cgroups {
        Cgroups::open(Some(self.dir.path()), self.agent)
    }

    /// Opens version 2 only, if it is mounted.
    fn open_unified(&self) -> Option<Cgroups> {
        let layout = layout::make_version_2(&format!("{PREFIX}{}", self.agent), 2)?;
        Some(Cgroups::with(layout, Some(self.dir.path().join(RECORD)), 2))
    }
}

fn limits(cpu_millis: u32, memory_bytes: u64) -> Resources {
    Resources { cpu_millis, memory_bytes }
}

/// Starts a program that joins the cgroups. `spawn.rs` gives it a process group of its own, and other
/// tests would reap it.
fn start(joins: Vec<CgroupJoin>, script: &str) -> Child {
    // A shell that moves itself has only one thread.
    let path = |file: &File| fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let files = joins.iter().map(|join| match join {
        CgroupJoin::Folder(folder) => path(folder).join(files::PROCESSES),
        CgroupJoin::Write(file) => path(file),
    });
    let script = format!("for f in \"$@\"; do echo $$ >$f || exit 99; done; echo ready; {script}");
    let mut child = Command::new("sh")
        .args(["-c", &script, "sh"])
        .args(files)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    io::BufRead::read_line(&mut io::BufReader::new(stdout), &mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

fn wait_until_empty(cgroup: &Cgroup) {
    let start = Instant::now();
    while cgroup.has_processes() {
        assert!(start.elapsed() < Duration::from_secs(60), "a process is still running");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn bases(cgroups: &Cgroups) -> Vec<PathBuf> {
    cgroups.hierarchies.iter().map(|one| one.base.clone()).collect()
}

/// Every descendant is killed, even if it starts others as fast as it can.
fn everything_is_killed(cgroups: &Cgroups) {
    // A fork bomb of at most 2000 processes.
    let bomb = "f() { test $1 -gt 0 && { f $(($1 - 1)) & f $(($1 - 1)) & }; sleep 1000; }; f 9";
    for script in ["sleep 1000 & setsid sleep 1000 & wait", bomb] {
        let (cgroup, joins) = cgroups.take(&limits(1000, 0)).unwrap().unwrap();
        let mut child = start(joins, script);
        assert!(cgroup.has_processes());
        std::thread::sleep(Duration::from_millis(20));
        while cgroup.kill() {
            _ = child.try_wait();
            std::thread::sleep(Duration::from_millis(1));
        }
        child.wait().unwrap();
        wait_until_empty(&cgroup);
        cgroups.give_back(cgroup);
        // The next one allows processes. It is reused, because it was not killed.
        let mut name = None;
        for _ in 0..2 {
            let (cgroup, joins) = cgroups.take(&limits(1000, 0)).unwrap().unwrap();
            if let CgroupJoin::Folder(folder) = &joins[0] {
                let mut ran = false;
                let mut child = || {
                    ran = true;
                    0
                };
                waitpid(vfork(&mut child, Some(folder.as_fd())).unwrap(), None).unwrap();
                assert!(ran, "killed at its start");
            }
            assert!(start(joins, "true & wait").wait().unwrap().success());
            wait_until_empty(&cgroup);
            let before = name.replace(cgroup.name.clone());
            assert!(before.is_none_or(|before| before == cgroup.name));
            cgroups.give_back(cgroup);
        }
    }
}

#[test]
fn every_descendant_is_killed() {
    if !may_make() {
        return;
    }
    let node = Node::new();
    let cgroups = node.open();
    everything_is_killed(&cgroups);
    let made = bases(&cgroups);
    assert!(!made.is_empty() && made.iter().all(|base| base.exists()));
    cgroups.remove();
    assert!(!made.iter().any(|base| base.exists()));
    assert!(!node.dir.path().join(RECORD).exists());
}

#[test]
fn every_descendant_is_killed_in_version_2() {
    if !may_make() {
        return;
    }
    let node = Node::new();
    let Some(cgroups) = node.open_unified() else {
        eprintln!("SKIPPED: no cgroups of version 2 are mounted");
        return;
    };
    let [base] = bases(&cgroups).try_into().unwrap();
    everything_is_killed(&cgroups);
    // A cgroup that a task created below its own.
    let (cgroup, joins) = cgroups.take(&limits(1000, 0)).unwrap().unwrap();
    let below = base.join(&cgroup.name).join("below");
    let script = format!("mkdir {0}; echo $$ >{0}/cgroup.procs; sleep 1000", below.display());
    let mut child = start(joins, &script);
    while fs::read_to_string(below.join(files::PROCESSES)).unwrap_or_default().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(cgroup.kill());
    child.wait().unwrap();
    wait_until_empty(&cgroup);
    cgroups.give_back(cgroup);
    cgroups.remove();
    assert!(!base.exists());
}

#[test]
fn memory_and_cpu_time_are_limited() {
    if !may_make() {
        return;
    }
    let node = Node::new();
    let cgroups = node.open();
    if let Some(why) = cgroups.unenforced().get("memory") {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let (cgroup, joins) = cgroups.take(&limits(500, 32 << 20)).unwrap().unwrap();
    let status = start(joins, "head -c 500M /dev/zero | tail >/dev/null; exit 0").wait().unwrap();
    assert!(status.success(), "a child was killed, not the shell: {status}");
    assert!(cgroup.was_out_of_memory());
    cgroups.give_back(cgroup);
    // The next attempt is not affected.
    let (cgroup, joins) = cgroups.take(&limits(500, 256 << 20)).unwrap().unwrap();
    let stat = node.dir.path().join("stat");
    let script = format!(
        "head -c 64M /dev/zero | tail >/dev/null; end=$(($(date +%s%N) + 1000000000)); \
         while [ $(date +%s%N) -lt $end ]; do :; done; cat /proc/$$/stat >{}",
        stat.display()
    );
    let began = Instant::now();
    let mut child = start(joins, &script);
    cgroup.limit_cpu().unwrap();
    assert!(child.wait().unwrap().success());
    let ran = u64::try_from(began.elapsed().as_millis()).unwrap();
    assert!(!cgroup.was_out_of_memory());
    let used = cpu_ms(&fs::read_to_string(&stat).unwrap());
    // Half of a core, plus what the last period may exceed.
    assert!(used > 0 && used < ran * 3 / 4, "{used} ms of cpu time in {ran} ms");
    cgroups.give_back(cgroup);
    cgroups.remove();
}

/// In version 1 processes are moved: all of them, including those that keep starting others.
#[test]
fn cpu_time_of_all_processes_is_limited() {
    if !may_make() {
        return;
    }
    let node = Node::new();
    let cgroups = node.open();
    let Some(hierarchy) = cgroups.hierarchies.iter().find(|one| one.cpu) else {
        eprintln!("SKIPPED: {:?}", cgroups.unenforced());
        return;
    };
    let (cgroup, joins) = cgroups.take(&limits(500, 0)).unwrap().unwrap();
    let mut child = start(joins, "f() { sleep 1000 & sleep 0.001; f; }; sleep 1000 & f");
    std::thread::sleep(Duration::from_millis(50));
    cgroup.limit_cpu().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    // No process is started any more, so both lists show the same state.
    nix::sys::signal::kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGSTOP).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let listed = |dir: PathBuf| {
        let text = fs::read_to_string(dir.join(files::PROCESSES)).unwrap();
        text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    let all = listed(cgroup.first().0);
    assert!(all.len() > 3);
    assert_eq!(listed(cgroup.dir(hierarchy)), all);
    while cgroup.kill() {
        _ = child.try_wait();
        std::thread::sleep(Duration::from_millis(1));
    }
    child.wait().unwrap();
    cgroups.give_back(cgroup);
    cgroups.remove();
}

/// Returns the CPU time of a process and its ended children in milliseconds, from its
/// `/proc/PID/stat`.
fn cpu_ms(stat: &str) -> u64 {
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks: u64 = fields.skip(11).take(4).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    ticks * 10
}

#[test]
fn cgroups_of_a_killed_supervisor_are_found_and_removed() {
    if !may_make() {
        return;
    }
    let node = Node::new();
    let cgroups = node.open();
    let made = bases(&cgroups);
    let (_, joins) = cgroups.take(&limits(500, 32 << 20)).unwrap().unwrap();
    let mut child = start(joins, "sleep 1000");
    // As if the supervisor had been killed.
    drop(cgroups);
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    let next = node.open();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&reaper.join().unwrap()), Some(9));
    assert_eq!(bases(&next), made);
    for base in &made {
        let below = fs::read_dir(base).unwrap().flatten();
        assert_eq!(below.filter(|entry| entry.path().is_dir()).count(), 0);
    }
    next.remove();
    // An entry with another name does no harm.
    let other = tempfile::tempdir().unwrap();
    let record = node.dir.path().join(RECORD);
    fs::write(&record, format!("{}\n/sys/fs/cgroup\n", other.path().display())).unwrap();
    remove_left(node.dir.path());
    assert!(other.path().exists() && !record.exists());
}

#[test]
fn without_cgroups_the_unenforced_limits_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout {
        hierarchies: Vec::new(),
        no_memory: Some("because".into()),
        no_cpu: Some("because".into()),
    };
    let cgroups = Cgroups::with(layout, Some(folder.path().join(RECORD)), 2);
    assert!(cgroups.take(&limits(500, 1)).unwrap().is_none());
    let unenforced: Vec<_> = cgroups.unenforced().keys().map(String::as_str).collect();
    assert_eq!(unenforced, ["cpus", "memory"]);
    cgroups.remove();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
