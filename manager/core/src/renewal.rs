//! Replacing keys, so that the owner always has a valid one.
//!
//! The owner asks with the old key to add the new one, and both are valid. The first use of the new
//! key proves that its owner has stored it, and revokes the old one. If the owner is killed between
//! two of these steps, it still has a valid key.

use alloc::format;
use alloc::string::String;
use podmesh_protocol::access::PublicKey;
use podmesh_protocol::error::{ErrorCode, ErrorReply};
use podmesh_protocol::event::EventFact;
use podmesh_protocol::limits::KEYS_MAX;
use podmesh_protocol::time::Now;

use crate::Core;
use crate::state::{Change, KeyRow};
use crate::step::{Answer, Effect, Step};

impl KeyRow {
    /// Returns whether the name of the owner stands for this key: it is valid, and does not still
    /// wait for its first use to replace another one.
    pub(crate) fn has_name(&self) -> bool {
        !self.revoked && self.renews.is_none()
    }
}

impl Core {
    pub(crate) fn renew(
        &mut self,
        now: Now,
        old: PublicKey,
        new: PublicKey,
        out: &mut Step,
    ) -> Result<Answer, ErrorReply> {
        let refuse = |code, message: String| Err(ErrorReply::new(code, message));
        let keys = &self.state.keys;
        let Some(row) = keys.get(&old).filter(|row| row.has_name()) else {
            let message = "the key of this request is not valid, or has not replaced the previous one yet: connect with it once more";
            return refuse(ErrorCode::NotEnrolled, message.into());
        };
        match keys.get(&new) {
            // A repeated request: the answer may have been lost.
            Some(known) if known.renews == Some(old) && !known.revoked => {
                return Ok(Answer::KeyRenewed);
            }
            Some(_) => {
                let message = "this manager already knows the new key, and a key can be added only once: create another one";
                return refuse(ErrorCode::InvalidSpec, message.into());
            }
            None if keys.len() >= KEYS_MAX => {
                let message =
                    format!("the manager has {KEYS_MAX} keys, which is the limit (KEYS_MAX)");
                return refuse(ErrorCode::Overloaded, message);
            }
            None => {}
        }
        let row = KeyRow {
            key: new,
            enrolled_wall_ms: now.wall_ms,
            renews: Some(old),
            revoked: false,
            ..row.clone()
        };
        self.end_renewal_of(old, out);
        let (role, name) = (row.role, row.name.clone());
        self.state.record(out, Change::KeySaved(row));
        out.effects.push(Effect::KeyEnrolled { key: new, role, name, renews: true });
        Ok(Answer::KeyRenewed)
    }

    pub(crate) fn on_renewed_key_used(&mut self, key: PublicKey, out: &mut Step) {
        let Some(row) = self.state.keys.get(&key).filter(|row| !row.revoked) else { return };
        let Some(old) = row.renews else { return };
        let row = KeyRow { renews: None, ..row.clone() };
        out.events.push(EventFact::KeyRenewed { role: row.role.into(), name: row.name.clone() });
        self.access.give_name(&row);
        self.state.record(out, Change::KeySaved(row));
        self.end_key(old, out);
    }

    /// Revokes the key that was about to replace `old`, if there is one.
    pub(crate) fn end_renewal_of(&mut self, old: PublicKey, out: &mut Step) {
        let pending = |row: &&KeyRow| row.renews == Some(old) && !row.revoked;
        if let Some(key) = self.state.keys.values().find(pending).map(|row| row.key) {
            self.end_key(key, out);
        }
    }

    /// Revokes a key.
    pub(crate) fn end_key(&mut self, key: PublicKey, out: &mut Step) {
        if let Some(row) = self.state.keys.get(&key) {
            let row = KeyRow { revoked: true, ..row.clone() };
            self.state.record(out, Change::KeySaved(row));
        }
        out.effects.push(Effect::KeyRevoked { key });
    }
}
