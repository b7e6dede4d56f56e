//! Writes the files that a job contains into the work folder of an attempt.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::fchown;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

/// Writes files at relative paths without `..`, and the folders above them. They belong to `owner`, a
/// user and a group, or to this process's user. Follows no symbolic link, because commands of the
/// same user may be able to create some.
///
/// # Errors
/// The path of the first file that cannot be written, with the reason.
pub(super) fn write_files(
    folder: &Path,
    files: &BTreeMap<String, String>,
    owner: Option<(u32, u32)>,
) -> Result<(), (String, io::Error)> {
    for (path, text) in files {
        write(folder, path, text, owner).map_err(|error| (path.clone(), error))?;
    }
    Ok(())
}

fn write(folder: &Path, path: &str, text: &str, owner: Option<(u32, u32)>) -> io::Result<()> {
    let open_dir = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dir: OwnedFd = openat(CWD, folder, open_dir, Mode::empty())?;
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    for part in above.split('/').filter(|part| !part.is_empty()) {
        let made = match mkdirat(&dir, part, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        dir = openat(&dir, part, open_dir, Mode::empty())?;
        if let (true, Some((uid, gid))) = (made, owner) {
            fchown(&dir, Some(uid), Some(gid))?;
        }
    }
    let create =
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file: File = openat(&dir, name, create, Mode::RUSR | Mode::WUSR)?.into();
    file.write_all(text.as_bytes())?;
    match owner {
        Some((uid, gid)) => fchown(&file, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_with_their_folders_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let files = [("a".into(), "1".into()), ("b/c/d".into(), "2".into())].into();
        write_files(dir.path(), &files, None).unwrap();
        for (path, text) in [("a", "1"), ("b/c/d", "2")] {
            assert_eq!(std::fs::read_to_string(dir.path().join(path)).unwrap(), text);
        }
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("x"), dir.path().join("x")).unwrap();
        for path in ["link/x", "x", "a", "a/b"] {
            let (at, _) =
                write_files(dir.path(), &[(path.into(), String::new())].into(), None).unwrap_err();
            assert_eq!(at, path);
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
