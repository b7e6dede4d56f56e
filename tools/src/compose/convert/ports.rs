//! `ports`: what the nodes' proxies listen on.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podmesh_protocol::ids::Name;
use podmesh_protocol::service::PortSpec;

use super::super::node::Value;
use super::super::read::{Item, Notes};
use super::super::values::Ports;
use crate::error::CliResult;
use crate::values::made_name;

/// A line of `ports`.
struct Entry {
    name: Option<Name>,
    target: Ports,
    published: Option<Ports>,
}

/// Returns the ports of a service.
pub(super) fn ports(
    item: Option<Item<'_>>,
    notes: &mut Notes,
) -> CliResult<BTreeMap<Name, PortSpec>> {
    let mut ports: BTreeMap<Name, PortSpec> = BTreeMap::new();
    for item in item.map(|item| item.list()).transpose()?.unwrap_or_default() {
        let entry = match &item.node.value {
            Value::Map(_) => long(&item, notes)?,
            _ => short(&item)?,
        };
        let count = entry.target.count();
        if entry.published.is_some_and(|published| published.count() != count) {
            let why = "the two ranges have different lengths; a published port is one number here";
            return Err(item.wrong(why));
        }
        for (at, target) in (0..).zip(entry.target.first..=entry.target.last) {
            let publish = entry.published.map(|published| published.first + at);
            let name = match &entry.name {
                Some(name) if count == 1 && !ports.contains_key(name) => name.clone(),
                _ => free_name(&ports, target, publish, &item)?,
            };
            let port = PortSpec { container: Some(target), publish, proxy_protocol: false };
            if !ports.values().any(|known| *known == port) {
                ports.insert(name, port);
            }
        }
    }
    Ok(ports)
}

/// Returns `tcp80`, or `tcp80-8080` if another port has that name.
fn free_name(
    ports: &BTreeMap<Name, PortSpec>,
    target: u16,
    publish: Option<u16>,
    item: &Item<'_>,
) -> CliResult<Name> {
    let long = format!("tcp{target}-{}", publish.unwrap_or_default());
    [format!("tcp{target}"), long]
        .iter()
        .filter_map(|text| made_name(text))
        .find(|name| !ports.contains_key(name))
        .ok_or_else(|| item.wrong("the port is written twice"))
}

fn short(item: &Item<'_>) -> CliResult<Entry> {
    let text = item.text()?;
    let (text, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    only_tcp(protocol, item)?;
    let (rest, target) = text.rsplit_once(':').unwrap_or(("", text));
    let target = parsed(target, item)?;
    if rest.is_empty() {
        return Ok(Entry { name: None, target, published: None });
    }
    let (host, published) = rest.rsplit_once(':').unwrap_or(("", rest));
    host_address(host, item)?;
    let published = if published.is_empty() { None } else { Some(parsed(published, item)?) };
    Ok(Entry { name: None, target, published })
}

fn long(item: &Item<'_>, notes: &mut Notes) -> CliResult<Entry> {
    let mut keys = item.keys()?;
    let Some(target) = keys.take("target") else {
        return Err(item.wrong("`target` is missing: the port in the container"));
    };
    let target = target.parsed()?;
    let published = match keys.take("published") {
        Some(published) if !published.text()?.is_empty() => Some(published.parsed()?),
        _ => None,
    };
    if let Some(protocol) = keys.take("protocol") {
        only_tcp(protocol.text()?, &protocol)?;
    }
    if let Some(host) = keys.take("host_ip") {
        host_address(host.text()?, &host)?;
    }
    let name = keys.take("name").map(|name| CliResult::Ok(made_name(name.text()?))).transpose()?;
    keys.ignore("mode", notes, "every node listens on the port");
    keys.ignore("app_protocol", notes, "connections are passed on as they are");
    keys.finish()?;
    Ok(Entry { name: name.flatten(), target, published })
}

fn parsed(text: &str, item: &Item<'_>) -> CliResult<Ports> {
    text.parse().map_err(|why| item.wrong(format!("`{text}`: {why}")))
}

fn only_tcp(protocol: &str, item: &Item<'_>) -> CliResult<()> {
    if protocol == "tcp" {
        return Ok(());
    }
    let why = format!(
        "podmesh passes only TCP connections to services, not {protocol}; with `network_mode: host` \
         the container itself listens on its node"
    );
    Err(item.wrong(why))
}

/// Accepts only an address that means all addresses.
fn host_address(host: &str, item: &Item<'_>) -> CliResult<()> {
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    if plain.is_empty() {
        return Ok(());
    }
    match plain.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() => Ok(()),
        Ok(address) if address.is_loopback() => Err(item.wrong(format!(
            "`{plain}` would keep the port on this machine, but podmesh publishes a port on the LAN, on every node. \
             Remove the address to publish it, or write only the port in the container to keep it in the project"
        ))),
        Ok(_) => Err(item.wrong(format!(
            "`{plain}`: a port is published on every node, and not at one address; remove the address"
        ))),
        Err(_) => Err(item.wrong(format!("`{plain}` is not an IP address"))),
    }
}
