//! Keys on requests: what each route needs ([`Access`]), and the middleware that finds out who asks.
//! Every route has this around it; one that needs nobody says so.

use axum::extract::{Request, State as With};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use subtle::ConstantTimeEq;

use crate::error::{ApiError, Kind};
use crate::principal::{LOCAL, Principal, Quotas, Scope};
use crate::request::Tracked;
use crate::settings::Auth;
use crate::state::State;

/// What a route needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: whoever asks is answered.
    Anyone,
    /// A key, where keys are demanded; no scope.
    Known,
    /// A key with this scope. Inference and admin are written into the audit log, and inference
    /// counts against the key's quotas.
    Needs(Scope),
}

/// The key in `Authorization: Bearer KEY`, or in `x-api-key: KEY`.
#[must_use]
pub fn presented(headers: &HeaderMap) -> Option<&str> {
    let bearer = || {
        let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    };
    let plain = || headers.get("x-api-key")?.to_str().ok();
    bearer().or_else(plain).filter(|key| !key.is_empty())
}

/// Are the hashes the same? Takes as long whatever the answer.
pub(crate) fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.ct_eq(b).into()
}

/// Who asks.
fn principal(
    state: &State,
    headers: &HeaderMap,
    request: Arc<Tracked>,
) -> Result<Principal, ApiError> {
    let refuse = |why: &str| Err(ApiError::new(Kind::Key, why));
    let key = match presented(headers) {
        Some(presented) => state.keys().find(presented, state.clock().now())?,
        None => None,
    };
    if let Some(key) = key {
        return Ok(Principal {
            key: key.id.as_str().into(),
            name: key.name.as_str().into(),
            scopes: key.scopes.clone(),
            quotas: key.quotas,
            request,
        });
    }
    let auth = match state.auth() {
        // A key was made since the start: from then on one is needed.
        Auth::Open if !state.settings().no_auth && state.keys().any_now()? => Auth::Keys,
        auth => auth,
    };
    match auth {
        // Other servers' clients send a key even where none is needed: it is nobody's.
        Auth::Open => Ok(Principal {
            key: LOCAL.into(),
            name: LOCAL.into(),
            scopes: vec![Scope::Inference, Scope::Metrics],
            quotas: Quotas::default(),
            request,
        }),
        Auth::Keys if presented(headers).is_none() => {
            refuse("this server needs an API key: send Authorization: Bearer KEY")
        }
        Auth::Keys => refuse("the API key is unknown, revoked or past its time"),
    }
}

/// The middleware around each route.
pub(crate) async fn admit(
    With((state, access)): With<(State, Access)>,
    request: Request,
    next: Next,
) -> Response {
    let tracked = request.extensions().get::<Arc<Tracked>>().cloned();
    let mut answer = match admitted(&state, access, request).await {
        Ok(request) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    if let Some(tracked) = tracked {
        for left in &tracked.notes().left {
            left.write(answer.headers_mut());
        }
    }
    answer
}

/// The request with its [`Principal`], or why it is refused.
pub(crate) async fn admitted(
    state: &State,
    access: Access,
    mut request: Request,
) -> Result<Request, ApiError> {
    if access == Access::Anyone {
        return Ok(request);
    }
    let tracked = request.extensions().get::<Arc<Tracked>>().cloned();
    let tracked =
        tracked.ok_or_else(|| ApiError::new(Kind::Internal, "the request was not tracked"))?;
    let kept = matches!(access, Access::Needs(scope) if scope != Scope::Metrics);
    let principal = principal(state, request.headers(), tracked.clone());
    if principal.as_ref().is_err_and(|e| e.kind == Kind::Key)
        && presented(request.headers()).is_some()
    {
        state.refused(&tracked, kept);
    }
    let principal = principal?;
    tracked.notes().key = principal.key.to_string();
    if let Access::Needs(scope) = access {
        if kept {
            state.begin(&tracked).await?;
        }
        if !principal.may(scope) {
            let what = format!("this needs a key with the scope {}", scope.name());
            let kind = if *principal.key == *LOCAL {
                Kind::Key
            } else {
                Kind::Scope
            };
            return Err(ApiError::new(kind, what));
        }
        if scope == Scope::Inference {
            state.begin_work(&principal)?;
        }
    }
    request.extensions_mut().insert(principal);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_headers() {
        let of = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            presented(&headers).map(str::to_owned)
        };
        assert_eq!(of("authorization", "Bearer abc").as_deref(), Some("abc"));
        assert_eq!(of("authorization", "bearer  abc ").as_deref(), Some("abc"));
        assert_eq!(of("x-api-key", "abc").as_deref(), Some("abc"));
        for bad in ["abc", "Bearer", "Bearer ", "Basic YTpi"] {
            assert_eq!(of("authorization", bad), None, "{bad}");
        }
    }
}
