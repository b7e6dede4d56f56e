//! Clients that break rules or do not read. The manager stays small, and answers others meanwhile.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use podmesh_tests::api::{Api, Connection, Reply};
use podmesh_tests::wait::until_true;
use serde_json::json;

use crate::{local, mesh, problem, remote, script, submit, token};

/// Returns what the server answers to these bytes: its status, or `None` if it closes the connection
/// without one.
fn status(api: &Api, bytes: &[u8]) -> Option<u16> {
    let mut connection = api.connect().unwrap();
    // The server may close the connection before it has read all.
    _ = connection.write_all(bytes);
    Reply::read(connection).ok().map(|reply| reply.status)
}

#[test]
fn requests_that_are_too_large_are_refused() {
    let mut mesh = mesh(&[]);
    let token = token(&mesh, "admin");
    let api = remote(&mesh).bearing(&token);
    let before = mesh.manager().resident_bytes();

    let long = "a".repeat(10 << 20);
    let header = format!("GET /api/v1/me HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n");
    assert!(matches!(status(&api, header.as_bytes()), None | Some(431)));
    let path = format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(matches!(status(&api, path.as_bytes()), None | Some(414 | 431)));
    let many = "X: y\r\n".repeat(1000);
    let many = format!("GET /api/v1/me HTTP/1.1\r\nHost: localhost\r\n{many}\r\n");
    assert!(matches!(status(&api, many.as_bytes()), None | Some(431)));

    let body = json!({ "name": "x", "spec": { "command": [long] } });
    let request = api.request("POST", "/api/v1/jobs", Some(&body));
    assert!(matches!(status(&api, request.as_bytes()), None | Some(413)));
    // Without a length, and only as far as the server reads.
    let head = "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n";
    let head = format!("{head}Authorization: Bearer {token}\r\n\r\n");
    let chunk = format!("100000\r\n{}\r\n", "a".repeat(1 << 20));
    assert!(matches!(status(&api, (head + &chunk.repeat(10)).as_bytes()), None | Some(413)));
    let deep = format!("{{\"name\": {}", "[".repeat(100_000));
    let head = api
        .with("Content-Type", "application/json")
        .with("Content-Length", &deep.len().to_string());
    let deep = head.request("POST", "/api/v1/jobs", None) + &deep;
    assert_eq!(status(&api, deep.as_bytes()), Some(400));

    for garbage in [
        "",
        "\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut connection = TcpStream::connect(mesh.http_address()).unwrap();
        connection.write_all(garbage.as_bytes()).unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        _ = connection.read_to_end(&mut answer);
    }
    assert_eq!(api.get("/api/v1/me").status, 200);
    let more = mesh.manager().resident_bytes().saturating_sub(before);
    assert!(more < 24 << 20, "{more} more bytes of memory");
}

#[test]
fn paths_lead_nowhere_else() {
    let mesh = mesh(&[]);
    let api = local(&mesh);
    for path in [
        "/../../etc/passwd",
        "/api/v1/../../etc/passwd",
        "/api/v1/jobs/..%2f..%2fetc%2fpasswd",
        "/api/v1/services/%2e%2e",
        "/api/v1/services/..",
        "/api/v1/jobs/1/tasks/../../../../key/log",
        "/api/v1//jobs",
        "/api/v1/jobs/%00",
        "//evil.example/api/v1/jobs",
        "/%ff%fe",
    ] {
        let reply = api.get(path);
        assert!(matches!(reply.status, 400 | 404), "{path}: {}", reply.status);
        let text = reply.text();
        assert!(!text.contains("root:"), "{path}: {text}");
    }
    // A name in a message is escaped.
    let said = problem(api.get("/api/v1/services/%3Cscript%3E%1b"), 404, "not_found");
    assert!(!said.contains('\u{1b}'), "{said}");
}

#[test]
fn slow_clients_are_disconnected_and_hold_up_nobody() {
    let mesh = mesh(&[]);
    let token = token(&mesh, "operator");
    let api = remote(&mesh).bearing(&token);
    let began = Instant::now();
    // One says nothing, one sends a header bit by bit.
    let silent = TcpStream::connect(mesh.http_address()).unwrap();
    let mut drip = TcpStream::connect(mesh.http_address()).unwrap();
    let mut dripping = drip.try_clone().unwrap();
    let dripper = std::thread::spawn(move || {
        let bytes = b"GET /api/v1/health HTTP/1.1\r\nX: ".iter().chain(std::iter::repeat(&b'a'));
        for byte in bytes {
            if drip.write_all(&[*byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    for mut connection in [silent, dripping.try_clone().unwrap()] {
        connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut answer = Vec::new();
        _ = connection.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert_eq!(api.get("/api/v1/me").status, 200, "others are answered");
    }
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    _ = dripping.flush();
    dripper.join().unwrap();
}

#[test]
fn streams_that_nobody_reads_cost_little_memory() {
    let mut mesh = mesh(&["a"]);
    let api = local(&mesh);
    let before = mesh.manager().resident_bytes();
    let mut streams: Vec<Box<dyn Connection>> = Vec::new();
    let readers = 500;
    for _ in 0..readers {
        let mut connection = api.connect().unwrap();
        let ask =
            api.with("Accept", "text/event-stream").request("GET", "/api/v1/events?since=0", None);
        connection.write_all(ask.as_bytes()).unwrap();
        streams.push(connection);
    }
    // Far more events than the buffers of the system hold.
    let array = json!({ "name": "many", "spec": { "command": ["true"], "last_index": 3000, "cpu_millis": 1 } });
    let job = submit(&api, &array);
    crate::ended(&api, job);
    let each = mesh.manager().resident_bytes().saturating_sub(before) / readers;
    assert!(each < 64 << 10, "{each} bytes of memory for each stream");
    drop(streams);
    until_true("the streams have ended", || {
        let log = local(&mesh).events("/api/v1/events");
        log.is_ok_and(|reply| reply.status == 200)
    });
    submit(&api, &script("true"));
}

#[test]
fn one_caller_cannot_take_all_streams() {
    let mesh = mesh(&[]);
    let token = token(&mesh, "viewer");
    let api = remote(&mesh).bearing(&token);
    let mut streams = Vec::new();
    let refused = loop {
        let reply = api.events("/api/v1/events").unwrap();
        if reply.status != 200 {
            break reply;
        }
        streams.push(reply);
        assert!(streams.len() < 2000, "there is no limit");
    };
    let said = problem(refused, 503, "overloaded");
    assert!(said.contains("CLIENT_UNREAD_BYTES_MAX"), "{said}");
    assert!(streams.len() > 500, "{} streams", streams.len());
    assert_eq!(local(&mesh).events("/api/v1/events").unwrap().status, 200, "others have room");
    streams.clear();
    until_true("the caller has room again", || api.events("/api/v1/events").unwrap().status == 200);
}
