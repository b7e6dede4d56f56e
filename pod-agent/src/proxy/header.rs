//! The header of the PROXY protocol, version 2, that tells a replica who its client is:
//! <https://www.haproxy.org/download/2.4/doc/proxy-protocol.txt>.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// Returns the header for a connection from `client` to the address `local` of the proxy.
pub(super) fn header(client: SocketAddr, local: SocketAddr) -> Vec<u8> {
    // A listener on all addresses shows IPv4 clients with IPv6 addresses.
    let addresses = match (client.ip().to_canonical(), local.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            (TCP_OVER_IPV4, [from.octets().as_slice(), &to.octets()].concat())
        }
        (from, to) => {
            let octets = |ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            (TCP_OVER_IPV6, [octets(from), octets(to)].concat())
        }
    };
    let (family, addresses) = addresses;
    let ports = [client.port().to_be_bytes(), local.port().to_be_bytes()].concat();
    // 12 or 36.
    let length = u16::try_from(addresses.len() + ports.len()).unwrap_or(u16::MAX);
    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_AND_COMMAND, family]);
    header.extend(length.to_be_bytes());
    header.extend(addresses);
    header.extend(ports);
    header
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let start = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        let v4 = [&start[..], &[0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 0x1f, 0x90, 0, 80]];
        let v4 = v4.concat();
        assert_eq!(header("10.0.0.1:8080".parse().unwrap(), "10.0.0.2:80".parse().unwrap()), v4);
        let mapped = header(
            "[::ffff:10.0.0.1]:8080".parse().unwrap(),
            "[::ffff:10.0.0.2]:80".parse().unwrap(),
        );
        assert_eq!(mapped, v4);

        let v6 = header("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap());
        assert_eq!(v6.len(), 16 + 36);
        assert_eq!(v6[12..18], [0x21, 0x21, 0, 36, 0x20, 0x01]);
        assert_eq!((v6[31], v6[47], &v6[48..]), (1, 2, &[0, 1, 0, 2][..]));
    }
}
