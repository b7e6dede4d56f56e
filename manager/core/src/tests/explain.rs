use super::*;
use podmesh_protocol::client::{Reply, ReplyBody};

fn needs(cpu_millis: u32, memory_bytes: u64) -> JobSpec {
    JobSpec { resources: Resources { cpu_millis, memory_bytes }, ..spec() }
}

#[test]
fn each_reason_is_a_clear_sentence() {
    let mut world = World::new();
    world.submit(spec());
    assert_eq!(world.explain(1), ["no node has joined yet"]);
    world.connect(Hello { runtimes: vec![RuntimeKind::Docker.into()], ..hello("c", 3) }, 3);
    assert_eq!(world.explain(1), ["runtime process: no node offers it (1 node)"]);
    world.cancel(1);

    let labels = |zone: &str| BTreeMap::from([(name("zone"), zone.to_owned())]);
    let capacity = Resources { cpu_millis: 2_000, memory_bytes: 16 * GIB };
    world.connect(Hello { labels: labels("x"), capacity, ..hello("a", 1) }, 1);
    let mut both = labels("y");
    both.insert(name("gpu"), "a100".into());
    let capacity = Resources { cpu_millis: 4_000, memory_bytes: 8 * GIB };
    let b =
        welcome(&world.connect(Hello { labels: both.clone(), capacity, ..hello("b", 2) }, 2)).epoch;

    let said = |world: &mut World, spec: JobSpec| {
        world.submit(spec);
        let job = world.core.state().last_job.0;
        let mut lines = world.explain(job);
        world.cancel(job);
        lines.retain(|line| !line.starts_with("first in line"));
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.remove(0)
    };
    assert_eq!(
        said(&mut world, JobSpec { require: labels("z"), ..spec() }),
        "label zone=z: no node that offers process has it (3 nodes)"
    );
    let mut apart = labels("x");
    apart.insert(name("gpu"), "a100".into());
    assert_eq!(
        said(&mut world, JobSpec { require: apart, ..spec() }),
        "labels gpu=a100, zone=x: no node has all of them (3 nodes)"
    );
    assert_eq!(
        said(&mut world, needs(8_000, 0)),
        "needs 8 cpus; the largest node that meets the other requirements, `b`, has 4 cpus"
    );
    assert_eq!(
        said(&mut world, needs(1_000, 64 * GIB)),
        "needs 64.0 GiB of memory; the largest node that meets the other requirements, `a`, has 16.0 GiB"
    );
    assert_eq!(
        said(&mut world, needs(4_000, 16 * GIB)),
        "needs 4 cpus and 16.0 GiB of memory; no node that meets the other requirements has both"
    );

    world.submit(JobSpec { array: ArrayRange { first: 1, last: 3 }, ..needs(1_500, 3 * GIB) });
    assert_eq!(
        said(&mut world, needs(1_500, 0)),
        "waits for room: 2 nodes fit, all busy (most free: `b` with 1 cpu, 2.0 GiB)"
    );
    assert_eq!(
        said(&mut world, JobSpec { require: both, ..needs(1_250, 0) }),
        "waits for room: 1 node fits, it is busy (most free: `b` with 1 cpu, 2.0 GiB)"
    );
    world.beat(b, HeartbeatChange::Late);
    world.submit(needs(3_000, 0));
    assert_eq!(world.explain(10), ["node `b` is suspect"]);
    world.beat(b, HeartbeatChange::LeaseExpired);
    assert_eq!(world.explain(10), ["node `b` is lost"]);
    assert_eq!(world.explain(77), [""; 0]);
}

#[test]
fn the_time_until_a_retry_is_given() {
    let mut world = World::new();
    let epoch = world.join("a", 1);
    let mut spec = array(2);
    spec.retry = RetryPolicy { retries: 1, backoff_ms: 3_000, backoff_ms_max: 3_000, ..spec.retry };
    world.submit(spec);
    assert_eq!(world.explain(1), [""; 0], "none waits");
    world.report(1, epoch, vec![exited(1, at(1, 1, 1), 1)]);
    world.pass(500);
    assert_eq!(world.explain(1), ["1 task waits for a retry; the next in 3 s"]);
    world.report(1, epoch, vec![exited(2, at(1, 2, 1), 1)]);
    assert_eq!(world.explain(1), ["2 tasks wait for a retry; the next in 3 s"]);
}

#[test]
fn nodes_are_listed_in_pages_by_name() {
    let mut world = World::new();
    for (number, node) in (1..).zip(["c", "a", "b"]) {
        world.join(node, number);
    }
    let page = |after: Option<&str>, limit| {
        let rows = world.core.list_nodes(world.now, after.map(name).as_ref(), limit);
        rows.into_iter().map(|row| row.node.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 2), ["a", "b"]);
    assert_eq!(page(Some("b"), u32::MAX), ["c"]);
    assert_eq!(page(Some("aa"), 1), ["b"]);
    assert_eq!(page(Some("c"), 5), [""; 0]);
}

#[test]
fn a_page_of_nodes_fits_a_frame() {
    let mut world = World::new();
    for number in 0..100u64 {
        let labels = (0..64)
            .map(|label| (name(&format!("{}{label}", "l".repeat(120))), "v".repeat(256)))
            .collect();
        let hello = Hello { labels, ..hello(&format!("n{number:03}"), number) };
        world.connect(hello, number);
    }
    let (mut after, mut seen) = (None, 0);
    loop {
        let rows = world.core.list_nodes(world.now, after.as_ref(), 99);
        let result = Ok(ReplyBody::Nodes(rows.clone()));
        podmesh_protocol::codec::encode(&ToPeer::Reply(Reply { id: u64::MAX, result })).unwrap();
        seen += rows.len();
        let Some(last) = rows.last() else { break };
        after = Some(last.node.clone());
    }
    assert_eq!(seen, 100);
}
