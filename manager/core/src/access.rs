//! Tokens, and the keys that joined with them.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

use podmesh_protocol::access::{Caller, PublicKey, Role, TokenId};
use podmesh_protocol::client::{PrincipalKind, TokenState, TokenView, UserView};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::{DURATION_MS_MAX, KEYS_MAX, TOKEN_USES_MAX, TOKENS_MAX};
use podmesh_protocol::session::Hello;
use podmesh_protocol::time::{Millis, Now};

use crate::Core;
use crate::state::State;
use crate::state::{Change, KeyRow, TokenRow};
use crate::step::{Answer, Effect, Step};

/// The least time between two events about refused joins, in milliseconds. Many attempts to join
/// must not push out other events.
const REFUSALS_EVERY_MS: u64 = 1_000;

/// What is derived from the tokens and keys of the state.
#[derive(Debug, Default)]
pub(crate) struct Access {
    /// The valid keys by kind and name of their owner.
    names: BTreeMap<(PrincipalKind, Name), PublicKey>,
    refused: u32,
    refusal_told_ms: Option<Millis>,
}

fn kind_of(role: Role) -> PrincipalKind {
    match role {
        Role::Agent => PrincipalKind::Node,
        Role::Viewer | Role::Operator | Role::Admin => PrincipalKind::User,
    }
}

impl Access {
    pub(crate) fn new(state: &State) -> Self {
        let mut access = Self::default();
        for row in state.keys.values().filter(|row| row.has_name()) {
            access.give_name(row);
        }
        access
    }

    /// Makes this key the one that the name of its owner stands for.
    pub(crate) fn give_name(&mut self, row: &KeyRow) {
        self.names.insert((kind_of(row.role), row.name.clone()), row.key);
    }

    /// Returns whether a node of this name has a valid key.
    pub(crate) fn is_enrolled(&self, node: &Name) -> bool {
        self.names.contains_key(&(PrincipalKind::Node, node.clone()))
    }

    #[cfg(any(test, feature = "invariants"))]
    pub(crate) fn check_invariants(&self, state: &State) {
        let named = state.keys.values().filter(|row| row.has_name()).count();
        assert_eq!(named, self.names.len(), "every valid key has its own name");
        for row in state.keys.values().filter(|row| !row.revoked) {
            let Some(old) = row.renews else { continue };
            let name = &state.keys[&old].name;
            assert!(self.names.get(&(kind_of(row.role), name.clone())) == Some(&old));
        }
        for ((kind, name), key) in &self.names {
            let row = &state.keys[key];
            assert!(row.has_name() && row.name == *name && kind_of(row.role) == *kind);
        }
        assert!(state.tokens.keys().all(|id| *id <= state.last_token));
    }
}

impl TokenRow {
    /// Returns whether it can be used at a time.
    fn state(&self, wall_ms: u64) -> TokenState {
        if self.revoked {
            TokenState::Revoked
        } else if self.uses_left == 0 {
            TokenState::UsedUp
        } else if self.expires_wall_ms <= wall_ms {
            TokenState::Expired
        } else {
            TokenState::Usable
        }
    }

    /// Returns it as people see it at a time: milliseconds since 1970.
    pub fn view(&self, wall_ms: u64) -> TokenView {
        TokenView {
            id: self.id,
            state: self.state(wall_ms).into(),
            role: self.role.into(),
            uses_left: self.uses_left,
            expires_wall_ms: self.expires_wall_ms,
            created_by: self.created_by.clone(),
            api: self.api,
            used_wall_ms: self.used_wall_ms,
        }
    }

    /// Returns the effect that makes an API token valid in the shell; `None` for other tokens.
    fn api_token(&self) -> Option<Effect> {
        self.api.then_some(Effect::ApiTokenCreated {
            id: self.id,
            secret_hash: self.secret_hash,
            role: self.role,
            expires_wall_ms: self.expires_wall_ms,
        })
    }
}

impl KeyRow {
    /// Returns its owner as people see it; `None` if it is a node, or the key is not valid.
    pub fn user(&self) -> Option<UserView> {
        let is_user = kind_of(self.role) == PrincipalKind::User && self.has_name();
        is_user.then(|| UserView {
            name: self.name.clone(),
            role: self.role.into(),
            key: self.key,
            token: self.token,
            enrolled_wall_ms: self.enrolled_wall_ms,
        })
    }
}

/// Returns the token with a number and secret if it can be used, or else why not.
fn usable_token<'a>(
    state: &'a State,
    now: Now,
    id: TokenId,
    secret_hash: &[u8; 32],
) -> Result<&'a TokenRow, String> {
    // These are hashes of 128 random bits: the time of a comparison reveals nothing about the
    // secret.
    let known = state.tokens.get(&id).filter(|row| !row.api && row.secret_hash == *secret_hash);
    let Some(row) = known else {
        return Err("this manager has no such join token".into());
    };
    match row.state(now.wall_ms) {
        TokenState::Usable => Ok(row),
        TokenState::Revoked => Err(format!("join token {id} was revoked")),
        TokenState::UsedUp => Err(format!("join token {id} has been used up")),
        TokenState::Expired => Err(format!("join token {id} has expired")),
    }
}

/// Returns the role of a key that has already joined with the same token and name. Its owner asks
/// again if the answer was lost, and the token may be used up by then.
fn has_joined(
    state: &State,
    key: &PublicKey,
    token: TokenId,
    secret_hash: &[u8; 32],
    name: &Name,
) -> Option<Role> {
    let known = state.keys.get(key).filter(|known| !known.revoked && known.token == token)?;
    let proven = state.tokens.get(&token).is_some_and(|row| row.secret_hash == *secret_hash);
    (proven && known.name == *name).then_some(known.role)
}

impl Core {
    pub(crate) fn create_token(
        &mut self,
        now: Now,
        new: NewToken,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        let NewToken { by, secret_hash, role, ttl_ms, uses, api } = new;
        let invalid = |message: String| Err(ErrorReply::new(ErrorCode::InvalidSpec, message));
        if api && role == Role::Agent {
            return invalid(
                "an agent does not ask over HTTP: an API token has the role viewer, operator or admin"
                    .into(),
            );
        }
        if uses == 0 || uses > TOKEN_USES_MAX {
            return invalid(format!(
                "{uses} uses are outside the range of 1 to {TOKEN_USES_MAX} (TOKEN_USES_MAX)"
            ));
        }
        if ttl_ms == 0 || ttl_ms > DURATION_MS_MAX {
            return invalid(format!(
                "a lifetime of {ttl_ms} ms is outside the range of 1 ms to {DURATION_MS_MAX} ms (DURATION_MS_MAX)"
            ));
        }
        if self.state.tokens.len() >= TOKENS_MAX {
            let useless = |row: &&TokenRow| row.state(now.wall_ms) != TokenState::Usable;
            let Some(oldest) = self.state.tokens.values().find(useless).map(|row| row.id) else {
                let message = format!(
                    "the manager has {TOKENS_MAX} usable tokens, which is the limit (TOKENS_MAX): revoke some of them (`podmesh token revoke`)"
                );
                return Err(ErrorReply::new(ErrorCode::Overloaded, message));
            };
            out.effects.push(Effect::ApiTokenRevoked(oldest));
            self.state.record(out, Change::TokenRemoved(oldest));
        }
        let id = TokenId(self.state.last_token.0 + 1);
        let expires_wall_ms = now.wall_ms.saturating_add(ttl_ms);
        let row = TokenRow {
            id,
            secret_hash,
            role,
            expires_wall_ms,
            uses_left: uses,
            created_by: by.clone(),
            revoked: false,
            api,
            used_wall_ms: None,
        };
        out.effects.extend(row.api_token());
        self.state.record(out, Change::TokenSaved(row));
        let (token, role) = (id, role.into());
        out.events.push(match api {
            true => EventFact::ApiTokenCreated { token, role, by },
            false => EventFact::TokenCreated { token, role, by },
        });
        Ok(Answer::TokenCreated { id, expires_wall_ms })
    }

    pub(crate) fn revoke_token(
        &mut self,
        by: &Name,
        id: TokenId,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        let Some(row) = self.state.tokens.get(&id) else {
            let message = format!("there is no token {id}; `podmesh token list` shows all");
            return Err(ErrorReply::new(ErrorCode::NotFound, message));
        };
        if !row.revoked {
            if row.api {
                out.effects.push(Effect::ApiTokenRevoked(id));
            }
            let row = TokenRow { revoked: true, ..row.clone() };
            self.state.record(out, Change::TokenSaved(row));
            out.events.push(EventFact::TokenRevoked { token: id, by: by.clone() });
        }
        Ok(Answer::TokenRevoked)
    }

    pub(crate) fn on_api_token_used(&mut self, now: Now, id: TokenId, out: &mut Step) {
        if let Some(row) = self.state.tokens.get(&id).filter(|row| row.api) {
            let row = TokenRow { used_wall_ms: Some(now.wall_ms), ..row.clone() };
            self.state.record(out, Change::TokenSaved(row));
        }
    }

    pub(crate) fn revoke(
        &mut self,
        now: Now,
        by: &Name,
        kind: PrincipalKind,
        name: &Name,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        if !self.revoke_key_of(by, kind, name, out) {
            let before = |row: &KeyRow| kind_of(row.role) == kind && row.name == *name;
            if self.state.keys.values().any(before) {
                return Ok(Answer::KeyRevoked); // A repeated request: the answer may have been lost.
            }
            let what = match kind {
                PrincipalKind::Node => "no node named",
                PrincipalKind::User => "no user named",
            };
            let message = format!(
                "{what} `{name}` has joined with a key; agents and users on the manager's own machine need no key, so there is nothing to revoke"
            );
            return Err(ErrorReply::new(ErrorCode::NotFound, message));
        }
        if kind == PrincipalKind::Node {
            self.end_session_of(now, name, out);
        }
        Ok(Answer::KeyRevoked)
    }

    /// Revokes the key of a node or user. Returns whether there is one.
    pub(crate) fn revoke_key_of(
        &mut self,
        by: &Name,
        kind: PrincipalKind,
        name: &Name,
        out: &mut Step,
    ) -> bool {
        let Some(key) = self.access.names.remove(&(kind, name.clone())) else { return false };
        if let Some(row) = self.state.keys.get(&key) {
            out.events.push(EventFact::KeyRevoked {
                role: row.role.into(),
                name: name.clone(),
                by: by.clone(),
            });
        }
        // The owner of the revoked key may have made the new one.
        self.end_renewal_of(key, out);
        self.end_key(key, out);
        true
    }

    pub(crate) fn join(
        &mut self,
        now: Now,
        key: PublicKey,
        token: TokenId,
        secret_hash: &[u8; 32],
        name: Name,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        if let Some(role) = has_joined(&self.state, &key, token, secret_hash, &name) {
            out.effects.push(Effect::KeyEnrolled { key, role, name: name.clone(), renews: false });
            return Ok(Answer::Joined { role, name });
        }
        match self.may_join(now, &key, token, secret_hash, &name) {
            Ok(role) => {
                self.add_key(now, key, token, role, name.clone(), out);
                Ok(Answer::Joined { role, name })
            }
            Err(error) => {
                self.refuse_join(now, &name, &error, out);
                Err(error)
            }
        }
    }

    fn may_join(
        &self,
        now: Now,
        key: &PublicKey,
        token: TokenId,
        secret_hash: &[u8; 32],
        name: &Name,
    ) -> Result<Role, ErrorReply> {
        let row = usable_token(&self.state, now, token, secret_hash).map_err(|why| {
            let message =
                format!("{why}: get a new one on the manager's machine (`podmesh token create`)");
            ErrorReply::new(ErrorCode::InvalidToken, message)
        })?;
        let role = row.role;
        match self.state.keys.get(key) {
            Some(known) if known.revoked => {
                let message = "this key was revoked and cannot be used again: remove it from the data directory, and join again with a new token";
                return Err(ErrorReply::new(ErrorCode::NotEnrolled, message));
            }
            Some(known) if known.renews.is_some() => {
                let message =
                    "this key is about to replace another one: use it once, or join with a new key";
                return Err(ErrorReply::new(ErrorCode::NotEnrolled, message));
            }
            None if self.state.keys.len() >= KEYS_MAX => {
                let message = format!(
                    "the manager has {KEYS_MAX} keys, which is the limit (KEYS_MAX): revoke those that are not used; revoked keys are removed after `keep_nodes` (manager.toml)"
                );
                return Err(ErrorReply::new(ErrorCode::Overloaded, message));
            }
            _ => {}
        }
        let kind = kind_of(role);
        let taken = self.access.names.get(&(kind, name.clone())).is_some_and(|other| other != key);
        if taken {
            let (what, verb) = match kind {
                PrincipalKind::Node => ("node", "nodes"),
                PrincipalKind::User => ("user", "users"),
            };
            let message = format!(
                "another {what} has joined as `{name}`: choose another name (--name), or, if that {what} no longer exists, ask an admin to revoke its key (`podmesh {verb} revoke {name}`)"
            );
            return Err(ErrorReply::new(ErrorCode::NameTaken, message));
        }
        Ok(role)
    }

    fn add_key(
        &mut self,
        now: Now,
        key: PublicKey,
        token: TokenId,
        role: Role,
        name: Name,
        out: &mut Step,
    ) {
        if let Some(row) = self.state.tokens.get(&token) {
            let uses_left = row.uses_left.saturating_sub(1);
            let row = TokenRow { uses_left, ..row.clone() };
            self.state.record(out, Change::TokenSaved(row));
        }
        if let Some(before) = self.state.keys.get(&key) {
            self.access.names.remove(&(kind_of(before.role), before.name.clone()));
        }
        let row = KeyRow {
            key,
            role,
            name: name.clone(),
            token,
            enrolled_wall_ms: now.wall_ms,
            revoked: false,
            renews: None,
            revoked_age_ms: None,
        };
        self.access.give_name(&row);
        self.state.record(out, Change::KeySaved(row));
        out.events.push(EventFact::Enrolled { role: role.into(), name: name.clone(), token });
        out.effects.push(Effect::KeyEnrolled { key, role, name, renews: false });
    }

    fn refuse_join(&mut self, now: Now, name: &Name, error: &ErrorReply, out: &mut Step) {
        let access = &mut self.access;
        access.refused = access.refused.saturating_add(1);
        let due = |told: Millis| now.mono_ms >= told.saturating_add(REFUSALS_EVERY_MS);
        if access.refusal_told_ms.is_none_or(due) {
            access.refusal_told_ms = Some(now.mono_ms);
            let why = format!("`{name}`: {error}");
            out.events.push(EventFact::JoinsRefused {
                message: why,
                count: core::mem::take(&mut access.refused),
            });
        }
    }

    /// Checks that a caller may have a session as the node that its hello names.
    pub(crate) fn may_say_hello(&self, caller: &Caller, hello: &Hello) -> Result<(), ErrorReply> {
        let forbidden = |message: String| Err(ErrorReply::new(ErrorCode::Forbidden, message));
        let is_valid = |key| self.state.keys.get(&key).is_some_and(|row| !row.revoked);
        match (caller.role, caller.key) {
            // The key was revoked while the hello was on its way.
            (Role::Agent, Some(key)) if !is_valid(key) => Err(ErrorReply::new(
                ErrorCode::NotEnrolled,
                "this key was revoked and cannot be used again: join with a new key and a new token",
            )),
            (Role::Agent, _) if caller.name != hello.node => forbidden(format!(
                "this agent joined as `{}` but asks for a session as `{}`: start it without --name, or join again",
                caller.name, hello.node
            )),
            (Role::Agent, _) => Ok(()),
            (Role::Admin, None) if !self.access.is_enrolled(&hello.node) => Ok(()),
            (Role::Admin, None) => forbidden(format!(
                "node `{}` has joined with a key, and only the agent with that key can use the name: choose another name (--name)",
                hello.node
            )),
            (role, _) => forbidden(format!(
                "{} has the role {role}, but a session needs the role agent: join with a token for that role",
                caller.name
            )),
        }
    }
}

/// A request for a new token.
pub(crate) struct NewToken {
    pub(crate) by: Name,
    pub(crate) secret_hash: [u8; 32],
    pub(crate) role: Role,
    pub(crate) ttl_ms: u64,
    pub(crate) uses: u32,
    /// Whether it is an API token.
    pub(crate) api: bool,
}
