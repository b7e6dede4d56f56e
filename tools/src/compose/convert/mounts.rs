//! What containers see beside their image: volumes, mounts, folders in memory, configs and secrets.

use std::collections::BTreeMap;

use podmesh_protocol::ids::Name;
use podmesh_protocol::spec::{Mount, VolumeMount};

use super::super::node::Value;
use super::super::read::{Item, Notes};
use super::super::values::Bytes;
use super::files;
use super::top::Shared;
use crate::env_vars::Lookup;
use crate::error::CliResult;
use crate::values::made_name;

/// The options of a volume that change nothing here.
const HARMLESS: [&str; 6] = ["z", "Z", "cached", "delegated", "consistent", "nocopy"];

/// What a container gets.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) volumes: Vec<VolumeMount>,
    pub(super) mounts: Vec<Mount>,
    pub(super) tmpfs: BTreeMap<String, String>,
    pub(super) files: BTreeMap<String, String>,
}

/// Reads `volumes`, `tmpfs`, `configs` and `secrets` of one service.
pub(super) struct Reader<'a> {
    pub(super) shared: &'a Shared,
    pub(super) service: &'a str,
    pub(super) lookup: Lookup<'a>,
    pub(super) notes: &'a mut Notes,
    pub(super) found: Mounts,
}

impl Reader<'_> {
    pub(super) fn volumes(&mut self, item: &Item<'_>) -> CliResult<()> {
        for item in item.list()? {
            match &item.node.value {
                Value::Map(_) => self.long(&item)?,
                _ => self.short(&item)?,
            }
        }
        Ok(())
    }

    fn short(&mut self, item: &Item<'_>) -> CliResult<()> {
        let parts: Vec<&str> = item.text()?.split(':').collect();
        let (source, target, options) = match parts[..] {
            [target] => (None, target, ""),
            [source, target] => (Some(source), target, ""),
            [source, target, options] => (Some(source), target, options),
            _ => return Err(item.wrong("this is not SOURCE:TARGET or SOURCE:TARGET:ro")),
        };
        let mut read_only = false;
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => read_only = true,
                "rw" => {}
                harmless if HARMLESS.contains(&harmless) => {
                    item.ignore(self.notes, &format!("the option `{harmless}` has no effect here"));
                }
                other => {
                    return Err(
                        item.wrong(format!("podmesh does not support the option `{other}`"))
                    );
                }
            }
        }
        match source {
            None => self.anonymous(item, target, read_only),
            Some(source) if source.starts_with(['/', '.', '~']) => {
                self.bind(item, source, target, read_only)
            }
            Some(source) => self.named(item, source, target, read_only),
        }
    }

    fn long(&mut self, item: &Item<'_>) -> CliResult<()> {
        let mut keys = item.keys()?;
        let kind = keys.take("type");
        let kind = kind.as_ref().map(Item::text).transpose()?.unwrap_or("volume");
        let source = keys.take("source");
        let source = source.as_ref().map(Item::text).transpose()?;
        let Some(target) = keys.take("target") else {
            return Err(item.wrong("`target` is missing: the path in the container"));
        };
        let target = target.text()?;
        let read_only = keys.take("read_only").map(|item| item.boolean()).transpose()?;
        let read_only = read_only.unwrap_or(false);
        keys.ignore("consistency", self.notes, "it has no effect here");
        match kind {
            "volume" => {
                if let Some(volume) = keys.take("volume") {
                    let mut inner = volume.keys()?;
                    inner.ignore("nocopy", self.notes, "it has no effect here");
                    inner.ignore("labels", self.notes, "volumes have no labels");
                    inner.finish()?;
                }
                match source {
                    Some(source) => self.named(item, source, target, read_only)?,
                    None => self.anonymous(item, target, read_only)?,
                }
            }
            "bind" => {
                if let Some(bind) = keys.take("bind") {
                    let mut inner = bind.keys()?;
                    for key in ["create_host_path", "selinux", "propagation"] {
                        inner.ignore(key, self.notes, "it has no effect here");
                    }
                    inner.finish()?;
                }
                let Some(source) = source else { return Err(item.wrong("`source` is missing")) };
                self.bind(item, source, target, read_only)?;
            }
            "tmpfs" => {
                let mut options = Vec::new();
                if let Some(tmpfs) = keys.take("tmpfs") {
                    let mut inner = tmpfs.keys()?;
                    if let Some(size) = inner.take("size") {
                        options.push(format!("size={}", size.parsed::<Bytes>()?.0));
                    }
                    if let Some(mode) = inner.take("mode") {
                        options.push(format!("mode={}", mode.text()?));
                    }
                    inner.finish()?;
                }
                self.found.tmpfs.insert(target.into(), options.join(","));
            }
            other => {
                return Err(item.wrong(format!(
                    "podmesh does not support the type `{other}`, only volume, bind and tmpfs"
                )));
            }
        }
        keys.finish()
    }

    fn named(
        &mut self,
        item: &Item<'_>,
        source: &str,
        target: &str,
        read_only: bool,
    ) -> CliResult<()> {
        let Some(volume) = self.shared.volumes.get(source) else {
            return Err(item.wrong(format!(
                "volume `{source}` is not in the top-level `volumes`; add it there (a path begins with `/` or `./`)"
            )));
        };
        let volume = volume.name.clone();
        self.found.volumes.push(VolumeMount { volume, target: target.into(), read_only });
        Ok(())
    }

    /// Adds a volume whose name is made of the service and the path.
    fn anonymous(&mut self, item: &Item<'_>, target: &str, read_only: bool) -> CliResult<()> {
        let project = &self.shared.project;
        let path = target.trim_matches('/').replace('/', "-");
        let name = made_name(&format!("{project}_{}_{path}", self.service));
        let taken = |name: &Name| self.found.volumes.iter().any(|known| known.volume == *name);
        match name {
            Some(volume) if !taken(&volume) => {
                self.found.volumes.push(VolumeMount { volume, target: target.into(), read_only });
                Ok(())
            }
            _ => Err(item.wrong(format!(
                "the volume for `{target}` would have the name of another one; give it a name: `data:{target}`"
            ))),
        }
    }

    fn bind(
        &mut self,
        item: &Item<'_>,
        source: &str,
        target: &str,
        read_only: bool,
    ) -> CliResult<()> {
        if source.starts_with('/') {
            let (source, target) = (source.to_owned(), target.to_owned());
            self.found.mounts.push(Mount { source, target, read_only });
            return Ok(());
        }
        let path = match source.strip_prefix('~') {
            None => item.node.place.source.folder.join(source),
            Some(below) if below.is_empty() || below.starts_with('/') => {
                let Some(home) = (self.lookup)("HOME") else {
                    return Err(item.wrong("`~` has no meaning, because HOME is not set"));
                };
                std::path::Path::new(&home).join(below.trim_start_matches('/'))
            }
            Some(_) => {
                return Err(item.wrong(format!("`{source}` is not a path that podmesh knows")));
            }
        };
        files::add(&mut self.found.files, &path, target, item)?;
        if !read_only {
            let why = "the container gets a copy that it cannot change; for data that it writes, use a named volume";
            item.ignore(self.notes, why);
        }
        Ok(())
    }

    pub(super) fn tmpfs(&mut self, item: &Item<'_>) -> CliResult<()> {
        for item in item.one_or_many()? {
            let (path, options) = item.text()?.split_once(':').unwrap_or((item.text()?, ""));
            self.found.tmpfs.insert(path.into(), options.into());
        }
        Ok(())
    }

    /// Adds configs or secrets. `folder`: where those are that have no target.
    pub(super) fn grants(
        &mut self,
        item: &Item<'_>,
        known: &BTreeMap<String, String>,
        folder: &str,
    ) -> CliResult<()> {
        for item in item.list()? {
            let (source, target) = if let Some(source) = item.node.text() {
                (source.to_owned(), None)
            } else {
                let mut keys = item.keys()?;
                let Some(source) = keys.take("source") else {
                    return Err(item.wrong("`source` is missing"));
                };
                let target = keys.take("target");
                let target =
                    target.map(|target| CliResult::Ok(target.text()?.to_owned())).transpose()?;
                for key in ["uid", "gid", "mode"] {
                    let why =
                        "every user in the container can read the file, and none can change it";
                    keys.ignore(key, self.notes, why);
                }
                keys.finish()?;
                (source.text()?.to_owned(), target)
            };
            let Some(content) = known.get(&source) else {
                return Err(item.wrong(format!("`{source}` is not in the top level of the file")));
            };
            let target = target.unwrap_or(source);
            let target =
                if target.starts_with('/') { target } else { format!("{folder}/{target}") };
            if self.found.files.insert(target.clone(), content.clone()).is_some() {
                return Err(item.wrong(format!("something else is at {target} already")));
            }
        }
        Ok(())
    }
}
