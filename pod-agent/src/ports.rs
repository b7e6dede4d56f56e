//! The ports of replicas: which replica of this node listens where.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::Mutex;
use podmesh_agent_core::replica::Replica;
use podmesh_protocol::ids::{AttemptId, Name};
use podmesh_protocol::service::ReplicaSpec;

/// A range of ports, with both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// The ports that replicas get unless the node's owner chooses others. They are below the ports
/// that systems use for outgoing connections (Linux: from 32768).
pub const REPLICA_PORTS_DEFAULT: PortRange = PortRange { first: 20_000, last: 29_999 };

impl PortRange {
    /// Returns whether a port is in the range.
    pub(crate) fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    fn len(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }

    /// Returns the port at a place, which counts from 0 and starts again after the last port.
    fn port(self, place: u32) -> u16 {
        let offset = u16::try_from(place % self.len()).unwrap_or_default();
        self.first.saturating_add(offset)
    }
}

impl FromStr for PortRange {
    type Err = ParsePortRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParsePortRangeError { text: text.to_owned() };
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let port = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
        let (first, last) = (port(first)?, port(last)?);
        if first == 0 || first > last {
            return Err(wrong());
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A text is not a range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a range of ports such as {REPLICA_PORTS_DEFAULT}", text.escape_debug())]
pub struct ParsePortRangeError {
    text: String,
}

/// Why a replica gets no ports on this node. Another node may have some.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PortError {
    #[error(
        "this node takes no replicas with ports (replica_ports = \"off\" in agent.toml, which the node's owner can change)"
    )]
    Off,
    #[error(
        "no free port is left in {range} (replica_ports in agent.toml, which the node's owner can change)"
    )]
    Exhausted { range: PortRange },
    #[error(
        "port {port} is in use on this node, and a container with network \"host\" listens on its own port"
    )]
    InUse { port: u16 },
}

/// The replicas that this node holds, and the ports that it gives to them.
#[derive(Debug)]
pub struct ReplicaPorts {
    /// `None`: the node takes no replicas with ports.
    range: Option<PortRange>,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    address: IpAddr,
    held: HashMap<AttemptId, Arc<Replica>>,
    /// The place in the range after the one given last, so that a port is not given again at once:
    /// somebody may still try to reach its previous replica there.
    next: u32,
}

/// Where the ports of a replica come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortSource {
    /// The node's range.
    Range,
    /// A container in the node's own network: its own ports.
    Own,
}

impl ReplicaPorts {
    /// Creates a table without replicas. `None`: the node takes no replicas with ports.
    pub fn new(range: Option<PortRange>) -> Self {
        let address = Ipv4Addr::LOCALHOST.into();
        let next = fastrand::u32(..=u32::from(u16::MAX));
        Self { range, table: Mutex::new(Table { address, held: HashMap::new(), next }) }
    }

    /// Sets the address of the node on which replicas that start from now on are reached.
    pub fn set_address(&self, address: IpAddr) {
        self.table.lock().address = address;
    }

    /// Gives a free port to each port of a replica. A replica that already has ports gets others.
    ///
    /// # Errors
    /// If there are none, or the node's owner does not allow them.
    pub(crate) fn take(
        &self,
        attempt: AttemptId,
        spec: &ReplicaSpec,
        source: PortSource,
    ) -> Result<Arc<Replica>, PortError> {
        let mut table = self.table.lock();
        table.held.remove(&attempt);
        let ports = match (self.range, source) {
            _ if spec.ports.is_empty() => Vec::new(),
            (None, _) => return Err(PortError::Off),
            // The owner allows any port together with the host network.
            (Some(_), PortSource::Own) => {
                let own: Vec<u16> = spec.ports.values().filter_map(|port| port.container).collect();
                match own.iter().find(|port| !table.is_free(**port)) {
                    Some(port) => return Err(PortError::InUse { port: *port }),
                    None => own,
                }
            }
            (Some(range), PortSource::Range) => {
                let exhausted = PortError::Exhausted { range };
                table.take(range, spec.ports.len()).ok_or(exhausted)?
            }
        };
        let replica = Arc::new(Replica { spec: spec.clone(), address: table.address, ports });
        table.held.insert(attempt, Arc::clone(&replica));
        Ok(replica)
    }

    /// Notes the ports of a replica that an earlier run of the agent started.
    pub(crate) fn adopt(&self, attempt: AttemptId, replica: Arc<Replica>) {
        self.table.lock().held.insert(attempt, replica);
    }

    /// Returns a held replica.
    pub fn get(&self, attempt: AttemptId) -> Option<Arc<Replica>> {
        self.table.lock().held.get(&attempt).cloned()
    }

    /// Forgets a replica, and frees its ports.
    pub(crate) fn release(&self, attempt: AttemptId) {
        self.table.lock().held.remove(&attempt);
    }
}

impl Table {
    fn is_held(&self, port: u16) -> bool {
        self.held.values().any(|replica| replica.ports.contains(&port))
    }

    fn is_free(&self, port: u16) -> bool {
        !self.is_held(port) && !is_bound(self.address, port)
    }

    fn take(&mut self, range: PortRange, count: usize) -> Option<Vec<u16>> {
        let held: HashSet<u16> =
            self.held.values().flat_map(|replica| replica.ports.iter().copied()).collect();
        let (mut ports, mut next) = (Vec::with_capacity(count), self.next);
        for _ in 0..range.len() {
            if ports.len() == count {
                break;
            }
            let port = range.port(next);
            next = next.wrapping_add(1) % range.len();
            if !held.contains(&port) && !is_bound(self.address, port) {
                ports.push(port);
            }
        }
        self.next = next;
        (ports.len() == count).then_some(ports)
    }
}

/// Returns whether some program listens on a port, on any address: a replica may listen on all
/// addresses of the node.
fn is_bound(address: IpAddr, port: u16) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let bound = TcpListener::bind(SocketAddr::new(any, port));
    // Others may be allowed to use a port that this user may not.
    bound.is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
}

/// Returns the variables of a replica that listens on ports of its own choice: their numbers.
pub(crate) fn port_variables(replica: &Replica) -> impl Iterator<Item = (String, String)> {
    let variable = |(name, port): (&Name, &u16)| {
        (podmesh_protocol::service::port_variable(name), port.to_string())
    };
    replica.spec.ports.keys().zip(&replica.ports).map(variable)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use podmesh_protocol::ids::JobId;
    use podmesh_protocol::service::PortSpec;

    use super::*;

    fn attempt(index: u32) -> AttemptId {
        AttemptId::new(JobId(1), index, 1)
    }

    /// Returns a replica with these ports; in a container, they have these numbers.
    pub(crate) fn spec(ports: &[(&str, Option<u16>)]) -> ReplicaSpec {
        let port = |(name, container): &(&str, Option<u16>)| {
            (name.parse().unwrap(), PortSpec { container: *container, ..PortSpec::default() })
        };
        ReplicaSpec {
            service: "web".parse().unwrap(),
            revision: 3,
            number: 2,
            spread: None,
            ports: ports.iter().map(port).collect::<BTreeMap<_, _>>().into(),
            health: None,
        }
    }

    /// Returns a range of free ports, which no other test uses.
    fn free_range(count: u16) -> PortRange {
        loop {
            let first = fastrand::u16(10_000..19_000);
            let range = PortRange { first, last: first + count - 1 };
            if (range.first..=range.last).all(|port| !is_bound([0, 0, 0, 0].into(), port)) {
                return range;
            }
        }
    }

    #[test]
    fn ranges_are_parsed() {
        let range: PortRange = "20000-29999".parse().unwrap();
        assert_eq!((range, range.len()), (REPLICA_PORTS_DEFAULT, 10_000));
        assert_eq!(range.to_string(), "20000-29999");
        for wrong in ["", "5", "0-5", "6-5", "1-65536", "a-b", "-1-5", "1-2-3"] {
            let said = wrong.parse::<PortRange>().unwrap_err().to_string();
            assert!(said.contains("such as 20000-29999"), "{said}");
        }
        let whole: PortRange = "1-65535".parse().unwrap();
        assert_eq!((whole.len(), whole.port(65_534), whole.port(65_535)), (65_535, 65_535, 1));
    }

    #[test]
    fn no_port_is_given_twice_and_a_released_one_comes_last() {
        let range = free_range(4);
        let ports = ReplicaPorts::new(Some(range));
        let two = spec(&[("a", None), ("b", None)]);
        let first = ports.take(attempt(1), &two, PortSource::Range).unwrap();
        let second = ports.take(attempt(2), &two, PortSource::Range).unwrap();
        let mut all = [first.ports.clone(), second.ports.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (range.first..=range.last).collect::<Vec<_>>());
        let said = ports.take(attempt(3), &two, PortSource::Range).unwrap_err().to_string();
        assert!(said.contains(&range.to_string()) && said.contains("replica_ports"), "{said}");
        // A failed take gives nothing away.
        ports.release(attempt(1));
        let third = ports.take(attempt(3), &two, PortSource::Range).unwrap();
        assert_eq!(third.ports, first.ports);
        ports.release(attempt(3));
        ports.release(attempt(2));
        let one = spec(&[("a", None)]);
        let fourth = ports.take(attempt(4), &one, PortSource::Range).unwrap();
        assert!(second.ports.contains(&fourth.ports[0]), "a released port is given at once");
    }

    #[test]
    fn a_port_that_another_program_uses_is_passed_over() {
        let range = free_range(3);
        let ports = ReplicaPorts::new(Some(range));
        // On another address than the node's, too.
        let _listener = TcpListener::bind(("127.0.0.9", range.first + 1)).unwrap();
        let two = spec(&[("a", None), ("b", None)]);
        let replica = ports.take(attempt(1), &two, PortSource::Range).unwrap();
        assert!(!replica.ports.contains(&(range.first + 1)), "{:?}", replica.ports);
        assert_ne!(replica.ports[0], replica.ports[1]);
        let said = ports.take(attempt(2), &two, PortSource::Range).unwrap_err();
        assert_eq!(said, PortError::Exhausted { range });
    }

    #[test]
    fn a_second_take_gives_other_ports() {
        let ports = ReplicaPorts::new(Some(free_range(2)));
        let one = spec(&[("a", None)]);
        let before = ports.take(attempt(1), &one, PortSource::Range).unwrap();
        let after = ports.take(attempt(1), &one, PortSource::Range).unwrap();
        assert_ne!(before.ports, after.ports);
        assert_eq!(ports.get(attempt(1)).unwrap().ports, after.ports);
    }

    #[test]
    fn adopted_ports_are_not_given_again() {
        let range = free_range(1);
        let ports = ReplicaPorts::new(Some(range));
        let one = spec(&[("a", None)]);
        let address = [10, 0, 0, 9].into();
        let held = Replica { spec: one.clone(), address, ports: vec![range.first] };
        ports.adopt(attempt(1), Arc::new(held));
        assert!(ports.take(attempt(2), &one, PortSource::Range).is_err());
        assert_eq!(ports.get(attempt(1)).unwrap().address, address);
    }

    #[test]
    fn a_node_without_a_range_takes_only_replicas_without_ports() {
        let ports = ReplicaPorts::new(None);
        ports.set_address([127, 0, 0, 2].into());
        let replica = ports.take(attempt(1), &spec(&[]), PortSource::Range).unwrap();
        assert_eq!((replica.ports.len(), replica.address), (0, [127, 0, 0, 2].into()));
        for source in [PortSource::Range, PortSource::Own] {
            let said = ports.take(attempt(2), &spec(&[("a", Some(1))]), source).unwrap_err();
            assert!(said.to_string().contains("replica_ports = \"off\""), "{said}");
        }
    }

    #[test]
    fn a_container_in_the_host_network_needs_its_own_port_to_be_free() {
        let range = free_range(2);
        let ports = ReplicaPorts::new(Some(range));
        let own = spec(&[("a", Some(range.first))]);
        let replica = ports.take(attempt(1), &own, PortSource::Own).unwrap();
        assert_eq!(replica.ports, [range.first]);
        let in_use = PortError::InUse { port: range.first };
        assert_eq!(ports.take(attempt(2), &own, PortSource::Own), Err(in_use));
        let other = spec(&[("a", None)]);
        let replica = ports.take(attempt(3), &other, PortSource::Range).unwrap();
        assert_eq!(replica.ports, [range.last]);
    }

    #[test]
    fn variables_have_the_number_of_each_port() {
        let spec = spec(&[("b-2", None), ("a", None)]);
        let replica = Replica { spec, address: [127, 0, 0, 1].into(), ports: vec![7, 8] };
        let variables: Vec<_> = port_variables(&replica).collect();
        let expected = [("PODMESH_PORT_A", "7"), ("PODMESH_PORT_B_2", "8")];
        assert_eq!(variables, expected.map(|(name, port)| (name.to_owned(), port.to_owned())));
    }
}
