//! The requests about tokens, users and keys, with the reply of the matching type.

use podmesh_protocol::access::{Caller, KeyDigest, PublicKey, Role, TokenId};
use podmesh_protocol::client::{PrincipalKind, ReplyBody, RequestBody, TokenView, UserView};
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::PAGE_ROWS_MAX;

use crate::connect::{Connection, RequestError, unexpected};

/// A new token.
pub(crate) struct NewToken {
    pub(crate) id: TokenId,
    pub(crate) token: String,
    pub(crate) expires_wall_ms: u64,
}

impl Connection {
    /// Returns who the manager identifies the caller as.
    pub(crate) async fn who_am_i(&self) -> Result<Caller, RequestError> {
        match self.request(RequestBody::WhoAmI).await? {
            ReplyBody::WhoAmI(caller) => Ok(caller),
            _ => Err(unexpected()),
        }
    }

    /// Creates a token.
    pub(crate) async fn token_create(
        &self,
        role: Role,
        ttl_ms: u64,
        uses: u32,
    ) -> Result<NewToken, RequestError> {
        match self.request(RequestBody::TokenCreate { role, ttl_ms, uses }).await? {
            ReplyBody::TokenCreated { id, token, expires_wall_ms } => {
                Ok(NewToken { id, token, expires_wall_ms })
            }
            _ => Err(unexpected()),
        }
    }

    /// Creates an API token.
    pub(crate) async fn api_token_create(
        &self,
        role: Role,
        ttl_ms: u64,
    ) -> Result<NewToken, RequestError> {
        match self.request(RequestBody::ApiTokenCreate { role, ttl_ms }).await? {
            ReplyBody::TokenCreated { id, token, expires_wall_ms } => {
                Ok(NewToken { id, token, expires_wall_ms })
            }
            _ => Err(unexpected()),
        }
    }

    /// Returns all tokens.
    pub(crate) async fn tokens(&self) -> Result<Vec<TokenView>, RequestError> {
        match self.request(RequestBody::Tokens).await? {
            ReplyBody::Tokens(tokens) => Ok(tokens),
            _ => Err(unexpected()),
        }
    }

    /// Revokes a token.
    pub(crate) async fn token_revoke(&self, id: TokenId) -> Result<(), RequestError> {
        match self.request(RequestBody::TokenRevoke { id }).await? {
            ReplyBody::TokenRevoked => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Returns all users in order of name.
    pub(crate) async fn users(&self) -> Result<Vec<UserView>, RequestError> {
        let mut users: Vec<UserView> = Vec::new();
        loop {
            let after = users.last().map(|user| user.name.clone());
            match self.request(RequestBody::Users { after, limit: PAGE_ROWS_MAX }).await? {
                ReplyBody::Users(page) if page.is_empty() => return Ok(users),
                ReplyBody::Users(page) => users.extend(page),
                _ => return Err(unexpected()),
            }
        }
    }

    /// Replaces the key of this connection by another one of the same user.
    pub(crate) async fn key_renew(&self, key: PublicKey) -> Result<(), RequestError> {
        match self.request(RequestBody::KeyRenew { key }).await? {
            ReplyBody::KeyRenewed => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Replaces the manager's key `key` by its next one. Returns the digests of the new key and of
    /// its next one.
    pub(crate) async fn key_rotate(
        &self,
        key: KeyDigest,
    ) -> Result<(KeyDigest, KeyDigest), RequestError> {
        match self.request(RequestBody::KeyRotate { key }).await? {
            ReplyBody::KeyRotated { key, next } => Ok((key, next)),
            _ => Err(unexpected()),
        }
    }

    /// Forgets a lost node. Returns whether the node has a valid key.
    pub(crate) async fn node_forget(&self, node: Name, force: bool) -> Result<bool, RequestError> {
        match self.request(RequestBody::NodeForget { node, force }).await? {
            ReplyBody::NodeForgotten { enrolled } => Ok(enrolled),
            _ => Err(unexpected()),
        }
    }

    /// Revokes the key of a node or user.
    pub(crate) async fn revoke(&self, kind: PrincipalKind, name: Name) -> Result<(), RequestError> {
        match self.request(RequestBody::Revoke { kind, name }).await? {
            ReplyBody::Revoked => Ok(()),
            _ => Err(unexpected()),
        }
    }
}
