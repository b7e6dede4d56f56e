//! The top level of a compose file: volumes, networks, configs and secrets.

use std::collections::BTreeMap;

use podmesh_protocol::ids::Name;

use super::super::EXTENSION;
use super::super::node::Value;
use super::super::read::{Item, Keys, Notes};
use super::files::text_of;
use crate::compose::interpolate::Variables;
use crate::error::CliResult;

/// What the services of a project share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) project: Name,
    /// Whether all services run on one node, and on networks of their own.
    pub(super) together: bool,
    pub(super) volumes: BTreeMap<String, Volume>,
    pub(super) networks: BTreeMap<String, Name>,
    pub(super) configs: BTreeMap<String, String>,
    pub(super) secrets: BTreeMap<String, String>,
}

/// A named volume.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) name: Name,
    /// Whether it is not a part of the project, which then never removes it.
    pub(super) external: bool,
}

impl Shared {
    /// Reads the top level, but for the services.
    pub(super) fn read(
        project: &Name,
        keys: &mut Keys<'_>,
        variables: &Variables<'_>,
        notes: &mut Notes,
    ) -> CliResult<Self> {
        keys.ignore("version", notes, "a version of the format is no longer needed");
        // The loader has read it.
        keys.take("name");
        let together = match keys.take(EXTENSION) {
            None => true,
            Some(item) => {
                let mut keys = item.keys()?;
                let spread = keys.take("spread").map(|item| item.boolean()).transpose()?;
                keys.finish()?;
                !spread.unwrap_or(false)
            }
        };
        let mut shared = Self {
            project: project.clone(),
            together,
            volumes: BTreeMap::new(),
            networks: BTreeMap::new(),
            configs: BTreeMap::new(),
            secrets: BTreeMap::new(),
        };
        for (key, item) in entries(keys.take("volumes"))? {
            let volume = shared.volume(&key, &item, notes)?;
            shared.volumes.insert(key, volume);
        }
        for (key, item) in entries(keys.take("networks"))? {
            if !together && key != "default" {
                let why = "the services of a project with `spread: true` share no network, \
                           because they can be on different nodes; remove the network";
                return Err(item.wrong(why));
            }
            let network = shared.network(&key, &item, notes)?;
            shared.networks.insert(key, network);
        }
        if !shared.networks.contains_key("default") {
            let name = shared.scoped("default", None)?;
            shared.networks.insert("default".into(), name);
        }
        for (key, item) in entries(keys.take("configs"))? {
            shared.configs.insert(key, content(&item, variables, notes)?);
        }
        for (key, item) in entries(keys.take("secrets"))? {
            shared.secrets.insert(key, content(&item, variables, notes)?);
        }
        Ok(shared)
    }

    /// Returns the name in the cluster of something of the project.
    fn scoped(&self, key: &str, item: Option<&Item<'_>>) -> CliResult<Name> {
        let text = format!("{}_{key}", self.project);
        text.parse().map_err(|why| match item {
            Some(item) => item.wrong(format!("`{text}`: {why}")),
            None => crate::error::CliError::usage(format!("`{text}`: {why}")),
        })
    }

    /// Returns the name that `name` and `external` give, and whether it is external.
    fn named(&self, key: &str, item: &Item<'_>, keys: &mut Keys<'_>) -> CliResult<(Name, bool)> {
        let external = match keys.take("external") {
            // An old form: `external: {name: x}`.
            Some(external) if matches!(external.node.value, Value::Map(_)) => {
                let mut inner = external.keys()?;
                let name = inner.take("name").map(|name| name.parsed()).transpose()?;
                inner.finish()?;
                if let Some(name) = name {
                    return Ok((name, true));
                }
                true
            }
            Some(external) => external.boolean()?,
            None => false,
        };
        let name = match keys.take("name") {
            Some(name) => name.parsed()?,
            None if external => key.parse().map_err(|why| item.wrong(format!("`{key}`: {why}")))?,
            None => self.scoped(key, Some(item))?,
        };
        Ok((name, external))
    }

    fn volume(&self, key: &str, item: &Item<'_>, notes: &mut Notes) -> CliResult<Volume> {
        let mut keys = item.keys()?;
        let (name, external) = self.named(key, item, &mut keys)?;
        if let Some(driver) = keys.take("driver")
            && driver.text()? != "local"
        {
            return Err(driver.wrong("podmesh has only local volumes: remove the driver"));
        }
        if let Some(options) = keys.take("driver_opts")
            && !options.entries()?.is_empty()
        {
            let why = "podmesh does not support options of drivers; mount the folder on the node, \
                       and write its absolute path instead of a volume";
            return Err(options.wrong(why));
        }
        keys.ignore("labels", notes, "volumes have no labels");
        keys.finish()?;
        Ok(Volume { name, external })
    }

    fn network(&self, key: &str, item: &Item<'_>, notes: &mut Notes) -> CliResult<Name> {
        let mut keys = item.keys()?;
        let (name, external) = self.named(key, item, &mut keys)?;
        if external {
            let why = "only containers of podmesh on the same node share the network";
            item.ignore(notes, why);
        }
        if let Some(driver) = keys.take("driver") {
            match driver.text()? {
                "bridge" | "default" => {}
                "overlay" => {
                    driver.ignore(notes, "the network is a bridge: the project is on one node")
                }
                _ => return Err(driver.wrong("podmesh has only networks of the driver `bridge`")),
            }
        }
        if let Some(internal) = keys.take("internal")
            && internal.boolean()?
        {
            return Err(internal.wrong(
                "podmesh cannot keep a network from the outside; remove the key if that is acceptable",
            ));
        }
        keys.ignore("ipam", notes, "the node chooses the addresses");
        keys.ignore("driver_opts", notes, "podmesh sets no options of networks");
        for key in ["attachable", "enable_ipv4", "enable_ipv6", "labels"] {
            keys.ignore(key, notes, "it has no effect here");
        }
        keys.finish()?;
        Ok(name)
    }
}

/// Returns the entries of a map that may be missing.
fn entries<'a>(item: Option<Item<'a>>) -> CliResult<Vec<(String, Item<'a>)>> {
    let entries = item.map(|item| item.entries()).transpose()?.unwrap_or_default();
    Ok(entries.into_iter().map(|(key, item)| (key.text.clone(), item)).collect())
}

/// Returns the content of a config or secret.
fn content(item: &Item<'_>, variables: &Variables<'_>, notes: &mut Notes) -> CliResult<String> {
    let mut keys = item.keys()?;
    keys.refuse("external", "podmesh keeps no configs and secrets: write `file:` instead")?;
    keys.refuse("template_driver", "podmesh has no templates")?;
    keys.refuse("driver", "podmesh has no drivers of secrets")?;
    keys.ignore("name", notes, "only this project has it");
    keys.ignore("labels", notes, "it has no effect here");
    let file = keys.take("file");
    let content = keys.take("content");
    let environment = keys.take("environment");
    keys.finish()?;
    match (file, content, environment) {
        (Some(file), None, None) => {
            let path = file.node.place.source.folder.join(file.text()?);
            text_of(&path, &file)
        }
        (None, Some(content), None) => Ok(content.text()?.to_owned()),
        (None, None, Some(environment)) => {
            let name = environment.text()?;
            let value = variables.get(name).map_err(|why| environment.wrong(why))?;
            value.ok_or_else(|| environment.wrong(format!("variable {name} is not set")))
        }
        _ => Err(item.wrong("write exactly one of `file`, `content` and `environment`")),
    }
}
