//! Checks mounts: a container may mount only what is in the roots that the node's owner allows,
//! even while somebody renames folders and swaps symbolic links there.
//!
//! The path is resolved once, beneath the root and without following links. What was opened is then
//! [staged](super::stage) for the engine. If the agent lacks the right to do that, it refuses to
//! mount anything inside a folder that containers can write to.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bollard::models::{Mount as EngineMount, MountType};
use podmesh_protocol::ids::{AttemptId, Name};
use podmesh_protocol::spec::Mount;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use super::engine::EngineFacts;
use super::stage::{Held, Stage, is_unable};
use crate::policy::{MountRoot, NodePolicy};

/// Sockets of container engines. Access to one means control of the whole machine.
const SOCKETS: [&str; 5] = [
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
];

/// The rules and facts by which mounts are checked.
pub(super) struct MountRules<'a> {
    pub(super) node: &'a Name,
    pub(super) policy: &'a NodePolicy,
    pub(super) engine: &'a EngineFacts,
    /// The agent's data directory, which contains its key.
    pub(super) data_dir: &'a Path,
    pub(super) stage: &'a Stage,
}

impl MountRules<'_> {
    /// Returns a mount in the engine's form, with the staged mount to keep until the engine has
    /// mounted it.
    ///
    /// # Errors
    /// Why it is not allowed or not possible, as a message for people.
    pub(super) fn mount(
        &self,
        mount: &Mount,
        attempt: AttemptId,
        index: usize,
    ) -> Result<(EngineMount, Option<Held>), String> {
        let node = self.node;
        let cannot = |error: io::Error| {
            format!("cannot mount {}: {error}; the path must exist on node {node}", mount.source)
        };
        let source = Path::new(&mount.source).canonicalize().map_err(cannot)?;
        let (root, root_path) = self.root_of(&source).ok_or_else(|| {
            format!(
                "node {node} does not allow mounting {}{}: allowed roots: {}; the node's owner can change agent.toml",
                mount.source,
                if source == Path::new(&mount.source) { String::new() } else { format!(" (which is {})", source.display()) },
                self.roots()
            )
        })?;
        if !mount.read_only && !root.writable {
            return Err(format!(
                "node {node} does not allow mounting {} writable: allowed roots: {}; mount it \
                 read-only, or ask the node's owner to change agent.toml",
                mount.source,
                self.roots()
            ));
        }
        let opened = open_beneath(&root_path, &source).map_err(cannot)?;
        self.forbid_secrets(mount, &source)?;
        if mount.read_only
            && !self.engine.read_only_is_recursive
            && let Some(inner) = mounted_below(&source)
        {
            return Err(format!(
                "cannot mount {} read-only on node {node}: {} is mounted inside it, and this \
                 version of Docker would leave that writable; mount folders that contain no other \
                 file system",
                mount.source,
                inner.display()
            ));
        }
        let held = match self.stage.hold(attempt, index, &opened) {
            Ok(held) => Some(held),
            Err(error) if is_unable(&error) => {
                self.forbid_races(mount, &source)?;
                None
            }
            Err(error) => return Err(format!("cannot mount {}: {error}", mount.source)),
        };
        let path = held.as_ref().map_or(source.as_path(), Held::path);
        let path = path.to_str().ok_or_else(|| {
            format!("cannot mount {}: its path {} is not UTF-8", mount.source, path.display())
        })?;
        let engine_mount = EngineMount {
            typ: Some(MountType::BIND),
            source: Some(path.to_owned()),
            target: Some(mount.target.clone()),
            read_only: Some(mount.read_only),
            ..EngineMount::default()
        };
        Ok((engine_mount, held))
    }

    /// Refuses mounts that are never allowed, whatever the roots.
    fn forbid_secrets(&self, mount: &Mount, source: &Path) -> Result<(), String> {
        let node = self.node;
        if let Some(socket) = self.sockets().find(|socket| socket.starts_with(source)) {
            return Err(format!(
                "node {node} never allows mounting {}: it contains {}, which gives control of the whole machine",
                mount.source,
                socket.display()
            ));
        }
        let own = self.data_dir.canonicalize().unwrap_or_else(|_| self.data_dir.into());
        if own.starts_with(source) || source.starts_with(&own) {
            return Err(format!(
                "node {node} never allows mounting {}: the agent's own key is in {}",
                mount.source,
                own.display()
            ));
        }
        Ok(())
    }

    /// Refuses a mount that cannot be staged if containers can write above it: they could swap it
    /// for a symbolic link before the engine mounts it.
    fn forbid_races(&self, mount: &Mount, source: &Path) -> Result<(), String> {
        let above = |root: &&MountRoot| {
            let Ok(path) = root.path.canonicalize() else { return false };
            root.writable && source != path && source.starts_with(path)
        };
        match self.policy.mount_roots.iter().find(above) {
            None => Ok(()),
            Some(root) => Err(format!(
                "node {} does not allow mounting {}: containers can write in {}, and could swap it while it is mounted; the node's owner can list the folder itself in mount_roots, or run the agent as root",
                self.node,
                mount.source,
                root.path.display()
            )),
        }
    }

    /// Returns the root that contains the path, and the root's real path. If several do, prefers a
    /// writable one.
    fn root_of(&self, source: &Path) -> Option<(&MountRoot, PathBuf)> {
        let paths = self.policy.mount_roots.iter().filter_map(|root| {
            let path = root.path.canonicalize().ok().filter(|path| source.starts_with(path))?;
            Some((root, path))
        });
        paths.max_by_key(|(root, _)| root.writable)
    }

    fn roots(&self) -> String {
        let shown = self.policy.mount_roots.iter().map(|root| {
            format!("{}{}", root.path.display(), if root.writable { "" } else { " (read-only)" })
        });
        let shown: Vec<_> = shown.collect();
        if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
    }

    fn sockets(&self) -> impl Iterator<Item = PathBuf> {
        let known = SOCKETS.iter().map(PathBuf::from).chain(self.engine.socket.clone());
        known.filter_map(|socket| socket.canonicalize().ok())
    }
}

/// Opens a path that was found to be inside a root, without following links (openat2(2)). Fails if
/// something was swapped for a symbolic link in the meantime.
fn open_beneath(root: &Path, source: &Path) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let no_links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let root_file = openat2(CWD, root, flags, Mode::empty(), no_links)?;
    let below = source.strip_prefix(root).map_err(io::Error::other)?;
    if below.as_os_str().is_empty() {
        return Ok(root_file.into());
    }
    let beneath = no_links | ResolveFlags::BENEATH;
    Ok(openat2(root_file, below, flags, Mode::empty(), beneath)?.into())
}

/// Returns a mount point below `path`, if there is one.
fn mounted_below(path: &Path) -> Option<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    points.map(PathBuf::from).find(|point| point != path && point.starts_with(path))
}

/// Decodes the escapes of `mountinfo`.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_protocol::ids::JobId;

    use super::*;

    fn engine(socket: Option<PathBuf>) -> EngineFacts {
        EngineFacts { socket, ..EngineFacts::default() }
    }

    fn check(
        roots: &[(&Path, bool)],
        source: &Path,
        read_only: bool,
        engine: &EngineFacts,
    ) -> Result<EngineMount, String> {
        let policy = NodePolicy {
            mount_roots: roots
                .iter()
                .map(|(path, writable)| MountRoot { path: path.to_path_buf(), writable: *writable })
                .collect(),
            ..NodePolicy::default()
        };
        let node = "n1".parse().unwrap();
        let mount =
            Mount { source: source.to_str().unwrap().into(), target: "/x".into(), read_only };
        let rules = MountRules {
            node: &node,
            policy: &policy,
            engine,
            data_dir: Path::new("/nowhere/agent"),
            stage: &Stage::unable(),
        };
        rules.mount(&mount, AttemptId::new(JobId(1), 1, 1), 0).map(|(mount, _)| mount)
    }

    #[test]
    fn mounts_stay_inside_their_roots() {
        let dir = tempfile::tempdir().unwrap();
        let [read, write, other] = ["read", "write", "other"].map(|name| dir.path().join(name));
        for folder in [&read, &write, &other] {
            std::fs::create_dir(folder).unwrap();
        }
        std::os::unix::fs::symlink(&other, write.join("link")).unwrap();
        let sock = other.join("engine.sock");
        std::fs::write(&sock, "").unwrap();
        let engine = engine(Some(sock.clone()));
        let roots = [(read.as_path(), false), (write.as_path(), true)];
        assert!(check(&roots, &read, true, &engine).is_ok());
        assert!(check(&roots, &write, false, &engine).is_ok());
        assert!(check(&roots, &read, false, &engine).unwrap_err().contains("writable"));
        let said = check(&roots, &other, true, &engine).unwrap_err();
        assert!(said.contains("does not allow mounting") && said.contains("agent.toml"), "{said}");
        let said = check(&roots, &write.join("link"), true, &engine).unwrap_err();
        assert!(said.contains("which is") && said.contains("other"), "{said}");
        let said = check(&roots, &write.join("none"), true, &engine).unwrap_err();
        assert!(said.contains("must exist"), "{said}");
        assert!(check(&[], &read, true, &engine).unwrap_err().contains("allowed roots: none"));
        // A sibling whose name has the root's name as a prefix is not inside.
        let alike = dir.path().join("write2");
        std::fs::create_dir(&alike).unwrap();
        assert!(check(&roots, &alike, true, &engine).is_err());
        let all = [(dir.path(), true)];
        for socket in [&sock, &other] {
            assert!(check(&all, socket, true, &engine).unwrap_err().contains("never allows"));
        }
    }

    #[test]
    fn without_staging_nothing_is_mounted_that_a_container_could_swap() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let engine = engine(None);
        for read_only in [true, false] {
            let said = check(&[(dir.path(), true)], &inner, read_only, &engine).unwrap_err();
            assert!(said.contains("could swap it") && said.contains("mount_roots"), "{said}");
        }
        assert!(check(&[(dir.path(), false)], &inner, true, &engine).is_ok());
        assert!(check(&[(&inner, true)], &inner, false, &engine).is_ok());
        let both = [(dir.path(), true), (&inner, true)];
        assert!(
            check(&both, &inner, false, &engine).is_err(),
            "listed, but can be swapped from above"
        );
    }

    #[test]
    fn the_agents_own_folder_is_never_mounted() {
        for source in ["/", "/nowhere", "/nowhere/agent", "/nowhere/agent/work"] {
            let (node, policy, engine) =
                ("n1".parse().unwrap(), NodePolicy::default(), engine(None));
            let rules = MountRules {
                node: &node,
                policy: &policy,
                engine: &engine,
                data_dir: Path::new("/nowhere/agent"),
                stage: &Stage::unable(),
            };
            let mount = Mount { source: source.into(), target: "/x".into(), read_only: true };
            let said = rules.forbid_secrets(&mount, Path::new(source)).unwrap_err();
            assert!(said.contains("never allows"), "{said}");
        }
    }

    #[test]
    fn a_link_swapped_in_after_the_check_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("root");
        let inner = root.join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        open_beneath(&root, &inner).unwrap();
        std::fs::rename(root.join("a"), root.join("c")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("a")).unwrap();
        assert!(open_beneath(&root, &root.join("a/ssl")).is_err());
        assert!(open_beneath(&root, &root.join("a")).is_err());
        assert!(open_beneath(&root, &root.join("c/../../root")).is_err());
    }

    #[test]
    fn a_file_system_mounted_inside_is_found() {
        assert!(mounted_below(Path::new("/")).is_some());
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(mounted_below(dir.path()), None);
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }
}
