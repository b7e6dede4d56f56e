//! The order in which services are started.

use std::collections::BTreeMap;

use super::Needed;
use crate::error::CliResult;

/// Returns the services so that each comes after those that it needs; otherwise by name.
///
/// # Errors
/// If services need each other, with the whole circle.
pub(super) fn order<'a>(needed: &BTreeMap<&'a str, Vec<Needed<'_>>>) -> CliResult<Vec<&'a str>> {
    let mut order: Vec<&str> = Vec::new();
    while order.len() < needed.len() {
        let is_next = |(name, found): &(&&str, &Vec<Needed<'_>>)| {
            !order.contains(*name)
                && found.iter().all(|found| order.contains(&found.service.as_str()))
        };
        match needed.iter().find(is_next) {
            Some((name, _)) => order.push(name),
            None => return Err(circle(needed, &order)),
        }
    }
    Ok(order)
}

/// Returns the error about a circle among the services that could not be put in order.
fn circle(needed: &BTreeMap<&str, Vec<Needed<'_>>>, order: &[&str]) -> crate::error::CliError {
    let mut path: Vec<&str> = Vec::new();
    let mut next = needed.keys().copied().find(|name| !order.contains(name)).unwrap_or_default();
    while !path.contains(&next) {
        path.push(next);
        let mut missing = needed[next].iter().map(|found| found.service.as_str());
        next = missing.find(|name| !order.contains(name)).unwrap_or_default();
        if !needed.contains_key(next) {
            break;
        }
    }
    let begin = path.iter().position(|name| *name == next).unwrap_or_default();
    path.push(next);
    let names = path[begin..].join(" → ");
    let item = needed[path[begin]].iter().find(|found| found.service == path[begin + 1]);
    let why = format!("services need each other: {names}");
    match item {
        Some(found) => found.item.wrong(why),
        None => crate::error::CliError::usage(why),
    }
}
