//! Traces of the real manager: what a collector gets, and that it may be slow, away, or hostile.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use podmesh_tests::api::{Api, Place};
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::{until, until_true};
use serde_json::{Value, json};

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

fn traceparent() -> String {
    format!("00-{TRACE}-{CALLER}-01")
}

/// A collector, which answers each request with a status.
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Value>>>,
    status: Arc<Mutex<u16>>,
}

impl Collector {
    fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (spans, status) = (Arc::<Mutex<Vec<Value>>>::default(), Arc::new(Mutex::new(status)));
        let (into, answer) = (Arc::clone(&spans), Arc::clone(&status));
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (into, answer) = (Arc::clone(&into), Arc::clone(&answer));
                thread::spawn(move || serve(&stream.unwrap(), &into, &answer));
            }
        });
        Self { address, spans, status }
    }

    fn answer(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    /// Waits until a job's own span has come, and returns the spans of its trace by name.
    fn wait_for(&self, job: u64) -> BTreeMap<String, Value> {
        until("the spans of the job come", || {
            let spans = self.spans.lock().unwrap().clone();
            let of_job =
                spans.iter().filter(|span| attribute(span, "podmesh.job.id") == job.to_string());
            let by_name: BTreeMap<String, Value> = of_job
                .map(|span| (span["name"].as_str().unwrap().to_owned(), span.clone()))
                .collect();
            by_name.keys().any(|name| name.starts_with("job ")).then_some(by_name)
        })
    }
}

/// Answers requests on one connection, and keeps the spans of those that it accepts.
fn serve(stream: &TcpStream, into: &Mutex<Vec<Value>>, answer: &Mutex<u16>) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        assert_eq!(line.trim_end(), "POST /v1/traces HTTP/1.1");
        let mut kind = String::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            match header.trim_end().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(("content-type", value)) => kind = value.to_owned(),
                Some(_) => {}
                None => break,
            }
        }
        assert_eq!(kind, "application/json");
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let status = *answer.lock().unwrap();
        if status == 200 {
            let of = &body["resourceSpans"][0];
            assert_eq!(attribute(&of["resource"], "service.name"), "podmesh");
            let spans = of["scopeSpans"][0]["spans"].as_array().unwrap();
            into.lock().unwrap().extend(spans.iter().cloned());
        }
        let reply = format!(
            "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        if reader.get_mut().write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

/// Returns the text of an attribute.
fn attribute(of: &Value, key: &str) -> String {
    let found = of["attributes"].as_array().unwrap().iter().find(|pair| pair["key"] == key);
    let value = found.map_or(&Value::Null, |pair| &pair["value"]);
    let text = value["stringValue"].as_str().or(value["intValue"].as_str());
    text.unwrap_or_default().to_owned()
}

fn time(span: &Value, key: &str) -> u64 {
    span[key].as_str().unwrap().parse().unwrap()
}

fn mesh(collector: &Collector) -> Mesh {
    let url = format!("http://{}", collector.address);
    let mut mesh = Mesh::new(PODMESH).manager_flags(&["--otlp", &url]);
    mesh.start_manager();
    mesh.start_agent("a", &[]);
    mesh
}

fn local(mesh: &Mesh) -> Api {
    Api::new(Place::Socket(mesh.http_socket()))
}

/// Returns how many spans were exported and dropped.
fn counted(mesh: &Mesh) -> [f64; 2] {
    let page = local(mesh).get("/metrics").text();
    ["exported", "dropped"].map(|result| {
        let name = format!("podmesh_trace_spans_total{{result=\"{result}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    })
}

fn log(mesh: &Mesh, job: u64) -> String {
    local(mesh).get(&format!("/api/v1/jobs/{job}/tasks/1/log")).text()
}

#[test]
fn a_job_is_a_part_of_the_trace_that_submitted_it() {
    let collector = Collector::start(200);
    let mesh = mesh(&collector);
    let script = ["--cpus", "0.01", "--", "sh", "-c", "echo $TRACEPARENT; exit 3"];
    let job =
        mesh.submit(&[&["--name", "etl", "--traceparent", &traceparent()], &script[..]].concat());
    mesh.wait_for_job(job, "failed");
    assert_eq!(log(&mesh, job), format!("{}\n", traceparent()));
    let spans = collector.wait_for(job);
    assert_eq!(spans.keys().collect::<Vec<_>>(), ["job etl", "queued", "running", "starting"]);
    let whole = &spans["job etl"];
    assert_eq!((&whole["traceId"], &whole["parentSpanId"]), (&json!(TRACE), &json!(CALLER)));
    assert_eq!(attribute(whole, "podmesh.job.state"), "failed");
    let (mut at, end) = (time(whole, "startTimeUnixNano"), time(whole, "endTimeUnixNano"));
    for name in ["queued", "starting", "running"] {
        let part = &spans[name];
        assert_eq!((&part["traceId"], &part["parentSpanId"]), (&json!(TRACE), &whole["spanId"]));
        assert_eq!(attribute(part, "podmesh.node"), "a");
        assert_eq!(time(part, "startTimeUnixNano"), at, "{name}");
        at = time(part, "endTimeUnixNano");
    }
    assert!(at <= end);
    let running = &spans["running"];
    assert_eq!(
        (&running["status"]["code"], attribute(running, "process.exit.code")),
        (&json!(2), "3".into())
    );
    assert_eq!(counted(&mesh)[1], 0.0);
}

#[test]
fn the_trace_comes_from_the_header_or_the_environment() {
    let collector = Collector::start(200);
    let mesh = mesh(&collector);
    let body = json!({ "name": "over-http", "spec": {
        "command": ["sh", "-c", "echo $TRACEPARENT"], "cpu_millis": 10 } });
    let submit = |api: &Api| {
        let job = api.post("/api/v1/jobs", &body).json()["job"].as_u64().unwrap();
        mesh.wait_for_job(job, "succeeded");
        (log(&mesh, job), collector.wait_for(job)["job over-http"]["traceId"].clone())
    };
    let traced = submit(&local(&mesh).with("traceparent", &traceparent()));
    assert_eq!(traced, (format!("{}\n", traceparent()), json!(TRACE)));
    // The standard says that a header that is not valid is ignored. The job has a trace of its own.
    for api in [local(&mesh).with("traceparent", "00-nonsense"), local(&mesh)] {
        let (printed, trace) = submit(&api);
        assert_eq!(printed, "\n");
        assert_ne!(trace, json!(TRACE));
    }

    let run = |value: &str| {
        let mut command =
            mesh.podmesh(&["run", "--cpus", "0.01", "--", "sh", "-c", "echo $TRACEPARENT"]);
        let output = command.env("TRACEPARENT", value).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap())
    };
    assert_eq!(run(&traceparent())[0], format!("{}\n", traceparent()));
    let [printed, said] = run("nonsense");
    assert_eq!(printed, "\n");
    assert!(said.contains("TRACEPARENT is ignored"), "{said}");
    let refused = mesh.output(&["submit", "--traceparent", "nonsense", "--", "true"]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn a_collector_that_is_away_delays_nothing_and_gets_what_waits() {
    let collector = Collector::start(503);
    let mesh = mesh(&collector);
    let first = mesh.submit(&["--name", "first", "--cpus", "0.01", "--", "true"]);
    mesh.wait_for_job(first, "succeeded");
    assert_eq!(counted(&mesh), [0.0, 0.0]);
    collector.answer(200);
    let spans = collector.wait_for(first);
    assert_eq!(spans.len(), 4, "{spans:#?}");
    until_true("they are counted", || counted(&mesh) == [4.0, 0.0]);
    // One that refuses for good.
    collector.answer(400);
    let second = mesh.submit(&["--cpus", "0.01", "--", "true"]);
    mesh.wait_for_job(second, "succeeded");
    until_true("what is refused is dropped", || counted(&mesh) == [4.0, 4.0]);
}

#[test]
fn a_manager_that_starts_again_goes_on_with_the_trace() {
    let collector = Collector::start(200);
    let mut mesh = mesh(&collector);
    let gate = mesh.folder().join("gate");
    let script = format!("while ! [ -e {} ]; do sleep 0.05; done", gate.display());
    let job = mesh.submit(&["--name", "long", "--cpus", "0.01", "--", "sh", "-c", &script]);
    until_true("it runs", || mesh.json(&["job", &job.to_string()])["state"] == "running");
    until_true("its beginning has come", || {
        collector.spans.lock().unwrap().iter().any(|span| span["name"] == "starting")
    });
    assert!(mesh.stop_manager().success());
    mesh.start_manager();
    mesh.wait_for_node("a", "alive");
    std::fs::write(gate, "").unwrap();
    let spans = collector.wait_for(job);
    assert_eq!(spans["starting"]["parentSpanId"], spans["job long"]["spanId"]);
    assert_eq!(spans["queued"]["traceId"], spans["job long"]["traceId"]);
}

#[test]
fn a_collector_that_cannot_be_used_is_refused_at_the_start() {
    let mesh = Mesh::new(PODMESH);
    let output = mesh.output(&["manager", "--otlp", "otel.lan"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("not the address"), "{said}");

    // A machine that trusts no authority.
    let trusted = mesh.folder().join("trusted.pem");
    std::fs::write(&trusted, "").unwrap();
    let mut command = mesh.podmesh(&["manager", "--otlp", "https://otel.lan"]);
    command.env("SSL_CERT_FILE", &trusted).env("SSL_CERT_DIR", mesh.folder());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("install the package ca-certificates"), "{said}");
}
