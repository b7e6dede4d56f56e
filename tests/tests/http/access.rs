//! Who may ask what.

use podmesh_tests::api::{Api, Place, Reply};
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::until_true;
use serde_json::{Value, json};

use crate::{PODMESH, local, mesh, problem, remote, script, token};

#[test]
fn a_token_may_what_its_role_may() {
    let mesh = mesh(&[]);
    let api = remote(&mesh);
    let [viewer, operator, admin] =
        ["viewer", "operator", "admin"].map(|role| api.bearing(&token(&mesh, role)));
    let me = |api: &Api| api.get("/api/v1/me").json();
    assert_eq!(me(&operator)["role"], "operator");
    assert_eq!(viewer.get("/api/v1/jobs").status, 200);
    let said = problem(viewer.post("/api/v1/jobs", &script("true")), 403, "forbidden");
    assert!(said.contains("viewer") && said.contains("operator"), "{said}");
    assert_eq!(operator.post("/api/v1/jobs", &script("true")).status, 201);
    let job = &operator.get("/api/v1/jobs").json()["jobs"][0];
    assert_eq!(job["submitted_by"], me(&operator)["name"]);
    problem(operator.get("/api/v1/tokens"), 403, "forbidden");
    problem(operator.send("DELETE", "/api/v1/nodes/a", None).unwrap(), 403, "forbidden");
    assert_eq!(admin.get("/api/v1/tokens").status, 200);
    // At the socket, the token counts, too.
    assert_eq!(me(&local(&mesh))["role"], "admin");
    problem(local(&mesh).bearing("podmesh-api1-x").get("/api/v1/me"), 401, "invalid_token");
}

#[test]
fn no_token_a_wrong_one_an_expired_one_and_a_revoked_one_are_refused() {
    let mut mesh = mesh(&[]);
    let api = remote(&mesh);
    let reply = api.get("/api/v1/me");
    assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    let said = problem(reply, 401, "invalid_token");
    assert!(said.contains("podmesh token create --api"), "{said}");
    for path in ["/api/v1/health", "/api/v1/ready", "/api/v1/openapi.json"] {
        assert_eq!(api.get(path).status, 200, "{path}");
    }
    for wrong in ["x", "podmesh-api1-AAAAAAAAAAAAAAAAAAAAAA", &mesh.token("admin")] {
        problem(api.bearing(wrong).get("/api/v1/me"), 401, "invalid_token");
    }
    problem(api.with("Authorization", "Basic cm9vdDo=").get("/api/v1/me"), 401, "invalid_token");

    let short = mesh.ok(&["token", "create", "--api", "--ttl", "300ms"]);
    let short = api.bearing(&short);
    until_true("the token expires", || short.get("/api/v1/me").status == 401);
    assert!(problem(short.get("/api/v1/me"), 401, "invalid_token").contains("expired"));

    let good = token(&mesh, "viewer");
    // A connection that is open does not keep a token valid.
    let good = api.bearing(&good);
    let mut connection = good.connect().unwrap();
    let ask = good.request("GET", "/api/v1/me", None);
    connection.write_all(ask.as_bytes()).unwrap();
    let mut reply = Reply::read(connection).unwrap();
    assert_eq!(reply.status, 200);
    reply.body().unwrap();
    let mut connection = reply.into_connection();
    let tokens = mesh.json(&["token"]);
    let mine = tokens["tokens"].as_array().unwrap().last().unwrap();
    assert_eq!((&mine["api"], &mine["role"]), (&json!(true), &json!("viewer")));
    until_true("its use is listed", || {
        let tokens = mesh.json(&["token"]);
        !tokens["tokens"].as_array().unwrap().last().unwrap()["used_at"].is_null()
    });
    mesh.ok(&["token", "revoke", &mine["id"].to_string()]);
    connection.write_all(ask.as_bytes()).unwrap();
    let reply = Reply::read(connection).unwrap();
    assert!(problem(reply, 401, "invalid_token").contains("revoked"));

    // Both survive a restart.
    let other = token(&mesh, "operator");
    mesh.kill_manager();
    mesh.start_manager();
    let api = remote(&mesh);
    assert_eq!(api.bearing(&other).get("/api/v1/me").json()["role"], "operator");
    problem(good_at(&api, &good).get("/api/v1/me"), 401, "invalid_token");
    // Nobody joins with it.
    let output = mesh.output(&["login", &other]);
    assert!(!output.status.success());
}

/// The same token at another address.
fn good_at(api: &Api, old: &Api) -> Api {
    let text = old.request("GET", "/", None);
    let token = text.split("Bearer ").nth(1).unwrap().split("\r\n").next().unwrap();
    api.bearing(token)
}

#[test]
fn an_agent_has_no_api_token() {
    let mesh = mesh(&[]);
    let output = mesh.output(&["token", "create", "--api", "--role", "agent"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("viewer, operator or admin"), "{said}");
    let wrong = json!({ "role": "viewer", "api": true, "uses": 3 });
    problem(local(&mesh).post("/api/v1/tokens", &wrong), 422, "invalid_spec");
    let made: Value =
        local(&mesh).post("/api/v1/tokens", &json!({ "role": "viewer", "api": true })).json();
    let api = remote(&mesh).bearing(made["token"].as_str().unwrap());
    assert_eq!(api.get("/api/v1/me").status, 200);
}

#[test]
fn an_address_beyond_loopback_needs_a_certificate() {
    let mesh = Mesh::new(PODMESH);
    let start = |flags: &[&str]| {
        let all = [&["manager", "--listen", "127.0.0.1:0"], flags].concat();
        let mut command = mesh.command(&all);
        command.env("PODMESH_DATA_DIR", mesh.data_dir());
        let output = command.output().unwrap();
        assert!(!output.status.success(), "{flags:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = start(&["--http", "0.0.0.0:0"]);
    assert!(said.contains("--http-cert"), "{said}");
    let said = start(&["--http", "127.0.0.1:0", "--http-cert", "/nowhere/cert.pem"]);
    assert!(said.contains("--http-key"), "{said}");
    let said =
        start(&["--http", "127.0.0.1:0", "--http-cert", "/nowhere/c", "--http-key", "/nowhere/k"]);
    assert!(said.contains("/nowhere/c"), "{said}");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let said = start(&["--http", &taken]);
    assert!(said.contains(&taken), "{said}");
}

#[test]
fn a_page_of_another_site_may_not_ask() {
    let mesh = mesh(&[]);
    let token = token(&mesh, "viewer");
    let api = remote(&mesh).bearing(&token);
    let host = mesh.http_address().to_string();
    for good in [host.as_str(), "localhost", "127.0.0.1:1"] {
        assert_eq!(api.with("Host", good).get("/api/v1/me").status, 200, "{good}");
    }
    for path in ["/api/v1/me", "/api/v1/health"] {
        problem(api.with("Host", "evil.example").get(path), 421, "wrong_host");
    }
    let own = api.with("Host", &host).with("Origin", &format!("http://{host}"));
    assert_eq!(own.get("/api/v1/me").status, 200);
    for foreign in ["http://evil.example", "null", "https://localhost"] {
        let foreign = api.with("Host", &host).with("Origin", foreign);
        problem(foreign.get("/api/v1/me"), 403, "foreign_origin");
        problem(foreign.send("OPTIONS", "/api/v1/jobs", None).unwrap(), 403, "foreign_origin");
    }
    let foreign = Api::new(Place::Socket(mesh.http_socket())).with("Origin", "http://evil.example");
    problem(foreign.post("/api/v1/jobs", &script("true")), 403, "foreign_origin");
}

#[test]
fn each_request_of_a_connection_is_asked_by_its_own_token() {
    let mesh = mesh(&[]);
    let api = remote(&mesh);
    let [viewer, admin] = ["viewer", "admin"].map(|role| api.bearing(&token(&mesh, role)));
    let asked = [&admin, &viewer, &api, &admin].map(|api| api.request("GET", "/api/v1/me", None));
    let mut connection = api.connect().unwrap();
    connection.write_all(asked.concat().as_bytes()).unwrap();
    let mut reply = Reply::read(connection).unwrap();
    for role in [Some("admin"), Some("viewer"), None] {
        assert_eq!(reply.status, if role.is_some() { 200 } else { 401 });
        let view: Value = serde_json::from_slice(&reply.body().unwrap()).unwrap();
        assert_eq!(view["role"].as_str(), role);
        reply = reply.next().unwrap();
    }
    assert_eq!(reply.json()["role"], "admin");
}

#[test]
fn a_token_that_submits_too_often_is_told_when_to_come_again() {
    let flags = ["--http", "127.0.0.1:0", "--submissions-per-caller", "2/h"];
    let mut mesh = Mesh::new(PODMESH).manager_flags(&flags);
    mesh.start_manager();
    let operator = remote(&mesh).bearing(&token(&mesh, "operator"));
    for _ in 0..2 {
        assert_eq!(operator.post("/api/v1/jobs", &script("true")).status, 201);
    }
    let flow =
        json!({ "name": "flow", "jobs": [{ "name": "a", "spec": { "command": ["true"] } }] });
    mesh.ok(&["schedule", "add", "yearly", "--cron", "0 3 1 1 *", "--", "true"]);
    for (path, body) in [
        ("/api/v1/jobs", script("true")),
        ("/api/v1/workflows", flow),
        ("/api/v1/schedules/yearly/run", json!({})),
    ] {
        let reply = operator.post(path, &body);
        let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=1_800).contains(&seconds), "{seconds}");
        let said = problem(reply, 429, "overloaded");
        assert!(said.contains("2 in an hour") && said.contains("submissions_per_caller"), "{said}");
    }
    for _ in 0..5 {
        assert_eq!(local(&mesh).post("/api/v1/jobs", &script("true")).status, 201);
    }
}
