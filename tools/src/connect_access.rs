//! The requests about who may come in, with the answer that belongs to each.

use podmesh_protocol::access::{Caller, KeyDigest, PublicKey, Role, TokenId};
use podmesh_protocol::client::{PrincipalKind, ReplyBody, RequestBody, TokenView, UserView};
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::PAGE_ROWS_MAX;

use crate::connect::{Connection, RequestError, unexpected};

/// A token that was made.
pub(crate) struct NewToken {
    pub(crate) id: TokenId,
    pub(crate) token: String,
    pub(crate) expires_wall_ms: u64,
}

impl Connection {
    /// Who one is to the manager.
    pub(crate) async fn who_am_i(&self) -> Result<Caller, RequestError> {
        match self.request(RequestBody::WhoAmI).await? {
            ReplyBody::WhoAmI(caller) => Ok(caller),
            _ => Err(unexpected()),
        }
    }

    /// Makes a token.
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

    /// All tokens.
    pub(crate) async fn tokens(&self) -> Result<Vec<TokenView>, RequestError> {
        match self.request(RequestBody::Tokens).await? {
            ReplyBody::Tokens(tokens) => Ok(tokens),
            _ => Err(unexpected()),
        }
    }

    /// Lets a token be of no more use.
    pub(crate) async fn token_revoke(&self, id: TokenId) -> Result<(), RequestError> {
        match self.request(RequestBody::TokenRevoke { id }).await? {
            ReplyBody::TokenRevoked => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// All users in order of name.
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

    /// Lets another key of one's own take the place of the one that asks.
    pub(crate) async fn key_renew(&self, key: PublicKey) -> Result<(), RequestError> {
        match self.request(RequestBody::KeyRenew { key }).await? {
            ReplyBody::KeyRenewed => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Lets the manager's next key take the place of `key`; the digests of that one and of its
    /// next.
    pub(crate) async fn key_rotate(
        &self,
        key: KeyDigest,
    ) -> Result<(KeyDigest, KeyDigest), RequestError> {
        match self.request(RequestBody::KeyRotate { key }).await? {
            ReplyBody::KeyRotated { key, next } => Ok((key, next)),
            _ => Err(unexpected()),
        }
    }

    /// Lets the key of a node or user count no more.
    pub(crate) async fn revoke(&self, kind: PrincipalKind, name: Name) -> Result<(), RequestError> {
        match self.request(RequestBody::Revoke { kind, name }).await? {
            ReplyBody::Revoked => Ok(()),
            _ => Err(unexpected()),
        }
    }
}
