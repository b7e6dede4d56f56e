//! A subscriber that is suspended while others read.

use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podmesh_protocol::spec::RuntimeSpec;

use crate::rig::{Rig, job};
use crate::table::{Table, megabytes};

const SUBSCRIBERS: usize = 50;
const TASKS: u32 = 100_000;

/// A subscriber process. Killed when dropped.
struct Subscriber(Child);

impl Drop for Subscriber {
    fn drop(&mut self) {
        // An error means that it has already ended.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

pub(crate) fn measure(table: &mut Table) {
    let mut rig = Rig::new(&["a", "b"], &["--enable-noop", "--cpus", "1000", "--docker", "off"]);
    let subscribe = |_| {
        let mut command = rig.mesh.podmesh(&["events", "--follow"]);
        Subscriber(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    };
    let subscribers: Vec<_> = (0..SUBSCRIBERS).map(subscribe).collect();
    let work = |rig: &mut Rig| {
        rig.rate(job(RuntimeSpec::Noop, &[], TASKS));
        rig.mesh.manager().resident_bytes()
    };
    // The memory after the same work while all of them read.
    work(&mut rig);
    let before = work(&mut rig);
    let stopped = Pid::from_raw(i32::try_from(subscribers[0].0.id()).unwrap());
    kill(stopped, Signal::SIGSTOP).unwrap();
    let after = work(&mut rig);
    let name =
        format!("memory increase: one of {SUBSCRIBERS} subscribers is suspended, {TASKS} tasks");
    table.figure(&name, megabytes(after.saturating_sub(before)), "8 MB");
}
