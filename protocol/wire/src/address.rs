//! The address of a manager.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The port on which a manager listens by default.
pub const PORT_DEFAULT: u16 = 7770;
/// The port of a manager's HTTP API by default.
pub const HTTP_PORT_DEFAULT: u16 = 7771;

/// A host, by name or number, and a port: `manager.lan`, `10.0.0.1:7770`, `[::1]:7770`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ManagerAddress {
    /// Name or number; an IPv6 number without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// The reason why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an address: {why}; write host:port, such as manager.lan:{PORT_DEFAULT}")]
pub struct ParseAddressError {
    text: String,
    why: &'static str,
}

impl From<SocketAddr> for ManagerAddress {
    /// Converts a listening address to one for connecting: the unspecified address means this
    /// machine.
    fn from(address: SocketAddr) -> Self {
        let host = match address {
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => "127.0.0.1".to_owned(),
            SocketAddr::V6(v6) if v6.ip().is_unspecified() => "::1".to_owned(),
            other => other.ip().to_string(),
        };
        Self { host, port: address.port() }
    }
}

impl fmt::Display for ManagerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for ManagerAddress {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |why| ParseAddressError { text: text.to_owned(), why };
        if text.parse::<Ipv6Addr>().is_ok() {
            return Ok(Self { host: text.to_owned(), port: PORT_DEFAULT });
        }
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => {
                host.parse::<Ipv6Addr>().map_err(|_| error("no IPv6 address in the brackets"))?;
                match rest {
                    "" => (host, None),
                    _ => (host, Some(rest.strip_prefix(':').ok_or(error("no `:` after `]`"))?)),
                }
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        if host.is_empty() {
            return Err(error("no host"));
        }
        if let None = host.parse::<Ipv6Addr>().ok()
            && !host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        {
            return Err(error("the host contains a character that is not allowed in host names"));
        }
        let port = match port {
            None => PORT_DEFAULT,
            Some(port) => match port.parse() {
                Ok(port) if port > 0 => port,
                _ => return Err(error("the port is not a number from 1 to 65535")),
            },
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn addresses_can_be_parsed_from_their_text() {
        for (text, printed) in [
            ("manager.lan", "manager.lan:7770"),
            ("manager.lan:1", "manager.lan:1"),
            ("10.0.0.1:7771", "10.0.0.1:7771"),
            ("[::1]:5", "[::1]:5"),
            ("[::1]", "[::1]:7770"),
            ("fe80::1", "[fe80::1]:7770"),
        ] {
            let address: ManagerAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), printed);
            assert_eq!(printed.parse::<ManagerAddress>().unwrap(), address);
        }
    }

    #[test]
    fn a_text_that_is_not_an_address_is_an_error() {
        for text in ["", ":1", "a:", "a:0", "a:65536", "a b", "[x]:1", "[::1]x", "tcp://a:1"] {
            assert!(text.parse::<ManagerAddress>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_unspecified_address_is_this_machine() {
        let address = ManagerAddress::from("0.0.0.0:7".parse::<SocketAddr>().unwrap());
        assert_eq!(address.to_string(), "127.0.0.1:7");
    }
}
