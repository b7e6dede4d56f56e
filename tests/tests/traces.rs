//! Traces of the real manager: what a collector gets, and that it may be slow, away, or hostile.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use data_encoding::HEXLOWER;
use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use podmesh_tests::api::{Api, Place};
use podmesh_tests::mesh::Mesh;
use podmesh_tests::wait::{until, until_true};
use prost::Message;
use serde_json::json;

const PODMESH: &str = env!("CARGO_BIN_EXE_podmesh-under-test");
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

fn traceparent() -> String {
    format!("00-{TRACE}-{CALLER}-01")
}

/// A collector, which answers each request with a status.
struct Collector {
    address: SocketAddr,
    accepted: Arc<Mutex<Accepted>>,
    status: Arc<Mutex<u16>>,
}

/// What a collector has accepted.
#[derive(Default)]
struct Accepted {
    spans: Vec<Span>,
    /// How many requests it has refused.
    refused: u64,
    /// The headers and what is said of the process, of the last request.
    headers: BTreeMap<String, String>,
    resource: Vec<KeyValue>,
}

impl Collector {
    fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::<Mutex<Accepted>>::default();
        let status = Arc::new(Mutex::new(status));
        let (into, answer) = (Arc::clone(&accepted), Arc::clone(&status));
        // It ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (into, answer) = (Arc::clone(&into), Arc::clone(&answer));
                thread::spawn(move || serve(&stream.unwrap(), &into, &answer));
            }
        });
        Self { address, accepted, status }
    }

    fn answer(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    /// Waits until a job's own span has come, and returns the spans of its trace by name.
    fn wait_for(&self, job: u64) -> BTreeMap<String, Span> {
        until("the spans of the job come", || {
            let spans = self.accepted.lock().unwrap().spans.clone();
            let by_name: BTreeMap<String, Span> = spans
                .into_iter()
                .filter(|span| attribute(&span.attributes, "podmesh.job.id") == job.to_string())
                .map(|span| (span.name.clone(), span))
                .collect();
            by_name.keys().any(|name| name.starts_with("job ")).then_some(by_name)
        })
    }
}

/// Answers requests on one connection, and keeps the spans of those that it accepts.
fn serve(stream: &TcpStream, into: &Mutex<Accepted>, answer: &Mutex<u16>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        assert_eq!(line.trim_end(), "POST /v1/traces HTTP/1.1");
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            let Some((name, value)) = header.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        assert_eq!(headers["content-type"], "application/x-protobuf");
        let mut body = vec![0; headers["content-length"].parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        if headers.get("content-encoding").is_some_and(|encoding| encoding == "gzip") {
            let packed = std::mem::take(&mut body);
            GzDecoder::new(&*packed).read_to_end(&mut body).unwrap();
        }
        let mut request = ExportTraceServiceRequest::decode(&*body).unwrap();
        let status = *answer.lock().unwrap();
        let mut into = into.lock().unwrap();
        if status == 200 {
            let of = request.resource_spans.remove(0);
            into.resource = of.resource.unwrap().attributes;
            into.headers = headers;
            into.spans.extend(of.scope_spans.into_iter().flat_map(|scope| scope.spans));
        } else {
            into.refused += 1;
        }
        drop(into);
        let reply = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n");
        if reader.get_mut().write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

/// Returns the text of an attribute.
fn attribute(of: &[KeyValue], key: &str) -> String {
    let found = of.iter().find(|pair| pair.key == key);
    match found.and_then(|pair| pair.value.as_ref()?.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// Returns the trace and the parent of a span.
fn place(of: &Span) -> (String, String) {
    (HEXLOWER.encode(&of.trace_id), HEXLOWER.encode(&of.parent_span_id))
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
    assert_eq!(place(whole), (TRACE.into(), CALLER.into()));
    assert_eq!(attribute(&whole.attributes, "podmesh.job.state"), "failed");
    assert_eq!(attribute(&whole.attributes, "podmesh.job.name"), "etl");
    assert_eq!(whole.kind(), SpanKind::Internal);
    let mut at = whole.start_time_unix_nano;
    for name in ["queued", "starting", "running"] {
        let part = &spans[name];
        assert_eq!(place(part), (TRACE.into(), HEXLOWER.encode(&whole.span_id)));
        assert_eq!(attribute(&part.attributes, "podmesh.node"), "a");
        assert_eq!(part.start_time_unix_nano, at, "{name}");
        at = part.end_time_unix_nano;
    }
    assert!(at <= whole.end_time_unix_nano);
    let running = &spans["running"];
    assert_eq!(running.status.as_ref().unwrap().code(), StatusCode::Error);
    assert_eq!(attribute(&running.attributes, "process.exit.code"), "3");
    let resource = collector.accepted.lock().unwrap().resource.clone();
    assert_eq!(attribute(&resource, "service.name"), "podmesh");
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
        (log(&mesh, job), place(&collector.wait_for(job)["job over-http"]).0)
    };
    let traced = submit(&local(&mesh).with("traceparent", &traceparent()));
    assert_eq!(traced, (format!("{}\n", traceparent()), TRACE.into()));
    // The standard says that a header that is not valid is ignored. The job has a trace of its own.
    for api in [local(&mesh).with("traceparent", "00-nonsense"), local(&mesh)] {
        let (printed, trace) = submit(&api);
        assert_eq!(printed, "\n");
        assert_ne!(trace, TRACE);
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
    until_true("it refuses", || collector.accepted.lock().unwrap().refused > 1);
    assert_eq!(counted(&mesh), [0.0, 0.0]);
    collector.answer(200);
    let spans = collector.wait_for(first);
    assert_eq!(spans.len(), 4, "{spans:#?}");
    until_true("they are counted", || counted(&mesh) == [4.0, 0.0]);
    let log = mesh.folder().join("manager.txt");
    for says in ["spans do not get to the collector", "503", "the collector takes spans again"] {
        until_true(says, || fs::read_to_string(&log).unwrap().contains(says));
    }
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
        collector.accepted.lock().unwrap().spans.iter().any(|span| span.name == "starting")
    });
    assert!(mesh.stop_manager().success());
    mesh.start_manager();
    mesh.wait_for_node("a", "alive");
    fs::write(gate, "").unwrap();
    let spans = collector.wait_for(job);
    assert_eq!(spans["starting"].parent_span_id, spans["job long"].span_id);
    assert_eq!(spans["queued"].trace_id, spans["job long"].trace_id);
}

#[test]
fn variables_of_opentelemetry_add_to_what_the_flag_says_and_change_nothing_of_it() {
    let collector = Collector::start(200);
    let url = format!("http://{}", collector.address);
    let mut mesh = Mesh::new(PODMESH)
        .manager_flags(&["--otlp", &url])
        .manager_variable("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20of%20a%20test")
        .manager_variable("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        .manager_variable("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=tests,service.name=other")
        .manager_variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/v1/traces")
        .manager_variable("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .manager_variable("OTEL_SERVICE_NAME", "another");
    mesh.start_manager();
    mesh.start_agent("a", &[]);
    let job = mesh.submit(&["--cpus", "0.01", "--", "true"]);
    collector.wait_for(job);
    let accepted = collector.accepted.lock().unwrap();
    assert_eq!(accepted.headers["authorization"], "Bearer of a test");
    assert_eq!(accepted.headers["content-encoding"], "gzip");
    assert_eq!(attribute(&accepted.resource, "service.namespace"), "tests");
    assert_eq!(attribute(&accepted.resource, "service.name"), "podmesh");
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
    fs::write(&trusted, "").unwrap();
    let mut command = mesh.podmesh(&["manager", "--otlp", "https://otel.lan"]);
    command.env("SSL_CERT_FILE", &trusted).env("SSL_CERT_DIR", mesh.folder());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("install the package ca-certificates"), "{said}");
}
