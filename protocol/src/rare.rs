//! Parts of a spec that most specs do not have.

use std::cmp::Ordering;
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value that is nearly always the default one, which takes no memory of its own. Many specs are
/// kept in memory, one for each replica.
#[derive(Clone, Debug)]
pub struct Rare<T>(Option<Box<T>>);

/// A type with a default value that exists once.
pub trait Usual: Default + PartialEq + 'static {
    /// Returns the default value.
    fn usual() -> &'static Self;
}

impl<T> Default for Rare<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Usual> From<T> for Rare<T> {
    fn from(value: T) -> Self {
        Self((value != *T::usual()).then(|| Box::new(value)))
    }
}

impl<T: Usual> Deref for Rare<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(value) => value,
            None => T::usual(),
        }
    }
}

impl<T: Usual> DerefMut for Rare<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

impl<T: Usual> PartialEq for Rare<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Usual + Eq> Eq for Rare<T> {}

impl<T: Usual + Ord> PartialOrd for Rare<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Usual + Ord> Ord for Rare<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl<T: Usual + Serialize> Serialize for Rare<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de, T: Usual + Deserialize<'de>> Deserialize<'de> for Rare<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::JobRules;

    #[test]
    fn only_another_value_than_the_default_takes_memory() {
        let preemptible = || JobRules { preemptible: true, ..JobRules::default() };
        let (usual, other) = (Rare::from(JobRules::default()), Rare::from(preemptible()));
        assert!(usual.0.is_none() && other.0.is_some());
        assert_eq!((&*usual, &*other), (&JobRules::default(), &preemptible()));
        assert_eq!(usual, Rare::default());
        assert_ne!(usual, other);

        let mut changed = usual.clone();
        changed.preemptible = true;
        assert_eq!(changed, other);
        assert!(!usual.preemptible, "the default stays as it is");
        changed.preemptible = false;
        assert_eq!(changed, usual, "values are compared, wherever they are");
    }
}
