//! Disks that fill up: small file systems of their own.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system in memory. Unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one on a folder, which is created if needed.
    pub fn mount(path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m", "podmesh-test"])
            .arg(path)
            .status()
            .unwrap();
        assert!(status.success(), "cannot mount a file system: {status}");
        Self(path.to_owned())
    }

    /// Fills the disk except for `leave` bytes.
    pub fn fill(&self, leave: u64) {
        let mut file = File::create(self.0.join("ballast")).unwrap();
        let block = vec![0x5a; 64 << 10];
        while file.write_all(&block).is_ok() {}
        let full = file.metadata().unwrap().len();
        file.set_len(full - leave).unwrap();
    }

    /// Mounts it again as `ro` or `rw`.
    pub fn remount(&self, mode: &str) {
        let options = format!("remount,{mode}");
        let status = Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap();
        assert!(status.success(), "cannot mount a file system as {mode}: {status}");
    }

    /// Gives back what [`fill`](Self::fill) took.
    pub fn make_room(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Returns whether file systems can be mounted here. If not, prints a message, or panics with
/// `PODMESH_TEST_DOCKER=required`.
pub fn may_mount() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let required = std::env::var("PODMESH_TEST_DOCKER").is_ok_and(|value| value == "required");
    assert!(root || !required, "tests of full disks need root");
    if !root {
        eprintln!("SKIPPED: only root can mount a file system to fill");
    }
    root
}
