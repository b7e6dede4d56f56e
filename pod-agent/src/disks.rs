//! Which disks of the node are nearly full: they need attention before the node takes no more work.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use podmesh_wire::machine::{disk_bytes, free_bytes};

/// A disk is nearly full when less than this part of it is free, in thousandths.
const LOW: u64 = 50;
/// It no longer is when this part is free again: a disk at the limit does not change all the time.
const ENOUGH: u64 = 60;

/// The disks of the output and of the data folder.
pub(crate) struct Disks {
    folders: Vec<(&'static str, PathBuf)>,
    low: BTreeMap<String, String>,
}

impl Disks {
    /// Looks at the disks of these folders. Two folders on one disk are one.
    pub(crate) fn new(logs: &Path, data: &Path) -> Self {
        let mut folders = vec![("logs", logs.to_owned())];
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
        if device(logs) != device(data) {
            folders.push(("data", data.to_owned()));
        }
        let mut this = Self { folders, low: BTreeMap::new() };
        this.look();
        this
    }

    /// Looks again. Returns whether a disk has become nearly full, or is so no longer, which a new
    /// hello must report.
    pub(crate) fn look(&mut self) -> bool {
        let mut changed = false;
        for (name, folder) in &self.folders {
            let (Ok(free), Ok(size)) = (free_bytes(folder), disk_bytes(folder)) else { continue };
            match (self.low.contains_key(*name), is_low(free, size, LOW)) {
                (false, true) => {
                    let why = text(folder, free, size);
                    tracing::warn!("a disk of this node is nearly full: {why}");
                    self.low.insert((*name).to_owned(), why);
                    changed = true;
                }
                (true, _) if !is_low(free, size, ENOUGH) => {
                    self.low.remove(*name);
                    changed = true;
                }
                _ => {}
            }
        }
        changed
    }

    /// Returns the disks that are nearly full, `logs` or `data`, with how much was free when that was
    /// found, for the hello.
    pub(crate) fn low(&self) -> BTreeMap<String, String> {
        self.low.clone()
    }
}

fn is_low(free: u64, size: u64, limit: u64) -> bool {
    u128::from(free) * 1000 < u128::from(size) * u128::from(limit)
}

fn text(folder: &Path, free: u64, size: u64) -> String {
    const MIB: u64 = 1 << 20;
    let percent = LOW / 10;
    let (free, size) = (free / MIB, size / MIB);
    // A long path is of no use to the reader, and a reason has a limit.
    let folder: String = folder.display().to_string().chars().take(200).collect();
    format!("less than {percent} % of the disk of {folder} is free: {free} MiB of {size} MiB")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_low_below_a_part_and_enough_above_a_larger_one() {
        let low = |free, limit| is_low(free, 1_000, limit);
        assert_eq!((low(49, LOW), low(50, LOW)), (true, false));
        assert_eq!((low(59, ENOUGH), low(60, ENOUGH)), (true, false));
        assert!(!is_low(u64::MAX, u64::MAX, LOW));
    }

    #[test]
    fn folders_on_one_disk_are_one_and_a_missing_one_is_not_low() {
        let folder = tempfile::tempdir().unwrap();
        let disks = Disks::new(folder.path(), folder.path());
        assert_eq!(disks.folders.len(), 1);
        let mut gone = Disks::new(Path::new("/nowhere/at/all"), folder.path());
        gone.folders.truncate(1);
        gone.low.clear();
        assert!(!gone.look());
    }
}
