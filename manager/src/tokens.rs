//! Join tokens as text. Only the shell handles their secrets; the core never sees them.

use std::net::{IpAddr, SocketAddr};

use podmesh_protocol::access::{JoinToken, KeyDigest, TokenId, TokenSecret};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::limits::TOKEN_ADDRESSES_MAX;
use podmesh_wire::address::ManagerAddress;
use podmesh_wire::key::{self, KeyError, sha256};

use crate::config::ManagerConfig;

/// Creates tokens, with the data that all of them share.
pub(crate) struct Tokens {
    advertise: Vec<ManagerAddress>,
    listen: SocketAddr,
}

impl Tokens {
    pub(crate) fn new(config: &ManagerConfig, listen: SocketAddr) -> Self {
        let advertise = config.advertise.clone();
        Self { advertise, listen }
    }

    /// Creates a secret, and returns it with its hash.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub(crate) fn create_secret(&self) -> Result<(TokenSecret, [u8; 32]), ErrorReply> {
        let secret = key::random()
            .map_err(|error: KeyError| ErrorReply::new(ErrorCode::Overloaded, error.to_string()))?;
        let hash = sha256(&secret);
        Ok((TokenSecret(secret), hash))
    }

    /// Returns a token as text.
    pub(crate) fn text(&self, id: TokenId, secret: TokenSecret, manager: KeyDigest) -> String {
        let addresses = self.addresses().into_iter().map(|address| address.to_string());
        let mut addresses: Vec<_> = addresses.collect();
        addresses.truncate(TOKEN_ADDRESSES_MAX);
        JoinToken { addresses, manager, id, secret }.to_string()
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
        let mut addresses: Vec<ManagerAddress> = podmesh_wire::machine::addresses()
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn tokens(listen: &str, advertise: &[&str]) -> Tokens {
        let mut config = ManagerConfig::new("/nowhere", listen.parse().unwrap());
        config.advertise = advertise.iter().map(|text| text.parse().unwrap()).collect();
        Tokens::new(&config, config.listen)
    }

    #[test]
    fn a_token_contains_its_secret_and_the_address_of_the_manager() {
        let tokens = tokens("127.0.0.1:7770", &[]);
        let (secret, hash) = tokens.create_secret().unwrap();
        let digest = KeyDigest([1; 32]);
        let token: JoinToken = tokens.text(TokenId(9), secret, digest).parse().unwrap();
        assert_eq!(token.addresses, ["127.0.0.1:7770"]);
        assert_eq!((token.id, token.manager), (TokenId(9), digest));
        assert_eq!(sha256(&token.secret.0), hash);
    }

    #[test]
    fn a_manager_that_listens_on_all_addresses_puts_usable_ones_into_tokens() {
        let addresses = tokens("0.0.0.0:7770", &[]).addresses();
        assert!(!addresses.is_empty());
        let all = tokens("[::]:7770", &["manager.lan"]).addresses();
        assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), ["manager.lan:7770"]);
    }
}
