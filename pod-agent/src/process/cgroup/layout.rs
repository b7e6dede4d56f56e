//! Finds out where cgroups can be created.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::wait::waitpid;
use nix::unistd::{AccessFlags, access};

use super::super::spawn::vfork;
use super::files::{self, PROCESSES, write};
use crate::capacity::group_limit;

/// The controllers used.
const CONTROLLERS: [&str; 3] = ["pids", "memory", "cpu"];
/// Weight of one core compared to the machine's other programs.
const V1_SHARES: u32 = 1024;
const V1_SHARES_MAX: u32 = 262_144;
/// The same in version 2.
const V2_WEIGHT: u32 = 100;
const V2_WEIGHT_MAX: u32 = 10_000;

/// A tree of cgroups and its features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// The agent's cgroup. The cgroups of attempts are below it.
    pub(super) base: PathBuf,
    /// Whether it is a version 2 tree.
    pub(super) unified: bool,
    /// Whether a process can be created in one of its cgroups.
    pub(super) creates: bool,
    /// Whether it limits memory.
    pub(super) memory: bool,
    /// Whether it limits CPU time.
    pub(super) cpu: bool,
}

/// A mounted tree of cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// The controllers; `None` for version 2.
    controllers: Option<Vec<String>>,
    /// The part of the tree that is mounted.
    root: PathBuf,
    point: PathBuf,
}

/// The usable trees, and why limits are missing.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// The first one holds all processes of an attempt.
    pub(super) hierarchies: Vec<Hierarchy>,
    /// Why memory cannot be limited, if it cannot.
    pub(super) no_memory: Option<String>,
    /// Why CPU time cannot be limited, if it cannot.
    pub(super) no_cpu: Option<String>,
}

/// Creates the cgroup `name` in every tree that is needed, on a machine with this many cores.
pub(super) fn make(name: &str, cores: u32) -> Layout {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let (mounts, own) = (read("/proc/self/mountinfo"), read("/proc/self/cgroup"));
    make_in(&parse_mounts(&mounts), &own, name, cores)
}

/// Creates it in version 2 only. Returns `None` if version 2 is not mounted.
#[cfg(test)]
pub(super) fn make_version_2(name: &str, cores: u32) -> Option<Layout> {
    let mounts = parse_mounts(&fs::read_to_string("/proc/self/mountinfo").ok()?);
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mount = mounts.iter().find(|mount| mount.controllers.is_none())?;
    make_unified(mount, &own, name, cores).ok()
}

fn make_in(mounts: &[Mount], own: &str, name: &str, cores: u32) -> Layout {
    let unified = mounts.iter().find(|mount| mount.controllers.is_none());
    let unified = unified.map(|mount| make_unified(mount, own, name, cores));
    let legacy = |controller: &str| {
        mounts.iter().find(|mount| mount.has(controller)).map(|mount| (mount, mount.own_dir(own)))
    };
    let controls = |layout: &Layout| layout.hierarchies.iter().any(|one| one.memory || one.cpu);
    if CONTROLLERS.iter().all(|name| legacy(name).is_none())
        || unified.as_ref().is_some_and(|made| matches!(made, Ok(layout) if controls(layout)))
    {
        return match unified {
            Some(Ok(layout)) => layout,
            Some(Err(error)) => Layout::without(&error.to_string()),
            None => Layout::without("this machine has no cgroups mounted"),
        };
    }
    // Both versions are mounted, and version 1 has the controllers.
    if let Some(Ok(layout)) = &unified {
        for one in &layout.hierarchies {
            _ = fs::remove_dir(&one.base);
        }
    }
    let mut layout = Layout::default();
    let mut reasons = Vec::new();
    for controller in CONTROLLERS {
        let made = match legacy(controller) {
            Some((_, parent)) => make_legacy(controller, &parent, name, cores),
            None => Err(io::Error::other(format!("the controller {controller} is not mounted"))),
        };
        match made {
            Ok(base) => layout.add(controller, base),
            Err(error) => reasons.push((controller, error.to_string())),
        }
    }
    for (controller, why) in reasons {
        match controller {
            "memory" => layout.no_memory = Some(why),
            "cpu" => layout.no_cpu = Some(why),
            _ => {}
        }
    }
    layout
}

impl Layout {
    fn without(why: &str) -> Self {
        Self {
            hierarchies: Vec::new(),
            no_memory: Some(why.to_owned()),
            no_cpu: Some(why.to_owned()),
        }
    }

    fn add(&mut self, controller: &str, base: PathBuf) {
        let known = self.hierarchies.iter().position(|one| one.base == base);
        let at = known.unwrap_or_else(|| {
            let one = Hierarchy { base, unified: false, creates: false, memory: false, cpu: false };
            self.hierarchies.push(one);
            self.hierarchies.len() - 1
        });
        self.hierarchies[at].memory |= controller == "memory";
        self.hierarchies[at].cpu |= controller == "cpu";
    }
}

/// Creates a version 1 cgroup below the cgroup of this process, whose limits then also apply.
fn make_legacy(controller: &str, parent: &Path, name: &str, cores: u32) -> io::Result<PathBuf> {
    let base = parent.join(name);
    files::make(&base)?;
    if controller == "cpu" {
        let shares = V1_SHARES.saturating_mul(cores).min(V1_SHARES_MAX);
        write(&base, "cpu.shares", shares.to_string())?;
    }
    Ok(base)
}

/// Creates a version 2 cgroup as high in the tree as this user may, because a cgroup with processes
/// cannot enable controllers for the cgroups below it.
fn make_unified(mount: &Mount, own: &str, name: &str, cores: u32) -> io::Result<Layout> {
    let own_dir = mount.own_dir(own);
    let may = |dir: &Path| {
        [dir, &dir.join(PROCESSES)].iter().all(|path| access(*path, AccessFlags::W_OK).is_ok())
    };
    let above = own_dir.ancestors().take_while(|dir| dir.starts_with(&mount.point));
    let parent = above.filter(|dir| may(dir)).last().ok_or_else(|| {
        io::Error::other(format!(
            "this user may not create cgroups in {}; run the agent as root, or in a cgroup of its own \
             (systemd: Delegate=yes, DelegateSubgroup=agent)",
            own_dir.display()
        ))
    })?;
    let base = parent.join(name);
    files::make(&base)?;
    let enable = |controller: &str| -> Option<String> {
        let on = |dir| write(dir, "cgroup.subtree_control", format!("+{controller}"));
        on(parent).and_then(|()| on(&base)).err().map(|error| error.to_string())
    };
    let [_, no_memory, no_cpu] = CONTROLLERS.map(enable);
    // Best effort: if no other programs compete, the weight does not matter.
    _ = write(&base, "cpu.weight", V2_WEIGHT.saturating_mul(cores).min(V2_WEIGHT_MAX).to_string());
    if let Some(limit) = group_limit(&mount.point, own) {
        // The limit of the agent's own cgroup must apply here too, because this cgroup is not below
        // it.
        write(&base, "memory.max", limit.to_string())?;
    }
    let (memory, cpu) = (no_memory.is_none(), no_cpu.is_none());
    let creates = creates_processes(&base)?;
    let hierarchies = vec![Hierarchy { base, unified: true, creates, memory, cpu }];
    Ok(Layout { hierarchies, no_memory, no_cpu })
}

/// Returns whether this process can create processes in new cgroups below `base`.
///
/// Kernels before 5.7 cannot, and some container engines forbid it. Kernels since 6.14 kill the new
/// process if its cgroup and that of this process were not killed (`cgroup.kill`) the same number of
/// times: they mean to compare two counts of the new one. So a cgroup that was killed must not be
/// used again, and if the one of this process ever was, no process can be created elsewhere.
fn creates_processes(base: &Path) -> io::Result<bool> {
    let dir = base.join("probe");
    files::make(&dir)?;
    let folder = File::open(&dir).map_err(|error| files::at(&dir, error))?;
    let ran = Cell::new(false);
    let mut child = || {
        ran.set(true);
        0
    };
    if let Ok(pid) = vfork(&mut child, Some(folder.as_fd())) {
        // The only possible error is that other code reaped it.
        _ = waitpid(pid, None);
    }
    // If this fails, it is removed with all others at the end.
    _ = files::remove(&dir);
    Ok(ran.get())
}

impl Mount {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().flatten().any(|name| name == controller)
    }

    /// Returns the folder of a process's cgroup, according to its `/proc/PID/cgroup`.
    fn own_dir(&self, own: &str) -> PathBuf {
        let is_ours = |names: &str| match &self.controllers {
            None => names.is_empty(),
            Some(controllers) => names.split(',').any(|name| controllers.iter().any(|c| c == name)),
        };
        let path = own.lines().find_map(|line| {
            let (names, path) = line.split_once(':')?.1.split_once(':')?;
            is_ours(names).then_some(path)
        });
        // The cgroup is outside of the mounted part, as in some containers. Then the mounted root
        // is ours.
        let below = path.and_then(|path| Path::new(path).strip_prefix(&self.root).ok());
        let is_below = |path: &&Path| !path.starts_with("..");
        self.point.join(below.filter(is_below).unwrap_or(Path::new("")))
    }
}

/// Returns the cgroup mounts in a `/proc/self/mountinfo`.
fn parse_mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?.into(), place.next()?.into());
        let mut kind = kind.split(' ');
        let controllers = match kind.next()? {
            "cgroup2" => None,
            "cgroup" => Some(kind.nth(1)?.split(',').map(str::to_owned).collect()),
            _ => return None,
        };
        Some(Mount { controllers, root, point })
    };
    mountinfo.lines().filter_map(mount).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
33 30 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:31 /docker/7 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";

    #[test]
    fn mounts_and_the_cgroup_of_this_process_are_found() {
        let mounts = parse_mounts(MOUNTS);
        let own = "4:memory:/docker/7/x\n3:cpu,cpuacct:/system.slice\n0::/init.scope\n";
        let dir = |mount: &Mount| mount.own_dir(own).display().to_string();
        let dirs: Vec<_> = mounts.iter().map(dir).collect();
        let expected = [
            "/sys/fs/cgroup/unified/init.scope",
            "/sys/fs/cgroup/cpu,cpuacct/system.slice",
            "/sys/fs/cgroup/memory/x",
        ];
        assert_eq!(dirs, expected);
        assert!(mounts[1].has("cpu") && !mounts[1].has("memory") && !mounts[0].has("cpu"));
        // Outside of the mounted part, and not listed at all.
        for own in ["0::/../other\n", "4:memory:/docker/8\n", ""] {
            assert_eq!(mounts[2].own_dir(own), Path::new("/sys/fs/cgroup/memory"));
            assert_eq!(mounts[0].own_dir(own), Path::new("/sys/fs/cgroup/unified"));
        }
    }

    /// Plain folders instead of a cgroup file system, so the kernel does nothing with them.
    #[test]
    fn the_highest_cgroup_is_used_and_missing_limits_are_reported() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("user.slice/agent.service");
        fs::create_dir_all(&inner).unwrap();
        let mount = Mount { controllers: None, root: "/".into(), point: root.path().to_owned() };
        let own = "0::/user.slice/agent.service\n";
        let said = make_unified(&mount, own, "podmesh-x", 4).unwrap_err().to_string();
        assert!(said.contains("Delegate=yes"), "{said}");

        for dir in [root.path(), &inner] {
            fs::write(dir.join(PROCESSES), "").unwrap();
        }
        fs::write(root.path().join("cgroup.subtree_control"), "").unwrap();
        let layout = make_unified(&mount, own, "podmesh-x", 4).unwrap();
        let [one] = layout.hierarchies.as_slice() else { unreachable!("{layout:?}") };
        assert_eq!(one.base, root.path().join("podmesh-x"));
        assert!(one.unified && !one.memory && !one.cpu);
        assert!(layout.no_memory.unwrap().contains("cgroup.subtree_control"));
    }

    #[test]
    fn a_machine_without_cgroups_is_reported() {
        let layout = make_in(&[], "", "podmesh-x", 4);
        assert!(layout.hierarchies.is_empty());
        assert!(layout.no_memory.unwrap().contains("no cgroups"), "of memory");
        assert!(layout.no_cpu.unwrap().contains("no cgroups"), "of cpu");
    }
}
