//! The environment of a job: `-e` and `--env-file`, with Docker's rules.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use crate::bounded::{JOB_FILE, read_bounded};
use crate::error::{CliError, CliResult};

/// Looks up a variable of this process. A parameter, so that tests need not change their
/// environment.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Adds one `-e` argument: `NAME=VALUE`, or `NAME` to copy the value from this process.
///
/// # Errors
/// If the name is empty, or a bare name is not set in this process.
pub(crate) fn add_flag(
    env: &mut BTreeMap<String, String>,
    text: &str,
    lookup: Lookup<'_>,
) -> CliResult<()> {
    let (name, value) = variable(text, lookup)
        .map_err(|why| CliError::usage(format!("--env {}", shown(text))).because(why))?;
    env.insert(name, value);
    Ok(())
}

/// Adds the variables of an env file, one `NAME=VALUE` or `NAME` per line. Empty lines and lines
/// that begin with `#` are skipped. Quotes are kept: the value is everything after `=`.
///
/// # Errors
/// If the file cannot be read, is too large, is not UTF-8, or has an invalid line.
pub(crate) fn add_file(
    env: &mut BTreeMap<String, String>,
    path: &Path,
    lookup: Lookup<'_>,
) -> CliResult<()> {
    let text = read_bounded(path, "env file", JOB_FILE)?;
    for (number, line) in (1..).zip(text.lines()) {
        // Like Docker, skips white space before the name, and a byte order mark in the first line.
        let line = line.strip_prefix('\u{feff}').filter(|_| number == 1).unwrap_or(line);
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = variable(line, lookup).map_err(|why| {
            CliError::usage(format!("{}, line {number}: {}", path.display(), shown(line)))
                .because(why)
        })?;
        env.insert(name, value);
    }
    Ok(())
}

fn variable(text: &str, lookup: Lookup<'_>) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    if name.is_empty() {
        return Err("a variable needs a name before the `=`".into());
    }
    if name.contains(char::is_whitespace) {
        return Err("the name of a variable cannot contain white space; write NAME=VALUE".into());
    }
    let value = match value {
        Some(value) => value.to_owned(),
        None => lookup(name)
            .ok_or("there is no `=`, and no variable of that name is set here to take the value from; write NAME=VALUE")?
            .into_string()
            .map_err(|_| "the value that is set here is not UTF-8")?,
    };
    Ok((name.to_owned(), value))
}

/// Returns the name, shortened and without control characters. The value may be large or secret.
fn shown(text: &str) -> String {
    let name = text.split('=').next().unwrap_or_default();
    let mut name = crate::output::text::escape(name);
    if let Some((at, _)) = name.char_indices().nth(60) {
        name.truncate(at);
        name.push('…');
    }
    format!("`{name}{}`", if text.contains('=') { "=…" } else { "" })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    fn here(name: &str) -> Option<OsString> {
        match name {
            "SET" => Some("here".into()),
            "BYTES" => Some(OsString::from_vec(vec![0xff])),
            _ => None,
        }
    }

    fn flag(text: &str) -> Result<BTreeMap<String, String>, String> {
        let mut env = BTreeMap::new();
        add_flag(&mut env, text, &here).map(|()| env).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_set_or_copy_a_variable_or_are_errors() {
        assert_eq!(flag("A=b=c").unwrap()["A"], "b=c");
        assert_eq!(flag("A=").unwrap()["A"], "");
        assert_eq!(flag("SET").unwrap()["SET"], "here");
        for (text, says) in [
            ("UNSET", "no `=`"),
            ("=x", "needs a name"),
            ("", "needs a name"),
            ("BYTES", "not UTF-8"),
            ("A B=c", "white space"),
        ] {
            let said = flag(text).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
    }

    #[test]
    fn a_value_is_not_repeated_in_an_error() {
        assert!(!flag("A B=secret").unwrap_err().contains("secret"));
        assert!(flag(&"x".repeat(10 << 20)).unwrap_err().len() < 400);
    }

    #[test]
    fn env_files_allow_comments_and_errors_name_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("env");
        std::fs::write(&path, "\u{feff}# first\n\n A=b # c\nSET\r\nQ=\"x\"\n").unwrap();
        let mut env = BTreeMap::new();
        add_file(&mut env, &path, &here).unwrap();
        let expected = [("A", "b # c"), ("Q", "\"x\""), ("SET", "here")];
        assert_eq!(env, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());

        std::fs::write(&path, "A=b\nUNSET\n").unwrap();
        let said = add_file(&mut env, &path, &here).unwrap_err().to_string();
        assert!(said.contains("line 2") && said.contains("UNSET"), "{said}");
    }
}
