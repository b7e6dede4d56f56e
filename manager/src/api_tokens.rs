//! API tokens: who may ask over HTTP without being a user of this machine.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use podmesh_manager_core::input::Input;
use podmesh_protocol::access::{ApiToken, Caller, Role, TokenId};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::ids::Name;
use podmesh_wire::key::sha256;

use crate::callers::Client;
use crate::clock::Clock;
use crate::core::CoreHandle;
use crate::turns::CallerLine;

/// The least time between two times that the use of a token is saved.
const SAVE_USE_EVERY_MS: u64 = 60_000;

/// The valid API tokens. Clones share them.
#[derive(Clone)]
pub(crate) struct ApiTokens(Arc<Shared>);

struct Shared {
    clock: Clock,
    core: CoreHandle,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// By the hash of the secret. A comparison of hashes of 128 random bits reveals nothing.
    tokens: HashMap<[u8; 32], Known>,
    hashes: HashMap<TokenId, [u8; 32]>,
}

struct Known {
    id: TokenId,
    role: Role,
    expires_wall_ms: u64,
    line: CallerLine,
    /// When a use was last saved, by the monotonic clock.
    saved_ms: Option<u64>,
}

impl Known {
    fn check(&self, wall_ms: u64) -> Result<(), ErrorReply> {
        if self.expires_wall_ms > wall_ms {
            return Ok(());
        }
        Err(refused(&format!("API token {} has expired", self.id)))
    }
}

fn refused(why: &str) -> ErrorReply {
    let message = format!(
        "{why}: an admin can create another one (`podmesh token create --api --role viewer`)"
    );
    ErrorReply::new(ErrorCode::InvalidToken, message)
}

fn unknown() -> ErrorReply {
    refused("this manager has no such API token, or it was revoked")
}

impl ApiTokens {
    pub(crate) fn new(clock: Clock, core: CoreHandle) -> Self {
        Self(Arc::new(Shared { clock, core, table: Mutex::default() }))
    }

    /// Makes a token valid.
    pub(crate) fn created(&self, id: TokenId, hash: [u8; 32], role: Role, expires_wall_ms: u64) {
        let known =
            Known { id, role, expires_wall_ms, line: CallerLine::default(), saved_ms: None };
        let mut table = self.0.table.lock();
        table.hashes.insert(id, hash);
        table.tokens.insert(hash, known);
    }

    /// Makes a token invalid.
    pub(crate) fn revoked(&self, id: TokenId) {
        let mut table = self.0.table.lock();
        if let Some(hash) = table.hashes.remove(&id) {
            table.tokens.remove(&hash);
        }
    }

    /// Returns the token with this text, and its bearer, and notes that it is used.
    ///
    /// # Errors
    /// If there is none, or it has expired.
    pub(crate) fn admit(&self, text: &str) -> Result<(TokenId, Client), ErrorReply> {
        let ApiToken(secret) =
            text.parse().map_err(|error: podmesh_protocol::access::ParseApiTokenError| {
                refused(&error.to_string())
            })?;
        let now = self.0.clock.now();
        let mut table = self.0.table.lock();
        let known = table.tokens.get_mut(&sha256(&secret.0)).ok_or_else(unknown)?;
        known.check(now.wall_ms)?;
        let due = |saved: u64| now.mono_ms >= saved.saturating_add(SAVE_USE_EVERY_MS);
        if known.saved_ms.is_none_or(due) {
            known.saved_ms = Some(now.mono_ms);
            self.0.core.tell(Input::ApiTokenUsed { id: known.id });
        }
        let caller = Caller { role: known.role, name: name_of(known.id), key: None };
        let client = Client { caller, connection: None, reads: known.line.connection() };
        Ok((known.id, client))
    }

    /// Checks that a token that was admitted is still valid.
    ///
    /// # Errors
    /// If it was revoked or has expired.
    pub(crate) fn check(&self, id: TokenId) -> Result<(), ErrorReply> {
        let table = self.0.table.lock();
        let known = table.hashes.get(&id).and_then(|hash| table.tokens.get(hash));
        known.ok_or_else(unknown)?.check(self.0.clock.now().wall_ms)
    }
}

/// The name of the bearer of a token, which jobs and events give.
#[expect(clippy::expect_used, reason = "letters, a dash and digits are a name")]
fn name_of(id: TokenId) -> Name {
    format!("token-{id}").parse().expect("a name")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use podmesh_protocol::access::TokenSecret;

    use super::*;
    use crate::clock::wall_ms;

    #[tokio::test]
    async fn a_token_counts_until_it_expires_or_is_revoked() {
        let (core, _receiver) = CoreHandle::new();
        let tokens = ApiTokens::new(Clock::start(0), core);
        let text = |secret: [u8; 16]| ApiToken(TokenSecret(secret)).to_string();
        let error = |text: &str| tokens.admit(text).unwrap_err().message;
        assert!(error(&text([1; 16])).contains("no such API token"));
        assert!(error("podmesh1-abc").contains("not an API token"));

        tokens.created(TokenId(7), sha256(&[1; 16]), Role::Viewer, wall_ms() + 60_000);
        let (id, client) = tokens.admit(&text([1; 16])).unwrap();
        assert_eq!((id, client.caller.role), (TokenId(7), Role::Viewer));
        assert_eq!(client.caller.name.as_str(), "token-7");
        tokens.check(TokenId(7)).unwrap();
        tokens.revoked(TokenId(7));
        assert!(error(&text([1; 16])).contains("revoked"));
        assert!(tokens.check(TokenId(7)).is_err());

        tokens.created(TokenId(8), sha256(&[2; 16]), Role::Admin, wall_ms());
        assert!(error(&text([2; 16])).contains("token 8 has expired"));
        assert!(tokens.check(TokenId(8)).unwrap_err().message.contains("expired"));
    }
}
