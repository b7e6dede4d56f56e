//! Every route, checked against the document that the manager serves.

use std::collections::BTreeSet;

use jsonschema::Validator;
use podmesh_tests::api::Reply;
use serde_json::{Value, json};

use crate::{ended, local, mesh, script, submit};

/// The document, and which of its operations were called.
struct Document {
    document: Value,
    called: BTreeSet<(String, String)>,
}

impl Document {
    /// Checks a reply against the operation of a path. Returns the body.
    fn check(&mut self, method: &str, path: &str, mut reply: Reply) -> Value {
        let what = format!("{method} {path}: {}", reply.status);
        let route = self.route(method, path);
        let operation = &self.document["paths"][&route][method.to_lowercase()];
        self.called.insert((method.to_owned(), route));
        let status = reply.status.to_string();
        let bytes = reply.body().unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let responses = operation["responses"].as_object().unwrap();
        let response = responses.get(&status).or_else(|| {
            // What is not in the document by itself is a problem.
            (reply.status >= 400).then(|| &responses["default"])
        });
        let response = response.unwrap_or_else(|| panic!("{what} is not in the document: {text}"));
        let Some(content) = response["content"].as_object() else {
            assert!(bytes.is_empty(), "{what}: {text}");
            return Value::Null;
        };
        let kind = reply.header("content-type").unwrap().split(';').next().unwrap().to_owned();
        let media = content.get(&kind).unwrap_or_else(|| panic!("{what}: {kind}"));
        if !kind.ends_with("json") {
            return text.into();
        }
        let body: Value = serde_json::from_str(&text).unwrap();
        let validator = self.validator(&media["schema"]);
        let errors: Vec<String> = validator
            .iter_errors(&body)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{what}: {errors:?}\n{text}");
        body
    }

    /// Returns the path in the document that stands for this one.
    fn route(&self, method: &str, path: &str) -> String {
        let path = path.split('?').next().unwrap();
        let parts: Vec<&str> = path.split('/').collect();
        let fits = |route: &&String| {
            let pattern: Vec<&str> = route.split('/').collect();
            let same = |(one, other): (&&str, &&str)| one == other || one.starts_with('{');
            pattern.len() == parts.len() && pattern.iter().zip(&parts).all(same)
        };
        let routes = self.document["paths"].as_object().unwrap();
        let mut found: Vec<&String> = routes.keys().filter(fits).collect();
        found.retain(|route| !routes[*route][method.to_lowercase()].is_null());
        // `/jobs/batch` fits `/jobs/{job}` as well.
        found.sort_by_key(|route| route.matches('{').count());
        (*found.first().unwrap_or_else(|| panic!("{method} {path} is not in the document"))).clone()
    }

    /// Schemas refer to the components of the document.
    fn validator(&self, schema: &Value) -> Validator {
        let mut schema = schema.clone();
        schema["components"] = self.document["components"].clone();
        jsonschema::draft202012::new(&schema).unwrap()
    }
}

#[test]
fn every_route_answers_as_the_document_says() {
    let mesh = mesh(&["a", "b"]);
    let api = local(&mesh);
    let document = api.get("/api/v1/openapi.json").json();
    let mut checked = Document { document, called: BTreeSet::new() };
    let mut ask = |method: &str, path: &str, body: Option<Value>, status: u16| {
        let path = format!("/api/v1{path}");
        let reply = api.send(method, &path, body.as_ref()).unwrap();
        let found = reply.status;
        let body = checked.check(method, &path, reply);
        assert_eq!(found, status, "{method} {path}: {body}");
        body
    };

    for path in ["/health", "/ready", "/openapi.json", "/info", "/me", "/events?since=0"] {
        ask("GET", path, None, 200);
    }

    let done = submit(&api, &script("echo out; echo err >&2; exit 3"));
    assert_eq!(ended(&api, done)["state"], "failed");
    let job = ask("POST", "/jobs", Some(script("sleep 600")), 201)["job"].as_u64().unwrap();
    let batch = json!({ "jobs": [
        { "job": script("true"), "idempotency_key": "one" },
        { "job": { "name": "no", "spec": {} } },
    ] });
    let batch = ask("POST", "/jobs/batch", Some(batch), 200);
    assert_eq!(batch["jobs"][1]["code"], "invalid_spec");
    ended(&api, batch["jobs"][0]["job"].as_u64().unwrap());
    ask("GET", "/jobs?limit=1&active=true", None, 200);
    ask("GET", &format!("/jobs/{job}"), None, 200);
    ask("GET", &format!("/jobs/{job}/tasks?state=active"), None, 200);
    ask("GET", &format!("/jobs/{done}/tasks/1"), None, 200);
    let log = ask("GET", &format!("/jobs/{done}/tasks/1/log"), None, 200);
    assert_eq!(log, "out\n");
    let found = ask("GET", &format!("/jobs/{done}/tasks/1/log/search?text=ut"), None, 200);
    assert_eq!(found["found"], json!({ "offset": 0, "text": "out" }));
    let log = ask("GET", &format!("/jobs/{done}/log"), None, 200);
    assert_eq!(log, format!("{done}.1: out\n"));
    let failed = ask("GET", "/failed?since_ms=3600000", None, 200);
    assert_eq!(
        (&failed["groups"][0]["job"], &failed["groups"][0]["tasks"]),
        (&json!(done), &json!(1))
    );
    let tasks = json!({ "state": "failed", "tasks": "1" });
    let requeued = ask("POST", &format!("/jobs/{done}/requeue"), Some(tasks), 200);
    assert_eq!(requeued["tasks"], 1);
    assert_eq!(ended(&api, done)["state"], "failed");
    ask("POST", &format!("/jobs/{done}/requeue"), Some(json!({ "tasks": "9" })), 404);
    ask("POST", &format!("/jobs/{job}/cancel"), None, 200);
    ask("DELETE", &format!("/jobs/{done}"), None, 200);
    ask("POST", "/jobs/forget", Some(json!({ "first": 1, "last": 2000 })), 200);
    ask("GET", &format!("/jobs/{done}"), None, 404);

    ask("GET", "/nodes", None, 200);
    for verb in ["cordon", "drain", "uncordon"] {
        ask("POST", &format!("/nodes/a/{verb}"), None, 200);
    }
    let drain = json!({ "deadline_ms": 60_000, "requeue": true, "reason": "new disks" });
    let drained = ask("POST", "/nodes/a/drain", Some(drain), 200);
    assert_eq!(drained["scheduling"], "draining");
    ask("POST", "/nodes/a/drain", Some(json!({ "reason": "" })), 422);
    ask("POST", "/nodes/a/uncordon", None, 200);
    let labels = json!({ "set": { "zone": "b" } });
    let labelled = ask("POST", "/nodes/a/labels", Some(labels), 200);
    assert_eq!(labelled["labels"]["zone"], "b");
    ask("POST", "/nodes/a/labels", Some(json!({ "remove": ["none"] })), 404);
    ask("POST", "/nodes/nobody/revoke", None, 404);
    ask("POST", "/nodes/b/revoke", None, 204);
    ask("DELETE", "/nodes/a?force=true", None, 409);

    assert_eq!(ask("GET", "/volumes", None, 200), json!({ "volumes": [] }));
    ask("DELETE", "/volumes/none?force=true", None, 404);

    let spec = json!({ "replicas": 2, "command": ["sleep", "600"], "cpu_millis": 10 });
    ask("POST", "/services/web/plan", Some(spec.clone()), 200);
    let changed = ask("PUT", "/services/web", Some(spec), 200);
    ask("GET", "/services/web/log", None, 200);
    assert_eq!((&changed["revision"], &changed["changed"]), (&json!(1), &json!(true)));
    let shown = ask("GET", "/services/web", None, 200);
    // What a reply shows can be sent back, and changes nothing.
    let again = ask("PUT", "/services/web", Some(shown["spec"].clone()), 200);
    assert_eq!(again["changed"], false);
    ask("POST", "/services/web/scale", Some(json!({ "replicas": 1 })), 200);
    ask("POST", "/services/web/restart", None, 200);
    ask("POST", "/services/web/rollback", Some(json!({ "to": 1 })), 200);
    ask("POST", "/services/web/stop", None, 200);
    ask("POST", "/services/web/start", None, 200);
    ask("GET", "/services", None, 200);
    ask("GET", "/services/web/history", None, 200);
    for format in ["json", "text", "prometheus-sd", "haproxy"] {
        ask("GET", &format!("/services/web/endpoints?format={format}"), None, 200);
    }
    ask("DELETE", "/services/web", None, 200);

    let spec = json!({ "cron": "0 3 1 1 *", "zone": "Europe/Berlin", "overlap": "queue",
        "spec": { "command": ["sleep", "600"] } });
    assert_eq!(ask("PUT", "/schedules/yearly", Some(spec), 200)["added"], true);
    let mut shown = ask("GET", "/schedules/yearly", None, 200);
    assert_eq!(shown["next_instants"].as_array().unwrap().len(), 5, "{shown}");
    shown.as_object_mut().unwrap().retain(|key, _| {
        ["cron", "zone", "overlap", "catch_up_ms", "name", "priority", "spec"].contains(&&**key)
    });
    assert_eq!(ask("PUT", "/schedules/yearly", Some(shown), 200)["changed"], false);
    let never = json!({ "cron": "0 0 30 2 *", "spec": { "command": ["true"] } });
    let never = ask("PUT", "/schedules/never", Some(never), 422);
    assert!(never["detail"].as_str().unwrap().contains("never comes"), "{never}");
    ask("POST", "/schedules/yearly/pause", None, 200);
    let ran = ask("POST", "/schedules/yearly/run", None, 202);
    ask("POST", "/schedules/yearly/resume", None, 200);
    let listed = ask("GET", "/schedules", None, 200);
    assert_eq!(listed["schedules"][0]["last_job"], ran["job"]);
    let history = ask("GET", "/schedules/yearly/history?limit=5", None, 200);
    assert_eq!(history["runs"][0]["result"], "ran");
    ask("DELETE", "/schedules/yearly", None, 200);

    let window = json!({ "from": "2099-01-01T00:00:00Z", "for_ms": 1000 });
    let far = ask("PUT", "/nodes/a/maintenance", Some(window), 422);
    assert!(far["detail"].as_str().unwrap().contains("366 days"), "{far}");
    let window = json!({ "from": "tomorrow", "for_ms": 1000 });
    let wrong = ask("PUT", "/nodes/a/maintenance", Some(window), 422);
    assert!(wrong["detail"].as_str().unwrap().contains("RFC 3339"), "{wrong}");
    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let window = json!({ "from": tomorrow.to_string(), "for_ms": 7200000, "reason": "disks" });
    assert_eq!(ask("PUT", "/nodes/a/maintenance", Some(window), 200)["changed"], true);
    let node = ask("GET", "/nodes", None, 200)["nodes"][0].clone();
    assert_eq!(node["maintenance"]["reason"], "disks", "{node}");
    assert_eq!(node["maintenance"]["active"], false, "{node}");
    assert_eq!(ask("DELETE", "/nodes/a/maintenance", None, 200)["changed"], true);

    assert_eq!(ask("PUT", "/queues/night", Some(json!({ "weight": 3 })), 200)["added"], true);
    let zero = ask("PUT", "/queues/night", Some(json!({ "weight": 0 })), 422);
    assert!(zero["detail"].as_str().unwrap().contains("QUEUE_WEIGHT_MAX"), "{zero}");
    assert_eq!(ask("POST", "/queues/night/pause", None, 200)["changed"], true);
    let listed = ask("GET", "/queues", None, 200);
    assert_eq!(listed["queues"][1]["paused"], true, "{listed}");
    ask("POST", "/queues/night/resume", None, 200);
    assert_eq!(ask("GET", "/queues/night", None, 200)["weight"], 3);
    let alarm = json!({ "name": "alarm", "priority": 0, "spec": { "command": ["true"] } });
    let letter = json!({ "dead_letter_job": alarm });
    assert_eq!(ask("PUT", "/queues/night", Some(letter), 200)["changed"], true);
    let shown = ask("GET", "/queues/night", None, 200);
    assert_eq!(shown["dead_letter"], "alarm", "{shown}");
    // What a reply shows can be sent back, and changes nothing.
    let same = json!({ "dead_letter_job": shown["dead_letter_job"] });
    assert_eq!(ask("PUT", "/queues/night", Some(same), 200)["changed"], false);
    let bad = json!({ "dead_letter_job": { "name": "alarm", "spec": {} } });
    let bad = ask("PUT", "/queues/night", Some(bad), 422);
    assert!(bad["detail"].as_str().unwrap().contains("command"), "{bad}");
    ask("PUT", "/queues/night", Some(json!({ "no_dead_letter": true })), 200);
    assert_eq!(ask("GET", "/queues/night", None, 200)["dead_letter_job"], json!(null));
    ask("DELETE", "/queues/night", None, 200);
    ask("GET", "/queues/night", None, 404);

    let flow = json!({ "name": "flow", "jobs": [
        { "name": "a", "spec": { "command": ["true"] } },
        { "name": "b", "spec": { "command": ["true"] }, "after": [{ "job": "a" }] },
    ] });
    let flow = ask("POST", "/workflows", Some(flow), 201)["workflow"].as_u64().unwrap();
    assert_eq!(ended(&api, flow + 1)["state"], "succeeded");
    let shown = ask("GET", &format!("/workflows/{flow}?limit=5"), None, 200);
    assert_eq!(shown["graph"][1]["after"][0]["state"], "met");
    let listed = ask("GET", "/workflows?name=flow", None, 200);
    assert_eq!(listed["workflows"][0]["workflow"], flow);
    let cancelled = ask("POST", &format!("/workflows/{flow}/cancel"), None, 200);
    assert_eq!((&cancelled["workflow"], &cancelled["jobs"]), (&json!(flow), &json!(0)));
    let circle = json!({ "name": "flow", "jobs": [
        { "name": "a", "spec": { "command": ["true"] }, "after": [{ "job": "a", "when": "ended" }] },
    ] });
    let circle = ask("POST", "/workflows", Some(circle), 422);
    assert!(circle["detail"].as_str().unwrap().contains("waits for itself"), "{circle}");

    let made = json!({ "role": "viewer", "api": true });
    let made = ask("POST", "/tokens", Some(made), 201);
    ask("POST", "/tokens", Some(json!({ "role": "operator", "uses": 2, "ttl_ms": 60000 })), 201);
    ask("GET", "/tokens", None, 200);
    ask("DELETE", &format!("/tokens/{}", made["id"]), None, 204);
    ask("GET", "/users", None, 200);
    ask("DELETE", "/users/nobody", None, 404);
    ask("POST", "/key/rotate", Some(json!({ "key": "00".repeat(32) })), 200);

    let mut all = BTreeSet::new();
    for (path, operations) in checked.document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            all.insert((method.to_uppercase(), path.clone()));
        }
    }
    let missing: Vec<_> = all.difference(&checked.called).collect();
    assert!(missing.is_empty(), "these were not called: {missing:?}");
}
