//! A set of indexes of tasks, as ranges.

use alloc::collections::BTreeMap;

use podmesh_protocol::spec::ArrayRange;
use serde::{Deserialize, Serialize};

/// A set of indexes. It takes room for each range, not for each index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexSet {
    /// The last index of each range, by the first. There is a gap between each two.
    ranges: BTreeMap<u32, u32>,
    /// How many indexes there are.
    count: u64,
}

impl IndexSet {
    /// Returns whether it has no index.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns how many indexes it has.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns whether it has an index.
    pub fn contains(&self, index: u32) -> bool {
        self.range_before(index).is_some_and(|range| index <= range.last)
    }

    /// Returns the ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = ArrayRange> {
        self.ranges.iter().map(|(first, last)| ArrayRange { first: *first, last: *last })
    }

    /// Adds the indexes of a range.
    pub fn insert(&mut self, range: ArrayRange) {
        if range.tasks() == 0 {
            return;
        }
        let ArrayRange { mut first, mut last } = range;
        // Those that overlap or touch it become one with it.
        while let Some(before) = self.range_before(last.saturating_add(1))
            && before.last.saturating_add(1) >= first
        {
            self.ranges.remove(&before.first);
            self.count -= before.tasks();
            first = first.min(before.first);
            last = last.max(before.last);
        }
        self.ranges.insert(first, last);
        self.count += ArrayRange { first, last }.tasks();
    }

    /// Removes an index, and returns whether it was there.
    pub fn remove(&mut self, index: u32) -> bool {
        let Some(ArrayRange { first, last }) = self.range_before(index) else { return false };
        if index > last {
            return false;
        }
        self.ranges.remove(&first);
        if first < index {
            self.ranges.insert(first, index - 1);
        }
        if index < last {
            self.ranges.insert(index + 1, last);
        }
        self.count -= 1;
        true
    }

    /// Removes the lowest index, and returns it.
    pub fn pop_first(&mut self) -> Option<u32> {
        let (first, _) = self.ranges.first_key_value()?;
        let first = *first;
        self.remove(first);
        Some(first)
    }

    /// Adds the indexes of another set.
    pub fn extend(&mut self, other: &Self) {
        other.iter().for_each(|range| self.insert(range));
    }

    /// Returns the indexes that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = Self::default();
        let (mut ours, mut theirs) = (self.iter().peekable(), other.iter().peekable());
        while let (Some(a), Some(b)) = (ours.peek(), theirs.peek()) {
            let (a, b) = (*a, *b);
            both.insert(ArrayRange { first: a.first.max(b.first), last: a.last.min(b.last) });
            if a.last <= b.last {
                ours.next();
            } else {
                theirs.next();
            }
        }
        both
    }

    /// Returns the last range that begins at or before an index.
    fn range_before(&self, index: u32) -> Option<ArrayRange> {
        let (first, last) = self.ranges.range(..=index).next_back()?;
        Some(ArrayRange { first: *first, last: *last })
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn all(set: &IndexSet) -> Vec<u32> {
        set.iter().flat_map(|range| range.first..=range.last).collect()
    }

    fn is_tight(set: &IndexSet) -> bool {
        let ranges: Vec<ArrayRange> = set.iter().collect();
        ranges.windows(2).all(|pair| pair[0].last + 1 < pair[1].first)
    }

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((0u32..5, 0u32..60, 0u32..9), 0..60)) {
            let (mut set, mut model) = (IndexSet::default(), BTreeSet::new());
            let (mut other, mut other_model) = (IndexSet::default(), BTreeSet::new());
            for (kind, first, length) in steps {
                match kind {
                    0 | 1 => {
                        // An empty range adds nothing.
                        set.insert(ArrayRange { first: first + 1, last: first + length });
                        model.extend(first + 1..=first + length);
                    }
                    2 => prop_assert_eq!(set.remove(first), model.remove(&first)),
                    3 => prop_assert_eq!(set.pop_first(), model.pop_first()),
                    _ => {
                        other.insert(ArrayRange { first, last: first + length });
                        other_model.extend(first..=first + length);
                    }
                }
                prop_assert_eq!(all(&set), model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.count(), model.len() as u64);
                prop_assert!(is_tight(&set));
                prop_assert_eq!(set.contains(first), model.contains(&first));
            }
            let both = set.intersection(&other);
            let both_model: Vec<u32> = model.intersection(&other_model).copied().collect();
            prop_assert_eq!(all(&both), both_model);
            set.extend(&other);
            prop_assert_eq!(set.count(), model.union(&other_model).count() as u64);
        }
    }

    #[test]
    fn the_highest_index_is_an_index() {
        let mut set = IndexSet::default();
        set.insert(ArrayRange { first: u32::MAX - 1, last: u32::MAX });
        set.insert(ArrayRange { first: u32::MAX, last: u32::MAX });
        assert_eq!((set.count(), set.remove(u32::MAX), set.count()), (2, true, 1));
    }
}
