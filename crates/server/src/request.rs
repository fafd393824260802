//! One request from its arrival to the last byte of its answer: its id, its line in the access log,
//! its metrics, and what is written about it when it has ended, however it ends.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State as With};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use serde_json::json;

use crate::api::Lease;
use crate::audit::Event;
use crate::error::Code;
use crate::journal::Place;
use crate::metrics::Metric;
use crate::quota::Left;
use crate::spans::{self, Parent, Span, Unrecorded};
use crate::state::State;

/// The header that carries a request's id, in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The status in log and audit of a client that left before there was an answer.
const LEFT: u16 = 499;

/// What is known of a request; handlers reach it through their `Principal`.
#[derive(Debug)]
pub struct Tracked {
    /// The client's own id if it sent a fit one, else a random one.
    pub id: String,
    /// When it came, in milliseconds since 1970 (UTC).
    pub at: u64,
    pub(crate) route: String,
    pub(crate) notes: Mutex<Notes>,
}

/// What is learnt of a request on its way.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) key: String,
    pub(crate) model: String,
    pub(crate) adapter: String,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) content: Option<String>,
    /// Whether it counts as an answer of a model.
    pub(crate) billed: bool,
    pub(crate) ended: bool,
    /// What its key has left.
    pub(crate) left: Vec<Left>,
    /// Its place in the journal; gone when it has ended.
    pub(crate) place: Option<Place>,
    /// Its place among those that are answered.
    pub(crate) room: Option<tokio::sync::OwnedSemaphorePermit>,
    /// The model that it uses.
    pub(crate) lease: Option<Lease>,
}

impl Tracked {
    /// Its notes. A thread that died while it held them left them whole.
    pub(crate) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is written down of it.
    pub(crate) fn event(&self, notes: &Notes, status: u16) -> Event {
        Event {
            at: self.at,
            request: self.id.clone(),
            key: notes.key.clone(),
            route: self.route.clone(),
            model: notes.model.clone(),
            adapter: notes.adapter.clone(),
            prompt_tokens: notes.prompt_tokens,
            completion_tokens: notes.completion_tokens,
            status,
            content: None,
            billed: notes.billed,
            counted: notes.billed && status < 400,
        }
    }
}

/// A client's id is taken if it can stand in a log: up to 64 letters, digits, `.`, `_`, `-`.
fn id_of(headers: &HeaderMap) -> String {
    let fit = |id: &&str| {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        (1..=64).contains(&id.len()) && id.bytes().all(good)
    };
    let own = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    match own.filter(fit) {
        Some(id) => id.to_owned(),
        None => format!("req-{}", crate::random_hex::<12>()),
    }
}

/// The outermost middleware.
pub(crate) async fn track(With(state): With<State>, mut request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    // A path that is none of ours may be anything: it is not repeated.
    let route = path.map_or("other", MatchedPath::as_str).to_owned();
    let tracked = Arc::new(Tracked {
        id: id_of(request.headers()),
        at: state.clock().now(),
        route,
        notes: Mutex::default(),
    });
    state.metrics().shift(Metric::HttpInFlight, &[], 1);
    let parent = spans::parent(request.headers());
    let mut end = End {
        state,
        tracked: tracked.clone(),
        method: request.method().to_string(),
        began: Instant::now(),
        status: LEFT,
        code: None,
        parent,
    };
    request.extensions_mut().insert(tracked.clone());
    let mut answer = next.run(request).await;
    end.status = answer.status().as_u16();
    if let Some(Code(code)) = answer.extensions().get() {
        end.state.metrics().add(Metric::HttpErrors, &[code], 1);
        end.code = Some(code);
    }
    if let Ok(id) = HeaderValue::from_str(&tracked.id) {
        answer.headers_mut().insert(REQUEST_ID, id);
    }
    answer
        .headers_mut()
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    answer.map(|body| Body::new(Tail { body, _end: end }))
}

/// The answer's body, which takes the end of the request with it. The body is dropped first: a
/// stream that is cut counts its tokens before they are written down.
struct Tail {
    body: Body,
    _end: End,
}

impl HttpBody for Tail {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Writes down what became of a request when it is dropped.
struct End {
    state: State,
    tracked: Arc<Tracked>,
    method: String,
    began: Instant,
    status: u16,
    code: Option<&'static str>,
    parent: Result<Option<Parent>, Unrecorded>,
}

/// A method as a label: any word may be one, and each label is kept.
fn known(method: &str) -> &str {
    const KNOWN: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
    KNOWN.into_iter().find(|m| *m == method).unwrap_or("other")
}

impl Drop for End {
    fn drop(&mut self) {
        let (metrics, route) = (self.state.metrics(), &*self.tracked.route);
        let seconds = self.began.elapsed().as_secs_f64();
        metrics.shift(Metric::HttpInFlight, &[], -1);
        metrics.observe(Metric::HttpDuration, &[route], seconds);
        metrics.add(
            Metric::HttpRequests,
            &[route, known(&self.method), &self.status.to_string()],
            1,
        );
        let notes = self.tracked.notes();
        if let Some(log) = &self.state.settings().access_log {
            let line = json!({
                "at": crate::time::text(self.tracked.at),
                "id": self.tracked.id,
                "key": notes.key,
                "method": known(&self.method),
                "route": route,
                "status": self.status,
                "seconds": (seconds * 1e6).round() / 1e6,
                "model": notes.model,
                "prompt_tokens": notes.prompt_tokens,
                "completion_tokens": notes.completion_tokens,
            });
            log(&line.to_string());
        }
        if let (Some(spans), Ok(parent)) = (self.state.spans(), &self.parent) {
            spans.put(Span {
                parent: parent.clone(),
                id: self.tracked.id.clone(),
                method: known(&self.method).to_owned(),
                route: route.to_owned(),
                status: self.status,
                code: self.code,
                at: self.tracked.at,
                took: self.began.elapsed(),
                model: notes.model.clone(),
                prompt_tokens: notes.prompt_tokens,
                completion_tokens: notes.completion_tokens,
            });
        }
        drop(notes);
        self.state.ended(&self.tracked, self.status);
    }
}

/// A whole body, in the time that a body has.
pub(crate) async fn whole(body: Body, state: &State) -> Result<Bytes, crate::ApiError> {
    use crate::error::{ApiError, Kind};
    let settings = state.settings();
    let limited = http_body_util::Limited::new(body, settings.max_body);
    match tokio::time::timeout(settings.body_timeout, limited.collect()).await {
        Ok(Ok(all)) => Ok(all.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(crate::guard::too_large(settings.max_body))
        }
        Ok(Err(_)) => Err(ApiError::new(Kind::Invalid, "the body broke off")),
        Err(_) => Err(ApiError::new(Kind::Slow, "the body did not arrive in time")),
    }
}
