//! Reads YAML as a tree, within limits.

use std::collections::HashMap;
use std::sync::Arc;

use granit_parser::{Event, Options, Parser, ScalarStyle, Tag};

use super::node::{Key, MergeTag, Node, Place, Source, Value};
use crate::error::CliResult;

/// The maximum number of values of a file, those of aliases included.
const NODES_MAX: usize = 100_000;
/// The maximum number of bytes of the texts of these values.
const TEXT_BYTES_MAX: usize = 8 << 20;
/// The maximum depth of values within values.
const DEPTH_MAX: usize = 64;

/// Reads the text of a file as one tree. Aliases and merge keys (`<<`) are replaced by what they
/// mean.
///
/// # Errors
/// If it is not YAML or over a limit, or a key is written twice in one map: with the line.
pub(super) fn parse(text: &str, source: &Arc<Source>) -> CliResult<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut options = Options::default();
    options.emit_comments = false;
    let mut loader = Loader {
        source,
        parser: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        nodes: 0,
        bytes: 0,
    };
    loader.document()
}

struct Loader<'t, 's> {
    source: &'s Arc<Source>,
    parser: Parser<'t, granit_parser::StrInput<'t>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    bytes: usize,
}

impl<'t> Loader<'t, '_> {
    fn place(&self, line: usize) -> Place {
        Place { source: Arc::clone(self.source), line }
    }

    fn next(&mut self) -> CliResult<(Event<'t>, Place)> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, self.place(span.start.line()))),
            Some(Err(error)) => {
                let place = self.place(error.marker().line());
                Err(place.wrong("", format!("this is not YAML: {}", error.info())))
            }
            None => Ok((Event::StreamEnd, self.place(1))),
        }
    }

    fn document(&mut self) -> CliResult<Node> {
        let mut root = None;
        loop {
            let (event, place) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(..) if root.is_some() => {
                    let why = "a second document begins here; a compose file has only one";
                    return Err(place.wrong("", why));
                }
                Event::DocumentStart(..) => {}
                event => root = Some(self.node(event, place, 0)?),
            }
        }
        let place = self.place(1);
        Ok(root.unwrap_or_else(|| Node::new(place, Value::Null)))
    }

    /// Counts values and their texts.
    fn count(&mut self, nodes: usize, bytes: usize, place: &Place) -> CliResult<()> {
        self.nodes += nodes;
        self.bytes += bytes;
        if self.nodes > NODES_MAX || self.bytes > TEXT_BYTES_MAX {
            let why = format!(
                "with its aliases the file has more than {NODES_MAX} values or {TEXT_BYTES_MAX} bytes"
            );
            return Err(place.wrong("", why));
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'t>, place: Place, depth: usize) -> CliResult<Node> {
        if depth > DEPTH_MAX {
            return Err(place.wrong("", format!("more than {DEPTH_MAX} values within each other")));
        }
        let (anchor, merge, value) = match event {
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(place.wrong("", "an alias is within the value that it stands for"));
                };
                let (nodes, bytes) = size(node);
                let node = node.clone();
                self.count(nodes, bytes, &place)?;
                return Ok(node);
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count(1, text.len(), &place)?;
                let null = style == ScalarStyle::Plain
                    && tag.is_none()
                    && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null { Value::Null } else { Value::Scalar(text.into_owned()) };
                (anchor, merge_tag(tag.as_deref(), &place)?, value)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.count(1, 0, &place)?;
                let merge = merge_tag(tag.as_deref(), &place)?;
                let mut list = Vec::new();
                loop {
                    let (event, place) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    list.push(self.node(event, place, depth + 1)?);
                }
                (anchor, merge, Value::List(list))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.count(1, 0, &place)?;
                let merge = merge_tag(tag.as_deref(), &place)?;
                (anchor, merge, Value::Map(self.entries(depth)?))
            }
            _ => return Err(place.wrong("", "a value was expected")),
        };
        let node = Node { place, merge, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn entries(&mut self, depth: usize) -> CliResult<Vec<(Key, Node)>> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut lines: HashMap<String, usize> = HashMap::new();
        let mut merged = Vec::new();
        loop {
            let (event, place) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let is_merge =
                matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = match self.node(event, place.clone(), depth + 1)? {
                Node { value: Value::Scalar(text), .. } => text,
                node => {
                    let why = format!("a key must be a text, and this is {}", node.describe());
                    return Err(place.wrong("", why));
                }
            };
            let (event, value_place) = self.next()?;
            let value = self.node(event, value_place, depth + 1)?;
            if is_merge {
                merged.push(value);
                continue;
            }
            if let Some(line) = lines.insert(key.clone(), place.line) {
                let why = format!("the key is written twice; the first one is in line {line}");
                return Err(place.wrong(&key, why));
            }
            entries.push((Key { text: key, place }, value));
        }
        // Keys of the map itself win, then those of the first map that is merged.
        let maps = merged.into_iter().flat_map(|node| match node.value {
            Value::List(nodes) => nodes,
            _ => vec![node],
        });
        for node in maps {
            let Value::Map(more) = node.value else {
                let why = format!("`<<` needs a map, and this is {}", node.describe());
                return Err(node.place.wrong("", why));
            };
            for (key, value) in more {
                if lines.insert(key.text.clone(), key.place.line).is_none() {
                    entries.push((key, value));
                }
            }
        }
        Ok(entries)
    }
}

/// Returns how many values a tree has, and the bytes of their texts.
fn size(node: &Node) -> (usize, usize) {
    let sum = |sizes: &mut dyn Iterator<Item = (usize, usize)>| {
        sizes.fold((1, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1))
    };
    match &node.value {
        Value::Null => (1, 0),
        Value::Scalar(text) => (1, text.len()),
        Value::List(nodes) => sum(&mut nodes.iter().map(size)),
        Value::Map(entries) => sum(&mut entries.iter().map(|(key, node)| {
            let (nodes, bytes) = size(node);
            (nodes + 1, bytes + key.text.len())
        })),
    }
}

fn merge_tag(tag: Option<&Tag>, place: &Place) -> CliResult<MergeTag> {
    let Some(tag) = tag else { return Ok(MergeTag::None) };
    match tag.original().as_str() {
        "!reset" => Ok(MergeTag::Reset),
        "!override" => Ok(MergeTag::Override),
        _ if tag.is_yaml_core_schema() => Ok(MergeTag::None),
        other => {
            let why = format!("podmesh does not know the tag `{other}`; remove it");
            Err(place.wrong("", why))
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parsed(text: &str) -> CliResult<Node> {
        let source = Source { name: "compose.yaml".into(), folder: "/p".into() };
        parse(text, &Arc::new(source))
    }

    fn json(text: &str) -> serde_json::Value {
        serde_json::to_value(parsed(text).unwrap()).unwrap()
    }

    fn refused(text: &str, says: &str) {
        let said = parsed(text).unwrap_err().to_string();
        assert!(said.contains(says), "{said:?} does not say {says:?}");
    }

    #[test]
    fn scalars_stay_as_they_are_written() {
        let value = json("a: 1.10\nb: 0440\nc: yes\nd: ~\ne: '~'\nf: 7\ng: true\nh: \"\"\n");
        let expected = serde_json::json!({
            "a": "1.10", "b": "0440", "c": "yes", "d": null, "e": "~", "f": 7, "g": true, "h": ""
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn anchors_aliases_and_merge_keys_are_replaced_by_what_they_mean() {
        let value = json(
            "x-a: &a {restart: always, init: true}\nx-b: &b {init: false, tty: true}\n\
             one: {<<: *a, init: no}\ntwo: {<<: [*a, *b]}\nthree: *b\n",
        );
        assert_eq!(value["one"], serde_json::json!({"init": "no", "restart": "always"}));
        let two = serde_json::json!({"restart": "always", "init": true, "tty": true});
        assert_eq!(value["two"], two);
        assert_eq!(value["three"], value["x-b"]);
    }

    #[test]
    fn what_is_not_one_yaml_document_is_an_error_with_its_line() {
        refused(
            "a: 1\nb: 2\na: 3\n",
            "line 3 (a): the key is written twice; the first one is in line 1",
        );
        refused("services:\n\tweb:\n", "line 2: this is not YAML");
        refused("a: [1\n", "this is not YAML");
        refused("a: 1\n---\nb: 1\n", "line 2: a second document");
        refused("[a]: 1\n", "a key must be a text");
        refused("a: !secret x\n", "the tag `!secret`");
        refused("a: *nobody\n", "this is not YAML");
        refused("a: &a [*a]\n", "within the value that it stands for");
        refused("<<: 3\n", "`<<` needs a map");
        assert_eq!(parsed("").unwrap().value, Value::Null);
    }

    #[test]
    fn a_billion_laughs_are_over_a_limit() {
        let mut text = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
        for n in 1..12 {
            let last = vec![format!("*a{}", n - 1); 9].join(", ");
            text += &format!("a{n}: &a{n} [{last}]\n");
        }
        refused(&text, "with its aliases the file has more than");
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), vec!["*a"; 50].join(", "));
        refused(&long, "more than");
        refused(&format!("a: {}{}\n", "[".repeat(100), "]".repeat(100)), "within each other");
        // The parser has a limit of its own.
        assert!(parsed(&"[".repeat(500_000)).is_err());
    }

    #[test]
    fn tags_say_how_a_value_is_merged() {
        let node = parsed("a: !reset null\nb: !override [1]\nc: !!str 5\n").unwrap();
        let tag = |key: &str| node.get(key).unwrap().merge;
        assert_eq!(tag("a"), MergeTag::Reset);
        assert_eq!(tag("b"), MergeTag::Override);
        assert_eq!(tag("c"), MergeTag::None);
    }
}
