//! The agent's side: starts the proxy when it is needed, or finds the running one, and communicates
//! with it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use podmesh_wire::backoff::reconnect_delays;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;
use uuid::Uuid;

use super::connect::{Connection, connect, find};
use super::error::ProxyError;
use super::messages::{Counters, Generation, Status, ToAgent, ToProxy};
use super::wanted::{Endpoints, Wanted, may_listen};
use crate::companion::CompanionCommand;
use crate::config::IngressConfig;
use crate::policy::IngressAddress;
use crate::ports::PortRange;
use crate::service_names::ServiceNames;

/// The agent's settings for its proxy.
#[derive(Clone, Debug)]
pub struct ProxySettings {
    /// The command that starts a proxy.
    pub command: CompanionCommand,
    /// The agent's data directory, as an absolute path.
    pub data_dir: PathBuf,
    /// The id of that directory.
    pub agent_id: Uuid,
    /// Whether the proxy ends with the agent.
    pub stop_with_agent: bool,
    /// Where to listen.
    pub ingress: IngressConfig,
    /// The ports of the node's replicas, which the proxy never listens on.
    pub replica_ports: Option<PortRange>,
    /// Gets the services whose ports the proxy listens on.
    pub names: Arc<ServiceNames>,
}

/// The published ports that are not open on a node, and why: each a part of a sentence for people.
pub type PortTroubles = BTreeMap<u16, String>;

/// What the proxy of this node has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The session of the updates.
    pub session: u64,
    /// The last update that was applied.
    pub applied: u64,
    /// The last update up to which no removed endpoint has a connection.
    pub drained: u64,
}

/// The node's proxy, as seen by the agent. When this is dropped, the proxy keeps its endpoints, or
/// ends if it must end with the agent.
#[derive(Debug)]
pub struct Proxy {
    requests: UnboundedSender<Request>,
    /// Fails when the link has ended.
    link: oneshot::Receiver<Infallible>,
    troubles: watch::Receiver<PortTroubles>,
    counters: watch::Receiver<Counters>,
    names: Arc<ServiceNames>,
    ingress: IngressConfig,
    replica_ports: Option<PortRange>,
}

#[derive(Debug)]
enum Request {
    Apply(Endpoints),
    Close,
}

impl Proxy {
    /// Starts the link to the proxy of the agent's previous run, or to one that is started when the
    /// first service publishes a port. Call it in a tokio runtime.
    pub fn open(settings: ProxySettings) -> (Self, UnboundedReceiver<Ack>) {
        let (requests, receiver) = unbounded_channel();
        let (acks, acked) = unbounded_channel();
        let (lives, link) = oneshot::channel();
        let (troubles_sender, troubles) = watch::channel(PortTroubles::new());
        let (counters_sender, counters) = watch::channel(Counters::default());
        let names = Arc::clone(&settings.names);
        let (ingress, replica_ports) = (settings.ingress.clone(), settings.replica_ports);
        let link_task = Link {
            run: Uuid::new_v4(),
            wanted: Wanted::new(settings.ingress.clone(), settings.replica_ports),
            settings,
            requests: receiver,
            acks,
            last_ack: None,
            is_closing: false,
            troubles: troubles_sender,
            counters: counters_sender,
            _lives: lives,
        };
        tokio::spawn(link_task.run());
        (Self { requests, link, troubles, counters, names, ingress, replica_ports }, acked)
    }

    /// Passes new endpoints to the proxy. An [`Ack`] follows when it has applied them. The names of
    /// services are known at once.
    pub fn apply(&self, endpoints: Endpoints) {
        self.names.apply(endpoints.all, &endpoints.services, |port| {
            may_listen(&self.ingress, self.replica_ports, port).is_ok()
        });
        // If there is no receiver, the link has ended, and the agent ends too.
        _ = self.requests.send(Request::Apply(endpoints));
    }

    /// Returns a receiver of the published ports that are not open on this node.
    pub fn troubles(&self) -> watch::Receiver<PortTroubles> {
        self.troubles.clone()
    }

    /// Returns the numbers of the running proxy.
    pub fn counters(&self) -> Counters {
        *self.counters.borrow()
    }

    /// Returns when the proxy has received everything, or, if it ends with the agent, has closed
    /// its listeners.
    pub async fn close(self) {
        // If there is no receiver, the link has ended already.
        _ = self.requests.send(Request::Close);
        _ = self.link.await;
    }
}

/// Why a connection has ended.
enum Ending {
    /// The proxy has ended, or the connection failed.
    Lost,
    /// The proxy is of another version of the program, and can be replaced without harm.
    Outdated,
    /// The agent is ending.
    Closed,
}

/// Communicates with the proxy.
#[derive(Debug)]
struct Link {
    settings: ProxySettings,
    /// The id of this run of the agent.
    run: Uuid,
    wanted: Wanted,
    requests: UnboundedReceiver<Request>,
    acks: UnboundedSender<Ack>,
    last_ack: Option<Ack>,
    /// Whether the agent is ending.
    is_closing: bool,
    troubles: watch::Sender<PortTroubles>,
    counters: watch::Sender<Counters>,
    _lives: oneshot::Sender<Infallible>,
}

impl Link {
    /// Runs until the agent is closed.
    async fn run(mut self) {
        // The proxy of the previous run may have endpoints that are gone, so it is not left alone
        // even if no service has a port any more.
        let mut connection = match find(&self.settings).await {
            Ok(connection) => connection,
            Err(error) => {
                self.trouble(&error);
                None
            }
        };
        if self.settings.ingress.address == IngressAddress::Off
            && let Some(connection) = connection.take()
        {
            tracing::info!("ending the proxy of the previous run, because it is switched off");
            connection.end().await;
        }
        loop {
            if let Some(mut connection) = connection.take() {
                match self.serve(&mut connection).await {
                    Ok(Ending::Closed) => return self.closed(connection).await,
                    Ok(Ending::Outdated) => {
                        tracing::info!(
                            "replacing a proxy of another version, which has no connections"
                        );
                        connection.end().await;
                    }
                    Ok(Ending::Lost) if !self.wanted.has_ports() => {
                        tracing::info!("the node's proxy has ended: no service has a port");
                    }
                    Ok(Ending::Lost) => tracing::error!("the node's proxy died"),
                    Err(error) => {
                        tracing::error!("lost the connection to the node's proxy: {error}");
                    }
                }
                self.counters.send_replace(Counters::default());
            }
            connection = if self.wanted.has_ports() {
                self.connect_again().await
            } else {
                self.idle();
                let request = self.requests.recv().await;
                self.take(request);
                None
            };
            if self.is_closing {
                if let Some(connection) = connection {
                    self.closed(connection).await;
                }
                return;
            }
        }
    }

    /// Applies a request without a proxy.
    fn take(&mut self, request: Option<Request>) {
        match request {
            Some(Request::Apply(endpoints)) => _ = self.merge(endpoints),
            Some(Request::Close) | None => self.is_closing = true,
        }
    }

    fn merge(&mut self, endpoints: Endpoints) -> super::messages::Update {
        let Endpoints { session, update, all, services } = endpoints;
        let generation = Generation { run: self.run, session };
        let told = self.wanted.apply(generation, update, all, services);
        self.show_troubles(&Status::default());
        told
    }

    /// Acknowledges without a proxy: none is needed.
    fn idle(&mut self) {
        if let Some((generation, number)) = self.wanted.last() {
            let ack = Ack { session: generation.session, applied: number, drained: number };
            self.ack(ack);
        }
    }

    fn ack(&mut self, ack: Ack) {
        if self.last_ack.replace(ack) != Some(ack) {
            // If there is no receiver, the agent has ended.
            _ = self.acks.send(ack);
        }
    }

    /// Communicates until the connection ends.
    async fn serve(&mut self, connection: &mut Connection) -> io::Result<Ending> {
        self.hear(&connection.status);
        for update in self.wanted.in_full() {
            connection.say(&ToProxy::Endpoints(update)).await?;
        }
        loop {
            tokio::select! {
                message = connection.frames.next() => match message? {
                    None => return Ok(Ending::Lost),
                    Some(ToAgent::Status(status)) => {
                        self.hear(&status);
                        connection.status = status;
                    }
                    // These are only sent at the beginning of a connection.
                    Some(ToAgent::Welcome { .. } | ToAgent::Refused { .. }) => {}
                },
                request = self.requests.recv() => match request {
                    Some(Request::Apply(endpoints)) => {
                        let update = self.merge(endpoints);
                        if connection.is_outdated() {
                            return Ok(Ending::Outdated);
                        }
                        connection.say(&ToProxy::Endpoints(update)).await?;
                    }
                    // If all senders are dropped, nobody can close it later.
                    Some(Request::Close) | None => return Ok(Ending::Closed),
                },
            }
        }
    }

    async fn closed(&self, connection: Connection) {
        if self.settings.stop_with_agent {
            connection.end().await;
        }
    }

    fn hear(&mut self, status: &Status) {
        self.show_troubles(status);
        self.counters.send_replace(status.counters);
        // A proxy that was found may still report updates of another session.
        let Some(generation) = status.generation.filter(|of| of.run == self.run) else { return };
        if status.applied > 0 {
            let Status { applied, drained, .. } = *status;
            self.ack(Ack { session: generation.session, applied, drained });
        }
    }

    fn show_troubles(&self, status: &Status) {
        let ports = status.troubles.iter().map(|(port, why)| (*port, why.clone()));
        let all: PortTroubles = self.wanted.refused().chain(ports).collect();
        self.troubles.send_if_modified(|current| {
            for (port, why) in all.iter().filter(|(port, why)| current.get(port) != Some(why)) {
                tracing::warn!("port {port} of a service is not open on this node: {why}");
            }
            let changed = *current != all;
            *current = all;
            changed
        });
    }

    /// Notes that there is no proxy: no port is open.
    fn trouble(&self, error: &ProxyError) {
        let text = error.to_string();
        let ports = self.wanted.ports().map(|port| (port, text.clone()));
        let all: PortTroubles = self.wanted.refused().chain(ports).collect();
        let changed = self.troubles.send_if_modified(|current| {
            let changed = *current != all;
            *current = all;
            changed
        });
        if changed {
            tracing::error!("{text}; retrying");
        }
    }

    /// Retries until there is a proxy. Returns `None` if the agent ends in the meantime, or no
    /// service has a port any more.
    async fn connect_again(&mut self) -> Option<Connection> {
        let settings = self.settings.clone();
        let mut pauses = reconnect_delays();
        loop {
            let mut connecting = std::pin::pin!(connect(&settings));
            let connected = loop {
                tokio::select! {
                    connected = &mut connecting => break connected,
                    request = self.requests.recv(), if !self.is_closing => self.take(request),
                }
                if self.is_closing {
                    // A proxy that is starting ends by itself: it gets no endpoints.
                    return None;
                }
            };
            match connected {
                Ok(connection) => return Some(connection),
                Err(error) => self.trouble(&error),
            }
            // These delays never end.
            let mut pause = std::pin::pin!(sleep(pauses.next().unwrap_or_default()));
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    request = self.requests.recv() => self.take(request),
                }
                if self.is_closing || !self.wanted.has_ports() {
                    return None;
                }
            }
        }
    }
}
