//! Searches output for a text.

use memchr::memmem::Finder;
use memchr::{memchr, memrchr};
use podmesh_logrotate::{CHUNK_BYTES_MAX, Chunk, Error, LogReader};

/// How far before the text a line may begin. A search resumes at most this far before the end of
/// what it has looked through.
const LINE_BYTES_MAX: usize = 4096;

/// What a search has come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Output that begins with a line with the text.
    Line(Chunk),
    /// The search has read as much as it may, and resumes at this offset.
    Paused(u64),
    /// The text is not in the output. A search for it in what is printed later begins here.
    End(u64),
}

/// Reads at an offset. Skips damaged parts, like removed ones.
///
/// # Errors
/// If the files cannot be read.
pub(crate) fn read_kept(
    reader: &mut LogReader,
    mut offset: u64,
    bytes_max: usize,
) -> Result<Chunk, Error> {
    loop {
        match reader.read_at(offset, bytes_max) {
            Err(Error::Damaged { resume_at, why, path }) if resume_at > offset => {
                tracing::warn!("{} is damaged: {why}", path.display());
                offset = resume_at;
            }
            result => return result,
        }
    }
}

/// Finds the first line with `text` from `offset` on. Looks through about `bytes_max`.
///
/// # Errors
/// If the files cannot be read.
pub(crate) fn find(
    reader: &mut LogReader,
    offset: u64,
    text: &[u8],
    bytes_max: u64,
) -> Result<Found, Error> {
    let finder = Finder::new(text);
    let mut block = Chunk { offset, bytes: Vec::new() };
    let mut looked = 0;
    loop {
        let more = extend(reader, &mut block)?;
        if let Some(at) = finder.find(&block.bytes) {
            if memchr(b'\n', &block.bytes[at..]).is_none() {
                // The rest of the line. What was removed meanwhile is not part of it.
                let mut longer = block.clone();
                extend(reader, &mut longer)?;
                if longer.offset == block.offset {
                    block = longer;
                }
            }
            let line = last_line(&block.bytes[..at]);
            skip(&mut block, line);
            return Ok(Found::Line(block));
        }
        let line = last_line(&block.bytes);
        skip(&mut block, line);
        looked += more;
        if more == 0 {
            return Ok(Found::End(block.offset));
        }
        if looked >= bytes_max {
            return Ok(Found::Paused(block.offset));
        }
    }
}

/// Adds what follows a chunk, and returns how much that is. If something in between is no longer
/// kept, the chunk begins after it.
fn extend(reader: &mut LogReader, block: &mut Chunk) -> Result<u64, Error> {
    let next = read_kept(reader, block.end(), CHUNK_BYTES_MAX)?;
    if next.offset > block.end() {
        *block = Chunk { offset: next.offset, bytes: Vec::new() };
    }
    block.bytes.extend_from_slice(&next.bytes);
    Ok(next.bytes.len() as u64)
}

fn skip(block: &mut Chunk, bytes: usize) {
    block.bytes.drain(..bytes);
    block.offset += bytes as u64;
}

/// Returns where the last line begins: at most [`LINE_BYTES_MAX`] before the end.
fn last_line(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(LINE_BYTES_MAX);
    memrchr(b'\n', &bytes[from..]).map_or(from, |at| from + at + 1)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use podmesh_logrotate::{LogWriter, RotationPolicy};
    use tempfile::TempDir;

    use super::*;

    fn log(parts: &[&[u8]]) -> (TempDir, LogReader) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::open(dir.path(), "stdout", RotationPolicy::default()).unwrap();
        parts.iter().for_each(|part| writer.append(part).unwrap());
        let reader = LogReader::open(dir.path(), "stdout").unwrap();
        (dir, reader)
    }

    fn line(found: Found) -> (u64, String) {
        let Found::Line(chunk) = found else { panic!("{found:?}") };
        let line = chunk.bytes.split(|byte| *byte == b'\n').next().unwrap();
        (chunk.offset, String::from_utf8_lossy(line).into_owned())
    }

    #[test]
    fn lines_are_found_one_after_the_other() {
        let (_dir, mut reader) =
            log(&[b"one\ntwo here\nthree\nand here, twice: here\nno end here"]);
        let mut next = |from| line(find(&mut reader, from, b"here", u64::MAX).unwrap());
        assert_eq!(next(0), (4, "two here".into()));
        assert_eq!(next(13), (19, "and here, twice: here".into()));
        assert_eq!(next(41), (41, "no end here".into()));
        assert_eq!(find(&mut reader, 41, b"gone", u64::MAX).unwrap(), Found::End(41));
        assert_eq!(find(&mut reader, 0, b"Here", u64::MAX).unwrap(), Found::End(41));
    }

    #[test]
    fn a_search_pauses_and_resumes_without_missing_a_line() {
        let filler = b"0123456789abcdef0123456789abcde\n".repeat(40_000);
        let (_dir, mut reader) = log(&[&filler, &filler, b"x needle y\n", &filler]);
        let (mut from, mut pauses) = (0, 0);
        let found = loop {
            match find(&mut reader, from, b"needle", 100_000).unwrap() {
                Found::Paused(next) => {
                    assert!(next > from);
                    (from, pauses) = (next, pauses + 1);
                }
                found => break line(found),
            }
        };
        assert_eq!(found, (2 * filler.len() as u64, "x needle y".into()));
        assert!(pauses >= 2);
    }

    #[test]
    fn a_text_in_a_long_line_is_found_across_reads() {
        // Within the second read, and across the first two.
        for at in [CHUNK_BYTES_MAX + 5, CHUNK_BYTES_MAX - 3] {
            let mut long = vec![b'x'; 2 * CHUNK_BYTES_MAX];
            long[at..at + 6].copy_from_slice(b"needle");
            let (_dir, mut reader) = log(&[&long]);
            let (offset, line) = line(find(&mut reader, 0, b"needle", u64::MAX).unwrap());
            let before = at - usize::try_from(offset).unwrap();
            assert!(before <= LINE_BYTES_MAX, "{before}");
            assert_eq!(&line[before..before + 6], "needle");
        }
    }

    #[test]
    fn a_text_is_found_where_a_search_pauses() {
        let at = CHUNK_BYTES_MAX - 3;
        let mut long = vec![b'x'; 2 * CHUNK_BYTES_MAX];
        long[at..at + 6].copy_from_slice(b"needle");
        let (_dir, mut reader) = log(&[&long]);
        let Found::Paused(next) = find(&mut reader, 0, b"needle", 100_000).unwrap() else {
            panic!("the first read does not have all of it");
        };
        let (offset, line) = line(find(&mut reader, next, b"needle", u64::MAX).unwrap());
        let before = at - usize::try_from(offset).unwrap();
        assert_eq!(&line[before..before + 6], "needle");
    }

    #[test]
    fn a_line_is_whole_although_a_read_ends_in_it() {
        let mut all = vec![b'\n'; CHUNK_BYTES_MAX - 8];
        all.extend_from_slice(b"the needle, and what follows\nmore\n");
        let (_dir, mut reader) = log(&[&all]);
        let found = line(find(&mut reader, 0, b"needle", u64::MAX).unwrap());
        assert_eq!(found, (CHUNK_BYTES_MAX as u64 - 8, "the needle, and what follows".into()));
        let found = line(find(&mut reader, 0, b"the", u64::MAX).unwrap());
        assert_eq!(found, (CHUNK_BYTES_MAX as u64 - 8, "the needle, and what follows".into()));
    }

    #[test]
    fn what_was_removed_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let policy =
            RotationPolicy { file_bytes_max: 100, files_max: 1, ..RotationPolicy::default() };
        let mut writer = LogWriter::open(dir.path(), "stdout", policy).unwrap();
        (0..100)
            .for_each(|number| writer.append(format!("line {number:04}\n").as_bytes()).unwrap());
        let mut reader = LogReader::open(dir.path(), "stdout").unwrap();
        let (offset, line) = line(find(&mut reader, 0, b"line", u64::MAX).unwrap());
        assert!(offset > 0, "the first lines were removed");
        assert_eq!(line, format!("line {:04}", offset / 10));
    }
}
