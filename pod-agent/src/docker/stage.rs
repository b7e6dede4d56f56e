//! Staged mounts: keep what was checked unchanged until the engine mounts it.
//!
//! The engine resolves a path when it starts the container, long after the path was checked. So the
//! engine gets a path that nobody else can change: a bind mount of the checked folder or file in a
//! private folder. This needs the right to mount, which an agent that runs as root has. A staged
//! mount is released when the container has started; the agent removes leftovers of a crash when it
//! starts.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use podmesh_protocol::ids::AttemptId;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};
use uuid::Uuid;

/// Outside the data directory, so that removing that does not remove what is mounted.
const STAGES_DIR: &str = "/run/podmesh-mounts";

/// The staged mounts of one agent: those whose names begin with its id.
#[derive(Debug)]
pub(super) struct Stage(Option<Uuid>);

impl Stage {
    /// Returns the stage of an agent.
    pub(super) fn of(agent: Uuid) -> Self {
        Self(Some(agent))
    }

    /// Returns a stage that cannot mount.
    #[cfg(test)]
    pub(super) fn unable() -> Self {
        Self(None)
    }

    /// Stages a folder or file that was opened with `O_PATH`.
    ///
    /// # Errors
    /// If the mount fails; [`is_unable`] tells whether this process cannot mount at all.
    pub(super) fn hold(&self, attempt: AttemptId, index: usize, opened: &File) -> io::Result<Held> {
        let agent = self.0.ok_or(Errno::PERM)?;
        // From here on it is a separate mount, whatever happens to the path.
        let tree = open_tree(
            opened,
            "",
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::AT_RECURSIVE
                | OpenTreeFlags::AT_EMPTY_PATH
                | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )?;
        let dir = Path::new(STAGES_DIR);
        make_private_dir(dir)?;
        let attempt = attempt.to_string().replace('#', ".");
        let path = dir.join(format!("{agent}-{attempt}-{index}"));
        release(&path)?;
        if opened.metadata()?.is_dir() {
            DirBuilder::new().mode(0o700).create(&path)?;
        } else {
            File::create_new(&path)?;
        }
        let held = Held(path);
        let by_itself = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, "", CWD, &held.0, by_itself)?;
        // Unmounting it must not unmount file systems inside the original.
        mount_change(&held.0, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        Ok(held)
    }

    /// Releases all staged mounts that an earlier run of the agent left.
    ///
    /// # Errors
    /// If one cannot be released.
    pub(super) fn clear(&self) -> io::Result<()> {
        let Some(agent) = self.0.map(|agent| agent.to_string()) else { return Ok(()) };
        let entries = match fs::read_dir(STAGES_DIR) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&agent) {
                release(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Returns whether the error means that this process may not mount, or that the kernel is too old.
pub(super) fn is_unable(error: &io::Error) -> bool {
    [Errno::PERM, Errno::ACCESS, Errno::NOSYS]
        .iter()
        .any(|unable| error.raw_os_error() == Some(unable.raw_os_error()))
}

/// Creates a folder that only this user can access. Fails if it exists with another owner or mode.
fn make_private_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let found = fs::symlink_metadata(path)?;
    let ours = found.is_dir() && found.uid() == nix::unistd::geteuid().as_raw();
    if ours && found.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{} is not a folder that only this user can access: remove it",
        path.display()
    )))
}

/// Unmounts a staged mount and removes its mount point. Never removes anything inside it.
fn release(path: &Path) -> io::Result<()> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL) => break, // Nothing is mounted there.
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        removed => removed,
    }
}

/// A staged folder or file. Released when dropped.
#[derive(Debug)]
pub(super) struct Held(PathBuf);

impl Held {
    /// Returns its path.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = release(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot release a staged mount");
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use podmesh_protocol::ids::JobId;

    use super::*;

    fn open(path: &Path) -> File {
        let flags = nix::libc::O_PATH;
        fs::OpenOptions::new().read(true).custom_flags(flags).open(path).unwrap()
    }

    fn attempt() -> AttemptId {
        AttemptId::new(JobId(1), 2, 3)
    }

    #[test]
    fn a_staged_folder_does_not_change_when_its_path_is_swapped() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: only root may mount");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let [folder, moved] = ["folder", "moved"].map(|name| dir.path().join(name));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("word"), "good").unwrap();
        let stage = Stage::of(Uuid::new_v4());
        let opened = open(&folder);
        fs::rename(&folder, &moved).unwrap();
        std::os::unix::fs::symlink("/etc", &folder).unwrap();
        let held = stage.hold(attempt(), 0, &opened).unwrap();
        assert_eq!(fs::read(held.path().join("word")).unwrap(), b"good");
        let file = stage.hold(attempt(), 1, &open(&moved.join("word"))).unwrap();
        assert_eq!(fs::read(file.path()).unwrap(), b"good");
        // Staged again, after a create without an answer.
        let again = stage.hold(attempt(), 0, &opened).unwrap();
        assert_eq!(fs::read(again.path().join("word")).unwrap(), b"good");
        let path = held.path().to_owned();
        drop((held, file, again));
        assert!(!path.exists() && moved.join("word").exists());
        // A killed agent leaves its staged mounts.
        std::mem::forget(stage.hold(attempt(), 0, &opened).unwrap());
        stage.clear().unwrap();
        stage.clear().unwrap();
        assert!(!path.exists() && moved.join("word").exists());
    }
}
