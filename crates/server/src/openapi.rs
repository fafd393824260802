//! The OpenAPI document and its page, both made of the table of routes.

mod types;

use axum::http::Method;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::api;
use crate::auth::Access;
use crate::error::KINDS;
use crate::metrics;
use crate::pages::{escape, page};
use crate::principal::Scope;
use crate::router::{Route, routes};

/// (path, parameter, type, what it says): the parameters in queries.
const PARAMETERS: [(&str, &str, &str, &str); 8] = [
    (
        "/admin/usage",
        "from",
        "string",
        "YYYY-MM-DD or RFC 3339; default: the month's first day (UTC)",
    ),
    (
        "/admin/usage",
        "to",
        "string",
        "The end, which is not in it; default: now",
    ),
    ("/admin/usage", "format", "string", "json (default) or csv"),
    (
        "/admin/audit",
        "after",
        "integer",
        "Rows after this number; default: 0",
    ),
    (
        "/admin/audit",
        "limit",
        "integer",
        "Rows at most; default and most: 1000",
    ),
    (
        "/admin/audit/verify",
        "head",
        "string",
        "A hash that was noted earlier and must be in the log",
    ),
    (
        "/v1/adapters/{id}",
        "model",
        "string",
        "Its model, where several have the name",
    ),
    (
        "/lora-adapters",
        "model",
        "string",
        "The model's name; default: the only one, or with --on-demand the first",
    ),
];

/// The routes of any server, and those of models.
#[must_use]
pub fn all() -> Vec<Route> {
    let mut all = routes();
    all.extend(api::api(&api::Served::new(Vec::new(), false)));
    all
}

/// The document, in OpenAPI 3.1.
#[must_use]
pub fn document() -> Value {
    let mut paths = json!({});
    for route in all() {
        let method = route.method.as_str().to_ascii_lowercase();
        paths[route.path][method] = operation(&route);
    }
    let codes: Vec<&str> = KINDS.iter().map(|(_, _, _, code)| *code).collect();
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Puna", "version": env!("CARGO_PKG_VERSION"), "license": { "name": "MIT OR Apache-2.0" } },
        "paths": paths,
        "components": {
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
            "responses": { "Error": {
                "description": "The request was refused or failed",
                "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } },
            } },
            "schemas": { "Error": {
                "type": "object",
                "required": ["error"],
                "properties": { "error": {
                    "type": "object",
                    "required": ["message", "type", "param", "code"],
                    "properties": {
                        "message": { "type": "string" },
                        "type": { "type": "string" },
                        "param": { "type": ["string", "null"] },
                        "code": { "type": "string", "examples": codes },
                    },
                } },
            } },
        },
    })
}

fn operation(route: &Route) -> Value {
    let query = PARAMETERS.iter().filter(|(path, ..)| *path == route.path);
    let query = query.map(|(_, name, ty, about)| {
        json!({ "name": name, "in": "query", "description": about, "schema": { "type": ty } })
    });
    let inside = route
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let inside = inside.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    let parameters: Vec<Value> = inside.chain(query).collect();
    let security = match route.access {
        Access::Anyone => json!([]),
        Access::Known => json!([{ "key": [] }]),
        Access::Needs(scope) => json!([{ "key": [scope.name()] }]),
    };
    let mut content = json!({});
    for media in media(route) {
        content[media] = json!({});
    }
    let refused = || json!({ "$ref": "#/components/responses/Error" });
    let mut responses = json!({ "200": { "description": "Done", "content": content } });
    for status in refusals(route) {
        responses[status.to_string()] = refused();
    }
    responses["default"] = refused();
    let mut operation = json!({
        "summary": route.about,
        "parameters": parameters,
        "security": security,
        "responses": responses,
    });
    if route.method == Method::POST {
        let schema = types::body(route.path, &api::fields(route.path));
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    operation
}

/// The types of content that a route answers with.
fn media(route: &Route) -> Vec<&'static str> {
    const JSON: &str = "application/json";
    let streams = || api::fields(route.path).iter().any(|f| f.0 == "stream");
    match route.path {
        "/" | "/docs" => vec!["text/html"],
        "/metrics" => metrics::CONTENT_TYPE.split(';').take(1).collect(),
        "/admin/usage" => vec![JSON, "text/csv"],
        _ if streams() => vec![JSON, "text/event-stream"],
        _ => vec![JSON],
    }
}

/// The statuses that a route refuses with, beside those of bugs.
fn refusals(route: &Route) -> Vec<u16> {
    let posts = route.method == Method::POST;
    let inference = route.access == Access::Needs(Scope::Inference);
    let fields = if posts {
        api::fields(route.path)
    } else {
        Vec::new()
    };
    // A list loads no model, so it knows none that is missing.
    let query = PARAMETERS
        .iter()
        .any(|p| (p.0, p.1) == (route.path, "model"))
        && posts;
    let names = query || route.path.contains('{') || fields.iter().any(|f| f.0 == "model");
    let can = [
        // Hosts and origins that make no sense or are not allowed.
        (400, true),
        (401, route.access != Access::Anyone),
        (403, true),
        (404, names),
        (408, !fields.is_empty()),
        (413, posts),
        (415, posts),
        (429, inference),
        (503, route.path != "/health"),
    ];
    let can = can.into_iter().filter(|(_, can)| *can);
    can.map(|(status, _)| status).collect()
}

pub(crate) async fn serve() -> axum::Json<Value> {
    axum::Json(document())
}

/// A page that needs no script.
pub(crate) async fn docs() -> impl IntoResponse {
    let mut rows = String::new();
    for route in all() {
        let needs = match route.access {
            Access::Anyone => "nothing",
            Access::Known => "a key",
            Access::Needs(scope) => scope.name(),
        };
        let words = [route.method.as_str(), route.path, needs, route.about];
        let cells: Vec<String> = words
            .iter()
            .map(|w| format!("<td>{}</td>", escape(w)))
            .collect();
        rows.push_str(&format!("<tr>{}</tr>", cells.concat()));
    }
    let body = format!(
        "<p>Send <code>Authorization: Bearer KEY</code> where keys are needed; bodies are JSON. \
         The same for programs: <a href=\"/openapi.json\">/openapi.json</a>.</p>\
         <table><tr><th>method</th><th>path</th><th>needs</th><th>what</th></tr>{rows}</table>"
    );
    page("Puna: routes", &body)
}
