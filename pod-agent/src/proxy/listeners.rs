//! The ports that the proxy listens on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::plane::Plane;
use super::relay::relay;
use super::sockets::{break_off, cannot_listen, listen};
use super::workers::Workers;

/// The interval of tries to listen on a port.
const RETRY_EVERY: Duration = Duration::from_secs(3);
/// The pause after an error of a listener, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listeners.
#[derive(Debug)]
pub(super) struct Listeners {
    plane: Arc<Plane>,
    workers: Workers,
    /// The addresses to listen on; empty for all.
    addresses: Vec<IpAddr>,
    /// For each port a task on each thread for each address.
    open: BTreeMap<u16, Vec<JoinHandle<()>>>,
    failed: BTreeMap<u16, String>,
    retry_at: Option<Instant>,
}

impl Listeners {
    pub(super) fn new(plane: Arc<Plane>, workers: Workers) -> Self {
        Self {
            plane,
            workers,
            addresses: Vec::new(),
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
            retry_at: None,
        }
    }

    /// Sets the addresses to listen on; empty for all. Connections are not affected.
    pub(super) async fn set_addresses(&mut self, addresses: Vec<IpAddr>) {
        if self.addresses != addresses {
            self.close().await;
            self.addresses = addresses;
            self.sync().await;
        }
    }

    /// Listens on the ports of the table, and on no others.
    pub(super) async fn sync(&mut self) {
        let wanted: BTreeSet<u16> = self.plane.table.lock().ports().collect();
        let surplus: Vec<u16> = self.open.keys().copied().filter(|p| !wanted.contains(p)).collect();
        for port in surplus {
            self.close_one(port).await;
        }
        self.failed.retain(|port, _| wanted.contains(port));
        for port in wanted {
            if self.open.contains_key(&port) || self.failed.contains_key(&port) {
                continue;
            }
            self.open_one(port);
        }
        self.schedule();
    }

    /// Tries the ports again that could not be listened on.
    pub(super) async fn retry(&mut self) {
        let before = std::mem::take(&mut self.failed);
        for port in before.keys() {
            self.open_one(*port);
            if !self.failed.contains_key(port) {
                tracing::info!(port, "the port is free now");
            }
        }
        self.retry_at = None;
        self.schedule();
    }

    fn schedule(&mut self) {
        if self.failed.is_empty() {
            self.retry_at = None;
        } else {
            self.retry_at.get_or_insert_with(|| Instant::now() + RETRY_EVERY);
        }
    }

    /// Returns when to call [`Self::retry`].
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Listens on a port of all addresses, or of none.
    fn open_one(&mut self, port: u16) {
        let addresses: Vec<Option<IpAddr>> = match self.addresses.as_slice() {
            [] => vec![None],
            some => some.iter().copied().map(Some).collect(),
        };
        let mut all: Vec<(&Handle, TcpListener)> = Vec::new();
        let mut failed = None;
        for address in addresses {
            let opened = listen(address, port).and_then(|listener| {
                self.workers.handles().map(|handle| Ok((handle, listener.try_clone()?))).collect()
            });
            let opened: io::Result<Vec<_>> = opened;
            match opened {
                Ok(opened) => all.extend(opened),
                Err(error) => {
                    failed = Some(cannot_listen(address, port, &error));
                    break;
                }
            }
        }
        match failed.map_or(Ok(all), Err) {
            Ok(listeners) => {
                let accepting = listeners.into_iter().map(|(handle, listener)| {
                    handle.spawn(accept(listener, port, Arc::clone(&self.plane)))
                });
                self.open.insert(port, accepting.collect());
            }
            Err(why) => _ = self.failed.insert(port, why),
        }
    }

    async fn close_one(&mut self, port: u16) {
        for accepting in self.open.remove(&port).into_iter().flatten() {
            accepting.abort();
            // The listener is closed when the task has ended.
            _ = accepting.await;
        }
    }

    /// Closes all listeners.
    pub(super) async fn close(&mut self) {
        while let Some((port, _)) = self.open.first_key_value() {
            self.close_one(*port).await;
        }
        self.failed.clear();
        self.retry_at = None;
    }

    /// Returns why ports cannot be listened on.
    pub(super) fn troubles(&self) -> impl Iterator<Item = (u16, String)> {
        self.failed.iter().map(|(port, why)| (*port, why.clone()))
    }
}

/// Accepts connections until aborted. They are served by the thread that runs this.
async fn accept(listener: TcpListener, port: u16, plane: Arc<Plane>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(port, "cannot wait for connections: {error}"),
    };
    loop {
        match listener.accept().await {
            Ok((client, _)) => match plane.enter(port) {
                Ok(visit) => _ = tokio::spawn(relay(client, port, visit)),
                Err(_) => break_off(client),
            },
            // The client has gone already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if let Some(more) = plane.troubles.due() {
                    tracing::error!(port, more, "cannot accept a connection: {error}");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
