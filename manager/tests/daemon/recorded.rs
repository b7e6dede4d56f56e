//! A recorded exchange: an agent and a command line of version 1, byte for byte, with this manager.
//!
//! `exchange_v1.txt` was recorded with the first program that spoke version 1. Each line has a peer,
//! a direction, the name of a message and its bytes. Here the messages of the peers are sent again
//! as they were, and the manager must answer as it did then. It may add keys and events, which those
//! peers ignore. Nothing of the recording needs to be changed: the database is empty as it was then,
//! so that jobs and epochs have the same numbers.

use rmpv::Value;

use crate::support::*;

const EXCHANGE: &str = include_str!("../../../protocol/tests/golden/exchange_v1.txt");

/// Values that differ from run to run. Only their type is compared.
const VARYING: [&str; 11] = [
    "assigned_wall_ms",
    "cluster",
    "ended_wall_ms",
    "instance",
    "key",
    "program_version",
    "seen_ms_ago",
    "started_wall_ms",
    "submitted_by",
    "submitted_wall_ms",
    "wall_ms",
];

/// Returns the name of the first choice of a message, such as `welcome` or `reply`.
fn name_of(message: &Value) -> &str {
    match message {
        Value::Map(fields) => fields[0].0.as_str().unwrap(),
        other => other.as_str().unwrap(),
    }
}

/// Returns a field of a structure.
fn field<'a>(of: &'a Value, key: &str) -> Option<&'a Value> {
    let fields = of.as_map()?;
    fields.iter().find(|(name, _)| name.as_str() == Some(key)).map(|(_, value)| value)
}

/// Checks that a reader of the old message finds in the new one all that it had then.
fn check(at: &str, old: &Value, new: &Value) -> Result<(), String> {
    match (old, new) {
        (Value::Map(fields), Value::Map(_)) => fields.iter().try_for_each(|(key, old)| {
            let key = key.as_str().unwrap();
            let at = format!("{at}.{key}");
            let new = field(new, key).ok_or(format!("{at} is missing"))?;
            if VARYING.contains(&key) {
                let same = std::mem::discriminant(old) == std::mem::discriminant(new);
                return same.then_some(()).ok_or(format!("{at} was {old} and is {new}"));
            }
            // Which events are committed together depends on the time.
            if key == "chunks" { check_events(old, new) } else { check(&at, old, new) }
        }),
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            old.iter().zip(new).try_for_each(|(old, new)| check(at, old, new))
        }
        _ if old == new => Ok(()),
        _ => Err(format!("{at} was {old} and is {new}")),
    }
}

/// Checks that the old events still happen, in the same order.
fn check_events(old: &Value, new: &Value) -> Result<(), String> {
    let facts = |chunks: &Value| -> Vec<Value> {
        let chunks = chunks.as_array().unwrap().iter();
        chunks
            .flat_map(|chunk| field(chunk, "facts").unwrap().as_array().unwrap().clone())
            .collect()
    };
    let new = facts(new);
    let mut rest = new.iter();
    facts(old).iter().try_for_each(|old| {
        let found = rest.any(|new| check_fact(old, new));
        found.then_some(()).ok_or(format!("the event {old} is not in {new:?}"))
    })
}

fn check_fact(old: &Value, new: &Value) -> bool {
    let kind = name_of(old);
    let (Some(old), Some(new)) = (field(old, kind), field(new, kind)) else { return false };
    match (old, new) {
        // A fact may get further fields.
        (Value::Array(old), Value::Array(new)) if new.len() > old.len() => {
            old.iter().zip(new).all(|(old, new)| check(kind, old, new).is_ok())
        }
        _ => check(kind, old, new).is_ok(),
    }
}

#[tokio::test]
async fn peers_of_version_1_are_served_as_by_the_manager_of_then() {
    let dir = tempfile::tempdir().unwrap();
    let manager = start_with(patient(dir.path())).await;
    let mut peers =
        [("agent", RawPeer::connect(&manager).await), ("cli", RawPeer::connect(&manager).await)];
    for (line, text) in (1..).zip(EXCHANGE.lines()) {
        let [peer, direction, _name, hex] = text.split(' ').collect::<Vec<_>>()[..] else {
            panic!("line {line}");
        };
        let recorded: Vec<u8> = (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        let (_, peer) = peers.iter_mut().find(|(name, _)| *name == peer).unwrap();
        if direction == "to_manager" {
            peer.send(&recorded).await;
            continue;
        }
        let answer = peer.recv().await;
        let value = |bytes: &[u8]| rmpv::decode::read_value(&mut &bytes[..]).unwrap();
        let (old, new) = (value(&recorded), value(&answer));
        if let Err(why) = check(name_of(&old), &old, &new) {
            panic!("line {line}: {why}\nthen: {old}\nnow: {new}");
        }
    }
    manager.stop().await;
}
