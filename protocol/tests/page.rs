//! Compares PROTOCOL.md with the code: its hex examples, its limits, and its words.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use podmesh_protocol::access::{
    JoinRequest, JoinToken, Joined, KeyDigest, Role, TokenId, TokenSecret,
};
use podmesh_protocol::client::{Info, Reply, ReplyBody, Request, RequestBody};
use podmesh_protocol::codec::{Message, encode};
use podmesh_protocol::event::{EventChunk, EventFact, Published};
use podmesh_protocol::ids::{
    AttemptId, ClusterId, Epoch, InstanceId, JobId, Revision, SubmissionId,
};
use podmesh_protocol::report::{Outcome, Report, ReportFact};
use podmesh_protocol::session::{Hello, ToManager, ToPeer, Welcome};
use podmesh_protocol::spec::{
    ArrayRange, JobSpec, OnLost, Resources, RetryPolicy, RunSpec, RuntimeKind, RuntimeSpec,
};
use uuid::Uuid;

const PAGE: &str = include_str!("../PROTOCOL.md");
const LIMITS: &str = include_str!("../src/limits.rs");

/// Returns the bytes of the hex block with this title.
fn hex(title: &str) -> Vec<u8> {
    let head = format!("```hex {title}\n");
    let Some((_, rest)) = PAGE.split_once(&head) else { panic!("no block `{head}`") };
    let (block, _) = rest.split_once("```").unwrap();
    let digits: Vec<u8> = block
        .lines()
        .map(|line| line.split('#').next().unwrap())
        .flat_map(str::bytes)
        .filter(|b| !b.is_ascii_whitespace())
        .collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn same(title: &str, message: &impl Message) {
    let bytes = encode(message).unwrap();
    let shown: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex(title), bytes, "`{title}` should be:\n{}", shown.join(" "));
}

fn run_spec() -> RunSpec {
    RunSpec {
        runtime: RuntimeSpec::Process,
        command: vec!["true".into()],
        env: [].into(),
        workdir: None,
        timeout_ms: None,
        stop_grace_ms: 10_000,
        replica: None,
        files: [].into(),
    }
}

#[test]
fn the_hex_on_the_page_matches_the_code() {
    let request = |id, body| ToManager::Request(Request { version: 1, id, body });
    let reply = |id, body| ToPeer::Reply(Reply { id, result: Ok(body) });
    same("info", &request(1, RequestBody::Info));
    let info = Info {
        version: 1,
        program_version: "0.1.0".into(),
        cluster: ClusterId(Uuid::from_u128(0x11)),
        instance: InstanceId(Uuid::from_u128(0x22)),
        revision: Revision(0),
        wall_ms: 1_700_000_000_000,
        key: KeyDigest([1; 32]),
    };
    same("info reply", &reply(1, ReplyBody::Info(info)));
    let spec = Box::new(JobSpec {
        name: "true".parse().unwrap(),
        array: ArrayRange { first: 1, last: 1 },
        priority: 0,
        require: [].into(),
        resources: Resources { cpu_millis: 1000, memory_bytes: 0 },
        retry: RetryPolicy::default(),
        on_lost: OnLost::Wait,
        rules: Default::default(),
        place: Default::default(),
        not_before_ms: None,
        after: Vec::new(),
        scheduled: None,
        dead_letter: None,
        workflow: None,
        run: run_spec(),
    });
    let submission = SubmissionId(Uuid::from_u128(0x33));
    same("submit", &request(2, RequestBody::Submit { submission, spec }));
    same("submit reply", &reply(2, ReplyBody::Submitted { job: JobId(1), again: false }));
    let hello = Hello {
        version: 1,
        version_oldest: None,
        node: "a".parse().unwrap(),
        boot_id: "b".into(),
        agent_instance: InstanceId(Uuid::from_u128(0x44)),
        agent_id: None,
        cluster: None,
        program_version: "0.1.0".into(),
        capacity: Resources { cpu_millis: 2000, memory_bytes: 1 << 30 },
        labels: [].into(),
        runtimes: vec![RuntimeKind::Process.into()],
        withdrawn: [].into(),
        unenforced: [].into(),
        low_disks: [].into(),
        address: None,
        resources: Default::default(),
        attempts: vec![],
    };
    same("hello", &ToManager::Hello(hello));
    let welcome = Welcome {
        version: 1,
        epoch: Epoch(1),
        cluster: ClusterId(Uuid::from_u128(0x11)),
        lease_ms: 15_000,
        heartbeat_ms: 1_000,
        acked: 0,
        stop: vec![],
        keep: vec![],
    };
    same("welcome", &ToPeer::Welcome(welcome));
    let job_spec = ToPeer::JobSpec {
        epoch: Epoch(1),
        job: JobId(1),
        on_lost: OnLost::Wait,
        resources: Resources { cpu_millis: 1000, memory_bytes: 0 },
        run: run_spec(),
        name: "true".parse().unwrap(),
    };
    same("job_spec", &job_spec);
    let attempt = AttemptId::new(JobId(1), 1, 1);
    same("starts", &ToPeer::Starts(Epoch(1), vec![attempt]));
    let ended = Outcome { ran_ms: 2, ..Outcome::exited(0) };
    let reports = vec![
        Report(1, attempt, ReportFact::Started),
        Report(2, attempt, ReportFact::Ended(ended.clone())),
    ];
    same("reports", &ToManager::Reports(Epoch(1), reports));
    same("acked", &ToPeer::Acked(Epoch(1), 2));
    let chunk = EventChunk {
        first: Revision(3),
        wall_ms: 1_700_000_000_000,
        facts: vec![
            EventFact::AttemptStarted { attempt },
            EventFact::AttemptEnded { attempt, outcome: ended.into(), retry_after_ms: None },
        ],
    };
    let published = Published::Events { since: Revision(2), last: Revision(4), chunk: Some(chunk) };
    same("events publication", &published);
}

#[test]
fn the_join_messages_on_the_page_match_the_code() {
    let secret = TokenSecret([2; 16]);
    let token = JoinToken {
        addresses: vec!["10.0.0.1:7770".into()],
        manager: KeyDigest([1; 32]),
        id: TokenId(1),
        secret: secret.clone(),
    };
    let shown = PAGE.split_once("```token\n").unwrap().1.lines().next().unwrap();
    assert_eq!(shown, token.to_string());
    let name: podmesh_protocol::ids::Name = "a".parse().unwrap();
    let request = JoinRequest {
        version: 1,
        version_oldest: None,
        token: TokenId(1),
        secret,
        name: name.clone(),
    };
    same("join request", &request);
    let cluster = ClusterId(Uuid::from_u128(0x11));
    let manager = vec![KeyDigest([1; 32])];
    let joined = Joined { cluster, role: Role::Agent, name, manager };
    same("joined", &Ok::<_, podmesh_protocol::error::ErrorReply>(joined));
}

#[test]
fn every_limit_is_on_the_page() {
    for line in LIMITS.lines().filter_map(|line| line.strip_prefix("pub const ")) {
        let name = line.split(':').next().unwrap();
        assert!(PAGE.contains(&format!("`{name}`")), "{name} is not on the page");
    }
}

/// Reads fields and variants from the source: each must be described on the page.
#[test]
fn every_message_and_field_is_on_the_page() {
    let described: std::collections::BTreeSet<&str> =
        PAGE.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let mut words = 0;
    for source in [
        include_str!("../src/access.rs"),
        include_str!("../src/client.rs"),
        include_str!("../src/session.rs"),
        include_str!("../src/event.rs"),
        include_str!("../src/report.rs"),
        include_str!("../src/schedule.rs"),
        include_str!("../src/service.rs"),
        include_str!("../src/spec.rs"),
        include_str!("../src/spec/docker.rs"),
        include_str!("../src/volume.rs"),
        include_str!("../src/workflow.rs"),
        include_str!("../src/error.rs"),
    ] {
        for item in source.split("#[derive(").skip(1).filter(|item| item.contains("Deserialize")) {
            let head = item.lines().find(|line| line.starts_with("pub ")).unwrap();
            if head.ends_with(';') {
                continue; // a structure whose parts have no names
            }
            let body = item.split("\n}\n").next().unwrap();
            // A tuple has no field names, and ends on its first line.
            if body.lines().any(|line| line.starts_with("pub struct") && line.ends_with(';')) {
                continue;
            }
            // A list of derives may take several lines: the fields follow the head.
            let fields = body.lines().skip_while(|line| *line != head).skip(1);
            for line in fields.map(str::trim_start) {
                // `pub field: …`, `Variant(…)`, `Variant {`, `Variant,`, and a variant's `field: …`.
                let line = match line.strip_prefix("pub ") {
                    Some(field) if field.contains(':') => field,
                    _ => line,
                };
                let end = line.find(['(', ':', ' ', ',']).unwrap_or(line.len());
                let word = &line[..end];
                let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                if word.is_empty() || !plain || ["struct", "enum", "pub"].contains(&word) {
                    continue;
                }
                words += 1;
                assert!(described.contains(&*snake(word)), "`{}` is not on the page", snake(word));
            }
        }
    }
    assert!(words > 150, "only {words} words were found in the source");
}

fn snake(word: &str) -> String {
    let mut out = String::new();
    for (at, c) in word.char_indices() {
        if c.is_ascii_uppercase() && at > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}
