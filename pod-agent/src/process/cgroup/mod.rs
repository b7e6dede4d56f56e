//! The cgroups of attempts. They limit memory and CPU time, and find every descendant of a process.
//!
//! The supervisor has one cgroup for its agent, `podmesh-<id of the agent>`, in version 2 (one tree
//! for all controllers) or in version 1 (one tree for each), and one below it for each attempt. A
//! process is created in it, or joins it before it executes its program (`spawn.rs`), so nothing
//! that it starts is ever outside. Later attempts reuse a cgroup, because creating one takes longer
//! than starting a process. One with limits is not reused: memory still cached in it would count. One
//! whose processes were killed is not reused either, because it may not allow new ones.
//!
//! CPU time is limited only after [`CPU_LIMIT_AFTER`], in version 1 by joining a tree of its own. The
//! scheduler has more work with a process in that tree: with short commands, a node would start half
//! as many.
//!
//! If cgroups cannot be created, processes run without limits; [`Cgroups::unenforced`] says so.

mod files;
mod layout;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};
use parking_lot::{Mutex, MutexGuard};
use podmesh_protocol::spec::Resources;
use uuid::Uuid;

use self::layout::{Hierarchy, Layout};
use super::spawn::CgroupJoin;

/// The prefix of the names of agents' cgroups.
const PREFIX: &str = "podmesh-";
/// The file in the agent's data directory that lists its cgroups, for the next supervisor.
const RECORD: &str = "cgroups";
/// Maximum number of cgroups that are kept for the next attempts.
const SPARES_MAX: usize = 64;
/// How long processes that a killed supervisor left may take to end.
const CLEAR_LIMIT: Duration = Duration::from_secs(5);
/// The period in microseconds in which a process may use its share of CPU time; the kernel's
/// default.
const PERIOD_US: u64 = 100_000;
/// The smallest share that the kernel accepts.
const QUOTA_US_MIN: u64 = 1_000;
/// Maximum time after its start until an attempt's CPU time is limited.
pub(super) const CPU_LIMIT_AFTER: Duration = Duration::from_micros(PERIOD_US);

/// The cgroups of one agent.
#[derive(Debug)]
pub(super) struct Cgroups {
    hierarchies: Arc<[Hierarchy]>,
    unenforced: BTreeMap<String, String>,
    record: Option<PathBuf>,
    /// The number of cores of the machine.
    cores: u32,
    pool: Mutex<Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    last: u64,
    spares: Vec<Cgroup>,
}

/// The cgroups of one attempt, with the same name in each hierarchy that it needs.
#[derive(Debug)]
pub(super) struct Cgroup {
    hierarchies: Arc<[Hierarchy]>,
    name: String,
    /// Thousandths of a core; `None` if that is not limited.
    cpu_millis: Option<u32>,
    has_memory_limit: bool,
    /// Whether [`Self::limit_cpu`] was called.
    has_cpu_limit: AtomicBool,
    /// Whether its processes were killed, so that it may not allow new ones.
    was_killed: AtomicBool,
}

impl Cgroups {
    /// Creates the cgroup of an agent, after killing everything that an earlier supervisor left in
    /// it. If that fails, there are no limits, and [`Self::unenforced`] says why.
    ///
    /// The data directory keeps the list of the agent's cgroups for the next supervisor.
    pub(super) fn open(agent_dir: Option<&Path>, agent: Uuid) -> Self {
        if let Some(agent_dir) = agent_dir {
            remove_left(agent_dir);
        }
        let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
        let cores = online.and_then(|cores| u32::try_from(cores).ok()).unwrap_or(1);
        let layout = layout::make(&format!("{PREFIX}{agent}"), cores);
        Self::with(layout, agent_dir.map(|dir| dir.join(RECORD)), cores)
    }

    fn with(layout: Layout, record: Option<PathBuf>, cores: u32) -> Self {
        let Layout { hierarchies, no_memory, no_cpu } = layout;
        let unenforced = [("memory", no_memory), ("cpus", no_cpu)];
        let unenforced = unenforced.into_iter().filter_map(|(what, why)| Some((what.into(), why?)));
        let this = Self {
            hierarchies: hierarchies.into(),
            unenforced: unenforced.collect(),
            record,
            cores,
            pool: Mutex::default(),
        };
        if let Some(record) = this.record.as_ref().filter(|_| !this.hierarchies.is_empty()) {
            let lines = this.hierarchies.iter().map(|one| format!("{}\n", one.base.display()));
            if let Err(error) = fs::write(record, lines.collect::<String>()) {
                tracing::warn!("cannot write {}: {error}", record.display());
            }
        }
        this
    }

    /// Returns which limits (`memory`, `cpus`) are not enforced, with the reason.
    pub(super) fn unenforced(&self) -> &BTreeMap<String, String> {
        &self.unenforced
    }

    /// Kills the processes in the cgroups and removes the cgroups. Blocks until that is done. No
    /// cgroup can be taken afterwards.
    pub(super) fn remove(&self) {
        let bases = self.hierarchies.iter().map(|one| one.base.as_path());
        clear_bases(bases, self.record.as_deref());
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        // No code that can panic runs while the lock is held.
        self.pool.lock()
    }

    /// Returns a cgroup with these limits, and how a process joins it. Returns
    /// `None` if there are no cgroups.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(super) fn take(&self, limits: &Resources) -> io::Result<Option<(Cgroup, Vec<CgroupJoin>)>> {
        if self.hierarchies.is_empty() {
            return Ok(None);
        }
        // A limit of all cores is no limit.
        let cpu_millis = Some(limits.cpu_millis).filter(|millis| millis / 1000 < self.cores);
        let mut cgroup = self.spare();
        cgroup.cpu_millis = cpu_millis;
        match cgroup.set_up(limits.memory_bytes) {
            Ok(files) => Ok(Some((cgroup, files))),
            Err(error) => {
                self.give_back(cgroup);
                Err(error)
            }
        }
    }

    /// Returns a spare cgroup without limits, or a new one.
    fn spare(&self) -> Cgroup {
        let mut pool = self.pool();
        if let Some(spare) = pool.spares.pop() {
            return spare;
        }
        pool.last += 1;
        Cgroup {
            hierarchies: Arc::clone(&self.hierarchies),
            name: pool.last.to_string(),
            cpu_millis: None,
            has_memory_limit: false,
            has_cpu_limit: AtomicBool::new(false),
            was_killed: AtomicBool::new(false),
        }
    }

    /// Takes back a cgroup whose processes have ended.
    pub(super) fn give_back(&self, mut cgroup: Cgroup) {
        if cgroup.is_as_new() && !cgroup.has_processes() {
            let mut pool = self.pool();
            if pool.spares.len() < SPARES_MAX {
                return pool.spares.push(cgroup);
            }
        }
        if let Err(error) = cgroup.remove() {
            // A process cannot be killed. The cgroup is removed with all others at the end.
            tracing::warn!("cannot remove the cgroup of an ended attempt: {error}");
        }
    }
}

/// Kills what an earlier supervisor of the agent left in its cgroups, and removes them. Blocks
/// until they are gone.
pub(crate) fn remove_left(agent_dir: &Path) {
    let record = agent_dir.join(RECORD);
    let Ok(text) = fs::read_to_string(&record) else { return };
    let bases = text.lines().map(Path::new).filter(|base| files::is_ours(base));
    clear_bases(bases, Some(&record));
}

fn clear_bases<'a>(bases: impl Iterator<Item = &'a Path>, record: Option<&Path>) {
    let until = Instant::now() + CLEAR_LIMIT;
    for base in bases.filter(|base| base.exists()) {
        if let Err(error) = files::clear(base, until) {
            // Keep the list, so that the next supervisor tries again.
            return tracing::error!("cannot remove the cgroups of processes: {error}");
        }
    }
    if let Some(record) = record {
        _ = fs::remove_file(record);
    }
}

impl Cgroup {
    fn dir(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.base.join(&self.name)
    }

    /// Returns the cgroup that contains all processes of the attempt, and whether it is of version
    /// 2.
    fn first(&self) -> (PathBuf, bool) {
        // `Cgroups::take` never returns an attempt's cgroup without a hierarchy.
        let first = &self.hierarchies[0];
        (self.dir(first), first.unified)
    }

    /// Creates missing cgroups and limits the memory. 0 bytes mean no limit.
    fn set_up(&mut self, memory_bytes: u64) -> io::Result<Vec<CgroupJoin>> {
        let hierarchies = Arc::clone(&self.hierarchies);
        for (number, hierarchy) in hierarchies.iter().enumerate() {
            let limits_memory = hierarchy.memory && memory_bytes > 0;
            if number > 0 && !limits_memory {
                continue;
            }
            let dir = self.dir(hierarchy);
            files::make(&dir)?;
            if limits_memory {
                self.has_memory_limit = true;
                limit_memory(&dir, hierarchy.unified, memory_bytes)?;
            }
        }
        self.joins()
    }

    /// Returns how a process joins the attempt.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(super) fn joins(&self) -> io::Result<Vec<CgroupJoin>> {
        let mut joins = Vec::new();
        for (number, hierarchy) in self.hierarchies.iter().enumerate() {
            let dir = self.dir(hierarchy);
            let limits_memory = hierarchy.memory && self.has_memory_limit;
            // In version 1 there is nothing to join before.
            let limits_cpu = hierarchy.cpu && self.has_cpu_limit.load(Ordering::Relaxed);
            if number > 0 && !limits_memory && !limits_cpu {
                continue;
            }
            joins.push(join(hierarchy, &dir)?);
        }
        Ok(joins)
    }

    /// Limits the CPU time.
    pub(super) fn limit_cpu(&self) -> io::Result<()> {
        let Some(cpu_millis) = self.cpu_millis else { return Ok(()) };
        let Some(hierarchy) = self.hierarchies.iter().find(|one| one.cpu) else { return Ok(()) };
        let dir = self.dir(hierarchy);
        let quota = quota_us(cpu_millis);
        if hierarchy.unified {
            self.has_cpu_limit.store(true, Ordering::Relaxed);
            return files::write(&dir, "cpu.max", format!("{quota} {PERIOD_US}"));
        }
        files::make(&dir)?;
        self.has_cpu_limit.store(true, Ordering::Relaxed);
        files::write(&dir, "cpu.cfs_period_us", PERIOD_US.to_string())?;
        files::write(&dir, "cpu.cfs_quota_us", quota.to_string())?;
        files::move_all(&self.first().0, &dir)
    }

    /// Returns whether the attempt has processes.
    pub(super) fn has_processes(&self) -> bool {
        let (dir, unified) = self.first();
        files::has_processes(&dir, unified)
    }

    /// Kills all processes of the attempt, which take a moment to end. Returns whether there were
    /// any.
    pub(super) fn kill(&self) -> bool {
        let lives = self.has_processes();
        if lives {
            self.was_killed.store(true, Ordering::Relaxed);
            files::kill_all(&self.first().0);
        }
        lives
    }

    /// Returns whether the kernel killed a process of the attempt for lack of memory.
    pub(super) fn was_out_of_memory(&self) -> bool {
        let limiting = self.hierarchies.iter().find(|one| one.memory && self.has_memory_limit);
        let kills = limiting.and_then(|hierarchy| {
            let file = if hierarchy.unified { "memory.events" } else { "memory.oom_control" };
            files::count(&self.dir(hierarchy), file, "oom_kill ")
        });
        kills.is_some_and(|kills| kills > 0)
    }

    /// Returns whether another attempt can use it: it has no limits, and allows processes.
    fn is_as_new(&mut self) -> bool {
        !(self.has_memory_limit || *self.has_cpu_limit.get_mut() || *self.was_killed.get_mut())
    }

    fn remove(&self) -> io::Result<()> {
        self.hierarchies.iter().try_for_each(|hierarchy| files::remove(&self.dir(hierarchy)))
    }
}

/// Returns how a process joins a cgroup.
fn join(hierarchy: &Hierarchy, dir: &Path) -> io::Result<CgroupJoin> {
    if hierarchy.creates {
        return File::open(dir).map(CgroupJoin::Folder).map_err(|error| files::at(dir, error));
    }
    // In version 1 a single thread is moved, which is far cheaper than moving a process. A process
    // that moves itself has only one thread.
    let file = dir.join(if hierarchy.unified { files::PROCESSES } else { "tasks" });
    let opened = OpenOptions::new().write(true).open(&file);
    opened.map(CgroupJoin::Write).map_err(|error| files::at(&file, error))
}

fn limit_memory(dir: &Path, unified: bool, bytes: u64) -> io::Result<()> {
    // No additional swap, as for containers. Kernels without swap do not have this file.
    let (memory, swap, swap_bytes) = if unified {
        ("memory.max", "memory.swap.max", 0)
    } else {
        ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", bytes)
    };
    files::write(dir, memory, bytes.to_string())?;
    match files::write(dir, swap, swap_bytes.to_string()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn quota_us(cpu_millis: u32) -> u64 {
    (u64::from(cpu_millis) * PERIOD_US / 1000).max(QUOTA_US_MIN)
}
