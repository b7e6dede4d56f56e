//! The verbs about services, against a manager that gives the answers of the test.

#![expect(clippy::unwrap_used, reason = "tests")]

mod fake;
mod logs;

use std::collections::BTreeMap;
use std::process::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use podmesh_protocol::client::{LogSlice, ReplyBody, RequestBody};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::{AttemptId, JobId, Revision};
use podmesh_protocol::node::{NodeState, NodeView, Scheduling};
use podmesh_protocol::service::{
    ReplicaState, ReplicaView, RevisionState, ServiceDetail, ServicePlan, ServiceReply,
    ServiceRequest, ServiceRevision, ServiceSpec, ServiceState, ServiceView,
};
use podmesh_protocol::spec::Resources;

use self::fake::{Answer, FakeManager};

const FILE: &str = "name = \"web\"\nimage = \"nginx:1.27\"\nreplicas = 2\n\
                    ports.http = { container = 80, publish = 8080 }\n";

fn spec() -> ServiceSpec {
    serde_json::from_value(serde_json::json!({
        "name": "web", "replicas": 2,
        "ports": {"http": {"container": 80, "publish": 8080}},
        "run": {"runtime": {"docker": {"image": "nginx:1.27"}}},
    }))
    .unwrap()
}

fn replica(number: u32) -> ReplicaView {
    ReplicaView {
        number,
        revision: 4,
        state: ReplicaState::Healthy.into(),
        attempt: Some(AttemptId::new(JobId(u64::from(number)), 1, 1)),
        node: Some("node-1".parse().unwrap()),
        endpoints: [("http".parse().unwrap(), format!("10.0.0.1:{}", 20_000 + number))].into(),
        message: Some("200 OK".into()),
        failures: 0,
        restarts_in_ms: None,
    }
}

fn detail(replicas: u32) -> ServiceDetail {
    ServiceDetail {
        view: ServiceView {
            service: "web".parse().unwrap(),
            state: ServiceState::Healthy.into(),
            revision: 4,
            replicas,
            healthy: replicas,
            existing: replicas,
            runs: "nginx:1.27".into(),
            published: [("http".parse().unwrap(), 8080)].into(),
            project: None,
        },
        spec: spec(),
        changed: Revision(1),
        replicas: (1..=replicas).map(replica).collect(),
        waits_for: vec![],
        failed_update: None,
        closed_ports: Vec::new(),
    }
}

fn revision() -> ServiceRevision {
    ServiceRevision {
        revision: 4,
        spec: spec(),
        by: "anna".parse().unwrap(),
        applied_wall_ms: 0,
        state: RevisionState::Reached.into(),
        message: None,
    }
}

fn reply(reply: ServiceReply) -> Answer {
    Some(Ok(ReplyBody::Service(reply)))
}

fn shown(detail: ServiceDetail) -> Answer {
    reply(ServiceReply::Service(Box::new(detail)))
}

fn not_found(message: &str) -> Answer {
    Some(Err(ErrorReply::new(ErrorCode::NotFound, message)))
}

fn changed(revision: u32, changed: bool) -> Answer {
    reply(ServiceReply::Changed { service: "web".parse().unwrap(), revision, changed })
}

/// Answers what is not about the test: there is one healthy service `web`, and its replicas have
/// printed nothing.
fn otherwise(body: &RequestBody) -> Answer {
    match body {
        RequestBody::Service(ServiceRequest::Show { service, since, .. }) => {
            match service.as_str() {
                "web" if since.is_some() => None,
                "web" => shown(detail(2)),
                _ => not_found("there is no such service"),
            }
        }
        RequestBody::Service(ServiceRequest::List { after: None, .. }) => {
            reply(ServiceReply::List(vec![detail(2).view]))
        }
        RequestBody::Service(ServiceRequest::List { .. }) => reply(ServiceReply::List(vec![])),
        RequestBody::Service(ServiceRequest::History { .. }) => {
            reply(ServiceReply::History(vec![revision()]))
        }
        RequestBody::Jobs { .. } => Some(Ok(ReplyBody::Jobs(vec![]))),
        RequestBody::Log(_) => Some(Ok(ReplyBody::Log(slice(0, b"", true)))),
        other => unreachable!("not expected here: {other:?}"),
    }
}

fn slice(offset: u64, bytes: &[u8], end: bool) -> LogSlice {
    LogSlice { offset, bytes: bytes.to_vec(), end, removed: false }
}

fn manager(answer: impl Fn(&RequestBody) -> Answer + Send + Sync + 'static) -> FakeManager {
    FakeManager::start(Duration::ZERO, answer)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Asserts the exit code, and parts of standard error.
fn says(output: &Output, code: i32, parts: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "{said:?} does not say {part:?}");
    }
}

#[test]
fn a_service_is_listed_and_shown() {
    let manager = manager(otherwise);
    let list = manager.run(&["services"]);
    assert!(stdout(&list).contains("web      healthy  2/2      4"), "{}", stdout(&list));
    for arguments in [&["service", "web"][..], &["service", "show", "web"]] {
        let text = stdout(&manager.run(arguments));
        for part in ["replicas      2 of 2 healthy\n", "web.2    4 ", "200 OK", "anna"] {
            assert!(text.contains(part), "{part:?}: {text}");
        }
    }
    let json: serde_json::Value =
        serde_json::from_slice(&manager.run(&["service", "web", "-o", "json"]).stdout).unwrap();
    assert_eq!(json["replica_list"][1]["attempt"], "2.1#1");
    assert_eq!(json["spec"]["ports"]["http"]["publish"], 8080);
    let missing = manager.run(&["service", "WEB"]);
    says(&missing, 125, &["no such service", "did you mean `web`?"]);
}

#[test]
fn endpoints_are_printed_for_other_programs() {
    let manager = manager(otherwise);
    let text = |arguments: &[&str]| stdout(&manager.run(arguments));
    let lines = "10.0.0.1:20001\n10.0.0.1:20002\n";
    assert_eq!(text(&["service", "web", "--endpoints"]), lines);
    assert_eq!(text(&["service", "web", "--port", "http"]), lines);
    let servers = text(&["service", "web", "--format", "haproxy"]);
    assert!(servers.starts_with("server web.1 10.0.0.1:20001\n"), "{servers}");
    let json: serde_json::Value =
        serde_json::from_str(&text(&["service", "web", "--format", "prometheus-sd"])).unwrap();
    assert_eq!(json[1]["targets"][0], "10.0.0.1:20002");
    assert_eq!(json[1]["labels"]["replica"], "2");
    let json: serde_json::Value =
        serde_json::from_str(&text(&["service", "web", "--endpoints", "-o", "json"])).unwrap();
    assert_eq!(json["endpoints"][0]["port"], "http");
    let wrong = manager.run(&["service", "web", "--port", "htp"]);
    says(&wrong, 125, &["no port `htp`", "its ports are: http"]);
}

#[test]
fn an_apply_says_before_what_it_changes() {
    let manager = manager(|body| match body {
        RequestBody::Service(ServiceRequest::Plan { .. }) => {
            let mut before = spec();
            before.replicas = 1;
            reply(ServiceReply::Plan(ServicePlan {
                before: Some(Box::new(before)),
                replaces: false,
                placements: [("node-1".parse().unwrap(), 1)].into(),
                waiting: 0,
                waits_for: vec![],
            }))
        }
        RequestBody::Service(ServiceRequest::Apply { .. }) => changed(5, true),
        other => otherwise(other),
    });
    let file = manager.file("web.toml", FILE);
    let dry = manager.run(&["service", "apply", "-f", &file, "--dry-run"]);
    for part in ["-replicas = 1\n+replicas = 2\n", "web changes: replicas", "node-1: 1 new replica"]
    {
        assert!(stdout(&dry).contains(part), "{part:?}: {}", stdout(&dry));
    }
    let json = manager.run(&["service", "apply", "-f", &file, "--dry-run", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (&json["changes"][0], &json["placements"]["node-1"]),
        (&"replicas".into(), &1.into())
    );
    let sent = |manager: &FakeManager| {
        manager.asked().into_iter().any(|body| {
            body == RequestBody::Service(ServiceRequest::Apply { spec: Box::new(spec()) })
        })
    };
    assert!(!sent(&manager));

    let output = manager.run(&["service", "apply", "-f", &file]);
    says(&output, 0, &["web changes: replicas; from 1 to 2 replicas"]);
    assert_eq!(stdout(&output), "web: revision 5\n");
    assert!(sent(&manager));
}

#[test]
fn an_apply_of_the_same_spec_changes_nothing() {
    let manager = manager(|body| match body {
        RequestBody::Service(ServiceRequest::Plan { .. }) => {
            reply(ServiceReply::Plan(ServicePlan {
                before: Some(Box::new(spec())),
                replaces: false,
                placements: BTreeMap::new(),
                waiting: 0,
                waits_for: vec![],
            }))
        }
        RequestBody::Service(ServiceRequest::Apply { .. }) => changed(4, false),
        other => otherwise(other),
    });
    let file = manager.file("web.toml", FILE);
    let dry = manager.run(&["service", "apply", "-f", &file, "--dry-run"]);
    assert_eq!(stdout(&dry), "web: nothing to change\n");
    let output = manager.run(&["service", "apply", "-f", &file, "--wait"]);
    assert_eq!(stdout(&output), "web: nothing to change; it has revision 4\n");
    says(&output, 0, &[]);
    assert!(!stderr(&output).contains("changes"), "{}", stderr(&output));
}

/// Returns a manager whose service goes through these states after a change to revision 5.
fn going_through(states: Vec<ServiceDetail>) -> FakeManager {
    let states = Mutex::new(states);
    manager(move |body| match body {
        RequestBody::Service(ServiceRequest::Restart { .. }) => changed(5, true),
        RequestBody::Service(ServiceRequest::History { .. }) => {
            let message = Some("web.2 did not become healthy".into());
            let state = RevisionState::Failed;
            let failed =
                ServiceRevision { revision: 5, state: state.into(), message, ..revision() };
            reply(ServiceReply::History(vec![failed, revision()]))
        }
        RequestBody::Service(ServiceRequest::Show { .. }) => {
            let mut states = states.lock().unwrap();
            if states.is_empty() { None } else { shown(states.remove(0)) }
        }
        other => otherwise(other),
    })
}

fn at(state: ServiceState, revision: u32, healthy: u32, failed: Option<&str>) -> ServiceDetail {
    let mut detail = detail(2);
    let view = &mut detail.view;
    (view.state, view.revision, view.healthy) = (state.into(), revision, healthy);
    detail.failed_update = failed.map(Into::into);
    detail
}

#[test]
fn wait_ends_when_all_replicas_are_healthy() {
    let mut restarting = at(ServiceState::Updating, 5, 1, None);
    restarting.replicas[1].state = ReplicaState::Restarting.into();
    restarting.replicas[1].message = Some("exit code 3\u{1b}".into());
    let manager = going_through(vec![
        at(ServiceState::Updating, 5, 0, None),
        restarting,
        at(ServiceState::Healthy, 5, 2, None),
    ]);
    let output = manager.run(&["service", "restart", "web", "--wait"]);
    says(
        &output,
        0,
        &["updating, revision 5: 0 of 2", "exit code 3\\u{1b}", "healthy, revision 5"],
    );
    assert_eq!(stdout(&output), "web: revision 5\n");
}

#[test]
fn wait_exits_with_1_after_a_rollback_and_with_124_after_its_time() {
    let why = "web.2 did not become healthy";
    let manager = going_through(vec![
        at(ServiceState::Updating, 5, 0, None),
        at(ServiceState::RollingBack, 4, 1, Some(why)),
        at(ServiceState::Healthy, 4, 2, Some(why)),
    ]);
    let output = manager.run(&["service", "restart", "web", "--wait"]);
    says(&output, 1, &["web is not healthy: revision 5 failed", why, "went back to revision 4"]);

    let manager = going_through(vec![at(ServiceState::Updating, 5, 0, None)]);
    let output = manager.run(&["service", "restart", "web", "--wait", "--timeout", "300ms"]);
    says(&output, 124, &["web is not healthy after 300ms", "it goes on"]);
}

#[test]
fn services_are_removed_although_one_does_not_exist() {
    let gone = AtomicU32::new(0);
    let manager = manager(move |body| match body {
        RequestBody::Service(ServiceRequest::Remove { service }) if service.as_str() == "web" => {
            changed(4, true)
        }
        RequestBody::Service(ServiceRequest::Remove { .. }) => not_found("no service `wen`"),
        RequestBody::Service(ServiceRequest::Show { .. }) => {
            match gone.fetch_add(1, Ordering::Relaxed) {
                0 => shown(at(ServiceState::Removing, 4, 1, None)),
                _ => not_found("no service `web`"),
            }
        }
        other => otherwise(other),
    });
    let output = manager.run(&["service", "remove", "wen", "web", "--wait"]);
    says(&output, 125, &["no service `wen`", "did you mean `web`?"]);
    assert_eq!(stdout(&output), "web: is being removed\n");
}

#[test]
fn a_manager_without_services_is_named_as_the_reason() {
    let manager = manager(|_| Some(Err(ErrorReply::new(ErrorCode::BadMessage, "unknown variant"))));
    says(&manager.run(&["services"]), 125, &["unknown variant", "hint:", "older version"]);
}

#[test]
fn jobs_can_list_the_replicas_of_a_service() {
    let manager = manager(otherwise);
    says(&manager.run(&["jobs", "--service", "web"]), 0, &[]);
    let asked = manager.asked();
    let RequestBody::Jobs { service, .. } = &asked[0] else { unreachable!("{asked:?}") };
    assert_eq!(service.as_ref().map(|name| name.as_str()), Some("web"));
}

fn node(attempts: u32) -> NodeView {
    NodeView {
        admin_labels: [].into(),
        resources: [].into(),
        drain: None,
        maintenance: None,
        node: "node-3".parse().unwrap(),
        state: NodeState::Alive.into(),
        epoch: None,
        program_version: String::new(),
        capacity: Resources::default(),
        free: Resources::default(),
        labels: [].into(),
        runtimes: vec![],
        withdrawn: [].into(),
        unenforced: [].into(),
        low_disks: [].into(),
        attempts,
        seen_ms_ago: None,
        enrolled: false,
        scheduling: Scheduling::Draining.into(),
        address: Some("10.0.0.3".into()),
    }
}

#[test]
fn a_drained_node_is_waited_for_until_it_is_empty() {
    let left = AtomicU32::new(3);
    let manager = manager(move |body| match body {
        RequestBody::NodeScheduling { scheduling, .. } => Some(Ok(ReplyBody::NodeScheduling {
            scheduling: *scheduling,
            attempts: 2,
            notes: Vec::new(),
        })),
        RequestBody::Nodes { after: None, .. } => {
            let left = left.fetch_sub(1, Ordering::Relaxed) - 1;
            Some(Ok(ReplyBody::Nodes(vec![node(left)])))
        }
        RequestBody::Nodes { .. } => Some(Ok(ReplyBody::Nodes(vec![]))),
        other => otherwise(other),
    });
    let output = manager.run(&["nodes", "drain", "node-3", "--wait", "--timeout", "1ms"]);
    says(&output, 124, &["not empty after 1ms", "podmesh nodes"]);
    let output = manager.run(&["nodes", "drain", "node-3", "--wait"]);
    says(&output, 0, &[]);
    assert_eq!(stdout(&output), "node-3: draining, has 2 attempts\n");
    let json = manager.run(&["nodes", "uncordon", "node-3", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["nodes"][0]["scheduling"], "open");
}
