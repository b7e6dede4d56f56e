//! Checks the health of the replicas of this node.
//!
//! Each running replica has a task that makes one check after another, and reports when its health
//! becomes known or changes. `podmesh-agent-core` decides what the results mean. Each check is
//! bounded in time and memory, whatever the other side does. Checks continue while the manager is
//! away, and end when the replica ends or is told to stop.

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

use self::probe::HttpRequest;
use crate::clock::machine_ms;

/// Maximum bytes of what a check says, such as the last line of a command.
pub(crate) const SAID_BYTES_MAX: usize = 256;

/// What a check says: that the replica works, or why not. For people.
pub(crate) type Said = Result<String, String>;

/// What runs a replica, as far as its checks need it.
#[derive(Debug)]
pub(crate) enum Place {
    /// A process of the node.
    Process,
}

/// The tasks that check replicas. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct HealthChecks {
    facts: UnboundedSender<(AttemptId, RuntimeFact)>,
    tasks: HashMap<AttemptId, AbortHandle>,
}

impl HealthChecks {
    /// Creates an empty set that sends its facts to `facts`.
    pub(crate) fn new(facts: UnboundedSender<(AttemptId, RuntimeFact)>) -> Self {
        Self { facts, tasks: HashMap::new() }
    }

    /// Begins to check a replica that has run for `ran_ms` milliseconds. Call it in a tokio runtime.
    pub(crate) fn begin(
        &mut self,
        attempt: AttemptId,
        replica: Arc<Replica>,
        place: Place,
        ran_ms: u64,
    ) {
        let facts = self.facts.clone();
        let tell = move |health, text| {
            // If there is no receiver, the agent has ended.
            _ = facts.send((attempt, RuntimeFact::Health(health, text)));
        };
        let task = tokio::spawn(watch(replica, place, ran_ms, tell));
        if let Some(before) = self.tasks.insert(attempt, task.abort_handle()) {
            before.abort();
        }
    }

    /// Ends the checks of a replica, if there are any.
    pub(crate) fn end(&mut self, attempt: AttemptId) {
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
    /// It works, for this reason.
    None(&'static str),
    Tcp {
        port: Name,
        at: SocketAddr,
    },
    Http(HttpRequest),
}

/// Returns the check of a replica with its times, or why it cannot be made.
fn check_of(replica: &Replica, place: &Place) -> Result<(Check, HealthSpec), String> {
    let spec = replica.spec.health.clone();
    let spec = spec.unwrap_or_else(|| match replica.spec.ports.keys().next() {
        Some(port) => HealthSpec::new(HealthCheck::Tcp { port: port.clone() }),
        None => HealthSpec::new(HealthCheck::None),
    });
    let at = |port: &Name| {
        // The manager has checked the spec.
        let number = replica.port(port).ok_or_else(|| format!("there is no port `{port}`"))?;
        Ok::<_, String>(match place {
            Place::Process => SocketAddr::new(replica.address, number),
        })
    };
    let check = match &spec.check {
        HealthCheck::None => Check::None("it has started"),
        HealthCheck::Tcp { port } => Check::Tcp { port: port.clone(), at: at(port)? },
        HealthCheck::Http { port, path, status, headers } => {
            let host = SocketAddr::new(replica.address, replica.port(port).unwrap_or_default());
            Check::Http(HttpRequest::new(at(port)?, host, path, *status, headers))
        }
        HealthCheck::Command(_) => return Err("commands are not supported".into()),
    };
    Ok((check, spec))
}

impl Check {
    async fn make(&self) -> Said {
        match self {
            Self::None(why) => Ok((*why).to_owned()),
            Self::Tcp { port, at } => probe::tcp(port, *at).await,
            Self::Http(request) => request.send().await,
        }
    }
}

async fn watch(
    replica: Arc<Replica>,
    place: Place,
    ran_ms: u64,
    tell: impl Fn(Health, String),
) {
    let (check, spec) = match check_of(&replica, &place) {
        Ok(found) => found,
        Err(why) => return tell(Health::Unhealthy, why),
    };
    if let Check::None(why) = check {
        return tell(Health::Healthy, why.to_owned());
    }
    let limit = Duration::from_millis(spec.timeout_ms);
    let mut state = HealthWatch::new(HealthTimes::from(&spec), machine_ms(), ran_ms);
    loop {
        let began = machine_ms();
        let said = match timeout(limit, check.make()).await {
            Ok(said) => said,
            Err(_) => Err(format!("no answer within {limit:?}")),
        };
        if let Some(health) = state.checked(began, said.is_ok()) {
            let (Ok(text) | Err(text)) = said;
            tell(health, brief(text.as_bytes()));
        }
        sleep(Duration::from_millis(state.pause_ms())).await;
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
