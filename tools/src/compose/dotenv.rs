//! `.env` and the files of `env_file`: lines `NAME=value`, with quotes and variables.

use std::collections::BTreeMap;
use std::path::Path;

use super::interpolate::Variables;
use crate::bounded::{JOB_FILE, read_bounded};
use crate::env_vars::Lookup;
use crate::error::{CliError, CliResult};
use crate::output::text::{clip, escape};

/// The maximum number of characters of a line in an error.
const SHOWN: usize = 60;

/// Adds the variables of a file. Their values can contain the variables of `lookup` and those that
/// were added before. A name without `=` takes the value from `lookup`, if it is set there.
///
/// # Errors
/// If the file cannot be read, is too large, is not UTF-8, or has an invalid line.
pub(super) fn add_file(
    env: &mut BTreeMap<String, String>,
    path: &Path,
    lookup: Lookup<'_>,
) -> CliResult<()> {
    let text = read_bounded(path, "env file", JOB_FILE)?;
    add(env, &text, lookup).map_err(|(line, why)| {
        CliError::usage(format!("{}, line {line}", path.display())).because(escape(&why))
    })
}

/// Adds the variables of a text. An error has the line.
fn add(
    env: &mut BTreeMap<String, String>,
    text: &str,
    lookup: Lookup<'_>,
) -> Result<(), (usize, String)> {
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut number = 1;
    while !rest.is_empty() {
        let here = number;
        let wrong = |why: &str, shown: &str| {
            // Only the name: the value may be secret.
            let shown = clip(shown.split('=').next().unwrap_or_default(), SHOWN);
            (here, format!("{why}: `{shown}`"))
        };
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let trimmed = line.trim();
        let trimmed = trimmed.strip_prefix("export ").unwrap_or(trimmed).trim_start();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            (rest, number) = (after, number + 1);
            continue;
        }
        let Some((name, value)) = trimmed.split_once('=') else {
            let name = checked(trimmed).ok_or_else(|| wrong("this is not NAME=value", trimmed))?;
            if let Some(value) = lookup(name).and_then(|value| value.into_string().ok()) {
                env.insert(name.to_owned(), value);
            }
            (rest, number) = (after, number + 1);
            continue;
        };
        let name = checked(name.trim_end())
            .ok_or_else(|| wrong("the name of a variable has no white space", name))?;
        let value = value.trim_start();
        let (value, literal) = match value.as_bytes().first() {
            Some(quote @ (b'"' | b'\'')) => {
                // A quoted value can have several lines: it is searched in the whole rest.
                let quoted = rest.split_once('=').map_or("", |(_, value)| value.trim_start());
                let quoted = quoted.get(1..).unwrap_or_default();
                let end = quote_end(quoted, *quote)
                    .ok_or_else(|| wrong("the quote of the value has no end", name))?;
                let (inner, tail) = (&quoted[..end], &quoted[end + 1..]);
                let (behind, next) = tail.split_once('\n').unwrap_or((tail, ""));
                let behind = behind.trim();
                if !behind.is_empty() && !behind.starts_with('#') {
                    return Err(wrong("something stands behind the quoted value", name));
                }
                number += inner.matches('\n').count();
                rest = next;
                if *quote == b'"' {
                    (unescaped(inner), false)
                } else {
                    (inner.replace("\\'", "'"), true)
                }
            }
            _ => {
                rest = after;
                let comment = value.find(" #").or_else(|| value.find("\t#"));
                let value = if value.starts_with('#') {
                    ""
                } else {
                    &value[..comment.unwrap_or(value.len())]
                };
                (value.trim_end().to_owned(), false)
            }
        };
        number += 1;
        let value = if literal {
            value
        } else {
            let variables = Variables::new(lookup, env.clone());
            variables.replace(&value).map_err(|why| (here, format!("{name}: {why}")))?
        };
        env.insert(name.to_owned(), value);
    }
    Ok(())
}

fn checked(name: &str) -> Option<&str> {
    (!name.is_empty() && !name.contains(char::is_whitespace)).then_some(name)
}

/// Returns where the quoted value ends.
fn quote_end(text: &str, quote: u8) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|b| {
        let ends = b == quote && !escaped;
        escaped = b == b'\\' && !escaped;
        ends
    })
}

/// Replaces the escapes of a value in double quotes.
fn unescaped(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            result.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => result.push('\n'),
            Some('r') => result.push('\r'),
            Some('t') => result.push('\t'),
            // As `$$`: not the begin of a variable.
            Some('$') => result.push_str("$$"),
            Some(other @ ('"' | '\\' | '\'')) => result.push(other),
            Some(other) => result.extend(['\\', other]),
            None => result.push('\\'),
        }
    }
    result
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn here(name: &str) -> Option<OsString> {
        (name == "HERE").then(|| "h".into())
    }

    fn read(text: &str) -> Result<BTreeMap<String, String>, (usize, String)> {
        let mut env = BTreeMap::new();
        add(&mut env, text, &here).map(|()| env)
    }

    #[test]
    fn values_have_quotes_comments_and_variables() {
        let text = "\u{feff}# comment\n\nA=b # c\nexport B = \"x $A\\n\\\"q\\\"\" # d\r\nC='$A'\nD=\"two\nlines\"\nE=\nHERE\nNOT\nF=${HERE}-${Z:-z}\nG=a#b\nH=\"\\$A\"\n";
        let expected = [
            ("A", "b"),
            ("B", "x b\n\"q\""),
            ("C", "$A"),
            ("D", "two\nlines"),
            ("E", ""),
            ("F", "h-z"),
            ("G", "a#b"),
            ("H", "$A"),
            ("HERE", "h"),
        ];
        assert_eq!(read(text).unwrap(), expected.map(|(k, v)| (k.into(), v.into())).into());
    }

    #[test]
    fn an_error_names_the_line_and_no_value() {
        for (text, line, says) in [
            ("A=\"x\ny\"\nB C=secret\n", 3, "white space: `B C`"),
            ("A='x\n", 1, "no end: `A`"),
            ("A='x' secret\n", 1, "behind the quoted value: `A`"),
            ("two words\n", 1, "not NAME=value"),
            ("\nA=${X\n", 2, "A: `${` has no `}`"),
            ("=x", 1, "white space"),
        ] {
            let (at, said) = read(text).unwrap_err();
            assert!(at == line && said.contains(says), "{text:?}: {at} {said}");
            assert!(!said.contains("secret"), "{said}");
        }
    }
}
