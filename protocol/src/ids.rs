//! Ids and names: jobs, tasks, attempts, nodes, sessions, revisions.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::limits;

/// A job's number: 1, 2, 3 … in the order in which the manager accepted them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One work item of a job, written `42.7`. A job without an array has the one task 1.
///
/// On the wire: `[job, index]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(JobId, u32)", into = "(JobId, u32)")]
pub struct TaskId {
    /// The job that the task is part of.
    pub job: JobId,
    /// The index of the task in the job's array; the command gets it as `PODMESH_TASK_INDEX`.
    pub index: u32,
}

impl From<(JobId, u32)> for TaskId {
    fn from((job, index): (JobId, u32)) -> Self {
        Self { job, index }
    }
}

impl From<TaskId> for (JobId, u32) {
    fn from(id: TaskId) -> Self {
        (id.job, id.index)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.job, self.index)
    }
}

/// One attempt at a task on one node, written `42.7#2`. The number starts at 1 and only grows; it
/// fences every older attempt of the task.
///
/// On the wire: `[job, index, number]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(JobId, u32, u32)", into = "(JobId, u32, u32)")]
pub struct AttemptId {
    /// The task.
    pub task: TaskId,
    /// The number of the attempt: 1, 2, 3 …
    pub number: u32,
}

impl AttemptId {
    /// Returns the attempt `number` of task `index` of `job`.
    pub const fn new(job: JobId, index: u32, number: u32) -> Self {
        Self { task: TaskId { job, index }, number }
    }
}

impl From<(JobId, u32, u32)> for AttemptId {
    fn from((job, index, number): (JobId, u32, u32)) -> Self {
        Self::new(job, index, number)
    }
}

impl From<AttemptId> for (JobId, u32, u32) {
    fn from(id: AttemptId) -> Self {
        (id.task.job, id.task.index, id.number)
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.task, self.number)
    }
}

/// An error for a text that is not the number of a job, task or attempt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseIdError {
    text: String,
    expected: &'static str,
}

fn number<T: FromStr>(digits: &str) -> Option<T> {
    // `FromStr` of integers accepts a leading `+`; an id has only digits.
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

impl FromStr for JobId {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        number(s)
            .filter(|n| *n > 0)
            .map(JobId)
            .ok_or_else(|| ParseIdError { text: s.into(), expected: "a job number such as 42" })
    }
}

impl FromStr for TaskId {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (job, index) = s.split_once('.')?;
            Some(TaskId { job: job.parse().ok()?, index: number(index)? })
        };
        parse()
            .ok_or_else(|| ParseIdError { text: s.into(), expected: "a task number such as 42.7" })
    }
}

impl FromStr for AttemptId {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (task, attempt) = s.split_once('#')?;
            let number = number(attempt).filter(|n| *n > 0)?;
            Some(AttemptId { task: task.parse().ok()?, number })
        };
        parse().ok_or_else(|| ParseIdError {
            text: s.into(),
            expected: "an attempt number such as 42.7#2",
        })
    }
}

/// The number of a session. It only grows, across restarts of the manager too, and is on disk
/// before the `Welcome` with it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of an event: 1, 2, 3 … without a gap, in the order of commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The idempotency key of a submission, chosen by the client: the same key never creates a second
/// job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SubmissionId(pub Uuid);

impl SubmissionId {
    /// Returns the key for a job that the manager submits itself: a replica, or a run of a schedule.
    /// No two jobs have the same number, and no random key has the version 8 of this one.
    pub fn of_job(job: JobId) -> Self {
        const PREFIX: u128 = 0x706f_646d_6573_8000 << 64;
        Self(Uuid::from_u128(PREFIX | u128::from(job.0)))
    }
}

/// The id of one run of a process; new at every start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub Uuid);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id of an agent's data directory, the same at every start. A node's name belongs to one
/// agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AgentId(pub Uuid);

/// The id of a manager's data directory, made when the directory is created. Containers carry it as
/// a label, so that two meshes can share one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub Uuid);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A name that is safe in paths, container names, topics and tables: letters, digits, `-`, `_`
/// and `.`, starting with a letter or digit, at most [`limits::NAME_BYTES_MAX`] bytes. Copies share
/// the text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(Arc<str>);

impl Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The reason why a text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty.
    #[error("a name must not be empty")]
    Empty,
    /// Longer than [`limits::NAME_BYTES_MAX`].
    #[error(
        "a name of {bytes} bytes is over the limit of {} (NAME_BYTES_MAX)",
        limits::NAME_BYTES_MAX
    )]
    TooLong {
        /// The length of the name.
        bytes: usize,
    },
    /// A character that is not allowed, or not allowed at the beginning.
    #[error(
        "a name may contain letters, digits, `-`, `_` and `.`, and must start with a letter or digit: {found:?} at byte {at} is not allowed"
    )]
    Character {
        /// The first character that is not allowed.
        found: char,
        /// The position of the character, in bytes from 0.
        at: usize,
    },
}

impl Name {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > limits::NAME_BYTES_MAX {
            return Err(NameError::TooLong { bytes: text.len() });
        }
        let allowed = |at: usize, c: char| {
            c.is_ascii_alphanumeric() || (at > 0 && matches!(c, '-' | '_' | '.'))
        };
        match text.char_indices().find(|(at, c)| !allowed(*at, *c)) {
            Some((at, found)) => Err(NameError::Character { found, at }),
            None => Ok(Self(text.into())),
        }
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::try_from(s.to_owned())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().into()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn ids_can_be_parsed_from_their_text() {
        let attempt = AttemptId::new(JobId(42), 7, 2);
        assert_eq!(attempt.to_string(), "42.7#2");
        assert_eq!("42.7#2".parse::<AttemptId>().unwrap(), attempt);
        assert_eq!("42.7".parse::<TaskId>().unwrap(), attempt.task);
        assert_eq!("42".parse::<JobId>().unwrap(), JobId(42));
    }

    #[test]
    fn a_text_that_is_not_an_id_is_an_error() {
        for text in ["", "0", "-1", "+1", "1.", "x", "99999999999999999999", "1 "] {
            assert!(text.parse::<JobId>().is_err(), "{text:?}");
        }
        for text in ["1", "1.", ".1", "1.-1", "1.4294967296", "1.2.3"] {
            assert!(text.parse::<TaskId>().is_err(), "{text:?}");
        }
        for text in ["1.1", "1.1#", "1.1#0", "#1"] {
            assert!(text.parse::<AttemptId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_are_safe_in_paths() {
        for good in ["a", "node-1", "gpu_box.lan", "7"] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        assert_eq!("".parse::<Name>(), Err(NameError::Empty));
        for bad in ["a/b", "..", "a\nb", "-a", "é", "a b", "a\0"] {
            assert!(matches!(bad.parse::<Name>(), Err(NameError::Character { .. })), "{bad:?}");
        }
        assert_eq!("x".repeat(10_000).parse::<Name>(), Err(NameError::TooLong { bytes: 10_000 }));
    }
}
