//! Join tokens as text. Only the shell handles their secrets; the core never sees them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use podmesh_manager_core::input::Peer;
use podmesh_protocol::access::{JoinToken, KeyDigest, TokenId, TokenSecret};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::limits::TOKEN_ADDRESSES_MAX;
use podmesh_wire::address::ManagerAddress;
use podmesh_wire::key::{self, KeyError, sha256};

use crate::config::ManagerConfig;

/// The secrets of tokens that are being created, and the data that all tokens share.
pub(crate) struct Tokens {
    advertise: Vec<ManagerAddress>,
    listen: SocketAddr,
    waiting: Mutex<HashMap<(Peer, u64), TokenSecret>>,
}

impl Tokens {
    pub(crate) fn new(config: &ManagerConfig, listen: SocketAddr) -> Self {
        let advertise = config.advertise.clone();
        Self { advertise, listen, waiting: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Peer, u64), TokenSecret>> {
        // No code that can panic runs while it is held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates a secret for a request, and returns its hash.
    ///
    /// # Errors
    /// If no secret can be created, or a request with this number already waits for its token.
    pub(crate) fn begin(&self, peer: &Peer, request: u64) -> Result<[u8; 32], ErrorReply> {
        let secret = key::random()
            .map_err(|error: KeyError| ErrorReply::new(ErrorCode::Overloaded, error.to_string()))?;
        let hash = sha256(&secret);
        match self.lock().entry((peer.clone(), request)) {
            Entry::Occupied(_) => {
                let message = format!(
                    "request {request} was sent again before it was answered: give each request a new number"
                );
                Err(ErrorReply::new(ErrorCode::BadMessage, message))
            }
            Entry::Vacant(waiting) => {
                waiting.insert(TokenSecret(secret));
                Ok(hash)
            }
        }
    }

    /// Discards the secret of a request that was refused.
    pub(crate) fn refused(&self, peer: &Peer, request: u64) {
        self.lock().remove(&(peer.clone(), request));
    }

    /// Returns the token of a request once it has a number; `None` if it was returned before.
    pub(crate) fn created(
        &self,
        peer: &Peer,
        request: u64,
        id: TokenId,
        manager: KeyDigest,
    ) -> Option<String> {
        let secret = self.lock().remove(&(peer.clone(), request))?;
        let addresses = self.addresses().into_iter().map(|address| address.to_string());
        let mut addresses: Vec<_> = addresses.collect();
        addresses.truncate(TOKEN_ADDRESSES_MAX);
        Some(JoinToken { addresses, manager, id, secret }.to_string())
    }

    /// Returns the addresses at which other machines can reach this one.
    fn addresses(&self) -> Vec<ManagerAddress> {
        if !self.advertise.is_empty() {
            return self.advertise.clone();
        }
        if !self.listen.ip().is_unspecified() {
            return vec![self.listen.into()];
        }
        let port = self.listen.port();
        let of_this_family = |ip: &IpAddr| self.listen.is_ipv6() || ip.is_ipv4();
        let mut addresses: Vec<ManagerAddress> = interface_addresses()
            .into_iter()
            .filter(of_this_family)
            .map(|ip| SocketAddr::new(ip, port).into())
            .collect();
        if addresses.is_empty() {
            // A machine without a network has no better address.
            addresses.push(self.listen.into());
        }
        addresses
    }
}

/// Returns the addresses of this machine that other machines can use, IPv4 first.
fn interface_addresses() -> Vec<IpAddr> {
    let interfaces = match nix::ifaddrs::getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!(%error, "cannot list the addresses of this machine");
            return vec![];
        }
    };
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    let for_others = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        // A link-local address is useless without an interface of the machine that uses it.
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    let mut found: Vec<IpAddr> = interfaces.filter_map(address).filter(for_others).collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.dedup();
    found
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn tokens(listen: &str, advertise: &[&str]) -> Tokens {
        let mut config = ManagerConfig::new("/nowhere", listen.parse().unwrap());
        config.advertise = advertise.iter().map(|text| text.parse().unwrap()).collect();
        Tokens::new(&config, config.listen)
    }

    #[test]
    fn a_token_is_returned_once_and_contains_the_address_of_the_manager() {
        let tokens = tokens("127.0.0.1:7770", &[]);
        let peer = Peer(Arc::from([1].as_slice()));
        let hash = tokens.begin(&peer, 4).unwrap();
        // The secret of the pending token is not replaced.
        assert_eq!(tokens.begin(&peer, 4).unwrap_err().code, ErrorCode::BadMessage);
        let digest = KeyDigest([1; 32]);
        let token = tokens.created(&peer, 4, TokenId(9), digest).unwrap();
        let token: JoinToken = token.parse().unwrap();
        assert_eq!(token.addresses, ["127.0.0.1:7770"]);
        assert_eq!((token.id, token.manager), (TokenId(9), digest));
        assert_eq!(sha256(&token.secret.0), hash);
        assert_eq!(tokens.created(&peer, 4, TokenId(9), digest), None);
    }

    #[test]
    fn a_manager_that_listens_on_all_addresses_puts_usable_ones_into_tokens() {
        let addresses = tokens("0.0.0.0:7770", &[]).addresses();
        assert!(!addresses.is_empty());
        let all = tokens("[::]:7770", &["manager.lan"]).addresses();
        assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), ["manager.lan:7770"]);
    }
}
