//! What an attempt leaves on disk while it is held: its work folder, and beside that a file that
//! says how far it has come, for the next supervisor when this one is killed.
//!
//! `<data>/work/42.7.2/` is the folder, `<data>/work/42.7.2.attempt` the file. It holds one JSON
//! value a line, each written when it became true.
//!
//! What is empty again is kept under another name and used for the next attempt: to make and to
//! delete inodes thousands of times a second is what a file system does worst.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::unistd::Pid;
use podmesh_protocol::ids::{AttemptId, JobId};
use podmesh_protocol::report::Outcome;
use podmesh_protocol::spec::OnLost;
use serde::{Deserialize, Serialize};

/// The extension of the file of an attempt.
const EXTENSION: &str = "attempt";
/// Beginning of the names of what is kept for the next attempts.
const SPARE: &str = "spare-";
/// Folders, and files, that are kept at the most.
const SPARES_MAX: usize = 64;
/// Mode of a work folder.
const FOLDER_MODE: u32 = 0o755;

/// One line of the file of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// It is about to be started.
    TakenUp { on_lost: OnLost },
    /// It was started.
    Started { pid: i32, start_ticks: u64 },
    /// It ended by itself, so.
    Ended(Outcome),
}

/// The folder of all that.
#[derive(Debug)]
pub(super) struct WorkDir {
    path: PathBuf,
    spares: Mutex<Spares>,
}

/// What is empty, and has no attempt.
#[derive(Debug, Default)]
struct Spares {
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
    last: u64,
}

/// An attempt of an earlier life of the supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(super) attempt: AttemptId,
    pub(super) on_lost: OnLost,
    /// Its process, and when that was started.
    pub(super) process: Option<(Pid, u64)>,
    /// How it ended, where it did before the supervisor.
    pub(super) ended: Option<Outcome>,
}

/// The folder in the agent's data directory.
const DIR: &str = "work";

/// Whether attempts were written down that nobody has removed.
pub(crate) fn has_records(data_dir: &Path) -> bool {
    let is_record = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.path().extension() == Some(OsStr::new(EXTENSION)))
    };
    fs::read_dir(data_dir.join(DIR)).is_ok_and(|mut entries| entries.any(is_record))
}

impl WorkDir {
    /// Makes the folder, for the agent's user alone.
    pub(super) fn create(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(DIR);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let this = Self { path, spares: Mutex::default() };
        this.remove_spares()?;
        Ok(this)
    }

    /// Removes what is kept for next attempts, an earlier life's too.
    pub(super) fn remove_spares(&self) -> io::Result<()> {
        let mut spares = self.spares();
        spares.folders.clear();
        spares.files.clear();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(SPARE.as_bytes()) {
                let spare = entry.path();
                fs::remove_dir(&spare).or_else(|_| fs::remove_file(&spare))?;
            }
        }
        Ok(())
    }

    fn spares(&self) -> MutexGuard<'_, Spares> {
        // No code that can panic runs under the lock.
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name for a spare, where one more is wanted.
    fn spare_name(&self, kind: fn(&mut Spares) -> &mut Vec<PathBuf>) -> Option<PathBuf> {
        let mut spares = self.spares();
        if kind(&mut spares).len() >= SPARES_MAX {
            return None;
        }
        spares.last += 1;
        Some(self.path.join(format!("{SPARE}{}", spares.last)))
    }

    /// The work folder of an attempt.
    pub(super) fn folder(&self, attempt: AttemptId) -> PathBuf {
        let AttemptId { task, number } = attempt;
        self.path.join(format!("{}.{}.{number}", task.job, task.index))
    }

    fn file(&self, attempt: AttemptId) -> PathBuf {
        let AttemptId { task, number } = attempt;
        self.path.join(format!("{}.{}.{number}.{EXTENSION}", task.job, task.index))
    }

    /// Writes down that an attempt is about to be started, and makes its folder.
    pub(super) fn take_up(&self, attempt: AttemptId, on_lost: OnLost) -> io::Result<Record> {
        let path = self.file(attempt);
        let spare = self.spares().files.pop();
        if let Some(spare) = spare {
            // Where it cannot be used, a new one is made.
            _ = fs::rename(spare, &path);
        }
        let mut record = Record(File::create(path)?);
        record.write(&Line::TakenUp { on_lost })?;
        let folder = self.folder(attempt);
        let spare = self.spares().folders.pop();
        if spare.is_some_and(|spare| fs::rename(spare, &folder).is_ok()) {
            return Ok(record);
        }
        match fs::DirBuilder::new().mode(FOLDER_MODE).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(record),
        }
    }

    /// Writes down how an attempt ended.
    pub(super) fn ended(&self, attempt: AttemptId, outcome: &Outcome) -> io::Result<()> {
        let file = OpenOptions::new().append(true).open(self.file(attempt))?;
        Record(file).write(&Line::Ended(outcome.clone()))
    }

    /// Removes what there is of an attempt.
    pub(super) fn remove(&self, attempt: AttemptId) -> io::Result<()> {
        let folder = self.folder(attempt);
        if !self.spare_folder(&folder) {
            unless_missing(fs::remove_dir_all(&folder))?;
        }
        // Last: what is left of the folder is found by it.
        let file = self.file(attempt);
        if self.spare_file(&file) { Ok(()) } else { unless_missing(fs::remove_file(file)) }
    }

    /// Keeps a folder for the next attempt, where it is as good as new.
    fn spare_folder(&self, folder: &Path) -> bool {
        let is_new = || -> io::Result<bool> {
            let metadata = fs::symlink_metadata(folder)?;
            Ok(metadata.is_dir()
                && metadata.mode() & 0o7777 == FOLDER_MODE
                && metadata.uid() == nix::unistd::geteuid().as_raw()
                && fs::read_dir(folder)?.next().is_none())
        };
        if !is_new().unwrap_or(false) {
            return false;
        }
        let Some(spare) = self.spare_name(|spares| &mut spares.folders) else { return false };
        let kept = fs::rename(folder, &spare).is_ok();
        if kept {
            self.spares().folders.push(spare);
        }
        kept
    }

    /// Keeps a file for the next attempt.
    fn spare_file(&self, file: &Path) -> bool {
        let Some(spare) = self.spare_name(|spares| &mut spares.files) else { return false };
        // Emptied before anybody can take it for the next attempt's.
        let emptied = OpenOptions::new().write(true).truncate(true).open(file);
        let kept = emptied.is_ok() && fs::rename(file, &spare).is_ok();
        if kept {
            self.spares().files.push(spare);
        }
        kept
    }

    /// What an earlier life left. Folders of attempts that were never taken up are removed.
    pub(super) fn found(&self) -> io::Result<Vec<Found>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.extension() != Some(OsStr::new(EXTENSION)) {
                if let Some(attempt) = attempt_of(&path)
                    && !self.file(attempt).exists()
                {
                    self.remove(attempt)?;
                }
                continue;
            }
            if let Some(attempt) = attempt_of(&path.with_extension("")) {
                all.push(read(attempt, &fs::read(path)?));
            }
        }
        all.sort_by_key(|found| found.attempt);
        Ok(all)
    }
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(
        |error| {
            if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
        },
    )
}

/// Reads `…/42.7.2`.
fn attempt_of(folder: &Path) -> Option<AttemptId> {
    let mut parts = folder.file_name()?.to_str()?.split('.');
    let attempt = AttemptId::new(
        JobId(parts.next()?.parse().ok()?),
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
    );
    parts.next().is_none().then_some(attempt)
}

/// Reads the file of an attempt, as far as it was written.
fn read(attempt: AttemptId, bytes: &[u8]) -> Found {
    // Without its first line nothing was started, whatever is to be done when it is lost.
    let mut found = Found { attempt, on_lost: OnLost::Wait, process: None, ended: None };
    for line in bytes.split(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Line::TakenUp { on_lost }) => found.on_lost = on_lost,
            Ok(Line::Started { pid, start_ticks }) => {
                found.process = Some((Pid::from_raw(pid), start_ticks));
            }
            Ok(Line::Ended(outcome)) => found.ended = Some(outcome),
            Err(_) => break,
        }
    }
    found
}

/// The file of an attempt that is being started.
#[derive(Debug)]
pub(super) struct Record(File);

impl Record {
    /// Writes down that the process runs.
    pub(super) fn started(&mut self, pid: Pid, start_ticks: u64) -> io::Result<()> {
        self.write(&Line::Started { pid: pid.as_raw(), start_ticks })
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.0.write_all(&text)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ATTEMPT: AttemptId = AttemptId::new(JobId(42), 7, 2);

    #[test]
    fn what_was_written_is_found() {
        let data = tempfile::tempdir().unwrap();
        let work = WorkDir::create(data.path()).unwrap();
        let mut record = work.take_up(ATTEMPT, OnLost::Requeue).unwrap();
        let mut expected =
            Found { attempt: ATTEMPT, on_lost: OnLost::Requeue, process: None, ended: None };
        assert_eq!(work.found().unwrap(), [expected.clone()]);

        record.started(Pid::from_raw(77), 123).unwrap();
        expected.process = Some((Pid::from_raw(77), 123));
        assert_eq!(work.found().unwrap(), [expected.clone()]);

        let outcome = Outcome::exited(3);
        work.ended(ATTEMPT, &outcome).unwrap();
        expected.ended = Some(outcome);
        assert_eq!(work.found().unwrap(), [expected]);

        fs::write(work.folder(ATTEMPT).join("result"), "x").unwrap();
        work.remove(ATTEMPT).unwrap();
        work.remove(ATTEMPT).unwrap();
        assert_eq!(work.found().unwrap(), []);
        // What was empty is kept, and the next attempt finds nothing of the former one.
        let next = AttemptId { number: 3, ..ATTEMPT };
        work.take_up(next, OnLost::Wait).unwrap();
        let fresh = Found { attempt: next, on_lost: OnLost::Wait, process: None, ended: None };
        assert_eq!(work.found().unwrap(), [fresh]);
        assert_eq!(fs::read_dir(work.folder(next)).unwrap().count(), 0);
        work.remove(next).unwrap();
        assert_eq!(fs::read_dir(data.path().join("work")).unwrap().count(), 2);
        // Another life keeps none of it.
        let work = WorkDir::create(data.path()).unwrap();
        assert_eq!(work.found().unwrap(), []);
        assert_eq!(fs::read_dir(data.path().join("work")).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_was_changed_or_filled_is_not_used_again() {
        let data = tempfile::tempdir().unwrap();
        let work = WorkDir::create(data.path()).unwrap();
        for spoil in [
            (|folder| fs::write(folder.join("x"), "")) as fn(PathBuf) -> io::Result<()>,
            |folder| fs::set_permissions(folder, fs::Permissions::from_mode(0o500)),
        ] {
            work.take_up(ATTEMPT, OnLost::Wait).unwrap();
            spoil(work.folder(ATTEMPT)).unwrap();
            work.remove(ATTEMPT).unwrap();
            assert!(work.spares().folders.is_empty());
        }
    }

    #[test]
    fn a_torn_line_and_a_folder_without_a_file_do_no_harm() {
        let data = tempfile::tempdir().unwrap();
        let work = WorkDir::create(data.path()).unwrap();
        fs::write(work.file(ATTEMPT), "{\"taken_up\":{\"on_lost\":\"requeue\"}}\n{\"star").unwrap();
        fs::create_dir(data.path().join("work/1.2.3")).unwrap();
        fs::create_dir(data.path().join("work/other")).unwrap();
        let expected =
            Found { attempt: ATTEMPT, on_lost: OnLost::Requeue, process: None, ended: None };
        assert_eq!(work.found().unwrap(), [expected]);
        assert!(!data.path().join("work/1.2.3").exists());
        assert!(data.path().join("work/other").exists());
    }
}
