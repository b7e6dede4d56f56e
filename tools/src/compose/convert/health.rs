//! `healthcheck`

use podmesh_protocol::service::{HealthCheck, HealthSpec};

use super::super::node::Value;
use super::super::read::{Item, Notes};
use crate::error::CliResult;
use crate::values::Span;

/// The defaults of Docker, where they are not those of podmesh.
const INTERVAL_MS: u64 = 30_000;
const TIMEOUT_MS: u64 = 30_000;

/// Returns the health check of a service; `None` for that of the image.
pub(super) fn health(item: Option<Item<'_>>, notes: &mut Notes) -> CliResult<Option<HealthSpec>> {
    let Some(item) = item else { return Ok(None) };
    let mut keys = item.keys()?;
    let test = keys.take("test");
    let disable = keys.take("disable").map(|item| item.boolean()).transpose()?;
    let interval = span(keys.take("interval"))?;
    let timeout = span(keys.take("timeout"))?;
    let start_period = span(keys.take("start_period"))?;
    let retries = keys.take("retries").map(|item| item.parsed()).transpose()?;
    keys.ignore("start_interval", notes, "a starting replica is checked at least once a second");
    keys.finish()?;
    if disable == Some(true) {
        return Ok(Some(HealthSpec::new(HealthCheck::None)));
    }
    let Some(test) = test else {
        item.ignore(notes, "without `test`, the image's own check with its own times is used");
        return Ok(None);
    };
    let new = HealthSpec::new(check(&test)?);
    if new.check == HealthCheck::None {
        return Ok(Some(new));
    }
    Ok(Some(HealthSpec {
        interval_ms: interval.unwrap_or(INTERVAL_MS),
        timeout_ms: timeout.unwrap_or(TIMEOUT_MS),
        // Without one, Docker has none. But a check that fails only marks a container there, and
        // here the replica is replaced.
        start_period_ms: start_period.unwrap_or(new.start_period_ms),
        failures: retries.unwrap_or(new.failures),
        ..new
    }))
}

fn check(test: &Item<'_>) -> CliResult<HealthCheck> {
    let shell =
        |text: &str| HealthCheck::Command(["/bin/sh", "-c", text].map(str::to_owned).into());
    if let Value::Scalar(text) = &test.node.value {
        return Ok(shell(text));
    }
    let words = test.texts()?;
    match words.split_first() {
        Some((kind, [])) if kind == "NONE" => Ok(HealthCheck::None),
        Some((kind, [text])) if kind == "CMD-SHELL" => Ok(shell(text)),
        Some((kind, command)) if kind == "CMD" && !command.is_empty() => {
            Ok(HealthCheck::Command(command.to_vec()))
        }
        _ => Err(test.wrong("write [CMD, program, …], [CMD-SHELL, command], [NONE] or a command")),
    }
}

pub(super) fn span(item: Option<Item<'_>>) -> CliResult<Option<u64>> {
    item.map(|item| Ok(item.parsed::<Span>()?.ms())).transpose()
}
