//! Words of a later version, which a reader shows although it does not know them.

use std::fmt;

use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

/// A word of an enum `T` without fields. A later version may have more words: a reader keeps a word
/// that it does not know, shows it, and writes the same bytes again.
///
/// What is only shown has this type. What a core decides on has the type `T`, so that nothing is
/// decided on a word that is not known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum MaybeKnown<T> {
    /// A word that this version knows.
    Known(T),
    /// A word of a later version.
    Unknown(String),
}

impl<T> MaybeKnown<T> {
    /// Returns the value of a word that this version knows.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }
}

impl<T: Default + PartialEq> MaybeKnown<T> {
    /// Returns whether it is the default, which is not written.
    pub fn is_default(&self) -> bool {
        *self == T::default()
    }
}

impl<T: Default> Default for MaybeKnown<T> {
    fn default() -> Self {
        Self::Known(T::default())
    }
}

impl<T> From<T> for MaybeKnown<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl<T: PartialEq> PartialEq<T> for MaybeKnown<T> {
    fn eq(&self, other: &T) -> bool {
        self.known() == Some(other)
    }
}

impl<T: fmt::Display> fmt::Display for MaybeKnown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(value) => value.fmt(f),
            // It comes from another machine, and may go to a terminal.
            Self::Unknown(word) => word.escape_debug().fmt(f),
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for MaybeKnown<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        let known: StrDeserializer<'_, Error> = word.as_str().into_deserializer();
        Ok(match T::deserialize(known) {
            Ok(value) => Self::Known(value),
            Err(_) => Self::Unknown(word),
        })
    }
}
