//! The JSON output of the verbs about tokens and users.

use podmesh_protocol::access::{Role as WireRole, TokenId};
use podmesh_protocol::client::{TokenState as WireTokenState, TokenView, UserView};
use schemars::JsonSchema;
use serde::Serialize;

use crate::json::{Word, words};
use crate::time::rfc3339;

words! {
    /// What the owner of a key may do.
    Role = WireRole {
        /// Have a session as a node.
        Agent "agent",
        /// Read.
        Viewer "viewer",
        /// Read, submit and cancel.
        Operator "operator",
        /// Everything.
        Admin "admin",
    }
    /// Whether a token can be used.
    TokenState = WireTokenState {
        /// It can be used.
        Usable "usable",
        /// All its uses are used up.
        UsedUp "used_up",
        /// It has expired.
        Expired "expired",
        /// It was revoked.
        Revoked "revoked",
    }
}

/// `podmesh token create --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct TokenOutput {
    /// The token's number.
    pub id: u64,
    /// The token itself.
    pub token: String,
    /// The role of members that join with it.
    pub role: Role,
    /// How many times it can be used.
    pub uses: u32,
    /// When it expires.
    pub expires_at: String,
}

impl TokenOutput {
    /// Returns the view of a new token.
    pub fn new(
        id: TokenId,
        token: String,
        role: WireRole,
        uses: u32,
        expires_wall_ms: u64,
    ) -> Self {
        Self { id: id.0, token, role: role.into(), uses, expires_at: rfc3339(expires_wall_ms) }
    }
}

/// `podmesh token --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct TokensOutput {
    /// The tokens in order of number.
    pub tokens: Vec<TokenRow>,
}

/// A token.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TokenRow {
    /// The token's number.
    pub id: u64,
    /// Whether it can be used.
    pub state: TokenState,
    /// The role of members that join with it, or of its bearer.
    pub role: Role,
    /// How many more times it can be used; 1 for an API token, which has no such limit.
    pub uses_left: u32,
    /// When it expires.
    pub expires_at: String,
    /// Who created it.
    pub created_by: String,
    /// Whether it is an API token; otherwise it is a join token.
    pub api: bool,
    /// When an API token was last used, to the minute.
    pub used_at: Option<String>,
}

impl TokensOutput {
    /// Returns the view of all tokens.
    pub fn new(tokens: &[TokenView]) -> Self {
        let row = |view: &TokenView| TokenRow {
            id: view.id.0,
            state: (&view.state).into(),
            role: (&view.role).into(),
            uses_left: view.uses_left,
            expires_at: rfc3339(view.expires_wall_ms),
            created_by: view.created_by.to_string(),
            api: view.api,
            used_at: view.used_wall_ms.map(rfc3339),
        };
        Self { tokens: tokens.iter().map(row).collect() }
    }
}

/// `podmesh users --output json`
#[derive(Debug, Serialize, JsonSchema)]
pub struct UsersOutput {
    /// The users in order of name.
    pub users: Vec<UserRow>,
}

/// A user who joined.
#[derive(Debug, Serialize, JsonSchema)]
pub struct UserRow {
    /// The user's name.
    pub user: String,
    /// The user's role.
    pub role: Role,
    /// The user's public key (Ed25519), in hexadecimal.
    pub key: String,
    /// The number of the token used to join.
    pub token: u64,
    /// When the user joined.
    pub joined_at: String,
}

impl UsersOutput {
    /// Returns the view of all users.
    pub fn new(users: &[UserView]) -> Self {
        let row = |view: &UserView| UserRow {
            user: view.name.to_string(),
            role: (&view.role).into(),
            key: view.key.to_string(),
            token: view.token.0,
            joined_at: rfc3339(view.enrolled_wall_ms),
        };
        Self { users: users.iter().map(row).collect() }
    }
}
