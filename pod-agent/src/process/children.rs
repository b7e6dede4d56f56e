//! Manages the children of this process: delivers their ends, and leaves no process of an ended
//! attempt behind.
//!
//! Children belong to the operating-system process, not to one agent in it, so there is one table
//! and one thread for all. The thread looks at each child that has ended *before* it is reaped.
//! Until then, its process id and its process group cannot belong to another process, so it is safe
//! to kill the rest of the group.
//!
//! Descendants that left the group (`setsid`, a double fork) become children of this process when
//! their parents end, because it is a "child subreaper". They are found without a search: the
//! kernel lists them under the main thread, which starts nothing itself. They are killed when their
//! attempt has ended. With cgroups this is not needed: everything left in the attempt's cgroup is
//! killed, no matter how it hides.
//!
//! The children of other code in this process are left alone. They are recognised by their process
//! group: they are in this process's group, and attempts and their descendants never are.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpgrp};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::process::{Pid as RawPid, WaitOptions};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::cgroup::Cgroup;
use super::mark::{Mark, Stat};
use super::spawn::{Launch, SpawnError, SpawnedProcess, spawn};

/// How long to wait for other code of this process to reap a child of its own that has ended. Until
/// then, that child hides the ends of ours.
const FOREIGN_PAUSE: Duration = Duration::from_millis(5);

/// A running process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: Pid,
    /// The other end of its standard output.
    pub(super) stdout: OwnedFd,
    /// The other end of its standard error.
    pub(super) stderr: OwnedFd,
    /// Delivers its end.
    pub(super) exit: oneshot::Receiver<Exit>,
}

/// The end of a process.
#[derive(Debug)]
pub(super) struct Exit {
    pub(super) status: io::Result<ExitStatus>,
    pub(super) at: Instant,
    /// Notifies when the killed rest of its descendants is gone; `None` if nothing was left.
    pub(super) leftovers: Option<oneshot::Receiver<()>>,
}

/// The only table of this process.
pub(super) struct Children {
    table: Mutex<Table>,
    changed: Condvar,
    /// The standard input of all processes.
    null: File,
}

#[derive(Default)]
struct Table {
    /// The agents of this process.
    agents: HashSet<Uuid>,
    /// The processes of the attempts that run.
    running: HashMap<Pid, Leader>,
    marks: HashMap<Mark, Pid>,
    last_start: u64,
    /// Starts whose process is not in the table yet. It may already have started others.
    starting: BTreeSet<u64>,
    /// Whether an attempt without a cgroup was started. Orphans matter only then.
    has_no_cgroups: bool,
    /// Live descendants that became children of this process.
    orphans: HashMap<Pid, Owner>,
    /// Attempts whose process has ended, but not all of its descendants.
    draining: Vec<Remainder>,
}

/// The process of an attempt, which leads its process group.
struct Leader {
    mark: Mark,
    /// The number of its start.
    start: u64,
    cgroup: Option<Arc<Cgroup>>,
    exit: oneshot::Sender<Exit>,
}

/// The attempt that an orphan belongs to.
#[derive(Clone, Copy)]
enum Owner {
    /// This attempt.
    Attempt(Mark),
    /// Unknown, because the process hides it: one of the attempts up to and including this start.
    Before(u64),
}

/// What is left of an attempt whose process has ended. It was already killed.
struct Remainder {
    group: Pid,
    mark: Mark,
    cgroup: Option<Arc<Cgroup>>,
    done: oneshot::Sender<()>,
}

/// Returns the table. Its thread is started with it.
pub(super) fn children() -> io::Result<&'static Children> {
    static CHILDREN: OnceLock<Children> = OnceLock::new();
    static REAPER: Mutex<bool> = Mutex::new(false);
    let null = File::open("/dev/null")?;
    let children = CHILDREN.get_or_init(|| Children {
        table: Mutex::default(),
        changed: Condvar::new(),
        null,
    });
    let mut is_running = REAPER.lock();
    if !*is_running {
        nix::sys::prctl::set_child_subreaper(true)?;
        let main_thread = children_file(Pid::this());
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
        self.table.lock()
    }

    /// Adds an agent whose orphans must be recognised.
    pub(super) fn agent_lives_here(&self, agent: Uuid) {
        self.table().agents.insert(agent);
    }

    /// Starts a program in its own process group. Its environment contains the mark.
    pub(super) fn start(
        &self,
        launch: &Launch,
        mark: Mark,
        cgroup: Option<Arc<Cgroup>>,
    ) -> Result<Process, SpawnError> {
        let has_no_cgroup = launch.cgroups.is_empty();
        let start = self.table().begin(has_no_cgroup);
        let spawned = spawn(launch, &self.null);
        let (exit_sender, exit) = oneshot::channel();
        let mut table = self.table();
        table.starting.remove(&start);
        let SpawnedProcess { pid, stdout, stderr } = spawned?;
        table.running.insert(pid, Leader { mark, start, cgroup, exit: exit_sender });
        table.marks.insert(mark, pid);
        drop(table);
        self.changed.notify_one();
        Ok(Process { pid, stdout, stderr, exit })
    }

    /// Kills the child that a thread is starting, unless it already executes its program. Returns
    /// whether there was such a child.
    pub(super) fn kill_starting(&self, thread: Pid) -> bool {
        let table = self.table();
        // Running programs are children of the same thread.
        let mut starting = listed_children(thread);
        starting.retain(|pid| !table.running.contains_key(pid) && is_this_program(*pid));
        // The process id stays valid until the child is reaped, which only its thread does.
        starting.iter().for_each(|pid| _ = kill(*pid, Signal::SIGKILL));
        !starting.is_empty()
    }

    /// Sends a signal to the process group of an attempt, unless its process has ended.
    pub(super) fn signal(&self, mark: Mark, signal: Signal) {
        let table = self.table();
        if let Some(pid) = table.marks.get(&mark) {
            // It is in the table, so it was not reaped, and the group is still its own.
            _ = killpg(*pid, signal);
            if signal == Signal::SIGKILL {
                // It may have moved to another group.
                _ = kill(*pid, signal);
            }
        }
    }
}

struct Reaper {
    children: &'static Children,
    /// The kernel's list of adopted children.
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
                // It was ended by a signal that has no name.
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
        self.children.changed.wait_while(&mut table, |table| table.running.is_empty());
    }

    /// Reaps all known children that have ended. Returns whether there were any.
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

    /// Reaps a child that has ended. Returns false if it belongs to other code.
    fn take_end(&self, pid: Pid) -> bool {
        let mut table = self.children.table();
        let is_known = table.running.contains_key(&pid)
            || table.orphans.contains_key(&pid)
            || self.adopted_children().contains(&pid);
        if !is_known && !table.starting.is_empty() {
            // It may be added to the table in a moment, or could not be started and is reaped by
            // its starter. Neither waits for other starts.
            return !self.children.changed.wait_for(&mut table, FOREIGN_PAUSE).timed_out();
        }
        if let Some(leader) = table.running.remove(&pid) {
            self.take_leader(&mut table, pid, leader);
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

    fn take_leader(&self, table: &mut Table, group: Pid, leader: Leader) {
        let Leader { mark, cgroup, exit, .. } = leader;
        let at = Instant::now();
        table.marks.remove(&mark);
        _ = killpg(group, Signal::SIGKILL);
        let status = take_status(group);
        let has_descendants = cgroup.as_ref().is_some_and(|cgroup| cgroup.kill());
        self.kill_orphans(table);
        let is_left = has_descendants || table.has_leftovers(group, mark);
        let leftovers = is_left.then(|| {
            let (done, leftovers) = oneshot::channel();
            table.draining.push(Remainder { group, mark, cgroup, done });
            leftovers
        });
        // If there is no receiver, the attempt's agent has ended.
        _ = exit.send(Exit { status, at, leftovers });
    }

    /// Kills the orphans whose attempts have ended.
    fn kill_orphans(&self, table: &mut Table) {
        self.find_orphans(table);
        if table.orphans.is_empty() {
            return;
        }
        let running = table.running.values().map(|leader| leader.start);
        let first_running = running.chain(table.starting.first().copied()).min();
        for (pid, owner) in &table.orphans {
            let goes_on = match owner {
                Owner::Attempt(mark) => table.marks.contains_key(mark),
                Owner::Before(start) => first_running.is_some_and(|first| first <= *start),
            };
            if !goes_on {
                // Both numbers stay valid until it is reaped.
                _ = kill(*pid, Signal::SIGKILL);
                if Stat::of(*pid).is_some_and(|stat| stat.group == pid.as_raw()) {
                    _ = killpg(*pid, Signal::SIGKILL);
                }
            }
        }
    }

    /// Finds new orphans.
    fn find_orphans(&self, table: &mut Table) {
        if !table.has_no_cgroups {
            return;
        }
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
        self.adopted.as_ref().map(read_children).unwrap_or_default()
    }
}

fn children_file(thread: Pid) -> String {
    format!("/proc/self/task/{thread}/children")
}

/// Returns the children of a thread, as listed by the kernel.
fn listed_children(thread: Pid) -> Vec<Pid> {
    File::open(children_file(thread)).as_ref().map(read_children).unwrap_or_default()
}

fn read_children(file: &File) -> Vec<Pid> {
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

/// Returns whether a process executes the same program as this one, so it has not executed another
/// program yet.
fn is_this_program(pid: Pid) -> bool {
    let program = |process: &str| std::fs::read_link(format!("/proc/{process}/exe")).ok();
    program(&pid.to_string()).is_some_and(|of_it| Some(of_it) == program("self"))
}

impl Table {
    /// Registers a start, and returns its number.
    fn begin(&mut self, has_no_cgroup: bool) -> u64 {
        self.has_no_cgroups |= has_no_cgroup;
        self.last_start += 1;
        self.starting.insert(self.last_start);
        self.last_start
    }

    fn has_leftovers(&self, group: Pid, mark: Mark) -> bool {
        let is_of_it = |owner: &Owner| matches!(owner, Owner::Attempt(of) if *of == mark);
        killpg(group, None).is_ok() || self.orphans.values().any(is_of_it)
    }

    /// Ends the attempts whose process was reaped by other code, so that nobody waits for them
    /// forever.
    fn give_up_stolen(&mut self) {
        let is_stolen = |pid: &Pid, _: &mut Leader| {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
            waitid(Id::Pid(*pid), flags) == Err(Errno::ECHILD)
        };
        for (_, Leader { mark, exit, cgroup, .. }) in self.running.extract_if(is_stolen) {
            self.marks.remove(&mark);
            drop(cgroup);
            let status = Err(io::Error::other("other code of the agent reaped the process"));
            _ = exit.send(Exit { status, at: Instant::now(), leftovers: None });
        }
    }

    fn finish_draining(&mut self) {
        let draining = std::mem::take(&mut self.draining);
        for one in draining {
            let lives = one.cgroup.as_ref().is_some_and(|cgroup| cgroup.kill());
            if lives || self.has_leftovers(one.group, one.mark) {
                self.draining.push(one);
            } else {
                // The receiver must be the last one with a reference to the cgroup.
                drop(one.cgroup);
                _ = one.done.send(());
            }
        }
    }
}

/// Reaps a child that has ended.
fn take_status(pid: Pid) -> io::Result<ExitStatus> {
    // The function of nix fails for signals that have no name.
    match rustix::process::waitpid(RawPid::from_raw(pid.as_raw()), WaitOptions::NOHANG)? {
        Some((_, status)) => Ok(ExitStatus::from_raw(status.as_raw())),
        None => {
            Err(io::Error::other("the kernel reports that it ended and that it is still running"))
        }
    }
}

/// Returns whether a child has ended and was not reaped.
fn is_over(pid: Pid) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    match waitid(Id::Pid(pid), flags) {
        Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => false,
        // EINVAL: it was ended by a signal that has no name.
        Ok(_) | Err(_) => true,
    }
}
