//! Cutting a stream back to an offset.

use std::fs::OpenOptions;
use std::path::Path;

use super::LogWriter;
use crate::error::Error;
use crate::failpoint::{self, CrashPoint};
use crate::layout::{self, Segment};
use crate::names::{self, Kind};
use crate::stream::Stream;

impl LogWriter {
    /// Removes all bytes at and after `offset`, such as a tail written after the last saved cursor.
    ///
    /// Works for offsets in the live file and in rotated files that are not compressed. For lower
    /// offsets it returns [`Error::TruncateCompressed`] and changes nothing: keep the tail, and
    /// skip the same number of bytes (`offset()` minus the cursor's offset) when the source repeats
    /// them. Call it right after [`open`](Self::open): compression does not begin before the first
    /// write. A crash during the call leaves a shorter tail; call it again.
    ///
    /// # Errors
    /// [`Error::TruncateBeyondEnd`], [`Error::TruncateCompressed`], [`Error::Io`].
    pub fn truncate_to(&mut self, offset: u64) -> Result<(), Error> {
        let end = self.offset();
        if offset == end {
            return Ok(());
        }
        if offset > end {
            return Err(Error::TruncateBeyondEnd { path: self.names.live.clone(), offset, end });
        }
        if offset >= self.start {
            self.ready()?;
        }
        // Checked again, because another program may have moved the live file away.
        if offset < self.start {
            return self.cut_rotated(offset, end);
        }
        let Some(file) = &self.file else { return Ok(()) };
        file.set_len(offset - self.start).map_err(Error::io("cut", &self.names.live))?;
        self.size = offset - self.start;
        self.at_line_start = None;
        Ok(())
    }

    /// Makes the plain rotated file that contains `offset` the live file again, and removes all
    /// newer ones.
    fn cut_rotated(&mut self, offset: u64, end: u64) -> Result<(), Error> {
        let stream = Stream::attach(&self.names)?;
        let exclusive = stream.exclusive();
        let layout = layout::scan(&self.names)?;
        let held = layout
            .segments
            .iter()
            .rposition(|segment| segment.start <= offset && offset <= segment.end());
        let is_plain = |segment: &Segment| {
            matches!(segment.kind, Kind::Numbered { gz: false, .. } | Kind::Live)
        };
        let cut = held.map(|at| layout.segments.split_at(at + 1).1);
        let target = held.map(|at| &layout.segments[at]).filter(|target| is_plain(target));
        let (Some(target), Some(newer)) = (target, cut.filter(|newer| newer.iter().all(is_plain)))
        else {
            return Err(Error::TruncateCompressed { path: self.names.live.clone(), offset, end });
        };
        let cut = self.cut_files(offset, target, newer);
        drop(exclusive);
        self.stream = Some(stream);
        // After a failure the stream may be shorter; only the files tell its length.
        let loaded = self.load();
        cut.and(loaded)
    }

    fn cut_files(&mut self, offset: u64, target: &Segment, newer: &[Segment]) -> Result<(), Error> {
        // The index first; otherwise it would later claim that the stream was longer. Then the
        // newest file first, so that the rest never has a gap.
        self.index.begin_cut(offset);
        self.index.save(&self.names)?;
        for segment in newer.iter().rev() {
            failpoint::hit(CrashPoint::Cutting, &segment.path)?;
            // A reader that has the file open must not return bytes that were cut off.
            set_len(&segment.path, 0)?;
            failpoint::hit(CrashPoint::Cutting, &segment.path)?;
            names::remove(&segment.path)?;
        }
        self.index.set_live(target.id, target.start);
        self.index.save(&self.names)?;
        failpoint::hit(CrashPoint::Cutting, &target.path)?;
        set_len(&target.path, offset - target.start)?;
        failpoint::hit(CrashPoint::Cutting, &target.path)?;
        if target.path == self.names.live {
            return Ok(());
        }
        names::rename_new(&target.path, &self.names.live).map_err(Error::io("rename", &target.path))
    }
}

fn set_len(path: &Path, len: u64) -> Result<(), Error> {
    let file = OpenOptions::new().write(true).open(path);
    file.and_then(|file| file.set_len(len)).map_err(Error::io("cut", path))
}
