//! Peers that do not read, and peers that take all file descriptors.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podmesh_protocol::client::{Request, RequestBody};
use podmesh_protocol::ids::JobId;
use podmesh_protocol::limits::PROTOCOL_VERSION;
use podmesh_protocol::session::ToManager;
use podmesh_protocol::spec::RuntimeSpec;
use podmesh_tests::mesh::Mesh;
use podmesh_wire::control::PeerSocket;
use podmesh_wire::enrolment::Enrolment;
use tokio::runtime::Runtime;

use super::{FLAGS, program};
use crate::rig::{Rig, job};
use crate::table::{Table, megabytes};

/// The limit on the manager's open files in that part.
const OPEN_FILES: u32 = 256;
/// Users that take them, and the connections of each: more than the limit.
const TAKERS: usize = 5;
const CONNECTIONS: usize = 64;

pub(super) fn measure(table: &mut Table) {
    let mut rig = Rig::new(&["a", "b"], &FLAGS);
    stopped_subscriber(&mut rig, table);
    clients(&mut rig, table);
    drop(rig);
    descriptors(table);
}

fn stopped_subscriber(rig: &mut Rig, table: &mut Table) {
    let work = |rig: &Rig| {
        for _ in 0..5 {
            rig.rate(job(RuntimeSpec::Noop, &[], 100_000));
        }
    };
    // First the same work while it reads.
    let mut command = rig.mesh.podmesh(&["events", "--follow"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    work(rig);
    work(rig);
    let before = rig.mesh.manager().resident_bytes();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGSTOP).unwrap();
    work(rig);
    let after = rig.mesh.manager().resident_bytes();
    child.kill().unwrap();
    child.wait().unwrap();
    let name = "a stopped `events -f` at full rate: more memory";
    table.figure(name, megabytes(after.saturating_sub(before)), "8 MB");
}

fn clients(rig: &mut Rig, table: &mut Table) {
    let mut large = job(RuntimeSpec::Noop, &[], 1);
    large.run.env = [("A".to_owned(), "x".repeat(100_000))].into();
    let large = rig.submit(large);
    let before = rig.mesh.manager().resident_bytes();
    let route = rig.mesh.local();
    let deaf = rig.runtime.block_on(async {
        let mut deaf = Vec::new();
        for _ in 0..3 {
            let (receiver, mut sender) = PeerSocket::connect(&route).await.unwrap().split();
            for id in 0..3_000 {
                let body = RequestBody::Job { job: large, since: None, wait_ms: 0 };
                let request = Request { version: PROTOCOL_VERSION, id, body };
                // A client that was disconnected in the meantime cannot send any more.
                _ = sender.send(&ToManager::Request(request)).await;
            }
            deaf.push((receiver, sender));
        }
        deaf
    });
    // When this request is answered, all earlier ones are too.
    rig.ask(RequestBody::Job { job: JobId(1), since: None, wait_ms: 0 });
    std::thread::sleep(Duration::from_secs(3));
    let after = rig.mesh.manager().resident_bytes();
    drop(deaf);
    let name = "3 clients that ask 3,000 times and do not read: more memory";
    table.figure(name, megabytes(after.saturating_sub(before)), "48 MB");
}

/// Measures users on the network that hold all the connections they get.
fn descriptors(table: &mut Table) {
    let mut mesh = Mesh::new(program()).manager_open_files(OPEN_FILES);
    mesh.start_manager();
    mesh.start_agent("a", &FLAGS);
    let runtime = Runtime::new().unwrap();
    let before = mesh.manager().resident_bytes();
    let (held, refused) = runtime.block_on(async {
        let (mut held, mut refused) = (Vec::new(), 0);
        let mut routes = Vec::new();
        for taker in 0..TAKERS {
            let dir = mesh.folder().join(format!("taker-{taker}"));
            std::fs::create_dir(&dir).unwrap();
            let token = mesh.token("viewer").parse().unwrap();
            let name = format!("taker-{taker}").parse().unwrap();
            let enrolment = Enrolment::join(&dir, &token, &name).await.unwrap();
            routes.push(enrolment.route(&dir, None).unwrap());
        }
        for route in routes.iter().flat_map(|route| std::iter::repeat_n(route, 2 * CONNECTIONS)) {
            match PeerSocket::connect(route).await {
                Ok(socket) => held.push(socket),
                Err(_) => refused += 1,
            }
        }
        (held, refused)
    });
    assert!(refused > 0, "no connection was refused, so not all descriptors were taken");
    // The local CLI still gets in, and work goes on.
    let mut answered = 0;
    for _ in 0..20 {
        answered += usize::from(mesh.output(&["nodes"]).status.success());
        let job = mesh.submit(&["--runtime", "noop"]);
        mesh.wait_for_job(job, "succeeded");
    }
    let after = mesh.manager().resident_bytes();
    let name =
        format!("{} connections take all of {OPEN_FILES} descriptors: more memory", held.len());
    table.figure(&name, megabytes(after.saturating_sub(before)), "16 MB");
    table.figure("calls of the local CLI answered then", format!("{answered} of 20"), "all");
}
