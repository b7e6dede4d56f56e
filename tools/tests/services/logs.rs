//! `podmesh logs` of services.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use podmesh_protocol::client::{
    AttemptView, JobView, LogPosition, LogStream, ReplyBody, RequestBody, TaskDetail,
};
use podmesh_protocol::ids::{JobId, Revision, TaskId};
use podmesh_protocol::report::{AttemptState, JobState, TaskCounts, TaskState};
use podmesh_protocol::service::{ReplicaState, ServiceRequest, ServiceState};

use crate::fake::{Answer, FakeManager};
use crate::{at, detail, manager, not_found, otherwise, says, shown, slice, stdout};

/// Answers reads of output: replica n has printed `lines` lines, in slices of a few bytes.
fn output(body: &RequestBody, lines: usize) -> Answer {
    let RequestBody::Log(read) = body else { return otherwise(body) };
    if read.stream == LogStream::Stderr {
        return Some(Ok(ReplyBody::Log(slice(0, b"", true))));
    }
    let number = read.attempt.task.job.0;
    let text: String = (0..lines).map(|line| format!("<{number} says {line}>\n")).collect();
    let from = match read.from {
        LogPosition::Offset(from) => from,
        LogPosition::TailLines(lines) => {
            let last: Vec<&str> = text.split_inclusive('\n').rev().take(lines as usize).collect();
            (text.len() - last.concat().len()) as u64
        }
    };
    let rest = &text.as_bytes()[from as usize..];
    let part = &rest[..rest.len().min(1_000 + 7 * number as usize)];
    Some(Ok(ReplyBody::Log(slice(from, part, part.len() == rest.len()))))
}

#[test]
fn the_output_of_many_replicas_is_merged_line_by_line() {
    const REPLICAS: u32 = 100;
    const LINES: usize = 300;
    let manager = FakeManager::start(Duration::from_millis(2), |body| match body {
        RequestBody::Service(ServiceRequest::Show { .. }) => shown(detail(REPLICAS)),
        other => output(other, LINES),
    });
    let merged = manager.run(&["logs", "web"]);
    says(&merged, 0, &[]);
    let mut next: BTreeMap<u32, usize> = BTreeMap::new();
    for line in stdout(&merged).lines() {
        let (label, said) = line.split_once('|').unwrap();
        let number: u32 = label.trim().strip_prefix("web.").unwrap().parse().unwrap();
        let expected = next.entry(number).or_default();
        assert_eq!(said, format!(" <{number} says {expected}>"), "{line}");
        *expected += 1;
    }
    assert_eq!(next, (1..=REPLICAS).map(|number| (number, LINES)).collect());
    assert!(manager.peak() > 8 && manager.peak() <= 16, "{} at a time", manager.peak());
}

#[test]
fn colours_are_used_only_if_wanted() {
    let manager = manager(|body| output(body, 1));
    let plain = stdout(&manager.run(&["logs", "web"]));
    let mut lines: Vec<&str> = plain.lines().collect();
    lines.sort();
    assert_eq!(lines, ["web.1 | <1 says 0>", "web.2 | <2 says 0>"]);
    let colored = stdout(&manager.run(&["logs", "web", "--color", "always"]));
    assert!(colored.contains("\u{1b}["), "{colored:?}");
    let variable = manager.podmesh(&["logs", "web"]).env("NO_COLOR", "1").output().unwrap();
    assert!(!stdout(&variable).contains('\u{1b}'), "{}", stdout(&variable));
}

#[test]
fn one_replica_is_printed_without_its_name() {
    let manager = manager(|body| output(body, 2));
    let text = stdout(&manager.run(&["logs", "web.2"]));
    assert_eq!(text, "<2 says 0>\n<2 says 1>\n");
    says(&manager.run(&["logs", "web.9"]), 125, &["no replica web.9", "2 replicas"]);
    says(&manager.run(&["logs", "-f", "web.9"]), 125, &["no replica web.9", "2 replicas"]);
    says(&manager.run(&["logs", "wen"]), 125, &["no such service", "did you mean `web`?"]);
}

#[test]
fn follow_shows_replicas_that_start_later() {
    let manager = manager(|body| match body {
        RequestBody::Service(ServiceRequest::Show { since: None, .. }) => shown(detail(1)),
        RequestBody::Service(ServiceRequest::Show { since: Some(Revision(1)), .. }) => {
            let mut later = detail(2);
            later.changed = Revision(2);
            shown(later)
        }
        RequestBody::Service(ServiceRequest::Show { since: Some(Revision(2)), .. }) => {
            not_found("removed")
        }
        other => output(other, 2),
    });
    let mut child = manager
        .podmesh(&["logs", "-f", "web", "--tail", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: Vec<String> =
        BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
    // All output of a new replica is new.
    assert_eq!(lines, ["web.1 | <1 says 1>", "web.2 | <2 says 0>", "web.2 | <2 says 1>"]);
    says(&child.wait_with_output().unwrap(), 0, &["service web was removed"]);
}

fn job(number: u64) -> JobView {
    JobView {
        job: JobId(number),
        name: "web".parse().unwrap(),
        state: JobState::Failed.into(),
        priority: 0,
        counts: TaskCounts::default(),
        submitted_by: None,
        submitted_wall_ms: 0,
        started_wall_ms: None,
        ended_wall_ms: None,
        unmet: 0,
        blocked: 0,
    }
}

fn task(task: TaskId) -> TaskDetail {
    let attempt = AttemptView {
        number: 1,
        node: "node-1".parse().unwrap(),
        state: AttemptState::Ended.into(),
        outcome: None,
        assigned_wall_ms: 0,
        started_wall_ms: None,
        ended_wall_ms: None,
    };
    TaskDetail { task, state: TaskState::Failed.into(), attempts: vec![attempt] }
}

#[test]
fn follow_shows_replicas_that_ended_before_they_were_seen() {
    let manager = manager(|body| match body {
        RequestBody::Service(ServiceRequest::Show { since: None, .. }) => shown(detail(1)),
        RequestBody::Service(ServiceRequest::Show { since: Some(Revision(1)), .. }) => {
            let mut later = detail(1);
            later.changed = Revision(2);
            later.replicas[0].state = ReplicaState::Restarting.into();
            later.replicas[0].attempt = None;
            later.replicas[0].failures = 3;
            shown(later)
        }
        RequestBody::Service(ServiceRequest::Show { since: Some(Revision(2)), .. }) => {
            not_found("removed")
        }
        // The newest job at the begin of the command is job 1.
        RequestBody::Jobs { replica: None, .. } => Some(Ok(ReplyBody::Jobs(vec![job(1)]))),
        RequestBody::Jobs { replica: Some(1), .. } => {
            Some(Ok(ReplyBody::Jobs([3, 2, 1, 0].map(job).to_vec())))
        }
        RequestBody::Task { task: id, .. } => Some(Ok(ReplyBody::Task(task(*id)))),
        other => output(other, 1),
    });
    let output = manager.run(&["logs", "-f", "web"]);
    let text = stdout(&output);
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort();
    assert_eq!(lines, [1, 2, 3].map(|n| format!("web.1 | <{n} says 0>")));
}

#[test]
fn a_stopped_service_still_has_its_last_output() {
    let manager = manager(|body| match body {
        RequestBody::Service(ServiceRequest::Show { .. }) => {
            let mut stopped = at(ServiceState::Stopped, 4, 0, None);
            stopped.replicas.clear();
            shown(stopped)
        }
        RequestBody::Jobs { replica: Some(number), .. } => {
            let newest = u64::from(*number) * 10;
            Some(Ok(ReplyBody::Jobs(vec![job(newest), job(newest - 1)])))
        }
        RequestBody::Task { task: id, .. } => Some(Ok(ReplyBody::Task(task(*id)))),
        other => output(other, 1),
    });
    let text = stdout(&manager.run(&["logs", "web"]));
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort();
    assert_eq!(lines, ["web.1 | <10 says 0>", "web.2 | <20 says 0>"]);
}

#[test]
fn many_replicas_are_followed_in_turn() {
    const REPLICAS: u32 = 40;
    let manager = FakeManager::start(Duration::from_millis(2), |body| match body {
        RequestBody::Service(ServiceRequest::Show { since: None, .. }) => shown(detail(REPLICAS)),
        RequestBody::Service(ServiceRequest::Show { .. }) => None,
        // They still run, and the last line has no end yet.
        RequestBody::Log(read) if read.stream == LogStream::Stdout => {
            let text = format!("<{} runs>\npart", read.attempt.task.job);
            let LogPosition::Offset(from) = read.from else { unreachable!("no tail is asked for") };
            Some(Ok(ReplyBody::Log(slice(from, &text.as_bytes()[from as usize..], false))))
        }
        RequestBody::Log(_) => Some(Ok(ReplyBody::Log(slice(0, b"", false)))),
        other => otherwise(other),
    });
    let mut child = manager.podmesh(&["logs", "-f", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines: Vec<String> = lines.take(REPLICAS as usize).map(Result::unwrap).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    lines.sort();
    let mut expected: Vec<String> =
        (1..=REPLICAS).map(|n| format!("{:6} | <{n} runs>", format!("web.{n}"))).collect();
    expected.sort();
    assert_eq!(lines, expected);
    let waits = |body: &RequestBody| matches!(body, RequestBody::Log(read) if read.wait_ms > 0);
    assert!(!manager.asked().iter().any(waits), "a read kept others from their turn");
    // The request that waits for a change of the service is one more.
    assert!(manager.peak() <= 17, "{} at a time", manager.peak());
}
