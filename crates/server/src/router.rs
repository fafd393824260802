//! The routes, in one table, and the layers around them.
//!
//! From the outside in: [`crate::request::track`] (id, log, metrics, audit), panics become 500,
//! [`crate::guard::guard`] (host, origin, type and size of the body), then around each route
//! [`crate::auth::admit`] (key, scope, quotas, room), then the handler. A path or method that does
//! not exist is refused behind the same layers.

use axum::Router;
use axum::extract::{Request, State as With};
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use tower_http::catch_panic::CatchPanicLayer;

use crate::auth::{Access, admit, admitted};
use crate::error::{ApiError, Kind};
use crate::principal::Scope;
use crate::state::State;
use crate::{admin, guard, openapi, pages, request};

/// A route.
pub struct Route {
    /// GET, POST or DELETE.
    pub method: Method,
    /// As axum writes it: `/v1/models/{model}`.
    pub path: &'static str,
    /// What it needs.
    pub access: Access,
    /// One line for people.
    pub about: &'static str,
    handler: MethodRouter<State>,
}

/// A route and what answers it.
pub fn route<H, T>(
    method: MethodFilter,
    path: &'static str,
    access: Access,
    about: &'static str,
    handler: H,
) -> Route
where
    H: Handler<T, State>,
    T: 'static,
{
    let name = match method {
        MethodFilter::POST => Method::POST,
        MethodFilter::DELETE => Method::DELETE,
        _ => Method::GET,
    };
    Route {
        method: name,
        path,
        access,
        about,
        handler: on(method, handler),
    }
}

/// Every route there is.
#[must_use]
pub fn routes() -> Vec<Route> {
    use Access::{Anyone, Known, Needs};
    const GET: MethodFilter = MethodFilter::GET;
    vec![
        route(GET, "/health", Anyone, "The server runs", pages::health),
        route(
            GET,
            "/ready",
            Anyone,
            "Models are loaded and the state can be written",
            pages::ready,
        ),
        route(
            GET,
            "/",
            Known,
            "A page with version, models and links",
            pages::index,
        ),
        route(GET, "/docs", Known, "The routes, for people", openapi::docs),
        route(
            GET,
            "/openapi.json",
            Known,
            "The routes, for programs",
            openapi::serve,
        ),
        route(
            GET,
            "/metrics",
            Needs(Scope::Metrics),
            "Metrics for Prometheus",
            pages::metrics,
        ),
        route(
            GET,
            "/admin/usage",
            Needs(Scope::Admin),
            "Usage by key and model, for billing",
            admin::usage,
        ),
        route(
            GET,
            "/admin/audit",
            Needs(Scope::Admin),
            "The audit log, page by page",
            admin::audit,
        ),
        route(
            GET,
            "/admin/audit/verify",
            Needs(Scope::Admin),
            "Whether the audit log is as it was written",
            admin::verify,
        ),
    ]
}

/// The whole server as a service.
pub(crate) fn router(state: State, routes: Vec<Route>) -> Router {
    let mut router = Router::new();
    for Route {
        path,
        access,
        handler,
        ..
    } in routes
    {
        let layer = from_fn_with_state((state.clone(), access), admit);
        router = router.route(path, handler.layer(layer));
    }
    router
        .fallback(wrong_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(state.clone(), guard::guard))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(state.clone(), request::track))
        .with_state(state)
}

// Which paths there are is for those who may ask.
async fn wrong_path(With(state): With<State>, request: Request) -> ApiError {
    let what = format!("there is no {} {}", request.method(), request.uri().path());
    let known = admitted(&state, Access::Known, request).await;
    known
        .err()
        .unwrap_or_else(|| ApiError::new(Kind::Path, what))
}

async fn wrong_method(With(state): With<State>, request: Request) -> ApiError {
    let what = format!(
        "{} does not take {}",
        request.uri().path(),
        request.method()
    );
    let known = admitted(&state, Access::Known, request).await;
    known
        .err()
        .unwrap_or_else(|| ApiError::new(Kind::Method, what))
}

/// What a handler's panic says stays in the log.
fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let said = panic.downcast_ref::<String>().map(String::as_str);
    let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!("a handler panicked: {}", said.unwrap_or("without a word"));
    ApiError::new(Kind::Internal, "the server met a bug; its log says more").into_response()
}
