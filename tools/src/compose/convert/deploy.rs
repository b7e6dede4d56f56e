//! `deploy`, `restart` and the resources: how many replicas, where, and what they get.

use std::collections::BTreeMap;

use podmesh_protocol::ids::Name;
use podmesh_protocol::service::{RestartPolicy, RestartWhen, UpdatePolicy};
use podmesh_protocol::spec::Resources;

use super::super::node::Value;
use super::super::read::{Item, Keys, Notes};
use super::super::values::Bytes;
use super::health::span;
use crate::error::CliResult;
use crate::service::values::Replicas;
use crate::values::Cpus;

/// The cores of a replica whose service does not say how many: reserved for it, and its limit.
pub(super) const CPU_MILLIS: u32 = 500;

/// Where and how replicas run.
#[derive(Debug)]
pub(super) struct Deploy {
    pub(super) replicas: u32,
    pub(super) resources: Resources,
    pub(super) pids: Option<u32>,
    pub(super) restart: RestartPolicy,
    pub(super) update: UpdatePolicy,
    pub(super) require: BTreeMap<Name, String>,
    pub(super) spread: Option<Name>,
}

/// Cores and memory.
#[derive(Debug, Default)]
struct Amounts {
    cpus: Option<u32>,
    memory: Option<u64>,
    pids: Option<u32>,
}

/// Reads what decides where and how the replicas of a service run.
pub(super) fn deploy(service: &mut Keys<'_>, notes: &mut Notes) -> CliResult<Deploy> {
    let mut plain = Amounts {
        cpus: cpus(service.take("cpus"))?,
        memory: bytes(service.take("mem_limit"))?,
        pids: pids(service.take("pids_limit"))?,
    };
    let reserved = bytes(service.take("mem_reservation"))?;
    let mut restart = RestartPolicy { when: RestartWhen::Never, ..RestartPolicy::default() };
    if let Some(item) = service.take("restart") {
        restart.when = match item.text()?.split(':').next().unwrap_or_default() {
            "no" | "false" => RestartWhen::Never,
            "always" | "unless-stopped" => RestartWhen::Always,
            "on-failure" => RestartWhen::OnFailure,
            _ => return Err(item.wrong("write no, always, unless-stopped or on-failure")),
        };
        if item.text()?.contains(':') {
            item.ignore(
                notes,
                "the number of restarts is not limited; the pauses between them grow",
            );
        }
    }
    let mut replicas = number(service.take("scale"))?;
    let mut update = UpdatePolicy::default();
    let (mut require, mut spread) = (BTreeMap::new(), None);
    let mut least = Amounts { memory: reserved, ..Amounts::default() };
    if let Some(item) = service.take("deploy") {
        let mut keys = item.keys()?;
        if let Some(mode) = keys.take("mode")
            && mode.text()? != "replicated"
        {
            return Err(
                mode.wrong("podmesh has only the mode `replicated`; write a number of replicas")
            );
        }
        replicas = number(keys.take("replicas"))?.or(replicas);
        if let Some(resources) = keys.take("resources") {
            let mut inner = resources.keys()?;
            if let Some(limits) = inner.take("limits") {
                let limits = amounts(&limits)?;
                plain.cpus = limits.cpus.or(plain.cpus);
                plain.memory = limits.memory.or(plain.memory);
                plain.pids = limits.pids.or(plain.pids);
            }
            if let Some(item) = inner.take("reservations") {
                let reservations = amounts(&item)?;
                least.cpus = reservations.cpus;
                least.memory = reservations.memory.or(least.memory);
                if plain.cpus.and(least.cpus).is_some() || plain.memory.and(least.memory).is_some()
                {
                    item.ignore(notes, "where there is a limit, the limit is reserved");
                }
            }
            inner.finish()?;
        }
        if let Some(policy) = keys.take("restart_policy") {
            restart_policy(&policy, &mut restart, notes)?;
        }
        if let Some(config) = keys.take("update_config") {
            update = update_config(&config, replicas.unwrap_or(1), notes)?;
        }
        if let Some(item) = keys.take("placement") {
            let mut inner = item.keys()?;
            for constraint in
                inner.take("constraints").map(|item| item.list()).transpose()?.unwrap_or_default()
            {
                let (label, value) = requirement(&constraint)?;
                require.insert(label, value);
            }
            for preference in
                inner.take("preferences").map(|item| item.list()).transpose()?.unwrap_or_default()
            {
                spread = Some(spread_label(&preference)?);
            }
            inner.finish()?;
        }
        keys.ignore("rollback_config", notes, "a rollback goes on as an update does");
        keys.ignore("labels", notes, "services have no labels");
        keys.ignore(
            "endpoint_mode",
            notes,
            "the proxy of each node passes connections to the replicas",
        );
        keys.finish()?;
    }
    for key in ["memswap_limit", "mem_swappiness", "oom_kill_disable", "oom_score_adj"] {
        service.ignore(
            key,
            notes,
            "containers have no swap beyond their memory, and the node's own settings for the rest",
        );
    }
    for key in ["cpu_shares", "cpu_period", "cpu_quota", "cpu_count", "cpu_percent", "blkio_config"]
    {
        service.ignore(key, notes, "it has no effect here; write `cpus`");
    }
    Ok(Deploy {
        replicas: replicas.unwrap_or(1),
        resources: Resources {
            cpu_millis: plain.cpus.or(least.cpus).unwrap_or(CPU_MILLIS),
            memory_bytes: plain.memory.or(least.memory).unwrap_or(0),
        },
        pids: plain.pids,
        restart,
        update,
        require,
        spread,
    })
}

/// Returns the cores; 0 means no limit, as if there were no value.
fn cpus(item: Option<Item<'_>>) -> CliResult<Option<u32>> {
    let Some(item) = item else { return Ok(None) };
    if item.text()?.parse::<f64>().is_ok_and(|cores| cores == 0.0) {
        return Ok(None);
    }
    Ok(Some(item.parsed::<Cpus>()?.0))
}

fn bytes(item: Option<Item<'_>>) -> CliResult<Option<u64>> {
    item.map(|item| Ok(item.parsed::<Bytes>()?.0)).transpose()
}

fn pids(item: Option<Item<'_>>) -> CliResult<Option<u32>> {
    let Some(item) = item else { return Ok(None) };
    // As in Docker, these mean no limit of its own.
    if matches!(item.text()?, "0" | "-1") { Ok(None) } else { item.parsed().map(Some) }
}

fn number(item: Option<Item<'_>>) -> CliResult<Option<u32>> {
    item.map(|item| Ok(item.parsed::<Replicas>()?.0)).transpose()
}

fn amounts(item: &Item<'_>) -> CliResult<Amounts> {
    let mut keys = item.keys()?;
    let amounts = Amounts {
        cpus: cpus(keys.take("cpus"))?,
        memory: bytes(keys.take("memory"))?,
        pids: pids(keys.take("pids"))?,
    };
    keys.refuse("devices", "podmesh does not reserve devices; write `devices:` in the service")?;
    keys.finish()?;
    Ok(amounts)
}

fn restart_policy(
    item: &Item<'_>,
    restart: &mut RestartPolicy,
    notes: &mut Notes,
) -> CliResult<()> {
    let mut keys = item.keys()?;
    restart.when = match keys.take("condition") {
        None => RestartWhen::Always,
        Some(condition) => match condition.text()? {
            "none" => RestartWhen::Never,
            "on-failure" => RestartWhen::OnFailure,
            "any" => RestartWhen::Always,
            _ => return Err(condition.wrong("write none, on-failure or any")),
        },
    };
    if let Some(delay) = span(keys.take("delay"))? {
        restart.backoff_ms = delay;
        restart.backoff_ms_max = restart.backoff_ms_max.max(delay);
    }
    let why = "the number of restarts is not limited; the pauses between them grow";
    keys.ignore("max_attempts", notes, why);
    keys.ignore("window", notes, why);
    keys.finish()
}

fn update_config(item: &Item<'_>, replicas: u32, notes: &mut Notes) -> CliResult<UpdatePolicy> {
    let mut keys = item.keys()?;
    let mut update = UpdatePolicy::default();
    let parallel = number(keys.take("parallelism"))?.unwrap_or(1);
    // 0 means all at once.
    let parallel = if parallel == 0 { replicas.max(1) } else { parallel };
    let order = keys.take("order");
    match order.as_ref().map(Item::text).transpose()? {
        Some("stop-first") => {
            update.max_surge = 0;
            update.min_healthy = Some(replicas.saturating_sub(parallel));
        }
        None | Some("start-first") => update.max_surge = parallel,
        Some(_) => return Err(item.wrong("order: write start-first or stop-first")),
    }
    if let Some(action) = keys.take("failure_action") {
        update.rollback = match action.text()? {
            "rollback" => true,
            "pause" | "continue" => false,
            _ => return Err(action.wrong("write rollback, pause or continue")),
        };
    }
    for key in ["delay", "monitor", "max_failure_ratio"] {
        keys.ignore(key, notes, "the next replica is replaced as soon as this one is healthy");
    }
    keys.finish()?;
    Ok(update)
}

/// Returns label and value of `node.labels.zone == eu`.
fn requirement(item: &Item<'_>) -> CliResult<(Name, String)> {
    let text = item.text()?;
    let wrong = || {
        item.wrong(format!(
            "`{text}`: podmesh knows constraints such as `node.labels.disk == fast`, on labels of its own nodes"
        ))
    };
    let (left, value) = text.split_once("==").ok_or_else(wrong)?;
    let label = left.trim().strip_prefix("node.labels.").ok_or_else(wrong)?;
    Ok((label.parse().map_err(|_| wrong())?, value.trim().to_owned()))
}

fn spread_label(item: &Item<'_>) -> CliResult<Name> {
    let wrong = || item.wrong("podmesh knows preferences such as `spread: node.labels.zone`");
    if !matches!(item.node.value, Value::Map(_)) {
        return Err(wrong());
    }
    let mut keys = item.keys()?;
    let label = keys.take("spread").ok_or_else(wrong)?;
    keys.finish()?;
    let label = label.text()?.strip_prefix("node.labels.").ok_or_else(wrong)?;
    label.parse().map_err(|_| wrong())
}
