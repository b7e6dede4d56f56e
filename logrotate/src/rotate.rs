//! The numbered files: making room for a new `.1`, and forgetting by the policy.

use std::fs;
use std::io;

use crate::error::Error;
use crate::failpoint::{self, Step};
use crate::names::{self, FileId, Kind, Names};
use crate::policy::RotationPolicy;

/// Moves numbered files up until no two share a number and none is below `lowest`.
///
/// Files only move up, the highest first, so that a crash in between leaves their order as it was
/// and a reader that looks upwards misses none. Holes are used up.
pub(crate) fn make_room(names: &Names, lowest: u32) -> Result<(), Error> {
    let mut moves = Vec::new();
    let mut free = lowest;
    for file in names.list_numbered()? {
        let Kind::Numbered { number, gz } = file.kind else { continue };
        let target = number.max(free);
        free = target + 1;
        if target != number {
            moves.push((file.path, names.numbered(target, gz)));
        }
    }
    for (from, to) in moves.into_iter().rev() {
        failpoint::hit(Step::Shifting, &from)?;
        match names::rename_new(&from, &to) {
            // Pruned meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(Error::io("rename", &from))?,
        }
    }
    Ok(())
}

/// Removes the numbered files that are too many or too large for the policy, the oldest first. Those
/// that are too old are left to [`prune`](crate::prune()), which knows a clock that can be trusted.
///
/// `spare` is a file that somebody else gave a number while the writer still writes to it.
pub(crate) fn forget(
    names: &Names,
    policy: &RotationPolicy,
    spare: Option<FileId>,
) -> Result<(), Error> {
    let mut bytes = 0;
    let mut kept = 0;
    let mut drop = Vec::new();
    for file in names.list_numbered()? {
        let Ok(meta) = fs::metadata(&file.path) else { continue };
        if spare == Some(FileId::of(&meta)) {
            continue;
        }
        bytes += meta.len();
        let keep =
            drop.is_empty() && kept < policy.files_max && bytes <= policy.rotated_bytes_max();
        if keep {
            kept += 1;
        } else {
            // From here on all are older: the bytes that are kept have no hole.
            drop.push(file.path);
        }
    }
    for path in drop.iter().rev() {
        failpoint::hit(Step::Forgetting, path)?;
        names::remove(path)?;
    }
    Ok(())
}
