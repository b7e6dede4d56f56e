//! What `--output json` prints of who may connect.

use podmesh_protocol::client as wire;
use schemars::JsonSchema;
use serde::Serialize;

use super::json::{Role, TokenState};
use super::time::rfc3339;

/// `podmesh token create --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenCreateOutput {
    /// The token's number.
    pub(crate) id: u64,
    /// The token itself, a secret; it is told once.
    pub(crate) token: String,
    /// What whoever joins with it may do.
    pub(crate) role: Role,
    /// How many may join with it.
    pub(crate) uses: u32,
    /// When it expires, by the manager's clock: RFC 3339.
    pub(crate) expires_at: String,
}

/// `podmesh token list --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenListOutput {
    /// The tokens in order of number.
    pub(crate) tokens: Vec<TokenRow>,
}

/// A join token, without its secret.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenRow {
    /// Its number.
    pub(crate) id: u64,
    /// Whether it can be used.
    pub(crate) state: TokenState,
    /// What whoever joins with it may do.
    pub(crate) role: Role,
    /// How many may still join with it.
    pub(crate) uses_left: u32,
    /// When it expires, by the manager's clock: RFC 3339.
    pub(crate) expires_at: String,
    /// Who made it.
    pub(crate) created_by: String,
}

impl From<&wire::TokenView> for TokenRow {
    fn from(view: &wire::TokenView) -> Self {
        Self {
            id: view.id.0,
            state: view.state.into(),
            role: view.role.into(),
            uses_left: view.uses_left,
            expires_at: rfc3339(view.expires_wall_ms),
            created_by: view.created_by.to_string(),
        }
    }
}

/// `podmesh users --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct UsersOutput {
    /// The users in order of name.
    pub(crate) users: Vec<UserRow>,
}

/// A user that has joined and was not revoked.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct UserRow {
    /// Their name.
    pub(crate) name: String,
    /// What they may do.
    pub(crate) role: Role,
    /// Their public key: 64 hexadecimal digits.
    pub(crate) key: String,
    /// The number of the token that they joined with.
    pub(crate) token: u64,
    /// When they joined, by the manager's clock: RFC 3339.
    pub(crate) enrolled_at: String,
}

impl From<&wire::UserView> for UserRow {
    fn from(view: &wire::UserView) -> Self {
        Self {
            name: view.name.to_string(),
            role: view.role.into(),
            key: view.key.to_string(),
            token: view.token.0,
            enrolled_at: rfc3339(view.enrolled_wall_ms),
        }
    }
}
