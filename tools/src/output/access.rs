//! What the verbs about who may come in print as JSON.

use podmesh_protocol::access::Role as WireRole;
use podmesh_protocol::client::{TokenState as WireTokenState, TokenView, UserView};
use schemars::JsonSchema;
use serde::Serialize;

use crate::connect_access::NewToken;
use crate::output::json::{Word, words};
use crate::output::time::rfc3339;

words! {
    /// What the owner of a key may do.
    Role = WireRole {
        /// Have a session as one node.
        Agent "agent",
        /// Read.
        Viewer "viewer",
        /// Read, submit and cancel.
        Operator "operator",
        /// All of it.
        Admin "admin",
    }
    /// Whether a join token can be used.
    TokenState = WireTokenState {
        /// It can.
        Usable "usable",
        /// It was used as often as it could be.
        UsedUp "used_up",
        /// Its time is over.
        Expired "expired",
        /// It was revoked.
        Revoked "revoked",
    }
}

/// `podmesh token create --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenOutput {
    /// Its number.
    pub(crate) id: u64,
    /// The token itself.
    pub(crate) token: String,
    /// What whoever joins with it may do.
    pub(crate) role: Role,
    /// How often it can be used.
    pub(crate) uses: u32,
    /// Until when.
    pub(crate) expires_at: String,
}

impl TokenOutput {
    pub(crate) fn new(made: &NewToken, role: WireRole, uses: u32) -> Self {
        Self {
            id: made.id.0,
            token: made.token.clone(),
            role: role.into(),
            uses,
            expires_at: rfc3339(made.expires_wall_ms),
        }
    }
}

/// `podmesh token --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokensOutput {
    /// The tokens in order of number.
    pub(crate) tokens: Vec<TokenRow>,
}

/// A join token.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenRow {
    /// Its number.
    pub(crate) id: u64,
    /// Whether it can be used.
    pub(crate) state: TokenState,
    /// What whoever joins with it may do.
    pub(crate) role: Role,
    /// How often it can still be used.
    pub(crate) uses_left: u32,
    /// Until when.
    pub(crate) expires_at: String,
    /// Who asked for it.
    pub(crate) created_by: String,
}

impl TokensOutput {
    pub(crate) fn new(tokens: &[TokenView]) -> Self {
        let row = |view: &TokenView| TokenRow {
            id: view.id.0,
            state: view.state.into(),
            role: view.role.into(),
            uses_left: view.uses_left,
            expires_at: rfc3339(view.expires_wall_ms),
            created_by: view.created_by.to_string(),
        };
        Self { tokens: tokens.iter().map(row).collect() }
    }
}

/// `podmesh users --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct UsersOutput {
    /// The users in order of name.
    pub(crate) users: Vec<UserRow>,
}

/// A user that joined.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct UserRow {
    /// Their name.
    pub(crate) user: String,
    /// What they may do.
    pub(crate) role: Role,
    /// Their public key (Ed25519), in hexadecimal.
    pub(crate) key: String,
    /// The number of the token with which they joined.
    pub(crate) token: u64,
    /// When.
    pub(crate) joined_at: String,
}

impl UsersOutput {
    pub(crate) fn new(users: &[UserView]) -> Self {
        let row = |view: &UserView| UserRow {
            user: view.name.to_string(),
            role: view.role.into(),
            key: view.key.to_string(),
            token: view.token.0,
            joined_at: rfc3339(view.enrolled_wall_ms),
        };
        Self { users: users.iter().map(row).collect() }
    }
}
