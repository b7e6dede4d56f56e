//! The options of a container, as jobs and services have them.

use podmesh_protocol::spec::{DockerSpec, Mount, NetworkMode, PullPolicy};
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
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) user: Option<String>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) network: Option<NetworkMode>,
    pub(crate) cap_add: Vec<String>,
    pub(crate) pids: Option<u32>,
    pub(crate) platform: Option<String>,
    pub(crate) pull: Option<PullPolicy>,
}

impl Container {
    /// Returns the first of these options that is set.
    pub(crate) fn asked(&self) -> Option<&'static str> {
        [
            (self.entrypoint.is_some(), "entrypoint"),
            (self.user.is_some(), "user"),
            (!self.mounts.is_empty(), "mount"),
            (self.network.is_some(), "network"),
            (!self.cap_add.is_empty(), "cap-add"),
            (self.pids.is_some(), "pids"),
            (self.platform.is_some(), "platform"),
            (self.pull.is_some(), "pull"),
        ]
        .into_iter()
        .find_map(|(asked, name)| asked.then_some(name))
    }

    /// Returns the spec of a container with this image.
    pub(crate) fn with_image(self, image: String) -> DockerSpec {
        DockerSpec {
            image,
            entrypoint: self.entrypoint,
            user: self.user,
            mounts: self.mounts,
            network: self.network.unwrap_or_default(),
            pull: self.pull.unwrap_or_default(),
            cap_add: self.cap_add,
            pids: self.pids,
            platform: self.platform,
        }
    }
}
