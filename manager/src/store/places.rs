//! Whether what attempts have of their nodes, the drains, maintenance and labels of nodes agree with each
//! other.

use std::collections::{BTreeMap, BTreeSet};

use podmesh_manager_core::state::{ActiveAttempt, NodeRow, State};
use podmesh_protocol::ids::{AttemptId, Name};
use podmesh_protocol::limits::LABELS_MAX;
use podmesh_protocol::node::Scheduling;
use podmesh_protocol::place::{Claim, PlaceRules, WHOLE, validate_offers};
use podmesh_protocol::spec::validate_label_value;

/// What the attempts of a node have.
#[derive(Default)]
struct Used<'a> {
    attempts: usize,
    /// An attempt that has the node for itself.
    alone: Option<AttemptId>,
    /// Thousandths of the ids of named resources.
    ids: BTreeMap<(&'a Name, &'a str), u32>,
}

/// Returns what is wrong with claims, drains, maintenance and labels, if anything is. A claim may be of an id that
/// the node no longer offers.
pub(super) fn contradiction(state: &State) -> Option<String> {
    let of_nodes = state.nodes.values().find_map(|row| node(row));
    of_nodes.or_else(|| claims(state))
}

fn node(row: &NodeRow) -> Option<String> {
    let name = &row.node;
    if let Some(drain) = &row.drain {
        if row.scheduling != Scheduling::Draining {
            return Some(format!("node {name} has a drain, and is not drained"));
        }
        if let Err(why) = drain.spec.validate() {
            return Some(format!("the drain of node {name}: {why}"));
        }
    }
    if let Some(planned) = &row.maintenance {
        let drains = row.scheduling == Scheduling::Draining;
        if planned.before.is_some_and(|before| before == Scheduling::Draining || !drains) {
            return Some(format!(
                "the maintenance of node {name} has begun, and it is not drained"
            ));
        }
        if let Err(why) = planned.spec.validate() {
            return Some(format!("the maintenance of node {name}: {why}"));
        }
    }
    let mut labels = row.admin_labels.values();
    if row.admin_labels.len() > LABELS_MAX
        || labels.any(|value| validate_label_value("label", value).is_err())
    {
        return Some(format!("the labels that admins gave node {name} are over a limit"));
    }
    let offers = validate_offers(&row.resources);
    offers.err().map(|why| format!("what node {name} offers: {why}"))
}

fn claims(state: &State) -> Option<String> {
    let mut nodes: BTreeMap<&Name, Used<'_>> = BTreeMap::new();
    for (id, job) in &state.jobs {
        let rules = &job.spec.place;
        for (index, active) in &job.active {
            let attempt = AttemptId::new(*id, *index, active.number);
            if !agree(rules, active) {
                return Some(format!(
                    "what attempt {attempt} has of named resources is not what its job asks for"
                ));
            }
            let used = nodes.entry(&active.node).or_default();
            used.attempts += 1;
            used.alone = used.alone.or(rules.exclusive.then_some(attempt));
            for (name, claim) in active.claims.iter().flat_map(|claims| claims.iter()) {
                for resource in &claim.ids {
                    *used.ids.entry((name, resource)).or_default() += claim.of_each();
                }
            }
        }
    }
    nodes.into_iter().find_map(|(node, used)| {
        let alone = used.alone.filter(|_| used.attempts > 1);
        if let Some(attempt) = alone {
            return Some(format!("attempt {attempt} has node {node} for itself, and is not alone"));
        }
        let shared = used.ids.into_iter().find(|(_, millis)| *millis > WHOLE);
        shared.map(|((name, id), millis)| {
            format!("attempts have {millis} thousandths of {name} {id} of node {node}")
        })
    })
}

/// Returns whether an attempt has what its job asks for.
fn agree(rules: &PlaceRules, active: &ActiveAttempt) -> bool {
    let is_whole = |claim: &Claim| {
        let wanted = match claim.millis {
            _ if claim.ids.is_empty() => 0,
            millis if millis < WHOLE => 1,
            millis => (millis / WHOLE) as usize,
        };
        let different: BTreeSet<&String> = claim.ids.iter().collect();
        (different.len(), claim.ids.len()) == (wanted, wanted)
    };
    match &active.claims {
        None => rules.resources.is_empty(),
        Some(claims) => {
            let amounts = claims.iter().map(|(name, claim)| (name, &claim.millis));
            amounts.eq(&rules.resources) && claims.values().all(is_whole)
        }
    }
}
