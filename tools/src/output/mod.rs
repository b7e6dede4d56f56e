//! The output of the verbs: tables and lines for people, JSON for programs.

pub(crate) mod events;
pub(crate) mod queue_table;
pub(crate) mod schedule_table;
#[cfg(test)]
mod schema;
pub(crate) mod screen;
pub(crate) mod service_table;
pub(crate) mod table;
pub(crate) mod text;
pub(crate) mod time;
pub(crate) mod volume_table;
pub(crate) mod workflow_table;

// The views are those of the HTTP API as well.
pub(crate) use podmesh_views::{
    access, again, json, node, queue, schedule, service, volume, why, workflow,
};
