//! The starts of processes in progress, including those that hang.
//!
//! Starting a process accesses paths that the job names: its working folder and its program. If a
//! file system does not answer, such as NFS without its server, the thread that accesses such a
//! path hangs, and nobody can interrupt it. So a thread that hangs for [`SLOW`] is replaced by
//! another one, a start that takes longer than [`PROCESS_START_MS_MAX`] is given up, and other
//! starts that would access the same path are refused in the meantime. When
//! [`PROCESS_STARTS_HUNG_MAX`] threads hang, nothing more is started until one returns.
//!
//! A start that was given up never runs the program: either its thread had not created the process
//! and no longer does, or the process was killed before it executed the program.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use parking_lot::Mutex;
use podmesh_protocol::ids::AttemptId;
use podmesh_protocol::limits::{PROCESS_START_MS_MAX, PROCESS_STARTS_HUNG_MAX};

/// A start that takes longer is considered to hang.
pub(super) const SLOW: Duration = Duration::from_secs(1);
/// Maximum duration of a start.
const LIMIT: Duration = Duration::from_millis(PROCESS_START_MS_MAX);

/// A thread that starts processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ThreadNumber(u64);

/// All threads that start processes, and what each of them does.
#[derive(Debug)]
pub(super) struct Starts {
    /// The number of threads, not counting those that hang.
    size: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    /// All threads, including those that hang.
    threads: usize,
    /// Threads that hang.
    hung: usize,
    current: HashMap<ThreadNumber, Start>,
}

/// A start in progress.
#[derive(Debug)]
struct Start {
    attempt: AttemptId,
    thread_id: Pid,
    since: Instant,
    /// The path that it accessed last.
    path: PathBuf,
    phase: Phase,
    /// Whether it hangs, so that its thread was replaced.
    hangs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No process was created yet.
    Preparing,
    /// A process is being created, and executes its program.
    Spawning,
    /// The program runs, or could not be executed.
    Spawned,
    /// The attempt was reported as ended.
    GivenUp,
}

/// A path that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hang {
    pub(super) path: PathBuf,
    pub(super) since: Duration,
}

impl fmt::Display for Hang {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} has not answered for {} s, so the command was not started; repair that file \
             system, or unmount it with `umount --force --lazy`",
            self.path.display(),
            self.since.as_secs()
        )
    }
}

/// The result of a start for its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StartResult {
    /// Whether the attempt's end was already reported.
    pub(super) given_up: bool,
    /// Whether another thread has taken this one's place.
    pub(super) is_spare: bool,
}

impl Starts {
    /// Creates a pool of this many threads.
    pub(super) fn new(size: usize) -> Self {
        Self { size, table: Mutex::default() }
    }

    /// Returns the numbers of the threads to start now: at first all of them, later the
    /// replacements of those that hang.
    pub(super) fn missing(&self, now: Instant) -> Vec<ThreadNumber> {
        let mut table = self.table.lock();
        let Table { hung, current, .. } = &mut *table;
        for start in current.values_mut() {
            if !start.hangs && now >= start.since + SLOW && *hung < PROCESS_STARTS_HUNG_MAX {
                start.hangs = true;
                *hung += 1;
                let (attempt, path) = (start.attempt, start.path.display());
                tracing::warn!(%attempt, "a start hangs: {path} does not answer");
            }
        }
        let missing = (self.size + table.hung).saturating_sub(table.threads);
        table.threads += missing;
        let first = table.last + 1;
        table.last += missing as u64;
        (first..=table.last).map(ThreadNumber).collect()
    }

    /// Notes that a thread could not be started.
    pub(super) fn not_started(&self) {
        self.table.lock().threads -= 1;
    }

    /// Notes that a thread begins a start.
    pub(super) fn begin(&self, thread: ThreadNumber, attempt: AttemptId, now: Instant) {
        let start = Start {
            attempt,
            thread_id: nix::unistd::gettid(),
            since: now,
            path: PathBuf::new(),
            phase: Phase::Preparing,
            hangs: false,
        };
        self.table.lock().current.insert(thread, start);
    }

    /// Notes that a thread is about to access a path.
    ///
    /// # Errors
    /// If another start hangs at this path.
    pub(super) fn touch(&self, thread: ThreadNumber, path: &Path) -> Result<(), Hang> {
        let mut table = self.table.lock();
        if table.hung > 0
            && let Some(other) =
                table.current.values().find(|start| start.hangs && start.path == path)
        {
            return Err(Hang { path: path.to_owned(), since: other.since.elapsed() });
        }
        if let Some(start) = table.current.get_mut(&thread) {
            path.clone_into(&mut start.path);
        }
        Ok(())
    }

    /// Notes that a thread is about to create the process. Returns false if the start was given up.
    pub(super) fn may_spawn(&self, thread: ThreadNumber) -> bool {
        self.advance(thread, Phase::Preparing, Phase::Spawning)
    }

    /// Notes that the program runs or could not be executed. Returns false if the start was given
    /// up and the process killed.
    pub(super) fn spawned(&self, thread: ThreadNumber) -> bool {
        self.advance(thread, Phase::Spawning, Phase::Spawned)
    }

    /// Moves a start to its next phase. Returns false if it was given up.
    fn advance(&self, thread: ThreadNumber, from: Phase, to: Phase) -> bool {
        let mut table = self.table.lock();
        let Some(start) = table.current.get_mut(&thread) else { return false };
        if start.phase != from {
            return false;
        }
        start.phase = to;
        true
    }

    /// Notes that a thread has finished a start.
    pub(super) fn end(&self, thread: ThreadNumber) -> StartResult {
        let mut table = self.table.lock();
        let Some(start) = table.current.remove(&thread) else {
            return StartResult { given_up: false, is_spare: false };
        };
        if start.hangs {
            table.hung -= 1;
        }
        let is_spare = table.threads > self.size + table.hung;
        if is_spare {
            table.threads -= 1;
        }
        StartResult { given_up: start.phase == Phase::GivenUp, is_spare }
    }

    /// Gives up the starts that took too long, and hanging starts of stopped attempts, and returns
    /// them. `kill` kills the process that a thread is creating, and returns whether there was one
    /// that had not executed its program.
    pub(super) fn give_up(
        &self,
        now: Instant,
        is_stopped: impl Fn(AttemptId) -> bool,
        kill: impl Fn(Pid) -> bool,
    ) -> Vec<(AttemptId, Hang)> {
        let mut given_up = Vec::new();
        for start in self.table.lock().current.values_mut() {
            let took = now.saturating_duration_since(start.since);
            if took < LIMIT && !(start.hangs && is_stopped(start.attempt)) {
                continue;
            }
            let may = match start.phase {
                Phase::Preparing => true,
                // The lock keeps the thread from reporting anything before this.
                Phase::Spawning => kill(start.thread_id),
                Phase::Spawned | Phase::GivenUp => false,
            };
            if may {
                start.phase = Phase::GivenUp;
                given_up.push((start.attempt, Hang { path: start.path.clone(), since: took }));
            }
        }
        given_up
    }

    /// Returns whether any start is in progress.
    pub(super) fn is_busy(&self) -> bool {
        !self.table.lock().current.is_empty()
    }

    /// Returns why nothing more is started now.
    pub(super) fn trouble(&self) -> Option<String> {
        let table = self.table.lock();
        if table.hung < PROCESS_STARTS_HUNG_MAX {
            return None;
        }
        let first = table.current.values().filter(|start| start.hangs).min_by_key(|s| s.since)?;
        Some(format!(
            "{} starts of commands hang (PROCESS_STARTS_HUNG_MAX), the first one at {}, which does \
             not answer; repair that file system, or unmount it with `umount --force --lazy`",
            table.hung,
            first.path.display()
        ))
    }

    /// Returns the number of threads that do not hang.
    #[cfg(test)]
    fn healthy(&self) -> usize {
        let table = self.table.lock();
        table.threads - table.hung
    }
}

#[cfg(test)]
mod tests {
    use podmesh_protocol::ids::JobId;

    use super::*;

    const PATH: &str = "/mnt/nfs";

    fn attempt(index: usize) -> AttemptId {
        AttemptId::new(JobId(1), u32::try_from(index).unwrap_or(u32::MAX), 1)
    }

    fn begun(starts: &Starts, thread: ThreadNumber, index: usize, since: Instant) {
        starts.begin(thread, attempt(index), since);
        assert_eq!(starts.touch(thread, Path::new(PATH)), Ok(()));
    }

    #[test]
    fn a_hanging_thread_is_replaced_and_is_superfluous_when_it_returns() {
        let starts = Starts::new(2);
        let now = Instant::now();
        let threads = starts.missing(now);
        assert_eq!((threads.len(), starts.missing(now).len()), (2, 0));
        begun(&starts, threads[0], 0, now);
        assert_eq!(starts.missing(now + SLOW / 2).len(), 0);
        let other = starts.missing(now + SLOW);
        assert_eq!((other.len(), starts.missing(now + SLOW).len()), (1, 0));
        // Other starts do not access this path, but can access other paths.
        starts.begin(other[0], attempt(1), now);
        assert!(
            starts.touch(other[0], Path::new(PATH)).is_err_and(|hang| hang.path == Path::new(PATH))
        );
        assert_eq!(starts.touch(other[0], Path::new("/mnt/other")), Ok(()));
        assert_eq!(starts.end(other[0]), StartResult { given_up: false, is_spare: false });
        assert_eq!(starts.end(threads[0]), StartResult { given_up: false, is_spare: true });
        assert_eq!((starts.healthy(), starts.missing(now + SLOW).len()), (2, 0));
    }

    #[test]
    fn a_start_that_takes_too_long_is_given_up_once_and_never_runs() {
        let starts = Starts::new(3);
        let now = Instant::now();
        let [preparing, spawning, spawned] = starts.missing(now)[..] else { return };
        for (index, thread) in [preparing, spawning, spawned].into_iter().enumerate() {
            begun(&starts, thread, index, now);
        }
        assert!(starts.may_spawn(spawning) && starts.may_spawn(spawned));
        assert!(starts.spawned(spawned));
        let given_up = |later: Duration, kills: bool| {
            let all = starts.give_up(now + later, |_| false, |_| kills);
            all.into_iter().map(|(attempt, _)| attempt.task.index).collect::<Vec<_>>()
        };
        assert!(given_up(LIMIT - SLOW, true).is_empty());
        assert_eq!(given_up(LIMIT, false), [0], "the other process is not found yet");
        assert_eq!(given_up(LIMIT, true), [1]);
        assert!(given_up(LIMIT, true).is_empty());
        assert!(!starts.may_spawn(preparing), "it must not create a process");
        assert!(!starts.spawned(spawning));
        for (thread, is_given_up) in [(preparing, true), (spawning, true), (spawned, false)] {
            assert_eq!(starts.end(thread).given_up, is_given_up);
        }
    }

    #[test]
    fn the_start_of_a_stopped_attempt_is_given_up_as_soon_as_it_hangs() {
        let starts = Starts::new(1);
        let now = Instant::now();
        begun(&starts, starts.missing(now)[0], 7, now);
        let is_stopped = |stopped: AttemptId| stopped == attempt(7);
        assert_eq!(starts.give_up(now + SLOW, is_stopped, |_| true), [], "it is not known to hang");
        assert_eq!(starts.missing(now + SLOW).len(), 1);
        assert_eq!(starts.give_up(now + SLOW, |_| false, |_| true), []);
        assert_eq!(starts.give_up(now + SLOW, is_stopped, |_| true).len(), 1);
    }

    #[test]
    fn the_number_of_hanging_threads_is_limited_and_the_reason_is_reported() {
        let starts = Starts::new(2);
        let mut now = Instant::now();
        let mut index = 0;
        let mut threads = Vec::new();
        loop {
            let more = starts.missing(now);
            if more.is_empty() {
                break;
            }
            for thread in more {
                starts.begin(thread, attempt(index), now);
                // Each start uses a different path.
                assert_eq!(starts.touch(thread, Path::new(&format!("{PATH}/{index}"))), Ok(()));
                threads.push(thread);
                index += 1;
            }
            now += SLOW;
        }
        assert_eq!(threads.len(), PROCESS_STARTS_HUNG_MAX + 2);
        let trouble = starts.trouble().unwrap_or_default();
        assert!(trouble.contains(PATH) && trouble.contains("PROCESS_STARTS_HUNG_MAX"), "{trouble}");
        // One has returned, and another one that waited hangs now.
        for thread in &threads[..3] {
            starts.end(*thread);
        }
        assert_eq!(starts.trouble(), None);
        for thread in &threads[3..] {
            starts.end(*thread);
        }
        assert_eq!((starts.healthy(), starts.is_busy()), (2, false));
    }
}
