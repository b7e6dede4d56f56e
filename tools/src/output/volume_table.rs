//! Volumes, as a table.

use comfy_table::Cell;
use podmesh_protocol::volume::VolumeView;

use super::screen::Screen;
use super::table::render;
use super::time::local;

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
