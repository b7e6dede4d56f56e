//! Services: updates and faults under load, and what they cost at rest.

mod load;
mod server;

use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podmesh_protocol::client::{ReplyBody, RequestBody};
use podmesh_protocol::service::{
    PortSpec, ReplicaState, ReplicaView, ServiceDetail, ServiceReply, ServiceRequest, ServiceSpec,
    ServiceState,
};
use podmesh_protocol::spec::{Resources, RuntimeSpec};
use podmesh_tests::light::LightAgents;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until;

use self::load::Load;
use crate::churn::cpu_seconds;
use crate::rig::{Rig, job};
use crate::table::{Table, megabytes, percentile};

/// With this variable, this program is a web server on the port that it names.
pub(crate) const SERVE: &str = "PODMESH_PORT_HTTP";
/// The published port.
const PORT: u16 = 8080;
/// The replicas of the measured service.
const REPLICAS: u32 = 4;
/// How many updates there are, unless `PODMESH_UPDATES` says otherwise.
const UPDATES: u64 = 20;

/// Runs the web server of a replica.
pub(crate) fn serve(port: &str) -> ExitCode {
    server::run(port)
}

pub(crate) fn measure(table: &mut Table) {
    let updates = std::env::var("PODMESH_UPDATES").ok().and_then(|text| text.parse().ok());
    let updates = updates.unwrap_or(UPDATES);
    under_load(updates, false, table);
    under_load(updates, true, table);
    faults(table);
}

/// Returns a mesh of two nodes, and where their proxies listen.
fn mesh() -> (Rig, [SocketAddr; 2]) {
    let mut mesh = Mesh::new(std::env::current_exe().unwrap()).manager_flags(&[
        "--lease",
        "2s",
        "--heartbeat",
        "200ms",
    ]);
    mesh.start_manager();
    let addresses = ["a", "b"].map(|node| {
        mesh.start_agent(node, &["--docker", "off"]);
        SocketAddr::new(mesh.ingress(node).into(), PORT)
    });
    (Rig::of(mesh), addresses)
}

/// Returns a service of web servers, which differs for each `text`.
fn web(text: &str) -> ServiceSpec {
    let program = std::env::current_exe().unwrap();
    let mut run = job(RuntimeSpec::Process, &[program.to_str().unwrap()], 1).run;
    run.env.insert("REVISION".into(), text.into());
    run.stop_grace_ms = 10_000;
    let publish = PortSpec { publish: Some(PORT), ..PortSpec::default() };
    ServiceSpec {
        name: "web".parse().unwrap(),
        replicas: REPLICAS,
        require: [].into(),
        spread: None,
        place: Default::default(),
        project: None,
        depends_on: [].into(),
        resources: Resources { cpu_millis: 100, memory_bytes: 0 },
        ports: Arc::new([("http".parse().unwrap(), publish)].into()),
        health: None,
        restart: Default::default(),
        update: Default::default(),
        drain_ms: 5_000,
        run,
    }
}

fn ask(rig: &Rig, request: ServiceRequest) -> ServiceReply {
    match rig.ask(RequestBody::Service(request)) {
        ReplyBody::Service(reply) => reply,
        other => panic!("{other:?}"),
    }
}

fn show(rig: &Rig) -> ServiceDetail {
    let service = "web".parse().unwrap();
    match ask(rig, ServiceRequest::Show { service, since: None, wait_ms: 0 }) {
        ServiceReply::Service(detail) => *detail,
        other => panic!("{other:?}"),
    }
}

fn apply(rig: &Rig, spec: ServiceSpec) {
    ask(rig, ServiceRequest::Apply { spec: Box::new(spec) });
}

fn wait_until_healthy(rig: &Rig) {
    until("the service is healthy", || {
        (show(rig).view.state == ServiceState::Healthy).then_some(())
    });
}

/// Measures the requests that fail while a service is updated, and optionally agents and manager are
/// killed.
fn under_load(updates: u64, kills: bool, table: &mut Table) {
    let (mut rig, addresses) = mesh();
    apply(&rig, web("0"));
    wait_until_healthy(&rig);
    for address in &addresses {
        until("the proxies listen", || TcpStream::connect(address).ok());
    }
    let load = Load::start(&addresses);
    for update in 1..=updates {
        apply(&rig, web(&update.to_string()));
        if kills {
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..500)));
            match fastrand::u8(0..3) {
                0 => {
                    rig.mesh.kill_manager();
                    rig.mesh.start_manager();
                    rig.reconnect();
                }
                node => {
                    let node = ["a", "b"][usize::from(node - 1)];
                    rig.mesh.kill_agent(node);
                    rig.mesh.start_agent(node, &["--docker", "off"]);
                }
            }
        }
        wait_until_healthy(&rig);
    }
    let load::Result { answers, repeated, failures } = load.stop();
    if let Some(failure) = failures.first() {
        eprintln!("  the first failure: {failure}");
    }
    let beside = if kills { ", agents and manager killed at random" } else { "" };
    table.figure(
        &format!(
            "requests failed during {updates} updates of {REPLICAS} replicas under load{beside}"
        ),
        format!("{} of {answers} ({repeated} repeated by the client)", failures.len()),
        "0",
    );
}

/// Measures how long a killed replica and a killed node are noticed.
fn faults(table: &mut Table) {
    let (mut rig, _) = mesh();
    apply(&rig, web("0"));
    wait_until_healthy(&rig);
    let (mut out, mut back) = (Vec::new(), Vec::new());
    for round in 1..=5 {
        // A new revision has no failures yet, so that the first restart comes at once.
        apply(&rig, web(&round.to_string()));
        wait_until_healthy(&rig);
        for number in 1..=REPLICAS {
            let detail = show(&rig);
            let victim = detail.replicas.iter().find(|replica| replica.number == number).unwrap();
            let endpoint: SocketAddr = victim.endpoints.values().next().unwrap().parse().unwrap();
            let (pid, attempt) = (load::pid_at(endpoint), victim.attempt);
            let gone = |replica: &ReplicaView| replica.attempt != attempt;
            let began = Instant::now();
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            until("it is out", || show(&rig).replicas.iter().all(gone).then_some(()));
            out.push(began.elapsed());
            until("there is another one", || {
                let all = show(&rig).replicas;
                let healthy = all.iter().filter(|one| one.state == ReplicaState::Healthy).count();
                (healthy == REPLICAS as usize && all.iter().all(gone)).then_some(())
            });
            back.push(began.elapsed());
        }
    }
    let longest = |mut times: Vec<Duration>| format!("{:.0?}", percentile(&mut times, 1.0));
    table.figure("replica killed to out of the endpoints, longest of 20", longest(out), "100 ms");
    table.figure("replica killed to its successor healthy, longest of 20", longest(back), "1 s");

    let began = Instant::now();
    rig.mesh.kill_agent("b");
    rig.mesh.kill_supervisor("b");
    until("nothing is sent there", || {
        let there = |replica: &ReplicaView| {
            replica.node.as_ref().is_some_and(|node| node.as_str() == "b")
                && replica.state == ReplicaState::Healthy
        };
        (!show(&rig).replicas.iter().any(there)).then_some(())
    });
    table.figure(
        "node killed to no more requests sent there",
        format!("{:.0?}", began.elapsed()),
        "1 s",
    );
}

/// Measures the manager with many services at rest.
pub(crate) fn at_rest(table: &mut Table) {
    let mesh = Mesh::with_agents(std::env::current_exe().unwrap(), &[]);
    let route = mesh.local();
    let agents = LightAgents::start(5, 1_000, move |_| route.clone());
    until("all are there", || (agents.connected() == 5).then_some(()));
    let mut rig = Rig::of(mesh);
    let before = rig.mesh.manager().resident_bytes();
    let start = |rig: &Rig, numbers: std::ops::Range<u16>| {
        for number in numbers {
            let publish = PortSpec { publish: Some(1_024 + number), ..PortSpec::default() };
            let spec = ServiceSpec {
                name: format!("web-{number}").parse().unwrap(),
                replicas: 2,
                ports: Arc::new([("http".parse().unwrap(), publish)].into()),
                run: job(RuntimeSpec::Noop, &[], 1).run,
                ..web("0")
            };
            apply(rig, spec);
        }
    };
    let healthy = |rig: &Rig, services: usize| {
        let all = ServiceRequest::List { after: None, limit: 1_000 };
        let ServiceReply::List(rows) = ask(rig, all) else { panic!("no list") };
        let healthy = rows.iter().filter(|row| row.state == ServiceState::Healthy);
        (healthy.count() == services).then_some(())
    };
    start(&rig, 0..500);
    until("500 services are healthy", || healthy(&rig, 500));
    std::thread::sleep(Duration::from_secs(2));
    let pid = rig.mesh.manager().pid();
    let (cpu, began) = (cpu_seconds(pid), Instant::now());
    std::thread::sleep(Duration::from_secs(10));
    let share = (cpu_seconds(pid) - cpu) / began.elapsed().as_secs_f64();
    let name = "500 services of 2 replicas at rest: of a core";
    table.figure(name, format!("{:.1} %", share * 100.0), "1 %");
    start(&rig, 500..1_000);
    until("1,000 services are healthy", || healthy(&rig, 1_000));
    let bytes = rig.mesh.manager().resident_bytes().saturating_sub(before);
    table.figure("manager's memory for 1,000 services of 2 replicas", megabytes(bytes), "10 MB");
}
