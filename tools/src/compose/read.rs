//! Reads values of the tree with a type. Keys that nobody asks for are refused.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::str::FromStr;

use super::node::{Key, Node, Value};
use crate::error::{CliError, CliResult};
use crate::toml_file::nearest;

/// What a compose file says that has no effect here: for people, one sentence each.
#[derive(Debug, Default)]
pub(super) struct Notes(pub(super) Vec<String>);

/// A value, and the keys that lead to it.
#[derive(Clone, Debug)]
pub(super) struct Item<'a> {
    pub(super) node: &'a Node,
    pub(super) path: String,
}

impl<'a> Item<'a> {
    pub(super) fn new(node: &'a Node, path: impl Into<String>) -> Self {
        Self { node, path: path.into() }
    }

    /// Creates an error about this value.
    pub(super) fn wrong(&self, why: impl Display) -> CliError {
        self.node.place.wrong(&self.path, why)
    }

    fn expected(&self, what: &str) -> CliError {
        self.wrong(format!("expected {what}, and this is {}", self.node.describe()))
    }

    /// Notes that this value has no effect.
    pub(super) fn ignore(&self, notes: &mut Notes, why: &str) {
        notes.0.push(format!("{} ({}): {why}", self.node.place, self.path));
    }

    pub(super) fn text(&self) -> CliResult<&'a str> {
        self.node.text().ok_or_else(|| self.expected("a text"))
    }

    pub(super) fn boolean(&self) -> CliResult<bool> {
        match self.text()? {
            "true" | "True" | "TRUE" | "yes" | "on" => Ok(true),
            "false" | "False" | "FALSE" | "no" | "off" => Ok(false),
            _ => Err(self.expected("true or false")),
        }
    }

    /// Returns the value that the text means.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&self) -> CliResult<T> {
        let text = self.text()?;
        text.parse().map_err(|why| self.wrong(format!("`{text}`: {why}")))
    }

    pub(super) fn list(&self) -> CliResult<Vec<Item<'a>>> {
        match &self.node.value {
            Value::List(nodes) => Ok(nodes
                .iter()
                .enumerate()
                .map(|(at, node)| Item::new(node, format!("{}[{at}]", self.path)))
                .collect()),
            _ => Err(self.expected("a list")),
        }
    }

    /// Returns the values of a list, or the one that stands for such a list.
    pub(super) fn one_or_many(&self) -> CliResult<Vec<Item<'a>>> {
        match &self.node.value {
            Value::List(_) => self.list(),
            Value::Null => Ok(Vec::new()),
            Value::Scalar(_) | Value::Map(_) => Ok(vec![self.clone()]),
        }
    }

    /// Returns the texts of a list.
    pub(super) fn texts(&self) -> CliResult<Vec<String>> {
        self.list()?.iter().map(|item| Ok(item.text()?.to_owned())).collect()
    }

    /// Returns the entries of a map with keys of the user's choice.
    pub(super) fn entries(&self) -> CliResult<Vec<(&'a Key, Item<'a>)>> {
        match &self.node.value {
            Value::Map(entries) => Ok(entries
                .iter()
                .map(|(key, node)| (key, Item::new(node, format!("{}.{}", self.path, key.text))))
                .collect()),
            Value::Null => Ok(Vec::new()),
            Value::Scalar(_) | Value::List(_) => Err(self.expected("a map")),
        }
    }

    /// Returns the keys of a map.
    pub(super) fn keys(&self) -> CliResult<Keys<'a>> {
        let entries = match &self.node.value {
            Value::Map(entries) => entries.as_slice(),
            Value::Null => &[],
            Value::Scalar(_) | Value::List(_) => return Err(self.expected("a map")),
        };
        Ok(Keys { path: self.path.clone(), entries, asked: BTreeSet::new() })
    }
}

/// The keys of a map, of which some are known.
#[derive(Debug)]
pub(super) struct Keys<'a> {
    path: String,
    entries: &'a [(Key, Node)],
    asked: BTreeSet<&'static str>,
}

impl<'a> Keys<'a> {
    /// Returns the value of a key, if it is there and not empty.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Item<'a>> {
        self.asked.insert(key);
        let (_, node) = self.entries.iter().find(|(name, _)| name.text == key)?;
        let path =
            if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        (node.value != Value::Null).then(|| Item::new(node, path))
    }

    /// Notes a key that has no effect, if it is there.
    pub(super) fn ignore(&mut self, key: &'static str, notes: &mut Notes, why: &str) {
        if let Some(item) = self.take(key) {
            item.ignore(notes, why);
        }
    }

    /// Refuses a key, if it is there.
    pub(super) fn refuse(&mut self, key: &'static str, why: &str) -> CliResult<()> {
        match self.take(key) {
            Some(item) => Err(item.wrong(why)),
            None => Ok(()),
        }
    }

    /// Refuses the keys that were not asked for.
    ///
    /// # Errors
    /// With the first one's place.
    pub(super) fn finish(self) -> CliResult<()> {
        let unknown = |(key, _): &&(Key, Node)| {
            !key.text.starts_with("x-") && !self.asked.contains(key.text.as_str())
        };
        let Some((key, _)) = self.entries.iter().find(unknown) else { return Ok(()) };
        let path = if self.path.is_empty() {
            key.text.clone()
        } else {
            format!("{}.{}", self.path, key.text)
        };
        let known: Vec<&str> = self.asked.iter().copied().collect();
        let error = key.place.wrong(&path, "podmesh does not support this key");
        Err(match nearest(&key.text, &known) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint("remove it from the file, or write it as `x-…` to keep it there"),
        })
    }
}
