//! `check` finds contradictions between what is stored of places, dependencies, schedules and queues.

use podmesh_manager_core::state::{Drain, Maintenance, QueueRow};
use podmesh_protocol::place::Claims;
use podmesh_protocol::queue::DeadLetter;
use rusqlite::{Connection, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::{FILE_NAME, check};
use super::*;

/// A history with claims, an exclusive task, a drain, labels, a dependency, a schedule and a queue.
fn world() -> World {
    let mut world = World::new(1);
    for node in NODES {
        world.connect(node);
    }
    let by = || name("ann");
    let schedule = |node: &str, scheduling, drain| Command::ScheduleNode {
        by: by(),
        node: name(node),
        scheduling,
        drain,
    };
    world.command(schedule("b", Scheduling::Cordoned, DrainSpec::default()));
    world.command(schedule("c", Scheduling::Cordoned, DrainSpec::default()));
    let small = Resources { cpu_millis: 100, memory_bytes: 0 };
    let with = |resources: &[(&str, u32)], exclusive| {
        let resources = resources.iter().map(|(resource, millis)| (name(resource), *millis));
        let place = PlaceRules { resources: resources.collect(), exclusive, ..Default::default() };
        JobSpec { place: place.into(), resources: small, ..job_spec(2) }
    };
    let mut submission = 0;
    let mut submit = |world: &mut World, spec: JobSpec| {
        submission += 1;
        let submission = SubmissionId(Uuid::from_u128(submission));
        let spec = Arc::new(spec);
        let upstream = world.store.history.upstream(&spec).unwrap();
        world.command(Command::Submit { by: by(), submission, spec, upstream });
    };
    submit(&mut world, with(&[("gpu", 500)], false));
    world.command(schedule("b", Scheduling::Open, DrainSpec::default()));
    world.command(schedule("a", Scheduling::Cordoned, DrainSpec::default()));
    submit(&mut world, JobSpec { array: job_spec(1).array, ..with(&[], true) });
    let after = vec![Dependency { job: JobId(1), when: Condition::Ended }];
    submit(&mut world, JobSpec { after, ..job_spec(1) });
    let reason = Some("new disks".into());
    let drain = DrainSpec { deadline_ms: Some(1_000_000), requeue: true, reason };
    world.command(schedule("c", Scheduling::Draining, drain));
    let spec = MaintenanceSpec {
        from_ms: world.now.wall_ms + 9_000_000,
        for_ms: 60_000,
        drain: DrainSpec::default(),
    };
    let maintenance = Some(spec);
    world.command(Command::SetMaintenance { by: by(), node: name("b"), maintenance });
    let set = [(name("zone"), "b".to_owned())].into();
    let remove = BTreeSet::new();
    world.command(Command::LabelNode { by: by(), node: name("c"), set, remove });
    let spec = ScheduleSpec {
        name: name("tick"),
        when: When::Every { every_ms: 2_000 },
        overlap: Overlap::Skip,
        catch_up_ms: 1_000,
        job: Box::new(job_spec(1)),
    };
    world.command(Command::SaveSchedule { by: by(), spec: Arc::new(spec) });
    let dead_letter = Some(Box::new(job_spec(1)));
    let change = QueueChange { dead_letter, ..QueueChange::default() };
    world.command(Command::SetQueue { by: by(), queue: name("night"), change });
    (0..4).for_each(|_| world.pass(2_000));
    world
}

/// Changes a value that is stored as MessagePack.
fn change<T: Serialize + DeserializeOwned>(
    connection: &Connection,
    (table, column, row): (&str, &str, &str),
    change: impl FnOnce(&mut T),
) {
    let select = format!("SELECT {column} FROM {table} WHERE {row}");
    let bytes: Vec<u8> = connection.query_row(&select, [], |row| row.get(0)).unwrap();
    let mut value: T = rmp_serde::from_slice(&bytes).unwrap();
    change(&mut value);
    let bytes = rmp_serde::to_vec_named(&value).unwrap();
    let update = format!("UPDATE {table} SET {column} = ?1 WHERE {row}");
    assert_eq!(connection.execute(&update, params![bytes]).unwrap(), 1);
}

type Damage = fn(&Connection);

fn run(connection: &Connection, sql: &str) {
    connection.execute_batch(sql).unwrap();
    assert!(connection.changes() > 0, "{sql}");
}

/// Returns what `check` says of a damaged history.
fn found(damage: impl FnOnce(&Connection)) -> String {
    let world = world();
    let connection = world.store.writer.connection();
    let examined =
        || check::examine(connection, &world.dir.path().join(FILE_NAME)).unwrap().wrong.join("; ");
    assert_eq!(examined(), "");
    damage(connection);
    examined()
}

/// The claims of one of two tasks that share an id.
const CLAIMS: (&str, &str, &str) = ("attempts", "claims", "job = 1 AND task = 2");

#[test]
fn check_compares_claims_with_jobs_and_with_each_other() {
    let claims = |edit: fn(&mut Claims)| found(|connection| change(connection, CLAIMS, edit));
    let both = |connection: &Connection| {
        for row in ["job = 1 AND task = 1", "job = 1 AND task = 2"] {
            let claims = ("attempts", "claims", row);
            change(connection, claims, |claims: &mut Claims| {
                claims.get_mut(&name("gpu")).unwrap().millis = 600;
            });
        }
        change(connection, ("job_specs", "spec", "job = 1"), |spec: &mut JobSpec| {
            spec.place.resources.insert(name("gpu"), 600);
        });
    };
    assert!(found(both).contains("attempts have 1200 thousandths of gpu"), "{}", found(both));
    let others = [
        claims(|claims| claims.get_mut(&name("gpu")).unwrap().millis = 600),
        claims(Claims::clear),
        claims(|claims| claims.get_mut(&name("gpu")).unwrap().ids.push("w".into())),
        claims(|claims| {
            let claim = claims.remove(&name("gpu")).unwrap();
            claims.insert(name("tape"), claim);
        }),
        found(|connection| run(connection, "UPDATE attempts SET claims = NULL WHERE task = 2")),
    ];
    for says in others {
        assert!(says.contains("attempt 1.2#1") && says.contains("asks for"), "{says}");
    }
    let crowd = "UPDATE attempts SET node = (SELECT node FROM nodes WHERE name = 'b')";
    let says = found(|connection| run(connection, crowd));
    assert!(says.contains("attempt 2.1#1 has node b for itself"), "{says}");
}

#[test]
fn check_looks_at_drains_and_labels() {
    let drain = ("nodes", "drain", "name = 'c'");
    let cases: [(Damage, &str); 5] = [
        (|c| run(c, "UPDATE nodes SET scheduling = 0 WHERE name = 'c'"), "is not drained"),
        (|c| run(c, "UPDATE nodes SET admin_labels = x'c1' WHERE name = 'c'"), ""),
        (|c| run(c, "UPDATE nodes SET drain = x'c1' WHERE name = 'c'"), ""),
        (
            |c| {
                let labels = ("nodes", "admin_labels", "name = 'c'");
                change(c, labels, |labels: &mut BTreeMap<String, String>| {
                    labels.insert("zone".into(), "\u{1b}".into());
                });
            },
            "labels that admins gave node c",
        ),
        (
            |c| {
                let offers = ("nodes", "resources", "name = 'c'");
                change(c, offers, |offers: &mut BTreeMap<String, Offer>| {
                    offers.get_mut("gpu").unwrap().ids = vec!["x".into(), "x".into()];
                });
            },
            "what node c offers",
        ),
    ];
    for (damage, part) in cases {
        let says = found(damage);
        assert!(!says.is_empty() && says.contains(part), "{part}: {says}");
    }
    let says = found(|c| {
        change(c, drain, |drain: &mut Drain| drain.spec.reason = Some(String::new()));
    });
    assert!(says.contains("the drain of node c: reason"), "{says}");
}

#[test]
fn check_compares_dependencies_with_jobs() {
    for (sql, part) in [
        ("DELETE FROM job_dependencies", "the row of job 3 disagrees"),
        ("UPDATE job_dependencies SET upstream = 9", "job 9"),
        ("UPDATE job_dependencies SET upstream = 3", "job 3 waits for itself"),
        ("UPDATE job_dependencies SET job = 99", "job 99, which does not exist"),
        ("UPDATE job_dependencies SET progress = 3", "job 3 waits for job 1"),
        ("UPDATE job_dependencies SET condition = 0", "the row of job 3 disagrees"),
    ] {
        let says = found(|connection| run(connection, sql));
        assert!(says.contains(part), "{sql}: {says}");
    }
}

#[test]
fn check_compares_schedules_with_their_history() {
    for sql in [
        "DELETE FROM schedule_runs WHERE number = 4",
        "DELETE FROM schedule_runs WHERE number = 2",
        "UPDATE schedule_runs SET job = NULL WHERE result = 0",
        "UPDATE schedule_runs SET job = 1 WHERE result <> 0",
        "UPDATE schedule_runs SET result = 9 WHERE number = 1",
        "UPDATE schedule_runs SET count = 0 WHERE number = 1",
        "UPDATE schedule_runs SET instant_ms = 9000000000000 WHERE number = 1",
        "UPDATE schedule_runs SET schedule = 'tock'",
        "UPDATE schedules SET schedule = 'tock'",
        "UPDATE schedule_specs SET spec = x'80'",
    ] {
        let says = found(|connection| run(connection, sql));
        assert!(!says.is_empty(), "{sql}");
    }
}

#[test]
fn check_looks_at_dead_letter_jobs() {
    let settings = ("queues", "settings", "queue = 'night'");
    let edit = |edit: fn(&mut JobSpec)| {
        found(|connection| {
            change(connection, settings, |row: &mut QueueRow| {
                edit(Arc::make_mut(row.dead_letter.as_mut().unwrap()));
            });
        })
    };
    let says = edit(|spec| spec.run.command.clear());
    assert!(says.contains("the dead-letter job of queue night"), "{says}");
    let says = edit(|spec| spec.rules.queue = Some(name("day")));
    assert!(says.contains("is in queue day, which is not in the database"), "{says}");
    let twice = |connection: &Connection| {
        for job in ["job = 1", "job = 2"] {
            change(connection, ("job_specs", "spec", job), |spec: &mut JobSpec| {
                let attempt = AttemptId::new(JobId(9), 1, 1);
                spec.dead_letter = Some(Box::new(DeadLetter { queue: name("night"), attempt }));
            });
        }
    };
    let says = found(twice);
    assert!(says.contains("9.1#1 has two dead-letter jobs"), "{says}");
}

#[test]
fn check_looks_at_maintenance() {
    let planned = ("nodes", "maintenance", "name = 'b'");
    let edit = |edit: fn(&mut Maintenance)| found(|connection| change(connection, planned, edit));
    let says = edit(|planned| planned.before = Some(Scheduling::Open));
    assert!(says.contains("the maintenance of node b has begun, and it is not drained"), "{says}");
    let says = edit(|planned| planned.spec.for_ms = 0);
    assert!(says.contains("the maintenance of node b: for (ms)"), "{says}");
    let says = found(|c| run(c, "UPDATE nodes SET maintenance = x'c1' WHERE name = 'b'"));
    assert!(!says.is_empty());
}
