//! Volumes.

use podmesh_protocol::volume::VolumeView;
use schemars::JsonSchema;
use serde::Serialize;

use crate::time::rfc3339;

/// `podmesh volumes`
#[derive(Debug, Serialize, JsonSchema)]
pub struct VolumesOutput {
    /// The volumes, by name.
    pub volumes: Vec<VolumeOutput>,
}

/// A named volume.
#[derive(Debug, Serialize, JsonSchema)]
pub struct VolumeOutput {
    /// Its name.
    pub volume: String,
    /// The node that has it.
    pub node: String,
    /// When a task was first given it, in RFC 3339.
    pub created: String,
    /// Whether it is being removed.
    pub removing: bool,
    /// Why the node could not remove it, when it last tried.
    pub failed: Option<String>,
    /// The services that use it.
    pub services: Vec<String>,
    /// Some of the jobs that use it and have not ended.
    pub jobs: Vec<u64>,
}

impl VolumesOutput {
    /// Returns the view of volumes.
    pub fn new(volumes: &[VolumeView]) -> Self {
        let volume = |view: &VolumeView| VolumeOutput {
            volume: view.volume.to_string(),
            node: view.node.to_string(),
            created: rfc3339(view.created_wall_ms),
            removing: view.removing,
            failed: view.failed.clone(),
            services: view.services.iter().map(ToString::to_string).collect(),
            jobs: view.jobs.iter().map(|job| job.0).collect(),
        };
        Self { volumes: volumes.iter().map(volume).collect() }
    }
}
