//! Where a capture stands in a container's log, and how it finds that place again.
//!
//! The engine gives entries, each of one stream with a time stamp, always in the same order. A
//! stamp may stand on several entries (the pieces of a long line share one), and the clock that
//! makes them may jump. So a place is: the last entry taken, as "the n-th of its stream with this
//! stamp". Everything behind it in the engine's order is new, whatever its stamp.

use bollard::container::LogOutput;
use bytes::Bytes;
use podmesh_protocol::client::LogStream;
use serde::{Deserialize, Serialize};

use super::line_end::EntryEnd;

/// The two streams, in the order of the arrays here.
pub(super) const STREAMS: [LogStream; 2] = [LogStream::Stdout, LogStream::Stderr];

/// Bytes that the engine adds to an entry in its log, at the most.
const ENTRY_BYTES: u64 = 128;

/// One entry of the engine's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Index into [`STREAMS`].
    pub(super) stream: usize,
    /// Nanoseconds since 1970.
    pub(super) nanos: i64,
    /// What the program printed.
    pub(super) bytes: Bytes,
}

impl Entry {
    /// Takes the time stamp off.
    ///
    /// # Errors
    /// What the engine says instead of an entry.
    pub(super) fn read(output: LogOutput) -> Result<Self, String> {
        let (stream, mut message) = match output {
            LogOutput::StdOut { message } => (0, message),
            LogOutput::StdErr { message } => (1, message),
            // What is not framed as output: the engine's own word that it cannot go on, or a
            // frame that was cut off.
            LogOutput::Console { message } | LogOutput::StdIn { message } => {
                let text = String::from_utf8_lossy(&message);
                return Err(text
                    .trim_matches(|c: char| c.is_control() || c.is_whitespace())
                    .into());
            }
        };
        let stamp = message.iter().position(|byte| *byte == b' ').and_then(|end| {
            let text = std::str::from_utf8(&message[..end]).ok()?;
            let time: jiff::Timestamp = text.parse().ok()?;
            Some((end, i64::try_from(time.as_nanosecond()).ok()?))
        });
        let Some((end, nanos)) = stamp else {
            return Err("an entry has no time stamp".into());
        };
        Ok(Self { stream, nanos, bytes: message.split_off(end + 1) })
    }
}

/// The last stamp taken of a stream, and how many entries with it in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    nanos: i64,
    entries: u64,
}

/// The last entry taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Its stream.
    last: usize,
    runs: [Option<Run>; 2],
    /// How the last entry of each stream ended.
    pub(super) ends: [EntryEnd; 2],
    /// Bytes that what was taken has in the engine's log, at the most.
    pub(super) engine_bytes: u64,
    /// Entries taken in all, since the log's beginning or the last gap.
    pub(super) taken: u64,
}

impl Position {
    /// The stamp of the last entry taken.
    pub(super) fn nanos(&self) -> i64 {
        self.runs[self.last].map_or(0, |run| run.nanos)
    }

    /// The position after `entry`.
    pub(super) fn after(before: Option<Self>, entry: &Entry) -> Self {
        let mut position = before.unwrap_or(Self {
            last: entry.stream,
            runs: [None; 2],
            ends: [EntryEnd::Line; 2],
            engine_bytes: 0,
            taken: 0,
        });
        let run = &mut position.runs[entry.stream];
        *run = Some(match *run {
            Some(run) if run.nanos == entry.nanos => Run { entries: run.entries + 1, ..run },
            _ => Run { nanos: entry.nanos, entries: 1 },
        });
        let end = &mut position.ends[entry.stream];
        *end = EntryEnd::of(&entry.bytes, *end);
        position.last = entry.stream;
        position.engine_bytes += entry.bytes.len() as u64 + ENTRY_BYTES;
        position.taken += 1;
        position
    }
}

/// What to do with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was taken before.
    Old,
    /// It is new.
    New,
    /// The place cannot be found in this reading: it is gone, or lies before what was asked for.
    Lost,
}

/// Looks for a position in a reading of the log.
#[derive(Debug)]
pub(super) struct Seek {
    /// What is looked for; none once it is behind.
    target: Option<Position>,
    /// Entries seen of the target's run.
    seen: u64,
    /// Whether an entry of the target's stream has been seen.
    stream_seen: bool,
    /// Whether the reading begins somewhere inside the log.
    partial: bool,
    /// Whether to give up at the first entry that looks newer. Without, the reading must end by
    /// itself, and [`found`](Self::found) then says whether the place was there.
    hasty: bool,
}

impl Seek {
    pub(super) fn new(target: Option<Position>, partial: bool, hasty: bool) -> Self {
        Self { target, seen: 0, stream_seen: false, partial, hasty }
    }

    pub(super) fn found(&self) -> bool {
        self.target.is_none()
    }

    pub(super) fn look(&mut self, entry: &Entry) -> Verdict {
        let Some(target) = self.target else { return Verdict::New };
        let run = target.runs[entry.stream];
        if self.hasty && run.is_none_or(|run| entry.nanos > run.nanos) {
            return Verdict::Lost;
        }
        if entry.stream != target.last {
            return Verdict::Old;
        }
        let first = !std::mem::replace(&mut self.stream_seen, true);
        if run.is_none_or(|run| entry.nanos != run.nanos) {
            self.seen = 0;
            return Verdict::Old;
        }
        if first && self.partial {
            // Others of its run may lie before the part that is read.
            return Verdict::Lost;
        }
        self.seen += 1;
        if run.is_some_and(|run| self.seen == run.entries) {
            self.target = None;
        }
        Verdict::Old
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn entry(stream: usize, nanos: i64) -> Entry {
        Entry { stream, nanos, bytes: Bytes::from_static(b"x") }
    }

    /// Pieces that share stamps, streams that alternate, a clock that jumps back.
    fn log() -> Vec<Entry> {
        [
            (0, 10),
            (0, 10),
            (1, 9),
            (0, 10),
            (1, 11),
            (1, 11),
            (0, 20),
            (1, 15),
            (0, 3),
            (0, 3),
            (1, 4),
            (0, 30),
        ]
        .map(|(stream, nanos)| entry(stream, nanos))
        .to_vec()
    }

    fn position(log: &[Entry]) -> Option<Position> {
        log.iter().fold(None, |position, entry| Some(Position::after(position, entry)))
    }

    fn read(seek: &mut Seek, log: &[Entry]) -> Result<usize, ()> {
        let mut new = 0;
        for entry in log {
            match seek.look(entry) {
                Verdict::Old => {}
                Verdict::New => new += 1,
                Verdict::Lost => return Err(()),
            }
        }
        Ok(new)
    }

    #[test]
    fn every_place_is_found_again_in_a_whole_reading() {
        let log = log();
        for taken in 0..=log.len() {
            let mut seek = Seek::new(position(&log[..taken]), false, false);
            assert_eq!(read(&mut seek, &log), Ok(log.len() - taken), "after {taken}");
            assert!(seek.found(), "after {taken}");
        }
    }

    #[test]
    fn a_hasty_reading_finds_the_place_or_says_that_it_does_not_know() {
        let log = log();
        for taken in 0..=log.len() {
            for from in 0..log.len() {
                let mut seek = Seek::new(position(&log[..taken]), from > 0, true);
                let new = read(&mut seek, &log[from..]);
                if taken > 0 && seek.found() {
                    assert_eq!(new, Ok(log.len() - taken), "after {taken} from {from}");
                }
            }
        }
        // While the clock does not jump, a reading that holds the place finds it.
        for taken in 1..=6 {
            let mut seek = Seek::new(position(&log[..taken]), false, true);
            assert_eq!(read(&mut seek, &log[..7]), Ok(7 - taken), "after {taken}");
        }
    }

    #[test]
    fn a_place_that_is_gone_is_not_found() {
        let log = log();
        let mut seek = Seek::new(position(&log[..6]), false, false);
        assert_eq!(read(&mut seek, &log[6..]), Ok(0));
        assert!(!seek.found());
        let mut seek = Seek::new(position(&log[..6]), true, true);
        assert_eq!(read(&mut seek, &log[6..]), Err(()));
        // Only the other stream is left: new entries must not pass for old ones.
        let mut seek = Seek::new(position(&log[..2]), true, true);
        assert_eq!(read(&mut seek, &log[2..3]), Err(()));
    }

    #[test]
    fn stamps_come_off_and_bytes_stay() {
        for stamp in ["2026-11-21T01:20:15.704430837Z", "2026-11-21T03:20:15.704430837+02:00"] {
            let message = Bytes::from([stamp.as_bytes(), b" \xff\0 a \n"].concat());
            let read = Entry::read(LogOutput::StdErr { message }).unwrap();
            assert_eq!((read.stream, read.bytes.as_ref()), (1, b"\xff\0 a \n".as_slice()));
            assert_eq!(read.nanos, 1_795_224_015_704_430_837);
        }
        let message = Bytes::from_static(b"\x03\0\0\0\0\0\0\x05Error grabbing logs: x\n");
        let said = Entry::read(LogOutput::Console { message }).unwrap_err();
        assert!(said.ends_with("Error grabbing logs: x"), "{said:?}");
        assert!(
            Entry::read(LogOutput::StdOut { message: Bytes::from_static(b"no stamp") }).is_err()
        );
    }
}
