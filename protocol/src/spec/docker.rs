//! The options of a container, and the rules for them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{SpecError, absolute_path, at_most, no_nul, within};
use crate::ids::Name;
use crate::limits::*;

/// The options of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerSpec {
    /// The image, as `docker run` takes it.
    pub image: String,
    /// Replaces the image's entrypoint; an empty list removes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// `user[:group]`, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Folders and files of the node that the container sees; the node must allow each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Named volumes of the node; a volume that is missing is created.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMount>,
    /// Folders in memory, by absolute path, with their mount options, such as `size=64m`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tmpfs: BTreeMap<String, String>,
    /// Whether the container may only read its own file system. It can still write to volumes,
    /// writable mounts and `tmpfs`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// The network; default `bridge`.
    #[serde(default)]
    pub network: NetworkMode,
    /// Networks of the node that the container joins instead of the default one, each with the
    /// further names under which its other containers find this one. A network that is missing is
    /// created; one that no container uses any more is removed. Only with the network `bridge`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<Name, Vec<String>>,
    /// The host name inside the container; default: one that Docker makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Further lines of `/etc/hosts`, each `name:ip` or `name:host-gateway` (the node).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<String>,
    /// When the image is pulled.
    #[serde(default)]
    pub pull: PullPolicy,
    /// Capabilities in addition to the node's default ones, as capabilities(7) names them, without
    /// `CAP_`; the node must allow each that is not one of its default ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Default capabilities that the container does not get; `ALL` for all of them. Those in
    /// `cap_add` are added afterwards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// Security options, as `docker run --security-opt` takes them; the node must allow each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub security_opt: Vec<String>,
    /// Devices of the node, each `/dev/x[:/dev/y[:rwm]]` (see [`DeviceMapping`]); the node must
    /// allow each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// The limit of processes and threads; default: the node's own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Further limits, by their names in Docker, such as `nofile`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Bytes of `/dev/shm`; default: 64 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<u64>,
    /// Whether process 1 is a small init, which passes on signals and reaps orphans.
    #[serde(default, skip_serializing_if = "is_false")]
    pub init: bool,
    /// Whether the program gets a terminal. Its output is then one stream: `stdout`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tty: bool,
    /// The signal that asks the program to end, such as `SIGINT`; default: the image's, else
    /// `SIGTERM`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Labels of the container, for other programs. None begins with `podmesh.`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The platform of the image, as `os[/architecture[/variant]]`, for example `linux/arm64`;
    /// default: that of the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A folder or file of the node inside a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Path on the node; absolute, without `..`.
    pub source: String,
    /// Path in the container; absolute.
    pub target: String,
    /// Whether the container may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// A named volume inside a container. It stays on its node until somebody removes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The volume. In Docker it is `podmesh-<volume>`.
    pub volume: Name,
    /// Path in the container; absolute.
    pub target: String,
    /// Whether the container may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// A limit of a container's processes; -1 means unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// The limit that applies. A process can raise it up to `hard`.
    pub soft: i64,
    /// The maximum of `soft`.
    pub hard: i64,
}

/// The network of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// Docker's default bridge.
    #[default]
    Bridge,
    /// Loopback only.
    None,
    /// The network of the node; the node must allow it.
    Host,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// If the node does not have it.
    #[default]
    Missing,
    /// Before every start.
    Always,
    /// Never: the attempt fails if the node does not have the image.
    Never,
}

/// A device of the node in a container, written `/dev/x[:/dev/y[:rwm]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMapping {
    /// Path on the node, below `/dev`.
    pub source: String,
    /// Path in the container; default: the same.
    pub target: String,
    /// What the container may do with it: `r` (read), `w` (write), `m` (make a node of it); default:
    /// all three.
    pub access: String,
}

impl FromStr for DeviceMapping {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || SpecError::Text {
            field: "devices",
            why: format!(
                "`{}` is not a device; write /dev/NAME, /dev/NAME:/dev/OTHER or /dev/NAME:/dev/OTHER:rwm",
                text.escape_debug()
            ),
        };
        let mut parts = text.split(':');
        let source = parts.next().unwrap_or_default();
        let target = parts.next().unwrap_or(source);
        let access = parts.next().unwrap_or("rwm");
        let below_dev = source
            .strip_prefix("/dev/")
            .is_some_and(|below| below.split('/').all(|part| !matches!(part, "" | "." | "..")));
        let mut seen = String::new();
        for letter in access.chars() {
            if !matches!(letter, 'r' | 'w' | 'm') || seen.contains(letter) {
                return Err(wrong());
            }
            seen.push(letter);
        }
        if !below_dev || seen.is_empty() || parts.next().is_some() || !target.starts_with('/') {
            return Err(wrong());
        }
        absolute_path("devices", source)?;
        absolute_path("devices", target)?;
        Ok(Self { source: source.into(), target: target.into(), access: access.into() })
    }
}

/// In an extra host, stands for the address of the node as its containers reach it.
pub const HOST_GATEWAY: &str = "host-gateway";

/// The limits that Docker can set.
const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// The signals with names, without `SIG`.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The labels of podmesh itself begin with this.
const OWN_LABELS: &str = "podmesh.";

fn wrong(field: &'static str, why: String) -> Result<(), SpecError> {
    Err(SpecError::Text { field, why })
}

/// Checks that a text is neither empty nor contains a control character.
fn plain(field: &'static str, text: &str) -> Result<(), SpecError> {
    if text.is_empty() {
        return Err(SpecError::Empty { field });
    }
    if text.chars().any(char::is_control) {
        return wrong(field, format!("`{}` contains a control character", text.escape_debug()));
    }
    Ok(())
}

/// Returns whether a text is the name of a host: parts of letters, digits and `-`, with dots between
/// them.
fn is_host_name(text: &str) -> bool {
    let part = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

fn is_signal(text: &str) -> bool {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let real_time = |rest: &str, sign: char| match rest.strip_prefix(sign) {
        Some(number) => number.parse::<u8>().is_ok_and(|number| (1..=30).contains(&number)),
        None => rest.is_empty(),
    };
    SIGNALS.contains(&name)
        || name.strip_prefix("RTMIN").is_some_and(|rest| real_time(rest, '+'))
        || name.strip_prefix("RTMAX").is_some_and(|rest| real_time(rest, '-'))
        || text.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number))
}

impl DockerSpec {
    pub(super) fn validate(&self) -> Result<(), SpecError> {
        if self.image.is_empty() {
            return Err(SpecError::Empty { field: "image" });
        }
        at_most("image", self.image.len(), "bytes", IMAGE_BYTES_MAX, "IMAGE_BYTES_MAX")?;
        if let Some(c) = self.image.chars().find(|c| c.is_whitespace() || c.is_control()) {
            return wrong("image", format!("`{}` contains {c:?}", self.image.escape_debug()));
        }
        for part in self.entrypoint.iter().flatten() {
            no_nul("entrypoint", part)?;
        }
        let entrypoint = self.entrypoint.iter().flatten().map(|part| part.len() + 1).sum();
        at_most("entrypoint", entrypoint, "bytes", COMMAND_BYTES_MAX, "COMMAND_BYTES_MAX")?;
        if let Some(user) = &self.user {
            if user.is_empty() {
                return Err(SpecError::Empty { field: "user" });
            }
            at_most("user", user.len(), "bytes", NAME_BYTES_MAX, "NAME_BYTES_MAX")?;
            no_nul("user", user)?;
        }
        if self.pids == Some(0) {
            return wrong("pids", "must be at least 1".into());
        }
        if let Some(platform) = &self.platform {
            at_most("platform", platform.len(), "bytes", NAME_BYTES_MAX, "NAME_BYTES_MAX")?;
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-');
            if platform.is_empty() || !platform.bytes().all(plain) {
                let platform = platform.escape_debug();
                let why = format!("`{platform}` is not a platform; use one such as linux/arm64");
                return wrong("platform", why);
            }
        }
        if let Some(signal) = self.stop_signal.as_deref().filter(|signal| !is_signal(signal)) {
            let signal = signal.escape_debug();
            let why = format!("`{signal}` is not a signal; use one such as SIGINT");
            return wrong("stop_signal", why);
        }
        if let Some(bytes) = self.shm_size {
            let range = 1..=i128::from(MEMORY_BYTES_MAX);
            within("shm_size (bytes)", bytes, range, Some("MEMORY_BYTES_MAX"))?;
        }
        self.validate_rights()?;
        self.validate_file_system()?;
        self.validate_hosts()?;
        self.validate_ulimits()?;
        self.validate_labels()?;
        let bytes = self.bytes_of_lists();
        let limit = "CONTAINER_OPTIONS_BYTES_MAX";
        at_most("all options of the container", bytes, "bytes", CONTAINER_OPTIONS_BYTES_MAX, limit)
    }

    fn validate_rights(&self) -> Result<(), SpecError> {
        for (field, names, all) in
            [("cap_add", &self.cap_add, false), ("cap_drop", &self.cap_drop, true)]
        {
            at_most(field, names.len(), "names", CAPABILITIES_MAX, "CAPABILITIES_MAX")?;
            for name in names {
                let plain = name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
                if name.is_empty() || name.len() > 32 || !plain || (name == "ALL" && !all) {
                    let why = format!(
                        "`{}` is not the name of a capability; use a name such as NET_RAW",
                        name.escape_debug()
                    );
                    return wrong(field, why);
                }
            }
        }
        for (field, list) in [("security_opt", &self.security_opt), ("devices", &self.devices)] {
            at_most(field, list.len(), "entries", CONTAINER_OPTIONS_MAX, "CONTAINER_OPTIONS_MAX")?;
            list.iter().try_for_each(|entry| plain(field, entry))?;
        }
        self.devices.iter().try_for_each(|device| device.parse::<DeviceMapping>().map(drop))
    }

    fn validate_file_system(&self) -> Result<(), SpecError> {
        at_most("mounts", self.mounts.len(), "mounts", MOUNTS_MAX, "MOUNTS_MAX")?;
        for mount in &self.mounts {
            absolute_path("mount source", &mount.source)?;
            absolute_path("mount target", &mount.target)?;
        }
        at_most("volumes", self.volumes.len(), "volumes", MOUNTS_MAX, "MOUNTS_MAX")?;
        for volume in &self.volumes {
            absolute_path("volumes", &volume.target)?;
        }
        at_most("tmpfs", self.tmpfs.len(), "folders", MOUNTS_MAX, "MOUNTS_MAX")?;
        for (path, options) in &self.tmpfs {
            absolute_path("tmpfs", path)?;
            if options.chars().any(char::is_control) {
                let options = options.escape_debug();
                return wrong("tmpfs", format!("`{options}` contains a control character"));
            }
        }
        Ok(())
    }

    fn validate_hosts(&self) -> Result<(), SpecError> {
        if let Some(name) = self.hostname.as_deref().filter(|name| !is_host_name(name)) {
            let name = name.escape_debug();
            let why = format!("`{name}` is not the name of a host; use one such as db-1");
            return wrong("hostname", why);
        }
        self.validate_networks()?;
        let hosts = &self.extra_hosts;
        let (most, limit) = (CONTAINER_OPTIONS_MAX, "CONTAINER_OPTIONS_MAX");
        at_most("extra_hosts", hosts.len(), "hosts", most, limit)?;
        for host in hosts {
            let is_host = host.split_once(':').is_some_and(|(name, address)| {
                is_host_name(name) && (address == HOST_GATEWAY || address.parse::<IpAddr>().is_ok())
            });
            if !is_host {
                let why = format!(
                    "`{}` is not a host; write NAME:IP, such as db:10.0.0.5, or NAME:{HOST_GATEWAY}",
                    host.escape_debug()
                );
                return wrong("extra_hosts", why);
            }
        }
        Ok(())
    }

    fn validate_networks(&self) -> Result<(), SpecError> {
        at_most("networks", self.networks.len(), "networks", NETWORKS_MAX, "NETWORKS_MAX")?;
        if !self.networks.is_empty() && self.network != NetworkMode::Bridge {
            let why = "a container that joins networks cannot have another network; remove `network` or `networks`";
            return wrong("networks", why.into());
        }
        for aliases in self.networks.values() {
            let (most, limit) = (CONTAINER_OPTIONS_MAX, "CONTAINER_OPTIONS_MAX");
            at_most("networks", aliases.len(), "names", most, limit)?;
            if let Some(alias) = aliases.iter().find(|alias| !is_host_name(alias)) {
                let alias = alias.escape_debug();
                let why = format!("`{alias}` is not the name of a host; use one such as db-1");
                return wrong("networks", why);
            }
        }
        Ok(())
    }

    fn validate_ulimits(&self) -> Result<(), SpecError> {
        for (name, Ulimit { soft, hard }) in &self.ulimits {
            if !ULIMITS.contains(&name.as_str()) {
                let why = format!(
                    "there is no limit `{}`; the limits are {}",
                    name.escape_debug(),
                    ULIMITS.join(", ")
                );
                return wrong("ulimits", why);
            }
            let exceeds = *hard != -1 && (*soft == -1 || soft > hard);
            if *soft < -1 || *hard < -1 || exceeds {
                let why = format!(
                    "{name}: {soft}:{hard} is not a limit; the soft limit is at most the hard one, \
                     and -1 means unlimited"
                );
                return wrong("ulimits", why);
            }
        }
        Ok(())
    }

    fn validate_labels(&self) -> Result<(), SpecError> {
        at_most("labels", self.labels.len(), "labels", LABELS_MAX, "LABELS_MAX")?;
        for (name, value) in &self.labels {
            plain("labels", name)?;
            no_nul("labels", value)?;
            if name.starts_with(OWN_LABELS) {
                let name = name.escape_debug();
                let why = format!(
                    "`{name}` begins with `{OWN_LABELS}`, as only the labels of podmesh itself do; \
                     choose another name"
                );
                return wrong("labels", why);
            }
        }
        Ok(())
    }

    /// Returns the bytes of everything that has no limit of its own.
    fn bytes_of_lists(&self) -> usize {
        let texts = [&self.cap_add, &self.cap_drop, &self.security_opt, &self.devices];
        let maps = [&self.tmpfs, &self.labels];
        let texts = texts.into_iter().chain([&self.extra_hosts]).flatten().map(String::len);
        let maps = maps.into_iter().flatten().map(|(name, value)| name.len() + value.len());
        let mounts = self.mounts.iter().map(|mount| mount.source.len() + mount.target.len());
        let volumes =
            self.volumes.iter().map(|volume| volume.volume.as_str().len() + volume.target.len());
        let networks = self.networks.iter().map(|(network, aliases)| {
            network.as_str().len() + aliases.iter().map(String::len).sum::<usize>()
        });
        texts.chain(maps).chain(mounts).chain(volumes).chain(networks).sum()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn checked(change: impl FnOnce(&mut DockerSpec)) -> Result<(), String> {
        let mut spec = DockerSpec { image: "busybox".into(), ..DockerSpec::default() };
        change(&mut spec);
        spec.validate().map_err(|error| error.to_string())
    }

    #[test]
    fn every_option_has_a_valid_value() {
        let spec = DockerSpec {
            image: "busybox".into(),
            volumes: vec![VolumeMount {
                volume: "data".parse().unwrap(),
                target: "/d".into(),
                read_only: false,
            }],
            tmpfs: [("/run".into(), "size=64m".into()), ("/tmp".into(), String::new())].into(),
            read_only: true,
            networks: [("shop_back".parse().unwrap(), vec!["db".into(), "db-1".into()])].into(),
            hostname: Some("db-1.lan".into()),
            extra_hosts: ["db:10.0.0.5", "six:fd00::1", "node:host-gateway"].map(Into::into).into(),
            cap_add: vec!["NET_RAW".into()],
            cap_drop: vec!["ALL".into(), "CHOWN".into()],
            security_opt: vec!["seccomp=unconfined".into()],
            devices: vec!["/dev/dri/card0".into(), "/dev/a:/dev/b:r".into()],
            ulimits: [
                ("nofile".into(), Ulimit { soft: 5, hard: 9 }),
                ("memlock".into(), Ulimit { soft: -1, hard: -1 }),
            ]
            .into(),
            shm_size: Some(1 << 30),
            init: true,
            tty: true,
            stop_signal: Some("SIGRTMIN+3".into()),
            labels: [("traefik.enable".into(), "true".into())].into(),
            ..DockerSpec::default()
        };
        assert_eq!(spec.validate(), Ok(()));
        let bytes = rmp_serde::to_vec_named(&spec).unwrap();
        assert_eq!(rmp_serde::from_slice::<DockerSpec>(&bytes).unwrap(), spec);
        for signal in ["INT", "SIGKILL", "9", "RTMAX-2"] {
            assert_eq!(checked(|s| s.stop_signal = Some(signal.into())), Ok(()), "{signal}");
        }
    }

    #[test]
    fn an_invalid_option_is_an_error_that_names_the_field() {
        let one = |text: &str| vec![text.to_owned()];
        let map = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
        let limit = |name: &str, soft, hard| [(name.to_owned(), Ulimit { soft, hard })].into();
        let mount = |source: String| Mount { source, target: "/x".into(), read_only: true };
        for (said, field, says) in [
            (checked(|s| s.cap_add = one("ALL")), "cap_add", "NET_RAW"),
            (checked(|s| s.cap_drop = one("chown")), "cap_drop", "not the name"),
            (checked(|s| s.hostname = Some("a b".into())), "hostname", "a b"),
            (checked(|s| s.hostname = Some("x".repeat(64))), "hostname", "not the name"),
            (checked(|s| s.extra_hosts = one("db")), "extra_hosts", "NAME:IP"),
            (checked(|s| s.extra_hosts = one("db:web.lan")), "extra_hosts", "host-gateway"),
            (checked(|s| s.extra_hosts = vec!["a:::1".into(); 65]), "extra_hosts", "OPTIONS_MAX"),
            (
                checked(|s| s.networks = [("n".parse().unwrap(), vec!["a b".into()])].into()),
                "networks",
                "not the name of a host",
            ),
            (
                checked(|s| {
                    s.networks = [("n".parse().unwrap(), Vec::new())].into();
                    s.network = NetworkMode::None;
                }),
                "networks",
                "cannot have another network",
            ),
            (checked(|s| s.shm_size = Some(0)), "shm_size", "MEMORY_BYTES_MAX"),
            (checked(|s| s.ulimits = limit("files", 1, 1)), "ulimits", "nofile"),
            (checked(|s| s.ulimits = limit("nofile", 2, 1)), "ulimits", "2:1"),
            (checked(|s| s.ulimits = limit("nofile", -1, 5)), "ulimits", "unlimited"),
            (checked(|s| s.ulimits = limit("nofile", -2, -1)), "ulimits", "unlimited"),
            (checked(|s| s.devices = one("/etc/passwd")), "devices", "/dev/NAME"),
            (checked(|s| s.devices = one("/dev/dri/../sda")), "devices", "/dev/NAME"),
            (checked(|s| s.devices = one("/dev/")), "devices", "/dev/NAME"),
            (checked(|s| s.devices = one("/dev/a:/dev/a:rx")), "devices", "rwm"),
            (checked(|s| s.devices = one("/dev/a:b")), "devices", "/dev/NAME"),
            (checked(|s| s.devices = one("/dev/a:/dev/a:r:w")), "devices", "/dev/NAME"),
            (checked(|s| s.security_opt = one("")), "security_opt", "empty"),
            (checked(|s| s.security_opt = one("a\n")), "security_opt", "control"),
            (checked(|s| s.tmpfs = map("run", "")), "tmpfs", "absolute"),
            (checked(|s| s.tmpfs = map("/run", "a\n")), "tmpfs", "control"),
            (checked(|s| s.stop_signal = Some("SIGNAL".into())), "stop_signal", "SIGINT"),
            (checked(|s| s.stop_signal = Some("65".into())), "stop_signal", "SIGINT"),
            (checked(|s| s.labels = map("podmesh.job", "1")), "labels", "podmesh."),
            (checked(|s| s.labels = map("", "1")), "labels", "empty"),
            (checked(|s| s.mounts = vec![mount("/data/../etc".into())]), "mount source", ".."),
            (
                checked(|s| s.mounts = vec![mount(format!("/{}", "s".repeat(4000))); 64]),
                "all options",
                "CONTAINER_OPTIONS_BYTES_MAX",
            ),
        ] {
            let said = said.unwrap_err();
            assert!(said.starts_with(field) && said.contains(says), "{said:?}: {field} {says}");
        }
    }
}
