//! What an attempt leaves on disk while it is held: its work folder, and beside that a file that
//! says how far it has come, for the next life of an agent that is killed.
//!
//! `<data>/work/42.7.2/` is the folder, `<data>/work/42.7.2.attempt` the file. It holds one JSON
//! value a line, each written when it became true.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use podmesh_protocol::ids::{AttemptId, JobId};
use podmesh_protocol::report::Outcome;
use podmesh_protocol::spec::OnLost;
use serde::{Deserialize, Serialize};

/// The extension of the file of an attempt.
const EXTENSION: &str = "attempt";

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
#[derive(Clone, Debug)]
pub(super) struct WorkDir(PathBuf);

/// An attempt of an earlier life of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) attempt: AttemptId,
    pub(super) on_lost: OnLost,
    /// Its process, and when that was started.
    pub(super) process: Option<(Pid, u64)>,
    /// How it ended, where it did before the agent.
    pub(super) ended: Option<Outcome>,
}

impl WorkDir {
    /// Makes the folder, for the agent alone.
    pub(super) fn create(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join("work");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// The work folder of an attempt.
    pub(super) fn folder(&self, attempt: AttemptId) -> PathBuf {
        let AttemptId { task, number } = attempt;
        self.0.join(format!("{}.{}.{number}", task.job, task.index))
    }

    fn file(&self, attempt: AttemptId) -> PathBuf {
        let AttemptId { task, number } = attempt;
        self.0.join(format!("{}.{}.{number}.{EXTENSION}", task.job, task.index))
    }

    /// Writes down that an attempt is about to be started, and makes its folder.
    pub(super) fn take_up(&self, attempt: AttemptId, on_lost: OnLost) -> io::Result<Record> {
        let mut record = Record(File::create(self.file(attempt))?);
        record.write(&Line::TakenUp { on_lost })?;
        match fs::create_dir(self.folder(attempt)) {
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
        let result = match fs::remove_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                fs::remove_dir_all(&folder)
            }
            result => result,
        };
        unless_missing(result)?;
        // Last: what is left of the folder is found by it.
        unless_missing(fs::remove_file(self.file(attempt)))
    }

    /// What an earlier life left. Folders of attempts that were never taken up are removed.
    pub(super) fn found(&self) -> io::Result<Vec<Found>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.0)? {
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
        assert_eq!(fs::read_dir(data.path().join("work")).unwrap().count(), 0);
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
