//! Which named resources of a node are in use, and which a task gets.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Reverse;

use podmesh_protocol::ids::Name;
use podmesh_protocol::node::ResourceView;
use podmesh_protocol::place::{Claim, Claims, Offer, PlaceRules, WHOLE};

/// What the attempts of a node have of a named resource, in thousandths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Taken {
    /// Without ids.
    count: u64,
    /// By id. An id may be one that the agent offers no more.
    ids: BTreeMap<String, u32>,
}

/// What the attempts of a node have of its named resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct InUse(BTreeMap<Name, Taken>);

impl InUse {
    /// Returns what a task gets of what a node offers; `None` if there is not enough.
    pub(crate) fn claims(
        &self,
        offers: &BTreeMap<Name, Offer>,
        rules: &PlaceRules,
    ) -> Option<Claims> {
        let of = |(name, millis): (&Name, &u32)| {
            Some((name.clone(), self.claim(name, offers.get(name)?, *millis)?))
        };
        rules.resources.iter().map(of).collect()
    }

    /// Returns whether there is enough for a task.
    pub(crate) fn has_room(&self, offers: &BTreeMap<Name, Offer>, rules: &PlaceRules) -> bool {
        self.lacking(offers, rules).is_none()
    }

    /// Returns the first resource of which there is not enough for a task.
    pub(crate) fn lacking<'a>(
        &self,
        offers: &BTreeMap<Name, Offer>,
        rules: &'a PlaceRules,
    ) -> Option<(&'a Name, u32)> {
        let lacks = |(name, millis): &(&Name, &u32)| {
            offers.get(*name).and_then(|offer| self.claim(name, offer, **millis)).is_none()
        };
        rules.resources.iter().find(lacks).map(|(name, millis)| (name, *millis))
    }

    fn claim(&self, name: &Name, offer: &Offer, millis: u32) -> Option<Claim> {
        if !offer.suits(millis) {
            return None;
        }
        let taken = self.0.get(name);
        if offer.ids.is_empty() {
            let used = taken.map_or(0, |taken| taken.count);
            let fits = used + u64::from(millis) <= offer.millis();
            return fits.then(|| Claim { millis, ids: Vec::new() });
        }
        let used = |id: &String| taken.and_then(|taken| taken.ids.get(id)).copied().unwrap_or(0);
        if millis < WHOLE {
            // The fullest one that has enough left: whole ones stay whole.
            let ids = offer.ids.iter().enumerate();
            let fitting = ids.filter(|(_, id)| used(id) + millis <= WHOLE);
            let (_, id) = fitting.max_by_key(|(at, id)| (used(id), Reverse(*at)))?;
            return Some(Claim { millis, ids: alloc::vec![id.clone()] });
        }
        let wanted = (millis / WHOLE) as usize;
        let free = offer.ids.iter().filter(|id| used(id) == 0);
        let ids: Vec<String> = free.take(wanted).cloned().collect();
        (ids.len() == wanted).then_some(Claim { millis, ids })
    }

    /// Adds what an attempt has.
    pub(crate) fn take(&mut self, claims: &Claims) {
        for (name, claim) in claims {
            let taken = self.0.entry(name.clone()).or_default();
            if claim.ids.is_empty() {
                taken.count += u64::from(claim.millis);
            }
            for id in &claim.ids {
                *taken.ids.entry(id.clone()).or_default() += claim.of_each();
            }
        }
    }

    /// Takes back what an attempt had.
    pub(crate) fn give_back(&mut self, claims: &Claims) {
        for (name, claim) in claims {
            let Some(taken) = self.0.get_mut(name) else { continue };
            if claim.ids.is_empty() {
                taken.count = taken.count.saturating_sub(claim.millis.into());
            }
            for id in &claim.ids {
                if let Some(used) = taken.ids.get_mut(id) {
                    *used = used.saturating_sub(claim.of_each());
                    if *used == 0 {
                        taken.ids.remove(id);
                    }
                }
            }
            if *taken == Taken::default() {
                self.0.remove(name);
            }
        }
    }

    /// Returns what is shown of the named resources of a node.
    pub(crate) fn view(&self, offers: &BTreeMap<Name, Offer>) -> BTreeMap<Name, ResourceView> {
        let names = offers.keys().chain(self.0.keys());
        let view = |name: &Name| {
            let offer = offers.get(name).cloned().unwrap_or_default();
            let taken = self.0.get(name).cloned().unwrap_or_default();
            let of_ids: u64 = taken.ids.values().map(|used| u64::from(*used)).sum();
            let gone = taken.ids.into_keys().filter(|id| !offer.ids.contains(id)).collect();
            (name.clone(), ResourceView { offer, used: taken.count + of_ids, gone })
        };
        names.map(view).collect()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn gpus(ids: &[&str]) -> BTreeMap<Name, Offer> {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        [(name("gpu"), Offer { count: 0, ids })].into()
    }

    fn needs(millis: u32) -> PlaceRules {
        PlaceRules { resources: [(name("gpu"), millis)].into(), ..PlaceRules::default() }
    }

    /// Takes what a task needs. Returns the ids.
    fn get(used: &mut InUse, offers: &BTreeMap<Name, Offer>, millis: u32) -> Option<Vec<String>> {
        let claims = used.claims(offers, &needs(millis))?;
        used.take(&claims);
        Some(claims[&name("gpu")].ids.clone())
    }

    #[test]
    fn fractions_fill_one_id_before_they_open_the_next() {
        let (offers, mut used) = (gpus(&["a", "b", "c"]), InUse::default());
        assert_eq!(get(&mut used, &offers, 500).unwrap(), ["a"]);
        assert_eq!(get(&mut used, &offers, 1_000).unwrap(), ["b"]);
        assert_eq!(get(&mut used, &offers, 500).unwrap(), ["a"]);
        assert_eq!(get(&mut used, &offers, 2_000), None, "only one whole id is left");
        assert_eq!(get(&mut used, &offers, 600).unwrap(), ["c"]);
        assert_eq!(get(&mut used, &offers, 600), None, "a fraction is on one id");
        assert_eq!(get(&mut used, &offers, 400).unwrap(), ["c"]);
        assert_eq!(get(&mut used, &offers, 1), None);
    }

    #[test]
    fn what_is_given_back_is_given_again() {
        let (offers, mut used) = (gpus(&["a", "b"]), InUse::default());
        let claims = used.claims(&offers, &needs(2_000)).unwrap();
        used.take(&claims);
        assert!(!used.has_room(&offers, &needs(1)));
        used.give_back(&claims);
        assert_eq!(used, InUse::default());
        assert_eq!(get(&mut used, &offers, 2_000).unwrap(), ["a", "b"]);
    }

    #[test]
    fn an_id_that_is_gone_is_not_given_and_is_shown_until_it_is_given_back() {
        let mut used = InUse::default();
        let held = used.claims(&gpus(&["a"]), &needs(1_000)).unwrap();
        used.take(&held);
        let offers = gpus(&["b"]);
        assert_eq!(get(&mut used, &offers, 1_000).unwrap(), ["b"]);
        let view = &used.view(&offers)[&name("gpu")];
        assert_eq!((view.used, &view.gone), (2_000, &vec!["a".to_owned()]));
        used.give_back(&held);
        assert!(used.view(&offers)[&name("gpu")].gone.is_empty());
        assert!(used.view(&[].into())[&name("gpu")].gone.contains(&"b".to_owned()));
    }

    #[test]
    fn a_number_has_no_parts() {
        let offers = [(name("gpu"), Offer { count: 2, ids: Vec::new() })].into();
        let mut used = InUse::default();
        assert_eq!(get(&mut used, &offers, 500), None);
        assert_eq!(get(&mut used, &offers, 2_000).unwrap(), [""; 0]);
        assert_eq!(get(&mut used, &offers, 1_000), None);
    }
}
