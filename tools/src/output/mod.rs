//! The output of the verbs: tables and lines for people, JSON for programs.

pub(crate) mod access;
pub(crate) mod events;
pub(crate) mod json;
#[cfg(test)]
mod schema;
pub(crate) mod screen;
pub(crate) mod service;
pub(crate) mod service_spec;
pub(crate) mod service_table;
pub(crate) mod table;
pub(crate) mod text;
pub(crate) mod time;
pub(crate) mod volume;
