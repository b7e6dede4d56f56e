//! Which file of a stream holds which offsets.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::error::Error;
use crate::gzip::{self, Content};
use crate::index::{Edition, Index};
use crate::names::{self, FileId, Found, Kind, Names, mtime_ns};

/// How often a folder that changes under the scan is looked at before giving up.
const TRIES: u32 = 50;

/// A file and the offsets that it holds.
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
    /// Files without a byte of their own: empty ones, and those whose `.gz` a crash left beside
    /// them.
    pub(crate) doubles: Vec<Segment>,
    /// Segments whose place was found from their neighbours, not from a record.
    pub(crate) guessed: Vec<Segment>,
    pub(crate) index: Option<Index>,
    /// The index file that this follows; a later one may say something else of the live file.
    pub(crate) edition: Edition,
    /// Where the stream ends; a new live file begins here.
    pub(crate) end: u64,
}

impl Layout {
    /// The first segment with a byte at or behind `offset`.
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
    /// Of a `.gz` only.
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

/// Looks at the files of a stream, while others may rotate them.
pub(crate) fn scan(names: &Names) -> Result<Layout, Error> {
    for _ in 0..TRIES {
        if let Some(layout) = scan_once(names)? {
            return Ok(layout);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(Error::Busy { path: names.live.clone() })
}

/// `None` when a file moved so that it cannot be told what it holds.
///
/// Files only ever move from the live name to `.1` and upwards, the highest first, and a `.gz` has
/// its name before its source is gone. Looking in that same order cannot miss one.
fn scan_once(names: &Names) -> Result<Option<Layout>, Error> {
    let live = probe(&names.live, Kind::Live)?;
    let listed = names.list()?;
    if listed.is_empty() && live.is_none() {
        return Ok(Some(Layout::default()));
    }
    let mut probes = Vec::new();
    for Found { kind, path } in &listed {
        // A dated `.gz` beside its source is still being written by whoever does so.
        let unfinished = *kind == Kind::Dated { gz: true }
            && listed.iter().any(|other| other.path == path.with_extension(""));
        if matches!(kind, Kind::Dated { .. }) && !unfinished {
            probes.extend(probe(path, *kind)?);
        }
    }
    let highest = listed.iter().map(|file| file.kind.age_rank().0).max().unwrap_or(0);
    if highest > 0 || live.is_none() {
        // Some more than were seen, for the rotations that happen meanwhile.
        for number in 1..=highest + 4 {
            for gz in [false, true] {
                probes.extend(probe(&names.numbered(number, gz), Kind::Numbered { number, gz })?);
            }
        }
    }
    // Read last: whatever the probes found is in it by now.
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
        // A folder of that name holds no bytes of the stream.
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("look at", path)(error)),
    }
}

fn place(mut probes: Vec<Probe>, mut live: Option<Probe>, index: Option<Index>) -> Option<Layout> {
    // A file that a scan during a rotation saw under two names counts once, under the later one.
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
            None if probe.size == 0 => layout.doubles.push(probe.place(0, 0)),
            None => unknown.push(probe),
        }
    }
    // The `.gz` of a file that the index does not know has its length and its time.
    unknown.retain(|probe| {
        let copied = |gz: &&Segment| gz.gz && gz.len == probe.size && gz.mtime_ns == probe.mtime_ns;
        let copy = known.iter().find(copied).filter(|_| probe.content.is_none());
        layout.doubles.extend(copy.map(|gz| probe.place(gz.start, gz.len)));
        copy.is_none()
    });
    // Of two files with the same bytes the compressed one stays.
    known.sort_by_key(|segment| (segment.start, std::cmp::Reverse(segment.len), !segment.gz));
    let mut covered = 0;
    for segment in known {
        if segment.len > 0 && segment.start >= covered {
            covered = segment.end();
            layout.segments.push(segment);
        } else {
            layout.doubles.push(segment);
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
    // Files that nobody recorded follow the last recorded one; when the live file is recorded, only
    // if they fill the room up to it exactly. Where there is a record, somebody else's plain file
    // that is not in it is a mere copy, and a `.gz` is taken only in the place of a live file that
    // is gone.
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
            // One just made is empty until the index names it: it may still begin later.
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

/// Whether the file has left its name since it was looked at, so that the index may have forgotten
/// it.
fn has_moved(probe: &Probe) -> bool {
    fs::metadata(&probe.path).map_or(true, |meta| FileId::of(&meta) != probe.id)
}
