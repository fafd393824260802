//! The plain routes: health, readiness, metrics, the first page.

use axum::extract::State as With;
use axum::http::header;
use axum::response::{Html, IntoResponse};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::metrics::CONTENT_TYPE;
use crate::state::State;

pub(crate) async fn health() -> axum::Json<Value> {
    axum::Json(json!({ "status": "ok" }))
}

pub(crate) async fn ready(With(state): With<State>) -> Result<axum::Json<Value>, ApiError> {
    match state.unready() {
        Some(error) => Err(error),
        None => Ok(axum::Json(json!({ "status": "ready" }))),
    }
}

pub(crate) async fn metrics(With(state): With<State>) -> impl IntoResponse {
    state.gauge();
    (
        [(header::CONTENT_TYPE, CONTENT_TYPE)],
        state.metrics().text(),
    )
}

pub(crate) async fn index(With(state): With<State>) -> impl IntoResponse {
    let models: Vec<String> = state
        .models()
        .iter()
        .map(|m| format!("<li>{}</li>", escape(m)))
        .collect();
    let models = match models.is_empty() {
        true => "<p>No models.</p>".to_owned(),
        false => format!("<ul>{}</ul>", models.concat()),
    };
    page(
        "Puna",
        &format!(
            "<p>Version {}</p><h2>Models</h2>{models}<h2>See</h2><ul>\
         <li><a href=\"/health\">/health</a></li><li><a href=\"/ready\">/ready</a></li>\
         <li><a href=\"/metrics\">/metrics</a></li><li><a href=\"/docs\">/docs</a></li>\
         <li><a href=\"/openapi.json\">/openapi.json</a></li></ul>",
            env!("CARGO_PKG_VERSION"),
        ),
    )
}

/// A page that loads nothing and runs nothing.
pub(crate) fn page(title: &str, body: &str) -> impl IntoResponse + use<> {
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <style>body{{font-family:sans-serif;max-width:50em;margin:2em auto;padding:0 1em}}\
         td,th{{text-align:left;padding:.2em 1em .2em 0;vertical-align:top}}</style><h1>{title}</h1>{body}</html>\n"
    );
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(html))
}

/// Text in HTML.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}
