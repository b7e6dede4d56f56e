//! How many strangers there may be at a time.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podmesh_protocol::limits::{HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX};

/// One in so many of the files that the process may have open is for strangers at the most.
const FILES_PER_STRANGER: u64 = 4;

/// Files that connections from the network leave to everything else: to the database, and to the
/// people on the manager's own machine.
const OTHER_FILES_MIN: u64 = 64;
/// The most that are left.
const OTHER_FILES_MAX: u64 = 1024;

/// Connections from the network at a time, of a process that may have so many files open.
pub(super) fn connections_max(open_files: u64) -> usize {
    let others = (open_files / FILES_PER_STRANGER).clamp(OTHER_FILES_MIN, OTHER_FILES_MAX);
    let max = open_files.saturating_sub(others).max(1);
    usize::try_from(max).unwrap_or(usize::MAX).min(tokio::sync::Semaphore::MAX_PERMITS)
}

/// Connections that have not shown who they are.
#[derive(Debug)]
pub(super) struct Slots {
    max: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One of them; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    of: IpAddr,
}

impl Slots {
    /// As many as there may be, of a process that may have so many files open.
    pub(super) fn new(open_files: u64) -> Self {
        let max = usize::try_from(open_files / FILES_PER_STRANGER).unwrap_or(HANDSHAKES_MAX);
        Self { max: max.clamp(1, HANDSHAKES_MAX), taken: Mutex::default() }
    }

    /// A slot for a connection from there, or why there is none.
    pub(super) fn take(slots: &Arc<Self>, from: IpAddr) -> Result<Slot, &'static str> {
        let of = network_of(from);
        let mut taken = slots.lock();
        if taken.values().sum::<usize>() >= slots.max {
            return Err(
                "too many connections that have not shown who they are (HANDSHAKES_MAX, or a quarter of the open files allowed)",
            );
        }
        let own = taken.entry(of).or_default();
        if *own >= HANDSHAKES_PER_ADDRESS_MAX {
            return Err(
                "too many connections of one address that have not shown who they are (HANDSHAKES_PER_ADDRESS_MAX)",
            );
        }
        *own += 1;
        Ok(Slot { slots: Arc::clone(slots), of })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // No code that can panic runs while it is held.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
        if let Some(own) = taken.get_mut(&self.of) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

/// Who has one IPv6 address has the whole network of 64 bits.
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
    fn one_address_cannot_take_all_and_all_cannot_take_more() {
        let slots = Arc::new(Slots::new(1024));
        let flood = |n: u8| -> Vec<Slot> {
            let from = IpAddr::from(Ipv4Addr::new(10, 0, 0, n));
            (0..1000).map_while(|_| Slots::take(&slots, from).ok()).collect()
        };
        let held: Vec<_> = (0..200).map(flood).collect();
        assert_eq!(held[0].len(), HANDSHAKES_PER_ADDRESS_MAX);
        assert_eq!(held.iter().map(Vec::len).sum::<usize>(), HANDSHAKES_MAX);
        drop(held);
        assert!(slots.lock().is_empty());
        assert_eq!(flood(1).len(), HANDSHAKES_PER_ADDRESS_MAX);
        assert_eq!(Slots::new(100).max, 25);
        assert_eq!(Slots::new(0).max, 1);
    }

    #[test]
    fn the_network_leaves_files_to_others() {
        assert_eq!(connections_max(65_536), 65_536 - 1024);
        assert_eq!(connections_max(256), 192);
        assert_eq!(connections_max(10), 1);
        assert!(connections_max(u64::MAX) > 1 << 30);
    }

    #[test]
    fn neighbours_in_an_ipv6_network_are_one() {
        let of = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(of("fd00::1"), of("fd00::ffff:2"));
        assert_ne!(of("fd00::1"), of("fd00:0:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
