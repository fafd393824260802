//! Keys, quotas, usage, audit and metrics as clients meet them.

mod common;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State as With;
use axum::response::Response;
use axum::routing::MethodFilter;
use common::{Answer, Server, bearer, logged};
use serde_json::Value;
use server::{
    Access, Clock, Event, Json, Metric, NewKey, Principal, Quotas, Scope, Settings, State, route,
    routes,
};

/// Answers with as many tokens as asked for.
async fn chat(
    With(state): With<State>,
    Extension(who): Extension<Principal>,
    Json(body): Json<Value>,
) -> Result<String, server::ApiError> {
    let tokens = body["tokens"].as_u64().unwrap_or(0);
    let _held = state.hold(&who, 10, 10)?;
    state.keep_content(&who, || body.to_string());
    state.account(&who, "m", "", 10, tokens, None);
    Ok("said".into())
}

/// Ten pieces, a little time between them; counted as they are made.
async fn stream(With(state): With<State>, Extension(who): Extension<Principal>) -> Response {
    struct Pieces(u8, State, Principal, std::pin::Pin<Box<tokio::time::Sleep>>);
    impl hyper::body::Body for Pieces {
        type Data = Bytes;
        type Error = std::convert::Infallible;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
            use std::task::Poll;
            if self.0 == 10 {
                return Poll::Ready(None);
            }
            std::task::ready!(std::future::Future::poll(self.3.as_mut(), context));
            self.3 = Box::pin(tokio::time::sleep(Duration::from_millis(50)));
            self.0 += 1;
            self.1.account(&self.2, "m", "a", 0, 1, None);
            Poll::Ready(Some(Ok(hyper::body::Frame::data(Bytes::from(format!(
                "piece {}\n",
                self.0
            ))))))
        }
    }
    let soon = Box::pin(tokio::time::sleep(Duration::from_millis(50)));
    Response::new(Body::new(Pieces(0, state, who, soon)))
}

fn start(settings: Settings) -> Server {
    let mut all = routes();
    let needs = Access::Needs(Scope::Inference);
    all.push(route(MethodFilter::POST, "/chat", needs, "Answers", chat));
    all.push(route(
        MethodFilter::GET,
        "/stream",
        needs,
        "Streams",
        stream,
    ));
    Server::start(settings, all)
}

fn new_key(server: &Server, name: &str, scopes: &str, quotas: Quotas) -> String {
    let new = NewKey {
        name: name.into(),
        scopes: Scope::parse(scopes).unwrap(),
        quotas,
        expires: None,
    };
    let (key, secret) = new.make(1).unwrap();
    server.store().add_key(&key).unwrap();
    secret
}

fn post(server: &Server, key: &str, body: &str) -> Answer {
    let mut headers = bearer(key);
    headers.push("Content-Type: application/json");
    server.ask("POST /chat", &headers, body)
}

/// Waits for what the journal writes.
fn audited(server: &Server, rows: usize) -> Vec<server::Entry> {
    let store = server.store();
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let all = store.audit(0, 1000).unwrap();
        if all.len() >= rows || Instant::now() > until {
            assert_eq!(all.len(), rows, "{all:?}");
            return all;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_key_works_until_it_is_revoked_or_past_its_time() {
    let now = Arc::new(AtomicU64::new(1_000_000));
    let server = start(Settings {
        clock: Clock::Manual(now.clone()),
        api_keys: server::parse_file("0123456789abcdef", 0).unwrap(),
        ..Settings::default()
    });
    let key = new_key(&server, "me", "inference", Quotas::default());
    assert_eq!(
        post(&server, &key, "{}").status,
        200,
        "made while the server runs"
    );
    server.store().revoke_key("me", 2).unwrap();
    post(&server, &key, "{}").refused(401, "invalid_api_key");
    let new = NewKey {
        name: "short".into(),
        scopes: vec![Scope::Inference],
        quotas: Quotas::default(),
        expires: Some(1_000_100),
    };
    let (key, secret) = new.make(1).unwrap();
    server.store().add_key(&key).unwrap();
    assert_eq!(post(&server, &secret, "{}").status, 200);
    now.store(1_000_100, Ordering::SeqCst);
    post(&server, &secret, "{}").refused(401, "invalid_api_key");
}

#[test]
fn quotas_answer_429_and_say_when() {
    let now = Arc::new(AtomicU64::new(
        server::time::parse("t", "2026-01-31T23:59:00Z").unwrap(),
    ));
    let server = start(Settings {
        clock: Clock::Manual(now.clone()),
        api_keys: server::parse_file("0123456789abcdef", 0).unwrap(),
        ..Settings::default()
    });
    let quotas = Quotas {
        rpm: Some(2),
        tpm: Some(600),
        monthly_tokens: Some(1000),
    };
    let key = new_key(&server, "me", "inference", quotas);
    let first = post(&server, &key, "{\"tokens\":90}");
    assert_eq!(first.status, 200);
    for (name, value) in [
        ("x-ratelimit-limit-requests", "2"),
        ("x-ratelimit-remaining-requests", "1"),
        ("x-ratelimit-reset-requests", "30s"),
        ("x-ratelimit-limit-tokens", "600"),
        ("x-ratelimit-remaining-tokens", "500"),
    ] {
        assert_eq!(first.header(name), Some(value), "{first:?}");
    }
    let second = post(&server, &key, "{\"tokens\":690}");
    assert_eq!(second.header("x-ratelimit-remaining-tokens"), Some("0"));
    let third = post(&server, &key, "{}");
    assert_eq!(
        (third.refused(429, "rate_limit_exceeded").json()["error"]["type"]).as_str(),
        Some("tokens")
    );
    assert_eq!(
        third.header("retry-after"),
        Some("21"),
        "201 tokens at 10 a second"
    );
    now.fetch_add(40_000, Ordering::SeqCst);
    assert_eq!(
        post(&server, &key, "{\"tokens\":190}").status,
        200,
        "200 of 1000 were left"
    );
    now.fetch_add(19_000, Ordering::SeqCst);
    let last = post(&server, &key, "{}");
    last.refused(429, "insufficient_quota");
    assert_eq!(last.header("retry-after"), Some("1"), "the month ends");
    now.fetch_add(60_000, Ordering::SeqCst);
    for wanted in [200, 200, 429] {
        assert_eq!(post(&server, &key, "{}").status, wanted);
    }
}

#[test]
fn who_finds_no_room_uses_up_no_quota() {
    let server = start(Settings {
        max_requests: 1,
        api_keys: server::parse_file("0123456789abcdef", 0).unwrap(),
        ..Settings::default()
    });
    let quotas = Quotas {
        rpm: Some(2),
        ..Quotas::default()
    };
    let key = new_key(&server, "me", "inference", quotas);
    let mut stream = server.connect();
    let ask =
        "GET /stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer 0123456789abcdef\r\n\r\n";
    stream.write_all(ask.as_bytes()).unwrap();
    assert!(stream.read(&mut [0; 64]).unwrap() > 0);
    for _ in 0..3 {
        post(&server, &key, "{}").refused(503, "overloaded");
    }
    drop(stream);
    let until = Instant::now() + Duration::from_secs(20);
    while post(&server, "0123456789abcdef", "{}").status != 200 {
        assert!(Instant::now() < until, "the room is not free again");
        std::thread::sleep(Duration::from_millis(20));
    }
    // What the quota refuses gives its room back.
    for wanted in [200, 200, 429, 429] {
        assert_eq!(post(&server, &key, "{}").status, wanted);
    }
    assert_eq!(post(&server, "0123456789abcdef", "{}").status, 200);
}

#[test]
fn usage_and_audit_are_what_happened() {
    let server = start(Settings {
        audit_content: true,
        api_keys: server::parse_file("0123456789abcdef boss admin", 0).unwrap(),
        ..Settings::default()
    });
    let key = new_key(&server, "me", "inference", Quotas::default());
    assert_eq!(post(&server, &key, "{\"tokens\":5}").status, 200);
    assert_eq!(post(&server, &key, "{").status, 400);
    assert_eq!(
        server.get("/stream", &key).body.matches("piece").count(),
        10
    );
    server
        .get("/admin/audit", &key)
        .refused(403, "insufficient_scope");
    server.get("/chat", "").refused(401, "invalid_api_key");
    let rows = audited(&server, 5);
    assert_eq!(rows[0].route, "key create");
    assert!(rows[1..].iter().all(|row| row.key == rows[0].key));
    let seen: Vec<_> = rows[1..]
        .iter()
        .map(|r| (&*r.route, r.status, r.prompt_tokens, r.completion_tokens))
        .collect();
    let wanted = [
        ("/chat", 200, 10, 5),
        ("/chat", 400, 0, 0),
        ("/stream", 200, 0, 10),
        ("/admin/audit", 403, 0, 0),
    ];
    assert_eq!(seen, wanted);
    assert_eq!(rows[1].content.as_deref(), Some("{\"tokens\":5}"));
    assert_eq!((&*rows[3].model, &*rows[3].adapter), ("m", "a"));

    let boss = "0123456789abcdef";
    let usage = server.get("/admin/usage?from=2020-01-01", boss).json();
    assert_eq!(usage["usage"].as_array().unwrap().len(), 2, "{usage}");
    let csv = server.get("/admin/usage?format=csv", boss);
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8"));
    assert!(
        csv.body.contains(",me,m,,1,10,5\r\n") && csv.body.contains(",me,m,a,1,0,10\r\n"),
        "{csv:?}"
    );
    for bad in [
        "from=yesterday",
        "format=xml",
        "frm=2020-01-01",
        "from=2020-01-01&from=2020-01-01",
    ] {
        server
            .get(&format!("/admin/usage?{bad}"), boss)
            .refused(400, "invalid_request");
    }
    let page = server.get("/admin/audit?after=2&limit=2", boss).json();
    assert_eq!(
        (page["rows"][0]["seq"].as_i64(), page["next"].as_i64()),
        (Some(3), Some(4))
    );
    let sound = server.get("/admin/audit/verify", boss).json();
    assert_eq!(sound["ok"], true);
    let lost = server.get("/admin/audit/verify?head=00", boss).json();
    assert_eq!(lost["ok"], false);
}

/// Refused keys are in the audit log, some of them: strangers do not fill it, and what they sent as
/// a key is nowhere.
#[test]
fn refused_keys_are_written_down_within_bounds() {
    let server = start(Settings {
        api_keys: server::parse_file("0123456789abcdef boss admin,inference,metrics", 0).unwrap(),
        ..Settings::default()
    });
    let wrong = "nobodys-secret-0123456789";
    post(&server, "", "{}").refused(401, "invalid_api_key");
    for _ in 0..12 {
        post(&server, wrong, "{}").refused(401, "invalid_api_key");
    }
    for path in ["/", "/metrics", "/nothing", "/admin/audit"] {
        server.get(path, wrong).refused(401, "invalid_api_key");
    }
    let boss = "0123456789abcdef";
    assert_eq!(post(&server, boss, "{\"tokens\":5}").status, 200);
    let rows = audited(&server, 11);
    let (last, refused) = rows.split_last().unwrap();
    assert_eq!((last.status, last.completion_tokens), (200, 5));
    for row in refused {
        assert_eq!((&*row.key, &*row.route), ("refused", "/chat"), "{row:?}");
        assert_eq!((row.status, row.prompt_tokens), (401, 0));
    }
    assert_eq!(server.store().usage(0, u64::MAX).unwrap().len(), 1);
    server.store().verify(None).unwrap();
    let metrics = server.get("/metrics", boss).body;
    assert!(
        metrics.contains("puna_refused_keys_total{} 16\n"),
        "{metrics}"
    );
    for file in std::fs::read_dir(server.folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let found = bytes.windows(wrong.len()).any(|w| w == wrong.as_bytes());
        assert!(!found, "the presented key is on the disk");
    }
}

#[test]
fn a_client_that_leaves_is_written_down() {
    let server = start(Settings::default());
    let mut stream = server.connect();
    stream
        .write_all(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut some = [0; 64];
    assert!(stream.read(&mut some).unwrap() > 0);
    drop(stream);
    let rows = audited(&server, 1);
    assert!(rows[0].completion_tokens < 10, "{rows:?}");
    assert_eq!(
        server.store().usage(0, u64::MAX).unwrap()[0].completion_tokens,
        rows[0].completion_tokens
    );
}

#[test]
fn a_server_that_ends_lets_streams_end() {
    let (settings, _) = logged();
    let mut server = start(settings);
    let mut stream = server.connect();
    stream
        .write_all(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let idle = server.connect();
    let mut first = [0; 16];
    stream.read_exact(&mut first).unwrap();
    server.end();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert!(String::from_utf8_lossy(&all).contains("piece 10"));
    drop(idle);
    server.ended().unwrap();
    assert!(std::net::TcpStream::connect(server.address).is_err());
    let rows = server.store().audit(0, 10).unwrap();
    assert_eq!(
        rows[0].completion_tokens, 10,
        "what ended last is written down"
    );
}

#[test]
fn slow_clients_are_cut() {
    let server = start(Settings {
        header_timeout: Duration::from_millis(300),
        ..Settings::default()
    });
    let mut slow = server.connect();
    let began = Instant::now();
    // A byte now and then does not help.
    for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "
        .iter()
        .cycle()
    {
        std::thread::sleep(Duration::from_millis(50));
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(15), "still there");
    }
    assert_eq!(server.get("/health", "").status, 200);
}

#[test]
fn metrics_are_counted() {
    let server = start(Settings::default());
    assert_eq!(post(&server, "", "{\"tokens\":5}").status, 200);
    server
        .state
        .metrics()
        .observe(Metric::TimeToFirstToken, &["m"], 0.2);
    let text = server.get("/metrics", "").body;
    for line in [
        "puna_completion_tokens_total{model=\"m\",key=\"local\"} 5",
        "puna_http_requests_total{route=\"/chat\",method=\"POST\",status=\"200\"} 1",
        "puna_time_to_first_token_seconds_count{model=\"m\"} 1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[test]
fn what_was_used_this_month_is_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.sqlite");
    let mut store = server::Store::open(&path).unwrap();
    let now = server::time::parse("t", "2026-03-15T12:00:00Z").unwrap();
    let used = |at, tokens| Event {
        at,
        key: "key-1".into(),
        prompt_tokens: tokens,
        billed: true,
        ..Event::default()
    };
    let last_month = server::time::parse("t", "2026-02-28T23:00:00Z").unwrap();
    store
        .append(&[used(last_month, 1000), used(now, 40)])
        .unwrap();
    drop(store);
    let settings = Settings {
        clock: Clock::Manual(Arc::new(AtomicU64::new(now))),
        ..Settings::default()
    };
    let state = State::open(settings, &path).unwrap();
    assert_eq!(state.month_tokens("key-1"), 40);
}
