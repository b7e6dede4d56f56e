//! Replicas on a host: where they listen, and how well they work.

use std::net::IpAddr;
use std::sync::Arc;

use podmesh_agent_core::input::RuntimeFact;
use podmesh_agent_core::replica::Replica;
use podmesh_agent_core::step::JobContext;
use podmesh_protocol::ids::AttemptId;
use podmesh_protocol::service::Health;

use crate::host::EndCause;
use crate::services::SICK;
use crate::world::{Event, World, note};

/// A replica on a host.
#[derive(Clone, Debug)]
pub(crate) struct OnHost {
    pub(crate) replica: Arc<Replica>,
    pub(crate) health: Health,
    /// The health that it reaches at best.
    best: Health,
}

impl OnHost {
    /// Returns what an attempt is on a host with this address; `None` if it is no replica.
    pub(crate) fn of(context: &JobContext, address: IpAddr, serial: u64) -> Option<Self> {
        let spec = context.run.replica.as_deref()?.clone();
        let first = 20_000 + (serial % 20_000) as u16;
        let ports = (first..).take(spec.ports.len()).collect();
        let best = match context.run.env.get(SICK).map(String::as_str) {
            None => Health::Healthy,
            Some("starting") => Health::Starting,
            Some(_) => Health::Unhealthy,
        };
        let replica = Arc::new(Replica { spec, address, ports });
        Some(Self { replica, health: Health::Starting, best })
    }
}

impl World {
    /// A replica begins to run.
    pub(crate) fn replica_runs(&mut self, node: usize, attempt: AttemptId, serial: u64) {
        let Some(here) = self.replica_at(node, attempt) else { return };
        let (ports, best) = (here.replica.ports.clone(), here.best);
        if !ports.is_empty() {
            self.tell(node, attempt, RuntimeFact::Listening(ports));
        }
        let late = self.rng.short(4_000);
        if best != Health::Starting {
            self.after(late, Event::HealthTurns(node, attempt, serial, best));
        }
        if self.calm {
            return;
        }
        if self.rng.percent(15) {
            let at = late + self.rng.within(100, 40_000);
            self.after(at, Event::HealthTurns(node, attempt, serial, Health::Unhealthy));
            if self.rng.percent(50) {
                let later = at + self.rng.short(5_000);
                self.after(later, Event::HealthTurns(node, attempt, serial, best));
            }
        }
        if self.rng.percent(30) {
            let lasts = self.rng.short(90_000);
            let code = if self.rng.percent(40) { 0 } else { 3 };
            self.after(lasts, Event::Exits(node, attempt, serial, EndCause::Exit(code)));
        }
    }

    pub(crate) fn health_turns(
        &mut self,
        node: usize,
        attempt: AttemptId,
        serial: u64,
        health: Health,
    ) {
        if !self.nodes[node].runs_as(attempt, serial) {
            return;
        }
        let Some(here) = self.replica_at(node, attempt) else { return };
        if std::mem::replace(&mut here.health, health) != health {
            note!(self, "node {node}: {attempt} is {health:?}");
            self.tell(node, attempt, RuntimeFact::Health(health, format!("{health:?}")));
        }
    }

    /// A new agent has found a replica that runs, and checks its health anew.
    pub(crate) fn replica_found(&mut self, node: usize, attempt: AttemptId) {
        let Some(here) = self.replica_at(node, attempt) else { return };
        let health = here.health;
        if health != Health::Starting {
            self.tell(node, attempt, RuntimeFact::Health(health, "found".into()));
        }
    }
}
