//! The HTTP client: one request with its redirects.
//!
//! What it holds to: connections open within the connect timeout and never stand still longer
//! than the read timeout; redirects are followed by hand, ten at most, never from https to http;
//! plain http goes to loopback hosts and the configured endpoint only; the token goes to the
//! endpoint's own origin only and never again after a redirect has left it. Proxies named in
//! the environment are used, except for loopback hosts.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde_json::Value;

use crate::digest::is_sha256;
use crate::patience::{Fault, Patience, patiently};
use crate::settings::Token;
use crate::spec::without_query;
use crate::{Error, Progress, Settings};

/// The longest chain of redirects that is followed.
const REDIRECTS_MAX: usize = 10;
/// The largest JSON answer that is read.
const JSON_MAX: usize = 32 << 20;

/// The client and the small runtime it runs on.
pub(crate) struct Http {
    runtime: tokio::runtime::Runtime,
    proxied: Client,
    direct: Client,
    /// Why no TLS certificate can be trusted on this machine, if that is so.
    no_roots: Option<String>,
    endpoint: Url,
    settings: Settings,
}

/// One request.
pub(crate) struct Ask<'a> {
    /// GET or HEAD.
    pub method: Method,
    /// Where to.
    pub url: &'a str,
    /// What this is, for messages.
    pub what: &'a str,
    /// Further headers.
    pub headers: Vec<(HeaderName, String)>,
}

/// The answer at the end of the redirects.
pub(crate) struct Answer {
    /// Status, headers and the unread body.
    pub response: Response,
    /// `X-Linked-Etag` of the endpoint, where it is a SHA-256: the large file's hash.
    pub linked_sha256: Option<String>,
    /// `X-Linked-Size` of the endpoint: the large file's size.
    pub linked_bytes: Option<u64>,
    /// Whether the token was sent with the last request.
    pub with_token: bool,
    /// Whether the last request went to the origin of the first one.
    pub at_home: bool,
}

impl Http {
    /// Builds the clients. Works without any trusted certificate on the machine: then only an
    /// https request fails, with a message that says so.
    pub(crate) fn new(settings: &Settings) -> Result<Http, Error> {
        if tokio::runtime::Handle::try_current().is_ok() {
            return Err(Error::InsideAsync);
        }
        let failed = |why: String| Error::Network {
            what: "the HTTP client".into(),
            why,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| failed(e.to_string()))?;
        let (tls, no_roots) = tls().map_err(|e| failed(e.to_string()))?;
        let builder = || {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .user_agent(concat!("puna/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .http1_only()
                .connect_timeout(settings.connect_timeout)
                .read_timeout(settings.read_timeout)
        };
        // Connecting needs the runtime's clock from the start.
        let _inside = runtime.enter();
        let build =
            |builder: reqwest::ClientBuilder| builder.build().map_err(|e| failed(plain(&e)));
        let endpoint = Url::parse(&settings.hf_endpoint).map_err(|e| failed(e.to_string()))?;
        let (proxied, direct) = (build(builder())?, build(builder().no_proxy())?);
        drop(_inside);
        Ok(Http {
            proxied,
            direct,
            runtime,
            no_roots,
            endpoint,
            settings: settings.clone(),
        })
    }

    /// The settings in force.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Runs a future to its end on this thread.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// A fresh account of tries.
    pub(crate) fn patience(&self) -> Patience {
        Patience::new(&self.settings)
    }

    /// Sends one request and follows its redirects.
    pub(crate) async fn send(
        &self,
        ask: &Ask<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Answer, Fault> {
        let refuse = |why: String| {
            Fault::Final(Error::Remote {
                what: ask.what.to_owned(),
                why,
            })
        };
        let first = Url::parse(ask.url).map_err(|e| refuse(e.to_string()))?;
        let mut url = first.clone();
        let mut trusted = true;
        let (mut linked_sha256, mut linked_bytes) = (None, None);
        for _ in 0..=REDIRECTS_MAX {
            self.allowed(&url).map_err(&refuse)?;
            trusted &= same_origin(&url, &self.endpoint);
            let token = self.token().filter(|_| trusted);
            let response = self.one(ask, &url, token, progress).await?;
            if trusted {
                linked_sha256 = linked_sha256.or_else(|| linked_hash(response.headers()));
                linked_bytes = linked_bytes.or_else(|| number(response.headers(), "x-linked-size"));
            }
            let location = response.headers().get(header::LOCATION);
            let Some(location) = location.filter(|_| is_redirect(response.status())) else {
                return Ok(Answer {
                    response,
                    linked_sha256,
                    linked_bytes,
                    with_token: token.is_some(),
                    at_home: same_origin(&url, &first),
                });
            };
            let next = location
                .to_str()
                .ok()
                .and_then(|location| url.join(location).ok())
                .ok_or_else(|| refuse("a redirect that leads nowhere".into()))?;
            if is_downgrade(&url, &next) {
                return Err(refuse("a redirect from https to http was refused".into()));
            }
            url = next;
        }
        Err(refuse(format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// One request to one URL.
    async fn one(
        &self,
        ask: &Ask<'_>,
        url: &Url,
        token: Option<&str>,
        progress: &mut dyn Progress,
    ) -> Result<Response, Fault> {
        let client = if is_loopback(url) {
            &self.direct
        } else {
            &self.proxied
        };
        // A compressed answer would be another file: its ranges and its hash would not fit.
        let mut request = client
            .request(ask.method.clone(), url.clone())
            .header(header::ACCEPT_ENCODING, "identity");
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        if let Some(token) = token {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| Error::Remote {
                    what: ask.what.to_owned(),
                    why: "the token has characters that no token has".into(),
                })?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        patiently(request.send(), progress)
            .await?
            .map_err(|e| self.fault(ask.what, url, &e))
    }

    /// The token, unless it would travel in the clear to another machine.
    fn token(&self) -> Option<&str> {
        let safe = self.endpoint.scheme() == "https" || is_loopback(&self.endpoint);
        self.settings
            .hf_token
            .as_ref()
            .filter(|_| safe)
            .map(Token::reveal)
    }

    /// Whether a URL may be asked at all.
    fn allowed(&self, url: &Url) -> Result<(), String> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a redirect to a URL with a password was refused".into());
        }
        let plain_ok = is_loopback(url) || same_origin(url, &self.endpoint);
        match url.scheme() {
            "https" => Ok(()),
            "http" if plain_ok => Ok(()),
            "http" => Err(format!(
                "http://{} is not encrypted: only https is fetched",
                url.host_str().unwrap_or_default()
            )),
            other => Err(format!("{other}: is no scheme to fetch from")),
        }
    }

    /// What an error of the client means.
    pub(crate) fn fault(&self, what: &str, url: &Url, error: &reqwest::Error) -> Fault {
        let host = url.host_str().unwrap_or_default();
        if let Some(why) = self.no_roots.as_ref().filter(|_| url.scheme() == "https") {
            return Fault::Final(Error::Network {
                what: what.to_owned(),
                why: format!(
                    "this machine has no trusted certificates, so {host} cannot be trusted ({why}); \
                     install the ca-certificates package or set SSL_CERT_FILE"
                ),
            });
        }
        let why = match (error.is_connect(), error.is_timeout()) {
            (true, true) => format!(
                "no connection to {host} within {} s",
                self.settings.connect_timeout.as_secs_f32()
            ),
            (true, false) => format!("no connection to {host}: {}", plain(error)),
            (false, true) => format!(
                "{host} sent nothing for {} s",
                self.settings.read_timeout.as_secs_f32()
            ),
            (false, false) => format!("{host}: {}", plain(error)),
        };
        Fault::Again {
            why,
            after: None,
            connect: error.is_connect(),
        }
    }

    /// What a status that is not success means.
    pub(crate) fn judge(&self, what: &str, answer: &Answer) -> Fault {
        let status = answer.response.status();
        let headers = answer.response.headers();
        let what = what.to_owned();
        let code = text(headers, "x-error-code");
        let said = text(headers, "x-error-message").unwrap_or_default();
        // For a repository that does not exist, the hub answers 401 to those without a token.
        let absent = code.is_some_and(|code| code.ends_with("NotFound"));
        match status.as_u16() {
            404 | 410 => Fault::Final(Error::RemoteNotFound {
                what,
                why: describe("not found", code, said),
            }),
            401 | 403 if absent => Fault::Final(Error::RemoteNotFound {
                what,
                why: describe("not found, or private", code, said),
            }),
            401 | 403 if code == Some("GatedRepo") => Fault::Final(Error::Gated {
                page: self.page(answer.response.url()),
                what,
                status: status.as_u16(),
                with_token: answer.with_token,
            }),
            // Elsewhere it is a signed link that has run out: the first URL gives a new one.
            401 | 403 if answer.at_home => Fault::Final(Error::Denied {
                what,
                status: status.as_u16(),
                with_token: answer.with_token,
            }),
            401 | 403 | 408 | 425 | 429 | 500..=599 => Fault::Again {
                why: match status.as_u16() {
                    429 => "too many requests (HTTP 429)".into(),
                    _ => format!("the server answered HTTP {status}"),
                },
                after: number(headers, "retry-after").map(Duration::from_secs),
                connect: false,
            },
            _ => Fault::Final(Error::Remote {
                what,
                why: describe(&format!("the server answered HTTP {status}"), code, said),
            }),
        }
    }

    /// The page of the repository that a URL of the endpoint is about.
    fn page(&self, url: &Url) -> String {
        let path = url.path().trim_start_matches(self.endpoint.path());
        let path = path.trim_start_matches('/');
        let path = path.strip_prefix("api/models/").unwrap_or(path);
        let repo: Vec<&str> = path.split('/').take(2).collect();
        let endpoint = self.endpoint.as_str().trim_end_matches('/');
        format!("{endpoint}/{}", repo.join("/"))
    }

    /// GETs a JSON document, trying again where that may help. Returns its headers too.
    pub(crate) fn json(
        &self,
        url: &str,
        what: &str,
        progress: &mut dyn Progress,
    ) -> Result<(Value, HeaderMap), Error> {
        let ask = Ask {
            method: Method::GET,
            url,
            what,
            headers: vec![(header::ACCEPT, "application/json".into())],
        };
        let mut patience = self.patience();
        self.block_on(async {
            loop {
                match self.json_once(&ask, progress).await {
                    Ok(found) => return Ok(found),
                    Err(fault) => patience.wait(fault, false, what, progress).await?,
                }
            }
        })
    }

    async fn json_once(
        &self,
        ask: &Ask<'_>,
        progress: &mut dyn Progress,
    ) -> Result<(Value, HeaderMap), Fault> {
        let mut answer = self.send(ask, progress).await?;
        if answer.response.status() != StatusCode::OK {
            return Err(self.judge(ask.what, &answer));
        }
        let url = answer.response.url().clone();
        let mut body = Vec::new();
        while let Some(chunk) = patiently(answer.response.chunk(), progress)
            .await?
            .map_err(|e| self.fault(ask.what, &url, &e))?
        {
            if body.len() + chunk.len() > JSON_MAX {
                return Err(Fault::Final(Error::Remote {
                    what: ask.what.to_owned(),
                    why: format!("its answer is larger than {JSON_MAX} bytes"),
                }));
            }
            body.extend_from_slice(&chunk);
        }
        let value = serde_json::from_slice(&body).map_err(|e| Error::Remote {
            what: ask.what.to_owned(),
            why: format!("{} answered no JSON: {e}", without_query(ask.url)),
        })?;
        Ok((value, answer.response.headers().clone()))
    }
}

/// TLS by rustls with the ring provider and the system's certificates; without any, a
/// configuration that trusts nobody, and the reason.
pub(crate) fn tls() -> Result<(rustls::ClientConfig, Option<String>), rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    Ok(match rustls_platform_verifier::Verifier::new(provider) {
        Ok(verifier) => {
            let config = builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_no_client_auth();
            (config, None)
        }
        Err(e) => {
            let config = builder
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            (config, Some(e.to_string()))
        }
    })
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Whether a redirect would leave encryption behind, be it for a loopback host.
fn is_downgrade(from: &Url, to: &Url) -> bool {
    from.scheme() == "https" && to.scheme() != "https"
}

fn same_origin(a: &Url, b: &Url) -> bool {
    a.origin() == b.origin()
}

/// Whether the host is this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        None => false,
        Some("localhost") => true,
        Some(host) => host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback()),
    }
}

/// A header as text.
pub(crate) fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// A header as a number.
pub(crate) fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.trim().parse().ok()
}

fn linked_hash(headers: &HeaderMap) -> Option<String> {
    let etag = text(headers, "x-linked-etag")?;
    let hash = etag
        .trim_start_matches("W/")
        .trim_matches('"')
        .to_ascii_lowercase();
    is_sha256(&hash).then_some(hash)
}

/// A message with what the server added, cut to a line.
fn describe(base: &str, code: Option<&str>, said: &str) -> String {
    const SAID_MAX: usize = 200;
    let said = &said[..said.floor_char_boundary(SAID_MAX)];
    match (code, said) {
        (_, said) if !said.is_empty() => format!("{base} ({said})"),
        (Some(code), _) => format!("{base} ({})", &code[..code.floor_char_boundary(SAID_MAX)]),
        _ => base.to_owned(),
    }
}

/// The innermost cause of a client error, without the URL: its query may be a secret.
fn plain(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    if std::ptr::addr_eq(cause, error) {
        return if error.is_builder() {
            "the request cannot be built"
        } else {
            "the request failed"
        }
        .to_owned();
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn plain_http_is_for_loopback_and_the_endpoint() {
        let mut settings = Settings::new("x");
        settings.hf_endpoint = "http://mirror.example:8080/hf".into();
        settings.hf_token = Some("secret".into());
        let http = Http::new(&settings).unwrap();
        for good in [
            "https://example.org/x",
            "http://localhost:1/x",
            "http://127.0.0.1:1/x",
            "http://[::1]:1/x",
            "http://mirror.example:8080/other",
        ] {
            assert_eq!(http.allowed(&url(good)), Ok(()), "{good}");
        }
        for bad in [
            "http://example.org/x",
            "http://mirror.example/x",
            "http://localhost.example/x",
            "http://127.0.0.1.example/x",
            "ftp://example.org/x",
            "file:///etc/passwd",
            "https://user:pass@example.org/x",
        ] {
            assert!(http.allowed(&url(bad)).is_err(), "{bad}");
        }
        // Not in the clear to another machine.
        assert_eq!(http.token(), None);
    }

    #[test]
    fn a_redirect_never_leaves_https() {
        for (from, to, downgrade) in [
            ("https://a/", "http://a/", true),
            ("https://a/", "http://127.0.0.1/", true),
            ("https://a/", "https://b/", false),
            ("http://127.0.0.1/", "http://127.0.0.1/", false),
            ("http://127.0.0.1/", "https://a/", false),
        ] {
            assert_eq!(is_downgrade(&url(from), &url(to)), downgrade, "{from} {to}");
        }
    }

    #[test]
    fn linked_etags() {
        let hash = "a".repeat(64);
        let headers = |value: &str| {
            let mut map = HeaderMap::new();
            map.insert("x-linked-etag", HeaderValue::from_str(value).unwrap());
            map
        };
        assert_eq!(
            linked_hash(&headers(&format!("\"{hash}\""))),
            Some(hash.clone())
        );
        assert_eq!(linked_hash(&headers(&format!("W/\"{hash}\""))), Some(hash));
        assert_eq!(
            linked_hash(&headers("\"0123456789012345678901234567890123456789\"")),
            None
        );
    }
}
