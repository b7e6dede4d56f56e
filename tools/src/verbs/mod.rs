//! The verbs.

pub(crate) mod agent;
pub(crate) mod cancel;
pub(crate) mod completions;
pub(crate) mod dev;
pub(crate) mod events;
pub(crate) mod job;
pub(crate) mod jobs;
pub(crate) mod logs;
pub(crate) mod manager;
pub(crate) mod nodes;
pub(crate) mod run;
pub(crate) mod submit;
pub(crate) mod tasks;
pub(crate) mod token;
pub(crate) mod users;
