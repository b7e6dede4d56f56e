//! Files of this machine that containers get: they become a part of the spec.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use podmesh_protocol::limits::{FILES_BYTES_MAX, FILES_MAX};

use super::super::read::Item;
use crate::error::CliResult;

/// Reads a file that becomes a part of the spec.
pub(super) fn text_of(path: &Path, item: &Item<'_>) -> CliResult<String> {
    let shown = path.display();
    let size =
        fs::metadata(path).map_err(|why| item.wrong(format!("{shown} cannot be read: {why}")))?;
    if !size.is_file() {
        return Err(item.wrong(format!("{shown} is not a file")));
    }
    if size.len() > FILES_BYTES_MAX as u64 {
        return Err(item.wrong(format!(
            "{shown} has {} bytes, over the limit of {FILES_BYTES_MAX} for all files of a service (FILES_BYTES_MAX); \
             copy it to the node and write its absolute path there, or put it into the image",
            size.len()
        )));
    }
    let bytes =
        fs::read(path).map_err(|why| item.wrong(format!("{shown} cannot be read: {why}")))?;
    String::from_utf8(bytes).map_err(|_| {
        item.wrong(format!(
            "{shown} is not text in UTF-8, and only such files can be a part of the spec; \
             copy it to the node and write its absolute path there, or put it into the image"
        ))
    })
}

/// Adds a file or folder of this machine, read-only, at a path in the container.
pub(super) fn add(
    files: &mut BTreeMap<String, String>,
    source: &Path,
    target: &str,
    item: &Item<'_>,
) -> CliResult<()> {
    let target = target.trim_end_matches('/');
    if !source.exists() {
        return Err(item.wrong(format!(
            "{} does not exist on this machine. For data that the service writes, use a named volume \
             (`data:{target}`); for a folder of the node, write its absolute path",
            source.display()
        )));
    }
    if source.is_file() {
        files.insert(target.to_owned(), text_of(source, item)?);
        return Ok(());
    }
    let mut found = Vec::new();
    list(source, &mut found, item)?;
    if found.is_empty() {
        return Err(item.wrong(format!(
            "the folder {} is empty, and only its files would be in the container. For data that the \
             service writes, use a named volume (`data:{target}`)",
            source.display()
        )));
    }
    for path in found {
        let below = path.strip_prefix(source).unwrap_or(&path);
        let below = below
            .to_str()
            .ok_or_else(|| item.wrong(format!("the name of {} is not UTF-8", path.display())))?;
        files.insert(format!("{target}/{below}"), text_of(&path, item)?);
    }
    Ok(())
}

/// Lists the files of a folder, within the limit.
fn list(folder: &Path, found: &mut Vec<PathBuf>, item: &Item<'_>) -> CliResult<()> {
    let bad =
        |why: std::io::Error| item.wrong(format!("{} cannot be read: {why}", folder.display()));
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(bad)? {
        let entry = entry.map_err(bad)?;
        paths.push((entry.path(), entry.file_type().map_err(bad)?));
        // A folder can be large: its names are not all kept.
        if found.len() + paths.len() > FILES_MAX {
            return Err(item.wrong(format!(
                "the folder {} has more than {FILES_MAX} files (FILES_MAX), and the node does not have this machine's folder; \
                 copy it to the node and write its absolute path there, use a named volume for data, or put the files into the image",
                folder.display()
            )));
        }
    }
    paths.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, kind) in paths {
        if kind.is_dir() {
            list(&path, found, item)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}
