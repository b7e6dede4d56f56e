//! The database's form: what it is created with, and how an older one comes forward.

use std::path::Path;

use podmesh_protocol::ids::ClusterId;
use podmesh_wire::manager_keys::KEY_FILE;
use rusqlite::{Connection, OpenFlags};
use uuid::Uuid;

use super::codes::integer;
use super::log::log_of;
use super::seal::{self, Bytes, Unfit};
use super::{BUSY_TIMEOUT, StoreError, open_for_reading};

/// `PMSH`: what `PRAGMA application_id` of our databases is.
const APPLICATION_ID: i32 = 0x504d_5348;

/// The schema's history: entry `n` brings a database from version `n` to `n + 1`. Entries are
/// never changed once released, only added.
const MIGRATIONS: &[&str] = &[VERSION_1, VERSION_2, VERSION_3];

/// Integer codes are those of [`super::codes`].
const VERSION_1: &str = "
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE jobs (
    job          INTEGER PRIMARY KEY,
    submission   BLOB    NOT NULL UNIQUE,
    name         TEXT    NOT NULL,
    priority     INTEGER NOT NULL,
    first_index  INTEGER NOT NULL,
    last_index   INTEGER NOT NULL,
    submitted_ms INTEGER NOT NULL,
    state        INTEGER NOT NULL,
    next_index   INTEGER NOT NULL, -- tasks from here on have had no attempt, and have no row
    queued       INTEGER NOT NULL,
    active       INTEGER NOT NULL,
    succeeded    INTEGER NOT NULL,
    failed       INTEGER NOT NULL,
    cancelled    INTEGER NOT NULL,
    started_ms   INTEGER,
    ended_ms     INTEGER,
    changed      INTEGER NOT NULL  -- the revision of its last change
) STRICT;
CREATE INDEX jobs_going_on ON jobs (job) WHERE state < 3;

-- Apart from jobs: an update of a job's row would write a large spec again.
CREATE TABLE job_specs (
    job  INTEGER PRIMARY KEY,
    spec BLOB NOT NULL -- MessagePack, as on the wire
) STRICT;

CREATE TABLE nodes (
    node            INTEGER PRIMARY KEY,
    name            TEXT    NOT NULL UNIQUE,
    boot_id         TEXT    NOT NULL,
    agent_instance  BLOB    NOT NULL,
    program_version TEXT    NOT NULL,
    cpu_millis      INTEGER NOT NULL,
    memory_bytes    INTEGER NOT NULL,
    labels          BLOB    NOT NULL, -- MessagePack, as on the wire
    runtimes        BLOB    NOT NULL, -- MessagePack, as on the wire
    epoch           INTEGER NOT NULL
) STRICT;

CREATE TABLE attempts (
    job         INTEGER NOT NULL,
    task        INTEGER NOT NULL,
    number      INTEGER NOT NULL,
    node        INTEGER NOT NULL,
    state       INTEGER NOT NULL,
    standing    INTEGER NOT NULL, -- what it means for its task
    assigned_ms INTEGER NOT NULL,
    started_ms  INTEGER,
    ended_ms    INTEGER,
    retry_ms    INTEGER,
    outcome     INTEGER,
    exit_code   INTEGER,
    signal      INTEGER,
    oom_killed  INTEGER NOT NULL DEFAULT 0,
    ran_ms      INTEGER NOT NULL DEFAULT 0,
    message     TEXT,
    PRIMARY KEY (job, task, number)
) STRICT, WITHOUT ROWID;
-- What a start must read, however much history there is.
CREATE INDEX attempts_going_on ON attempts (job) WHERE standing < 2;

CREATE TABLE events (
    last    INTEGER PRIMARY KEY, -- the revision of the last event of the row
    first   INTEGER NOT NULL,    -- and of its first
    wall_ms INTEGER NOT NULL,
    facts   BLOB    NOT NULL     -- MessagePack, as on the wire
) STRICT;
";

/// Who may come in.
const VERSION_2: &str = "
CREATE TABLE tokens (
    token       INTEGER PRIMARY KEY,
    secret_hash BLOB    NOT NULL, -- SHA-256
    role        INTEGER NOT NULL,
    expires_ms  INTEGER NOT NULL,
    uses_left   INTEGER NOT NULL,
    created_by  TEXT    NOT NULL,
    revoked     INTEGER NOT NULL
) STRICT;
INSERT INTO meta (key, value) VALUES ('last_token', 0);

CREATE TABLE keys (
    key         BLOB    PRIMARY KEY, -- Ed25519
    role        INTEGER NOT NULL,
    name        TEXT    NOT NULL,
    token       INTEGER NOT NULL,
    enrolled_ms INTEGER NOT NULL,
    revoked     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Keys that take the place of others.
const VERSION_3: &str = "ALTER TABLE keys ADD COLUMN renews BLOB";

/// A database up to this size is checked whole at every start that finds no seal: a quarter of a
/// second at the most. For one of 143 MiB, with three million tasks, it is 1.2 s.
const QUICK_CHECK_BYTES_MAX: u64 = 32 << 20;
/// The tables that a start reads whole.
const START_TABLES: [&str; 5] = ["meta", "nodes", "jobs", "tokens", "keys"];

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No database yet.
    Nothing,
    /// One of ours.
    Ours {
        /// Its schema.
        version: usize,
        /// Whether it is, byte for byte, what an orderly stop left.
        sealed: bool,
    },
}

/// Looks at the file without changing a byte of it, while nobody has it open. What is found at
/// a start, and what only by `podmesh check`:
///
/// * After an orderly stop the file has a seal: any byte that differs is found.
/// * After a kill there is none. Damage in the log in front of commits is found. Missing pages are
///   found, and missing or changed tables; in a small database every page that is not well-formed; in a large one those of the tables that
///   a start reads whole, and what contradicts itself in what goes on. The rest of a large
///   database would take longer than a start may: damage there shows when it is read, and ends
///   the manager then, or when `--check` looks for it.
/// * A value that became another possible one while the manager ran, or before it was killed,
///   is found where others contradict it (counts, numbers, revisions), by `--check`.
pub(super) fn look(path: &Path) -> Result<Found, StoreError> {
    let damaged = |why: String| Err(StoreError::Damaged { path: path.into(), why });
    let file = |source| StoreError::File { path: path.into(), source };
    // Made after the database, so that a database is known to have been there.
    let used = path.with_file_name(KEY_FILE).exists();
    let length = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let log = log_of(path);
            if seal::length_of(&log).map_err(file)? > 0 {
                return damaged(format!("it is gone, and its log {} is there", log.display()));
            }
            return Ok(Found::Nothing);
        }
        Err(source) => return Err(file(source)),
        Ok(found) => found.len(),
    };
    if length == 0 && !used {
        // Left by a process that was killed before it wrote the first page.
        return Ok(Found::Nothing);
    }
    let sealed = match seal::look(path) {
        Ok(bytes) => bytes == Bytes::Sealed,
        Err(Unfit::Io(source)) => return Err(file(source)),
        Err(Unfit::Damaged(why)) => return damaged(why),
    };
    let connection = open_for_reading(path).map_err(|e| StoreError::sqlite(path, "opened", e))?;
    let Some(version) = identify(&connection, path)? else {
        return if used { damaged("it holds no table".into()) } else { Ok(Found::Nothing) };
    };
    let whole = !sealed && length <= QUICK_CHECK_BYTES_MAX;
    match check(&connection, whole).map_err(|e| StoreError::sqlite(path, "checked", e))? {
        Some(why) => damaged(why),
        None => Ok(Found::Ours { version, sealed }),
    }
}

/// The schema's version, and that it is complete; none where there is no table at all.
pub(super) fn identify(connection: &Connection, path: &Path) -> Result<Option<usize>, StoreError> {
    let sqlite = |e| StoreError::sqlite(path, "opened", e);
    let number = |pragma: &str| -> Result<i64, StoreError> {
        connection.query_row(pragma, [], |row| row.get(0)).map_err(sqlite)
    };
    let application = number("PRAGMA application_id")?;
    let version = number("PRAGMA user_version")?;
    if application == 0 && version == 0 && number("SELECT count(*) FROM sqlite_schema")? == 0 {
        return Ok(None);
    }
    if application != i64::from(APPLICATION_ID) {
        return Err(StoreError::NotOurs { path: path.into() });
    }
    let version = match usize::try_from(version) {
        Ok(0) => {
            let why = "the number of its schema is gone".into();
            return Err(StoreError::Damaged { path: path.into(), why });
        }
        Ok(version) if version <= MIGRATIONS.len() => version,
        _ => {
            let known = MIGRATIONS.len();
            return Err(StoreError::Newer { path: path.into(), found: version, known });
        }
    };
    match missing(connection, version).map_err(sqlite)? {
        None => Ok(Some(version)),
        Some(name) => {
            let why = format!("its table or index `{name}` is missing or changed");
            Err(StoreError::Damaged { path: path.into(), why })
        }
    }
}

/// What a database of this schema should have and does not, as it should be.
fn missing(connection: &Connection, version: usize) -> rusqlite::Result<Option<String>> {
    let mut model = Connection::open_in_memory()?;
    migrate(&mut model, 0, &MIGRATIONS[..version])?;
    let entries = "SELECT name, type, tbl_name, sql FROM sqlite_schema";
    let read = |connection: &Connection| -> rusqlite::Result<Vec<[Option<String>; 4]>> {
        connection
            .prepare(entries)?
            .query_map([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?
            .collect()
    };
    let found = read(connection)?;
    let gone = read(&model)?.into_iter().find(|entry| !found.contains(entry));
    Ok(gone.map(|[name, ..]| name.unwrap_or_default()))
}

/// What is wrong with the pages, as far as a start may look.
fn check(connection: &Connection, whole: bool) -> rusqlite::Result<Option<String>> {
    let said = |pragma: &str| -> rusqlite::Result<Option<String>> {
        let said: String = connection.query_row(pragma, [], |row| row.get(0))?;
        Ok(Some(said).filter(|said| said != "ok"))
    };
    if whole {
        return said("PRAGMA integrity_check(1)");
    }
    for table in START_TABLES {
        let there = connection.prepare(&format!("SELECT 1 FROM {table}")).is_ok();
        // Not `integrity_check`: that takes ten seconds for a million jobs.
        if there && let Some(wrong) = said(&format!("PRAGMA quick_check('{table}')"))? {
            return Ok(Some(wrong));
        }
    }
    // What the index leaves out would be forgotten.
    let going_on = |how: &str| -> rusqlite::Result<i64> {
        let count = format!("SELECT count(*) FROM jobs {how} WHERE state < 3");
        connection.query_row(&count, [], |row| row.get(0))
    };
    let same = going_on("NOT INDEXED")? == going_on("INDEXED BY jobs_going_on")?;
    Ok((!same).then(|| "its index `jobs_going_on` leaves out jobs".into()))
}

/// Opens the database for writing; creates it, or brings it forward, where needed.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let found = look(path)?;
    if matches!(found, Found::Ours { sealed: true, .. }) {
        seal::remove(path).map_err(|source| StoreError::File { path: path.into(), source })?;
    }
    let sqlite = |e| StoreError::sqlite(path, "opened", e);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    // Somebody may look at the file with the sqlite3 program, or copy it.
    connection.busy_timeout(BUSY_TIMEOUT).map_err(sqlite)?;
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA cell_size_check = ON;
             PRAGMA cache_size = -8192;
             PRAGMA wal_autocheckpoint = 4096;
             PRAGMA journal_size_limit = 67108864;",
        )
        .map_err(sqlite)?;
    connection.set_prepared_statement_cache_capacity(32);
    let version = match found {
        Found::Nothing => 0,
        Found::Ours { version, .. } => version,
    };
    migrate(&mut connection, version, MIGRATIONS)
        .map_err(|e| StoreError::sqlite(path, "brought to the schema of this program", e))?;
    Ok(connection)
}

/// Runs the steps that `version` has not seen: each in a transaction of its own, so that a kill
/// between two of them leaves a database that the next start brings further.
fn migrate(
    connection: &mut Connection,
    version: usize,
    migrations: &[&str],
) -> rusqlite::Result<()> {
    for (before, sql) in migrations.iter().enumerate().skip(version) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(sql)?;
        if before == 0 {
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.execute(
                "INSERT INTO meta (key, value) VALUES ('cluster', ?1), ('last_epoch', 0)",
                [Uuid::new_v4().as_bytes()],
            )?;
        }
        transaction.pragma_update(None, "user_version", integer(before as u64 + 1))?;
        transaction.commit()?;
    }
    Ok(())
}

/// The cluster's identity, made with the database.
pub(super) fn cluster(connection: &Connection) -> rusqlite::Result<ClusterId> {
    connection.query_row("SELECT value FROM meta WHERE key = 'cluster'", [], |row| {
        Ok(ClusterId(Uuid::from_bytes(row.get(0)?)))
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn version(connection: &Connection) -> i64 {
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn an_older_database_comes_forward_step_by_step() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, 0, &[VERSION_1]).unwrap();
        let cluster_before = cluster(&connection).unwrap();
        let next = "ALTER TABLE jobs ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'";
        let broken = "ALTER TABLE jobs ADD COLUMN size INTEGER; SELECT nonsense FROM nowhere";
        migrate(&mut connection, 1, &[VERSION_1, next]).unwrap();
        assert_eq!(version(&connection), 2);
        assert_eq!(cluster(&connection).unwrap(), cluster_before);
        connection.prepare("SELECT colour FROM jobs").unwrap();

        migrate(&mut connection, 2, &[VERSION_1, next, broken]).unwrap_err();
        assert_eq!(version(&connection), 2, "a step that fails leaves nothing behind");
        connection.prepare("SELECT size FROM jobs").unwrap_err();
    }

    #[test]
    fn a_database_of_before_there_were_keys_keeps_its_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("podmesh.db");
        let mut connection = Connection::open(&path).unwrap();
        migrate(&mut connection, 0, &[VERSION_1]).unwrap();
        connection.execute_batch("UPDATE meta SET value = 7 WHERE key = 'last_epoch'").unwrap();
        let cluster_before = cluster(&connection).unwrap();
        drop(connection);
        let connection = open(&path).unwrap();
        assert_eq!(version(&connection), 3);
        assert_eq!(cluster(&connection).unwrap(), cluster_before);
        let (snapshot, _) = super::super::restore::snapshot(&connection).unwrap();
        assert_eq!(snapshot.last_epoch.0, 7);
        assert_eq!((snapshot.last_token, snapshot.keys.len()), (0, 0));
    }

    #[test]
    fn a_newer_database_is_refused_and_left_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("podmesh.db");
        let connection = open(&path).unwrap();
        connection.pragma_update(None, "user_version", MIGRATIONS.len() as i64 + 1).unwrap();
        connection.close().unwrap();
        let before = std::fs::read(&path).unwrap();

        let said = open(&path).unwrap_err().to_string();
        assert!(said.contains("newer podmesh") && said.contains("podmesh.db"), "{said}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn what_is_not_our_database_is_refused_and_left_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("text.db");
        std::fs::write(&text, "no database, a letter\n".repeat(1000)).unwrap();
        let said = open(&text).unwrap_err().to_string();
        assert!(said.contains("text.db") && said.contains("not a database"), "{said}");
        assert!(std::fs::read(&text).unwrap().starts_with(b"no database, a letter"));

        let other = dir.path().join("other.db");
        Connection::open(&other).unwrap().execute_batch("CREATE TABLE cats (name TEXT)").unwrap();
        let said = open(&other).unwrap_err().to_string();
        assert!(said.contains("other.db") && said.contains("another program"), "{said}");
    }

    #[test]
    fn a_damaged_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("podmesh.db");
        open(&path).unwrap().close().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4096..].fill(0xa5);
        std::fs::write(&path, bytes).unwrap();
        let said = open(&path).unwrap_err().to_string();
        assert!(said.contains("damaged") && said.contains("podmesh.db"), "{said}");
    }

    #[test]
    fn a_large_database_is_checked_where_a_start_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("podmesh.db");
        open(&path).unwrap().close().unwrap();
        let change = |sql: &str| {
            let connection = Connection::open(&path).unwrap();
            connection.execute_batch(sql).unwrap();
            check(&connection, false).unwrap()
        };
        let index = |state: u32| {
            let connection = Connection::open(&path).unwrap();
            connection
                .execute_batch(&format!(
                    "PRAGMA writable_schema = ON;
                 UPDATE sqlite_schema
                 SET sql = 'CREATE INDEX jobs_going_on ON jobs (job) WHERE state < {state}'
                 WHERE name = 'jobs_going_on'"
                ))
                .unwrap();
        };
        assert_eq!(change("SELECT 1"), None);
        let insert =
            "INSERT INTO jobs VALUES (1, x'01', '', 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0)";
        index(0);
        // In the table, and not in the index.
        Connection::open(&path).unwrap().execute_batch(insert).unwrap();
        index(3);
        assert!(change("SELECT 1").unwrap().contains("jobs_going_on"));
    }

    #[test]
    fn a_file_without_a_first_page_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("podmesh.db");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(version(&open(&path).unwrap()), MIGRATIONS.len() as i64);
    }
}
