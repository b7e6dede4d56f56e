//! What a command can access on its node, and which resources it can use.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use podmesh_tests::mesh::Mesh;
use podmesh_tests::supervisor;
use podmesh_tests::wait::{until, until_true};
use serde_json::Value;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");
/// The user that an agent running as root creates for commands.
const PROCESS_USER: &str = "podmesh-task";

/// Returns whether agents of root can be tested here. Prints if they cannot, which is a failure in
/// CI.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let required = std::env::var("PODMESH_TEST_DOCKER").is_ok_and(|value| value == "required");
    assert!(root || !required, "the tests of what commands can access need root");
    if !root {
        eprintln!("SKIPPED: only root can start commands as another user");
    }
    root
}

/// A mesh whose agent is on the manager's machine and has no key, as after `podmesh manager` and
/// `podmesh agent`. `settings` is its `agent.toml`.
fn local_mesh(settings: &str) -> Mesh {
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    fs::create_dir_all(mesh.agent_dir("a")).unwrap();
    fs::write(mesh.agent_dir("a").join("agent.toml"), settings).unwrap();
    mesh.spawn_local_agent("a", &["--docker", "off"]);
    mesh.wait_for_node("a", "alive");
    mesh
}

/// Returns what a script prints, and its exit code.
fn run(mesh: &Mesh, flags: &[&str], script: &str) -> (String, i32) {
    let args = [&["run"], flags, &["--", "sh", "-c", script]].concat();
    let output = mesh.output(&args);
    let stdout = String::from_utf8(output.stdout).unwrap();
    (stdout, output.status.code().unwrap())
}

fn last_outcome(mesh: &Mesh, job: u64) -> Value {
    mesh.json(&["tasks", &job.to_string()])["tasks"][0]["last_attempt"]["outcome"].clone()
}

/// Returns the cgroups of an agent in all trees.
fn cgroups(mesh: &Mesh, agent: &str) -> Vec<PathBuf> {
    let Ok(id) = fs::read_to_string(mesh.agent_dir(agent).join("agent/id")) else {
        return Vec::new();
    };
    let name = format!("podmesh-{}", id.trim());
    let found = Command::new("find").args(["/sys/fs/cgroup", "-name", &name]).output().unwrap();
    String::from_utf8(found.stdout).unwrap().lines().map(PathBuf::from).collect()
}

/// The reason for this test: on the manager's machine, an operator's command ran the CLI as root.
#[test]
fn a_command_cannot_become_admin_of_the_mesh_or_root_of_the_node() {
    if !is_root() {
        return;
    }
    let mesh = local_mesh("");
    // A place where all users can execute it.
    let program = mesh.folder().join("podmesh");
    fs::copy(PODMESH, &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let (program, manager) = (program.to_str().unwrap(), mesh.data_dir());
    let as_admin = ["--data-dir", manager.to_str().unwrap(), "token", "create", "--role", "admin"];
    let output = mesh.output(&[&["run", "--", program], as_admin.as_slice()].concat());
    assert!(!output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    // It fails for lack of rights, and works for the test, which has them.
    assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"));
    assert!(mesh.token("admin").starts_with("podmesh1-"));

    let User { uid, gid, .. } = User::from_name(PROCESS_USER).unwrap().unwrap();
    assert!(!uid.is_root());
    let (who, _) = run(
        &mesh,
        &[],
        "id -u; id -G | cut -d ' ' -f 2; grep -E '^(NoNewPrivs|CapEff|CapPrm|CapAmb)' /proc/self/status | \
         tr -d '[:space:]'; echo; ls /proc/self/fd | wc -l; stat -c '%U %a' .; echo $USER; \
         test $HOME = $PWD && echo at home",
    );
    let none = "0000000000000000";
    let expected = format!(
        "{uid}\n{gid}\nCapPrm:{none}CapEff:{none}CapAmb:{none}NoNewPrivs:1\n4\n\
         {PROCESS_USER} 700\n{PROCESS_USER}\nat home\n"
    );
    assert_eq!(who, expected);
}

#[test]
fn a_command_cannot_access_keys_sockets_and_the_output_of_others() {
    if !is_root() {
        return;
    }
    let mut mesh = Mesh::with_agents(PODMESH, &["a"]);
    let id = mesh.submit(&["--wait", "--", "sh", "-c", "echo secret"]);
    mesh.start_agent("b", &["--docker", "off"]);
    let (manager, agent) = (mesh.data_dir(), mesh.agent_dir("a").join("agent"));
    let files = [
        manager.join("manager/key"),
        manager.join("manager/podmesh.db"),
        agent.join("key"),
        agent.join("enrolment.json"),
        agent.join("run/supervisor.lock"),
        mesh.logs("a", id, 1, 1).join("stdout.log"),
    ];
    let sockets = [manager.join("run/control.sock"), agent.join("run/supervisor.sock")];
    let docker = Path::new("/var/run/docker.sock");
    for path in files.iter().chain(&sockets) {
        assert!(path.exists(), "{}", path.display());
    }
    for file in &files {
        let (printed, code) = run(&mesh, &[], &format!("cat {}", file.display()));
        assert_eq!((printed.as_str(), code), ("", 1), "{}", file.display());
    }
    let connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
    for socket in sockets.iter().map(PathBuf::as_path).chain(docker.exists().then_some(docker)) {
        let output = mesh.output(&[
            "run",
            "--",
            "/usr/bin/python3",
            "-c",
            connect,
            socket.to_str().unwrap(),
        ]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("PermissionError"), "{}: {said}", socket.display());
    }
    // Nor the files, the environment and the memory of another command.
    let other = mesh.submit(&[
        "--env",
        "TOKEN=secret",
        "--",
        "sh",
        "-c",
        "chmod 777 .; echo secret >file; chmod 666 file; pwd; echo $$; sleep 1000",
    ]);
    let printed = until("it prints its folder", || {
        let text = ["a", "b"].map(|agent| {
            let file = mesh.logs(agent, other, 1, 1).join("stdout.log");
            fs::read_to_string(file).unwrap_or_default()
        });
        text.concat().lines().map(str::to_owned).collect::<Vec<_>>().try_into().ok()
    });
    let [folder, pid]: [String; 2] = printed;
    assert!(Path::new(&folder).join("file").exists());
    for path in [
        format!("{folder}/file"),
        format!("/proc/{pid}/environ"),
        format!("/proc/{pid}/cwd/file"),
        format!("/proc/{pid}/mem"),
    ] {
        let (printed, code) = run(&mesh, &[], &format!("cat {path} 2>&1"));
        assert!(printed.contains("Permission denied") && code == 1, "{path}: {printed}");
    }
    mesh.ok(&["cancel", &other.to_string()]);
    // In the agent's folders it can only pass through to its own folder.
    for dir in [&agent, &agent.join("work")] {
        assert_ne!(run(&mesh, &[], &format!("ls {}", dir.display())).1, 0);
        assert_ne!(run(&mesh, &[], &format!("touch {}/x", dir.display())).1, 0);
    }
}

#[test]
fn the_owner_of_a_node_can_choose_another_user_or_root() {
    if !is_root() {
        return;
    }
    for (settings, expected) in
        [("process_user = \"nobody\"", "nobody 1\n"), ("process_user = \"root\"", "root 0\n")]
    {
        let mesh = local_mesh(settings);
        let script = "echo $(id -un) $(grep NoNewPrivs /proc/self/status | tr -dc 01)";
        assert_eq!(run(&mesh, &[], script).0, expected);
    }
    let mut mesh = Mesh::new(PODMESH);
    fs::create_dir_all(mesh.agent_dir("a")).unwrap();
    fs::write(mesh.agent_dir("a").join("agent.toml"), "process_user = \"no-such-user\"").unwrap();
    mesh.spawn_local_agent("a", &["--docker", "off"]);
    assert!(!mesh.agent("a").wait_for_end().success());
    let said = mesh.agent("a").printed();
    assert!(said.contains("useradd --system no-such-user"), "{said}");
}

#[test]
fn a_data_directory_that_others_cannot_enter_works_and_stays_closed() {
    if !is_root() {
        return;
    }
    let mut mesh = Mesh::new(PODMESH);
    fs::set_permissions(mesh.folder(), fs::Permissions::from_mode(0o700)).unwrap();
    mesh.start_manager();
    mesh.start_agent("a", &["--docker", "off"]);
    let (printed, code) = run(&mesh, &[], "pwd; echo x >file && cat $PWD/file");
    assert_eq!(code, 0);
    assert!(
        printed.starts_with("/var/lib/podmesh-work/") && printed.ends_with("\nx\n"),
        "{printed}"
    );
    let folder = PathBuf::from(printed.lines().next().unwrap());
    until_true("the work folder is removed", || !folder.exists());
    assert_eq!(fs::metadata(mesh.folder()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn memory_and_cpu_time_are_limited_and_a_kill_is_reported() {
    if !is_root() {
        return;
    }
    let mesh = local_mesh("");
    assert_eq!(mesh.nodes()[0]["unenforced"], serde_json::json!({}));
    let job =
        mesh.submit(&["--memory", "64MiB", "--", "/usr/bin/python3", "-c", "x = b'x' * (1 << 30)"]);
    mesh.wait_for_job(job, "failed");
    let outcome = last_outcome(&mesh, job);
    assert_eq!(
        (&outcome["signal"], &outcome["oom_killed"]),
        (&9.into(), &true.into()),
        "{outcome}"
    );
    assert!(outcome["message"].as_str().unwrap().contains("--memory"), "{outcome}");

    // Two busy loops for two seconds on half a core: at most one second of CPU time instead of
    // four. A busy machine only makes it less.
    let script = "end=$(($(date +%s) + 2)); f() { while [ $(date +%s) -lt $end ]; do :; done; }; \
                  f & f & wait; cat /proc/$$/stat";
    let (stat, code) = run(&mesh, &["--cpus", "0.5"], script);
    assert_eq!(code, 0);
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(4);
    let ticks: u64 = fields.map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    assert!(ticks > 0 && ticks <= 200, "{ticks} ticks of CPU time");
}

#[test]
fn cgroups_are_removed_with_the_supervisor_or_by_the_next_one() {
    if !is_root() {
        return;
    }
    let mut mesh = local_mesh("");
    let job = mesh.submit(&["--memory", "64MiB", "--", "sleep", "1000"]);
    mesh.wait_for_job(job, "running");
    let made = cgroups(&mesh, "a");
    assert!(!made.is_empty());
    // A restarted agent changes nothing.
    mesh.kill_agent("a");
    mesh.spawn_local_agent("a", &["--docker", "off"]);
    mesh.wait_for_node("a", "alive");
    mesh.wait_for_job(job, "running");
    assert_eq!(cgroups(&mesh, "a"), made);

    // Without the supervisor and its keeper, nobody is left to kill the process.
    mesh.kill_agent("a");
    let supervisor = mesh.supervisor("a");
    let keeper = parent(supervisor);
    kill(keeper, Signal::SIGKILL).unwrap();
    kill(supervisor, Signal::SIGKILL).unwrap();
    until_true("both are gone", || !supervisor::lives(&mesh.agent_dir("a")));
    assert_eq!(cgroups(&mesh, "a"), made);
    mesh.spawn_local_agent("a", &["--docker", "off"]);
    mesh.wait_for_node("a", "alive");
    mesh.wait_for_job(job, "failed");
    assert_eq!(run(&mesh, &[], "echo works").0, "works\n");

    // If only the supervisor is killed, its keeper kills the rest.
    mesh.kill_agent("a");
    supervisor::kill_and_wait(&mesh.agent_dir("a"));
    assert_eq!(cgroups(&mesh, "a"), Vec::<PathBuf>::new());
}

fn parent(pid: Pid) -> Pid {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap();
    Pid::from_raw(parent.parse().unwrap())
}

#[test]
fn a_node_without_cgroups_reports_what_it_does_not_enforce() {
    if !is_root() {
        return;
    }
    let mut mesh = Mesh::new(PODMESH);
    mesh.start_manager();
    mesh.start_agent_without_cgroups("a");
    let unenforced = mesh.nodes()[0]["unenforced"].clone();
    for what in ["memory", "cpus"] {
        assert!(unenforced[what].as_str().unwrap().contains("no cgroups"), "{unenforced}");
    }
    let output = mesh.output(&["nodes"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("a does not enforce --memory"), "{said}");
    // Commands still run, and are killed with all their descendants at the end.
    assert_eq!(run(&mesh, &["--memory", "64MiB"], "echo works").0, "works\n");
    let pid = mesh.folder().join("pid");
    fs::write(&pid, "").unwrap();
    fs::set_permissions(&pid, fs::Permissions::from_mode(0o666)).unwrap();
    let script = format!(
        "(setsid sh -c 'sleep 1000 & echo $! >{0}' >/dev/null 2>&1 &); \
         while ! test -s {0}; do sleep 0.01; done",
        pid.display()
    );
    assert_eq!(run(&mesh, &[], &script).1, 0);
    let pid: i32 =
        until("it writes its process id", || fs::read_to_string(&pid).ok()?.trim().parse().ok());
    until_true("it is gone", || kill(Pid::from_raw(pid), None).is_err());
}
