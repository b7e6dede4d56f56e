//! The HTTP API: maps routes to requests of the [`Door`], and replies to the views that
//! `--output json` prints. It decides nothing by itself.
//!
//! `routes` is the table of all routes, from which the router (`router`) and the OpenAPI document
//! (`openapi`) are made. `guard` checks every request before its handler: `Host` and `Origin`, who asks, and how
//! many bytes the caller has under way. `events`, `logs` and `merged` stream. `server` has the listeners, with
//! limits for slow clients. `console` is the page for people.

mod access;
mod app;
mod budget;
mod certificate;
mod console;
mod door;
mod error;
mod events;
mod extract;
mod guard;
mod jobs;
mod logs;
mod merged;
mod nodes;
mod openapi;
mod problem;
mod queues;
mod route;
mod router;
mod routes;
mod schedules;
mod search;
mod server;
mod services;
mod sse;
mod volumes;
mod workflows;

pub use door::{Asker, Door, Peer};
pub use error::HttpError;
pub use guard::Hosts;
pub use server::{Config, Server};

/// Where all routes begin.
const PREFIX: &str = "/api/v1";
