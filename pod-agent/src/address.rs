//! The address of this node: where other nodes reach its replicas.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use podmesh_wire::machine;

use crate::error::AgentError;

/// An address that nobody has (RFC 5737). No packet is sent to it.
const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// Checks an address that the node's owner configured.
///
/// # Errors
/// If other nodes cannot reach this machine there.
pub(crate) fn check(address: IpAddr) -> Result<(), AgentError> {
    let why = if address.is_unspecified() {
        "it stands for all addresses".to_owned()
    } else {
        match TcpListener::bind(SocketAddr::new(address, 0)) {
            Ok(_) => return Ok(()),
            Err(error) => error.to_string(),
        }
    };
    Err(AgentError::Address { address, why, others: machine::addresses() })
}

/// Returns the address of a node whose owner configured none. `of_connection` is its address of the
/// connection to the manager, if that goes over the network.
pub(crate) fn find(of_connection: Option<IpAddr>) -> IpAddr {
    let is_usable = |address: &IpAddr| match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => !Ipv6Addr::is_unicast_link_local(v6),
    };
    let of_connection = of_connection.map(|address| address.to_canonical()).filter(is_usable);
    let of_machine = || {
        // The address with which it reaches other networks, rather than one of a bridge for
        // containers.
        let usual = IpAddr::V4(outgoing()?);
        machine::addresses().contains(&usual).then_some(usual)
    };
    let first = || machine::addresses().into_iter().find(IpAddr::is_ipv4);
    of_connection.or_else(of_machine).or_else(first).unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// Returns the address of this machine on the route to other networks, if there is such a route.
fn outgoing() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(ELSEWHERE).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_of_this_machine_is_accepted() {
        for good in ["127.0.0.1", "127.0.0.2"] {
            check(good.parse().unwrap()).unwrap();
        }
        for (wrong, says) in [("0.0.0.0", "all addresses"), ("::", "all"), ("192.0.2.7", "assign")]
        {
            let said = check(wrong.parse().unwrap()).unwrap_err().to_string();
            assert!(said.contains(wrong) && said.contains(says), "{said}");
            assert!(said.contains("--address"), "{said}");
        }
    }

    #[test]
    fn the_address_of_the_connection_is_the_first_choice() {
        let ten = IpAddr::from([10, 0, 0, 5]);
        assert_eq!(find(Some(ten)), ten);
        assert_eq!(find(Some("::ffff:10.0.0.5".parse().unwrap())), ten);
        let own = find(None);
        assert_eq!(find(Some("fe80::1".parse().unwrap())), own);
        assert!(own.is_ipv4());
        check(own).unwrap();
    }
}
