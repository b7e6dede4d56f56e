//! What the proxy knows: services, their ports and endpoints, and how many connections each has. No
//! I/O and no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use podmesh_protocol::ids::{AttemptId, Name};
use podmesh_protocol::service::ServiceEndpoints;

use super::messages::{Generation, Update};

/// How long an endpoint that could not be reached is tried last.
const AVOIDED: Duration = Duration::from_secs(2);

/// The most connections that may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// In the whole process.
    pub(super) total: usize,
    /// To one service, so that it cannot take everything from the others.
    pub(super) service: usize,
}

/// The number of an endpoint. It is never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct EndpointId(u64);

/// An endpoint that was chosen for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) id: EndpointId,
    pub(super) address: SocketAddr,
    /// Whether it wants a PROXY protocol header.
    pub(super) proxy_protocol: bool,
}

/// Why a client is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The process has as many connections as it may.
    #[error("the proxy has the most connections that its limit on open files allows ({0})")]
    Full(usize),
    /// The service has as many connections as it may.
    #[error("the service has the most connections that one service may have on a node ({0})")]
    ServiceFull(usize),
    /// No service publishes this port any more.
    #[error("no service has this port any more")]
    NoService,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct PoolKey {
    service: Name,
    port: Name,
}

#[derive(Debug)]
struct Pool {
    publish: u16,
    proxy_protocol: bool,
    members: Vec<EndpointId>,
    /// Addresses that cannot be understood.
    invalid: Vec<String>,
}

/// An endpoint of a port of a service.
type EndpointKey = (PoolKey, AttemptId, SocketAddr);

#[derive(Debug)]
struct Endpoint {
    key: EndpointKey,
    /// Connections, including those that are being made.
    open: usize,
    /// When it was last chosen: a number that grows with each choice.
    chosen: u64,
    /// Until when it is tried last; set as long as its last connection failed.
    avoided_until: Option<Instant>,
    /// The update that removed it.
    removed_by: Option<u64>,
}

/// Services, ports, endpoints, and numbers of connections.
#[derive(Debug)]
pub(super) struct Table {
    limits: Limits,
    generation: Option<Generation>,
    applied: u64,
    pools: BTreeMap<PoolKey, Pool>,
    /// The ports to listen on.
    ports: BTreeMap<u16, PoolKey>,
    /// Those that are present, and those that were removed and still have connections.
    endpoints: HashMap<EndpointId, Endpoint>,
    index: HashMap<EndpointKey, EndpointId>,
    /// Open connections of clients, by service; never 0.
    clients: HashMap<Name, usize>,
    clients_total: usize,
    choices: u64,
    last_id: u64,
}

impl Table {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            generation: None,
            applied: 0,
            pools: BTreeMap::new(),
            ports: BTreeMap::new(),
            endpoints: HashMap::new(),
            index: HashMap::new(),
            clients: HashMap::new(),
            clients_total: 0,
            choices: 0,
            last_id: 0,
        }
    }

    /// Applies an update. The numbers of another generation start over: endpoints that earlier
    /// generations removed count as removed by this update.
    pub(super) fn apply(&mut self, update: Update) {
        let Update { generation, number, all, services } = update;
        if self.generation != Some(generation) || number < self.applied {
            for endpoint in self.endpoints.values_mut() {
                endpoint.removed_by = endpoint.removed_by.map(|_| number);
            }
        }
        self.generation = Some(generation);
        self.applied = number;
        if all {
            let named: BTreeSet<_> = services.iter().map(|service| &service.service).collect();
            let gone: Vec<_> =
                self.pools.keys().filter(|key| !named.contains(&key.service)).cloned().collect();
            for key in gone {
                self.remove_pool(&key, number);
            }
        }
        for service in services {
            self.replace(service, number);
        }
        self.ports.clear();
        for (key, pool) in &self.pools {
            // The first service in the order of the names keeps a port that several publish.
            self.ports.entry(pool.publish).or_insert_with(|| key.clone());
        }
    }

    fn replace(&mut self, service: ServiceEndpoints, number: u64) {
        let ServiceEndpoints { service, ports } = service;
        let gone: Vec<_> = self
            .pools
            .keys()
            .filter(|key| key.service == service && ports.iter().all(|port| port.port != key.port))
            .cloned()
            .collect();
        for key in gone {
            self.remove_pool(&key, number);
        }
        for port in ports {
            let key = PoolKey { service: service.clone(), port: port.port };
            let (mut members, mut invalid) = (Vec::new(), Vec::new());
            for (attempt, address) in port.endpoints {
                match address.parse() {
                    Ok(address) => members.push(self.present((key.clone(), attempt, address))),
                    Err(_) => invalid.push(address),
                }
            }
            let pool = Pool {
                publish: port.publish,
                proxy_protocol: port.proxy_protocol,
                members,
                invalid,
            };
            let kept: BTreeSet<_> = pool.members.iter().copied().collect();
            if let Some(before) = self.pools.insert(key, pool) {
                for id in before.members.into_iter().filter(|id| !kept.contains(id)) {
                    self.remove(id, number);
                }
            }
        }
    }

    /// Returns the endpoint with this key, which is present from now on.
    fn present(&mut self, key: EndpointKey) -> EndpointId {
        if let Some(id) = self.index.get(&key)
            && let Some(endpoint) = self.endpoints.get_mut(id)
        {
            endpoint.removed_by = None;
            return *id;
        }
        self.last_id += 1;
        let id = EndpointId(self.last_id);
        self.index.insert(key.clone(), id);
        let endpoint = Endpoint { key, open: 0, chosen: 0, avoided_until: None, removed_by: None };
        self.endpoints.insert(id, endpoint);
        id
    }

    fn remove_pool(&mut self, key: &PoolKey, number: u64) {
        for id in self.pools.remove(key).map(|pool| pool.members).unwrap_or_default() {
            self.remove(id, number);
        }
    }

    fn remove(&mut self, id: EndpointId, number: u64) {
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.removed_by = Some(number);
        }
        self.forget_unused(id);
    }

    /// Forgets an endpoint that was removed and has no connections.
    fn forget_unused(&mut self, id: EndpointId) {
        let unused = |endpoint: &Endpoint| endpoint.removed_by.is_some() && endpoint.open == 0;
        if self.endpoints.get(&id).is_some_and(unused)
            && let Some(endpoint) = self.endpoints.remove(&id)
        {
            self.index.remove(&endpoint.key);
        }
    }

    /// Counts a client that has connected to a port, and returns the service. [`Self::left`]
    /// counts its end.
    ///
    /// # Errors
    /// Why the client must be refused.
    pub(super) fn enter(&mut self, port: u16) -> Result<Name, Refusal> {
        let key = self.ports.get(&port).ok_or(Refusal::NoService)?;
        if self.clients_total >= self.limits.total {
            return Err(Refusal::Full(self.limits.total));
        }
        let open = self.clients.get(&key.service).copied().unwrap_or_default();
        if open >= self.limits.service {
            return Err(Refusal::ServiceFull(self.limits.service));
        }
        self.clients_total += 1;
        self.clients.insert(key.service.clone(), open + 1);
        Ok(key.service.clone())
    }

    /// Counts the end of a client's connection.
    pub(super) fn left(&mut self, service: &Name) {
        self.clients_total -= 1;
        if let Some(open) = self.clients.get_mut(service) {
            *open -= 1;
            if *open == 0 {
                self.clients.remove(service);
            }
        }
    }

    /// Chooses an endpoint that was not tried yet for a connection to a port: the one with the
    /// fewest connections, of several the one that was chosen longest ago. One that could not be
    /// reached comes last. The connection counts until [`Self::release`]. `None` if all were tried.
    pub(super) fn choose(
        &mut self,
        port: u16,
        tried: &[EndpointId],
        now: Instant,
    ) -> Option<Chosen> {
        let pool = self.pools.get(self.ports.get(&port)?)?;
        let best = pool.members.iter().filter(|id| !tried.contains(id)).min_by_key(|id| {
            let endpoint = self.endpoints.get(id);
            endpoint.map(|e| (e.avoided_until.is_some_and(|until| now < until), e.open, e.chosen))
        });
        let id = *best?;
        self.choices += 1;
        let endpoint = self.endpoints.get_mut(&id)?;
        endpoint.open += 1;
        endpoint.chosen = self.choices;
        if endpoint.avoided_until.is_some() {
            // One connection finds out whether it can be reached again. The others do not wait.
            endpoint.avoided_until = Some(now + AVOIDED);
        }
        let address = endpoint.key.2;
        Some(Chosen { id, address, proxy_protocol: pool.proxy_protocol })
    }

    /// Notes whether an endpoint could be reached.
    pub(super) fn reached(&mut self, id: EndpointId, reached: bool, now: Instant) {
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.avoided_until = (!reached).then(|| now + AVOIDED);
        }
    }

    /// Returns whether an endpoint was removed.
    pub(super) fn is_removed(&self, id: EndpointId) -> bool {
        self.endpoints.get(&id).is_none_or(|endpoint| endpoint.removed_by.is_some())
    }

    /// Counts the end of a connection to an endpoint. Returns whether [`Self::drained`] may have
    /// changed.
    pub(super) fn release(&mut self, id: EndpointId) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return false };
        endpoint.open -= 1;
        let is_last = endpoint.open == 0 && endpoint.removed_by.is_some();
        self.forget_unused(id);
        is_last
    }

    /// Returns the generation and the number of the last update; `None` before the first.
    pub(super) fn applied(&self) -> Option<(Generation, u64)> {
        self.generation.map(|generation| (generation, self.applied))
    }

    /// Returns the highest update up to which no removed endpoint has a connection.
    pub(super) fn drained(&self) -> u64 {
        let busy = self.endpoints.values().filter_map(|endpoint| endpoint.removed_by).min();
        busy.map_or(self.applied, |first| first.saturating_sub(1))
    }

    /// Returns the ports to listen on.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        self.ports.keys().copied()
    }

    /// Returns how many connections of clients are open.
    pub(super) fn open(&self) -> usize {
        self.clients_total
    }

    /// Returns what is wrong with the endpoints of a port.
    pub(super) fn troubles(&self) -> impl Iterator<Item = (u16, String)> {
        self.pools.iter().filter_map(|(key, pool)| {
            let holder = self.ports.get(&pool.publish).filter(|holder| *holder != key);
            let trouble = match (holder, pool.invalid.first()) {
                (Some(holder), _) => format!(
                    "service {} publishes it, but service {} has it already",
                    key.service, holder.service
                ),
                (None, Some(address)) => {
                    format!("a replica of service {} has no valid address: {address}", key.service)
                }
                (None, None) => return None,
            };
            Some((pool.publish, trouble))
        })
    }
}
