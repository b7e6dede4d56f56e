//! Ports for managers that must come back at the same address after a restart.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// The ports that one manager takes: control, publications, heartbeats.
const PORTS_PER_MANAGER: u16 = 3;
/// Below the range from which Linux gives ports to outgoing connections (32768 …).
const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// The first of three neighbouring ports that are free now. Tests of one process get different
/// ones; those of different processes begin at different places.
pub fn free_ports() -> u16 {
    let span = LAST - FIRST;
    let start = u16::try_from(std::process::id() % u32::from(span)).unwrap();
    for _ in 0..1000 {
        let step = NEXT.fetch_add(PORTS_PER_MANAGER, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_add(step)) % span;
        let free = (port..port + PORTS_PER_MANAGER)
            .map(|port| TcpListener::bind(("127.0.0.1", port)))
            .all(|listener| listener.is_ok());
        if free {
            return port;
        }
    }
    panic!("no three free ports in a row between {FIRST} and {LAST}");
}
