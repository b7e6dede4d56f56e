//! Compose files: read, merged, and converted to services.

mod convert;
mod dotenv;
mod interpolate;
mod load;
mod merge;
mod node;
mod parse;
mod read;
mod values;

use std::path::Path;

use podmesh_protocol::ids::Name;
use podmesh_protocol::service::ServiceSpec;
use serde::Serialize;

pub(crate) use self::load::Options;
use self::node::Node;
use crate::env_vars::Lookup;
use crate::error::{CliError, CliResult};

/// The key at the top of a compose file for what only podmesh knows.
const EXTENSION: &str = "x-podmesh";

/// A project: services that belong together.
#[derive(Debug)]
pub(crate) struct Project {
    /// Its name.
    pub(crate) name: Name,
    /// Its services, each after those that it needs.
    pub(crate) members: Vec<Member>,
    /// Its named volumes that no other project has.
    pub(crate) volumes: Vec<Name>,
    /// What has no effect here, one sentence each.
    pub(crate) notes: Vec<String>,
    root: Node,
}

/// A service of a project.
#[derive(Debug)]
pub(crate) struct Member {
    /// What it is called in the project.
    pub(crate) name: String,
    pub(crate) spec: ServiceSpec,
}

/// Reads the files of a project. Without files in the options, they are looked for in `here` and the
/// folders above it.
///
/// # Errors
/// Whatever is wrong, or not supported: with the file, the line and the keys.
pub(crate) fn read(options: &Options, here: &Path, lookup: Lookup<'_>) -> CliResult<Project> {
    convert::convert(load::load(options, here, lookup)?, lookup)
}

/// Returns the name of the project, without a look at its services.
///
/// # Errors
/// See [`read`].
pub(crate) fn name(options: &Options, here: &Path, lookup: Lookup<'_>) -> CliResult<Name> {
    match &options.project {
        Some(name) => load::given_name(name),
        None => Ok(load::load(options, here, lookup)?.name),
    }
}

impl Project {
    /// Returns the merged file, with its variables replaced.
    pub(crate) fn merged(&self) -> &impl Serialize {
        &self.root
    }

    /// Returns the merged file as YAML.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn yaml(&self) -> CliResult<String> {
        serde_saphyr::to_string(&self.root)
            .map_err(|why| CliError::failure("the file cannot be written as YAML").because(why))
    }
}
