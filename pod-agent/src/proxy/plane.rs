//! What the connections share: the table, counters, and guards that count them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use podmesh_protocol::ids::Name;
use tokio::sync::Notify;

use super::messages::Counters;
use super::table::{Chosen, EndpointId, Limits, Refusal, Table};

/// Minimum interval between two log lines about the same thing.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// What all connections share.
#[derive(Debug)]
pub(super) struct Plane {
    pub(super) table: Mutex<Table>,
    accepted: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    /// Wakes when the last connection to a removed endpoint has ended.
    pub(super) drained: Notify,
    refusals: Throttle,
    failures: Throttle,
    /// For errors of the listeners.
    pub(super) troubles: Throttle,
}

impl Plane {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new(Table::new(limits)),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            drained: Notify::new(),
            refusals: Throttle::default(),
            failures: Throttle::default(),
            troubles: Throttle::default(),
        })
    }

    pub(super) fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            open: self.table.lock().open() as u64,
            accepted: read(&self.accepted),
            refused: read(&self.refused),
            failed: read(&self.failed),
            bytes: read(&self.bytes),
        }
    }

    /// Counts a client that has connected to a port.
    ///
    /// # Errors
    /// Why it must be refused, which is counted and logged.
    pub(super) fn enter(self: &Arc<Self>, port: u16) -> Result<Visit, Refusal> {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        match self.table.lock().enter(port) {
            Ok(service) => Ok(Visit { plane: Arc::clone(self), service }),
            Err(refusal) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                if let Some(more) = self.refusals.due() {
                    tracing::warn!(port, more, "closed a connection at once: {refusal}");
                }
                Err(refusal)
            }
        }
    }

    /// Chooses an endpoint that was not tried yet.
    pub(super) fn choose(self: &Arc<Self>, port: u16, tried: &[EndpointId]) -> Option<Lane> {
        let chosen = self.table.lock().choose(port, tried, Instant::now())?;
        Some(Lane { plane: Arc::clone(self), chosen })
    }

    /// Counts a client for whom no endpoint could be reached.
    pub(super) fn no_endpoint(&self, port: u16, why: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if let Some(more) = self.failures.due() {
            tracing::warn!(port, more, "closed a connection: {why}");
        }
    }

    pub(super) fn passed(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Counts the connection of a client until dropped.
#[derive(Debug)]
pub(super) struct Visit {
    plane: Arc<Plane>,
    service: Name,
}

impl Visit {
    pub(super) fn plane(&self) -> &Arc<Plane> {
        &self.plane
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.plane.table.lock().left(&self.service);
    }
}

/// Counts a connection to an endpoint until dropped.
#[derive(Debug)]
pub(super) struct Lane {
    plane: Arc<Plane>,
    pub(super) chosen: Chosen,
}

impl Lane {
    /// Notes whether the endpoint could be reached. Returns whether the endpoint was removed in the
    /// meantime.
    pub(super) fn reached(&self, reached: bool) -> bool {
        let mut table = self.plane.table.lock();
        table.reached(self.chosen.id, reached, Instant::now());
        table.is_removed(self.chosen.id)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.plane.table.lock().release(self.chosen.id) {
            self.plane.drained.notify_one();
        }
    }
}

/// Limits how often something is logged.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<(Option<Instant>, u64)>);

impl Throttle {
    /// Returns how often it has happened since the last log line, if a line is due now.
    pub(super) fn due(&self) -> Option<u64> {
        let mut state = self.0.lock();
        let (last, held_back) = &mut *state;
        let now = Instant::now();
        if last.is_some_and(|last| now.duration_since(last) < LOG_EVERY) {
            *held_back += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(held_back))
    }
}
