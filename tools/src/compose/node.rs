//! A compose file as a tree: every value and key knows its place.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::error::CliError;
use crate::output::text::{clip, escape};

/// The maximum number of characters of a key or value in an error.
const SHOWN: usize = 200;
/// The maximum number of characters of a reason.
const SHOWN_REASON: usize = 600;

/// A file that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// Its name in errors.
    pub(super) name: String,
    /// The folder that paths in it are relative to.
    pub(super) folder: PathBuf,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) source: Arc<Source>,
    /// From 1.
    pub(super) line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", self.source.name, self.line)
    }
}

impl Place {
    /// Creates an error about the value at this place. `path` are the keys that lead to it.
    pub(super) fn wrong(&self, path: &str, why: impl fmt::Display) -> CliError {
        let path = match path {
            "" => String::new(),
            path => format!(" ({})", clip(&escape(path), SHOWN)),
        };
        CliError::usage(format!("{self}{path}"))
            .because(clip(&escape(&why.to_string()), SHOWN_REASON))
    }
}

/// How a value meets the one of an earlier file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum MergeTag {
    /// As usual for its key.
    #[default]
    None,
    /// `!reset`: the key is removed.
    Reset,
    /// `!override`: it replaces the earlier one.
    Override,
}

/// A value of a compose file.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) merge: MergeTag,
    pub(super) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    /// A text, a number or a boolean, as it is written.
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a map.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) place: Place,
}

// Places do not count: a value is the same wherever it is written.
impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Node {
    pub(super) fn new(place: Place, value: Value) -> Self {
        Self { place, merge: MergeTag::None, value }
    }

    pub(super) fn scalar(place: &Place, text: impl Into<String>) -> Self {
        Self::new(place.clone(), Value::Scalar(text.into()))
    }

    /// Returns the entries, if it is a map.
    pub(super) fn entries(&self) -> &[(Key, Node)] {
        match &self.value {
            Value::Map(entries) => entries,
            Value::Null | Value::Scalar(_) | Value::List(_) => &[],
        }
    }

    /// Returns the value of a key, if it is a map and has the key.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|(name, _)| name.text == key).map(|(_, node)| node)
    }

    /// Returns the text, if it is a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// Describes what it is, for errors.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::Scalar(text) => format!("`{}`", clip(text, SHOWN)),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a map".into(),
        }
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.value {
            Value::Null => serializer.serialize_unit(),
            Value::Scalar(text) => match (text.as_str(), text.parse::<i64>()) {
                ("true", _) => serializer.serialize_bool(true),
                ("false", _) => serializer.serialize_bool(false),
                // Only without loss: 0440 stays a text.
                (_, Ok(number)) if number.to_string() == *text => serializer.serialize_i64(number),
                _ => serializer.serialize_str(text),
            },
            Value::List(nodes) => {
                let mut list = serializer.serialize_seq(Some(nodes.len()))?;
                nodes.iter().try_for_each(|node| list.serialize_element(node))?;
                list.end()
            }
            Value::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, node) in entries {
                    map.serialize_entry(&key.text, node)?;
                }
                map.end()
            }
        }
    }
}
