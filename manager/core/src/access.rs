//! Who may connect: join tokens, the keys that joined with them, and what was refused.

use std::collections::BTreeMap;
use std::ops::Bound;

use podmesh_protocol::access::{Caller, PublicKey, Role, TokenId};
use podmesh_protocol::client::{Principal, ReplyBody, TokenState, TokenView, UserView};
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::ids::Name;
use podmesh_protocol::limits::{
    DURATION_MS_MAX, KEYS_MAX, PAGE_ROWS_MAX, TOKEN_USES_MAX, TOKENS_MAX,
};
use podmesh_protocol::time::{Millis, Now};

use crate::Core;
use crate::step::{Change, Effect, KeyRow, Step, TokenRow};
use crate::timers::Timer;

/// Milliseconds between two events about refusals for the same reason.
const REFUSALS_EVERY_MS: Millis = 1_000;
/// Reasons that are counted apart at a time: strangers must not fill the events.
const REASONS_MAX: usize = 16;
/// What to do about a token that is of no use.
const NEW_TOKEN: &str = "ask for a new one (`podmesh token create` on the manager's machine)";

/// Tokens, keys and refusals.
#[derive(Debug, Default)]
pub(crate) struct Access {
    pub(crate) tokens: BTreeMap<TokenId, TokenRow>,
    /// Revoked ones, too: they never come back.
    pub(crate) keys: BTreeMap<PublicKey, KeyRow>,
    /// The keys that are not revoked, by what they stand for.
    live: BTreeMap<(Principal, Name), PublicKey>,
    refusals: Vec<Refusals>,
    /// When the first of `refusals` is due, as it stands in the timers.
    due_ms: Option<Millis>,
}

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    Joins,
    Connections,
}

/// What was refused for one reason.
#[derive(Debug)]
struct Refusals {
    refused: Refused,
    why: String,
    /// How many since that was last said.
    count: u32,
    /// When it may be said again.
    due_ms: Millis,
}

impl Refused {
    fn event(self, why: String, count: u32) -> EventFact {
        match self {
            Self::Joins => EventFact::JoinsRefused(why, count),
            Self::Connections => EventFact::ConnectionsRefused(why, count),
        }
    }
}

impl TokenRow {
    fn state(&self, now: Now) -> TokenState {
        if self.revoked {
            TokenState::Revoked
        } else if self.uses_left == 0 {
            TokenState::Used
        } else if now.wall_ms >= self.expires_wall_ms {
            TokenState::Expired
        } else {
            TokenState::Usable
        }
    }
}

impl Access {
    pub(crate) fn new(tokens: Vec<TokenRow>, keys: Vec<KeyRow>) -> Self {
        let mut access = Self::default();
        access.tokens.extend(tokens.into_iter().map(|token| (token.id, token)));
        keys.into_iter().for_each(|key| access.insert_key(key));
        access
    }

    fn insert_key(&mut self, key: KeyRow) {
        if !key.revoked {
            self.live.insert((key.role.into(), key.name.clone()), key.key);
        }
        self.keys.insert(key.key, key);
    }

    /// Whether a key that is not revoked is enrolled for the node.
    pub(crate) fn is_enrolled(&self, node: &Name) -> bool {
        self.live.contains_key(&(Principal::Node, node.clone()))
    }

    /// Whether whoever says hello may be this node.
    pub(crate) fn admit(&self, caller: &Caller, node: &Name) -> Result<(), ErrorReply> {
        // What was read before a revocation may come after it.
        if caller.key.is_some_and(|key| self.keys.get(&key).is_none_or(|key| key.revoked)) {
            return Err(revoked_key().into());
        }
        if caller.role == Role::Agent {
            if caller.name == *node {
                return Ok(());
            }
            let message = format!(
                "hello: this agent joined as node `{}` and says that it is `{node}`: start it with the name that it joined with, or let it join again with a fresh data directory",
                caller.name
            );
            return Err(ErrorReply::new(ErrorCode::Forbidden, message));
        }
        if self.is_enrolled(node) {
            let message = format!(
                "the name `{node}` belongs to a node that joined with a token: choose another name for this one (--name), or shut that one out first (`podmesh nodes revoke {node}`)"
            );
            return Err(ErrorReply::new(ErrorCode::NameTaken, message));
        }
        Ok(())
    }

    /// Who somebody is already, where this very token has let their key in before: they may have
    /// missed the answer. Else the token, which lets them in.
    ///
    /// The hashes are compared without care for the time that it takes: what is compared is the
    /// SHA-256 of a random secret of 128 bits, and knowing how its hash begins brings nobody
    /// closer to it.
    fn check(&self, now: Now, joiner: &Joiner) -> Result<Result<(Role, Name), &TokenRow>, No> {
        let Joiner { key, token, secret_hash, .. } = joiner;
        let refuse =
            |why| Err(No { code: ErrorCode::InvalidToken, why, hint: NEW_TOKEN.to_owned() });
        let Some(token) = self.tokens.get(token) else {
            return refuse("the manager knows no such join token".into());
        };
        let id = token.id;
        if token.secret_hash != *secret_hash {
            return refuse(format!("the secret of join token {id} is wrong"));
        }
        if let Some(known) = self.keys.get(key) {
            if known.revoked {
                return Err(revoked_key());
            }
            if known.token == id {
                return Ok(Ok((known.role, known.name.clone())));
            }
        }
        match token.state(now) {
            TokenState::Usable => Ok(Err(token)),
            TokenState::Used => refuse(format!("join token {id} has been used already")),
            TokenState::Expired => refuse(format!("join token {id} has expired")),
            TokenState::Revoked => refuse(format!("join token {id} was revoked")),
        }
    }

    /// Lets somebody in, and counts it: what they are now.
    fn join(&mut self, now: Now, joiner: Joiner, out: &mut Step) -> Result<(Role, Name), No> {
        let mut token = match self.check(now, &joiner)? {
            Ok(known) => return Ok(known),
            Err(token) => token.clone(),
        };
        let Joiner { key, name, .. } = joiner;
        let (role, name) = match self.keys.get(&key) {
            Some(known) => (known.role, known.name.clone()),
            None => {
                let principal = Principal::from(token.role);
                if self.live.contains_key(&(principal, name.clone())) {
                    return Err(No {
                        code: ErrorCode::NameTaken,
                        why: format!("another {principal} has joined as `{name}`"),
                        hint: format!(
                            "choose another name (--name), or shut that one out first (`podmesh {principal}s revoke {name}`)"
                        ),
                    });
                }
                if self.keys.len() >= KEYS_MAX {
                    return Err(No {
                        code: ErrorCode::Overloaded,
                        why: format!(
                            "the manager knows {KEYS_MAX} keys, which is the limit (KEYS_MAX)"
                        ),
                        hint: "use a data directory that has joined before".into(),
                    });
                }
                let row = KeyRow {
                    key,
                    role: token.role,
                    name: name.clone(),
                    token: token.id,
                    enrolled_wall_ms: now.wall_ms,
                    revoked: false,
                };
                self.insert_key(row.clone());
                out.changes.push(Change::KeySaved(row));
                out.effects.push(Effect::KeyEnrolled { key, role: token.role, name: name.clone() });
                (token.role, name)
            }
        };
        token.uses_left -= 1;
        out.events.push(EventFact::Enrolled(role, name.clone(), token.id));
        self.save_token(token, out);
        Ok((role, name))
    }

    fn save_token(&mut self, token: TokenRow, out: &mut Step) {
        out.changes.push(Change::TokenSaved(token.clone()));
        self.tokens.insert(token.id, token);
    }

    pub(crate) fn create_token(
        &mut self,
        now: Now,
        by: Name,
        secret_hash: [u8; 32],
        grant: Grant,
        out: &mut Step,
    ) -> Result<(TokenId, u64), ErrorReply> {
        let Grant { role, ttl_ms, uses } = grant;
        let refuse = |code, message: String| Err(ErrorReply::new(code, message));
        if ttl_ms == 0 || ttl_ms > DURATION_MS_MAX {
            let message = format!(
                "ttl_ms: {ttl_ms} is not in 1 to {DURATION_MS_MAX} milliseconds (DURATION_MS_MAX)"
            );
            return refuse(ErrorCode::BadMessage, message);
        }
        if uses == 0 || uses > TOKEN_USES_MAX {
            let message = format!("uses: {uses} is not in 1 to {TOKEN_USES_MAX} (TOKEN_USES_MAX)");
            return refuse(ErrorCode::BadMessage, message);
        }
        if self.tokens.len() >= TOKENS_MAX {
            let old = self.tokens.values().find(|token| token.state(now) != TokenState::Usable);
            let Some(old) = old.map(|token| token.id) else {
                let message = format!(
                    "{TOKENS_MAX} join tokens can be used, which is the limit (TOKENS_MAX): revoke some (`podmesh token list`, `podmesh token revoke`)"
                );
                return refuse(ErrorCode::Overloaded, message);
            };
            self.tokens.remove(&old);
            out.changes.push(Change::TokenRemoved(old));
        }
        // The newest token is never removed, so that no number is given twice.
        let id = TokenId(self.last_token().0 + 1);
        let expires_wall_ms = now.wall_ms.saturating_add(ttl_ms);
        out.events.push(EventFact::TokenCreated(id, role, by.clone()));
        let created_by = by;
        let revoked = false;
        let uses_left = uses;
        let token =
            TokenRow { id, secret_hash, role, expires_wall_ms, uses_left, created_by, revoked };
        self.save_token(token, out);
        Ok((id, expires_wall_ms))
    }

    fn last_token(&self) -> TokenId {
        self.tokens.last_key_value().map_or(TokenId(0), |(id, _)| *id)
    }

    pub(crate) fn revoke_token(
        &mut self,
        by: Name,
        id: TokenId,
        out: &mut Step,
    ) -> Result<ReplyBody, ErrorReply> {
        let Some(token) = self.tokens.get(&id) else {
            let message = format!("there is no join token {id}: see `podmesh token list`");
            return Err(ErrorReply::new(ErrorCode::NotFound, message));
        };
        if !token.revoked {
            let token = TokenRow { revoked: true, ..token.clone() };
            out.events.push(EventFact::TokenRevoked(id, by));
            self.save_token(token, out);
        }
        Ok(ReplyBody::TokenRevoked)
    }

    /// Shuts out the key that has the name. False where it was shut out before.
    fn revoke_key(
        &mut self,
        by: Name,
        kind: Principal,
        name: &Name,
        out: &mut Step,
    ) -> Result<bool, ErrorReply> {
        let live = self.live.remove(&(kind, name.clone()));
        let Some(row) = live.and_then(|key| self.keys.get_mut(&key)) else {
            let before = |row: &KeyRow| Principal::from(row.role) == kind && row.name == *name;
            if self.keys.values().any(before) {
                return Ok(false);
            }
            let what = match kind {
                Principal::Node => {
                    "an agent on the manager's machine has none, and is shut out by stopping it"
                }
                Principal::User => "`podmesh users` lists those that have one",
            };
            let message = format!("no key is enrolled for {kind} `{name}`: {what}");
            return Err(ErrorReply::new(ErrorCode::NotFound, message));
        };
        row.revoked = true;
        out.changes.push(Change::KeySaved(row.clone()));
        out.events.push(EventFact::KeyRevoked(row.role, row.name.clone(), by));
        out.effects.push(Effect::KeyRevoked { key: row.key });
        Ok(true)
    }

    /// The tokens before one, newest first.
    pub(crate) fn tokens_page(
        &self,
        now: Now,
        before: Option<TokenId>,
        limit: u32,
    ) -> Vec<TokenView> {
        let end = before.map_or(Bound::Unbounded, Bound::Excluded);
        let view = |token: &TokenRow| TokenView {
            id: token.id,
            role: token.role,
            state: token.state(now),
            expires_wall_ms: token.expires_wall_ms,
            uses_left: token.uses_left,
            created_by: token.created_by.clone(),
        };
        let rows = self.tokens.range((Bound::Unbounded, end)).rev();
        rows.map(|(_, token)| view(token)).take(limit.min(PAGE_ROWS_MAX) as usize).collect()
    }

    /// The users after a name: those that were not revoked.
    pub(crate) fn users_page(&self, after: Option<&Name>, limit: u32) -> Vec<UserView> {
        let view = |key: &KeyRow| UserView {
            name: key.name.clone(),
            role: key.role,
            key: key.key,
            token: key.token,
            enrolled_wall_ms: key.enrolled_wall_ms,
        };
        self.live
            .iter()
            .filter(|((kind, name), _)| {
                *kind == Principal::User && after.is_none_or(|after| name > after)
            })
            .filter_map(|(_, key)| self.keys.get(key).map(view))
            .take(limit.min(PAGE_ROWS_MAX) as usize)
            .collect()
    }

    #[cfg(any(test, feature = "invariants"))]
    pub(crate) fn check_invariants(&self) -> Option<(Millis, Timer)> {
        assert!(self.tokens.len() <= TOKENS_MAX && self.keys.len() <= KEYS_MAX);
        assert!(self.refusals.len() <= REASONS_MAX + 2, "{:?}", self.refusals);
        assert_eq!(self.due_ms, self.refusals.iter().map(|refusals| refusals.due_ms).min());
        let live = self.keys.values().filter(|key| !key.revoked);
        assert_eq!(
            self.live,
            live.clone().map(|row| ((row.role.into(), row.name.clone()), row.key)).collect(),
            "the names of live keys"
        );
        assert_eq!(self.live.len(), live.count(), "no two live keys have one name");
        self.due_ms.map(|at| (at, Timer::Refusals))
    }
}

/// What a token gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    pub(crate) role: Role,
    pub(crate) ttl_ms: u64,
    pub(crate) uses: u32,
}

/// Somebody who wants to join.
#[derive(Debug)]
pub(crate) struct Joiner {
    pub(crate) key: PublicKey,
    pub(crate) name: Name,
    pub(crate) token: TokenId,
    pub(crate) secret_hash: [u8; 32],
}

/// Why somebody is not let in.
struct No {
    code: ErrorCode,
    why: String,
    /// What to do.
    hint: String,
}

impl From<No> for ErrorReply {
    fn from(no: No) -> Self {
        Self::new(no.code, format!("{}: {}", no.why, no.hint))
    }
}

fn revoked_key() -> No {
    No {
        code: ErrorCode::NotEnrolled,
        why: "this key was revoked and never counts again".into(),
        hint: format!(
            "to come back, make a new key with a fresh data directory (--data-dir), and for a join token {NEW_TOKEN}"
        ),
    }
}

impl Core {
    pub(crate) fn on_join_requested(
        &mut self,
        now: Now,
        question: u64,
        joiner: Joiner,
        out: &mut Step,
    ) {
        let key = joiner.key;
        let result = self.access.join(now, joiner, out).map_err(|no| {
            tracing::info!(%key, why = %no.why, "somebody may not join");
            self.refused(now, Refused::Joins, no.why.clone(), 1, out);
            no.into()
        });
        out.effects.push(Effect::JoinAnswered { question, result });
    }

    pub(crate) fn revoke(
        &mut self,
        now: Now,
        by: Name,
        kind: Principal,
        name: &Name,
        out: &mut Step,
    ) -> Result<ReplyBody, ErrorReply> {
        if self.access.revoke_key(by, kind, name, out)? && kind == Principal::Node {
            self.shut_out(now, name, out);
        }
        Ok(ReplyBody::Revoked)
    }

    pub(crate) fn on_connections_refused(
        &mut self,
        now: Now,
        why: String,
        count: u32,
        out: &mut Step,
    ) {
        self.refused(now, Refused::Connections, why, count, out);
    }

    /// Counts refusals; the first ones for a reason are said at once.
    fn refused(&mut self, now: Now, refused: Refused, why: String, count: u32, out: &mut Step) {
        let list = &mut self.access.refusals;
        let position = |list: &[Refusals], why: &str| {
            list.iter().position(|known| known.refused == refused && known.why == why)
        };
        let why = match position(list, &why) {
            None if list.len() >= REASONS_MAX => "other reasons".to_owned(),
            _ => why,
        };
        if let Some(known) = position(list, &why).and_then(|at| list.get_mut(at)) {
            known.count = known.count.saturating_add(count);
            return;
        }
        out.events.push(refused.event(why.clone(), count));
        let due_ms = now.mono_ms.saturating_add(REFUSALS_EVERY_MS);
        list.push(Refusals { refused, why, count: 0, due_ms });
        self.set_refusals_due();
    }

    /// Says what was refused since the last time, and forgets the reasons without.
    pub(crate) fn on_refusals_due(&mut self, now: Now, out: &mut Step) {
        let mut list = std::mem::take(&mut self.access.refusals);
        list.retain_mut(|refusals| {
            if refusals.due_ms > now.mono_ms {
                return true;
            }
            if refusals.count == 0 {
                return false;
            }
            if self.has_room(out) {
                let count = std::mem::take(&mut refusals.count);
                out.events.push(refusals.refused.event(refusals.why.clone(), count));
                refusals.due_ms = now.mono_ms.saturating_add(REFUSALS_EVERY_MS);
            }
            true // without room it stays due
        });
        self.access.refusals = list;
        self.set_refusals_due();
    }

    fn set_refusals_due(&mut self) {
        let due_ms = self.access.refusals.iter().map(|refusals| refusals.due_ms).min();
        self.timers.replace(self.access.due_ms, due_ms, Timer::Refusals);
        self.access.due_ms = due_ms;
    }
}
