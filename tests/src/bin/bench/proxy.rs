//! The node's proxy, compared with HAProxy in TCP mode. Both pass connections on to the same server.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use podmesh_agent::IngressConfig;
use podmesh_agent::companion::CompanionCommand;
use podmesh_agent::policy::IngressAddress;
use podmesh_agent::proxy::{Endpoints, Proxy, ProxySettings, ServiceNames};
use podmesh_protocol::ids::{AttemptId, JobId};
use podmesh_protocol::service::{PortEndpoints, ServiceEndpoints};
use podmesh_tests::ports::free_port;
use podmesh_tests::wait::until_true;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::table::{Table, median, megabytes, percentile};

/// Bytes of a large body.
const BODY: u64 = 1 << 30;
/// Connections at a time that fetch bodies, or make requests.
const LANES: usize = 4;
/// How long connections are counted.
const SPAN: Duration = Duration::from_secs(3);
/// Rounds of each measure, alternating between the two.
const ROUNDS: usize = 5;
/// Idle connections for the measure of memory.
const IDLE: usize = 2_000;

pub(crate) fn measure(table: &mut Table) {
    let server = serve();
    let ours = OurProxy::start(server);
    let Some(theirs) = HaProxy::start(server) else {
        eprintln!("bench: skipping the comparison: `haproxy` is not installed");
        return;
    };
    let places = [ours.address, theirs.address];
    let pids = [ours.pid(), theirs.process.id()];
    let name = "proxy: MB/s of large bodies, against HAProxy (TCP mode)";
    let cpu = compare(table, name, "0.8", "MB/s", places, pids, bodies);
    let name = "proxy: µs of CPU time for a megabyte, against HAProxy";
    table.ratio(name, cpu[0], cpu[1], "µs", "");
    let name = "proxy: connections/s, against HAProxy";
    let cpu = compare(table, name, "0.7", "/s", places, pids, connections);
    let name = "proxy: µs of CPU time for a connection, against HAProxy";
    table.ratio(name, cpu[0], cpu[1], "µs", "");
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (times, place) in times.iter_mut().zip([places[0], places[1], server]) {
            times.extend(round_trips(place));
        }
    }
    let [ours_us, theirs_us, direct_us] = times.map(|mut times| {
        [0.5, 0.99].map(|share| percentile(&mut times, share).as_secs_f64() * 1e6)
    });
    for (index, name) in ["p50", "p99"].into_iter().enumerate() {
        let name =
            format!("proxy: connect, ask and answer, one at a time, {name}; against HAProxy");
        table.ratio(&name, ours_us[index], theirs_us[index], "µs", "");
    }
    table.figure(
        "the same without a proxy, p50 and p99",
        format!("{:.0} µs, {:.0} µs", direct_us[0], direct_us[1]),
        "",
    );
    let (before, pid) = (ours.resident(), ours.pid());
    let idle: Vec<_> = (0..IDLE).map(|_| TcpStream::connect(ours.address).unwrap()).collect();
    let files = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    until_true("all idle connections are passed on", || files() > 2 * IDLE);
    let grown = ours.resident().saturating_sub(before);
    let value = format!("{}, {} bytes", megabytes(before), grown / IDLE as u64);
    table.figure("proxy: memory, and that of an idle connection", value, "");
    drop(idle);
}

fn compare(
    table: &mut Table,
    name: &str,
    floor: &str,
    unit: &str,
    places: [SocketAddr; 2],
    pids: [u32; 2],
    measure: fn(SocketAddr) -> (f64, f64),
) -> [f64; 2] {
    let mut figures = [Vec::new(), Vec::new()];
    let mut cpu = [0.0; 2];
    let mut done = [0.0; 2];
    for _ in 0..ROUNDS {
        for which in 0..2 {
            let before = cpu_us(pids[which]);
            let (count, seconds) = measure(places[which]);
            cpu[which] += cpu_us(pids[which]) - before;
            done[which] += count;
            figures[which].push(count / seconds);
        }
    }
    let [ours, theirs] = figures.map(median);
    table.ratio(name, ours, theirs, unit, floor);
    [cpu[0] / done[0], cpu[1] / done[1]]
}

/// Returns the microseconds of CPU time that a process has used (proc(5)).
fn cpu_us(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let times = fields.split_whitespace().skip(11).take(2);
    // A tick is a hundredth of a second on Linux.
    times.map(|ticks| ticks.parse::<f64>().unwrap() * 1e4).sum()
}

/// Serves requests of eight bytes, the length of the answer, until this process ends.
fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let body = vec![7; 256 << 10];
        thread::scope(|scope| {
            for client in listener.incoming().flatten() {
                let body = &body;
                // A client may leave at any time.
                scope.spawn(move || _ = answer(client, body));
            }
        });
    });
    address
}

fn answer(mut client: TcpStream, body: &[u8]) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut asked = [0; 8];
    client.read_exact(&mut asked)?;
    let mut left = usize::try_from(u64::from_be_bytes(asked)).unwrap();
    while left > 0 {
        left -= client.write(&body[..left.min(body.len())])?;
    }
    Ok(())
}

/// Asks for an answer of this length, and reads it to the end.
fn ask(place: SocketAddr, length: u64, buffer: &mut [u8]) {
    let mut stream = TcpStream::connect(place).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&length.to_be_bytes()).unwrap();
    let mut read = 0;
    loop {
        match stream.read(buffer).unwrap() {
            0 => break,
            count => read += count as u64,
        }
    }
    assert_eq!(read, length);
}

/// Returns the megabytes of some large bodies at a time, and the seconds that they took.
fn bodies(place: SocketAddr) -> (f64, f64) {
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| ask(place, BODY / LANES as u64, &mut vec![0; 256 << 10]));
        }
    });
    (BODY as f64 / 1e6, began.elapsed().as_secs_f64())
}

/// Returns the number of connections, each with a small request and a small answer, and the seconds
/// that they took.
fn connections(place: SocketAddr) -> (f64, f64) {
    let began = Instant::now();
    let counts: Vec<u32> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES)
            .map(|_| {
                scope.spawn(|| {
                    let (mut count, mut buffer) = (0, [0; 256]);
                    while began.elapsed() < SPAN {
                        ask(place, 100, &mut buffer);
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
    });
    (f64::from(counts.iter().sum::<u32>()), began.elapsed().as_secs_f64())
}

/// Returns the times of connections one after the other.
fn round_trips(place: SocketAddr) -> Vec<Duration> {
    let mut buffer = [0; 256];
    (0..1_000)
        .map(|_| {
            let began = Instant::now();
            ask(place, 100, &mut buffer);
            began.elapsed()
        })
        .collect()
}

/// A proxy of podmesh. It ends when dropped.
struct OurProxy {
    address: SocketAddr,
    folder: TempDir,
    runtime: Runtime,
    proxy: Option<Proxy>,
}

impl OurProxy {
    fn start(server: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("agent");
        let agent_id = uuid::Uuid::new_v4();
        fs::create_dir(&data_dir).unwrap();
        fs::write(data_dir.join("id"), agent_id.to_string()).unwrap();
        let port = free_port();
        let settings = ProxySettings {
            command: CompanionCommand {
                program: "/proc/self/exe".into(),
                arg0: "podmesh".into(),
                args: ["node-proxy".into(), "--data-dir".into(), folder.path().into()].into(),
            },
            data_dir,
            agent_id,
            stop_with_agent: true,
            ingress: IngressConfig {
                address: "127.0.0.1".parse().unwrap(),
                ..IngressConfig::default()
            },
            replica_ports: None,
            names: Arc::new(ServiceNames::new(IngressAddress::All)),
        };
        let runtime = Runtime::new().unwrap();
        let (proxy, mut acks) = runtime.block_on(async { Proxy::open(settings) });
        let attempt = AttemptId::new(JobId(1), 1, 1);
        proxy.apply(Endpoints {
            session: 1,
            update: 1,
            all: true,
            services: vec![ServiceEndpoints {
                service: "web".parse().unwrap(),
                ports: vec![PortEndpoints {
                    port: "http".parse().unwrap(),
                    publish: port,
                    proxy_protocol: false,
                    endpoints: vec![(attempt, server.to_string())],
                }],
            }],
        });
        runtime.block_on(acks.recv()).unwrap();
        assert!(proxy.troubles().borrow().is_empty());
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Self { address, folder, runtime, proxy: Some(proxy) }
    }

    fn pid(&self) -> u32 {
        let text = fs::read_to_string(self.folder.path().join("agent/run/proxy.lock")).unwrap();
        text.trim().parse().unwrap()
    }

    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for OurProxy {
    fn drop(&mut self) {
        if let Some(proxy) = self.proxy.take() {
            self.runtime.block_on(proxy.close());
        }
    }
}

/// HAProxy with the same task. It is killed when dropped.
struct HaProxy {
    address: SocketAddr,
    process: Child,
    _folder: TempDir,
}

impl HaProxy {
    /// Returns `None` if it is not installed.
    fn start(server: SocketAddr) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let file = folder.path().join("haproxy.cfg");
        let text = format!(
            "global\n maxconn 9000\ndefaults\n mode tcp\n timeout connect 1s\n timeout client 1h\n \
             timeout server 1h\n balance leastconn\nlisten web\n bind {address}\n server a {server}\n"
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null()).stderr(Stdio::null());
        let process = match command.spawn() {
            Ok(process) => process,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => panic!("haproxy: {error}"),
        };
        until_true("HAProxy listens", || TcpStream::connect(address).is_ok());
        Some(Self { address, process, _folder: folder })
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}
