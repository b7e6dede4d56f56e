//! The options of a container, as jobs and services have them.

use podmesh_protocol::spec::{DockerSpec, NetworkMode, PullPolicy};
use serde::{Deserialize, Serialize};

/// The default time between TERM and KILL in milliseconds, as in Docker.
pub(crate) const STOP_GRACE_MS: u64 = 10_000;

/// One value, or a list of them.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(crate) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// As in Docker, an empty text removes the image's entrypoint.
pub(crate) fn entrypoint(words: Vec<String>) -> Vec<String> {
    if words == [""] { Vec::new() } else { words }
}

/// The options that only containers have.
pub(crate) struct Container {
    /// All of them but the image, the network and the pull policy.
    pub(crate) spec: DockerSpec,
    pub(crate) network: Option<NetworkMode>,
    pub(crate) pull: Option<PullPolicy>,
}

impl Container {
    /// Returns the key in a job or service file of the first of these options that is set.
    pub(crate) fn asked(&self) -> Option<&'static str> {
        let spec = &self.spec;
        [
            (spec.entrypoint.is_some(), "entrypoint"),
            (spec.user.is_some(), "user"),
            (!spec.mounts.is_empty(), "mounts"),
            (!spec.volumes.is_empty(), "volumes"),
            (!spec.tmpfs.is_empty(), "tmpfs"),
            (spec.read_only, "read_only"),
            (self.network.is_some(), "network"),
            (!spec.networks.is_empty(), "networks"),
            (spec.hostname.is_some(), "hostname"),
            (!spec.extra_hosts.is_empty(), "extra_hosts"),
            (!spec.cap_add.is_empty(), "cap_add"),
            (!spec.cap_drop.is_empty(), "cap_drop"),
            (!spec.security_opt.is_empty(), "security_opt"),
            (!spec.devices.is_empty(), "devices"),
            (spec.pids.is_some(), "pids"),
            (!spec.ulimits.is_empty(), "ulimits"),
            (spec.shm_size.is_some(), "shm_size"),
            (spec.init, "init"),
            (spec.tty, "tty"),
            (spec.stop_signal.is_some(), "stop_signal"),
            (!spec.labels.is_empty(), "labels"),
            (spec.platform.is_some(), "platform"),
            (self.pull.is_some(), "pull"),
        ]
        .into_iter()
        .find_map(|(asked, name)| asked.then_some(name))
    }

    /// Returns the spec of a container with this image.
    pub(crate) fn with_image(self, image: String) -> DockerSpec {
        DockerSpec {
            image,
            network: self.network.unwrap_or_default(),
            pull: self.pull.unwrap_or_default(),
            ..self.spec
        }
    }
}
