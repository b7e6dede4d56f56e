//! Makes specs of podmesh services from the services of a project.

mod deploy;
mod files;
mod health;
mod mounts;
mod order;
mod ports;
mod service;
#[cfg(test)]
mod tests;
mod top;

use std::collections::{BTreeMap, BTreeSet};

use podmesh_protocol::ids::Name;
use podmesh_protocol::service::{DependsOn, RestartWhen, ServiceSpec};

use self::service::Scope;
use self::top::Shared;
use super::interpolate::Variables;
use super::load::Model;
use super::node::Value;
use super::read::{Item, Notes};
use super::{Member, Project};
use crate::env_vars::Lookup;
use crate::error::CliResult;

/// A service that another one needs.
#[derive(Debug)]
struct Needed<'a> {
    item: Item<'a>,
    service: String,
    needs: DependsOn,
    required: bool,
}

/// Converts a project. Its services come in the order in which they are started.
///
/// # Errors
/// Whatever podmesh does not support, with the file, the line and the keys.
pub(super) fn convert(model: Model, lookup: Lookup<'_>) -> CliResult<Project> {
    let mut notes = Notes::default();
    let variables = Variables::new(lookup, model.variables.clone());
    let root = Item::new(&model.root, "");
    let mut keys = root.keys()?;
    let shared = Shared::read(&model.name, &mut keys, &variables, &mut notes)?;
    let services = keys.take("services");
    keys.finish()?;
    let services = services.map(|item| item.entries()).transpose()?.unwrap_or_default();
    if services.is_empty() {
        return Err(root.wrong("the file has no services"));
    }
    check_names(&services)?;

    let mut active: Vec<(&str, &Item<'_>)> = Vec::new();
    for (key, item) in &services {
        if is_active(item, &model.profiles)? {
            active.push((&key.text, item));
        }
    }
    let names: BTreeSet<&str> = active.iter().map(|(name, _)| *name).collect();
    let all: BTreeSet<&str> = services.iter().map(|(key, _)| key.text.as_str()).collect();
    let mut needed = BTreeMap::new();
    for (name, item) in &active {
        let mut found = dependencies(item, &mut notes)?;
        found.retain(|needed| {
            let there = names.contains(needed.service.as_str());
            if !there && !needed.required {
                needed.item.ignore(&mut notes, "the service is not there, and not required");
            }
            there || needed.required
        });
        for Needed { item, service, .. } in &found {
            if !names.contains(service.as_str()) {
                let why = if all.contains(service.as_str()) {
                    format!(
                        "service `{service}` is not in an active profile; choose its profile with --profile, or write `required: false`"
                    )
                } else {
                    format!("there is no service `{service}`")
                };
                return Err(item.wrong(why));
            }
        }
        needed.insert(*name, found);
    }
    let order = order::order(&needed)?;

    let scope = Scope { shared: &shared, variables: &variables, lookup };
    let mut specs: BTreeMap<&str, ServiceSpec> = BTreeMap::new();
    for (name, item) in &active {
        let depends_on = needed[name].iter().map(|needed| {
            Ok((service_name(&model.name, &needed.service, &needed.item)?, needed.needs))
        });
        let depends_on = depends_on.collect::<CliResult<_>>()?;
        let member = name.parse().map_err(|why| item.wrong(format!("`{name}`: {why}")))?;
        let member = (service_name(&model.name, name, item)?, member);
        let spec = service::service(&scope, name, member, item, depends_on, &mut notes)?;
        specs.insert(name, spec);
    }
    for found in needed.values() {
        for Needed { item, service, needs, .. } in found {
            let always = specs[service.as_str()].restart.when == RestartWhen::Always;
            if *needs == DependsOn::Completed && always {
                return Err(item.wrong(format!(
                    "service `{service}` never completes, because it is always restarted; write `restart: no` or `restart: on-failure` there"
                )));
            }
        }
    }
    for name in &model.unset {
        notes.0.push(format!("variable {name} is not set; it is empty in the file"));
    }
    let declared: BTreeMap<&Name, bool> =
        shared.volumes.values().map(|volume| (&volume.name, volume.external)).collect();
    let used = specs.values().flat_map(|spec| spec.volumes()).map(|volume| &volume.volume);
    // Volumes without a name are not declared.
    let own = used.chain(declared.keys().copied()).filter(|name| declared.get(name) != Some(&true));
    let own: BTreeSet<Name> = own.cloned().collect();
    let members = order
        .iter()
        .filter_map(|name| Some(Member { name: (*name).to_owned(), spec: specs.remove(name)? }))
        .collect();
    let volumes = own.into_iter().collect();
    Ok(Project { name: model.name.clone(), members, volumes, notes: notes.0, root: model.root })
}

/// Returns the name of the podmesh service for a service of a project.
fn service_name(project: &Name, service: &str, item: &Item<'_>) -> CliResult<Name> {
    let text = format!("{project}-{service}");
    text.parse().map_err(|why| item.wrong(format!("`{text}`: {why}")))
}

/// Refuses names that differ only in case: podmesh has only one service of such names.
fn check_names(services: &[(&super::node::Key, Item<'_>)]) -> CliResult<()> {
    let mut seen: BTreeMap<String, &super::node::Key> = BTreeMap::new();
    for (key, item) in services {
        if let Some(other) = seen.insert(key.text.to_lowercase(), key) {
            return Err(key.place.wrong(
                &item.path,
                format!(
                    "the name differs only in case from `{}` in line {}",
                    other.text, other.place.line
                ),
            ));
        }
        if !matches!(item.node.value, Value::Map(_)) {
            return Err(
                item.wrong(format!("a service is a map, and this is {}", item.node.describe()))
            );
        }
    }
    Ok(())
}

/// Returns whether a service has no profile, or one of the active ones.
fn is_active(item: &Item<'_>, active: &[String]) -> CliResult<bool> {
    let Some(node) = item.node.get("profiles") else { return Ok(true) };
    let profiles = Item::new(node, format!("{}.profiles", item.path)).texts()?;
    let is_active = |profile: &String| active.iter().any(|name| name == profile || name == "*");
    Ok(profiles.is_empty() || profiles.iter().any(is_active))
}

/// Returns the services that one needs: those of `depends_on` and `links`.
fn dependencies<'a>(service: &Item<'a>, notes: &mut Notes) -> CliResult<Vec<Needed<'a>>> {
    let mut found: Vec<Needed<'a>> = Vec::new();
    if let Some(node) = service.node.get("depends_on") {
        for (key, item) in Item::new(node, format!("{}.depends_on", service.path)).entries()? {
            let mut keys = item.keys()?;
            let condition = keys.take("condition");
            let needs = match &condition {
                None => DependsOn::Started,
                Some(condition) => match condition.text()? {
                    "service_started" => DependsOn::Started,
                    "service_healthy" => DependsOn::Healthy,
                    "service_completed_successfully" => DependsOn::Completed,
                    _ => {
                        return Err(condition.wrong(
                            "write service_started, service_healthy or service_completed_successfully",
                        ));
                    }
                },
            };
            let required = keys.take("required").map(|item| item.boolean()).transpose()?;
            if let Some(restart) = keys.take("restart")
                && restart.boolean()?
            {
                restart.ignore(notes, "a service is not restarted because another one is");
            }
            keys.finish()?;
            let required = required.unwrap_or(true);
            found.push(Needed { item, service: key.text.clone(), needs, required });
        }
    }
    if let Some(node) = service.node.get("links") {
        for item in Item::new(node, format!("{}.links", service.path)).list()? {
            let (name, alias) = item.text()?.split_once(':').unwrap_or((item.text()?, ""));
            if !alias.is_empty() && alias != name {
                return Err(item.wrong(format!(
                    "podmesh has no links; give `{name}` the name for all: `networks: {{default: {{aliases: [{alias}]}}}}`"
                )));
            }
            if found.iter().all(|known| known.service != name) {
                let (service, needs) = (name.to_owned(), DependsOn::Started);
                found.push(Needed { item, service, needs, required: true });
            }
        }
    }
    Ok(found)
}
