//! The policy of a node, set by its owner. The manager cannot override it.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use podmesh_protocol::ids::Name;
use podmesh_protocol::spec::{DeviceMapping, DockerSpec, NetworkMode, Resources};
use serde::Deserialize;
use wildmatch::WildMatch;

use crate::ports::{PortRange, REPLICA_PORTS_DEFAULT};

/// Default limit for the processes and threads of one container.
pub const PIDS_MAX_DEFAULT: u32 = 4096;

/// The capabilities that a container has unless the node's owner sets others: those that the official
/// images of databases and web servers need to start, and to give up root.
pub const CAPABILITIES_DEFAULT: [&str; 10] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What jobs may use on this node. By default containers may use any image, any user and named
/// volumes, but no mounts, no devices, no host network and no further capabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePolicy {
    /// Folders and files that containers may mount, with everything below them.
    pub mount_roots: Vec<MountRoot>,
    /// Whether containers may use the node's own network (`network = "host"`).
    pub allow_host_network: bool,
    /// The images that may run; empty allows all. Patterns with `*` and `?` for the whole
    /// reference, such as `busybox:1.*`, `registry.lan/team/*`, `alpine@sha256:…`. A pattern
    /// without a tag or digest matches all of them.
    pub images: Vec<String>,
    /// The users that containers may run as (a job's `user` without its group); empty allows all.
    /// The empty name `""` stands for the image's own user.
    pub users: Vec<String>,
    /// The capabilities that every container has, unless its job drops them, without `CAP_`.
    pub default_capabilities: Vec<String>,
    /// The capabilities that a job may request in addition, without `CAP_`.
    pub capabilities: Vec<String>,
    /// The devices that a job may request: patterns with `*` and `?` for the path on the node, such
    /// as `/dev/dri/*`.
    pub devices: Vec<String>,
    /// The security options that a job may request, such as `seccomp=unconfined`.
    pub security_opt: Vec<String>,
    /// Whether jobs may use named volumes.
    pub volumes: bool,
    /// The maximum cores and memory that one attempt may request. Unlimited by default.
    pub attempt_max: Resources,
    /// The maximum processes and threads of one container.
    pub pids_max: u32,
    /// The ports of this node that replicas of services get. `None`: the node takes no replicas
    /// with ports.
    pub replica_ports: Option<PortRange>,
}

impl Default for NodePolicy {
    fn default() -> Self {
        Self {
            mount_roots: vec![],
            allow_host_network: false,
            images: vec![],
            users: vec![],
            default_capabilities: CAPABILITIES_DEFAULT.map(Into::into).into(),
            capabilities: vec![],
            devices: vec![],
            security_opt: vec![],
            volumes: true,
            attempt_max: Resources { cpu_millis: u32::MAX, memory_bytes: u64::MAX },
            pids_max: PIDS_MAX_DEFAULT,
            replica_ports: Some(REPLICA_PORTS_DEFAULT),
        }
    }
}

/// A folder or file of the node that containers may mount.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountRoot {
    /// Absolute path on the node. Everything below it may be mounted too.
    pub path: PathBuf,
    /// Whether containers may write there; otherwise only read-only mounts are allowed.
    #[serde(default)]
    pub writable: bool,
}

/// Ports, as ranges: `80`, `1024-65535`. Displayed in the order in which they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRanges(Vec<RangeInclusive<u16>>);

impl PortRanges {
    /// Returns whether a port is in one of the ranges.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// Parses ranges of ports.
    ///
    /// # Errors
    /// The first text that is not a port or a range of ports.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, PortRangeError> {
        texts.into_iter().map(parse_ports).collect::<Result<_, _>>().map(Self)
    }
}

/// The ports of web servers, and those that need no rights.
impl Default for PortRanges {
    fn default() -> Self {
        Self(vec![80..=80, 443..=443, 1024..=u16::MAX])
    }
}

impl fmt::Display for PortRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no ports");
        }
        f.write_str("the ports ")?;
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// The addresses on which the node's proxy listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum IngressAddress {
    /// All addresses of the machine.
    #[default]
    All,
    /// These addresses only, at least one.
    Only(Vec<IpAddr>),
    /// None: the node has no proxy.
    Off,
}

/// A text that is not an ingress address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an IP address of this machine, several with commas, \"all\" or \"off\"")]
pub struct IngressAddressError(String);

impl FromStr for IngressAddress {
    type Err = IngressAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "all" => Ok(Self::All),
            "off" => Ok(Self::Off),
            list => {
                let addresses: Result<Vec<IpAddr>, _> =
                    list.split(',').map(|ip| ip.trim().parse()).collect();
                match addresses {
                    Ok(addresses) if addresses.iter().any(IpAddr::is_unspecified) => Ok(Self::All),
                    Ok(addresses) => Ok(Self::Only(addresses)),
                    Err(_) => Err(IngressAddressError(text.to_owned())),
                }
            }
        }
    }
}

impl TryFrom<String> for IngressAddress {
    type Error = IngressAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// A text that is not a port or a range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a port or a range of ports; write for example \"80\" or \"1024-65535\"")]
pub struct PortRangeError(String);

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, PortRangeError> {
    let port = |text: &str| u16::from_str(text.trim()).ok().filter(|port| *port > 0);
    let range = match text.split_once('-') {
        Some((first, last)) => port(first).zip(port(last)),
        None => port(text).map(|port| (port, port)),
    };
    match range {
        Some((first, last)) if first <= last => Ok(first..=last),
        _ => Err(PortRangeError(text.to_owned())),
    }
}

impl NodePolicy {
    /// Checks that an attempt may request these resources.
    ///
    /// # Errors
    /// Why it may not, as a message for people.
    pub(crate) fn check_resources(&self, node: &Name, asked: &Resources) -> Result<(), String> {
        let most = &self.attempt_max;
        if asked.cpu_millis > most.cpu_millis {
            return Err(format!(
                "node {node} allows at most {} cores for one task, and this one requests {}; the node's owner can change attempt_cpus_max in agent.toml",
                cores(most.cpu_millis),
                cores(asked.cpu_millis)
            ));
        }
        // A request of 0 means no limit.
        let limited = most.memory_bytes < u64::MAX;
        if limited && (asked.memory_bytes == 0 || asked.memory_bytes > most.memory_bytes) {
            return Err(format!(
                "node {node} allows at most {} bytes of memory for one task, and this one requests {}; request less with --memory, or the node's owner can change attempt_memory_max in agent.toml",
                most.memory_bytes,
                match asked.memory_bytes {
                    0 => "no limit".to_owned(),
                    bytes => bytes.to_string(),
                }
            ));
        }
        Ok(())
    }

    /// Checks that a container may run as the job requests. Mounts are checked separately.
    ///
    /// # Errors
    /// Why it may not, as a message for people.
    pub(crate) fn check_container(&self, node: &Name, spec: &DockerSpec) -> Result<(), String> {
        if spec.network == NetworkMode::Host && !self.allow_host_network {
            return Err(format!(
                "node {node} does not allow network \"host\"; the node's owner can set allow_host_network = true in agent.toml"
            ));
        }
        if !self.images.is_empty() && !self.images.iter().any(|p| image_matches(p, &spec.image)) {
            return Err(format!(
                "node {node} does not allow image {}: it allows {}; the node's owner can change images in agent.toml",
                spec.image,
                self.images.join(", ")
            ));
        }
        let user = spec.user.as_deref().unwrap_or_default();
        let user = user.split(':').next().unwrap_or_default();
        if !self.users.is_empty() && !self.users.iter().any(|allowed| allowed == user) {
            return Err(format!(
                "node {node} does not allow containers to run as {}: it allows {}; choose one with --user, or the node's owner can change users in agent.toml",
                if user.is_empty() {
                    "the image's user".to_owned()
                } else {
                    format!("user {user}")
                },
                self.users.join(", ")
            ));
        }
        let allowed = |name: &&String| {
            self.default_capabilities.contains(name) || self.capabilities.contains(name)
        };
        if let Some(name) = spec.cap_add.iter().find(|name| !allowed(name)) {
            return Err(format!(
                "node {node} does not allow capability {name}; the node's owner can set capabilities = [\"{name}\"] in agent.toml"
            ));
        }
        if let Some(option) = spec.security_opt.iter().find(|o| !self.security_opt.contains(o)) {
            return Err(format!(
                "node {node} does not allow the security option {option}; the node's owner can set security_opt = [\"{option}\"] in agent.toml"
            ));
        }
        for device in &spec.devices {
            self.check_device(node, device)?;
        }
        if !self.volumes && !spec.volumes.is_empty() {
            return Err(format!(
                "node {node} does not allow named volumes; the node's owner can set volumes = \"on\" in agent.toml"
            ));
        }
        if spec.ulimits.get("core").is_some_and(|limit| limit.hard != 0) {
            return Err(format!(
                "node {node} never allows core files of containers, which would fill its disk; remove the limit `core`"
            ));
        }
        if let Some(pids) = spec.pids.filter(|pids| *pids > self.pids_max) {
            return Err(format!(
                "node {node} allows at most {} processes in one container, and this one requests {pids}; the node's owner can change pids_max in agent.toml",
                self.pids_max
            ));
        }
        Ok(())
    }
}

impl NodePolicy {
    fn check_device(&self, node: &Name, device: &str) -> Result<(), String> {
        let DeviceMapping { source, .. } =
            device.parse().map_err(|why: podmesh_protocol::spec::SpecError| why.to_string())?;
        // The path has no `..`, so it cannot leave the folder that a pattern names.
        if self.devices.iter().any(|pattern| WildMatch::new(pattern).matches(&source)) {
            return Ok(());
        }
        Err(format!(
            "node {node} does not allow the device {source}; the node's owner can set devices = [\"{source}\"] in agent.toml"
        ))
    }
}

fn cores(millis: u32) -> f64 {
    f64::from(millis) / 1000.0
}

/// Returns whether a pattern matches an image reference. Both are interpreted as Docker does:
/// `busybox` means `docker.io/library/busybox:latest`.
fn image_matches(pattern: &str, image: &str) -> bool {
    let image = Reference::parse(image);
    let pattern = Reference::parse(pattern);
    let tag = match (pattern.tag, pattern.digest) {
        // A digest is more specific than a tag, so a pattern's digest decides alone.
        (_, Some(digest)) => image.digest.is_some_and(|has| WildMatch::new(digest).matches(has)),
        (Some(tag), None) => {
            image.digest.is_none() && WildMatch::new(tag).matches(image.tag.unwrap_or("latest"))
        }
        (None, None) => true,
    };
    tag && WildMatch::new(&pattern.name).matches(&image.name)
}

/// The parts of an image reference.
struct Reference<'a> {
    /// The name with the registry.
    name: String,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

impl<'a> Reference<'a> {
    fn parse(text: &'a str) -> Self {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        // A colon before a slash belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        let name = match name.split_once('/') {
            Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
            Some(_) => format!("docker.io/{name}"),
            None => format!("docker.io/library/{name}"),
        };
        Self { name, tag, digest }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_protocol::spec::{Ulimit, VolumeMount};

    use super::*;

    fn node() -> Name {
        "n1".parse().unwrap()
    }

    fn spec() -> DockerSpec {
        DockerSpec { image: "busybox".into(), ..DockerSpec::default() }
    }

    #[test]
    fn images_are_interpreted_as_docker_does() {
        for (pattern, image, matches) in [
            ("busybox", "busybox", true),
            ("busybox", "docker.io/library/busybox:1.36", true),
            ("busybox:1.*", "busybox:1.36", true),
            ("busybox:1.*", "busybox", false),
            ("busybox:latest", "busybox", true),
            ("busybox:*", "busybox@sha256:aa", false),
            ("busybox", "busybox@sha256:aa", true),
            ("busybox@sha256:aa", "busybox@sha256:aa", true),
            ("busybox@sha256:aa", "busybox:latest@sha256:aa", true),
            ("busybox@sha256:aa", "busybox@sha256:bb", false),
            ("busybox@sha256:aa", "busybox", false),
            ("registry.lan:5000/team/*", "registry.lan:5000/team/app:3", true),
            ("registry.lan:5000/team/*", "registry.lan:5000/other/app:3", false),
            ("registry.lan:5000/team/*", "registry.lan/team/app", false),
            ("busybox", "evil.example/library/busybox", false),
            ("busybox", "evil/busybox", false),
            ("busybox", "busybox-evil", false),
            ("team/*", "docker.io/team/app", true),
        ] {
            assert_eq!(image_matches(pattern, image), matches, "{pattern} {image}");
        }
    }

    #[test]
    fn ports_are_read_and_shown_as_ranges() {
        let ports = PortRanges::parse(["80", "443", " 1024 - 65535"]).unwrap();
        assert_eq!(
            (&ports, ports.to_string()),
            (&PortRanges::default(), "the ports 80, 443, 1024-65535".into())
        );
        for (port, is_in) in [(80, true), (81, false), (1023, false), (1024, true), (65535, true)] {
            assert_eq!(ports.contains(port), is_in, "{port}");
        }
        for text in ["", "0", "a", "70000", "10-", "-10", "20-10", "0-5"] {
            assert_eq!(PortRanges::parse(["1", text]), Err(PortRangeError(text.into())));
        }
        assert_eq!(PortRanges::parse([]).unwrap().to_string(), "no ports");
    }

    #[test]
    fn an_ingress_address_is_an_address_all_or_off() {
        for (text, address) in [
            ("all", IngressAddress::All),
            ("0.0.0.0", IngressAddress::All),
            ("::", IngressAddress::All),
            ("off", IngressAddress::Off),
            ("::1", IngressAddress::Only(vec!["::1".parse().unwrap()])),
            (
                "127.0.0.1, ::1",
                IngressAddress::Only(vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()]),
            ),
            ("127.0.0.1,::", IngressAddress::All),
        ] {
            assert_eq!(text.parse(), Ok(address));
        }
        let said = "eth0".parse::<IngressAddress>().unwrap_err().to_string();
        assert!(said.contains("eth0") && said.contains("\"off\""), "{said}");
    }

    #[test]
    fn the_default_allows_a_plain_container_and_nothing_more() {
        let policy = NodePolicy::default();
        assert_eq!(policy.check_container(&node(), &spec()), Ok(()));
        for (says, more) in [
            ("network", DockerSpec { network: NetworkMode::Host, ..spec() }),
            ("NET_RAW", DockerSpec { cap_add: vec!["NET_RAW".into()], ..spec() }),
            ("/dev/kvm", DockerSpec { devices: vec!["/dev/kvm:/dev/x".into()], ..spec() }),
            ("seccomp", DockerSpec { security_opt: vec!["seccomp=unconfined".into()], ..spec() }),
            ("4096", DockerSpec { pids: Some(PIDS_MAX_DEFAULT + 1), ..spec() }),
        ] {
            let said = policy.check_container(&node(), &more).unwrap_err();
            assert!(said.contains(says) && said.contains("agent.toml"), "{said}");
        }
    }

    #[test]
    fn a_container_that_the_owner_does_not_allow_is_refused() {
        let policy = NodePolicy {
            images: vec!["busybox:1.*".into()],
            users: vec!["1000".into()],
            default_capabilities: vec!["CHOWN".into()],
            capabilities: vec!["NET_RAW".into()],
            devices: vec!["/dev/dri/*".into()],
            security_opt: vec!["seccomp=unconfined".into()],
            volumes: false,
            pids_max: 10,
            ..NodePolicy::default()
        };
        let good = DockerSpec {
            image: "busybox:1.36".into(),
            user: Some("1000:50".into()),
            cap_add: vec!["NET_RAW".into(), "CHOWN".into()],
            cap_drop: vec!["ALL".into()],
            devices: vec!["/dev/dri/card0:/dev/card:r".into()],
            security_opt: vec!["seccomp=unconfined".into()],
            ulimits: [("core".into(), Ulimit { soft: 0, hard: 0 })].into(),
            pids: Some(10),
            ..DockerSpec::default()
        };
        assert_eq!(policy.check_container(&node(), &good), Ok(()));
        for bad in [
            DockerSpec { image: "alpine".into(), ..good.clone() },
            DockerSpec { user: None, ..good.clone() },
            DockerSpec { user: Some("0".into()), ..good.clone() },
            DockerSpec { cap_add: vec!["SYS_ADMIN".into()], ..good.clone() },
            // A default capability of other nodes.
            DockerSpec { cap_add: vec!["SETUID".into()], ..good.clone() },
            DockerSpec { devices: vec!["/dev/sda".into()], ..good.clone() },
            DockerSpec { devices: vec!["/dev/dri/../sda".into()], ..good.clone() },
            DockerSpec { security_opt: vec!["seccomp=x".into()], ..good.clone() },
            DockerSpec {
                volumes: vec![VolumeMount { volume: node(), target: "/d".into(), read_only: true }],
                ..good.clone()
            },
            DockerSpec { pids: Some(11), ..good.clone() },
        ] {
            let said = policy.check_container(&node(), &bad).unwrap_err();
            let names_rule = said.contains("n1") && said.contains("agent.toml");
            assert!(names_rule || said.contains("/dev/NAME"), "{said}");
        }
        let limit = Ulimit { soft: 0, hard: 1 };
        let core = DockerSpec { ulimits: [("core".into(), limit)].into(), ..good };
        assert!(policy.check_container(&node(), &core).unwrap_err().contains("`core`"));
    }

    #[test]
    fn an_attempt_that_requests_more_than_the_owner_allows_is_refused() {
        let asks = |cpu_millis, memory_bytes| Resources { cpu_millis, memory_bytes };
        let all = NodePolicy::default();
        assert_eq!(all.check_resources(&node(), &asks(64_000, 0)), Ok(()));
        let some = NodePolicy { attempt_max: asks(2_000, 1 << 30), ..NodePolicy::default() };
        assert_eq!(some.check_resources(&node(), &asks(2_000, 1 << 30)), Ok(()));
        for (cpus, memory) in [(2_001, 1), (1, (1 << 30) + 1), (1, 0)] {
            let said = some.check_resources(&node(), &asks(cpus, memory)).unwrap_err();
            assert!(said.contains("agent.toml"), "{said}");
        }
    }
}
