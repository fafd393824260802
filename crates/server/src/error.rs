//! What can go wrong: [`Error`] before the server answers (it ends the program with its hint), and
//! [`ApiError`], which a client gets in OpenAI's shape. [`KINDS`] is the one table of statuses.

use std::path::PathBuf;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// An error of the room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused something about a file or a socket.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A certificate, key or file of API keys that makes no sense.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// An address that others can reach, and nobody needs a key.
    #[error("{address} can be reached from other machines, and there are no API keys")]
    Unguarded {
        /// The address.
        address: std::net::IpAddr,
    },
    /// A value that makes no sense: a scope, a date, a name.
    #[error("{what} {value:?}: {why}")]
    Value {
        /// What it is for.
        what: &'static str,
        /// As it was given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// The database is no database, is damaged, or belongs to another program or a newer Puna.
    #[error("{} cannot be used: {why}; it was left as it is", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No space on the disk.
    #[error("no space left on the disk of {}", path.display())]
    DiskFull {
        /// The database.
        path: PathBuf,
    },
    /// Any other trouble with the database.
    #[error("{}: {source}", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// No key has this name or id.
    #[error("there is no key {0:?}")]
    NoKey(String),
    /// The audit log is not what was written.
    #[error("the audit log was changed: row {row}: {why}")]
    Tampered {
        /// The first row that does not fit.
        row: i64,
        /// What does not fit.
        why: String,
    },
}

impl Error {
    /// One line that says how to mend it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Error::Unguarded { .. } => {
                "`puna key create --name N` makes a key, --api-key-file names some; --no-auth serves everyone who can reach the address"
            }
            Error::Damaged { .. } => {
                "restore a backup, or move the file away: then keys have to be made anew"
            }
            Error::DiskFull { .. } => "free some space; what was written before is still there",
            Error::NoKey(_) => "`puna key list` shows the keys",
            Error::Tampered { .. } => "compare with a copy of the database from before",
            _ => return None,
        })
    }

    /// Whether what was typed is wrong, and nothing else (the command line's exit code 2).
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Error::Unguarded { .. } | Error::Value { .. })
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}

/// Why a request is refused or fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request makes no sense.
    Invalid,
    /// No key, or one that is unknown, revoked or past its time.
    Key,
    /// The key lacks the scope.
    Scope,
    /// The name that the client called us by is none of ours.
    Host,
    /// A page of another site sent the request.
    Origin,
    /// No such path.
    Path,
    /// No such model.
    Model,
    /// No such adapter.
    Adapter,
    /// The path is there, the method is not.
    Method,
    /// The body did not arrive in time.
    Slow,
    /// The body is too large.
    Large,
    /// The body is not JSON.
    Media,
    /// Prompt and answer do not fit in the model's context.
    Context,
    /// More requests a minute than the key may send.
    Requests,
    /// More tokens a minute than the key may use.
    Tokens,
    /// The month's tokens are used up.
    Month,
    /// Something this release does not do.
    Unsupported,
    /// A bug, or an engine that failed.
    Internal,
    /// Too many requests at once.
    Busy,
    /// A model is being loaded, or the server is ending.
    Unready,
    /// Keys, usage and audit cannot be written.
    State,
}

/// (kind, status, `type`, `code`): what a client sees of each.
pub const KINDS: [(Kind, u16, &str, &str); 21] = [
    (
        Kind::Invalid,
        400,
        "invalid_request_error",
        "invalid_request",
    ),
    (Kind::Key, 401, "authentication_error", "invalid_api_key"),
    (Kind::Scope, 403, "permission_error", "insufficient_scope"),
    (Kind::Host, 403, "permission_error", "host_not_allowed"),
    (Kind::Origin, 403, "permission_error", "origin_not_allowed"),
    (Kind::Path, 404, "invalid_request_error", "unknown_url"),
    (Kind::Model, 404, "invalid_request_error", "model_not_found"),
    (
        Kind::Adapter,
        404,
        "invalid_request_error",
        "adapter_not_found",
    ),
    (
        Kind::Method,
        405,
        "invalid_request_error",
        "method_not_allowed",
    ),
    (Kind::Slow, 408, "invalid_request_error", "request_timeout"),
    (
        Kind::Large,
        413,
        "invalid_request_error",
        "request_too_large",
    ),
    (
        Kind::Media,
        415,
        "invalid_request_error",
        "unsupported_media_type",
    ),
    (
        Kind::Context,
        400,
        "invalid_request_error",
        "context_length_exceeded",
    ),
    (Kind::Requests, 429, "requests", "rate_limit_exceeded"),
    (Kind::Tokens, 429, "tokens", "rate_limit_exceeded"),
    (Kind::Month, 429, "insufficient_quota", "insufficient_quota"),
    (
        Kind::Unsupported,
        501,
        "not_supported_error",
        "not_supported",
    ),
    (Kind::Internal, 500, "server_error", "internal_error"),
    (Kind::Busy, 503, "server_error", "overloaded"),
    (Kind::Unready, 503, "unavailable_error", "not_ready"),
    (Kind::State, 503, "server_error", "state_unavailable"),
];

/// An answer that is no success, in OpenAI's shape:
/// `{"error":{"message","type","param","code"}}`.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// Which line of [`KINDS`].
    pub kind: Kind,
    /// For the person who reads it.
    pub message: String,
    /// The field of the request that is meant.
    pub param: Option<String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// An error of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> ApiError {
        ApiError {
            kind,
            message: message.into(),
            param: None,
            retry_after: None,
        }
    }

    /// Names the field of the request that is meant.
    #[must_use]
    pub fn param(mut self, name: impl Into<String>) -> ApiError {
        self.param = Some(name.into());
        self
    }

    /// Says when to try again: `Retry-After`, in whole seconds, at least one.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> ApiError {
        self.retry_after = Some(wait);
        self
    }

    fn row(&self) -> (u16, &'static str, &'static str) {
        let found = KINDS.iter().find(|(kind, ..)| *kind == self.kind);
        found.map_or((500, "server_error", "internal_error"), |row| {
            (row.1, row.2, row.3)
        })
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.row().0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The JSON body; also what a stream says that fails after it has begun.
    #[must_use]
    pub fn body(&self) -> serde_json::Value {
        let (_, ty, code) = self.row();
        json!({ "error": { "message": self.message, "type": ty, "param": self.param, "code": code } })
    }
}

/// What goes wrong with the database while serving: the words are for the log.
impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        if let Error::Value { what, .. } = error {
            return ApiError::new(Kind::Invalid, error.to_string()).param(what);
        }
        tracing::error!("{error}");
        ApiError::new(
            Kind::State,
            "keys, usage and audit cannot be read: see the server's log",
        )
    }
}

/// The code of the error that an answer is, for whoever counts them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Code(pub(crate) &'static str);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut answer = (self.status(), axum::Json(self.body())).into_response();
        answer.extensions_mut().insert(Code(self.row().2));
        let mut set =
            |name: HeaderName, value: HeaderValue| answer.headers_mut().insert(name, value);
        if self.kind == Kind::Key {
            set(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_millis().div_ceil(1000).max(1);
            set(
                header::RETRY_AFTER,
                HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX)),
            );
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_line_and_a_status() {
        for (kind, status, ty, code) in KINDS {
            let lines = KINDS.iter().filter(|row| row.0 == kind).count();
            assert_eq!(lines, 1, "{kind:?}");
            let error = ApiError::new(kind, "why").param("field");
            assert_eq!(error.status().as_u16(), status);
            let wanted = json!({ "error": { "message": "why", "type": ty, "param": "field", "code": code } });
            assert_eq!(error.body(), wanted);
        }
    }

    #[test]
    fn headers_of_errors() {
        let answer = ApiError::new(Kind::Key, "who?").into_response();
        assert_eq!(answer.headers()[header::WWW_AUTHENTICATE], "Bearer");
        let answer = ApiError::new(Kind::Busy, "later").retry_after(Duration::from_millis(1200));
        assert_eq!(answer.into_response().headers()[header::RETRY_AFTER], "2");
    }
}
