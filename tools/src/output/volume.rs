//! Volumes, as JSON and as a table.

use comfy_table::Cell;
use podmesh_protocol::volume::VolumeView;
use schemars::JsonSchema;
use serde::Serialize;

use super::screen::Screen;
use super::table::render;
use super::time::{local, rfc3339};

/// `podmesh volumes`, for people.
pub(crate) fn table(screen: Screen, volumes: &[VolumeView]) -> String {
    let row = |view: &VolumeView| {
        let services = view.services.iter().map(ToString::to_string);
        let users: Vec<String> =
            services.chain(view.jobs.iter().map(|job| format!("job {job}"))).collect();
        let used = if view.removing { "is being removed".into() } else { users.join(", ") };
        vec![
            Cell::new(&view.volume),
            Cell::new(&view.node),
            Cell::new(local(view.created_wall_ms)),
            Cell::new(used),
        ]
    };
    render(screen, &["VOLUME", "NODE", "CREATED", "USED BY"], volumes.iter().map(row).collect())
}

/// `podmesh volumes`
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct VolumesOutput {
    /// The volumes, by name.
    pub(crate) volumes: Vec<VolumeOutput>,
}

/// A named volume.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct VolumeOutput {
    /// Its name.
    pub(crate) volume: String,
    /// The node that has it.
    pub(crate) node: String,
    /// When a task was first given it, in RFC 3339.
    pub(crate) created: String,
    /// Whether it is being removed.
    pub(crate) removing: bool,
    /// Why the node could not remove it, when it last tried.
    pub(crate) failed: Option<String>,
    /// The services that use it.
    pub(crate) services: Vec<String>,
    /// Some of the jobs that use it and have not ended.
    pub(crate) jobs: Vec<u64>,
}

impl VolumesOutput {
    pub(crate) fn new(volumes: &[VolumeView]) -> Self {
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
