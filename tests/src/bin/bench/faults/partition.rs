//! A link that is cut in one or both directions: how fast the cut is noticed, and how fast the node
//! is back.

use std::time::Duration;

use podmesh_protocol::node::NodeState;
use podmesh_tests::mesh::Mesh;
use podmesh_tests::namespace::{Cut, Namespace};

use super::silence::{milliseconds, time_until};
use crate::rig::Rig;
use crate::table::{Table, percentile};

/// Number of cuts in each direction.
const CUTS: usize = 5;
const LEASE_S: u64 = 5;

pub(crate) fn measure(table: &mut Table) {
    let Some(namespace) = Namespace::make() else { return };
    let lease = format!("{LEASE_S}s");
    let mut mesh = Mesh::new(std::env::current_exe().unwrap())
        .listen_on(namespace.host())
        .manager_flags(&["--lease", &lease]);
    mesh.start_manager();
    mesh.start_agent_in(&namespace, "far", &["--docker", "off"]);
    let rig = Rig::of(mesh);
    for cut in Cut::ALL {
        let (mut known, mut over) = (Vec::<Duration>::new(), Vec::<Duration>::new());
        for _ in 0..CUTS {
            namespace.cut(cut);
            known.push(time_until(&rig, "far", NodeState::Lost));
            namespace.heal();
            over.push(time_until(&rig, "far", NodeState::Alive));
        }
        let name = format!("link cut ({cut:?}) to node lost, lease {LEASE_S} s, longest of {CUTS}");
        let floor = format!("{} ms", (LEASE_S + 1) * 1000);
        table.figure(&name, milliseconds(percentile(&mut known, 1.0)), &floor);
        let name = format!("link restored ({cut:?}) to node alive, longest of {CUTS}");
        table.figure(&name, milliseconds(percentile(&mut over, 1.0)), "5000 ms");
    }
}
