//! Limits the number of connections, and how many of them are from unidentified peers.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use podmesh_protocol::limits::{HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// At most one in this many of the process's open files is for unidentified peers.
const FILES_PER_STRANGER: u64 = 4;

/// The files that connections from the network leave for everything else: for the database, and for
/// users on the manager's own machine.
const OTHER_FILES_MIN: u64 = 64;
/// The maximum of these.
const OTHER_FILES_MAX: u64 = 1024;
/// Files that all connections leave for the manager itself, which has about 40 open, and at times
/// opens a few more.
const OWN_FILES: u64 = 48;

/// The connections that the limit on open files allows, so that nothing else runs out of files.
#[derive(Debug)]
pub(super) struct Connections {
    all: Arc<Semaphore>,
    network: Arc<Semaphore>,
}

impl Connections {
    /// Returns the limits for a process that may have this number of open files.
    pub(super) fn new(open_files: u64) -> Self {
        let others = (open_files / FILES_PER_STRANGER).clamp(OTHER_FILES_MIN, OTHER_FILES_MAX);
        let all_but = |files| {
            let max = usize::try_from(open_files.saturating_sub(files)).unwrap_or(usize::MAX);
            Arc::new(Semaphore::new(max.clamp(1, Semaphore::MAX_PERMITS)))
        };
        Self { all: all_but(OWN_FILES), network: all_but(others) }
    }

    /// Takes one for a peer on the network, or returns why there is none.
    pub(super) fn take_network(&self) -> Result<Connection, &'static str> {
        let network = Arc::clone(&self.network).try_acquire_owned().map_err(|_| ALL_TAKEN)?;
        Ok(Connection { _network: Some(network), ..self.take_local()? })
    }

    /// Takes one for a peer on this machine, or returns why there is none.
    pub(super) fn take_local(&self) -> Result<Connection, &'static str> {
        let all = Arc::clone(&self.all).try_acquire_owned().map_err(|_| ALL_TAKEN)?;
        Ok(Connection { _all: all, _network: None })
    }
}

/// The reason for a refusal at the limit.
const ALL_TAKEN: &str = "the limit on open files allows no more connections: raise it (ulimit -n, or LimitNOFILE= in the unit)";

/// One of the [`Connections`]; returned when it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    _all: OwnedSemaphorePermit,
    _network: Option<OwnedSemaphorePermit>,
}

/// The connections that have not identified themselves yet.
#[derive(Debug)]
pub(super) struct Slots {
    max: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// A slot for one connection; returned when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    of: IpAddr,
}

impl Slots {
    /// Creates the slots of a process that may have this number of open files.
    pub(super) fn new(open_files: u64) -> Self {
        let max = usize::try_from(open_files / FILES_PER_STRANGER).unwrap_or(HANDSHAKES_MAX);
        Self { max: max.clamp(1, HANDSHAKES_MAX), taken: Mutex::default() }
    }

    /// Takes a slot for a connection from this address, or returns why there is none.
    pub(super) fn take(slots: &Arc<Self>, from: IpAddr) -> Result<Slot, &'static str> {
        let of = network_of(from);
        let mut taken = slots.taken.lock();
        if taken.values().sum::<usize>() >= slots.max {
            return Err(
                "too many connections that have not identified themselves (HANDSHAKES_MAX, or a quarter of the open files allowed)",
            );
        }
        let own = taken.entry(of).or_default();
        if *own >= HANDSHAKES_PER_ADDRESS_MAX {
            return Err(
                "too many connections from one address that have not identified themselves (HANDSHAKES_PER_ADDRESS_MAX)",
            );
        }
        *own += 1;
        Ok(Slot { slots: Arc::clone(slots), of })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock();
        if let Some(own) = taken.get_mut(&self.of) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

/// The owner of one IPv6 address has a whole /64 network.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn slots_are_limited_per_address_and_in_total() {
        let slots = Arc::new(Slots::new(1024));
        let flood = |n: u8| -> Vec<Slot> {
            let from = IpAddr::from(Ipv4Addr::new(10, 0, 0, n));
            (0..1000).map_while(|_| Slots::take(&slots, from).ok()).collect()
        };
        let held: Vec<_> = (0..200).map(flood).collect();
        assert_eq!(held[0].len(), HANDSHAKES_PER_ADDRESS_MAX);
        assert_eq!(held.iter().map(Vec::len).sum::<usize>(), HANDSHAKES_MAX);
        drop(held);
        assert!(slots.taken.lock().is_empty());
        assert_eq!(flood(1).len(), HANDSHAKES_PER_ADDRESS_MAX);
        assert_eq!(Slots::new(100).max, 25);
        assert_eq!(Slots::new(0).max, 1);
    }

    #[test]
    fn the_network_leaves_files_for_others_and_all_leave_some_for_the_manager() {
        for (open_files, network, all) in
            [(65_536, 64_512, 65_488), (256, 192, 208), (160, 96, 112), (10, 1, 1)]
        {
            let connections = Connections::new(open_files);
            let from_network: Vec<_> =
                std::iter::from_fn(|| connections.take_network().ok()).collect();
            assert_eq!(from_network.len(), network, "{open_files}");
            let local: Vec<_> = std::iter::from_fn(|| connections.take_local().ok()).collect();
            assert_eq!(local.len(), all - network, "{open_files}");
            drop(from_network);
            assert!(connections.take_network().is_ok());
        }
        assert!(Connections::new(u64::MAX).take_network().is_ok());
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one() {
        let of = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(of("fd00::1"), of("fd00::ffff:2"));
        assert_ne!(of("fd00::1"), of("fd00:0:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
