//! Checks the health of the replicas of this node.
//!
//! Each running replica has a task that makes one check after another, and reports when its health
//! becomes known or changes. `podmesh-agent-core` decides what the results mean. Each check is
//! bounded in time and memory, whatever the other side does. Checks continue while the manager is
//! away, and end when the replica ends or is told to stop.

mod last_line;
mod probe;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use podmesh_agent_core::health::{HealthTimes, HealthWatch};
use podmesh_agent_core::input::RuntimeFact;
use podmesh_agent_core::replica::Replica;
use podmesh_protocol::ids::{AttemptId, Name};
use podmesh_protocol::service::{Health, HealthCheck, HealthSpec};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

pub(crate) use self::last_line::LastLine;
use self::probe::HttpRequest;
use crate::clock::machine_ms;
use crate::docker::ContainerChecks;
use crate::supervisor::ProcessChecks;

/// Maximum bytes of what a check says, such as the last line of a command.
pub(crate) const SAID_BYTES_MAX: usize = 256;

/// The first and the longest pause between two looks at the result of the engine's own checks.
const ENGINE_LOOK_FIRST: Duration = Duration::from_millis(50);
const ENGINE_LOOK_MAX: Duration = Duration::from_secs(2);

/// What a check says: that the replica works, or why not. For people.
pub(crate) type Said = Result<String, String>;

/// What runs a replica, as far as its checks need it.
#[derive(Debug)]
pub struct Place(pub(crate) Runs);

/// See [`Place`].
#[derive(Debug)]
pub(crate) enum Runs {
    /// A process of the node.
    Process(ProcessChecks),
    /// A container.
    Container(ContainerChecks),
}

/// The tasks that check replicas. They end when this is dropped.
#[derive(Debug)]
pub struct HealthChecks {
    facts: UnboundedSender<(AttemptId, RuntimeFact)>,
    tasks: HashMap<AttemptId, AbortHandle>,
}

impl HealthChecks {
    /// Creates an empty set that sends its facts to `facts`.
    pub fn new(facts: UnboundedSender<(AttemptId, RuntimeFact)>) -> Self {
        Self { facts, tasks: HashMap::new() }
    }

    /// Begins to check a replica that has run for `ran_ms` milliseconds. Call it in a tokio runtime.
    pub fn begin(&mut self, attempt: AttemptId, replica: Arc<Replica>, place: Place, ran_ms: u64) {
        let facts = self.facts.clone();
        let tell = move |health, text| {
            // If there is no receiver, the agent has ended.
            _ = facts.send((attempt, RuntimeFact::Health(health, text)));
        };
        let task = tokio::spawn(watch(replica, place.0, ran_ms, tell));
        if let Some(before) = self.tasks.insert(attempt, task.abort_handle()) {
            before.abort();
        }
    }

    /// Ends the checks of a replica, if there are any.
    pub fn end(&mut self, attempt: AttemptId) {
        if let Some(task) = self.tasks.remove(&attempt) {
            task.abort();
        }
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.tasks.values().for_each(AbortHandle::abort);
    }
}

/// A check that can be made.
enum Check {
    /// It works, because it has started.
    None,
    /// A connection to this port is accepted.
    Tcp(Name, Target),
    Http(HttpRequest),
    Command(Vec<String>),
    /// The engine makes the check of the image.
    Image,
}

/// Where a replica is reached for its checks.
#[derive(Clone, Copy, Debug)]
struct Target {
    at: SocketAddr,
    /// Whether the engine forwards connections there, and may accept them for a program that does
    /// not listen.
    is_forwarded: bool,
}

/// Returns the check of a replica with its times; `None` if its container no longer exists.
async fn check_of(replica: &Replica, place: &Runs) -> Option<(Check, HealthSpec)> {
    let looked = match place {
        Runs::Process(_) => None,
        Runs::Container(container) => Some(container.look().await?),
    };
    let spec = match (&replica.spec.health, replica.spec.ports.keys().next()) {
        (Some(spec), _) => HealthSpec::clone(spec),
        (None, _) if looked.as_ref().is_some_and(|looked| looked.has_healthcheck) => {
            return Some((Check::Image, HealthSpec::new(HealthCheck::None)));
        }
        (None, Some(port)) => HealthSpec::new(HealthCheck::Tcp { port: port.clone() }),
        (None, None) => HealthSpec::new(HealthCheck::None),
    };
    // The manager has checked that the spec has the port. Nothing listens on port 0.
    let published = |port: &Name| replica.port(port).unwrap_or_default();
    let target = |port: &Name| {
        let published = SocketAddr::new(replica.address, published(port));
        let inside = replica.spec.ports.get(port).and_then(|port| port.container);
        match (&looked, inside) {
            (Some(looked), Some(inside)) if !looked.is_on_host => match looked.address {
                Some(own) => Target { at: SocketAddr::new(own, inside), is_forwarded: false },
                None => Target { at: published, is_forwarded: true },
            },
            _ => Target { at: published, is_forwarded: false },
        }
    };
    let check = match &spec.check {
        HealthCheck::None => Check::None,
        HealthCheck::Tcp { port } => Check::Tcp(port.clone(), target(port)),
        HealthCheck::Http { port, path, status, headers } => {
            let host = SocketAddr::new(replica.address, published(port));
            Check::Http(HttpRequest::new(target(port).at, host, path, *status, headers))
        }
        HealthCheck::Command(command) => Check::Command(command.clone()),
    };
    Some((check, spec))
}

async fn watch(replica: Arc<Replica>, place: Runs, ran_ms: u64, tell: impl Fn(Health, String)) {
    let Some((check, spec)) = check_of(&replica, &place).await else { return };
    drop(replica);
    let limit = Duration::from_millis(spec.timeout_ms);
    let mut state = HealthWatch::new(HealthTimes::from(&spec), machine_ms(), ran_ms);
    loop {
        let began = machine_ms();
        let said = match (&check, &place) {
            (Check::None, _) => return tell(Health::Healthy, "it has started".into()),
            (Check::Image, Runs::Container(container)) => {
                return follow_engine(container, tell).await;
            }
            (Check::Command(command), Runs::Process(process)) => {
                process.run(command.clone(), limit).await
            }
            (Check::Command(command), Runs::Container(container)) => {
                container.run(command, limit).await
            }
            (Check::Tcp(port, target), _) => within(limit, probe::tcp(port, *target)).await,
            (Check::Http(request), _) => within(limit, request.send()).await,
            // Only a container has an image.
            (Check::Image, Runs::Process(_)) => return,
        };
        if let Some(health) = state.checked(began, said.is_ok()) {
            let (Ok(text) | Err(text)) = said;
            tell(health, text);
        }
        sleep(Duration::from_millis(state.pause_ms())).await;
    }
}

async fn within(limit: Duration, check: impl Future<Output = Said>) -> Said {
    match timeout(limit, check).await {
        Ok(said) => said,
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

/// Tells what the engine's own checks of a container say.
async fn follow_engine(container: &ContainerChecks, tell: impl Fn(Health, String)) {
    let mut told = Health::Starting;
    let mut pause = ENGINE_LOOK_FIRST;
    loop {
        // While the engine does not answer, nothing is known to have changed.
        if let Ok((health, text)) = container.engine_health().await
            && health != Health::Starting
            && health != told
        {
            told = health;
            tell(health, text);
        }
        sleep(pause).await;
        pause = (pause * 2).min(ENGINE_LOOK_MAX);
    }
}

/// Returns what a program said as text for people: without control characters, and cut at
/// [`SAID_BYTES_MAX`].
pub(crate) fn brief(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let text = text.trim();
    let mut text: String = text
        .chars()
        .take(SAID_BYTES_MAX)
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    text.truncate(text.floor_char_boundary(SAID_BYTES_MAX));
    text
}
