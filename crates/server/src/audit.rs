//! The audit log: who asked for what, and when. Rows are only added, and each carries a hash of
//! itself and of the hash before it, so that a row that is changed, taken out or put in between
//! later does not fit.
//!
//! The chain has no secret: who can write the file can also compute it anew from some row on, or
//! cut off its end. Against that, note a hash elsewhere (`puna key audit --verify` prints the last
//! one) and give it to `--head` later: the chain must still go through it.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::store::{cap, natural};

/// What is to be written down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// When it began, in milliseconds since 1970 (UTC).
    pub at: u64,
    /// The request's id; empty for commands.
    pub request: String,
    /// The key's id; `local` without a key, `refused` for a key that opens nothing.
    pub key: String,
    /// The route; for commands their name.
    pub route: String,
    /// The model's id; empty: none.
    pub model: String,
    /// The adapter; empty: none.
    pub adapter: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// The HTTP status; 499: the client left; 0 for commands.
    pub status: u16,
    /// Prompt and answer, where that was asked for.
    pub content: Option<String>,
    /// Whether it is added to the usage of the key.
    pub billed: bool,
    /// Whether it is a request there; tokens that come late are none.
    pub counted: bool,
}

impl Event {
    /// A command about a key.
    pub(crate) fn command(name: &str, key: &str, at: u64) -> Event {
        Event {
            at,
            key: key.to_owned(),
            route: name.to_owned(),
            ..Event::default()
        }
    }

    /// The hash of this event after `before`: each field with its length before it.
    fn hash(&self, seq: i64, before: &[u8; 32]) -> [u8; 32] {
        let mut sha = Sha256::new();
        sha.update(before);
        let numbers = [
            seq,
            cap(self.at),
            cap(self.prompt_tokens),
            cap(self.completion_tokens),
            i64::from(self.status),
            i64::from(self.content.is_some()),
        ];
        for number in numbers {
            sha.update(number.to_le_bytes());
        }
        let content = self.content.as_deref().unwrap_or_default();
        for text in [
            &*self.request,
            &self.key,
            &self.route,
            &self.model,
            &self.adapter,
            content,
        ] {
            sha.update((text.len() as u64).to_le_bytes());
            sha.update(text);
        }
        sha.finalize().into()
    }
}

/// A row of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "Event says what the fields are")]
pub struct Entry {
    /// From 1 on, without gaps.
    pub seq: i64,
    pub at: String,
    pub request: String,
    pub key: String,
    pub route: String,
    pub model: String,
    pub adapter: String,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// SHA-256 over this row and the hash before it, hexadecimal.
    pub hash: String,
}

/// A log that fits together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// How many rows it has.
    pub rows: i64,
    /// The hash of the last one.
    pub head: String,
}

const COLUMNS: &str = "seq, at, request, key, route, model, adapter, prompt_tokens, completion_tokens, status, content, hash";

type Line = (i64, Event, [u8; 32]);

fn line(row: &Row<'_>) -> rusqlite::Result<Line> {
    let event = Event {
        at: natural(row, 1)?,
        request: row.get(2)?,
        key: row.get(3)?,
        route: row.get(4)?,
        model: row.get(5)?,
        adapter: row.get(6)?,
        prompt_tokens: natural(row, 7)?,
        completion_tokens: natural(row, 8)?,
        status: row.get(9)?,
        content: row.get(10)?,
        ..Event::default()
    };
    Ok((row.get(0)?, event, row.get(11)?))
}

/// Adds a row.
pub(crate) fn append(t: &Transaction<'_>, event: &Event) -> rusqlite::Result<()> {
    let last = "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1";
    let last = t
        .prepare_cached(last)?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (seq, before): (i64, [u8; 32]) = last.unwrap_or((0, [0; 32]));
    let seq = seq + 1;
    let sql = format!(
        "INSERT INTO audit ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
    );
    t.prepare_cached(&sql)?
        .execute(params![
            seq,
            cap(event.at),
            event.request,
            event.key,
            event.route,
            event.model,
            event.adapter,
            cap(event.prompt_tokens),
            cap(event.completion_tokens),
            event.status,
            event.content,
            event.hash(seq, &before),
        ])
        .map(drop)
}

pub(crate) fn rows(db: &Connection, after: i64, limit: usize) -> rusqlite::Result<Vec<Entry>> {
    let sql = format!("SELECT {COLUMNS} FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2");
    let entry = |row: &Row<'_>| {
        let (seq, event, hash) = line(row)?;
        Ok(Entry {
            seq,
            at: crate::time::text(event.at),
            request: event.request,
            key: event.key,
            route: event.route,
            model: event.model,
            adapter: event.adapter,
            prompt_tokens: event.prompt_tokens,
            completion_tokens: event.completion_tokens,
            status: event.status,
            content: event.content,
            hash: crate::hex(&hash),
        })
    };
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    db.prepare(&sql)?
        .query_map(params![after, limit], entry)?
        .collect()
}

pub(crate) fn verify(
    db: &Connection,
    head: Option<&str>,
) -> rusqlite::Result<Result<Verified, Error>> {
    let (mut rows, mut before, mut seen) = (0, [0; 32], head.is_none());
    let sql = format!("SELECT {COLUMNS} FROM audit ORDER BY seq");
    let mut statement = db.prepare(&sql)?;
    for line in statement.query_map([], line)? {
        let bad = |why: &str| {
            let why = why.to_owned();
            Ok(Err(Error::Tampered { row: rows + 1, why }))
        };
        let Ok((seq, event, hash)) = line else {
            return bad("it cannot be read");
        };
        if seq != rows + 1 {
            return bad(&format!("it is missing; row {seq} comes next"));
        }
        if hash != event.hash(seq, &before) {
            return bad("its hash is not that of its content and of the rows before it");
        }
        seen |= head.is_some_and(|head| head.eq_ignore_ascii_case(&crate::hex(&hash)));
        (rows, before) = (seq, hash);
    }
    if !seen {
        let why = "no row has the hash that was noted: the log was cut or written anew".to_owned();
        return Ok(Err(Error::Tampered { row: rows, why }));
    }
    Ok(Ok(Verified {
        rows,
        head: crate::hex(&before),
    }))
}
