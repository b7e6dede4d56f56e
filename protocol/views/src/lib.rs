//! What people and programs see of podmesh as JSON: `--output json` and the HTTP API print these
//! views, and the schemas in `tools/schema` and the OpenAPI document are generated from them.
//!
//! Their form is stable: fields are only added.

pub mod access;
pub mod again;
pub mod endpoints;
pub mod events;
pub mod filter;
pub mod http;
pub mod input;
pub mod json;
pub mod node;
pub mod queue;
pub mod schedule;
pub mod service;
pub mod service_spec;
pub mod text;
pub mod time;
pub mod volume;
pub mod why;
pub mod workflow;
