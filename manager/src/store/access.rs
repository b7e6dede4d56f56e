//! Join tokens and keys in the database.

use podmesh_manager_core::state::{KeyRow, TokenRow};
use podmesh_protocol::access::{PublicKey, TokenId};
use rusqlite::{Connection, params};

use super::codes::{integer, role, role_code, unsigned};
use super::columns::name;

pub(super) fn save_token(connection: &Connection, row: &TokenRow) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO tokens
                 (token, secret_hash, role, expires_ms, uses_left, created_by, revoked, api, used_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            integer(row.id.0),
            row.secret_hash,
            role_code(row.role),
            integer(row.expires_wall_ms),
            row.uses_left,
            row.created_by.as_str(),
            row.revoked,
            row.api,
            row.used_wall_ms.map(integer),
        ])?;
    connection
        .prepare_cached("UPDATE meta SET value = max(value, ?1) WHERE key = 'last_token'")?
        .execute([integer(row.id.0)])?;
    Ok(())
}

pub(super) fn remove_token(connection: &Connection, id: TokenId) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM tokens WHERE token = ?1")?.execute([integer(id.0)])?;
    Ok(())
}

pub(super) fn save_key(connection: &Connection, row: &KeyRow) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO keys
                 (key, role, name, token, enrolled_ms, revoked, renews, revoked_age_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            row.key.0,
            role_code(row.role),
            row.name.as_str(),
            integer(row.token.0),
            integer(row.enrolled_wall_ms),
            row.revoked,
            row.renews.map(|key| key.0),
            row.revoked_age_ms.map(integer),
        ])?;
    Ok(())
}

pub(super) fn remove_key(connection: &Connection, key: &PublicKey) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM keys WHERE key = ?1")?.execute([key.0])?;
    Ok(())
}

pub(super) fn tokens(connection: &Connection) -> rusqlite::Result<Vec<TokenRow>> {
    connection
        .prepare(
            "SELECT token, secret_hash, role, expires_ms, uses_left, created_by, revoked, api,
                 used_ms
             FROM tokens ORDER BY token",
        )?
        .query_map([], |row| {
            Ok(TokenRow {
                id: TokenId(unsigned(row.get(0)?)),
                secret_hash: row.get(1)?,
                role: role(row.get(2)?)?,
                expires_wall_ms: unsigned(row.get(3)?),
                uses_left: row.get(4)?,
                created_by: name(row, 5)?,
                revoked: row.get(6)?,
                api: row.get(7)?,
                used_wall_ms: row.get::<_, Option<i64>>(8)?.map(unsigned),
            })
        })?
        .collect()
}

pub(super) fn keys(connection: &Connection) -> rusqlite::Result<Vec<KeyRow>> {
    connection
        .prepare(
            "SELECT key, role, name, token, enrolled_ms, revoked, renews, revoked_age_ms
             FROM keys ORDER BY key",
        )?
        .query_map([], |row| {
            Ok(KeyRow {
                key: PublicKey(row.get(0)?),
                role: role(row.get(1)?)?,
                name: name(row, 2)?,
                token: TokenId(unsigned(row.get(3)?)),
                enrolled_wall_ms: unsigned(row.get(4)?),
                revoked: row.get(5)?,
                renews: row.get::<_, Option<[u8; 32]>>(6)?.map(PublicKey),
                revoked_age_ms: row.get::<_, Option<i64>>(7)?.map(unsigned),
            })
        })?
        .collect()
}
