//! The files that the demo processes, and how a task finds its file.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::error::{CliError, CliResult};

/// The maximum number of files.
const FILES_MAX: usize = 200;
/// The maximum number of folder entries to examine: the given folder may be `/`.
const ENTRIES_MAX: usize = 20_000;

/// The files found in a folder.
#[derive(Debug, Default)]
pub(crate) struct FileSelection {
    /// Readable files, those near the top first, in order of name. Absolute.
    pub(crate) files: Vec<PathBuf>,
    /// Files and folders that cannot be read.
    pub(crate) unreadable: usize,
    /// Whether there are more files than the demo processes.
    pub(crate) more: bool,
}

/// Finds files in a folder and below it. Hidden files, build output in `target`, and links are
/// skipped.
///
/// # Errors
/// If the folder itself cannot be read.
pub(crate) fn find(folder: &Path) -> CliResult<FileSelection> {
    let unreadable = |why: io::Error| {
        CliError::usage(format!("the folder {} cannot be read", folder.display()))
            .because(why)
            .hint("name another folder: podmesh demo FOLDER")
    };
    let top = fs::canonicalize(folder).map_err(unreadable)?;
    let mut found = FileSelection::default();
    let mut looked_at = 0;
    let mut folders = VecDeque::from([top.clone()]);
    while let Some(folder) = folders.pop_front() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(why) if folder == top => return Err(unreadable(why)),
            Err(_) => {
                found.unreadable += 1;
                continue;
            }
        };
        let mut entries: Vec<fs::DirEntry> =
            entries.filter_map(Result::ok).take(ENTRIES_MAX - looked_at).collect();
        looked_at += entries.len();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") || name == "target" {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push_back(entry.path()),
                Ok(kind) if kind.is_file() => {
                    if File::open(entry.path()).is_err() {
                        found.unreadable += 1;
                    } else if found.files.len() == FILES_MAX {
                        found.more = true;
                        return Ok(found);
                    } else {
                        found.files.push(entry.path());
                    }
                }
                Ok(_) => {}
                Err(_) => found.unreadable += 1,
            }
        }
        if looked_at >= ENTRIES_MAX {
            found.more = !folders.is_empty();
            break;
        }
    }
    Ok(found)
}

/// Creates a few sample files.
///
/// # Errors
/// If they cannot be written.
pub(crate) fn samples(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::create_dir(folder)?;
    [
        ("haiku.txt", "one manager binds\nagents connect and listen\nnothing printed lost\n"),
        ("numbers.txt", "1\n2\n3\n5\n8\n13\n21\n"),
        ("empty.txt", ""),
    ]
    .into_iter()
    .map(|(name, text)| {
        let path = folder.join(name);
        fs::write(&path, text)?;
        Ok(path)
    })
    .collect()
}

/// Links each file as its index, 1, 2, 3 …, in a new folder. So a task needs only its index, and a
/// shell never sees a file name, which may contain any bytes.
///
/// # Errors
/// If the links cannot be created.
pub(crate) fn link(files: &[PathBuf], folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    (1..).zip(files).try_for_each(|(index, file)| symlink(file, folder.join(index.to_string())))
}

/// The script of a task: prints checksum and counts of its file in one line.
pub(crate) const SCRIPT: &str = r#"file="$DEMO_FILES/$PODMESH_TASK_INDEX"
sum=$(cksum < "$file") || exit 1
counts=$(wc < "$file") || exit 1
set -- $sum $counts
echo "checksum $1 bytes $2 lines $3 words $4""#;

/// The output of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) checksum: u32,
    pub(crate) bytes: u64,
    pub(crate) lines: u64,
    pub(crate) words: u64,
}

impl Summary {
    /// Parses the line of [`SCRIPT`].
    pub(crate) fn parse(output: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(output).ok()?.strip_suffix('\n')?;
        let words: Vec<&str> = text.split(' ').collect();
        let ["checksum", checksum, "bytes", bytes, "lines", lines, "words", words] = words[..]
        else {
            return None;
        };
        Some(Self {
            checksum: checksum.parse().ok()?,
            bytes: bytes.parse().ok()?,
            lines: lines.parse().ok()?,
            words: words.parse().ok()?,
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn files_are_found_and_others_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path();
        for name in ["b.txt", "a.txt", ".hidden"] {
            fs::write(top.join(name), "x").unwrap();
        }
        for name in ["sub", "target", ".git"] {
            fs::create_dir(top.join(name)).unwrap();
            fs::write(top.join(name).join("inner"), "x").unwrap();
        }
        symlink("/etc/passwd", top.join("link")).unwrap();
        nix::unistd::mkfifo(&top.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let found = find(top).unwrap();
        let top = top.canonicalize().unwrap();
        let expected = ["a.txt", "b.txt", "sub/inner"].map(|name| top.join(name));
        assert_eq!(found.files, expected);
        assert_eq!((found.unreadable, found.more), (0, false));
        assert_eq!(find(&top.join("none")).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_number_of_files_is_limited() {
        let folder = tempfile::tempdir().unwrap();
        for index in 0..=FILES_MAX {
            fs::write(folder.path().join(index.to_string()), "").unwrap();
        }
        let found = find(folder.path()).unwrap();
        assert_eq!((found.files.len(), found.more), (FILES_MAX, true));
    }

    #[test]
    fn a_task_reads_its_file_whatever_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let links = folder.path().join("links");
        let names: [&[u8]; 4] = [b"a b", b"new\nline", b"\xff\xfe", b"-e $(id) ' \""];
        let files: Vec<PathBuf> =
            names.iter().map(|name| folder.path().join(OsStr::from_bytes(name))).collect();
        for file in &files {
            fs::write(file, "two words\n").unwrap();
        }
        link(&files, &links).unwrap();
        for index in 1..=files.len() {
            let output = Command::new("sh")
                .args(["-c", SCRIPT])
                .env("DEMO_FILES", &links)
                .env("PODMESH_TASK_INDEX", index.to_string())
                .output()
                .unwrap();
            // The checksum is that of `printf 'two words\n' | cksum`.
            let summary = Summary { checksum: 371_912_155, bytes: 10, lines: 1, words: 2 };
            assert_eq!(Summary::parse(&output.stdout), Some(summary), "{output:?}");
        }
        fs::remove_file(&files[0]).unwrap();
        let status = Command::new("sh")
            .args(["-c", SCRIPT])
            .env("DEMO_FILES", &links)
            .env("PODMESH_TASK_INDEX", "1")
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(1));
    }

    #[test]
    fn samples_are_files() {
        let folder = tempfile::tempdir().unwrap();
        let samples = samples(&folder.path().join("samples")).unwrap();
        assert!(samples.iter().all(|path| path.is_file()));
    }

    #[test]
    fn other_output_is_not_a_summary() {
        for text in ["", "checksum 1 bytes 2 lines 3 words", "checksum 1 bytes 2 lines 3 words x\n"]
        {
            assert_eq!(Summary::parse(text.as_bytes()), None);
        }
    }
}
