//! The requests about who may connect, by name.

use podmesh_protocol::access::{Role, TokenId};
use podmesh_protocol::client::{PrincipalKind, ReplyBody, RequestBody, TokenView, UserView};
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::PAGE_ROWS_MAX;
use podmesh_wire::client::ClientError;

use crate::connect::{Connection, RequestError};
use crate::error::CliError;

/// A join token that has just been made.
#[derive(Debug)]
pub(crate) struct NewToken {
    /// Its number.
    pub(crate) id: TokenId,
    /// Itself, as one word. The manager does not tell it again.
    pub(crate) token: String,
    /// When it expires: milliseconds since 1970 by the manager's clock.
    pub(crate) expires_wall_ms: u64,
}

impl Connection {
    /// Makes a join token. Where the answer is lost and the request goes out again, there is a
    /// second one that nobody knows, and that expires.
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

    /// The join tokens.
    pub(crate) async fn tokens(&self) -> Result<Vec<TokenView>, RequestError> {
        match self.request(RequestBody::Tokens).await? {
            ReplyBody::Tokens(tokens) => Ok(tokens),
            _ => Err(unexpected()),
        }
    }

    /// Makes a join token useless.
    pub(crate) async fn token_revoke(&self, id: TokenId) -> Result<(), RequestError> {
        match self.request(RequestBody::TokenRevoke { id }).await? {
            ReplyBody::TokenRevoked => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// All users that have joined, in order of name.
    pub(crate) async fn users(&self) -> Result<Vec<UserView>, RequestError> {
        let mut users: Vec<UserView> = Vec::new();
        loop {
            let after: Option<Name> = users.last().map(|user| user.name.clone());
            match self.request(RequestBody::Users { after, limit: PAGE_ROWS_MAX }).await? {
                ReplyBody::Users(page) => {
                    let last = page.len() < PAGE_ROWS_MAX as usize;
                    users.extend(page);
                    if last {
                        return Ok(users);
                    }
                }
                _ => return Err(unexpected()),
            }
        }
    }

    /// Shuts out a node or user for good.
    pub(crate) async fn revoke(&self, kind: PrincipalKind, name: Name) -> Result<(), RequestError> {
        match self.request(RequestBody::Revoke { kind, name }).await? {
            ReplyBody::Revoked => Ok(()),
            _ => Err(unexpected()),
        }
    }
}

fn unexpected() -> RequestError {
    let why = ClientError::UnexpectedReply;
    RequestError::Failed(CliError::failure("the manager cannot be understood").because(why))
}
