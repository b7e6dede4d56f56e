//! A reader while a writer rotates as fast as it can.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use podmesh_logrotate::{LogReader, LogWriter, RotationPolicy};

const BYTES: u64 = 300_000;

fn byte(n: u64) -> u8 {
    u8::try_from((n ^ (n >> 8)).wrapping_mul(31) & 0xff).unwrap()
}

fn write(dir: &Path, policy: RotationPolicy) {
    let mut writer = LogWriter::open(dir, "stdout", policy).unwrap();
    while writer.offset() < BYTES {
        let at = writer.offset();
        let line: Vec<u8> = (at..(at + 1 + at % 200).min(BYTES)).map(byte).collect();
        writer.append(&line).unwrap();
    }
}

fn check(offset: u64, bytes: &[u8]) {
    let expected: Vec<u8> = (offset..offset + bytes.len() as u64).map(byte).collect();
    assert!(bytes == expected, "wrong bytes at {offset}");
}

#[test]
fn a_follower_gets_every_byte_once() {
    let temp = tempfile::tempdir().unwrap();
    let policy = RotationPolicy {
        file_bytes_max: 2000,
        files_max: 9999,
        total_bytes_max: 1 << 30,
        ..RotationPolicy::default()
    };
    thread::scope(|scope| {
        scope.spawn(|| write(temp.path(), policy));
        let mut reader = LogReader::open(temp.path(), "stdout").unwrap();
        let mut at = 0;
        while at < BYTES {
            let chunk = reader.read_at(at, 1500).unwrap();
            assert_eq!(chunk.offset, at, "skipped bytes that are kept");
            check(at, &chunk.bytes);
            at = chunk.end();
        }
    });
}

#[test]
fn a_reader_skips_removed_files_without_errors() {
    let temp = tempfile::tempdir().unwrap();
    let policy = RotationPolicy { file_bytes_max: 500, files_max: 3, ..RotationPolicy::default() };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            write(temp.path(), policy);
            done.store(true, Ordering::Relaxed);
        });
        let mut reader = LogReader::open(temp.path(), "stdout").unwrap();
        let mut last_start = 0;
        while !done.load(Ordering::Relaxed) {
            let start = reader.start_offset().unwrap();
            assert!(start >= last_start, "the start went back");
            last_start = start;
            for at in [0, start, start + 700] {
                let chunk = reader.read_at(at, 400).unwrap();
                assert!(chunk.offset >= at);
                check(chunk.offset, &chunk.bytes);
            }
            reader.tail_offset(3).unwrap();
        }
        let end = reader.end_offset().unwrap();
        assert_eq!(end, BYTES);
    });
}
