//! Capture of output with a real engine: every byte arrives exactly once.

use crate::support::*;
use podmesh_agent::policy::MountRoot;
use podmesh_protocol::spec::Mount;

#[tokio::test]
async fn output_is_captured_byte_for_byte() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    let dir = node.path().join("in");
    std::fs::create_dir(&dir).unwrap();
    // Every byte value in random order, with some line breaks.
    let mut state = 1_u64;
    let bytes: Vec<u8> = (0..1_000_003)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    std::fs::write(dir.join("bytes"), &bytes).unwrap();
    node.policy.mount_roots = vec![MountRoot { path: dir.clone(), writable: false }];
    let mut agent = node.agent().await;
    let mut job = node.script("cat /in/bytes; printf 'no line break' >&2");
    docker_spec(&mut job).mounts =
        vec![Mount { source: dir.to_str().unwrap().into(), target: "/in".into(), read_only: true }];
    assert_eq!(agent.run(attempt(1), job).await.exit_code, Some(0));
    assert!(node.output(attempt(1), "stdout").unwrap() == bytes, "bytes differ");
    assert_eq!(node.text(attempt(1), "stderr"), "no line break");
    assert!(node.gaps().is_empty(), "{:?}", node.gaps());
}

#[tokio::test]
async fn no_line_is_lost_or_duplicated() {
    if !usable() {
        return;
    }
    let mut node = TestNode::new();
    node.rotation.file_bytes_max = 300_000;
    node.rotation.files_max = 1000;
    let mut agent = node.agent().await;
    let job = node.script("seq 1 200000; seq 1 500 >&2; echo; echo");
    assert_eq!(agent.run(attempt(1), job).await.exit_code, Some(0));
    let mut lines: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    lines.push_str("\n\n");
    assert!(node.text(attempt(1), "stdout") == lines, "lines differ");
    let lines: String = (1..=500).map(|n| format!("{n}\n")).collect();
    assert_eq!(node.text(attempt(1), "stderr"), lines);
    assert!(node.gaps().is_empty(), "{:?}", node.gaps());
}

#[tokio::test]
async fn long_lines_stay_whole() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    let script = "for n in 16383 16384 16385 32768 3000000; do head -c $n /dev/zero | tr '\\0' x; echo; done; \
                  head -c 100000 /dev/zero | tr '\\0' y";
    assert_eq!(agent.run(attempt(1), node.script(script)).await.exit_code, Some(0));
    let mut text = String::new();
    for n in [16_383, 16_384, 16_385, 32_768, 3_000_000] {
        text.push_str(&"x".repeat(n));
        text.push('\n');
    }
    text.push_str(&"y".repeat(100_000));
    assert!(node.text(attempt(1), "stdout") == text, "text differs");
    // The same with a line break at the end, and with one where a piece is exactly full.
    for (index, n) in [(2, 100_000), (3, 32_768)] {
        let script = format!("head -c {n} /dev/zero | tr '\\0' z >&2; echo >&2");
        assert_eq!(agent.run(attempt(index), node.script(&script)).await.exit_code, Some(0));
        assert!(node.text(attempt(index), "stderr") == "z".repeat(n) + "\n", "{n}: text differs");
    }
    assert!(node.gaps().is_empty(), "{:?}", node.gaps());
}

#[tokio::test]
async fn the_last_line_before_the_exit_is_captured() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    for index in 1..=24 {
        agent.start(
            attempt(index),
            node.script(&format!("echo first >&2; sleep 0.0{index}; echo last {index}")),
        );
    }
    for index in 1..=24 {
        assert_eq!(agent.end(attempt(index)).await.exit_code, Some(0));
        assert_eq!(node.text(attempt(index), "stdout"), format!("last {index}\n"));
        assert_eq!(node.text(attempt(index), "stderr"), "first\n");
        agent.runtime.remove(attempt(index));
    }
    agent.removed(&node).await;
}

/// A shell command that waits until the test creates `/tmp/go` in the container.
const UNTIL_GO: &str = "while [ ! -e /tmp/go ]; do sleep 0.05; done";

#[tokio::test]
async fn output_that_cannot_be_written_is_counted_in_the_file() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    let script =
        format!("{UNTIL_GO}; echo lost; sleep 0.2; rm /tmp/go; {UNTIL_GO}; echo kept; exit 2");
    agent.start(attempt(1), node.script(&script));
    agent.started(attempt(1)).await;
    // A file instead of the folder.
    std::fs::write(node.logs_dir(), "").unwrap();
    let (docker, name) = (engine(), node.container_name(attempt(1)));
    exec(&docker, &name, "touch /tmp/go").await;
    until(|| !node.gaps().is_empty()).await;
    std::fs::remove_file(node.logs_dir()).unwrap();
    exec(&docker, &name, "while [ -e /tmp/go ]; do sleep 0.05; done; touch /tmp/go").await;
    assert_eq!(agent.end(attempt(1)).await.exit_code, Some(2));
    let text = node.text(attempt(1), "stdout");
    assert_eq!(text, "[podmesh: 5 bytes of output were lost here]\nkept\n");
}

#[tokio::test]
async fn unusual_output_is_captured() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    let scripts = [
        // Closes both streams and keeps running; leaves a child that keeps them open.
        ("echo a; exec >&- 2>&-; sleep 1; exit 4", "a\n".to_owned(), 4),
        ("echo a; (sleep 600; echo b) & exit 5", "a\n".to_owned(), 5),
        ("yes '' | head -n 400000", "\n".repeat(400_000), 0),
        ("head -c 3000000 /dev/zero; printf '\\377\\376'", String::new(), 0),
        // One long line without a line break.
        ("head -c 50000000 /dev/zero | tr '\\0' z", "z".repeat(50_000_000), 0),
        ("exit 0", String::new(), 0),
    ];
    for (index, (script, text, code)) in (1..).zip(&scripts) {
        let outcome = agent.run(attempt(index), node.script(script)).await;
        assert_eq!(outcome.exit_code, Some(*code), "{script}");
        let output = node.output(attempt(index), "stdout").unwrap_or_default();
        if index == 4 {
            let mut expected = vec![0; 3_000_000];
            expected.extend([0xff, 0xfe]);
            assert!(output == expected, "bytes differ");
        } else {
            assert!(output == text.as_bytes(), "{script}: {} bytes", output.len());
        }
    }
    assert_eq!(node.output(attempt(6), "stdout"), None, "no file without output");
    assert!(node.gaps().is_empty(), "{:?}", node.gaps());
}

#[tokio::test]
async fn a_container_that_prints_faster_than_its_output_is_written_waits() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    // 100 MB as fast as possible. The capture shares one thread with everything else.
    let script = "yes 0123456789012345678901234567890123456789012345678901234567890123456789 | head -n 1400000";
    assert_eq!(agent.run(attempt(1), node.script(script)).await.exit_code, Some(0));
    let output = node.output(attempt(1), "stdout").unwrap();
    assert_eq!(output.len(), 71 * 1_400_000);
    assert!(node.gaps().is_empty(), "{:?}", node.gaps());
}

#[tokio::test]
async fn the_output_of_a_container_removed_while_it_prints_is_kept() {
    if !usable() {
        return;
    }
    let node = TestNode::new();
    let mut agent = node.agent().await;
    agent.start(attempt(1), node.script("while :; do echo here; done"));
    node.until_printed(attempt(1), "stdout", "here").await;
    remove(&engine(), &node.container_name(attempt(1))).await;
    agent.end(attempt(1)).await;
    let text = node.text(attempt(1), "stdout");
    assert!(text.lines().all(|line| "here".starts_with(line)), "something that was not printed");
}
