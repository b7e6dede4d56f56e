//! What the owner of a node allows there. The manager cannot override it.

use std::path::PathBuf;

use serde::Deserialize;

/// What jobs may use of this node. The default allows neither mounts nor the node's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodePolicy {
    /// Folders and files that containers may mount, with all that is below them.
    pub mount_roots: Vec<MountRoot>,
    /// Whether containers may use the node's own network (`network = "host"`).
    pub allow_host_network: bool,
}

/// A folder or file of the node that containers may mount.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountRoot {
    /// Absolute path on the node. What lies below may be mounted, too.
    pub path: PathBuf,
    /// Whether containers may write there; otherwise only read-only mounts are allowed.
    #[serde(default)]
    pub writable: bool,
}
