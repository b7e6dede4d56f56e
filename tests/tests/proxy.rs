//! The node's proxy as a process: it outlives the agent's link, and survives a lack of files.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podmesh_agent::IngressConfig;
use podmesh_agent::companion::CompanionCommand;
use podmesh_agent::policy::IngressAddress;
use podmesh_agent::proxy::{Ack, Endpoints, Proxy, ProxySettings, ServiceNames};
use podmesh_protocol::ids::{AttemptId, JobId};
use podmesh_protocol::service::{PortEndpoints, ServiceEndpoints};
use podmesh_tests::ports::free_port;
use podmesh_tests::proxy;
use podmesh_tests::wait::until_true;
use rustix::process::{Resource, Rlimit, prlimit};
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");

/// An agent's data directory. Its proxy is killed at the end.
struct Node {
    folder: TempDir,
    port: u16,
    server: SocketAddr,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("agent")).unwrap();
        fs::write(folder.path().join("agent/id"), uuid::Uuid::nil().to_string()).unwrap();
        Self { folder, port: free_port(), server: echo() }
    }

    fn open(&self, stop_with_agent: bool) -> (Proxy, UnboundedReceiver<Ack>) {
        Proxy::open(ProxySettings {
            command: CompanionCommand {
                program: PODMESH.into(),
                arg0: "podmesh".into(),
                args: ["node-proxy".into(), "--data-dir".into(), self.folder.path().into()].into(),
            },
            data_dir: self.folder.path().join("agent"),
            agent_id: uuid::Uuid::nil(),
            stop_with_agent,
            ingress: IngressConfig {
                address: "127.0.0.1".parse().unwrap(),
                ..IngressConfig::default()
            },
            replica_ports: None,
            names: Arc::new(ServiceNames::new(IngressAddress::All)),
        })
    }

    fn endpoints(&self, update: u64) -> Endpoints {
        let ports = vec![PortEndpoints {
            port: "http".parse().unwrap(),
            publish: self.port,
            proxy_protocol: false,
            endpoints: vec![(AttemptId::new(JobId(1), 1, 1), self.server.to_string())],
        }];
        let services = vec![ServiceEndpoints { service: "web".parse().unwrap(), ports }];
        Endpoints { session: 1, update, all: true, services }
    }

    fn lives(&self) -> bool {
        proxy::lives(self.folder.path())
    }

    /// Returns the process id of the running proxy.
    fn pid(&self) -> Pid {
        proxy::pid(self.folder.path()).unwrap()
    }

    fn client(&self) -> TcpStream {
        let client = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        client
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        proxy::kill_and_wait(self.folder.path());
    }
}

/// Sends back to every client what it sends.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || io::copy(&mut &client, &mut &client));
        }
    });
    address
}

fn asks(client: &mut TcpStream, word: &[u8; 5]) {
    client.write_all(word).unwrap();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, word);
}

async fn acked(acks: &mut UnboundedReceiver<Ack>, applied: u64) {
    while acks.recv().await.unwrap().applied != applied {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_outlive_the_agent_and_its_next_run_finds_the_proxy() {
    let node = Node::new();
    let (first, mut acks) = node.open(false);
    assert!(!node.lives(), "no service has a port yet");
    first.apply(node.endpoints(1));
    acked(&mut acks, 1).await;
    let pid = node.pid();
    let session = nix::unistd::getsid(Some(pid)).unwrap();
    assert_eq!(session, pid, "a signal to the agent's group does not reach it");
    let mut client = node.client();
    asks(&mut client, b"first");
    first.close().await;
    asks(&mut client, b"still");
    asks(&mut node.client(), b"fresh");

    let (second, mut acks) = node.open(true);
    second.apply(node.endpoints(7));
    acked(&mut acks, 7).await;
    assert_eq!(node.pid(), pid);
    asks(&mut client, b"again");
    second.close().await;
    until_true("the proxy ends with its agent", || !node.lives());
    assert_eq!(client.read(&mut [0]).unwrap_or_default(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_proxy_is_replaced_and_knows_the_endpoints() {
    let node = Node::new();
    let (link, mut acks) = node.open(false);
    link.apply(node.endpoints(1));
    acked(&mut acks, 1).await;
    let killed = node.pid();
    kill(killed, Signal::SIGKILL).unwrap();
    link.apply(node.endpoints(2));
    acked(&mut acks, 2).await;
    assert_ne!(node.pid(), killed);
    asks(&mut node.client(), b"fresh");
    // SIGTERM ends it in the same way as the agent does. Until then it can still answer.
    let asked = node.pid();
    kill(asked, Signal::SIGTERM).unwrap();
    until_true("it ends", || proxy::pid(node.folder.path()) != Some(asked));
    link.apply(node.endpoints(3));
    acked(&mut acks, 3).await;
    asks(&mut node.client(), b"again");
    link.close().await;
}

/// Returns the CPU time of a process in hundredths of a second (proc(5)).
fn cpu_ticks(pid: Pid) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_without_free_files_waits_and_then_serves() {
    let node = Node::new();
    let (link, mut acks) = node.open(false);
    link.apply(node.endpoints(1));
    acked(&mut acks, 1).await;
    let pid = node.pid();
    let log = node.folder.path().join("log/proxy.log");
    let says = |text| fs::read_to_string(&log).unwrap_or_default().contains(text);
    until_true("its log is open", || says("ready"));
    let mut served = node.client();
    asks(&mut served, b"first");
    let of = rustix::process::Pid::from_raw(pid.as_raw());
    let usual = prlimit(of, Resource::Nofile, Rlimit { current: Some(3), maximum: Some(20_000) });
    let usual = usual.unwrap();
    let mut waiting = node.client();
    until_true("the proxy has no files", || says("Too many open files"));
    let (before, began) = (cpu_ticks(pid), std::time::Instant::now());
    until_true("a second passes", || began.elapsed() > Duration::from_secs(1));
    let used = cpu_ticks(pid) - before;
    assert!(used < 30, "{used} hundredths of a second of CPU time in one second");
    asks(&mut served, b"still");
    prlimit(of, Resource::Nofile, Rlimit { maximum: Some(20_000), ..usual }).unwrap();
    asks(&mut waiting, b"later");
    link.close().await;
}
