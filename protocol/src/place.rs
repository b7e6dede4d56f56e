//! Where tasks may go beyond labels, cores and memory: named resources, preferences, spreading, nodes
//! for themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::ids::Name;
use crate::limits::{
    LABELS_MAX, RESOURCE_ID_BYTES_MAX, RESOURCE_IDS_MAX, RESOURCE_MILLIS_MAX, RESOURCES_MAX,
};
use crate::rare::Usual;
use crate::service::variable;
use crate::spec::{SpecError, at_most, validate_label_value, within};

/// Variables that tasks have besides those of named resources, without `PODMESH_`.
const TAKEN: [&str; 12] = [
    "AGENT",
    "ATTEMPT",
    "JOB",
    "JOB_NAME",
    "NODE",
    "REPLICA",
    "REVISION",
    "SCHEDULE",
    "SCHEDULE_TIME",
    "SERVICE",
    "TASK",
    "TASK_INDEX",
];
/// What others of them begin with.
const TAKEN_PREFIXES: [&str; 2] = ["PORT_", "SERVICE_"];

/// Thousandths of one.
pub const WHOLE: u32 = 1_000;

/// What a node offers of a named resource: a number, or things with ids of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// How many, if they have no ids.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub count: u32,
    /// Their ids, such as the UUIDs of GPUs or the paths of devices. A task gets some of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl Offer {
    /// Returns how much there is, in thousandths.
    pub fn millis(&self) -> u64 {
        let all = if self.ids.is_empty() { u64::from(self.count) } else { self.ids.len() as u64 };
        all * u64::from(WHOLE)
    }

    /// Returns whether all of it is enough for `millis`. A part of one can only be had of things with
    /// ids.
    pub fn suits(&self, millis: u32) -> bool {
        let is_whole = millis.is_multiple_of(WHOLE);
        u64::from(millis) <= self.millis() && (is_whole || !self.ids.is_empty())
    }
}

/// Returns the name of the environment variable that says what a task has of a named resource:
/// `PODMESH_GPU` for `gpu`. The ids are in `PODMESH_GPU_IDS`.
pub fn resource_variable(name: &Name) -> String {
    variable("PODMESH_", name)
}

/// Checks that the variables of named resources are different, and no others of a task.
fn check_variables<'a>(
    field: &'static str,
    names: impl Iterator<Item = &'a Name>,
) -> Result<(), SpecError> {
    let mut all = BTreeSet::new();
    for name in names {
        let word = variable("", name);
        let wrong = |why: String| Err(SpecError::Text { field, why });
        if TAKEN.contains(&&*word) || TAKEN_PREFIXES.iter().any(|begin| word.starts_with(begin)) {
            return wrong(format!(
                "`{name}` cannot be the name of a resource: PODMESH_{word} has another meaning"
            ));
        }
        let ids = format!("{word}_IDS");
        if !all.insert(word) || !all.insert(ids) {
            return wrong(format!("`{name}` and another name have the same variables"));
        }
    }
    Ok(())
}

/// Checks what a node offers.
///
/// # Errors
/// If there is too much of it; if a name would give a task a variable that has another meaning; if an id
/// is empty, too long, named twice, or has a comma or a control character.
pub fn validate_offers(offers: &BTreeMap<Name, Offer>) -> Result<(), SpecError> {
    let field = "resources";
    let wrong = |why: String| Err(SpecError::Text { field, why });
    at_most(field, offers.len(), "names", RESOURCES_MAX, "RESOURCES_MAX")?;
    check_variables(field, offers.keys())?;
    for (name, offer) in offers {
        let most = i128::from(RESOURCE_MILLIS_MAX / WHOLE);
        within(field, offer.count, 0..=most, Some("RESOURCE_MILLIS_MAX"))?;
        at_most(field, offer.ids.len(), "ids", RESOURCE_IDS_MAX, "RESOURCE_IDS_MAX")?;
        if offer.count > 0 && !offer.ids.is_empty() {
            return wrong(format!("`{name}` has both a number and ids"));
        }
        let mut before: Vec<&String> = Vec::new();
        for id in &offer.ids {
            at_most(field, id.len(), "bytes", RESOURCE_ID_BYTES_MAX, "RESOURCE_ID_BYTES_MAX")?;
            if id.is_empty() || id.contains(',') || id.chars().any(char::is_control) {
                return wrong(format!(
                    "{id:?} is no id: it is empty, or has a comma or a control character"
                ));
            }
            if before.contains(&id) {
                return wrong(format!("the id `{id}` of `{name}` is named twice"));
            }
            before.push(id);
        }
    }
    Ok(())
}

/// Where the tasks of a job may go, beyond what [`JobSpec`](crate::spec::JobSpec) requires.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PlaceRules {
    /// How much a task needs of named resources, in thousandths. More than one must be whole; a part
    /// of one is of a single id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: BTreeMap<Name, u32>,
    /// Labels of the nodes that are tried first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prefer: BTreeMap<Name, String>,
    /// The label over whose values the tasks of the job are spread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Name>,
    /// Whether each task has its node for itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
}

impl Usual for PlaceRules {
    fn usual() -> &'static Self {
        static USUAL: LazyLock<PlaceRules> = LazyLock::new(PlaceRules::default);
        &USUAL
    }
}

impl PlaceRules {
    /// Returns whether there are no rules.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns whether cores and memory alone do not decide whether a node has room.
    pub fn is_picky(&self) -> bool {
        self.exclusive || !self.resources.is_empty()
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// If a resource is named `cpus` or `memory`, its amount is 0, too high, or more than one and not
    /// whole; if there are too many resources or labels, or a label has an invalid value.
    pub fn validate(&self) -> Result<(), SpecError> {
        let field = "resource";
        at_most(field, self.resources.len(), "names", RESOURCES_MAX, "RESOURCES_MAX")?;
        check_variables(field, self.resources.keys())?;
        for (name, millis) in &self.resources {
            if ["cpu", "cpus", "memory"].contains(&name.as_str()) {
                let why = format!("`{name}` is no named resource; use --cpus or --memory");
                return Err(SpecError::Text { field, why });
            }
            let amounts = 1..=i128::from(RESOURCE_MILLIS_MAX);
            within("resource (thousandths)", *millis, amounts, Some("RESOURCE_MILLIS_MAX"))?;
            if *millis > WHOLE && !millis.is_multiple_of(WHOLE) {
                let why = format!("{name}: more than one must be a whole number");
                return Err(SpecError::Text { field, why });
            }
        }
        at_most("prefer", self.prefer.len(), "labels", LABELS_MAX, "LABELS_MAX")?;
        self.prefer.values().try_for_each(|value| validate_label_value("prefer", value))
    }
}

/// What an attempt has of a named resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// How much, in thousandths. A part of one is of the only id.
    pub millis: u32,
    /// Which, if they have ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
}

impl Claim {
    /// Returns how much it has of each of its ids, in thousandths.
    pub fn of_each(&self) -> u32 {
        self.millis.min(WHOLE)
    }
}

/// What an attempt has of named resources.
pub type Claims = BTreeMap<Name, Claim>;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn names_of_resources_are_names_of_variables_that_are_free() {
        let offers = |names: &[&str]| {
            let offer = |name: &&str| (name.parse().unwrap(), Offer { count: 1, ids: vec![] });
            validate_offers(&names.iter().map(offer).collect()).map_err(|why| why.to_string())
        };
        assert_eq!(offers(&["gpu", "license", "node-slots"]), Ok(()));
        for (names, says) in [
            (&["job"][..], "PODMESH_JOB has"),
            (&["task-index"], "PODMESH_TASK_INDEX has"),
            (&["agent"], "PODMESH_AGENT has"),
            (&["service-web"], "PODMESH_SERVICE_WEB has"),
            (&["a-b", "a.b"], "same variables"),
            (&["gpu", "gpu-ids"], "same variables"),
        ] {
            let why = offers(names).unwrap_err();
            assert!(why.contains(says), "{names:?}: {why}");
            let resources = names.iter().map(|name| (name.parse().unwrap(), 1_000)).collect();
            let rules = PlaceRules { resources, ..PlaceRules::default() };
            assert!(rules.validate().unwrap_err().to_string().contains(says), "{names:?}");
        }
    }
}
