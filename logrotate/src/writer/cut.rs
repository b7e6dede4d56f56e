//! Cutting a torn tail off.

use std::fs::OpenOptions;
use std::path::Path;

use super::LogWriter;
use crate::error::Error;
use crate::failpoint::{self, Step};
use crate::layout::{self, Segment};
use crate::names::{self, Kind};
use crate::stream::Stream;

impl LogWriter {
    /// Cuts off all bytes at and behind `offset`, such as a tail that was written after the last
    /// saved cursor.
    ///
    /// Works back to the oldest byte that is in the live file or in a rotated file that is not
    /// compressed. Behind that [`Error::TruncateCompressed`] is returned and nothing is changed:
    /// keep the tail, and skip as many bytes (`offset()` minus the cursor's) of what the source
    /// gives again. Best called right after [`open`](Self::open), which lets the compression wait
    /// for the first write. A crash half-way leaves a shorter tail; call again.
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
        // Looked at again, since somebody else may have moved the live file away.
        if offset < self.start {
            return self.cut_rotated(offset, end);
        }
        let Some(file) = &self.file else { return Ok(()) };
        file.set_len(offset - self.start).map_err(Error::io("cut", &self.names.live))?;
        self.size = offset - self.start;
        self.at_line_start = None;
        Ok(())
    }

    /// Makes the plain rotated file that holds `offset` the live file again, and removes all newer
    /// ones.
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
        // On failure the stream is a shorter one by now; only the files say how long.
        let loaded = self.load();
        cut.and(loaded)
    }

    fn cut_files(&mut self, offset: u64, target: &Segment, newer: &[Segment]) -> Result<(), Error> {
        // The index first, or it would say later that the stream was longer. Then the newest file
        // first, so that at any time what is left has no hole.
        self.index.begin_cut(offset);
        self.index.save(&self.names)?;
        for segment in newer.iter().rev() {
            failpoint::hit(Step::Cutting, &segment.path)?;
            // A reader that has it open must not go on with bytes that never were.
            set_len(&segment.path, 0)?;
            failpoint::hit(Step::Cutting, &segment.path)?;
            names::remove(&segment.path)?;
        }
        self.index.set_live(target.id, target.start);
        self.index.save(&self.names)?;
        failpoint::hit(Step::Cutting, &target.path)?;
        set_len(&target.path, offset - target.start)?;
        failpoint::hit(Step::Cutting, &target.path)?;
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
