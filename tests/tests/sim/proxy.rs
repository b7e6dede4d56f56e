//! The node's proxy, a process that outlives the agent, and the agent's link to it. Both follow
//! `pod-agent/src/proxy/`: `table.rs`, `wanted.rs` and `link.rs`.

use std::collections::{BTreeMap, BTreeSet};

use podmesh_protocol::ids::{AttemptId, Epoch, Name};
use podmesh_protocol::service::ServiceEndpoints;
use podmesh_protocol::session::ToManager;

use crate::faults::Planted;
use crate::world::{Event, Life, World, note};

/// Maximum time that a proxy is late when it is very slow: longer than the manager waits for it.
const SLOW_MS: u64 = 45_000;

/// An endpoint: the service, the name of its port, the replica, and its address.
pub(crate) type Endpoint = (Name, Name, AttemptId, String);

/// The run of the agent and its session. The numbers of different ones cannot be compared.
pub(crate) type Generation = (Life, Epoch);

/// What the agent tells the proxy.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    generation: Generation,
    number: u64,
    all: bool,
    services: Vec<ServiceEndpoints>,
}

/// What the proxy has applied, and what it has drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    generation: Generation,
    applied: u64,
    drained: u64,
}

/// An endpoint that was removed and still has connections.
#[derive(Clone, Copy, Debug)]
struct Removed {
    /// The update that removed it.
    by: u64,
    at: u64,
}

/// The proxy of a machine.
#[derive(Debug, Default)]
pub(crate) struct Proxy {
    /// The number of this process; 0 if it does not run.
    pub(crate) process: u64,
    /// The agent that it listens to.
    agent: Option<Life>,
    generation: Option<Generation>,
    applied: u64,
    services: BTreeMap<Name, ServiceEndpoints>,
    /// The open connections.
    clients: BTreeMap<u64, Endpoint>,
    removed: BTreeMap<Endpoint, Removed>,
    /// When the last message arrives, in both directions.
    last_down: u64,
    last_up: u64,
    /// Until when it does nothing.
    slow_until: u64,
}

/// The agent's side: what the manager wants the proxy to know.
#[derive(Debug, Default)]
pub(crate) struct Link {
    last: Option<(Generation, u64)>,
    services: BTreeMap<Name, ServiceEndpoints>,
    said: Option<Status>,
    is_starting: bool,
}

impl Proxy {
    /// Returns what it passes new connections to.
    pub(crate) fn present(&self) -> BTreeSet<Endpoint> {
        let ports = self.services.values().flat_map(|of| of.ports.iter().map(|p| (&of.service, p)));
        let endpoints = ports.flat_map(|(service, port)| {
            let key = move |(attempt, at): &(AttemptId, String)| {
                (service.clone(), port.port.clone(), *attempt, at.clone())
            };
            port.endpoints.iter().map(key)
        });
        endpoints.collect()
    }

    /// Returns whether messages of the agent are on their way to it.
    pub(crate) fn is_late(&self, now: u64) -> bool {
        now < self.last_down
    }

    /// Returns the open connections to endpoints, each with the time at which its endpoint was
    /// removed, if it was.
    pub(crate) fn clients(&self) -> impl Iterator<Item = (AttemptId, Option<u64>)> {
        let removed_at = |endpoint| self.removed.get(endpoint).map(|removed| removed.at);
        self.clients.values().map(move |endpoint| (endpoint.2, removed_at(endpoint)))
    }

    fn apply(&mut self, now: u64, update: Update) {
        let Update { generation, number, all, services } = update;
        if self.generation != Some(generation) || number < self.applied {
            self.removed.values_mut().for_each(|removed| removed.by = number);
        }
        (self.generation, self.applied) = (Some(generation), number);
        let before = self.present();
        if all {
            self.services.clear();
        }
        for service in services {
            self.services.insert(service.service.clone(), service);
        }
        let after = self.present();
        for endpoint in before.difference(&after) {
            self.removed.insert(endpoint.clone(), Removed { by: number, at: now });
        }
        self.removed.retain(|endpoint, _| !after.contains(endpoint));
        self.forget_unused();
    }

    /// Forgets endpoints that were removed and have no connections.
    fn forget_unused(&mut self) {
        let used: BTreeSet<_> = self.clients.values().collect();
        self.removed.retain(|endpoint, _| used.contains(endpoint));
    }

    fn status(&self) -> Option<Status> {
        let busy = self.removed.values().map(|removed| removed.by).min();
        let drained = busy.map_or(self.applied, |first| first.saturating_sub(1));
        Some(Status { generation: self.generation?, applied: self.applied, drained })
    }
}

impl World {
    /// The agent's link begins: it finds the proxy of the agent's previous run, if there is one.
    pub(crate) fn link_opens(&mut self, node: usize, life: Life) {
        let proxy = &mut self.nodes[node].proxy;
        if proxy.process != 0 {
            proxy.agent = Some(life);
            self.proxy_says(node);
        }
    }

    /// The agent receives endpoints in its current session.
    pub(crate) fn endpoints_arrive(
        &mut self,
        node: usize,
        generation: Generation,
        number: u64,
        all: bool,
        services: Vec<ServiceEndpoints>,
    ) {
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let (life, link) = (agent.life, &mut agent.link);
        if all {
            link.services.clear();
        }
        link.last = Some((generation, number));
        for service in &services {
            if service.ports.is_empty() {
                link.services.remove(&service.service);
            } else {
                link.services.insert(service.service.clone(), service.clone());
            }
        }
        let is_needed = !link.services.is_empty();
        let proxy = &self.nodes[node].proxy;
        if proxy.process != 0 && proxy.agent == Some(life) {
            let update = Update { generation, number, all, services };
            if self.planted == Some(Planted::AckedUnapplied) {
                self.ack(node, Status { generation, applied: number, drained: number });
            }
            self.tell_proxy(node, life, update);
        } else if is_needed {
            self.start_proxy(node, life);
        } else {
            // No proxy is needed.
            self.ack(node, Status { generation, applied: number, drained: number });
        }
    }

    fn start_proxy(&mut self, node: usize, life: Life) {
        let takes = self.rng.short(500);
        let Some(agent) = &mut self.nodes[node].agent else { return };
        if !std::mem::replace(&mut agent.link.is_starting, true) {
            self.after(takes, Event::ProxyStarts(node, life));
        }
    }

    pub(crate) fn proxy_starts(&mut self, node: usize, life: Life) {
        let process = self.number();
        let host = &mut self.nodes[node];
        let Some(agent) = host.agent.as_mut().filter(|agent| agent.life == life) else { return };
        agent.link.is_starting = false;
        let Some((generation, number)) = agent.link.last else { return };
        let services: Vec<_> = agent.link.services.values().cloned().collect();
        if services.is_empty() {
            return self.ack(node, Status { generation, applied: number, drained: number });
        }
        host.proxy = Proxy { process, agent: Some(life), ..Proxy::default() };
        note!(self, "node {node}: proxy {process} starts");
        self.tell_proxy(node, life, Update { generation, number, all: true, services });
    }

    fn tell_proxy(&mut self, node: usize, life: Life, update: Update) {
        let late = self.rng.short(20);
        let slow = if !self.calm && self.rng.percent(2) { self.rng.within(0, SLOW_MS) } else { 0 };
        let now = self.now;
        let proxy = &mut self.nodes[node].proxy;
        if slow > 0 {
            proxy.slow_until = now + slow;
        }
        proxy.last_down = (now + late).max(proxy.last_down).max(proxy.slow_until);
        let (at, process) = (proxy.last_down, proxy.process);
        self.at(at, Event::ProxyHears(node, life, process, Box::new(update)));
    }

    pub(crate) fn proxy_hears(&mut self, node: usize, life: Life, process: u64, update: Update) {
        let now = self.now;
        let proxy = &mut self.nodes[node].proxy;
        if proxy.process != process || proxy.agent != Some(life) {
            return;
        }
        note!(self, "node {node}: its proxy applies {update:?}");
        let proxy = &mut self.nodes[node].proxy;
        proxy.apply(now, update);
        self.proxy_says(node);
    }

    fn proxy_says(&mut self, node: usize) {
        let late = self.rng.short(20);
        let now = self.now;
        let proxy = &mut self.nodes[node].proxy;
        let (Some(status), Some(life)) = (proxy.status(), proxy.agent) else { return };
        proxy.last_up = (now + late).max(proxy.last_up);
        let at = proxy.last_up;
        self.at(at, Event::ProxySays(node, life, status));
    }

    pub(crate) fn proxy_said(&mut self, node: usize, life: Life, status: Status) {
        let lax = self.planted == Some(Planted::OldAckCounts);
        let Some(agent) = &self.nodes[node].agent else { return };
        if agent.life == life && (status.generation.0 == life || lax) && status.applied > 0 {
            self.ack(node, status);
        }
    }

    /// The agent tells the manager what the proxy has done, if that is about the current session.
    fn ack(&mut self, node: usize, status: Status) {
        let lax = self.planted == Some(Planted::OldAckCounts);
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let is_new = agent.link.said.replace(status) != Some(status);
        let (Some(epoch), Some(conn)) = (agent.opened, agent.conn) else { return };
        if is_new && (epoch == status.generation.1 || lax) {
            let Status { applied, drained, .. } = status;
            self.send_up(conn, ToManager::EndpointsApplied { epoch, applied, drained });
        }
    }

    /// The proxy's process ends. Its connections are cut.
    pub(crate) fn proxy_dies(&mut self, node: usize) {
        let proxy = std::mem::take(&mut self.nodes[node].proxy);
        if proxy.process == 0 {
            return;
        }
        note!(self, "node {node}: proxy {} dies", proxy.process);
        let Some(agent) = &self.nodes[node].agent else { return };
        let (life, last) = (agent.life, agent.link.last);
        if !agent.link.services.is_empty() {
            self.start_proxy(node, life);
        } else if let Some((generation, number)) = last {
            self.ack(node, Status { generation, applied: number, drained: number });
        }
    }

    /// A client connects to a published port of a machine.
    pub(crate) fn client_connects(&mut self, node: usize) {
        let next = self.rng.within(50, 2_000);
        self.after(next, Event::ClientConnects(node));
        let present = self.nodes[node].proxy.present();
        if present.is_empty() {
            return;
        }
        let at = self.rng.below(present.len() as u64) as usize;
        let Some(endpoint) = present.into_iter().nth(at) else { return };
        self.judge_connection(node, endpoint.2);
        if !self.is_anywhere(endpoint.2) {
            return; // It is refused.
        }
        let stays = match self.rng.below(10) {
            _ if self.calm => self.rng.short(1_000),
            0..5 => self.rng.short(500),
            5..8 => self.rng.within(0, 8_000),
            _ => self.rng.within(0, 40_000),
        };
        let client = self.number();
        let proxy = &mut self.nodes[node].proxy;
        proxy.clients.insert(client, endpoint);
        let process = proxy.process;
        self.stats.connections += 1;
        self.after(stays, Event::ClientLeaves(node, process, client));
    }

    pub(crate) fn client_leaves(&mut self, node: usize, process: u64, client: u64) {
        let proxy = &mut self.nodes[node].proxy;
        if proxy.process == process && proxy.clients.remove(&client).is_some() {
            self.connection_ended(node);
        }
    }

    /// The connections to a replica that has ended, ended with it.
    pub(crate) fn connections_end(&mut self, attempt: AttemptId) {
        for node in 0..self.nodes.len() {
            let proxy = &mut self.nodes[node].proxy;
            let before = proxy.clients.len();
            proxy.clients.retain(|_, endpoint| endpoint.2 != attempt);
            if proxy.clients.len() != before {
                self.connection_ended(node);
            }
        }
    }

    fn connection_ended(&mut self, node: usize) {
        let proxy = &mut self.nodes[node].proxy;
        let before = proxy.status();
        proxy.forget_unused();
        if proxy.status() != before {
            self.proxy_says(node);
        }
    }

    fn is_anywhere(&self, attempt: AttemptId) -> bool {
        self.nodes.iter().any(|node| node.is_running(attempt))
    }
}
