//! The schema of the database, and the upgrade of older databases.

use std::path::Path;

use podmesh_protocol::ids::ClusterId;
use podmesh_wire::manager_keys::KEY_FILE;
use rusqlite::{Connection, OpenFlags};
use uuid::Uuid;

use super::codes::integer;
use super::log::log_of;
use super::seal::{self, FileError, FileState};
use super::{BUSY_TIMEOUT, StoreError, compact, open_for_reading};

/// `PRAGMA application_id` of our databases: `PMSH`.
const APPLICATION_ID: i32 = 0x504d_5348;

/// The schema's history: entry `n` brings a database from version `n` to `n + 1`. Entries are
/// never changed once released, only added.
const MIGRATIONS: &[&str] = &[
    VERSION_1, VERSION_2, VERSION_3, VERSION_4, VERSION_5, VERSION_6, VERSION_7, VERSION_8,
    VERSION_9,
];

/// The integer codes are defined in [`super::codes`]. SQLite stores comments in `CREATE TABLE`, and a
/// start compares them: these texts must not change either.
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

/// Join tokens and keys.
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

/// Keys that replace other keys.
const VERSION_3: &str = "ALTER TABLE keys ADD COLUMN renews BLOB";

/// The agent that a node's name belongs to (NULL: the next agent that gives an ID gets it); forgotten
/// nodes, whose rows stay for the history of their attempts; and the highest job number in use so
/// far, whether or not `jobs` still has the job.
const VERSION_4: &str = "
ALTER TABLE nodes ADD COLUMN agent_id BLOB;
ALTER TABLE nodes ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0;
INSERT INTO meta (key, value) VALUES ('last_job', 0);
";

/// Limits on how long and how many ended jobs are kept.
const VERSION_5: &str = "
ALTER TABLE jobs ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0; -- how many there have been
ALTER TABLE jobs ADD COLUMN ended_age_ms INTEGER; -- the time of the age clock when it ended
UPDATE jobs SET attempts = (SELECT count(*) FROM attempts WHERE attempts.job = jobs.job);
UPDATE jobs SET ended_age_ms = 0 WHERE state >= 3;
CREATE INDEX jobs_ended ON jobs (ended_age_ms) WHERE ended_age_ms IS NOT NULL;

ALTER TABLE nodes ADD COLUMN lost_age_ms INTEGER;  -- the time of the age clock when it was first found lost
ALTER TABLE nodes ADD COLUMN last_job INTEGER;     -- forgotten nodes: no later job has attempts on it
UPDATE nodes SET last_job = (SELECT coalesce(max(job), 0) FROM jobs) WHERE forgotten;
ALTER TABLE keys ADD COLUMN revoked_age_ms INTEGER; -- the time of the age clock when it was first found revoked

-- Removed jobs that still have rows in attempts.
CREATE TABLE removals (
    job INTEGER PRIMARY KEY
) STRICT;

INSERT INTO meta (key, value) VALUES
    ('age_ms', 0),
    ('age_wall_ms', 0),
    -- Attempts of ended jobs; a job without any counts as one.
    ('kept', (SELECT coalesce(sum(max(attempts, 1)), 0) FROM jobs WHERE state >= 3));
UPDATE meta SET value = max(value, (SELECT coalesce(max(job), 0) FROM jobs)) WHERE key = 'last_job';
";

/// Who submitted each job (NULL: an older version of podmesh accepted it).
const VERSION_6: &str = "
ALTER TABLE jobs ADD COLUMN submitted_by TEXT;
CREATE INDEX jobs_submitted_by ON jobs (submitted_by, job) WHERE submitted_by IS NOT NULL;
";

/// Services, and nodes that are taken out of placement.
const VERSION_7: &str = "
CREATE TABLE services (
    service TEXT PRIMARY KEY,
    saved   BLOB NOT NULL -- MessagePack
) STRICT, WITHOUT ROWID;

CREATE TABLE service_revisions (
    service    TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    spec       BLOB    NOT NULL, -- MessagePack, as on the wire
    applied_by TEXT    NOT NULL,
    applied_ms INTEGER NOT NULL,
    state      INTEGER NOT NULL,
    message    TEXT,
    PRIMARY KEY (service, revision)
) STRICT, WITHOUT ROWID;

-- What is known of the last attempt of a job that is a replica.
CREATE TABLE replicas (
    job    INTEGER PRIMARY KEY,
    number INTEGER NOT NULL, -- of the attempt
    status BLOB    NOT NULL  -- MessagePack
) STRICT;

ALTER TABLE jobs ADD COLUMN service TEXT; -- NULL: not a replica
ALTER TABLE jobs ADD COLUMN replica INTEGER;
CREATE INDEX jobs_of_services ON jobs (service, job) WHERE service IS NOT NULL;

ALTER TABLE nodes ADD COLUMN scheduling INTEGER NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN address TEXT;
";

/// Named volumes, and API tokens.
const VERSION_8: &str = "
CREATE TABLE volumes (
    volume     TEXT    PRIMARY KEY,
    node       TEXT    NOT NULL,
    created_ms INTEGER NOT NULL,
    removed_by TEXT -- who asked to remove it
) STRICT, WITHOUT ROWID;

ALTER TABLE tokens ADD COLUMN api INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tokens ADD COLUMN used_ms INTEGER; -- when an API token was last used
";

/// Tasks that run again, jobs whose rest is cancelled by one of their rules, schedules, and jobs that
/// wait for others.
const VERSION_9: &str = "
ALTER TABLE jobs ADD COLUMN closed INTEGER; -- why the rest of it was cancelled; NULL: it was not
ALTER TABLE jobs ADD COLUMN rest_cancelled INTEGER NOT NULL DEFAULT 0; -- the tasks from next_index on
ALTER TABLE jobs ADD COLUMN waits_since_ms INTEGER; -- these tasks; NULL: since it was submitted
UPDATE jobs SET closed = 0, rest_cancelled = 1 WHERE state IN (2, 5);
ALTER TABLE attempts ADD COLUMN requeued INTEGER NOT NULL DEFAULT 0; -- its task was, after it had ended
-- When its task failed with it; NULL: it did not, or was requeued. The end of an attempt that succeeds
-- does not set it, and so costs no look at the index.
ALTER TABLE attempts ADD COLUMN failed_ms INTEGER;
CREATE INDEX attempts_failed ON attempts (failed_ms) WHERE failed_ms IS NOT NULL;
UPDATE attempts SET failed_ms = ended_ms
    WHERE standing = 2 AND outcome IN (1, 3, 4, 5) AND NOT EXISTS (SELECT 1 FROM attempts AS later
        WHERE later.job = attempts.job AND later.task = attempts.task
            AND later.number = attempts.number + 1);

ALTER TABLE nodes ADD COLUMN drain BLOB; -- MessagePack; NULL: it is not drained
ALTER TABLE nodes ADD COLUMN maintenance BLOB; -- MessagePack; NULL: none is planned
ALTER TABLE nodes ADD COLUMN admin_labels BLOB; -- as labels; NULL: none
ALTER TABLE nodes ADD COLUMN resources BLOB; -- MessagePack, as on the wire; NULL: none
ALTER TABLE attempts ADD COLUMN claims BLOB; -- MessagePack: what it has of these; NULL: nothing
ALTER TABLE attempts ADD COLUMN stop INTEGER; -- it is to end although its job goes on; NULL: it is not

CREATE TABLE schedules (
    schedule  TEXT    PRIMARY KEY,
    saved_by  TEXT    NOT NULL,
    anchor_ms INTEGER NOT NULL,
    progress  BLOB    NOT NULL -- MessagePack
) STRICT, WITHOUT ROWID;

-- Apart from schedules: each run would write a large spec again.
CREATE TABLE schedule_specs (
    schedule TEXT PRIMARY KEY,
    spec     BLOB NOT NULL -- MessagePack, as on the wire
) STRICT;

CREATE TABLE schedule_runs (
    schedule   TEXT    NOT NULL,
    number     INTEGER NOT NULL,
    instant_ms INTEGER NOT NULL, -- the last one, if the row stands for several
    by_hand    INTEGER NOT NULL, -- somebody asked for the run
    wall_ms    INTEGER NOT NULL,
    result     INTEGER NOT NULL,
    job        INTEGER,
    count      INTEGER NOT NULL,
    message    TEXT,
    PRIMARY KEY (schedule, number)
) STRICT, WITHOUT ROWID;
-- An instant is decided on once.
CREATE UNIQUE INDEX schedule_instants ON schedule_runs (schedule, instant_ms) WHERE NOT by_hand;

CREATE TABLE queues (
    queue    TEXT PRIMARY KEY,
    settings BLOB NOT NULL -- MessagePack
) STRICT, WITHOUT ROWID;

CREATE TABLE job_dependencies (
    job       INTEGER NOT NULL,
    upstream  INTEGER NOT NULL, -- the job that it waits for
    condition INTEGER NOT NULL,
    progress  INTEGER NOT NULL, -- 0: waiting, 1: met; others: the state in which that job has ended
    PRIMARY KEY (job, upstream)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_dependents ON job_dependencies (upstream);

CREATE TABLE workflows (
    workflow INTEGER PRIMARY KEY, -- the number of its first job; those of the others follow
    name     TEXT    NOT NULL,
    jobs     INTEGER NOT NULL
) STRICT;
";

/// A database up to this size is checked completely at every start without a seal, which takes at
/// most a quarter of a second. A database of 143 MiB, with three million tasks, would take 1.2 s.
const QUICK_CHECK_BYTES_MAX: u64 = 32 << 20;
/// The tables that a start reads completely.
const START_TABLES: [&str; 11] = [
    "meta",
    "nodes",
    "jobs",
    "tokens",
    "keys",
    "services",
    "replicas",
    "volumes",
    "schedules",
    "schedule_specs",
    "queues",
];

/// What kind of file was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    /// There is no database yet.
    Nothing,
    /// A database of podmesh.
    Ours {
        /// The version of its schema.
        version: usize,
        /// Whether it has the exact bytes that an orderly stop left.
        sealed: bool,
    },
}

/// Checks the file without changing it, while nobody has it open. A start finds this damage:
///
/// * After an orderly stop the file has a seal: every changed byte is found.
/// * After a kill there is no seal. A start finds damage in the log in front of commits, missing
///   pages, and missing or changed tables. In a small database it finds every malformed page. In a
///   large one it finds malformed pages of the tables that a start reads completely, and
///   contradictions in what has not ended. Checking the rest of a large database would take too
///   long: `podmesh check` finds damage there, or a read of it, which ends the manager.
/// * A value that changed to another possible value without a seal is found by `podmesh check`, if
///   other values contradict it (counts, numbers, revisions).
pub(super) fn look(path: &Path) -> Result<FileKind, StoreError> {
    let damaged = |why: String| Err(StoreError::Damaged { path: path.into(), why });
    let file = |source| StoreError::File { path: path.into(), source };
    // The key is created after the database. If it exists, there was a database.
    let used = path.with_file_name(KEY_FILE).exists();
    let length = match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let log = log_of(path);
            if seal::length_of(&log).map_err(file)? > 0 {
                return damaged(format!("it is missing, but its log {} exists", log.display()));
            }
            return Ok(FileKind::Nothing);
        }
        Err(source) => return Err(file(source)),
        Ok(found) => found.len(),
    };
    if length == 0 && !used {
        // A process was killed before it wrote the first page.
        return Ok(FileKind::Nothing);
    }
    let sealed = match seal::look(path) {
        Ok(bytes) => bytes == FileState::Sealed,
        Err(FileError::Io(source)) => return Err(file(source)),
        Err(FileError::Damaged(why)) => return damaged(why),
    };
    let connection = open_for_reading(path).map_err(|e| StoreError::sqlite(path, "opened", e))?;
    let Some(version) = identify(&connection, path)? else {
        return if used { damaged("it has no tables".into()) } else { Ok(FileKind::Nothing) };
    };
    let whole = !sealed && length <= QUICK_CHECK_BYTES_MAX;
    match check(&connection, whole).map_err(|e| StoreError::sqlite(path, "checked", e))? {
        Some(why) => damaged(why),
        None => Ok(FileKind::Ours { version, sealed }),
    }
}

/// Returns the version of the schema, after checking that it is complete; `None` if there are no
/// tables.
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
            let why = "the version of its schema is missing".into();
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

/// Returns the name of a table or index of this schema that the database does not have, or not with
/// the same definition.
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

/// Returns what is wrong with the pages. `whole` selects a complete check.
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
    // A job that is missing in the index would be forgotten.
    let unfinished = |how: &str| -> rusqlite::Result<i64> {
        let count = format!("SELECT count(*) FROM jobs {how} WHERE state < 3");
        connection.query_row(&count, [], |row| row.get(0))
    };
    let same = unfinished("NOT INDEXED")? == unfinished("INDEXED BY jobs_going_on")?;
    Ok((!same).then(|| "its index `jobs_going_on` does not have all jobs".into()))
}

/// The schema version of this program.
pub(super) const VERSION: usize = MIGRATIONS.len();

/// Opens the database for writing. Creates or upgrades it if necessary. Also returns whether it was
/// created.
pub(super) fn open(path: &Path) -> Result<(Connection, bool), StoreError> {
    let found = look(path)?;
    if matches!(found, FileKind::Ours { sealed: true, .. }) {
        seal::remove(path).map_err(|source| StoreError::File { path: path.into(), source })?;
    }
    let mut connection = connect(path)?;
    let version = match found {
        FileKind::Nothing => 0,
        FileKind::Ours { version, .. } => version,
    };
    migrate(&mut connection, version, MIGRATIONS)
        .map_err(|e| StoreError::sqlite(path, "brought to the schema of this program", e))?;
    let shrinks = compact::can_shrink(&connection);
    if !shrinks.map_err(|e| StoreError::sqlite(path, "opened", e))? {
        compact::compact(path, connection)?;
        connection = connect(path)?;
    }
    Ok((connection, version == 0))
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let sqlite = |e| StoreError::sqlite(path, "opened", e);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    // Another process may read or copy the file, such as the sqlite3 program.
    connection.busy_timeout(BUSY_TIMEOUT).map_err(sqlite)?;
    connection
        .execute_batch(
            // The first has an effect only on a new database, before anything else.
            "PRAGMA auto_vacuum = INCREMENTAL;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA cell_size_check = ON;
             PRAGMA cache_size = -1024;
             PRAGMA wal_autocheckpoint = 4096;
             PRAGMA journal_size_limit = 67108864;",
        )
        .map_err(sqlite)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Runs the migrations after `version`, each in its own transaction. If the process is killed between
/// two of them, the next start continues.
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

/// Returns the cluster's ID, which is created with the database.
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
    fn an_older_database_is_upgraded_step_by_step() {
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
        assert_eq!(version(&connection), 2, "a failed migration leaves nothing behind");
        connection.prepare("SELECT size FROM jobs").unwrap_err();
    }

    /// Rows that a database of any version can have: a job that has ended, and one that has an
    /// active attempt and a task that waits for a retry.
    const ROWS: &str = "
        UPDATE meta SET value = 7 WHERE key = 'last_epoch';
        INSERT INTO nodes (node, name, boot_id, agent_instance, program_version, cpu_millis,
            memory_bytes, labels, runtimes, epoch)
        VALUES (1, 'a', 'boot', zeroblob(16), '0', 1, 0, x'80', x'90', 7);
        INSERT INTO jobs (job, submission, name, priority, first_index, last_index, submitted_ms,
            state, next_index, queued, active, succeeded, failed, cancelled, started_ms, ended_ms,
            changed)
        VALUES (1, x'00000000000000000000000000000001', 'count', 3, 1, 1, 5, 3, 2, 0, 0, 1, 0, 0, 6,
                7, 2),
            (2, x'00000000000000000000000000000002', 'count', 3, 1, 3, 5, 1, 3, 2, 1, 0, 0, 0, 6,
                NULL, 3);
        INSERT INTO attempts (job, task, number, node, state, standing, assigned_ms, started_ms,
            ended_ms, retry_ms, outcome, exit_code)
        VALUES (1, 1, 1, 1, 3, 2, 6, 6, 7, NULL, 0, 0), (2, 1, 1, 1, 2, 0, 6, 6, NULL, NULL, NULL, NULL),
            (2, 2, 1, 1, 3, 1, 6, 6, 7, 500, 1, 3);";
    /// Rows that later versions add, by the first version that can have them.
    const LATER_ROWS: [(usize, &str); 3] = [
        (
            2,
            "INSERT INTO tokens (token, secret_hash, role, expires_ms, uses_left, created_by, revoked)
             VALUES (4, zeroblob(32), 0, 9, 1, 'root', 0);
             UPDATE meta SET value = 4 WHERE key = 'last_token';
             INSERT INTO keys (key, role, name, token, enrolled_ms, revoked)
             VALUES (zeroblob(32), 0, 'a', 4, 5, 0);",
        ),
        (
            4,
            "UPDATE nodes SET agent_id = zeroblob(16);
             UPDATE meta SET value = 2 WHERE key = 'last_job';",
        ),
        (
            5,
            "UPDATE jobs SET attempts = job; UPDATE meta SET value = 1 WHERE key = 'kept';
             UPDATE jobs SET ended_age_ms = 0 WHERE job = 1",
        ),
    ];

    #[test]
    fn a_database_of_each_version_is_upgraded_with_all_its_rows() {
        for before in 1..VERSION {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("podmesh.db");
            let mut connection = Connection::open(&path).unwrap();
            migrate(&mut connection, 0, &MIGRATIONS[..before]).unwrap();
            connection.execute_batch(ROWS).unwrap();
            for (_, rows) in LATER_ROWS.iter().filter(|(since, _)| *since <= before) {
                connection.execute_batch(rows).unwrap();
            }
            let spec = super::super::tests::job_spec(3);
            for (job, spec) in [(1, &super::super::tests::job_spec(1)), (2, &spec)] {
                let spec = rmp_serde::to_vec_named(spec).unwrap();
                let insert = "INSERT INTO job_specs VALUES (?1, ?2)";
                connection.execute(insert, rusqlite::params![job, spec]).unwrap();
            }
            // `job_cancel_requested` of three jobs, as version 1 of the protocol wrote it.
            let fact = b"\x81\xb4job_cancel_requested\x02";
            let facts = [&[0x93], &fact[..], &fact[..], &fact[..]].concat();
            connection.execute("INSERT INTO events VALUES (3, 1, 5, ?1)", [facts]).unwrap();
            let cluster_before = cluster(&connection).unwrap();
            drop(connection);
            let said = super::super::check(dir.path()).unwrap_err().to_string();
            assert!(said.contains("older podmesh") && said.contains("start the manager"), "{said}");

            let store = super::super::open(dir.path()).unwrap();
            let state = &store.state;
            assert_eq!(state.cluster, cluster_before);
            let last = (state.last_job.0, state.last_epoch.0, state.last_revision.0);
            assert_eq!(last, (2, 7, 3), "version {before}");
            let (tokens, keys) = (state.tokens.len(), state.keys.len());
            assert_eq!((tokens, keys), if before < 2 { (0, 0) } else { (1, 1) });
            // Without an ID, the name belongs to the first agent that gives one.
            let ids: Vec<_> = state.nodes.values().map(|row| row.agent_id.is_some()).collect();
            assert_eq!(ids, [before >= 4]);
            assert_eq!(state.jobs.len(), 1);
            let job = &state.jobs[&podmesh_protocol::ids::JobId(2)];
            assert_eq!((job.attempts, &*job.spec, &job.by), (2, &spec, &None));
            assert_eq!((job.active.len(), job.retries[&2].after_ms), (1, 500));
            let listed = store.history.jobs(None, &Default::default(), 9).unwrap();
            let ended: Vec<_> = listed.iter().map(|job| job.ended_wall_ms).collect();
            assert_eq!(ended, [None, Some(7)]);
            let events = store.history.events(podmesh_protocol::ids::Revision(0)).unwrap();
            let podmesh_protocol::client::ReplyBody::Events { chunks, .. } = events else {
                unreachable!("not events")
            };
            let job = podmesh_protocol::ids::JobId(2);
            let fact = podmesh_protocol::event::EventFact::JobCancelRequested { job };
            assert_eq!(chunks[0].facts, vec![fact; 3]);
            drop(store);
            let found = super::super::check(dir.path()).unwrap();
            assert!(found.wrong.is_empty(), "version {before}: {:?}", found.wrong);
        }
    }

    #[test]
    fn an_older_database_is_rewritten_so_that_it_can_shrink() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("podmesh.db");
        let mut connection = Connection::open(&path).unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL").unwrap();
        migrate(&mut connection, 0, &MIGRATIONS[..4]).unwrap();
        let job = |job: u32, state: u32| {
            format!(
                "INSERT INTO jobs VALUES ({job}, x'0{job}', 'n', 0, 1, 9, 0, {state}, 10, 0, 0, 0,
                     0, 0, 0, NULL, 0);"
            )
        };
        let attempt = |job: u32, task: u32| {
            format!(
                "INSERT INTO attempts (job, task, number, node, state, standing, assigned_ms)
                 VALUES ({job}, {task}, 1, 1, 3, 2, 0);"
            )
        };
        let rows = [job(1, 3), job(2, 1), job(3, 5), attempt(1, 1), attempt(1, 2), attempt(2, 1)];
        connection.execute_batch(&rows.concat()).unwrap();
        connection
            .execute_batch(
                "INSERT INTO nodes VALUES (1, 'a', 'boot', zeroblob(16), '0', 1, 0, x'80', x'90', 7,
                     NULL, 1)",
            )
            .unwrap();
        // Left by a start that was killed.
        std::fs::write(path.with_extension("db.new"), "half").unwrap();
        let cluster_before = cluster(&connection).unwrap();

        // If the database is being read, a later start rewrites it.
        let reader = Connection::open(&path).unwrap();
        reader.execute_batch("BEGIN; SELECT * FROM jobs").unwrap();
        drop(connection);
        assert!(!compact::can_shrink(&open(&path).unwrap().0).unwrap());
        drop(reader);
        let (connection, is_new) = open(&path).unwrap();
        assert!(!is_new);
        assert!(compact::can_shrink(&connection).unwrap());
        assert_eq!(version(&connection), MIGRATIONS.len() as i64);
        assert_eq!(cluster(&connection).unwrap(), cluster_before);
        let jobs: Vec<(i64, i64, Option<i64>)> = connection
            .prepare("SELECT job, attempts, ended_age_ms FROM jobs ORDER BY job")
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(jobs, [(1, 2, Some(0)), (2, 1, None), (3, 0, Some(0))]);
        let kept = "SELECT value FROM meta WHERE key = 'kept'";
        let kept: i64 = connection.query_row(kept, [], |row| row.get(0)).unwrap();
        assert_eq!(kept, 3, "two attempts, and a job without attempts");
        let last_job = "SELECT last_job FROM nodes WHERE forgotten";
        assert_eq!(connection.query_row(last_job, [], |row| row.get::<_, i64>(0)).unwrap(), 3);
        assert!(!path.with_extension("db.new").exists());
        assert_eq!(
            look(&path).unwrap(),
            FileKind::Ours { version: MIGRATIONS.len(), sealed: false }
        );
    }

    #[test]
    fn a_newer_database_is_refused_and_left_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("podmesh.db");
        let (connection, _) = open(&path).unwrap();
        connection.pragma_update(None, "user_version", MIGRATIONS.len() as i64 + 1).unwrap();
        connection.close().unwrap();
        let before = std::fs::read(&path).unwrap();

        let said = open(&path).unwrap_err().to_string();
        assert!(said.contains("newer podmesh") && said.contains("podmesh.db"), "{said}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_file_that_is_not_a_database_of_podmesh_is_refused_and_left_untouched() {
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
        open(&path).unwrap().0.close().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4096..].fill(0xa5);
        std::fs::write(&path, bytes).unwrap();
        let said = open(&path).unwrap_err().to_string();
        assert!(said.contains("damaged") && said.contains("podmesh.db"), "{said}");
    }

    #[test]
    fn a_large_database_is_checked_in_the_tables_that_a_start_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("podmesh.db");
        open(&path).unwrap().0.close().unwrap();
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
            "INSERT INTO jobs VALUES (1, x'01', '', 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0,
                 NULL, NULL, NULL, NULL, NULL, 0, NULL)";
        index(0);
        // The row is in the table, but not in the index.
        Connection::open(&path).unwrap().execute_batch(insert).unwrap();
        index(3);
        assert!(change("SELECT 1").unwrap().contains("jobs_going_on"));
    }

    #[test]
    fn an_empty_file_becomes_a_new_database() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("podmesh.db");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(version(&open(&path).unwrap().0), MIGRATIONS.len() as i64);
    }
}
