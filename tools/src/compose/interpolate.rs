//! Variables in values: `$V`, `${V}`, `${V:-default}` and the other forms of the compose
//! specification.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::node::{MergeTag, Node, Value};
use crate::env_vars::Lookup;
use crate::error::{CliError, CliResult};

/// The maximum depth of variables within defaults of variables.
const DEPTH_MAX: usize = 16;

/// The variables that stand in a compose file.
pub(super) struct Variables<'a> {
    /// The environment of this process, which comes first.
    lookup: Lookup<'a>,
    /// Those of `.env`.
    file: BTreeMap<String, String>,
    /// Variables without a value and without a default.
    unset: RefCell<BTreeSet<String>>,
}

/// What is wrong with a variable.
#[derive(Debug, thiserror::Error)]
pub(super) enum VariableError {
    /// A `$` that does not begin a variable.
    #[error(
        "a `$` stands before something that is not a variable; write `$$` for the character `$`"
    )]
    NotVariable,
    /// A `${` without its end.
    #[error("`${{` has no `}}`")]
    NotClosed,
    /// Something else than a form that the specification knows.
    #[error(
        "`${{{0}}}` is not a variable; write ${{NAME}}, ${{NAME:-default}}, ${{NAME:?error}} or ${{NAME:+other}}"
    )]
    Form(String),
    /// A variable that the file requires.
    #[error("variable {name} is not set{}", if .text.is_empty() { String::new() } else { format!(": {}", .text) })]
    Required {
        /// The variable.
        name: String,
        /// What the file says about it.
        text: String,
    },
    /// Too many variables within each other.
    #[error("more than {DEPTH_MAX} variables within each other")]
    Depth,
    /// A value that is not text.
    #[error("the value of variable {0} is not UTF-8")]
    NotText(String),
}

impl<'a> Variables<'a> {
    pub(super) fn new(lookup: Lookup<'a>, file: BTreeMap<String, String>) -> Self {
        Self { lookup, file, unset: RefCell::default() }
    }

    /// Returns the value of a variable.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub(super) fn get(&self, name: &str) -> Result<Option<String>, VariableError> {
        match (self.lookup)(name) {
            Some(value) => match value.into_string() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(VariableError::NotText(name.into())),
            },
            None => Ok(self.file.get(name).cloned()),
        }
    }

    /// Returns the variables that had no value and no default.
    pub(super) fn unset(&self) -> Vec<String> {
        self.unset.borrow().iter().cloned().collect()
    }

    /// Replaces the variables in all values of a file. Keys have none. What only extends the file
    /// (`x-…`) is left as it is.
    ///
    /// # Errors
    /// With the place of the value.
    pub(super) fn apply(&self, node: &mut Node) -> CliResult<()> {
        self.apply_at(node, "")
    }

    fn apply_at(&self, node: &mut Node, path: &str) -> CliResult<()> {
        match &mut node.value {
            Value::Null => Ok(()),
            Value::Scalar(text) => {
                if text.contains('$') {
                    *text = self
                        .replace(text)
                        .map_err(|why| -> CliError { node.place.wrong(path, why) })?;
                }
                Ok(())
            }
            Value::List(nodes) => {
                let mut nodes = nodes.iter_mut().enumerate();
                nodes.try_for_each(|(at, node)| self.apply_at(node, &format!("{path}[{at}]")))
            }
            Value::Map(entries) => entries.iter_mut().try_for_each(|(key, node)| {
                let is_known = !key.text.starts_with("x-") || key.text == super::EXTENSION;
                if !is_known || node.merge == MergeTag::Reset {
                    return Ok(());
                }
                let path =
                    if path.is_empty() { key.text.clone() } else { format!("{path}.{}", key.text) };
                self.apply_at(node, &path)
            }),
        }
    }

    /// Replaces the variables in a text.
    ///
    /// # Errors
    /// See [`VariableError`].
    pub(super) fn replace(&self, text: &str) -> Result<String, VariableError> {
        self.replace_within(text, 0)
    }

    fn replace_within(&self, text: &str, depth: usize) -> Result<String, VariableError> {
        if depth > DEPTH_MAX {
            return Err(VariableError::Depth);
        }
        let mut result = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            result += &rest[..at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                result.push('$');
                rest = after;
            } else if let Some(after) = rest.strip_prefix('{') {
                let end = closing(after).ok_or(VariableError::NotClosed)?;
                result += &self.braced(&after[..end], depth)?;
                rest = &after[end + 1..];
            } else {
                let length = name_length(rest);
                if length == 0 {
                    return Err(VariableError::NotVariable);
                }
                result += &self.plain(&rest[..length])?;
                rest = &rest[length..];
            }
        }
        Ok(result + rest)
    }

    fn plain(&self, name: &str) -> Result<String, VariableError> {
        Ok(self.get(name)?.unwrap_or_else(|| {
            self.unset.borrow_mut().insert(name.to_owned());
            String::new()
        }))
    }

    /// Returns what stands for `${inner}`.
    fn braced(&self, inner: &str, depth: usize) -> Result<String, VariableError> {
        let form = || VariableError::Form(crate::output::text::clip(inner, 60));
        let length = name_length(inner);
        let (name, operator) = inner.split_at(length);
        if length == 0 {
            return Err(form());
        }
        if operator.is_empty() {
            return self.plain(name);
        }
        // With a colon, an empty value counts as none.
        let (empty_counts, operator) = match operator.strip_prefix(':') {
            Some(operator) => (false, operator),
            None => (true, operator),
        };
        let value = self.get(name)?.filter(|value| empty_counts || !value.is_empty());
        let word = || self.replace_within(operator.get(1..).unwrap_or_default(), depth + 1);
        match (operator.as_bytes().first(), value) {
            (Some(b'-' | b'?'), Some(value)) => Ok(value),
            (Some(b'-'), None) | (Some(b'+'), Some(_)) => word(),
            (Some(b'+'), None) => Ok(String::new()),
            (Some(b'?'), None) => Err(VariableError::Required { name: name.into(), text: word()? }),
            _ => Err(form()),
        }
    }
}

/// Returns the length of the name of a variable at the begin of a text.
fn name_length(text: &str) -> usize {
    let fits =
        |at: usize, c: char| c == '_' || c.is_ascii_alphabetic() || (at > 0 && c.is_ascii_digit());
    text.char_indices().find(|(at, c)| !fits(*at, *c)).map_or(text.len(), |(at, _)| at)
}

/// Returns where the `}` is that closes a `${` before this text.
fn closing(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0_u32, 0);
    while at < bytes.len() {
        match bytes[at..] {
            [b'$', b'{', ..] => {
                depth += 1;
                at += 1;
            }
            [b'$', b'$', ..] => at += 1,
            [b'}', ..] if depth == 0 => return Some(at),
            [b'}', ..] => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn here(name: &str) -> Option<OsString> {
        match name {
            "SET" => Some("here".into()),
            "EMPTY" => Some("".into()),
            "BYTES" => Some(OsString::from_vec(vec![0xff])),
            _ => None,
        }
    }

    fn variables() -> Variables<'static> {
        let file = [("SET", "from the file"), ("FILE", "f"), ("DOLLAR", "$SET")];
        Variables::new(&here, file.map(|(k, v)| (k.into(), v.into())).into())
    }

    #[test]
    fn variables_are_replaced_as_the_specification_says() {
        for (text, result) in [
            ("a $SET b", "a here b"),
            ("$SET/$FILE", "here/f"),
            ("${SET}x$$SET", "herex$SET"),
            ("$$$SET", "$here"),
            ("${UNSET:-d}${UNSET-d}", "dd"),
            ("${EMPTY:-d}${EMPTY-d}", "d"),
            ("${SET:?e}${SET?e}${EMPTY?e}", "herehere"),
            ("${SET:+r}${EMPTY:+r}${EMPTY+r}${UNSET+r}", "rr"),
            ("${UNSET:-${FILE:-x}-${UNSET-${SET}}}", "f-here"),
            ("${UNSET:-a:b}c}", "a:bc}"),
            ("${UNSET:-$${x}}", "${x}"),
            ("${UNSET:-é}ü", "éü"),
            // A value is not read again.
            ("$DOLLAR", "$SET"),
        ] {
            assert_eq!(variables().replace(text).unwrap(), result, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_variable_is_an_error() {
        let deep = "${A:-".repeat(40) + &"}".repeat(40);
        for (text, says) in [
            ("cost 5$", "write `$$`"),
            ("$1", "write `$$`"),
            ("${SET", "has no `}`"),
            ("${}", "is not a variable"),
            ("${SET.x}", "is not a variable"),
            ("${SET:}", "is not a variable"),
            ("${UNSET:?set it to $SET}", "variable UNSET is not set: set it to here"),
            ("${EMPTY:?}", "variable EMPTY is not set"),
            ("$BYTES", "BYTES is not UTF-8"),
            (&deep, "within each other"),
        ] {
            let said = variables().replace(text).unwrap_err().to_string();
            assert!(said.contains(says), "{text}: {said}");
        }
    }

    #[test]
    fn variables_without_a_value_are_remembered() {
        let variables = variables();
        variables.replace("$A ${B} ${C:-d} $SET").unwrap();
        assert_eq!(variables.unset(), ["A", "B"]);
    }
}
