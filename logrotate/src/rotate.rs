//! Renumbering and deleting rotated files.

use std::fs;
use std::io;

use crate::error::Error;
use crate::failpoint::{self, CrashPoint};
use crate::names::{self, FileId, Kind, Names};
use crate::policy::RotationPolicy;

/// Renumbers files upwards until no two share a number and none is below `lowest`.
///
/// Files only move up, the highest first. So a crash keeps their order, and a reader that scans
/// upwards does not miss one. Gaps in the numbers are filled.
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
        failpoint::hit(CrashPoint::Shifting, &from)?;
        match names::rename_new(&from, &to) {
            // Pruned meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(Error::io("rename", &from))?,
        }
    }
    Ok(())
}

/// Removes the numbered files that exceed the policy's number or size, the oldest first. Files that
/// are too old are left to [`prune`](crate::prune()), whose clock can be trusted.
///
/// `spare` is a file that another program numbered while the writer still writes to it.
pub(crate) fn remove_excess(
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
            // All further files are older: the kept bytes have no gap.
            drop.push(file.path);
        }
    }
    for path in drop.iter().rev() {
        failpoint::hit(CrashPoint::Removing, path)?;
        names::remove(path)?;
    }
    Ok(())
}
