//! The output of a whole job or service as one stream.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use podmesh_tests::api::{Api, Reply};
use serde_json::{Value, json};

use crate::{ended, local, mesh, problem, submit};

/// An array whose tasks say hello, wait for a file, and say goodbye without a line break.
fn greeters(gate: &Path, tasks: u32) -> Value {
    let script = format!(
        "echo hello $PODMESH_TASK_INDEX; until [ -e {} ]; do sleep 0.02; done; printf bye",
        gate.display()
    );
    let spec = json!({ "command": ["sh", "-c", script], "cpu_millis": 10, "last_index": tasks });
    json!({ "name": "greeters", "spec": spec })
}

/// Reads events until `enough`; returns the text by label.
fn read(
    stream: &mut Reply,
    mut enough: impl FnMut(&BTreeMap<String, String>) -> bool,
) -> BTreeMap<String, String> {
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    while !enough(&texts) {
        let Some(event) = stream.event().unwrap() else { break };
        if let (None, Some(label)) = (&event.kind, event.data["label"].as_str()) {
            let text = event.data["text"].as_str().unwrap();
            assert!(text.ends_with('\n'), "{text:?} is not of whole lines");
            *texts.entry(label.to_owned()).or_default() += text;
        }
    }
    texts
}

#[test]
fn the_output_of_all_tasks_comes_in_one_stream_until_the_job_has_ended() {
    let mesh = mesh(&["a"]);
    let api = local(&mesh);
    // More than are read at a time by far, and more than fit on the node at a time.
    let tasks = 70;
    let gate = mesh.shared_folder("gate").join("open");
    let job = submit(&api, &greeters(&gate, tasks));
    let mut stream = api.events(&format!("/api/v1/jobs/{job}/log?follow=true")).unwrap();
    assert_eq!(stream.status, 200);
    let seen = read(&mut stream, |texts| texts.len() >= 3);
    assert!(seen.values().all(|text| text.starts_with("hello ")), "{seen:?}");
    fs::write(&gate, "").unwrap();
    let mut all = seen;
    for (label, text) in read(&mut stream, |_| false) {
        *all.entry(label).or_default() += &text;
    }
    assert_eq!(all.len(), tasks as usize);
    for task in 1..=tasks {
        assert_eq!(all[&format!("{job}.{task}")], format!("hello {task}\nbye\n"));
    }
    assert_eq!(ended(&api, job)["state"], "succeeded");

    // As text, and only the end of each.
    let text = api.get(&format!("/api/v1/jobs/{job}/log?tail=1")).text();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let mut expected: Vec<String> = (1..=tasks).map(|task| format!("{job}.{task}: bye")).collect();
    expected.sort_unstable();
    assert_eq!(lines, expected);
    assert_eq!(api.get(&format!("/api/v1/jobs/{job}/log?stream=stderr")).text(), "");
    problem(api.get("/api/v1/jobs/999/log"), 404, "not_found");
    problem(api.get("/api/v1/services/none/log"), 404, "not_found");
    problem(api.get(&format!("/api/v1/jobs/{job}/log?tail=x")), 400, "bad_request");
}

#[test]
fn a_job_of_very_many_tasks_is_refused_and_not_shown_in_part() {
    let mesh = mesh(&[]);
    let api = local(&mesh);
    let many = json!({ "name": "many", "spec": { "command": ["true"], "last_index": 1_001 } });
    let job = submit(&api, &many);
    problem(api.get(&format!("/api/v1/jobs/{job}/log?follow=true")), 400, "bad_request");
}

#[test]
fn the_output_of_a_service_has_replicas_that_start_later() {
    let mesh = mesh(&["a"]);
    let api = local(&mesh);
    let spec = |replicas: u32| {
        let script = "echo hello; exec sleep 600";
        json!({ "replicas": replicas, "command": ["sh", "-c", script], "cpu_millis": 10 })
    };
    let put = |api: &Api, replicas| {
        let reply = api.send("PUT", "/api/v1/services/web", Some(&spec(replicas))).unwrap();
        assert_eq!(reply.status, 200);
    };
    put(&api, 1);
    let mut stream = api.events("/api/v1/services/web/log?follow=true").unwrap();
    let first = read(&mut stream, |texts| !texts.is_empty());
    assert_eq!(first, BTreeMap::from([("web.1".into(), "hello\n".into())]));
    put(&api, 2);
    let second = read(&mut stream, |texts| !texts.is_empty());
    assert_eq!(second, BTreeMap::from([("web.2".into(), "hello\n".into())]));
    // The stream ends when there is nothing more to come.
    assert_eq!(api.send("DELETE", "/api/v1/services/web", None).unwrap().status, 200);
    read(&mut stream, |_| false);
}
