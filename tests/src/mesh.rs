//! A mesh with a manager and agents as real processes.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podmesh_wire::enrolment::ENROLMENT_FILE;
use podmesh_wire::locate::SOCKETS_DIR;
use podmesh_wire::route::{HTTP_SOCKET, Route};
use serde_json::Value;
use tempfile::TempDir;

use crate::docker;
use crate::namespace::Namespace;
use crate::ports::free_port;
use crate::process::Daemon;
use crate::proxy;
use crate::supervisor;
use crate::wait::{until, until_true};

/// Arguments of bash, before the program and its arguments. They run the program under the name
/// `podmesh`, because the benchmark's binary decides by its name what to be.
const AS_PODMESH: [&str; 2] = ["-c", "exec -a podmesh \"$0\" \"$@\""];

/// A mesh in a temporary folder. Dropping it ends and removes everything.
pub struct Mesh {
    // Declared before the folder, so that daemons end before it is removed.
    manager: Option<Daemon>,
    agents: BTreeMap<String, Daemon>,
    ingress: BTreeMap<String, Ipv4Addr>,
    program: PathBuf,
    host: IpAddr,
    port: u16,
    manager_flags: Vec<String>,
    manager_variables: Vec<(String, String)>,
    manager_open_files: Option<u32>,
    agent_variables: Vec<(String, String)>,
    folder: TempDir,
}

impl Mesh {
    /// Creates a mesh without daemons. `program` is the binary.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        // As in /tmp, commands of every user can create files.
        let mode = fs::Permissions::from_mode(0o1777);
        let folder = tempfile::Builder::new()
            .prefix("podmesh-test-")
            .permissions(mode.clone())
            .tempdir()
            .unwrap();
        // The umask does not apply.
        fs::set_permissions(folder.path(), mode).unwrap();
        Self {
            manager: None,
            agents: BTreeMap::new(),
            ingress: BTreeMap::new(),
            program: program.into(),
            host: Ipv4Addr::LOCALHOST.into(),
            port: free_port(),
            manager_flags: Vec::new(),
            manager_variables: Vec::new(),
            manager_open_files: None,
            agent_variables: Vec::new(),
            folder,
        }
    }

    /// Creates a mesh with a manager and agents with these names, all ready.
    pub fn with_agents(program: impl Into<PathBuf>, names: &[&str]) -> Self {
        let mut mesh = Self::new(program);
        mesh.start_manager();
        for name in names {
            mesh.start_agent(name, &[]);
        }
        mesh
    }

    /// Sets flags for all later starts of the manager.
    #[must_use]
    pub fn manager_flags(mut self, flags: &[&str]) -> Self {
        self.manager_flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        self
    }

    /// Sets the address that all later managers listen on, instead of loopback.
    #[must_use]
    pub fn listen_on(mut self, host: IpAddr) -> Self {
        self.host = host;
        self
    }

    /// Sets how many files all later managers may have open.
    #[must_use]
    pub fn manager_open_files(mut self, limit: u32) -> Self {
        self.manager_open_files = Some(limit);
        self
    }

    /// Sets an environment variable for all later starts of the manager.
    #[must_use]
    pub fn manager_variable(mut self, name: &str, value: &str) -> Self {
        self.manager_variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets an environment variable for all later agents.
    #[must_use]
    pub fn agent_variable(mut self, name: &str, value: &str) -> Self {
        self.agent_variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Returns the folder of the mesh.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Creates a folder in which commands of every user can create files.
    pub fn shared_folder(&self, name: &str) -> PathBuf {
        let folder = self.folder().join(name);
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).unwrap();
        folder
    }

    /// Returns the manager's data directory, through which the CLI finds the manager.
    pub fn data_dir(&self) -> PathBuf {
        self.folder().join("manager-host")
    }

    /// Returns an agent's data directory.
    pub fn agent_dir(&self, name: &str) -> PathBuf {
        self.folder().join(format!("host-{name}"))
    }

    /// Returns the folder of an attempt's output.
    pub fn logs(&self, agent: &str, job: u64, task: u32, attempt: u32) -> PathBuf {
        self.agent_dir(agent).join(format!("logs/{job}/{task}/{attempt}"))
    }

    /// Returns the route to the manager from its own machine.
    pub fn local(&self) -> Route {
        Route::Local(self.data_dir().join(SOCKETS_DIR))
    }

    /// Returns the address that the manager listens on.
    pub fn address(&self) -> String {
        SocketAddr::new(self.host, self.port).to_string()
    }

    /// Returns a command for the program with a limit on open files.
    fn limited(&self, open_files: u32) -> Command {
        let script = format!("ulimit -n {open_files} && exec -a podmesh \"$0\" \"$@\"");
        let mut command = Self::without_settings(Command::new("bash"));
        command.args(["-c", &script]).arg(&self.program);
        command
    }

    /// Returns a command for the program, without this process's own podmesh settings.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Self::without_settings(Command::new(&self.program));
        // Under another name, the benchmark's own binary would run the benchmark.
        std::os::unix::process::CommandExt::arg0(&mut command, "podmesh");
        command.args(args);
        command
    }

    fn without_settings(mut command: Command) -> Command {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PODMESH_") {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null());
        command
    }

    /// Returns a command for the CLI on the manager's machine.
    pub fn podmesh(&self, args: &[&str]) -> Command {
        let mut command = self.command(args);
        command.env("PODMESH_DATA_DIR", self.data_dir());
        command
    }

    /// Runs the CLI to its end.
    pub fn output(&self, args: &[&str]) -> Output {
        self.podmesh(args).output().unwrap()
    }

    /// Runs the CLI to its end, and returns what it printed. Panics unless it succeeds.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(
            output.status.success(),
            "podmesh {args:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs the CLI with `--output json`, and returns the parsed output.
    pub fn json(&self, args: &[&str]) -> Value {
        let printed = self.ok(&[&["--output", "json"], args].concat());
        serde_json::from_str(&printed)
            .unwrap_or_else(|error| panic!("{args:?}: {error}: {printed}"))
    }

    /// Managers of tests do not share the default port.
    fn http_off(&self) -> &[&str] {
        let given = self.manager_flags.iter().any(|flag| flag == "--http");
        if given { &[] } else { &["--http", "off"] }
    }

    /// Returns the address of the HTTP API of the running manager.
    pub fn http_address(&self) -> SocketAddr {
        let file = fs::read(self.data_dir().join("manager/endpoint.json")).unwrap();
        let endpoint: Value = serde_json::from_slice(&file).unwrap();
        endpoint["http"].as_str().unwrap().parse().unwrap()
    }

    /// Returns the unix socket of the HTTP API.
    pub fn http_socket(&self) -> PathBuf {
        self.data_dir().join(SOCKETS_DIR).join(HTTP_SOCKET)
    }

    /// Starts the manager, and waits until it answers.
    pub fn start_manager(&mut self) {
        let listen = self.address();
        let data_dir = self.data_dir();
        let mut command = match self.manager_open_files {
            None => self.command(&[]),
            Some(limit) => self.limited(limit),
        };
        command.args(["manager", "--listen", &listen]).args(self.http_off());
        command.args(&self.manager_flags).arg("--data-dir").arg(data_dir);
        command.envs(self.manager_variables.iter().cloned());
        let mut manager = Daemon::start(command, &self.folder().join("manager.txt"));
        until_true("the manager answers", || {
            assert!(manager.runs(), "the manager has ended:\n{}", manager.printed());
            self.output(&["nodes"]).status.success()
        });
        self.manager = Some(manager);
    }

    /// Starts the manager, and waits until it is killed with SIGKILL because one of its threads
    /// made the system call `call` for the `count`th time. Needs `strace`.
    pub fn run_manager_until(&mut self, call: &str, count: u32) {
        let mut command = Self::without_settings(Command::new("strace"));
        let inject = format!("inject={call}:signal=SIGKILL:when={count}");
        command.args(["-f", "-qqq", "-o", "/dev/null", "-e"]);
        command.arg(format!("trace={call}")).args(["-e", &inject]);
        command.arg("bash").args(AS_PODMESH).arg(&self.program).args([
            "manager",
            "--listen",
            &self.address(),
        ]);
        command.args(self.http_off());
        command.args(&self.manager_flags).arg("--data-dir").arg(self.data_dir());
        let log = self.folder().join("manager.txt");
        Daemon::start(command, &log).wait_for_end();
    }

    /// Starts an agent, and waits until its node is alive.
    pub fn start_agent(&mut self, name: &str, flags: &[&str]) {
        self.spawn_agent(name, flags);
        self.wait_for_node(name, "alive");
    }

    /// Creates a join token.
    pub fn token(&self, role: &str) -> String {
        self.ok(&["token", "create", "--role", role]).trim().to_owned()
    }

    /// Starts an agent without waiting. It joins over the network, as an agent on another machine
    /// does. If no manager runs that it could join, it is started as an agent on the manager's
    /// machine.
    pub fn spawn_agent(&mut self, name: &str, flags: &[&str]) {
        let joined = self.agent_dir(name).join("agent").join(ENROLMENT_FILE).exists();
        if joined {
            self.run_agent(name, &[], flags);
        } else if self.manager.is_some() {
            let token = self.token("agent");
            self.run_agent(name, &["--name", name, "--join", &token], flags);
        } else {
            self.spawn_local_agent(name, flags);
        }
    }

    /// Starts an agent on the manager's machine, without a key and without waiting.
    pub fn spawn_local_agent(&mut self, name: &str, flags: &[&str]) {
        let manager = self.data_dir();
        let manager = manager.to_str().expect("a temporary folder's path is UTF-8");
        self.run_agent(name, &["--name", name, "--manager", manager], flags);
    }

    /// Starts an agent of the manager's own machine under the name of a node that is another
    /// one's. In the mesh it goes by `name`.
    pub fn spawn_stranger(&mut self, name: &str, node: &str) {
        let manager = self.data_dir();
        let manager = manager.to_str().expect("a temporary folder's path is text");
        self.run_agent(name, &["--name", node, "--manager", manager], &[]);
    }

    /// The same by the network, with a token.
    pub fn join_stranger(&mut self, name: &str, node: &str, token: &str) {
        self.run_agent(name, &["--name", node, "--join", token], &[]);
    }

    /// Starts an agent in a network namespace, and waits until the manager counts on it.
    pub fn start_agent_in(&mut self, namespace: &Namespace, name: &str, flags: &[&str]) {
        let token = self.token("agent");
        let mut command = Self::without_settings(namespace.command("bash"));
        command.args(AS_PODMESH).arg(&self.program);
        self.run_agent_by(command, name, &["--name", name, "--join", &token], flags);
        self.wait_for_node(name, "alive");
    }

    /// Starts an agent of the manager's own machine where no cgroups are mounted, as root, and
    /// waits until the manager counts on it.
    pub fn start_agent_without_cgroups(&mut self, name: &str) {
        let mut command = Self::without_settings(Command::new("unshare"));
        let script = "umount --recursive --lazy /sys/fs/cgroup && exec -a podmesh \"$0\" \"$@\"";
        command.args(["--mount", "bash", "-c", script]).arg(&self.program);
        let manager = self.data_dir();
        let manager = manager.to_str().expect("a temporary folder's path is text");
        let first = ["--name", name, "--manager", manager];
        self.run_agent_by(command, name, &first, &["--docker", "off"]);
        self.wait_for_node(name, "alive");
    }

    fn run_agent(&mut self, name: &str, first: &[&str], flags: &[&str]) {
        self.run_agent_by(self.command(&[]), name, first, flags);
    }

    fn run_agent_by(&mut self, mut command: Command, name: &str, first: &[&str], flags: &[&str]) {
        command.arg("agent");
        command.args(first).arg("--data-dir").arg(self.agent_dir(name)).args(flags);
        // Each agent stands for a machine, so each proxy has an address of its own.
        command.env("PODMESH_INGRESS_ADDRESS", self.ingress(name).to_string());
        command.envs(self.agent_variables.iter().cloned());
        let agent = Daemon::start(command, &self.folder().join(format!("agent-{name}.txt")));
        self.agents.insert(name.to_owned(), agent);
    }

    /// Returns the address on which an agent opens the ports of services.
    pub fn ingress(&mut self, name: &str) -> Ipv4Addr {
        *self.ingress.entry(name.to_owned()).or_insert_with(proxy::ingress_address)
    }

    /// Waits until a node is in a state.
    pub fn wait_for_node(&self, name: &str, state: &str) {
        until_true(&format!("node {name} is {state}"), || {
            self.nodes().iter().any(|node| node["node"] == name && node["state"] == state)
        });
    }

    /// Returns the nodes, as listed by `podmesh nodes`.
    pub fn nodes(&self) -> Vec<Value> {
        let output = self.output(&["nodes", "--output", "json"]);
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        listed["nodes"].as_array().cloned().unwrap_or_default()
    }

    /// Submits a job, and returns its number.
    pub fn submit(&self, args: &[&str]) -> u64 {
        let printed = self.ok(&[&["submit"], args].concat());
        printed.trim().parse().unwrap_or_else(|_| panic!("no job number: {printed:?}"))
    }

    /// Waits until a job is in a state.
    pub fn wait_for_job(&self, job: u64, state: &str) -> Value {
        let mut last = Value::Null;
        until_true(&format!("job {job} is {state}"), || {
            let output = self.output(&["job", &job.to_string(), "--output", "json"]);
            if let Ok(job) = serde_json::from_slice::<Value>(&output.stdout) {
                last = job;
            }
            last["state"] == state
        });
        last
    }

    /// Returns the manager's process.
    pub fn manager(&mut self) -> &mut Daemon {
        self.manager.as_mut().expect("the manager runs")
    }

    /// Returns an agent's process.
    pub fn agent(&mut self, name: &str) -> &mut Daemon {
        self.agents.get_mut(name).expect("the agent runs")
    }

    /// Kills the manager with SIGKILL.
    pub fn kill_manager(&mut self) {
        self.manager.take().expect("the manager runs").kill();
    }

    /// Kills an agent with SIGKILL.
    pub fn kill_agent(&mut self, name: &str) {
        self.agents.remove(name).expect("the agent runs").kill();
    }

    /// Returns the process ids of the manager and of an agent.
    pub fn pids(&self, name: &str) -> (Pid, Pid) {
        let manager = self.manager.as_ref().expect("the manager runs");
        (manager.pid(), self.agents.get(name).expect("the agent runs").pid())
    }

    /// Returns the supervisor of an agent's processes.
    pub fn supervisor(&self, name: &str) -> Pid {
        until("there is a supervisor", || supervisor::pid(&self.agent_dir(name)))
    }

    /// Kills the supervisor of an agent's processes with SIGKILL.
    pub fn kill_supervisor(&self, name: &str) {
        kill(self.supervisor(name), Signal::SIGKILL).expect("the supervisor runs");
    }

    /// Stops an agent with SIGTERM, as a service manager does.
    pub fn stop_agent(&mut self, name: &str) -> std::process::ExitStatus {
        self.agents.remove(name).expect("the agent runs").stop()
    }

    /// Stops the manager with SIGTERM, as a service manager does.
    pub fn stop_manager(&mut self) -> std::process::ExitStatus {
        self.manager.take().expect("the manager runs").stop()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for daemon in self.agents.values().chain(&self.manager) {
                eprintln!("--- {}\n{}", daemon.stderr.display(), daemon.printed());
            }
        }
        for agent in std::mem::take(&mut self.agents).into_values() {
            agent.end();
        }
        // Remove what outlives an agent: the proxy, processes, which end with their supervisor,
        // and containers, which are found by their label.
        for entry in fs::read_dir(self.folder()).into_iter().flatten().flatten() {
            proxy::kill_and_wait(&entry.path());
            supervisor::kill_and_wait(&entry.path());
            supervisor::remove_left(&entry.path());
            if let Ok(id) = fs::read_to_string(entry.path().join("agent/id")) {
                docker::remove_containers_of(id.trim());
            }
        }
    }
}
