//! What differs between two specs of a service.

use diffy::DiffOptions;
use podmesh_protocol::service::ServiceSpec;

use super::file::ServiceFile;
use super::to_toml;
use crate::error::CliResult;

/// Returns the keys of the service file in which two specs differ, in the order of the alphabet.
pub(crate) fn changed_keys(before: &ServiceSpec, after: &ServiceSpec) -> Vec<String> {
    let keys = |spec: &ServiceSpec| match serde_json::to_value(ServiceFile::from(spec)) {
        Ok(serde_json::Value::Object(keys)) => keys,
        // A structure with texts as keys always has this form.
        _ => serde_json::Map::new(),
    };
    let (before, after) = (keys(before), keys(after));
    let mut changed: Vec<String> = before
        .keys()
        .chain(after.keys())
        .filter(|key| before.get(*key) != after.get(*key))
        .cloned()
        .collect();
    changed.sort();
    changed.dedup();
    changed
}

/// Returns a unified diff of two specs as service files; empty if they are equal. Without `before`
/// everything is new.
///
/// # Errors
/// See [`to_toml`].
pub(crate) fn unified(before: Option<&ServiceSpec>, after: &ServiceSpec) -> CliResult<String> {
    let old = before.map(to_toml).transpose()?.unwrap_or_default();
    let new = to_toml(after)?;
    if old == new {
        return Ok(String::new());
    }
    let mut options = DiffOptions::new();
    options.set_original_filename("now").set_modified_filename("new");
    Ok(options.create_patch(&old, &new).to_string())
}
