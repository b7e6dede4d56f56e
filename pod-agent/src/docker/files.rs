//! The files that a job contains, for its containers. They are in the agent's data directory until
//! the attempt is removed, because a container needs them as long as it exists.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bollard::models::{Mount as EngineMount, MountType};
use podmesh_protocol::ids::AttemptId;

/// The folder in the agent's data directory.
const DIR: &str = "files";
/// Mode of the folders: only the engine and the agent get in.
const DIR_MODE: u32 = 0o700;
/// Mode of the files: every user in a container can read them.
const FILE_MODE: u32 = 0o444;

/// Returns the folder of an attempt.
fn dir_of(data_dir: &Path, attempt: AttemptId) -> PathBuf {
    data_dir.join(DIR).join(attempt.to_string().replace('#', "."))
}

/// Writes the files of an attempt, without those of an earlier try to create its container. Blocks.
///
/// # Errors
/// If the data directory cannot be written.
pub(super) fn write(
    data_dir: &Path,
    attempt: AttemptId,
    files: &BTreeMap<String, String>,
) -> io::Result<()> {
    remove(data_dir, attempt)?;
    let dir = dir_of(data_dir, attempt);
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(&dir)?;
    for (number, text) in files.values().enumerate() {
        let path = dir.join(number.to_string());
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path)?;
        file.write_all(text.as_bytes())?;
        // Set the mode again, because the umask may have reduced it.
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    }
    Ok(())
}

/// Returns the mounts of the files of an attempt.
pub(super) fn mounts(
    data_dir: &Path,
    attempt: AttemptId,
    files: &BTreeMap<String, String>,
) -> impl Iterator<Item = EngineMount> {
    let dir = dir_of(data_dir, attempt);
    files.keys().enumerate().map(move |(number, target)| EngineMount {
        typ: Some(MountType::BIND),
        source: Some(dir.join(number.to_string()).to_string_lossy().into_owned()),
        target: Some(target.clone()),
        read_only: Some(true),
        ..EngineMount::default()
    })
}

/// Removes the files of an attempt, if there are any. Blocks.
///
/// # Errors
/// If they cannot be removed.
pub(super) fn remove(data_dir: &Path, attempt: AttemptId) -> io::Result<()> {
    unless_missing(fs::remove_dir_all(dir_of(data_dir, attempt)))
}

/// Removes the files of all attempts but these, which an earlier run of the agent left. Blocks.
///
/// # Errors
/// If some cannot be removed.
pub(super) fn keep_only(data_dir: &Path, attempts: &[AttemptId]) -> io::Result<()> {
    let kept: Vec<PathBuf> = attempts.iter().map(|id| dir_of(data_dir, *id)).collect();
    let entries = match fs::read_dir(data_dir.join(DIR)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if !kept.contains(&path) {
            unless_missing(fs::remove_dir_all(&path))?;
        }
    }
    Ok(())
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
