//! A writer killed at any moment: every confirmed byte is there, exactly once.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::env;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use podmesh_logrotate::{LogReader, LogWriter, RotationPolicy};

const DIR: &str = "PODMESH_TEST_WRITE_TO";
const KILLS: u32 = 14;

fn policy() -> RotationPolicy {
    RotationPolicy {
        file_bytes_max: 300,
        files_max: 9999,
        total_bytes_max: 1 << 30,
        ..RotationPolicy::default()
    }
}

/// The stream is the numbers from 0 on, eight bytes each; this returns the bytes from `from` to
/// `to`.
fn content(from: u64, to: u64) -> Vec<u8> {
    let all = from / 8..to.div_ceil(8);
    let bytes: Vec<u8> = all.flat_map(u64::to_le_bytes).collect();
    let skip = usize::try_from(from % 8).unwrap();
    bytes[skip..skip + usize::try_from(to - from).unwrap()].to_vec()
}

/// Not a test by itself: the process that gets killed. After each write it prints its offset to
/// stdout.
#[test]
fn child() {
    let Some(dir) = env::var_os(DIR) else { return };
    let mut writer = LogWriter::open(Path::new(&dir), "stdout", policy()).unwrap();
    let mut out = std::io::stdout();
    for n in 0u64.. {
        let at = writer.offset();
        writer.append(&content(at, at + 1 + n * 7 % 90)).unwrap();
        out.write_all(b"#").unwrap();
        out.write_all(&writer.offset().to_le_bytes()).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn a_killed_writer_neither_loses_nor_duplicates_bytes() {
    let temp = tempfile::tempdir().unwrap();
    let mut told = 0;
    for kill in 1..=KILLS {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--quiet"])
            .env(DIR, temp.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        // Killed after some of its reports, during its next steps.
        let mut said = Vec::new();
        let mut buf = [0; 4096];
        while said.len() < usize::try_from(kill * 97).unwrap() {
            let n = out.read(&mut buf).unwrap();
            assert!(n > 0, "the writer ended by itself");
            said.extend_from_slice(&buf[..n]);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        out.read_to_end(&mut said).unwrap();
        // The harness prints its own text first; a report is '#' and eight bytes, back to back.
        let begin = said.iter().position(|byte| *byte == b'#').unwrap();
        for report in said[begin..].chunks_exact(9) {
            assert_eq!(report[0], b'#');
            told = u64::from_le_bytes(report[1..].try_into().unwrap());
        }
        // Dropped at the end of the round: this process then compresses while the next child
        // writes.
        let writer = LogWriter::open(temp.path(), "stdout", policy()).unwrap();
        let end = writer.offset();
        assert!(end >= told && end <= told + 91, "kill {kill}: it said {told}, there are {end}");
        let mut reader = LogReader::open(temp.path(), "stdout").unwrap();
        let mut at = 0;
        while at < end {
            let chunk = reader.read_at(at, 1 << 16).unwrap();
            assert_eq!(chunk.offset, at, "kill {kill}: a gap");
            assert_eq!(chunk.bytes, content(at, chunk.end()), "kill {kill}");
            at = chunk.end();
        }
    }
}
