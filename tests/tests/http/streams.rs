//! Events and logs as streams.

use std::io::Read;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use podmesh_tests::api::{Api, Event};
use podmesh_tests::wait::{until, until_true};
use serde_json::json;

use crate::{ended, local, mesh, problem, remote, script, submit, token};

/// Reads events from `since` on until the job with this number has ended, over any number of
/// connections, as a browser does. Returns their revisions.
fn follow(api: &Api, since: u64, jobs: usize) -> mpsc::Receiver<Vec<u64>> {
    let (sender, receiver) = mpsc::channel();
    let api = api.clone();
    thread::spawn(move || {
        let (mut last, mut found, mut ends) = (since, vec![], 0);
        while ends < jobs {
            let resumed = api.with("Last-Event-ID", &last.to_string());
            let Ok(mut stream) = resumed.events("/api/v1/events") else {
                thread::sleep(Duration::from_millis(20));
                continue;
            };
            while let Ok(Some(Event { id: Some(id), data, .. })) = stream.event() {
                assert_eq!(data["revision"], id);
                ends += usize::from(data["event"] == "job_ended");
                last = id;
                found.push(id);
                if ends == jobs {
                    break;
                }
            }
        }
        _ = sender.send(found);
    });
    receiver
}

#[test]
fn a_stream_of_events_misses_none_and_repeats_none_over_restarts() {
    let mut mesh = mesh(&["a"]);
    let api = local(&mesh);
    let jobs = 40;
    // One that begins at the first event, and one that begins now.
    let now = api.get("/api/v1/info").json()["revision"].as_u64().unwrap();
    let streams = [(0, follow(&api, 0, jobs)), (now, follow(&api, now, jobs))];
    for n in 0..jobs {
        if n % 10 == 5 {
            mesh.kill_manager();
            mesh.start_manager();
            mesh.wait_for_node("a", "alive");
        }
        submit(&api, &script("true"));
    }
    for (since, found) in streams {
        let found = found.recv_timeout(Duration::from_secs(60)).unwrap();
        let expected: Vec<u64> = (since + 1..=since + found.len() as u64).collect();
        assert_eq!(found, expected, "since {since}");
    }
}

#[test]
fn a_page_of_events_continues_where_the_last_one_ended() {
    let mesh = mesh(&["a"]);
    let api = local(&mesh);
    let job = submit(&api, &script("true"));
    ended(&api, job);
    let page = api.get("/api/v1/events").json();
    let (events, last) = (page["events"].as_array().unwrap(), page["last"].as_u64().unwrap());
    let revisions: Vec<u64> =
        events.iter().map(|event| event["revision"].as_u64().unwrap()).collect();
    assert_eq!(revisions, (1..=last).collect::<Vec<_>>());
    let rest = api.get(&format!("/api/v1/events?since={last}")).json();
    assert_eq!(rest["events"], json!([]));
    problem(api.with("Last-Event-ID", "x").events("/api/v1/events").unwrap(), 400, "bad_request");
}

#[test]
fn a_revoked_token_ends_its_streams() {
    let mesh = mesh(&[]);
    let token = token(&mesh, "viewer");
    let mut stream = remote(&mesh).bearing(&token).events("/api/v1/events").unwrap();
    assert_eq!(stream.status, 200);
    let mut other = local(&mesh).events("/api/v1/events").unwrap();
    let id = mesh.json(&["token"])["tokens"].as_array().unwrap().last().unwrap()["id"].clone();
    mesh.ok(&["token", "revoke", &id.to_string()]);
    // The event about it is for others.
    let event = stream.event().unwrap().unwrap();
    assert_eq!(event.kind.as_deref(), Some("problem"));
    assert_eq!(
        (&event.data["status"], &event.data["code"]),
        (&json!(401), &json!("invalid_token"))
    );
    assert_eq!(stream.event().unwrap(), None);
    assert_eq!(other.event().unwrap().unwrap().data["event"], "token_revoked");
}

#[test]
fn output_is_read_as_a_whole_in_parts_and_as_it_comes() {
    let mesh = mesh(&["a"]);
    let api = local(&mesh);
    let folder = mesh.shared_folder("go");
    let go = folder.join("go");
    let text = format!(
        "printf 'one\\ntw\\303'; until [ -e {} ]; do sleep 0.02; done; printf '\\266\\nthree\\377'; echo err >&2",
        go.display()
    );
    let job = submit(&api, &script(&text));
    let path = format!("/api/v1/jobs/{job}/tasks/1/log");
    until("the task has an attempt", || (api.get(&path).status == 200).then_some(()));

    let mut plain = api.get(&format!("{path}?follow=true"));
    let mut events = api.events(&format!("{path}?follow=true")).unwrap();
    let mut start = [0; 7];
    plain.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"one\ntw\xc3");
    let first = events.event().unwrap().unwrap();
    assert_eq!(first.data, json!({ "offset": 0, "text": "one\ntw" }));
    assert_eq!(first.id, Some(6), "the first byte of a character waits for the second");
    assert_eq!(api.get(&path).body().unwrap(), b"one\ntw\xc3", "what there is now");

    std::fs::write(&go, "").unwrap();
    assert_eq!(plain.body().unwrap(), b"\xb6\nthree\xff");
    let mut rest = String::new();
    let mut last = 0;
    loop {
        let event = events.event().unwrap().unwrap();
        if event.kind.as_deref() == Some("end") {
            break;
        }
        rest += event.data["text"].as_str().unwrap();
        last = event.id.unwrap();
    }
    assert_eq!(rest, "ö\nthree\u{fffd}");
    assert_eq!(last, 15);
    assert_eq!(events.event().unwrap(), None);
    ended(&api, job);

    // A stream resumes where it was cut.
    let mut resumed = api.with("Last-Event-ID", "9").events(&path).unwrap();
    assert_eq!(resumed.event().unwrap().unwrap().data["text"], "three\u{fffd}");
    assert_eq!(api.get(&format!("{path}?stream=stderr")).text(), "err\n");
    assert_eq!(api.get(&format!("{path}?tail=1")).body().unwrap(), b"three\xff");
    assert_eq!(api.get(&format!("{path}?offset=9")).body().unwrap(), b"three\xff");
    let range = |range: &str| {
        let mut reply = api.with("Range", range).get(&path);
        let about = reply.header("content-range").unwrap_or_default().to_owned();
        (reply.status, about, reply.body().unwrap())
    };
    assert_eq!(range("bytes=0-2"), (206, "bytes 0-2/*".into(), b"one".to_vec()));
    assert_eq!(range("bytes=9-"), (206, "bytes 9-14/15".into(), b"three\xff".to_vec()));
    assert_eq!(range("bytes=99-").0, 416);
    assert_eq!(range("bytes=-3").0, 200, "another kind of range is ignored");
    problem(api.get(&format!("{path}?attempt=7")), 404, "not_found");
}

#[test]
fn a_log_that_is_cut_is_not_taken_for_complete() {
    let mut mesh = mesh(&["a"]);
    let api = local(&mesh);
    let job = submit(&api, &script("echo begin; sleep 600"));
    let path = format!("/api/v1/jobs/{job}/tasks/1/log?follow=true");
    until_true("the task has an attempt", || api.get(&path.replace("true", "false")).status == 200);
    let mut stream = api.get(&path);
    let mut begin = [0; 6];
    stream.read_exact(&mut begin).unwrap();
    mesh.kill_agent("a");
    assert!(stream.body().is_err(), "the reply has no end");
}

#[test]
fn events_are_filtered_as_a_page_and_as_a_stream() {
    let mesh = mesh(&["a", "b"]);
    let api = local(&mesh);
    let jobs = [submit(&api, &script("true")), submit(&api, &script("true"))];
    jobs.iter().for_each(|job| _ = ended(&api, *job));
    mesh.ok(&["nodes", "cordon", "b"]);
    let page = |query: &str| {
        let page = api.get(&format!("/api/v1/events?{query}")).json();
        assert_eq!(page["next"], page["last"], "everything was looked through");
        let events = page["events"].as_array().unwrap().clone();
        assert!(!events.is_empty(), "{query}");
        events
    };
    let second = format!("job={}", jobs[1]);
    assert!(page(&second).iter().all(|event| event["job"] == jobs[1]));
    let ends = page("kind=job_ended");
    assert_eq!(ends.iter().map(|event| event["job"].as_u64().unwrap()).collect::<Vec<_>>(), jobs);
    let cordoned = page("node=b&kind=node_scheduled");
    let by = cordoned[0]["by"].as_str().unwrap();
    assert_eq!(page(&format!("user={by}&node=b")), cordoned);

    let mut stream =
        api.events(&format!("/api/v1/events?since=0&kind=job_ended&{second}")).unwrap();
    let event =
        until("the wanted event", || stream.event().unwrap().filter(|event| !event.data.is_null()));
    assert_eq!((&event.data["event"], &event.data["job"]), (&json!("job_ended"), &json!(jobs[1])));

    let printed = mesh.ok(&["events", "--kind", "job_ended", "--output", "json"]);
    let printed: Vec<serde_json::Value> =
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(printed, ends);
    assert_eq!(mesh.ok(&["events", "--service", "web"]), "");
}

#[test]
fn a_text_is_found_in_a_long_output_on_the_node() {
    let mesh = mesh(&["a"]);
    let api = local(&mesh);
    // About 80 MB, in several files: more than one read looks through.
    let text = "yes 0123456789012345678901234567890123456789 | head -n 1000000; echo 'a needle here'; yes 0123456789012345678901234567890123456789 | head -n 1000000; echo 'needle, the last'";
    let job = submit(&api, &script(text));
    assert_eq!(ended(&api, job)["state"], "succeeded");
    let path = format!("/api/v1/jobs/{job}/tasks/1/log/search");
    let search = |text: &str, from: u64| {
        let mut from = from;
        loop {
            let reply = api.get(&format!("{path}?text={text}&from={from}")).json();
            if reply["end"] == true || !reply["found"].is_null() {
                return reply;
            }
            assert!(reply["next"].as_u64().unwrap() > from, "{reply}");
            from = reply["next"].as_u64().unwrap();
        }
    };
    // Older output was removed by rotation: offsets stay.
    let first = search("needle", 0);
    assert_eq!(first["found"], json!({ "offset": 41_000_000, "text": "a needle here" }));
    let second = search("needle", first["next"].as_u64().unwrap());
    assert_eq!(second["found"]["text"], "needle, the last");
    let none = search("needle", second["next"].as_u64().unwrap());
    assert_eq!((&none["found"], &none["end"]), (&json!(null), &json!(true)));
    assert_eq!(search("Needle", 0)["found"], json!(null));

    let found = mesh.ok(&["logs", &job.to_string(), "--grep", "needle"]);
    assert_eq!(found, "a needle here\nneedle, the last\n");
    let none = mesh.output(&["logs", &job.to_string(), "--grep", "Needle"]);
    assert_eq!((none.status.code(), none.stdout.as_slice()), (Some(1), b"".as_slice()));

    for bad in ["", "a%0Ab", &"x".repeat(257)] {
        let said = problem(api.get(&format!("{path}?text={bad}")), 400, "bad_message");
        assert!(said.contains("1 to 256 bytes"), "{said}");
    }
}
