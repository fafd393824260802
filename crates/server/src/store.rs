//! The one database of the server: keys, usage, audit. SQLite in WAL mode; what a function here has
//! returned from is on the disk, also after `kill -9` or a power cut (`synchronous=FULL`).
//!
//! Any number of processes may have it open: a running server sees the keys that `puna key` makes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior,
    params,
};
use rusqlite_migration::{M, Migrations};
use serde::Serialize;

use crate::audit::{self, Event};
use crate::error::Error;
use crate::keys::Key;
use crate::principal::{Quotas, Scope};

/// "PUNA": says whose file it is.
const APPLICATION: i64 = 0x5055_4E41;
/// Migrations, in order; those that were released are never changed.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/1.sql")];
const HOUR: u64 = 3_600_000;

/// An open database.
pub struct Store {
    path: PathBuf,
    db: Connection,
}

/// One line of a bill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// The key's id; `local` without a key.
    pub key: String,
    /// The key's name as it is now; empty for keys that are not in the database.
    pub name: String,
    /// The model's id.
    pub model: String,
    /// The adapter; empty: none.
    pub adapter: String,
    /// Requests that were answered.
    pub requests: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Tokens of their answers.
    pub completion_tokens: u64,
}

/// SQLite's errors by what they mean here.
fn told(path: &Path) -> impl Fn(rusqlite::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| {
        let path = path.clone();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Error::DiskFull { path },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Error::Damaged {
                path,
                why: source.to_string(),
            },
            _ => Error::Database { path, source },
        }
    }
}

impl Store {
    /// Opens the database, and makes it where there is none: a file that only its owner may read.
    /// What is damaged, another program's or a newer Puna's is left as it is.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::DiskFull`], or what the system or SQLite says.
    pub fn open(path: &Path) -> Result<Store, Error> {
        let create = || Error::io(format!("make {}", path.display()));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(create())?;
        }
        private(path, true).map_err(create())?;
        if std::fs::metadata(path).map_err(create())?.len() > 0 {
            inspect(path)?;
        }
        let tell = told(path);
        let mut db = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .map_err(&tell)?;
        prepare(&mut db, path)?;
        for end in ["-wal", "-shm"] {
            let mut beside = path.as_os_str().to_owned();
            beside.push(end);
            private(Path::new(&beside), false).map_err(create())?;
        }
        Ok(Store {
            path: path.to_owned(),
            db,
        })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn told(&self) -> impl Fn(rusqlite::Error) -> Error + use<> {
        told(&self.path)
    }

    fn write<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let tell = told(&self.path);
        let transaction = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(&tell)?;
        let result = work(&transaction).map_err(&tell)?;
        transaction.commit().map_err(&tell)?;
        Ok(result)
    }

    /// Keeps a new key.
    ///
    /// # Errors
    /// [`Error::Value`] when a key that is not revoked has the name.
    pub fn add_key(&mut self, key: &Key) -> Result<(), Error> {
        let event = Event::command("key create", &key.id, key.created);
        let added = self.write(|t| {
            t.execute(
                "INSERT INTO keys VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                params![
                    key.id,
                    key.name,
                    key.hash,
                    names(&key.scopes),
                    key.quotas.rpm,
                    key.quotas.tpm,
                    key.quotas.monthly_tokens.map(cap),
                    cap(key.created),
                    key.expires.map(cap),
                    key.revoked.map(cap),
                ],
            )?;
            audit::append(t, &event)
        });
        match added {
            Err(Error::Database { source, .. })
                if source.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) =>
            {
                Err(Error::Value {
                    what: "the key's name",
                    value: key.name.clone(),
                    why: "another key has it".into(),
                })
            }
            other => other,
        }
    }

    /// Revokes the key with this id or name, now.
    ///
    /// # Errors
    /// [`Error::NoKey`] when there is none that is not revoked already.
    pub fn revoke_key(&mut self, id_or_name: &str, now: u64) -> Result<Key, Error> {
        let found = self.write(|t| {
            let sql = "UPDATE keys SET revoked = ?2 WHERE revoked IS NULL AND (id = ?1 OR name = ?1) RETURNING *";
            let key = t.query_row(sql, params![id_or_name, cap(now)], key_of).optional()?;
            if let Some(key) = &key {
                audit::append(t, &Event::command("key revoke", &key.id, now))?;
            }
            Ok(key)
        });
        found?.ok_or_else(|| Error::NoKey(id_or_name.to_owned()))
    }

    /// All keys, the oldest first, those that are revoked among them.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn keys(&self) -> Result<Vec<Key>, Error> {
        let all = || {
            let mut rows = self
                .db
                .prepare_cached("SELECT * FROM keys ORDER BY created, id")?;
            rows.query_map([], key_of)?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        all().map_err(self.told())
    }

    /// How often keys have changed.
    pub(crate) fn key_changes(&self) -> Result<i64, Error> {
        let ask = || {
            self.db
                .prepare_cached("SELECT n FROM changes")?
                .query_row([], |row| row.get(0))
        };
        ask().map_err(self.told())
    }

    /// Writes what has happened, all or nothing: rows of the audit log, and usage.
    ///
    /// # Errors
    /// What SQLite says; then nothing was written.
    pub fn append(&mut self, events: &[Event]) -> Result<(), Error> {
        self.write(|t| {
            for event in events {
                audit::append(t, event)?;
                // What was refused is in the log, and on no bill.
                let used = event.prompt_tokens > 0 || event.completion_tokens > 0;
                if event.billed && (event.counted || used) {
                    add_usage(t, event)?;
                }
            }
            Ok(())
        })
    }

    /// Tokens that each key has used since this time, by the hour.
    pub(crate) fn tokens_since(&self, from: u64) -> Result<Vec<(String, u64)>, Error> {
        let all = || {
            let sql = "SELECT key, sum(prompt_tokens + completion_tokens) FROM usage WHERE hour >= ?1 GROUP BY key";
            let mut rows = self.db.prepare(sql)?;
            rows.query_map([cap(from)], |row| Ok((row.get(0)?, natural(row, 1)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        all().map_err(self.told())
    }

    /// What was used from one time to another (the end is not in it), by key, model and adapter.
    /// Usage is kept by the hour: both times are taken down to theirs.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn usage(&self, from: u64, to: u64) -> Result<Vec<Usage>, Error> {
        let all = || {
            let sql = "SELECT usage.key, coalesce(keys.name, ''), model, adapter, sum(requests), sum(prompt_tokens), \
                       sum(completion_tokens) FROM usage LEFT JOIN keys ON keys.id = usage.key \
                       WHERE hour >= ?1 AND hour < ?2 GROUP BY 1, 3, 4 ORDER BY 1, 3, 4";
            let mut rows = self.db.prepare(sql)?;
            let usage = |row: &Row<'_>| {
                Ok(Usage {
                    key: row.get(0)?,
                    name: row.get(1)?,
                    model: row.get(2)?,
                    adapter: row.get(3)?,
                    requests: natural(row, 4)?,
                    prompt_tokens: natural(row, 5)?,
                    completion_tokens: natural(row, 6)?,
                })
            };
            rows.query_map([cap(from - from % HOUR), cap(to - to % HOUR)], usage)?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        all().map_err(self.told())
    }

    /// At most `limit` rows of the audit log after the one numbered `after`.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn audit(&self, after: i64, limit: usize) -> Result<Vec<audit::Entry>, Error> {
        audit::rows(&self.db, after, limit).map_err(self.told())
    }

    /// Computes every hash of the audit log again.
    ///
    /// # Errors
    /// [`Error::Tampered`] at the first row that does not fit, and when no row has the hash `head`.
    pub fn verify(&self, head: Option<&str>) -> Result<audit::Verified, Error> {
        audit::verify(&self.db, head).map_err(self.told())?
    }
}

/// Sees to it that only the owner may read and write the file; makes it if that is wanted.
fn private(path: &Path, create: bool) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    if create {
        match options.open(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    #[cfg(unix)]
    if let Ok(meta) = std::fs::metadata(path) {
        use std::os::unix::fs::PermissionsExt;
        if meta.permissions().mode() & 0o077 != 0 {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

/// Looks at a file without writing: is it a sound database of ours, of a version that we know?
fn inspect(path: &Path) -> Result<(), Error> {
    let damaged = |why: &str| Error::Damaged {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let ask = || {
        let db = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        db.busy_timeout(Duration::from_secs(5))?;
        let one = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0));
        let owner = one("PRAGMA application_id")?;
        let tables = one("SELECT count(*) FROM sqlite_schema")?;
        let version = one("PRAGMA user_version")?;
        let sound: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        Ok((owner, tables, version, sound))
    };
    let (owner, tables, version, sound) = ask().map_err(told(path))?;
    if owner != APPLICATION && (owner != 0 || tables != 0) {
        return Err(damaged("it is another program's database"));
    }
    if version > MIGRATIONS.len() as i64 {
        return Err(damaged("a newer Puna made it"));
    }
    match &*sound {
        "ok" => Ok(()),
        why => Err(damaged(why)),
    }
}

/// WAL, full synchronisation, the newest tables.
fn prepare(db: &mut Connection, path: &Path) -> Result<(), Error> {
    let tell = told(path);
    let pragmas = |db: &Connection| {
        db.busy_timeout(Duration::from_secs(5))?;
        db.pragma_update(None, "trusted_schema", false)?;
        db.pragma_update(None, "cell_size_check", true)?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.query_row("PRAGMA journal_mode = WAL", [], |row| {
            row.get::<_, String>(0)
        })
    };
    let mode = pragmas(db).map_err(&tell)?;
    if mode != "wal" {
        let why = format!("its journal is {mode}: the file system does not do what WAL needs");
        return Err(Error::Damaged {
            path: path.to_owned(),
            why,
        });
    }
    let version: i64 = db
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(&tell)?;
    if version == MIGRATIONS.len() as i64 {
        return Ok(());
    }
    db.pragma_update(None, "application_id", APPLICATION)
        .map_err(&tell)?;
    let steps = Migrations::new(MIGRATIONS.iter().map(|sql| M::up(sql)).collect());
    steps.to_latest(db).map_err(|error| match error {
        rusqlite_migration::Error::RusqliteError { err, .. } => tell(err),
        other => Error::Damaged {
            path: path.to_owned(),
            why: other.to_string(),
        },
    })
}

/// SQLite's integers have a sign.
pub(crate) fn cap(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(crate) fn natural(row: &Row<'_>, i: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(i)?).unwrap_or(0))
}

fn names(scopes: &[Scope]) -> String {
    let names: Vec<&str> = scopes.iter().map(|scope| scope.name()).collect();
    names.join(",")
}

fn key_of(row: &Row<'_>) -> rusqlite::Result<Key> {
    let time = |i| {
        Ok::<_, rusqlite::Error>(
            row.get::<_, Option<i64>>(i)?
                .map(|n| u64::try_from(n).unwrap_or(0)),
        )
    };
    let scopes: String = row.get(3)?;
    let scopes = Scope::parse(&scopes).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, Box::new(error))
    })?;
    Ok(Key {
        id: row.get(0)?,
        name: row.get(1)?,
        hash: row.get(2)?,
        scopes,
        quotas: Quotas {
            rpm: row.get(4)?,
            tpm: row.get(5)?,
            monthly_tokens: time(6)?,
        },
        created: natural(row, 7)?,
        expires: time(8)?,
        revoked: time(9)?,
    })
}

fn add_usage(t: &Transaction<'_>, event: &Event) -> rusqlite::Result<()> {
    let sql = "INSERT INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO UPDATE SET \
               requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens, \
               completion_tokens = completion_tokens + excluded.completion_tokens";
    let hour = event.at - event.at % HOUR;
    let (prompt, completion) = (cap(event.prompt_tokens), cap(event.completion_tokens));
    let requests = i64::from(event.counted);
    let values = params![
        cap(hour),
        event.key,
        event.model,
        event.adapter,
        requests,
        prompt,
        completion
    ];
    t.prepare_cached(sql)?.execute(values).map(drop)
}
