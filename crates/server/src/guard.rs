//! Who may talk to us at all, before any key is looked at: names that this machine answers to,
//! pages that may call it, bodies that a foreign page cannot send.
//!
//! A page on any site can make a browser send requests to this machine (cross-site requests), and
//! can point its own name at this machine's address (DNS rebinding). Therefore: the `Host` must be
//! an address, `localhost` or a name that was allowed; an `Origin` must be our own or one that was
//! allowed; a body must be JSON, which a page cannot send elsewhere without asking first.

use std::net::IpAddr;

use axum::body::Body;
use axum::extract::{Request, State as With};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::{ApiError, Kind};
use crate::settings::Settings;
use crate::state::State;

/// The name in `name[:port]`, in lower case, without the dot that may end it; `None` if it is no
/// such thing.
#[must_use]
pub fn host_name(authority: &str) -> Option<String> {
    let (name, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (inside, after) = rest.split_once(']')?;
            inside.parse::<std::net::Ipv6Addr>().ok()?;
            (
                inside,
                after
                    .strip_prefix(':')
                    .or(after.is_empty().then_some("0"))?,
            )
        }
        None => authority.split_once(':').unwrap_or((authority, "0")),
    };
    port.parse::<u16>().ok()?;
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    let name = name.strip_suffix('.').unwrap_or(name);
    (!name.is_empty() && name.len() <= 255 && name.chars().all(good))
        .then(|| name.to_ascii_lowercase())
}

/// Does this machine answer to the name? Addresses cannot be rebound: they are always right.
fn is_ours(name: &str, allowed: &[String]) -> bool {
    name == "localhost"
        || name.parse::<IpAddr>().is_ok()
        || allowed
            .iter()
            .any(|a| host_name(a).as_deref() == Some(name))
}

/// The authority of an origin (`scheme://authority`), without the scheme's own port; `None` for
/// `null` and what is no origin.
#[must_use]
pub fn origin_authority(origin: &str) -> Option<String> {
    let origin = origin.to_ascii_lowercase();
    let (scheme, authority) = origin.split_once("://")?;
    let own = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return None,
    };
    host_name(authority)?;
    Some(authority.strip_suffix(own).unwrap_or(authority).to_owned())
}

/// The one value of a header; twice is as bad as none.
fn only<'a>(
    headers: &'a HeaderMap,
    name: &header::HeaderName,
) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else {
        return Ok(None);
    };
    let bad = || ApiError::new(Kind::Invalid, format!("the header {name} makes no sense"));
    if values.next().is_some() {
        return Err(bad());
    }
    first.to_str().map(Some).map_err(|_| bad())
}

fn check_host(uri: &Uri, headers: &HeaderMap, allowed: &[String]) -> Result<String, ApiError> {
    let refuse = |name: &str| {
        let hint = "--allowed-host allows a name";
        ApiError::new(
            Kind::Host,
            format!("this server does not answer to the host {name:?}; {hint}"),
        )
    };
    let said = only(headers, &header::HOST)?;
    // Both, if the request line names one too.
    for authority in [uri.authority().map(|a| a.as_str()), said]
        .into_iter()
        .flatten()
    {
        match host_name(authority) {
            Some(name) if is_ours(&name, allowed) => {}
            _ => return Err(refuse(authority)),
        }
    }
    said.map(str::to_ascii_lowercase).ok_or_else(|| refuse(""))
}

/// Whether the origin may call us: `Some(true)` when it is another's that was allowed.
fn check_origin(origin: &str, host: &str, allowed: &[String]) -> Option<bool> {
    let authority = origin_authority(origin)?;
    let is = |a: &String| a.eq_ignore_ascii_case(origin);
    let same = |own: &str| host.strip_suffix(own).unwrap_or(host) == authority;
    let foreign = allowed.iter().any(is);
    let own = if origin.len() > 5 && origin[..5].eq_ignore_ascii_case("https") {
        same(":443")
    } else {
        same(":80")
    };
    (own || foreign).then_some(!own)
}

/// Is it JSON by its Content-Type?
fn is_json(headers: &HeaderMap) -> Result<bool, ApiError> {
    let media = only(headers, &header::CONTENT_TYPE)?.unwrap_or_default();
    let essence = media.split(';').next().unwrap_or_default().trim();
    Ok(essence.eq_ignore_ascii_case("application/json"))
}

/// What a request must be before anything looks at it. Returns the origin to be told that it may
/// read the answer.
///
/// # Errors
/// 403 for hosts and origins, 413 for bodies that are said to be too long, 415 for other bodies
/// than JSON, 400 for headers that make no sense.
pub fn check(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    settings: &Settings,
) -> Result<Option<HeaderValue>, ApiError> {
    let host = check_host(uri, headers, &settings.allowed_hosts)?;
    let mut told = None;
    if let Some(origin) = only(headers, &header::ORIGIN)? {
        match check_origin(origin, &host, &settings.allowed_origins) {
            Some(true) => told = headers.get(header::ORIGIN).cloned(),
            Some(false) => {}
            None => {
                let what = format!(
                    "pages of {origin:?} may not call this server; --allowed-origin allows one"
                );
                return Err(ApiError::new(Kind::Origin, what));
            }
        }
    }
    if let Some(length) = only(headers, &header::CONTENT_LENGTH)?
        && length.parse::<usize>().is_ok_and(|n| n > settings.max_body)
    {
        return Err(too_large(settings.max_body));
    }
    if matches!(*method, Method::POST | Method::PUT | Method::PATCH) && !is_json(headers)? {
        return Err(ApiError::new(
            Kind::Media,
            "the body must be JSON: send Content-Type: application/json",
        ));
    }
    Ok(told)
}

/// The error for a body that is longer than `limit` bytes.
pub(crate) fn too_large(limit: usize) -> ApiError {
    ApiError::new(
        Kind::Large,
        format!("the body is longer than {limit} bytes"),
    )
}

/// The middleware: [`check`], the answer to a page that asks first, and its headers.
pub(crate) async fn guard(With(state): With<State>, request: Request, next: Next) -> Response {
    let told = check(
        request.method(),
        request.uri(),
        request.headers(),
        state.settings(),
    );
    let told = match told {
        Ok(told) => told,
        // Its page may read why, if it may call us at all.
        Err(error) => {
            let origin = foreign(request.uri(), request.headers(), state.settings());
            return tell(error.into_response(), origin);
        }
    };
    let asks = request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let wanted = request
        .headers()
        .get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    let wanted = wanted.cloned();
    let answer = match (&told, asks) {
        (Some(_), true) => allowed_methods(wanted),
        _ => next.run(request).await,
    };
    tell(answer, told)
}

/// The origin of a request whose host and origin are right, if it is another's that was allowed.
fn foreign(uri: &Uri, headers: &HeaderMap, settings: &Settings) -> Option<HeaderValue> {
    let host = check_host(uri, headers, &settings.allowed_hosts).ok()?;
    let origin = only(headers, &header::ORIGIN).ok()??;
    let is = check_origin(origin, &host, &settings.allowed_origins)?;
    headers.get(header::ORIGIN).filter(|_| is).cloned()
}

/// What a page may read of an answer beside its body and its usual headers.
const EXPOSED: &str = "x-request-id, retry-after, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens";

/// The headers of every answer; `origin` is told that it may read it.
fn tell(mut answer: Response, origin: Option<HeaderValue>) -> Response {
    let headers = answer.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        let exposed = HeaderValue::from_static(EXPOSED);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
    answer
}

/// What a page of an allowed origin may send. No cookies: there are none.
/// Headers are those it asks for: clients have their own, and none opens anything that keys do not.
fn allowed_methods(wanted: Option<HeaderValue>) -> Response {
    let mut answer = (StatusCode::NO_CONTENT, Body::empty()).into_response();
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ] {
        answer
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    let usual = HeaderValue::from_static("authorization, content-type, x-api-key, x-request-id");
    answer.headers_mut().insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        wanted.unwrap_or(usual),
    );
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hosts() {
        for (authority, name) in [
            ("localhost", Some("localhost")),
            ("LocalHost.:7862", Some("localhost")),
            ("127.0.0.1:80", Some("127.0.0.1")),
            ("[::1]:7862", Some("::1")),
            ("[::1]", Some("::1")),
            ("a_b.example", Some("a_b.example")),
            ("", None),
            (":80", None),
            ("a:b", None),
            ("a:65536", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[x]", None),
            ("user@host", None),
            ("a/b", None),
        ] {
            assert_eq!(host_name(authority).as_deref(), name, "{authority}");
        }
    }

    #[test]
    fn rebinding_is_refused() {
        let allowed = vec!["puna.example".to_owned()];
        let check = |uri: &str, host: &[&str]| {
            let mut headers = HeaderMap::new();
            for one in host {
                headers.append(header::HOST, one.parse().unwrap());
            }
            check_host(&uri.parse().unwrap(), &headers, &allowed).is_ok()
        };
        assert!(check("/", &["localhost:7862"]) && check("/", &["10.0.0.7"]));
        assert!(check("/", &["Puna.Example:443"]) && check("http://localhost/", &["localhost"]));
        assert!(!check("/", &["evil.example"]) && !check("/", &[]));
        assert!(!check("/", &["localhost", "localhost"]));
        assert!(!check("http://evil.example/", &["localhost"]));
        assert!(
            !check("/", &["localhost.evil.example"]) && !check("/", &["127.0.0.1.evil.example"])
        );
    }

    #[test]
    fn origins() {
        let allowed = vec!["https://chat.example".to_owned()];
        let check = |origin, host| check_origin(origin, host, &allowed);
        assert_eq!(
            check("http://localhost:7862", "localhost:7862"),
            Some(false)
        );
        assert_eq!(check("http://localhost", "localhost"), Some(false));
        assert_eq!(check("http://localhost", "localhost:80"), Some(false));
        assert_eq!(check("https://puna.example", "puna.example"), Some(false));
        assert_eq!(check("https://chat.example", "localhost"), Some(true));
        assert_eq!(check("http://localhost:3000", "localhost:7862"), None);
        assert_eq!(check("null", "localhost"), None);
        assert_eq!(check("http://chat.example", "localhost"), None);
        assert_eq!(check("https://chat.example.evil", "localhost"), None);
        assert_eq!(check("file://", "localhost"), None);
    }
}
