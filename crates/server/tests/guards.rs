//! What is refused before any work: hosts, origins, bodies, paths, methods.

mod common;

use axum::Extension;
use axum::routing::MethodFilter;
use common::{Server, bearer, logged};
use serde_json::{Value, json};
use server::{Access, ApiError, Json, Principal, Scope, Settings, route, routes};

async fn echo(Extension(who): Extension<Principal>, Json(value): Json<Value>) -> axum::Json<Value> {
    axum::Json(json!({ "key": *who.key, "value": value }))
}

async fn panics() -> Result<(), ApiError> {
    panic!("on purpose")
}

fn server(settings: Settings, keys: &str) -> Server {
    let settings = Settings {
        api_keys: server::parse_file(keys, 0).expect("good keys"),
        ..settings
    };
    let mut all = routes();
    let needs = Access::Needs(Scope::Inference);
    all.push(route(
        MethodFilter::POST,
        "/echo",
        needs,
        "Says it again",
        echo,
    ));
    all.push(route(MethodFilter::GET, "/panic", needs, "Panics", panics));
    Server::start(settings, all)
}

const JSON: &str = "Content-Type: application/json";
const KEY: &str = "0123456789abcdef";

#[test]
fn keys_and_scopes() {
    let keys = format!("{KEY} me\nfedcba9876543210 scraper metrics\n");
    let server = server(Settings::default(), &keys);
    assert_eq!(server.get("/health", "").status, 200);
    assert_eq!(server.get("/ready", "").status, 200);
    for path in ["/", "/metrics", "/echo", "/nothing"] {
        for key in ["", "fedcba987654321", "0123456789abcdeF"] {
            let answer = server.get(path, key);
            answer.refused(401, "invalid_api_key");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    server
        .get("/metrics", KEY)
        .refused(403, "insufficient_scope");
    assert_eq!(server.get("/metrics", "fedcba9876543210").status, 200);
    let said = server
        .ask("POST /echo", &[JSON, "X-Api-Key: 0123456789abcdef"], "[1]")
        .json();
    assert_eq!(said["value"], json!([1]));
    assert!(said["key"].as_str().unwrap().starts_with("key-"));
    server
        .ask("POST /echo", &[JSON, bearer("fedcba9876543210")[0]], "[1]")
        .refused(403, "insufficient_scope");
}

#[test]
fn without_keys_all_is_open_but_admin() {
    let server = server(Settings::default(), "");
    assert_eq!(server.get("/", "").status, 200);
    assert_eq!(server.get("/metrics", "anything at all").status, 200);
    let said = server.ask("POST /echo", &[JSON], "{}").json();
    assert_eq!(said["key"], "local");
}

#[test]
fn paths_and_methods() {
    let server = server(Settings::default(), "");
    server.get("/nothing/here", "").refused(404, "unknown_url");
    server
        .ask("DELETE /nothing", &[], "")
        .refused(404, "unknown_url");
    let answer = server.ask("DELETE /health", &[], "");
    answer.refused(405, "method_not_allowed");
    assert!(
        answer
            .header("allow")
            .is_some_and(|allow| allow.contains("GET")),
        "{answer:?}"
    );
    server.get("/echo", "").refused(405, "method_not_allowed");
}

#[test]
fn hosts_and_origins() {
    let settings = Settings {
        allowed_hosts: vec!["puna.example".into()],
        allowed_origins: vec!["https://chat.example".into()],
        ..Settings::default()
    };
    let server = server(settings, "");
    for host in ["evil.example", "localhost.evil.example", ""] {
        server
            .ask("GET /health", &[&format!("Host: {host}")], "")
            .refused(403, "host_not_allowed");
    }
    assert_eq!(
        server
            .ask("GET /health", &["Host: puna.example:1"], "")
            .status,
        200
    );
    for origin in ["http://evil.example", "null", "http://localhost:1"] {
        let answer = server.ask("GET /health", &[&format!("Origin: {origin}")], "");
        answer.refused(403, "origin_not_allowed");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let own = format!("Origin: http://{}", server.address);
    let answer = server.ask("GET /health", &[&own], "");
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (200, None)
    );
    let answer = server.ask("GET /health", &["Origin: https://chat.example"], "");
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://chat.example")
    );
    assert_eq!(answer.header("access-control-allow-credentials"), None);
    let asks = [
        "Origin: https://chat.example",
        "Access-Control-Request-Method: POST",
    ];
    let answer = server.ask("OPTIONS /echo", &asks, "");
    assert_eq!(answer.status, 204);
    assert!(
        answer
            .header("access-control-allow-headers")
            .unwrap()
            .contains("authorization")
    );
}

#[test]
fn bodies() {
    let settings = Settings {
        max_body: 1000,
        body_timeout: std::time::Duration::from_millis(300),
        ..Settings::default()
    };
    let server = server(settings, "");
    for media in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
    ] {
        let answer = server.ask("POST /echo", &[&format!("Content-Type: {media}")], "{}");
        answer.refused(415, "unsupported_media_type");
    }
    server
        .ask("POST /echo", &[], "{}")
        .refused(415, "unsupported_media_type");
    assert_eq!(
        server
            .ask(
                "POST /echo",
                &["Content-Type: Application/JSON; charset=utf-8"],
                "{}"
            )
            .status,
        200
    );
    server
        .ask("POST /echo", &[JSON], &" ".repeat(1001))
        .refused(413, "request_too_large");
    server
        .ask("POST /echo", &[JSON], "{")
        .refused(400, "invalid_request");
    server
        .ask("POST /echo", &[JSON], &"[".repeat(999))
        .refused(400, "invalid_request");
    // Longer than it says, in chunks; and one that never comes.
    let chunk = format!("{:x}\r\n{}\r\n", 600, "1".repeat(600));
    let head = "POST /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    let sent = format!("{head}{JSON}\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n");
    common::Answer::of(&server.raw(sent.as_bytes())).refused(413, "request_too_large");
    let sent = format!("{head}{JSON}\r\nContent-Length: 5\r\n\r\n{{");
    common::Answer::of(&server.raw(sent.as_bytes())).refused(408, "request_timeout");
}

#[test]
fn a_panic_is_one_500() {
    let (settings, log) = logged();
    let server = server(settings, "");
    let answer = server.get("/panic", "");
    answer.refused(500, "internal_error");
    assert!(!answer.body.contains("purpose"));
    assert_eq!(server.get("/health", "").status, 200);
    let log = log.lock().unwrap().join("\n");
    assert!(log.contains("\"status\":500"), "{log}");
}

#[test]
fn ids_and_the_log() {
    let (settings, log) = logged();
    let server = server(settings, "");
    let answer = server.ask("GET /health", &["X-Request-Id: mine-1"], "");
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    let answer = server.ask("GET /se%0acret?key=1", &["X-Request-Id: a b\"}"], "");
    assert!(answer.header("x-request-id").unwrap().starts_with("req-"));
    let lines = log.lock().unwrap().clone();
    assert_eq!(lines.len(), 2);
    let first: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(
        (&first["id"], &first["route"], &first["status"]),
        (&json!("mine-1"), &json!("/health"), &json!(200))
    );
    assert!(lines[1].contains("\"route\":\"other\"") && !lines[1].contains("cret"));
}

#[test]
fn no_more_than_there_is_room_for() {
    let settings = Settings {
        max_requests: 0,
        ..Settings::default()
    };
    let server = server(settings, "");
    let answer = server.ask("POST /echo", &[JSON], "{}");
    answer.refused(503, "overloaded");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(server.get("/health", "").status, 200);
    server.state.set_ready(false);
    server.get("/ready", "").refused(503, "not_ready");
}

#[test]
fn pages_that_may_call_read_refusals_and_headers() {
    let settings = Settings {
        max_body: 1000,
        allowed_origins: vec!["https://chat.example".into()],
        ..Settings::default()
    };
    let server = server(settings, "");
    let origin = "Origin: https://chat.example";
    let allowed = |answer: &common::Answer| {
        let of = |name: &str| answer.header(name).map(str::to_owned);
        let told = of("access-control-allow-origin");
        assert_eq!(told.as_deref(), Some("https://chat.example"), "{answer:?}");
        assert_eq!(of("vary").as_deref(), Some("origin"));
        let exposed = of("access-control-expose-headers").unwrap();
        for name in ["x-request-id", "retry-after", "x-ratelimit-reset-tokens"] {
            assert!(exposed.split(", ").any(|e| e == name), "{exposed}");
        }
    };
    let good = server.ask("POST /echo", &[JSON, origin], "{}");
    assert_eq!(good.status, 200);
    allowed(&good);
    let large = server.ask("POST /echo", &[JSON, origin], &" ".repeat(1001));
    large.refused(413, "request_too_large");
    allowed(&large);
    let media = server.ask("POST /echo", &["Content-Type: text/plain", origin], "{}");
    media.refused(415, "unsupported_media_type");
    allowed(&media);
    // Neither a foreign page nor a name that is none of ours is told anything.
    for headers in [
        [JSON, "Origin: https://evil.example", "X: y"],
        [JSON, origin, "Host: evil.example"],
    ] {
        let answer = server.ask("POST /echo", &headers, "{}");
        assert_eq!(answer.status, 403);
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
}
