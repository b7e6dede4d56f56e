//! TOML files, with errors for unknown keys that name a similar known one.

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, Visitor};
use serde::forward_to_deserialize_any;
use toml::de::{DeArray, DeTable, DeValue};

use crate::error::{CliError, CliResult};
use crate::output::text::{clip, escape};

/// Reads `text` as a `T`. `name` is the file's name in errors.
///
/// `tables` lists the keys of `T` that are tables with keys of their own: `("log", keys_of::<Log>())`.
///
/// # Errors
/// If the text is not TOML or does not match `T`, with the line; or a key is unknown.
pub(crate) fn parse<T: DeserializeOwned>(
    text: &str,
    name: &str,
    tables: &[(&str, &[&str])],
) -> CliResult<T> {
    let bad = |why: toml::de::Error| {
        let place = match why.span() {
            Some(span) => place(text, span.start),
            None => String::new(),
        };
        let error = CliError::usage(format!("{name}{place}")).because(escape(why.message()));
        match another_format(text) {
            Some(other) => error.hint(format!(
                "this looks like {other}; podmesh reads TOML, with lines such as: name = \"web\""
            )),
            None => error,
        }
    };
    let deserializer = toml::Deserializer::parse(text).map_err(bad)?;
    let mut unknown: Option<String> = None;
    // One type of callback for all files, so that the code for what they share exists once.
    let note: &mut dyn FnMut(serde_ignored::Path<'_>) = &mut |path| {
        unknown.get_or_insert_with(|| path.to_string());
    };
    let value = serde_ignored::deserialize(deserializer, note).map_err(bad)?;
    let Some(path) = unknown else { return Ok(value) };

    let (table, key) = path.rsplit_once('.').unwrap_or(("", &path));
    let known = if table.is_empty() {
        keys_of::<T>()
    } else {
        // Inside an Option, serde_ignored shows a `?` part, and in a list the position.
        let is_position = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let parts = table.split('.').filter(|part| !is_position(part));
        let table = parts.collect::<Vec<_>>().join(".");
        let table = table.trim_end_matches(".?");
        tables.iter().find(|(name, _)| *name == table).map_or(&[][..], |(_, keys)| keys)
    };
    let place = place_of(text, path.split('.').filter(|part| *part != "?"));
    let shown = clip(&escape(&path.replace(".?", "")), 80);
    let error =
        CliError::usage(format!("{name}{place}")).because(format!("there is no key `{shown}`"));
    Err(match nearest(key, known) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint(format!("the keys are: {}", known.join(", "))),
    })
}

/// Returns `, line 3 (cpus = nan)` for the last of these keys, each within the one before, that
/// the text has; empty if it has none. Within a list, the key is a position, counted from 0.
pub(crate) fn place_of<'a>(text: &str, keys: impl IntoIterator<Item = &'a str>) -> String {
    let Ok(root) = DeTable::parse(text) else { return String::new() };
    let mut table = root.get_ref();
    let mut list: Option<&DeArray<'_>> = None;
    let mut at = None;
    for key in keys {
        let value = match list.take() {
            Some(items) => {
                let Some(item) = key.parse().ok().and_then(|at: usize| items.get(at)) else {
                    break;
                };
                at = Some(item.span().start);
                item
            }
            None => {
                let found = table.iter().find(|(name, _)| name.get_ref() == key);
                let Some((name, value)) = found else { break };
                at = Some(name.span().start);
                value
            }
        };
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            DeValue::Array(items) => list = Some(items),
            _ => break,
        }
    }
    at.map_or_else(String::new, |at| place(text, at))
}

/// Returns the format of a text that is not TOML, if its first line shows that.
fn another_format(text: &str) -> Option<&'static str> {
    let line =
        text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))?;
    let yaml = |(key, value): (&str, &str)| {
        !key.contains(['=', '[', ' ']) && (value.is_empty() || value.starts_with(' '))
    };
    if line.starts_with('{') {
        Some("JSON")
    } else if line == "---" || line.split_once(':').is_some_and(yaml) {
        Some("YAML")
    } else {
        None
    }
}

/// Returns `, line 3 (cpus = nan)` for an offset.
fn place(text: &str, at: usize) -> String {
    let at = text.floor_char_boundary(at.min(text.len()));
    let line = text[..at].matches('\n').count() + 1;
    let start = text[..at].rfind('\n').map_or(0, |n| n + 1);
    let content = text[start..].lines().next().unwrap_or_default().trim();
    format!(", line {line} ({})", clip(&escape(content), 80))
}

/// Returns the known key that is most similar.
pub(crate) fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(key, candidate), *candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Returns the keys of a structure, as serde knows them.
pub(crate) fn keys_of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    struct Spy<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Spy<'_> {
        type Error = de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(de::Error::custom("only looked at"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
            option unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier
            ignored_any
        }
    }

    let mut keys: &'static [&'static str] = &[];
    // Always an error: nothing is built.
    drop(T::deserialize(Spy(&mut keys)));
    keys
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(default)]
    #[derive(Default)]
    struct File {
        memory: Option<String>,
        log: Option<Log>,
        count: u32,
    }

    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(default)]
    struct Log {
        size: u32,
    }

    fn refused(text: &str) -> (String, String) {
        let tables: &[(&str, &[&str])] = &[("log", keys_of::<Log>())];
        let error = parse::<File>(text, "f.toml", tables).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        (error.to_string(), error.hint_text().unwrap_or_default().to_owned())
    }

    #[test]
    fn known_keys_pass() {
        let file: File = parse("memory = \"1\"\ncount = 2\n[log]\nsize = 3", "f", &[]).unwrap();
        assert_eq!((file.memory.as_deref(), file.count, file.log.unwrap().size), (Some("1"), 2, 3));
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let (said, hint) = refused("memroy = 1");
        assert!(said.contains("`memroy`") && hint.contains("`memory`"), "{said} {hint}");
        let (said, hint) = refused("[log]\nsizes = 1");
        assert!(said.contains("sizes") && hint.contains("`size`"), "{said} {hint}");
        let (_, hint) = refused("qqqq = 1");
        assert!(hint.contains("memory, log, count"), "{hint}");
    }

    #[test]
    fn an_unknown_key_has_its_line() {
        assert!(refused("count = 1\n[log]\nsizes = 1").0.contains("line 3 (sizes = 1)"));
    }

    #[test]
    fn yaml_and_json_are_recognised() {
        for (text, format) in [
            ("# a\nname: web\nimage: nginx:1.27", "YAML"),
            ("---\nname: web", "YAML"),
            ("services:\n  web:\n", "YAML"),
            ("{\"name\": \"web\"}", "JSON"),
        ] {
            let (said, hint) = refused(text);
            assert!(said.contains("line ") && hint.contains(format), "{text}: {said} {hint}");
        }
        let (_, hint) = refused("count = \"a: b\"");
        assert_eq!(hint, "");
    }

    #[test]
    fn what_is_wrong_has_its_line() {
        for (text, says) in [
            ("\n\ncount = \"x\"", "line 3 (count = \"x\")"),
            ("count = ", "line 1"),
            ("count = 1\ncount = 2", "line 2"),
            ("\"\u{1b}[31m", "line 1"),
        ] {
            let (said, _) = refused(text);
            assert!(said.contains(says) && !said.contains('\u{1b}'), "{said}");
        }
        let long = format!("count = \"{}\"", "x".repeat(1 << 20));
        assert!(refused(&long).0.len() < 500 + (2 << 20));
    }
}
