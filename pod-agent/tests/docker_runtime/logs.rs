//! The Docker runtime's capture of output against a real engine: every byte, once.

use crate::support::*;
use podmesh_agent::policy::MountRoot;
use podmesh_protocol::spec::Mount;

#[tokio::test]
async fn bytes_stay_bytes() {
    if !usable() {
        return;
    }
    let mut place = Place::new();
    let dir = place.path().join("in");
    std::fs::create_dir(&dir).unwrap();
    // Every byte value, no order, line breaks here and there.
    let mut state = 1_u64;
    let bytes: Vec<u8> = (0..1_000_003)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    std::fs::write(dir.join("bytes"), &bytes).unwrap();
    place.policy.mount_roots = vec![MountRoot { path: dir.clone(), writable: false }];
    let mut agent = place.agent().await;
    let mut job = place.script("cat /in/bytes; printf 'no line break' >&2");
    docker_spec(&mut job).mounts =
        vec![Mount { source: dir.to_str().unwrap().into(), target: "/in".into(), read_only: true }];
    assert_eq!(agent.run(attempt(1), job).await.exit_code, Some(0));
    assert!(place.output(attempt(1), "stdout").unwrap() == bytes, "bytes differ");
    assert_eq!(place.text(attempt(1), "stderr"), "no line break");
    assert!(agent.gaps().is_empty());
}

#[tokio::test]
async fn no_line_is_lost_or_doubled() {
    if !usable() {
        return;
    }
    let mut place = Place::new();
    place.rotation.file_bytes_max = 300_000;
    place.rotation.files_max = 1000;
    let mut agent = place.agent().await;
    let job = place.script("seq 1 200000; seq 1 500 >&2; echo; echo");
    assert_eq!(agent.run(attempt(1), job).await.exit_code, Some(0));
    let mut lines: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    lines.push_str("\n\n");
    assert!(place.text(attempt(1), "stdout") == lines, "lines differ");
    let lines: String = (1..=500).map(|n| format!("{n}\n")).collect();
    assert_eq!(place.text(attempt(1), "stderr"), lines);
    assert!(agent.gaps().is_empty());
}

#[tokio::test]
async fn long_lines_stay_whole() {
    if !usable() {
        return;
    }
    let place = Place::new();
    let mut agent = place.agent().await;
    let script = "for n in 16383 16384 16385 32768 3000000; do head -c $n /dev/zero | tr '\\0' x; echo; done; \
                  head -c 100000 /dev/zero | tr '\\0' y";
    assert_eq!(agent.run(attempt(1), place.script(script)).await.exit_code, Some(0));
    let mut text = String::new();
    for n in [16_383, 16_384, 16_385, 32_768, 3_000_000] {
        text.push_str(&"x".repeat(n));
        text.push('\n');
    }
    text.push_str(&"y".repeat(100_000));
    assert!(place.text(attempt(1), "stdout") == text, "text differs");
    // The same with a line break, and with one where a piece is just full.
    for (index, n) in [(2, 100_000), (3, 32_768)] {
        let script = format!("head -c {n} /dev/zero | tr '\\0' z >&2; echo >&2");
        assert_eq!(agent.run(attempt(index), place.script(&script)).await.exit_code, Some(0));
        assert!(place.text(attempt(index), "stderr") == "z".repeat(n) + "\n", "{n}: text differs");
    }
    assert!(agent.gaps().is_empty());
}

#[tokio::test]
async fn the_last_line_before_the_exit_is_there() {
    if !usable() {
        return;
    }
    let place = Place::new();
    let mut agent = place.agent().await;
    for index in 1..=24 {
        agent.start(
            attempt(index),
            place.script(&format!("echo first >&2; sleep 0.0{index}; echo last {index}")),
        );
    }
    for index in 1..=24 {
        assert_eq!(agent.end(attempt(index)).await.exit_code, Some(0));
        assert_eq!(place.text(attempt(index), "stdout"), format!("last {index}\n"));
        assert_eq!(place.text(attempt(index), "stderr"), "first\n");
        agent.runtime.remove(attempt(index));
    }
    agent.removed(&place).await;
}

#[tokio::test]
async fn a_disk_that_takes_no_bytes_for_a_while_loses_none() {
    if !usable() {
        return;
    }
    let place = Place::new();
    let mut agent = place.agent().await;
    let script = "while [ ! -e /tmp/go ]; do sleep 0.05; done; seq 1 5000; seq 1 7 >&2; exit 2";
    agent.start(attempt(1), place.script(script));
    agent.started(attempt(1)).await;
    // A file in the place of the folder.
    std::fs::write(place.logs_dir(), "").unwrap();
    let (docker, name) = (engine(), place.container_name(attempt(1)));
    exec(&docker, &name, "touch /tmp/go").await;
    exited(&docker, &name).await;
    std::fs::remove_file(place.logs_dir()).unwrap();
    assert_eq!(agent.end(attempt(1)).await.exit_code, Some(2));
    let lines: String = (1..=5000).map(|n| format!("{n}\n")).collect();
    assert!(place.text(attempt(1), "stdout") == lines, "lines differ");
    assert_eq!(place.text(attempt(1), "stderr"), "1\n2\n3\n4\n5\n6\n7\n");
    assert!(agent.gaps().is_empty());
}

#[tokio::test]
async fn the_engines_own_rotation_is_borne() {
    if !usable() {
        return;
    }
    let place = Place::new();
    let mut agent = place.agent().await;
    // More than one file of the engine's log (50 MB), at a pace that can be followed.
    let script = "pad=$(head -c 4000 /dev/zero | tr '\\0' x)
        for k in $(seq 0 99); do
            seq $((k * 300 + 1)) $((k * 300 + 300)) | sed \"s/\\$/ $pad/\"; sleep 0.05
        done";
    assert_eq!(agent.run(attempt(1), place.script(script)).await.exit_code, Some(0));
    let output = place.output(attempt(1), "stdout").unwrap();
    let mut numbers = output.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for n in 1..=30_000 {
        let line = std::str::from_utf8(numbers.next().unwrap()).unwrap();
        assert_eq!(
            (line.len(), line.split(' ').next()),
            (n.to_string().len() + 4001, Some(n.to_string().as_str()))
        );
    }
    assert!(numbers.next().is_none());
    assert!(agent.gaps().is_empty());
}
