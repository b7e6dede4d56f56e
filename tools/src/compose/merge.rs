//! Merges a compose file with one that overrides it, as the compose specification says.

use super::node::{Key, MergeTag, Node, Value};
use crate::error::CliResult;

/// How the two values of a key become one. Maps are always merged key by key.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// Lists are joined, and other values replaced.
    Join,
    /// The later value replaces the earlier one.
    Replace,
    /// A list stands for a map: of `NAME=VALUE`, or of names.
    Map(Separator),
    /// Lists are joined. An entry replaces the earlier one with the same place in the container.
    Target(fn(&Node) -> Option<String>),
}

/// What separates name and value in an entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Separator {
    /// `=`
    Equals,
    /// There are only names.
    None,
}

/// Returns the rule for a key, by the keys that lead to it. `*` stands for a name of the user.
fn rule(path: &[&str]) -> Rule {
    let ["services", _, rest @ ..] = path else { return Rule::Join };
    match rest {
        ["command" | "entrypoint"] | ["healthcheck", "test"] => Rule::Replace,
        ["environment" | "labels" | "annotations" | "sysctls"] | ["deploy", "labels"] => {
            Rule::Map(Separator::Equals)
        }
        ["depends_on" | "networks"] => Rule::Map(Separator::None),
        ["volumes"] => Rule::Target(volume_target),
        ["ports"] => Rule::Target(port_identity),
        ["secrets" | "configs"] => Rule::Target(grant_target),
        ["devices"] => Rule::Target(device_target),
        _ => Rule::Join,
    }
}

/// Returns `base` with the changes of `over`.
///
/// # Errors
/// If the two values of a key are of different kinds.
pub(super) fn merge(base: Node, over: Node) -> CliResult<Node> {
    at(base, over, &mut Vec::new())
}

/// Returns a service with the changes of another one that extends it.
///
/// # Errors
/// See [`merge`].
pub(super) fn merge_service(base: Node, over: Node) -> CliResult<Node> {
    at(base, over, &mut vec!["services".into(), "*".into()])
}

fn at(base: Node, over: Node, path: &mut Vec<String>) -> CliResult<Node> {
    if over.merge == MergeTag::Override || base.value == Value::Null {
        return Ok(over);
    }
    let keys: Vec<&str> = path.iter().map(String::as_str).collect();
    let rule = rule(&keys);
    let (base, over) = match rule {
        Rule::Replace => return Ok(if over.value == Value::Null { base } else { over }),
        Rule::Map(separator) => (as_map(base, separator), as_map(over, separator)),
        Rule::Join | Rule::Target(_) => (base, over),
    };
    let place = over.place.clone();
    let value = match (base.value, over.value) {
        (value, Value::Null) => return Ok(Node::new(base.place, value)),
        (Value::Map(base), Value::Map(over)) => Value::Map(maps(base, over, path)?),
        (Value::List(base), Value::List(over)) => Value::List(lists(base, over, rule)),
        // One text can stand for a list: `env_file`, `tmpfs`.
        (Value::List(base), Value::Scalar(text)) => {
            Value::List(lists(base, vec![Node::scalar(&place, text)], rule))
        }
        (Value::Scalar(text), Value::List(over)) => {
            Value::List(lists(vec![Node::scalar(&base.place, text)], over, rule))
        }
        (Value::Scalar(_), value @ Value::Scalar(_)) => value,
        (base_value, value) => {
            let base = Node::new(base.place, base_value);
            let over = Node::new(place, value);
            let why = format!(
                "this is {}, and {} it is {}; write it in the same way, or `!override` before it",
                over.describe(),
                base.place,
                base.describe()
            );
            return Err(over.place.wrong(&path.join("."), why));
        }
    };
    Ok(Node::new(place, value))
}

fn maps(
    mut base: Vec<(Key, Node)>,
    over: Vec<(Key, Node)>,
    path: &mut Vec<String>,
) -> CliResult<Vec<(Key, Node)>> {
    for (key, node) in over {
        let found = base.iter().position(|(known, _)| *known == key);
        match (found, node.merge) {
            (Some(index), MergeTag::Reset) => {
                base.remove(index);
            }
            (None, MergeTag::Reset) => {}
            (None, _) => base.push((key, node)),
            (Some(index), _) => {
                path.push(key.text.clone());
                let before =
                    std::mem::replace(&mut base[index].1, Node::new(key.place, Value::Null));
                base[index].1 = at(before, node, path)?;
                path.pop();
            }
        }
    }
    Ok(base)
}

fn lists(mut base: Vec<Node>, over: Vec<Node>, rule: Rule) -> Vec<Node> {
    for node in over {
        let same = match rule {
            Rule::Target(target) => {
                let wanted = target(&node);
                base.iter().position(|known| wanted.is_some() && target(known) == wanted)
            }
            _ => base.iter().position(|known| *known == node),
        };
        match same {
            Some(index) => base[index] = node,
            None => base.push(node),
        }
    }
    base
}

/// Returns a list as the map that it stands for.
fn as_map(node: Node, separator: Separator) -> Node {
    let Value::List(nodes) = node.value else { return node };
    let mut entries: Vec<(Key, Node)> = Vec::new();
    for entry in nodes {
        let place = entry.place.clone();
        let Some(text) = entry.text() else {
            // The reader of the key refuses it.
            entries.push((Key { text: String::new(), place }, entry));
            continue;
        };
        let (name, value) = match text.split_once('=') {
            Some((name, value)) if separator == Separator::Equals => {
                (name.to_owned(), Value::Scalar(value.to_owned()))
            }
            _ => (text.to_owned(), Value::Null),
        };
        let value = Node::new(place.clone(), value);
        match entries.iter_mut().find(|(key, _)| key.text == name) {
            Some((_, known)) => *known = value,
            None => entries.push((Key { text: name, place }, value)),
        }
    }
    Node { value: Value::Map(entries), ..node }
}

/// Rewrites the lists of a file that stand for maps, so that all files have one form.
pub(super) fn canonical(mut root: Node) -> Node {
    let Value::Map(entries) = &mut root.value else { return root };
    let services = entries.iter_mut().filter(|(key, _)| key.text == "services");
    for (_, services) in services {
        let Value::Map(services) = &mut services.value else { continue };
        for (_, service) in services {
            canonical_service(service);
        }
    }
    root
}

/// Does it for one service.
pub(super) fn canonical_service(service: &mut Node) {
    let Value::Map(keys) = &mut service.value else { return };
    for (key, node) in keys {
        if let Rule::Map(separator) = rule(&["services", "*", &key.text]) {
            let value = std::mem::replace(&mut node.value, Value::Null);
            let before = Node { value, ..node.clone() };
            *node = as_map(before, separator);
        }
    }
}

fn scalar_of(node: &Node, key: &str) -> Option<String> {
    node.get(key).and_then(Node::text).map(str::to_owned)
}

fn volume_target(node: &Node) -> Option<String> {
    let Some(text) = node.text() else { return scalar_of(node, "target") };
    let mut parts = text.split(':');
    let first = parts.next()?;
    Some(parts.next().unwrap_or(first).trim_end_matches('/').to_owned())
}

fn device_target(node: &Node) -> Option<String> {
    volume_target(node)
}

/// Returns address, port and protocol of a port.
fn port_identity(node: &Node) -> Option<String> {
    let Some(text) = node.text() else {
        let part = |key| scalar_of(node, key).unwrap_or_default();
        let protocol = scalar_of(node, "protocol").unwrap_or_else(|| "tcp".into());
        return Some(format!(
            "{}:{}:{}/{protocol}",
            part("host_ip"),
            part("published"),
            part("target")
        ));
    };
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let colons = ":".repeat(2_usize.saturating_sub(ports.matches(':').count()));
    Some(format!("{colons}{ports}/{protocol}"))
}

fn grant_target(node: &Node) -> Option<String> {
    let Some(text) = node.text() else {
        return scalar_of(node, "target").or_else(|| scalar_of(node, "source"));
    };
    Some(text.to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::node::Source;
    use super::super::parse::parse;
    use super::*;

    fn parsed(name: &str, text: &str) -> Node {
        let source = Source { name: name.into(), folder: "/p".into() };
        parse(text, &Arc::new(source)).unwrap()
    }

    fn merged(base: &str, over: &str) -> CliResult<serde_json::Value> {
        let service = |text: &str| format!("services: {{web: {{{text}}}}}");
        let node = merge(parsed("a.yaml", &service(base)), parsed("b.yaml", &service(over)))?;
        Ok(serde_json::to_value(canonical(node)).unwrap()["services"]["web"].clone())
    }

    #[test]
    fn maps_are_merged_lists_are_joined_and_commands_replaced() {
        for (base, over, result) in [
            ("image: a, init: true", "image: b", json!({"image": "b", "init": true})),
            ("command: [a, b]", "command: c", json!({"command": "c"})),
            ("entrypoint: a", "entrypoint: [b]", json!({"entrypoint": ["b"]})),
            (
                "healthcheck: {test: [CMD, a], retries: 3}",
                "healthcheck: {test: [CMD, b]}",
                json!({"healthcheck": {"test": ["CMD", "b"], "retries": 3}}),
            ),
            ("cap_add: [A]", "cap_add: [B, A]", json!({"cap_add": ["A", "B"]})),
            (
                "environment: [A=1, B]",
                "environment: {A: 2, C: 3}",
                json!({"environment": {"A": 2, "B": null, "C": 3}}),
            ),
            (
                "depends_on: [a]",
                "depends_on: {a: {condition: service_healthy}, b: {}}",
                json!({"depends_on": {"a": {"condition": "service_healthy"}, "b": {}}}),
            ),
            (
                "networks: {back: {aliases: [x]}}",
                "networks: [front, back]",
                json!({"networks": {"back": {"aliases": ["x"]}, "front": null}}),
            ),
            ("env_file: a.env", "env_file: [b.env]", json!({"env_file": ["a.env", "b.env"]})),
            (
                "volumes: [\"data:/d\", \"./c:/e\"]",
                "volumes: [{type: bind, source: /x, target: /d}]",
                json!({"volumes": [{"type": "bind", "source": "/x", "target": "/d"}, "./c:/e"]}),
            ),
            (
                "ports: [\"80:80\"]",
                "ports: [\"81:80\", {target: 80, published: 80}]",
                json!({"ports": [{"target": 80, "published": 80}, "81:80"]}),
            ),
            (
                "secrets: [a]",
                "secrets: [{source: b, target: a}]",
                json!({"secrets": [{"source": "b", "target": "a"}]}),
            ),
            ("image: a", "image: ", json!({"image": "a"})),
        ] {
            assert_eq!(merged(base, over).unwrap(), result, "{base} + {over}");
        }
    }

    #[test]
    fn tags_reset_and_override() {
        assert_eq!(
            merged("ports: [\"80\"], image: a", "ports: !reset []").unwrap(),
            json!({"image": "a"})
        );
        assert_eq!(
            merged("ports: [\"80\"]", "ports: !override [\"81\"]").unwrap(),
            json!({"ports": ["81"]})
        );
    }

    #[test]
    fn values_of_different_kinds_are_an_error_with_both_places() {
        let said = merged("logging: {driver: local}", "logging: none").unwrap_err().to_string();
        for part in ["b.yaml, line 1 (services.web.logging)", "a.yaml, line 1 it is a map"] {
            assert!(said.contains(part), "{said}");
        }
    }
}
