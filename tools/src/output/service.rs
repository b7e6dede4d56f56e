//! Services, as JSON.

use podmesh_protocol::client as wire;
use podmesh_protocol::service;
use schemars::JsonSchema;

use super::json::{Word, words};

words! {
    /// Whether a replica works.
    Health = service::Health {
        /// Not known yet.
        Starting "starting",
        /// Its checks succeed.
        Healthy "healthy",
        /// Its checks fail. It is replaced.
        Unhealthy "unhealthy",
    }
    /// What an admin lets a node get.
    Scheduling = wire::Scheduling {
        /// New work.
        Open "open",
        /// No new work. What it has stays.
        Cordoned "cordoned",
        /// No new work. Its replicas move to other nodes.
        Draining "draining",
    }
}
