//! Tests that need the crate's internals: crashes at chosen points, compression on demand.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod cases;
mod model;

use std::fs;
use std::path::Path;

use crate::failpoint;
use crate::layout;
use crate::names::{Kind, Names};
use crate::stream::Stream;
use crate::{LogReader, LogWriter, RotationPolicy};

/// Keeps everything, in small files.
fn keep_all(file_bytes_max: u64) -> RotationPolicy {
    RotationPolicy {
        file_bytes_max,
        files_max: 9999,
        total_bytes_max: 1 << 30,
        ..RotationPolicy::default()
    }
}

fn names(dir: &Path) -> Names {
    Names::new(dir.to_owned(), "stdout").unwrap()
}

fn open(dir: &Path, policy: &RotationPolicy) -> LogWriter {
    LogWriter::open(dir, "stdout", policy.clone()).unwrap()
}

/// Compresses one file on this thread.
fn compress_one(dir: &Path) -> Result<bool, crate::Error> {
    Stream::attach(&names(dir)).unwrap().compress_one()
}

/// Returns all that can be read, as pieces without gaps, with their offsets.
fn read_pieces(dir: &Path) -> Vec<(u64, Vec<u8>)> {
    let mut reader = LogReader::open(dir, "stdout").unwrap();
    let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut at = 0;
    loop {
        let chunk = reader.read_at(at, 1000).unwrap();
        assert!(chunk.offset >= at);
        at = chunk.end();
        match pieces.last_mut() {
            _ if chunk.bytes.is_empty() => return pieces,
            Some((start, bytes)) if *start + bytes.len() as u64 == chunk.offset => {
                bytes.extend(chunk.bytes)
            }
            _ => pieces.push((chunk.offset, chunk.bytes)),
        }
    }
}

/// Returns all that can be read of a stream without a gap: its first offset, and the bytes.
fn read_all(dir: &Path) -> (u64, Vec<u8>) {
    let mut pieces = read_pieces(dir);
    let end = LogReader::open(dir, "stdout").unwrap().end_offset().unwrap();
    assert!(pieces.len() < 2, "a gap in {:?}", layout::scan(&names(dir)));
    pieces.pop().unwrap_or((end, Vec::new()))
}

/// Returns names and sizes of the numbered files, newest first.
fn numbered(dir: &Path) -> Vec<(String, u64)> {
    let found = names(dir).list_numbered().unwrap();
    let of = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    found.iter().map(|file| (of(&file.path), fs::metadata(&file.path).unwrap().len())).collect()
}

/// Returns the `n`th byte of a stream: all values occur, with line breaks here and there.
fn byte(n: u64) -> u8 {
    let mixed = (n ^ (n >> 7)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    if mixed.is_multiple_of(13) { b'\n' } else { u8::try_from(mixed & 0xff).unwrap() }
}

fn bytes(from: u64, len: u64) -> Vec<u8> {
    (from..from + len).map(byte).collect()
}

/// Turns the background thread off for this test's streams: the test compresses them itself.
fn compress_manually() {
    failpoint::set_background(false);
    failpoint::restart();
}
