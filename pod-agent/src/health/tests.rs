//! Checks of servers that behave well or badly.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use podmesh_protocol::ids::JobId;
use podmesh_protocol::service::{PortSpec, ReplicaSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

/// Limit for every wait, far longer than any test takes.
const PATIENCE: Duration = Duration::from_secs(60);
const ATTEMPT: AttemptId = AttemptId::new(JobId(1), 1, 1);

/// Serves each connection until the test ends, and returns the address.
async fn serve<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream));
        }
    });
    at
}

/// Serves an answer after it has read the request.
async fn answers(answer: &'static [u8]) -> SocketAddr {
    serve(move |mut stream| async move {
        let mut request = [0; 1024];
        _ = stream.read(&mut request).await;
        _ = stream.write_all(answer).await;
    })
    .await
}

fn get(status: Option<u16>) -> HealthCheck {
    let port = "http".parse().unwrap();
    HealthCheck::Http { port, path: "/x?y=1".into(), status, headers: BTreeMap::new() }
}

fn replica(at: SocketAddr, health: Option<HealthSpec>) -> Arc<Replica> {
    let spec = ReplicaSpec {
        service: "web".parse().unwrap(),
        revision: 1,
        number: 1,
        spread: None,
        ports: BTreeMap::from([("http".parse().unwrap(), PortSpec::default())]).into(),
        health: health.map(Arc::new),
    };
    Arc::new(Replica { spec, address: at.ip(), ports: vec![at.port()] })
}

fn spec(check: HealthCheck) -> HealthSpec {
    HealthSpec { interval_ms: 20, start_period_ms: 0, ..HealthSpec::new(check) }
}

/// Returns a place for checks over the network only.
fn process() -> Place {
    Place(Runs::Process(ProcessChecks::of_nothing(ATTEMPT)))
}

/// Makes one check.
async fn check(at: SocketAddr, check: HealthCheck) -> Said {
    let replica = replica(at, Some(spec(check)));
    let (check, _) = check_of(&replica, &process().0).await.unwrap();
    let made = async {
        match check {
            Check::Http(request) => request.send().await,
            Check::Tcp(port, target) => probe::tcp(&port, target).await,
            _ => unreachable!("not over the network"),
        }
    };
    timeout(PATIENCE, made).await.unwrap()
}

async fn told(facts: &mut UnboundedReceiver<(AttemptId, RuntimeFact)>) -> (Health, String) {
    match timeout(PATIENCE, facts.recv()).await.unwrap().unwrap() {
        (ATTEMPT, RuntimeFact::Health(health, text)) => (health, text),
        other => unreachable!("{other:?}"),
    }
}

/// Checks a replica until it is told that its health is known.
async fn health(replica: Arc<Replica>, place: Place) -> (Health, String) {
    let (sender, mut facts) = unbounded_channel();
    let mut checks = HealthChecks::new(sender);
    checks.begin(ATTEMPT, replica, place, 0);
    told(&mut facts).await
}

#[tokio::test]
async fn the_status_of_an_answer_decides() {
    for (answer, status, passes, says) in [
        ("HTTP/1.1 200 OK\r\n\r\n", None, true, "status 200"),
        ("HTTP/1.0 204\r\nA: b\r\n\r\n", None, true, "status 204"),
        ("HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n", None, true, "status 302"),
        ("HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n", Some(200), false, "status 302"),
        ("HTTP/1.1 503 No\r\n\r\n", Some(503), true, "status 503"),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabc", None, false, "status 404"),
        ("HTTP/1.1 200 \u{fffd}\u{0}", None, false, "not HTTP"),
        (
            "HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 100 Go\r\n\r\nHTTP/1.1 500 x\r\n\r\n",
            None,
            false,
            "status 500",
        ),
        ("HTTP/1.1 200 OK\r\nA: b\r\n", None, false, "in the middle"),
        ("", None, false, "without an answer"),
        ("220 mail.lan ESMTP\r\n", None, false, "not HTTP (invalid HTTP version): 220 mail.lan"),
    ] {
        let said = check(answers(answer.as_bytes()).await, get(status)).await;
        assert_eq!(said.is_ok(), passes, "{answer:?}: {said:?}");
        let (Ok(text) | Err(text)) = said;
        assert!(text.contains(says), "{answer:?}: {text}");
    }
}

#[tokio::test]
async fn an_answer_is_not_waited_for_when_its_head_is_complete() {
    let at = serve(|mut stream| async move {
        // In one piece, and the connection stays open.
        _ = stream.write_all(b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n").await;
        std::future::pending().await
    })
    .await;
    assert_eq!(check(at, get(None)).await, Ok("status 200".into()));
}

#[tokio::test]
async fn bytes_that_are_no_text_are_shown_as_text() {
    // A TLS alert, and a status line that is not UTF-8.
    for (answer, passes) in [
        (&b"\x15\x03\x01\x00\x02\x02\x50\n"[..], false),
        (&b"HTTP/1.1 200 \xff\xfe\r\n\r\n"[..], true),
        (&b"\xff\xfe\xfd\xfc\n"[..], false),
    ] {
        let said = check(answers(answer).await, get(None)).await;
        assert_eq!(said.is_ok(), passes, "{said:?}");
        let (Ok(text) | Err(text)) = said;
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}

#[tokio::test]
async fn a_request_is_complete_and_the_headers_of_the_spec_come_first() {
    let (sender, mut requests) = unbounded_channel();
    let at = serve(move |mut stream| {
        let sender = sender.clone();
        async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut request).await.unwrap();
            }
            sender.send(String::from_utf8(request).unwrap()).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let mut with_headers = get(None);
    let HealthCheck::Http { headers, .. } = &mut with_headers else { unreachable!() };
    headers.insert("host".into(), "web.lan".into());
    headers.insert("X-Key".into(), "secret".into());
    check(at, get(None)).await.unwrap();
    let usual = "User-Agent: podmesh\r\nAccept: */*\r\nConnection: close\r\n";
    let expected = format!("GET /x?y=1 HTTP/1.1\r\nHost: {at}\r\n{usual}\r\n");
    assert_eq!(requests.recv().await.unwrap(), expected);
    check(at, with_headers).await.unwrap();
    let expected = format!("GET /x?y=1 HTTP/1.1\r\n{usual}X-Key: secret\r\nhost: web.lan\r\n\r\n");
    assert_eq!(requests.recv().await.unwrap(), expected);
}

#[tokio::test]
async fn endless_headers_and_bodies_are_not_read() {
    let many = |line: &'static [u8]| {
        serve(move |mut stream| async move {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
            while stream.write_all(line).await.is_ok() {}
        })
    };
    let began = Instant::now();
    let said =
        check(many(b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").await, get(None)).await;
    assert!(said.as_ref().is_err_and(|why| why.contains("larger than 65536")), "{said:?}");
    let said = check(many(b"A: b\r\n").await, get(None)).await;
    assert!(said.as_ref().is_err_and(|why| why.contains("more than 256")), "{said:?}");
    let at = serve(|mut stream| async move {
        while stream.write_all(b"HTTP/1.1 100 again\r\n\r\n").await.is_ok() {}
    })
    .await;
    let said = check(at, get(None)).await;
    assert!(said.as_ref().is_err_and(|why| why.contains("larger than 65536")), "{said:?}");
    // A body of 4 GB.
    let body = many(b"Content-Length: 4000000000\r\n\r\n").await;
    assert_eq!(check(body, get(None)).await, Ok("status 200".into()));
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_server_that_refuses_resets_or_is_silent_is_unhealthy_and_the_text_says_why() {
    let refused = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let resets = serve(|stream| async move {
        stream.set_zero_linger().unwrap();
        drop(stream);
    })
    .await;
    let silent = serve(|stream| async move {
        let _open = stream;
        std::future::pending().await
    })
    .await;
    for (at, says) in [(refused, "refused"), (resets, "reset"), (silent, "no answer within 50ms")] {
        let health_spec = HealthSpec { timeout_ms: 50, failures: 2, ..spec(get(None)) };
        let (health, text) = health(replica(at, Some(health_spec)), process()).await;
        assert_eq!(health, Health::Unhealthy);
        assert!(text.contains(says), "{text}");
    }
}

#[tokio::test]
async fn without_a_spec_the_first_port_must_accept_a_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (health, text) = health(replica(at, None), process()).await;
    assert_eq!((health, text.as_str()), (Health::Healthy, "port http accepts connections"));
}

#[tokio::test]
async fn without_a_check_or_a_port_a_replica_is_healthy_at_its_start() {
    let nowhere = SocketAddr::new([127, 0, 0, 1].into(), 1);
    let none = replica(nowhere, Some(spec(HealthCheck::None)));
    let mut portless = Replica::clone(&replica(nowhere, None));
    (portless.spec.ports, portless.ports) = Default::default();
    for replica in [none, Arc::new(portless)] {
        assert_eq!(health(replica, process()).await.0, Health::Healthy);
    }
}

#[tokio::test]
async fn changes_are_told_once_until_the_checks_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (sender, mut facts) = unbounded_channel();
    let mut checks = HealthChecks::new(sender);
    let tcp = spec(HealthCheck::Tcp { port: "http".parse().unwrap() });
    checks.begin(ATTEMPT, replica(at, Some(tcp)), process(), 0);
    assert_eq!(told(&mut facts).await.0, Health::Healthy);
    drop(listener);
    assert_eq!(told(&mut facts).await.0, Health::Unhealthy);
    let listener = TcpListener::bind(at).await.unwrap();
    assert_eq!(told(&mut facts).await.0, Health::Healthy);
    // Some more checks, which change nothing.
    for _ in 0..3 {
        timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    }
    assert!(facts.try_recv().is_err());
    checks.end(ATTEMPT);
    drop(checks);
    // The channel closes when the task has ended.
    assert_eq!(timeout(PATIENCE, facts.recv()).await.unwrap(), None);
}

#[tokio::test]
async fn many_replicas_are_checked_at_once() {
    let at = answers(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let silent = serve(|stream| async move {
        let _open = stream;
        std::future::pending().await
    })
    .await;
    let (sender, mut facts) = unbounded_channel();
    let mut checks = HealthChecks::new(sender);
    let patient = HealthSpec::new(get(None));
    for index in 0..200 {
        let attempt = AttemptId::new(JobId(2), index, 1);
        checks.begin(attempt, replica(silent, Some(patient.clone())), process(), 0);
    }
    for index in 0..200 {
        let attempt = AttemptId::new(JobId(3), index, 1);
        checks.begin(attempt, replica(at, Some(patient.clone())), process(), 0);
    }
    for _ in 0..200 {
        let (attempt, fact) = timeout(PATIENCE, facts.recv()).await.unwrap().unwrap();
        assert_eq!(attempt.task.job, JobId(3));
        assert_eq!(fact, RuntimeFact::Health(Health::Healthy, "status 200".into()));
    }
}

#[test]
fn what_programs_say_is_short_text() {
    assert_eq!(brief(b"  fine \n"), "fine");
    assert_eq!(brief(b"a\x1b[31mb\xffc"), "a\u{fffd}[31mb\u{fffd}c");
    let long = brief("ä".repeat(1000).as_bytes());
    assert_eq!(long.len(), SAID_BYTES_MAX);
    assert!(brief("€".repeat(1000).as_bytes()).len() <= SAID_BYTES_MAX);
}

#[tokio::test]
async fn a_forwarder_that_closes_at_once_does_not_count_as_open() {
    let closes = serve(|stream| async move { drop(stream) }).await;
    let stays = serve(|stream| async move {
        let _open = stream;
        std::future::pending().await
    })
    .await;
    // It does not wait for a request.
    let greets = serve(|mut stream| async move { _ = stream.write_all(b"220 hello").await }).await;
    let port: Name = "a".parse().unwrap();
    for (at, is_forwarded, passes) in
        [(closes, false, true), (closes, true, false), (stays, true, true), (greets, true, true)]
    {
        let said = probe::tcp(&port, Target { at, is_forwarded }).await;
        assert_eq!(said.is_ok(), passes, "{said:?}");
    }
}
