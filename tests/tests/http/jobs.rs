//! Submission, lists and conditional requests.

use std::io::Write;

use podmesh_tests::api::{Api, Reply};
use serde_json::{Value, json};

use crate::{ended, local, mesh, problem, remote, script, submit};

fn submitted(api: &Api, key: &str, status: u16) -> Value {
    let reply = api.with("Idempotency-Key", key).post("/api/v1/jobs", &script("true"));
    assert_eq!(reply.status, status);
    let job = reply.header("location").unwrap().to_owned();
    let view = reply.json();
    assert_eq!(job, format!("/api/v1/jobs/{}", view["job"]));
    view["job"].clone()
}

#[test]
fn a_repeated_submission_is_one_job() {
    let mut mesh = mesh(&["a"]);
    let api = local(&mesh);
    let id = "0192f0c4-7e1c-7e6b-8f1e-6d2c1b0a9f80";
    for key in ["order 7", id] {
        let job = submitted(&api, key, 201);
        assert_eq!(submitted(&api, key, 200), job, "{key}");
        mesh.kill_manager();
        mesh.start_manager();
        assert_eq!(submitted(&api, key, 200), job, "after a restart: {key}");
    }
    // The key of another caller is another key.
    let token = crate::token(&mesh, "operator");
    let other = submitted(&api.bearing(&token), "order 7", 201);
    assert_ne!(submitted(&api, "order 7", 200), other);
    // Without a key each request is a job of its own.
    assert_ne!(submit(&api, &script("true")), submit(&api, &script("true")));
}

/// Sends submissions with the keys `0`, `1` … at once. Returns the jobs in the order of the replies,
/// each of which must have this status.
fn submit_at_once(api: &Api, number: u64, status: u16) -> Vec<u64> {
    let job = script("true");
    let requests: String = (0..number)
        .map(|key| {
            let api = api.with("Idempotency-Key", &key.to_string());
            api.request("POST", "/api/v1/jobs", Some(&job))
        })
        .collect();
    let mut connection = api.connect().unwrap();
    connection.write_all(requests.as_bytes()).unwrap();
    let mut reply = Reply::read(connection).unwrap();
    let mut jobs = Vec::new();
    loop {
        assert_eq!(reply.status, status);
        let view: Value = serde_json::from_slice(&reply.body().unwrap()).unwrap();
        jobs.push(view["job"].as_u64().unwrap());
        if jobs.len() as u64 == number {
            // No reply is left over.
            reply.into_connection();
            return jobs;
        }
        reply = reply.next().unwrap();
    }
}

#[test]
fn requests_that_are_sent_at_once_are_answered_in_order() {
    const NUMBER: u64 = 100;
    let mesh = mesh(&[]);
    let remote = remote(&mesh).bearing(&crate::token(&mesh, "operator"));
    for (api, first) in [(local(&mesh), 1), (remote, NUMBER + 1)] {
        let jobs = submit_at_once(&api, NUMBER, 201);
        assert_eq!(jobs, (first..first + NUMBER).collect::<Vec<_>>());
        assert_eq!(submit_at_once(&api, NUMBER, 200), jobs);
    }
    let all = local(&mesh).get("/api/v1/jobs?limit=1000").json();
    assert_eq!(all["jobs"].as_array().unwrap().len() as u64, 2 * NUMBER);
}

#[test]
fn lists_have_pages_and_filters() {
    let mesh = mesh(&["a"]);
    let api = local(&mesh);
    let jobs: Vec<u64> = (0..5).map(|_| submit(&api, &script("true"))).collect();
    jobs.iter().for_each(|job| _ = ended(&api, *job));
    let running = submit(&api, &script("sleep 600"));
    let (mut found, mut next) = (vec![], Some("/api/v1/jobs?limit=2&by=root".to_owned()));
    while let Some(path) = next {
        let reply = api.get(&path);
        let link = reply.header("link").map(|link| {
            let (path, rel) = link.strip_prefix('<').unwrap().split_once('>').unwrap();
            assert_eq!(rel, "; rel=\"next\"");
            path.to_owned()
        });
        let page = reply.json();
        assert_eq!(page["more"], link.is_some());
        found.extend(
            page["jobs"].as_array().unwrap().iter().map(|job| job["job"].as_u64().unwrap()),
        );
        next = link;
    }
    assert_eq!(found, jobs.iter().copied().chain([running]).rev().collect::<Vec<_>>());
    let active = api.get("/api/v1/jobs?active=true").json();
    assert_eq!(active["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(active["jobs"][0]["job"], running);
    assert_eq!(api.get("/api/v1/jobs?by=nobody").json()["jobs"], json!([]));

    let array = json!({ "name": "array", "spec": {
        "command": ["sh", "-c", "exit $((PODMESH_TASK_INDEX % 2))"], "last_index": 4,
        "cpu_millis": 10 } });
    let array = submit(&api, &array);
    ended(&api, array);
    let failed = api.get(&format!("/api/v1/jobs/{array}/tasks?state=failed&limit=1"));
    assert!(failed.header("link").unwrap().contains("from="));
    assert_eq!(failed.json()["tasks"][0]["task"], format!("{array}.1"));
}

#[test]
fn a_state_that_the_client_has_is_not_sent_again() {
    let mesh = mesh(&["a"]);
    let api = local(&mesh);
    let job = submit(&api, &script("true"));
    ended(&api, job);
    let path = format!("/api/v1/jobs/{job}");
    let tag = api.get(&path).header("etag").unwrap().to_owned();
    let reply = api.with("If-None-Match", &tag).get(&path);
    assert_eq!((reply.status, reply.text()), (304, String::new()));
    assert_eq!(api.with("If-None-Match", "W/\"1\"").get(&path).status, 200);

    let spec = json!({ "command": ["sleep", "600"], "cpu_millis": 10 });
    assert_eq!(api.send("PUT", "/api/v1/services/web", Some(&spec)).unwrap().status, 200);
    let mut since = 0;
    while api.get("/api/v1/services/web").json()["state"] != "healthy" {
        let reply = api.get(&format!("/api/v1/services/web?since={since}&wait_ms=30000"));
        let tag = reply.header("etag").unwrap();
        since = tag.trim_start_matches("W/").trim_matches('"').parse().unwrap();
    }
    let tag = api.get("/api/v1/services/web").header("etag").unwrap().to_owned();
    assert_eq!(api.with("If-None-Match", &tag).get("/api/v1/services/web").status, 304);
}

#[test]
fn an_error_says_what_is_wrong_and_where() {
    let mesh = mesh(&[]);
    let api = local(&mesh);
    let post = |body: Value| api.post("/api/v1/jobs", &body);
    let said =
        problem(post(json!({ "name": "x", "spec": { "comand": ["a"] } })), 400, "bad_request");
    assert!(said.contains("spec.comand"), "{said}");
    let said =
        problem(post(json!({ "name": "x", "spec": { "retries": "many" } })), 400, "bad_request");
    assert!(said.contains("spec.retries"), "{said}");
    let said = problem(post(json!({ "name": "x", "spec": {} })), 422, "invalid_spec");
    assert!(said.contains("command"), "{said}");
    let mut reply =
        post(json!({ "name": "x", "spec": { "container": { "image": "a", "imge": 1 } } }));
    let said = String::from_utf8(reply.body().unwrap()).unwrap();
    assert!(said.contains("imge"), "{said}");
    problem(api.get("/api/v1/jobs/99"), 404, "not_found");
    let said = problem(api.get("/api/v1/jobs/seven"), 404, "not_found");
    assert!(said.contains("seven"), "{said}");
    let said = problem(api.get("/api/v1/jobs?colour=red"), 400, "bad_request");
    assert!(said.contains("colour"), "{said}");
    problem(api.get("/api/v1/nothing"), 404, "not_found");
    problem(api.send("PATCH", "/api/v1/jobs", None).unwrap(), 405, "method_not_allowed");
    problem(
        api.with("Content-Type", "text/plain").send("POST", "/api/v1/jobs", None).unwrap(),
        415,
        "unsupported_media_type",
    );
}
