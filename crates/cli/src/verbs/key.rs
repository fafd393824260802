//! `puna key`: the keys of the server's database, what they used, and its audit log.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;
use server::{Clock, Entry, Key, NewKey, Quotas, Scope, Store, Usage};

use crate::args::{KeyArgs, KeyAuditArgs, KeyCreateArgs, KeyUsageArgs, KeyVerb, NetArgs};
use crate::{load, out};

/// The database: as typed, else `server.sqlite` in Puna's home.
pub fn database(typed: Option<&PathBuf>) -> Result<PathBuf> {
    match typed {
        Some(path) => Ok(path.clone()),
        None => Ok(load::hub(NetArgs { offline: true })?
            .home()
            .join("server.sqlite")),
    }
}

pub fn run(args: &KeyArgs) -> Result<()> {
    let mut store = Store::open(&database(args.state.as_ref())?)?;
    let format = args.format;
    match &args.verb {
        KeyVerb::Create(new) => {
            let (key, secret) = create(&mut store, new)?;
            let mut answer = json!(key);
            answer["key"] = json!(secret);
            out::note("this is the only time that the key is shown");
            out::print(format, &answer, || secret.clone())
        }
        KeyVerb::List => {
            let keys = store.keys()?;
            out::print(format, &json!({ "keys": keys }), || table(&keys))
        }
        KeyVerb::Revoke { key } => {
            let key = store.revoke_key(key, Clock::System.now())?;
            out::print(format, &key, || {
                format!("{} ({}) is revoked", key.id, key.name)
            })
        }
        KeyVerb::Usage(args) => {
            let rows = usage(&store, args)?;
            out::print(format, &json!({ "usage": rows }), || {
                server::as_csv(&rows).trim_end().replace("\r\n", "\n")
            })
        }
        KeyVerb::Audit(args) if args.verify || args.head.is_some() => {
            let sound = store.verify(args.head.as_deref())?;
            let said = || {
                format!(
                    "{} rows, none was changed; the last hash is {}",
                    sound.rows, sound.head
                )
            };
            out::print(
                format,
                &json!({ "ok": true, "rows": sound.rows, "head": sound.head }),
                said,
            )
        }
        KeyVerb::Audit(args) => audit(&store, args),
    }
}

fn create(store: &mut Store, args: &KeyCreateArgs) -> Result<(Key, String)> {
    let new = NewKey {
        name: args.name.clone(),
        scopes: Scope::parse(&args.scopes)?,
        quotas: Quotas {
            rpm: args.rpm,
            tpm: args.tpm,
            monthly_tokens: args.monthly_tokens,
        },
        expires: args
            .expires
            .as_deref()
            .map(|t| server::time::parse("--expires", t))
            .transpose()?,
    };
    let (key, secret) = new.make(Clock::System.now())?;
    store.add_key(&key)?;
    Ok((key, secret))
}

fn table(keys: &[Key]) -> String {
    let mut text = format!("{:<16}  {:<20}  {:<24}  state", "id", "name", "scopes");
    for key in keys {
        let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.name()).collect();
        let state = match (key.revoked, key.expires) {
            (Some(at), _) => format!("revoked {}", server::time::text(at)),
            (None, Some(at)) => format!("until {}", server::time::text(at)),
            (None, None) => "in force".to_owned(),
        };
        text.push_str(&format!(
            "\n{:<16}  {:<20}  {:<24}  {state}",
            key.id,
            key.name,
            scopes.join(",")
        ));
    }
    text
}

fn usage(store: &Store, args: &KeyUsageArgs) -> Result<Vec<Usage>> {
    let now = Clock::System.now();
    let time = |what, typed: &Option<String>, default| match typed {
        Some(text) => server::time::parse(what, text),
        None => Ok(default),
    };
    let from = time("--from", &args.from, server::time::month_began(now))?;
    let to = time("--to", &args.to, now.saturating_add(3_600_000))?;
    Ok(store.usage(from, to)?)
}

/// One row a line, page by page: the log may be long.
fn audit(store: &Store, args: &KeyAuditArgs) -> Result<()> {
    const PAGE: usize = 1000;
    let (mut lines, mut after) = (out::Lines::new(), args.after);
    loop {
        let rows: Vec<Entry> = store.audit(after, PAGE)?;
        for row in &rows {
            lines.line(&serde_json::to_string(row)?)?;
        }
        match rows.last() {
            Some(last) if rows.len() == PAGE => after = last.seq,
            _ => return lines.flush(),
        }
    }
}
