//! Opening: finds where the stream ends, and repairs what a crash left.

use std::fs;

use super::LogWriter;
use crate::cursor;
use crate::error::Error;
use crate::index::Index;
use crate::layout::{self, Segment};
use crate::names::{self, Kind};
use crate::rotate;
use crate::stream::Stream;

impl LogWriter {
    /// Finds where the stream ends, and repairs it.
    pub(super) fn load(&mut self) -> Result<(), Error> {
        (self.file, self.start, self.size) = (None, 0, 0);
        (self.index, self.recorded, self.at_line_start) = (Index::default(), true, Some(true));
        self.unsure = true;
        self.find_end()?;
        self.unsure = false;
        Ok(())
    }

    fn find_end(&mut self) -> Result<(), Error> {
        let found = self.names.list()?;
        if found.is_empty() {
            return Ok(());
        }
        self.at_line_start = None;
        if let [only] = found.as_slice()
            && only.kind == Kind::Live
        {
            let meta = fs::metadata(&only.path).map_err(Error::io("look at", &only.path))?;
            self.size = meta.len();
            return Ok(());
        }
        let stream = Stream::attach(&self.names)?;
        let mut held = stream.exclusive();
        held.state.policy = None;
        stream.remove_leftovers(&held)?;
        let layout = layout::scan(&self.names)?;
        for duplicate in &layout.duplicates {
            let whole =
                |gz: &&Segment| gz.gz && gz.start == duplicate.start && gz.len >= duplicate.len;
            let is_plain = matches!(duplicate.kind, Kind::Numbered { gz: false, .. });
            if is_plain && (duplicate.len == 0 || layout.segments.iter().any(|gz| whole(&gz))) {
                names::remove(&duplicate.path)?;
            }
        }
        self.index = layout.index.clone().unwrap_or_default();
        let mut news = false;
        for segment in layout.segments.iter().filter(|segment| segment.kind != Kind::Live) {
            // Renamed after the index was written, or never in the index.
            let guessed = layout.guessed.iter().any(|guessed| guessed.id == segment.id);
            if guessed || self.index.is_live(segment.id) {
                self.index.close(segment.id, segment.start, segment.len, segment.mtime_ns, false);
                news = true;
            }
        }
        if let Some(live) = layout.live() {
            self.start = live.start;
            self.size = live.len;
            self.recorded =
                self.index.is_live(live.id) || (self.start == 0 && layout.index.is_none());
        } else {
            self.start = layout.end;
            if layout.segments.is_empty() && layout.index.is_none() {
                // All files are gone, but the cursor still tells how far the stream went.
                let cursor = cursor::load(&self.names).ok().flatten();
                self.start = cursor.map_or(0, |cursor| cursor.offset);
            }
            self.recorded = self.start == 0 && layout.index.is_none();
        }
        news |= self.index.end_cut(self.offset());
        let mut end_is_known = self.recorded;
        if news || !self.recorded {
            // Recorded at once, before anything else changes. If it fails, the next write retries
            // it.
            match layout.segments.last() {
                Some(live) if live.kind == Kind::Live => self.index.set_live(live.id, live.start),
                Some(last) => self.index.close(last.id, last.start, last.len, last.mtime_ns, false),
                None => {}
            }
            end_is_known = self.index.save(&self.names).is_ok();
            self.recorded = end_is_known && layout.live().is_some();
        }
        if end_is_known {
            held.state.policy = Some(self.policy.clone());
            rotate::remove_excess(&self.names, &self.policy, None)?;
        }
        drop(held);
        self.stream = Some(stream);
        Ok(())
    }
}
