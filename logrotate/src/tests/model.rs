//! Random histories compared with a plain vector of bytes: every byte comes back at its offset.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::failpoint::CrashPoint;

#[derive(Debug, Clone)]
enum Op {
    Write(u64),
    Gap,
    Compress,
    Restart,
    /// Crashes at this step, after passing it that many times, in any later operation.
    Crash(CrashPoint, u32),
    DiskFull(CrashPoint),
    RotateDated {
        compress: bool,
    },
    RotateNumbered {
        compress: bool,
    },
    CopyTruncate,
    Truncate(f64),
    Cursor,
    Read(f64, usize),
    Tail(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let crash = prop_oneof![
        Just(CrashPoint::Shifting),
        Just(CrashPoint::LiveMoved),
        Just(CrashPoint::LiveCreated),
        Just(CrashPoint::ReplaceTmpWritten),
        Just(CrashPoint::Removing),
        Just(CrashPoint::GzBegun),
        Just(CrashPoint::GzWritten),
        Just(CrashPoint::GzNamed),
        Just(CrashPoint::Cutting),
    ];
    let full = prop_oneof![
        Just(CrashPoint::ReplaceTmpWritten),
        Just(CrashPoint::GzBegun),
        Just(CrashPoint::LiveMoved)
    ];
    prop_oneof![
        8 => (1u64..150).prop_map(Op::Write),
        2 => (150u64..900).prop_map(Op::Write),
        1 => Just(Op::Gap),
        4 => Just(Op::Compress),
        2 => Just(Op::Restart),
        4 => (crash, 0u32..3).prop_map(|(step, passes)| Op::Crash(step, passes)),
        1 => full.prop_map(Op::DiskFull),
        1 => any::<bool>().prop_map(|compress| Op::RotateDated { compress }),
        1 => any::<bool>().prop_map(|compress| Op::RotateNumbered { compress }),
        1 => Just(Op::CopyTruncate),
        2 => (0.0..1.0).prop_map(Op::Truncate),
        1 => Just(Op::Cursor),
        2 => (0.0..1.2, 1usize..400).prop_map(|(at, len)| Op::Read(at, len)),
        2 => (0u64..12).prop_map(Op::Tail),
    ]
}

fn policy() -> impl Strategy<Value = RotationPolicy> {
    let kept = prop_oneof![
        3 => Just((9999, 1 << 30)),
        1 => (0u32..5, Just(1 << 30)),
        1 => (Just(9999), 100u64..2000),
    ];
    (20u64..300, kept).prop_map(|(file_bytes_max, (files_max, total_bytes_max))| RotationPolicy {
        file_bytes_max,
        files_max,
        total_bytes_max,
        age_max: Duration::from_secs(3600),
    })
}

struct World<'a> {
    dir: &'a Path,
    policy: RotationPolicy,
    keeps_all: bool,
    writer: Option<LogWriter>,
    /// Every byte of the stream from the first one, including those that are no longer kept.
    written: Vec<u8>,
    reader: LogReader,
    outsiders: u32,
    cursor: Option<u64>,
}

impl World<'_> {
    fn writer(&mut self) -> &mut LogWriter {
        self.writer.as_mut().unwrap()
    }

    fn append(&mut self, bytes: &[u8]) {
        let taken = match self.writer().append(bytes) {
            Ok(()) => bytes.len(),
            Err(error) => error.taken,
        };
        self.written.extend_from_slice(&bytes[..taken]);
    }

    fn apply(&mut self, op: &Op) {
        let len = self.written.len() as u64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a fraction of a small number"
        )]
        let share = |of: f64| (of * len as f64) as u64;
        match *op {
            Op::Write(n) => self.append(&bytes(len, n)),
            Op::Gap => {
                let fresh = self.written.last().is_none_or(|byte| *byte == b'\n');
                let line: &[u8] = b"\n[podmesh: 7 bytes lost]\n";
                let before = self.writer().offset();
                match self.writer().gap("7 bytes\nlost") {
                    Ok(()) => {
                        // At the beginning of a file the writer may not know whether a line begins,
                        // and then adds a line break.
                        let added = usize::try_from(self.writer().offset() - before).unwrap();
                        assert!(added == line.len() || (fresh && added == line.len() - 1));
                        self.written.extend_from_slice(&line[line.len() - added..]);
                    }
                    // Which of the two lines it was does not matter here: check what was taken.
                    Err(error) => {
                        let kept = read_pieces(self.dir).pop().unwrap_or_default().1;
                        self.written.extend_from_slice(&kept[kept.len() - error.taken..]);
                    }
                }
            }
            Op::Compress => {
                if self.dir.exists() {
                    let _ = compress_one(self.dir);
                }
            }
            Op::Restart => {
                self.writer = None;
                self.writer = Some(open(self.dir, &self.policy));
            }
            Op::Crash(step, passes) => failpoint::arm(step, passes),
            Op::DiskFull(step) => {
                failpoint::disk_full_at(Some(step));
                self.append(&bytes(len, 200));
                let _ = self.dir.exists() && compress_one(self.dir).is_ok();
                failpoint::disk_full_at(None);
            }
            Op::RotateDated { compress } => {
                self.outsiders += 1;
                let to = self.dir.join(format!("stdout.log-20260101-{:09}", self.outsiders));
                self.rename_live(&to, compress);
            }
            Op::RotateNumbered { compress } => {
                // As logrotate does: the others move up first.
                let all = names(self.dir).list_numbered().unwrap();
                for file in all.iter().rev() {
                    let Kind::Numbered { number, gz } = file.kind else { continue };
                    fs::rename(&file.path, names(self.dir).numbered(number + 1, gz)).unwrap();
                }
                self.rename_live(&names(self.dir).numbered(1, false), compress);
            }
            Op::CopyTruncate => {
                // A writer that dies before it notices loses the count, as documented.
                failpoint::restart();
                let live = names(self.dir).live;
                if live.exists() && self.written.len() as u64 == self.writer().offset() {
                    self.outsiders += 1;
                    // The bytes in the copy can no longer be found by offset.
                    self.keeps_all = false;
                    let to = self.dir.join(format!("stdout.log-20260101-{:09}", self.outsiders));
                    fs::copy(&live, to).unwrap();
                    fs::File::options().write(true).open(&live).unwrap().set_len(0).unwrap();
                    self.writer().look_at_next_write();
                    self.append(&bytes(len, 10));
                }
            }
            Op::Truncate(at) => {
                let at = share(at);
                match self.writer().truncate_to(at) {
                    Ok(()) => self.written.truncate(usize::try_from(at).unwrap()),
                    Err(crate::Error::TruncateCompressed { .. }) => {
                        assert_eq!(self.writer().offset(), len);
                    }
                    Err(_) => {
                        let end = usize::try_from(self.writer().offset()).unwrap();
                        assert!(end as u64 >= at);
                        self.written.truncate(end);
                    }
                }
            }
            Op::Cursor => {
                let data = len.to_le_bytes();
                if self.writer().save_cursor(&data).is_ok() && len > 0 {
                    self.cursor = Some(len);
                }
                if let Some(at) = self.cursor {
                    let cursor = self.writer().load_cursor().unwrap().unwrap();
                    assert_eq!(
                        (cursor.offset, cursor.data.as_slice()),
                        (at, at.to_le_bytes().as_slice())
                    );
                }
            }
            Op::Read(at, max) => {
                let at = share(at);
                let chunk = self.reader.read_at(at, max).unwrap();
                assert!(chunk.offset >= at && chunk.bytes.len() <= max);
                assert!(!chunk.bytes.is_empty() || chunk.offset >= len);
                self.check(&chunk);
            }
            Op::Tail(lines) => {
                // With gaps between files, the line counts differ.
                let pieces = read_pieces(self.dir);
                let end = |(start, kept): &(u64, Vec<u8>)| start + kept.len() as u64;
                if pieces.len() > 1 || pieces.last().is_some_and(|piece| end(piece) < len) {
                    return;
                }
                let start = usize::try_from(self.reader.start_offset().unwrap()).unwrap();
                let kept = &self.written[start.min(self.written.len())..];
                let breaks = kept.iter().take(kept.len().saturating_sub(1)).enumerate();
                let begins: Vec<_> =
                    breaks.filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1).collect();
                let expected = match usize::try_from(lines).unwrap() {
                    0 => kept.len(),
                    n if n > begins.len() => 0,
                    n => begins[begins.len() - n],
                };
                assert_eq!(self.reader.tail_offset(lines).unwrap(), (start + expected) as u64);
            }
        }
    }

    /// Does what the system's logrotate does, and finishes before the writer's next write, which
    /// checks.
    fn rename_live(&mut self, to: &Path, compress: bool) {
        let live = names(self.dir).live;
        if !live.exists() || failpoint::crashed() {
            return;
        }
        let rotates = !numbered(self.dir).is_empty();
        fs::rename(&live, to).unwrap();
        // The writer still has the file open, so it must not be compressed yet, whatever its name.
        // A stream that never rotated is never passed to the compressor.
        let _ = rotates && compress_one(self.dir).is_ok();
        if failpoint::crashed() {
            return;
        }
        // Written before the writer checks: goes to the renamed file.
        let len = self.written.len() as u64;
        self.append(&bytes(len, 7));
        self.writer().look_at_next_write();
        let len = self.written.len() as u64;
        self.append(&bytes(len, 5));
        if compress && to.exists() && !failpoint::crashed() {
            assert!(Command::new("gzip").arg(to).status().unwrap().success());
        }
    }

    fn check(&self, chunk: &crate::Chunk) {
        let at = usize::try_from(chunk.offset).unwrap();
        if !chunk.bytes.is_empty() {
            assert_eq!(chunk.bytes, self.written[at..at + chunk.bytes.len()]);
        }
    }

    /// Checks the invariants that hold after every step and after every crash.
    fn check_all(&mut self, bounded: bool) {
        let end = self.written.len() as u64;
        assert_eq!(self.writer().offset(), end);
        let pieces = read_pieces(self.dir);
        for (start, kept) in &pieces {
            let at = usize::try_from(*start).unwrap();
            let same = self.written.get(at..at + kept.len()) == Some(kept.as_slice());
            assert!(same, "at {start}: {:?}", layout::scan(&names(self.dir)));
        }
        if self.keeps_all {
            let read: u64 = pieces.iter().map(|(_, kept)| kept.len() as u64).sum();
            assert_eq!(read, end, "{:?}", layout::scan(&names(self.dir)));
        }
        let numbered = numbered(self.dir);
        if bounded {
            assert!(numbered.len() <= self.policy.files_max as usize, "{numbered:?}");
            let live = fs::metadata(names(self.dir).live).map_or(0, |meta| meta.len());
            let total = live + numbered.iter().map(|(_, len)| len).sum::<u64>();
            assert!(total <= self.policy.total_bytes_max, "{total}: {numbered:?}");
            assert!(live <= self.policy.file_bytes_max);
        }
    }
}

fn run(policy: RotationPolicy, ops: &[Op]) {
    compress_manually();
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("1/2/3");
    let mut world = World {
        dir: &dir,
        keeps_all: policy.files_max == 9999 && policy.total_bytes_max == 1 << 30,
        writer: Some(open(&dir, &policy)),
        policy,
        written: Vec::new(),
        reader: LogReader::open(&dir, "stdout").unwrap(),
        outsiders: 0,
        cursor: None,
    };
    for op in ops {
        world.apply(op);
        if failpoint::crashed() {
            world.writer = None;
            failpoint::restart();
            world.writer = Some(open(&dir, &world.policy.clone()));
        }
        // A rotation by another program adds one file, which our next rotation removes.
        let settled = matches!(op, Op::Restart) && world.outsiders == 0;
        world.check_all(settled);
    }
    // At the end everything can be compressed, and no half-written file remains.
    failpoint::restart();
    world.append(b"end\n");
    while dir.exists() && compress_one(&dir).unwrap() {}
    world.writer = None;
    world.writer = Some(open(&dir, &world.policy.clone()));
    world.check_all(world.outsiders == 0);
    assert!(names(&dir).list().unwrap().iter().all(|file| file.kind != Kind::Temporary));
    assert!(numbered(&dir).iter().all(|(name, _)| {
        let is_plain = !name.ends_with(".gz");
        !is_plain
    }));
}

/// The live file was truncated by another program and then renamed: a reader that already had it
/// open does not know where it begins.
#[test]
fn a_truncated_and_renamed_file_is_located_again() {
    let policy = RotationPolicy {
        file_bytes_max: 73,
        files_max: 9999,
        total_bytes_max: 1 << 30,
        age_max: Duration::from_secs(3600),
    };
    let ops = [
        Op::Write(1),
        Op::Read(0.0, 1),
        Op::CopyTruncate,
        Op::Write(64),
        Op::RotateDated { compress: false },
        Op::Read(0.0, 1),
    ];
    run(policy, &ops);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 80,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn bytes_in_are_bytes_out(policy in policy(), ops in prop::collection::vec(op(), 1..40)) {
        run(policy, &ops);
    }
}
