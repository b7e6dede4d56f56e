//! The children of this process: who is told of whose end, and how nothing is left of an attempt.
//!
//! Children belong to the operating-system process, not to one agent in it; so there is one table
//! and one thread for all. The thread looks at each child that has ended *before* its end is
//! taken from the kernel: as long as that has not happened, its number and its process group
//! cannot be anybody else's, and killing the rest of the group is safe.
//!
//! Descendants that left the group (`setsid`, a double fork) become children of this process when
//! their parents end, because it is a "child subreaper". They are found then, not by searching:
//! the kernel lists them under the main thread, which starts nothing itself. They are killed when
//! their attempt is over.
//!
//! Children that other code of this process has are left to it. They are told apart by their
//! process group: those have our own, attempts and what comes from them never do.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpgrp};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::mark::{Mark, Stat};

/// How long to wait for other code of this process to take note of the end of a child of its own,
/// which hides the ends of ours.
const FOREIGN_PAUSE: Duration = Duration::from_millis(5);

/// A process that was started.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) pid: Pid,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
    /// Its end.
    pub(super) exit: oneshot::Receiver<Exit>,
}

/// The end of a process.
#[derive(Debug)]
pub(super) struct Exit {
    pub(super) status: io::Result<ExitStatus>,
    pub(super) at: Instant,
    /// Tells when the killed rest of its descendants is gone; none: nothing was left.
    pub(super) leftovers: Option<oneshot::Receiver<()>>,
}

/// The one table of the process.
pub(super) struct Children {
    /// Shared by those that start a child until it is in the table.
    starting: RwLock<()>,
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    /// The agents of this process.
    agents: HashSet<Uuid>,
    /// The processes of the attempts that run.
    running: HashMap<Pid, Running>,
    marks: HashMap<Mark, Pid>,
    last_start: u64,
    /// Descendants that became our children, and live.
    orphans: HashMap<Pid, Owner>,
    /// Attempts whose process is over, and something of them is not.
    draining: Vec<Draining>,
}

struct Running {
    mark: Mark,
    /// Which start it was.
    start: u64,
    child: Child,
    exit: oneshot::Sender<Exit>,
}

/// Whose an orphan is.
#[derive(Clone, Copy)]
enum Owner {
    /// An attempt's.
    Attempt(Mark),
    /// It hides whose it is: that of one of the attempts up to and with this start.
    Before(u64),
}

struct Draining {
    group: Pid,
    mark: Mark,
    done: oneshot::Sender<()>,
}

/// The table; its thread is started with it.
pub(super) fn children() -> io::Result<&'static Children> {
    static CHILDREN: OnceLock<Children> = OnceLock::new();
    static REAPER: Mutex<bool> = Mutex::new(false);
    let children = CHILDREN.get_or_init(|| Children {
        starting: RwLock::new(()),
        table: Mutex::default(),
        changed: Condvar::new(),
    });
    let mut is_running = REAPER.lock().unwrap_or_else(PoisonError::into_inner);
    if !*is_running {
        nix::sys::prctl::set_child_subreaper(true)?;
        let main_thread = format!("/proc/self/task/{}/children", Pid::this());
        let adopted = File::open(&main_thread)
            .inspect_err(|error| {
                tracing::warn!(
                    "cannot read {main_thread}: {error}; processes that leave the group of their \
                     task are not killed with it (the kernel lacks CONFIG_PROC_CHILDREN)"
                );
            })
            .ok();
        std::thread::Builder::new()
            .name("podmesh-reaper".into())
            .spawn(move || Reaper { children, adopted }.run())?;
        *is_running = true;
    }
    Ok(children)
}

impl Children {
    fn table(&self) -> MutexGuard<'_, Table> {
        // No code that can panic leaves the table half-changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose orphans are to be recognised.
    pub(super) fn agent_lives_here(&self, agent: Uuid) {
        self.table().agents.insert(agent);
    }

    /// Starts a command in a process group of its own. Its environment carries the mark.
    pub(super) fn start(&self, command: &mut Command, mark: Mark) -> io::Result<Started> {
        let starting = self.starting.read().unwrap_or_else(PoisonError::into_inner);
        let mut child = command.spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (exit_sender, exit) = oneshot::channel();
        let mut table = self.table();
        table.last_start += 1;
        let start = table.last_start;
        table.running.insert(pid, Running { mark, start, child, exit: exit_sender });
        table.marks.insert(mark, pid);
        drop(table);
        drop(starting);
        self.changed.notify_one();
        Ok(Started { pid, stdout, stderr, exit })
    }

    /// Sends a signal to the process group of an attempt, unless its process is over.
    pub(super) fn signal(&self, mark: Mark, signal: Signal) {
        let table = self.table();
        if let Some(pid) = table.marks.get(&mark) {
            // It is in the table: its end was not taken, and the group is still its own.
            _ = killpg(*pid, signal);
        }
    }
}

struct Reaper {
    children: &'static Children,
    /// The kernel's list of what became our child.
    adopted: Option<File>,
}

impl Reaper {
    fn run(self) {
        loop {
            match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Ok(status) => {
                    if status.pid().is_none_or(|pid| !self.take_end(pid)) && !self.take_all() {
                        std::thread::sleep(FOREIGN_PAUSE);
                    }
                }
                Err(Errno::ECHILD) => self.wait_for_children(),
                Err(Errno::EINTR) => {}
                // Ended by a signal that has no name.
                Err(_) => {
                    if !self.take_all() {
                        std::thread::sleep(FOREIGN_PAUSE);
                    }
                }
            }
        }
    }

    fn wait_for_children(&self) {
        let mut table = self.children.table();
        table.orphans.clear();
        table.draining.clear();
        table.give_up_stolen();
        let has_none = |table: &mut Table| table.running.is_empty();
        drop(self.children.changed.wait_while(table, has_none));
    }

    /// Takes the ends of all known children that are over. False: there were none.
    fn take_all(&self) -> bool {
        self.find_orphans(&mut self.children.table());
        let known: Vec<Pid> = {
            let table = self.children.table();
            table.running.keys().chain(table.orphans.keys()).copied().collect()
        };
        let mut took = false;
        for pid in known.into_iter().filter(|pid| is_over(*pid)) {
            took |= self.take_end(pid);
        }
        took
    }

    /// Takes the end of a child that is over. False: it is not ours to take.
    fn take_end(&self, pid: Pid) -> bool {
        let mut table = self.children.table();
        if !table.running.contains_key(&pid) && !table.orphans.contains_key(&pid) {
            drop(table);
            // It may be about to come into the table, or be one that could not be started and
            // whose end its starter takes.
            let starting = self.children.starting.write();
            table = self.children.table();
            drop(starting);
            if !is_over(pid) {
                return true;
            }
        }
        if let Some(running) = table.running.remove(&pid) {
            self.take_running(&mut table, pid, running);
            return true;
        }
        let is_foreign = || Stat::of(pid).is_none_or(|stat| stat.group == getpgrp().as_raw());
        if !table.orphans.contains_key(&pid) && is_foreign() {
            return false;
        }
        _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        table.orphans.remove(&pid);
        self.kill_orphans(&mut table);
        table.finish_draining();
        true
    }

    fn take_running(&self, table: &mut Table, group: Pid, running: Running) {
        let Running { mark, mut child, exit, .. } = running;
        let at = Instant::now();
        table.marks.remove(&mark);
        _ = killpg(group, Signal::SIGKILL);
        let status = match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(io::Error::other("the kernel says that it goes on, and that it ended")),
            Err(error) => Err(error),
        };
        self.kill_orphans(table);
        let leftovers = table.has_leftovers(group, mark).then(|| {
            let (done, leftovers) = oneshot::channel();
            table.draining.push(Draining { group, mark, done });
            leftovers
        });
        // Without a receiver the agent of the attempt has ended.
        _ = exit.send(Exit { status, at, leftovers });
    }

    /// Kills the orphans whose attempts are over.
    fn kill_orphans(&self, table: &mut Table) {
        self.find_orphans(table);
        if table.orphans.is_empty() {
            return;
        }
        let first_running = table.running.values().map(|running| running.start).min();
        for (pid, owner) in &table.orphans {
            let goes_on = match owner {
                Owner::Attempt(mark) => table.marks.contains_key(mark),
                Owner::Before(start) => first_running.is_some_and(|first| first <= *start),
            };
            if !goes_on {
                // Ours until its end is taken: neither number can be anybody else's.
                _ = kill(*pid, Signal::SIGKILL);
                if Stat::of(*pid).is_some_and(|stat| stat.group == pid.as_raw()) {
                    _ = killpg(*pid, Signal::SIGKILL);
                }
            }
        }
    }

    /// Finds new orphans.
    fn find_orphans(&self, table: &mut Table) {
        let mut listed = self.adopted_children();
        listed.retain(|pid| !table.running.contains_key(pid) && !table.orphans.contains_key(pid));
        for pid in listed {
            let Some(stat) = Stat::of(pid) else { continue };
            if stat.group == getpgrp().as_raw() {
                continue;
            }
            let group = Pid::from_raw(stat.group);
            let draining = || table.draining.iter().find(|draining| draining.group == group);
            let by_group = table.running.get(&group).map(|running| running.mark);
            let owner = by_group
                .or_else(|| draining().map(|draining| draining.mark))
                .or_else(|| Mark::of(pid).filter(|mark| table.agents.contains(&mark.agent)))
                .map_or(Owner::Before(table.last_start), Owner::Attempt);
            table.orphans.insert(pid, owner);
        }
    }

    fn adopted_children(&self) -> Vec<Pid> {
        let Some(file) = &self.adopted else { return Vec::new() };
        let mut text = Vec::new();
        let mut block = [0; 4096];
        loop {
            match file.read_at(&mut block, text.len() as u64) {
                Ok(0) => break,
                Ok(bytes) => text.extend_from_slice(&block[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let numbers = text.split(|byte| *byte == b' ');
        numbers
            .filter_map(|number| std::str::from_utf8(number).ok()?.parse().ok())
            .map(Pid::from_raw)
            .collect()
    }
}

impl Table {
    fn has_leftovers(&self, group: Pid, mark: Mark) -> bool {
        let is_of_it = |owner: &Owner| matches!(owner, Owner::Attempt(of) if *of == mark);
        killpg(group, None).is_ok() || self.orphans.values().any(is_of_it)
    }

    /// Ends the attempts whose end somebody else has taken, so that nobody waits for it for ever.
    fn give_up_stolen(&mut self) {
        let is_stolen = |pid: &Pid, _: &mut Running| {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
            waitid(Id::Pid(*pid), flags) == Err(Errno::ECHILD)
        };
        for (_, Running { mark, exit, .. }) in self.running.extract_if(is_stolen) {
            self.marks.remove(&mark);
            let status = Err(io::Error::other("other code of the agent's process took its end"));
            _ = exit.send(Exit { status, at: Instant::now(), leftovers: None });
        }
    }

    fn finish_draining(&mut self) {
        let draining = std::mem::take(&mut self.draining);
        for one in draining {
            if self.has_leftovers(one.group, one.mark) {
                self.draining.push(one);
            } else {
                _ = one.done.send(());
            }
        }
    }
}

/// Whether a child is over, and its end not taken.
fn is_over(pid: Pid) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    match waitid(Id::Pid(pid), flags) {
        Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => false,
        // EINVAL: by a signal that has no name.
        Ok(_) | Err(_) => true,
    }
}
