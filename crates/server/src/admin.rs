//! What an operator asks for over HTTP: usage for billing, the audit log. Scope admin.

use axum::extract::{Query, State as With};
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::{ApiError, Error, Kind};
use crate::state::State;
use crate::store::Usage;

/// The most rows of the audit log in one answer.
const PAGE: usize = 1000;

/// The values of these parameters, in this order. Unknown ones, and ones that come twice, are errors.
pub(crate) fn parameters<const N: usize>(
    uri: &Uri,
    names: [&'static str; N],
) -> Result<[Option<String>; N], ApiError> {
    let bad = |why: String, name: String| Err(ApiError::new(Kind::Invalid, why).param(name));
    let pairs = match Query::<Vec<(String, String)>>::try_from_uri(uri) {
        Ok(Query(pairs)) => pairs,
        Err(error) => return bad(format!("the query: {error}"), "query".into()),
    };
    let mut found = [const { None }; N];
    for (name, value) in pairs {
        match names.iter().position(|n| *n == name) {
            None => {
                return bad(
                    format!("unknown parameter; there are {}", names.join(", ")),
                    name,
                );
            }
            Some(i) if found[i].is_some() => {
                return bad("the parameter is there twice".into(), name);
            }
            Some(i) => found[i] = Some(value),
        }
    }
    Ok(found)
}

fn whole_number<T: std::str::FromStr>(
    name: &'static str,
    value: Option<String>,
    default: T,
) -> Result<T, ApiError> {
    let Some(value) = value else {
        return Ok(default);
    };
    let bad = |_| ApiError::new(Kind::Invalid, format!("{value:?} is no whole number")).param(name);
    value.parse().map_err(bad)
}

/// `GET /admin/usage?from&to&format`
pub(crate) async fn usage(With(state): With<State>, uri: Uri) -> Result<Response, ApiError> {
    let [from, to, format] = parameters(&uri, ["from", "to", "format"])?;
    let now = state.clock().now();
    let from = from.map_or(Ok(crate::time::month_began(now)), |t| {
        crate::time::parse("from", &t)
    })?;
    // Without an end: up to now, and this hour with it.
    let to = to.map_or(Ok(now.saturating_add(3_600_000)), |t| {
        crate::time::parse("to", &t)
    })?;
    let csv = match format.as_deref() {
        None | Some("json") => false,
        Some("csv") => true,
        Some(other) => {
            let what = format!("{other:?} is no format; json and csv are");
            return Err(ApiError::new(Kind::Invalid, what).param("format"));
        }
    };
    let rows = state.read(move |store| store.usage(from, to)).await?;
    if csv {
        let media = [(header::CONTENT_TYPE, "text/csv; charset=utf-8")];
        return Ok((media, as_csv(&rows)).into_response());
    }
    let all =
        json!({ "from": crate::time::text(from), "to": crate::time::text(to), "usage": rows });
    Ok(axum::Json(all).into_response())
}

/// Usage as RFC 4180 writes tables.
#[must_use]
pub fn as_csv(rows: &[Usage]) -> String {
    let mut text = "key,name,model,adapter,requests,prompt_tokens,completion_tokens\r\n".to_owned();
    for r in rows {
        for word in [&r.key, &r.name, &r.model, &r.adapter] {
            text.push_str(&cell(word));
            text.push(',');
        }
        text.push_str(&format!(
            "{},{},{}\r\n",
            r.requests, r.prompt_tokens, r.completion_tokens
        ));
    }
    text
}

/// A word that is a word in a spreadsheet too: nothing in it is computed.
fn cell(word: &str) -> String {
    let computed = word.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let word = if computed {
        format!("'{word}")
    } else {
        word.to_owned()
    };
    match word.contains([',', '"', '\r', '\n']) {
        true => format!("\"{}\"", word.replace('"', "\"\"")),
        false => word,
    }
}

/// `GET /admin/audit?after&limit`
pub(crate) async fn audit(
    With(state): With<State>,
    uri: Uri,
) -> Result<axum::Json<Value>, ApiError> {
    let [after, limit] = parameters(&uri, ["after", "limit"])?;
    let after: i64 = whole_number("after", after, 0)?;
    let limit = whole_number("limit", limit, PAGE)?.clamp(1, PAGE);
    let rows = state.read(move |store| store.audit(after, limit)).await?;
    let next = (rows.len() == limit)
        .then(|| rows.last().map(|row| row.seq))
        .flatten();
    Ok(axum::Json(json!({ "rows": rows, "next": next })))
}

/// `GET /admin/audit/verify?head`
pub(crate) async fn verify(
    With(state): With<State>,
    uri: Uri,
) -> Result<axum::Json<Value>, ApiError> {
    let [head] = parameters(&uri, ["head"])?;
    let found = state
        .read(move |store| Ok(store.verify(head.as_deref())))
        .await?;
    match found {
        Ok(sound) => Ok(axum::Json(
            json!({ "ok": true, "rows": sound.rows, "head": sound.head }),
        )),
        Err(Error::Tampered { row, why }) => {
            Ok(axum::Json(json!({ "ok": false, "row": row, "why": why })))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_known_and_there_once() {
        let of = |text: &str| parameters(&text.parse().unwrap(), ["a", "b"]);
        assert_eq!(of("/?b=1%202").unwrap(), [None, Some("1 2".into())]);
        assert_eq!(of("/").unwrap(), [None, None]);
        assert_eq!(of("/?c=1").unwrap_err().param.as_deref(), Some("c"));
        assert_eq!(of("/?a=1&a=1").unwrap_err().param.as_deref(), Some("a"));
    }

    #[test]
    fn csv_computes_nothing() {
        for (word, cells) in [
            ("a", "a"),
            ("a,\"b", "\"a,\"\"b\""),
            ("=1+1", "'=1+1"),
            ("@x\n", "\"'@x\n\""),
        ] {
            assert_eq!(cell(word), cells);
        }
    }
}
