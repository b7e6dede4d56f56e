//! Maps offsets of a stream to its files.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::error::Error;
use crate::gzip::{self, Content};
use crate::index::{Edition, Index};
use crate::names::{self, FileId, Kind, Names, StreamFile, mtime_ns};

/// How many times a scan is repeated while the folder changes.
const TRIES: u32 = 50;

/// A file and the offsets that it contains.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
    pub(crate) id: FileId,
    pub(crate) mtime_ns: u64,
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) gz: bool,
}

impl Segment {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// The files of a stream, oldest first, the live one last.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    pub(crate) segments: Vec<Segment>,
    /// Files that add no bytes: empty ones, and plain files whose `.gz` exists too after a crash.
    pub(crate) duplicates: Vec<Segment>,
    /// Segments whose offset was derived from their neighbours, not from a record.
    pub(crate) guessed: Vec<Segment>,
    pub(crate) index: Option<Index>,
    /// The index file that this layout is based on. A later one may give the live file another
    /// start.
    pub(crate) edition: Edition,
    /// The end of the stream, where a new live file begins.
    pub(crate) end: u64,
}

impl Layout {
    /// Returns the first segment with a byte at or after `offset`.
    pub(crate) fn at(&self, offset: u64) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.end() > offset)
    }

    pub(crate) fn start(&self) -> u64 {
        self.segments.first().map_or(self.end, |segment| segment.start)
    }

    pub(crate) fn live(&self) -> Option<&Segment> {
        self.segments.last().filter(|segment| segment.kind == Kind::Live)
    }
}

struct Probe {
    kind: Kind,
    path: PathBuf,
    id: FileId,
    mtime_ns: u64,
    size: u64,
    /// Only for a `.gz`.
    content: Option<Content>,
}

impl Probe {
    fn place(&self, start: u64, len: u64) -> Segment {
        Segment {
            kind: self.kind,
            path: self.path.clone(),
            id: self.id,
            mtime_ns: self.mtime_ns,
            start,
            len,
            gz: self.content.is_some(),
        }
    }
}

/// Scans the files of a stream while others may rotate them.
pub(crate) fn scan(names: &Names) -> Result<Layout, Error> {
    for _ in 0..TRIES {
        if let Some(layout) = scan_once(names)? {
            return Ok(layout);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(Error::Busy { path: names.live.clone() })
}

/// Returns `None` if a file moved in a way that makes its content ambiguous.
///
/// Files only move from the live name to `.1` and upwards, the highest first, and a `.gz` exists
/// before its source is removed. Scanning in the same order cannot miss a file.
fn scan_once(names: &Names) -> Result<Option<Layout>, Error> {
    let live = probe(&names.live, Kind::Live)?;
    let listed = names.list()?;
    if listed.is_empty() && live.is_none() {
        return Ok(Some(Layout::default()));
    }
    let mut probes = Vec::new();
    for StreamFile { kind, path } in &listed {
        // If a dated `.gz` has its source beside it, another program is still writing it.
        let unfinished = *kind == Kind::Dated { gz: true }
            && listed.iter().any(|other| other.path == path.with_extension(""));
        if matches!(kind, Kind::Dated { .. }) && !unfinished {
            probes.extend(probe(path, *kind)?);
        }
    }
    let highest = listed.iter().map(|file| file.kind.age_rank().0).max().unwrap_or(0);
    if highest > 0 || live.is_none() {
        // A few more than listed, because rotations may happen meanwhile.
        for number in 1..=highest + 4 {
            for gz in [false, true] {
                probes.extend(probe(&names.numbered(number, gz), Kind::Numbered { number, gz })?);
            }
        }
    }
    // Read last, so that it covers everything that the probes found.
    let (index, edition) = Index::load(names)?;
    Ok(place(probes, live, index).map(|layout| Layout { edition, ..layout }))
}

fn probe(path: &Path, kind: Kind) -> Result<Option<Probe>, Error> {
    let gz = matches!(kind, Kind::Numbered { gz: true, .. } | Kind::Dated { gz: true });
    let looked = if gz {
        File::open(path).and_then(|mut file| {
            let meta = file.metadata()?;
            let content = gzip::inspect(&mut file, meta.len())?;
            Ok((meta, Some(content)))
        })
    } else {
        fs::metadata(path).map(|meta| (meta, None))
    };
    match looked {
        Ok((meta, content)) if meta.is_file() => Ok(Some(Probe {
            kind,
            path: path.to_owned(),
            id: FileId::of(&meta),
            mtime_ns: mtime_ns(&meta),
            size: meta.len(),
            content,
        })),
        // A folder with such a name is not part of the stream.
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("look at", path)(error)),
    }
}

fn place(mut probes: Vec<Probe>, mut live: Option<Probe>, index: Option<Index>) -> Option<Layout> {
    // A scan during a rotation can see a file under two names. It counts once, under the later
    // name.
    let ids: Vec<_> = probes.iter().map(|probe| probe.id).collect();
    let mut at = 0;
    probes.retain(|probe| {
        at += 1;
        !ids[at..].contains(&probe.id)
    });
    live = live.filter(|live| !ids.contains(&live.id));
    let recorded = |probe: &Probe| match probe.content {
        Some(Content::Known { start, len }) => Some((start, len)),
        Some(Content::Foreign { len }) => index.as_ref()?.compressed(probe.mtime_ns, len),
        Some(Content::Broken) => None,
        None => index.as_ref()?.plain(probe.id, probe.size),
    };
    let mut layout = Layout::default();
    let mut known = Vec::new();
    let mut unknown = Vec::new();
    for probe in probes {
        match recorded(&probe) {
            Some((start, len)) => known.push(probe.place(start, len)),
            None if probe.size == 0 => layout.duplicates.push(probe.place(0, 0)),
            None => unknown.push(probe),
        }
    }
    // If the index does not know a file, its `.gz` is recognized by the same length and time.
    unknown.retain(|probe| {
        let copied = |gz: &&Segment| gz.gz && gz.len == probe.size && gz.mtime_ns == probe.mtime_ns;
        let copy = known.iter().find(copied).filter(|_| probe.content.is_none());
        layout.duplicates.extend(copy.map(|gz| probe.place(gz.start, gz.len)));
        copy.is_none()
    });
    // Of two files with the same bytes the compressed one is used.
    known.sort_by_key(|segment| (segment.start, std::cmp::Reverse(segment.len), !segment.gz));
    let mut covered = 0;
    for segment in known {
        if segment.len > 0 && segment.start >= covered {
            covered = segment.end();
            layout.segments.push(segment);
        } else {
            layout.duplicates.push(segment);
        }
    }

    let live_start = live.as_ref().and_then(recorded).map(|(start, _)| start);
    let mut unknown = sort_unknown(unknown);
    if index.is_some() && unknown.iter().any(|probe| probe.content.is_none() && has_moved(probe)) {
        return None;
    }
    let foreign_len = |probe: &Probe| match probe.content {
        None => probe.size,
        Some(Content::Foreign { len }) => len,
        Some(_) => 0,
    };
    // Unrecorded files follow the last recorded one. If the live file is recorded, they must fill
    // the gap before it exactly. If there is an index, an unrecorded plain file of another program
    // is only a copy and is ignored, and an unrecorded `.gz` is accepted only in place of a missing
    // live file.
    let live_gone = |index: &Index| {
        let (id, start) = index.live()?;
        Some(!index.is_cutting() && start == covered && !ids.contains(&id))
    };
    let live_gone = live_start.is_none() && index.as_ref().and_then(live_gone).unwrap_or(false);
    unknown.retain(|probe| match probe.kind {
        Kind::Numbered { gz: false, .. } => true,
        Kind::Numbered { gz: true, .. } | Kind::Dated { gz: true } => index.is_none() || live_gone,
        _ => index.is_none(),
    });
    let fits = live_start
        .is_none_or(|start| covered + unknown.iter().map(foreign_len).sum::<u64>() == start);
    if fits {
        for probe in &unknown {
            let len = foreign_len(probe);
            if len > 0 {
                let segment = probe.place(covered, len);
                covered = segment.end();
                layout.guessed.push(segment.clone());
                layout.segments.push(segment);
            }
        }
    }
    layout.end = covered.max(live_start.unwrap_or_else(|| index.as_ref().map_or(0, Index::floor)));
    if let Some(live) = live {
        let segment = live.place(live_start.unwrap_or(layout.end), live.size);
        if live_start.is_none() {
            // A new live file is empty until the index contains it: its start may still change.
            layout.guessed.push(segment.clone());
        }
        layout.end = layout.end.max(segment.end());
        layout.segments.push(segment);
    }
    layout.index = index;
    Some(layout)
}

fn sort_unknown(unknown: Vec<Probe>) -> Vec<Probe> {
    let mut order: Vec<_> =
        unknown.iter().enumerate().map(|(at, probe)| (probe.kind, probe.mtime_ns, at)).collect();
    names::oldest_first(&mut order);
    let mut unknown: Vec<_> = unknown.into_iter().map(Some).collect();
    order.into_iter().filter_map(|(_, _, at)| unknown.get_mut(at).and_then(Option::take)).collect()
}

/// Returns whether the file has lost its name since it was probed, so that the index may no longer
/// contain it.
fn has_moved(probe: &Probe) -> bool {
    fs::metadata(&probe.path).map_or(true, |meta| FileId::of(&meta) != probe.id)
}
