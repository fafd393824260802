//! API keys: what one is, and finding the one that a client sent. Only hashes are kept.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::principal::{Quotas, Scope};
use crate::store::Store;

/// A key, without the secret that it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Key {
    /// `key-` and 12 hexadecimal digits: for lists, logs and `revoke`.
    pub id: String,
    /// What it was called by the one who made it.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// How much of it.
    #[serde(flatten)]
    pub quotas: Quotas,
    /// When it was made, in milliseconds since 1970 (UTC).
    #[serde(serialize_with = "as_time")]
    pub created: u64,
    /// From when on it opens nothing.
    #[serde(serialize_with = "as_maybe_time")]
    pub expires: Option<u64>,
    /// When it was revoked.
    #[serde(serialize_with = "as_maybe_time")]
    pub revoked: Option<u64>,
    /// SHA-256 of the secret.
    #[serde(skip)]
    pub hash: [u8; 32],
}

fn as_time<S: serde::Serializer>(ms: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&crate::time::text(*ms))
}

fn as_maybe_time<S: serde::Serializer>(ms: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
    ms.map(crate::time::text).serialize(to)
}

/// What `key create` is asked for.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// 1 to 64 letters, digits, spaces, `.`, `_`, `-`, `@`; the first a letter or digit.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// How much of it.
    pub quotas: Quotas,
    /// From when on it opens nothing, in milliseconds since 1970 (UTC).
    pub expires: Option<u64>,
}

impl NewKey {
    /// Makes the key and its secret, `puna-` and 64 hexadecimal digits (256 random bits).
    ///
    /// # Errors
    /// [`Error::Value`] for a name that could not stand in a table.
    pub fn make(self, now: u64) -> Result<(Key, String), Error> {
        let secret = format!("puna-{}", crate::random_hex::<32>());
        Ok((self.of_secret(&secret, now)?, secret))
    }

    fn of_secret(self, secret: &str, now: u64) -> Result<Key, Error> {
        let good = |c: char| c.is_ascii_alphanumeric() || " ._-@".contains(c);
        let starts = self.name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts || self.name.len() > 64 || !self.name.chars().all(good) {
            return Err(Error::Value {
                what: "the key's name",
                value: self.name,
                why: "want 1 to 64 letters, digits, spaces and ._-@, a letter or digit first"
                    .into(),
            });
        }
        let hash = hash(secret);
        Ok(Key {
            id: format!("key-{}", crate::hex(&hash[..6])),
            name: self.name,
            scopes: self.scopes,
            quotas: self.quotas,
            created: now,
            expires: self.expires,
            revoked: None,
            hash,
        })
    }
}

/// SHA-256 of a secret.
pub(crate) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// The longest file of keys.
const LONGEST_FILE: u64 = 1 << 20;

/// Keys from a file: one a line, `KEY [NAME [SCOPES]]`; `#` begins a comment. Without a name it is
/// called after its line, without scopes it is for inference.
///
/// # Errors
/// When the file cannot be read, and for lines that are no keys.
pub fn read_file(path: &Path, now: u64) -> Result<Vec<Key>, Error> {
    use std::io::Read;
    let cannot = || Error::io(format!("read {}", path.display()));
    let file = std::fs::File::open(path).map_err(cannot())?;
    let mut text = String::new();
    file.take(LONGEST_FILE + 1)
        .read_to_string(&mut text)
        .map_err(cannot())?;
    let bad = |why: String| Error::File {
        path: path.to_owned(),
        why,
    };
    if text.len() as u64 > LONGEST_FILE {
        return Err(bad(format!("longer than {LONGEST_FILE} bytes")));
    }
    let keys = parse_file(&text, now).map_err(|(line, why)| bad(format!("line {line}: {why}")))?;
    match keys.is_empty() {
        true => Err(bad("there is no key in it".into())),
        false => Ok(keys),
    }
}

/// The keys in such a file's text; the number of the line that is wrong, and why.
///
/// # Errors
/// For lines that are no keys.
pub fn parse_file(text: &str, now: u64) -> Result<Vec<Key>, (usize, String)> {
    let mut keys: Vec<Key> = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let bad = |why: String| (i + 1, why);
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(secret) = words.next() else {
            continue;
        };
        if secret.len() < 16 || !secret.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(bad("a key has 16 ASCII characters at least".into()));
        }
        let new = NewKey {
            name: words
                .next()
                .map_or_else(|| format!("line-{}", i + 1), str::to_owned),
            scopes: Scope::parse(words.next().unwrap_or("inference"))
                .map_err(|e| bad(e.to_string()))?,
            quotas: Quotas::default(),
            expires: None,
        };
        if words.next().is_some() {
            return Err(bad("want KEY [NAME [SCOPES]]".into()));
        }
        let key = new.of_secret(secret, now).map_err(|e| bad(e.to_string()))?;
        if keys.iter().any(|other| other.hash == key.hash) {
            return Err(bad("the key is there twice".into()));
        }
        keys.push(key);
    }
    Ok(keys)
}

/// All keys of a server: those of its file, and those of its database as they are at the moment.
pub(crate) struct Keys {
    file: Vec<Key>,
    kept: Mutex<Kept>,
}

struct Kept {
    store: Store,
    changes: i64,
    keys: Vec<Key>,
}

impl Keys {
    pub(crate) fn new(file: Vec<Key>, store: Store) -> Result<Keys, Error> {
        let kept = Kept {
            changes: store.key_changes()?,
            keys: store.keys()?,
            store,
        };
        let kept = Mutex::new(kept);
        Ok(Keys { file, kept })
    }

    /// Was there ever a key, as far as was seen?
    pub(crate) fn any(&self) -> bool {
        !self.file.is_empty() || !self.kept().keys.is_empty()
    }

    /// The same, after a look.
    pub(crate) fn any_now(&self) -> Result<bool, Error> {
        drop(self.look()?);
        Ok(self.any())
    }

    /// Takes over what was made or revoked meanwhile.
    fn look(&self) -> Result<MutexGuard<'_, Kept>, Error> {
        let mut kept = self.kept();
        let changes = kept.store.key_changes()?;
        if changes != kept.changes {
            kept.keys = kept.store.keys()?;
            kept.changes = changes;
        }
        Ok(kept)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key with this secret, if it is neither revoked nor past its time. Asks the database
    /// whether keys have changed: one that was revoked opens nothing from then on.
    pub(crate) fn find(&self, secret: &str, now: u64) -> Result<Option<Key>, Error> {
        let hash = hash(secret);
        let kept = self.look()?;
        let found = pick(&self.file, &hash, now);
        Ok(found.or(pick(&kept.keys, &hash, now)).cloned())
    }
}

/// Looks at every key, whichever it is.
fn pick<'a>(keys: &'a [Key], hash: &[u8; 32], now: u64) -> Option<&'a Key> {
    let mut found = None;
    for key in keys {
        if crate::auth::same(&key.hash, hash) {
            found = Some(key);
        }
    }
    found.filter(|key| key.revoked.is_none() && key.expires.is_none_or(|end| now < end))
}
